"""Reconstruction objectives: how far a signal, picture, mask or spectrum is from the one it should be.

All of them take cells of any shape and a ``weight`` of the same rank: a mask of what was recorded, or an importance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from avcl.errors import BatchError, ConfigError
from avcl.objectives.inputs import above, at_least, full_precision, raised
from avcl.objectives.weights import of_rank, recorded_pair, weighted_mean

MaskError = Literal["bce", "l1", "l2"]


def l1(x: Tensor, y: Tensor, *, weight: Tensor | None = None) -> Tensor:
    r"""Mean absolute error: ``L = Σ_c w_c |x_c - y_c| / Σ_c w_c`` over the cells c, w = 1 without ``weight``.

    Shapes: ``x``, ``y`` of one shape; ``weight`` of the same rank, every size 1 or that of x (a mask [B, T] of
    features [B, T, D] is ``mask[..., None]``), bool or ≥ 0 · result: a scalar ≥ 0, float32 at least. Sign: lower is
    better. Reduction: weighted mean over cells. A cell of weight 0 adds nothing and gets no gradient, whatever stands
    there, NaN included.

    Raises: BatchError where shapes disagree, a value is complex, nothing is there, or the weight is negative, not
    finite or zero everywhere. Paper: the loss of Isola et al. 2017 among many. Pitfall: the minimizer is the median,
    so rare events (a short click, a thin contour) may be ignored at little cost.
    """
    x, y, weight = recorded_pair("l1", x, y, weight)
    return weighted_mean((x - y).abs(), weight)


def l2(x: Tensor, y: Tensor, *, weight: Tensor | None = None) -> Tensor:
    r"""Mean squared error: ``L = Σ_c w_c (x_c - y_c)² / Σ_c w_c`` over the cells c, w = 1 without ``weight``.

    Shapes: ``x``, ``y``, ``weight`` and result as in ``l1``. Sign: lower is better. Reduction: weighted mean over
    cells, of which those of weight 0 never count.

    Raises: as ``l1``. Paper: least squares; of complex spectra (``torch.view_as_real``) Gao and Grauman 2019 (2.5D
    visual sound). Pitfall: the minimizer is the mean, which blurs where several answers are right; mixing this *mean*
    with a *sum* such as the KL term weighs the two by the number of cells.
    """
    x, y, weight = recorded_pair("l2", x, y, weight)
    return weighted_mean((x - y).square(), weight)


def charbonnier(x: Tensor, y: Tensor, *, epsilon: float = 1e-3, weight: Tensor | None = None) -> Tensor:
    r"""Smooth absolute error: ``L = Σ_c w_c √((x_c - y_c)² + ε²) / Σ_c w_c`` over the cells c, w = 1 without weight.

    Quadratic within ε of the truth, linear far from it.

    Shapes: ``x``, ``y``, ``weight`` as in ``l1`` · result: a scalar ≥ ε, float32 at least. Sign: lower is better.
    Reduction: weighted mean over cells, of which those of weight 0 never count.

    Raises: as ``l1``, and ConfigError for ε ≤ 0. Paper: Charbonnier et al. 1994; ε = 1e-3 as Lai et al. 2017.
    Pitfall: ε is in units of x: 1e-3 suits pictures in [0, 1], not magnitudes in the hundreds.
    """
    above("epsilon", epsilon)
    x, y, weight = recorded_pair("charbonnier", x, y, weight)
    return weighted_mean(torch.hypot(x - y, x.new_tensor(epsilon)), weight)


def mask_loss(
    predicted: Tensor,
    target: Tensor,
    *,
    mixture: Tensor | None = None,
    error: MaskError = "bce",
    weight: Tensor | None = None,
) -> Tensor:
    r"""Error of a separation mask, heavier where the mixture is loud:

    ``L = Σ_c w_c min(max(ln(1 + X_c), 10⁻³), 10) e(m_c, M_c) / Σ_c w_c``, X the mixture's magnitude, M the target

    ``error`` e: "bce" ``softplus(m) - M m``, m a *logit*, M a binary mask (or a soft one in [0, 1]) · "l1" ``|m - M|``
    · "l2" ``(m - M)²``, m a mask after its sigmoid (or the sum of the masks of a clip's objects), M a ratio mask.

    Shapes: ``predicted``, ``target`` of one shape, as [B, S, F, T]; ``mixture`` ≥ 0 and ``weight`` of the same rank,
    every size 1 or that of the mask (one mixture of S sources is [B, 1, F, T]) · result: a scalar ≥ 0. Sign: lower is
    better. Reduction: mean over recorded cells w, and *not* divided by the sum of the energy weight, as published:
    loud mixtures count more than quiet ones. Without ``mixture`` the energy weight is 1.

    Raises: as ``l1``; BatchError for a negative mixture or, with "bce", a target outside [0, 1]; ConfigError for an
    unknown error. Paper: Zhao et al. 2018 (binary, "bce"), Zhao et al. 2019 (no mixture), Gao and Grauman 2019
    ("l1" on the ratio clipped at 5). Pitfall: "bce" wants logits, "l1" and "l2" want masks; the reverse trains to a
    wrong mask without an error.
    """
    if error not in get_args(MaskError):
        raise ConfigError(f'error = "{error}" is unknown.', hint='Use "bce", "l1" or "l2".')
    m, goal, live = recorded_pair("mask_loss", predicted, target, weight)
    if error == "bce":
        if not bool(((goal >= 0) & (goal <= 1)).all()):
            raise BatchError("the target of a binary mask must lie in [0, 1].")
        cost = F.binary_cross_entropy_with_logits(m, goal, reduction="none")
    else:
        cost = (m - goal).abs() if error == "l1" else (m - goal).square()
    if mixture is not None:
        (loudness,) = raised(of_rank("mixture", mixture, m))
        if live is not None:
            loudness = torch.where(live > 0, loudness, 0)
        if not bool((loudness >= 0).all()):
            raise BatchError("the mixture must be magnitudes ≥ 0.")
        cost = cost * loudness.log1p().clamp(1e-3, 10.0)
    return weighted_mean(cost, live)


def spectral(
    x: Tensor,
    y: Tensor,
    *,
    sizes: Sequence[int] = (512, 1024, 2048),
    hops: Sequence[int] | None = None,
    windows: Sequence[int] | None = None,
    convergence: float = 1.0,
    magnitude: float = 1.0,
    floor: float = 1e-7,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Distance of short-time spectra at several resolutions; with X, Y the magnitudes at one of the R ``sizes``:

    ``L = 1/R Σ_r mean_b [ convergence · ‖X_b - Y_b‖_F / ‖Y_b‖_F + magnitude · mean_{f,t} |ln X_bft - ln Y_bft| ]``

    The first term minds the loud partials, the second the quiet ones; no phase enters. Magnitudes are
    ``√max(|STFT|², floor)``, so silence is finite; the window is Hann, outside of the wave is silence.

    Shapes: waves ``x`` (predicted) and ``y`` (true) [B, L], any L ≥ 1; ``mask`` [B, L] bool, True where recorded ·
    result: a scalar ≥ 0. ``hops`` default to a quarter of each size, ``windows`` (≤ size) to the size. Sign: lower is
    better. Reduction: mean over frames centered on a recorded sample, then over clips that have one, then over sizes;
    so padding behind a clip changes nothing. It is not symmetric in x and y.

    Raises: BatchError where the shapes do not fit, nothing was recorded or a wave is complex; ConfigError for bad
    sizes or weights. Paper: Arık, Jun, Diamos 2019; several resolutions Yamamoto, Song, Kim 2020 (sizes 512, 1024,
    2048, hops 50, 120, 240, windows 240, 600, 1200). Log power alone, as Mira et al. 2021, is convergence = 0,
    magnitude = 2. Pitfall: ‖Y‖ of a silent true clip is almost 0 and its first term huge (finite, by the floor):
    leave silent clips out of the mask.
    """
    for name, value in (("convergence", convergence), ("magnitude", magnitude)):
        at_least(name, value)
    above("floor", floor)
    hops = [max(1, size // 4) for size in sizes] if hops is None else hops
    windows = sizes if windows is None else windows
    if len(sizes) == 0 or not len(sizes) == len(hops) == len(windows):
        raise ConfigError(f"{len(sizes)} sizes, {len(hops)} hops and {len(windows)} windows do not fit.")
    each = list(zip(sizes, hops, windows, strict=True))
    if not all(size >= 2 and hop >= 1 and 1 <= window <= size for size, hop, window in each):
        raise ConfigError(
            f"sizes {tuple(sizes)}, hops {tuple(hops)}, windows {tuple(windows)} need size ≥ 2, hop ≥ 1 and window in"
            " 1..size."
        )
    if x.ndim != 2 or (mask is not None and (mask.shape != x.shape or mask.dtype != torch.bool)):
        raise BatchError(
            f"spectral needs waves [B, L] and a bool mask [B, L], not {tuple(x.shape)}"
            f" and {None if mask is None else (mask.dtype, tuple(mask.shape))}."
        )
    x, y, _ = recorded_pair("spectral", x, y, mask)
    recorded = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    total = x.new_zeros(())
    with full_precision(x):
        for size, hop, window in each:
            # Frame n is centered on sample n * hop and counts where that sample was recorded.
            counted = recorded[:, ::hop]
            live = counted.any(1)
            if not bool(live.any()):
                raise BatchError(f"no sample on the grid of hop {hop} was recorded.")
            counted = counted[live, None]  # [b, 1, N]
            shape = torch.hann_window(window, dtype=x.dtype, device=x.device)
            mine, true = (_magnitude(wave[live], size, hop, shape, floor)[:, :, : counted.shape[2]] for wave in (x, y))
            gap = torch.linalg.vector_norm((mine - true) * counted, dim=(1, 2))
            scale = torch.linalg.vector_norm(true * counted, dim=(1, 2))
            ratio = ((mine.log() - true.log()).abs() * counted).sum((1, 2)) / (counted.sum((1, 2)) * mine.shape[1])
            total = total + (convergence * gap / scale + magnitude * ratio).mean()
    return total / len(sizes)


def _magnitude(wave: Tensor, size: int, hop: int, window: Tensor, floor: float) -> Tensor:
    spectrum = torch.stft(
        wave, size, hop, len(window), window, center=True, pad_mode="constant", return_complex=True
    )  # zeros beside the wave, so that a wave may be shorter than a window
    return (spectrum.real.square() + spectrum.imag.square()).clamp(min=floor).sqrt()
