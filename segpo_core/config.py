"""Everything a training run can be told, in one dataclass. Field names are TRL's where TRL has the field.

`segpo train --help` is generated from the docstrings here and in the method's own dataclass.
"""

from __future__ import annotations

import difflib
import logging
import math
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from segpo_core.algos import METHODS, SAPO, Forks, Method
from segpo_core.loading import absolute, load_object, names_code
from segpo_core.losses import Correction
from segpo_core.sampling.truncation import Truncation
from segpo_core.shipped import shipped
from segpo_core.trl_names import translate
from segpo_core.typed import typed

log = logging.getLogger(__name__)

TRACKERS = ("tensorboard", "trackio", "wandb")


@dataclass
class TrainConfig:
    """Train a (vision-)language policy with segment-level credit."""

    method: str = "sapo"
    """Which method assigns the credit: a name, or a class of your own as `file.py:Class` or `package.module:Class`. Its
    own settings are listed below, under `algo`."""
    algo: Method = field(default_factory=SAPO)
    """Settings of the method."""

    output_dir: str = "runs/run"
    """Where the run is recorded. Must not hold another run, unless resume is set."""
    resume: bool = False
    """Go on from the last checkpoint in output_dir, with the settings that its run.json holds; how long, how often
    written and how watched may differ."""

    model_name_or_path: str = "data/tiny-vlm"
    """Directory (or hub name) of a transformers model, with its processor or tokenizer; a GGUF file, or its folder; or
    package:NAME, the folder of an installed Python package."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the model's computation; losses and log-probabilities are float32 in any case. Weights that are
    trained, and AdamW's moments, are kept in float32: without LoRA, bfloat16 takes up to 20 bytes a parameter (float32:
    16) and half the memory of activations; beside LoRA, the model takes 2 bytes a parameter."""
    gradient_checkpointing: bool = False
    """Keep only what goes into each layer and compute the rest again in the backward pass: less memory, about a third
    more time for the update."""
    freeze_vision_tower: bool = False
    """Leave all that turns images into tokens as it is: the vision tower and its projector (LoRA never trains them)."""
    use_peft: bool = False
    """Train LoRA adapters instead of all weights; the model without its adapter is then the reference."""
    lora_r: int = 16
    """Rank of the adapters."""
    lora_alpha: int = 32
    """Their scale: alpha / r."""
    lora_dropout: float = 0.0
    """Share of what goes into an adapter that is dropped, in the passes that learn alone: sampling and scoring see the
    whole policy. All other dropout is off."""
    lora_target_modules: list[str] | str | None = None
    """Names of the modules that get an adapter, or a pattern (a regular expression of whole names); None: every linear
    layer of the language model."""
    lora_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of peft's LoraConfig: use_dora, use_rslora, modules_to_save …"""

    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Values of variables of the chat template, such as enable_thinking; checkpoints have them in their template."""

    dataset: str = "shapes"
    """`shapes` or `arithmetic`, or a .jsonl / .parquet file, or the hub name of a data set with prompt, images and
    answer columns, or a task of your own as `file.py:Task` or `package.module:Task`."""
    dataset_args: dict[str, Any] = field(default_factory=dict)
    """Further settings of the data set, such as its columns' names (see segpo_core/tasks)."""
    reward_funcs: list[str] = field(default_factory=list)
    """Rewards in place of the data set's own: built-in names, or `file.py:function`, or `package.module:function`."""
    reward_weights: list[float] | None = None
    """Weight of each reward; None: 1 each."""

    num_generations: int = 8
    """G: completions a prompt."""
    per_device_train_batch_size: int = 8
    """Completions in one forward and backward pass on one device."""
    gradient_accumulation_steps: int = 1
    """Passes that make one update."""
    pack_prompts: bool = True
    """Run each prompt, its images and what completions of a group begin with in common through the model once a pass,
    where the model's attention allows it (full attention, sdpa or eager); the same loss and gradient but for rounding.
    Off: a row a completion."""
    steps_per_generation: int | None = None
    """Passes' worth of completions sampled in one step; None: gradient_accumulation_steps, that is one update a step.
    A step samples per_device_train_batch_size x processes x steps_per_generation completions."""
    num_iterations: int = 1
    """Times the update goes over a step's completions."""
    max_prompt_length: int | None = None
    """Longest prompt in tokens. None: what max_completion_length leaves of the model's context."""
    filter_overlong_prompts: bool = True
    """Problems with a longer prompt are left out, counted and named, and another takes their place; false: an error."""
    max_completion_length: int = 256
    """Tokens after which a completion is cut."""
    temperature: float = 1.0
    """Of the sampling distribution; it is in every log-probability and entropy."""
    top_p: float = 1.0
    """Draw from the most likely tokens that together have this probability; 1: all. As in TRL, what is trained is the
    whole distribution: log-probabilities, entropies and ratios know nothing of top_p, top_k and min_p (docs/trl.md)."""
    top_k: int = 0
    """Draw from this many of the most likely tokens; 0: all."""
    min_p: float | None = None
    """Draw from tokens at least this many times as likely as the most likely one; None: all."""
    sampler: Literal["process", "vllm"] = "process"
    """What draws completions: transformers in this process, or a vLLM server beside it (docs/engines.md)."""
    vllm_server_url: str = "http://127.0.0.1:8000"
    """Where the vLLM server is; several, with commas, are shared by the processes in turn."""
    vllm_python: str = ""
    """Python of an environment that has vLLM: the run starts a server with it, on this machine, and ends it."""
    vllm_server_args: str = ""
    """Further arguments of a server that the run starts, as one text (on the command line with an equals sign)."""
    vllm_server_timeout: float = 240.0
    """Seconds to wait for a server that is started, and for one answer."""
    vllm_importance_sampling_correction: bool = True
    """Weigh what the vLLM server sampled by its probability under the network that learns over that under the
    server's arithmetic."""
    vllm_importance_sampling_mode: Correction = "token_truncate"
    """A weight a token, or one a sequence; beyond the bounds it is truncated, or masked (0)."""
    vllm_importance_sampling_clip_max: float | None = 3.0
    """Largest such weight; None: no bound."""
    vllm_importance_sampling_clip_min: float | None = None
    """Smallest such weight; None: no bound."""
    mask_truncated_completions: bool = False
    """Leave cut completions out of the policy's and the critic's loss (their rewards still count in their group's
    statistics)."""

    max_steps: int = 100
    """Steps to train; one step is sample, score, credit, update."""
    num_train_epochs: float | None = None
    """Passes over the training problems, in place of max_steps."""
    learning_rate: float = 1e-6
    """Peak learning rate of the policy."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes on after its warm-up: stays, or falls to 0 at max_steps."""
    warmup_steps: float = 0
    """Steps over which the learning rate rises from 0; below 1, the share of max_steps."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    adam_beta2: float = 0.999
    """AdamW's beta2."""
    max_grad_norm: float = 1.0
    """Gradient norm at which gradients are clipped; 0: never."""
    seed: int = 0
    """Names every random stream of the run: problems, sampling, order."""

    eval_steps: float = 25
    """Steps between evaluations on the held-out set; below 1, the share of max_steps; 0: never."""
    eval_size: int = 200
    """Held-out problems; always the same ones."""
    num_generations_eval: int = 0
    """Sampled completions a held-out problem, for mean@k and pass@k; 0: only the greedy one."""
    log_eval_completions: int = 16
    """Held-out problems, the first ones, whose greedy completion is recorded at every evaluation: one prompt over
    training. Costs no sampling of its own; 0: none."""
    save_steps: float = 50
    """Steps between checkpoints; below 1, the share of max_steps. The last step is always saved; 0: only that."""
    save_minutes: float = 0
    """Minutes between checkpoints, besides those of save_steps: what a run that is killed loses at most, and one step;
    0: steps alone count."""
    save_total_limit: int = 2
    """Checkpoints kept; the oldest go first."""
    record_steps: int = 1
    """Steps between recorded rollouts; 0: none are recorded."""
    score_after_update: bool = False
    """Score a recorded step's completions once more after its updates, to see how far these moved each token
    (new log-probabilities, ratios, `step_kl`); costs a pass. Off: ratios are those that the step's last update saw,
    and none are recorded where one update is all, as they are 1 then."""
    report_to: str = "none"
    """Experiment trackers to write to as well, through accelerate: tensorboard, trackio, wandb; several with commas."""
    run_name: str | None = None
    """Name of the run in trackio and wandb; None: that of output_dir. (tensorboard names runs by their folders.)"""
    push_to_hub: bool = False
    """Upload the last checkpoint, with its model card, to the Hugging Face hub when the run ends."""
    hub_model_id: str | None = None
    """Repository there, NAME or OWNER/NAME; None: the name of output_dir."""
    hub_private_repo: bool | None = None
    """Whether a new repository is private; None: as the hub has it for you."""
    cpu: bool = False
    """Stay on the CPU although there is an accelerator."""

    def __post_init__(self) -> None:
        # Written out, so that the run that is recorded can be opened from any folder.
        self.dataset, self.reward_funcs = absolute(self.dataset), [absolute(spec) for spec in self.reward_funcs]
        if self.method != self.algo.name:
            raise ValueError(f"method is {self.method!r} but algo holds the settings of {self.algo.name!r}")
        for name in ("num_generations", "per_device_train_batch_size", "gradient_accumulation_steps", "num_iterations",
                     "max_completion_length", "max_steps"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("eval_steps", "num_generations_eval", "log_eval_completions", "save_steps", "save_minutes",
                     "record_steps"):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 or more")
        for name in ("eval_steps", "save_steps"):
            if (steps := getattr(self, name)) >= 1:
                if steps != int(steps):
                    raise ValueError(f"{name} is {steps}: it is a number of steps, or below 1 a share of max_steps")
                setattr(self, name, int(steps))
        if unknown := [name for name in self.trackers if name not in TRACKERS]:
            raise ValueError(f"report_to names {unknown[0]!r}; there are none, {', '.join(TRACKERS)}")
        if self.vllm_python and self.sampler != "vllm":
            raise ValueError("vllm_python names an engine that the run does not use: set sampler to vllm")
        if self.sampler == "vllm" and not self.vllm_python and not self.vllm_servers:
            raise ValueError("vllm_server_url is empty: name a server, or set vllm_python, so that the run starts one")
        bounds = self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max
        low, high = 0.0 if bounds[0] is None else bounds[0], math.inf if bounds[1] is None else bounds[1]
        if not 0 <= low <= high or high == 0:
            raise ValueError(
                f"vllm_importance_sampling_clip_min and _max are {bounds[0]} and {bounds[1]}: weights are above 0, so "
                "the smallest must be 0 or more, and the largest above 0 and no smaller"
            )
        if self.vllm_server_timeout <= 0:
            raise ValueError(f"vllm_server_timeout is {self.vllm_server_timeout}: it must be above 0")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout is {self.lora_dropout}: it is a probability, from 0 to below 1")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}: sampling needs one above 0")
        if self.truncation and self.sampler == "vllm" and isinstance(self.algo, Forks):
            raise ValueError(
                f"{self.truncation} with sampler vllm: {self.algo.title} draws what its tree does not hold, which a "
                "vLLM server cannot do within what is left; set sampler to process, or top_p to 1, top_k to 0 and "
                "min_p to none"
            )
        if self.num_generations < 2 and self.algo.compares_completions:
            raise ValueError(
                f"num_generations is {self.num_generations}: {self.algo.title} compares completions of one prompt and "
                "needs at least 2; raise it, or choose a method with a critic (sapo)"
            )
        if self.passes % self.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation {self.passes} must be a multiple of gradient_accumulation_steps "
                f"{self.gradient_accumulation_steps}, so that a step is a whole number of updates"
            )

    @property
    def truncation(self) -> Truncation:
        """What may be drawn, by top_p, top_k and min_p."""
        return Truncation(self.top_p, self.top_k, self.min_p)

    @property
    def dropout(self) -> float:
        """`lora_dropout`, where there are adapters."""
        return self.lora_dropout if self.use_peft else 0.0

    @property
    def trackers(self) -> list[str]:
        """The names in `report_to`."""
        return [name.strip() for name in self.report_to.split(",") if name.strip() not in ("", "none")]

    @property
    def vllm_servers(self) -> list[str]:
        """The addresses in `vllm_server_url`."""
        return [url.strip() for url in self.vllm_server_url.split(",") if url.strip()]

    @property
    def passes(self) -> int:
        """Passes' worth of completions a step, on each device."""
        return self.steps_per_generation or self.gradient_accumulation_steps

    def whole_steps(self, steps: float) -> int:
        """A number of steps, or the share of `max_steps` that a number below 1 is."""
        return int(steps) if steps >= 1 else math.ceil(steps * self.max_steps)

    def prompts_per_step(self, processes: int) -> int:
        """Prompts sampled in one step on each process.

        Raises:
            ValueError: the batch does not divide into groups.
        """
        local = self.per_device_train_batch_size * self.passes
        size = self.algo.completions_per_prompt(self.num_generations)
        group = f"num_generations {size}" if size == self.num_generations else f"the {size} leaves of a tree"
        if local % size:
            raise ValueError(
                f"a step samples {local} completions on each device (per_device_train_batch_size "
                f"{self.per_device_train_batch_size} x steps_per_generation {self.passes}), which is no multiple of "
                f"{group}: make it one, so that no group is torn (there are {processes} processes)"
            )
        return local // size

    def learning_rate_factor(self, step: int) -> float:
        """Share of the peak learning rate in step `step` (the first is 1). A function of the step alone, so a run that
        goes on from a checkpoint needs no scheduler state."""
        warmup = self.warmup_steps if self.warmup_steps >= 1 else self.whole_steps(self.warmup_steps)
        if step <= warmup:
            return step / warmup
        if self.lr_scheduler_type == "constant":
            return 1.0
        done = (step - 1 - warmup) / max(1, self.max_steps - warmup)
        return 1 - done if self.lr_scheduler_type == "linear" else 0.5 * (1 + math.cos(math.pi * done))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, flat: what a YAML file would say."""
        plain = asdict(self)
        return {**{k: v for k, v in plain.items() if k != "algo"}, **plain["algo"]}


def from_dict(settings: dict[str, Any], source: str = "the settings", method: str | None = None) -> TrainConfig:
    """A config from flat settings; those of the method are told from the run's by their names.

    Args:
        settings: field name -> value; `methods`: method name -> settings that hold for that method only, and go before
            the others.
        source: named in errors, e.g. the file the settings came from.
        method: goes before the one in `settings`.

    Raises:
        ValueError: an unknown method or setting (the nearest known name is suggested).
    """
    settings = dict(settings)
    algo = method_class(method or settings.get("method", TrainConfig.method))
    name = algo.name
    settings.pop("method", None)
    run_names = {f.name for f in fields(TrainConfig)} - {"algo", "method"}
    algo_names = {f.name for f in fields(algo)}
    section = _section(settings.pop("methods", None) or {}, name, source)
    if foreign := sorted(set(section) - run_names - algo_names):
        raise ValueError(f"{source}: methods: {algo.title} has no setting {foreign[0]!r}")
    settings |= section
    settings, words = translate(settings, run_names | algo_names, source)
    for word in words:
        log.warning("%s: accepted without effect: %s", source, word)
    everyones = {f.name for known in METHODS.values() for f in fields(known)}
    mine: dict[str, Any] = {}
    for key in list(settings):
        if key in algo_names:
            mine[key] = typed(algo, key, settings.pop(key))
        elif key in everyones and key not in run_names and method is not None:
            settings.pop(key)  # a file written for one method serves another: what only the first one knows is its own
        elif key not in run_names:
            near = difflib.get_close_matches(key, run_names | algo_names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{source}: {algo.title} has no setting {key!r}{hint}")
        else:
            settings[key] = typed(TrainConfig, key, settings[key])
    return TrainConfig(method=name, algo=algo(**mine), **settings)


def _section(methods: Any, name: str, source: str) -> dict[str, Any]:
    """The settings of one method of a file that serves several."""
    if not isinstance(methods, dict) or not all(isinstance(section, dict) for section in methods.values()):
        raise ValueError(f"{source}: methods must be a mapping of method names to mappings of their settings")
    for other in methods:
        if other != name:
            method_class(other)
    section: dict[str, Any] = methods.get(name, {})
    return section


def method_class(name: str) -> type[Method]:
    """The method of that name; of your own, "file.py:Class" or "package.module:Class".

    Raises:
        ValueError: there is none (the known ones are listed), or it is no method.
    """
    if not names_code(name):
        if name not in METHODS:
            raise ValueError(
                f"unknown method {name!r}; known: {', '.join(sorted(METHODS))}; one of your own is file.py:Class"
            )
        return METHODS[name]
    found = load_object(name, "method")
    if not isinstance(found, type) or not issubclass(found, Method):
        raise ValueError(f"method {name!r} is no method: it must be a subclass of segpo_core.algos.Method")
    if missing := sorted(found.__abstractmethods__) + [n for n in ("name", "title") if not hasattr(found, n)]:
        raise ValueError(f"method {name!r} has no {', '.join(missing)}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", found.name):  # it names folders
        raise ValueError(f"method {name!r} calls itself {found.name!r}: a name has letters, digits, - and _")
    if found.name in METHODS and found is not METHODS[found.name]:
        raise ValueError(f"method {name!r} calls itself {found.name!r}, as one of the toolkit's: choose another name")
    if shared := sorted({f.name for f in fields(found)} & {f.name for f in fields(TrainConfig)}):
        raise ValueError(f"method {name!r} has a setting {shared[0]!r}, which is the run's: choose another name")
    return found


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Settings from a YAML file: one that is there, or one that is shipped (configs/demo.yaml).

    Raises:
        ValueError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        loaded = yaml.safe_load(shipped(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"config file {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"config file {path} is not YAML: {error}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"config file {path} must be a mapping of settings, such as `max_steps: 200`")
    return loaded
