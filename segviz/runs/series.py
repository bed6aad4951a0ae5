"""The metrics of a run as series, file by file while a trainer writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segpo_core.record.files import read_table, step_of
from segpo_core.record.metrics import METRIC_SCHEMA
from segviz.runs.folder import Stamp

#: Metric -> its steps and values. As arrays: they are many, and Python looks through all of its lists now and then.
Part = dict[str, tuple[np.ndarray, np.ndarray]]


class Series(NamedTuple):
    """One metric over training: `values[i]` was recorded at `steps[i]`."""

    steps: list[int]
    values: list[float]


class Metrics:
    """The metrics of a folder. A file is read once, and again only when it changed; what only grew is not made anew.

    Args:
        path: the folder.
        problems: takes up what is wrong with a file, by its name.
    """

    def __init__(self, path: Path, problems: dict[str, str]):
        self.path, self.problems = path, problems
        self._parts: dict[str, tuple[Stamp, set[int], Part]] = {}
        self._counted: list[tuple[str, Stamp]] = []  #: the parts that `_found` is made of, in order
        self._found: dict[str, Series] = {}

    def read(self, there: Mapping[str, Stamp]) -> dict[str, Series]:
        """Metric name -> steps and values in the files that are there; the same object as long as none changed.

        Raises:
            FileNotFoundError: one is not there any more.
        """
        known = self._parts
        if there == {name: stamp for name, (stamp, *_) in known.items()}:
            return self._found
        for name in set(known) - set(there):
            del known[name]
        for name, stamp in there.items():
            if name not in known or known[name][0] != stamp:
                try:
                    table = read_table(self.path / name, METRIC_SCHEMA)
                    known[name] = (stamp, set(pc.unique(table["step"]).to_pylist()), by_name(table))
                    self.problems.pop(name, None)
                except FileNotFoundError:
                    raise
                except (ValueError, OSError) as error:
                    self.problems[name] = f"Metrics in {name} could not be read: {error}"
                    known[name] = (stamp, set(), {})
        counted, seen = [], set()
        for name in sorted(known, key=lambda name: step_of(Path(name)), reverse=True):
            stamp, steps, _ = known[name]
            if not steps <= seen:  # else they were just put together into a later file
                counted.insert(0, (name, stamp))
            seen |= steps
        same = len(self._counted) if counted[: len(self._counted)] == self._counted else 0
        self._found = _longer(self._found if same else {}, [known[name][2] for name, _ in counted[same:]])
        self._counted = counted
        return self._found


def _longer(found: Mapping[str, Series], parts: list[Part]) -> dict[str, Series]:
    """Series, and what follows them."""
    more: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in found}
    for part in parts:
        for name, own in part.items():
            more.setdefault(name, []).append(own)
    made = {}
    numbers: dict[bytes, list[int]] = {}  # most metrics have the same steps, whose numbers they share: they are many
    for name, own in more.items():
        steps, values = found.get(name, Series([], []))
        if own:
            late, new = (np.concatenate(column) for column in zip(*own, strict=True))
            key = late.tobytes()
            if key not in numbers:
                numbers[key] = late.tolist()
            steps, values = steps + numbers[key], values + new.tolist()
        made[name] = Series(steps, values)
    return made


def by_name(table: pa.Table) -> Part:
    """A table of metrics, [step, name, value], metric by metric; values that are null are left out."""
    table = table.filter(pc.and_(pc.is_valid(table["value"]), pc.is_valid(table["name"]))).combine_chunks()
    names = pc.dictionary_encode(table["name"]).combine_chunks()
    if isinstance(names, pa.ChunkedArray):
        names = names.chunk(0) if names.num_chunks else pa.array([], pa.string()).dictionary_encode()
    codes = names.indices.to_numpy(zero_copy_only=False)
    order = np.argsort(codes, kind="stable")
    cuts = np.searchsorted(codes[order], np.arange(len(names.dictionary) + 1))
    steps, values = (table[column].to_numpy()[order] for column in ("step", "value"))
    spans = zip(names.dictionary.to_pylist(), cuts[:-1], cuts[1:], strict=True)
    return {name: (steps[a:b], values[a:b]) for name, a, b in sorted(spans)}
