"""What this installation can do: versions, decoders, encoders, threads, cache. The facts behind ``avcl doctor``."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

DECODERS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "aac", "opus", "mp3", "vorbis", "flac")
ENCODERS = ("libvpx-vp9", "mpeg4", "aac", "libopus", "flac", "png", "mjpeg")
PACKAGES = ("torch", "numpy", "scipy", "av", "faiss-cpu", "accelerate", "safetensors", "pydantic", "cyclopts")


def versions() -> dict[str, str]:
    """The versions that a result depends on; stored with every run, index and report."""
    found = {"avcl": _version("avcl"), "python": platform.python_version()}
    return found | {name: _version(name) for name in PACKAGES[:5]}


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def threads_beside(workers: int) -> Iterator[None]:
    """torch computes with the cores that ``workers`` leave: threads that wait for each other's core cost more than they
    bring (on two cores beside one worker, two threads take twice as long as one)."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, cores() - workers)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def doctor() -> Iterator[dict[str, Any]]:
    """Yields {"check", "ok", "detail"}: every part is really used once, not only looked for."""
    ok = sys.version_info >= (3, 11)
    yield {"check": "python", "ok": ok, "detail": f"{platform.python_version()} on {platform.machine()}"}
    for name in PACKAGES:
        version = _version(name)
        yield {"check": name, "ok": version != "missing", "detail": version}
    yield _torch()
    yield from _codecs()
    yield _faiss()
    yield _cache()
    extras = [name for name in ("pyarrow",) if _version(name) != "missing"]
    yield {"check": "extras", "ok": True, "detail": ", ".join(extras) or "none"}


def _torch() -> dict[str, Any]:
    product = torch.ones(8, 8) @ torch.ones(8, 8)
    device = "none"
    if torch.accelerator.is_available():
        device = str(torch.accelerator.current_accelerator())
    detail = f"{torch.get_num_threads()} threads of {cores()} cores · accelerator: {device}"
    return {"check": "compute", "ok": bool((product == 8).all()), "detail": detail}


def _codecs() -> Iterator[dict[str, Any]]:
    import av

    for kind, names in (("decoders", DECODERS), ("encoders", ENCODERS)):
        missing = []
        for name in names:
            try:
                av.Codec(name, "r" if names is DECODERS else "w")
            except ValueError:
                missing.append(name)
        present = " ".join(name for name in names if name not in missing)
        yield {
            "check": kind,
            "ok": not missing,
            "detail": present + (f" · missing: {', '.join(missing)}" if missing else ""),
        }


def _faiss() -> dict[str, Any]:
    import faiss
    import numpy as np

    index = faiss.IndexFlatIP(4)
    index.add(np.eye(4, dtype=np.float32))
    _, found = index.search(np.eye(4, dtype=np.float32), 1)
    return {"check": "search", "ok": found.ravel().tolist() == [0, 1, 2, 3], "detail": "exact search answers"}


def _cache() -> dict[str, Any]:
    from avcl.data.cache import cache_folder

    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    return {"check": "cache", "ok": writable, "detail": f"{folder} ({'writable' if writable else 'not writable'})"}
