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
from avcl.errors import ConfigError, FeatureError
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


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 rows of features with an official split and five speakers."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(30, 6))
    path = tmp_path_factory.mktemp("features") / "f.npz"
    split = np.array(["train"] * 20 + ["val"] * 5 + ["test"] * 5)
    np.savez(path, audio=z @ rng.normal(size=(6, 8)), video=z, split=split, speaker=np.arange(30) % 5)
    return path


def test_a_run_that_stopped_before_its_first_step_leaves_the_folder_free(features, shell, tmp_path: Path) -> None:
    for setting in ("batch_size=0", "learning_rate=nan", "warmup=2", "epochs=-1"):
        got = shell("train", features, "--out", tmp_path / "run", "--set", setting, "--json")
        assert (got.status, got.lines[-1]["code"]) == (2, "E-CONFIG")
        assert setting.partition("=")[0] in got.err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text("1\n")
    assert shell("train", features, "--system", "cca", "--out", tmp_path / "run", "--json").status == 0


def test_what_cannot_be_written_is_one_line(features, shell, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = tmp_path / "run"
    got = shell("train", features, "--system", "cca", "--out", tmp_path / "file" / "run", "--json", "--quiet")
    assert (got.status, got.lines[-1]["code"], got.err.count("\n")) == (2, "E-CONFIG", 1)
    assert shell("train", features, "--system", "cca", "--out", run).status == 0
    got = shell("evaluate", run, features, "--report", tmp_path, "--json")
    assert (got.status, got.lines[-1]["code"]) == (2, "E-CONFIG")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_data_of_another_shape_are_refused(main_path, features, shell, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert shell("train", features, "--system", "cca", "--out", run).status == 0
    arrays = dict(np.load(features))
    np.savez(tmp_path / "thin.npz", **{**arrays, "audio": arrays["audio"][:, :1]})  # would broadcast
    for model, data, code in (
        (run, tmp_path / "thin.npz", "E-FEATURE"),
        (run, main_path.clips, "E-CAPABILITY"),
        (main_path.run, features, "E-CAPABILITY"),
    ):
        got = shell("evaluate", model, data, "--json")
        assert (got.status, got.lines[-1]["code"]) == (2, code)


def test_arguments_that_make_no_sense_in_python(features, tmp_path: Path) -> None:
    splits = avcl.load_data(features)
    arrays = dict(np.load(features))
    np.savez(tmp_path / "thin.npz", **{**arrays, "audio": arrays["audio"][:, :1]})
    for system in ("cca", "infonce"):
        with pytest.raises(FeatureError, match="made for features"):
            avcl.train(system, splits.train, val=avcl.load_data(tmp_path / "thin.npz").val)
    with pytest.raises(ConfigError, match="int"):
        avcl.train("cca", 5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tets"):
        avcl.evaluate(avcl.train("cca", splits), splits, split="tets")


def test_a_split_that_the_run_overrode_is_not_scored_on_rows_it_was_trained_on(features, tmp_path: Path) -> None:
    splits = avcl.load_data(features, split_by="speaker")
    model = avcl.train("cca", splits)
    report = avcl.evaluate(model, features)  # the file's own test rows were trained on
    assert report.data == splits.test.fingerprint
    plain = avcl.load_data(features)
    assert avcl.evaluate(avcl.train("cca", plain), features).data == plain.test.fingerprint


def test_several_files_of_which_none_can_be_read(main_path, shell, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_text("no media")
    clip = sorted(main_path.clips.glob("*.webm"))[0]
    for verb in (("probe",), ("embed", main_path.run)):
        assert shell(*verb, tmp_path / "broken.mp4", tmp_path / "gone.mp4", "--json").status == 4
        assert shell(*verb, tmp_path / "broken.mp4", clip, "--json").status == 0


def test_media_that_moved(main_path, shell, tmp_path: Path) -> None:
    clips = sorted(main_path.clips.glob("*.webm"))[:2]
    (tmp_path / "old").mkdir()
    for clip in clips:
        (tmp_path / "old" / clip.name).write_bytes(clip.read_bytes())
    assert shell("index", "build", tmp_path / "old", "--model", main_path.run, "--out", tmp_path / "i").status == 0
    (tmp_path / "old").rename(tmp_path / "new")
    got = shell("index", "update", tmp_path / "i", "--json")
    assert got.status == 4
    assert "--media" in got.lines[-1]["hint"]
    got = shell("index", "build", tmp_path / "new", "--model", main_path.run, "--out", tmp_path / "i", "--json")
    assert got.status == 2
    assert "--media" in got.lines[-1]["hint"]
    [line] = shell("index", "update", tmp_path / "i", "--media", tmp_path / "new", "--json").lines
    assert (line["unchanged"], line["new"]) == (2, 0)
    assert shell("index", "update", tmp_path / "i", "--json").status == 0


def test_silence_and_a_start_beyond_the_end(main_path, shell, tmp_path: Path, caplog) -> None:
    import torch

    from avcl.media import write_audio

    write_audio(tmp_path / "silent.wav", torch.zeros(64_000, 1), 16_000)
    got = shell("search", main_path.index, "--audio", tmp_path / "silent.wav", "-k", 1, "--json")
    assert (got.status, len(got.lines)) == (0, 1)
    assert "E-SILENT" in caplog.text
    got = shell("search", main_path.index, "--audio", tmp_path / "silent.wav", "--start", 9, "--json")
    assert (got.status, got.lines[-1]["code"]) == (2, "E-CONFIG")
    assert got.lines[-1]["file"].endswith("silent.wav")
    assert shell("search", main_path.index, "--audio", tmp_path / "silent.wav", "--start", -1, "--json").status == 2


def test_names_that_list_shows_are_those_that_describe_and_layout_take(shell) -> None:
    from avcl.catalog import FOLDERS
    from avcl.data.loading import LAYOUTS

    assert set(FOLDERS) == set(LAYOUTS) - {"auto"}
    assert shell("describe", "world:sync", "--json").lines[0]["name"] == "world:sync"
    assert len(dir(avcl)) == len(set(dir(avcl)))
    assert "needs a verb" in shell("index", "--json").err


def test_a_reader_that_goes_away_gets_no_traceback() -> None:
    code = "import sys; from avcl import cli; sys.exit(cli.run(['describe', 'nothing', '--json']))"
    done = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.stdout is not None
    assert done.stderr is not None
    done.stdout.close()
    err = done.stderr.read()
    done.stderr.close()
    assert done.wait() == 2
    assert err.count("\n") == 1


def test_embed_arrays(main_path, features) -> None:
    model = avcl.load(main_path.run)
    clip = avcl.load_data(main_path.clips).all.configure(model.inputs).clip(0)
    for name in ("audio", "video"):
        one = model.embed_clips([clip], name)[0]
        data = clip.streams[name].data
        np.testing.assert_allclose(model.embed(**{name: data})[0], one, atol=1e-5)  # [1, T, ...]
        np.testing.assert_allclose(model.embed(**{name: data[0].numpy()})[0], one, atol=1e-5)  # [T, ...]: one clip
    for bad in (np.zeros((4, 3)), np.array(["a"]), np.full((8, 1), np.nan)):
        with pytest.raises(FeatureError):
            model.embed(audio=bad)


def test_embed_words(tmp_path: Path) -> None:
    words = np.array([f"picture {i % 5} of {i}" for i in range(24)])
    np.savez(tmp_path / "t.npz", video=np.random.default_rng(0).normal(size=(24, 4)), text=words)
    splits = avcl.load_data(tmp_path / "t.npz")
    model = avcl.train("cca", splits)
    np.testing.assert_allclose(
        model.embed(text=str(words[3])), model.embed_clips([splits.all.clip(3)], "text")[0], atol=1e-6
    )


@pytest.mark.parametrize(
    "setting", ["temperature=0", "steps=0", "frames=0", "timing=3", "width=0", "dropout=2", "size=0"]
)
def test_settings_out_of_range_are_refused(main_path, shell, tmp_path: Path, setting: str) -> None:
    got = shell("train", main_path.clips, "--out", tmp_path / "run", "--set", setting, "--json")
    assert (got.status, got.lines[-1]["code"]) == (2, "E-CONFIG")
    assert setting.split("=")[0] in got.err


def test_one_modality_is_not_enough(shell, tmp_path: Path) -> None:
    from avcl.media import write_audio

    (tmp_path / "sounds").mkdir()
    for i in range(4):
        write_audio(tmp_path / "sounds" / f"{i}.wav", np.full((8000, 1), 0.1 * (i + 1), np.float32), 8000)
    got = shell("train", tmp_path / "sounds", "--out", tmp_path / "run", "--json")
    assert (got.status, got.lines[-1]["code"]) == (2, "E-DATA")
    assert "audio" in got.err
