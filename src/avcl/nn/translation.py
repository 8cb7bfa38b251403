"""From the set of one modality's elements to the set of the other's."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor, nn

from avcl.errors import BatchError, ConfigError
from avcl.nn.attention import blank_rows
from avcl.nn.transformer import Entrance, TransformerLayer
from avcl.types import Stream


class SetTranslator(nn.Module):
    """Predicts element k of the other modality from all elements of this one: a set [B, K, dim] to [B, K, dim].

    Post-norm Transformer layers with ReLU, and a last ReLU (Morgado, Li, Vasconcelos 2020: the viewing directions of a
    360-degree clip, translated from video to sound and back by two translators). The elements are a set: nothing is
    known of their order, and the output is permuted as the input is, unless ``positions`` [B | 1, K, dim] (the code
    of a direction, say) are handed in; the stream's rate is passed on unread. ``context=False``: a second feed-forward
    step stands in place of each attention, the paper's control that sees every element for itself.

    Supervised by matching (``objectives.contrastive``), element k of the prediction against the elements of the other
    modality; nothing is decoded. Map: [B, depth, h, K, K]. Pitfall: the last ReLU leaves no negative entries; put a
    linear head behind it before comparing by cosine.
    """

    def __init__(
        self,
        dim: int,
        *,
        depth: int = 2,
        heads: int = 1,
        hidden: int | None = None,
        dropout: float = 0.0,
        context: bool = True,
    ):
        super().__init__()
        if depth < 1:
            raise ConfigError(f"a translator has at least one layer, not {depth}.")
        self.dim, self.context = dim, context
        self.entrance = Entrance(dim, features=None, positions="none", longest=1.0)
        self.layers = nn.ModuleList(
            TransformerLayer(
                dim, heads=heads, hidden=hidden, own=context, norm="post", dropout=dropout, activation="relu"
            )
            for _ in range(depth if context else 2 * depth)
        )

    @classmethod
    def paper(cls) -> SetTranslator:
        """The published size: 2 layers of width 512, one head, feed-forward 2,048, dropout 0.1."""
        return cls(512, depth=2, heads=1, hidden=2048, dropout=0.1)

    @overload
    def forward(
        self, stream: Stream, *, positions: Tensor | None = ..., return_attention: Literal[False] = ...
    ) -> Stream: ...
    @overload
    def forward(
        self, stream: Stream, *, positions: Tensor | None = ..., return_attention: Literal[True]
    ) -> tuple[Stream, Tensor]: ...
    def forward(
        self, stream: Stream, *, positions: Tensor | None = None, return_attention: bool = False
    ) -> Stream | tuple[Stream, Tensor]:
        if return_attention and not self.context:
            raise ConfigError("a translator without context has no attention map.")
        x, mask, _ = self.entrance(stream)
        if positions is not None:
            if positions.shape[1:] != x.shape[1:] or positions.shape[0] not in (1, x.shape[0]):
                raise BatchError(f"positions are {tuple(x.shape)} as the set is, not {tuple(positions.shape)}.")
            x = x + positions.to(x.dtype)
        maps = []
        for layer in self.layers:
            x, shown, _ = layer(x, mask=mask, return_attention=return_attention)
            maps.append(shown)
        out = stream._replace(data=torch.relu(x).masked_fill(~mask[:, :, None], 0))
        if not return_attention:
            return out
        return out, blank_rows(torch.stack(maps, 1), mask)
