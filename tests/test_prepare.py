"""prepare.py as its users run it: real books, real files, real processes; then its parts, on cases beyond dispute."""
import copy
import http.server
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import prepare as p  # noqa: E402
from configurator import documented  # noqa: E402

STREAMS = ("stage1_train", "stage2_train", "stage3_train", "val", "test")
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def find_book():
    """Frankenstein where it is at hand, otherwise the book that comes with the repository."""
    for folder in (os.environ.get("BOOKS"), ROOT.parent / "shared/books"):
        if folder and (path := Path(folder) / "frankenstein.txt").exists():
            return path
    return ROOT / "book.txt"


def prepare(folder, *arguments, **environment):
    return subprocess.run([sys.executable, ROOT / "prepare.py", *map(str, arguments)], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, **environment}, timeout=300)


def prepared(folder, *arguments, **environment):
    """Run to success; the folder of the data it says it made."""
    run = prepare(folder, *arguments, **environment)
    assert run.returncode == 0 and not run.stderr, run.stderr
    return latest(folder)


def latest(folder):
    return folder / "data" / (folder / "data/latest").read_text().strip()


KNOBS = {name: copy.deepcopy(getattr(p, name)) for name, _ in documented(p.__file__)}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The same in this process, in tmp_path, which saves the seconds that the libraries take to load."""
    def run(*arguments):
        vars(p).update(copy.deepcopy(KNOBS))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, arguments)])
        p.main()
        return latest(tmp_path)
    yield run
    vars(p).update(copy.deepcopy(KNOBS))


def refused(run):
    """The one line in which a process ended, as user errors do."""
    assert run.returncode == 2 and not run.stdout
    return one_line(run.stderr)


def one_line(stderr):
    assert stderr.count("\n") == 1 and stderr.startswith("prepare.py: "), stderr
    return stderr


def examples(data, stream):
    ids, index = np.fromfile(data / f"{stream}.bin", "<u2"), np.fromfile(data / f"{stream}.idx", "<i8")
    assert index[0] == 0 and index[-1] == len(ids) and (np.diff(index) > 0).all()
    return [ids[a:b].tolist() for a, b in pairwise(index)]


def segments(data):
    return [json.loads(line) for line in (data / "segments.jsonl").read_text(encoding="utf-8").splitlines()]


def statistics(data):
    return json.loads((data / "statistics.json").read_text(encoding="utf-8"))


def contents(data):
    return {path.name: path.read_bytes() for path in sorted(data.iterdir())}


def invented_book(paragraphs=60, seed=0):
    """A small book of plain English, different in every sentence."""
    rng = random.Random(seed)
    nouns, verbs = "keeper lamp sea boat storm stair glass letter winter gull rope island".split(), "saw took lost found kept knew left heard".split()

    def sentence():
        return f"The {rng.choice(nouns)} {rng.choice(verbs)} the {rng.choice(nouns)} of the {rng.choice(nouns)} {rng.randrange(10_000)} times."
    return "\n\n".join(" ".join(sentence() for _ in range(rng.randint(2, 5))) for _ in range(paragraphs)) + "\n"


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("prepared"), find_book())


@pytest.fixture(scope="session")
def tokenizer(data):
    return p.Tokenizer.load(data / "tokenizer.json")


# ---- the files -------------------------------------------------------------------------------------------------------

def test_windows_tile_the_text_and_every_held_out_token_comes_once(data, tokenizer):
    """Put back in order, the windows of the three splits are text.txt; only the blank lines where a split changes are missing."""
    text = (data / "text.txt").read_bytes()
    waiting = {name: [tokenizer.decode_bytes(e) for e in examples(data, name)][::-1] for name in ("stage3_train", "val", "test")}
    position, current, changes = 0, "stage3_train", 0
    while any(waiting.values()):
        position += 2 * text.startswith(b"\n\n", position)
        current = next(name for name in (current, *waiting) if waiting[name] and text.startswith(waiting[name][-1], position))
        position += len(waiting[current].pop())
        changes += 1
    assert position == len(text) and changes > 10


def test_examples_keep_to_the_block_size_and_start_at_paragraphs(data, tokenizer):
    for stream in STREAMS:
        assert max(map(len, examples(data, stream))) <= 512
    text = (data / "text.txt").read_text(encoding="utf-8")
    starts = {paragraph[:20] for paragraph in text.split("\n\n")}
    windows = [tokenizer.decode(e) for e in examples(data, "stage3_train")]
    assert np.mean([window[:20] in starts for window in windows]) > 0.9       # the others go on within a paragraph over 512 tokens
    assert any("\n\n" in window for window in windows)


def test_held_out_text_is_in_no_training_stream(data):
    def grams(stream):
        return {tuple(e[i:i + 8]) for e in examples(data, stream) for i in range(len(e) - 7)}

    held = (grams("val") | grams("test")) - grams("stage3_train")
    assert len(held) > 500
    assert not held & (grams("stage1_train") | grams("stage2_train"))
    assert all(statistics(data)["splits"][name]["leaked"] == 0 for name in ("val", "test"))


def test_held_out_blocks_are_contiguous_spread_and_of_the_size_asked_for(data):
    splits = [s["split"] for s in segments(data)]
    changes = [i for i, (a, b) in enumerate(pairwise(splits)) if a != b]
    assert {"train", "val", "test"} == set(splits) and 4 <= len(changes) <= 24
    assert changes[0] < len(splits) / 2 < changes[-1]
    for name in ("val", "test"):
        assert 0.03 < statistics(data)["splits"][name]["share"] < 0.08


def test_segments_say_what_the_streams_hold(data, tokenizer):
    text, rows = (data / "text.txt").read_text(encoding="utf-8"), segments(data)
    sentences = [text[row["start"]:row["end"]] for row in rows]
    assert all(s == s.strip() and s for s in sentences)
    assert all((row["stages"] == []) == (row["split"] != "train") for row in rows)
    assert [tokenizer.decode(e).strip() for e in examples(data, "stage1_train")] == [s for s, row in zip(sentences, rows) if 1 in row["stages"]]
    paragraphs = "\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    in_stage2 = {s for s, row in zip(sentences, rows) if 2 in row["stages"]}
    for pair in examples(data, "stage2_train"):
        cut = pair.index(tokenizer.special["[SEP]"])
        first, second = tokenizer.decode(pair[:cut]).strip(), tokenizer.decode(pair[cut:]).strip()
        assert {first, second} <= in_stage2
        assert " ".join(f"{first} {second}".split()) in paragraphs


def test_headings_and_contents_are_kept_out_of_the_sentences(data):
    text = (data / "text.txt").read_text(encoding="utf-8")
    sentences = {text[row["start"]:row["end"]] for row in segments(data)}
    headings = [line for line in text.split("\n\n") if line.lower().startswith(("chapter ", "letter "))]
    assert len(headings) > 10 and not sentences & set(headings)
    assert len(set(headings)) == len(headings), "the contents list, which says them all once more, is gone"


def test_stages_follow_percentiles_of_the_whole_training_text(data):
    rows = [row for row in segments(data) if row["split"] == "train"]
    complexity, centrality = (np.array([row[name] for row in rows]) for name in ("syntactic_complexity", "thematic_centrality"))
    chosen = statistics(data)["stages"]
    assert chosen["1"]["relaxed_by"] == chosen["2"]["relaxed_by"] == 0
    fits = (complexity <= np.quantile(complexity, 1 / 3)) & (centrality >= np.quantile(centrality, 2 / 3))
    fits &= np.array([3 <= row["words"] <= 40 for row in rows])
    assert abs(sum(1 in row["stages"] for row in rows) - fits.sum()) <= 2
    assert max(row["syntactic_complexity"] for row in rows if 2 in row["stages"]) <= np.quantile(complexity, 2 / 3) + 1e-3
    assert all(3 in row["stages"] for row in rows)
    assert chosen["3"]["vocabulary_coverage"] == 1


def test_scores_are_fitted_on_training_text_alone(here, tmp_path):
    """Other words in the held-out sentences change no training sentence's score and no vocabulary."""
    book = tmp_path / "book.txt"
    book.write_text(invented_book(), encoding="utf-8")
    before = here(book)
    rows, files, text = segments(before), contents(before), book.read_text(encoding="utf-8")
    for row in rows:
        if row["split"] != "train":
            sentence = text[row["start"]:row["end"]]
            text = text[:row["start"]] + sentence.replace("e", "q").replace("o", "z") + text[row["end"]:]
    assert text != book.read_text(encoding="utf-8")
    book.write_text(text, encoding="utf-8")
    after = here(book)
    assert [row for row in segments(after) if row["split"] == "train"] == [row for row in rows if row["split"] == "train"]
    assert contents(after)["tokenizer.json"] == files["tokenizer.json"] and contents(after)["val.bin"] != files["val.bin"]


