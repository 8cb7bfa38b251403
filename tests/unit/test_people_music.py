"""The player: onsets and pitches measured in the sound, and hands measured in the picture, are those of the note
list."""

from __future__ import annotations

import numpy as np
import pytest

from avcl.data.world import music, player
from avcl.data.world.face import draw_scene
from avcl.data.world.music import INSTRUMENTS, Note, compose, hand_path

RATE = 16_000
NAMES = tuple(INSTRUMENTS)


def tune(name: str, seed: int) -> tuple[tuple[Note, ...], np.ndarray]:
    rng = np.random.default_rng(seed)
    notes = compose(INSTRUMENTS[name], rng, 3.0)
    stems = music.sound(INSTRUMENTS[name], notes, rng, sample_rate=RATE, samples=3 * RATE)
    return notes, stems["left"] + stems["right"]


def single(name: str, note: Note) -> np.ndarray:
    stems = music.sound(INSTRUMENTS[name], [note], np.random.default_rng(0), sample_rate=RATE, samples=2 * RATE)
    return stems["left"] + stems["right"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pitch", [57, 66, 81])
def test_measured_pitch_of_a_note(name, pitch):
    note = Note(0.2, 0.6, pitch, 0.7, "left")
    wave = single(name, note)[round(0.26 * RATE) : round(0.66 * RATE)]
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 1 << 17))
    frequency = np.fft.rfftfreq(1 << 17, 1 / RATE)
    near = (frequency > 0.94 * note.hz) & (frequency < 1.06 * note.hz)
    assert frequency[near][np.argmax(spectrum[near])] == pytest.approx(note.hz, rel=0.004)
    partials = INSTRUMENTS[name].frequencies(note.hz)[:3]
    for f in partials[partials < 7000]:
        band = (frequency > 0.97 * f) & (frequency < 1.03 * f)
        assert frequency[band][np.argmax(spectrum[band])] == pytest.approx(f, rel=0.006)


@pytest.mark.parametrize("name", NAMES)
def test_onsets_are_continuous(name):
    """Half a sample later sounds half a sample later: no rounding to a sample, let alone to a frame."""
    base = Note(0.25, 0.4, 69, 0.8, "left")
    clean = music.Instrument(**{**INSTRUMENTS[name].__dict__, "knock": 0.0})
    make = music._bowed if clean.excitation == "bowed" else music._decaying

    def at(late: float) -> np.ndarray:
        return make(clean, base, 16 * RATE, 6400, late, np.random.default_rng(0))

    # 16 times oversampled: the note seen 5 / 16 of a sample later is the same note, shifted
    shifted, whole = at(5 / (16 * RATE)), at(0.0)
    if clean.excitation == "bowed":  # its hiss is drawn anew at each sample
        window = np.hanning(65)
        shifted, whole = np.convolve(shifted, window, "same"), np.convolve(whole, window, "same")
    scale = np.abs(whole).max()
    np.testing.assert_allclose(
        shifted[100:6000], whole[105:6005], atol=(0.25 if clean.excitation == "bowed" else 1e-6) * scale
    )


@pytest.mark.parametrize("name", NAMES)
def test_onsets_measured_in_the_sound_are_the_true_ones(name):
    """High-passed energy in 2 ms steps: the steepest rise near each note lies at its onset."""
    tolerance = 0.04 if name == "cello" else 0.008
    errors = []
    for seed in range(6):
        notes, wave = tune(name, seed)
        rough = np.diff(wave, prepend=0.0) if name != "cello" else wave
        step = 32
        energy = np.array([np.sum(rough[i : i + 2 * step] ** 2) for i in range(0, len(rough) - 2 * step, step)])
        rise = np.diff(np.sqrt(energy), prepend=0.0)
        for note in notes:
            near = slice(max(int((note.onset - 0.05) * RATE / step), 0), int((note.onset + 0.07) * RATE / step))
            errors.append((near.start + int(np.argmax(rise[near])) + 1) * step / RATE - note.onset)
    assert np.median(np.abs(errors)) < tolerance
    assert np.mean(np.abs(errors) < 2 * tolerance) > 0.85, np.round(errors, 3)


def test_before_the_first_note_there_is_silence():
    for name in NAMES:
        notes, wave = tune(name, 3)
        assert np.abs(wave[: int(np.floor(notes[0].onset * RATE))]).max() == 0.0
        assert np.abs(wave).max() > 0.1


def test_notes_obey_their_hands():
    for name in NAMES:
        counts = []
        for seed in range(60):
            notes = compose(INSTRUMENTS[name], np.random.default_rng(seed), 3.0)
            counts.append(len(notes))
            assert notes == tuple(sorted(notes))
            for hand in ("left", "right"):
                onsets = np.array([n.onset for n in notes if n.hand == hand])
                assert (np.diff(onsets) >= 0.169).all()
            for n in notes:
                assert 0.1 <= n.onset < n.onset + n.duration <= 3.0
                assert music.LOWEST <= n.pitch <= music.HIGHEST
                assert 0 < n.velocity <= 1
                assert n.hand == ("right" if INSTRUMENTS[name].two_handed and n.pitch >= 69 else "left")
        assert min(counts) >= 1
        assert 4 < np.mean(counts) < 12


