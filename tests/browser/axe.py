"""axe-core in a page, as the package axe-playwright-python carries it: nothing is fetched."""

from __future__ import annotations

from importlib.resources import files

from playwright.sync_api import Frame, Page

_SOURCE = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
_RUN = """async (within) => {
  const { violations } = await axe.run(within ?? document, { iframes: false, resultTypes: ['violations'] });
  return violations.flatMap(({ id, nodes }) => nodes.map((node) =>
    [id, node.target.flat().join(' '), node.html.slice(0, 120), node.failureSummary.split('\\n')[1]].join(' · ')));
}"""


def violations(page: Page | Frame, within: str | None = None) -> list[str]:
    """What axe-core finds wrong in a page or a frame, a line a node; `within`: only below this selector."""
    page.evaluate(f"() => {{ {_SOURCE} }}")
    return page.evaluate(_RUN, within)
