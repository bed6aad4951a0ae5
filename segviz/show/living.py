"""A view in a notebook without a kernel: what draws it travels with the output and takes the still picture's place.

The output is one piece of HTML. Where scripts may run (a notebook that JupyterLab trusts, a page that nbconvert made)
the view is drawn as in a page of its own; where they may not, the still picture stays.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Mapping
from functools import cache
from typing import Any

from segviz.show.encode import plain_json
from segviz.show.theme import files, shades

_NAMED = re.compile(r"^(?:export )?(?:async )?(?:function|const|class|let) (\w+)", re.M)

_USED = re.compile(r"\b(?:\w+(?=\()|[A-Z]\w+)")  # what is called, and constants and classes

# before anything else: later on nobody knows which script it was
_BOOT = """(async (script) => {
  const still = script?.previousElementSibling;
  if (!still || typeof DecompressionStream === "undefined") return;
  const open = (text) => new Response(new Blob([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))]).stream()
    .pipeThrough(new DecompressionStream("deflate"))).text();
  try {
    const [code, style, data] = await Promise.all([PARTS].map(open));
    const made = (window.segvizDrawers ??= {});
    made.HASH ??= import(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
    if (!document.getElementById("segviz-HASH")) {
      document.head.append(Object.assign(document.createElement("style"), { id: "segviz-HASH", textContent: style }));
    }
    const el = document.createElement("div");
    still.before(el);
    await (await made.HASH).default.render({ el, data: JSON.parse(data), notebook: true });
    still.style.display = "none";
  } catch (error) { console.warn("segviz shows the still picture:", error); }
})(document.currentScript);"""

# A widget's output stands before this one. Where its kernel is gone, what it says is of no use to anybody.
_BESIDE = """((script) => {
  const still = script?.previousElementSibling;
  const widget = script?.closest(".jp-OutputArea-child")?.previousElementSibling;
  if (!still || !widget) return;
  const look = () => {
    const gone = !widget.querySelector(".segviz");  // not drawn yet, or "Loading widget…", or an error, in any language
    still.style.display = gone ? "" : "none";
    widget.style.display = gone ? "none" : "";
  };
  look();
  new MutationObserver(look).observe(widget, { childList: true, subtree: true });
})(document.currentScript);"""


def still(html: str) -> str:
    """A still form for notebook pages, which align the cells of tables to the right."""
    return re.sub("<(td|th)>", r'<\1 align="left" style="text-align:left">', html)


def living(still: str, data: Mapping[str, Any]) -> str:
    """HTML of a still view and, after it, the script that draws the view in its place."""
    code, style = drawers(frozenset(_kinds(data)))
    name = f"d{hashlib.sha256((code + style).encode()).hexdigest()[:12]}"
    parts = ",".join(f'"{_packed(text)}"' for text in (code, style, plain_json(data)))
    boot = _BOOT.replace("HASH", name).replace("PARTS", parts)
    return f"<div>{still}</div><script>{boot}</script>"


def beside(still: str) -> str:
    """HTML of a still view that shows itself where the widget in the output before it cannot be drawn."""
    return f"<div>{still}</div><script>{_BESIDE}</script>"


@cache
def drawers(kinds: frozenset[str]) -> tuple[str, str]:
    """(script, style sheet) with no more than what draws views of these kinds."""
    texts = {path: path.read_text(encoding="utf-8") for path in files(".js")}
    home = {name: path for path, text in texts.items() for name in _NAMED.findall(text)}
    draws = {kind: path for path, text in texts.items() for kind in re.findall(r"^DRAW\.(\w+) =", text, re.M)}
    always = [path for path in texts if path.parent.name in ("show", "parts")]
    wanted, left = set(), [*always, *(draws[kind] for kind in kinds if kind in draws)]
    while left:
        path = left.pop()
        if path not in wanted:
            wanted.add(path)
            left += {home[name] for name in _USED.findall(texts[path]) if name in home}
    styles = [path for path in files(".css") if path.parent.name == "show" or path.with_suffix(".js") in wanted]
    code = "\n".join(text for path, text in texts.items() if path in wanted)
    return code, "\n".join([*shades(), *(path.read_text(encoding="utf-8") for path in styles)])


def _kinds(data: Mapping[str, Any]) -> set[str]:
    """What has to be drawn, in it too."""
    return {str(data.get("kind"))}.union(
        *(_kinds(part) for part in data.get("parts") or [] if isinstance(part, Mapping))
    )


def _packed(text: str) -> str:
    return base64.b64encode(zlib.compress(text.encode("utf-8"), 9)).decode()