@pytest.mark.parametrize("name", ["piano", "marimba"])
def test_hands_are_at_the_key_and_down_exactly_at_the_onset(name):
    instrument = INSTRUMENTS[name]
    for seed in range(10):
        notes = compose(instrument, np.random.default_rng(seed), 3.0)
        for hand in ("left", "right"):
            own = [n for n in notes if n.hand == hand]
            if not own:
                continue
            onsets = np.array([n.onset for n in own])
            path = hand_path(instrument, own, onsets, 0.5)
            np.testing.assert_allclose(path.along, [music.place_of(n.pitch) for n in own], atol=1e-9)
            np.testing.assert_allclose(path.height, 0.0, atol=1e-9)
            before = hand_path(instrument, own, onsets - 0.03, 0.5)
            free = np.append(True, np.diff(onsets) - [n.duration for n in own[:-1]] > 0.08)
            assert (before.height[free] > 0.1).all()
            times = np.linspace(0, 3, 1500)
            assert np.abs(np.diff(hand_path(instrument, own, times, 0.5).along)).max() < 0.15  # no jumps


def test_plucks_cross_and_bows_turn_at_the_onset():
    for seed in range(10):
        notes = compose(INSTRUMENTS["guitar"], np.random.default_rng(seed), 3.0)
        onsets = np.array([n.onset for n in notes])
        around = np.stack([hand_path(INSTRUMENTS["guitar"], notes, onsets + d, 0.5).stroke for d in (-0.02, 0.0, 0.02)])
        np.testing.assert_allclose(around[1], 0.0, atol=1e-9)
        assert (around[0] * around[2] < 0).all()
        notes = compose(INSTRUMENTS["cello"], np.random.default_rng(seed), 3.0)
        for i, n in enumerate(notes):
            at = n.onset + np.array([0.005, 0.02, 0.5 * n.duration])
            stroke = hand_path(INSTRUMENTS["cello"], notes, at, 0.5).stroke
            direction = np.sign(np.diff(stroke))
            assert (direction == (1 if i % 2 == 0 else -1)).all()


@pytest.mark.parametrize("name", NAMES)
def test_hands_in_the_picture_are_where_the_notes_are(name):
    instrument = INSTRUMENTS[name]
    times = np.arange(75) / 25
    rng = np.random.default_rng(11)
    notes = compose(instrument, rng, 3.0)
    stage = player.draw_stage(rng, draw_scene(rng, 64, 64, noise=0.0), times)
    shown = player.render_player(instrument, notes, times, stage, rng, masks=True)
    assert shown.video.shape == (75, 64, 64, 3)
    rows, columns = np.mgrid[0:64, 0:64] + 0.5
    for k, o in ((0, 1), (1, 2)):
        for t in range(75):
            mask = shown.masks[t, o]
            x, y = shown.centers[t, k + 1]
            if 4 < x < 60 and 4 < y < 60:
                assert np.hypot(columns[mask].mean() - x, rows[mask].mean() - y) < 0.6
                ring = shown.video[t][mask].astype(float)
                assert ring.std() < 90
    if instrument.two_handed:  # low notes left, high notes right: measured against the place of the hand on the frame
        order = {h: [(n.pitch, shown.centers[min(round(n.onset * 25), 74), k + 1, 0]) for n in notes if n.hand == h]
                 for k, h in enumerate(("left", "right"))}  # fmt: skip
        for pairs in order.values():
            if len({p for p, _ in pairs}) > 1:
                pitches, places = np.array(pairs).T
                assert np.corrcoef(pitches, places)[0, 1] > 0.9


def test_a_pressed_key_is_seen_while_it_sounds():
    rng = np.random.default_rng(2)
    times = np.arange(50) / 25
    note = Note(0.5, 0.8, 64, 0.7, "left")
    scene = draw_scene(rng, 128, 128, noise=0.0)
    stage = player.draw_stage(rng, scene, times)
    shown = player.render_player(INSTRUMENTS["piano"], [note], times, stage, np.random.default_rng(0))
    center_x = 0.5 * 128 + 0.5 * scene.offset[0] * 128
    center_y = 0.5 * 128 + 0.4 * scene.offset[1] * 128
    scale = 64 * min(scene.zoom, 1.0)
    column, row = int(center_x + scale * player.KEY_PLACES[64]), int(center_y + scale * 0.76)
    key = shown.video[:, row, column, 0].astype(float)
    down = (times >= note.onset) & (times < note.onset + note.duration)
    assert key[down].max() < key[~down].min() - 40
