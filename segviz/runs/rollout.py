"""One completion with everything recorded about it, as a viewer needs it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from segpo_core.record.store import CREDIT_SCHEMA

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
        """A per-token column, NaN as None: not measured. None where it was not recorded or does not fit the tokens."""
        column = self.row.get(name)
        if column is None or len(column) != len(self.pieces):
            return None
        return _measured(column)

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
        return None if column is None or len(column) != len(self.segments) else _measured(column)

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
        except (json.JSONDecodeError, TypeError, RecursionError):  # the last: nested beyond all sense
            return None


def _measured(column: Sequence[Any]) -> list | None:
    """The entries with None for NaN, which a file or a framework may have instead; None where nothing is left."""
    found = [None if item != item else item for item in column]  # only NaN differs from itself
    return None if all(item is None for item in found) else found
