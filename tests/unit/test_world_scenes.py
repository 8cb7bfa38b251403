"""Scenes of solids: what is seen and what is heard belong together, the truth is true, and nuisances say nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from avcl.data.world import PRESETS, render
from avcl.data.world.captions import VOCABULARY
from avcl.data.world.motion import draw_motion
from avcl.data.world.presets import generator
from avcl.data.world.scene import ObjectPreset, draw_scene

OBJECTS = [name for name, preset in PRESETS.items() if isinstance(preset, ObjectPreset)]
STATISTICS = Path(__file__).parents[1] / "data" / "world_statistics.json"


def plain(name: str, **changes) -> ObjectPreset:
    """A preset without jitter, noise or gain: what is left is the scene itself."""
    preset = PRESETS[name]
    assert isinstance(preset, ObjectPreset)
    return replace(preset, jitter=0, noise=0.0, gain_db=0.0, **changes)


# ------------------------------------------------------------------------------------------------------------ the frame
@pytest.mark.parametrize("name", list(PRESETS))
def test_clips_have_the_shapes_of_their_preset_and_are_finite(name):
    preset = PRESETS[name]
    clip = render(name, 0, 3)
    assert clip.video.dtype == np.uint8
    assert clip.video.shape == (preset.frames, *preset.size, 3)
    assert clip.audio.dtype == np.float32
    assert clip.audio.shape == (preset.samples, preset.channels)
    assert np.isfinite(clip.audio).all()
    assert np.abs(clip.audio).max() <= 1.0
    assert clip.audio.std() > 1e-4
    assert clip.video.std() > 5
    for array in clip.arrays.values():
        assert np.isfinite(array).all()
    assert json.loads(json.dumps(clip.truth, allow_nan=False))["caption"]
    assert preset.labels[clip.label] == clip.truth["class"]
    np.testing.assert_allclose(clip.arrays["stems"].sum(axis=0), clip.audio, atol=2e-6)
    bare = render(name, 0, 3, truth=False)
    assert np.array_equal(bare.video, clip.video)
    assert np.array_equal(bare.audio, clip.audio)


@pytest.mark.parametrize("name", OBJECTS)
def test_statistics_are_frozen(name):
    """A change here changes every number measured on the world: raise its RENDER_VERSIONS and write the file anew."""
    assert statistics(name) == pytest.approx(json.loads(STATISTICS.read_text())[name], rel=2e-3, abs=1e-4)


def statistics(name: str, clips: int = 10) -> dict[str, float]:
    drawn = [render(name, 7, i) for i in range(clips)]
    heard = [o for c in drawn for o in c.truth["objects"] if o["role"] != "distractor"]
    return {
        "video mean": float(np.mean([c.video.mean() for c in drawn])),
        "video deviation": float(np.mean([c.video.std() for c in drawn])),
        "frame difference": float(np.mean([np.abs(np.diff(c.video.astype(int), axis=0)).mean() for c in drawn])),
        "level dB": float(np.mean([20 * np.log10(c.audio.std()) for c in drawn])),
        "covered": float(np.mean([c.arrays["masks"].mean() for c in drawn])),
        "objects": float(np.mean([len(c.truth["objects"]) for c in drawn])),
        "onsets": float(np.mean([len(o["onsets"]) for o in heard])),
        "pitch": float(np.mean([o["pitch"] for o in heard])),
        "offset": float(np.mean([abs(c.truth["offset"]) for c in drawn])),
        "labels": float(np.mean([c.label for c in drawn])),
    }


# ---------------------------------------------------------------------------------------------------- seen where heard
@pytest.mark.parametrize("kind", ["bounce", "shake", "rattle", "pluck", "bow"])
def test_motions_stay_in_their_lane_and_sound_where_they_turn(kind):
    for i in range(20):
        rng = np.random.default_rng(i)
        radius = float(rng.uniform(6, 10))
        lane = (0.0, 32.0) if i % 2 else (0.0, 64.0)
        motion = draw_motion(rng, kind, radius, lane, 58.0, 3.0)
        t = np.linspace(-0.9, 3.9, 2000)
        pose = motion.at(t)
        assert pose.x.min() >= lane[0] - 1e-6
        assert pose.x.max() <= lane[1] + 1e-6
        assert pose.y.max() <= 58.0
        times, forces = motion.impacts()
        inside = times[(times > -0.8) & (times < 3.8)]
        assert (np.diff(motion.times) > 0).all()
        if kind == "bow":
            assert motion.speed(t).max() > 0.3
            slide = np.hypot(np.gradient(pose.x, t), np.gradient(pose.y, t))
            assert np.corrcoef(slide, motion.speed(t))[0, 1] > 0.9  # loud where fast
            continue
        assert len(inside) >= 3
        assert (forces > 0).all()
        if kind == "bounce":  # lowest at the impact
            assert motion.at(inside).y == pytest.approx(np.full(len(inside), 58.0 - 0.9 * radius))
        elif kind in ("shake", "rattle"):  # at rest at the stop, on the outside
            before, after = motion.at(inside - 1e-4), motion.at(inside + 1e-4)
            assert np.abs(np.hypot(after.x - before.x, after.y - before.y)).max() < 0.01
        else:  # farthest out when let go
            away = np.hypot(motion.at(inside).x - motion.center[0], motion.at(inside).y - motion.center[1])
            assert away == pytest.approx(motion.reach[np.searchsorted(motion.times, inside)], rel=1e-3)


@pytest.mark.parametrize("name", ["sync", "localization-same"])
def test_sound_begins_at_the_instant_of_the_truth(name):
    preset, found = PRESETS[name], 0
    for i in range(12):
        clip = render(name, 1, i)
        source = clip.truth["objects"][0]
        wave = clip.arrays["stems"][0, :, 0].astype(float)
        for at, _ in source["onsets"]:
            n = round(at * preset.sample_rate)
            if n < 400 or n > len(wave) - 400:
                continue
            rise = np.diff(wave[n - 320 : n + 320])  # a strike bends the wave
            bend = np.abs(np.diff(rise))
            found += 1
            quiet, loud = bend[:310].max(), bend[315:480].max()
            assert loud > 1.2 * quiet or source["material"] == "metal"
    assert found > 30


def test_the_picture_strikes_the_floor_when_the_truth_says():
    """The lowest picture of a flight lies within a frame of the strike, ``offset`` before it is heard."""
    preset = plain("sync")
    for i in range(8):
        clip = render(preset, 3, i)
        source, offset = clip.truth["objects"][0], clip.truth["offset"]
        y = clip.arrays["positions"][:, 0, 1]
        bottom = clip.arrays["masks"][:, 0].any(axis=2)
        assert bottom.any(axis=1).all()
        for at, _ in source["onsets"]:
            frame = (at - offset) * preset.fps
            if 3 < frame < preset.frames - 4:
                near = np.arange(round(frame) - 3, round(frame) + 4)
                lowest = near[np.argmax(y[near])]
                assert abs(lowest - frame) <= 1.0
        seen = [a for a, _ in source["events"]["video"]]
        heard = [a + offset for a in seen if 0 < a + offset < 2.99 and a > 0]
        reported = [at for at, _ in source["onsets"]]
        assert all(min(abs(h - r) for r in reported) < 2e-5 for h in heard)


def test_offsets_are_continuous_and_not_rounded_to_frames():
    offsets = np.array([render("sync", 0, i, truth=False).truth["offset"] for i in range(40)])
    assert np.abs(offsets).max() <= 0.4
    assert offsets.min() < -0.2 < 0.2 < offsets.max()
    assert np.abs(offsets * 25 - np.rint(offsets * 25)).mean() > 0.15


# ------------------------------------------------------------------------------------------------- the truth is true
@pytest.mark.parametrize("name", ["localization", "spatial"])
def test_masks_and_boxes_are_where_the_pixels_change(name):
    preset = plain(name)
    for i in range(6):
        clip = render(preset, 5, i)
        masks, boxes, places = (clip.arrays[k] for k in ("masks", "boxes", "positions"))
        union = masks.any(axis=1)
        background = np.ma.median(
            np.ma.masked_array(clip.video.astype(float), np.repeat(union[..., None], 3, axis=3)), axis=0
        )
        changed = np.abs(clip.video - background.filled(np.nan)).max(axis=-1)
        known = np.isfinite(changed)
        outside = changed[~union & known]
        assert np.quantile(outside, 0.97) < 12  # but for the soft edges nothing moves outside the masks
        assert np.median(changed[union & known]) > 25
        for t, o in np.ndindex(*masks.shape[:2]):
            ys, xs = np.nonzero(masks[t, o])
            if len(ys) == 0:
                assert not boxes[t, o].any()
                continue
            assert boxes[t, o].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        visible = masks.any(axis=(2, 3))
        assert visible.mean() > 0.95
        x, y = places[..., 0], places[..., 1]
        slack = 3.0  # a triangle's center is not the center of its box
        inside = (x > boxes[..., 0] - slack) & (x < boxes[..., 2] + slack)
        inside &= (y > boxes[..., 1] - slack) & (y < boxes[..., 3] + slack)
        assert inside[visible].all()


def test_silent_objects_are_silent_and_unseen_sounds_unseen():
    roles = set()
    for i in range(15):
        clip = render("retrieval-hard", 2, i)
        for item in clip.truth["objects"]:
            stem, masks = clip.arrays["stems"][item["slot"]], clip.arrays["masks"][:, item["slot"]]
            assert bool(stem.any()) == (item["role"] != "distractor")
            assert bool(masks.any()) == (item["role"] != "offscreen")
            if item["role"] != "source":
                assert item["class"] != clip.truth["class"]
            roles.add(item["role"])
    assert roles == {"source", "distractor", "offscreen"}


def test_the_alike_distractor_has_class_and_size_of_the_source():
    for i in range(5):
        source, other = render("localization-same", 0, i).truth["objects"]
        assert (source["class"], source["radius"]) == (other["class"], other["radius"])
        assert source["onsets"] != other["onsets"]


def test_ears_hear_the_side_that_the_picture_shows():
    agree = []
    for i in range(12):
        clip = render("spatial", 0, i)
        for item in clip.truth["objects"]:
            ears = clip.arrays["stems"][item["slot"]].astype(float)
            level = 10 * np.log10((ears[:, 1] ** 2).sum() / (ears[:, 0] ** 2).sum())
            theta = float(np.mean(item["azimuth"]))
            if abs(theta) > 5:
                agree.append(np.sign(level) == np.sign(theta))
    assert len(agree) > 15
    assert all(agree)


def test_far_things_are_smaller_and_softer():
    near, far = (render(plain("spatial", distance=(d, d)), 0, 4) for d in (1.0, 2.0))
    assert 0.15 < far.arrays["masks"].sum() / near.arrays["masks"].sum() < 0.35
    ratio = far.arrays["stems"][0].std() / near.arrays["stems"][0].std()
    assert 0.35 < ratio < 0.75


def test_event_segments_need_both_modalities():
    preset = PRESETS["events"]
    background, total = 0, 0
    for i in range(20):
        clip = render("events", 0, i)
        source = clip.truth["objects"][0]
        segments = clip.arrays["segments"]
        assert segments.shape == (10,)
        for k, value in enumerate(segments):
            seen = min(source["visible"][1], k / 2 + 0.5) - max(source["visible"][0], k / 2)
            heard = min(source["audible"][1], k / 2 + 0.5) - max(source["audible"][0], k / 2)
            if value == len(preset.labels):
                background += 1
            else:
                assert value == clip.label
                assert min(seen, heard) > 0.24
                assert clip.arrays["masks"][4 * k : 4 * k + 4, 0].any()
                piece = clip.arrays["stems"][0, 8000 * k : 8000 * (k + 1)]
                assert piece.any()
            total += 1
    assert 0.3 < background / total < 0.8


def test_captions_use_a_closed_vocabulary():
    for name in OBJECTS:
        for i in range(5):
            assert set(render(name, 0, i, truth=False).truth["caption"].split()) <= set(VOCABULARY)


# ------------------------------------------------------------------------------------------------------------ no leaks
def nuisances(preset: ObjectPreset, index: int) -> tuple[list[float], int]:
    scene = draw_scene(preset, generator(preset.name, 11, index, "all"))
    actor = scene.actors[0]
    pose = actor.motion.at(np.array([0.0, 1.0]))
    row = [*actor.body.color, actor.distance, scene.gain_db, scene.floor, scene.offset, *pose.x, *pose.y]
    row += [preset.motions.index(actor.motion.kind), len(actor.motion.times), len(scene.actors), actor.bearing]
    row += [actor.motion.forces.mean(), actor.motion.tilt, *(a.body.color[0] for a in scene.actors[1:2])]
    row += [0.0] * (18 - len(row))
    row += [float(np.clip(bound, 0.0, 9.0)) for span in (actor.visible, actor.audible) for bound in span]
    return row, scene.label


@pytest.mark.parametrize("name", OBJECTS)
def test_no_nuisance_predicts_the_class(name):
    from sklearn.ensemble import ExtraTreesClassifier

    preset = PRESETS[name]
    rows, labels = zip(*(nuisances(preset, i) for i in range(1600)), strict=True)
    x, y = np.array(rows), np.array(labels)
    model = ExtraTreesClassifier(60, random_state=0, n_jobs=1).fit(x[:1000], y[:1000])
    accuracy, chance = float((model.predict(x[1000:]) == y[1000:]).mean()), 1 / len(preset.labels)
    assert abs(accuracy - chance) < 3.3 * np.sqrt(chance * (1 - chance) / 600)


def test_neither_do_backdrop_pixels():
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rows, labels = [], []
    for i in range(400):
        clip = render("retrieval", 12, i)
        bare = clip.video[0, ~clip.arrays["masks"][0, 0]]
        rows.append([*bare.mean(axis=0), *bare.std(axis=0), *clip.video[0, 0, 0], *clip.video[0, -1, -1]])
        labels.append(clip.label)
    x, y = np.array(rows), np.array(labels)
    model = LinearDiscriminantAnalysis().fit(x[:200], y[:200])
    accuracy = float((model.predict(x[200:]) == y[200:]).mean())
    assert abs(accuracy - 1 / 12) < 3.3 * np.sqrt(1 / 12 * 11 / 12 / 200)
