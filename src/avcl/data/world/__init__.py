"""The generated audio-visual world: tutorial, fixture and benchmark; deterministic from (preset, seed, split, index)."""

from __future__ import annotations

from avcl.data.world.generated import World, world_splits
from avcl.data.world.presets import PRESETS, preset_of, render
from avcl.data.world.values import Preset, Rendered

__all__ = ["PRESETS", "Preset", "Rendered", "World", "preset_of", "render", "world_splits"]
