"""serve.html as its readers meet it: a real server, a real Chromium. What the page looks like is written to tests/screenshots."""
import contextlib
import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from playwright.sync_api import expect, sync_playwright
from test_serve import prepared, serving

from model import Config, DiffusionModel, checkpoint_of, draw_masks, save_checkpoint, weighted_loss
from prepare import Tokenizer

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCREENSHOTS = Path(__file__).parent / "screenshots"
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed (apt-get install chromium)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A prepared book and a model that has read its first page eighty times: what it writes looks like a book."""
    folder = prepared(tmp_path_factory.getbasetemp())
    saved = json.loads((folder / "data/tale/tokenizer.json").read_text(encoding="utf-8"))
    ids = torch.tensor(Tokenizer.from_dict(saved).encode((folder / "data/tale/text.txt").read_text(encoding="utf-8"))[:300])
    torch.manual_seed(1)
    torch.set_num_threads(1)
    model = DiffusionModel(Config(saved["vocab_size"], block_size=192, n_layer=2, n_head=2, n_embd=96, rope_base=100.0))
    torch.nn.init.normal_(model.embedding.weight, std=0.1)
    hidden = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [model.embedding.weight, *(p for p in model.parameters() if p.ndim == 1)]
    optimizers = torch.optim.Muon(hidden, lr=0.02, weight_decay=0.0), torch.optim.AdamW(others, lr=5e-3, weight_decay=0.0)
    for step in range(60):
        rows = torch.stack([ids[start:start + 48] for start in torch.randint(len(ids) - 48, (8,)).tolist()])
        loss = weighted_loss(model, rows, draw_masks(rows, model.config, (0.05, 0.5) if step < 40 else (0, 1)), model.config) / rows.numel()
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    (folder / "out").mkdir(exist_ok=True)
    training = {"dataset": "tale", "step": 60, "stage": 1, "epoch": 77.0, "val_bits_per_byte": 2.5}
    save_checkpoint(str(folder / "out/read.pt"), checkpoint_of(model, saved, training=training))
    return folder


@pytest.fixture(scope="module")
def url(folder):
    with serving(folder, "--checkpoint=out/read.pt") as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    SCREENSHOTS.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        yield (browser := playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else []))
        browser.close()


@pytest.fixture
def visit(browser, url):
    """visit(address="", **context): a page of the server that has finished loading. None may log anything or ask anyone else for anything."""
    contexts, wrong = [], []

    def visit(address="", width=1440, height=900, **options):
        contexts.append(browser.new_context(**{"viewport": {"width": width, "height": height}, "color_scheme": "dark", **options}))
        page = contexts[-1].new_page()
        page.set_default_timeout(10000)
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith((url + "/", "blob:", "data:")) or wrong.append(asked.url))
        page.on("websocket", lambda socket: socket.url == url.replace("http", "ws") + "/ws" or wrong.append(socket.url))
        page.goto(url + "/" + address)
        expect(page.locator("#generate")).to_be_enabled()
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not wrong


def write(page, prompt="The keeper", **settings):
    """Have a text written, and wait for its end if the speed is `live`."""
    page.locator("#more").evaluate("details => { details.open = true; }")
    page.locator("#prompt").fill(prompt)
    page.locator("#speed").select_option(settings.pop("speed", "0"))
    for key, value in settings.items():
        control = page.locator(f"#c-{key}")
        control.select_option(value) if key in ("order", "schedule") else control.fill(str(value))
    page.locator("#generate").click()
    if page.locator("#speed").input_value() == "0":
        finished(page)


def finished(page):
    expect(page.locator("#text")).to_have_class(re.compile("finished"))


def text(page):
    return page.locator("#text").text_content()


def step(page):
    return int(page.locator("#s-step").text_content().split()[0])


def tokens(page):
    """What stands at each position of the text."""
    return page.locator("#text span").evaluate_all("spans => spans.map(span => span.textContent)")


# ---- a text comes about

def test_the_text_appears_token_by_token(visit):
    page = visit()
    assert not re.search(r"undefined|NaN|null", page.locator("body").inner_text())
    page.locator("#speed").select_option("20")
    page.locator("#prompts button").first.click()
    seen, decided = [], []
    while "finished" not in page.locator("#text").get_attribute("class"):
        seen.append(text(page))
        decided.append(int(page.locator("#s-decided").text_content().split()[0]))
        assert len(seen) < 2000
    assert len(set(seen)) >= 8 and decided == sorted(decided) and len(set(decided)) >= 8
    prompt = page.locator("#prompt").input_value()
    assert text(page).startswith(prompt) and text(page).count(prompt) == 1
    assert page.locator("#text .masked, #text .draft").count() == 0 and page.locator("#s-decided").text_content() == "128 of 128"
    assert page.locator("#live").text_content().startswith("Finished. " + prompt)


def test_the_first_token_shows_within_300_ms(visit):
    page = visit()
    page.locator("#prompt").fill("The keeper")
    page.locator("#c-steps").fill("8")
    page.locator("#speed").select_option("20")
    waited = []
    for _ in range(3):
        page.evaluate("""() => {
            window.waited = new Promise(resolve => {
                let clicked;
                document.getElementById("generate").addEventListener("click", () => { clicked = performance.now(); }, {once: true, capture: true});
                const watch = new MutationObserver(() => {
                    if (clicked && document.querySelector("#text .new")) { watch.disconnect(); requestAnimationFrame(() => resolve(performance.now() - clicked)); }
                });
                watch.observe(document.getElementById("text"), {subtree: true, childList: true, attributes: true});
            });
        }""")
        page.locator("#generate").click()
        waited.append(page.evaluate("window.waited"))
        finished(page)
    print("first token after", *(f"{ms:.0f}" for ms in waited), "ms")
    assert min(waited) < 300


def test_pause_step_and_scrub(visit):
    page = visit()
    write(page, speed="3")
    expect(page.locator("#s-step")).to_have_text(re.compile("^[2-9] of"))
    page.locator("#pause").click()
    at, then = step(page), text(page)
    page.wait_for_timeout(400)
    assert step(page) == at and text(page) == then and page.locator("#pause").text_content() == "Resume"
    page.locator("#after").click()
    assert step(page) == at + 1 and text(page) != then
    page.locator("#before").click()
    assert step(page) == at and text(page) == then
    page.locator("#scrub").fill("0")
    assert step(page) == 0 and page.locator("#text .masked").count() == 128
    page.locator("#scrub").fill(str(at))
    assert text(page) == then
    page.locator("#map").click(position={"x": page.locator("#map").bounding_box()["width"] * (at + 1.5) / 26, "y": 50})
    assert step(page) == at + 1
    page.locator("#speed").select_option("20")
    page.locator("#pause").click()
    finished(page)
    assert step(page) == 25


def test_stop_stops_the_server(visit):
    page, other = visit(), visit()
    sent = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: sent.append(json.loads(frame))))
    page.reload()
    expect(page.locator("#generate")).to_be_enabled()
    write(page, speed="3", max_tokens=1000, steps=256)
    expect(page.locator("#s-step")).to_have_text(re.compile("^[1-9]"))
    other.locator("#generate").click()
    expect(other.locator("#toast")).to_contain_text("try again")
    page.locator("#stop").click()
    finished(page)
    assert sent[-1]["type"] == "done" and sent[-1]["cancelled"] and page.locator("#text .masked, #text .draft").count()
    write(other, max_tokens=8)


def test_a_link_repeats_the_text(visit, url):
    page = visit()
    write(page, "He said: “a+b=50%” & # ____(9)\nand so", max_tokens=40, steps=9, temperature=1.1, top_k=0, order="entropy", remask=0.1)
    link, first = page.url.removeprefix(url + "/"), text(page)
    page.locator("#generate").click()
    expect(page.locator("#seed-line")).not_to_have_text(re.search(r"seed=(\d+)", link)[1])
    finished(page)
    assert text(page) != first and page.url != url + "/" + link                              # a new seed each time
    page.locator("#lock").check()
    kept = page.locator("#c-seed").input_value()
    page.locator("#generate").click()
    expect(page.locator("#seed-line")).to_have_text(f"seed {kept}")
    again = visit(link)
    again.locator("#speed").select_option("0")
    finished(again)
    assert text(again) == first and again.locator("#c-order").input_value() == "entropy"
    again.evaluate("location.hash = 'prompt=x&seed=1e99&steps=-3&order=__proto__&temperature=NaN'")
    finished(again)
    assert again.locator("#c-steps").input_value() == "1" and again.locator("#c-order").input_value() == "margin"


# ---- changing it

def test_alternatives_are_shown_and_replace(visit):
    page = visit()
    write(page, seed=3, remask=0.1)
    before, word = tokens(page), page.locator("#text .settled:not(:empty, .break, .half)").nth(5)
    position = word.evaluate("span => span.position")
    word.hover()
    expect(page.locator("#pop .choice")).to_have_count(5)
    chances = [float(c.split()[-2]) for c in page.locator("#pop .choice").all_inner_texts()]
    assert chances == sorted(chances, reverse=True) and 0 < sum(chances) <= 101
    page.screenshot(path=SCREENSHOTS / "alternatives.png")
    other = page.locator("#pop .choice:not([aria-current=true])").first
    chosen = other.locator("span").first.text_content()
    other.click()
    expect(page.locator("#branch-note")).to_contain_text("text 2 of 2")
    finished(page)
    after = tokens(page)
    assert after[position].strip() == chosen.replace("¶", "").strip() or "¶" in chosen
    assert [i for i, (a, b) in enumerate(zip(before, after)) if a != b] == [position]
    assert page.locator("#text .changed").get_attribute("data-was") == before[position]
    page.locator("#undo").click()
    assert tokens(page) == before
    page.locator("#redo").click()
    assert tokens(page) == after
    page.locator("#scrub").focus()
    page.keyboard.press("Escape")


def test_a_span_is_written_anew(visit):
    page = visit()
    write(page, seed=4, temperature=1.5, top_k=0, top_p=1)
    before = tokens(page)
    words = page.locator("#text .settled:not(:empty, .break, .half)")
    first, last = words.nth(4), words.nth(9)
    a, b = first.evaluate("span => span.position"), last.evaluate("span => span.position")
    start, end = first.bounding_box(), last.bounding_box()
    page.mouse.move(start["x"] + 1, start["y"] + start["height"] / 2)
    page.mouse.down()
    page.mouse.move(end["x"] + end["width"] - 1, end["y"] + end["height"] / 2, steps=5)
    page.mouse.up()
    expect(page.locator("#rewrite")).to_have_text(re.compile(r"Write these \d+ tokens anew"))
    page.locator("#rewrite").click()
    expect(page.locator("#branch-note")).to_contain_text("a change of the one before")
    finished(page)
    after = tokens(page)
    assert after != before and {i for i, (x, y) in enumerate(zip(before, after)) if x != y} <= set(range(a - 1, b + 4))
    assert page.locator("#text .changed").count()
    page.screenshot(path=SCREENSHOTS / "difference.png")
    page.locator("body").press("u")
    assert tokens(page) == before


def test_what_stands_in_the_book_is_marked(visit, folder):
    page = visit()
    sentence = " ".join((folder / "data/tale/text.txt").read_text(encoding="utf-8")[3000:3400].split("\n\n")[1].split()[:18])
    write(page, sentence, max_tokens=6)
    marked = page.locator("#text .copied")
    assert marked.count() >= 8 and "".join(marked.all_text_contents()).replace(" ", "") in text(page).replace(" ", "")
    marked.nth(3).hover()
    expect(page.locator("#pop")).to_contain_text("stand in the book")
    assert page.locator("#pop mark").text_content().split()[1] in sentence
    page.screenshot(path=SCREENSHOTS / "in_the_book.png")


@pytest.mark.parametrize("prompt", ["<img src=x onerror=alert(1)><script>document.title='owned'</script>&lt;b&gt;", "שלום עולם مرحبا \u202eabc", "“Quoth” 🜁 👩‍🔬"])
def test_a_prompt_is_only_ever_text(visit, prompt):
    page = visit()
    write(page, prompt, max_tokens=12, steps=4)
    assert text(page).startswith(prompt) and page.locator("#text *:not(span), #text span *").count() == 0 and page.title() != "owned"
    page.locator("#text .given").first.click()
    assert page.locator("#pop img, #pop script").count() == 0


# ---- for everyone

def test_keyboard_alone(visit):
    page = visit()
    press = page.keyboard.press
    page.locator("#speed").select_option("3")
    page.locator("#prompt").focus()
    page.keyboard.type("The keeper")
    press("Control+Enter")
    expect(page.locator("#s-step")).to_have_text(re.compile("^[2-9] of"))
    page.locator("#prompt").evaluate("area => area.blur()")
    press(" ")
    at = step(page)
    press("ArrowRight")
    assert step(page) == at + 1
    press("ArrowLeft")
    assert step(page) == at
    press("Home")
    assert step(page) == 0
    press("]")
    assert page.locator("#speed").input_value() == "8"
    press("End")
    finished(page)
    page.locator("#text").focus()
    before = tokens(page)
    for key in ("ArrowRight", "ArrowDown", "ArrowRight", "Enter"):
        press(key)
    expect(page.locator("#pop .choice:focus, #pop .again:focus")).to_have_count(1)
    press("Escape")
    expect(page.locator("#pop")).to_be_hidden()
    expect(page.locator("#text")).to_be_focused()
    for _ in range(4):
        press("Shift+ArrowRight")
    assert page.locator("#text .sel").count() >= 3
    press("r")
    expect(page.locator("#branch-note")).to_contain_text("text 2 of 2")
    expect(page.locator("#save-text")).to_be_enabled()
    press("u")
    assert tokens(page) == before
    press("?")
    expect(page.locator("#help")).to_be_visible()
    press("Escape")
    expect(page.locator("#help")).to_be_hidden()


def test_everything_has_a_name_and_a_place_in_the_order(visit):
    page = visit()
    write(page, max_tokens=8)
    nameless = page.evaluate("""() => [...document.querySelectorAll("button, input:not([aria-hidden]), select, textarea, [role=img], dialog, section, aside")]
        .filter(e => !(e.labels?.length || e.ariaLabel || e.getAttribute("aria-labelledby") || e.tagName === "BUTTON" && e.textContent.trim())).map(e => e.outerHTML)""")
    assert nameless == []
    assert page.evaluate("[...document.querySelectorAll('[tabindex]')].every(e => e.tabIndex <= 0)") and page.locator("[aria-live], [role=alert]").count() == 2
    calm = visit(reduced_motion="reduce")
    write(calm, max_tokens=8)
    assert calm.locator("#text span").first.evaluate("span => getComputedStyle(span).transitionDuration") == "0s"


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [360, 1440])
def test_it_fits_and_looks(visit, width, scheme):
    page = visit(width=width, height=740 if width == 360 else 900, color_scheme=scheme, has_touch=width == 360, reduced_motion="reduce")      # no colour is still fading in a picture

    def look(name, full_page=False):
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=SCREENSHOTS / f"{width}_{scheme}_{name}.png", full_page=full_page)

    look("1_empty")
    write(page, "The keeper of the light", seed=7, remask=0.05)
    page.locator("#scrub").fill("9")
    look("2_writing")
    page.locator("#more").evaluate("details => { details.open = false; }")
    page.locator("#scrub").fill("25")
    look("3_written", full_page=True)
    word = page.locator("#text .settled:not(:empty, .break, .half)").nth(12)
    word.tap() if width == 360 else word.click()
    box = page.locator("#pop").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width
    look("4_alternatives")
    light = page.evaluate("getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).slice(0, 3).every(c => c > 127)")
    assert light == (scheme == "light")
    small = page.locator("button:visible, select:visible").evaluate_all("all => all.filter(e => e.getBoundingClientRect().height < 24).map(e => e.id)")
    assert small == []                                                                       # WCAG 2.2, 2.5.8
    for between in (320, 481, 768, 901):
        page.set_viewport_size({"width": between, "height": 700})
        expect(page.locator("#pop")).to_be_hidden()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), between


def test_what_is_saved(visit, browser, tmp_path):
    page = visit()
    write(page, "He said: </script><b>", max_tokens=30, steps=6)

    def save(button):
        with page.expect_download() as download:
            page.locator(button).click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        return path

    shown = re.sub(r"[\s¶◌]", "", text(page))
    assert re.sub(r"\s", "", save("#save-text").read_text(encoding="utf-8")) == shown
    saved = json.loads(save("#save-json").read_text(encoding="utf-8"))
    assert len(saved["steps"]) == 6 and saved["done"]["text"].startswith("He said: </script><b>") and saved["start"]["settings"]["steps"] == 6
    page.locator("#scrub").fill("3")
    half = text(page)
    replay = save("#save-replay")
    with contextlib.closing(browser.new_context(offline=True)) as context:
        alone, wrong = context.new_page(), []
        alone.on("console", lambda message: wrong.append(message.text))
        alone.on("pageerror", lambda error: wrong.append(str(error)))
        alone.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or wrong.append(asked.url))
        alone.goto(replay.as_uri())
        finished(alone)
        assert re.sub(r"[\s¶◌]", "", text(alone)) == shown and not alone.locator("#generate").is_visible()
        alone.locator("#scrub").fill("3")
        assert text(alone) == half and not wrong
        alone.screenshot(path=SCREENSHOTS / "replay.png")


def test_the_server_goes_and_comes_back(browser, folder):
    with serving(folder, "--checkpoint=out/read.pt") as url:
        page = browser.new_page()
        page.goto(url)
        expect(page.locator("#generate")).to_be_enabled()
        write(page, max_tokens=12, steps=6)
        shown = text(page)
    expect(page.locator("#generate")).to_be_disabled()
    assert text(page) == shown
    page.locator("#scrub").fill("2")
    assert step(page) == 2
    begun = time.monotonic()
    with serving(folder, "--checkpoint=out/read.pt", f"--port={url.rsplit(':', 1)[1]}"):
        expect(page.locator("#generate")).to_be_enabled(timeout=20000)
        write(page, max_tokens=6, steps=2)
    page.close()
    assert time.monotonic() - begun < 30
