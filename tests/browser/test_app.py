"""The app in a real Chromium, on its real server, beside real training."""

from __future__ import annotations

import json
import re
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Page, expect

from segpo_core.record.store import Recorder, read_metrics
from tests.app.served import serving, told
from tests.fakes.fake_run import HOSTILE, hostile_row, row, write_run

pytestmark = pytest.mark.browser

SLOW = 60_000  #: ms; on a busy machine a page of a thousand rollouts takes a while


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Three runs: two that saw the same prompts, and one whose every text is hostile, its name as well as can be."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "alpha")
    write_run(folder / "beta", "grpo")
    write_run(
        folder / "evil ${window.hacked=1}{{7*7}}<img src=x onerror=window.hacked=1>", steps=4, extra=[hostile_row()]
    )
    return folder


@pytest.fixture(scope="module")
def app(runs):
    with serving(runs) as (address, _):
        yield f"http://{address}/"


@pytest.fixture
def visit(browser):
    """visit(url, width, scheme) -> page. Afterwards: nothing was fetched from elsewhere, logged, or thrown."""
    noise, contexts = [], []

    def visit(url: str, width: int = 1440, scheme: str = "light", quiet: bool = True) -> Page:
        base = re.match(r"http://[^/]+/", url)[0]
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        if quiet:
            page.on("console", lambda m: noise.append(m.text) if m.type in ("error", "warning") and ours(m) else None)
            page.on("pageerror", lambda error: noise.append(str(error)))
        page.on("dialog", lambda dialog: (noise.append("dialog"), dialog.dismiss()))
        local = (base, "data:", "blob:", "about:")
        page.on("request", lambda r: None if r.url.startswith(local) else noise.append(r.url))
        page.goto(url)
        page.wait_for_selector("segpo-top .bar b")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert noise == []


def ours(message) -> bool:
    """False for what Gradio's own script says of its event stream when a page is left while it opens."""
    theirs = "/assets/" in message.location.get("url", "")
    return not (theirs and ("AbortError" in message.text or "errored out" in message.text))


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def rows(page: Page):
    return page.locator("segpo-rollouts tbody tr")


def frame(page: Page, panel: str = "segpo-rollouts"):
    return page.frame_locator(f"{panel} iframe.view")


def chart(page: Page, title: str):
    """A chart of the board that is shown; the next one may already be drawn behind it."""
    shown = page.locator("segpo-live .live-board > :not(.fresh) figure.chart")
    return shown.filter(has=page.get_by_text(title, exact=True))


def counted(page: Page, words: str) -> None:
    expect(page.locator("segpo-rollouts [role=status]").first).to_have_text(words)


# live


def test_live_follows_a_run_that_is_written(visit, tmp_path):
    path = write_run(tmp_path / "runs" / "growing", steps=8)
    recorder = Recorder(path)
    with serving(tmp_path / "runs") as (address, _):
        page = visit(f"http://{address}/")
        reward = chart(page, "Reward")
        expect(reward).to_contain_text("at step 8")
        expect(page.locator("segpo-live .card").first).to_contain_text("step 5")
        recorder.metrics(9, {"reward": 0.4321})
        recorder.rollouts(9, [row(9, 0, 0, "<think> 1 </think>", reward=0.4321)], {})
        expect(reward).to_contain_text("0.4321 at step 9")
        expect(page.locator("segpo-live .card .eyebrow")).to_have_text(["step 9 · group 0 · sample 0"])
        # pinned: it stays when the next step comes
        page.locator("segpo-live .card .pin").click()
        recorder.rollouts(10, [row(10, 0, 0, "<think> 2 </think>")], {})
        page.mouse.move(5, 5)
        expect(page.locator("segpo-live .card .eyebrow")).to_have_text(
            ["growing step 9 · group 0 · sample 0", "step 10 · group 0 · sample 0"]
        )
        # paused: nothing moves, and what is missing is told
        page.get_by_role("button", name="Pause").click()
        recorder.metrics(10, {"reward": 0.1234})
        expect(page.locator("segpo-live .toolbar [role=status]")).to_contain_text("newer update")
        expect(reward).to_contain_text("0.4321 at step 9")
        page.get_by_role("button", name="Follow").click()
        expect(reward).to_contain_text("0.1234 at step 10")
        # held: nothing is pulled away from under the pointer
        page.locator("segpo-live .card").nth(1).hover()
        recorder.rollouts(11, [row(11, 0, 0, "<think> 3 </think>")], {})
        expect(page.locator("segpo-live .toolbar [role=status]")).to_contain_text("Held while you read")
        expect(page.locator("segpo-live .card .eyebrow").nth(1)).to_have_text("step 10 · group 0 · sample 0")
        page.mouse.move(5, 5)
        expect(page.locator("segpo-live .card .eyebrow").nth(1)).to_have_text("step 11 · group 0 · sample 0")
        page.context.close()  # it asks again and again, and the app ends first


