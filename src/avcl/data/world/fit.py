"""A world's clips as ``Inputs`` wants them: frame rate, picture size, sample rate, channels, window.

Solids are rendered anew at the rates and size asked for (the same scene: only the sampling changes); other scenes are
resampled after rendering. The window begins at t = 0 and is never longer than the preset.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from avcl.data.world.scene import ObjectPreset
from avcl.data.world.values import Preset, Rendered
from avcl.dsp import resample, resize
from avcl.errors import ConfigError
from avcl.types import Inputs


def check(preset: Preset, inputs: Inputs, *, truth: bool) -> None:
    """``ConfigError`` where a clip of ``preset`` (with its ``truth``) cannot be had as ``inputs``."""
    if inputs.channels not in (1, 2):
        raise ConfigError(f"the world has 1 or 2 channels, not {inputs.channels}.", hint="Set channels to 1 or 2.")
    if min(inputs.fps, inputs.sample_rate, inputs.window, *inputs.size) <= 0:
        raise ConfigError("fps, sample rate, size and window must be positive.", hint="Correct the system's inputs.")
    if preset.channels == 1 and inputs.channels == 2 and not isinstance(preset, ObjectPreset):
        raise ConfigError(f"preset {preset.name} is mono.", hint="Set channels to 1, or take the preset spatial.")
    if (
        truth
        and inputs.size != preset.size
        and not (isinstance(preset, ObjectPreset) and inputs.size[0] == inputs.size[1])
    ):
        where = "square pictures" if isinstance(preset, ObjectPreset) else f"pictures of {preset.size}"
        raise ConfigError(f"masks and boxes of {preset.name} exist for {where} only.", hint="Leave truth off.")


def viewed(preset: Preset, inputs: Inputs | None) -> Preset:
    """``preset`` with the sizes and rates that its clips have under ``inputs``."""
    if inputs is None:
        return preset
    return replace(
        preset,
        size=inputs.size,
        fps=inputs.fps,
        seconds=min(inputs.window, preset.seconds),
        sample_rate=inputs.sample_rate,
        channels=inputs.channels,
    )


def native(preset: Preset, inputs: Inputs | None) -> Preset:
    """What to render for ``inputs``: solids in a square that covers (fit "crop", "stretch") or fits (fit "pad") the
    picture."""
    if inputs is None or not isinstance(preset, ObjectPreset):
        return preset
    shown = viewed(preset, inputs)
    assert isinstance(shown, ObjectPreset)
    side = min(inputs.size) if inputs.fit == "pad" else max(inputs.size)
    return replace(shown, size=(side, side), horizon=preset.drawn)


def fitted(clip: Rendered, preset: Preset, inputs: Inputs | None) -> Rendered:
    """The rendered clip at the size, rates and window of ``inputs``; untouched where it has them already."""
    if inputs is None:
        return clip
    shown = viewed(preset, inputs)
    video, audio = clip.video, clip.audio
    if clip.fps != shown.fps or len(video) != shown.frames:
        nearest = np.rint(np.arange(shown.frames) / shown.fps * clip.fps).astype(int)
        video = video[np.minimum(nearest, len(video) - 1)]
    if video.shape[1:3] != shown.size:
        pictures = resize(torch.from_numpy(np.ascontiguousarray(video)).permute(0, 3, 1, 2), shown.size, inputs.fit)
        video = pictures.permute(0, 2, 3, 1).contiguous().numpy()
    if audio.shape[1] != shown.channels:
        audio = audio.mean(axis=1, keepdims=True)
    if clip.sample_rate != shown.sample_rate:
        audio = resample(torch.from_numpy(audio)[None], clip.sample_rate, shown.sample_rate)[0].numpy()
    audio = np.ascontiguousarray(audio[: shown.samples])
    return replace(clip, video=video, audio=audio, fps=shown.fps, sample_rate=shown.sample_rate)
