"""Is text written in more steps, in another order or in blocks better text? The README's table of samplers.

    python tests/quality_table.py --judge=out_ar/best.pt      # of out/best.pt and the book prepared for it

Every way of sampling writes at several temperatures. Two judges that did not write give their bits per byte of
the texts, lower is likelier: a Kneser-Ney model of the training text, and a causal twin if one is given. Text
that says one thing over and over is likely too, so each way is judged where its texts are as varied as the book:
figures are interpolated to the temperature at which entropy (bits per word, over all texts) is that of as much
held-out text. A dash: no temperature in the table gets there.
"""
import json
import math
import sys
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import evaluate  # noqa: E402
import sample  # noqa: E402
from configurator import configure, fail  # noqa: E402
from model import Sampling, held_out_bound  # noqa: E402
from prepare import words_of  # noqa: E402

checkpoint = "out/best.pt"      # the model that writes
judge = ""                      # a causal checkpoint of the same book
texts = 24                      # of each way of sampling at each temperature
seed = 1                        # of the first text
only = ""                       # only ways with this in their names
top_p = 1.0                     # of all: below 1 it is another way to lower the entropy

LENGTH = 100                    # tokens of a text
TEMPERATURES = (0.5, 0.65, 0.8, 0.95, 1.1)
EACH = {"steps": LENGTH}        # a call of the network for every token
WAYS = {f"{order}, a call a token": {"order": order} | EACH
        for order in ("margin", "confidence", "entropy", "random")} | {
    f"margin, blocks of {size}": {"block_size": size} | EACH for size in (1, 4, 8, 16, 32)} | {
    f"margin, {steps} steps": {"steps": steps} for steps in (50, 25, 12)} | {
    "margin, blocks of 16, 8 steps in each": {"block_size": 16, "steps": 8},
    "margin, until confidence .5": {"steps": LENGTH, "threshold": 0.5},
    "margin, a tenth taken back": {"steps": LENGTH, "remask": 0.1},
}


class Judges:
    """What an n-gram model of the training text, and a causal twin if there is one, say of texts."""

    def __init__(self, model, tokenizer, source, twin=None):
        self.ngram = evaluate.NGram(evaluate.NGRAM_ORDER, model.config.n_text, source.train)
        self.tokenizer, self.train = tokenizer, list(chain(*source.train))
        self.twin = twin if twin and twin.config.vocab_size == model.config.vocab_size else None
        pieces = chain(*(evaluate.chop(examples, LENGTH) for examples in source.held_out.values()))
        self.book = [ids for ids in pieces if len(ids) > LENGTH // 2]

    def figures(self, written):
        """Of a list of lists of ids: both judges' bits per byte, entropy in bits per word, repetition, the
        share of tokens copied from the training text in runs of eight and more."""
        size = sum(len(self.tokenizer.decode_bytes(ids)) for ids in written) * math.log(2)
        words = [words_of(self.tokenizer.decode(ids)) for ids in written]
        found = {"entropy": evaluate.entropy(words), "repetition": evaluate.repetition(words),
                 "ngram": float(sum(self.ngram.nats(ids).sum() for ids in written)) / size,
                 "copied": evaluate.memorization(written, self.train, self.tokenizer.decode)["copied_share"]}
        if self.twin:
            pieces = evaluate.chop(written, self.twin.config.block_size)
            nats = held_out_bound(self.twin, list(map(torch.tensor, pieces)), 1).per_sequence.sum()
            found["twin"] = float(nats) / size
        return found

    def at_entropy_of_book(self, model, how, seeds):
        """(figures of `how` at the temperature where its texts are as varied as held-out ones, None where none
        is; the figures of those). The temperature is among them."""
        human = self.figures(evaluate.evenly(self.book, len(seeds)))
        canvas, points = torch.full((LENGTH,), model.config.mask_id), []
        for temperature in TEMPERATURES:
            jobs = [sample.Job("", [], canvas, seed) for seed in seeds]
            written = sample.fill(model, None, jobs, replace(how, temperature=temperature))
            points.append({"temperature": temperature} | self.figures([ids.tolist() for ids, *_ in written]))
        points.sort(key=lambda point: point["entropy"])
        entropies = [point["entropy"] for point in points]
        if not entropies[0] <= human["entropy"] <= entropies[-1]:
            return None, human
        return {key: float(np.interp(human["entropy"], entropies, [point[key] for point in points]))
                for key in points[0]}, human


def main():
    configure(globals())
    model, tokenizer, saved = sample.load(checkpoint)
    twin = sample.load(judge)[0] if judge else None
    if twin and not (twin.config.causal and twin.config.vocab_size == model.config.vocab_size):
        fail(f"{judge} is no causal twin of {checkpoint}")
    judges = Judges(model, tokenizer, evaluate.open_book(checkpoint, saved), twin)
    seeds, human = list(range(seed, seed + texts)), None
    print(f"{texts} texts of {LENGTH} tokens each\n\n"
          "| | n-gram, bits/byte | twin, bits/byte | repetition | copied | temperature | s a text |\n"
          "|---|---|---|---|---|---|---|")
    for name, changes in WAYS.items():
        if only in name:
            began = time.perf_counter()
            found, human = judges.at_entropy_of_book(model, replace(Sampling(top_p=top_p), **changes), seeds)
            seconds = (time.perf_counter() - began) / texts / len(TEMPERATURES)
            row(name, found or {}, f"{seconds:.2f}")
            print(json.dumps({"way": name, "found": found}), file=sys.stderr, flush=True)
    if human:
        row("the book, held out", human, "")


def row(name, found, seconds):
    cells = [f"{found[key]:.{digits}f}" if key in found else "–" for key, digits in
             (("ngram", 3), ("twin", 3), ("repetition", 3), ("copied", 3), ("temperature", 2))]
    print(f"| {name} | {' | '.join(cells)} | {seconds} |", flush=True)


if __name__ == "__main__":
    main()
