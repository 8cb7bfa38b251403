"""Pretrained towers: their contract, their clock, their license, and that nothing is fetched or run."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from avcl import load_data, train
from avcl.archive import write_features
from avcl.catalog import entries
from avcl.encoders import pretrained
from avcl.errors import BatchError, ConfigError, ExtraError, LicenseError, StoreError
from avcl.media import write_audio, write_image
from avcl.ops import Features
from avcl.testing import check_encoder, stream_of
from avcl.types import Inputs, Stream, StreamSpec

MODELS = ("ast", "clap", "pe_audio", "videomae")
FROZEN = {"gradient": "the wave is analyzed outside of the graph"}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a tower reached for the network")

    monkeypatch.setattr("socket.socket.connect", refuse)


def tiny(name: str, folder: Path, *, license: str = "apache-2.0") -> Path:
    """A random model of a few thousand weights, saved as its package saves the trained ones."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    if name == "ast":
        shape = {"num_mel_bins": 32, "max_length": 56, "patch_size": 16, "time_stride": 10, "frequency_stride": 8}
        transformers.ASTModel(transformers.ASTConfig(hidden_size=8, **shape, **layers)).save_pretrained(folder)
        transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=56).save_pretrained(folder)
    elif name == "videomae":
        shape = {"image_size": 16, "patch_size": 8, "num_frames": 4, "tubelet_size": 2}
        model = transformers.VideoMAEModel(transformers.VideoMAEConfig(hidden_size=8, **shape, **layers))
        model.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    elif name == "clap":
        audio = transformers.ClapAudioConfig(
            spec_size=32, num_mel_bins=8, patch_size=4, patch_stride=(4, 4), window_size=4, depths=(1, 1),
            num_attention_heads=(1, 2), patch_embeds_hidden_size=4, hidden_size=8, projection_dim=6,
            aff_block_r=1, num_hidden_layers=2,
        )  # fmt: skip
        text = transformers.ClapTextConfig(hidden_size=8, vocab_size=9, projection_dim=6, **layers)
        config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=6)
        transformers.ClapModel(config).save_pretrained(folder)
        transformers.ClapFeatureExtractor(
            feature_size=8, sampling_rate=8000, hop_length=400, max_length_s=1, fft_window_size=256, frequency_max=4000,
            truncation="rand_trunc",
        ).save_pretrained(folder)  # fmt: skip
    else:
        dac = {"model_type": "dac", "downsampling_ratios": [2, 4], "encoder_hidden_size": 4, "codebook_dim": 8}
        audio = {"dac_config": dac, "hidden_size": 8, "head_dim": 4, "num_key_value_heads": 2, **layers}
        text = {"model_type": "modernbert", "hidden_size": 8, "vocab_size": 9, "pad_token_id": 0, "eos_token_id": 1,
                "bos_token_id": 1, "cls_token_id": 1, "sep_token_id": 1, **layers}  # fmt: skip
        config = transformers.PeAudioConfig(text_config=text, audio_config=audio)
        transformers.PeAudioModel(config).save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 8000}))
    (folder / "README.md").write_text(f"---\nlibrary_name: x\nlicense: {license}\n---\n# A model\n")
    return folder


SPECS = {
    "ast": (StreamSpec("audio", (1,), 16_000.0), 9000),  # windows of 0.5 s
    "clap": (StreamSpec("audio", (2,), 8000.0), 9000),  # windows of 1 s
    "pe_audio": (StreamSpec("audio", (1,), 8000.0), 400),
    "videomae": (StreamSpec("video", (3, 20, 24), 6.0), 9),
}


@pytest.mark.parametrize("name", MODELS)
def test_towers_of_transformers_keep_the_contract(name: str, tmp_path: Path) -> None:
    tower = pretrained.transformers_tower(tiny(name, tmp_path))
    spec, steps = SPECS[name]
    limits = {} if name == "videomae" else FROZEN
    failed = {}
    for check, run in check_encoder(tower, stream_of(spec, steps=steps, batch=2), limits=limits):
        try:
            run()
        except Exception as error:
            failed[check] = f"{type(error).__name__}: {error}"[:300]
    assert not failed
    assert tower.license == "apache-2.0"
    assert not any(p.requires_grad for p in tower.parameters())
    assert not tower.train().network.training


