"""What else latents must satisfy: be alike across modalities, tell classes apart, become binary codes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from avcl.errors import BatchError, ConfigError, did_you_mean
from avcl.nn.autoencoders import Autoencoder, CrossReconstruction, Error, Pair, Present, Value, rows_of, some
from avcl.objectives import cross_entropy, deep_cca, invariance, l2, mmd, soft_cca
from avcl.objectives.inputs import at_least, full_precision, labels, raised

Coupling = Literal["l2", "cosine", "correlation", "cca", "pairwise", "mmd"]


def pairwise_similarity(a: Tensor, v: Tensor, label: Tensor) -> Tensor:
    """Inner products follow the labels: ``L = 1/B² Σ_ij (S_ij - <a_i, v_j> / k)²``, S = 1 for a shared class, else -1.

    ``a``, ``v`` [B, k], ``label`` [B] integers or [B, C] multi-hot (one shared label is enough). A scalar ≥ 0, least
    where both sides are the ±1 codes of their class. After Cao et al. 2016.
    """
    if a.ndim != 2 or a.shape != v.shape or len(a) == 0:
        raise BatchError(f"pairwise_similarity needs two [B, k], not {tuple(a.shape)} and {tuple(v.shape)}.")
    a, v = raised(a, v)
    if label.ndim == 2 and len(label) == len(a):
        same = label.to(a.dtype) @ label.to(a.dtype).T > 0
    else:
        label = labels("pairwise_similarity", label, len(a))
        same = label[:, None] == label
    with full_precision(a):
        return (2 * same.to(a.dtype) - 1 - a @ v.T / a.shape[1]).square().mean()


class ConstrainedAE(CrossReconstruction):
    """Auto-encoders whose latents are coupled: ``L = Σ_m error(g_m(h_m), x_m) + Σ_R λ_R Σ_{m<n} R(p_m, p_n)``

    ``couplings`` {R: λ_R}, over the rows that have both: "l2" mean of ‖p_m - p_n‖² (correspondence AE) · "cosine"
    1 - cos · "correlation" ``Σ_d (1 - corr_d)`` over the batch · "cca" minus the sum of canonical correlations, which
    needs more rows than dimensions · "pairwise" ``pairwise_similarity``, needs labels · "mmd" of the two clouds, which
    knows no pairs (kernels around the mean squared distance of the batch). ``projectors``: p_m = P_m(h_m), else p = h ·
    ``quantization``: weight of ``mean_i ‖|p_i| - 1‖²``, so that ``bits`` lose little · ``weights`` of reconstruction as
    in ``CrossReconstruction``, by default each modality from itself alone.

    Feng et al. 2014 ({"l2": λ}); Cao et al. 2016 ({"l2": .1, "pairwise": 1}, quantization .01, tanh codes: our reading
    of the abstract); Rajan et al. 2021 ({"cca": λ} beside a translation weight). Pitfalls: "l2" is least where
    everything shrinks to 0; only the reconstruction stands against it, so λ cannot grow without bound. "cca" leaves
    each side its own basis: compare after ``objectives.canonical_directions``, not by cosine. A heavy quantization
    from the first step freezes every bit where it happened to start.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        decoders: Mapping[str, nn.Module],
        *,
        couplings: Mapping[Coupling, float],
        projectors: Mapping[str, nn.Module] | None = None,
        quantization: float = 0.0,
        ridge: float = 1e-3,
        weights: Mapping[Pair, float] | None = None,
        error: Error = l2,
        shared_encoder: nn.Module | None = None,
        shared_decoder: nn.Module | None = None,
    ):
        for name, weight in couplings.items():
            if name not in get_args(Coupling):
                raise ConfigError(f'"{name}" is not one of the couplings.', hint=did_you_mean(name, get_args(Coupling)))
            at_least(f"the weight of {name}", weight)
        at_least("quantization", quantization)
        at_least("ridge", ridge)
        if weights is None:
            weights = {(name, name): 1.0 for name in encoders if name in decoders}
        shared = {"shared_encoder": shared_encoder, "shared_decoder": shared_decoder}
        super().__init__(encoders, decoders, weights=weights, error=error, **shared)
        if projectors is not None and set(projectors) != set(encoders):
            raise ConfigError("projectors must name every modality.")
        self.projectors = None if projectors is None else nn.ModuleDict(projectors)
        self.couplings = {name: weight for name, weight in couplings.items() if weight > 0}
        self.quantization, self.ridge = quantization, ridge

    def project(self, latent: Tensor, modality: str) -> Tensor:
        """What is coupled: P_m(h), or h itself."""
        return latent if self.projectors is None else self.projectors[modality](latent)

    def codes(self, latents: Mapping[str, Tensor], *, present: Present = None) -> Mapping[str, Tensor]:
        """The projections that are coupled."""
        return {name: self.project(h, name) for name, h in latents.items()}

    def bits(self, latents: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Binary codes, the signs of ``codes`` as int8 (0 counts as +1): Hamming distance = (k - <b, b'>) / 2."""
        return {name: torch.where(code >= 0, 1, -1).to(torch.int8) for name, code in self.codes(latents).items()}

    def terms(
        self,
        latents: Mapping[str, Tensor],
        targets: Mapping[str, Value],
        *,
        label: Tensor | None = None,
        present: Present = None,
        generator: torch.Generator | None = None,
    ) -> Mapping[str, Tensor]:
        """The reconstructions, ``{coupling}_{m}_{n}`` for every two modalities, ``quantization_{m}``."""
        terms = dict(super().terms(latents, targets, label=label, present=present, generator=generator))
        codes = self.codes(latents)
        there = {name: rows_of(name, present, latents, targets) for name in codes}
        for a, b in itertools.combinations(codes, 2):
            for coupling, weight in self.couplings.items():
                rows = there[a] & there[b]
                if coupling == "pairwise":
                    rows = rows & labeled(label, rows)
                if bool(rows.any()):
                    known = None if label is None else label[rows]
                    terms[f"{coupling}_{a}_{b}"] = weight * self._coupled(
                        coupling, codes[a][rows], codes[b][rows], known
                    )
        for name, code in codes.items() if self.quantization > 0 else ():
            if bool(there[name].any()):
                (code,) = raised(code[there[name]])
                terms[f"quantization_{name}"] = self.quantization * (code.abs() - 1).square().sum(1).mean()
        return terms

    def _coupled(self, coupling: Coupling, a: Tensor, b: Tensor, label: Tensor | None) -> Tensor:
        if coupling == "l2":
            return invariance(a, b, distance="squared")
        if coupling == "cosine":
            return invariance(a, b)
        if coupling == "correlation":
            return soft_cca(a, b, weight=0.0)
        if coupling == "cca":
            return deep_cca(a, b, dim=min(a.shape[1], b.shape[1]), ridge=self.ridge)
        if coupling == "pairwise" and label is not None:
            return pairwise_similarity(a, b, label)
        # Twice the variance is the mean squared distance of two rows; it is a constant of the step.
        spread = 2 * float(torch.cat([a, b]).detach().float().var(0, correction=0).sum())
        return mmd(a, b, gamma=[scale / max(spread, 1e-6) for scale in (0.25, 1.0, 4.0)])


class LatentClassification(Autoencoder):
    """Any auto-encoder whose codes are also classified, by one classifier for all modalities:

    ``L = L_autoencoder + λ Σ_m objective(C(h_m), y)``

    ``classifier`` C maps a code [B, k] to logits [B, C]; its shared weights pull the classes of all modalities to the
    same places. ``objective`` (prediction, label) to a scalar: ``cross_entropy`` on ``label`` [B] integers, where rows
    of label -1 are left out, or for floating labels a regression such as ``l2``. Rajan et al. 2021 trains with both
    modalities and predicts from the weaker: ``classify`` takes whatever is there. Pitfall: a small λ changes nothing,
    a large one makes the latent forget everything but the class.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        classifier: nn.Module,
        *,
        weight: float = 1.0,
        objective: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    ):
        super().__init__()
        at_least("weight", weight)
        self.autoencoder, self.classifier, self.weight, self.objective = autoencoder, classifier, weight, objective
        self.modalities, self.latents = autoencoder.modalities, autoencoder.latents

    def encode(self, inputs: Mapping[str, Value], *, present: Present = None) -> Mapping[str, Tensor]:
        return self.autoencoder.encode(inputs, present=present)

    def decode(self, latent: Tensor, modality: str) -> Tensor:
        return self.autoencoder.decode(latent, modality)

    def codes(self, latents: Mapping[str, Tensor], *, present: Present = None) -> Mapping[str, Tensor]:
        return self.autoencoder.codes(latents, present=present)

    def classify(self, latents: Mapping[str, Tensor], *, present: Present = None) -> Mapping[str, Tensor]:
        """C(h) of every code."""
        return {name: self.classifier(code) for name, code in self.codes(latents, present=present).items()}

    def terms(
        self,
        latents: Mapping[str, Tensor],
        targets: Mapping[str, Value],
        *,
        label: Tensor | None = None,
        present: Present = None,
        generator: torch.Generator | None = None,
    ) -> Mapping[str, Tensor]:
        """Those of the auto-encoder, and ``class_{latent}`` over the rows that have a label."""
        terms = dict(self.autoencoder.terms(latents, targets, label=label, present=present, generator=generator))
        for name, made in self.classify(latents, present=present).items() if self.weight > 0 else ():
            rows = labeled(label, made[:, 0])
            if name in self.modalities:
                rows = rows & rows_of(name, present, latents, targets)
            if bool(rows.any()) and label is not None:
                terms[f"class_{name}"] = self.weight * self.objective(made[rows], label[rows])
        return some(terms)


def labeled(label: Tensor | None, rows: Tensor) -> Tensor:
    """[B] bool: integer labels are known from 0 on, floating and multi-hot ones always."""
    if label is None or len(label) != len(rows):
        raise BatchError(f"this needs {len(rows)} labels, not {None if label is None else tuple(label.shape)}.")
    return torch.ones_like(rows, dtype=torch.bool) if label.ndim > 1 or label.is_floating_point() else label >= 0
