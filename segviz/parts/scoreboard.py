"""Does this credit find the error? Over many wrong completions, beside what chance would give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from segpo_core.record.blame import BLAMED, Blame, blame_of
from segpo_core.record.store import CREDIT_SCHEMA, read_credit
from segviz.parts.trust import trust
from segviz.runs.columns import Rollouts, Row, rollout_columns, whence
from segviz.runs.run import Run
from segviz.show.encode import tidy
from segviz.show.statistics import wilson
from segviz.show.theme import method_label

#: Kind of error -> what people call it.
KINDS = {"perception": "seeing errors", "reasoning": "reckoning errors"}

Key = tuple[int, int, int]  #: step, group, sample
Judged = tuple[str, Blame]  #: kind of error, and where the blame fell


class Verdicts(NamedTuple):
    """Rollouts, and where the blame fell in the wrong ones, as `tally` says."""

    rows: Sequence[Row]
    tally: list[tuple[Key, Judged]]


def judge(source: Rollouts) -> Verdicts:
    """Read rollouts and judge them, once for all who ask. Raises as `rollout_columns`."""
    rows = rollout_columns(source, BLAMED)
    return Verdicts(rows, tally(rows))


def scoreboard(source: Rollouts, verdicts: Verdicts | None = None) -> dict[str, Any] | None:
    """How often the most blamed place of a wrong completion holds its first true error; None where no wrong completion
    has a known one. `verdicts`: the source's, where it was judged before.

    Returns:
        {whence, by_token, lines}. A line is {label, wrong, named, share, low, high, chance}: completions with a known
        error; those of them in which a place is named (credit that is the same everywhere, or nowhere below zero,
        names none); the share of these whose most blamed place holds the error, with Wilson's 95 % interval; and the
        mean share that the same credit dealt out blindly to its places would give. The first line is of all errors,
        then one for each kind that there is. Shares are None where no place is named.
    """
    rows, found = verdicts or judge(source)
    wrong = [row for row in rows if row["answer_right"] is False]
    return board([one for _, one in found], whence(wrong, source))


def tally(rows: Iterable[Mapping[str, Any]]) -> list[tuple[Key, Judged]]:
    """Where the blame fell in each wrong completion whose first true error is known."""
    return [
        ((row["step"], row["group"], row["sample"]), (row["error_kind"] or "", one))
        for row in rows
        if row["answer_right"] is False and (one := blame_of(row)) is not None
    ]


def board(found: Sequence[Judged], whence: str) -> dict[str, Any] | None:
    """What `scoreboard` returns, of completions that were judged before."""
    if not found:
        return None
    lines = [_line("all errors", [one for _, one in found])]
    kinds = sorted({kind for kind, _ in found}, key=lambda kind: (kind not in KINDS, kind))
    if len(kinds) > 1 or kinds[0] in KINDS:
        lines += [_line(KINDS.get(k, f"{tidy(k) or 'other'} errors"), [one for kind, one in found if kind == k])
                  for k in kinds]  # fmt: skip
    return {"whence": whence, "by_token": any(one.by_token for _, one in found), "lines": lines}


def scored(run: Run, verdicts: Verdicts | None = None) -> dict[str, Any] | None:
    """The scoreboard of a run: {said, whence, by_token, lines, methods, trust}; None where nothing can be said of its
    credit, or its rollouts cannot be read (`Run.problems` says so).

    said: the answer in words. methods: as `by_method`. Where no true error is known, `lines` is empty, and `trust` says
    in words what is known instead. `verdicts` as in `scoreboard`.
    """
    try:
        found = scoreboard(run, verdicts)
        if found:
            return told(found) | {"methods": by_method(run)}
        lines = trust(run) if run.steps else []
    except (ValueError, OSError):
        return None
    return untold(lines)


def told(board: dict[str, Any]) -> dict[str, Any]:
    """A board with its answer in words, for the views."""
    return board | {"said": sentence(board), "methods": [], "trust": []}


def untold(lines: list[str]) -> dict[str, Any] | None:
    """What the views say where no true error is known; None without anything to say."""
    said = "Where the errors are is not known here. What is known of its values:"
    return (
        {"said": said, "whence": "", "by_token": False, "lines": [], "methods": [], "trust": lines} if lines else None
    )


def by_method(run: Run) -> list[dict[str, Any]]:
    """The boards of the run's own credit and of every other that was computed for it (`segpo credit`), judged on the
    same completions, own first: [{label, own, whence, by_token, lines}]. Empty where there is no other; one that
    was computed for no completion of those is left out."""
    names = sorted(path.name for path in (run.path / "credit").glob("*/"))
    tallies: dict[str, dict[Key, Judged]] = {}
    error = {}
    for name in names:
        try:
            table = read_credit(run.path, [name])
        except (ValueError, OSError):  # the view of a rollout says so
            continue
        steps = sorted(set(table["step"].to_pylist()) & set(run.steps))
        if not steps or name == run.method:
            continue
        for row in rollout_columns(run, BLAMED, steps):
            error[row["step"], row["group"], row["sample"]] = row
        rows = table.select([column for column in BLAMED if column in CREDIT_SCHEMA.names]).to_pylist()
        tallies[name] = dict(tally(_judged(rows, error)))
    common = set(dict(tally(error.values())))
    for one in sorted(tallies.values(), key=len, reverse=True):
        common = common & set(one) or common
    tallies = {name: one for name, one in tallies.items() if common and common <= set(one)}
    if not tallies:
        return []
    own = {run.method: dict(tally(row for key, row in error.items() if key in common))}
    steps = sorted({step for step, _, _ in common})
    where = f"steps {steps[0]} to {steps[-1]}" if len(steps) > 1 else f"step {steps[0]}"
    found = []
    for name, one in {**own, **tallies}.items():
        label = run.method_label if name == run.method else method_label(name)
        made = board([one[key] for key in sorted(common)], where)
        if made:
            found.append({"label": label, "own": name == run.method, **made})
    return found


def _judged(rows: Iterable[Mapping[str, Any]], error: Mapping[Key, Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """Rows of computed credit with what is known of their completions."""
    for row in rows:
        known = error.get((row["step"], row["group"], row["sample"]))
        if known is not None:
            yield {**row, **{name: known[name] for name in ("error_start", "error_end", "error_kind", "answer_right")}}


def sentence(board: dict[str, Any]) -> str:
    """The answer in words."""
    every = board["lines"][0]
    if not every["named"]:
        return f"It names no place in any of {every['wrong']:,} wrong completions: credit is the same everywhere."
    place = "token" if board["by_token"] else "segment"
    said = (
        f"In {every['share']:.0%} of {every['named']:,} wrong completions the most blamed {place} holds the first true "
        f"error (95 %: {every['low']:.0%} to {every['high']:.0%}); blind chance would give {every['chance']:.0%}."
    )
    if left := every["wrong"] - every["named"]:
        said += f" In {left:,} more nothing is blamed above the rest."
    return said


def _line(label: str, found: Sequence[Blame]) -> dict[str, Any]:
    named = [one for one in found if one.hit is not None]
    line = {"label": label, "wrong": len(found), "named": len(named), "share": None, "low": None, "high": None,
            "chance": None}  # fmt: skip
    if named:
        hits = sum(one.hit for one in named)
        low, high = wilson(hits, len(named))
        line |= {"share": hits / len(named), "low": float(low), "high": float(high),
                 "chance": sum(one.chance for one in named) / len(named)}  # fmt: skip
    return line
