"""Deep correlation: two networks whose outputs correlate, and the linear map that makes them comparable.

**Recipe.** Both systems learn from labels, with cluster-CCA: sound and picture of one class belong together, whichever
clips they come from. S-DCCA trains two towers and two perceptrons end to end, 96 steps of 100 fresh clips; GELU instead
of the paper's sigmoids, which reach an mAP by class of .21 in the same time (.31 with GELU). TNN-C-CCA starts from the
fixed statistics of media, to which it fits cluster-CCA in closed form, and puts one small triplet network on top; its
ridge is .1 there, for 372 columns of 1,600 clips are not to be trusted further. **Traps.** The loss does not change
when one network's outputs are multiplied by any invertible matrix, so their cosine says nothing: it is near chance
until the linear cluster-CCA of all training outputs has been applied, and a system that is scored while it learns must
have that map at every step, or validation picks an epoch at random. A batch that is not larger than the dimension
correlates perfectly whatever it holds, and is refused (E-BATCH). Between C classes at most C - 1 correlations are above
zero, so more components than classes only add noise to the cosine.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avcl import trials
from avcl.data import Loader
from avcl.files import write_atomic
from avcl.metrics.ranking import rank
from avcl.model import Model

SYSTEM = "zeng2018_s_dcca"
CLIPS = 200
SHOWN = 4  # classes, those that the first two components tell apart best


def draw(model_folder: Path, out: Path) -> str:
    """Sounds and pictures of held-out clips in the bases of the two networks and in the common one; the caption with
    the mAP by class of either.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    model = Model.load(model_folder)
    system: Any = model.system
    _, trial = trials.trial_of(type(system))
    world = trials.world_of(trial, clips=CLIPS, split="test").configure(model.inputs)
    own: dict[str, list[Tensor]] = {"audio": [], "video": []}
    for batch in Loader(world, batch_size=50).batches(0):
        for name, rows in own.items():
            rows.append(system.features(batch.to("cpu"), name))
    label = np.array(world.targets)
    outputs = {name: torch.cat(rows) for name, rows in own.items()}
    common = {name: system.pair.cca(rows, name) for name, rows in outputs.items()}
    spaces = {"as the networks give them": outputs, "after the linear cluster-CCA": common}
    found = {title: by_class(space, label) for title, space in spaces.items()}
    chosen = apart(common, label)
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4.2))
    for axis, (title, space) in zip(axes, spaces.items(), strict=True):
        for k, c in enumerate(chosen):
            for name, marker in (("audio", "o"), ("video", "x")):
                x, y = space[name][label == c, :2].T.double().numpy()
                face = {"facecolors": "none"} if marker == "o" else {}
                axis.scatter(x, y, s=26, marker=marker, **face, **{"edgecolors" if face else "color": f"C{k}"})
        axis.set_title(f"{title}: mAP {found[title]:.2f}", fontsize=9)
        axis.set(xticks=[], yticks=[], xlabel="first dimension", ylabel="second dimension")
    handles = [axes[1].scatter([], [], color=f"C{k}", marker="s", label=world.labels[c]) for k, c in enumerate(chosen)]
    handles += [axes[1].scatter([], [], facecolors="none", edgecolors="black", label="sound")]
    handles += [axes[1].scatter([], [], color="black", marker="x", label="picture")]
    axes[1].legend(handles=handles, fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    whole = io.BytesIO()
    figure.savefig(whole, dpi=90, bbox_inches="tight")
    pyplot.close(figure)
    write_atomic(out, lambda part: Image.open(whole).convert("RGB").quantize(128).save(part, "PNG", optimize=True))
    before, after = found.values()
    return (
        f"{model.name}: sounds and pictures of four classes, held-out clips of the world, in the bases of the two "
        f"networks and after the linear cluster-CCA of their outputs; the correlation is the same, the mAP by class of "
        f"all {CLIPS} clips {before:.2f} and {after:.2f} (a random ranking has .11)."
    )


def by_class(space: dict[str, Tensor], label: np.ndarray) -> float:
    """mAP by class of the cosine, mean of both directions."""
    unit = {name: torch.nn.functional.normalize(rows.float(), dim=1).numpy() for name, rows in space.items()}
    values = [
        rank(unit[q], unit[g], label, label, similarity="cosine", map_at=(), ndcg_at=()).summary((1,))["mAP"]
        for q, g in (("audio", "video"), ("video", "audio"))
    ]
    return float(np.mean(values))


def apart(space: dict[str, Tensor], label: np.ndarray) -> list[int]:
    """``SHOWN`` classes whose means lie far from each other in the first two components, one after another."""
    rows = (space["audio"] + space["video"])[:, :2].double().numpy()
    means = np.array([rows[label == c].mean(0) for c in range(label.max() + 1)])
    chosen = [int(np.linalg.norm(means - means.mean(0), axis=1).argmax())]
    while len(chosen) < SHOWN:
        gaps = np.linalg.norm(means[:, None] - means[chosen], axis=2).min(1)
        chosen.append(int(gaps.argmax()))
    return chosen
