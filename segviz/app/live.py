"""The tab Live: curves of the runs that are chosen, and their newest rollouts as they come."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import pyarrow as pa

from segpo_core.record.files import read_table, step_of
from segpo_core.record.store import ROLLOUT_SCHEMA, SchemaError
from segviz.app.files import Watch
from segviz.app.index import Index
from segviz.app.kept import Kept
from segviz.app.shelf import Missing, Shelf, ShelfRun
from segviz.show.encode import plain_json, tidy
from segviz.show.theme import level, method_label, symmetric_limit
from segviz.views.board import board_data
from segviz.views.report import THUMBNAIL

CARDS = 8  #: newest rollouts of one run
TEXT = 220  #: characters of a card's text

#: Charts of metrics that belong together: title, hint, share of 1, [(label, metric)].
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
    "segment_advantage text"
).split()
_NEWEST = pa.schema([ROLLOUT_SCHEMA.field(name) for name in _NAMES])


class Live:
    """What the tab shows, made once for everybody who is watching."""

    def __init__(self, shelf: Shelf, index: Index):
        self.shelf, self.index = shelf, index
        self._pages, self._cards, self._shelves = Kept(16), Kept(32), Kept(1)

    def runs(self) -> str:
        """JSON of the shelf: runs, and where they are looked for. Looked at twice a second at most."""
        roots = [tidy(name) for name in self.shelf.names]
        return self._shelves.get(
            int(2 * time.monotonic()), lambda: plain_json({"runs": self.shelf.described(), "roots": roots})
        )

    def page(self, names: Sequence[str]) -> str:
        """JSON of the board and the newest rollouts of some runs.

        board: as `board_data`, null without a run. newest: `cards` of each run. gone: runs that cannot be read, and
        why. problems: what is wrong with the others. unread: files still to come.
        """
        runs, gone = [], []
        for name in names:
            try:
                runs.append(self.shelf.open(name))
            except (Missing, SchemaError, OSError) as error:
                gone.append({"name": tidy(name), "words": tidy(str(error))})
        known = [self.index.refresh(run.place) for run in runs]
        unread = sum(run.log.unread for run in runs)
        stamp = tuple(
            (str(run.path), str(run.manifest.get("started")), run.log.version, indexed.version)
            for run, indexed in zip(runs, known, strict=True)
        )
        words = tuple((one["name"], one["words"]) for one in gone)

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
            board = gathered(board_data(runs, "")) if runs else None
            return plain_json(
                {"board": board, "newest": newest, "gone": gone, "problems": problems[:8], "unread": unread}
            )

        return self._pages.get((stamp, words, unread), make)

    def _newest(self, run: ShelfRun, watch: Watch) -> list[dict[str, Any]]:
        """The newest step's most telling completion of each prompt: the one with the largest credit."""
        steps = {name: step_of(Path(name)) for name in watch.files}
        last = max((step for step in steps.values() if step is not None), default=None)
        files = sorted((name, stamp) for name, stamp in watch.files.items() if steps[name] == last)

        def make() -> list[dict[str, Any]]:
            rows: list[dict[str, Any]] = []
            for name, _ in files:
                try:
                    table = read_table(watch.folder / name, _NEWEST)
                except (ValueError, OSError):  # the index has noted it
                    continue
                rows += table.to_pylist()
            best: dict[int, dict[str, Any]] = {}
            for row in rows:
                credit = symmetric_limit(row.get("segment_advantage") or [])
                held = best.get(row["group"])
                if held is None or credit > held["credit"]:
                    best[row["group"]] = row | {"credit": credit}
            return [card(row) for _, row in sorted(best.items())[:CARDS]]

        return self._cards.get((str(run.path), tuple(files)), make)


def card(row: dict[str, Any]) -> dict[str, Any]:
    """A rollout at a glance."""
    text = row.get("text") or ""
    shown = ("step", "group", "sample", "reward", "finished", "answer_right", "perception_right", "error_kind")
    return {
        **{name: row.get(name) for name in shown},
        "tokens": (row.get("segment_end") or [None])[-1],
        "method": method_label(row.get("method")),
        "text": text[:TEXT] + ("…" if len(text) > TEXT else ""),
        "strip": strip(row.get("segment_start"), row.get("segment_end"), row.get("segment_advantage")),
    }


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
                style = line["style"] if several else place
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
