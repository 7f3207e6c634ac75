"""The sampler's promises, the text around gaps, and sample.py as its users run it."""
import contextlib
import copy
import dataclasses
import fcntl
import itertools
import json
import math
import os
import pty
import re
import runpy
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import model as m
import sample
from model import Config, DiffusionModel, Sampling
from prepare import Tokenizer, gpt2_encoding

SETTINGS = {f.name for f in dataclasses.fields(Sampling)}


def denoise(net, tokens, seeds, *, bar=None, **how):
    return m.denoise(net, tokens, seeds, Sampling(**how), bar=bar)


def generate(net, rows, seeds, **how):
    jobs = [sample.Job("", [], row, seed) for row, seed in zip(rows, seeds)]
    return [row for row, *_ in sample.fill(net, None, jobs, Sampling(**how))]


SCRIPT = str(Path(sample.__file__))
ROOT = Path(SCRIPT).resolve().parent
WORDS = "The keeper climbed the stair with a cold lamp, lit the wick and waited for “morning” beside the grey window."


def tiny(vocab=60, context=32, causal=False):
    torch.manual_seed(0)
    net = DiffusionModel(Config(vocab, context, 1, 2, 16, causal=causal))
    with torch.no_grad():
        net.embedding.weight.mul_(20)                            # far from uniform
    return net.eval()


NET = tiny()
MASK, N_TEXT = NET.config.mask_id, NET.config.n_text


def row_of(length, masks, seed):
    """A canvas of random tokens, `masks` of them hidden."""
    g = torch.Generator().manual_seed(seed)
    row = torch.randint(0, N_TEXT, (length,), generator=g)
    row[torch.randperm(length, generator=g)[:masks]] = MASK
    return row


canvases = st.integers(1, 32).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n), st.integers(0, 999))).map(lambda a: row_of(*a))
orders, schedules = st.sampled_from(sample.CHOICES["order"]), st.sampled_from(["linear", "cosine"])


# ---- the sampler

@settings(max_examples=60, deadline=None)
@given(canvases, st.integers(1, 40), orders, schedules, st.integers(0, 9))
def test_each_call_of_the_network_decides_and_nothing_else_changes(row, n, order, schedule, seed):
    calls = []
    hook = NET.register_forward_hook(lambda *_: calls.append(1))
    events = list(denoise(NET, row[None], [seed], steps=n, order=order, schedule=schedule))
    hook.remove()
    masks = int((row == MASK).sum())
    assert len(calls) == len(events) == min(n, masks) == events[0].of
    before = row[None]
    for i, event in enumerate(events, 1):
        assert event.step == i and not event.remasked.any()
        assert torch.equal(event.revealed, (before == MASK) & (event.tokens != MASK)) and event.revealed.any()
        assert torch.equal(event.tokens[~event.revealed], before[~event.revealed])
        assert torch.equal(event.draft[before != MASK], before[before != MASK]) and (event.draft < N_TEXT).all()
        assert (event.confidence[0][row != MASK] == 1).all() and (0 < event.confidence).all() and (event.confidence <= 1).all()
        looked = event.chances.sum(2) > 0
        assert torch.equal(looked, before == MASK) and torch.equal(event.choices[looked][:, 0], event.draft[looked])
        before = event.tokens
    assert (before < N_TEXT).all()


@pytest.mark.parametrize("schedule, left", [("linear", [7, 5, 2, 0]), ("cosine", [9, 7, 3, 0])])
def test_masks_left_follow_the_schedule(schedule, left):
    row = torch.full((1, 10), MASK)
    for extra in ({}, {"remask": 0.5}):
        assert [int((e.tokens == MASK).sum()) for e in denoise(NET, row, [3], steps=4, schedule=schedule, **extra)] == left


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 80), st.floats(0, 1)), min_size=2, max_size=5), st.integers(1, 12), orders, schedules,
       st.sampled_from([0.0, 0.3]), st.sampled_from([None, 0.2]), st.sampled_from([None, 1.0]), st.sampled_from([None, 5]), st.sampled_from([1.0, 1.5]))
def test_a_row_does_not_depend_on_its_batch(shapes, n, order, schedule, remask, threshold, bound, block, penalty):
    rows = [row_of(length, int(share * length), i) for i, (length, share) in enumerate(shapes)]
    chosen = {"steps": n, "order": order, "schedule": schedule, "remask": remask, "threshold": threshold, "entropy_bound": bound,
              "block_size": block, "repetition_penalty": penalty}
    net = copy.deepcopy(NET).double()            # in single precision rounding, which padding changes, sometimes tips a choice
    together = generate(net, rows, list(range(len(rows))), **chosen)
    for i, (row, filled) in enumerate(zip(rows, together)):
        assert torch.equal(filled, generate(net, [row], [i], **chosen)[0])
        assert torch.equal(filled[row != MASK], row[row != MASK]) and (filled < N_TEXT).all()


