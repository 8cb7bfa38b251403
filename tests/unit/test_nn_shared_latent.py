"""Shared latents by concatenation and by attention, gates and conditioners: identities, absence, masks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from autoencoder_toys import SIZES, heads, pairs, total, towers, trained
from safetensors.torch import load_file, save_file
from torch import nn

from avcl.errors import BatchError, ConfigError
from avcl.nn.conditioning import Beside, CrossAttentionCondition, FiLM, beside
from avcl.nn.shared_latent import AttentionSharedLatent, ConcatAE, Gate, SharedLatent
from avcl.objectives import l2
from avcl.types import Stream

WIDTHS = {"audio": 12, "video": 10}
BOTH = torch.ones(6, dtype=torch.bool)


def concat(dropout: float = 0.0, association: bool = False) -> ConcatAE:
    torch.manual_seed(0)
    encoders = {m: nn.Sequential(Gate(s), nn.Linear(s, WIDTHS[m]), nn.Tanh()) for m, s in SIZES.items()}
    decoders: dict[str, nn.Module] = {m: nn.Linear(WIDTHS[m], s) for m, s in SIZES.items()}
    if association:
        decoders["association"] = nn.Sequential(nn.Linear(16, 7), nn.Sigmoid())
    return ConcatAE(encoders, decoders, widths=WIDTHS, dim=16, dropout=dropout, weights={"association": 3.0})


def batch(n: int = 6) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    return {m: torch.randn(n, s, generator=g) for m, s in SIZES.items()}


# -------------------------------------------------------------------------------------------------------- concatenation
def test_concatenation_by_hand() -> None:
    model, x = concat(association=True), batch()
    h = torch.cat([model.encoders[m](x[m]) for m in SIZES], 1)
    z = torch.tanh(h @ model.join.weight.T + model.join.bias)
    found = model.encode(x)
    assert tuple(found) == model.latents == ("shared",)
    torch.testing.assert_close(found["shared"], z)
    u = torch.tanh(z @ model.split.weight.T + model.split.bias)
    torch.testing.assert_close(model.decode(z, "audio"), model.decoders["audio"](u[:, :12]))
    torch.testing.assert_close(model.decode(z, "video"), model.decoders["video"](u[:, 12:]))
    torch.testing.assert_close(model.decode(z, "association"), model.decoders["association"](z))
    terms = model.terms(found, {**x, "association": torch.ones(6, 7)})
    assert set(terms) == {"audio_from_shared", "video_from_shared", "association_from_shared"}
    expected = 3.0 * l2(model.decode(z, "association"), torch.ones(6, 7))
    assert terms["association_from_shared"].item() == pytest.approx(expected.item(), rel=1e-5)
    only = model.terms(found, {"association": torch.ones(6, 7)})  # the second stage of the paper
    assert set(only) == {"association_from_shared"}


@pytest.mark.parametrize("kind", ["scalar", "vector"])
def test_gate_by_hand(kind: str) -> None:
    gate, x = Gate(5, kind, strength=0.3), torch.randn(4, 3, 5)  # type: ignore[arg-type]
    g = torch.tanh(x @ gate.linear.weight.T + gate.linear.bias)
    assert g.shape == (4, 3, 1 if kind == "scalar" else 5)
    torch.testing.assert_close(gate(x), x * (1 + 0.3 * g))
    with pytest.raises(ConfigError, match="gate"):
        Gate(5, "matrix")  # type: ignore[arg-type]


def test_absent_is_zero_by_key_and_by_row() -> None:
    model, x = concat().eval(), batch()
    missing = model.encode({"video": x["video"]})["shared"]
    by_row = model.encode({**x, "audio": torch.full_like(x["audio"], torch.nan)}, present={"audio": ~BOTH})["shared"]
    torch.testing.assert_close(by_row, missing)
    h = torch.cat([torch.zeros(6, 12), model.encoders["video"](x["video"])], 1)
    torch.testing.assert_close(missing, torch.tanh(model.join(h)))
    total(model.terms({"shared": by_row}, x, present={"audio": ~BOTH})).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_modality_dropout_takes_one_of_two_from_its_share_of_rows() -> None:
    model = concat(dropout=0.4)
    there = torch.ones(2, 20_000, dtype=torch.bool)
    there[0, :2000] = False  # these have one modality: it stays
    left = model._without_one(there, torch.Generator().manual_seed(0))
    assert bool((left.sum(0) >= 1).all())
    assert not bool((left & ~there).any())
    lost = (there & ~left)[:, 2000:].float().mean(1)
    assert lost.tolist() == pytest.approx([0.2, 0.2], abs=0.01)
    x, g = batch(), torch.Generator()
    one, two = (model.encode(x, generator=g.manual_seed(5))["shared"] for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(model.eval().encode(x)["shared"], model.encode(x)["shared"])


def test_dropout_makes_the_latent_usable_with_one_modality() -> None:
    data, label = pairs()
    test = {m: x[1800:] for m, x in data.items()}
    costs = []
    for dropout in (0.0, 0.5):
        torch.manual_seed(1)
        model = ConcatAE(towers(), heads(), widths=dict.fromkeys(SIZES, 16), dim=24, dropout=dropout)
        trained(model, data, label, steps=250)
        z = model.eval().encode({"audio": test["audio"]})["shared"]
        costs.append(l2(model.decode(z, "video"), test["video"]).item())
    assert costs[1] < 0.8 * costs[0]


# ------------------------------------------------------------------------------------------------------------ attention
class Steps(nn.Module):
    """Features of every step as a Stream."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, stream: Stream) -> Stream:
        return stream._replace(data=self.linear(stream.data))


