"""Attention: score functions, the softmax over recorded keys, several heads, and who may look at whom.

Letters beside the usual ones: h heads, d width of one head, Tq and Tk steps of queries and keys. Masks are boolean,
True where a key may be looked at; several masks are combined by logical AND.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from avcl.errors import BatchError, ConfigError
from avcl.types import Stream

ScoreName = Literal["scaled_dot", "dot", "cosine", "bilinear", "additive", "plain_additive"]
SCORES: tuple[ScoreName, ...] = ("scaled_dot", "dot", "cosine", "bilinear", "additive", "plain_additive")


# ------------------------------------------------------------------------------------------------------ score functions
def check_lengths(q: Tensor, k: Tensor, score: ScoreName | Literal["sum"]) -> None:
    """BatchError that names the axis which ``score`` cannot take: q [..., Tq, dq], k [..., Tk, dk].

    The dot products, the cosine and the plain additive score need dq = dk and leave Tq and Tk free; the bilinear and
    the additive score map both sides first and need nothing; "sum", the element-wise addition of two sequences, needs
    dq = dk and also Tq = Tk (or one single step, which is repeated).
    """
    if q.ndim < 2 or k.ndim < 2:
        raise BatchError(f"{score} attention needs [..., T, D] on both sides, not {tuple(q.shape)}, {tuple(k.shape)}.")
    if q.ndim == k.ndim and q.shape[:-2] != k.shape[:-2]:
        for axis, (a, b) in enumerate(zip(q.shape[:-2], k.shape[:-2], strict=True)):
            if a != b and 1 not in (a, b):
                raise BatchError(f"{score}: axis {axis} of queries and keys differs: {a} and {b}.")
    if score not in ("bilinear", "additive") and q.shape[-1] != k.shape[-1]:
        raise BatchError(
            f"{score}: the feature axis differs: queries have width {q.shape[-1]}, keys {k.shape[-1]}.",
            hint="Map both to one width, or score by additive or bilinear.",
        )
    if score == "sum" and q.shape[-2] != k.shape[-2] and 1 not in (q.shape[-2], k.shape[-2]):
        raise BatchError(
            f"sum: the time axis differs: {q.shape[-2]} and {k.shape[-2]} steps.",
            hint="Bring both to one clock, or attend instead: a dot product takes any two lengths.",
        )


def add_sequences(a: Tensor, b: Tensor) -> Tensor:
    """``a + b``, element by element, with the lengths checked: [..., T, D] each, or one of a single step."""
    check_lengths(a, b, "sum")
    return a + b


class Score(nn.Module):
    r"""How well query i and key j agree: [..., Tq, dim] and [..., Tk, key_dim] to scores [..., Tq, Tk].

    - ``scaled_dot``: ``q_i·k_j / \sqrt d``: unit variance for independent entries of unit variance.
    - ``dot``: ``q_i·k_j``.
    - ``cosine``: ``q_i·k_j / (|q_i| |k_j| τ)``, τ learned from 0.1 on.
    - ``bilinear``: ``q_i W k_j``, W [dim, key_dim] (Luong et al. 2015, "general"); starts near the scaled dot.
    - ``additive``: ``w·\tanh(q_i W_q + k_j W_k + b)`` with ``hidden`` units (Bahdanau et al. 2015). Without
      ``hidden``: ``w·\tanh(q_i + k_j)``, for sides that have been mapped to one width already.
    - ``plain_additive``: ``Σ_c \tanh(q_{ic} + k_{jc})``, the survey's "addition"; no parameters.

    ``heads``: one set of parameters for each slice of the third last axis. Pitfall: the additive scores hold
    [..., Tq, Tk, hidden] in memory; all others are one matrix product.
    """

    def __init__(
        self, name: ScoreName, dim: int, key_dim: int | None = None, *, heads: int = 1, hidden: int | None = None
    ):
        super().__init__()
        key_dim = dim if key_dim is None else key_dim
        if name not in SCORES:
            raise ConfigError(f'unknown score "{name}": one of {", ".join(SCORES)}.')
        if hidden is not None and name != "additive":
            raise ConfigError(f"hidden units belong to the additive score, not to {name}.")
        if dim != key_dim and name != "bilinear" and hidden is None:
            raise ConfigError(f"{name} needs queries and keys of one width, not {dim} and {key_dim}.")
        self.name, self.dim, self.key_dim = name, dim, key_dim
        if name == "cosine":
            self.log_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10.0)))
        elif name == "bilinear":
            start = torch.eye(dim, key_dim) / math.sqrt(dim) + torch.randn(heads, dim, key_dim) * (0.02 / dim)
            self.weight = nn.Parameter(start)
        elif name == "additive":
            units = dim if hidden is None else hidden
            self.weight = nn.Parameter(torch.empty(heads, 1, 1, units).uniform_(-1, 1) * math.sqrt(3 / units))
            if hidden is not None:
                self.query = nn.Parameter(torch.empty(heads, dim, units).uniform_(-1, 1) / math.sqrt(dim))
                self.key = nn.Parameter(torch.empty(heads, key_dim, units).uniform_(-1, 1) / math.sqrt(key_dim))
                self.bias = nn.Parameter(torch.zeros(heads, 1, units))
        self.hidden = hidden

    @property
    def is_product(self) -> bool:
        """Whether the score is a matrix product of what ``sides`` returns, so that fused attention can run it."""
        return self.name not in ("additive", "plain_additive")

    def sides(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, float]:
        """(q', k', scale) with score = scale · q' k'ᵀ, for the scores that are products."""
        if self.name == "cosine":
            q = nn.functional.normalize(q, dim=-1) * self.log_scale.exp().to(q.dtype)
            return q, nn.functional.normalize(k, dim=-1), 1.0
        if self.name == "bilinear":
            return q @ self.weight.to(q.dtype), k, 1.0
        return q, k, 1.0 if self.name == "dot" else 1 / math.sqrt(q.shape[-1])

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        check_lengths(q, k, self.name)
        if q.shape[-1] != self.dim or k.shape[-1] != self.key_dim:
            raise BatchError(
                f"{self.name}: this score was made for widths {self.dim} and {self.key_dim}, "
                f"not {q.shape[-1]} and {k.shape[-1]}."
            )
        if self.is_product:
            q, k, scale = self.sides(q, k)
            return _at_least_float32(q @ k.transpose(-1, -2)) * scale
        if self.hidden is not None:
            q, k = q @ self.query.to(q.dtype) + self.bias.to(q.dtype), k @ self.key.to(k.dtype)
        both = torch.tanh(q.unsqueeze(-2) + k.unsqueeze(-3))  # [..., Tq, Tk, units]
        if self.name == "additive":
            both = both * self.weight.to(both.dtype)
        return _at_least_float32(both).sum(-1)


# ---------------------------------------------------------------------------------------------------------- who to whom
def window_pairs(queries: Stream, keys: Stream, *, past: float, future: float) -> Tensor:
    """Who stands near whom in time: ``-past ≤ t_j - t_i ≤ future`` seconds, bool [1, Tq, Tk].

    t_i = i / rate of each stream's own rate, so streams of different rates meet on one clock. ``past`` or ``future``
    may be ``math.inf``; differences of a millionth of a step are rounding.
    """
    if past < 0 or future < 0:
        raise ConfigError(f"a window reaches 0 or more seconds back and forth, not {past} and {future}.")
    device = queries.data.device
    at = torch.arange(queries.data.shape[1], device=device, dtype=torch.float64) / queries.rate
    of = torch.arange(keys.data.shape[1], device=device, dtype=torch.float64) / keys.rate
    ahead = of[None] - at[:, None]
    slack = 1e-6 / max(queries.rate, keys.rate)
    return ((ahead >= -past - slack) & (ahead <= future + slack))[None]


def causal_pairs(queries: Stream, keys: Stream) -> Tensor:
    """Keys up to the moment of the query and none behind it: t_j ≤ t_i in seconds, bool [1, Tq, Tk]."""
    return window_pairs(queries, keys, past=math.inf, future=0.0)


def padding_pairs(mask: Tensor, steps: int) -> Tensor:
    """The recorded keys, for each of ``steps`` queries: [B, Tk] to [B, Tq, Tk].

    Queries are never masked inside the softmax: what is computed at unrecorded queries is removed afterwards.
    """
    return mask[:, None].expand(-1, steps, -1)


def block_pairs(first: int, second: int, *, intra: bool = True, inter: bool = True, device: torch.device) -> Tensor:
    """For two sequences laid end to end: who may look within its own, who at the other; bool [1, T₁+T₂, T₁+T₂]."""
    side = torch.arange(first + second, device=device) >= first
    same = side[:, None] == side[None]
    return ((same & intra) | (~same & inter))[None]


def all_of(*masks: Tensor | None) -> Tensor | None:
    """Logical AND of the masks that are given (broadcast against each other); None where none is."""
    result: Tensor | None = None
    for mask in masks:
        if mask is not None:
            result = mask if result is None else result & mask
    return result


# ------------------------------------------------------------------------------------------------------------ attention
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
    return_attention: bool = False,
) -> tuple[Tensor, Tensor | None]:
    r"""``O = P V``, ``P = softmax_j(scale · q_i·k_j + bias_ij)`` over the keys that ``mask`` allows.

    q [B, h, Tq, d], k [B, h, Tk, d], v [B, h, Tk, e] to (O [B, h, Tq, e], P [B, h, Tq, Tk] or None). ``mask`` bool
    and ``bias`` broadcast to [B, h, Tq, Tk]; ``scale`` is ``1/\sqrt d`` unless given (Vaswani et al. 2017).
    The softmax is taken in float32 at least. A query without any key gets 0 and finite gradients. ``dropout`` is
    applied whenever it is above 0: pass 0 in evaluation. With ``return_attention`` the map is made explicitly (its
    rows sum to 1, or to 0 without a key; it shows no dropout); otherwise torch's fused attention never holds it.
    """
    check_lengths(q, k, "scaled_dot")
    if v.shape[-2] != k.shape[-2]:
        raise BatchError(f"the time axis differs: {k.shape[-2]} keys but {v.shape[-2]} values.")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if return_attention:
        scores = _at_least_float32(q @ k.transpose(-1, -2)) * scale
        return attend_scores(scores if bias is None else scores + bias, v, mask=mask, dropout=dropout)
    some = None
    if mask is not None:
        some = mask.any(-1, keepdim=True)
        mask = mask | ~some  # a query without a key looks at everything, and its result is removed below
    if bias is not None:
        bias = bias.to(q.dtype)
        mask = bias if mask is None else torch.where(mask, bias, -math.inf)
    out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
    return (out if some is None else out * some), None


def attend_scores(
    scores: Tensor, v: Tensor, *, mask: Tensor | None = None, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(O, P) of given scores [..., Tq, Tk] and values [..., Tk, e]: the explicit path, for any score function."""
    scores = _at_least_float32(scores)
    if mask is None:
        weights = scores.softmax(-1)
    else:
        # The smallest finite number instead of -inf: a row without a key stays finite, and is then set to 0.
        weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(~mask, 0)
    used = nn.functional.dropout(weights, dropout) if dropout > 0 else weights
    return used.to(v.dtype) @ v, weights


