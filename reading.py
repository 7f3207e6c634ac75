"""prepare.py's first half: a book's file or address becomes clean paragraphs and headings.

Markup says what is what; in plain text the look of lines and the rest of the book do. What is in doubt stays.
"""
import codecs
import contextlib
import posixpath
import re
import unicodedata
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import mode
from urllib.parse import unquote, urlsplit

import numpy as np

from configurator import fail

MAX_BYTES = 64 * 2**20  # of a book, downloaded or unpacked
LONGEST_SENTENCE = 2000  # characters; longer ones are cut at a space


# ---- reading

@dataclass
class Found:
    """What is learnt beside the text; removed: {kind: characters left out}."""
    title: str = ""
    warnings: list = field(default_factory=list)
    removed: Counter = field(default_factory=Counter)


MARKED, HEAD, KEPT = "\ufdd0\ufdd1\ufdd2"  # begin text from markup, a heading, lines with their spaces
FOREIGN = {b"%PDF-": "PDF", b"{\\rtf": "RTF", b"\xd0\xcf\x11\xe0\xa1": "DOC", b"BOOKM": "MOBI"}
TAGGED = (r"(?is)\s*(<(!--.*?--|[?!][^>]*)>\s*)*<(html|head|meta|title|link|style|body|h[1-6]|p|div|span|"
          r"section|article|a|b|i|em|center|font|table|ul|ol|pre|br|hr|img|FictionBook)\b")


def read_book(path, found=None, encoding=""):
    """Path of a book -> (text, name of its encoding), or fail()."""
    found, path = found or Found(), Path(path)
    try:
        if not path.is_file():
            fail(f"{path} does not exist or is not a file: name a book, as in python prepare.py book.txt")
        if path.stat().st_size > MAX_BYTES:
            fail(f"{path} is larger than {MAX_BYTES >> 20} MB: prepare a part of it")
        raw = path.read_bytes()
        if raw.startswith(b"PK\x03\x04"):
            text, name = read_epub(path, found, encoding), "epub"
        else:
            text, name = decode(raw, found, encoding)
            tags = len(re.findall("</?p>|<br", text, re.I))  # some HTML begins with lines of plain text
            if re.match(TAGGED, text) or tags > 20 + len(text) / 1000:
                text = markup_text(text, found)
        if not re.search(r"\w", text):
            fail(f"{path} has no words in it")
        return text, name
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror}")
    except ValueError as error:
        fail(f"{path} {error}")


def decode(raw, found, encoding=""):
    """bytes -> (text, name of its encoding): given, declared, or found by chardet; where UTF-8 and another
    are mixed, each line's own. ValueError where it is no text."""
    import chardet
    if kind := FOREIGN.get(raw[:5]) or FOREIGN.get(raw[60:65]):
        raise ValueError(f"is {kind}: convert it to .txt, .html or .epub first")
    wide = b"\0" in raw or raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    lines = [] if encoding else [raw] if wide else raw.split(b"\n")
    strange = [line for line in lines if line.decode("utf-8", "ignore").encode() != line]
    telling = b"\n".join([*filter(bytes.isascii, lines[:200]), *strange])
    declared = re.search(rb"(?m)^Character set encoding: *(?!utf)([\w -]*\d)", telling, re.I)
    guesses = chardet.detect_all(telling, max_bytes=10**6)
    near = 0.95 * guesses[0]["confidence"]  # Windows-1252 goes before what is hardly likelier
    guesses.sort(key=lambda guess: guess["encoding"] != "Windows-1252" or guess["confidence"] < near)
    name = encoding or guesses[0]["encoding"]
    with contextlib.suppress(LookupError, TypeError):
        name = codecs.lookup(declared[1].decode()).name
    if not name:
        raise ValueError("is not text: the book must be .txt, .html, .epub or .fb2")
    if not encoding and not strange and not re.match("ISO-2022|HZ|UTF-7", name):  # which look like ASCII
        return raw.decode("utf-8-sig"), "UTF-8"
    if re.fullmatch("iso-?8859-1|ascii", name, re.I):  # as browsers do
        name = "Windows-1252"
    # a few lines may be UTF-8 by accident, a tenth as many as the others are so on purpose
    mixed = 10 * sum(not line.isascii() for line in lines) > 11 * len(strange)
    odd = set(strange)
    try:
        text = ("\n".join(line.decode(name if line in odd else "utf-8") for line in lines) if mixed
                else raw.decode(name))
    except LookupError:
        raise ValueError(f"cannot be read as {name}: no encoding has that name") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"is damaged, or not {name} ({error}): name its --encoding") from None
    if not declared and guesses[0]["confidence"] < 0.9:
        for other in (guess["encoding"] for guess in guesses[1:]):
            if raw.decode(other, "replace") != text:
                found.warnings.append(f"The file does not say its encoding: read as {name}, next is {other}. "
                                      "Look at text.txt; --encoding=NAME decides.")
                break
    name = name.upper() if name.startswith("utf") else name
    return text, f"UTF-8, but {len(strange)} lines in {name}" if mixed else name


