"""Small feature files to compare systems on, and systems of another package that do what no system should."""

from __future__ import annotations

from pathlib import Path

import numpy as np

# Settings under which every system is done in a second or two.
QUICK = {"all": {"epochs": 2}}


def feature_file(path: Path, *, n: int = 120, labels: bool = True, seed: int = 0) -> Path:
    """Two noisy views of class centers, with an official split."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, n)
    latent = rng.normal(size=(4, 5))[label] + 0.6 * rng.normal(size=(n, 5))
    arrays = {m: (latent @ rng.normal(size=(5, d))).astype(np.float32) for m, d in (("audio", 10), ("video", 14))}
    split = np.array(["train", "train", "train", "val", "test"])[np.arange(n) % 5]
    names = {"label": np.array(["rain", "50% & more", "chain_saw", "<b>bird</b>"])[label]} if labels else {}
    np.savez(path, **arrays, split=split, **names)
    return path


BROKEN = """
import os
import signal

import torch

from avcl.system import Config, System
from avcl.types import Card


class Broken(System):
    card = Card(title="Broken", year=2026, venue="none", fidelity="reconstruction: it only breaks")
    Config = Config
    closed_form = True
    similarity_name = "cosine"

    def encode(self, batch):
        return {}

    def losses(self, encoded, batch, at):
        return {}

    def finish(self, batches):
        BREAK

    def embed(self, batch, modality, *, toward=None):
        return torch.ones(len(batch), 2)

    def similarity(self, q, g):
        return q @ g.T
"""


def broken_package(folder: Path, **systems: str) -> Path:
    """A package on a path of its own that adds systems, {name: the statement that breaks it}."""
    info = folder / "broken-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 0\n")
    points = "".join(f"{name} = {name}_module:Broken\n" for name in systems)
    (info / "entry_points.txt").write_text(f"[avcl.systems]\n{points}")
    for name, statement in systems.items():
        (folder / f"{name}_module.py").write_text(BROKEN.replace("BREAK", statement))
    return folder
