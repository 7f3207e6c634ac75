"""Every metric against values worked by hand, the controls of the style check, and evaluate.py as its users run it."""
import dataclasses
import json
import math
import os
import random
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model import exact_bound, tiny

import evaluate as e
import model as m
import sample
from configurator import read_stream
from prepare import Tokenizer, clean

ROOT = Path(e.__file__).resolve().parent
LN2 = math.log(2)


def books():
    """The repository's book, and others where they are at hand."""
    folders = [Path(folder) for folder in (os.environ.get("BOOKS"), ROOT.parent / "shared/books") if folder]
    return [ROOT / "book.txt", *sorted({path.name: path for folder in folders for path in folder.glob("*.txt")}.values())]


# ---- the n-gram model

def test_kneser_ney_by_hand():
    """Of "a b a b c": ab twice, ba and bc once, so the discount is 2 / (2 + 2·1) = 1/2. Left neighbours: a has two (b and the
    beginning), b and c one each; the discount is 2 / (2 + 2·1) again. Over four letters p(a) = 1.5/4 + 1/2·3/4·1/4."""
    a, b, c, d = range(4)
    ngram = e.NGram(2, 4, [[a, b, a, b, c]])
    p = {a: 0.46875, b: 0.21875, c: 0.21875, d: 0.09375}
    assert np.exp(-ngram.nats([a, b, c, a])) == pytest.approx([p[a], 1.5 / 2 + 0.5 * 1 / 2 * p[b], 0.5 / 2 + 0.5 * 2 / 2 * p[c], p[a]])      # nothing follows c
    assert np.exp(-ngram.nats([b, d, d])) == pytest.approx([p[b], 0.5 * p[d], p[d]])
    assert np.exp(-e.NGram(1, 4, [[a, a, a, b, d]]).nats([a, b, c])) == pytest.approx([2 / 5 + 3 / 20, 3 / 20, 3 / 20])     # discount 1, no twos


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=12), min_size=1, max_size=4), st.integers(1, 4), st.lists(st.integers(0, 5), max_size=4))
def test_kneser_ney_is_a_distribution_after_any_context(sequences, order, context):
    ngram = e.NGram(order, 6, sequences)
    assert sum(math.exp(-ngram.nats([*context, token])[-1]) for token in range(6)) == pytest.approx(1)


# ---- measures of a text

def test_lexical_measures_by_hand():
    words = list("aaabbc")
    assert e.type_token_ratio(words) == 1 / 2
    assert e.yules_k(words) == pytest.approx(1e4 * (9 + 4 + 1 - 6) / 36)
    assert e.yules_k(list("abc")) == 0
    assert e.mattr(list("abaca"), 3) == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)
    assert e.mattr(list("aab"), 50) == pytest.approx(2 / 3)
    assert e.mtld(list("ababa")) == 5                                # aba is a factor (2/3), ba adds none, either way
    assert e.mtld(list("abcda")) == pytest.approx(5 / (0.2 / 0.28))  # a part of a factor: from 1 it fell to .8, a factor falls to .72
    assert e.mtld(list("aaab")) == pytest.approx((4 / 1 + 4 / 1) / 2)           # aa | ab, and ba | aa backwards: baa (2/3), a
    assert e.mtld(list("abcdef")) == math.inf


def test_distances_by_hand():
    assert e.burrows_delta(np.array([0.2, 0.1, 0.0]), np.array([0.1, 0.1, 0.3]), np.array([0.05, 0.1, 0.0])) == pytest.approx((2 + 0) / 2)
    assert e.jensen_shannon([1, 0], [0, 3]) == 1 and e.jensen_shannon([1, 3], [2, 6]) == pytest.approx(0)
    divergence = 0.5 * math.log2(1 / 0.75) + 0.5 * (0.5 * math.log2(0.5 / 0.75) + 0.5 * math.log2(0.5 / 0.25))
    assert e.jensen_shannon([4, 0], [1, 1]) == pytest.approx(math.sqrt(divergence))
    assert e.jensen_shannon([0, 0], [1, 1]) == 1                     # nothing is like nothing


