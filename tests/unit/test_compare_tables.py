"""Statistics and tables of a comparison, from runs made by hand; no process is started."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from avcl.comparison.page import write_comparison_html
from avcl.comparison.plan import Plan
from avcl.comparison.published import PUBLISHED, published
from avcl.comparison.runs import Run, read_run
from avcl.comparison.statistics import standings
from avcl.comparison.tables import csv_table, escape_latex, latex_table, markdown_table, text_table
from avcl.errors import ConfigError, FeatureError, StoreError
from avcl.metrics import holm, sign_flip_test

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
N, DIRECTIONS = 60, ("audio_to_video", "video_to_audio")
GROUPS = tuple(i // 2 for i in range(N))


def made(system: str, seed: int, level: float, **more: object) -> Run:
    """A run whose queries have about this average precision; of every system the same query is hard."""
    hard = np.random.default_rng(0).uniform(-0.2, 0.2, (2, N))
    noise = np.random.default_rng([seed, *system.encode()]).normal(0, 0.02, (2, N))
    ap = np.clip(level + hard + noise, 0, 1)
    queries = {d: {"rows": list(range(N)), "ap": row.tolist()} for d, row in zip(DIRECTIONS, ap, strict=True)}
    scores = {d: {"R@1": 0.5, "R@10": 0.7, "mAP": float(row.mean())} for d, row in zip(DIRECTIONS, ap, strict=True)}
    mean = {"R@1": 0.5, "R@10": 0.7, "mAP": float(ap.mean())}
    blind = dict.fromkeys(("R@1", "R@10", "mAP"), 0.1)
    curve = {"k": [1, 10, N], "precision": [0.9, level, 0.1], "recall": [0.05, 0.4, 1.0]}
    known = {
        "scores": {**scores, "mean": mean}, "chance": dict.fromkeys((*DIRECTIONS, "mean"), blind), "params": 1234567,
        "train_s": 2.0 + seed, "embed_ms": 0.25, "ended": "epochs", "epochs": 3, "queries": queries, "groups": GROUPS,
        "items": "rows", "per_class": {c: {"queries": 15.0, "mAP": level} for c in ("rain", "50% & more", "<b>x</b>")},
        "curves": dict.fromkeys(DIRECTIONS, curve),
    }  # fmt: skip
    return Run(system, seed, "ok", **{**known, **more})  # type: ignore[arg-type]


def of(levels: dict[str, float], seeds: int = 2) -> list[Run]:
    return [made(name, seed, level) for name, level in levels.items() for seed in range(seeds)]


def test_p_is_that_of_the_queries_averaged_over_seeds_by_group() -> None:
    runs = of({"cca": 0.4, "infonce": 0.41, "triplet": 0.5})
    table = standings(runs)
    assert table.baseline == "cca"
    assert [row.system for row in table.rows] == ["triplet", "infonce", "cca"]

    def values(name: str) -> np.ndarray:
        own = [np.concatenate([r.queries[d]["ap"] for d in DIRECTIONS]) for r in runs if r.system == name]
        return np.mean(own, axis=0)

    groups, weights = np.tile(GROUPS, 2), np.full(2 * N, 1 / (2 * N))
    raw = [sign_flip_test(values(n) - values("cca"), groups=groups, weights=weights) for n in ("infonce", "triplet")]
    rows = {row.system: row for row in table.rows}
    assert (rows["infonce"].p_raw, rows["triplet"].p_raw) == pytest.approx(tuple(raw))
    assert (rows["infonce"].p, rows["triplet"].p) == pytest.approx(holm(raw))
    assert rows["cca"].p is None
    assert rows["triplet"].difference == pytest.approx(rows["triplet"].mean - rows["cca"].mean)
    low, high = rows["triplet"].interval or (1, 0)
    assert low < rows["triplet"].mean < high


def test_mean_and_spread_over_seeds() -> None:
    [row] = standings(of({"cca": 0.4}, seeds=3)).rows
    each = [r.scores["mean"]["mAP"] for r in of({"cca": 0.4}, seeds=3)]
    assert row.scores["mean"]["mAP"] == pytest.approx((np.mean(each), np.std(each, ddof=1)))
    assert row.train_s == pytest.approx((3.0, 1.0))
    [row] = standings(of({"cca": 0.4}, seeds=1)).rows
    assert row.scores["mean"]["mAP"].std is None


def test_the_best_is_marked_only_where_it_is_significant() -> None:
    clear = standings(of({"cca": 0.3, "infonce": 0.4, "triplet": 0.6}))
    assert [row.system for row in clear.rows if row.best] == ["triplet"]
    assert r"\textbf{triplet}" in latex_table(clear, "class")
    assert "| **triplet** |" in markdown_table(clear, "class")
    assert "triplet *" in text_table(clear, "class")
    twins = [
        made("cca", 0, 0.3),
        made("infonce", 0, 0.5),
        made("triplet", 0, 0.5, queries=made("infonce", 0, 0.5).queries),
    ]
    close = standings(twins)
    assert not any(row.best for row in close.rows)
    assert "none is marked" in text_table(close, "class")
    assert r"\textbf" not in latex_table(close, "class")


def test_failed_and_unfit_systems_stand_below_and_change_nothing() -> None:
    good = of({"cca": 0.4, "infonce": 0.5})
    bad = [
        Run.without_result("triplet", 0, "failed", FeatureError("50% of <b>rows</b> & more_so are #1 {bad} ~^\\.")),
        Run.without_result("kcca", 0, "n/a", ConfigError("needs text.")),
        Run.without_result("infonce", 2, "failed", FeatureError("no.")),
    ]
    table, alone = standings([*good, *bad]), standings(good)
    assert [row.system for row in table.rows] == ["infonce", "cca", "triplet", "kcca"]
    assert [row.state for row in table.rows] == ["ok", "ok", "failed", "n/a"]
    assert (table.rows[0].p, table.rows[0].mean) == (alone.rows[0].p, alone.rows[0].mean)
    assert (table.rows[0].ok, table.rows[0].seeds) == (2, 3)
    for text in (text_table(table, "class"), markdown_table(table, "class"), latex_table(table, "class")):
        assert "2 of 3 seeds" in text
        assert "E-FEATURE" in text
    nothing = standings(bad[:2])
    assert text_table(nothing, "class").count("\n") >= 2
    assert latex_table(nothing, "class").count("multicolumn") == 2
    assert list(csv.reader(io.StringIO(csv_table(nothing))))


def test_a_baseline_without_a_result_and_one_that_is_unknown() -> None:
    runs = [*of({"infonce": 0.5, "triplet": 0.6}), Run.without_result("cca", 0, "failed", FeatureError("no."))]
    table = standings(runs)
    assert all(row.p is None for row in table.rows)
    assert "nothing was tested" in text_table(table, "class")
    assert standings(runs, baseline="infonce").rows[0].p is not None
    with pytest.raises(ConfigError):
        standings(runs, baseline="kcca")


def test_systems_on_other_rows_are_not_tested() -> None:
    runs = [*of({"cca": 0.4, "infonce": 0.5}, seeds=1), made("triplet", 0, 0.6, items="others")]
    table = standings(runs)
    assert table.not_compared == ("triplet",)
    assert table.rows[0].p is None
    assert "other rows" in text_table(table, "class")


def test_latex_is_escaped() -> None:
    assert escape_latex("a_b & 5% #1 $x$ {y} ~ ^ \\ a→b ±1") == (
        r"a\_b \& 5\% \#1 \$x\$ \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{} a$\rightarrow$b $\pm$1"
    )
    bad = Run.without_result("my_system", 0, "failed", FeatureError("50% & more_so {x} #1."))
    text = latex_table(standings([*of({"cca": 0.4}), bad]), "class")
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert r"my\_system" in text
    assert r"50\% \& more\_so \{x\} \#1." in text
    assert not any(re.search(r"(?<!\\)[%#]", line) for line in body)
    columns = len(re.search(r"begin\{tabular\}\{(\w+)\}", text)[1])  # type: ignore[index]
    for line in body:
        if line.endswith(r"\\") and "multicolumn" not in line:
            assert len(re.findall(r"(?<!\\)&", line)) == columns - 1


def test_csv_has_every_figure() -> None:
    table = standings(of({"cca": 0.4, "infonce": 0.5}))
    rows = list(csv.DictReader(io.StringIO(csv_table(table))))
    assert [row["system"] for row in rows] == ["infonce", "cca"]
    assert float(rows[0]["mean.mAP"]) == pytest.approx(table.rows[0].mean)
    assert float(rows[0]["p_holm"]) == pytest.approx(table.rows[0].p)
    assert rows[1]["p_holm"] == ""
    assert {"audio_to_video.R@1", "video_to_audio.mAP.std", "params", "train_s", "embed_ms"} <= set(rows[0])


def test_rank_correlation_with_the_papers_order() -> None:
    names = list(PUBLISHED)
    rising = standings(of({name: 0.3 + 0.1 * i for i, name in enumerate(names)}, seeds=1))
    assert rising.order is not None
    assert rising.order.rho == pytest.approx(1.0)
    assert -1 <= rising.order.low <= rising.order.high <= 1
    falling = standings(of({name: 0.8 - 0.1 * i for i, name in enumerate(names)}, seeds=1))
    assert falling.order is not None
    assert falling.order.rho == pytest.approx(-1.0)
    unsure = standings(of(dict.fromkeys(names, 0.5), seeds=1))
    assert unsure.order is not None
    assert unsure.order.high - unsure.order.low > 0.2
    assert standings(of({"cca": 0.4, "c_cca": 0.5})).order is None


def test_what_is_published_is_in_the_papers_order_and_the_cards() -> None:
    values = [p.value for p in PUBLISHED.values()]
    assert values == sorted(values)
    assert all(0 < p.value < 1 and p.source for p in PUBLISHED.values())
    assert list(published(["zeng2018_s_dcca", "cca", "infonce"])) == ["cca", "zeng2018_s_dcca"]
    assert list(published(["zeng2018_s_dcca", "c_dcca"])) == ["c_dcca"]


def test_a_run_is_a_file_and_a_line(tmp_path: Path) -> None:
    run = made("cca", 3, 0.4, scores={d: {"mAP": float("nan")} for d in (*DIRECTIONS, "mean")})
    run.write(tmp_path)
    found = read_run(tmp_path, "cca", 3)
    assert found is not None
    assert found.groups == GROUPS
    assert found.scores["mean"]["mAP"] is None
    assert read_run(tmp_path, "cca", 4) is None
    line = Run.without_result("kcca", 1, "failed", ConfigError("no.")).line(DIRECTIONS)
    assert {"system", "seed", *DIRECTIONS, "mean", "params", "train_s", "embed_ms", "state", "error"} <= set(line)
    assert json.loads(json.dumps(line))["error"]["code"] == "E-CONFIG"
    (tmp_path / "runs" / "cca-3.json").write_text("{")
    with pytest.raises(StoreError):
        read_run(tmp_path, "cca", 3)
    (tmp_path / "runs" / "cca-3.json").write_text('{"system": "infonce", "seed": 3, "state": "ok"}')
    with pytest.raises(StoreError):
        read_run(tmp_path, "cca", 3)


def page(folder: Path) -> Path:
    names = list(PUBLISHED)
    bad = Run.without_result("kcca", 0, "failed", FeatureError("<script>alert(1)</script> & more."))
    runs = [*of({name: 0.3 + 0.08 * i for i, name in enumerate(names)}), bad]
    about = {"data": "<b>features</b>.npz", "counts": {"train": 1, "val": 2, "test": 3}}
    write_comparison_html(folder / "report.html", standings(runs), runs, plan=Plan("x"), about=about, leaking=2)
    return folder / "report.html"


def test_the_page_is_whole_escaped_and_alone(tmp_path: Path) -> None:
    html = page(tmp_path).read_text()
    assert "<script>alert" not in html
    assert "<b>features" not in html
    assert "<b>x</b>" not in html
    assert "http://" not in re.sub(r'xmlns[:\w]*="[^"]*"', "", html)
    for part in ("chart ranking", "chart by-class", "chart curves", "chart order", "Spearman", "E-FEATURE", "2 groups"):
        assert part in html
    value = json.loads(re.search(r'id="report">(.*?)</script>', html, re.S)[1])  # type: ignore[index]
    assert next(row["system"] for row in value["table"]) == "zhang2021_vae_cca"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_has_nothing_to_complain_about(tmp_path: Path) -> None:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    command = [str(CHROMIUM), *flags, page(tmp_path).as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "Ranking" in done.stdout
    assert "CONSOLE" not in done.stderr
