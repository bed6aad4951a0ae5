"""Every reader on wrong files: what it may do is work, or say in words what is wrong."""

from __future__ import annotations

import json
import os
import random
import shutil
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

import segviz as sv
from segpo_core.afterwards.credit import recompute
from segpo_core.algos import METHODS
from segpo_core.cli import parse_train
from segpo_core.config import TrainConfig
from segpo_core.tasks import load_task
from segpo_core.typed import fits
from segviz.views.report import report_view
from tests.torture import mutate

#: What an error that was told looks like. Others are tracebacks to whoever meets them.
TOLD = (ValueError, OSError, ImportError)
BARE = (UnicodeError, json.JSONDecodeError, pa.ArrowException)  #: ValueErrors that name no file
METHODS_OF_CREDIT = ["grpo", "rloo", "gspo"]


def judged(work: Callable[[], object], also: tuple[type[BaseException], ...] = ()) -> str | None:
    """None where the work ended well or with an error that says what is wrong; else the end of its traceback."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            work()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        if isinstance(error, (*TOLD, *also)) and type(error) not in BARE and str(error):
            return None
        where = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in where if "segpo_core" in frame.filename or "segviz" in frame.filename]
        place = "; ".join(f"{Path(f.filename).name}:{f.lineno}" for f in own[-3:])
        return f"{type(error).__name__}: {str(error)[:120]} ({place})"
    return None


def look_at(run: sv.Run) -> Iterator[Callable[[], object]]:
    """Everything the views do with a run."""
    yield lambda: (run.name, run.method, run.method_label, run.model, run.config, repr(run))
    yield lambda: run.metrics
    yield lambda: (run.rollouts.where(), run.rollouts.to_arrow())
    yield lambda: run.problems
    for view in (sv.board, sv.audit, sv.lift, report_view):
        yield lambda view=view: _drawn(view(run))
    for step in run.steps[:2]:
        yield lambda step=step: _drawn(sv.forensics(run, step))
        for row in run.rollouts_at(step).rows[:2]:
            key = row["step"], row["group"], row["sample"]
            yield lambda key=key: _drawn(sv.group(run, *key[:2]))
            yield lambda key=key: _drawn(sv.tree(run, *key[:2]))
            for view in (sv.ribbon, sv.staircase, sv.roles, sv.boundaries):
                yield lambda key=key, view=view: _drawn(view(run.rollout(*key)))
            yield lambda key=key: _drawn(sv.compare(list(run.credits(*key).values())))


def _drawn(view: object) -> None:
    if isinstance(view, sv.View):
        view.html()


def views_of(path: Path, read: Callable[[Path], sv.Run]) -> str | None:
    """What goes wrong first in the views of a wrong run or dump."""
    opened: list[sv.Run] = []
    if (why := judged(lambda: opened.append(read(path)))) or not opened:
        return why
    try:
        for work in look_at(opened[0]):
            if why := judged(work, (KeyError,)):  # asked for what is not recorded
                return why
    except Exception as error:  # which steps there are
        return judged(lambda problem=error: _again(problem))
    return None


def _again(error: Exception) -> None:
    raise error


def run_views(source: Path, place: Path, seed: int) -> tuple[str, str | None]:
    """(what was changed in a copy of a run directory, what went wrong in the views)."""
    rng = random.Random(seed)
    shutil.copytree(source, place)
    said = mutate.run_directory(place, rng)
    return said, views_of(place, sv.open)


def run_credit(source: Path, place: Path, seed: int) -> tuple[str, str | None]:
    """The same for `segpo credit`."""
    rng = random.Random(seed)
    shutil.copytree(source, place)
    said = mutate.run_directory(place, rng)
    return said, judged(lambda: recompute(place, METHODS_OF_CREDIT))


def settings(source: Path, place: Path, seed: int) -> tuple[str, str | None]:
    """A settings file: it is refused in words, or every value is of its field's type."""
    rng = random.Random(seed)
    value = yaml.safe_load(source.read_text())
    for _ in range(rng.choice([1, 1, 2])):
        name = rng.choice([f.name for f in fields(TrainConfig)] + [f.name for m in METHODS.values() for f in fields(m)])
        strange = rng.choice(mutate.STRANGE)
        value[name] = strange if strange != "\ud800" else "."
    data = yaml.safe_dump(value).encode()
    way = rng.random()
    data = mutate.deep(2000).encode() if way < 0.03 else b"\xff\xfe\x00" + data if way < 0.06 else data
    data = rng.randbytes(100) if 0.06 <= way < 0.09 else data[: rng.randrange(len(data))] if way > 0.95 else data
    place.write_bytes(data)

    def read() -> None:
        config = parse_train(["--config", str(place)])
        for owner in (config, config.algo):
            hints = get_type_hints(type(owner))
            for field in fields(owner):
                if field.init and field.name != "algo" and not fits(getattr(owner, field.name), hints[field.name]):
                    raise TypeError(f"{field.name} came through as {getattr(owner, field.name)!r}")

    return f"{name} = {strange!r:.60}", judged(read)


def dump(kind: str, place: Path, seed: int) -> tuple[str, str | None]:
    """A dump of verl or TRL."""
    rng = random.Random(seed)
    place.mkdir()
    if kind == "verl":
        rows = [
            {"input": f"q{i // 2}", "output": f"a{i}", "score": i % 2, "gts": "1", "acc": 1.0, "step": 1, "extra": [1]}
            for i in range(6)
        ]
        i = rng.randrange(6)
        rows[i], said = mutate.document(rows[i], rng)
        lines = [mutate.text_of(row, rng) if n == i else json.dumps(row).encode() for n, row in enumerate(rows)]
        (place / "1.jsonl").write_bytes(b"\n".join(lines))
        file, read = place / "1.jsonl", sv.read_verl
    else:
        message = [{"role": "user", "content": "q"}]
        rows = [
            {"step": 1, "prompt": message, "completion": [{"role": "assistant", "content": f"a{i}"}], "advantage": 0.5,
             "score": float(i % 2), "note": "x"}
            for i in range(6)
        ]  # fmt: skip
        file, read = place / "completions_00001.parquet", sv.read_trl
        pq.write_table(pa.Table.from_pylist(rows), file)
        said = mutate.parquet(file, rng)
    if rng.random() < 0.1:
        said += "; " + mutate.blob(file, rng)
    return said, views_of(place, read)


def data_set(place: Path, seed: int) -> tuple[str, str | None]:
    """A data set of problems, JSONL or Parquet."""
    rng = random.Random(seed)
    place.mkdir()
    rows = [{"prompt": f"{i} + 1 =", "answer": str(i + 1), "level": i} for i in range(6)]
    file = place / rng.choice(["data.jsonl", "data.parquet"])
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
        said = mutate.parquet(file, rng)
    else:
        i = rng.randrange(6)
        rows[i], said = mutate.document(rows[i], rng)
        lines = [mutate.text_of(row, rng) if n == i else json.dumps(row).encode() for n, row in enumerate(rows)]
        file.write_bytes(b"\n".join(lines))
    if rng.random() < 0.1:
        said += "; " + mutate.blob(file, rng)

    def read() -> None:
        task = load_task(str(file))
        for i in range(7):
            task.train(i)
            task.eval(i)

    return said, judged(read)


def removed(place: Path) -> None:
    """Take a tried directory or file away."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    elif os.path.lexists(place):
        place.unlink()
