"""The tab Live: what becomes of the runs that are chosen, their newest rollouts as they come, and their curves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import gradio as gr
import pyarrow as pa

from segpo_core.record.files import read_table, span_of
from segpo_core.record.store import ROLLOUT_SCHEMA, SchemaError
from segviz.app.files import Watch
from segviz.app.found import Found, side_by_side
from segviz.app.index import Index, Indexed
from segviz.app.kept import Kept
from segviz.app.shelf import Missing, Shelf, ShelfRun
from segviz.parts.credit import blamed, error_of
from segviz.parts.heading import said_of
from segviz.parts.story import progress, story
from segviz.runs.columns import question
from segviz.runs.rollout import Rollout
from segviz.show.encode import plain_json, tidy
from segviz.show.theme import level, method_label, symmetric_limit
from segviz.views.board import board_data
from segviz.views.report import THUMBNAIL

CARDS = 8  #: newest rollouts of one run
TEXT = 220  #: characters of a card's question
AROUND = 36, 24  #: characters shown before and after the word where a completion goes wrong
APART = 5  #: runs that were chosen stand apart; more of them than there are colours are told by method

#: Charts of metrics that belong together: title, hint, share of 1, [(label, metric)]. A metric that another chart
#: shows keeps its colour; the others have those that are left.
GATHERED = (
    (
        "Is it the seeing or the reasoning?",
        "shares of the training completions",
        True,
        [("perception", "train/perception"), ("reasoning", "train/reasoning")],
    ),
    (
        "Where a step's time goes",
        "seconds",
        False,
        [(name, f"time/{name}") for name in ("sample", "score", "update", "credit", "record")],
    ),
)

#: Metrics that get a chart of their own here: title -> metric.
ALONE = {"KL of the step's update": "step_kl", "Groups without signal": "groups_without_signal"}

_NAMES = (
    "step group sample method reward finished answer_right perception_right error_kind segment_start segment_end "
    "segment_advantage segment_ids text prompt images answer truth error_start error_end pieces advantages loss_mask"
).split()
_NEWEST = pa.schema([ROLLOUT_SCHEMA.field(name) for name in _NAMES])


class Live:
    """What the tab shows, made once for everybody who is watching."""

    def __init__(self, shelf: Shelf, index: Index):
        self.shelf, self.index = shelf, index
        self.found = Found()
        self._pages, self._cards, self._shelves = Kept(16), Kept(32), Kept(1)

    def runs(self) -> str:
        """JSON of the shelf: runs, where they are looked for, what is left out. Looked at twice a second at most."""
        roots = [tidy(name) for name in self.shelf.names]

        def made() -> str:
            return plain_json({"runs": self.shelf.described(), "roots": roots, "left_out": self.shelf.left_out})

        return self._shelves.get("", made, int(2 * time.monotonic()))

    def page(self, names: Sequence[str]) -> str:
        """JSON of some runs.

        stories: what is told of each first, as `parts.story`. found: whether the credit finds the error, as
        `Found.board`, of several runs side by side. newest: `cards` of each run. board: the curves, as `board_data`,
        null without a run. gone: runs that cannot be read, and why. problems: what is wrong with the others. unread:
        files still to come.
        """
        runs, known, boards, gone = [], [], [], []
        for name in names:
            try:
                run = self.shelf.reading(name, lambda run: run)
                indexed = self.index.refresh(run.place)
                if self.index.patience.stuck(run.path):
                    raise Missing(indexed.problems.get("", "It does not answer."))
                boards.append(self._board(run, indexed))
                runs.append(run)
                known.append(indexed)
            except (Missing, SchemaError, OSError) as error:
                gone.append({"name": tidy(name), "words": tidy(str(error))})
        unread = sum(run.log.unread for run in runs)
        counting = sum(left for _, left in boards)
        state = [
            (str(run.path), str(run.manifest.get("started")), run.log.version, indexed.version)
            for run, indexed in zip(runs, known, strict=True)
        ]

        def make() -> str:
            most = max(2, CARDS // len(runs)) if runs else 0
            newest = [
                {"run": tidy(run.name), "label": run.method_label, "cards": self._newest(run, indexed.watch)[:most]}
                for run, indexed in zip(runs, known, strict=True)
            ]
            problems = [
                f"{run.name}: {text}"
                for run, indexed in zip(runs, known, strict=True)
                for text in dict.fromkeys([*run.log.problems.values(), *indexed.problems.values(), *run.problems])
            ]
            board = gathered(board_data(runs, "", apart=len(runs) <= APART)) if runs else None
            if board:
                board["status"] = []  # the story says how far each is
            found = boards[0][0] if len(boards) == 1 else side_by_side(
                [(run.name, one) for run, (one, _) in zip(runs, boards, strict=True)]
            )  # fmt: skip
            return plain_json(
                {"stories": [begun(run) if run.log.unread else story(run) for run in runs], "found": found,
                 "newest": newest, "board": board, "gone": gone, "problems": problems[:8], "unread": unread,
                 "counting": counting}
            )  # fmt: skip

        def made() -> str:
            return self.shelf.patience.ask(tuple(run.path for run in runs), make)

        return self._pages.get(tuple(names), made, (state, gone, unread, counting))

    def _board(self, run: ShelfRun, indexed: Indexed) -> tuple[dict[str, Any] | None, int]:
        """As `Found.board`. Raises Hangs."""
        return self.shelf.within(run.place, lambda: self.found.board(run, indexed.watch))

    def methods(self, names: Sequence[str]) -> str:
        """JSON for comparing: {found, runs}. found: the boards of the runs side by side, null of one run, or without
        any. runs: of each {name, found, methods, counting}, as `Found` gives them.

        Raises:
            Missing: a run that is not there.
        """
        told = []
        for name in dict.fromkeys(names):
            try:
                run = self.shelf.reading(name, lambda run: run)
            except (SchemaError, OSError) as error:
                raise Missing(str(error)) from error
            indexed = self.index.refresh(run.place)
            found, left = self._board(run, indexed)
            methods = self.shelf.within(run.place, partial(self.found.methods, run, indexed.watch))
            told.append({"name": tidy(run.name), "found": found, "methods": methods, "counting": left})
        beside = side_by_side([(one["name"], one["found"]) for one in told]) if len(told) > 1 else None
        return plain_json({"found": beside, "runs": told})

    def _newest(self, run: ShelfRun, watch: Watch) -> list[dict[str, Any]]:
        """The newest step's most telling completion of each prompt: the one with the largest credit."""
        ends = {name: span.last for name in watch.files if (span := span_of(name)) is not None}
        last = max(ends.values(), default=None)
        files = sorted((name, stamp) for name, stamp in watch.files.items() if ends[name] == last)

        def make() -> list[dict[str, Any]]:
            rows: list[dict[str, Any]] = []
            for name, _ in files:
                try:
                    table = read_table(watch.path / name, _NEWEST, [] if last is None else [last])
                except (ValueError, OSError):  # the index has noted it
                    continue
                rows += table.to_pylist()
            best: dict[int, dict[str, Any]] = {}
            for row in rows:
                credit = symmetric_limit(row.get("segment_advantage") or [])
                held = best.get(row["group"])
                if held is None or credit > held["credit"]:
                    best[row["group"]] = row | {"credit": credit}
            shown = [card(row) for _, row in sorted(best.items())[:CARDS]]
            there = {item["picture"]: run.has_image(item["picture"]) for item in shown if item["picture"]}
            return [item | {"picture": item["picture"] if there.get(item["picture"]) else None} for item in shown]

        return self._cards.get(run.path, make, files)


