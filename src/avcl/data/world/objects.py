"""Scene -> picture, sound and truth of a clip of solid objects.

The picture shows the instants i / fps; the sound is made of the same motion at t - offset, so a strike is heard
``offset`` seconds after it is seen (0 but in the presets that say so).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from avcl.data.world import modal, pixels, spatial
from avcl.data.world.captions import caption_of
from avcl.data.world.motion import Motion, Pose
from avcl.data.world.noise import white
from avcl.data.world.scene import Actor, ObjectPreset, Scene, draw_scene
from avcl.data.world.values import Preset, Rendered

_LEVEL = 0.22  # amplitude of a strike of force 1 by a nearby object
_BOW = 0.45  # of a bow stroke relative to a strike
_SEGMENT = 0.5  # seconds of one event label


def render_objects(preset: Preset, rng: np.random.Generator, *, truth: bool = False, retime: float = 0.0) -> Rendered:
    """A clip of ``preset`` drawn from ``rng``. ``truth`` adds masks, boxes, positions and stems; ``retime`` is the
    chance that the sound is that of the same object at another moment (a training augmentation)."""
    assert isinstance(preset, ObjectPreset)
    scene = draw_scene(preset, rng, retime=retime)
    video, arrays = _film(preset, scene, rng, truth)
    audio, stems = _record(preset, scene, rng)
    facts: dict[str, Any] = {"offset": scene.offset, "caption": caption_of(preset, scene)}
    if truth:
        facts = _truth(preset, scene, arrays)
        slots = slots_of(preset, scene)
        rows = [*slots, preset.slots]  # the room comes last
        arrays = {name: _in_slots(array, slots, preset.slots, axis=1) for name, array in arrays.items()}
        arrays["stems"] = _in_slots(stems, rows, preset.slots + 1, axis=0)
    if preset.staged:
        arrays["segments"] = segments_of(preset, scene)
    return Rendered(video, audio, preset.fps, preset.sample_rate, scene.label, facts, arrays)


def slots_of(preset: ObjectPreset, scene: Scene) -> list[int]:
    """The row of each actor in the arrays: sources first, then the distractor's and the off-screen sound's where the
    preset may have one, so that every clip of a preset has arrays of one shape."""
    after = {"distractor": preset.sources, "offscreen": preset.slots - 1}
    return [i if actor.role == "source" else after[actor.role] for i, actor in enumerate(scene.actors)]


def _in_slots(array: np.ndarray, slots: list[int], count: int, axis: int) -> np.ndarray:
    """``array`` with its rows along ``axis`` moved to ``slots`` of ``count``; zeros in the others."""
    shape = list(array.shape)
    shape[axis] = count
    out = np.zeros(shape, dtype=array.dtype)
    np.moveaxis(out, axis, 0)[slots] = np.moveaxis(array, axis, 0)
    return out


# ------------------------------------------------------------------------------------------------------------- picture
def _film(
    preset: ObjectPreset, scene: Scene, rng: np.random.Generator, truth: bool
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    size = preset.size[0]
    unit = size / 64
    margin = int(np.ceil(preset.jitter * unit))
    times = np.arange(preset.frames) / preset.fps
    background = pixels.backdrop(rng, size, margin, scene.floor)
    ties = rng.random(len(scene.actors))
    # what depends on the number of frames is drawn last: another frame rate shows the same scene
    jitter = np.rint(pixels.draw_jitter(rng, preset.frames, preset.jitter) * unit).astype(int)
    canvas = pixels.stage(background, size, margin, jitter)
    order = sorted(range(len(scene.actors)), key=lambda i: (-scene.actors[i].distance, ties[i]))
    actors = scene.actors
    masks = np.zeros((preset.frames, len(actors), size, size), dtype=bool) if truth else None
    places = np.zeros((preset.frames, len(actors), 2), dtype=np.float32)
    for i in order:
        actor = actors[i]
        if not actor.seen:
            continue
        pose = actor.motion.at(times)
        shown = _shown(preset, actor)
        scaled = Pose(pose.x * unit, pose.y * unit, pose.angle, pose.stretch)
        radius = np.full(len(times), actor.body.radius * unit / actor.distance)
        covered = pixels.paint(canvas, actor.body, scaled, radius, shown, jitter, masks=truth)
        if masks is not None and covered is not None:
            masks &= ~covered[:, None]
            masks[:, i] = covered
            places[shown, i, 0] = (scaled.x + jitter[:, 1])[shown]
            places[shown, i, 1] = (scaled.y + jitter[:, 0])[shown]
    video = pixels.develop(canvas, rng, preset.noise)
    if masks is None:
        return video, {}
    return video, {"masks": masks, "boxes": pixels.boxes_of(masks), "positions": places}


def _shown(preset: ObjectPreset, actor: Actor) -> np.ndarray:
    """bool [T]: the frames in which the actor is in front of the camera."""
    times = np.arange(preset.frames) / preset.fps
    return (times >= actor.visible[0]) & (times < actor.visible[1]) & actor.seen


# --------------------------------------------------------------------------------------------------------------- sound
def _record(preset: ObjectPreset, scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The mix float32 [L,C] and its stems [S,L,C]: one for each actor (silent ones are zeros), the room last."""
    samples, rate = preset.samples, preset.sample_rate
    gain = _LEVEL * 10.0 ** (scene.gain_db / 20.0)
    stems = np.zeros((len(scene.actors) + 1, samples, preset.channels), dtype=np.float32)
    for stem, actor in zip(stems, scene.actors, strict=False):
        if actor.sounds:
            mono = sound_of(actor, samples, rate, scene.offset, white(rng, samples)) * (gain / actor.distance)
            stem[:] = _placed(preset, scene, actor, mono)
    hiss = 10.0 ** (rng.uniform(-62.0, -50.0) / 20.0)
    stems[-1] = hiss * white(rng, samples * preset.channels).reshape(samples, preset.channels)
    mix = stems.sum(axis=0)
    peak = float(np.abs(mix).max())
    if peak > 0.98:
        stems *= 0.98 / peak
        mix *= 0.98 / peak
    return mix, stems


