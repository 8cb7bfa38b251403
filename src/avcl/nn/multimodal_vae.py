"""Variational auto-encoders of one or several modalities: one posterior, and how the modalities make it up together.

Encoder m maps its modality to the 2·dim parameters of a Gaussian over the shared code, [mean ; log-variance]. These are
the ``latents`` (row-wise, so they may be cached); samples are drawn by ``terms``, from ``generator``. Every term is a
*sum* over the dimensions of a modality and a mean over rows, as the bound wants it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from avcl.errors import BatchError, ConfigError
from avcl.nn.autoencoders import ModalAutoencoder, Present, Value, kept, recorded, rows_of, some
from avcl.nn.conditioning import positive
from avcl.objectives import (
    bernoulli_log_likelihood,
    categorical_log_likelihood,
    elbo,
    gaussian_kl_between,
    gaussian_log_density,
    gaussian_log_likelihood,
    importance_bound,
    invariance,
    laplace_log_likelihood,
    mixture_elbo,
    mixture_log_density,
    product_of_experts,
    sample_gaussian,
    subset_posteriors,
    wasserstein2,
)
from avcl.objectives.inputs import at_least, raised
from avcl.types import Stream

Joint = Literal["poe", "moe", "mopoe", "joint", "tied"]
Likelihood = Literal["gaussian", "laplace", "bernoulli", "categorical"]
LogLikelihood = Callable[[Tensor, Tensor], Tensor]  # (x, made) to [B]: the named ones, or partial(..., log_variance=s)
LIKELIHOODS: Mapping[str, LogLikelihood] = {
    "gaussian": gaussian_log_likelihood,
    "laplace": laplace_log_likelihood,
    "bernoulli": bernoulli_log_likelihood,
    "categorical": categorical_log_likelihood,
}


class Posterior(NamedTuple):
    """An equal mixture of S Gaussians over the code: ``mean``, ``log_variance`` [S, B, D], ``present`` [S, B] bool.

    S = 1 is one Gaussian. A row without any component stands for nothing recorded.
    """

    mean: Tensor
    log_variance: Tensor
    present: Tensor

    @property
    def center(self) -> Tensor:
        """The mean of the mixture [B, D]; 0, the mean of the prior, where nothing was recorded."""
        weight = self.present[:, :, None].to(self.mean.dtype)
        return (self.mean * weight).sum(0) / weight.sum(0).clamp(min=1)

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """One sample of the mixture for every row [B, D], without gradient to the choice of the component."""
        each = sample_gaussian(self.mean, self.log_variance, generator=generator)
        if len(each) == 1:
            return each[0]
        device = each.device if generator is None else generator.device
        draws = torch.rand(self.present.shape, generator=generator, device=device).to(each.device)
        chosen = draws.masked_fill(~self.present, -1).argmax(0)
        return each[chosen, torch.arange(each.shape[1], device=each.device)]

    def rows(self, keep: Tensor) -> Posterior:
        """Those rows [B] bool alone."""
        return Posterior(self.mean[:, keep], self.log_variance[:, keep], self.present[:, keep])


class MultimodalVAE(ModalAutoencoder):
    """Several modalities, one code: maximizes ``E_q[ Σ_n λ_n log p(x_n|z) ] - β KL(q ‖ N(0, I))``, with q by ``joint``:

    - "poe": ``q ∝ N(0, I) Π_m q_m``, an absent modality being an omitted factor; its bound, the bound of each modality
      alone, and of ``subsets`` random ones (with three modalities or more). Wu & Goodman 2018 (MVAE).
    - "moe": ``q = 1/M Σ_m q_m``, one sample of each, so that every decoder answers to every encoder. Shi et al. 2019.
    - "mopoe": the mixture of the products of all non-empty subsets, each with the prior. Sutter et al. 2021.
    - "joint": q from ``joint_encoder(x_1, ..., x_M)`` (``conditioning.Beside`` is one), and ``alpha · KL(q ‖ q_m)`` so
      that a single modality finds the same place; rows that lack a modality are not learned from. Suzuki et al. 2016
      (JMVAE-kl).
    - "tied": each q_m for itself reconstructs everything, and ``tie · W₂²(q_m, q_n)`` draws them together; with
      ``shared_decoder`` MS-VAE (Zhu et al. 2021), whose code ties the samples instead: ``tied_by="sample"``.

    ``dim`` of the code; encoders give [B, 2·dim] · ``likelihoods``: a name or a function (x, made) to [B] for all
    modalities, or for each; "bernoulli" and "categorical" decoders give logits · ``lambdas`` λ by modality (1 if not
    given) · ``free_bits``: of one Gaussian, not of mixtures. Streams are targets step by step, where recorded.

    Pitfalls: λ and the variance of a Gaussian likelihood (unit by default, which standardized features hardly bear:
    ``partial(gaussian_log_likelihood, log_variance=-2)``) decide between reconstruction and a used code; unequal widths
    make the wider modality rule. "poe" trains generation across modalities only through the product: the single experts
    come out less alike than those of "moe".
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        decoders: Mapping[str, nn.Module],
        *,
        dim: int,
        joint: Joint = "poe",
        beta: float = 1.0,
        likelihoods: Likelihood | LogLikelihood | Mapping[str, Likelihood | LogLikelihood] = "gaussian",
        lambdas: Mapping[str, float] | None = None,
        free_bits: float = 0.0,
        subsets: int = 0,
        joint_encoder: nn.Module | None = None,
        alpha: float = 0.1,
        tie: float = 1.0,
        tied_by: Literal["w2", "sample"] = "w2",
        shared_encoder: nn.Module | None = None,
        shared_decoder: nn.Module | None = None,
    ):
        super().__init__(encoders, decoders, shared_encoder=shared_encoder, shared_decoder=shared_decoder)
        positive(dim=dim)
        if joint not in get_args(Joint) or tied_by not in ("w2", "sample"):
            raise ConfigError(f'joint = "{joint}" is not one of {", ".join(get_args(Joint))}, or "{tied_by}" no tie.')
        if (joint == "joint") != (joint_encoder is not None) or {"joint", "all"} & set(encoders):
            raise ConfigError('joint = "joint" alone has a joint encoder; no modality is called "joint" or "all".')
        if free_bits > 0 and joint in ("moe", "mopoe"):
            raise ConfigError("free bits are of one Gaussian: a mixture has no divergence by dimension.")
        settings = {"beta": beta, "free_bits": free_bits, "alpha": alpha, "tie": tie, "subsets": subsets}
        for name, value in {**settings, **(lambdas or {})}.items():
            at_least(name, value)
        self.dim, self.joint, self.beta, self.free_bits, self.subsets = dim, joint, beta, free_bits, subsets
        self.alpha, self.tie, self.tied_by = alpha, tie, tied_by
        self.joint_encoder = joint_encoder
        own = likelihoods if isinstance(likelihoods, Mapping) else dict.fromkeys(decoders, likelihoods)
        self.likelihoods = {name: one_likelihood(own.get(name, "gaussian")) for name in decoders}
        self.lambdas = {name: (lambdas or {}).get(name, 1.0) for name in decoders}
        self.latents = (*self.modalities, "joint") if joint == "joint" else self.modalities

    # --------------------------------------------------------------------------------------------------------- encoding
    def encode(self, inputs: Mapping[str, Value], *, present: Present = None) -> Mapping[str, Tensor]:
        """The parameters [B, 2·dim] of each modality, and "joint" where all are there and the method has one."""
        latents = dict(super().encode(inputs, present=present))
        if self.joint_encoder is not None and len(latents) == len(self.modalities):
            values = [inputs[name] for name in self.modalities]
            known = {} if present is None else present
            rows = [known.get(name) for name in self.modalities]
            both = [
                kept(v, r) if isinstance(v, Tensor) and r is not None else v for v, r in zip(values, rows, strict=True)
            ]
            latents["joint"] = self.joint_encoder(*both)
        for name, latent in latents.items():
            if latent.ndim != 2 or latent.shape[1] != 2 * self.dim:
                raise BatchError(f"the encoder of {name} must give [B, {2 * self.dim}], not {tuple(latent.shape)}.")
        return latents

    def posterior(
        self, latents: Mapping[str, Tensor], *, subset: Iterable[str] | None = None, present: Present = None
    ) -> Posterior:
        """q(z | those modalities of ``latents``), or of a ``subset`` of them."""
        given = [m for m in self.modalities if m in latents and (subset is None or m in set(subset))]
        if not given:
            raise BatchError(f"no posterior without one of {', '.join(self.modalities)}.")
        mean, log_variance = torch.stack([latents[m] for m in given]).chunk(2, -1)
        there = torch.stack([rows_of(m, present, latents) for m in given])
        if self.joint == "poe":
            m, lv = product_of_experts(mean, log_variance, present=there)
            return Posterior(m[None], lv[None], there.any(0)[None])
        if self.joint == "mopoe":
            parts = subset_posteriors(mean, log_variance, present=there)
            return Posterior(parts.mean, parts.log_variance, parts.present)
        if "joint" in latents and len(given) == len(self.modalities):
            all_there = there.all(0)  # rows that lack one have the mixture of the others
            jm, jlv = latents["joint"][None].chunk(2, -1)
            there = torch.cat([all_there[None], there & ~all_there])
            mean, log_variance = torch.cat([jm, mean]), torch.cat([jlv, log_variance])
        mean, log_variance = raised(mean, log_variance)
        return Posterior(mean, log_variance, there)

    def codes(self, latents: Mapping[str, Tensor], *, present: Present = None) -> Mapping[str, Tensor]:
        """The mean of the posterior of each modality alone [B, dim], by its name, and of all together: "all"."""
        names = [m for m in self.modalities if m in latents]
        alone = {m: self.posterior(latents, subset=(m,), present=present).center for m in names}
        return {**alone, "all": self.posterior(latents, present=present).center}

    def generate(
        self,
        inputs: Mapping[str, Value],
        target: str,
        *,
        present: Present = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """``target`` from whatever modalities are given: from the mean code, or with a ``generator`` from a sample.

        What the decoder gives: logits where the likelihood has logits.
        """
        latents = self.encode(inputs, present=present)
        posterior = self.posterior(latents, present=recorded(present, inputs))
        z = posterior.center if generator is None else posterior.draw(generator)
        return self.decode(z.to(next(iter(latents.values())).dtype), target)

    # ----------------------------------------------------------------------------------------------------------- bounds
    def elbo(
        self,
        latents: Mapping[str, Tensor],
        targets: Mapping[str, Value],
        *,
        subset: Iterable[str] | None = None,
        present: Present = None,
        generator: torch.Generator | None = None,
    ) -> Mapping[str, Tensor]:
        """The NEGATIVE bound of the posterior of ``subset``, whose values sum to it: one of each target, and "kl".

        ``-λ_n E_q log p(x_n | z)`` by one sample of each component, ``β KL``: closed form of one Gaussian, else by the
        same samples. The mean runs over the rows that have anything of the subset.
        """
        posterior = self.posterior(latents, subset=subset, present=recorded(present, targets))
        dtype = next(iter(latents.values())).dtype
        return self._bound(posterior, targets, self._targets(targets), present, dtype, generator)

    def importance(
        self,
        latents: Mapping[str, Tensor],
        targets: Mapping[str, Value],
        *,
        samples: int,
        present: Present = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The NEGATIVE importance weighted bound of ``samples`` draws, nearer to -log p(x) the more there are; for
        measuring. λ = β = 1.
        """
        positive(samples=samples)
        posterior = self.posterior(latents, present=recorded(present, targets))
        rows = posterior.present.any(0)
        if not bool(rows.any()):
            raise BatchError("no row has anything recorded.")
        dtype, posterior = next(iter(latents.values())).dtype, posterior.rows(rows)
        weights = []
        for _ in range(samples):
            z = posterior.draw(generator)
            w = gaussian_log_density(z) - mixture_log_density(
                z, posterior.mean, posterior.log_variance, present=posterior.present
            )
            for name in self._targets(targets):
                w = w + self._log_likelihood(name, z[None].to(dtype), targets, present, rows)[0]
            weights.append(w)
        return importance_bound(torch.stack(weights))

    def terms(
        self,
        latents: Mapping[str, Tensor],
        targets: Mapping[str, Value],
        *,
        label: Tensor | None = None,
        present: Present = None,
        generator: torch.Generator | None = None,
    ) -> Mapping[str, Tensor]:
        """``{target}_from_{modalities of the posterior}``, ``kl_{...}``, and "match" (joint) or "tie" (tied)."""
        names, present = tuple(m for m in self.modalities if m in latents), recorded(present, targets)
        there = {m: rows_of(m, present, latents) for m in names}
        dtype, terms = latents[names[0]].dtype, {}

        def add(who: str, posterior: Posterior, wanted: Iterable[str]) -> None:
            if bool(posterior.present.any()):
                bound = self._bound(posterior, targets, wanted, present, dtype, generator)
                terms.update({f"kl_{who}" if k == "kl" else f"{k}_from_{who}": v for k, v in bound.items()})

        every = self._targets(targets)
        if self.joint == "poe":
            for subset in self._subsets(names, generator):
                wanted = every if subset == names else [n for n in every if n in subset]
                add("+".join(subset), self.posterior(latents, subset=subset, present=present), wanted)
        elif self.joint == "tied":
            for m in names:
                add(m, self.posterior(latents, subset=(m,), present=present), every)
            for m, n in itertools.combinations(names, 2):
                if self.tie > 0 and bool((there[m] & there[n]).any()):
                    terms[f"tie_{m}_{n}"] = self.tie * self._tie(latents, m, n, there[m] & there[n], generator)
        elif self.joint == "joint":
            rows = torch.stack([there[m] for m in names]).all(0)
            if "joint" not in latents or not bool(rows.any()):
                raise BatchError("a joint posterior is learned from rows that have every modality: none has.")
            jm, jlv = raised(*latents["joint"].chunk(2, -1))
            add("joint", Posterior(jm[None], jlv[None], rows[None]), every)
            for m in names if self.alpha > 0 else ():
                mean, log_variance = latents[m].chunk(2, -1)
                match = gaussian_kl_between(jm[rows], jlv[rows], mean[rows], log_variance[rows])
                terms[f"match_{m}"] = self.alpha * match
        else:
            add("+".join(names), self.posterior(latents, present=present), every)
        return some(terms)

    # ------------------------------------------------------------------------------------------------------------ parts
    def _targets(self, targets: Mapping[str, Value]) -> list[str]:
        return [n for n in self.decoders if n in targets and self.lambdas[n] > 0]

    def _subsets(self, names: tuple[str, ...], generator: torch.Generator | None) -> list[tuple[str, ...]]:
        found: dict[tuple[str, ...], None] = {names: None, **{(m,): None for m in names}}
        device = torch.device("cpu") if generator is None else generator.device
        for _ in range(self.subsets if len(names) > 2 else 0):
            size = int(torch.randint(2, len(names), (), generator=generator, device=device))
            order = torch.randperm(len(names), generator=generator, device=device)[:size].tolist()
            found[tuple(names[i] for i in sorted(order))] = None
        return list(found)

    def _tie(
        self, latents: Mapping[str, Tensor], m: str, n: str, rows: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        (m1, lv1), (m2, lv2) = (latents[name][rows].chunk(2, -1) for name in (m, n))
        if self.tied_by == "w2":
            return wasserstein2(m1, lv1, m2, lv2)
        z1, z2 = sample_gaussian(m1, lv1, generator=generator), sample_gaussian(m2, lv2, generator=generator)
        return invariance(z1, z2, distance="l2")

    def _bound(
        self,
        posterior: Posterior,
        targets: Mapping[str, Value],
        wanted: Iterable[str],
        present: Present,
        dtype: torch.dtype,
        generator: torch.Generator | None,
    ) -> dict[str, Tensor]:
        rows = posterior.present.any(0)
        if not bool(rows.any()):
            raise BatchError("no row has anything recorded.")
        q = posterior.rows(rows)
        z = sample_gaussian(q.mean, q.log_variance, generator=generator)  # [S, R, D]
        share = q.present / q.present.sum(0)
        terms = {}
        for name in wanted:
            found = self._log_likelihood(name, z.to(dtype), targets, present, rows)
            terms[name] = -self.lambdas[name] * (share * found).sum(0).mean()
        if len(z) == 1:
            nothing = z.new_zeros(z.shape[1])
            terms["kl"] = elbo(nothing, q.mean[0], q.log_variance[0], beta=self.beta, free_bits=self.free_bits)
        else:
            nothing = z.new_zeros(z.shape[:2])
            terms["kl"] = mixture_elbo(nothing, z, q.mean, q.log_variance, present=q.present, beta=self.beta)
        return terms

    def _log_likelihood(
        self, name: str, z: Tensor, targets: Mapping[str, Value], present: Present, rows: Tensor
    ) -> Tensor:
        """``log p(x_n | z_s)`` [S, R] for samples z [S, R, D] of those rows [B]; 0 where the target is absent."""
        made, there = self.decode(z.flatten(0, 1), name).unflatten(0, z.shape[:2]), rows_of(name, present, targets)
        return log_likelihood(self.likelihoods[name], targets[name], made, rows, there)


def log_likelihood(likelihood: LogLikelihood, target: Value, made: Tensor, rows: Tensor, there: Tensor) -> Tensor:
    """[S, R] of the S reconstructions ``made`` [S, R, ...] of those ``rows`` [B] of the target; 0 where it is absent.

    A Stream counts step by step, where recorded.
    """
    live = there[rows]
    if isinstance(target, Stream):
        live = live[:, None] & target.mask[rows]
        data = target.data[rows].masked_fill(~live.reshape(*live.shape, *[1] * (target.data.ndim - 2)), 0)
    else:
        data = kept(target[rows], live)
    if made.shape[2 : live.ndim + 1] != live.shape[1:]:
        raise BatchError(f"a decoder made {tuple(made.shape[1:])} for a target {tuple(data.shape)}.")
    axes = live.ndim  # S and the axes of ``live`` are the items of the likelihood
    data = data.expand(len(made), *data.shape).flatten(0, axes)
    each = likelihood(data, made.flatten(0, axes))
    return torch.where(live.expand(len(made), *live.shape).flatten(), each, 0).reshape(*made.shape[:2], -1).sum(2)


def one_likelihood(given: Likelihood | LogLikelihood) -> LogLikelihood:
    """The function of that name, or the function that is given."""
    if not isinstance(given, str):
        return given
    if given not in LIKELIHOODS:
        raise ConfigError(f'"{given}" is not one of the likelihoods {", ".join(LIKELIHOODS)}.')
    return LIKELIHOODS[given]
