"""A light index of every recorded rollout, so that a table of a million of them opens, sorts and filters at once.

Rollouts lie in many small files, and opening them takes far longer than reading them. The index reads each once, newest
first, in the background, keeps the columns that a table shows in a DuckDB file that lives as long as the app, and
forgets what a resumed or deleted run took back. Run directories are only read.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from segpo_core.record.files import read_table, span_of
from segpo_core.record.store import ROLLOUT_SCHEMA
from segviz.app.files import Watch
from segviz.app.kept import Kept
from segviz.app.patience import Hangs, Patience
from segviz.app.shelf import Place
from segviz.runs.columns import question
from segviz.show.encode import tidy

log = logging.getLogger(__name__)

READ = (
    "step group sample method example_id reward finished answer_right perception_right reasoning_right error_kind "
    "segment_end segment_advantage text prompt columns truth images"
).split()
_SCHEMA = pa.schema([ROLLOUT_SCHEMA.field(name) for name in READ])

_TABLE = """
CREATE TABLE rollouts (
  run INTEGER, file INTEGER, step INTEGER, "group" INTEGER, sample INTEGER, method VARCHAR, example_id VARCHAR,
  reward FLOAT, finished BOOLEAN, answer_right BOOLEAN, perception_right BOOLEAN, reasoning_right BOOLEAN,
  error_kind VARCHAR, tokens INTEGER, segments INTEGER, lowest FLOAT, highest FLOAT, spread FLOAT, text VARCHAR,
  question VARCHAR, kind VARCHAR, wrong VARCHAR, picture VARCHAR)
"""
WORD = 60  #: characters of a kind of question, and of the first wrong words
TEXT = 4000  #: characters of a completion that are searched: a million long ones would fill the disk a second time

# A credit that is not a finite number says nothing about the spread.
_INSERT = f"""
INSERT INTO rollouts
SELECT run, file, step, "group", sample, method, example_id, reward, finished, answer_right, perception_right,
  reasoning_right, error_kind, segment_end[-1], len(segment_end), list_min(credit), list_max(credit),
  list_max(credit) - list_min(credit), left(text, {TEXT}), left(question, {TEXT}), kind, wrong, images[1]
