"""What every published data set keeps: its facts are complete, its lists are counted, and what is there can be read."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest

import avcl
from avcl import discover
from avcl.catalog import entries
from avcl.catalog import published as of
from avcl.data.official import OfficialSet
from avcl.data.official_media import MediaSet
from avcl.errors import ConfigError, DataError, LeakError, MissingFile
from avcl.ops import Verify

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from data_set_toys import TOYS, Toy

NAMES = discover.data_names()


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def official(name: str) -> OfficialSet:
    return of(name)


@pytest.fixture
def toy(name: str, tmp_path: Path) -> tuple[Path, Toy]:
    """A folder of the official form, and what is in it."""
    assert name in TOYS, f"tests/unit/data_set_toys.py has no folder of the official form of {name}"
    folder = tmp_path / "data"
    folder.mkdir()
    return folder, TOYS[name](folder)


def test_its_facts_are_complete(name: str, official: OfficialSet) -> None:
    assert official.name == name
    about = avcl.describe(name)
    about = about.get("data set", about)  # a task may have the same name
    for key in ("title", "about", "license", "source", "citation"):
        assert len(about[key]) > 3, key
    assert about["source"].startswith("http")
    assert any(str(year) in about["citation"] for year in range(1990, 2030))
    assert about["counts"]
    assert all(n > 0 for n in about["counts"].values())
    assert about["lists"]
    assert {"name": name, "about": official.about} in list(entries("data"))
    module = discover.data_module(name)
    assert "read" in (inspect.getdoc(module) or "").lower(), "the docstring says which files are read"


def test_of_an_empty_folder_all_is_missing(official: OfficialSet, tmp_path: Path) -> None:
    checks = list(official.verify(tmp_path))
    assert {check.part: check.missing for check in checks} == dict(official.counts)
    assert all((check.found, check.listed, check.first) == (0, 0, ()) for check in checks)
    with pytest.raises(MissingFile, match="holds no official list") as caught:
        list(official.entries(tmp_path))
    assert official.lists[0] in str(caught.value)
    with pytest.raises(MissingFile):
        list(official.verify(tmp_path / "nothing"))
    out = tmp_path / ("out.csv" if isinstance(official, MediaSet) else "out.npz")
    with pytest.raises(MissingFile):
        official.manifest(tmp_path, tmp_path, out)
    assert not out.exists()


def test_what_is_there_is_counted(official: OfficialSet, toy: tuple[Path, Toy]) -> None:
    folder, expected = toy
    checks = {check.part: check for check in official.verify(folder)}
    assert {part: check.listed for part, check in checks.items() if part in expected.listed} == expected.listed
    assert {part: check.found for part, check in checks.items() if part in expected.found} == expected.found
    for part, check in checks.items():
        assert check.missing == max(official.counts.get(part, 0), check.listed) - check.found
    assert {item for check in checks.values() for item in check.first} == set(expected.gone)


def test_its_rows(official: OfficialSet, toy: tuple[Path, Toy]) -> None:
    folder, _ = toy
    rows = list(official.entries(folder))
    assert rows
    for row in rows:
        assert row.split in ("", "train", "val", "test")
        assert row.part in official.counts
        assert not official.labels or row.label in official.labels
        assert row.start is None or (row.end is not None and row.end > row.start)


def test_load_data_reads_what_is_there(official: OfficialSet, toy: tuple[Path, Toy], tmp_path: Path) -> None:
    folder, expected = toy
    out = tmp_path / ("out.csv" if isinstance(official, MediaSet) else "out.npz")
    written = official.manifest(folder, folder, out)
    assert written["rows"] == expected.rows
    if expected.leaks:
        with pytest.raises(LeakError):
            avcl.load_data(out)
    splits = avcl.load_data(out, allow_leak=expected.leaks)
    assert (len(splits.all), splits.official) == (expected.rows, expected.official)
    assert set(splits.all.modalities) == set(expected.streams)
    assert splits.all.labels == expected.labels
    prepared = splits.train.configure(avcl.types.Inputs(fps=2, size=(16, 16), sample_rate=8000, window=1.0)).prepare()
    assert (len(prepared), dict(prepared.skipped)) == (len(splits.train), {})
    assert set(prepared.clip(0).streams) == set(expected.streams)


def test_only_some_lists(official: OfficialSet, toy: tuple[Path, Toy], tmp_path: Path) -> None:
    folder, expected = toy
    part = next(iter(expected.found))
    out = tmp_path / ("out.csv" if isinstance(official, MediaSet) else "out.npz")
    if "image train" in expected.found:  # alone, a list of pictures has no partner
        return
    if "voices train" in expected.found:
        assert official.manifest(folder, folder, out, only=["voices train"])["rows"] == 2
        return
    rows = official.manifest(folder, folder, out, only=[part])["rows"]
    assert rows >= expected.found[part]
    with pytest.raises(ConfigError, match="is not a list of"):
        official.manifest(folder, folder, out, only=["nothing"])
    with pytest.raises(ConfigError, match="written as"):
        official.manifest(folder, folder, tmp_path / "out.txt")


def test_the_verb(name: str, official: OfficialSet, toy: tuple[Path, Toy], tmp_path: Path) -> None:
    folder, expected = toy
    out = tmp_path / ("out.csv" if isinstance(official, MediaSet) else "out.npz")
    verb = Verify.parse({"data": name, "folder": folder, "out": out})
    results = list(verb.run())
    assert verb.status(results) == 1
    assert results[-1]["rows"] == expected.rows
    assert [r["part"] for r in results[:-1]][: len(official.counts)] == list(official.counts)
    words = "\n".join(map(verb.human, results))
    assert "missing" in words
    assert all(item in words for item in expected.gone)
    part = next(iter(official.counts))
    [only] = list(Verify.parse({"data": name, "folder": folder, "only": [part]}).run())
    assert only["part"] == part


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="vggsound"):
        list(Verify.parse({"data": "vggsoun", "folder": tmp_path}).run())
    TOYS["vggsound"](tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds not one file"):
        of("vggsound").manifest(tmp_path, tmp_path / "empty", tmp_path / "out.csv")
