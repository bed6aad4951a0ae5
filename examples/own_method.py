"""Two methods of one's own; docs/your_method.md goes through them.

python examples/own_method.py siblings --output-dir runs/siblings
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from segpo_core.advantages import segment_gae, token_rewards, value_difference
from segpo_core.algos.base import CriticMethod, Level, Method, rewards_of, values_of
from segpo_core.config import TrainConfig
from segpo_core.segments import cutpoints, per_segment_pick, roles, segment_sum, starts
from segpo_core.training.loop import train
from segpo_core.types import Credit, Rollouts


@dataclass(frozen=True)
class CutpointSAPO(CriticMethod):
    """SAPO's critic and segment ratio, on SPO's segments."""

    name: ClassVar[str] = "cutpoint_sapo"
    title: ClassVar[str] = "SAPO on cutpoints"

    importance_sampling_level: Level = "segment"  # 5: one ratio a segment
    threshold: float = 0.9
    """Tokens of a lower probability are cutpoints."""
    interval: int = 5
    """Cutpoints in a segment."""

    def credit(self, rollouts: Rollouts) -> Credit:
        mask, values = rollouts.mask, values_of(rollouts)  # 2: values from the critic
        z = cutpoints(rollouts.sampled_logprobs.exp(), mask, self.threshold, self.interval)  # 1: SPO's segments
        r = token_rewards(rewards_of(rollouts), mask, kl=self.reward_kl(rollouts), kl_coef=self.beta)
        advantages, returns = segment_gae(r, values, z, self.gamma, self.lam)  # 3: GAE, a segment a step
        return Credit(
            advantages=advantages,
            segment_ids=z,
            loss_mask=mask,  # 4: evenly, over all tokens
            rule=f"before every {self.interval}th token with a probability below {self.threshold:g}",
            returns=returns,
            value_mask=starts(z),
            state_values=segment_sum(torch.where(starts(z), values, 0), z),
        )


@dataclass(frozen=True)
class Siblings(Method):
    """The group is a tree already: where its completions part, their rewards say what each way was worth."""

    name: ClassVar[str] = "siblings"
    title: ClassVar[str] = "Siblings"

    def credit(self, rollouts: Rollouts) -> Credit:
        """V(prefix) = mean reward of the *other* completions that begin with it; once there are none, one's own."""
        mask, r = rollouts.mask, rewards_of(rollouts)
        company = companions(rollouts)
        z = roles(company.sum(1), mask)  # 1: a segment begins where somebody takes another way
        before = torch.cat([others(rollouts)[:, :, None], company[:, :, :-1]], dim=2).float()  # [B, B, T]
        number = before.sum(1)
        mean = torch.einsum("ijt,j->it", before, r.nan_to_num()) / number.clamp(min=1)
        values = torch.where(number > 0, mean, r[:, None])  # 2: from the group, nothing more is sampled
        v = per_segment_pick(values, z, starts(z))
        advantages = value_difference(v, r, z)  # 3: value at a segment's end minus value at its start
        return Credit(
            advantages=advantages,
            segment_ids=z,
            loss_mask=mask & ~advantages.isnan(),  # 4: evenly; 5: the ratio is the default, a token's
            rule="a completion of the group goes another way",
            state_values=torch.where(mask, values, 0),
            metrics={"siblings/alone": float((z.amax(1) == 0).float().mean())},
        )


def others(rollouts: Rollouts) -> Tensor:
    """bool [B, B]: j is another completion of i's prompt, and has a reward."""
    same = rollouts.group[:, None] == rollouts.group[None, :]
    return same & ~rollouts.rewards.isnan()[None, :] & ~torch.eye(len(rollouts), dtype=torch.bool, device=same.device)


def companions(rollouts: Rollouts) -> Tensor:
    """bool [B, B, T]: up to and including token t, completion j is the same as i."""
    ids, mask = rollouts.completion_ids, rollouts.mask
    equal = (ids[:, None] == ids[None, :]) & mask[:, None] & mask[None, :]
    return (equal.int().cumprod(2) > 0) & others(rollouts)[:, :, None]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=["cutpoint_sapo", "siblings"])
    parser.add_argument("--output-dir", required=True)
    parser.add_argument("--max-steps", type=int, default=100)
    args = parser.parse_args()
    algo = CutpointSAPO() if args.method == "cutpoint_sapo" else Siblings()
    config = TrainConfig(
        method=algo.name, algo=algo, output_dir=args.output_dir, max_steps=args.max_steps,
        per_device_train_batch_size=32, learning_rate=1e-5,
    )  # fmt: skip
    print("recorded in", train(config))
