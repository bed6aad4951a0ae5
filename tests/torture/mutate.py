"""Files made wrong, one or a few ways at a time: the same seed makes the same wrong file."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

#: In place of any value.
STRANGE: list[Any] = [
    None, True, -1, 0, 2**31, 2**63, -(2**70), 1e308, float("inf"), float("nan"), "", "x", "\x1b[31m", "\ud800",
    "../../etc", "9" * 5000, [], [1], [None], ["a", {}], {}, {"a": 1}, {"name": {}}, [[[]]], "null", "NaN", "</script>",
    "step-000001",
]  # fmt: skip


def deep(levels: int = 50_000) -> str:
    return "[" * levels + "]" * levels


def parquet(path: Path, rng: random.Random) -> str:
    """Change a Parquet file. Returns what was done."""
    table = pq.read_table(path)
    name = rng.choice(table.column_names)
    values = table[name].to_pylist()
    i = rng.randrange(len(values)) if values else 0

    def put(column: pa.Array, at: str = name) -> pa.Table:
        return table.set_column(table.column_names.index(at), at, column)

    def cell(value: Any) -> pa.Table:
        return put(pa.array([value if n == i else v for n, v in enumerate(values)], table.schema.field(name).type))

    def whole(value: Any) -> pa.Table:
        return put(pa.array([value] * len(values)))

    def of_lists(change: Callable[[list], list]) -> pa.Table:
        changed = [change(v) if n == i and isinstance(v, list) else v for n, v in enumerate(values)]
        return put(pa.array(changed, table.schema.field(name).type))

    ways: dict[str, Callable[[], pa.Table]] = {
        "null": lambda: cell(None),
        "all null": lambda: put(pa.nulls(len(values), table.schema.field(name).type)),
        "null type": lambda: put(pa.nulls(len(values))),
        "no column": lambda: table.drop_columns([name]),
        "only this column": lambda: table.select([name]),
        "no rows": lambda: table.slice(0, 0),
        "rows twice": lambda: pa.concat_tables([table, table]),
        "texts": lambda: put(pa.array([repr(v) for v in values])),
        "numbers": lambda: whole(rng.choice([0, -1, 7, 2**40])),
        "floats": lambda: whole(rng.choice([0.5, float("nan"), float("inf"), -1e300])),
        "flags": lambda: whole(True),
        "records": lambda: whole({"a": 1}),
        "lists": lambda: whole(rng.choice([[], [1, 2, 3], ["a"], [None], [[1]], [1.5, None]])),
        "bytes": lambda: put(pa.array([b"\xff\xfe\x00" * 3] * len(values), pa.binary())),
        "no UTF-8": lambda: put(_no_utf8(len(values))),
        "negative": lambda: cell(rng.choice([-1, -(2**31)])),
        "huge": lambda: cell(2**31 - 1),
        "hostile text": lambda: cell(rng.choice([v for v in STRANGE if isinstance(v, str) and v != "\ud800"])),
        "deep": lambda: cell(deep()),
        "shorter": lambda: of_lists(lambda v: v[:-1]),
        "empty list": lambda: of_lists(lambda v: []),
        "longer": lambda: of_lists(lambda v: v + v[-1:]),
        "null inside": lambda: of_lists(lambda v: [None, *v[1:]]),
        "all null inside": lambda: of_lists(lambda v: [None] * len(v)),
        "backwards": lambda: of_lists(lambda v: v[::-1]),
        "not finite": lambda: of_lists(lambda v: [rng.choice([float("nan"), float("inf"), -float("inf")])] * len(v)),
        "large inside": lambda: of_lists(lambda v: [*v[:-1], 2**31 - 1]),
        "negative inside": lambda: of_lists(lambda v: [-5, *v[1:]]),
        "column twice": lambda: table.append_column(name, table[name]),
        "all JSON": lambda: whole(json.dumps(rng.choice([v for v in STRANGE if v != "\ud800"]))),
    }
    while True:
        way = rng.choice(list(ways))
        try:
            changed = ways[way]()
        except (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError):
            continue  # that cannot be done to this column
        pq.write_table(changed, path)
        return f"{name}: {way}"


def _no_utf8(rows: int) -> pa.Array:
    raw = pa.array([b"\xff\xfeab"] * rows, pa.binary())
    return pa.Array.from_buffers(pa.string(), rows, raw.buffers())


def blob(path: Path, rng: random.Random) -> str:
    """Tear a file, or put something else in its place. Returns what was done."""
    data = path.read_bytes()
    way = rng.choice(["cut", "empty", "noise", "bit", "gone", "folder", "pipe", "loop", "nowhere", "doubled", "zeros"])
    path.unlink()
    if way == "folder":
        path.mkdir()
    elif way == "pipe":
        os.mkfifo(path)
    elif way in ("loop", "nowhere"):
        path.symlink_to(path if way == "loop" else "/nonexistent/file")
    elif way != "gone":
        at = rng.randrange(len(data)) if data else 0
        path.write_bytes(
            {
                "cut": data[:at],
                "empty": b"",
                "noise": rng.randbytes(len(data)),
                "bit": data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :] if data else b"",
                "doubled": data + data,
                "zeros": bytes(len(data)),
            }[way]
        )
    return f"{path.name}: {way}"


def document(value: Any, rng: random.Random) -> tuple[Any, str]:
    """A JSON document with one place changed, and what was done."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    value = json.loads(json.dumps(value))
    walk(value)
    if not places:
        return rng.choice(STRANGE), "all"
    node, key = rng.choice(places)
    way = rng.choice(["replace", "replace", "replace", "remove", "add"])
    if way == "replace":
        node[key] = rng.choice(STRANGE)
        return value, f"{key} = {node[key]!r:.60}"
    if way == "remove":
        del node[key]
    elif isinstance(node, dict):
        node[f"{key}_"] = rng.choice(STRANGE)
    return value, f"{way} {key}"


def text_of(value: Any, rng: random.Random) -> bytes:
    """A JSON document as bytes, now and then with something no JSON has."""
    said = json.dumps(value).encode()
    way = rng.random()
    if way < 0.04:
        return deep().encode()
    if way < 0.08:
        return b"\xff\xfe" + said
    if way < 0.12:
        return said[: rng.randrange(len(said) + 1)]
    if way < 0.14:
        return b"[" + said + b"]"
    return said


def run_directory(path: Path, rng: random.Random) -> str:
    """Change one to three files of a run directory. Returns what was done."""
    done = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        files = [p for p in sorted(path.rglob("*")) if p.is_file() and not p.is_symlink()]
        kinds = sorted({p.relative_to(path).parts[0] for p in files} - {"trainer.lock"})
        if not kinds:
            break
        kind = rng.choice(kinds)
        chosen = rng.choice([p for p in files if p.relative_to(path).parts[0] == kind])
        if chosen.name == "run.json" and rng.random() < 0.8:
            try:
                value, said = document(json.loads(chosen.read_text()), rng)
            except (ValueError, RecursionError):
                continue
            chosen.write_bytes(text_of(value, rng))
        elif chosen.suffix == ".parquet" and rng.random() < 0.8:
            try:
                said = parquet(chosen, rng)
            except (pa.ArrowException, OSError, ValueError, KeyError):
                continue  # it was changed before and cannot be read any more
        else:
            said = blob(chosen, rng)
        done.append(f"{kind}: {said}")
    return "; ".join(done)
