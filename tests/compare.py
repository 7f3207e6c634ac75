"""Does diffusion beat autoregression on one book, does the curriculum help, what is each part worth? The
README's tables and curves.

    python tests/compare.py                     # book.txt: about 46 runs of one to seven minutes, two at a time
    python tests/compare.py --books='["book.txt", "novel.txt"]' --rows=demo,twin,uniform --write=README.md

Each row is config/demo.py with something changed, from several seeds. Runs from one seed begin with the same
draws, so differences are taken pair by pair; beside each stands its standard error over the seeds. The twin is
tuned first: of all settings in TWINS the one with the best validation bound, on each book. Runs and figures are
kept in `folder`, and what is there is not done again.
"""
import collections
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from quality_table import Judges  # noqa: E402

import evaluate  # noqa: E402
import sample  # noqa: E402
import train as train_script  # noqa: E402
from configurator import configure, fail, write_json  # noqa: E402
from model import Config, Sampling, training_flops  # noqa: E402

books = ["book.txt"]                # paths; of those in LAST_TENTH the last tenth is the test
config = str(ROOT / "config/demo.py")   # the run that all rows change
rows = ""                           # names of ROWS, with commas; empty: all but those of a preset
seeds = 3                           # of each row
tunings = 8                         # of TWINS, tried from the first seed
scale = 1.0                         # of the stages' lengths: shorter runs tell less
jobs = 2                            # runs at a time, of one thread each
texts = 16                          # of 100 tokens at each temperature, judged by quality_table.py; 0: none
folder = "compare"                  # of data, runs and figures
train_on = True                     # False: report on the runs that are there, train none
write = ""                          # a file that has the tables between two marks, to be brought up to date

ALL_TEXT = ("--stages[0].data=stage3", "--stages[1].data=stage3")
ALL_RATES = ("--stages[0].mask_rate=[0.0,1.0]", "--stages[1].mask_rate=[0.0,1.0]")
WINDOWS = ("--stages[0].mask_rate=[0.75,0.9]", "--stages[1].mask_rate=[0.4,0.6]",
           "--stages[2].mask_rate=[0.05,0.2]", "--stages[1].lr_factor=0.8", "--stages[2].lr_factor=0.5",
           "--carry_over=False")
REPLAY = tuple(f"--stages[{i}].replay=0.5" for i in range(3))
WEIGHTED = ("--even_weights=False",)     # as the bound weighs them: L/k
CAUSAL = (*ALL_TEXT, "--causal=True", "--eval_interval=100")


class Row(NamedTuple):
    title: str
    train: tuple = ()       # flags
    prepare: tuple = ()
    length: float = 1.0     # of the stages, as a share of the demo's
    teacher: str = ""       # the row whose run of the same number teaches this one
    preset: str = ""        # what is trained instead of `config`, at its own length
    base: str = "demo"      # the row that this one changes


ROWS = {
    "demo": Row("**the demo: few masks first, simple sentences first**"),
    "taught": Row("**the demo, taught by a demo**", teacher="demo"),
    "twin": Row("the autoregressive twin, tuned"),
    "twintaught": Row("the twin, taught by a twin", teacher="twin"),
    "uniform": Row("no curriculum", ALL_TEXT + ALL_RATES),
    "lowfirst": Row("few masks first, all text throughout", ALL_TEXT),
    "weighted": Row("*hidden tokens weigh L/k, as in the bound*", WEIGHTED),
    "table": Row("L/k, the design's windows of mask rates in their order", WEIGHTED + WINDOWS, base="weighted"),
    "replay": Row("L/k, the same, half of each batch at all rates", WEIGHTED + WINDOWS + REPLAY, base="weighted"),
    "gpt2": Row("L/k, GPT-2's tokens", WEIGHTED, prepare=("--tokenizer=gpt2",), base="weighted"),
    "noconv": Row("L/k, no short convolution", WEIGHTED + ("--conv=0",), base="weighted"),
    "chance": Row("L/k, embedding from chance", WEIGHTED + ("--embedding_init=normal",), base="weighted"),
    "nodropout": Row("L/k, no dropout", WEIGHTED + ("--dropout=0.0",), base="weighted"),
    "night": Row("L/k, `config/night.py`", WEIGHTED, preset="night", base="weighted"),
    "nighttaught": Row("the same, taught by such a demo", WEIGHTED, teacher="weighted", preset="night",
                       base="weighted"),
    "tiny_125mtaught": Row("L/k, `config/tiny_125m.py`, taught by such a demo", WEIGHTED, teacher="weighted",
                           preset="tiny_125m", base="weighted"),
}
TWINS = {
    "b": Row("dropout .2", CAUSAL + ("--dropout=0.2",), length=1 / 3),
    "f": Row("dropout .2, half as long", CAUSAL + ("--dropout=0.2",), length=1 / 6),
    "a": Row("dropout .1", CAUSAL + ("--dropout=0.1",), length=1 / 3),
    "c": Row("dropout .4", CAUSAL + ("--dropout=0.4",), length=1 / 3),
    "d": Row("dropout .2, embedding from chance", CAUSAL + ("--dropout=0.2", "--embedding_init=normal"),
             length=1 / 3),
    "e": Row("dropout .2, weight decay 1", CAUSAL + ("--dropout=0.2", "--weight_decay=1.0"), length=1 / 3),
    "h": Row("no dropout", CAUSAL + ("--dropout=0.0",), length=1 / 3),
    "i": Row("dropout .1, three times as long", CAUSAL + ("--dropout=0.1",)),
}
LAST_TENTH = {"tinyshakespeare"}    # as nanoGPT holds it out


