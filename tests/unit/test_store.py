"""Saved models: what comes back is what went in, or a typed error; nothing in a folder is ever run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from loop_toys import SPEC, TRAIN, Config, Towers, make, run, same
from safetensors.torch import load_file, save_file

import avcl.systems
from avcl import store
from avcl.errors import AvclError, ConfigError, StoreError
from avcl.types import Inputs

INPUTS = Inputs(fps=25.0, size=(32, 48), window=1.5)
META = {"seed": 3, "scores": {"mean": {"R@1": 0.25}}, "ids": list(range(100))}


@pytest.fixture
def toy(tmp_path_factory, monkeypatch) -> type[Towers]:
    """The toy system as if it stood in avcl/systems/."""
    folder = tmp_path_factory.mktemp("systems")
    (folder / "toy.py").write_text("from loop_toys import Config, Towers\nclass Toy(Towers):\n    pass\n")
    monkeypatch.setattr(avcl.systems, "__path__", avcl.systems.__path__)
    avcl.systems.__path__.append(str(folder))
    yield avcl.discover.system_class("toy")
    avcl.systems.__path__.remove(str(folder))
    sys.modules.pop("avcl.systems.toy", None)


@pytest.fixture
def folder(toy, tmp_path) -> Path:
    system = toy(Config(batch_size=12), SPEC)
    run(system=system, max_steps=2)
    store.save(system, tmp_path / "model", inputs=INPUTS, meta=META)
    return tmp_path / "model"


def edit(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_round_trip(toy, tmp_path) -> None:
    system = toy(Config(batch_size=12), SPEC)
    run(system=system, max_steps=2)
    mark = store.save(system, tmp_path / "a", inputs=INPUTS, meta=META)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    saved = store.load(tmp_path / "a")
    assert torch.equal(state, torch.get_rng_state())
    assert type(saved.system) is toy
    assert same(saved.system.state_dict(), system.state_dict())
    assert saved.system.center.dtype == torch.float64
    assert saved.system.center.abs().sum() > 0
    assert (saved.system.config, saved.system.spec, saved.inputs, saved.meta) == (system.config, SPEC, INPUTS, META)
    assert saved.fingerprint == mark == store.fingerprint(saved.system, saved.inputs)
    assert not saved.system.training
    assert store.save(saved.system, tmp_path / "b", inputs=saved.inputs, meta=saved.meta) == mark
    files = [p.name for p in sorted((tmp_path / "a").iterdir())]
    assert files == ["README.md", "config.json", "weights.safetensors"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_fingerprint_sees_all_that_changes_vectors(toy) -> None:
    def of(config=None, inputs=INPUTS, change=None) -> str:
        torch.manual_seed(0)
        system = toy(config or Config(), SPEC)
        if change is not None:
            change(system)
        return store.fingerprint(system, inputs)

    def one_bit(system) -> None:
        with torch.no_grad():
            system.audio[0].weight[0, 0] = torch.nextafter(system.audio[0].weight[0, 0], torch.tensor(9.0))

    marks = [of(), of(Config(noise=0.2)), of(inputs=Inputs()), of(change=one_bit), of(change=lambda s: s.bank.add_(1))]
    assert len(set(marks)) == 5
    assert of() == marks[0]
    assert all(len(m) == 16 for m in marks)


def test_model_card(folder) -> None:
    text = (folder / "README.md").read_text()
    front, body = text.split("---\n")[1:3]
    assert 'library_name: "avcl"' in front
    assert '"toy"' in front
    for part in ("# toy", "Toy towers.", "None is claimed.", "| scores.mean.R@1 | 0.25 |", "| fps | 25 |", "avcl.load"):
        assert part in body, part
    assert "ids" not in body  # long lists are no numbers for a card


def test_saving_over_an_older_model(toy, folder, monkeypatch) -> None:
    (folder / "metrics.jsonl").write_text("kept")
    other = toy(Config(), SPEC)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            store.save(other, folder, inputs=INPUTS, meta={})
    with pytest.raises(StoreError, match="no saved model"):
        store.load(folder)
    store.save(other, folder, inputs=INPUTS, meta={})
    assert same(store.load(folder).system.state_dict(), other.state_dict())
    assert (folder / "metrics.jsonl").read_text() == "kept"


def test_tied_weights(toy, tmp_path) -> None:
    system = toy(Config(), SPEC)
    system.video[0].weight = system.audio[0].weight
    store.save(system, tmp_path, inputs=INPUTS, meta={})
    assert same(store.load(tmp_path).system.state_dict(), system.state_dict())


def test_a_system_without_a_name_is_not_saved(tmp_path) -> None:
    with pytest.raises(ConfigError, match="cannot be found by name"):
        store.save(make(), tmp_path / "x", inputs=INPUTS, meta={})
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"system": "tpy"}, ConfigError, 'no system "tpy". Did you mean "toy"'),
        ({"system": "../../etc/passwd"}, ConfigError, "there is no system"),
        ({"system": "os"}, ConfigError, "there is no system"),
        ({"system": ["toy"]}, StoreError, 'no valid "system"'),
        ({"config": {"batch_sise": 1}}, ConfigError, 'Did you mean "batch_size"'),
        ({"config": {"batch_size": "../x"}}, ConfigError, "is not a int"),
        ({"config": {"noise": 0.7}}, StoreError, "not those that were saved together"),
        ({"inputs": {"fps": 1.0, "path": "/etc/passwd"}}, StoreError, "does not describe"),
        ({"inputs": {**INPUTS.__dict__, "fps": 24.0}}, StoreError, "not those that were saved together"),
        ({"spec": {}}, StoreError, "does not describe"),
        (
            {"spec": {"streams": {"a": 3}, "labels": [], "n_items": 0, "vocabulary": []}},
            StoreError,
            "does not describe",
        ),
        ({"fingerprint": "0" * 16}, StoreError, "not those that were saved together"),
        ({"format": 99}, StoreError, "format 1"),
        ({"meta": None}, StoreError, 'no valid "meta"'),
    ],
)
def test_hostile_configurations(folder, changes, error, message) -> None:
    edit(folder, **changes)
    with pytest.raises(error, match=message):
        store.load(folder)


def test_weights_that_do_not_fit(folder) -> None:
    path = folder / "weights.safetensors"
    good = load_file(path)

    def refused(message: str, **changes) -> None:
        tensors = {k: v for k, v in {**good, **changes}.items() if v is not None}
        save_file(tensors, path)
        with pytest.raises(StoreError, match=message):
            store.load(folder)

    refused(r'"bank" is torch.float32 \(3, 4\); the system needs torch.float32 \(5, 4\)', bank=torch.zeros(3, 4))
    refused('"center" is torch.float32', center=good["center"].float())
    refused('lack "bank"', bank=None)
    refused('hold "extra"', extra=torch.zeros(1))
    refused("not those that were saved together", bank=good["bank"] + 1e-6)
    save_file(good, path)
    assert store.load(folder).system is not None
    path.unlink()
    with pytest.raises(StoreError, match="missing"):
        store.load(folder)
    with pytest.raises(StoreError, match="no saved model"):
        store.load(folder / "nowhere")


def test_every_cut_and_flip_is_found(folder) -> None:
    """A truncated file is an error; a flipped bit is one, or stands where it changes nothing of the model."""
    mark = store.load(folder).fingerprint
    weights, config = folder / "weights.safetensors", folder / "config.json"
    for path in (weights, config):
        good = path.read_bytes()
        for cut in {0, 1, 7, 8, 40, len(good) // 2, len(good) - 9}:
            path.write_bytes(good[:cut])
            with pytest.raises(StoreError):
                store.load(folder)
        for place in range(0, len(good), max(1, len(good) // 60)):
            damaged = bytearray(good)
            damaged[place] ^= 1 << (place % 7)
            path.write_bytes(bytes(damaged))
            try:
                assert store.load(folder).fingerprint == mark
            except AvclError:
                pass
            else:
                assert path == config or place < good.index(b"}") + 400
        path.write_bytes(good)


def test_pickles_are_not_read(folder) -> None:
    torch.save({"x": torch.zeros(1)}, folder / "weights.safetensors")
    with pytest.raises(StoreError, match="not safetensors"):
        store.load(folder)


def test_cca_keeps_its_precision(tmp_path) -> None:
    cls = avcl.discover.system_class("cca")
    system = cls(cls.Config(components=3), SPEC)
    run(system=system, train=TRAIN, val=None)
    store.save(system, tmp_path, inputs=INPUTS, meta={})
    again = store.load(tmp_path).system
    assert same(again.state_dict(), system.state_dict())
    assert {t.dtype for t in again.state_dict().values()} == {torch.float64}