def read_epub(path, found, encoding):
    """An epub's text, in its spine's order; for what cannot be read, a warning."""
    from lxml import etree
    room, texts, missing = MAX_BYTES, [], []

    def place(name):  # links write names in other ways, or a % in a name as %25
        return posixpath.normpath(unquote(unquote(name)).replace("\\", "/")).casefold()

    def member(href):
        nonlocal room
        where = place(href)
        if where.startswith(("/", "..")):
            fail(f"{path} is not a sound epub: it points outside its archive, to {href}")
        content = archive.open(names[where]).read(room + 1)
        room -= len(content)
        if room < 0:
            fail(f"{path} unpacks to more than {MAX_BYTES >> 20} MB: it is too large, or a zip bomb")
        return content

    def tree(name):
        return etree.fromstring(member(name), etree.XMLParser(recover=True, resolve_entities=False))

    try:
        archive = zipfile.ZipFile(path)
        names = {place(name): name for name in archive.namelist()}
        package = tree("META-INF/container.xml").find(".//{*}rootfile").get("full-path")
        root, folder = tree(package), posixpath.dirname(package)
        found.title = " ".join(root.findtext(".//{*}title", "").split())
        items = {item.get("id"): item for item in root.iterfind(".//{*}item")}
        guide = {entry.get("href"): entry.get("type") for entry in root.iterfind(".//{*}reference")}
        for entry in root.iterfind(".//{*}itemref"):
            item = items.get(entry.get("idref"), {})
            href = item.get("href", entry.get("idref")).partition("#")[0]
            label = re.sub(r"[\W_]+", " ", f"{item.get('properties')} {guide.get(href)} {href}")
            try:
                if entry.get("linear") != "no":
                    part, _ = decode(member(posixpath.join(folder, href)), found, encoding)
                    texts.append(markup_text(part, found, label))
            except Exception:  # must not cost the whole book
                missing.append(href)
        if not texts:
            raise ValueError("none of its parts can be read")
    except Exception as error:  # whatever a damaged archive raises
        fail(f"{path} is not a readable epub ({error}): it may be damaged or encrypted")
    if missing:
        some = ", ".join(missing[:5])
        found.warnings.append(f"{len(missing)} of the epub's parts cannot be read and are left out: {some}.")
    return MARKED + "\n\n".join(texts)


