"""The ribbon: a completion's tokens, coloured by their credit, cut where the method cut them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from segviz.parts.credit import (
    blamed,
    error_of,
    key_of,
    segment_credit,
    trained,
)
from segviz.parts.heading import facts, pictures, prompt_of, verdict, where
from segviz.parts.stills import as_text, asked, head, place_of, reading, ribbon_picture
from segviz.parts.tokens import LONG, text_columns
from segviz.runs.rollout import TOKEN_NUMBERS, Rollout
from segviz.show.encode import floats, pack
from segviz.show.theme import method_label, symmetric_limit
from segviz.show.view import View

QUESTION = "Which segment broke this solution?"
OF_RIGHT = "Which segment carried this solution?"  #: nothing broke one whose answer is right
OF_UNKNOWN = "Which segment was blamed, and which praised?"  #: nobody says whether it is right

#: Name in the page -> column of the rollout.
_FLOATS = {
    "adv": "advantages", "val": "values", "ent": "entropy", "logp": "old_logprobs", "ratio": "ratio",
    "weight": "weights", "ret": "returns", "ref": "ref_logprobs", "pc": "perception_contrast",
    "rc": "reasoning_contrast",
}  # fmt: skip
_LEFT_OUT_WHEN_LONG = ("ref_logprobs", "perception_contrast", "reasoning_contrast", "token_ids")


def ribbon(rollout: Rollout | Mapping[str, Any], title: str | None = None) -> View:
    """The completion with its credit: segments, advantages, values, the first true error, every number on hover.

    Args:
        rollout: from `Run.rollout`, or a mapping with the columns of `ROLLOUT_SCHEMA` (missing ones are shown as
            not recorded).
        title: default: the question that fits, whether the answer is right or not.
    """
    rollout = rollout if isinstance(rollout, Rollout) else Rollout(rollout)
    title = title or question(rollout)
    data = ribbon_data(rollout, title) | {"pictures": pictures(rollout)}
    return View("ribbon", title, data, _fallback(rollout, title))


def ribbon_data(rollout: Rollout, title: str | None = None) -> dict[str, Any]:
    """What the script needs to draw a ribbon, without the images' bytes."""
    row, total = rollout.row, len(rollout.pieces)
    title = title or question(rollout)
    limit = symmetric_limit(rollout.column("advantages") or [], trained(rollout))
    return {
        "kind": "ribbon",
        "key": key_of(row),
        "title": title,
        "where": where(rollout),
        "method": method_label(row.get("method")),
        "verdict": verdict(rollout),
        "facts": facts(rollout),
        "prompt": prompt_of(rollout),
        "error": error_of(rollout),
        "blamed": blamed(rollout).start,
        "limit": limit,
        "rules": sorted({rule or "" for rule in rollout.segment_column("segment_rule") or []}),
        "tokens": total,
        "notices": _notices(rollout),
        "pack": pack(_columns(rollout), "".join(rollout.pieces)),
    }


def question(rollout: Rollout) -> str:
    """What to ask of it."""
    right = rollout.row.get("answer_right")
    return OF_UNKNOWN if right is None else OF_RIGHT if right else QUESTION


def _columns(rollout: Rollout) -> dict[str, np.ndarray]:
    """Columns for the page. One that was not recorded is absent."""
    total = len(rollout.pieces)
    long = total > LONG
    columns = text_columns(rollout) | {"seg_adv": floats(segment_credit(rollout), long)}
    for name, source in (("seg_val", "segment_value"), ("seg_err", "segment_stderr")):
        if (column := rollout.segment_column(source)) is not None:
            columns[name] = floats(column, long)
    if rules := rollout.segment_column("segment_rule"):
        order = sorted({rule or "" for rule in rules})
        columns["seg_rule"] = np.array([order.index(rule or "") for rule in rules], dtype=np.uint16)
    for name, source in _FLOATS.items():
        column = rollout.column(source)
        if column is None and name == "logp":
            column = rollout.column("sampled_logprobs")
        if column is not None and not (long and source in _LEFT_OUT_WHEN_LONG):
            columns[name] = floats(column, long)
    for name, source in (("loss", "loss_mask"), ("clip", "clipped")):
        if (column := rollout.column(source)) is not None:
            columns[name] = np.array([2 if flag is None else int(flag) for flag in column], dtype=np.uint8)
    if (column := rollout.column("role_ids")) is not None:
        columns["role"] = np.array([255 if r is None or r < 0 else r for r in column], dtype=np.uint8)
    if (column := rollout.column("token_ids")) is not None and not long:
        ids = np.array([0 if item is None else item for item in column], dtype=np.uint32)
        columns["id"] = ids if ids.max(initial=0) >= 2**16 else ids.astype(np.uint16)
    return columns


def _notices(rollout: Rollout) -> list[str]:
    """What a reader should know before trusting the picture."""
    notes = list(rollout.problems)
    if not rollout.pieces:
        return notes
    if rollout.column("advantages") is None:
        notes.append("No advantages are recorded: nothing is coloured.")
    elif not any(trained(rollout)):
        notes.append("No token of this rollout entered the loss.")
    if not rollout.row.get("segment_start") and not rollout.row.get("segment_ids"):
        notes.append("No segments are recorded: the completion is shown as a single one.")
    if len(rollout.pieces) > LONG:
        left = [name for name in _LEFT_OUT_WHEN_LONG if rollout.row.get(name) is not None]
        tail = f"; without {', '.join(left)}" if left else ""
        notes.append(f"Long rollout: numbers are rounded to 8 significant bits in this page{tail}.")
    if bad := [n for n in TOKEN_NUMBERS if any(v is not None and math.isinf(v) for v in rollout.column(n) or [])]:
        notes.append(f"There are infinite numbers in {', '.join(bad)}.")
    return notes


def _fallback(rollout: Rollout, title: str) -> str:
    """The picture, the question and the text in its credit, for where no script runs."""
    said = verdict(rollout)
    drawn = ribbon_picture(rollout, said)
    below = f"<p>{drawn}</p>{reading(rollout)}{as_text(rollout)}" if drawn else ""
    return f"<div>{head(title, place_of(rollout), said)}{asked(rollout)}{below}</div>"
