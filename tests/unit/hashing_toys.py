"""Classes in two modalities, for systems that learn binary codes or class scores from them."""

from __future__ import annotations

import numpy as np
import torch

import avcl
from avcl.data.features import FeatureData
from avcl.system import Step
from avcl.types import Batch

CLASSES = ("a", "b", "c", "d", "e")


def classed(n: int = 300, *, seed: int = 0) -> FeatureData:
    """Centers of 5 classes, others in each modality, in noise; nothing is shared beyond the class."""
    mix, rng = np.random.default_rng(7), np.random.default_rng(seed)
    label = np.arange(n) % len(CLASSES)
    arrays = {}
    for name, width in (("audio", 12), ("video", 16)):
        center = np.tanh(2 * mix.normal(size=(len(CLASSES), width)))
        arrays[name] = (center[label] + 0.5 * rng.normal(size=(n, width))).astype(np.float32)
    words, ids = [CLASSES[i] for i in label], [f"{seed}-{i}" for i in range(n)]
    return FeatureData.from_arrays({**arrays, "label": words, "id": ids})


def whole(data: FeatureData) -> Batch:
    return avcl.data.collate([data.clip(i) for i in range(len(data))]).to("cpu")


def at(turn: str = "", progress: float = 0.0) -> Step:
    return Step(0, 10, 0, progress, torch.Generator().manual_seed(0), turn)


def class_map(model: avcl.Model, test: FeatureData) -> float:
    """The mean of both directions' mAP by class; a guess has about .2."""
    return avcl.evaluate(model, test, relevance="class", workers=0).scores["mean"]["mAP"]
