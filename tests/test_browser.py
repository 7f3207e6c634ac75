"""serve.html as its readers meet it: a real server, a real Chromium. What the page looks like is written to tests/screenshots."""
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from PIL import Image
from playwright.sync_api import expect, sync_playwright
from test_serve import ROOT, prepared, serving

from model import Config, DiffusionModel, checkpoint_of, draw_masks, weighted_loss
from prepare import Tokenizer

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCREENSHOTS = Path(__file__).parent / "screenshots"
AXE = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
VIOLATIONS = "axe.run().then(found => found.violations.map(v => [v.id, v.nodes.map(node => node.target.join(' '))]))"
expect.set_options(timeout=20_000)                # a busy machine is no fault of the page
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
    torch.save(checkpoint_of(model, saved, training=training), folder / "out/read.pt")
    twin = DiffusionModel(Config(saved["vocab_size"], block_size=192, n_layer=1, n_head=2, n_embd=32, causal=True))
    torch.save(checkpoint_of(twin, saved, training=training), folder / "out/twin.pt")
    return folder


@pytest.fixture(scope="module")
def url(folder):
    with serving(folder, "--checkpoint=out/read.pt", "--race=out/twin.pt") as url:
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


def at_speed(page, speed):
    """It can be chosen from the first text on."""
    page.locator("#speed").evaluate("(select, value) => { select.value = value; select.onchange(); }", speed)


def write(page, prompt="The keeper", **settings):
    """Have a text written, and wait for its end if the speed is `live`."""
    page.locator("#more").evaluate("details => { details.open = true; }")
    page.locator("#prompt").fill(prompt)
    page.evaluate("drawer(true)")                                                            # on a phone
    at_speed(page, settings.pop("speed", "0"))
    for key, value in ({"steps": 25} | settings).items():
        control = page.locator(f"#c-{key}")
        control.select_option(value) if key in ("order", "schedule") else control.fill(str(value))
    page.evaluate("drawer(false)")
    page.locator("#generate").click()
    if page.locator("#speed").input_value() == "0":
        finished(page)


def finished(page):
    expect(page.locator("#text")).to_have_class(re.compile("finished"), timeout=90_000)


def text(page):
    return page.locator("#text").text_content()


def step(page):
    return int(page.locator("#s-step").text_content().split()[0])


def shown_by_step(page, what):
    """`what`, a JavaScript expression, at every step of a run that is done."""
    return page.evaluate("Array.from({length: last() + 1}, (_, k) => { goTo(k); return " + what + "; })")


def texts_so_far(page, n):
    expect(page.locator("#branches button")).to_have_count(n)
    expect(page.locator("#save-text")).to_be_enabled()


def tokens(page):
    """What stands at each position of the text."""
    return page.locator("#text span").evaluate_all("spans => spans.map(span => span.textContent)")


# ---- a text comes about

def test_the_text_appears_token_by_token(visit):
    page = visit()
    assert not re.search(r"undefined|NaN|null", page.locator("body").inner_text())
    at_speed(page, "20")
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
    at_speed(page, "20")
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
    expect(page.locator("#s-step")).to_have_text(re.compile("^([2-9]|[0-9]{2,}) of"))
    expect(page.locator("#save-text")).to_be_enabled()                                       # what is still to come moves what stands there
    page.locator("#pause").click()
    at, then = step(page), text(page)
    page.wait_for_timeout(400)
    assert step(page) == at and text(page) == then and page.locator("#pause").text_content() == "Resume"
    page.locator("#after").click()
    assert step(page) == at + 1 and text(page) != then
    page.locator("#before").click()
    assert step(page) == at and text(page) == then
    page.locator("#scrub").fill("0")
    assert step(page) == 0 and page.locator("#s-decided").text_content() == "0 of 128"
    page.locator("#scrub").fill(str(at))
    assert text(page) == then
    page.locator("#map").click(position={"x": page.locator("#map").bounding_box()["width"] * (at + 1.5) / 26, "y": 50})
    assert step(page) == at + 1
    at_speed(page, "20")
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
    expect(page.locator("#generate")).to_have_text("Stop")
    page.locator("#generate").click()
    expect(page.locator("#generate")).to_have_text("Generate")
    assert sent[-1]["type"] == "done" and sent[-1]["cancelled"] and step(page) < 20
    write(other, max_tokens=8)