def test_diversity_measures_by_hand():
    texts = [list("aba"), list("ab")]
    assert e.distinct_n(texts, 1) == 2 / 5 and e.distinct_n(texts, 2) == 2 / 3 and e.distinct_n(texts, 4) is None
    assert e.repetition(texts, 1) == pytest.approx(1 / 5)            # within a text, not across
    assert e.repetition([list("abcdabcd")]) == pytest.approx(1 / 5) and e.repetition([["a"]]) is None
    assert e.entropy([list("aab"), ["c"]]) == pytest.approx(1.5) and e.entropy([[]]) is None
    assert e.self_bleu([list("abcdef")] * 3) == pytest.approx(1)
    assert e.self_bleu([list("abcde"), list("abcdf")]) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert e.self_bleu([list("abc")]) is None


def test_memorization_by_hand():
    source = list(range(100))
    text = [*range(10, 20), 500, *range(30, 37)]
    found = e.memorization([text], source, decode=lambda ids: " ".join(map(str, ids)))
    assert found["longest_run_tokens"] == 10 and found["longest_run_text"] == "10 11 12 13 14 15 16 17 18 19"
    assert found["copied_share"] == 10 / 18 and found["tokens"] == 18            # seven in a row are not yet copied
    assert found["novelty"]["2"] == 2 / 17 and found["novelty"]["8"] == 8 / 11 and found["novelty"]["16"] == 1
    overlapping = e.memorization([list(range(1, 13))], [*range(1, 9), 0, *range(5, 13)], str)
    assert overlapping["longest_run_tokens"] == 8 and overlapping["copied_share"] == 1
    assert e.memorization([[500]], source, str) == {"longest_run_tokens": 0, "longest_run_text": "[]", "copied_share": 0, "tokens": 1,
                                                     "novelty": {str(n): None for n in range(2, 17)}}


@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3), max_size=12))
def test_match_lengths_are_the_longest(ids, source):
    def runs(k, items):
        return {tuple(items[i:i + k]) for i in range(len(items) - k + 1)}

    expected = [max(k for k in range(len(ids) - i + 1) if k == 0 or tuple(ids[i:i + k]) in runs(k, source)) for i in range(len(ids))]
    assert e.match_lengths(e.as_characters(ids), e.as_characters(source)) == expected


def test_passages_are_of_one_length_and_lose_nothing_between():
    text = "One two three. Four five\n\nsix seven — eight nine ten eleven"
    assert e.passages_of(text, 4) == ["One two three. Four", "five\n\nsix seven — eight"]
    assert e.passages_of("海は灰色だった。風", 4) == ["海は灰色", "だった。風"]
    assert e.passages_of("too short", 4) == []


def test_similarity_by_hand():
    alike = e.Similarity(["The old lamp burned.", "A keeper climbed the stair.", "The sea was grey and cold."], english=True)
    found = alike.between(["The old lamp", "qxz"], ["the new lamp", "The old lamp"])
    assert found["lexical"] == pytest.approx(np.array([[2 / 4, 1], [0, 0]]))
    assert found["semantic"][0, 1] == pytest.approx(1) and found["semantic"][1, 1] == 0
    assert found["syntactic"][0, 0] == pytest.approx(1)              # an article, an adjective, a noun
    assert found["combined"] == pytest.approx((found["semantic"] + found["lexical"] + found["syntactic"]) / 3)
    assert e.parsed("The old lamp burned.") == ([["DT", "JJ", "NN", "VBN", "."]], ["NP DT JJ NN", "VP VBN"])
    varied = e.diversity(["The old lamp", "The old lamp", "qxz"], ["p", "p", "q"], alike)
    assert varied["same_prompt_similarity"] == pytest.approx(1) and varied["pairwise_similarity"] < 0.5
    assert e.diversity(["", ""], ["p", "q"], alike)["entropy"] is None         # nothing written: no number


def test_a_compressor_counts_what_the_held_out_bytes_add():
    rng = random.Random(0)
    noise = rng.randbytes(4000)
    assert e.compressor(noise, noise[:2000])[1] < 0.2 and e.compressor(noise, rng.randbytes(2000))[1] == pytest.approx(8, abs=0.2)


# ---- likelihood

def test_bits_per_byte_and_its_error_by_hand():
    """8 and 16 bits on 4 bytes each: 3 bits a byte; the residuals are ∓4 bits, so the error is √(2/1 · 32) / 8 = 1."""
    assert e.bits_per_byte([8 * LN2, 16 * LN2], [4, 4]) == (pytest.approx(3), pytest.approx(1))
    assert e.bits_per_byte([8 * LN2], [4]) == (pytest.approx(2), None)


