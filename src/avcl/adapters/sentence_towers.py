"""Models that ``sentence-transformers`` saved in a folder."""

from __future__ import annotations

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from avcl.data.tokens import text_of
from avcl.encoders.pretrained import Tower
from avcl.errors import BatchError, StoreError
from avcl.seeds import kept_random_state
from avcl.types import Stream


class SentenceTower(Tower):
    """Tokens (UTF-8 bytes) [B, T] to one row [B, dim] for each text; zeros where there is none."""

    kind = "text"

    def __init__(self, folder: Path, *, license: str, trainable: bool = False):
        with kept_random_state():
            try:
                network = SentenceTransformer(
                    str(folder),
                    device="cpu",
                    local_files_only=True,
                    trust_remote_code=False,
                    model_kwargs={"use_safetensors": True, "dtype": torch.float32},
                )
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                what = f"is no saved sentence model with safetensors ({type(error).__name__})."
                raise StoreError(what, file=folder) from error
        super().__init__(network, license=license, trainable=trainable)
        self.dim = int(network.get_embedding_dimension() or 0)

    def forward(self, stream: Stream) -> Tensor:
        if stream.data.ndim != 2 or stream.data.is_floating_point():
            raise BatchError(f"tokens [B, T] are meant, not {stream.data.dtype} {tuple(stream.data.shape)}.")
        there = stream.mask.any(1)
        weight = next(self.network.parameters())
        if not bool(there.any()):
            return weight.new_zeros(len(there), self.dim)
        texts = [text for text, has in zip(text_of(stream), there.tolist(), strict=True) if has]
        given = self.network.tokenize(texts)
        moved = {key: value.to(weight.device) if isinstance(value, Tensor) else value for key, value in given.items()}
        rows = self.network(moved)["sentence_embedding"]
        return rows.new_zeros(len(there), self.dim).masked_scatter(there[:, None], rows)