HEADINGS = "h1 h2 h3 h4 h5 h6 subtitle".split()
BEFORE = {"br": "\n", "tr": "\n", "v": "\n", "td": "\t", "th": "\t"}
BLOCKS = HEADINGS + """
address article aside blockquote body caption center cite dd div dl dt empty-line epigraph figcaption
figure footer form header hr li main ol p poem pre section stanza table text-author ul""".split()
HIDDEN = "head title script style nav svg template iframe object select button binary description".split()
NOT_THE_AUTHORS = {  # kind: (words of class, id, role ... that mark it, characters at most)
    "marks": ("page-?(num(ber)?s?|no|break)|pb|noteref|fn-?anchor|(fn|footnote)-?ref|back-?(link|ref)", 25),
    "notes": ("(foot|end|rear|side|trans|t|transcribers?)-?notes?|marginalia", 100_000),
    "contents": ("toc|landmarks|lo[it]|page-list", 30_000),
    "licence": ("pg[-_]?(header|footer|boilerplate)|imprint|colophon|(un)?copyright(-page)?", 25_000)}
PG_TITLE = r"(?i)(The )?Project Gutenberg('s| e-?(book|text) of)\W*|\W*Project Gutenberg$"
NOTE_MARK = r"(?i)[\[({]?(\d{1,4}|[*†‡§¶]+)[\])}]?|[\[({]([a-z]|[ivxlc]+)[\])}]|\W?([↩↑⤴⇑^]|back|return)\W?"


def _labelled(label, size):
    for kind, (words, most) in NOT_THE_AUTHORS.items():
        if size <= most and re.search(rf"(?i)(?<!\S)(doc-)?({words})[-_.]?\d*(?!\S)", label):
            return kind


def _text(node):
    return "".join(node.itertext())


def _not_the_authors(node):
    """The kind of what editor or publisher put in."""
    tag, text = node.tag, _text(node).strip()
    if tag in ("rt", "rp"):
        return "marks"
    if tag in ("a", "sup") and re.fullmatch(NOTE_MARK, text):
        before = node.xpath("string(preceding-sibling::node()[1][self::text()])")
        after_word = re.search(r"([^\W\d_]{2}|[.,;:!?…)\]\"'’”»])\s*$", before)
        if "#" in node.get("href", "") or tag == "sup" and (after_word or node.xpath(".//a")):
            return "marks"
    if tag in ("p", "li", "ul", "ol", "table") and len(text) < 30_000:
        links = [a for a in node.iterfind(".//a") if not a.get("href", "http").startswith("http")]
        linked = sum(len(_text(a).strip()) for a in links) / max(1, len(text))
        if linked > 0.9 if tag in ("p", "li") else linked > 0.5 and len(links) > 2:
            return "contents"
    if tag not in HEADINGS:
        label = " ".join(node.get(name, "") for name in "class id epub:type role name type".split())
        return _labelled(label, len(text))


def markup_text(markup, found, label=""):
    """HTML, XHTML or FictionBook -> MARKED and its text: blank lines between blocks, HEAD before headings,
    KEPT before preformatted text; nothing if the label is of what is not the author's."""
    from lxml import etree, html
    fiction = "<FictionBook" in markup[:5000]
    options = dict(remove_comments=True, remove_pis=True, huge_tree=True, encoding="utf-8")
    if fiction:
        parser = etree.XMLParser(recover=True, resolve_entities=False, **options)
    else:  # maybe several pages, and XHTML's <a/>, which opens in HTML
        parser = html.HTMLParser(**options)
        for pattern, instead in (
                (r"<!doctype[^>]*>|</?html\b[^>]*>", ""), (r"(</?)body\b", r"\1div"),
                (r"<(?!(?:br|hr|img|col|link|meta|input|wbr)\b)([a-z]\w*)\b([^<>]*)/>", r"<\1\2></\1>")):
            markup = re.sub(pattern, instead, markup, flags=re.I)
    root = etree.fromstring(re.sub(r"<\?.*?>|\0", "", markup).encode("utf-8", "replace") or b"<p/>", parser)
    if root is None:  # nothing but comments
        return MARKED
    for node in root.iter():
        node.tag = re.sub(r".*}|[^\w:.-].*", "", node.tag).lower()  # of <p<i> the p
        if node.tag in ("title", "book-title"):
            found.title = found.title or re.sub(PG_TITLE, "", " ".join(_text(node).split()))
        if fiction and node.tag == "title":
            node.tag = "h1"
    for node in root.iter():
        if kind := "notes" if node.tag == "body" and node.get("name") else _not_the_authors(node):
            node.tag = "unwanted"
            if not node.xpath("ancestor::unwanted"):
                found.removed[kind] += len(_text(node))
    etree.strip_elements(root, "unwanted", *HIDDEN, with_tail=False)
    text = _laid_out(root)
    if kind := _labelled(label, len(text)):
        found.removed[kind] += len(text)
        return MARKED
    return text