def figures(net, rows, sizes, monkeypatch, points=40, left_to_right=False):
    monkeypatch.setattr(e, "points", points)
    monkeypatch.setattr(e, "left_to_right", left_to_right)
    return e.likelihood(net, rows, sizes, 0, lambda *_: None)


def test_the_bound_is_that_of_exact_enumeration(monkeypatch):
    net, rows = tiny(), [torch.tensor([0, 3, 1, 4, 2]), torch.tensor([2, 2, 0])]
    exact = sum(exact_bound(net, row) for row in rows)
    found, nats = figures(net, rows, [7, 4], monkeypatch, points=6000)
    assert found["bits_per_byte"] * 11 * LN2 == pytest.approx(exact, rel=0.01) and nats.sum() == pytest.approx(exact, rel=0.01)
    assert np.mean(found["bits_per_token_by_mask_rate"]) * 8 == pytest.approx(found["bits_per_byte"] * 11)      # the curve's mean is the bound
    assert found["perplexity"] == pytest.approx(math.exp(nats.sum() / 8))
    assert found["masked_perplexity"].keys() == {"0.05", "0.1", "0.15", "0.2", "0.5", "0.9"}


def left_to_right_nats(net, *rows):
    return e.ordered_nats(net, list(rows), "margin", 1).tolist()


@pytest.mark.parametrize("order", [*sample.CHOICES["order"], "left to right"])
def test_every_order_is_a_distribution_over_texts(order):
    """Over all texts of three tokens e^-nats adds up to one, for what comes next depends on what has come alone. A
    shuffled batch gives each text the same: rows do not meet."""
    everything = list(torch.cartesian_prod(*[torch.arange(5)] * 3))
    for net in (tiny(), tiny(causal=True)):
        if order == "random":
            found = torch.cat([e.ordered_nats(net, [row], order, 3) for row in everything])
        else:
            found = e.ordered_nats(net, everything, order, 1 if order == "left to right" else 3)
            assert e.ordered_nats(net, [everything[77], everything[3]], order, 1 if order == "left to right" else 3
                                  ).tolist() == pytest.approx([float(found[77]), float(found[3])], rel=1e-4)
        assert float((-found).exp().sum()) == pytest.approx(1, rel=1e-4)


def test_left_to_right_by_hand_and_the_twins_own(monkeypatch):
    row, net = torch.tensor([0, 3, 1, 4, 2]), tiny()
    with torch.no_grad():
        hidden = [torch.cat((row[:i], torch.full((5 - i,), net.config.mask_id))) for i in range(5)]
        by_hand = -sum(float(net(text[None])[0, i].log_softmax(0)[row[i]]) for i, text in enumerate(hidden))
    assert left_to_right_nats(net, row, row[:2])[0] == pytest.approx(by_hand, rel=1e-4)      # padding changes nothing
    found, _ = figures(net, [row], [7], monkeypatch, left_to_right=True)
    assert found["left_to_right_bits_per_byte"] == pytest.approx(by_hand / 7 / LN2, rel=1e-4)
    assert 0 < found["sampler_order_bits_per_byte"] != found["left_to_right_bits_per_byte"]
    found, nats = figures(tiny(True), [row], [7], monkeypatch)
    assert found["exact"] and found["left_to_right_bits_per_byte"] == found["bits_per_byte"]
    assert found["bits_per_token_by_mask_rate"] is None and found["sampler_order_bits_per_byte"] is None
    assert nats[0] == pytest.approx(left_to_right_nats(tiny(True), row)[0], rel=1e-4)


def test_few_sequences_are_masked_more_often(monkeypatch):
    row = torch.tensor([0, 3, 1, 4, 2])
    for n, masks in ((1, 2000), (7, 290), (40, 50), (200, 10), (300, 10)):
        assert figures(tiny(), [row] * n, [7] * n, monkeypatch, points=0)[0]["masks_of_each"] == masks


