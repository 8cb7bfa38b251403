"""Real comparisons on a small feature file: fair, each job in its own process, resumable, and spoiled by nobody."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from compare_toys import QUICK, broken_package, feature_file

import avcl
from avcl import api
from avcl.comparison import tuning
from avcl.comparison.job import perform, unfit
from avcl.comparison.plan import Plan, chosen
from avcl.data import load_data
from avcl.discover import system_class
from avcl.errors import ConfigError, DataError, ExistsError, ExtraError, LabelError, LockedError, ProtocolError
from avcl.files import Lock

SYSTEMS = "cca,infonce,zeng2018_s_dcca,chen2021_lvs,raises,dies,hungry"


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return feature_file(tmp_path_factory.mktemp("data") / "features.npz")


@pytest.fixture(scope="module")
def made(features: Path, tmp_path_factory: pytest.TempPathFactory):
    """One comparison of systems that work, do not fit, raise, are killed and need too much memory."""
    package = broken_package(
        tmp_path_factory.mktemp("package"),
        raises="raise ValueError('a bug of mine')",
        dies="os.kill(os.getpid(), signal.SIGKILL)",
        hungry="torch.zeros(10 * 2**28)",  # 10 GiB
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(package))
        out = tmp_path_factory.mktemp("out") / "comparison"
        yield avcl.compare(features, out=out, systems=SYSTEMS, seeds=1, settings=QUICK, memory=6, workers=2, budget=1)


def test_states_and_reasons(made) -> None:
    runs = {run.system: run for run in made.runs}
    assert list(runs) == SYSTEMS.split(",")
    assert {n: r.state for n, r in runs.items()} == {
        "cca": "ok", "infonce": "ok", "zeng2018_s_dcca": "ok", "chen2021_lvs": "n/a",
        "raises": "failed", "dies": "failed", "hungry": "failed",
    }  # fmt: skip
    assert runs["chen2021_lvs"].error["code"] == "E-CAPABILITY"
    assert {runs[n].error["code"] for n in ("raises", "dies", "hungry")} == {"E-WORKER"}
    assert "a bug of mine" in runs["raises"].why
    assert "a bug of mine" in (made.folder / "logs" / "raises-0.txt").read_text()
    assert "killed" in runs["dies"].why
    assert "more memory" in runs["hungry"].why


def test_what_is_measured(made) -> None:
    for run in made.runs[:3]:
        assert set(run.scores) == set(run.chance) == {"audio_to_video", "video_to_audio", "mean"}
        assert run.scores["mean"]["mAP"] > 1.3 * run.chance["mean"]["mAP"]
        assert run.params > 0
        assert run.train_s > 0
        assert run.embed_ms > 0
        assert run.items == made.runs[0].items
        assert len(run.queries["audio_to_video"]["ap"]) == len(run.groups) == 24
    cca, infonce, _ = made.runs[:3]
    assert cca.ended == "closed form"
    assert (infonce.ended, infonce.epochs) == ("epochs", 2)
    assert infonce.config["patience"] == 20
    rows = {row.system: row for row in made.table.rows}
    assert rows["infonce"].p is not None
    assert rows["cca"].p is None


def test_scores_are_those_of_evaluate(made, features: Path) -> None:
    data = avcl.load_data(features)
    model = avcl.train("infonce", data.train, val=data.val, seed=0, settings={"epochs": 2}, select="class", workers=0)
    report = avcl.evaluate(model, data.test, relevance="class")
    assert report.scores["mean"]["mAP"] == pytest.approx(made.runs[1].scores["mean"]["mAP"], abs=1e-3)


def test_files_and_lines(made) -> None:
    names = {p.name for p in made.folder.iterdir()}
    assert {"table.txt", "table.md", "table.tex", "table.csv", "report.html", "results.jsonl", "runs"} <= names
    lines = [json.loads(line) for line in (made.folder / "results.jsonl").read_text().splitlines()]
    assert [line["system"] for line in lines] == SYSTEMS.split(",")
    for line in lines:
        assert {"system", "seed", "audio_to_video", "video_to_audio", "mean", "params", "train_s", "state"} <= set(line)
    assert lines[3]["mean"] == {}
    assert str(made) == (made.folder / "table.txt").read_text()


def test_a_rerun_does_only_what_is_missing(made, features: Path) -> None:
    files = {p.name: p.stat().st_mtime_ns for p in (made.folder / "runs").iterdir()}
    (made.folder / "runs" / "cca-0.json").unlink()
    again = avcl.compare(
        features, out=made.folder, systems="cca,infonce,zeng2018_s_dcca", seeds=1, settings=QUICK, budget=1
    )
    now = {p.name: p.stat().st_mtime_ns for p in (made.folder / "runs").iterdir()}
    assert {name for name in files if files[name] != now[name]} == {"cca-0.json"}
    assert again.runs[0].scores == made.runs[0].scores


@pytest.mark.parametrize("other", [{"budget": 2}, {"patience": 3}, {"relevance": "pair"}, {"settings": {}}])
def test_other_rules_are_refused(made, features: Path, other) -> None:
    how = {"systems": "cca", "seeds": 1, "settings": QUICK, "budget": 1} | other
    with pytest.raises(ProtocolError, match=next(iter(other))):
        avcl.compare(features, out=made.folder, **how)


def test_other_data_are_refused(made, tmp_path: Path) -> None:
    other = feature_file(tmp_path / "other.npz", seed=1)
    with pytest.raises(ProtocolError, match="data was"):
        avcl.compare(other, out=made.folder, systems="cca", seeds=1, settings=QUICK, budget=1)


def test_refusals_before_anything_runs(features: Path, tmp_path: Path) -> None:
    def refused(error: type[Exception], data: Path = features, out: str = "out", **how) -> None:
        with pytest.raises(error):
            avcl.compare(data, out=tmp_path / out, **{"systems": "cca", **how})
        assert not (tmp_path / "out").exists()

    refused(ConfigError, systems="cca,infonse")
    refused(ConfigError, systems="")
    refused(ConfigError, baseline="infonce")
    refused(ConfigError, settings={"infonce": {"epochs": 1}})
    refused(ConfigError, seeds=0)
    refused(LabelError, feature_file(tmp_path / "bare.npz", labels=False))
    refused(DataError, feature_file(tmp_path / "few.npz", n=5))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    refused(ExistsError, out="thesis")
    with Lock(tmp_path / "locked"), pytest.raises(LockedError):
        avcl.compare(features, out=tmp_path / "locked", systems="cca")


def test_settings_for_all_reach_those_that_know_them() -> None:
    plan = Plan("x", settings={"all": {"epochs": 2, "ridge": 0.5, "batch_size": 8}, "cca": {"epochs": 3}}, patience=7)
    known = (name for name in ("epochs", "batch_size", "patience"))
    assert plan.given("infonce", known) == {"patience": 7, "epochs": 2, "batch_size": 8}
    assert plan.given("cca", ("epochs", "ridge"))["epochs"] == 3


def test_all_are_those_that_embed() -> None:
    names = chosen("all")
    assert {"cca", "infonce", "zeng2018_s_dcca", "zeng2020_tnn_c_cca"} <= set(names)
    assert "zhao2018_sound_of_pixels" not in names
    assert chosen("infonce, cca,infonce") == ("infonce", "cca")


# ------------------------------------------------------------------------------------------- in this process: one job
def test_impossible_settings_fail_and_missing_inputs_do_not(features: Path, tmp_path: Path) -> None:
    train = load_data(features).train
    with pytest.raises(ConfigError, match="nothing"):
        unfit(system_class("infonce"), train, {"positives": "nothing"})
    assert unfit(system_class("infonce"), train, {}) is None
    assert unfit(system_class("zhao2018_sound_of_pixels"), train, {}).code == "E-CAPABILITY"


def test_a_system_that_needs_labels_is_not_applicable_without_them(tmp_path: Path) -> None:
    bare = feature_file(tmp_path / "bare.npz", labels=False)
    run = perform("zeng2020_tnn_c_cca", 0, Plan(str(bare), relevance="pair", settings=QUICK))
    assert run.state == "n/a"
    assert "classes" in run.why
    assert perform("infonce", 0, Plan(str(bare), relevance="pair", settings=QUICK)).state == "ok"


def test_budget_and_patience_end_training(features: Path) -> None:
    plan = Plan(str(features), settings={"all": {"epochs": 400, "learning_rate": 0.0}}, patience=2)
    run = perform("infonce", 0, plan)
    assert (run.ended, run.epochs) == ("patience", 3)
    assert perform("infonce", 0, replace(plan, patience=0, budget=1e-6)).ended == "budget"


# ------------------------------------------------------------------------------------------------------------- tuning
def test_the_space_follows_the_systems_own_values() -> None:
    space = tuning.space(system_class("infonce"), {})
    assert set(space) == {"learning_rate", "weight_decay", "epochs"}
    assert space["learning_rate"] == pytest.approx((2e-4, 2e-2, False))
    assert space["epochs"] == (10, 40, True)
    assert set(tuning.space(system_class("infonce"), {"epochs": 3})) == {"learning_rate", "weight_decay"}
    assert set(tuning.space(system_class("cca"), {})) == {"ridge", "components"}


def test_tuning_without_optuna_names_the_extra(features: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ExtraError) as caught:
        avcl.compare(features, out=tmp_path / "out", systems="cca", tune=2)
    assert "avcl[tune]" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_tuning_never_looks_at_the_test_split(features: Path, monkeypatch) -> None:
    pytest.importorskip("optuna")
    plan = Plan(str(features), settings=QUICK, tune=3)
    seen = []
    real = api.train

    def spied(cls, data, *, val, **how):
        seen.append((data.fingerprint, val.fingerprint, how["settings"]))
        return real(cls, data, val=val, **how)

    monkeypatch.setattr(api, "train", spied)
    run = perform("infonce", 0, plan)
    splits = load_data(features)
    assert {(t, v) for t, v, _ in seen} == {(splits.train.fingerprint, splits.val.fingerprint)}
    assert len(seen) == 3
    assert "learning_rate" not in seen[0][2]  # the system as it is comes first
    assert len({s.get("learning_rate") for _, _, s in seen}) == 3
    assert run.state == "ok"
    assert run.tune_s >= run.train_s
    assert perform("infonce", 0, plan).tuned == run.tuned
