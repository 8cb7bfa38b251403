"""One picture a family, and the page that shows them: docs/families/<family>.png and docs/families.md.

python recipes/families_page.py --runs FOLDER [--only FAMILY ...]

FOLDER holds the models that `recipes/families.py --runs FOLDER` kept. The words of a family are the docstring of its
module in `recipes/pictures/`; figures are those of `results/`.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from avcl.files import read_json, write_atomic, write_json

ROOT = Path(__file__).resolve().parents[1]
ORDER = (
    "deep_correlation",
    "representation",
    "localization",
    "events",
    "separation",
    "spatial",
    "emotion",
    "face_voice",
    "sync",
    "generation",
    "speech",
    "music",
)
HEAD = """# Families

Written by `recipes/families_page.py`: one picture a family, drawn from a model that `recipes/families.py` trained on
the generated world. How each is scored: [protocols.md](protocols.md). Every figure with all its controls:
[results.md](results.md); row by row of the survey's table: [systems.md](systems.md).
"""


def families() -> list[str]:
    there = {path.stem for path in (ROOT / "recipes" / "pictures").glob("[!_]*.py")}
    return [*(name for name in ORDER if name in there), *sorted(there - set(ORDER))]


def section(family: str, caption: str) -> str:
    module = importlib.import_module(f"pictures.{family}")
    title, _, words = (inspect.getdoc(module) or family).partition("\n")
    return f"\n## {title.rstrip('.')}\n\n![{family}](families/{family}.png)\n\n*{caption}*\n\n{words.strip()}\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    parser.add_argument("--only", nargs="*", help="draw these anew, keep the other pictures")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    folder = given.docs / "families"
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "captions.json"
    captions = read_json(kept) if kept.exists() else {}
    for family in families():
        module = importlib.import_module(f"pictures.{family}")
        picture = folder / f"{family}.png"
        trained = (given.runs / module.SYSTEM / "0" / "config.json").exists()
        if trained and (given.only is None or family in given.only or not picture.exists()):
            captions[family] = module.draw(given.runs / module.SYSTEM / "0", picture)
            print(f"{picture}: {captions[family]}", flush=True)
    write_json(kept, json.loads(json.dumps(captions, sort_keys=True)))
    page = HEAD + "".join(section(family, captions[family]) for family in families() if family in captions)
    write_atomic(given.docs / "families.md", page)


if __name__ == "__main__":
    main()
