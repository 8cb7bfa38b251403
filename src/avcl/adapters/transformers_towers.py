"""Models that ``transformers`` saved in a folder, as towers on the clock of the clip.

Every clip goes through the network alone, cut into the windows that the network was trained with and filled up as in
its training; so neither padding nor other clips can reach it, whatever the network makes of padding.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.functional import interpolate, pad
from transformers import (
    ASTFeatureExtractor,
    ASTModel,
    ClapAudioModelWithProjection,
    ClapFeatureExtractor,
    PeAudioModel,
    VideoMAEModel,
)

from avcl.dsp import resample
from avcl.encoders.pretrained import Tower
from avcl.errors import BatchError, ConfigError, StoreError, did_you_mean
from avcl.seeds import kept_random_state
from avcl.types import Stream

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load(folder: Path, model_type: str, *, license: str, trainable: bool) -> Tower:
    """The tower of a folder whose config.json is of ``model_type``."""
    known: dict[str, Callable[..., Tower]] = {
        "audio-spectrogram-transformer": ASTTower,
        "clap": ClapTower,
        "pe_audio": PEAudioTower,
        "videomae": VideoMAETower,
    }
    if model_type not in known:
        hint = did_you_mean(model_type, set(known))
        raise ConfigError(f'there is no tower for models of type "{model_type}".', file=folder, hint=hint)
    return known[model_type](folder, license=license, trainable=trainable)


def _read(cls: type[Any], folder: Path) -> Any:
    """The model of that class in the folder: local, safetensors, no code of the folder's."""
    with _quiet(), kept_random_state():
        try:
            return cls.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            what = f"is no saved {cls.__name__} with safetensors ({type(error).__name__})."
            raise StoreError(what, file=folder) from error


def _extractor(cls: type[Any], folder: Path) -> Any:
    with _quiet():
        try:
            return cls.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise StoreError("has no readable preprocessor_config.json.", file=folder) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars and notices about weights that are not needed."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


class _Windowed(Tower):
    """Clips one by one in windows: what the towers below share.

    ``hop``: input steps of one output step · ``span``: input steps of a window, a multiple of ``hop``.
    """

    hop: int
    span: int

    @abstractmethod
    def window(self, data: Tensor) -> Tensor:
        """[L, ...] of at most ``span`` input steps to features [ceil(L / hop), dim], or more of them."""

    def forward(self, stream: Stream) -> Stream:
        ready = self._ready(stream)
        seconds = stream.mask.shape[1] / stream.rate
        rate = ready.rate / self.hop
        out_mask = _on(stream, rate, math.ceil(seconds * rate - 1e-9))
        weight = next(self.network.parameters())
        rows = []
        for data, mask in zip(ready.data, ready.mask, strict=True):
            length = int(torch.nonzero(mask).max()) + 1 if bool(mask.any()) else 0
            parts = [self._steps(data[at : min(at + self.span, length)]) for at in range(0, length, self.span)]
            parts.append(weight.new_zeros(out_mask.shape[1], self.dim))
            rows.append(torch.cat(parts)[: out_mask.shape[1]])
        return Stream(torch.stack(rows) * out_mask[:, :, None], out_mask, rate)

    def _steps(self, data: Tensor) -> Tensor:
        return self.window(data)[: math.ceil(len(data) / self.hop)]

    def _ready(self, stream: Stream) -> Stream:
        raise NotImplementedError


def _on(stream: Stream, rate: float, steps: int) -> Tensor:
    """The mask [B, steps] on another clock: a step is recorded where anything in its seconds is."""
    total = pad(stream.mask.long().cumsum(1), (1, 0))  # [B, T + 1]
    edge = torch.arange(steps + 1, dtype=torch.float64) * stream.rate / rate
    low = (edge[:-1] + 1e-6).floor().long().clamp(max=stream.mask.shape[1])
    high = (edge[1:] - 1e-6).ceil().long().clamp(max=stream.mask.shape[1])
    return total[:, high] > total[:, low]


class _Sound(_Windowed):
    kind = "audio"
    sample_rate: int

    def _ready(self, stream: Stream) -> Stream:
        """The mean of the channels at the model's sample rate, zeros where nothing was recorded."""
        if stream.data.ndim != 3 or not stream.data.is_floating_point():
            raise BatchError(f"audio [B, T, C] is meant, not {stream.data.dtype} {tuple(stream.data.shape)}.")
        wave = stream.data.float().masked_fill(~stream.mask[:, :, None], 0.0).mean(2)
        if stream.rate == self.sample_rate:
            return Stream(wave, stream.mask, stream.rate)
        wave = resample(wave.detach(), stream.rate, self.sample_rate)
        return Stream(wave, _on(stream, self.sample_rate, wave.shape[1]), float(self.sample_rate))


