"""The tree and the roles in a real Chromium: offline, by mouse and by keyboard, with texts that try to run."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page

import segviz as sv
from segviz.show.encode import script_json
from segviz.show.theme import css, script
from segviz.views.tree import tree_data
from tests.fakes.fake_run import HOSTILE, hostile_row, write_run
from tests.views.made import seen, write_tree

pytestmark = pytest.mark.browser

#: A page whose host answers when a view asks for a rollout: it writes down what it hears.
HOSTED = """<!doctype html><meta charset="utf-8"><style>{css}</style><main id="segviz"></main>
<script type="application/json" id="data">{data}</script><script type="module">{script}
window.heard = [];
const data = JSON.parse(document.getElementById("data").textContent);
render({{ el: document.getElementById("segviz"), data, host: {{ open: (key) => window.heard.push(key) }} }});
</script>"""


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> sv.Run:
    return sv.open(write_tree(tmp_path_factory.mktemp("trees") / "small", (3, 2)))


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> sv.Run:
    return sv.open(write_tree(tmp_path_factory.mktemp("trees") / "large", (4, 4, 4), tokens=3))


def box(page: Page, view: sv.View, number: int):
    """The box of node `number`."""
    place = [node["node"] for node in view.data["nodes"]].index(number)
    return page.locator(f'.tr-node[data-i="{place}"]')


def focused(page: Page, view: sv.View) -> int:
    """Number of the node that has the keyboard."""
    return view.data["nodes"][int(page.evaluate("document.activeElement.dataset.i ?? -1"))]["node"]


def numbers(page: Page) -> dict[str, str]:
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll('.tr-card .inspect dt, .roles-view .inspect dt')]
        .map(dt => [dt.textContent, dt.nextSibling.textContent]))"""
    )


# --- the tree -----------------------------------------------------------------------------------------------------


def test_every_node_is_a_box_whose_height_is_what_hangs_on_it(show, small):
    view = sv.tree(small, 1, 0)
    page = show(view)
    assert page.locator(".tr-node").count() == 10
    heights = {n: box(page, view, n).bounding_box()["height"] for n in range(10)}
    below = [n["node"] for n in view.data["nodes"] if n["up"] >= 0 and view.data["nodes"][n["up"]]["node"] == 1]
    assert len(below) == 2 and heights[1] > sum(heights[n] for n in below)
    for node in view.data["nodes"][1:]:
        mine, parent = box(page, view, node["node"]), view.data["nodes"][node["up"]]["node"]
        assert mine.bounding_box()["x"] >= box(page, view, parent).bounding_box()["x"] + 20
        says = mine.get_attribute("aria-label")
        assert ("no advantage" in says) == (node["adv"] == 0) == ("tr-zero" in mine.get_attribute("class"))
        assert ("not trained" in says) == (not node["trained"]) == ("tr-untrained" in mine.get_attribute("class"))
        assert mine.get_attribute("aria-level") == str(node["depth"] + 1)
        if node["adv"]:
            sign = "+" if node["adv"] > 0 else "−"
            assert mine.locator("b").text_content() == f"{sign}{abs(node['adv']):.2f}"
            assert mine.get_attribute("data-l").startswith("p" if node["adv"] > 0 else "n")


def test_no_box_lies_on_its_sibling(show, large):
    page = show(sv.tree(large, 1, 0))
    overlaps = page.evaluate(
        """() => { const b = [...document.querySelectorAll('.tr-node')].map(e => e.getBoundingClientRect()); let n = 0;
        b.forEach((p, i) => b.slice(i + 1).forEach(q => {
          n += Math.min(p.right, q.right) - Math.max(p.left, q.left) > 0.5
            && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 0.5; })); return n; }"""
    )
    assert overlaps == 0


