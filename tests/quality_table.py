"""Is text written in more steps, or in another order, better text? The README's table, judged by a model that did not write it.

    python tests/quality_table.py                 # of out/best.pt and the book prepared for it
    python tests/quality_table.py --texts=64 --judge=out_ar/best.pt

The judge is a Kneser-Ney trigram model of the training text, or a causal twin: its bits per byte of the samples,
lower is likelier text. Entropy (bits per word over all texts) and repetition (share of four-word groups that their
text has had before) stand beside it, for text that says one thing over and over is likely too. The last rows are the
same for held-out text, and for steps chosen by the model.
"""
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import evaluate  # noqa: E402
import sample  # noqa: E402
from configurator import configure, fail  # noqa: E402
from model import Sampling, held_out_bound  # noqa: E402
from prepare import words_of  # noqa: E402

checkpoint = "out/best.pt"      # the model that writes
judge = ""                      # a causal checkpoint of the same book; empty: the trigram model
texts = 32                      # per row
length = 100                    # tokens in each
seed = 1                        # of the first text

ORDER = 3                       # of the n-gram judge
STEPS = (1, 4, 8, 16, 32, 64)


def main():
    configure(globals())
    model, tokenizer, saved = sample.load(checkpoint)
    book = evaluate.open_book(checkpoint, saved)
    if judge:
        twin, _, _ = sample.load(judge)
        if not twin.config.causal or twin.config.vocab_size != model.config.vocab_size:
            fail(f"{judge} is no causal twin of {checkpoint}")
    else:
        ngram = evaluate.NGram(ORDER, model.config.n_text, book.train)

    def figures(rows):
        """Bits per byte under the judge, entropy, repetition of a list of lists of ids."""
        if judge:
            nats = sum(float(held_out_bound(twin, [torch.tensor(row)], 1).per_sequence.sum()) for row in rows)
        else:
            nats = sum(float(ngram.nats(row).sum()) for row in rows)
        words = [words_of(tokenizer.decode(row)) for row in rows]
        size = sum(len(tokenizer.decode_bytes(row)) for row in rows)
        return nats / math.log(2) / size, evaluate.entropy(words), evaluate.repetition(words)

    usual = Sampling()
    canvas = torch.full((length,), model.config.mask_id)
    table, seeds = [], list(range(seed, seed + texts))

    def row(label, **how):
        began, calls, filled = time.perf_counter(), [0] * texts, [canvas] * texts
        for batch, events in sample.batches(model, filled, seeds, how=replace(usual, **how)):
            for step in events:
                for i, revealed in zip(batch, step.revealed.any(1).tolist()):
                    calls[i] += revealed
            for i, tokens in zip(batch, step.tokens):
                filled[i] = tokens[:length]
        seconds = time.perf_counter() - began
        bits, entropy, repetition = figures([f.tolist() for f in filled])
        table.append({"row": label, **how, "calls": sum(calls) / texts, "bits_per_byte": bits, "entropy": entropy,
                      "repetition": repetition, "seconds": seconds})
        print(f"| {label} | {sum(calls) / texts:.0f} | {bits:.2f} | {entropy:.2f} | {repetition:.0%} "
              f"| {seconds / texts:.2f} |", flush=True)

    print(f"judge: {judge or f'Kneser-Ney {ORDER}-gram model of the training text'}; {texts} texts of {length} tokens "
          f"each, temperature {usual.temperature}, top-k {usual.top_k}, top-p {usual.top_p}\n\n"
          "| order, steps | calls | bits/byte | entropy | repetition | s a text |\n|---|---|---|---|---|---|")
    for order in sample.CHOICES["order"]:
        for steps in STEPS:
            row(f"{order}, {steps}", order=order, steps=steps)
    for name, values in ("threshold", (0.5, 0.3, 0.2)), ("entropy_bound", (4.0, 8.0, 16.0)):
        for value in values:
            row(f"margin, up to 64, {name} {value}", order="margin", steps=64, **{name: value})
    row("margin, 64, remask 0.1", order="margin", steps=64, remask=0.1)
    for block in (8, 16, 32):
        row(f"margin, one call a token, blocks of {block}", order="margin", steps=block, block_size=block)
    bits, entropy, repetition = figures([r[:length] for r in book.held_out["test"]])
    print(f"| the book, held out | | {bits:.2f} | {entropy:.2f} | {repetition:.0%} | |")
    print(json.dumps(table), file=sys.stderr)


if __name__ == "__main__":
    main()
