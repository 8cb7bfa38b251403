"""Search against a slow oracle: every option, exact and approximate, ties, batches, and queries that make no sense."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avcl.errors import ConfigError, ExistsError, FeatureError, ModelError, StoreError
from avcl.index import Index, snapshot, vectors
from avcl.types import Hits, Inputs

DIM = 8


def rows(n, per=5):
    return [(f"f{i // per:04d}.wav", float(i % per), float(i % per + 3)) for i in range(n)]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def oracle(table, vectors, query, k, allowed=None, per_file=None):
    """All scores in float64, sorted by (-score, path, start); then cut."""
    scores = (np.float32(unit(vectors)).astype(float) * np.float32(unit(query)).astype(float)).sum(1)
    order = sorted(range(len(table)), key=lambda i: (-scores[i], table[i][0], table[i][1]))
    out, taken = [], {}
    for i in order:
        if allowed is not None and not allowed(table[i]):
            continue
        if per_file and taken.get(table[i][0], 0) >= per_file:
            continue
        taken[table[i][0]] = taken.get(table[i][0], 0) + 1
        out.append((table[i][0], table[i][1]))
    return out[:k]


def found(hits):
    return [(h.path, h.start) for h in hits]


@pytest.fixture(scope="module", params=["Flat", "IVF8,Flat", "HNSW16", "IVF4,PQ2x4"])
def filled(request, tmp_path_factory):
    """8,000 vectors in clusters, an index of each kind."""
    rng = np.random.default_rng(1)
    table = rows(8000)
    centers = rng.standard_normal((40, DIM))
    vectors = centers[rng.integers(0, 40, 8000)] + 0.3 * rng.standard_normal((8000, DIM))
    index = Index.create(tmp_path_factory.mktemp("search") / "i", model="m", dim=DIM, factory=request.param, threads=1)
    index.add(table, {"audio": vectors, "video": -vectors})
    yield index, table, vectors
    index.close()


def test_against_the_oracle(filled):
    index, table, vectors = filled
    exact = index.meta.factory == "Flat"
    rng = np.random.default_rng(2)
    overlaps = []
    for query in rng.standard_normal((6, DIM)):
        for options, allowed in (
            ({}, None),
            ({"where": "start < 2"}, lambda r: r[1] < 2),
            ({"where": "path < 'f0100'"}, lambda r: r[0] < "f0100"),
        ):
            for k, per_file in ((1, None), (10, None), (10, 1), (7, 2)):
                hits = index.search(query, "audio", k=k, per_file=per_file, **options)
                truth = oracle(table, vectors, query, k, allowed, per_file)
                assert len(hits) == len(truth) == k
                overlaps.append(len(set(found(hits)) & set(truth)) / k)
                if exact:
                    assert found(hits) == truth
                scores = [h.score for h in hits]
                assert scores == sorted(scores, reverse=True)
                assert [h.rank for h in hits] == list(range(1, k + 1))
                best = np.array([table.index((h.path, h.start, h.end)) for h in hits])
                np.testing.assert_allclose(scores, unit(vectors[best]) @ unit(query), atol=1e-6)
    assert np.mean(overlaps) > (0.999 if exact else 0.5 if "PQ" in index.meta.factory else 0.8)


def test_batch_equals_one_by_one(filled):
    index, _, _ = filled
    queries = np.random.default_rng(3).standard_normal((33, DIM))
    for options in ({}, {"where": "start > 1"}, {"per_file": 1}):
        many = index.search_many(queries, "video", k=5, **options)
        assert all(isinstance(hits, Hits) for hits in many)
        if index.meta.factory == "Flat":
            assert many == [index.search(q, "video", k=5, **options) for q in queries]
    assert index.search_many(np.zeros((0, DIM)), "video") == []


def test_as_many_as_there_are(filled):
    index, table, _ = filled
    query = np.ones(DIM)
    assert len(index.search(query, "audio", k=20_000)) == 8000
    assert len(index.search(query, "audio", k=20_000, per_file=1)) == 1600
    assert len(index.search(query, "audio", k=300, where="path = 'f0007.wav'")) == 5
    assert len(index.search(query, "audio", k=300, where="path = 'f0007.wav'", per_file=2)) == 2
    assert index.search(query, "audio", where="path = 'none'") == ()
    assert len(index) == len(table)


def test_the_other_modality(filled):
    index, _, vectors = filled
    where = "path = 'f0003.wav'"
    assert index.search(vectors[17], "audio", k=1, where=where)[0].score == pytest.approx(1, abs=1e-6)
    hit = index.search(-vectors[17], "video", k=1, where=where)[0]
    assert (hit.modality, hit.path, hit.start) == ("video", "f0003.wav", 2.0)
    assert hit.info == {"silent": False, "duration": 7.0}


def test_one_file_that_is_everywhere_does_not_hide_the_others(tmp_path):
    """5,000 segments of one film are nearer than anything else, and still the second file is found."""
    rng = np.random.default_rng(0)
    table = [("film.mp4", float(i), i + 3.0) for i in range(5000)] + [(f"{i}.wav", 0.0, 3.0) for i in range(30)]
    vectors = np.concatenate([np.ones((5000, DIM)) + 0.01 * rng.standard_normal((5000, DIM)), -np.ones((30, DIM))])
    for factory in ("Flat", "HNSW8"):
        with Index.create(tmp_path / factory, model="m", dim=DIM, modalities=("audio",), factory=factory) as index:
            index.add(table, {"audio": vectors})
            hits = index.search(np.ones(DIM), "audio", k=10, per_file=1)
            assert found(hits)[0][0] == "film.mp4"
            # thirty equal vectors: a tie, in the order of the paths
            assert [h.path for h in hits[1:]] == sorted(f"{i}.wav" for i in range(30))[:9]


def test_equal_vectors_are_ordered_by_path_whatever_the_order_of_adding(tmp_path):
    names = [f"{i:05d}.wav" for i in np.random.default_rng(0).permutation(6000)]
    with Index.create(tmp_path / "i", model="m", dim=DIM, modalities=("audio",)) as index:
        index.add([(n, 0.0, 3.0) for n in names], {"audio": np.ones((6000, DIM))})
        hits = index.search(np.ones(DIM), "audio", k=5)
        assert [h.path for h in hits] == [f"{i:05d}.wav" for i in range(5)]
        assert len({h.score for h in hits}) == 1


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 70),
    count=st.integers(1, 9),
    k=st.integers(1, 80),
    block=st.integers(1, 30),
    share=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_first_pass_finds_the_largest_products(n, count, k, block, share, seed):
    """FAISS on everything, on a selection, on gathered rows; blocks of matrix products: the same k largest scores."""
    rng = np.random.default_rng(seed)
    data, queries = (rng.standard_normal((m, 4)).astype(np.float32) for m in (n, count))
    for mask in (None, rng.random(n) < share):
        slots = np.arange(n) if mask is None else np.flatnonzero(mask)
        if not len(slots):
            continue
        truth = -np.sort(-(queries @ data[slots].T), axis=1)[:, :k]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vectors, "BLOCK", block)
            patch.setattr(vectors, "GROUP", 3)
            for least in (1, 99):
                patch.setattr(vectors, "BATCH", least)
                scores, found = vectors.nearest(data, queries, k, mask)
                np.testing.assert_allclose(scores, truth, atol=1e-5)
                np.testing.assert_allclose(np.einsum("qd,qkd->qk", queries, data[found]), truth, atol=1e-5)
                assert np.isin(found, slots).all()
                assert all(len(set(row)) == len(row) for row in found.tolist())


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(0, 60),
    k=st.integers(1, 70),
    per_file=st.one_of(st.none(), st.integers(1, 4)),
    below=st.sampled_from([0.0, 0.5, 2.0, 5.0]),
    gone=st.sets(st.integers(0, 59), max_size=20),
    seed=st.integers(0, 5),
)
def test_any_small_index_equals_the_oracle(tmp_path_factory, n, k, per_file, below, gone, seed):
    """Few distinct vectors (ties), removed rows, filters; ``FEW`` is 0, so that FAISS does the first pass."""
    rng = np.random.default_rng(seed)
    table, vectors = rows(n), rng.integers(-1, 2, (n, DIM)).astype(float) + 0.01
    folder = tmp_path_factory.mktemp("any") / "i"
    with (
        pytest.MonkeyPatch.context() as patch,
        Index.create(folder, model="m", dim=DIM, modalities=("audio",)) as index,
    ):
        patch.setattr(snapshot, "FEW", 0)
        patch.setattr(snapshot, "SPARE", 2)
        if n:
            index.add(table, {"audio": vectors})
        gone = {g for g in gone if g < n}
        if gone:
            expression = " OR ".join(f"(path = '{table[g][0]}' AND start = {table[g][1]})" for g in gone)
            assert index.remove(where=expression)["removed_segments"] == len(gone)
        kept = [i for i in range(n) if i not in gone]
        truth = oracle(
            [table[i] for i in kept], vectors[kept].reshape(-1, DIM), np.ones(DIM), k, lambda r: r[1] < below, per_file
        )
        hits = index.search(np.ones(DIM), "audio", k=k, per_file=per_file, where=f"start < {below}")
        assert found(hits) == truth


def test_dot_is_not_normalized(tmp_path):
    with Index.create(tmp_path / "i", model="m", dim=2, modalities=("audio",), similarity="dot") as index:
        index.add([("a", 0, 1), ("b", 0, 1)], {"audio": np.array([[1.0, 0], [3, 3]])})
        hits = index.search(np.array([2.0, 0]), "audio")
        assert [(h.path, h.score) for h in hits] == [("b", 6.0), ("a", 2.0)]
    with Index.create(tmp_path / "c", model="m", dim=2, modalities=("audio",)) as index:
        index.add([("a", 0, 1), ("b", 0, 1)], {"audio": np.array([[1.0, 0], [3, 3]])})
        assert [h.path for h in index.search(np.array([2.0, 0]), "audio")] == ["a", "b"]


def test_queries_and_vectors_that_make_no_sense(tmp_path):
    index = Index.create(tmp_path / "i", model="m", dim=3, modalities=("audio",))
    index.add([("a", 0, 1)], {"audio": np.ones((1, 3))})
    for bad in (np.array([1, np.nan, 0]), np.array([np.inf, 0, 0]), np.zeros(3), np.ones(4), np.array(["a", "b", "c"])):
        with pytest.raises(FeatureError):
            index.search(bad, "audio")
    with pytest.raises(FeatureError, match="search_many"):
        index.search(np.ones((1, 3)), "audio")
    for bad in (np.full((1, 3), np.nan), np.ones((1, 2)), np.ones((2, 3)), np.ones(3)):
        with pytest.raises(FeatureError):
            index.add([("b", 0, 1)], {"audio": bad})
    with pytest.raises(ConfigError, match="video"):
        index.add([("b", 0, 1)], {"video": np.ones((1, 3))})
    with pytest.raises(ConfigError, match='Did you mean "audio"'):
        index.search(np.ones(3), "adio")
    for options in ({"k": 0}, {"k": -1}, {"per_file": 0}):
        with pytest.raises(ConfigError):
            index.search(np.ones(3), "audio", **options)
    with pytest.raises(ExistsError):
        index.add([("c", 0, 1), ("a", 0, 1)], {"audio": np.ones((2, 3))})
    assert len(index) == 1  # all or none
    index.add([("a", 1, 2)], {"audio": np.ones((1, 3))})
    assert [h.start for h in index.search(np.ones(3), "audio")] == [0, 1]
    index.close()


def test_settings_that_cannot_be(tmp_path):
    for options in (
        {"similarity": "euclidean"},
        {"factory": "Nonsense"},
        {"factory": "LSH"},
        {"factory": "PCA4,IVF8,Flat"},
        {"modalities": ("smell",)},
        {"modalities": ()},
        {"dim": 0},
        {"hop": 0.0},
        {"segment": float("nan")},
    ):
        with pytest.raises(ConfigError):
            Index.create(tmp_path / "i", **{"model": "m", "dim": 8, **options})
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "letter.txt").write_text("dear")
    with pytest.raises(ExistsError, match=r"letter\.txt"):
        Index.create(tmp_path / "used", model="m", dim=8)
    with pytest.raises(StoreError):
        Index.open(tmp_path / "nowhere")


def test_another_model_is_refused(tmp_path):
    with Index.create(tmp_path / "i", model="a19f", dim=3, inputs=Inputs(fps=8)) as index:
        index.require("a19f")
        index.require("a19f", Inputs(fps=8))
        with pytest.raises(ModelError, match="built with model a19f, you loaded 77c0") as caught:
            index.require("77c0")
        assert (caught.value.code, caught.value.exit) == ("E-MODEL", 5)
        with pytest.raises(ModelError, match="fps"):
            index.require("a19f", Inputs(fps=25))


def test_approximate_index_is_brought_up_to_date(tmp_path):
    """Too few vectors to train: exact. Then trained, grown, its removed vectors masked; then made without them."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((4000, DIM))
    table = rows(4000)
    with Index.create(tmp_path / "i", model="m", dim=DIM, modalities=("audio",), factory="IVF8,Flat") as index:
        index.add(table[:200], {"audio": vectors[:200]})
        assert index.info()["exact"]
        index.add(table[200:3000], {"audio": vectors[200:3000]})
        assert not index.info()["exact"]
        index.add(table[3000:], {"audio": vectors[3000:]})
        assert len(list((tmp_path / "i").glob("*.faiss"))) == 1
        assert found(index.search(vectors[3500], "audio", k=1)) == [table[3500][:2]]
        index.remove([table[3500][0]])
        assert table[3500][0] not in {h.path for h in index.search(vectors[3500], "audio", k=500)}
        index.remove(where="path < 'f0600'")
        assert index.info()["removed_vectors"] == {"audio": 0}  # more were gone than left: compacted
        assert len(index.search(vectors[3499], "audio", k=5000)) == 995
        assert found(index.search(vectors[3499], "audio", k=1)) == [table[3499][:2]]


