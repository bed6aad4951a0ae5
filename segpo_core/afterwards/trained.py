"""A trained policy as one can ask it: a run's checkpoint, or any model, with its processor, sampler and rewards."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from PIL import Image, UnidentifiedImageError
from torch import nn

from segpo_core.algos import METHODS
from segpo_core.config import TrainConfig, from_dict, method_class
from segpo_core.policy.agreement import agreement
from segpo_core.policy.critic import ActorCritic
from segpo_core.policy.load import (
    eos_token_ids,
    find_model,
    get_tokenizer,
    load_model,
    load_processor,
    set_in_template,
    suppressed_token_ids,
)
from segpo_core.record import store
from segpo_core.record.rows import json_of, where_of
from segpo_core.sampling.generate import InProcess
from segpo_core.sampling.sampler import token_pieces
from segpo_core.sampling.truncation import Truncation
from segpo_core.tasks import Task, load_task
from segpo_core.tasks.rewards import load_reward
from segpo_core.training import checkpoint, evaluate


@dataclass
class Policy:
    """A policy as it can be asked: model, processor, sampler, and rewards where they are known."""

    network: ActorCritic  #: the model, with the critic where the checkpoint has one
    processor: Any
    sampler: InProcess
    name: str  #: what was loaded, in words
    step: int | None = None  #: training steps behind it; None for a model that is no run's
    reward_funcs: list[Callable] = field(default_factory=list)  #: TRL's signature; empty: no rewards
    reward_weights: list[float] | None = None
    no_rewards: str = "no reward functions were given"  #: why, where there are none

    @property
    def model(self) -> nn.Module:
        return self.network.model

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def has_critic(self) -> bool:
        return self.network.value_head is not None

    @classmethod
    def wrap(
        cls,
        model: nn.Module,
        processor: Any,
        *,
        temperature: float = 1.0,
        truncation: Truncation | None = None,
        max_completion_length: int = 256,
        critic: str | None = None,
        name: str = "",
        **facts: Any,
    ) -> Policy:
        """A policy of a model and its processor (or tokenizer) that are loaded already.

        `critic` as in `ActorCritic`, `facts` are further fields.

        Raises:
            ValueError: what is sampled and scored here is not what the model says by itself; see `agreement`.
        """
        agreement(model, processor)
        suppressed = suppressed_token_ids(model, processor)
        network = ActorCritic(model, suppressed, temperature, critic).to(model.device).eval()
        sampler = InProcess(
            model, get_tokenizer(processor), eos_token_ids(model, processor), suppressed, temperature,
            max_completion_length, truncation,
        )  # fmt: skip
        return cls(network, processor, sampler, name or type(model).__name__, **facts)

    @classmethod
    def load(
        cls,
        path_or_run: Any,
        step: int | None = None,
        reward_funcs: Sequence[Callable] | None = None,
        trust_code: bool = False,
    ) -> Policy:
        """The policy of a run, of one of its checkpoints, or any model directory.

        Args:
            path_or_run: a run directory or a `segviz` run; a checkpoint's or a model's directory (data/tiny-vlm).
            step: of a run: its newest checkpoint at or before this step. Where all are later, the model that training
                began with, if its directory is still there, else the oldest checkpoint; `Policy.step` says which.
                None: the newest of all.
            reward_funcs: default: the run's own.
            trust_code: load the files and modules that the run names for its rewards, which runs what is in them;
                without it a run with such rewards has none here, and `Policy.no_rewards` names them.

        Raises:
            FileNotFoundError: there is nothing at the path, or the run has no checkpoint.
            ValueError: not a model directory, or a step of something that is not a run.
        """
        path = Path(find_model(str(getattr(path_or_run, "path", path_or_run))))
        given = list(reward_funcs) if reward_funcs is not None else None
        run = run_of(path)
        if run is not None:
            step = step if run == path else checkpoint.read_step(path)
            return cls._of_run(run, step, given, trust_code)
        if step is not None:
            raise ValueError(f"{path} is no run (it has no run.json), so it has no step {step}; leave step out")
        model = load_model(path, device=_device())
        return cls.wrap(model, load_processor(path), name=f"the model {path}", reward_funcs=given or [])

    @classmethod
    def _of_run(cls, run: Path, step: int | None, reward_funcs: list[Callable] | None, trust_code: bool) -> Policy:
        config, found = run_config(run), checkpoint.listed(run / "checkpoints")
        if not found:
            raise FileNotFoundError(
                f"{run} has no checkpoint to ask: train it with save_steps > 0, or give the directory of a "
                "model instead of the run"
            )
        before = [path for path in found if step is None or checkpoint.read_step(path) <= step]
        origin = Path(find_model(config.model_name_or_path))
        place = before[-1] if before else origin if (origin / "config.json").is_file() else found[0]
        at = 0 if place == origin else checkpoint.read_step(place)
        name = "the model that training began with" if place == origin else f"the checkpoint of step {at}"

        source = origin if config.use_peft else place  # beside an adapter there is no model
        model = load_model(source, config.dtype, device=_device())
        if config.use_peft and place != origin:
            model = PeftModel.from_pretrained(model, place).eval()
        learnt = checkpoint.read_critic(place)
        critic = None if not learnt else "model" if any(k.startswith("value_backbone") for k in learnt) else "head"
        why = ""
        if reward_funcs is None:
            try:
                reward_funcs = run_rewards(config, run, trust_code)
            except (ValueError, OSError, ImportError) as error:  # the data set, or a module of rewards, is not here
                reward_funcs, why = [], f"the run's reward functions cannot be loaded: {error}"
        processor = set_in_template(load_processor(source), config.chat_template_kwargs)
        policy = cls.wrap(
            model, processor, temperature=config.temperature, truncation=config.truncation,
            max_completion_length=config.max_completion_length, critic=critic, name=name, step=at,
            reward_funcs=reward_funcs, reward_weights=config.reward_weights, no_rewards=why,
        )  # fmt: skip
        if critic:
            policy.network.load_state_dict(learnt, strict=False)
        return policy

    def rewards(self, example: Mapping[str, Any], texts: Sequence[str]) -> list[float | None]:
        """Reward of each text as an answer to the example; None where there are no reward functions, or where the
        example has no "answer" to judge by."""
        if not texts or not self.reward_funcs or "answer" not in example:
            return [None] * len(texts)
        total, _ = evaluate.reward_texts(
            self.reward_funcs, self.reward_weights, [dict(example)], [0] * len(texts), list(texts),
            tokenizer=self.sampler.tokenizer,
        )  # fmt: skip
        return total

    def check(self, completion_ids: Sequence[int], text: str | None = None) -> None:
        """Raise ValueError where the ids are not this policy's, or (as far as decoding tells) not those of `text`."""
        size = self.model.config.get_text_config().vocab_size
        if bad := [i for i in completion_ids if not 0 <= i < size]:
            raise ValueError(
                f"token id {bad[0]} is not in the vocabulary of {self.name} ({size} tokens): another model wrote this"
            )
        if never := sorted(set(completion_ids) & set(self.network.head.suppressed.tolist())):
            token = self.sampler.tokenizer.convert_ids_to_tokens(never[0])
            raise ValueError(
                f"token id {never[0]} ({token!r}) pads, or stands for an image: it cannot be part of a completion"
            )
        if text is None:
            return
        decoded = "".join(token_pieces(self.sampler.tokenizer, list(completion_ids)))
        if decoded.encode(errors="replace") != text.encode(errors="replace"):
            raise ValueError(
                f"the token ids read {decoded[:60]!r} in the vocabulary of {self.name}, but the recorded text begins "
                f"with {text[:60]!r}: another tokenizer wrote this; use the policy that did"
            )


