"""A product-of-experts VAE from parts: from when a clip is loud imagine when its picture moves, and the reverse.

python examples/poe_vae.py
"""

from __future__ import annotations

import sys
from functools import partial

import torch
from torch import nn

from avcl.data.world import World
from avcl.encoders.statistics import SLOTS, summarize
from avcl.metrics import chance, rank
from avcl.nn.multimodal_vae import MultimodalVAE
from avcl.objectives import gaussian_log_likelihood


def curves(clips: int, split: str) -> dict[str, torch.Tensor]:
    """Loudness and motion of each clip in slots of its 3 seconds, in units of the clip: [clips, SLOTS] each."""
    world = World("retrieval", clips=clips, split=split)
    rows = [world.clip(i).streams for i in range(clips)]
    found = {m: torch.cat([summarize(r[m], s, seconds=3.0) for r in rows]) for m, s in world.spec.streams.items()}
    return {m: nn.functional.layer_norm(x[:, -SLOTS:].float(), (SLOTS,)) for m, x in found.items()}


def model(width: int = 128, dim: int = 16) -> MultimodalVAE:
    def net(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Dropout(0.2), nn.Linear(width, outputs))

    encoders, decoders = ({m: net(*size) for m in ("audio", "video")} for size in ((SLOTS, 2 * dim), (dim, SLOTS)))
    likelihood = partial(gaussian_log_likelihood, log_variance=-2.0)
    return MultimodalVAE(encoders, decoders, dim=dim, joint="poe", likelihoods=likelihood)


def main(argv: list[str], *, clips: int = 1200, steps: int = 1000) -> None:
    train, test = curves(clips, "train"), curves(200, "test")
    torch.manual_seed(0)
    vae, untrained = model(), model()
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    for rows in torch.randint(clips, (steps, 128)):
        batch = {m: x[rows] for m, x in train.items()}
        optimizer.zero_grad()
        sum(vae.terms(vae.encode(batch), batch).values()).backward()
        optimizer.step()
    keys, by_chance = torch.arange(200), chance([1] * 200, 200)["MRR"]
    for source, target in (("audio", "video"), ("video", "audio")):
        with torch.no_grad():
            made = [v.eval().generate({source: test[source]}, target) for v in (vae, untrained)]
        found = [rank(x, test[target], keys, keys).summary()["MRR"] for x in made]
        print(f"{source} -> {target}: MRR {found[0]:.3f}, untrained {found[1]:.3f}, chance {by_chance:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
