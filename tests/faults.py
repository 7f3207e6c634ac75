"""Kills, full disks, nonsense and ten thousand generations: what must never cost a user a result or end in a traceback.

    python tests/faults.py                              # everything, a line per check; status 1 if one failed
    python tests/faults.py --only=kills_train,messages

A check takes a folder to work in and how often to try, and returns what it did. test_faults.py runs them at a tenth of the size and less.
"""
import contextlib
import copy
import io
import json
import multiprocessing
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
ENV = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

PREPARE = ["tale.txt", "--heldout_blocks=1", "--test_share=0.1"]
TRAIN = ["--tensorboard=False", "--sample_tokens=8", "--eval_masks=32", "--n_layer=2", "--n_head=2", "--n_embd=16", "--block_size=32", "--batch_size=16", "--grad_accum=1",
         "--log_interval=1", "--eval_interval=7", "--dropout=0.1", "--ema=0.9", *(f"--stages[{i}].{key}={value}" for i in range(3) for key, value in (("epochs", 1000), ("max_steps", 100)))]
SAMPLE = ["--batch=prompts.txt", "--output=texts.json", "--num_samples=2", "--max_tokens=40"]


class Skipped(Exception):
    """A check that this machine does not allow."""


def book(size=20000):
    return (ROOT / "book.txt").read_text(encoding="utf-8")[:size]


def world(folder, trained=True):
    """Make a folder with a short book prepared and, if trained, a tiny model that has learnt nothing in out/; once, for all checks beside each other."""
    made = folder.parent / "prepared"
    if not made.exists():
        make_world(made)
    shutil.copytree(made, folder, dirs_exist_ok=True)
    if not trained:
        shutil.rmtree(folder / "out")


def make_world(folder):
    import torch

    import model as m
    folder.mkdir(parents=True)
    (folder / "tale.txt").write_text(book(), encoding="utf-8")
    (folder / "prompts.txt").write_text("The keeper\nlit ____(2) and\n\nThe lamp was ____ and cold\n“Why?”\n" * 2, encoding="utf-8")
    Program(folder, "prepare.py", *PREPARE).whole()
    tokenizer = json.loads((folder / "data/tale/tokenizer.json").read_text(encoding="utf-8"))
    torch.manual_seed(1)
    net = m.DiffusionModel(m.Config(tokenizer["vocab_size"], 32, 1, 2, 16))
    (folder / "out").mkdir(exist_ok=True)
    torch.save(m.checkpoint_of(net, tokenizer, training={"dataset": "tale", "step": 7}), folder / "out/best.pt")


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}


# ---- programs that end before their time

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "model", "prepare", "sample", "rich.progress", "rich.console", "sklearn.cluster", "sklearn.decomposition", "sklearn.feature_extraction.text",
                               "tiktoken", "tokenizers", "nltk", "textblob.en.taggers", "textstat", "chardet", "regex", "threadpoolctl"])


def perform(folder, name, arguments, errors, changed, last):
    """A script in the process at hand, which kills itself before its `last`-th change to the disk, or the first to a path like `last`; `changed` counts them."""
    import torch
    os.chdir(folder)
    sys.argv = [name, *arguments]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    torch.set_num_threads(1)

    def hook(event, args):
        if (event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
                or event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR) and not str(args[0]).startswith("/dev/")):
            changed.value += 1
            if changed.value == last or isinstance(last, str) and last in f"{args}":
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    runpy.run_path(str(ROOT / name), run_name="__main__")


class Program:
    """A script with its arguments, to be run in `folder`, often: each time a process, forked where the libraries have been loaded."""

    def __init__(self, folder, name, *arguments):
        self.folder, self.name, self.arguments = folder, name, arguments
        self.errors = Path(tempfile.gettempdir()) / f"faults-{os.getpid()}.stderr"

    def start(self, last=0):
        self.changed = SERVER.Value("i", 0)
        process = SERVER.Process(target=perform, args=(self.folder, self.name, self.arguments, self.errors, self.changed, last))
        process.start()
        return process

    def whole(self):
        """Run it to its end; its seconds and changes to the disk are known then."""
        begun, process = time.perf_counter(), self.start()
        process.join()
        assert process.exitcode == 0, f"{self.name} {self.arguments} ended with {process.exitcode}: {self.errors.read_text(errors='replace')}"
        self.seconds, self.changes = time.perf_counter() - begun, self.changed.value
        return self

    def killed(self, rng):
        """Kill -9 at a random moment: at any time, or, every other time, just before a random one of its changes to the disk. Whether it was in time."""
        at_change = rng.random() < 0.5
        process = self.start(rng.randint(1, self.changes) if at_change else 0)
        process.join(None if at_change else rng.uniform(0.0, self.seconds))
        process.kill()
        process.join()
        return process.exitcode == -signal.SIGKILL


def kills_prepare(folder, kills):
    """Earlier data stays, or the new is whole; the same command then does what it would have done."""
    world(folder, trained=False)
    rng, commands, whole = random.Random(1), [], []
    for seed in (1, 2):
        commands.append(Program(folder, "prepare.py", *PREPARE, f"--seed={seed}").whole())
        whole.append(contents(folder / "data/tale"))
    assert whole[0] != whole[1]
    done, new = 0, 0
    while done < kills:
        i = rng.randrange(2)
        before = contents(folder / "data/tale")
        if not commands[i].killed(rng):
            continue
        done += 1
        found = [path for path in (folder / "data/tale", folder / "data/.tale.old") if path.exists()]
        assert found and contents(found[0]) in (before, whole[i]), "neither the earlier data nor the new is whole"
        assert (folder / "data/latest").read_text() == "tale\n"
        new += contents(found[0]) == whole[i] != before
        commands[i].whole()
        assert contents(folder / "data/tale") == whole[i] and {p.name for p in (folder / "data").iterdir()} == {"latest", "tale"}
    return f"{done} kills, {new} of them after the data was there; the same command then gave the same bytes"


