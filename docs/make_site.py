"""Put the pages together for the site: `make docs`.

The pages are written to be read where they stand, so they are copied to build/pages with the same paths, and every link
between them holds. One page is made: the reference, from the docstrings of what `segpo_core` and `segviz` give.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import segpo_core
import segviz

ROOT = Path(__file__).resolve().parent.parent
#: What the pages are and what they show or link to.
COPIED = (
    "*.md", "LICENSE", "docs/**/*", "data/README.md", "notebooks/*.ipynb",
    "benchmarks/*.md", "benchmarks/**/*.svg", "benchmarks/**/*.png", "benchmarks/**/*.jsonl",
)  # fmt: skip


def reference() -> str:
    """The page of both front doors, a heading a name."""
    lines = ["# Reference", ""]
    for package in (segpo_core, segviz):
        lines += [f"## {package.__name__}", ""]
        homes = {name: module for module, names in package._DOOR.items() for name in names}
        where = {name: m if m.startswith("seg") else f"{package.__name__}.{m}" for name, m in homes.items()}
        lines += [f"`from {package.__name__} import …`: "]
        lines += [", ".join(f"[{name}][{where[name]}.{name}]" for name in package.__all__) + ".", ""]
        for name in package.__all__:
            lines += [f"::: {where[name]}.{name}", ""]
    return "\n".join(lines)


def stage(pages: Path) -> None:
    """Fill the folder anew."""
    shutil.rmtree(pages, ignore_errors=True)
    for pattern in COPIED:
        for file in sorted(ROOT.glob(pattern)):
            if file.is_file() and file.suffix != ".py" and not file.is_relative_to(pages):
                target = pages / file.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
    (pages / "api.md").write_text(reference(), encoding="utf-8")


if __name__ == "__main__":
    stage(ROOT / "build" / "pages")