def test_several_runs_lie_over_each_other(visit, app):
    page = visit(app + "?live=alpha")
    expect(page.locator("segpo-live .run[aria-pressed=true]")).to_have_count(1)
    page.locator("segpo-live .run", has_text="beta").click()
    first = page.locator("segpo-live figure.chart").first
    expect(first).to_contain_text("SAPO (segment-aligned)")
    expect(first).to_contain_text("GRPO")
    assert page.url.count("live=") == 2
    page.locator("segpo-live .run", has_text="alpha").click()
    page.locator("segpo-live .run", has_text="beta").click()
    expect(page.locator("segpo-live")).to_contain_text("No run is chosen")


def test_live_leads_with_the_story(visit, tmp_path):
    path = write_run(tmp_path / "runs" / "growing", steps=8)
    manifest = json.loads((path / "run.json").read_text())
    manifest["config"] |= {"max_steps": 10, "eval_size": 200}
    (path / "run.json").write_text(json.dumps(manifest))
    recorder = Recorder(path)
    with serving(tmp_path / "runs") as (address, _):
        page = visit(f"http://{address}/")
        story = page.locator("segpo-live .story")
        expect(story).to_contain_text("step 8 of 10")
        expect(story.locator(".tile .what")).to_have_text(["answer right", "perception right", "both right: grounded"])
        recorder.metrics(10, {"eval/answer": 0.95, "eval/perception": 0.20, "eval/grounded": 0.20})
        expect(story.locator(".sentence")).to_contain_text("looks less (perception −")
        expect(story.locator(".tile").first).to_contain_text("95.0 %")
        expect(story.locator(".run-end")).to_contain_text("This run has ended: all 10 steps are done.")
        assert page.request.get(story.get_by_role("link", name="Read its report").evaluate("a => a.href")).ok
        card = page.locator("segpo-live .card").filter(has=page.locator("mark")).first
        expect(card.locator("img")).to_have_js_property("naturalWidth", 48)
        expect(card.locator(".saying")).to_contain_text("says ")
        expect(page.locator("segpo-live .finding tbody tr").first).to_contain_text("all errors")
        page.context.close()


def test_the_curves_are_smoothed_and_zoomed_together(visit, app):
    page = visit(app + "?live=alpha")
    tools = page.locator("segpo-live .bo-tools")
    charts = page.locator("segpo-live .live-board > :not(.fresh) figure.chart svg[role=slider]")
    expect(charts.first).to_have_attribute("aria-valuemax", "24")
    expect(page.locator("segpo-live .finding")).to_be_visible()  # everything above the curves is there
    chart = charts.nth(3)
    wide = chart.bounding_box()["width"]
    chart.hover(position={"x": 0.5 * wide, "y": 40})
    page.mouse.down()
    chart.hover(position={"x": 0.8 * wide, "y": 40})
    page.mouse.up()
    first, last = (int(tools.get_by_label(f"{end} step shown").input_value()) for end in ("First", "Last"))
    assert 5 < first < last < 24
    ends = charts.evaluate_all("all => all.map((e) => [Number(e.ariaValueMin), Number(e.ariaValueMax)])")
    assert len(ends) > 5 and all(first <= low <= high <= last for low, high in ends)
    expect(page.locator("segpo-live")).not_to_contain_text("Rollouts of step")  # to drag is not to click
    tools.get_by_role("button", name="All steps").click()
    expect(charts.first).to_have_attribute("aria-valuemax", "24")
    expect(page.locator("segpo-live path.raw")).to_have_count(0)
    tools.get_by_label("Smoothing").fill("20")
    expect(tools).to_contain_text("mean over 20 %")
    assert page.locator("segpo-live path.raw").count() > 5


