"""Training as its user runs it: real processes on a real book, tiny models."""
import contextlib
import copy
import fcntl
import json
import multiprocessing
import os
import pty
import random
import re
import resource
import runpy
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import configurator
import model as m
import train

ROOT = Path(__file__).resolve().parent.parent
ENV = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
QUICK = ["config/debug.py", "--tensorboard=False", "--sample_tokens=8", "--eval_masks=32", "--n_embd=16", "--block_size=32", "--log_interval=1"]
STAGES = [f"--stages[{i}].{key}={value}" for i in range(3) for key, value in (("epochs", 100), ("max_steps", 12))]


QUICK_KNOBS = ["--tensorboard=False", "--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=32", "--device=cpu"]


def small(arguments):
    """Does a network of these knobs take milliseconds to make?"""
    return all(len(value) < (3 if name == "--n_layer" else 4) for name, _, value in (argument.partition("=") for argument in arguments)
               if name in ("--n_layer", "--n_embd", "--block_size", "--n_head", "--batch_size"))


def script(name, *arguments, cwd, **more):
    arguments = [str(ROOT / a) if a.startswith("config/") else a for a in arguments]
    return subprocess.run([sys.executable, str(ROOT / name), *arguments], cwd=cwd, capture_output=True, text=True, env=ENV, **more)


