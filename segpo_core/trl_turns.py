"""What becomes of TRL's settings whose values are others here, or that are several settings here (see trl_names.py).

Each function takes a value and all settings, and gives settings here; what has no counterpart is a ValueError, which
names what there is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

Settings = dict[str, Any]
#: Among the settings that a function gives: a word about the value, which has no effect.
WORD = "a word"


def loss_type(value: Any, settings: Settings) -> Settings:
    names = {"dapo": "token-mean", "bnpo": "token-mean", "grpo": "seq-mean-token-mean",
             "dr_grpo": "seq-mean-token-sum-norm", "luspo": "seq-mean-token-sum"}  # fmt: skip
    if value == "sapo":
        raise ValueError(
            "loss_type 'sapo' is TRL's Soft Adaptive Policy Optimization, another method than --method sapo here "
            "(Segment-Aligned); leave it out"
        )
    if value in ("cispo", "vespo"):
        raise ValueError(f"loss_type {value!r} is another objective; there are {', '.join(names)}")
    return {"loss_type": names.get(value, value)}


def scale_rewards(value: Any, settings: Settings) -> Settings:
    return {"scale_rewards": {True: "group", False: "none", "True": "group", "False": "none"}.get(value, value)}


def max_steps(value: Any, settings: Settings) -> Settings:
    return {} if value in (-1, None) else {"max_steps": value}


def epochs(value: Any, settings: Settings) -> Settings:
    return {} if value is None or settings.get("max_steps") not in (-1, None) else {"num_train_epochs": float(value)}


def warmup_ratio(value: Any, settings: Settings) -> Settings:
    return {} if value in (None, 0, 0.0) else {"warmup_steps": float(value)}


def scheduler(value: Any, settings: Settings) -> Settings:
    return {"lr_scheduler_type": {"constant_with_warmup": "constant"}.get(value, value)}


def dtype(value: Any, settings: Settings) -> Settings:
    name = str(value).removeprefix("torch.")
    if name in ("float32", "bfloat16"):
        return {"dtype": name}
    raise ValueError(f"dtype is float32 or bfloat16 here, not {name}: set dtype")


def bf16(value: Any, settings: Settings) -> Settings:
    return {"dtype": "bfloat16"} if value and not {"dtype", "torch_dtype"} & set(settings) else {}


def opened(settings: Settings) -> Settings:
    """The settings with what stands inside generation_kwargs and model_init_kwargs among them: in TRL, too, these count
    before its own arguments."""
    inside: Settings = {}
    for kwargs, names in INSIDE.items():
        given = settings.get(kwargs) or {}
        if not isinstance(given, dict):
            raise ValueError(f"{kwargs} is {given!r}: it must be a mapping of names to values")
        for name, value in given.items():
            if name not in names:
                raise ValueError(f"{kwargs}: {name}={value!r} has no counterpart; {', '.join(sorted(names))} have one")
            inside[names[name]] = value
    return {name: value for name, value in settings.items() if name not in (*INSIDE, *_ITS_OWN)} | inside


def defaults(settings: Settings) -> Settings:
    """TRL's own, where the settings are a whole GRPOConfig's: of what it only repeats nothing need be said."""
    if "distributed_state" not in settings:
        return {}
    from trl import GRPOConfig

    given = {name: settings.get(name) for name in _FILLED_IN}
    return {
        f.name: f.default_factory() if callable(f.default_factory) else f.default for f in fields(GRPOConfig)
    } | given


#: Fields that a GRPOConfig fills in itself, by the machine or by others of its fields.
_FILLED_IN = ("accelerator_config", "dataloader_pin_memory", "disable_tqdm", "pad_to_multiple_of")


#: What `vars` of a GRPOConfig has beside its fields.
_ITS_OWN = ("distributed_state", "mixed_precision", "_n_gpu", "_setup_devices", "fsdp_plugin_args", "deepspeed_plugin")


#: Names that may stand within others of TRL's, and what they are called outside.
INSIDE = {
    "generation_kwargs": {name: name for name in ("temperature", "top_p", "top_k", "min_p", "do_sample",
                                                  "repetition_penalty")}
    | {"max_new_tokens": "max_completion_length", "max_tokens": "max_completion_length"},
    "model_init_kwargs": {name: name for name in ("dtype", "torch_dtype", "attn_implementation", "trust_remote_code",
                                                  "use_cache", "device_map", "low_cpu_mem_usage",
                                                  "quantization_config")}
    | {"revision": "model_revision"},
}  # fmt: skip


def optimizer(value: Any, settings: Settings) -> Settings:
    name = str(getattr(value, "value", value))
    if not re.fullmatch(r"(paged_)?adamw_\w+", name):
        raise ValueError(f"optim is {name!r}: the optimizer is AdamW: learning_rate, weight_decay, adam_beta2")
    return {} if name in ("adamw_torch", "adamw_torch_fused") else {WORD: "AdamW's moments are float32 here"}


def report_to(value: Any, settings: Settings) -> Settings:
    names = [value] if isinstance(value, str) else list(value or [])
    names = [name.strip() for one in names for name in one.split(",")]
    return {"report_to": ",".join(name for name in names if name != "none") or "none"}


def strategy(name: str, steps: str, last: float) -> Callable[[Any, Settings], Settings]:
    """When to evaluate or save: `steps` is the setting here, `last` its value for the end alone."""

    def turn(value: Any, settings: Settings) -> Settings:
        when = str(value).rpartition(".")[2].lower()
        if when == "no":
            return {} if settings.get(steps) and steps == "eval_steps" else {steps: 0}
        if when == "epoch" and settings.get("max_steps", -1) in (-1, None):
            epochs = float(settings.get("num_train_epochs") or 3)  # TRL's default
            return {steps: 1 / epochs if epochs > 1 else last}
        if when != "steps":
            raise ValueError(f"{name} is {value!r}: it goes by steps, or by epochs of num_train_epochs; set {steps}")
        return {}

    return turn


def unless_none(name: str) -> Callable[[Any, Settings], Settings]:
    return lambda value, settings: {} if value is None else {name: value}


def batch(value: Any, settings: Settings) -> Settings:
    if value is None:
        return {}
    passes = settings.get("per_device_train_batch_size", 8) * int(os.environ.get("WORLD_SIZE", 1))
    if value % passes:
        raise ValueError(f"generation_batch_size {value} is no multiple of the {passes} completions of a pass")
    return {"steps_per_generation": value // passes}


def shuffle(value: Any, settings: Settings) -> Settings:
    """Shuffled is the default here too, for the tasks that have an order."""
    return {"dataset_args": {**settings.get("dataset_args", {}), "shuffle_dataset": False}} if value is False else {}


def targets(value: Any, settings: Settings) -> Settings:
    """peft reads one text that is not a name as a pattern."""
    if isinstance(value, str) and not re.fullmatch(r"[\w.,-]+", value):
        return {"lora_target_modules": value}
    names = [value] if isinstance(value, str) else sorted(value) if isinstance(value, set) else list(value or [])
    # TRL's own command lines have commas: --lora_target_modules "q_proj", "v_proj"
    names = [part for name in names for part in (name.strip(",").split(",") if isinstance(name, str) else [name])]
    return {"lora_target_modules": None if names in ([], ["all-linear"]) else names}


def reward_funcs(value: Any, settings: Settings) -> Settings:
    """TRL's own are in trl.rewards, and it says package.module.function where we say package.module:function."""

    def spec(name: Any) -> Any:
        if not isinstance(name, str) or ":" in name:
            return name
        if name in ("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward"):
            return f"trl.rewards:{name}"
        place, _, function = name.rpartition(".")
        return f"{place}:{function}" if re.fullmatch(r"[A-Za-z_][\w.]*", place) and function != "py" else name

    return {"reward_funcs": [spec(name) for name in ([value] if isinstance(value, str) else value or [])]}


