"""The report page: self-contained, escaped, complete, quiet in a browser; and the Report as JSON."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from avcl.data.dataset import Data
from avcl.data.predictions import Predictions
from avcl.errors import MissingFile, NotMedia, StoreError
from avcl.media import write_video
from avcl.report import read_json, write_html, write_json
from avcl.report.gallery import Media
from avcl.tasks.retrieval import Retrieval
from avcl.types import Clip, Report, Source, Stream

HOSTILE = "<script>alert(1)</script>\"'&$x$ ${y} .webm"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class TinyClips(Data):
    """Moving noise with a beep, in memory; the last row cannot be decoded."""

    kind = "media"
    modalities = ("audio", "video")
    labels = ("bell", HOSTILE)
    skipped: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, n: int, source: Path | None = None):
        self.n = self.n_official = n
        self.source = source

    @property
    def ids(self):
        return tuple(f"c{i}" if i else HOSTILE for i in range(self.n))

    @property
    def targets(self):
        return tuple(i % 2 for i in range(self.n))

    @property
    def groups(self):
        return self.ids

    @property
    def spec(self):
        raise NotImplementedError

    @property
    def fingerprint(self):
        return "f"

    def subset(self, indices, *, split=None):
        return self

    def clip(self, index, *, epoch=0, view=0):
        if index == self.n - 1:
            raise NotMedia("cannot be decoded.", file=f"{HOSTILE}.mp4")
        generator = torch.Generator().manual_seed(index)
        video = torch.randint(0, 255, (1, 8, 3, 32, 48), dtype=torch.uint8, generator=generator)
        wave = torch.sin(torch.arange(8000) / 8000 * 6.28 * 440 * (index + 1))[None, :, None] * 0.3
        streams = {
            "video": Stream(video, torch.ones(1, 8, dtype=torch.bool), 8.0),
            "audio": Stream(wave, torch.ones(1, 8000, dtype=torch.bool), 8000.0),
        }
        return Clip(
            self.ids[index], streams, index=index, source=None if self.source is None else Source(str(self.source))
        )


def made(n: int = 12, relevance: str = "pair", **more) -> tuple[Report, Predictions]:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(n, 6))
    arrays = {m: (base + 0.7 * rng.normal(size=base.shape)).astype(np.float32) for m in ("audio", "video")}
    data = TinyClips(n)
    labels = np.array(data.targets)
    found = Predictions(data.ids, labels, data.groups, arrays, label_names=data.labels, **more)
    scored = Retrieval(relevance=relevance, bootstrap=50).score(found)
    return Report(system=HOSTILE, data="d", untrained=scored.chance, skipped={"E-DECODE": 2}, **scored.parts()), found


HISTORY = [
    {"event": "step", "step": 1, "losses": {"nce": 4.0}},
    {"event": "step", "step": 2, "losses": {"nce": 3.0}},
    {"event": "epoch", "epoch": 0, "step": 2, "losses": {"nce": 3.5}, "validation": 0.1},
    {"event": "epoch", "epoch": 1, "step": 4, "losses": {"nce": 2.5}, "validation": 0.2},
]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A page of everything: both protocols, history, media, a hostile name, a clip that cannot be decoded."""
    folder = tmp_path_factory.mktemp("report")
    source = folder / HOSTILE.replace("/", "_")
    write_video(source, np.zeros((8, 32, 48, 3), np.uint8), fps=8)
    (by_pair, found), (by_class, _) = made(), made(relevance="class")
    data = TinyClips(12, source)
    write_html(by_pair, folder / "report.html", predictions=found, data=data, history=HISTORY, also=[by_class])
    return folder / "report.html"


class Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def read(path: Path) -> tuple[str, list[tuple[str, dict[str, str | None]]]]:
    text = path.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    return text, reader.tags


