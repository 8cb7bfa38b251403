"""Ranking metrics against worked values, a brute-force oracle over all orders of ties, and other libraries."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avcl.errors import ConfigError, FeatureError
from avcl.metrics import ranking
from avcl.metrics.ranking import Ranking, chance, random_ranking, rank, rank_scores, score_blocks

A = np.array([[1, 0], [0.6, 0.8], [0, 1]])
V = np.array([[0.8, 0.6], [0, 1], [0.6, -0.8]])
Y = np.array([0, 0, 1])
PAIR = np.arange(3)
KS = (1, 2, 3)


# ------------------------------------------------------------------------------------------------------- worked values
def test_toy_batch_by_pair():
    forth, back = rank(A, V, PAIR, PAIR), rank(V, A, PAIR, PAIR)
    assert forth.expected_rank.tolist() == [1, 2, 3]
    assert back.expected_rank.tolist() == [2, 2, 3]
    a, v = forth.summary(KS), back.summary(KS)
    assert a["R@1"] == pytest.approx(1 / 3, abs=1e-12)
    assert v["R@2"] == pytest.approx(2 / 3, abs=1e-12)
    assert a["MRR"] == pytest.approx(0.611111, abs=1e-6)
    assert (a["medR"], v["medR"]) == (2, 2)
    assert list(a) == ["R@1", "R@2", "R@3", "medR", "MRR", "mAP", "mAP@10", "nDCG"]


def test_toy_batch_by_class():
    assert rank(A, V, Y, Y).summary()["mAP"] == pytest.approx(0.722222, abs=1e-6)
    assert rank(V, A, Y, Y).summary()["mAP"] == pytest.approx(0.638889, abs=1e-6)


def test_average_precision_and_ndcg_of_one_list():
    ranking = rank_scores([[5.0, 4, 3, 2, 1]], [0], [0, 1, 0, 0, 1], map_at=(2,))
    assert ranking.ap[0] == pytest.approx(0.805556, abs=1e-6)
    assert ranking.ap_at[2][0] == pytest.approx((1 + 0) / 2)  # divides by min(k, relevant)
    assert rank_scores([[3.0, 2, 1]], [0], [0, 1, 0]).ndcg[0] == pytest.approx(0.919721, abs=1e-6)
    cut = rank_scores([[4.0, 3, 2, 1]], [0], [1, 0, 0, 0], ndcg_at=(2,))
    assert cut.ndcg_at[2][0] == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))


def test_mean_reciprocal_rank_chance_of_the_sheet():
    assert chance(np.ones(402), 402)["MRR"] == pytest.approx(0.0164, abs=5e-5)
    assert chance(np.ones(200), 200)["MRR"] == pytest.approx(0.0294, abs=5e-5)


# --------------------------------------------------------------------------------------------------- brute-force oracle
def one_order(relevant: list[bool], ks: tuple[int, ...], map_at: int) -> dict[str, float]:
    places = [i + 1 for i, r in enumerate(relevant) if r]
    values = {f"R@{k}": float(places[0] <= k) for k in ks}
    values["MRR"], values["rank"] = 1 / places[0], places[0]
    values["mAP"] = sum((i + 1) / p for i, p in enumerate(places)) / len(places)
    values[f"mAP@{map_at}"] = sum((i + 1) / p for i, p in enumerate(places) if p <= map_at) / min(map_at, len(places))
    ideal = sum(1 / math.log2(i + 2) for i in range(len(places)))
    values["nDCG"] = sum(1 / math.log2(p + 1) for p in places) / ideal
    return values


def all_orders(scores: np.ndarray, relevant: np.ndarray, ks: tuple[int, ...], map_at: int) -> dict[str, float]:
    """The mean over every permutation of the gallery that is sorted by falling score."""
    found = []
    for order in itertools.permutations(range(len(scores))):
        if all(scores[order[i]] >= scores[order[i + 1]] for i in range(len(order) - 1)):
            found.append(one_order([bool(relevant[i]) for i in order], ks, map_at))
    return {name: float(np.mean([f[name] for f in found])) for name in found[0]}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-2, 1), st.booleans()), min_size=1, max_size=6))
def test_ties_get_the_mean_over_all_their_orders(items):
    scores = np.array([float(s) for s, _ in items])
    relevant = np.array([r for _, r in items])
    ranking = rank_scores(scores[None], [1], relevant.astype(int), map_at=(2,))
    if not relevant.any():
        assert not ranking.scored[0]
        return
    oracle = all_orders(scores, relevant, (1, 2, 4), 2)
    values = ranking.per_query((1, 2, 4)) | {"rank": ranking.expected_rank}
    for name, expected in oracle.items():
        assert values[name][0] == pytest.approx(expected, abs=1e-12), name


# ---------------------------------------------------------------------------------------------------------- invariances
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 9), st.sampled_from(["class", "pair"]))
def test_any_increasing_map_of_the_scores_changes_nothing(seed, n, relevance):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-4, 4, size=(n, n)) / 4  # ties, and many negative scores
    keys = np.arange(n) if relevance == "pair" else rng.integers(0, 3, n)
    plain = rank_scores(scores, keys, keys).summary()
    for mapped in (scores + 10, scores - 10, np.exp(scores), scores**3, 1e-3 * scores, np.arctan(scores)):
        assert rank_scores(mapped, keys, keys).summary() == plain


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_order_of_gallery_and_queries_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    q, g, keys = rng.normal(size=(8, 3)).round(0), rng.normal(size=(8, 3)).round(0), rng.integers(0, 3, 8)
    plain = rank(q, g, keys, keys).summary()
    p, r = rng.permutation(8), rng.permutation(8)
    assert rank(q[p], g[r], keys[p], keys[r]).summary() == pytest.approx(plain, abs=1e-12)


def test_a_relevant_item_with_a_negative_score_is_still_found_first():
    ranking = rank_scores([[-0.1, -0.2, -0.3]], [0], [0, 1, 2])
    assert (ranking.ap[0], ranking.reciprocal_rank[0], ranking.recall(1)[0]) == (1, 1, 1)
    ranking = rank(np.array([[1.0, 0]]), np.array([[-0.1, 1], [-0.2, 1], [-0.3, 1]]), [0], [0, 1, 2])
    assert (ranking.ap[0], ranking.reciprocal_rank[0], ranking.recall(1)[0]) == (1, 1, 1)


@pytest.mark.parametrize("n", [1, 2, 7, 200])
@pytest.mark.parametrize("relevance", ["pair", "class"])
def test_a_collapsed_model_scores_exactly_chance(n, relevance):
    rng = np.random.default_rng(n)
    keys = np.arange(n) if relevance == "pair" else rng.integers(0, 4, n)
    same = np.repeat(rng.normal(size=(1, 16)), n, axis=0)
    ranking = rank(same, same, keys, keys, ndcg_at=(5,))
    assert ranking.summary() == chance(ranking.n_relevant, n, ndcg_at=(5,))
    zero = rank(np.zeros((n, 4)), same[:, :4], keys, keys, ndcg_at=(5,))
    assert zero.summary() == ranking.summary()


# --------------------------------------------------------------------------------------------------------------- chance
@pytest.mark.parametrize("relevance", ["pair", "class"])
def test_chance_is_the_mean_of_random_rankings(relevance):
    rng = np.random.default_rng(3)
    n, draws = 30, 400
    keys = np.arange(n) if relevance == "pair" else np.repeat([0, 1, 2], [3, 9, 18])
    runs = [rank_scores(rng.random((n, n)), keys, keys, ndcg_at=(5,)).summary() for _ in range(draws)]
    expected = chance(rank_scores(np.zeros((n, n)), keys, keys).n_relevant, n, ndcg_at=(5,))
    for name, value in expected.items():
        seen = np.array([r[name] for r in runs])
        error = 5 * seen.std() / math.sqrt(draws) + (0.35 if name == "medR" else 1e-9)  # ranks are whole numbers
        assert abs(seen.mean() - value) < error, (name, seen.mean(), value)


def test_chance_in_closed_form():
    values = chance(np.ones(4), 10, ks=(1, 5, 10))
    h = sum(1 / i for i in range(1, 11))
    assert (values["R@1"], values["R@5"], values["R@10"], values["medR"]) == (0.1, 0.5, 1.0, 5.5)
    assert values["MRR"] == pytest.approx(h / 10, abs=1e-14)
    assert values["mAP"] == pytest.approx(h / 10, abs=1e-14)
    r, g = 4, 10
    values = chance([r], g, ks=(3,))
    assert values["R@3"] == pytest.approx(1 - math.comb(6, 3) / math.comb(10, 3), abs=1e-12)
    assert values["mAP"] == pytest.approx((h + (r - 1) / (g - 1) * (g - h)) / g, abs=1e-12)
    assert chance([0, 3], 10) == chance([3], 10)  # a query without relevant items is not part of it


# ---------------------------------------------------------------------------------------------------------- median rank
def test_median_rank_is_the_ordinary_median_without_ties():
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 8, 31, 60):
        ranking = rank_scores(rng.normal(size=(n, n)), np.arange(n), np.arange(n))
        assert ranking.median_rank()[0] == np.median(ranking.expected_rank)
        weights = rng.multinomial(n, np.ones(n) / n, size=20).astype(float)
        plain = [np.median(np.repeat(ranking.expected_rank, w.astype(int))) for w in weights]
        assert ranking.median_rank(weights).tolist() == plain


def test_median_rank_with_ties_is_where_recall_crosses_one_half():
    rng = np.random.default_rng(1)
    keys = rng.integers(0, 4, 40)
    ranking = rank_scores(rng.integers(0, 5, (40, 40)), keys, keys)
    weights = rng.multinomial(40, np.ones(40) / 40, size=6).astype(float)
    curve = np.stack([ranking.recall(k) for k in range(1, 41)], axis=1)
    for w, found in zip(weights, ranking.median_rank(weights), strict=True):
        share = w @ curve / w.sum()
        assert found == (np.argmax(share >= 0.5 - 1e-9) + np.argmax(share > 0.5 + 1e-9)) / 2 + 1


# --------------------------------------------------------------------------------------------------- blocks and oracles
@pytest.mark.parametrize("relevance", ["pair", "class"])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_block_boundaries_change_nothing(relevance, similarity):
    rng = np.random.default_rng(5)
    base = rng.normal(size=(60, 24)).astype(np.float32)
    q = base[rng.integers(0, 60, 150)]  # many exact duplicates, so many exact ties
    g = base[rng.integers(0, 60, 150)]
    keys = np.arange(150) if relevance == "pair" else rng.integers(0, 5, 150)
    whole = rank(q, g, keys, keys, similarity=similarity, block_cells=10**9)
    for cells in (1, 150 * 7, 150 * 64):
        part = rank(q, g, keys, keys, similarity=similarity, block_cells=cells)
        for name in ("above", "tied", "tied_relevant", "ap", "ndcg"):
            assert np.array_equal(getattr(part, name), getattr(whole, name)), name


@pytest.mark.parametrize("relevance", ["pair", "class"])
def test_threads_and_the_groups_they_take_change_nothing(relevance, monkeypatch):
    rng = np.random.default_rng(6)
    base = rng.normal(size=(40, 8)).astype(np.float32)
    q, g = base[rng.integers(0, 40, 90)], base[rng.integers(0, 40, 120)]  # many exact ties
    qk, gk = (np.arange(90), np.arange(120)) if relevance == "pair" else (np.arange(90) % 4, np.arange(120) % 5)
    whole, threads = rank(q, g, qk, gk), torch.get_num_threads()
    monkeypatch.setattr(ranking, "GALLERY_CELLS", 0)
    try:
        for workers, cells in ((1, 120 * 7), (2, 120 * 7), (2, 1)):
            torch.set_num_threads(workers)
            monkeypatch.setattr(ranking, "GROUP_CELLS", cells)
            part = rank(q, g, qk, gk, block_cells=120 * 40)
            for name in ("above", "tied", "tied_relevant", "ap", "ndcg"):
                assert np.array_equal(getattr(part, name), getattr(whole, name)), name
    finally:
        torch.set_num_threads(threads)


def test_no_block_is_larger_than_asked_and_rows_are_complete():
    q, g = torch.randn(50, 8), torch.randn(40, 8)
    seen = list(score_blocks(q, g, block_cells=40 * 7))
    assert [start for start, _ in seen] == list(range(0, 50, 7))
    assert all(block.size <= 40 * 7 and block.shape[1] == 40 for _, block in seen)


def test_equal_to_scikit_learn_and_torchmetrics_where_they_are_right():
    from sklearn.metrics import average_precision_score, ndcg_score
    from torchmetrics.functional.retrieval import retrieval_average_precision, retrieval_reciprocal_rank

    rng = np.random.default_rng(7)
    scores = rng.random((12, 30)) + 0.01  # positive and without ties
    qk, gk = rng.integers(0, 4, 12), rng.integers(0, 4, 30)
    ranking = rank_scores(scores, qk, gk)
    for i in range(12):
        truth = gk == qk[i]
        assert ranking.ap[i] == pytest.approx(average_precision_score(truth, scores[i]), abs=1e-12)
        assert ranking.ndcg[i] == pytest.approx(ndcg_score(truth[None], scores[i : i + 1]), abs=1e-12)
        p, t = torch.tensor(scores[i]), torch.tensor(truth)
        assert ranking.ap[i] == pytest.approx(float(retrieval_average_precision(p, t)), abs=1e-6)
        assert ranking.reciprocal_rank[i] == pytest.approx(float(retrieval_reciprocal_rank(p, t)), abs=1e-6)


def test_own_similarity_function_is_called_block_by_block():
    q, g, keys = torch.randn(9, 4), torch.randn(9, 4), np.arange(9)
    calls = []

    def manhattan(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        calls.append((len(a), len(b)))
        return -torch.cdist(a, b, p=1)

    found = rank(q, g, keys, keys, similarity=manhattan, block_cells=27)
    assert calls == [(3, 9)] * 3
    assert found.summary() == rank_scores(-torch.cdist(q, g, p=1), keys, keys).summary()


# ------------------------------------------------------------------------------------------------------ what goes wrong
def test_queries_without_relevant_items_are_left_out_and_known():
    ranking = rank_scores([[3.0, 2, 1], [1, 2, 3], [1, 1, 1]], [0, 7, -1], [0, 1, -1])
    assert ranking.scored.tolist() == [True, False, False]
    assert ranking.summary()["mAP"] == 1
    assert ranking.expected_rank.tolist() == [1, 4, 4]
    assert math.isnan(rank_scores([[1.0]], [3], [0]).summary()["R@1"])


def test_bad_arrays_are_refused():
    good, keys = np.ones((2, 3)), [0, 1]
    bad = good.copy()
    bad[1, 2] = np.nan
    with pytest.raises(FeatureError, match="row 1"):
        rank(good, bad, keys, keys)
    with pytest.raises(FeatureError, match="not finite"):
        rank(good * 1e30, good * 1e30, keys, keys, similarity="dot")
    with pytest.raises(FeatureError, match="dimensions"):
        rank(good, np.ones((2, 4)), keys, keys)
    with pytest.raises(FeatureError, match="two-dimensional"):
        rank(good[0], good, keys, keys)
    with pytest.raises(FeatureError, match="integers"):
        rank(good, good, [0.0, 1.0], keys)
    with pytest.raises(ConfigError, match="cosin"):
        rank(good, good, keys, keys, similarity="cosin")


@pytest.mark.parametrize("relevance", ["pair", "class"])
def test_memory_stays_bounded_by_the_block(relevance):
    """Peak NumPy memory of a 6,000 x 6,000 ranking is far below one score matrix of that size (137 MiB in float32)."""
    import tracemalloc

    rng = np.random.default_rng(0)
    q = rng.normal(size=(6000, 16)).astype(np.float32)
    keys = np.arange(6000) if relevance == "pair" else rng.integers(0, 10, 6000)
    tracemalloc.start()
    ranking = rank(q, q + 0.5, keys, keys, block_cells=200_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(ranking) == 6000
    assert peak < 40 * 2**20, peak


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_fifty_thousand_by_fifty_thousand():
    import resource

    generator = torch.Generator().manual_seed(0)
    a = torch.randn(50_000, 64, generator=generator)
    v = a + 2 * torch.randn(50_000, 64, generator=generator)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for keys in (np.arange(50_000), np.arange(50_000) % 10):
        ranking: Ranking = rank(a, v, keys, keys)
        assert ranking.summary()["mAP"] > chance(ranking.n_relevant, 50_000)["mAP"]
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1024 * 1024
    )  # KiB: below 1 GiB (the matrix has 9.3)


def test_random_ranking_has_the_shape_of_a_ranking():
    ranking = random_ranking([1, 0, 3], 5)
    assert ranking.scored.tolist() == [True, False, True]
    assert ranking.expected_rank.tolist() == [3, 6, 1.5]
    assert len(ranking.take([0])) == 1
