"""UGACH: unsupervised generative adversarial hashing, codes from pairs and neighbors alone (Zhang, Peng, Yuan 2018).

Claim: without a label, codes of two modalities still follow the manifold of the items if a generator looks for items
that a query is easily confused with, and a discriminator learns to keep them farther away than the query's neighbors.

    s_m    = σ(W'_m tanh(W_m x_m + c_m) + c'_m) in (0, 1)^b        discriminator; the generator's g_m is built alike
    N(i)   = {i} + the k nearest of x_i + the k nearest of y_i     neighbors in each input space, joined over the pairs
    p(j|i) = softmax_j -‖g_x,i - g_y,j‖²                           what the generator takes to be relevant to query i
    h_i(n) = max(0, β + ‖s_x,i - s_y,u‖² - ‖s_x,i - s_y,n‖²)       u drawn evenly from N(i); β = b/8
    discriminator: min mean h_i(n)                                 n drawn by p(·|i) from what is not in N(i)
    generator:     min -mean (r - E_p r) log p(j|i)                j drawn by p(·|i), reward r = σ(h_i(j))

Both directions, ``draws`` of u and n or j for each query. For the first part of the training the discriminator learns
alone, its n drawn evenly. No gradient passes through a draw, only through p (policy gradient, as in IRGAN): a candidate
that the discriminator ranks closer than those drawn on average becomes likelier, any other less likely.

Graph and candidates are those of the batch, as if the batch were all there is: the authors draw their candidates from a
random fiftieth of the training items anyway, and a batch is such a part. So nothing is stored, memory is B² a draw, and
clips that are made anew in every epoch can be learned from; but a neighbor is then near among B, not near among all.
The code is the discriminator's: binary with the threshold .5, or (``codes`` = "real") s itself, compared by cosine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from avcl import system
from avcl.encoders.clip_vector import ClipVector, learn_vectors
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.nn.dense import dense, glorot
from avcl.system import MAX, MediaConfig, Phase, Step, Trial
from avcl.types import Batch, Card, DataSpec

Codes = Literal["binary", "real"]

CARD = Card(
    title="Unsupervised generative adversarial cross-modal hashing",
    year=2018,
    venue="AAAI",
    authors="J. Zhang, Y. Peng, M. Yuan",
    paper=("As UGACL in the tables of Zeng et al. on VEGAS and AVE; its figures there were not verified",),
    fidelity="reconstruction: networks, scores, draws, hinge and reward are those of the authors' code, which reads "
    "the graph and a pretrained discriminator from files; how these are made is ours.",
    deviations=(
        "Graph and candidates within the batch instead of all training items and a random fiftieth of them: nothing of "
        "the data is stored. A query counts as its own neighbor; distances are Euclidean, of standardized columns.",
        "p is a softmax over all candidates; in the authors' loss it is one over the drawn ones alone, two of them.",
        "Rewards minus what the query expects, without which every draw becomes likelier (baseline = false).",
        "One hidden layer of 512, not 8192: for features of hundreds of columns, not thousands.",
        "Batches that both directions share, AdamW with warm-up and cosine, decoupled weight decay: the one loop of "
        "this library. The authors take one query a step, by gradient descent.",
        "The generator's rate is a hundredth of the discriminator's (theirs is tenfold, of plain gradient descent): as "
        "fast as the discriminator it settles on a few candidates of each query and undoes the codes, so that class "
        "mAP on the generated world and on Wikipedia is hardly above that of an untrained copy.",
        'codes = "real" is what tables of audio-visual retrieval presumably mean by UGACL: not verified.',
        "Media are summarized by fixed statistics.",
        "Equal Hamming distances count with their expected value, not in the order of the gallery.",
    ),
    original_license="none stated",
)


@dataclass(frozen=True)
class UGACHConfig(MediaConfig):
    """Settings of ``ugach``."""

    epochs: int = 30
    batch_size: int = 128  # also how many candidates there are
    learning_rate: float = 1e-3  # of the discriminator
    bits: int = 32  # b
    codes: Codes = "binary"  # "real": s by cosine
    hidden: tuple[int, ...] = (512,)
    neighbors: int = 2  # k, of a batch; fewer where it would have nothing else
    margin: float = 0.125  # β / b
    draws: int = 2  # of a neighbor and of another item, a query and direction
    pretraining: float = 0.2  # share of the training in which the discriminator learns alone
    generator_rate: float = 1e-5  # the discriminator's own is too fast: see the deviations
    generator_steps: int = 2  # for each of the discriminator
    baseline: bool = True  # E_p r

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **MediaConfig.ranges,
        "bits": (1, MAX),
        "hidden": (1, MAX),
        "neighbors": (1, MAX),
        "margin": (0.0, MAX),
        "draws": (1, MAX),
        "pretraining": (0.0, 0.9),
        "generator_rate": (0.0, MAX),
        "generator_steps": (1, MAX),
    }

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=2, batch_size=8, bits=12, hidden=(16,))


class UGACH(system.System):
    """Of each player a perceptron for each modality; the discriminator's are the hash functions."""

    card: ClassVar[Card] = CARD
    Config: ClassVar[type[system.Config]] = UGACHConfig
    similarity_name = "dot"
    config: UGACHConfig
    trial = Trial(
        task="retrieval",
        preset="retrieval",
        protocol={"relevance": "class"},
        clips=2400,
        fresh=False,
        settings={"epochs": 6, "batch_size": 64},
        short={"epochs": 8, "batch_size": 32},
        watch="hinge",
    )

    def __init__(self, config: UGACHConfig, spec: DataSpec):
        super().__init__(config, spec)
        c = config
        if c.codes not in get_args(Codes):
            raise ConfigError(f'codes = "{c.codes}" is not known.', hint=did_you_mean(c.codes, set(get_args(Codes))))
        self.modalities = c.chosen(spec)
        if len(self.modalities) != 2:
            raise ConfigError(
                f"ugach relates two modalities, not {', '.join(self.modalities)}.", hint="Set modalities."
            )
        words = len(spec.vocabulary)
        vectors = {n: ClipVector(spec.streams[n], seconds=c.window, vocabulary=words) for n in self.modalities}
        self.vectors = nn.ModuleDict(vectors)
        self.discriminator = nn.ModuleDict({name: _net(vector.dim, c) for name, vector in vectors.items()})
        self.generator = nn.ModuleDict({name: _net(vector.dim, c) for name, vector in vectors.items()})

    def phases(self) -> tuple[Phase, ...]:
        c = self.config
        return (
            Phase("discriminator", tuple(self.discriminator.parameters()), ("hinge",)),
            Phase(
                "generator",
                tuple(self.generator.parameters()),
                ("policy",),
                {"learning_rate": c.generator_rate},
                repeat=c.generator_steps,
                start=c.pretraining,
            ),
        )

    # --------------------------------------------------------------------------------------------------------- learning
    def begin_epoch(self, batches: Iterable[Batch], epoch: int) -> None:
        """Mean and variance of the columns of x, before the first step."""
        if epoch == 0:
            learn_vectors({name: cast(ClipVector, self.vectors[name]) for name in self.modalities}, batches)

    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        """s of each modality [B, b], g ("audio g"), x ("audio x"), and which rows have both modalities, "both" [B]."""
        encoded: dict[str, Tensor] = {}
        for name, stream in zip(self.modalities, batch.require(*self.modalities), strict=True):
            x = self.vectors[name](stream)
            s, g = (player[name](x).float() for player in (self.discriminator, self.generator))
            encoded |= {name: s, f"{name} g": g, f"{name} x": x}
        return encoded | {"both": batch.complete(*self.modalities)}

    def losses(self, encoded: Mapping[str, Tensor], batch: Batch, at: Step) -> Mapping[str, Tensor]:
        """Of the discriminator "hinge", of the generator "policy"; BatchError for fewer than two pairs."""
        c, both = self.config, encoded["both"]
        if int(both.sum()) < 2:
            raise BatchError("ugach needs two clips or more with both modalities in every batch.")
        near = joined_neighbors([encoded[f"{name} x"][both].detach() for name in self.modalities], c.neighbors)
        hinges, policies = [], []
        for query, other in (self.modalities, self.modalities[::-1]):
            s, other_s = encoded[query][both], encoded[other][both]
            score = -apart(encoded[f"{query} g"][both], encoded[f"{other} g"][both])
            right = drawn(near.float().log(), c.draws, at.generator)
            if at.turn != "generator":
                belief = score.detach() if at.progress >= c.pretraining else torch.zeros_like(score)
                wrong = drawn(belief.masked_fill(near, -torch.inf), c.draws, at.generator)
                closer, farther = ((s[:, None] - other_s[rows]).square().sum(2) for rows in (right, wrong))
                hinges.append((c.margin * c.bits + closer - farther).relu().mean())
            if at.turn != "discriminator":
                distance = apart(s.detach(), other_s.detach())
                reward = rewards(distance, right, c.margin * c.bits)
                policies.append(policy_loss(score, reward, at.generator, baseline=c.baseline))
        terms = {"hinge": hinges, "policy": policies}
        return {name: torch.stack(values).sum() for name, values in terms.items() if values}

    # ---------------------------------------------------------------------------------------------------- capabilities
    @torch.no_grad()
    def features(self, batch: Batch, modality: str) -> Tensor:
        """2s - 1, of both modalities ("audio+video") their mean, zeros where nothing was recorded: float32 [B, b] in
        [-1, 1].
        """
        total = torch.zeros(len(batch), self.config.bits, device=batch.label.device)
        names = modality.split("+")
        for name in names:
            if name not in self.modalities:
                raise ConfigError(f'this model has no "{name}".', hint=did_you_mean(name, set(self.modalities)))
            (stream,) = batch.require(name)
            s = self.discriminator[name](self.vectors[name](stream)).float()
            total += (2 * s - 1) * stream.mask.any(1)[:, None]
        return total / len(names)

    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        """The code in float32 [B, b]: -1 or +1, or s at unit length (zeros where nothing was recorded)."""
        signed = self.features(batch, modality)
        if self.config.codes == "binary":
            return torch.where(signed >= 0, 1.0, -1.0)
        streams = batch.require(*modality.split("+"))
        there = torch.stack([stream.mask.any(1) for stream in streams]).any(0)
        return normalize((signed + 1) / 2, dim=1) * there[:, None]

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        """b - 2 · (Hamming distance), or the cosine: [Q, G]."""
        return q @ g.T


