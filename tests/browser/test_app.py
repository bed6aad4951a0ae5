"""The app as a whole, in a real Chromium, on its real server; and Compare."""

from __future__ import annotations

import re
import shutil
import time

import pytest
from playwright.sync_api import expect

from segpo_core.record.store import Recorder
from tests.app.served import serving
from tests.browser.panels import frame, tab
from tests.fakes.fake_run import row, write_run

pytestmark = pytest.mark.browser

SLOW = 60_000  #: ms; on a busy machine a page of a thousand rollouts takes a while


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
        with page.expect_response("**/segpo/api/prompt?*"):
            panel.locator(".prompt").first.click()  # the list comes anew, too, while files are read
        expect(panel.locator(".chip").last).to_have_attribute("aria-pressed", "true")
        expect(frame(page, "segpo-compare").locator(".eyebrow").first).to_contain_text("step 7 · group 0 · sample 1")
        page.get_by_role("button", name="One rollout, every method").click()
        expect(frame(page, "segpo-compare").locator("h2").first).to_have_text("What would each method blame?")
        expect(panel).to_contain_text("segpo credit")
        page.context.close()  # it asks again and again, and the app ends first


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
