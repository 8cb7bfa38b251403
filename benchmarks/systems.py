"""Supervised retrieval on features: clips a second of a whole optimization step, and the full-gallery mAP behind an
epoch, beside a straightforward script of the same step, as public code has it.

    python benchmarks/systems.py [--only zhen2019_dscmr ...] [--items 22500] [--test 5621] [--steps 100] [--rounds 5]
                                 [--threads 2] [--small] [--out FILE]

Data have the shape of VEGAS: 10 classes, sound of 128 and pictures of 1024 numbers. Ours: what training does, from the
arrays to the changed weights (loader, batch, losses, the players' turns, optimizer). A script slices prepared arrays,
lists its triplets in Python, encodes what was encoded before, and asks for its losses after each step. Both sides of a
row compute one loss of the same networks, and take turns in one process.
"""

from __future__ import annotations

import argparse
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from measure import answer, in_child, side_by_side, table, versions, write
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot, relu

from avcl.data.features import FeatureData
from avcl.data.loader import Loader
from avcl.loop.chunks import Chunks
from avcl.loop.learner import Learner
from avcl.metrics import ranking
from avcl.objectives.schedules import Reversal
from avcl.seeds import seeded
from avcl.system import System
from avcl.systems.acmr import ACMR, ACMRConfig
from avcl.systems.zeng2020_tnn_c_cca import TNNCCCA, TNNCCCAConfig
from avcl.systems.zhen2019_dscmr import DSCMR, DSCMRConfig
from avcl.types import Batch

CLASSES, SOUND, PICTURE = 10, 128, 1024
TOTAL = 1_000_000  # steps of the schedule: long enough that the measured ones are all alike
AIM = 2.0

Map = Callable[[Tensor, Tensor, Tensor], float]


def data(items: int) -> FeatureData:
    """Rows around class centers that overlap."""
    rng = np.random.default_rng(0)
    label = rng.permutation(np.arange(items) % CLASSES)
    arrays: dict[str, Any] = {"label": [f"class {i}" for i in label], "id": [str(i) for i in range(items)]}
    for name, width in (("audio", SOUND), ("video", PICTURE)):
        center = 0.3 * rng.standard_normal((CLASSES, width))
        arrays[name] = (center[label] + rng.standard_normal((items, width))).astype(np.float32)
    return FeatureData.from_arrays(arrays)


class Ours:
    """The steps of the one loop."""

    def __init__(self, system: System, rows: FeatureData):
        self.loader = Loader(rows, batch_size=system.config.batch_size, shuffle=True, drop_last=True)
        self.learner, self.done, self.made = Learner(system, TOTAL, 0), 0, self._batches()
        system.train()

    def _batches(self) -> Iterator[Batch]:
        epoch = 0
        while True:
            yield from self.loader.batches(epoch)
            epoch += 1

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.learner.learn(Chunks(iter([next(self.made)])), self.done, 0)
            self.done += 1


class Script(ABC):
    """The steps of a script on arrays ``x`` {modality: [N, D]} that are ready for the networks of ``system``."""

    x: dict[str, Tensor]

    def __init__(self, system: System, rows: FeatureData):
        self.system, self.size = system.train(), system.config.batch_size
        self.label = torch.tensor(rows.targets)
        self.order = np.random.default_rng(0)
        self.rows: list[np.ndarray] = []
        self.log: list[float] = []

    def steps(self, count: int) -> None:
        for _ in range(count):
            if not self.rows:
                whole = len(self.label) // self.size * self.size
                self.rows = np.split(self.order.permutation(len(self.label))[:whole], whole // self.size)
            self.step(torch.from_numpy(self.rows.pop()))

    @abstractmethod
    def step(self, rows: Tensor) -> None:
        """One step on these rows."""

    @abstractmethod
    def losses(self, rows: Tensor) -> dict[str, Tensor]:
        """What the step minimizes, under the names that the system gives it."""

    def move(self, optimizer: torch.optim.Optimizer, *losses: Tensor) -> None:
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        self.log += [loss.item() for loss in losses]


class TripletScript(Script):
    """All valid triplets are listed, and the three rows of each go through the networks."""

    def __init__(self, system: System, rows: FeatureData):
        super().__init__(system, rows)
        own = cast(TNNCCCA, system)
        with torch.no_grad():  # the cluster-CCA stands in front and is fixed, so a script projects once
            self.x = {name: own.cca(x.double(), name).float() for name, x in arrays(rows).items()}
        self.net, self.margin = own.branches[0], own.config.margin
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=system.config.learning_rate)

    def step(self, rows: Tensor) -> None:
        self.move(self.optimizer, *self.losses(rows).values())

    def losses(self, rows: Tensor) -> dict[str, Tensor]:
        label = self.label[rows].tolist()
        anchors, positives, negatives = [], [], []
        for i in range(len(label)):
            for j in range(len(label)):
                if i != j and label[i] == label[j]:
                    for k in range(len(label)):
                        if label[k] != label[i]:
                            anchors.append(i)
                            positives.append(j)
                            negatives.append(k)
        sound, picture = self.x["audio"][rows], self.x["video"][rows]
        a, p, n = self.net(sound[anchors]), self.net(picture[positives]), self.net(picture[negatives])
        near, far = ((a - p) ** 2).sum(1), ((a - n) ** 2).sum(1)
        return {"triplet": relu(near - far + self.margin).mean()}


