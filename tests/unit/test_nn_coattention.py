"""Co-attention against loops over clips, steps, heads and channels; padding, missing modalities, gradients, errors."""

from __future__ import annotations

import math

import pytest
import torch
from attention_toys import D, build, clip, features, looked_up, softmax
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from avcl.errors import BatchError, ConfigError
from avcl.nn.coattention import (
    AffinityCoAttention,
    CrossAttention,
    JointCoAttention,
    MultiPairCoAttention,
    PairCoAttention,
)
from avcl.nn.context import MultiScaleAttention, clock_of
from avcl.types import Stream


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# ------------------------------------------------------------------------------------------------------- pairwise forms
@torch.no_grad()
@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("past", [math.inf, 0.5])
def test_cross_attention_is_its_loop(gate: bool, past: float) -> None:
    part = build(CrossAttention(D, heads=2, gate=gate, past=past, future=0.25 if past < 1 else math.inf))
    x, context = features(5, 3), features(4, 7, rate=2.0, seed=1)
    out, shown = part(x, context, return_attention=True)
    plain = part(x, context)
    assert torch.allclose(plain.data, out.data)
    for i in range(2):
        own, other = clip(x, i), clip(context, i)
        seen = None
        if past < 1:
            seen = torch.tensor(
                [
                    [j / 2 + 0.5 > t / 4 - 0.5 and j / 2 < (t + 1) / 4 + 0.25 for j in range(len(other))]
                    for t in range(len(own))
                ]
            )
        read = looked_up(part.attention, own, other, seen)
        if part.gate is not None:
            read = (
                torch.sigmoid(own @ part.gate.own.weight.T + part.gate.own.bias + read @ part.gate.other.weight.T)
                * read
            )
        expected = torch.stack([part.norm(row) for row in own + read])
        assert torch.allclose(clip(out, i), expected, atol=1e-12)
        assert not out.data[i, ~x.mask[i]].any()
    assert shown.shape == (2, 2, 5, 7)
    rows = shown.sum(3)[:, 0]
    assert torch.allclose(rows[x.mask], torch.ones(1, dtype=rows.dtype))
    assert not rows[~x.mask].any()
    assert not shown.masked_select(~context.mask[:, None, None]).any()


@torch.no_grad()
def test_parallel_and_alternating() -> None:
    audio, video = features(6, 4, rate=8.0), features(3, 2, seed=1)
    parallel, turns = build(PairCoAttention(D, heads=2)), build(PairCoAttention(D, heads=2, order="alternating"))
    turns.load_state_dict(parallel.state_dict())
    (a, v), (over_video, over_audio) = parallel(audio, video, return_attention=True)
    assert over_video.shape == (2, 2, 6, 3)
    assert over_audio.shape == (2, 2, 3, 6)
    assert (a.rate, v.rate) == (8.0, 4.0)
    for i in range(2):
        block = parallel.video
        expected = block.norm(clip(video, i) + looked_up(block.attention, clip(video, i), clip(audio, i)))
        assert torch.allclose(clip(v, i), expected, atol=1e-12)
        expected = parallel.audio.norm(
            clip(audio, i) + looked_up(parallel.audio.attention, clip(audio, i), clip(video, i))
        )
        assert torch.allclose(clip(a, i), expected, atol=1e-12)
    after, same = turns(audio, video)
    assert torch.allclose(same.data, v.data)
    for i in range(2):
        expected = turns.audio.norm(clip(audio, i) + looked_up(turns.audio.attention, clip(audio, i), clip(v, i)))
        assert torch.allclose(clip(after, i), expected, atol=1e-12)


@torch.no_grad()
def test_order_does_not_matter_without_positions_and_does_with_seconds() -> None:
    x, context = features(4), features(6, seed=1)
    turned = context._replace(data=context.data.flip(1))
    blind, timed = build(CrossAttention(D, heads=2)), build(CrossAttention(D, heads=2, positions=True))
    assert torch.allclose(blind(x, context).data, blind(x, turned).data)
    assert not torch.allclose(timed(x, context).data, timed(x, turned).data, atol=1e-3)
    # The same seconds at twice the rate, each step said twice, are the same context.
    twice = Stream(context.data.repeat_interleave(2, 1), context.mask.repeat_interleave(2, 1), 8.0)
    assert torch.allclose(blind(x, context).data, blind(x, twice).data)


