"""Feature files: the same rows from every format, every shape, every mistake named."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from scipy.io import savemat

from avcl.data import FeatureData, Loader, load_data, load_features
from avcl.errors import ConfigError, DataError, FeatureError, LabelError, LeakError, MissingFile
from avcl.types import StreamSpec

N = 12
RNG = np.random.default_rng(0)
ARRAYS = {
    "audio": RNG.normal(size=(N, 5)).astype(np.float32),
    "video": RNG.normal(size=(N, 4, 3)),
    "label": np.array(["dog", "cat", "owl"] * 4),
    "id": np.array([f"clip {i}" for i in range(N)]),
    "group": np.array([f"g{i // 2}" for i in range(N)]),
    "split": np.array(["train"] * 8 + ["val"] * 2 + ["test"] * 2),
}


def as_npz(folder: Path, arrays: dict) -> Path:
    np.savez(folder / "f.npz", **arrays)
    return folder / "f.npz"


def as_h5(folder: Path, arrays: dict) -> Path:
    with h5py.File(folder / "f.h5", "w") as file:
        for name, value in arrays.items():
            file[name] = value.astype(object) if value.dtype.kind == "U" else value
    return folder / "f.h5"


def as_mat(folder: Path, arrays: dict) -> Path:
    savemat(folder / "f.mat", arrays)  # strings become padded characters, [N] becomes [1, N]
    return folder / "f.mat"


def as_mat_cells(folder: Path, arrays: dict) -> Path:
    savemat(folder / "f.mat", {k: v.astype(object) if v.dtype.kind == "U" else v for k, v in arrays.items()})
    return folder / "f.mat"


def as_folder(folder: Path, arrays: dict) -> Path:
    for name, value in arrays.items():
        np.save(folder / f"{name}.npy", value)
    return folder


def as_folder_with_meta(folder: Path, arrays: dict) -> Path:
    for name in ("audio", "video", "text"):
        if name in arrays:
            np.save(folder / f"{name}.npy", arrays[name])
    columns = [name for name in arrays if name not in ("audio", "video", "text")]
    lines = [",".join(columns)] + [",".join(str(arrays[c][i]) for c in columns) for i in range(N)]
    (folder / "meta.csv").write_text("\n".join(lines) + "\n")
    return folder


WRITERS = [as_npz, as_h5, as_mat, as_mat_cells, as_folder, as_folder_with_meta]


@pytest.mark.parametrize("writer", WRITERS)
def test_the_same_rows_from_every_format(tmp_path: Path, writer) -> None:
    splits = load_data(writer(tmp_path, ARRAYS))
    data = splits.all
    assert splits.official
    assert data.modalities == ("audio", "video")
    assert data.ids == tuple(ARRAYS["id"])
    assert data.groups == tuple(ARRAYS["group"])
    assert data.labels == ("cat", "dog", "owl")
    assert data.targets == (1, 0, 2) * 4
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [8, 2, 2]
    assert splits.test.split == "test"
    assert data.fingerprint == FeatureData.from_arrays({k: v for k, v in ARRAYS.items() if k != "split"}).fingerprint
    clip = splits.test.clip(1)
    assert (clip.id, clip.index, clip.label, clip.group) == ("clip 11", 1, 2, "g5")
    torch.testing.assert_close(clip.streams["audio"].data, torch.from_numpy(ARRAYS["audio"][11])[None, None])
    torch.testing.assert_close(clip.streams["video"].data, torch.from_numpy(ARRAYS["video"][11]).float()[None])
    assert clip.streams["video"].mask.shape == (1, 4)
    assert clip.streams["video"].rate == 1.0
    assert data.spec.streams["audio"] == StreamSpec("features", (5,), 1.0)
    assert data.spec.streams["video"] == StreamSpec("features", (3,), 1.0)


def test_defaults_and_shapes(tmp_path: Path) -> None:
    arrays = {
        "audio": np.arange(N),
        "video": RNG.normal(size=(N, 2, 3, 3, 6)),
        "text": np.array(["a dog", "", "größe"] * 4),
        "rank": np.arange(N),
    }
    data = load_features(as_npz(tmp_path, arrays))
    assert data.ids == tuple(map(str, range(N)))
    assert data.groups == data.ids
    assert data.labels == ()
    assert set(data.targets) == {-1}
    assert data.official is None
    assert data.spec.streams["video"] == StreamSpec("map", (3, 3, 6), 1.0)
    assert data.spec.streams["text"] == StreamSpec("tokens", (), 1.0)
    streams = data.clip(2).streams
    assert streams["audio"].data.tolist() == [[[2.0]]]
    assert streams["video"].data.shape == (1, 2, 3, 3, 6)
    assert bytes(streams["text"].data[0].tolist()).decode() == "größe"
    assert not data.clip(1).streams["text"].mask.any()
    assert data.clip(0).label is None
    assert data.column("rank")[3] == "3"
    batch = next(iter(Loader(data, batch_size=3)))
    assert batch.text.data.shape == (3, 7)
    image = load_features(as_npz(tmp_path, {"audio": np.ones((N, 2)), "video": np.full((N, 8, 8, 1), 255, np.uint8)}))
    stream = image.clip(0).streams["video"]
    assert (stream.data.shape, stream.data.dtype, float(stream.data.max())) == ((1, 1, 8, 8, 1), torch.float32, 255.0)


def test_labels_as_numbers_sort_as_numbers(tmp_path: Path) -> None:
    arrays = {"audio": np.ones((N, 2)), "video": np.ones((N, 2)), "label": np.array([10, 2, -1] * 4)}
    for writer in (as_npz, as_h5, as_mat):
        data = load_features(writer(tmp_path, arrays))
        assert data.labels == ("2", "10")
        assert data.targets == (1, 0, -1) * 4
    floats = load_features(as_npz(tmp_path, {**arrays, "label": np.array([10.0, 2.0, np.nan] * 4)}))
    assert floats.targets == data.targets
    with pytest.raises(LabelError, match=r"label 2\.5 of row 1"):
        load_features(as_npz(tmp_path, {**arrays, "label": np.array([10, 2.5, 1] * 4)}))


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    audio = ARRAYS["audio"].copy()
    audio[3, 1], audio[7, 0] = np.nan, np.inf
    path = as_npz(tmp_path, {**ARRAYS, "audio": audio})
    with pytest.raises(FeatureError) as caught:
        load_data(path)
    assert caught.value.code == "E-FEATURE"
    assert "audio rows 3, 7: non-finite values" in str(caught.value)
    assert "2 of 12 rows" in str(caught.value)
    splits = load_data(path, drop_bad=True)
    with pytest.raises(FeatureError, match=r"row 3 has non-finite values.*prepare"):
        splits.all.clip(3)
    with pytest.raises(FeatureError, match="row 3"):
        splits.all.prepare(on_error="raise")
    data = splits.all.prepare()
    assert len(data) == 10
    assert data.n_official == 12
    assert data.skipped == {"E-FEATURE": 2}
    assert "clip 3" not in data.ids
    train, test = splits.train.prepare(), splits.test.prepare()
    assert (len(train), train.n_official, train.skipped) == (6, 8, {"E-FEATURE": 2})
    assert (len(test), test.n_official, test.skipped) == (2, 2, {})
    assert train.prepare().skipped == train.skipped
    with pytest.raises(FeatureError, match="every row"):
        load_data(as_npz(tmp_path, {**ARRAYS, "audio": np.full((N, 2), np.nan)}), drop_bad=True)
    with pytest.raises(FeatureError, match="non-finite"):  # too large for float32
        load_data(as_npz(tmp_path, {**ARRAYS, "audio": np.full((N, 2), 1e300)}))


def test_masks_hide_padding(tmp_path: Path) -> None:
    video = ARRAYS["video"].copy()
    mask = np.ones((N, 4), bool)
    mask[5, 2:] = False
    video[5, 2:] = np.nan
    data = load_features(as_npz(tmp_path, {**ARRAYS, "video": video, "video_mask": mask}))
    stream = data.clip(5).streams["video"]
    assert stream.mask.tolist() == [[True, True, False, False]]
    assert stream.data[0, 2:].abs().max() == 0
    assert torch.isfinite(stream.data).all()
    with pytest.raises(FeatureError, match="video_mask"):
        load_features(as_npz(tmp_path, {**ARRAYS, "video_mask": mask[:, :2]}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"video": None}, "1 of the arrays audio, video, text, but two are needed"),
        ({"video": None, "vido": np.ones((N, 2))}, 'Did you mean "video"?'),
        ({"audio": np.ones((N - 1, 5))}, "the arrays differ in length: audio 11, video 12"),
        ({"audio": np.ones((0, 5)), "video": np.ones((0, 5))}, "no rows"),
        ({"audio": np.ones((N, 0))}, "audio has the shape (12, 0)"),
        ({"audio": np.ones((N, 1, 1, 1, 1, 1))}, "audio has the shape"),
        ({"audio": np.ones((N, 5), complex)}, "complex numbers"),
        ({"audio": np.array(["a"] * N)}, "audio holds text"),
        ({"label": np.zeros(N - 2)}, "label has the shape (10,), but there are 12 rows"),
        ({"label": np.zeros((N, 3))}, "label has the shape (12, 3)"),
        ({"id": np.array(["x"] * N)}, 'the id "x" stands twice (row 0 and row 1)'),
        ({"id": np.array(["", *map(str, range(N - 1))])}, "the id of row 0 is empty"),
        ({"split": np.array(["train"] * 11 + ["tset"])}, 'row 11: "tset" is not a split. Did you mean "test"?'),
        ({"split": np.array(["train"] * 11 + [""])}, "the split is empty"),
    ],
)
def test_mistakes(tmp_path: Path, change: dict, words: str) -> None:
    arrays = {k: v for k, v in {**ARRAYS, **change}.items() if v is not None}
    if len(change) == 2 and "audio" in change:
        arrays = change
    with pytest.raises(DataError) as caught:
        load_data(as_npz(tmp_path, arrays))
    assert words in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    path = as_npz(tmp_path, {**ARRAYS, "id": ARRAYS["id"].astype(object)})
    with pytest.raises(FeatureError, match=r"id cannot be read.*dtype=str"):
        load_data(path)
    path = as_npz(tmp_path, {**ARRAYS, "unused": np.array([{}] * N, dtype=object)})
    assert len(load_data(path).all) == N
    np.save(tmp_path / "audio.npy", ARRAYS["id"].astype(object))
    with pytest.raises(FeatureError, match="dtype=str"):
        load_data(tmp_path)


def test_any_bytes_are_not_called_objects(tmp_path: Path) -> None:
    (tmp_path / "f.npz").write_bytes(b"hello")
    with pytest.raises(FeatureError) as raised:
        load_features(tmp_path / "f.npz")
    assert raised.value.hint == ""


def test_a_key_that_is_nearly_ours_is_named(tmp_path: Path, caplog) -> None:
    arrays = {name: ARRAYS[name] for name in ("audio", "video")}
    with caplog.at_level(logging.WARNING, logger="avcl.data"):
        load_data(as_npz(tmp_path, {**arrays, "splits": ARRAYS["split"], "speaker": ARRAYS["group"]}))
    assert caplog.messages == [f'{tmp_path / "f.npz"}: the array "splits" is kept as info. Did you mean "split"?']


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".mat", ".npy"])
@pytest.mark.parametrize("content", [b"", b"not an archive at all", b"PK\x03\x04 broken", b"\x93NUMPY broken"])
def test_damaged_files(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"audio{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"is not|is a single|damaged"):
        load_features(tmp_path if suffix == ".npy" else path)


@pytest.mark.parametrize("writer", [as_npz, as_h5, as_mat])
def test_flipped_and_cut_bytes_give_typed_errors(tmp_path: Path, writer) -> None:
    whole = bytearray(writer(tmp_path, ARRAYS).read_bytes())
    path = tmp_path / f"broken{writer(tmp_path, ARRAYS).suffix}"
    rng = np.random.default_rng(1)
    for trial in range(30):
        broken = bytearray(whole)
        if trial % 2:
            del broken[rng.integers(len(broken)) :]
        else:
            for place in rng.integers(0, len(broken), 20):
                broken[place] ^= int(rng.integers(1, 256))
        path.write_bytes(broken)
        with suppress(DataError):  # anything else, or a warning, fails
            load_features(path).clip(0)


def test_missing_and_unknown(tmp_path: Path) -> None:
    with pytest.raises(MissingFile):
        load_features(tmp_path / "none.npz")
    (tmp_path / "x.csv").write_text("id\n1\n")
    with pytest.raises(DataError, match="not a feature file"):
        load_features(tmp_path / "x.csv")
    (tmp_path / "v.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(512))
    with pytest.raises(FeatureError, match=r"version 7\.3"):
        load_features(tmp_path / "v.mat")


def test_options_of_media_are_refused(tmp_path: Path) -> None:
    path = as_npz(tmp_path, ARRAYS)
    for option in ({"window": 1.0}, {"hop": 1.0}, {"modalities": ["audio"]}):
        with pytest.raises(ConfigError, match="is for media"):
            load_data(path, **option)


def test_meta_that_does_not_fit(tmp_path: Path) -> None:
    folder = as_folder_with_meta(tmp_path, ARRAYS)
    meta = folder / "meta.csv"
    lines = meta.read_text().splitlines()
    meta.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(FeatureError, match=r"meta\.csv: 11 rows, but the arrays have 12"):
        load_data(folder)
    meta.write_text("\n".join([*lines[:3], lines[3] + ",more", *lines[4:]]) + "\n")
    with pytest.raises(DataError, match=r"meta\.csv:4: 5 cells, but 4 columns"):
        load_data(folder)


def test_fingerprint_is_of_the_rows(tmp_path: Path) -> None:
    data = load_features(as_npz(tmp_path, ARRAYS))
    order = list(reversed(range(N)))
    assert data.subset(order).fingerprint == data.fingerprint
    assert data.subset(order[1:]).fingerprint != data.fingerprint
    for key, value in (("label", "owl"), ("group", "other"), ("audio", 5.0)):
        changed = {k: v.copy() for k, v in ARRAYS.items()}
        changed[key][0] = value
        assert FeatureData.from_arrays(changed).fingerprint != data.fingerprint


def test_leaks_and_split_by(tmp_path: Path) -> None:
    arrays = {**ARRAYS, "split": np.array(["train", "test"] * 6), "speaker": np.array([f"s{i % 3}" for i in range(N)])}
    path = as_npz(tmp_path, arrays)
    with pytest.raises(LeakError) as caught:
        load_data(path)
    assert '6 groups appear in train and test (first: "g0"). Scores would be inflated.' in str(caught.value)
    leaky = load_data(path, allow_leak=True)
    assert (leaky.official, leaky.leaking) == (True, 6)
    ours = load_data(path, split_by="group")
    assert not ours.official
    assert not set(ours.train.groups) & (set(ours.test.groups) | set(ours.val.groups))
    speakers = load_data(path, split_by="speaker")
    assert [len({part.column("speaker")[i] for i in range(len(part))}) for part in (speakers.train, speakers.test)] == [
        1,
        1,
    ]
    with pytest.raises(DataError, match='Did you mean "speaker"'):
        load_data(path, split_by="speakr")


def test_wikipedia_features(shared_data) -> None:
    found = np.load(shared_data("wikipedia_features") / "wikipedia_sift128_lda10.npz")
    arrays = {
        "video": np.concatenate([found["I_tr"], found["I_te"]]),
        "text": np.concatenate([found["T_tr"], found["T_te"]]),
        "label": np.concatenate([found["L_tr"], found["L_te"]]).reshape(-1),
    }
    data = FeatureData.from_arrays(arrays)
    assert len(data) == 2866
    assert data.labels == tuple(map(str, range(1, 11)))
    assert data.spec.streams["text"] == StreamSpec("features", (10,), 1.0)
