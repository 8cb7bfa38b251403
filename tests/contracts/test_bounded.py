"""Objectives that never hold their B × B matrix equal the dense formula in plain torch, in as many blocks as there are
rows, in a few, and in one: values and gradients, also through what is learnable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

from avcl import objectives
from avcl.objectives import blocked

B, D = 48, 8
LABEL = torch.arange(B) % 5
SAME = LABEL[:, None] == LABEL
OWN = torch.eye(B, dtype=torch.bool)
SOFT = torch.rand(B, B, generator=torch.Generator().manual_seed(3)) * SAME
CANDIDATES = SAME & (torch.rand(B, B, generator=torch.Generator().manual_seed(4)) < 0.5) | OWN


LEARNABLE = object()


class Case(NamedTuple):
    """``given`` a, v and a learnable number t: the objective as called, and the same written densely."""

    call: Callable[[Tensor, Tensor, Tensor], Tensor]
    dense: Callable[[Tensor, Tensor, Tensor], Tensor]


def both(direction: Callable[[Tensor], Tensor], scores: Tensor) -> Tensor:
    return direction(scores) + direction(scores.T)


def without(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(mask, -torch.inf)


def toward(target: Tensor) -> Callable[[Tensor], Tensor]:
    """Mean over the rows of ``target`` that hold something of the cross-entropy with its shares."""

    def direction(scores: Tensor, target: Tensor = target) -> Tensor:
        has = target.sum(1) > 0
        share = target[has] / target[has].sum(1, keepdim=True)
        return -(share * scores.log_softmax(1)[has]).sum(1).mean()

    return direction


def softmax_pair(target: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda a, v, t: 0.5 * (toward(target)(a @ v.T / t) + toward(target.T)(v @ a.T / t))


def two_sided(a: Tensor, v: Tensor, t: Tensor) -> Tensor:
    s = a @ v.T / t
    return (torch.cat([s, s.T], 1).logsumexp(1) - s.diagonal()).mean()


def distilled(a: Tensor, v: Tensor, t: Tensor) -> Tensor:
    teacher = (a @ a.T).detach() / 0.3
    s = a @ v.T / t
    return -0.5 * both(lambda x: (teacher.softmax(1) * x.log_softmax(1)).sum(1).mean(), s)


def supervised(a: Tensor, v: Tensor, t: Tensor, *, views: str, form: str) -> Tensor:
    if views == "all":
        z, same = torch.cat([a, v]), SAME.repeat(2, 2) & ~torch.eye(2 * B, dtype=torch.bool)
        directions = [(without(z @ z.T / t, torch.eye(2 * B, dtype=torch.bool)), same)]
    else:
        directions = [(a @ v.T / t, SAME), (v @ a.T / t, SAME)]
    total = a.new_zeros(())
    for s, same in directions:
        if form == "out":
            total = total - torch.where(same, s.log_softmax(1), 0).sum(1).div(same.sum(1)).mean()
        else:
            total = total + (s.logsumexp(1) - without(s, ~same).logsumexp(1) + same.sum(1).double().log()).mean()
    return total


def decoupled(a: Tensor, v: Tensor, t: Tensor) -> Tensor:
    return both(lambda s: (without(s, OWN).logsumexp(1) - s.diagonal()).mean(), a @ v.T / t)


def n_pair(a: Tensor, v: Tensor, t: Tensor) -> Tensor:
    norms = (a.square().sum(1) + v.square().sum(1)).mean()
    return both(lambda s: (s.logsumexp(1) - s.diagonal()).mean(), a @ v.T) + 0.1 * norms


def mil(a: Tensor, v: Tensor, t: Tensor) -> Tensor:
    s = a @ v.T / t
    cost = []
    for i in range(B):
        mine = CANDIDATES[i]
        wrong = [s[i][~mine], *(s[:, p][~CANDIDATES[:, p]] for p in mine.nonzero()[:, 0].tolist())]
        top = s[i][mine].logsumexp(0)
        cost.append(torch.cat([top[None], *wrong]).logsumexp(0) - top)
    return torch.stack(cost).mean()


def margin_softmax(a: Tensor, v: Tensor, t: Tensor) -> Tensor:
    def direction(s: Tensor) -> Tensor:
        own = s.diagonal() - 0.2
        return softplus(t * 0 + (without(t * s, SAME).logsumexp(1) - t * own)).mean()

    return both(direction, a @ v.T)


def mean_margin(a: Tensor, v: Tensor, t: Tensor) -> Tensor:
    def direction(s: Tensor) -> Tensor:
        own = s.diagonal()
        bar = own - 0.5 * (own - (s.sum(1) - own) / (B - 1))
        return softplus(without(t * s, OWN).logsumexp(1) - t * bar).mean()

    return both(direction, a @ v.T)


def hinge(a: Tensor, v: Tensor, t: Tensor, *, hardest: bool = False) -> Tensor:
    def direction(s: Tensor) -> Tensor:
        gap = without((s - s.diagonal()[:, None] + 0.2), OWN).clamp(min=0)
        return (gap.amax(1) if hardest else gap.sum(1)).mean()

    return both(direction, a @ v.T)


def distances(a: Tensor, v: Tensor) -> Tensor:
    return (a[:, None] - v[None]).square().sum(2)


def triplets(a: Tensor, v: Tensor, t: Tensor, *, same: Tensor, mining: str) -> Tensor:
    def direction(d: Tensor) -> Tensor:
        if mining == "all":
            terms = (d[:, :, None] - d[:, None, :] + 0.5).clamp(min=0)
            return terms[same[:, :, None] & ~same[:, None, :]].mean()
        if mining == "hard":
            return (without(d, ~same).amax(1) - d.masked_fill(same, torch.inf).amin(1) + 0.5).clamp(min=0).mean()
        terms = []
        for i, p in same.nonzero().tolist():
            others = d[i][~same[i]]
            farther = others[others > d[i, p]]
            terms.append((d[i, p] - (farther.min() if len(farther) else others.max()) + 0.5).clamp(min=0))
        return torch.stack(terms).mean()

    return both(direction, distances(a, v))


def lifted(a: Tensor, v: Tensor, t: Tensor) -> Tensor:
    d = (distances(a, a) + 1e-30).sqrt()
    near = without(1.0 - d, SAME).logsumexp(1)
    i, j = (SAME & ~OWN).nonzero(as_tuple=True)
    return 0.5 * (torch.logaddexp(near[i], near[j]) + d[i, j]).clamp(min=0).square().mean()


def likelihood(a: Tensor, v: Tensor, t: Tensor) -> Tensor:
    a, v = normalize(a, dim=1), normalize(v, dim=1)
    cosines = [0.5 * x @ y.T for x, y in ((a, v), (a, a), (v, v))]
    return sum(((softplus(c) - SAME * c).mean() for c in cosines), a.new_zeros(()))


def discrepancy(a: Tensor, v: Tensor, t: Tensor) -> Tensor:
    within, across = [torch.exp(-0.5 * distances(x, x)).mean() for x in (a, v)], torch.exp(-0.5 * distances(a, v))
    return within[0] + within[1] - 2 * across.mean()


def of(name: str, **keywords: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The call of an objective; a keyword whose value is LEARNABLE is given t."""

    def call(a: Tensor, v: Tensor, t: Tensor) -> Tensor:
        given = {key: t if value is LEARNABLE else value for key, value in keywords.items() if key != "args"}
        more = {"label": [LABEL], "teacher": [a.detach(), a.detach()]}.get(keywords.get("args", ""), [])
        return getattr(objectives, name)(a, v, *more, **given)

    return call


