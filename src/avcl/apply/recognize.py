"""What is it, in files: the class of each, with probabilities, from whatever the file has of sound and picture.

p(c) = 1/n Σ_w softmax(l_w)_c          l_w: logits of the n windows of the file
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from avcl.apply.reading import Window, batch_of, opened, windows
from avcl.errors import BatchError, CapabilityError, MediaError, NoAudioStream, NoVideoStream
from avcl.media import probe, read_inputs
from avcl.model import Media, Model
from avcl.progress import tracked
from avcl.system import Recognizes

AT_ONCE = 16  # windows that are read side by side
KINDS = ("audio", "video")
LACKS: dict[str, type[MediaError]] = {"audio": NoAudioStream, "video": NoVideoStream}


class Part(NamedTuple):
    """One window: seconds of the file's clock, the probability of each class, and what it was told from."""

    start: float
    end: float
    p: tuple[float, ...]
    used: tuple[str, ...]


@dataclass(frozen=True)
class Recognized:
    """The answer to one file. ``p``: mean over the windows that had anything to tell from, by class in the order of
    ``labels`` · ``used``: the modalities it was told from · ``missing``: those that the model knows and the file lacks
    (or has nothing recorded in) · ``parts``: the windows."""

    file: str
    labels: tuple[str, ...]
    p: tuple[float, ...]
    used: tuple[str, ...]
    missing: tuple[str, ...]
    parts: tuple[Part, ...]

    @property
    def label(self) -> str:
        return self.labels[max(range(len(self.p)), key=self.p.__getitem__)]


def recognize_file(
    path: Media,
    model: Model | Media,
    *,
    hop: float | None = None,
    start: float | None = None,
    end: float | None = None,
) -> Recognized:
    """The class of a file, of a model that recognizes; its windows begin every ``hop`` seconds (default: the window).

    A file that lacks sound or picture is answered from what it has. NoAudioStream, NoVideoStream: the model needs what
    the file lacks, or it has nothing that the model knows; CapabilityError: the model does not recognize, or was made
    for features; further what reading the file raises.
    """
    model = opened(model, Recognizes, "say what a file is")
    known = [name for name in model.modalities if name in KINDS]
    for name in known:
        model.require_media(name)
    info = probe(path)
    there = [name for name in known if getattr(info, name) is not None]
    if not known:
        raise CapabilityError(f"this model reads {' and '.join(model.modalities)}, not files with sound or picture.")
    if not there:
        raise LACKS[known[0]](f"the file has neither {' nor '.join(known)}.", file=path)
    if info.duration:
        found = windows(model, path, modalities=there, start=start, end=end, hop=hop)
    else:  # an image
        found = iter([Window(0.0, 0.0, read_inputs(path, model.inputs, modalities=tuple(there)))])
    parts: list[Part] = []
    while some := list(islice(found, AT_ONCE)):
        parts += _told(model, some, there, path)
    told = [part for part in parts if part.used] or parts
    p = tuple(round(sum(part.p[c] for part in told) / len(told), 6) for c in range(len(told[0].p)))
    used = tuple(name for name in known if any(name in part.used for part in parts))
    missing = tuple(name for name in known if name not in used)
    return Recognized(str(path), _labels(model, len(p)), p, used, missing, tuple(parts))


@torch.no_grad()
def _told(model: Model, some: Sequence[Window], there: Sequence[str], path: Media) -> list[Part]:
    batch = batch_of(model, [window.clip for window in some])
    system: Any = model.system
    try:
        logits: Tensor = system.logits(batch)
    except BatchError as error:
        lacking = [name for name in model.modalities if name in KINDS and name not in there]
        if not lacking:
            raise
        what = f"the file has no {lacking[0]} stream, and {model.name} cannot tell from {' and '.join(there)} alone."
        raise LACKS[lacking[0]](what, file=path, hint="Give a file with sound and picture.") from error
    rows = logits.double().softmax(1).tolist()
    has = {name: batch.streams[name].mask.any(1).tolist() for name in there}
    return [
        Part(round(w.start, 6), round(w.end, 6), tuple(p), tuple(name for name in there if has[name][i]))
        for i, (w, p) in enumerate(zip(some, rows, strict=True))
    ]


def _labels(model: Model, count: int) -> tuple[str, ...]:
    names = model.spec.labels
    return tuple(names) if len(names) == count else tuple(map(str, range(count)))


def recognize(
    model: Model | Media,
    files: Sequence[Media],
    *,
    by_window: bool = False,
    hop: float | None = None,
    start: float | None = None,
    end: float | None = None,
    progress: bool = False,
) -> Iterator[dict[str, Any]]:
    """One JSON-able answer a file (with ``by_window`` one a window); a file that cannot be read is an error in its
    place, and raised where none can be."""
    model = opened(model, Recognizes, "say what a file is")
    last: MediaError | None = None
    read = 0
    for path in tracked(files, len(files), "recognize", shown=progress):
        try:
            found = recognize_file(path, model, hop=hop, start=start, end=end)
        except MediaError as error:
            if len(files) == 1:
                raise
            last = error
            yield {"file": str(path), "error": error.as_dict()}
            continue
        read += 1
        if not by_window:
            said = _said(found.labels, found.p)
            yield {"file": found.file, **said, "used": [*found.used], "missing": [*found.missing]}
        for part in found.parts if by_window else ():
            missing = [name for name in (*found.used, *found.missing) if name not in part.used]
            about = {"file": found.file, "start": part.start, "end": part.end}
            yield {**about, **_said(found.labels, part.p), "used": [*part.used], "missing": missing}
    if last is not None and read == 0:
        raise last


def _said(labels: Sequence[str], p: Sequence[float]) -> dict[str, Any]:
    """The most probable class, and all of them, the most probable first."""
    order = sorted(range(len(p)), key=lambda c: -p[c])
    return {"label": labels[order[0]], "p": round(p[order[0]], 4), "all": {labels[c]: round(p[c], 4) for c in order}}