def refused(done, *words):
    assert done.returncode == 2 and done.stderr.strip().count("\n") == 0 and "Traceback" not in done.stderr, done
    assert all(word in done.stderr for word in words), done.stderr


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book")
    done = script("prepare.py", str(ROOT / "book.txt"), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(prepared, tmp_path):
    shutil.copytree(prepared / "data", tmp_path / "data")
    return tmp_path


def log_of(folder, out="out"):
    return [json.loads(line) for line in (folder / out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("columns", [50, 100])
def test_the_bar_shows_loss_and_bound_whole(folder, columns):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 20, columns, 0, 0))
    program = subprocess.Popen([sys.executable, str(ROOT / "train.py"), str(ROOT / QUICK[0]), *QUICK[1:], "--eval_interval=5"], cwd=folder, stdin=theirs, stderr=theirs,
                               stdout=subprocess.DEVNULL, env={key: value for key, value in ENV.items() if key not in ("COLUMNS", "NO_COLOR")} | {"TERM": "xterm-256color"})
    os.close(theirs)
    received = b""
    with contextlib.suppress(OSError):                               # the other side is gone
        while chunk := os.read(ours, 65536):
            received += chunk
    os.close(ours)
    assert program.wait() == 0
    lines = re.split(r"\x1b\[2K|[\r\n]+", re.sub(r"\x1b\[[?\d;]*[mhlA]", "", received.decode()))
    bars = [line for line in lines if re.search(r"\d/\d+ .*loss", line)]
    losses, bounds = ({f"{line[key]:.3f}" for line in log_of(folder) if key in line} for key in ("loss", "val_bits_per_byte"))
    assert len(bars) > 5 and max(map(len, bars)) <= columns
    assert {re.search(r"loss (\d+\.\d{3}) ", line)[1] for line in bars} <= losses and re.search(r"bound (\d\.\d{3}) ", bars[-1])[1] in bounds
    assert ("━" in bars[-1]) == (columns == 100)


def test_the_whole_path_in_half_a_minute(folder):
    """prepare, train, sample, each with no other flag than the preset: inside 30 seconds on two cores that have nothing else to do."""
    began = time.time()
    assert script("prepare.py", str(ROOT / "book.txt"), cwd=folder).returncode == 0
    done = script("train.py", "config/test_integration.py", cwd=folder)
    assert done.returncode == 0, done.stderr
    sampled = script("sample.py", "--prompt=The lamp", "--max_tokens=12", "--output=samples.json", cwd=folder)
    seconds = time.time() - began
    assert sampled.returncode == 0, sampled.stderr
    print(f"the whole path took {seconds:.0f} s")
    [sample] = json.loads((folder / "samples.json").read_text())
    assert sampled.stdout.strip() == sample["text"].strip() and sample["text"].startswith("The lamp") and len(sample["completion"]) > 0
    assert {"prompt", "text", "completion", "seed", "steps", "tokens", "seconds", "settings"} <= sample.keys()
    out = folder / "out"
    for name in ("latest.pt", "best.pt", "best_stage1.pt", "best_stage2.pt", "best_stage3.pt", "config.json", "log.jsonl", "curriculum_results.json", "samples.jsonl"):
        assert (out / name).stat().st_size > 0, name
    lines = log_of(folder)
    steps = [line for line in lines if "loss" in line]
    assert {"step", "epoch", "stage", "loss", "lr", "mask_rate", "tokens_per_second", "grad_norm", "memory_gb"} <= steps[0].keys()
    bounds = [line["val_bits_per_byte"] for line in lines if "val_bits_per_byte" in line]
    assert bounds[-1] < bounds[0] and m.load_checkpoint(str(out / "best.pt"))["training"]["val_bits_per_byte"] == min(bounds)
    results = json.loads((out / "curriculum_results.json").read_text())
    assert [r["stage"] for r in results] == [1, 2, 3] and [r["steps"] for r in results] == [20, 20, 60] and results[-1]["last_bound"] == bounds[-1]
    for line in lines:                                               # each stage's masks lay in its window when it began
        if line.get("event") == "stage":
            low, high = [(0.75, 0.90), (0.40, 0.60), (0.05, 0.20)][line["stage"] - 1]
            assert low - 1e-6 <= line["mask_rate_low"] <= line["mask_rate_high"] <= high + 1e-6
    for name in ("model.py", "train.py"):
        assert (out / "source" / name).read_text() == (ROOT / name).read_text()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert [e.value for e in events.Scalars("val_bits_per_byte")] == pytest.approx(bounds)


def test_no_held_out_window_is_in_a_training_stream(prepared):
    data = prepared / "data" / "book"
    windows = {}
    for name in ("stage1_train", "stage2_train", "stage3_train", "val", "test"):
        tokens, offsets = np.fromfile(data / f"{name}.bin", "<u2").tolist(), np.fromfile(data / f"{name}.idx", "<i8").tolist()
        windows[name] = {tuple(tokens[i:i + 8]) for a, b in pairwise(offsets) for i in range(a, b - 7)}
    text = windows["stage3_train"]                                   # all of the training text
    for held_out in ("val", "test"):
        assert len(windows[held_out]) > 500
        for stage in ("stage1_train", "stage2_train"):
            assert not (windows[held_out] & windows[stage]) - text


@pytest.mark.parametrize("name", ["stage1_train", "stage2_train", "stage3_train"])
def test_steps_have_equal_tokens_and_the_text_is_cut_anew_each_epoch(prepared, name):
    stream, starts = train.Stream(prepared / "data/book", name), set()
    for epoch in range(20):
        batches = stream.epoch(128, 1024, np.random.default_rng(epoch))
        tokens = [int(np.diff(batch).sum()) for batch in batches]
        assert len(batches) == stream.batches_per_epoch(128, 1024) and max(tokens) - min(tokens) <= 128
        pieces = np.concatenate(batches)
        lengths = np.diff(pieces)[:, 0]
        assert lengths.max() <= 128 and len(np.unique(pieces[:, 0])) == len(pieces)
        if name == "stage3_train":                                   # whole rows: all but a row's worth of the text
            assert (lengths == 128).all() and lengths.sum() > len(stream.tokens) - 128
        else:                                                        # each example, whole
            assert lengths.sum() == len(stream.tokens)
        starts |= {int(start) % 128 for start in pieces[:, 0]}
    if name == "stage3_train":
        assert len(starts) >= 15                                     # of 128 places, in 20 epochs
        ring = stream.rows([(len(stream.tokens) - 3, len(stream.tokens) + 2)])[0].tolist()
        assert ring == [*stream.tokens[-3:].tolist(), *stream.tokens[:2].tolist()]


def train_here(folder, arguments):
    """train.py, in the process at hand: one forked from a server that has imported torch starts in a tenth of the time."""
    os.chdir(folder)
    sys.argv = ["train.py", *arguments]
    sys.stderr = open(os.devnull, "w")
    torch.set_num_threads(1)
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


def test_killed_at_any_moment_and_resumed_it_ends_in_the_same_bits(folder):
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["torch", "torch._dynamo", "model", "rich.progress"])
    stages = [f"--stages[{i}].{key}={value}" for i in range(3) for key, value in (("epochs", 1000), ("max_steps", 120))]
    arguments = [str(ROOT / QUICK[0]), *QUICK[1:], *stages, "--eval_interval=7", "--dropout=0.1", "--ema=0.9"]

    def start(out):
        resume = ["--resume"] if (folder / out / "latest.pt").exists() else []
        process = server.Process(target=train_here, args=(folder, [*arguments, f"--out_dir={out}", *resume]))
        process.start()
        return process
    whole = start("whole")
    whole.join()
    rng, kills, steps, log = random.Random(0), 0, [], folder / "killed/log.jsonl"

    def lines():
        return log.read_text().count("\n") if log.exists() else 0
    while kills < 12:
        process, enough = start("killed"), lines() + rng.randint(-3, 12)
        while process.is_alive() and lines() < enough:               # so that a slow machine gets as far as a quick one
            time.sleep(0.002)
        process.join(rng.uniform(0, 0.2))
        if not process.is_alive():
            break
        process.kill()
        process.join()
        kills, steps = kills + 1, [*steps, lines()]
    last = start("killed")
    last.join()
    print(f"killed {kills} times, with so many lines in the log: {steps}")
    assert whole.exitcode == last.exitcode == 0 and kills >= 10 and len(set(steps)) > 5
    whole, killed = (m.load_checkpoint(str(folder / out / "latest.pt")) for out in ("whole", "killed"))
    for part in ("model", "raw"):
        assert all(torch.equal(tensor, killed[part][name]) for name, tensor in whole[part].items())
    same = [[{k: v for k, v in line.items() if k not in ("tokens_per_second", "memory_gb")} for line in log_of(folder, out)] for out in ("whole", "killed")]
    assert same[0] == same[1]
    assert (folder / "whole/samples.jsonl").read_text() == (folder / "killed/samples.jsonl").read_text()