def test_stop_stops_where_the_page_is(visit):
    page = visit()
    write(page, speed="3")
    expect(page.locator("#s-step")).to_have_text(re.compile("^([3-9]|[0-9]{2,}) of 25"))
    expect(page.locator("#save-text")).to_be_enabled()                                       # the server has long finished
    page.locator("#generate").click()
    at, then = step(page), text(page)
    assert at < 25 and page.locator("#text .mark").count() > 20
    decided = page.locator("#s-decided").text_content()
    assert page.locator("#live").text_content() == f"Stopped at step {at} of 25: {decided} tokens decided."
    page.wait_for_timeout(500)
    assert (step(page), text(page)) == (at, then) and page.locator("#generate").text_content() == "Generate"
    kept = page.evaluate("rowNow().map((id, i) => [i, id]).filter(([, id]) => id !== model.mask)")
    page.locator("#c-steps").fill("4")
    at_speed(page, "0")
    page.locator("#rest").click()                                                            # write the rest, with other settings
    texts_so_far(page, 2)
    finished(page)
    now = page.evaluate("Array.from(frame().ids)")
    assert all(now[i] == id for i, id in kept) and step(page) == at + 1 + 4
    page.locator("#branches button").first.click()
    page.locator("#scrub").fill(str(at))
    page.locator("#pause").click()                                                           # or go on with what there was
    finished(page)
    assert step(page) == 25


def test_space_never_destroys_a_text(visit):
    page = visit()
    write(page, speed="3")
    expect(page.locator("#s-step")).to_have_text(re.compile("^([2-9]|[0-9]{2,}) of"))
    page.locator("#generate").focus()
    page.keyboard.press(" ")
    at, seed = step(page), page.locator("#seed-line").text_content()
    page.wait_for_timeout(600)
    assert step(page) == at and page.locator("#pause").text_content() == "Resume"
    page.locator("#scrub").fill("25")
    page.locator("#generate").focus()
    page.keyboard.press(" ")                                                                 # plays it again
    assert page.locator("#seed-line").text_content() == seed and page.locator("#branches button").count() == 1


# ---- in motion

@pytest.mark.parametrize("width", [360, 1440])
def test_nothing_moves_in_a_replay(visit, width):
    page = visit(width=width)
    write(page, seed=5, remask=0.1, temperature=1.2, top_k=0)
    places = shown_by_step(page, """page.spans.map((span, i) => {
        const box = span.getBoundingClientRect(), open = isOpen(frame().state[i]) || !span.textContent;
        return open ? null : [box.left, box.top, box.width];
    })""")
    pairs = [(a, b) for before, after in zip(places, places[1:]) for a, b in zip(before, after) if a and b]
    assert len(pairs) > 500 and max(abs(x - y) for a, b in pairs for x, y in zip(a, b)) == 0


@pytest.mark.parametrize("width", [360, 1440])
def test_the_page_and_its_buttons_stay_put_while_it_writes(visit, width):
    page = visit(width=width, height=740)
    page.evaluate("""() => {
        window.places = [];
        const real = showTime;
        showTime = (...given) => {
            real(...given);
            places.push([document.documentElement.scrollHeight, ...["generate", "pause", "before", "after", "scrub", "speed", "heat"].flatMap(id => {
                const box = document.getElementById(id).getBoundingClientRect();
                return [box.left, box.top + (id === "heat" ? scrollY : 0), box.width];
            })].map(Math.round));
        };
    }""")
    write(page, speed="20", seed=3)
    finished(page)
    page.wait_for_timeout(300)
    places = page.evaluate("places.slice(2)")
    assert len(places) > 20 and {tuple(place) for place in places} == {tuple(places[0])}


