"""prepare.py as its users run it: real books, real files, real processes; then its parts, on cases beyond dispute. The reading is test_reading.py's."""
import copy
import http.server
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from test_reading import GUTENBERG, epub, invented_book, one_line  # noqa: E402

import prepare as p  # noqa: E402
from configurator import documented  # noqa: E402
from reading import LONGEST_SENTENCE  # noqa: E402

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


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("prepared"), find_book())


@pytest.fixture(scope="session")
def tokenizer(data):
    return p.Tokenizer.from_dict(json.loads((data / "tokenizer.json").read_bytes()))


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
        assert 0.03 < statistics(data)["splits"][name]["share"] < 0.1         # of a short book more


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


@p.cache
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
        tok = p.Tokenizer.from_dict(json.loads((data / "tokenizer.json").read_bytes()))
        assert max(map(max, examples(data, "val"))) < tok.vocab_size == len(tok.tokens)
        sizes.append(tok.vocab_size)
        lengths.append(statistics(data)["splits"]["train"]["tokens"])
        assert statistics(data)["vocabulary"]["parameters_saved"] == (50257 - tok.vocab_size) * 768
    assert sizes[0] > max(sizes[1:]) and sizes[3] == 300
    assert lengths[0] < min(lengths[1:])
    assert len({statistics(data)["bytes"]}) == 1


# ---- any book --------------------------------------------------------------------------------------------------------


def test_sentences_in_other_scripts_and_after_abbreviations():
    def sentences(text):
        whole, pieces = p.cut([(text, False)])
        return [whole[piece.start:piece.end] for piece in pieces]

    assert sentences("“Who is it?” he asked. “Me!” cried she.") == ["“Who is it?” he asked.", "“Me!” cried she."]
    assert sentences("今天很好。他说：“走吧！”我们走了。") == ["今天很好。", "他说：“走吧！”", "我们走了。"]
    assert sentences("यह एक घर है। वह गया।") == ["यह एक घर है।", "वह गया।"]
    run_on = sentences("word " * 2000)
    assert max(map(len, run_on)) <= LONGEST_SENTENCE and sum(len(s.split()) for s in run_on) == 2000


def test_the_encoding_is_printed_and_the_text_saved_in_utf_8(here, tmp_path, capsys):
    (tmp_path / "b.txt").write_bytes(invented_book(30).replace("keeper", "café “owner” – naïve").encode("cp1252"))
    here("b.txt")
    assert "Windows-1252" in capsys.readouterr().out and "café “owner”" in (tmp_path / "data/b/text.txt").read_text(encoding="utf-8")


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


OUTSIDE = {"block_size": (0, 15, 70000), "seed": (-1,), "val_share": (0, 0.3, 2, "1e999"), "test_share": (0.0, 0.26), "heldout_tokens": (-1,), "heldout_blocks": (0,),
           "tokenizer": ("word", ""), "vocab_size": (259, 65536), "target_coverage": (0, 1.01), "min_count": (-1,), "n_embd": (0,), "stage1_complexity": (-0.1, 1.1),
           "stage1_centrality": (-0.1, 1.1), "stage1_min_words": (-1,), "stage1_max_words": (0,), "stage2_complexity": (-0.1, 2.0), "min_stage_share": (-0.1, 11.0),
           "max_relaxation": (-0.1, 1.1), "show_extremes": (-1,)}


@pytest.mark.parametrize("knob", OUTSIDE)
def test_a_knob_just_outside_its_range_is_refused_by_name(here, capfd, knob):
    for value in OUTSIDE[knob]:
        with pytest.raises(SystemExit, match="2"):
            here("nothing.txt", f"--{knob}={value}")
        assert f"--{knob} lies in" in one_line(capfd.readouterr().err), value


def test_every_number_has_a_range():
    for name, comment in documented(p.__file__):
        if type(KNOBS[name]) in (int, float):
            assert comment.endswith(("]", ")")) and name in OUTSIDE, name


NO_WEIGHTS = "--difficulty_weights={'lexical_rarity': 0.0, 'syntactic_complexity': 0.0, 'thematic_centrality': 0.0, 'yules_k': 0.0}"


@pytest.mark.parametrize("flag", ["--block_size=4", "--val_share=0", "--tokenizer=word", "--vocab_size=70000", "--target_coverage=0", "--blok_size=4", NO_WEIGHTS])
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


def test_a_large_part_left_out_is_said_and_counted(here, tmp_path, capsys):
    (tmp_path / "b.txt").write_text(invented_book() + f"\n\n[Footnote 1: {'A note that goes on. ' * 180}]\n" * 2)
    made = statistics(here("b.txt"))
    assert made["removed"]["notes"] > 7000 and any("left out" in warning for warning in made["warnings"])
    (tmp_path / "b.txt").write_text(invented_book() + "\n\n[Footnote 1: Short.]\n")
    made = statistics(here("b.txt"))
    assert made["removed"] == {"notes": 20} and not any("left out" in warning for warning in made["warnings"])
    assert "notes 20" in capsys.readouterr().out
    licence = "*** END OF THE PROJECT GUTENBERG EBOOK ***\n" + "You may copy it, give it away or re-use it.\n" * 500
    (tmp_path / "b.txt").write_text(f"{invented_book()}\n\n{licence}")
    made = statistics(here("b.txt"))
    assert made["removed"]["licence"] > 20_000 and not any("left out" in warning for warning in made["warnings"])


def test_titles_of_people_end_no_sentence():
    text, pieces = p.cut([("Here Mr. Young met Mrs. White, Capt. Brown and Dr. May. They spoke. M. Petit said no. Fr. Klein left St. Ives.", False)])
    assert [text[x.start:x.end] for x in pieces] == ["Here Mr. Young met Mrs. White, Capt. Brown and Dr. May.", "They spoke.", "M. Petit said no.", "Fr. Klein left St. Ives."]


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
    clauses, depth, _ = p.syntax(order, True)
    assert clauses.tolist() == sorted(clauses) and clauses[0] == 1 and clauses[2] >= 5
    assert depth.tolist() == sorted(set(depth))
    clauses, depth, grade = p.syntax(["Er kam.", "Er kam, weil es regnete, und blieb."], False)
    assert clauses.tolist() == [1, 3] and not depth.any() and not grade.any()


def test_reading_grade_knows_a_primer_from_a_treatise():
    *_, (easy, hard) = p.syntax(["The cat sat on the mat.", "Philosophical considerations notwithstanding, incontrovertible evidence "
                                 "necessitated a comprehensive reexamination of institutional responsibilities."], True)
    assert easy < 3 and hard > 15


def test_yules_k_sees_repetition_and_stays_within_its_run():
    varied, repeated = [f"w{i}" for i in range(20)], ["the", "lamp"] * 10
    k = p.yules_k_around([varied, repeated], [0, 1])
    assert k[0] == 0 < k[1]
    assert p.yules_k_around([repeated], [0])[0] == pytest.approx(1e4 * (2 * 10**2 - 20) / 20**2)


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
    tok = p.Tokenizer.from_dict(json.loads((data / "tokenizer.json").read_bytes()))
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
