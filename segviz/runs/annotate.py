"""Tokens, log-probabilities, entropies and segments for rollouts that lack them, such as other trainers' dumps."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from segviz.runs.rollout import Rollout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

#: Segmentation -> its function in `segpo_core.segments`, and what that reads besides the mask.
SEGMENTS: dict[str, tuple[str, str | None]] = {
    "entropy": ("entropy_topk", "entropy"),
    "cutpoints": ("cutpoints", "probs"),
    "fixed_length": ("fixed_length", None),
    "newline": ("newline", "pieces"),
    "step_markers": ("step_markers", "pieces"),
    "token_level": ("token_level", None),
    "sequence_level": ("sequence_level", None),
}


def annotate(
    rollouts: Iterable[Rollout],
    model: nn.Module,
    processor: Any,
    segments: str = "entropy",
    batch_size: int = 8,
    **settings: Any,
) -> list[Rollout]:
    """The same rollouts with token ids, pieces, log-probabilities, entropy and segments, where they lack them.

    What is recorded stays. A text without token ids is encoded anew: pieces joined are the text, but the ids need not
    be those that were sampled, and an end-of-sequence token is not in a text. Log-probabilities and entropies are
    those of `model`, at temperature 1, in one scoring pass. A rollout's single advantage is given to each token.

    Args:
        rollouts: of a `Run` or a dump; images are taken from the rollout.
        model: a transformers model; processor: its processor, or tokenizer.
        segments: "entropy" (SAPO's cut, arXiv 2605.01327), or one of the functions of `segpo_core.segments`:
            cutpoints, fixed_length, newline, step_markers, token_level, sequence_level.
        batch_size: rollouts in one pass.
        settings: that function's own, such as `fraction=0.3`, `threshold=0.9`, `size=16`, `pattern="Step"`.

    Raises:
        ValueError: an unknown segmentation, a prompt or an image that is not recorded, or token ids of another model.
        TypeError: a setting that the segmentation does not have.
    """
    from segpo_core.afterwards.probe import Policy, recorded_example, score_completions

    cut = _segmenter(segments, settings)
    rollouts = list(rollouts)
    policy = Policy.wrap(model, processor)
    tokenizer = policy.sampler.tokenizer
    rows = [dict(rollout.row) | _tokens(rollout, tokenizer) for rollout in rollouts]
    todo = [b for b, row in enumerate(rows) if _lacks(row)]
    examples: dict[tuple, dict] = {}  # a prompt that several rollouts share is processed once
    asked = []
    for b in todo:
        key = rows[b].get("prompt"), tuple(rows[b].get("images") or ())
        if key not in examples:
            examples[key] = recorded_example(rows[b], rollouts[b].images)
        asked.append(examples[key])
    for b, scored in zip(
        todo, score_completions(policy, asked, [rows[b]["token_ids"] for b in todo], batch_size), strict=True
    ):
        if rows[b].get("old_logprobs") is None:
            rows[b]["old_logprobs"] = scored.logprobs.tolist()
        if rows[b].get("entropy") is None:
            rows[b]["entropy"] = scored.entropy.tolist()
    for row in rows:
        if row["token_ids"] and not row.get("segment_start") and not row.get("segment_ids"):
            row |= cut(row)
    return [dataclasses.replace(rollout, row=row) for rollout, row in zip(rollouts, rows, strict=True)]


def _lacks(row: Mapping[str, Any]) -> bool:
    """Whether a scoring pass is needed."""
    unscored = row.get("old_logprobs") is None and row.get("sampled_logprobs") is None
    return unscored or row.get("entropy") is None


def _tokens(rollout: Rollout, tokenizer: Any) -> dict[str, Any]:
    """Token ids and pieces, where they are not recorded, and what was recorded of the text as a whole, a token each."""
    row = rollout.row
    if row.get("token_ids") is not None:
        if row.get("pieces") is not None:
            return {}
        from segpo_core.sampling.sampler import token_pieces

        return {"pieces": token_pieces(tokenizer, list(row["token_ids"]))}
    ids, pieces = encode(tokenizer, rollout.text)
    columns: dict[str, Any] = {"token_ids": ids, "pieces": pieces}
    if row.get("pieces") is None:
        # one pseudo-token stood for the whole text: what it had, every token has, and its segment is none
        for name in ("advantages", "weights", "loss_mask"):
            if len(row.get(name) or ()) == 1:
                columns[name] = list(row[name]) * len(ids)
        columns |= dict.fromkeys(
            ("segment_ids", "segment_start", "segment_end", "segment_advantage", "segment_value", "segment_stderr",
             "segment_rule")
        )  # fmt: skip
    return columns


def encode(tokenizer: Any, text: str) -> tuple[list[int], list[str]]:
    """(ids, pieces) of a text; pieces joined are the text, whatever the tokenizer drops, adds or rewrites.

    A character that several tokens make up belongs to the last of them; what no token covers to the one after it, at
    the end of the text to the last.

    Raises:
        ValueError: the tokenizer does not say which characters a token stands for, or has no token for the text.
    """
    if not text:
        return [], []
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} cannot say which characters a token stands for; load a fast tokenizer "
            "(use_fast=True)"
        )
    # what has no bytes in UTF-8 cannot be encoded; the length, and so every offset, stays
    clean = "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in text)
    found = tokenizer(clean, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = list(found["input_ids"]), found["offset_mapping"]
    if not ids:
        raise ValueError(f"{type(tokenizer).__name__} has no token for the text {text[:40]!r}")
    cuts = [0]
    for (_, end), (following, _) in zip(spans, spans[1:], strict=False):
        cuts.append(max(cuts[-1], min(end, following)))
    cuts.append(len(text))
    return ids, [text[start:end] for start, end in zip(cuts, cuts[1:], strict=False)]


def _segmenter(name: str, settings: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Cuts a row: its segment columns."""
    import torch

    from segpo_core import segments as cutters

    if name not in SEGMENTS:
        raise ValueError(f"there is no segmentation {name!r}; choose one of {', '.join(SEGMENTS)}")
    function, reads = SEGMENTS[name]
    signature = inspect.signature(getattr(cutters, function))
    signature.bind(*[None] * (2 if reads else 1), **settings)  # a setting that is missing or unknown, before any work
    told = [f"{p.name} {settings.get(p.name, p.default)}" for p in signature.parameters.values()]
    told = told[2 if reads else 1 :]
    rule = f"{function.replace('_', ' ')}{': ' if told else ''}{', '.join(told)} (cut afterwards)"

    def cut(row: Mapping[str, Any]) -> dict[str, Any]:
        total = len(row["token_ids"])
        sampled = row["sampled_logprobs"] if row.get("old_logprobs") is None else row["old_logprobs"]
        given = {
            "entropy": lambda: torch.tensor([row["entropy"]]),
            "probs": lambda: torch.tensor([sampled]).exp(),
            "pieces": lambda: [row["pieces"]],
        }
        mask = torch.ones(1, total, dtype=torch.bool)
        ids = getattr(cutters, function)(*([given[reads]()] if reads else []), mask, **settings)[0].tolist()
        starts = [0, *(t for t in range(1, total) if ids[t] != ids[t - 1])]
        ends = [*starts[1:], total]
        columns = {
            "segment_ids": ids,
            "segment_start": starts,
            "segment_end": ends,
            "segment_rule": [rule] * len(starts),
        }
        return columns if row.get("advantages") is None else columns | {"segment_advantage": _means(row, starts, ends)}

    return cut


def _means(row: Mapping[str, Any], starts: list[int], ends: list[int]) -> list[float | None]:
    """Mean advantage of each segment's tokens, None where none has any."""
    means = []
    for start, end in zip(starts, ends, strict=True):
        known = [value for value in row["advantages"][start:end] if value is not None]
        # equal numbers have that number as their mean, to the last digit
        means.append(None if not known else known[0] if len(set(known)) == 1 else sum(known) / len(known))
    return means