def test_two_models_are_compared_in_pairs():
    """Costs that differ by one nat a byte everywhere: the difference has no error, however much the sequences vary. A
    model with half the context cuts the same examples elsewhere; they are the pairs then."""
    def evaluated(nats, sizes, example):
        return e.Evaluated({}, None, None, np.array(nats), np.array(sizes), np.array(example), b"", {})
    first = evaluated([10.0, 50.0, 12.0], [4, 9, 6], [0, 0, 1])
    same_cuts = evaluated([14.0, 59.0, 18.0], [4, 9, 6], [0, 0, 1])
    assert e.paired(same_cuts, first) == (pytest.approx(1 / LN2), pytest.approx(0, abs=1e-12))
    other_cuts = evaluated([70.0, 3.0, 8.0, 10.0], [10, 3, 2, 4], [0, 0, 1, 1])
    assert e.paired(other_cuts, first) == (pytest.approx(1 / LN2), pytest.approx(0, abs=1e-12))
    other_examples = evaluated([91.0], [19], [0])
    assert e.paired(other_examples, first) == (pytest.approx(1 / LN2), None)


def test_every_byte_counts_whatever_the_vocabulary(monkeypatch):
    """A model that knows nothing pays log2(n) a token: for the same bytes, a small vocabulary's many cheap tokens against few dear ones."""
    text = "The keeper lit the lamp, and the lamp burned all night."
    tokens = [bytes([i]) for i in range(256)]
    for tokenizer in (Tokenizer("book", tokens), Tokenizer("book", [*tokens, b"th", b"the", b"la", b"lam", b"lamp"])):
        net = tiny(vocab_size=tokenizer.vocab_size)
        torch.nn.init.zeros_(net.embedding.weight)
        ids = tokenizer.encode(text)
        pieces = e.chop([ids], 16)
        assert [i for piece in pieces for i in piece] == ids and max(map(len, pieces)) <= 16
        found, _ = figures(net, [torch.tensor(piece) for piece in pieces], [len(tokenizer.decode_bytes(piece)) for piece in pieces], monkeypatch, left_to_right=True)
        assert found["bytes"] == len(text) and found["bits_per_byte"] == pytest.approx(len(ids) * math.log2(net.config.n_text) / len(text))
        assert found["left_to_right_bits_per_byte"] == pytest.approx(found["bits_per_byte"])
        assert list(found["masked_perplexity"].values()) == pytest.approx([net.config.n_text] * 6, rel=1e-4)


# ---- style

@pytest.mark.parametrize("path", books(), ids=lambda path: path.stem)
def test_held_out_chapters_are_in_style_and_shuffled_words_and_another_book_are_not(path, monkeypatch):
    paragraphs = [paragraph for paragraph, _ in clean(path.read_text(encoding="utf-8"))]
    passages = e.passages_of("\n\n".join(paragraphs), 60)[:400]
    held_out = [p for i in range(0, len(passages), 40) for p in passages[i:i + 3]]          # blocks all over the book
    train = [p for p in passages if p not in held_out]
    other = next((b for b in books() if b != path), None)
    monkeypatch.setattr(e, "REPLICATES", 100)
    monkeypatch.setattr(e, "control", str(other or ""))
    found = e.measure_style("\n\n".join(train), "\n\n".join(held_out), held_out, True, notes := [])
    assert found["in_style"] == {"generated": True, "held_out": True, "shuffled": False} | ({"control": False} if other else {}), found["distance"]
    assert not notes and {"mattr", "mtld", "yules_k", "delta", "flesch_kincaid", "gunning_fog", "tag_profile", "chunk_profile"} <= found["measures"].keys()
    assert all(sum(shares) == pytest.approx(1) for shares in found["sentence_lengths"].values())


# ---- evaluate.py as its users run it

def run(folder, *arguments, script="evaluate.py"):
    """In this process, with fresh knobs, which saves the seconds that the libraries take to load."""
    here, argv = os.getcwd(), sys.argv
    os.chdir(folder)
    sys.argv = [script, *map(str, arguments)]
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    finally:
        os.chdir(here)
        sys.argv = argv