def blank_rows(weights: Tensor, queries: Tensor) -> Tensor:
    """An attention map [B, ..., Tq, Tk] with zeros in the rows of the unrecorded queries, mask [B, Tq]."""
    keep = queries.reshape(queries.shape[0], *[1] * (weights.ndim - 3), queries.shape[1], 1)
    return weights.masked_fill(~keep, 0)


class MultiHeadAttention(nn.Module):
    r"""``concat_h(softmax(score(x W_q, c W_k)) c W_v) W_o``: x [B, Tq, dim] looks at context [B, Tk, context_dim].

    Returns ([B, Tq, dim], map [B, h, Tq, Tk] or None). ``mask`` [B, Tk]: recorded keys, the others are never read,
    whatever they hold. ``pairs`` [B | 1, Tq, Tk]: who may look at whom (causal, window). ``bias`` [B | 1, h, Tq, Tk]
    is added to the scores (relative positions). Vaswani et al. 2017; ``score`` as in ``Score``.

    ``context is x`` (the same tensor) runs one projection for queries, keys and values. W_o has no bias: a query
    without any key gets exactly 0, so that a missing modality adds nothing to a residual. Pitfall: what comes out at
    unrecorded queries is of no use; whoever knows their mask removes it.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        context_dim: int | None = None,
        score: ScoreName = "scaled_dot",
        dropout: float = 0.0,
    ):
        super().__init__()
        if dim < 1 or heads < 1 or dim % heads:
            raise ConfigError(f"the width ({dim}) is a multiple of the number of heads ({heads}).")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout lies in [0, 1), not {dropout}.")
        self.dim, self.heads, self.dropout = dim, heads, dropout
        self.context_dim = dim if context_dim is None else context_dim
        if self.context_dim == dim:
            self.inputs = nn.Linear(dim, 3 * dim)  # queries, keys, values
        else:
            self.query, self.key_value = nn.Linear(dim, dim), nn.Linear(self.context_dim, 2 * dim)
        self.score = Score(score, dim // heads, heads=heads)
        self.output = nn.Linear(dim, dim, bias=False)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        *,
        mask: Tensor | None = None,
        pairs: Tensor | None = None,
        bias: Tensor | None = None,
        return_attention: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        self._check(x, context, mask, pairs)
        same = context is x
        if mask is not None:
            context = context.masked_fill(~mask[:, :, None], 0)
            x = context if same else x
        q, k, v = self._project(x, context)
        allowed = all_of(None if mask is None else mask[:, None, None], None if pairs is None else pairs[:, None])
        dropout = self.dropout if self.training else 0.0
        if self.score.is_product:
            q, k, scale = self.score.sides(q, k)
            out, weights = attend(
                q, k, v, mask=allowed, bias=bias, dropout=dropout, scale=scale, return_attention=return_attention
            )
        else:
            scores = self.score(q, k)
            out, shown = attend_scores(scores if bias is None else scores + bias, v, mask=allowed, dropout=dropout)
            weights = shown if return_attention else None
        return self.output(out.transpose(1, 2).flatten(2)), weights

    def _project(self, x: Tensor, context: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values [B, h, T, d] as views of what the projections wrote."""
        if self.context_dim != self.dim:
            return (*self._split(self.query(x)), *self._split(self.key_value(context)))
        if context is x:
            return self._split(self.inputs(x))
        weight, shift, dim = self.inputs.weight, self.inputs.bias, self.dim
        q = nn.functional.linear(x, weight[:dim], shift[:dim])
        rest = nn.functional.linear(context, weight[dim:], shift[dim:])
        return (*self._split(q), *self._split(rest))

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        """[B, T, n · dim] to n times [B, h, T, d]."""
        batch, steps, width = x.shape
        parts = x.reshape(batch, steps, width // self.dim, self.heads, self.dim // self.heads)
        return parts.permute(2, 0, 3, 1, 4).unbind(0)

    def _check(self, x: Tensor, context: Tensor, mask: Tensor | None, pairs: Tensor | None) -> None:
        if x.ndim != 3 or x.shape[2] != self.dim:
            raise BatchError(f"attention needs queries [B, T, {self.dim}], not {tuple(x.shape)}.")
        if context.ndim != 3 or context.shape[2] != self.context_dim or context.shape[0] != x.shape[0]:
            raise BatchError(
                f"attention needs a context [{x.shape[0]}, T, {self.context_dim}] for these queries, "
                f"not {tuple(context.shape)}."
            )
        if mask is not None and mask.shape != context.shape[:2]:
            raise BatchError(f"the mask of the keys is {tuple(mask.shape)}, not {tuple(context.shape[:2])}.")
        wanted = (x.shape[1], context.shape[1])
        if pairs is not None and (
            pairs.ndim != 3 or pairs.shape[1:] != wanted or pairs.shape[0] not in (1, x.shape[0])
        ):
            raise BatchError(f"pairs is [{x.shape[0]} or 1, {wanted[0]}, {wanted[1]}], not {tuple(pairs.shape)}.")


class FeedForward(nn.Module):
    """``W₂ act(W₁ x + b₁) + b₂``, every step for itself: [..., dim] to the same; ``hidden`` is 4 · dim unless given."""

    def __init__(
        self,
        dim: int,
        *,
        hidden: int | None = None,
        dropout: float = 0.0,
        activation: Literal["gelu", "relu"] = "gelu",
    ):
        super().__init__()
        if activation not in ("gelu", "relu"):
            raise ConfigError(f'the activation is "gelu" or "relu", not "{activation}".')
        hidden = 4 * dim if hidden is None else hidden
        self.dim = dim
        self.first, self.second = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.act = nn.GELU() if activation == "gelu" else nn.ReLU()
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.drop(self.act(self.first(x))))


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
