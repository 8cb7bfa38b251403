"""The world as a data set and as files: determinism, splits, epochs, views, exports."""

from __future__ import annotations

import csv
import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from avcl.data.tokens import text_of
from avcl.data.world import PRESETS, World, export, render, world_splits
from avcl.data.world.scene import ObjectPreset
from avcl.errors import ConfigError, ExistsError
from avcl.media import read_clip
from avcl.types import Inputs


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()


def table_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "manifest.csv").read_text().splitlines()))


# --------------------------------------------------------------------------------------------------------- determinism
def test_a_clip_is_a_function_of_preset_seed_split_and_index_alone():
    first = {i: digest(render("retrieval", 0, i).video, render("retrieval", 0, i).audio) for i in (3, 1, 2)}
    again = {i: digest(render("retrieval", 0, i).video, render("retrieval", 0, i).audio) for i in (1, 2, 3)}
    assert first == again
    others = [("retrieval", 1, 1, "all"), ("retrieval", 0, 1, "train"), ("localization", 0, 1, "all")]
    others += [("retrieval", 0, 1, "val"), ("retrieval", 0, 1, "test")]
    assert (
        len(
            {digest(render(p, s, i, stream=t).video) for p, s, i, t in others}
            | {digest(render("retrieval", 0, 1).video)}
        )
        == 6
    )


def test_worker_processes_render_the_same_bytes(tmp_path):
    export("separation-duet", tmp_path / "w", clips=3, seed=4, workers=2)
    for i, line in enumerate((tmp_path / "w" / "truth.jsonl").read_text().splitlines()):
        here = render("separation-duet", 4, i)
        assert json.loads(line)["objects"] == json.loads(json.dumps(here.truth["objects"]))
        with np.load(tmp_path / "w" / "truth" / f"separation-duet-4-all-{i:06d}.npz") as there:
            assert digest(there["stems"], there["masks"]) == digest(here.arrays["stems"], here.arrays["masks"])


# ---------------------------------------------------------------------------------------------------------------- data
def test_streams_labels_and_spec():
    world = World("sync", clips=5, seed=3, split="test")
    clip = world.clip(2)
    assert clip.streams["audio"].data.shape == (1, 48_000, 1)
    assert clip.streams["video"].data.shape == (1, 75, 3, 64, 64)
    assert clip.streams["video"].data.dtype == torch.uint8
    assert clip.streams["audio"].mask.all()
    assert (clip.streams["audio"].rate, clip.streams["video"].rate) == (16_000.0, 25.0)
    assert clip.id == world.ids[2] == "sync-3-test-000002"
    assert clip.label == world.targets[2]
    assert abs(float(clip.extras["offset"])) <= 0.4
    assert world.spec.streams["video"].shape == (3, 64, 64)
    assert world.spec.n_classes == 12
    assert len(world) == world.n_official == world.spec.n_items == 5


@pytest.mark.parametrize("name", list(PRESETS))
def test_targets_are_known_without_rendering_and_truth_has_one_shape(name):
    world = World(name, clips=4, truth=True, split="train")
    clips = [world.clip(i) for i in range(4)]
    assert tuple(c.label for c in clips) == world.targets
    assert len({str({k: v.shape for k, v in c.extras.items()}) for c in clips}) == 1
    assert "masks" in clips[0].extras
    assert "stems" in clips[0].extras


def test_fresh_epochs_are_new_and_fixed_ones_are_not():
    fresh, fixed = World("retrieval", clips=4, fresh=True), World("retrieval", clips=4)
    video = [digest(w.clip(1, epoch=e).streams["video"].data.numpy()) for w in (fresh, fixed) for e in (0, 1)]
    assert video[0] != video[1]
    assert video[0] == video[2] == video[3]
    assert fresh.clip(1, epoch=1).id == fresh.ids[1]
    later = render("retrieval", 0, 5)
    assert digest(later.video.transpose(0, 3, 1, 2)) == video[1]
    assert fresh.fingerprint != fixed.fingerprint
    reworded = World(replace(PRESETS["retrieval"], difficulty="other words"), clips=4)
    assert (
        reworded.fingerprint
        == fixed.fingerprint
        != World(replace(PRESETS["retrieval"], noise=7.0), clips=4).fingerprint
    )


