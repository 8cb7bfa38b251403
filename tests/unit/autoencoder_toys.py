"""Two views of one hidden vector, small towers, and a training loop of a few hundred steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from avcl.metrics import rank
from avcl.nn.autoencoders import Autoencoder, LatentPrediction

SIZES = {"audio": 64, "video": 128}


def net(inputs: int, outputs: int, hidden: int = 64) -> nn.Sequential:
    layers = nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    return nn.Sequential(*layers)


def towers(width: int = 16) -> dict[str, nn.Module]:
    return {name: net(size, width) for name, size in SIZES.items()}


def heads(width: int = 16) -> dict[str, nn.Module]:
    return {name: net(width, size) for name, size in SIZES.items()}


def pairs(n: int = 2000, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """8 hidden numbers around the means of 4 classes, seen through two random nets, standardized, with noise .2."""
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(4, (n,), generator=g)
    z = torch.randn(4, 8, generator=g)[label] * 1.5 + torch.randn(n, 8, generator=g)
    views = {}
    for name, size in SIZES.items():
        first, second = torch.randn(8, 32, generator=g) / 8**0.5, torch.randn(32, size, generator=g)
        x = torch.tanh(z @ first) @ second
        views[name] = (x - x.mean(0)) / x.std(0) + 0.2 * torch.randn(n, size, generator=g)
    return views, label


def trained(
    model: Autoencoder, data: Mapping[str, Tensor], label: Tensor, *, steps: int = 300, rows: int = 1800
) -> dict[str, float]:
    """The terms of the last step."""
    optimizer, g = torch.optim.Adam(model.parameters(), lr=2e-3), torch.Generator().manual_seed(0)
    terms: Mapping[str, Tensor] = {}
    for _ in range(steps):
        i = torch.randint(rows, (64,), generator=g)
        batch = {name: x[i] for name, x in data.items()}
        latents = model.encode(batch)
        targets = latents if isinstance(model, LatentPrediction) else batch
        terms = model.terms(latents, targets, label=label[i], generator=g)
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    return {name: float(x.detach()) for name, x in terms.items()}


def mrr(a: Tensor, v: Tensor) -> float:
    """Mean reciprocal rank of row i of ``v`` for row i of ``a``, by cosine; by chance .029 of 200 rows."""
    keys = torch.arange(len(a))
    return rank(a.detach(), v.detach(), keys, keys).summary()["MRR"]


def total(terms: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()