@contextmanager
def training_ended(address: str):
    """A training that a failed test left behind is ended with it."""
    try:
        yield
    finally:
        while told(address, "trainer")[1]["state"] in ("running", "stopping"):
            urlopen(Request(f"http://{address}/segpo/api/trainer/stop", method="POST"))
            time.sleep(1)


def test_real_training_is_started_watched_and_stopped(visit, tmp_path):
    with serving(tmp_path / "runs") as (address, _), training_ended(address):
        page = visit(f"http://{address}/")
        expect(page.locator("segpo-live")).to_contain_text("No runs yet")
        tab(page, "Start a run")
        fields = {"name": "mine", "steps": "400", "group": "4", "batch": "8", "every": "2", "size": "8"}
        expect(page.locator("#start-name").locator("input, textarea")).to_have_value("sapo-1")
        for name, value in fields.items():
            page.locator(f"#start-{name}").locator("input, textarea").fill(value)
            page.keyboard.press("Tab")
        command = page.locator("#start-command textarea")
        said = r"^segpo train --config .*demo\.yaml --method sapo --output-dir \S+/mine --max-steps 400 .* 4 "
        expect(command).to_have_value(re.compile(said))
        page.get_by_role("button", name="Start training").click()
        expect(page.locator("segpo-trainer .lead")).to_have_text("mine is training.")
        page.get_by_role("button", name="Start training").click()
        expect(page.get_by_text("mine is still training")).to_be_visible()
        page.get_by_role("button", name="Watch it live").click()
        expect(page.locator("segpo-live .run[aria-pressed=true]")).to_contain_text("mine")
        reward = chart(page, "Reward")
        reward.wait_for(timeout=120_000)
        page.locator("segpo-live .card").first.wait_for()
        step = int(re.search(r"at step (\d+)", reward.inner_text())[1])
        expect(reward).not_to_contain_text(re.compile(rf"at step {step}\b"), timeout=60_000)
        page.locator("segpo-live .card .open").first.click()
        expect(frame(page).locator("h2").first).to_have_text(
            re.compile("Which segment (broke|carried) this solution?|Which segment was blamed, and which praised?")
        )
        tab(page, "Start a run")
        page.get_by_role("button", name="Stop after this step").click()
        expect(page.locator("segpo-trainer .lead")).to_have_text("mine was stopped.", timeout=60_000)
        steps = read_metrics(tmp_path / "runs" / "mine")["step"].to_pylist()
        page.context.close()  # before its server
        assert 0 < max(steps) < 400 and list((tmp_path / "runs" / "mine" / "checkpoints").glob("step-*"))
        page.context.close()  # it asks again and again, and the app ends first


# rollouts


