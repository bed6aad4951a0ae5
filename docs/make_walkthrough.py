"""The README's walk through the app, as a small animation. `make pictures` calls it; needs a Chromium and a demo's run:

    python docs/make_walkthrough.py [RUN]      # default: runs/demo

Starts the app beside the runs of that folder, goes through its tabs as a reader would, and writes docs/app.gif.
"""

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from make_pictures import run_of, stop
from PIL import Image
from playwright.sync_api import Page, sync_playwright

import segviz as sv

DOCS = Path(__file__).resolve().parent
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]
SIZE, SHOWN = (1280, 860), (960, 645)  #: of the page, and of the picture
STAY = 2600  #: ms that a picture stays


def walk(page: Page, url: str):
    """Yields where there is something to see."""
    page.goto(url)
    page.locator("segpo-live .card").first.wait_for()
    page.wait_for_timeout(3000)
    yield
    page.get_by_role("tab", name="Rollouts").click()
    page.locator("table tbody tr").first.wait_for()
    page.wait_for_timeout(1500)
    yield
    page.goto(url + "?" + telling())
    frame = page.frame_locator("iframe >> visible=true").first
    frame.locator(".t").first.wait_for(timeout=30_000)
    page.wait_for_timeout(2500)
    yield
    page.mouse.move(SIZE[0] / 2, SIZE[1] / 2)
    page.mouse.wheel(0, 620)
    page.wait_for_timeout(1500)
    yield
    page.goto(url)
    page.get_by_role("tab", name="Compare").click()
    page.wait_for_timeout(5000)
    yield
    page.goto(url)
    page.get_by_role("tab", name="Playground").click()
    page.get_by_label("Model").select_option(
        index=[i for i, n in enumerate(models(page)) if n.startswith(run_of(sys.argv).name)][0]
    )
    page.get_by_role("button", name="Ask", exact=True).click()
    page.frame_locator("iframe >> visible=true").first.locator(".t").first.wait_for(timeout=90_000)
    page.wait_for_timeout(2500)
    yield
    page.goto(url)
    page.get_by_role("tab", name="Start a run").click()
    page.wait_for_timeout(4000)
    yield


def models(page: Page) -> list[str]:
    """What the playground can ask, once it knows."""
    options = page.get_by_label("Model").locator("option")
    options.nth(1).wait_for(state="attached")
    return options.all_inner_texts()


def telling() -> str:
    """A rollout that is worth opening, as the app's address names it."""
    run = sv.open(run_of(sys.argv))
    step, group, sample = stop(run, "Seeing error found")
    return f"run={run.path.name}&step={step}&group={group}&sample={sample}"


def main() -> None:
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    run = run_of(sys.argv).resolve()
    if not found or not run.exists():
        sys.exit("needs a Chromium (or CHROMIUM=/path/to/it) and a run of the demo, see docs/make_pictures.py")
    command = [sys.executable, "-m", "segpo_core.cli", "app", run.parent.name, "--port", "0"]
    app = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=run.parent.parent)
    frames = []
    try:
        url = re.search(r"http://\S+", app.stderr.readline())[0]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
            page = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]})
            for _ in walk(page, url):
                picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").resize(SHOWN, Image.LANCZOS)
                frames.append(picture.quantize(96, dither=Image.Dither.NONE))
            browser.close()
    finally:
        app.terminate()
        app.wait()
    frames[0].save(DOCS / "app.gif", save_all=True, append_images=frames[1:], duration=STAY, loop=0, optimize=True)


if __name__ == "__main__":
    main()
