"""From a set or sequence of features to one vector by learned pooling: attention, NetVLAD, MIL, generalized mean.

All take data [B, T, D], or a map [B, T, H, W, D] whose cells are items like any others, and a mask [B, T] (or one for
every item, [B, T, H, W]); all give [B, D'], which has no clock, so they take tensors and not Streams. Order is not
seen. Items behind the mask never enter; a row with nothing recorded gives zeros and finite gradients.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, normalize, softmax

from avcl.errors import BatchError, ConfigError

MILKind = Literal["max", "mean", "attention", "noisy-or", "linear-softmax", "top-k"]
KINDS = ("max", "mean", "attention", "noisy-or", "linear-softmax", "top-k")


def items_of(data: Tensor, mask: Tensor, *, dim: int | None, name: str) -> tuple[Tensor, Tensor]:
    """[B, T, ..., D] and a mask over some leading axes, as [B, N, D] with zeros behind the mask, and [B, N]."""
    if data.ndim < 3 or (dim is not None and data.shape[-1] != dim):
        width = "D" if dim is None else dim
        raise BatchError(f"{name} takes [B, T, {width}] or [B, T, H, W, {width}], not {tuple(data.shape)}.")
    if mask.ndim < 2 or mask.shape != data.shape[: mask.ndim] or mask.ndim >= data.ndim:
        raise BatchError(f"{name}: mask {tuple(mask.shape)} does not fit data {tuple(data.shape)}; it needs [B, T].")
    valid = mask.reshape(*mask.shape, *[1] * (data.ndim - 1 - mask.ndim)).expand(data.shape[:-1]).flatten(1)
    return data.flatten(1, -2).masked_fill(~valid[:, :, None], 0), valid


def masked_softmax(scores: Tensor, valid: Tensor) -> Tensor:
    """Softmax over the items, in float32 or better: [B, N, H] and [B, N]; all zeros where no item is valid."""
    none = ~valid.any(1, keepdim=True)  # a softmax over nothing has no gradient: take all, then drop them
    filled = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~(valid | none)[:, :, None], -1e30)
    return softmax(filled, 1).masked_fill(none[:, :, None], 0).to(scores.dtype)


class AttentionPool(nn.Module):
    """``r_h = Σ_t α_th x_t``, ``α_·h = softmax_t(λ e_th)``, ``e_th = u_hᵀ tanh(x_t W + b)``; output ``[r_1; …; r_H]``.

    ``gated``: ``e_th = u_hᵀ (tanh(x_t W + b) ⊙ σ(x_t W' + b'))``, in which a step can take itself out.

    Shapes: data [B, T, D] (or a map), mask [B, T] → [B, heads · D] (attribute ``dim``); with ``return_attention`` also
    α [B, heads, T] (maps: [B, heads, T, H, W]), which sums to one over what was recorded.
    Paper: the additive score of Bahdanau et al. 2015 with a learned query; several heads over the whole feature: Lin et
    al. 2017; gated, as pooling of multiple instances: Ilse et al. 2018.
    Pitfall: the score is bounded by |u|₁, so that λ (``sharpness``) limits how sharp the weights can be: over very many
    steps a small λ stays near the mean.
    """

    def __init__(
        self, dim: int, *, heads: int = 1, hidden: int | None = None, sharpness: float = 1.0, gated: bool = False
    ):
        super().__init__()
        if dim < 1 or heads < 1 or (hidden is not None and hidden < 1):
            raise ConfigError(f"AttentionPool needs dim, heads and hidden of at least 1, not {dim}, {heads}, {hidden}.")
        if not sharpness > 0:
            raise ConfigError(f"AttentionPool needs sharpness > 0, not {sharpness:g}.")
        width = hidden or dim
        self.inner = nn.Linear(dim, width)
        self.gate = nn.Linear(dim, width) if gated else None
        self.score = nn.Linear(width, heads, bias=False)
        self.features, self.sharpness, self.dim = dim, sharpness, heads * dim

    def forward(self, data: Tensor, mask: Tensor, *, return_attention: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        items, valid = items_of(data, mask, dim=self.features, name="AttentionPool")
        seen = torch.tanh(self.inner(items))
        if self.gate is not None:
            seen = seen * torch.sigmoid(self.gate(items))
        weights = masked_softmax(self.sharpness * self.score(seen), valid).transpose(1, 2)  # [B, heads, N]
        pooled = (weights @ items).flatten(1)
        return (pooled, weights.unflatten(2, data.shape[1:-1])) if return_attention else pooled


class NetVLAD(nn.Module):
    """``V_k = Σ_t w_tk (x_t - c_k)``, ``w_t = softmax_k(α (2 c_k·x_t - ‖c_k‖²))``; rows unit, flattened, unit.

    Which way the features of a cluster lean away from its center, however many there are. The weights are a softmax of
    ``-α ‖x - c_k‖²`` (the term ‖x‖² cancels). ``reduce``: a linear map of the K · D numbers to so many, unit again.

    Shapes: data [B, T, D] (or a map), mask [B, T] → [B, clusters · D] or [B, reduce] (attribute ``dim``); with
    ``return_attention`` also w [B, clusters, T] (maps: [B, clusters, T, H, W]), which sums to one over the clusters.
    ``centers`` [K, D] starts it at given ones (k-means of features); without them they are random unit vectors.
    ``tied=False`` frees the assignment ``softmax_k(a_k·x + b_k)``, started at a = 2αc, b = -α‖c‖², from the centers.
    Paper: Arandjelović et al. 2016 (untied, unit features, α large enough that most features belong to one cluster).
    Pitfall: centers far from the data send all gradients to one cluster: give unit features, or centers from data.
    """

    def __init__(
        self,
        dim: int,
        clusters: int = 8,
        *,
        alpha: float = 1.0,
        tied: bool = False,
        reduce: int | None = None,
        centers: Tensor | None = None,
    ):
        super().__init__()
        if dim < 1 or clusters < 1 or (reduce is not None and reduce < 1):
            raise ConfigError(f"NetVLAD needs dim, clusters and reduce of at least 1, not {dim}, {clusters}, {reduce}.")
        if not alpha > 0:
            raise ConfigError(f"NetVLAD needs alpha > 0, not {alpha:g}.")
        if centers is None:
            centers = normalize(torch.randn(clusters, dim), dim=1)
        elif centers.shape != (clusters, dim):
            raise ConfigError(f"NetVLAD needs centers [{clusters}, {dim}], not {tuple(centers.shape)}.")
        self.centers = nn.Parameter(centers.detach().float().clone())
        self.alpha, self.features = alpha, dim
        self.assign = None if tied else nn.Linear(dim, clusters)
        if self.assign is not None:
            with torch.no_grad():
                self.assign.weight.copy_(2 * alpha * self.centers)
                self.assign.bias.copy_(-alpha * self.centers.square().sum(1))
        self.reduce = nn.Linear(clusters * dim, reduce, bias=False) if reduce is not None else None
        self.dim = reduce or clusters * dim

    def forward(self, data: Tensor, mask: Tensor, *, return_attention: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        items, valid = items_of(data, mask, dim=self.features, name="NetVLAD")
        if self.assign is not None:
            scores = self.assign(items)
        else:
            scores = self.alpha * (2 * items @ self.centers.T - self.centers.square().sum(1))
        weights = softmax(scores, 2, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
        weights = (weights * valid[:, :, None]).transpose(1, 2)  # [B, K, N]
        residuals = weights @ items - weights.sum(2, keepdim=True) * self.centers
        pooled = normalize(normalize(residuals, dim=2).flatten(1), dim=1)
        if self.reduce is not None:
            pooled = normalize(self.reduce(pooled), dim=1)
        pooled = pooled.masked_fill(~valid.any(1, keepdim=True), 0)  # no gradient through the norm of nothing
        return (pooled, weights.unflatten(2, data.shape[1:-1])) if return_attention else pooled


class MILPool(nn.Module):
    """From logits of instances to logits of the bag: ``P = Σ_t w_t p_t`` with p = σ(logits), class by class.

    "max" w = 1 at the largest · "mean" w = 1/T · "top-k" w = 1/k at the k largest · "linear-softmax"
    ``w_t = p_t / Σ p`` (so P = Σ p² / Σ p) · "attention" ``w = softmax_t(W x_t + b)`` · "noisy-or"
    ``P = 1 - Π_t (1 - p_t)``. Takes logits and gives the logits ``log P - log(1 - P)``, computed without leaving the
    log domain: feed them to a binary cross-entropy with logits; ``sigmoid`` of them is P. With ``on="logits"`` the
    weights mix the logits themselves (``Σ_t w_t z_t``), for softmax heads; noisy-or and linear softmax cannot.

    Shapes: logits [B, T, C] (or a map), mask [B, T] → [B, C] (attribute ``dim``); with ``return_attention`` also w
    [B, C, T] (for noisy-or the share of t in the evidence, log(1-p_t) / Σ log(1-p)). "attention" computes its weights
    from ``x`` [B, T, features] where ``features`` is given, else from the logits. ``k`` of top-k counts recorded items
    only, and all where there are fewer.
    Papers: Kong et al. 2018 (attention), Wang, Li & Metze 2019 (five of them compared: linear softmax localizes best),
    Maron & Lozano-Pérez 1998 (noisy-or). Pitfalls: max trains one instance of a bag; noisy-or over long sequences
    saturates (0.01 at each of 500 steps is P = 0.99). A bag with nothing recorded gives logits 0: leave it out.
    """

    def __init__(
        self,
        classes: int,
        kind: MILKind = "linear-softmax",
        *,
        on: Literal["probabilities", "logits"] = "probabilities",
        k: int = 3,
        features: int | None = None,
    ):
        super().__init__()
        if kind not in KINDS:
            raise ConfigError(f"MILPool kind is one of {', '.join(KINDS)}, not {kind!r}.")
        if on not in ("probabilities", "logits"):
            raise ConfigError(f"MILPool on is probabilities or logits, not {on!r}.")
        if on == "logits" and kind in ("noisy-or", "linear-softmax"):
            raise ConfigError(f"MILPool {kind} is a formula of probabilities; use on='probabilities'.")
        if classes < 1 or k < 1 or (features is not None and features < 1):
            raise ConfigError(f"MILPool needs classes, k and features of at least 1, not {classes}, {k}, {features}.")
        if features is not None and kind != "attention":
            raise ConfigError(f"MILPool {kind} does not look at features; only attention does.")
        self.kind, self.on, self.k, self.features, self.dim = kind, on, k, features, classes
        self.score = nn.Linear(features or classes, classes) if kind == "attention" else None

    def forward(
        self, logits: Tensor, mask: Tensor, *, x: Tensor | None = None, return_attention: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        items, valid = items_of(logits, mask, dim=self.dim, name="MILPool")
        if (x is None) != (self.features is None):
            raise BatchError("MILPool takes x [B, T, features] where it was built with features, and only there.")
        scores = items
        if x is not None:
            scores, seen = items_of(x, mask, dim=self.features, name="MILPool's x")
            if seen.shape != valid.shape:
                raise BatchError(f"MILPool: x {tuple(x.shape)} does not fit logits {tuple(logits.shape)}.")
        z = items.to(torch.promote_types(items.dtype, torch.float32))
        some = valid.any(1, keepdim=True)  # [B, 1]
        keep = (valid | ~some)[:, :, None]  # an empty bag is computed as zeros, and dropped at the end
        if self.kind == "noisy-or":
            quiet = logsigmoid(-z).masked_fill(~keep, 0)  # log (1 - p_t)
            none = quiet.sum(1)
            bag = log_of_one_minus_exp(none) - none
            weights = quiet / none[:, None].clamp(max=-torch.finfo(z.dtype).tiny)
        else:
            log_weights = self._log_weights(z, scores, keep)
            weights = log_weights.exp()
            if self.on == "logits":
                bag = (weights * z).sum(1)
            else:
                bag = (log_weights + logsigmoid(z)).logsumexp(1) - (log_weights + logsigmoid(-z)).logsumexp(1)
        bag = bag.masked_fill(~some, 0).to(logits.dtype)
        if not return_attention:
            return bag
        shares = (weights * valid[:, :, None]).to(logits.dtype).transpose(1, 2)
        return bag, shares.unflatten(2, logits.shape[1:-1])

    def _log_weights(self, z: Tensor, scores: Tensor, keep: Tensor) -> Tensor:
        """log w [B, N, C], -1e30 where w is zero."""
        if self.kind == "linear-softmax":
            raw = logsigmoid(z)
        elif self.score is not None:
            raw = self.score(scores).to(z.dtype)
        else:
            raw = torch.zeros_like(z)
            if self.kind in ("max", "top-k"):
                count = min(1 if self.kind == "max" else self.k, z.shape[1])
                chosen = z.masked_fill(~keep, -torch.inf).topk(count, 1).indices
                keep = keep & torch.zeros_like(z, dtype=torch.bool).scatter(1, chosen, True)
        return raw.masked_fill(~keep, -1e30).log_softmax(1)


def log_of_one_minus_exp(x: Tensor) -> Tensor:
    """``log(1 - e^x)`` for x ≤ 0, exact near both ends; at x = 0 the logarithm of the smallest number."""
    near = x > -0.6931
    low = torch.where(near, x, -1.0).clamp(max=-torch.finfo(x.dtype).tiny)
    return torch.where(near, (-torch.expm1(low)).log(), torch.log1p(-torch.where(near, -1.0, x).exp()))


class GeneralizedMeanPool(nn.Module):
    """``y_d = ( 1/T Σ_t max(x_td, ε)^p )^{1/p}``, p learned: the mean at p = 1, towards the maximum as p grows.

    Shapes: data [B, T, D] (or a map), mask [B, T] → [B, D]. One p, or with ``per_channel`` D of them. Computed as a
    logsumexp, so that large p cannot overflow.
    Paper: Radenović, Tolias & Chum 2018 (p starts at 3). Pitfall: for features that are not negative (after a ReLU);
    what lies below ε counts as ε and has no gradient.
    """

    def __init__(self, dim: int, *, p: float = 3.0, per_channel: bool = False, learned: bool = True, eps: float = 1e-6):
        super().__init__()
        if dim < 1 or not p > 0 or not eps > 0:
            raise ConfigError(f"GeneralizedMeanPool needs dim ≥ 1 and p, eps > 0, not {dim}, {p:g}, {eps:g}.")
        self.log_p = nn.Parameter(torch.full((dim if per_channel else 1,), p).log(), requires_grad=learned)
        self.dim, self.eps = dim, eps

    def forward(self, data: Tensor, mask: Tensor) -> Tensor:
        items, valid = items_of(data, mask, dim=self.dim, name="GeneralizedMeanPool")
        some = valid.any(1, keepdim=True)
        p = self.log_p.float().exp()
        powers = p * items.to(torch.promote_types(items.dtype, torch.float32)).clamp(min=self.eps).log()
        powers = powers.masked_fill(~(valid | ~some)[:, :, None], -1e30)
        mean = powers.logsumexp(1) - valid.sum(1, keepdim=True).clamp(min=1).log()
        return (mean / p).exp().masked_fill(~some, 0).to(data.dtype)
