"""LVS: the worked values of its equations, when the tri-map loss takes over, and where a map lies on the picture."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from avcl.data import collate
from avcl.errors import BatchError, ConfigError
from avcl.seeds import seeded
from avcl.system import Step
from avcl.systems.chen2021_lvs import LVS, LVSConfig, _laid, _logistic, pooled_loss, threshold, trimap_loss, weighted
from avcl.testing.systems import FEATURES, clips_of, media_spec
from avcl.types import Stream

EDGES = {"positive": 0.65, "negative": 0.4, "sharpness": 0.03, "temperature": 0.07}


def made(**settings) -> LVS:
    config = replace(LVSConfig.tiny(), **settings)
    with seeded(0, "init"):
        return LVS(config, media_spec(config.decoding))


def batch_of(n: int = 4):
    return collate(clips_of(media_spec(LVSConfig.tiny().decoding), n=n, seconds=3.0)).to("cpu")


def at(step: int, total: int = 100) -> Step:
    return Step(step, total, 0, step / total, torch.Generator())


# ----------------------------------------------------------------------------------------------------------- equations
def test_worked_values() -> None:
    maps = torch.tensor([0.8, 0.6, 0.5, 0.2])
    torch.testing.assert_close(
        threshold(maps, 0.65, 0.03), torch.tensor([0.9933, 0.1589, 0.0067, 0.0]), atol=5e-5, rtol=0
    )
    assert float(weighted(maps, threshold(maps, 0.65, 0.03))) == pytest.approx(0.7708, abs=5e-5)
    assert float(weighted(maps, 1 - threshold(maps, 0.4, 0.03))) == pytest.approx(0.2105, abs=5e-5)


def test_trimap_loss_is_the_equation() -> None:
    maps = torch.rand(3, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.9
    total = 0.0
    for i in range(3):
        m, n = (1 / (1 + torch.exp(-(maps[i, i] - e) / 0.03)) for e in (0.65, 0.4))
        p = (m * maps[i, i]).sum() / (m.sum() + 1e-8)
        h = ((1 - n) * maps[i, i]).sum() / ((1 - n).sum() + 1e-8)
        below = torch.exp(p / 0.07) + torch.exp(h / 0.07)
        for j in range(3):
            if j != i:
                e = 1 / (1 + torch.exp(-(maps[i, j] - 0.65) / 0.03))
                below = below + torch.exp((e * maps[i, j]).sum() / (e.sum() + 1e-8) / 0.07)
        total -= float(torch.log(torch.exp(p / 0.07) / below)) / 3
    assert float(trimap_loss(maps, **EDGES)) == pytest.approx(total, rel=1e-6)


def test_pooled_loss_of_maps_that_say_nothing_is_log_b() -> None:
    assert float(pooled_loss(torch.zeros(6, 6, 9), softness=0.1, temperature=0.07)) == pytest.approx(math.log(6))
    maps = torch.zeros(2, 2, 2)
    maps[0, 0, 0] = maps[1, 1, 1] = 1.0
    soft, hard = (float(pooled_loss(maps, softness=s, temperature=0.07)) for s in (1.0, 0.1))
    assert hard < soft < math.log(2)


# ------------------------------------------------------------------------------------------------------------ schedule
def test_softness_falls_by_a_constant_factor() -> None:
    system = made(pooling=(1.0, 0.01), anneal=0.4)
    assert [round(system.softness(at(s)), 6) for s in (0, 20, 40, 90)] == [1.0, 0.1, 0.01, 0.01]
    assert made(anneal=0.0).softness(at(0)) == pytest.approx(0.1)


def test_the_trimap_loss_takes_over_when_the_warm_up_has_left_the_plateau_and_not_before() -> None:
    system, batch = made(leave=0.9, ramp=0.1).train(), batch_of()
    encoded = dict(system.encode(batch))
    assert set(system.losses(encoded, batch, at(50))) == {"pooled"}
    for step in range(60):  # nothing was learned: still the warm-up, however late it is
        system.after_step(encoded, batch, at(step))
    assert int(system.turned) == -1
    perfect = torch.nn.functional.one_hot(torch.arange(4), 16).float()
    learned = {"places": perfect[:, None, None].expand(4, 2, 2, 16), "sound": perfect, "both?": torch.ones(4).bool()}
    for step in range(60, 80):
        system.after_step(learned, batch, at(step))
    turned = int(system.turned)
    assert 60 < turned < 70
    shares = [system.share(at(turned + k)) for k in (0, 5, 10, 20)]
    assert shares == [0.0, 0.5, 1.0, 1.0]
    assert set(system.losses(encoded, batch, at(turned + 5))) == {"pooled", "trimap"}
    assert set(system.losses(encoded, batch, at(turned + 20))) == {"trimap"}
    again = made(leave=0.9)
    again.load_state_dict(system.state_dict())  # a run that goes on from a checkpoint knows it
    assert again.share(at(turned + 20)) == 1.0
    never = made(leave=0.0)
    never.after_step(learned, batch, at(0))
    assert int(never.turned) == -1


# ----------------------------------------------------------------------------------------------------------------- maps
def test_a_cell_lies_on_the_pixel_it_is_centered_on() -> None:
    cells = torch.zeros(1, 1, 8, 8)
    cells[0, 0, 3, 5] = 1.0
    video = Stream(torch.zeros(1, 1, 3, 32, 32), torch.ones(1, 1, dtype=torch.bool), 1.0)
    laid = _laid(cells, video, 4)[0, 0]
    assert laid.shape == (32, 32)
    assert divmod(int(laid.argmax()), 32) == (12, 20)
    assert float(laid[14, 20]) == pytest.approx(0.5)
    constant = _laid(torch.ones(1, 1, 8, 8), video, 4)
    assert bool((constant == 1).all())


def test_a_map_is_a_probability_of_the_size_of_its_frames_and_empty_without_sound() -> None:
    system, batch = made().eval(), batch_of()
    heat = system.heatmap(batch)
    assert heat.shape == (4, *batch.video.data.shape[1:2], 32, 32)
    assert 0 < float(heat.max()) < 1
    mute = replace(batch, streams={**batch.streams, "audio": batch.audio._replace(mask=batch.audio.mask & False)})
    assert not system.heatmap(mute).any()
    gap = batch.video.mask.clone()
    gap[:, 0] = False
    cut = replace(batch, streams={**batch.streams, "video": batch.video._replace(mask=gap)})
    assert not system.heatmap(cut)[:, 0].any()
    torch.testing.assert_close(system.heatmap(cut)[:, 1:], heat[:, 1:])


def test_the_last_two_numbers_tell_own_from_foreign_sounds() -> None:
    own = 0.8 + 0.05 * torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    foreign = 0.6 + 0.05 * torch.randn(2000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    slope, middle = _logistic(own, foreign)
    assert middle == pytest.approx(0.7, abs=0.02)  # ten times as many foreign ones count no more
    assert slope == pytest.approx(0.2 / 0.05**2, rel=0.3)  # of two normal distributions
    apart = _logistic(own + 1, foreign)
    assert all(map(math.isfinite, apart))
    for other in (own, own + 0.1):  # foreign sounds fit as well, or better: the best place has no probability
        slope, middle = _logistic(own, other)
        assert 1 / (1 + math.exp(-slope * (1 - middle))) < 0.001
    system = made()
    system.finish(batch_of() for _ in range(3))
    assert math.isfinite(float(system.slope))


def test_errors() -> None:
    with pytest.raises(ConfigError, match="decoded audio"):
        LVS(LVSConfig.tiny(), FEATURES)
    with pytest.raises(ConfigError, match="pooling"):
        replace(LVSConfig.tiny(), pooling=(1.0,))
    with pytest.raises(ConfigError, match="negative"):
        replace(LVSConfig.tiny(), negative=0.9)
    system, batch = made(), batch_of(2)
    mute = batch.audio._replace(mask=batch.audio.mask & False)
    deaf = replace(batch, streams={**batch.streams, "audio": mute})
    with pytest.raises(BatchError, match="both"):
        system(deaf, at(0))