def test_seeds_and_temperature():
    row = torch.full((24,), MASK)
    a, b, c = (generate(NET, [row], [seed], temperature=1.0)[0] for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    a, b = (generate(NET, [row], [seed], temperature=0.0)[0] for seed in (1, 2))
    assert torch.equal(a, b)
    *_, one = denoise(NET, row_of(12, 5, 0)[None], [7], steps=1, temperature=0.0)
    assert torch.equal(one.tokens, one.draft)                    # greedy: the likeliest everywhere
    results = {tuple(generate(NET, [row], [4], steps=n)[0].tolist()) for n in (1, 2, 4, 8, 16)}
    assert len(results) == 5                                     # different numbers of steps matter


def chi_square(observed, p):
    expected = p * observed.sum()
    return float(((observed - expected) ** 2 / expected).sum())


def test_drawn_tokens_follow_the_distribution():
    g = torch.Generator().manual_seed(0)
    p = torch.tensor([0.5, 0.3, 0.15, 0.04, 0.01], dtype=torch.float64)
    log_p, n = p.log().float().expand(100_000, -1), 100_000
    for temperature, top_p, expected in ((1.0, 1.0, p), (0.5, 1.0, p ** 2 / (p ** 2).sum()), (1.0, 0.7, torch.tensor([0.625, 0.375]))):
        noise = m.gumbel((n, 5), g)
        assert noise.dtype == torch.float64
        counts = torch.bincount(m.draw(log_p, temperature, top_p, noise), minlength=5).double()
        assert counts[len(expected):].sum() == 0
        assert chi_square(counts[:len(expected)], expected) < 26  # p = 3e-5 with four degrees of freedom


def test_one_token_a_step_in_random_order_samples_the_models_own_distribution():
    net = tiny(vocab=6, context=4)
    n, mask = 6000, net.config.mask_id
    with torch.no_grad():
        joint = torch.zeros(3, 3)
        for first, second in ((0, 1), (1, 0)):                   # either position first, equally often
            p = net(torch.tensor([[mask, mask]])).softmax(-1)[0]
            for token in range(3):
                row = torch.full((1, 2), mask)
                row[0, first] = token
                q = p[first, token] * net(row).softmax(-1)[0, second] / 2
                joint += torch.zeros(3, 3).index_put_((torch.full((3,), token), torch.arange(3)), q).T if first else torch.zeros(3, 3).index_put_(
                    (torch.full((3,), token), torch.arange(3)), q)
    rows = generate(net, [torch.full((2,), mask)] * n, list(range(n)), steps=2, order="random", temperature=1.0, top_k=0, top_p=1.0)
    counts = torch.zeros(9, dtype=torch.float64)
    for a, b in rows:
        counts[3 * a + b] += 1
    assert chi_square(counts, joint.flatten().double()) < 35     # p = 3e-5 with eight degrees of freedom


def test_top_k_and_bar_limit_what_can_be_drawn():
    row = torch.full((1, 8), MASK)
    for seed in range(5):
        *_, last = denoise(NET, row, [seed], steps=1, temperature=50.0, top_k=2, top_p=1.0)
        assert (last.tokens[:, :, None] == last.choices[:, :, :2]).any(2).all()
    barred = torch.arange(N_TEXT) % 2 == 0
    where = torch.arange(8)[None] < 4
    *_, last = denoise(NET, row, [0], temperature=5.0, order="entropy", bar=(where, barred))
    assert (last.tokens[where] % 2 == 1).all() and (last.tokens[~where] % 2 == 0).any()


def test_adaptive_runs_are_shorter_and_never_longer():
    row = torch.full((1, 30), MASK)

    def calls(**how):
        return len(list(denoise(NET, row, [1], steps=15, **how)))
    assert calls() == calls(threshold=1.0) == calls(entropy_bound=0.0) == 15
    assert calls(threshold=0.0) == calls(entropy_bound=1e9) == 1
    assert 1 < calls(threshold=0.2) < 15 and 1 < calls(entropy_bound=8.0) < 15
    for event in denoise(NET, row, [1], steps=15, order="random", threshold=0.2):
        undecided = (event.chances[0, :, 0] > 0) & ~event.revealed[0]
        assert event.revealed.any() and undecided.sum() == (event.tokens == MASK).sum()


def test_tokens_taken_back_are_drawn_again():
    row, taken, redrawn = row_of(32, 28, 1)[None], 0, 0
    before = row
    for event in denoise(NET, row, [5], steps=14, remask=0.3, temperature=1.0):
        assert not (event.remasked & (row != MASK)).any() and not (event.remasked & event.revealed).any()
        assert (before[event.remasked] != MASK).all() and (event.tokens[event.remasked] == MASK).all()
        taken, redrawn, before = taken + int(event.remasked.sum()), redrawn + int(event.revealed.sum()), event.tokens
    assert taken > 10 and redrawn == 28 + taken and (before < N_TEXT).all()


def test_tokens_in_the_text_are_penalised():
    logits, tokens = torch.tensor([[2.0, -2.0, 1.0], [2.0, -2.0, 1.0]]), torch.tensor([[0, 1, 3], [2, 3, 3]])
    assert m.penalise(logits, torch.tensor([0, 1]), tokens, 2.0).tolist() == [[1.0, -4.0, 1.0], [2.0, -2.0, 0.5]]


def test_blocks_of_a_long_text():
    masked = torch.zeros(100, dtype=torch.bool)
    masked[10:95] = True                                         # (start, stop, left edge of the context, masks)
    assert m.plan_blocks(masked, 32, None) == [(10, 26, 0, 16), (26, 42, 10, 16), (42, 58, 26, 16), (58, 74, 42, 16), (74, 90, 66, 16), (90, 106, 68, 5)]
    assert m.plan_blocks(masked[:20], 32, None) == [(10, 30, 0, 10)]
    assert m.plan_blocks(masked[:20], 32, 4) == [(10, 14, 0, 4), (14, 18, 0, 4), (18, 22, 0, 2)]
    assert m.plan_blocks(masked[:10], 32, 4) == []


def test_long_texts_are_written_from_left_to_right():
    row = torch.full((1, 150), MASK)
    edge = 0
    events = list(denoise(NET, row, [1], steps=4))
    assert len(events) == events[0].of == 4 * math.ceil(150 / 16) - 0
    for event in events:
        where = event.revealed[0].nonzero()[:, 0]
        assert where.min() // 16 >= edge
        edge = where.min() // 16
    assert (events[-1].tokens < N_TEXT).all()


def test_the_causal_twin_writes_left_to_right():
    net = tiny(causal=True)
    row = torch.full((1, 40), MASK)
    row[0, 5] = 7
    *_, last = events = list(denoise(net, row, [0], temperature=0.0, steps=3, threshold=0.1, remask=0.4))
    assert [e.revealed[0].nonzero()[:, 0].tolist() for e in events] == [[i] for i in range(40) if i != 5]
    with torch.no_grad():
        assert all(net(last.tokens[:, :i + 1])[0, i].argmax() == last.tokens[0, i] for i in range(32) if i != 5)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"repetition_penalty": 0.0}, {"remask": 1.0},
                                   {"order": "best"}, {"schedule": "flat"}, {"block_size": 0}, {"block_size": 33}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong)))):
        next(denoise(NET, torch.full((1, 4), MASK), [0], **wrong))
    with pytest.raises(ValueError, match="seed"):
        next(denoise(NET, torch.full((1, 4), MASK), [-1]))


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 6), steps=st.integers(1, 8), seed=st.integers(0, 1000))
def test_without_its_other_settings_it_is_the_plain_sampler(length, steps, seed):
    """Step for step the same where nothing is left to chance, and margins differ by more than the 1e-4 within which chance decides."""
    sure = copy.deepcopy(NET)
    sure.embedding.weight.data *= 8
    row = torch.randint(MASK, (20,), generator=torch.Generator().manual_seed(seed))
    row[torch.randperm(20, generator=torch.Generator().manual_seed(seed))[:length]] = MASK
    plain = list(m.plain_denoise(sure, row, steps, 0.0, torch.Generator()))
    full = list(denoise(sure, row[None], [seed], steps=steps, temperature=0.0, top_k=0, top_p=1.0))
    for event in full:
        margins = (event.chances[0, :, 0] - event.chances[0, :, 1])[event.chances[0, :, 0] > 0].sort().values
        assume(bool((margins.diff() > 2e-4).all()))
    assert len(plain) == len(full) and all(torch.equal(a, b.tokens[0]) for a, b in zip(plain, full))


