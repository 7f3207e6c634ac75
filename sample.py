"""Text from a checkpoint: continue a prompt, fill the gaps of a template, or write from nothing.

    python sample.py
    python sample.py --prompt="It was on a dreary night" --steps=50 --num_samples=3 --animate
    python sample.py --template="The ____ of the sea was ____(12) and cold."
    python sample.py --interactive

Text goes to stdout, everything else to stderr. The same seed and settings give the same text.
"""
# ruff: noqa: E402
import sys

if __name__ == "__main__" and sys.stderr.isatty():
    print("loading ...", end="\r", file=sys.stderr, flush=True)     # importing torch takes seconds

import codecs
import contextlib
import functools
import itertools
import json
import os
import random
import re
import time
import unicodedata
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from configurator import assign, configure, documented, fail, in_range, run_script, write_json, written
from model import Sampling, denoise, load_model, pad, pick_device, set_up_cpu
from prepare import Tokenizer

out_dir = "out"               # where train.py left its checkpoints
checkpoint = ""               # a checkpoint's path; empty: best.pt in out_dir
device = ""                   # cpu, cuda, mps; empty: a GPU if there is one
prompt = ""                   # the text to continue; empty: write from nothing
suffix = ""                   # text that follows what is written (after a space, if it begins with a word)
template = ""                 # text with gaps to fill: ____ of any length, ____(12) of twelve tokens
max_tokens = 128              # how many tokens to write after the prompt [1, 1000000]
num_samples = 1               # texts per prompt, from the seeds seed, seed + 1 and on [1, 1000000]
seed = 1                      # where chance begins [0, 9007199254740991]
sampling = Sampling()         # how text is drawn; model.py says what its fields, knobs as well, may be
gap_lengths = [1, 2, 3, 5, 8]  # tokens to try in a gap of unknown length; the likeliest text stays [1, 1000]
output = ""                   # a JSON file for the results
batch = ""                    # a file of prompts or templates, one a line; texts come as they are done
interactive = False           # a prompt to type at; /help says what it knows
animate: bool | None = None   # watch the text appear; None: where --interactive has a terminal
speed = 1.0                   # of the animation: 2 is twice as fast, 0 does not wait [0, ...)
draft = False                 # in animations, show what the model would put under the masks
save_animation = ""           # FILE.html or FILE.gif: the first text's animation, to keep
benchmark = False             # tokens per second over steps and orders
save_model = ""               # a folder for the model as others read it: safetensors, JSON, a model card

CHOICES = {f.name: f.metadata["choices"] for f in fields(Sampling)}
TRIES = 25                    # combinations of gap lengths tried at most
LONGEST_GAP = 1_000_000       # tokens, as max_tokens


def load(path, device=""):
    """(model in eval mode, its Tokenizer, the whole checkpoint), or fail()."""
    try:
        where = pick_device(device)
        model, checkpoint = load_model(path)
        tokenizer = Tokenizer.from_dict(checkpoint["tokenizer"])
    except (FileNotFoundError, ValueError) as error:
        fail(error)
    except (KeyError, TypeError, AttributeError):
        fail(f"{path} holds no tokenizer that this version can read")
    if tokenizer.vocab_size != model.config.vocab_size:
        fail(f"{path}: its tokenizer has {tokenizer.vocab_size} tokens, its model {model.config.vocab_size}")
    set_up_cpu(model.config)
    return model.to(where), tokenizer, checkpoint


# ---- text and gaps
# A text to fill is a list of parts: a str is fixed, an int is a gap of that many tokens, None one of unknown
# length. A token carries the space before its word, so a space before a gap is left to the gap's first token:
# alone it would be a token that training has hardly shown. `texts` puts it back.

def parse_template(template):
    """The parts of a template, whose gaps are two or more underscores, maybe with a length in brackets."""
    parts = re.split(r"__+(?:\((\d+)\))?", template)
    parts[1::2] = [length and int(length) for length in parts[1::2]]
    return [part for part in parts if part != ""]


def canvas(tokenizer, parts, config):
    """(T,) int64: the tokens of fixed text, and the [MASK]s of gaps; ValueError for one of no token."""
    ids = itertools.chain(*_tokenize(tokenizer, parts, config.mask_id))
    return torch.tensor(list(ids), dtype=torch.long)