def test_how_often_one_evaluates_changes_nothing(folder):
    quiet = STAGES + ["--dropout=0.1"]
    for out, interval in (("often", 2), ("seldom", 1000)):
        assert script("train.py", *QUICK, *quiet, f"--eval_interval={interval}", f"--out_dir={out}", cwd=folder).returncode == 0
    a, b = (m.load_checkpoint(str(folder / out / "latest.pt"))["model"] for out in ("often", "seldom"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_two_processes_train_like_one(folder):
    one = script("train.py", *QUICK, *STAGES, "--out_dir=one", cwd=folder)
    two = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(ROOT / "train.py"), str(ROOT / "config/debug.py"), *QUICK[1:], *STAGES,
                          "--out_dir=two"], cwd=folder, env=ENV, capture_output=True, text=True)
    assert one.returncode == 0 and two.returncode == 0, two.stderr
    a, b = (m.load_checkpoint(str(folder / out / "latest.pt"))["model"] for out in ("one", "two"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)


def test_a_compiled_network_has_no_graph_breaks_and_few_graphs(folder, monkeypatch):
    """Over 36 batches of all lengths, with padding and without, evaluations and samples; and it computes the same bits."""
    compile, counters, graphs = torch.compile, torch._dynamo.utils.counters, []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward
    for half in ("attend", "behind"):
        monkeypatch.setattr(m.Block, half, getattr(m.Block, half))      # and is so again afterwards
    monkeypatch.setattr(torch, "compile", lambda call, **how: compile(call, backend=backend, **how))
    monkeypatch.setattr(signal, "signal", lambda *_: None)           # pytest keeps its own
    monkeypatch.chdir(folder)
    counters.clear()
    for out in ("plain", "compiled"):
        monkeypatch.setattr(sys, "argv", ["train.py", str(ROOT / QUICK[0]), *QUICK[1:], *STAGES, "--dropout=0.1", f"--out_dir={out}", *["--compile"] * (out == "compiled")])
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    assert not counters["graph_break"] and 1 <= len(graphs) <= 10, len(graphs)    # with padding, without, a single row; many places, one; each with gradients and without
    a, b = (m.load_checkpoint(f"{out}/latest.pt")["model"] for out in ("plain", "compiled"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_a_resumed_run_goes_on(folder, number):
    arguments = [sys.executable, str(ROOT / "train.py"), str(ROOT / "config/debug.py"), *QUICK[1:], "--stages[0].epochs=10000", "--stages[0].max_steps=0", "--eval_interval=100000"]
    process = subprocess.Popen(arguments, cwd=folder, env=ENV, stderr=subprocess.PIPE, text=True)
    while not (folder / "out/log.jsonl").exists() or sum("loss" in line for line in log_of(folder)) < 3:
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number and "--resume" in errors and "Traceback" not in errors
    saved = m.load_checkpoint(str(folder / "out/latest.pt"))
    assert saved["progress"]["step"] >= 3
    process = subprocess.Popen(arguments + ["--resume"], cwd=folder, env=ENV, stderr=subprocess.PIPE, text=True)
    while sum("loss" in line for line in log_of(folder)) < saved["progress"]["step"] + 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    process.kill()
    process.communicate()


def test_a_loss_that_is_not_finite_stops_the_run(folder):
    done = script("train.py", *QUICK, "--learning_rate=1e30", "--grad_clip=0", cwd=folder)
    assert done.returncode == 2 and "without a finite loss" in done.stderr and "Traceback" not in done.stderr


def test_a_full_disk_ends_in_one_line_and_the_earlier_checkpoint_stands(folder):
    assert script("train.py", *QUICK, cwd=folder).returncode == 0
    before = (folder / "out/latest.pt").read_bytes()
    done = script("train.py", *QUICK, *STAGES, "--n_embd=64", "--out_dir=out2", cwd=folder, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)))
    assert done.returncode == 2 and "could not write" in done.stderr and "Traceback" not in done.stderr
    assert not list((folder / "out2").glob("*.writing")) and (folder / "out/latest.pt").read_bytes() == before


def test_out_of_memory_halves_the_micro_batch_and_not_the_batch(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(signal, "signal", lambda *_: None)          # pytest keeps its own
    real, ends = train.weighted_loss, []

    def small(net, tokens, *rest):
        if tokens.numel() > limit * 32:
            raise torch.OutOfMemoryError
        return real(net, tokens, *rest)
    monkeypatch.setattr(train, "weighted_loss", small)
    for limit in (16, 4):
        monkeypatch.setattr(sys, "argv", ["train.py", str(ROOT / QUICK[0]), *QUICK[1:], f"--out_dir=limit{limit}"])
        train.main()
        ends.append(m.load_checkpoint(f"limit{limit}/latest.pt")["model"])
    assert capsys.readouterr().err.count("micro-batches of 4 from here on") == 1
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-3, atol=1e-4)
    limit = 0
    with pytest.raises(SystemExit) as stopped:
        train.main()
    assert stopped.value.code == 2 and "memory_efficient" in capsys.readouterr().err


def test_a_gpu_without_a_number_is_the_first(monkeypatch):
    """--device=cuda: torch wants a number where it is made the process's own."""
    chosen = []
    monkeypatch.setattr(train, "pick_device", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(train, "dtype", "float32")
    monkeypatch.setattr(torch.cuda, "set_device", lambda d: chosen.append(torch.cuda._utils._get_device_index(d)))
    assert train.open_device()[0].type == "cuda" and chosen == [0]


def test_a_resumed_run_knows_its_book_its_precision_and_what_was_given(folder):
    """Whatever is prepared meanwhile; and what the command line gives wins, also where it gives a default."""
    given = ["--dtype=bfloat16", "--patience=7"]
    assert script("train.py", *QUICK, *given, cwd=folder).returncode == 0
    (folder / "other.txt").write_text("One thing. Another thing. A third thing came by.\n\n" * 60, encoding="utf-8")
    assert script("prepare.py", "other.txt", cwd=folder).returncode == 0
    for more in ([], ["--dataset=book"], ["--patience=0"]):
        done = script("train.py", "--resume", *more, cwd=folder)
        assert done.returncode == 0 and ", bfloat16" in done.stderr and " book, " in done.stderr, done.stderr
        knobs = json.loads((folder / "out/config.json").read_text())
        assert knobs["patience"] == (0 if "--patience=0" in more else 7) and knobs["dtype"] == "bfloat16"
    refused(script("train.py", "--resume", "--dataset=other", cwd=folder), "dataset='other'", "dataset='book'")
    refused(script("train.py", "--resume", "--stages[1].replay=0.1", cwd=folder), "stages[1].replay=0.1", "replay=0.5")


def test_a_finished_run_can_be_given_more_steps_and_logs_each_stage_once(folder):
    assert script("train.py", *QUICK, *STAGES, cwd=folder).returncode == 0
    before = log_of(folder)
    done = script("train.py", "--resume", cwd=folder)
    assert done.returncode == 0 and "this run is complete" in done.stderr and log_of(folder) == before
    done = script("train.py", "--resume", "--stages[2].max_steps=20", cwd=folder)
    assert "complete" not in done.stderr
    lines, results = log_of(folder), json.loads((folder / "out/curriculum_results.json").read_text())
    assert done.returncode == 0 and [r["steps"] for r in results] == [12, 12, 20], done.stderr
    assert [line["stage"] for line in lines if line.get("event") == "stage"] == [1, 2, 3]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, 45)) and lines[:len(before) - 2] == before[:-2]


