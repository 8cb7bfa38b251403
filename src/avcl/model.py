"""Model: a trained system with everything needed to use it again: how media are decoded, where it was trained, its
identity.

Also what an index asks of an embedder: ``fingerprint``, ``dim``, ``modalities``, ``inputs``, ``embed_clips``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avcl import store
from avcl.data import collate
from avcl.data.tokens import text_stream
from avcl.errors import CapabilityError, ConfigError, FeatureError, Silent
from avcl.media import probe, read_inputs, segments
from avcl.system import Embeds, System
from avcl.types import Batch, Clip, DataSpec, Inputs, Stream, StreamSpec

log = logging.getLogger("avcl.model")

Media = str | Path
Array = np.ndarray | Tensor


class Model:
    """A system that can be used: ``embed`` files or arrays, ``save``; ``fingerprint`` names weights + preprocessing."""

    def __init__(self, system: System, inputs: Inputs, meta: Mapping[str, Any], *, fingerprint: str = ""):
        self.system = system.eval()
        self.inputs, self.meta = inputs, dict(meta)
        self.fingerprint = fingerprint or store.fingerprint(system, inputs)
        self._dim = 0

    @classmethod
    def load(cls, folder: Media) -> Model:
        """The model that ``save`` (or a training run) wrote; loading never executes code."""
        saved = store.load(folder)
        return cls(saved.system, saved.inputs, saved.meta, fingerprint=saved.fingerprint)

    def save(self, folder: Media) -> Path:
        """Write config.json, weights.safetensors and a model card."""
        store.save(self.system, Path(folder), inputs=self.inputs, meta=self.meta)
        return Path(folder)

    @property
    def name(self) -> str:
        return type(self.system).__module__.rpartition(".")[2]

    @property
    def spec(self) -> DataSpec:
        return self.system.spec

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.spec.streams)

    @property
    def window(self) -> float:
        return self.inputs.window

    @property
    def similarity_name(self) -> str:
        return self._embeds().similarity_name

    @property
    def dim(self) -> int:
        """Dimension of the embedding, found by embedding one blank clip."""
        if not self._dim:
            modality = self.modalities[0]
            stream = self.spec.streams[modality]
            dtype = torch.int64 if stream.kind == "tokens" else torch.float32
            data = torch.zeros(1, 1, *stream.shape, dtype=dtype)
            clip = Clip("blank", {modality: Stream(data, torch.ones(1, 1, dtype=torch.bool), stream.rate)})
            self._dim = self.embed_clips([clip], modality).shape[1]
        return self._dim

    def _embeds(self) -> Embeds:
        if not isinstance(self.system, Embeds):
            raise CapabilityError(f"{self.name} does not embed; it cannot be used for retrieval or an index.")
        return self.system

    @torch.inference_mode()
    def embed_clips(self, clips: Sequence[Clip], modality: str) -> np.ndarray:
        """[n, D] float32: the embedding of one stream of each clip."""
        system = self._embeds()
        self._stream(modality)
        batch = collate(list(clips))
        batch = batch.without(*(name for name in batch.streams if name != modality)).to(self.device)
        self.system.eval()
        return system.embed(batch, modality).float().cpu().numpy()

    def _stream(self, modality: str) -> StreamSpec:
        """What the stream looked like in training; CapabilityError where the model does not embed it."""
        known = self.spec.streams.get(modality)
        if known is None:
            raise CapabilityError(f"this model embeds {' and '.join(self.modalities)}, not {modality}.")
        return known

    def require_media(self, modality: str) -> None:
        """CapabilityError unless this model was trained on decoded sound or pictures of this modality."""
        known = self._stream(modality)
        if known.kind != modality:
            raise CapabilityError(
                f"this model was trained on {known.kind}, not on files with {modality}.",
                hint="Train one on media, or embed arrays of such features.",
            )

    @property
    def device(self) -> torch.device:
        first = next((t for t in (*self.system.parameters(), *self.system.buffers())), None)
        return torch.device("cpu") if first is None else first.device

    def embed(
        self,
        *,
        audio: Media | Array | None = None,
        video: Media | Array | None = None,
        image: Media | Array | None = None,
        text: str | Array | None = None,
    ) -> np.ndarray:
        """The embedding of a file [D] (the mean over its windows), of a text [D], or of arrays [N, D].

        One argument: a path (for ``text`` the words themselves), or an array: [N, D] or [N, T, D] for a model of
        features; [T, ...] (one clip) or [N, T, ...] at the model's own rates for a model of media. An image counts as
        video.
        """
        given = {"audio": audio, "video": video if image is None else image, "text": text}
        chosen = {k: v for k, v in given.items() if v is not None}
        if len(chosen) != 1 or (image is not None and video is not None):
            raise ConfigError("embed takes exactly one of audio, video, image, text.")
        [(modality, value)] = chosen.items()
        if modality == "text" and isinstance(value, str):
            return self.embed_clips([Clip("text", {"text": text_stream(value)})], "text")[0]
        if isinstance(value, str | Path):
            vectors = self.embed_windows(value, modality)[1]
            mean = vectors.mean(0)
            norm = float(np.linalg.norm(mean))
            return mean / norm if self.similarity_name == "cosine" and norm > 0 else mean
        return self._embed_array(value, modality)

    def _embed_array(self, value: Array, modality: str) -> np.ndarray:
        known = self.spec.streams.get(modality)
        if known is None:
            raise FeatureError(f"this model embeds {' and '.join(self.modalities)}, not {modality}.")
        data = _steps_of(value, known)
        if data is None or data.ndim != 2 + len(known.shape) or tuple(data.shape[2:]) != known.shape:
            given = list(np.shape(value))
            raise FeatureError(f"{modality} array of shape {given} does not fit this model ({_wanted(known)}).")
        if not bool(torch.isfinite(data).all()):
            raise FeatureError(f"the {modality} array has non-finite values.")
        mask = torch.ones(data.shape[:2], dtype=torch.bool)
        stream = {modality: Stream(data, mask, known.rate)}
        rows = torch.arange(len(data))
        ids = tuple(map(str, rows.tolist()))
        batch = Batch(ids, stream, rows, torch.zeros_like(rows), torch.full_like(rows, -1), ids)
        with torch.inference_mode():
            return self._embeds().embed(batch.to(self.device), modality).float().cpu().numpy()

    def embed_windows(
        self,
        path: Media,
        modality: str,
        *,
        start: float | None = None,
        end: float | None = None,
        length: float | None = None,
    ) -> tuple[list[tuple[float, float]], np.ndarray]:
        """Windows (start, end) of a file, ``length`` seconds (the model's window) long and half overlapping, and their
        embeddings [n, D]."""
        self.require_media(modality)
        window = length or self.window
        duration = probe(path).duration
        if start is None and end is None and (duration is None or duration <= window):
            spans: list[tuple[float | None, float | None]] = [(None, None)]
        else:
            first, last = start or 0.0, end if end is not None else duration
            if last is None:
                last = first + window
            if last <= first:
                what = "the file ends" if end is None else "end"
                raise ConfigError(f"start {first:g} s is not before {what}, {last:g} s.", file=path)
            spans = [(first + a, first + b) for a, b in segments(last - first, window, window / 2)]
        vectors = []
        heard = spans == [(None, None)]  # a file that is read whole is looked at by the reader
        for chunk in _chunks(spans, 32):
            clips = [read_inputs(path, self.inputs, a, b, modalities=(modality,)) for a, b in chunk]
            heard |= modality != "audio" or any(bool(clip.streams["audio"].data.any()) for clip in clips)
            vectors.append(self.embed_clips(clips, modality))
        if not heard:
            log.warning("%s", Silent("its sound is digital silence.", file=path, hint="What it finds means nothing."))
        known = [(a or 0.0, b if b is not None else (duration or window)) for a, b in spans]
        return known, np.concatenate(vectors)


def check_streams(known: DataSpec, given: DataSpec) -> None:
    """FeatureError or CapabilityError unless every stream of ``given`` that a model of ``known`` has is as there."""
    hint = "Give data like those it was trained on."
    for name, one in known.streams.items():
        two = given.streams.get(name, one)
        if two.kind != one.kind:
            what = f"the model was made for {_steps(one)} as {name}, and the data have {_steps(two)}."
            raise CapabilityError(what, hint=hint)
        if two.shape != one.shape:
            raise FeatureError(f"{name} has {_steps(two)}, but the model was made for {_steps(one)}.", hint=hint)


def _steps_of(value: Array, known: StreamSpec) -> Tensor | None:
    """An array as [N, T, ...]: a clip of media is [T, ...], a row of features [D], rows of them [N, D]. None for no
    numbers."""
    try:
        data = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):  # text, objects, ragged lists
        return None
    if known.kind == "tokens":
        data = data.to(torch.int64)
    elif known.kind != "video" or data.dtype != torch.uint8:  # pictures are bytes, or numbers on the scale of the tower
        data = data.to(torch.float32)
    if data.ndim == len(known.shape):
        data = data[None]
    if data.ndim == 1 + len(known.shape):
        data = data[:, None] if known.kind in ("features", "map") else data[None]
    return data


def _wanted(known: StreamSpec) -> str:
    inner = ", ".join(map(str, known.shape))
    if known.kind in ("features", "map"):
        return f"[N, {inner}] or [N, T, {inner}]"
    return "[T] or [N, T]" if not inner else f"[T, {inner}] or [N, T, {inner}]"


def _steps(stream: StreamSpec) -> str:
    """One step of a stream in words: "features of shape [512]"."""
    return f"{stream.kind} of shape {list(stream.shape)}" if stream.shape else stream.kind


def _chunks(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (items[i : i + size] for i in range(0, len(items), size))
