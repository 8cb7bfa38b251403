"""Is a video in sync, by how much not, and can that be told at all? And putting it right without re-encoding.

Every window of the file votes with the posterior of its lag; the votes are multiplied (``avcl.metrics.fit_course``),
with some doubt in each, over one lag, over a drift and over sections, and the most likely course is the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from avcl.apply.reading import Window, batch_of, opened, windows
from avcl.errors import ConfigError, ExistsError, MediaError
from avcl.media import probe, remux_with_offset
from avcl.metrics.alignment import Course, estimate_offsets, fit_course
from avcl.model import Media, Model
from avcl.progress import tracked
from avcl.system import Aligns
from avcl.types import jsonable

Floats = NDArray[np.float64]
Status = Literal["ok", "late", "early", "undecidable", "at_search_limit", "inconsistent"]
STEP, MARGIN = 0.02, 0.08  # seconds: from lag to lag, and how far beyond the search range lags are scored
TOLERANCE = 0.04  # seconds around the answer whose posterior mass is its confidence
WINDOW_SURE = 0.5  # confidence from which a window counts as used
DRIFT_FROM = 8  # sure windows from which the slope of a line through them says something
AT_ONCE = 16  # windows that are scored side by side
REPAIRABLE = ("late", "early")


class Section(NamedTuple):
    """Part of a file: seconds, and the lag there in milliseconds."""

    start: float
    end: float
    offset_ms: float


@dataclass(frozen=True)
class SyncResult:
    """What is known of the sync of ``file``; positive: the sound is late.

    ``status``: "ok", "late", "early" (within the gate, or not), "undecidable", "at_search_limit" (the lag lies at or
    beyond the limit of the search; no measurement) or "inconsistent" (different lags in different ``sections``, or a
    drift beyond the gate) · ``offset_ms`` and its 95 % interval ``ci_ms``, None where there is no measurement ·
    ``p_in_sync``: posterior mass within the gate · ``confidence``: that within 40 ms of the offset ·
    ``segments_used`` of ``segments``: windows that are sure by themselves · ``drift_ms_per_min``: None where too few
    windows tell · ``container_offset_ms``: what part of the lag the timestamps of the container declare (where the
    sound stream begins) · ``reason``: why there is no measurement.
    """

    file: str
    status: Status
    offset_ms: float | None = None
    ci_ms: tuple[float, float] | None = None
    p_in_sync: float | None = None
    confidence: float = 0.0
    segments_used: int = 0
    segments: int = 0
    drift_ms_per_min: float | None = None
    container_offset_ms: float = 0.0
    sections: tuple[Section, ...] = ()
    reason: str = ""
    fix: Fix | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        return self.ci_ms

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; what does not apply is left out."""
        kept = {k: v for k, v in jsonable(self).items() if v not in (None, (), [], "")}
        return kept


@dataclass(frozen=True)
class Fix:
    """What was done about it: ``out`` the file written (empty: none, see ``refused``) · ``moved_ms`` by which the sound
    was moved, above zero: later · ``left_out`` streams that were not copied (subtitles, further sounds) · ``recheck``:
    status and offset of what was written."""

    out: str = ""
    moved_ms: float | None = None
    left_out: int = 0
    recheck: dict[str, Any] = field(default_factory=dict)
    refused: str = ""


# --------------------------------------------------------------------------------------------------------------- check
def check_sync(
    path: Media, model: Model | Media, *, max_ms: float = 45.0, search_ms: float = 400.0, min_confidence: float = 0.9
) -> SyncResult:
    """The lag of the sound of a file, by a model that aligns.

    ``max_ms``: what is in sync · ``search_ms``: lags are looked for so far in either direction · ``min_confidence``:
    posterior mass within 40 ms of the answer below which it is "undecidable". Errors: CapabilityError, ConfigError,
    and those of reading the file (NoAudioStream, NoVideoStream, NotMedia, ...).
    """
    if not (0 < max_ms < search_ms and 0 <= min_confidence <= 1):
        raise ConfigError(
            f"max_ms = {max_ms:g}, search_ms = {search_ms:g}, min_confidence = {min_confidence:g} do not fit.",
            hint="The gate lies within the search range, the confidence from 0 to 1.",
        )
    model = opened(model, Aligns, "measure the lag between sound and picture")
    for name in ("audio", "video"):
        model.require_media(name)
    info = probe(path)
    search = search_ms / 1000
    votes = _votes(model, path, search)
    found = _judged(votes, search, max_ms / 1000, min_confidence)
    start = 0.0 if info.audio is None else info.audio.start
    return replace(found, file=str(path), container_offset_ms=round(1000 * start, 1))


