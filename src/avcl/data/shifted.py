"""Data whose sound is moved by a known lag: the truth of synchronization for any videos that are in time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import torch

from avcl.data.dataset import Data
from avcl.data.derived import Derived
from avcl.errors import ConfigError, DataError
from avcl.seeds import seed_for
from avcl.types import Clip, Inputs, Stream, fingerprint


class Shifted(Derived):
    """Every clip with its sound late by δ, uniform in ±``most`` seconds and not rounded to frames.

    a'(t) = a(t - δ), v'(t) = v(t) for t in the window, which is cut out of a longer one: ``source`` is decoded for
    ``window + 2 · lead`` seconds (lead: ``most`` in whole frames), and what is shown begins ``lead`` seconds later, so
    there is real sound at both ends and no edge tells δ. Where the source ends early, the sound ends at the same second
    of the clock whatever δ. ``extras["offset"]``: δ in seconds (a whole number of samples), added to the lag the
    source knows of. δ follows from (``seed``, id); with ``fresh`` also from the epoch, for training. The source must
    be in time, or know its lag.
    """

    def __init__(
        self,
        source: Data,
        *,
        most: float = 0.4,
        seed: int = 0,
        fresh: bool = False,
        window: float | None = None,
    ):
        if not most > 0:
            raise ConfigError(f"most = {most} must be greater than 0 seconds.")
        for name in ("audio", "video"):
            if name not in source.modalities:
                raise DataError(f"the data have no {name} (they have {', '.join(source.modalities)}).")
        if source.kind == "features":
            raise DataError("arrays of features have no clock by which sound could be moved.")
        inputs = _inputs(source)
        if window is None and inputs is not None:  # decode more than is shown
            lead = math.ceil(most * inputs.fps - 1e-6) / inputs.fps
            window, source = inputs.window, source.configure(replace(inputs, window=inputs.window + 2 * lead))
        super().__init__(source)
        self.most, self.seed, self.fresh, self.window = most, seed, fresh, window

    def _settings(self) -> Mapping[str, Any]:
        return {"most": self.most, "seed": self.seed, "fresh": self.fresh}

    def remade(self, source: Data) -> Self:
        return type(self)(source, window=self.window, **self._settings())

    def configure(self, inputs: Inputs) -> Self:
        return type(self)(self.source.configure(inputs), **self._settings())

    @property
    def fingerprint(self) -> str:
        return fingerprint({"source": self.source.fingerprint, "shifted": self._settings()})

    def lag(self, id: str, epoch: int = 0) -> float:
        """δ of the clip ``id`` before it is rounded to a sample."""
        names = ("shift", id, epoch) if self.fresh else ("shift", id)
        drawn = torch.Generator().manual_seed(seed_for(self.seed, *names))
        return float(torch.rand((), generator=drawn, dtype=torch.float64)) * 2 * self.most - self.most

    def clip(self, index: int, *, epoch: int = 0, view: int = 0) -> Clip:
        clip = self.source.clip(index, epoch=epoch, view=view)
        if self.window is None:
            raise ConfigError("media are decoded only after data.configure(inputs).")
        picture, sound = clip.streams["video"], clip.streams["audio"]
        lead = math.ceil(self.most * picture.rate - 1e-6) / picture.rate
        late = round(self.lag(clip.id, epoch) * sound.rate)
        first = round(lead * sound.rate)
        seen = _part(picture, round(lead * picture.rate), round(self.window * picture.rate))
        heard = _part(sound, first - late, round(self.window * sound.rate))
        end = int(sound.mask.sum()) - first - math.ceil(self.most * sound.rate)
        mask = heard.mask & (torch.arange(heard.mask.shape[1]) < end)
        heard = heard._replace(data=heard.data * mask[:, :, None], mask=mask)
        known = float(clip.extras["offset"]) if "offset" in clip.extras else 0.0
        offset = torch.tensor(known + late / sound.rate, dtype=torch.float32)
        return replace(
            clip, streams={**clip.streams, "video": seen, "audio": heard}, extras={**clip.extras, "offset": offset}
        )


def _part(stream: Stream, first: int, steps: int) -> Stream:
    return Stream(stream.data[:, first : first + steps], stream.mask[:, first : first + steps], stream.rate)


def _inputs(data: Data) -> Inputs | None:
    """How the data at the bottom are decoded, None before they are configured."""
    while isinstance(data, Derived):
        data = data.source
    return getattr(data, "inputs", None)
