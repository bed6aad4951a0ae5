"""The app's Rollouts and Inspect, in a real Chromium, on its real server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from segpo_core.record.store import Recorder
from tests.app.served import serving
from tests.browser.panels import chart, counted, frame, rows, tab
from tests.fakes.fake_run import HOSTILE, row, write_run

pytestmark = pytest.mark.browser

SLOW = 60_000  #: ms; on a busy machine a page of a thousand rollouts takes a while


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