def test_filters_sort_and_pages(visit, app):
    page = visit(app + "?tab=rollouts")
    counted(page, "157 rollouts")
    panel = page.locator("segpo-rollouts")
    panel.get_by_label("Run", exact=True).select_option("alpha")
    counted(page, "72 rollouts")
    expect(rows(page)).to_have_count(50)
    panel.get_by_role("button", name="Next page").click()
    expect(rows(page)).to_have_count(22)
    panel.get_by_label("First error", exact=True).select_option("perception")
    expect(panel.locator("td.c-error").first).to_have_text("perception")
    assert set(panel.locator("td.c-error").all_inner_texts()) == {"perception"}
    panel.get_by_label("Answer", exact=True).select_option("right")
    page.wait_for_url("**f.answer=right**")
    assert "f.error=perception" in page.url and "f.run=alpha" in page.url
    expect(panel.locator("td.c-error").first).to_have_text("perception")
    panel.get_by_role("button", name="Tokens").click()
    expect(panel.locator("th.c-tokens")).to_have_attribute("aria-sort", "descending")
    page.wait_for_function(  # the arrow turns at once, the rows come from the server
        """() => {
          const root = document.querySelector("segpo-rollouts").shadowRoot;
          const cells = root.querySelectorAll("td.c-number:nth-child(8)");
          const tokens = [...cells].map((cell) => Number(cell.innerText));
          return tokens.length > 0 && tokens.every((n, i) => i === 0 || n <= tokens[i - 1]);
        }"""
    )
    page.reload()
    expect(panel.get_by_label("Answer", exact=True)).to_have_value("right")
    panel.get_by_label("Text").fill("no such words anywhere")
    expect(panel).to_contain_text("No rollout fits these filters")
    panel.get_by_role("button", name="clear them all").click()
    counted(page, "157 rollouts")
    panel.get_by_label("Text").fill("PERCEPTION> red")
    expect(panel.locator("mark").first).to_have_text(re.compile("perception> red", re.I))


def test_the_keyboard_walks_and_opens(visit, app):
    page = visit(app + "?tab=rollouts&f.run=alpha")
    counted(page, "72 rollouts")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement?.shadowRoot?.activeElement?.tagName") == "TR":
            break
    selected = page.locator("segpo-rollouts tr[aria-selected]")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(selected).to_have_attribute("data-i", "1")
    page.keyboard.press("Enter")
    expect(page.locator("segpo-rollouts .viewer h2")).to_have_text("alpha · step 21 · group 0 · sample 1")
    expect(frame(page).locator(".eyebrow").first).to_contain_text("step 21 · group 0 · sample 1")
    page.keyboard.press("ArrowDown")
    expect(frame(page).locator(".eyebrow").first).to_contain_text("step 21 · group 0 · sample 2")
    page.keyboard.press("End")
    page.keyboard.press("ArrowDown")  # over the page's edge
    expect(selected).to_have_attribute("data-i", "0")
    expect(page.locator("segpo-rollouts .pager")).to_contain_text("page 2 of 2")
    expect(frame(page).locator(".eyebrow").first).to_contain_text("step 5 · group 0 · sample 2")
    page.keyboard.press("Enter")  # into the frame, and out of it again
    page.wait_for_function("() => document.activeElement.shadowRoot.activeElement.tagName === 'IFRAME'")
    page.keyboard.press("Escape")
    expect(page.locator("segpo-rollouts .viewer")).to_be_hidden()
    assert "sample=" not in page.url
    page.go_back()
    expect(page.locator("segpo-rollouts .viewer")).to_be_visible()


def test_a_pasted_link_opens_its_rollout_whole(visit, app):
    page = visit(app + "?run=alpha&step=5&group=1&sample=0")
    inside = frame(page)
    expect(inside.locator(".eyebrow").first).to_contain_text("step 5 · group 1 · sample 0")
    kinds = inside.locator(".together > .part").evaluate_all("parts => parts.map(p => p.dataset.kind)")
    assert kinds == ["ribbon", "staircase", "roles", "group"]
    assert inside.locator("img").first.evaluate("i => i.complete && i.naturalWidth") == 48
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    saved = Path(download.value.path()).read_text(encoding="utf-8")
    assert download.value.suggested_filename == "alpha-rollout-5-1-0.html"
    assert (
        "default-src 'none'" in saved
        and "alpha · step 5 · group 1 · sample 0" in saved
        and "http://" not in (saved.partition("</style>")[0])
    )
    # a row of the group, chosen in the frame, opens in the app
    other = inside.locator("[data-kind=group]").get_by_role("button", name=re.compile("open", re.I)).first
    other.click()
    page.wait_for_function("!location.search.includes('sample=0')")
    expect(inside.locator(".eyebrow").first).to_contain_text("sample " + re.search(r"sample=(\d+)", page.url)[1])