def texts(tokenizer, parts, row):
    """One str per part of a filled canvas `row` (T,): fixed text exactly as given; a gap without white space
    beside other or at an end of the text, without half characters, and without control characters, which
    could command a terminal."""
    result, start = [], 0
    for part, ids in zip(parts, _tokenize(tokenizer, parts, -1)):
        filled = tokenizer.decode(row[start:start + len(ids)].tolist(), "ignore")
        result.append(part if isinstance(part, str) else _printable(filled))
        start += len(ids)
    for i, part in enumerate(parts):
        if isinstance(part, int):
            before, after = "".join(result[:i]), [*parts, " "][i + 1]
            if not before or before[-1].isspace():
                result[i] = result[i].lstrip()
            if isinstance(after, str) and after[:1].isspace():
                result[i] = result[i].rstrip()
    return result


def _printable(text):
    return "".join(c for c in text if c == "\n" or unicodedata.category(c) != "Cc")


def _tokenize(tokenizer, parts, mask_id):
    """One list of ids per part."""
    for part, after in zip(parts, [*parts[1:], None]):
        if isinstance(part, str):
            yield tokenizer.encode(part.rstrip(" ") if isinstance(after, int) else part)
        elif 1 <= part <= LONGEST_GAP:
            yield [mask_id] * part
        else:
            raise ValueError(f"a gap is 1 to {LONGEST_GAP:,} tokens long, not {part}")


# ---- filling

def word_starts(tokenizer, parts):
    """(T,) bool: the first token of each gap of a canvas that follows a space, and has to bring it."""
    result = []
    for before, part, ids in zip(["", *parts], parts, _tokenize(tokenizer, parts, -1)):
        starts = isinstance(part, int) and str(before).endswith(" ")
        result += [starts, *[False] * len(ids)][:len(ids)]
    return torch.tensor(result, dtype=torch.bool)


def not_words(tokenizer):
    """(n_text,) bool: the tokens that are not a space with something behind it."""
    result = torch.tensor([not (token[:1] == b" " and token[1:].strip()) for token in tokenizer.tokens[:-3]])
    return result if not result.all() else torch.zeros_like(result)     # without spaces none is barred


def batches(model, rows, seeds, how=None, bar=None):
    """Fill 1-d canvases, in order: yield (indices of a batch's rows, its Steps). `bar` is (each
    row's `word_starts`, `not_words`). A row's text does not depend on its batch. ValueError as in denoise."""
    positions, todo = 1024 if model.device.type == "cpu" else 8192, list(range(len(rows)))
    while todo:
        widths = itertools.accumulate((len(rows[i]) for i in todo), max)
        size = max(1, sum(n * width <= positions for n, width in enumerate(widths, 1)))
        batch, todo = todo[:size], todo[size:]
        barred = bar and (pad([bar[0][i] for i in batch], False), bar[1])
        tokens = pad([rows[i] for i in batch], model.config.pad_id)
        yield batch, denoise(model, tokens, [seeds[i] for i in batch], how, bar=barred)


def generate(model, rows, seeds, how=None):
    """The rows that 1-d canvases of any lengths become."""
    filled = list(rows)
    for batch, events in batches(model, rows, seeds, how):
        for step in events:
            for i, tokens in zip(batch, step.tokens):
                filled[i] = tokens[:len(rows[i])]
    return filled


class Job(NamedTuple):
    prompt: str  # as the user gave it
    parts: list
    row: Tensor  # (T,) its canvas
    seed: int


def job_of(model, tokenizer, prompt, parts, seed, how):
    """The Job of filling `parts`. Gaps of None are tried at several lengths; those are kept whose tokens were
    likeliest on average. (The whole text's would favour long gaps: what the model writes is likelier than
    what people do.)"""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{prompt!r} is not UTF-8 text") from None
    unknown = parts.count(None)
    lengths = itertools.product(gap_lengths, repeat=unknown)
    if len(gap_lengths) ** unknown > TRIES:
        rng = random.Random(seed)
        lengths = [rng.choices(gap_lengths, k=unknown) for _ in range(TRIES)]
    tries = [[next(chosen) if part is None else part for part in parts] for chosen in map(iter, lengths)]
    jobs = [Job(prompt, attempt, canvas(tokenizer, attempt, model.config), seed) for attempt in tries]
    if not unknown:
        return jobs[0]
    likelihood = {}
    for batch, events in job_batches(model, tokenizer, jobs, how):
        for step in events:
            for i, p in zip(batch, step.confidence.log()):
                row = jobs[i].row
                likelihood[i] = float(p[:len(row)][row == model.config.mask_id].mean())
    return jobs[max(likelihood, key=likelihood.get)]


