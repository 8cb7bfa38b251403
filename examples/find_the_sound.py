"""Find the sound for a picture, from Python: render a few clips, learn for a minute, index, search.

python examples/find_the_sound.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import avcl
from avcl import archive
from avcl.data.world import export


def main(argv: list[str], *, clips: int = 120, epochs: int = 8) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(argv[0]) if argv else Path(scratch)
        export("retrieval", folder / "clips", clips=clips, seed=0)
        model = avcl.train("infonce", folder / "clips", settings={"epochs": epochs}, out=folder / "run", progress=True)
        archive.build(folder / "clips", model=model, out=folder / "index")
        query = sorted((folder / "clips").glob("*.webm"))[0]
        for hit in archive.search(folder / "index", video=query, k=5, model=model):
            print(f"{hit.rank}  {hit.score:.3f}  {hit.start:.1f}–{hit.end:.1f} s  {Path(hit.path).name}")


if __name__ == "__main__":
    main(sys.argv[1:])