def test_the_plain_sampler_draws_like_the_full_one():
    """One mask, temperature 1: the frequencies of what either draws are the model's probabilities."""
    row = torch.full((6,), 3)
    row[2] = MASK
    p = NET(row[None], (row == MASK)[None])[0].softmax(0)
    generator, n = torch.Generator().manual_seed(0), 3000
    plain = torch.stack([next(m.plain_denoise(NET, row, 1, 1.0, generator))[2] for _ in range(n)])
    full = torch.stack([f[2] for f in generate(NET, [row] * n, list(range(n)), steps=1, temperature=1.0, top_k=0, top_p=1.0)])
    for drawn in (plain, full):
        share = torch.bincount(drawn, minlength=len(p)) / n
        assert (share - p).abs().max() < 5 * (p * (1 - p) / n).sqrt().max() + 1e-3


# ---- text and gaps

@pytest.fixture(scope="module")
def tokenizer():
    encoding = gpt2_encoding()
    kept = {encoding.decode_single_token_bytes(i) for i in encoding.encode_ordinary(f"{WORDS} {WORDS}\n\n, and . ; the sea of a was!")}
    return Tokenizer("gpt2", sorted({bytes([b]) for b in range(256)} | kept))


def test_templates_are_parsed():
    assert sample.parse_template("The ____ of the sea was ____(12) and cold.") == ["The ", None, " of the sea was ", 12, " and cold."]
    assert sample.parse_template("____") == [None]
    assert sample.parse_template("a_b ____(3)____(x)") == ["a_b ", 3, None, "(x)"]
    assert sample.parse_template("no gap") == ["no gap"]