class LabelScript(Script):
    """Three B × B matrices of cosines, one-hot labels made for each batch, and hits counted as it goes."""

    def __init__(self, system: System, rows: FeatureData):
        super().__init__(system, rows)
        self.own = cast(DSCMR, system)
        with torch.no_grad():
            self.x = {name: cast(Any, self.own.vectors[name]).scale(x) for name, x in arrays(rows).items()}
        self.optimizer = torch.optim.Adam(system.parameters(), lr=system.config.learning_rate, betas=(0.5, 0.999))
        self.right = 0.0

    def step(self, rows: Tensor) -> None:
        terms = self.losses(rows)
        self.move(self.optimizer, torch.stack(list(terms.values())).sum())

    def losses(self, rows: Tensor) -> dict[str, Tensor]:
        c, y = self.own.config, one_hot(self.label[rows], CLASSES).float()
        sound, picture = self.x["audio"][rows], self.x["video"][rows]
        if torch.sum(sound != sound).item() or torch.sum(picture != picture).item():
            raise ValueError("not a number")
        u, v = (self.own.common(relu(self.own.first[n](x))) for n, x in (("audio", sound), ("video", picture)))
        p, q = self.own.classify(u), self.own.classify(v)
        same = (y.mm(y.t()) > 0).float()
        likelihood = torch.zeros(())
        for one, two in ((u, v), (u, u), (v, v)):
            norms = (one**2).sum(1, keepdim=True).sqrt().mm((two**2).sum(1, keepdim=True).sqrt().t())
            theta = 0.5 * one.mm(two.t()) / norms.clamp(min=1e-6)
            likelihood = likelihood + (torch.log(1 + torch.exp(theta)) - same * theta).mean()
        for said in (p, q):
            self.right += torch.sum(torch.argmax(said, 1) == torch.argmax(y, 1)).item()
        return {
            "label": ((p - y) ** 2).sum(1).sqrt().mean() + ((q - y) ** 2).sum(1).sqrt().mean(),
            "likelihood": c.likelihood * likelihood,
            "invariance": c.invariance * ((u - v) ** 2).sum(1).sqrt().mean(),
        }


class AdversaryScript(Script):
    """Anchors, positives and negatives of both modalities are encoded each for itself, and once more for the log."""

    def __init__(self, system: System, rows: FeatureData):
        super().__init__(system, rows)
        self.own, self.x, self.strength = cast(ACMR, system), arrays(rows), 0.0
        self.height = Reversal(over=1.0, height=self.own.config.adversarial)
        networks, judge = [*self.own.views.parameters(), *self.own.head.parameters()], self.own.adversary.parameters()
        self.players = [torch.optim.Adam(ps, lr=system.config.learning_rate) for ps in (networks, judge)]
        self.done = 0

    def step(self, rows: Tensor) -> None:
        self.strength = self.height(self.done / TOTAL)
        terms = self.losses(rows)
        told = terms.pop("discriminate")
        for player, loss in zip(self.players, (torch.stack(list(terms.values())).sum(), told), strict=True):
            player.zero_grad()
            loss.backward(inputs=player.param_groups[0]["params"], retain_graph=loss is not told)
        for player in self.players:
            player.step()
        with torch.no_grad():
            self.log += [loss.item() for loss in self.losses(rows).values()]
        self.done += 1

    def encoded(self, name: str, rows: Tensor) -> Tensor:
        return torch.tanh(cast(Any, self.own.views[name]).net(self.x[name][rows]))

    def wrong(self, name: str, rows: Tensor) -> Tensor:
        """Of each row the most similar one of another class."""
        x, label = self.x[name][rows].numpy(), self.label[rows].numpy()
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        return rows[np.argmax(np.where(label[:, None] == label, -np.inf, unit @ unit.T), axis=1)]

    def losses(self, rows: Tensor) -> dict[str, Tensor]:
        c, label, names = self.own.config, self.label[rows], tuple(self.x)
        codes = {name: self.encoded(name, rows) for name in names}
        metric = torch.zeros(())
        for anchor, other in (names, names[::-1]):
            positive, negative = self.encoded(other, rows), self.encoded(other, self.wrong(anchor, rows))
            near = ((codes[anchor] - positive) ** 2).sum(1).sqrt()
            far = ((codes[anchor] - negative) ** 2).sum(1).sqrt()
            metric = metric + relu(c.margin + c.pull * near - far).mean()
        told = [cross_entropy(self.own.head(z), label) for z in codes.values()]
        logits = self.own.adversary.logits(torch.cat(list(codes.values())))
        named = cross_entropy(logits, torch.arange(2).repeat_interleave(len(rows)))
        return {
            "semantic": c.semantic * (told[0] + told[1]) / 2,
            "metric": c.metric * metric,
            "mislead": -self.strength * named,
            "discriminate": named,
        }