def data_args(name: str, default: Any) -> Callable[[Any, Settings], Settings]:
    """One of the data set's own settings, where it is not TRL's default."""
    return lambda value, settings: (
        {} if value in (None, default) else {"dataset_args": {**settings.get("dataset_args", {}), name: value}}
    )


def test_split(value: Any, settings: Settings) -> Settings:
    """TRL's default is a split that only a run with evaluations asks for."""
    asked = str(settings.get("eval_strategy", "no")).lower().endswith("steps") or value != "test"
    return data_args("eval_split", None)(value, settings) if asked else {}


def use_vllm(value: Any, settings: Settings) -> Settings:
    return {"sampler": "vllm"} if value else {}


def server(value: Any, settings: Settings) -> Settings:
    """TRL's server has routes of its own; ours is vLLM's, under the same kind of address."""
    base = settings.get("vllm_server_base_url")
    if base is None and settings.get("use_vllm"):
        host, port = settings.get("vllm_server_host", "0.0.0.0"), settings.get("vllm_server_port", 8000)
        base = f"http://{host}:{port}"
    return {} if base is None else {"vllm_server_url": str(base)}


def cap(value: Any, settings: Settings) -> Settings:
    return {} if value is None else {"vllm_importance_sampling_clip_max": float(value)}


def peft_config(value: Any, settings: Settings) -> Settings:
    """A LoraConfig, or its fields: those that have names here, and in lora_args whatever else is not peft's default."""
    from peft import LoraConfig

    if value is None:
        return {}
    default = vars(LoraConfig())
    given = dict(value) if isinstance(value, dict) else dict(vars(value))
    kind = given.pop("peft_type", "LORA")
    if getattr(kind, "value", kind) != "LORA" or given.get("task_type") not in (None, "CAUSAL_LM"):
        raise ValueError(f"peft_config is of {kind}, {given.get('task_type')}: adapters are LoRA's, of a CAUSAL_LM")
    names = {"r": "lora_r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}
    ours: Settings = {"use_peft": True} | {names[k]: given.pop(k) for k in names if given.get(k) is not None}
    ours |= targets(given.pop("target_modules", None), settings)
    further = {
        name: sorted(one) if isinstance(one, set) else one
        for name, one in given.items()
        if name not in _BOOKS and name not in names and one != default.get(name) and name[0] != "_"
    }
    return ours | ({"lora_args": {**settings.get("lora_args", {}), **further}} if further else {})


#: What peft keeps in its configurations about itself.
_BOOKS = ("task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version")


def lora(name: str) -> Callable[[Any, Settings], Settings]:
    return lambda value, settings: (
        {"lora_args": {**settings.get("lora_args", {}), name: value}} if value not in (None, False) else {}
    )