@torch.no_grad()
def test_affinity_is_its_loop() -> None:
    part = build(AffinityCoAttention(D))
    audio, video = features(5, 2), features(3, 4, rate=1.0, seed=1)
    (a, v), (over_video, over_audio) = part(audio, video, return_attention=True)
    assert over_video.shape == (2, 1, 5, 4)
    assert over_audio.shape == (2, 1, 4, 5)
    for i in range(2):
        heard, seen = clip(audio, i), clip(video, i)
        affinity = torch.tanh(heard @ part.affinity.weight.T @ seen.T)
        for t in range(len(heard)):
            shares = softmax(affinity[t].tolist())
            read = sum(p * row for p, row in zip(shares, seen, strict=True))
            assert torch.allclose(clip(a, i)[t], heard[t] + read @ part.into_audio.weight.T, atol=1e-12)
            assert torch.allclose(over_video[i, 0, t, : len(seen)], torch.tensor(shares, dtype=torch.float64))
        for t in range(len(seen)):
            shares = softmax(affinity[:, t].tolist())
            read = sum(p * row for p, row in zip(shares, heard, strict=True))
            assert torch.allclose(clip(v, i)[t], seen[t] + read @ part.into_video.weight.T, atol=1e-12)
            assert torch.allclose(over_audio[i, 0, t, : len(heard)], torch.tensor(shares, dtype=torch.float64))


# ----------------------------------------------------------------------------------------------------------- joint form
@torch.no_grad()
@pytest.mark.parametrize("keys", ["identity", "conv", "linear"])
@pytest.mark.parametrize("shared", [False, True])
def test_joint_is_its_loop(keys: str, shared: bool) -> None:
    part = build(JointCoAttention(D, units=3, shared=shared, keys=keys, steps=5 if keys == "linear" else None))
    audio, video = features(5, 3), features(4, 5, seed=1)
    (a, v), affinities = part(audio, video, return_attention=True)
    assert affinities[0].shape == affinities[1].shape == (2, D, 2 * D)
    for i in range(2):
        now = [s.data[i] * s.mask[i, :, None] for s in (audio, video)]
        masks = [s.mask[i] for s in (audio, video)]
        for n in range(3):
            unit = part.units[0 if shared else n]
            joint = torch.stack([unit.joint(torch.cat([now[1][t], now[0][t]])) for t in range(5)])
            after = []
            for m in range(2):
                x = now[m]
                if keys == "linear":
                    key = torch.stack([unit.key[m](x[:, c]) for c in range(D)], 1)
                elif keys == "conv":
                    kernel, shift = unit.key[m].weight[0, 0], unit.key[m].bias[0]
                    near = torch.cat([x[:1] * 0, x, x[:1] * 0])
                    key = torch.stack([sum(kernel[r] * near[t + r] for r in range(3)) + shift for t in range(5)])
                else:
                    key = x
                c = torch.zeros(D, 2 * D, dtype=torch.float64)
                for t in range(5):
                    if masks[m][t]:
                        c += torch.outer(key[t], joint[t])
                c = torch.tanh(c / math.sqrt(2 * D))
                rows = []
                for t in range(5):
                    read = torch.relu(torch.tanh(unit.lift[m](x[t]) @ c))
                    rows.append((x[t] + torch.relu(unit.lower[m](read))) * masks[m][t])
                after.append(torch.stack(rows))
                assert n < 2 or torch.allclose(affinities[m][i], c, atol=1e-12)
            now = after
        assert torch.allclose(a.data[i], now[0], atol=1e-12)
        assert torch.allclose(v.data[i], now[1], atol=1e-12)


def test_joint_sizes_and_its_one_clock() -> None:
    def count(part: nn.Module) -> int:
        return sum(p.numel() for p in part.parameters())

    assert count(JointCoAttention(D, units=4, shared=True)) == count(JointCoAttention(D, units=1))
    assert count(JointCoAttention(D, units=4)) == 4 * count(JointCoAttention(D, units=1))
    with torch.device("meta"):
        one = JointCoAttention.paper()
    linear = 1024 * 1024 + 1024 + 2 * (10 * 10 + 10 + 512 * 512 + 512 + 1024 * 512 + 512)
    assert count(one) == 4 * linear
    part = build(JointCoAttention(D))
    slow, fast = features(4, 4), features(8, 8, rate=8.0, seed=1)
    for other in (fast, slow._replace(rate=2.0), features(4, 4, 4)):
        with pytest.raises(BatchError, match="one rate and length") as error:
            part(slow, other)
        assert "clock_of" in error.value.hint
    after, _ = part(slow, clock_of(fast, slow))
    assert after.data.shape == slow.data.shape
    with pytest.raises(BatchError, match="5 steps"):
        build(JointCoAttention(D, keys="linear", steps=5))(slow, slow)