def run_of(place: str | Path) -> Path | None:
    """The run directory that `place` is, or is a checkpoint of; else None."""
    path = Path(find_model(str(place)))
    if (path / "run.json").exists():
        return path
    run = path.parent.parent
    return run if (path / "trainer.json").exists() and (run / "run.json").exists() else None


def run_config(directory: Path, trust_code: bool = False, method: str | None = None) -> TrainConfig:
    """The settings of a run, from its manifest. Of a run whose method is not the toolkit's, those of the run alone,
    unless its class is at hand.

    Args:
        directory: the run.
        trust_code: load the class that the run names for its method, which runs what is in that file or module.
        method: "file.py:Class" or "module:Class", the class of the run's method, if that is its name.

    Raises:
        SchemaError, ValueError: no run, or settings that are not known.
    """
    manifest = store.read_manifest(directory)
    settings, code = dict(manifest["config"]), manifest.get("method_code")
    own = settings.get("method", TrainConfig.method)
    if own not in METHODS:
        chosen = method or (str(code) if trust_code and code else None)
        if chosen is not None and method_class(chosen).name == own:
            return from_dict(settings | {"method": chosen}, str(directory / "run.json"))
        known = {item.name for item in fields(TrainConfig)} - {"algo", "method"}
        settings = {name: value for name, value in settings.items() if name in known}
    return from_dict(settings, str(directory / "run.json"))


