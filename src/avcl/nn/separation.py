"""Mix-and-separate: what the separators that are guided by pictures share (Zhao et al. 2018 and all after it).

Clips of a batch are mixed at equal level; a mask on the mixture's spectrogram is to bring back each of them, the only
help being its own picture. Nobody has to label anything: the sounds before mixing are the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from avcl.dsp.phase import istft
from avcl.dsp.spectrum import stft
from avcl.dsp.warp import log_frequency
from avcl.errors import BatchError, ConfigError
from avcl.nn.pooling import masked_mean
from avcl.objectives.reconstruction import mask_loss
from avcl.types import Batch, Stream

Rule = Literal["dominant", "half"]
Decision = Literal["soft", "hard", "share"]
Pairing = Literal["any", "other", "same"]
FLOOR = 1e-4  # of the loudest bin: what is 80 dB below it is silence to the network
QUIET = 1e-4  # root mean square below which a sound is not raised to the common level


class Mixed(NamedTuple):
    """M mixtures of S sources: ``rows`` [M, S] of the batch, the log spectrogram that a network reads (spectrum
    [M, N, R, 1]), its magnitude [M, N, R] and the ideal masks [M, N, R, S].
    """

    rows: Tensor
    seen: Stream
    magnitude: Tensor
    target: Tensor


@dataclass(frozen=True)
class MixAndSeparate:
    """Spectrogram, mixing, target, loss and the way back to sound; it has no parameters.

    ``fft``, ``hop``: of the short-time Fourier transform, in samples · ``bands`` of the logarithmic frequency axis ·
    ``rule`` of the target mask: "dominant" ``M_s = 1[X_s ≥ X_n for all n]`` (both papers), "half"
    ``M_s = 1[X_s > ½ X_mix]`` (the released code of Zhao et al. 2018; another mask where there are three sources) ·
    ``weighted``: bins of loud mixtures count more, by ln(1 + X_mix) (the same code) · ``decision``, how logits become
    masks: "soft" σ(z), "hard" 1[z > 0] (the papers), "share" ``σ(z_s) / max(1, Σ_n σ(z_n))``: no bin is given twice.
    """

    fft: int = 512
    hop: int = 256
    bands: int = 64
    rule: Rule = "dominant"
    weighted: bool = True
    decision: Decision = "soft"

    def __post_init__(self) -> None:
        """ConfigError for settings that no spectrogram can have."""
        if not 1 <= self.hop <= self.fft // 2 or self.bands < 2:
            raise ConfigError(f"fft = {self.fft}, hop = {self.hop}, bands = {self.bands} make no spectrogram.")
        for name, known in (("rule", ("dominant", "half")), ("decision", ("soft", "hard", "share"))):
            if getattr(self, name) not in known:
                raise ConfigError(f'{name} = "{getattr(self, name)}" is none of {", ".join(known)}.')

    # ----------------------------------------------------------------------------------------------------- spectrogram
    def bands_of(self, bins: Tensor) -> Tensor:
        """[..., F] linear to [..., R] logarithmic frequencies."""
        return bins @ log_frequency(bins.shape[-1], self.bands).down.to(bins)

    def seen(self, magnitude: Tensor, mask: Tensor, rate: float) -> Stream:
        """What a network reads of magnitudes [M, N, R]: ``ln max(X, 1e-4 · largest X)``; gain only adds a constant."""
        keep = mask[:, :, None]
        top = magnitude.masked_fill(~keep, 0).amax((1, 2), keepdim=True).clamp(min=1e-8)
        level = torch.maximum(magnitude, FLOOR * top).log()
        return Stream(level.masked_fill(~keep, 0)[..., None], mask, rate)

    # ------------------------------------------------------------------------------------------------------------ learn
    @torch.no_grad()
    def mixed(self, wave: Tensor, recorded: Tensor, rate: float, rows: Tensor) -> Mixed:
        """Mixtures of the waves [B, L] (where ``recorded`` [B, L]) named by ``rows`` [M, S], at equal level."""
        spectrum = stft(leveled(wave, recorded), n_fft=self.fft, hop=self.hop)  # [B, N, F]
        mask = recorded[:, :: self.hop]
        parts = self.bands_of(spectrum.abs())[rows]  # [M, S, N, R]
        total = self.bands_of(spectrum[rows].sum(1).abs())
        if self.rule == "dominant":
            target = parts >= parts.amax(1, keepdim=True)
        else:
            target = parts > 0.5 * total[:, None]
        kept = mask[rows].any(1)
        seen = self.seen(total, kept, rate / self.hop)
        return Mixed(rows, seen, total, target.to(wave.dtype).permute(0, 2, 3, 1))

    def loss(self, logits: Tensor, mixed: Mixed) -> Tensor:
        """Binary cross-entropy of logits [M, N, R, S] against the target, over the recorded bins."""
        weight = mixed.seen.mask[:, :, None, None]
        louder = mixed.magnitude[..., None] if self.weighted else None
        return mask_loss(logits, mixed.target, mixture=louder, weight=weight)

    # --------------------------------------------------------------------------------------------------------- separate
    @torch.no_grad()
    def separated(self, mixture: Stream, logits: Callable[[Stream], Tensor]) -> Tensor:
        """[B, S, T, C]: masks ``logits(spectrogram)`` [B, N, R, S] on the mixture [B, T, C], in the mixture's phase.

        All channels get one mask, that of their root mean square, so a place between two ears stays where it is.
        """
        data = mixture.data.float() * mixture.mask[:, :, None]
        batch, steps, channels = data.shape
        # A window of silence behind the end, so that the last samples lie under whole windows.
        flat = pad(data.transpose(1, 2).reshape(batch * channels, steps), (0, self.fft))
        spectrum = stft(flat, n_fft=self.fft, hop=self.hop).unflatten(0, (batch, channels))  # [B, C, N, F]
        kept = pad(mixture.mask, (0, self.fft))[:, :: self.hop]
        magnitude = spectrum.abs().square().mean(1).sqrt()
        seen = self.seen(self.bands_of(magnitude), kept, mixture.rate / self.hop)
        masks = self.decided(logits(seen).float())  # [B, N, R, S]
        bins = masks.transpose(2, 3) @ log_frequency(spectrum.shape[3], self.bands).up.to(masks)  # [B, N, S, F]
        parts = spectrum[:, None] * bins.transpose(1, 2)[:, :, None]  # [B, S, C, N, F]
        waves = istft(parts.flatten(0, 2), n_fft=self.fft, hop=self.hop, length=flat.shape[1])
        found = waves[:, :steps].reshape(batch, -1, channels, steps).transpose(2, 3)
        return found * mixture.mask[:, None, :, None]

    def decided(self, logits: Tensor) -> Tensor:
        """Masks in [0, 1] from logits [..., S], by ``decision``."""
        if self.decision == "hard":
            return (logits > 0).to(logits.dtype)
        masks = torch.sigmoid(logits)
        return masks / masks.sum(-1, keepdim=True).clamp(min=1) if self.decision == "share" else masks


# ------------------------------------------------------------------------------------------------------------- mixtures
def leveled(wave: Tensor, recorded: Tensor, *, level: float = 0.1) -> Tensor:
    """Waves [B, L] of one root mean square over what was recorded; what is all but silent is not raised."""
    kept = wave * recorded
    rms = masked_mean(kept.square(), recorded).sqrt()[:, None]
    return kept * (level / rms.clamp(min=QUIET))


def partners(
    label: Tensor, generator: torch.Generator, *, sources: int = 2, pairing: Pairing = "any", rounds: int = 1
) -> Tensor:
    """Who is mixed with whom: rows [M, sources] of a batch with classes ``label`` [B] (-1: none).

    In each of ``rounds`` ⌈B / sources⌉ mixtures that together hold every clip, as equally often as B allows. "any": at
    random · "other": clips of different classes, as far as no class fills more than its share of the batch (classes
    meet in a new order in each round) · "same": clips of one class, as far as there are such. BatchError for fewer
    clips than sources, or no labels to pair by.
    """
    count = len(label)
    if count < sources:
        raise BatchError(f"{count} clips cannot make a mixture of {sources}.", hint="Use a larger batch_size.")
    if pairing != "any" and bool((label < 0).any()):
        raise BatchError(f'pairing = "{pairing}" needs a label for every clip.', hint='Use "any".')
    drawn = [_round(label.to(generator.device), generator, sources, pairing) for _ in range(rounds)]
    return torch.cat(drawn).to(label.device)


def _round(label: Tensor, generator: torch.Generator, sources: int, pairing: Pairing) -> Tensor:
    count, device = len(label), generator.device
    order = torch.rand(count, generator=generator, device=device)
    if pairing != "any":
        order = order + torch.randperm(int(label.max()) + 1, generator=generator, device=device)[label]
    mixtures, each = -(-count // sources), torch.arange(sources, device=device)
    at = torch.arange(mixtures, device=device)[:, None]
    if pairing == "same":  # neighbors in the order of the classes; the last mixture takes what it lacks from before
        at = (at * sources).clamp(max=count - sources) + each
    else:  # as far from each other as can be
        at = at + each * (count - mixtures) // (sources - 1)
    return order.argsort()[at]


def mono(stream: Stream) -> Tensor:
    """The mean of the channels of audio [B, T, C], float32 [B, T], zeros where nothing was recorded."""
    return stream.data.float().mean(2) * stream.mask


def picture_of(guide: Batch) -> Stream:
    """The picture of a guide, [0, 1]."""
    video = guide.video
    return video._replace(data=video.data.float() / 255) if video.data.dtype == torch.uint8 else video
