"""Events from a memory: the past only, label padding without a say, generation equal to teacher forcing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from avcl.encoders.autoregressive import Core, EventDecoder
from avcl.errors import BatchError, ConfigError
from avcl.objectives import cross_entropy
from avcl.types import Stream

VOCABULARY, STOP = 7, 6
BUILD = {
    "transformer": lambda: EventDecoder(VOCABULARY, memory_dim=3, width=16, depth=2, heads=2),
    "relative": lambda: EventDecoder(VOCABULARY, memory_dim=3, width=16, depth=2, heads=2, relative=True),
    "gru": lambda: EventDecoder(VOCABULARY, memory_dim=3, width=16, depth=2, heads=2, core="gru"),
    "timed": lambda: EventDecoder(
        VOCABULARY, memory_dim=3, width=16, depth=2, heads=2, durations=[0, 0.1, 0.5, 1, 0, 0, 0]
    ),
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def heard(batch: int = 3, steps: int = 5, seed: int = 0) -> Stream:
    mask = torch.ones(batch, steps, dtype=torch.bool)
    mask[0, 3:] = False
    return Stream(random(batch, steps, 3, seed=seed), mask, 22.0)


def events(batch: int = 3, steps: int = 8, seed: int = 0) -> Stream:
    data = torch.randint(0, VOCABULARY, (batch, steps), generator=torch.Generator().manual_seed(seed))
    return Stream(data, torch.ones(batch, steps, dtype=torch.bool), 1.0)


@pytest.fixture(params=list(BUILD))
def net(request: pytest.FixtureRequest) -> EventDecoder:
    torch.manual_seed(0)
    decoder = BUILD[request.param]()
    with torch.no_grad():
        decoder.logits.weight.mul_(8)  # far from uniform, so that argmax and samples say something
    return decoder.eval()


@torch.no_grad()
def test_a_step_reads_the_events_before_it_only(net: EventDecoder) -> None:
    targets, memory = events(), heard()
    out = net(targets, memory).data
    for at in range(8):
        changed = targets.data.clone()
        changed[:, at] = (changed[:, at] + 1) % VOCABULARY
        other = net(targets._replace(data=changed), memory).data
        assert torch.allclose(other[:, : at + 1], out[:, : at + 1], atol=1e-5)
        assert at == 7 or float((other[:, at + 1 :] - out[:, at + 1 :]).abs().amax((1, 2)).min()) > 1e-4


@torch.no_grad()
def test_the_memory_is_read_where_recorded(net: EventDecoder) -> None:
    targets, memory = events(), heard()
    out = net(targets, memory).data
    noisy = torch.where(memory.mask[:, :, None], memory.data, 1e5)
    assert torch.allclose(net(targets, memory._replace(data=noisy)).data, out, atol=1e-5)
    other = net(targets, memory._replace(data=memory.data + 1)).data
    assert float((other - out).abs().amax((1, 2)).min()) > 1e-3
    nothing = net(targets, memory._replace(mask=torch.zeros_like(memory.mask))).data
    assert torch.isfinite(nothing).all()


@pytest.mark.parametrize("name", list(BUILD))
@given(there=st.lists(st.booleans(), min_size=1, max_size=9))
@settings(max_examples=12)
@torch.no_grad()
def test_unrecorded_events_are_as_if_cut_out(name: str, there: list[bool]) -> None:
    torch.manual_seed(0)
    decoder, memory = BUILD[name](), heard(1)
    mask, data = torch.tensor([there]), events(1, len(there)).data
    out = decoder(Stream(torch.where(mask, data, -5), mask, 1.0), memory).data
    assert float(out[~mask].abs().sum()) == 0
    if any(there):
        kept = data[:, mask[0]]
        short = decoder(Stream(kept, torch.ones_like(kept, dtype=torch.bool), 1.0), memory).data
        assert torch.allclose(out[:, mask[0]], short, atol=1e-5)


@torch.no_grad()
def test_greedy_generation_is_the_argmax_of_teacher_forcing(net: EventDecoder) -> None:
    memory = heard()
    out = net.generate(memory, max_steps=12, temperature=0)
    assert out.mask.all()
    assert torch.equal(net(out, memory).data.argmax(2), out.data)
    stopped = net.generate(memory, max_steps=12, temperature=0, stop=int(out.data[0, 2]))
    for row in range(3):
        until = (out.data[row] == out.data[0, 2]).nonzero()
        count = int(until[0]) + 1 if len(until) else 12
        assert stopped.mask[row].sum() == count
        assert torch.equal(stopped.data[row, :count], out.data[row, :count])
        assert float(stopped.data[row, count:].abs().sum()) == 0
    assert stopped.data.shape[1] == int(stopped.mask.sum(1).max())
    forced = net(stopped, memory).data.argmax(2)
    assert torch.equal(forced[stopped.mask], stopped.data[stopped.mask])


@torch.no_grad()
def test_a_generator_decides_the_samples(net: EventDecoder) -> None:
    memory = heard()

    def drawn(seed: int, temperature: float = 1.0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return net.generate(memory, max_steps=10, temperature=temperature, generator=generator).data

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert torch.equal(drawn(1, 1e-4), net.generate(memory, max_steps=10, temperature=0).data)
    with pytest.raises(ConfigError, match="generator"):
        net.generate(memory, max_steps=3)
    with pytest.raises(ConfigError, match="below 0"):
        net.generate(memory, max_steps=3, temperature=-1.0)
    with pytest.raises(ConfigError, match="max_steps"):
        net.generate(memory, max_steps=0, temperature=0)


@torch.no_grad()
def test_samples_follow_the_probabilities(net: EventDecoder) -> None:
    memory = Stream(random(1, 4, 3).expand(4000, -1, -1), torch.ones(4000, 4, dtype=torch.bool), 22.0)
    first = Stream(torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool), 1.0)
    z = net(first, Stream(memory.data[:1], memory.mask[:1], 22.0)).data[0, 0]
    out = net.generate(memory, max_steps=1, temperature=2.0, generator=torch.Generator().manual_seed(0)).data[:, 0]
    share = torch.bincount(out, minlength=VOCABULARY) / 4000
    assert torch.allclose(share, (z / 2).softmax(0), atol=0.03)


@pytest.mark.parametrize("core", ["transformer", "gru"])
def test_a_melody_is_read_off_its_memory(core: Core) -> None:
    """Three notes shown as three gestures, then stop: sequences that were never trained on come out whole."""
    torch.manual_seed(0)
    net = EventDecoder(VOCABULARY, memory_dim=6, width=32, depth=2, heads=2, core=core)
    g = torch.Generator().manual_seed(0)
    every = torch.randperm(216, generator=g)
    notes = torch.cartesian_prod(*[torch.arange(6)] * 3)[every]  # [216, 3]
    stop = torch.full((216, 1), STOP)
    label = Stream(torch.cat([notes, stop, torch.full((216, 2), 99)], 1), torch.arange(6).expand(216, 6) < 4, 1.0)
    shown = torch.nn.functional.one_hot(notes, 6).float()
    gesture = Stream(shown, torch.ones(216, 3, dtype=torch.bool), 2.0)
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(250 if core == "gru" else 150):
        rows = torch.randint(0, 160, (32,), generator=g)
        target, seen = (Stream(s.data[rows], s.mask[rows], s.rate) for s in (label, gesture))
        z = net(target, seen)
        loss = cross_entropy(z.data[target.mask], target.data[target.mask])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held = Stream(shown[160:], gesture.mask[160:], 2.0)
    out = net.eval().generate(held, max_steps=6, stop=STOP, temperature=0)
    right = [out.data[i][out.mask[i]].tolist() == [*notes[160 + i].tolist(), STOP] for i in range(56)]
    assert sum(right) > 45
    blind = net.generate(held._replace(mask=torch.zeros_like(held.mask)), max_steps=6, stop=STOP, temperature=0)
    wrong = [blind.data[i][blind.mask[i]].tolist() == [*notes[160 + i].tolist(), STOP] for i in range(56)]
    assert sum(wrong) < 5


def test_settings_and_shapes_are_checked() -> None:
    for build in (
        lambda: EventDecoder(0, memory_dim=3),
        lambda: EventDecoder(5, memory_dim=0),
        lambda: EventDecoder(5, memory_dim=3, depth=0),
        lambda: EventDecoder(5, memory_dim=3, core="lstm"),  # type: ignore[arg-type]
        lambda: EventDecoder(5, memory_dim=3, core="gru", relative=True),
        lambda: EventDecoder(5, memory_dim=3, width=6, heads=4),
        lambda: EventDecoder(5, memory_dim=3, dropout=1.0),
    ):
        with pytest.raises(ConfigError):
            build()
    net = EventDecoder(VOCABULARY, memory_dim=3)
    with pytest.raises(BatchError, match=r"outside 0\.\.6"):
        net(Stream(torch.tensor([[7]]), torch.ones(1, 1, dtype=torch.bool), 1.0), heard(1))
    with pytest.raises(BatchError, match="memory"):
        net(events(1), Stream(random(1, 4, 2), torch.ones(1, 4, dtype=torch.bool), 1.0))
    with torch.device("meta"):
        paper = EventDecoder.paper()
    assert len(paper.layers) == 6
    assert paper.dim == 243