SYSTEMS: dict[str, tuple[type[System], Callable[[], Any], type[Script]]] = {
    "zeng2020_tnn_c_cca": (TNNCCCA, TNNCCCAConfig, TripletScript),
    "zhen2019_dscmr": (DSCMR, DSCMRConfig, LabelScript),
    "acmr": (ACMR, ACMRConfig, AdversaryScript),
}


def arrays(rows: FeatureData) -> dict[str, Tensor]:
    clips = [rows.clip(i) for i in range(len(rows))]
    return {name: torch.cat([clip.streams[name].data[:, 0] for clip in clips]) for name in rows.modalities}


def system_of(name: str, rows: FeatureData) -> System:
    """As it is before the first step; the same at every call."""
    cls, config, _ = SYSTEMS[name]
    with seeded(0, "init"):
        system = cls(config(), rows.spec)
    with torch.no_grad():
        system.begin_epoch(Loader(rows, batch_size=1000), 0)
    return system


# --------------------------------------------------------------------------------------------------------- full gallery
def our_map(a: Tensor, v: Tensor, label: Tensor) -> float:
    keys = label.numpy()
    return float(ranking.rank(a, v, keys, keys).ap.mean())


def map_by_query(a: Tensor, v: Tensor, label: Tensor) -> float:
    """A query at a time, its list in NumPy."""
    gallery, keys, found = v.numpy(), label.numpy(), []
    for query, own in zip(a.numpy(), keys, strict=True):
        hits = keys[np.argsort(-(gallery @ query))] == own
        places = np.flatnonzero(hits) + 1
        found.append(np.mean(np.arange(1, len(places) + 1) / places))
    return float(np.mean(found))


def map_by_item(a: Tensor, v: Tensor, label: Tensor) -> float:
    """A query and an item at a time, as the scripts of the three systems have it."""
    order, keys = np.argsort(-(a.numpy() @ v.numpy().T), axis=1), label.tolist()
    found = []
    for i in range(len(keys)):
        hits = total = 0.0
        for place, j in enumerate(order[i]):
            if keys[i] == keys[j]:
                hits += 1
                total += hits / (place + 1)
        found.append(total / hits)
    return float(np.mean(found))


MAPS: dict[str, Map] = {"ours": our_map, "by_query": map_by_query, "by_item": map_by_item}