def test_what_was_just_decided_is_seen_at_once(visit):
    page = visit()
    write(page, seed=3)
    fresh = page.evaluate("colours().freshRGB.slice(0, 3).join(', ')")
    seen = shown_by_step(page, "[...document.querySelectorAll('#text .new:not(.break)')].map(span => getComputedStyle(span).color)")
    assert sum(map(len, seen)) > 100 and {colour for step in seen for colour in step} == {f"rgb({fresh})"}  # a line's end is pale
    skipped = page.evaluate("goTo(5), goTo(last()), page.spans.filter(span => /settled/.test(span.className) && span.getAnimations().length).length")
    assert skipped > 50                                                                      # live: many steps at once


def test_a_draft_is_a_word_only_where_it_says_something(visit):
    page = visit()
    write(page, seed=3, temperature=1.5, top_k=0, top_p=1)
    seen = shown_by_step(page, """page.cells.flatMap(({from}) => frame().state[from] !== DRAFT ? [] : [[frame().conf[from],
        page.spans[from].dataset.over ?? null, page.spans[from].classList.contains("mark"), page.spans[from].textContent]])""")
    drafts = [draft for step in seen for draft in step]
    quiet, words = [d for d in drafts if d[0] < 0.3], [d for d in drafts if d[1] is not None]
    assert len(quiet) > 100 and all(over is None and mark and not own for _, over, mark, own in quiet)
    assert all(confidence >= 0.3 and not own for confidence, _, _, own in words)


def test_live_masks_hold_their_places(visit):
    """A token that is decided takes its width from the masks beside it, and the words around them stay where they are."""
    page = visit()
    write(page, max_tokens=40, steps=20, seed=2)
    moved = page.evaluate("""() => {
        const whole = run(), r = newRun(structuredClone(whole.start), {}, null, 0), sums = [];
        arrange(r);
        for (const m of whole.steps.slice(0, 8)) {
            addStep(r, m);
            arrange(r);
            sums.push(r.slots.width.reduce((a, b) => a + b));
        }
        return sums.slice(1).map((sum, k) => Math.abs(sum - sums[k]));
    }""")
    assert sum(change < 0.01 for change in moved) >= 4                                       # but where no mask is left beside it


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
    at_speed(again, "0")
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
    page.wait_for_timeout(400)
    assert not page.locator("#pop").is_visible()                                             # not by itself
    map_before = page.evaluate("[run().frames.length, $('heat').width]")
    word.click()
    assert page.locator("#pop .choice").count() in (5, 6)                                    # 6: what was drawn is not among the likeliest
    assert page.locator("#pop .choice[aria-current=true]").count() == 1
    chances = [float(c.split()[-2]) for c in page.locator("#pop .choice").all_inner_texts()]
    assert chances == sorted(chances, reverse=True) and 0 < sum(chances) <= 101
    page.screenshot(path=SCREENSHOTS / "alternatives.png")
    other = page.locator("#pop .choice:not([aria-current=true])").first
    chosen = other.locator("span").first.text_content()
    other.click()
    texts_so_far(page, 2)
    finished(page)
    assert page.evaluate("[run().frames.length, $('heat').width]") == [map_before[0] + 1] * 2      # with all its history
    page.locator("#difference input").check()
    after = tokens(page)
    assert after[position].strip() == chosen.replace("¶", "").strip() or "¶" in chosen
    assert [i for i, (a, b) in enumerate(zip(before, after)) if a != b] == [position]
    assert page.locator("#text .changed").get_attribute("data-was") == before[position]
    page.locator("#branches button").first.click()
    assert tokens(page) == before
    page.locator("#branches button").last.click()
    assert tokens(page) == after
    expect(page.locator("#rest")).to_have_text("Let the rest adapt")
    page.locator("#rest").click()
    texts_so_far(page, 3)
    finished(page)
    adapted = page.evaluate("[Array.from(run().frames[run().first].state, s => s === MASKED ? 1 : 0), Array.from(run().before.ids), Array.from(frame().ids)]")
    masked = sum(adapted[0])
    assert masked == round(0.2 * 127 + 0.5) and not adapted[0][position]                     # a fifth of the written, not the word chosen
    assert all(a == b for m, a, b in zip(*adapted) if not m)