TIMES = ("tokens_per_second", "memory_gb", "seconds")


def lines_of(path):
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in path.read_text(encoding="utf-8").splitlines()]


def learnt(out):
    """All that a run left behind, without times and places."""
    import model as m
    saved = {path.name: m.load_checkpoint(str(path)) for path in sorted(out.glob("*.pt"))}
    weights = {name: {k: v.numpy().tobytes() for part in ("model", "raw") for k, v in one.get(part, {}).items()} for name, one in saved.items()}
    results = [{k: v for k, v in result.items() if k not in TIMES} for result in json.loads((out / "curriculum_results.json").read_text())]
    return weights, lines_of(out / "log.jsonl"), lines_of(out / "samples.jsonl"), results, (out / "curves.svg").exists()


def kills_train(folder, kills):
    """Whatever was killed, at its first start or after --resume, and with an earlier run in the same folder: it ends in the same bits."""
    import model as m
    world(folder, trained=False)
    rng, out, done, chains = random.Random(2), folder / "out", 0, 0
    fresh, again = (Program(folder, "train.py", *TRAIN, *more) for more in ([], ["--resume"]))
    reference = Program(folder, "train.py", *TRAIN, "--out_dir=whole").whole()
    whole = learnt(folder / "whole")
    while done < kills:
        while True:                                     # until a run has come to its end
            moved = len(list(out.glob("previous*/latest.pt")))
            command = again if moved == chains and (out / "latest.pt").exists() else fresh
            command.seconds, command.changes = reference.seconds / 2, 30 if command is fresh else reference.changes // 3
            if done < kills:
                done += (killed := command.killed(rng))
            else:
                killed = command.whole() is None
            for path in [*out.glob("*.pt"), *out.glob("previous*/*.pt")]:
                m.load_checkpoint(str(path))
            for path in out.glob("*.json"):
                json.loads(path.read_text(encoding="utf-8"))
            if not killed:
                break
        chains += 1
        for run in (out, *out.glob("previous*")):
            assert learnt(run) == whole, f"{run} is not what the run gives that nothing stopped"
    return f"{done} kills in {chains} runs; each of them ended in the bits of a run that nothing stopped"


def texts_of(path):
    """Results without their times; None where there are none."""
    return [{k: v for k, v in result.items() if k != "seconds"} for result in json.loads(path.read_text(encoding="utf-8"))] if path.exists() else None


def kills_sample(folder, kills):
    """The file of results is whole at any time: of the earlier run, or as far as this one has come."""
    world(folder)
    rng, path, done, parts = random.Random(3), folder / "texts.json", 0, set()
    commands = [Program(folder, "sample.py", *SAMPLE, f"--seed={seed}").whole() for seed in (1, 2)]
    whole = [texts_of((command.whole(), path)[1]) for command in commands]
    while done < kills:
        i = rng.randrange(2)
        before = texts_of(path)
        if not commands[i].killed(rng):
            continue
        done += 1
        found = texts_of(path)
        assert found == before or found == whole[i][:len(found)], "the file holds neither the earlier texts nor the first of the new"
        parts.add(len(found))
        if rng.random() < 0.5:                          # the others are killed again over what they left
            commands[i].whole()
            assert texts_of(path) == whole[i]
            assert not list(folder.glob("*.writing")), "a part of a file was left"
    return f"{done} kills, with {min(parts)} to {max(parts)} of {len(whole[0])} texts in the file; the same command then gave the same texts"


# ---- full disks

