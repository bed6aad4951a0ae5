"""The tab Compare: one rollout under every method, one prompt in two runs, one prompt over training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from segviz.app.index import Index
from segviz.app.shelf import Shelf
from segviz.show.encode import tidy

PROMPTS = 100  #: prompts in one list
QUESTION = 300  #: characters of a question in it
OCCURRENCES = 1000  #: completions of one prompt


def prompts(shelf: Shelf, index: Index, names: Sequence[str], search: str = "") -> dict[str, Any]:
    """Prompts of some runs, those on which the runs differ most first; of one run, those sampled most often.

    Args:
        names: one run, or several: then the prompts that all of them saw.
        search: part of the question or of the example's id.

    Returns:
        prompts: [{example, question, picture: [run, sha256] of its first one or null, runs: [{run, steps: [first,
            last], times, count, right, reward}]}], `right` null where no answer was judged.
        total: how many there are. filling: whether the index is still being read.

    Raises:
        Missing: a run that is not there.
    """
    places = [shelf.place(name) for name in dict.fromkeys(names)]
    runs = {index.refresh(place).number: place.name for place in places}
    fits = "contains(lower(example_id), lower(?)) OR contains(lower(question), lower(?))"
    where = f"run IN (SELECT unnest(?)) AND example_id IS NOT NULL AND ({fits})"
    having = f"HAVING count(DISTINCT run) = {len(runs):d}" if len(runs) > 1 else ""
    by = "difference DESC NULLS LAST" if len(runs) > 1 else "times DESC"
    with index.cursor() as db:
        chosen = db.execute(
            f"WITH each AS (SELECT example_id, run, avg(coalesce(reward, answer_right::INT)) AS mean, "
            f"count(DISTINCT step) AS times FROM rollouts WHERE {where} GROUP BY ALL) "
            f"SELECT example_id, max(mean) - min(mean) AS difference, sum(times) AS times, count(*) OVER () AS total "
            f"FROM each GROUP BY example_id {having} ORDER BY {by}, example_id LIMIT {PROMPTS:d}",
            [list(runs), search, search],
        ).fetchall()
        stats = db.execute(
            "SELECT example_id, run, min(step), max(step), count(DISTINCT step), count(*), "
            "sum(answer_right::INT), avg(reward) FROM rollouts "
            "WHERE run IN (SELECT unnest(?)) AND example_id IN (SELECT unnest(?)) GROUP BY ALL",
            [list(runs), [row[0] for row in chosen]],
        ).fetchall()
        asked = db.execute(
            "SELECT example_id, any_value(question), arg_min(run, step), arg_min(picture, step) FROM rollouts "
            "WHERE run IN (SELECT unnest(?)) AND example_id IN (SELECT unnest(?)) GROUP BY 1",
            [list(runs), [row[0] for row in chosen]],
        ).fetchall()
    about = {
        example: {
            "question": (words or "")[:QUESTION],
            "picture": [tidy(runs[run]), sha] if sha and run in runs else None,
        }
        for example, words, run, sha in asked
    }
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for example, run, first, last, times, count, right, reward in stats:
        found.setdefault(example, {})[run] = {
            "run": tidy(runs[run]), "steps": [first, last], "times": times, "count": count,
            "right": right, "reward": reward,
        }  # fmt: skip
    return {
        "prompts": [
            {"example": row[0], **about[row[0]], "runs": [found[row[0]][run] for run in runs if run in found[row[0]]]}
            for row in chosen
        ],
        "total": chosen[0][3] if chosen else 0,
        "filling": any(index.refresh(place).todo for place in places),
    }


def occurrences(shelf: Shelf, index: Index, names: Sequence[str], example: str) -> list[dict[str, Any]]:
    """Every completion of one prompt in some runs, by run, step, group and sample; at most `OCCURRENCES`.

    Raises:
        Missing: a run that is not there.
    """
    runs = {index.refresh(place).number: place.name for place in (shelf.place(name) for name in dict.fromkeys(names))}
    with index.cursor() as db:
        rows = db.execute(
            'SELECT run, step, "group", sample, reward, answer_right, perception_right, tokens FROM rollouts '
            "WHERE run IN (SELECT unnest(?)) AND example_id = ? "
            f'ORDER BY run, step, "group", sample LIMIT {OCCURRENCES:d}',
            [list(runs), example],
        ).fetchall()
    keys = ("step", "group", "sample", "reward", "answer_right", "perception_right", "tokens")
    found = [{"run": tidy(runs[row[0]])} | dict(zip(keys, row[1:], strict=True)) for row in rows]
    order = list(runs.values())
    return sorted(found, key=lambda row: order.index(row["run"]))


def tab() -> None:
    """The tab; it draws itself (see static/compare.js)."""
    gr.HTML("<segpo-compare></segpo-compare>", elem_classes="bare")
