"""Retrieval: given one modality of a clip, find the other. The protocol is an object; its fields make the fingerprint.

Every ordered pair of modalities is one direction, ``<query>_to_<gallery>``: each scored item of the query modality
ranks all items of the gallery modality, own counterpart included. ``mean`` is the plain mean of the directions,
metric by metric. Relevant to a query is, by ``relevance``:

- ``pair``: the counterpart of the same row, nothing else. - ``class``: every item of the same label. Rows without a
label (-1) are no queries; in a gallery they are never relevant. - ``group``: every item of the same group (several
captions per picture). Here a modality's items are its *distinct* contents inside each group: a picture that stands
beside five captions is one picture, not five.

Metrics, ties, chance: ``avcl.metrics.ranking``. Intervals: bootstrap over groups of queries, the same draws for all
metrics.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from avcl import discover
from avcl.data.predictions import Predictions
from avcl.errors import BatchError, ConfigError, DataError, FeatureError, LabelError, did_you_mean
from avcl.metrics.intervals import bootstrap, cluster_numbers
from avcl.metrics.ranking import Floats, Ints, Ranking, Similarity, in_order, random_ranking, rank
from avcl.system import Embeds
from avcl.types import Batch, Stream, fingerprint

# Streams beside those of the same name that a modality may show a system; all others are removed before it embeds.
FURTHER_STREAMS = {"video": ("flow", "pose")}
ORDER = ("audio", "video", "text")  # directions are listed in this order, other names after it
WORDS = {
    "pair": "the counterpart of the same clip is the one right answer",
    "class": "every item with the same label is a right answer, the own counterpart included",
    "group": "every item of the same group is a right answer; repeated contents of a group count once",
}


@dataclass(frozen=True)
class Direction:
    """One direction, query by query: rows of the predictions, their keys (equal: relevant), and the ranking."""

    query: str
    gallery: str
    rows: Ints  # [Q] row of each query
    columns: Ints  # [G] row of each gallery item
    row_keys: Ints
    column_keys: Ints
    ranking: Ranking

    @property
    def name(self) -> str:
        return f"{self.query}_to_{self.gallery}"


@dataclass(frozen=True)
class Scores:
    """What ``score`` returns: the ``parts`` of a Report that a task knows, and the directions query by query."""

    task: str
    protocol: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, float]]
    chance: Mapping[str, Mapping[str, float]]
    interval: Mapping[str, Mapping[str, tuple[float, float]]]
    per_class: Mapping[str, Mapping[str, Mapping[str, float]]]
    n_scored: int
    n_official: int
    directions: Mapping[str, Direction] = field(repr=False)

    def parts(self) -> dict[str, Any]:
        """Keyword arguments of ``avcl.types.Report``; system, data and what else is known come beside them."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "directions"}