def sound_of(actor: Actor, samples: int, rate: int, offset: float, grain: np.ndarray) -> np.ndarray:
    """float32 [samples]: what the actor sounds like nearby, force 1 being amplitude ~1."""
    body = modal.modes(actor.body.shape, actor.body.material, actor.body.radius, actor.strike)
    begin, end = actor.audible
    if actor.heard.kind == "bow":
        coarse = np.arange(0, samples + rate // 200, max(rate // 200, 1))  # the envelope bends slowly: 200 Hz will do
        envelope = np.interp(np.arange(samples), coarse, actor.heard.speed(coarse / rate - offset))
        sound = _BOW * modal.bowed(body, envelope.astype(np.float32), _rough(grain), rate)
    else:
        times, forces = actor.heard.impacts()
        keep = (times >= begin) & (times < end)
        sound = modal.struck(body, times[keep] + offset, forces[keep], samples, rate)
    if np.isfinite(begin) or np.isfinite(end):  # a hand damps it
        t = np.arange(samples, dtype=np.float32) / rate - np.float32(offset)
        sound = sound * np.clip((t - begin) / 0.005 + 1, 0, 1) * np.clip((end - t) / 0.03, 0, 1)
    return sound.astype(np.float32)


def _rough(grain: np.ndarray) -> np.ndarray:
    """Noise smoothed over 8 samples: the hair of the bow."""
    total = np.cumsum(grain, dtype=np.float64)
    smooth = np.zeros_like(grain)
    smooth[8:] = (total[8:] - total[:-8]) / np.sqrt(8.0)
    return smooth


def _placed(preset: ObjectPreset, scene: Scene, actor: Actor, mono: np.ndarray) -> np.ndarray:
    if preset.channels == 1:
        return mono[:, None]
    if not actor.seen:
        return spatial.binaural(mono, actor.bearing, preset.sample_rate)
    coarse = np.arange(0.0, preset.seconds + 0.02, 0.01)
    theta = spatial.azimuth(actor.motion.at(coarse - scene.offset).x, 64.0)
    every = np.arange(len(mono)) / preset.sample_rate
    return spatial.binaural(mono, np.interp(every, coarse, theta), preset.sample_rate)


# --------------------------------------------------------------------------------------------------------------- truth
def segments_of(preset: ObjectPreset, scene: Scene) -> np.ndarray:
    """int64 [n]: class of each half second in which the first source is both seen and heard for more than half of it,
    else the number of classes (background)."""
    actor = scene.actors[0]
    begin, end = max(actor.visible[0], actor.audible[0]), min(actor.visible[1], actor.audible[1])
    edges = np.arange(0.0, preset.seconds - 1e-9, _SEGMENT)
    overlap = np.minimum(edges + _SEGMENT, end) - np.maximum(edges, begin)
    return np.where(overlap > 0.5 * _SEGMENT, scene.label, len(preset.labels)).astype(np.int64)


def _moments(motion: Motion, lag: float, bounds: tuple[float, float], seconds: float, ring: float) -> list[list[float]]:
    """[begin, end] of every stroke or strike inside ``bounds``, shifted by ``lag`` and cut to the clip; a strike lasts
    ``ring``."""
    begin, end = motion.intervals()
    out = []
    for i, (a, b) in enumerate(zip(begin, end, strict=True)):
        stop = b if b > a else a + ring
        if b == a and i + 1 < len(begin):
            stop = min(stop, begin[i + 1])
        a, stop = max(a, bounds[0]) + lag, min(stop, bounds[1]) + lag
        if stop > a and a < seconds and stop > 0:
            out.append([round(float(max(a, 0.0)), 5), round(float(min(stop, seconds)), 5)])
    return out


def _span(interval: tuple[float, float], seconds: float) -> list[float]:
    return [round(float(np.clip(bound, 0.0, seconds)), 5) for bound in interval]


def _object_truth(preset: ObjectPreset, scene: Scene, actor: Actor) -> dict[str, Any]:
    ring = 0.5 * modal.MATERIALS[actor.body.material].t60
    heard = _moments(actor.heard, scene.offset, actor.audible, preset.seconds, ring) if actor.sounds else []
    seen = _moments(actor.motion, 0.0, actor.visible, preset.seconds, 0.06) if actor.seen else []
    times, forces = actor.heard.impacts()
    times = times + scene.offset
    keep = (times >= 0) & (times < preset.seconds) & (times - scene.offset >= actor.audible[0])
    keep &= times - scene.offset < actor.audible[1]
    keep &= actor.sounds
    return {
        "role": actor.role,
        "class": preset.labels[actor.label],
        "label": actor.label,
        "shape": actor.body.shape,
        "material": actor.body.material,
        "radius": round(actor.body.radius, 4),
        "pitch": round(float(modal.modes(actor.body.shape, actor.body.material, actor.body.radius).frequency[0]), 3),
        "color": [round(c, 2) for c in actor.body.color],
        "motion": actor.motion.kind,
        "distance": round(actor.distance, 4),
        "visible": _span(actor.visible, preset.seconds) if actor.seen else None,
        "audible": _span(actor.audible, preset.seconds) if actor.sounds else None,
        "onsets": [[round(float(t), 5), round(float(f), 4)] for t, f in zip(times[keep], forces[keep], strict=True)],
        "events": {"audio": heard, "video": seen},
    }


def _truth(preset: ObjectPreset, scene: Scene, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """One line of truth.jsonl. ``events``: [begin, end] in seconds, strokes or strikes with their ringing (video: the
    contact) · ``events`` beside the objects: those of the first source · ``slot``: row in the arrays · ``boxes``: per
    frame [x0, y0, x1, y1] or null · ``positions``: centers in
    pixels · ``onsets``: [seconds, force] as heard."""
    objects, slots = [], slots_of(preset, scene)
    for i, actor in enumerate(scene.actors):
        item = {"slot": slots[i], **_object_truth(preset, scene, actor)}
        boxes, places = arrays["boxes"][:, i], arrays["positions"][:, i]
        item["boxes"] = [[int(v) for v in box] if box[2] > box[0] else None for box in boxes]
        shown = _shown(preset, actor)
        item["positions"] = [[round(float(v), 3) for v in p] if s else None for p, s in zip(places, shown, strict=True)]
        if preset.channels == 2:
            x = actor.motion.at(np.arange(preset.frames) / preset.fps).x
            theta = spatial.azimuth(x, 64.0) if actor.seen else np.full(preset.frames, actor.bearing)
            item["azimuth"] = [round(float(v), 3) for v in np.rad2deg(theta)]
        objects.append(item)
    truth: dict[str, Any] = {
        "class": preset.labels[scene.label],
        "caption": caption_of(preset, scene),
        "offset": round(scene.offset, 6),
        "retimed": scene.retimed,
        "gain_db": round(scene.gain_db, 4),
        "floor": round(scene.floor, 3),
        "events": objects[0]["events"],
        "objects": objects,
    }
    if preset.staged:
        truth["segments"] = segments_of(preset, scene).tolist()
    return truth
