"""The missing modality of a file, generated: the sound of a picture, the picture of a sound, window by window.

What a model makes decides the file: sound .wav (or .flac, .mp3, ...), one picture .png, several .webm or .mp4, features
.npy; notes a table .csv, or the sound of an instrument that plays them. The same model, file and seed make the same
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from avcl.apply.reading import Window, batch_of, generator_of, opened, windows
from avcl.data.world.scores import COLUMNS, played
from avcl.encoders.views import kind_of
from avcl.errors import CapabilityError, ConfigError, ExistsError, FeatureError, MissingFile
from avcl.files import write_atomic
from avcl.media import probe, read_inputs, segments, write_audio, write_image, write_video
from avcl.model import Media, Model
from avcl.system import Generates, targets_of
from avcl.types import Clip, Stream

MEDIA = ("audio", "video")
NOTES = "notes"  # a stream [K, 4] without a clock: see avcl.data.world.scores
NOTES_RATE = 16_000  # of the sound of notes


class Piece(NamedTuple):
    """What was generated for the window from ``start`` to ``end`` seconds."""

    start: float
    end: float
    stream: Stream


def generate(
    model: Model | Media,
    path: Media,
    out: Media,
    *,
    want: str,
    start: float | None = None,
    end: float | None = None,
    seed: int = 0,
    instrument: str = "piano",
    force: bool = False,
) -> dict[str, Any]:
    """Generate the modality ``want`` from the others of a file and write it to ``out``; returns what was written.

    A model of media reads sound and picture files, a model of features one .npy [D] or [T, D] of the other modality.
    Of a model that writes notes the sound can be had too: those notes on an ``instrument`` of the world.
    CapabilityError: the model cannot generate, or not this; ExistsError: ``out`` is there and ``force`` is not given;
    ConfigError: the suffix of ``out`` does not fit what was generated; further what reading the file raises.
    """
    model, out = opened(model, Generates, "generate"), Path(out)
    assert isinstance(model.system, Generates)
    able = targets_of(model.system)
    target = NOTES if want == "audio" and NOTES in able and want not in able else want
    if target not in able:
        raise CapabilityError(
            f"{model.name} generates {' and '.join(able) or 'nothing'}, not {want}.",
            hint="Give a run of a system that was trained to generate it.",
        )
    others = [name for name in model.modalities if name != target]
    sources = [name for name in others if name in MEDIA and model.spec.streams[name].kind == name]
    if out.exists() and not force:
        raise ExistsError("is already there.", file=out, hint="Choose another name, or --force.")
    if sources:
        parts = _read(model, path, sources, start, end)
    elif {model.spec.streams[name].kind for name in others} <= {"features", "map"}:
        parts = _features(model, path, others)
    else:
        raise CapabilityError(f"{model.name} generates from {' and '.join(others)}, which no file gives.")
    pieces = []
    for i, part in enumerate(parts):
        with torch.no_grad():
            made = model.system.generate(batch_of(model, [part.clip]), generator_of(seed, "generate", str(i)))
        pieces.append(Piece(part.start, part.end, Stream(made.data.cpu(), made.mask.cpu(), made.rate)))
    if target == NOTES:
        about = write_notes(out, joined_notes(pieces), instrument=instrument, as_sound=want == "audio")
    else:
        about = write_stream(out, joined(pieces))
    return {"file": str(path), "want": want, "out": str(out), **about, "windows": len(parts), "seed": seed}


def _read(
    model: Model, path: Media, sources: Sequence[str], start: float | None, end: float | None
) -> Sequence[Window]:
    """The file as the model reads it: its windows, or the one picture that it is."""
    if probe(path).duration:
        return list(windows(model, path, modalities=sources, start=start, end=end))
    return [Window(0.0, 0.0, read_inputs(path, model.inputs, modalities=tuple(sources)))]


def _features(model: Model, path: Media, sources: Sequence[str]) -> Sequence[Window]:
    """The features of an .npy file as one clip, or as windows of the model where they have a clock (key points);
    FeatureError where they do not fit the model.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile("there is no such file.", file=path)
    if path.suffix.lower() != ".npy" or len(sources) != 1:
        raise CapabilityError(
            f"{model.name} was trained on features of {' and '.join(sources)}, not on media files.",
            file=path,
            hint="Give them as .npy [D] or [T, D], or train a model on media.",
        )
    [name] = sources
    known = model.spec.streams[name]
    try:
        rows = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged header raises whatever it likes
        raise FeatureError(f"this is not a readable .npy ({type(error).__name__}).", file=path) from None
    rows = rows[None] if rows.shape == known.shape else rows
    if rows.dtype.kind not in "fiu" or rows.shape[1:] != known.shape or not len(rows) or not np.isfinite(rows).all():
        raise FeatureError(
            f"{list(rows.shape)} does not fit {name} of [T, {', '.join(map(str, known.shape))}], or is not finite.",
            file=path,
        )
    data = torch.from_numpy(rows.astype(np.float32))[None]
    spans = segments(len(rows) / known.rate, model.window) if known.rate > 1 else [(0.0, len(rows) / known.rate)]
    parts = []
    for a, b in spans:
        part = data[:, round(a * known.rate) : round(b * known.rate)]
        stream = Stream(part, torch.ones(part.shape[:2], dtype=torch.bool), known.rate)
        parts.append(Window(a, b, Clip(path.stem, {name: stream})))
    return parts