def test_hover_shows_the_numbers_and_the_text_of_the_node(show, small):
    view = sv.tree(small, 1, 0)
    page, node = show(view), small.nodes(1, 0)[2]
    box(page, view, 2).hover()
    shown = numbers(page)
    assert float(shown["value"]) == pytest.approx(node["value"], abs=1e-3)
    assert float(shown["standard error"]) == pytest.approx(node["stderr"], abs=1e-3)
    assert shown["leaves below"] == "2" and shown["tokens"] == "1 to 6"
    assert shown["trained"] == ("yes" if node["trained"] else "no")
    text = next(n["text"] for n in view.data["nodes"] if n["node"] == 2)
    assert page.locator(".tr-piece").text_content() == text


def test_a_click_opens_the_ribbon_of_that_path_at_the_node(show, small):
    view = sv.tree(small, 1, 0)
    page = show(view)
    assert page.locator(".ribbon").count() == 0
    leaf = next(n for n in view.data["nodes"] if n["depth"] == 2 and n["sample"] == 3)
    box(page, view, leaf["node"]).click()
    page.wait_for_selector(".ribbon")
    assert "sample 3" in page.locator(".ribbon .eyebrow").text_content()
    assert page.locator(".ribbon .inspect h3").first.text_content().startswith(f"Token {leaf['start'] + 1} ")
    assert page.locator(".ribbon .inspect h3").nth(1).text_content().startswith("Segment 2 ")
    assert box(page, view, leaf["node"]).get_attribute("aria-selected") == "true"
    assert page.locator(".tr-node.tr-onpath").count() == 3
    # an inner node that this completion passes keeps it, another one opens its own
    box(page, view, view.data["nodes"][leaf["up"]]["node"]).click()
    page.locator(".ribbon .inspect h3", has_text="Token 1 ").wait_for()
    assert "sample 3" in page.locator(".ribbon .eyebrow").text_content()
    box(page, view, 3).click()
    page.locator(".ribbon .eyebrow", has_text="sample 4").wait_for()
    assert page.locator(".ribbon").count() == 1


def test_a_token_chosen_in_the_ribbon_chooses_its_node(show, small):
    view = sv.tree(small, 1, 0)
    page = show(sv.together(view, sv.ribbon(small.rollout(1, 0, 5))))
    page.locator('.part[data-kind="ribbon"] .t[data-t="8"]').click()
    number = small.rollout(1, 0, 5).row["node_ids"][8]
    assert box(page, view, number).get_attribute("aria-selected") == "true"
    assert page.locator(".tr-node.tr-onpath").count() == 3
    assert page.evaluate("document.activeElement.classList.contains('t')"), "the keyboard stays where it was"
    page.locator('.part[data-kind="ribbon"] .t[data-t="2"]').click()
    number = small.rollout(1, 0, 5).row["node_ids"][2]
    assert page.locator('.tr-node[aria-selected="true"]').count() == 1
    assert box(page, view, number).get_attribute("aria-selected") == "true"


def test_the_keyboard_walks_the_tree_and_opens_a_path(show, small):
    view = sv.tree(small, 1, 0)
    page, nodes = show(view), view.data["nodes"]
    page.locator('.tr-node[tabindex="0"]').focus()
    assert page.locator('.tr-node[tabindex="0"]').count() == 1
    page.keyboard.press("Home")
    assert focused(page, view) == 0
    page.keyboard.press("ArrowRight")
    assert focused(page, view) == 1
    page.keyboard.press("ArrowDown")
    assert focused(page, view) == 2
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    child = focused(page, view)
    assert nodes[next(n["up"] for n in nodes if n["node"] == child)]["node"] == 1
    page.keyboard.press("ArrowLeft")
    assert focused(page, view) == 1
    page.keyboard.press("f")
    assert focused(page, view) == nodes[view.data["fork"]["node"]]["node"]
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    page.wait_for_selector(".ribbon")
    assert "sample 5" in page.locator(".ribbon .eyebrow").text_content()


