"""AVE's annotation: files of the official form, what is refused, and the reference values of the real ones."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

import avcl
from avcl import discover
from avcl.data import FeatureData
from avcl.data.sets import ave
from avcl.errors import DataError, FeatureError, LabelError, LeakError, MissingFile
from avcl.media import write_video
from avcl.task import Outputs
from avcl.tasks.events import ORACLE, Events

LINES = [
    "Church bell&RUhOCu3LNXM&good&0&10",
    "Church bell&MH3m4AwEcRY&good&6&8",
    "Male speech, man speaking&-ccciEuH9FE&good&5&10",
    "Female speech, woman speaking&-ccciEuH9FE&good&0&5",
    "Mandolin&0IklLP7_kBw&good&4&10",
    "Frying (food)&VWi2ENBuTbw&good&0&0",
]


def written(folder: Path, lines=LINES, train=(0, 1, 2), val=(3,), test=(4, 5), name="order") -> Path:
    """A folder of the official form."""
    (folder / "Annotations.txt").write_text("\n".join(lines) + "\n")
    for split, order in (("train", train), ("val", val), ("test", test)):
        with h5py.File(folder / f"{split}_{name}.h5", "w") as file:
            file["order"] = np.array(order, np.int64)
    return folder


def test_lines_become_rows(tmp_path: Path) -> None:
    table = ave.read(written(tmp_path))
    assert [row.split for row in table.rows] == ["train", "train", "train", "val", "test", "test"]
    row = table.rows[1]
    assert (row.number, row.video, row.label, row.id) == (1, "MH3m4AwEcRY", 0, "0001-MH3m4AwEcRY")
    assert row.segments == (28,) * 6 + (0, 0) + (28, 28)
    assert table.segments("test").tolist() == [[28] * 4 + [27] * 6, [28] * 10]
    assert table.shared == {"-ccciEuH9FE": ("train", "val")}
    about = ave.describe(table)
    assert about["missing"] == {"train": 3336, "val": 401, "test": 400}
    assert about["background"]["test"] == pytest.approx(14 / 20)
    assert about["class everywhere"]["test"] == pytest.approx(6 / 20)
    assert (about["in no split"], about["videos in more than one split"]) == (0, 1)
    assert ave.describe()["official"] == {"train": 3339, "val": 402, "test": 402}


def test_a_heading_and_lines_of_no_split(tmp_path: Path) -> None:
    head = ["Category&VideoID&Quality&StartTime&EndTime", *LINES]
    table = ave.read(written(tmp_path, head, test=(4,)))
    assert [row.split for row in table.rows] == ["train", "train", "train", "val", "test", ""]
    assert ave.describe(table)["in no split"] == 1


@pytest.mark.parametrize(
    ("line", "error", "words"),
    [
        ("Chruch bell&a&good&0&10", LabelError, 'Did you mean "Church bell"'),
        ("Church bell&a&good&0", DataError, "is not Category&VideoID"),
        ("Church bell&&good&0&10", DataError, "is not Category&VideoID"),
        ("Church bell&a&good&8&4", DataError, "8 to 4"),
        ("Church bell&a&good&0&11", DataError, "0 to 11"),
        ("Church bell&a&good&x&4", DataError, "x to 4"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path: Path, line: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        ave.read(written(tmp_path, [LINES[0], line, *LINES[2:]]))
    assert "Annotations.txt:2" in str(caught.value)
    assert words in str(caught.value)


def test_orders_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(MissingFile):
        ave.read(tmp_path)
    with pytest.raises(DataError, match="names line 9, but there are 6"):
        ave.read(written(tmp_path, test=(9,)))
    with pytest.raises(DataError, match="line 0 is in train and in test"):
        ave.read(written(tmp_path, test=(0,)))
    (tmp_path / "val_order.h5").write_bytes(b"nothing")
    with pytest.raises(FeatureError):
        ave.read(tmp_path)
    (tmp_path / "val_order.h5").unlink()
    with pytest.raises(MissingFile):
        ave.read(tmp_path)
    written(tmp_path)
    with h5py.File(tmp_path / "test_order.h5", "w") as file:
        file["other"] = np.arange(2)
    with pytest.raises(DataError, match='no numbers of lines under "order"'):
        ave.read(tmp_path)


def test_it_is_found_by_name() -> None:
    assert "ave" in discover.data_names()
    assert discover.data_module("ave") is ave


def test_videos_of_a_folder_and_their_segments(tmp_path: Path) -> None:
    table = ave.read(written(tmp_path))
    (tmp_path / "videos").mkdir()
    for name in ("RUhOCu3LNXM", "-ccciEuH9FE", "0IklLP7_kBw"):
        rng = np.random.default_rng(len(name))
        picture, sound = rng.integers(0, 255, (20, 32, 32, 3), dtype=np.uint8), rng.normal(size=(80_000, 1)) * 0.1
        path = tmp_path / "videos" / f"{name}.mp4"
        write_video(path, picture, sound.astype(np.float32), fps=2, sample_rate=8000)
    out = tmp_path / "manifest.csv"
    assert ave.manifest(table, tmp_path / "videos", out) == {"rows": 4, "missing": 2}
    with pytest.raises(LeakError):  # one video has a line in train and another in val, as in the official splits
        avcl.load_data(out)
    splits = avcl.load_data(out, allow_leak=True)
    assert (len(splits.train), len(splits.val), len(splits.test), splits.official) == (2, 1, 1, True)
    test = ave.labeled(splits.test, table).configure(avcl.types.Inputs(fps=2, size=(16, 16), window=10.0))
    clip = test.clip(0)
    assert clip.extras["segments"].tolist() == [28] * 4 + [27] * 6
    assert (clip.label, clip.group, test.targets, test.n_official) == (27, "0IklLP7_kBw", (27,), 2)
    assert test.subset([0]).n_official == 1
    assert test.spec.labels == ave.LABELS
    assert test.fingerprint != splits.test.fingerprint
    with pytest.raises(DataError, match="not one video"):
        ave.manifest(table, tmp_path / "nothing", out)


def test_labels_on_features(tmp_path: Path) -> None:
    """AVE's features come as arrays: [N, 10, 128] of sound, [N, 10, 7, 7, 512] of pictures (here narrow ones)."""
    table = ave.read(written(tmp_path))
    rng = np.random.default_rng(0)
    ids = [row.id for row in table.rows]
    arrays = {"audio": rng.normal(size=(6, 10, 4)), "video": rng.normal(size=(6, 10, 2, 2, 5)), "id": np.array(ids)}
    data = ave.labeled(FeatureData.from_arrays(arrays), table)
    settings = {"window": 10.0, "segment": 1.0, "epochs": 1, "batch_size": 3, "hidden": 4, "units": 4}
    model = avcl.train("tian2018_avel", data, settings=settings, workers=0)
    report = avcl.evaluate(model, data, task="events", protocol={"bootstrap": 10}, controls=True)
    assert report.baselines["background only"]["both"]["segment accuracy"] == pytest.approx(
        float(np.mean([s == 28 for row in table.rows for s in row.segments]))
    )
    with pytest.raises(DataError, match="is not annotated"):
        ave.labeled(FeatureData.from_arrays({**arrays, "id": np.array(list("abcdef"))}), table)