def gated() -> AttentionSharedLatent:
    torch.manual_seed(0)
    encoders = {"video": nn.Conv2d(3, 6, 3, padding=1), "audio": nn.Linear(5, 4)}
    decoders = {"audio": nn.Linear(8, 5)}
    return AttentionSharedLatent(
        encoders, decoders, query="video", widths={"video": 6, "audio": 4}, dim=8, kind="gate"
    ).eval()


def dotted(residual: bool = True) -> AttentionSharedLatent:
    torch.manual_seed(0)
    encoders, widths = {"audio": Steps(5, 6), "video": Steps(3, 4)}, {"audio": 6, "video": 4}
    decoders = {m: nn.Linear(8, s) for m, s in (("audio", 5), ("video", 3))}
    return AttentionSharedLatent(
        encoders, decoders, query="audio", widths=widths, dim=8, heads=2, residual=residual
    ).eval()


def test_gate_by_hand_and_its_map() -> None:
    model = gated()
    x = {"video": torch.randn(2, 3, 5, 4), "audio": torch.randn(2, 5)}
    latents, shown = model.encode_with_map(x)
    places, vector = model.encoders["video"](x["video"]), model.encoders["audio"](x["audio"])
    gate = torch.sigmoid(model.map(places))
    assert shown.shape == (2, 1, 5, 4)
    torch.testing.assert_close(shown, gate)
    tiled = vector[:, :, None, None].expand(-1, -1, 5, 4) * gate
    z = model.output(nn.functional.gelu(model.fuse(torch.cat([places, tiled], 1))).mean((2, 3)))
    torch.testing.assert_close(latents["shared"], z)
    terms = model.terms(latents, {"audio": x["audio"]})
    total(terms).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.encode({"audio": x["audio"]})["shared"].shape == (2, 8)
    assert model.encode({"video": x["video"]})["shared"].shape == (2, 8)
    blank = model.encode({**x, "audio": x["audio"] * torch.nan}, present={"audio": torch.tensor([False, False])})
    torch.testing.assert_close(blank["shared"], model.encode({"video": x["video"]})["shared"])


