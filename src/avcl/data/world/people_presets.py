"""Presets with people: ``speech``, ``face_voice``, ``emotion``, ``music``; who speaks, what is said, how, and the
truth about it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np

from avcl.data.world import face, music, player
from avcl.data.world.noise import white
from avcl.data.world.prosody import EMOTIONS, PROSODY, Voice
from avcl.data.world.speech import Articulation, Utterance, plan, sound
from avcl.data.world.values import Preset, Rendered, draw_label

_PEOPLE_SEED = 7_301
TRACT_CM, TRACT_SPREAD = 15.5, 0.085  # median, and deviation of the logarithm
PITCH_HZ, PITCH_SPREAD = 165.0, 0.30

KEYWORDS = ("mama", "papa", "baba", "fish", "moon", "shoe", "tree", "boat", "wheel", "toy")
_CARRIER = (("now", "today", "please", "yes"), ("find", "see", "keep", "follow"), ("the", "a", "this", "that"))
_TAIL = ("again", "here", "soon", "today")


@dataclass(frozen=True)
class FacePreset(Preset):
    """``persons``: how many identities there are · ``link``: correlation between what is heard of a person (tract
    length, pitch) and what is seen of it (width of the head, size of the eyes) · ``lead``: range of the silent,
    closed-mouth start in seconds · ``motion``, ``noise``, ``floor_db``: head motion, pixel noise, level of the room's
    noise."""

    persons: int = 120
    link: float = 0.6
    lead: tuple[float, float] = (0.12, 0.4)
    motion: float = 1.0
    noise: float = 4.0
    floor_db: tuple[float, float] = (-62.0, -48.0)


@dataclass(frozen=True)
class PlayerPreset(Preset):
    """``noise``, ``floor_db``: pixel noise, level of the room's noise."""

    noise: float = 4.0
    floor_db: tuple[float, float] = (-62.0, -48.0)


_PRESETS: tuple[Preset, ...] = (
    FacePreset(
        name="speech",
        scene="face",
        task="speech",
        labels=KEYWORDS,
        fps=25.0,
        difficulty="Five-word sentences from a closed vocabulary, any of 120 voices and faces, every emotion at half "
        "strength; the class is the fourth word. mama, papa and baba have equal lips, so lips alone name "
        ".8 to .87 of the words (what remains is timing); sound names all.",
    ),
    FacePreset(
        name="face_voice",
        scene="face",
        task="face_voice",
        labels=tuple(f"person-{i:03d}" for i in range(120)),
        fps=25.0,
        lead=(0.32, 0.5),
        disjoint=True,
        difficulty="Who speaks? 120 identities; colors, hair, light and pose are drawn anew for every clip. Tract "
        "length and pitch correlate .6 with head width and eye size: choosing between two strangers is "
        "possible in about .73 of the cases at best.",
    ),
    FacePreset(
        name="emotion",
        scene="face",
        task="emotion",
        labels=EMOTIONS,
        fps=25.0,
        difficulty="Six emotions in face and prosody. A third of the clips shows both clearly, a third mostly the "
        "face, a third mostly the voice (truth: emotion_face, emotion_voice), so that both modalities "
        "together beat either.",
    ),
    PlayerPreset(
        name="music",
        scene="player",
        task="music",
        labels=tuple(music.INSTRUMENTS),
        fps=25.0,
        difficulty="A tune of 2 to 13 notes on one of four instruments in one register; hands are where the pitch is "
        "and move when it sounds. The instrument is easy; which notes are played, and when, finds the "
        "pair.",
    ),
)
PRESETS = MappingProxyType({p.name: p for p in _PRESETS})


@dataclass(frozen=True)
class Person:
    """An identity: what is heard and what is seen of it."""

    number: int
    voice: Voice
    look: face.Look


@cache
def person(number: int, link: float) -> Person:
    """Identity ``number``, the same in every preset, split and process with this ``link``.

    z_width = link * z_tract + sqrt(1 - link^2) * e, the same for eyes and pitch; all z are standard normals, cut at
    2.2; pitch and tract correlate by -.5 (long tracts speak low). Brows, nose, lips, spacing and jaw belong to the
    face alone.
    """
    rng = np.random.default_rng([_PEOPLE_SEED, number])
    z = np.clip(rng.standard_normal(12), -2.2, 2.2)
    blur = float(np.sqrt(1 - link**2))
    tract = z[0]
    pitch = -0.5 * z[0] + np.sqrt(0.75) * z[1]
    width = link * tract + blur * z[2]
    eye = link * pitch + blur * z[3]
    voice = Voice(
        tract_cm=float(TRACT_CM * np.exp(TRACT_SPREAD * tract)),
        pitch_hz=float(PITCH_HZ * np.exp(PITCH_SPREAD * pitch)),
        breath=float(0.03 * np.exp(0.5 * z[4])),
        tilt_hz=float(2600 * np.exp(0.25 * z[5])),
        rate=float(np.exp(0.08 * z[6])),
    )
    look = face.Look(
        width=float(0.74 + 0.055 * width),
        eye=float(0.19 + 0.022 * eye),
        spacing=float(0.37 + 0.02 * z[7] + 0.2 * (0.055 * width)),
        brow=float(0.048 + 0.009 * z[8]),
        nose=float(0.26 + 0.03 * z[9]),
        lips=float(0.065 + 0.011 * z[10]),
        jaw=float(0.18 + 0.04 * z[11]),
    )
    return Person(number, voice, look)


