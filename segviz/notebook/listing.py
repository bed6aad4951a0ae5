"""A list of rollouts: narrowed by a filter, sorted by a column, shown a page at a time.

Works on the light rows of `Run.rollouts`; of the token streams nothing is read, and of the texts only when searched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from segpo_core.record.store import read_rollouts
from segviz.parts.credit import signed
from segviz.runs.columns import question
from segviz.runs.run import Run
from segviz.show.encode import escape
from segviz.show.theme import level, method_label
from segviz.show.view import View

PAGE = 12  #: rows of a page

#: What a rollout may be judged as.
VERDICTS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "right": lambda row: row["answer_right"] is True,
    "wrong": lambda row: row["answer_right"] is False,
    "right, not grounded": lambda row: row["answer_right"] is True and row["perception_right"] is False,
    "not judged": lambda row: row["answer_right"] is None,
}

#: Column -> heading, what it means. In this order; one that no row has a value for is left out.
COLUMNS = {
    "step": ("step", "training step that sampled it"),
    "group": ("group", "number of the prompt within the step"),
    "sample": ("sample", "number of the completion within its group"),
    "method": ("method", "what assigned the credit"),
    "reward": ("reward", "as the trainer saw it"),
    "answer_right": ("answer", "is the answer right?"),
    "perception_right": ("perception", "does it describe the image rightly?"),
    "error_kind": ("first error", "kind of the first true error"),
    "lowest": ("blamed", "lowest advantage of a segment"),
    "highest": ("praised", "highest advantage of a segment"),
    "segments": ("segments", "of the completion"),
    "tokens": ("tokens", "of the completion; ✂: cut at the limit"),
}

_IDS = ("step", "group", "sample")


@dataclass(frozen=True)
class Filter:
    """Which rollouts to list; all given conditions together.

    None, "" and False ask for nothing. A range is (lowest, highest), both included; a rollout without the number is in
    no range.

    Raises:
        ValueError: a range or a verdict is not one.
    """

    steps: tuple[int, int] | None = None
    method: str | None = None
    verdict: str | None = None  #: one of `VERDICTS`
    reward: tuple[float, float] | None = None
    tokens: tuple[int, int] | None = None
    text: str = ""  #: found in the completion, large and small letters alike
    error_kind: str | None = None
    perception_error: bool = False
    truncated: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "reward", "tokens"):
            span = getattr(self, name)
            if span is not None and not (isinstance(span, Sequence) and len(span) == 2 and span[0] <= span[1]):
                raise ValueError(f"{name}={span!r} is not a range: give (lowest, highest), for example {name}=(0, 10)")
        if self.verdict is not None and self.verdict not in VERDICTS:
            raise ValueError(f"verdict={self.verdict!r}: choose one of {', '.join(map(repr, VERDICTS))}")

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether a light row passes everything but the search in its text."""
        return (
            _within(row["step"], self.steps)
            and _within(row["reward"], self.reward)
            and _within(row["tokens"], self.tokens)
            and (not self.method or row["method"] == self.method)
            and (not self.error_kind or row["error_kind"] == self.error_kind)
            and (self.verdict is None or VERDICTS[self.verdict](row))
            and (not self.perception_error or row["perception_right"] is False or row["error_kind"] == "perception")
            and (not self.truncated or row["finished"] is False)
        )


def narrow(run: Run, wanted: Filter, rows: Iterable[Mapping[str, Any]] | None = None) -> list[Mapping[str, Any]]:
    """Rows (default: all of the run) that the filter lets through."""
    found = [row for row in (run.rollouts if rows is None else rows) if wanted.fits(row)]
    if not wanted.text:
        return found
    keys = _texts_with(run, wanted.text, sorted({row["step"] for row in found}))
    return [row for row in found if tuple(row[name] for name in _IDS) in keys]


def ordered(rows: Iterable[Mapping[str, Any]], column: str = "step", descending: bool = False) -> list:
    """Rows sorted by a column of `COLUMNS`, those without a value last either way; ties by step, group, sample.

    Raises:
        ValueError: no such column.
    """
    if column not in COLUMNS:
        raise ValueError(f"rollouts cannot be sorted by {column!r}; by one of: {', '.join(COLUMNS)}")
    rows = sorted(rows, key=lambda row: tuple(row[name] for name in _IDS))
    there = sorted((row for row in rows if row[column] is not None), key=lambda row: row[column], reverse=descending)
    return [*there, *(row for row in rows if row[column] is None)]