@dataclass(frozen=True)
class Retrieval:
    """The retrieval protocol.

    ``relevance`` what counts as a right answer · ``ks`` of R@k · ``map_at``, ``ndcg_at`` cut-offs beside the full
    lists · ``modalities`` which take part (empty: all that data and system share) · ``bootstrap`` resamples of the
    intervals and ``seed`` of their draws (nothing else is random).
    """

    relevance: Literal["pair", "class", "group"] = "pair"
    ks: tuple[int, ...] = (1, 5, 10)
    map_at: tuple[int, ...] = (10,)
    ndcg_at: tuple[int, ...] = ()
    modalities: tuple[str, ...] = ()
    bootstrap: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.relevance not in WORDS:
            raise ConfigError(
                f'relevance "{self.relevance}" is not known.', hint=did_you_mean(self.relevance, set(WORDS))
            )
        for name in ("ks", "map_at", "ndcg_at"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # a list hashes and compares like the tuple
            if any(k < 1 or k != int(k) for k in getattr(self, name)):
                raise ConfigError(f"{name} must be whole numbers from 1, not {getattr(self, name)}.")
        object.__setattr__(self, "modalities", tuple(self.modalities))
        if not self.ks or self.bootstrap < 0 or len(self.modalities) == 1:
            raise ConfigError(
                "a retrieval protocol needs one k or more, 0 resamples or more, and two modalities or more."
            )

    @classmethod
    def from_protocol(cls, protocol: Mapping[str, Any]) -> Retrieval:
        """The protocol of a Report as an object again."""
        return cls(**{f.name: protocol[f.name] for f in fields(cls)})

    @property
    def protocol(self) -> dict[str, Any]:
        """The fields, the name of the task and the rule in words."""
        return {**self._rules, "headline": {"condition": "mean", "metric": self.deciding, "better": "higher"}}

    @property
    def _rules(self) -> dict[str, Any]:
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"name": "retrieval", **named, "words": WORDS[self.relevance]}

    @property
    def deciding(self) -> str:
        """The metric that decides whether a system works."""
        return "mAP" if self.relevance == "class" else f"R@{max(self.ks)}"

    @property
    def fingerprint(self) -> str:
        return fingerprint(self._rules)

    # ------------------------------------------------------------------------------------------------------- predict
    def predict(
        self, system: Any, batches: Iterable[Batch], *, labels: tuple[str, ...] = (), n_official: int = 0
    ) -> Predictions:
        """Embed every modality of every batch, one at a time: the system sees no other stream, label or extra.

        ``labels``: class names, kept with the predictions · ``n_official``: rows there should be (0: those there
        are). With three modalities or more each is embedded toward each other one (the same vectors are kept once).
        The system is put into evaluation mode for the time. Raises CapabilityError, BatchError (a modality is
        missing), FeatureError.
        """
        discover.require(system, Embeds, "be scored at retrieval")
        module = system if isinstance(system, torch.nn.Module) else None
        device = next((p.device for p in module.parameters()), torch.device("cpu")) if module else torch.device("cpu")
        training = module.training if module else False
        if module:
            module.eval()
        try:
            found = self._collect(system, batches, device)
            return replace(found, label_names=tuple(labels), n_official=n_official or len(found))
        finally:
            if module:
                module.train(training)

    def _collect(self, system: Any, batches: Iterable[Batch], device: torch.device) -> Predictions:
        ids: list[str] = []
        groups: list[str] = []
        labels: list[torch.Tensor] = []
        vectors: dict[tuple[str, str], list[torch.Tensor]] = {}
        contents: dict[str, list[bytes]] = {}
        names: tuple[str, ...] = ()
        for batch in batches:
            names = names or self._modalities(system, batch)
            batch.require(*names)
            ids += batch.id
            groups += batch.group
            labels.append(batch.label.cpu())
            for name in names:
                contents.setdefault(name, []).extend(_content(batch.streams[name]))
                shown = only_modality(batch, name).to(device)
                for other in names:
                    if other != name:
                        with torch.inference_mode():
                            made = system.embed(shown, name, toward=other)
                        vectors.setdefault((name, other), []).append(_checked(made, batch, name))
        if not ids:
            raise DataError("there is nothing to score: the data set has no rows.")
        arrays: dict[str, NDArray[np.float32]] = {}
        for name in names:
            made_for = {o: torch.cat(vectors[name, o]).numpy() for o in names if o != name}
            first, *rest = made_for.values()
            if all(np.array_equal(first, r) for r in rest):
                arrays[name] = first
            else:
                arrays |= {f"{name}_to_{o}": array for o, array in made_for.items()}
        return Predictions(
            ids=tuple(ids),
            labels=torch.cat(labels).numpy().astype(np.int64),
            groups=tuple(groups),
            embeddings=arrays,
            items={name: _distinct(groups, hashes) for name, hashes in contents.items()},
            similarity=system.similarity_name,
        )

    def _modalities(self, system: Any, batch: Batch) -> tuple[str, ...]:
        if self.modalities:
            return self.modalities
        spec = getattr(system, "spec", None)
        known = [n for n in batch.streams if spec is None or n in spec.streams]
        further = {n for several in FURTHER_STREAMS.values() for n in several}
        names = [n for n in known if n not in further and not any(n != k and n.startswith(f"{k}_") for k in known)]
        if len(names) < 2:
            raise BatchError(
                f"retrieval needs two modalities; data and system share {', '.join(names) or 'none'} "
                f"(the data have {', '.join(batch.streams)})."
            )
        return in_modality_order(names)

    # --------------------------------------------------------------------------------------------------------- score
    def rank(self, predictions: Predictions, *, similarity: Similarity | None = None) -> dict[str, Direction]:
        """Every direction ranked, query by query. ``similarity``: the function, if its name is not a built-in one."""
        names = self.modalities or in_modality_order(predictions.modalities)
        missing = [n for n in names if n not in predictions.modalities]
        if missing or len(names) < 2:
            raise DataError(
                f"the predictions hold {', '.join(predictions.modalities) or 'nothing'}; retrieval needs two modalities"
                + (f" and {', '.join(missing)} is missing." if missing else ".")
            )
        keys = self._keys(predictions)
        found = {}
        for query in names:
            for gallery in names:
                if query == gallery:
                    continue
                rows, columns = self._items(predictions, query), self._items(predictions, gallery)
                rows = rows[keys[rows] >= 0]
                ranking = rank(
                    predictions.of(query, gallery)[rows],
                    predictions.of(gallery, query)[columns],
                    keys[rows],
                    keys[columns],
                    similarity=similarity or predictions.similarity,
                    map_at=self.map_at,
                    ndcg_at=self.ndcg_at,
                )
                direction = Direction(query, gallery, rows, columns, keys[rows], keys[columns], ranking)
                found[direction.name] = direction
        return found

    def score(
        self, predictions: Predictions, *, labels: tuple[str, ...] = (), similarity: Similarity | None = None
    ) -> Scores:
        """Scores, chance, intervals, the table per class; pure, so predictions of another program can be scored too.

        ``labels``: class names for the table per class (numbers where absent). ``n_scored`` counts the rows that were
        queries. Raises LabelError (relevance by class without labels), DataError, FeatureError.
        """
        directions = self.rank(predictions, similarity=similarity)
        scored = np.flatnonzero(self._keys(predictions) >= 0)
        summaries = {name: d.ranking.summary(self.ks) for name, d in directions.items()}
        expected = {name: self._chance(d.ranking) for name, d in directions.items()}
        return Scores(
            task=self.fingerprint,
            protocol=self.protocol,
            scores=summaries | {"mean": _mean(summaries)},
            chance=expected | {"mean": _mean(expected)},
            interval=self._intervals(predictions, directions, scored) if self.bootstrap else {},
            per_class=self._per_class(predictions, directions, labels or predictions.label_names),
            n_scored=len(scored),
            n_official=predictions.n_official,
            directions=directions,
        )

    def _chance(self, ranking: Ranking) -> dict[str, float]:
        blind = random_ranking(ranking.n_relevant, ranking.n_gallery, map_at=self.map_at, ndcg_at=self.ndcg_at)
        return blind.summary(self.ks)

    def _keys(self, predictions: Predictions) -> Ints:
        if self.relevance == "pair":
            return np.arange(len(predictions))
        if self.relevance == "group":
            return cluster_numbers(predictions.groups)[0]
        if not (predictions.labels >= 0).any():
            raise LabelError(
                "relevance by class needs labels, and no row has one.",
                hint='Add a "label" column, or use --relevance pair.',
            )
        return predictions.labels

    def _items(self, predictions: Predictions, modality: str) -> Ints:
        if self.relevance == "group" and modality in predictions.items:
            return np.unique(predictions.items[modality])
        return np.arange(len(predictions))

    def _intervals(
        self, predictions: Predictions, directions: Mapping[str, Direction], scored: Ints
    ) -> dict[str, dict[str, tuple[float, float]]]:
        """Groups of rows are drawn; a drawn group brings its queries of every direction, so the mean is paired too."""
        cluster = np.full(len(predictions), -1)
        cluster[scored], count = cluster_numbers(np.asarray(predictions.groups)[scored])
        prepared = []
        for name, d in directions.items():
            mine = cluster[d.rows]
            values = d.ranking.per_query(self.ks)
            sums = np.stack([np.bincount(mine, v, count) for v in values.values()], axis=1)
            prepared.append((name, d.ranking, mine, list(values), sums, np.bincount(mine, minlength=count)))

        def statistic(weights: Floats) -> dict[tuple[str, str], Floats]:
            found: dict[tuple[str, str], Floats] = {}
            for name, ranking, mine, metrics, sums, sizes in prepared:
                means = (weights @ sums) / (weights @ sizes)[:, None]
                found |= {(name, metric): column for metric, column in zip(metrics, means.T, strict=True)}
                found[name, "medR"] = ranking.median_rank(weights[:, mine])
            for metric in [m for n, m in found if n == prepared[0][0]]:
                found["mean", metric] = np.mean([found[name, metric] for name in directions], axis=0)
            return found

        made = bootstrap(statistic, count, repeats=self.bootstrap, seed=self.seed)
        table: dict[str, dict[str, tuple[float, float]]] = {}
        for (name, metric), interval in made.items():
            table.setdefault(name, {})[metric] = interval
        return {name: in_order(table[name], self.ks) for name in (*directions, "mean")}

    def _per_class(
        self, predictions: Predictions, directions: Mapping[str, Direction], names: tuple[str, ...]
    ) -> dict[str, dict[str, dict[str, float]]]:
        table: dict[str, dict[str, dict[str, float]]] = {}
        for direction, d in directions.items():
            labels = predictions.labels[d.rows]
            for number in np.unique(labels[labels >= 0]).tolist():
                label = names[number] if number < len(names) else str(number)
                part = d.ranking.take(labels == number)
                table.setdefault(direction, {})[label] = {"queries": float(len(part)), **part.summary(self.ks)}
        # One caption of two classes is one item, so a class may be without a query in some direction.
        classes = dict.fromkeys(c for rows in table.values() for c in rows)
        if classes:
            table["mean"] = {c: _mean({d: rows[c] for d, rows in table.items() if c in rows}) for c in classes}
        return table


