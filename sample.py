"""Text from a checkpoint: complete a prompt, or write from nothing.

    python sample.py
    python sample.py --prompt="It was on a dreary night" --steps=50 --num_samples=3 --seed=7
    python sample.py --checkpoint=out/best_stage2.pt --output=samples.json

Text goes to stdout, everything else to stderr. evaluate.py and serve.py import load, canvas, texts and generate.
"""
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from configurator import configure, fail
from model import Config, DiffusionModel, Step, denoise, load_model, pad
from prepare import Tokenizer

out_dir = "out"                     # where train.py left its checkpoints
checkpoint = ""                     # a checkpoint's path; empty: best.pt in out_dir
device = ""                         # cpu, cuda, mps; empty: a GPU if there is one
prompt = ""                         # the text to continue; empty: write from nothing
max_tokens = 128                    # how many tokens to write
num_samples = 1                     # texts per prompt, from the seeds seed, seed + 1, ...
seed = 1                            # the same seed and settings give the same text
steps = 25                          # calls of the network per text (per block in a text longer than the model's context)
order = "margin"                    # which positions are decided first: margin, confidence, entropy or random
schedule = "linear"                 # how many per step: linear or cosine (few at first)
threshold: float | None = None      # also decide whatever is likelier than this at once (0.9, say): fewer steps
entropy_bound: float | None = None  # also decide as many as keep their summed entropy within this many nats: fewer steps
temperature = 0.6                   # 0: always the likeliest token; 1: as the model sees it
top_k = 20                          # draw among this many likeliest tokens; 0: all
top_p = 0.85                        # and among those that make up this much probability
repetition_penalty = 1.0            # above 1: tokens already in the text become less likely
remask = 0.0                        # share of the decided tokens that each step takes back and redraws
block_size: int | None = None       # write in blocks of this many tokens, left to right; None: only where the context demands it
output = ""                         # a JSON file to write the results to

SETTINGS = ("steps", "order", "schedule", "threshold", "entropy_bound", "temperature", "top_k", "top_p", "repetition_penalty", "remask", "block_size")
BATCH_TOKENS = 8192                 # positions filled at once


def load(path: str, device: str = "") -> tuple[DiffusionModel, Tokenizer, dict]:
    """(model in eval mode, its tokenizer, the whole checkpoint); device "": a GPU if there is one. User errors end in fail()."""
    device = device or ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        model, checkpoint = load_model(path, "cpu")
        tokenizer = Tokenizer.from_dict(checkpoint["tokenizer"])
    except (FileNotFoundError, ValueError) as error:
        fail(error)
    except (KeyError, TypeError, AttributeError):
        fail(f"{path} holds no tokenizer that this version can read")
    if tokenizer.vocab_size != model.config.vocab_size:
        fail(f"{path}: its tokenizer has {tokenizer.vocab_size} tokens and its model {model.config.vocab_size}")
    try:
        return model.to(device), tokenizer, checkpoint
    except (RuntimeError, AssertionError) as error:
        fail(f"--device={device} cannot be used here: {str(error).splitlines()[0]}")


# ---- text and gaps ---------------------------------------------------------------------------------------------------
# A text to fill is a list of parts: a str is fixed, an int is a gap of that many tokens. A token carries the space before
# its word, so a space that stands before a gap is left to the gap's first token: alone it would be a token that the model
# has hardly ever seen. `texts` puts it back, so that fixed text comes back as it was given.

def canvas(tokenizer: Tokenizer, parts: list[str | int], config: Config) -> Tensor:
    """(T,) int64: the tokens of fixed text, and a [MASK] for each token of a gap. ValueError if a gap is not at least one token."""
    return torch.tensor([i for ids in _tokenize(tokenizer, parts, config.mask_id) for i in ids], dtype=torch.long)


