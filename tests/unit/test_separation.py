"""Mix-and-separate: the frequency axis, motion, pairs, masks there and back, and a protocol that drops nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from avcl.data import FeatureData, collate
from avcl.data.derived import Derived
from avcl.data.mixtures import LEVEL, Mixtures, draw_pairs, guides_of
from avcl.data.world import World
from avcl.dsp.flow import lucas_kanade, sample, trajectories
from avcl.dsp.spectrum import stft
from avcl.dsp.warp import log_frequency, row_positions
from avcl.errors import BatchError, CapabilityError, ConfigError, DataError, FeatureError
from avcl.metrics.separation import si_sdr
from avcl.nn.separation import MixAndSeparate, leveled, partners
from avcl.task import Outputs
from avcl.tasks.separation import Separation
from avcl.types import Batch, Clip, Inputs, Stream

RATE = 4000
INPUTS = Inputs(fps=2.0, size=(16, 16), sample_rate=RATE, window=0.5)


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tones(*hertz: float, seconds: float = 0.5, rate: int = RATE) -> torch.Tensor:
    time = torch.arange(round(seconds * rate)) / rate
    return torch.stack([0.3 * torch.sin(2 * math.pi * f * time) for f in hertz])


def sound(waves: torch.Tensor, rate: float = RATE) -> Stream:
    return Stream(waves[:, :, None], torch.ones(waves.shape, dtype=torch.bool), float(rate))


# ------------------------------------------------------------------------------------------------------ frequency axis
def test_the_warp_is_the_formula_and_keeps_constants() -> None:
    place = row_positions(512, 256)
    for row in (0, 100, 255):
        y = 2 * row / 255 - 1
        assert place[row] == pytest.approx(((21 ** ((y + 1) / 2) - 11) / 10 + 1) / 2 * 511)
    for bins, rows in ((512, 256), (257, 64), (65, 40)):
        down, up = log_frequency(bins, rows)
        assert down.shape == (bins, rows)
        torch.testing.assert_close(torch.ones(bins) @ down, torch.ones(rows))
        torch.testing.assert_close(torch.ones(rows) @ up, torch.ones(bins))
        assert bool((down.sum(1) > 0).all()), "a bin is left out"
        smooth = torch.linspace(0, 1, bins).square()
        torch.testing.assert_close(smooth @ down @ up, smooth, atol=0.05, rtol=0)
    with pytest.raises(ConfigError, match="frequency axis"):
        log_frequency(1, 4)


# -------------------------------------------------------------------------------------------------------------- motion
def blobs(shift: tuple[float, float], size: int = 32) -> torch.Tensor:
    """A smooth texture [1, size, size], moved by (x, y)."""
    y, x = torch.meshgrid(torch.arange(size) - shift[1], torch.arange(size) - shift[0], indexing="ij")
    return (0.5 + 0.2 * torch.sin(x / 2.1 + 1) * torch.cos(y / 2.7) + 0.2 * torch.sin(x / 5 + y / 4))[None]


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.6, -0.4), (-2.0, 1.5)])
def test_flow_finds_a_shift(shift: tuple[float, float]) -> None:
    flow = lucas_kanade(blobs((0, 0)), blobs(shift))
    inside = flow[0, 6:-6, 6:-6].reshape(-1, 2)
    torch.testing.assert_close(inside.median(0).values, torch.tensor(shift), atol=0.15, rtol=0)
    warped = sample(blobs(shift)[:, None], flow)[0, 0]
    assert float((warped - blobs((0, 0))[0])[6:-6, 6:-6].abs().mean()) < 0.02
    flat = torch.full((1, 32, 32), 0.5)
    assert float(lucas_kanade(flat, flat).abs().max()) == 0
    with pytest.raises(BatchError, match="two gray pictures"):
        lucas_kanade(flat, flat[:, :20])


def test_trajectories_of_a_constant_flow_are_constant_and_two_flows_compose() -> None:
    constant = torch.tensor([1.5, -0.5]).expand(2, 4, 8, 10, 2)
    torch.testing.assert_close(trajectories(constant), constant.clone())
    # By hand: at t = 0 everything moves 2 px to the right, at t = 1 by a tenth of its column.
    column = torch.arange(10.0).expand(8, 10)
    first = torch.stack([torch.full((8, 10), 2.0), torch.zeros(8, 10)], 2)
    second = torch.stack([column / 10, torch.zeros(8, 10)], 2)
    moved = trajectories(torch.stack([first, second])[None])[0]
    torch.testing.assert_close(moved[0], first)
    torch.testing.assert_close(moved[1, :, :, 0], (column + 2).clamp(max=9) / 10)  # read where the point is by then


# --------------------------------------------------------------------------------------------------------------- pairs
@pytest.mark.parametrize("sources", [2, 3])
@pytest.mark.parametrize("count", [6, 7, 8])
def test_every_clip_is_mixed_and_never_with_itself(count: int, sources: int) -> None:
    label = torch.arange(count) % 3
    for pairing in ("any", "other", "same"):
        rows = partners(label, drawn(), sources=sources, pairing=pairing, rounds=2)
        assert rows.shape == (2 * -(-count // sources), sources)
        assert set(rows.flatten().tolist()) == set(range(count))
        assert all(len(set(row)) == sources for row in rows.tolist())
        assert torch.equal(rows, partners(label, drawn(), sources=sources, pairing=pairing, rounds=2))
    assert not torch.equal(partners(label, drawn(1), sources=sources), partners(label, drawn(2), sources=sources))


def test_pairs_of_other_and_of_the_same_class() -> None:
    label = torch.arange(12) % 4
    met = set()
    for seed in range(20):
        rows = label[partners(label, drawn(seed), pairing="other")]
        assert bool((rows[:, 0] != rows[:, 1]).all())
        met |= {tuple(sorted(row)) for row in rows.tolist()}
    assert len(met) == 6, "some classes never meet"
    even = torch.arange(12) % 3  # four of each
    rows = even[partners(even, drawn(), pairing="same")]
    assert bool((rows[:, 0] == rows[:, 1]).all())
    with pytest.raises(BatchError, match="label for every clip"):
        partners(label - 1, drawn(), pairing="other")
    with pytest.raises(BatchError, match="mixture of 2"):
        partners(label[:1], drawn())


# --------------------------------------------------------------------------------------------------------------- masks
FRONT = MixAndSeparate(fft=256, hop=64, bands=48)


def test_mixtures_are_sums_at_one_level_and_the_ideal_mask_brings_them_back() -> None:
    waves = tones(200, 900) * torch.tensor([[1.0], [0.01]])  # 40 dB apart
    recorded = torch.ones(waves.shape, dtype=torch.bool)
    level = leveled(waves, recorded)
    torch.testing.assert_close(level.square().mean(1).sqrt(), torch.full((2,), 0.1), rtol=1e-3, atol=0)
    mixed = FRONT.mixed(waves, recorded, RATE, torch.tensor([[0, 1]]))
    assert mixed.target.shape == (1, 32, 48, 2)
    assert torch.equal(mixed.target.sum(-1).clamp(max=1), torch.ones(1, 32, 48)), "every bin belongs to someone"
    made = FRONT.separated(sound(level.sum(0, keepdim=True)), lambda seen: (mixed_like(seen, mixed.target) - 0.5) * 40)
    assert made.shape == (1, 2, waves.shape[1], 1)
    assert si_sdr(level.numpy(), made[0, :, :, 0].numpy()).value.min() > 15


def mixed_like(seen: Stream, target: torch.Tensor) -> torch.Tensor:
    """The target, longer by the silence that ``separated`` puts behind the end."""
    lacking = seen.data.shape[1] - target.shape[1]
    return torch.nn.functional.pad(target, (0, 0, 0, 0, 0, lacking))


def test_gain_changes_nothing_that_a_network_reads() -> None:
    wave = tones(300) + 0.01 * torch.randn(1, RATE // 2, generator=drawn())
    seen = []
    for gain in (1.0, 0.01):
        magnitude = FRONT.bands_of(stft(gain * wave, n_fft=256, hop=64).abs())
        stream = FRONT.seen(magnitude, torch.ones(magnitude.shape[:2], dtype=torch.bool), RATE / 64)
        seen.append(stream.data - stream.data.mean())
    torch.testing.assert_close(*seen, atol=1e-3, rtol=0)


def test_masks_that_share_give_the_mixture_back_on_every_channel() -> None:
    wave = 0.1 * torch.randn(2, 1500, 2, generator=drawn())
    mask = torch.ones(2, 1500, dtype=torch.bool)
    mask[1, 1000:] = False
    mixture = Stream(wave * mask[:, :, None], mask, float(RATE))

    def logits(seen: Stream) -> torch.Tensor:
        z = torch.randn(*seen.data.shape[:3], 1, generator=drawn(1))
        return torch.cat([z, -z], -1)  # σ(z) + σ(-z) = 1

    made = FRONT.separated(mixture, logits)
    torch.testing.assert_close(made.sum(1), mixture.data, atol=1e-5, rtol=0)
    share = MixAndSeparate(256, 64, 48, decision="share").separated(mixture, lambda seen: logits(seen).abs() + 2)
    torch.testing.assert_close(share.sum(1), mixture.data, atol=1e-5, rtol=0)
    # One mask for both ears: what is twice as loud on the right stays so.
    ears = Stream(wave[:, :, :1] * torch.tensor([1.0, 2.0]), mask, float(RATE))
    left, right = FRONT.separated(ears, logits).unbind(3)
    torch.testing.assert_close(2 * left, right, atol=1e-5, rtol=1e-4)


def test_two_rules_agree_for_two_tones_and_differ_for_three_sources() -> None:
    waves, recorded = tones(200, 900, 400), torch.ones(3, RATE // 2, dtype=torch.bool)

    def target(rows: list[int], rule: Any) -> torch.Tensor:
        return MixAndSeparate(256, 64, 48, rule).mixed(waves, recorded, RATE, torch.tensor([rows])).target

    two = [target([0, 1], rule) for rule in ("dominant", "half")]
    assert float((two[0] == two[1]).float().mean()) > 0.95
    three = [target([0, 1, 2], rule).sum(-1) for rule in ("dominant", "half")]
    assert float(three[0].min()) == 1  # someone always dominates
    with pytest.raises(ConfigError, match="no spectrogram"):
        MixAndSeparate(256, 200)
    with pytest.raises(ConfigError, match="none of"):
        MixAndSeparate(decision="maybe")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------ Mixtures
class Muted(Derived):
    """The clips of ``source``, those of ``rows`` without sound."""

    def __init__(self, source: Any, rows: tuple[int, ...] = ()):
        super().__init__(source)
        self.rows = rows

    def clip(self, index: int, *, epoch: int = 0, view: int = 0) -> Clip:
        clip = self.source.clip(index, epoch=epoch, view=view)
        if index not in self.rows:
            return clip
        quiet = clip.streams["audio"]._replace(data=1e-4 * clip.streams["audio"].data)
        return Clip(clip.id, {**clip.streams, "audio": quiet}, index=index, label=clip.label)


def clips(n: int = 12) -> World:
    return World("separation", clips=n, split="val").configure(INPUTS)


def test_mixtures_are_fixed_pairs_of_different_classes_at_equal_level() -> None:
    data = clips()
    rows, again = Mixtures(data, seed=3), Mixtures(data, seed=3)
    assert len(rows) == 6
    assert rows.ids == again.ids
    assert rows.ids != Mixtures(data, seed=4).ids
    assert rows.fingerprint == again.fingerprint != Mixtures(data, seed=3, swapped=True).fingerprint
    assert sorted(rows.drawn.pairs.flatten().tolist()) == list(range(12))  # no clip twice: every item a cluster
    assert len(set(rows.groups)) == 6
    assert rows.modalities == ("audio", "guide0:video", "guide1:video")
    assert tuple(rows.spec.streams) == rows.modalities
    swapped = Mixtures(data, seed=3, swapped=True)
    for i, (a, b) in enumerate(rows.drawn.pairs):
        clip = rows.clip(i)
        stems = clip.extras["stems"]
        assert clip.extras["classes"].tolist() == [data.targets[a], data.targets[b]]
        assert data.targets[a] != data.targets[b]
        torch.testing.assert_close(stems.square().mean((1, 2)).sqrt(), torch.full((2,), LEVEL), rtol=1e-3, atol=0)
        torch.testing.assert_close(stems.sum(0), clip.streams["audio"].data[0])
        assert torch.equal(clip.streams["guide0:video"].data, data.clip(int(a)).streams["video"].data)
        assert torch.equal(swapped.clip(i).streams["guide0:video"].data, data.clip(int(b)).streams["video"].data)
        torch.testing.assert_close(swapped.clip(i).extras["stems"], stems)
    guides = guides_of(collate([rows.clip(0), rows.clip(1)]))
    assert [tuple(g.streams) for g in guides] == [("video",), ("video",)]
    with pytest.raises(DataError, match="clips first"):
        rows.subset([0])


def test_a_silent_clip_is_never_a_stem_its_pair_is_drawn_again_and_counted() -> None:
    data = Muted(clips(), rows=(1, 5, 6))
    rows = Mixtures(data)
    assert len(rows) == 6 == rows.n_official, "no mixture may be lost"
    assert rows.redrawn == 3
    assert rows.drawn.quiet == (1, 5, 6)
    assert not set(rows.drawn.pairs.flatten().tolist()) & {1, 5, 6}
    # Who shares a clip is drawn together.
    used: dict[int, set[str]] = {}
    for (a, b), group in zip(rows.drawn.pairs.tolist(), rows.groups, strict=True):
        for row in (a, b):
            used.setdefault(row, set()).add(group)
    assert all(len(groups) == 1 for groups in used.values())
    assert len(set(rows.groups)) < 6
    with pytest.raises(DataError, match="two audible sounds"):
        draw_pairs([0, 1, 1], [True, False, False], seed=0)
    with pytest.raises(DataError, match="two audible classes"):
        draw_pairs([1, 1, 1], [True, True, True], seed=0)
    alone = draw_pairs([-1, -1, -1, -1], [True] * 4, seed=0)  # without labels anybody will do
    assert sorted(alone.pairs.flatten().tolist()) == [0, 1, 2, 3]


def test_mixtures_need_sound_and_something_to_look_at() -> None:
    arrays = {"text": np.ones((4, 3), np.float32), "video": np.ones((4, 3), np.float32)}
    with pytest.raises(DataError, match="sound and a picture"):
        Mixtures(FeatureData.from_arrays(arrays))


# ---------------------------------------------------------------------------------------------------------------- task
class Separator:
    """Answers by ``rule(mixture [B, T, C], number of guides)``; remembers what it was shown."""

    def __init__(self, rule: Any):
        self.rule = rule
        self.seen: list[tuple[Stream, list[Batch]]] = []

    def separate(self, mixture: Stream, guides: list[Batch]) -> torch.Tensor:
        self.seen.append((mixture, guides))
        return self.rule(mixture.data, len(guides))


def mixture_itself(data: torch.Tensor, count: int) -> torch.Tensor:
    return data[:, None].expand(-1, count, -1, -1)


TASK = Separation(bootstrap=100, fft=256)


def test_stems_and_classes_are_hidden() -> None:
    system = Separator(mixture_itself)
    outputs = TASK.predict(system, clips(8))
    stems = torch.from_numpy(outputs["stems"])
    for mixture, guides in system.seen:
        assert len(guides) == 2
        for guide in guides:
            assert tuple(guide.streams) == ("video",), "a guide has a sound"
            assert not guide.extras
            assert int(guide.label.max()) == -1
        for k in (0, 1):
            assert not torch.allclose(mixture.data, stems[:, k]), "the mixture is a stem"
    assert outputs.notes["redrawn"] == 0
    assert len(outputs) == 4


def test_the_mixture_gains_nothing_the_truth_everything_and_the_ideal_masks_stand_between() -> None:
    outputs = TASK.predict(Separator(mixture_itself), clips(4))
    scores = TASK.score(outputs).scores
    assert scores["guided"]["SI-SDR gain"] == pytest.approx(0, abs=1e-6)
    assert scores["guided"]["SI-SDR"] == pytest.approx(0, abs=1.0)  # equal level
    ideal = scores["ideal binary mask"]["SI-SDR gain"]
    assert 8 < ideal < 40
    assert 8 < scores["ideal ratio mask"]["SI-SDR gain"] < 40
    true = TASK.score(outputs.with_arrays(estimates=outputs["stems"])).scores["guided"]
    assert true["SI-SDR gain"] > 100
    assert true["SDR"] > 100
    beside = TASK.baselines(outputs)
    assert set(beside) == {"the mixture", "equal share"}
    assert TASK.score(beside["the mixture"]).scores["guided"]["SI-SDR gain"] == pytest.approx(0, abs=1e-6)
    share = TASK.score(beside["equal share"]).scores["guided"]
    assert share["SI-SDR gain"] == pytest.approx(0, abs=1e-6)
    assert share["SNR"] > 2  # the level counts there
    exchanged = outputs.with_arrays(estimates=outputs["stems"][:, ::-1].copy())
    assert TASK.score(exchanged).scores["guided"]["SI-SDR gain"] < -10
    assert set(TASK.per_class(outputs)["guided"]) <= {"wood disk", "metal ring", "glass bar", "metal triangle"}


def test_a_separator_cannot_be_scored_with_silent_answers_dropped() -> None:
    """The trap: falling silent where it is hard must cost, in every metric, and every item must count."""
    outputs = TASK.predict(Separator(mixture_itself), clips(4))
    honest = TASK.score(outputs)
    made = outputs["estimates"].copy()
    made[1:] = 0  # half of the mixtures are given up
    fell_silent = TASK.score(outputs.with_arrays(estimates=made))
    assert fell_silent.n_scored == fell_silent.n_official == 2
    for metric in ("SI-SDR", "SI-SDR gain", "SDR", "SIR", "SAR"):
        assert fell_silent.scores["guided"][metric] < honest.scores["guided"][metric], metric
    value = TASK.measures(outputs.with_arrays(estimates=made))["guided"]["SI-SDR"]
    assert isinstance(value, np.ndarray)
    assert np.isfinite(value).all()
    assert value[1:].tolist() == [TASK.floor]
    one = outputs["estimates"].copy()
    one[:, 1] = 0  # one source of each mixture
    assert TASK.score(outputs.with_arrays(estimates=one)).scores["guided"]["SI-SDR"] < -10
    # And no reference can be silent: such a pair is drawn again, and outputs of another program are refused.
    stems = outputs["stems"].copy()
    stems[0, 0] = 0
    with pytest.raises(DataError, match="stem is silent"):
        TASK.score(outputs.with_arrays(stems=stems))
    assert TASK.predict(Separator(mixture_itself), Muted(clips(8), rows=(0,))).notes["redrawn"] == 1


def test_the_wrong_partner_is_the_other_picture_and_wrong_shapes_are_refused() -> None:
    system = Separator(mixture_itself)
    TASK.predict(system, clips(4))
    TASK.predict(system, clips(4), wrong_partner=True)
    (_, right), (_, wrong) = system.seen
    assert torch.equal(right[0].video.data, wrong[1].video.data)
    assert not torch.equal(right[0].video.data, wrong[0].video.data)
    with pytest.raises(FeatureError, match="of the mixture"):
        TASK.predict(Separator(lambda data, count: data), clips(4))
    with pytest.raises(CapabilityError, match="separation"):
        TASK.predict(object(), clips(4))
    with pytest.raises(ConfigError, match="multiple of 4"):
        Separation(fft=30)


def test_answers_of_another_program_can_be_scored() -> None:
    stems = 0.1 * np.random.default_rng(0).normal(size=(2, 2, 3000, 1)).astype(np.float32)
    outputs = Outputs(("a", "b"), ("a", "b"), {"stems": stems, "estimates": stems, "classes": np.full((2, 2), -1)})
    assert TASK.score(outputs).scores["guided"]["SI-SDR"] > 100
