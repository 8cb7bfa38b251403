"""Within a modality and across: self-attention and co-attention of two Streams in one block."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor, nn

from avcl.errors import BatchError, ConfigError
from avcl.nn.attention import FeedForward, MultiHeadAttention, blank_rows, block_pairs
from avcl.nn.positions import ModalityEmbedding
from avcl.nn.transformer import Entrance
from avcl.types import Stream

Order = Literal["self_then_co", "co_then_self", "parallel_sum", "joint"]
ORDERS: tuple[Order, ...] = ("self_then_co", "co_then_self", "parallel_sum", "joint")


class SelfCoBlock(nn.Module):
    """Two Streams [B, Tx, dim], [B, Ty, dim] look at themselves (intra) and at each other (inter); both come back.

    - ``self_then_co``: x = LN(x + MHA(x → x)), the same for y, then x = LN(x + MHA(x → y)) with both sides as they
      stood before (``co_then_self``: the other way round).
    - ``parallel_sum``: x = LN(x + MHA(x → x) + MHA(x → y)).
    - ``joint``: both with a modality embedding, laid end to end, one self-attention over Tx + Ty steps, so that one
      softmax weighs both; its blocks are intra (xx, yy) and inter (xy, yx).

    A feed-forward step with residual and LN closes each order. ``intra=False`` or ``inter=False`` turns the one or the
    other off in any order (Cheng et al. 2020 as the survey tells it). Rates and lengths are free: both sides are
    coded in seconds unless ``positions="none"`` (the right choice behind the first of several blocks).

    Map (``return_attention``): {"xx", "xy", "yx", "yy"} to [B, h, T, T] (query first), those that exist; rows of
    recorded queries sum to 1, in ``joint`` over xx and xy together, and to 0 where there is nothing to look at.
    Pitfall: where y is missing, x keeps itself in every order; only in ``joint`` does y's length weigh on x.
    """

    def __init__(
        self,
        dim: int,
        *,
        order: Order = "self_then_co",
        heads: int = 4,
        hidden: int | None = None,
        positions: Literal["sinusoidal", "learned", "none"] = "sinusoidal",
        longest: float = 100.0,
        intra: bool = True,
        inter: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        if order not in ORDERS:
            raise ConfigError(f'unknown order "{order}": one of {", ".join(ORDERS)}.')
        if positions not in ("sinusoidal", "learned", "none"):
            raise ConfigError(f'positions are "sinusoidal", "learned" or "none", not "{positions}".')
        if not intra and not inter:
            raise ConfigError("with neither intra nor inter attention nothing is left of the block.")
        self.dim, self.order, self.intra, self.inter = dim, order, intra, inter
        self.entrance = Entrance(dim, features=None, positions=positions, longest=longest)
        on = [kind for kind, wanted in (("intra", intra), ("inter", inter)) if wanted]
        self.steps: list[list[str]] = {  # each step is one residual and LN, of the attentions it names
            "self_then_co": [[kind] for kind in on],
            "co_then_self": [[kind] for kind in reversed(on)],
            "parallel_sum": [on],
            "joint": [["joint"]],
        }[order]
        self.which = ModalityEmbedding(dim) if order == "joint" else None
        self.attention = nn.ModuleDict(
            {
                side + kind: MultiHeadAttention(dim, heads=heads, dropout=dropout)
                for step in self.steps
                for kind in step
                for side in ([""] if kind == "joint" else ["x-", "y-"])
            }
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2 * len(self.steps)))
        self.feeds = nn.ModuleList(FeedForward(dim, hidden=hidden, dropout=dropout) for _ in "xy")
        self.last = nn.ModuleList(nn.LayerNorm(dim) for _ in "xy")
        self.drop = nn.Dropout(dropout)

    @overload
    def forward(self, x: Stream, y: Stream, *, return_attention: Literal[False] = ...) -> tuple[Stream, Stream]: ...
    @overload
    def forward(
        self, x: Stream, y: Stream, *, return_attention: Literal[True]
    ) -> tuple[tuple[Stream, Stream], dict[str, Tensor]]: ...
    def forward(
        self, x: Stream, y: Stream, *, return_attention: bool = False
    ) -> tuple[Stream, Stream] | tuple[tuple[Stream, Stream], dict[str, Tensor]]:
        if x.data.shape[0] != y.data.shape[0]:
            raise BatchError(
                f"both streams come from one batch, not from {x.data.shape[0]} and {y.data.shape[0]} clips."
            )
        sides, maps = [self.entrance(x), self.entrance(y)], {}
        if self.which is not None:
            sides = [self.which(side, at) for at, side in enumerate(sides)]
        for number, step in enumerate(self.steps):
            found = [self._attend(kind, sides, return_attention) for kind in step]
            for _, shown in found:
                maps.update(shown)
            for at in (0, 1):
                seen = torch.stack([outs[at] for outs, _ in found]).sum(0)
                data = self.norms[2 * number + at](sides[at].data + self.drop(seen))
                sides[at] = sides[at]._replace(data=data)
        for at in (0, 1):
            data = self.last[at](sides[at].data + self.drop(self.feeds[at](sides[at].data)))
            sides[at] = sides[at]._replace(data=data.masked_fill(~sides[at].mask[:, :, None], 0))
        both = sides[0], sides[1]
        return (both, maps) if return_attention else both

    def _attend(
        self, kind: str, sides: list[Stream], return_attention: bool
    ) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
        """What x and y see by one kind of attention, and its maps."""
        (x, x_mask, _), (y, y_mask, _) = sides
        if kind == "joint":
            return self._joint(torch.cat([x, y], 1), torch.cat([x_mask, y_mask], 1), x.shape[1], return_attention)
        (to_x, x_keys), (to_y, y_keys) = ((x, x_mask), (y, y_mask)) if kind == "intra" else ((y, y_mask), (x, x_mask))
        x_saw, x_map = self.attention[f"x-{kind}"](x, to_x, mask=x_keys, return_attention=return_attention)
        y_saw, y_map = self.attention[f"y-{kind}"](y, to_y, mask=y_keys, return_attention=return_attention)
        names = ("xx", "yy") if kind == "intra" else ("xy", "yx")
        shown = {
            n: blank_rows(m, q)
            for n, m, q in zip(names, (x_map, y_map), (x_mask, y_mask), strict=True)
            if m is not None
        }
        return (x_saw, y_saw), shown

    def _joint(
        self, data: Tensor, mask: Tensor, split: int, return_attention: bool
    ) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
        pairs = None
        if not (self.intra and self.inter):
            rest = data.shape[1] - split
            pairs = block_pairs(split, rest, intra=self.intra, inter=self.inter, device=data.device)
        saw, found = self.attention["joint"](data, data, mask=mask, pairs=pairs, return_attention=return_attention)
        shown = {}
        if found is not None:
            (xx, xy), (yx, yy) = (
                row.tensor_split([split], 3) for row in blank_rows(found, mask).tensor_split([split], 2)
            )
            shown = {**({"xx": xx, "yy": yy} if self.intra else {}), **({"xy": xy, "yx": yx} if self.inter else {})}
        return (saw[:, :split], saw[:, split:]), shown
