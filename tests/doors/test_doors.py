"""Python and shell answer alike, exit with the promised status, and say errors in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import avcl
from avcl import archive
from avcl.types import jsonable

HIT = {"rank", "path", "start", "end", "score", "modality"}


def python(*code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", "\n".join(code)], capture_output=True, text=True, check=False)


def test_help_is_quick_because_it_loads_nothing_heavy() -> None:
    done = python(
        "import sys, contextlib, io",
        "from avcl import cli",
        "with contextlib.redirect_stdout(io.StringIO()) as out:",
        "    assert cli.run(['--help']) == 0",
        "assert 'search' in out.getvalue()",
        "heavy = [m for m in ('torch', 'scipy', 'faiss', 'av', 'sklearn', 'matplotlib') if m in sys.modules]",
        "assert not heavy, heavy",
    )
    assert done.returncode == 0, done.stderr


def test_every_verb_has_help(shell) -> None:
    from avcl.ops import VERBS

    for verb in VERBS:
        got = shell(*verb.name.split(), "--help")
        assert got.status == 0
        for name, field in verb.model_fields.items():
            assert field.description, f"{verb.name} {name} has no description"


def test_evaluate_is_the_same_in_python_and_shell(main_path, shell) -> None:
    got = shell("evaluate", main_path.run, main_path.clips, "--relevance", "class", "--json")
    assert got.status == 0
    assert len(got.lines) == 1
    [line] = got.lines
    report = avcl.evaluate(main_path.run, main_path.clips, relevance="class")
    mine = json.loads(json.dumps(jsonable(report.as_dict())))
    for value in (line, mine):
        value.pop("seconds")
    assert line == mine
    assert set(line) >= {
        "audio_to_video",
        "video_to_audio",
        "mean",
        "chance",
        "n_scored",
        "n_official",
        "interval",
        "task",
        "data",
    }
    assert set(line["mean"]) >= {"R@1", "R@5", "R@10", "medR", "MRR", "mAP"}
    assert line["chance"].keys() == line["interval"].keys() == {"audio_to_video", "video_to_audio", "mean"}
    assert line["n_scored"] == line["n_official"] < 24  # the test part of our own split
    for direction in ("audio_to_video", "video_to_audio", "mean"):
        for metric, value in line[direction].items():
            low, high = line["interval"][direction][metric]
            assert low <= high
            assert metric == "medR" or 0 <= value <= 1


def test_other_data_are_scored_whole(main_path, shell, tmp_path: Path) -> None:
    assert shell("world", tmp_path / "fresh", "--clips", 6, "--seed", 5, "--workers", 0).status == 0
    [line] = shell("evaluate", main_path.run, tmp_path / "fresh", "--json").lines
    assert line["n_scored"] == 6
    assert line["split"] == "all"


def test_search_both_ways_is_the_same_in_python_and_shell(main_path, shell) -> None:
    query = main_path.clips / "00003.webm"
    query = query if query.exists() else sorted(main_path.clips.glob("*.webm"))[3]
    for option, want in (("--audio", "video"), ("--video", "audio")):
        got = shell("search", main_path.index, option, query, "-k", 5, "--json")
        assert got.status == 0
        assert len(got.lines) == 5
        assert all(set(line) == HIT for line in got.lines)
        assert [line["rank"] for line in got.lines] == [1, 2, 3, 4, 5]
        assert {line["modality"] for line in got.lines} == {want}
        scores = [line["score"] for line in got.lines]
        assert scores == sorted(scores, reverse=True)
        hits = archive.search(main_path.index, **{option[2:]: query}, k=5)
        assert [h.path for h in hits] == [line["path"] for line in got.lines]
        np.testing.assert_allclose([h.score for h in hits], scores, rtol=1e-6)
    everything = shell("search", main_path.index, "--audio", query, "-k", 10_000, "--json").lines
    assert len(everything) == shell("index", "info", main_path.index, "--json").lines[0]["segments"]
    one_each = shell("search", main_path.index, "--audio", query, "-k", 10_000, "--per-file", 1, "--json").lines
    assert len({line["path"] for line in one_each}) == len(one_each) == 24
    same = shell("search", main_path.index, "--audio", query, "--want", "audio", "-k", 1, "--json").lines[0]
    assert Path(same["path"]).name == query.name
    assert same["score"] == pytest.approx(1, abs=1e-3)


def test_where(main_path, shell) -> None:
    query = sorted(main_path.clips.glob("*.webm"))[0]
    lines = shell("search", main_path.index, "--video", query, "--where", f"path GLOB '*{query.name}'", "--json").lines
    assert {Path(line["path"]).name for line in lines} == {query.name}
    for hostile in ("1); DROP TABLE segments; --", "(SELECT 1)", "load_extension('x')", "nonsense = 1"):
        got = shell("search", main_path.index, "--video", query, "--where", hostile, "--json")
        assert got.status == 2
        assert got.lines[-1]["code"] == "E-CONFIG"


def test_embed(main_path, shell, tmp_path: Path) -> None:
    query = sorted(main_path.clips.glob("*.webm"))[0]
    lines = shell("embed", main_path.run, query, "--json").lines
    model = avcl.load(main_path.run)
    assert {line["modality"] for line in lines} == {"audio", "video"}
    for line in lines:
        np.testing.assert_allclose(line["vector"], model.embed(**{line["modality"]: query}), atol=1e-5)
    got = shell("embed", main_path.run, query, "--out", tmp_path / "vectors.npz", "--json").lines
    assert got[0]["vectors"] == 2
    with np.load(tmp_path / "vectors.npz", allow_pickle=False) as arrays:
        assert arrays["vector"].shape == (2, model.dim)


def test_another_model_is_refused(main_path, shell, tmp_path: Path) -> None:
    assert (
        shell("train", main_path.clips, "--out", tmp_path / "other", "--epochs", 1, "--seed", 1, "--workers", 0).status
        == 0
    )
    query = sorted(main_path.clips.glob("*.webm"))[0]
    for tokens in (
        ("search", main_path.index, "--audio", query, "--model", tmp_path / "other"),
        ("index", "build", main_path.clips, "--model", tmp_path / "other", "--out", main_path.index),
        ("index", "update", main_path.index, "--model", tmp_path / "other"),
    ):
        got = shell(*tokens, "--json")
        assert got.status == 5
        assert got.lines[-1]["code"] == "E-MODEL"
        assert "E-MODEL" in got.err


@pytest.mark.parametrize(
    ("tokens", "status", "says"),
    [
        (("trian",), 2, 'Did you mean "train"?'),
        (("train", "nowhere", "--out", "run"), 4, "nowhere"),
        (("train", "world:retreival", "--out", "run"), 2, "retrieval"),
        (("list", "system"), 2, "systems"),
        (("describe", "infonse"), 2, "infonce"),
        (("evaluate", "nothing", "nowhere"), 2, "nothing"),
        (("probe", "missing.mp4"), 4, "E-NOFILE"),
        (("search", "noindex", "--audio", "a.wav"), 2, "noindex"),
    ],
)
def test_errors_are_one_line_with_a_status(shell, tmp_path: Path, monkeypatch, tokens, status, says) -> None:
    monkeypatch.chdir(tmp_path)
    got = shell(*tokens, "--json")
    assert got.status == status
    assert says in got.err
    assert got.err.count("\n") <= 1
    assert len(got.err) < 300
    assert set(got.lines[-1]) == {"code", "message", "file", "time", "hint"}
    assert list(tmp_path.iterdir()) == []  # nothing is left looking like a run


def test_unknown_setting_gets_a_suggestion(main_path, shell, tmp_path: Path) -> None:
    got = shell("train", main_path.clips, "--out", tmp_path / "run", "--set", "batch_sise=8")
    assert got.status == 2
    assert 'Did you mean "batch_size"?' in got.err


def test_a_finished_run_is_not_overwritten(main_path, shell) -> None:
    before = (main_path.run / "weights.safetensors").read_bytes()
    got = shell("train", main_path.clips, "--out", main_path.run, "--json")
    assert (got.status, got.lines[-1]["code"]) == (2, "E-EXISTS")
    assert (main_path.run / "weights.safetensors").read_bytes() == before


def test_force_deletes_only_runs(main_path, shell, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    got = shell("train", main_path.clips, "--out", tmp_path / "thesis", "--force", "--json")
    assert (got.status, got.lines[-1]["code"]) == (2, "E-EXISTS")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


def test_list_describe_doctor_probe(main_path, shell) -> None:
    names = {line["name"] for line in shell("list", "systems", "--json").lines}
    assert {"cca", "infonce"} <= names
    assert {"retrieval"} <= {line["name"] for line in shell("list", "tasks", "--json").lines}
    assert "world:retrieval" in {line["name"] for line in shell("list", "data", "--json").lines}
    for thing in ("cca", "retrieval", "world:retrieval", main_path.run, main_path.index):
        got = shell("describe", thing, "--json")
        assert got.status == 0
        assert got.lines[0]["kind"] in {"system", "task", "data", "model", "index"}
        assert shell("describe", thing).out.strip()
    assert shell("doctor", "--json").status == 0
    clip = sorted(main_path.clips.glob("*.webm"))[0]
    [line] = shell("probe", clip, "--json").lines
    assert line["duration"] == pytest.approx(3, abs=0.1)
    assert shell("probe", clip, "--scan").status == 0


def test_interrupt_is_130() -> None:
    done = python(
        "import sys",
        "from avcl import cli, ops",
        "def stop(self, *, progress=False):",
        "    raise KeyboardInterrupt",
        "    yield",
        "ops.Doctor.run = stop",
        "sys.exit(cli.run(['doctor']))",
    )
    assert done.returncode == 130
    assert done.stderr.startswith("interrupted")
    assert done.stderr.count("\n") == 1