def test_the_alternatives_can_be_looked_at_while_it_plays(visit):
    page = visit()
    write(page, seed=3)
    at_speed(page, "8")
    page.locator("#pause").click()
    expect(page.locator("#s-step")).to_have_text(re.compile("^([5-9]|[0-9]{2,}) of"))
    page.locator("#text .settled:not(:empty, .break)").first.click()
    at = step(page)
    expect(page.locator("#s-step")).not_to_have_text(re.compile(f"^({at}|{at + 1}) of"))
    assert page.locator("#pop .choice[aria-current=true]").is_visible() and page.locator("#pause").text_content() == "Pause"


def test_several_words_are_picked_and_written_anew(visit):
    page = visit()
    write(page, seed=4, temperature=1.5, top_k=0, top_p=1)
    before, words = page.evaluate("Array.from(frame().ids)"), page.locator("#text .settled:not(:empty, .break, .half)")
    chosen = [words.nth(n).evaluate("span => span.position") for n in (4, 9, 15)]
    for n in (4, 9, 15):
        words.nth(n).click(modifiers=["Control"])
    expect(page.locator("#rewrite")).to_have_text("Write these 3 words anew")
    page.locator("#rewrite").click()
    texts_so_far(page, 2)
    finished(page)
    masked = page.evaluate("Array.from(run().frames[run().first].state).flatMap((s, i) => s === MASKED ? [i] : [])")
    assert set(chosen) <= set(masked) and len(masked) <= 3 * 4                               # a word may be several tokens
    after = page.evaluate("Array.from(frame().ids)")
    assert {i for i, (a, b) in enumerate(zip(before, after)) if a != b} <= set(masked)


def test_differences_are_told_by_phrase(visit):
    page = visit()
    write(page, seed=4, max_tokens=30)
    page.evaluate("""() => {
        const row = rowNow(), [a, b] = [row.length - 12, row.length - 7];
        window.was = [a, b].map(i => row[i]);
        for (const i of [a, a + 1, a + 3, b + 4]) row[i] = (row[i] + 50) % model.mask;       // one word between two stays
        branch(row);
    }""")
    texts_so_far(page, 2)
    assert page.evaluate("changes(run()).length") in (1, 2) and page.locator("#text .changed").count() >= 3
    page.locator("body").press("d")
    assert page.locator("#text [data-was]").count() == page.evaluate("changes(run()).filter(p => p.was).length")


def test_a_selection_has_no_stripes(visit):
    page = visit(reduced_motion="reduce")
    write(page, seed=4)
    page.locator("#text").focus()
    page.evaluate("point = page.cells[12].from; anchor = page.cells[8].from; render(); light(-1); document.querySelector('#text .at').classList.remove('at')")
    a, b = (page.evaluate(f"(() => {{ const b = page.spans[page.cells[{n}].from].getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom] }})()") for n in (8, 12))
    if abs(a[1] - b[1]) > 2:
        b = [a[0], a[1], a[2], a[3]]                                                         # it goes over two lines: the first word is enough
    page.screenshot(path=SCREENSHOTS / "selection.png")
    line = Image.open(SCREENSHOTS / "selection.png").convert("RGB").crop((int(a[0]) + 2, int(a[1]) + 3, int(b[2]) - 2, int(a[1]) + 4))
    colours = {line.getpixel((x, 0)) for x in range(line.width)}
    paper = page.evaluate("Array.from(colours().paperRGB.slice(0, 3))")
    assert len(colours) == 1 and list(colours.pop()) != paper


def test_the_map_and_the_text_point_at_each_other(visit):
    page = visit()
    write(page, seed=3)
    word = page.locator("#text .settled:not(:empty, .break)").nth(20)
    word.hover()
    i, T = word.evaluate("span => span.position"), page.locator("#text span").count()
    row, heat = page.locator("#row").bounding_box(), page.locator("#heat").bounding_box()
    assert row["y"] - 2 <= heat["y"] + i / T * heat["height"] <= row["y"] + row["height"] + 2
    page.locator("#heat").hover(position={"x": 30, "y": (60.5 / T) * heat["height"]})
    assert page.locator("#text .lit").evaluate("span => span.position") in range(57, 61)
    page.get_by_label("When each word was decided").check()
    when = page.locator("#text .dated").evaluate_all("spans => spans.map(s => [Number(s.style.getPropertyValue('--at')), frame().when[s.position]])")
    assert len(when) > 60 and all(at == pytest.approx(step / 25, abs=1e-3) for at, step in when) and len({at for at, _ in when}) > 15
    early, late = (page.locator("#text .dated").nth([at for at, _ in when].index(f(at for at, _ in when))) for f in (min, max))
    assert early.evaluate("s => getComputedStyle(s).backgroundColor") != late.evaluate("s => getComputedStyle(s).backgroundColor")
    page.screenshot(path=SCREENSHOTS / "when.png")


