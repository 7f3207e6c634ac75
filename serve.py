"""The page on which one watches a book being written: a small local server around model.denoise's stream of steps.

    python serve.py                                 then open http://127.0.0.1:5000
    python serve.py --checkpoint=out/best_stage2.pt --port=8080

serve.html is the page. It asks /api/model and /api/vocabulary once, then speaks JSON over the WebSocket at /ws. It sends
`generate` and `cancel`; it gets `start`, a `step` for every call of the network, and `done`, or `error` or `busy`.
"""
import base64
import contextlib
import hashlib
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
from flask import Flask, Response, abort, jsonify, request
from flask_sock import Sock
from simple_websocket import ConnectionClosed
from torch import Tensor
from werkzeug.serving import make_server

import sample
from configurator import configure, fail
from model import Config, DiffusionModel, Sampling, Step, count_parameters, denoise, estimate_memory
from prepare import Tokenizer

out_dir = "out"             # where train.py left its checkpoints
checkpoint = ""             # a checkpoint's path; empty: best.pt in out_dir
device = ""                 # cpu, cuda, mps; empty: a GPU if there is one
host = "127.0.0.1"          # the address to listen at; any other than this machine's own lets others use the model
port = 5000                 # 0: any free one
longest = 1024              # tokens in the longest text that may be asked for, its prompt included

MESSAGE_BYTES = 65536       # a longer message ends its connection
MESSAGES_PER_SECOND = 40    # and so do more than these
CONNECTIONS = 16            # WebSockets open at once
PATIENCE = 10               # seconds that a client may leave what it is sent unread
PROMPT_CHARACTERS = 8000
LOCAL, EVERYWHERE = ("127.0.0.1", "localhost", "::1"), ("0.0.0.0", "::")
GAP = 4                     # tokens of a gap in a template that does not say
COPIED = 8                  # tokens; a run this long that stands in the book is pointed out
AROUND = 24                 # tokens of the book shown on either side of such a run


# ---- what a client may ask for ---------------------------------------------------------------------------------------