def test_the_page_needs_nothing_from_outside(page):
    text, tags = read(page)
    for tag, attributes in tags:
        for name in ("src", "data", "srcset", "poster", "action"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
        if tag == "a":
            assert not re.match(r"[a-z]+:|//|/", attributes["href"] or "")
        assert not any(name.startswith("on") for name in attributes), tag
    assert [a for t, a in tags if t == "script"] == [{"type": "application/json", "id": "report"}]
    assert "url(http" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_names_are_text_wherever_they_appear(page):
    text, tags = read(page)
    assert "<script>alert" not in text
    assert sum(t == "script" for t, _ in tags) == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    links = [a["href"] for t, a in tags if t == "a"]
    assert links
    assert not any(c in link for link in links for c in "<>\"'$ &")


def test_the_page_holds_numbers_with_interval_and_chance_plots_and_players(page):
    text, tags = read(page)
    report = made()[0]
    embedded = re.search(r'<script type="application/json" id="report">(.*?)</script>', text, re.DOTALL)
    assert json.loads(embedded[1])["mean"] == pytest.approx(report.scores["mean"])
    low, high = report.interval["mean"]["R@1"]
    assert f"{100 * low:.1f} to {100 * high:.1f}" in text
    charts = [a["class"] for t, a in tags if t == "svg"]
    assert charts == [f"chart {name}" for name in ("recall", "histogram", "classes", "classes", "training", "map")]
    assert all(a["role"] == "img" and a["aria-label"] for t, a in tags if t == "svg")
    assert all(a["alt"] for t, a in tags if t == "img")
    assert sum(t == "video" for t, _ in tags) >= 6
    assert sum(t == "audio" for t, _ in tags) >= 6
    assert "E-DECODE" in text  # the clip that cannot be decoded, and the skipped rows
    assert re.findall(r'class="warn">([^<]*)', text)[0] == "Rows that could not be read: E-DECODE 2."
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_the_page_is_the_same_when_it_is_written_again(page, tmp_path):
    report, found = made()
    for name in ("a.html", "b.html"):
        write_html(report, tmp_path / name, predictions=found, history=HISTORY)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_without_media_the_gallery_is_a_table_of_ids(tmp_path):
    report, found = made()
    write_html(report, tmp_path / "r.html", predictions=found, projection="tsne", title="A <b>title</b>")
    text, tags = read(tmp_path / "r.html")
    assert "<h1>A &lt;b&gt;title&lt;/b&gt;</h1>" in text
    assert sum(a.get("class") == "ids" for t, a in tags if t == "table") == 2
    assert not any(t in ("img", "video", "audio") for t, _ in tags)
    write_html(report, tmp_path / "bare.html")
    assert [a["class"] for t, a in read(tmp_path / "bare.html")[1] if t == "svg"] == ["chart classes"]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_very_small_and_collapsed_results_still_make_a_page(tmp_path, n):
    flat = {m: np.ones((n, 4), np.float32) for m in ("audio", "video")}
    ids = tuple(f"c{i}" for i in range(n))
    found = Predictions(ids, np.full(n, -1), ids, flat)
    for relevance in ("pair", "group"):
        scored = Retrieval(relevance=relevance, bootstrap=5).score(found)
        write_html(Report(system="s", data="d", **scored.parts()), tmp_path / "r.html", predictions=found)
        assert "tied" in read(tmp_path / "r.html")[0] or n == 1
    scored = Retrieval(bootstrap=0).score(found)  # without intervals
    write_html(Report(system="s", data="d", **scored.parts()), tmp_path / "r.html", predictions=found)


def test_the_budget_ends_players_but_not_links(tmp_path, monkeypatch):
    source = tmp_path / "clip.webm"
    write_video(source, np.zeros((8, 32, 48, 3), np.uint8), fps=8)
    media = Media(TinyClips(4, source), tmp_path)
    assert "<video" in media.show("c1", "video")
    media.left = 10
    shown = media.show("c2", "video")
    assert "<video" not in shown
    assert 'href="clip.webm"' in shown
    monkeypatch.setattr("avcl.report.gallery.FILE_BYTES", 10)
    assert "<audio" not in Media(TinyClips(4, source), tmp_path).show("c1", "audio")
    assert "not in this data set" in media.show("elsewhere", "video")


def test_report_as_json_round_trips(tmp_path):
    report = made(relevance="class")[0]
    write_json(report, tmp_path / "r.json")
    again = read_json(tmp_path / "r.json")
    assert again.as_dict() == json.loads(json.dumps(report.as_dict()))
    write_json(replace(report, seconds=float("nan")), tmp_path / "nan.json")
    assert json.loads((tmp_path / "nan.json").read_text())["seconds"] is None
    with pytest.raises(MissingFile):
        read_json(tmp_path / "none.json")
    for text in ("", "[]", "{}", '{"interval": {}}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(StoreError):
            read_json(tmp_path / "bad.json")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_page_opens_in_chromium_without_a_console_message(page, tmp_path):
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --enable-logging=stderr --v=0 --virtual-time-budget=4000"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "<h1>" in ran.stdout
    assert not [line for line in ran.stderr.splitlines() if "CONSOLE" in line]

    noisy = tmp_path / "noisy.html"  # the same look at a page that does ask for something from outside
    noisy.write_text(page.read_text(encoding="utf-8").replace("</main>", '<img src="http://127.0.0.1:9/x.png"></main>'))
    ran = subprocess.run([*command[:-1], noisy.as_uri()], capture_output=True, text=True, timeout=120, check=False)
    assert [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
