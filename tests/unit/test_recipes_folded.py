"""Comparisons in folds, and the recipes of real benchmarks from end to end on made-up data of the same form."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.random import default_rng

from avcl.comparison.plan import Plan
from avcl.comparison.runs import Run
from avcl.comparison.statistics import standings
from avcl.comparison.study import Comparison
from avcl.data.world import export
from avcl.media import write_audio, write_image


def read(path: Path, systems: set[str], tables: int = 1) -> dict[str, Any]:
    value = json.loads(path.read_text())
    assert len(value["tables"]) == tables
    for table in value["tables"]:
        assert {row[0] for row in table["rows"]} == systems
        assert all(len(row) == len(table["columns"]) for row in table["rows"])
        assert all(isinstance(row[1], float) for row in table["rows"])
    return value


# -------------------------------------------------------------------------------------------------------------- folded
def fold(system: str, aps: Sequence[float], groups: Sequence[int], **changed: Any) -> Run:
    scores = {"mAP": float(np.mean(aps)), "medR": 3.0}
    ways = ("audio_to_video", "video_to_audio")
    queries = {d: {"rows": list(range(len(aps))), "ap": list(aps)} for d in ways}
    both: Mapping[str, Any] = dict.fromkeys((*ways, "mean"), scores)
    size = {"params": 10, "train_s": 2.0, "embed_ms": 1.0, "ended": "epochs"}
    given = {
        "scores": both,
        "chance": both,
        "queries": queries,
        "groups": tuple(groups),
        "items": str(len(aps)),
        **size,
    }
    return Run(system, 0, "ok", **(given | changed))


def comparison(*runs: Run) -> Comparison:
    return Comparison(Path("nowhere"), Plan("data"), runs, standings(runs))


def test_a_pooled_mean_is_one_over_the_queries_of_all_folds(recipe: Any) -> None:
    folded = recipe("folded")
    first = comparison(fold("cca", [0.2, 0.4], [0, 1]), fold("infonce", [0.9, 0.7], [0, 1]))
    second = comparison(fold("cca", [0.6, 0.8, 1.0], [0, 0, 1]), fold("infonce", [0.1, 0.2, 0.3], [0, 0, 1]))
    made = folded.pooled([first, second])
    run = made.runs[0]
    assert run.scores["mean"]["mAP"] == pytest.approx(np.mean([0.2, 0.4, 0.6, 0.8, 1.0]))
    assert "medR" not in run.scores["mean"]
    assert run.queries["audio_to_video"]["rows"] == [0, 1, 2, 3, 4]
    assert run.groups == (0, 1, 2, 2, 3)  # nobody of one fold is anybody of the other
    assert {row.system: row.mean for row in made.table.rows}["infonce"] == pytest.approx(
        np.mean([0.9, 0.7, 0.1, 0.2, 0.3])
    )
    assert all(row.interval is not None for row in made.table.rows)


def test_what_failed_in_one_fold_has_no_pooled_figure(recipe: Any) -> None:
    folded = recipe("folded")
    lost = Run("infonce", 0, "failed", {"code": "E-X", "message": "lost"})
    made = folded.pooled(
        [comparison(fold("cca", [0.2], [0]), fold("infonce", [0.3], [0])), comparison(fold("cca", [0.4], [0]), lost)]
    )
    assert [run.state for run in made.runs] == ["ok", "failed"]
    assert made.table.rows[-1].why == "E-X: lost"


def test_every_group_is_tested_once_and_never_stands_on_two_sides(recipe: Any) -> None:
    groups = [f"g{i % 7}" for i in range(40)]
    split = recipe("folded").parts(groups, 3)
    assert all(set(side) == {"train", "val", "test"} for side in split)
    assert np.sum([side == "test" for side in split], 0).tolist() == [1] * len(groups)
    for side in split:
        assert len({(g, s) for g, s in zip(groups, side, strict=True)}) == len(set(groups))


# ------------------------------------------------------------------------------------------------------------- recipes
def test_compare_ravdess(recipe: Any, tmp_path: Path) -> None:
    rng, n = default_rng(0), 120
    emotion, actor = np.arange(n) % 2, 1 + (np.arange(n) // 2) % 10
    views = {"au": rng.normal(size=(n, 6)) + emotion[:, None], "mfcc": rng.normal(size=(n, 9)) + emotion[:, None]}
    names = np.array([f"clip {i}" for i in range(n)])
    np.savez(tmp_path / "ravdess_actors01-20.npz", **views, emotion=emotion, actor=actor, name=names)
    module = recipe("compare_features")
    module.FOLDS = 3
    module.main(["ravdess", str(tmp_path), "--systems", "cca,c_cca", "--results", str(tmp_path)])
    value = read(tmp_path / "retrieval" / "compare_ravdess.json", {"cca", "c_cca"})
    assert "10 actors" in value["about"]


def test_compare_uci_mfeat(recipe: Any, tmp_path: Path) -> None:
    rng, arrays = default_rng(0), dict[str, Any]()
    for part, n in (("tr", 60), ("te", 30)):
        label = np.arange(n) % 3
        arrays |= {f"{v}_{part}": rng.normal(size=(n, 4 + i)) + label[:, None] for i, v in enumerate("ITP")}
        arrays[f"L_{part}"] = label[None] + 1
    np.savez(tmp_path / "uci_mfeat.npz", **arrays)
    module = recipe("compare_features")
    module.main(["uci_mfeat", str(tmp_path), "--systems", "cca,c_cca", "--results", str(tmp_path)])
    assert "60 digits" in read(tmp_path / "retrieval" / "compare_uci_mfeat.json", {"cca", "c_cca"})["about"]


def tone(path: Path, pitch: float, rate: int = 8000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_audio(path, 0.3 * np.sin(np.arange(rate // 2) * pitch).astype(np.float32)[:, None], rate)


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, default_rng(seed).integers(0, 255, (32, 32, 3)).astype(np.uint8))


def table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_compare_stamps(recipe: Any, tmp_path: Path) -> None:
    rows = []
    for i in range(12):
        id = f"thing-{i}"
        picture(tmp_path / "images" / f"{id}.jpg", i)
        for number, language in enumerate(("fr", "es")):
            tone(tmp_path / f"speech_{language}" / f"{id}.ogg", 0.05 * (1 + i + number))
        texts = {f"text_{language}": f"{language} {id}" for language in ("en", "fr", "es")}
        rows.append({"id": id, "category": f"kind {i % 2}", **texts})
    table(tmp_path / "stamps.csv", rows)
    module: ModuleType = recipe("compare_stamps")
    module.main(["speech_text", str(tmp_path), "--systems", "cca,kcca", "--results", str(tmp_path)])
    value = read(tmp_path / "retrieval" / "stamps_speech_text.json", {"cca", "kcca"})
    assert "mean R@10" in value["tables"][0]["columns"]
    assert {row["epochs"] for row in module.settings_of(module.CAPTIONS).values()} == {60}


def test_compare_esc10(recipe: Any, tmp_path: Path) -> None:
    meta, images = [], []
    for label, count in (("dog", 3), ("rain", 4)):
        for i in range(16):
            name = f"{label}-{i}.ogg"
            tone(tmp_path / "audio" / name, 0.1 + 0.01 * i)
            meta.append({"filename": name, "category": label, "fold": 1 + i % 4, "src_file": name})
        for i in range(count):
            picture(tmp_path / "images" / f"{label}{i}.jpg", i)
            images.append({"filename": f"{label}{i}.jpg", "class": label})
    table(tmp_path / "meta.csv", meta)
    table(tmp_path / "images.csv", images)
    module = recipe("compare_esc10")
    module.main([str(tmp_path), str(tmp_path), "--systems", "cca,c_cca", "--results", str(tmp_path)])
    assert "7 pictures" in read(tmp_path / "retrieval" / "compare_esc10.json", {"cca", "c_cca"})["about"]


def test_compare_world_at_three_difficulties(recipe: Any, tmp_path: Path) -> None:
    module = recipe("compare_world")
    given = ["--systems", "cca,c_cca", "--seeds", "1", "--clips", "120", "--results", str(tmp_path)]
    module.main(given)
    value = read(tmp_path / "retrieval" / "compare_world.json", {"cca", "c_cca"}, tables=3)
    assert list(value["runs"]) == ["easy", "middle", "hard"]


def test_compare_grid(recipe: Any, tmp_path: Path) -> None:
    export("sync", tmp_path / "world", clips=18, container="mp4")
    videos = sorted((tmp_path / "world").rglob("*.mp4"))
    (tmp_path / "grid" / "video").mkdir(parents=True)
    for i, video in enumerate(videos):
        video.rename(tmp_path / "grid" / "video" / f"{i}.mp4")
    module = recipe("compare_grid")
    given = ["--systems", "cca", "--test", "8", "--limit", "18", "--results", str(tmp_path)]
    module.main([str(tmp_path / "grid"), *given])
    assert "8 unseen sentences" in read(tmp_path / "retrieval" / "compare_grid.json", {"cca"})["about"]