def refused(capsys, folder, *arguments):
    """Its one line on stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run(folder, *arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("evaluate.py: ")]
    assert stopped.value.code == 2 and len(lines) == 1
    return lines[0]


def evaluation(folder, out="out"):
    return json.loads((folder / out / "evaluation.json").read_text(encoding="utf-8"))


def trained_on(passage, folder, name, steps=0, causal=False, **training):
    """A checkpoint for the book in folder that has seen nothing but this passage (ids), so many times."""
    tokenizer = Tokenizer.from_dict(json.loads((folder / "data" / name / "tokenizer.json").read_bytes()))
    torch.manual_seed(0)
    net = m.DiffusionModel(m.Config(tokenizer.vocab_size, 64, 2, 2, 64, causal=causal))
    optimizer, tokens = torch.optim.AdamW(net.parameters(), 3e-3), torch.tensor(passage).repeat(8, 1)
    for _ in range(steps):
        loss = m.weighted_loss(net, tokens, m.draw_masks(tokens, net.config), net.config) / tokens.numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return m.checkpoint_of(net, tokenizer.to_dict(), training=training | {"dataset": name})


def saved(folder, out, checkpoint):
    (folder / out).mkdir(exist_ok=True)
    torch.save(checkpoint, folder / out / "best.pt")


def stream(folder, name):
    return np.fromfile(folder / f"{name}.bin", "<u2").tolist()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The repository's book, prepared; in out/ a diffusion model that has hardly begun to learn a passage of its training text, in twin/ a causal
    one that knows it by heart."""
    folder = tmp_path_factory.mktemp("evaluate")
    run(folder, ROOT / "book.txt", "--title=The Keeper & the Light", script="prepare.py")
    data = folder / "data/book"
    ids, tokenizer = stream(data, "stage3_train"), Tokenizer.from_dict(json.loads((data / "tokenizer.json").read_bytes()))
    begin = ids.index(tokenizer.tokens.index(b"\n\n"), 2000) + 1
    passage = ids[begin:begin + 64]
    hashes = {name: read_stream(data, name)[2] for name in ("stage3_train", "val", "test")}
    saved(folder, "out", trained_on(passage, folder, "book", 20, step=20, epoch=1.0, data=hashes))
    saved(folder, "twin", trained_on(passage, folder, "book", 80, causal=True, data=hashes))
    (folder / "prompts.txt").write_text(tokenizer.decode(passage[:8]) + "\n", encoding="utf-8")
    return folder


def without_times(result):
    return {key: value for key, value in result.items() if key != "speed"}


def test_the_whole_evaluation_twice_with_the_contracts_keys(prepared, capsys):
    done = subprocess.run([sys.executable, str(ROOT / "evaluate.py"), "--points=10", "--steps=25"], cwd=prepared, capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS="1"))
    assert done.returncode == 0 and "out/best.pt: writing samples\n" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert all(line[:2] in ("+ ", "- ", "> ") for line in done.stdout.splitlines()) and "- " in done.stdout
    first, page = evaluation(prepared), (prepared / "out/evaluation.html").read_text(encoding="utf-8")
    (prepared / "out/curves.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>", encoding="utf-8")
    assert "svg+xml" not in page
    run(prepared, "--points=10", "--steps=25")
    assert "data:image/svg+xml;base64,PHN2Zy" in (prepared / "out/evaluation.html").read_text(encoding="utf-8")
    assert without_times(evaluation(prepared)) == without_times(first)          # to the last digit
    assert {"checkpoint", "book", "split", "seed", "parameters", "likelihood", "baselines", "style", "similarity", "diversity", "memorization", "speed"} <= first.keys()
    assert {"bits_per_byte", "bits_per_byte_se", "perplexity", "tokens", "bytes", "masked_perplexity", "left_to_right_bits_per_byte"} <= first["likelihood"].keys()
    assert {"unigram_bits_per_byte", "ngram_bits_per_byte", "compressor_bits_per_byte"} <= first["baselines"].keys()
    test = stream(prepared / "data/book", "test")
    assert first["likelihood"]["tokens"] == len(test) and first["likelihood"]["bytes"] == len(Tokenizer.from_dict(json.loads((prepared / "data/book/tokenizer.json").read_bytes())).decode_bytes(test))
    assert first["baselines"]["ngram_bits_per_byte"] < first["baselines"]["unigram_bits_per_byte"] < first["likelihood"]["bits_per_byte"]      # it knows one passage
    assert first["style"]["in_style"] == {"generated": False, "held_out": True, "shuffled": False}
    assert len(first["samples"]) == 24 and len({s["prompt"] for s in first["samples"]}) == 8 and len({s["text"] for s in first["samples"]}) > 8
    held_out = Tokenizer.from_dict(json.loads((prepared / "data/book/tokenizer.json").read_bytes())).decode(test)
    assert all(s["prompt"].split()[0] in held_out for s in first["samples"])
    assert first["speed"]["tokens_per_second"] > 0 and first["speed"]["calls_per_text"] == 25 and first["speed"]["memory_gb"] > 0
    assert not re.search(r'(src|href)="(?!#)|@import|url\((?!#)', page)  # one file that needs no network
    cells = re.findall(r"<tr><td data-label=\"Measure\">(.*?)</td>", page)
    assert page.count("<main>") == 1 and page.index("<main>") < page.index("<h1>") and page.rindex("</p>") < page.index("</main>")
    assert len(cells) > 30 and all(re.search(r'<span class="note">[^<]+</span>', cell) for cell in cells)       # every row says its unit
    assert all(re.search("[↑↓↔]", cell) for cell in cells if "Text looked at" not in cell)                      # and which way is better
    assert first["book"] == "book" and first["title"] == "The Keeper & the Light" and page.count("A model of The Keeper &amp; the Light, measured</") == 2
    assert all(title in page for title in ("What is good", "What is not", "What to try next"))


