"""Speed of the index: exact search beside bare FAISS and NumPy, then adding, opening, building, updating.

    python benchmarks/index.py [--vectors 100000] [--dim 256] [--queries 200] [--threads 1] [--out FILE]

Ratios are what counts: the machine is shared, so every round times all peers one after the other, and the ratio is the
median over rounds. ``index`` maps the vector file, scores the winners again in float64 and fetches their rows;
``faiss`` is IndexFlatIP.search with all vectors in memory; ``numpy`` is a matrix product and argpartition.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

import avcl.index
from avcl.index import Index
from avcl.media import write_audio
from avcl.types import Clip, Inputs


class Loudness:
    """An embedder that costs nothing: what remains is decoding, slicing, SQLite and the disk."""

    fingerprint, dim, modalities, window, similarity_name = "loudness", 16, ("audio",), 3.0, "cosine"
    inputs = Inputs(sample_rate=16_000, channels=1)

    def embed_clips(self, clips: list[Clip], modality: str) -> np.ndarray:
        waves = [c.streams[modality].data[0, :, 0].numpy() for c in clips]
        return np.stack([[np.abs(part).mean() + 1e-3 for part in np.array_split(wave, 16)] for wave in waves])


def timed(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def compare(peers: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each peer, and the median of the ratios within a round to each other peer."""
    for call in peers.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(rounds):
        for name, call in peers.items():
            seconds[name].append(timed(call))
    first = next(iter(peers))
    result = {f"{name}_ms": 1e3 * float(np.median(s)) for name, s in seconds.items()}
    for name in list(peers)[1:]:
        result[f"{first}_over_{name}"] = float(np.median(np.array(seconds[first]) / np.array(seconds[name])))
    return result


