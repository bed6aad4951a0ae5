"""What learns: the network with its optimizer, and how a step's rollouts go through them, in the forward passes that
micro.py cuts."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from segpo_core import losses
from segpo_core.config import TrainConfig
from segpo_core.losses import LossType
from segpo_core.policy import sharding
from segpo_core.policy.critic import ActorCritic, Scores
from segpo_core.policy.inputs import Prompts
from segpo_core.policy.load import reference_context
from segpo_core.training.masters import Masters
from segpo_core.training.micro import Micro, micro_batches
from segpo_core.training.together import everyone
from segpo_core.types import Credit, Rollouts

log = logging.getLogger(__name__)

#: A number about a micro-batch, and how many tokens it is about.
Number = tuple[float, int]


class Learner:
    """The network, its optimizer and its reference.

    Args:
        config: what to do.
        accelerator: wraps network and optimizer.
        network, reference: as `build.build_network` gives them; moved to the accelerator's device.
    """

    def __init__(
        self, config: TrainConfig, accelerator: Accelerator, network: ActorCritic, reference: ActorCritic | None = None
    ):
        self.config, self.method, self.accelerator = config, config.algo, accelerator
        #: float32 [B, T], of the step's last pass over each token: its log-probability; NaN where there was none
        self.last_pass = torch.empty(0)
        #: a pass that the scoring made and the update takes up: (its tokens, what it said of them)
        self.begun: tuple[Tensor, Scores] | None = None
        self.reference = None if reference is None else reference.to(accelerator.device)
        network.to(accelerator.device)
        self.sharded = sharding.wanted(accelerator)
        dtype = torch.float32 if config.use_peft else getattr(torch, config.dtype)
        self.masters = None
        if self.sharded and config.use_peft and network.value_backbone is not None:
            raise ValueError(
                "critic='model' with LoRA shares the policy's frozen weights, which FSDP cannot split twice: launch "
                "with configs/accelerate/ddp.yaml, or choose critic='head'"
            )
        if self.sharded:
            sharding.shard(network, accelerator, dtype)  # FSDP keeps masters itself
        elif dtype != torch.float32:
            self.masters = Masters(network, dtype)
        rate = config.learning_rate
        critic_rate = getattr(self.method, "critic_rate", rate)
        groups = network.groups(rate, critic_rate, config.weight_decay)
        groups = groups if self.masters is None else self.masters.groups(groups)
        self.policy_parameters = groups[0]["params"]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, config.adam_beta2))
        self.peak_rates = [group["lr"] for group in optimizer.param_groups]
        if self.sharded:
            sharding.whole(network)
            self.wrapped, self.optimizer = network, optimizer
        else:
            self.wrapped, self.optimizer = accelerator.prepare(network, optimizer)
        self.network: ActorCritic = accelerator.unwrap_model(self.wrapped)

    def let_go(self) -> None:
        """Let go of DDP before the processes part: where its reducer holds the group last, a process may wait for ever
        for a thread of gloo, which waits for Python."""
        self.wrapped = self.network
        self.accelerator.free_memory()
        gc.collect()

    def weights(self, gathered: bool = False) -> dict[str, Tensor]:
        """This process's part of the network's state as it is learnt: whole tensors, and masters where there are some.
        Unless the network is split, or with `gathered`, rank 0's part is all. Every process must call it."""
        state = sharding.own_state(self.network, gathered)
        if self.masters is not None:
            for name, parameter in self.network.named_parameters(remove_duplicate=False):
                if name in state:
                    state[name] = self.masters.of.get(parameter, state[name])
        return state

    def moments(self) -> dict[str, Any]:
        """This process's part of the optimizer's state, as `weights`."""
        return sharding.own_moments(self.network, self.optimizer)

    # --- scoring and updates --------------------------------------------------------------------------------------

    @property
    def updates_per_step(self) -> int:
        return self.config.passes // self.config.gradient_accumulation_steps * self.config.num_iterations

    @property
    def scores_first(self) -> bool:
        """Whether all tokens of a step go through a pass before its credit. With one update a step and no critic the
        policy's is left out: its log-probabilities are those of the update's own forward pass, so the ratio is 1 by
        definition."""
        method = self.method
        behind = self.updates_per_step > 1 or self.config.score_after_update
        return method.uses_critic or behind or method.beta > 0 or self.reference is not None

    @torch.no_grad()
    def score(self, rollouts: Rollouts, micros: list[Micro]) -> None:
        """Old log-probabilities, values and reference log-probabilities, where they are needed."""
        if self.method.uses_critic or self.updates_per_step > 1 or self.method.kl_in == "reward" and self.method.beta:
            # Where one pass takes the whole step, and learning asks for no other mode, the update goes on from it.
            config = self.config
            both = self.updates_per_step == len(micros) == self.accelerator.num_processes == 1
            both = both and not (config.gradient_checkpointing or config.dropout)
            scores = self.forward_all(self._begun if both else self.network, micros, rollouts)
            # Tokens of a tree that teach nothing go through no pass; the sampler's numbers stand for them.
            unscored = scores.logprobs.isnan()
            rollouts.old_logprobs = torch.where(unscored, rollouts.sampled_logprobs, scores.logprobs)
            rollouts.values = scores.values
        if self.reference is not None:
            rollouts.ref_logprobs = self.forward_all(self.reference, micros, rollouts).logprobs
        elif self.method.beta > 0:
            with reference_context(self.network.model):
                rollouts.ref_logprobs = self.forward_all(self.network, micros, rollouts).logprobs

    def _begun(self, *inputs: Any) -> Scores:
        """A pass whose graph is kept for the update."""
        with torch.enable_grad():
            scores = self.wrapped(*inputs)
        self.begun = inputs[1], scores
        return Scores(*(None if part is None else part.detach() for part in scores))

    @torch.no_grad()
    def score_engine(self, rollouts: Rollouts, prompts: Prompts, step: int) -> None:
        """Put the network's own log-probabilities and entropies in the place of those of the engine that drew the
        tokens, and what weighs for the difference beside them. Methods read the former: the two never mix."""
        scores = self.forward_all(
            self.network, micro_batches(self.network.model, self.config, rollouts, prompts, step), rollouts
        )
        rollouts.engine_logprobs = rollouts.sampled_logprobs
        rollouts.sampled_logprobs, rollouts.entropy = scores.logprobs, scores.entropy
        config = self.config
        if config.vllm_importance_sampling_correction:
            rollouts.engine_weights = losses.importance_weights(
                rollouts.sampled_logprobs, rollouts.engine_logprobs, rollouts.mask,
                config.vllm_importance_sampling_mode, config.vllm_importance_sampling_clip_max,
                config.vllm_importance_sampling_clip_min,
            )  # fmt: skip

    @torch.no_grad()
    def forward_all(self, network: Callable[..., Scores], micros: list[Micro], rollouts: Rollouts) -> Scores:
        """A pass without gradient over all micro-batches, put back into [B, T]; NaN at tokens that no pass scores."""
        everything = Scores(*(torch.where(rollouts.mask, torch.nan, 0.0) for _ in range(3)))
        for micro in micros:
            for whole, part in zip(everything, network(*micro.inputs), strict=True):
                if part is not None:
                    micro.put(part, whole)
        return everything if self.network.value_head is not None else everything._replace(values=None)

    def update(self, rollouts: Rollouts, credit: Credit, micros: list[Micro], step: int) -> dict[str, float]:
        """All gradient steps of this step. Returns averages over them."""
        factor = self.config.learning_rate_factor(step)
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * factor
        self.last_pass = torch.where(rollouts.mask, torch.nan, 0.0)
        every = self.config.gradient_accumulation_steps
        batches = [micros[i : i + every] for i in range(0, len(micros), every)]
        totals: dict[str, list[float]] = {}
        for number, batch in enumerate(batches * self.config.num_iterations):
            for name, value in self.update_once(rollouts, credit, batch, step, number).items():
                totals.setdefault(name, []).append(value)
        return {name: sum(values) / len(values) for name, values in totals.items()} | {
            "learning_rate": self.peak_rates[0] * factor
        }

    def update_once(
        self, rollouts: Rollouts, credit: Credit, batch: list[Micro], step: int, number: int
    ) -> dict[str, float]:
        """One gradient step over `batch`, whose micro-batches are parts of one loss. No step where they have nothing to
        teach: weight decay and old moments would move the weights all the same. `number`: of the update in its step."""
        method, stats = self.method, []
        items = self.items(credit.loss_mask, batch, method.loss_type)
        normalizer, value_normalizer = items.clamp(min=1), None
        if credit.value_mask is not None:
            states = self.items(credit.value_mask, batch, "token-mean")
            value_normalizer, items = states.clamp(min=1), items + states
        for i, micro in enumerate(batch):
            with self.syncing(i + 1 == len(batch)), self.learning(step, number, i):
                begun, self.begun = self.begun, None
                again = begun is None or begun[0] is not micro.ids
                scores = self.wrapped(*micro.inputs) if again else begun[1]
                micro.put(scores.logprobs.detach(), self.last_pass)
                loss, numbers = self.loss(scores, rollouts, credit, micro, normalizer, value_normalizer)
                # Data-parallel training averages gradients over processes; the normalizers are global, so undo it.
                self.accelerator.backward(loss * self.accelerator.num_processes)
            # DDP exchanges what has gathered in the network's own gradients, with the last pass.
            if self.masters is not None and (i + 1 == len(batch) or self.accelerator.num_processes == 1):
                self.masters.take_gradients()
            stats.append(numbers)
        stats = everyone(stats)
        warming = step <= getattr(method, "critic_warmup_steps", 0)
        with sharding.split(self.network):
            if warming:
                for parameter in self.policy_parameters:
                    parameter.grad = None
            learnt = [p for group in self.optimizer.param_groups for p in group["params"]]
            norm = nn.utils.clip_grad_norm_(learnt, self.config.max_grad_norm or float("inf"))
            norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
            if norm == norm and norm != float("inf"):
                if items > 0:
                    self.optimizer.step()
                    if self.masters is not None:
                        self.masters.give_back()
            else:
                log.warning("step %d: the gradient is not finite; this update was skipped", step)
            self.optimizer.zero_grad()
        merged = {name: merge(name, [s[name] for s in stats]) for name in stats[0]}
        return merged | {"grad_norm": norm, "skipped_updates": float(not (norm == norm and norm != float("inf")))}

    @contextlib.contextmanager
    def learning(self, *name: int) -> Iterator[None]:
        """Training mode, from a pass to the end of its backward pass, for what needs it: gradient checkpointing, with
        which layers keep their inputs alone and compute the rest again, and adapters with dropout. What these drop is
        drawn from the random stream called `name`, on each process its own; there is no other dropout to wake."""
        config, device = self.config, self.accelerator.device
        if config.gradient_checkpointing or config.dropout:
            self.network.train()
        with contextlib.ExitStack() as stack:
            if config.dropout:
                stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
                stream = np.random.SeedSequence((config.seed, *name, self.accelerator.process_index))
                torch.manual_seed(int(stream.generate_state(1, np.uint64)[0]))
            yield
        if config.gradient_checkpointing or config.dropout:
            self.network.eval()

    def syncing(self, last: bool) -> contextlib.AbstractContextManager:
        """Gradients are exchanged with the last of the micro-batches that make one update."""
        if self.sharded:
            self.network.set_requires_gradient_sync(last)
        elif not last:
            return self.accelerator.no_sync(self.wrapped)
        return contextlib.nullcontext()

    def loss(
        self,
        scores: Scores,
        rollouts: Rollouts,
        credit: Credit,
        micro: Micro,
        normalizer: Tensor,
        value_normalizer: Tensor | None,
    ) -> tuple[Tensor, dict[str, Number]]:
        """The loss of one micro-batch, and numbers about it."""
        method = self.method
        if rollouts.old_logprobs is None:  # one update a step: the old policy is this one
            old = scores.logprobs.detach()
        else:
            old = micro.cut(rollouts.old_logprobs)
        loss_mask = micro.cut(credit.loss_mask) & micro.mask
        loss, stats = losses.policy_loss(
            scores.logprobs,
            old,
            micro.cut(credit.advantages),
            loss_mask,
            level=method.importance_sampling_level,
            segment_ids=micro.cut(credit.segment_ids),
            epsilon=method.epsilon,
            epsilon_high=method.epsilon_high,
            delta=method.delta,
            loss_type=method.loss_type,
            normalizer=normalizer,
            max_completion_length=self.config.max_completion_length,
            weights=None if rollouts.engine_weights is None else micro.cut(rollouts.engine_weights),
        )
        tokens = int(stats.pop("tokens"))
        numbers = {k: (float(v), tokens) for k, v in {"policy_loss": loss.detach(), **stats}.items()}
        if method.beta > 0 and method.kl_in == "loss":
            kl = losses.kl(scores.logprobs, micro.cut(rollouts.ref_logprobs), method.estimator, loss_mask)
            penalty = losses.aggregate(kl, loss_mask, method.loss_type, normalizer, self.config.max_completion_length)
            loss = loss + method.beta * penalty
        if credit.away_logprobs is not None:
            away = losses.divergence_to_keep(scores.logprobs, micro.cut(credit.away_logprobs), loss_mask)
            kept = losses.aggregate(away, loss_mask, method.loss_type, normalizer, self.config.max_completion_length)
            loss = loss - credit.away_coef * kept
            numbers |= {"away_kl": (float(away.detach().sum() / max(1, tokens)), tokens)}
        if credit.value_mask is not None:
            value_loss, value_stats = losses.value_loss(
                scores.values,
                micro.cut(rollouts.values),
                micro.cut(credit.returns),
                micro.cut(credit.value_mask),
                cliprange_value=method.cliprange_value,
                normalizer=value_normalizer,
            )
            loss = loss + method.vf_coef * value_loss
            states = int(value_stats["tokens"])
            numbers |= {"value_loss": (float(value_loss.detach()), states)}
            numbers |= {"value_clip_ratio": (float(value_stats["clip_ratio"]), states)}
        return loss, numbers

    @torch.no_grad()
    def moved(
        self, rollouts: Rollouts, credit: Credit, micros: list[Micro]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """What the updates did to the rollouts' tokens, each [B, T]: (log-probabilities now; importance ratios at the
        method's level; whether that ratio lies beyond the clip range on the side that clips). Without
        `score_after_update`, of the last pass of each row, which the update has made anyway: no log-probabilities, and
        nothing at all where that was the only one."""
        method, new = self.method, self.last_pass
        if self.config.score_after_update:
            new = self.forward_all(self.network, micros, rollouts).logprobs
        elif self.updates_per_step == 1:
            return None, None, None
        level, segment_ids = method.importance_sampling_level, credit.segment_ids
        ratio = losses.log_ratio(new, rollouts.logprobs, rollouts.mask, level, segment_ids).exp()
        high = method.epsilon if method.epsilon_high is None else method.epsilon_high
        clipped = ((ratio > 1 + high) & (credit.advantages > 0)) | (
            (ratio < 1 - method.epsilon) & (credit.advantages < 0)
        )
        return (new if self.config.score_after_update else None), ratio, clipped & credit.loss_mask

    def items(self, mask: Tensor, batch: list[Micro], loss_type: LossType) -> Tensor:
        """What sums are divided by: the tokens, or the completions, of one update over all processes."""
        if self.updates_per_step == 1:  # also of rows that teach nothing and are in no micro-batch
            number = losses.count_items(mask, loss_type)
        else:
            number = sum(losses.count_items(micro.cut(mask) & micro.mask, loss_type) for micro in batch)
        return self.accelerator.reduce(number.float(), "sum")


def merge(name: str, numbers: list[Number]) -> float:
    """One number from those of an update's micro-batches: parts of a loss add up, extremes stay, means weigh as much as
    they have tokens."""
    if name.endswith("_loss"):
        return sum(value for value, _ in numbers)
    numbers = [(value, tokens) for value, tokens in numbers if tokens] or [(value, 1) for value, _ in numbers]
    if name.endswith(("/max", "/min")):
        return (max if name.endswith("/max") else min)(value for value, _ in numbers)
    return sum(value * tokens for value, tokens in numbers) / sum(tokens for _, tokens in numbers)
