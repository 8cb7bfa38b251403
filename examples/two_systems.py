"""Compare two systems on features with labels: which of them finds the other modality of the same class?

python examples/two_systems.py            # on a small synthetic feature file
python examples/two_systems.py my.npz     # arrays audio [N, D], video [N, D], label [N] and, if you like, group, split
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

import avcl


def synthetic_features(path: Path, n: int = 600, classes: int = 6, seed: int = 0) -> Path:
    """Two noisy, nonlinear views of a class and of an item."""
    rng = np.random.default_rng(seed)
    label = rng.integers(classes, size=n)
    shared = rng.normal(size=(classes, 8))[label] * 1.5 + rng.normal(size=(n, 8))
    audio = np.tanh(shared @ rng.normal(size=(8, 32))) + 0.3 * rng.normal(size=(n, 32))
    video = np.tanh(shared @ rng.normal(size=(8, 48))) + 0.3 * rng.normal(size=(n, 48))
    np.savez(path, audio=audio.astype(np.float32), video=video.astype(np.float32), label=label)
    return path


def main(argv: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(argv[0]) if argv else synthetic_features(Path(folder) / "features.npz")
        data = avcl.load_data(path)
        for system in ("cca", "infonce"):
            model = avcl.train(system, data.train, val=data.val, seed=0, workers=0)
            print(avcl.evaluate(model, data.test, relevance="class", workers=0), end="\n\n")


if __name__ == "__main__":
    main(sys.argv[1:])
