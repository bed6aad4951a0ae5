r"""The README's pictures of views and curves. Needs a Chromium and these runs (five minutes on two cores):

    segpo demo --no-app
    segpo train --config configs/demo.yaml --method spo_tree --branch 4 4 4 --per-device-train-batch-size 64 \
        --max-steps 6 --output-dir runs/spo_tree
    python docs/make_pictures.py

What has no run is left as it is, and said.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

import segviz as sv
from segviz.views.report import guide

DOCS = Path(__file__).resolve().parent
RUNS = DOCS.parent / "runs"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]


def stop(run: sv.Run, kind: str) -> tuple[int, int, int]:
    """The rollout of a kind that the report's tour begins with."""
    return next(stop["key"] for stop in guide(run) if stop["kind"] == kind)


def widest(run: sv.Run) -> tuple[int, int]:
    """The step and prompt whose tree has credit in most of its nodes."""
    nodes = [node for step in run.steps for node in run.nodes(step)]
    trained: dict[tuple[int, int], int] = {}
    for node in nodes:
        trained[node["step"], node["group"]] = trained.get((node["step"], node["group"]), 0) + node["trained"]
    return max(trained, key=trained.get)


def ribbon() -> sv.View:
    run = sv.open(RUNS / "demo")
    return sv.ribbon(run.rollout(*stop(run, "Seeing error found")))


def curves() -> sv.View:
    return sv.board([sv.open(RUNS / name) for name in ("demo-grpo", "demo")])


def compare() -> sv.View:
    run = sv.open(RUNS / "demo")
    return sv.compare(run.credits(*stop(run, "Reckoning error found")))


def tree() -> sv.View:
    run = sv.open(RUNS / "spo_tree")
    return sv.tree(run, *widest(run))


#: Picture -> what it shows, which element of it, and at most how many pixels of its height.
PICTURES = {
    "ribbon": (ribbon, "body", 780),
    "curves": (curves, "figure.chart", None),
    "compare": (compare, "article", 790),
    "tree": (tree, "article", 760),
}


def shoot(page: Page, view: sv.View, selector: str, height: int | None, target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        page.goto(view.save(Path(folder) / "view.html").as_uri())
        page.wait_for_timeout(1500)
        box = page.locator(selector).first.bounding_box()
        if height is not None:
            box["height"] = min(box["height"], height)
        page.screenshot(path=str(target), full_page=True, clip=box)


def main() -> None:
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        sys.exit("needs a Chromium (or CHROMIUM=/path/to/it)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        page = browser.new_page(viewport={"width": 1180, "height": 900}, device_scale_factor=1.5)
        for name, (make, selector, height) in PICTURES.items():
            try:
                shoot(page, make(), selector, height, DOCS / f"{name}.png")
            except (sv.SchemaError, FileNotFoundError, StopIteration) as missing:
                print(f"{name}.png is left as it is: {missing or 'its run names no such place'}")
        browser.close()


if __name__ == "__main__":
    main()