def test_a_race(visit):
    page = visit()
    page.locator("#race").check()
    write(page, max_tokens=20, steps=5, speed="20")
    expect(page.locator("#rival span")).not_to_have_count(0)
    expect(page.locator("#s-step")).to_have_text("20 of 20", timeout=20000)
    half = page.evaluate("goTo(7), [undecided(run().frames.at(-1)), undecided(frameOf(run().rival))]")
    assert half == [0, 13]                                                                   # the one has finished, the other decided one a step
    assert page.locator("#rival").bounding_box()["x"] > page.locator("#text").bounding_box()["x"] + 100
    page.screenshot(path=SCREENSHOTS / "race.png")


def test_a_span_is_written_anew(visit):
    page = visit()
    write(page, seed=4, temperature=1.5, top_k=0, top_p=1)
    before = tokens(page)
    words = page.locator("#text .settled:not(:empty, .break, .half)")
    first, last = words.nth(4), words.nth(9)
    page.wait_for_timeout(600)                                                               # words still glide to their places
    a, b = first.evaluate("span => span.position"), last.evaluate("span => span.position")
    start, end = first.bounding_box(), last.bounding_box()
    page.mouse.move(start["x"] + 1, start["y"] + start["height"] / 2)
    page.mouse.down()
    page.mouse.move(end["x"] + end["width"] - 1, end["y"] + end["height"] / 2, steps=5)
    page.mouse.up()
    expect(page.locator("#rewrite")).to_have_text(re.compile(r"Write these \d+ words anew"))
    page.locator("#rewrite").click()
    texts_so_far(page, 2)
    finished(page)
    page.locator("#difference input").check()
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
    assert page.evaluate("run().done.copies.length") and page.locator("#text .copied").count() == 0      # the reader's own, not a copy
    page.evaluate("run().start.written.fill(true); render()")                                # the same, had the model written it
    marked = page.locator("#text .copied")
    assert marked.count() >= 8 and "".join(marked.all_text_contents()).replace(" ", "") in text(page).replace(" ", "")
    marked.nth(3).click()
    expect(page.locator("#pop")).to_contain_text("stand in the book")
    assert page.locator("#pop mark").text_content().split()[1] in sentence
    page.screenshot(path=SCREENSHOTS / "in_the_book.png")


def test_what_was_given_and_what_was_written_are_told_apart(visit):
    page = visit()
    write(page, "The keeper ____(3) and the ____(5) sea", steps=4)
    styles = page.evaluate("page.cells.map(({from}) => [frame().state[from] === GIVEN, getComputedStyle(page.spans[from]).fontStyle])")
    assert {(given, style) for given, style in styles} == {(True, "italic"), (False, "normal")}
    legend, leaf = page.locator("#legend").bounding_box(), page.locator(".leaf").bounding_box()
    assert leaf["y"] < legend["y"] and legend["y"] + legend["height"] <= leaf["y"] + leaf["height"]


def test_a_suffix_is_joined_by_a_space(visit):
    page = visit()
    write(page, "She", max_tokens=6, steps=3)
    page.locator("#suffix").fill("and so it was")
    page.locator("#generate").click()
    expect(page.locator("#text")).to_contain_text(re.compile(r"^She.* and so it was$", re.S))


# ---- one composer

