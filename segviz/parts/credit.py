"""What a recorded rollout says about its credit: per segment, the most blamed place, the first true error."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import numpy as np

from segpo_core.record.blame import Blame, blame
from segviz.runs.rollout import Rollout
from segviz.show.encode import tidy


def key_of(row: Mapping[str, Any]) -> str:
    """`step/group/sample`: what links the views of one rollout."""
    return "/".join("" if row.get(name) is None else str(row[name]) for name in ("step", "group", "sample"))


def segment_credit(rollout: Rollout) -> list[float | None]:
    """Advantage of each segment: as recorded, else the mean over its tokens, also where weights make them differ.
    None where nothing of it was trained."""
    recorded = rollout.segment_column("segment_advantage")
    tokens, in_loss = rollout.column("advantages"), trained(rollout)
    credit: list[float | None] = []
    for m, (start, end) in enumerate(rollout.segments):
        known = [tokens[t] for t in range(start, end) if in_loss[t] and tokens[t] is not None] if tokens else []
        alike = not known or min(known) == max(known)
        if recorded and recorded[m] is not None and (known or not tokens) and alike:
            credit.append(recorded[m])
        else:
            credit.append(sum(known) / len(known) if known else None)
    return credit


def token_credit(rollout: Rollout) -> np.ndarray:
    """float64 [T]: the credit of each token, weights included; NaN where it did not enter the loss or got none."""
    tokens, in_loss = rollout.column("advantages"), trained(rollout)
    if tokens is None:
        tokens = [None] * len(rollout.pieces)
        for (start, end), value in zip(rollout.segments, segment_credit(rollout), strict=True):
            tokens[start:end] = [value] * (end - start)
    return np.array([np.nan if x is None or not ok else x for x, ok in zip(tokens, in_loss, strict=True)], dtype=float)


def blamed(rollout: Rollout) -> Blame:
    """`blame` of a rollout."""
    error = error_of(rollout)
    spans = np.array(rollout.segments, dtype=int).reshape(-1, 2)
    return blame(token_credit(rollout), spans, (error["start"], error["end"]) if error else None)


def error_of(rollout: Rollout) -> dict[str, Any] | None:
    """The first true error in tokens, {start, end, kind, why}; None where there is none or it is not known."""
    start, end, total = rollout.row.get("error_start"), rollout.row.get("error_end"), len(rollout.pieces)
    if start is None or not 0 <= start < total:
        return None
    truth = rollout.json("truth")
    told = truth.get("first_error") if isinstance(truth, dict) else None
    why = str(told.get("why") or "") if isinstance(told, dict) else ""
    end = min(total, max(start + 1, end or 0))
    return {"start": start, "end": end, "kind": rollout.row.get("error_kind") or "error", "why": tidy(why)}


def given(rollout: Rollout) -> bool:
    """Whether any credit is recorded, also of tokens that did not enter the loss."""
    return rollout.column("advantages") is not None or rollout.segment_column("segment_advantage") is not None


def has_truth(rollout: Rollout) -> bool:
    """Whether the task said anything about what is right in it: without, no known error does not mean none."""
    return rollout.row.get("truth") is not None or rollout.row.get("answer_right") is not None


def reason_of(error: Mapping[str, Any]) -> str:
    """Kind and reason of the first true error, in brackets with a space before."""
    return f" ({error['kind']}: {error['why']})" if error["why"] else f" ({error['kind']})"


def segment_at(rollout: Rollout, token: int) -> int:
    """Number of the segment that holds a token."""
    return bisect_right([start for start, _ in rollout.segments], token) - 1


def signed(value: float) -> str:
    """A number with its sign, a real minus and two or, when small, enough decimals."""
    digits = 2 if abs(value) >= 0.01 or value == 0 else min(6, 1 - math.floor(math.log10(abs(value))))
    return f"{value:+.{digits}f}".replace("-", "−")


def trained(rollout: Rollout) -> list[bool]:
    """True at tokens that entered the loss with some credit, zero included."""
    mask, credit = rollout.column("loss_mask"), rollout.column("advantages")
    return [
        (mask is None or bool(mask[t])) and (credit is None or credit[t] is not None)
        for t in range(len(rollout.pieces))
    ]
