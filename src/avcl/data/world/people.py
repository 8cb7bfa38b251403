"""Clips with people: who is there, what each says or plays, and the truth about it.

The first person is drawn as if it were alone; whoever else is there (a second source, a silent distractor, a voice off
screen) comes from generators of its own, so that a preset without them renders the same bytes as ever. Two people
share the picture, half each, and its background.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from avcl.data.world import spatial
from avcl.data.world.acts import GRID, Act, Part, play, samples_of, talk
from avcl.data.world.people_presets import FacePreset, PeoplePreset
from avcl.data.world.values import Preset, Rendered, draw_label
from avcl.errors import ConfigError


def render(preset: Preset, rng: np.random.Generator, *, truth: bool = True) -> Rendered:
    """One clip of a preset with people, a function of ``preset`` and the state of ``rng`` alone.

    ``truth``: also boxes, masks bool [T,O,H,W], positions, stems [S,L,C] and trajectories; slower. Of a face there are
    two objects (face, mouth) and one stem, of a player three (head, left hand, right hand) and two; the room is the
    last stem. ``lips`` [T,3] (opening, width, tuck), ``gap`` [T] (pixels), ``pitch`` [T] (Hz, 0 where nothing is
    voiced), ``formants`` [T,3] (Hz) and ``hands`` [T,2,2] (pixels x, y) are those of the first person.
    """
    if not isinstance(preset, PeoplePreset):
        raise TypeError(f"preset {preset.name!r} has no people in it")
    if not 1 <= preset.seen_slots <= 2:
        raise ConfigError("at most two people are in a picture.", hint="Use sources=2, or sources=1 and a distractor.")
    act = talk if isinstance(preset, FacePreset) else play
    parts, generators = _cast(preset, draw_label(preset, rng), rng)
    acts = [act(preset, parts[0], rng, truth)]
    for part, own in zip(parts[1:], generators, strict=True):
        taken = tuple(a.identity for a in acts)
        acts.append(act(preset, replace(part, background=acts[0].background, taken=taken), own, truth))
    audio, stems = _recorded(preset, parts, acts, generators)
    video = _side_by_side(parts, acts)
    facts = {
        "class": preset.labels[parts[0].label],
        "caption": _caption(preset, parts, acts),
        "offset": 0.0,
        "side": _side(preset, parts[0]),
        **acts[0].facts,
    }
    facts["others"] = [
        {"role": part.role, "class": preset.labels[part.label], "side": _side(preset, part), **one.facts}
        for part, one in zip(parts[1:], acts[1:], strict=True)
    ]
    arrays: dict[str, np.ndarray] = {}
    if truth:
        arrays, facts["objects"] = _located(preset, parts, acts)
        arrays |= {"stems": stems, **acts[0].arrays}
    return Rendered(video, audio, preset.fps, preset.sample_rate, parts[0].label, facts, arrays)


def _cast(preset: PeoplePreset, label: int, rng: np.random.Generator) -> tuple[list[Part], list[np.random.Generator]]:
    """Who takes part, the first source first; and the generators of the others."""
    own = rng.spawn(1)[0]  # leaves ``rng`` where it is
    roles = ["source"] * preset.sources
    roles += ["distractor"] * bool(own.random() < preset.distractor)
    roles += ["offscreen"] * bool(own.random() < preset.offscreen)
    first, end = preset.drawn_labels or (0, len(preset.labels))
    labels = [label]
    for _ in roles[1:]:
        labels.append(int(own.choice([c for c in range(first, end) if c not in labels])))
    width = preset.size[1]
    halves = [(0, width // 2), (width // 2, width)]
    if own.random() < 0.5:
        halves.reverse()
    if sum(role != "offscreen" for role in roles) == 1:
        halves = [(0, width)]
    places = [halves.pop(0) if role != "offscreen" else (0, 0) for role in roles]
    return [Part(*each) for each in zip(roles, labels, places, strict=True)], own.spawn(len(roles) - 1)


def _side(preset: Preset, part: Part) -> str:
    if not part.seen:
        return "off screen"
    middle = sum(part.columns) - preset.size[1]
    return "middle" if middle == 0 else "left" if middle < 0 else "right"


def _caption(preset: PeoplePreset, parts: list[Part], acts: list[Act]) -> str:
    out = ""
    for part, one in zip(parts, acts, strict=True):
        side = _side(preset, part)
        where = f" on the {side}" if side in ("left", "right") else ""
        phrase = one.says.format(where=where)
        out += phrase if not out else f" and {phrase}" if part.seen else f" while {phrase}"
    return out


# --------------------------------------------------------------------------------------------------- picture and sound
def _side_by_side(parts: list[Part], acts: list[Act]) -> np.ndarray:
    halves = [(p.columns, a.picture.video) for p, a in zip(parts, acts, strict=True) if a.picture is not None]
    return np.concatenate([video for _, video in sorted(halves, key=lambda half: half[0])], axis=2)


def _recorded(
    preset: PeoplePreset, parts: list[Part], acts: list[Act], generators: list[np.random.Generator]
) -> tuple[np.ndarray, np.ndarray]:
    """(audio [L,C], stems [S,L,C]): those of the sources, of the distractor (silence), of what is off screen, and the
    room's noise last; all are turned down together where they would clip."""
    each = len(acts[0].sounds)
    rows = {"distractor": preset.sources, "offscreen": preset.slots - 1}
    length = samples_of(preset)
    stems = np.zeros((each * preset.slots + 1, length, preset.channels), np.float32)
    for i, (part, one) in enumerate(zip(parts, acts, strict=True)):
        slot = i if part.role == "source" else rows[part.role]
        bearing = 0.0
        if preset.channels == 2 and not part.seen:
            bearing = float(generators[i - 1].choice([-1.0, 1.0]) * generators[i - 1].uniform(1.1, 1.5))
        for k, wave in enumerate(one.sounds):
            columns = one.columns[k] if one.columns else None
            stems[each * slot + k] = _placed(preset, wave, columns, bearing) if part.sounds else 0.0
    room = np.float32(10 ** (acts[0].floor_db / 20)) * acts[0].room
    stems[-1] = room.reshape(length, preset.channels)
    audio = stems.sum(axis=0)
    peak = float(np.abs(audio).max())
    if peak > 0.98:
        stems *= np.float32(0.98 / peak)
        audio = stems.sum(axis=0)
    return np.ascontiguousarray(audio[: preset.samples]), stems[:, : preset.samples]