def job_batches(model, tokenizer, jobs, how):
    """`batches` of jobs, where a gap after a space begins a word."""
    bar = [word_starts(tokenizer, job.parts) for job in jobs], not_words(tokenizer)
    return batches(model, [job.row for job in jobs], [job.seed for job in jobs], how, bar)


def write(model, tokenizer, jobs, how, watch=None):
    """Fill jobs; yield (index, filled row, result as in --output) as they are done. watch(jobs, Step,
    seconds) sees each step of a batch."""
    for batch, events in job_batches(model, tokenizer, jobs, how):
        chosen = [jobs[i] for i in batch]
        filled, calls, seconds = [job.row for job in chosen], [0] * len(batch), 0.0
        while True:
            begun = time.perf_counter()
            step = next(events, None)
            seconds += time.perf_counter() - begun
            if step is None:
                break
            filled = [tokens[:len(job.row)] for job, tokens in zip(chosen, step.tokens)]
            calls = [n + bool(revealed.any()) for n, revealed in zip(calls, step.revealed)]
            if watch:
                watch(chosen, step, seconds)
        for i, job, row, n in zip(batch, chosen, filled, calls):
            pieces = texts(tokenizer, job.parts, row)
            written = [piece for piece, part in zip(pieces, job.parts) if isinstance(part, int)]
            tokens = int((job.row == model.config.mask_id).sum())
            yield i, row, {"prompt": job.prompt, "text": "".join(pieces), "completion": "\n".join(written),
                           "seed": job.seed, "steps": n, "tokens": tokens,
                           "seconds": round(seconds / len(batch), 4), "settings": asdict(how)}


# ---- watching

class Cell(NamedTuple):
    text: str
    state: str  # given, mask, new (just revealed), set (revealed before), back (just taken back)
    confidence: float


STYLES = {"given": "bold", "mask": "blue", "new": "bold underline green", "back": "strike red"}


def cells(tokenizer, row, step, draft):
    """A Cell for each token of a lone canvas `row` (T,) after a Step. A character of several tokens is in the
    last one's. A mask is as long as the draft under it, ▓ ▒ ░ by rising confidence; `draft` shows that."""
    decoder, hidden, result = codecs.getincrementaldecoder("utf-8")(errors="ignore"), False, []
    mask_id = tokenizer.special["[MASK]"]
    columns = (row[None], step.tokens, step.draft, step.revealed, step.remasked, step.confidence)
    for given, token, guess, revealed, remasked, p in zip(*(column[0].tolist() for column in columns)):
        if (token == mask_id) != hidden:
            hidden = not hidden
            decoder.reset()
        text = _printable(decoder.decode(tokenizer.tokens[guess if hidden else token]))
        state = ("given" if given != mask_id else "back" if remasked else "mask" if hidden
                 else "new" if revealed else "set")
        if state == "mask" and not (draft and text.strip()):
            glyph = "▓▒░"[min(int(p * 3), 2)]
            text = re.sub(r"[^ ]", glyph, text if text.strip() else " ▓▓▓")
        result.append(Cell(text, state, p))
    return result


def is_draft(cell):
    """Whether a mask shows what the model would put there."""
    return cell.state == "mask" and bool(cell.text.strip(" ▓▒░"))


def painted(shown):
    """Cells as one rich Text: the surer, the brighter."""
    from rich.text import Text
    text = Text()
    for cell in shown:
        sure = "" if cell.confidence > 0.6 else "cyan" if cell.confidence > 0.3 else "dim cyan"
        text.append(cell.text, "dim italic" if is_draft(cell) else STYLES.get(cell.state) or sure)
    return text


