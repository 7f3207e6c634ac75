"""serve.py as its clients meet it: a real server in a process of its own, real HTTP, real WebSockets."""
import contextlib
import http.client
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from base64 import b64decode, b64encode
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image
from simple_websocket import Client, ConnectionClosed
from simple_websocket import ConnectionError as Refused

import sample
import serve
from model import Config, DiffusionModel, Sampling, checkpoint_of
from prepare import Tokenizer

ROOT = Path(__file__).resolve().parent.parent


def prepared(base):
    """A folder with a short book prepared and no checkpoint yet; made once for all modules of a test run."""
    folder = base / "served"
    if not folder.exists():
        folder.mkdir()
        (folder / "tale.txt").write_text((ROOT / "book.txt").read_text(encoding="utf-8")[:20000], encoding="utf-8")
        subprocess.run([sys.executable, ROOT / "prepare.py", "tale.txt", "--heldout_blocks=1", "--test_share=0.1"], cwd=folder, check=True,
                       capture_output=True, timeout=120)
    return folder


def write_checkpoint(folder, name, **shape):
    """An untrained model for the folder's book: what it writes is gibberish, but it writes as any other does."""
    tokenizer = json.loads((folder / "data/tale/tokenizer.json").read_text(encoding="utf-8"))
    torch.manual_seed(1)
    model = DiffusionModel(Config(tokenizer["vocab_size"], **shape))
    (folder / "out").mkdir(exist_ok=True)
    training = {"dataset": "tale", "step": 7, "stage": 2, "epoch": 1.5, "val_bits_per_byte": 2.5}
    torch.save(checkpoint_of(model, tokenizer, training=training), folder / "out" / name)