def test_a_retimed_clip_keeps_picture_and_object_and_changes_the_sound():
    plain, moved = render("retrieval", 0, 2), render("retrieval", 0, 2, retime=1.0)
    assert np.array_equal(plain.video, moved.video)
    assert not np.array_equal(plain.audio, moved.audio)
    a, b = plain.truth["objects"][0], moved.truth["objects"][0]
    assert (a["pitch"], a["class"], a["events"]["video"]) == (b["pitch"], b["class"], b["events"]["video"])
    assert a["events"]["audio"] != b["events"]["audio"]
    assert (plain.truth["retimed"], moved.truth["retimed"]) == (False, True)
    share = np.mean([render("retrieval", 0, i, retime=0.7).truth["retimed"] for i in range(80)])
    assert 0.5 < share < 0.9


def test_splits_share_no_clip_and_training_alone_is_augmented():
    splits = world_splits("retrieval", clips=30, val=5, test=6, seed=1, fresh=True, retime=0.7)
    assert [len(d) for d in (splits.all, splits.train, splits.val, splits.test)] == [41, 30, 5, 6]
    assert [d.split for d in (splits.all, splits.train, splits.val, splits.test)] == ["all", "train", "val", "test"]
    assert set(splits.all.ids) == {*splits.train.ids, *splits.val.ids, *splits.test.ids}
    assert splits.all.targets[-6:] == splits.test.targets
    assert (splits.train.fresh, splits.val.fresh, splits.test.retime) == (True, False, 0.0)
    same = digest(splits.all.clip(40).streams["audio"].data.numpy())
    assert same == digest(splits.test.clip(5).streams["audio"].data.numpy())


def test_identities_of_face_voice_are_unseen_in_test():
    splits = world_splits("face_voice", clips=200, val=20, test=20)
    groups = [set(part.groups) for part in (splits.train, splits.val, splits.test)]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    assert splits.test.clip(0).group == splits.test.groups[0]


def test_subset_keeps_ids_and_worlds_travel_to_workers():
    world = World("retrieval", clips=6)
    part = world.subset([4, 1], split="test")
    assert part.ids == (world.ids[4], world.ids[1])
    assert (part.split, len(part), part.targets[1]) == ("test", 2, world.targets[1])
    assert part.fingerprint == world.subset([4, 1]).fingerprint != world.fingerprint
    there = pickle.loads(pickle.dumps(part))
    assert torch.equal(there.clip(0).streams["video"].data, world.clip(4).streams["video"].data)


def test_another_frame_rate_and_size_show_the_same_scene():
    base = PRESETS["localization"]
    assert isinstance(base, ObjectPreset)
    world = World(replace(base, jitter=0, noise=0.0), clips=2)
    slow = world.clip(1).streams["video"].data
    view = world.configure(Inputs(fps=16.0, window=1.5))
    fast = view.clip(1)
    assert fast.streams["video"].data.shape == (1, 24, 3, 64, 64)
    assert torch.equal(fast.streams["video"].data[:, ::2], slow[:, :12])
    assert view.ids == world.ids
    assert view.fingerprint == world.fingerprint
    small = world.configure(Inputs(size=(32, 32))).clip(1).streams["video"].data.float()
    halved = torch.nn.functional.avg_pool2d(slow[0].float(), 2)
    assert (small[0] - halved).abs().mean() < 4
    wide = world.configure(Inputs(size=(32, 64), sample_rate=8000, channels=2)).clip(1)
    assert wide.streams["video"].data.shape == (1, 24, 3, 32, 64)
    assert torch.equal(wide.streams["video"].data, slow[:, :, :, 16:48])
    assert wide.streams["audio"].data.shape == (1, 24_000, 2)


