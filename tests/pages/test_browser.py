"""The pages in headless Chromium: what is drawn, clicked and pressed."""

import json
import math

import numpy as np
import pytest

from gpt2.pages.inspection import inspect
from gpt2.pages.run_page import report
from tests.support.browser import Browser
from tests.support.pages import CONFIG, save_model

pytestmark = pytest.mark.slow
# Its bytes are its tokens: a tag that ends an element, a line break, control characters, a divided character.
TEXT = 'a</script><i>"\n\x1b\u202e\u00e9 speak'
TOKENS = len(TEXT.encode())
PHONE = 360
OURS = "runs/ours.bin"
OTHER = "runs/other_model_with_a_name_that_is_longer_than_a_phone_is_wide.bin"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A dict of name -> path: "one" and "two" models inspected, the "report" of a run."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "runs").mkdir()
        save_model(OURS)
        save_model(OTHER, seed=2)
        norms = {"wte": [0.5], "qkvw": [1.0, 0.1]}
        for step in range(1, 41):
            record = {"step": step, "train_loss": 5 / step, "grad_norm": 1.0, "lr": 1e-3, "gradients_ms": 90.0}
            record |= {"update_ms": 10.0, "tokens_per_s": 1000.0}
            if step % 10 == 0:
                record |= {"val_loss": 6 / step, "sample": f"</pre><i>{step}", "norms": norms}
            with open("metrics.jsonl", "a") as file:
                file.write(json.dumps(record) + "\n")
        found = {"one": inspect(OURS, TEXT), "two": inspect(OURS, TEXT, OTHER), "report": report(".")}
        for name, (page, *_) in found.items():
            (folder / f"{name}.html").write_bytes(page)
    return {name: folder / f"{name}.html" for name in found}


@pytest.fixture
def shown(browser, pages):
    """Returns a function that opens one of the pages; in the end none may have reported an error."""

    def show(name, **window):
        browser.open(pages[name], **window)
        if name != "report":
            browser.wait("document.querySelectorAll('[data-shown=\"0.0\"]').length > 0")
        return browser

    yield show
    assert browser.errors == []


def text(browser, selector):
    return browser.evaluate(f"document.querySelector({json.dumps(selector)}).textContent")


def sliders(browser):
    """The values of the sliders of token, layer and head, from 1 on."""
    return browser.evaluate("Array.from(document.querySelectorAll('.controls input'), (node) => Number(node.value))")


def test_a_text_is_shown_as_it_is(shown):
    browser = shown("one")
    signs = TEXT.replace("\n", "↵").replace("\x1b", "␛").replace("\u202e", "E280AE").replace("\u00e9", "C3A9")
    assert text(browser, ".tokens") == signs + "next"
    assert browser.evaluate("document.querySelectorAll('.tokens i, .tokens script').length") == 0
    assert browser.evaluate("document.querySelectorAll('.tokens br').length") == 1


def test_a_click_on_a_token_selects_it(shown):
    browser = shown("one")
    browser.click(f"#token-0-{TOKENS - 1}")
    assert sliders(browser) == [TOKENS, 1, 1]
    assert "“k” (id 107): probability" in text(browser, "section[aria-label='Selected token']")
    assert browser.evaluate("document.querySelectorAll('.guesses tr').length") == 5
    browser.click(f"#token-0-{TOKENS}")
    assert "After the text" in text(browser, "section[aria-label='Selected token']")
    browser.click("#token-0-0")
    assert "nothing predicts" in text(browser, "section[aria-label='Selected token']")


def test_arrow_keys_go_through_tokens_layers_and_heads(shown):
    browser = shown("one")
    browser.evaluate("document.querySelector('.tokens').focus()")
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowDown", "ArrowDown", "ArrowUp"):
        browser.press(key)
    browser.press("ArrowRight", shift=True)
    assert sliders(browser) == [3, 2, 2]
    assert browser.evaluate("document.querySelector('.tokens').getAttribute('aria-activedescendant')") == "token-0-2"
    browser.press("Home")
    browser.press("ArrowLeft")
    assert sliders(browser) == [1, 2, 2]
    browser.press("End")
    browser.press("ArrowRight")
    assert sliders(browser) == [TOKENS + 1, 2, 2]
    for _ in range(5):
        browser.press("ArrowDown")
    assert sliders(browser) == [TOKENS + 1, CONFIG.L, 2]


def test_the_focus_is_visible_at_every_stop(shown):
    browser = shown("one")
    stops = set()
    for _ in range(12):
        browser.press("Tab")
        name, style = browser.evaluate(
            "[document.activeElement.getAttribute('aria-label') || document.activeElement.tagName, "
            "getComputedStyle(document.activeElement).outlineStyle]"
        )
        assert style != "none" or name == "BODY", name
        stops.add(name)
    assert {"Token", "Layer", "Head", f"Text, read by {OURS}"} <= stops


