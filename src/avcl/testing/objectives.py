"""The contract of an objective, as (name, check) pairs; ``for name, check in check_objective(loss, sample): check()``.

``sample`` says what a batch looks like to that objective: it is given a ``Toy`` and returns the ``Call``, in which
every tensor is marked as ``Rows``, ``Grid`` or ``Free``; what is not marked is a setting and reaches the objective as
it is. A check that ``limits`` names must fail, and an edge that ``refuses`` names must raise an AvclError: a limit
that no longer holds is an error too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from avcl.errors import AvclError

Check = Callable[[], None]
EDGES = {
    "one": "a batch of one row",
    "one_class": "every row has the same label",
    "identical": "all rows of all views are the same",
    "negative": "every similarity between the two views is below zero",
    "zero": "all rows are zero",
    "huge": "similarities and logits around 1e4",
}
PARTS = ("Shapes", "Sign|[Ll]ower|[Hh]igher", "Reduction", "Raises", "Paper", "Pitfall")
LOOSE, TIGHT = 1e-3, 1e-5  # relative to the largest entry: gradients, values


@dataclass(frozen=True)
class Rows:
    """A tensor with one row a clip. ``moved``: the partner, which a shuffled batch gives to the wrong clips; ``fixed``:
    the objective passes it no gradient, although it floats."""

    value: Tensor
    moved: bool = False
    fixed: bool = False


@dataclass(frozen=True)
class Grid:
    """A tensor [B, B] over pairs of clips (a mask, a target): a permutation of the batch turns both axes."""

    value: Tensor


@dataclass(frozen=True)
class Free:
    """A learnable tensor that does not belong to the batch (a temperature, class centers); it keeps full precision."""

    value: Tensor


class Call:
    """One call of an objective: positional and keyword arguments."""

    def __init__(self, *args: Any, **keywords: Any):
        self.args, self.keywords = args, keywords

    def mapped(self, change: Callable[[Any], Any]) -> Call:
        args = [change(value) for value in self.args]  # first the positional ones: ``change`` may count
        return Call(*args, **{name: change(value) for name, value in self.keywords.items()})

    def values(self) -> list[Any]:
        return [*self.args, *self.keywords.values()]


@dataclass(frozen=True)
class Toy:
    """A small float64 batch in the manner of ``case`` ("plain" or one of EDGES): B rows in classes of two.

    ``a``, ``v`` [B, D]: two views of each clip, near each other and near their class; unit length unless ``case`` is
    about lengths · ``label`` [B] int64 · ``generator``: for anything else that is drawn.
    """

    case: str
    a: Tensor
    v: Tensor
    label: Tensor
    generator: torch.Generator

    def __len__(self) -> int:
        return len(self.label)

    def free(self, *shape: int) -> Tensor:
        """Standard normal float64 that has nothing to do with the case."""
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def rows(self, *shape: int) -> Tensor:
        """[B, *shape] in the manner of the case: equal, negative, zero or huge rows (logits, spectra, posteriors)."""
        x = self.free(len(self), *shape)
        ways: dict[str, Callable[[], Tensor]] = {
            "identical": lambda: x[:1].expand_as(x).clone(),
            "negative": lambda: -x.abs(),
            "zero": lambda: torch.zeros_like(x),
            "huge": lambda: 1e4 * x,
        }
        return ways.get(self.case, lambda: x)()


Sample = Callable[[Toy], Call]


def toy(case: str, *, size: int = 6, dim: int = 4, seed: int = 0) -> Toy:
    """The batch of ``case``."""
    generator = torch.Generator().manual_seed(seed)

    def noise(rows: int) -> Tensor:
        return torch.randn(rows, dim, generator=generator, dtype=torch.float64)

    size = 1 if case == "one" else size
    label = torch.zeros(size, dtype=torch.int64) if case == "one_class" else torch.arange(size) // 2
    centers = normalize(noise(size), dim=1)
    a = normalize(centers[label] + 0.3 * noise(size), dim=1)
    v = normalize(a + 0.2 * noise(size), dim=1)
    if case == "identical":
        a = v = centers[:1].expand(size, dim)
    elif case == "negative":
        a, v = (normalize(sign * centers[:1] + 0.2 * noise(size), dim=1) for sign in (1, -1))
        assert bool((a @ v.T < 0).all())
    elif case == "zero":
        a = v = torch.zeros(size, dim, dtype=torch.float64)
    elif case == "huge":
        a, v = 100 * a, 100 * v
    return Toy(case, a.clone(), v.clone(), label, generator)


def check_objective(
    function: Callable[..., Tensor],
    sample: Sample,
    *,
    limits: Mapping[str, str] | None = None,
    refuses: Mapping[str, str] | None = None,
    size: int = 6,
    dim: int = 4,
) -> list[tuple[str, Check]]:
    """Every check of ``function``, with batches of ``size`` rows and ``dim`` columns.

    ``limits`` {check: reason}: what this objective cannot fulfil. ``refuses`` {edge: reason}: where it raises a named
    error; at every other edge of EDGES the value and all gradients must be finite.
    """
    limits, refuses = limits or {}, refuses or {}
    checks: dict[str, Check] = {"docstring": partial(_docstring, function)}

    def batch(case: str) -> Call:
        return sample(toy(case, size=size, dim=dim))

    for check in (_scalar, _determinism, _gradient, _order, _aligned, _half, _autocast):
        checks[check.__name__.removeprefix("_")] = partial(check, function, partial(batch, "plain"))
    for case in EDGES:
        edge = _refused if case in refuses else _finite
        checks[f"edge-{case}"] = partial(edge, function, partial(batch, case))
    unknown = [*(limits.keys() - checks.keys()), *(refuses.keys() - EDGES.keys())]
    if unknown:
        raise ValueError(f"there is no check {', '.join(sorted(unknown))}; known: {', '.join(checks)}.")
    return [(name, partial(_with_limits, function, name, check, limits)) for name, check in checks.items()]


def _with_limits(function: Callable[..., Tensor], name: str, check: Check, limits: Mapping[str, str]) -> None:
    if name not in limits:
        return check()
    try:
        check()
    except (AssertionError, AvclError, RuntimeError):
        return None
    raise AssertionError(f"{function.__name__} declares the limit {name!r}, but the check passes: remove the limit.")


# ------------------------------------------------------------------------------------------------------------- calling
def _cast(kind: torch.dtype, value: Any) -> Any:
    """Marked floating tensors as ``kind``; what is learnable stays in float32 where ``kind`` is narrower."""
    if isinstance(value, Free):
        return Free(value.value.to(torch.promote_types(kind, torch.float32)))
    if isinstance(value, Rows) and value.value.is_floating_point():
        return replace(value, value=value.value.to(kind))
    if isinstance(value, Grid) and value.value.is_floating_point():
        return Grid(value.value.to(kind))
    return value


def _takes_gradient(value: Any) -> bool:
    return isinstance(value, Free) or (isinstance(value, Rows) and value.value.is_floating_point() and not value.fixed)


def _leaves(call: Call) -> tuple[Call, list[Tensor]]:
    """The call with a fresh leaf in place of every marked tensor, and the leaves that take a gradient."""
    free: list[Tensor] = []

    def leaf(value: Any) -> Any:
        if not isinstance(value, Rows | Grid | Free):
            return value
        x = value.value.detach().clone()
        if _takes_gradient(value):
            free.append(x.requires_grad_())
        return x

    return call.mapped(leaf), free


def _value(function: Callable[..., Tensor], call: Call) -> Tensor:
    """The value; a random generator among the arguments starts from the same state at every call."""

    def fresh(value: Any) -> Any:
        return value.clone_state() if isinstance(value, torch.Generator) else value

    plain = call.mapped(lambda x: fresh(x.value if isinstance(x, Rows | Grid | Free) else x))
    return function(*plain.args, **plain.keywords)


def _solved(function: Callable[..., Tensor], call: Call) -> tuple[Tensor, list[Tensor]]:
    """Value, and the gradient of every tensor that takes one (zeros where none flows)."""
    prepared, free = _leaves(call)
    assert free, "nothing takes a gradient"
    value = _value(function, prepared)
    assert value.requires_grad, "no gradient flows"
    gradients = torch.autograd.grad(value, free, allow_unused=True)
    filled = zip(gradients, free, strict=True)
    return value.detach(), [torch.zeros_like(x) if g is None else g for g, x in filled]


def _near(value: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    scale = max(1.0, float(expected.double().abs().max()))
    error = float((value.double() - expected.double()).abs().max())
    assert error <= tolerance * scale, f"{what}: differs by {error:.2e}, allowed are {tolerance * scale:.2e}"


# -------------------------------------------------------------------------------------------------------------- checks
def _docstring(function: Callable[..., Tensor]) -> None:
    text = function.__doc__ or ""
    assert re.search(r"``[^`]*=[^`]*``", text), "the docstring gives the equation, between double backticks"
    lacking = [part for part in PARTS if not re.search(rf"\b({part})", text)]
    assert not lacking, f"the docstring lacks {', '.join(lacking)}"


def _scalar(function: Callable[..., Tensor], batch: Callable[[], Call]) -> None:
    for kind in (torch.float32, torch.float64):
        value, gradients = _solved(function, batch().mapped(partial(_cast, kind)))
        assert value.shape == ()
        assert value.dtype == kind
        assert bool(torch.isfinite(value))
        assert all(bool(torch.isfinite(g).all()) for g in gradients), "a gradient is not finite"
        assert any(bool(g.any()) for g in gradients), "every gradient is zero"


def _determinism(function: Callable[..., Tensor], batch: Callable[[], Call]) -> None:
    """Two calls agree to the last bit, and no argument is changed in place."""
    call, untouched = batch(), batch()
    (first, one), (second, two) = (_solved(function, call) for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))
    _value(function, call)
    for before, after in zip(untouched.values(), call.values(), strict=True):
        assert not isinstance(before, Rows | Grid | Free) or torch.equal(before.value, after.value), "changed in place"


def _gradient(function: Callable[..., Tensor], batch: Callable[[], Call]) -> None:
    prepared, free = _leaves(batch())

    def of(*leaves: Tensor) -> Tensor:
        given = {id(old): new for old, new in zip(free, leaves, strict=True)}
        return _value(function, prepared.mapped(lambda value: given.get(id(value), value)))

    assert torch.autograd.gradcheck(of, tuple(free))


def _order(function: Callable[..., Tensor], batch: Callable[[], Call]) -> None:
    """A permutation of the batch permutes the gradients and leaves the value alone."""
    call = batch()
    size = next(len(value.value) for value in call.values() if isinstance(value, Rows))
    order = torch.randperm(size, generator=torch.Generator().manual_seed(1))

    def turned(value: Any) -> Any:
        if isinstance(value, Rows):
            return replace(value, value=value.value[order])
        return Grid(value.value[order][:, order]) if isinstance(value, Grid) else value

    (value, gradients), (other, others) = _solved(function, call), _solved(function, call.mapped(turned))
    _near(other, value, 1e-9, "value")
    takes = [x for x in call.values() if _takes_gradient(x)]
    for mark, gradient, again in zip(takes, gradients, others, strict=True):
        _near(again, gradient[order] if isinstance(mark, Rows) else gradient, 1e-9, "gradient")


def _aligned(function: Callable[..., Tensor], batch: Callable[[], Call]) -> None:
    """Right partners cost less than the partners of the neighbor."""

    def shifted(value: Any) -> Any:
        return replace(value, value=value.value.roll(1, 0)) if isinstance(value, Rows) and value.moved else value

    call = batch()
    assert any(isinstance(x, Rows) and x.moved for x in call.values()), "nothing in the batch is a partner"
    right, wrong = _value(function, call), _value(function, call.mapped(shifted))
    assert float(right) < float(wrong), f"aligned costs {float(right):g}, shuffled {float(wrong):g}"


def _half(function: Callable[..., Tensor], batch: Callable[[], Call]) -> None:
    """bfloat16 rows are raised to float32: what they give is what the same rounded numbers give in float32."""
    rounded = batch().mapped(partial(_cast, torch.bfloat16))
    exact, gradients = _solved(function, rounded.mapped(partial(_cast, torch.float32)))
    value, halves = _solved(function, rounded)
    assert value.dtype == torch.float32
    _near(value, exact, TIGHT, "value")
    for half, gradient in zip(halves, gradients, strict=True):
        assert bool(torch.isfinite(half).all())
        _near(half, gradient, 1e-2, "gradient")  # it is handed back in bfloat16


def _autocast(function: Callable[..., Tensor], batch: Callable[[], Call]) -> None:
    """An outer autocast rounds nothing inside."""
    for kind in (torch.float32, torch.bfloat16):
        call = batch().mapped(partial(_cast, kind))
        exact, gradients = _solved(function, call)
        prepared, free = _leaves(call)
        with torch.autocast("cpu", torch.bfloat16):
            value = _value(function, prepared)
        assert value.dtype == torch.float32
        _near(value.detach(), exact, TIGHT, "value")
        again = torch.autograd.grad(value, free, allow_unused=True)
        for gradient, expected in zip(again, gradients, strict=True):
            _near(torch.zeros_like(expected) if gradient is None else gradient, expected, LOOSE, "gradient")


def _finite(function: Callable[..., Tensor], batch: Callable[[], Call]) -> None:
    """Value and gradients are finite, in float32 and under half-precision rows."""
    for kind in (torch.float32, torch.bfloat16):
        value, gradients = _solved(function, batch().mapped(partial(_cast, kind)))
        assert value.shape == ()
        assert bool(torch.isfinite(value)), f"the value is {float(value)}"
        for gradient in gradients:
            assert bool(torch.isfinite(gradient).all()), "a gradient is not finite"


def _refused(function: Callable[..., Tensor], batch: Callable[[], Call]) -> None:
    try:
        value = _value(function, batch().mapped(partial(_cast, torch.float32)))
    except AvclError:
        return
    raise AssertionError(f"{function.__name__} is said to refuse this batch, but gives {float(value)}")
