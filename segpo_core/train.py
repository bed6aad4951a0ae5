"""The training loop: collect, score, credit, update, record; again.

Every random stream is named by the seed and the step, micro-batches of a step are cut once, and dropout is off
throughout, so a run that goes on from a checkpoint repeats, bit for bit on a CPU, the run that was never interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, set_seed
from peft import PeftModel
from torch import Tensor

from segpo_core import checkpoint, evaluate, losses
from segpo_core.algos.base import LossType
from segpo_core.chains import RewardOf
from segpo_core.config import TrainConfig
from segpo_core.contrasts import contrasts
from segpo_core.critic import ActorCritic, Scores
from segpo_core.generate import Sampler
from segpo_core.inputs import Prompts
from segpo_core.packing import can_pack, pack
from segpo_core.policy import (
    eos_token_ids,
    get_tokenizer,
    load_model,
    load_processor,
    make_reference,
    reference_context,
    suppressed_token_ids,
)
from segpo_core.record import Recorder, SchemaError, forget_after, image_digest, read_manifest
from segpo_core.rewards import load_reward
from segpo_core.rows import rollout_rows
from segpo_core.segments import TAGS, count, role_ids
from segpo_core.tasks import load_task
from segpo_core.together import everyone, own_part, whole_batch
from segpo_core.types import Credit, Rollouts

log = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parent.parent

#: A number about a micro-batch, and how many tokens it is about.
Number = tuple[float, int]

#: Ways to run in which no process has all of the weights.
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


@dataclass
class Micro:
    """Some rows of a step's rollouts, as one forward pass takes them. Cut once a step, so that the scoring pass and
    every update see the same shapes: before the first update, ratios are exactly 1."""

    rows: Tensor  #: long [b]
    prompts: dict[str, Tensor]
    ids: Tensor  #: long [b, t], t the longest of these rows
    mask: Tensor  #: bool [b, t], tokens that the pass scores
    predictor: Tensor | None = None  #: packed trees: long [N], see packing.py; `prompts` is then all of the inputs

    @property
    def inputs(self) -> tuple:
        """Arguments of the network."""
        return self.prompts, self.ids, self.mask, self.predictor

    def cut(self, values: Tensor) -> Tensor:
        """These rows of a [B, T] tensor, as [b, t]."""
        return values[self.rows, : self.ids.shape[1]]


class Trainer:
    """One training run.

    Args:
        config: what to do.
        task: problems, instead of the one that `config.dataset` names.
        on_step: called on the main process after every step with (step, metrics, rollouts, credit); for step 0, the
            evaluation before training, the last two are None.

    Raises:
        ValueError: a setting, a file or the run directory is not usable; said before any work starts.
    """

    def __init__(
        self,
        config: TrainConfig,
        task: Any = None,
        on_step: Callable[[int, dict[str, float], Rollouts | None, Credit | None], None] | None = None,
    ):
        self.config, self.method, self.on_step = config, config.algo, on_step
        self.directory = Path(config.output_dir)
        self.accelerator = Accelerator(
            cpu=config.cpu,
            log_with=None if config.report_to == "none" else config.report_to,
            project_dir=str(self.directory / "trackers"),
            # A batch without an image, or a frozen tower, leaves parameters without a gradient.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        if self.accelerator.distributed_type in SHARDED:
            raise ValueError(
                f"{self.accelerator.distributed_type.value} splits the weights over the processes, but sampling and "
                "checkpoints here need them whole: launch with configs/accelerate/ddp.yaml; for a large model, use LoRA"
            )
        self.world, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        self.prompts_per_step = config.prompts_per_step(self.world)
        start_from = self._claim_directory()
        self.accelerator.wait_for_everyone()  # no process writes before all have looked
        set_seed(config.seed)
        self.task = task or load_task(config.dataset, **config.dataset_args)
        self.reward_funcs = [load_reward(spec) for spec in config.reward_funcs] or self.task.reward_funcs
        if config.reward_weights is not None and len(config.reward_weights) != len(self.reward_funcs):
            raise ValueError(
                f"reward_weights has {len(config.reward_weights)} numbers for {len(self.reward_funcs)} reward functions"
            )
        self._load(start_from)
        self.recorder = Recorder(self.directory, self.rank)
        self.step = 0
        if start_from is not None:
            self.step = checkpoint.load(start_from, self.network, self.optimizer)
            if self.accelerator.is_main_process:
                forget_after(self.directory, self.step)
        elif self.accelerator.is_main_process:
            self.recorder.start(
                config.to_dict(),
                model=self._describe_model(),
                method=self.method.name,
                method_title=self.method.title,
                seed=config.seed,
                processes=self.world,
                device=torch.cuda.get_device_name() if self.accelerator.device.type == "cuda" else "cpu",
            )
        if config.report_to != "none":
            self.accelerator.init_trackers("segpo", config={k: str(v) for k, v in config.to_dict().items()})
        self.accelerator.wait_for_everyone()
        self.stopping = False
        self.last: tuple[Rollouts | None, Credit | None] = (None, None)

    # --- setting up ---------------------------------------------------------------------------------------------

    def _claim_directory(self) -> Path | None:
        """The checkpoint to go on from, or None for a new run.

        Raises:
            ValueError, FileNotFoundError: the directory holds another run, or nothing to resume.
        """
        manifest = self.directory / "run.json"
        if self.config.resume:
            read_manifest(self.directory)
            return checkpoint.latest(self.directory / "checkpoints")
        if manifest.exists():
            raise ValueError(
                f"{self.directory} already holds a run: resume it (--resume), or name another --output-dir; "
                "nothing in it was touched"
            )
        if self.directory.exists() and any(self.directory.iterdir()):
            raise SchemaError(f"{self.directory} is not empty and is not a run: name another --output-dir")
        return None

    def _load(self, start_from: Path | None) -> None:
        config, device = self.config, self.accelerator.device
        source = find_model(config.model_name_or_path)
        self.processor = load_processor(source)
        dtype = getattr(torch, config.dtype)
        if config.use_peft and start_from is not None:
            model = PeftModel.from_pretrained(load_model(source, dtype), start_from, is_trainable=True).eval()
        else:
            model = load_model(
                start_from or source,
                dtype,
                use_peft=config.use_peft,
                lora_r=config.lora_r,
                lora_alpha=config.lora_alpha,
                lora_target_modules=config.lora_target_modules,
            )
        suppressed = suppressed_token_ids(model, self.processor)
        critic = getattr(self.method, "critic", None)
        network = ActorCritic(model, suppressed, config.temperature, critic)
        self.reference = None
        if self.method.beta > 0 and not config.use_peft:
            origin = model if start_from is None else load_model(source, dtype)
            self.reference = ActorCritic(make_reference(origin), suppressed, config.temperature).to(device)
        rate = config.learning_rate
        critic_rate = getattr(self.method, "critic_learning_rate", None) or (50 * rate if critic == "head" else rate)
        self.optimizer = torch.optim.AdamW(
            network.groups(rate, critic_rate, config.weight_decay), betas=(0.9, config.adam_beta2)
        )
        self.peak_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.network = network.to(device)
        self.wrapped, self.optimizer = self.accelerator.prepare(self.network, self.optimizer)
        self.network = self.accelerator.unwrap_model(self.wrapped)
        self.sampler = Sampler(
            self.network.model,
            get_tokenizer(self.processor),
            eos_token_ids(self.network.model, self.processor),
            suppressed,
            config.temperature,
            config.max_completion_length,
        )

    def _describe_model(self) -> dict[str, Any]:
        model = self.network.model
        trainable = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
        return {
            "name": str(self.config.model_name_or_path),
            "class": type(model).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
            "trainable_parameters": trainable,
        }

    # --- the loop -----------------------------------------------------------------------------------------------

    def run(self) -> Path:
        """Train to `max_steps`, or until Ctrl-C, which ends the step at hand and saves. Returns the run directory."""
        config = self.config
        with self._interruptible():
            if self.step == 0 and config.eval_steps:
                self._publish(0, self.evaluate())
            stopping = False
            while self.step < config.max_steps and not stopping:
                self.step += 1
                metrics = self.train_step()
                stopping = any(everyone([self.stopping]))  # Ctrl-C may reach processes in different steps
                last = self.step == config.max_steps or stopping
                if config.eval_steps and (self.step % config.eval_steps == 0 or last):
                    metrics |= self.evaluate()
                self._publish(self.step, metrics)
                if last or (config.save_steps and self.step % config.save_steps == 0):
                    self.save()
        if self.world > 1:
            # Let go of DDP before the processes part: where its reducer holds the group last, a process may wait for
            # ever for a thread of gloo, which waits for Python.
            self.wrapped = self.network
            self.accelerator.free_memory()
            gc.collect()
        self.accelerator.end_training()
        return self.directory

    def train_step(self) -> dict[str, float]:
        """One step: sample, reward, score, credit, update, record. Returns its metrics, over all processes."""
        clock = Clock()
        examples, first = self.examples()
        prompts = Prompts.build(examples, self.processor, self.network.model.config, self.prompt_limit)
        stream, computed = (self.config.seed, self.step), self.sampler.tokens_computed
        rollouts = self.method.collect(self.sampler, prompts, self.config.num_generations, stream, first)
        self.reward(rollouts, examples)
        self.method.estimate(self.sampler, prompts, rollouts, self.reward_of(examples), stream, first)
        computed = self.sampler.tokens_computed - computed
        clock.lap("sample")
        if rollouts.tree is not None:  # its credit needs no scores, and says which nodes are worth a pass
            credit, everything = self.credit(rollouts, first)
            micros = self.tree_batches(rollouts, prompts, credit)
        else:
            micros = self.micro_batches(rollouts, prompts)
        self.score(rollouts, micros)
        if self.method.uses_contrasts:
            rollouts.perception_contrast, rollouts.reasoning_contrast = contrasts(
                self.network, examples, prompts, rollouts, self.processor, self.method.corruption, stream, first,
                self.config.per_device_train_batch_size, self.method.tags,
            )  # fmt: skip
        clock.lap("score")
        if rollouts.tree is None:
            credit, everything = self.credit(rollouts, first)
        clock.lap("credit")
        metrics = self.update(rollouts, credit, micros)
        clock.lap("update")
        recorded = self.config.record_steps and self.step % self.config.record_steps == 0
        if recorded:
            metrics |= self.record(rollouts, credit, micros, examples, first)
        clock.lap("record")
        whole = whole_batch(rollouts, first)
        metrics |= self.describe(whole, everything)
        times = {f"time/{name}": seconds for name, seconds in clock.laps.items()} | {"time/step": clock.total}
        metrics |= self.averaged(times)
        metrics["time/tokens_per_second"] = int(whole.mask.sum()) / metrics["time/step"]
        computed = sum(everyone([computed]))
        kept = max(1, int(everything.loss_mask.sum()))  # the cost of what is learnt from: all that was sampled
        metrics |= {"tokens_computed": computed, "tokens_computed_per_token_kept": computed / kept}
        self.last = rollouts, credit
        return metrics

    # --- the parts of a step ------------------------------------------------------------------------------------

    def examples(self) -> tuple[list[dict], int]:
        """This process's problems of the step, and the number of its first one over all processes."""
        first = self.rank * self.prompts_per_step
        begin = (self.step - 1) * self.prompts_per_step * self.world + first
        # Each seed trains on its own stretch of an unlimited split, and in its own order on a limited one.
        offset = self.config.seed * 1_000_003
        return [self.task.train(begin + i + offset) for i in range(self.prompts_per_step)], first

    @property
    def prompt_limit(self) -> int | None:
        return self.config.max_prompt_length

    def reward(self, rollouts: Rollouts, examples: list[dict]) -> None:
        """Fill in rewards, roles and ground truth."""
        total, parts = evaluate.reward(self.task, self.reward_funcs, self.config.reward_weights, examples, rollouts)
        rollouts.rewards = torch.tensor(total, dtype=torch.float32, device=rollouts.mask.device)
        rollouts.reward_parts = parts
        rollouts.truth = evaluate.inspect(self.task, examples, rollouts)
        tags = getattr(self.method, "tags", TAGS)
        rollouts.role_ids, rollouts.well_formed = role_ids(rollouts.pieces, rollouts.mask, tags)

    def reward_of(self, examples: list[dict]) -> RewardOf:
        """The rewards of further texts, for `Method.estimate`."""

        def rewards(groups: list[int], texts: list[str]) -> list[float]:
            total, _ = evaluate.reward_texts(self.reward_funcs, self.config.reward_weights, examples, groups, texts)
            return [float("nan") if value is None else value for value in total]

        return rewards

    def credit(self, own: Rollouts, first: int) -> tuple[Credit, Credit]:
        """The method's credit, less the tokens that the run leaves out of its loss: (of this process's own rollouts, of
        those of all processes)."""
        rollouts = whole_batch(own, first)
        credit = self.method.credit(rollouts)
        if self.config.mask_truncated_completions:
            credit = without_cut(credit, rollouts)
        return own_part(credit, own), credit

    def tree_batches(self, rollouts: Rollouts, prompts: Prompts, credit: Credit) -> list[Micro]:
        """Cut a step's trees into forward passes, of rows that teach something. Neighbours stay together: they share
        what is before them. Every process makes the same number of passes, however large its trees became."""
        packing, micros = can_pack(self.network.model, prompts), []
        taught = credit.loss_mask.any(dim=1).nonzero()[:, 0]
        for rows in taught.tensor_split(self.config.passes):
            targets = credit.loss_mask
            if len(rows) == 0:  # nothing is left for this pass: one without a token
                rows, targets = torch.zeros(1, dtype=torch.long, device=taught.device), torch.zeros_like(targets)
            if packing:
                packed = pack(self.network.model, prompts, rollouts, targets, rows)
                micros.append(Micro(packed.rows, packed.inputs, packed.ids, packed.mask, packed.predictor))
            else:
                real = rollouts.mask & targets.any()
                micros.append(self.micro(rows, rollouts, prompts, real))
        return micros

    def micro(self, rows: Tensor, rollouts: Rollouts, prompts: Prompts, mask: Tensor) -> Micro:
        """Some rows for one pass, cut to the longest of them."""
        longest = int(rollouts.lengths[rows].max())
        batch = prompts.batch(rollouts.group[rows], rows.device)
        return Micro(rows, batch, rollouts.completion_ids[rows, :longest], mask[rows, :longest])

    def micro_batches(self, rollouts: Rollouts, prompts: Prompts) -> list[Micro]:
        """Cut a step's rows into forward passes. Several updates a step take them in random order, so that no update
        sees whole groups only."""
        order = torch.arange(len(rollouts))
        if self.config.passes > self.config.gradient_accumulation_steps:
            generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
            order = torch.randperm(len(rollouts), generator=generator)
        parts = order.to(rollouts.mask.device).split(self.config.per_device_train_batch_size)
        return [self.micro(rows, rollouts, prompts, rollouts.mask) for rows in parts]

    @property
    def updates_per_step(self) -> int:
        return self.config.passes // self.config.gradient_accumulation_steps * self.config.num_iterations

    @torch.no_grad()
    def score(self, rollouts: Rollouts, micros: list[Micro]) -> None:
        """Old log-probabilities, values and reference log-probabilities, where they are needed.

        With one update a step and no critic the policy's pass is left out: its log-probabilities are those of the
        update's own forward pass, so the ratio is 1 by definition.
        """
        if self.method.uses_critic or self.updates_per_step > 1 or self.method.kl_in == "reward" and self.method.beta:
            scores = self.forward_all(self.network, micros, rollouts)
            # Tokens of a tree that teach nothing go through no pass; the sampler's numbers stand for them.
            unscored = scores.logprobs.isnan()
            rollouts.old_logprobs = torch.where(unscored, rollouts.sampled_logprobs, scores.logprobs)
            rollouts.values = scores.values
        if self.reference is not None:
            rollouts.ref_logprobs = self.forward_all(self.reference, micros, rollouts).logprobs
        elif self.method.beta > 0:
            with reference_context(self.network.model):
                rollouts.ref_logprobs = self.forward_all(self.network, micros, rollouts).logprobs

    @torch.no_grad()
    def forward_all(self, network: ActorCritic, micros: list[Micro], rollouts: Rollouts) -> Scores:
        """A pass without gradient over all micro-batches, put back into [B, T]; NaN at tokens that no pass scores."""
        everything = Scores(*(torch.where(rollouts.mask, torch.nan, 0.0) for _ in range(3)))
        for micro in micros:
            row, column = micro.mask.nonzero().unbind(1)
            for whole, part in zip(everything, network(*micro.inputs), strict=True):
                if part is not None:
                    whole[micro.rows[row], column] = part[micro.mask]
        return everything if network.value_head is not None else everything._replace(values=None)

    def update(self, rollouts: Rollouts, credit: Credit, micros: list[Micro]) -> dict[str, float]:
        """All gradient steps of this step. Returns averages over them."""
        factor = self.config.learning_rate_factor(self.step)
        warming = self.step <= getattr(self.method, "critic_warmup_steps", 0)
        for i, (group, peak) in enumerate(zip(self.optimizer.param_groups, self.peak_rates, strict=True)):
            group["lr"] = 0.0 if warming and i == 0 else peak * factor
        every = self.config.gradient_accumulation_steps
        batches = [micros[i : i + every] for i in range(0, len(micros), every)]
        totals: dict[str, list[float]] = {}
        for _ in range(self.config.num_iterations):
            for batch in batches:
                for name, value in self.update_once(rollouts, credit, batch).items():
                    totals.setdefault(name, []).append(value)
        return {name: sum(values) / len(values) for name, values in totals.items()} | {
            "learning_rate": self.peak_rates[0] * factor
        }

    def update_once(self, rollouts: Rollouts, credit: Credit, batch: list[Micro]) -> dict[str, float]:
        """One gradient step over `batch`, whose micro-batches are parts of one loss."""
        method, stats = self.method, []
        normalizer = self.normalizer(credit.loss_mask, batch, method.loss_type)
        value_normalizer = None
        if credit.value_mask is not None:
            value_normalizer = self.normalizer(credit.value_mask, batch, "token-mean")
        for i, micro in enumerate(batch):
            together = i + 1 == len(batch)
            with contextlib.nullcontext() if together else self.accelerator.no_sync(self.wrapped):
                scores = self.wrapped(*micro.inputs)
                loss, numbers = self.loss(scores, rollouts, credit, micro, normalizer, value_normalizer)
                # Data-parallel training averages gradients over processes; the normalizers are global, so undo it.
                self.accelerator.backward(loss * self.world)
            stats.append(numbers)
        stats = everyone(stats)
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.config.max_grad_norm or float("inf"))
        norm = float(norm)
        if norm == norm and norm != float("inf"):
            self.optimizer.step()
        else:
            log.warning("step %d: the gradient is not finite; this update was skipped", self.step)
        self.optimizer.zero_grad()
        merged = {name: merge(name, [s[name] for s in stats]) for name in stats[0]}
        return merged | {"grad_norm": norm, "skipped_updates": float(not (norm == norm and norm != float("inf")))}

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
        )
        tokens = int(stats.pop("tokens"))
        numbers = {k: (float(v), tokens) for k, v in {"policy_loss": loss.detach(), **stats}.items()}
        if method.beta > 0 and method.kl_in == "loss":
            kl = losses.kl(scores.logprobs, micro.cut(rollouts.ref_logprobs), method.kl_estimator, loss_mask)
            penalty = losses.aggregate(kl, loss_mask, method.loss_type, normalizer, self.config.max_completion_length)
            loss = loss + method.beta * penalty
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

    def normalizer(self, mask: Tensor, batch: list[Micro], loss_type: LossType) -> Tensor:
        """What sums are divided by: the tokens, or the completions, of one update over all processes."""
        number = sum(losses.count_items(micro.cut(mask) & micro.mask, loss_type) for micro in batch)
        return self.accelerator.reduce(number.float(), "sum").clamp(min=1)

    @torch.no_grad()
    def record(
        self, rollouts: Rollouts, credit: Credit, micros: list[Micro], examples: list[dict], first: int
    ) -> dict[str, float]:
        """Write the rollouts, with what the updates did to them."""
        method = self.method
        new = self.forward_all(self.network, micros, rollouts).logprobs
        old, mask = rollouts.logprobs, rollouts.mask
        ratio = losses.log_ratio(new, old, mask, method.importance_sampling_level, credit.segment_ids).exp()
        high = method.epsilon if method.epsilon_high is None else method.epsilon_high
        clipped = ((ratio > 1 + high) & (credit.advantages > 0)) | (
            (ratio < 1 - method.epsilon) & (credit.advantages < 0)
        )
        digests, images = [], {}
        for example in examples:
            names = [image_digest(image) for image in example.get("images") or []]
            images |= dict(zip(names, example.get("images") or [], strict=True))
            digests.append(names)
        rows = rollout_rows(
            rollouts,
            credit,
            examples,
            digests,
            step=self.step,
            method=method.name,
            first_group=first,
            new_logprobs=new,
            ratio=ratio,
            clipped=clipped & credit.loss_mask,
        )
        self.recorder.rollouts(self.step, rows, images)
        moved = losses.kl(new, old, "k3")[mask]  # how far the step's updates moved the policy on its own tokens
        moved = moved[~moved.isnan()]
        parts = everyone([(float(moved.sum()), len(moved), self.recorder.failures)])
        total, tokens, failures = (sum(column) for column in zip(*parts, strict=True))
        return {"step_kl": total / tokens if tokens else float("nan"), "record/failures": float(failures)}

    def describe(self, rollouts: Rollouts, credit: Credit) -> dict[str, float]:
        """Numbers about what was sampled and credited."""
        mask, rewards = rollouts.mask, rollouts.rewards
        advantages = credit.advantages[credit.loss_mask]
        groups = [rewards[rollouts.group == g] for g in rollouts.group.unique()]
        share = evaluate.accuracies(rollouts.truth, rewards.tolist())
        numbers = {f"train/{name}": value for name, value in share.items()} | {
            "reward": float(rewards.mean()),
            "reward_std": float(rewards.std(correction=0)),
            "groups_without_signal": sum(float(g.amax() == g.amin()) for g in groups) / len(groups),
            "entropy": float(rollouts.entropy[mask].mean()),
            "completion_length": float(rollouts.lengths.float().mean()),
            "truncated": float((~rollouts.finished).float().mean()),
            "segments": float(count(credit.segment_ids).float().mean()),
            "advantage_std": float(advantages.std(correction=0)) if len(advantages) else 0.0,
        }
        if rollouts.ref_logprobs is not None:
            numbers["kl"] = float(losses.kl(rollouts.logprobs, rollouts.ref_logprobs, "k3")[mask].nanmean())
        if rollouts.old_logprobs is not None:
            # Sampler and learner are the same weights by two ways; what they differ by is rounding.
            numbers["sampling_logp_difference"] = float(
                (rollouts.old_logprobs - rollouts.sampled_logprobs)[mask].abs().max()
            )
        if rollouts.values is not None and credit.value_mask is not None:
            numbers["explained_variance"] = float(
                losses.explained_variance(rollouts.values, credit.returns, credit.value_mask)
            )
            numbers["value_mean"] = float(rollouts.values[credit.value_mask].mean())
        return numbers | credit.metrics

    def evaluate(self) -> dict[str, float]:
        """Held-out accuracy, the work shared by the processes."""
        config = self.config
        return evaluate.evaluate(
            self.sampler, self.task, self.processor, self.reward_funcs, config.reward_weights, config.eval_size,
            config.num_generations_eval, shard=(self.rank, self.world), max_prompt_length=self.prompt_limit,
            everyone=everyone,
        )  # fmt: skip

    # --- housekeeping -------------------------------------------------------------------------------------------

    def averaged(self, metrics: dict[str, float]) -> dict[str, float]:
        """The mean over processes, name by name; the same names in each."""
        if self.world == 1:
            return metrics
        names = sorted(metrics)
        values = torch.tensor([metrics[n] for n in names], dtype=torch.float64, device=self.accelerator.device)
        return dict(zip(names, self.accelerator.reduce(values, "mean").tolist(), strict=True))

    def save(self) -> None:
        """Write a checkpoint of the current step."""
        if self.accelerator.is_main_process:
            checkpoint.save(
                self.directory / "checkpoints", self.step, self.network, self.optimizer, self.processor,
                {"method": self.method.name, "seed": self.config.seed, "model": str(self.config.model_name_or_path)},
                self.config.save_total_limit,
            )  # fmt: skip
        self.accelerator.wait_for_everyone()

    def _publish(self, step: int, metrics: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            self.recorder.metrics(step, metrics)
        if self.config.report_to != "none":
            self.accelerator.log(metrics, step=step)
        if self.on_step and self.accelerator.is_main_process:
            self.on_step(step, metrics, *self.last)

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """The first Ctrl-C ends the run after the step at hand; a second one at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(signum: int, frame: Any) -> None:
            if self.stopping:
                raise KeyboardInterrupt
            self.stopping = True

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


class Clock:
    """Seconds spent between laps."""

    def __init__(self) -> None:
        self.begin = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now

    @property
    def total(self) -> float:
        return time.perf_counter() - self.begin


def without_cut(credit: Credit, rollouts: Rollouts) -> Credit:
    """The credit, with completions that were cut left out of the loss. Their advantages stay: they count in their
    group. Of a tree's leaf, only what leads to no other leaf is left out."""
    cut = rollouts.mask & ~rollouts.finished[:, None]
    if rollouts.node_ids is not None:
        cut &= rollouts.node_ids == rollouts.node_ids.gather(1, rollouts.lengths[:, None] - 1)
    return dataclasses.replace(credit, loss_mask=credit.loss_mask & ~cut)


def merge(name: str, numbers: list[Number]) -> float:
    """One number from those of an update's micro-batches: parts of a loss add up, extremes stay, means weigh as much as
    they have tokens."""
    if name.endswith("_loss"):
        return sum(value for value, _ in numbers)
    numbers = [(value, tokens) for value, tokens in numbers if tokens] or [(value, 1) for value, _ in numbers]
    if name.endswith(("/max", "/min")):
        return (max if name.endswith("/max") else min)(value for value, _ in numbers)
    return sum(value * tokens for value, tokens in numbers) / sum(tokens for _, tokens in numbers)


def find_model(name: str) -> str:
    """A model's directory as given, or, if it is not there, relative to the toolkit's own checkout (data/tiny-vlm)."""
    own = ROOT / name
    return str(own) if not Path(name).exists() and own.exists() else name


def train(config: TrainConfig, **kwargs: Any) -> Path:
    """Train as `config` says and return the run directory. Further arguments as `Trainer`."""
    return Trainer(config, **kwargs).run()