def test_people_at_other_rates_are_the_same_performance_at_the_right_instants():
    for name in ("speech", "music"):
        world = World(replace(PRESETS[name], noise=0.0), clips=2, truth=True)
        full = world.clip(1)
        part = world.configure(Inputs(fps=12.5, window=2.0)).clip(1)
        assert torch.equal(part.streams["video"].data, full.streams["video"].data[:, :50:2])
        assert torch.equal(part.streams["audio"].data, full.streams["audio"].data[:, :32_000])
        assert torch.equal(part.extras["masks"], full.extras["masks"][:50:2])
        assert torch.equal(part.extras["stems"], full.extras["stems"][:, :32_000])
        large = world.configure(Inputs(fps=25.0, size=(128, 128), sample_rate=8000)).clip(1)
        halved = torch.nn.functional.avg_pool2d(large.streams["video"].data[0].float(), 2)
        assert (halved - full.streams["video"].data[0]).abs().mean() < 2
        assert large.extras["masks"].shape == (75, full.extras["masks"].shape[1], 128, 128)
    clip = World("speech", clips=1).configure(Inputs(fps=10.0, size=(48, 32), sample_rate=8000, window=2.0)).clip(0)
    assert clip.streams["video"].data.shape == (1, 20, 3, 48, 32)
    assert clip.streams["audio"].data.shape == (1, 16_000, 1)
    assert clip.streams["audio"].rate == 8000


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_can_be_seen_and_heard_as_a_system_asks(name):
    """The default inputs, others larger than the preset, and stereo; the stems of the view sum to its sound."""
    for inputs in (Inputs(), Inputs(fps=4.0, size=(96, 96), sample_rate=8000, channels=2, window=9.0)):
        world = World(name, clips=2, truth=True).configure(inputs)
        clip = world.clip(1)
        seconds = min(inputs.window, PRESETS[name].seconds)
        audio, video = clip.streams["audio"], clip.streams["video"]
        assert audio.data.shape == (1, round(seconds * inputs.sample_rate), inputs.channels)
        assert video.data.shape == (1, round(seconds * inputs.fps), 3, *inputs.size)
        assert (audio.rate, video.rate) == (inputs.sample_rate, inputs.fps)
        assert world.spec.streams["video"].shape == (3, *inputs.size)
        assert clip.extras["masks"].shape[0] == clip.extras["positions"].shape[0] == video.data.shape[1]
        assert clip.extras["masks"].shape[2:] == inputs.size
        assert torch.allclose(clip.extras["stems"].sum(0), audio.data[0], atol=2e-6)
        assert clip.label == world.targets[1]


def test_captions_as_text_and_as_speech():
    world = World("captions", clips=2, streams=("audio", "video", "text", "speech"))
    clip = world.clip(1)
    assert text_of(clip.streams["text"]) == (render("captions", 0, 1).truth["caption"],)
    speech = clip.streams["speech"]
    assert 2.0 < speech.duration < 15.0
    assert speech.data.std() > 0.01
    assert torch.equal(speech.data, world.clip(1).streams["speech"].data)
    assert World("captions", clips=1).modalities == ("audio", "video", "text")
    for name in ("music", "emotion", "events"):  # every scene has them
        clip = World(name, clips=1, streams=("text", "speech")).clip(0)
        assert text_of(clip.streams["text"]) == (render(name, 0, 0, truth=False).truth["caption"],)
        assert clip.streams["speech"].data.std() > 0.01


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (lambda: World("retreival", clips=1), 'Did you mean "retrieval"?'),
        (lambda: World("sync", clips=1, split="tst"), 'Did you mean "test"?'),
        (lambda: World("sync", clips=0), "one clip or more"),
        (lambda: World("sync", clips=1, seed=-1), "0, 1, 2"),
        (lambda: World("sync", clips=1, retime=2.0), "from 0 to 1"),
        (lambda: World("sync", clips=1, streams=("vidoe",)), 'Did you mean "video"?'),
        (lambda: World("speech", clips=1, retime=0.5), "retime at 0"),
        (lambda: World("speech", clips=1).configure(Inputs(channels=3)), "channels to 1 or 2"),
        (lambda: render(replace(PRESETS["sync"], size=(32, 64)), 0, 0), "World.configure"),
        (lambda: render(replace(PRESETS["music"], sources=2, distractor=0.5), 0, 0), "sources=2, or"),
        (lambda: World("sync", clips=1, truth=True).configure(Inputs(size=(32, 64))), "truth off"),
        (lambda: export("sync", "nowhere", clips=1, container="avi"), "Use webm"),  # type: ignore[arg-type]
    ],
)
def test_mistakes_are_named(call, hint):
    with pytest.raises(ConfigError) as caught:
        call()
    assert hint in str(caught.value)