def test_a_link_or_a_card_brings_its_neighbours(visit, app):
    page = visit(app + "?run=alpha&step=5&group=1&sample=0")
    selected, heading = page.locator("segpo-rollouts tr[aria-selected]"), page.locator("segpo-rollouts .viewer h2")
    expect(selected).to_have_attribute("aria-label", re.compile("^alpha, step 5 · group 1 · sample 0:"), timeout=SLOW)
    page.get_by_label("Next rollout").click()
    expect(heading).to_have_text("alpha · step 5 · group 1 · sample 1", timeout=SLOW)
    page.get_by_label("Rollout before").click()
    page.get_by_label("Rollout before").click()
    expect(heading).to_have_text(re.compile("^alpha · step 5 · group 0 · sample"), timeout=SLOW)
    expect(page.get_by_label("Run", exact=True).first).to_have_value("alpha", timeout=SLOW)
    # a filter that the rollout does not fit gives way, one that it fits stays
    page.goto(app + "?run=beta&step=5&group=1&sample=0&f.text=no+such+words&f.sort=step")
    expect(selected).to_have_attribute("aria-label", re.compile("^beta, step 5 · group 1 · sample 0:"), timeout=SLOW)
    assert "f.text" not in page.url and "f.run=beta" in page.url and "f.sort=step" in page.url
    page.goto(app + "?tab=live&live=alpha")
    page.locator("segpo-live .card .open").last.click()
    expect(selected).to_have_count(1, timeout=SLOW)
    page.get_by_label("Next rollout").click()
    expect(heading).to_have_text(re.compile("^alpha · step"), timeout=SLOW)


def test_what_is_left_out_is_named(visit, tmp_path):
    write_run(tmp_path / "far", steps=1)
    write_run(tmp_path / "runs" / "here", steps=1)
    (tmp_path / "runs" / "a, link").symlink_to(tmp_path / "far")
    with serving(tmp_path / "runs") as (address, _):
        page = visit(f"http://{address}/")
        page.locator("segpo-top summary", has_text="1 left out").click()
        expect(page.locator("segpo-top li")).to_contain_text("a, link is a link that leads out of", timeout=SLOW)
        page.context.close()  # it asks again and again, and the app ends first


def test_inspect_asks_of_runs_steps_and_cuts(visit, app):
    page = visit(app + "?tab=inspect&i.run=alpha")
    inside = frame(page, "segpo-inspect")
    expect(inside.locator("h1")).to_have_text("Can I trust these advantages?", timeout=SLOW)
    expect(inside.locator(".main-svg").first).to_be_visible(timeout=SLOW)
    page.get_by_role("button", name="What did a step learn?").click()
    expect(inside.locator(".eyebrow").first).to_contain_text("alpha · SAPO (segment-aligned) · step 21", timeout=SLOW)
    page.get_by_label("Recorded step before").click()
    expect(inside.locator(".eyebrow").first).to_contain_text("step 17", timeout=SLOW)
    assert "i.step=17" in page.url and "q=forensics" in page.url
    inside.locator(".fo-top td.words button").first.click()
    expect(page.locator("segpo-rollouts .viewer h2")).to_have_text(re.compile("^alpha · step 17 ·"), timeout=SLOW)
    page.get_by_role("button", name="Cuts").click()
    expect(inside.locator("h2").first).to_have_text("Are the cuts at real decisions?", timeout=SLOW)
    expect(inside.locator(".eyebrow").first).to_contain_text("step 17", timeout=SLOW)


