"""Published data sets: what each file must look like, what becomes of a row, and the counts of the real lists."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_set_toys import TOYS, as_json, h5, media, text
from scipy.io import savemat

import avcl
from avcl import cli
from avcl.catalog import published as of
from avcl.data.official_features import FeatureSet
from avcl.data.official_media import Files
from avcl.errors import AvclError, DataError, FeatureError, LabelError


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def written(name: str, folder: Path, **how) -> list[dict[str, str]]:
    """The rows of the manifest of a folder of the official form."""
    of(name).manifest(folder, folder, folder / "out.csv", **how)
    return rows_of(folder / "out.csv")


def arrays_of(name: str, folder: Path) -> dict[str, np.ndarray]:
    found = of(name)
    assert isinstance(found, FeatureSet)
    return dict(found.load(folder))


# ------------------------------------------------------------------------------------------------------ what is refused
def _line(path: str, number: int, new: str) -> Callable[[Path], str]:
    """Replaces a line of a list; where the error must point."""

    def edit(folder: Path) -> str:
        rows = (folder / path).read_text(encoding="utf-8").splitlines()
        rows[number - 1] = new
        text(folder / path, *rows)
        return f"{Path(path).name}:{number}"

    return edit


def _json(path: str, old: str, new: str) -> Callable[[Path], str]:
    def edit(folder: Path) -> str:
        content = (folder / path).read_text()
        assert old in content
        (folder / path).write_text(content.replace(old, new, 1))
        return path

    return edit


BROKEN = {
    "vggsound-cells": ("vggsound", _line("vggsound.csv", 2, "a,b,c"), DataError, "is not id,start,label,split"),
    "vggsound-start": ("vggsound", _line("vggsound.csv", 2, "a,3.5,b,test"), DataError, '"3.5" is not a whole number'),
    "vggsound-split": ("vggsound", _line("vggsound.csv", 3, "a,3,b,tset"), DataError, 'Did you mean "test"'),
    "audioset-classes": ("audioset", _line("eval_segments.csv", 1, "abc,0,10"), DataError, "is not YTID"),
    "audioset-time": ("audioset", _line("eval_segments.csv", 1, 'abc,0,x,"/m/09x0r"'), DataError, "number of seconds"),
    "audioset-order": ("audioset", _line("eval_segments.csv", 2, 'abc,9,9,"/m/09x0r"'), DataError, "not after"),
    "audioset-class": ("audioset", _line("eval_segments.csv", 2, 'abc,0,9,"/m/none"'), LabelError, "/m/none"),
    "music-json": ("music", _line("MUSIC_solo_videos.json", 3, ' "videos": x'), DataError, "is not JSON"),
    "music-form": ("music", _json("MUSIC_solo_videos.json", '"videos"', '"video"'), DataError, 'no "videos"'),
    "music-id": ("music", _json("MUSIC_solo_videos.json", '"bbbbbbbbbbb"', "7"), DataError, '"flute"[1]'),
    "ave-line": ("ave", _line("Annotations.txt", 2, "Bark&b&good&2"), DataError, "is not Category&VideoID"),
    "mscoco-split": (
        "mscoco",
        _json("dataset_coco.json", '"restval"', '"rest"'),
        DataError,
        'images[1] has the split "r',
    ),
    "mscoco-text": ("mscoco", _json("dataset_coco.json", '"raw"', '"row"'), DataError, "images[0].sentences[0]"),
    "flickr8k-line": ("flickr8k_audio", _line("wav2capt.txt", 3, "a.wav b.jpg 2"), DataError, "wav picture #n"),
    "flickr8k-speaker": ("flickr8k_audio", _line("wav2spk.txt", 3, "a.wav"), DataError, "wav speaker"),
    "flickr8k-text": ("flickr8k_audio", _line("Flickr8k_text/Flickr8k.token.txt", 1, "a b"), DataError, "<TAB>"),
    "flickr8k-split": (
        "flickr8k_audio",
        _line("Flickr8k_text/Flickr_8k.devImages.txt", 1, "1000_abc.jpg"),
        DataError,
        "is in train and in val",
    ),
    "msrvtt-category": (
        "msrvtt",
        _json("test_videodatainfo.json", '"category": 9', '"category": 20'),
        LabelError,
        "videos[0] has the category 20",
    ),
    "msrvtt-video": ("msrvtt", _json("test_videodatainfo.json", '"video3"', '"video4"'), DataError, "not listed"),
    "youcook2-time": (
        "youcook2",
        _json("youcookii_annotations_trainval.json", '"segment": [\n      0,', '"segment": [\n      3,'),
        DataError,
        "has the segment [3, 1]",
    ),
    "youcook2-subset": (
        "youcook2",
        _json("youcookii_annotations_trainval.json", '"training"', '"train"'),
        DataError,
        'has the subset "train"',
    ),
    "nuswide-name": ("nuswide10k", _line("ImageList/Imagelist.txt", 1, "actor\\1.jpg"), DataError, "is not <folder>"),
    "nuswide-mark": (
        "nuswide10k",
        _line("Groundtruth/AllLabels/Labels_sky.txt", 4, "2"),
        DataError,
        "is not 0 or 1",
    ),
    "cub-class": ("cub", _line("list/audio/test.txt", 1, "audio/a/b.png 200"), DataError, "from 0 to 199"),
    "cub-line": ("cub", _line("list/audio/test.txt", 2, "audio.png"), DataError, "is not a whole number"),
    "cub-word": ("cub", _line("CUB/images.txt", 2, "2"), DataError, "is not two words"),
    "voxceleb-line": ("voxceleb", _line("iden_split.txt", 4, "4 id10002/a/1.wav"), DataError, "is not: 1|2|3"),
    "voxceleb-person": ("voxceleb", _line("iden_split.txt", 4, "1 id9/a/1.wav"), DataError, "id9 is not in vox1_meta"),
    "voxceleb-meta": ("voxceleb", _line("vox1_meta.csv", 2, "id1\tA"), DataError, "five columns"),
    "wikipedia-category": (
        "wikipedia",
        _line("testset_txt_img_cat.list", 2, "t\tp\t11"),
        LabelError,
        "11 is not a category",
    ),
    "wikipedia-line": ("wikipedia", _line("trainset_txt_img_cat.list", 2, "t p 1"), DataError, "is not text<TAB>"),
    "mv10k-id": ("mv10k", _line("folds/fold2.txt", 1, "video_99"), DataError, "there is no vgg/video_99.npy"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_fault_is_named_with_its_file_and_line(case: str, tmp_path: Path) -> None:
    name, edit, error, words = BROKEN[case]
    TOYS[name](tmp_path)
    where = edit(tmp_path)
    with pytest.raises(error) as caught:
        list(of(name).entries(tmp_path))
    assert where in str(caught.value)
    assert words in str(caught.value)
    with pytest.raises(AvclError):
        list(of(name).verify(tmp_path))


def test_files_that_do_not_fit_together(tmp_path: Path) -> None:
    TOYS["nuswide10k"](tmp_path)
    text(tmp_path / "NUS_WID_Tags" / "All_Tags.txt", "1 a", "2 b")
    with pytest.raises(DataError, match="2 lines, but 6 pictures"):
        list(of("nuswide10k").entries(tmp_path))
    (tmp_path / "Groundtruth" / "AllLabels" / "Labels_toy.txt").unlink()
    with pytest.raises(DataError, match=r"Labels_toy\.txt is missing"):
        list(of("nuswide10k").entries(tmp_path))
    TOYS["cub"](tmp_path)
    (tmp_path / "CUB" / "train_test_split.txt").unlink()
    with pytest.raises(DataError, match=r"train_test_split\.txt is missing"):
        list(of("cub").entries(tmp_path))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    for name, file in (
        ("vggsound", "vggsound.csv"),
        ("music", "MUSIC_solo_videos.json"),
        ("voxceleb", "vox1_meta.csv"),
    ):
        (tmp_path / file).write_bytes(b"\xff\xfe\x00a,b\n")
        with pytest.raises(DataError, match="UTF-8"):
            list(of(name).entries(tmp_path))


@pytest.mark.parametrize(
    ("arrays", "error", "words"),
    [
        ({"audio_test": None}, DataError, 'has no "audio_test"'),
        ({"audio_test": np.ones((3, 3))}, DataError, "differ in length"),
        ({"audio_test": np.ones((4, 2))}, DataError, "other shapes"),
        ({"lab_test": np.array([0, 1, 2, 10])}, DataError, "row 3 has the class 10"),
        ({"lab_test": np.array([0.5, 1, 2, 3])}, DataError, "no class numbers"),
    ],
)
def test_feature_files_of_retrieval(arrays, error, words, tmp_path: Path) -> None:
    good = {"visual": np.ones((4, 6)), "audio": np.ones((4, 3)), "lab": np.arange(4)}
    found = {f"{key}_{split}": value for key, value in good.items() for split in ("train", "test")} | arrays
    h5(tmp_path / "vegas_feature_norm.h5", **{key: value for key, value in found.items() if value is not None})
    with pytest.raises(error, match=words):
        arrays_of("vegas", tmp_path)
    (tmp_path / "vegas_feature_norm.h5").write_bytes(b"no HDF5")
    with pytest.raises(FeatureError):
        arrays_of("vegas", tmp_path)


def test_features_of_ave_that_are_not_of_its_lines(tmp_path: Path) -> None:
    TOYS["ave_features"](tmp_path)
    h5(tmp_path / "audio_feature.h5", avadataset=np.ones((3, 10, 2)))
    with pytest.raises(FeatureError, match="of 4 rows"):
        arrays_of("ave_features", tmp_path)


# --------------------------------------------------------------------------------------------------- what a row becomes
def test_clips_and_whole_videos(tmp_path: Path) -> None:
    TOYS["vggsound"](tmp_path)
    clip, _, whole = written("vggsound", tmp_path)
    assert (clip["id"], clip["start"], clip["end"], clip["group"]) == ("abcdefghijk_000030", "", "", "abcdefghijk")
    assert (whole["id"], whole["start"], whole["end"], whole["split"]) == ("-_cdefghijk_000001", "1", "11", "test")
    assert Path(whole["video"]) == (tmp_path / "video" / "-_cdefghijk.mp4").resolve()


def test_the_lists_of_the_repository_of_vggsound(tmp_path: Path) -> None:
    text(tmp_path / "train.csv", "abcdefghijk_000030.mp4,dog barking", 'ab_-efghijk_000000.mp4,"pigeon, dove cooing"')
    text(tmp_path / "test.csv", "abcdefghijk_000130.mp4,dog barking")
    rows = list(of("vggsound").entries(tmp_path))
    assert [(row.id, row.split, row.start, row.end) for row in rows] == [
        ("abcdefghijk_000030", "train", 30, 40),
        ("ab_-efghijk_000000", "train", 0, 10),
        ("abcdefghijk_000130", "test", 130, 140),
    ]
    assert rows[1].label == "pigeon, dove cooing"
    text(tmp_path / "test.csv", "abc_000130.mp4,dog barking")
    with pytest.raises(DataError, match=r"test\.csv:1: \"abc_000130\.mp4\" is not <11"):
        list(of("vggsound").entries(tmp_path))


def test_segments_with_several_classes(tmp_path: Path) -> None:
    TOYS["audioset"](tmp_path)
    rows = {row["id"]: row for row in written("audioset", tmp_path)}
    assert rows["aaaaaaaaaaa_30000"]["labels"] == "Speech;Music"
    assert rows["aaaaaaaaaaa_30000"]["label"] == ""
    assert rows["bbbbbbbbbbb_0"]["label"] == "Speech"
    (tmp_path / "class_labels_indices.csv").unlink()
    assert [row.label for row in of("audioset").entries(tmp_path)] == ["/m/09x0r", "", ""]
    as_json(tmp_path / "ontology.json", [{"id": "/m/09x0r", "name": "Speech"}, {"id": "/m/04rlf", "name": "Music"}])
    assert [row.info["labels"] for row in of("audioset").entries(tmp_path)][1] == "Music;Speech"


def test_sound_alone_and_whole_videos_of_audioset(tmp_path: Path) -> None:
    text(tmp_path / "eval_segments.csv", *(f'{c * 11}, 5.000, 15.000, "/m/1"' for c in "abcd"))
    media(tmp_path, "aaaaaaaaaaa.wav", "bbbbbbbbbbb_5.wav", "ccccccccccc_000005.wav")
    rows = written("audioset", tmp_path)
    assert [(row["id"], row["start"], row["end"]) for row in rows] == [
        ("aaaaaaaaaaa_5000", "5", "15"),
        ("bbbbbbbbbbb_5000", "", ""),
        ("ccccccccccc_5000", "", ""),
    ]
    assert "video" not in rows[0]


def test_solos_that_stand_in_two_lists(tmp_path: Path) -> None:
    TOYS["music"](tmp_path)
    assert [row["id"][0] for row in written("music", tmp_path)] == ["a", "c", "d"]
    assert [row["id"][0] for row in written("music", tmp_path, only=["solo21"])] == ["a", "d"]


def test_official_captions_of_coco(tmp_path: Path) -> None:
    images = [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg"}]
    notes = [{"id": i, "image_id": 9, "caption": f"a cat {i}\n"} for i in range(3)]
    as_json(tmp_path / "captions_train2014.json", {"images": images, "annotations": notes})
    rows = list(of("mscoco").entries(tmp_path))
    assert [(row.id[-2:], row.text, row.split, row.group) for row in rows] == [
        (f"#{i}", f"a cat {i}", "train", "COCO_train2014_000000000009") for i in range(3)
    ]
    notes[1]["image_id"] = 8
    as_json(tmp_path / "captions_train2014.json", {"images": images, "annotations": notes})
    with pytest.raises(DataError, match=r"annotations\[1\] is about the image 8"):
        list(of("mscoco").entries(tmp_path))


def test_spoken_captions(tmp_path: Path) -> None:
    TOYS["flickr8k_audio"](tmp_path)
    first, second, *_ = written("flickr8k_audio", tmp_path)
    assert (first["id"], first["text"], first["speaker"], first["group"]) == (
        "1000_abc_0",
        "A dog , number 0 .",
        "0",
        "1000_abc.jpg",
    )
    assert first["image"] == second["image"] != ""
    for name in ("train", "dev", "test"):
        (tmp_path / "Flickr8k_text" / f"Flickr_8k.{name}Images.txt").unlink()
    assert {check.part: check.listed for check in of("flickr8k_audio").verify(tmp_path)}["in no split"] == 8
    assert "split" not in written("flickr8k_audio", tmp_path)[0]


def test_sentences_of_clips(tmp_path: Path) -> None:
    TOYS["msrvtt"](tmp_path)
    rows = {row["id"]: row for row in written("msrvtt", tmp_path)}
    assert (rows["video0#1"]["text"], rows["video0#1"]["group"], rows["video1#0"]["split"]) == (
        "a car, 1",
        "video0",
        "val",
    )
    assert {id: row["jsfusion"] for id, row in rows.items()}["video2#0"] == "yes"
    assert Counter(row["jsfusion"] for row in rows.values()) == {"no": 5, "yes": 1}
    whole = tmp_path / "whole"
    whole.mkdir()
    parts = [json.loads((tmp_path / f"{name}_videodatainfo.json").read_text()) for name in ("train_val", "test")]
    value = {key: parts[0][key] + parts[1][key] for key in ("videos", "sentences")}
    as_json(whole / "MSRVTT_data.json", value)
    assert sum(check.listed for check in of("msrvtt").verify(tmp_path, whole)) == 4


def test_steps_of_long_videos(tmp_path: Path) -> None:
    TOYS["youcook2"](tmp_path)
    rows = written("youcook2", tmp_path)
    assert [(row["id"], row["start"], row["end"], row["text"]) for row in rows[:2]] == [
        ("aaaaaaaaaaa#0", "0", "1", "cut 0"),
        ("aaaaaaaaaaa#1", "1", "2", "cut 1"),
    ]
    (tmp_path / "label_foodtype.csv").unlink()
    assert {row.label for row in of("youcook2").entries(tmp_path)} == {"101"}
    assert not [row.text for row in of("youcook2").entries(tmp_path) if row.split == "test" and row.text]


def test_pictures_of_one_name_in_two_classes(tmp_path: Path) -> None:
    TOYS["pascal_sentence"](tmp_path)
    rows = written("pascal_sentence", tmp_path)
    assert all(Path(row["image"]).parent.name == row["label"] for row in rows)
    assert rows[0]["text"] == "An animal sits. It looks up."
    text(tmp_path / "sentence" / "cta" / "1.txt", "A cat.")
    with pytest.raises(LabelError, match='Did you mean "cat"'):
        list(of("pascal_sentence").entries(tmp_path))


def test_pictures_with_one_of_ten_concepts(tmp_path: Path) -> None:
    TOYS["nuswide10k"](tmp_path)
    rows = {row["id"]: row for row in written("nuswide10k", tmp_path)}
    assert {id: row["label"] for id, row in rows.items()} == {
        "2124494179": "animal",
        "2124494180": "sky",
        "2124494181": "toy",
    }
    assert rows["2124494180"]["text"] == "tag1 blue"


def test_the_draw_of_nuswide_does_not_depend_on_the_order(tmp_path: Path) -> None:
    def listed(order: list[int]) -> dict[str, str]:
        text(tmp_path / "Imagelist.txt", *(f"sky\\0001_{i}.jpg" for i in order))
        for label in of("nuswide10k").labels:
            text(tmp_path / f"Labels_{label}.txt", *("01"[label == "sky"] for _ in order))
        return {row.id: row.split for row in of("nuswide10k").entries(tmp_path)}

    rows = listed(list(range(1200)))
    assert Counter(rows.values()) == {"train": 800, "val": 100, "test": 100}
    assert rows == listed(list(range(1200))[::-1])


def test_birds_are_joined_by_species(tmp_path: Path) -> None:
    TOYS["cub"](tmp_path)
    rows = written("cub", tmp_path)
    for row in rows:
        assert Path(row["audio"]).parent.name == row["label"]
        assert Path(row["image"]).parent.name.endswith(row["label"])
        assert Path(row["audio"]).name.startswith(row["split"])
    assert Counter((row["label"][:5], row["split"]) for row in rows) == {
        ("Black", "train"): 1,
        ("Black", "test"): 2,
        ("Laysa", "train"): 1,
        ("Laysa", "test"): 1,
    }
    text(
        tmp_path / "list" / "text" / "test.txt",
        *(f"text/{name}/{name}_1.txt 0" for name in ("Black_footed_Albatross",)),
    )
    text(tmp_path / "text" / "Black_footed_Albatross" / "Black_footed_Albatross_1.txt", "A big bird.", "It flies.")
    counts = of("cub").manifest(tmp_path, tmp_path, tmp_path / "out.csv")
    assert counts == {"rows": 2, "missing": 1, "without a partner": 6}
    assert {row["text"] for row in rows_of(tmp_path / "out.csv")} == {"A big bird. It flies."}


def test_faces_and_voices_are_joined_by_person(tmp_path: Path) -> None:
    TOYS["voxceleb"](tmp_path)
    rows = written("voxceleb", tmp_path)
    for row in rows:
        assert row["label"] in Path(row["image"]).parts
        assert row["group"] == row["label"]
    assert {row["label"]: row["split"] for row in rows} == {
        "A.J._Buckley": "val",
        "Carl_X": "test",
        "Frank_Y": "train",
    }
    assert rows[0]["gender"] == "m"
    # a list of VGGFace says which pictures there should be
    text(
        tmp_path / "files" / "Carl_X.txt",
        "00000001 http://a.b/c.jpg 1 2 3 4 1 2.0 1",
        "00000002 http://a.b/d.jpg 1 2 3 4",
    )
    media(tmp_path, "faces/Carl_X/00000002.jpg")
    faces = [row for row in written("voxceleb", tmp_path) if row["label"] == "Carl_X"]
    assert [Path(row["image"]).stem for row in faces] == ["00000002", "00000002"]
    text(tmp_path / "files" / "Carl_X.txt", "one http://a.b/c.jpg")
    with pytest.raises(DataError, match=r"Carl_X\.txt:1: does not begin with the number"):
        list(of("voxceleb").entries(tmp_path))


def test_bytes_are_averaged_and_decoded(tmp_path: Path) -> None:
    TOYS["mv10k"](tmp_path)
    np.save(tmp_path / "vgg" / "video_00.npy", np.array([[128, 0, 255, 128], [128, 0, 255, 0]], np.uint8))
    arrays = arrays_of("mv10k", tmp_path)
    place = arrays["id"].tolist().index("video_00")
    assert arrays["audio"][place].tolist() == [0.0, -0.5, 127 / 256, -0.25]
    assert (arrays["split"][place], arrays["label"][place], arrays["video"].shape) == ("train", "0", (10, 6))
    assert arrays["id"][arrays["split"] == "test"].tolist() == ["video_40", "video_41"]
    np.save(tmp_path / "vgg" / "video_00.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match="not a plain"):
        arrays_of("mv10k", tmp_path)


def test_vegas_as_the_folder_its_features_were_made_of(tmp_path: Path) -> None:
    TOYS["mv10k"](tmp_path)
    (tmp_path / "classes").rename(tmp_path / "VEGAS_classes")
    assert Counter(arrays_of("vegas", tmp_path)["split"].tolist()) == {"train": 8, "test": 2}


def test_wikipedia_with_its_labels_in_one_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    hot = np.eye(10)[[0, 9, 3]]
    arrays = {"I_tr": rng.random((3, 6)), "T_tr": rng.random((3, 2)), "L_tr": hot}
    arrays |= {"I_te": rng.random((2, 6)), "T_te": rng.random((2, 2)), "L_te": np.array([[1], [10]])}
    savemat(tmp_path / "wikiData.mat", arrays)
    assert arrays_of("wikipedia", tmp_path)["label"].tolist() == ["art", "warfare", "history", "art", "warfare"]


def test_features_of_ave_follow_its_splits(tmp_path: Path) -> None:
    TOYS["ave_features"](tmp_path)
    arrays = arrays_of("ave_features", tmp_path)
    assert arrays["id"].tolist() == ["0000-aaaaaaaaaaa", "0001-bbbbbbbbbbb", "0002-aaaaaaaaaaa", "0003-ccccccccccc"]
    assert (arrays["audio"].shape, arrays["video"].shape) == ((4, 10, 3), (4, 10, 2, 2, 5))
    assert arrays["group"].tolist()[0] == arrays["group"].tolist()[2]


def test_files_are_found_by_the_end_of_their_path(tmp_path: Path) -> None:
    media(tmp_path, "a/x/1.jpg", "b/x/1.jpg", "b/y/1.jpg", "b/y/deep/2.jpg", "b/y/1.wav")
    files = Files(tmp_path)
    assert files.one("image", "b/x/1") == tmp_path / "b/x/1.jpg"
    assert files.one("image", "y/1") == tmp_path / "b/y/1.jpg"
    assert files.one("image", "x/2") is None
    assert files.one("audio", "1") == tmp_path / "b/y/1.wav"
    assert files.below("image", "y/") == [tmp_path / "b/y/1.jpg", tmp_path / "b/y/deep/2.jpg"]
    assert files.below("image", "b/y/") == files.below("image", "y/")
    assert files.below("image", f"{tmp_path.parent.name}/") == []  # above what is looked into


# -------------------------------------------------------------------------------------------------- the shell and train
def test_verify_in_the_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TOYS["vggsound"](tmp_path)
    assert cli.run(["verify", "vggsound", str(tmp_path), "--json", "-o", str(tmp_path / "rows.csv")]) == 1
    train, test, out = map(json.loads, capsys.readouterr().out.splitlines())
    assert train == {
        "data": "vggsound",
        "part": "train",
        "official": 183_730,
        "listed": 2,
        "found": 2,
        "missing": 183_728,
        "first": [],
    }
    assert (test["missing"], test["first"]) == (15_445, ["zzzzzzzzzzz_000007"])
    assert out == {"data": "vggsound", "out": str(tmp_path / "rows.csv"), "rows": 3, "missing": 1}
    assert cli.run(["verify", "vggsond", str(tmp_path)]) == 2
    assert 'Did you mean "vggsound"' in capsys.readouterr().err
    assert cli.run(["describe", "ave", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["license"].startswith("none stated")


def test_a_model_is_trained_on_what_is_written(tmp_path: Path) -> None:
    TOYS["vegas"](tmp_path)
    of("vegas").manifest(tmp_path, tmp_path, tmp_path / "rows.npz")
    splits = avcl.load_data(tmp_path / "rows.npz")
    assert (len(splits.train) + len(splits.val), len(splits.test)) == (8, 4)
    assert splits.all.labels == (*"01234567", "9")
    model = avcl.train("cca", splits.train, settings={"components": 2})
    assert avcl.evaluate(model, splits.test, task="retrieval", relevance="class").scores


# ------------------------------------------------------------------------------------------------------- the real lists
def test_the_official_test_list_of_vggsound(shared_data, tmp_path: Path) -> None:
    folder = shared_data("annotations") / "vggsound"
    train, test = of("vggsound").verify(tmp_path, folder)
    assert (test.official, test.listed, test.found, test.missing) == (15_446, 15_446, 0, 15_446)
    assert test.first[0] == "glLQrEijrKg_000300"
    assert (train.listed, train.missing) == (0, 183_730)
    rows = list(of("vggsound").entries(folder))
    assert len({row.label for row in rows}) == 309
    with (folder / "stat.csv").open(newline="") as file:
        stat = list(csv.reader(file))
    assert {row.label for row in rows} == {name for name, *_ in stat}
    assert sum(int(n) for _, n, _ in stat) == sum(of("vggsound").counts.values()) == 199_176


def test_the_official_segments_of_audioset(shared_data, tmp_path: Path) -> None:
    folder = shared_data("annotations") / "audioset"
    for name, source in (("eval_segments.csv", "eval_segments_head500.csv"), ("ontology.json", "ontology.json")):
        (tmp_path / name).symlink_to(folder / source)
    by_ontology = list(of("audioset").entries(tmp_path))
    (tmp_path / "class_labels_indices.csv").symlink_to(folder / "class_labels_indices.csv")
    rows = list(of("audioset").entries(tmp_path))
    assert len(rows) == 500
    assert rows[0].info["labels"] == "Domestic animals, pets;Squeak;Dog;Animal"
    assert [row.info for row in rows] == [row.info for row in by_ontology]
    assert (rows[3].start, rows[3].end, rows[3].split) == (0, 9, "test")
    eval_, *_ = of("audioset").verify(tmp_path)
    assert (eval_.listed, eval_.missing) == (500, 20_371)


def test_the_official_lists_of_music(shared_data, tmp_path: Path) -> None:
    folder = shared_data("annotations") / "music"
    checks = {check.part: check for check in of("music").verify(tmp_path, folder)}
    assert {part: check.listed for part, check in checks.items()} == dict(of("music").counts)
    assert all(check.missing == check.official for check in checks.values())
    assert len({row.id for row in of("music").entries(folder)}) == 149 + 1164  # MUSIC-21 holds the solos of MUSIC


def test_the_official_lists_of_ave(shared_data, tmp_path: Path) -> None:
    folder = shared_data("annotations") / "ave"
    checks = list(of("ave").verify(tmp_path, folder))
    assert {check.part: check.listed for check in checks} == {"train": 3339, "val": 402, "test": 402}
    assert sum(check.missing for check in checks) == 4143


def test_the_official_features_of_wikipedia(shared_data, tmp_path: Path) -> None:
    folder = shared_data("wikipedia_features")
    (tmp_path / "raw_features.mat").symlink_to(folder / "raw_features.mat")
    known = np.load(folder / "wikipedia_sift128_lda10.npz")
    for split, short in (("train", "tr"), ("test", "te")):
        rows = (f"{split}{i}-1\tpicture{i}\t{label}" for i, label in enumerate(known[f"L_{short}"]))
        text(tmp_path / f"{split}set_txt_img_cat.list", *rows)
    assert [(check.part, check.found, check.missing) for check in of("wikipedia").verify(tmp_path)] == [
        ("train", 2173, 0),
        ("test", 693, 0),
    ]
    of("wikipedia").manifest(tmp_path, tmp_path, tmp_path / "rows.npz")
    splits = avcl.load_data(tmp_path / "rows.npz")
    assert splits.all.labels == tuple(known["categories"].tolist())
    assert Counter(splits.train.targets + splits.val.targets) == dict(
        enumerate([138, 272, 244, 248, 202, 178, 186, 144, 214, 347])
    )
    clip = splits.test.clip(0)
    assert np.allclose(clip.streams["video"].data.ravel(), known["I_te"][0])
    assert np.allclose(clip.streams["text"].data.ravel(), known["T_te"][0])