def _placed(preset: Preset, wave: np.ndarray, columns: np.ndarray | None, bearing: float) -> np.ndarray:
    """[L,C]: what is heard of a wave [L] that comes from the ``columns`` of the picture, or from ``bearing``."""
    if preset.channels == 1:
        return wave[:, None]
    if columns is None:
        return spatial.binaural(wave, bearing, preset.sample_rate)
    theta = spatial.azimuth(columns, preset.size[1])
    every = np.arange(len(wave)) / preset.sample_rate
    return spatial.binaural(wave, np.interp(every, np.arange(len(theta)) * GRID, theta), preset.sample_rate)


def _located(
    preset: PeoplePreset, parts: list[Part], acts: list[Act]
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Masks, boxes and positions of everything that can be seen, in one shape for all clips of the preset; and the
    objects as JSON."""
    names = ("face", "mouth") if isinstance(preset, FacePreset) else ("head", "left hand", "right hand")
    rows, height, width = len(names) * preset.seen_slots, *preset.size
    masks = np.zeros((preset.frames, rows, height, width), dtype=bool)
    boxes = np.zeros((preset.frames, rows, 4), np.float32)
    positions = np.zeros((preset.frames, rows, 2), np.float32)
    objects = []
    for i, (part, one) in enumerate(zip(parts, acts, strict=True)):
        if one.picture is None or one.picture.masks is None:
            continue
        left, right = part.columns
        first = len(names) * i
        own = slice(first, first + len(names))
        masks[:, own, :, left:right] = one.picture.masks
        boxes[:, own] = one.picture.boxes + np.array([left, 0, left, 0], np.float32)
        positions[:, own] = one.picture.centers + np.array([left, 0], np.float32)
        for k, name in enumerate(names):
            item = {"slot": first + k, "role": part.role, "person": i, "name": name}
            item["boxes"] = np.round(boxes[:, first + k].astype(float), 2).tolist()
            item["positions"] = np.round(positions[:, first + k].astype(float), 2).tolist()
            objects.append(item)
    arrays = {"masks": masks, "boxes": boxes, "positions": positions}
    if not isinstance(preset, FacePreset):
        arrays["hands"] = positions[:, 1:3].copy()
    return arrays, objects
