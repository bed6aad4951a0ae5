"""The README's pictures, from the runs of benchmarks/learning_curves.py. Needs a Chromium.

    python benchmarks/learning_curves.py && python docs/make_pictures.py
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

import segviz

DOCS = Path(__file__).resolve().parent
RUNS = DOCS.parent / "runs" / "curves"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]


def telling(run: segviz.Run) -> tuple[int, int, int]:
    """Of the last recorded step, the most blamed finished completion whose first error is in its reasoning."""
    rows = run.rollouts_at(run.steps[-1]).where(lambda r: r["error_kind"] == "reasoning" and r["finished"]).rows
    row = min(rows, key=lambda r: r["lowest"])
    return row["step"], row["group"], row["sample"]


def shoot(page: Page, html: str, selector: str, target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "view.html"
        path.write_text(html, encoding="utf-8")
        page.goto(path.as_uri())
        page.wait_for_timeout(1500)
        page.locator(selector).first.screenshot(path=str(target))


def main() -> None:
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not found or not RUNS.exists():
        sys.exit(f"needs a Chromium (or CHROMIUM=/path/to/it) and the runs of benchmarks/learning_curves.py in {RUNS}")
    runs = [segviz.open(path) for path in sorted(RUNS.iterdir())]
    sapo = next(run for run in runs if run.name.startswith("sapo"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        page = browser.new_page(viewport={"width": 1180, "height": 900}, device_scale_factor=1.5)
        shoot(page, segviz.ribbon(sapo.rollout(*telling(sapo))).html(), "body", DOCS / "ribbon.png")
        shoot(page, segviz.board(runs).html(), "figure.chart", DOCS / "curves.png")
        browser.close()


if __name__ == "__main__":
    main()
