"""Where the blame of a run fell: on the first true error, or elsewhere. Rows of the run directory, no model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


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
