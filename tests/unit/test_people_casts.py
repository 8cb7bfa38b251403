"""Several people in a clip: a second source, a silent face, a voice off screen; two ears; one schema of the truth."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest

from avcl.data.world import PRESETS, render
from avcl.data.world.people_presets import PeoplePreset
from avcl.data.world.values import Rendered

PEOPLE = [name for name, preset in PRESETS.items() if isinstance(preset, PeoplePreset)]
PARTS = {"face": (2, 1), "player": (3, 2)}  # objects and stems of one person

LINE = {"class", "caption", "offset", "events", "objects", "gain_db"}
SOLIDS = LINE | {"floor", "retimed"}
PERSON = {"events", "gain_db", "floor_db"}
TALKER = PERSON | {"text", "words", "phonemes", "identity", "emotion", "emotion_face", "emotion_voice", "pitch_hz"}
PLAYER = PERSON | {"instrument", "notes"}


def clip(name: str, index: int, **changes) -> Rendered:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return render(replace(PRESETS[name], **changes), 5, index, stream="test")


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_schema_of_the_truth_is_that_of_the_documents(name):
    preset = PRESETS[name]
    for index in range(2):
        truth = render(name, 1, index).truth
        own = {"face": TALKER, "player": PLAYER}.get(preset.scene)
        expected = LINE | {"side", "others"} | own if own else SOLIDS | ({"segments"} if name == "events" else set())
        assert set(truth) == expected
        assert set(truth["events"]) == {"audio", "video"}
        for item in truth["objects"]:
            assert {"slot", "role", "boxes", "positions"} <= set(item)
            assert len(item["boxes"]) == len(item["positions"]) == preset.frames


@pytest.mark.parametrize("name", PEOPLE)
def test_a_silent_second_person_and_a_sound_off_screen(name):
    objects, stems = PARTS[PRESETS[name].scene]
    shapes, sides = set(), set()
    for index in range(4):
        made = clip(name, index, distractor=0.7, offscreen=0.7)
        shapes.add(json.dumps({k: v.shape for k, v in made.arrays.items()}))
        others = {one["role"]: one for one in made.truth["others"]}
        masks, heard = made.arrays["masks"], made.arrays["stems"]
        assert masks.shape[1] == 2 * objects
        assert len(heard) == 3 * stems + 1
        np.testing.assert_allclose(heard.sum(axis=0), made.audio, atol=1e-6)
        assert heard[:stems].any()
        assert not heard[stems : 2 * stems].any()  # the distractor is silent
        assert bool(heard[2 * stems : 3 * stems].any()) == ("offscreen" in others)
        assert bool(masks[:, objects:].any()) == ("distractor" in others)
        classes = [made.truth["class"], *(one["class"] for one in others.values())]
        assert len(set(classes)) == len(classes)
        assert set(classes) <= set(PRESETS[name].labels)
        if "distractor" in others:
            assert others["distractor"]["events"]["audio"] == []
            assert "silently" in made.truth["caption"]
            for who, rows in (
                (made.truth["side"], slice(0, objects)),
                (others["distractor"]["side"], slice(objects, 6)),
            ):
                columns = np.nonzero(masks[:, rows].any(axis=(0, 1, 2)))[0]
                assert (columns < 32).all() if who == "left" else (columns >= 32).all()
                sides.add(who)
            moved = np.ptp(made.arrays["positions"][:, objects:], axis=0).max()
            assert moved > 0.5
        else:
            assert made.truth["side"] == "middle"
        if "offscreen" in others:
            assert others["offscreen"]["events"]["video"] == []
            assert "off screen" in made.truth["caption"]
    assert len(shapes) == 1
    assert sides == {"left", "right"}


def test_the_others_are_drawn_beside_the_first_person_and_not_from_it():
    alone, together = clip("speech", 3), clip("speech", 3, sources=2, offscreen=1.0)
    for key in ("text", "words", "phonemes", "identity", "emotion"):
        assert alone.truth[key] == together.truth[key]
    np.testing.assert_allclose(alone.arrays["stems"][0], together.arrays["stems"][0], atol=1e-6)
    people = [together.truth["identity"]["person"], *(one["identity"]["person"] for one in together.truth["others"])]
    assert len(set(people)) == 3


def test_strangers_in_face_voice_come_from_the_same_split():
    for index in range(3):
        made = clip("face_voice", index, distractor=1.0, offscreen=1.0, fps=5.0)
        people = [made.truth["identity"]["person"], *(one["identity"]["person"] for one in made.truth["others"])]
        assert all(number >= 108 for number in people)  # the last tenth of 120
        assert len(set(people)) == 3


@pytest.mark.parametrize("name", ["emotion", "music"])
def test_two_ears_hear_people_where_they_are_seen(name):
    _, stems = PARTS[PRESETS[name].scene]
    for index in range(2):
        mono = clip(name, index, sources=2)
        made = clip(name, index, sources=2, channels=2)
        assert np.array_equal(made.video, mono.video)
        sides = [made.truth["side"], made.truth["others"][0]["side"]]
        assert set(sides) == {"left", "right"}
        for i, side in enumerate(sides):
            left, right = (made.arrays["stems"][stems * i : stems * (i + 1)].sum(axis=0).astype(float)).T
            level = 10 * np.log10((right**2).sum() / (left**2).sum())
            assert 1.5 < (level if side == "right" else -level) < 7
            n = 2 * len(left)
            match = np.fft.irfft(np.fft.rfft(left, n) * np.conj(np.fft.rfft(right, n)))
            lag = (int(np.argmax(np.concatenate([match[-16:], match[:17]]))) - 16) / 16_000
            assert 0.0001 < (lag if side == "right" else -lag) < 0.0005


@pytest.mark.parametrize("name", PEOPLE)
def test_positions_lie_in_their_boxes(name):
    for index in range(2):
        made = clip(name, index, sources=2)
        x, y = np.moveaxis(made.arrays["positions"], -1, 0)
        x0, y0, x1, y1 = np.moveaxis(made.arrays["boxes"], -1, 0)
        slack = 1.5
        assert ((x >= x0 - slack) & (x <= x1 + slack) & (y >= y0 - slack) & (y <= y1 + slack)).all()
        assert [o["slot"] for o in made.truth["objects"]] == list(range(made.arrays["masks"].shape[1]))
        assert [o["person"] for o in made.truth["objects"]][-1] == 1