@torch.no_grad()
@pytest.mark.parametrize(("name", "rate"), [("ast", 10.0), ("clap", 1.0), ("pe_audio", 1000.0), ("videomae", 3.0)])
def test_steps_stand_where_they_were_recorded(name: str, rate: float, tmp_path: Path) -> None:
    """A change at one moment moves the steps of its window, or nothing that lies before that."""
    tower = pretrained.transformers_tower(tiny(name, tmp_path))
    spec, steps = SPECS[name]
    steps = 16 if name == "videomae" else int(2.5 * spec.rate) if name != "pe_audio" else steps
    given = stream_of(spec, steps=steps, batch=2)
    given = given._replace(data=given.data.nan_to_num(), mask=torch.ones_like(given.mask))
    given = given._replace(data=given.data.clamp(-1, 1))
    out = tower(given)
    assert out.rate == pytest.approx(rate)
    assert out.mask.shape[1] == -(-steps * rate // spec.rate)
    assert bool(out.mask.all())
    if name == "pe_audio":
        return  # attends to all of a clip
    late = given.data.clone()
    late[:, -steps // 8 :] *= 0.5
    moved = (tower(given._replace(data=late)).data - out.data).abs().amax((0, 2)) > 0
    assert not bool(moved[: len(moved) // 2].any())
    assert bool(moved[-1])


@torch.no_grad()
def test_another_sample_rate_is_converted(tmp_path: Path) -> None:
    tower = pretrained.transformers_tower(tiny("ast", tmp_path))
    seconds = torch.arange(16_000) / 16_000
    tone = torch.sin(2 * torch.pi * 300 * seconds)[None, :, None]
    mask = torch.ones(1, 16_000, dtype=torch.bool)
    high = tower(Stream(tone, mask, 16_000.0))
    low = tower(Stream(tone[:, ::2], mask[:, ::2], 8000.0))
    assert low.rate == high.rate
    assert float((low.data - high.data)[:, 1:-1].norm() / high.data[:, 1:-1].norm()) < 0.25  # the band above is empty


# ----------------------------------------------------------------------------------------------------- nothing foreign
@pytest.mark.parametrize("license", ["cc-by-nc-4.0", "other", "llama3", "openrail"])
def test_commercial_use_is_refused_unless_it_is_known_to_be_allowed(license: str, tmp_path: Path) -> None:
    folder = tiny("videomae", tmp_path, license=license)
    tower = pretrained.transformers_tower(folder)
    assert tower.license == ("unknown" if license == "other" else license)
    with pytest.raises(LicenseError) as caught:
        pretrained.transformers_tower(folder, commercial=True)
    assert (caught.value.code, caught.value.exit) == ("E-LICENSE", 2)


def test_licenses_are_read_as_written(tmp_path: Path) -> None:
    assert pretrained.transformers_tower(tiny("videomae", tmp_path), commercial=True).license == "apache-2.0"
    for text, name in {
        "": "unknown",
        "# A model\nlicense: mit\n": "unknown",  # not in the front matter
        "---\ntags: [x]\n---\n": "unknown",
        '---\nlicense: "MIT"\n---\n': "mit",
        "---\nlicense: Apache 2.0  # yes\n---\n": "apache-2.0",
        "---\nlicense:\n- mit\n- gpl-3.0\n---\n": "unknown",  # which of the two holds is not ours to say
    }.items():
        (tmp_path / "README.md").write_text(text)
        assert pretrained.folder_license(tmp_path) == name, text
    (tmp_path / "README.md").unlink()
    assert pretrained.folder_license(tmp_path) == "unknown"


def test_code_in_a_folder_is_never_run_and_pickles_are_never_read(tmp_path: Path) -> None:
    folder = tiny("videomae", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Evil", "VideoMAEModel": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('ran')\n")
    assert pretrained.transformers_tower(folder).dim == 8
    weights = folder / "model.safetensors"
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(StoreError, match="safetensors"):
        pretrained.transformers_tower(folder)


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"config\.json"):
        pretrained.transformers_tower(tmp_path)
    with pytest.raises(ConfigError, match="is no tower"):
        pretrained.load_tower("resnet-900")
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"model_type": "videomea"}')
    with pytest.raises(ConfigError, match="videomae"):
        pretrained.load_tower(tmp_path)
    folder = tiny("videomae", tmp_path / "one")
    with pytest.raises(BatchError, match="video"):
        pretrained.load_tower(folder)(Stream(torch.zeros(1, 4, 3), torch.ones(1, 4, dtype=torch.bool), 1.0))


@pytest.mark.parametrize(
    ("package", "leaf", "extra"),
    [
        ("efficientnet_lite_pytorch", "efficientnet", "pretrained"),
        ("transformers", "transformers_towers", "transformers"),
        ("sentence_transformers", "sentence_towers", "sentence"),
    ],
)
def test_a_missing_extra_is_named(
    package: str, leaf: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"avcl.adapters.{leaf}", raising=False)
    (tmp_path / "config.json").write_text('{"model_type": "videomae"}')
    if extra == "sentence":
        (tmp_path / "modules.json").write_text("[]")
    with pytest.raises(ExtraError, match=package) as caught:
        pretrained.load_tower("efficientnet_lite0" if extra == "pretrained" else tmp_path)
    assert caught.value.exit == 3
    assert f"avcl[{extra}]" in caught.value.hint


# ------------------------------------------------------------------------------------------------------------ sentences
def sentences(folder: Path) -> Path:
    """A tiny random sentence model: one Transformer layer over whole words, mean pooling."""
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat", "barks", "the"]
    source = folder / "source"
    source.mkdir(parents=True)
    (source / "vocab.txt").write_text("\n".join(words))
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "hidden_size": 8}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(source)
    BertTokenizerFast(vocab=str(source / "vocab.txt")).save_pretrained(source)
    model = SentenceTransformer(modules=[Transformer(str(source)), Pooling(8)], device="cpu")
    model.save(str(folder / "model"))
    return folder / "model"


@torch.no_grad()
def test_sentence_towers(tmp_path: Path) -> None:
    from avcl.data.batching import collate
    from avcl.data.tokens import text_stream
    from avcl.types import Clip

    folder = sentences(tmp_path)
    tower = pretrained.load_tower(folder)
    texts = ["a dog barks", "the cat", "", "the cat"]
    batch = collate([Clip(str(i), {"text": text_stream(text)}) for i, text in enumerate(texts)])
    rows = tower(batch.text)
    assert rows.shape == (4, tower.dim) == (4, 8)
    assert torch.equal(rows[1], rows[3])
    assert not bool(rows[2].any())
    expected = torch.from_numpy(tower.network.encode(texts[:2], normalize_embeddings=False))
    assert torch.allclose(rows[:2], expected, atol=1e-6)
    with pytest.raises(LicenseError):
        pretrained.sentence_tower(folder, commercial=True)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "evil.Evil"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ConfigError, match="foreign code"):
        pretrained.load_tower(folder)