def begun(run: ShelfRun) -> dict[str, Any]:
    """The story of a run whose numbers are still being read, the newest first: nothing is told of half of them."""
    words = f"Reading what is recorded: {run.log.unread:,} steps to go."
    return {
        "name": tidy(run.name),
        "method": run.method_label,
        "headline": [],
        "sentence": words,
        "progress": progress(run),
    }


def card(row: dict[str, Any]) -> dict[str, Any]:
    """A rollout at a glance: its question and picture, what it said and what is right, the word where it went wrong."""
    rollout = Rollout(row)
    shown = ("step", "group", "sample", "reward", "finished", "answer_right", "perception_right", "error_kind")
    said, asked = said_of(rollout), question(row.get("prompt")).strip()
    return {
        **{name: row.get(name) for name in shown},
        "tokens": (row.get("segment_end") or [None])[-1],
        "method": method_label(row.get("method")),
        "picture": next(iter(row.get("images") or []), None),
        "question": _short(asked, TEXT),
        "text": _short(row.get("text") or "", TEXT),
        "said": None if said is None else _short(said.strip(), 40),
        "reference": None if row.get("answer") is None else _short(str(row["answer"]), 40),
        "wrong": wrong(rollout),
        "strip": strip(row.get("segment_start"), row.get("segment_end"), row.get("segment_advantage")),
    }


