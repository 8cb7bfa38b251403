"""A world's clips as ``Inputs`` wants them: frame rate, picture size, sample rate, channels, window.

Scenes are rendered anew at the rates and size asked for: the same scene, only the sampling changes. The window begins
at t = 0 and is never longer than the preset.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from avcl.data.world.values import Preset, Rendered
from avcl.dsp import resize
from avcl.errors import ConfigError
from avcl.types import Inputs


def check(preset: Preset, inputs: Inputs, *, truth: bool) -> None:
    """``ConfigError`` where a clip of ``preset`` (with its ``truth``) cannot be had as ``inputs``."""
    if inputs.channels not in (1, 2):
        raise ConfigError(f"the world has 1 or 2 channels, not {inputs.channels}.", hint="Set channels to 1 or 2.")
    if min(inputs.fps, inputs.sample_rate, inputs.window, *inputs.size) <= 0:
        raise ConfigError("fps, sample rate, size and window must be positive.", hint="Correct the system's inputs.")
    if truth and inputs.size[0] != inputs.size[1]:
        raise ConfigError(f"masks and boxes of {preset.name} exist for square pictures only.", hint="Leave truth off.")


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
    """What to render for ``inputs``: a square that covers (fit "crop", "stretch") or fits (fit "pad") the picture."""
    if inputs is None:
        return preset
    side = min(inputs.size) if inputs.fit == "pad" else max(inputs.size)
    return replace(viewed(preset, inputs), size=(side, side), horizon=preset.drawn)


def fitted(clip: Rendered, inputs: Inputs | None) -> Rendered:
    """The clip of ``native`` with the picture's shape of ``inputs``; untouched where it has it already."""
    if inputs is None or clip.video.shape[1:3] == inputs.size:
        return clip
    pictures = torch.from_numpy(np.ascontiguousarray(clip.video)).permute(0, 3, 1, 2)
    video = resize(pictures, inputs.size, inputs.fit).permute(0, 2, 3, 1).contiguous().numpy()
    return replace(clip, video=video)