def searching(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    n, dim, k = arguments.vectors, arguments.dim, arguments.k
    vectors = rng.standard_normal((n, dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = rng.standard_normal((arguments.queries, dim), dtype=np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    table = [(f"folder{i // 5000}/{i // 20:06d}.mp4", float(i % 20), i % 20 + 3.0) for i in range(n)]
    result: dict[str, Any] = {}

    index = Index.create(folder, model="m", dim=dim, modalities=("audio",), threads=arguments.threads)
    result["add_s"] = timed(lambda: index.add(table, {"audio": vectors}))
    index.close()

    def reopened() -> None:
        with Index.open(folder, threads=arguments.threads) as again:
            again.search(queries[0], "audio", k=k)

    result["open_s"] = timed(lambda: Index.open(folder).close())
    result["open_and_first_search_s"] = timed(reopened)
    index = Index.open(folder, threads=arguments.threads)
    bare = faiss.IndexFlatIP(dim)
    bare.add(vectors)

    def numpy_search(some: np.ndarray) -> np.ndarray:
        scores = some @ vectors.T
        best = np.argpartition(scores, -k, axis=1)[:, -k:]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1)
        return np.take_along_axis(best, order, 1)

    hits = index.search_many(queries, "audio", k=k)
    slots = {row[:2]: i for i, row in enumerate(table)}
    same = [[slots[h.path, h.start] for h in one] for one in hits] == bare.search(queries, k)[1].tolist()
    result["same_hits_as_faiss"] = bool(same)
    one = queries[:1]
    result["single"] = compare(
        {
            "index": lambda: index.search(one[0], "audio", k=k),
            "faiss": lambda: bare.search(one, k),
            "numpy": lambda: numpy_search(one),
        },
        arguments.rounds * 4,
    )
    result["batch"] = compare(
        {
            "index": lambda: index.search_many(queries, "audio", k=k),
            "faiss": lambda: bare.search(queries, k),
            "numpy": lambda: numpy_search(queries),
        },
        arguments.rounds,
    )
    result["where_first_time_ms"] = 1e3 * timed(lambda: index.search(one[0], "audio", k=k, where="start < 11"))
    for name, options in {
        "per_file=1": {"per_file": 1},
        "where, half of the rows": {"where": "start < 10"},  # the second time; the first reads 100,000 rows
        "where, one folder of twenty": {"where": "folder = 'folder7'"},
    }.items():
        result[name] = compare(
            {"index": lambda o=options: index.search(one[0], "audio", k=k, **o)},
            arguments.rounds,  # type: ignore[misc]
        )
    path, start, end = table[n // 2]
    expression = f"path = '{path}' AND start = {start}"
    result["remove_one_s"] = timed(lambda: index.remove(where=expression))
    result["add_one_s"] = timed(lambda: index.add([(path, start, end)], {"audio": vectors[n // 2 : n // 2 + 1]}))
    index.close()
    return result


def building(folder: Path, files: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    media = folder / "media"
    media.mkdir()
    for i in range(files):
        write_audio(media / f"{i:04d}.wav", 0.1 * rng.standard_normal((16_000 * 10, 1), dtype=np.float32), 16_000)
    embedder, out = Loudness(), folder / "index"
    built = avcl.index.build(media, out, embedder, segment=3, hop=1)
    nothing = avcl.index.update(out, embedder)
    quick = avcl.index.update(out, embedder, quick=True)
    write_audio(media / "0000.wav", np.full((16_000 * 10, 1), 0.1, np.float32), 16_000)
    one = avcl.index.update(out, embedder)
    return {
        "files": files,
        "segments": built["segments"],
        "media_hours": built["media_seconds"] / 3600,
        "build_s": built["seconds"],
        "build_media_seconds_per_second": built["media_seconds"] / built["seconds"],
        "update_nothing_s": nothing["seconds"],
        "update_nothing_quick_s": quick["seconds"],
        "update_one_file_s": one["seconds"],
    }


def show(result: dict[str, Any], indent: str = "") -> None:
    for name, value in result.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            show(value, indent + "  ")
        else:
            print(f"{indent}{name:<34} {f'{value:.3f}' if isinstance(value, float) else value}")


def about(arguments: argparse.Namespace, versions: dict[str, str]) -> str:
    return (
        f"benchmarks/index.py: {arguments.vectors} vectors of {arguments.dim} dimensions, the {arguments.k} nearest, "
        f"{arguments.threads} thread; ratios of seconds in the same run, median over rounds (aim: 1.2 of bare FAISS). "
        f"FAISS {versions['faiss']}, NumPy {versions['numpy']}."
    )


def ratios(search: dict[str, Any]) -> dict[str, Any]:
    values = ("index_ms", "faiss_ms", "numpy_ms", "index_over_faiss", "index_over_numpy")
    rows = [
        [name, *(round(search[key][value], 3) for value in values)]
        for key, name in (("single", "one query"), ("batch", "a batch of queries"))
    ]
    columns = ["", "index ms", "FAISS ms", "NumPy ms", "of FAISS", "of NumPy"]
    return {"title": "Search", "columns": columns, "rows": rows}


def times(result: dict[str, Any]) -> dict[str, Any]:
    parts = {**result["search"], **result["media"]}
    rows = [[key.replace("_", " "), value] for key, value in parts.items() if isinstance(value, int | float)]
    return {"title": "Times, and what was built", "columns": ["", "value"], "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/index.json"))
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        result: dict[str, Any] = {
            "title": "Exact search beside bare FAISS and NumPy",
            "settings": {
                "vectors": arguments.vectors,
                "dim": arguments.dim,
                "queries": arguments.queries,
                "k": arguments.k,
                "threads": arguments.threads,
            },
            "versions": {"faiss": faiss.__version__, "numpy": np.__version__, "python": platform.python_version()},
            "search": searching(Path(folder) / "search", arguments),
            "media": building(Path(folder), arguments.files),
        }
    result |= {"about": about(arguments, result["versions"]), "tables": [ratios(result["search"]), times(result)]}
    show({key: value for key, value in result.items() if key != "tables"})
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
