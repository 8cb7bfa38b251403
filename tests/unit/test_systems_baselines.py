"""The baselines of the retrieval papers: worked values, closed forms beside their oracles, what they refuse, and that
each learns a small problem.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import avcl
from avcl import discover
from avcl.data.features import FeatureData
from avcl.errors import BatchError, ConfigError
from avcl.metrics.ranking import rank
from avcl.objectives.kernels import kernel_cca, rbf_kernel
from avcl.seeds import seeded
from avcl.system import Embeds, Step, System
from avcl.systems.acmr import ACMR, hardest
from avcl.systems.kcca import KCCA, KCCAConfig
from avcl.systems.semantic_matching import SemanticMatching, SemanticMatchingConfig, _distances
from avcl.types import Batch, DataSpec, Stream, StreamSpec

CLASSES = ("a", "b", "c", "d", "e")
NETWORKS = {"epochs": 15, "hidden": (24, 16), "activation": "gelu", "components": 4, "learning_rate": 5e-3}
# How each is trained on the small problem, and the class mAP that it must reach (chance .2).
QUICK = {
    "semantic_matching": ({}, 0.8),
    "c_cca": ({"components": 4}, 0.75),
    "dcca": ({**NETWORKS, "batch_size": 60}, 0.5),
    "c_dcca": ({**NETWORKS, "batch_size": 60}, 0.75),
    "kcca": ({"components": 4}, 0.5),
    "triplet": ({"epochs": 10, "hidden": (24,), "dim": 8, "batch_size": 50, "learning_rate": 5e-3}, 0.75),
    "acmr": ({"epochs": 10, "hidden": (24,), "hidden_video": (24,), "dim": 8, "learning_rate": 5e-3}, 0.75),
    "dccae": ({**NETWORKS, "batch_size": 60}, 0.5),
}
SUPERVISED = ("semantic_matching", "c_cca", "c_dcca", "acmr")
TWO_ONLY = ("dcca", "c_dcca", "triplet", "acmr", "dccae")
X = torch.tensor([[1.0, 2], [2, 1], [3, 5], [4, 3], [5, 6], [6, 8]])  # the toy views of the correlation objectives
Y = torch.tensor([[2.0, 0], [1, 1], [4, 2], [3, 1], [7, 2], [6, 4]])
TOY = DataSpec({"audio": StreamSpec("features", (2,), 1.0), "video": StreamSpec("features", (2,), 1.0)}, ("a", "b"))


def features(n: int = 300, *, seed: int = 0) -> FeatureData:
    """Class centers of 5 classes, bent differently in each modality, in noise; nothing is shared beyond the class."""
    mix, rng = np.random.default_rng(7), np.random.default_rng(seed)
    label = np.arange(n) % len(CLASSES)
    arrays = {}
    for name, width in (("audio", 12), ("video", 16)):
        center = np.tanh(2 * mix.normal(size=(len(CLASSES), width)))
        arrays[name] = (center[label] + 0.5 * rng.normal(size=(n, width))).astype(np.float32)
    words = [CLASSES[i] for i in label]
    return FeatureData.from_arrays({**arrays, "label": words, "id": [f"{seed}-{i}" for i in range(n)]})


def whole(data: FeatureData) -> Batch:
    return avcl.data.collate([data.clip(i) for i in range(len(data))]).to("cpu")


def full(x: torch.Tensor) -> Stream:
    return Stream(x[:, None], torch.ones(len(x), 1, dtype=torch.bool), 1.0)


def toy(label: tuple[int, ...] = (0, 0, 0, 1, 1, 1), x: torch.Tensor = X, y: torch.Tensor = Y) -> Batch:
    n = len(label)
    ids, zero = tuple(map(str, range(n))), torch.zeros(n, dtype=torch.long)
    return Batch(ids, {"audio": full(x), "video": full(y)}, torch.arange(n), zero, torch.tensor(label), ids)


def make(name: str, spec: DataSpec = TOY, **settings) -> System:
    cls = discover.system_class(name)
    with seeded(0, "init"):
        return cls(cls.Config.from_json(settings), spec).eval()


def at(turn: str = "") -> Step:
    return Step(0, 10, 0, 0.5, torch.Generator().manual_seed(0), turn)


def told(x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    """As ``encode`` would say."""
    return {"audio": x, "video": y, "both": torch.ones(len(x), dtype=torch.bool)}


# ------------------------------------------------------------------------------------------------------------- learning
@pytest.mark.parametrize("name", QUICK)
def test_learns_classes_from_features(name: str) -> None:
    settings, least = QUICK[name]
    model = avcl.train(name, features(), seed=0, settings=settings, workers=0)
    test = features(100, seed=1)
    scores = avcl.evaluate(model, test, relevance="class", workers=0).scores
    assert scores["mean"]["mAP"] > least, scores
    system, batch = model.system, whole(test)
    assert isinstance(system, Embeds)
    with pytest.raises(ConfigError, match='"vidoe"'):
        system.embed(batch, "vidoe")
    if name != "acmr":  # whose distances are no cosines
        torch.testing.assert_close(system.embed(batch, "audio+video").norm(dim=1), torch.ones(100))


@pytest.mark.parametrize("name", QUICK)
def test_clips_that_lack_a_modality_take_no_part(name: str) -> None:
    """Classifiers, and scales of columns, are those of one modality: there the sound of such a clip counts."""
    settings, _ = QUICK[name]
    batch = whole(features(60))
    masks = {n: s.mask.clone() for n, s in batch.streams.items()}
    masks["video"][5:9] = False
    if name in ("semantic_matching", "dccae"):
        masks["audio"][5:9] = False
    holes = dataclasses.replace(batch, streams={n: s._replace(mask=masks[n]) for n, s in batch.streams.items()})
    rest = torch.tensor([i for i in range(60) if not 5 <= i < 9])
    streams = {n: Stream(s.data[rest], s.mask[rest], s.rate) for n, s in batch.streams.items()}
    less = dataclasses.replace(batch, id=tuple(str(int(i)) for i in rest), streams=streams, label=batch.label[rest])
    spec, found = features(60).spec, []
    for given in (holes, less):
        system = make(name, spec, **{**settings, **({"dropout": 0.0} if "epochs" in settings else {})})
        with torch.no_grad():
            system.begin_epoch([given], 0)
            terms = system(given, at())[0]
            system.finish([given])
        assert isinstance(system, Embeds)
        found.append((system.embed(less, "video"), torch.stack([t.float() for t in terms.values()])))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-4, rtol=1e-4)
    if not system.closed_form:
        torch.testing.assert_close(found[0][1], found[1][1], atol=1e-4, rtol=1e-4)
        assert not bool(system.embed(holes, "video")[5:9].any()) or name == "acmr"


@pytest.mark.parametrize("name", QUICK)
def test_says_what_the_data_lack(name: str) -> None:
    data = features(20)
    batch = whole(data)
    unlabeled = dataclasses.replace(batch, label=torch.full_like(batch.label, -1))
    if name in SUPERVISED:
        with pytest.raises(ConfigError, match="the data have 0"):
            make(name, dataclasses.replace(data.spec, labels=()))
        system = make(name, data.spec, **({"components": 4} if name == "c_dcca" else {}))
        with pytest.raises(BatchError, match=r"label for every clip|two classes or more"):
            system.finish([unlabeled]) if system.closed_form else system(unlabeled, at())
    text = {"text": StreamSpec("features", (5,), 1.0)}
    three = DataSpec({**data.spec.streams, **text}, CLASSES)
    if name in TWO_ONLY:
        with pytest.raises(ConfigError, match=r"two modalities, not (3|audio, video, text)"):
            make(name, three)
    else:
        assert make(name, three).modalities == ("audio", "video", "text")


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("semantic_matching", {"classifier": "chi-svm"}),
        ("c_cca", {"pairs": "every"}),
        ("c_cca", {"ridge_unit": "two"}),
        ("c_dcca", {"pairs": "every"}),
        ("kcca", {"kernel": "poly"}),
        ("triplet", {"positives": "class"}),
        ("triplet", {"positives": "pair", "own_pair": False}),
    ],
)
def test_unknown_words_are_refused(name: str, setting: dict) -> None:
    with pytest.raises(ConfigError):
        make(name, **setting)


@pytest.mark.parametrize("name", ["dcca", "dccae", "kcca"])
def test_what_learns_from_pairs_needs_no_label(name: str) -> None:
    data = features(60)
    system = make(name, dataclasses.replace(data.spec, labels=()), **QUICK[name][0])
    batch = dataclasses.replace(whole(data), label=torch.full((60,), -1))
    assert all(bool(torch.isfinite(t)) for t in system(batch, at())[0].values())
    system.finish([batch])


# ---------------------------------------------------------------------------------------------------------- correlation
def test_cluster_cca_of_the_toy_views() -> None:
    exact = make("c_cca", components=2, ridge=1e-4, ridge_unit="one")
    exact.finish([toy()])
    assert float(exact.correlation[0]) == pytest.approx(0.656098, abs=1e-5)
    for beta, expected in ((0.0, [0.546753]), (0.2, [0.594573, 0.020212]), (1.0, [0.989514, 0.059686])):
        mixed = make("c_cca", components=2, ridge=1e-4, ridge_unit="one", pairs="mixed", pair_weight=beta)
        mixed.finish([toy()])
        assert mixed.correlation[: len(expected)].tolist() == pytest.approx(expected, abs=1e-5)


def test_cluster_cca_is_the_cca_of_all_pairs_of_a_class_and_knows_no_batches() -> None:
    batch = whole(features(60))
    label = batch.label.tolist()
    pairs = [(i, j) for i, j in itertools.product(range(60), repeat=2) if label[i] == label[j]]
    x = torch.cat([batch.audio.data[[i for i, _ in pairs], 0], batch.video.data[[j for _, j in pairs], 0]], 1).double()
    covariance = torch.cov(x.T, correction=0)
    from avcl.objectives.correlation import canonical_directions

    expected = canonical_directions(covariance, [12, 16], dim=4, ridge=0.01)
    found = make("c_cca", features(60).spec, components=4, ridge=0.01, ridge_unit="one")
    parts = [avcl.data.collate([features(60).clip(i) for i in range(s, s + 20)]).to("cpu") for s in (0, 20, 40)]
    found.finish(parts)
    torch.testing.assert_close(found.correlation, expected.correlation)
    z = normalize((batch.audio.data[:, 0].double() - x[:, :12].mean(0)) @ expected.weights[0], dim=1)
    torch.testing.assert_close(found.embed(batch, "audio"), z.float(), atol=1e-5, rtol=1e-4)


def test_the_ridge_is_relative_to_the_mean_eigenvalue() -> None:
    """Then the scale of the features is none of its business."""
    big = [Stream(s.data * 1000, s.mask, s.rate) for s in toy().streams.values()]
    scaled = dataclasses.replace(toy(), streams=dict(zip(("audio", "video"), big, strict=True)))
    one, two = (make("c_cca", components=2, ridge=0.3) for _ in range(2))
    one.finish([toy()])
    two.finish([scaled])
    torch.testing.assert_close(one.correlation, two.correlation)


def test_deep_correlation_of_the_toy_views() -> None:
    def value(name: str, **settings) -> float:
        system = make(name, **{"components": 2, "ridge": 1e-4, **settings})
        return float(system.losses(told(X, Y), toy(), at())["correlation"])

    assert value("dcca") == pytest.approx(-1.049200, abs=1e-5)
    assert value("dcca", norm="frobenius") == pytest.approx(-0.991313, abs=1e-5)
    assert value("c_dcca", components=1) == pytest.approx(-0.656098, abs=1e-5)
    assert value("c_dcca", pairs="mixed") == pytest.approx(-0.614785, abs=1e-5)


def test_auto_encoders_reconstruct_their_standardized_inputs() -> None:
    data = features(60)
    how = {**QUICK["dccae"][0], "reconstruction": 0.3}
    system, plain = make("dccae", data.spec, **how), make("dccae", data.spec, **{**how, "reconstruction": 0.0})
    batch = whole(data)
    for each in (system, plain):
        each.begin_epoch([batch], 0)
    encoded = {name: value.detach() for name, value in system.encode(batch).items()}
    x = batch.audio.data[:, 0]
    torch.testing.assert_close(encoded["audio:x"], (x - x.mean(0)) / x.std(0, correction=0), atol=1e-5, rtol=1e-4)
    made = {n: system.decoders[n](encoded[n]).detach() for n in ("audio", "video")}
    expected = sum(float((encoded[f"{n}:x"] - y).square().sum() / 60) for n, y in made.items())
    terms = system.losses(encoded, batch, at())
    assert float(terms["reconstruction"].detach()) == pytest.approx(0.3 * expected, rel=1e-5)
    assert plain.losses(encoded, batch, at()).keys() == {"correlation"}


# -------------------------------------------------------------------------------------------------------------- kernels
def test_kernel_cca_of_the_toy_views() -> None:
    system = make("kcca", components=3, ridge=0.1, landmarks=9)
    system.finish([toy()])
    assert system.correlation.tolist() == pytest.approx([0.929589, 0.709047, 0.328606], abs=1e-5)


def test_with_a_landmark_for_every_clip_it_is_exact_and_with_fewer_nearly() -> None:
    data, test = whole(features(90)), whole(features(30, seed=1))
    scale = {n: float(2 * s.data[:, 0].double().var(0, correction=0).sum()) for n, s in data.streams.items()}
    kernels = [rbf_kernel(s.data[:, 0], s.data[:, 0], scale=scale[n]) for n, s in data.streams.items()]
    expected = kernel_cca(*kernels, dim=4, ridge=1.0)
    system = make("kcca", features(90).spec, components=4, ridge=1.0, landmarks=100)
    system.finish([data])
    torch.testing.assert_close(system.correlation, expected.correlation, atol=1e-7, rtol=1e-6)
    new = rbf_kernel(test.audio.data[:, 0], data.audio.data[:, 0], scale=scale["audio"])
    z = normalize(expected.project(0, new), dim=1).float()
    found = system.embed(test, "audio")
    signs = (found * z).sum(0).sign()
    torch.testing.assert_close(found * signs, z, atol=1e-4, rtol=1e-3)
    few = make("kcca", features(90).spec, components=4, ridge=1.0, landmarks=40)
    few.finish([data])
    assert float((few.correlation[0] - expected.correlation[0]).abs()) < 0.05
    assert few.kernels["audio"].landmarks.shape == (40, 12)


def test_the_linear_kernel_is_linear_cca() -> None:
    data = whole(features(90))
    system = KCCA(KCCAConfig(components=4, kernel="linear", ridge=8.9, landmarks=100), features(90).spec)
    system.finish([data])
    linear = make("c_cca", features(90).spec, components=4, pairs="mixed", pair_weight=1.0, ridge=0.1, ridge_unit="one")
    linear.finish([data])
    torch.testing.assert_close(system.correlation, linear.correlation)


def test_landmarks_do_not_depend_on_the_batches() -> None:
    spec = features(90).spec
    found = []
    for size in (90, 20):
        system = make("kcca", spec, components=4, landmarks=30)
        clips = [features(90).clip(i) for i in range(90)]
        system.finish([avcl.data.collate(clips[i : i + size]).to("cpu") for i in range(0, 90, size)])
        found.append(system.kernels["audio"].landmarks)
    torch.testing.assert_close(found[0], found[1])
    with pytest.raises(BatchError, match="at least two clips"):
        make("kcca").finish([])
    with pytest.raises(BatchError, match="twice"):
        make("kcca").finish(iter([toy()]))


# ---------------------------------------------------------------------------------------------------- semantic matching
def test_posteriors_are_those_of_the_classifier() -> None:
    from sklearn.linear_model import LogisticRegression

    data, test = whole(features(100)), whole(features(40, seed=1))
    system = make("semantic_matching", features(100).spec, cost=0.5)
    system.finish([data])
    for name in ("audio", "video"):
        x, new = (b.streams[name].data[:, 0].double().numpy() for b in (data, test))
        mean, deviation = x.mean(0), x.std(0)
        oracle = LogisticRegression(C=0.5, max_iter=10_000).fit((x - mean) / deviation, data.label.numpy())
        expected = oracle.predict_proba((new - mean) / deviation)
        np.testing.assert_allclose(system.encode(test)[name].numpy(), expected, atol=1e-5)
    p = system.encode(test)["audio"]
    torch.testing.assert_close(system.embed(test, "audio"), normalize(p - 1 / 5, dim=1).float())
    plain = SemanticMatching(SemanticMatchingConfig(centered=False), system.spec)
    plain.load_state_dict(system.state_dict())
    torch.testing.assert_close(plain.embed(test, "audio"), normalize(p, dim=1).float())


def test_two_classes_and_a_class_that_training_never_shows() -> None:
    batch = whole(features(60))
    some = batch.label < 2
    streams = {n: Stream(s.data[some], s.mask[some], s.rate) for n, s in batch.streams.items()}
    two = dataclasses.replace(batch, id=("x",) * int(some.sum()), streams=streams, label=batch.label[some])
    for classifier in ("logistic", "rbf-svm"):
        system = make("semantic_matching", features(60).spec, classifier=classifier, cost=1.0)
        system.finish([two])
        p = system.encode(batch)["audio"]
        torch.testing.assert_close(p.sum(1), torch.ones(60, dtype=torch.float64))
        assert float(p[:, 2:].max()) < 1e-8
        assert float((p[some].argmax(1) == batch.label[some]).double().mean()) > 0.9
        with pytest.raises(BatchError, match="two classes or more"):
            system.finish([dataclasses.replace(batch, label=torch.zeros(60, dtype=torch.long))])


@pytest.mark.parametrize("classifier", ["chi2-svm", "rbf-svm"])
def test_kernel_machines_are_computed_from_tensors(classifier: str) -> None:
    from sklearn.svm import SVC

    def histograms(n: int, seed: int) -> Batch:
        batch = whole(features(n, seed=seed))
        return dataclasses.replace(batch, streams={k: full(s.data[:, 0].softmax(1)) for k, s in batch.streams.items()})

    data, test = histograms(100, 0), histograms(50, 1)
    system = make("semantic_matching", features(10).spec, classifier=classifier, cost=2.0, samples=120)
    system.finish([data])
    machine = system.classifiers["audio"]
    x, new = (b.audio.data[:, 0].double() for b in (data, test))
    if classifier == "rbf-svm":
        new, x = ((z - x.mean(0)) / x.std(0, correction=0) for z in (new, x))
    apart = _distances(x, x, chi2=classifier == "chi2-svm")
    k = [(-_distances(z, x, chi2=classifier == "chi2-svm") / apart.mean()).exp().numpy() for z in (x, new)]
    margin = SVC(kernel="precomputed", C=2.0).fit(k[0], data.label.numpy() == 3).decision_function(k[1])
    odds = machine.slope[3] * torch.from_numpy(margin) + machine.offset[3]
    own = machine._similar(test.audio.data[:, 0].double()) @ machine.dual + machine.bias
    np.testing.assert_allclose(own[:, 3].numpy(), margin, atol=1e-8)
    p = system.encode(test)["audio"]
    share = (machine.slope * own + machine.offset).sigmoid()
    torch.testing.assert_close(p[:, 3], odds.sigmoid() / share.sum(1))
    assert bool((machine.slope > 0).all())
    assert float((p.argmax(1) == test.label).double().mean()) > 0.8
    few = make("semantic_matching", features(10).spec, classifier=classifier, cost=2.0, samples=40)
    few.finish([data])
    assert few.classifiers["audio"].rows.shape == (40, 12)
    assert float((few.encode(test)["audio"].argmax(1) == test.label).double().mean()) > 0.6


def test_the_chi_square_distance_and_what_it_is_not_for() -> None:
    x, y = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    expected = [[1 / 3 + 3, 4.0], [2.0, 0.0]]
    assert torch.allclose(_distances(x, y, chi2=True), torch.tensor(expected))
    system = make("semantic_matching", features(60).spec, classifier="chi2-svm")
    with pytest.raises(BatchError, match="negative values"):
        system.finish([whole(features(60))])


def test_unlabeled_clips_are_left_out_and_no_pair_is_needed() -> None:
    batch = whole(features(60))
    some = dataclasses.replace(batch, label=torch.where(torch.arange(60) < 40, batch.label, -1))
    streams = {n: Stream(s.data[:40], s.mask[:40], s.rate) for n, s in batch.streams.items()}
    first = dataclasses.replace(batch, id=batch.id[:40], streams=streams, label=batch.label[:40])
    one, two = (make("semantic_matching", features(60).spec) for _ in range(2))
    one.finish([some])
    two.finish([first])
    torch.testing.assert_close(one.embed(batch, "video"), two.embed(batch, "video"))


# --------------------------------------------------------------------------------------------------- triplet, adversary
A = torch.tensor([[1.0, 0], [0.6, 0.8], [0, 1]])
V = torch.tensor([[0.8, 0.6], [0, 1], [0.6, -0.8]])


@pytest.mark.parametrize(("mining", "expected"), [("all", 2 * 1.056667), ("hard", 2.813333), ("semi-hard", 1.413333)])
def test_triplets_of_the_toy_batch(mining: str, expected: float) -> None:
    system = make("triplet", positives="pair", mining=mining, margin=0.2, reduction="valid")
    loss = system.losses(told(A, V), toy((-1, -1, -1), A, V), at())["triplet"]
    assert float(loss) == pytest.approx(expected, abs=1e-5)
    labeled = make("triplet", mining=mining, margin=0.2)
    with pytest.raises(BatchError, match="label for every clip"):
        labeled.losses(told(A, V), toy((-1, -1, -1), A, V), at())


def test_hardest_is_the_most_similar_clip_of_another_class() -> None:
    x = torch.tensor([[1.0, 0], [2.0, 0.1], [0, 3.0], [1.0, 1.0]])
    assert hardest(x, torch.tensor([0, 0, 1, 2])).tolist() == [3, 3, 3, 1]
    with pytest.raises(BatchError, match="two classes or more"):
        hardest(x, torch.zeros(4, dtype=torch.long))


def acmr(**settings) -> tuple[ACMR, Batch]:
    data = features(20)
    system = make("acmr", data.spec, hidden=(8,), hidden_video=(8,), dim=6, **settings)
    assert isinstance(system, ACMR)
    return system, whole(data)


def test_both_players_of_acmr_get_what_is_theirs() -> None:
    system, batch = acmr(adversarial=0.5)
    system.train()
    encoded = system.encode(batch)
    terms = system.losses(encoded, batch, at())
    networks, judge = system.phases()
    assert networks.losses == ("semantic", "metric", "mislead")

    def reached(term: str, parameters) -> bool:
        slopes = torch.autograd.grad(terms[term], list(parameters), retain_graph=True, allow_unused=True)
        return any(g is not None and bool(g.any()) for g in slopes)

    assert reached("mislead", system.views.parameters())
    assert not reached("mislead", judge.parameters)
    assert reached("discriminate", judge.parameters)
    assert not reached("discriminate", networks.parameters)
    assert reached("semantic", system.head.parameters())
    strength = 0.5 * np.tanh(0.5 * 10 * 0.5)  # γ at half of the training
    mislead, discriminate = (float(terms[name].detach()) for name in ("mislead", "discriminate"))
    assert mislead == pytest.approx(-strength * discriminate, rel=1e-4)
    assert system.losses(encoded, batch, at("discriminator")).keys() == {"discriminate"}


def test_triplets_of_acmr_and_those_of_the_demo() -> None:
    for literal in (False, True):
        system, batch = acmr(literal=literal, margin=2.0, pull=0.7)
        encoded = {n: t.detach() for n, t in system.encode(batch).items()}
        expected, label = 0.0, batch.label.tolist()
        for anchor, other in (("audio", "video"), ("video", "audio")):
            unit = normalize(encoded[f"{anchor}:x"], dim=1)
            near, far = [], []
            for i in range(20):
                n = max((j for j in range(20) if label[j] != label[i]), key=lambda j: float(unit[i] @ unit[j]))
                near.append(float((encoded[anchor][i] - encoded[other][i]).norm()))
                far.append(float((encoded[anchor][i] - encoded[other][n]).norm()))
            d, f = np.array(near), np.array(far)
            if literal:
                expected += max(0.0, 2.0 + 0.7 * (d**2).sum() - (f**2).sum())
            else:
                expected += np.maximum(0, 2.0 + 0.7 * d - f).mean()
        assert float(system.losses(encoded, batch, at())["metric"]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
        networks = system.phases()[0]
        heads = {id(p) for p in system.head.parameters()}
        assert ("mislead" in networks.losses) == (not literal)
        assert (heads <= {id(p) for p in networks.parameters}) == (not literal)


# -------------------------------------------------------------------------------------------------------- real features
@pytest.fixture(scope="module")
def articles(shared_data) -> dict[str, Batch]:
    """The Wikipedia features (Rasiwasia et al. 2010): parts "tr" and "te", picture as video, text."""
    parts = {}
    with np.load(shared_data("wikipedia_features") / "wikipedia_sift128_lda10.npz") as z:
        for part in ("tr", "te"):
            label = torch.from_numpy(z[f"L_{part}"].ravel().astype(np.int64))
            n, zero = len(label), torch.zeros(len(label), dtype=torch.long)
            streams = {name: full(torch.from_numpy(z[f"{k}_{part}"])) for name, k in (("video", "I"), ("text", "T"))}
            ids = tuple(map(str, range(n)))
            parts[part] = Batch(ids, streams, torch.arange(n), zero, label - label.min(), ids)
    return parts


WIKIPEDIA = DataSpec(
    {"video": StreamSpec("features", (128,), 1.0), "text": StreamSpec("features", (10,), 1.0)},
    tuple(f"{i:02d}" for i in range(10)),
)


def on_wikipedia(articles: dict[str, Batch], name: str, **settings) -> list[float]:
    """mAP of picture and text queries on the official test part."""
    system = make(name, WIKIPEDIA, **settings)
    system.finish([articles["tr"]])
    assert isinstance(system, Embeds)
    key = articles["te"].label.numpy()
    picture, text = (system.embed(articles["te"], n) for n in ("video", "text"))
    return [rank(q, g, key, key).summary((1,))["mAP"] for q, g in ((picture, text), (text, picture))]


def test_cluster_cca_on_wikipedia(articles: dict[str, Batch]) -> None:
    how = {"components": 5, "ridge": 1e-4, "ridge_unit": "one"}
    assert on_wikipedia(articles, "c_cca", **how) == pytest.approx([0.2731, 0.2164], abs=0.002)
    assert on_wikipedia(articles, "c_cca", pairs="mixed", **how) == pytest.approx([0.2733, 0.2184], abs=0.002)


def test_semantic_matching_on_wikipedia(articles: dict[str, Batch]) -> None:
    found = on_wikipedia(articles, "semantic_matching", cost=3.0, centered=False)
    assert found == pytest.approx([0.2779, 0.2108], abs=0.005)
    assert np.mean(on_wikipedia(articles, "semantic_matching")) > 0.255


def test_semantic_matching_with_kernels_on_wikipedia(articles: dict[str, Batch]) -> None:
    assert np.mean(on_wikipedia(articles, "semantic_matching", classifier="chi2-svm", cost=3.0)) > 0.275


def test_kernel_cca_on_wikipedia(articles: dict[str, Batch]) -> None:
    assert on_wikipedia(articles, "kcca", landmarks=400) == pytest.approx([0.2459, 0.1990], abs=0.01)