def _laid_out(root):
    text, kept = _text(root), {*root.xpath("//pre//*")}
    if sum(len(_text(node)) for node in root.iter("pre")) > len(text) / 2:
        return text  # plain text in an HTML file
    for node in root.iter():
        text, tail = node.text or "", node.tail or ""
        if node not in kept:
            text, tail = text if node.tag == "pre" else re.sub(r"\s+", " ", text), re.sub(r"\s+", " ", tail)
        edge = "\n\n" if node.tag in BLOCKS else ""
        node.text, node.tail = BEFORE.get(node.tag, edge) + text, edge + tail
    for node in list(root.iter("pre", *HEADINGS)):
        text = _text(node)
        del node[:]
        if node.tag == "pre":
            node.text = re.sub(r"\A|\n\s*\n", f"\n\n{KEPT}", text.strip("\n")) + "\n\n"
        elif text.strip():
            node.text = f"\n\n{HEAD}" + re.sub(r"\s*\n\s*", "\n", text.strip()) + "\n\n"
    return MARKED + _text(root)


def download(url, begin):
    """Fetch a book to data/, once -> its path. begin(phase, total) -> advance(steps)"""
    from http.client import HTTPException
    from urllib.request import Request, urlopen
    name = re.sub(r"[^\w.-]", "_", posixpath.basename(unquote(urlsplit(url).path))).lstrip(".") or "book"
    path = Path("data", name if "." in name else name + ".txt")
    source, content = Path(f"{path}.url"), bytearray()
    if path.exists() and source.exists() and source.read_text("utf-8") == url:
        return path
    try:
        with urlopen(Request(url, headers={"User-Agent": "prepare.py"}), timeout=30) as response:
            size = response.length or 0
            advance = begin("downloading", response.length)
            while block := response.read(2**16):
                content += block
                advance(len(block))
                if max(size, len(content)) > MAX_BYTES:
                    fail(f"{url} is larger than {MAX_BYTES >> 20} MB: this is no book")
        if len(content) < size:
            fail(f"{url} broke off after {len(content)} of {size} bytes: try again")
        path.parent.mkdir(exist_ok=True)
        source.unlink(missing_ok=True)
        path.write_bytes(content)
        source.write_bytes(url.encode())  # last: what is without it is fetched again
    except (OSError, ValueError, HTTPException) as error:
        fail(f"{url} cannot be downloaded: {str(error).strip('<>')}")
    return path


# ---- cleaning

HEADING = re.compile(  # what chapters are called, and numbers that stand alone
    r"(chapter|letter|book|part|volume|vol|canto|act|scene|section|stave|chapitre|livre|partie|acte|kapitel|"
    r"buch|teil|band|cap[ií]tulo|capitolo|libro|parte|hoofdstuk|глава|часть|том)\W{1,3}"
    r"((?-i:[IVXLCDM]+)\b|\d+|[^\W\d_]+$)|第.{1,9}[章回节節卷]|"
    r"(prologue|epilogue|preface|foreword|introduction|afterword|appendix|finis|the end)\W?$|"
    r"((?-i:[IVXLCDM]+)|\d+)\.?$", re.I)
CONTENTS = ("(?i)(table of )?contents|(list of )?illustrations|inhalt(sverzeichnis)?|table des mati[èe]res|"
            "[íi]ndice|sommaire|inhoud|содержание|оглавление|目[录錄次]")
