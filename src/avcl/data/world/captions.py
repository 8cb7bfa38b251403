"""A sentence for a scene: what an attentive person would say who sees and hears it.

Example: "a metal ring bounces on the left and a wood disk shakes silently on the right while a glass bar sounds off
screen".
"""

from __future__ import annotations

import numpy as np

from avcl.data.world.modal import MATERIALS, SHAPES
from avcl.data.world.scene import Actor, ObjectPreset, Scene

VERBS = {"bounce": "bounces", "shake": "shakes", "rattle": "rattles", "pluck": "swings", "bow": "slides"}
PLACES = ("on the left", "in the middle", "on the right")
_WORDS = ("a small large sounds off screen silently and while", *MATERIALS, *SHAPES, *VERBS.values(), *PLACES)
VOCABULARY: tuple[str, ...] = tuple(dict.fromkeys(" ".join(_WORDS).split()))


def _place(actor: Actor) -> str:
    return PLACES[min(int(actor.motion.center[0] / 64.0 * 3), 2)]


def _phrase(preset: ObjectPreset, actor: Actor) -> str:
    middle = 0.5 * (preset.radius[0] + preset.radius[1])
    size = "small" if actor.body.radius < middle else "large"
    name = f"a {size} {actor.body.material} {actor.body.shape}"
    if not actor.seen:
        return f"{name} sounds off screen"
    silent = "" if actor.sounds else " silently"
    return f"{name} {VERBS[actor.motion.kind]}{silent} {_place(actor)}"


def caption_of(preset: ObjectPreset, scene: Scene) -> str:
    """The caption; every word of it is in ``VOCABULARY``."""
    seen = [_phrase(preset, actor) for actor in scene.actors if actor.seen]
    heard = [_phrase(preset, actor) for actor in scene.actors if not actor.seen]
    return " and ".join(seen) + "".join(f" while {phrase}" for phrase in heard)


def speech_of(caption: str, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """float32 [L]: the caption spoken by a voice drawn from ``rng``; as long as it takes."""
    from avcl.data.world.speech import Voice, speak

    voice = Voice(tract_cm=float(rng.uniform(13.5, 17.5)), pitch_hz=float(rng.uniform(95.0, 230.0)))
    return speak(caption, voice, rng, sample_rate=sample_rate).wave
