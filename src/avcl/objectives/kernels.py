"""Kernel CCA: canonical correlations of features that are known by their scalar products only."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from avcl.errors import BatchError, ConfigError
from avcl.objectives.covariances import signed
from avcl.objectives.inputs import above, at_least, raised


def rbf_kernel(x: Tensor, y: Tensor, *, scale: float) -> Tensor:
    r"""The radial kernel ``k(x, y) = exp(-‖x - y‖² / (2 scale))``, float64 [n, m].

    Shapes: ``x`` [n, D], ``y`` [m, D]. ``scale`` > 0 in units of a squared distance; the mean squared distance of the
    training rows is a start. Raises: BatchError for other shapes, ConfigError for scale ≤ 0. Paper: Aizerman et al.
    1964. Pitfall: new samples need the scale of training, not one of their own.
    """
    above("scale", scale)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise BatchError(f"rbf_kernel needs [n, D] and [m, D], not {tuple(x.shape)} and {tuple(y.shape)}.")
    x, y = (z.to(torch.float64) for z in raised(x, y))
    if len(x):
        x, y = x - x[:1], y - x[:1]  # the expansion of the square cancels far from the origin
    square = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return (square.clamp(min=0) / (-2 * scale)).exp()


class KernelCanonical(NamedTuple):
    """Dual coefficients ``weights[i]`` [n, k], mean kernel column ``mean[i]`` [n] and correlations [k], falling."""

    weights: tuple[Tensor, Tensor]
    mean: tuple[Tensor, Tensor]
    correlation: Tensor

    def project(self, view: int, kernel: Tensor) -> Tensor:
        """Canonical variates [q, k] of new samples from ``kernel`` [q, n] between them and the training samples.

        The kernel as it is: centering by the training samples, k̃ = k - k̄_rows - k̄_columns + k̄, happens here; the two
        terms that are constant along a row vanish against the coefficients, which sum to zero.
        """
        if kernel.ndim != 2 or kernel.shape[1] != len(self.mean[view]):
            raise BatchError(f"kernel must be [q, {len(self.mean[view])}], not {tuple(kernel.shape)}.")
        return (kernel.to(torch.float64) - self.mean[view]) @ self.weights[view]


def kernel_cca(ka: Tensor, kv: Tensor, *, dim: int, ridge: float) -> KernelCanonical:
    r"""Regularized kernel CCA in closed form, float64.

    ``(K₁ + κI)^{-1} K₂ (K₂ + κI)^{-1} K₁ α = ρ² α`` with centered K; solved as the singular values ρ of ``T = [K₁/(K₁ +
    κ)]^½ [K₂/(K₂ + κ)]^½``, ``α₁ = [K₁(K₁ + κ)]^{-½} U_k``, ``α₂ = [K₂(K₂ + κ)]^{-½} V_k``

    Shapes: ``ka``, ``kv`` [n, n], symmetric, row i of both from one clip, not centered; k = min(dim, ranks).
    ``ridge`` κ ≥ 0 is absolute, in units of K: linear kernels give CCA with the ridge κ / (n - 1). Directions without
    variance are left out. Sign: the largest coefficient of the first view is positive. Cost: two eigendecompositions,
    O(n³) time and a few n × n matrices in memory, which is inherent; thin the samples beyond some 10,000.

    Raises: BatchError where the kernels are not two finite symmetric [n, n] with n ≥ 2; ConfigError for dim < 1 or
    κ < 0. Paper: Bach & Jordan 2002, Hardoon et al. 2004. Pitfall: with κ = 0 and a kernel of full rank every ρ is 1
    and means nothing; choose κ on held-out rows.
    """
    if dim < 1:
        raise ConfigError(f"components = {dim} must be at least 1.")
    at_least("ridge", ridge)
    n = len(ka) if ka.ndim else 0
    if n < 2 or ka.shape != (n, n) or kv.shape != (n, n):
        raise BatchError(f"kernel_cca needs two [n, n] with n > 1, not {tuple(ka.shape)} and {tuple(kv.shape)}.")
    mean, halves, roots = [], [], []
    for k in (ka, kv):
        k = k.detach().to(torch.float64)
        if not bool(torch.isfinite(k).all()) or not torch.allclose(k, k.T, rtol=1e-5, atol=1e-6 * float(k.abs().max())):
            raise BatchError("a kernel of samples with themselves must be finite and symmetric.")
        mean.append(k.mean(0))
        values, vectors = torch.linalg.eigh(k - k.mean(0) - k.mean(1, keepdim=True) + k.mean())
        # Centering leaves rounding of the size of the uncentered kernel, so that is what small means here.
        keep = values > n * torch.finfo(values.dtype).eps * k.abs().max().clamp(min=values.max())
        values, vectors = values[keep], vectors[:, keep]
        halves.append(vectors * (values / (values + ridge)).sqrt())
        roots.append(vectors * (values * (values + ridge)).rsqrt())
    left, rho, right = torch.linalg.svd(halves[0].T @ halves[1], full_matrices=False)
    first, second = signed((roots[0] @ left[:, :dim], roots[1] @ right[:dim].T))
    return KernelCanonical((first, second), (mean[0], mean[1]), rho[:dim])