def frame(console, shown, step, seconds):
    """What the terminal shows of Cells: as much as fits around the first mask, and a bar."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Column, Table
    from rich.text import Text
    text = painted(shown)
    lines, room = text.wrap(console, console.width), max(1, console.height - 4)
    first = next((i for i, cell in enumerate(shown) if cell.state == "mask"), len(shown))
    at = len(painted(shown[:first]).wrap(console, console.width))
    top = max(0, min(at - room // 2, len(lines) - room))
    bar = Table.grid(Column(no_wrap=True), Column(ratio=1), Column(no_wrap=True), padding=(0, 1), expand=True)
    done = sum(cell.state in ("new", "set") for cell in shown)
    figures = f"{seconds:.1f} s  {done / max(seconds, 1e-9):.0f} tokens/s"
    bar.add_row(f"step {step.step}/{step.of}", ProgressBar(step.of, step.step), figures)
    legend = Text("▓▒░ masked  ", STYLES["mask"])
    legend.append("just revealed", STYLES["new"]).append("  ").append("taken back", STYLES["back"])
    below = [bar, legend] if console.width >= 40 else [bar]
    return Group(Text("\n").join(lines[top:top + room]), Text(), *below)


def with_style(name):
    """The text of a page that stands beside this script, page.css in it."""
    css, page = (Path(__file__).with_name(file).read_text(encoding="utf-8") for file in ("page.css", name))
    return page.replace("/* page.css */\n", css, 1)


def save_html(path, frames, seconds_per_frame):
    """A page that plays `frames` (lists of Cells) and needs nothing else: sample.html with them in it."""
    data = json.dumps([[(cell.text, "guess" if is_draft(cell) else cell.state) for cell in shown]
                       for shown in frames], ensure_ascii=False)
    page = with_style("sample.html").replace("INTERVAL", str(int(1000 * seconds_per_frame)))
    with written(path) as file:
        file.write(page.replace("FRAMES", data.replace("<", "\\u003c")))


def places(text, fonts, width):
    """(x in pixels, line) of each character of a text, each with its font, and of the text's end."""
    where, x, line = [], 0.0, 0
    for piece in re.findall(r"\n|\S{1,40}|.", text):
        font = fonts[len(where)]
        if piece == "\n":
            where.append((x, line))
            x, line = font.size, line + (x > font.size)
            continue
        if piece.strip() and x + font.getlength(piece) > width:
            x, line = 0.0, line + 1
        where += [(x + font.getlength(piece[:i]), line) for i in range(len(piece))]
        x += font.getlength(piece)
    return [*where, (x, line)]


def save_gif(file, frames, seconds_per_frame):
    """The same as a GIF in a binary file, in page.css's light colours and a typeface that matplotlib brings.
    As on the page a mask is as wide as the word that will stand there, and what is decided
    glows and settles. Of a long run not every step is shown."""
    import matplotlib
    from PIL import Image, ImageColor, ImageDraw, ImageFont
    css = re.findall(r"--(\w+): (#\w{6})", with_style("sample.html"))
    ink = {name: ImageColor.getrgb(hue) for name, hue in css}
    folder = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "STIXGeneral")
    upright, italic = (ImageFont.truetype(f"{folder}{style}.ttf", 28, layout_engine=ImageFont.Layout.BASIC)
                       for style in ("", "Italic"))
    small, height, margin = upright.font_variant(size=20), 46, 48

    def mix(one, other, share):
        return tuple(round(a + (b - a) * share) for a, b in zip(ink[one], ink[other]))

    ends = list(itertools.accumulate((len(cell.text) for cell in frames[-1]), initial=0))
    fonts = [italic if cell.state == "given" else upright for cell in frames[-1] for _ in cell.text]
    where = places("".join(cell.text for cell in frames[-1]), fonts, 840 - 2 * margin)
    size, last = (840, height * (where[-1][1] + 1) + 2 * margin), len(frames) - 1
    every, glow, images = -(-len(frames) // 130), [0.0] * len(frames[0]), []
    palette = Image.new("P", (1, 1))
    palette.putpalette([c for name in ("ink", "new", "soft", "dim", "back", "mark") for step in range(16)
                        for c in mix("paper", name, step / 15)])
    for step in range(last + 4):                # three more, in which the last word's glow settles
        shown = frames[min(step, last)]
        glow = [1.0 if cell.state == "new" and step <= last else max(0.0, g - 1 / 3)
                for cell, g in zip(shown, glow)]
        if step % every and step < last:
            continue
        image = Image.new("RGB", size, ink["paper"])
        pen = ImageDraw.Draw(image)
        pen.text((840 - margin, size[1] - 18), f"step {min(step, last)} of {last}", ink["dim"], small, "rs")
        for i, cell in enumerate(shown):
            body, word = cell.text.strip(), frames[-1][i].text
            x, line = where[ends[i] + len(word) - len(word.lstrip())]
            font = italic if cell.state == "given" or is_draft(cell) else upright
            x, base, room = x + margin, margin + height * line + 30, font.getlength(word.strip())
            if cell.state == "mask" and not is_draft(cell):
                if room > 3:
                    pen.rectangle((x + 1, base - 8, x + room - 2, base - 7), ink["mark"])
                continue
            fit = room / max(1.0, font.getlength(body))
            if fit < 1:
                font = font.font_variant(size=max(1, int(28 * fit)))
            hue = {"given": "soft", "mask": "dim", "back": "back"}.get(cell.state)
            if glow[i] and room:
                pen.rectangle((x - 1, base - 26, x + room, base + 9), mix("paper", "new", 0.17 * glow[i]))
            pen.text((x, base), body, ink[hue] if hue else mix("ink", "new", glow[i]), font, "ls")
            if cell.state == "back":
                pen.line((x, base - 8, x + room, base - 8), ink["back"], 2)
        images.append(image.quantize(palette=palette, dither=Image.Dither.NONE))
    times = [int(1000 * seconds_per_frame)] * (len(images) - 1) + [4000]
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], loop=0, duration=times)