def settings_allowed(config: Config, longest: int) -> dict[str, dict]:
    """{key: what it may be}: numbers with `min` and `max`, names with `choices`; `default` is sample.py's, None where a setting may be off."""
    usual = min(sample.max_tokens, 3 * config.block_size // 4, longest)             # a prompt fits beside it
    narrower = {"steps": {"max": 256}, "temperature": {"max": 2}, "top_k": {"max": config.n_text}, "top_p": {"min": 0.01},
                "repetition_penalty": {"min": 1, "max": 2}, "entropy_bound": {"max": 100}, "remask": {"max": 0.9},
                "block_size": {"max": config.block_size}}
    allowed = {"max_tokens": {"type": "int", "min": 1, "max": longest, "default": usual}}
    for f in fields(Sampling):
        rule = {"choices": f.metadata["choices"]} if f.metadata["choices"] else {
            "type": "int" if "int" in str(f.type) else "float", "min": f.metadata["min"], "max": f.metadata["max"]}
        allowed[f.name] = rule | narrower.get(f.name, {}) | {"default": f.default}
    allowed["seed"] = {"type": "int", "min": 0, "max": 2**53 - 1, "default": None}    # the whole numbers that JavaScript has
    return allowed


def read_message(text: str | bytes) -> dict:
    """A client's message -> dict with a `type`. ValueError says what is wrong with it."""
    def refuse(constant):
        raise ValueError(f"{constant} is not a number")

    try:
        message = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {str(error)[:80]}") from error
    if not isinstance(message, dict) or message.get("type") not in ("generate", "cancel"):
        raise ValueError('a message is an object whose type is "generate" or "cancel"')
    if message["type"] == "cancel" and len(message) > 1:
        raise ValueError("cancel takes nothing else")
    return message


def checked_settings(message: dict, allowed: dict[str, dict]) -> dict:
    """Every setting, as asked for or by default; whatever is unknown, of another type or out of range is a ValueError."""
    unknown = message.keys() - allowed.keys() - {"type", "prompt", "suffix", "template", "tokens"}
    if unknown:
        raise ValueError(f"unknown key {min(unknown)[:40]!r}")
    settings = {}
    for key, rule in allowed.items():
        value = message.get(key, rule["default"])
        if "choices" in rule:
            if value not in rule["choices"]:
                raise ValueError(f"{key} is one of {', '.join(rule['choices'])}")
        elif value is not None or rule["default"] is not None:
            kinds = (int,) if rule["type"] == "int" else (int, float)
            if type(value) not in kinds or not rule["min"] <= value <= rule["max"]:            # type(): a bool is no number
                raise ValueError(f"{key} is {'a whole' if kinds == (int,) else 'a'} number from {rule['min']} to {rule['max']}")
        settings[key] = value
    if settings["seed"] is None:
        settings["seed"] = secrets.randbelow(2**32)
    return settings


def checked_text(message: dict, key: str) -> str:
    """The text under `key`, "" if there is none; a ValueError if it is no text, too long or not to be written as UTF-8."""
    text = message.get(key, "")
    if not isinstance(text, str) or len(text) > PROMPT_CHARACTERS:
        raise ValueError(f"{key} is text of at most {PROMPT_CHARACTERS} characters")
    if re.search("[\ud800-\udfff]", text):
        raise ValueError(f"{key} holds half a character (a lone surrogate)")
    return text


def checked_row(message: dict, settings: dict, tokenizer: Tokenizer, config: Config, longest: int) -> tuple[Tensor, list[str | int] | None]:
    """What `generate` asks for: the row to fill, (T,) int64, and its parts of text and gaps, None for a row of token ids. ValueError if it does not fit."""
    if "tokens" in message:
        ids, row_range = message["tokens"], range(config.mask_id + 1)
        if not isinstance(ids, list) or not all(type(i) is int and i in row_range for i in ids) or not 1 <= len(ids) <= longest:
            raise ValueError(f"tokens is a list of 1 to {longest} ids, each of a text token or [MASK]")
        return torch.tensor(ids), None
    prompt, suffix, template = (checked_text(message, key) for key in ("prompt", "suffix", "template"))
    parts = [part or GAP for part in sample.parse_template(template)] if template else [prompt, settings["max_tokens"], suffix]
    if sum(part for part in parts if isinstance(part, int)) > longest:
        raise ValueError(f"the gaps come to more than {longest} tokens")
    row = sample.canvas(tokenizer, parts, config)
    if len(row) > longest:
        raise ValueError(f"prompt and text come to {len(row)} tokens, and at most {longest} fit")
    return row, parts


# ---- what it gets ----------------------------------------------------------------------------------------------------

def step_message(step: Step, seconds: float) -> dict:
    """A Step of one row, as JSON: `alternatives` are [token id, probability], the likeliest first; the first of a draft's is the draft."""
    def looked_at(i):
        return {"position": i, "alternatives": [[t, round(p, 4)] for t, p in zip(step.choices[0, i].tolist(), step.chances[0, i].tolist())]}

    tokens, confidence, revealed = step.tokens[0].tolist(), step.confidence[0].tolist(), step.revealed[0]
    drafts = (step.chances[0, :, 0] > 0) & ~revealed
    return {"type": "step", "step": step.step, "of": step.of, "seconds": round(seconds, 4),
            "revealed": [{**looked_at(i), "token": tokens[i], "confidence": round(confidence[i], 4)} for i in revealed.nonzero()[:, 0].tolist()],
            "remasked": step.remasked[0].nonzero()[:, 0].tolist(),
            "drafts": [looked_at(i) for i in drafts.nonzero()[:, 0].tolist()]}


class Book:
    """The text that the model was trained on, if it lies in data/, to hold what is written against it.

    A token is one character of `ids`: str.find is quick, and every vocabulary here ends before the surrogates.
    """

    def __init__(self, name: str | None, tokenizer: Tokenizer):
        self.tokenizer, self.name, self.ids, self.prompts = tokenizer, name, "", []
        folder = Path("data") / Path(name or "").name
        with contextlib.suppress(FileNotFoundError):
            text = (folder / "text.txt").read_text(encoding="utf-8")
            self.ids = "".join(map(chr, tokenizer.encode(text)))
            self.prompts = openings(text, (folder / "segments.jsonl").read_text(encoding="utf-8").splitlines())

    def copies(self, row: list[int]) -> list[dict]:
        """Every run of COPIED tokens or more of row that stands in the book word for word, and the passage it is from; runs may overlap."""
        runs, start, line = [], 0, "".join(map(chr, row))
        while self.ids and start + COPIED <= len(line):
            end = start + COPIED
            if (found := self.ids.find(line[start:end])) < 0:
                start += 1
                continue
            while end < len(line) and (longer := self.ids.find(line[start:end + 1], found)) >= 0:
                end, found = end + 1, longer
            before, copied, after = (self._text(a, b) for a, b in ((max(0, found - AROUND), found), (found, found + end - start),
                                                                  (found + end - start, found + end - start + AROUND)))
            runs.append({"start": start, "end": end, "before": before, "copied": copied, "after": after, "at": round(found / len(self.ids), 4)})
            start = end - COPIED + 1                        # the next one may begin inside this one
        return runs

    def _text(self, start, end):
        return self.tokenizer.decode_bytes(map(ord, self.ids[start:end])).decode("utf-8", errors="ignore")


def openings(text: str, segments: list[str]) -> list[str]:
    """A few beginnings of sentences that were held out of training: the model has not read how they go on."""
    spans = [s for s in map(json.loads, segments) if s["split"] == "test" and 60 < s["end"] - s["start"] < 300]
    chosen = [text[s["start"]:s["end"]].split() for s in spans[::max(1, len(spans) // 4)][:4]]
    return [" ".join(words[:6]) for words in chosen]


def dashboard(model: DiffusionModel, tokenizer: Tokenizer, saved: dict, book: Book, allowed: dict) -> dict:
    """Everything that /api/model says."""
    training = saved.get("training", {})
    return {"book": book.name or "an unnamed book", "book_at_hand": bool(book.ids), "prompts": book.prompts,
            "vocabulary": tokenizer.vocab_size, "mask": model.config.mask_id, "context": model.config.block_size, "causal": model.config.causal,
            "parameters": count_parameters(model.config), "sampling_gb": estimate_memory(model.config, 1)["inference_gb"],
            "device": str(model.device), **{key: training.get(key) for key in ("stage", "step", "epoch", "val_bits_per_byte")},
            "settings": allowed, "copied": COPIED}


# ---- the server ------------------------------------------------------------------------------------------------------

def is_served(name: str, port: int, host: str) -> bool:
    """Whether name, of a Host header or an Origin, is this server's: "127.0.0.1:5000", say.

    A name that someone else's DNS points here (rebinding) is not. Listening everywhere, any bare IP address is: no DNS is involved in that.
    """
    name, _, asked = name.lower().rpartition(":") if re.search(r":\d+$", name) else (name.lower(), "", "80")
    if asked != str(port):
        return False
    if host in EVERYWHERE:
        with contextlib.suppress(ValueError):
            return bool(ipaddress.ip_address(name.strip("[]")))
    return name in {"localhost", "127.0.0.1", "[::1]"} if host in LOCAL else name in {host.lower(), f"[{host}]", "localhost", socket.gethostname().lower()}


def create_app(model: DiffusionModel, tokenizer: Tokenizer, saved: dict, host: str, port: int, longest: int) -> Flask:
    """The Flask app: the page, two JSON documents and the WebSocket, for one model that one generation at a time may use."""
    app = Flask(__name__, static_folder=None)
    app.config.update(SOCK_SERVER_OPTIONS={"max_message_size": MESSAGE_BYTES, "ping_interval": PATIENCE}, MAX_CONTENT_LENGTH=MESSAGE_BYTES)
    book = Book(saved.get("training", {}).get("dataset"), tokenizer)
    allowed = settings_allowed(model.config, longest)
    about = dashboard(model, tokenizer, saved, book, allowed)
    page = (Path(__file__).parent / "serve.html").read_text(encoding="utf-8")
    words = sample.not_words(tokenizer)
    in_use, connections = threading.Lock(), threading.BoundedSemaphore(CONNECTIONS)

    def digest(tag):
        inline = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.S)[1]
        return "'sha256-" + base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode() + "'"

    policy = (f"default-src 'none'; script-src {digest('script')}; style-src {digest('style')}; connect-src 'self'; img-src data:; "
              "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")

    @app.before_request
    def only_from_here():
        origin = request.headers.get("Origin")              # browsers send it with every WebSocket; a script may leave it out, and the port of Host
        if not any(is_served(name, port, host) for name in (request.host, f"{request.host}:{port}")):
            abort(400, "this server does not answer to that name")
        if origin is not None and not (origin.startswith("http://") and is_served(origin.removeprefix("http://"), port, host)):
            abort(403, "pages of other sites may not talk to this server")

    @app.after_request
    def guarded(response):
        response.headers.update({
            "Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
            "Cache-Control": "no-store"})
        return response

    app.add_url_rule("/", "page", lambda: Response(page, mimetype="text/html"))
    app.add_url_rule("/api/model", "model", lambda: jsonify(about))
    app.add_url_rule("/api/vocabulary", "vocabulary", lambda: jsonify(tokenizer.to_dict()["tokens"]))      # bytes as latin-1

    @Sock(app).route("/ws")
    def talk(ws):
        if not connections.acquire(blocking=False):
            ws.close(1013, "too many connections")
            return
        recent = deque(maxlen=MESSAGES_PER_SECOND)
        # A client that stops reading would otherwise hold the model for ever (Windows counts milliseconds, others take a timeval).
        ws.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, PATIENCE * 1000 if os.name == "nt" else struct.pack("ll", PATIENCE, 0))
        try:
            while True:
                if (message := receive(ws, recent))["type"] == "generate":
                    generate(ws, recent, message)
        except OSError as error:                            # it went without saying so
            raise ConnectionClosed() from error
        finally:
            connections.release()

    def send(ws, **message):
        ws.send(json.dumps(message, ensure_ascii=False, separators=(",", ":")))

    def receive(ws, recent, wait=True):
        """The next well-formed message, or None if there is none now; what is malformed is answered, what is too much ends it."""
        while True:
            text = ws.receive(timeout=1 if wait else 0)     # for ever would miss some of the library's ways to end a connection
            if text is None and not ws.thread.is_alive():
                raise ConnectionClosed()
            if text is None and not wait:
                return None
            if text is None:
                continue
            recent.append(time.monotonic())
            if len(recent) == MESSAGES_PER_SECOND and recent[-1] - recent[0] < 1:
                ws.close(1008, "too many messages")
                raise ConnectionClosed()
            try:
                return read_message(text)
            except ValueError as error:
                send(ws, type="error", message=str(error))

    def generate(ws, recent, message):
        """Answer one `generate`: busy, error, or start, step after step, and done."""
        try:
            settings = checked_settings(message, allowed)
            row, parts = checked_row(message, settings, tokenizer, model.config, longest)
        except ValueError as error:
            return send(ws, type="error", message=str(error))
        if not in_use.acquire(blocking=False):
            return send(ws, type="busy", message="the model is writing for someone else: try again in a moment")
        try:
            write(ws, recent, settings, row, parts)
        except ConnectionClosed:                            # a RuntimeError too
            raise
        except RuntimeError as error:                       # out of memory, most likely
            logging.getLogger(__name__).exception("the model failed")
            send(ws, type="error", message=f"the model failed: {str(error).splitlines()[0][:200]}")
        finally:
            in_use.release()

    def write(ws, recent, settings, row, parts):
        """Send every step as it comes. After each, look for `cancel`."""
        send(ws, type="start", tokens=row.tolist(), seed=settings["seed"], settings=settings)
        how = Sampling(**{f.name: settings[f.name] for f in fields(Sampling)})
        bar = (sample.word_starts(tokenizer, parts)[None], words) if parts else None
        tokens, steps, seconds, cancelled, begun = row[None], 0, 0.0, False, time.perf_counter()
        with contextlib.closing(denoise(model, row[None], [settings["seed"]], how, bar=bar)) as stream:
            for step in stream:
                tokens, steps, seconds = step.tokens, step.step, time.perf_counter() - begun
                send(ws, **step_message(step, seconds))
                while (asked := receive(ws, recent, wait=False)) is not None:
                    cancelled = cancelled or asked["type"] == "cancel"
                    if asked["type"] == "generate":
                        send(ws, type="busy", message="one text at a time: cancel this one first")
                if cancelled:
                    break
        ids = tokens[0].tolist()
        text = "".join(sample.texts(tokenizer, parts, tokens[0])) if parts else tokenizer.decode_bytes(ids).decode("utf-8", errors="ignore")
        send(ws, type="done", tokens=ids, text=text, seed=settings["seed"], steps=steps, seconds=round(seconds, 4), cancelled=cancelled,
             copies=book.copies(ids))

    return app


def main():
    configure(globals())
    if not 0 <= port <= 65535 or longest < 2:
        fail("--port is a number up to 65535, and --longest at least 2 tokens")
    model, tokenizer, saved = sample.load(checkpoint or os.path.join(out_dir, "best.pt"), device)
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        fail(f"cannot listen at {host}:{port}: {error.strerror or error}; choose another with --port=")
    address, actual = (f"[{host}]" if ":" in host else host), listening.getsockname()[1]
    for _ in denoise(model, sample.canvas(tokenizer, ["a", 1], model.config)[None], [0], Sampling(steps=1)):         # so that the first reader need not
        pass                                                                                               # wait for libraries to load
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = create_app(model, tokenizer, saved, host, actual, longest)
    server = make_server(host, actual, app, threaded=True, fd=listening.fileno())
    if host not in LOCAL:
        print(f"warning: anyone who can reach {host} can now use the model; there is no password", file=sys.stderr)
    print(f"http://{address}:{actual}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()
