"""ONNX: what onnxruntime says is what torch says, at other batches and lengths than the example's."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from avcl.encoders import conv3d, patches, recurrent, resnet, unet, vggish, waveform
from avcl.encoders.audio import LogMelConv
from avcl.encoders.conv2d import ChangeConv, FrameConv
from avcl.encoders.mlp import MLP
from avcl.encoders.tokens import TokenConv
from avcl.errors import ConfigError, ExtraError
from avcl.model import Model
from avcl.nn import transformer
from avcl.ops import Export
from avcl.systems.infonce import InfoNCE
from avcl.testing import stream_of
from avcl.types import DataSpec, Stream, StreamSpec

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from avcl.adapters.onnx_export import export_embeddings, export_encoder

SPECS = {
    "audio": (StreamSpec("audio", (1,), 8000.0), 4100),
    "video": (StreamSpec("video", (3, 24, 32), 8.0), 6),
    "spectrum": (StreamSpec("spectrum", (16, 1), 16.0), 20),
    "features": (StreamSpec("features", (6,), 2.0), 9),
    "tokens": (StreamSpec("tokens", (), 1.0), 9),
}
SMALL = {"widths": (4, 6), "depths": (1, 1), "strides": (1, 2)}


def example(kind: str) -> Stream:
    spec, steps = SPECS[kind]
    stream = stream_of(spec, batch=2, steps=steps)
    return stream._replace(data=stream.data.clamp(-5, 5)) if stream.data.is_floating_point() else stream


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


def test_a_perceptron_is_exported_and_says_its_rates(tmp_path: Path) -> None:
    import json

    import onnx

    tower = made(lambda: MLP(6, hidden=8, dim=4)).train()
    found = export_encoder(tower, {"video": example("features")}, tmp_path / "mlp.onnx")
    assert tower.training
    assert found["inputs"] == ["video", "video_mask"]
    assert found["outputs"] == ["output", "output_mask"]
    assert found["error"] < 1e-5
    about = {p.key: p.value for p in onnx.load(tmp_path / "mlp.onnx").metadata_props}
    assert json.loads(about["avcl.rates"]) == {"video": 2.0}
    assert json.loads(about["avcl.rate"]) == 2.0


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "avcl.adapters.onnx_export")
    with pytest.raises(ExtraError, match="onnxruntime") as caught:
        importlib.import_module("avcl.adapters.onnx_export")
    assert (caught.value.exit, caught.value.hint) == (3, 'Run: pip install "avcl[export]"')


class Untranslatable(nn.Module):
    """torch knows it, ONNX does not."""

    def forward(self, stream: Stream) -> Tensor:
        return torch.special.bessel_j0(stream.data).sum(1)


def test_what_cannot_be_exported_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Untranslatable cannot be exported"):
        export_encoder(Untranslatable(), {"x": example("features")}, tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()
    one = example("features")
    one = one._replace(data=one.data[:1], mask=one.mask[:1])
    with pytest.raises(ConfigError, match="two clips"):
        export_encoder(made(lambda: MLP(6, hidden=8, dim=4)), {"x": one}, tmp_path / "x.onnx")
    with pytest.raises(ConfigError, match="float32"):
        export_encoder(made(lambda: MLP(6, hidden=8, dim=4)).double(), {"x": example("features")}, tmp_path / "x.onnx")
    with pytest.raises(ConfigError, match="does not embed"):
        export_embeddings(nn.Linear(2, 2), {"x": one}, tmp_path)


TOWERS = {
    "TokenConv": (lambda: TokenConv(8, dim=8), "tokens"),
    "FrameConv": (lambda: FrameConv((4, 6, 8)), "video"),
    "ChangeConv": (lambda: ChangeConv(dim=8, widths=(4, 6)), "video"),
    "LogMelConv": (lambda: LogMelConv(dim=8, bands=16, widths=(4, 4, 6)), "audio"),
    "FrameResNet": (lambda: resnet.FrameResNet(**SMALL), "video"),
    "SpectrumResNet": (lambda: resnet.SpectrumResNet(**SMALL), "spectrum"),
    "VideoResNet": (lambda: conv3d.VideoResNet(**SMALL), "video"),
    "VideoTransformer": (lambda: patches.VideoTransformer(dim=8, heads=2, depth=1), "video"),
    "SpectrogramTransformer": (lambda: patches.SpectrogramTransformer(dim=8, heads=2, depth=1, bands=32), "audio"),
    "WaveformConv": (lambda: waveform.WaveformConv(((6, 10, 5, 1), (8, 8, 4, 2))), "audio"),
    "TCN": (lambda: recurrent.TCN(6, dim=8, depth=2), "features"),
    "TransformerEncoder": (lambda: transformer.TransformerEncoder(8, features=6, heads=2, depth=1), "features"),
    "UNet": (lambda: unet.UNet(widths=(4, 6)), "spectrum"),
}
FIXED = {  # in their number of steps: a loop over them, or over the patches that they are cut into
    "Recurrent": (lambda: recurrent.Recurrent(6, hidden=4), "features"),
    "VGGish": (lambda: vggish.VGGish(widths=(4, 4, 4, 4, 4, 4), hidden=(8, 8), dim=8), "audio"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TOWERS, *FIXED])
def test_towers_say_the_same(name: str, tmp_path: Path) -> None:
    make, kind = {**TOWERS, **FIXED}[name]
    found = export_encoder(made(make), {kind: example(kind)}, tmp_path / "tower.onnx", steps=name in FIXED)
    assert found["error"] <= 1e-4
    assert found["rate"] == made(make).eval()(example(kind)).rate


@pytest.mark.slow
def test_two_inputs(tmp_path: Path) -> None:
    module = made(lambda: transformer.CrossModalTransformer(6, heads=2, depth=1))
    spec = StreamSpec("features", (6,), 3.0)
    streams = {"audio": example("features"), "video": stream_of(spec, batch=2, steps=7)}
    found = export_encoder(module, streams, tmp_path / "two.onnx")
    assert found["inputs"] == ["audio", "audio_mask", "video", "video_mask"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["media", "features"])
def test_the_embeddings_of_infonce(kind: str, tmp_path: Path) -> None:
    media = {"audio": StreamSpec("audio", (1,), 16_000.0), "video": StreamSpec("video", (3, 64, 64), 8.0)}
    rows = {"audio": StreamSpec("features", (12,), 1.0), "video": StreamSpec("features", (6,), 1.0)}
    spec = DataSpec(media if kind == "media" else rows, n_items=4)
    config = InfoNCE.Config()
    model = Model(made(lambda: InfoNCE(config, spec)).eval(), InfoNCE.inputs(config), {})
    model.save(tmp_path / "run")
    results = list(Export(run_folder=tmp_path / "run", out=tmp_path / "onnx").run())
    assert [Path(one["file"]).name for one in results] == ["audio.onnx", "video.onnx"]
    assert all(one["error"] <= 1e-4 for one in results)
