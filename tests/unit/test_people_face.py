"""The face: what the pixels show is what the motion says."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from avcl.data.world.canvas import Canvas, capsule
from avcl.data.world.face import EXPRESSION, Expression, Look, Motion, draw_motion, draw_scene, render_face

FRAMES = 5


def still(**values: float) -> Motion:
    """A motionless face, with some values set."""
    rest = {f.name: np.zeros(FRAMES) for f in fields(Motion) if f.name != "gaze"}
    rest.update({k: np.full(FRAMES, v) for k, v in values.items()})
    return Motion(**rest, gaze=np.zeros((FRAMES, 2)))


def scene(size: int = 64):
    drawn = draw_scene(np.random.default_rng(4), size, size, noise=0.0)
    return replace(
        drawn, skin=np.array([220, 180, 150], np.float32), offset=(0.0, 0.0), zoom=1.0, glasses=False, light=(0.0, 0.0),
        hair=np.array([50, 30, 20], np.float32),
    )  # fmt: skip


def picture(motion: Motion, expression: Expression = EXPRESSION["neutral"], look: Look | None = None, size: int = 64):
    return render_face(look or Look(), expression, motion, scene(size), np.random.default_rng(0), masks=True)


def crop(shown, which: int, frame: int = 0, margin: int = 0) -> np.ndarray:
    x0, y0, x1, y1 = shown.boxes[frame, which]
    video = shown.video[frame].astype(float)
    return video[
        max(int(y0) - margin, 0) : int(np.ceil(y1)) + margin, max(int(x0) - margin, 0) : int(np.ceil(x1)) + margin
    ]


def test_the_dark_of_the_mouth_grows_with_the_opening():
    openings = np.linspace(0, 1, 6)
    shown = [picture(still(opening=o), size=128) for o in openings]
    closed = shown[0].video[0].astype(float)
    changed = [np.sum(np.abs(p.video[0] - closed)[p.masks[0, 1]]) for p in shown]
    assert (np.diff(changed) > 0).all(), changed
    dark = [np.sum(crop(p, 1).max(axis=-1) < 120) for p in shown]
    assert dark[0] == 0
    assert dark[5] > 1.3 * dark[4] > 100
    gaps = [p.gap[0] for p in shown]
    np.testing.assert_allclose(np.diff(gaps), gaps[-1] / 5, rtol=1e-4)
    assert gaps[0] == 0.0


def test_lips_spread_and_round():
    wide, rest, round_ = (
        np.ptp(np.flatnonzero(picture(still(width=w)).masks[0, 1].any(axis=0))) for w in (1.0, 0.0, -1.0)
    )
    assert wide > rest > round_
    teeth = [np.sum(crop(picture(still(opening=0.06, tuck=t)), 1).min(axis=-1) > 190) for t in (0.0, 1.0)]
    assert teeth[1] > teeth[0] + 3


def test_a_blink_hides_the_eyes():
    whites = [np.sum(picture(still(blink=b)).video[0, 20:36].min(axis=-1) > 200) for b in (0.0, 1.0)]
    assert whites[0] > 10
    assert whites[1] <= 2


def test_corners_of_the_mouth_tell_joy_from_grief():
    def corner_minus_middle(name: str) -> float:
        expression = Expression(smile=EXPRESSION[name].smile)
        mask = picture(still(), expression, size=128).masks[0, 1]
        columns = np.flatnonzero(mask.any(axis=0))
        rows = np.arange(mask.shape[0])
        height = [np.average(rows, weights=mask[:, c]) for c in columns]
        return float(np.mean([*height[1:4], *height[-4:-1]]) - height[len(height) // 2])

    assert corner_minus_middle("happy") < -2
    assert abs(corner_minus_middle("neutral")) < 1.5
    assert corner_minus_middle("sad") > 2


def test_wide_eyes_and_brows_of_fear_and_anger():
    def white(name: str) -> int:
        return int(np.sum(picture(still(), EXPRESSION[name]).video[0, 16:38].min(axis=-1) > 200))

    assert white("surprised") > 1.3 * white("neutral") > 1.3 * white("sad")
    frames = {name: picture(still(), EXPRESSION[name]).video[0].astype(float) for name in EXPRESSION}
    for name, frame in frames.items():
        others = [np.abs(frame - f)[10:56].mean() for n, f in frames.items() if n != name]
        assert min(others) > 1.0, name


@pytest.mark.parametrize("width", [0.62, 0.74, 0.86])
def test_head_width_is_what_the_look_says(width):
    mask = picture(still(), look=Look(width=width), size=128).masks[0, 0]
    # the widest row of the head, in units of half its height (0.40 of the picture)
    assert mask.sum(axis=1).max() / (2 * 0.40 * 128) == pytest.approx(width, abs=0.02)


def test_masks_lie_in_their_boxes():
    times = np.arange(30) / 25
    for seed in range(4):
        rng = np.random.default_rng(seed)
        lips = (rng.uniform(0, 1, 30), rng.uniform(-1, 1, 30), np.zeros(30))
        motion = draw_motion(rng, times, lips, seconds=1.2)
        shown = render_face(Look(), EXPRESSION["happy"], motion, draw_scene(rng, 64, 64), rng, masks=True)
        assert shown.video.shape == (30, 64, 64, 3)
        assert shown.video.dtype == np.uint8
        for t in range(30):
            for o in range(2):
                rows, columns = np.nonzero(shown.masks[t, o])
                x0, y0, x1, y1 = shown.boxes[t, o]
                assert len(rows) > 5
                assert rows.min() + 2.0 >= y0
                assert rows.max() - 1.0 <= y1
                assert columns.min() + 2.0 >= x0
                assert columns.max() - 1.0 <= x1


def test_motion_does_not_depend_on_the_frame_rate():
    """A frame shows an instant: 25 and 50 frames a second agree where they meet."""
    views = (np.arange(0, 50) / 25, np.arange(0, 99) / 50)
    slow, fast = (draw_motion(np.random.default_rng(1), t, tuple(np.zeros((3, len(t)))), seconds=2.0) for t in views)
    for name in ("x", "y", "roll", "yaw", "nod", "blink", "gaze"):
        np.testing.assert_allclose(getattr(slow, name), getattr(fast, name)[::2], atol=1e-12)


def test_wide_tall_and_large_pictures():
    rng = np.random.default_rng(0)
    for height, width in ((48, 96), (96, 48), (128, 128), (24, 24)):
        drawn = draw_scene(rng, height, width)
        shown = render_face(Look(), EXPRESSION["neutral"], still(), drawn, rng, masks=True)
        assert shown.video.shape == (FRAMES, height, width, 3)
        assert shown.masks[:, 1].any(axis=(1, 2)).all()


def test_canvas_coordinates_and_capsule():
    canvas = Canvas(np.zeros((3, 40, 40), np.float32), np.array([20.0]), np.array([20.0]), 10.0, np.array([0.0]))
    assert canvas.u[0, 0, 20] == pytest.approx(0.05)
    x, y = canvas.place(1.0, -0.5)
    assert (x[0], y[0]) == (30.0, 15.0)
    one = np.ones(1)
    distance = capsule(canvas.u, canvas.v, (-one, 0 * one), (one, 0 * one), 0.3)
    assert distance[0, 20, 20] == pytest.approx(0.25, abs=1e-5)  # pixel center at (0.05, 0.05): 0.05 off the line
    area = canvas.cover(distance).sum() / 100
    assert area == pytest.approx(2 * 0.6 + np.pi * 0.09, rel=0.02)
