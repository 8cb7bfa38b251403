"""What a caption is made of: its things, what they are like, and what is between them; and words read by their letters.

A chunker, no parser: closed classes of English words and a list of verbs cut the sentence into runs of other words, and
the last word of a run is the thing, the words before it what it is like.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from avcl.encoders.text import CharConv, SentenceEmbedding
from avcl.types import Stream


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DETERMINERS = _words(
    "a an the this that these those some any each every no its his her their our my your one two three four five six "
    "seven eight nine ten several many few both another other"
)
JOINTS = _words("and or but while as when which who whom whose if than because so")
PREPOSITIONS = _words(
    "on in at of off to from with without by for over under near beside behind between through across into onto upon "
    "around against along above below inside outside out up down next toward towards about during"
)
VERBS = _words(
    "is are was were be been being am has have had having do does did can could will would may might must should "
    "sit sits sitting stand stands standing lie lies lying walk walks walking run runs running ride rides riding "
    "hold holds holding play plays playing eat eats eating look looks looking wear wears wearing fly flies flying "
    "jump jumps jumping drive drives driving carry carries carrying make makes making show shows showing cut cuts "
    "cutting use uses using bounce bounces bouncing shake shakes shaking rattle rattles rattling swing swings swinging "
    "slide slides sliding sound sounds sounding"
)


@dataclass(frozen=True)
class Phrases:
    """``words``: all of them in order, lower case · ``things`` · ``attributes``: (attribute, thing) pairs ·
    ``relations``: (thing, the words between, thing) triples.
    """

    words: tuple[str, ...]
    things: tuple[str, ...]
    attributes: tuple[tuple[str, str], ...]
    relations: tuple[tuple[str, tuple[str, ...], str], ...]


def phrases_of(caption: str, *, verbs: frozenset[str] = VERBS) -> Phrases:
    """The caption cut into runs of open words; what is between two runs and is no bare joint relates them.

    "a small metal ring bounces on the left": ring and left, (small, ring), (metal, ring), (ring, bounces on, left).
    Adverbs (-ly) are in no phrase. A word that can be both a verb and a thing is a verb where a thing stands before it.
    """
    words = tuple(re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", caption.lower()))
    runs: list[list[str]] = []
    between: list[list[str]] = []  # between[i]: what stands before runs[i]
    gap, open_run, after_determiner = [], False, False
    for word in words:
        closed = word in DETERMINERS | JOINTS | PREPOSITIONS
        # Behind a determiner a verb's word begins a thing: "a swing".
        acts = word in verbs and (open_run or not after_determiner)
        if word in DETERMINERS or word.endswith("ly"):
            open_run = False
        elif closed or acts:
            gap.append(word)
            open_run = False
        elif open_run:
            runs[-1].append(word)
        else:
            runs.append([word])
            between.append(gap)
            gap, open_run = [], True
        after_determiner = word in DETERMINERS or (after_determiner and word.endswith("ly"))
    things = tuple(dict.fromkeys(run[-1] for run in runs))
    attributes = tuple(dict.fromkeys((word, run[-1]) for run in runs for word in run[:-1]))
    relations = []
    for before, link, run in zip(runs, between[1:], runs[1:], strict=False):
        if link and not JOINTS.issuperset(link) and link[0] not in JOINTS and link[-1] not in JOINTS:
            relations.append((before[-1], tuple(link), run[-1]))
    return Phrases(words, things, attributes, tuple(dict.fromkeys(relations)))


class Spelling(nn.Module):
    """Words by their letters, without a table: a list of N words to [N, dim]; equal words, equal rows.

    Convolutions over the bytes and the largest value of each channel. A word that was never seen has a vector too.
    """

    def __init__(self, dim: int, *, letters: int = 64):
        super().__init__()
        self.net = SentenceEmbedding(CharConv(256, dim=letters, width=16, widths=(1, 3, 5), stride=1), dim, pool="max")
        self.dim = dim

    def forward(self, words: Sequence[str]) -> Tensor:
        device = self.net.out.weight.device
        code = [list(word.encode()) or [0] for word in words]
        longest = max(map(len, code), default=1)
        data = torch.tensor([c + [0] * (longest - len(c)) for c in code], dtype=torch.long, device=device)
        length = torch.tensor([len(c) for c in code], device=device)
        data = data.reshape(len(code), longest)
        return self.net(Stream(data, torch.arange(longest, device=device)[None] < length[:, None], 1.0))
