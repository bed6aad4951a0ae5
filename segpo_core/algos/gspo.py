"""GSPO: GRPO's advantage with one importance ratio a completion (arXiv 2507.18071)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from segpo_core.algos.grpo import GRPO
from segpo_core.losses import Level, LossType


@dataclass(frozen=True)
class GSPO(GRPO):
    """Group Sequence Policy Optimization."""

    name: ClassVar[str] = "gspo"
    title: ClassVar[str] = "GSPO"

    # Eq. 5: s_i(θ) is the geometric mean of the token ratios, and every completion counts the same. Sequence ratios
    # hardly move, so the paper's clip range is three orders smaller than a token's (its section 5.1).
    epsilon: float = 3e-4
    epsilon_high: float | None = 4e-4
    importance_sampling_level: Level = "sequence"
    loss_type: LossType = "seq-mean-token-mean"
