"""Text from a checkpoint: continue a prompt, fill the gaps of a template, or write from nothing.

    python sample.py
    python sample.py --prompt="It was on a dreary night" --steps=50 --num_samples=3 --animate
    python sample.py --template="The ____ of the sea was ____(12) and cold."
    python sample.py --interactive

Text goes to stdout, all else to stderr. The same seed and settings give the same text.
"""
# ruff: noqa: E402
import sys

if __name__ == "__main__" and sys.stderr.isatty():
    sys.stderr.write("loading ...\r")  # importing torch takes seconds

import codecs
import contextlib
import itertools
import json
import random
import re
import time
from collections import namedtuple
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from configurator import configure, fail, run_script, write_json, written
from model import Sampling, denoise, load_model, pad, pick_device, set_up_cpu
from prepare import Tokenizer

out_dir = "out"  # where train.py left its checkpoints
checkpoint = ""  # a checkpoint's path; empty: best.pt in out_dir
device = ""  # cpu, cuda, mps; empty: a GPU if there is one
prompt = ""  # text to continue; empty: write from nothing
suffix = ""  # text that follows, after a space if it begins with a word
template = ""  # text with gaps to fill: ____ of any length, ____(12) of twelve tokens
max_tokens = 128  # tokens to write after the prompt [1, 1000000]
num_samples = 1  # texts per prompt, from seed, seed + 1 and so on [1, 1000000]
seed = 1  # where chance begins [0, 9007199254740991]
sampling = Sampling()  # how text is drawn; its fields, in model.py, are knobs as well
gap_lengths = [1, 2, 3, 5, 8]  # tokens to try in a gap of any length; the likeliest text stays [1, 1000]
output = ""  # a JSON file for the results
batch = ""  # a file of prompts or templates, one a line
interactive = False  # a prompt to type at; /help says what it knows
animate: bool | None = None  # watch the text appear; None: only with --interactive
speed = 1.0  # of the animation: 2 is twice as fast, 0 does not wait [0, ...)
draft = False  # animations show what the model would put under the masks
save_animation = ""  # FILE.html or FILE.gif: the first text's animation
benchmark = False  # tokens per second over steps and orders
save_model = ""  # a folder for the model as others read it: safetensors, JSON, a card

CHOICES = {f.name: f.metadata["choices"] for f in fields(Sampling)}
TRIES = 25  # combinations of gap lengths, at most
LONGEST_GAP = 1_000_000  # tokens, as max_tokens
GAP, WORD = -1, -2  # in place of a gap's ids; WORD has to bring a space
CONTROL = r"[\0-\t\v-\x1f\x7f-\x9f]"  # characters that could command a terminal
TERMINAL = Console(stderr=True, highlight=False, emoji=False)


def load(path, device=""):
    """(model in eval mode, its Tokenizer, the checkpoint), or fail()."""
    try:
        where = pick_device(device)
        model, checkpoint = load_model(path)
        tokenizer = Tokenizer.from_dict(checkpoint["tokenizer"])
    except (FileNotFoundError, ValueError) as error:
        fail(error)
    except (LookupError, TypeError, AttributeError):
        fail(f"{path} holds no tokenizer that this version can read")
    if tokenizer.vocab_size != model.config.vocab_size:
        fail(f"{path}: its tokenizer has {tokenizer.vocab_size} tokens, its model {model.config.vocab_size}")
    set_up_cpu(model.config)
    return model.to(where), tokenizer, checkpoint


# ---- text and gaps
# A text to fill is a list of parts: a str is fixed, an int a gap of so many tokens, None one of any length.
# Tokens carry the space before their word; training hardly shows one alone: one before a gap is left to it.

def parse_template(template):
    parts = re.split(r"__+(?:\((\d+)\))?", template)
    parts[1::2] = [length and int(length) for length in parts[1::2]]
    return [part for part in parts if part != ""]


def canvas(tokenizer, parts, config):
    """(T,) int64: fixed text's tokens and the gaps' [MASK]s. ValueError for a gap of no token."""
    ids = torch.cat([*_tokenize(tokenizer, parts)])
    return ids.masked_fill(ids < 0, config.mask_id)


