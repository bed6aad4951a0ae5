"""The staircase, the credit diff and the group in a real Chromium: keys, links between views, hostile texts."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page

import segviz as sv
from segviz.views.groups import group_data
from segviz.views.staircase import states_of, steps_of
from tests.fakes.fake_run import HOSTILE, hostile_row, long_row, row, write_run
from tests.views.made import credited, hostile_views, sampled, sibling

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> sv.Run:
    return sv.open(write_run(tmp_path_factory.mktemp("runs") / "demo", steps=4, extra=[hostile_row()]))


def chosen(page: Page, view: str) -> int:
    """Which token a view is at."""
    selector = {"ribbon": ".ribbon .t[tabindex]", "compare": ".diff-columns .col[tabindex]"}[view]
    return int(page.locator(selector).get_attribute("data-t"))


def other_method(rollout: sv.Rollout, value: float = -0.5) -> sv.Rollout:
    n = len(rollout.pieces)
    return rollout.judged(
        {"method": "grpo", "advantages": [value] * n, "segment_start": [0], "segment_end": [n], "loss_mask": [True] * n}
    )


# --- the staircase --------------------------------------------------------------------------------------------------


def test_marks_tell_beyond_within_and_unknown_apart_without_colour(show):
    values, errors = [0.9, 0.86, 0.3, 0.6, 0.55, 0.1], [0.05, 0.05, 0.05, None, 0.1, 0.05]
    page = show(sv.staircase(sampled(values, errors, reward=0.4)))
    page.wait_for_selector(".staircase .tread")
    # within, beyond (fall), unknown, unknown, beyond (fall), beyond (rise)
    assert page.locator(".staircase > .plot .fallmark:not(.hollow)").count() == 2
    assert page.locator(".staircase > .plot .risemark:not(.hollow)").count() == 1
    assert page.locator(".staircase > .plot .fallmark.hollow").count() == 1
    dashes = "p => getComputedStyle(p).strokeDasharray"
    assert page.locator(".staircase > .plot .fall.within").evaluate(dashes) != "none"
    assert page.locator(".staircase > .plot .fall.beyond").evaluate(dashes) == "none"
    legend = page.locator(".stairkey .legend").inner_text()
    assert all(word in legend for word in ("fall beyond noise", "rise beyond noise", "within noise", "noise unknown"))
    assert page.locator(".flagtext").all_text_contents()[0] == "−0.56"


def test_keys_move_through_the_steps_and_tell_their_numbers(show, run):
    rollout = run.rollout(1, 0, 1)
    steps = steps_of(rollout, states_of(rollout)[1])
    page = show(sv.staircase(rollout))
    slider = page.get_by_role("slider")
    for _ in range(20):
        page.keyboard.press("Tab")
        if slider.evaluate("el => el === document.activeElement"):
            break
    page.keyboard.press("Home")
    assert slider.get_attribute("aria-valuenow") == "1"
    page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuenow") == "2"
    assert slider.get_attribute("aria-valuemax") == str(len(steps))
    spoken = slider.get_attribute("aria-valuetext")
    judgement = {"beyond": "beyond noise", "within": "within noise", "unknown": "noise unknown"}[steps[1].judgement]
    assert spoken.endswith(judgement) and f"{steps[1].change:+.2f}".replace("-", "−") in spoken
    assert page.locator(".reading .change b").inner_text() == f"{steps[1].change:+.2f}".replace("-", "−")
    page.keyboard.press("End")
    assert slider.get_attribute("aria-valuenow") == str(len(steps))
    assert "(the reward)" in page.locator(".reading").inner_text()
    page.keyboard.press("w")
    deepest = min(range(len(steps)), key=lambda i: (steps[i].judgement != "beyond", steps[i].change))
    assert slider.get_attribute("aria-valuenow") == str(deepest + 1)
    page.keyboard.press("e")
    assert page.locator(".reading .wrong").count() and page.locator(".reading .at.wrong").count()


def test_ribbon_and_staircase_move_each_other(show, run):
    rollout = run.rollout(1, 0, 1)
    starts = [state.start for state in states_of(rollout)[1]]
    page = show(sv.together(sv.ribbon(rollout), sv.staircase(rollout)))
    page.wait_for_selector(".staircase .tread")
    slider = page.get_by_role("slider")
    page.locator(".ribbon .t[data-t='30']").click()
    at = max(i for i, start in enumerate(starts) if start <= 30)
    assert slider.get_attribute("aria-valuenow") == str(at + 1)
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert chosen(page, "ribbon") == starts[at + 1]
    page.keyboard.press("Home")
    assert chosen(page, "ribbon") == 0
    box = page.locator(".staircase > .plot svg").bounding_box()
    page.locator(".staircase > .plot svg").click(position={"x": box["width"] / 2, "y": 90})
    token = chosen(page, "ribbon")
    assert 0.35 < token / len(rollout.pieces) < 0.65
    assert slider.get_attribute("aria-valuenow") == str(sum(start <= token for start in starts))
    page.locator(".falls button").nth(1).click()
    assert chosen(page, "ribbon") in starts


def test_views_of_different_rollouts_leave_each_other_alone(show, run):
    page = show(sv.together(sv.ribbon(run.rollout(1, 0, 1)), sv.staircase(run.rollout(1, 0, 2))))
    page.wait_for_selector(".staircase .tread")
    before = page.get_by_role("slider").get_attribute("aria-valuenow")
    for token in (0, 10, 30):
        page.locator(f".ribbon .t[data-t='{token}']").click()
    assert page.get_by_role("slider").get_attribute("aria-valuenow") == before


# --- the credit diff ------------------------------------------------------------------------------------------------


def test_every_method_has_a_lane_and_uniform_credit_shows(show):
    shown = {
        "sapo": credited("sapo", [0.3, 0.3, -0.6, None], [0, 2]),
        "vineppo": credited("vineppo", [-0.1, -0.1, 0.2, 0.2], [0, 2]),
        "grpo": credited("grpo", [-0.8] * 4, [0]),
    }
    page = show(sv.compare(shown))
    columns = page.locator(".diff-columns .col")
    assert columns.locator(".text").all_inner_texts() == list("abcd")
    ways = columns.evaluate_all(
        """cs => cs.map(c => [...c.querySelectorAll('.cell:not(.apart)')].map(
        x => 'none' in x.dataset ? 'none' : x.firstElementChild?.className ?? 'zero'))"""
    )
    assert ways == [["up", "down", "down"], ["up", "down", "down"], ["down", "up", "down"], ["none", "up", "down"]]
    cuts = columns.evaluate_all("cs => cs.map(c => c.querySelectorAll('.cell.cut').length)")
    assert cuts == [0, 0, 2, 0]
    assert page.locator(".diff-table tr[data-pattern=uniform]").inner_text().count("uniform") == 1
    assert page.locator(".diff-table tr[data-pattern=uniform] .flat").count() == 1
    apart = columns.evaluate_all("cs => cs.map(c => Boolean(c.querySelector('.cell.apart > i')))")
    assert apart == [True, True, True, False]  # the last token has one side only
    names = [name.split(" ", 1)[1].strip() for name in page.locator(".diff-labels .name").all_inner_texts()]
    assert names == ["SAPO (segment-aligned)", "VinePPO", "GRPO", "disagreement"]
    # labels stand beside their lanes
    tops = page.evaluate(
        """() => ['.diff-labels .name', '.col:nth-child(2) .cell'].map(
        name => [...document.querySelectorAll(name)].map(e => Math.round(e.getBoundingClientRect().top)))"""
    )
    assert all(abs(a - b) <= 2 for a, b in zip(*tops, strict=True))
    columns.nth(3).hover()
    assert "no credit" in page.locator(".diff-reading").inner_text()


def test_the_diff_is_walked_by_keys_and_linked(show, run):
    rollout = run.rollout(1, 0, 1)
    starts = [a for a, _ in rollout.segments]
    view = sv.compare(rollout, credits={"grpo": other_method(rollout)})
    page = show(sv.together(sv.ribbon(rollout), view))
    page.locator(".diff-columns .col[data-t='0']").click()
    page.keyboard.press("ArrowRight")
    assert chosen(page, "compare") == chosen(page, "ribbon") == 1
    page.keyboard.press("Shift+ArrowRight")
    assert chosen(page, "compare") == chosen(page, "ribbon") == next(a for a in starts if a > 1)
    page.keyboard.press("e")
    assert chosen(page, "ribbon") == rollout.row["error_start"]
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert "first true error" in label and "GRPO −0.50" in label
    page.keyboard.press("End")
    rows, top = page.locator(".diff-labels .names").count(), "el => el.offsetTop"
    last = page.locator(".col.on").evaluate(top)
    page.keyboard.press("ArrowUp")
    above = page.locator(".col.on").evaluate(top)
    assert rows > 1 and above < last
    page.keyboard.press("ArrowDown")
    assert page.locator(".col.on").evaluate(top) == last
    page.locator(".ribbon .t[data-t='20']").click()
    assert chosen(page, "compare") == 20 and "Token 21" in page.locator(".diff-reading h3").inner_text()
    page.locator(".blame").first.click()
    assert chosen(page, "ribbon") == view.data["methods"][0]["blamed"]["start"]


def test_a_long_diff_draws_a_window_and_moves_it(show):
    rollout = sv.Rollout(long_row(2000))
    page = show(sv.compare(rollout, credits={"grpo": other_method(rollout)}))
    columns = page.locator(".diff-columns .col")
    assert columns.count() == 240
    columns.first.click()
    page.keyboard.press("Home")
    assert (
        columns.first.get_attribute("data-t") == "0" and "1 to 240 of 2,000" in page.locator(".diff-turn").inner_text()
    )
    page.get_by_role("button", name="later").click()
    assert columns.first.get_attribute("data-t") == "240" and chosen(page, "compare") == 240
    page.keyboard.press("End")
    assert chosen(page, "compare") == 1999


# --- the group ------------------------------------------------------------------------------------------------------


def hosted(page: Page, data: dict) -> None:
    """Draw data again with a host that hears what is chosen and opened."""
    page.evaluate(
        """async (data) => {
          const code = document.querySelector('script[type=module]').textContent;
          const kept = code.slice(0, code.lastIndexOf('const el = document.getElementById'));
          window.opened = []; window.selected = [];
          const url = URL.createObjectURL(new Blob([kept], { type: 'text/javascript' }));
          const { default: { render } } = await import(url);
          const open = (key) => window.opened.push(key);
          const select = ({ key, token }) => window.selected.push([key, token]);
          await render({ el: document.getElementById('segviz'), data, host: { open, select } });
        }""",
        data,
    )


@pytest.fixture
def free(browser, tmp_path):
    """free(view) -> a page without the policy that forbids what `hosted` needs."""
    contexts = []

    def free(view: sv.View) -> Page:
        html = view.html()
        start = html.index('<meta http-equiv="Content-Security-Policy"')
        path = tmp_path / "free.html"
        path.write_text(html[:start] + html[html.index(">", start) + 1 :], encoding="utf-8")
        contexts.append(browser.new_context(viewport={"width": 1000, "height": 900}, offline=True))
        page = contexts[-1].new_page()
        page.goto(f"file://{path}")
        page.wait_for_selector("#segviz > :not(noscript)")
        return page

    yield free
    for context in contexts:
        context.close()


def test_rows_are_walked_by_keys_and_ask_to_be_opened(free, run):
    view = sv.group(run, 1, 0)
    page = free(view)
    hosted(page, dict(view.data))
    mains = page.locator(".gr-main")
    mains.first.focus()
    page.keyboard.press("ArrowDown")
    rows = view.data["rows"]
    assert mains.nth(1).get_attribute("aria-pressed") == "true" and mains.first.get_attribute("aria-pressed") == "false"
    assert page.locator(".gr-main[tabindex='0']").count() == 1
    sample = rows[1]["samples"][0]
    assert page.evaluate("window.selected.at(-1)") == [f"1/0/{sample}", rows[1]["fork"]["at"]]
    assert page.evaluate("window.opened") == []
    page.keyboard.press("Enter")
    assert page.evaluate("window.opened") == [{"step": 1, "group": 0, "sample": sample}]
    page.keyboard.press("End")
    page.keyboard.press("ArrowDown")
    assert mains.last.get_attribute("aria-pressed") == "true"
    mains.first.click()
    assert page.evaluate("window.opened.at(-1).sample") == rows[0]["samples"][0]
    page.get_by_role("button", name=f"Open sample {sample}").click()
    assert page.evaluate("window.opened.length") == 3 and page.evaluate("window.opened.at(-1).sample") == sample


def test_a_group_moves_a_ribbon_to_the_fork_and_hears_it(show, run):
    view = sv.group(run, 1, 0)
    i = next(i for i, r in enumerate(view.data["rows"]) if 1 in r["samples"])
    page = show(sv.together(view, sv.ribbon(run.rollout(1, 0, 1))))
    page.locator(".gr-main").nth(i).click()
    assert chosen(page, "ribbon") == view.data["rows"][i]["fork"]["at"]
    page.locator(".gr-main").nth((i + 1) % 2).click()
    page.locator(".ribbon .t[data-t='7']").click()
    assert page.locator(".gr-main").nth(i).get_attribute("aria-pressed") == "true"


def test_a_row_shows_reward_fork_and_first_true_error(show):
    wrong = sibling(0, "a b c d", 0.0, error_start=3, error_end=4, error_kind="reasoning")
    rollouts = [wrong, sibling(1, "a b x d", 1.0)]
    page = show(sv.View("group", "Why?", group_data(rollouts) | {"pictures": {}}))
    assert page.locator(".gr-mark").all_inner_texts() == ["✓ 1", "✗ 0"]
    assert [t.strip() for t in page.locator(".gr-line .fork").all_inner_texts()] == ["x", "c"]
    assert "where sample 1 (reward 1) says" in page.locator(".gr-fork").nth(1).inner_text()
    assert "probability 0.5 here, 0.5 there, entropy 0.25 nats" in page.locator(".gr-fork").nth(1).inner_text()
    assert page.locator(".gr-line .wrong").inner_text().strip() == "d"
    assert "(1 token later)" in page.locator(".gr-error").inner_text()
    assert "no signal" not in page.locator(".badges").inner_text()
    same = show(sv.View("group", "Why?", group_data([sibling(0, "a", 1.0), sibling(1, "b", 1.0)]) | {"pictures": {}}))
    assert "no signal for group methods" in same.locator(".badges").inner_text()


# --- all three ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 800, 390])
def test_they_fit_every_width_in_light_and_dark(show, run, width, scheme):
    rollout = run.rollout(1, 0, 1)
    views = sv.staircase(rollout), sv.compare(rollout, credits={"grpo": other_method(rollout)}), sv.group(run, 1, 0)
    page = show(sv.together(*views), width, scheme)
    page.wait_for_selector(".staircase .tread")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".part").count() == 3


def test_hostile_texts_do_nothing(show, run):
    for kind, view in hostile_views(run).items():
        page = show(view)
        assert page.evaluate("window.hacked") is None
        if kind == "compare":
            texts = page.locator(".col .text").all_inner_texts()
            assert HOSTILE[1] in texts and "⟨202E⟩right to left" in texts[6] and max(map(len, texts)) < 80
            for token in range(0, 20, 3):
                page.locator(f".col[data-t='{token}']").click()
        elif kind == "staircase":
            page.get_by_role("slider").focus()
            for key in ("Home", "ArrowRight", "ArrowRight", "w", "e", "End"):
                page.keyboard.press(key)
        else:
            page.locator(".gr-main").first.click()
        assert HOSTILE[0] in page.locator("#segviz").inner_text()
        assert page.evaluate("document.querySelectorAll('script').length") == 2
        assert page.evaluate("document.querySelectorAll('#segviz :is(img, iframe, object, link, base)').length") == 0
        assert page.evaluate("window.hacked") is None


def test_the_static_fallbacks_are_inert(show, run, tmp_path):
    for kind, view in hostile_views(run).items():
        path = tmp_path / f"{kind}.html"
        path.write_text(
            f"<!doctype html><meta charset=utf-8><div id=segviz>{view._repr_html_()}</div>", encoding="utf-8"
        )
        page = show(path)
        assert page.evaluate("window.hacked") is None
        assert page.locator("script, img:not([src^='data:image/'])").count() == 0
        assert HOSTILE[0] in page.locator("#segviz").text_content()


@pytest.mark.parametrize(
    "item",
    [
        row(pieces=[], text=""),
        row(pieces=["x"], text="x", reward=None),
        row(pieces=["x"], text="x", mc_values=[0.5], mc_stderr=[0.1]),
        {"text": "no tokens\nrecorded"},
        row(text="<think> 1 </think>", values=None, segment_value=None),
        row(text="<think> 1 </think>", advantages=None, segment_advantage=None),
        sampled([None, None, 0.5], None),
    ],
)
def test_odd_rollouts_are_drawn(show, item):
    page = show(sv.together(sv.staircase(item), sv.compare(item)))
    assert page.locator(".verdict").count() == 2 and "null" not in page.locator("#segviz").inner_text()
    if page.get_by_role("slider").count():
        page.get_by_role("slider").focus()
        for key in ("ArrowRight", "End", "w", "e", "Home"):
            page.keyboard.press(key)
    if page.locator(".col").count():
        page.locator(".col").first.click()
        for key in ("ArrowRight", "ArrowDown", "End", "Shift+ArrowLeft"):
            page.keyboard.press(key)


@pytest.mark.parametrize(
    "rollouts",
    [
        [sibling(0, "a b", 1.0)],
        [sibling(0, "", 0.0), sibling(1, "b", 1.0)],
        [sibling(0, "a b", None), sibling(1, "a c", None)],
        [sibling(0, "a b", 0.0), sibling(1, "a b", 1.0)],
        [sibling(0, "a b", 0.0, pieces=None, text="a b"), sibling(1, "a c", 1.0)],
    ],
)
def test_odd_groups_are_drawn(show, rollouts):
    page = show(sv.View("group", "Why?", group_data(rollouts) | {"pictures": {}}))
    assert page.locator(".gr-main").count() >= 1 and "null" not in page.locator("#segviz").inner_text()
    page.locator(".gr-main").first.click()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
