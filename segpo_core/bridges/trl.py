"""TRL's `GRPOTrainer` with our credit in its loss.

    from segpo_core import TEMPO
    from segpo_core.bridges.trl import RunRecorder, SegmentGRPOTrainer

    trainer = SegmentGRPOTrainer(model, reward_funcs, GRPOConfig(...), train_dataset=data, method=TEMPO())
    RunRecorder("runs/mine").attach(trainer)
    trainer.train()

Sampling, rewards, loss, optimizer and launching stay TRL's; the method says who earned what. TRL's loss takes one
advantage a token, and its mask for the tokens of tools keeps out whatever a method keeps out. A segment's importance
ratio is that of its tokens when each of them brings the mean log-probability of its segment (SAPO, arXiv 2605.01327,
eq. 8). Written for TRL 1.16, whose underscored methods it overrides.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from trl import GRPOConfig, GRPOTrainer

from segpo_core.algos import Forks, Method
from segpo_core.bridges.recorder import RunRecorder
from segpo_core.bridges.trl_batch import Asked, Generation, generation
from segpo_core.policy.contrasts import contrasts, image_contrast
from segpo_core.policy.critic import ActorCritic
from segpo_core.policy.inputs import Prompts
from segpo_core.policy.load import get_tokenizer, suppressed_token_ids
from segpo_core.sampling.generate import InProcess
from segpo_core.sampling.truncation import Truncation
from segpo_core.segments import count, segment_mean
from segpo_core.training.evaluate import reward_texts
from segpo_core.training.together import own_part, whole_batch
from segpo_core.types import Credit

__all__ = ["RunRecorder", "SegmentGRPOTrainer"]

#: How token losses become one number: our name -> TRL's `loss_type`.
LOSS_TYPES = {
    "token-mean": "dapo",
    "seq-mean-token-mean": "grpo",
    "seq-mean-token-sum": "luspo",
    "seq-mean-token-sum-norm": "dr_grpo",
}
#: Further inputs of a forward pass that a batch of TRL's carries.
_INPUTS = (
    "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles",
    "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
)  # fmt: skip


def loss_settings(method: Method, args: GRPOConfig) -> GRPOConfig:
    """`args` with the method's loss settings; a copy.

    Raises:
        ValueError: `args` says something else than both TRL's default and the method, or asks for what TRL and the
            method cannot do together.
    """
    if method.uses_critic:
        raise ValueError(
            f"{method.title} learns values, and GRPOTrainer trains no critic: train it with segpo (segpo train "
            f"--method {method.name}), or choose a method without a critic, such as grpo, tempo or spo_chain"
        )
    if type(method).collect is not Method.collect:
        raise ValueError(
            f"{method.title} grows trees while it samples, and GRPOTrainer samples groups: train it with segpo (segpo "
            f"train --method {method.name}), or choose tempo, which reads a tree from the group"
        )
    if method.beta and method.importance_sampling_level == "segment":
        raise ValueError(
            "beta is not 0 and the ratio is a segment's: TRL's KL term would then be that of segment means; set "
            "beta=0, or importance_sampling_level='token'"
        )
    if method.beta and (method.kl_in != "loss" or method.estimator != "k3"):
        raise ValueError(
            f"TRL has its KL term in the loss, as k3; {method.title} is set to {method.estimator} in the {method.kl_in}"
        )
    if getattr(method, "away_coef", 0):
        raise ValueError(
            f"{method.title} adds a term to the loss, which TRL's has no place for: train it with segpo (segpo train "
            f"--method {method.name}), or choose vppo or pgpo, which weigh tokens by the same contrast"
        )
    if args.use_liger_kernel:
        raise ValueError(
            "use_liger_kernel computes the loss in a kernel that takes one advantage a completion; turn it off"
        )
    if args.multi_objective_aggregation != "sum_then_normalize":
        raise ValueError(
            f"multi_objective_aggregation is {args.multi_objective_aggregation!r}: {method.title} judges the weighted "
            "sum of the rewards ('sum_then_normalize')"
        )
    settings: dict[str, Any] = {name: getattr(method, name) for name in ("epsilon", "epsilon_high", "delta", "beta")}
    settings["loss_type"] = LOSS_TYPES[method.loss_type]
    settings["use_bias_correction_kl"] = False  # our KL term is the plain estimate
    level = method.importance_sampling_level
    settings["importance_sampling_level"] = "token" if level == "segment" else level
    if hasattr(method, "scale_rewards"):
        settings["scale_rewards"] = method.scale_rewards
    merged, default = (
        copy.copy(args),
        GRPOConfig(output_dir=args.output_dir, use_cpu=True, bf16=False, report_to="none"),
    )
    for name, value in settings.items():
        said = getattr(args, name)
        if said not in (value, getattr(default, name)):
            raise ValueError(
                f"{name} is {said!r} in GRPOConfig and {value!r} in the method: leave it to the method, "
                f"{type(method).__name__}(...), whose loss settings count"
            )
        setattr(merged, name, value)
    return merged


class SegmentGRPOTrainer(GRPOTrainer):
    """`GRPOTrainer` whose advantages, mask and importance ratio are a method's.

    Args:
        model, reward_funcs, args, kwargs: as `GRPOTrainer`. Loss settings (epsilon, loss_type, beta …) are the
            method's; what `args` says about them must be TRL's default or the same.
        method: any method without a critic that samples groups; its own settings in it.

    Raises:
        ValueError: what TRL and the method cannot do together, before anything is loaded.
    """

    def __init__(
        self, model: Any, reward_funcs: Any = None, args: GRPOConfig | None = None, *, method: Method, **kwargs: Any
    ):
        args = loss_settings(method, args or GRPOConfig())
        #: The method samples on from the middle of completions.
        self.samples_on = type(method).estimate is not Method.estimate
        if self.samples_on:
            _check_sampling(method, args, kwargs)
        self.method = method
        self._asked: Asked | None = None
        self._cut: tuple[Tensor, Tensor] | None = None
        #: The newest generation batch, and what the method said about it.
        self.last: tuple[Generation, Credit] | None = None
        super().__init__(model, reward_funcs, args, **kwargs)
        sharded = self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if sharded and (self.samples_on or method.uses_contrasts or method.uses_image_contrast):
            raise ValueError(
                f"{method.title} makes passes of its own over the whole model, whose weights are split over processes "
                "here: launch with DDP, or train LoRA adapters"
            )

    # --- a generation batch -----------------------------------------------------------------------------------------

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):  # type: ignore[no-untyped-def]
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._asked = Asked(inputs, completions, completion_ids_list, rewards)
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return output
        batch = generation(self, self._asked, output)
        self._measure(batch, output)
        credit = own_part(self.method.credit(whole_batch(batch.rollouts, batch.first)), batch.rollouts)
        # TRL cuts what it masks (truncated completions) out of completion_mask.
        loss_mask = credit.loss_mask & batch.chosen & output["completion_mask"].bool()
        advantages = torch.where(loss_mask, credit.advantages, 0.0)
        output |= {
            "advantages": advantages,
            "segment_ids": credit.segment_ids,
            "tool_mask": loss_mask.long(),
            "num_items_in_batch": self.accelerator.gather(loss_mask.sum()).sum(),
        }
        if self._segment_ratio and "old_per_token_logps" in output:
            output["old_per_token_logps"] = _means(output["old_per_token_logps"], loss_mask, credit.segment_ids)
        self._log(credit, advantages.sum(dim=1) / loss_mask.sum(dim=1).clamp(min=1))
        self.last = batch, credit
        return output

    def _measure(self, batch: Generation, output: dict[str, Any]) -> None:
        """Fill in what the policy knows about its own tokens, and what the method measures itself."""
        rollouts, device = batch.rollouts, batch.rollouts.mask.device
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        attended = torch.cat([output["prompt_mask"], rollouts.mask.long()], dim=1)
        with torch.no_grad():
            logprobs, entropy, _ = self._get_per_token_logps_and_entropies(
                self.model, ids, attended, rollouts.mask.shape[1], self.args.per_device_train_batch_size,
                compute_entropy=True, **{name: output[name] for name in _INPUTS if name in output},
            )  # fmt: skip
        # What a tool wrote was no choice of the policy's: probability 1, entropy 0.
        rollouts.old_logprobs = torch.where(batch.chosen, logprobs.float(), 0.0)
        rollouts.entropy = torch.where(batch.chosen, entropy.float(), 0.0)
        rollouts.sampled_logprobs = rollouts.old_logprobs
        method, stream = self.method, (self.args.seed, self.state.global_step + 1)
        if not (self.samples_on or method.uses_contrasts or method.uses_image_contrast):
            return
        model, training = self.accelerator.unwrap_model(self.model), self.model.training
        self.model.eval()  # with gradient checkpointing, a model in training mode keeps no cache
        try:
            prompts = Prompts.build(batch.examples, self.processing_class, model.config)
            if self.samples_on:
                sampler = InProcess(
                    model, get_tokenizer(self.processing_class), self.eos_token_ids,
                    suppressed_token_ids(model, self.processing_class), self.temperature, self.max_completion_length,
                    truncation_of(self.args),
                )  # fmt: skip
                method.estimate(sampler, prompts, rollouts, self._reward_of(batch), stream, batch.first)
            if method.uses_contrasts or method.uses_image_contrast:
                given = (
                    ActorCritic(model, [], self.temperature).to(device), batch.examples, prompts, rollouts,
                    self.processing_class, method.corruption, stream, batch.first,
                    self.args.per_device_train_batch_size,
                )  # fmt: skip
                if method.uses_contrasts:
                    pair = contrasts(*given, method.tags)
                    rollouts.perception_contrast, rollouts.reasoning_contrast = pair
                else:
                    rollouts.perception_contrast = image_contrast(*given)
        finally:
            self.model.train(training)

    def _reward_of(self, batch: Generation) -> Callable[[list[int], list[str]], list[float]]:
        """The rewards of further texts. They are given the data set's columns, and no ids."""

        def rewards(groups: list[int], texts: list[str]) -> list[float]:
            weights = self.reward_weights.tolist()
            total, _ = reward_texts(
                self.reward_funcs,
                weights,
                batch.examples,
                groups,
                texts,
                tokenizer=get_tokenizer(self.processing_class),
            )
            return [float("nan") if value is None else value for value in total]

        return rewards

    def _log(self, credit: Credit, advantages: Tensor) -> None:
        """What TRL logs about credit, of the method's: the mean advantage of each completion's trained tokens."""
        column, numbers = self._logs["advantages"], self.accelerator.gather(advantages).tolist()
        for _ in numbers:
            column.pop()
        column.extend(numbers)
        for name, value in {"segments": float(count(credit.segment_ids).float().mean()), **credit.metrics}.items():
            self._metrics["train"][name].append(value)

    # --- the loss ---------------------------------------------------------------------------------------------------

    @property
    def _segment_ratio(self) -> bool:
        return self.method.importance_sampling_level == "segment"

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        if self._segment_ratio and "segment_ids" in inputs:
            self._cut = inputs["tool_mask"].bool(), inputs["segment_ids"]
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._cut = None

    def _get_per_token_logps_and_entropies(
        self, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        logprobs, entropy, aux_loss = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._cut is not None:
            logprobs = _means(logprobs, *self._cut)
        return logprobs, entropy, aux_loss


def _means(logprobs: Tensor, mask: Tensor, segment_ids: Tensor) -> Tensor:
    """Each token's log-probability replaced by the mean over its segment's trained tokens, 0 elsewhere; [B, T]."""
    return segment_mean(torch.where(mask, logprobs, 0.0), torch.where(mask, segment_ids, -1))


def _check_sampling(method: Method, args: GRPOConfig, kwargs: dict[str, Any]) -> None:
    """What methods that sample on from the middle of a completion cannot have."""
    several = [name for name in ("tools", "environment_factory", "rollout_func") if kwargs.get(name)]
    if several:
        raise ValueError(
            f"{method.title} samples on from the middle of a completion, and {several[0]} makes completions that are "
            "not the model's alone: choose a method that samples nothing more, such as grpo or tempo"
        )
    if isinstance(method, Forks) and truncation_of(args):
        raise ValueError(
            f"{method.title} reads the probabilities that tokens were drawn with, and TRL does not say what "
            f"{truncation_of(args)} left of them: set top_p to 1, top_k to 0 and min_p to none, or train it with segpo"
        )
    if args.repetition_penalty != 1 or args.generation_kwargs:
        raise ValueError(
            f"{method.title} samples on without repetition_penalty and generation_kwargs, so its values would be those "
            "of another policy: leave both out"
        )


def truncation_of(args: GRPOConfig) -> Truncation:
    """What may be drawn, as TRL's sampler has it."""
    return Truncation(args.top_p, max(args.top_k or 0, 0), args.min_p)
