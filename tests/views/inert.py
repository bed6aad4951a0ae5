"""What a still form may be made of, so that no text of a model can do anything in it."""

from __future__ import annotations

import base64
from xml.etree import ElementTree

from tests.views.made import Page

TAGS = set("div h3 p b strong small pre br code details summary table tr th td ul ol li span sup img".split())
SVG = {f"{{http://www.w3.org/2000/svg}}{tag}" for tag in ("svg", "rect", "path", "circle", "text")}


def check(html: str) -> str:
    """Fails where the HTML holds anything that could act; the words of its pictures."""
    words = []
    for tag, attributes in Page(html).tags:
        assert tag in TAGS, tag
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        if tag == "img":
            kind, _, data = attributes["src"].partition(";base64,")
            assert kind in ("data:image/png", "data:image/svg+xml") and attributes["alt"]
            if kind.endswith("xml"):
                drawn = ElementTree.fromstring(base64.b64decode(data))
                assert {node.tag for node in drawn.iter()} <= SVG
                assert not [
                    name for node in drawn.iter() for name in node.attrib if name.startswith("on") or "href" in name
                ]
                words += [node.text for node in drawn.iter() if node.text]
    return " ".join(words)