# ---- the terminal

@functools.cache
def terminal():
    from rich.console import Console
    return Console(stderr=True, highlight=False, emoji=False)


def moving():
    """Whether pictures can move on stderr."""
    return terminal().is_terminal and not terminal().is_dumb_terminal


def say(message, style=""):
    """Print to stderr, in a terminal broken between words."""
    if terminal().is_terminal:
        terminal().print(message, style=style, markup=False)
    else:
        print(message, file=sys.stderr, flush=True)


def show(job, text):
    """Print a text; in a terminal broken between words, what was given in bold."""
    if not sys.stdout.isatty():
        return print(text, flush=True)
    from rich.console import Console
    from rich.text import Text
    shown, end = Text(text), 0
    for part in job.parts:
        if isinstance(part, str):
            start = text.index(part, end)
            end = start + len(part)
            shown.stylize("bold", start, end)
    Console(highlight=False).print(shown)


def bar_of(*columns):
    """A progress bar that leaves nothing behind."""
    from rich.progress import BarColumn, Progress
    return Progress("{task.description}", BarColumn(20), *columns, console=terminal(), transient=True,
                    disable=not moving(), redirect_stdout=False, redirect_stderr=False)


def perform(model, tokenizer, job, knobs):
    """(filled row, result) of a lone job, watched, and its animation saved, as the knobs say."""
    frames, how, path = [], Sampling(**knobs["sampling"]), knobs["save_animation"]
    watched = knobs["animate"] and moving()
    pause = 0.12 / knobs["speed"] if knobs["speed"] > 0 else 0.0
    with contextlib.ExitStack() as stack:
        if watched:
            from rich.live import Live
            live = stack.enter_context(Live(console=terminal(), auto_refresh=False, transient=True))

        def watch(jobs, step, seconds):
            before = step._replace(step=0, tokens=job.row[None], revealed=torch.zeros_like(step.revealed))
            for moment in [before, step] if step.step == 1 else [step]:
                shown = cells(tokenizer, job.row, moment, knobs["draft"])
                if path:
                    frames.append(shown)
                if watched:
                    live.update(frame(terminal(), shown, moment, seconds), refresh=True)
                    time.sleep(pause)

        [(_, row, result)] = write(model, tokenizer, [job], how, watch if watched or path else None)
    if frames:
        pace = 0.2 / (knobs["speed"] or 1)
        if path.endswith(".html"):
            save_html(path, frames, pace)
        else:
            with written(path, "wb") as file:
                save_gif(file, frames, pace)
    return row, result


