"""Media: rows of files that become clips when they are asked for, through the cache, on one constant grid."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Literal, Self

import torch

from avcl.data.cache import StreamCache, stream_key
from avcl.data.dataset import Data
from avcl.data.labels import label_names, label_numbers
from avcl.data.manifest import FILES, Row, Table, unknown_column
from avcl.data.tokens import text_stream
from avcl.data.truth import Known, known_beside, truth_of_row
from avcl.data.windows import expand_row
from avcl.errors import AvclError, ConfigError, DataError, MediaError, TooShort, did_you_mean
from avcl.media import IMAGE_SUFFIXES, probe, read_clip
from avcl.types import Clip, DataSpec, Inputs, Source, Stream, StreamSpec, jsonable

log = logging.getLogger("avcl.data")

MODALITIES = ("audio", "video", "text")
# Part of every cache key: raise it when the readers give other values for the same file and Inputs.
_READER = f"2 av-{version('av')}"
_PROBED = 16


class MediaData(Data):
    """Rows of media files.

    ``configure(inputs)`` says how they are decoded; before that only ids, labels and groups can be read. A clip is the
    first ``inputs.window`` seconds of its row (from ``start``, to ``end`` at most), so rows that are longer are cut:
    ``windows`` makes a row of each window instead. Streams: ``video`` uint8 [1, window * fps, 3, H, W] (a still: [1, 1,
    3, H, W]), ``audio`` float32 [1, window * sample_rate, C], ``text`` int64 [1, bytes]. What a file does not reach is
    zeros with mask False. ``with_truth``: rows for which ``truth/<id>.npz`` stands beside the manifest bring its arrays
    as ``extras``, on the grid of the streams (``avcl.data.truth``).
    """

    kind: Literal["media", "features", "world"] = "media"

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        labels: tuple[str, ...],
        modalities: tuple[str, ...],
        inputs: Inputs | None = None,
        split: str = "all",
        skipped: Mapping[str, int] | None = None,
        n_official: int | None = None,
        cache: StreamCache | None = None,
        where: str = "data",
        known: Known | None = None,
    ):
        self.rows = tuple(rows)
        self.labels, self.modalities, self.inputs, self.split, self.where = labels, modalities, inputs, split, where
        self.skipped = dict(skipped or {})
        self.n_official = len(self.rows) if n_official is None else n_official
        self.cache = StreamCache() if cache is None else cache
        self._known = known
        self._ids = tuple(row.id for row in self.rows)
        self._targets = label_numbers([row.label for row in self.rows], labels)
        self._groups = tuple(row.group for row in self.rows)

    @classmethod
    def from_table(cls, table: Table, *, modalities: Sequence[str] | None = None) -> Self:
        """The rows of a manifest or folder. ``modalities``: which streams a clip must have (default: those that every
        row has).

        DataError: no modality is in every row, or an unknown one is asked for.
        """
        labels = table.labels if table.labels is not None else label_names(row.label for row in table.rows)
        found = modalities_of(table.rows)
        if modalities is not None:
            for name in modalities:
                if name not in MODALITIES:
                    raise DataError(
                        f'"{name}" is not a modality.', file=table.where, hint=did_you_mean(name, MODALITIES)
                    )
            found = tuple(name for name in MODALITIES if name in modalities)
        if not found:
            raise DataError(
                "no modality is in every row.",
                file=table.where,
                hint='Fill the gaps, or name what is wanted: modalities=("audio",).',
            )
        return cls(table.rows, labels=labels, modalities=found, where=table.where)

    # ------------------------------------------------------------------------------------------------ what Data asks
    @property
    def ids(self) -> tuple[str, ...]:
        return self._ids

    @property
    def targets(self) -> tuple[int, ...]:
        return self._targets

    @property
    def groups(self) -> tuple[str, ...]:
        return self._groups

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def official(self) -> tuple[str, ...] | None:
        """The split of each row as the manifest gives it, or None."""
        splits = tuple(row.split for row in self.rows if row.split is not None)
        return splits if splits and len(splits) == len(self.rows) else None

    def column(self, name: str) -> tuple[str | None, ...]:
        """One cell per row of ``id``, ``label``, ``group``, ``video``, ``audio``, ``image`` or a further column;
        DataError where there is none.
        """
        if name in ("id", "label", "group") or (name in FILES and any(getattr(row, name) for row in self.rows)):
            return tuple(getattr(row, name) for row in self.rows)
        if not any(name in row.info for row in self.rows):
            raise unknown_column(name, self.rows, self.where)
        return tuple(None if row.info.get(name) is None else str(row.info[name]) for row in self.rows)

    @property
    def spec(self) -> DataSpec:
        inputs = self._configured()
        known = {
            "audio": StreamSpec("audio", (inputs.channels,), float(inputs.sample_rate)),
            "video": StreamSpec("video", (3, *inputs.size), float(inputs.fps)),
            "text": StreamSpec("tokens", (), 1.0),
        }
        return DataSpec({name: known[name] for name in self.modalities}, self.labels, len(self))

    @cached_property
    def fingerprint(self) -> str:
        digests = []
        for row in self.rows:
            contents = [self._content(path) for path in _files(row)]
            seconds = [None if s is None else round(s, 6) for s in (row.start, row.end)]
            value = repr((row.id, contents, seconds, row.text, row.label, row.group))
            digests.append((row.id, hashlib.blake2b(value.encode(), digest_size=16).digest()))
        kinds = repr(self.modalities).encode()
        return hashlib.sha256(kinds + b"".join(digest for _, digest in sorted(digests))).hexdigest()[:16]

    def _content(self, path: str) -> str:
        try:
            return self.cache.content_hash(path)
        except MediaError as error:
            return error.code  # a row that cannot be read is part of what there should be

    def subset(self, indices: Sequence[int], *, split: str | None = None) -> Self:
        return self._with([self.rows[i] for i in indices], split=self.split if split is None else split)

    def configure(self, inputs: Inputs) -> Self:
        if not (inputs.window > 0 and inputs.fps > 0 and inputs.sample_rate > 0 and inputs.channels > 0):
            raise ConfigError(f"window, fps, sample_rate and channels must be greater than 0: {inputs}.")
        return self._with(self.rows, inputs=inputs, split=self.split, skipped=self.skipped, n_official=self.n_official)

    def with_truth(self) -> Self:
        """The same rows; those that have a ``truth/<id>.npz`` beside the manifest bring it as ``extras``. DataError
        where ``truth.jsonl`` there is damaged; a damaged array file is one when its row is asked for."""
        known = known_beside(self.where)
        if known is None:
            return self
        return self._with(self.rows, split=self.split, skipped=self.skipped, n_official=self.n_official, known=known)

    def windows(self, window: float, hop: float | None = None) -> Self:
        """Every row as windows of ``window`` seconds that start every ``hop`` seconds (default: ``window``), in one
        group a row.
        """
        rows = [part for row in self.rows for part in expand_row(row, window, hop, _duration)]
        return self._with(rows, split=self.split)

    def _with(
        self,
        rows: Sequence[Row],
        *,
        split: str,
        inputs: Inputs | None = None,
        skipped: Mapping[str, int] | None = None,
        n_official: int | None = None,
        known: Known | None = None,
    ) -> Self:
        return type(self)(
            rows,
            labels=self.labels,
            modalities=self.modalities,
            inputs=self.inputs if inputs is None else inputs,
            split=split,
            skipped=skipped,
            n_official=n_official,
            cache=self.cache,
            where=self.where,
            known=self._known if known is None else known,
        )

    def _configured(self) -> Inputs:
        if self.inputs is None:
            raise ConfigError(
                "media are decoded only after data.configure(inputs).", hint="Try data.configure(Inputs())."
            )
        return self.inputs

    # ------------------------------------------------------------------------------------------------------ decoding
    def clip(self, index: int, *, epoch: int = 0, view: int = 0) -> Clip:
        """Row ``index``, from the cache or decoded into it.

        MediaError of a kind: the file is not there, is not media, lacks a stream, breaks off before the row, or has
        nothing in these seconds (TooShort). ConfigError: not configured yet.
        """
        row = self.rows[index]
        streams = {}
        if "audio" in self.modalities or "video" in self.modalities:
            streams = self._streams(row)
        if "text" in self.modalities:
            if row.text is None:
                raise DataError(f'the row "{row.id}" has no text.', file=self.where)
            streams["text"] = text_stream(row.text)
        target = self._targets[index]
        extras = {}
        if self._known is not None:
            extras = truth_of_row(self._known, row, self._configured(), streams, self.labels)
        return Clip(
            id=row.id,
            streams=streams,
            index=index,
            view=view,
            label=target if target >= 0 else None,
            group=row.group,
            source=Source(row.file, row.start, row.end),
            extras=extras,
        )

    def _streams(self, row: Row) -> dict[str, Stream]:
        inputs = self._configured()
        plan = _plan(row, self.modalities)
        contents = [self.cache.content_hash(path) for path, _ in plan]
        asked = [list(kinds) for _, kinds in plan]
        suffixes = [Path(path).suffix.lower() for path, _ in plan]
        key = stream_key(contents, [_READER, jsonable(inputs), row.start, row.end, asked, suffixes])
        streams = self.cache.get(key)
        if streams is None:
            streams = {}
            for path, kinds in plan:
                streams.update(decode(path, kinds, inputs, row.start, row.end))
            self.cache.put(key, streams)
        return {name: streams[name] for name in self.modalities if name in streams}

    def prepare(self, *, workers: int = 0, on_error: Literal["skip", "raise"] = "skip", progress: bool = False) -> Self:
        """Decode every row once into the cache, in ``workers`` processes (0: in this one).

        Rows that fail are dropped and counted in ``skipped`` by their code, or (``on_error="raise"``) the first failure
        in the order of the rows is raised. DataError: not one row can be read.
        """
        from avcl.data.loader import each_row

        self._configured()
        failed: dict[int, AvclError] = {}
        for index, error in each_row(self, workers=workers, progress=progress):
            if error is not None and on_error == "raise":
                raise error
            if error is not None:
                failed[index] = error
        if failed:
            first = failed[min(failed)]
            counts = Counter(error.code for error in failed.values())
            words = ", ".join(f"{code} {n}" for code, n in counts.most_common())
            if len(failed) == len(self.rows):
                raise DataError(
                    f"not one of {len(failed):,} rows can be read ({words}).", file=self.where, hint=f"First: {first}"
                )
            log.warning(
                "%s: %d of %d rows left out (%s). First: %s", self.where, len(failed), len(self.rows), words, first
            )
        kept = [row for i, row in enumerate(self.rows) if i not in failed]
        skipped = Counter(self.skipped) + Counter(error.code for error in failed.values())
        return self._with(kept, split=self.split, skipped=skipped, n_official=self.n_official)


def decode(
    path: str, kinds: Sequence[str], inputs: Inputs, start: float | None, end: float | None
) -> dict[str, Stream]:
    """The streams ``kinds`` of one file as ``inputs`` says: ``inputs.window`` seconds from ``start``, to ``end`` at
    most.

    Every stream has window * rate steps (a still has one); what the file does not reach is zeros with mask False.
    Errors: those of ``avcl.media.read_clip``; TooShort where a stream has nothing at all in these seconds.
    """
    begin = start or 0.0
    stop = begin + inputs.window if end is None else min(end, begin + inputs.window)
    still = _is_still(path)
    clip = read_clip(
        path,
        None if still else begin,
        None if still else stop,
        fps=None if still else inputs.fps,
        size=inputs.size,
        fit=inputs.fit,
        rate=inputs.sample_rate,
        channels=inputs.channels,
        modalities=tuple(kinds),
    )
    rates = {"audio": float(inputs.sample_rate), "video": float(inputs.fps)}
    streams = {}
    for name in kinds:
        stream = clip.streams[name]
        if not stream.mask.any():
            raise TooShort(
                f"there is no {name} from {begin:g} s to {stop:g} s.",
                file=path,
                time=begin,
                hint="Check start and end.",
            )
        steps = 1 if still else max(1, round(inputs.window * rates[name]))
        streams[name] = Stream(*_fit(stream, steps), rates[name])
    return streams


def _fit(stream: Stream, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    data, mask = stream.data[:, :steps], stream.mask[:, :steps]
    missing = steps - data.shape[1]
    if missing > 0:
        data = torch.cat([data, data.new_zeros((1, missing, *data.shape[2:]))], 1)
        mask = torch.cat([mask, mask.new_zeros((1, missing))], 1)
    return data.contiguous(), mask.contiguous()


def modalities_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """The streams that every row has, by rule, not by decoding every file.

    ``video``: a video or an image in every row · ``text``: a text in every row · ``audio``: in every row an ``audio``
    file, or a ``video`` file, where one at least of the first sixteen of these has sound. What only some rows have is
    logged and left out.
    """
    count = {
        "audio": sum(row.audio is not None for row in rows),
        "video": sum(row.video is not None or row.image is not None for row in rows),
        "text": sum(row.text is not None for row in rows),
    }
    inside = [row for row in rows if row.audio is None and row.video is not None and not _is_still(row.video)]
    if inside and count["audio"] + len(inside) == len(rows) and any(map(_has_sound, inside[:_PROBED])):
        count["audio"] = len(rows)
    for name, n in count.items():
        if 0 < n < len(rows):
            log.warning("%s is in %d of %d rows only and is left out", name, n, len(rows))
    return tuple(name for name in MODALITIES if count[name] == len(rows))


def _has_sound(row: Row) -> bool:
    try:
        return probe(str(row.video)).audio is not None
    except MediaError:
        return False


def _duration(row: Row) -> float:
    return min(probe(path).duration for path in _files(row) if not _is_still(path))


def _files(row: Row) -> list[str]:
    return [path for path in (row.video, row.audio, row.image) if path is not None]


def _is_still(path: str) -> bool:
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def _plan(row: Row, modalities: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Which file gives which streams: pictures from ``video`` or else ``image``, sound from ``audio`` or else
    ``video``.
    """
    wanted: dict[str, list[str]] = {}
    for name, path in (("audio", row.audio or row.video), ("video", row.video or row.image)):
        if name not in modalities:
            continue
        if path is None:
            raise DataError(f'the row "{row.id}" has no {name}.', file=row.file)
        wanted.setdefault(path, []).append(name)
    return [(path, tuple(kinds)) for path, kinds in wanted.items()]
