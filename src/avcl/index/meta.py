"""``meta.json``: what an index was built with. It does not change after the index is made, except for where things
lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from avcl.errors import ConfigError, ModelError, StoreError
from avcl.files import read_json, write_json
from avcl.index import ann
from avcl.index.rows import MODALITIES
from avcl.media.cut import check
from avcl.types import Clip, Inputs

NAME = "meta.json"
FORMAT = 1
SIMILARITIES = ("cosine", "dot")


class Embedder(Protocol):
    """What turns clips into vectors. ``fingerprint``: of the weights and of how media are decoded for them.

    ``modalities``: the streams it can embed · ``window``: seconds of a clip it was made for · ``similarity_name``:
    "cosine" or "dot" · ``inputs``: how media are decoded. ``embed_clips`` gets clips that all have the stream
    ``modality`` (not all of the same length) and returns [n, dim].
    """

    @property
    def fingerprint(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def modalities(self) -> tuple[str, ...]: ...
    @property
    def window(self) -> float: ...
    @property
    def similarity_name(self) -> str: ...
    @property
    def inputs(self) -> Inputs: ...

    def embed_clips(self, clips: list[Clip], modality: str) -> np.ndarray: ...


@dataclass(frozen=True)
class Meta:
    """``model``: fingerprint · ``model_path``: where it was loaded from · ``media``: the folder that paths are
    relative to.
    """

    model: str
    inputs: Inputs
    similarity: str
    dim: int
    modalities: tuple[str, ...]
    factory: str
    segment: float
    hop: float
    media: str = ""
    model_path: str = ""
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.similarity not in SIMILARITIES:
            raise ConfigError(
                f'the similarity "{self.similarity}" of this model cannot be searched.',
                hint=f"An index can hold {' or '.join(SIMILARITIES)}.",
            )
        if not self.modalities or set(self.modalities) - set(MODALITIES):
            raise ConfigError(
                f"an index holds {' and '.join(MODALITIES)}, not {', '.join(self.modalities) or 'nothing'}."
            )
        if self.dim < 1:
            raise ConfigError(f"vectors must have at least one dimension, not {self.dim}.")
        check(self.segment, self.hop)
        if not ann.is_exact(self.factory):
            ann.make(self.factory, self.dim)

    @property
    def cosine(self) -> bool:
        return self.similarity == "cosine"

    def require(self, folder: Path, fingerprint: str, inputs: Inputs | None = None) -> None:
        """ModelError unless vectors of the model with this fingerprint can be compared with those of the index."""
        first = self.model_path or str(folder)
        if fingerprint != self.model:
            raise ModelError(
                f"the index was built with model {self.model}, you loaded {fingerprint}. Vectors are not comparable.",
                file=folder,
                hint=f"Use the first model ({first}), or build another index with avcl index build.",
            )
        if inputs is not None and inputs != self.inputs:
            changed = [f.name for f in fields(Inputs) if getattr(inputs, f.name) != getattr(self.inputs, f.name)]
            raise ModelError(
                f"the model decodes media differently now ({', '.join(changed)}). Vectors are not comparable.",
                file=folder,
                hint="Use the inputs of the index, or build another one.",
            )

    def same_settings(self, other: Meta) -> list[str]:
        """Names of the settings in which two indices of one model differ."""
        names: Sequence[str] = ("similarity", "dim", "modalities", "factory", "segment", "hop")
        return [name for name in names if getattr(self, name) != getattr(other, name)]

    def write(self, folder: Path) -> None:
        write_json(folder / NAME, {**asdict(self), "inputs": asdict(self.inputs)})

    def moved(self, *, media: str | None = None, model_path: str | None = None) -> Meta:
        """The same index with its media or its model in another place."""
        return replace(self, media=media or self.media, model_path=model_path or self.model_path)


def read(folder: Path) -> Meta:
    """StoreError where ``folder`` is no index or its meta.json is damaged."""
    if not (folder / NAME).is_file():
        raise StoreError(
            "this is not an index (it has no meta.json).", file=folder, hint="Make one with avcl index build."
        )
    value: Any = read_json(folder / NAME)
    try:
        if value["format"] != FORMAT:
            raise StoreError(
                f"the index has format {value['format']}, not {FORMAT}.", file=folder, hint="Build it again."
            )
        known = {f.name for f in fields(Meta)}
        kept = {key: v for key, v in value.items() if key in known}
        modalities = tuple(value["modalities"])
        return Meta(**{**kept, "inputs": Inputs.from_json(value["inputs"]), "modalities": modalities})
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise StoreError(
            f"meta.json is damaged ({type(error).__name__}).", file=folder, hint="Build it again."
        ) from None