LIST_ITEM = re.compile(r"\s*([-*•–—]|\(?(\d{1,3}|[a-z]|[ivx]+)[.)])\s", re.I)
ONLY_STOPS = "。．｡！？؟۔।॥።။៕"  # full stops and nothing else
CLOSING = "\"'’”“»«›‹)\\]」』）》】"
SENTENCE_END = re.compile(rf"[.!?…:{ONLY_STOPS}][{CLOSING}—–-]*$")
LINE_STOP = re.compile(rf"[,;，、；،؛.!?…:{ONLY_STOPS}][{CLOSING}]*$")
UNAMBIGUOUS_END = re.compile(rf"[{ONLY_STOPS}]+[{CLOSING}]*\s*")
SPEECH = "[\"“„«»‹›‘‚「『《—–-]"  # what a paragraph of dialogue begins with
TITLE = re.compile(
    r"\b(M|Mr|Mrs|Ms|Messrs|Mme|Mlle|MM|Mgr|Drs?|Ste?|Capt|Col|Gen|Lieut|Lt|Maj|Sergt|Sgt|Rev|"
    r"Hon|Prof|Gov|Hr|Frl?|Sra?|Srta|Sig|Dott)\.\s*$")
EAST = "\u0e00-\u0eff\u1780-\u17ff\u3000-\u9fff\uf900-\ufaff\uff00-\uff9f\U00020000-\U0003ffff"  # no spaces
HYPHEN = r"\b([^\W\d_]+)-\n\s*([^\W\d_]+)\b(?!-)"
BEGIN = (r"START OF TH(E|IS) PROJECT GUTENBERG(([^*\n]+\n){1,4}?[^*\n]*\*\*\*.*|.*)\n|"
         r"END[* ]*THE SMALL PRINT.*\n")
FINISH = r"(the )?(ende?|fine?|fim|einde|slut|loppu)\b.{1,30}\bproje[ck]t.{0,12}gutenberg.*"
LICENCE = r"[\s\S]{0,30000}(newsletter\s+to\s+hear\s+about\s+new\s+eBooks|FULL LICENSE).*"
CREDITS = (r"(?im)\A\s*(^[^\w\n]*(Produced by|E-?text prepared|This e-?(text|book) was|Transcribed|"
           r"Scanned by|Prepared by|The Project Gutenberg|This header should|HTML vers|See \d+-h|"
           r"Note: (Project|Images|There)|http).*(\n.+){0,12}\s*){1,6}")
BRACKETED = re.compile(
    r"\[\W{0,2}(?:(illustrations?|frontispiece|abbildung|blank page|decoration|music)|footnote|sidenote|"
    r"this e?-?text|transcriber\W?s?\W? notes?|fu(ß|ss)note|note d[ue]|nota d)\b", re.I)
TRANSCRIBER = r"(?i)\W*(the )?transcriber\W?s?\W? notes?\b"
DOTTED = re.compile(r"\.\s?\.\s?\.\s*\d+$")
PAGE_NUMBER = re.compile(r"(\.\s|[\s.]{3,})(\d+|[ivxlc]+)\s*$")


