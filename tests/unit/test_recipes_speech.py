"""The recipe of video to speech on faces, from end to end on a few made-up films."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from avcl.media import write_video


def test_grid_speech(recipe, tmp_path: Path) -> None:
    module = recipe("grid_speech")
    rng = np.random.default_rng(0)
    (tmp_path / "video").mkdir()
    rows = ["filename,command,colour,preposition,letter,digit,adverb"]
    for i in range(8):
        sound = 0.1 * rng.normal(size=(16_000, 1)).astype(np.float32)
        picture = rng.integers(0, 255, (50, 32, 32, 3), dtype=np.uint8)
        write_video(tmp_path / "video" / f"s{i}.mp4", picture, sound, fps=25, sample_rate=8000)
        rows.append(f"s{i}.mp4,{'bin' if i % 2 else 'lay'},blue,at,f,two,now")
    (tmp_path / "utterances.csv").write_text("\n".join(rows))
    small = {"size": (24, 24), "side": 12, "width": 4, "hidden": 8, "decoder": 16, "epochs": 1, "batch_size": 2}
    found = module.grid_speech(tmp_path, test=4, settings={**module.SETTINGS, **small}, judge_epochs=1)
    [table] = found["tables"]
    assert [row[:2] for row in table["rows"]] == [
        ["generated", "WER"],
        ["generated", "STOI"],
        ["generated", "ESTOI"],
        ["true speech", "WER"],
    ]
    assert all(len(row) == len(table["columns"]) for row in table["rows"])
    assert "4 sentences that were not trained on" in found["about"]