def test_what_is_to_go_counts_the_evaluations(folder):
    done = script("train.py", *QUICK, "--eval_interval=8", "--eval_masks=3000", "--stages[0].max_steps=1", "--stages[1].max_steps=1", cwd=folder)
    told = int(re.search(r"about (\d+) s to go", done.stderr)[1])
    steps = sum(stage["seconds"] for stage in json.loads((folder / "out/curriculum_results.json").read_text()))
    took = float(re.search(r"done in (\d+) s", done.stderr)[1])
    assert took / 3 < told < 3 * took and 5 * steps < told, (told, steps, took)


def test_held_out_text_has_no_part_in_the_first_weights(folder):
    """Nor has it in any step: only the bound knows it."""
    assert script("train.py", *QUICK, "--out_dir=a", cwd=folder).returncode == 0
    for name in ("val.bin", "val.idx"):
        (folder / "data/book" / name).write_bytes((folder / "data/book" / name.replace("val", "test")).read_bytes())
    assert script("train.py", *QUICK, "--out_dir=b", cwd=folder).returncode == 0
    a, b = (m.load_checkpoint(str(folder / out / "latest.pt")) for out in "ab")
    assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])
    assert a["training"]["val_bits_per_byte"] != b["training"]["val_bits_per_byte"]