def test_an_unusual_step_opens_what_it_learned_from(visit, app):
    page = visit(app + "?live=alpha")
    reward = chart(page, "Reward")
    reward.locator("svg.opens").click(position={"x": 150, "y": 60})
    expect(page.get_by_role("button", name="What did a step learn?")).to_have_attribute(
        "aria-pressed", "true", timeout=SLOW
    )
    expect(frame(page, "segpo-inspect").locator("h2").first).to_have_text(
        "What did this step learn from?", timeout=SLOW
    )


def test_a_note_is_kept_found_again_and_shared_between_windows(visit, runs, tmp_path):
    with serving(runs, SEGPO_NOTES=str(tmp_path / "notes.jsonl")) as (address, _):
        link = f"http://{address}/?run=alpha&step=5&group=1&sample=0"
        pages = [visit(link, quiet=False), visit(link, quiet=False)]  # a browser itself tells of a conflict
        for page in pages:
            page.locator("segpo-rollouts tr[aria-selected]").wait_for(state="attached", timeout=SLOW)
            page.get_by_role("button", name="Note", exact=True).click()
            expect(page.get_by_label("Labels")).to_be_focused(timeout=SLOW)
        for page, words in zip(pages, ("first", "second"), strict=True):
            page.get_by_label("Labels").fill("odd, ${window.hacked=1}")
            page.get_by_label("Note", exact=True).last.fill(words)
            page.get_by_role("button", name="Keep").click()
        said = [page.locator(".notebox [role=status]") for page in pages]
        expect(said[0]).to_contain_text("Kept in", timeout=SLOW)
        expect(said[1]).to_contain_text("changed in another window meanwhile", timeout=SLOW)
        page = pages[0]
        page.goto(f"http://{address}/?tab=rollouts&f.label=odd")
        counted(page, "1 of 157 rollouts")
        expect(rows(page).first.locator(".label").nth(1)).to_have_text("${window.hacked=1}", timeout=SLOW)
        assert page.evaluate("window.hacked ?? null") is None
        page.goto(f"http://{address}/?tab=rollouts&f.run=alpha")
        page.get_by_text("Failures in groups").click()
        group = page.locator(".failure-lists li").first
        many = group.inner_text(timeout=SLOW).split()[-1]
        group.get_by_role("button").click()
        expect(page.locator("segpo-rollouts [role=status]").first).to_have_text(f"{many} of 72 rollouts", timeout=SLOW)
        with page.expect_download(timeout=SLOW) as download:
            page.get_by_role("button", name="JSONL").click()
        assert len(Path(download.value.path()).read_text(encoding="utf-8").splitlines()) == int(many)
        rows(page).first.click()
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator(".askbox")).to_contain_text("This run keeps no checkpoint to ask.", timeout=SLOW)
        for page in pages:
            page.context.close()  # they ask again and again, and the app ends first


def test_newer_rollouts_are_told_and_nothing_moves(visit, tmp_path):
    path = write_run(tmp_path / "runs" / "growing", steps=8)
    with serving(tmp_path / "runs") as (address, _):
        page = visit(f"http://{address}/?tab=rollouts")
        counted(page, "24 rollouts")
        before = rows(page).first.inner_text()
        Recorder(path).rollouts(9, [row(9, 0, i, "<think> 1 </think>") for i in range(3)], {})
        more = page.get_by_role("button", name="3 new: show them")
        more.wait_for()
        assert rows(page).first.inner_text() == before
        more.click()
        expect(rows(page).first).to_contain_text("9")
        counted(page, "27 rollouts")
        page.context.close()  # it asks again and again, and the app ends first