@pytest.mark.parametrize("width", [360, 1440])
def test_the_composer_is_always_at_hand(visit, width):
    page = visit(width=width, height=740, has_touch=width == 360)
    page.locator("#prompt").fill("The keeper")
    at_speed(page, "3")
    page.keyboard.press("Enter")
    expect(page.locator("#generate")).to_have_text("Stop")
    for place in ("0", "document.documentElement.scrollHeight"):
        page.evaluate(f"scrollTo(0, {place})")
        for part in ("#prompt", "#c-max_tokens", "#generate", "#pause"):
            box = page.locator(part).bounding_box()
            assert box["y"] >= 740 - 260 and box["y"] + box["height"] <= 740, (part, place)
    if width == 360:
        assert not page.locator("#c-temperature").is_visible()
        page.locator("#settings-open").tap()
        expect(page.locator("#c-temperature")).to_be_visible()
        page.screenshot(path=SCREENSHOTS / "drawer.png")
        page.keyboard.press("Escape")
        expect(page.locator("#c-temperature")).to_be_hidden()
    page.locator("#prompt").press("Shift+Enter")
    assert page.locator("#prompt").input_value() == "The keeper\n"


def test_the_idle_page_performs(visit, folder):
    page = visit()
    passage = " ".join(page.locator("#condensing span").evaluate_all("spans => spans.map(span => span.dataset.word)"))
    book = " ".join((folder / "data/tale/text.txt").read_text(encoding="utf-8").split())
    assert len(passage) > 60 and passage in book
    assert page.locator("#condensing").get_attribute("aria-hidden") == "true"
    running = "getComputedStyle(document.querySelector('#condensing span')).animationName"
    assert page.evaluate(running) == "condense" and visit(reduced_motion="reduce").evaluate(running) == "none"
    write(page, max_tokens=8)
    assert not page.locator("#condensing").is_visible()


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
    at_speed(page, "3")
    page.locator("#prompt").focus()
    page.keyboard.type("The keeper")
    press("Enter")
    expect(page.locator("#s-step")).to_have_text(re.compile("^([2-9]|[0-9]{2,}) of"))
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
    expect(page.locator("#save-text")).to_be_enabled()                                       # the server has finished
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
    texts_so_far(page, 2)
    press("End")
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
    assert page.evaluate("[...document.querySelectorAll('[tabindex]')].every(e => e.tabIndex <= 0)") and page.locator("[aria-live], [role=alert], [role=status]").count() == 3
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
    page.wait_for_timeout(300)                                                               # a picture of all of it resizes the page
    word = page.locator("#text .settled:not(:empty, .break, .half)").nth(12)
    word.tap() if width == 360 else word.click()
    box = page.locator("#pop").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width
    look("4_alternatives")
    light = page.evaluate("getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).slice(0, 3).every(c => c > 127)")
    assert light == (scheme == "light")
    small = page.locator("button:visible, select:visible, input:visible, summary:visible").evaluate_all(
        """all => all.map(e => e.type === "checkbox" ? e.closest("label") : e)
            .filter(e => Math.min(e.getBoundingClientRect().height, e.getBoundingClientRect().width) < 24).map(e => e.id || e.textContent)""")
    assert small == []                                                                       # WCAG 2.2, 2.5.8
    for between in (320, 481, 768, 901):
        page.set_viewport_size({"width": between, "height": 700})
        expect(page.locator("#pop")).to_be_hidden()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), between


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [360, 1440])
def test_axe_finds_nothing(visit, width, scheme):
    page = visit(width=width, color_scheme=scheme, reduced_motion="reduce", bypass_csp=True)
    page.evaluate(AXE)
    assert page.evaluate(VIOLATIONS) == []
    write(page, seed=3, remask=0.1)
    for state in ("goTo(9)", "goTo(last())", "$('text').classList.add('when')", "aboutCell(page.cells[9].from)", "$('help').showModal()"):
        page.evaluate(state)
        assert page.evaluate(VIOLATIONS) == [], state


@pytest.fixture(scope="module")
def beside(folder):
    """What the other scripts make for a browser: the folder of evaluation.html and animation.html."""
    for script, *arguments in (["evaluate.py", "--points=10", "--n_prompts=4", "--max_tokens=60"],
                               ["sample.py", "The keeper", "--max_tokens=40", "--steps=12", "--remask=0.1", "--save_animation=out/animation.html"]):
        subprocess.run([sys.executable, ROOT / script, "--checkpoint=out/read.pt", "--device=cpu", *arguments], cwd=folder, check=True, capture_output=True, timeout=300)
    return folder / "out"


