"""Rows of a data set, wherever they are: files, saved data sets, names on the hub, objects in memory."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")


@dataclass(frozen=True)
class Rows:
    """Rows of a data set, read when asked for. `lines[i]` is row i's line in the file, for a JSONL file."""

    source: str
    columns: list[str]
    data: Any
    folder: Path
    lines: list[int] | None = None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> dict:
        try:
            row = self.data[i]
        except Exception as error:  # a data set decodes its images here
            raise ValueError(f"{self.where(i)} cannot be read: {error}") from error
        return row if isinstance(row, dict) else row.to_pylist()[0]

    def column(self, name: str) -> list:
        """A column's values, without reading the others (which may hold images)."""
        if isinstance(self.data, list):
            return [row.get(name) for row in self.data]
        if isinstance(self.data, _Table):
            return self.data.table.column(name).to_pylist()
        return self.data.select_columns([name])[:][name]

    def where(self, i: int) -> str:
        return f"{self.source}, line {self.lines[i]}" if self.lines else f"{self.source}, row {i}"


class _Table:
    """A Parquet file as a sequence of one-row tables."""

    def __init__(self, table: Any):
        self.table = table

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, i: int) -> Any:
        return self.table.slice(i, 1)


def read_jsonl(path: Path) -> Rows:
    """Raises ValueError with the line number for a line that is no JSON object."""
    rows, lines = [], []
    with path.open(encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    message = f"{path}, line {number} is not JSON: {error.msg} at column {error.colno}"
                    raise ValueError(message) from error
                if not isinstance(row, dict):
                    raise ValueError(f"{path}, line {number} is not an object: one {{...}} a line is expected")
                rows.append(row)
                lines.append(number)
        except UnicodeDecodeError as error:
            after = lines[-1] if lines else 0
            raise ValueError(f"{path} is not UTF-8 text (after line {after}): {error.reason}") from error
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return Rows(str(path), columns, rows, path.parent, lines)


def read_json(path: Path) -> Rows:
    """A JSON file: a list of objects, or one object whose only list of objects holds them (under "data", say).

    Raises: ValueError for anything else.
    """
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        content = lists[0] if len(lists) == 1 else None
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise ValueError("it is not a list of objects; write [{...}, {...}], or one {...} a line into a .jsonl file")
    return _listed(str(path), content, path.parent)


def read_rows(path: str, split: str, config_name: str | None = None) -> Rows:
    """Open a file, a directory or a hub data set. Raises ValueError that says what is wrong with it."""
    place = Path(path)
    if place.suffix in SUFFIXES and not place.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        if place.suffix == ".jsonl":
            rows = read_jsonl(place)
        elif place.suffix == ".json":
            rows = read_json(place)
        elif place.suffix == ".parquet":
            import pyarrow.parquet as parquet

            table = parquet.read_table(place)
            rows = Rows(path, table.column_names, _Table(table), place.parent)
        elif place.suffix == ".csv":
            import pyarrow.csv as csv

            table = csv.read_csv(place, parse_options=csv.ParseOptions(newlines_in_values=True))
            rows = Rows(path, table.column_names, _Table(table), place.parent)
        else:
            import datasets

            saved = (place / "dataset_info.json").is_file() or (place / "dataset_dict.json").is_file()
            data = datasets.load_from_disk(path) if saved else datasets.load_dataset(path, config_name, split=split)
            rows = rows_of(data, path, split, place)
    except Exception as error:
        message = str(error) if str(error).startswith(path) else f"{path} cannot be read: {error}"
        raise ValueError(message) from error
    if not len(rows):
        raise ValueError(f"{path} has no rows")
    return rows


def rows_of(data: Any, source: str, split: str = "train", folder: Path = Path(), most: int | None = None) -> Rows:
    """The rows of a data set in memory: of Hugging Face (also one that streams, of which `most` rows are taken), or a
    list of dicts.

    Raises: ValueError for anything else, or for a split that is not there.
    """
    if isinstance(data, dict):  # a DatasetDict
        if split not in data:
            raise ValueError(f"there is no split {split!r}; there are: {', '.join(data)}")
        data = data[split]
    if hasattr(data, "with_format"):
        data = data.with_format(None)  # a format (torch, numpy) is about other code's needs
    if isinstance(data, Sequence) and not isinstance(data, str):
        rows = list(data)
    elif hasattr(data, "column_names") and hasattr(data, "select_columns") and hasattr(data, "__len__"):
        return Rows(source, data.column_names, data, folder)
    elif isinstance(data, Iterable) and not isinstance(data, str):
        stream = iter(data)
        rows = list(islice(stream, most))
        if most is not None and len(rows) == most and next(stream, None) is not None:
            log.warning("%s streams: its first %d rows are used (stream_rows says how many)", source, most)
    else:
        raise ValueError(f"{source} is {type(data).__name__}: give a file, a Dataset, an IterableDataset or dicts")
    if not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(f"{source}: every row must be a dict of columns")
    return _listed(source, [dict(row) for row in rows], folder)


def _listed(source: str, rows: list[dict], folder: Path) -> Rows:
    return Rows(source, list(dict.fromkeys(name for row in rows for name in row)), rows, folder)