def wrong(rollout: Rollout) -> dict[str, Any] | None:
    """Where a completion goes wrong: {before, word, after, kind, why, blamed}; where no true error is known, where it
    was blamed most, without a kind; None where no place is named either.

    `blamed`: "there" where the strongest blame lies on the error, else the words where it lies; None where credit names
    no place.
    """
    error, place, pieces = error_of(rollout), blamed(rollout), rollout.pieces
    if error is None and place.start is None:
        return None
    start, end = (error["start"], error["end"]) if error else (place.start, place.end)
    quoted = None if place.start is None else tidy("".join(pieces[place.start : place.end])).strip()[:30]
    return {
        "before": tidy("".join(pieces[max(0, start - 40) : start]))[-AROUND[0] :],
        "word": tidy("".join(pieces[start:end]))[:60],
        "after": tidy("".join(pieces[end : end + 24]))[: AROUND[1]],
        "kind": error["kind"] if error else None,
        "why": error["why"][:120] if error else "",
        "blamed": "there" if place.hit else quoted,
    }


def _short(text: str, size: int) -> str:
    text = tidy(text)
    return text if len(text) <= size else f"{text[:size]}…"


def strip(starts: list[int] | None, ends: list[int] | None, credit: list[float | None] | None) -> list[int]:
    """The credit at a glance, as `views.report.thumbnail`, from segments alone: up to `THUMBNAIL` shades
    -10 … 10, and -99 where no credit was assigned."""
    if not starts or not ends or not credit or not len(starts) == len(ends) == len(credit):
        return []
    limit, total, first = symmetric_limit(credit), ends[-1], 0
    shades = []
    for i in range(count := min(total, THUMBNAIL)):
        low, high = i * total // count, max(i * total // count + 1, (i + 1) * total // count)
        while ends[first] <= low:
            first += 1
        held, m = [], first
        while m < len(ends) and starts[m] < high:
            held += [credit[m]] if credit[m] is not None else []
            m += 1
        shades.append(level(max(held, key=abs), limit) if held else -99)
    return shades


def gathered(board: dict[str, Any]) -> dict[str, Any]:
    """The board with the charts of `GATHERED` and `ALONE`, made of those that the board shows one by one."""
    several = len(board["groups"]) > 1
    alone = {chart["title"]: chart for chart in board["other"]}
    for title, hint, share, wanted in GATHERED:
        lines = []
        for place, (label, metric) in enumerate(wanted):
            for line in alone[metric]["lines"] if metric in alone else _within(board, metric):
                style = line["style"] if several or metric not in alone else (place + 2 if share else place)
                lines.append(line | {"label": line["label"] if several else label, "panel": label, "style": style})
        if lines:
            board["charts"].append({"title": title, "hint": hint, "share": share, "panels": several, "lines": lines})
    board["charts"] += [alone[name] | {"title": title} for title, name in ALONE.items() if name in alone]
    used = {metric for *_, wanted in GATHERED for _, metric in wanted} | set(ALONE.values())
    board["other"] = [chart for chart in board["other"] if chart["title"] not in used]
    return board


def _within(board: dict[str, Any], metric: str) -> list[dict[str, Any]]:
    """Lines of a metric that is part of another chart: `train/perception` among the training completions."""
    title = {"train": "Training completions"}.get(metric.partition("/")[0])
    return [
        line for chart in board["charts"] if chart["title"] == title
        for line in chart["lines"] if line["panel"] == metric.partition("/")[2]
    ]  # fmt: skip


def tab() -> None:
    """The tab; it draws itself from `Live` (see static/live.js)."""
    gr.HTML("<segpo-live></segpo-live>", elem_classes="bare")
