"""Two completions beside each other: where they say the same, where they differ, and what credit each got for it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from segviz.parts.credit import error_of, signed, trained
from segviz.parts.heading import facts, pictures, prompt_of, where
from segviz.parts.stills import as_text, asked, head
from segviz.runs.rollout import Rollout
from segviz.show.encode import escape, tidy
from segviz.show.theme import level, method_label, symmetric_limit
from segviz.show.view import View

QUESTION = "Where do these two part?"

MOST = (
    3000  #: tokens up to which all differences are looked for; of longer texts, what both begin and end with is known
)


def versus(
    first: Rollout | Mapping[str, Any],
    second: Rollout | Mapping[str, Any],
    names: tuple[str, str] | None = None,
    title: str = QUESTION,
) -> View:
    """Two completions, differences token by token, in lines that stay beside each other.

    Args:
        first, second: from `Run.rollout`, or mappings with the columns of `ROLLOUT_SCHEMA`; mostly of one prompt.
        names: what each is called; default: the runs that they are from.
    """
    both = [one if isinstance(one, Rollout) else Rollout(one) for one in (first, second)]
    called = list(names or (one.run_name or "" for one in both))
    if called[0] == called[1]:
        called = [f"A {called[0]}".strip(), f"B {called[1]}".strip()]
    blocks = aligned(both[0].pieces, both[1].pieces)
    data = {
        "kind": "versus",
        "title": title,
        "prompt": prompt_of(both[0]),
        "same_prompt": _words(both[0]) == _words(both[1]),
        "pictures": pictures(both[0]),
        "sides": [_side(name, one) for name, one in zip(called, both, strict=True)],
        "blocks": blocks,
        "verdict": verdict(both, called, blocks),
        "notices": [note for one in both for note in one.problems],
    }
    return View("versus", title, data, _fallback(both, data))


def aligned(first: Sequence[str], second: Sequence[str]) -> list[list[int]]:
    """[same, start, end in the first, start, end in the second], covering both; `same` is 1 where they say the same."""
    a, b = list(first), list(second)
    if max(len(a), len(b)) <= MOST:
        found = difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
        return [[int(tag == "equal"), *span] for tag, *span in found]
    short = min(len(a), len(b))
    head_ = next((i for i in range(short) if a[i] != b[i]), short)
    tail = next((i for i in range(short - head_) if a[-1 - i] != b[-1 - i]), short - head_)
    spans = [
        [1, 0, head_, 0, head_],
        [0, head_, len(a) - tail, head_, len(b) - tail],
        [1, len(a) - tail, len(a), len(b) - tail, len(b)],
    ]
    return [span for span in spans if span[2] > span[1] or span[4] > span[3]]


def verdict(both: Sequence[Rollout], names: Sequence[str], blocks: Sequence[Sequence[int]]) -> list[str]:
    """Where they part, and what each earned."""
    parts = [block for block in blocks if not block[0]]
    if not both[0].pieces or not both[1].pieces:
        return ["One of them is empty." if both[0].pieces or both[1].pieces else "Both are empty."]
    rewards = [one.row.get("reward") for one in both]
    earned = "; ".join(
        f"{name}: {'no reward' if reward is None else f'reward {reward:.3g}'}"
        for name, reward in zip(names, rewards, strict=True)
    )
    if not parts:
        return [f"They say the same, word for word. {earned}."]
    _, a, a_end, b, b_end = parts[0]
    words = ["".join(one.pieces[x:y]).strip()[:40] for one, x, y in zip(both, (a, b), (a_end, b_end), strict=True)]
    said = [f"‘{word.replace(chr(10), '↵')}’" if word else "nothing" for word in words]
    many = f"{len(parts)} places differ" if len(parts) > 1 else "One place differs"
    first = f"They part after {a} tokens: {names[0]} says {said[0]} where {names[1]} says {said[1]}."
    return [first, f"{many}. {earned}."]


def _words(rollout: Rollout) -> list[str]:
    """What was asked, but for pictures, whose names another version may have made otherwise."""
    return [part["text"] for message in prompt_of(rollout) for part in message["parts"] if "text" in part]


def _side(name: str, rollout: Rollout) -> dict[str, Any]:
    credit = rollout.column("advantages") or [None] * len(rollout.pieces)
    known = [x if ok else None for x, ok in zip(credit, trained(rollout), strict=True)]
    limit, error = symmetric_limit(known), error_of(rollout)
    return {
        "name": tidy(name),
        "where": where(rollout),
        "method": method_label(rollout.row.get("method")),
        "facts": facts(rollout),
        "pieces": [tidy(piece) for piece in rollout.pieces],
        "level": [None if x is None else level(x, limit) for x in known],
        "credit": [None if x is None else float(f"{x:.4g}") for x in known],
        "limit": limit,
        "error": [error["start"], error["end"]] if error else None,
    }


def _fallback(both: Sequence[Rollout], data: Mapping[str, Any]) -> str:
    """The differences as a table, and both texts."""
    rows = []
    for same, a, a_end, b, b_end in data["blocks"]:
        if same:
            continue
        cells = []
        for side, x, y in zip(data["sides"], (a, b), (a_end, b_end), strict=True):
            credit = [value for value in side["credit"][x:y] if value is not None]
            told = f" ({signed(sum(credit) / len(credit))})" if credit else ""
            cells.append(
                f'<td style="white-space:pre-wrap;text-align:left">{escape("".join(side["pieces"][x:y]))}{told}</td>'
            )
        rows.append(f"<tr><td>{a + 1}</td>{''.join(cells)}</tr>")
    heads = "".join(f"<th>{escape(name)}</th>" for name in ("from token", *(side["name"] for side in data["sides"])))
    table = f"<table><tr>{heads}</tr>{''.join(rows)}</table>" if rows else ""
    place = " — ".join(f"{side['name']}: {side['where']}" for side in data["sides"])
    texts = "".join(as_text(one) for one in both)
    return f"<div>{head(data['title'], place, data['verdict'])}{asked(both[0])}{table}{texts}</div>"