def test_equal_subtrees_collapse_and_open_one_by_one(show, large):
    view = sv.tree(large, 1, 0)
    page = show(view)
    shown = page.locator(".tr-node").count()
    assert shown < 85
    many = page.locator(".tr-node", has=page.locator(".tr-many", has_text="×")).first
    said = int(many.locator(".tr-many").first.text_content().split()[-1])
    assert f"{said} equal siblings" in many.get_attribute("aria-label")
    place = many.get_attribute("data-i")
    many.focus()
    page.keyboard.press("Space")
    assert page.locator(".tr-node").count() == shown + said - 1
    assert page.evaluate("document.activeElement.dataset.i") == place, "what had the keyboard keeps it"
    page.keyboard.press("Space")
    assert page.locator(".tr-node").count() == shown
    folded = page.locator('.tr-node[aria-expanded="false"]').first
    place = folded.get_attribute("data-i")
    folded.focus()
    page.keyboard.press("Space")
    assert page.locator(f'.tr-node[data-i="{place}"]').get_attribute("aria-expanded") == "true"
    page.get_by_role("button", name="Collapse what is equal").click()
    assert page.locator(".tr-node").count() == 85


def test_a_path_that_is_not_in_the_page_is_asked_for_or_named(show, large):
    view = sv.tree(large, 1, 0)
    page = show(view)
    page.get_by_role("button", name="Collapse what is equal").click()
    away = next(n for n in view.data["nodes"] if n["depth"] == 3 and n["sample"] not in view.data["ribbons"])
    box(page, view, away["node"]).click()
    assert f"sv.ribbon(run.rollout(1, 0, {away['sample']}))" in page.locator(".tr-ask").text_content()


def test_where_somebody_answers_a_path_is_asked_for(show, large, tmp_path):
    view = sv.tree(large, 1, 0)
    page_file = tmp_path / "hosted.html"
    page_file.write_text(HOSTED.format(css=css(), data=script_json(view.data), script=script()), encoding="utf-8")
    page = show(page_file)
    page.get_by_role("button", name="Collapse what is equal").click()
    away = next(n for n in view.data["nodes"] if n["depth"] == 3 and n["sample"] not in view.data["ribbons"])
    box(page, view, away["node"]).click()
    assert page.evaluate("window.heard") == [{"step": 1, "group": 0, "sample": away["sample"]}]