@contextlib.contextmanager
def tmpfs(folder, megabytes=48):
    """A file system of its own in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], capture_output=True, text=True) if shutil.which("mount") else None
    if not mounted or mounted.returncode:
        raise Skipped("no file system can be mounted here: run it as root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def leave(folder, free):
    """Fill the disk but for `free` bytes; what is written to the file that it returns is in no one's way."""
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 2**20)
    with open(filler, "ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    os.truncate(filler, max(0, filler.stat().st_size - free // 4096 * 4096))
    return filler


def script(folder, name, *arguments, **more):
    return subprocess.run([sys.executable, str(ROOT / name), *arguments], cwd=folder, env=ENV, text=True, timeout=300, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more)


def told(done, name, lines=None):
    """A run that could not go on said so in its last line, with status 2, and printed no traceback."""
    said = done.stderr.splitlines()
    assert done.returncode == 2 and said and said[-1].startswith(f"{name}: ") and not re.search("Traceback|Exception ignored|None: No", done.stderr), done
    assert lines is None or len(said) == lines, done
    return said[-1]


def fills(folder, rng, count, need, name, arguments, state, whole, resumed=None):
    """Run a script `count` times on a disk with less room than the `need` bytes it takes: (how often that was too little, what was said). It ends in a line, no
    earlier file is harmed, and with room again the same command does what it would have done."""
    full, said = 0, set()
    for i in range(count):
        filler = leave(folder, int(need * (i + rng.random()) / count))
        before = state()
        done = script(folder, name, *arguments)
        if done.returncode:
            full += 1
            said.add(told(done, name))
            assert state() == before, "an earlier file was harmed"
            assert "No space left" in done.stderr, done.stderr
        filler.unlink()
        done = script(folder, name, *(resumed() if resumed else arguments))
        assert done.returncode == 0, done.stderr
        assert state() == whole, "with room again, it gave something else"
    return full, said


def full_disk_prepare(folder, count):
    rng = random.Random(4)
    with tmpfs(folder) as folder:
        world(folder, trained=False)
        other = [*PREPARE, "--seed=2"]
        Program(folder, "prepare.py", *other).whole()
        whole, full = contents(folder / "data/tale"), 0
        need = sum(map(len, whole.values())) + 4096 * len(whole)
        for i in range(count):
            Program(folder, "prepare.py", *PREPARE).whole()
            full += fills(folder, rng, 1, need * (i + 1) / count, "prepare.py", other, lambda: contents(folder / "data/tale"), whole)[0]
            assert {path.name for path in (folder / "data").iterdir()} == {"tale", "latest"}, "something was left behind"
    assert full >= count // 2
    return f"full {full} of {count} times: one line, the earlier data stood; with room again, the same bytes"


def full_disk_train(folder, count):
    """The earlier run stays as it was; what the new one has saved is whole, and goes on with --resume to the same end."""
    import model as m
    rng, full = random.Random(5), 0
    with tmpfs(folder) as folder:
        world(folder, trained=False)
        arguments = [*(a for a in TRAIN if not a.startswith(("--tensorboard", "--eval_interval"))), "--eval_interval=50"]
        done = script(folder, "train.py", *arguments)
        assert done.returncode == 0, done.stderr
        whole, need = learnt(folder / "out"), sum(p.stat().st_size for p in (folder / "out").rglob("*"))
        for i in range(count):
            filler = leave(folder, int(need * (i + rng.random()) / count))
            done = script(folder, "train.py", *arguments)
            if done.returncode:
                full += 1
                told(done, "train.py")
                assert "No space left" in done.stderr or "unexpected pos" in done.stderr or "file write failed" in done.stderr, done.stderr
            filler.unlink()
            assert not list((folder / "out").glob("*.writing")), "half a file was left"
            for path in (folder / "out").rglob("*.pt"):
                m.load_checkpoint(str(path))
            moved = len(list((folder / "out").glob("previous*/latest.pt")))
            begun = moved == 1 and (folder / "out/latest.pt").exists()
            done = script(folder, "train.py", *arguments, *["--resume"] * begun)
            assert done.returncode == 0, done.stderr
            [previous] = (folder / "out").glob("previous*")
            assert learnt(folder / "out") == learnt(previous) == whole, "not what a run gives that nothing stopped"
            shutil.rmtree(previous)
    assert full >= count // 2
    return f"full {full} of {count} times: one line, every checkpoint whole; with room again, the same bits"


def full_disk_sample(folder, count):
    """Also where the full disk is what stdout goes to."""
    rng = random.Random(6)
    with tmpfs(folder) as folder:
        world(folder)
        path = folder / "texts.json"
        arguments = [*SAMPLE, "--num_samples=12"]
        Program(folder, "sample.py", *arguments).whole()
        whole, full, need = texts_of(path), 0, 2 * path.stat().st_size
        for i in range(count):
            path.write_text("[]")
            filler = leave(folder, int(need * (i + rng.random()) / count))
            done = script(folder, "sample.py", *arguments)
            if done.returncode:
                full += 1
                assert "texts.json: No space left" in told(done, "sample.py")
                assert (found := texts_of(path)) == whole[:len(found)] and not list(folder.glob("*.writing"))
            filler.unlink()
            Program(folder, "sample.py", *arguments).whole()
            assert texts_of(path) == whole
        filler = leave(folder, 0)
        for name, arguments in (("sample.py", SAMPLE[:1]), ("sample.py", ["--help"]), ("prepare.py", ["--help"])):
            with open(folder / "printed", "w") as file:
                assert "No space left" in told(script(folder, name, *arguments, stdout=file), name, None)
    assert full >= count // 2
    return f"full {full} of {count} times, and 3 times where stdout went: one line, the file as far as it had come; with room again, the same texts"



# ---- nonsense, in this process: a start of a script takes seconds, and there are thousands

NONSENSE = ["", "None", "[]", "{}", "(1,)", "x", "True", "nan", "inf", "-inf", "1e999", "-1", "0", "0.5", "1", "2", "9" * 400, "9" * 4999, "1j", "[1, 'a']", "{'epochs': 1}", "[" * 500,
            "{[]: 1}", "{{}}", "-" * 3000 + "1", "b'a'", "...", "'\\ud800'", "\udcff", "1_0", "0x10", "[[1]]", "{1: 2}", "[nan]", "[9" + "9" * 400 + "]", "é", "\U0001f600", "a\nb", "[1e999]"]
KINDS = {"prepare.py": "book", "train.py": None, "sample.py": "prompt", "evaluate.py": None, "serve.py": None}
# knobs of which a large value takes long, and a little one is as good
SLOW = {"max_tokens", "num_samples", "steps", "n_layer", "n_embd", "n_head", "block_size", "batch_size", "vocab_size", "show_extremes", "heldout_blocks", "gap_lengths", "longest", "conv"}
GIVEN = {"book": ["tale.txt", "none.txt", "", ".", "tale.txt/x", "x" * 300, "http://", "http://[", "https://:x/", "latest.txt"], "reference": ["", "tale.txt", "none.txt", "."],
         "encoding": ["", "utf-8", "latin-1", "utf-16", "rot13", "hex", "idna", "undefined", "zlib", "no such", "cp037"], "dataset": ["", "tale", "none", "..", ".", "x" * 300],
         "out_dir": ["out", "none", "", ".", "tale.txt", "x" * 300], "checkpoint": ["", "out/best.pt", "none.pt", ".", "tale.txt", "out", "data/tale/tokenizer.json", "x" * 300],
         "device": ["", "cpu", "cuda:99", "a b", "cpu:-1", "meta", "cuda:x"], "host": ["127.0.0.1", "localhost", "::1", "", "256.0.0.1", "a b", "x" * 300, "\u2603.", ":", "0.0.0.0", ".", "a..b"],
         "origin": ["", "https://a.example", "a", "http://[", ",", "https://a:99999999"], "race": ["", "out", "none", "tale.txt"], "port": ["0", "1", "65535", "-1", "65536"],
         "output": ["", "a.json", ".", "none/a.json", "x" * 300], "batch": ["", "prompts.txt", "none.txt", ".", "out/best.pt"], "save_animation": ["", "a.html", "a.gif", "a.mp4", "none/a.gif", "x" * 300 + ".gif"],
         "save_model": ["", "shared", "tale.txt", "x" * 300], "prompts": ["", "prompts.txt", "none.txt", "."], "control": ["", "tale.txt", "none.txt"], "compare": ["", "out", "none", ",", "out/best.pt"],
         "wandb_project": [""], "template": ["", "a ____ b", "____(3)", "none"], "text1": ["", "a", "tale.txt"], "text2": ["", "b c"], "tokenizer": ["book", "gpt2", "x"]}


@contextlib.contextmanager
def at_most(seconds, what):
    """AssertionError in the middle of whatever takes longer."""
    def late(*_):
        raise AssertionError(f"no end after {seconds} s: {what}")
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Here:
    """Scripts run in this process and in `folder`: `run` gives "works" or "refused", and is an AssertionError for any end but these."""

    def __init__(self, folder):
        import configurator
        self.folder, self.start, self.documented = folder, {}, {}
        self.real = configurator.documented
        for name in KINDS:
            module = __import__(name[:-3])
            self.documented[module.__file__] = list(self.real(module.__file__))
            self.start[name] = {knob: copy.deepcopy(getattr(module, knob)) for knob, _ in self.documented[module.__file__]}

    def knobs(self, name):
        return self.documented[str(ROOT / name)]

    def run(self, name, arguments, work, stdin=""):
        """work(module) is the script's main, or some of it."""
        import configurator
        module = sys.modules[name[:-3]]
        vars(module).update(copy.deepcopy(self.start[name]))
        files = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors) for errors in ("strict", "backslashreplace")]
        was = sys.argv, os.getcwd(), module.configure, configurator.documented, sys.stdin
        sys.argv, sys.stdin = [name, *arguments], io.StringIO(stdin)
        configurator.documented = module.documented = lambda path: self.documented[path]       # parsed once
        os.chdir(self.folder)
        try:
            with at_most(20, (name, arguments)), contextlib.redirect_stdout(files[0]), contextlib.redirect_stderr(files[1]):
                configurator.run_script(lambda: work(module))
            code = 0
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            raise AssertionError(f"{name} {arguments!r}"[:2000]) from error
        finally:
            sys.argv, _, module.configure, configurator.documented, sys.stdin = was
            os.chdir(was[1])
            vars(module).update(copy.deepcopy(self.start[name]))
        self.out, self.err = (file.buffer.getvalue().decode("utf-8", "replace") for file in files if file.flush() is None)
        said = [line for line in self.err.strip().split("\n") if not line.endswith("0:00:00")]        # evaluate.py's bar
        wrong = code not in (0, None) and (code != 2 or not said[-1].startswith(f"{name}: ") or len(said[-1]) > 2000)
        assert not wrong and "Traceback" not in self.err and "None: No" not in self.err, f"{name} {' '.join(arguments)[:1000]!r} ended with {code}: {self.err[-3000:]}"
        return "refused" if code else "works"


