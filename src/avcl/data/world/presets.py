"""The presets: what each is made to measure, how hard it is, and how it is rendered."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np

from avcl.data.world import people, people_presets
from avcl.data.world.objects import render_objects
from avcl.data.world.scene import CLASSES, ObjectPreset
from avcl.data.world.values import Preset, Rendered, in_split
from avcl.errors import ConfigError, did_you_mean

# by kind of scene: raise it when the same (preset, seed, index) gives other bytes, of picture, sound or truth
RENDER_VERSIONS = {"objects": 1, "face": 2, "player": 2}
STREAMS = {"train": 0, "val": 1, "test": 2, "all": 3}

_RETRIEVAL = ObjectPreset(
    name="retrieval",
    scene="objects",
    task="retrieval",
    labels=CLASSES,
    difficulty="One object of 12 classes, sizes 7 to 9.5, camera jitter 1 px, noise 6; no distractor, nothing off "
    "screen. Timing alone finds the pair; the narrow sizes leave the class learnable where part of the sounds is "
    "re-timed.",
)

_OBJECTS = (
    _RETRIEVAL,
    replace(
        _RETRIEVAL,
        name="retrieval-hard",
        distractor=1.0,
        offscreen=0.5,
        noise=12.0,
        difficulty="As retrieval, with a silent moving object of another class, an off-screen sound in half of the "
        "clips, and noise 12. Small models are near chance after minutes: report it, do not gate on it.",
    ),
    replace(
        _RETRIEVAL,
        name="localization",
        task="localization",
        radius=(6.0, 11.0),
        distractor=1.0,
        difficulty="One sounding object and one that moves in silence, of another class; each covers 2 to 7 % of the "
        "picture. An untrained map hits either of them 6 to 32 % of the time.",
    ),
    replace(
        _RETRIEVAL,
        name="localization-same",
        task="localization",
        radius=(6.0, 11.0),
        motions=("bounce", "shake", "pluck"),
        distractor=1.0,
        alike=True,
        difficulty="The silent object has the class and size of the sounding one: only the timing tells them apart.",
    ),
    replace(
        _RETRIEVAL,
        name="events",
        task="events",
        seconds=5.0,
        motions=("rattle", "bow"),
        distractor=0.5,
        offscreen=0.5,
        staged=True,
        difficulty="5 s; the object comes and goes, its sound begins and ends, differently in 40 % of the clips; half "
        "of the clips have a silent object, half a sound off screen. A half second is an event where the object is "
        "seen and heard.",
    ),
    replace(
        _RETRIEVAL,
        name="separation",
        task="separation",
        labels=("wood disk", "metal ring", "glass bar", "metal triangle"),
        motions=("rattle", "bow"),
        difficulty="Solo clips of four classes in three registers, sustained or fast sounds, to be mixed in pairs: "
        "the classic mix-and-separate. The oracle binary mask gains 16 to 20 dB.",
    ),
    replace(
        _RETRIEVAL,
        name="separation-duet",
        task="separation",
        labels=("wood disk", "metal ring", "glass bar", "metal triangle"),
        motions=("rattle", "bow"),
        sources=2,
        difficulty="Two sounding objects of two classes side by side in one picture, with their stems.",
    ),
    replace(
        _RETRIEVAL,
        name="spatial",
        task="spatial",
        channels=2,
        radius=(6.0, 10.0),
        sources=2,
        distance=(1.0, 1.8),
        difficulty="Two sounding objects left and right, near or far; two ears hear time and level differences of "
        "+-0.44 ms and +-7 dB across the picture.",
    ),
    replace(
        _RETRIEVAL,
        name="sync",
        task="sync",
        fps=25.0,
        motions=("bounce",),
        offset=0.4,
        difficulty="25 frames a second, bounces 0.32 to 0.75 s apart, the sound shifted by up to 0.4 s either way, "
        "not rounded to a frame. Chance within 40 ms is .10.",
    ),
    replace(
        _RETRIEVAL,
        name="captions",
        task="captions",
        distractor=0.5,
        offscreen=0.25,
        difficulty="One or two objects, at times a sound off screen, described by a sentence; the same sentence "
        "spoken is the stream speech of World(streams=...).",
    ),
)

PRESETS: dict[str, Preset] = {**{preset.name: preset for preset in _OBJECTS}, **people_presets.PRESETS}


def preset_of(name: str) -> Preset:
    """The preset called ``name``; ``ConfigError`` with the nearest name where there is none."""
    if name not in PRESETS:
        raise ConfigError(f'There is no world preset "{name}".', hint=did_you_mean(name, set(PRESETS)))
    return PRESETS[name]


def generator(name: str, seed: int, index: int, stream: str = "all") -> np.random.Generator:
    """The generator of one clip: a function of preset, seed, stream (split) and index, and of nothing else."""
    words = [zlib.crc32(name.encode()), seed, STREAMS[stream], index]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def render(
    preset: str | Preset, seed: int, index: int, *, stream: str = "all", truth: bool = True, retime: float = 0.0
) -> Rendered:
    """Clip ``index`` of ``preset``, the same bytes on every call, in every process. See ``Rendered``.

    ``stream``: "train", "val", "test" or "all", four disjoint worlds · ``retime``: see ``World``.
    """
    preset = preset_of(preset) if isinstance(preset, str) else preset
    check_retime(preset, retime)
    if isinstance(preset, ObjectPreset) and preset.size[0] != preset.size[1]:
        raise ConfigError(
            f"the pictures of {preset.name} are square, not {preset.size}.",
            hint="Use World.configure for other shapes.",
        )
    preset = in_split(preset, stream)
    rng = generator(preset.name, seed, index, stream)
    if isinstance(preset, ObjectPreset):
        return render_objects(preset, rng, truth=truth, retime=retime)
    return people.render(preset, rng, truth=truth)


def check_retime(preset: Preset, retime: float) -> None:
    """``ConfigError`` where the sounds of ``preset`` cannot be those of another moment."""
    if retime and not isinstance(preset, ObjectPreset):
        raise ConfigError(f"preset {preset.name} cannot re-time its sounds.", hint="Leave retime at 0.")