def test_hostile_texts_do_nothing_anywhere(visit, app):
    page = visit(app + "?tab=rollouts&f.run=&f.text=hacked")
    counted(page, "1 of 157 rollouts")
    expect(rows(page).first.locator("td.c-text")).to_contain_text("window.hacked=1</script>")
    rows(page).first.click()
    inside = frame(page)
    expect(inside.locator(".t").first).to_have_text(HOSTILE[0])
    expect(page.locator("segpo-rollouts .viewer h2")).to_contain_text("evil ${window.hacked=1}{{7*7}}<img src=x")
    assert inside.locator("body").evaluate("() => window.hacked ?? null") is None
    # a frame may not reach the app around it
    assert inside.locator("body").evaluate(
        "() => { try { return String(parent.document) } catch (e) { return e.name } }"
    ) == ("SecurityError")
    page.get_by_role("button", name="Compare methods").click()
    expect(frame(page, "segpo-compare").locator("h2").first).to_have_text("What would each method blame?")
    tab(page, "Live")
    expect(page.locator("segpo-live .run[aria-pressed=true]")).to_contain_text("evil")
    expect(page.locator("segpo-live .card").first).to_be_visible()
    strange = "img:not([src^='/segpo/picture/']), script, iframe"
    assert page.locator("segpo-live").evaluate(f'el => el.shadowRoot.querySelectorAll("{strange}").length') == 0
    assert page.evaluate("window.hacked ?? null") is None
    assert "49" not in page.locator("segpo-live .picker-runs").inner_text()


def test_messages_from_strangers_are_ignored(visit, app):
    page = visit(app + "?run=alpha&step=5&group=1&sample=0")
    frame(page).locator(".eyebrow").first.wait_for()
    page.evaluate("postMessage({ segviz: 'close' }, '*')")
    page.evaluate("postMessage({ segviz: 'open', step: 1, group: 0, sample: 0 }, '*')")
    frame(page).locator("body").evaluate(
        "() => parent.postMessage({ segviz: 'open', step: '../..', group: {}, sample: -1 }, '*')"
    )
    page.wait_for_timeout(300)
    expect(page.locator("segpo-rollouts .viewer h2")).to_have_text("alpha · step 5 · group 1 · sample 0")


# compare


def test_two_runs_on_the_same_prompt(visit, app):
    page = visit(app + "?tab=compare&c=runs&cr=alpha&cr=beta")
    panel = page.locator("segpo-compare")
    expect(panel.locator(".prompt").first).to_contain_text(re.compile(r"A: \d of 4 right.*B: \d of 4 right", re.S))
    example = panel.locator(".prompt b").nth(2).inner_text()
    panel.locator(".prompt").nth(2).click()
    expect(panel.locator(".detail h2")).to_have_text(example)
    expect(panel.locator(".side h3")).to_have_text(["A: alpha", "B: beta"])
    inside = page.frame_locator("segpo-compare iframe.view")
    expect(inside.locator(".vs-heads")).to_contain_text(example, timeout=SLOW)
    panel.locator(".side").first.locator(".chip").nth(3).click()
    expect(inside.locator(".vs-heads p").first).to_contain_text("sample 3", timeout=SLOW)
    expect(panel.locator(".prompt img").first).to_be_visible(timeout=SLOW)
    expect(panel.locator(".prompt .words").first).to_contain_text("shapes are there?", timeout=SLOW)


def test_one_prompt_over_training_and_every_method(visit, tmp_path):
    path = write_run(tmp_path / "runs" / "again", steps=4)
    recorder = Recorder(path)
    for step in (5, 6, 7):
        recorder.rollouts(
            step, [row(step, 0, i, "<think> 1 </think>", example_id="shapes/again") for i in range(2)], {}
        )
    with serving(tmp_path / "runs") as (address, _):
        page = visit(f"http://{address}/?tab=compare&c=time")
        panel = page.locator("segpo-compare")
        # held-out problems first, each before and after
        expect(frame(page, "segpo-compare").locator(".ot .verdict")).to_contain_text("Of these 4 held-out problems")
        page.get_by_role("button", name="Training prompts instead").click()
        expect(panel.locator(".prompt").first).to_contain_text("shapes/again6 completions, at 3 steps")
        expect(panel.locator(".stepline")).to_contain_text(["step 5", "step 6", "step 7"])
        panel.locator(".chip").last.click()
        expect(frame(page, "segpo-compare").locator(".eyebrow").first).to_contain_text("step 7 · group 0 · sample 1")
        page.get_by_role("button", name="One rollout, every method").click()
        expect(frame(page, "segpo-compare").locator("h2").first).to_have_text("What would each method blame?")
        expect(panel).to_contain_text("segpo credit")
        page.context.close()  # it asks again and again, and the app ends first


