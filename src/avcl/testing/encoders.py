"""The contract of an encoder, as (name, check) pairs; ``for name, check in check_encoder(Tower, stream): check()``.

An encoder is a module that takes one or more Streams and gives a Stream, a tensor of one row per clip (a pooling), or
a tuple of these. A check that ``limits`` names must fail: a limit that no longer holds is an error too.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from avcl.errors import AvclError
from avcl.seeds import seed_everything, seeded
from avcl.types import Stream, StreamSpec

Check = Callable[[], None]
Made = Callable[[], nn.Module]
Called = Callable[..., Any]
EXACT = 5e-5  # of the largest output: what another order of summation may change
AUTOCAST, HALF = 0.05, 0.15  # of the length of all outputs together: what bfloat16 may change
HUGE = 1e4  # what stands where nothing was recorded


def stream_of(spec: StreamSpec, *, batch: int = 3, steps: int = 9, tokens: int = 8, seed: int = 0) -> Stream:
    """Random clips of that form: the first is whole, the others end earlier, and the last has a gap.

    ``tokens``: how many different ones a stream of tokens has. What was not recorded holds huge numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, steps, *spec.shape)
    if spec.kind == "tokens":
        data = torch.randint(tokens, shape, generator=generator)
    elif spec.kind == "video":
        data = torch.rand(shape, generator=generator)
    else:
        data = torch.randn(shape, generator=generator) * (0.3 if spec.kind == "audio" else 1.0)
    mask = torch.ones(batch, steps, dtype=torch.bool)
    for i in range(1, batch):
        mask[i, steps - (i * steps) // (2 * batch) :] = False
    if batch > 1 and steps > 4:
        mask[-1, steps // 4 : steps // 2] = False
    return _soiled(Stream(data, mask, spec.rate), seed)


def check_encoder(
    make: nn.Module | Made,
    streams: Stream | Sequence[Stream],
    *,
    call: Called | None = None,
    limits: Mapping[str, str] | None = None,
) -> list[tuple[str, Check]]:
    """Every check of the module that ``make`` is or builds, on ``streams`` (each of two or more clips).

    ``call(module, *streams)``: how the module is used, where that is not ``module(*streams)``: for a part that takes
    tensors and masks. ``limits`` {check: reason}: what this module cannot fulfil.

    dim: the width of the last axis is the attribute ``dim`` (a tuple of widths where there are several outputs) ·
    padding: what stands where nothing was recorded, behind the end or in a gap, changes nothing, and outputs there are
    zeros · order: clips do not meet · clock: rate and mask are those of the seconds that were recorded · gradient: it
    reaches every parameter that asks for one · autocast, half: bfloat16 gives nearly the same · store: the weights
    written and read give the same bits · determinism: evaluation draws nothing at random · empty: a clip without
    anything gives zeros and finite gradients.
    """
    given = (streams,) if isinstance(streams, Stream) else tuple(streams)
    limits = limits or {}
    used = call or (lambda module, *inputs: module(*inputs))
    checks = (_dim, _padding, _order, _clock, _gradient, _autocast, _half, _store, _determinism, _empty)
    named = {check.__name__.removeprefix("_"): partial(check, partial(_made, make), used, given) for check in checks}
    unknown = limits.keys() - named.keys()
    if unknown:
        raise ValueError(f"there is no check {', '.join(sorted(unknown))}; known: {', '.join(named)}.")
    return [(name, partial(_with_limits, name, check, limits)) for name, check in named.items()]


def _with_limits(name: str, check: Check, limits: Mapping[str, str]) -> None:
    if name not in limits:
        return check()
    try:
        check()
    except (AssertionError, AvclError, AttributeError, RuntimeError):
        return None
    raise AssertionError(f"the limit {name!r} is declared, but the check passes: remove the limit.")


# ------------------------------------------------------------------------------------------------------------- calling
def _made(make: nn.Module | Made, seed: int = 0) -> nn.Module:
    if isinstance(make, nn.Module):
        return copy.deepcopy(make).eval()
    with seeded(seed, "encoder"):
        return make().eval()


def _outputs(used: Called, module: nn.Module, inputs: Sequence[Stream]) -> tuple[Stream | Tensor, ...]:
    found = used(module, *inputs)
    parts = (found,) if isinstance(found, Stream | Tensor) else tuple(found)
    assert parts, "nothing came out"
    for part in parts:
        assert isinstance(part, Stream | Tensor), f"{type(part).__name__} is not a Stream or rows"
    return parts


def _tensors(parts: Sequence[Stream | Tensor]) -> list[Tensor]:
    return [part.data if isinstance(part, Stream) else part for part in parts]


def _near(value: Tensor, expected: Tensor, what: str) -> None:
    assert value.shape == expected.shape, f"{what}: {tuple(value.shape)} instead of {tuple(expected.shape)}"
    if not value.numel():
        return
    allowed = EXACT * max(1.0, float(expected.abs().max()))
    error = float((value - expected).abs().max())
    assert error <= allowed, f"{what}: differs by {error:.2e}, allowed are {allowed:.2e}"


def _fresh(seed: int, given: Tensor) -> Tensor:
    """Huge numbers in place of a tensor's; tokens stay tokens."""
    generator = torch.Generator().manual_seed(seed)
    if given.is_floating_point():
        return torch.randn(given.shape, generator=generator).to(given.dtype) * HUGE
    return given.flatten()[torch.randint(given.numel(), given.shape, generator=generator)]


def _soiled(stream: Stream, seed: int) -> Stream:
    """Something else wherever nothing was recorded."""
    keep = stream.mask.reshape(*stream.mask.shape, *[1] * (stream.data.ndim - 2))
    return stream._replace(data=torch.where(keep, stream.data, _fresh(seed, stream.data)))


def _longer(stream: Stream, extra: int, seed: int) -> Stream:
    tail = stream.data[:, :1].expand(-1, extra, *stream.data.shape[2:])
    more = torch.zeros(len(stream.mask), extra, dtype=torch.bool)
    return _soiled(Stream(torch.cat([stream.data, tail], 1), torch.cat([stream.mask, more], 1), stream.rate), seed)


def _rows(stream: Stream, which: Tensor) -> Stream:
    return stream._replace(data=stream.data[which], mask=stream.mask[which])


def _without(stream: Stream, row: int) -> Stream:
    mask = stream.mask.clone()
    mask[row] = False
    return _soiled(stream._replace(mask=mask), 3)


# -------------------------------------------------------------------------------------------------------------- checks
@torch.no_grad()
def _dim(made: Made, used: Called, given: tuple[Stream, ...]) -> None:
    module = made()
    parts = _outputs(used, module, given)
    dim = getattr(module, "dim", None)
    assert dim is not None, "the module has no attribute dim"
    widths = dim if isinstance(dim, tuple) else (dim,) * len(parts)
    assert len(widths) == len(parts), f"{len(parts)} outputs, but dim has {len(widths)} widths"
    for part, width in zip(parts, widths, strict=True):
        data = part.data if isinstance(part, Stream) else part
        assert data.shape[-1] == width, f"dim is {width}, the output {tuple(data.shape)}"
        assert data.dtype == torch.float32, f"float32 gives {data.dtype}"
        assert len(data) == len(given[0].mask), "the batch has another size"
        assert bool(torch.isfinite(data).all()), "an output is not finite"
        if isinstance(part, Stream):
            assert part.mask.dtype == torch.bool
            assert part.mask.shape == data.shape[:2], f"mask {tuple(part.mask.shape)}, data {tuple(data.shape)}"


@torch.no_grad()
def _padding(made: Made, used: Called, given: tuple[Stream, ...]) -> None:
    module = made()
    alone = _outputs(used, module, given)
    for part in alone:
        if isinstance(part, Stream):
            assert not bool(part.data[~part.mask].any()), "an output is not zero where nothing was recorded"
    for part, other in zip(alone, _outputs(used, module, [_soiled(s, 1) for s in given]), strict=True):
        _same(other, part, "other numbers where nothing was recorded")
    longest = max(s.mask.shape[1] for s in given)
    for extra in sorted({1, 2, longest // 2 + 1}):
        for i in range(len(given)):
            inputs = [_longer(s, extra, 2) if i == k else s for k, s in enumerate(given)]
            for part, other in zip(alone, _outputs(used, module, inputs), strict=True):
                _same(other, part, f"{extra} steps behind the end of input {i}")


def _same(found: Stream | Tensor, expected: Stream | Tensor, what: str) -> None:
    """The same numbers on the same clock; steps behind the end of ``expected`` are unrecorded zeros."""
    if not isinstance(found, Stream) or not isinstance(expected, Stream):
        return _near(torch.as_tensor(found), torch.as_tensor(expected), what)
    steps = expected.mask.shape[1]
    assert found.mask.shape[1] >= steps, f"{what}: fewer steps come out"
    assert found.rate == expected.rate, f"{what}: the rate is {found.rate:g} instead of {expected.rate:g}"
    assert torch.equal(found.mask[:, :steps], expected.mask), f"{what}: the mask is another one"
    assert not bool(found.mask[:, steps:].any()), f"{what}: padding became recorded"
    assert not bool(found.data[:, steps:].any()), f"{what}: an output is not zero there"
    return _near(found.data[:, :steps], expected.data, what)


@torch.no_grad()
def _order(made: Made, used: Called, given: tuple[Stream, ...]) -> None:
    module, size = made(), len(given[0].mask)
    assert size > 1, "one clip has no order; give two or more"
    parts = _tensors(_outputs(used, module, given))
    training = made().train()
    normed = [n for n, m in training.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    assert not normed, f"statistics of the batch in {', '.join(normed)}"
    turned = torch.arange(size).roll(1)
    for which, what in ((turned, "another order of the batch"), (turned[:1], "a clip alone")):
        for part, other in zip(parts, _tensors(_outputs(used, module, [_rows(s, which) for s in given])), strict=True):
            _near(other, part[which], what)


@torch.no_grad()
def _clock(made: Made, used: Called, given: tuple[Stream, ...]) -> None:
    module = made()
    for part in _outputs(used, module, given):
        if isinstance(part, Stream):
            wrong = [_off(part, source) for source in given]
            assert "" in wrong, "; ".join(wrong)


def _off(part: Stream, source: Stream) -> str:
    """What is wrong with the clock of an output, were it that of ``source``; empty where nothing is."""
    slow = 1 / min(part.rate, source.rate)
    ends = part.mask.shape[1] / part.rate, source.mask.shape[1] / source.rate
    if abs(ends[0] - ends[1]) > slow * (1 + 1e-6):
        return f"{ends[0]:g} s come out of {ends[1]:g} s"
    starts = torch.arange(source.mask.shape[1], dtype=torch.float64) / source.rate
    for j in range(part.mask.shape[1]):
        first, last = j / part.rate, (j + 1) / part.rate
        inside = (starts + 1 / source.rate > first + 1e-9) & (starts < last - 1e-9)
        near = (starts + 1 / source.rate > first - slow) & (starts < last + slow)
        for mine, theirs in zip(part.mask[:, j], source.mask, strict=True):
            if bool(mine) and not bool(theirs[near].any()):
                return f"the step at {first:g} s is marked as recorded, but nothing near it was"
            if not bool(mine) and bool(inside.any()) and bool(theirs[inside].all()):
                return f"the step at {first:g} s is marked as missing, but all of it was recorded"
    return ""


def _loss(parts: Sequence[Stream | Tensor]) -> Tensor:
    """A sum with fixed random weights: a plain one has no gradient through a norm."""
    generator = torch.Generator().manual_seed(5)
    weighted = [(x.float() * torch.randn(x.shape, generator=generator)).sum() for x in _tensors(parts)]
    return torch.stack(weighted).sum()


def _moved(module: nn.Module) -> nn.Module:
    """The module at a general point: what is zero only at the start does not hide the way of the gradient."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return module


def _gradient(made: Made, used: Called, given: tuple[Stream, ...]) -> None:
    module = _moved(made()).train()
    wanted = {name: p for name, p in module.named_parameters() if p.requires_grad}
    inputs = [s._replace(data=s.data.clone().requires_grad_()) if s.data.is_floating_point() else s for s in given]
    seed_everything(0)
    _loss(_outputs(used, module, inputs)).backward()
    without = [name for name, p in wanted.items() if p.grad is None or not bool(p.grad.any())]
    assert not without, f"no gradient reaches {', '.join(without)}"
    for name, p in wanted.items():
        assert bool(torch.isfinite(torch.as_tensor(p.grad)).all()), f"the gradient of {name} is not finite"
    for i, stream in enumerate(inputs):
        if stream.data.is_floating_point() and wanted:
            assert stream.data.grad is not None, f"no gradient reaches input {i}"
            assert bool(stream.data.grad.any()), f"no gradient reaches input {i}"
            assert not bool(stream.data.grad[~stream.mask].any()), "a gradient reaches what was not recorded"


def _apart(found: Sequence[Tensor], expected: Sequence[Tensor], allowed: float) -> None:
    for value, right in zip(found, expected, strict=True):
        assert bool(torch.isfinite(value).all()), "an output is not finite"
        error = float((value.float() - right).norm() / right.norm().clamp(min=1e-6))
        assert error <= allowed, f"differs by {error:.1%}, allowed are {allowed:.0%}"


@torch.no_grad()
def _autocast(made: Made, used: Called, given: tuple[Stream, ...]) -> None:
    module = made()
    exact = _tensors(_outputs(used, module, given))
    with torch.autocast("cpu", torch.bfloat16):
        found = _tensors(_outputs(used, module, given))
    _apart(found, exact, AUTOCAST)


@torch.no_grad()
def _half(made: Made, used: Called, given: tuple[Stream, ...]) -> None:
    """A module in bfloat16, fed with bfloat16."""
    rounded = [s._replace(data=s.data.bfloat16()) if s.data.is_floating_point() else s for s in given]
    again = [s._replace(data=s.data.float()) if s.data.is_floating_point() else s for s in rounded]
    exact = _tensors(_outputs(used, made(), again))
    _apart(_tensors(_outputs(used, made().bfloat16(), rounded)), exact, HALF)


@torch.no_grad()
def _store(made: Made, used: Called, given: tuple[Stream, ...]) -> None:
    module, other = made(), made()
    for tensor in other.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(1.0)
    tensors = {name: t.detach().clone().contiguous() for name, t in module.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        save_file(tensors, Path(folder) / "weights.safetensors")
        other.load_state_dict(load_file(Path(folder) / "weights.safetensors"))
    for one, two in zip(_tensors(_outputs(used, module, given)), _tensors(_outputs(used, other, given)), strict=True):
        assert torch.equal(one, two), "the weights that were read give something else"


@torch.no_grad()
def _determinism(made: Made, used: Called, given: tuple[Stream, ...]) -> None:
    before = [s.data.clone() for s in given]
    found = []
    for seed in (0, 1):
        module = made()
        seed_everything(seed)
        found.append(_tensors(_outputs(used, module, given)))
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two), "two evaluations differ"
    for stream, data in zip(given, before, strict=True):
        assert torch.equal(stream.data, data), "an input was changed in place"


def _empty(made: Made, used: Called, given: tuple[Stream, ...]) -> None:
    """The last clip has nothing: of all inputs, and of each alone; the others do not notice."""
    module = _moved(made())
    with torch.no_grad():
        whole = _tensors(_outputs(used, module, given))
    for which in [range(len(given)), *([i] for i in range(len(given)) if len(given) > 1)]:
        inputs = [_without(s, -1) if i in which else s for i, s in enumerate(given)]
        leaves = [s._replace(data=s.data.clone().requires_grad_()) if s.data.is_floating_point() else s for s in inputs]
        parts = _outputs(used, module, leaves)
        for part, full in zip(_tensors(parts), whole, strict=True):
            assert bool(torch.isfinite(part).all()), "an output is not finite"
            _near(part.detach()[:-1], full[:-1], "the other clips")
            if len(which) == len(given):
                assert not bool(part[-1].any()), "nothing recorded does not give zeros"
        module.zero_grad()
        loss = _loss(parts)
        if loss.requires_grad:
            loss.backward()
        slopes = [p.grad for p in module.parameters()] + [s.data.grad for s in leaves]
        assert all(bool(torch.isfinite(g).all()) for g in slopes if g is not None), "a gradient is not finite"