def test_a_recited_passage_shows_as_memorized(prepared, capsys):
    run(prepared, "--out_dir=twin", "--prompts=prompts.txt", "--points=10", "--max_tokens=50", "--split=val")
    found = evaluation(prepared, "twin")
    mine, human = found["memorization"]["generated"], found["memorization"]["held_out"]
    assert mine["longest_run_tokens"] >= 30 > human["longest_run_tokens"] and mine["copied_share"] > 0.8 > 0.2 > human["copied_share"]
    assert mine["longest_run_text"] in Tokenizer.from_dict(json.loads((prepared / "data/book/tokenizer.json").read_bytes())).decode(stream(prepared / "data/book", "stage3_train"))
    assert mine["novelty"]["8"] < 0.2 < 0.8 < human["novelty"]["8"] and "- It recites:" in capsys.readouterr().out
    assert {s["prompt"] for s in found["samples"]} == {(prepared / "prompts.txt").read_text(encoding="utf-8").strip()} and found["split"] == "val"


def test_held_out_text_planted_in_the_training_data_shows(prepared, tmp_path, capsys):
    shutil.copytree(prepared / "data", tmp_path / "data")
    data = tmp_path / "data/book"
    planted = stream(data, "stage3_train") + stream(data, "test")
    np.array(planted, "<u2").tofile(data / "stage3_train.bin")
    np.array([0, len(planted)], "<i8").tofile(data / "stage3_train.idx")
    saved(tmp_path, "out", trained_on([0], tmp_path, "book"))
    run(tmp_path, "--points=10", "--n_prompts=4")
    found = evaluation(tmp_path)
    assert found["memorization"]["held_out"]["longest_run_tokens"] >= 50 and "the split leaks" in capsys.readouterr().out
    assert found["baselines"]["ngram_bits_per_byte"] < 1 and any("does not record" in note for note in found["notes"])


def test_side_by_side_with_a_causal_twin_as_judge(prepared, capsys):
    other = books()[-1]
    run(prepared, "--compare=twin", "--left_to_right", "--points=10", "--n_prompts=4", "--n_seeds=2", "--sampling.temperature=1.0", "--sampling.top_k=0",
        "--sampling.top_p=1.0", f"--control={other}")
    found, page = evaluation(prepared), (prepared / "out/evaluation.html").read_text(encoding="utf-8")
    [twin] = found["compare"]
    assert twin["causal"] and twin["likelihood"]["exact"] and not found["likelihood"]["exact"]
    assert found["likelihood"]["more_than_first"] is None and twin["likelihood"]["more_than_first_se"] > 0
    assert twin["likelihood"]["more_than_first"] == pytest.approx(twin["likelihood"]["bits_per_byte"] - found["likelihood"]["bits_per_byte"])
    assert found["judged"]["held_out"]["twin_perplexity"] == pytest.approx(twin["judged"]["held_out"]["twin_perplexity"]) and found["judged"]["generated"]["entropy"]
    assert 0 < found["likelihood"]["left_to_right_bits_per_byte"] != found["likelihood"]["bits_per_byte"]
    assert "control" in found["style"]["distance"] and 'data-label="twin"' in page and "More than the first" in page


def test_what_cannot_be_measured_is_said(prepared, capsys):
    run(prepared, "--n_prompts=1", "--n_seeds=1", "--max_tokens=8", "--points=10")
    found = evaluation(prepared)
    assert found["style"] is None and any(note.startswith("Style is not measured: it wants four texts of 25 words") for note in found["notes"])
    assert found["diversity"]["generated"]["self_bleu"] is None and found["diversity"]["generated"]["pairwise_similarity"] is None
    page = (prepared / "out/evaluation.html").read_text(encoding="utf-8")
    assert "Not measured: see the last section." in page and not re.search(r">(nan|None|inf)\b", page)