def _tokenize(tokenizer, parts):
    """Yield each part's ids, (n,) int64: a gap's are GAP, after a space the first is WORD."""
    for before, part, after in zip(["", *parts], parts, [*parts[1:], ""]):
        if isinstance(part, str):
            ids = tokenizer.encode(part.rstrip(" ") if isinstance(after, int) else part)
        elif 1 <= part <= LONGEST_GAP:
            ids = [WORD if str(before).endswith(" ") else GAP, *[GAP] * (part - 1)]
        else:
            raise ValueError(f"a gap is 1 to {LONGEST_GAP:,} tokens long, not {part}")
        yield torch.tensor(ids, dtype=int)


def texts(tokenizer, parts, row):
    """One str per part of a filled canvas `row` (T,): fixed text as given, gaps without half characters or
    white space beside other or at an end."""
    result, lengths = [], [*map(len, _tokenize(tokenizer, parts))]
    for part, after, ids in zip(parts, [*parts[1:], " "], row.split(lengths)):
        if isinstance(part, int):
            part = re.sub(CONTROL, "", tokenizer.decode(ids.tolist(), "ignore"))
            if not "".join(result)[-1:].strip():
                part = part.lstrip()
            if str(after)[:1].isspace():
                part = part.rstrip()
        result.append(part)
    return result


# ---- filling

def word_bar(tokenizer, texts):
    """`bar` of denoise for lists of parts: a gap after a space begins with a space and more, except in a
    language without spaces."""
    others = torch.tensor([not re.match(rb" \s*\S", token) for token in tokenizer.tokens[:-3]])
    starts = [torch.cat([*_tokenize(tokenizer, parts)]) == WORD for parts in texts]
    return pad(starts, False), others & ~others.all()


Job = namedtuple("Job", "prompt parts row seed")  # row (T,): the parts' canvas


def fill(model, tokenizer, jobs, how=None, watch=None):
    """Fill jobs, in order: yield (row, its confidence as in Step, calls of the network, seconds). With a
    tokenizer, gaps after a space begin words. watch(Step, seconds) looks on."""
    positions = 1024 if model.device.type == "cpu" else 8192
    while jobs:
        widths = itertools.accumulate((len(job.row) for job in jobs), max)
        size = max(1, sum(n * width <= positions for n, width in enumerate(widths, 1)))
        batch, jobs = jobs[:size], jobs[size:]
        _, parts, rows, seeds = zip(*batch)
        bar = word_bar(tokenizer, parts) if tokenizer else None
        tokens = pad(rows, model.config.pad_id)
        confidence, calls = torch.ones(tokens.shape), torch.zeros(len(batch), dtype=int)
        seconds, begun = 0.0, time.perf_counter()
        for step in denoise(model, tokens, seeds, how, bar=bar):
            seconds += time.perf_counter() - begun
            tokens, confidence = step.tokens, step.confidence
            calls += step.revealed.any(1)
            if watch:
                watch(step, seconds)
            begun = time.perf_counter()
        for length, row, p, n in zip(map(len, rows), tokens, confidence, calls.tolist()):
            yield row[:length], p[:length], n, seconds / len(batch)


def job_of(model, tokenizer, prompt, parts, seed, how):
    """The Job of filling `parts`. Of several lengths tried for None, those stay whose tokens are likeliest on
    average over the gaps (over the text, long ones are: a model finds likelier what it writes itself)."""
    if re.search("[\ud800-\udfff]", prompt):
        raise ValueError(f"{prompt!r} is not UTF-8 text")
    unknown = parts.count(None)
    lengths = itertools.product(gap_lengths, repeat=unknown)
    if len(gap_lengths) ** unknown > TRIES:
        rng = random.Random(seed)
        lengths = [rng.choices(gap_lengths, k=unknown) for _ in range(TRIES)]
    jobs = []
    for chosen in map(iter, lengths):
        attempt = [next(chosen) if part is None else part for part in parts]
        jobs.append(Job(prompt, attempt, canvas(tokenizer, attempt, model.config), seed))
    if not unknown:
        return jobs[0]
    likelihood = [float(confidence.log()[job.row == model.config.mask_id].mean())
                  for job, (_, confidence, *_) in zip(jobs, fill(model, tokenizer, jobs, how))]
    return jobs[likelihood.index(max(likelihood))]


