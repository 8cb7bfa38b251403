"""What happens in each half second, seen and heard? A co-attention detector from parts, trained in under a minute.

python examples/event_detector.py [CLIPS]
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from avcl.data.loader import Loader
from avcl.data.world import World
from avcl.encoders.audio import LogMelConv
from avcl.encoders.conv2d import ChangeConv
from avcl.nn.coattention import PairCoAttention
from avcl.nn.pooling import on_clock
from avcl.objectives.classification import cross_entropy
from avcl.types import Batch


class Detector(nn.Module):
    """Sound and picture read each other within half a second, then name every half second of five: [B, 10, classes]."""

    def __init__(self, classes: int, dim: int = 64):
        super().__init__()
        self.hear, self.see = LogMelConv(dim=dim), ChangeConv(dim=dim)
        self.both = PairCoAttention(dim, gate=True, past=0.5, future=0.5)
        self.name = nn.Sequential(nn.Linear(2 * dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, classes))

    def forward(self, batch: Batch) -> Tensor:
        pair = self.both(self.hear(batch.audio), self.see(batch.video))
        return self.name(torch.cat([on_clock(stream, steps=10, seconds=5.0) for stream in pair], 2))


def main(argv: list[str], *, clips: int = 400, held_out: int = 150, epochs: int = 6) -> None:
    torch.manual_seed(0)
    train = World("events", clips=int(argv[0]) if argv else clips, split="train")
    test = World("events", clips=held_out, split="test")
    background = len(train.labels)  # the last class: no event
    batches = list(Loader(train, batch_size=8))  # rendered once
    model = Detector(background + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * len(batches))
    for i in torch.cat([torch.randperm(len(batches)) for _ in range(epochs)]):
        batch = batches[i].to("cpu")
        cross_entropy(model(batch).flatten(0, 1), batch.extras["segments"].flatten()).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    seen = [batch.to("cpu") for batch in Loader(test, batch_size=32)]
    truth = torch.cat([batch.extras["segments"] for batch in seen])
    with torch.no_grad():
        right = torch.cat([model(batch).argmax(2) for batch in seen]) == truth
    print(f"segment accuracy on {held_out} held-out clips: {right.float().mean():.3f}")
    print(f"always background: {(truth == background).float().mean():.3f}   chance: {1 / (background + 1):.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
