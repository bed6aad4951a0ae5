"""The tab Rollouts: every recorded rollout in one table, to filter, sort, walk through and open."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import gradio as gr

from segviz.app.index import Index, Indexed
from segviz.app.shelf import Shelf
from segviz.show.encode import tidy
from segviz.show.theme import method_label

MOST = 200  #: rows a page
SNIPPET = 160  #: characters of a text that the table shows

#: What the table can be sorted by -> SQL.
SORTS = {
    "step": "step",
    "reward": "reward",
    "tokens": "tokens",
    "segments": "segments",
    "lowest": "lowest",
    "highest": "highest",
    "spread": "spread",
    "answer": "answer_right",
    "perception": "perception_right",
    "reasoning": "reasoning_right",
    "error": "error_kind",
    "method": "method",
    "finished": "finished",
}
_VERDICTS = {"answer": "answer_right", "perception": "perception_right", "reasoning": "reasoning_right"}
_RANGES = {
    "step_from": "step >= ?", "step_to": "step <= ?", "reward_from": "reward >= ?", "reward_to": "reward <= ?",
    "tokens_from": "tokens >= ?", "tokens_to": "tokens <= ?", "spread_from": "spread >= ?", "spread_to": "spread <= ?",
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """What is asked of the table. Every field is optional; '' and None ask for nothing.

    Raises:
        ValueError: a value that the table does not know; the message names it and what there is.
    """

    run: str = ""  #: names with commas between them; '': all
    method: str = ""
    answer: str = ""  #: right, wrong or unknown
    perception: str = ""
    reasoning: str = ""
    error: str = ""  #: a kind, or none
    finished: str = ""  #: yes or no (cut at the length limit)
    step_from: float | None = None
    step_to: float | None = None
    reward_from: float | None = None
    reward_to: float | None = None
    tokens_from: float | None = None
    tokens_to: float | None = None
    spread_from: float | None = None
    spread_to: float | None = None
    example: str = ""  #: example_id, exactly
    text: str = ""  #: part of the question or of the completion's first 4,000 characters, upper and lower case alike
    sort: str = "-step"  #: a name of SORTS, with a minus for the largest first
    offset: int = 0
    limit: int = 50

    def __post_init__(self) -> None:
        for name in _VERDICTS:
            _among(name, getattr(self, name), ("right", "wrong", "unknown"))
        _among("finished", self.finished, ("yes", "no"))
        _among("sort", self.sort.removeprefix("-"), tuple(SORTS))
        if not 0 <= self.limit <= MOST:
            raise ValueError(f"limit is {self.limit}: it must be between 0 and {MOST}")
        if not 0 <= self.offset < 2**53:
            raise ValueError(f"offset is {self.offset}: it must be 0 or more")

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Question:
        """From what a URL or a client says.

        Raises:
            ValueError: an unknown name, or a value that is none of that name's.
        """
        kinds = {f.name: str(f.type) for f in fields(cls)}
        if unknown := sorted(set(raw) - set(kinds)):
            raise ValueError(f"there is no filter {', '.join(map(repr, unknown))}; there are: {', '.join(kinds)}")
        said = {name: value for name, value in raw.items() if value not in ("", None)}
        return cls(**{name: _read(name, value, kinds[name]) for name, value in said.items()})

    def sql(self) -> tuple[str, list[Any]]:
        """(conditions, their values), apart from the run."""
        tests, values = ["true"], []
        for name, column in _VERDICTS.items():
            if said := getattr(self, name):
                tests.append(f"{column} IS {dict(right='TRUE', wrong='FALSE', unknown='NULL')[said]}")
        if self.finished:
            tests.append(f"finished IS {'TRUE' if self.finished == 'yes' else 'FALSE'}")
        if self.error:
            tests.append("error_kind IS NULL" if self.error == "none" else "error_kind = ?")
            values += [] if self.error == "none" else [self.error]
        for name, test in _RANGES.items():
            if (bound := getattr(self, name)) is not None:
                tests.append(test)
                values.append(bound)
        for name, test in (("method", "method = ?"), ("example", "example_id = ?")):
            if said := getattr(self, name):
                tests.append(test)
                values.append(said)
        if self.text:
            tests.append("(contains(lower(text), lower(?)) OR contains(lower(question), lower(?)))")
            values += [self.text, self.text]
        return " AND ".join(tests), values

    def order(self) -> str:
        """ORDER BY, always the same for the same rows. What is not known comes last either way."""
        way = "DESC" if self.sort.startswith("-") else "ASC"
        return f'{SORTS[self.sort.removeprefix("-")]} {way} NULLS LAST, step DESC, run, "group", sample'


def ask(shelf: Shelf, index: Index, question: Question) -> dict[str, Any]:
    """One page of the table.

    Returns:
        rows: a dict each, with a part of the text around what was searched.
        total: rows that fit the question; every: all rows of the runs.
        read, files: step files that are in the index, and that there are; less than all while it is filling.
        version: changes whenever rows came or went.
        runs, methods, errors: what there is to choose from.
        problems: files that cannot be read, in words.

    Raises:
        Missing: a run that is not there.
    """
    places = shelf.places()
    index.forget(list(places.values()))
    names = [name for name in question.run.split(",") if name] or list(places)
    chosen = [shelf.place(name) for name in dict.fromkeys(names)]
    runs = {place.name: index.refresh(place) for place in chosen}
    stamp = (question, tuple(places), tuple((run.number, run.version, len(run.todo)) for run in runs.values()))
    return index.answers.get(stamp, lambda: _answer(index, question, runs, list(places)))


def _answer(index: Index, question: Question, runs: dict[str, Indexed], there: list[str]) -> dict[str, Any]:
    """What `ask` returns, from the runs as they are in the index."""
    numbers = {run.number: name for name, run in runs.items()}
    tests, values = question.sql()
    where = "run IN (SELECT unnest(?))"
    picked = list(numbers)
    columns = (
        'run, step, "group", sample, method, example_id, reward, finished, answer_right, perception_right, '
        "reasoning_right, error_kind, tokens, segments, lowest, highest"
    )
    with index.cursor() as db:
        every = db.execute(f"SELECT count(*) FROM rollouts WHERE {where}", [picked]).fetchone()[0]
        total = every
        if tests != "true":
            total = db.execute(
                f"SELECT count(*) FROM rollouts WHERE {where} AND {tests}", [picked, *values]
            ).fetchone()[0]
        found = db.execute(
            # the texts of a page only: sorting must not carry them all
            f"WITH page AS (SELECT rowid AS id FROM rollouts WHERE {where} AND {tests} ORDER BY {question.order()} "
            f"LIMIT {question.limit:d} OFFSET {question.offset:d}) "
            f"SELECT {columns}, text FROM rollouts JOIN page ON rollouts.rowid = page.id ORDER BY {question.order()}",
            [picked, *values],
        )
        names = [item[0] for item in found.description]
        rows = [dict(zip(names, row, strict=True)) for row in found.fetchall()]
        kinds = {
            name: [row[0] for row in db.execute(
                f"SELECT DISTINCT {name} FROM rollouts WHERE {where} AND {name} IS NOT NULL ORDER BY 1", [picked]
            ).fetchall()]
            for name in ("method", "error_kind")
        }  # fmt: skip
    for row in rows:
        row["run"] = numbers[row["run"]]
        row["before"], row["match"], row["text"] = snippet(row["text"] or "", question.text)
    problems = [words for run in runs.values() for words in run.problems.values()]
    links = [f"rollouts/{name} is a link that leads outside; it is not followed." for run in runs.values()
             for name in run.watch.links]  # fmt: skip
    return {
        "rows": rows,
        "total": total,
        "every": every,
        "read": sum(len(run.files) for run in runs.values()),
        "files": sum(len(run.files) + len(run.todo) for run in runs.values()),
        "version": ".".join(f"{run.number}-{run.version}" for run in runs.values()),
        "runs": [tidy(name) for name in there],
        "methods": [[name, method_label(name)] for name in kinds["method"]],
        "errors": kinds["error_kind"],
        "problems": [*problems, *links][:8],
    }


def snippet(text: str, search: str) -> tuple[str, str, str]:
    """(before, match, after): the beginning of a text, or the place where `search` stands, `SNIPPET` characters."""
    at = text.lower().find(search.lower()) if search else -1
    if at < 0:
        return "", "", text[:SNIPPET] + ("…" if len(text) > SNIPPET else "")
    start, end = max(0, at - SNIPPET // 3), at + len(search)
    rest = text[end : start + SNIPPET + len(search)]
    return ("…" if start else "") + text[start:at], text[at:end], rest + ("…" if end + len(rest) < len(text) else "")


def tab(shelf: Shelf, index: Index) -> None:
    """The tab, and the endpoint `/rollouts` for clients in Python."""
    gr.HTML("<segpo-rollouts></segpo-rollouts>", elem_classes="bare")

    def rollouts(filters: dict) -> dict:
        """One page of the table of rollouts. `filters`: names and values as in `Question`, such as
        {"run": "sapo", "error": "perception", "sort": "-reward", "limit": 20}."""
        try:
            return ask(shelf, index, Question.parse(filters or {}))
        except (ValueError, LookupError) as error:
            raise gr.Error(str(error)) from error

    gr.api(rollouts, api_name="rollouts")


def _among(name: str, said: str, known: Sequence[str]) -> None:
    if said and said not in known:
        raise ValueError(f"{name} is {said!r}: it must be one of {', '.join(known)}")


def _read(name: str, value: Any, kind: str) -> Any:
    if kind == "str":
        return str(value)
    try:
        number = int(value) if kind == "int" else float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} must be a number, not {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, not {value!r}")
    return number