class Tally(dict):
    """How often cases ended in which way. What went wrong is told at the end, each kind once."""

    def __init__(self):
        self.wrong = {}

    def add(self, run, *case):
        try:
            end = run(*case)
        except AssertionError as error:
            end, cause = "wrong", error.__cause__
            where = traceback.extract_tb(cause.__traceback__)[-1][:2] if cause else str(error).partition("ended")[2][:60]
            self.wrong.setdefault((type(cause).__name__, where), error)
        self[end] = self.get(end, 0) + 1

    def close(self):
        told = [f"{error}\n{''.join(traceback.format_exception(error.__cause__)[-6:]) if error.__cause__ else ''}" for error in self.wrong.values()]
        assert not told, f"{dict(self)}\n" + "\n".join(told)
        return f"{sum(self.values())}: {self.get('works', 0)} worked, {self.get('refused', 0)} ended in one line"


class Enough(Exception):
    """As far as a check wants a script to go."""


def as_far_as(module, function):
    """main, but for what it would do with a network and its time from `function` on."""
    def stop(*_, **__):
        raise Enough
    was = getattr(module, function)
    setattr(module, function, stop)
    try:
        module.main()
    except Enough:
        pass
    finally:
        setattr(module, function, was)


class NoServer:
    def serve_forever(self):
        pass


def work_of(name, rng):
    """Most of what a script does, as a function of its module."""
    def serve(module):
        was, module.make_server = module.make_server, lambda *_, **__: NoServer()
        try:
            module.main()
        finally:
            module.make_server = was

    return {"prepare.py": lambda module: module.main() if rng.random() < 0.3 else as_far_as(module, "score"), "serve.py": serve,
            "train.py": lambda module: as_far_as(module, "DiffusionModel"), "sample.py": lambda module: module.main(),
            "evaluate.py": lambda module: as_far_as(module, "likelihood")}[name]


def some_value(rng, knob, value, comment):
    """Text for a knob: in its range, at its ends and beyond, of another type, or of its own with a slip of the finger."""
    if knob in GIVEN and rng.random() < 0.8:
        return rng.choice(GIVEN[knob])
    *_, limits = ["", *re.findall(r"[\[({][^\[({]*[\])}]$", comment)]
    ends = [end for end in limits[1:-1].split(", ") if end not in ("", "...")]
    numbers = [float(end) for end in ends if re.fullmatch(r"[-\d.e+]+", end)]
    near = [f"{x + d:{form}}" for x in numbers for d in (-1, -0.01, 0.01, 1, 7) for form in (".0f", "g")]
    if knob in SLOW:
        ends, near = ([x for x in xs if not re.fullmatch(r"[\d.e+]+", x) or float(x) < 40 or float(x) > float(ends[-1])] for xs in (ends, near))
    return rng.choice([*(ends + near) * 2, *NONSENSE, slip(rng, repr(value))])


