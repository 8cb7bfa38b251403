"""Named seed streams: seed of a stream = SHA-256(seed / name / ...), so that no use of randomness disturbs another.

Names in use: ``init`` (weights), ``order``, ``augmentation`` (the loader), ``step`` (dropout; with
chunks or processes also ``turn``, ``row`` of the first clip of a chunk, ``losses``), ``loss`` (noise of an objective),
``epoch``, ``evaluation``, ``finish``. No stream carries state from one step to the next: the randomness of
step n follows from the seed and n alone, which is what makes a resumed run equal to an unbroken one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager


def seed_for(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on the run's ``seed`` and every part of the stream's name."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed the global generators of torch (every device), NumPy and Python, from which dropout and others draw."""
    import random

    import numpy as np
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def kept_random_state() -> Iterator[None]:
    """The caller finds the global generators of torch, NumPy and Python as they were before the block."""
    import random

    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    try:
        # A device that nobody has used yet has no state to keep, and looking would start it.
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def seeded(seed: int, *names: str | int) -> Iterator[None]:
    """``with seeded(seed, "init"): system = CCA(config, spec)``: global randomness of one named stream."""
    with kept_random_state():
        seed_everything(seed_for(seed, *names))
        yield
