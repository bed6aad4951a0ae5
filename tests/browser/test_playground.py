"""The playground in a real Chromium: a real policy, asked by pointer and by keyboard; hostile words stay words."""

from __future__ import annotations

import io
import json
import re
import shutil

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.app.served import serving
from tests.app.test_playground import trained

pytestmark = pytest.mark.browser

EVIL = "evil ${window.hacked=1}{{7*7}}<img src=x onerror=window.hacked=1>"
#: What the hostile checkpoint's tokenizer writes for "triangle", "square", "circle". No spaces: it has other letters.
WRITTEN = {
    "triangle": "</script><script>window.hacked=1</script>",
    "square": "<img/src=x/onerror=window.hacked=1>",
    "circle": "${window.hacked=1}{{7*7}}",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A real run, and one with a hostile name whose tokenizer writes hostile words."""
    folder = trained(tmp_path_factory.mktemp("play") / "runs")
    shutil.copytree(folder / "mine", folder / EVIL)
    tokenizer = next((folder / EVIL / "checkpoints").iterdir()) / "tokenizer.json"
    told = json.loads(tokenizer.read_text())
    swaps = [{"type": "Replace", "pattern": {"String": word}, "content": text} for word, text in WRITTEN.items()]
    told["decoder"] = {"type": "Sequence", "decoders": [*swaps, told["decoder"]]}
    tokenizer.write_text(json.dumps(told))
    return folder


@pytest.fixture(scope="module")
def app(runs):
    with serving(runs) as (address, _):
        yield f"http://{address}/?tab=playground"


def ready(page: Page):
    """The tab with its first problem."""
    panel = page.locator("segpo-playground")
    expect(panel.get_by_label("Question", exact=True)).to_have_value(re.compile(r"\w"), timeout=30_000)
    return panel


def asked(panel):
    panel.get_by_role("button", name="Ask", exact=True).click()
    expect(panel.locator(".results h2").first).to_be_visible(timeout=90_000)
    return panel.locator(".answer")


def frame(page: Page, where: str = ".results > .framed"):
    return page.frame_locator(f"segpo-playground {where} iframe.view")


def harmless(place):
    """Whether no text of a frame became more than text."""
    return place.locator("body").evaluate(
        "() => window.hacked === undefined && !document.querySelector('img[onerror], #segviz script')"
    )


def alt_of(panel):
    return panel.locator(".grid9 .cell").evaluate_all("cells => cells.map((el) => el.ariaLabel)")


def test_a_drawn_scene_is_asked_and_probed(visit, app):
    page = visit(app)
    panel = ready(page)
    panel.get_by_label("Model").select_option(label="mine · SAPO (segment-aligned) · step 1")
    answers = asked(panel)
    expect(answers).to_have_count(4)
    expect(panel.locator(".results > .quiet").first).to_have_text(
        re.compile(r"^The answer is \S+: \d of 4 right\. Temperature 1\.$")
    )
    expect(answers.first).to_contain_text(re.compile(r"answer . (right|wrong) · reward [01] · \d+ tokens · entropy"))
    inside = frame(page)
    expect(inside.locator("button[data-layer]", has_text="Entropy")).to_be_enabled()
    expect(inside.locator("button[data-layer]", has_text="Value")).to_be_enabled()
    expect(inside.locator("button[data-layer]", has_text="Advantage")).to_be_disabled()
    answers.nth(2).click()
    expect(inside.locator(".eyebrow")).to_contain_text("completion 3 · mine, step 1")
    # the page begins at the first true error, if there is one; a token that is pressed chooses its segment
    expect(inside.locator(".seg.on")).to_have_attribute(
        "data-s", panel.get_by_label("Segment", exact=True).input_value()
    )
    chosen = inside.locator(".seg[data-s='3'] .t").first
    chosen.click()
    expect(panel.get_by_label("Segment", exact=True)).to_have_value("3")
    panel.get_by_label("Continuations of each side").fill("3")
    chosen.press("Enter")
    expect(panel.locator(".after h2")).to_have_text(
        "Completion 3, written on from before and after segment 4", timeout=60_000
    )
    below = frame(page, ".after > .framed")
    expect(below.locator("h2")).to_have_text("Is this segment causal?")
    expect(below.locator(".cf-lists")).to_contain_text("3 continuations")
    # the picture is spoiled
    panel.get_by_label("How to spoil the picture").select_option("shuffle")
    panel.get_by_role("button", name="See which move").click()
    expect(panel.locator(".after h2")).to_have_text("Completion 3, its picture spoiled: shuffle", timeout=60_000)
    tokens = inside.locator(".stream .t").count()
    expect(panel.locator(".moved .stream .t")).to_have_count(tokens)
    expect(panel.locator(".moved .most li").first).to_contain_text(re.compile(r"[+−]\d+\.\d+ nats token \d+"))
    expect(below.locator("h2")).to_have_text("Which tokens come from looking?")
    expect(below.locator(".ro-picture img")).to_have_count(2)


def test_the_keyboard_alone_draws_asks_and_writes_on(visit, app):
    page = visit(app)
    panel = ready(page)
    panel.get_by_role("button", name="Clear").press("Enter")
    assert all(label.endswith(": empty") for label in alt_of(panel))
    panel.locator(".grid9 .cell[tabindex='0']").focus()
    page.keyboard.press("Enter")
    assert "center: large red circle" in alt_of(panel)
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")  # the shape becomes a square
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    assert {"topleft: large red square", "center: large red circle"} <= set(alt_of(panel))
    expect(panel.locator(".scene [role=status]")).to_have_text("topleft: large red square")
    page.keyboard.press("Delete")
    assert "topleft: empty" in alt_of(panel)
    panel.get_by_label("Question of the task").select_option("How many circles are there?")
    expect(panel.get_by_label("Question", exact=True)).to_have_value("How many circles are there?")
    panel.get_by_role("spinbutton", name="Completions").fill("2")
    page.keyboard.press("Enter")
    expect(panel.locator(".results > .quiet").first).to_contain_text("The answer is 1", timeout=90_000)
    # through the list of completions into the frame
    panel.locator(".answer").nth(1).focus()
    page.keyboard.press("Enter")
    inside = frame(page)
    expect(inside.locator(".eyebrow")).to_contain_text("completion 2")
    for _ in range(40):
        page.keyboard.press("Tab")
        if inside.locator(".t:focus").count():
            break
    page.keyboard.press("Home")
    page.keyboard.press("Shift+ArrowRight")
    expect(panel.get_by_label("Segment", exact=True)).to_have_value("1")
    page.keyboard.press("Enter")
    expect(panel.locator(".after h2")).to_be_focused(timeout=60_000)
    expect(panel.locator(".after h2")).to_contain_text("Completion 2, written on from before and after segment 2")


def test_it_is_cancelled_from_the_page(visit, app):
    page = visit(app)
    panel = ready(page)
    asked(panel)  # the model is there: what follows is all writing
    panel.get_by_label("Temperature").fill("2")
    panel.get_by_role("spinbutton", name="Completions").fill("16")
    panel.get_by_label("Model").select_option(label="tiny-vlm · before any training")
    panel.get_by_role("button", name="Ask", exact=True).click()
    expect(panel.get_by_role("progressbar")).to_be_visible()
    expect(panel.get_by_role("button", name="Ask", exact=True)).to_be_disabled()
    panel.get_by_role("button", name="Cancel").click()
    expect(panel.locator(".working [role=status]")).to_contain_text("Cancelled.", timeout=60_000)
    expect(panel.get_by_role("button", name="Ask", exact=True)).to_be_enabled()
    expect(panel.get_by_role("button", name="Cancel")).to_be_hidden()


def test_a_picture_is_uploaded_and_what_is_wrong_is_said(visit, app):
    page = visit(app, quiet=False)  # refusals are errors in the console
    panel = ready(page)
    trouble = panel.get_by_role("alert")
    panel.get_by_role("button", name="Clear").click()
    panel.get_by_role("button", name="Ask", exact=True).click()
    expect(trouble).to_contain_text("The scene is empty; place at least one shape")
    panel.get_by_role("button", name="Upload a picture").click()
    panel.get_by_role("button", name="Ask", exact=True).click()
    expect(trouble).to_contain_text("No picture is uploaded yet")
    choose = panel.get_by_label("Picture to upload")
    choose.set_input_files({"name": "big.png", "mimeType": "image/png", "buffer": bytes(8 * 2**20 + 1)})
    expect(panel.locator(".uploaded [role=alert]")).to_contain_text("larger than 8 MB")
    choose.set_input_files({"name": "x.png", "mimeType": "image/png", "buffer": b"<svg onload=window.hacked=1>"})
    expect(panel.locator(".uploaded [role=alert]")).to_contain_text("no picture that can be read")
    sink = io.BytesIO()
    Image.new("RGB", (120, 80), "red").save(sink, format="PNG")
    choose.set_input_files({"name": "red.png", "mimeType": "image/png", "buffer": sink.getvalue()})
    image = panel.get_by_role("img", name="Uploaded picture, 120 by 80 pixels")
    expect(image).to_be_visible()
    assert image.evaluate("i => i.decode().then(() => i.naturalWidth)") == 120
    panel.get_by_label("Question", exact=True).fill("   ")
    panel.get_by_role("button", name="Ask", exact=True).click()
    expect(trouble).to_contain_text("The question is empty")
    panel.get_by_label("Question", exact=True).fill("What is this?")
    expect(panel.get_by_label("Question of the task")).to_have_value("")
    asked(panel)
    expect(panel.locator(".results > .quiet").first).to_contain_text("Nothing says what is right.")
    expect(panel.locator(".answer").first).to_contain_text("no reward")


def test_hostile_words_of_name_question_and_model_do_nothing(visit, app):
    page = visit(app)
    panel = ready(page)
    label = panel.get_by_label("Model").locator("option", has_text="evil").inner_text()
    assert label.startswith(EVIL)
    panel.get_by_label("Model").select_option(label=label)
    panel.get_by_label("Temperature").fill("0")
    answers = asked(panel)
    expect(panel.locator(".results h2").first).to_have_text(f"1 completion of {EVIL}, step 1")
    expect(answers.first.locator(".text")).to_contain_text("window.hacked=1")
    inside = frame(page)
    expect(inside.locator(".t", has_text="window.hacked=1").first).to_be_visible()
    panel.get_by_role("button", name="Write on", exact=True).click()
    below = frame(page, ".after > .framed")
    expect(below.locator(".cf-segment")).to_contain_text("window.hacked=1", timeout=60_000)
    panel.get_by_role("button", name="See which move").click()
    expect(panel.locator(".moved .stream")).to_contain_text("window.hacked=1", timeout=60_000)
    expect(below.locator("h2")).to_have_text("Which tokens come from looking?")
    assert harmless(inside) and harmless(below)
    question = "How many? </textarea><img src=x onerror=window.hacked=1>{{7*7}}${window.hacked=1}"
    panel.get_by_label("Question", exact=True).fill(question)
    panel.get_by_role("button", name="Ask", exact=True).click()
    expect(inside.locator(".ask")).to_contain_text(question, timeout=60_000)
    assert harmless(inside)
    assert page.evaluate("window.hacked ?? null") is None
    found = "el => el.shadowRoot.querySelectorAll('script, img:not(.pixels)').length"
    assert page.locator("segpo-playground").evaluate(found) == 0


def test_messages_from_strangers_choose_nothing(visit, app):
    page = visit(app)
    panel = ready(page)
    asked(panel)
    frame(page).locator(".t").first.wait_for()
    before = panel.get_by_label("Segment", exact=True).input_value()
    other = "0" if before != "0" else "1"
    page.evaluate(f"postMessage({{ segviz: 'select', segment: {other} }}, '*')")
    page.evaluate("postMessage({ segviz: 'enter' }, '*')")
    frame(page).locator("body").evaluate("() => parent.postMessage({ segviz: 'select', segment: '<img>' }, '*')")
    page.wait_for_timeout(300)
    expect(panel.get_by_label("Segment", exact=True)).to_have_value(before)
    expect(panel.locator(".after h2")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 1024, 390])
def test_it_fits_every_width_in_light_and_dark(visit, app, width, scheme):
    page = visit(app, width, scheme)
    panel = ready(page)
    asked(panel)
    expect(frame(page).locator(".t").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = "el => [...el.shadowRoot.querySelectorAll('.play *')].filter((e) => e.getClientRects().length"
    wide += " && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.className)"
    assert page.locator("segpo-playground").evaluate(wide) == []
    ground = frame(page).locator("body").evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(251, 250, 248)") == (scheme == "light")
