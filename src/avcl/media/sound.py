"""The sound of a file, each sample where its timestamp puts it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from avcl.dsp.rates import ratio, reach, resample
from avcl.errors import NoAudioStream, NotMedia, Silent
from avcl.media import losses
from avcl.media.clock import native_window, placement, sample_at, slots_before, snap
from avcl.media.files import MediaFile, Timed
from avcl.media.frames import mixing_matrix, samples_of
from avcl.types import Stream

SILENCE = 2.0**-15  # peak below one step of 16 bits: digital silence
MAX_RATE = 768_000  # samples a second: a header that claims more is damaged
EVEN_FRAMES = frozenset({"aac", "mp3", "mp3float", "mp2", "mp2float", "ac3", "eac3", "opus", "libopus", "flac"})
# Blocks of two sizes: the stamp of a frame between two page ends is an estimate that is right again a block later.
ESTIMATED = frozenset({"vorbis", "libvorbis"})


def is_silent(stream: Stream) -> bool:
    """Whether no recorded sample reaches one step of 16 bits (2^-15)."""
    return stream.data.numel() == 0 or float(stream.data.abs().max()) < SILENCE


def sound_of(
    file: MediaFile,
    span: tuple[float | None, float | None],
    rate: float | None,
    channels: int | None,
    strict: bool,
) -> Stream:
    if not file.has("audio"):
        raise NoAudioStream("has no audio stream.", file=file.path, hint="Only its pictures can be used.")
    if rate is not None:
        ratio(rate, rate)
    start, end = span[0] or 0.0, span[1]
    origin = file.origin
    anchor = anchor_of(file) if start > 0 else None
    sound: SampleLine | None = None
    for timed in file.frames("audio", origin + start if start > 0 else None):
        if sound is None and timed.frame is not None:
            sound = SampleLine(file, timed.frame, start, end, rate, channels, anchor)
        if sound is not None and sound.add(timed):
            break
    else:
        if sound is not None:
            sound.finish()
    if sound is None:
        raise losses.nothing(file, "audio", start, None)
    if sound.position <= sound.first:
        raise losses.nothing(file, "audio", start, sound.reached)
    if sound.position < (sound.stop if sound.stop is not None else 1 << 62):
        losses.check_end(file, "audio", sound.position / sound.native, end, strict)
    if sound.breaks:
        text = f"{sound.lost / sound.native:.3f} s of sound are missing or broken in {sound.breaks} place(s)."
        losses.lost(file, text, sound.lost_at, strict)
    stream = sound.stream()
    if is_silent(stream) and (strict or span == (None, None)):
        hint = "Check the recording, or leave it out."
        if strict:
            raise Silent("its sound is digital silence.", file=file.path, hint=hint)
        losses.log.warning("%s", Silent("its sound is digital silence.", file=file.path, hint=hint))
    return stream


def anchor_of(file: MediaFile) -> tuple[float, int, int] | None:
    """(time of the first sound frame, its samples, samples of the others) where a coarse tick makes it necessary."""
    audio = file.stream("audio")
    name = audio.codec_context.name
    if name not in EVEN_FRAMES or not audio.rate or file.tick("audio") * audio.rate <= 2:
        return None
    frames = [timed for timed, _ in zip(file.frames("audio"), range(3), strict=False) if timed.frame is not None]
    if len(frames) < 3 or frames[1].frame.samples != frames[2].frame.samples:
        return None
    return frames[0].time, frames[0].frame.samples, frames[1].frame.samples


class SampleLine:
    """Puts sound frames at their sample.

    ``first`` and ``stop`` are sample numbers on the clock at the file's rate (``native``); ``position`` is the next.
    """

    def __init__(
        self,
        file: MediaFile,
        frame: Any,
        start: float,
        end: float | None,
        rate: float | None,
        channels: int | None,
        anchor: tuple[float, int, int] | None,
    ):
        self.file = file
        self.native = frame.sample_rate
        if not 0 < self.native <= MAX_RATE:
            raise NotMedia(f"its sound claims {self.native} samples a second.", file=file.path, hint="Export it again.")
        self.layout = tuple(channel.name for channel in frame.layout.channels) or ("?",) * frame.layout.nb_channels
        self.matrix = mixing_matrix(self.layout, channels, file.path)
        self.rate = rate or float(self.native)
        self.factor = ratio(self.native, self.rate)
        # Outputs of the resampler that are wanted, and the samples of the file that they need.
        self.out_first = sample_at(start, self.rate)
        self.out_stop = None if end is None else self.out_first + slots_before(end, start=start, rate=self.rate)
        up, down = self.factor.numerator, self.factor.denominator
        margin = 0 if self.factor == 1 else reach(up, down)
        stop = self.out_first if self.out_stop is None else self.out_stop
        self.first, high, self.drop = native_window(self.out_first, stop, up=up, down=down, margin=margin)
        if start <= 0:  # nothing lies before what is asked: no margin there
            self.first = self.out_first * down // up // down * down
            self.drop = self.out_first - self.first // down * up
        self.stop = None if self.out_stop is None else high
        self.tick = file.tick("audio") * self.native  # in samples
        self.slack = round(max(0.003 * self.native, 1.5 * self.tick) if self.tick > 2 else 0.001 * self.native)
        if file.stream("audio").codec_context.name in ESTIMATED:
            self.slack = max(self.slack, round(0.1 * self.native))
        self.origin, self.limit = file.origin, losses.latest(file)
        self.anchor = None
        if anchor is not None:
            begin, head, step = anchor
            self.anchor = (sample_at(begin - file.origin, self.native) + head, step)
        self.position = self.first
        self.next: int | None = None  # where the next frame should stand; None before the first
        self.parts: list[np.ndarray] = []
        self.holes: list[tuple[int, int]] = []
        self.lost, self.breaks, self.lost_at = 0, 0, 0.0
        self.padding = 0  # samples of the last frame that the container says are filler of the encoder

    def add(self, timed: Timed) -> bool:
        """Takes the next frame; True when everything that was asked for is there."""
        if timed.frame is None:
            self.breaks += 1
            return False
        expected = timed.time if self.next is None else self.origin + self.next / self.native
        at = sample_at(losses.believed(timed.time, expected, self.limit) - self.origin, self.native)
        frame = timed.frame
        if frame.sample_rate != self.native or frame.layout.nb_channels != len(self.layout):
            return False  # another format in mid-stream: the gap that it leaves is counted
        wave = samples_of(frame, self.file.path)
        leading = self.next is None
        if self.next is None:
            self.next = snap(at, *self.anchor, round(0.0015 * self.native)) if self.anchor else at
            missing, surplus = 0, 0
        else:
            missing, surplus = placement(self.next, at, wave.shape[1], self.slack)
        begin = self.next + missing + surplus
        length = round((frame.duration or 0) * self.tick)
        excess = wave.shape[1] - length if length > 0 else 0
        self.padding = excess if excess > self.slack else 0
        wave = wave[:, surplus:]
        self.next = begin + wave.shape[1]
        cut = max(0, self.position - begin)
        begin, wave = begin + cut, wave[:, cut:]
        if self.stop is not None:
            wave = wave[:, : max(0, self.stop - begin)]
        if wave.shape[1]:
            losses.bounded(4.0 * len(wave) * (begin + wave.shape[1] - self.first), self.file, begin / self.native)
            if begin > self.position:
                self._hole(begin, leading)
            self.parts.append(wave)
            self.position = begin + wave.shape[1]
            if timed.damaged and not leading and not missing:
                self.breaks += 1  # something broke here and the decoder bridged it
        return self.stop is not None and self.next - self.padding >= self.stop

    @property
    def reached(self) -> float:
        """Seconds of the clock where the decoded sound ends, whether it was asked for or not."""
        return ((self.next or 0) - self.padding) / self.native

    def finish(self) -> None:
        """The file has ended: what the encoder added to fill its last frame is no sound."""
        surplus = self.position - (self.next or 0) + self.padding
        if self.padding and self.parts and 0 < surplus < self.parts[-1].shape[1]:
            self.parts[-1] = self.parts[-1][:, :-surplus]
            self.position -= surplus

    def _hole(self, until: int, leading: bool) -> None:
        until = until if self.stop is None else min(until, self.stop)
        count = until - self.position
        self.parts.append(np.zeros((len(self.layout), count), np.float32))
        self.holes.append((self.position - self.first, until - self.first))
        if not leading:
            self.lost_at = self.position / self.native if not self.breaks else self.lost_at
            self.breaks += 1
            self.lost += count

    def stream(self) -> Stream:
        wave = np.concatenate(self.parts, 1)
        mixed = wave if self.matrix is None else self.matrix @ wave
        data = torch.from_numpy(mixed).T.contiguous()[None]
        if self.factor != 1:
            data = resample(data, self.native, self.rate)
        mask = torch.ones(data.shape[:2], dtype=torch.bool)
        up, down = self.factor.numerator, self.factor.denominator
        for low, high in self.holes:
            # An output that stands inside of a hole was not recorded, whatever the filter smears into it.
            hole = slice(-(-low * up // down), -(-high * up // down))
            mask[:, hole] = False
            data[:, hole] = 0.0
        length = data.shape[1] if self.out_stop is None else self.out_stop - self.out_first + self.drop
        kept = slice(self.drop, length)
        return Stream(data[:, kept].contiguous(), mask[:, kept].contiguous(), float(self.rate))
