"""Still pictures of credit: SVG in an `<img>`, which needs no script, no style sheet and no kernel to be seen.

What a notebook keeps must survive being saved, sanitised and read elsewhere. There an image with alternative text does,
coloured spans do not. A picture brings its own white paper: it cannot ask which theme it lies on.
"""

from __future__ import annotations

import base64
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from segviz.show.encode import escape
from segviz.show.theme import LEVELS, PALETTE, SEQUENTIAL, alpha, bar, rgba

WIDTH = 860  #: of every picture, px
LETTER, SIZE = 7.8, 13  #: width of a letter and size of the type, px
LONGEST = 300  #: letters of one token
INK, SOFT, LINE, ERROR, POS, NEG, CARD = (
    PALETTE[name][0] for name in ("ink", "soft", "line", "error", "pos", "neg", "card")
)
MONO = "ui-monospace,Menlo,Consolas,Liberation Mono,monospace"
SANS = "system-ui,Segoe UI,Liberation Sans,Arial,sans-serif"


@dataclass(frozen=True)
class Piece:
    """A token of a picture."""

    text: str
    size: int = 0  #: shade, -LEVELS … LEVELS, as `theme.level` gives it; the bar above or below goes with it
    tag: str = ""  #: written over it; a cut is drawn before it
    error: bool = False  #: underlined as the first true error
    out: bool = False  #: not trained: pale, dotted below
    fill: str = ""  #: instead of the shade's colour


@dataclass(frozen=True)
class Placed:
    """Where a piece, or the part of it that fits on the line, stands."""

    piece: Piece
    number: int
    line: int
    x: float
    width: float


def wide(text: str) -> float:
    """Width of a text in px; East Asian letters take two places."""
    return LETTER * sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def place(pieces: Sequence[Piece], width: float = WIDTH - 20) -> list[Placed]:
    """The pieces on lines of `width` px. A piece that holds a line break ends its line."""
    found: list[Placed] = []
    line, x, tag_end = 0, 0.0, 0.0
    for number, piece in enumerate(pieces):
        text = clean(piece.text if len(piece.text) <= LONGEST else f"{piece.text[:LONGEST]}…")
        if piece.tag:
            x = max(x + (5 if x else 0), tag_end)
        if x and x + wide(text.rstrip()) > width:
            line, x, tag_end = line + 1, 0.0, 0.0
        if piece.tag:
            tag_end = x + 6.2 * len(piece.tag) + 12
        while wide(text) > width:
            fits = max(1, int(width / LETTER / 2))
            found.append(Placed(replace(piece, text=text[:fits]), number, line, x, wide(text[:fits])))
            text, piece = text[fits:], replace(piece, tag="")
            line, x, tag_end = line + 1, 0.0, 0.0
        found.append(Placed(replace(piece, text=text), number, line, x, wide(text)))
        x += wide(text)
        if "\n" in piece.text:
            line, x, tag_end = line + 1, 0.0, 0.0
    return found


def flow(pieces: Sequence[Piece], top: float = 0, left: float = 10, width: float = WIDTH - 20) -> tuple[str, float]:
    """(SVG of the text on its lines, from `top` down; the y of its end)."""
    placed = place(pieces, width)
    step = 38 if any(piece.tag for piece in pieces) else 24
    parts = [part for one in placed for part in token(one, left + one.x, top + step * one.line + step - 8)]
    return "".join(parts), top + step * (placed[-1].line + 1 if placed else 0)


def token(one: Placed, x: float, y: float, height: float = 17) -> Iterator[str]:
    """A piece whose text stands on the line `y`."""
    piece, width = one.piece, one.width
    fill = piece.fill or (rgba(piece.size) if piece.size else "")
    if fill and width:
        yield f'<rect x="{x:.1f}" y="{y + 4 - height:.1f}" width="{width:.1f}" height="{height}" fill="{fill}"/>'
    if piece.size and width:
        thick = bar(abs(piece.size))
        at, colour = (y + 4 - height, POS) if piece.size > 0 else (y + 4 - thick, NEG)
        yield f'<rect x="{x:.1f}" y="{at:.1f}" width="{width:.1f}" height="{thick}" fill="{colour}"/>'
    if piece.tag:
        yield f'<path d="M{x - 2:.1f} {y - 26:.1f}V{y + 5:.1f}" stroke="{SOFT}"/>'
        yield words(piece.tag, x + 1, y - 17, size=10, fill=SOFT)
    if piece.text.strip():
        pale = f' fill="{SOFT}"' if piece.out else ""
        shown = piece.text.strip(" ")
        begin = x + wide(piece.text) - wide(piece.text.lstrip(" "))
        yield (
            f'<text x="{begin:.1f}" y="{y:.1f}" textLength="{wide(shown):.1f}" lengthAdjust="spacingAndGlyphs"{pale}>'
            f"{escape(shown)}</text>"
        )
    if piece.out and width:
        yield f'<path d="M{x:.1f} {y + 4.5:.1f}h{width:.1f}" stroke="{SOFT}" stroke-dasharray="1 3"/>'
    if piece.error and width:
        n = 2 * max(1, round(width / 8))
        tops = [(x + i * width / n, y + (4.5 if i % 2 else 7.5)) for i in range(n + 1)]
        yield f'<path d="{path_of(tops)}" fill="none" stroke="{ERROR}" stroke-width="1.6"/>'


def words(
    text: str, x: float, y: float, size: float = 12, fill: str = INK, anchor: str = "start", bold: bool = False
) -> str:
    """A line of words in the reading type."""
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-family="{SANS}" font-size="{size}" fill="{fill}" '
        f'text-anchor="{anchor}"{weight}>{escape(clean(text))}</text>'
    )


def clean(text: str) -> str:
    """Text that may stand in XML on one line: no line breaks, no control letters, nothing that turns the line round."""
    return "".join(
        " " if c in "\t\n\r" else "\ufffd" if unicodedata.category(c) in ("Cc", "Cs", "Cf") and c != "\u200d" else c
        for c in text
    ).replace("\ufffe", "\ufffd").replace("\uffff", "\ufffd")  # fmt: skip


def picture(body: str, height: float, alt: str, width: float = WIDTH) -> str:
    """The `<img>` of what was drawn on white paper. `alt` says the same in words."""
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="{MONO}" font-size="{SIZE}" fill="{INK}">'
        f'<rect width="100%" height="100%" rx="6" fill="{CARD}" stroke="{LINE}"/>{body}</svg>'
    )
    data = base64.b64encode(svg.encode("utf-8", "replace")).decode()
    return f'<img src="data:image/svg+xml;base64,{data}" width="{width:.0f}" height="{height:.0f}" alt="{escape(alt)}">'


def scale_words(limit: float) -> str:
    """How to read the shades."""
    return f"Blue, bar above: up to +{limit:.3g}. Orange, bar below: down to −{limit:.3g}." if limit else ""


def shade(share: float) -> str:
    """The colour of a number on a scale from 0 up, as a share of the largest."""
    size = min(LEVELS, max(0, round(LEVELS * share)))
    red, green, blue = SEQUENTIAL
    return f"rgba({red},{green},{blue},{alpha(size)})" if size else ""


def path_of(points: Iterable[tuple[float, float]]) -> str:
    """The `d` of a line through points."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def details(summary: str, content: str) -> str:
    """What is there for those who want it in words or numbers."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>" if content else ""