# --------------------------------------------------------------------------------------------------------- EfficientNet
def efficientnet(**settings: bool) -> pretrained.Tower:
    pytest.importorskip("efficientnet_lite_pytorch")
    return pretrained.efficientnet_lite0(**settings)


def test_efficientnet_keeps_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    spec = StreamSpec("video", (3, 40, 48), 4.0)
    tower = efficientnet()
    assert sum(p.numel() for p in tower.parameters()) == 4_652_008 - 1_281_000  # without the classifier
    assert capsys.readouterr().out == ""
    for _, run in check_encoder(tower, stream_of(spec, steps=3, batch=2)):
        run()
    with torch.no_grad():
        stream = stream_of(spec, steps=2, batch=2)
        cells = efficientnet(maps=True)(stream)
        assert cells.data.shape == (2, 2, 7, 7, 1280)
        assert torch.allclose(cells.data.mean((2, 3)), tower(stream).data, atol=1e-5)
    assert tower.license == "unknown"  # as its metadata say
    with pytest.raises(LicenseError, match="efficientnet_lite0"):
        efficientnet(commercial=True)


def test_efficientnet_can_be_trained() -> None:
    tower = efficientnet(trainable=True)
    tower.train()(stream_of(StreamSpec("video", (3, 40, 48), 4.0), steps=2, batch=2)).data.sum().backward()
    assert all(p.grad is not None for p in tower.parameters())


