"""UniVSE: things, what they are like, what is between them, and whole sentences in one space (Wu et al. 2019).

Claim: a caption that is also embedded part by part, each part held to the region of the picture that shows it, is not
misled by a sentence with one wrong word.

    E(b, m) = norm( σ(W₁ [b; m]) ⊙ tanh(W₂ [b; m]) )                      b, m: basic and modifier code of a word
    thing n: E(b_n, m_n) · attribute a of n: E(b_n, m_a) · relation (s, r, o) and sentence: last state of one GRU over E
    u = α u_sentence + (1 - α) norm(Σ parts), α = .75                      v: the mean of the regions v_r, S the cosine

    L = L_sentence + η_c L_component + η_a L_attribute + η_o L_thing + η_r L_relation
    L_sentence, L_component   the hinge with the hardest negative of the batch, both directions, margin .2
    L_thing, L_attribute      Σ_r w_r max(0, .2 + max_n S(n, v_r) - S(p, v_r)),  w = softmax_r S(p, v_r)
                              n: the part with another thing or another attribute than any of its caption
    L_relation                ½ [ the mutated relations + the hardest picture ], on v

η_c = η_a = η_o = .5; η_r is 0 in the first two epochs, then 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from avcl import system
from avcl.data.tokens import text_of
from avcl.encoders.clips import in_unit_range
from avcl.encoders.conv2d import glimpses
from avcl.encoders.phrases import Phrases, Spelling, phrases_of
from avcl.encoders.recurrent import Recurrent
from avcl.encoders.segments import CellConv
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.nn.pooling import evenly, masked_mean
from avcl.objectives.margin import hinge
from avcl.system import MAX, MediaConfig, Step, Trial
from avcl.types import Batch, Card, DataSpec, Stream, StreamSpec

CARD = Card(
    title="Unified visual-semantic embeddings: bridging vision and language with structured meaning representations",
    year=2019,
    venue="CVPR",
    authors="H. Wu, J. Mao, Y. Zhang, Y. Jiang, L. Li, W. Sun, W.-Y. Ma",
    survey={
        "paper": "Wu et al., 2019",
        "objective": "L2",
        "learning": "Supervised",
        "application": "Text-2-Image Retrieval",
        "metric": "Recall@10",
        "performance": "71.9",
        "datasets": "MS-COCO",
    },
    paper=(
        "MS-COCO, 5,000 test pictures, R@10: 71.9, mean of both directions (the survey's table)",
        "MS-COCO, 5,000 test pictures, R@1/5/10: picture to text 36.1 66.4 77.7, text to picture 25.4 53.0 66.2 (from "
        "memory, not verified; their mean is the survey's figure)",
    ),
    fidelity="reconstruction: losses and weights follow a re-implementation that states it follows the paper's "
    "appendix; how many negatives were drawn and whether the picture network learned along are not known.",
    deviations=(
        "Parts are found by a chunker (closed classes of English words and a list of verbs), not by a scene-graph "
        "parser.",
        "Basic and modifier codes are read from the letters of a word and learn along, for want of GloVe and a fixed "
        "vocabulary.",
        "Pictures of media are read by a small convolutional network that learns along, and every cell knows its "
        "place; so the mean of the regions keeps where a thing is.",
        "A relation is three steps, the words between the two things being averaged.",
        "AdamW with warm-up and cosine instead of Adam with one drop of the rate: the one loop of this library.",
    ),
    original_license="none: no official code was released; the re-implementation states none",
)


@dataclass(frozen=True)
class UniVSEConfig(MediaConfig):
    """Settings of ``wu2019_univse``."""

    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 2e-4
    weight_decay: float = 0.0
    dim: int = 1024
    basic: int = 300  # numbers of the basic code of a word
    modifier: int = 100  # and of its modifier code
    margin: float = 0.2
    alpha: float = 0.75  # share of the sentence in a caption that is compared
    component: float = 0.5  # η_c
    attribute: float = 0.5  # η_a
    thing: float = 0.5  # η_o
    relation: float = 1.0  # η_r
    relations_from: int = 2  # epochs without L_relation
    sum_epochs: int = 0  # epochs in which the hinge takes all negatives, which cannot collapse
    negatives: int = 16  # drawn for each part
    parts: int = 6  # of a kind that a caption may have; the rest is not looked at
    regions: int = 36  # of a picture that comes as features, one region a step
    frames: int = 2  # of media: how many pictures are looked at

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "dim": (1, MAX),
        "basic": (1, MAX),
        "modifier": (1, MAX),
        "margin": (0.0, MAX),
        "alpha": (0.0, 1.0),
        "component": (0.0, MAX),
        "attribute": (0.0, MAX),
        "thing": (0.0, MAX),
        "relation": (0.0, MAX),
        "relations_from": (0, MAX),
        "sum_epochs": (0, MAX),
        "negatives": (1, MAX),
        "parts": (1, MAX),
        "regions": (1, MAX),
        "frames": (1, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, dim=12, basic=8, modifier=4, negatives=4, parts=3, relations_from=0)


# Captions of one thing: what it is, what it is made of, how large, where. How it moves is not in a still picture. There
# are 360 captions, so the hardest negative of a batch is often the same sentence, and learning from it alone collapses:
# all negatives count to the end.
TRIAL = Trial(
    task="retrieval",
    preset="captions",
    protocol={"relevance": "pair"},
    knobs={"distractor": 0.0, "offscreen": 0.0},
    streams=("video", "text"),
    clips=2000,
    fresh=False,
    settings={
        "epochs": 18,
        "batch_size": 64,
        "fps": 2.0,
        "dim": 128,
        "basic": 64,
        "modifier": 32,
        "negatives": 8,
        "sum_epochs": 18,
        "learning_rate": 2e-3,
    },
    short={"epochs": 8, "batch_size": 16, "sum_epochs": 8},
    short_clips=48,
    watch="sentence",
    partner="text",
)


class WordCode(nn.Module):
    """``E(b, m) = norm( σ(W₁ [b; m]) ⊙ tanh(W₂ [b; m]) )``: [..., basic] and [..., modifier] to [..., dim]."""

    def __init__(self, basic: int, modifier: int, dim: int):
        super().__init__()
        self.gate, self.value = nn.Linear(basic + modifier, dim), nn.Linear(basic + modifier, dim)

    def forward(self, basic: Tensor, modifier: Tensor) -> Tensor:
        both = torch.cat([basic, modifier], -1)
        return nn.functional.normalize(torch.sigmoid(self.gate(both)) * torch.tanh(self.value(both)), dim=-1)


class Regions(nn.Module):
    """A picture as regions: video, maps or features (one region a step) to [B, R, dim], not yet of unit length."""

    def __init__(self, spec: StreamSpec, config: UniVSEConfig):
        super().__init__()
        self.kind, self.config = spec.kind, config
        if spec.kind not in ("video", "map", "features"):
            raise ConfigError(f'univse reads no pictures of kind "{spec.kind}".')
        self.cells = CellConv() if spec.kind == "video" else None
        width = spec.shape[-1] if self.cells is None else self.cells.dim
        places = 0 if spec.kind == "features" else 2
        self.inner = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.dim))
        self.place = nn.Linear(places, config.dim, bias=False) if places else None
        self.out = nn.Linear(config.dim, config.dim)

    def forward(self, stream: Stream) -> Tensor:
        if self.kind == "features":
            at = evenly(stream.mask, self.config.regions)
            x = self.inner(stream.data.float().gather(1, at[:, :, None].expand(-1, -1, stream.data.shape[2])))
            return self.out(nn.functional.gelu(x))
        maps = stream if self.cells is None else self.cells(glimpses(in_unit_range(stream), self.config.frames))
        x = self.inner(masked_mean(maps.data.float(), maps.mask))  # [B, H, W, dim]: the cells over the frames
        assert self.place is not None
        sides = [torch.linspace(-1, 1, n, device=x.device) for n in x.shape[1:3]]
        x = x + self.place(torch.stack(torch.meshgrid(*sides, indexing="ij"), 2))
        return self.out(nn.functional.gelu(x)).flatten(1, 2)


class UniVSE(system.System):
    """Regions of pictures, codes of words, one combiner, and five terms."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = UniVSEConfig
    trial: ClassVar[Trial | None] = TRIAL
    # Needs words: a caption that comes as one array has none.
    learns_from: ClassVar[tuple[str, ...]] = ("media",)
    similarity_name = "cosine"
    config: UniVSEConfig

    def __init__(self, config: UniVSEConfig, spec: DataSpec):
        super().__init__(config, spec)
        c, names = config, config.chosen(spec)
        texts = [name for name in names if spec.streams[name].kind == "tokens"]
        if len(names) != 2 or len(texts) != 1 or spec.vocabulary:
            raise ConfigError(
                f"univse needs a picture and a text as bytes, not {', '.join(names)}.", hint="Set modalities."
            )
        self.text, self.picture = texts[0], next(name for name in names if name != texts[0])
        self.basic, self.modifier = Spelling(c.basic), Spelling(c.modifier)
        self.code = WordCode(c.basic, c.modifier, c.dim)
        self.combiner = Recurrent(c.dim, hidden=c.dim, bidirectional=False)
        self.regions = Regions(spec.streams[self.picture], c)

    # ------------------------------------------------------------------------------------------------------------- text
    def read(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Of every caption, a row each: "sentence" and "component" [B, D], the codes of its parts, and their numbers.

        "thing" [B, P, basic + modifier] · "attribute" [B, P, basic + modifier], that of the thing and the modifier of
        the attribute · "relation" [B, P, 3, D] · "thing#" [B, P], "attribute#" [B, P, 2], "relation#" [B, P, 3]: which
        word it is, 0: there is none.
        """
        c, parsed = self.config, [phrases_of(caption) for caption in captions]
        words = sorted({word for p in parsed for word in p.words}) or [""]
        basic, modifier = self.basic(words), self.modifier(words)
        place, code = {word: i for i, word in enumerate(words)}, self.code(basic, modifier)
        device, cut = code.device, c.parts

        def at(rows: list[list[str]]) -> tuple[Tensor, Tensor]:
            longest = max(1, *(len(row) for row in rows))
            where = [[place[w] for w in row] + [0] * (longest - len(row)) for row in rows]
            length = torch.tensor([len(row) for row in rows], device=device)[:, None]
            return torch.tensor(where, device=device), torch.arange(longest, device=device) < length

        said, there = at([list(p.words) for p in parsed])
        sentence = self.combined(code[said], there)
        things, thing_number = _laid_out(parsed, "things", place, cut, device)
        pairs, pair_number = _laid_out(parsed, "attributes", place, cut, device)
        thing = torch.cat([basic[things], modifier[things]], 2)
        attribute = torch.cat([basic[pairs[:, :, 1]], modifier[pairs[:, :, 0]]], 2)
        triples, triple_number = self._triples(parsed, place, code)
        encoded = {"thing": thing, "attribute": attribute, "relation": triples}
        numbers = {"thing#": thing_number, "attribute#": pair_number, "relation#": triple_number}
        parts = [
            (self._coded(thing), thing_number > 0),
            (self._coded(attribute), pair_number[:, :, 0] > 0),
            (self.combined(triples.flatten(0, 1)).unflatten(0, triples.shape[:2]), triple_number[:, :, 0] > 0),
        ]
        total = torch.stack([(x * keep[:, :, None]).sum(1) for x, keep in parts]).sum(0)
        return encoded | numbers | {"sentence": sentence, "component": nn.functional.normalize(total, dim=1)}

    def _triples(self, parsed: Sequence[Phrases], place: Mapping[str, int], code: Tensor) -> tuple[Tensor, Tensor]:
        rows, numbers, cut = [], [], self.config.parts
        for p in parsed:
            for s, between, o in p.relations[:cut]:
                middle = code[[place[w] for w in between]].mean(0)
                rows += [code[place[s]], nn.functional.normalize(middle, dim=0), code[place[o]]]
                numbers += [_number(s), _number(" ".join(between)), _number(o)]
            lacking = 3 * (cut - len(p.relations[:cut]))
            rows += [code.new_zeros(code.shape[1])] * lacking
            numbers += [0] * lacking
        shape = (len(parsed), cut, 3)
        return torch.stack(rows).reshape(*shape, -1), torch.tensor(numbers, device=code.device).reshape(shape)

    def combined(self, codes: Tensor, mask: Tensor | None = None) -> Tensor:
        """The last state of the combiner over codes [N, T, D], of unit length: [N, D]."""
        mask = torch.ones(codes.shape[:2], dtype=torch.bool, device=codes.device) if mask is None else mask
        return nn.functional.normalize(self.combiner.last(self.combiner(Stream(codes, mask, 1.0))), dim=1)

    def _coded(self, both: Tensor) -> Tensor:
        return self.code(both[..., : self.config.basic], both[..., self.config.basic :])

    # --------------------------------------------------------------------------------------------------------- learning
    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """What ``read`` gives, "regions" [B, R, D] and "picture" [B, D] of unit length, and which rows have both."""
        text, picture = batch.require(self.text, self.picture)
        both = text.mask.any(1) & picture.mask.any(1)
        return {**self.read(text_of(text)), **self._looked_at(picture), "both": both}

    def _looked_at(self, stream: Stream) -> dict[str, Tensor]:
        regions = self.regions(stream).float()
        whole = nn.functional.normalize(regions.mean(1), dim=1)
        return {"regions": nn.functional.normalize(regions, dim=2), "picture": whole}

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """The five terms, weights included; a term without any part in the batch is 0."""
        c, both = self.config, encoded["both"]
        if not bool(both.any()):
            raise BatchError(f"no clip of the batch has both {self.text} and {self.picture}.")
        e = {name: value[both] for name, value in encoded.items()}
        which = "sum" if at.epoch < c.sum_epochs else "hardest"
        terms = {
            "sentence": hinge(e["sentence"], e["picture"], margin=c.margin, negatives=which),  # type: ignore[arg-type]
            "component": c.component * hinge(e["component"], e["picture"], margin=c.margin, negatives=which),  # type: ignore[arg-type]
            "thing": c.thing * self._things(e, at.generator),
            "attribute": c.attribute * self._attributes(e, at.generator),
        }
        weight = c.relation if at.epoch >= c.relations_from else 0.0
        return terms | {"relation": weight * self._relations(e, at.generator)}

    def _things(self, e: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        row, place = e["thing#"].nonzero(as_tuple=True)
        if len(row) == 0:
            return 0.0 * e["picture"].sum()
        number, code = e["thing#"][row, place], e["thing"][row, place]
        other, fine = drawn(number, e["thing#"][row], self.config.negatives, generator)
        return self._held(self._coded(code), self._coded(code[other]), fine, e["regions"][row])

    def _attributes(self, e: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        row, place = e["attribute#"][:, :, 0].nonzero(as_tuple=True)
        if len(row) == 0:
            return 0.0 * e["picture"].sum()
        number, code, n = e["attribute#"][row, place], e["attribute"][row, place], self.config.basic
        positive, regions, terms = self._coded(code), e["regions"][row], []
        for part, kept in ((0, slice(0, n)), (1, slice(n, None))):  # another attribute of this thing, this of another
            other, fine = drawn(number[:, part], e["attribute#"][row][:, :, part], self.config.negatives, generator)
            negative = code[other].clone()
            negative[..., kept] = code[:, None, kept].expand_as(negative[..., kept])
            terms.append(self._held(positive, self._coded(negative), fine, regions))
        return torch.stack(terms).mean()

    def _held(self, positive: Tensor, negative: Tensor, fine: Tensor, regions: Tensor) -> Tensor:
        """The regional hinge, a mean over the parts [N] that have a negative (``fine`` [N] bool)."""
        if not bool(fine.any()):
            return 0.0 * positive.sum()
        return regional(positive[fine], negative[fine], regions[fine], margin=self.config.margin)

    def _relations(self, e: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        row, place = e["relation#"][:, :, 0].nonzero(as_tuple=True)
        if len(row) == 0:
            return 0.0 * e["picture"].sum()
        number, codes = e["relation#"][row, place], e["relation"][row, place]  # [N, 3], [N, 3, D]
        own = self.combined(codes)
        match, margin = (own * e["picture"][row]).sum(1), self.config.margin
        worst = torch.full_like(match, -torch.inf)
        for part in range(3):  # one word replaced by that of another caption's relation
            other, fine = drawn(number[:, part], number[:, part, None], 1, generator)
            if bool(fine.any()):
                mutated = codes.clone()
                mutated[:, part] = codes[other[:, 0], part]
                score = (self.combined(mutated) * e["picture"][row]).sum(1)
                worst = torch.maximum(worst, torch.where(fine, score, -torch.inf))
        # A picture whose caption has the same relation is no mismatch.
        same = (number[:, None, None] == e["relation#"][None]).all(3).any(2)  # [N, B]
        hardest = (own @ e["picture"].T).masked_fill(same, -torch.inf).amax(1)
        return 0.5 * sum(((margin + x - match).clamp(min=0) for x in (worst, hardest)), match.new_zeros(())).mean()

    # ---------------------------------------------------------------------------------------------------- capabilities
    @torch.no_grad()
    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """Caption or picture, of unit length: float32 [B, D]; zeros where nothing was recorded."""
        if modality not in (self.text, self.picture):
            raise ConfigError(
                f'this model has no "{modality}".', hint=did_you_mean(modality, {self.text, self.picture})
            )
        (stream,) = batch.require(modality)
        there = stream.mask.any(1)[:, None]
        if modality == self.picture:
            return self._looked_at(stream)["picture"] * there
        read, alpha = self.read(text_of(stream)), self.config.alpha
        mixed = alpha * read["sentence"] + (1 - alpha) * read["component"]
        return nn.functional.normalize(mixed, dim=1).float() * there

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        return nn.functional.normalize(q, dim=1) @ nn.functional.normalize(g, dim=1).T


# ---------------------------------------------------------------------------------------------------------------- parts
def regional(positive: Tensor, negative: Tensor, regions: Tensor, *, margin: float) -> Tensor:
    """``1/N Σ_i Σ_r w_ir max(0, margin + max_k S(n_ik, v_ir) - S(p_i, v_ir))``, w_i = softmax_r S(p_i, v_ir).

    ``positive`` [N, D], ``negative`` [N, K, D], ``regions`` [N, R, D], all of unit length.
    """
    match = (regions @ positive[:, :, None])[:, :, 0]  # [N, R]
    mismatch = (regions @ negative.transpose(1, 2)).amax(2)
    return (match.softmax(1) * (margin + mismatch - match).clamp(min=0)).sum(1).mean()


def drawn(number: Tensor, own: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """For each of N parts ``count`` others, every word equally likely, none of those in ``own`` [N, P] of its caption.

    ``number`` [N]: which word a part is. Positions [N, count], and for which parts there is another word [N].
    """
    word, inverse = number.unique(return_inverse=True)
    at = torch.arange(len(number), device=number.device)
    first = torch.full_like(word, len(number)).scatter_reduce(0, inverse, at, "amin")
    allowed = ~(own[:, :, None] == word).any(1)  # [N, words]
    fine = allowed.any(1)
    weights = (allowed | ~fine[:, None]).float()
    return first[torch.multinomial(weights, count, replacement=True, generator=generator)], fine


def _number(word: str) -> int:
    """A number above 0 for a word, the same everywhere."""
    return 1 + int.from_bytes(hashlib.blake2b(word.encode(), digest_size=7).digest(), "big")


def _laid_out(
    parsed: Sequence[Phrases], kind: str, place: Mapping[str, int], cut: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The parts of a kind as positions in the table of words and as numbers: [B, cut] each, [B, cut, 2] of pairs."""
    rows = [[(part,) if isinstance(part, str) else part for part in getattr(p, kind)[:cut]] for p in parsed]
    width = 1 if kind == "things" else 2
    empty = [(0,) * width]
    where = [[tuple(place[w] for w in part) for part in row] + empty * (cut - len(row)) for row in rows]
    number = [[tuple(_number(w) for w in part) for part in row] + empty * (cut - len(row)) for row in rows]
    made = [torch.tensor(x, device=device).reshape(len(parsed), cut, width) for x in (where, number)]
    return (made[0][:, :, 0], made[1][:, :, 0]) if width == 1 else (made[0], made[1])