# -------------------------------------------------------------------------------------------- many streams, many scales
@torch.no_grad()
@pytest.mark.parametrize("mixing", ["sum", "softmax"])
@pytest.mark.parametrize("shared", [False, True])
def test_several_streams_are_their_loop(mixing: str, shared: bool) -> None:
    part = build(MultiPairCoAttention(D, 3, heads=2, mixing=mixing, shared=shared))
    streams = [features(4, 0), features(3, 5, rate=2.0, seed=1), features(2, 6, rate=8.0, seed=2)]
    result, maps = part(streams, return_attention=True)
    assert set(maps) == {(i, j) for i in range(3) for j in range(3) if i != j}
    assert maps[0, 2].shape == (2, 2, 4, 6)
    for clip_number in range(2):
        for i in range(3):
            own = clip(streams[i], clip_number)
            read, logits = [], []
            for j in range(3):
                there = clip(streams[j], clip_number)
                if j == i or not len(there):
                    continue
                block = 0 if shared else part.pairs.index((i, j))
                read.append(looked_up(part.blocks[block], own, there) if len(own) else own)
                logits.append(part.weigh[block](read[-1]) if mixing == "softmax" else None)
            total = sum(read)
            if mixing == "softmax":
                shares = torch.cat(logits, 1).softmax(1)
                total = sum(shares[:, n : n + 1] * r for n, r in enumerate(read))
            assert torch.allclose(clip(result[i], clip_number), part.norms[i](own + total), atol=1e-12)


# ------------------------------------------------------------------------------------------------------ what they share
PARTS = {
    "cross": lambda: CrossAttention(D, heads=2),
    "window": lambda: CrossAttention(D, heads=2, past=0.25, future=0.0, positions=True),
    "additive": lambda: CrossAttention(D, heads=2, score="additive"),
    "pair": lambda: PairCoAttention(D, heads=2, positions=True),
    "alternating": lambda: PairCoAttention(D, heads=2, order="alternating"),
    "gated": lambda: PairCoAttention(D, heads=2, gate=True),
    "affinity": lambda: AffinityCoAttention(D),
    "joint": lambda: JointCoAttention(D),
    "joint-conv": lambda: JointCoAttention(D, keys="conv", shared=True),
    "multi": lambda: MultiPairCoAttention(D, 2, heads=2, positions=True),
    "scales": lambda: MultiScaleAttention(D, heads=2),
    "scales-mix": lambda: MultiScaleAttention(D, heads=2, merge="mix"),
}


def results(part: nn.Module, audio: Stream, video: Stream) -> list[Stream]:
    out = part([audio, video]) if isinstance(part, MultiPairCoAttention) else part(audio, video)
    return [out] if isinstance(out, Stream) else list(out)


@pytest.fixture(params=list(PARTS))
def part(request: pytest.FixtureRequest) -> nn.Module:
    return build(PARTS[request.param]())


def rates(part: nn.Module) -> tuple[float, float]:
    return (4.0, 4.0) if isinstance(part, JointCoAttention) else (4.0, 2.0)


@torch.no_grad()
def test_padding_and_partners_change_nothing(part: nn.Module) -> None:
    first, second = rates(part)
    audio, video = features(5, 3, rate=first), features(5, 4, rate=second, seed=1)
    alone = results(part, audio, video)
    longer = [features(5, 3, rate=first, steps=9), features(5, 4, rate=second, steps=9, seed=1)]
    for s, short in zip(longer, (audio, video), strict=True):
        s.data[:, :5] = short.data
        s.data[~s.mask] = -77.0
    for long, short in zip(results(part, *longer), alone, strict=True):
        assert torch.allclose(long.data[:, : short.data.shape[1]], short.data, atol=1e-12)
        assert not long.data[~long.mask].any()
    one = [s._replace(data=s.data[1:], mask=s.mask[1:]) for s in (audio, video)]
    for single, both in zip(results(part, *one), alone, strict=True):
        assert torch.allclose(single.data[0], both.data[1], atol=1e-12)


