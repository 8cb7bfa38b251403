"""Synchronization: by how many milliseconds does the sound lag the picture, and can that be told at all?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from avcl.data.dataset import Data
from avcl.data.shifted import Shifted
from avcl.errors import ConfigError
from avcl.metrics.alignment import Offsets, blind_median, blind_within, estimate_offsets
from avcl.metrics.calibration import reliability
from avcl.system import Aligns
from avcl.task import Floats, Measure, Outputs, Table, Task, bare, truth_of
from avcl.types import Batch

NEAR, FAR = 0.04, 0.125  # seconds: what counts as in time, and what a listener puts up with
LOOKED_AT = 8  # clips by which data are known to be in time


@dataclass(frozen=True)
class Sync(Task):
    """Of every clip the lag of its sound, above zero: late; the answer is the best of the lags within ±``search``.

    A system scores lags every ``step`` seconds, ``margin`` beyond the search range on both sides; the offset is read
    between them (``avcl.metrics.alignment``). It is *undecidable* where the posterior mass within ±40 ms of it is below
    ``threshold``, and *at the limit* where it lies beyond ±``search``: neither is a measurement, and both stay wrong in
    the condition "all" unless the best guess happens to be right. Data that are in time (their clips know of no lag)
    are scored with their sound moved by a known one (``avcl.data.shifted``), uniform in ±``search``.
    """

    name: ClassVar[str] = "sync"
    words: ClassVar[str] = (
        "the offset is the most likely lag within the search range, above zero where the sound is late; decided where "
        "the posterior mass within 40 ms of it reaches the threshold and it does not lie at the limit of the search"
    )
    needs: ClassVar[type] = Aligns
    headline: ClassVar[tuple[str, str]] = ("all", "within_40ms")
    lower: ClassVar[frozenset[str]] = frozenset({"median_ms", "undecidable", "at_limit", "calibration_error"})
    partner: ClassVar[str] = "video"

    search: float = 0.4
    margin: float = 0.08
    step: float = 0.02
    threshold: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.search > 0 and self.margin >= self.step > 0 and 0 <= self.threshold <= 1):
            raise ConfigError(
                f"search = {self.search}, margin = {self.margin}, step = {self.step}, threshold = {self.threshold}: "
                "search and step must be above 0, margin at least one step, threshold from 0 to 1."
            )

    @property
    def grid(self) -> Tensor:
        """The lags that a system scores [K], in seconds."""
        count = round((self.search + self.margin) / self.step)
        return torch.arange(-count, count + 1) * self.step

    # ------------------------------------------------------------------------------------------- what is asked and how
    def items(self, data: Data) -> Data:
        """The clips as they are where they know of a lag; else with their sound moved by a known one."""
        told = data if data.kind == "world" else data.with_truth()  # the world says it of every clip, and it costs less
        some = (told.clip(i).extras.get("offset") for i in range(min(len(told), LOOKED_AT)))
        late = any(offset is not None and bool(offset.abs() > 0) for offset in some)
        return told if late else Shifted(data, most=self.search, seed=self.seed)

    def shown(self, batch: Batch) -> Batch:
        return bare(batch)

    def answer(self, system: Any, shown: Batch) -> Mapping[str, Tensor]:
        return {"log_scores": system.offsets(shown, self.grid)}

    def truth(self, batch: Batch) -> Mapping[str, Tensor]:
        (offset,) = truth_of(batch, self.name, "offset")
        return {"offset": offset.float()}

    # -------------------------------------------------------------------------------------------------------- measures
    def estimate(self, outputs: Outputs) -> Offsets:
        """What the log-scores say of every item."""
        return estimate_offsets(outputs["log_scores"], self.grid.double().numpy(), tolerance=NEAR)

    def decided(self, found: Offsets) -> np.ndarray:
        """[N] bool: which offsets are measurements."""
        return (found.confidence >= self.threshold) & ~self.beyond(found)

    def beyond(self, found: Offsets) -> np.ndarray:
        """[N] bool: which offsets lie at the limit of the search."""
        return found.at_edge | (np.abs(found.offset) > self.search)

    def measures(self, outputs: Outputs) -> Mapping[str, Mapping[str, Measure]]:
        found = self.estimate(outputs)
        truth = outputs["offset"].astype(np.float64)
        error = np.abs(found.offset - truth)
        decided = self.decided(found)
        sure = (found.confidence >= self.threshold) & self.beyond(found)
        inside = (found.low <= truth) & (truth <= found.high)
        right = error <= NEAR

        def calibration(rows: np.ndarray) -> float:
            return reliability(found.confidence[rows], right[rows], bins=10).ece

        whole: dict[str, Measure] = {
            **_errors(error),
            "undecidable": (found.confidence < self.threshold).astype(np.float64),
            "at_limit": sure.astype(np.float64),
            "interval_holds": inside.astype(np.float64),
            "calibration_error": calibration,
        }
        return {"all": whole, "decided": _errors(np.where(decided, error, np.nan))}

    def chance(self, outputs: Outputs) -> Table:
        truth = outputs["offset"]
        near, far = (blind_within(truth, self.search, t) for t in (NEAR, FAR))
        median = 1000 * blind_median(truth, self.search)
        return {"all": {"within_40ms": near, "within_125ms": far, "median_ms": median}}

    def baselines(self, outputs: Outputs) -> Mapping[str, Outputs]:
        """Always in time, and sure of it."""
        zero = -self.grid.abs().double().numpy() / self.step * 10
        return {"always 0": outputs.with_arrays(log_scores=np.tile(zero, (len(outputs), 1)))}


def _errors(error: Floats) -> dict[str, Measure]:
    """Measures of |estimate - truth| [N] in seconds, NaN where there is no measurement."""

    def median(rows: np.ndarray) -> float:
        there = error[rows][np.isfinite(error[rows])]
        return 1000 * float(np.median(there)) if len(there) else float("nan")

    def within(tolerance: float) -> Floats:
        return np.where(np.isnan(error), np.nan, error <= tolerance)

    none = not np.isfinite(error).any()
    return {"within_40ms": within(NEAR), "within_125ms": within(FAR), "median_ms": error if none else median}