def clean(text, found=None):
    """Raw text -> list of (paragraph, is_heading)."""
    found, marked = found or Found(), text.startswith(MARKED)
    text = unicodedata.normalize("NFC", text).replace(MARKED, "").expandtabs(4)
    text = re.sub(r"\r\n?|[\f\v\x85\u2028\u2029]", "\n", text).replace("\u00ad\n", "-\n")
    text = re.sub(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u200b\u2060\ufeff]", "", text)
    text = _without_notes(_without_gutenberg(text, found), found)
    lines = [line.rstrip() for line in text.split("\n")]
    lengths = sorted(map(len, lines))
    width = lengths[np.searchsorted(np.cumsum(lengths), sum(lengths) / 2)]  # half the text is in longer
    ends = [SENTENCE_END.search(line) for line in lines if line]
    wrapped, end = width <= 120 and not marked, "\n"
    dense = lines.count("") < len(lines) / 10 and not marked
    if dense and (not wrapped or len(ends) > 20 and _share(ends) > 0.8):
        wrapped, end = False, "\n\n"  # a line is a paragraph
    blocks = [(len(gap) - 1, block.split("\n"))  # each with the number of blank lines before it
              for gap, block in re.findall(r"(\n*)(.+(?:\n.+)*)", "\n" * 10 + end.join(lines))]
    usual = 99 if marked or not blocks else mode(gap for gap, _ in blocks)
    if wrapped:
        blocks = [part for gap, block in blocks for part in _unmarked_paragraphs(gap, block, width)]
    words, ends = Counter(re.findall(r"\w+(?:-\w+)*", text)), re.findall(HYPHEN, text)
    # a printer broke words at line ends if they are found unbroken elsewhere
    broken = sum(a + b in words for a, b in ends) > sum(f"{a}-{b}" in words for a, b in ends)
    believed = sum(block[0][0] == HEAD for _, block in blocks) > 2  # the markup's headings
    paragraphs, heading = [], False
    for gap, block in _without_contents(blocks, found):
        first = block[0][0]
        paragraph = "\n".join(line if first == KEPT else " ".join(line.split()) for line in block)
        if wrapped and not _in_lines(block, width):
            paragraph = _reflow(paragraph, words, broken)
        paragraph = re.sub(r"(?<!\w)_(?=[^\s_])|(?<=[^\s_])_(?!\w)", "", paragraph).strip(HEAD + KEPT + "\n")
        heading = first == HEAD or _is_heading(paragraph, believed, gap > usual, heading)
        if paragraph:
            paragraphs.append((paragraph, heading))
    found.removed = +found.removed  # what was none does not count
    return paragraphs


def _without_gutenberg(text, found):
    books, position, inside = [], 0, True  # inside a book, or in the licence after one

    def without_licence(part):
        if inside:
            return part
        match = re.match(LICENCE, part)
        size = match.end() if match else len(part) if len(part) < 30_000 else max(0, part.find("\n\n"))
        found.removed["licence"] += size
        return part[size:]

    for mark in re.finditer(rf"^[^\w\n]*(?:({BEGIN})|{FINISH})", text + "\n", re.M | re.I):
        before = text[position:mark.start()]
        if not mark[1] and inside:
            books.append(before)
            position, inside = mark.start(), False
        elif mark[1] and ("SMALL" not in mark[1].upper() or inside and (  # not after the book
                2 * len(before) < len(text) or re.search(r"(?i)START\W*THE SMALL PRINT", before[:6000]))):
            header = without_licence(before)
            if said := re.search(r"^[^\w\n]*Title: *(.+(\n +\S.*)*)", header, re.M):
                found.title = " ".join(said[1].split())
            books.append(header if len(header) >= 30_000 else "")  # no header is as large
            found.removed["header"] += len(mark[0]) + len(header) - len(books[-1])
            position, inside = mark.end(), True
    books.append(without_licence(text[position:]))
    bare = [re.sub(CREDITS, "", book) for book in books]
    found.removed["header"] += sum(map(len, books)) - sum(map(len, bare))
    return "\n\n\n".join(bare)


