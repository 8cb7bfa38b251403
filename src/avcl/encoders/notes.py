"""A tune as a sequence of events and back: note on, note off, velocity, time shift (Performance RNN, Foley Music)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from avcl.errors import BatchError, ConfigError
from avcl.types import Stream

ONSET, DURATION, PITCH, VELOCITY = range(4)  # the columns of notes: seconds, seconds, MIDI number, in (0, 1]


class _Event(NamedTuple):
    second: float
    order: int  # offs before ons at the same moment, so that a repeated note ends before it begins
    pitch: int
    velocity: float


@dataclass(frozen=True)
class NoteCode:
    """The vocabulary: note on of each pitch from ``lowest`` to ``highest``, note off of each, ``velocities`` levels,
    a time shift of each of ``shifts`` (seconds, ascending), and a stop.

    A note is velocity, on, and later its off; in between shifts, the largest first, whose sum keeps within half of the
    smallest of the true moment (errors do not add up). ``paper()``: 88 pitches, 32 levels, shifts of 1.15^k / 65 s.
    """

    lowest: int = 57
    highest: int = 81
    velocities: int = 8
    shifts: tuple[float, ...] = tuple(round(0.04 * k, 4) for k in range(1, 33))

    def __post_init__(self) -> None:
        if not 0 <= self.lowest <= self.highest <= 127 or self.velocities < 1:
            raise ConfigError(f"no notes from {self.lowest} to {self.highest} in {self.velocities} velocities.")
        if not self.shifts or self.shifts[0] <= 0 or list(self.shifts) != sorted(set(self.shifts)):
            raise ConfigError(f"shifts rise from above 0, not {self.shifts}.")

    @classmethod
    def paper(cls) -> NoteCode:
        return cls(21, 108, 32, tuple(1.15**k / 65 for k in range(32)))

    # ------------------------------------------------------------------------------------------------------- the table
    @property
    def pitches(self) -> int:
        return self.highest - self.lowest + 1

    @property
    def first_velocity(self) -> int:
        return 2 * self.pitches

    @property
    def first_shift(self) -> int:
        return self.first_velocity + self.velocities

    @property
    def stop(self) -> int:
        return self.first_shift + len(self.shifts)

    @property
    def size(self) -> int:
        return self.stop + 1

    @property
    def seconds(self) -> Tensor:
        """By how much each event moves the clock: float64 [size], 0 but for the shifts."""
        table = torch.zeros(self.size, dtype=torch.float64)
        table[self.first_shift : self.stop] = torch.tensor(self.shifts, dtype=torch.float64)
        return table

    # --------------------------------------------------------------------------------------------------------- the way
    def encode(self, notes: Stream, *, length: int) -> Stream:
        """Notes [B, K, 4] to events [B, length] with the stop at the end; a longer tune is cut, its last event the
        stop. BatchError for a pitch outside of the vocabulary.
        """
        if notes.data.ndim != 3 or notes.data.shape[2] != 4 or length < 1:
            raise BatchError(f"notes are [B, K, 4], not {list(notes.data.shape)}.")
        tokens = torch.zeros(len(notes.data), length, dtype=torch.int64)
        mask = torch.zeros(len(notes.data), length, dtype=torch.bool)
        for row, (data, there) in enumerate(zip(notes.data.tolist(), notes.mask.tolist(), strict=True)):
            line = [*self._line([n for n, is_there in zip(data, there, strict=True) if is_there]), self.stop]
            line = line if len(line) <= length else [*line[: length - 1], self.stop]
            tokens[row, : len(line)], mask[row, : len(line)] = torch.tensor(line), True
        return Stream(tokens.to(notes.data.device), mask.to(notes.data.device), 1.0)

    def _line(self, notes: list[list[float]]) -> list[int]:
        events = []
        for onset, duration, pitch, velocity in notes:
            number = round(pitch)
            if not self.lowest <= number <= self.highest:
                raise BatchError(f"a note of pitch {number} is not in {self.lowest} to {self.highest}.")
            begin, end = round(onset, 4), round(onset + max(duration, 0), 4)  # float32 does not decide the order
            events += [_Event(begin, 1, number, velocity), _Event(end, 0, number, 0.0)]
        line: list[int] = []
        written = 0.0
        for event in sorted(events):
            shifts = self._shifts(event.second - written)
            written += sum(self.shifts[k] for k in shifts)
            line += [self.first_shift + k for k in shifts]
            if event.order == 0:
                line.append(self.pitches + event.pitch - self.lowest)
            else:
                level = min(self.velocities - 1, max(0, int(event.velocity * self.velocities)))
                line += [self.first_velocity + level, event.pitch - self.lowest]
        return line

    def _shifts(self, gap: float) -> list[int]:
        """The numbers of the shifts that sum to ``gap`` seconds within half of the smallest, the largest first."""
        found = []
        slack = self.shifts[0] / 2
        while gap > slack:
            k = max(i for i, shift in enumerate(self.shifts) if i == 0 or shift <= gap + slack)
            found.append(k)
            gap -= self.shifts[k]
        return found

    def decode(self, tokens: Stream, *, shortest: float = 0.05, open_for: float = 1.0) -> Stream:
        """Events [B, L] to notes [B, K, 4] by onset. A note ends with its off, or when it begins again; one that is
        left open lasts ``open_for`` seconds. Whatever events say, the result is a list of notes.
        """
        rows = [
            self._notes([t for t, is_there in zip(line, there, strict=True) if is_there], shortest, open_for)
            for line, there in zip(tokens.data.tolist(), tokens.mask.tolist(), strict=True)
        ]
        most = max(1, *(len(row) for row in rows)) if rows else 1
        data, mask = torch.zeros(len(rows), most, 4), torch.zeros(len(rows), most, dtype=torch.bool)
        for i, row in enumerate(rows):
            if row:
                data[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), True
        return Stream(data.to(tokens.data.device), mask.to(tokens.data.device), 1.0)

    def _notes(self, line: list[int], shortest: float, open_for: float) -> list[list[float]]:
        now, velocity = 0.0, 0.5
        sounding: dict[int, list[float]] = {}
        notes: list[list[float]] = []
        for token in line:
            if token == self.stop:
                break
            if token >= self.first_shift:
                now += self.shifts[token - self.first_shift]
            elif token >= self.first_velocity:
                velocity = (token - self.first_velocity + 0.5) / self.velocities
            else:
                pitch = self.lowest + token % self.pitches
                if pitch in sounding:
                    note = sounding.pop(pitch)
                    note[DURATION] = max(shortest, now - note[ONSET])
                if token < self.pitches:
                    sounding[pitch] = [now, open_for, float(pitch), velocity]
                    notes.append(sounding[pitch])
        return sorted(notes)
