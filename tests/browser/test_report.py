"""The pages in a real Chromium: offline, from file://, with texts that try to run."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page

import segviz as sv
from tests.fakes.fake_run import HOSTILE, hostile_row, long_row, row, write_run

pytestmark = pytest.mark.browser

#: Labels over and under segments of which one lies on another.
OVERLAPS = """() => {
  const labels = [...document.querySelectorAll('.tag b, .tag i, .val, .flag')].map(e => e.getBoundingClientRect());
  let found = 0;
  labels.forEach((a, i) => labels.slice(i + 1).forEach(b => {
    const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    found += across > 1 && down > 2;
  }));
  return found;
}"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> sv.Run:
    return sv.open(write_run(tmp_path_factory.mktemp("runs") / "demo", extra=[hostile_row()]))


@pytest.fixture(scope="module")
def report(run):
    return sv.report(run)


def inspector(page: Page) -> dict[str, str]:
    """What the panel of numbers says: name -> value, the segment's after 'segment '."""
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll('.inspect section')].flatMap((s, i) =>
        [...s.querySelectorAll('dt')].map(dt => [(i ? 'segment ' : '') + dt.textContent, dt.nextSibling.textContent])
        .concat([[i ? 'segment' : 'token', s.querySelector('h3').textContent]])))"""
    )


def focused(page: Page) -> int:
    return int(page.evaluate("document.activeElement.dataset.t ?? -1"))


def test_the_question_and_its_answer_come_first(show, run):
    page = show(sv.ribbon(run.rollout(1, 0, 1)))
    assert page.locator("h2").first.inner_text() == "Which segment broke this solution?"
    verdict = page.locator(".verdict").inner_text()
    assert "was blamed most: −" in verdict and "first true error" in verdict
    badges = page.locator(".badges").inner_text()
    assert (
        "answer wrong" in badges
        and "perception wrong" in badges
        and "reasoning right" in badges
        and "finished" in badges
    )
    assert page.locator(".images img").evaluate("i => i.complete && i.naturalWidth") == 48


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (1440, 900)])
def test_a_completion_of_sixty_tokens_is_in_sight_on_opening(show, run, width, height):
    key = next(r for r in run.rollouts if r["step"] == 1 and r["tokens"] and 45 <= r["tokens"] <= 60)
    page = show(sv.ribbon(run.rollout(key["step"], key["group"], key["sample"])), width=width)
    page.set_viewport_size({"width": width, "height": height})
    bottoms = page.locator(".t").evaluate_all("ts => ts.map(t => t.getBoundingClientRect().bottom)")
    assert len(bottoms) == key["tokens"] and sum(y <= height for y in bottoms) == len(bottoms)


def test_the_tokens_are_the_text_and_every_segment_has_its_numbers(show, run):
    rollout = run.rollout(1, 0, 1)
    page = show(sv.ribbon(rollout))
    texts = page.locator(".t").evaluate_all("ts => ts.map(t => t.textContent)")
    assert [text.replace("↵\n", "\n").replace("↵", "\n") for text in texts] == rollout.pieces
    numbers = page.locator(".tag b").all_inner_texts()
    assert numbers == [str(m + 1) for m in range(len(rollout.segments))]
    for said, value in zip(page.locator(".tag i").all_inner_texts(), rollout.row["segment_advantage"], strict=True):
        assert said[0] == ("+" if value > 0 else "−")
    label = page.locator(".seg").nth(1).get_attribute("aria-label")
    assert label.startswith(f"Segment 2 of {len(rollout.segments)}, tokens 2 to ") and "entropy" in label


def test_the_first_error_is_marked_with_its_kind_and_reason(show, run):
    rollout = run.rollout(1, 0, 1)
    page = show(sv.ribbon(rollout))
    marked = page.locator(".t.err").evaluate_all("ts => ts.map(t => Number(t.dataset.t))")
    assert marked == list(range(rollout.row["error_start"], rollout.row["error_end"]))
    assert "wavy" in page.locator(".t.err").first.evaluate(
        "t => getComputedStyle(t).textDecorationLine + getComputedStyle(t).textDecorationStyle"
    )
    assert "first error perception: object" in page.locator(".flag").inner_text()


def test_hover_shows_the_tokens_numbers(show, run):
    rollout = run.rollout(1, 0, 1)
    page = show(sv.ribbon(rollout))
    page.locator('.t[data-t="20"]').hover()
    shown, item = inspector(page), rollout.row
    assert shown["token"].startswith("Token 21 ")
    for name, column in (
        ("entropy, nats", "entropy"),
        ("ratio", "ratio"),
        ("value before", "values"),
        ("log-prob.", "old_logprobs"),
    ):
        assert float(shown[name].replace("−", "-")) == pytest.approx(item[column][20], rel=0.01)
    assert float(shown["advantage"].replace("−", "-")) == pytest.approx(item["advantages"][20], rel=1e-3)
    assert shown["token id"] == str(item["token_ids"][20]) and shown["in the loss"] == "yes"
    assert shown["segment"].startswith(f"Segment {item['segment_ids'][20] + 1} ")
    assert "highest entropy" in page.locator(".inspect .rule").inner_text()


def test_the_keyboard_reaches_everything(show, run):
    rollout = run.rollout(1, 0, 1)
    starts = [a for a, _ in rollout.segments]
    page = show(sv.ribbon(rollout))
    page.locator('.t[data-t="0"]').click()
    page.keyboard.press("ArrowRight")
    assert focused(page) == 1
    page.keyboard.press("Shift+ArrowRight")
    assert focused(page) == starts[2]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowLeft")
    assert focused(page) == starts[2]
    page.keyboard.press("Shift+ArrowLeft")
    assert focused(page) == starts[1]
    page.keyboard.press("End")
    assert focused(page) == len(rollout.pieces) - 1
    page.keyboard.press("ArrowRight")
    assert focused(page) == len(rollout.pieces) - 1
    page.keyboard.press("ArrowUp")
    assert 0 < focused(page) < len(rollout.pieces) - 1
    page.keyboard.press("Home")
    assert focused(page) == 0
    page.keyboard.press("e")
    assert focused(page) == rollout.row["error_start"]
    page.keyboard.press("w")
    worst = min(range(len(starts)), key=lambda m: rollout.row["segment_advantage"][m])
    assert focused(page) == starts[worst] and inspector(page)["segment"].startswith(f"Segment {worst + 1} ")
    assert page.locator(".t[tabindex]").count() == 1
    assert "advantage" in page.evaluate("document.activeElement.getAttribute('aria-label')")


def test_tab_alone_reaches_a_token(show, run):
    page = show(sv.ribbon(run.rollout(1, 0, 1)))
    for _ in range(20):
        page.keyboard.press("Tab")
        if focused(page) >= 0:
            break
    assert focused(page) >= 0


def test_layers_switch_by_key_and_by_button(show, run):
    page = show(sv.ribbon(run.rollout(1, 0, 1)))
    colour = "t => getComputedStyle(t).backgroundColor"
    token = page.locator('.t[data-t="0"]')
    before = token.evaluate(colour)
    page.get_by_role("button", name="Entropy").click()
    assert token.evaluate(colour) != before and "nats" in page.locator(".legend").inner_text()
    token.click()
    page.keyboard.press("7")
    assert page.locator("article").get_attribute("data-layer") == "role"
    assert "perception" in page.locator(".legend").inner_text() and token.get_attribute("data-r") == "perception"
    page.keyboard.press("1")
    assert token.evaluate(colour) == before
    assert (
        page.locator("button[aria-pressed=true]").all_inner_texts() == ["1\nAdvantage"]
        or page.locator("button[aria-pressed=true]").count() == 1
    )


def test_sign_shows_without_colour_and_untrained_is_hatched(show):
    item = row(pieces=["up", "down", "off", "nil"]) | {
        "advantages": [1.0, -1.0, None, 0.0], "segment_start": [0, 1, 2, 3], "segment_end": [1, 2, 3, 4],
        "segment_ids": [0, 1, 2, 3], "segment_advantage": [1.0, -1.0, None, 0.0], "segment_value": None,
        "segment_stderr": None, "segment_rule": None,
    }  # fmt: skip
    page = show(sv.ribbon(item))
    shadow, image = (
        page.locator(".t").evaluate_all(f"ts => ts.map(t => getComputedStyle(t).{name})")
        for name in ("boxShadow", "backgroundImage")
    )
    assert " 0px 4px 0px" in shadow[0] and " 0px -4px 0px" in shadow[1] and shadow[2] == shadow[3] == "none"
    assert [("gradient" in i) for i in image] == [False, False, True, False]
    assert page.locator(".tag i").all_inner_texts() == ["+1.00", "−1.00", "–", "0"]
    assert page.locator(".t").nth(3).get_attribute("data-l") == "z"


def test_layers_that_were_not_measured_are_off(show):
    page = show(sv.ribbon(row(text="<think> 1 </think>", method="grpo", reward=1.0)))
    value = page.locator('button[data-layer="value"]')
    assert value.is_disabled() and value.get_attribute("title") == "not recorded"
    assert "No values are recorded: GRPO" in page.locator(".stairs").inner_text()
    assert inspector(page)["value before"] == "not recorded"


def test_the_staircase_follows_the_token_and_leads_to_it(show, run):
    page = show(sv.ribbon(run.rollout(1, 0, 1)))
    x = "document.querySelector('.stairs .cursor').getAttribute('x1')"
    page.locator('.t[data-t="3"]').hover()
    early = float(page.evaluate(x))
    page.locator('.t[data-t="40"]').hover()
    assert float(page.evaluate(x)) > early
    page.locator(".stairs svg").click(position={"x": 300, "y": 60})
    assert focused(page) > 5


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 800, 390])
def test_the_report_fits_every_width_in_light_and_dark(show, report, width, scheme):
    page = show(report, width, scheme)
    page.wait_for_selector(".board .plot .curve", state="attached")
    page.wait_for_selector(".stairs svg")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(251, 250, 248)") == (scheme == "light")
    # no label over a segment may lie on another
    overlaps = page.evaluate(OVERLAPS)
    assert overlaps == 0


def test_the_gallery_switches_rollouts_and_keeps_the_layer(show, report):
    page = show(report)
    page.locator(".stage .layers button").nth(2).click()
    first = page.locator(".stage .eyebrow").inner_text()
    page.get_by_role("button", name="Step 21, Right but ungrounded").click()
    page.wait_for_function("t => document.querySelector('.stage .eyebrow').innerText !== t", arg=first)
    assert page.locator(".caption").inner_text().startswith("Step 21, right but ungrounded.")
    assert page.locator(".stage article").get_attribute("data-layer") == "entropy"
    assert page.locator(".picker button[aria-pressed=true]").count() == 1
    assert "SAPO (segment-aligned)" in page.locator("h1").inner_text()


def test_a_step_of_the_curves_leads_to_its_rollouts(show, report):
    page = show(report)
    chart = page.locator(".chart svg[tabindex]").first
    chart.focus()
    chart.press("Enter")
    item = page.locator(".bo-step li button").first
    words = item.inner_text()
    item.press("Enter")
    page.wait_for_function(
        "words => document.querySelector('.stage .eyebrow').innerText.includes(words)", arg=words.replace(", ", " · ")
    )
    assert page.locator(".stage .t").count() > 3


def test_the_crosshair_tells_every_line(show, report, run):
    page = show(report)
    page.wait_for_selector(".board .plot .curve", state="attached")
    chart = page.locator(".chart").first
    chart.locator(".plot svg").focus()
    page.keyboard.press("ArrowLeft")
    step = run.metrics["eval/answer"].steps[-2]
    assert f"at step {step}" in chart.inner_text()
    readings = chart.locator(".lines b").all_inner_texts()
    for said, name in zip(readings, ("answer", "perception", "grounded"), strict=True):
        assert float(said.split()[0]) == pytest.approx(100 * run.metrics[f"eval/{name}"].values[-2], abs=0.06)
    dashes = chart.locator(".plot .curve").evaluate_all("ps => ps.map(p => p.getAttribute('stroke-dasharray'))")
    assert len(set(dashes)) == 3


def test_runs_are_laid_over_each_other(show, tmp_path):
    runs = [
        sv.open(write_run(tmp_path / f"{method}{seed}", method, seed=seed, steps=12, rollouts=False))
        for method in ("sapo", "grpo")
        for seed in (0, 1)
    ]
    page = show(sv.board(runs))
    page.wait_for_selector(".board .plot .band", state="attached")
    assert page.locator(".chart").first.locator(".panelname").all_inner_texts() == ["answer", "perception", "grounded"]
    assert "GRPO" in page.locator(".chart").first.inner_text()
    page.locator("details summary").click()
    page.locator("details .chart .plot svg").first.wait_for()


def test_hostile_texts_do_nothing(show, run, tmp_path):
    page = show(sv.report(run, tmp_path / "hostile.html", rollouts=[(1, 90, 0)]))
    assert page.evaluate("window.hacked") is None
    texts = page.locator(".t").evaluate_all("ts => ts.map(t => t.textContent)")
    assert HOSTILE[0] in texts and HOSTILE[1] in texts and HOSTILE[2] in texts and HOSTILE[4] in texts
    assert "⟨202E⟩right to left" in texts[6]
    assert texts[14].endswith("characters") and len(texts[14]) < 300
    assert page.locator(".t[data-t='12']").inner_text().startswith("⟨2028⟩⟨2029⟩⟨00⟩⟨07⟩")
    for token in range(0, 20, 3):
        page.locator(f".t[data-t='{token}']").click()
    for key in "12345678":
        page.keyboard.press(key)
    assert page.evaluate("document.querySelectorAll('script').length") == 2
    assert page.evaluate("document.querySelectorAll('img, iframe, object, link, base').length") == 0
    assert page.locator(".missing").inner_text() == "image missing"
    assert page.evaluate("window.hacked") is None


def test_the_static_fallback_is_inert(show, browser, tmp_path):
    path = tmp_path / "static.html"
    path.write_text(
        f"<!doctype html><meta charset=utf-8><div id=segviz>{sv.ribbon(hostile_row())._repr_html_()}</div>",
        encoding="utf-8",
    )
    page = show(path)
    assert page.evaluate("window.hacked") is None
    assert page.locator("script, img:not([src^='data:image/'])").count() == 0
    assert HOSTILE[0] in page.locator("#segviz").text_content()


def test_a_rollout_of_32768_tokens_stays_light(show):
    page = show(sv.ribbon(long_row(32_768)))
    page.wait_for_selector(".t")
    page.wait_for_timeout(200)
    count = "document.querySelectorAll('.t').length"
    assert 200 < page.evaluate(count) < 3000
    page.evaluate("scrollTo(0, document.querySelector('.stream').scrollHeight / 2)")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.t')].some(t => t.dataset.t > 12000 && t.dataset.t < 22000)"
    )
    page.wait_for_timeout(200)
    assert page.evaluate(count) < 3000
    page.evaluate("scrollTo(0, 0)")
    page.locator('.t[data-t="0"]').click()
    page.keyboard.press("e")
    assert focused(page) == 16_384
    page.keyboard.press("End")
    assert focused(page) == 32_767
    # what is not drawn as tokens is still text, so that the browser's search finds it
    assert page.evaluate("[...document.querySelectorAll('.block')].every(b => b.textContent.length > 100)")


@pytest.mark.parametrize(
    "item",
    [
        row(pieces=[], text=""),
        row(pieces=["x"], text="x", finished=False, reward=None),
        {"text": "no tokens\nrecorded"},
        row(text="<think> 1 </think>") | {"advantages": None, "segment_advantage": None},
        row(text="<think> 1 </think>") | {"advantages": [0.0] * 4, "segment_advantage": None},
        row(pieces=["a", ""], values=[None, float("inf")], segment_value=None),
    ],
)
def test_odd_rollouts_are_drawn(show, item):
    page = show(sv.ribbon(item))
    assert page.locator(".verdict").inner_text()
    if page.locator(".t").count():
        page.locator(".t").first.click()
        for key in ("ArrowRight", "ArrowDown", "End", "3", "8"):
            page.keyboard.press(key)


def test_an_empty_run_is_shown_for_what_it_is(show, tmp_path):
    from segpo_core.record.store import Recorder

    Recorder(tmp_path / "new").start({"method": "rloo"})
    page = show(sv.report(sv.open(tmp_path / "new")))
    text = page.locator("#segviz").inner_text()
    assert "No metrics are recorded yet." in text and "No rollouts are recorded yet." in text and "RLOO" in text


def test_a_probability_that_only_rounds_to_one_is_not_called_certain(show):
    page = show(sv.ribbon(row(pieces=["a", "b"], sampled_logprobs=[-0.0004, 0.0], old_logprobs=[-0.0004, 0.0])))
    page.locator(".t").nth(0).click()
    assert inspector(page)["probability"] == "> 0.9995"
    page.locator(".t").nth(1).click()
    assert inspector(page)["probability"] == "1"
