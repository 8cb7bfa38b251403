"""The system cca: finds what two modalities share, in one pass, for features, pictures, sound and text alike."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from avcl.errors import BatchError, ConfigError
from avcl.seeds import seeded
from avcl.system import Embeds, Represents, Step
from avcl.systems.cca import CCA, CCAConfig
from avcl.types import Batch, DataSpec, Stream, StreamSpec

FEATURES = DataSpec(
    {"audio": StreamSpec("features", (6,), 1.0), "video": StreamSpec("features", (9,), 1.0)}, n_items=300
)


def batch(streams: dict[str, Stream]) -> Batch:
    n = len(next(iter(streams.values())).data)
    zero = torch.zeros(n, dtype=torch.long)
    return Batch(tuple(map(str, range(n))), streams, torch.arange(n), zero, zero, tuple(map(str, range(n))))


def full(data: torch.Tensor, rate: float = 1.0) -> Stream:
    return Stream(data, torch.ones(data.shape[:2], dtype=torch.bool), rate)


def correlated(n: int, *sizes: int, seed: int = 0, steps: int = 2) -> dict[str, Stream]:
    """Features of which three directions are shared, and the rest is noise."""
    g = torch.Generator().manual_seed(0)
    mixing = [torch.randn(3, d, generator=g) for d in sizes]
    g = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, 1, 3, generator=g)
    names = ("audio", "video", "text")
    return {
        name: full(shared @ m + 0.3 * torch.randn(n, steps, d, generator=g) + 5)
        for name, m, d in zip(names, mixing, sizes, strict=False)
    }


def fitted(config: CCAConfig = CCAConfig(components=3), spec: DataSpec = FEATURES) -> CCA:  # noqa: B008
    system = CCA(config, spec)
    system.finish([batch(correlated(100, 6, 9, seed=s)) for s in range(3)])
    return system


def first_hits(system: CCA, given: Batch, query: str, gallery: str) -> float:
    s = system.similarity(system.embed(given, query), system.embed(given, gallery))
    return float((s.argmax(1) == torch.arange(len(given))).float().mean())


def test_finds_the_partner_of_unseen_clips_both_ways() -> None:
    system, test = fitted(), batch(correlated(50, 6, 9, seed=9))
    assert isinstance(system, Embeds)
    assert isinstance(system, Represents)
    assert first_hits(system, test, "audio", "video") > 0.5
    assert first_hits(system, test, "video", "audio") > 0.5
    shuffled = batch({**test.streams, "video": full(test.video.data.roll(1, 0))})
    assert first_hits(system, shuffled, "audio", "video") < 0.1
    untrained = CCA(system.config, FEATURES)
    assert first_hits(untrained, test, "audio", "video") < 0.3
    assert system.correlation.tolist() == sorted(system.correlation.tolist(), reverse=True)
    assert float(system.correlation[0]) > 0.9


def test_embeddings_are_unit_float32_and_survive_their_own_state() -> None:
    system, test = fitted(), batch(correlated(20, 6, 9, seed=9))
    z = system.embed(test, "audio")
    assert z.shape == (20, 3)
    assert z.dtype == torch.float32
    assert torch.allclose(z.norm(dim=1), torch.ones(20))
    with seeded(5, "other"):
        copy = CCA(system.config, FEATURES)
    copy.load_state_dict(system.state_dict())
    assert torch.equal(copy.embed(test, "audio"), z)
    both = system.embed(test, "audio+video")
    assert torch.allclose(both, torch.nn.functional.normalize(z + system.embed(test, "video"), dim=1), atol=1e-6)
    assert system.features(test, "audio").shape == (20, 6)
    terms = system.losses(system.encode(test), test, Step(0, 1, 0, 0.0, torch.Generator()))
    assert -1 <= float(terms["cosine"]) < -0.8


def test_chunks_masks_and_missing_rows_do_not_change_the_fit() -> None:
    rows = correlated(90, 6, 9)
    whole, parts, holes = (CCA(CCAConfig(components=3), FEATURES) for _ in range(3))
    whole.finish([batch(rows)])
    parts.finish(
        [batch({n: Stream(s.data[i : i + 31], s.mask[i : i + 31], 1.0) for n, s in rows.items()}) for i in (0, 31, 62)]
    )
    assert torch.allclose(whole.correlation, parts.correlation, atol=1e-9)
    # Padding, and clips that lack one modality, are not seen.
    padded = {n: torch.cat([s.data, torch.full_like(s.data, 77.0)], 1) for n, s in rows.items()}
    mask = torch.arange(4)[None].expand(90, 4) < 2
    extra = {n: torch.cat([d, torch.full_like(d[:5], 1e6)]) for n, d in padded.items()}
    some = {n: torch.cat([mask, torch.full((5, 4), n == "audio")]) for n in rows}
    holes.finish([batch({n: Stream(extra[n], some[n], 1.0) for n in rows})])
    assert torch.allclose(whole.correlation, holes.correlation, atol=1e-9)
    assert torch.allclose(whole.project["audio"].weight, holes.project["audio"].weight, atol=1e-6)
    absent = holes.embed(batch({n: Stream(extra[n], some[n], 1.0) for n in rows}), "video")[90:]
    assert float(absent.abs().max()) == 0


def test_three_modalities_share_one_space() -> None:
    spec = DataSpec({**FEATURES.streams, "text": StreamSpec("features", (5,), 1.0)})
    system = CCA(CCAConfig(components=3, ridge=0.01), spec)
    system.finish([batch(correlated(300, 6, 9, 5))])
    test = batch(correlated(40, 6, 9, 5, seed=4))
    for query, gallery in (("audio", "text"), ("text", "video"), ("video", "audio")):
        assert first_hits(system, test, query, gallery) > 0.4
    only = CCA(CCAConfig(modalities=("text", "audio")), spec)
    assert only.modalities == ("text", "audio")
    with pytest.raises(ConfigError, match='no "video"'):
        only.embed(test, "video")


def test_deficient_rank_and_constant_columns() -> None:
    rows = correlated(200, 6, 9)
    flat = {n: full(s.data.mean(1, keepdim=True).softmax(2)) for n, s in rows.items()}
    flat["audio"].data[:, :, 0] = 0.25  # a constant column, and rows that sum to a constant
    system = CCA(CCAConfig(components=20, ridge=0.0, standardize=True), FEATURES)
    system.finish([batch(flat)])
    assert torch.isfinite(system.embed(batch(flat), "audio")).all()
    assert system.components == 6
    assert int((system.correlation > 1e-9).sum()) <= 5


def test_raw_media_and_text() -> None:
    """Louder and brighter clips, and a letter for each level: any two of them are enough."""
    g = torch.Generator().manual_seed(0)
    n = 60
    pitch = torch.linspace(0, 1, n)[torch.randperm(n, generator=g)]
    time = torch.arange(8000) / 8000
    sound = torch.sin(2 * torch.pi * (200 + 1500 * pitch[:, None]) * time)[:, :, None]
    picture = (pitch[:, None, None, None, None] * 200 + 40 * torch.rand(n, 8, 3, 16, 16, generator=g)).to(torch.uint8)
    letters = (97 + (pitch * 8).long())[:, None].expand(n, 4)
    streams = {"audio": full(sound, 8000.0), "video": full(picture, 8.0), "text": full(letters)}
    spec = DataSpec(
        {
            "audio": StreamSpec("audio", (1,), 8000.0),
            "video": StreamSpec("video", (3, 16, 16), 8.0),
            "text": StreamSpec("tokens", (), 1.0),
        }
    )
    for pair in (("audio", "video"), ("video", "text"), ("text", "audio")):
        system = CCA(CCAConfig(modalities=pair, components=2, window=1.0), spec)
        system.finish([batch(streams)])
        assert float(system.correlation[0]) > 0.8
        assert torch.isfinite(system.embed(batch(streams), pair[0])).all()
    assert torch.allclose(system.embed(batch(streams), "audio"), system.embed(batch(streams).to("cpu"), "audio"))
    assert CCA.inputs(dataclasses.replace(CCAConfig(), window=1.5, size=(48, 64))).size == (48, 64)
    assert CCA.inputs(dataclasses.replace(CCAConfig(), size=(48,))).size == (48, 48)


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(ConfigError, match=r'no modality "vidio".*video'):
        CCA(CCAConfig(modalities=("audio", "vidio")), FEATURES)
    with pytest.raises(ConfigError, match="two modalities"):
        CCA(CCAConfig(modalities=("audio",)), FEATURES)
    with pytest.raises(BatchError, match="at least two clips"):
        CCA(CCAConfig(), FEATURES).finish([batch(correlated(1, 6, 9))])
    with pytest.raises(BatchError, match="no fixed summary"):
        CCA(CCAConfig(), DataSpec({"audio": StreamSpec("spectrum", (4, 1), 1.0), "video": FEATURES.streams["video"]}))
    with pytest.raises(ConfigError, match="at least 1"):
        CCA(CCAConfig(components=0), FEATURES)


def test_published_figures_on_wikipedia(shared_data) -> None:
    """Image query .235-.275, text query .185-.215 (published: .249 and .196), with the settings as they come."""
    import numpy as np

    from avcl.metrics.ranking import rank

    z = np.load(shared_data("wikipedia_features") / "wikipedia_sift128_lda10.npz")
    spec = DataSpec({"video": StreamSpec("features", (128,), 1.0), "text": StreamSpec("features", (10,), 1.0)})
    parts = {
        part: batch({n: full(torch.from_numpy(z[f"{k}_{part}"])[:, None]) for n, k in (("video", "I"), ("text", "T"))})
        for part in ("tr", "te")
    }
    system = CCA(CCAConfig(), spec)
    system.finish([parts["tr"]])
    label = z["L_te"].ravel()
    image, text = (system.embed(parts["te"], name) for name in ("video", "text"))
    assert 0.235 <= rank(image, text, label, label).summary((1,))["mAP"] <= 0.275
    assert 0.185 <= rank(text, image, label, label).summary((1,))["mAP"] <= 0.215
