"""The filtered table as a file, and its failures in groups."""

from __future__ import annotations

import csv
import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from segviz.app.index import TEXT, Index
from segviz.app.notes import NONE, Notes
from segviz.app.rollouts import Picked, Question, pick
from segviz.app.shelf import Shelf

MOST = 1_000_000  #: rows of a file
BATCH = 5000
GROUPS = 30  #: groups of a kind that are listed

#: Columns of the file. Texts are those of the index: the first `TEXT` characters.
SCHEMA = pa.schema(
    [
        ("run", pa.string()), ("step", pa.int32()), ("group", pa.int32()), ("sample", pa.int32()),
        ("method", pa.string()), ("example_id", pa.string()), ("kind", pa.string()), ("question", pa.string()),
        ("text", pa.string()), ("reward", pa.float32()), ("finished", pa.bool_()), ("answer_right", pa.bool_()),
        ("perception_right", pa.bool_()), ("reasoning_right", pa.bool_()), ("error_kind", pa.string()),
        ("wrong", pa.string()), ("tokens", pa.int32()), ("segments", pa.int32()), ("lowest", pa.float32()),
        ("highest", pa.float32()), ("labels", pa.list_(pa.string())), ("note", pa.string()),
    ],
    metadata={"text": f"the first {TEXT} characters"},
)  # fmt: skip

_one = threading.Lock()  #: a file at a time


def export(shelf: Shelf, index: Index, question: Question, form: str, notes: Notes | None = None) -> Path:
    """All rows that fit the question, in its order, as a new temporary file that the caller removes.

    Args:
        form: csv, parquet or jsonl. In CSV, a text that a spreadsheet would run as a formula begins with an apostrophe.

    Raises:
        Missing: a run that is not there; ValueError: another form, too many rows, or the index is not whole yet.
    """
    if form not in WRITERS:
        raise ValueError(f"the form is {form[:20]!r}: it must be one of {', '.join(WRITERS)}")
    picked = pick(shelf, index, question, notes)
    if todo := sum(len(run.todo) for run in picked.runs.values()):
        raise ValueError(f"The rollouts are still being read, {todo:,} steps to go; try again in a moment.")
    with _one, tempfile.NamedTemporaryFile(prefix="segpo-table-", suffix=f".{form}", delete=False) as sink:
        path = Path(sink.name)
        try:
            WRITERS[form](path, rows(index, question, picked))
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    return path


def rows(index: Index, question: Question, picked: Picked) -> Iterator[list[dict[str, Any]]]:
    """Rows that fit, a batch at a time. Raises ValueError: more than `MOST`."""
    names = [name for name in SCHEMA.names if name not in ("labels", "note")]
    columns = ", ".join(f'"{name}"' for name in names)
    numbers = picked.numbers
    with index.cursor() as db:
        asked = f"SELECT count(*) FROM rollouts WHERE {picked.where} AND {picked.tests}"
        if (many := db.execute(asked, picked.values).fetchone()[0]) > MOST:
            raise ValueError(f"{many:,} rows fit; a file holds at most {MOST:,}. Narrow the filters.")
        found = db.execute(
            f"SELECT {columns} FROM rollouts WHERE {picked.where} AND {picked.tests} ORDER BY {question.order()}",
            picked.values,
        )
        while part := found.fetchmany(BATCH):
            told = []
            for cells in part:
                row = dict(zip(names, cells, strict=True))
                note = picked.notes.get((row["run"], row["step"], row["group"], row["sample"]), NONE)
                told.append(row | {"run": numbers[row["run"]], "labels": list(note.labels), "note": note.text})
            yield told


def _parquet(path: Path, parts: Iterator[list[dict[str, Any]]]) -> None:
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for part in parts:
            writer.write_table(pa.Table.from_pylist(part, schema=SCHEMA))


def _jsonl(path: Path, parts: Iterator[list[dict[str, Any]]]) -> None:
    with _text(path) as sink:
        for part in parts:
            sink.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in part)


def _csv(path: Path, parts: Iterator[list[dict[str, Any]]]) -> None:
    with _text(path) as sink:
        writer = csv.DictWriter(sink, SCHEMA.names)
        writer.writeheader()
        for part in parts:
            writer.writerows({name: _cell(value) for name, value in row.items()} for row in part)


def _cell(value: Any) -> Any:
    value = ", ".join(value) if isinstance(value, list) else value
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _text(path: Path) -> TextIO:
    return path.open("w", encoding="utf-8", newline="")


#: Name of a form -> what writes it.
WRITERS: dict[str, Callable[[Path, Iterator[list[dict[str, Any]]]], None]] = {
    "csv": _csv, "parquet": _parquet, "jsonl": _jsonl
}  # fmt: skip


def failures(shelf: Shelf, index: Index, question: Question, notes: Notes | None = None) -> dict[str, Any]:
    """Completions with a wrong answer, among those that fit, by what they have in common.

    Returns:
        total: how many there are. groups: {error, kind, wrong}: the kind of the first true error, the kind of question,
        and the first wrong words; each [[value, count]], the most frequent first, at most `GROUPS`.

    Raises:
        Missing: a run that is not there.
    """
    picked = pick(shelf, index, question, notes)
    where = f"{picked.where} AND {picked.tests} AND answer_right IS FALSE"
    with index.cursor() as db:
        total = db.execute(f"SELECT count(*) FROM rollouts WHERE {where}", picked.values).fetchone()[0]
        groups = {
            name: [list(row) for row in db.execute(
                f"SELECT {column}, count(*) AS many FROM rollouts WHERE {where} AND {column} IS NOT NULL "
                f"GROUP BY 1 ORDER BY many DESC, 1 LIMIT {GROUPS:d}", picked.values,
            ).fetchall()]
            for name, column in (("error", "error_kind"), ("kind", "kind"), ("wrong", "wrong"))
        }  # fmt: skip
    return {"total": total, "groups": groups}
