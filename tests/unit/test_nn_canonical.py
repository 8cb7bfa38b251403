"""Cluster-CCA as a part: the closed form over all pairs of a class, followed batch by batch, and its errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from avcl.errors import BatchError, ConfigError
from avcl.metrics.ranking import rank
from avcl.nn.canonical import ClusterCCA
from avcl.nn.dense import dense, glorot


def rows(n: int = 90, seed: int = 0) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Two views of widths 5 and 4 that share the class (of 3) and two directions of the single clip."""
    g = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 3
    mix = torch.Generator().manual_seed(9)
    shared = torch.cat([torch.eye(3)[label], torch.randn(n, 2, generator=g)], 1)
    views = {name: shared @ torch.randn(5, d, generator=mix) for name, d in (("audio", 5), ("video", 4))}
    return {name: x + 0.3 * torch.randn(x.shape, generator=g) + 2 for name, x in views.items()}, label


def made(**settings) -> ClusterCCA:
    return ClusterCCA({"audio": 5, "video": 4}, 4, classes=3, **settings)


@pytest.mark.parametrize("beta", [0.0, 0.2, 1.0])
def test_equals_the_sum_over_all_pairs(beta: float) -> None:
    views, label = rows()
    part = made(pair_weight=beta, ridge=1e-3)
    part.fit([({name: x[i] for name, x in views.items()}, label[i]) for i in torch.arange(90).split(40)])
    a, v = (x.double().numpy() for x in views.values())
    a, v = a - a.mean(0), v - v.mean(0)
    pairs = [np.outer(a[i], v[j]) for i in range(90) for j in range(90) if label[i] == label[j]]
    across = beta * a.T @ v / 89 + (1 - beta) * np.mean(pairs, 0)
    roots = [np.linalg.inv(np.linalg.cholesky(x.T @ x / 89 + 1e-3 * np.eye(x.shape[1]))).T for x in (a, v)]
    sigma = np.linalg.svd(roots[0].T @ across @ roots[1], compute_uv=False)
    np.testing.assert_allclose(part.correlation.numpy(), sigma, atol=1e-9)
    both = [part(views[name], name) for name in views]
    # The covariance of the components with each other is diag(σ) in the mixed sense: of the pairs alone where β = 1.
    if beta == 1:
        torch.testing.assert_close(both[0].T @ both[1] / 89, torch.diag(part.correlation), atol=1e-8, rtol=0)


def test_following_the_same_batch_again_and_again_is_fitting_it() -> None:
    views, label = rows()
    one, two = made(), made()
    one.fit([(views, label)])
    for _ in range(15):
        two.follow(views, label)
    for name, value in one.named_buffers():
        if name != "followed":
            torch.testing.assert_close(dict(two.named_buffers())[name], value, atol=1e-10, rtol=1e-9)
    two.follow({name: x[:1] for name, x in views.items()}, label[:1])  # one clip has no covariance: nothing happens
    assert int(two.followed) == 15


def test_standardized_views_do_not_see_the_scale_of_their_columns() -> None:
    views, label = rows()
    scale = torch.tensor([1e-3, 1.0, 50.0, 0.1, 7.0])
    one, two = (made(standardize=("audio", "video"), ridge=0.1) for _ in range(2))
    one.fit([(views, label)])
    other = {"audio": views["audio"] * scale, "video": views["video"]}
    two.fit([(other, label)])
    for name in views:
        torch.testing.assert_close(one(views[name], name), two(other[name], name), atol=1e-5, rtol=1e-4)
    constant = {**views, "audio": torch.cat([views["audio"][:, :4], torch.ones(90, 1)], 1)}
    two.fit([(constant, label)])
    assert bool(torch.isfinite(two(constant["audio"], "audio")).all())


def test_says_what_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="two modalities, not 3"):
        ClusterCCA({"audio": 5, "video": 4, "text": 3}, 4, classes=3)
    with pytest.raises(ConfigError, match="the data have 0"):
        ClusterCCA({"audio": 5, "video": 4}, 4, classes=0)
    with pytest.raises(BatchError, match="two labeled clips"):
        made().fit([])
    views, label = rows()
    with pytest.raises(BatchError, match="class weights"):
        made().fit([(views, label + 7)])


def test_dense_layers_start_as_glorot_said() -> None:
    torch.manual_seed(0)
    layers = dense((200, 100, 50), activation="sigmoid", dropout=0.2)
    assert [type(layer).__name__ for layer in layers] == ["Linear", "Sigmoid", "Dropout"] * 2
    for layer in (layers[0], glorot(30, 30)):
        bound = (6 / sum(layer.weight.shape)) ** 0.5
        assert 0.95 * bound < float(layer.weight.detach().abs().max()) <= bound
        assert not bool(layer.bias.any())
    with pytest.raises(ConfigError, match="sigmoid"):
        dense((2, 2), activation="sigmoyd")


@pytest.mark.parametrize(("components", "image", "text"), [(5, 0.2733, 0.2184), (10, 0.2465, 0.1954)])
def test_wikipedia_features(shared_data: Callable[[str], Path], components: int, image: float, text: float) -> None:
    """Figures that another program computed on the official split: mAP by class, both directions, β = .2, r = 1e-4."""
    with np.load(shared_data("wikipedia_features") / "wikipedia_sift128_lda10.npz") as z:
        train, test = (
            {"video": torch.from_numpy(z[f"I_{p}"]), "text": torch.from_numpy(z[f"T_{p}"])} for p in ("tr", "te")
        )
        labels = [torch.from_numpy(z[f"L_{p}"].ravel().astype(np.int64)) - 1 for p in ("tr", "te")]
    part = ClusterCCA({name: x.shape[1] for name, x in train.items()}, components, classes=10)
    part.fit([(train, labels[0])])
    unit = {name: torch.nn.functional.normalize(part(x, name), dim=1).numpy() for name, x in test.items()}
    key = labels[1].numpy()
    for query, gallery, published in (("video", "text", image), ("text", "video", text)):
        ranking = rank(unit[query], unit[gallery], key, key, similarity="cosine", map_at=(), ndcg_at=())
        assert ranking.summary((1,))["mAP"] == pytest.approx(published, abs=2e-3)
