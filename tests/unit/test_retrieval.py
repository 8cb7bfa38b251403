"""The retrieval protocol: directions, relevance, what a system may see, intervals, predictions as files."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from avcl.errors import BatchError, CapabilityError, ConfigError, DataError, FeatureError, LabelError, MissingFile
from avcl.metrics.intervals import bootstrap, cluster_numbers, mean_statistic, paired_difference, resamples
from avcl.tasks.retrieval import Predictions, Retrieval
from avcl.types import Batch, Report, Stream

A = torch.tensor([[1, 0], [0.6, 0.8], [0, 1]])
V = torch.tensor([[0.8, 0.6], [0, 1], [0.6, -0.8]])


def batch_of(label=(0, 0, 1), group=None, start=0, **streams: Tensor) -> Batch:
    n = len(next(iter(streams.values())))
    ids = tuple(f"clip{start + i}" for i in range(n))
    made = {k: Stream(v[:, None], torch.ones(n, 1, dtype=torch.bool), 1.0) for k, v in streams.items()}
    index, view = torch.arange(n), torch.zeros(n, dtype=torch.long)
    extras = {"truth": torch.ones(n, 3)}
    return Batch(ids, made, index, view, torch.tensor(label), tuple(group or ids), extras)


class Pooled(nn.Module):
    """Embeds by the mean over time; notes what it was shown."""

    similarity_name = "cosine"

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen: list[tuple[str, str | None, tuple[str, ...], list[int], int, bool]] = []

    def embed(self, batch: Batch, modality: str, *, toward: str | None = None) -> Tensor:
        shown = tuple(sorted(batch.streams))
        self.seen.append((modality, toward, shown, batch.label.tolist(), len(batch.extras), self.training))
        return batch.streams[modality].data.mean(1) * self.weight

    def similarity(self, q: Tensor, g: Tensor) -> Tensor:
        return nn.functional.normalize(q) @ nn.functional.normalize(g).T


def predictions(n: int = 40, noise: float = 1.0, seed: int = 0, classes: int = 4, **more) -> Predictions:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(n, 8))
    arrays = {m: (base + noise * rng.normal(size=(n, 8))).astype(np.float32) for m in ("audio", "video")}
    ids = tuple(f"c{i}" for i in range(n))
    return Predictions(**{"ids": ids, "labels": np.arange(n) % classes, "groups": ids, "embeddings": arrays} | more)


# ----------------------------------------------------------------------------------------------------------- the scores
def test_toy_batch_both_directions_and_their_mean():
    found = Retrieval(ks=(1, 2)).predict(Pooled(), [batch_of(audio=A, video=V)])
    pair = Retrieval(ks=(1, 2)).score(found)
    assert list(pair.scores) == ["audio_to_video", "video_to_audio", "mean"]
    assert pair.scores["audio_to_video"]["R@1"] == pytest.approx(1 / 3)
    assert pair.scores["video_to_audio"]["R@2"] == pytest.approx(2 / 3)
    assert pair.scores["mean"]["MRR"] == pytest.approx((0.611111 + (0.5 + 0.5 + 1 / 3) / 3) / 2, abs=1e-6)
    assert pair.chance["mean"]["R@1"] == pytest.approx(1 / 3)
    by_class = Retrieval(relevance="class").score(found)
    assert by_class.scores["audio_to_video"]["mAP"] == pytest.approx(0.722222, abs=1e-6)
    assert by_class.scores["video_to_audio"]["mAP"] == pytest.approx(0.638889, abs=1e-6)


def test_chance_interval_and_scores_have_one_shape_and_make_a_report():
    task = Retrieval(relevance="class", bootstrap=50)
    scored = task.score(predictions(), labels=("a", "b", "c", "d"))
    for part in (scored.chance, scored.interval):
        assert {d: list(row) for d, row in part.items()} == {d: list(row) for d, row in scored.scores.items()}
    for direction, row in scored.scores.items():
        for metric, value in row.items():
            low, high = scored.interval[direction][metric]
            assert low <= value <= high, (direction, metric)
    assert set(scored.per_class["mean"]) == {"a", "b", "c", "d"}
    assert scored.per_class["mean"]["a"]["queries"] == 10
    report = Report(system="cca", data="d", **scored.parts())
    text = json.dumps(report.as_dict(), allow_nan=False)
    assert Report.from_dict(json.loads(text)).scores == report.scores
    assert "audio_to_video" in str(report)


def test_random_embeddings_are_near_chance_and_collapsed_ones_on_it():
    task = Retrieval(relevance="class", bootstrap=0)
    scored = task.score(predictions(300, noise=1e3))
    assert scored.scores["mean"]["mAP"] == pytest.approx(scored.chance["mean"]["mAP"], abs=0.02)
    flat = {m: np.ones((30, 4), np.float32) for m in ("audio", "video")}
    same = predictions(30, embeddings=flat)
    for relevance in ("pair", "class"):
        scored = Retrieval(relevance=relevance, bootstrap=0).score(same)
        assert scored.scores == scored.chance
        assert scored.interval == {}


def test_wrong_partners_lose_the_pair():
    good = predictions(200, noise=0.1)
    task = Retrieval(bootstrap=0)
    assert task.score(good).scores["mean"]["R@1"] > 0.9
    wrong = task.score(good.with_wrong_partners()).scores["mean"]["R@1"]
    assert wrong < 0.05


def test_wrong_partners_by_class_are_at_chance_in_both_directions():
    labels = np.arange(400) % 4
    corners = np.eye(4, dtype=np.float32)[labels]  # perfect clusters: alone they would raise the AP of a random query
    found = predictions(400, labels=labels, embeddings={"audio": corners, "video": corners})
    scored = Retrieval(relevance="class", bootstrap=0).score(found.with_wrong_partners())
    assert Retrieval(relevance="class", bootstrap=0).score(found).scores["mean"]["mAP"] == 1
    for direction, row in scored.scores.items():
        assert row["mAP"] == pytest.approx(scored.chance[direction]["mAP"], abs=0.02), direction


def test_rows_without_a_label_are_no_queries_but_stay_in_the_gallery():
    found = predictions(10, labels=np.array([0, 0, 1, 1, -1, -1, 0, 1, 0, 1]), n_official=12)
    scored = Retrieval(relevance="class", bootstrap=20).score(found)
    assert (scored.n_scored, scored.n_official) == (8, 12)
    assert scored.directions["audio_to_video"].ranking.n_gallery == 10
    assert Retrieval(bootstrap=20).score(found).n_scored == 10


def test_a_caption_of_two_classes_is_one_query_and_its_other_class_has_none():
    made = predictions(
        6,
        labels=np.array([0, 1, 1, 1, 0, 0]),
        groups=("doctor", "doctor", "b", "c", "d", "e"),
        items={"audio": np.array([0, 0, 2, 3, 4, 5]), "video": np.arange(6)},  # one caption, two pictures
        label_names=("medical", "people"),
    )
    table = Retrieval(relevance="group").score(made).per_class
    assert table["audio_to_video"]["people"]["queries"] == 2
    assert table["video_to_audio"]["people"]["queries"] == 3
    assert table["mean"]["people"]["queries"] == 2.5
    alone = predictions(
        3,
        labels=np.array([0, 1, 0]),
        groups=("doctor", "doctor", "b"),
        items={"audio": np.array([0, 0, 2]), "video": np.arange(3)},
        label_names=("medical", "people"),
    )
    table = Retrieval(relevance="group").score(alone).per_class
    assert "people" not in table["audio_to_video"]
    assert table["mean"]["people"] == table["video_to_audio"]["people"]


def test_group_relevance_counts_a_repeated_picture_once():
    rng = np.random.default_rng(0)
    pictures = rng.normal(size=(6, 8)).astype(np.float32)
    video = torch.from_numpy(np.repeat(pictures, 5, axis=0))
    text = video + 0.3 * torch.from_numpy(rng.normal(size=(30, 8)).astype(np.float32))
    groups = [f"g{i // 5}" for i in range(30)]
    # in two batches: the same picture is recognized across them
    parts = [batch_of([-1] * 13, groups[:13], video=video[:13], text=text[:13])]
    parts += [batch_of([-1] * 17, groups[13:], 13, video=video[13:], text=text[13:])]
    task = Retrieval(relevance="group", bootstrap=20)
    scored = task.score(task.predict(Pooled(), parts))
    forth, back = scored.directions["video_to_text"], scored.directions["text_to_video"]
    assert (len(forth.rows), len(forth.columns)) == (6, 30)
    assert (len(back.rows), len(back.columns)) == (30, 6)
    assert scored.chance["text_to_video"]["R@1"] == pytest.approx(1 / 6)
    assert forth.ranking.n_relevant.tolist() == [5] * 6
    # any of the five captions in the top k is a hit
    s = torch.nn.functional.normalize(torch.from_numpy(pictures)) @ torch.nn.functional.normalize(text).T
    hits = [any(int(j) // 5 == i for j in s[i].topk(1).indices) for i in range(6)]
    assert scored.scores["video_to_text"]["R@1"] == pytest.approx(np.mean(hits))


def test_three_modalities_give_six_directions():
    arrays = {m: np.random.default_rng(i).normal(size=(12, 3)) for i, m in enumerate(("text", "audio", "video"))}
    scored = Retrieval(bootstrap=0).score(predictions(12, embeddings=arrays))
    assert list(scored.scores)[:3] == ["audio_to_video", "audio_to_text", "video_to_audio"]
    assert len(scored.scores) == 7
    two = Retrieval(bootstrap=0, modalities=("video", "text")).score(predictions(12, embeddings=arrays))
    assert list(two.scores) == ["video_to_text", "text_to_video", "mean"]


# --------------------------------------------------------------------------------------------- what a system may see
def test_a_system_sees_only_the_modality_it_embeds():
    system = Pooled().train()
    batch = batch_of(audio=A, video=V, flow=V, video_wide=V, boxes=A)
    task = Retrieval(modalities=("audio", "video"))
    task.predict(system, [batch])
    assert system.seen == [
        ("audio", "video", ("audio",), [-1] * 3, 0, False),
        ("video", "audio", ("flow", "video", "video_wide"), [-1] * 3, 0, False),
    ]
    assert system.training


def test_embeddings_toward_each_other_modality_are_kept_apart_where_they_differ():
    class Toward(Pooled):
        def embed(self, batch, modality, *, toward=None):
            made = super().embed(batch, modality, toward=toward)
            return made + 1 if (modality, toward) == ("video", "text") else made

    found = Retrieval().predict(Toward(), [batch_of(audio=A, video=V, text=A)])
    assert set(found.embeddings) == {"audio", "video_to_audio", "video_to_text", "text"}
    assert found.modalities == ("audio", "video", "text")
    assert np.array_equal(found.of("video", "text"), V.numpy() + 1)
    assert len(Retrieval(bootstrap=0).score(found).scores) == 7


def test_what_goes_wrong_has_a_name():
    with pytest.raises(CapabilityError, match="scored at retrieval"):
        Retrieval().predict(nn.Linear(2, 2), [batch_of(audio=A, video=V)])
    with pytest.raises(LabelError, match="label"):
        Retrieval(relevance="class").score(predictions(labels=np.full(40, -1)))
    with pytest.raises(BatchError, match="two modalities"):
        Retrieval().predict(Pooled(), [batch_of(audio=A)])
    with pytest.raises(BatchError, match="text"):
        Retrieval(modalities=("audio", "text")).predict(Pooled(), [batch_of(audio=A, video=V)])
    with pytest.raises(DataError, match="no rows"):
        Retrieval().predict(Pooled(), [])
    with pytest.raises(DataError, match="text"):
        Retrieval(modalities=("audio", "text")).score(predictions())
    bad = A.clone()
    bad[1, 0] = float("nan")
    with pytest.raises(FeatureError, match="clip1"):
        Retrieval().predict(Pooled(), [batch_of(audio=bad, video=V)])

    class Wrong(Pooled):
        def embed(self, batch, modality, *, toward=None):
            return batch.streams[modality].data

    with pytest.raises(FeatureError, match="shape"):
        Retrieval().predict(Wrong(), [batch_of(audio=A, video=V)])
    for values in ({"relevance": "pairs"}, {"ks": ()}, {"ks": (0,)}, {"bootstrap": -1}, {"modalities": ("audio",)}):
        with pytest.raises(ConfigError):
            Retrieval(**values)


def test_fingerprint_is_that_of_the_protocol():
    assert Retrieval().fingerprint == Retrieval(ks=[1, 5, 10]).fingerprint
    others = {Retrieval(relevance="class"), Retrieval(ks=(1,)), Retrieval(map_at=()), Retrieval(bootstrap=10)}
    assert len({r.fingerprint for r in others} | {Retrieval().fingerprint}) == 5
    task = Retrieval(relevance="group", ndcg_at=(5,))
    assert Retrieval.from_protocol(json.loads(json.dumps(task.protocol))) == task


# ------------------------------------------------------------------------------------------------- predictions as files
def test_predictions_round_trip_and_scores_do_not_change(tmp_path):
    found = predictions(labels=np.arange(40) % 3, label_names=("x", "y", "ü"), n_official=44)
    found.save(tmp_path / "p.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["p.npz"]
    again = Predictions.load(tmp_path / "p.npz")
    assert (again.ids, again.groups, again.label_names, again.n_official) == (
        found.ids,
        found.groups,
        ("x", "y", "ü"),
        44,
    )
    task = Retrieval(relevance="class", bootstrap=20)
    assert task.score(again).parts() == task.score(found).parts()
    assert set(task.score(again).per_class["mean"]) == {"x", "y", "ü"}


def test_predictions_of_another_program_need_nothing_but_embeddings(tmp_path):
    np.savez(tmp_path / "p.npz", audio=A.double().numpy(), video=V.numpy(), label=np.array(["b", "b", "a"]))
    found = Predictions.load(tmp_path / "p.npz")
    assert found.ids == ("0", "1", "2")
    assert (found.labels.tolist(), found.label_names) == ([1, 1, 0], ("a", "b"))
    mean = Retrieval(relevance="class").score(found).scores["mean"]["mAP"]
    assert mean == pytest.approx((0.722222 + 0.638889) / 2, abs=1e-6)


def test_damaged_and_hostile_prediction_files(tmp_path):
    with pytest.raises(MissingFile):
        Predictions.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    np.savez(tmp_path / "objects.npz", audio=np.array([{}, None], object), video=np.ones((2, 2)))
    np.savez(tmp_path / "empty.npz", label=np.arange(3))
    for name in ("text", "objects", "empty"):
        with pytest.raises(DataError) as caught:
            Predictions.load(tmp_path / f"{name}.npz")
        assert caught.value.file.endswith(f"{name}.npz")
    np.savez(tmp_path / "long.npz", audio=np.ones((3, 2)), video=np.ones((2, 2)))
    np.savez(tmp_path / "nan.npz", audio=np.full((2, 2), np.nan), video=np.ones((2, 2)))
    for name in ("long", "nan"):
        with pytest.raises(FeatureError):
            Predictions.load(tmp_path / f"{name}.npz")


def test_a_similarity_that_is_not_built_in_needs_its_function():
    found = replace(predictions(), similarity="manhattan")
    with pytest.raises(ConfigError, match="manhattan"):
        Retrieval(bootstrap=0).score(found)
    scored = Retrieval(bootstrap=0).score(found, similarity=lambda q, g: -torch.cdist(q, g, p=1))
    assert scored.scores["mean"]["R@10"] > scored.chance["mean"]["R@10"]


# ------------------------------------------------------------------------------------------------------------ intervals
def test_interval_of_a_mean_has_the_width_that_theory_gives():
    values = np.random.default_rng(0).normal(size=2000)
    statistic = mean_statistic({"m": values}, np.arange(2000), 2000)
    low, high = bootstrap(statistic, 2000, repeats=2000, seed=1)["m"]
    assert (high - low) == pytest.approx(2 * 1.96 / np.sqrt(2000) * values.std(), rel=0.06)
    assert bootstrap(statistic, 2000, repeats=100, seed=1) == bootstrap(statistic, 2000, repeats=100, seed=1)


def test_clustered_queries_are_drawn_together():
    values = np.repeat(np.random.default_rng(0).normal(size=40), 10)  # ten copies of each: no new information
    groups = np.repeat(np.arange(40), 10)
    wide = paired_difference(values, np.zeros(400), groups=groups)
    narrow = paired_difference(values, np.zeros(400))
    assert (wide.high - wide.low) > 2.5 * (narrow.high - narrow.low)
    cluster, count = cluster_numbers(["b", "a", "b"])
    assert (cluster.tolist(), count) == ([1, 0, 1], 2)


def test_resamples_do_not_depend_on_the_block(monkeypatch):
    whole = np.concatenate(list(resamples(7, repeats=50, seed=3)))
    monkeypatch.setattr("avcl.metrics.intervals.BLOCK_CELLS", 20)
    parts = list(resamples(7, repeats=50, seed=3))
    assert len(parts) == 25
    assert np.array_equal(np.concatenate(parts), whole)
    assert (whole.sum(1) == 7).all()


def test_paired_difference_is_narrower_than_two_separate_intervals():
    rng = np.random.default_rng(0)
    hard = rng.random(300)
    a, b = hard + 0.05 + 0.02 * rng.normal(size=300), hard
    value, low, high = paired_difference(a, b)
    assert 0.04 < low < value < high < 0.06
    with pytest.raises(FeatureError):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(ConfigError):
        bootstrap(mean_statistic({"m": hard}, np.arange(300), 300), 300, repeats=0)


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for i in range(200):
        values = (rng.random(100) < 0.3).astype(float)
        low, high = bootstrap(mean_statistic({"m": values}, np.arange(100), 100), 100, repeats=200, seed=i)["m"]
        inside += low <= 0.3 <= high
    assert 178 <= inside <= 200
