"""The recipe of the separators on a few made-up talking heads, and the picture of the family."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from avcl.data.world import World
from avcl.media import write_video
from avcl.model import Model
from avcl.seeds import seeded
from avcl.systems.zhao2018_sound_of_pixels import SoundOfPixels


def test_grid_separation(recipe, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "video").mkdir()
    for i in range(8):
        sound = 0.1 * rng.normal(size=(24_000, 1)).astype(np.float32)
        picture = rng.integers(0, 255, (75, 32, 32, 3), dtype=np.uint8)
        write_video(tmp_path / "video" / f"s{i}.mp4", picture, sound, fps=25, sample_rate=8000)
    module = recipe("grid_separation")
    tiny = {**module.MEDIA, "size": (32, 32), "epochs": 1, "batch_size": 4, "widths": (4, 6), "bands": 16}
    systems = {"zhao2018_sound_of_pixels": {**tiny, "fps": 2.0, "picture": (4, 6, 6)}}
    found = module.run(tmp_path, test=4, systems=systems)
    cell = found["systems"]["zhao2018_sound_of_pixels"]
    assert (cell["mixtures"], cell["train_windows"]) == (2, 3 * 2)  # one of four sentences is kept to validate
    gain = cell["scores"]["SI-SDR gain"]
    assert gain["interval"][0] <= gain["value"] <= gain["interval"][1]
    assert gain["the mixture"] == 0
    assert {"untrained", "wrong partner", "equal share"} <= set(gain)
    [table] = found["tables"]
    assert all(len(row) == len(table["columns"]) for row in table["rows"])


def untrained(folder: Path) -> Path:
    config = SoundOfPixels.Config.tiny()
    inputs = SoundOfPixels.inputs(config)
    with seeded(0, "init"):
        system = SoundOfPixels(config, World("separation", clips=2).configure(inputs).spec)
    return Model(system, inputs, {}).save(folder)


def test_separation_duet(recipe, tmp_path: Path) -> None:
    untrained(tmp_path / "zhao2018_sound_of_pixels" / "0")
    found = recipe("separation_duet").run(tmp_path, files=2, systems=("zhao2018_sound_of_pixels",))
    [table] = found["tables"]
    assert [row[1] for row in table["rows"]] == ["gain", "names exchanged"]
    assert all(-6 < row[2] < 1 for row in table["rows"])  # who has learned nothing gains nothing


def test_the_picture_of_the_family(recipe, tmp_path: Path) -> None:
    model = untrained(tmp_path / "model")
    caption = recipe("pictures.separation").draw(model, tmp_path / "separation.png")
    assert "SI-SDR gain" in caption
    assert 10_000 < (tmp_path / "separation.png").stat().st_size < 200_000
