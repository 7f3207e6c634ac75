"""The page on which one watches a book being written: a small local server around model.denoise.

    python serve.py                                 then open http://127.0.0.1:5000
    python serve.py --checkpoint=out/best_stage2.pt --port=8080

The page, serve.html, speaks JSON over the WebSocket at /ws: sends `generate` and gets `start`, a `step` per
call of the network and `done`, or `error` or `busy`; `cancel`; and `gif`, for a picture of a text.
"""
import base64
import contextlib
import hashlib
import io
import ipaddress
import json
import logging
import os
import re
import secrets
import socket
import struct
import sys
import threading
import time
from collections import deque
from dataclasses import fields
from pathlib import Path

import torch
from flask import Flask, request
from flask_sock import Sock
from simple_websocket import ConnectionClosed
from werkzeug.serving import make_server

import sample
from configurator import configure, fail, run_script
from model import Sampling, Step, count_parameters, denoise, estimate_memory
from prepare import read_prepared

out_dir = "out"  # where train.py left its checkpoints
checkpoint = ""  # a checkpoint's path; empty: best.pt in out_dir
race = ""  # the out_dir of a causal twin, to write side by side
device = ""  # cpu, cuda, mps; empty: a GPU if there is one
host = "127.0.0.1"  # to listen at; any but this machine's own lets others use the model
port = 5000  # to listen at; 0: any free one [0, 65535]
origin = ""  # address of a tunnel or proxy that leads here: https://books.example.org
longest = 1024  # tokens in the longest text, prompt included [2, 1000000]

MESSAGE_BYTES = 65536  # a longer message ends its connection
MESSAGES_PER_SECOND = 40  # and so do more than these
CONNECTIONS = 16  # WebSockets open at once
PATIENCE = 10  # seconds that a client may leave a message unread
PROMPT_CHARACTERS = 8000
LOCAL = "127.0.0.1", "localhost", "::1"
GAP = 4  # tokens of a gap that does not say
COPIED = 8  # tokens; a run this long that stands in the book is shown
AROUND = 24  # tokens of the book on either side of it
ADAPTED = 0.2  # share of a text that is taken back to adapt to a word


# ---- what a client may ask for

