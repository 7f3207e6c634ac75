"""Knobs from config files and the command line, as a user meets them: a real script in a real process."""
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = '''"""A script."""
import json
import sys
from configurator import configure
from shape import Sampling
name = "x"               # a text
# how many
count = 3
rate = 0.5
flag = False
top_k: int | None = 20
size: int | str = 8
share = 0.1              # a part [0, 1)
kind = "one"             # of two {one, two}
wide = 1.0               # a width [0, ...)
sizes = [1, 2]           # of things [1, ...)
sampling = Sampling()    # a dataclass: its fields are knobs
stages = [{"epochs": 75.0, "window": [0.1, 0.2], "data": "a"}, {"epochs": 1.0, "window": [0.3, 0.4], "data": "b"}]
book = ""
def main():
    print(json.dumps(configure(globals(), positional="book")))
main()
'''
SHAPE = '''from dataclasses import dataclass, field
@dataclass
class Sampling:
    steps: int = field(default=25, metadata={"meaning": "how long"})
    order: str = field(default="margin", metadata={"meaning": "which first"})
    threshold: float | None = field(default=None, metadata={"meaning": "how sure"})
    temperature: float = field(default=0.8, metadata={"meaning": "how wild"})
    def __post_init__(self):
        if self.steps < 1 or self.order not in ("margin", "random"):
            raise ValueError(f"steps from 1, order margin or random, not {self.steps} and {self.order}")
'''


@pytest.fixture
def run(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "shape.py").write_text(SHAPE)

    def run(*arguments, **files):
        for stem, text in files.items():
            (tmp_path / f"{stem}.py").write_text(text)
        done = subprocess.run([sys.executable, "script.py", *arguments], cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "PATH": ""})
        return json.loads(done.stdout) if done.returncode == 0 and done.stdout.startswith("{") else done
    return run


def refused(done, *words):
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done
    assert all(word in done.stderr for word in words), done.stderr


def test_values(run):
    got = run("a book.txt", "--name=a=b", "--count=4", "--rate=1", "--flag", "--top_k=None", "--size=auto", "--stages[0].epochs=100", "--stages.1.window[0]=0.35", "--stages[1].data=7")
    assert got.pop("share") == 0.1 and got.pop("wide") == 1.0 and got.pop("sizes") == [1, 2] and got.pop("kind") == "one" and got.pop("sampling")["order"] == "margin"
    assert got == {"name": "a=b", "count": 4, "rate": 1.0, "flag": True, "top_k": None, "size": "auto", "book": "a book.txt",
                   "stages": [{"epochs": 100.0, "window": [0.1, 0.2], "data": "a"}, {"epochs": 1.0, "window": [0.35, 0.4], "data": "7"}]}


def test_fields_of_a_dataclass_are_knobs_by_either_name_and_in_files(run):
    got = run("one.py", "--steps=9", "--sampling.order=random", "--threshold=0.5", one="temperature = 1\ntop_k = 3")
    assert got["top_k"] == 3                                        # a knob of its own name goes before a field
    assert {k: got["sampling"][k] for k in ("steps", "order", "threshold", "temperature")} == {
        "steps": 9, "order": "random", "threshold": 0.5, "temperature": 1.0}
    assert run("--sampling={'threshold': 0.5}")["sampling"] | {"threshold": None} == run()["sampling"]


def test_a_saved_configuration_is_a_config_file(run, tmp_path):
    whole = run("--count=7", "--stages[0].epochs=4", "--share=0.5", "--steps=3")
    (tmp_path / "config.json").write_text(json.dumps(whole))
    assert run("config.json") == whole and run("config.json", "--count=8") == whole | {"count": 8}


def test_files_compose_in_order_and_arguments_win(run):
    got = run("one.py", "two.py", "--rate=.25", one="import math\ncount = 10\n_half = count // 2\nrate = 1", two="count = count + 1\nstages[0]['epochs'] = 2")
    assert got["count"] == 11 and got["rate"] == 0.25 and got["stages"][0]["epochs"] == 2.0


def test_a_stage_may_leave_keys_out(run):
    got = run("one.py", one="stages = [{'epochs': 3, 'window': (0.0, 1.0)}]")
    assert got["stages"] == [{"epochs": 3.0, "window": [0.0, 1.0], "data": "a"}]


@pytest.mark.parametrize("arguments, words", [
    (["--cuont=3"], ["cuont", "did you mean 'count'"]),
    (["--stages[0].epoch=3"], ["epoch", "did you mean 'epochs'"]),
    (["--stages[5].epochs=3"], ["5"]),
    (["--count=three"], ["count", "int", "'three'"]),
    (["--count=1.5"], ["int", "1.5"]),
    (["--flag=1"], ["bool"]),
    (["--count"], ["--count=VALUE"]),
    (["--share=1"], ["share", "[0, 1)", "a part"]),
    (["--share=-0.1"], ["share", "[0, 1)"]),
    (["--share=nan"], ["share", "nan"]),
    (["--share=" + "9" * 400], ["share", "[0, 1)", "inf"]),
    (["--wide=1e999"], ["wide", "[0, ...)"]),
    (["--sizes=[1, 0]"], ["sizes", "[1, ...)"]),
    (["--sizes=[]"], ["sizes"]),
    (["--sizes=[1, 'a']"], ["sizes[1]", "int"]),
    (["--kind=other"], ["kind", "{one, two}", "'other'"]),
    (["--steps=0"], ["steps", "0"]),
    (["--order=best"], ["order", "margin"]),
    (["--top_k=x"], ["int or None"]),
    (["--stages[0].window=3"], ["list"]),
    (["missing.py"], ["missing.py"]),
    (["bad.py"], ["bad.py", "line 2", "ZeroDivisionError"]),
    (["typo.py"], ["typo.py", "'cuont'", "did you mean 'count'"]),
    (["syntax.py"], ["syntax.py", "line 1", "SyntaxError"]),
    (["stage.py"], ["unknown key 'epoks'", "epochs"]),
])
def test_errors_are_one_line_and_status_2(run, arguments, words):
    refused(run(*arguments, bad="count = 1\nrate = 1 / 0", typo="cuont = 1", syntax="count = = 2", stage="stages = [{'epoks': 1}]"), *words)


def test_help_prints_every_knob_its_value_and_its_comment(run):
    text = run("--count=9", "--help").stdout
    assert "A script." in text and "--name='x'\n        a text" in text and "--count=9\n        how many" in text and "--book=''" in text


SCRIPTS = sorted(path.name for path in ROOT.glob("*.py") if "configure(globals()" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_reader_who_stops_early_is_no_error(script):
    program = subprocess.Popen([sys.executable, ROOT / script, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    program.stdout.close()
    assert program.stderr.read() == b"" and program.wait() == 0


@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "serve.py"])
def test_windows_python_has_no_resource_module(script, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert end.value.code == 0 and "--device=" in capsys.readouterr().out
    import torch

    import model
    assert model.peak_memory_gb(torch.device("cpu")) is None


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_explains_every_knob(script):
    done = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    knobs = [i for i, line in enumerate(lines) if line.startswith("  --")]
    assert done.returncode == 0 and len(knobs) > 5
    assert all(i + 1 < len(lines) and lines[i + 1].startswith("        ") for i in knobs), "a knob has no comment"


def test_a_script_that_takes_no_file_says_so(run):
    refused(subprocess.run([sys.executable, ROOT / "train.py", "book.txt"], capture_output=True, text=True), "book.txt", "--key=value")
    refused(run("a book.txt", "another.txt"), "another.txt", "quotes")
