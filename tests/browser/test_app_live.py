"""The app's Live, in a real Chromium, on its real server, beside real training."""

from __future__ import annotations

import json
import re
import time
from contextlib import contextmanager
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import expect

from segpo_core.record.store import Recorder, read_metrics
from tests.app.served import serving, told
from tests.browser.panels import chart, frame, tab
from tests.fakes.fake_run import row, write_run

pytestmark = pytest.mark.browser


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