def measure(model, tokenizer, jobs, how):
    """--benchmark: a table of speeds."""
    runs = [{"order": order, "steps": n} for order in CHOICES["order"] for n in (8, 25, 64)]
    runs += [{"threshold": 0.9}, {"threshold": 0.5}, {"entropy_bound": 0.5}, {"entropy_bound": 2.0}]
    line = "{:<17} {:>5} {:>5} {:>8} {:>9}"
    print(line.format("order", "steps", "calls", "ms/call", "tokens/s"), flush=True)
    with bar_of() as progress:
        task = progress.add_task("warming up", total=len(runs))
        list(write(model, tokenizer, jobs, replace(how, steps=2)))
        for run in runs:
            used = replace(how, **run)
            name = run.get("order") or "{}={}".format(*next(iter(run.items())))
            progress.update(task, description=f"{name}, {used.steps} steps")
            results = [result for *_, result in write(model, tokenizer, jobs, used)]
            seconds, tokens = (sum(r[key] for r in results) for key in ("seconds", "tokens"))
            calls = max(r["steps"] for r in results)
            figures = f"{1000 * seconds / calls:.1f}", f"{tokens / seconds:.0f}"
            progress.stop()
            print(line.format(name, used.steps, calls, *figures), flush=True)
            progress.start()
            progress.advance(task)