def made_book(folder, name, words, sentences, end=". "):
    rng = random.Random(0)
    text = "\n\n".join("".join(" ".join(rng.choices(words, k=rng.randint(4, 12))).capitalize() + end for _ in range(4)) for _ in range(sentences // 4))
    (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    run(folder, f"{name}.txt", script="prepare.py")
    saved(folder, "out", trained_on([0], folder, name))


SCRIPTS = {"short": ("the lamp sea wind keeper and of to in was it stair glass night".split(), 40, ". "),
           "russian": ("море ветер лампа маяк ночь и в на он она было стекло свет".split(), 200, ". "),
           "chinese": (list("海風燈塔夜光人水火山石天地日月"), 200, "。")}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_short_book_and_other_scripts(name, tmp_path, capsys):
    made_book(tmp_path, name, *SCRIPTS[name])
    run(tmp_path, "--points=10", "--n_prompts=2", "--left_to_right")
    found = evaluation(tmp_path)
    words = [note for note in found["notes"] if "English" in note]
    if name == "short":
        assert not words and any("its standard error is itself uncertain" in note for note in found["notes"])
    else:
        assert words and "syntactic" not in found["similarity"]["generated"]
    assert found["style"] or any("Style is not measured" in note for note in found["notes"])
    assert 0 < found["likelihood"]["bits_per_byte"] < 20 and "NaN" not in json.dumps(found) and "Infinity" not in json.dumps(found)


def test_samples_longer_than_any_held_out_passage_are_measured_alone(tmp_path, capsys):
    made_book(tmp_path, "short", *SCRIPTS["short"])
    run(tmp_path, "--points=10", "--n_prompts=2", "--max_tokens=60")
    found = evaluation(tmp_path)
    assert "held_out" not in found["memorization"] and found["memorization"]["generated"]["tokens"] > 0
    assert any("makes only 0 passages" in note for note in found["notes"]) and (tmp_path / "out/evaluation.html").exists()


def test_two_texts(prepared, capsys):
    (prepared / "two.txt").write_text("The lamp was lit, and the sea was grey.", encoding="utf-8")
    run(prepared, "--text1=The lamp was lit, and the sea was grey.", "--text2=two.txt")
    assert json.loads(capsys.readouterr().out) == {"semantic": 1.0, "lexical": 1.0, "syntactic": 1.0, "combined": 1.0}
    run(prepared, "--text1=The lamp was lit.", "--text2=Parliament adjourned")
    assert json.loads(capsys.readouterr().out)["lexical"] == 0
    assert "must both hold words" in refused(capsys, prepared, "--text1=The lamp")


def test_user_errors_are_one_line(prepared, tmp_path, capsys):
    assert "did you mean 'points'" in refused(capsys, prepared, "--pionts=10")
    assert "multiple of ten" in refused(capsys, prepared, "--points=15")
    assert "--max_tokens lies in [8, ...)" in refused(capsys, prepared, "--max_tokens=7")
    assert "--split lies in {test, val}" in refused(capsys, prepared, "--split=train")
    assert "no checkpoint at nowhere/best.pt" in refused(capsys, prepared, "--out_dir=nowhere")
    assert "no checkpoint at nowhere/best.pt" in refused(capsys, prepared, "--compare=twin,nowhere")
    assert "data/elsewhere was never prepared; prepared here: " in refused(capsys, prepared, "--book=elsewhere")
    assert "no book has been prepared here" in refused(capsys, tmp_path, "--text1=a", "--text2=b")
    (prepared / "long.txt").write_text("the lamp and " * 30, encoding="utf-8")
    assert "leaves no room" in refused(capsys, prepared, "--prompts=long.txt", "--points=10")
    assert "temperature" in refused(capsys, prepared, "--sampling.temperature=-1", "--points=10")


def test_a_book_that_has_changed_is_refused(prepared, tmp_path, capsys):
    for name in ("data", "out", "twin"):
        shutil.copytree(prepared / name, tmp_path / name)
    data = tmp_path / "data/book"
    val = (data / "val.bin").read_bytes()
    (data / "val.bin").write_bytes(val[2:] + val[:2])
    assert "val.bin has changed since out/best.pt was trained" in refused(capsys, tmp_path)
    (data / "val.bin").write_bytes(val)
    tokenizer = json.loads((data / "tokenizer.json").read_text())
    (data / "tokenizer.json").write_text(json.dumps(tokenizer | {"kind": "gpt2"}))
    assert "another vocabulary" in refused(capsys, tmp_path)


def summary(bits, gain, copied=0.02, rates=None, entropy=7.0, mask_rate=(0.0, 1.0), replay=0.0, **sampling):
    """The plain words for made-up figures."""
    human = {"repetition": 0.0, "entropy": 7.0}
    memory = {"copied_share": copied, "longest_run_tokens": 9}
    return e.summarise({
        "likelihood": {"bits_per_byte": bits, "gain_over_ngram": gain, "gain_over_ngram_se": 0.01, "bits_per_token_by_mask_rate": rates},
        "baselines": {"unigram_bits_per_byte": 2.3, "ngram_bits_per_byte": 1.8, "unigram_bits_per_token": 8.4},
        "style": None, "memorization": {"generated": memory, "held_out": memory | {"copied_share": 0.02}},
        "diversity": {"generated": human | {"entropy": entropy}, "held_out": human},
        "trained": {"stage": 3, "mask_rate": list(mask_rate), "replay": replay},
        "sampling": dataclasses.asdict(m.Sampling(**sampling))})


def test_the_summary_says_what_the_numbers_do():
    assert "not yet learned" in summary(2.4, -0.6)["bad"][0] and "small batches" in summary(2.4, -0.6)["next"][0]
    assert "less well than a table" in summary(2.0, -0.2)["bad"][0] and "about as well" in summary(1.79, 0.01)["bad"][0]
    assert "better than the table" in summary(1.5, 0.3)["good"][0] and any("does not recite" in s for s in summary(1.5, 0.3)["good"])
    assert any("too good to be true" in s for s in summary(0.4, 1.4)["bad"])
    assert any("It recites" in s for s in summary(1.5, 0.3, copied=0.5)["bad"])
    assert any("worse than word frequencies" in s for s in summary(1.9, 0, rates=[5.0] * 9 + [9.0])["bad"])


def test_the_advice_fits_the_run():
    """A stage that saw the full range is not told to see it; settings that are in use already are not recommended."""
    bad_start = {"bits": 1.9, "gain": 0, "rates": [5.0] * 9 + [9.0]}
    narrow = summary(**bad_start, mask_rate=(0.05, 0.2), replay=0.25)["next"]
    assert any("Raise --stages.2.replay (it is 0.25)" in s for s in narrow)
    for full in ({"mask_rate": (0.0, 1.0)}, {"mask_rate": (0.05, 0.2), "replay": 0.7}):
        assert not any("replay" in s for s in summary(**bad_start, **full)["next"])
    assert any("--block_size=16" in s for s in summary(**bad_start)["next"])
    assert not any("block_size" in s for s in summary(**bad_start, block_size=8)["next"])
    [dull] = summary(1.5, 0.3, entropy=5.0, temperature=0.6, top_k=20, top_p=0.85)["next"]
    assert all(knob in dull for knob in ("--temperature=0.9", "--top_p=0.95", "--top_k=50", "--block_size=16"))
    [dull] = summary(1.5, 0.3, entropy=5.0, temperature=1.0, top_k=0, top_p=0.85, block_size=16)["next"]
    assert "--top_p=0.95" in dull and not any(knob in dull for knob in ("temperature", "top_k", "block_size"))
    knobs = set(re.findall(r"--(\w+)=", " ".join(narrow) + dull)) - {"stages"}
    assert knobs <= {field.name for field in dataclasses.fields(m.Sampling)}


def test_openings_are_short_where_no_spaces_are_written():
    assert e.opening_of("The keeper  lit the old\nlamp and went up the stair.") == "The keeper lit the old lamp "
    assert e.opening_of("海風が強く、灯台の光が夜の海を照らしていた。") == "海風が強く、" and e.opening_of("Too short.") == ""


def test_a_long_opening_leaves_room_to_write():
    """Six words of a script that writes no spaces may be longer than the model's context."""
    tokenizer, opening = Tokenizer("book", [bytes([i]) for i in range(256)]), "ทะเลสีเทา" * 9
    [cut] = e.choose_prompts([opening], tokenizer, 64, [])
    assert 20 < len(tokenizer.encode(cut)) <= 32 and opening.startswith(cut) and "\ufffd" not in cut