# ------------------------------------------------------------------------------------------------------ a feature file
@pytest.fixture
def toys(tmp_path: Path) -> Path:
    """A manifest of 12 pictures in two classes, each with a sound and a text."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        picture = np.full((40, 40, 3), 40 + 150 * (i % 2), np.uint8) + rng.integers(0, 40, (40, 40, 3), dtype=np.uint8)
        write_image(tmp_path / f"{i}.png", picture)
        write_audio(tmp_path / f"{i}.wav", rng.normal(size=(4000, 1)).astype(np.float32) * 0.1, 8000)
        split = ("train", "train", "train", "val", "test")[i % 5]
        words = {"text": ("dark", "light")[i % 2], "label": ("dark", "light")[i % 2], "split": split}
        rows.append({"id": f"p{i}", "image": f"{i}.png", "audio": f"{i}.wav", **words})
    with open(tmp_path / "manifest.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path / "manifest.csv"


def test_features_are_written_and_learned_from(toys: Path, tmp_path: Path) -> None:
    ast = tiny("ast", tmp_path / "ast")
    towers = {"video": efficientnet(), "audio": str(ast)}
    found = write_features(toys, tmp_path / "features.npz", towers=towers)
    assert found["clips"] == 12
    assert found["shapes"] == {"audio": (8,), "video": (1280,), "text": ()}
    assert found["licenses"] == {"video": "unknown", "audio": "apache-2.0"}
    splits = load_data(tmp_path / "features.npz")
    assert splits.official
    assert splits.all.labels == ("dark", "light")
    assert splits.all.ids == load_data(toys).all.ids
    row = splits.all.clip(3)
    picture = load_data(toys).all.configure(Inputs(size=(224, 224), sample_rate=16_000)).clip(3)
    with torch.no_grad():
        video = picture.streams["video"]
        expected = efficientnet()(video._replace(data=video.data.float() / 255)).data[0, 0]
    assert torch.allclose(row.streams["video"].data[0, 0], expected, atol=1e-4)
    model = train("infonce", splits, settings={"epochs": 1, "batch_size": 4}, workers=0)
    assert model.modalities == ("audio", "video", "text")


def test_without_a_tower_a_stream_is_summarized(toys: Path, tmp_path: Path) -> None:
    found = write_features(toys, tmp_path / "plain.npz", towers={})
    assert found["licenses"] == {}
    assert load_data(tmp_path / "plain.npz").all.spec.streams["audio"].shape == (144,)
    with pytest.raises(ConfigError, match="reads video"):
        write_features(toys, tmp_path / "x.npz", towers={"audio": efficientnet()})
    with pytest.raises(ConfigError, match="no depth"):
        write_features(toys, tmp_path / "x.npz", towers={"depth": "x"})
    with pytest.raises(LicenseError):
        write_features(toys, tmp_path / "x.npz", towers={"video": efficientnet()}, commercial=True)
    assert not (tmp_path / "x.npz").exists()


def test_the_shell_refuses_what_may_not_be_sold(toys: Path, tmp_path: Path) -> None:
    values = {"data": str(toys), "out": tmp_path / "f.npz", "video": "efficientnet_lite0"}
    with pytest.raises(LicenseError, match="no known license"):
        list(Features.parse({**values, "commercial": True}).run())
    assert next(Features.parse(values).run())["clips"] == 12
    names = [entry["name"] for entry in entries("towers")]
    assert names[0] == "efficientnet_lite0"


def test_efficientnet_sees_what_is_in_a_stamp(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    """Animals, food and town: the nearest picture is of the same kind, far above chance."""
    folder = shared_data("tuxpaint_stamps")
    with open(folder / "stamps.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["category"] in ("animals", "food", "town")][::4]
    with open(tmp_path / "m.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "image", "text", "label"])
        writer.writerows([r["id"], folder / "images" / f"{r['id']}.jpg", r["text_en"], r["category"]] for r in rows)
    write_features(tmp_path / "m.csv", tmp_path / "f.npz", towers={"video": efficientnet()})
    write_features(tmp_path / "m.csv", tmp_path / "s.npz", towers={})
    right = []
    for name in ("f.npz", "s.npz"):
        with np.load(tmp_path / name) as arrays:
            x, y = torch.from_numpy(arrays["video"]), arrays["label"]
        x = torch.nn.functional.normalize((x - x.mean(0)) / x.std(0).clamp(min=1e-6), dim=1)
        right.append(float(np.mean(y[(x @ x.T).fill_diagonal_(-2).argmax(1)] == y)))
    assert right[0] > 0.75
    assert right[0] > right[1] + 0.15
