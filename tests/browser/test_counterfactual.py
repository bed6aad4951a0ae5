"""The counterfactual in a real Chromium: offline, with the keyboard, with texts that try to run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from playwright.sync_api import Page

import segviz as sv
from segviz.views.counterfactual import QUESTION, _fallback, counterfactual_data
from tests.fakes.fake_run import HOSTILE

pytestmark = pytest.mark.browser

IDS = list(range(10, 20))
PIECES = [f" t{i}" for i in IDS]


def rollout(pieces=PIECES, **columns) -> sv.Rollout:
    row = {"step": 5, "group": 1, "sample": 2, "method": "sapo", "token_ids": IDS, "pieces": pieces, "reward": 1.0,
           "text": "".join(pieces), "segment_start": [0, 3, 6], "segment_end": [3, 6, 10],
           "segment_advantage": [0.1, -0.5, 0.2]}  # fmt: skip
    return sv.Rollout(row | columns)


def drawn(ids, reward, pieces=None, finished=True) -> SimpleNamespace:
    return SimpleNamespace(token_ids=ids, pieces=pieces or [f" t{i}" for i in ids], reward=reward, finished=finished)


def view_of(before, after, asked=None, segment: int = 1, **more) -> sv.View:
    data = counterfactual_data(before, after, asked or rollout(), segment, "Continuations by a policy.", **more)
    return sv.View("counterfactual", QUESTION, data, _fallback(data))


@pytest.fixture
def sabotaged():
    """Twelve of sixteen succeed from before the segment, two of sixteen from after it; all are different texts."""
    before = [drawn([13, 100 + n, 7], float(n < 12)) for n in range(16)]
    return view_of(before, [drawn([16, 200 + n, 7], float(n < 2)) for n in range(15)] + [drawn([300], None)])


def headers(page: Page, side: str) -> list[str]:
    section = page.get_by_role("region", name=f"Continuations {side} the segment")
    return [" ".join(text.split()) for text in section.locator("ol button").all_inner_texts()]


def test_the_question_its_answer_and_the_numbers(show, sabotaged):
    page = show(sabotaged)
    assert page.locator("h2").inner_text() == QUESTION
    assert page.locator(".verdict").inner_text().startswith("Causal beyond noise: it lowers the chance of success by")
    assert "a policy" in page.locator(".cf-who").inner_text()
    figures = [text.replace("\n", " ") for text in page.locator(".cf-figure").all_inner_texts()]
    assert figures == ["75 %", "13 %", "−62 points"]
    told = page.locator(".cf-name .quiet").all_inner_texts()
    assert told[0] == "12 of 16, 95 % interval 51 % to 90 %" and told[1].startswith("2 of 15, 95 % interval 4 %")
    assert "beyond noise" in told[2]
    assert page.locator(".cf-segment mark").inner_text() == " t13 t14 t15"
    assert "Segment 2 of 3" in page.locator(".cf-segment h3").inner_text()
    assert "tokens 4 to 6, credit −0.50" in page.locator(".cf-segment h3").inner_text()


def test_each_outcome_is_a_shape_of_its_own(show, sabotaged):
    page = show(sabotaged)
    for side, yes, no, none in (("before", 12, 4, 0), ("after", 2, 13, 1)):
        svg = page.locator(f'[data-side="{side}"] svg')
        assert svg.locator("circle.cf-mark").count() == yes and svg.locator("rect.cf-mark").count() == no
        assert svg.locator("path.cf-mark").count() == none and svg.locator(".cf-whisker").count() == 1
        assert "95 % interval" in svg.get_attribute("aria-label") and svg.get_attribute("role") == "img"
    dot = page.locator('[data-side="before"] .cf-dot').bounding_box()
    axis = page.locator('[data-side="before"] .grid').evaluate_all(
        "lines => lines.map(l => l.getBoundingClientRect().x)"
    )
    share = (dot["x"] + dot["width"] / 2 - axis[0]) / (axis[-1] - axis[0])
    assert share == pytest.approx(0.75, abs=0.01)


def test_continuations_say_outcome_reward_and_where_they_differ(show, sabotaged):
    page = show(sabotaged)
    assert headers(page, "before")[0] == "✓ success reward 1 differs at token 5"
    assert len(headers(page, "before")) == 8, "more on request"
    page.get_by_role("region", name="Continuations after the segment").get_by_text("Show 8 more").click()
    after = headers(page, "after")
    assert len(after) == 16 and after[0].startswith("✓") and after[2] == "✗ no success reward 0 differs at token 8"
    assert after[-1] == "? no verdict reward – differs at token 7"
    assert page.evaluate("document.activeElement.dataset.i") == "8"
    text = page.get_by_role("region", name="Continuations before the segment").locator("li p").first
    assert text.locator("mark").inner_text() == " t100" and text.inner_text() == " t13 t100 t7"


def test_equal_continuations_are_one(show):
    page = show(view_of([drawn([13, 99], 0.0)] * 5 + [drawn(IDS[3:], 1.0)], [drawn([77], 0.0, finished=False)]))
    assert headers(page, "before") == [
        "✓ success reward 1 the recorded text again", "✗ no success ×5 reward 0 differs at token 5",
    ]  # fmt: skip
    assert "6 continuations, 2 different" in page.locator(".cf-lists h3").first.inner_text()
    assert "cut at the limit" in page.locator(".cf-lists section").nth(1).locator("li p").inner_text()


def test_the_keyboard_reaches_every_continuation(show, sabotaged):
    page = show(sabotaged)
    page.keyboard.press("Tab")
    where = """(([at]) => [at.closest('section').getAttribute('aria-label').split(' ')[1], at.dataset.i])(
        [document.activeElement])"""
    for key, side, number in (
        ("", "before", "0"), ("ArrowDown", "before", "1"), ("ArrowRight", "after", "1"), ("End", "after", "7"),
        ("ArrowDown", "after", "7"), ("ArrowLeft", "before", "7"), ("Home", "before", "0"), ("ArrowUp", "before", "0"),
    ):  # fmt: skip
        if key:
            page.keyboard.press(key)
        assert page.evaluate(where) == [side, number], key
    button = page.locator("ol button").first
    assert button.get_attribute("aria-expanded") == "false"
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-expanded") == "false"


def test_a_continuation_leads_to_its_token_in_the_ribbon(show, sabotaged):
    page = show(sv.together(sv.ribbon(rollout()), sabotaged))
    page.locator(".cf-lists section").nth(1).locator("ol button").first.click()
    assert page.locator(".ribbon .inspect").inner_text().split("\n")[0] == "Token 8 of 10"


def test_one_side_and_a_recorded_end(show):
    page = show(view_of(None, [drawn([99], 1.0)]))
    assert page.locator(".cf-rate").count() == 1 and "not compared" in page.locator(".verdict").inner_text()
    page = show(view_of([drawn([99], 0.0)] * 16, None, segment=2))
    assert page.locator('[data-side="after"] .quiet').inner_text() == "recorded: the completion ends here"
    assert (
        page.locator('[data-side="after"] .cf-whisker').count() == 0 and page.locator(".cf-lists section").count() == 1
    )
    page = show(view_of([drawn([99], None)], None, asked=rollout(reward=None), segment=2))
    assert page.locator(".cf-figure").all_inner_texts() == ["–", "–"]


@pytest.mark.parametrize("width", [400, 800, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_hostile_texts_stay_texts_and_nothing_runs_over(show, width, scheme):
    before = [drawn([50 + i, 7], 0.5, pieces=[text, text]) for i, text in enumerate(HOSTILE)]
    pieces = [HOSTILE[i % len(HOSTILE)] for i in range(10)]
    asked = rollout(pieces, example_id=HOSTILE[0], method=HOSTILE[1])
    page = show(view_of(before, before, asked), width, scheme)
    assert page.evaluate("window.hacked") is None
    assert page.locator("article img, article script, article b b").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shown = page.locator(".cf-lists li p").all_inner_texts()
    assert any(HOSTILE[0] in text for text in shown) and not any("\u202e" in text for text in shown)
    ink = page.evaluate("getComputedStyle(document.querySelector('.counterfactual h2')).color")
    assert (sum(map(int, ink[4:-1].split(","))) > 380) == (scheme == "dark")
