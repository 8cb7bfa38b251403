"""A clip as one vector and a perceptron on it, and two of them whose outputs the linear CCA turns into one space."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from avcl.encoders.clips import PictureTower, SoundTower, in_unit_range
from avcl.encoders.statistics import summarize, summary_dim
from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.nn.canonical import ClusterCCA
from avcl.nn.dense import dense, glorot
from avcl.types import Batch, Stream, StreamSpec


class ClipPerceptron(nn.Module):
    """``z = σ(... σ(bn(x) W₁ + b₁) ...) W_n + b_n``, x what stands for the clip: a Stream [B, T, ...] to [B, dim].

    x is, by kind: features and maps: the mean over time (and cells) · tokens: the share of each · audio and video: the
    pooled output of a small convolutional tower that learns along (``frames``: full-size ones that it looks at).
    ``pool(width)`` makes a module, Stream [B, T, width] to [B, width], that is taken instead of the mean over time.

    ``hidden``: widths of the layers · ``activation`` σ as in ``dense`` · ``offset`` = False: no b_n, for a loss that
    centers the outputs anyway · bn: batch normalization of the inputs, over the clips that have the modality; the
    others give zeros. Raises: ConfigError for an unknown activation, BatchError in training for a batch (or
    micro-batch) with fewer than two clips, of which no statistics can be taken.
    """

    def __init__(
        self,
        spec: StreamSpec,
        *,
        hidden: Sequence[int],
        dim: int,
        activation: str = "sigmoid",
        dropout: float = 0.0,
        frames: int = 4,
        vocabulary: int = 0,
        offset: bool = True,
        pool: Callable[[int], nn.Module] | None = None,
    ):
        super().__init__()
        self.spec, self.vocabulary, self.dim = spec, vocabulary, dim
        self.tower: PictureTower | SoundTower | None = None
        if spec.kind == "video":
            self.tower = PictureTower(frames)
        elif spec.kind == "audio":
            self.tower = SoundTower()
        width = summary_dim(spec, vocabulary) if self.tower is None else self.tower.dim
        self.pool: nn.Module | None = None
        if pool is not None:
            width = width if self.tower is None else self.tower.sequence_dim
            self.pool = pool(width)
        sizes = (width, *hidden)
        layers = dense(sizes, activation=activation, dropout=dropout)
        last = glorot(sizes[-1], dim)
        if not offset:
            last.register_parameter("bias", None)
        self.net = nn.Sequential(nn.BatchNorm1d(width), *layers, last)

    def forward(self, stream: Stream) -> Tensor:
        x, there = self.clip(stream), stream.mask.any(1)
        if self.training and int(there.sum()) < 2:
            raise BatchError("batch normalization needs two clips or more with every modality in a (micro-)batch.")
        if bool(there.all()):
            return self.net(x)
        out = x.new_zeros(len(x), self.dim)
        out[there] = self.net(x[there]).to(out.dtype)
        return out

    def clip(self, stream: Stream) -> Tensor:
        """x: what stands for each clip [B, width], before the normalization."""
        stream = in_unit_range(stream)
        seen = None if self.tower is None else self.tower(stream)
        if self.pool is not None:
            return self.pool(stream if seen is None else seen.sequence)
        if seen is not None:
            return seen.pooled
        kept = stream.data.dtype if stream.data.is_floating_point() else torch.float32
        return summarize(stream, self.spec, seconds=1.0, vocabulary=self.vocabulary).to(kept)


class CanonicalPair(nn.Module):
    """Two networks ``views`` (Stream to [B, k] each) and the linear CCA that puts their outputs into one space.

    What a loss of correlation gives are two spaces with a basis each, for it does not change when an output is
    multiplied by an invertible matrix. ``f_m(x) = (z_m - mean_m) W_m``, W from the (cluster-)CCA of all training
    outputs with ``ridge`` r and ``pair_weight`` β; ``classes`` = 0: of the pairs alone, labels are not looked at.

    ``encode`` is row-wise; ``rows`` chooses what has both modalities (and a label); ``follow`` after a step and ``fit``
    after training solve for W; ``embed`` gives unit vectors [B, k]. Raises: ConfigError unless there are two views,
    BatchError for a clip without the label that is needed.
    """

    def __init__(
        self, views: Mapping[str, nn.Module], dim: int, *, classes: int = 0, ridge: float = 1e-4, pair_weight: float = 1
    ):
        super().__init__()
        self.labeled = classes > 0
        self.cca = ClusterCCA(
            dict.fromkeys(views, dim),
            dim,
            classes=classes if self.labeled else 2,  # without labels every clip is put into the first of them
            ridge=ridge,
            pair_weight=pair_weight if self.labeled else 1.0,
        )
        self.views = nn.ModuleDict(views)

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """The outputs of both networks [B, k], and which rows have both modalities, "both" [B]."""
        streams = dict(zip(self.views, batch.require(*self.views), strict=True))
        encoded = {name: self.views[name](stream) for name, stream in streams.items()}
        return encoded | {"both": batch.complete(*streams)}

    def rows(self, encoded: Mapping[str, Tensor], batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """The outputs of the rows that have both modalities, and their labels (zeros where none are needed)."""
        both = encoded["both"]
        label = batch.label[both] if self.labeled else torch.zeros_like(batch.label[both])
        if bool((label < 0).any()):
            raise BatchError("cluster-CCA needs a label for every clip.", hint="dcca, cca and infonce need none.")
        return {name: encoded[name][both] for name in self.views}, label

    def follow(self, encoded: Mapping[str, Tensor], batch: Batch) -> None:
        """The common space follows the networks, so that validation during training means something."""
        self.cca.follow(*self.rows(encoded, batch))

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        """The common space of the trained networks, from all training clips."""
        self.cca.fit(self.rows(self.encode(batch), batch) for batch in batches)

    @torch.no_grad()
    def features(self, batch: Batch, modality: str) -> Tensor:
        """The output of one network in its own basis: float32 [B, k]."""
        if modality not in self.views:
            raise ConfigError(f'this model has no "{modality}".', hint=did_you_mean(modality, set(self.views)))
        (stream,) = batch.require(modality)
        return self.views[modality](stream).float()

    @torch.no_grad()
    def embed(self, batch: Batch, modality: str) -> Tensor:
        """Canonical components of one modality, or of the sum of both ("audio+video"), of unit length: [B, k]."""
        total = self.cca.mean.new_zeros(len(batch), self.cca.components)
        for name in modality.split("+"):
            unit = normalize(self.cca(self.features(batch, name), name), dim=1)
            total += unit * batch.streams[name].mask.any(1)[:, None]
        return normalize(total, dim=1).float()