# ------------------------------------------------------------------------------------------------------- the real file
def test_reference_values_of_the_official_annotation(shared_data) -> None:
    folder = shared_data("annotations") / "ave"
    table = ave.read(folder)
    about = ave.describe(table)
    assert about["found"] == about["official"] == {"train": 3339, "val": 402, "test": 402}
    assert (sum(about["missing"].values()), about["in no split"]) == (0, 0)
    assert {k: round(v, 4) for k, v in about["background"].items()} == {"train": 0.1686, "val": 0.1821, "test": 0.1779}
    assert round(about["class everywhere"]["test"], 3) == 0.822
    assert about["event fills the video"] == {"train": 2231, "val": 258, "test": 261}
    assert about["videos in more than one split"] == 18  # 8 of them in train and test
    assert sum("test" in splits for splits in table.shared.values()) == 8


def test_classes_and_seconds_are_those_of_the_official_label_files(shared_data) -> None:
    folder = shared_data("annotations") / "ave"
    rows = ave.read(folder).rows
    with h5py.File(folder / "mil_labels.h5") as file:
        assert (file["avadataset"][:].argmax(1) == [row.label for row in rows]).all()
    with h5py.File(folder / "labels_closs.h5") as file:
        on = np.array([row.segments for row in rows]) != ave.BACKGROUND
        assert (file["avadataset"][:] == on).all()


def test_the_task_gives_the_published_shares(shared_data) -> None:
    """Background alone 17.8 %, the class at every second 82.2 %, a start drawn at random 20.8 % of the match split."""
    folder = shared_data("annotations") / "ave"
    truth = ave.read(folder).segments("test")
    ids = tuple(map(str, range(len(truth))))
    labels = [*ave.LABELS, "background"]
    task = Events(bootstrap=0)
    outputs = Outputs(ids, ids, {"segments": truth, "logits": np.eye(29)[truth]}, {"labels": labels})
    background = task.baselines(outputs)["background only"]
    assert task.score(background).scores["both"]["segment accuracy"] == (truth == 28).mean()
    assert round(float((truth == 28).mean()), 3) == 0.178
    assert round(task.score(outputs).scores[ORACLE]["segment accuracy"], 3) == 0.822
    match = ave.read(folder, splits="order_match").segments("test")
    assert len(match) == 402
    arrays = {"segments": match, "logits": np.eye(29)[match], "distance": np.zeros((402, 10, 10))}
    scores = task.score(Outputs(ids, ids, arrays, {"labels": labels}))
    assert round(scores.chance["audio to video"]["start accuracy"], 3) == 0.208
    assert scores.scores["audio to video"]["start accuracy"] == scores.chance["audio to video"]["start accuracy"]