def listing(rows: Sequence[Mapping[str, Any]], page: int = 0, sort: str = "step", descending: bool = False,
            current: str = "", recorded: int | None = None, empty: str = "No rollout fits.",
            title: str = "Rollouts", notices: Sequence[str] = ()) -> View:  # fmt: skip
    """One page of rows that are already narrowed and sorted.

    In a widget the reader may open a row (`ViewWidget.on_open`) and ask (`on_ask`) for {"page": number},
    {"sort": column}, or {"step": 1 | -1, "from": "step/group/sample"}, the row after or before that one.

    Args:
        rows: all rows of the list.
        page: which page, from 0; a number beyond the list gives its nearest page.
        current: "step/group/sample" of the row that is open.
        recorded: how many there are without the filter.
        notices: what to say above it.
    """
    data = listing_data(rows, page, sort, descending, current, recorded, empty, title) | {"notices": list(notices)}
    head = "".join(f"<th>{escape(column['label'])}</th>" for column in data["columns"])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_plain(cell))}</td>" for cell in row["cells"]) + "</tr>" for row in data["rows"]
    )
    said = f"{len(rows)} rollouts, page {data['page'] + 1} of {data['pages']}" if rows else empty
    notes = "".join(f"<p>{escape(line)}</p>" for line in [*notices, said])
    return View("list", title, data, f"<h3>{escape(title)}</h3>{notes}<table><tr>{head}</tr>{body}</table>")


def listing_data(rows: Sequence[Mapping[str, Any]], page: int, sort: str, descending: bool, current: str,
                 recorded: int | None, empty: str, title: str) -> dict[str, Any]:  # fmt: skip
    """What the script needs to draw a page of the list."""
    pages = max(1, -(-len(rows) // PAGE))
    page = min(max(0, page), pages - 1)
    methods = {row["method"] for row in rows}
    names = [
        name
        for name in COLUMNS
        if name in _IDS or (any(row[name] is not None for row in rows) and (name != "method" or len(methods) > 1))
    ]
    limit = max((abs(row[n]) for row in rows for n in ("lowest", "highest") if row[n] is not None), default=0.0)
    shown = rows[page * PAGE : (page + 1) * PAGE]
    return {
        "kind": "list",
        "title": title,
        "columns": [{"id": name, "label": COLUMNS[name][0], "hint": COLUMNS[name][1]} for name in names],
        "rows": [
            {
                "key": {name: row[name] for name in _IDS},
                "cells": [method_label(row[name]) if name == "method" else row[name] for name in names],
                "levels": {name: level(row[name], limit) for name in ("lowest", "highest") if row[name] is not None},
                "cut": row["finished"] is False,
            }
            for row in shown
        ],
        "first": page * PAGE,
        "matched": len(rows),
        "recorded": len(rows) if recorded is None else recorded,
        "page": page,
        "pages": pages,
        "sort": sort,
        "descending": descending,
        "current": current,
        "empty": empty,
    }


def _within(value: float | None, span: tuple[float, float] | None) -> bool:
    return span is None or (value is not None and span[0] <= value <= span[1])


def _texts_with(run: Run, words: str, steps: Sequence[int]) -> set[tuple[int, ...]]:
    """(step, group, sample) of rollouts whose completion or question holds the words. A file that cannot be read
    holds none: `Run.problems` names it."""
    columns, asked = [*_IDS, "text", "prompt"], cache(question)
    try:
        tables = [read_rollouts(run.path, steps, columns)]
    except (ValueError, OSError):  # one of them is torn: each by itself
        tables = [table for step in steps if (table := _readable(run, step, columns)) is not None]
    found: set[tuple[int, ...]] = set()
    for table in tables:
        questions = pa.array(map(asked, table["prompt"].to_pylist()), pa.string())
        for texts in (table["text"], questions):
            hits = table.filter(pc.fill_null(pc.match_substring(texts, words, ignore_case=True), False))
            found.update(zip(*(hits[name].to_pylist() for name in _IDS), strict=True))
    return found


def _readable(run: Run, step: int, columns: list[str]) -> pa.Table | None:
    try:
        return read_rollouts(run.path, [step], columns)
    except (ValueError, OSError):
        return None


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "✓" if value else "✗"
    return signed(value) if isinstance(value, float) else str(value)
