"""The world as a data set: clips that are rendered when they are asked for, from (preset, seed, split, index)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Literal, Self

import numpy as np
import torch

from avcl.data.dataset import Data, Splits
from avcl.data.tokens import text_stream
from avcl.data.world import fit, scores
from avcl.data.world.captions import speech_of
from avcl.data.world.motion import KINDS
from avcl.data.world.presets import RENDER_VERSIONS, STREAMS, check_retime, generator, preset_of, render
from avcl.data.world.values import Preset, Rendered, draw_label, in_split
from avcl.errors import ConfigError, did_you_mean
from avcl.types import Clip, DataSpec, Inputs, Stream, StreamSpec, fingerprint

_STREAMS = ("audio", "video", "text", "speech", "transcript", "pose", "notes")
_PLAYED = {"pose", "notes"}  # streams of a player that need neither picture nor sound


class World(Data):
    """``clips`` generated clips of ``preset``; row i is a function of (preset, seed, split, i) alone.

    ``split``: "train", "val" and "test" draw from disjoint random streams, "all" from a fourth · ``fresh``: epoch e
    draws new clips (index e * clips + i), training without end; ids stay · ``retime``: share of the clips whose sound
    is that of the same object at another moment, which makes a model learn the object and not only the timing; for
    training only · ``truth``: masks, boxes, stems and more ride along as ``extras`` (slower) · ``streams``: any of
    "audio", "video", "text" (the caption), "speech" (the caption spoken) and "transcript" (what a face says); of the
    preset music "pose" [T, 6] (key points) and "notes" [K, 4] (onset, duration, pitch, velocity; no clock), which alone
    cost next to nothing; by default sound and picture, and the text where captions are the task.
    """

    kind: Literal["media", "features", "world"] = "world"
    skipped: Mapping[str, int] = MappingProxyType({})

    def __init__(
        self,
        preset: str | Preset,
        *,
        clips: int,
        seed: int = 0,
        split: str = "all",
        fresh: bool = False,
        retime: float = 0.0,
        truth: bool = False,
        streams: Sequence[str] | None = None,
    ):
        if split not in STREAMS:
            raise ConfigError(f'split "{split}" is not one of the world.', hint=did_you_mean(split, set(STREAMS)))
        if clips < 1:
            raise ConfigError(f"clips must be at least 1, not {clips}.", hint="Ask for one clip or more.")
        if seed < 0:
            raise ConfigError(f"seed must not be negative, not {seed}.", hint="Use 0, 1, 2, ...")
        if not 0.0 <= retime <= 1.0:
            raise ConfigError(f"retime is a share of the clips, not {retime}.", hint="Use a value from 0 to 1.")
        self.preset = preset_of(preset) if isinstance(preset, str) else preset
        check_retime(self.preset, retime)
        self.seed, self.split, self.fresh, self.retime, self.truth = seed, split, fresh, retime, truth
        self.clips = clips
        captioned = ("text",) if self.preset.task == "captions" else ()
        self.modalities = ("audio", "video", *captioned) if streams is None else tuple(streams)
        for name in self.modalities:
            if name not in _STREAMS:
                raise ConfigError(f'the world has no stream "{name}".', hint=did_you_mean(name, set(_STREAMS)))
        self.inputs: Inputs | None = None
        self.labels = self.preset.labels
        self._rows: tuple[tuple[str, int], ...] = tuple((split, i) for i in range(clips))
        self.n_official = clips

    def _with_rows(self, rows: Sequence[tuple[str, int]], split: str) -> Self:
        other = type(self).__new__(type(self))
        other.__dict__ = {k: v for k, v in self.__dict__.items() if k not in ("ids", "targets", "fingerprint")}
        other._rows, other.split, other.n_official = tuple(rows), split, len(rows)
        return other

    @cached_property
    def ids(self) -> tuple[str, ...]:
        return tuple(f"{self.preset.name}-{self.seed}-{stream}-{i:06d}" for stream, i in self._rows)

    @cached_property
    def targets(self) -> tuple[int, ...]:
        """Class of each row (of epoch 0 where ``fresh``), without rendering."""
        shown = {split: in_split(self.preset, split) for split in STREAMS}
        return tuple(draw_label(shown[s], generator(self.preset.name, self.seed, i, s)) for s, i in self._rows)

    @property
    def groups(self) -> tuple[str, ...]:
        """The class where splits must not share one, else each clip is its own group."""
        return tuple(self.labels[t] for t in self.targets) if self.preset.disjoint else self.ids

    @property
    def spec(self) -> DataSpec:
        shown = fit.viewed(self.preset, self.inputs)
        streams = {
            "audio": StreamSpec("audio", (shown.channels,), float(shown.sample_rate)),
            "video": StreamSpec("video", (3, *shown.size), float(shown.fps)),
            "text": StreamSpec("tokens", (), 1.0),
            "transcript": StreamSpec("tokens", (), 1.0),
            "speech": StreamSpec("audio", (1,), float(shown.sample_rate)),
            "pose": StreamSpec("features", (2 * len(scores.POINTS),), float(shown.fps)),
            "notes": StreamSpec("features", (len(scores.COLUMNS),), 1.0),
        }
        return DataSpec({name: streams[name] for name in self.modalities}, self.labels, len(self))

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(
            {
                "world": RENDER_VERSIONS[self.preset.scene],
                "preset": self.preset.identity,
                "seed": self.seed,
                "rows": self._rows,
            }
            | {"fresh": self.fresh, "retime": self.retime, "streams": self.modalities}
        )

    def clip(self, index: int, *, epoch: int = 0, view: int = 0) -> Clip:
        """Row ``index`` rendered: "audio" float32 [1,L,C], "video" uint8 [1,T,3,H,W]. Extras: "offset" (seconds,
        positive: the sound is late), "segments" where the preset has them, and where ``truth`` every array of the truth
        and "motion" (number in ``motion.KINDS`` of what the first source is seen to do; solids)."""
        stream, i = self._rows[index]
        drawn = epoch * self.clips + i if self.fresh else i
        shown = fit.native(self.preset, self.inputs)
        played = self._played(shown, stream, drawn)
        if _PLAYED.issuperset(self.modalities) and not self.truth:
            return Clip(self.ids[index], played, index=index, view=view, label=self._label(stream, drawn))
        clip = render(shown, self.seed, drawn, stream=stream, truth=self.truth, retime=self.retime)
        clip = fit.fitted(clip, self.inputs)
        streams = {n: played[n] if n in played else self._stream(n, clip, stream, drawn) for n in self.modalities}
        extras = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in clip.arrays.items()}
        if "offset" in clip.truth:
            extras["offset"] = torch.tensor(clip.truth["offset"], dtype=torch.float32)
        seen = clip.truth.get("objects", [{}])[0].get("motion") if self.truth else None
        if seen is not None:
            extras["motion"] = torch.tensor(KINDS.index(seen))
        return Clip(
            id=self.ids[index],
            streams=streams,
            index=index,
            view=view,
            label=clip.label if clip.label >= 0 else None,
            group=self.labels[clip.label] if self.preset.disjoint else "",
            extras=extras,
        )

    def _played(self, shown: Preset, split: str, drawn: int) -> dict[str, Stream]:
        """The streams of a player that are asked for: key points at the frame rate, notes without a clock."""
        wanted = [name for name in self.modalities if name in _PLAYED]
        if not wanted:
            return {}
        score = scores.score_of(in_split(shown, split), generator(self.preset.name, self.seed, drawn, split))
        found = {"pose": (score.pose, float(shown.fps)), "notes": (score.notes, 1.0)}
        return {
            name: Stream(torch.from_numpy(rows)[None], torch.ones(1, len(rows), dtype=torch.bool), rate)
            for name, (rows, rate) in found.items()
            if name in wanted
        }

    def _label(self, split: str, drawn: int) -> int | None:
        label = draw_label(in_split(self.preset, split), generator(self.preset.name, self.seed, drawn, split))
        return label if label >= 0 else None

    def _stream(self, name: str, clip: Rendered, split: str, drawn: int) -> Stream:
        if name == "text":
            return text_stream(clip.truth["caption"])
        if name == "transcript":
            return text_stream(clip.truth["text"])
        if name == "video":
            data, rate = torch.from_numpy(clip.video).permute(0, 3, 1, 2)[None], clip.fps
        elif name == "audio":
            data, rate = torch.from_numpy(clip.audio)[None], float(clip.sample_rate)
        else:
            wave = spoken(self.preset.name, self.seed, drawn, split, clip)
            data, rate = torch.from_numpy(wave)[None, :, None], float(clip.sample_rate)
        return Stream(data, torch.ones(data.shape[:2], dtype=torch.bool), float(rate))

    def subset(self, indices: Sequence[int], *, split: str | None = None) -> Self:
        return self._with_rows([self._rows[i] for i in indices], self.split if split is None else split)

    def with_truth(self) -> Self:
        if self.inputs is not None:
            fit.check(self.preset, self.inputs, truth=True)
        other = self._with_rows(self._rows, self.split)
        other.truth = True
        return other

    def configure(self, inputs: Inputs) -> Self:
        """The same clips as ``inputs`` wants them, rendered anew at these rates and this size, truth included.
        ``ConfigError`` where a preset cannot give it."""
        fit.check(self.preset, inputs, truth=self.truth)
        other = self._with_rows(self._rows, self.split)
        other.inputs = inputs
        return other


def spoken(preset: str, seed: int, index: int, split: str, clip: Rendered) -> np.ndarray:
    """float32 [L]: the caption of ``clip`` (that clip of that world), by a voice that depends on nothing but these
    names."""
    return speech_of(clip.truth["caption"], generator(f"{preset}/speech", seed, index, split), clip.sample_rate)


def world_splits(
    preset: str | Preset,
    *,
    clips: int = 6400,
    val: int = 200,
    test: int = 200,
    seed: int = 0,
    fresh: bool = False,
    retime: float = 0.0,
    truth: bool = False,
) -> Splits:
    """``clips`` clips to train on, ``val`` and ``test`` held-out ones, from disjoint random streams of one world.

    ``fresh`` and ``retime`` hold for the training part alone; val and test are always fixed and in time."""
    train = World(preset, clips=clips, split="train", fresh=fresh, retime=retime, seed=seed, truth=truth)
    parts = [World(preset, clips=clips, split="train", seed=seed, truth=truth)]
    parts += [World(preset, clips=val, split="val", seed=seed, truth=truth)]
    parts += [World(preset, clips=test, split="test", seed=seed, truth=truth)]
    whole = parts[0]._with_rows([row for part in parts for row in part._rows], "all")
    return Splits(all=whole, train=train, val=parts[1], test=parts[2], official=True)
