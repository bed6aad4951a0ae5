"""Where the blame of a completion fell: on the first true error, or elsewhere. Rows of the run directory, no model.

The one place in which it is decided what "found" means: the views, the report and the demonstration ask here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Columns of the record that are read here.
BLAMED = (
    "step", "group", "sample", "answer_right", "finished", "error_kind", "error_start", "error_end", "advantages",
    "loss_mask", "segment_ids", "segment_start", "segment_end", "segment_advantage",
)  # fmt: skip


@dataclass(frozen=True)
class Blame:
    """The most blamed place of a completion, held against its first true error."""

    start: int | None  #: its first token; None where no place is named: nothing below zero, or all places alike
    end: int | None
    credit: float | None  #: what it got
    by_token: bool  #: whether the places are tokens: credit differs inside a segment
    places: int  #: places that got credit
    tied: int  #: places with this lowest credit; `start` is the first of them
    hit: (
        float | None
    )  #: 1 where it holds the error, 0 where not, a share where only some of the tied do; None: no error
    chance: float | None  #: share of all places that hold the error: `hit` if the same credit were dealt out blindly


def blame(credit: np.ndarray, spans: np.ndarray, error: tuple[int, int] | None = None) -> Blame:
    """What is blamed most, does it hold the first true error, and what would chance be.

    Judged at the resolution at which credit was assigned: segments where it is the same within each of them (of the
    tokens that got any), else the tokens that got any. A mean over a segment would hide where its blame lies.

    Args:
        credit: float [T], NaN (or infinite) where a token got none.
        spans: int [M, 2], the segments, covering every token once.
        error: (start, end) in tokens, end exclusive.
    """
    credit = np.where(np.isfinite(credit), credit, np.nan)
    scale = np.nanmax(np.abs(credit), initial=0)
    alike = 1e-6 * scale  # recorded as float32
    starts, ends = (spans[:, 0], spans[:, 1]) if len(spans) else (np.zeros(0, int), np.zeros(0, int))
    low = np.fmin.reduceat(credit, starts) if len(spans) else np.zeros(0)
    high = np.fmax.reduceat(credit, starts) if len(spans) else np.zeros(0)
    by_token = bool((high - low > alike).any())
    if by_token:
        starts, low = np.arange(len(credit)), credit
        ends = starts + 1
    there = np.isfinite(low)
    whole = bool(there.all())
    starts, ends, low = starts[there], ends[there], low[there]
    hit = chance = None
    holds = (starts < error[1]) & (error[0] < ends) if error else None
    if error and len(low):
        chance = float(holds.mean())
    lowest = low.min(initial=0)
    worst = low <= lowest + alike
    if lowest == 0 or (whole and worst.all()):  # the same everywhere names no place
        return Blame(None, None, None, by_token, len(low), 0, None, chance)
    first = int(worst.argmax())
    if error:
        hit = float(holds[worst].mean())
    return Blame(
        int(starts[first]), int(ends[first]), float(low[first]), by_token, len(low), int(worst.sum()), hit, chance
    )


def spans(row: Mapping[str, Any], total: int) -> np.ndarray:
    """(start, end) of each segment in tokens, int [M, 2]: as recorded, else from `segment_ids`, else one for all."""
    starts, ends, ids = (row.get(name) for name in ("segment_start", "segment_end", "segment_ids"))
    if starts is not None and ends is not None and len(starts) == len(ends):
        return np.stack([np.asarray(starts), np.asarray(ends)], axis=1).astype(int)
    cuts = np.flatnonzero(np.diff(np.asarray(ids))) + 1 if ids is not None and len(ids) == total else np.zeros(0, int)
    edges = np.concatenate([[0], cuts, [total]])
    return np.stack([edges[:-1], edges[1:]], axis=1) if total else np.zeros((0, 2), int)


def blame_of(row: Mapping[str, Any]) -> Blame | None:
    """`blame` of a recorded completion, its columns as lists or arrays; None where its first error or its credit is not
    known."""
    credit, start = row["advantages"], row["error_start"]
    if start is None:
        return None
    if credit is None:
        per_segment, ends = row.get("segment_advantage"), row.get("segment_end")
        if per_segment is None or ends is None or len(per_segment) != len(ends):
            return None
        credit = np.repeat(np.array(per_segment, float), np.diff(ends, prepend=0).astype(int))
    credit, mask = np.array(credit, float), row["loss_mask"]
    total = len(credit)
    if not 0 <= start < total:
        return None
    if mask is not None and len(mask) == total:
        credit[~(np.array(mask, float) == 1)] = np.nan
    if not np.isfinite(credit).any():
        return None
    end = min(total, max(start + 1, row["error_end"] or 0))
    return blame(credit, spans(row, total), (int(start), int(end)))


def blame_rate(rows: Iterable[Mapping[str, Any]]) -> tuple[float, float, int, int]:
    """Of wrong completions: (share whose most blamed place holds the first true error, what blind chance would give,
    number in which a place is named, number with a known error); NaN where none names a place."""
    known = [found for row in rows if row["answer_right"] is False and (found := blame_of(row)) is not None]
    named = [found for found in known if found.hit is not None]
    if not named:
        return float("nan"), float("nan"), 0, len(known)
    hits, chances = ([getattr(found, name) for found in named] for name in ("hit", "chance"))
    return float(np.mean(hits)), float(np.mean(chances)), len(named), len(known)


def tour(
    rows: Iterable[Mapping[str, Any]], blames: Mapping[tuple[int, int, int], Blame] | None = None
) -> dict[str, tuple[int, int, int]]:
    """Up to three wrong completions that say what this credit can do and what it cannot: kind -> (step, group, sample).

    "Seeing error found" and "Reckoning error found": the most blamed place holds the first true error. "Error missed":
    it does not. Of each kind the one with the strongest blame, a finished one before one that was cut off. Credit that
    is the same everywhere names nothing, and is left out. `blames`: what `blame_of` says of each row by the same key,
    where that is known.
    """
    best: dict[str, tuple[tuple[bool, float], tuple[int, int, int]]] = {}
    kinds = {"perception": "Seeing error found", "reasoning": "Reckoning error found"}
    for row in rows:
        if row["answer_right"] is not False or row["error_kind"] not in kinds:
            continue
        key = row["step"], row["group"], row["sample"]
        found = blame_of(row) if blames is None else blames.get(key)
        if found is None or found.hit is None or found.credit is None:
            continue
        kind = kinds[row["error_kind"]] if found.hit else "Error missed"
        worth = (bool(row["finished"]), -found.credit)
        if kind not in best or worth > best[kind][0]:
            best[kind] = worth, key
    order = (*kinds.values(), "Error missed")
    return {kind: best[kind][1] for kind in order if kind in best}