def test_a_run_is_taught_by_an_earlier_one_and_keeps_its_teacher(folder):
    """The folder may be the teacher's own; a resumed run finds the teacher where the earlier run is gone."""
    quick = [*QUICK, *STAGES, "--learning_rate=0.01"]
    assert script("train.py", *quick, cwd=folder).returncode == 0
    teacher, alone = (folder / "out/best.pt").read_bytes(), [line["val_bits_per_byte"] for line in log_of(folder) if "val_bits_per_byte" in line]
    done = script("train.py", *quick, "--seed=2", "--teacher=out/best.pt", cwd=folder)
    assert done.returncode == 0 and (folder / "out/previous1/best.pt").read_bytes() == teacher, done.stderr
    taught = [line["val_bits_per_byte"] for line in log_of(folder) if "val_bits_per_byte" in line]
    assert taught[1] < alone[1] - 0.01               # it learns sooner
    shutil.rmtree(folder / "out/previous1")
    done = script("train.py", "--resume", "--stages[2].max_steps=14", cwd=folder)
    assert done.returncode == 0 and m.load_checkpoint(str(folder / "out/latest.pt"))["training"]["step"] == 38, done.stderr


def test_who_cannot_teach(folder):
    assert script("train.py", *QUICK, "--out_dir=causal", "--causal=True", cwd=folder).returncode == 0
    refused(script("train.py", *QUICK, "--teacher=causal/best.pt", cwd=folder), "--teacher", "causal")
    with open(folder / "data/book/val.bin", "r+b") as file:
        file.write(b"\0\0\1\0")
    refused(script("train.py", *QUICK, "--teacher=causal/best.pt", "--causal=True", cwd=folder), "--teacher", "other text")


def test_resuming_something_else_is_refused_by_name(folder):
    assert script("train.py", *QUICK, cwd=folder).returncode == 0
    refused(script("train.py", *QUICK, "--resume", "--n_layer=3", cwd=folder), "n_layer=3", "n_layer=2")
    refused(script("train.py", "--resume", "--out_dir=nothing", cwd=folder), "nothing/latest.pt")
    (folder / "data/book/val.bin").write_bytes((folder / "data/book/test.bin").read_bytes())
    (folder / "data/book/val.idx").write_bytes((folder / "data/book/test.idx").read_bytes())
    refused(script("train.py", "--resume", cwd=folder), "data/book has changed", "val")
    (folder / "out/latest.pt").write_bytes((folder / "out/latest.pt").read_bytes()[:-9000])
    refused(script("train.py", "--resume", cwd=folder), "latest.pt", "best.pt")


