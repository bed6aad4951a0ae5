"""The tab Rollouts: every recorded rollout in one table, to filter, sort, walk through and open."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import gradio as gr

from segviz.app.index import Index, Indexed
from segviz.app.notes import NONE, Note, Notes
from segviz.app.patience import Hangs
from segviz.app.shelf import Place, Shelf
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

    run: str = ""  #: a name, or several with commas between them; '': all
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
    kind: str = ""  #: of question, where the example says one
    wrong: str = ""  #: the words of the first true error
    label: str = ""  #: one of the reader's, or "any": whatever is labelled or noted
    text: str = ""  #: part of the question or of the completion's first 4,000 characters, upper and lower case alike
    sort: str = "-step"  #: a name of SORTS, with a minus for the largest first
    offset: int = 0
    limit: int = 50
    near: str = ""  #: run/step/group/sample: the page that holds this rollout, whatever `offset` says

    def __post_init__(self) -> None:
        for name in _VERDICTS:
            _among(name, getattr(self, name), ("right", "wrong", "unknown"))
        _among("finished", self.finished, ("yes", "no"))
        _among("sort", self.sort.removeprefix("-"), tuple(SORTS))
        if not 0 <= self.limit <= MOST:
            raise ValueError(f"limit is {self.limit}: it must be between 0 and {MOST}")
        if not 0 <= self.offset < 2**53:
            raise ValueError(f"offset is {self.offset}: it must be 0 or more")
        if self.near and not re.fullmatch(r"(?s).+(/\d{1,9}){3}", self.near):
            raise ValueError(f"near is {self.near!r}: it must be run/step/group/sample")

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
        equal = {"method": "method", "example": "example_id", "kind": "kind", "wrong": "wrong"}
        for name, column in equal.items():
            if said := getattr(self, name):
                tests.append(f"{column} = ?")
                values.append(said)
        if self.text:
            tests.append("(contains(lower(text), lower(?)) OR contains(lower(question), lower(?)))")
            values += [self.text, self.text]
        return " AND ".join(tests), values

    def order(self) -> str:
        """ORDER BY, always the same for the same rows. What is not known comes last either way."""
        way = "DESC" if self.sort.startswith("-") else "ASC"
        return f'{SORTS[self.sort.removeprefix("-")]} {way} NULLS LAST, step DESC, run, "group", sample'


def ask(shelf: Shelf, index: Index, question: Question, notes: Notes | None = None) -> dict[str, Any]:
    """One page of the table. `notes`: the reader's.

    Returns:
        rows: a dict each, with a part of the text around what was searched, note and labels.
        total: rows that fit the question; every: all rows of the runs.
        read, files: step files that are in the index, and that there are; less than all while it is filling.
        version: changes whenever rows came or went.
        runs, methods, errors, kinds, labels: what there is to choose from; noted: how many have a note or a label.
        problems: files that cannot be read, in words.
        offset: of the first row among those that fit; at: place of the rollout `near` among them, null where it does
            not fit, or is not in the index yet.

    Raises:
        Missing: a run that is not there.
    """
    picked = pick(shelf, index, question, notes)
    state = (
        picked.there, notes.version if notes else None,
        [(run.number, run.version, len(run.todo)) for run in picked.runs.values()],
    )  # fmt: skip
    return index.answers.get(question, lambda: _answer(index, question, picked), state)


@dataclass(frozen=True)
class Picked:
    """The rows that a question is about: runs by name, and what SQL asks of them."""

    runs: dict[str, Indexed]
    there: list[str]  #: names of all runs
    notes: dict[tuple[int, int, int, int], Note]  #: (number of the run, step, group, sample) -> the reader's
    where: str  #: one of the runs
    tests: str  #: what else is asked
    values: list[Any]  #: of `where`, then of `tests`

    @property
    def numbers(self) -> dict[int, str]:
        return {run.number: name for name, run in self.runs.items()}


def pick(shelf: Shelf, index: Index, question: Question, notes: Notes | None = None) -> Picked:
    """Raises Missing: a run that is not there."""
    places = shelf.places()
    index.forget(list(places.values()))
    chosen = [shelf.place(name) for name in named(question.run, places) or places]
    runs = {place.name: index.refresh(place) for place in chosen}
    noted = {
        (runs[place.name].number, *key): note
        for place in (chosen if notes else ())
        for key, note in (notes.of(_identity(shelf, place)).items() if notes else ())
    }
    tests, values = question.sql()
    if question.label:
        keys = [key for key, note in noted.items() if question.label == "any" or question.label in note.labels]
        columns = [list(column) for column in zip(*keys, strict=True)] or [[], [], [], []]
        tests += f' AND (run, step, "group", sample) IN (SELECT {", ".join(["unnest(?::INT[])"] * 4)})'
        values = [*values, *columns]
    where = "run IN (SELECT unnest(?::INT[]))"
    return Picked(runs, list(places), noted, where, tests, [[run.number for run in runs.values()], *values])


def _identity(shelf: Shelf, place: Place) -> str:
    try:
        return shelf.identity(place)
    except Hangs:  # its rollouts are those that were read before; of notes there are none until it answers
        return ""


def named(said: str, there: Collection[str]) -> list[str]:
    """The names in a list with commas between them; a name that is there may itself hold commas."""
    names, parts = [], said.split(",")
    while parts:
        ends = [end for end in range(len(parts), 0, -1) if ",".join(parts[:end]) in there]
        end = ends[0] if ends else 1
        names.append(",".join(parts[:end]))
        parts = parts[end:]
    return list(dict.fromkeys(name for name in names if name))


def _answer(index: Index, question: Question, picked: Picked) -> dict[str, Any]:
    """What `ask` returns, from the runs as they are in the index."""
    runs, numbers, where, tests, values = picked.runs, picked.numbers, picked.where, picked.tests, picked.values
    columns = (
        'run, step, "group", sample, method, example_id, reward, finished, answer_right, perception_right, '
        "reasoning_right, error_kind, tokens, segments, lowest, highest"
    )
    with index.cursor() as db:
        every = db.execute(f"SELECT count(*) FROM rollouts WHERE {where}", values[:1]).fetchone()[0]
        total = every
        if tests != "true":
            total = db.execute(f"SELECT count(*) FROM rollouts WHERE {where} AND {tests}", values).fetchone()[0]
        at = _place(db, question, picked) if question.near else None
        offset = question.offset if at is None else at - at % max(1, question.limit)
        found = db.execute(
            # the texts of a page only: sorting must not carry them all
            f"WITH page AS (SELECT rowid AS id FROM rollouts WHERE {where} AND {tests} ORDER BY {question.order()} "
            f"LIMIT {question.limit:d} OFFSET {offset:d}) "
            f"SELECT {columns}, text FROM rollouts JOIN page ON rollouts.rowid = page.id ORDER BY {question.order()}",
            values,
        )
        names = [item[0] for item in found.description]
        rows = [dict(zip(names, row, strict=True)) for row in found.fetchall()]
        kinds = {
            name: [row[0] for row in db.execute(
                f"SELECT DISTINCT {name} FROM rollouts WHERE {where} AND {name} IS NOT NULL ORDER BY 1", values[:1]
            ).fetchall()]
            for name in ("method", "error_kind", "kind")
        }  # fmt: skip
    for row in rows:
        note = picked.notes.get((row["run"], row["step"], row["group"], row["sample"]), NONE)
        row |= note.told() | {"run": numbers[row["run"]]}
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
        "runs": [tidy(name) for name in picked.there],
        "methods": [[name, method_label(name)] for name in kinds["method"]],
        "errors": kinds["error_kind"],
        "kinds": kinds["kind"],
        "labels": sorted({label for note in picked.notes.values() for label in note.labels}),
        "noted": len(picked.notes),
        "problems": [*problems, *links][:8],
        "offset": offset,
        "at": at,
    }


def _place(db: Any, question: Question, picked: Picked) -> int | None:
    """How many rows stand before the rollout `near` in the order of the question; None where it is not among them."""
    name, *ids = question.near.rsplit("/", 3)
    run = next((number for number, there in picked.numbers.items() if tidy(there) == name), None)
    found = db.execute(
        f'SELECT before FROM (SELECT run, step, "group", sample, row_number() OVER (ORDER BY {question.order()}) - 1 '
        f"AS before FROM rollouts WHERE {picked.where} AND {picked.tests}) "
        'WHERE run = ? AND step = ? AND "group" = ? AND sample = ?',
        [*picked.values, run, *map(int, ids)],
    ).fetchone()
    return found[0] if found else None


def snippet(text: str, search: str) -> tuple[str, str, str]:
    """(before, match, after): the beginning of a text, or the place where `search` stands, `SNIPPET` characters."""
    at = text.lower().find(search.lower()) if search else -1
    if at < 0:
        return "", "", text[:SNIPPET] + ("…" if len(text) > SNIPPET else "")
    start, end = max(0, at - SNIPPET // 3), at + len(search)
    rest = text[end : start + SNIPPET + len(search)]
    return ("…" if start else "") + text[start:at], text[at:end], rest + ("…" if end + len(rest) < len(text) else "")


def tab(shelf: Shelf, index: Index, notes: Notes | None = None) -> None:
    """The tab, and the endpoint `/rollouts` for clients in Python."""
    gr.HTML("<segpo-rollouts></segpo-rollouts>", elem_classes="bare")

    def rollouts(filters: dict) -> dict:
        """One page of the table of rollouts. `filters`: names and values as in `Question`, such as
        {"run": "sapo", "error": "perception", "sort": "-reward", "limit": 20}."""
        try:
            return ask(shelf, index, Question.parse(filters or {}), notes)
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