def render(preset: Preset, rng: np.random.Generator, *, truth: bool = True) -> Rendered:
    """One clip of a preset with people, a function of ``preset`` and the state of ``rng`` alone.

    ``truth``: also boxes (in ``truth["objects"]`` and as array), masks bool [T,O,H,W], stems [S,L,1] and
    trajectories; slower. Faces: objects are face, mouth; stems voice, room; ``lips`` [T,3] (opening, width, tuck),
    ``gap`` [T] (pixels), ``pitch`` [T] (Hz, 0 where nothing is voiced), ``formants`` [T,3] (Hz). Players: objects are
    head, left hand, right hand; stems left hand, right hand, room; ``hands`` [T,2,2] (pixels x, y).
    """
    if isinstance(preset, FacePreset):
        return _render_face(preset, rng, truth)
    if isinstance(preset, PlayerPreset):
        return _render_player(preset, rng, truth)
    raise TypeError(f"preset {preset.name!r} has no people in it")


def _frame_times(preset: Preset) -> np.ndarray:
    return np.arange(preset.frames) / preset.fps


def _mixed_down(stems: list[np.ndarray], floor_db: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(audio [L,1], stems [S,L,1]) with the room's noise as the last stem; all are turned down together where they
    would clip."""
    room = np.float32(10 ** (floor_db / 20)) * white(rng, len(stems[0]))
    parts = np.stack([*stems, room])[:, :, None].astype(np.float32)
    audio = parts.sum(axis=0)
    peak = float(np.abs(audio).max())
    if peak > 0.98:
        parts *= np.float32(0.98 / peak)
        audio = parts.sum(axis=0)
    return audio, parts


def _objects(names: tuple[str, ...], boxes: np.ndarray) -> list[dict[str, Any]]:
    """Per object its box in every frame: [x0, y0, x1, y1] in pixels."""
    return [{"name": n, "boxes": np.round(boxes[:, i].astype(float), 2).tolist()} for i, n in enumerate(names)]


# ---------------------------------------------------------------------------------------------------------------- faces
def _manner(preset: FacePreset, label: int, rng: np.random.Generator) -> tuple[str, float, float]:
    """(emotion, how much of it the face shows, how much the voice)."""
    if preset.task == "emotion":
        weak, strong = rng.uniform(0.1, 0.4), rng.uniform(0.75, 1.0, 2)
        case = int(rng.integers(3))
        shown = float(weak if case == 1 else strong[0])
        heard = float(weak if case == 2 else strong[1])
        return preset.labels[label], shown, heard
    if preset.task == "speech":
        share = float(rng.uniform(0.2, 0.5))
        return EMOTIONS[rng.integers(len(EMOTIONS))], share, share
    return "neutral", 1.0, 1.0


def _sentence(preset: FacePreset, label: int, rng: np.random.Generator) -> tuple[str, ...]:
    words = [str(rng.choice(options)) for options in _CARRIER]
    keyword = KEYWORDS[label] if preset.task == "speech" else str(rng.choice(KEYWORDS))
    tail = str(rng.choice([w for w in _TAIL if w != words[0]]))
    return (*words, keyword, tail)


def _render_face(preset: FacePreset, rng: np.random.Generator, truth: bool) -> Rendered:
    label = draw_label(preset, rng)
    number = label if preset.task == "face_voice" else int(rng.integers(preset.persons))
    who = person(number, preset.link)
    emotion, shown, heard = _manner(preset, label, rng)
    words = _sentence(preset, label, rng)
    prosody = PROSODY["neutral"].toward(PROSODY[emotion], heard)
    expression = face.EXPRESSION["neutral"].toward(face.EXPRESSION[emotion], shown).varied(rng)
    gain_db, floor_db = float(rng.normal(0, 2.0)), float(rng.uniform(*preset.floor_db))
    lead = float(rng.uniform(*preset.lead))

    utterance = plan(words, rng, rate=who.voice.rate * prosody.rate, lead=lead, seconds=preset.seconds)
    articulation = Articulation(utterance, who.voice, prosody, rng)
    wave = sound(articulation, rng, sample_rate=preset.sample_rate, samples=preset.samples)
    audio, stems = _mixed_down([wave * np.float32(10 ** (gain_db / 20))], floor_db, rng)

    times = _frame_times(preset)
    lips = articulation.lips(times)
    scene = face.draw_scene(rng, *preset.size, motion=preset.motion, noise=preset.noise)
    motion = face.draw_motion(rng, times, lips, seconds=preset.seconds, amount=preset.motion)
    picture = face.render_face(who.look, expression, motion, scene, rng, masks=truth)

    text = " ".join(words)
    facts: dict[str, Any] = {
        "class": preset.labels[label],
        "caption": f"a person says {text}" if emotion == "neutral" else f"a person who is {emotion} says {text}",
        "offset": 0.0,
        "text": text,
        **utterance.truth(),
        "identity": _identity_truth(who),
        "emotion": emotion,
        "emotion_face": round(shown, 4),
        "emotion_voice": round(heard, 4),
        "pitch_hz": round(_mean_pitch(articulation), 3),
        "gain_db": round(gain_db, 4),
        "floor_db": round(floor_db, 4),
        "events": {"audio": _talking(utterance), "video": _moving(articulation, preset.seconds)},
    }
    arrays: dict[str, np.ndarray] = {}
    if truth and picture.masks is not None:
        facts["objects"] = _objects(("face", "mouth"), picture.boxes)
        voiced = articulation.amplitudes(times)[0] > 0.2
        arrays = {
            "masks": picture.masks,
            "boxes": picture.boxes,
            "stems": stems,
            "lips": np.stack(lips, axis=1).astype(np.float32),
            "gap": picture.gap.astype(np.float32),
            "pitch": np.where(voiced, articulation.pitch(times), 0.0).astype(np.float32),
            "formants": articulation.formants(times).astype(np.float32),
        }
    return Rendered(picture.video, audio, preset.fps, preset.sample_rate, label, facts, arrays)


def _identity_truth(who: Person) -> dict[str, Any]:
    voice, look = who.voice, who.look
    return {
        "person": who.number,
        "tract_cm": round(voice.tract_cm, 4),
        "pitch_hz": round(voice.pitch_hz, 3),
        "head_width": round(look.width, 4),
        "eye_size": round(look.eye, 4),
    }


def _mean_pitch(articulation: Articulation) -> float:
    """Geometric mean of the pitch (Hz) over the voiced parts."""
    at = np.arange(0.0, articulation.utterance.seconds, 0.01)
    voiced = articulation.amplitudes(at)[0] > 0.2
    return float(np.exp(np.log(articulation.pitch(at[voiced])).mean())) if voiced.any() else 0.0


def _talking(utterance: Utterance) -> list[list[float]]:
    """Intervals of sound: words, pauses between them cut out."""
    spans: list[list[float]] = []
    for word in utterance.words:
        if spans and word.start - spans[-1][1] < 1e-6:
            spans[-1][1] = word.end
        else:
            spans.append([word.start, word.end])
    return [[round(a, 5), round(b, 5)] for a, b in spans]


def _moving(articulation: Articulation, seconds: float) -> list[list[float]]:
    """The interval in which the lips are on the move: from their first to their last opening, to 5 ms."""
    at = np.arange(0.0, seconds, 0.005)
    active = at[articulation.lips(at)[0] > 0.02]
    return [[round(float(active[0]), 5), round(float(active[-1]), 5)]] if len(active) else []


# -------------------------------------------------------------------------------------------------------------- players
def _render_player(preset: PlayerPreset, rng: np.random.Generator, truth: bool) -> Rendered:
    label = draw_label(preset, rng)
    instrument = music.INSTRUMENTS[preset.labels[label]]
    notes = music.compose(instrument, rng, preset.seconds)
    gain_db, floor_db = float(rng.normal(0, 2.0)), float(rng.uniform(*preset.floor_db))
    heard = music.sound(instrument, notes, rng, sample_rate=preset.sample_rate, samples=preset.samples)
    gain = np.float32(10 ** (gain_db / 20))
    audio, stems = _mixed_down([gain * heard["left"], gain * heard["right"]], floor_db, rng)

    times = _frame_times(preset)
    scene = face.draw_scene(rng, *preset.size, noise=preset.noise)
    stage = player.draw_stage(rng, scene, times)
    picture = player.render_player(instrument, notes, times, stage, rng, masks=truth)
    facts: dict[str, Any] = {
        "class": instrument.name,
        "caption": f"a person plays the {instrument.name}",
        "offset": 0.0,
        "notes": [_note_truth(n) for n in notes],
        "gain_db": round(gain_db, 4),
        "floor_db": round(floor_db, 4),
        "events": {
            kind: [[round(n.onset, 5), round(n.onset + n.duration, 5)] for n in notes] for kind in ("audio", "video")
        },
    }
    arrays: dict[str, np.ndarray] = {}
    if truth and picture.masks is not None:
        facts["objects"] = _objects(("head", "left hand", "right hand"), picture.boxes)
        arrays = {"masks": picture.masks, "boxes": picture.boxes, "stems": stems, "hands": picture.hands}
    return Rendered(picture.video, audio, preset.fps, preset.sample_rate, label, facts, arrays)


def _note_truth(note: music.Note) -> dict[str, Any]:
    return {
        "onset": round(note.onset, 5),
        "duration": round(note.duration, 5),
        "pitch": note.pitch,
        "hz": round(note.hz, 3),
        "velocity": round(note.velocity, 4),
        "hand": note.hand,
    }