def test_a_broken_tensorboard_is_left_out(folder):
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard/__init__.py").write_text("raise TypeError('made by another protobuf')")
    done = subprocess.run([sys.executable, str(ROOT / "train.py"), str(ROOT / QUICK[0]), *QUICK[2:]], cwd=folder, capture_output=True, text=True,
                          env=ENV | {"PYTHONPATH": f"{folder}:{ROOT}"})
    assert done.returncode == 0 and "no TensorBoard" in done.stderr and "another protobuf" in done.stderr, done.stderr


def test_a_second_run_into_one_folder_is_refused(folder):
    first = subprocess.Popen([sys.executable, str(ROOT / "train.py"), str(ROOT / QUICK[0]), *QUICK[1:], "--stages.2.max_steps=100000", "--stages.2.epochs=100000"],
                             cwd=folder, stderr=subprocess.PIPE, text=True, env=ENV)
    for line in first.stderr:
        if line.startswith("stage 3"):
            break
    refused(script("train.py", *QUICK, cwd=folder), "out/", "another run")
    first.kill()
    first.wait()
    assert len([x for x in log_of(folder) if x.get("event") == "stage"]) == 3               # untouched,
    assert script("train.py", *QUICK, cwd=folder).returncode == 0                           # and free again


def test_rows_longer_than_any_example_are_told_of(folder):
    assert "no example of data/" in script("train.py", *QUICK, "--block_size=640", "--dry_run", cwd=folder).stderr


def test_an_earlier_run_is_moved_aside(folder):
    for _ in range(3):
        assert script("train.py", *QUICK, cwd=folder).returncode == 0
        drawn = ElementTree.parse(folder / "out/curves.svg")
        assert drawn.getroot().tag.endswith("svg")
    assert (folder / "out/previous2/best.pt").exists() and (folder / "out/previous1/best.pt").exists() and len([x for x in log_of(folder) if x.get("event") == "stage"]) == 3


@pytest.mark.parametrize("arguments, words", [
    (["--lerning_rate=1"], ["learning_rate"]), (["--dataset=nobook"], ["nobook", "never prepared", "book"]), (["--n_head=3"], ["n_embd", "n_head"]),
    (["--stages[0].mask_rate=[0.5, 0.4]"], ["mask_rate"]), (["--stages[0].data=stage9"], ["stage1"]), (["--device=quantum"], ["quantum"]), (["--dtype=float8"], ["float8"]),
    (["--batch_size=0"], ["batch_size"]), (["--resume"], ["out/latest.pt"]), (["--wandb_project=x"], ["wandb"]), (["--teacher=nowhere.pt"], ["--teacher", "nowhere.pt"]),
    (["--out_dir=data/latest"], ["data/latest", "written"]), (["--out_dir=/proc/nowhere"], ["/proc/nowhere", "written"])])