def _without_notes(text, found):
    """Without captions, notes and page numbers in brackets; one never closed ends at a blank line."""
    import regex  # unlike re, it finds brackets within brackets
    closed, parts, position = regex.compile(r"\[(?:[^\[\]]++|(?R))*+\]"), [], 0
    while opening := BRACKETED.search(text, position):
        start, kind, most = opening.start(), *(("marks", 600) if opening[1] else ("notes", 4000))
        whole = closed.match(text, start, start + most)
        end = whole.end() if whole else text.find("\n\n", start, start + 2000)
        parts.append(text[position:start])
        position = end if end > 0 else opening.end()
        found.removed[kind] += position - start
    text = "".join(parts) + text[position:]
    notes = {*re.findall(r"^ *\[(\w{1,3}|\*+)\] ", text, re.M)} & {*re.findall(r"\S\[(\w{1,3}|\*+)\]", text)}
    for kind, pattern in (("marks", r" ?(?:\[(?:Pg|Page|p\.|S\.|Seite) ?\d+\]|\{\d{1,4}\})()"),
                          ("notes", r"(?m)^ *\[(\w{1,3}|\*+)\] .{0,2000}(?:\n.*\S.*){0,40}"),
                          ("notes", r"(?<=\S)\[(\w{1,3}|\*+)\]")):
        size = len(text)
        text = re.sub(pattern, lambda match: match[0] if match[1] and match[1] not in notes else "", text)
        found.removed[kind] += size - len(text)
    return text


def _unmarked_paragraphs(gap, block, width):
    """A block split at indented lines; a long one also after short lines that end a sentence."""
    indented, ideographic = [line[:2].isspace() for line in block], any(line[0] == "\u3000" for line in block)
    if _in_lines(block, width) and not ideographic:
        return [(gap, block)]
    by_indent = ideographic or _share(indented) < 0.5
    starts = [i for i in range(1, len(block)) if by_indent and indented[i]
              or len(block) > 40 and len(block[i - 1]) < 0.8 * width and SENTENCE_END.search(block[i - 1])]
    return [(0 if i else gap, block[i:j]) for i, j in pairwise([0, *starts, len(block)])]


def _in_lines(block, width):
    """Whether lines are the author's, not wrapped at about `width`: short, with capitals at the beginning (in
    scripts without: stops at the end), and broken where the next word had room."""
    if len(block) < 2 or any(re.search(r"\w-$", line) for line in block):
        return False
    if _share(map(LIST_ITEM.match, block)) > 0.5:
        return True
    longest = max(map(len, block))
    early = _share(len(line) + len(after.split()[0]) + 4 < longest for line, after in pairwise(block))
    first = [re.sub(r"^[\W_]+", "", line)[:1] for line in block[1:]]
    if _share(letter.lower() == letter.upper() for letter in first) > 0.5:
        stops = _share(map(LINE_STOP.search, block[:-1]))
        return early > 1 / 3 or stops > 0.8 and (longest < 0.9 * width or len(block) > 3 or width < 30)
    capitals = _share(not letter.islower() for letter in first)
    if longest < 0.7 * width:
        return len(block) > 2 or early > 0 or capitals == 1
    return (capitals >= 0.75 and (early > 1 / 3 or len(block) > 3)
            and (len(block) > 2 or not block[0][-1].isalnum()))


def _share(tests):
    results = [*map(bool, tests)]
    return sum(results) / max(1, len(results))


def _reflow(paragraph, words, broken):
    """Joined lines. A hyphen at an end stays unless the book writes the word without or breaks words."""
    def joined(match):
        first, second = match.groups()
        whole, hyphened = first + second, f"{first}-{second}"
        if re.fullmatch("und|oder|bis|noch|and|or|to|en|of|och|eller|og", second):
            return f"{first}- {second}"  # as in Korn- und Mehlsäcke
        return whole if words[whole] > words[hyphened] - (broken and not words[hyphened]) else hyphened

    unspaced = rf"(?<=[{EAST}])\n(?=[{EAST}“‘—…])|(?<=[”’—…])\n(?=[{EAST}])"
    return re.sub(unspaced, "", re.sub(HYPHEN, joined, paragraph)).replace("\n", " ")