def write(model, tokenizer, jobs, how, watch=None):
    """Fill jobs: yield (index, filled row, result as in --output)."""
    for i, (row, _, calls, seconds) in enumerate(fill(model, tokenizer, jobs, how, watch)):
        job = jobs[i]
        pieces = texts(tokenizer, job.parts, row)
        gaps = [piece for piece, part in zip(pieces, job.parts) if isinstance(part, int)]
        yield i, row, {
            "prompt": job.prompt, "text": "".join(pieces), "completion": "\n".join(gaps), "seed": job.seed,
            "steps": calls, "tokens": int((job.row != row).sum()), "seconds": round(seconds, 4),
            "settings": asdict(how)}


# ---- watching

# state: given, mask, guess (under a mask), new (just revealed), set, back (just taken back)
Cell = namedtuple("Cell", "text state confidence")
STYLES = {"given": "bold", "mask": "blue", "guess": "dim italic", "new": "bold underline green",
          "back": "strike red"}


def cells(tokenizer, row, step, draft):
    """A Cell per token of a lone canvas `row` (T,) after a Step; a character of several is in the last one's.
    A mask is as long as the guess under it, which `draft` shows, ▓ ▒ ░ by rising confidence."""
    decoder, hidden, result = codecs.getincrementaldecoder("utf-8")("ignore"), False, []
    mask_id = tokenizer.special["[MASK]"]
    columns = row[None], step.tokens, step.draft, step.revealed, step.remasked, step.confidence
    for given, token, guess, revealed, remasked, p in zip(*(column[0].tolist() for column in columns)):
        if hidden != (token == mask_id):
            hidden = not hidden
            decoder.reset()
        text = re.sub(CONTROL, "", decoder.decode(tokenizer.tokens[guess if hidden else token]))
        state = ("given" if given != mask_id else "back" if remasked else "new" if revealed
                 else "set" if not hidden else "guess" if draft and text.strip() else "mask")
        if state == "mask":
            text = re.sub(r"[^ ]", "▓▒░"[min(int(p * 3), 2)], text if text.strip() else " ▓▓▓")
        result.append(Cell(text, state, p))
    return result


def painted(shown):
    """Cells as lines of the terminal: the surer, the brighter."""
    text = Text()
    for cell in shown:
        sure = "" if cell.confidence > 0.6 else "cyan" if cell.confidence > 0.3 else "dim cyan"
        text.append(cell.text, STYLES.get(cell.state, sure))
    return text.wrap(TERMINAL, TERMINAL.width)