def streams(seed: int = 0, pad: int = 0) -> dict[str, Stream]:
    g = torch.Generator().manual_seed(seed)
    made = {}
    for name, steps, width, rate in (("audio", 7, 5, 10.0), ("video", 4, 3, 5.0)):
        data = torch.randn(3, steps, width, generator=g)
        mask = torch.ones(3, steps, dtype=torch.bool)
        mask[1, steps // 2 :] = False
        data = torch.cat([data.masked_fill(~mask[..., None], 9.0), torch.full((3, pad, width), -4.0)], 1)
        made[name] = Stream(data, torch.cat([mask, torch.zeros(3, pad, dtype=torch.bool)], 1), rate)
    return made


def test_dot_attention_honors_masks_and_absence() -> None:
    model, x = dotted(), streams()
    latents, shown = model.encode_with_map(x)
    assert latents["shared"].shape == (3, 8)
    assert shown.shape == (3, 2, 7, 4)
    assert bool((shown[1, :, :, 2:] == 0).all())
    assert bool((shown[1, :, 3:] == 0).all())
    torch.testing.assert_close(shown[0].sum(-1), torch.ones(2, 7))
    padded = model.encode(streams(pad=3))["shared"]
    torch.testing.assert_close(padded, latents["shared"])
    turned = model.encode({m: Stream(s.data.flip(0), s.mask.flip(0), s.rate) for m, s in x.items()})["shared"]
    torch.testing.assert_close(turned.flip(0), latents["shared"])

    alone = model.encode({"audio": x["audio"]})["shared"]  # no context: the queries themselves, pooled
    h, mask = model.into(model.encoders["audio"](x["audio"]).data), x["audio"].mask
    mean = (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(alone, mean)
    empty = x["video"]._replace(mask=torch.zeros_like(x["video"].mask))
    torch.testing.assert_close(model.encode({"audio": x["audio"], "video": empty})["shared"], alone)
    deaf = x["audio"]._replace(mask=torch.zeros_like(x["audio"].mask))
    seen = model.encode({"audio": deaf, "video": x["video"]})["shared"]
    torch.testing.assert_close(seen, model.encode({"video": x["video"]})["shared"])
    assert seen.abs().max() > 0.01
    total(model.terms({"shared": seen}, {"video": torch.randn(3, 3)})).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_without_the_residual_an_absent_context_leaves_nothing() -> None:
    model, x = dotted(residual=False), streams()
    assert bool((model.encode({"audio": x["audio"]})["shared"] == 0).all())
    assert model.encode(x)["shared"].abs().max() > 0


@pytest.mark.parametrize("make", [concat, gated, dotted])
def test_shared_latents_save_and_run_in_half_precision(make, tmp_path: Path) -> None:
    model: SharedLatent = make().eval()
    x = batch() if make is concat else streams() if make is dotted else None
    x = x or {"video": torch.randn(2, 3, 5, 4), "audio": torch.randn(2, 5)}
    z = model.encode(x)["shared"]
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    other = make().eval()
    nn.init.zeros_(next(other.parameters()))
    other.load_state_dict(load_file(tmp_path / "w.safetensors"))
    assert torch.equal(other.encode(x)["shared"], z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model.encode(x)["shared"]
    torch.testing.assert_close(half.float(), z, atol=0.05, rtol=0.1)


def test_settings_and_shapes_have_names() -> None:
    with pytest.raises(ConfigError, match="widths"):
        ConcatAE(towers(), heads(), widths={"audio": 16}, dim=8)
    with pytest.raises(ConfigError, match="dropout"):
        ConcatAE(towers(), heads(), widths=dict.fromkeys(SIZES, 16), dim=8, dropout=1.5)
    with pytest.raises(BatchError, match="latent of audio"):
        ConcatAE(towers(), heads(), widths={"audio": 15, "video": 16}, dim=8).encode(batch())
    with pytest.raises(ConfigError, match="two modalities"):
        AttentionSharedLatent(towers(), heads(), query="text", widths=WIDTHS, dim=8)
    flat = AttentionSharedLatent(towers(), heads(), query="audio", widths=dict.fromkeys(SIZES, 16), dim=8, kind="gate")
    with pytest.raises(BatchError, match="must be a map"):
        flat.encode(batch())
    with pytest.raises(BatchError, match="must be steps"):
        AttentionSharedLatent(towers(), heads(), query="audio", widths=dict.fromkeys(SIZES, 16), dim=8).encode(batch())


# --------------------------------------------------------------------------------------------------------- conditioning
@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 5), (2, 4, 3, 5)])
def test_film_by_hand(shape: tuple[int, ...]) -> None:
    film, x, c = FiLM(4, 3), torch.randn(shape), torch.randn(2, 3)
    gamma, beta = (c @ film.to_both.weight.T + film.to_both.bias).chunk(2, 1)
    ones = [1] * (len(shape) - 2)
    torch.testing.assert_close(film(x, c), (1 + gamma.reshape(2, 4, *ones)) * x + beta.reshape(2, 4, *ones))
    nn.init.zeros_(film.to_both.weight)
    nn.init.zeros_(film.to_both.bias)
    assert torch.equal(film(x, c), x)
    with pytest.raises(BatchError, match="FiLM"):
        film(x, c[:1])


@pytest.mark.parametrize("shape", [(2, 8, 6), (2, 8, 3, 5)])
def test_cross_attention_looks_only_at_what_is_there(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    part, x, c = CrossAttentionCondition(8, 5, heads=2), torch.randn(shape), torch.randn(2, 4, 5)
    mask = torch.tensor([[True, True, False, False], [False] * 4])
    out, shown = part(x, c, mask, return_attention=True)
    assert shown.shape == (2, 2, *shape[2:], 4)
    assert bool((shown[0, ..., 2:] == 0).all())
    torch.testing.assert_close(shown[0].sum(-1), torch.ones(2, *shape[2:]))
    torch.testing.assert_close(out[1], x[1])  # nothing to look at
    other = torch.where(mask[..., None], c, torch.nan)
    torch.testing.assert_close(part(x, other, mask), out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(part(x, c.flip(1), mask.flip(1)), out, atol=1e-5, rtol=1e-5)
    whole = part(x, c)
    row = part.attention(part.norm(x.flatten(2).transpose(1, 2)), c)[0].transpose(1, 2).reshape(shape)
    torch.testing.assert_close(whole, x + row)
    with pytest.raises(BatchError, match="CrossAttention"):
        part(x[:, :4], c)


def test_beside() -> None:
    x, c = torch.randn(2, 3, 4, 5), torch.randn(2, 6)
    both = beside(x, c)
    assert both.shape == (2, 9, 4, 5)
    assert torch.equal(both[:, 3:, 2, 1], c)
    assert torch.equal(Beside(nn.Identity())(c, c, c), torch.cat([c, c, c], 1))
    with pytest.raises(BatchError, match="beside"):
        beside(x, c[:1])