pieces = st.one_of(st.text(st.sampled_from("ab ’“—é\n海_"), max_size=8), st.integers(1, 4))


@settings(max_examples=150, deadline=None)
@given(parts=st.lists(pieces, min_size=1, max_size=6), seed=st.integers(0, 10**6))
def test_fixed_text_comes_back_as_it_was_given(tokenizer, parts, seed):
    config = Config(tokenizer.vocab_size, 64, 1, 2, 16)
    row = sample.canvas(tokenizer, parts, config)
    hidden = row == config.mask_id
    assert hidden.sum() == sum(part for part in parts if isinstance(part, int))
    [starts], _ = sample.word_bar(tokenizer, [parts])
    assert starts.shape == row.shape and not (starts & ~hidden).any()
    row[hidden] = torch.randint(0, config.n_text, (int(hidden.sum()),), generator=torch.Generator().manual_seed(seed))
    got = sample.texts(tokenizer, parts, row)
    assert len(got) == len(parts) and all(text == part for text, part in zip(got, parts) if isinstance(part, str))
    for i, (text, part) in enumerate(zip(got, parts)):
        if isinstance(part, int):
            assert "\ufffd" not in text and all(c == "\n" or c.isprintable() or ord(c) > 159 for c in text)
            assert not (text[:1].isspace() and not "".join(got[:i]).strip())


@pytest.mark.parametrize("parts, filling, expected", [
    (["", 3], " The keeper climbed", "The keeper climbed"),
    (["The keeper ", 2], " climbed the", "The keeper climbed the"),
    (["The keeper", 1], ",", "The keeper,"),
    (["The ", 1, " of the sea"], " keeper", "The keeper of the sea"),
    (["lit.\n\n", 2], " The keeper", "lit.\n\nThe keeper"),
    (["The", 2, " lamp"], " cold\n", "The cold lamp"),
    (["waited for “", 1, "”"], "morning", "waited for “morning”"),
    ([2, "!"], " The lamp", "The lamp!"),
])
def test_spaces_around_gaps_are_a_readers(tokenizer, parts, filling, expected):
    config = Config(tokenizer.vocab_size, 64, 1, 2, 16)
    row = sample.canvas(tokenizer, parts, config)
    hidden, ids = row == config.mask_id, tokenizer.encode(filling)
    assert len(ids) == int(hidden.sum()), [tokenizer.tokens[i] for i in ids]
    assert b" " not in [tokenizer.tokens[i] for i in row[~hidden]]                # no space stands alone
    row[hidden] = torch.tensor(ids)
    assert "".join(sample.texts(tokenizer, parts, row)) == expected


def test_half_characters_and_control_characters_are_left_out(tokenizer):
    row = sample.canvas(tokenizer, ["a", 4], Config(tokenizer.vocab_size, 64, 1, 2, 16))
    row[1:] = torch.tensor([tokenizer.tokens.index(b) for b in (b"\x1b", b"\xe2", b"b", b"\xc3")])
    assert sample.texts(tokenizer, ["a", 4], row) == ["a", "b"]


# ---- the program