class _Votes(NamedTuple):
    """Of n windows: seconds, log-scores [n, K] of the lags ``grid`` [K], their weights, and why nothing can be told."""

    spans: list[tuple[float, float]]
    scores: Floats
    grid: Floats
    weights: Floats
    blank: str


@torch.no_grad()
def _votes(model: Model, path: Media, search: float) -> _Votes:
    count = round((search + MARGIN) / STEP)
    grid = torch.arange(-count, count + 1) * STEP
    # Long enough that at the largest lag half of the model's own window still overlaps.
    length = max(model.window, 2 * search + model.window / 2)
    system: Any = model.system  # it aligns: ``opened`` has looked
    spans: list[tuple[float, float]] = []
    found: list[Floats] = []
    heard = moved = False
    for some in _blocks(windows(model, path, hop=length / 2, length=length)):
        batch = batch_of(model, [window.clip for window in some])
        found.append(system.offsets(batch, grid).double().cpu().numpy())
        spans += [(window.start, window.end) for window in some]
        heard |= bool(batch.audio.data.any())
        moved |= bool((batch.video.data[:, 1:] != batch.video.data[:, :-1]).any())
    covered = max(end for _, end in spans) - min(start for start, _ in spans)
    weight = min(1.0, covered / sum(end - start for start, end in spans))
    blank = "" if heard and moved else "the picture stands still" if heard else "the sound is silent"
    scores = np.concatenate(found)
    return _Votes(spans, scores, grid.double().numpy(), np.full(len(scores), weight), blank)


def _blocks(every: Iterator[Window]) -> Iterator[list[Window]]:
    while some := list(islice(every, AT_ONCE)):
        yield some


def _judged(votes: _Votes, search: float, gate: float, enough: float) -> SyncResult:
    """The verdict on the votes; pure. A window that is sure by itself has to agree: where more of them contradict the
    course than follow it, it is one of chance coincidences."""
    times = np.array([(start + end) / 2 for start, end in votes.spans])
    course = fit_course(votes.scores, votes.grid, times, votes.weights)
    alone = estimate_offsets(votes.scores, votes.grid, tolerance=TOLERANCE)
    parts = estimate_offsets(np.stack([scores for _, _, scores in course.parts]), votes.grid, tolerance=TOLERANCE)
    slope = course.slope if course.kind == "drift" and course.slope is not None else 0.0
    expected = np.concatenate([np.full(b - a, x) for (a, b, _), x in zip(course.parts, parts.offset, strict=True)])
    expected = expected + slope * (times - (times.max() + times.min()) / 2)
    sure = alone.confidence >= WINDOW_SURE
    used = int(sure.sum())
    agree = int((np.abs(alone.offset - expected)[sure] <= TOLERANCE).sum())
    confidence = float(parts.confidence.min())
    known: dict[str, Any] = {"segments_used": used, "segments": len(times), "confidence": round(confidence, 3)}
    if votes.blank:
        return SyncResult("", "undecidable", reason=votes.blank, **known)
    if 2 * agree < used:
        return SyncResult("", "undecidable", reason="the segments do not agree on a lag", **known)
    if confidence < enough:
        reason = "too few segments tell the lag" if used else "no audible event coincides with visible motion"
        return SyncResult("", "undecidable", reason=reason, **known)
    if course.kind == "sections":
        reason = "the lag differs between sections: an edit, or sound of several sources"
        sections = _sections_of(course, votes.spans, parts.offset)
        return SyncResult("", "inconsistent", sections=sections, reason=reason, **known)
    offset, low, high = (float(values[0]) for values in (parts.offset, parts.low, parts.high))
    if bool(parts.at_edge[0]) or abs(offset) > search:
        reason = f"the lag lies at or beyond the limit of the search, {1000 * search:g} ms; search wider"
        return SyncResult("", "at_search_limit", reason=reason, **known)
    p = np.exp(course.log_scores - course.log_scores.max())
    known["offset_ms"] = round(1000 * offset, 1)
    known["ci_ms"] = (round(1000 * low, 1), round(1000 * high, 1))
    known["p_in_sync"] = round(float(p[np.abs(votes.grid) <= gate + 1e-9].sum() / p.sum()), 4)
    told = course.slope is not None and (used >= DRIFT_FROM or course.kind == "drift")
    known["drift_ms_per_min"] = round(60_000 * course.slope, 2) if told and course.slope is not None else None
    if abs(slope) * float(times.max() - times.min()) > 2 * gate:
        reason = f"the lag drifts by {known['drift_ms_per_min']:g} ms a minute, which one shift cannot repair"
        return SyncResult("", "inconsistent", reason=reason, **known)
    return SyncResult("", "ok" if abs(offset) <= gate else "late" if offset > 0 else "early", **known)


