"""Memory attention: equal to its equations, streamed or whole; bounded; a cue is recalled that no window can see."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from avcl.errors import BatchError, ConfigError
from avcl.nn import memory_attention
from avcl.nn.memory_attention import MemoryAttention, MemoryStack, SlotMemory
from avcl.types import Stream


def stream(batch: int, steps: int, dim: int, rate: float, seed: int = 0, *, whole: bool = False) -> Stream:
    """Random features; the rows end at different steps, the last one has a gap, and garbage stands behind the mask."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(batch, steps, dim, generator=generator)
    mask = torch.ones(batch, steps, dtype=torch.bool)
    if not whole:
        for i in range(1, batch):
            mask[i, steps - (i * steps) // (2 * batch) :] = False
        mask[-1, steps // 4 : steps // 2] = False
        data = torch.where(mask[:, :, None], data, 1e3)
    return Stream(data, mask, rate)


def part(given: Stream, start: int, end: int) -> Stream:
    return given._replace(data=given.data[:, start:end], mask=given.mask[:, start:end])


def general(layer: nn.Module) -> nn.Module:
    """At a general point: no parameter is zero or one because training starts there."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return layer.eval()


def by_hand(layer: MemoryAttention, x: Stream, y: Stream) -> tuple[Tensor, Tensor]:
    """The equations, clip by clip, segment by segment and query by query; what was not recorded is left out."""
    size, out = layer.segment, torch.zeros(*x.mask.shape, layer.dim)
    count = max(-(-y.mask.shape[1] // size), math.ceil(x.mask.shape[1] / x.rate * y.rate / size))
    ends = []
    for row in range(len(x.mask)):

        def keys(s: int, row: int = row) -> tuple[Tensor, Tensor]:
            steps = [j for j in range(s * size, min((s + 1) * size, y.mask.shape[1])) if y.mask[row, j]]
            seconds = torch.tensor([(j - s * size) / y.rate for j in steps], dtype=torch.float64)
            entered = (layer.enter or layer.norm)(y.data[row, steps])
            return entered + layer.clock.code(seconds).float(), seconds

        def written(memory: SlotMemory, order: list[int], row: int = row) -> dict[int, Tensor]:
            slots, seen = torch.zeros(memory.slots, layer.dim), {}
            for s in order:
                seen[s] = slots + memory.address
                segment, _ = keys(s, row)
                if not len(segment):
                    continue
                u = memory.attention(seen[s][None], segment[None])[0][0]
                g = torch.sigmoid(torch.cat([seen[s], u], 1) @ memory.gate.weight.T + memory.pace)
                fresh = (u - u.mean(1, keepdim=True)) / (u.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
                slots = (1 - g) * slots + g * fresh
            ends.append(slots)
            return seen

        before = written(layer.memory, list(range(count)))
        after = written(layer.ahead, list(range(count))[::-1]) if layer.ahead is not None else None
        for i in range(x.mask.shape[1]):
            if not x.mask[row, i]:
                continue
            s = math.floor((i * y.rate / x.rate + 1e-6) / size)
            second = torch.tensor([i / x.rate - s * size / y.rate], dtype=torch.float64)
            query = layer.norm(x.data[row, i : i + 1]) + layer.clock.code(second).float()
            segment, seconds = keys(s)
            if layer.causal:
                segment = segment[seconds <= second + 1e-7]
            held = [before[s]] if after is None else [before[s], after[s]]
            found = x.data[row, i : i + 1] + layer.read(query[None], torch.cat([*held, segment])[None])[0][0]
            out[row, i] = (found + layer.feed(layer.feed_norm(found)))[0]
    return out, torch.stack(ends[:: 2 if layer.ahead is not None else 1])


@pytest.mark.parametrize("form", ["plain", "causal", "bidirectional"])
@pytest.mark.parametrize("cross", [False, True])
@torch.no_grad()
def test_equals_its_equations(form: str, cross: bool) -> None:
    torch.manual_seed(0)
    x = stream(3, 23, 8, 29.97)
    y = stream(3, 10, 6, 12.5, seed=1) if cross else x
    options = {"causal": form == "causal", "bidirectional": form == "bidirectional"}
    layer = MemoryAttention(8, context_dim=6 if cross else None, heads=2, slots=3, segment=4, **options)
    general(layer)
    out = layer(x, y) if cross else layer(x)
    expected, slots = by_hand(layer, x, y)
    assert torch.allclose(out.data, expected, atol=1e-5)
    assert torch.equal(out.mask, x.mask)
    assert out.rate == x.rate
    if form == "plain":
        whole = layer.step(x, layer.start(3), y if cross else None)[1]
        assert torch.allclose(whole.slots, slots, atol=1e-5)


@settings(max_examples=25)
@given(
    steps=st.integers(1, 40),
    memory_steps=st.integers(1, 40),
    rate=st.floats(0.7, 60),
    memory_rate=st.floats(0.7, 60),
    segment=st.integers(1, 9),
)
@torch.no_grad()
def test_queries_of_any_rate_meet_their_segment(
    steps: int, memory_steps: int, rate: float, memory_rate: float, segment: int
) -> None:
    if steps / rate * memory_rate > 200:  # the loop below is slow
        steps = max(1, int(200 * rate / memory_rate))
    torch.manual_seed(0)
    layer = general(MemoryAttention(4, context_dim=3, heads=1, slots=2, segment=segment))
    x, y = stream(2, steps, 4, rate), stream(2, memory_steps, 3, memory_rate, seed=1)
    assert isinstance(layer, MemoryAttention)
    assert torch.allclose(layer(x, y).data, by_hand(layer, x, y)[0], atol=1e-4)


# ----------------------------------------------------------------------------------------------------------- streaming
@pytest.mark.parametrize("chunk", [4, 8, 20, 100])
@pytest.mark.parametrize("causal", [False, True])
@torch.no_grad()
def test_steps_give_what_forward_gives(chunk: int, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_attention, "BLOCK", 12)
    torch.manual_seed(0)
    layer = general(MemoryAttention(8, heads=2, slots=3, segment=4, causal=causal))
    given = stream(3, 50, 8, 25.0)
    state, outs = layer.start(3), []
    for at in range(0, 50, chunk):
        out, state = layer.step(part(given, at, at + chunk), state)
        outs.append(out.data)
    assert float((torch.cat(outs, 1) - layer(given).data).abs().max()) <= 1e-6
    assert state.steps == state.queries == 50
    with pytest.raises(BatchError, match="within a segment"):
        layer.step(part(given, 0, 4), state)


@torch.no_grad()
def test_two_streams_step_together() -> None:
    torch.manual_seed(0)
    layer = general(MemoryAttention(8, context_dim=6, heads=2, slots=3, segment=5))
    x, y = stream(2, 90, 8, 29.97), stream(2, 30, 6, 10.0, seed=1)  # a segment is half a second: 14 or 15 of x
    state, outs, asked = layer.start(2), [], 0
    for s in range(6):
        until = math.ceil((s + 1) * 0.5 * 29.97) if s < 5 else 90
        out, state = layer.step(part(x, asked, until), state, part(y, 5 * s, 5 * s + 5))
        outs.append(out.data)
        asked = until
    assert float((torch.cat(outs, 1) - layer(x, y).data).abs().max()) <= 1e-6
    with pytest.raises(BatchError, match="the same seconds"):
        layer.step(part(x, 0, 3), state._replace(queries=0), part(y, 0, 5))


@torch.no_grad()
def test_a_stack_streams() -> None:
    torch.manual_seed(0)
    stack = MemoryStack([MemoryAttention(8, heads=2, slots=3, segment=s) for s in (2, 4)])
    general(stack)
    given = stream(3, 22, 8, 25.0)
    states, outs = stack.start(3), []
    for at in range(0, 22, 4):
        out, states = stack.step(part(given, at, at + 4), states)
        outs.append(out.data)
    assert float((torch.cat(outs, 1) - stack(given).data).abs().max()) <= 1e-6
    assert stack.dim == 8


@torch.no_grad()
def test_a_segment_of_padding_leaves_the_memory_alone() -> None:
    torch.manual_seed(0)
    layer = general(MemoryAttention(8, heads=2, slots=3, segment=4))
    state = layer.step(stream(2, 8, 8, 25.0, whole=True), layer.start(2))[1]
    nothing = stream(2, 4, 8, 25.0, seed=3, whole=True)
    nothing.mask[0] = False
    out, after = layer.step(nothing, state)
    assert torch.equal(after.slots[0], state.slots[0])
    assert not torch.equal(after.slots[1], state.slots[1])
    assert not out.data[0].any()


@torch.no_grad()
def test_the_memory_stays_bounded_for_ever() -> None:
    torch.manual_seed(0)
    layer, state = general(MemoryAttention(8, heads=2, slots=3, segment=4)), MemoryAttention(8, slots=3).start(1)
    for seed in range(40):
        loud = stream(1, 400, 8, 25.0, seed=seed, whole=True)
        state = layer.step(loud._replace(data=loud.data * 1e3 + 1e3), state)[1]
        assert float(state.slots.abs().max()) <= math.sqrt(8)
    assert state.slots.dtype == torch.float32
    assert layer.bfloat16().start(1).slots.dtype == torch.float32


# ------------------------------------------------------------------------------------------------- who sees what, maps
def reached(layer: MemoryAttention) -> Tensor:
    """[T, T]: does the output at i (row) change with the input at j?"""
    given = stream(1, 12, 8, 25.0, whole=True)
    rows = torch.zeros(12, 12, dtype=torch.bool)
    whole = layer(given).data
    for j in range(12):
        other = given.data.clone()
        other[0, j] += torch.linspace(-1, 1, 8)
        rows[:, j] = (layer(given._replace(data=other)).data - whole).abs().amax(2)[0] > 1e-7
    return rows


@torch.no_grad()
def test_who_sees_whom() -> None:
    torch.manual_seed(0)
    segment = torch.arange(12) // 4
    seen = reached(general(MemoryAttention(8, heads=2, slots=3, segment=4)))
    assert torch.equal(seen, segment[None] <= segment[:, None])
    seen = reached(general(MemoryAttention(8, heads=2, slots=3, segment=4, causal=True)))
    assert torch.equal(seen, torch.ones(12, 12).tril().bool())
    assert reached(general(MemoryAttention(8, heads=2, slots=3, segment=4, bidirectional=True))).all()


@torch.no_grad()
def test_maps_show_slots_and_the_own_segment() -> None:
    torch.manual_seed(0)
    given = stream(3, 11, 8, 25.0)
    for both, slots in ((False, 3), (True, 6)):
        layer = general(MemoryAttention(8, heads=2, slots=3, segment=4, bidirectional=both))
        out, shown = layer(given, return_attention=True)
        assert torch.allclose(out.data, layer(given).data, atol=1e-5)
        assert shown.shape == (3, 2, 11, slots + 4)
        assert torch.allclose(shown.sum(3), given.mask[:, None].float().expand(-1, 2, -1), atol=1e-5)
        assert not shown[:, :, 8:, slots + 3].any()  # the twelfth step is not there
    cross = general(MemoryAttention(8, context_dim=8, heads=2, slots=3, segment=4))
    shown = cross(given, stream(3, 30, 8, 60.0), return_attention=True)[1]
    assert shown.shape == (3, 2, 11, 7)


# ------------------------------------------------------------------------------------------------------------ training
def gradients(layer: MemoryAttention, given: Stream, at: int) -> tuple[Tensor, list[Tensor]]:
    """Of the output at one step, toward the input and the parameters."""
    data = given.data.clone().requires_grad_()
    layer.zero_grad()
    layer(given._replace(data=data)).data[0, at].square().sum().backward()
    assert data.grad is not None
    return data.grad[0].abs().amax(1) > 0, [p.grad.clone() for p in layer.parameters() if p.grad is not None]


def test_truncation_ends_the_gradient_and_changes_no_value() -> None:
    torch.manual_seed(0)
    given = stream(1, 24, 8, 25.0, whole=True)
    layer = general(MemoryAttention(8, heads=2, slots=3, segment=4))
    value = layer(given).data.detach()
    assert gradients(layer, given, 23)[0].all()
    layer.truncate = 2
    assert torch.equal(layer(given).data, value)
    assert gradients(layer, given, 23)[0].tolist() == [False] * 16 + [True] * 8
    assert gradients(layer, given, 15)[0].tolist() == [False] * 8 + [True] * 8 + [False] * 8


@pytest.mark.parametrize("both", [False, True])
def test_recomputing_holds_less_and_gives_the_same_gradients(both: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_attention, "BLOCK", 8)
    torch.manual_seed(0)
    given = stream(1, 64, 8, 25.0, whole=True)
    layer = general(MemoryAttention(8, heads=2, slots=3, segment=4, bidirectional=both))
    plain = gradients(layer, given, 60)[1]

    def held() -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.nbytes), t)[1], lambda t: t):
            layer(given)
        return sum(sizes)

    before = held()
    layer.recompute = True
    assert held() < before / (2 if both else 20)  # the backward scan is kept
    for a, b in zip(plain, gradients(layer, given, 60)[1], strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def cued(count: int, steps: int, generator: torch.Generator) -> tuple[Stream, Tensor]:
    """Noise, and one of four cues at a step of the first eight."""
    data = 0.5 * torch.randn(count, steps, 16, generator=generator)
    cue, at = (torch.randint(high, (count,), generator=generator) for high in (4, 8))
    data[torch.arange(count), at] = 3.0 * torch.eye(16)[cue]
    return Stream(data, torch.ones(count, steps, dtype=torch.bool), 25.0), cue


def recall(*, memory: bool) -> dict[int, float]:
    """Trained to name the cue at the last of 32 steps; right answers (chance: 0.25) at that and at longer lengths."""
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(1)
    layer, head = MemoryAttention(16, heads=2, slots=4, segment=8, retain=16), nn.Linear(16, 4)
    optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=5e-3)

    def answers(given: Stream) -> Tensor:
        # Without its past the last segment is attention within a window.
        return head(layer(given if memory else part(given, given.mask.shape[1] - 8, given.mask.shape[1])).data[:, -1])

    for _ in range(250):
        given, cue = cued(32, 32, generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(answers(given), cue).backward()
        optimizer.step()
    right = {}
    with torch.no_grad():
        for steps in (32, 128):
            given, cue = cued(200, steps, generator)
            right[steps] = float((answers(given).argmax(1) == cue).float().mean())
    return right


def test_a_cue_at_the_start_is_recalled_at_the_end() -> None:
    with_memory, without = recall(memory=True), recall(memory=False)
    assert with_memory[32] > 0.85
    assert with_memory[128] > 0.6  # four times as long as any clip of the training
    assert max(without.values()) < 0.4


# -------------------------------------------------------------------------------------------------------------- errors
def test_wrong_settings_and_shapes_are_named() -> None:
    for wrong in ({"segment": 0}, {"truncate": 0}, {"slots": 0}, {"retain": 1.0}):
        with pytest.raises(ConfigError):
            MemoryAttention(8, **wrong)
    with pytest.raises(ConfigError, match="choose causal or bidirectional"):
        MemoryAttention(8, causal=True, bidirectional=True)
    given = stream(2, 5, 8, 25.0)
    with pytest.raises(ConfigError, match="bidirectional"):
        MemoryAttention(8, bidirectional=True).step(given, MemoryAttention(8).start(2))
    with pytest.raises(BatchError, match="takes a context"):
        MemoryAttention(8)(given, given)
    with pytest.raises(BatchError, match="takes a context"):
        MemoryAttention(8, context_dim=8)(given)
    with pytest.raises(BatchError, match=r"needs \[2, T, 6\]"):
        MemoryAttention(8, context_dim=6)(given, given)
    with pytest.raises(BatchError, match="slots"):
        MemoryAttention(8).step(given, MemoryAttention(8).start(1))
    with pytest.raises(ConfigError, match="one width"):
        MemoryStack([MemoryAttention(8), MemoryAttention(16)])


@torch.no_grad()
def test_a_stream_without_steps_is_no_error() -> None:
    layer = MemoryAttention(8)
    out = layer(stream(2, 5, 8, 25.0)._replace(data=torch.zeros(2, 0, 8), mask=torch.zeros(2, 0, dtype=torch.bool)))
    assert out.data.shape == (2, 0, 8)
