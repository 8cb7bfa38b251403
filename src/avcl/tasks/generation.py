"""Cross-modal generation: the sound for a picture, the picture for a sound, each from the other alone.

One item a clip and direction. What is generated and what is true are looked at through the same fixed view
(`avcl.encoders.views`: loudness, spectrum and rest of a log-mel; a small picture, where and when it changes; or the
features themselves), standardized by the training rows, in which the blocks of a view count alike. In it:

- ``MRR``: every generated item ranks the true items of all test clips by the cosine; relevant is its own (``relevance``
  "pair") or every one of its class ("class").
- ``Frechet@…``: distance of the Gaussian fits to generated and true items in the first ``components`` principal
  components of the training rows. N is that of the test clips: compare at equal numbers only.
- ``class@…``: share of generated items that a judge, an SVM trained on the true training rows, gives the class of their
  clip; ``class of true@…``: of the true items, which is what the judge is worth.

Behind the @ stands the fingerprint of view and training rows, or of the judge; the notes say what it is in words.
Outputs that do not name their encoder are not scored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avcl.data.dataset import Data
from avcl.data.loader import Loader
from avcl.encoders.views import View, block_scale, kind_of, spec_of, view_of
from avcl.errors import BatchError, CapabilityError, ConfigError, DataError
from avcl.metrics import chance, frechet_distance, rank
from avcl.seeds import seed_for
from avcl.system import Generates, targets_of
from avcl.task import Measure, Outputs, Table, Task, bare
from avcl.types import Batch, Stream, fingerprint

Rows = NDArray[np.float64]
BASELINES = {"training mean": "mean", "training item": "other"}


@dataclass(frozen=True)
class Generation(Task):
    """The protocol of generation. ``seconds``, ``side``, ``slots``, ``bands``: of the view · ``components`` of the
    Fréchet distance · ``fit_rows``: training rows at most that standardize, and teach the judge.
    """

    name: ClassVar[str] = "generation"
    words: ClassVar[str] = (
        "a modality is generated from the others alone and ranks the true items of all clips, in a fixed view"
    )
    needs: ClassVar[type] = Generates
    headline: ClassVar[tuple[str, str]] = ("both", "MRR")
    lower: ClassVar[frozenset[str]] = frozenset({"Frechet"})
    fits: ClassVar[bool] = True

    relevance: str = "pair"
    seconds: float = 3.0
    side: int = 12
    slots: int = 24
    bands: int = 40
    components: int = 16
    fit_rows: int = 400

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.relevance not in ("pair", "class"):
            raise ConfigError(f'relevance = "{self.relevance}" is not pair or class.')
        numbers = (self.side, self.slots, self.bands, self.components, self.fit_rows, self.seconds)
        if min(numbers) <= 0:
            raise ConfigError(f"side, slots, bands, components, fit_rows and seconds must be above 0, not {numbers}.")

    # ---------------------------------------------------------------------------------------------- what is asked
    def shown(self, batch: Batch) -> Batch:
        """The streams alone; ``answer`` takes the target of each direction away before the system sees the rest."""
        return bare(batch)

    def answer(self, system: Any, shown: Batch) -> Mapping[str, Tensor]:
        """The view of each generated modality ("made/audio" [B, D]), from a batch without it."""
        found = {}
        for target in _targets(system, shown):
            generator = torch.Generator().manual_seed(seed_for(self.seed, "generate", target))
            made = system.generate(shown.without(target), generator)
            if kind_of(made) != kind_of(shown.streams[target]):
                raise CapabilityError(
                    f"the system generates {kind_of(made)} where the data have {kind_of(shown.streams[target])}.",
                    hint="What has another form than the true stream cannot be compared with it.",
                )
            found[f"made/{target}"] = self._viewed(made)
        return found

    def truth(self, batch: Batch) -> Mapping[str, Tensor]:
        seen = {m: stream for m, stream in batch.streams.items() if kind_of(stream) != "tokens"}
        return {**{f"true/{m}": self._viewed(stream) for m, stream in seen.items()}, "label": batch.label}

    def _view(self, stream: Stream) -> View:
        return view_of(spec_of(stream), seconds=self.seconds, side=self.side, slots=self.slots, bands=self.bands)

    def _viewed(self, stream: Stream) -> Tensor:
        return self._view(stream).of(stream)

    # ----------------------------------------------------------------------------------------------------- the encoder
    def judged(self, outputs: Outputs, system: Any, data: Data, fit: Data | None, *, workers: int) -> Outputs:
        """Everything in the space of the training rows, and the judge's verdicts; encoder and judge named."""
        assert fit is not None
        rows, labels, views = self._training(fit, outputs, workers)
        arrays: dict[str, NDArray[Any]] = {"label": outputs["label"]}
        encoders, judges, n = {}, {}, len(outputs)
        draws = np.random.default_rng(seed_for(self.seed, "training item")).integers(len(labels), size=n)
        for target in _made(outputs):
            space = _Space.of(rows[target], views[target], self.components)
            encoders[target] = f"{space.name}, standardized by {len(labels)} training rows"
            known = {who: space(outputs[f"{who}/{target}"]) for who in ("made", "true")}
            known["mean"] = np.zeros_like(known["true"])
            known["other"] = space(rows[target][draws])
            judge = _judge(space(rows[target]), labels, outputs["label"])
            for who, values in known.items():
                arrays[f"{who}/{target}"] = values
                arrays[f"{who}/{target}/components"] = values @ space.directions
                if judge is not None:
                    arrays[f"{who}/{target}/class"] = judge.predict(values)
            if judge is not None:
                judges[target] = f"SVM (RBF, C = 10) on {len(labels)} training rows of {space.name}"
        tag = fingerprint({"encoders": encoders, "rows": {m: _digest(rows[m]) for m in encoders}})[:8]
        seen = [m for m in system.spec.streams if f"true/{m}" in outputs.arrays]
        directions = {t: f"{'+'.join(m for m in seen if m != t)}_to_{t}" for t in encoders}
        notes = {**outputs.notes, "directions": directions, "encoder": {**encoders, "tag": tag}}
        if judges:
            of = {"judges": judges, "of": tag, "labels": _digest(labels)}
            notes["judge"] = {**judges, "tag": fingerprint(of)[:8]}
        return Outputs(outputs.ids, outputs.groups, arrays, notes, outputs.n_official)

    def _training(
        self, fit: Data, outputs: Outputs, workers: int
    ) -> tuple[dict[str, Rows], NDArray[np.int64], dict[str, View]]:
        """The views of the training rows, evenly taken, and their labels."""
        chosen = np.unique(np.linspace(0, len(fit) - 1, min(self.fit_rows, len(fit))).astype(int)).tolist()
        if len(chosen) < 2:
            raise DataError(f"{self.name} needs at least 2 training rows to standardize by, not {len(chosen)}.")
        found: dict[str, list[Tensor]] = {target: [] for target in _made(outputs)}
        views: dict[str, View] = {}
        labels = []
        with Loader(fit.subset(chosen), batch_size=32, workers=workers) as loader:
            for batch in loader:
                labels.append(batch.label)
                for target, parts in found.items():
                    [stream] = batch.require(target)
                    views.setdefault(target, self._view(stream))
                    parts.append(self._viewed(stream))
        rows = {target: torch.cat(parts).double().numpy() for target, parts in found.items()}
        return rows, torch.cat(labels).numpy(), views

    # --------------------------------------------------------------------------------------------------------- scoring
    def measures(self, outputs: Outputs) -> Mapping[str, Mapping[str, Measure]]:
        tag = _named(outputs, "encoder")
        found: dict[str, dict[str, Any]] = {}
        for target in _made(outputs):
            keys = self._keys(outputs)
            ranking = rank(outputs[f"made/{target}"], outputs[f"true/{target}"], keys, keys, map_at=())
            row: dict[str, Any] = {"MRR": _scorable(ranking.reciprocal_rank, keys)}
            row["R@10"] = _scorable(ranking.recall(10), keys)
            row[f"Frechet@{tag}"] = _Frechet(outputs, target, tag)
            if f"made/{target}/class" in outputs.arrays:
                judge = _named(outputs, "judge")
                row[f"class@{judge}"] = _right(outputs, f"made/{target}/class")
                row[f"class of true@{judge}"] = _right(outputs, f"true/{target}/class")
            found[_direction(outputs, target)] = row
        return {**found, "both": {m: _Mean.of([row[m] for row in found.values()]) for m in _shared(found)}}

    def _keys(self, outputs: Outputs) -> NDArray[np.int64]:
        return np.arange(len(outputs)) if self.relevance == "pair" else outputs["label"].astype(np.int64)

    def chance(self, outputs: Outputs) -> Table:
        keys = self._keys(outputs)
        keys = keys[keys >= 0]
        relevant = np.array([(keys == k).sum() for k in keys])
        expected = chance(relevant, len(outputs), ks=(10,), map_at=())
        row = {name: expected[name] for name in ("MRR", "R@10")}
        return dict.fromkeys((*(_direction(outputs, t) for t in _made(outputs)), "both"), row)

    def baselines(self, outputs: Outputs) -> Mapping[str, Outputs]:
        """The mean of the training targets, and a random one of them, for every clip."""
        found = {}
        for name, who in BASELINES.items():
            parts = {k.replace(f"{who}/", "made/", 1): v for k, v in outputs.arrays.items() if k.startswith(f"{who}/")}
            found[name] = outputs.with_arrays(**parts)
        return found