CONTRASTS = """() => {
    const light = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const paper = light(getComputedStyle(document.querySelector(".leaf")).backgroundColor);
    const contrast = colour => Math.max(light(colour) + 0.05, paper + 0.05) / Math.min(light(colour) + 0.05, paper + 0.05);
    const each = (what, key) => [...document.querySelectorAll(what)].map(e => getComputedStyle(e)[key]).filter(c => c.startsWith("rgb")).map(contrast);
    return [each("svg text", "fill"), [...each("svg path", "stroke"), ...each(".dots i", "color"), ...each("dd", "backgroundColor")]];
}"""


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("name", ["evaluation", "animation"])
def test_report_and_animation_are_of_one_kind_with_the_page(browser, beside, name, scheme):
    text = (beside / f"{name}.html").read_text(encoding="utf-8")
    before, css, own = text.partition((ROOT / "page.css").read_text(encoding="utf-8"))
    assert css and not re.search(r"prefers-color-scheme|\bfont: [^;]*px|Georgia", own)          # nothing that page.css says is said again
    with contextlib.closing(browser.new_context(color_scheme=scheme, reduced_motion="reduce", viewport={"width": 360, "height": 740}, offline=True)) as context:
        page = context.new_page()
        page.goto((beside / f"{name}.html").as_uri())
        if name == "animation":
            page.locator("#at").fill("6")
            assert page.locator("#text .mark").count() > 5 and page.locator("#text .new").count() and page.locator("#text").inner_text().startswith("The keeper")
        else:
            words, marks = page.evaluate(CONTRASTS)
            assert len(words) > 20 and min(words) >= 4.5 and len(marks) > 20 and min(marks) >= 3
        page.screenshot(path=SCREENSHOTS / f"{name}_{scheme}.png", full_page=True)
        assert page.locator("main").count() == 1 and page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.evaluate(AXE)
        assert page.evaluate(VIOLATIONS) == []


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
    assert saved["prompt"] == "He said: </script><b>"
    assert len(saved["steps"]) == 6 and saved["done"]["text"].startswith("He said: </script><b>") and saved["start"]["settings"]["steps"] == 6
    page.locator("#scrub").fill("3")
    half = text(page)
    with Image.open(save("#save-gif")) as gif:
        assert gif.format == "GIF" and gif.n_frames == 7 + 3 and gif.width == 840
    replay = save("#save-replay")
    with contextlib.closing(browser.new_context(offline=True)) as context:
        alone, wrong = context.new_page(), []
        alone.on("console", lambda message: wrong.append(message.text))
        alone.on("pageerror", lambda error: wrong.append(str(error)))
        alone.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or wrong.append(asked.url))
        alone.goto(replay.as_uri())
        finished(alone)
        assert re.sub(r"[\s¶◌]", "", text(alone)) == shown and not alone.locator("#generate").is_visible()
        for useless in ("#prompt", "#hint", "#save-gif", "#save-replay", "#settings", "#rest"):
            assert not alone.locator(useless).is_visible(), useless
        alone.locator("#text .settled:not(:empty, .break)").first.click()
        assert alone.locator("#pop .choice").count() and not alone.locator("#pop button").count()
        alone.keyboard.press("Escape")
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
    expect(page.locator("#hint-text")).to_have_text(re.compile("^Connection lost"))
    page.wait_for_timeout(6500)                                                              # longer than any toast
    assert page.locator("#hint-text").is_visible() and "Connection lost" in page.locator("#hint-text").text_content()
    assert text(page) == shown
    page.locator("#scrub").fill("2")
    assert step(page) == 2
    begun = time.monotonic()
    with serving(folder, "--checkpoint=out/read.pt", f"--port={url.rsplit(':', 1)[1]}"):
        expect(page.locator("#generate")).to_be_enabled(timeout=20000)
        expect(page.locator("#hint-text")).not_to_have_text(re.compile("Connection lost"))
        write(page, max_tokens=6, steps=2)
    page.close()
    assert time.monotonic() - begun < 30