@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A model that knows one sentence by heart, in out/best.pt."""
    ids = torch.tensor(tokenizer.encode(WORDS))
    torch.manual_seed(0)
    net = DiffusionModel(Config(tokenizer.vocab_size, 64, 2, 2, 64))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 400)
        batch = ids.expand(8, -1)
        m.weighted_loss(net, batch, m.draw_masks(batch, net.config), net.config).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()
    path = tmp_path_factory.mktemp("sample")
    (path / "out").mkdir()
    torch.save(m.checkpoint_of(net, tokenizer.to_dict()), path / "out/best.pt")
    return path


@pytest.fixture
def run(folder, monkeypatch, capfd):
    """Run sample.py in `folder`, in this process: (exit status, stdout, stderr)."""
    def run(*arguments, stdin=""):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [SCRIPT, *arguments])
        status = 0
        try:
            runpy.run_path(SCRIPT, run_name="__main__")
        except SystemExit as end:
            status = end.code
        return status, *capfd.readouterr()
    return run


def test_text_to_stdout_and_all_else_to_stderr(folder):
    done = subprocess.run([sys.executable, SCRIPT, "The keeper ", "--max_tokens=6", "--temperature=0", "--output=a.json"], cwd=folder, capture_output=True, text=True)
    [result] = json.loads((folder / "a.json").read_text(encoding="utf-8"))
    assert done.returncode == 0 and done.stdout == result["text"] + "\n" and "tokens/s" in done.stderr
    assert list(result) == ["prompt", "text", "completion", "seed", "steps", "tokens", "seconds", "settings"]
    assert result["prompt"] == "The keeper " and result["text"] == "The keeper " + result["completion"] and result["tokens"] == result["steps"] == 6
    assert result["settings"]["temperature"] == 0 and set(result["settings"]) == SETTINGS


def test_a_shared_model_is_the_same_model(run, folder):
    evaluation = {"checkpoint": "out/best.pt", "split": "test", "likelihood": {"bits_per_byte": 1.25}, "baselines": {"ngram_bits_per_byte": 1.5},
                  "memorization": {"generated": {"copied_share": 0.04}}}
    (folder / "out/evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    status, out, err = run("--save_model=shared")
    assert (status, out) == (0, "") and "1.250" in err
    assert {path.name for path in (folder / "shared").iterdir()} == {"model.safetensors", "config.json", "tokenizer.json", "README.md"}
    assert "1.250" in (folder / "shared/README.md").read_text(encoding="utf-8") and b"pickle" not in (folder / "shared/model.safetensors").read_bytes()
    assert run("The keeper", "--max_tokens=6", "--checkpoint=shared")[1] == run("The keeper", "--max_tokens=6")[1]
    (folder / "shared/model.safetensors").write_bytes(b"torn")
    status, _, err = run("The keeper", "--checkpoint=shared")
    assert status == 2 and "shared is torn" in err and len(err.splitlines()) == 1
    (folder / "out/evaluation.json").unlink()


def test_what_is_no_tokenizer_is_refused(run, folder):
    saved = torch.load(folder / "out/best.pt", weights_only=True)
    for other in (torch.zeros(3), [], 1, None, {"kind": "book"}, {"kind": "book", "tokens": torch.zeros(9)}, {"kind": "book", "tokens": ["€"] * 9}):
        torch.save(saved | {"tokenizer": other}, folder / "odd.pt")
        status, _, err = run("The keeper", "--checkpoint=odd.pt")
        assert status == 2 and len(err.splitlines()) == 1, err


def test_gaps_are_filled_with_what_was_learnt(run):
    status, out, _ = run("--template=The keeper climbed the ____(1) with a ____(2), lit the wick and waited for “____(1)” beside the grey window.", "--temperature=0")
    assert (status, out.strip()) == (0, WORDS)
    status, out, _ = run(f"--prompt={WORDS[:22]}", f"--suffix={WORDS[35:]}", "--max_tokens=3", "--temperature=0")
    assert (status, out.strip()) == (0, WORDS)


def test_the_length_of_a_gap_is_found(run):
    status, out, _ = run("--template=The keeper climbed the ____ a cold lamp, lit the wick and waited for “morning” beside the grey window.", "--gap_lengths=[1,2,4,6]")
    assert (status, out.strip()) == (0, WORDS)


@pytest.mark.parametrize("prompt", ["", " ", "\n\n", "Zyzzyva’s 海 \U0001f600", "word " * 100, "[MASK]", "a  b   "])
def test_any_prompt_is_continued(run, prompt):
    status, out, err = run(f"--prompt={prompt}", "--max_tokens=8", "--steps=3")
    assert status == 0 and out.startswith(prompt) and "Traceback" not in err


def test_batch_writes_results_as_they_come_and_in_order(run, folder):
    (folder / "prompts.txt").write_text("The keeper\n\nlit ____(2) and\nThe lamp\n", encoding="utf-8")
    status, out, _ = run("--batch=prompts.txt", "--output=b.json", "--num_samples=2", "--max_tokens=5")
    results = json.loads((folder / "b.json").read_text(encoding="utf-8"))
    assert status == 0 and [r["prompt"] for r in results] == [p for p in ("The keeper", "lit ____(2) and", "The lamp") for _ in range(2)]
    assert [r["seed"] for r in results] == [1, 2] * 3 and out.splitlines()[0] == results[0]["text"].splitlines()[0]


def test_benchmark_is_a_table_that_fits_fifty_columns(run):
    status, out, _ = run("--benchmark", "--max_tokens=10")
    lines = out.strip().splitlines()
    rows = [line.split() for line in lines]
    assert status == 0 and rows[0] == ["order", "steps", "calls", "ms/call", "tokens/s"] and len(rows) == 17
    assert [row[:3] for row in rows[1:4]] == [["margin", "8", "8"], ["margin", "25", "10"], ["margin", "64", "10"]]
    assert rows[13][0] == "threshold=0.9" and all(len(row) == 5 for row in rows) and max(map(len, lines)) <= 50


@pytest.mark.parametrize("arguments, message", [
    (["--checkpoint=none.pt"], "none.pt"), (["--tempereture=1"], "temperature"), (["--temperature=hot"], "float"), (["--steps=0"], "steps"),
    (["--template=no gap"], "____"), (["--template=a ____(0)"], "gap"), (["--template=____", "--prompt=a"], "--template"), (["--num_samples=0"], "num_samples"),
    (["--batch=none.txt"], "none.txt"), (["--output=none/a.json"], "none/a.json"), (["--save_animation=a.mp4"], ".gif"), (["--seed=-1"], "seed"),
    (["--device=abacus"], "abacus"), (["--prompt=\udcff"], "UTF-8"), (["--gap_lengths=[0]"], "gap_lengths"), (["--benchmark", "--interactive"], "one of"),
])
def test_user_errors_end_in_one_line(run, arguments, message):
    status, out, err = run(*arguments)
    assert status == 2 and out == "" and message in err and len(err.splitlines()) == 1


def converse(folder, lines, *arguments):
    done = subprocess.run([sys.executable, SCRIPT, "--interactive", "--max_tokens=8", *arguments], cwd=folder, input="\n".join(lines) + "\n", capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    return done.stdout.splitlines(), done.stderr


def test_a_conversation(folder):
    out, err = converse(folder, ["/again", "The keeper climbed ____(3) with a", "/remask 2-3", "/undo", "/set temperature warm", "/set nonsense 1", "/set order random",
                                 "/show", "/save kept.txt", "/save kept.json", "/remask 9", "/what", "/seed 5", "____(2) lamp", "/help"])
    assert len(out) == 4 and out[0] == out[2] and out[0].startswith("The keeper climbed ") and out[1].startswith(" ".join(out[0].split()[:4]))
    assert out[3].endswith(" lamp") and (folder / "kept.txt").read_text().strip() == out[0] == json.loads((folder / "kept.json").read_text())[0]["text"]
    for words in ("there is no text yet", "wants float, got 'warm'", "/set takes a knob", "order = 'random'", "1:", "a span of the 3 tokens",
                  "there is no /what", "/undo", "saved in kept.txt", "saved in kept.json", "seed = 5"):
        assert words in err
    assert err.count("order = ") == 2 and err.count("seed = ") == 2          # once when it is set, once in /show; no less, no more


def test_a_value_that_cannot_be_is_not_kept(folder):
    _, err = converse(folder, ["/set temperature 0.3", "/set temperature -1", "/set order best", "/set max_tokens 0", "/show"])
    assert "--max_tokens lies in [1, 1000000]" in err and "max_tokens = 0" not in err
    assert "temperature is a number from 0" in err and "order is one of" in err
    assert err.count("temperature = 0.3") == 2 and "order = 'margin'" in err


def test_ctrl_c_stops_the_text_and_not_the_program(folder):
    program = subprocess.Popen([sys.executable, "-u", SCRIPT, "--interactive", "--max_tokens=20000"], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    assert "Type" in program.stderr.readline()
    program.stdin.write("The keeper\n")
    program.stdin.flush()
    time.sleep(1.0)
    os.kill(program.pid, signal.SIGINT)
    assert program.stderr.readline() == "stopped\n"
    out, err = program.communicate("____(2) lamp\n/quit\n", timeout=60)
    assert program.returncode == 0 and out.strip().endswith("lamp") and "Traceback" not in err


def test_completion_of_commands_knobs_and_values():
    assert sample.options("/r") == list(sample.COMMANDS) and "temperature" in sample.options("/set te")
    assert sample.options("/set order m") == ["margin", "confidence", "entropy", "random"] and sample.options("The /r") == []


def test_every_promise_of_the_help_is_kept(run):
    status, out, _ = run("--help")
    knobs = [line.split("=")[0].strip()[2:] for line in out.splitlines() if line.startswith("  --")]
    source = Path(SCRIPT).read_text(encoding="utf-8")
    assert status == 0 and SETTINGS <= set(knobs)
    body = source[source.index("\ndef "):]
    assert all(knob in SETTINGS or knob in body for knob in knobs)          # no knob that nothing reads
    assert len(set(itertools.chain(knobs))) == len(knobs)


# ---- the terminal

def record(folder, *arguments, columns=72, lines=20, **environment):
    """sample.py on a real pseudo-terminal, its stdout elsewhere: (bytes that reached the terminal, stdout, exit status)."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    without = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR")}
    program = subprocess.Popen([sys.executable, SCRIPT, *arguments], cwd=folder, stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, env=without | {"TERM": "xterm-256color"} | environment)
    os.close(theirs)
    received = b""
    with contextlib.suppress(OSError):                           # how a pseudo-terminal says that its other side is gone
        while chunk := os.read(ours, 65536):
            received += chunk
    os.close(ours)
    return received, program.communicate()[0].decode(), program.returncode


