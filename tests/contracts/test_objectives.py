"""Every objective that there is keeps the contract; a new function in ``avcl.objectives.__all__`` is found by itself.

CASES says what a batch looks like to each of them ("name" or "name: variant"); what is public there and is no
objective stands in OTHERS with its reason. A function in neither table fails ``test_every_function_has_a_case``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from avcl import objectives
from avcl.testing import Call, Free, Grid, Rows, Toy, check_objective
from avcl.testing.objectives import Sample

FUNCTIONS = {n: f for n in objectives.__all__ if inspect.isfunction(f := getattr(objectives, n))}


@dataclass(frozen=True)
class Case:
    """``through``: the same objective with its batch as leading dimension of plain arguments, where it is not."""

    sample: Sample
    limits: Mapping[str, str] = field(default_factory=dict)
    refuses: Mapping[str, str] = field(default_factory=dict)
    size: int = 6
    dim: int = 4
    through: Callable[[Callable[..., Tensor]], Callable[..., Tensor]] = lambda function: function


def learnable(value: float) -> Free:
    return Free(torch.tensor(value, dtype=torch.float64))


def pair(toy: Toy, **keywords: Any) -> Call:
    return Call(Rows(toy.a), Rows(toy.v, moved=True), **keywords)


def labeled(toy: Toy, **keywords: Any) -> Call:
    """Two views that agree, and labels that may not."""
    return Call(Rows(toy.a), Rows(toy.v), Rows(toy.label, moved=True), **keywords)


def one_space(toy: Toy, **keywords: Any) -> Call:
    return Call(Rows(toy.a), Rows(toy.label, moved=True), **keywords)


def scores(toy: Toy, classes: int = 3) -> Tensor:
    """Logits that favor the right class in the plain case."""
    return toy.rows(classes) + 4 * (toy.case == "plain") * one_hot(toy.label, classes)


def near(toy: Toy, *shape: int) -> tuple[Rows, Rows]:
    """What should be and what is, not far from it."""
    x = toy.rows(*shape)
    return Rows(x + 0.1 * toy.free(*x.shape) * (toy.case not in ("identical", "zero"))), Rows(x, moved=True)


def centers(toy: Toy) -> Free:
    if toy.case != "plain":
        return Free(toy.free(3, toy.a.shape[1]))
    return Free(torch.stack([toy.a[toy.label == c].mean(0) for c in range(3)]))


def shares(toy: Toy, *shape: int) -> tuple[Rows, Rows]:
    """Logits, and targets in [0, 1] that they favor."""
    x = toy.rows(*shape)
    return Rows(x), Rows((2 * x).sigmoid(), moved=True)


def experts_second(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Of functions of [M, B, ...]: the same of [B, M, ...]."""

    @wraps(function)
    def turned(*tensors: Tensor, **keywords: Any) -> Tensor:
        return function(*(x.transpose(0, 1) for x in tensors), **keywords)

    return turned