def test_same_book_same_bytes_whatever_the_surroundings(tmp_path):
    made = []
    for i, environment in enumerate(({"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"},
                                     {"PYTHONHASHSEED": "2", "OMP_NUM_THREADS": "2", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"})):
        (folder := tmp_path / str(i)).mkdir()
        made.append(contents(prepared(folder, ROOT / "book.txt", "--argument_structure", "--show_extremes=5", **environment)))
    assert len(made[0]) == 14 and made[0] == made[1]


def test_a_failed_or_interrupted_run_leaves_the_earlier_data_whole(tmp_path):
    book = tmp_path / "small.txt"
    book.write_text(invented_book(), encoding="utf-8")
    data = prepared(tmp_path, book)
    earlier = contents(data)
    book.write_text("Too short.")
    assert "too short" in refused(prepare(tmp_path, book))
    book.write_text(invented_book(3000), encoding="utf-8")
    process = subprocess.Popen([sys.executable, ROOT / "prepare.py", book], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    time.sleep(2.5)
    process.send_signal(signal.SIGINT)
    assert "interrupted" in process.communicate(timeout=60)[1] and process.returncode == 2
    assert contents(data) == earlier
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["latest", "small"]


# ---- the vocabulary --------------------------------------------------------------------------------------------------

@settings(max_examples=200, deadline=None)
@given(text=ANY_TEXT)
@example("<|endoftext|>[MASK][PAD]\x00\r\n\n \t👩‍👩‍👧 ﷽ e\u0301")
def test_any_text_survives_the_tokenizer(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.special.values())


@settings(max_examples=100, deadline=None)
@given(text=ANY_TEXT)
def test_any_text_survives_smaller_vocabularies(text):
    for tok in (p.Tokenizer("gpt2", [bytes([b]) for b in range(256)]), small_bpe()):
        again = p.Tokenizer.from_dict(json.loads(json.dumps(tok.to_dict())))
        assert again.decode(again.encode(text)) == text and again.encode(text) == tok.encode(text)


@p.functools.cache
def small_bpe():
    return p.Tokenizer("book", p.book_vocabulary(["the lamp and the sea and the lamp", " the lamplight"] * 3, 280))


def test_the_book_tokenizer_merges_the_most_frequent_pairs():
    assert p.book_vocabulary(["abab abab abab"], 258)[256:] == [b"ab", b"abab"]
    assert len(small_bpe().encode("the lamp")) < 6 < len("the lamp")
    assert p.book_vocabulary(["xyz"], 1000) == [bytes([b]) for b in range(256)], "what occurs once is not merged"


def test_characters_and_blank_lines_are_never_torn():
    tok = p.Tokenizer("gpt2", p.compressed_vocabulary(["“Yes,” he said. “It is the 海ж, “海.”"]))
    ids = tok.encode("He said “Yes.”\n\n“海”\n\n\nж")
    assert [tok.tokens[i].decode("utf-8", "replace") for i in ids[-11:]] == [" “", "Yes", ".", "”", "\n\n", "“", "海", "”", "\n\n", "\n", "ж"]
    assert "\ufffd" in "".join(tok.tokens[i].decode("utf-8", "replace") for i in tok.encode("é√")), "what the book never used falls back to bytes"


def test_special_tokens_are_the_last_three_and_decode_to_nothing(tokenizer):
    n = tokenizer.vocab_size
    assert list(tokenizer.special.items()) == [("[MASK]", n - 3), ("[PAD]", n - 2), ("[SEP]", n - 1)]
    assert tokenizer.decode([n - 3, *tokenizer.encode("so"), n - 1]) == "so"
    assert {bytes([b]) for b in range(256)} <= set(tokenizer.tokens)


def test_sentences_have_the_tokens_of_the_running_text(data, tokenizer):
    text = (data / "text.txt").read_text(encoding="utf-8")
    whole = tokenizer.encode(text.split("\n\n", 40)[-1][:20_000])
    joined = [i for stream in ("stage3_train", "val", "test") for e in examples(data, stream) for i in e]
    assert set(whole[:-1]) <= set(joined)
    paragraphs = text.split("\n\n")[:50]
    blank = tokenizer.encode("\n\n")
    parts = [i for number, paragraph in enumerate(paragraphs) for i in (blank if number else []) + tokenizer.encode(paragraph)]
    assert parts == tokenizer.encode("\n\n".join(paragraphs))


def test_coverage_and_count_shrink_the_vocabulary_without_loss(here, tmp_path):
    sizes, lengths = [], []
    book = tmp_path / "b.txt"
    book.write_text(invented_book(100), encoding="utf-8")
    kept = "--tokenizer=gpt2"
    for flags in ((kept,), (kept, "--target_coverage=0.9"), (kept, "--min_count=20"), ("--vocab_size=300",)):
        data = here(book, *flags)
        tok = p.Tokenizer.load(data / "tokenizer.json")
        assert max(map(max, examples(data, "val"))) < tok.vocab_size == len(tok.tokens)
        sizes.append(tok.vocab_size)
        lengths.append(statistics(data)["splits"]["train"]["tokens"])
        assert statistics(data)["vocabulary"]["parameters_saved"] == (50257 - tok.vocab_size) * 768
    assert sizes[0] > max(sizes[1:]) and sizes[3] == 300
    assert lengths[0] < min(lengths[1:])
    assert len({statistics(data)["bytes"]}) == 1


# ---- any book --------------------------------------------------------------------------------------------------------

def test_cleaning():
    raw = """\ufeffThe Project Gutenberg EBook of Something

*** START OF THIS PROJECT GUTENBERG EBOOK SOMETHING ***

Produced by Someone



THE LIGHT

CONTENTS

CHAPTER I. Coming  . . . . 1
CHAPTER II. Going . . . . 12



CHAPTER I. Coming

It was a dark and _stormy_ night, and the keeper of the light had gone up to his exam-
ination of the well-known lamp, which was as bright as ever it had been before that
time. He knew the examination. The lamp was well-
known to all.\x0c
Then he sang a song:

   The sea is deep,
     The night is long,
   And no one hears
     The keeper's song.

    *    *    *

\t- oil for the lamp
\t- bread and tea



CHAPTER II. Going

He left the island because the lamp had failed, and nobody ever knew of it again in the
town, though the old men spoke of it.

*** END OF THIS PROJECT GUTENBERG EBOOK SOMETHING ***
Licence and so on.
"""
    expected = [("THE LIGHT", True), ("CHAPTER I. Coming", True), (
        "It was a dark and stormy night, and the keeper of the light had gone up to his examination of the well-known lamp, which was as bright as "
        "ever it had been before that time. He knew the examination. The lamp was well-known to all.", False), ("Then he sang a song:", False),
        ("The sea is deep,\nThe night is long,\nAnd no one hears\nThe keeper's song.", False), ("* * *", True),
        ("- oil for the lamp\n- bread and tea", False), ("CHAPTER II. Going", True), (
        "He left the island because the lamp had failed, and nobody ever knew of it again in the town, though the old men spoke of it.", False)]
    assert p.clean(raw) == expected
    assert p.clean(raw.replace("\n", "\r\n")) == p.clean(raw.replace("\n", "\r")) == expected


def test_lines_that_are_paragraphs_and_paragraphs_that_are_indented():
    sentence = "The keeper climbed the stair and lit the lamp, as he had done on every night of his life since he was a boy of ten. "
    unwrapped = "\n".join(sentence * 3 for _ in range(5))
    assert [paragraph for paragraph, _ in p.clean(unwrapped)] == [(sentence * 3).strip()] * 5
    indented = "\n".join(["    The keeper climbed the stair and lit the lamp, as he had done", "on every night of his life since he was a boy of ten years old,",
                          "and the lamp was bright."] * 4)
    assert len(p.clean(indented)) == 4


def test_sentences_in_other_scripts_and_after_abbreviations():
    def sentences(text):
        whole, pieces = p.cut([(text, False)])
        return [whole[piece.start:piece.end] for piece in pieces]

    assert sentences("“Who is it?” he asked. “Me!” cried she.") == ["“Who is it?” he asked.", "“Me!” cried she."]
    assert sentences("今天很好。他说：“走吧！”我们走了。") == ["今天很好。", "他说：“走吧！”", "我们走了。"]
    assert sentences("यह एक घर है। वह गया।") == ["यह एक घर है।", "वह गया।"]
    run_on = sentences("word " * 2000)
    assert max(map(len, run_on)) <= p.LONGEST_SENTENCE and sum(len(s.split()) for s in run_on) == 2000


def test_one_book_in_many_encodings(here, tmp_path, capsys):
    text = invented_book(30).replace("keeper", "café “owner” – naïve")
    plain = invented_book(30).replace("keeper", "café naïve")
    for name, content, saved in (("UTF-8", text, text.encode()), ("UTF-8", text, text.encode("utf-8-sig")), ("UTF-16", text, text.encode("utf-16")),
                                 ("UTF-16-LE", text, text.encode("utf-16-le")), ("Windows-1252", text, text.encode("cp1252")),
                                 ("Windows-1252", plain, plain.encode("latin-1")), ("UTF-8", text, text.replace("\n", "\r\n").encode())):
        decoded, found = p.decode(saved, p.Found())
        assert (found, decoded.replace("\r\n", "\n").removeprefix("\ufeff")) == (name, content)
    lines = text.split("\n")
    odd = next(i for i, line in enumerate(lines) if "café" in line)
    mixed = b"\n".join(line.encode("cp1252" if i == odd else "utf-8") for i, line in enumerate(lines))
    assert p.decode(mixed, p.Found()) == (text, "UTF-8, but 1 lines in Windows-1252")
    (tmp_path / "b.txt").write_bytes(text.encode("cp1252"))
    here("b.txt")
    assert "Windows-1252" in capsys.readouterr().out and "café “owner”" in (tmp_path / "data/b/text.txt").read_text(encoding="utf-8")


def epub(chapters, spine=None, extra=None):
    """An epub as bytes. chapters: {path in the archive: XHTML body}; spine: paths in reading order."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr("META-INF/container.xml", '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
                                                   '<rootfile full-path="OPS/book.opf"/></rootfiles></container>')
        items = "".join(f'<item id="i{i}" href="{path}" media-type="application/xhtml+xml"/>' for i, path in enumerate(chapters))
        order = "".join(f'<itemref idref="i{list(chapters).index(path)}"/>' for path in spine or chapters)
        archive.writestr("OPS/book.opf", f'<package xmlns="http://www.idpf.org/2007/opf"><manifest>{items}</manifest><spine>{order}</spine></package>')
        for path, body in chapters.items():
            if not path.startswith(".."):
                archive.writestr(f"OPS/{path}", f"<html><head><title>No</title><style>p {{}}</style></head><body>{body}</body></html>")
        for path, content in (extra or {}).items():
            archive.writestr(path, content)
    return buffer.getvalue()


def test_epub_chapters_in_reading_order(here, tmp_path):
    body = "".join(f"<p>{paragraph}</p>" for paragraph in invented_book(30).strip().split("\n\n"))
    (tmp_path / "novel.epub").write_bytes(epub({
        "b.xhtml": f"<h2>The Second</h2><p>It was <i>the</i> last &amp; best.</p>{body}",
        "a%20b.xhtml": "x", "a.xhtml": "<h2>The First</h2><p>A song, long and sweet:</p><p>The sea is deep,<br/>The night is long.</p>"},
        spine=["a.xhtml", "b.xhtml"]))
    data = here("novel.epub")
    text = (data / "text.txt").read_text(encoding="utf-8")
    assert text.startswith("The First\n\nA song, long and sweet:\n\nThe sea is deep,\nThe night is long.\n\nThe Second\n\nIt was the last & best.\n\nThe ")
    assert text[segments(data)[0]["start"]:].startswith("A song")


BOMB = epub({f"{i}.xhtml": "0" * (9 * 2**20) for i in range(8)})
BAD_BOOKS = {                                    # name -> (content, part of the message, or None where it must work)
    "empty.txt": (b"", "no words"),
    "spaces.txt": (b" \n\t\r\n  " * 99, "no words"),
    "binary.txt": (random.Random(1).randbytes(50_000), "not text"),
    "picture.txt": (b"\x89PNG\r\n\x1a\n" + bytes(5000), "not text"),
    "paper.pdf": (b"%PDF-1.7\n" + b"1 0 obj\n" * 100, "PDF"),
    "word.txt": (b"Word", "too short"),
    "three.txt": (b"One came. Then came two. Three were enough.", "too short"),
    "emoji.txt": (("😀🎉🚀 " * 3000).encode(), "no words"),
    "half.txt": ("\ufeffHalf a character".encode("utf-16-le") + b"\x00", "damaged"),
    "truncated.epub": (epub({"a.xhtml": "<p>Word</p>" * 99})[:600], "not a readable epub"),
    "other.epub": (epub({})[:0] + b"PK\x03\x04" + bytes(99), "not a readable epub"),
    "outside.epub": (epub({"../../../etc/passwd": ""}), "outside its archive"),
    "bomb.epub": (BOMB, "zip bomb"),
    "line.txt": (" ".join(invented_book(1200).split()).encode()[:300_000], None),
    "unbroken.txt": (b"x" * 300_000, None),
    "mixed.txt": (b"\n\n".join(invented_book(1, i).replace("keeper", "café").encode(("utf-8", "cp1252")[i % 2]) for i in range(40)), None),
    "same.txt": (b"The lamp was lit again. " * 3000, None),
    "same_paragraphs.txt": (b"The lamp was lit again.\n\n" * 10_000, None),
    "flowing.txt": (" ".join(random.Random(2).choices("the sea and a lamp or rope with his old boat so she went".split(), k=20_000)).encode(), None),
    "chinese.txt": ("\n".join("　　" + "".join(random.Random(i).choices("天地玄黄宇宙洪荒日月盈昃辰宿列张", k=30)) + "。他说：“走吧！”" for i in range(90)).encode(), None),
    "arabic.txt": ("\n\n".join(" ".join(random.Random(i).choices("كان يا ما في قديم الزمان ملك وزير بحر".split(), k=12)) + "؟ نعم." for i in range(90)).encode(), None),
}


@pytest.mark.parametrize("name", BAD_BOOKS)
def test_bad_books_work_or_end_in_one_line(here, tmp_path, capfd, name):
    content, message = BAD_BOOKS[name]
    (tmp_path / name).write_bytes(content)
    if message:
        with pytest.raises(SystemExit, match="2"):
            here(name)
        printed = capfd.readouterr()
        assert message in one_line(printed.err) and name in printed.err and not printed.out
        assert not (tmp_path / "data").exists()
    else:
        data = here(name)
        assert not capfd.readouterr().err
        assert max(len(e) for stream in STREAMS for e in examples(data, stream)) <= 512
        assert all(examples(data, stream) for stream in STREAMS) and statistics(data)["warnings"]


def test_what_is_no_readable_file_is_refused(tmp_path):
    assert "does not exist" in refused(prepare(tmp_path, "nowhere.txt"))
    assert "not a file" in refused(prepare(tmp_path, tmp_path))
    os.mkfifo(tmp_path / "pipe.txt")
    assert "not a file" in refused(prepare(tmp_path, "pipe.txt"))
    assert "cannot be read" in refused(prepare(tmp_path, "/proc/self/mem"))
    (tmp_path / "book.txt").write_text(invented_book(), encoding="utf-8")
    (tmp_path / "data").write_text("in the way")
    assert "cannot write data" in refused(prepare(tmp_path, "book.txt"))


@pytest.mark.parametrize("flag", ["--block_size=4", "--val_share=0", "--tokenizer=word", "--vocab_size=70000", "--target_coverage=0", "--blok_size=4"])
def test_impossible_settings_are_refused(here, capfd, flag):
    with pytest.raises(SystemExit, match="2"):
        here("book.txt", flag)
    assert flag.split("=")[0] in one_line(capfd.readouterr().err)


def test_a_book_from_an_address_is_downloaded_once(here, tmp_path, capfd):
    requests = []

    def refusal(address):
        capfd.readouterr()
        with pytest.raises(SystemExit, match="2"):
            here(address)
        return one_line(capfd.readouterr().err)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            body = invented_book().encode()
            self.send_response(404 if "missing" in self.path else 200)
            self.send_header("Content-Length", str(10**9 if "huge" in self.path else len(body) + 100 * ("short" in self.path)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            """Keep the server quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        for _ in range(2):
            assert here(f"{address}/books/light.txt?x=1").name == "light"
        assert requests == ["/books/light.txt?x=1"]
        assert "404" in refusal(f"{address}/missing")
        assert "larger than" in refusal(f"{address}/huge.txt")
        assert "broke off" in refusal(f"{address}/short.txt")
    finally:
        server.shutdown()
        server.server_close()
    assert "cannot be downloaded" in refusal(f"{address}/other.txt")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["latest", "light", "light.txt", "light.txt.url"]


# ---- books as people have them ---------------------------------------------------------------------------------------

PROSE = ["The keeper lit the lamp while the rain came down on the island and nobody in the village saw it from the shore below. "
         "He counted the boats at the landing and wrote the number down.", "The gull came back in the morning with the wind behind it and sat upon the "
         "gate of the garden until the boy had eaten. Nobody had asked it to come."]


def wrapped(paragraphs, width=66):
    """Paragraphs as a file hard-wrapped at `width` has them."""
    return "\n\n".join(textwrap.fill(paragraph, width) for paragraph in paragraphs)


def read(tmp_path, name, content):
    """(paragraphs, headings, what was found) of a file with that content."""
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    found = p.Found()
    parts = p.clean(p.read_book(tmp_path / name, found)[0], found)
    return [text for text, heading in parts if not heading], [text for text, heading in parts if heading], found


GUTENBERG = """The Project Gutenberg eBook of {0}

Title: {0}

*** START OF THE PROJECT GUTENBERG EBOOK {0} ***

Produced by Someone and the Distributed Proofreading Team

{1}

{2}

You may copy it under the terms of the licence.
"""
PLAIN = "\n\n".join(PROSE * 6)
REMOVED = {             # what -> (a file, what must stay, what must go)
    "an illustration that is never closed": (f"{PROSE[0]}\n\n[Illustration: The gull\n\n{PLAIN}\n\n[Illustration]\n", PROSE * 6, "Illustration"),
    "an illustration of two paragraphs": (f"{PROSE[0]}\n\n[Illustration: The gull\n\n[_Copyright_]]\n\n{PLAIN}", PROSE, "Copyright"),
    "notes in brackets": (f"{PLAIN}\n\n[Footnote 1: A note [sic] in\n\ntwo paragraphs.]\n\n[Sidenote: ASIDE]\n\n{PROSE[1]}", PROSE, "note|sic|ASIDE"),
    "marks of notes and pages": (f"{PLAIN}\n\nThe lamp[1] was{{12}} lit[Pg 13] again.\n\n[1] A very old lamp.\n", ["The lamp was lit again."], "old lamp|Pg"),
    "a contents list without its word": ("Chapter 1. Rain . . . . 1\nChapter 2. Sun . . . . 9\nChapter 3. Wind . . . . 12\n\n" + PLAIN, PROSE, "Sun"),
    "a contents list before poems": ("CONTENTS\n\nI. Dawn    1\nII. Dusk    2\n\n\n\nI\n\nthe gate opens\nthe bread is warm\n\nthe dogs lie down\nin the yard\n\n\n"
                                     + PLAIN, ["the gate opens\nthe bread is warm", "the dogs lie down\nin the yard"], "Dusk"),
    "a transcriber's note": (f"{PLAIN}\n\n\nTranscriber's Notes\n\nErrors were mended.\n\n\n{PROSE[0]}", [PROSE[0]], "mended"),
    "a small print at the end": (f"The Project Gutenberg Etext of Rain\n\n{PLAIN}\n\nEnd of the Project Gutenberg Etext of Rain\n\nLaw.\n\n"
                                 "*END THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.1*END*\n", PROSE, "SMALL|Law|Etext"),
    "a small print at the beginning": (f"Words.\n\n***START**THE SMALL PRINT!**START***\n\nLaw.\n\n*END*THE SMALL PRINT! Ver.1*END*\n\n{PLAIN}", PROSE, "SMALL|Law"),
    "two books": (GUTENBERG.format("RAIN", PLAIN, "End of Project Gutenberg's Rain\n\n*** END OF THE PROJECT GUTENBERG EBOOK RAIN ***")
                  + GUTENBERG.format("SUN", "The second book.", "*** END OF THIS PROJECT GUTENBERG EBOOK SUN ***"), [*PROSE, "The second book."], "Gutenberg|copy|Someone"),
    "a wrapped start line": (GUTENBERG.format("A LONG\nTITLE", PLAIN, "Ende dieses Projekt Gutenberg Etextes"), PROSE, "Gutenberg|TITLE|Someone"),
    "text after the licence": (GUTENBERG.format("RAIN", PLAIN, "End of Project Gutenberg's Rain") + "newsletter to hear about new eBooks.\n\nOne more word.",
                               [*PROSE, "One more word."], "Gutenberg|newsletter"),
}


@pytest.mark.parametrize("what", REMOVED)
def test_what_is_not_the_authors_goes_and_nothing_else(tmp_path, what):
    content, stay, go = REMOVED[what]
    paragraphs, headings, found = read(tmp_path, "b.txt", content)
    assert set(stay) <= set(paragraphs)
    assert not re.search(go, "\n".join(paragraphs + headings))
    assert sum(found.removed.values()) > 3 and sum(found.removed.values()) < len(content) - sum(map(len, paragraphs))


def test_a_large_part_left_out_is_said_and_counted(here, tmp_path, capsys):
    (tmp_path / "b.txt").write_text(invented_book() + f"\n\n[Footnote 1: {'A note that goes on. ' * 180}]\n" * 2)
    made = statistics(here("b.txt"))
    assert made["removed"]["notes"] > 7000 and any("left out" in warning for warning in made["warnings"])
    (tmp_path / "b.txt").write_text(invented_book() + "\n\n[Footnote 1: Short.]\n")
    made = statistics(here("b.txt"))
    assert made["removed"] == {"notes": 20} and not any("left out" in warning for warning in made["warnings"])
    assert "notes 20" in capsys.readouterr().out


SCRIPTS = {
    "russian": "Старик зажёг лампу, пока шёл дождь, и никто в деревне этого не видел. Утром он сосчитал лодки и записал число.",
    "greek": "Ο γέρος άναψε τη λάμπα ενώ έβρεχε και κανείς στο χωριό δεν το είδε. Το πρωί μέτρησε τις βάρκες και έγραψε τον αριθμό.",
    "arabic": "أشعل الرجل المصباح بينما كان المطر ينزل على الجزيرة ولم يره أحد في القرية. وفي الصباح عد القوارب وكتب العدد.",
    "hindi": "बूढ़े ने दीपक जलाया जब वर्षा हो रही थी और गाँव में किसी ने उसे नहीं देखा। सुबह उसने नावें गिनीं और संख्या लिखी।",
    "chinese": "老人在下雨的时候点亮了灯，村里没有人看见他。早上他数了码头上的船，把数目写在本子里，然后坐下来吃早饭。",
    "japanese": "老人は雨の降る間にランプを灯したが、村の誰もそれを見なかった。朝になると彼は船を数え、その数を帳面に書いた。",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_hard_wrapped_prose_is_reflowed_in_every_script(tmp_path, script):
    text, width = SCRIPTS[script], 24 if script in ("chinese", "japanese") else 40
    parts = [text, text + text if width == 24 else f"{text} {text}"] * 6
    content = "\n\n".join("\n".join(x[i:i + width] for i in range(0, len(x), width)) if width == 24 else textwrap.fill(x, width) for x in parts)
    assert read(tmp_path, "b.txt", content)[0] == parts


def test_verse_stays_in_lines_in_every_script(tmp_path):
    poem = "床前明月光，\n疑是地上霜。\n举头望明月，\n低头思故乡。"
    assert poem in read(tmp_path, "b.txt", "\n\n".join([poem] * 9))[0]
    wrapped_chinese = "\n\n".join("\n".join(SCRIPTS["chinese"][i:i + 24] for i in range(0, 53, 24)) for _ in range(9))
    assert poem in read(tmp_path, "b.txt", f"{wrapped_chinese}\n\n{poem}\n\n{wrapped_chinese}")[0]
    poem = "Белеет парус одинокой\nВ тумане моря голубом!..\nЧто ищет он в стране далекой?\nЧто кинул он в краю родном?.."
    assert poem in read(tmp_path, "b.txt", f"{wrapped([SCRIPTS['russian']] * 9)}\n\n{poem}\n")[0]


@pytest.mark.parametrize("script, encoding", [("russian", "cp1251"), ("russian", "koi8-r"), ("greek", "iso-8859-7"), ("japanese", "shift_jis"),
                                              ("japanese", "euc_jp"), ("chinese", "gb18030"), ("chinese", "big5")])
def test_undeclared_encodings_are_recognised_and_can_be_overruled(here, tmp_path, monkeypatch, script, encoding):
    text = (SCRIPTS[script] + "\n\n").replace("ё", "е") * 9 if encoding != "big5" else "老人點亮了燈，村裡沒有人看見他。\n\n" * 20
    assert set(read(tmp_path, "b.txt", text.encode(encoding))[0]) == {text.split("\n\n")[0]}
    monkeypatch.setattr(p, "encoding", "cp1252")
    (tmp_path / "b.txt").write_bytes("naïve café\n".encode("cp1252"))
    assert p.read_book(tmp_path / "b.txt") == ("naïve café\n", "cp1252")


def test_a_declared_charset_wins_and_doubt_is_a_warning(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["prepare.py"])
    text = "Łódź i żółw, ćma, śnieg. "
    for declared, content in (("iso-8859-2", f'<html><head><meta charset="iso-8859-2"></head><p>{text * 9}</p></html>'),
                              ("windows-1250", f'<?xml version="1.0" encoding="windows-1250"?><html><p>{text * 9}</p></html>')):
        paragraphs, _, found = read(tmp_path, "b.htm", content.encode(declared))
        assert paragraphs == [(text * 9).strip()] and not found.warnings
    paragraphs, _, found = read(tmp_path, "b.htm", f'<html><head><meta charset="iso-8859-1"></head><p>{text * 9}</p></html>')
    assert paragraphs == [(text * 9).strip()], "UTF-8 that says otherwise is still UTF-8"
    _, _, found = read(tmp_path, "b.txt", "un café à la crème, s'il vous plaît\n".encode("cp1252") * 5)
    assert len(found.warnings) == 1 and "Windows-1252" in found.warnings[0] and "--encoding" in found.warnings[0]
    for name, message in (("klingon", "klingon"), ("utf-8", "damaged")):
        monkeypatch.setattr(p, "encoding", name)
        with pytest.raises(SystemExit):
            p.read_book(tmp_path / "b.txt")
        assert message in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("begin", ["<!-- saved -->\n<html><body>", "<p>Yes.</p>", "<html><head><title>x</title>", "Header line\n<html><head></head><body>"])
def test_html_is_recognised_however_it_begins(tmp_path, begin):
    paragraphs, headings, _ = read(tmp_path, "b.txt", begin + "<h2>One</h2>" + "<p>The lamp &amp; the <i>sea</i>.</p>" * 30)
    assert paragraphs[-30:] == ["The lamp & the sea."] * 30 and "One" in headings


HTML = """<html><head><title>Rain</title></head><body><div id="pg-header">LICENCE</div><nav>NAVIGATION</nav><h2>One<br>Rain</h2>
<ul><li><a href="#a">Rain</a> 1</li><li><a href="#b">Sun</a> 2</li><li><a href="#c">Wind</a> 3</li></ul>
<p id="a" class="first">The lamp<a href="#n1"><sup>1</sup></a> was<sup>2</sup> lit<a epub:type="noteref" href="#n3">*</a> in the win<span class="pagenum">[Pg 3]</span>dow.</p>
<p>x<sup>2</sup> and the M<sup>r</sup>\u2060, 1<sup>st</sup></p><p>“Never again—” she began</p><p>»Ich weiß«</p><p>Short</p><p>Shorter</p>
<p>Deep is the sea,<br/>long is<br/>the night.</p><p><ruby>灯<rt>ひ</rt></ruby>です<a href="#top">↩</a></p>
<table><tr><td>May</td><td>nine</td></tr><tr><td>June</td><td>ten</td></tr></table><pre>if lit:
    wait()

done</pre><aside epub:type="footnote"><p>A FOOTNOTE.</p></aside><div class="transnote">MENDED</div><h3>Two</h3><p class="pagenum">A paragraph that a page break is on.</p>
<h3>Three</h3><a id="x"/><p>Last</p></body></html>"""


def test_markup_says_what_is_what(tmp_path):
    paragraphs, headings, found = read(tmp_path, "b.htm", HTML)
    assert headings == ["One\nRain", "Two", "Three"]
    assert paragraphs == ["The lamp was lit in the window.", "x2 and the Mr, 1st", "“Never again—” she began", "»Ich weiß«", "Short", "Shorter",
                          "Deep is the sea,\nlong is\nthe night.", "灯です", "May nine\nJune ten", "if lit:\n    wait()", "done",
                          "A paragraph that a page break is on.", "Last"]
    assert set(found.removed) == {"licence", "contents", "marks", "notes"} and found.title == "Rain"


def test_html_that_holds_plain_text_or_several_pages(tmp_path):
    pre = GUTENBERG.format("RAIN", wrapped(PROSE * 9), "*** END OF THE PROJECT GUTENBERG EBOOK RAIN ***")
    paragraphs, headings, found = read(tmp_path, "b.htm", f"<html><body><pre>{pre}</pre></body></html>")
    assert paragraphs == PROSE * 9 and not headings and found.title == "RAIN"
    pages = "".join(f"<?xml version='1.0'?><!DOCTYPE html><html><head><title>{i}</title></head><body><p>Page {i}.</p></body></html>" for i in range(3))
    assert read(tmp_path, "b.htm", pages)[0] == ["Page 0.", "Page 1.", "Page 2."]


def test_fictionbook_is_read_and_other_formats_are_refused_by_name(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["prepare.py"])
    fb2 = ('<?xml version="1.0" encoding="utf-8"?><FictionBook xmlns="http://www.gribuser.ru/xml/fictionbook/2.0"><description><title-info>'
           "<book-title>Дождь</book-title></title-info></description><body><section><title><p>One</p><p>Rain</p></title><p>The <emphasis>lamp</emphasis>"
           '<a type="note" href="#n1">[1]</a> was lit.</p><poem><stanza><v>Deep sea,</v><v>long night.</v></stanza></poem></section></body>'
           '<body name="notes"><p>A NOTE</p></body><binary id="c">QUJD</binary></FictionBook>')
    paragraphs, headings, found = read(tmp_path, "b.fb2", fb2)
    assert (paragraphs, headings, found.title) == (["The lamp was lit.", "Deep sea,\nlong night."], ["One\nRain"], "Дождь")
    for kind, content in (("RTF", rb"{\rtf1\ansi Rain\par}"), ("DOC", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99)), ("MOBI", b"x" * 60 + b"BOOKMOBI" + b"y" * 99)):
        with pytest.raises(SystemExit):
            read(tmp_path, "b.txt", content)
        assert kind in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("text, expected", [("He read «Donnez-\nmoi» and vingt-\nsept.", "«Donnez-moi» and vingt-sept."), ("Korn- und\nGemüse-\nund Mehlsäcke.", "Korn- und Gemüse- und"),
                                            ("It was an elab-\norate lamp.", "elaborate lamp"), ("The light-\nhouse stood.", "The lighthouse stood")])
def test_line_end_hyphens(text, expected):
    scanned = "" if "-moi" in expected or "Korn" in expected else "\n\nThe light-\nhouse keeper took an exam-\nination. The lighthouse and the examination were far."
    filling = wrapped(PROSE * 6)
    assert expected in "\n".join(paragraph for paragraph, _ in p.clean(f"{filling}\n\n{text}{scanned}\n\n{filling}"))


def test_titles_of_people_end_no_sentence():
    text, pieces = p.cut([("Here Mr. Young met Mrs. White, Capt. Brown and Dr. May. They spoke. M. Petit said no. Fr. Klein left St. Ives.", False)])
    assert [text[x.start:x.end] for x in pieces] == ["Here Mr. Young met Mrs. White, Capt. Brown and Dr. May.", "They spoke.", "M. Petit said no.", "Fr. Klein left St. Ives."]


def test_dialogue_is_no_heading_where_every_gap_is_wide(tmp_path):
    lines = ["„Wer ist da?“", "»Ich bin es, mein Freund«", "「青い門はどこだ」", "— Не знаю", "They went out into the rain．", "“Yes”"] * 4
    paragraphs, headings, _ = read(tmp_path, "b.txt", "\n\n\n".join(["CHAPTER I", *lines, "CHAPTER II", *lines]))
    assert headings == ["CHAPTER I", "CHAPTER II"] and paragraphs == lines * 2
    text, pieces = p.cut([("門を見た．海を見た．", False)])
    assert len(pieces) == 2


def test_an_epub_is_read_as_far_as_it_goes(tmp_path):
    page = "<p>The lamp was lit again.</p>"
    whole = {"a.xhtml": page + "<p>First.</p>", "b.xhtml": page + "<p>Second.</p>", "imprint.xhtml": "<p>IMPRINT</p>", "c.xhtml": '<section epub:type="copyright-page">LAW</section>'}

    def changed(before, after, extra=None):
        archive = zipfile.ZipFile(io.BytesIO(epub(whole, extra=extra)))
        (buffer := io.BytesIO())
        with zipfile.ZipFile(buffer, "w") as out:
            for name in archive.namelist():
                content = archive.read(name)
                out.writestr(name, content.replace(before, after) if name.endswith(".opf") else content)
        return buffer.getvalue()

    for before, after, extra, missing in (
            (b"", b"", None, 0), (b'href="b.xhtml"', b'href="gone.xhtml"', None, 1), (b'idref="i1"', b'idref="nothing"', None, 1),
            (b'href="b.xhtml" media-type="application/xhtml+xml"', b'href="p.jpg" media-type="image/jpeg"', {"OPS/p.jpg": b"\xff\xd8\xff" + bytes(999)}, 1),
            (b'href="b.xhtml"', b'href="b.xhtml#here"', None, 0), (b'href="b.xhtml"', b'href=".\\B.xhtml"', None, 0),
            (b'href="b.xhtml"', b'href="d%20e.xhtml"', {"OPS/d%20e.xhtml": "<p>Second.</p>"}, 0),
            (b"<manifest>", b'<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>Rain &amp; Sun</dc:title></metadata><manifest>', None, 0)):
        paragraphs, _, found = read(tmp_path, "b.epub", changed(before, after, extra))
        assert "First." in paragraphs and ("Second." in paragraphs) == (not missing), after
        assert not {"IMPRINT", "LAW"} & set(paragraphs) and found.removed["licence"] >= 10
        assert len(found.warnings) == bool(missing) and (not missing or "left out" in found.warnings[0])
    assert found.title == "Rain & Sun"


def test_the_title_of_the_book(here, tmp_path):
    (tmp_path / "b.txt").write_text(GUTENBERG.format("The Rain\n    of May", invented_book(), "*** END OF THE PROJECT GUTENBERG EBOOK RAIN ***"))
    assert statistics(here("b.txt"))["title"] == "The Rain of May"
    assert statistics(here("b.txt", "--title=Sun"))["title"] == "Sun"
    (tmp_path / "c.txt").write_text(invented_book())
    assert statistics(here("c.txt"))["title"] == "c"


def test_awkward_names_and_links(here, tmp_path):
    for name, folder in (("..txt", "book"), ("end .txt", "end"), (os.fsdecode(b"caf\xe9.txt"), "caf_"), ("a.b.txt", "a.b")):
        (tmp_path / name).write_text(invented_book())
        assert here(name).name == folder and (tmp_path / "data" / folder / "text.txt").exists()
    (tmp_path / "a.txt").write_text(invented_book())
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a.txt").write_text(invented_book(seed=1))
    assert [here(name).name for name in ("a.txt", "other/a.txt", "a.txt", tmp_path / "other/a.txt")] == ["a", "a-2", "a", "a-2"]
    assert (tmp_path / "data/a/text.txt").read_text() == invented_book().strip() != (tmp_path / "data/a-2/text.txt").read_text()
    (tmp_path / "data/a").rename(tmp_path / "disk")
    (tmp_path / "data/a").symlink_to(tmp_path / "disk")
    for _ in range(3):
        here("a.txt")
    assert (tmp_path / "data/a").is_symlink() and sorted(x.name for x in (tmp_path / "data").iterdir() if "a" in x.name[:2]) == ["a", "a-2", "a.b", "caf_", "latest"]


def test_held_out_splits_are_large_enough_or_said_to_be_small(here, tmp_path):
    def heldout(paragraphs, *flags):
        (tmp_path / "b.txt").write_text(invented_book(paragraphs))
        made = statistics(here("b.txt", *flags))
        return [made["splits"][name] for name in ("val", "test")], [warning for warning in made["warnings"] if "rough" in warning or "holds" in warning]
    splits, warnings = heldout(900)
    assert all(4000 < split["tokens"] < 7000 for split in splits) and all(split["share"] < 0.15 for split in splits) and not warnings
    splits, warnings = heldout(200)
    assert all(0.1 < split["share"] < 0.2 for split in splits) and len(warnings) == 2 and all("rough" in warning for warning in warnings)
    splits, warnings = heldout(900, "--heldout_tokens=0")
    assert all(0.03 < split["share"] < 0.07 for split in splits)


# ---- scores and stages -----------------------------------------------------------------------------------------------

def test_percentile_ranks_know_training_values_only():
    values = np.array([1.0, 2.0, 2.0, 3.0, 99.0])
    assert p.rank(values, np.array([1, 1, 1, 1, 0], bool)).tolist() == [0.125, 0.5, 0.5, 0.875, 1.0]


def test_rare_words_make_a_sentence_rare():
    documents = [["the", "sea"], ["the", "lamp"], ["the", "sea", "whale"]]
    common, rare, unseen = p.lexical_rarity([["the", "the"], ["the", "whale"], ["kraken"]], documents)
    assert common == 0 < rare < unseen


def test_clauses_and_depth_grow_with_subordination():
    order = ["I came.", "The old man came to the house by the sea.",
             "I told the man who came that the boy believed that she knew what they wanted because he heard it."]
    clauses, depth = p.clauses_and_depth(order, True, p.Phases())
    assert clauses.tolist() == sorted(clauses) and clauses[0] == 1 and clauses[2] >= 5
    assert depth.tolist() == sorted(set(depth))
    clauses, depth = p.clauses_and_depth(["Er kam.", "Er kam, weil es regnete, und blieb."], False, p.Phases())
    assert clauses.tolist() == [1, 3] and not depth.any()


def test_reading_grade_knows_a_primer_from_a_treatise():
    easy, hard = p.reading_grade(["The cat sat on the mat.", "Philosophical considerations notwithstanding, incontrovertible evidence "
                                  "necessitated a comprehensive reexamination of institutional responsibilities."], True, p.Phases())
    assert easy < 3 and hard > 15


def test_yules_k_sees_repetition_and_stays_within_its_run():
    varied, repeated = [f"w{i}" for i in range(20)], ["the", "lamp"] * 10
    k = p.yules_k([varied, repeated], [0, 1])
    assert k[0] == 0 < k[1]
    assert p.yules_k([repeated], [0])[0] == pytest.approx(1e4 * (2 * 10**2 - 20) / 20**2)


def test_a_sentence_of_the_main_theme_is_more_central_than_an_outlier():
    words = [["keeper", "lamp", "sea", f"n{i % 7}"] for i in range(60)] + [["tax", "ledger", "bank"]] * 3 + [["kraken", "zebra"]]
    centrality = p.thematic_centrality(words, np.arange(64) < 60)
    assert centrality[:60].mean() > centrality[63]
    train = np.ones(64, bool)
    assert p.thematic_centrality(words, train)[:60].mean() > p.thematic_centrality(words, train)[60:63].mean()


def test_difficulty_orders_sentences_as_a_reader_would(data):
    text, rows = (data / "text.txt").read_text(encoding="utf-8"), segments(data)
    rows.sort(key=lambda row: row["difficulty"])
    easy, hard = rows[:30], rows[-30:]
    assert np.mean([row["words"] for row in easy]) * 2 < np.mean([row["words"] for row in hard])
    assert np.mean([row["flesch_kincaid_grade"] for row in easy]) + 5 < np.mean([row["flesch_kincaid_grade"] for row in hard])
    assert all(0 <= row["difficulty"] <= 1 for row in rows)
    assert len(text[hard[-1]["start"]:hard[-1]["end"]]) > 100


def test_toulmin_roles():
    sentences = ["The rain came down all night.", "Therefore the boat must stay.", "For example, I saw the rope break.", "Perhaps it will hold.",
                 "But the keeper did not agree.", "Whenever it rains, the sea is always high.", "The lamp was lit."]
    roles = p.toulmin_roles(sentences, [0] * 6 + [1])
    assert [role for role, _ in roles] == ["evidence", "claim", "evidence", "qualifier", "rebuttal", "warrant", "none"]
    assert all(0 <= confidence < 1 for _, confidence in roles)
    assert roles[0][1] < roles[2][1], "a mark counts for more than position"
    before = [["The dog slept.", "You must see the boat."], ["Is it late?", "Therefore we must go."], ["As I rose, the sun set.", "It is so."]]
    assert all(p.toulmin_roles(pair, [0, 0])[0][0] == "none" for pair in before), "evidence is more than the sentence before"


def test_argument_pairs_come_first_and_neighbours_make_the_stage_as_large_as_without(here, tmp_path):
    paragraphs = invented_book().strip().split("\n\n")
    (tmp_path / "b.txt").write_text("\n\n".join(f"On a dark night {i} the lamp was dark. Therefore we must find the {'boat lamp sea'.split()[i % 3]}. Alas! " * (i % 2) + text
                                                for i, text in enumerate(paragraphs)))
    plain = statistics(here("b.txt"))["stages"]["2"]
    data = here("b.txt", "--argument_structure")
    stage = statistics(data)["stages"]["2"]
    assert list(stage["pairs_of"])[0] == "evidence and claim" and stage["pairs_of"]["evidence and claim"] > 10
    assert stage["examples"] == plain["examples"] == sum(stage["pairs_of"].values())
    tok = p.Tokenizer.load(data / "tokenizer.json")
    pairs = [tok.decode(pair) for pair in examples(data, "stage2_train")]
    argued = [pair for pair in pairs if "the lamp was dark" in pair and "Therefore we must" in pair]
    assert len(argued) >= 10 and all(pair.index("the lamp was dark") < pair.index("Therefore we must") for pair in argued)
    assert not any("Alas!" in pair for pair in pairs), "an interjection is no half of a pair"
    assert all(pair.count(tok.special["[SEP]"]) == 1 for pair in examples(data, "stage2_train"))
    assert {"claim", "evidence"} <= {row["role"] for row in segments(data)}


def test_a_scarce_stage_is_relaxed_then_repeated_and_says_so(here, tmp_path):
    (tmp_path / "b.txt").write_text(invented_book(), encoding="utf-8")
    for share, relaxed, repeated in ((0.0, False, False), (0.2, True, False), (0.9, True, True)):
        stage = statistics(here("b.txt", f"--min_stage_share={share}"))["stages"]["1"]
        assert ((stage["relaxed_by"] > 0), (stage["repeated_examples"] > 0)) == (relaxed, repeated), stage
        assert stage["examples"] >= share * statistics(tmp_path / "data/b")["splits"]["train"]["sentences"]


def test_one_reference_for_rarity(here, tmp_path):
    (tmp_path / "b.txt").write_text(invented_book(), encoding="utf-8")
    (tmp_path / "r.txt").write_text("The gull flew.\n\nA gull sat.\n\nGull and rope.\n" * 5, encoding="utf-8")
    own, other = (segments(here("b.txt", *flags)) for flags in ((), ("--reference=r.txt",)))
    assert [row["lexical_rarity"] for row in own] != [row["lexical_rarity"] for row in other]
    assert [row["parse_depth"] for row in own] == [row["parse_depth"] for row in other]


def test_the_extremes_and_the_savings_are_printed(here, tmp_path, capsys):
    (tmp_path / "b.txt").write_text(invented_book(), encoding="utf-8")
    here("b.txt", "--show_extremes=5")
    printed = capsys.readouterr().out
    assert printed.count("  0.") >= 10 and "hardest sentences" in printed and "easiest sentences" in printed
    ones, pairs = printed.split("ten sentences of stage I\n")[1].split("\n\nten pairs of stage II\n")
    assert ones.count("\n") == 9 and pairs.count(" | ") == pairs.strip().count("\n") + 1 == 10
    assert "parameters" in printed and "leaked into training: 0" in printed
