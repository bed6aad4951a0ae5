"""Rollouts and credit as rows of the run directory, and back."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from segpo_core.record.store import nullable
from segpo_core.segments import starts
from segpo_core.types import Credit, Rollouts, pad_rows

_TOKEN_FLOATS = (
    "sampled_logprobs", "engine_logprobs", "old_logprobs", "entropy", "values", "ref_logprobs", "mc_values",
    "mc_stderr", "perception_contrast", "reasoning_contrast",
)  # fmt: skip


def token_span(pieces: Sequence[str], start: int, end: int) -> tuple[int, int]:
    """The tokens that hold the characters `start` to `end` (exclusive) of the text: (first, last + 1).

    An empty span, such as "something is missing here", is the one token at that place.
    """
    offsets = [0, *accumulate(len(piece) for piece in pieces)]
    first = min(max(bisect_right(offsets, start) - 1, 0), len(pieces) - 1)
    last = min(max(bisect_right(offsets, max(end - 1, start)) - 1, first), len(pieces) - 1)
    return first, last + 1


def rollout_rows(
    rollouts: Rollouts,
    credit: Credit,
    examples: list[dict[str, Any]],
    image_digests: list[list[str]],
    *,
    step: int,
    method: str,
    first_group: int = 0,
    node_ids: Tensor | None = None,
    new_logprobs: Tensor | None = None,
    ratio: Tensor | None = None,
    clipped: Tensor | None = None,
) -> list[dict[str, Any]]:
    """One row a completion, columns as in `record.ROLLOUT_SCHEMA`.

    Args:
        rollouts, credit: what was seen and decided.
        examples: P problems; `rollouts.group` indexes them.
        image_digests: P lists of sha256.
        step, method, first_group: ids; `first_group` is the number of the first prompt over all processes.
        node_ids: long [B, T], the node of each token as `nodes.node_rows` numbers them.
        new_logprobs, ratio, clipped: [B, T], state after the step's updates, where it was measured.
    """
    lengths, groups = rollouts.lengths.tolist(), rollouts.group.tolist()
    begin = starts(credit.segment_ids)
    rewards = [None] * len(rollouts) if rollouts.rewards is None else nullable(rollouts.rewards.tolist())
    token_columns = {name: _lists(getattr(rollouts, name), lengths) for name in _TOKEN_FLOATS}
    token_columns |= {name: _lists(getattr(credit, name), lengths) for name in ("advantages", "weights", "returns")}
    token_columns |= {
        "new_logprobs": _lists(new_logprobs, lengths),
        "ratio": _lists(ratio, lengths),
        "clipped": _lists(clipped, lengths),
        "token_ids": _lists(rollouts.completion_ids, lengths),
        "node_ids": _lists(node_ids, lengths),
        "role_ids": _lists(rollouts.role_ids, lengths),
        "loss_mask": _lists(credit.loss_mask, lengths),
        "segment_ids": _lists(credit.segment_ids, lengths),
    }
    state = {name: _lists(getattr(credit, name), lengths) for name in ("state_values", "state_stderr")}
    seen: dict[int, int] = {}
    rows = []
    for b, (length, group) in enumerate(zip(lengths, groups, strict=True)):
        seen[group] = seen.get(group, -1) + 1
        first = begin[b, :length].nonzero()[:, 0].tolist()
        row = {name: column[b] if column else None for name, column in token_columns.items()}
        example = examples[group]
        rows.append(
            row
            | _truth_columns(rollouts, b)
            | {
                "step": step,
                "group": first_group + group,
                "sample": seen[group],
                "method": method,
                "example_id": str(example.get("id", "")),
                "prompt": _json(example["prompt"]),
                "images": image_digests[group],
                "columns": _json(
                    {k: v for k, v in example.items() if k not in ("prompt", "images", "answer", "id")}
                    | {name: column[b] for name, column in rollouts.extra.items()}
                ),
                "answer": _reference(example.get("answer")),
                "text": _storable(rollouts.texts[b]),
                "finished": bool(rollouts.finished[b]),
                "reward": rewards[b],
                "reward_parts": _json({name: column[b] for name, column in rollouts.reward_parts.items()}),
                "pieces": [_storable(piece) for piece in rollouts.pieces[b]],
                "segment_start": first,
                "segment_end": first[1:] + [length],
                "segment_advantage": [row["advantages"][t] for t in first],
                "segment_value": _at(state["state_values"], b, first),
                "segment_stderr": _at(state["state_stderr"], b, first),
                "segment_rule": [credit.rule] * len(first),
            }
        )
    return rows


def rollouts_from_rows(rows: list[dict[str, Any]]) -> Rollouts:
    """`Rollouts` from recorded rows, so that any method can compute its credit for them.

    A reward that is null among others is one without verdict, NaN. Nodes of chains, which have sampled values, are a
    matter of their method's settings: only those of trees come back.

    Raises:
        ValueError: no rows, or one that lacks what was sampled, or whose columns do not fit each other.
    """
    if not rows:
        raise ValueError("there are no recorded rollouts to read: choose a step that was recorded")
    for row in rows:
        _check(row)
    lengths = torch.tensor([len(row["token_ids"]) for row in rows])
    mask = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
    prompts: dict[tuple[int, int], int] = {}
    group = [prompts.setdefault((row["step"], row["group"]), len(prompts)) for row in rows]

    def column(name: str, dtype: torch.dtype = torch.float32, fill: float = 0) -> Tensor | None:
        if any(row[name] is None for row in rows):
            return None
        cells = [[float("nan") if v is None else v for v in row[name]] for row in rows]
        return pad_rows([torch.tensor(cell, dtype=dtype) for cell in cells], fill)

    rewards = [row["reward"] for row in rows]
    return Rollouts(
        completion_ids=column("token_ids", torch.long),
        mask=mask,
        group=torch.tensor(group),
        finished=torch.tensor([row["finished"] for row in rows]),
        role_ids=column("role_ids", torch.long, -1),
        node_ids=column("node_ids", torch.long, -1) if any(row["mc_values"] is None for row in rows) else None,
        rewards=None if set(rewards) == {None} else torch.tensor([math.nan if r is None else r for r in rewards]),
        texts=[row["text"] for row in rows],
        pieces=[row["pieces"] for row in rows],
        reward_parts={},
        truth=[_truth(row) for row in rows],
        **{name: column(name) for name in _TOKEN_FLOATS},
    )


def where_of(row: Mapping[str, Any]) -> str:
    """Which rollout a row is, in words."""
    return "step {}, group {}, sample {}".format(*(row.get(name) for name in ("step", "group", "sample")))


def json_of(row: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """A column of a recorded row that holds JSON; None where it is empty.

    Raises:
        ValueError: it holds no JSON, or something of another kind; the rollout and the column are named.
    """
    if not row.get(name):
        return None
    try:
        value = json.loads(row[name])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"rollout {where_of(row)}: column {name} holds no JSON: {error}") from error
    if value is not None and not isinstance(value, kinds):
        raise ValueError(f"rollout {where_of(row)}: column {name} holds {type(value).__name__}, where another belongs")
    return value


def _truth(row: Mapping[str, Any]) -> dict[str, Any] | None:
    truth = json_of(row, "truth", dict)
    error = (truth or {}).get("first_error")
    if error is not None:
        kinds = {"start": int, "end": int, "kind": str}
        if not isinstance(error, dict) or not all(isinstance(error.get(k), kind) for k, kind in kinds.items()):
            raise ValueError(f"rollout {where_of(row)}: column truth: first_error must have {', '.join(kinds)}")
    return truth


def _check(row: Mapping[str, Any]) -> None:
    """Raise ValueError where a row cannot be a rollout; the column is named."""
    for name in ("token_ids", "pieces", "text", "finished"):
        if row.get(name) is None:
            raise ValueError(f"rollout {where_of(row)} has no {name}: its file is damaged, or of another program")
    tokens = len(row["token_ids"])
    for name in ("token_ids", "pieces", "role_ids", "node_ids", *_TOKEN_FLOATS):
        column = row.get(name)
        if column is None:
            continue
        found = len(column) - (0 if name in _TOKEN_FLOATS else column.count(None))
        if len(column) != tokens or found != tokens:
            raise ValueError(
                f"rollout {where_of(row)}: column {name} has {found} entries for {tokens} tokens: its file is damaged"
            )


def _lists(values: Tensor | None, lengths: list[int]) -> list[list] | None:
    """[B, T] to B lists of the real length, NaN as None."""
    if values is None:
        return None
    rows = [row[:n] for row, n in zip(values.tolist(), lengths, strict=True)]
    return [nullable(row) for row in rows] if values.is_floating_point() else rows


def _at(column: list[list] | None, b: int, places: list[int]) -> list | None:
    return None if column is None else [column[b][t] for t in places]


def _truth_columns(rollouts: Rollouts, b: int) -> dict[str, Any]:
    truth = rollouts.truth[b] if rollouts.truth else None
    if truth is None:
        return {"truth": None}
    columns = {"truth": _json(truth)} | {
        k: truth.get(k) for k in ("answer_right", "perception_right", "reasoning_right")
    }
    error = truth.get("first_error")
    if error is not None:
        start, end = token_span(rollouts.pieces[b], error["start"], error["end"])
        columns |= {"error_start": start, "error_end": end, "error_kind": error["kind"]}
    return columns


def _json(value: Any) -> str:
    return json.dumps(value, default=str)


def _storable(text: str) -> str:
    """Parquet strings are UTF-8; a lone surrogate, which a hostile tokenizer can make, becomes U+FFFD."""
    return text.encode("utf-8", errors="replace").decode("utf-8") if not text.isascii() else text


def _reference(answer: Any) -> str | None:
    """The reference answer as text; several, of which any counts, as JSON."""
    return answer if answer is None or isinstance(answer, str) else _json(answer)