CASES = {
    "info_nce": Case(of("info_nce", temperature=LEARNABLE), softmax_pair(OWN.double())),
    "info_nce, positives": Case(
        lambda a, v, t: objectives.info_nce(a, v, temperature=t, positives=CANDIDATES),
        softmax_pair(CANDIDATES.double()),
    ),
    "info_nce, two-sided": Case(of("info_nce", temperature=LEARNABLE, two_sided=True), two_sided),
    "soft_info_nce": Case(
        lambda a, v, t: objectives.soft_info_nce(a, v, target=SOFT.to(a.dtype), temperature=t),
        lambda a, v, t: softmax_pair(SOFT.to(a.dtype))(a, v, t),
    ),
    "distilled_info_nce": Case(
        of("distilled_info_nce", args="teacher", temperature=LEARNABLE, teacher_temperature=0.3), distilled
    ),
    **{
        f"supervised_contrastive, {views}, {form}": Case(
            of("supervised_contrastive", args="label", temperature=LEARNABLE, views=views, form=form),
            lambda a, v, t, views=views, form=form: supervised(a, v, t, views=views, form=form),
        )
        for views in ("other", "all")
        for form in ("out", "in")
    },
    "decoupled_info_nce": Case(of("decoupled_info_nce", temperature=LEARNABLE), decoupled),
    "n_pair": Case(of("n_pair", weight=0.1), n_pair),
    "mil_nce": Case(lambda a, v, t: objectives.mil_nce(a, v, positives=CANDIDATES, temperature=t), mil),
    "masked_margin_softmax": Case(
        lambda a, v, t: objectives.masked_margin_softmax(a, v, margin=0.2, mask=~SAME, scale=t), margin_softmax
    ),
    "adaptive_mean_margin": Case(of("adaptive_mean_margin", alpha=0.5, scale=LEARNABLE), mean_margin),
    "hinge": Case(of("hinge", margin=0.2), hinge),
    "hinge, hardest": Case(of("hinge", margin=0.2, negatives="hardest"), lambda a, v, t: hinge(a, v, t, hardest=True)),
    **{
        f"triplet, {mining}, {kind}": Case(
            of("triplet", margin=0.5, label=label, mining=mining),
            lambda a, v, t, mining=mining, same=same: triplets(a, v, t, same=same, mining=mining),
        )
        for mining in ("all", "hard", "semi-hard")
        for kind, label, same in (("own", None, OWN), ("labels", LABEL, SAME))
    },
    "lifted_structured": Case(lambda a, v, t: objectives.lifted_structured(a, LABEL, margin=1.0), lifted),
    "label_likelihood": Case(of("label_likelihood", args="label"), likelihood),
    "mmd": Case(of("mmd", gamma=0.5), discrepancy),
}


