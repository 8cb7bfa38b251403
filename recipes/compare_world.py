"""Retrieval systems on the generated world at three difficulties: who stands where, and what noise does to the order.

Features of frozen random towers, as in ``vegas_world.py``, of all twelve classes. Easy: the preset ``retrieval``, one
object, alone in picture and sound. Middle: noisier, in half of the clips something else moves in silence, in a quarter
something sounds off screen. Hard: the preset ``retrieval-hard``, where something else always moves, half of the clips
have a sound from off screen, and the noise is doubled.

    python recipes/compare_world.py [--systems a,b] [--seeds 2] [--budget 0.5] [--clips 3000] [--work FOLDER]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from common import comparison_parser, kept, rules, workplace, write_result
from vegas_world import made_of_world

import avcl
from avcl.data.world import PRESETS

EASY, HARD = PRESETS["retrieval"], PRESETS["retrieval-hard"]
DIFFICULTIES = {
    "easy": EASY,
    "middle": replace(HARD, name="retrieval-middle", distractor=0.5, offscreen=0.25, noise=9.0),
    "hard": HARD,
}
SYSTEMS = (
    "cca", "c_cca", "kcca", "semantic_matching", "dcca", "dccae", "c_dcca", "zeng2018_s_dcca", "zeng2020_tnn_c_cca",
    "zeng2021_eics", "zhang2021_vae_cca", "zhen2019_dscmr", "acmr", "triplet", "infonce", "cao2016_cah", "agah",
    "ugach", "pretet2021_music_video", "wang2018_associative_multichannel_autoencoder",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = comparison_parser(__doc__, systems=",".join(SYSTEMS), seeds=2, budget=0.5)
    parser.add_argument("--clips", type=int, default=3000, help="training clips; half as many to stop and to test by")
    given = parser.parse_args(argv)
    counts = {"train": given.clips, "val": given.clips // 4, "test": given.clips // 2}
    made = {}
    with workplace(given.work) as work:
        for name, preset in DIFFICULTIES.items():
            data = made_of_world(work / f"{name}.npz", preset=preset, counts=counts, classes=len(preset.labels))
            how = {"systems": given.systems, "seeds": given.seeds, "budget": given.budget}
            made[name] = avcl.compare(data, out=work / name, progress=True, **how)
            print(made[name], flush=True)
    about = (
        f"Twelve classes, {counts['train']:,} train, {counts['val']:,} val, {counts['test']:,} test clips, frozen "
        f"random towers and PCA to 128 and 1024 numbers; {given.seeds} seeds, at most {given.budget:g} minutes each, "
        f"default settings, relevance by class. {rules(made['easy'])}"
    )
    parts = {name: kept(one, f"{name}: {DIFFICULTIES[name].difficulty}") for name, one in made.items()}
    found = {
        "title": "Retrieval systems on the world at three difficulties",
        "about": about,
        "tables": [table for part in parts.values() for table in part["tables"]],
        "runs": {name: part["runs"] for name, part in parts.items()},
    }
    write_result(given.results, "retrieval/compare_world", found)


if __name__ == "__main__":
    main()