# ---------------------------------------------------------------------------------------------------------------- parts
class _Space(NamedTuple):
    """Standardized by training rows, blocks alike, with the leading principal ``directions`` [D, k]."""

    name: str
    mean: Rows
    scale: Rows
    directions: Rows

    @classmethod
    def of(cls, rows: Rows, view: View, components: int) -> _Space:
        deviation = rows.std(0)
        scale = block_scale(view.blocks).double().numpy() / np.where(deviation > 1e-6, deviation, np.inf)
        _, _, directions = np.linalg.svd((rows - rows.mean(0)) * scale, full_matrices=False)
        return cls(view.name, rows.mean(0), scale, directions[:components].T)

    def __call__(self, rows: NDArray[Any]) -> Rows:
        return (rows.astype(np.float64) - self.mean) * self.scale


class _Frechet:
    """The distance over the rows that were drawn."""

    def __init__(self, outputs: Outputs, target: str, tag: str):
        self.made, self.true = (outputs[f"{who}/{target}/components"] for who in ("made", "true"))
        self.features = f"{outputs.notes['encoder'][target]}@{tag}"

    def __call__(self, rows: NDArray[np.int64]) -> float:
        return frechet_distance(self.true[rows], self.made[rows], features=self.features).value


class _Mean:
    """The mean over directions of measures that are no means over items."""

    def __init__(self, parts: list[Any]):
        self.parts = parts

    @classmethod
    def of(cls, parts: list[Any]) -> Any:
        return cls(parts) if any(callable(p) for p in parts) else np.mean(parts, axis=0)

    def __call__(self, rows: NDArray[np.int64]) -> float:
        return float(np.mean([part(rows) for part in self.parts]))