def solved(loss: Callable[..., Tensor], kind: torch.dtype, scale: float) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    a = normalize(torch.randn(B, D, generator=generator, dtype=torch.float64), dim=1)
    v = normalize(a + 0.6 * torch.randn(B, D, generator=generator, dtype=torch.float64), dim=1)
    leaves = [(scale * x).to(kind).requires_grad_() for x in (a, v)]
    leaves.append(torch.tensor(0.2, dtype=kind, requires_grad=True))
    value = loss(*leaves)
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    return value.detach(), [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves, strict=True)]


@pytest.mark.parametrize("cells", [1, 5 * B, 10**6])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_dense_form(name: str, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64 to 1e-9, so the formula; in float32 to 1e-5, also where scores are large against the temperature."""
    monkeypatch.setattr(blocked, "CELLS", cells)
    case = CASES[name]
    for kind, tolerance, scale in ((torch.float64, 1e-9, 1.0), (torch.float64, 1e-9, 4.0), (torch.float32, 1e-5, 1.0)):
        value, gradients = solved(case.call, kind, scale)
        exact, expected = solved(case.dense, torch.float64, scale)
        assert value.dtype == kind
        torch.testing.assert_close(value.double(), exact, rtol=tolerance, atol=tolerance)
        for gradient, other in zip(gradients, expected, strict=True):
            torch.testing.assert_close(gradient.double(), other, rtol=tolerance, atol=tolerance * other.abs().amax())


def test_blocks_are_no_larger_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "CELLS", 5 * B)
    spans = list(blocked.row_blocks(B, B))
    assert [s.start for s in spans] == list(range(0, B, 5))
    assert spans[-1].stop == B