# when something is wrong


def test_every_trouble_is_said_in_words(visit, tmp_path):
    runs = tmp_path / "runs"
    with serving(runs) as (address, process):
        url = f"http://{address}/"
        page = visit(url, quiet=False)  # a server that is gone is an error in the console
        expect(page.locator("segpo-live")).to_contain_text("No runs yet")
        tab(page, "Rollouts")
        expect(page.locator("segpo-rollouts")).to_contain_text("No runs yet")
        tab(page, "Compare")
        expect(page.locator("segpo-compare")).to_contain_text("No runs yet")
        # a run that is being copied, its manifest last
        whole = write_run(tmp_path / "whole", steps=8)
        shutil.copytree(whole / "metrics", runs / "copied" / "metrics")
        tab(page, "Live")
        expect(page.locator("segpo-live .run")).to_contain_text("perhaps the run is just being copied here")
        for kind in ("rollouts", "images"):
            shutil.copytree(whole / kind, runs / "copied" / kind)
        torn = runs / "copied" / "rollouts" / "step-000005.rank0.parquet"
        torn.write_bytes(torn.read_bytes()[:900])
        shutil.copy(whole / "run.json", runs / "copied" / "run.json")
        expect(page.locator("segpo-live figure.chart").first).to_be_visible()
        expect(page.locator("segpo-live .notice").first).to_contain_text("step-000005.rank0.parquet cannot be read")
        # a link to what is not recorded
        page.goto(f"{url}?run=copied&step=3&group=0&sample=0")
        expect(frame(page).get_by_role("alert")).to_contain_text("step 3 has no recorded rollouts")
        # started anew under the same name
        shutil.rmtree(runs / "copied")
        page.goto(f"{url}?live=copied")
        expect(page.locator("segpo-live .notice").first).to_contain_text("no run 'copied' here (any more)")
        recorder = Recorder(runs / "copied")
        recorder.start({"method": "grpo"})
        expect(page.locator("segpo-live")).to_contain_text("No step is finished yet")
        recorder.metrics(1, {"reward": 0.777})
        expect(page.locator("segpo-live figure.chart").first).to_contain_text("0.777")
        # the app itself is ended
        process.terminate()
        expect(page.locator("segpo-live .notice").first).to_contain_text("The app's server does not answer")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 1024, 390])
def test_every_tab_fits_every_width_in_light_and_dark(visit, app, width, scheme):
    page = visit(app, width, scheme)
    places = {
        "?live=alpha": "segpo-live .card",
        "?tab=rollouts": "segpo-rollouts tbody tr",
        "?tab=compare": "segpo-compare iframe",
        "?tab=start": "segpo-trainer .lead",
        "?run=alpha&step=5&group=1&sample=0": "segpo-rollouts iframe",
    }
    for place, shown in places.items():
        page.goto(app + place)
        page.locator(shown).first.wait_for()
        time.sleep(0.3)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, place
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(251, 250, 248)") == (scheme == "light")


@pytest.mark.parametrize("size", [(1280, 800), (1440, 900)])
def test_a_rollout_opens_with_its_whole_text(visit, app, size):
    page = visit(app)
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.goto(f"{app}?tab=rollouts&run=alpha&step=1&group=0&sample=1")
    tokens = page.frame_locator("segpo-rollouts iframe.view").locator("[data-kind=ribbon] .t")
    expect(tokens.first).to_be_visible(timeout=SLOW)
    boxes = [token.bounding_box() for token in tokens.all()]
    assert len(boxes) > 40
    assert sum(box["y"] + box["height"] <= size[1] for box in boxes) == len(boxes)