def slip(rng, text):
    """A text with a few characters lost, doubled, exchanged or added."""
    text = list(text)
    for _ in range(rng.randint(1, 3)):
        i = rng.randrange(len(text) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            del text[i:i + 1]
        elif kind == 1:
            text[i:i] = text[i - 1:i]
        elif kind == 2:
            text[i:i + 1] = rng.choice("0189.,-+e[](){}'\"=#:_ \n\t\\xé\u2028\x1b")
        else:
            text[i:i] = rng.choice(["0", "9", ".", "-", "[", "]", "'", ",", "None", "*", "**", "1e9", "(", ")", "\x00", "=", "é", "lambda: 0"])
    return "".join(text)


def arguments(folder, cases):
    """Of all five scripts: knobs that are and are not, with values that may be and may not."""
    world(folder)
    rng, here, tally = random.Random(77), Here(folder), Tally()
    for i in range(cases):
        name, given = list(KINDS)[i % 5], []
        known = [(knob, here.start[name][knob], comment) for knob, comment in here.knobs(name) if knob not in ("interactive", "benchmark", "compile", "resume")]
        for _ in range(rng.randint(0, 3)):
            knob, value, comment = rng.choice(known)
            if knob == "sampling":
                field = rng.choice([*here.start["sample.py"]["sampling"].__dataclass_fields__.values()])
                knob, value, comment = field.name, field.default, f"[{field.metadata['min']}, {field.metadata['max']}]" if field.metadata["max"] else ""
            key = slip(rng, knob) if rng.random() < 0.1 else knob + rng.choice(["[0]", ".x", "[" + "9" * 5000 + "]", "[-1]", ".0.epochs", "[", "[0].mask_rate[1]"]) if rng.random() < 0.1 else knob
            given.append(f"--{key}" if rng.random() < 0.05 else f"--{key}={some_value(rng, knob, value, comment)}")
        if rng.random() < 0.05:
            given.append(rng.choice(["none.py", "-x", "--", "--=", "--.=1", "--[0]=1", "", "out", ".json", "tale.txt"]))
        small = {"sample.py": ["--max_tokens=8", "--steps=3"], "prepare.py": PREPARE, "train.py": TRAIN, "serve.py": ["--port=0", "--device=cpu"], "evaluate.py": []}[name]
        tally.add(here.run, name, [argument.replace("\0", "") for argument in [*small, *given]], work_of(name, rng))
    return tally.close()


VALUES = [*NONSENSE, "10**5000", "-10**5000", "float('nan')", "object()", "lambda: 0", "print", "b'x'", "set()", "{3: 4}", "[None]", "[[]]", "stages", "globals()", "[{}]", "range(3)", "1j", "'a' * 10**5",
          "[{'name': 'a', 'mask_rate': (0, 1)}]", "[{'epochs': 10**400}]", "{'steps': 3}", "{'steps': None}", "__import__('numpy').float64(1)", "type('T', (int,), {})(3)", "[1, 2] * 3", "0.5", "True", "'tale'"]


def config_text(rng, here, name, presets):
    """A config file: a preset with slips, or lines of assignments, deletions and errors."""
    if rng.random() < 0.4:
        return slip(rng, rng.choice(presets))
    known = [knob for knob, _ in here.knobs(name)] + ["steps", "order", "threshold", "x", "_x", "__builtins__", "configure", "fail"]
    lines = []
    for _ in range(rng.randint(1, 4)):
        key = rng.choice(known)
        lines.append(rng.choice([f"{key} = {rng.choice(VALUES)}"] * 6 + [
            f"del {key}", f"{key}[0]['epochs'] = {rng.choice(VALUES)}", f"{key} += 1", "raise ValueError('a\\nb')", "import os as x", "def f(): pass", "class C: pass", "1 / 0", "assert False",
            "globals()[3] = 4", "stages.append(stages)", "stages *= 2", "from train import *", "f(", "'", "if 1:", "\x00", "\ufeffseed = 3", "# coding: nonsense", "exec('seed = =')", "import none", "raise RecursionError",
            "def g(): g()\ng()", "(" * 300, "-" * 5000 + "1", "globals().clear()", "seed = seed"]))
    return "\n".join(lines)


def config_files(folder, cases):
    """Python, JSON, neither: what a script takes them for, it says with the line."""
    world(folder)
    rng, here, tally = random.Random(8), Here(folder), Tally()
    presets = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "config").glob("*.py"))]
    for _ in range(cases):
        name = rng.choice(["train.py", "train.py", *KINDS])
        whole = here.start[name] | ({"sampling": vars(here.start[name]["sampling"])} if "sampling" in here.start[name] else {})
        kind = rng.random()
        if kind < 0.3:
            path, data = "case.json", slip(rng, json.dumps(whole | {rng.choice([*whole]): rng.choice([None, 1, "x", [], {}, [{}], 1e999, -1, True, [[1]], {"a": 1}])})).encode()
        else:
            path, data = "case.py", config_text(rng, here, name, presets).encode("utf-8", "surrogatepass")
        if kind > 0.9:
            at = rng.randrange(len(data) + 1)
            data = data[:at] + rng.randbytes(rng.randint(1, 3)) + data[at:]
        (folder / path).write_bytes(data)

        def work(module):
            def configure_alone(*given, **more):
                configure(*given, **more)
                raise Enough
            if module.__name__ == "train":
                return as_far_as(module, "DiffusionModel")
            configure, module.configure = module.configure, configure_alone
            with contextlib.suppress(Enough):
                module.main()

        tally.add(here.run, name, [path], work)
    return tally.close()


# ---- checkpoints

def damaged(rng, data):
    """Bytes with bits flipped, cut off, or with a stretch of zeros, noise or of other places."""
    data, kind = bytearray(data), rng.randrange(6)
    if kind < 3:
        near = rng.randrange(len(data)) if kind else max(0, data.find(b"data.pkl"))
        for _ in range(rng.choice([1, 1, 2, 20])):
            i = min(len(data) - 1, max(0, near + rng.randrange(-2000, 2000) if kind < 2 else rng.randrange(len(data))))
            data[i] ^= 1 << rng.randrange(8)
    elif kind == 3:
        del data[rng.randrange(len(data)):]
    else:
        i, n = rng.randrange(len(data)), rng.choice([1, 8, 100, 5000])
        data[i:i + n] = bytes(n) if kind == 4 else data[:n] if rng.random() < 0.5 else rng.randbytes(n)
    return bytes(data)