@pytest.mark.parametrize("width", [1280, 800])
def test_the_tree_never_makes_the_page_wider(show, large, width):
    page = show(sv.tree(large, 1, 0), width, "dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = page.locator(".tr-box").evaluate("e => [e.scrollHeight, e.clientHeight]")
    assert sizes[0] > sizes[1], "it scrolls by itself"


def test_hostile_texts_are_shown_and_run_nothing(show, tmp_path):
    run = sv.open(write_tree(tmp_path / "hostile", (2, 2), tokens=len(HOSTILE), text=lambda _: list(HOSTILE)))
    view = sv.tree(run, 1, 0)
    page = show(view)
    box(page, view, 1).click()
    page.wait_for_selector(".ribbon")
    assert "</script><script>window.hacked=1</script>" in page.locator(".tr-piece").text_content()
    assert "⟨202E⟩" in page.locator(".tr-piece").text_content(), "what turns the line around is made visible"
    assert page.locator(".tree-view img[src=x]").count() == 0


def test_a_run_without_nodes_says_what_to_do(show, tmp_path):
    page = show(sv.tree(sv.open(write_run(tmp_path / "grpo", method="grpo", steps=1)), 1, 0))
    assert "segpo train --method spo_tree" in page.locator(".notice").text_content()
    assert page.locator(".tr-node").count() == 0


def test_one_node_alone_is_drawn(show, small):
    from segviz.views.tree import tree_data

    root = small.nodes(1, 0)[:1]
    page = show(sv.View("tree", "x", tree_data(root, []), ""))
    assert page.locator(".tr-node").count() == 1 and "there is no fork" in page.locator(".verdict").text_content()


# --- the roles ----------------------------------------------------------------------------------------------------


def test_tokens_carry_their_role_in_more_than_colour(show):
    rollout = seen()
    page = show(sv.roles(rollout))
    names = ["other", "perception", "reasoning", "answer"]
    assert page.locator(".t").evaluate_all("ts => ts.map(t => t.dataset.r)") == [
        names[r] for r in rollout.row["role_ids"]
    ]
    labels = page.locator(".roles-view .seg .tag i").all_text_contents()
    assert labels == ["perception", "reasoning", "answer"]
    table = page.locator(".ro-table tbody tr").all_text_contents()
    assert len(table) == 4 and "1.5" in table[1] and "+2.00 nats" in table[1] and "not defined" in table[0]


def test_layers_colour_by_weight_and_contrast_and_hatch_what_is_not_defined(show):
    rollout = seen()
    page, ids = show(sv.roles(rollout)), rollout.row["role_ids"]
    page.get_by_role("button", name="Weight").click()
    assert page.locator(".t").evaluate_all("ts => ts.map(t => t.dataset.l[0])") == [
        "p" if r == 1 else "n" if r == 2 else "z" for r in ids
    ]
    page.locator(".t").first.focus()
    page.keyboard.press("3")
    assert page.locator(".t").evaluate_all("ts => ts.map(t => t.dataset.l[0])") == ["p" if r == 1 else "u" for r in ids]
    assert "no perception token" in page.locator(".legend").text_content()
    page.keyboard.press("4")
    assert page.locator(".t").evaluate_all("ts => ts.map(t => t.dataset.l[0])") == ["p" if r == 2 else "u" for r in ids]


def test_a_layer_that_was_not_recorded_cannot_be_chosen(show):
    page = show(sv.roles(seen(weights=None, perception_contrast=None)))
    assert page.get_by_role("button", name="Weight").is_disabled()
    assert page.get_by_role("button", name="Seeing contrast").is_disabled()
    assert page.get_by_role("button", name="Evidence contrast").is_enabled()


def maps_of(rollout: sv.Rollout) -> np.ndarray:
    """A map a token, 2 x 3: token t depends on cell t % 6 by 1 nat and is hindered by the next; one is not measured."""
    maps = np.zeros((len(rollout.pieces), 6))
    for t in range(len(maps)):
        maps[t, t % 6], maps[t, (t + 1) % 6], maps[t, (t + 3) % 6] = 1.0, -0.4, np.nan
    return maps.reshape(-1, 2, 3)


def test_the_map_over_the_image_is_that_of_the_chosen_token(show):
    rollout = seen()
    page = show(sv.roles(rollout, corrupted=Image.new("RGB", (48, 48)), patches=maps_of(rollout)))
    assert page.locator(".ro-figures img").count() == 2 and page.locator(".ro-cell").count() == 6
    assert "perception tokens, mean" in page.locator(".ro-legend").text_content()
    page.locator('.t[data-t="2"]').click()
    page.mouse.move(2, 2)
    cells = page.locator(".ro-cell")
    assert cells.all_text_contents() == ["", "", "+1.00", "−0.40", "", "?"]
    assert "ro-under" in cells.nth(3).get_attribute("class") and "ro-lost" in cells.nth(5).get_attribute("class")
    assert cells.nth(3).evaluate("e => getComputedStyle(e).borderTopStyle") == "dashed"
    assert page.locator(".ro-reading").text_content().startswith("row 1, column 3: +1.00 nats for token 3 ")
    cells.nth(5).hover()
    assert page.locator(".ro-reading").text_content().startswith("row 2, column 3: not measured")
    page.locator('.t[data-t="3"]').hover()  # pointing is enough to look, what was chosen comes back
    assert cells.nth(3).text_content() == "+1.00"
    page.mouse.move(2, 2)
    assert cells.nth(2).text_content() == "+1.00"
    page.get_by_role("button", name="Back to the mean").click()
    assert "perception tokens, mean" in page.locator(".ro-legend").text_content()


def test_the_keyboard_reaches_tokens_and_patches(show):
    rollout = seen()
    page = show(sv.roles(rollout, patches=maps_of(rollout)))
    grid = page.locator(".ro-grid")
    assert "2 rows by 3 columns" in grid.get_attribute("aria-label")
    page.locator('.t[tabindex="0"]').focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.t") == "1"
    assert numbers(page)["role"] == "perception" and numbers(page)["seeing contrast"] == "+2 nats"
    grid.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".ro-reading").text_content().startswith("row 1, column 3: −0.40 nats")
    page.locator('.t[tabindex="0"]').focus()
    page.keyboard.press("e")
    assert page.evaluate("document.activeElement.dataset.t") == str(rollout.row["error_start"])
    page.keyboard.press("Escape")
    assert "mean" in page.locator(".ro-legend").text_content()


