"""Widgets in a real JupyterLab, its kernel, and a real Chromium."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import nbformat
import pytest
from playwright.sync_api import expect

import segviz as sv
from tests.browser.jupyter import REPOSITORY, Notebook, jupyter
from tests.fakes.fake_run import HOSTILE, hostile_row, write_run
from tests.notebook.test_widgets import WRITER

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CELLS = (
    "import segviz as sv\nrun = sv.open('run')\nwidget = sv.ribbon(run.rollout(1, 0, 1)).widget()\nwidget",
    "explorer = sv.explore(run)\nexplorer",
    "follower = sv.follow('live', every=0.2)\nfollower",
    "sv.ribbon(run.rollout(1, 90, 0))",
)
ACTIVE = "() => window.jupyterapp.shell.currentWidget.content.activeCellIndex"
RIBBON, EXPLORE, FOLLOW, HOSTILE_CELL = range(4)


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    """A notebook in JupyterLab with every cell run."""
    folder = tmp_path_factory.mktemp("lab")
    write_run(folder / "run", steps=24, extra=[hostile_row()])
    expect.set_options(timeout=30_000)
    with jupyter(folder) as address:
        notebook = Notebook(browser, address, folder, CELLS, height=1400)
        notebook.folder = folder
        notebook.run_all()
        expect(notebook.cell(HOSTILE_CELL).locator(".t").first).to_be_visible()
        yield notebook
        notebook.page.context.close()
        assert not notebook.elsewhere, "something was asked for beyond this machine"


@pytest.fixture
def view(lab):
    """view(number) -> the output of that cell, on the screen."""

    def show(number: int):
        cell = lab.cell(number)
        cell.evaluate("(node) => node.scrollIntoView({ block: 'start' })")
        return cell

    return show


def test_a_token_clicked_is_chosen_in_python_and_keys_move_on(lab, view):
    cell = view(RIBBON)
    cell.locator('.t[data-t="4"]').click()
    expect(cell.locator(".inspect h3").first).to_have_text(re.compile("^Token 5 of"))
    assert lab.python("print(widget.selection['key'], widget.selection['token'])") == "1/0/1 4"
    lab.page.keyboard.press("ArrowRight")
    expect(cell.locator(".inspect h3").first).to_have_text(re.compile("^Token 6 of"))
    lab.page.keyboard.press("3")
    expect(cell.locator(".ribbon")).to_have_attribute("data-layer", "entropy")
    assert lab.python("print(widget.selection['token'])") == "5"
    lab.python("widget.selection = {'key': '1/0/1', 'token': 2}")
    expect(cell.locator(".inspect h3").first).to_have_text(re.compile("^Token 3 of"))


def test_keys_of_a_view_and_of_jupyterlab_do_not_meet(lab, view):
    cell = view(RIBBON)
    cells = lab.page.locator(".jp-Notebook .jp-Cell")
    cell.locator('.t[data-t="7"]').click()
    active = lab.page.evaluate(ACTIVE)
    for key in ("a", "b", "d", "d", "x", "m", "ArrowDown", "ArrowUp", "Home"):  # each a shortcut of the notebook
        lab.page.keyboard.press(key)
    expect(cell.locator(".inspect h3").first).to_have_text(re.compile("^Token 1 of"))
    expect(cells).to_have_count(len(CELLS))
    assert lab.page.evaluate(ACTIVE) == active
    lab.page.locator(".jp-Notebook .jp-InputPrompt").nth(EXPLORE).click()  # to the notebook's command mode
    lab.page.keyboard.press("End")
    lab.page.keyboard.press("2")
    expect(cell.locator(".inspect h3").first).to_have_text(re.compile("^Token 1 of"))
    expect(cell.locator(".ribbon")).to_have_attribute("data-layer", "entropy")


def test_new_data_keep_layer_selection_and_place(lab, view):
    cell = view(RIBBON)
    cell.locator('.t[data-t="9"]').click()
    lab.page.keyboard.press("4")
    place = "() => document.querySelector('.jp-WindowedPanel-outer, .jp-Notebook').scrollTop"
    top = lab.page.evaluate(place)
    lab.python("widget.show(sv.ribbon(run.rollout(1, 0, 1), 'drawn anew'))")
    expect(cell.locator("h2")).to_have_text("drawn anew")
    expect(cell.locator(".ribbon")).to_have_attribute("data-layer", "probability")
    expect(cell.locator(".inspect h3").first).to_have_text(re.compile("^Token 10 of"))
    expect(cell.locator('.t[data-t="9"]')).to_be_focused()
    assert abs(lab.page.evaluate(place) - top) <= 1


def test_what_cannot_be_drawn_is_said_in_its_place(lab, view):
    cell = view(RIBBON)
    for data, word in (('{"kind": "cube"}', "cube"), ('{"kind": "ribbon"}', "ribbon"), ("{", "JSON")):
        lab.python(f"widget.data = {data!r}")
        expect(cell.get_by_role("alert")).to_contain_text("could not be drawn")
        expect(cell.get_by_role("alert")).to_contain_text(word)
    lab.python("widget.show(sv.ribbon(run.rollout(1, 0, 1)))")
    expect(cell.locator(".t").first).to_be_visible()
    expect(cell.get_by_role("alert")).to_have_count(0)


def test_exploring_narrows_walks_and_keeps_its_keys(lab, view):
    cell = view(EXPLORE)
    told, ribbon = cell.locator(".list-head h3 > span:last-child"), cell.locator(".ribbon .eyebrow")
    total = int(lab.python("print(len(run.rollouts))"))
    expect(told).to_have_text(f"1–12 of {total}")
    cell.get_by_placeholder("words in question or completion").fill("COUNT IS 2")
    lab.page.keyboard.press("Enter")
    fits = int(lab.python("print(len(explorer.rows))"))
    assert 12 < fits < total
    expect(told).to_have_text(f"1–12 of {fits} that fit, {total} recorded")
    cell.locator("tbody tr").nth(10).click()
    ids = lab.python("row = explorer.rows[10]; print(row['step'], row['group'], row['sample'])").split()
    expect(ribbon).to_contain_text("step {} · group {} · sample {}".format(*ids))
    active = lab.page.evaluate(ACTIVE)
    lab.page.keyboard.press("ArrowDown")
    expect(cell.locator("tbody tr").nth(11)).to_be_focused()
    lab.page.keyboard.press("ArrowDown")  # beyond the page: the next one opens
    expect(told).to_have_text(re.compile("^13–"))
    expect(cell.locator("tbody tr").first).to_be_focused()
    expect(cell.locator("tbody tr").first).to_have_attribute("aria-current", "true")
    cell.get_by_role("button", name="previous").click()
    expect(told).to_have_text(re.compile("^1–12"))
    cell.locator("th[data-c=lowest] button").click()
    expect(cell.locator("th[data-c=lowest]")).to_have_attribute("aria-sort", "ascending")
    names = [handle.get_attribute("aria-label") for handle in cell.get_by_role("slider").all()]
    assert {"steps from", "steps to"} <= set(names) and len(names) == len(set(names))
    cell.get_by_role("slider").first.focus()
    for moved in (1, 2):  # each arrives before the next thing is done: a value still on its way would undo "show all"
        lab.page.keyboard.press("ArrowUp")
        until = time.monotonic() + 30
        while lab.python("print((explorer.filter.steps or [0])[0])") != str(1 + moved):
            assert time.monotonic() < until, "the slider's value did not arrive"
    assert lab.page.evaluate(ACTIVE) == active
    cell.get_by_role("button", name="show all").click()
    expect(told).to_have_text(re.compile(f" of {total}$"))
    for title, part in (("Value", "svg"), ("Group", "[class*=group]"), ("Roles", ".t"), ("Ribbon", ".t")):
        cell.get_by_role("tab", name=title).click()
        expect(cell.locator(".widget-tab-contents > :not(.lm-mod-hidden)").locator(part).first).to_be_visible()
        expect(cell.get_by_role("alert")).to_have_count(0)


def test_following_shows_what_another_process_writes(lab, view):
    cell = view(FOLLOW)
    status = cell.locator(".status p").first
    expect(status).to_contain_text("Waiting. live is not there yet")
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(lab.folder / "live")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, bufsize=1, cwd=REPOSITORY,
    ) as process:  # fmt: skip

        def write(step: int) -> None:
            process.stdin.write(f"{step}\n")
            assert process.stdout.readline() == "written\n"

        write(0), write(1)
        expect(status).to_contain_text("step 1 of 3")
        expect(cell.locator(".ribbon .stream")).to_contain_text("step 1")
        write(2)
        expect(cell.locator(".ribbon .eyebrow")).to_contain_text("step 2")
        cell.locator(".ribbon .t").first.click()
        expect(cell.get_by_role("button", name="pin rollout")).to_have_class(re.compile("mod-active"))
        write(3)
        expect(status).to_contain_text("Finished.")
        expect(status).to_contain_text("stays; the newest are of step 3")
        expect(cell.locator(".ribbon .eyebrow")).to_contain_text("step 2")
        process.stdin.close()
    assert lab.python("print(follower._view_count)") == "1"
    cell.get_by_role("button", name="stop").click()
    expect(status).to_contain_text("Stopped.")
    assert (
        lab.python("import asyncio; print([t.get_name() for t in asyncio.all_tasks() if 'segviz' in t.get_name()])")
        == "[]"
    )


def test_a_follower_that_nobody_sees_does_not_look(lab, view):
    expect(view(FOLLOW).locator(".status").first).to_be_visible()
    lab.python("import IPython.display as d\nother = sv.follow('run', every=0.1)")
    lab.command("notebook:insert-cell-below")
    lab.page.evaluate(
        "() => window.jupyterapp.shell.currentWidget.content.activeCell.model.sharedModel.setSource('other')"
    )
    lab.command("notebook:run-cell")
    expect(lab.page.locator(".jp-CodeCell.jp-mod-active .status")).to_contain_text("Finished.")
    assert lab.python("print(other._view_count)") == "1"
    lab.command("notebook:delete-cell")
    seen = "import asyncio\nasync def count():\n    for _ in range(200):\n        if not other._view_count: return 0\n"
    assert lab.python(seen + "        await asyncio.sleep(0.05)\nprint(await count())") == "0"
    looks = "n = []\nother.look = lambda: n.append(1)\nawait asyncio.sleep(0.5)\nprint(len(n))\nother.close()"
    assert lab.python(looks) == "0"


def test_texts_of_models_stay_texts(lab, view):
    cell = view(HOSTILE_CELL)
    expect(cell.locator(".stream")).to_contain_text(HOSTILE[0])
    expect(cell.locator(".stream")).to_contain_text(HOSTILE[2])
    lab.python(f"explorer.narrow(text={HOSTILE[5]!r})")
    assert lab.python("print(len(explorer.rows), explorer.current)") == "1 1/90/0"
    expect(view(EXPLORE).locator(".ribbon .stream >> visible=true")).to_contain_text(HOSTILE[0])
    assert lab.page.evaluate("() => window.hacked === undefined")
    assert lab.page.locator(".segviz img[src='x'], .segviz script").count() == 0


def test_the_theme_of_jupyterlab_is_the_views(lab, view):
    cell = view(RIBBON)
    colours = "(node) => ['color', 'backgroundColor'].map((name) => getComputedStyle(node)[name])"
    grey = {}
    for theme in ("Light", "Dark"):
        lab.command("apputils:change-theme", theme=f"JupyterLab {theme}")
        expect(lab.page.locator("body")).to_have_attribute("data-jp-theme-light", str(theme == "Light").lower())
        ink, paper = cell.locator(".ribbon").evaluate(colours)
        grey[theme] = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in (ink, paper)]
    assert grey["Light"][0] < 60 and grey["Light"][1] > 240
    assert grey["Dark"][0] > 200 and grey["Dark"][1] < 60


def test_a_notebook_that_is_not_trusted_shows_the_static_view(lab):
    output = nbformat.v4.new_output("display_data", sv.ribbon(hostile_row())._repr_mimebundle_())
    cell = nbformat.v4.new_code_cell("sv.ribbon(rollout)", outputs=[output])
    (lab.folder / "saved.ipynb").write_text(nbformat.writes(nbformat.v4.new_notebook(cells=[cell])))
    lab.command("docmanager:open", path="saved.ipynb", factory="Notebook", kernelPreference={"shouldStart": False})
    shown = lab.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-OutputArea-output")
    expect(shown).to_contain_text("Which segment carried this solution?")
    expect(shown).to_contain_text(HOSTILE[0])
    assert shown.locator(".segviz, script, img:not([src^='data:image/'])").count() == 0
    expect(shown.locator("img[src^='data:image/svg']")).to_be_visible()
    assert lab.page.evaluate("() => window.hacked === undefined")
