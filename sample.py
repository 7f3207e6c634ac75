"""Text from a checkpoint: continue a prompt, fill the gaps of a template, or write from nothing.

    python sample.py
    python sample.py --prompt="It was on a dreary night" --steps=50 --num_samples=3 --animate
    python sample.py --template="The ____ of the sea was ____(12) and cold."
    python sample.py --interactive

Text goes to stdout, everything else to stderr. Results are reproducible: the same seed and settings give the same text.
"""
import codecs
import contextlib
import itertools
import json
import os
import random
import re
import sys
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from configurator import assign, configure, fail, write_json
from model import Config, DiffusionModel, Sampling, Step, denoise, load_model, pad, pick_device, set_up_cpu
from prepare import Tokenizer

out_dir = "out"                     # where train.py left its checkpoints
checkpoint = ""                     # a checkpoint's path; empty: best.pt in out_dir
device = ""                         # cpu, cuda, mps; empty: a GPU if there is one
prompt = ""                         # the text to continue; empty: write from nothing
suffix = ""                         # text that follows what is written (after a space, if it begins with a word)
template = ""                       # text with gaps to fill: ____ of any length, ____(12) of twelve tokens
max_tokens = 128                    # how many tokens to write after the prompt
num_samples = 1                     # texts per prompt, from the seeds seed, seed + 1, ...
seed = 1                            # where chance begins
sampling = Sampling()               # how text is drawn; model.py says what its fields, knobs as well, may be
gap_lengths = [1, 2, 3, 5, 8]       # tokens to try in a gap of unknown length; the likeliest text is kept
output = ""                         # a JSON file for the results
batch = ""                          # a file of prompts or templates, one a line; results are written to output as they come
interactive = False                 # a prompt to type at; /help says what it knows
animate = False                     # watch the text appear
speed = 1.0                         # of the animation: 2 is twice as fast, 0 does not wait
draft = False                       # in animations, show what the model would put under the masks
save_animation = ""                 # FILE.html or FILE.gif: the first text's animation, to keep
benchmark = False                   # tokens per second over steps and orders

CHOICES = {f.name: f.metadata["choices"] for f in fields(Sampling)}
BATCH_TOKENS = 4096                 # positions filled at once
TRIES = 25                          # combinations of gap lengths tried at most


def load(path: str, device: str = "") -> tuple[DiffusionModel, Tokenizer, dict]:
    """(model in eval mode, its tokenizer, the whole checkpoint); device "": a GPU if there is one. User errors end in fail()."""
    try:
        where = pick_device(device)
        model, checkpoint = load_model(path)
        tokenizer = Tokenizer.from_dict(checkpoint["tokenizer"])
    except (FileNotFoundError, ValueError) as error:
        fail(error)
    except (KeyError, TypeError, AttributeError):
        fail(f"{path} holds no tokenizer that this version can read")
    if tokenizer.vocab_size != model.config.vocab_size:
        fail(f"{path}: its tokenizer has {tokenizer.vocab_size} tokens and its model {model.config.vocab_size}")
    set_up_cpu(model.config)
    return model.to(where), tokenizer, checkpoint


# ---- text and gaps ---------------------------------------------------------------------------------------------------
# A text to fill is a list of parts: a str is fixed, an int is a gap of that many tokens. A token carries the space before
# its word, so a space that stands before a gap is left to the gap's first token: alone it would be a token that the model
# has hardly ever seen. `texts` puts it back, so that fixed text comes back as it was given.

def parse_template(template: str) -> list[str | int | None]:
    """The parts of a template: two or more underscores are a gap, of the number of tokens in brackets behind them, else of None."""
    parts, end = [], 0
    for gap in re.finditer(r"__+(?:\((\d+)\))?", template):
        parts += [template[end:gap.start()], int(gap[1]) if gap[1] else None]
        end = gap.end()
    return [part for part in [*parts, template[end:]] if part != ""]


def canvas(tokenizer: Tokenizer, parts: list[str | int], config: Config) -> Tensor:
    """(T,) int64: the tokens of fixed text, and a [MASK] for each token of a gap. ValueError if a gap is not at least one token."""
    return torch.tensor([i for ids in _tokenize(tokenizer, parts, config.mask_id) for i in ids], dtype=torch.long)