def settings_allowed(config):
    """{key: `min` and `max`, or `choices`, and `default`, None if off}."""
    usual = min(sample.max_tokens, 3 * config.block_size // 4, longest)  # leaves room for a prompt
    least = {"top_p": 0.01, "repetition_penalty": 1}
    most = {"steps": 256, "temperature": 2, "top_k": config.n_text, "repetition_penalty": 2, "remask": 0.9,
            "entropy_bound": 100, "block_size": config.block_size}
    allowed = {"max_tokens": {"type": "int", "min": 1, "max": longest, "default": usual}}
    for f in fields(Sampling):
        choices, low, high = (f.metadata[key] for key in ("choices", "min", "max"))
        allowed[f.name] = {"default": f.default} | ({"choices": choices} if choices else {
            "type": "int" if "int" in str(f.type) else "float",
            "min": least.get(f.name, low), "max": most.get(f.name, high)})
    return allowed | {"seed": {"type": "int", "min": 0, "max": 2**53 - 1, "default": None}}  # JavaScript's


def read_message(text):
    """A client's message. ValueError, here and below, tells it what is wrong."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    match message:
        case {"type": "cancel", **more} if more:
            raise ValueError("cancel takes nothing else")
        case {"type": "generate" | "cancel" | "gif"}:
            return message
    raise ValueError("a message is an object of type generate, cancel or gif")


def checked_settings(message, allowed):
    """{setting: value}."""
    unknown = message.keys() - allowed - {"type", "prompt", "suffix", "template", "tokens", "adapt", "twin"}
    if unknown:
        raise ValueError(f"unknown key {min(unknown)[:40]!r}")
    settings = {}
    for key, rule in allowed.items():
        value = settings[key] = message.get(key, rule["default"])
        if "choices" in rule:
            if value not in rule["choices"]:
                raise ValueError(f"{key} is one of {', '.join(rule['choices'])}")
        elif value is not rule["default"]:
            whole, low, high = rule["type"] == "int", rule["min"], rule["max"]
            if type(value) not in (int, int if whole else float) or not low <= value <= high:  # no bools
                raise ValueError(f"{key} is a {'whole ' * whole}number from {low} to {high}")
    if settings["seed"] is None:
        settings["seed"] = secrets.randbelow(2**32)
    return settings


def checked_row(message, settings, tokenizer, config):
    """(row to fill (T,) int64, its parts, None if it came as ids)."""
    if "tokens" in message:
        return torch.tensor(checked_ids(message, "tokens", config.mask_id + 1)), None
    texts = {key: message.get(key, "") for key in ("prompt", "suffix", "template")}
    for key, text in texts.items():
        if not isinstance(text, str) or len(text) > PROMPT_CHARACTERS:
            raise ValueError(f"{key} is text of at most {PROMPT_CHARACTERS} characters")
        if re.search("[\ud800-\udfff]", text):
            raise ValueError(f"{key} holds half a character (a lone surrogate)")
    template = texts["template"]
    parts = [GAP if part is None else part
             for part in sample.parts_of(template or texts["prompt"], settings | texts, gaps=template)]
    gaps = sum(part for part in parts if isinstance(part, int))
    if gaps > longest or len(row := sample.canvas(tokenizer, parts, config)) > longest:
        raise ValueError(f"prompt and text come to more than the {longest} tokens that fit")
    return row, parts


def checked_ids(message, key, end):
    ids = message.get(key)
    if not (isinstance(ids, list) and 1 <= len(ids) <= longest
            and all(type(i) is int and 0 <= i < end for i in ids)):
        raise ValueError(f"{key} is a list of 1 to {longest} whole numbers below {end}")
    return ids


# ---- what it gets

@torch.no_grad()
def doubtful(model, row, positions):
    """The `positions` in row (T,) of the least likely tokens, a quarter masked at a time."""
    chances, size, mask = {}, model.config.block_size, model.config.mask_id
    for start in range(0, len(row), size):
        here = sorted({p for p in positions if start <= p < start + size and row[p] != mask})
        for hidden in filter(None, (here[k::4] for k in range(4))):
            masked = row.clone()
            masked[hidden] = mask
            read = (x[None, start:start + size].to(model.device) for x in (masked, masked != row))
            log_p = model(*read).float().cpu().log_softmax(1)
            chances |= zip(hidden, log_p[range(len(hidden)), row[hidden]].tolist())
    return sorted(chances, key=chances.get)[:round(ADAPTED * len(chances) + 0.5)]


def step_message(step, seconds):
    """A Step of one row; `alternatives` are [token id, probability], the first a draft's."""
    known = step.tokens, step.confidence, step.choices, step.chances
    tokens, confidence, ids, chances = (x[0].tolist() for x in known)

    def where(mask):
        return mask[0].nonzero()[:, 0].tolist()

    def looked_at(i):
        return {"position": i, "alternatives": [[token, round(p, 4)] for token, p in zip(ids[i], chances[i])]}

    return {"type": "step", "step": step.step, "of": step.of, "seconds": round(seconds, 4),
            "revealed": [looked_at(i) | {"token": tokens[i], "confidence": round(confidence[i], 4)}
                         for i in where(step.revealed)],
            "remasked": where(step.remasked),
            "drafts": [looked_at(i) for i in where((step.chances[:, :, 0] > 0) & ~step.revealed)]}


class Book:
    """What the model was trained on, if it lies in data/; prompts and passage are held out. `ids` has a
    character per token: str.find is quick, and vocabularies end before the surrogates."""

    def __init__(self, name, tokenizer):
        self.tokenizer, self.title, self.ids, self.prompts, self.passage = tokenizer, name, "", [], ""
        with contextlib.suppress(FileNotFoundError):
            text, sentences, self.title = read_prepared(Path("data", Path(name or "").name))
            self.ids = "".join(map(chr, tokenizer.encode(text)))
            spans = [s for s in sentences if s["split"] == "test" and 60 < s["end"] - s["start"] < 300]
            self.prompts = [" ".join(text[s["start"]:s["end"]].split()[:6])
                            for s in spans[::max(1, len(spans) // 4)][:4]]
            if spans:
                self.passage = " ".join(text[spans[0]["start"]:][:420].split()[:-1])

    def copies(self, row):
        """Runs of COPIED or more tokens that stand in the book, and where; they may overlap."""
        def text(start, end):
            return self.tokenizer.decode(map(ord, self.ids[max(0, start):end]), "ignore")

        runs, start, line = [], 0, "".join(map(chr, row))
        while start + COPIED <= len(line):
            end, found = start + COPIED - 1, 0
            while end < len(line) and (longer := self.ids.find(line[start:end + 1], found)) >= 0:
                end, found = end + 1, longer
            stop = found + end - start
            if end - start >= COPIED:
                runs.append({"start": start, "end": end, "before": text(found - AROUND, found),
                             "copied": text(found, stop), "after": text(stop, stop + AROUND),
                             "at": round(found / len(self.ids), 4)})
            start = max(start, end - COPIED) + 1  # the next may begin inside this one
        return runs


def dashboard(model, tokenizer, saved, book, allowed):
    """What /api/model says."""
    training, config = saved.get("training", {}), model.config
    return {"book": book.title or "an unnamed book", "book_at_hand": bool(book.ids), "prompts": book.prompts,
            "passage": book.passage, "vocabulary": tokenizer.vocab_size, "mask": config.mask_id,
            "context": config.block_size, "causal": config.causal, "parameters": count_parameters(config),
            "sampling_gb": estimate_memory(config, 1)["inference_gb"], "device": str(model.device),
            **{key: training.get(key) for key in ("stage", "step", "epoch", "val_bits_per_byte")},
            "settings": allowed, "copied": COPIED, "race": bool(race)}


# ---- one text at a time

def send(ws, **message):
    ws.send(json.dumps(message, ensure_ascii=False, separators=(",", ":")))


def receive(ws, recent, wait=1):
    """The next well-formed message, None if there is none now; others are answered."""
    while True:
        while (text := ws.receive(timeout=wait)) is None:  # without end it would miss some ends
            if not ws.thread.is_alive():
                raise ConnectionClosed
            if not wait:
                return
        recent.append(time.monotonic())
        if len(recent) == MESSAGES_PER_SECOND and recent[-1] - recent[0] < 1:
            ws.close(1008, "too many messages")
            raise ConnectionClosed
        try:
            return read_message(text)
        except ValueError as error:
            send(ws, type="error", message=str(error))


class Writer:
    """The model, and the twin it may race, for one client at a time."""

    def __init__(self, model, twin, tokenizer, book):
        self.model, self.twin, self.tokenizer, self.book = model, twin, tokenizer, book
        self.allowed, self.in_use = settings_allowed(model.config), threading.Lock()
        self.connections = threading.Semaphore(CONNECTIONS)

    def talk(self, ws):
        if not self.connections.acquire(blocking=False):
            return ws.close(1013, "too many connections")
        recent = deque(maxlen=MESSAGES_PER_SECOND)
        # who stops reading would hold the model; in milliseconds or a timeval
        patience = PATIENCE * 1000 if os.name == "nt" else struct.pack("ll", PATIENCE, 0)
        ws.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        try:
            while message := receive(ws, recent):
                if message["type"] != "cancel":
                    self.answer(ws, recent, message)
        except OSError:  # it went without a word
            raise ConnectionClosed from None
        finally:
            self.connections.release()

    def checked(self, message):
        """The method that answers, and what it takes."""
        model = self.model
        if message["type"] == "gif":
            row = checked_ids(message, "tokens", model.config.mask_id + 1)
            return self.draw, *torch.tensor([*zip(row, checked_ids(message, "when", 1000))]).T
        settings = checked_settings(message, self.allowed)
        if "twin" in message and not (model := message["twin"] is True and self.twin):
            raise ValueError("twin is true, and serve.py started with --race")
        row, parts = checked_row(message, settings, self.tokenizer, model.config)
        adapt = checked_ids(message, "adapt", len(row)) if "adapt" in message else []
        return self.write, model, settings, row, parts, adapt

    def answer(self, ws, recent, message):
        try:
            work, *given = self.checked(message)
        except ValueError as error:
            return send(ws, type="error", message=str(error))
        if not self.in_use.acquire(blocking=False):
            return send(ws, type="busy", message="the model writes for someone else: try again soon")
        try:
            work(ws, recent, *given)
        except ConnectionClosed:  # a RuntimeError too
            raise
        except RuntimeError as error:  # out of memory, most likely
            logging.exception("the model failed")
            send(ws, type="error", message=f"the model failed: {str(error).splitlines()[0][:200]}")
        finally:
            self.in_use.release()

    def draw(self, ws, _, row, when):
        """`when` is the step that decided each token of row, 0 if given."""
        mask, none, file = self.model.config.mask_id, torch.zeros(1, len(row)), io.BytesIO()
        steps = [Step(k, 0, row.masked_fill(when > k, mask)[None], (when == k)[None], none, row[None], none,
                      none, none) for k in range(int(when.max()) + 1)]
        given = row.masked_fill(when > 0, mask)
        sample.save_gif(file, [sample.cells(self.tokenizer, given, step, False) for step in steps], 0.2)
        send(ws, type="gif", data=base64.b64encode(file.getvalue()).decode())

    def write(self, ws, recent, model, settings, row, parts, adapt):
        row[doubtful(model, row, adapt)] = model.config.mask_id
        seed, how = settings["seed"], Sampling(**{f.name: settings[f.name] for f in fields(Sampling)})
        send(ws, type="start", tokens=row.tolist(), seed=seed, settings=settings)
        bar = sample.word_bar(self.tokenizer, [parts]) if parts else None
        steps, seconds, asked, begun = 0, 0.0, None, time.perf_counter()
        for step in denoise(model, row[None], [seed], how, bar=bar):
            row, steps, seconds = step.tokens[0], step.step, time.perf_counter() - begun
            send(ws, **step_message(step, seconds))
            while (asked := receive(ws, recent, wait=0)) and asked["type"] != "cancel":
                send(ws, type="busy", message="one text at a time: cancel this one first")
            if asked:
                break
        ids = row.tolist()
        text = sample.texts(self.tokenizer, parts, row) if parts else self.tokenizer.decode(ids, "ignore")
        send(ws, type="done", tokens=ids, text="".join(text), seed=seed, steps=steps,
             seconds=round(seconds, 4), cancelled=bool(asked), copies=self.book.copies(ids))


# ---- the server

def is_served(name, port, host, usual):
    """Whether a Host header's or an Origin's name, at port `usual` if it says none, is this server's: not one
    that others' DNS points here (rebinding); where it listens everywhere, any bare IP."""
    name, asked = re.fullmatch(r"\[?(.*?)\]?(?::(\d+))?", name, re.S).groups(usual)
    names = LOCAL if host in LOCAL else (host.lower(), "localhost", socket.gethostname().lower())
    if host in ("0.0.0.0", "::"):
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(name)
            names = [name]
    return asked == str(port) and name in names


def outer_addresses(text):
    """--origin's, as browsers write them."""
    addresses = [part.rstrip("/") for part in re.findall(r"[^\s,]+", text.lower())]
    for address in addresses:
        if not re.fullmatch(r"https?://([^\s/@:?#\[\]]+|\[[0-9a-f:]+\])(:\d+)?", address):
            fail(f"--origin wants addresses like https://books.example.org, not {address!r}")
    return addresses


def create_app(writer, about, host, port, outer):
    app = Flask(__name__, static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=MESSAGE_BYTES,
                      SOCK_SERVER_OPTIONS={"max_message_size": MESSAGE_BYTES, "ping_interval": PATIENCE})
    page, tokens = sample.with_style("serve.html"), writer.tokenizer.to_dict()["tokens"]  # bytes as latin-1
    # browsers run the page's own script and style alone
    policy = ("default-src 'none'; img-src data:; connect-src 'self'; form-action 'none'; base-uri 'none'; "
              "frame-ancestors 'none'")
    for tag, inline in re.findall(r"<(script|style)>(.*?)</\1>", page, re.S):
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        policy += f"; {tag}-src 'sha256-{digest}'"

    @app.before_request
    def only_from_here():
        # browsers send Origin with every WebSocket; scripts may omit it, and Host's port
        name, site = request.host.lower(), request.headers.get("Origin", "").lower()
        known = is_served(name, port, host, usual=str(port))
        own = is_served(site.removeprefix("http://"), port, host, usual="80")
        advice = "behind a tunnel or a proxy, start serve.py with --origin= and the page's address\n"
        if not known and not {f"http://{name}", f"https://{name}"}.intersection(outer):
            return f"this server does not answer to that name; {advice}", 400
        if site and not own and site not in outer:
            return f"other sites' pages may not talk to this server; {advice}", 403

    @app.after_request
    def guarded(response):
        response.headers.update({
            "Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin", "Cache-Control": "no-store"})
        return response

    app.add_url_rule("/", "page", lambda: page)
    app.add_url_rule("/api/model", "model", lambda: about)
    app.add_url_rule("/api/vocabulary", "vocabulary", lambda: tokens)
    Sock(app).route("/ws")(writer.talk)
    return app


def main():
    configure(globals())
    outer, twin = outer_addresses(origin), None
    model, tokenizer, saved = sample.load(checkpoint or f"{out_dir}/best.pt", device)
    if race:
        twin, other, _ = sample.load(race if race.endswith(".pt") else f"{race}/best.pt", device)
        if other.tokens != tokenizer.tokens:
            fail("--race wants a model of the same tokens: prepare the book once, then train both")
    family, address = (socket.AF_INET6, f"[{host}]") if ":" in host else (socket.AF_INET, host)
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        taken = " (on a Mac, perhaps by AirPlay Receiver)" * (port == 5000)
        fail(f"cannot listen at {host}:{port}: {error.strerror or error}{taken}; choose another with --port=")
    actual = listening.getsockname()[1]
    # load libraries before the first reader comes
    [*denoise(model, sample.canvas(tokenizer, ["a", 1], model.config)[None], [0])]
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    book = Book(saved.get("training", {}).get("dataset"), tokenizer)
    writer = Writer(model, twin, tokenizer, book)
    about = dashboard(model, tokenizer, saved, book, writer.allowed)
    app = create_app(writer, about, host, actual, outer)
    server = make_server(host, actual, app, threaded=True, fd=listening.fileno())
    if host not in LOCAL:
        print(f"warning: who can reach {host} can use the model; there is no password", file=sys.stderr)
    print(f"http://{address}:{actual}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    run_script(main)