# -------------------------------------------------------------------------------------------------- windows to one file
def joined(pieces: Sequence[Piece]) -> Stream:
    """The pieces as one stream: each from its start on, the later one where two overlap (the last window of a file
    does). Steps that nothing was made for are not recorded.
    """
    first, rate = pieces[0].start, pieces[0].stream.rate
    if len(pieces) == 1:
        return pieces[0].stream
    at = [round((piece.start - first) * rate) for piece in pieces]
    steps = max(a + piece.stream.data.shape[1] for a, piece in zip(at, pieces, strict=True))
    like = pieces[0].stream.data
    data = like.new_zeros((1, steps, *like.shape[2:]))
    mask = torch.zeros(1, steps, dtype=torch.bool)
    for a, piece in zip(at, pieces, strict=True):
        span = slice(a, a + piece.stream.data.shape[1])
        data[:, span], mask[:, span] = piece.stream.data, piece.stream.mask
    return Stream(data, mask, rate)


def write_stream(path: Path, stream: Stream) -> dict[str, Any]:
    """One stream [1, T, ...] as the file that its kind asks for; what it is, in words and numbers."""
    kind, data = kind_of(stream), stream.data[0]
    length = int(stream.mask[0].nonzero().max()) + 1 if bool(stream.mask.any()) else 0
    if length == 0:
        raise ConfigError("nothing was generated: the file has nothing recorded.", file=path)
    data = data[:length]
    seconds = round(length / stream.rate, 6)
    suffix = path.suffix.lower()
    if kind == "audio":
        write_audio(path, data.float().clamp(-1, 1).numpy(), round(stream.rate))
        return {"kind": kind, "seconds": seconds, "sample_rate": round(stream.rate)}
    if kind == "video":
        pictures = _pixels(data)
        size = list(pictures.shape[1:3])
        if length == 1:
            write_image(path, pictures[0])
            return {"kind": "picture", "size": size}
        if suffix in (".png", ".jpg", ".jpeg"):
            hint = "Name a .webm or .mp4."
            raise ConfigError(f"{length} pictures were generated, which one image cannot hold.", file=path, hint=hint)
        write_video(path, pictures, fps=stream.rate)
        return {"kind": kind, "seconds": seconds, "fps": stream.rate, "size": size}
    if kind in ("features", "map"):
        if suffix != ".npy":
            raise ConfigError(f'features cannot be written as "{path.suffix}".', file=path, hint="Use .npy.")
        write_atomic(path, lambda part: _save(part, data.float().numpy()))
        return {"kind": kind, "shape": list(data.shape)}
    raise CapabilityError(f"{kind} cannot be written as a file.", file=path)


def joined_notes(pieces: Sequence[Piece]) -> np.ndarray:
    """The notes [K, 4] of all windows on the clock of the first, by onset; where two windows overlap, those of the
    earlier one.
    """
    found, heard = [], 0.0
    for piece in pieces:
        rows = piece.stream.data[0][piece.stream.mask[0]].float().numpy().copy()
        rows[:, 0] += piece.start - pieces[0].start
        found.append(rows[rows[:, 0] >= heard])
        heard = piece.end - pieces[0].start
    rows = np.concatenate(found)
    return rows[np.argsort(rows[:, 0], kind="stable")]


def write_notes(path: Path, notes: np.ndarray, *, instrument: str, as_sound: bool) -> dict[str, Any]:
    """Notes [K, 4] as a table (.csv), an array (.npy), or played by an instrument of the world (a sound file)."""
    suffix = path.suffix.lower()
    if not as_sound and suffix not in (".csv", ".npy"):
        hint = "Use .csv or .npy, or --want audio for their sound."
        raise ConfigError(f'notes cannot be written as "{path.suffix}".', file=path, hint=hint)
    if as_sound:
        seconds = float((notes[:, 0] + notes[:, 1]).max(initial=0.0)) + 0.5  # the last one dies away
        wave = played(notes, seconds=seconds, sample_rate=NOTES_RATE, instrument=instrument)
        write_audio(path, wave, NOTES_RATE)
        about = {"seconds": round(seconds, 6), "sample_rate": NOTES_RATE, "instrument": instrument}
        return {"kind": "audio", "notes": len(notes), **about}
    if suffix == ".npy":
        write_atomic(path, lambda part: _save(part, notes))
    else:
        lines = [
            ",".join(f"{x:g}" for x in (round(o, 4), round(d, 4), p, round(v, 3))) for o, d, p, v in notes.tolist()
        ]
        write_atomic(path, "\n".join([",".join(COLUMNS), *lines]) + "\n")
    return {"kind": "notes", "notes": len(notes)}


def _save(part: Path, rows: np.ndarray) -> None:
    with open(part, "wb") as file:  # np.save adds a suffix to a bare path
        np.save(file, rows)


def _pixels(data: Tensor) -> np.ndarray:
    """[T, 3, H, W] in [0, 1] as uint8 [T, H, W, 3]."""
    return (data.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