FROM (SELECT *, list_filter(segment_advantage, lambda x: isfinite(x)) AS credit FROM batch)
"""

FIRST = 0.25  #: seconds of reading when a run is first asked for: enough for its newest rollouts
BATCH = 32  #: files in one insert
LEAST = 0.2  #: seconds between two looks at a directory
MEMORY = "384MB"


@dataclass
class Indexed:
    """What the index knows of one run."""

    number: int
    watch: Watch
    files: dict[str, int] = field(default_factory=dict)  #: name -> number of the file in the table
    todo: list[str] = field(default_factory=list)  #: not read yet, oldest first
    replaced: dict[str, list[int]] = field(default_factory=dict)  #: to be read -> files that it was put together from
    problems: dict[str, str] = field(default_factory=dict)
    looked: float = 0.0
    lock: threading.RLock = field(default_factory=threading.RLock)  #: held by who reads
    version: int = 0  #: grows whenever rows come or go


class Index:
    """Rollouts of all runs that were asked for. Safe to use from several threads."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="segpo-app-")
        self._db = duckdb.connect(str(Path(self._folder.name) / "index.duckdb"))
        self._db.execute(f"SET memory_limit='{MEMORY}'; SET threads=2; SET temp_directory='{self._folder.name}/spill'")
        self._db.execute("SET enable_external_access=false; SET lock_configuration=true")
        self._db.execute(_TABLE)
        self.answers = Kept(64)  #: of questions, as long as no row comes or goes
        self._runs: dict[Path, Indexed] = {}
        self._numbers = 0
        self._lock = threading.RLock()  #: of the table and the list of runs; nothing is read while it is held
        self.patience = Patience()
        self._work = threading.Condition()
        self._closed = False
        self._reader = threading.Thread(target=self._read_on, name="index", daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Stop reading and remove the index's file."""
        with self._work:
            self._closed = True
            self._work.notify_all()
        self._reader.join(timeout=2.0)  # longer only where it waits for a file that never comes
        if not self._reader.is_alive():
            self._db.close()
        self._folder.cleanup()

    def refresh(self, place: Place) -> Indexed:
        """Look for new files of a run and read what little time allows; the rest follows in the background."""
        with self._lock:
            run = self._runs.get(place.path)
            if run is None:
                self._numbers += 1
                run = self._runs[place.path] = Indexed(self._numbers, Watch(place.path / "rollouts", place.root))
        try:
            self.patience.ask(place.path, lambda: self._refresh(run))
            run.problems.pop("", None)
        except Hangs as error:
            run.problems[""] = tidy(str(error))
        if run.todo:
            with self._work:
                self._work.notify()
        return run

    def _refresh(self, run: Indexed) -> None:
        with run.lock:
            if time.monotonic() - run.looked < LEAST:
                return
            filling = bool(run.todo)
            self._look(run)
            until = time.monotonic() + FIRST
            while run.todo and not filling and time.monotonic() < until:
                self._read(run, 16)

    def forget(self, places: Sequence[Place]) -> None:
        """Drop every run that is not among `places`."""
        kept = {place.path for place in places}
        with self._lock:
            for path in [path for path in self._runs if path not in kept]:
                self._db.execute("DELETE FROM rollouts WHERE run = ?", [self._runs.pop(path).number])

    @contextlib.contextmanager
    def cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection of one's own, for reading."""
        cursor = self._db.cursor()
        try:
            yield cursor
        finally:
            cursor.close()

    def _look(self, run: Indexed) -> None:
        fresh, gone = run.watch.changes()
        run.looked = time.monotonic()
        homes = [(span, name) for name in fresh if (span := span_of(name)) is not None and span.several]
        dropped = []
        for name in gone:
            run.replaced.pop(name, None)
            if (number := run.files.pop(name, None)) is None:
                continue
            own = span_of(name)
            home = next((home for span, home in homes if span.rank == own.rank and own.first <= span.last
                         and span.first <= own.first and own.last <= span.last), None)  # fmt: skip
            (dropped if home is None or home == name else run.replaced.setdefault(home, [])).append(number)
        with self._lock:
            self._drop(run, dropped)
        for name in gone:
            run.problems.pop(name, None)
        run.todo = sorted({*run.todo, *fresh} & run.watch.files.keys())
        run.version += bool(fresh or gone)

    def _drop(self, run: Indexed, files: list[int]) -> None:
        if files:
            self._db.execute("DELETE FROM rollouts WHERE run = ? AND file IN (SELECT unnest(?))", [run.number, files])

    def _read(self, run: Indexed, count: int) -> None:
        """Read the newest `count` files that are still to do."""
        tables, replaced, names = [], [], run.todo[-count:][::-1]
        for name in names:
            table = self._table(run, name)
            replaced += run.replaced.pop(name, [])
            if table is not None:
                with self._lock:
                    self._numbers += 1
                    run.files[name] = number = self._numbers
                for column, value in (("file", number), ("run", run.number)):
                    table = table.append_column(column, pa.array([value] * len(table), pa.int32()))
                tables.append(table)
        with self._lock:
            if self._runs.get(run.watch.path.parent) is run:  # else it was forgotten meanwhile
                self._take(run, tables, replaced)
        run.todo = run.todo[: len(run.todo) - len(names)]  # only now: until then they are still to come
        run.version += 1

    def _take(self, run: Indexed, tables: list[pa.Table], replaced: list[int]) -> None:
        self._db.execute("BEGIN")  # whoever asks meanwhile finds the rows of a file that was put together, once
        try:
            self._drop(run, replaced)
            if tables:
                self._db.register("batch", pa.concat_tables(tables))
                self._db.execute(_INSERT)
                self._db.unregister("batch")
            self._db.execute("COMMIT")
        except duckdb.Error:
            self._db.execute("ROLLBACK")
            raise

    def _table(self, run: Indexed, name: str) -> pa.Table | None:
        """The light columns of one file; None, and a problem noted, where it cannot be read."""
        try:
            table = read_table(run.watch.path / name, _SCHEMA)
            asked = cache(question)  # a group shares its prompt
            questions = pa.array(map(asked, table["prompt"].to_pylist()), pa.string())
            kinds = pa.array(map(cache(_kind), table["columns"].to_pylist()), pa.string())
            wrong = pa.array(map(_wrong, table["truth"].to_pylist(), table["text"].to_pylist()), pa.string())
            table = table.drop_columns(["prompt", "columns", "truth"])
            for name, column in (("question", questions), ("kind", kinds), ("wrong", wrong)):
                table = table.append_column(name, column)
            return table
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            run.problems[name] = tidy(f"rollouts/{name} cannot be read (being copied?): {error}")
            return None

    def _read_on(self) -> None:
        """What is left of all runs, a batch at a time, so that questions are answered in between."""
        while not self._closed:
            with self._lock:
                waiting = [run for run in self._runs.values() if run.todo]
            waiting = [run for run in waiting if not self.patience.stuck(run.watch.path.parent)]
            if not waiting:
                with self._work:
                    if not self._closed:
                        self._work.wait(timeout=1.0)
                continue
            for run in waiting:
                if self._closed:
                    return
                with contextlib.suppress(Hangs):  # who asks for it is told
                    self.patience.ask(run.watch.path.parent, partial(self._read_batch, run))
                time.sleep(0.01)

    def _read_batch(self, run: Indexed) -> None:
        with run.lock:
            try:
                self._read(run, BATCH)
            except duckdb.Error as error:  # such as a full disk: the table stays as far as it got
                log.warning("the index of rollouts stopped growing: %s", error)
                run.problems["index"] = f"The index of rollouts stopped growing: {error}"
                run.todo.clear()


def _kind(columns: str | None) -> str | None:
    """The kind of question, where the example says one."""
    found = _decoded(columns).get("kind")
    return tidy(found)[:WORD] if isinstance(found, str) else None


def _wrong(truth: str | None, text: str | None) -> str | None:
    """The words of the first true error."""
    error = _decoded(truth).get("first_error")
    try:
        return tidy((text or "")[int(error["start"]) : int(error["end"])].strip())[:WORD] or None
    except (TypeError, KeyError, ValueError):
        return None


def _decoded(said: str | None) -> dict[str, Any]:
    try:
        found = json.loads(said or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
