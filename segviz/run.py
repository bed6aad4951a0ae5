"""Open a run directory and read it as a viewer needs it: lazily, while training may still be writing."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from segpo_core.record import (
    CREDIT_SCHEMA,
    ROLLOUT_SCHEMA,
    SchemaError,
    read_credit,
    read_manifest,
    read_metrics,
    read_nodes,
    read_rollouts,
    rollout_steps,
)
from segviz.theme import method_label

#: Columns that say what a rollout is without its token streams. `segment_*` lists are short.
LIGHT = (
    "step group sample method example_id answer reward finished answer_right perception_right reasoning_right "
    "error_kind segment_end segment_advantage"
).split()

#: Per-token columns of a rollout that hold numbers.
TOKEN_NUMBERS = (
    "sampled_logprobs old_logprobs new_logprobs ref_logprobs entropy values advantages weights returns ratio "
    "perception_contrast reasoning_contrast"
).split()
#: What a method decided, and what only its own training can tell: not true of the completion under another method.
DECIDED = frozenset(CREDIT_SCHEMA.names) - {"step", "group", "sample"} | {
    "returns", "ratio", "clipped", "new_logprobs", "node_ids",
}  # fmt: skip
TOKEN_OTHERS = ("token_ids", "role_ids", "loss_mask", "segment_ids", "clipped")


class Series(NamedTuple):
    """One metric over training: `values[i]` was recorded at `steps[i]`."""

    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class Rollout:
    """One completion with everything recorded about it. `row` has the columns of `ROLLOUT_SCHEMA`."""

    row: Mapping[str, Any]
    images: Mapping[str, bytes] = field(default_factory=dict, repr=False)  #: sha256 -> PNG; a missing one is absent
    run_name: str = ""

    def __repr__(self) -> str:
        ids = ", ".join(f"{name}={self.row.get(name)}" for name in ("step", "group", "sample", "method"))
        return f"Rollout({ids}, tokens={len(self.pieces)}, reward={self.row.get('reward')})"

    @cached_property
    def text(self) -> str:
        return self.row.get("text") or ""

    @cached_property
    def pieces(self) -> list[str]:
        """Token texts, joined they are the text. Without recorded pieces: the whole text as a single one."""
        pieces = self.row.get("pieces")
        if pieces is None:
            return [self.text] if self.text else []
        return [piece or "" for piece in pieces]

    def column(self, name: str) -> list | None:
        """A per-token column, or None where it was not recorded or does not fit the tokens."""
        column = self.row.get(name)
        if column is None or len(column) != len(self.pieces):
            return None
        return None if all(item is None for item in column) else list(column)

    @cached_property
    def problems(self) -> list[str]:
        """What is wrong with the row, in words."""
        found = []
        if self.row.get("pieces") is None and self.text:
            found.append("Token pieces were not recorded; the text is shown as a single token.")
        elif self.row.get("text") is not None and "".join(self.pieces) != self.text:
            found.append("The recorded pieces do not join to the recorded text; the pieces are shown.")
        for name in (*TOKEN_NUMBERS, *TOKEN_OTHERS):
            column = self.row.get(name)
            if column is not None and len(column) != len(self.pieces):
                found.append(f"{name} has {len(column)} entries for {len(self.pieces)} tokens and is left out.")
        return found

    @cached_property
    def segments(self) -> list[tuple[int, int]]:
        """(start, end) in tokens, end exclusive, covering every token once. One segment where none were recorded."""
        total = len(self.pieces)
        starts, ends = self.row.get("segment_start"), self.row.get("segment_end")
        if starts and ends and len(starts) == len(ends):
            spans = list(zip(starts, ends, strict=True))
            if all(a < b for a, b in spans) and [a for a, _ in spans] + [total] == [0] + [b for _, b in spans]:
                return spans
        ids = self.column("segment_ids")
        if ids:
            cuts = [t for t in range(1, total) if ids[t] != ids[t - 1]]
            return list(zip([0, *cuts], [*cuts, total], strict=True))
        return [(0, total)] if total else []

    def segment_column(self, name: str) -> list | None:
        """A per-segment column (`segment_advantage`, …), or None where it was not recorded or does not fit."""
        column = self.row.get(name)
        if column is None or len(column) != len(self.segments) or all(item is None for item in column):
            return None
        return list(column)

    def judged(self, credit: Mapping[str, Any]) -> Rollout:
        """The same completion with the credit of another method; `credit` has columns of `CREDIT_SCHEMA`.

        What was measured on the completion stays (log-probabilities, values); what the first method decided goes.
        """
        kept = {name: value for name, value in self.row.items() if name not in DECIDED}
        decided = {name: credit[name] for name in DECIDED if name in credit}
        return Rollout(kept | decided, self.images, self.run_name)

    def json(self, name: str) -> Any:
        """A JSON column decoded; None where it is missing or is not JSON."""
        try:
            return json.loads(self.row.get(name) or "null")
        except (json.JSONDecodeError, TypeError):
            return None


class RolloutTable:
    """A light table of rollouts, one row a completion. `where` narrows it, iteration gives dicts."""

    def __init__(self, rows: list[dict[str, Any]]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def where(self, test: Callable[[dict], bool] | None = None, **wanted: Any) -> RolloutTable:
        """Rows that pass `test` and have the wanted values, e.g. `where(step=3, error_kind="perception")`.

        A collection means "one of these", a callable is asked about the value.

        Raises:
            KeyError: there is no such column.
        """
        known = set(self.rows[0]) if self.rows else set(wanted)
        if unknown := set(wanted) - known:
            raise KeyError(f"no column {', '.join(sorted(unknown))}; there are: {', '.join(sorted(known))}")

        def fits(value: Any, want: Any) -> bool:
            if callable(want):
                return bool(want(value))
            if isinstance(want, Collection) and not isinstance(want, str):
                return value in want
            return value == want

        rows = [row for row in self.rows if all(fits(row[name], want) for name, want in wanted.items())]
        return RolloutTable([row for row in rows if test(row)] if test else rows)

    def to_arrow(self) -> pa.Table:
        return pa.Table.from_pylist(self.rows)

    def __repr__(self) -> str:
        steps = sorted({row["step"] for row in self.rows})
        span = f", steps {steps[0]} to {steps[-1]}" if steps else ""
        return f"RolloutTable({len(self)} rollouts{span})"


class Run:
    """A run directory, read only. Nothing is kept that training could still change except what it wrote whole."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self._metrics: tuple[tuple, dict[str, Series]] = ((), {})
        self._light: dict[int, tuple[tuple, list[dict[str, Any]]]] = {}
        self._problems: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.method_label}, {len(self.steps)} recorded steps)"

    @property
    def name(self) -> str:
        return str(self.manifest.get("name") or self.path.resolve().name)

    @property
    def config(self) -> dict[str, Any]:
        config = self.manifest.get("config")
        return config if isinstance(config, dict) else {}

    @property
    def method(self) -> str:
        """Name of the method, '' where neither run.json nor a rollout says it."""
        for place in (self.manifest, self.config):
            for key in ("method", "algorithm", "algo"):
                found = place.get(key)
                if isinstance(found, dict):
                    found = found.get("name") or found.get("method")
                if found:
                    return str(found)
        if self.steps:
            methods = {row["method"] for row in self._step(self.steps[-1]) if row["method"]}
            if len(methods) == 1:
                return methods.pop()
        return ""

    @property
    def method_label(self) -> str:
        return method_label(self.method)

    @property
    def model(self) -> str:
        for key in ("model_name_or_path", "model", "policy"):
            found = self.manifest.get(key) or self.config.get(key)
            if found:
                return str(found)
        return ""

    @property
    def steps(self) -> list[int]:
        """Steps whose rollouts are recorded so far."""
        return rollout_steps(self.path)

    @property
    def problems(self) -> list[str]:
        """Files that could not be read, and recordings that the trainer says it lost."""
        lost = self.metrics.get("record/failures")
        notes = list(self._problems.values())
        if lost and lost.values and lost.values[-1] > 0:
            notes.append(f"The trainer could not record rollouts {int(lost.values[-1])} times.")
        return notes

    @property
    def metrics(self) -> dict[str, Series]:
        """Metric name -> steps and values, as recorded so far."""
        stamp = self._stamp("metrics", "step-*.parquet")
        if stamp == self._metrics[0]:
            return self._metrics[1]
        try:
            table = read_metrics(self.path)
        except (pa.ArrowException, OSError) as error:
            self._problems["metrics"] = f"Metrics could not be read: {error}"
            return {}
        found: dict[str, Series] = {}
        for step, name, value in zip(*(table[key].to_pylist() for key in ("step", "name", "value")), strict=True):
            if value is not None:
                series = found.setdefault(name, Series([], []))
                series.steps.append(step)
                series.values.append(value)
        self._metrics = (stamp, found)
        return found

    @property
    def rollouts(self) -> RolloutTable:
        """Every rollout recorded so far, without its token streams."""
        return RolloutTable([row for step in self.steps for row in self._step(step)])

    def rollouts_at(self, step: int) -> RolloutTable:
        """Rollouts of one step, without reading the others. Empty where nothing is recorded."""
        return RolloutTable(self._step(step))

    def rollout(self, step: int, group: int, sample: int) -> Rollout:
        """One rollout, whole.

        Raises:
            KeyError: it is not recorded; the message says what is.
        """
        if found := self._whole(step, group, [("sample", "=", sample)]):
            return found[0]
        raise KeyError(f"{self._recorded(step, group)}; there is no sample {sample}")

    def group(self, step: int, group: int) -> list[Rollout]:
        """Every completion of one prompt, whole, by sample number.

        Raises:
            KeyError: it is not recorded; the message says what is.
        """
        if found := self._whole(step, group):
            return sorted(found, key=lambda rollout: rollout.row["sample"])
        raise KeyError(self._recorded(step, group))

    def credits(self, step: int, group: int, sample: int) -> dict[str, Rollout]:
        """One rollout under every method whose credit is known: as trained first, then what `segpo credit` computed.

        Raises:
            KeyError: the rollout is not recorded; the message says what is.
        """
        own = self.rollout(step, group, sample)
        found = {own.row.get("method") or self.method: own}
        for folder in sorted((self.path / "credit").glob("*/")):
            try:
                rows = read_credit(self.path, [folder.name], [step]).to_pylist()
            except (pa.ArrowException, OSError) as error:
                self._problems[f"credit {folder.name} {step}"] = (
                    f"Credit of {folder.name} at step {step} could not be read: {error}"
                )
                continue
            for row in rows:
                if (row["group"], row["sample"]) == (group, sample):
                    found.setdefault(folder.name, own.judged(row))
        return found

    def _whole(self, step: int, group: int, more: Sequence[tuple] = ()) -> list[Rollout]:
        """Rollouts of a group with all of their columns; of `more` pyarrow filters, those that pass."""
        found = []
        for path in sorted((self.path / "rollouts").glob(f"step-{step:06d}.*parquet")):
            rows = pq.read_table(path, schema=ROLLOUT_SCHEMA, filters=[("group", "=", group), *more]).to_pylist()
            shas = {sha for row in rows for sha in row.get("images") or []}
            pictures = {sha: data for sha in shas if (data := self.image(sha)) is not None}
            for row in rows:
                images = {sha: pictures[sha] for sha in row.get("images") or [] if sha in pictures}
                found.append(Rollout(row, images, self.name))
        return found

    def _recorded(self, step: int, group: int) -> str:
        """What is recorded instead of a group or rollout that is not."""
        if step not in self.steps:
            steps = ", ".join(map(str, self.steps)) or "none yet"
            return f"step {step} has no recorded rollouts in {self.path}; recorded steps: {steps}"
        there = sorted((row["group"], row["sample"]) for row in self._step(step))
        samples = [sample for g, sample in there if g == group]
        if samples:
            return f"step {step}, group {group} has samples {samples}"
        return f"step {step} has no group {group}; its groups: {sorted({g for g, _ in there})}"

    def nodes(self, step: int, group: int | None = None) -> list[dict[str, Any]]:
        """Nodes of a step's trees or chains, of one group or of all, by group and number; columns as in
        `segpo_core.record.NODE_SCHEMA`. Empty where none were recorded."""
        try:
            rows = read_nodes(self.path, [step]).to_pylist()
        except (pa.ArrowException, OSError) as error:
            self._problems[f"nodes {step}"] = f"Nodes of step {step} could not be read: {error}"
            return []
        rows = [row for row in rows if group is None or row["group"] == group]
        return sorted(rows, key=lambda row: (row["group"], row["node"]))

    def image(self, sha: str) -> bytes | None:
        """The PNG of an image; None where it is missing."""
        # the name comes from a file: a digest is all that may reach the file system
        if not sha or not all(letter in "0123456789abcdef" for letter in sha):
            return None
        try:
            return (self.path / "images" / f"{sha}.png").read_bytes()
        except OSError:
            return None

    def _stamp(self, kind: str, pattern: str) -> tuple:
        """What tells whether files changed since they were read."""
        stamp = []
        for path in sorted((self.path / kind).glob(pattern)):
            try:
                stamp.append((path.name, path.stat().st_mtime_ns, path.stat().st_size))
            except FileNotFoundError:  # a resumed run removes later steps
                continue
        return tuple(stamp)

    def _step(self, step: int) -> list[dict[str, Any]]:
        """Light rows of one step. Read again only when its files changed: a resumed run writes steps anew."""
        try:
            stamp = self._stamp("rollouts", f"step-{step:06d}.*parquet")
            if step in self._light and self._light[step][0] == stamp:
                return self._light[step][1]
            rows = read_rollouts(self.path, [step], LIGHT).to_pylist()
        except (pa.ArrowException, OSError) as error:
            self._problems[f"step {step}"] = f"Rollouts of step {step} could not be read: {error}"
            return []
        for row in rows:
            ends, credit = row.pop("segment_end") or [], row.pop("segment_advantage") or []
            credit = [value for value in credit if value is not None]
            row["tokens"] = ends[-1] if ends else None
            row["segments"] = len(ends) or None
            row["lowest"], row["highest"] = (min(credit), max(credit)) if credit else (None, None)
            sees, right = row["perception_right"], row["answer_right"]
            row["grounded"] = None if sees is None or right is None else sees and right
        self._light[step] = (stamp, rows)
        return rows


def open(path: str | Path) -> Run:  # noqa: A001 - `sv.open` is what people will look for
    """Open a run directory.

    Raises:
        SchemaError: it is not a run, or another version of the schema wrote it.
    """
    if not Path(path).is_dir():
        raise SchemaError(f"{path} is not a run directory: there is no such folder")
    return Run(path)
