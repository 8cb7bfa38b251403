"""LLA: who reads whom, what attention may see, and which pairs are judged."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from avcl.data import collate
from avcl.errors import CapabilityError, ConfigError
from avcl.system import Step
from avcl.systems.cheng2020_lla import LLA, LLAConfig, Read, Tokens
from avcl.tasks.retrieval import Retrieval
from avcl.testing.systems import media_spec, world_clips

TINY = {"widths": (8, 12), "dim": 16, "heads": 2}


def made(**settings: Any) -> LLA:
    torch.manual_seed(0)
    config = LLAConfig.from_json({**TINY, **settings})
    return LLA(config, media_spec(LLA.inputs(config)))


def tokens(n: int, *, rate: float, recorded: int | None = None) -> Tokens:
    mask = torch.arange(n).expand(2, -1) < (n if recorded is None else recorded)
    data = torch.randn(2, n, 16, requires_grad=True)
    return Tokens(data, mask, torch.arange(n) / rate)


def at(progress: float = 1.0) -> Step:
    return Step(0, 1, 0, progress, torch.Generator().manual_seed(0))


def test_attention_sees_what_is_near_and_recorded() -> None:
    torch.manual_seed(0)
    read = Read(16, heads=2, reach=0.25, dropout=0.0)
    x, y = tokens(8, rate=4.0), tokens(16, rate=8.0, recorded=10)
    result, agreement, attended = read(x, y, return_attention=True)
    assert attended is not None
    assert attended.shape == (2, 2, 8, 16)
    assert agreement.shape == (2, 16)
    near = (x.seconds[:, None] - y.seconds).abs() <= 0.25
    allowed = near[None] & y.mask[:, None]
    assert not bool(attended[:, 0][~allowed].any())
    torch.testing.assert_close(attended.sum(3)[:, 0], allowed.any(2).float())  # 1, or 0 where there is nothing to see
    assert not bool(result.data[:, :, 0][~x.mask].any())


@pytest.mark.parametrize(("guide", "video_reads", "audio_reads"), [("visual", 1, 0), ("audio", 0, 1), ("cross", 1, 1)])
def test_the_guide_says_who_reads(guide: str, video_reads: int, audio_reads: int) -> None:
    system = made(guide=guide)
    assert (len(system.video_reads), len(system.audio_reads)) == (video_reads, audio_reads)
    video, audio = tokens(12, rate=8.0), tokens(12, rate=8.0)
    seen: dict[str, Tokens] = {}
    for name, reads in (("video", system.video_reads), ("audio", system.audio_reads)):
        for module in reads:
            module.register_forward_hook(lambda _, given, out, name=name: seen.update({name: out[0]}))
    logits = system.in_step(video, audio)
    assert set(seen) == {name for name, reads in (("video", video_reads), ("audio", audio_reads)) if reads}
    for name, other in (("video", audio), ("audio", video)):
        if name in seen:  # what reads depends on what it reads
            (gradient,) = torch.autograd.grad(seen[name].data.square().sum(), other.data, retain_graph=True)
            assert bool(gradient.any())
    # either way the judgment depends on both
    for gradient in torch.autograd.grad(logits.diff(dim=1).sum(), (video.data, audio.data)):
        assert bool(gradient.any())


def test_a_side_that_does_not_read_is_left_alone() -> None:
    system = made(guide="visual").eval()
    video, audio = tokens(12, rate=8.0), tokens(12, rate=8.0)
    pooled: list[torch.Tensor] = []
    system.head.register_forward_pre_hook(lambda _, given: pooled.append(given[0]))
    system.in_step(video, audio)
    torch.testing.assert_close(pooled[0][:, 16:32], audio.data.mean(1))
    assert not torch.allclose(pooled[0][:, :16], video.data.mean(1))


def test_negatives_grow_harder() -> None:
    """At first the sound of another clip; at the end, with hard = 1, the same clip's sound of other seconds."""
    batch = collate(world_clips(LLA)).to("cpu")
    for progress, hard in ((0.0, False), (1.0, True)):
        system = made(hard=1.0, rise=0.5, negatives=2).eval()
        judged: list[torch.Tensor] = []

        def spy(video: Tokens, audio: Tokens, judged=judged) -> torch.Tensor:
            judged.append(audio.data)
            return torch.zeros(len(video.data), 2)

        system.in_step = spy  # type: ignore[method-assign]
        encoded = system.encode(batch)
        system.losses(encoded, batch, at(progress))
        (together,) = judged
        own, wrong, other = together.chunk(3)
        assert torch.equal(own, encoded["audio"])
        assert torch.equal(wrong, encoded["off"] if hard else encoded["audio"].roll(1, 0))
        assert torch.equal(other, encoded["audio"].roll(2, 0))
        assert not torch.equal(encoded["off"], encoded["audio"])


def test_a_clip_too_short_to_shift_gets_the_sound_of_another() -> None:
    clips = world_clips(LLA)
    system = made(hard=1.0, rise=0.0, seconds=2.7, apart=0.4).eval()
    encoded = system.encode(collate(clips).to("cpu"))
    assert not bool(encoded["can be off"].any())
    assert bool(torch.isfinite(system.losses(encoded, collate(clips).to("cpu"), at())["in_step"]))


def test_a_blind_guess_costs_log_two() -> None:
    system = made().eval()
    torch.nn.init.zeros_(system.head[-1].weight)
    torch.nn.init.zeros_(system.head[-1].bias)
    batch = collate(world_clips(LLA)).to("cpu")
    terms, _ = system(batch, at())
    assert float(terms["in_step"].detach()) == pytest.approx(0.6931, abs=1e-4)


def test_it_represents_and_does_not_embed() -> None:
    """Two clips are compared by co-attention, not by a distance of vectors: retrieval names the systems that embed."""
    system, batch = made().eval(), collate(world_clips(LLA)).to("cpu")
    assert system.features(batch, "video").shape == (8, 2 * system.picture.dim)
    assert system.features(batch, "audio").shape == (8, 2 * system.sound.dim)
    with pytest.raises(ConfigError, match="text"):
        system.features(batch, "text")
    with pytest.raises(CapabilityError):
        Retrieval().predict(system, [batch])
    with pytest.raises(ConfigError, match="guide"):
        made(guide="both")
