"""What happens when, in files: runs of segments with one label, as CSV, WebVTT or labels for Audacity.

P_j = Σ_w o_jw p_w / Σ_w o_jw     p_w the probabilities of the segments of all windows, o_jw their overlap with
                                  segment j of the file
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from avcl.apply.reading import Window, batch_of, opened, windows
from avcl.errors import ConfigError, ExistsError, MediaError, MissingFile, NotMedia
from avcl.files import write_atomic
from avcl.media import VIDEO_SUFFIXES
from avcl.metrics.events import segment_spans
from avcl.model import Media, Model
from avcl.progress import tracked
from avcl.system import Segments

Floats = NDArray[np.float64]
AT_ONCE = 16  # windows that are named side by side


class Event(NamedTuple):
    """Seconds of the file's clock, what happens, and the mean probability of it over its segments."""

    start: float
    end: float
    label: str
    p: float


class Timeline(NamedTuple):
    """The segments of a file: ``edges`` [n + 1] in seconds, ``p`` [n, C + 1] with background last, ``labels`` [C]."""

    edges: Floats
    p: Floats
    labels: tuple[str, ...]

    def events(self, *, min_p: float = 0.0) -> list[Event]:
        """Runs of segments with the same most probable class, if that is no background and the run has ``min_p``."""
        spans, classes = segment_spans(self.p.argmax(1), background=len(self.labels))
        found = []
        for (a, b), c in zip(spans.astype(int), classes, strict=True):
            start, end = (round(float(self.edges[i]), 3) for i in (a, b))
            event = Event(start, end, self.labels[c], round(float(self.p[a:b, c].mean()), 4))
            found += [event] if event.p >= min_p else []
        return found


def timeline(model: Model, path: Media, *, step: float | None = None) -> Timeline:
    """The probabilities of every segment of a file. ``step``: seconds from one window of the model to the next
    (default: half a window, so that a segment is seen with what goes before and after it).

    Errors: those of ``reading.windows``; CapabilityError where the model was made for features.
    """
    for name in ("audio", "video"):
        model.require_media(name)
    hop = model.window / 2 if step is None else step
    spans: list[tuple[float, float]] = []
    found: list[Floats] = []
    every = windows(model, path, hop=hop)
    while some := list(itertools.islice(every, AT_ONCE)):
        for window, p in zip(some, probabilities(model, some), strict=True):
            length = model.window / len(p)
            for i, row in enumerate(p):
                begin = window.start + i * length
                if begin < window.end - 1e-6:  # the window goes on behind the end of a short file
                    spans.append((begin, min(begin + length, window.end)))
                    found.append(row)
    return Timeline(*merged(np.array(spans), np.array(found)), model.spec.labels)


@torch.inference_mode()
def probabilities(model: Model, some: Sequence[Window]) -> list[Floats]:
    """[S, C + 1] of each window."""
    batch = batch_of(model, [window.clip for window in some])
    model.system.eval()
    logits = model.system.events(batch)  # type: ignore[operator]
    return list(logits.double().softmax(2).cpu().numpy())


def merged(spans: Floats, p: Floats) -> tuple[Floats, Floats]:
    """(edges [n + 1], p [n, K]): the segments [m, 2] of overlapping windows on one grid, weighted by their overlap."""
    length = float((spans[:, 1] - spans[:, 0]).max())
    first, last = float(spans.min()), float(spans.max())
    count = max(1, int(np.ceil((last - first) / length - 1e-3)))
    edges = np.minimum(first + length * np.arange(count + 1), last)
    edges[-1] = last
    total = np.zeros((count, p.shape[1]))
    weight = np.zeros(count)
    for (begin, end), row in zip(spans, p, strict=True):
        a = max(0, int((begin - first) / length + 1e-6) - 1)
        for j in range(a, min(count, a + 4)):
            overlap = min(end, edges[j + 1]) - max(begin, edges[j])
            if overlap > 1e-6 * length:
                total[j] += overlap * row
                weight[j] += overlap
    gap = weight == 0  # with a step beyond the window nobody has looked here: background, surely
    total[gap, -1], weight[gap] = 1.0, 1.0
    return edges, total / weight[:, None]


