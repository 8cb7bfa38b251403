"""Train, val and test: the official split checked for leaks, or a seeded one of our own that keeps groups whole."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from math import fsum

from avcl.data.dataset import Data, Splits
from avcl.data.labels import SPLITS
from avcl.errors import DataError, LeakError

log = logging.getLogger("avcl.data")

RATIOS: Mapping[str, float] = {"train": 0.8, "val": 0.1, "test": 0.1}
WITHOUT_TEST: Mapping[str, float] = {"train": 0.9, "val": 0.1}


def assign_splits(
    groups: Sequence[str],
    targets: Sequence[int] | None = None,
    *,
    seed: int = 0,
    ratios: Mapping[str, float] = RATIOS,
) -> tuple[str, ...]:
    """A split for each row: whole groups, near ``ratios`` in all and within each class.

    Groups go, the largest first and equal ones in an order drawn from ``seed``, to the split s where sum over c of
    ((have[s,c] + n[c] - want[s,c])^2 - (have[s,c] - want[s,c])^2) / want[s,c] is least, c running over the classes and
    (with more weight the more classes there are) "all rows": a chi-square. What a row gets depends on the set of
    (group, class) pairs and the seed, not on the order of the rows. Every split has a group if there are as many groups
    as splits. ``targets``: -1 is no class.
    """
    counts: dict[str, Counter[int | str]] = defaultdict(Counter)
    for group, target in zip(groups, targets if targets is not None else [-1] * len(groups), strict=True):
        counts[group]["rows"] += 1
        if target >= 0:
            counts[group][target] += 1
    total: Counter[int | str] = Counter()
    for count in counts.values():
        total.update(count)
    want = {split: {c: n * share for c, n in total.items()} for split, share in ratios.items()}
    have: dict[str, Counter[int | str]] = {split: Counter() for split in ratios}
    # "all rows" is one voice against those of many classes: it needs weight, or the sizes of the splits drift
    weight: Mapping[int | str, int] = {"rows": min(len(total), 16)}
    tie = {group: _draw(seed, group) for group in counts}
    chosen: dict[str, str] = {}
    for group in sorted(counts, key=lambda g: (-counts[g]["rows"], tie[g])):
        n = counts[group]
        # fsum: the same to the last bit in whichever order the rows named the classes
        cost = {
            s: fsum(weight.get(c, 1) * k * (k + 2 * (have[s][c] - want[s][c])) / want[s][c] for c, k in n.items())
            for s in ratios
        }
        split = min(ratios, key=lambda s: cost[s])
        chosen[group] = split
        have[split].update(n)
    members = Counter(chosen.values())
    for empty in (s for s in reversed(list(ratios)) if not members[s]):
        giver = max(ratios, key=lambda s: members[s])
        if members[giver] > 1:
            group = min((g for g, s in chosen.items() if s == giver), key=lambda g: (counts[g]["rows"], tie[g]))
            chosen[group] = empty
            members.update({empty: 1, giver: -1})
    return tuple(chosen[group] for group in groups)


def _draw(seed: int, group: str) -> bytes:
    return hashlib.blake2b(f"split {seed} {group}".encode(), digest_size=16).digest()


def find_leak(groups: Sequence[str], splits: Sequence[str]) -> tuple[str, str, list[str]] | None:
    """(split, other split, groups in both) of the worst pair (train and test before the others), or None."""
    members = {s: {g for g, o in zip(groups, splits, strict=True) if o == s} for s in SPLITS}
    for a, b in (("train", "test"), ("train", "val"), ("val", "test")):
        both = members[a] & members[b]
        if both:
            seen = dict.fromkeys(
                g for g in groups if g in both
            )  # in the order of the rows: "first" is the first one a reader meets
            return a, b, list(seen)
    return None


def make_splits(
    data: Data,
    official: Sequence[str] | None,
    *,
    seed: int = 0,
    groups: Sequence[str] | None = None,
    allow_leak: bool = False,
    where: str = "data",
) -> Splits:
    """The parts of ``data``: the ``official`` split of each row, or a seeded group-aware 80/10/10 where that is None.

    An official split without val gives a seeded group-aware tenth of train as val (the rest is train; none where train
    has fewer than three groups). ``groups`` (default: the data's own) is what is kept together. LeakError: a group
    stands in more than one official split, unless ``allow_leak``.
    """
    groups = data.groups if groups is None else groups
    targets = data.targets
    leaking = 0
    if official is None:
        splits = list(assign_splits(groups, targets, seed=seed))
        if len(set(splits)) < len(SPLITS):
            many = len(set(groups))
            log.warning(
                "%s: %d %s too few for train, val and test", where, many, "group is" if many == 1 else "groups are"
            )
    else:
        if len(official) != len(data):
            raise DataError(f"{len(official)} splits for {len(data)} rows.", file=where)
        splits = list(official)
        leak = find_leak(groups, splits)
        if leak is not None:
            a, b, both = leak
            leaking = len(both)
            if not allow_leak:
                appear = "1 group appears" if leaking == 1 else f"{leaking:,} groups appear"
                raise LeakError(
                    f'{appear} in {a} and {b} (first: "{both[0]}"). Scores would be inflated.',
                    file=where,
                    hint='Split by group with split_by="group" (--split-by group), or pass allow_leak=True '
                    "(--allow-leak) to proceed (stamped on the result).",
                )
        if "val" not in splits and "train" in splits:
            train = [i for i, split in enumerate(splits) if split == "train"]
            names = [groups[i] for i in train]
            # One of two groups is no tenth, and what is left may be too little to train on: no val then.
            ratios = WITHOUT_TEST if len(set(names)) > 2 else {"train": 1.0}
            inner = assign_splits(names, [targets[i] for i in train], seed=seed, ratios=ratios)
            for i, split in zip(train, inner, strict=True):
                splits[i] = split
    parts = {name: data.subset([i for i, s in enumerate(splits) if s == name], split=name) for name in SPLITS}
    return Splits(all=data, **parts, official=official is not None, leaking=leaking)