@contextlib.contextmanager
def serving(folder, *arguments):
    """A running server's URL. It must still be running when the tests are done with it, and say nothing on stderr but what it warned of."""
    server = subprocess.Popen([sys.executable, ROOT / "serve.py", "--port=0", "--device=cpu", *arguments], cwd=folder, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        yield server.stdout.readline().strip() or pytest.fail(server.stderr.read())
        assert server.poll() is None, server.stderr.read()
    finally:
        server.terminate()
        said = server.communicate(timeout=10)[1]
    assert "Traceback" not in said, said


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = prepared(tmp_path_factory.getbasetemp())
    write_checkpoint(folder, "best.pt", block_size=384, n_layer=6, n_head=6, n_embd=384)      # a step over 384 tokens takes a good 50 ms
    return folder


@pytest.fixture(scope="module")
def url(folder):
    with serving(folder) as url:
        yield url


@pytest.fixture(scope="module")
def loaded(folder):
    torch.set_num_threads(1)
    return sample.load(str(folder / "out/best.pt"), "cpu")


@contextlib.contextmanager
def connected(url, **headers):
    client = Client(url.replace("http", "ws") + "/ws", headers=headers)
    try:
        yield client
    finally:
        with contextlib.suppress(OSError):
            client.sock.shutdown(socket.SHUT_RDWR)                                             # close() would leave this to a server that is listening


def hear(client):
    text = client.receive(timeout=20)
    assert text is not None, "the server said nothing for 20 seconds"
    return json.loads(text)


def begin(client, **message):
    """The answer to a `generate`, asked again while the model is busy with a client that has just left."""
    for _ in range(200):
        client.send(json.dumps({"type": "generate", **message}))
        if (answer := hear(client))["type"] != "busy":
            return answer
        time.sleep(0.03)
    pytest.fail("the model did not become free")


def ask(client, **message):
    """Everything that the server answers to a `generate`."""
    heard = [begin(client, **message)]
    while heard[-1]["type"] in ("start", "step"):
        heard.append(hear(client))
    return heard


def generate(url, **message):
    with connected(url) as client:
        return ask(client, **message)


def answers(url):
    """Whether the server still writes for a newcomer."""
    return generate(url, max_tokens=4, steps=2)[-1]["type"] == "done"


def request(url, path="/", method="GET", **headers):
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
    response = connection.getresponse()
    return response, response.read()


SLOW = {"max_tokens": 384, "steps": 256}


# ---- the protocol

def test_steps_add_up_to_the_text(url, loaded):
    model, tokenizer, _ = loaded
    start, *steps, done = generate(url, prompt="Once upon a time", max_tokens=30, steps=10, seed=5)
    assert start["type"] == "start" and start["seed"] == done["seed"] == 5 and {s["type"] for s in steps} == {"step"}
    row, mask = start["tokens"], model.config.mask_id
    assert row[-30:] == [mask] * 30 and tokenizer.decode(row[:-30]) == "Once upon a time"
    for number, step in enumerate(steps, 1):
        assert (step["step"], step["of"]) == (number, 10)
        looked = {look["position"] for look in step["revealed"] + step["drafts"]}
        assert looked == {i for i, token in enumerate(row) if token == mask}                  # every undecided position, and no other
        for look in step["revealed"] + step["drafts"]:
            chances = [p for _, p in look["alternatives"]]
            assert chances == sorted(chances, reverse=True) and 0 < sum(chances) <= 1.001
        for token in step["revealed"]:
            assert 0 <= token["confidence"] <= 1
            row[token["position"]] = token["token"]
    assert row == done["tokens"] and mask not in row and not done["cancelled"] and done["steps"] == 10
    assert done["text"].startswith("Once upon a time") and 0 < steps[0]["seconds"] <= steps[-1]["seconds"] <= done["seconds"]


def test_it_writes_what_sample_writes(url, loaded):
    model, tokenizer, _ = loaded
    settings = {"steps": 6, "temperature": 0.9, "order": "entropy", "remask": 0.2}
    parts = ["The mountain", 20, " was there."]
    row = sample.canvas(tokenizer, parts, model.config)
    [(_, row, _)] = sample.write(model, tokenizer, [sample.Job("The mountain", parts, row, 77)], Sampling(**settings))
    expected = row.tolist()
    asked = {"prompt": "The mountain", "suffix": " was there.", "max_tokens": 20, "seed": 77, **settings}
    assert generate(url, **asked)[-1]["tokens"] == expected == generate(url, **asked)[-1]["tokens"]
    assert generate(url, **{**asked, "seed": 78})[-1]["tokens"] != expected


def test_a_suffix_is_joined_as_sample_joins_it(url, loaded):
    model, tokenizer, _ = loaded
    parts = sample.parts_of("She", {"suffix": "and so it ended.", "max_tokens": 5}, gaps=False)
    start, *_, done = generate(url, prompt="She", suffix="and so it ended.", max_tokens=5, steps=2)
    assert start["tokens"] == sample.canvas(tokenizer, parts, model.config).tolist()
    assert done["text"].startswith("She") and done["text"].endswith(" and so it ended.")


def test_what_is_taken_back_is_said(url):
    start, *steps, done = generate(url, max_tokens=24, steps=12, remask=0.3, seed=1)
    row, taken = list(start["tokens"]), 0
    for step in steps:
        for token in step["revealed"]:
            row[token["position"]] = token["token"]
        for position in step["remasked"]:
            assert row[position] != start["tokens"][position]
            row[position], taken = start["tokens"][position], taken + 1
    assert taken and row == done["tokens"]


def test_template(url, loaded):
    model, tokenizer, _ = loaded
    start, *_, done = generate(url, template="The ____(3) of the sea was ____ and cold.", steps=4)
    masked = [i for i, token in enumerate(start["tokens"]) if token == model.config.mask_id]
    assert len(masked) == 3 + serve.GAP
    assert re.fullmatch(r"The .* of the sea was .* and cold\.", done["text"], re.S)
    assert all(tokenizer.tokens[done["tokens"][i]][:1] == b" " for i in (masked[0], masked[3]))      # a gap after a space begins a word


@pytest.mark.parametrize("prompt", ["<script>alert(1)</script><img src=x onerror=alert(2)>", "שלום עולם \u202eabc", "“Quoth the raven—” 🜁 👩‍🔬", "[MASK] [PAD] <|endoftext|>", "a\0b\x1b[31m"])
def test_any_prompt_comes_back_as_text(url, prompt):
    assert generate(url, prompt=prompt, max_tokens=3, steps=1)[-1]["text"].startswith(prompt)


def test_a_branch_changes_only_what_was_masked(url, loaded):
    model, tokenizer, _ = loaded
    row = tokenizer.encode("The fog came down, and it was cold at the door of the house.")
    masked = row[:4] + [model.config.mask_id] * 3 + row[7:]
    tokens = generate(url, tokens=masked, steps=3)[-1]["tokens"]
    assert tokens[:4] + tokens[7:] == row[:4] + row[7:] and all(token < model.config.n_text for token in tokens)
    heard = generate(url, tokens=row)
    assert [m["type"] for m in heard] == ["start", "done"] and heard[-1]["tokens"] == row


def test_a_replay_is_drawn(url, loaded):
    model, tokenizer, _ = loaded
    start, *steps, done = generate(url, prompt="The keeper", max_tokens=12, steps=6, remask=0.2, seed=2)
    decided = {look["position"]: step["step"] for step in steps for look in step["revealed"]}
    message = {"tokens": done["tokens"], "when": [decided.get(i, 0) for i in range(len(done["tokens"]))]}
    with connected(url) as client:
        client.send(json.dumps({"type": "gif", **message}))
        with Image.open(io.BytesIO(b64decode(hear(client)["data"]))) as gif:
            assert gif.n_frames == 1 + 6 + 3
        for wrong in ({}, {"tokens": [1]}, {"tokens": [1], "when": 3}, {"tokens": [1], "when": [-1]}, {"tokens": [1], "when": [1000]},
                      {"tokens": [model.config.vocab_size], "when": [1]}, {"tokens": [[1]], "when": [1]}, {"tokens": [1] * 1025, "when": [1] * 1025}):
            client.send(json.dumps({"type": "gif", **wrong}))
            assert hear(client)["type"] == "error", wrong
    assert answers(url)


def test_what_has_become_least_likely_is_taken_back(url, loaded, folder):
    model, tokenizer, _ = loaded
    row = tokenizer.encode((folder / "data/tale/text.txt").read_text(encoding="utf-8"))[:420]            # longer than the model's context
    start, *_, done = generate(url, tokens=row, adapt=list(range(10, 110)), steps=2)
    back = [i for i, token in enumerate(start["tokens"]) if token == model.config.mask_id]
    assert len(back) == 20 and set(back) <= set(range(10, 110))                                         # a fifth of what may be
    assert [token for i, token in enumerate(done["tokens"]) if i not in back] == [token for i, token in enumerate(row) if i not in back]
    model.eval()
    chances = {}
    with torch.no_grad():
        for hidden in (list(range(10, 110))[k::4] for k in range(4)):
            masked = torch.tensor(row[:384])[None]
            where = torch.zeros_like(masked, dtype=torch.bool)
            masked[0, hidden], where[0, hidden] = model.config.mask_id, True
            chances |= {i: float(log_p[row[i]]) for i, log_p in zip(hidden, model(masked, where).log_softmax(1))}
    assert max(chances[i] for i in back) <= min(p for i, p in chances.items() if i not in back) + 1e-4
    assert generate(url, tokens=row, adapt=[1.5])[0]["type"] == generate(url, tokens=row, adapt=[420])[0]["type"] == "error"


@pytest.mark.parametrize("wrong", [
    {"steps": 0}, {"steps": 10**30}, {"steps": True}, {"steps": 2.0}, {"steps": "8"}, {"steps": None}, {"steps": [1]}, {"max_tokens": 0}, {"max_tokens": 1025},
    {"temperature": -0.1}, {"temperature": 1e999}, {"temperature": {}}, {"top_k": -1}, {"top_k": 10**9}, {"top_p": 0}, {"top_p": 1.01}, {"remask": 1},
    {"repetition_penalty": 0}, {"threshold": 2}, {"entropy_bound": -1}, {"block_size": 385}, {"seed": -1}, {"seed": 2**53}, {"seed": 1.5},
    {"order": "__class__"}, {"order": ["margin"]}, {"schedule": 3}, {"prompt": 7}, {"prompt": "x" * 8001}, {"prompt": "\ud800"}, {"suffix": None},
    {"prompt": "word " * 1500}, {"template": []}, {"template": "____(2000)"}, {"template": "____(99999999999999999999)"}, {"template": "____(2) " * 900},
    {"tokens": []}, {"tokens": "abc"}, {"tokens": [0, True]}, {"tokens": [-1]}, {"tokens": [0] * 1025}, {"tokens": [1.0]}, {"tokens": [10**20]},
    {"adapt": 3}, {"adapt": [True]}, {"adapt": [-1]}, {"twin": True}, {"twin": 0}, {"twin": "x"}, {"checkpoint": "../../etc/passwd"}, {"device": "cuda"}, {"__proto__": 1}, {"": 0}], ids=lambda wrong: json.dumps(wrong)[:40])
def test_what_is_out_of_range_is_refused_by_name(url, wrong):
    text = json.dumps({"type": "generate", "steps": 1, "max_tokens": 2, **wrong}).replace("Infinity", "1e999")
    with connected(url) as client:
        client.send(text)
        answer = hear(client)
    assert answer["type"] == "error" and "\n" not in answer["message"] and len(answer["message"]) < 200
    assert next(iter(wrong)) in answer["message"] or "tokens" in answer["message"], answer


def test_special_tokens_other_than_the_mask_are_refused(url, loaded):
    config = loaded[0].config
    for special in (config.pad_id, config.sep_id, config.vocab_size):
        assert generate(url, tokens=[5, special, config.mask_id])[0]["type"] == "error"


# ---- one at a time

def test_cancel_frees_the_model_within_two_steps(url):
    with connected(url) as client:
        begin(client, **SLOW)
        seen = hear(client)["step"]
        client.send('{"type": "cancel"}')
        while (message := hear(client))["type"] == "step":
            seen_after = message["step"]
            assert seen_after <= seen + 2
        assert message["type"] == "done" and message["cancelled"] and message["steps"] <= seen + 2
        assert answers(url)
        assert ask(client, max_tokens=4, steps=2)[-1]["type"] == "done"                       # and the same connection can go on


@pytest.mark.parametrize("goodbye", ["close", "vanish"])
def test_a_client_that_leaves_frees_the_model(url, goodbye):
    with connected(url) as client:
        begin(client, **SLOW)
        begun = time.perf_counter()
        assert hear(client)["step"] == 1
        step = max(time.perf_counter() - begun, 0.05)
        client.close() if goodbye == "close" else client.sock.shutdown(socket.SHUT_RDWR)
        left = time.perf_counter()
        with connected(url) as other:
            begin(other, max_tokens=2, steps=1)
    assert time.perf_counter() - left < 3 * step + 0.5                                         # of 256 steps


def test_others_are_told_busy(url):
    with connected(url) as client, connected(url) as other:
        begin(client, **SLOW)
        other.send(json.dumps({"type": "generate", "max_tokens": 2}))
        assert hear(other)["type"] == "busy"
        client.send(json.dumps({"type": "generate", "max_tokens": 2}))
        while (kind := hear(client)["type"]) == "step":
            pass
        assert kind == "busy"                                                                  # not even its own client gets a second text meanwhile
        other.send('{"type": "cancel"}')                                                       # is not the other's to stop
        assert hear(client)["type"] == hear(client)["type"] == "step"


# ---- hostile clients

def test_a_thousand_hostile_messages(url):
    nested = "[" * 20000
    messages = ["", "null", "[]", "0", '"generate"', "{}", '{"type":1}', '{"type":"eval"}', '{"type":"generate"', nested, '{"a":' * 5000, "NaN", '{"type":"generate","temperature":NaN}',
                '{"type":"generate","temperature":-Infinity}', '{"type":"generate","seed":' + "9" * 5000 + "}", '{"type":"cancel","type2":1}', '{"type":["generate"]}', "\0" * 50,
                '{"type":"generate","prompt":"\\ud83d"}', '{"type":"generate","tokens":' + "[1" * 3000, "\u202e<script>", b"\xff\xfe\x00", b"", "x" * 60000]
    frames = [b"\x00" * 200, b"\xff" * 200, b"\x81\x7f" + b"\xff" * 8, b"\x81\xfe\x00", b"\x88\x00", b"GET / HTTP/1.1\r\n\r\n", b"\xc1\x85abcd12345", b"\x81\x82\0\0\0\0\xc3\x28"]
    sent = 0
    while sent < 1000:
        with connected(url) as client:
            for i in range(serve.MESSAGES_PER_SECOND - 2):
                client.send(messages[(sent + i) % len(messages)])
            for _ in range(serve.MESSAGES_PER_SECOND - 2):
                assert hear(client)["type"] == "error"
            sent += serve.MESSAGES_PER_SECOND - 2
            client.sock.send(frames[sent // 38 % len(frames)])                                 # broken frames end the connection, nothing else
            sent += 1
    assert answers(url)


def test_oversized_and_too_many_messages_end_the_connection(url):
    with connected(url) as client, pytest.raises(ConnectionClosed):
        client.send("x" * (serve.MESSAGE_BYTES + 1))
        client.receive(timeout=10)
    with connected(url) as client, pytest.raises(ConnectionClosed) as closed:
        with contextlib.suppress(OSError):
            for _ in range(3 * serve.MESSAGES_PER_SECOND):
                client.send("{}")
        while client.receive(timeout=10):
            pass
    assert closed.value.reason == 1008
    assert answers(url)


def test_connections_are_limited_and_come_back(url):
    def heard():
        """Of a few clients too many, how many the server listens to."""
        with contextlib.ExitStack() as stack:
            clients, count = [stack.enter_context(connected(url)) for _ in range(serve.CONNECTIONS + 2)], 0
            for client in clients:
                with contextlib.suppress(ConnectionClosed, OSError):
                    client.send("{}")
                    count += client.receive(timeout=5) is not None
            return count

    for _ in range(2):
        time.sleep(1.2)                                                                        # the server looks for the gone every second
        assert heard() == serve.CONNECTIONS


@pytest.mark.parametrize("path", ["/", "/api/model", "/api/vocabulary", "/ws"])
def test_other_sites_get_nothing(url, path):
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec_WebSocket_Version": "13"} if path == "/ws" else {}
    port = url.rsplit(":", 1)[1]
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{port}", f"http://127.0.0.1:{port}.evil.example", "http://127.0.0.1:1", "file://"):
        response, body = request(url, path, Origin=origin, **upgrade)
        assert response.status == 403 and b"vocabulary" not in body, origin
    for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", "127.0.0.1:1", f"169.254.169.254:{port}"):
        assert request(url, path, Host=host, **upgrade)[0].status == 400, host
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}"):
        assert request(url, path, Host=host, Origin=f"http://{host}", **upgrade)[0].status == (101 if upgrade else 200), host


def test_foreign_origin_cannot_open_a_websocket(url):
    with pytest.raises(Refused), connected(url, Origin="http://evil.example"):
        pass
    with connected(url, Origin=url) as client:
        assert ask(client, max_tokens=2, steps=1)[-1]["type"] == "done"


@pytest.mark.parametrize("outer, host, origin", [
    ("http://localhost:8080", "localhost:8080", "http://localhost:8080"), ("http://localhost", "localhost", "http://localhost"),
    ("https://books.example.org", "books.example.org", "https://books.example.org"), ("https://abc-5.app.example.dev", None, "https://abc-5.app.example.dev")])
def test_behind_a_tunnel_or_a_proxy(loaded, outer, host, origin):
    model, tokenizer, _ = loaded

    def answer(addresses, host, origin, path="/api/model"):
        writer = serve.Writer(model, None, tokenizer, serve.Book(None, tokenizer))
        app = serve.create_app(writer, {}, "127.0.0.1", 5000, serve.outer_addresses(addresses))
        return app.test_client().get(path, headers={"Host": host or "localhost:5000", "Origin": origin})

    refused = answer("", host, origin)
    assert refused.status_code in (400, 403) and b"--origin=" in refused.data and b"vocabulary" not in refused.data
    assert answer(f"https://other.example,{outer}/", host, origin).status_code == 200
    assert answer(outer, "localhost:5000", "http://localhost:5000").status_code == 200                  # and still at its own
    for stranger in ("http://evil.example", origin + ".evil.example", origin.replace("//", "//evil."), "null"):
        assert answer(outer, host, stranger).status_code == 403
    assert answer(outer, "evil.example", origin).status_code == 400


def test_headers_and_paths(url):
    response, page = request(url)
    assert (ROOT / "page.css").read_bytes() in page                                          # type and colours are the report's too
    policy = dict(part.strip().split(" ", 1) for part in response.headers["Content-Security-Policy"].split(";"))
    for tag in ("script", "style"):
        inline = re.search(rf"<{tag}>(.*?)</{tag}>".encode(), page, re.S)[1]
        assert policy[f"{tag}-src"] == f"'sha256-{b64encode(sha256(inline).digest()).decode()}'"
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'" and policy["connect-src"] == "'self'"
    for path in ("/", "/api/model", "/nowhere", "/../serve.py", "/%2e%2e/serve.py", "/static/serve.py", "/console", "/serve.html"):
        response, body = request(url, path)
        assert response.status == (200 if path in ("/", "/api/model") else 404) and b"import sys" not in body
        assert response.headers["X-Content-Type-Options"] == "nosniff" and response.headers["X-Frame-Options"] == "DENY"
        assert "Access-Control-Allow-Origin" not in response.headers
    assert request(url, "/", "POST")[0].status == request(url, "/api/model", "DELETE")[0].status == 405
    assert not re.search(rb"""(src|href)\s*=\s*["']?(https?:)?//|innerHTML|insertAdjacentHTML|document\.write|eval\(""", page)


# ---- what the page is told

def test_the_dashboard(url, loaded, folder):
    model, tokenizer, _ = loaded
    about = json.loads(request(url, "/api/model")[1])
    assert about["book"] == "tale" and about["book_at_hand"] and about["device"] == "cpu" and about["val_bits_per_byte"] == 2.5 and about["stage"] == 2
    assert about["parameters"]["total"] == sum(p.numel() for p in model.parameters()) and about["context"] == 384 and about["vocabulary"] == tokenizer.vocab_size
    assert all(rule["default"] is None or "choices" in rule or rule["min"] <= rule["default"] <= rule["max"] for rule in about["settings"].values())
    book = (folder / "data/tale/text.txt").read_text(encoding="utf-8")
    assert about["prompts"] and all(prompt in " ".join(book.split()) for prompt in about["prompts"])
    vocabulary = json.loads(request(url, "/api/vocabulary")[1])
    assert [token.encode("latin-1") for token in vocabulary] == tokenizer.tokens


def test_the_title_is_the_books_own(tmp_path, loaded, folder, monkeypatch):
    model, tokenizer, saved = loaded
    data = tmp_path / "data/tale"
    data.mkdir(parents=True)
    for name in ("text.txt", "segments.jsonl", "statistics.json"):
        (data / name).write_bytes((folder / "data/tale" / name).read_bytes())
    statistics = json.loads((data / "statistics.json").read_text(encoding="utf-8"))
    (data / "statistics.json").write_text(json.dumps(statistics | {"title": "The Tale of an Anvil"}), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    book = serve.Book("tale", tokenizer)
    assert serve.dashboard(model, tokenizer, saved, book, {})["book"] == "The Tale of an Anvil"
    assert book.passage and book.passage in " ".join((data / "text.txt").read_text(encoding="utf-8").split())


def test_copies_are_found_and_shown(url, loaded, folder):
    _, tokenizer, _ = loaded
    book = (folder / "data/tale/text.txt").read_text(encoding="utf-8")
    ids = tokenizer.encode(book)
    strange = tokenizer.encode("qzx jjw")
    row = strange + ids[300:320] + strange + ids[500:507] + strange
    done = generate(url, tokens=row)[-1]
    assert len(done["copies"]) == 1
    copy = done["copies"][0]
    assert row[copy["start"]:copy["end"]] == ids[300:320] and copy["copied"] == tokenizer.decode(ids[300:320])
    assert copy["before"] + copy["copied"] + copy["after"] in book and copy["at"] == pytest.approx(300 / len(ids), abs=1e-3)


@examples(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=20, max_size=80), st.lists(st.integers(0, 3), max_size=60))
def test_every_copied_run_is_marked_and_no_other(text, row):
    book = serve.Book.__new__(serve.Book)
    book.tokenizer, book.ids = Tokenizer("gpt2", [bytes([i]) for i in range(256)]), "".join(map(chr, text))
    marked = {i for copy in book.copies(row) for i in range(copy["start"], copy["end"])}
    runs = {tuple(text[i:i + serve.COPIED]) for i in range(len(text) - serve.COPIED + 1)}
    starts = [i for i in range(len(row) - serve.COPIED + 1) if tuple(row[i:i + serve.COPIED]) in runs]
    assert marked == {k for i in starts for k in range(i, i + serve.COPIED)}
    for copy in book.copies(row):
        run = row[copy["start"]:copy["end"]]
        assert any(text[i:i + len(run)] == run for i in range(len(text)))


# ---- starting it

def test_user_errors_end_in_one_line(folder, tmp_path, url):
    taken = url.rsplit(":", 1)[1]
    for cwd, argument, word in ((tmp_path, "--port=0", "train.py"), (folder, f"--port={taken}", "--port"), (folder, "--origin=books.example.org", "https://"),
                                (folder, "--race=nowhere", "nowhere")):
        result = subprocess.run([sys.executable, ROOT / "serve.py", argument], cwd=cwd, capture_output=True, text=True, timeout=60)
        assert result.returncode == 2 and result.stderr.count("\n") == 1 and word in result.stderr, result.stderr


def test_served_to_others_it_warns_and_answers_to_addresses_only(folder):
    server = subprocess.Popen([sys.executable, ROOT / "serve.py", "--port=0", "--host=0.0.0.0", "--device=cpu"], cwd=folder, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert "warning" in server.stderr.readline()
        port = server.stdout.readline().strip().rsplit(":", 1)[1]
        url = f"http://127.0.0.1:{port}"
        assert request(url, Host=f"192.168.1.20:{port}", Origin=f"http://192.168.1.20:{port}")[0].status == 200
        assert request(url, Host=f"rebound.example:{port}")[0].status == 400
        assert request(url, Origin="http://rebound.example")[0].status == 403
    finally:
        server.terminate()
        server.communicate(timeout=10)


def test_the_model_without_its_book(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/best.pt").write_bytes((folder / "out/best.pt").read_bytes())
    with serving(tmp_path) as url:
        about = json.loads(request(url, "/api/model")[1])
        assert about["book"] == "tale" and not about["book_at_hand"] and about["prompts"] == []
        assert generate(url, max_tokens=3, steps=1)[-1]["copies"] == []