def frame(shown, step, seconds):
    """For the terminal: as many Cells as fit around the first mask, and a bar."""
    lines, room = painted(shown), max(1, TERMINAL.height - 4)
    decided = itertools.takewhile(lambda cell: cell.state not in ("mask", "guess"), shown)
    top = max(0, min(len(painted(decided)) - room // 2, len(lines) - room))
    bar = Table.grid(Column(no_wrap=True), Column(ratio=1), Column(no_wrap=True), padding=(0, 1), expand=True)
    done = sum(cell.state in ("new", "set") for cell in shown)
    bar.add_row(f"step {step.step}/{step.of}", ProgressBar(step.of, step.step),
                f"{seconds:.1f} s  {done / max(seconds, 1e-9):.0f} tokens/s")
    legend = Text.assemble(("▓▒░ masked  ", STYLES["mask"]), ("just revealed", STYLES["new"]), "  ",
                           ("taken back", STYLES["back"]), no_wrap=True)
    return Group(*lines[top:top + room], Text(), bar, legend)


def with_style(name):
    """A page from beside this script, page.css in it."""
    css, page = (Path(__file__).with_name(file).read_text("utf-8") for file in ("page.css", name))
    return page.replace("/* page.css */\n", css)


def save_html(file, frames, pace):
    """Write sample.html with `frames`, lists of Cells, `pace` seconds each, to a binary file."""
    data = json.dumps([[cell[:2] for cell in shown] for shown in frames], ensure_ascii=False)
    page = with_style("sample.html").replace("INTERVAL", str(int(1000 * pace)))
    file.write(page.replace("FRAMES", data.replace("<", "\\u003c")).encode())


def places(text, fonts, width):
    """(x in pixels, line) of each character, in its font, and of the end."""
    where, x, line = [], 0.0, 0
    for piece in re.findall(r"\n|\S{1,40}|.", text):
        font = fonts[len(where)]
        if piece.strip() and x + font.getlength(piece) > width:
            x, line = 0.0, line + 1
        where += [(x + font.getlength(piece[:i]), line) for i in range(len(piece))]
        if piece == "\n":
            x, line = font.size, line + (x > font.size)
        else:
            x += font.getlength(piece)
    return [*where, (x, line)]


def save_gif(file, frames, pace):
    """The same as a GIF, in page.css's light colours: a mask is as wide as the word to come, what is decided
    glows and settles."""
    import matplotlib
    from PIL import Image, ImageColor, ImageDraw, ImageFont
    ink = {name: ImageColor.getrgb(hue)
           for name, hue in re.findall(r"--(\w+): (#\w{6})", with_style("sample.html"))}
    path = f"{matplotlib.get_data_path()}/fonts/ttf/STIXGeneral"
    upright = ImageFont.truetype(f"{path}.ttf", 28, layout_engine=ImageFont.Layout.BASIC)
    italic = upright.font_variant(f"{path}Italic.ttf")
    small, width, height, margin = upright.font_variant(size=20), 840, 46, 48

    def mix(one, other, share):
        return tuple(round(a + (b - a) * share) for a, b in zip(ink[one], ink[other]))

    words, last = [cell.text for cell in frames[-1]], len(frames) - 1
    fonts = [italic if cell.state == "given" else upright for cell in frames[-1] for _ in cell.text]
    where = places("".join(words), fonts, width - 2 * margin)
    starts = itertools.accumulate(map(len, words), initial=0)
    spots = [where[start + len(word) - len(word.lstrip())] for start, word in zip(starts, words)]
    bottom, glow, images = height * (where[-1][1] + 1) + 2 * margin, [0.0] * len(words), []
    palette = Image.new("P", (1, 1))
    palette.putpalette([c for name in "ink new soft dim back mark".split() for step in range(16)
                        for c in mix("paper", name, step / 15)])
    hues = {"given": ink["soft"], "guess": ink["dim"], "back": ink["back"]}
    for step, shown in enumerate([*frames, *frames[-1:] * 3]):  # the last word's glow settles
        glow = [1.0 if cell.state == "new" and step <= last else max(0.0, g - 1 / 3)
                for cell, g in zip(shown, glow)]
        if step < last and step % (last // 130 + 1):
            continue
        pen = ImageDraw.Draw(image := Image.new("RGB", (width, bottom), ink["paper"]))
        pen.text((width - margin, bottom - 18), f"step {min(step, last)} of {last}", ink["dim"], small, "rs")
        for cell, lit, word, (x, line) in zip(shown, glow, words, spots):
            font = italic if cell.state in ("given", "guess") else upright
            x, base, room = x + margin, margin + height * line + 30, font.getlength(word.strip())
            if cell.state == "mask":
                if room > 3:
                    pen.rectangle((x + 1, base - 8, x + room - 2, base - 7), ink["mark"])
                continue
            body = cell.text.strip()
            if (fit := room / max(1.0, font.getlength(body))) < 1:
                font = font.font_variant(size=max(1, int(28 * fit)))
            if lit and room:
                pen.rectangle((x - 1, base - 26, x + room, base + 9), mix("paper", "new", 0.17 * lit))
            pen.text((x, base), body, hues.get(cell.state, mix("ink", "new", lit)), font, "ls")
            if cell.state == "back":
                pen.line((x, base - 8, x + room, base - 8), ink["back"], 2)
        images.append(image.quantize(palette=palette, dither=Image.Dither.NONE))
    times = [int(1000 * pace)] * (len(images) - 1) + [4000]
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], loop=0, duration=times)


# ---- the terminal

def say(message, style=""):
    """Print to stderr, in a terminal broken between words."""
    TERMINAL.print(message, style=style, markup=False, soft_wrap=not TERMINAL.is_terminal)


def show(tokenizer, job, row):
    """Print a text; in a terminal broken between words, what was given in bold."""
    pieces = texts(tokenizer, job.parts, row)
    if not sys.stdout.isatty():
        return print(*pieces, sep="")
    styles = ["bold" if isinstance(part, str) else "" for part in job.parts]
    Console(highlight=False).print(Text.assemble(*zip(pieces, styles)))


def progress_bar(description, total):
    """One that leaves nothing behind, for a task, 0."""
    bar = Progress(
        "{task.description}", BarColumn(20), TaskProgressColumn(), TimeRemainingColumn(), console=TERMINAL,
        transient=True, disable=not TERMINAL.is_interactive, redirect_stdout=False, redirect_stderr=False)
    bar.add_task(description, total=total)
    return bar


def perform(model, tokenizer, job, path):
    """(filled row, result) of a lone job; `animate` shows, a path keeps its animation."""
    frames, live = [], Live(console=TERMINAL, auto_refresh=False, transient=True)
    watched = animate and TERMINAL.is_interactive

    def watch(step, seconds):
        before = step._replace(step=0, tokens=job.row[None], revealed=torch.zeros_like(step.revealed))
        for moment in [before, step] if step.step == 1 else [step]:
            shown = cells(tokenizer, job.row, moment, draft)
            if path:
                frames.append(shown)
            if watched:
                live.update(frame(shown, moment, seconds), refresh=True)
                time.sleep(0.12 / speed if speed else 0)

    with live if watched else contextlib.nullcontext():
        [(_, row, result)] = write(model, tokenizer, [job], sampling, watch if watched or path else None)
    if path:
        with written(path, "wb") as file:
            (save_html if path.endswith(".html") else save_gif)(file, frames, 0.2 / (speed or 1))
    return row, result


def measure(model, tokenizer, jobs):
    """--benchmark."""
    runs = [(order, {"order": order, "steps": n}) for order in CHOICES["order"] for n in (8, 25, 64)]
    runs += [(f"{key}={value}", {key: value}) for key, value in (
        ("threshold", 0.9), ("threshold", 0.5), ("entropy_bound", 0.5), ("entropy_bound", 2.0))]
    print("order             steps calls  ms/call  tokens/s")
    with progress_bar("warming up", len(runs)) as progress:
        list(write(model, tokenizer, jobs, replace(sampling, steps=2)))
        for name, changed in runs:
            how = replace(sampling, **changed)
            progress.update(0, description=f"{name}, {how.steps} steps")
            tokens, seconds, calls = totals([result for *_, result in write(model, tokenizer, jobs, how)])
            progress.stop()
            print(f"{name:17} {how.steps:5} {calls:5} {1000 * seconds / calls:8.1f} {tokens / seconds:9.0f}")
            progress.start()
            progress.advance(0)


def totals(results):
    """(tokens, seconds, steps of the longest) of results."""
    tokens, seconds = (sum(r[key] for r in results) for key in ("tokens", "seconds"))
    return tokens, seconds, max((r["steps"] for r in results), default=0)


def write_all(model, tokenizer, jobs):
    """The jobs' results, printed and put into `output` as they are done."""
    results = []

    def keep(job, row, result):
        results.append(result)
        if output:
            write_json(output, results)
        if len(jobs) > 1:
            say(("\n" if len(results) > 1 else "") + f"{job.prompt!r}, seed {job.seed}:")
        show(tokenizer, job, row)

    if animate or save_animation:
        for job in jobs:
            keep(job, *perform(model, tokenizer, job, "" if results else save_animation))
        return results
    with progress_bar(f"0/{len(jobs)} texts", len(jobs)) as progress:
        def watch(step, seconds):
            progress.update(0, completed=len(results) + len(step.tokens) * step.step / step.of)

        for i, row, result in write(model, tokenizer, jobs, sampling, watch):
            progress.stop()
            keep(jobs[i], row, result)
            progress.start()
            progress.update(0, description=f"{i + 1}/{len(jobs)} texts")
    return results


# ---- a conversation

HELP = """\
/set KNOB VALUE  change a knob
/seed 5          where chance begins
/show            the knobs, and the last text's tokens, numbered
/again           the same with the next seed
/remask 12-18    write these tokens of the last text anew
/undo            back to the text before
/save FILE       keep the last text; as .json, all about it
/help            this
/quit            leave, as Ctrl-D does; Ctrl-C stops a text"""
COMMANDS = [line.split()[0] for line in HELP.splitlines()]
SETTABLE = [*asdict(sampling), "max_tokens", "suffix", "seed", "animate", "speed", "draft", "save_animation"]


def parts_of(text, knobs, gaps):
    """A text's parts: with its gaps, if it has any and `gaps`, or continued up to the suffix."""
    if gaps and "__" in text:
        return parse_template(text)
    after = re.sub(r"^(?=[^\W_]|[“‘(])", " ", knobs["suffix"])
    return [part for part in (text, knobs["max_tokens"], after) if part]


def converse(model, tokenizer):
    """--interactive: lines are texts to continue, templates to fill, or COMMANDS."""
    global animate
    animate = animate is not False
    history = Path(out_dir, "sample_history")
    with contextlib.suppress(ImportError, OSError):  # no readline on Windows, no history at first
        import readline

        def complete(text, state):
            fitting = [word for word in options(readline.get_line_buffer()) if word.startswith(text)]
            return [*fitting, None][state]

        readline.set_completer_delims(" ")
        readline.set_completer(complete)
        readline.parse_and_bind("tab: complete")
        readline.read_history_file(history)
    past = []  # (Job, filled row, result) of each text
    say("Type the beginning of a text, or a text with gaps (____). /help lists commands.")
    # what stands between \1 and \2 has no width to readline
    sign = "\1\033[1;34m\2> \1\033[0m\2" if TERMINAL.color_system else "> "
    while True:
        try:
            line = input(sign if sys.stdin.isatty() else "")
            if line.strip() == "/quit":
                break
            command(line, model, tokenizer, past)
        except EOFError:
            break
        except KeyboardInterrupt:
            say("stopped", "cyan")
        except (ValueError, OSError) as error:
            say(error, "red")
        except SystemExit:  # fail() has said why
            continue
    with contextlib.suppress(NameError, OSError):
        readline.write_history_file(history)


def options(line):
    """What may complete the last word of an interactive line."""
    match line.split(" "):
        case ["/set", _]:
            return SETTABLE
        case ["/set", knob, *_]:
            return [*CHOICES.get(knob, ())]
        case [word] if word.startswith("/"):
            return COMMANDS
    return []


def command(line, model, tokenizer, past):
    """Do what a line says. ValueError or fail() if it cannot."""
    name, _, argument = line.partition(" ")
    argument, job = argument.strip(), None
    if name.startswith("/") and name not in COMMANDS:
        raise ValueError(f"there is no {name}: /help lists the commands, /set sets a knob")
    if past:
        last, row, result = past[-1]
        new = (last.row != row).nonzero()[:, 0]
    elif name in ("/again", "/remask", "/undo", "/save"):
        raise ValueError("there is no text yet")
    if name == "/help":
        say(HELP)
    elif name in ("/set", "/seed"):
        knob, _, value = (argument if name == "/set" else f"seed {argument}").partition(" ")
        if knob not in SETTABLE:
            raise ValueError(f"/set takes a knob and a value; knobs: {', '.join(SETTABLE)}")
        configure(globals(), arguments=[f"--{knob}={value.strip()}"])
        say(shown(knob))
    elif name == "/show":
        say("\n".join(f"  {shown(knob)}" for knob in SETTABLE))
        if past:
            words = map(tokenizer.decode, row[new, None].tolist())
            say("  " + " ".join(f"{n}:{word.strip(' ')!r}" for n, word in enumerate(words, 1)))
    elif name == "/undo":
        past.pop()
        show(tokenizer, *past[-1][:2]) if past else say("no text is left")
    elif name == "/save":
        save(argument, result)
    elif name == "/again":
        job = last._replace(seed=last.seed + 1)
    elif name == "/remask":
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", argument)
        first, end = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= first <= end <= len(new):
            raise ValueError(f"/remask takes a span of the {len(new)} tokens, as 2-5; /show numbers them")
        masked = row.index_fill(0, new[first - 1:end], model.config.mask_id)
        job = last._replace(row=masked, seed=last.seed + 1)
    elif line.strip():
        last = job = job_of(model, tokenizer, line, parts_of(line, globals(), gaps=True), seed, sampling)
    if job:
        row, result = perform(model, tokenizer, job, save_animation)
        past.append((job._replace(row=last.row), row, result))
        show(tokenizer, job, row)


def shown(knob):
    return f"{knob} = {(globals() | asdict(sampling))[knob]!r}"


def save(path, result):
    if not path:
        raise ValueError("/save takes a file's name")
    if path.endswith(".json"):
        write_json(path, [result])
    else:
        with written(path) as file:
            file.write(result["text"] + "\n")
    say(f"saved in {path}")


# ---- the program

def check():
    if template and (prompt or suffix):
        fail("--template stands alone: put prompt and suffix into it")
    if bool(template) + bool(batch) + interactive + benchmark > 1:
        fail("one of --template, --batch, --interactive and --benchmark at a time")
    if template and "__" not in template:
        fail("--template has no gap: write ____ for any length, ____(12) for twelve tokens")
    if save_animation and not save_animation.endswith((".html", ".gif")):
        fail(f"--save_animation wants a name that ends in .html or .gif, got {save_animation}")
    if animate and not TERMINAL.is_interactive:
        say("nothing to --animate on: stderr is no terminal")


CARD = """---
library_name: pytorch
pipeline_tag: text-generation
tags: [masked-diffusion, text-diffusion]
---
A masked diffusion language model of one book, {book}: {weights:,} weights, {n_text:,} tokens. It writes in
its style and knows nothing else. Each script of the program that trained it opens this folder:

    python sample.py --checkpoint=FOLDER

`model.safetensors` has the weights, `config.json` shape and training, `tokenizer.json` the vocabulary.

{evaluation}
"""
FIGURES = """\
Bits per byte of the book's {split} text: at most {likelihood[bits_per_byte]:.3f}; a table of its n-grams \
{baselines[ngram_bits_per_byte]:.3f}. Share of its samples that stands in the book word for word: \
{memorization[generated][copied_share]:.1%}."""


def share(folder, path, model, saved):
    """--save_model, with the figures of evaluation.json if they are this checkpoint's."""
    from safetensors.torch import save
    Path(folder).mkdir(parents=True, exist_ok=True)
    training, told = saved.get("training", {}), "It has not been evaluated."
    write_json(f"{folder}/config.json", {"config": saved["config"], "training": training})
    write_json(f"{folder}/tokenizer.json", saved["tokenizer"])
    with written(f"{folder}/model.safetensors", "wb") as file:
        file.write(save(saved["model"]))
    with contextlib.suppress(FileNotFoundError):
        found = json.loads(Path(path).with_name("evaluation.json").read_text("utf-8"))
        if found.get("checkpoint") == path:
            told = FIGURES.format(**found)
    with written(f"{folder}/README.md") as file:
        file.write(CARD.format(book=training.get("dataset", "unnamed"), n_text=model.config.n_text,
                               weights=sum(p.numel() for p in model.parameters()), evaluation=told))
    say(f"{folder}: the model of {path}. {told}")


def main():
    configure(globals(), positional="prompt")
    check()
    sys.stdout.reconfigure(errors="replace", line_buffering=True)  # ? for what a terminal cannot show
    path = checkpoint or str(Path(out_dir, "best.pt"))
    model, tokenizer, saved = load(path, device)
    if sys.stderr.isatty():
        sys.stderr.write(" " * 11 + "\r")
    try:
        asked = [template or prompt]
        if batch:
            asked = [*filter(str.strip, Path(batch).read_text("utf-8-sig").splitlines())]
        if output:  # fails before the work, not after
            write_json(output, [])
        if save_model:
            return share(save_model, path, model, saved)
        if interactive:
            return converse(model, tokenizer)
        jobs = [job_of(model, tokenizer, text, parts_of(text, globals(), gaps=template or batch), seed + i,
                       sampling) for text in asked for i in range(num_samples)]
        if benchmark:
            return measure(model, tokenizer, jobs)
        tokens, seconds, steps = totals(write_all(model, tokenizer, jobs))
    except ValueError as error:
        fail(error)
    say(f"{tokens} tokens in {seconds:.1f} s ({tokens / max(seconds, 1e-9):.0f} tokens/s), {steps} steps")


if __name__ == "__main__":
    run_script(main)
