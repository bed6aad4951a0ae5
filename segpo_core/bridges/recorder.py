"""A run of TRL's, written as a run directory while it trains, so that the app and every view follow it.

    recorder = RunRecorder("runs/mine").attach(trainer)   # any GRPOTrainer or RLOOTrainer of TRL 1.16
    trainer.train()

TRL's callbacks see no rollouts, so the recorder stands in front of four methods of the one trainer: two that make a
generation batch and two that compute the loss, where log-probabilities and entropies pass by anyway. No pass over the
model is added.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.image_utils import load_image

from segpo_core.bridges.trl_batch import Asked, Generation, generation, on_cpu, pictures
from segpo_core.record.rows import rollout_rows
from segpo_core.record.store import Recorder, forget_after, image_digest, images_of
from segpo_core.segments import sequence_level
from segpo_core.training.diagnostics import describe
from segpo_core.types import Credit

log = logging.getLogger(__name__)

#: TRL's `loss_type` -> what it does with the losses of tokens, in our words.
LOSS_TYPES = {
    "dapo": "token-mean", "bnpo": "token-mean", "grpo": "seq-mean-token-mean", "luspo": "seq-mean-token-sum",
    "dr_grpo": "seq-mean-token-sum-norm",
}  # fmt: skip
#: TRL's name of a number -> ours, under which the views look for it. Both are written.
METRICS = {
    "loss": "policy_loss", "completions/mean_length": "completion_length", "completions/clipped_ratio": "truncated",
    "frac_reward_zero_std": "groups_without_signal", "clip_ratio/region_mean": "clip_ratio/region",
    "step_time": "time/step",
}  # fmt: skip
_METHODS = (
    "_calculate_rewards",
    "_generate_and_score_completions",
    "_compute_loss",
    "_get_per_token_logps_and_entropies",
)
_SETTINGS = (
    "learning_rate", "num_generations", "per_device_train_batch_size", "gradient_accumulation_steps",
    "steps_per_generation", "num_iterations", "max_completion_length", "temperature", "epsilon", "epsilon_high",
    "delta", "beta", "seed", "lr_scheduler_type", "scale_rewards", "mask_truncated_completions",
)  # fmt: skip
#: Columns that TRL has not measured: not a list of nulls, but none.
_MAYBE = ("sampled_logprobs", "old_logprobs", "entropy", "ref_logprobs")
#: Goes with each row through TRL's shuffling and splitting: (number of its generation batch, row).
ROW = "recorded_row"


@dataclass
class _Batch:
    """A generation batch whose loss is still to come."""

    step: int
    generation: Generation
    credit: Credit
    completions: list[Any]
    unseen: Tensor  #: bool [B], rows that have not been through the loss yet


class RunRecorder(TrainerCallback):
    """Records a trainer's run.

    Args:
        directory: the run's; must not hold another run, unless training resumes from a checkpoint.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self.trainer: Any = None
        self.recorder: Recorder | None = None
        self._asked: Asked | None = None
        self._rows: Tensor | None = None  # of the micro-batch whose loss is being computed
        self._batches: dict[int, _Batch] = {}
        self._made = 0  # generation batches so far
        self._written: tuple[int, list[dict[str, Any]]] = (-1, [])  # the newest step's rows
        self._metrics: tuple[int, dict[str, float]] = (-1, {})

    def attach(self, trainer: Any) -> RunRecorder:
        """Record what this trainer does from now on. Returns itself.

        Raises:
            ValueError: the recorder has a trainer already, or the trainer is none of TRL's that sample completions.
        """
        if self.trainer is not None:
            raise ValueError(f"this recorder writes {self.directory} for another trainer: make a new one")
        if missing := [name for name in _METHODS if not hasattr(trainer, name)]:
            raise ValueError(
                f"{type(trainer).__name__} has no {missing[0]}: the recorder is made for GRPOTrainer and RLOOTrainer "
                f"of TRL 1.16, this is TRL {metadata.version('trl')}"
            )
        self.trainer = trainer
        rewards, generate, loss, logprobs = (getattr(trainer, name) for name in _METHODS)

        def calculate_rewards(inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
            result = rewards(inputs, prompts, completions, completion_ids_list)
            self._asked = Asked(inputs, completions, completion_ids_list, result)
            return result

        def generate_and_score(inputs: Any) -> dict[str, Any]:
            output = generate(inputs)
            if trainer.model.training:
                with self._never_stopping():
                    self._sampled(output)
            return output

        def compute_loss(model: Any, inputs: dict[str, Any]) -> Tensor:
            self._rows = inputs.get(ROW)
            try:
                return loss(model, inputs)
            finally:
                self._rows = None

        def per_token(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
            result = logprobs(*args, **kwargs)
            if self._rows is not None:
                with self._never_stopping():
                    self._seen(self._rows, result[0], result[1])
            return result

        made = (calculate_rewards, generate_and_score, compute_loss, per_token)
        for name, function in zip(_METHODS, made, strict=True):
            setattr(trainer, name, function)
        trainer.add_callback(self)
        return self

    # --- what the trainer does ---------------------------------------------------------------------------------------

    def _sampled(self, output: dict[str, Any]) -> None:
        """A generation batch is there."""
        trainer, step = self.trainer, self.trainer.state.global_step + 1
        if self._batches and next(iter(self._batches.values())).step != step:
            self._flush()
        own = getattr(trainer, "last", None)  # a trainer with our credit has it all
        if own is None:
            batch = generation(trainer, self._asked, output)
            loss_mask = batch.chosen & output["completion_mask"].bool()
            advantages = output["advantages"] if output["advantages"].dim() == 2 else output["advantages"][:, None]
            credit = Credit(
                advantages=torch.where(batch.rollouts.mask, advantages, 0.0),
                segment_ids=sequence_level(batch.rollouts.mask),
                loss_mask=loss_mask & ~batch.rollouts.rewards.isnan()[:, None],
                rule="the whole completion",
            )
        else:
            batch, credit = own
        n = len(batch.rollouts)
        fixed = Generation(on_cpu(batch.rollouts), batch.examples, batch.first, batch.samples, batch.chosen.cpu())
        self._batches[self._made] = _Batch(
            step, fixed, on_cpu(credit), list(self._asked.completions), torch.full((n,), own is None)
        )
        device = output["completion_ids"].device
        output[ROW] = torch.stack([torch.full((n,), self._made, device=device), torch.arange(n, device=device)], dim=1)
        self._made += 1

    def _seen(self, rows: Tensor, logprobs: Tensor, entropy: Tensor | None) -> None:
        """Some rows are in the loss. Before the first update on them their log-probabilities are the old policy's."""
        for column, (number, row) in enumerate(rows.tolist()):
            batch = self._batches.get(number)
            if batch is None or not batch.unseen[row]:
                continue
            batch.unseen[row] = False
            rollouts = batch.generation.rollouts
            at = rollouts.mask[row]
            if rollouts.old_logprobs is None:
                rollouts.old_logprobs = torch.where(rollouts.mask, torch.nan, 0.0)
            if rollouts.old_logprobs[row][at].isnan().all():
                rollouts.old_logprobs[row] = torch.where(at, logprobs[column].detach().float().cpu(), 0.0)
            if entropy is not None:
                rollouts.entropy[row] = torch.where(at, entropy[column].detach().float().cpu(), 0.0)

    def _flush(self) -> None:
        """Write the batches that were sampled; those of one step into one file."""
        batches, self._batches = list(self._batches.values()), {}
        for batch in batches:
            rows, images = self._table(batch)
            step, before = self._written
            groups = 1 + max((row["group"] for row in before), default=-1)
            if step == batch.step:
                for row in rows:
                    row["group"] += groups
                rows = before + rows
            self._written = batch.step, rows
            self.recorder.rollouts(batch.step, rows, images)
            if self.trainer.accelerator.num_processes == 1:
                numbers = describe(batch.generation.rollouts, batch.credit)
                self._publish(batch.step, {k: v for k, v in numbers.items() if v == v})

    def _table(self, batch: _Batch) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """(rows, images by digest) of one batch."""
        made = batch.generation
        examples = [example | {"images": [load_image(i) for i in example["images"]]} for example in made.examples]
        digests, images = images_of(examples)
        rows = rollout_rows(
            made.rollouts, batch.credit, examples, digests, step=batch.step, method=self._method()[0],
            first_group=made.first,
        )  # fmt: skip
        for row, sample, completion in zip(rows, made.samples, batch.completions, strict=True):
            row["sample"] = sample
            shown = {image_digest(image): image for image in pictures(completion)}
            images |= shown
            row["images"] = [*row["images"], *shown]
            for name in _MAYBE:
                if row[name] is not None and all(value is None for value in row[name]):
                    row[name] = None
        return rows, images

    def _method(self) -> tuple[str, str]:
        """(name, title) of what assigns the credit."""
        method = getattr(self.trainer, "method", None)
        if method is not None:
            return method.name, f"{method.title} (TRL)"
        name = "rloo" if "RLOO" in type(self.trainer).__name__ else "grpo"
        return name, f"{name.upper()} (TRL)"

    def _publish(self, step: int, numbers: dict[str, float]) -> None:
        """Add to a step's numbers; they come in several parts."""
        if not self.trainer.is_world_process_zero():
            return
        if self._metrics[0] != step:
            self._metrics = step, {"record/failures": 0.0}
        self._metrics[1].update(numbers, **{"record/failures": float(self.recorder.failures)})
        self.recorder.metrics(*self._metrics)

    @contextlib.contextmanager
    def _never_stopping(self) -> Iterator[None]:
        """Whatever recording meets, training goes on; a failure is counted, and told once."""
        try:
            yield
        except Exception as error:
            if self.recorder is None:
                log.warning("nothing is recorded: %s: %s", type(error).__name__, error)
                return
            self.recorder.failures += 1
            if self.recorder.failures == 1:
                log.warning("a step was not recorded, training goes on: %s: %s", type(error).__name__, error)

    # --- TrainerCallback -------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the run's directory, or go on with it.

        Raises:
            ValueError: the directory holds another run.
        """
        trainer, begun = self.trainer, (self.directory / "run.json").exists()
        if begun and state.global_step == 0:
            raise ValueError(f"{self.directory} already holds a run: name another directory; nothing in it was touched")
        self.recorder = Recorder(self.directory, trainer.accelerator.process_index)
        if not trainer.is_world_process_zero():
            return
        if begun:
            forget_after(self.directory, state.global_step)
            return
        (name, title), model = self._method(), trainer.accelerator.unwrap_model(trainer.model)
        method = getattr(trainer, "method", None)
        config = {"method": name, "max_steps": state.max_steps, "model_name_or_path": model.config.name_or_path}
        config |= {field: getattr(args, field) for field in _SETTINGS if hasattr(args, field)}
        config |= {
            "loss_type": LOSS_TYPES.get(getattr(args, "loss_type", "grpo"), getattr(args, "loss_type", None)),
            "importance_sampling_level": method.importance_sampling_level
            if method
            else getattr(args, "importance_sampling_level", "sequence"),
            "reward_funcs": list(trainer.reward_func_names),
            "reward_weights": trainer.reward_weights.tolist(),
        }
        self.recorder.start(
            config,
            model={
                "name": model.config.name_or_path,
                "class": type(model).__name__,
                "parameters": sum(p.numel() for p in model.parameters()),
                "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            },
            method=name,
            method_title=title,
            trainer=f"{type(trainer).__name__}, TRL {metadata.version('trl')}",
            seed=args.seed,
            processes=trainer.accelerator.num_processes,
            device=str(trainer.accelerator.device),
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the step's rollouts once each has been through the loss."""
        if not any(bool(batch.unseen.any()) for batch in self._batches.values()):
            with self._never_stopping():
                self._flush()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write the numbers that TRL logs, under its names and where we have one under ours."""
        known = {k: float(v) for k, v in (logs or {}).items() if isinstance(v, int | float) and v == v}
        with self._never_stopping():
            self._publish(state.global_step, known | {METRICS[k]: v for k, v in known.items() if k in METRICS})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write what is left."""
        with self._never_stopping():
            self._flush()
            self.recorder.finish()
