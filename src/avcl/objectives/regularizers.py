"""Terms beside the main objective: the two views agree, and the dimensions do not repeat each other."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from avcl.errors import BatchError, ConfigError
from avcl.objectives.inputs import full_precision, pairs, raised

Distance = Literal["cosine", "l2", "squared"]
TINY = 1e-6  # a row shorter than this has no direction: its cosine fades to 0 instead of dividing by 0


def invariance(a: Tensor, v: Tensor, *, distance: Distance = "cosine") -> Tensor:
    r"""How far the two views of a clip lie apart: ``L = 1/B Σ_i d(a_i, v_i)``

    ``distance`` d: "cosine" ``1 - cos(a, v)`` · "l2" ``‖a - v‖`` (the third term of DSCMR in its code's form) ·
    "squared" ``‖a - v‖²``, which is twice the cosine form on rows of unit length.

    Shapes: ``a``, ``v`` [B, D], row i of both from one clip · result: a scalar ≥ 0, float32 at least. Sign: lower is
    better. Reduction: mean over rows. At a = v the slope of "l2" is taken as 0.

    Raises: BatchError where shapes disagree or the batch is empty, ConfigError for an unknown distance. Paper: Zhen
    et al. 2019 ("l2"), Grill et al. 2020 ("squared" on unit rows). Pitfall: "l2" and "squared" of features that are
    not normalized are least when everything shrinks to 0: pair them with a term that tells classes or clips apart.
    """
    if distance not in get_args(Distance):
        raise ConfigError(f'distance = "{distance}" is unknown.', hint='Use "cosine", "l2" or "squared".')
    a, v = pairs("invariance", a, v)
    if distance == "cosine":
        return 1 - (F.normalize(a, dim=1, eps=TINY) * F.normalize(v, dim=1, eps=TINY)).sum(1).mean()
    if distance == "l2":
        return torch.linalg.vector_norm(a - v, dim=1).mean()
    return (a - v).square().sum(1).mean()


def frobenius(a: Tensor, v: Tensor, *, squared: bool = False) -> Tensor:
    r"""Frobenius norm of a difference: ``L = ‖A - V‖_F = √Σ_id (a_id - v_id)²``, or its square with ``squared``.

    The label-distance form of EICS is two of them, ``frobenius(f, y) + frobenius(g, y)`` with the predictions f and g
    of the two views and one-hot rows y; the paper form of DSCMR's third term is ``frobenius(a, v) / len(a)``.

    Shapes: ``a``, ``v`` [B, D] · result: a scalar ≥ 0, float32 at least. Sign: lower is better. Reduction: a norm of
    the whole batch, neither sum nor mean. At A = V the slope of the norm is taken as 0.

    Raises: BatchError where shapes disagree or the batch is empty. Paper: Zeng et al. 2021 (EICS), Zhen et al. 2019.
    Pitfall: without the square the gradient of every row is divided by the error of the whole batch, and the value
    grows as √B: a weight found at one batch size does not carry over to another.
    """
    a, v = pairs("frobenius", a, v)
    return (a - v).square().sum() if squared else torch.linalg.vector_norm(a - v)


def orthogonality(z: Tensor) -> Tensor:
    r"""Columns that are orthogonal and of unit length: ``L = ‖ZᵀZ - I‖_F²``

    Computed from ZZᵀ where there are fewer rows than columns, for ``‖ZᵀZ - I_D‖² = ‖ZZᵀ - I_N‖² + D - N``: memory is
    min(N, D)².

    Shapes: ``z`` [N, D] with N > 0, a batch of embeddings (divide them by √N first) or a weight matrix (transpose it
    for orthonormal rows) · result: a scalar ≥ max(0, D - N), float32 at least. Sign: lower is better. Reduction: sum
    over the D² cells.

    Raises: BatchError for anything but a matrix with values. Paper: the Frobenius and orthogonality terms of section
    3.2; of weights Brock et al. 2017. Pitfall: with N < D it cannot reach 0; embeddings that are not centered pay for
    their mean as well.
    """
    if z.ndim != 2 or z.numel() == 0:
        raise BatchError(f"orthogonality needs a matrix [N, D] with values, not {tuple(z.shape)}.")
    (z,) = raised(z)
    rows, columns = z.shape
    with full_precision(z):
        gram = z @ z.T if rows < columns else z.T @ z
    identity = torch.eye(len(gram), dtype=z.dtype, device=z.device)
    return (gram - identity).square().sum() + max(0, columns - rows)
