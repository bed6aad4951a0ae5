"""What the still form of every view is made of: heading, what was asked, the text in its credit."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace

from PIL import Image

from segviz.parts.credit import error_of, segment_credit, signed, token_credit, trained
from segviz.parts.heading import facts, pictures, prompt_of, where
from segviz.runs.rollout import Rollout
from segviz.show.encode import escape, tidy
from segviz.show.still import SOFT, WIDTH, Piece, details, flow, picture, place, scale_words, token, words
from segviz.show.theme import level, method_label, symmetric_limit

TOKENS = 700  #: tokens of a still picture
LETTERS = 20_000  #: of the text below it
SMALL = 128  #: px up to which a picture is shown larger than it is


def head(title: str, place: str, verdict: Sequence[str]) -> str:
    """Title, whose it is, and the question answered."""
    said = f"<p><strong>{escape(verdict[0])}</strong> {escape(' '.join(verdict[1:]))}</p>" if verdict else ""
    return f"<h3>{escape(title)}</h3><p>{escape(place)}</p>{said}"


def place_of(rollout: Rollout) -> str:
    """Which rollout, and whose credit."""
    return f"{where(rollout)} · {method_label(rollout.row.get('method'))}"


def asked(rollout: Rollout) -> str:
    """The pictures, the question, what was said and what is right, side by side without a style."""
    shown = "".join(
        image(picture["src"], f"Image {number} of the prompt")
        if picture["src"]
        else f"(image {escape(picture['note'])})"
        for number, picture in enumerate(pictures(rollout).values(), 1)
    )
    question = " ".join(
        part["text"] for message in prompt_of(rollout) if message["role"] != "system" for part in message["parts"]
        if part.get("text")
    )  # fmt: skip
    known = facts(rollout)
    lines = [escape(tidy(question)[:900])] if question else []
    if known["said"] is not None or known["reference"] is not None:
        right = {True: " ✓", False: " ✗", None: ""}[known["right"]["answer"]]
        said = "nothing" if known["said"] is None else known["said"]
        reference = "" if known["reference"] is None else f", reference <b>{escape(known['reference'])}</b>"
        lines.append(f"said <b>{escape(said)}</b>{right}{reference}")
    if not shown and not lines:
        return ""
    text = "<br>".join(lines)
    return f'<p>{shown}{text}<br clear="all"></p>'


def image(src: str, alt: str, side: int = 128) -> str:
    """A picture of the prompt, small ones with hard edges and as large as `side`."""
    try:
        found = Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2])))
        if max(found.size) <= SMALL:
            times = max(1, side // max(found.size))
            found = found.resize((found.width * times, found.height * times), Image.Resampling.NEAREST)
        else:
            found = found.convert("RGB")
            found.thumbnail((2 * side, 2 * side))
        sink = io.BytesIO()
        found.save(sink, format="PNG", optimize=True)
    except (OSError, ValueError):
        return f"({escape(alt)} cannot be read)"
    width, height = found.size if max(found.size) <= side else (found.width // 2, found.height // 2)
    data = base64.b64encode(sink.getvalue()).decode()
    place = f'width="{width}" height="{height}" align="left" hspace="12"'
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}" {place}>'


def pieces_of(rollout: Rollout, tags: bool = True, limit: float | None = None) -> list[Piece]:
    """The tokens with the shades of their credit, and over each cut the segment's number and credit."""
    credit, in_loss, error = token_credit(rollout), trained(rollout), error_of(rollout)
    limit = symmetric_limit(credit.tolist()) if limit is None else limit
    starts = {start: m for m, (start, _) in enumerate(rollout.segments)}
    marks = segment_credit(rollout)
    found = []
    for t, text in enumerate(rollout.pieces[:TOKENS]):
        m = starts.get(t) if tags else None
        tag = "" if m is None else f"{m + 1}" + ("" if marks[m] is None else f"  {signed(marks[m])}")
        size = level(float(credit[t]), limit) if limit and credit[t] == credit[t] else 0
        wrong = bool(error) and error["start"] <= t < error["end"]
        found.append(Piece(tidy(text), size, tag, wrong, out=not in_loss[t]))
    return found


def ribbon_picture(rollout: Rollout, verdict: Sequence[str]) -> str:
    """The completion in its credit, as a picture whose alternative text is the verdict and the words."""
    pieces = pieces_of(rollout)
    body, height = flow(pieces, top=4)
    alt = f"{' '.join(verdict)} The completion: {text_of(rollout)[:1500]}"
    return picture(body, height + 12, alt, WIDTH) if pieces else ""


def methods_picture(rollouts: Mapping[str, Rollout], verdict: Sequence[str]) -> str:
    """One text; under each of its lines a strip a method, the tokens in the same columns."""
    base = next(iter(rollouts.values()))
    error = error_of(base)
    texts = [
        Piece(tidy(text), error=bool(error) and error["start"] <= t < error["end"])
        for t, text in enumerate(base.pieces[:TOKENS])
    ]
    if not texts:
        return ""
    labels = {name: method_label(name)[:27] for name in rollouts}
    left, strip = 16 + 6.4 * max(map(len, labels.values())), 13
    placed = place(texts, WIDTH - left - 10)
    step = 24 + strip * len(rollouts) + 10
    shades = {name: pieces_of(rollout) for name, rollout in rollouts.items()}
    parts = []
    for one in placed:
        x, y = left + one.x, 20 + step * one.line
        parts += token(one, x, y)
        for i, pieces in enumerate(shades.values()):
            piece = pieces[one.number]
            cell = replace(one, piece=Piece("", piece.size, fill=piece.fill))
            parts += token(cell, x, y + 18 + strip * i, strip - 2)
            if piece.tag and one.number and len(rollouts[list(shades)[i]].segments) <= len(base.pieces) / 2:
                parts.append(f'<path d="M{x:.1f} {y + 10 + strip * i}v{strip - 2}" stroke="{SOFT}"/>')
    for line in range(placed[-1].line + 1):
        parts += [words(label, 10, 20 + step * line + 21 + strip * i, size=11, fill=SOFT)
                  for i, label in enumerate(labels.values())]  # fmt: skip
    alt = f"{' '.join(verdict)} The completion: {text_of(base)[:1500]}"
    return picture("".join(parts), step * (placed[-1].line + 1) + 8, alt)


def reading(rollout: Rollout) -> str:
    """How to read the picture: shades, the mark of the error, what is left out."""
    limit = symmetric_limit(rollout.column("advantages") or [], trained(rollout))
    told = [scale_words(limit)]
    if error := error_of(rollout):
        told.append(f"Wavy line: the first true error, at token {error['start'] + 1}.")
    if not all(trained(rollout)):
        told.append("Dotted below: not trained.")
    if (left := len(rollout.pieces) - TOKENS) > 0:
        told.append(f"{left:,} more tokens: open the page that .save(path) writes.")
    return f"<p><small>{escape(' '.join(filter(None, told)))}</small></p>"


def text_of(rollout: Rollout) -> str:
    """The completion as it stands, up to some length."""
    text = tidy("".join(rollout.pieces))
    return text if len(text) <= LETTERS else f"{text[:LETTERS]}… ({len(text):,} characters)"


def as_text(rollout: Rollout) -> str:
    """The completion to select and to search, folded away."""
    return details("The completion as text", f'<p dir="ltr">{escape(text_of(rollout))}</p>')