def texts(tokenizer: Tokenizer, parts: list[str | int], row: Tensor) -> list[str]:
    """One str per part of a filled canvas `row` (T,): fixed text exactly as given, a gap as a reader expects it between its neighbours.

    Beside white space, and at either end of the text, a gap loses its own; bytes that do not make up a character are left
    out, and so are control characters, which no cleaned book has and which could command a terminal.
    """
    result, start = [], 0
    for part, ids in zip(parts, _tokenize(tokenizer, parts, -1)):
        filled = tokenizer.decode_bytes(row[start:start + len(ids)].tolist()).decode("utf-8", errors="ignore")
        result.append(part if isinstance(part, str) else _printable(filled))
        start += len(ids)
    for i, part in enumerate(parts):
        if isinstance(part, int):
            before, after = "".join(result[:i]), parts[i + 1] if i + 1 < len(parts) else " "
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
        elif part >= 1:
            yield [mask_id] * part
        else:
            raise ValueError(f"a gap is at least one token long, not {part}")


# ---- filling ---------------------------------------------------------------------------------------------------------

def word_starts(tokenizer: Tokenizer, parts: list[str | int]) -> Tensor:
    """(T,) bool: the first token of each gap of a canvas that follows a space, and has to bring it."""
    ids, result = list(_tokenize(tokenizer, parts, -1)), []
    for before, part, own in zip(["", *parts], parts, ids):
        result += [isinstance(part, int) and i == 0 and isinstance(before, str) and before.endswith(" ") for i in range(len(own))]
    return torch.tensor(result, dtype=torch.bool)


def not_words(tokenizer: Tokenizer) -> Tensor:
    """(n_text,) bool: the tokens that are not a space with something behind it."""
    result = torch.tensor([not (token[:1] == b" " and token[1:].strip()) for token in tokenizer.tokens[:-3]])
    return result if not result.all() else torch.zeros_like(result)                 # a script without spaces