def write_all(model, tokenizer, jobs, knobs):
    """The results of all jobs, printed and put into `output` as they are done."""
    from rich.progress import TaskProgressColumn, TimeRemainingColumn
    results = []

    def keep(job, result):
        results.append(result)
        if output:
            write_json(output, results)
        if len(jobs) > 1:
            say(("\n" if len(results) > 1 else "") + f"{result['prompt']!r}, seed {result['seed']}:")
        show(job, result["text"])

    if knobs["animate"] or save_animation:
        for job in jobs:
            keep(job, perform(model, tokenizer, job, knobs)[1])
            knobs = knobs | {"save_animation": ""}
        return results
    with bar_of(TaskProgressColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task(f"0/{len(jobs)} texts", total=len(jobs))

        def watch(batch, step, seconds):
            progress.update(task, completed=len(results) + len(batch) * step.step / step.of)

        for i, _, result in write(model, tokenizer, jobs, sampling, watch):
            progress.stop()         # what is printed meanwhile stands above the bar
            keep(jobs[i], result)
            progress.start()
            progress.update(task, completed=i + 1, description=f"{i + 1}/{len(jobs)} texts")
    return results


# ---- a conversation

HELP = """\
/set KNOB VALUE  change a knob
/seed 5          where chance begins
/show            the knobs, and the last text's tokens with their numbers
/again           the same with the next seed
/remask 12-18    write these tokens of the last text anew
/undo            back to the text before
/save FILE       keep the last text; as .json, all that is known of it
/help            this
/quit            leave, as Ctrl-D does; Ctrl-C stops the text at hand"""
COMMANDS = [line.split()[0] for line in HELP.splitlines()]
SETTABLE = (*asdict(sampling), "max_tokens", "suffix", "seed", "animate", "speed", "draft", "save_animation")


def parts_of(text, knobs, gaps):
    """What is to be written for a text, as parts: its gaps, if `gaps`, or what follows up to the suffix."""
    parts, after = parse_template(text), knobs["suffix"]
    if gaps and any(not isinstance(part, str) for part in parts):
        return parts
    space = " " * (after[:1].isalnum() or after[:1] in tuple("“‘("))
    return [text, knobs["max_tokens"], *([space + after] if after else [])]


def converse(model, tokenizer, knobs):
    """--interactive: a line is a text to continue or a template to fill, or one of COMMANDS."""
    history = Path(out_dir, "sample_history")
    with contextlib.suppress(ImportError, OSError):     # Windows has no readline, a first session no history
        import readline

        def complete(text, state):
            fitting = [option for option in options(readline.get_line_buffer()) if option.startswith(text)]
            return [*fitting, None][state]
        readline.set_completer_delims(" ")
        readline.set_completer(complete)
        readline.parse_and_bind("tab: complete")
        readline.read_history_file(history)
    past = []           # of each text its Job, filled row and result
    say("Type the beginning of a text, or a text with gaps (____). /help lists commands.")
    # for readline, what stands between \1 and \2 has no width
    sign = "\1\033[1;34m\2> \1\033[0m\2" if terminal().color_system else "> "
    while True:
        try:
            line = input(sign if sys.stdin.isatty() else "")
            if line.strip() == "/quit":
                break
            command(line, model, tokenizer, knobs, past)
        except EOFError:
            break
        except KeyboardInterrupt:
            say("stopped", "cyan")
        except (ValueError, OSError) as error:
            say(str(error), "red")
        except SystemExit:      # fail() has said what is wrong with a knob
            continue
    with contextlib.suppress(NameError, OSError):
        readline.write_history_file(history)


def options(line):
    """What may complete the last word of an interactive line."""
    words = line.split(" ")
    if words[0] == "/set" and len(words) > 1:
        return list(SETTABLE) if len(words) == 2 else list(CHOICES.get(words[1], ()))
    return list(COMMANDS) if line.startswith("/") and len(words) == 1 else []


def command(line, model, tokenizer, knobs, past):
    """Do what one interactive line says. ValueError or fail() if it cannot."""
    name, _, argument = line.partition(" ")
    argument, how, job = argument.strip(), Sampling(**knobs["sampling"]), None
    if name.startswith("/") and name not in COMMANDS:
        raise ValueError(f"there is no {name}: /help lists the commands")
    if name in ("/again", "/remask", "/undo", "/save") and not past:
        raise ValueError("there is no text yet")
    if name == "/help":
        say(HELP)
    elif name in ("/set", "/seed"):
        say(change(knobs, *(("seed", argument) if name == "/seed" else argument.partition(" ")[::2])))
    elif name == "/show":
        say("\n".join(f"  {key} = {(knobs | knobs['sampling'])[key]!r}" for key in SETTABLE))
        if past:
            written = past[-1][1][past[-1][0].row == model.config.mask_id].tolist()
            words = (tokenizer.decode([token]).strip(" ") for token in written)
            say("  " + " ".join(f"{n}:{word!r}" for n, word in enumerate(words, 1)))
    elif name == "/undo":
        past.pop()
        show(past[-1][0], past[-1][2]["text"]) if past else say("no text is left")
    elif name == "/save":
        say(save(argument, past[-1][2]))
    elif name == "/again":
        last = past[-1][0]
        job = job_of(model, tokenizer, last.prompt, last.parts, last.seed + 1, how)
    elif name == "/remask":
        job = remasked(*past[-1][:2], argument, model.config.mask_id)
    elif line.strip():
        job = job_of(model, tokenizer, line, parts_of(line, knobs, gaps=True), knobs["seed"], how)
    if job:
        row, result = perform(model, tokenizer, job, knobs)
        past.append((job._replace(row=past[-1][0].row) if name == "/remask" else job, row, result))
        show(job, result["text"])


def change(knobs, key, value):
    """Set a knob -> what to say, or ValueError or fail()."""
    if key not in SETTABLE:
        raise ValueError(f"/set takes a knob and a value; knobs: {', '.join(SETTABLE)}")
    kinds = {f"sampling.{f.name}": f.type for f in fields(Sampling)}
    tried = knobs | {"sampling": dict(knobs["sampling"])}
    assign(tried, tried, kinds, key, value.strip())
    Sampling(**tried["sampling"])
    for name, comment in documented(__file__):
        in_range(name, tried[name], comment)
    knobs.update(tried)
    return f"{key} = {(knobs | knobs['sampling'])[key]!r}"


def save(path, result):
    """Keep a text -> what to say."""
    if not path:
        raise ValueError("/save takes a file's name")
    if path.endswith(".json"):
        write_json(path, [result])
    else:
        with written(path) as file:
            file.write(result["text"] + "\n")
    return f"saved in {path}"


def remasked(last, row, span, mask_id):
    """The Job of writing a span of the last text's tokens, such as 2-5, anew."""
    places = (last.row == mask_id).nonzero()[:, 0]
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", span)
    first, end = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= first <= end <= len(places):
        raise ValueError(f"/remask takes a span of the {len(places)} tokens that were written, as in "
                         "/remask 2-5; /show numbers them")
    return last._replace(row=row.index_fill(0, places[first - 1:end], mask_id), seed=last.seed + 1)


# ---- the program

def check():
    if template and (prompt or suffix):
        fail("--template stands alone: put the prompt and the suffix into it")
    if bool(template) + bool(batch) + interactive + benchmark > 1:
        fail("one of --template, --batch, --interactive and --benchmark at a time")
    if template and "__" not in template:
        fail("--template has no gap: write ____ for one of any length, ____(12) for one of twelve tokens")
    if save_animation and not save_animation.endswith((".html", ".gif")):
        fail(f"--save_animation wants a name that ends in .html or .gif, got {save_animation}")


CARD = """---
library_name: pytorch
pipeline_tag: text-generation
tags: [masked-diffusion, text-diffusion]
---
A masked diffusion language model of one book, {book}: {weights:,} weights, {n_text:,} tokens. It writes in
the book's style and knows nothing else. Every script of the program that trained it opens this folder, as in

    python sample.py --checkpoint=FOLDER

`model.safetensors` has the weights, `config.json` the network's shape and how it was trained,
`tokenizer.json` the vocabulary.

{evaluation}
"""


def share(folder, path, saved):
    """Write a checkpoint as others can read it, with the figures of evaluation.json if they are its own."""
    from safetensors.torch import save
    Path(folder).mkdir(parents=True, exist_ok=True)
    training = saved.get("training", {})
    write_json(f"{folder}/config.json", {"config": saved["config"], "training": training})
    write_json(f"{folder}/tokenizer.json", saved["tokenizer"])
    with written(f"{folder}/model.safetensors", "wb") as file:
        file.write(save(saved["model"]))
    evaluation, told = Path(path).parent / "evaluation.json", "It has not been evaluated."
    if evaluation.exists():
        found = json.loads(evaluation.read_text(encoding="utf-8"))
        if found["checkpoint"] == path:
            bits, table = found["likelihood"]["bits_per_byte"], found["baselines"]["ngram_bits_per_byte"]
            told = (f"Bits per byte of the book's {found['split']} text: at most {bits:.3f}; a table of its "
                    f"n-grams {table:.3f}. Share of its samples that stands in the book word for word: "
                    f"{found['memorization']['generated']['copied_share']:.1%}.")
    card = CARD.format(book=training.get("dataset", "unnamed"), n_text=saved["config"]["vocab_size"] - 3,
                       weights=sum(w.numel() for w in saved["model"].values()), evaluation=told)
    with written(f"{folder}/README.md") as file:
        file.write(card)
    say(f"{folder}: the model of {path}, {told[0].lower()}{told[1:]}")


def main():
    knobs = configure(globals(), positional="prompt")
    check()
    sys.stdout.reconfigure(errors="replace")        # a terminal that cannot show a character shows ?
    path = checkpoint or os.path.join(out_dir, "best.pt")
    model, tokenizer, saved = load(path, device)
    if sys.stderr.isatty():
        print(" " * 11, end="\r", file=sys.stderr, flush=True)
    try:
        asked = [template or prompt]
        if batch:
            lines = Path(batch).read_text(encoding="utf-8-sig").splitlines()
            asked = [line for line in lines if line.strip()]
        if output:      # a path that cannot be written is known before the work
            write_json(output, [])
        if save_model:
            return share(save_model, path, saved)
        if interactive:
            return converse(model, tokenizer, knobs | {"animate": animate is not False})
        gaps = bool(template or batch)
        jobs = [job_of(model, tokenizer, text, parts_of(text, knobs, gaps), seed + i, sampling)
                for text in asked for i in range(num_samples)]
        if benchmark:
            return measure(model, tokenizer, jobs, sampling)
        results = write_all(model, tokenizer, jobs, knobs)
    except ValueError as error:
        fail(error)
    except BrokenPipeError:
        raise
    except OSError as error:
        fail(f"{error.filename or 'cannot print'}: {error.strerror}")
    tokens, seconds = (sum(r[key] for r in results) for key in ("tokens", "seconds"))
    steps = max((r["steps"] for r in results), default=0)
    say(f"{tokens} tokens in {seconds:.1f} s ({tokens / max(seconds, 1e-9):.0f} tokens/s), {steps} steps")


if __name__ == "__main__":
    run_script(main)