def test_a_token_chosen_in_another_view_is_chosen_here_and_back(show):
    rollout = seen()
    page = show(sv.together(sv.roles(rollout, patches=maps_of(rollout)), sv.ribbon(rollout)))
    page.locator('.part[data-kind="ribbon"] .t[data-t="7"]').click()
    assert page.locator(".roles-view .t.ro-now").get_attribute("data-t") == "7"
    assert "token 8 " in page.locator(".ro-legend").text_content()
    page.locator('.roles-view .t[data-t="4"]').click()
    assert page.locator('.part[data-kind="ribbon"] .inspect h3').first.text_content().startswith("Token 5 ")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 800])
def test_the_roles_fit_the_page(show, width, scheme):
    page = show(sv.roles(seen(), corrupted=Image.new("RGB", (48, 48)), patches=np.ones((12, 12))), width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_missing_images_and_text_only_are_drawn_and_told(show):
    rollout = seen()
    page = show(sv.roles(sv.Rollout(rollout.row, {}), patches=np.ones((2, 2))))
    assert page.locator(".ro-missing").count() == 1 and page.locator(".ro-cell").count() == 4
    page = show(sv.roles(sv.Rollout(rollout.row | {"images": []}, {}), patches=np.ones((2, 2))))
    assert "text only" in page.locator(".ro-figures").text_content() and page.locator(".ro-cell").count() == 4
    page = show(sv.roles(seen(role_ids=None, weights=None, pieces=None)))
    assert "No roles are recorded" in page.locator(".verdict").text_content()
    page = show(sv.roles(seen(text="", pieces=[])))
    assert "The completion is empty." in page.locator(".verdict").text_content()


def test_hostile_texts_in_the_roles_run_nothing(show):
    base = hostile_row()
    rollout = sv.Rollout(base | {"role_ids": [1] * len(base["pieces"]), "method": HOSTILE[1]})
    page = show(sv.roles(rollout, title=HOSTILE[0], patches=np.ones((len(base["pieces"]), 2, 2))))
    page.locator('.t[data-t="0"]').click()
    assert page.locator("h2").text_content() == HOSTILE[0]
    assert page.locator(".piece").text_content().startswith("</script><script>window.hacked")
    assert page.locator("img[src=x]").count() == 0


def test_agreeing_samples_are_not_shown_as_certainty(show, tmp_path):
    rows = [(0, -1, 0.5, 0.5), (1, 0, 0.0, 0.0), (2, 0, 1.0, 0.0), (3, 1, 0.0, None), (4, 1, 0.0, None)]
    rows += [(5, 2, 1.0, None), (6, 2, 1.0, None)]
    table = [
        {"step": 1, "group": 0, "method": "spo_tree", "node": n, "parent": up, "sample": 0, "start": 0, "end": n,
         "value": value, "stderr": error, "samples": 1 if n > 2 else 2, "advantage": None if up < 0 else 0.5,
         "trained": True}
        for n, up, value, error in rows
    ]  # fmt: skip
    page = show(sv.View("tree", "Which fork decided?", tree_data(table, [])))
    box = page.locator('.tr-node[aria-label^="Node 2"]').first
    assert "all alike" in box.text_content() and "±" not in box.text_content()
    assert "value 1, all alike" in box.get_attribute("aria-label")
    box.hover()
    assert numbers(page)["standard error"] == "not known"
    assert "All 2 leaves agree" in page.locator(".inspect").text_content()
