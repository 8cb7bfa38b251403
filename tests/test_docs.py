"""What the documents say is true: the README's tree and commands, the generated pages, the examples."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_every_path_in_the_readme_tree_exists() -> None:
    tree = re.search(r"## The tree\n\n```\n(.*?)```", README, re.S)
    assert tree
    inside = ROOT
    for line in tree[1].splitlines():
        here = ROOT / "src" / "avcl" if line.startswith("  ") else ROOT
        names = re.findall(r"(?:^|\s)([\w./]+(?:/|\.py))(?=\s)", line)
        assert names, line
        for name in names:
            assert (here / name).exists() or (ROOT / name).exists(), (
                f"{name} is in the README's tree but not in {inside}"
            )


def test_the_readme_names_real_verbs_and_options() -> None:
    from avcl.ops import VERBS

    for line in re.findall(r"^\$ avcl (.+?)(?:\s+#.*)?$", README, re.M):
        verb = max((v for v in VERBS if line.startswith(v.name)), key=lambda v: len(v.name))
        for option in re.findall(r"--([\w-]+)", line):
            assert option.replace("-", "_") in {*verb.model_fields, "json"}, line


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^\$ make (\w+)", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M)


def test_links_between_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_generated_pages_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples_run(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sizes = {
        "event_detector": {"clips": 8, "held_out": 4, "epochs": 1},
        "find_the_sound": {"clips": 12, "epochs": 1},
        "poe_vae": {"clips": 64, "steps": 20},
    }
    small = sizes.get(script.stem, {})
    arguments = [str(tmp_path)] if script.stem == "find_the_sound" else []
    module.main(arguments, **small)
    assert capsys.readouterr().out.strip()
