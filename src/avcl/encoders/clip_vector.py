"""A clip as one vector, whatever it is made of: for methods that were made for one extracted feature a clip."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from avcl.encoders.clips import PictureTower, SoundTower, in_unit_range
from avcl.encoders.statistics import summarize, summary_dim
from avcl.nn.standardize import Standardize
from avcl.objectives.correlation import Moments, add_moments
from avcl.types import Batch, Stream, StreamSpec


class ClipVector(nn.Module):
    """A stream [B, T, ...] to [B, dim]; rows where nothing was recorded are zeros.

    Features (mean over time) and tokens (share of each): ``summarize``, column by column brought to mean 0 and variance
    1 by ``learn_vectors`` (``standardize``; until then as they are). Video and audio: a small convolutional tower that
    learns along, ``frames`` of the pictures in full size, and a layer norm; with ``frames`` = 0 their fixed summary,
    which is standardized. ``seconds`` of the window · ``vocabulary``: how many tokens there are.
    """

    def __init__(
        self,
        spec: StreamSpec,
        *,
        seconds: float,
        frames: int = 0,
        vocabulary: int = 0,
        standardize: bool = True,
    ):
        super().__init__()
        self.spec, self.seconds, self.vocabulary = spec, seconds, vocabulary
        self.tower: PictureTower | SoundTower | None = None
        if frames and spec.kind == "video":
            self.tower = PictureTower(frames)
        elif frames and spec.kind == "audio":
            self.tower = SoundTower()
        self.dim = summary_dim(spec, vocabulary) if self.tower is None else self.tower.dim
        media = spec.kind not in ("features", "map", "tokens")
        self.scale = Standardize(self.dim) if self.tower is None and (standardize or media) else None
        self.norm = None if self.tower is None else nn.LayerNorm(self.dim)

    def summary(self, stream: Stream) -> Tensor:
        """What is standardized [B, dim]."""
        return summarize(in_unit_range(stream), self.spec, seconds=self.seconds, vocabulary=self.vocabulary).float()

    def forward(self, stream: Stream) -> Tensor:
        if self.tower is not None and self.norm is not None:
            x = self.norm(self.tower(in_unit_range(stream)).pooled)
        else:
            x = self.summary(stream)
            x = x if self.scale is None else self.scale(x)
        return x * stream.mask.any(1)[:, None]


@torch.no_grad()
def learn_vectors(vectors: Mapping[str, ClipVector], batches: Iterable[Batch]) -> None:
    """The scales of ``vectors`` {stream: ClipVector} from all clips that have the stream, in one pass.

    For ``System.begin_epoch``, before the first step. Towers, and vectors that are left as they are, learn nothing.
    """
    scales = {name: (vector, vector.scale) for name, vector in vectors.items() if vector.scale is not None}
    moments: dict[str, Moments | None] = dict.fromkeys(scales)
    for batch in batches if scales else ():
        for name, (vector, _) in scales.items():
            (stream,) = batch.require(name)
            rows = vector.summary(stream)[stream.mask.any(1)]
            moments[name] = add_moments(moments[name], rows) if len(rows) else moments[name]
    for name, found in moments.items():
        if found is not None:
            scales[name][1].learn(found)