def _is_heading(paragraph, believed, set_off, after_heading):
    """An ornament such as * * *; or, unless markup is believed, a short line named or numbered as a heading,
    in capitals, set off by unusually many blank lines, or after another."""
    if not re.search(r"\w", paragraph):
        return True
    long = len(paragraph) > 80 or paragraph.count("\n") > 1
    if believed or long or re.match(SPEECH, paragraph) and not set_off:
        return False
    if HEADING.match(paragraph) and (set_off or len(paragraph) < 40) or set_off and paragraph.isupper():
        return True
    alone = "\n" not in paragraph and (set_off or after_heading)
    return not SENTENCE_END.search(paragraph) and (paragraph.isupper() or alone)


def _without_contents(blocks, found):
    """Without transcriber's notes and contents, whose entries end in page numbers or stand alone elsewhere in
    the book; after the word Contents they need only look alike."""
    def plain(line):
        return " ".join(re.findall(r"\w+", PAGE_NUMBER.sub("", line).casefold())) or line

    alone = Counter(plain(block[0]) for _, block in blocks if len(block) == 1)
    marked = any(block[0][0] == HEAD for _, block in blocks)
    total = left = sum(len(line) for _, block in blocks for line in block)
    seen, nearest, budget = set(), 0, 0  # entries; blank lines before the first; what a note may hold
    for gap, block in blocks:
        lines = [line.strip(HEAD + KEPT + " ") for line in block]
        entries, size = [*map(plain, lines)], sum(map(len, block))
        again = _share(alone[entry] > (len(block) == 1) for entry in entries) > 0.5
        named = _share(map(HEADING.match, lines)) > 0.5
        alike = all(HEADING.match(line) or not SENTENCE_END.search(line) for line in lines)
        listed = alike and (len(seen) == 1 or named) and gap <= (nearest or gap)
        kind = "contents"
        left, last = left - size, marked and 10 * left < total  # a section of its own at the end
        if re.match(TRANSCRIBER, lines[0]) or budget >= size and (gap < 2 or last) and block[0][0] != HEAD:
            kind, budget = "notes", max(0, (budget or (left + size if last else 3000)) - size)
        elif len(block) == 1 and re.fullmatch(CONTENTS, lines[0].strip(" .:_")):
            seen, nearest, budget = {""}, 0, 0
        elif seen and entries[0] not in seen and max(map(len, lines)) <= 90 and (
                again or listed or _share(map(PAGE_NUMBER.search, lines)) > 0.5):
            nearest = nearest or gap
            seen.update(entries)
        elif seen or len(block) < 3 or not (again and named or _share(map(DOTTED.search, lines)) > 0.5):
            seen, budget, kind, size = set(), 0, "", 0
            yield gap, block
        found.removed[kind] += size


# ---- sentences

def sentence_starts(paragraphs):
    """clean()'s list -> where each paragraph's sentences, with the white space before them, begin: Punkt's
    (Kiss and Strunk 2006), learnt from the book, and those after ONLY_STOPS."""
    from nltk.tokenize.punkt import PunktSentenceTokenizer
    punkt = PunktSentenceTokenizer("\n".join(paragraph for paragraph, heading in paragraphs if not heading))
    return [[0] if heading else _starts(paragraph, punkt) for paragraph, heading in paragraphs]


def _starts(paragraph, punkt):
    starts = [0]
    for begin, end in punkt.span_tokenize(paragraph):
        stops = (stop.end() for stop in UNAMBIGUOUS_END.finditer(paragraph, begin, end))
        for a, b in pairwise([begin, *stops, end]):
            # Punkt ends one at every ? and !, also in “Who?” he said; and a quote alone is no sentence
            sentence = paragraph[a:b].lstrip()
            if a and re.search(r"\w", sentence) and not (
                    sentence[0].islower() or TITLE.search(paragraph, a - 12, a)):
                starts.append(len(paragraph[:a].rstrip()))
    for a, b in pairwise([*starts, len(paragraph)]):
        while b - a > LONGEST_SENTENCE:
            space = paragraph.rfind(" ", a + LONGEST_SENTENCE // 2, a + LONGEST_SENTENCE)
            a = space if space > 0 else a + LONGEST_SENTENCE
            starts.append(a)
    return sorted(starts)
