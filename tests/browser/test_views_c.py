"""Boundaries, forensics and the board in a real Chromium: keyboard, links, widths, hostile texts; figures as files."""

from __future__ import annotations

import math

import pytest
from PIL import Image

import segviz as sv
from segpo_core.record.store import Recorder
from segviz.runs.columns import rollout_columns
from segviz.views.forensics import COLUMNS, forensics_data
from tests.fakes.fake_run import hostile_row, long_row, write_run

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> sv.Run:
    return sv.open(write_run(tmp_path_factory.mktemp("runs") / "demo", extra=[hostile_row()]))


@pytest.fixture(scope="module")
def spiky(tmp_path_factory) -> sv.Run:
    """40 steps with one bad explained variance and one spike of the KL divergence, rollouts every fourth step."""
    path = write_run(tmp_path_factory.mktemp("runs") / "spiky", steps=40)
    recorder = Recorder(path)
    for step in range(1, 41):
        kl = 0.5 if step == 26 else 0.01 + 0.001 * math.sin(7 * step)
        explained = -37.0 if step == 3 else 0.1 + 0.01 * (step % 5)
        recorder.metrics(step, {"kl": kl, "explained_variance": explained, "reward": 0.5 + 0.001 * step})
    return sv.open(path)


def wait_for_charts(page):
    page.wait_for_selector(".plot svg")


# --- boundaries -----------------------------------------------------------------------------------------------------


def test_both_cuts_stand_at_their_tokens(show, run):
    rollout = run.rollout(1, 0, 1)
    page = show(sv.boundaries(rollout, "fixed"))
    texts = page.locator(".bd-t").evaluate_all("ts => ts.map(t => t.textContent)")
    assert [text.replace("↵", "\n") for text in texts] == rollout.pieces
    above = page.locator(".bd-t.acut").evaluate_all("ts => ts.map(t => Number(t.dataset.t))")
    below = page.locator(".bd-t.bcut").evaluate_all("ts => ts.map(t => Number(t.dataset.t))")
    assert above == rollout.row["segment_start"][1:] and below == list(range(30, len(rollout.pieces), 30))
    words = page.locator(".bd-lanes").inner_text()
    assert "recorded, SAPO (segment-aligned) above the text" in words and "every 30 tokens" in words
    assert "Line:" in words and "This rule does not look at it." in words
    heights = page.locator(".bd-t").evaluate_all("ts => ts.map(t => Number(t.style.getPropertyValue('--a')))")
    entropy = rollout.row["entropy"]
    assert heights == pytest.approx([x / max(entropy) for x in entropy], abs=0.01)
    assert page.locator(".bd-t.err").count() == rollout.row["error_end"] - rollout.row["error_start"]


def test_keys_walk_over_tokens_and_differences(show, run):
    rollout = run.rollout(1, 0, 1)
    page = show(sv.boundaries(rollout, "fixed"))
    read = page.locator(".bd-read")
    assert f"token {rollout.row['error_start'] + 1} of" in read.inner_text()  # starts at the first true error
    page.locator(".bd-t[tabindex]").focus()
    page.keyboard.press("Home")
    assert "token 1 of" in read.inner_text() and "first token" in read.inner_text()
    page.keyboard.press("d")
    start = rollout.row["segment_start"][1]
    assert f"token {start + 1} of" in read.inner_text() and "only the recorded one cuts before it" in read.inner_text()
    assert "segment 2 of" in read.inner_text() and "entropy" in read.inner_text()
    page.keyboard.press("ArrowRight")
    assert f"token {start + 2} of" in read.inner_text()
    page.keyboard.press("Shift+D")
    assert f"token {start + 1} of" in read.inner_text()
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert "only the recorded one cuts before it" in label
    page.get_by_role("button", name="next difference").click()
    assert f"token {rollout.row['segment_start'][2] + 1} of" in read.inner_text()


def test_a_token_chosen_among_the_cuts_is_shown_in_the_ribbon(show, run):
    rollout = run.rollout(1, 0, 1)
    page = show(sv.together(sv.boundaries(rollout), sv.ribbon(rollout)))
    page.locator(".bd-t").nth(7).click()
    assert page.locator(".inspect h3").first.inner_text().startswith("Token 8 ")
    page.locator(".ribbon .t").nth(3).click()
    assert "token 4 of" in page.locator(".bd-read").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 800, 390])