def test_a_missing_modality_gives_nothing_and_no_nan(part: nn.Module) -> None:
    first, second = rates(part)
    audio, video = features(5, 3, rate=first), features(0, 0, rate=second, steps=5, seed=1)
    for both in ((audio, video), (video._replace(rate=first), audio._replace(rate=second))):
        streams = [s._replace(data=s.data.clone().requires_grad_()) for s in both]
        out = results(part, *streams)
        sum(o.data.sum() for o in out).backward()
        for o in out:
            assert torch.isfinite(o.data).all()
            assert o.mask.any() or not o.data.any()
        for s in streams:
            if s.data.grad is not None:
                assert torch.isfinite(s.data.grad).all()
                assert not s.data.grad[~s.mask].any()
        assert all(torch.isfinite(p.grad).all() for p in part.parameters() if p.grad is not None)
        if hasattr(part, "norm") and both[0].mask.any():  # one direction: LN of what came
            assert torch.allclose(out[0].data[both[0].mask], part.norm(audio.data[audio.mask]))
    if isinstance(part, PairCoAttention):
        heard, _ = results(part, audio, video)
        assert torch.allclose(heard.data[audio.mask], part.audio.norm(audio.data[audio.mask]))
    if isinstance(part, AffinityCoAttention):
        assert torch.allclose(results(part, audio, video)[0].data[audio.mask], audio.data[audio.mask])


def test_both_modalities_and_every_parameter_get_a_gradient(part: nn.Module) -> None:
    part.train()
    first, second = rates(part)
    streams = [features(6, 5, rate=first), features(6, 6, rate=second, seed=1)]
    streams = [s._replace(data=s.data.clone().requires_grad_()) for s in streams]
    out = results(part, *streams)
    sum((o.data * torch.randn_like(o.data)).sum() for o in out).backward()
    for s in streams:
        assert (s.data.grad[s.mask].abs().sum(1) > 0).any()
        assert not s.data.grad[~s.mask].any()
    for name, parameter in part.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(list(PARTS)),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.floats(0.5, 30),
    st.floats(0.5, 30),
)
def test_any_two_lengths_and_rates(name: str, batch: int, ta: int, tv: int, ra: float, rv: float) -> None:
    part = PARTS[name]().double().eval()
    audio, video = features(*[ta] * batch, rate=ra), features(*[tv] * batch, rate=rv, seed=1)
    if isinstance(part, JointCoAttention):
        video = clock_of(video, audio)
    outs = results(part, audio, video)
    for out, came in zip(outs, (audio, video)[: len(outs)], strict=True):
        assert out.data.shape == came.data.shape
        assert out.mask is came.mask
        assert out.rate == came.rate
        assert torch.isfinite(out.data).all()


def test_errors_name_the_part_and_the_shape() -> None:
    good, wide, other = features(4, 4), features(4, 4, dim=D + 1), features(4)
    for build_one in PARTS.values():
        part = build(build_one())
        with pytest.raises(BatchError, match=r"needs features \[B, T, 8\].*\(2, 4, 9\)"):
            results(part, wide, good)
        with pytest.raises(BatchError):
            results(part, good, other)
    with pytest.raises(BatchError, match="same clips"):
        build(CrossAttention(D))(good, other)
    with pytest.raises(BatchError, match="2 streams, not 3"):
        build(MultiPairCoAttention(D, 2))([good] * 3)
    for wrong, said in (
        (lambda: PairCoAttention(D, order="sideways"), "order"),
        (lambda: CrossAttention(D, past=-1.0), "past"),
        (lambda: JointCoAttention(D, keys="fourier"), "keys"),
        (lambda: JointCoAttention(D, keys="linear"), "steps"),
        (lambda: JointCoAttention(D, steps=4), "steps"),
        (lambda: JointCoAttention(D, units=0), "units"),
        (lambda: JointCoAttention(D, keys="conv", reach=2), "reach"),
        (lambda: MultiPairCoAttention(D, 1), "streams"),
        (lambda: MultiPairCoAttention(D, 3, mixing="max"), "mixing"),
        (lambda: MultiPairCoAttention(D, 2, mixing="softmax"), "two other"),
        (lambda: MultiScaleAttention(D, merge="sum"), "merge"),
        (lambda: MultiScaleAttention(D, strides=(0,)), "strides"),
        (lambda: MultiScaleAttention(D, strides=(2,), merge="mix"), "two scales"),
    ):
        with pytest.raises(ConfigError, match=said):
            wrong()