def in_modality_order(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n)))


def _mean(rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    first = next(iter(rows.values()))
    return {metric: float(np.mean([row[metric] for row in rows.values()])) for metric in first}


def only_modality(batch: Batch, modality: str) -> Batch:
    """The batch with nothing but the streams of one modality (``audio+text``: of both); no label, no extras."""
    parts = modality.split("+")
    own = {p for part in parts for p in (part, *FURTHER_STREAMS.get(part, ()))}
    removed = [n for n in batch.streams if n not in own and not any(n.startswith(f"{p}_") for p in parts)]
    bare = batch.without(*removed)
    return Batch(bare.id, bare.streams, bare.index, bare.view, torch.full_like(bare.label, -1), bare.group)


def _checked(made: Any, batch: Batch, modality: str) -> torch.Tensor:
    if not isinstance(made, torch.Tensor) or made.ndim != 2 or len(made) != len(batch):
        shape = list(made.shape) if isinstance(made, torch.Tensor) else type(made).__name__
        raise FeatureError(f"{modality} embeddings must have the shape [{len(batch)}, D], not {shape}.")
    made = made.detach().to("cpu", torch.float32)
    bad = [batch.id[i] for i in (~torch.isfinite(made)).any(1).nonzero().flatten().tolist()]
    if bad:
        some = ", ".join(bad[:3]) + (", ..." if len(bad) > 3 else "")
        raise FeatureError(f"{modality} embeddings have values that are not finite in {len(bad)} rows ({some}).")
    return made


def _content(stream: Stream) -> list[bytes]:
    """A hash of what was recorded in each row; padding does not count."""
    data, mask = stream.data.cpu(), stream.mask.cpu()
    return [
        hashlib.blake2b(row[m].numpy().tobytes(), digest_size=16).digest() for row, m in zip(data, mask, strict=True)
    ]


def _distinct(groups: list[str], hashes: list[bytes]) -> Ints:
    """[N] for each row the first row of its group with the same content."""
    first: dict[tuple[str, bytes], int] = {}
    return np.array([first.setdefault(key, i) for i, key in enumerate(zip(groups, hashes, strict=True))], np.int64)