def batches(model: DiffusionModel, rows: list[Tensor], seeds: list[int], bar: tuple[list[Tensor], Tensor] | None = None,
            how: Sampling | None = None) -> Iterator[tuple[list[int], Iterator[Step]]]:
    """Fill 1-d canvases of any lengths: yield (indices of the rows of a batch, its Steps). `bar` is (one `word_starts` per row, `not_words`).

    A row's text depends on its seed and the settings, not on its batch. ValueError as in denoise.
    """
    todo = sorted(range(len(rows)), key=lambda i: len(rows[i]))                     # alike lengths together: little padding
    while todo:
        size = max(1, BATCH_TOKENS // max(1, len(rows[todo[-1]])))
        batch, todo = todo[-size:], todo[:-size]
        barred = bar and (pad([bar[0][i] for i in batch], False), bar[1])
        yield batch, denoise(model, pad([rows[i] for i in batch], model.config.pad_id), [seeds[i] for i in batch], how, bar=barred)


def generate(model: DiffusionModel, rows: list[Tensor], seeds: list[int], how: Sampling | None = None) -> list[Tensor]:
    """Fill the [MASK]s of 1-d canvases of any lengths: the filled rows, in order."""
    filled = list(rows)
    for batch, events in batches(model, rows, seeds, how=how):
        for step in events:
            for i, tokens in zip(batch, step.tokens):
                filled[i] = tokens[:len(rows[i])]
    return filled


class Job(NamedTuple):
    """One text to write."""
    prompt: str                 # as the user gave it
    parts: list[str | int]
    row: Tensor                 # (T,) its canvas
    seed: int


def job_of(model: DiffusionModel, tokenizer: Tokenizer, prompt: str, parts: list[str | int | None], seed: int, how: Sampling) -> Job:
    """The job of filling `parts`. Gaps of None are tried at several lengths; those are kept whose text is likeliest per token, as the model
    saw it when it decided. (A likelihood of the whole text per token would favour long gaps: what the model writes is more probable than what people do.)"""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{prompt!r} is not UTF-8 text") from None
    tries, unknown = [parts], parts.count(None)
    if unknown:
        if len(gap_lengths) ** unknown <= TRIES:
            lengths = list(itertools.product(gap_lengths, repeat=unknown))
        else:
            rng = random.Random(seed)
            lengths = [rng.choices(gap_lengths, k=unknown) for _ in range(TRIES)]
        tries = [[next(chosen) if part is None else part for part in parts] for chosen in map(iter, lengths)]
    jobs = [Job(prompt, attempt, canvas(tokenizer, attempt, model.config), seed) for attempt in tries]
    if not unknown:
        return jobs[0]
    likelihood = [0.0] * len(jobs)
    for batch, events in job_batches(model, tokenizer, jobs, how):
        for step in events:
            for i, p in zip(batch, step.confidence.log()):
                likelihood[i] = float(p[:len(jobs[i].row)][jobs[i].row == model.config.mask_id].mean())
    return jobs[max(range(len(jobs)), key=likelihood.__getitem__)]


def job_batches(model, tokenizer, jobs, how):
    """`batches` of jobs, where a gap after a space begins a word."""
    bar = [word_starts(tokenizer, job.parts) for job in jobs], not_words(tokenizer)
    return batches(model, [job.row for job in jobs], [job.seed for job in jobs], bar, how)


def write(model: DiffusionModel, tokenizer: Tokenizer, jobs: list[Job], how: Sampling, watch=None) -> Iterator[tuple[int, Tensor, dict]]:
    """Fill jobs in batches; yield (index, filled row, result as in --output) as they are done. watch(job, Step, seconds) sees a lone job's steps."""
    for batch, events in job_batches(model, tokenizer, jobs, how):
        filled, calls, seconds = [jobs[i].row for i in batch], [0] * len(batch), 0.0
        while True:
            begun = time.perf_counter()
            step = next(events, None)
            seconds += time.perf_counter() - begun
            if step is None:
                break
            filled = [tokens[:len(jobs[i].row)] for i, tokens in zip(batch, step.tokens)]
            calls = [n + bool(revealed.any()) for n, revealed in zip(calls, step.revealed)]
            if watch:
                watch(jobs[batch[0]], step, seconds)
        for i, row, n in zip(batch, filled, calls):
            job = jobs[i]
            pieces = texts(tokenizer, job.parts, row)
            written = [piece for piece, part in zip(pieces, job.parts) if isinstance(part, int)]
            yield i, row, {"prompt": job.prompt, "text": "".join(pieces), "completion": "\n".join(written), "seed": job.seed, "steps": n,
                           "tokens": int((job.row == model.config.mask_id).sum()), "seconds": round(seconds / len(batch), 4), "settings": asdict(how)}


# ---- watching --------------------------------------------------------------------------------------------------------

class Cell(NamedTuple):
    """A token as it is shown."""
    text: str
    state: str                  # given, mask, new (just revealed), set (revealed before), back (just taken back)
    confidence: float


STYLES = {"given": "bold", "mask": "blue", "new": "bold underline green", "back": "strike red"}


def cells(tokenizer: Tokenizer, row: Tensor, step: Step, draft: bool) -> list[Cell]:
    """The state of a lone canvas `row` (T,) after `step`. Bytes are decoded together: a character of several tokens is in the last one's cell.

    A mask is as long as the draft under it, in a glyph that thins with confidence: ▓ ▒ ░; with `draft` it is the draft itself.
    """
    decoder, hidden, result = codecs.getincrementaldecoder("utf-8")(errors="ignore"), False, []
    mask_id = tokenizer.special["[MASK]"]
    columns = zip(row.tolist(), step.tokens[0].tolist(), step.draft[0].tolist(), step.revealed[0].tolist(), step.remasked[0].tolist(), step.confidence[0].tolist())
    for given, token, guess, revealed, remasked, confidence in columns:
        if (token == mask_id) != hidden:
            hidden = not hidden
            decoder.reset()
        text = _printable(decoder.decode(tokenizer.tokens[guess if hidden else token]))
        state = "given" if given != mask_id else "back" if remasked else "mask" if hidden else "new" if revealed else "set"
        if state == "mask" and not (draft and text.strip()):
            glyph = "▓▒░"[min(int(confidence * 3), 2)]
            text = re.sub(r"[^ ]", glyph, text if text.strip() else " ▓▓▓")
        result.append(Cell(text, state, confidence))
    return result


def painted(shown: list[Cell]):
    """Cells as one rich Text: settled text is brighter the surer it was, a draft under its mask is dim."""
    from rich.text import Text
    text = Text()
    for cell in shown:
        style = STYLES.get(cell.state) or ("" if cell.confidence > 0.6 else "cyan" if cell.confidence > 0.3 else "dim cyan")
        text.append(cell.text, "dim italic" if cell.state == "mask" and cell.text.strip(" ▓▒░") else style)
    return text


def frame(console, shown: list[Cell], step: Step, seconds: float):
    """What the terminal shows after a step: the text, as much of it as fits around its first mask, and a bar."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text
    text = painted(shown)
    lines, room = text.wrap(console, console.width), max(1, console.height - 4)
    first = next((i for i, cell in enumerate(shown) if cell.state == "mask"), len(shown))
    at = len(painted(shown[:first]).wrap(console, console.width))
    top = max(0, min(at - room // 2, len(lines) - room))
    bar = Table.grid(padding=(0, 1), expand=True)
    bar.add_column(no_wrap=True)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True)
    done = sum(cell.state in ("new", "set") for cell in shown)
    bar.add_row(f"step {step.step}/{step.of}", ProgressBar(step.of, step.step), f"{seconds:.1f} s  {done / max(seconds, 1e-9):.0f} tokens/s")
    legend = Text("▓▒░ masked  ", STYLES["mask"])
    legend.append("just revealed", STYLES["new"]).append("  ").append("taken back", STYLES["back"])
    return Group(Text("\n").join(lines[top:top + room]), Text(), bar, *([legend] if console.width >= 40 else []))


def opening(row: Tensor, step: Step) -> Step:
    """The first step's picture before anything was revealed."""
    return step._replace(step=0, tokens=row[None], revealed=torch.zeros_like(step.revealed))


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>A text appears</title>
<style>
:root { color-scheme: light dark; }
body { font: 1.05rem/1.6 Georgia, serif; max-width: 42rem; margin: 2rem auto; padding: 0 1rem; }
#text { white-space: pre-wrap; min-height: 12rem; }
.given { font-weight: bold; } .mask { color: light-dark(#88a, #779); } .guess { opacity: .5; font-style: italic; }
.new { color: light-dark(#063, #7e9); text-decoration: underline; } .back { color: light-dark(#a11, #f88); text-decoration: line-through; }
.unsure { opacity: .75; }
form { display: flex; gap: .8rem; align-items: center; font-family: sans-serif; font-size: .9rem; } #at { flex: 1; }
</style></head><body>
<form onsubmit="return false"><button id="play" type="button">Pause</button><input id="at" type="range" min="0" value="0" aria-label="step"><output id="label"></output></form>
<p id="text"></p>
<script type="application/json" id="frames">FRAMES</script>
<script>
const frames = JSON.parse(document.getElementById("frames").textContent);
const [play, at, label, text] = ["play", "at", "label", "text"].map(id => document.getElementById(id));
let playing = true;
function show() {
  text.replaceChildren(...frames[at.value].map(([cell, state]) => {
    const span = document.createElement("span");
    span.textContent = cell; span.className = state;
    return span;
  }));
  label.textContent = `step ${at.value} of ${at.max}`;
  play.textContent = playing ? "Pause" : "Play";
}
at.max = frames.length - 1;
at.oninput = () => { playing = false; show(); };
play.onclick = () => { playing = !playing; if (playing && at.value === at.max) at.value = 0; show(); };
setInterval(() => { if (playing) { if (at.value === at.max) playing = false; else at.value = +at.value + 1; show(); } }, INTERVAL);
show();
</script></body></html>
"""


def save_html(path: str, frames: list[list[Cell]], seconds_per_frame: float) -> None:
    """One page that plays `frames` and can be scrubbed, needing nothing else. Text enters it as JSON and is shown as text only."""
    def state(cell):
        return "mask guess" if cell.state == "mask" and cell.text.strip(" ▓▒░") else "set unsure" if cell.state == "set" and cell.confidence < 0.3 else cell.state
    data = json.dumps([[(cell.text, state(cell)) for cell in shown] for shown in frames], ensure_ascii=False).replace("<", "\\u003c")
    Path(path).write_text(PAGE.replace("INTERVAL", str(int(1000 * seconds_per_frame))).replace("FRAMES", data), encoding="utf-8")


def save_gif(path: str, frames: list[list[Cell]], seconds_per_frame: float, columns: int = 72) -> None:
    """The same as a GIF, drawn with Pillow in the typeface that matplotlib brings."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont
    from rich.cells import cell_len
    from rich.console import Console
    font = ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSansMono.ttf"), 16)
    width, height = font.getlength("m"), 24
    console, pages = Console(width=columns, stderr=True), [painted(shown) for shown in frames]
    pages = [page.wrap(console, columns) for page in pages]
    size = int(width * columns) + 32, height * max(map(len, pages)) + 32
    colours = {None: "#c8ccd8", "blue": "#6d7fb3", "green": "#7dff9a", "red": "#ff8080", "cyan": "#7fc4d0"}
    images = []
    for lines in pages:
        image = Image.new("RGB", size, "#12141c")
        pen = ImageDraw.Draw(image)
        for row, line in enumerate(lines):
            column = 0
            for text, style, _ in line.render(console):
                colour = "#ffffff" if style and style.bold and not style.color else colours[style.color.name if style and style.color else None]
                pen.text((16 + column * width, 16 + row * height), text, colour, font)
                column += cell_len(text)
        images.append(image)
    images[0].write_json(path, save_all=True, append_images=images[1:], loop=0, duration=[int(1000 * seconds_per_frame)] * (len(images) - 1) + [4000])


# ---- the program -----------------------------------------------------------------------------------------------------

def perform(model: DiffusionModel, tokenizer: Tokenizer, job: Job, knobs: dict, console) -> tuple[Tensor, dict]:
    """Write a lone job as the knobs say, watched or not; (filled row, result). Saves the animation that save_animation names."""
    frames, how = [], Sampling(**knobs["sampling"])
    moving = knobs["animate"] and console.is_terminal and not console.is_dumb_terminal
    pause = 0.12 / knobs["speed"] if knobs["speed"] > 0 else 0.0
    with contextlib.ExitStack() as stack:
        if moving:
            from rich.live import Live
            live = stack.enter_context(Live(console=console, auto_refresh=False, transient=True))

        def watch(job, step, seconds):
            for moment in [opening(job.row, step), step] if step.step == 1 else [step]:
                shown = cells(tokenizer, job.row, moment, knobs["draft"])
                if knobs["save_animation"]:
                    frames.append(shown)
                if moving:
                    live.update(frame(console, shown, moment, seconds), refresh=True)
                    time.sleep(pause)

        [(_, row, result)] = write(model, tokenizer, [job], how, watch if moving or knobs["save_animation"] else None)
    if frames:
        (save_gif if knobs["save_animation"].endswith(".gif") else save_html)(knobs["save_animation"], frames, 0.2 / (knobs["speed"] or 1))
    return row, result


def measure(model: DiffusionModel, tokenizer: Tokenizer, jobs: list[Job], how: Sampling) -> None:
    """--benchmark: a table of speeds on stdout."""
    from rich.console import Console
    from rich.table import Table
    table = Table("order", "steps", "adaptive", "calls", "ms per call", "tokens/s", box=None)
    runs = [{"order": order, "steps": n} for order in CHOICES["order"] for n in (8, 25, 64)]
    runs += [{name: value} for name, value in (("threshold", 0.9), ("threshold", 0.5), ("entropy_bound", 0.5), ("entropy_bound", 2.0))]
    list(write(model, tokenizer, jobs, replace(how, steps=2)))                    # a warm-up
    for run in runs:
        used = replace(how, **run)
        results = [result for *_, result in write(model, tokenizer, jobs, used)]
        seconds, calls = sum(r["seconds"] for r in results), max(r["steps"] for r in results)
        adaptive = next((f"{name} {run[name]}" for name in run if name in ("threshold", "entropy_bound")), "")
        table.add_row(used.order, str(used.steps), adaptive, str(calls), f"{1000 * seconds / calls:.1f}", f"{sum(r['tokens'] for r in results) / seconds:.0f}")
    Console(width=80).print(table)


def parts_of(text: str, knobs: dict, gaps: bool) -> list[str | int | None]:
    """What is to be written for a text: its gaps, where `gaps` are looked for and it has any, else what follows it up to the suffix."""
    parts = parse_template(text)
    if gaps and any(not isinstance(part, str) for part in parts):
        return parts
    after = knobs["suffix"]
    return [text, knobs["max_tokens"], *([" " * (after[0].isalnum() or after[0] in "“‘(") + after] if after else [])]


COMMANDS = {
    "/set": "/set temperature 0.7: change a knob", "/show": "the knobs, and the last text's tokens with their numbers", "/again": "the same with the next seed",
    "/seed": "/seed 5: where chance begins", "/remask": "/remask 12-18: write these tokens of the last text anew", "/undo": "back to the text before",
    "/save": "/save FILE.txt or FILE.json: keep the last text", "/help": "this", "/quit": "leave, as Ctrl-D does; Ctrl-C stops the text at hand",
}
SETTABLE = (*asdict(sampling), "max_tokens", "suffix", "seed", "animate", "speed", "draft", "save_animation")


def converse(model: DiffusionModel, tokenizer: Tokenizer, knobs: dict, console) -> None:
    """--interactive: a line is a text to continue or a template to fill, or one of COMMANDS."""
    history = Path(out_dir, "sample_history")
    with contextlib.suppress(ImportError, OSError):                                 # Windows has no readline; a first session has no history
        import readline
        readline.set_completer_delims(" ")
        readline.set_completer(lambda text, state: ([o for o in options(readline.get_line_buffer()) if o.startswith(text)] + [None])[state])
        readline.parse_and_bind("tab: complete")
        readline.read_history_file(history)
    past: list[tuple[Job, Tensor, dict]] = []
    say("Type the beginning of a text, or a text with gaps (____). /help lists commands.")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
            if line.strip() == "/quit":
                break
            command(line, model, tokenizer, knobs, past, console)
        except EOFError:
            break
        except KeyboardInterrupt:
            say("stopped")
        except (ValueError, OSError) as error:
            say(str(error))
        except SystemExit:                                                           # fail() has said what is wrong with a knob
            continue
    with contextlib.suppress(NameError, OSError):
        readline.write_history_file(history)


def options(line: str) -> list[str]:
    """What may complete the last word of an interactive line."""
    words = line.split(" ")
    if words[0] == "/set" and len(words) > 1:
        return list(SETTABLE) if len(words) == 2 else list(CHOICES.get(words[1], ()))
    return list(COMMANDS) if line.startswith("/") and len(words) == 1 else []


def command(line: str, model: DiffusionModel, tokenizer: Tokenizer, knobs: dict, past: list[tuple[Job, Tensor, dict]], console) -> None:
    """Do what one interactive line says; `past` holds the texts so far. ValueError or fail() if it cannot be done."""
    name, _, argument = line.partition(" ")
    argument = argument.strip()
    if name.startswith("/") and name not in COMMANDS:
        raise ValueError(f"there is no {name}: /help lists the commands")
    if name in ("/again", "/remask", "/undo", "/save") and not past:
        raise ValueError("there is no text yet")
    how, job = Sampling(**knobs["sampling"]), None
    if name == "/help":
        say("\n".join(f"  {key:<9}{text}" for key, text in COMMANDS.items()))
    elif name in ("/set", "/seed"):
        key, _, value = argument.partition(" ") if name == "/set" else ("seed", "", argument)
        if key not in SETTABLE:
            raise ValueError(f"/set takes a knob and a value; knobs: {', '.join(SETTABLE)}")
        assign(knobs, knobs, {f"sampling.{f.name}": f.type for f in fields(Sampling)}, key, value.strip())
        Sampling(**knobs["sampling"])
    elif name == "/show":
        say("\n".join(f"  {key} = {(knobs | knobs['sampling'])[key]!r}" for key in SETTABLE))
        if past:
            written = past[-1][1][past[-1][0].row == model.config.mask_id].tolist()
            say("  " + " ".join(f"{n}:{tokenizer.decode([token]).strip(' ')!r}" for n, token in enumerate(written, 1)))
    elif name == "/undo":
        past.pop()
        print(past[-1][2]["text"] if past else "")
    elif name == "/save":
        if not argument:
            raise ValueError("/save takes a file's name")
        write_json(argument, [past[-1][2]]) if argument.endswith(".json") else Path(argument).write_text(past[-1][2]["text"] + "\n", encoding="utf-8")
    elif name == "/again":
        job = job_of(model, tokenizer, past[-1][0].prompt, past[-1][0].parts, past[-1][0].seed + 1, how)
    elif name == "/remask":
        last, row, _ = past[-1]
        places = (last.row == model.config.mask_id).nonzero()[:, 0]
        span = re.fullmatch(r"(\d+)(?:-(\d+))?", argument)
        if not span or not 1 <= int(span[1]) <= int(span[2] or span[1]) <= len(places):
            raise ValueError(f"/remask takes a span of the {len(places)} tokens that were written, as in /remask 2-5; /show numbers them")
        row = row.clone()
        row[places[int(span[1]) - 1:int(span[2] or span[1])]] = model.config.mask_id
        job = last._replace(row=row, seed=last.seed + 1)
    elif line.strip():
        job = job_of(model, tokenizer, line, parts_of(line, knobs, gaps=True), knobs["seed"], how)
    if job:
        row, result = perform(model, tokenizer, job, knobs, console)
        past.append((job if name != "/remask" else job._replace(row=past[-1][0].row), row, result))
        print(result["text"], flush=True)


def write_all(model: DiffusionModel, tokenizer: Tokenizer, jobs: list[Job], knobs: dict, console) -> list[dict]:
    """The results of all jobs, in order; `output` has those that are done, whenever it is read."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
    results = {}

    def keep(i, result):
        results[i] = result
        if output:
            write_json(output, [results[i] for i in sorted(results)])

    if animate or save_animation:
        for i, job in enumerate(jobs):
            keep(i, perform(model, tokenizer, job, knobs | {"save_animation": save_animation if i == 0 else ""}, console)[1])
    else:
        moving = console.is_terminal and not console.is_dumb_terminal and len(jobs) > 1
        with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console, disable=not moving) as progress:
            task = progress.add_task("texts", total=len(jobs))
            for i, _, result in write(model, tokenizer, jobs, sampling):
                keep(i, result)
                progress.advance(task)
    return [results[i] for i in range(len(jobs))]


def say(message):
    print(message, file=sys.stderr, flush=True)


def main():
    knobs = configure(globals(), positional="prompt")
    if num_samples < 1 or max_tokens < 1:
        fail("--num_samples and --max_tokens must be at least 1")
    if not gap_lengths or any(type(length) is not int or length < 1 for length in gap_lengths):
        fail(f"--gap_lengths wants whole numbers from 1, got {gap_lengths}")
    if template and (prompt or suffix):
        fail("--template stands alone: put the prompt and the suffix into it")
    if bool(template) + bool(batch) + interactive + benchmark > 1:
        fail("only one of --template, --batch, --interactive and --benchmark can be done at a time")
    if template and all(isinstance(part, str) for part in parse_template(template)):
        fail("--template has no gap: write ____ for one of any length, ____(12) for one of twelve tokens")
    if save_animation and not save_animation.endswith((".html", ".gif")):
        fail(f"--save_animation wants a name that ends in .html or .gif, got {save_animation}")
    from rich.console import Console
    console = Console(stderr=True, highlight=False)
    sys.stdout.reconfigure(errors="replace")                                        # a terminal that cannot show a character shows ?
    model, tokenizer, _ = load(checkpoint or os.path.join(out_dir, "best.pt"), device)
    try:
        asked = [line for line in Path(batch).read_text(encoding="utf-8-sig").splitlines() if line.strip()] if batch else [template or prompt]
        if output:
            write_json(output, [])                                                        # a path that cannot be written is known before the work
        if interactive:
            return converse(model, tokenizer, knobs, console)
        jobs = [job_of(model, tokenizer, text, parts_of(text, knobs, gaps=bool(template or batch)), seed + i, sampling) for text in asked for i in range(num_samples)]
        if benchmark:
            return measure(model, tokenizer, jobs, sampling)
        results = write_all(model, tokenizer, jobs, knobs, console)
    except ValueError as error:
        fail(error)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
    for i, result in enumerate(results):
        if len(results) > 1:
            say(("\n" if i else "") + f"{result['prompt']!r}, seed {result['seed']}:")
        print(result["text"], flush=True)
    tokens, seconds = sum(r["tokens"] for r in results), sum(r["seconds"] for r in results)
    say(f"{tokens} tokens in {seconds:.1f} s ({tokens / max(seconds, 1e-9):.0f} tokens/s), {max((r['steps'] for r in results), default=0)} steps")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
