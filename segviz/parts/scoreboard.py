"""Does this credit find the error? Over many wrong completions, beside what chance would give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from segpo_core.record.blame import Blame, blame_of
from segviz.runs.columns import Rollouts, rollout_columns, whence
from segviz.show.statistics import wilson

COLUMNS = (
    "advantages", "loss_mask", "segment_start", "segment_end", "segment_ids", "segment_advantage", "error_start",
    "error_end", "error_kind", "answer_right",
)  # fmt: skip

#: Kind of error -> what people call it.
KINDS = {"perception": "seeing errors", "reasoning": "reckoning errors"}


def scoreboard(source: Rollouts) -> dict[str, Any] | None:
    """How often the most blamed place of a wrong completion holds its first true error; None where no wrong completion
    has a known one.

    Returns:
        {whence, by_token, lines}. A line is {label, wrong, named, share, low, high, chance}: completions with a known
        error; those of them in which a place is named (credit that is the same everywhere, or nowhere below zero,
        names none); the share of these whose most blamed place holds the error, with Wilson's 95 % interval; and the
        mean share that the same credit dealt out blindly to its places would give. The first line is of all errors,
        then one for each kind that there is. Shares are None where no place is named.
    """
    rows = [row for row in rollout_columns(source, COLUMNS) if row["answer_right"] is False]
    found = [(row["error_kind"], one) for row in rows if (one := blame_of(row)) is not None]
    if not found:
        return None
    lines = [_line("all errors", [one for _, one in found])]
    kinds = sorted({kind or "" for kind, _ in found}, key=lambda kind: (kind not in KINDS, kind))
    if len(kinds) > 1 or kinds[0] in KINDS:
        lines += [_line(KINDS.get(k, f"{k or 'other'} errors"), [one for kind, one in found if (kind or "") == k])
                  for k in kinds]  # fmt: skip
    return {"whence": whence(rows, source), "by_token": any(one.by_token for _, one in found), "lines": lines}


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