def test_the_views_fit_every_width(show, run, width, scheme):
    for view in (sv.boundaries(run.rollout(1, 90, 0)), sv.forensics(run, 1), sv.board(run)):
        page = show(view, width, scheme)
        page.wait_for_timeout(150)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_long_completion_is_drawn_whole(show):
    item = long_row(8000)
    page = show(sv.boundaries(item))
    # far from the window a block is its plain text, which the browser's search finds
    assert page.locator(".bd-block").count() == 32 and page.locator(".bd-t").count() < 4000
    assert item["pieces"][7000].strip() in page.locator(".bd-block").nth(7000 // 256).text_content()
    assert page.locator(".bd-block").nth(7000 // 256).locator(".bd-t").count() == 0
    page.locator(".bd-t[tabindex]").focus()
    page.keyboard.press("End")
    assert "token 8,000 of 8,000" in page.locator(".bd-read").inner_text()
    assert page.evaluate("document.activeElement.dataset.t") == "7999"
    page.locator(".bd-block").nth(12).scroll_into_view_if_needed()
    page.locator(".bd-block").nth(12).locator(".bd-t").nth(255).wait_for(state="attached")


def test_odd_completions_are_drawn(show):
    page = show(sv.boundaries({"pieces": [], "segment_ids": []}, "newline"))
    assert "There is nothing to cut" in page.locator(".verdict").inner_text()
    page = show(sv.boundaries({"pieces": ["a", "b"], "entropy": [None, 0.5]}, [0, 1]))
    assert page.locator(".bd-t.agap").count() == 1
    page.locator(".bd-t").first.click()
    assert "entropy not measured" in page.locator(".bd-read").inner_text()


# --- forensics ------------------------------------------------------------------------------------------------------


def test_the_heaviest_segments_show_their_text_on_enter(show, run):
    view = sv.forensics(run, 5)
    page = show(view)
    wait_for_charts(page)
    buttons = page.locator(".fo-top td.words button")
    assert buttons.count() == 20 and page.locator(".fo-around:visible").count() == 0
    buttons.first.focus()
    page.keyboard.press("Enter")
    top = view.data["top"][0]
    around = page.locator(".fo-around:visible")
    assert (
        around.locator("mark").text_content() == top["text"] and buttons.first.get_attribute("aria-expanded") == "true"
    )
    assert around.text_content() == top["before"] + top["text"] + top["after"]
    page.keyboard.press("Enter")
    assert page.locator(".fo-around:visible").count() == 0
    assert page.locator(".fo-top tbody tr").first.locator("td.share").inner_text() == f"{100 * top['share']:.1f} %"


def test_the_segments_are_sorted_by_what_the_reader_asks(show, run):
    view = sv.forensics(run, 5)
    page = show(view)
    assert list(view.data["sorts"]) == ["moved", "share", "advantage", "ratio", "clipped"]
    for name in ("advantage", "share", "ratio", "moved"):
        page.locator(f".fo-top th button[data-sort={name}]").click()
        assert page.locator(".fo-top th[aria-sort=descending]").count() == 1
        best = max(view.data["top"], key=lambda e: abs(math.log(e[name])) if name == "ratio" else abs(e[name]))
        where = page.locator(".fo-top tbody td.where").first.inner_text().split(" · ")
        assert (int(where[0]), int(where[1].split(" ")[0])) == (best["group"], best["sample"])
        assert page.locator(f"[data-sort={name}]").evaluate("e => e.getRootNode().activeElement === e")


def test_a_segment_is_opened_where_there_is_somebody_to_open_it(show, run):
    top = sv.forensics(run, 5).data["top"][0]
    rollout = run.rollout(5, top["group"], top["sample"])
    page = show(sv.together(sv.forensics(run, 5), sv.ribbon(rollout)))
    page.locator(".fo-top td.words button").first.click()
    assert page.locator(".inspect h3").first.inner_text().startswith(f"Token {top['start'] + 1} ")


def test_charts_of_a_step_say_their_numbers(show, run):
    data = sv.forensics(run, 5).data
    page = show(sv.forensics(run, 5))
    wait_for_charts(page)
    labels = page.locator(".fo-charts svg[role=img]").evaluate_all("ss => ss.map(s => s.getAttribute('aria-label'))")
    assert labels[0].startswith("Tokens by importance ratio") and labels[1].startswith("Change of log-probability")
    facts = page.locator(".fo-facts").all_inner_texts()
    hits = [c["hits"] for c in data["clipped"]]
    assert all(f"({hit:,} of" in facts[0] for hit in hits) and f"{data['moved'][0]['up']:,} likelier" in facts[1]
    titles = page.locator(".fo-pos > title").evaluate_all("ts => ts.map(t => t.textContent)")
    counts = [int(text.split(" tokens")[0].split(": ")[1]) for text in titles]
    assert sum(counts) == sum(data["histogram"]["up"]) + sum(data["histogram"]["up_clipped"])


# --- the board ------------------------------------------------------------------------------------------------------


def chart_named(page, title: str):
    return page.locator(".chart").filter(has=page.locator("figcaption b", has_text=title)).first


def test_an_unusual_step_is_marked_told_and_one_key_from_its_rollouts(show, spiky):
    page = show(sv.board(spiky))
    wait_for_charts(page)
    chart = chart_named(page, "KL to the reference")
    assert chart.locator(".oddmark").count() == 1
    assert "Unusual: step 26 0.5, around it 0.01" in chart.locator(".bo-odd").inner_text().replace("\n", " ")
    chart.locator(".bo-odd button").focus()
    page.keyboard.press("Enter")
    listed = chart.locator(".bo-step")
    assert "Rollouts of step 25 the nearest to step 26" in listed.locator("h3").inner_text()
    assert listed.locator("li").count() == 4 and "reward" in listed.locator("li").first.inner_text()
    assert "sv.ribbon(run.rollout(25" in listed.inner_text()  # nobody on this page could open one
    page.keyboard.press("Escape")
    assert page.locator(".bo-step").count() == 0
    assert page.evaluate("document.activeElement.textContent") == "step 26"


def test_a_click_on_a_curve_lists_that_steps_rollouts(show, spiky):
    page = show(sv.board(spiky))
    wait_for_charts(page)
    plot = chart_named(page, "Reward").locator(".plot svg")
    box = plot.bounding_box()
    plot.click(position={"x": 46 + (box["width"] - 58) * (12 / 39), "y": 60})
    assert page.locator(".bo-step h3").inner_text() == "Rollouts of step 13"
    other = chart_named(page, "KL to the reference").locator(".plot svg")
    other.focus()  # the cursor is the same in all charts
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert page.locator(".bo-step").count() == 1  # it moved to the chart where a step was chosen last
    assert "Rollouts of step 9" in chart_named(page, "KL to the reference").locator(".bo-step").inner_text()


def test_an_outlier_does_not_flatten_the_explained_variance(show, spiky):
    page = show(sv.board(spiky))
    wait_for_charts(page)
    chart = chart_named(page, "Explained variance")
    assert "1 value below −1 drawn at the edge; the lowest is −37 at step 3" in chart.inner_text()
    ticks = chart.locator("text.end").evaluate_all("ts => ts.map(t => [t.textContent, t.classList.length])")
    low = [float(text.replace("−", "-")) for text, _ in ticks]
    assert min(low) >= -1


def test_a_run_that_has_begun_says_so(show, tmp_path):
    recorder = Recorder(tmp_path / "new")
    recorder.start({"max_steps": 60})
    page = show(sv.board(sv.open(tmp_path / "new")))
    assert "new: started" in page.locator(".board").inner_text() and "no step is finished yet" in page.content()
    for step in range(3):
        recorder.metrics(step, {"reward": 0.5})
    page = show(sv.board(sv.open(tmp_path / "new")))
    assert "step 2 of 60" in page.locator(".board .notice").inner_text()


# --- hostile texts, and figures -------------------------------------------------------------------------------------


def test_hostile_texts_do_nothing(show, run):
    rollout = run.rollout(1, 90, 0)
    page = show(sv.boundaries(rollout, {"label": "<img src=x onerror=window.hacked=1>", "segment_ids": [0] * 20}))
    assert page.locator(".bd-t").count() == len(rollout.pieces) and page.evaluate("window.hacked") is None
    assert "</script><script>window.hacked=1</script>" in page.locator(".bd-t").first.text_content()
    assert "⟨202E⟩" in page.locator(".bd-stream").inner_text()
    data = forensics_data(rollout_columns(rollout, COLUMNS), {}) | {"run": "<img src=x onerror=window.hacked=1>"}
    page = show(sv.View("forensics", "hostile", data))
    wait_for_charts(page)
    for button in page.locator(".fo-top td.words button").all():
        button.click()
    assert page.evaluate("window.hacked") is None and page.locator(".fo-top img, .eyebrow img").count() == 0
    page = show(sv.board(run))
    assert page.evaluate("window.hacked") is None


def test_figures_become_pictures(chromium_path, run, tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", chromium_path)
    figure = sv.audit(run)
    picture = Image.open(figure.save(tmp_path / "audit.png"))
    assert picture.size == (1400, 2 * figure.layout.height) and picture.convert("RGB").getpixel((2, 2)) == (
        255,
        255,
        255,
    )
    assert figure.save(tmp_path / "audit.svg").read_text().startswith("<svg")
    assert figure.save(tmp_path / "audit.pdf").read_bytes().startswith(b"%PDF")


def test_a_saved_figure_draws_itself_offline_and_has_no_cloud_button(show, run, tmp_path):
    path = sv.lift(run, draws=20).save(tmp_path / "lift.html")
    page = show(sv.board(run))  # a page with the fixture's watch on requests and errors
    page.goto(f"file://{path}")
    page.wait_for_selector(".main-svg")
    titles = page.locator(".modebar-btn").evaluate_all("bs => bs.map(b => b.dataset.title)")
    assert titles and not any("cloud" in title.lower() or "Plotly" in title for title in titles)
    assert "Do decisions fall on high-entropy tokens?" in page.content()


def test_a_chart_says_its_numbers_and_keeps_the_keyboard_at_a_new_width(show, spiky):
    page = show(sv.board(spiky))
    wait_for_charts(page)
    chart = chart_named(page, "KL to the reference").get_by_role("slider")
    chart.focus()
    page.keyboard.press("Home")
    first = spiky.metrics["kl"]
    assert chart.get_attribute("aria-valuenow") == str(first.steps[0])
    said = chart.get_attribute("aria-valuetext")
    assert said.startswith(f"step {first.steps[0]}: ")
    assert float(said.split(": ")[1]) == pytest.approx(first.values[0], rel=1e-3)
    page.keyboard.press("End")
    assert chart.get_attribute("aria-valuenow") == str(first.steps[-1])
    page.set_viewport_size({"width": 700, "height": 900})
    page.wait_for_function("Number(document.activeElement.getAttribute('width')) < 700")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "slider"