# --------------------------------------------------------------------------------------------------------------- files
@pytest.mark.parametrize("container", ["webm", "mp4", "mkv"])
def test_times_in_the_files_are_right(tmp_path, container):
    """The sound of the file correlates best at lag 0 with the rendered one, and frame k is picture k."""
    export("sync", tmp_path / "w", clips=1, seed=2, container=container, workers=1)
    clip = render("sync", 2, 0)
    back = read_clip(tmp_path / "w" / f"sync-2-all-000000.{container}", rate=16_000)
    wave = back.streams["audio"].data[0, :, 0].numpy()[: len(clip.audio)]
    n = 2 * len(clip.audio)
    match = np.fft.irfft(np.conj(np.fft.rfft(clip.audio[:, 0], n)) * np.fft.rfft(wave, n))
    lag = int(np.argmax(match))
    assert min(lag, n - lag) <= 16  # 1 ms
    frames = back.streams["video"].data[0].permute(0, 2, 3, 1).numpy().astype(int)
    assert len(frames) == len(clip.video)
    for k in (1, 20, 40, 73):
        errors = [np.abs(frames[k] - clip.video[j].astype(int)).mean() for j in range(len(frames))]
        assert int(np.argmin(errors)) == k


def test_an_export_resumes_grows_and_refuses_strangers(tmp_path):
    out = tmp_path / "w"
    first = export("captions", out, clips=2, seed=1, workers=1)
    assert (first["written"], first["kept"]) == (2, 0)
    names = sorted(p.name for p in out.iterdir() if not p.name.startswith("."))
    ids = ["captions-1-all-000000", "captions-1-all-000001"]
    tables = ["labels.txt", "manifest.csv", "truth", "truth.jsonl", "world.json"]
    assert names == [f"{ids[0]}.webm", f"{ids[1]}.webm", *tables]
    rows = table_of(out)
    lines = [json.loads(line) for line in (out / "truth.jsonl").read_text().splitlines()]
    assert list(rows[0]) == ["id", "video", "label", "text"]
    assert (
        [r["id"] for r in rows] == [line["id"] for line in lines] == ids == list(World("captions", clips=2, seed=1).ids)
    )
    assert rows[1]["text"] == lines[1]["caption"]
    assert rows[1]["label"] == lines[1]["class"]
    with np.load(out / "truth" / f"{ids[0]}.npz") as arrays:
        assert {"masks", "boxes", "positions", "stems", "speech"} <= set(arrays.files)
    table = (out / "truth.jsonl").read_bytes()

    (out / f"{ids[0]}.webm").unlink()  # as if killed on the way
    (out / "truth.jsonl").unlink()
    (out / ".part-xyz.webm").write_bytes(b"half")
    again = export("captions", out, clips=2, seed=1, workers=1)
    assert (again["written"], again["kept"]) == (1, 1)
    assert (out / "truth.jsonl").read_bytes() == table
    assert not list(out.glob(".part-*"))
    assert export("captions", out, clips=3, seed=1, workers=1)["written"] == 1

    with pytest.raises(ExistsError, match="another world"):
        export("captions", out, clips=1, seed=2, workers=1)
    export("separation", out, clips=1, seed=2, workers=1, force=True)
    assert [p.name for p in out.glob("*.webm")] == ["separation-2-all-000000.webm"]
    stranger = tmp_path / "mine"
    stranger.mkdir()
    (stranger / "thesis.txt").write_text("do not lose")
    with pytest.raises(ExistsError, match="something else"):
        export("sync", stranger, clips=1, force=True)
    assert [p.name for p in stranger.iterdir()] == ["thesis.txt"]


def test_a_preset_with_other_knobs_is_exported_and_not_mistaken_for_the_plain_one(tmp_path):
    duet = replace(PRESETS["music"], sources=2, seconds=1.0)
    export(duet, tmp_path / "w", clips=1, workers=0)
    (line,) = [json.loads(line) for line in (tmp_path / "w" / "truth.jsonl").read_text().splitlines()]
    assert [one["role"] for one in line["others"]] == ["source"]
    assert json.loads((tmp_path / "w" / "world.json").read_text())["preset"]["sources"] == 2
    with pytest.raises(ExistsError, match="other settings"):
        export("music", tmp_path / "w", clips=1, workers=0)


@pytest.mark.parametrize("container", ["webm", "mkv"])
def test_two_exports_are_equal_files(tmp_path, container):
    for folder in ("a", "b"):
        export("retrieval", tmp_path / folder, clips=1, container=container, workers=0)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len([f for f in files if not f.name.startswith(".")]) == 6
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_an_exported_folder_names_groups_where_splits_must_not_share_them(tmp_path):
    export("face_voice", tmp_path / "w", clips=1, workers=1)
    (row,) = table_of(tmp_path / "w")
    assert row["group"] == row["label"]