# ---- runs

busy = collections.defaultdict(threading.Lock)      # the folder of a run: a row and its teacher's row wait


def run(script, *flags):
    """One of the project's scripts, on one thread."""
    done = subprocess.run([sys.executable, str(ROOT / script), *flags], capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        fail(f"{script} {' '.join(flags)} failed: {done.stderr.strip().splitlines()[-1]}")


def halves(book):
    """The text that is prepared, and what of it is kept for the test alone."""
    text = Path(book).read_text(encoding="utf-8")
    cut = len(text) * 9 // 10 if Path(book).stem in LAST_TENTH else len(text)
    return text[:cut], text[cut:]


def prepared(book, flags):
    name = Path(book).stem + "".join(flags).replace("--tokenizer=", "-")
    if not Path("data", name).exists():
        Path(f"{name}.txt").write_text(halves(book)[0], encoding="utf-8")
        run("prepare.py", f"{name}.txt", *flags)
    return name


def train(book, name, row, seed):
    """Train unless it was done, its teacher first; the run's folder."""
    out = Path(Path(book).stem, f"{name}-{seed}")
    flags = [f"--seed={seed}"]
    if row.teacher:         # from another seed than the student's
        flags = [f"--seed={seed + 10}", f"--teacher={train(book, *settings(row.teacher, book), seed)}/best.pt"]
    with busy[out]:
        if not finished(out):
            lengths = [max(1, round(scale * row.length * stage["max_steps"])) for stage in stages()]
            changed = str(ROOT / f"config/{row.preset}.py") if row.preset else config
            flags += [f"--stages[{i}].max_steps={length}" for i, length in enumerate(lengths) if not row.preset]
            run("train.py", changed, f"--dataset={prepared(book, row.prepare)}", f"--out_dir={out}",
                "--tensorboard=False", "--sample_tokens=0", *flags, *row.train)
    return out


def finished(out):
    """Every stage has its results."""
    path = out / "curriculum_results.json"
    return path.exists() and len(json.loads(path.read_text())) == len(stages())


def seeds_of(book, name):
    """Those to train, or those that are there, without a gap."""
    if train_on:
        return range(1, seeds + 1)
    if name.startswith("twin") and not best_twin(book):
        return []
    there = (finished(Path(Path(book).stem, f"{settings(name, book)[0]}-{n}")) for n in range(1, seeds + 1))
    return range(1, 1 + sum(takewhile(bool, there)))


@functools.cache
def stages():
    sys.argv = ["train.py", config]
    return configure(vars(train_script))["stages"]


# ---- figures

def measure(out, book, full):
    """What one run's best checkpoint is worth: kept in its folder. `full`: its samples, the n-gram table and its
    likelihood left to right as well. Where the checkpoint is gone, what the log says."""
    kept = out / ("figures.json" if full else "bounds.json")
    if not (kept.exists() or (out / "best.pt").exists()):
        found = course(out)
        return {"run": found, "val": {"bits_per_byte": found["best"]["bits"]}, "test": {}}
    if not kept.exists():
        model, tokenizer, saved = sample.load(str(out / "best.pt"))
        source = evaluate.open_book(str(out / "best.pt"), saved)
        splits = dict(source.held_out)
        if rest := halves(book)[1]:
            splits["test"] = [tokenizer.encode(rest)]
        found = {"run": course(out)}
        for split, examples in splits.items():
            pieces = evaluate.chop(examples, model.config.block_size)
            sizes = [len(tokenizer.decode_bytes(ids)) for ids in pieces]
            ids = list(map(torch.tensor, pieces))
            found[split] = evaluate.likelihood(model, ids, sizes, 1, lambda *_: None)[0]
            if full:
                if split == "test" and not model.config.causal:
                    found[split] |= exact(model, ids, sizes)
                ngram = evaluate.NGram(evaluate.NGRAM_ORDER, model.config.n_text, source.train)
                nats = sum(ngram.nats(ids).sum() for ids in pieces)
                found[split]["ngram"] = float(nats / math.log(2) / sum(sizes))
        if full and texts:
            judge = Path(Path(book).stem, f"{best_twin(book)}-1", "best.pt")
            twin = sample.load(str(judge))[0] if judge.exists() else None
            judges = Judges(model, tokenizer, source, twin)
            how = Sampling(top_p=1.0, block_size=min(32, model.config.block_size))
            found["samples"], found["book"] = judges.at_entropy_of_book(model, how, list(range(1, texts + 1)))
        write_json(str(kept), found)
    return json.loads(kept.read_text())


def exact(model, ids, sizes):
    """What the text costs when it is unmasked a token at a time, in two orders."""
    found = {}
    for name, block in (("left_to_right", 1), ("sampler_order", model.config.block_size)):
        nats = evaluate.ordered_nats(model, ids, "margin", block)
        found[f"{name}_bits_per_byte"] = evaluate.bits_per_byte(nats, sizes)[0]
    return found


def course(out):
    """The validation bound over a run: steps, passes' worth of the book's tokens, floating-point operations;
    seconds. To a student's its teacher's are added, with a third for what the teacher predicts."""
    knobs = json.loads((out / "config.json").read_text())
    size = json.loads(Path("data", knobs["dataset"], "tokenizer.json").read_text())["vocab_size"]
    shape = Config(size, **{f.name: knobs[f.name] for f in fields(Config) if f.name in knobs})
    length = knobs["block_size"]
    tokens = knobs["batch_size"] * knobs["grad_accum"] * length
    book = Path("data", knobs["dataset"], "stage3_train.bin").stat().st_size // 2
    points, rates, taught = [], [], knobs.get("teacher")
    before = course(Path(taught).parent)["points"][-1] if taught else {"epoch": 0, "flops": 0}
    for line in map(json.loads, (out / "log.jsonl").read_text().splitlines()):
        if "mask_rate" in line:
            rates.append(line["mask_rate"])
        if "val_bits_per_byte" in line:
            seen = line["step"] * tokens
            predicted = seen if shape.causal else round(seen * statistics.mean(rates or [0.5]))
            flops = training_flops(shape, seen, predicted, length) * (4 if taught else 3) // 3
            points.append({"step": line["step"], "epoch": before["epoch"] + seen / book,
                           "bits": line["val_bits_per_byte"], "flops": before["flops"] + flops})
    seconds = sum(stage["seconds"] for stage in json.loads((out / "curriculum_results.json").read_text()))
    return {"points": points, "best": min(points, key=lambda point: point["bits"]), "seconds": seconds}


# ---- tables and curves

def best_twin(book):
    """The name of the twin's settings with the best validation bound from the first seed."""
    names = [f"twin-{key}" for key in list(TWINS)[:tunings]]
    tried = [name for name in names if finished(Path(Path(book).stem, f"{name}-1"))]
    if not tried:
        return ""
    return min(tried, key=lambda n: course(Path(Path(book).stem, f"{n}-1"))["best"]["bits"])


def mean_and_error(values, sign=""):
    if not values:
        return ""
    error = f" ± {statistics.stdev(values) / math.sqrt(len(values)):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.3f}{error}"


COLUMNS = ("", "seeds", "validation", "test", "difference", "left to right", "surest first", "few masks",
           "many masks", "epochs", "TFLOP", "seconds", "n-gram", "twin", "copied")
JUDGED = ("ngram", "twin", "copied")


def line(*cells):
    return "| " + " | ".join(f"{c:.3f}" if isinstance(c, float) else c or "–" for c in cells) + " |"


def table(book, found):
    """Markdown: a line per row of {row: [figures of each seed]}."""
    first = next(iter(found.values()))[0]
    lines = [f"*{Path(book).name}*, {first['test']['bytes']:,} bytes of test text; a four-gram table of the same "
             f"tokens: validation {first['val']['ngram']:.3f}, test {first['test']['ngram']:.3f}", "",
             f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for name, runs in found.items():
        bits = {split: [r[split]["bits_per_byte"] for r in runs if r[split]] for split in ("val", "test")}
        base = found.get(ROWS[name].base, runs)
        away = [] if base is runs else [a - b["test"]["bits_per_byte"] for a, b in zip(bits["test"], base)]
        test, samples = runs[0]["test"], runs[0].get("samples") or {}
        tenths, best = test.get("bits_per_token_by_mask_rate") or ("",), [r["run"]["best"] for r in runs]
        lines.append(line(
            settings(name, book)[1].title, str(len(runs)), mean_and_error(bits["val"]),
            mean_and_error(bits["test"]), mean_and_error(away, "+"), test.get("left_to_right_bits_per_byte"),
            test.get("sampler_order_bits_per_byte"), tenths[0], tenths[-1],
            f"{statistics.mean(b['epoch'] for b in best):.0f}",
            f"{statistics.mean(b['flops'] for b in best) / 1e12:.1f}", f"{runs[0]['run']['seconds']:.0f}",
            *map(samples.get, JUDGED)))
    if human := first.get("book"):
        blank = [" "] * (len(COLUMNS) - len(JUDGED) - 1)
        lines.append(line("the book, held out", *blank, *(human.get(key, math.nan) for key in JUDGED)))
    return "\n".join(lines)


def settings(name, book):
    """(name of a row's runs, its Row): the twin's are those that won, taught with the same settings."""
    if not name.startswith("twin"):
        return name, ROWS[name]
    won = best_twin(book)
    row = TWINS[won.removeprefix("twin-")]._replace(teacher=ROWS[name].teacher)
    if row.teacher:
        return f"{won}-taught", row._replace(title=ROWS[name].title)
    return won, row._replace(title=f"{ROWS[name].title}: {row.title}")


def curves(found, path, dark):
    """The validation bound over floating-point operations and over epochs, mean of the seeds, as SVG."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    plt.style.use("dark_background" if dark else "default")
    plt.rcParams["svg.hashsalt"] = "compare"    # the same figures give the same file
    figure, axes = plt.subplots(len(found), 2, figsize=(10, 3.4 * len(found) + 1), sharey="row",
                                squeeze=False, layout="constrained")
    for (book, lines), pair in zip(found.items(), axes):
        drawn = {name: runs for name, runs in lines.items() if not ROWS[name].preset}   # those are far to the right
        for axis, key, label in zip(pair, ("flops", "epoch"), ("floating-point operations", "epochs")):
            for name, runs in drawn.items():
                points = list(zip(*(r["run"]["points"] for r in runs)))
                x = [statistics.mean(p[key] for p in at) for at in points]
                y = [statistics.mean(p["bits"] for p in at) for at in points]
                axis.plot(x, y, "--" if name.startswith("twin") else "-", color=plt.cm.tab20(list(ROWS).index(name)),
                          label=ROWS[name].title.strip("*"))
            best = min((p["bits"] for runs in drawn.values() for r in runs for p in r["run"]["points"]), default=1.0)
            axis.set(xscale="log", xlabel=label, title=Path(book).stem, ylim=(best - 0.05, best + 0.6))
        pair[0].set_ylabel("validation, bits per byte")
    # those of the book with the most rows name all
    legends = [pair[0].get_legend_handles_labels() for pair in axes]
    handles, labels = max(legends, key=lambda both: len(both[1]))
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9)
    figure.savefig(path, transparent=True, metadata={"Date": None})
    plt.close(figure)


def report(found, file):
    """Print the tables, draw the curves beside `file`, and put the tables between its marks."""
    text = "\n\n".join(table(book, runs) for book, runs in found.items())
    print(text)
    if file:
        begin, end = "<!-- compare.py: begin -->", "<!-- compare.py: end -->"
        before, _, rest = file.read_text(encoding="utf-8").partition(begin)
        if end not in rest:
            fail(f"{file} has no place for the tables: a line {begin} and a line {end}")
        file.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8")
    pictures = file.parent / "pictures" if file else Path()
    pictures.mkdir(exist_ok=True)
    for scheme in ("light", "dark"):
        curves(found, pictures / f"curves_{scheme}.svg", scheme == "dark")


def main():
    configure(globals())
    torch.set_num_threads(1)
    names = rows.split(",") if rows else [name for name in ROWS if not (train_on and ROWS[name].preset)]
    paths = [str(Path(book).resolve()) for book in books]
    if unknown := set(names) - set(ROWS):
        fail(f"rows: there is no {min(unknown)!r}, but {', '.join(ROWS)}")
    file = Path(write).resolve() if write else None
    Path(folder).mkdir(exist_ok=True)
    os.chdir(folder)

    twins = [(f"twin-{key}", TWINS[key]) for key in list(TWINS)[:tunings]] if {"twin", "twintaught"} & {*names} else []
    stages()
    with ThreadPoolExecutor(jobs) as pool:
        for book in paths if train_on else ():
            for flags in {ROWS[name].prepare for name in names}:
                prepared(book, flags)
            list(pool.map(lambda each, book=book: train(book, *each, 1), twins))
        found = {book: {name: [pool.submit(train, book, *settings(name, book), seed)
                               for seed in seeds_of(book, name)]
                        for name in names} for book in paths}
    for book, lines in found.items():
        found[book] = {name: [measure(r.result(), book, seed == 1) for seed, r in enumerate(runs, 1)]
                       for name, runs in lines.items() if runs}
    report(found, file)


if __name__ == "__main__":
    main()