def test_user_errors(folder, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["train.py", str(ROOT / QUICK[0]), *QUICK[1:], *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1 and all(word in said for word in words), said


OUTSIDE = {"seed": (-1,), "n_layer": (0,), "n_head": (0,), "n_embd": (0, 7), "block_size": (0, 1), "dropout": (-0.1, 1.0), "rope_base": (0.5,),
           "conv": (-1,), "embedding_init": ("word2vec",), "stage_patience": (-1,), "patience": (-1,), "batch_size": (0, "all"), "grad_accum": (0,),
           "learning_rate": (0.0, -1.0, "nan"), "min_lr": (-0.1, 9.0), "warmup_steps": (-1,), "beta1": (-0.1, 1.0), "beta2": (-0.1, 2.0),
           "weight_decay": (-0.1,), "embedding_weight_decay": (-1.0,), "grad_clip": (-1.0,), "label_smoothing": (-0.1, 2.0), "ema": (-0.1, 1.0, 2.0),
           "eval_interval": (0,), "eval_masks": (0,), "sample_tokens": (-1,), "log_interval": (0,), "dtype": ("float8",), "stages": ([],),
           "stages[0].replay": (1.5,), "stages[1].epochs": (0.0,), "stages[2].max_steps": (-1,), "stages[0].lr_factor": (-1.0,)}


OUTSIDE = {"train.py": OUTSIDE,
           "evaluate.py": {"split": ("train",), "seed": (-1, 2**70), "points": (-10, 15), "n_prompts": (0,), "n_seeds": (0,), "max_tokens": (7,), "steps": (0,)},
           "serve.py": {"port": (-1, 65536), "longest": (1,)},
           "sample.py": {"max_tokens": (0,), "num_samples": (0,), "seed": (-1, 2**53), "gap_lengths": ([], [0], [1.5], ["a"]), "speed": (-0.1, "nan"), "temperature": (-0.1,),
                         "top_p": (0.0,), "remask": (1.0,), "order": ("best",)}}


@pytest.mark.parametrize("script, knob", [(script, knob) for script in OUTSIDE for knob in OUTSIDE[script]])
def test_a_knob_just_outside_its_range_is_refused_by_name(folder, monkeypatch, capsys, script, knob):
    monkeypatch.chdir(folder)
    for value in OUTSIDE[script][knob]:
        monkeypatch.setattr(sys, "argv", [script, f"--{knob}={value}", *["--dry_run"] * (script == "train.py")])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and said.count("\n") == 1 and knob.split("[")[0] in said, (value, said)


@pytest.mark.parametrize("script", OUTSIDE)
def test_every_number_has_a_range(script):
    from configurator import documented
    knobs = runpy.run_path(str(ROOT / script))
    for name, comment in documented(str(ROOT / script)):
        if type(knobs[name]) in (int, float, list) and name != "stages":
            assert comment.endswith(("]", ")")) and name in OUTSIDE[script], name


KNOBS = list(configurator.documented(train.__file__))
NONSENSE = ["", "None", "[]", "{}", "(1,)", "x", "True", "nan", "inf", "-inf", "1e999", "-1", "0", "0.5", "1", "2", "9" * 400, "9" * 4999, "1j", "[1, 'a']", "{'epochs': 1}", "[" * 500]


def values_of(name, comment):
    """Arguments for a knob: within its range, at its ends, just beyond them, and of other types."""
    *_, limits = ["", *re.findall(r"[\[({][^\[({]*[\])}]$", comment)]
    ends = [end for end in limits[1:-1].split(", ") if end not in ("", "...")]
    numbers = [] if limits.startswith("{") else [float(end) for end in ends]
    near = [f"{x + d:{form}}" for x in numbers for d in (-1, -0.01, 0.01, 1, 7) for form in (".0f", "g")]
    return st.sampled_from([f"--{name}={value}" for value in (ends + near) * 3 + NONSENSE] + [f"--{name}"])


STAGE = st.builds("--stages{}{}={}".format, st.sampled_from(["", "[0]", "[1]", ".2", "[3]", "[-1]"]), st.sampled_from(["", *(f".{key}" for key in train.stages[0]), ".x", ".mask_rate[0]"]),
                  st.sampled_from([*NONSENSE, "stage3", "[0.2, 0.4]", "[1, 0]", "[0, 1]", "[]", "[{'epochs': 3.0}]", "[{'name': 'a'}, {'data': 'stage2'}]", "[{}]"]))
FREE = {"out_dir": ["a", "b/c"], "dataset": ["", "book", "none", "..", "a\0b"], "device": ["cpu", "auto", "cuda:99", "a b", "cpu:-1", "meta"], "wandb_project": [""]}


def test_a_thousand_random_settings_are_accepted_or_refused_in_one_line(folder, monkeypatch, capsys):
    """Never a traceback; and of those accepted, one in fifteen takes a step in each stage."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(signal, "signal", lambda *_: None)           # pytest keeps its own
    monkeypatch.setattr(configurator, "documented", lambda path: KNOBS)
    start, ends = {name: getattr(train, name) for name, _ in KNOBS}, {"accepted": 0, "refused": 0, "run": 0}
    one = st.one_of(STAGE, *(st.sampled_from([f"--{name}={value}" for value in FREE[name]]) if name in FREE else values_of(name, comment)
                             for name, comment in KNOBS if name not in ("resume", "dry_run", "stages", "compile")))

    @settings(max_examples=1000, deadline=None, derandomize=True, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.lists(one, max_size=4))
    def try_them(arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", *QUICK_KNOBS, *arguments])
        vars(train).update(copy.deepcopy(start))
        capsys.readouterr()
        try:
            with monkeypatch.context() as patch:
                if not small(arguments):                             # as far as the network
                    patch.setattr(train, "DiffusionModel", lambda config: configurator.fail("large"))
                run = train.open_run()
            ends["accepted"] += 1
            if ends["accepted"] % 15 == 0:
                train.eval_masks, train.sample_tokens, run.plan = 8, min(train.sample_tokens, 4), [part | {"steps": 1} for part in run.plan]
                train.start(run)
                train.train(run)
                train.close_run(run, "done")
                ends["run"] += 1
        except SystemExit as end:
            said = capsys.readouterr().err.strip().splitlines()
            ends["refused"] += 1
            assert end.code == 2 and said[-1].startswith(f"{Path(sys.argv[0]).name}: ") and not any(line.startswith("Traceback") for line in said), said

    try:
        try_them()
    finally:
        vars(train).update(start)
    print(ends)
    assert ends["accepted"] > 150 and ends["refused"] > 150 and ends["run"] >= 8


def test_nothing_prepared_and_nothing_trained(tmp_path):
    refused(script("train.py", cwd=tmp_path), "prepare.py")
    refused(script("sample.py", cwd=tmp_path), "out/best.pt")


def test_dry_run_prints_the_plan_and_writes_nothing(folder):
    done = script("train.py", *QUICK, "--dry_run", cwd=folder)
    assert done.returncode == 0 and not (folder / "out").exists(), done.stderr
    assert "no example of data/" not in done.stderr
    for word in ("Parameters", "8 GB", "FLOPs", "for evaluations", "C_crit", "R*", "Extrapolation"):
        assert word in done.stdout


def test_dry_run_tells_the_sizes_at_once_and_slow_steps_are_measured_once(folder, monkeypatch, capsys):
    said = []
    monkeypatch.chdir(folder)
    monkeypatch.setattr(signal, "signal", lambda *_: None)          # pytest keeps its own
    monkeypatch.setattr(train, "dry_run", False)                     # and is so again afterwards
    monkeypatch.setattr(train, "step", lambda run: said.append(capsys.readouterr().out))
    monkeypatch.setattr(time, "perf_counter", iter(range(0, 10**6, 36000)).__next__)
    monkeypatch.setattr(sys, "argv", ["train.py", str(ROOT / QUICK[0]), *QUICK[1:], "--stages[0].max_steps=2", "--stages[0].epochs=100", "--sample_tokens=0", "--dry_run"])
    train.main()
    assert "Parameters: " in said[0] and "Memory" in said[0] and len(said) == 3
    assert "20 h 0 min" in capsys.readouterr().out


@pytest.mark.parametrize("more", [["--causal=True"], ["--ema=0.9", "--carry_over"], ["--label_smoothing=0.1", "--checkpointing=True"], ["--dtype=bfloat16"], ["--batch_size=auto", "--grad_accum=1"]])
def test_variants_lower_the_bound(folder, more):
    done = script("train.py", *QUICK, "--learning_rate=0.01", *more, cwd=folder)
    assert done.returncode == 0, done.stderr
    bounds = [line["val_bits_per_byte"] for line in log_of(folder) if "val_bits_per_byte" in line]
    assert bounds[-1] < bounds[0] < 4


def test_stages_end_by_validation_when_patience_is_set(folder):
    done = script("train.py", *QUICK, *STAGES, "--learning_rate=1e-12", "--eval_interval=2", "--stage_patience=2", cwd=folder)
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "out/curriculum_results.json").read_text())
    assert len(results) == 3 and all(r["steps"] < 12 and "without improvement" in r["ended"] for r in results)
    done = script("train.py", *QUICK, *STAGES, "--learning_rate=1e-12", "--eval_interval=2", "--patience=2", cwd=folder)
    results = (folder / "out/curriculum_results.json").read_text()
    assert len(json.loads(results)) == 1 and "stopped early" in results
    resumed = script("train.py", "--resume", cwd=folder)
    assert "this run is complete" in resumed.stderr and (folder / "out/curriculum_results.json").read_text() == results
    assert script("train.py", "--resume", "--patience=3", cwd=folder).returncode == 0
    more, = json.loads((folder / "out/curriculum_results.json").read_text())
    assert more["stage"] == 1 and more["steps"] == json.loads(results)[0]["steps"] + 2
