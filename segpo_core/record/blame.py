"""Where the blame of a run fell: on the first true error, or elsewhere. Rows of the run directory, no model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

#: Columns of the record that `tour` and `blame_on_error` read.
BLAMED = (
    "step", "group", "sample", "answer_right", "finished", "error_kind", "error_start", "error_end", "advantages",
    "loss_mask",
)  # fmt: skip


def most_blamed(row: Mapping[str, Any]) -> list[int]:
    """The tokens in the loss with the lowest advantage, all that share it; [] where none is below 0."""
    kept = row["loss_mask"] or [True] * len(row["advantages"])
    blamed = {t: a for t, (a, used) in enumerate(zip(row["advantages"], kept, strict=True)) if used and a is not None}
    worst = min(blamed.values(), default=0.0)
    return [t for t, a in blamed.items() if a == worst] if worst < 0 else []


def blame_on_error(row: Mapping[str, Any]) -> float | None:
    """The share of the most blamed tokens that belong to the first true error; 0 where nothing is blamed.

    With one advantage for the whole completion that is the error's share of the tokens, so chance needs no column of
    its own. None: the answer is right, or no error in seeing or reckoning is known.
    """
    if row["answer_right"] is not False or row["error_kind"] not in ("perception", "reasoning"):
        return None
    blamed = most_blamed(row)
    start, end = row["error_start"], max(row["error_end"], row["error_start"] + 1)
    return sum(start <= t < end for t in blamed) / len(blamed) if blamed else 0.0


def blame_rate(rows: Iterable[Mapping[str, Any]]) -> tuple[float, int]:
    """(mean of `blame_on_error`, number of completions it is of); NaN for none."""
    shares = [share for row in rows if (share := blame_on_error(row)) is not None]
    return (sum(shares) / len(shares) if shares else float("nan")), len(shares)


def tour(rows: Iterable[Mapping[str, Any]]) -> dict[str, tuple[int, int, int]]:
    """Up to three wrong completions that say what this credit can do and what it cannot: kind -> (step, group, sample).

    "Seeing error found" and "Reckoning error found": the most blamed token belongs to the first true error. "Error
    missed": it does not. Of each kind the one with the strongest blame, a finished one before one that was cut off.
    Credit that is the same everywhere names nothing, and is left out.
    """
    best: dict[str, tuple[tuple, tuple[int, int, int]]] = {}
    for row in rows:
        share, worst = blame_on_error(row), most_blamed(row)
        if share is None or not worst or len(worst) == len(row["advantages"]):
            continue
        found = "Seeing error found" if row["error_kind"] == "perception" else "Reckoning error found"
        kind = found if share else "Error missed"
        worth = (bool(row["finished"]), -row["advantages"][worst[0]])
        if kind not in best or worth > best[kind][0]:
            best[kind] = worth, (row["step"], row["group"], row["sample"])
    order = ("Seeing error found", "Reckoning error found", "Error missed")
    return {kind: best[kind][1] for kind in order if kind in best}