def test_the_matrix_shows_the_probabilities_of_the_head(shown, pages):
    browser = shown("one")
    model = save_model(pages["one"].with_name("again.bin"))
    attention = model.attention(np.frombuffer(TEXT.encode(), np.uint8)[None].astype(int), 2)[0, 1]
    heads = "section[aria-label=Attention] canvas[aria-label^=Heads]"
    browser.click(heads, x=0.75, y=5 / 6)  # the last of three layers, the second of two heads
    browser.wait("document.querySelectorAll('[data-shown=\"2.1\"]').length > 0")
    assert sliders(browser) == [2, 3, 2]
    matrix = "section[aria-label=Attention] canvas[aria-label^='Attention matrix']"
    # The first token looks at itself alone, and none looks ahead.
    assert pixel(browser, matrix, 0, 0) == colour(browser, "--ramp-high")
    assert pixel(browser, matrix, 0, TOKENS - 1) == colour(browser, "--paper")
    for query, key in ((20, 3), (20, 20), (7, 0)):
        browser.click(matrix, x=(key + 0.5) / TOKENS, y=(query + 0.5) / TOKENS)
        browser.wait(f"document.querySelector('.controls input').value === '{query + 1}'")
        browser.wait("document.querySelector('[data-shown] .readout').textContent.includes('looks at')")
        said = text(browser, "[data-shown] .readout").rpartition(": ")[2]
        assert float(said.strip("<% ")) == pytest.approx(100 * attention[query, key], rel=0.06, abs=0.01)
    browser.press("ArrowDown")
    browser.wait("document.querySelector('.controls input').value === '9'")


def pixel(browser, selector, row, column):
    """The colour in the middle of a cell of a canvas of TOKENS x TOKENS cells, as a style sheet writes it."""
    place = ", ".join(f"(node.{side} * {i + 0.5}) / {TOKENS}" for side, i in (("width", column), ("height", row)))
    node = f"const node = document.querySelector({json.dumps(selector)})"
    data = browser.evaluate(
        f"(() => {{ {node}; return Array.from(node.getContext('2d').getImageData({place}, 1, 1).data); }})()"
    )
    return "#" + bytes(data[:3]).hex()


def colour(browser, name):
    return browser.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('{name}').trim()")


def test_lines_lead_to_the_tokens_looked_at(shown):
    browser = shown("one")
    browser.click(".lines .from:nth-child(6)")
    browser.wait("document.querySelectorAll('.lines line').length > 1")
    assert sliders(browser)[0] == 6
    few = browser.evaluate("document.querySelectorAll('.lines line').length")
    assert few <= 6
    browser.click("section[aria-label=Attention] input[type=checkbox]")
    browser.wait(f"document.querySelectorAll('.lines line').length > {few}")
    browser.evaluate("document.querySelector('.lines').focus()")
    browser.press("ArrowUp")
    assert sliders(browser)[0] == 5


def test_the_logit_lens_has_a_row_for_each_layer(shown):
    browser = shown("one")
    assert browser.evaluate("document.querySelectorAll('.lens tbody tr').length") == CONFIG.L + 1
    browser.click(".lens tbody tr:nth-child(3)")
    assert sliders(browser)[1] == 2
    assert text(browser, ".lens tr.selected th") == "layer 2"


def test_two_models_side_by_side_share_the_selection(shown):
    browser = shown("two", width=1400)
    tops = browser.evaluate("Array.from(document.querySelectorAll('.tokens'), (n) => n.getBoundingClientRect().top)")
    assert tops[0] == tops[1]
    assert browser.evaluate(
        "Array.from(document.querySelectorAll('#page section:first-of-type h3'), (node) => node.textContent)"
    ) == [name.removeprefix("runs/") for name in (OURS, OTHER)]
    browser.click("#token-1-4")
    selected = "Array.from(document.querySelectorAll('.tokens .selected'), (node) => node.id)"
    assert browser.evaluate(selected) == ["token-0-4", "token-1-4"]
    colour = "getComputedStyle(document.querySelector('#token-0-4')).backgroundColor"
    before = browser.evaluate(colour)
    browser.click("input[value=difference]")
    assert browser.evaluate(colour) != before


@pytest.mark.parametrize("name", ["one", "two", "report"])
@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_it_all_without_scrolling_sideways(shown, name, dark):
    browser = shown(name, width=PHONE, dark=dark)
    assert browser.evaluate("document.documentElement.scrollWidth") == PHONE
    paper, ink = browser.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert (brightness(paper) < brightness(ink)) == dark


def brightness(colour):
    return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(", ")))


def test_the_report_draws_its_curves_along_each_axis(shown):
    browser = shown("report")
    browser.wait("document.querySelectorAll('.chart').length === 5")
    assert browser.evaluate("document.querySelectorAll('.chart path.curve').length") == 7
    ends = "document.querySelector('section[aria-label=Loss] svg').focus()"
    for axis, end in (("steps", "step 40"), ("tokens", "tokens 4,000"), ("hours", "hours 0.001111")):
        browser.click(f"input[value={axis}]")
        browser.evaluate(ends)
        browser.press("End")
        said = text(browser, "section[aria-label=Loss] .readout")
        assert said == f"{end} · training 0.125 · validation 0.15"
    path = "document.querySelector('section[aria-label=Loss] path').getAttribute('d')"
    before = browser.evaluate(path)
    browser.click("input[type=checkbox]")
    after = browser.evaluate(path)
    assert before != after
    heights = [float(point.split()[1]) for point in after[1:].split("L")]
    # On a log scale the losses 5 / step fall by the same amount from 1 to 10 as from 4 to 40.
    assert math.isclose(heights[9] - heights[0], heights[39] - heights[3], abs_tol=0.3)


def test_the_report_shows_samples_and_norms(shown):
    browser = shown("report")
    assert text(browser, "pre.sample") == "</pre><i>40"
    browser.evaluate("document.querySelector('input[aria-label=Sample]').focus()")
    browser.press("ArrowLeft")
    assert text(browser, "pre.sample") == "</pre><i>30"
    browser.evaluate("document.querySelector('canvas[aria-label*=qkvw]').focus()")
    browser.press("ArrowDown")
    readout = "document.querySelector('canvas[aria-label*=qkvw]').parentNode.querySelector('.readout').textContent"
    assert browser.evaluate(readout) == "step 40, layer 2: 0.1"
