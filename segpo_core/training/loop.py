"""The training loop: collect, score, credit, update, record; again.

Every random stream is named by the seed and the step, that of an adapter's dropout too, and micro-batches of a step are
cut once, so a run that goes on from a checkpoint repeats, bit for bit on a CPU, the run that was never interrupted.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed

from segpo_core.algos import METHODS
from segpo_core.algos.base import without_cut
from segpo_core.algos.check import checked
from segpo_core.config import TrainConfig
from segpo_core.loading import spec_of
from segpo_core.policy.agreement import agreement
from segpo_core.policy.contrasts import contrasts, image_contrast
from segpo_core.policy.inputs import Prompts
from segpo_core.policy.load import find_model, load_processor, set_in_template
from segpo_core.record.metrics import last_evaluation
from segpo_core.record.rows import rollout_rows
from segpo_core.record.store import Recorder, forget_after, images_of
from segpo_core.sampling.chains import estimate_values
from segpo_core.sampling.generate import check_continuable
from segpo_core.sampling.nodes import node_rows
from segpo_core.sampling.server import EngineError
from segpo_core.segments import TAGS, role_ids
from segpo_core.training import checkpoint, evaluate, hub
from segpo_core.training.beginning import hold_for_all, start_point
from segpo_core.training.build import build_network
from segpo_core.training.diagnostics import CONTINUATIONS, describe, some_states, step_kl
from segpo_core.training.engine import Engine, reachable
from segpo_core.training.hold import still_held
from segpo_core.training.micro import Micro, micro_batches, taught_batches
from segpo_core.training.problems import Problems
from segpo_core.training.together import all_or_none, averaged, check_launcher, everyone, own_part, whole_batch
from segpo_core.training.update import Learner
from segpo_core.training.watch import Clock, Interrupt
from segpo_core.types import Credit, Rollouts

log = logging.getLogger(__name__)


class Trainer:
    """One training run.

    Args:
        config: what to do.
        task: problems, instead of the one that `config.dataset` names.
        dataset, eval_dataset: the same as a data set: a path, a Dataset, an IterableDataset, a list of dicts.
        reward_funcs: functions (or names of them) in place of `config.reward_funcs`.
        model: a loaded model, in place of the one that `config.model_name_or_path` names; it is trained itself.
        processor: its processor or tokenizer.
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
        *,
        dataset: Any = None,
        eval_dataset: Any = None,
        reward_funcs: Any = None,
        model: Any = None,
        processor: Any = None,
    ):
        self.config, self.method, self.on_step = config, config.algo, on_step
        self.directory = Path(config.output_dir)
        self.accelerator = Accelerator(
            cpu=config.cpu,
            log_with=config.trackers or None,
            project_dir=str(self.directory / "trackers"),
            # A batch without an image, or a frozen tower, leaves parameters without a gradient.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        check_launcher(self.accelerator)
        reachable(config)
        self.world, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        self.prompts_per_step = config.prompts_per_step(self.world)
        self.problems = Problems(config, task, dataset, eval_dataset, reward_funcs)
        self.task, self.reward_funcs = self.problems.task, self.problems.functions
        config.max_steps = self.problems.max_steps(self.world)
        config.eval_steps, config.save_steps = map(config.whole_steps, (config.eval_steps, config.save_steps))
        self.given_model, self.processor = model, processor
        #: The settings as run.json has them: what Python objects replaced is named as well as it can be.
        self.settings = config.to_dict() | self.problems.described
        if model is not None:
            self.settings["model_name_or_path"] = str(getattr(model, "name_or_path", "")) or f"<{type(model).__name__}>"
        start = self.directory, config.resume, config.save_steps, self.settings
        start_point(*start)
        self.repository = ""
        if config.push_to_hub and self.accelerator.is_main_process:
            self.repository = hub.begin(config.hub_model_id or self.directory.name, config.hub_private_repo)
        self.accelerator.wait_for_everyone()  # no process writes before all have looked
        self.hold = hold_for_all(self.directory)
        start_from = start_point(*start)  # again, now that nobody else can change it
        self.accelerator.wait_for_everyone()
        set_seed(config.seed)
        self._load(start_from)
        still_held(self.hold)
        self.recorder = Recorder(self.directory, self.rank, None if self.hold is None else self.hold.check)
        self.step, self.stopped_by = 0, 0
        if start_from is not None:
            self.step = checkpoint.load_optimizer(start_from, self.learner.optimizer)
        self._begin_sampling()
        if self.accelerator.is_main_process and config.resume:
            forget_after(self.directory, self.step)
        if self.accelerator.is_main_process and start_from is None:
            self.recorder.start(
                self.settings,
                model=self._describe_model(),
                method=self.method.name,
                method_title=self.method.title,
                method_code=None if type(self.method) in METHODS.values() else spec_of(type(self.method)),
                seed=config.seed,
                processes=self.world,
                device=torch.cuda.get_device_name() if self.accelerator.device.type == "cuda" else "cpu",
            )
        if config.trackers:
            name = config.run_name or self.directory.name
            named = {"wandb": {"name": name}, "trackio": {"name": name}}
            self.accelerator.init_trackers(
                "segpo", {k: str(v) for k, v in self.settings.items()},
                {tracker: named[tracker] for tracker in config.trackers if tracker in named},
            )  # fmt: skip
        self.accelerator.wait_for_everyone()
        self.last: tuple[Rollouts | None, Credit | None] = (None, None)
        self.measured = last_evaluation(self.directory) if self.step else {}

    # --- setting up ---------------------------------------------------------------------------------------------

    def _load(self, start_from: Path | None) -> None:
        config = self.config
        if self.processor is None:
            name = config.model_name_or_path if self.given_model is None else self.settings["model_name_or_path"]
            self.processor = load_processor(find_model(name))
        set_in_template(self.processor, config.chat_template_kwargs)
        network, reference = build_network(config, self.processor, start_from, self.given_model)
        if self.method.samples_continuations and config.sampler == "process":
            check_continuable(network.model)
        self.agreement = agreement(network.model, self.processor)
        log.info(
            "our passes and the model's own differ by %.1e (head), %.1e (cache), %.1e nats (padding)", *self.agreement
        )
        self.learner = Learner(config, self.accelerator, network, reference)
        self.network = self.learner.network
        given = self.given_model is not None
        self.engine = Engine(config, self.learner, self.processor, self.directory, self.rank, self.world, given)
        self.sampler = self.engine.sampler

    def _begin_sampling(self) -> None:
        """Hand the weights to the engine, and see that it says what the network says of them."""
        try:
            self.engine.sync(self.step)
            self.engine.compare(self.processor)
        except BaseException:
            self.engine.close()
            raise

    def _describe_model(self) -> dict[str, Any]:
        model = self.network.model
        trainable = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
        return {
            "name": str(self.settings["model_name_or_path"]),
            "class": type(model).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
            "trainable_parameters": trainable,
            "head_difference": self.agreement.head,
            "cache_difference": self.agreement.decoding,
            "padding_difference": self.agreement.padding,
        }

    # --- the loop -----------------------------------------------------------------------------------------------

    def run(self) -> Path:
        """Train to `max_steps`, or until Ctrl-C, SIGTERM or SIGHUP, which end the step at hand and save; `stopped_by`
        then holds the signal. Returns the run directory."""
        try:
            return self._run()
        finally:
            self.engine.close()
            if self.hold is not None:
                self.hold.release()

    def _run(self) -> Path:
        config = self.config
        with Interrupt() as interrupt:
            if self.step == 0 and config.eval_steps:
                self._publish(0, self.evaluate())
            stopping, unsaved, saved = False, False, time.monotonic()
            while self.step < config.max_steps and not stopping:
                self.step += 1
                try:
                    metrics = self.train_step()
                except EngineError as error:  # before the step's update: the weights are those of the step before
                    self.step -= 1
                    self._give_up(error)
                told = everyone([(interrupt.asked, time.monotonic() - saved)])  # processes hear signals in other steps
                self.stopped_by, age = (max(column) for column in zip(*told, strict=True))
                stopping = bool(self.stopped_by)
                last = self.step == config.max_steps or stopping
                if config.eval_steps and (self.step % config.eval_steps == 0 or last):
                    try:
                        metrics |= self.evaluate()
                    except EngineError as error:
                        self._publish(self.step, metrics)
                        self._give_up(error)
                self._publish(self.step, metrics)
                due = config.save_steps and self.step % config.save_steps == 0
                if last or unsaved or due or 0 < 60 * config.save_minutes <= age:
                    unsaved, saved = not self.save(must=last), time.monotonic()  # tried again after the next step
        self.recorder.finish()
        if config.push_to_hub and self.accelerator.is_main_process:
            try:
                newest = checkpoint.latest(self.directory / "checkpoints")
                log.info("%s is at %s", newest, hub.push(newest, self.repository))
            except OSError as error:  # what was trained lies here
                log.error("%s", error)
        if self.world > 1:
            self.learner.let_go()
        self.accelerator.end_training()
        return self.directory

    def _give_up(self, error: EngineError) -> NoReturn:
        """End a run whose engine failed, with everything saved."""
        self.save()
        raise EngineError(
            f"{error}; the run in {self.directory} ends here, saved after step {self.step}: --resume goes on"
        ) from error

    def train_step(self) -> dict[str, float]:
        """One step: sample, reward, score, credit, update, record. Returns its metrics, over all processes."""
        clock = Clock()
        examples, prompts, first = self.examples()
        stream, computed = (self.config.seed, self.step), self.sampler.tokens_computed
        self.engine.sync(self.step - 1)
        rollouts = all_or_none(lambda: self.collect(prompts, examples, stream, first))
        computed = self.sampler.tokens_computed - computed
        clock.lap("sample")
        if rollouts.tree is not None:  # its credit needs no scores, and says which nodes are worth a pass
            credit, everything = self.credit(rollouts, first)
            micros = taught_batches(self.network.model, self.config, rollouts, prompts, credit)
        elif self.learner.scores_first:
            micros = micro_batches(self.network.model, self.config, rollouts, prompts, self.step)
        else:
            micros = []
        self.learner.score(rollouts, micros)
        # In float32 the sampler's numbers are as good as those of one more pass.
        exact = self.network.model.dtype == torch.float32
        seen = dataclasses.replace(rollouts, old_logprobs=rollouts.logprobs) if exact else rollouts
        if self.method.uses_contrasts:
            rollouts.perception_contrast, rollouts.reasoning_contrast = contrasts(
                self.network, examples, prompts, seen, self.processor, self.method.corruption, stream, first,
                self.config.per_device_train_batch_size, self.method.tags, self.config.pack_prompts,
            )  # fmt: skip
        if self.method.uses_image_contrast:
            rollouts.perception_contrast = image_contrast(
                self.network, examples, prompts, seen, self.processor, self.method.corruption, stream, first,
                self.config.per_device_train_batch_size, self.config.pack_prompts,
            )  # fmt: skip
        clock.lap("score")
        if rollouts.tree is None:
            credit, everything = self.credit(rollouts, first)
            micros = micros or taught_batches(self.network.model, self.config, rollouts, prompts, credit)
        clock.lap("credit")
        recorded = bool(self.config.record_steps) and self.step % self.config.record_steps == 0
        if recorded and getattr(self.method, "value_mc_states", 0):
            self.sample_values(prompts, rollouts, everything, examples, first)
            clock.lap("sample_values")
        metrics = self.learner.update(rollouts, credit, micros, self.step)
        clock.lap("update")
        if recorded:
            metrics |= self.record(rollouts, credit, micros, examples, first)
        clock.lap("record")
        whole = whole_batch(rollouts, first)
        metrics |= describe(whole, everything, self.method.nodes(whole))
        left_out = sum(everyone([len(self.problems.left_out)]))
        said = self.problems.metrics(whole, left_out, everyone([dict(self.problems.logged)]))
        metrics = said | metrics  # what a reward function logs takes no name that is ours
        times = {f"time/{name}": seconds for name, seconds in clock.laps.items()} | {"time/step": clock.total}
        metrics |= averaged(times, self.accelerator)
        metrics["time/tokens_per_second"] = int(whole.mask.sum()) / metrics["time/step"]
        computed = sum(everyone([computed]))
        kept = max(1, int(everything.loss_mask.sum()))  # the cost of what is learnt from: all that was sampled
        metrics |= {"tokens_computed": computed, "tokens_computed_per_token_kept": computed / kept}
        self.last = rollouts, credit
        return metrics

    # --- the parts of a step ------------------------------------------------------------------------------------

    def examples(self) -> tuple[list[dict], Prompts, int]:
        """This process's problems of the step, and the number of its first one over all processes."""
        number, first = self.prompts_per_step, self.rank * self.prompts_per_step
        before = (self.step - 1) * number * self.world
        model = self.network.model.config
        examples, prompts = self.problems.take(self.step, first, number, before, self.processor, model)
        return examples, prompts, first

    def collect(self, prompts: Prompts, examples: list[dict], stream: tuple[int, ...], first: int) -> Rollouts:
        """Sample, reward, and sample on, as the method asks."""
        rollouts = self.method.collect(self.sampler, prompts, self.config.num_generations, stream, first)
        if not self.sampler.own_scores:
            self.learner.score_engine(rollouts, prompts, self.step)
        self.reward(rollouts, examples)
        judge = self.problems.reward_of(examples, self.sampler.tokenizer)
        self.method.estimate(self.sampler, prompts, rollouts, judge, stream, first)
        return rollouts

    def reward(self, rollouts: Rollouts, examples: list[dict]) -> None:
        """Fill in rewards, roles and ground truth."""
        self.problems.reward(rollouts, examples, self.step)
        tags = getattr(self.method, "tags", TAGS)
        rollouts.role_ids, rollouts.well_formed = role_ids(rollouts.pieces, rollouts.mask, tags)

    def credit(self, own: Rollouts, first: int) -> tuple[Credit, Credit]:
        """The method's credit, less the tokens that the run leaves out of its loss: (of this process's own rollouts, of
        those of all processes)."""
        rollouts = whole_batch(own, first)
        who = f"{self.method.title} ({type(self.method).__name__}.credit)"
        credit = checked(self.method.credit(rollouts), rollouts, who)
        if self.config.mask_truncated_completions:
            credit = without_cut(credit, rollouts)
        return own_part(credit, own), credit

    def sample_values(
        self, prompts: Prompts, rollouts: Rollouts, everything: Credit, examples: list[dict], first: int
    ) -> None:
        """Fill in Monte Carlo values of some states in which the critic learns, to hold its own against."""
        stream = self.config.seed, self.step
        states = some_states(everything.value_mask, self.method.value_mc_states, stream)
        own = own_part(dataclasses.replace(everything, value_mask=states), rollouts).value_mask
        judge = self.problems.reward_of(examples, self.sampler.tokenizer)
        all_or_none(lambda: estimate_values(self.sampler, prompts, rollouts, own, CONTINUATIONS, judge, stream, first))

    def record(
        self, rollouts: Rollouts, credit: Credit, micros: list[Micro], examples: list[dict], first: int
    ) -> dict[str, float]:
        """Write the rollouts, with what the updates did to them."""
        new, ratio, clipped = self.learner.moved(rollouts, credit, micros)
        still_held(self.hold)
        digests, images = images_of(examples)
        ids = {"step": self.step, "method": self.method.name, "first_group": first}
        nodes, node_ids = self.method.nodes(rollouts), None
        if nodes is not None:
            rows, node_ids = node_rows(nodes, rollouts, credit, **ids)
            self.recorder.nodes(self.step, rows)
        rows = rollout_rows(
            rollouts, credit, examples, digests, **ids,
            node_ids=node_ids, new_logprobs=new, ratio=ratio, clipped=clipped,
        )  # fmt: skip
        self.recorder.rollouts(self.step, rows, images)
        numbers = {"record/failures": float(sum(everyone([self.recorder.failures])))}
        return numbers if new is None else numbers | step_kl(new, rollouts)

    def evaluate(self) -> dict[str, float]:
        """Held-out accuracy, the work shared by the processes. The first completions are recorded."""
        config = self.config
        self.engine.sync(self.step)
        kept = evaluate.Kept(config.log_eval_completions, self.step, self.method.name)
        self.measured = evaluate.evaluate(
            self.sampler, self.task, self.processor, self.reward_funcs, config.reward_weights, config.eval_size,
            config.num_generations_eval, shard=(self.rank, self.world), max_prompt_length=config.max_prompt_length,
            everyone=everyone, filter_overlong_prompts=config.filter_overlong_prompts, keep=kept,
            agreed=all_or_none,
        )  # fmt: skip
        still_held(self.hold)
        if kept.rows:
            self.recorder.evaluation(self.step, kept.rows, kept.images)
        return dict(self.measured)

    # --- housekeeping -------------------------------------------------------------------------------------------

    def save(self, must: bool = True) -> bool:
        """Write a checkpoint of the current step. Returns whether that worked.

        Raises:
            OSError: it did not, and it `must`; TakenOver: another trainer has the run directory.
        """
        facts = {
            "method": self.method.name, "seed": self.config.seed, "model": str(self.settings["model_name_or_path"]),
        }  # fmt: skip
        try:
            checkpoint.save(
                self.directory / "checkpoints", self.step, self.network, self.learner.weights(), self.learner.moments(),
                self.processor, facts, self.config.save_total_limit, checkpoint.WAITS if must else (),
                hub.model_card(self.settings, self.method.title, self.step, self.measured,
                               hasattr(self.processor, "image_processor")),
                self.hold,
            )  # fmt: skip
        except OSError as error:
            still_held(self.hold)  # the main process may have found out just before the checkpoint would have appeared
            if must:
                raise
            if self.accelerator.is_main_process:
                log.warning("step %d: no checkpoint, training goes on and tries again: %s", self.step, error)
            return False
        return True

    def _publish(self, step: int, metrics: dict[str, float]) -> None:
        still_held(self.hold)
        if self.accelerator.is_main_process:
            self.recorder.metrics(step, metrics)
        if self.config.trackers:
            self.accelerator.log(metrics, step=step)
        if self.on_step and self.accelerator.is_main_process:
            self.on_step(step, metrics, *self.last)


def train(config: TrainConfig, **kwargs: Any) -> Path:
    """Train as `config` says and return the run directory. Further arguments as `Trainer`."""
    return Trainer(config, **kwargs).run()