def test_remove(tmp_path):
    with Index.create(tmp_path / "i", model="m", dim=2) as index:
        names = ["a/1.wav", "a/2.wav", "ab/1.wav", "b.wav"]
        index.add(
            [(n, s, s + 1) for n in names for s in (0.0, 1.0)], {"audio": np.ones((8, 2)), "video": np.ones((8, 2))}
        )
        with pytest.raises(ConfigError, match=r'Did you mean "b\.wav"'):
            index.remove(["bb.wav"])
        with pytest.raises(ConfigError, match="nothing to remove"):
            index.remove()
        gone = index.remove(["a"])
        assert gone == {"removed_files": 2, "removed_segments": 4, "files": 2, "segments": 4}
        gone = index.remove(["b.wav"], where="path = 'ab/1.wav' AND start >= 1")
        assert gone == {"removed_files": 1, "removed_segments": 3, "files": 1, "segments": 1}
        assert found(index.search(np.ones(2), "video")) == [("ab/1.wav", 0.0)]
        index.remove(where="1")
        assert index.search(np.ones(2), "video") == ()
        assert index.info()["files"] == 0
        index.add([("b.wav", 0, 1)], {"audio": np.ones((1, 2))})
        assert index.search(np.ones(2), "video") == ()
        assert len(index.search(np.ones(2), "audio")) == 1
