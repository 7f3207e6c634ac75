"""What each part of the demo is worth: the same run without it, from several seeds. The README's table.

    python tests/ablation.py                                  # the demo on book.txt: 27 runs of four minutes
    python tests/ablation.py --book=frankenstein.txt --scale=0.5 --seeds=2

Runs from one seed begin with the same draws, so differences are taken pair by pair; beside each stands its
standard error over the seeds. Results are kept in `folder`, and a run that is there is not done again.
"""
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import train as train_script  # noqa: E402
from configurator import configure, fail, write_json  # noqa: E402
from model import held_out_bound, load_model, parts  # noqa: E402

book = str(ROOT / "book.txt")       # the book
config = str(ROOT / "config/demo.py")   # the run
seeds = 3                           # of each change
scale = 1.0                         # of the stages' lengths: shorter runs tell less
only = ""                           # only changes whose name has this in it
folder = "ablation"                 # of data and results

MASKS = 2000                        # sequences times masks behind each figure
WHOLE = "the demo"
EACH = "each stage's "              # a change of a key in all stages
CHANGES = {                         # name: (prepare's flags, train's flags)
    WHOLE: ([], []),
    "GPT-2's tokens": (["--tokenizer=gpt2"], []),
    "no convolution": ([], ["--conv=0"]),
    "embedding from chance": ([], ["--embedding_init=normal"]),
    "no curriculum: all text, all rates": ([], [EACH + "data=stage3", EACH + "mask_rate=[0.0, 1.0]"]),
    "the table's windows in its order": ([], ["--stages[0].mask_rate=[0.75, 0.9]",
                                              "--stages[1].mask_rate=[0.4, 0.6]"]),
    "no dropout": ([], ["--dropout=0.0"]),
    "the twin": ([], ["--causal=True"]),
}


def run(script, *flags):
    command = [sys.executable, str(ROOT / script), *flags]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        fail(f"{script} {' '.join(flags)} failed: {done.stderr.strip().splitlines()[-1]}")


def bits_per_byte(checkpoint, data, split):
    """Of a held-out split, from MASKS masks or more."""
    net, saved = load_model(checkpoint)
    tokens = np.fromfile(f"{data}/{split}.bin", "<u2").astype(np.int64)
    offsets = np.fromfile(f"{data}/{split}.idx", "<i8").tolist()
    rows = [torch.from_numpy(tokens[a:b]) for start, stop in zip(offsets[:-1], offsets[1:])
            for a, b in parts(start, stop, net.config.block_size)]
    sizes = [len(token.encode("latin-1")) for token in saved["tokenizer"]["tokens"]]
    nats = held_out_bound(net, rows, math.ceil(MASKS / len(rows))).per_sequence.sum()
    return float(nats) / math.log(2) / sum(sizes[t] for t in tokens)


def train(stages, name, prepare_flags, train_flags, seed):
    """One run's figures: from its folder if it was done before."""
    out = Path(folder) / f"{name} {seed}"
    if not (out / "result.json").exists():
        data = Path(folder) / "data" / (Path(book).stem + "".join(prepare_flags).replace("--", "-"))
        if not data.exists():
            source = Path(folder) / f"{data.name}.txt"
            source.write_bytes(Path(book).read_bytes())
            run("prepare.py", source.name, *prepare_flags)
        lengths = [max(1, round(scale * stage["max_steps"])) for stage in stages]
        flags = [f"--stages[{i}].max_steps={length}" for i, length in enumerate(lengths)]
        for flag in train_flags:
            each = flag.startswith(EACH)
            flags += [f"--stages[{i}].{flag[len(EACH):]}" for i in range(len(stages))] if each else [flag]
        run("train.py", config, f"--dataset={data.name}", f"--out_dir={out.name}", f"--seed={seed}", *flags)
        last = json.loads((out / "curriculum_results.json").read_text())
        figures = {split: bits_per_byte(str(out / "best.pt"), data, split) for split in ("val", "test")}
        write_json(str(out / "result.json"), figures | {"seconds": sum(stage["seconds"] for stage in last)})
    return json.loads((out / "result.json").read_text())


def with_error(values):
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):+.3f} ± {error:.3f}"


def main():
    configure(globals())
    Path(folder).mkdir(exist_ok=True)
    sys.argv = ["train.py", config]
    stages = configure(vars(train_script))["stages"]
    whole = [train(stages, WHOLE, *CHANGES[WHOLE], seed) for seed in range(1, seeds + 1)]
    print("| | validation | test | seconds |\n|---|---|---|---|")
    for name, flags in CHANGES.items():
        if only in name or name == WHOLE:
            found = [train(stages, name, *flags, seed) for seed in range(1, seeds + 1)]
            seconds = statistics.mean(result["seconds"] for result in found)
            cells = []
            for split in ("val", "test"):
                values = [a[split] - (b[split] if name != WHOLE else 0) for a, b in zip(found, whole)]
                cells.append(with_error(values).lstrip("+") if name == WHOLE else with_error(values))
            print(f"| {name} | {cells[0]} | {cells[1]} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
