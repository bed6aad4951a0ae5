"""The README's pictures of views and curves, all of one run of the demo: `make pictures` trains it and calls this.

    python docs/make_pictures.py [RUN]      # RUN: what `segpo demo` wrote, with RUN-grpo beside it; default: runs/demo

Needs a Chromium. What the run cannot show is left as it is, and said; so is what the README says in figures.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

import segviz as sv
from segviz.parts.scoreboard import scoreboard, sentence
from segviz.parts.story import story
from segviz.views.report import guide

DOCS = Path(__file__).resolve().parent
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


def run_of(argv: list[str]) -> Path:
    """The demo's run that was named."""
    return Path(argv[1]) if len(argv) > 1 else DOCS.parent / "runs" / "demo"


def ribbon(run: sv.Run) -> sv.View:
    return sv.ribbon(run.rollout(*stop(run, "Seeing error found")))


def curves(run: sv.Run) -> sv.View:
    return sv.board([sv.open(run.path.with_name(f"{run.path.name}-grpo")), run])


def compare(run: sv.Run) -> sv.View:
    return sv.compare(run.credits(*stop(run, "Reckoning error found")))


def tree(run: sv.Run) -> sv.View:
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
        page.wait_for_timeout(3000)
        box = page.locator(selector).first.bounding_box()
        if height is not None:
            box["height"] = min(box["height"], height)
        page.screenshot(path=str(target), full_page=True, clip=box)


def main() -> None:
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        sys.exit("needs a Chromium (or CHROMIUM=/path/to/it)")
    run = sv.open(run_of(sys.argv))
    print(f"{story(run)['sentence']}\n{sentence(scoreboard(run))}")
    for line in scoreboard(run)["lines"]:
        print(f"  {line['label']}: {line['share']:.0%} of {line['named']}, by chance {line['chance']:.0%}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        page = browser.new_page(viewport={"width": 1180, "height": 900}, device_scale_factor=1.5)
        for name, (make, selector, height) in PICTURES.items():
            try:
                shoot(page, make(run), selector, height, DOCS / f"{name}.png")
            except (ValueError, FileNotFoundError, StopIteration) as missing:
                print(f"{name}.png is left as it is: {missing or 'its run names no such place'}")
        browser.close()


if __name__ == "__main__":
    main()
