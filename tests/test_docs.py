"""What README.md and GUIDE.md name exists: commands, flags, files, knobs; and a knob that exists does something."""
import ast
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from model import Sampling

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "GUIDE.md"]
SCRIPTS = ("prepare", "train", "sample", "evaluate", "serve")
SAMPLING = {field.name for field in fields(Sampling)}
STAGE = {"name", "data", "mask_rate", "replay", "epochs", "max_steps", "lr_factor"}
MADE = ("data/", "out/", "out_", "curves", "evaluation", "statistics.json", "text.txt", "segments.jsonl", "tokenizer.json",
        "config.json", "log.jsonl", "best", "latest", "samples.jsonl", "curriculum_results.json", "model.safetensors")
YOURS = ("novel.", "yours.", "frankenstein.txt", "tinyshakespeare", "alice", "prompts.txt", "FILE", "BOOK")


def knobs(script):
    """Names assigned at a script's top that are knobs: lower case, and not what was imported."""
    path = ROOT / (script if script.endswith(".py") else f"{script}.py")
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        found |= {t.id for t in targets if isinstance(t, ast.Name) and t.id.islower() and not t.id.startswith("_")}
    return found


def known_flags(script):
    flags = knobs(script) | {"help"} | (knobs("train") if script == "tests/benchmark.py" else set())
    if "sampling" in flags:
        flags |= SAMPLING
    return flags


def commands(text):
    """Every `python SCRIPT.py ...` in code, split as a shell splits it."""
    for block in re.findall(r"```sh\n(.*?)```", text, re.S) + re.findall(r"`(python [^`\n]+)`", text):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.split("  #")[0].strip()
            if line.startswith("python ") and ".py" in line:
                yield shlex.split(line)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_can_be_given(path):
    seen = 0
    for _, script, *arguments in commands(path.read_text(encoding="utf-8")):
        script = script.removeprefix("../")
        assert (ROOT / script).exists(), script
        for argument in arguments:
            if argument.startswith("--"):
                name = re.split(r"[=.\[]", argument[2:])[0]
                assert name in known_flags(script), f"{script} {argument}"
            elif argument.startswith("config/"):
                assert (ROOT / argument).exists(), argument
        seen += 1
    assert seen > 5


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_and_flag_named_exists(path):
    text = path.read_text(encoding="utf-8")
    everywhere = set().union(*(known_flags(script) for script in SCRIPTS)) | STAGE
    for scripts in (ROOT / "tests").glob("*.py"):
        everywhere |= knobs(f"tests/{scripts.name}")
    for name in set(re.findall(r"`--(\w+)", text)) - {"key"}:
        assert name in everywhere, f"--{name}"
    for name in re.findall(r"`((?:\w+/)*\w+\.(?:py|md|html|css|txt|json|jsonl|pt|safetensors))`", text):
        assert name.startswith(MADE + YOURS) or any((ROOT / folder / name).exists() for folder in ("", "tests")), name
    for name in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
        assert (ROOT / name).exists(), name


def test_the_guide_names_every_knob_of_training_and_sampling():
    named = set(re.findall(r"`(\w+)[`=]", (ROOT / "GUIDE.md").read_text(encoding="utf-8")))
    assert not (knobs("train") | SAMPLING | STAGE) - named


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_knob_is_read(script):
    """By its name, or out of the dict of all knobs."""
    nodes = list(ast.walk(ast.parse((ROOT / f"{script}.py").read_text(encoding="utf-8"))))
    read = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    read |= {node.slice.value for node in nodes if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)}
    assert len(knobs(script)) > 5 and not knobs(script) - read
