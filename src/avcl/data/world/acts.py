"""What one person of a clip does: a talker from sentence to lips and wave, a player from notes to hands and wave."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from avcl.data.world import face, music, player
from avcl.data.world.noise import white
from avcl.data.world.people_presets import CARRIER, KEYWORDS, TAIL, FacePreset, PeoplePreset, Person, person
from avcl.data.world.prosody import EMOTIONS, PROSODY
from avcl.data.world.speech import Articulation, Utterance, plan, sound
from avcl.data.world.values import Preset

GRID = 0.01  # seconds between the instants at which directions are computed


@dataclass(frozen=True)
class Part:
    """What an actor is asked for. ``role``: "source", "distractor" (silent) or "offscreen" (unseen) · ``columns``: the
    part of the picture it has · ``background`` [3,H,W]: that of the first person · ``taken``: identities of others."""

    role: str
    label: int
    columns: tuple[int, int]
    background: np.ndarray | None = None
    taken: tuple[int, ...] = ()

    @property
    def seen(self) -> bool:
        return self.role != "offscreen"

    @property
    def sounds(self) -> bool:
        return self.role != "distractor"


@dataclass(frozen=True)
class Act:
    """What an actor does. ``sounds``: one wave [L] a stem · ``columns``: of each, the picture's column [G] on a grid of
    10 ms (empty where mono or unseen) · ``room``: white noise [L] · ``facts``, ``arrays``: what is true of it; arrays
    that begin with an axis of time have one row a frame."""

    says: str
    facts: dict[str, Any]
    sounds: list[np.ndarray]
    columns: list[np.ndarray]
    room: np.ndarray
    floor_db: float
    background: np.ndarray | None = None
    picture: face.Picture | player.Picture | None = None
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    identity: int = -1


def _times(preset: Preset) -> np.ndarray:
    return np.arange(preset.frames) / preset.fps


def _grid(preset: Preset) -> np.ndarray:
    """Instants of the directions of sound, whatever the frame rate."""
    return np.arange(0.0, preset.drawn + GRID, GRID)


def samples_of(preset: Preset) -> int:
    """Samples of what is drawn; the clip may end sooner."""
    return round(preset.drawn * preset.sample_rate)


def _rounded(spans: list[list[float]]) -> list[list[float]]:
    return [[round(float(a), 5), round(float(b), 5)] for a, b in spans]


def _scene(preset: PeoplePreset, part: Part, rng: np.random.Generator, motion: float) -> tuple[face.Scene, np.ndarray]:
    """The nuisances of a person in its part of the picture, and the background of the whole."""
    scene = face.draw_scene(rng, *preset.size, motion=motion, noise=preset.noise)
    whole = scene.background if part.background is None else part.background
    return replace(scene, background=whole[:, :, part.columns[0] : part.columns[1]]), whole


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
    words = [str(rng.choice(options)) for options in CARRIER]
    keyword = KEYWORDS[label] if preset.task == "speech" else str(rng.choice(KEYWORDS))
    tail = str(rng.choice([w for w in TAIL if w != words[0]]))
    return (*words, keyword, tail)


def _stranger(preset: FacePreset, part: Part, rng: np.random.Generator) -> int:
    """The number of a person: the label where identity is the class, else anyone who is not there already."""
    if preset.task == "face_voice":
        return part.label
    number = int(rng.integers(preset.persons))
    while number in part.taken:
        number = (number + 1) % preset.persons
    return number


def talk(preset: PeoplePreset, part: Part, rng: np.random.Generator, truth: bool) -> Act:
    assert isinstance(preset, FacePreset)
    who = person(_stranger(preset, part, rng), preset.link)
    emotion, shown, heard = _manner(preset, part.label, rng)
    words = _sentence(preset, part.label, rng)
    prosody = PROSODY["neutral"].toward(PROSODY[emotion], heard)
    expression = face.EXPRESSION["neutral"].toward(face.EXPRESSION[emotion], shown).varied(rng)
    gain_db, floor_db = float(rng.normal(0, 2.0)), float(rng.uniform(*preset.floor_db))
    lead = float(rng.uniform(*preset.lead))

    utterance = plan(words, rng, rate=who.voice.rate * prosody.rate, lead=lead, seconds=preset.drawn)
    articulation = Articulation(utterance, who.voice, prosody, rng)
    wave = np.zeros(samples_of(preset), np.float32)
    if part.sounds:
        wave = sound(articulation, rng, sample_rate=preset.sample_rate, samples=len(wave))
    room = white(rng, len(wave) * preset.channels)
    text = " ".join(words)
    facts: dict[str, Any] = {
        "text": text,
        **utterance.truth(),
        "identity": _identity_truth(who),
        "emotion": emotion,
        "emotion_face": round(shown, 4),
        "emotion_voice": round(heard, 4),
        "pitch_hz": round(_mean_pitch(articulation), 3),
        "gain_db": round(gain_db, 4),
        "floor_db": round(floor_db, 4),
        "events": {
            "audio": _talking(utterance) if part.sounds else [],
            "video": _moving(articulation, preset.drawn) if part.seen else [],
        },
    }
    name = "a person" if part.seen else "a voice off screen"
    mood = "" if emotion == "neutral" else f" who is {emotion}"
    verb = f"says {text}" if part.sounds else "moves the lips silently"
    act = Act(
        f"{name}{{where}}{mood} {verb}",
        facts,
        [wave * np.float32(10 ** (gain_db / 20))],
        [],
        room,
        floor_db,
        identity=who.number,
    )
    if not part.seen:
        return act
    return _shown_face(preset, part, rng, truth, act, who, expression, articulation)


def _shown_face(
    preset: FacePreset,
    part: Part,
    rng: np.random.Generator,
    truth: bool,
    act: Act,
    who: Person,
    expression: face.Expression,
    articulation: Articulation,
) -> Act:
    times = _times(preset)
    lips = articulation.lips(times)
    scene, whole = _scene(preset, part, rng, preset.motion)
    heading = copy.deepcopy(rng) if preset.channels == 2 else rng
    motion = face.draw_motion(rng, times, lips, seconds=preset.drawn, amount=preset.motion)
    picture = face.render_face(who.look, expression, motion, scene, rng, masks=truth)
    columns = []
    if preset.channels == 2:  # the same motion, looked at more often
        grid = _grid(preset)
        often = face.draw_motion(heading, grid, articulation.lips(grid), seconds=preset.drawn, amount=preset.motion)
        columns = [part.columns[0] + face.head_column(scene, often, *scene.background.shape[1:])]
    arrays = {}
    if truth:
        voiced = articulation.amplitudes(times)[0] > 0.2
        arrays = {
            "lips": np.stack(lips, axis=1).astype(np.float32),
            "gap": picture.gap.astype(np.float32),
            "pitch": np.where(voiced, articulation.pitch(times), 0.0).astype(np.float32),
            "formants": articulation.formants(times).astype(np.float32),
        }
    return replace(act, columns=columns, background=whole, picture=picture, arrays=arrays)


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
    return _rounded(spans)


def _moving(articulation: Articulation, seconds: float) -> list[list[float]]:
    """The interval in which the lips are on the move: from their first to their last opening, to 5 ms."""
    at = np.arange(0.0, seconds, 0.005)
    active = at[articulation.lips(at)[0] > 0.02]
    return _rounded([[active[0], active[-1]]]) if len(active) else []


# -------------------------------------------------------------------------------------------------------------- players
def play(preset: PeoplePreset, part: Part, rng: np.random.Generator, truth: bool) -> Act:
    instrument = music.INSTRUMENTS[preset.labels[part.label]]
    notes = music.compose(instrument, rng, preset.drawn)
    gain_db, floor_db = float(rng.normal(0, 2.0)), float(rng.uniform(*preset.floor_db))
    length = samples_of(preset)
    heard = {side: np.zeros(length, np.float32) for side in ("left", "right")}
    if part.sounds:
        heard = music.sound(instrument, notes, rng, sample_rate=preset.sample_rate, samples=length)
    gain = np.float32(10 ** (gain_db / 20))
    room = white(rng, length * preset.channels)
    spans = _rounded([[n.onset, n.onset + n.duration] for n in notes])
    facts: dict[str, Any] = {
        "instrument": instrument.name,
        "notes": [_note_truth(n) for n in notes],
        "gain_db": round(gain_db, 4),
        "floor_db": round(floor_db, 4),
        "events": {"audio": spans if part.sounds else [], "video": spans if part.seen else []},
    }
    says = f"a person{{where}} plays the {instrument.name}"
    if not part.sounds:
        says += " silently"
    if not part.seen:
        says = f"a {instrument.name} sounds off screen"
    act = Act(says, facts, [gain * heard["left"], gain * heard["right"]], [], room, floor_db)
    if not part.seen:
        return act
    times = _times(preset)
    scene, whole = _scene(preset, part, rng, 1.0)
    stage = player.draw_stage(rng, scene, times)
    picture = player.render_player(instrument, notes, times, stage, rng, masks=truth)
    columns = []
    if preset.channels == 2:
        found = player.hand_columns(instrument, notes, _grid(preset), scene, *scene.background.shape[1:])
        columns = [part.columns[0] + found[side] for side in ("left", "right")]
    return replace(act, columns=columns, background=whole, picture=picture)


def _note_truth(note: music.Note) -> dict[str, Any]:
    return {
        "onset": round(note.onset, 5),
        "duration": round(note.duration, 5),
        "pitch": note.pitch,
        "hz": round(note.hz, 3),
        "velocity": round(note.velocity, 4),
        "hand": note.hand,
    }
