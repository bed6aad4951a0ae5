"""What a method says is checked once, where it enters the update.

A mask that reaches into padding, segments out of order or a NaN among the tokens that teach would not stop a run: it
would train on something else, or on nothing. So the first step of a wrong method ends with the name of what is wrong.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from segpo_core.types import Credit, Rollouts

_DTYPES = {"segment_ids": torch.int64, "loss_mask": torch.bool, "value_mask": torch.bool}
_REQUIRED = ("advantages", "segment_ids", "loss_mask")


def checked(credit: Any, rollouts: Rollouts, who: str) -> Credit:
    """The credit as it is, if it is as `Credit` says.

    Looks at the numbers once, for all rules together: one wait for the device.

    Args:
        credit: what the method's `credit` returned for `rollouts`, of B completions of T tokens.
        who: the method, as errors name it.

    Raises:
        TypeError, ValueError: what is wrong, in which completion and token, and what is expected there.
    """
    if not isinstance(credit, Credit):
        raise TypeError(f"{who}: credit must return a segpo_core.types.Credit, not {type(credit).__name__}")
    _check_forms(credit, rollouts, who)
    broken = _rules(credit, rollouts.mask)
    if torch.stack([places.any() for _, places, _ in broken]).any():
        for name, places, expected in broken:
            if places.any():
                raise ValueError(f"{who}: {name} {_where(places)}; {expected}")
    return credit


def _check_forms(credit: Credit, rollouts: Rollouts, who: str) -> None:
    """Types, dtypes and shapes; nothing of this waits for the device."""
    mask = rollouts.mask
    for item in fields(Credit):
        value, name = getattr(credit, item.name), item.name
        if name in ("rule", "metrics", "away_coef") or value is None and name not in _REQUIRED:
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{who}: {name} must be a tensor, not {type(value).__name__}")
        dtype = _DTYPES.get(name, torch.float32)
        if value.dtype != dtype:
            raise TypeError(f"{who}: {name} is {value.dtype}; it must be {dtype}")
        if value.shape != mask.shape:
            raise ValueError(
                f"{who}: {name} has shape {tuple(value.shape)}; it must be [B, T] = {tuple(mask.shape)}, "
                "one number for every token of every completion (a number a completion: spread it over its tokens)"
            )
        if value.device != mask.device:
            raise ValueError(f"{who}: {name} is on {value.device}, the rollouts are on {mask.device}")
    if (credit.returns is None) != (credit.value_mask is None):
        raise ValueError(f"{who}: returns and value_mask come together: what the critic learns, and where")
    if credit.value_mask is not None and rollouts.values is None:
        raise ValueError(
            f"{who}: returns for a critic, but there are no critic's values: uses_critic must be True (CriticMethod)"
        )


def _rules(credit: Credit, mask: Tensor) -> list[tuple[str, Tensor, str]]:
    """(what is wrong, bool [B, T] where it is so, what is expected) for every rule about the numbers."""
    z, padding = credit.segment_ids, ~mask
    before = pad(z[:, :-1], (1, 0), value=-1)
    step = z - before
    rules = [
        ("loss_mask is True at padding", credit.loss_mask & padding, "use loss_mask & rollouts.mask"),
        ("segment_ids is not -1 at padding", padding & (z != -1), "use torch.where(rollouts.mask, ids, -1)"),
        (
            "segment_ids is out of order",
            mask & ((z < 0) | (step < 0) | (step > 1)),
            "the segments of a completion are numbered 0, 1, 2 … in order, without gaps, and every token is in one",
        ),
        (
            "advantages is NaN or infinite inside loss_mask",
            credit.loss_mask & ~credit.advantages.isfinite(),
            "a token without credit is not in the loss: leave it out of loss_mask, or give it a number",
        ),
        ("advantages is not 0 at padding", padding & (credit.advantages != 0), "use torch.where(rollouts.mask, A, 0)"),
    ]
    if credit.away_logprobs is not None:
        away = credit.loss_mask & credit.away_logprobs.isinf()
        rules.append(("away_logprobs is infinite inside loss_mask", away, "a token that has none is NaN"))
    if credit.value_mask is not None and credit.returns is not None:
        rules += [
            ("value_mask is True at padding", credit.value_mask & padding, "use value_mask & rollouts.mask"),
            (
                "returns is NaN or infinite inside value_mask",
                credit.value_mask & ~credit.returns.isfinite(),
                "what the critic does not learn is left out of value_mask",
            ),
        ]
    return rules


def _where(places: Tensor) -> str:
    row, token = places.nonzero()[0].tolist()
    number = int(places.sum())
    return f"at {number} token{'s' if number > 1 else ''}, the first of them token {token} of completion {row}"
