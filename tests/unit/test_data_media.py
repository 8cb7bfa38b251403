"""Media: rows become clips on one grid, decoded once; failures are counted; the same in any number of processes."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
from data_toys import RATE, SMALL, audio_file, image_file, video_file

import avcl.data.media_data as media_data
from avcl.data import Loader, MediaData, load_data, read_manifest
from avcl.errors import ConfigError, DataError, LeakError, MissingFile, NotMedia, TooShort
from avcl.types import Inputs, Stream, StreamSpec


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dog/0..2 and cat/0..2, one second each; cat/2 is half a second."""
    root = tmp_path_factory.mktemp("clips")
    for i in range(6):
        video_file(root / ("dog" if i < 3 else "cat") / f"{i % 3}.mkv", 0.5 if i == 5 else 1.0, i)
    return root


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were really decoded in this process."""
    found: list[str] = []
    original = media_data.read_clip

    def counted(path, *args, **kwargs):
        found.append(Path(path).name)
        return original(path, *args, **kwargs)

    monkeypatch.setattr(media_data, "read_clip", counted)
    return found


def manifest(root: Path, text: str) -> Path:
    (root / "manifest.csv").write_text(text)
    return root


def test_clips_are_on_one_grid(folder: Path) -> None:
    data = load_data(folder).all
    assert data.modalities == ("audio", "video")
    assert data.labels == ("cat", "dog")
    assert data.ids == ("cat/0", "cat/1", "cat/2", "dog/0", "dog/1", "dog/2")
    with pytest.raises(ConfigError, match=r"data\.configure"):
        _ = data.spec
    with pytest.raises(ConfigError, match=r"data\.configure"):
        data.clip(0)
    data = data.configure(SMALL)
    assert data.spec.streams["audio"] == StreamSpec("audio", (1,), float(RATE))
    assert data.spec.streams["video"] == StreamSpec("video", (3, 16, 16), 4.0)
    for i in range(6):
        clip = data.clip(i)
        assert clip.streams["audio"].data.shape == (1, RATE, 1)
        assert clip.streams["audio"].data.dtype == torch.float32
        assert clip.streams["video"].data.shape == (1, 4, 3, 16, 16)
        assert clip.streams["video"].data.dtype == torch.uint8
        assert (clip.streams["audio"].rate, clip.streams["video"].rate) == (float(RATE), 4.0)
    whole, half = data.clip(0), data.clip(2)
    assert whole.streams["video"].mask.all()
    assert half.streams["video"].mask.tolist() == [[True, True, False, False]]
    assert half.streams["video"].data[0, 2:].max() == 0
    assert 0.45 < half.streams["audio"].mask.float().mean() < 0.6
    assert (half.label, half.id, half.group, half.index) == (0, "cat/2", "cat/2", 2)
    assert half.source is not None
    assert half.source.path == str(folder / "cat" / "2.mkv")
    batch = next(iter(Loader(data, batch_size=6)))
    assert batch.video.data.shape == (6, 4, 3, 16, 16)
    assert batch.label.tolist() == [0, 0, 0, 1, 1, 1]


def test_each_file_is_decoded_once_per_preprocessing(folder: Path, decodes: list[str]) -> None:
    data = load_data(folder).all.configure(SMALL)
    first = [data.clip(i) for i in range(6)]
    assert len(decodes) == 6
    again = load_data(folder).all.configure(SMALL)
    for i in range(6):
        for name in ("audio", "video"):
            assert torch.equal(again.clip(i).streams[name].data, first[i].streams[name].data)
            assert torch.equal(again.clip(i).streams[name].mask, first[i].streams[name].mask)
    assert len(decodes) == 6
    load_data(folder).all.configure(Inputs(fps=2.0, size=(16, 16), sample_rate=RATE, window=1.0)).clip(0)
    assert len(decodes) == 7
    for entry in (data.cache.folder / "clips").rglob("*.safetensors"):
        entry.write_bytes(entry.read_bytes()[:-5])
    assert torch.equal(data.clip(0).streams["audio"].data, first[0].streams["audio"].data)
    assert len(decodes) == 8


def test_the_same_bytes_elsewhere_hit_the_cache_and_hash_alike(
    folder: Path, tmp_path: Path, decodes: list[str]
) -> None:
    data = load_data(folder).all.configure(SMALL)
    data.prepare()
    decodes.clear()
    shutil.copytree(folder, tmp_path / "copy")
    copy = load_data(tmp_path / "copy").all.configure(SMALL)
    assert copy.fingerprint == data.fingerprint
    copy.prepare()
    assert decodes == []
    video_file(tmp_path / "copy" / "dog" / "0.mkv", 1.0, 77)
    assert load_data(tmp_path / "copy").all.fingerprint != data.fingerprint
    assert data.subset([1, 0, 2, 5, 4, 3]).fingerprint == data.fingerprint
    assert data.subset([0, 1]).fingerprint != data.fingerprint


@pytest.mark.parametrize("workers", [0, 2])
def test_prepare_counts_what_cannot_be_read(folder: Path, tmp_path: Path, workers: int, caplog) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "dog" / "1.mkv").write_bytes(b"no video at all")
    video_file(tmp_path / "cat" / "1.mkv", 1.0, 4, sound=False)
    (tmp_path / "manifest.csv").write_text(
        "id,video,start,split\n"
        "a,cat/0.mkv,,train\nb,cat/1.mkv,,train\nc,dog/1.mkv,,train\nd,none.mkv,,train\ne,dog/2.mkv,,test\nf,dog/2.mkv,5,test\n"
    )
    splits = load_data(tmp_path)
    with caplog.at_level(logging.WARNING, "avcl"):
        data = splits.all.configure(SMALL).prepare(workers=workers)
    assert data.ids == ("a", "e")
    assert data.n_official == 6
    assert data.skipped == {"E-NOAUDIO": 1, "E-DECODE": 1, "E-NOFILE": 1, "E-TOOSHORT": 1}
    assert "4 of 6 rows left out" in caplog.text
    assert data.clip(1).id == "e"
    assert data.configure(SMALL).skipped == data.skipped
    with pytest.raises(NotMedia):
        splits.all.subset([0, 2, 3]).configure(SMALL).prepare(workers=workers, on_error="raise")
    with pytest.raises(DataError, match="not one of 2 rows can be read") as caught:
        splits.all.subset([2, 3]).configure(SMALL).prepare(workers=workers)
    assert "E-DECODE" in str(caught.value)
    part = splits.test.configure(SMALL).prepare(workers=workers)
    assert (part.split, part.n_official, part.skipped) == ("test", 2, {"E-TOOSHORT": 1})


def test_worker_processes_change_nothing(folder: Path) -> None:
    data = load_data(folder).all.configure(SMALL)
    alone = list(Loader(data, batch_size=4, shuffle=True, seed=3).batches(1))
    shutil.rmtree(data.cache.folder / "clips")
    with Loader(data, batch_size=4, shuffle=True, seed=3, workers=2) as loader:
        for a, b in zip(alone, loader.batches(1), strict=True):
            assert a.id == b.id
            for name in ("audio", "video"):
                assert torch.equal(a.streams[name].data, b.streams[name].data)
                assert torch.equal(a.streams[name].mask, b.streams[name].mask)


def test_segments_of_a_file(tmp_path: Path) -> None:
    video_file(tmp_path / "long.mkv", 4.0, 1)
    manifest(
        tmp_path, "id,video,start,end\nwhole,long.mkv,,\nlate,long.mkv,2.5,\nshort,long.mkv,1,1.5\ngone,long.mkv,9,10\n"
    )
    data = load_data(tmp_path).all.configure(SMALL)
    whole, late, short = (data.clip(i).streams for i in range(3))
    reference = (
        load_data(tmp_path).all.configure(Inputs(fps=4.0, size=(16, 16), sample_rate=RATE, window=4.0)).clip(0).streams
    )
    assert whole["video"].data.shape[1] == 4
    torch.testing.assert_close(
        late["audio"].data[0, :, 0], reference["audio"].data[0, 20_000:28_000, 0], atol=2e-2, rtol=0
    )
    assert short["video"].mask.tolist() == [[True, True, False, False]]
    assert short["audio"].mask.sum() == RATE // 2
    with pytest.raises(TooShort):
        data.clip(3)


def test_windows_of_long_files(tmp_path: Path) -> None:
    video_file(tmp_path / "long.mkv", 3.5, 1)
    video_file(tmp_path / "short.mkv", 1.0, 2)
    (tmp_path / "broken.mkv").write_bytes(b"nothing")
    data = load_data(tmp_path, window=1.0, hop=1.0).all
    assert data.ids[0] == "broken"
    assert data.ids[1:4] == ("long@0.000", "long@1.000", "long@2.000")
    assert data.ids[-1] == "short@0.000"
    assert set(data.groups) == {"broken", "long", "short"}
    assert data.column("row")[1] == "long"
    prepared = data.configure(SMALL).prepare()
    assert prepared.skipped == {"E-DECODE": 1}
    assert all(prepared.clip(i).streams["video"].mask.all() for i in range(3))
    manifest(tmp_path, "id,video,start,end,label\nx,long.mkv,0.5,2.5,dog\n")
    data = load_data(tmp_path, window=1.0).all
    assert [(row.start, row.end, row.label) for row in data.rows] == [(0.5, 1.5, "dog"), (1.5, 2.5, "dog")]
    with pytest.raises(ConfigError, match="hop needs window"):
        load_data(tmp_path, hop=1.0)


def test_sound_and_picture_from_two_files(tmp_path: Path, decodes: list[str]) -> None:
    for i in range(3):
        audio_file(tmp_path / "audio" / f"{i}.wav", 1.0, i)
        image_file(tmp_path / "images" / f"{i}.png", i)
    (tmp_path / "text").mkdir()
    for i in range(3):
        (tmp_path / "text" / f"{i}.txt").write_text(f"tone {i}")
    data = load_data(tmp_path).all.configure(SMALL)
    assert data.modalities == ("audio", "video", "text")
    clip = data.clip(1)
    assert clip.streams["video"].data.shape == (1, 1, 3, 16, 16)
    assert clip.streams["video"].rate == 4.0
    assert clip.streams["audio"].data.shape == (1, RATE, 1)
    assert bytes(clip.streams["text"].data[0].tolist()) == b"tone 1"
    assert sorted(decodes) == ["1.png", "1.wav"]
    assert data.spec.streams["text"] == StreamSpec("tokens", (), 1.0)


def test_a_separate_sound_replaces_that_of_the_video(tmp_path: Path) -> None:
    video_file(tmp_path / "v.mkv", 1.0, 0)
    audio_file(tmp_path / "quiet.wav", 1.0, 9)
    manifest(tmp_path, "id,video,audio\nown,v.mkv,\nother,v.mkv,quiet.wav\n")
    own, other = (load_data(tmp_path).all.configure(SMALL).clip(i).streams for i in range(2))
    assert not torch.allclose(own["audio"].data, other["audio"].data, atol=1e-2)
    assert torch.equal(own["video"].data, other["video"].data)


def test_which_streams_a_set_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    video_file(tmp_path / "mute.mkv", 1.0, 0, sound=False)
    video_file(tmp_path / "v.mkv", 1.0, 1)
    image_file(tmp_path / "i.png")

    def found(text: str, **options) -> tuple[str, ...]:
        (tmp_path / "m.csv").write_text(text)
        return MediaData.from_table(read_manifest(tmp_path / "m.csv"), **options).modalities

    assert found("id,video\na,mute.mkv\n") == ("video",)
    assert found("id,video\na,mute.mkv\nb,v.mkv\n") == ("audio", "video")
    assert found("id,video,text\na,mute.mkv,hello\n") == ("video", "text")
    assert found("id,image\na,i.png\n") == ("video",)
    with caplog.at_level(logging.WARNING, "avcl.data"):
        assert found("id,video,text\na,v.mkv,hello\nb,v.mkv,\n") == ("audio", "video")
    assert "text is in 1 of 2 rows only and is left out" in caplog.text
    assert found("id,video\na,v.mkv\n", modalities=["video"]) == ("video",)
    with pytest.raises(DataError, match="no modality is in every row"):
        found("id,audio,image\na,v.mkv,\nb,,i.png\n")
    with pytest.raises(DataError, match='"vidoe" is not a modality'):
        found("id,video\na,v.mkv\n", modalities=["vidoe"])
    (tmp_path / "m.csv").write_text("id,video,text\na,v.mkv,hello\nb,v.mkv,\n")
    data = MediaData.from_table(read_manifest(tmp_path / "m.csv"), modalities=["video", "text"]).configure(SMALL)
    assert data.prepare().skipped == {"E-DATA": 1}


def test_official_splits_and_leaks(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    rows = "".join(
        f"r{i},dog/{i}.mkv,{s},{g},s{i}\n" for i, (s, g) in enumerate([("train", "x"), ("train", "y"), ("test", "x")])
    )
    manifest(tmp_path, "id,video,split,group,speaker\n" + rows)
    with pytest.raises(LeakError, match='1 group appears in train and test \\(first: "x"\\)'):
        load_data(tmp_path)
    splits = load_data(tmp_path, allow_leak=True)
    assert (splits.official, splits.leaking, splits.test.ids) == (True, 1, ("r2",))
    ours = load_data(tmp_path, split_by="speaker")
    assert not ours.official
    assert all(len(ours.part(name)) == 1 for name in ("train", "val", "test"))
    with pytest.raises(DataError, match='Did you mean "speaker"'):
        load_data(tmp_path, split_by="speeker")


def test_messages_of_a_missing_file(tmp_path: Path) -> None:
    data = load_data(manifest(tmp_path, "id,video\na,none.mp4\n"), modalities=["video"]).all.configure(SMALL)
    with pytest.raises(MissingFile) as caught:
        data.clip(0)
    assert str(tmp_path / "none.mp4") in str(caught.value)
    with pytest.raises(ConfigError, match="greater than 0"):
        data.configure(Inputs(window=0.0))


def test_progress_is_on_stderr_and_only_when_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = load_data(folder).all.configure(SMALL)
    data.prepare()
    assert capsys.readouterr() == ("", "")
    data.prepare(progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "decoding: step 6/6" in err


def test_real_clips(shared_data) -> None:
    root = shared_data("av_clips")
    splits = load_data(root)
    assert len(splits.all) == 45
    assert splits.all.modalities == ("audio", "video")
    data = splits.test.configure(SMALL).prepare()
    assert not data.skipped
    batch = next(iter(Loader(data, batch_size=2)))
    assert isinstance(batch.audio, Stream)
    assert batch.video.data.shape == (2, 4, 3, 16, 16)
    assert float(batch.video.data.float().std()) > 5