class ASTTower(_Sound):
    """Audio Spectrogram Transformer: the mean over frequency of the patches of each 10 ms · ``time_stride``."""

    def __init__(self, folder: Path, *, license: str, trainable: bool):
        super().__init__(_read(ASTModel, folder), license=license, trainable=trainable)
        config, self.extractor = self.network.config, _extractor(ASTFeatureExtractor, folder)
        self.dim, self.sample_rate = config.hidden_size, self.extractor.sampling_rate
        self.bands = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        self.steps = (config.max_length - config.patch_size) // config.time_stride + 1
        self.hop = self.sample_rate // 100 * config.time_stride
        self.span = self.steps * self.hop

    def window(self, data: Tensor) -> Tensor:
        wave = pad(data, (0, max(0, self.sample_rate // 25 - len(data))))  # one frame of the spectrum at least
        made = self.extractor(wave.detach().cpu().numpy(), sampling_rate=self.sample_rate, return_tensors="pt")
        weight = next(self.network.parameters())
        tokens = self.network(made["input_values"].to(weight)).last_hidden_state[0, 2:]  # after two class tokens
        return tokens.unflatten(0, (self.bands, self.steps)).mean(0)


class ClapTower(_Sound):
    """The audio side of CLAP: one vector of the common space for each window (10 s)."""

    def __init__(self, folder: Path, *, license: str, trainable: bool):
        super().__init__(_read(ClapAudioModelWithProjection, folder), license=license, trainable=trainable)
        self.extractor = _extractor(ClapFeatureExtractor, folder)
        self.dim, self.sample_rate = self.network.config.projection_dim, self.extractor.sampling_rate
        self.hop = self.span = self.extractor.nb_max_samples

    def window(self, data: Tensor) -> Tensor:
        with kept_random_state():  # the extractor draws which clip of a batch to take for a long one
            made = self.extractor(data.detach().cpu().numpy(), sampling_rate=self.sample_rate, return_tensors="pt")
        weight = next(self.network.parameters())
        return self.network(made["input_features"].to(weight), is_longer=made["is_longer"]).audio_embeds


class PEAudioTower(_Sound):
    """The audio side of a Perception Encoder: one vector for each 1,920 samples at 48 kHz."""

    def __init__(self, folder: Path, *, license: str, trainable: bool):
        found = _read(PeAudioModel, folder)
        super().__init__(found.audio_encoder, license=license, trainable=trainable)
        extractor = _json(folder / "preprocessor_config.json")
        config = found.config.audio_config
        self.dim, self.sample_rate = config.hidden_size, int(extractor.get("sampling_rate", 48_000))
        self.hop = math.prod(config.dac_config.downsampling_ratios)
        self.span = 30 * self.sample_rate // self.hop * self.hop

    def window(self, data: Tensor) -> Tensor:
        wave = pad(data, (0, -len(data) % self.hop))
        return self.network(wave[None, None].to(next(self.network.parameters()))).last_hidden_state[0]


class VideoMAETower(_Windowed):
    """VideoMAE: the mean over the cells of each tubelet of frames; a short window goes on with its last frame."""

    kind = "video"
    mean: Tensor
    deviation: Tensor

    def __init__(self, folder: Path, *, license: str, trainable: bool):
        super().__init__(_read(VideoMAEModel, folder), license=license, trainable=trainable)
        config, seen = self.network.config, _json(folder / "preprocessor_config.json")
        self.dim, self.size = config.hidden_size, (config.image_size, config.image_size)
        self.hop, self.span = config.tubelet_size, config.num_frames
        for name, value in zip(("mean", "deviation"), IMAGENET, strict=True):
            given = seen.get("image_mean" if name == "mean" else "image_std", value)
            self.register_buffer(name, torch.tensor(given)[:, None, None], persistent=False)

    def _ready(self, stream: Stream) -> Stream:
        if stream.data.ndim != 5 or stream.data.shape[2] != 3 or not stream.data.is_floating_point():
            raise BatchError(f"video [B, T, 3, H, W] in [0, 1] is meant, not {tuple(stream.data.shape)}.")
        steps = torch.arange(stream.mask.shape[1])
        last = torch.where(stream.mask, steps, -1).cummax(1).values  # a gap shows the frame before it
        first = stream.mask.long().argmax(1, keepdim=True)
        held = torch.where(last < 0, first, last)
        return stream._replace(data=stream.data[torch.arange(len(held))[:, None], held])

    def window(self, data: Tensor) -> Tensor:
        frames = torch.cat([data, data[-1:].expand(self.span - len(data), -1, -1, -1)])
        if frames.shape[2:] != self.size:
            frames = interpolate(frames.float(), self.size, mode="bilinear", antialias=True)
        weight = next(self.network.parameters())
        ready = ((frames - self.mean) / self.deviation).to(weight)
        tokens = self.network(ready[None]).last_hidden_state[0]
        return tokens.unflatten(0, (self.span // self.hop, -1)).mean(1)


def _json(path: Path) -> dict[str, Any]:
    """The settings in a file; nothing where there is none."""
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}
