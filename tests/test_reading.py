"""reading.py on files as people have them, and on cases beyond dispute; what a whole run makes of them is test_prepare.py's."""
import io
import random
import re
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import reading as r  # noqa: E402


def one_line(stderr):
    assert stderr.count("\n") == 1 and stderr.startswith("prepare.py: "), stderr
    return stderr


def invented_book(paragraphs=60, seed=0):
    """A small book of plain English, different in every sentence."""
    rng = random.Random(seed)
    nouns, verbs = "keeper lamp sea boat storm stair glass letter winter gull rope island".split(), "saw took lost found kept knew left heard".split()

    def sentence():
        return f"The {rng.choice(nouns)} {rng.choice(verbs)} the {rng.choice(nouns)} of the {rng.choice(nouns)} {rng.randrange(10_000)} times."
    return "\n\n".join(" ".join(sentence() for _ in range(rng.randint(2, 5))) for _ in range(paragraphs)) + "\n"


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
    assert r.clean(raw) == expected
    assert r.clean(raw.replace("\n", "\r\n")) == r.clean(raw.replace("\n", "\r")) == expected


def test_lines_that_are_paragraphs_and_paragraphs_that_are_indented():
    sentence = "The keeper climbed the stair and lit the lamp, as he had done on every night of his life since he was a boy of ten. "
    unwrapped = "\n".join(sentence * 3 for _ in range(5))
    assert [paragraph for paragraph, _ in r.clean(unwrapped)] == [(sentence * 3).strip()] * 5
    indented = "\n".join(["    The keeper climbed the stair and lit the lamp, as he had done", "on every night of his life since he was a boy of ten years old,",
                          "and the lamp was bright."] * 4)
    assert len(r.clean(indented)) == 4


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


PROSE = ["The keeper lit the lamp while the rain came down on the island and nobody in the village saw it from the shore below. "
         "He counted the boats at the landing and wrote the number down.", "The gull came back in the morning with the wind behind it and sat upon the "
         "gate of the garden until the boy had eaten. Nobody had asked it to come."]


def wrapped(paragraphs, width=66):
    """Paragraphs as a file hard-wrapped at `width` has them."""
    return "\n\n".join(textwrap.fill(paragraph, width) for paragraph in paragraphs)


def read(tmp_path, name, content):
    """(paragraphs, headings, what was found) of a file with that content."""
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    found = r.Found()
    parts = r.clean(r.read_book(tmp_path / name, found)[0], found)
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
def test_undeclared_encodings_are_recognised_and_can_be_overruled(tmp_path, script, encoding):
    text = (SCRIPTS[script] + "\n\n").replace("ё", "е") * 9 if encoding != "big5" else "老人點亮了燈，村裡沒有人看見他。\n\n" * 20
    assert set(read(tmp_path, "b.txt", text.encode(encoding))[0]) == {text.split("\n\n")[0]}
    (tmp_path / "b.txt").write_bytes("naïve café\n".encode("cp1252"))
    assert r.read_book(tmp_path / "b.txt", encoding="cp1252") == ("naïve café\n", "cp1252")


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
    for name, message in (("klingon", "klingon: no encoding has that name"), ("utf-8", "damaged")):
        with pytest.raises(SystemExit):
            r.read_book(tmp_path / "b.txt", encoding=name)
        assert message in one_line(capsys.readouterr().err)


def test_a_torn_tag_costs_no_book(tmp_path):
    paragraphs, _, _ = read(tmp_path, "b.htm", "<html><body>" + "<p<i>The lamp and the sea.</p>" * 3)
    assert paragraphs == ["The lamp and the sea."] * 3


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
    assert expected in "\n".join(paragraph for paragraph, _ in r.clean(f"{filling}\n\n{text}{scanned}\n\n{filling}"))


def test_dialogue_is_no_heading_where_every_gap_is_wide(tmp_path):
    lines = ["„Wer ist da?“", "»Ich bin es, mein Freund«", "「青い門はどこだ」", "— Не знаю", "They went out into the rain．", "“Yes”"] * 4
    paragraphs, headings, _ = read(tmp_path, "b.txt", "\n\n\n".join(["CHAPTER I", *lines, "CHAPTER II", *lines]))
    assert headings == ["CHAPTER I", "CHAPTER II"] and paragraphs == lines * 2
    assert [len(starts) for starts in r.sentence_starts([("門を見た．海を見た．", False), ("門．海．", True)])] == [2, 1]


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
            (b'href="b.xhtml"', b'href="d%2520e.xhtml"', {"OPS/d%20e.xhtml": "<p>Second.</p>"}, 0),
            (b'href="b.xhtml"', b'href="d%20e.xhtml"', {"OPS/d e.xhtml": "<p>Second.</p>"}, 0),
            (b"<manifest>", b'<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>Rain &amp; Sun</dc:title></metadata><manifest>', None, 0)):
        paragraphs, _, found = read(tmp_path, "b.epub", changed(before, after, extra))
        assert "First." in paragraphs and ("Second." in paragraphs) == (not missing), after
        assert not {"IMPRINT", "LAW"} & set(paragraphs) and found.removed["licence"] >= 10
        assert len(found.warnings) == bool(missing) and (not missing or "left out" in found.warnings[0])
    assert found.title == "Rain & Sun"


def test_one_text_in_many_encodings():
    text = invented_book(30).replace("keeper", "café “owner” – naïve")
    plain = invented_book(30).replace("keeper", "café naïve")
    for name, content, saved in (("UTF-8", text, text.encode()), ("UTF-8", text, text.encode("utf-8-sig")), ("UTF-16", text, text.encode("utf-16")),
                                 ("UTF-16-LE", text, text.encode("utf-16-le")), ("Windows-1252", text, text.encode("cp1252")),
                                 ("Windows-1252", plain, plain.encode("latin-1")), ("UTF-8", text, text.replace("\n", "\r\n").encode())):
        decoded, found = r.decode(saved, r.Found())
        assert (found, decoded.replace("\r\n", "\n").removeprefix("\ufeff")) == (name, content)
    lines = text.split("\n")
    odd = next(i for i, line in enumerate(lines) if "café" in line)
    mixed = b"\n".join(line.encode("cp1252" if i == odd else "utf-8") for i, line in enumerate(lines))
    assert r.decode(mixed, r.Found()) == (text, "UTF-8, but 1 lines in Windows-1252")


def test_a_long_note_at_the_end_of_marked_up_text_goes_and_what_has_a_heading_stays(tmp_path):
    book = "".join(f"<p>{part}</p>" for part in invented_book(600).split("\n\n"))
    note = "".join(f"<p>{n}.png: Mended a printer's error that nobody but the printer will ever miss.</p>" for n in range(60))
    page = "<html><body><h2>One</h2>{}<h2>Transcriber's Notes</h2>{}{}</body></html>"
    texts, _, found = read(tmp_path, "end.html", page.format(book, note, ""))
    assert "printer" not in "".join(texts) and found.removed["notes"] > 4000
    texts, headings, _ = read(tmp_path, "more.html", page.format(book, note, "<h2>Two</h2><p>The lamp was lit again at last.</p>"))
    assert texts[-1] == "The lamp was lit again at last." and headings[-1] == "Two"
    texts, *_ = read(tmp_path, "front.html", page.format("", note, book))        # at the front it ends sooner
    assert sum(map(len, texts)) > 0.9 * len(invented_book(600))
