"""Vector quantization: nearest codes, straight-through gradients, running codes, restarts, an auto-encoder on them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from autoencoder_toys import SIZES, heads, net, pairs, total
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from avcl.errors import BatchError, ConfigError
from avcl.nn import quantize
from avcl.nn.quantize import QuantizedAE, VectorQuantizer
from avcl.objectives import l2


def quantizer(codes: int = 5, dim: int = 3, **settings) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(codes, dim, **settings)


@given(st.sampled_from([(7,), (2, 4), (2, 3, 2, 2)]), st.integers(1, 9), st.integers(1, 4))
def test_the_nearest_code_by_hand(shape: tuple[int, ...], codes: int, dim: int) -> None:
    part, z = quantizer(codes, dim), torch.randn(*shape, dim, generator=torch.Generator().manual_seed(1))
    found = part(z)
    apart = torch.cdist(z.reshape(-1, dim), part.codebook).reshape(*shape, codes)
    assert found.number.shape == shape
    torch.testing.assert_close(apart.gather(-1, found.number[..., None])[..., 0], apart.amin(-1))
    assert torch.equal(found.data, part.codebook[found.number])  # exactly the code, not the code to rounding
    assert torch.equal(part.decode(found.number), found.data)
    assert torch.equal(part(found.data).data, found.data)
    share = torch.bincount(found.number.flatten(), minlength=codes) / found.number.numel()
    used = share[share > 0]
    assert found.perplexity.item() == pytest.approx((-(used * used.log()).sum()).exp().item(), rel=1e-5)


def test_many_rows_go_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    part, z = quantizer(), torch.randn(50, 3)
    whole = part.nearest(z)
    monkeypatch.setattr(quantize, "ROWS", 7)
    assert torch.equal(part.nearest(z), whole)


@pytest.mark.parametrize("learning", ["ema", "loss"])
def test_gradients_pass_straight_through(learning: str) -> None:
    part, z = quantizer(learning=learning), torch.randn(4, 3, requires_grad=True)
    found = part(z)
    weights = torch.randn(4, 3)
    (found.data * weights).sum().backward()
    assert torch.equal(z.grad, weights)
    if learning == "loss":
        assert part.codebook.grad is None or not bool(part.codebook.grad.any())
        found.codebook.backward()
        expected = torch.zeros(5, 3).index_add(0, found.number, 2 * (found.data - z).detach() / 12)
        torch.testing.assert_close(part.codebook.grad, expected)
    z.grad = None
    part(z).commitment.backward()
    torch.testing.assert_close(z.grad, 2 * (z - found.data).detach() / 12)
    assert ("codebook" in dict(part.named_parameters())) == (learning == "loss")


def test_forward_remembers_nothing_and_is_the_same_in_evaluation() -> None:
    part, z = quantizer(restart=1.0), torch.randn(4, 3)
    before = {k: v.clone() for k, v in part.state_dict().items()}
    one, two = part(z), part.eval()(z)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert all(torch.equal(v, before[k]) for k, v in part.state_dict().items())


def test_running_codes_by_hand() -> None:
    part, z = quantizer(decay=0.75), torch.randn(40, 3)
    code, count, total_ = part.codebook.clone(), torch.ones(5), part.codebook.clone()
    for step in range(3):
        rows = z[10 * step : 10 * (step + 1)]
        number = torch.cdist(rows, code).argmin(1)
        for j in range(5):
            mine = rows[number == j]
            count[j], total_[j] = 0.75 * count[j] + 0.25 * len(mine), 0.75 * total_[j] + 0.25 * mine.sum(0)
            if len(mine):
                code[j] = total_[j] / count[j]
        assert part.update(rows) == 0
        torch.testing.assert_close(part.codebook, code)
        torch.testing.assert_close(part.count, count)
    other = quantizer(decay=0.75)
    for step in range(3):
        other.update(z[10 * step : 10 * (step + 1)].flip(0))
    assert torch.equal(other.codebook, part.codebook)  # the order of rows makes no difference


def test_codes_that_nobody_takes_stay_or_restart() -> None:
    far = torch.full((6, 3), 50.0) + torch.randn(6, 3, generator=torch.Generator().manual_seed(2))
    part = quantizer(decay=0.5)
    start = part.codebook.clone()
    for _ in range(200):
        part.update(far)
    moved = (part.codebook - start).abs().amax(1) > 1e-6
    assert int(moved.sum()) == 1

    drawn = [quantizer(decay=0.5, restart=1.0) for _ in range(3)]
    dead = [p.update(far, generator=torch.Generator().manual_seed(s)) for p, s in zip(drawn, (3, 3, 4), strict=True)]
    assert dead == [4, 4, 4]
    assert torch.equal(drawn[0].codebook, drawn[1].codebook)
    assert not torch.equal(drawn[0].codebook, drawn[2].codebook)
    assert bool((torch.cdist(drawn[0].codebook, far).amin(1) < 50).all())
    assert drawn[0](far).perplexity > 3
    few = quantizer(restart=1.0)
    assert few.update(far[:1]) == 4  # more dead codes than rows
    taught = quantizer(learning="loss", restart=1.0)
    start = taught.codebook.detach().clone()
    taken = taught.nearest(far).unique()
    taught.update(far)
    assert torch.equal(taught.codebook[taken], start[taken])
    assert bool((taught.codebook.detach().abs().amax(1) > 40).sum() == 4)


def test_unrecorded_steps_count_nowhere() -> None:
    part, z = quantizer(decay=0.5), torch.randn(2, 4, 3)
    mask = torch.tensor([[True, True, False, False], [True, False, False, False]])
    junk = torch.where(mask[..., None], z, torch.nan)
    found, plain = part(junk, mask), part(z[mask])
    assert bool((found.data[~mask] == 0).all())
    assert bool((found.number[~mask] == -1).all())
    for name in ("commitment", "codebook", "perplexity"):
        assert torch.equal(getattr(found, name), getattr(plain, name)), name
    assert torch.equal(part.decode(found.number), found.data)
    other = quantizer(decay=0.5)
    part.update(junk, mask)
    other.update(z[mask])
    assert torch.equal(part.codebook, other.codebook)
    nothing = part(junk, torch.zeros_like(mask))
    assert bool((nothing.data == 0).all())
    assert nothing.commitment.item() == 0
    assert part.update(junk, torch.zeros_like(mask)) == 0


def test_half_precision_and_bad_input() -> None:
    part, z = quantizer(), torch.randn(4, 3)
    half = part(z.bfloat16())
    assert half.data.dtype == torch.bfloat16
    assert half.commitment.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(part(z).number, part.nearest(z))
    with pytest.raises(BatchError, match="needs"):
        part(torch.zeros(4, 2))
    with pytest.raises(BatchError, match="mask"):
        part(z, torch.ones(3, dtype=torch.bool))
    for bad in ({"codes": 0}, {"decay": 1.0}, {"restart": -1.0}, {"learning": "kmeans"}):
        with pytest.raises(ConfigError):
            VectorQuantizer(**{"codes": 4, "dim": 2, **bad})


# ---------------------------------------------------------------------------------------------------- auto-encoder
def model(learning: str = "ema", codes: int = 64) -> QuantizedAE:
    torch.manual_seed(0)
    encoders = {m: nn.Sequential(net(s, 32), nn.Unflatten(1, (4, 8)), nn.LayerNorm(8)) for m, s in SIZES.items()}
    decoders = {m: nn.Sequential(nn.Flatten(1), h) for m, h in heads(32).items()}
    return QuantizedAE(encoders, decoders, VectorQuantizer(codes, 8, learning=learning, decay=0.9, restart=0.5))  # type: ignore[arg-type]


@pytest.mark.parametrize("learning", ["ema", "loss"])
def test_terms_of_the_quantized_auto_encoder(learning: str, tmp_path: Path) -> None:
    vq = model(learning)
    x = {m: torch.randn(5, s) for m, s in SIZES.items()}
    latents = vq.encode(x)
    codes, numbers = vq.codes(latents), vq.indices(latents)
    assert codes["audio"].shape == (5, 4, 8)
    assert numbers["video"].shape == (5, 4)
    terms = vq.terms(latents, x)
    made = vq.decoders["video"](codes["audio"])
    assert torch.equal(terms["video_from_audio"], l2(made, x["video"]))
    assert terms["commitment_audio"].item() == pytest.approx(0.25 * l2(latents["audio"], codes["audio"]).item())
    assert ("codebook_audio" in terms) == (learning == "loss")
    total(terms).backward()
    assert all(p.grad is not None for p in vq.parameters())
    torch.testing.assert_close(vq.decode(codes["audio"], "video"), made)

    there = torch.tensor([True, True, False, True, False])
    broken = {**x, "audio": torch.where(there[:, None], x["audio"], torch.nan)}
    kept = vq.terms(vq.encode(broken, present={"audio": there}), broken, present={"audio": there})
    whole = vq.terms(vq.encode({m: v[there] for m, v in x.items()}), {m: v[there] for m, v in x.items()})
    assert kept["commitment_audio"].item() == pytest.approx(whole["commitment_audio"].item(), rel=1e-5)
    assert kept["video_from_audio"].item() == pytest.approx(whole["video_from_audio"].item(), rel=1e-5)

    save_file(vq.state_dict(), tmp_path / "w.safetensors")
    other = model(learning)
    other.quantizer.update(torch.randn(9, 8))
    other.load_state_dict(load_file(tmp_path / "w.safetensors"))
    assert torch.equal(other.indices(other.encode(x))["audio"], numbers["audio"])


@pytest.mark.parametrize("learning", ["ema", "loss"])
def test_a_codebook_is_learned_and_used(learning: str) -> None:
    data, _ = pairs()
    vq, g = model(learning), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(vq.parameters(), lr=2e-3)
    for _ in range(250):
        i = torch.randint(1800, (64,), generator=g)
        batch = {m: x[i] for m, x in data.items()}
        latents = vq.encode(batch)
        optimizer.zero_grad()
        total(vq.terms(latents, batch)).backward()
        optimizer.step()
        vq.quantizer.update(torch.cat(list(latents.values())), generator=g)
    test = {m: x[1800:] for m, x in data.items()}
    latents = vq.encode(test)
    found = vq.quantizer(latents["audio"])
    assert found.perplexity > 16
    assert l2(vq.decode(latents["audio"], "video"), test["video"]) < 0.7  # the mean alone costs 1.04
    agree = vq.indices(latents)["audio"] == vq.indices(latents)["video"]
    assert agree.float().mean() > 3 / 64
