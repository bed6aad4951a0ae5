"""A notebook that was saved, closed and opened again without its kernel, in a real JupyterLab; and read elsewhere."""

from __future__ import annotations

import bleach
import nbformat
import pytest
from nbconvert import HTMLExporter
from playwright.sync_api import expect

from tests.browser.jupyter import Notebook, jupyter
from tests.fakes.fake_run import write_run

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CELLS = (
    "import segviz as sv\nrun = sv.open('run')\nsv.ribbon(run.rollout(1, 0, 1))",
    "widget = sv.ribbon(run.rollout(1, 0, 1)).widget()\nwidget",
    "explorer = sv.explore(run)\nexplorer",
    "follower = sv.follow('run', every=5)\nfollower",
    "sv.together(sv.staircase(run.rollout(1, 0, 1)), sv.compare(run.rollout(1, 0, 1)))",
    "sv.group(run, 1, 0)",
    "sv.roles(run.rollout(1, 0, 1))",
    "sv.boundaries(run.rollout(1, 0, 1))",
    "sv.board(run)",
    "sv.forensics(run, 1)",
)
WIDGETS = (1, 2, 3)
#: What a site that lets neither scripts nor styles through leaves of an output.
AS_OTHERS = {
    "tags": set("div h3 p strong b br img table tr td th details summary small".split()),
    "attributes": {"img": ["src", "alt", "width", "height"]},
    "protocols": ["data"],
    "strip": True,
}
ALIVE = "import ipywidgets.widgets.widget as w; print(len(w._instances))"
OPEN = """async (preference) => {
  const app = window.jupyterapp;
  const panel = app.shell.currentWidget;
  await panel.context.save();
  await panel.sessionContext.shutdown();
  panel.dispose();
  const again = await app.commands.execute('docmanager:open',
    { path: 'test.ipynb', factory: 'Notebook', kernelPreference: preference });
  await again.context.ready;
}"""


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    write_run(folder / "run", steps=12)
    expect.set_options(timeout=30_000)
    with jupyter(folder) as address:
        notebook = Notebook(browser, address, folder, CELLS, height=6000)
        notebook.folder, notebook.said = folder, []
        notebook.page.on("console", lambda message: notebook.said.append(message.text))
        notebook.run_all()
        expect(notebook.cell(len(CELLS) - 1).locator(".segviz").first).to_be_visible()
        yield notebook
        notebook.page.context.close()
        assert not notebook.elsewhere, "something was asked for beyond this machine"


def test_a_view_is_alive_without_a_widget_and_once(lab):
    for number in range(len(CELLS)):
        cell = lab.cell(number)
        expect(cell.locator(".segviz").first).to_be_visible()
        expect(cell.locator("img[src^='data:image/svg']:visible")).to_have_count(0)
        expect(cell.get_by_role("alert")).to_have_count(0)
    lab.cell(0).locator('.t[data-t="4"]').click()
    expect(lab.cell(0).locator(".inspect h3").first).to_contain_text("Token 5 of")
    assert not [text for text in lab.said if "eprecat" in text or "still picture" in text]


def test_running_cells_again_leaves_no_widgets_behind(lab):
    lab.run_all()
    expect(lab.cell(len(CELLS) - 1).locator(".segviz").first).to_be_visible()
    before = int(lab.python(ALIVE))
    for _ in range(2):
        lab.run_all()
        lab.python("import asyncio; await asyncio.sleep(0.5)")
    assert int(lab.python(ALIVE)) == before
    expect(lab.cell(1).locator(".t").first).to_be_visible()


@pytest.mark.parametrize("kernel", [False, True], ids=["without a kernel", "with a new one"])
def test_saved_and_opened_again_it_still_shows_every_view(lab, kernel):
    lab.page.evaluate(OPEN, {"shouldStart": kernel, "autoStartDefault": kernel})
    for number in range(len(CELLS)):
        cell = lab.page.locator(f".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell >> nth={number}")
        if number in WIDGETS:
            expect(cell.locator("img[src^='data:image/svg']:visible").first).to_be_visible()
        else:  # trusted, since it was run here: drawn by its own script
            expect(cell.locator(".segviz").first).to_be_visible()
    expect(lab.page.get_by_text("model not found").locator("visible=true")).to_have_count(0)
    assert (lab.folder / "test.ipynb").stat().st_size < 1_000_000


def test_what_others_make_of_it_shows_the_pictures(lab, tmp_path):
    notebook = nbformat.read(lab.folder / "test.ipynb", as_version=4)
    for output in (output for cell in notebook.cells for output in cell.outputs):
        output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    whole, _ = HTMLExporter(embed_images=False).from_notebook_node(notebook)
    htmls = ["".join(o.get("data", {}).get("text/html", "") for o in cell.outputs) for cell in notebook.cells]
    kept = [bleach.clean(html.split("<script>")[0], **AS_OTHERS) for html in htmls]
    bare = bleach.clean(htmls[0].split("<script>")[0], tags={"p", "img"}, attributes={"img": ["alt"]}, strip=True)
    assert "was blamed most" in bare.split('alt="')[2] and "&lt;perception&gt;" in bare  # without any picture: in words
    for name, text in (("whole", whole), ("kept", "<!doctype html><meta charset=utf-8>" + "<hr>".join(kept))):
        (tmp_path / f"{name}.html").write_text(text, encoding="utf-8")
    page = lab.page.context.browser.new_context(java_script_enabled=False, offline=True).new_page()
    page.goto(f"file://{tmp_path / 'kept.html'}")
    for image in page.locator("img").all():
        assert image.get_attribute("alt") and image.bounding_box()["width"] > 20
    assert page.locator("img[src^='data:image/svg']").count() >= len(CELLS)
    alive = lab.page.context.browser.new_context(offline=True).new_page()
    alive.goto(f"file://{tmp_path / 'whole.html'}")
    expect(alive.locator(".segviz .stream").first).to_be_visible()