def _net(width: int, config: UGACHConfig) -> nn.Sequential:
    sizes = (width, *config.hidden)
    return nn.Sequential(*dense(sizes, activation="tanh"), glorot(sizes[-1], config.bits), nn.Sigmoid())


def apart(a: Tensor, v: Tensor) -> Tensor:
    """``‖a_i - v_j‖²``: [N, D] and [M, D] to [N, M]."""
    return torch.cdist(a, v, compute_mode="donot_use_mm_for_euclid_dist").square()


def joined_neighbors(views: Iterable[Tensor], k: int) -> Tensor:
    """[N, N] bool: row i marks i itself and its ``k`` nearest others (Euclidean) in each of the two ``views`` [N, D].

    So at most 2k + 1 < N in a row: k is lowered to (N - 2) / 2 where it is greater, so that something is left out.
    """
    first, *others = views
    near = torch.eye(len(first), dtype=torch.bool, device=first.device)
    k = min(k, (len(first) - 2) // 2)
    for x in (first, *others):
        distance = apart(x, x).fill_diagonal_(torch.inf)
        near.scatter_(1, distance.topk(k, dim=1, largest=False).indices, True)
    return near


def drawn(logits: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` columns of each row [N, count], with replacement, by the softmax of ``logits`` [N, M]."""
    return torch.multinomial(logits.detach().softmax(1), count, replacement=True, generator=generator)


def rewards(distance: Tensor, right: Tensor, margin: float) -> Tensor:
    """``σ(max(0, β + d_iu - d_ij))`` of every candidate j beside each drawn neighbor u: [N, K, M].

    ``distance`` d [N, M], the discriminator's · ``right`` [N, K]: the columns u · ``margin``: β. Greater for a
    candidate that the discriminator ranks closer; .5 at least.
    """
    return (margin + distance.gather(1, right)[:, :, None] - distance[:, None]).relu().sigmoid()


def policy_loss(score: Tensor, reward: Tensor, generator: torch.Generator, *, baseline: bool = True) -> Tensor:
    """``-mean_ik (r_ik(j) - E_p r_ik) log p_i(j)``, ``p_i = softmax(score_i)``, one j drawn by p_i for each (i, k).

    Its gradient is on average that of minus the expected reward ``-mean_ik Σ_j p_i(j) r_ik(j)``, which is never formed:
    a descent makes likelier what is rewarded more than ``baseline`` (without: than nothing), and r gets no gradient.
    ``score`` [N, M] with a graph · ``reward`` [N, K, M] · a scalar.
    """
    chosen = drawn(score, reward.shape[1], generator)
    gain = reward.gather(2, chosen[:, :, None])[:, :, 0]
    if baseline:
        gain = gain - (reward * score.detach().softmax(1)[:, None]).sum(2)
    return -(gain.detach() * score.log_softmax(1).gather(1, chosen)).mean()
