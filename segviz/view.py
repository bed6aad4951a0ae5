"""The View: one small frozen object that carries data and every way to show it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segviz.theme import css, script

if TYPE_CHECKING:
    from segviz.widget import ViewWidget

_BOOT = """
const el = document.getElementById("segviz");
// in a frame of the app that serves this page, the app opens what is asked for
const tell = window !== parent && /^http/.test(location.protocol)
  ? (kind, more) => parent.postMessage({ segviz: kind, ...more }, location.origin) : null;
if (tell) addEventListener("keydown", (event) => {
  if (event.key === "Escape") tell("close");
  if (event.key === "Enter" && event.target.closest?.(".t")) tell("enter");
});
render({ el, data: JSON.parse(document.getElementById("segviz-data").textContent),
  host: tell ? { open: ({ step, group, sample }) => tell("open", { step, group, sample }),
    select: ({ token, segment }) => tell("select", { token, segment }) } : undefined });
"""


@dataclass(frozen=True)
class View:
    """Something to look at. Scripts in static/ draw `data` in a browser; `fallback` is for places without scripts.

    The script exports `render({model, el, data})`, so a notebook widget can show the same data with the same code.
    """

    kind: str  #: what draws it: "ribbon", "board", … (see static/main.js)
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
        """A live notebook widget of this view; see segviz/widget.py."""
        from segviz.widget import ViewWidget  # anywidget takes a while to import, and pages need none of it

        return ViewWidget(self)

    def _repr_html_(self) -> str:
        # notebook pages align the cells of tables to the right
        return re.sub("<(td|th)>", r'<\1 style="text-align:left">', self.fallback or f"<p>{escape(self.title)}</p>")

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The widget, and static HTML for where none runs: GitHub, nbconvert, a notebook that is not trusted."""
        bundle = self.widget()._repr_mimebundle_()
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
        return {**data, "text/plain": repr(self), "text/html": self._repr_html_()}, metadata


def write_whole(path: Path, data: bytes) -> Path:
    """Write a file whole or not at all.

    Raises:
        OSError: the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def escape(text: Any) -> str:
    """Text for HTML. A lone surrogate cannot be written to a file and becomes U+FFFD."""
    return html.escape(tidy(str(text)))


def tidy(text: str) -> str:
    """The text with U+FFFD for each lone surrogate."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def script_json(data: Any) -> str:
    """JSON that may stand inside a script element: no `<`, `>` or `&`, nothing that is not a number."""
    text = plain_json(data)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def plain_json(data: Any) -> str:
    """Compact JSON without what JSON has no word for: null for NaN and infinities, U+FFFD for lone surrogates."""
    return tidy(json.dumps(_finite(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False))


def pack(columns: Mapping[str, np.ndarray], text: str = "") -> dict[str, Any]:
    """Columns and a text as compact as a page can carry them: deflated bytes in base64.

    The bytes of one column are grouped by significance (all high bytes, then all low bytes), which deflate likes.

    Args:
        columns: name -> one-dimensional array of uint8, uint16, uint32, float16 or float32.
        text: stored before the columns, in UTF-8.
    """
    letters = {"uint8": "u1", "uint16": "u2", "uint32": "u4", "float16": "f2", "float32": "f4"}
    parts, shapes = [tidy(text).encode()], []
    for name, column in columns.items():
        shapes.append([name, letters[column.dtype.name], len(column)])
        raw = np.ascontiguousarray(column.astype(column.dtype.newbyteorder("<"))).view(np.uint8)
        parts.append(raw.reshape(len(column), column.itemsize).T.tobytes())
    packed = zlib.compress(b"".join(parts), 9)
    return {"text": len(parts[0]), "columns": shapes, "data": base64.b64encode(packed).decode()}


def floats(values: Iterable[float | None], long: bool) -> np.ndarray:
    """A column of numbers for `pack`, NaN where there is none.

    A long column keeps 8 significant bits (a relative error below 0.5 %): beside thousands of tokens nobody reads
    more, and it halves the page.
    """
    column = np.array([math.nan if value is None else value for value in values], dtype=np.float32)
    if not long:
        return column
    with np.errstate(over="ignore"):
        bits = column.astype(np.float16).view(np.uint16)
    special = (bits & 0x7C00) == 0x7C00  # infinite or NaN: rounding could turn one into the other
    return np.where(special, bits, (bits + np.uint16(4)) & np.uint16(0xFFF8)).astype(np.uint16).view(np.float16)


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _finite(data: Any) -> Any:
    """The same data with None for every number that JSON has no word for."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return data