def two_views(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(function)
    def listed(a: Tensor, v: Tensor, **keywords: Any) -> Tensor:
        return function([a, v], **keywords)

    return listed


def of_a_linear_critic(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The penalty as a function of the critic's weights: only they get a gradient."""

    @wraps(function)
    def penalized(weight: Tensor, real: Tensor, fake: Tensor, **keywords: Any) -> Tensor:
        return function(lambda x: (x.to(weight.dtype) @ weight).sin().sum(1), real, fake, **keywords)

    return penalized


ALONE = {"one": "one row is nobody's negative"}
RIVALS = ALONE | {"one_class": "no row is another's negative"}
NO_PARTNERS = {"aligned": "two sets without partners"}
ONE_SIDE = {"aligned": "one set of rows"}
ROWS = {"one": "a correlation takes more rows than columns"}

CASES = {
    # contrastive
    "info_nce": Case(lambda toy: pair(toy, temperature=learnable(0.2))),
    "info_nce: positives": Case(
        lambda toy: pair(toy, temperature=0.2, positives=Grid(toy.label[:, None] == toy.label))
    ),
    "info_nce: two-sided": Case(lambda toy: pair(toy, temperature=learnable(0.2), two_sided=True)),
    "soft_info_nce": Case(
        lambda toy: pair(toy, target=Grid(1.0 * (toy.label[:, None] == toy.label)), temperature=learnable(0.2))
    ),
    "distilled_info_nce": Case(
        lambda toy: pair(
            toy,
            teacher_a=Rows(toy.a, fixed=True),
            teacher_v=Rows(toy.a, fixed=True),
            temperature=learnable(0.2),
            teacher_temperature=0.1,
        )
    ),
    **{
        f"supervised_contrastive: {views}, {form}": Case(
            lambda toy, views=views, form=form: labeled(toy, temperature=learnable(0.2), views=views, form=form)
        )
        for views in ("other", "all")
        for form in ("out", "in")
    },
    "nce": Case(
        lambda toy: Call(Rows((toy.a * toy.v).sum(1)), Rows(toy.rows(5) - 1), log_noise=-2.0), limits=NO_PARTNERS
    ),
    "decoupled_info_nce": Case(lambda toy: pair(toy, temperature=learnable(0.2)), refuses=ALONE),
    "mil_nce": Case(lambda toy: pair(toy, positives=Grid(toy.label[:, None] == toy.label), temperature=learnable(0.5))),
    "mil_nce: rows, twice": Case(
        lambda toy: pair(
            toy, positives=Grid(torch.eye(len(toy), dtype=torch.bool)), directions="rows", temperature=0.5, twice=True
        )
    ),
    "n_pair": Case(lambda toy: pair(toy, weight=0.02)),
    **{
        f"pair_contrastive: {distance}": Case(
            lambda toy, distance=distance: Call(*near(toy, 3), Rows(toy.label != 1), margin=1.0, distance=distance)
        )
        for distance in ("l2", "cosine")
    },
    # margins
    "hinge": Case(lambda toy: pair(toy, margin=0.2)),
    "hinge: hardest": Case(lambda toy: pair(toy, margin=0.2, negatives="hardest")),
    "masked_margin_softmax": Case(
        lambda toy: pair(toy, margin=0.1, mask=Grid(toy.label[:, None] != toy.label), scale=5.0)
    ),
    "masked_margin_softmax: learnable scale": Case(lambda toy: pair(toy, margin=0.1, scale=learnable(5.0))),
    "adaptive_mean_margin": Case(lambda toy: pair(toy, alpha=0.5, scale=learnable(2.0))),
    # triplets and tuples
    **{
        f"triplet: {mining}, {kind}": Case(
            lambda toy, mining=mining, make=make: make(toy, margin=0.5, mining=mining), refuses=refuses
        )
        for mining in ("all", "hard", "semi-hard")
        for kind, make, refuses in (
            ("own", pair, ALONE),
            ("labels", lambda toy, **k: pair(toy, label=Rows(toy.label), **k), RIVALS),
        )
    },
    "lifted_structured": Case(lambda toy: one_space(toy, margin=1.0), refuses=RIVALS),
    "lifted_pairs": Case(lambda toy: Call(*near(toy, 4), Rows(toy.rows(3, 4)), margin=1.0)),
    "quadruplet": Case(lambda toy: one_space(toy), refuses=RIVALS),
    "quadruplet: one clip": Case(lambda toy: one_space(toy, clip="one"), refuses=RIVALS),
    "quadruplet: squared": Case(lambda toy: one_space(toy, squared=True), refuses=RIVALS),
    # labels
    "cross_entropy": Case(lambda toy: Call(Rows(scores(toy)), Rows(toy.label, moved=True), smoothing=0.1)),
    "binary_cross_entropy": Case(lambda toy: Call(*shares(toy, 5))),
    "label_distance": Case(lambda toy: Call(Rows(scores(toy)), Rows(toy.label, moved=True))),
    "label_distance: frobenius": Case(
        lambda toy: Call(Rows(scores(toy)), Rows(toy.label, moved=True), form="frobenius")
    ),
    "label_likelihood": Case(labeled),
    "center": Case(lambda toy: Call(Rows(toy.a), centers(toy), Rows(toy.label, moved=True))),
    "center: l1": Case(lambda toy: Call(Rows(toy.a), centers(toy), Rows(toy.label, moved=True), norm="l1")),
    # regularizers
    **{
        f"invariance: {distance}": Case(lambda toy, distance=distance: pair(toy, distance=distance))
        for distance in ("cosine", "l2", "squared")
    },
    "frobenius": Case(pair),
    "frobenius: squared": Case(lambda toy: pair(toy, squared=True)),
    "orthogonality": Case(lambda toy: Call(Rows(toy.a)), limits=ONE_SIDE),
    # reconstruction
    "l1": Case(lambda toy: Call(*near(toy, 3, 2), weight=Rows(toy.free(len(toy), 3, 1).abs()))),
    "l2": Case(lambda toy: Call(*near(toy, 3, 2), weight=Rows(toy.free(len(toy), 3, 1).abs()))),
    "charbonnier": Case(lambda toy: Call(*near(toy, 5))),
    "mask_loss": Case(lambda toy: Call(*shares(toy, 2, 3), mixture=Rows(toy.rows(1, 3).abs()))),
    "mask_loss: l1": Case(lambda toy: Call(*near(toy, 2, 3), error="l1")),
    "spectral": Case(lambda toy: Call(*near(toy, 24), sizes=(8, 16))),
    # correlation
    "deep_cca": Case(lambda toy: pair(toy, dim=2, ridge=1e-3), refuses=ROWS, size=12, dim=3),
    "deep_cca: frobenius": Case(
        lambda toy: pair(toy, dim=2, ridge=1e-3, norm="frobenius"), refuses=ROWS, size=12, dim=3
    ),
    "deep_cca: small batch": Case(lambda toy: pair(toy, dim=2, ridge=1e-3, shrinkage=0.3), refuses=ROWS),
    "cluster_cca": Case(lambda toy: labeled(toy, dim=2, ridge=1e-3), refuses=ROWS, size=12, dim=3),
    "deep_generalized_cca": Case(
        lambda toy: pair(toy, dim=2, ridge=1e-3), refuses=ROWS, size=12, dim=3, through=two_views
    ),
    "soft_cca": Case(lambda toy: pair(toy, weight=0.3), refuses=ROWS),
    "barlow_twins": Case(lambda toy: pair(toy, weight=0.1), refuses=ROWS),
    "pearson": Case(pair),
    # variational
    "gaussian_kl": Case(lambda toy: Call(Rows(toy.rows(3)), Rows(toy.rows(3))), limits=ONE_SIDE),
    "gaussian_kl_between": Case(
        lambda toy: Call(Rows(toy.a), Rows(toy.rows(4)), Rows(toy.v, moved=True), Rows(toy.rows(4)))
    ),
    "elbo": Case(lambda toy: Call(Rows(toy.rows()), Rows(toy.rows(3)), Rows(toy.rows(3)), beta=0.5), limits=ONE_SIDE),
    "elbo: free bits": Case(
        lambda toy: Call(Rows(toy.rows()), Rows(toy.rows(3)), Rows(toy.rows(3)), free_bits=0.1), limits=ONE_SIDE
    ),
    "importance_bound": Case(lambda toy: Call(Rows(toy.rows(5))), limits=ONE_SIDE, through=experts_second),
    "mixture_elbo": Case(
        lambda toy: Call(Rows(toy.rows(2)), *(Rows(toy.rows(2, 3)) for _ in range(3))),
        limits=ONE_SIDE,
        through=experts_second,
    ),
    "wasserstein2": Case(lambda toy: Call(Rows(toy.a), Rows(toy.rows(4)), Rows(toy.v, moved=True), Rows(toy.rows(4)))),
    "wasserstein2: root": Case(
        lambda toy: Call(Rows(toy.a), Rows(toy.a), Rows(toy.v, moved=True), Rows(toy.v, moved=True), squared=False)
    ),
    "sliced_wasserstein": Case(
        lambda toy: Call(Rows(toy.a), Rows(toy.v), n_directions=3, generator=toy.generator), limits=NO_PARTNERS
    ),
    "mmd": Case(lambda toy: Call(Rows(toy.a), Rows(toy.v), gamma=[0.5, 1.0]), limits=NO_PARTNERS),
    # adversarial
    **{
        name: Case(lambda toy: Call(Rows(toy.rows()), Rows(toy.rows())), limits=NO_PARTNERS)
        for name in (
            "gan_discriminator",
            "lsgan_discriminator",
            "hinge_gan_discriminator",
            "wgan_critic",
            "score_gan_discriminator",
        )
    },
    **{
        name: Case(lambda toy: Call(Rows(toy.rows())), limits=ONE_SIDE)
        for name in ("gan_generator", "lsgan_generator", "hinge_gan_generator", "wgan_generator", "score_gan_generator")
    },
    "gan_generator: saturating": Case(lambda toy: Call(Rows(toy.rows()), saturating=True), limits=ONE_SIDE),
    "gradient_penalty": Case(
        lambda toy: Call(
            Free(toy.free(4, 3)), Rows(toy.a, fixed=True), Rows(toy.v, fixed=True), generator=toy.generator
        ),
        limits=NO_PARTNERS
        | {"order": "each row is drawn its own point between real and fake"}
        | dict.fromkeys(("half", "autocast"), "the critic is asked in the type of the data, as in training"),
        through=of_a_linear_critic,
    ),
    "modality_discriminator": Case(lambda toy: Call(Rows(scores(toy)), Rows(toy.label, moved=True))),
    "modality_confusion": Case(lambda toy: Call(Rows(scores(toy))), limits=ONE_SIDE),
    "modality_confusion: swapped": Case(
        lambda toy: Call(Rows(scores(toy)), Rows(toy.label, moved=True), target="swapped"),
        limits={"aligned": "the encoder is paid for the wrong modality"},
    ),
    "auxiliary_classifier": Case(lambda toy: Call(Rows(scores(toy)), Rows(scores(toy)), Rows(toy.label, moved=True))),
    "matching_discriminator": Case(lambda toy: Call(*(Rows(toy.rows()) for _ in range(3))), limits=NO_PARTNERS),
    "semi_supervised_discriminator": Case(
        lambda toy: Call(Rows(scores(toy, 4)), Rows(toy.label, moved=True), Rows(toy.rows(4)), Rows(toy.rows(4)))
    ),
    "semi_supervised_generator": Case(lambda toy: Call(Rows(scores(toy, 4)), Rows(toy.label, moved=True))),
}
OTHERS = {
    "add_moments": "gathers moments of rows",
    "add_cluster_moments": "gathers moments of rows",
    "cluster_covariance": "a covariance",
    "batch_correlation": "a correlation matrix",
    "canonical_directions": "directions in closed form",
    "generalized_cca": "directions in closed form",
    "kernel_cca": "directions in closed form",
    "rbf_kernel": "a kernel matrix",
    "product_of_experts": "the parameters of a posterior",
    "subset_posteriors": "the parameters of posteriors",
    "gaussian_log_density": "a log-density for each item",
    "mixture_log_density": "a log-density for each item",
    "gaussian_log_likelihood": "a log-likelihood for each item, which elbo takes",
    "laplace_log_likelihood": "a log-likelihood for each item, which elbo takes",
    "bernoulli_log_likelihood": "a log-likelihood for each item, which elbo takes",
    "categorical_log_likelihood": "a log-likelihood for each item, which elbo takes",
    "sample_gaussian": "a sample",
    "projection_logits": "logits, which the GAN losses take",
    "reverse_gradient": "the identity, with another gradient",
    "adversarial_weight": "a weight without gradient",
}


def test_every_function_has_a_case() -> None:
    cased = {name.partition(":")[0] for name in CASES}
    lacking = sorted(FUNCTIONS.keys() - cased - OTHERS.keys())
    assert not lacking, f"no case in CASES of {__name__}: {', '.join(lacking)}; or say in OTHERS why it needs none"
    gone = sorted((cased | OTHERS.keys()) - FUNCTIONS.keys())
    assert not gone, f"CASES or OTHERS of {__name__} name what avcl.objectives does not export: {', '.join(gone)}"


def checks() -> list[tuple[str, str, Callable[[], None]]]:
    found = []
    for name, case in CASES.items():
        if (function := FUNCTIONS.get(name.partition(":")[0])) is not None:
            given = check_objective(
                case.through(function),
                case.sample,
                limits=case.limits,
                refuses=case.refuses,
                size=case.size,
                dim=case.dim,
            )
            found += [(name, check, call) for check, call in given]
    return found


CHECKS = checks()


@pytest.mark.parametrize(("objective", "name", "check"), CHECKS, ids=[f"{o}-{n}" for o, n, _ in CHECKS])
def test_contract(objective: str, name: str, check: Callable[[], None]) -> None:
    check()


def careless(a: Tensor, v: Tensor) -> Tensor:
    """``L = mean |a - v|``: an infinite slope at 0, and products that autocast rounds."""
    cosines = a @ v.T
    return (a - v).square().sum(1).sqrt().mean() + cosines.exp().logsumexp(1).sum() / torch.arange(1, len(a) + 1)[
        -1
    ] ** 2


def test_a_careless_objective_is_found_out() -> None:
    failed = []
    for name, check in check_objective(careless, pair):
        try:
            check()
        except AssertionError:
            failed.append(name)
    expected = ["docstring", "half", "autocast", "edge-identical", "edge-zero", "edge-huge"]
    assert [name for name in failed if name in expected] == expected


def test_a_limit_that_no_longer_holds_is_an_error() -> None:
    function = FUNCTIONS["info_nce"]
    given = dict(check_objective(function, lambda toy: pair(toy, temperature=0.2), limits={"order": "none"}))
    with pytest.raises(AssertionError, match="remove the limit"):
        given["order"]()
    given = dict(check_objective(function, lambda toy: pair(toy, temperature=0.2), refuses={"one": "none"}))
    with pytest.raises(AssertionError, match="said to refuse"):
        given["edge-one"]()
    with pytest.raises(ValueError, match="no check ordre"):
        check_objective(function, pair, limits={"ordre": "a slip"})
