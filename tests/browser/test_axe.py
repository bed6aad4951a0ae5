"""axe-core finds nothing wrong: every view in its page, every tab of the app, light and dark."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from playwright.sync_api import Page, expect

import segviz as sv
from segviz.views.counterfactual import QUESTION, _fallback, counterfactual_data
from tests.app.served import serving
from tests.browser.axe import violations
from tests.fakes.fake_run import write_run
from tests.views.made import seen, write_tree

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("axe")
    write_run(folder / "alpha")
    write_run(folder / "beta", "grpo")
    return folder


@pytest.fixture(scope="module")
def made(folder):
    """Kind -> a view."""
    run, other = sv.open(folder / "alpha"), sv.open(folder / "beta")
    rollout = run.rollout(1, 0, 1)
    tree = sv.open(write_tree(folder / "tree", (2, 2)))
    drawn = [SimpleNamespace(token_ids=[9], pieces=[" x"], reward=float(i % 2), finished=True) for i in range(4)]
    data = counterfactual_data(drawn, drawn, rollout, 1)
    return {
        "ribbon": sv.ribbon(rollout),
        "staircase": sv.staircase(rollout),
        "compare": sv.compare({"sapo": rollout, "grpo": other.rollout(1, 0, 1)}),
        "group": sv.group(run, 1, 0),
        "tree": sv.tree(tree, 1, 0),
        "roles": sv.roles(seen(), patches=np.ones((2, 2))),
        "boundaries": sv.boundaries(rollout),
        "versus": sv.versus(rollout, other.rollout(1, 0, 1)),
        "board": sv.board(run),
        "boards": sv.board([run, other]),
        "forensics": sv.forensics(run, 1),
        "counterfactual": sv.View("counterfactual", QUESTION, data, _fallback(data)),
        "rightness": sv.rightness(),
        "over_training": sv.over_training(run),
        "report": sv.report(run),
        "together": sv.together(sv.ribbon(rollout), sv.staircase(rollout), title="Two"),
    }


KINDS = (
    "ribbon", "staircase", "compare", "group", "tree", "roles", "boundaries", "versus", "board", "boards", "forensics",
    "counterfactual", "rightness", "over_training", "report", "together",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_view_in_its_page(show, made, kind):
    page = show(made[kind])
    page.wait_for_timeout(300)
    assert violations(page) == []
    page.emulate_media(color_scheme="dark")
    assert violations(page) == []


@pytest.fixture(scope="module")
def address(folder):
    with serving(folder) as (address, _):
        yield f"http://{address}/"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_tab_of_the_app(browser, address, scheme):
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme=scheme, reduced_motion="reduce")
    page: Page = context.new_page()
    page.set_default_timeout(20_000)
    page.goto(address)
    page.wait_for_selector("segpo-top .bar b")
    found = {}
    for name in page.get_by_role("tab").all_inner_texts():
        page.get_by_role("tab", name=name, exact=True).click()
        page.wait_for_timeout(1500)
        found[name] = violations(page)
        for frame in page.frames[1:]:
            if frame.url.startswith("http"):
                found[f"{name}, frame"] = violations(frame)
    page.get_by_role("tab", name="Rollouts", exact=True).click()
    page.locator("segpo-rollouts tbody tr").first.click()
    expect(page.frame_locator("segpo-rollouts iframe.view").locator(".stream").first).to_be_visible()
    found["a rollout is open"] = violations(page) + [line for frame in page.frames[1:] for line in violations(frame)]
    context.close()
    said = [f"{name}: {line}" for name, lines in found.items() for line in lines]
    assert not said, "\n".join(said)