def _targets(system: Any, shown: Batch) -> list[str]:
    """What can be generated here: the system's targets that the data have, beside another modality it knows."""
    known = [m for m in system.spec.streams if m in shown.streams]
    found = [t for t in targets_of(system) if t in known and len(known) > 1]
    if not found:
        raise BatchError(
            f"nothing to generate: the system makes {', '.join(targets_of(system))}, and the data have "
            f"{', '.join(shown.streams)}.",
        )
    return found


def _made(outputs: Outputs) -> list[str]:
    return [k.removeprefix("made/") for k in outputs.arrays if k.startswith("made/") and k.count("/") == 1]


def _direction(outputs: Outputs, target: str) -> str:
    """The name of the condition, which ``judged`` noted."""
    return str(outputs.notes.get("directions", {}).get(target, f"to_{target}"))


def _named(outputs: Outputs, what: str) -> str:
    """The tag of the encoder or judge in the notes; DataError where it is unnamed."""
    about = outputs.notes.get(what)
    if not isinstance(about, Mapping) or not about.get("tag") or not all(about.get(t) for t in _made(outputs)):
        raise DataError(
            f"the outputs do not name the {what} of each generated modality, without which no value means anything.",
            hint=f'Set notes["{what}"] = {{modality: words, "tag": fingerprint}}; predict does.',
        )
    return str(about["tag"])


def _judge(rows: Rows, labels: NDArray[np.int64], tested: NDArray[np.int64]) -> Any:
    """An SVM of the training rows; None where rows lack labels or there is one class only."""
    if (labels < 0).any() or (tested < 0).any() or len(np.unique(labels)) < 2:
        return None
    from sklearn.svm import SVC

    return SVC(C=10.0).fit(rows, labels)


def _right(outputs: Outputs, name: str) -> Rows:
    return (outputs[name] == outputs["label"]).astype(np.float64)


def _scorable(values: Rows, keys: NDArray[np.int64]) -> Rows:
    """NaN, that is counted and left out, where a clip has no class to be found by."""
    return np.where(keys >= 0, values, np.nan)


def _shared(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    first, *rest = found.values()
    return [m for m in first if all(m in row for row in rest)]


def _digest(rows: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()
