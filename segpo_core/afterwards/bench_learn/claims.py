"""What the papers say, as pairs of arms, and what the curves say to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from segpo_core.afterwards.bench_learn.curves import Interval, Runs, holm, p_value, paired

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
    Claim(OURS, "SAPO, λ = 0.8 instead of 0.99", "sapo lam 0.8", "sapo"),
    Claim(OURS, "SAPO, a critic that learns the return itself (λ 1, decoupled)", "sapo lam_value 1", "sapo"),
    Claim(OURS, "SAPO, a critic with a backbone of its own, learning rate 5e-4", "sapo model", "sapo"),
    Claim(OURS, "SAPO, value pretraining for 5 steps", "sapo pretrained", "sapo"),
    Claim(OURS, "SAPO, 32 prompts of one completion instead of 4 of 8", "sapo 32 prompts", "sapo"),
    Claim(OURS, "PPO, 32 prompts of one completion instead of 4 of 8", "ppo 32 prompts", "ppo"),
    Claim(OURS, "32 prompts of one completion: SAPO instead of PPO", "sapo 32 prompts", "ppo 32 prompts"),
    Claim(OURS, "SAPO with 32 prompts of one completion instead of GRPO with 4 of 8", "sapo 32 prompts", "grpo"),
    Claim(OURS, "SAPO, 4 updates a step instead of one", "sapo 4 updates", "sapo"),
    Claim(OURS, "SPO-chain with a segment for every cutpoint", "spo_chain interval 1", "spo_chain"),
)
#: On sums.
ON_TEXT = (
    Claim(SAPO, "SAPO above GRPO", "text sapo", "text grpo"),
    Claim(SPO, "SPO-chain above GRPO", "text spo_chain", "text grpo"),
    Claim(OURS, "fork values above GRPO", "text forks", "text grpo"),
    Claim(OURS, "fork values above SPO-chain", "text forks", "text spo_chain"),
)


class Finding(NamedTuple):
    """A claim and the difference of areas (better less worse) at equal tokens, processor time and steps, at the rate of
    the settings; and at equal tokens and processor time with each arm at its better rate, where both have several."""

    claim: Claim
    tokens: Interval
    seconds: Interval
    step: Interval
    tuned_tokens: Interval
    tuned_seconds: Interval
    token_budget: float
    stands: bool = False  #: also when all claims beside it are counted

    @property
    def judged(self) -> Interval:
        """What the verdict is of: equal tokens, tuned where that was measured."""
        return self.tuned_tokens if self.tuned_tokens.number >= LEAST_SEEDS else self.tokens

    @property
    def verdict(self) -> str:
        if self.judged.number < LEAST_SEEDS:
            return "not measured"
        if self.judged.low > 0:
            return "confirmed"
        if self.judged.high < 0:
            return "contradicted"
        return "not confirmed"


def judge(claims: tuple[Claim, ...], runs: Runs, most: dict[str, float], rates: Sequence[float] = ()) -> list[Finding]:
    """Every claim against the runs.

    Args:
        most: axis -> the largest budget.
        rates: that arms are tuned over.
    """

    def tuned(claim: Claim, axis: str) -> Interval:
        if len(rates) < 2:
            return paired({}, {})
        arms = (claim.better, claim.worse)
        return paired(*(runs.tuned(arm, rates, claim.curve, axis, most[axis], most["tokens"]).areas for arm in arms))

    found = []
    for claim in claims:
        by = {
            axis: runs.difference(claim.better, claim.worse, claim.curve, axis, budget) for axis, budget in most.items()
        }
        found.append(
            Finding(claim, by["tokens"][0], by["seconds"][0], by["step"][0], tuned(claim, "tokens"),
                    tuned(claim, "seconds"), by["tokens"][1])
        )  # fmt: skip
    measured = [i for i, f in enumerate(found) if f.judged.number >= LEAST_SEEDS]
    for i, stands in zip(measured, holm([p_value(found[i].judged) for i in measured]), strict=True):
        found[i] = found[i]._replace(stands=stands)
    return found