def altered(rng, value, depth=0):
    """A copy of a checkpoint with one thing in it lost or exchanged: as of another version of the program."""
    value = dict(value) if isinstance(value, dict) else list(value) if isinstance(value, (list, tuple)) else value
    if not isinstance(value, (dict, list)) or not value or depth > rng.randrange(5):
        import torch
        return rng.choice([None, 0, -1, 1, 2.5, "x", [], {}, True, 10**6, float("nan"), torch.zeros(2), [1], {"a": 1}, "tale", 10**30])
    key = rng.choice([*value]) if isinstance(value, dict) else rng.randrange(len(value))
    if rng.random() < 0.3 or "knobs" in value:          # how it was trained is as it was, or not said
        del value[key]
    else:
        value[key] = altered(rng, value[key], depth + 1)
    return value


def checkpoints(folder, cases):
    """Files with bits flipped, cut, torn, or with something in them lost: to write with, to go on training from, to evaluate, to serve."""
    import torch
    world(folder)
    Program(folder, "train.py", *TRAIN, "--stages[2].max_steps=20", "--out_dir=run").whole()
    rng, here, tally = random.Random(9), Here(folder), Tally()
    assert here.run("sample.py", ["--save_model=shared", "--checkpoint=run/best.pt"], lambda module: module.main()) == "works"
    best, latest = (folder / f"run/{name}.pt" for name in ("best", "latest"))
    shared = {path.name: path.read_bytes() for path in (folder / "shared").iterdir()}
    whole = {path: path.read_bytes() for path in (best, latest)}
    written = ["The keeper", "--max_tokens=6", "--steps=3", "--checkpoint=run/best.pt"]
    here.run("sample.py", written, lambda module: module.main())
    right, changed = here.out, []
    (folder / "case").mkdir()
    for _ in range(cases):
        kind = rng.random()
        if kind < 0.3:                                  # a folder, as others read it
            shutil.copytree(folder / "shared", folder / "case/folder", dirs_exist_ok=True)
            name = rng.choice(["config.json", "tokenizer.json", "model.safetensors"])
            (folder / "case/folder" / name).write_bytes(damaged(rng, shared[name]))
            tally.add(here.run, "sample.py", [*written[:-1], "--checkpoint=case/folder"], lambda module: module.main())
        elif kind < 0.55:
            (folder / "case/latest.pt").write_bytes(damaged(rng, whole[latest]))
            tally.add(here.run, "train.py", ["--resume", "--out_dir=case"], lambda module: as_far_as(module, "start"))
        else:
            (folder / "case/best.pt").write_bytes(damaged(rng, whole[best]))
            tally.add(here.run, "sample.py", [*written[:-1], "--checkpoint=case/best.pt"], lambda module: module.main())
            if not here.err.startswith("sample.py: ") and here.out != right:
                changed.append(here.out)
    for _ in range(cases // 5):
        path = rng.choice([best, latest])
        torch.save(altered(rng, torch.load(path, weights_only=True)), folder / "case" / path.name)
        if path == latest:
            tally.add(here.run, "train.py", ["--resume", "--out_dir=case"], lambda module: as_far_as(module, "start"))
        else:
            name = rng.choice(["sample.py", "evaluate.py", "serve.py"])
            more = [*written[:-1]] if name == "sample.py" else ["--port=0"] if name == "serve.py" else []
            tally.add(here.run, name, [*more, "--checkpoint=case/best.pt"], work_of(name, rng))
    said = tally.close()
    assert not changed, f"{len(changed)} damaged checkpoints wrote something else, and nothing was said"
    return said


# ---- templates

PIECES = ["____", "__", "____(3)", "____(0)", "____(1)", "____(12)", "____(99999999999999999999)", "____(1000001)", "____(" + "9" * 5000 + ")", "____(٣)", "____(²)", "____(-1)", "____( 3)", "____(", "(3)", "_", "_____________",
          "The keeper ", "  ", "\n", "\n\n", "\t", "\0", "\x1b[31m", "é", "e\u0301", "海", "\U0001f600", "\U0001f469\u200d\U0001f52c", "\u202e", "\ufeff", "\ud800", "\udcff", "\u2028", "[MASK]", "<|endoftext|>", "“Why?”", "a" * 500,
          "word " * 60, "\\", "'", '"', "$(x)", "%s", "{}", "--help", "/help", "¿", "שלום", "﷽", "\r", "\r\n", "\x85", "\ufdd0"]


def templates(folder, cases):
    """Gaps of all lengths in texts of all characters: as a template, a prompt, a suffix, a line of a file, a line typed; fixed text comes back as it was given."""
    import sample
    world(folder)
    rng, here, tally = random.Random(10), Here(folder), Tally()
    loaded, load = sample.load(str(folder / "out/best.pt"), "cpu"), sample.load
    small = ["--max_tokens=5", "--steps=2", "--gap_lengths=[1,2]"]

    def some():
        return slip(rng, rng.choice(["The ____ of the sea was ____(3) and cold.", "____(2)"])) if rng.random() < 0.2 else "".join(rng.choice(PIECES) for _ in range(rng.randint(0, 4)))

    def checked(given, text, stdin=""):
        end = here.run("sample.py", [*small, *given], lambda module: module.main(), stdin)
        if end == "works" and text is not None:
            places = [0]
            for part in (part for part in sample.parse_template(text) if isinstance(part, str)):
                part = part.encode("utf-8", "replace").decode()                 # as it is printed
                places.append(here.out.find(part, places[-1]) + len(part))
                assert places[-1] >= places[-2] + len(part), f"{text!r} ended in {here.out!r}"
        return end

    sample.load = lambda *_: loaded
    try:
        for _ in range(cases):
            kind, text = rng.random(), some()
            if kind < 0.5:
                tally.add(checked, [f"--template={text}"], text)
            elif kind < 0.6:
                tally.add(checked, [f"--prompt={text}", f"--suffix={some()}", *["--output=a.json"] * (rng.random() < 0.5)], None)
            elif kind < 0.7:
                tally.add(checked, [f"--template={text}", f"--save_animation=a.{rng.choice(['gif', 'html'])}", *["--draft"] * (rng.random() < 0.5)], None)
            elif kind < 0.85:
                data = "\n".join([text, some(), some()]).encode("utf-8", "surrogatepass")
                (folder / "case.txt").write_bytes(damaged(rng, data) if data and rng.random() < 0.5 else data)
                tally.add(checked, ["--batch=case.txt", "--output=b.json"], None)
                if (folder / "b.json").exists():
                    json.loads((folder / "b.json").read_text(encoding="utf-8"))
            else:
                lines = [some().replace("\n", " "), rng.choice(["/set", "/seed", "/remask", "/save", "/undo", "/again", "/show", "/what", "/"]) + " " + rng.choice(["", *NONSENSE, "1-2", "9-1", "steps 3", "order x", "speed 0", "none/x"]), text]
                tally.add(checked, ["--interactive"], None, "\n".join(lines) + "\n")
    finally:
        sample.load = load
    assert not list(folder.rglob("*.writing"))
    return tally.close()


# ---- the page's server

class Server:
    """serve.py in a process of its own, and what of the machine it holds."""

    def __init__(self, folder, *arguments):
        self.log = open(folder / "server.log", "w+")
        self.process = subprocess.Popen([sys.executable, str(ROOT / "serve.py"), "--port=0", "--device=cpu", *arguments], cwd=folder, env=ENV, text=True, stdout=subprocess.PIPE, stderr=self.log)
        self.url = self.process.stdout.readline().strip().replace("http", "ws") + "/ws"

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.terminate()
        self.process.wait(20)
        self.log.seek(0)
        said = self.log.read()
        self.log.close()
        assert error[0] or not said, f"the server said: {said[-3000:]}"

    def client(self):
        from simple_websocket import Client
        return Client(self.url)

    def held(self):
        """(resident megabytes, threads, open handles)"""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        number = {key: int(re.search(rf"{key}:\s+(\d+)", status)[1]) for key in ("VmRSS", "Threads")}
        return number["VmRSS"] / 1024, number["Threads"], len(os.listdir(f"/proc/{self.process.pid}/fd"))


def answer(client, message, patience=60):
    """Everything that comes of one message, up to what ends it."""
    client.send(message)
    heard = []
    while not heard or heard[-1]["type"] in ("start", "step"):
        text = client.receive(timeout=patience)
        assert text is not None, f"no answer for {patience} s to {message[:300]!r}"
        heard.append(json.loads(text, parse_constant=lambda word: f"{word} is not JSON"))
    return heard


def some_message(rng, vocabulary):
    """What a page sends, with any of it exchanged, lost, or not even JSON."""
    mask, n = vocabulary - 3, rng.choice([1, 5, 40])
    message = rng.choice([
        {"type": "generate", "prompt": "The keeper", "max_tokens": 6, "steps": 3, "seed": 1},
        {"type": "generate", "template": "The ____(3) of the sea was ____ and cold.", "steps": 2, "order": "entropy", "threshold": 0.9},
        {"type": "generate", "tokens": [5, mask, mask, 9], "steps": 2, "adapt": [0, 3], "remask": 0.3, "temperature": 0},
        {"type": "generate", "prompt": "a", "suffix": "b", "max_tokens": 4, "steps": 2, "block_size": 2, "top_k": 3, "top_p": 0.5, "repetition_penalty": 1.5, "schedule": "cosine"},
        {"type": "gif", "tokens": [rng.randrange(mask + 1) for _ in range(n)], "when": [rng.randrange(5) for _ in range(n)]}])
    values = [None, 0, -1, 1, 2, 0.5, 1.0, 10**30, -1e308, 1e308, 5e-324, True, False, "", "x", [], {}, [1], [[]], [None], ["1"], {"a": 1}, "x" * 9000, [0] * 1025, [mask] * 8, [mask, mask + 1], "\ud800", "____(900)", "____ " * 300,
              float("nan"), float("inf"), 2**53, 2**63, "margin", "\0", "\U0001f600" * 9, "entropy", 1e-6, 99, 256, [1000] * 4, *PIECES]
    for _ in range(rng.randint(0, 3)):
        key = rng.choice([*message, "temperature", "top_k", "top_p", "steps", "remask", "seed", "block_size", "entropy_bound", "threshold", "adapt", "twin", "when", "tokens", "prompt", "suffix", "x", "__class__"])
        if rng.random() < 0.15:
            message.pop(key, None)
        else:
            message[key] = rng.choice(values)
    text = json.dumps(message)
    kind = rng.random()
    if kind < 0.15:
        text = slip(rng, text)
    elif kind < 0.2:
        text = text[:rng.randrange(len(text))]
    elif kind < 0.23:
        return rng.choice(["", "null", "[" * 20000, "9" * 5000, "{}", "[]", '{"type": "cancel", "x": 1}', '{"type":' * 5000, "\0", '{"type": "generate", "seed": ' + "9" * 5000 + "}"])
    return text.encode("utf-8", "surrogatepass") if kind > 0.97 else text


def messages(folder, cases):
    """An answer or an error to each, in JSON; nothing in the server's log; afterwards it writes as before."""
    from simple_websocket import ConnectionClosed

    import serve
    world(folder)
    rng, ends, wrong = random.Random(11), {}, []
    vocabulary = json.loads((folder / "data/tale/tokenizer.json").read_text(encoding="utf-8"))["vocab_size"]
    asked = json.dumps({"type": "generate", "prompt": "The keeper", "max_tokens": 9, "steps": 4, "seed": 5})
    with Server(folder) as server:
        client, sent = server.client(), 0
        before = answer(client, asked)[-1]["text"]
        for _ in range(cases):
            message, sent = some_message(rng, vocabulary), sent + 1
            if sent > serve.MESSAGES_PER_SECOND - 5:
                client.close()
                client, sent = server.client(), 0
            try:
                heard = answer(client, message)
                end = heard[-1]["type"]
                if "is not JSON" in json.dumps(heard):
                    wrong.append((message, "NaN or Infinity in an answer"))
                if end == "error" and (len(heard[-1]["message"]) > 300 or heard[-1]["message"].startswith("the model failed")):
                    wrong.append((message, heard[-1]["message"]))
            except (ConnectionClosed, AssertionError) as error:
                end = "closed"
                if len(message.encode("utf-8", "surrogatepass") if isinstance(message, str) else message) < serve.MESSAGE_BYTES:
                    wrong.append((message, f"{type(error).__name__} {error}"))
                client, sent = server.client(), 0
            ends[end] = ends.get(end, 0) + 1
        client.close()
        client = server.client()
        after = answer(client, asked)[-1]
        client.close()
        assert after["type"] == "done" and after["text"] == before
        server.log.flush()
        log = (folder / "server.log").read_text()
        assert not wrong and not log, f"{ends}, {len(wrong)} wrong: {[(m[:300], e) for m, e in wrong[:5]]}; log: {log[-3000:]}"
    return f"{cases}: " + ", ".join(f"{n} {end}" for end, n in sorted(ends.items())) + "; then the same text as before, and an empty log"


def generations(folder, count):
    """Texts of all kinds over many connections: the server grows no more once it is warm."""
    world(folder)
    rng, table, tenth = random.Random(12), [], max(20, count // 10)
    vocabulary = json.loads((folder / "data/tale/tokenizer.json").read_text(encoding="utf-8"))["vocab_size"]
    mask = vocabulary - 3
    with Server(folder) as server:
        def settled():
            time.sleep(2)                               # it looks for clients that have gone every second
            table.append(server.held())

        settled()
        client = None
        for i in range(count):
            if i % 30 == 0:
                if client:
                    client.close()
                client = server.client()
            if i % tenth == 0 and i >= 60:
                settled()
            message = [{"prompt": "The keeper " * rng.randint(1, 3), "max_tokens": rng.randint(1, 24), "steps": rng.randint(1, 6)},
                       {"template": "The ____(3) of the sea was ____ and cold.", "remask": 0.3, "steps": 4},
                       {"tokens": [rng.randrange(mask) for _ in range(20)] + [mask] * rng.randint(1, 12), "steps": 3, "adapt": list(range(10))},
                       {"max_tokens": 60, "steps": 4, "order": "entropy", "entropy_bound": 5.0}][i % 4]
            if i % 200 == 20:
                message = {"type": "gif", "tokens": [rng.randrange(mask) for _ in range(20)], "when": [rng.randrange(3) for _ in range(20)]}
            while (heard := answer(client, json.dumps({"type": "generate", "seed": i} | message)))[-1]["type"] == "busy":
                time.sleep(0.05)                        # with the text before, of another connection, it is done in a moment
            assert heard[-1]["type"] in ("done", "gif"), heard[-1]
        client.close()
        settled()
    sizes, threads, handles = zip(*table)
    said = f"by tenths {', '.join(f'{size:.1f}' for size in sizes)} MB, threads {max(threads[1:])}, handles {max(handles[1:])}"
    assert threads[-1] <= threads[1] and handles[-1] <= handles[1] and sizes[-1] < sizes[1] + 8, said
    return f"{count:,} texts over {-(-count // 30)} connections: {said}"


def two_runs(folder, rounds):
    """Two trainings begun at once, in an empty folder, in one with a run, and resumed: one trains to its end as if alone, the other is refused in a line."""
    world(folder, trained=False)
    Program(folder, "train.py", *TRAIN, "--out_dir=whole").whole()
    whole = learnt(folder / "whole")
    for i in range(rounds):
        more = ["--resume"] * (i % 3 == 2 and (folder / "out/latest.pt").exists()) + (["--stages[2].max_steps=200"] if i % 3 == 2 else [])
        both = [Program(folder, "train.py", *TRAIN, *more) for _ in range(2)]
        for k, program in enumerate(both):
            program.errors = folder / f"stderr{k}"
        processes = [program.start() for program in both]
        for process in processes:
            process.join()
        codes = [process.exitcode for process in processes]
        assert sorted(codes) == [0, 2], (codes, [program.errors.read_text() for program in both])
        said = both[codes.index(2)].errors.read_text().splitlines()
        assert len(said) == 1 and "another run is writing to out/" in said[0], said
        if not more:
            assert learnt(folder / "out") == whole
    return f"{rounds} pairs: one of each refused in a line, the other ended as if alone"


CHECKS = {check.__name__: (check, size) for check, size in (
    (kills_prepare, 50), (kills_train, 50), (kills_sample, 50), (full_disk_prepare, 10), (full_disk_train, 10), (full_disk_sample, 10), (arguments, 1000), (config_files, 1000),
    (checkpoints, 1000), (templates, 1000), (messages, 1000), (two_runs, 9), (generations, 10000))}


def main():
    only = next((a.partition("=")[2].split(",") for a in sys.argv[1:] if a.startswith("--only=")), list(CHECKS))
    sizes = {a[2:].partition("=")[0]: int(a.partition("=")[2]) for a in sys.argv[1:] if not a.startswith("--only=")}
    if unknown := {*only, *sizes} - {*CHECKS}:
        sys.exit(f"there is no {', '.join(sorted(unknown))}; checks: {', '.join(CHECKS)}")
    failed = False
    with tempfile.TemporaryDirectory() as base:
        for name in only:
            begun, (check, size) = time.time(), CHECKS[name]
            try:
                said = f"ok       {name}: {check(Path(base, name), sizes.get(name, size))}"
            except Skipped as reason:
                said = f"skipped  {name}: {reason}"
            except Exception:       # whatever a check trips over is its result, printed whole; the rest go on
                failed, said = True, f"FAILED   {name}\n{traceback.format_exc()}"
            print(f"{said} ({time.time() - begun:.0f} s)", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
