"""Clips side by side: ragged streams are padded with zeros and mask False."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from avcl.errors import BatchError
from avcl.types import Batch, Clip, Stream


def collate(clips: Sequence[Clip]) -> Batch:
    """B clips as one Batch, in their order.

    Every stream that one of the clips has is in the batch, as long as the longest: data [B, T, ...], zeros and mask
    False behind the end of a shorter clip, and over the whole row of a clip that lacks the stream. Labels that are None
    become -1. ``extras`` are stacked. BatchError, with the ids: no clips; a stream of different rates, types or shapes
    of a step; an extra that some clip lacks or whose shapes differ.
    """
    if not clips:
        raise BatchError("no clips to put side by side.")
    names = list(dict.fromkeys(name for clip in clips for name in clip.streams))
    extras = list(dict.fromkeys(name for clip in clips for name in clip.extras))
    return Batch(
        id=tuple(clip.id for clip in clips),
        streams={name: _stream(name, clips) for name in names},
        index=torch.tensor([clip.index for clip in clips]),
        view=torch.tensor([clip.view for clip in clips]),
        label=torch.tensor([-1 if clip.label is None else clip.label for clip in clips]),
        group=tuple(clip.group for clip in clips),
        extras={name: _extra(name, clips) for name in extras},
    )


def _stream(name: str, clips: Sequence[Clip]) -> Stream:
    given = [(clip, clip.streams[name]) for clip in clips if name in clip.streams]
    first, like = given[0]
    for clip, stream in given:
        for what, value, other in (
            ("rate", stream.rate, like.rate),
            ("type", stream.data.dtype, like.data.dtype),
            ("shape of a step", tuple(stream.data.shape[2:]), tuple(like.data.shape[2:])),
        ):
            if value != other:
                raise BatchError(f'"{name}" differs in {what}: {other} in "{first.id}", {value} in "{clip.id}".')
        if stream.data.shape[0] != 1 or stream.mask.shape != stream.data.shape[:2]:
            raise BatchError(f'"{name}" of "{clip.id}" is not [1, T, ...] with a mask [1, T].')
    steps = max(stream.data.shape[1] for _, stream in given)
    if len(given) == len(clips) and all(stream.data.shape[1] == steps for _, stream in given):
        return Stream(torch.cat([s.data for _, s in given]), torch.cat([s.mask for _, s in given]), like.rate)
    data = torch.zeros((len(clips), steps, *like.data.shape[2:]), dtype=like.data.dtype)
    mask = torch.zeros((len(clips), steps), dtype=torch.bool)
    for row, clip in enumerate(clips):
        if name in clip.streams:
            stream = clip.streams[name]
            data[row, : stream.data.shape[1]] = stream.data[0]
            mask[row, : stream.data.shape[1]] = stream.mask[0]
    return Stream(data, mask, like.rate)


def _extra(name: str, clips: Sequence[Clip]) -> torch.Tensor:
    lacking = next((clip for clip in clips if name not in clip.extras), None)
    if lacking is not None:
        raise BatchError(f'"{lacking.id}" lacks the extra "{name}" that other clips have.')
    shapes = {(tuple(clip.extras[name].shape), clip.extras[name].dtype) for clip in clips}
    if len(shapes) > 1:
        raise BatchError(f'the extra "{name}" differs in shape or type: {sorted(map(str, shapes))}.')
    return torch.stack([clip.extras[name] for clip in clips])
