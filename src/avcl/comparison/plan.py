"""What is compared and by which rules: all that a result depends on, and all that a job's process is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from avcl import discover
from avcl.data.dataset import Splits
from avcl.errors import ConfigError, DataError, LabelError, did_you_mean
from avcl.tasks.retrieval import Retrieval
from avcl.types import fingerprint

ALL = "all"  # every system that embeds; in ``settings``: every system that has the setting
FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """The rules of a comparison, the same for all systems.

    ``data`` a path or world · ``reading`` keyword arguments of ``load_data`` · ``budget`` minutes of training of one
    system and seed (0: none) · ``patience`` epochs without a better validation score · ``tune`` trials on the
    validation split (0: the systems' own settings) · ``settings`` {system or "all": {setting: value}}.
    """

    data: str
    reading: Mapping[str, Any] = field(default_factory=dict)
    relevance: Literal["pair", "class", "group"] = "class"
    budget: float = 5.0
    patience: int = 20
    tune: int = 0
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    on_error: Literal["skip", "raise"] = "skip"

    def __post_init__(self) -> None:
        if not 0 <= self.budget < float("inf") or self.patience < 0 or self.tune < 0:
            raise ConfigError("budget, patience and tune must be 0 or more.")

    @property
    def task(self) -> Retrieval:
        return Retrieval(relevance=self.relevance)

    @property
    def deadline(self) -> int:
        """Processor seconds after which a job is ended that does not end itself, as closed forms do not look at the
        budget; 0: never."""
        return round((1 + self.tune) * 120 * self.budget) + 600 if self.budget else 0

    def given(self, system: str, known: Iterable[str]) -> dict[str, Any]:
        """The settings of one system: those for all that it knows, then its own (known or not: it will say so)."""
        fields = set(known)
        common = {key: value for key, value in self.settings.get(ALL, {}).items() if key in fields}
        return {"patience": self.patience} | common | dict(self.settings.get(system, {}))

    def identity(self, splits: Splits) -> dict[str, Any]:
        """What results must share to stand in one table. The path is not part of it, the contents are."""
        rules = {k: v for k, v in asdict(self).items() if k not in ("data", "reading")}
        parts = {name: splits.part(name).fingerprint for name in ("train", "val", "test")}
        return {"format": FORMAT, **rules, "data": splits.all.fingerprint, "split": fingerprint(parts)}

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def chosen(names: str | Iterable[str]) -> tuple[str, ...]:
    """The systems that are meant by ``a,b,...`` or ``all`` (all that embed); ConfigError for an unknown name."""
    parts = names.split(",") if isinstance(names, str) else list(names)
    asked = tuple(dict.fromkeys(p for name in parts if (p := name.strip())))
    known = discover.system_names()
    for name in asked:
        if name != ALL and name not in known:
            raise ConfigError(f'there is no system "{name[:60]}".', hint=did_you_mean(name[:60], set(known)))
    if not asked:
        raise ConfigError("no system is named.", hint='Name some, as in "cca,infonce", or say "all".')
    return tuple(name for name in known if _embeds(name)) if ALL in asked else asked


def _embeds(name: str) -> bool:
    """Whether a system takes part in retrieval; one that cannot even be imported does, and fails where all see it."""
    try:
        return hasattr(discover.system_class(name), "embed")
    except Exception:
        return True


def check_data(splits: Splits, relevance: str) -> None:
    """DataError or LabelError where these data cannot be compared on at all."""
    for name in ("train", "val", "test"):
        if len(splits.part(name)) < 2:
            raise DataError(
                f"the {name} part has {len(splits.part(name))} rows; a comparison trains on train, stops by val and "
                "scores on test.",
                hint='Give a "split" column with all three, or more rows.',
            )
    if len(splits.all.modalities) < 2:
        raise DataError(f"two modalities are needed, not {', '.join(splits.all.modalities) or 'none'} alone.")
    for name in ("val", "test") if relevance == "class" else ():
        if max(splits.part(name).targets) < 0:
            raise LabelError(
                f"relevance by class needs labels, and no row of {name} has one.", hint="Use --relevance pair."
            )


def check_settings(settings: Mapping[str, Mapping[str, Any]], systems: tuple[str, ...]) -> None:
    """ConfigError for settings of a system that does not take part."""
    for name in settings:
        if name != ALL and name not in systems:
            hint = did_you_mean(name, {*systems, ALL})
            raise ConfigError(f'"{name}" is not among the systems that are compared.', hint=hint)