def _sections_of(course: Course, spans: Sequence[tuple[float, float]], lags: Floats) -> tuple[Section, ...]:
    """Each section with its lag; it ends in the middle between its last window and the first of the next."""
    middles = [(start + end) / 2 for start, end in spans]
    edges = [(middles[first - 1] + middles[first]) / 2 for first, _, _ in course.parts[1:]]
    bounds = [spans[0][0], *edges, spans[-1][1]]
    return tuple(
        Section(round(bounds[i], 3), round(bounds[i + 1], 3), round(1000 * float(lag), 1)) for i, lag in enumerate(lags)
    )


# ---------------------------------------------------------------------------------------------------------- many files
def check_files(
    files: Sequence[Media],
    model: Model | Media,
    *,
    max_ms: float = 45.0,
    search_ms: float = 400.0,
    min_confidence: float = 0.9,
    fix: bool = False,
    out: Media | None = None,
    force: bool = False,
    progress: bool = False,
) -> Iterator[SyncResult | MediaError]:
    """``check_sync`` of each file; what cannot be read is an error in its place. With ``fix`` the files that are late
    or early are written anew to ``out`` (of several files: a folder), see ``fixed``."""
    if fix and out is None:
        raise ConfigError("there is nowhere to write to.", hint="Give --out: a file, or for several files a folder.")
    if out is not None and not fix:
        raise ConfigError("--out is for --fix.", hint="Add --fix, or leave --out away.")
    model = opened(model, Aligns, "measure the lag between sound and picture")
    how: dict[str, Any] = {"max_ms": max_ms, "search_ms": search_ms, "min_confidence": min_confidence}
    targets = _targets(files, Path(out), force=force) if fix and out is not None else [None] * len(files)
    for path, target in tracked(zip(files, targets, strict=True), len(files), "sync", shown=progress):
        try:
            found = check_sync(path, model, **how)
            yield found if target is None else fixed(found, target, model, **how)
        except MediaError as error:
            yield error


def _targets(files: Sequence[Media], out: Path, *, force: bool) -> list[Path]:
    """Where each file goes; ExistsError, before anything is checked, where something is in the way."""
    several = len(files) > 1 or out.is_dir()
    targets = [out / Path(path).name for path in files] if several else [out]
    if len({*targets}) < len(targets):
        raise ConfigError("two of the files have the same name.", hint="Fix them one by one.")
    for path, target in zip(files, targets, strict=True):
        if target.exists() and target.resolve() == Path(path).resolve():
            raise ConfigError("a file cannot be fixed in place.", file=path, hint="Give another --out.")
        if target.exists() and not force:
            raise ExistsError(
                "is there already.", file=target, hint="Choose another --out, or replace it with --force."
            )
    if several:
        out.mkdir(parents=True, exist_ok=True)
    return targets


def fixed(found: SyncResult, target: Path, model: Model, **how: float) -> SyncResult:
    """``found`` with its ``fix``: the file copied to ``target``, not re-encoded, with the sound moved by what was
    measured, and checked again. Refused, with nothing written, unless there is one lag that was measured."""
    if found.status not in REPAIRABLE or found.offset_ms is None:
        words = {"ok": "it is in sync"}.get(found.status, found.reason or found.status)
        return replace(found, fix=Fix(refused=words))
    move = -found.offset_ms
    remux_with_offset(found.file, target, move / 1000)
    again = check_sync(target, model, **how)
    recheck = {"status": again.status} | ({} if again.offset_ms is None else {"offset_ms": again.offset_ms})
    left_out = len(probe(found.file).streams) - 2
    return replace(found, fix=Fix(out=str(target), moved_ms=round(move, 1), left_out=left_out, recheck=recheck))
