"""The generated audio-visual world: tutorial, fixture and benchmark; a clip is (preset, seed, split, index)."""

from __future__ import annotations

from avcl.data.world.exported import export
from avcl.data.world.generated import World, world_splits
from avcl.data.world.presets import PRESETS, preset_of, render
from avcl.data.world.values import Preset, Rendered

__all__ = ["PRESETS", "Preset", "Rendered", "World", "export", "preset_of", "render", "world_splits"]
