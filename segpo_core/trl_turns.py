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

    return {field.name: field.default for field in fields(GRPOConfig)}


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


def report_to(value: Any, settings: Settings) -> Settings:
    names = [value] if isinstance(value, str) else list(value or [])
    names = [name.strip() for one in names for name in one.split(",")]
    return {"report_to": ",".join(name for name in names if name != "none") or "none"}


def eval_strategy(value: Any, settings: Settings) -> Settings:
    if str(value) not in ("no", "steps", "IntervalStrategy.NO", "IntervalStrategy.STEPS"):
        raise ValueError(f"eval_strategy is {value!r}: evaluation goes by steps; set eval_steps (0: never)")
    return {"eval_steps": 0} if str(value).lower().endswith("no") and not settings.get("eval_steps") else {}


def save_strategy(value: Any, settings: Settings) -> Settings:
    if str(value) not in ("no", "steps", "SaveStrategy.NO", "SaveStrategy.STEPS"):
        raise ValueError(f"save_strategy is {value!r}: saving goes by steps; set save_steps (0: only the last)")
    return {"save_steps": 0} if str(value).lower().endswith("no") else {}


def unless_none(name: str) -> Callable[[Any, Settings], Settings]:
    return lambda value, settings: {} if value is None else {name: value}


def steps(name: str) -> Callable[[Any, Settings], Settings]:
    def turn(value: Any, settings: Settings) -> Settings:
        if value is None:
            return {}
        if 0 < value < 1:
            raise ValueError(f"{name} is {value}: it is a number of steps here, not a share of them")
        return {name: int(value)}

    return turn


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
    if value in (None, "all-linear", ["all-linear"]):
        return {"lora_target_modules": None}
    if isinstance(value, str):
        return {"lora_target_modules": [value] if re.fullmatch(r"[\w.]+", value) else value}
    return {"lora_target_modules": sorted(value) if isinstance(value, set) else list(value)}


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