def screens(received):
    """What was on the screen each time before it was redrawn: lists of lines. Knows the escape codes that rich's Live uses."""
    screen, x, y, kept = [""], 0, 0, []
    for code, text in re.findall(r"(\x1b\[[?\d;]*[a-zA-Z]|[\r\n])|([^\x1b\r\n]+)", received.decode()):
        if text:
            screen[y] = screen[y][:x].ljust(x) + text + screen[y][x + len(text):]
            x += len(text)
        elif code == "\r":
            x = 0
        elif code == "\n":
            y += 1
            screen += [""] * (y + 1 - len(screen))
        elif code[-1] == "A":
            y -= int(code[2:-1] or 1)
        elif code[-1] == "K":
            if screen[y] and y == len(screen) - 1:
                kept.append([line.rstrip() for line in screen])
            screen[y] = ""
        else:
            assert code[-1] in "mhl", f"an escape code that this terminal does not know: {code!r}"
        assert y >= 0
    return kept, [line for line in screen if line.strip()]


def talk(folder, *arguments, typed, columns=60):
    """sample.py with stdin, stdout and stderr on one pseudo-terminal: what appears there when `typed` is typed."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 20, columns, 0, 0))
    without = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR")}
    program = subprocess.Popen([sys.executable, SCRIPT, *arguments], cwd=folder, stdin=theirs, stderr=theirs, stdout=theirs,
                               env=without | {"TERM": "xterm-256color"})
    os.close(theirs)
    received = os.read(ours, 11)
    with contextlib.suppress(OSError):
        while chunk := os.read(ours, 65536):
            received += chunk
            if typed and b"> " in received:
                os.write(ours, typed.encode())
                typed = ""
    os.close(ours)
    return received.decode(), program.wait()


def test_a_conversation_at_a_terminal(folder):
    """Says at once that it loads; moves and has colour without being asked; breaks text between words."""
    received, status = talk(folder, "--interactive", "--speed=50", "--max_tokens=40", "--steps=25", typed="The keeper climbed\n/seed 7\n/quit\n")
    assert status == 0 and received.startswith("loading ...")
    assert "step 5/25" in received and re.search(r"\x1b\[1;34m.*> ", received) and "seed = 7" in received
    text = received[received.rindex("\x1b[1mThe keeper climbed"):received.index("seed = 7")]
    lines = [re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", line).rstrip() for line in text.split("\n")]
    once = " ".join(lines)
    assert all(len(line) <= 60 for line in lines)
    for left, right in itertools.pairwise(lines):
        if right and left and not left.startswith(">") and not right.startswith(">"):
            assert len(left) + 1 + len(right.split()[0]) > 60 or not right[0].isalpha(), once      # a line ends where no word fits


def test_a_batch_shows_how_far_it_is_and_prints_what_is_done(folder):
    (folder / "many.txt").write_text("The keeper\n" * 9, encoding="utf-8")
    received, out, status = record(folder, "--batch=many.txt", "--max_tokens=300", "--steps=40", columns=100)
    shown = received.decode()
    percents = {int(p) for p in re.findall(r"(\d+)%", shown)}
    assert status == 0 and out.count("The keeper") >= 9 and shown.count("seed 1:") == 9
    assert len(percents - {0, 100}) > 3 and re.search(r"[1-8]/9 texts", shown)           # it moves within a batch, and ends batch by batch


def test_a_reader_who_stops_early_is_no_error(folder):
    program = subprocess.Popen([sys.executable, SCRIPT, "--num_samples=3", "--max_tokens=20"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    program.stdout.close()
    err = program.stderr.read()
    assert program.wait() == 0 and "Traceback" not in err and "Broken" not in err and "Exception" not in err


def test_animations_are_saved(folder, run):
    from PIL import Image
    status, out, _ = run("The keeper", "--max_tokens=10", "--steps=4", "--save_animation=a.gif")
    with Image.open(folder / "a.gif") as gif:
        frames, durations = gif.n_frames, []
        for i in range(frames):
            gif.seek(i)
            durations.append(gif.info["duration"])
    assert status == 0 and frames == 5 + 3 and durations[-1] == 4000 and max(durations[:-1]) == 200
    status, out, _ = run("The keeper", "--max_tokens=10", "--steps=4", "--save_animation=a.html")
    page = (folder / "a.html").read_text(encoding="utf-8")
    frames = json.loads(re.search(r'id="frames">(.*?)</script>', page)[1])
    assert status == 0 and len(frames) == 5 and "INTERVAL" not in page
    assert "".join(cell for cell, _ in frames[-1]).strip() == out.strip()


def test_the_gif_looks_like_the_page(folder, run):
    from PIL import Image, ImageColor
    css = (ROOT / "page.css").read_text(encoding="utf-8")
    paper, mark, fresh = (ImageColor.getrgb(re.findall(rf"--{name}: (#\w+)", css)[-1]) for name in ("paper", "mark", "new"))
    _, out, err = run("The keeper", "--max_tokens=100", "--steps=20", "--save_animation=b.gif")
    pictures = []
    with Image.open(folder / "b.gif") as gif:
        for i in range(gif.n_frames):
            gif.seek(i)
            pictures.append(gif.convert("RGB"))
    colours = [dict((colour, n) for n, colour in picture.getcolors(10**6)) for picture in pictures]
    assert all(max(found, key=found.get) == paper for found in colours) and (folder / "b.gif").stat().st_size < 10**6
    glowing = [fresh in found for found in colours]
    assert sum(glowing) > 0.9 * len(glowing) and not glowing[0] and not glowing[-1]             # what is decided glows, be it not a mere stop; and all has settled in the end
    assert colours[0][mark] > 1000 > colours[-6].get(mark, 0) and mark not in colours[-1]
    rows = np.array(pictures[0]) == mark
    masks = np.diff(rows.all(2).astype(int), axis=1).clip(0).sum() / 2                       # 2 px high
    assert 40 < len(out.split()) - 2 <= masks <= 100                                         # apart: one for each word to come, or more
    corners = [picture.crop((620, picture.height - 40, 840, picture.height)).tobytes() for picture in pictures]
    assert len(set(corners)) == 1 + int(re.search(r"(\d+) steps", err)[1])                    # a counter of steps


def test_a_recording_of_the_animation(folder):
    columns = 72
    received, out, status = record(folder, f"--prompt={WORDS[:22]}", "--max_tokens=20", "--steps=10", "--animate", "--speed=20", "--temperature=0", columns=columns)
    shown, after = screens(received)
    recording = ROOT / "tests/recordings"
    recording.mkdir(exist_ok=True)
    (recording / "animation.txt").write_text("\n\n".join("\n".join(lines) for lines in shown) + "\n", encoding="utf-8")
    assert status == 0 and out.startswith(WORDS[:22])
    masks = ["\n".join(lines[:-2]).count("▓") + "\n".join(lines[:-2]).count("▒") + "\n".join(lines[:-2]).count("░") for lines in shown]
    steps = [int(re.search(r"step (\d+)/10", "\n".join(lines))[1]) for lines in shown]
    assert steps == sorted(steps) and steps[0] == 0 and steps[-1] == 10 and set(range(11)) == set(steps)
    assert masks[0] > 40 and masks[-1] == 0 and all(lines[0].startswith(WORDS[:22]) for lines in shown)
    assert all("tokens/s" in "\n".join(lines) and "just revealed" in "\n".join(lines) for lines in shown)
    assert " ".join(" ".join(shown[-1][:-3]).split()) == " ".join(out.split())           # the last picture is the text
    assert len(after) == 1 and "tokens/s" in after[0]                                     # and leaves only the line of figures behind


@pytest.mark.parametrize("columns, lines", [(30, 8), (200, 50), (72, 6)])
def test_the_animation_fits_its_window(folder, columns, lines):
    received, _, status = record(folder, "The keeper", "--max_tokens=60", "--steps=6", "--animate", "--speed=50", columns=columns, lines=lines)
    shown, _ = screens(received)
    assert status == 0 and len(shown) > 5 and all(len(frame) <= lines and max(map(len, frame)) <= columns for frame in shown)


def test_colour_and_movement_are_left_out_where_they_are_not_wanted(folder):
    arguments = ("The keeper", "--max_tokens=8", "--steps=4", "--animate", "--speed=50")
    assert "no terminal" in subprocess.run([sys.executable, SCRIPT, *arguments], cwd=folder, capture_output=True, text=True).stderr
    coloured, *_ = record(folder, *arguments)
    plain, *_ = record(folder, *arguments, NO_COLOR="1")
    dumb, *_ = record(folder, *arguments, TERM="dumb")
    colour = re.compile(rb"\x1b\[[\d;]*\b(3[0-7]|38|9[0-7])\b[\d;]*m")
    assert colour.search(coloured) and not colour.search(plain) and b"\x1b[1" in plain and b"\x1b" not in dumb
