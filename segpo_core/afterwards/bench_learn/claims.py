"""What the papers say, as pairs of arms, and what the curves say to it."""

from __future__ import annotations

from typing import NamedTuple

from segpo_core.afterwards.bench_learn.curves import Interval, Runs

#: Fewer seeds in common are no answer.
LEAST_SEEDS = 3


class Claim(NamedTuple):
    """`better` is said to learn better than `worse`."""

    source: str
    says: str
    better: str
    worse: str
    curve: str = "answer"


SAPO, SPO, SRPO, OURS = "SAPO (2605.01327)", "SPO (2505.23564)", "SRPO (2605.07274)", "ours"
CLAIMS = (
    Claim(SAPO, "SAPO above PPO", "sapo", "ppo"),
    Claim(SAPO, "SAPO above VC-PPO", "sapo", "vcppo"),
    Claim(SAPO, "SAPO above GRPO", "sapo", "grpo"),
    Claim(SAPO, "segment ratio above token ratio (4 updates a step)", "sapo 4 updates", "sapo 4 updates token"),
    Claim(SAPO, "entropy cuts above cuts at steps", "sapo", "sapo cut steps"),
    Claim(SAPO, "entropy cuts above a fixed length", "sapo", "sapo cut fixed"),
    Claim(SAPO, "entropy cuts above cuts at low probability", "sapo", "sapo cut probability"),
    Claim(SAPO, "k = 30 % above k = 10 %", "sapo", "sapo k 0.1"),
    Claim(SAPO, "k = 30 % above k = 60 %", "sapo", "sapo k 0.6"),
    Claim(SPO, "SPO-chain above GRPO", "spo_chain", "grpo"),
    Claim(SPO, "SPO-chain above PPO", "spo_chain", "ppo"),
    Claim(SPO, "SPO-tree above GRPO", "spo_tree", "grpo"),
    Claim(SPO, "SPO-tree above PPO", "spo_tree", "ppo"),
    Claim(SPO, "the probability mask helps SPO-chain", "spo_chain", "spo_chain no mask"),
    Claim(SPO, "the probability mask helps SPO-tree", "spo_tree", "spo_tree no mask"),
    Claim(SRPO, "SRPO above GRPO, grounded", "srpo", "grpo", "grounded"),
    Claim(SRPO, "the perception contrast alone above GRPO, grounded", "srpo perception", "grpo", "grounded"),
    Claim(SRPO, "the reasoning contrast alone above GRPO, grounded", "srpo reasoning", "grpo", "grounded"),
    Claim(SRPO, "both contrasts above perception alone, grounded", "srpo", "srpo perception", "grounded"),
    Claim(SRPO, "both contrasts above reasoning alone, grounded", "srpo", "srpo reasoning", "grounded"),
    Claim(OURS, "fork values above GRPO", "forks", "grpo"),
    Claim(OURS, "fork values above SPO-chain", "forks", "spo_chain"),
    Claim(OURS, "fork values above VinePPO", "forks", "vineppo"),
)
#: Not the papers' claims, but what was tried on top: arm and what it is held against.
TRIED = (
    Claim(OURS, "fork values at 4e-4 against GRPO at 2e-4", "forks at 0.0004", "grpo"),
    Claim(OURS, "SPO-chain at 4e-4 against GRPO at 2e-4", "spo_chain at 0.0004", "grpo"),
    Claim(OURS, "fork values at 4e-4 instead of 2e-4", "forks at 0.0004", "forks"),
    Claim(OURS, "SPO-chain at 4e-4 instead of 2e-4", "spo_chain at 0.0004", "spo_chain"),
    Claim(OURS, "GRPO at 4e-4 instead of 2e-4", "grpo at 0.0004", "grpo"),
    Claim(OURS, "λ = 0.8 instead of 0.99", "sapo lam 0.8", "sapo"),
    Claim(OURS, "a critic with a backbone of its own, learning rate 5e-4", "sapo model", "sapo"),
    Claim(OURS, "value pretraining for 5 steps", "sapo pretrained", "sapo"),
    Claim(OURS, "SPO-chain with a segment for every cutpoint", "spo_chain interval 1", "spo_chain"),
)


class Finding(NamedTuple):
    """A claim and the difference of areas (better less worse) at equal tokens, processor time and steps."""

    claim: Claim
    tokens: Interval
    seconds: Interval
    step: Interval
    token_budget: float

    @property
    def verdict(self) -> str:
        """At equal tokens."""
        if self.tokens.number < LEAST_SEEDS:
            return "not measured"
        if self.tokens.low > 0:
            return "confirmed"
        if self.tokens.high < 0:
            return "contradicted"
        return "not confirmed (the interval holds 0)"


def judge(claims: tuple[Claim, ...], runs: Runs, most: dict[str, float]) -> list[Finding]:
    """Every claim against the runs. `most`: axis -> the largest budget."""
    found = []
    for claim in claims:
        by = {
            axis: runs.difference(claim.better, claim.worse, claim.curve, axis, budget) for axis, budget in most.items()
        }
        found.append(Finding(claim, by["tokens"][0], by["seconds"][0], by["step"][0], by["tokens"][1]))
    return found