def texts(tokenizer: Tokenizer, parts: list[str | int], row: Tensor) -> list[str]:
    """One str per part of a filled canvas `row` (T,): fixed text exactly as given, a gap as a reader expects it between its neighbours.

    Beside white space, and at either end of the text, a gap loses its own; bytes that do not make up a character are left out.
    """
    result, start = [], 0
    for part, ids in zip(parts, _tokenize(tokenizer, parts, -1)):
        filled = tokenizer.decode_bytes(row[start:start + len(ids)].tolist()).decode("utf-8", errors="ignore")
        result.append(part if isinstance(part, str) else filled)
        start += len(ids)
    for i, part in enumerate(parts):
        if isinstance(part, int):
            before, after = "".join(result[:i]), "".join(p for p in parts[i + 1:i + 2] if isinstance(p, str))
            if not before or before[-1].isspace():
                result[i] = result[i].lstrip()
            if i == len(parts) - 1 or after[:1].isspace():
                result[i] = result[i].rstrip()
    return result


def _tokenize(tokenizer, parts, mask_id):
    """One list of ids per part."""
    for part, after in zip(parts, [*parts[1:], None]):
        if isinstance(part, str):
            yield tokenizer.encode(part.rstrip(" ") if isinstance(after, int) else part)
        elif part >= 1:
            yield [mask_id] * part
        else:
            raise ValueError(f"a gap is at least one token long, not {part}")


# ---- filling ---------------------------------------------------------------------------------------------------------

def stream(model: DiffusionModel, rows: list[Tensor], seeds: list[int], **settings) -> Iterator[tuple[list[int], Step]]:
    """Fill 1-d canvases of any lengths in batches; yield (indices of the batch's rows, Step) for each step of each batch.

    A row's text depends on its seed and the settings (denoise's keyword arguments), not on its batch. Errors as in denoise.
    """
    todo = sorted(range(len(rows)), key=lambda i: len(rows[i]))                     # alike lengths together: little padding
    while todo:
        size = max(1, BATCH_TOKENS // max(1, len(rows[todo[-1]])))
        batch, todo = todo[-size:], todo[:-size]
        for step in denoise(model, pad([rows[i] for i in batch], model.config.pad_id), [seeds[i] for i in batch], **settings):
            yield batch, step


def generate(model: DiffusionModel, rows: list[Tensor], seeds: list[int], **settings) -> list[Tensor]:
    """Fill the [MASK]s of 1-d canvases of any lengths: the filled rows, in order. Settings are denoise's keyword arguments."""
    filled = list(rows)
    for batch, step in stream(model, rows, seeds, **settings):
        for i, tokens in zip(batch, step.tokens):
            filled[i] = tokens[:len(rows[i])]
    return filled


def fill(model, tokenizer, parts, seeds, settings) -> list[dict]:
    """One result per seed, as they stand in --output."""
    row, begun, calls = canvas(tokenizer, parts, model.config), time.perf_counter(), {}
    filled = {}
    for batch, step in stream(model, [row] * len(seeds), seeds, **settings):
        for i, tokens in zip(batch, step.tokens):
            filled[i], calls[i] = tokens[:len(row)], step.step
    seconds = (time.perf_counter() - begun) / len(seeds)
    results = []
    for i, number in enumerate(seeds):
        pieces = texts(tokenizer, parts, filled[i])
        results.append({"prompt": prompt, "text": "".join(pieces), "completion": "".join(p for p, part in zip(pieces, parts) if isinstance(part, int)),
                        "seed": number, "steps": calls[i], "tokens": sum(p for p in parts if isinstance(p, int)), "seconds": round(seconds, 4), "settings": settings})
    return results


def say(message):
    print(message, file=sys.stderr)


def main():
    knobs = configure(globals(), positional="prompt")
    settings = {name: knobs[name] for name in SETTINGS}
    if num_samples < 1 or max_tokens < 1:
        fail("--num_samples and --max_tokens must be at least 1")
    model, tokenizer, _ = load(checkpoint or os.path.join(out_dir, "best.pt"), device)
    try:
        results = fill(model, tokenizer, [prompt, max_tokens], range(seed, seed + num_samples), settings)
    except ValueError as error:
        fail(error)
    for i, result in enumerate(results):
        if num_samples > 1:
            say(f"{'' if i == 0 else chr(10)}seed {result['seed']}:")
        print(result["text"], flush=True)
    tokens, seconds = sum(r["tokens"] for r in results), sum(r["seconds"] for r in results)
    say(f"{tokens} tokens in {seconds:.1f} s ({tokens / max(seconds, 1e-9):.0f} tokens/s), {results[0]['steps']} steps")
    if output:
        Path(output).write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
