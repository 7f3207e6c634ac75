"""The comparison that the README's tables come from, whole, at toy size: that its commands keep working."""
import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOY = ["--config=" + str(ROOT / "config/debug.py"), "--scale=0.2", "--seeds=1", "--rows=demo,taught,twin", "--tunings=1", "--texts=2", "--jobs=1"]


def compare(folder, *flags):
    return subprocess.run([sys.executable, str(ROOT / "tests/compare.py"), '--books=["toy.txt"]', *TOY, *flags],
                          cwd=folder, capture_output=True, text=True)


def test_the_comparison_at_toy_size(tmp_path):
    (tmp_path / "toy.txt").write_text((ROOT / "book.txt").read_text(encoding="utf-8")[:40_000], encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- compare.py: begin -->\nold\n<!-- compare.py: end -->\nafter\n", encoding="utf-8")
    done = compare(tmp_path, "--write=page.md")
    assert done.returncode == 0, done.stderr
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text and done.stdout.strip() in text
    runs = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("compare/toy/*/figures.json")}
    assert set(runs) == {"demo-1", "taught-1", "twin-b-1"} and runs["twin-b-1"]["test"]["exact"]
    for run in runs.values():
        assert f"| {run['val']['bits_per_byte']:.3f} | {run['test']['bits_per_byte']:.3f} |" in text
        assert run["run"]["best"]["flops"] > 0 and run["book"]["entropy"] > 0
    flops = {name: run["run"]["points"][-1]["flops"] for name, run in runs.items()}
    assert flops["taught-1"] - flops["demo-1"] == pytest.approx(4 / 3 * flops["demo-1"], rel=0.1)     # other draws than its teacher's
    assert json.loads((tmp_path / "compare/toy/taught-1/config.json").read_text())["teacher"] == "toy/demo-1/best.pt"
    for scheme in ("light", "dark"):
        drawn = ElementTree.parse(tmp_path / f"pictures/curves_{scheme}.svg")
        assert drawn.getroot().tag.endswith("svg")

    trained = {path: path.stat().st_mtime for path in tmp_path.glob("compare/toy/*/*")}
    again = compare(tmp_path, "--write=page.md")            # nothing is done twice
    assert again.stdout == done.stdout and trained == {path: path.stat().st_mtime for path in tmp_path.glob("compare/toy/*/*")}

    wrong = compare(tmp_path, "--rows=demo,twins")
    assert wrong.returncode == 2 and re.match(r"compare.py: rows: there is no 'twins'", wrong.stderr)