def embedded(items: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of a test set, unit rows of 10 numbers around class centers that overlap, and the labels."""
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(items) % CLASSES
    center = torch.randn(CLASSES, 10, generator=generator)
    a, v = (normalize(center[label] + torch.randn(items, 10, generator=generator), dim=1) for _ in range(2))
    return a, v, label


# ------------------------------------------------------------------------------------------------------------ one child
def child(case: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(case["threads"])
    rounds = case["rounds"]
    if case["system"] is None:
        test = embedded(case["test"])
        small = embedded(200)
        calls = {
            name: (lambda call=call: (call(*test), call(test[1], test[0], test[2]))) for name, call in MAPS.items()
        }
        for call in MAPS.values():
            call(*small)
        return side_by_side(calls, rounds=rounds)
    name, count, rows = case["system"], case["steps"], data(case["items"])
    sides = {
        "ours": Ours(system_of(name, rows), rows),
        "script": SYSTEMS[name][2](system_of(name, rows), rows),
    }
    for side in sides.values():
        side.steps(3)
    calls = {who: (lambda side=side: side.steps(count)) for who, side in sides.items()}
    return side_by_side(calls, rounds=rounds) | {"batch": SYSTEMS[name][1]().batch_size}


def judged(ours: float, other: float) -> dict[str, Any]:
    return {"ratio": other / ours, "aim": f"≥ {AIM:g} ×", "met": other / ours >= AIM}


def measured_rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    settings = {key: getattr(arguments, key) for key in ("items", "test", "steps", "rounds", "threads")}
    ranked = in_child(__file__, {"system": None, **settings}, timeout=3600)
    print(json.dumps(ranked), flush=True)
    rows = []
    for name in arguments.only:
        found = in_child(__file__, {"system": name, **settings}, timeout=3600)
        print(json.dumps({"system": name, **found}), flush=True)
        each = [found[f"{side}_seconds"] / arguments.steps for side in ("ours", "script")]
        shape = {"system": name, "batch": found["batch"]}
        rows.append({**shape, "what": "step", "ours_seconds": each[0], "script_seconds": each[1], **judged(*each)})
        steps = arguments.items // found["batch"]
        whole = [steps * s + ranked[f"{side}_seconds"] for s, side in zip(each, ("ours", "by_item"), strict=True)]
        rows.append({**shape, "what": "epoch", "ours_seconds": whole[0], "script_seconds": whole[1], **judged(*whole)})
    for side in ("by_query", "by_item"):
        both = ranked["ours_seconds"], ranked[f"{side}_seconds"]
        shown = {"ours_seconds": both[0], "script_seconds": both[1]}
        rows.append({"system": None, "batch": None, "what": side, **shown, **judged(*both)})
    return rows


def tables(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    met = {True: "yes", False: "no"}
    steps = [
        [
            r["system"],
            r["batch"],
            r["batch"] / r["ours_seconds"],
            r["batch"] / r["script_seconds"],
            r["ratio"],
            r["aim"],
            met[r["met"]],
        ]
        for r in rows
        if r["what"] == "step"
    ]
    columns = ["system", "batch", "ours, clips/s", "script, clips/s", "ratio", "aim", "met"]
    found = [table("One optimization step", columns, steps)]
    words = {"by_query": "a query at a time, in NumPy", "by_item": "a query and an item at a time"}
    columns = ["", "ours, s", "script, s", "ratio", "aim", "met"]
    for title, whats in (("One epoch and the mAP behind it", ("epoch",)), ("Full-gallery mAP", tuple(words))):
        cells = [
            [
                r["system"] or words[r["what"]],
                r["ours_seconds"],
                r["script_seconds"],
                r["ratio"],
                r["aim"],
                met[r["met"]],
            ]
            for r in rows
            if r["what"] in whats
        ]
        found.append(table(title, columns, cells))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), metavar="SYSTEM")
    parser.add_argument("--items", type=int, default=22_500, help="training clips")
    parser.add_argument("--test", type=int, default=5_621, help="clips of the gallery, each of them a query too")
    parser.add_argument("--steps", type=int, default=100, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="a few steps on little data: does it run?")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/systems.json"))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        case = json.loads(arguments.case)
        answer(lambda: child(case))
        return
    if arguments.small:
        arguments.items, arguments.test, arguments.steps, arguments.rounds = 400, 200, 3, 1
    rows = measured_rows(arguments)
    result = {
        "title": "Training and scoring of supervised retrieval on features",
        "about": f"benchmarks/systems.py: {arguments.items} training clips of {CLASSES} classes, features of {SOUND} "
        f"and {PICTURE} numbers, {arguments.threads} threads; medians of {arguments.rounds} rounds of "
        f"{arguments.steps} steps, in which both sides take turns. A step of ours goes from the arrays to the changed "
        "weights. A script slices prepared arrays and does what the public code of its system does at every step: "
        "zeng2020_tnn_c_cca lists its triplets in Python and encodes the rows of each of them, acmr encodes anchors, "
        "positives and negatives each for itself, and all of it once more for the log, zhen2019_dscmr counts hits and "
        "looks for missing values; each asks for its losses. mAP: both directions, "
        f"{arguments.test} queries over as many items; ours computes all metrics of the ranking, ties at their "
        "expected value. An epoch: its steps, and the mAP behind it, in the script a query and an item at a time.",
        "settings": {key: value for key, value in vars(arguments).items() if key not in ("out", "case")},
        "versions": versions("torch", "numpy"),
        "tables": tables(rows),
        "rows": rows,
    }
    write(arguments.out, result)


if __name__ == "__main__":
    main()