def run_rewards(config: TrainConfig, run: Path, trust_code: bool = False) -> list[Callable]:
    """The reward functions that a run with these settings has.

    Raises:
        ValueError: the run names a file or module of its own, and `trust_code` is not set.
    """
    if config.reward_funcs:
        _trusted(run, config.reward_funcs, trust_code)
        return [load_reward(spec) for spec in config.reward_funcs]
    return run_task(config, run, trust_code).reward_funcs


def run_task(config: TrainConfig, run: Path, trust_code: bool = False) -> Task:
    """The problems that a run with these settings has.

    Raises:
        ValueError: as `run_rewards`.
    """
    _trusted(run, [config.dataset, config.dataset_args.get("reward")], trust_code)
    if config.dataset.startswith("<"):
        raise ValueError(f"the data set of {run} was a Python object, {config.dataset}: name another with --dataset")
    return load_task(config.dataset, **config.dataset_args)


def _trusted(run: Path, named: Sequence[Any], trust_code: bool) -> None:
    """Whoever wrote the run would decide what runs here."""
    foreign = [repr(spec) for spec in named if spec is not None and ":" in str(spec)]
    if foreign and not trust_code:
        raise ValueError(
            f"{run} names code that is not the toolkit's for its rewards or problems: {', '.join(foreign)}. Loading it "
            "runs what is in that file or module: read it, then give --trust-code (in Python trust_code=True)"
        )


def recorded_example(row: Mapping[str, Any], images: Mapping[str, Any]) -> dict[str, Any]:
    """The problem behind a recorded rollout, as a task gives it: prompt, images, answer, id and further columns.

    Args:
        row: columns as in `store.ROLLOUT_SCHEMA`.
        images: sha256 -> bytes of the file, or a PIL image.

    Raises:
        ValueError: an image of the row is missing or cannot be read, the prompt was not recorded, or a column that
            should hold JSON does not.
    """
    where = where_of(row)
    if not row.get("prompt"):
        raise ValueError(f"rollout {where} has no recorded prompt, so nothing can be asked about it")
    pictures = []
    for sha in row.get("images") or []:
        picture = images.get(sha)
        if picture is None:
            raise ValueError(
                f"image {sha[:12]}… of rollout {where} is missing: put {sha}.png back into the run's images folder"
            )
        if not isinstance(picture, Image.Image):
            try:
                picture = Image.open(io.BytesIO(picture))
                picture.load()
            except (UnidentifiedImageError, OSError) as error:
                raise ValueError(f"image {sha[:12]}… of rollout {where} cannot be read: {error}") from error
        pictures.append(picture.convert("RGB"))
    columns, prompt = json_of(row, "columns", dict) or {}, json_of(row, "prompt", list, str)
    example = {"prompt": prompt, "images": pictures, "id": row.get("example_id") or where, **columns}
    return example | {"answer": row.get("answer")}


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