def find_events(
    model: Model | Media,
    files: Sequence[Media],
    *,
    min_p: float = 0.5,
    step: float | None = None,
    out: Media | None = None,
    force: bool = False,
    progress: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yields {"file", "start", "end", "label", "p"} for every event of every file; a folder stands for the videos in
    it. With ``out`` the events are written there instead (.csv of any number of files, .vtt and .txt of one; whole or
    not at all), and a summary comes.

    One of several files that cannot be read is {"file", "error"} and the others go on; if none can be read, or the one
    there is, the error is raised. Errors: CapabilityError (with the systems that can), ConfigError, ExistsError,
    MediaError.
    """
    if not 0 <= min_p <= 1:
        raise ConfigError(f"min_p = {min_p:g} is a probability, from 0 to 1.")
    write = None if out is None else _writer(Path(out), force)
    model = opened(model, Segments, "find events")
    paths = listed(files)
    if write is not None and write is not _csv and len(paths) > 1:
        raise ConfigError(
            f"{Path(out or '').suffix} holds the events of one file, not of {len(paths)}.", hint="Use .csv."
        )
    rows: list[tuple[str, Event]] = []
    failed: dict[str, MediaError] = {}
    for path in tracked(paths, len(paths), "events", shown=progress and len(paths) > 1):
        try:
            found = timeline(model, path, step=step).events(min_p=min_p)
        except MediaError as error:
            if len(paths) == 1:
                raise
            failed[str(path)] = error
            yield {"file": str(path), "error": error.as_dict()}
            continue
        rows += [(str(path), event) for event in found]
        if write is None:
            yield from ({"file": str(path), **event._asdict()} for event in found)
    if len(failed) == len(paths):
        raise next(iter(failed.values()))
    if write is not None:
        write_atomic(Path(out or ""), write(rows))
        counts = {"files": len(paths) - len(failed), "unreadable": len(failed), "events": len(rows)}
        yield {"out": str(out), **counts, "model": model.fingerprint}


def listed(files: Sequence[Media]) -> list[Path]:
    """The files, with the videos in it for a folder (at any depth, sorted). MissingFile, NotMedia: nothing there."""
    paths: list[Path] = []
    for file in map(Path, files):
        if not file.is_dir():
            paths.append(file)
            continue
        inside = [path for path in sorted(file.rglob("*")) if path.suffix.lower() in VIDEO_SUFFIXES]
        if not inside:
            raise NotMedia("holds no videos.", file=file)
        paths += inside
    if not paths:
        raise MissingFile("there are no files.")
    return paths


# -------------------------------------------------------------------------------------------------------------- formats
Rows = Sequence[tuple[str, Event]]


def _csv(rows: Rows) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", *Event._fields])
    writer.writerows([file, *event] for file, event in rows)
    return text.getvalue()


def _webvtt(rows: Rows) -> str:
    """Cues from one second to another; the text of a cue may hold no tags and no empty line."""
    cues = ["WEBVTT", ""]
    for _, event in rows:
        label = " ".join(event.label.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").split())
        cues += [f"{_clock(event.start)} --> {_clock(event.end)}", f"{label} ({event.p:.2f})", ""]
    return "\n".join(cues)


def _clock(seconds: float) -> str:
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"


def _audacity(rows: Rows) -> str:
    """Begin, end and label, separated by tabs: what Audacity imports as labels."""
    return "".join(f"{e.start:.6f}\t{e.end:.6f}\t{' '.join(e.label.split())} ({e.p:.2f})\n" for _, e in rows)


FORMATS: dict[str, Callable[[Rows], str]] = {".csv": _csv, ".vtt": _webvtt, ".txt": _audacity}


def _writer(out: Path, force: bool) -> Callable[[Rows], str]:
    """How ``out`` is written, by its suffix; ConfigError for another one, ExistsError where it is there already."""
    if out.suffix.lower() not in FORMATS:
        raise ConfigError(f'"{out.suffix}" is no format for events.', file=out, hint=f"Known: {', '.join(FORMATS)}.")
    if out.is_dir():
        raise ConfigError("the events are one file, and this is a folder.", file=out, hint="Name a file in it.")
    if out.exists() and not force:
        raise ExistsError("is there already.", file=out, hint="Choose another --out, or replace it with --force.")
    return FORMATS[out.suffix.lower()]
