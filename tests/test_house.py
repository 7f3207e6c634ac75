"""What a reader has to take in: no line too wide, no function too long, the loop and the sampler on one screen."""
import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(ROOT.glob("*.py"))
WIDTH, LENGTH = 110, 60


def functions(path):
    return {node.name: node.end_lineno - node.lineno + 1 for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


@pytest.mark.parametrize("path", [*SCRIPTS, *sorted(ROOT.glob("config/*.py"))], ids=lambda path: path.name)
def test_no_line_is_too_wide_and_no_function_too_long(path):
    wide = [n for n, line in enumerate(path.read_text().splitlines(), 1) if len(line) > WIDTH]
    long = {name: lines for name, lines in functions(path).items() if lines > LENGTH}
    assert not wide and not long


def test_ruff_finds_nothing():
    found = subprocess.run([sys.executable, "-m", "ruff", "check", ROOT], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_the_step_the_loop_and_the_samplers_fit_a_screen():
    train, model = functions(ROOT / "train.py"), functions(ROOT / "model.py")
    assert train["train"] <= 60 and train["step"] <= 40 and train["main"] <= 20
    assert model["plain_denoise"] <= 30 and model["denoise"] <= 40 and model["draw_masks"] <= 25


def test_the_page_is_what_the_map_at_its_head_says():
    page = (ROOT / "serve.html").read_text(encoding="utf-8")
    style, body, script = (" ".join(part.split()) for part in re.search(r"Style: (.*?)\.\nBody: (.*?)\.\nScript: (.*?)\. -->", page, re.S).groups())
    assert style.split("; ") == re.findall(r"^/\* ---- ([\w ]*\w)", page, re.M) and script.split("; ") == re.findall(r"^// ---- ([\w ]*\w)", page, re.M)
    places = [page.index(f'id="{name}"') for name in re.findall(r"#(\w+)", body)]
    assert len(places) == 10 and places == sorted(places)
    begun = re.findall(r"^(?:async )?function .*?^}", page, re.M | re.S)
    assert len(begun) > 70 and max(function.count("\n") + 1 for function in begun) <= LENGTH


def test_the_readme_names_what_the_page_can_be_started_with():
    assert all(f"`--{knob}=" in (ROOT / "README.md").read_text(encoding="utf-8") for knob in ("origin", "race"))


def test_arrows_run_one_way():
    """configurator and model import nothing of ours; a script imports only from the floors below its own."""
    floors = {"configurator": 0, "model": 0, "reading": 1, "prepare": 2, "train": 2, "sample": 3, "evaluate": 4, "serve": 4}
    for path in SCRIPTS:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert name not in floors or floors[name] < floors[path.stem], (path.name, name)
                assert name != "reading" or path.stem == "prepare", f"{path.name}: read books through prepare.py"
