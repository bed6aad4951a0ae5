"""The View: one small frozen object that carries data and every way to show it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segviz.show.encode import escape, script_json, write_whole
from segviz.show.living import living, still
from segviz.show.theme import css, script

if TYPE_CHECKING:
    from segviz.show.widget import ViewWidget

_BOOT = """
const el = document.getElementById("segviz");
// in a frame of the app that serves this page, the app opens what is asked for
const tell = window !== parent && /^http/.test(location.protocol)
  ? (kind, more) => parent.postMessage({ segviz: kind, ...more }, location.origin) : null;
if (tell) addEventListener("keydown", (event) => {
  if (event.key === "Escape") tell("close");
  if (event.key === "Enter" && event.target.closest?.(".t")) tell("enter");
});
await render({ el, data: JSON.parse(document.getElementById("segviz-data").textContent),
  host: tell ? { open: ({ step, group, sample }) => tell("open", { step, group, sample }),
    select: ({ token, segment }) => tell("select", { token, segment }) } : undefined });
// a page has a heading of the first level; what is drawn begins with the second, as it does among other things
if (!el.querySelector("h1")) el.prepend(h("h1", { class: "unseen" }, document.title));
"""


@dataclass(frozen=True)
class View:
    """Something to look at. Scripts in `views/` draw `data` in a browser; `fallback` is for places without scripts.

    In a notebook it needs no kernel once it is shown: saved, closed and opened again, it still is.

    The script exports `render({model, el, data})`, so a notebook widget can show the same data with the same code.
    """

    kind: str  #: what draws it: "ribbon", "board", … (`DRAW` in the scripts)
    title: str
    data: Mapping[str, Any] = field(repr=False)  #: JSON-able
    fallback: str = field(default="", repr=False)  #: static HTML, escaped, styles inline

    def html(self) -> str:
        """A whole page that works offline: script, style and data are in it, and it may fetch nothing."""
        style, code = css(), script() + _BOOT
        # only these very bytes may run: a model's text that got out of its place would still be inert
        policy = (
            f"default-src 'none'; script-src '{_digest(code)}'; style-src '{_digest(style)}'; "
            "img-src data:; base-uri 'none'; form-action 'none'"
        )
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<title>{escape(self.title)}</title>\n<style>{style}</style>\n</head>\n<body class="segviz">\n'
            '<main id="segviz"><noscript>This page draws itself from data in this file and needs JavaScript. '
            "It loads nothing from elsewhere.</noscript></main>\n"
            f'<script type="application/json" id="segviz-data">{script_json(self.data)}</script>\n'
            f'<script type="module">{code}</script>\n</body>\n</html>\n'
        )

    def save(self, path: str | Path) -> Path:
        """Write `html()` to a file, whole or not at all.

        Raises:
            OSError: the place cannot be written.
        """
        return write_whole(Path(path), self.html().encode("utf-8"))

    def widget(self) -> ViewWidget:
        """A live notebook widget of this view; see segviz/show/widget.py."""
        from segviz.show.widget import ViewWidget  # anywidget takes a while to import, and pages need none of it

        return ViewWidget(self)

    def _repr_html_(self) -> str:
        return still(self.fallback or f"<p>{escape(self.title)}</p>")

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """One piece of HTML that outlives the kernel: the still form, and the script that draws the view in its place
        where scripts may run. What is linked with Python is `widget()`."""
        return {"text/plain": repr(self), "text/html": living(self._repr_html_(), self.data)}


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
