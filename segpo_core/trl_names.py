"""Settings by TRL's names: what a GRPOConfig says, as settings of a run here.

Each name either is a setting here, is turned into one, is accepted with a word, or is refused with the nearest setting,
before anything is sampled. docs/trl.md is made from this table.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from typing import Any

Settings = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """What becomes of a name of TRL's that is no setting here, or whose values are others."""

    word: str  #: what is said about it, and about what to set instead
    neutral: tuple[Any, ...] = ()  #: values that change nothing: nothing is said about them
    any_value: bool = False  #: every value is accepted, with the word; else others than the neutral ones are refused
    turn: Callable[[Any, Settings], Settings] | None = None  #: (value, all settings) -> settings here; may refuse

    @property
    def kind(self) -> str:
        """As docs/trl.md puts it."""
        return "turned into" if self.turn else "accepted" if self.any_value else "only its default"


def _loss_type(value: Any, settings: Settings) -> Settings:
    names = {"dapo": "token-mean", "bnpo": "token-mean", "grpo": "seq-mean-token-mean",
             "dr_grpo": "seq-mean-token-sum-norm"}  # fmt: skip
    if value == "sapo":
        raise ValueError(
            "loss_type 'sapo' is TRL's Soft Adaptive Policy Optimization, another method than --method sapo here "
            "(Segment-Aligned); leave it out"
        )
    if value in ("cispo", "vespo", "luspo"):
        raise ValueError(f"loss_type {value!r} is another objective; there are {', '.join(names)}")
    return {"loss_type": names.get(value, value)}


def _scale_rewards(value: Any, settings: Settings) -> Settings:
    return {"scale_rewards": {True: "group", False: "none", "True": "group", "False": "none"}.get(value, value)}


def _max_steps(value: Any, settings: Settings) -> Settings:
    return {} if value in (-1, None) else {"max_steps": value}


def _epochs(value: Any, settings: Settings) -> Settings:
    return {} if value is None or settings.get("max_steps") not in (-1, None) else {"num_train_epochs": float(value)}


def _warmup_ratio(value: Any, settings: Settings) -> Settings:
    return {} if value in (None, 0, 0.0) else {"warmup_steps": float(value)}


def _scheduler(value: Any, settings: Settings) -> Settings:
    return {"lr_scheduler_type": {"constant_with_warmup": "constant"}.get(value, value)}


def _dtype(value: Any) -> Settings:
    name = str(value).removeprefix("torch.")
    if name in ("float32", "bfloat16"):
        return {"dtype": name}
    raise ValueError(f"dtype is float32 or bfloat16 here, not {name}: set dtype")


def _bf16(value: Any, settings: Settings) -> Settings:
    return {"dtype": "bfloat16"} if value and "dtype" not in settings else {}


def _model_init(value: Any, settings: Settings) -> Settings:
    ours: Settings = {}
    for name, given in (value or {}).items():
        if name in ("dtype", "torch_dtype"):
            ours |= _dtype(given)
        elif not (name == "attn_implementation" and given in ("sdpa", "eager", None)) and given not in (None, False):
            raise ValueError(f"model_init_kwargs: {name}={given!r} has no counterpart; dtype is the one that has")
    return ours


def _turned(turn: Callable[[Any, Settings], Settings], name: str, settings: Settings, source: str) -> Settings:
    """What becomes of one setting; an error names where it stands."""
    try:
        return turn(settings[name], settings)
    except ValueError as error:
        said = str(error) if name in str(error) else f"{name}: {error}"
    except (TypeError, ArithmeticError, AttributeError, LookupError):  # of another kind, or a number beyond all others
        said = f"{name}: {settings[name]!r:.60} is no value of this setting"
    raise ValueError(f"{source}: {said}")


def _generation(value: Any, settings: Settings) -> Settings:
    """TRL lets these override its own arguments; max_new_tokens is max_completion_length there too."""
    ours: Settings = {}
    for name, given in (value or {}).items():
        if name in ("temperature", "top_p", "top_k", "min_p"):
            ours[name] = given
        elif name in ("max_new_tokens", "max_tokens"):
            ours["max_completion_length"] = given
        elif not (name == "do_sample" and given) and not (name == "repetition_penalty" and given == 1):
            raise ValueError(f"generation_kwargs: {name}={given!r}: {_SAMPLING}")
    return ours


def _report_to(value: Any, settings: Settings) -> Settings:
    names = [value] if isinstance(value, str) else list(value or [])
    names = [name.strip() for one in names for name in one.split(",")]
    return {"report_to": ",".join(name for name in names if name != "none") or "none"}


def _eval_strategy(value: Any, settings: Settings) -> Settings:
    if str(value) not in ("no", "steps", "IntervalStrategy.NO", "IntervalStrategy.STEPS"):
        raise ValueError(f"eval_strategy is {value!r}: evaluation goes by steps; set eval_steps (0: never)")
    return {"eval_steps": 0} if str(value).lower().endswith("no") and not settings.get("eval_steps") else {}


def _save_strategy(value: Any, settings: Settings) -> Settings:
    if str(value) not in ("no", "steps", "SaveStrategy.NO", "SaveStrategy.STEPS"):
        raise ValueError(f"save_strategy is {value!r}: saving goes by steps; set save_steps (0: only the last)")
    return {"save_steps": 0} if str(value).lower().endswith("no") else {}


def _unless_none(name: str) -> Callable[[Any, Settings], Settings]:
    return lambda value, settings: {} if value is None else {name: value}


def _steps(name: str) -> Callable[[Any, Settings], Settings]:
    def turn(value: Any, settings: Settings) -> Settings:
        if value is None:
            return {}
        if 0 < value < 1:
            raise ValueError(f"{name} is {value}: it is a number of steps here, not a share of them")
        return {name: int(value)}

    return turn


def _batch(value: Any, settings: Settings) -> Settings:
    if value is None:
        return {}
    passes = settings.get("per_device_train_batch_size", 8) * int(os.environ.get("WORLD_SIZE", 1))
    if value % passes:
        raise ValueError(f"generation_batch_size {value} is no multiple of the {passes} completions of a pass")
    return {"steps_per_generation": value // passes}


def _shuffle(value: Any, settings: Settings) -> Settings:
    """Shuffled is the default here too, for the tasks that have an order."""
    return {"dataset_args": {**settings.get("dataset_args", {}), "shuffle_dataset": False}} if value is False else {}


def _targets(value: Any, settings: Settings) -> Settings:
    names = [value] if isinstance(value, str) else value
    return {"lora_target_modules": None if names in (None, ["all-linear"]) else list(names)}


def _use_vllm(value: Any, settings: Settings) -> Settings:
    return {"sampler": "vllm"} if value else {}


def _server(value: Any, settings: Settings) -> Settings:
    """TRL's server has routes of its own; ours is vLLM's, under the same kind of address."""
    base = settings.get("vllm_server_base_url")
    if base is None and settings.get("use_vllm"):
        host, port = settings.get("vllm_server_host", "0.0.0.0"), settings.get("vllm_server_port", 8000)
        base = f"http://{host}:{port}"
    return {} if base is None else {"vllm_server_url": str(base)}


def _cap(value: Any, settings: Settings) -> Settings:
    return {} if value is None else {"vllm_importance_sampling_clip_max": float(value)}


def _peft_config(value: Any, settings: Settings) -> Settings:
    if value is None:
        return {}
    given = dict(value) if isinstance(value, dict) else {k: v for k, v in vars(value).items() if not k.startswith("_")}
    names = {"r": "lora_r", "lora_alpha": "lora_alpha", "target_modules": "lora_target_modules"}
    ours: Settings = {"use_peft": True} | {names[k]: given[k] for k in names if given.get(k) is not None}
    if isinstance(ours.get("lora_target_modules"), set):
        ours["lora_target_modules"] = sorted(ours["lora_target_modules"])
    ours |= _targets(ours.pop("lora_target_modules", None), settings)
    if given.get("lora_dropout"):
        raise ValueError(f"peft_config: lora_dropout is {given['lora_dropout']}: {RULES['lora_dropout'].word}")
    further = {k: given[k] for k in ("use_dora", "use_rslora", "modules_to_save") if given.get(k)}
    return ours | ({"lora_args": further} if further else {})


def _lora(name: str) -> Callable[[Any, Settings], Settings]:
    return lambda value, settings: (
        {"lora_args": {**settings.get("lora_args", {}), name: value}} if value not in (None, False) else {}
    )


_SAMPLING = "no pass would score what it changes about what is drawn; set temperature, top_p, top_k or min_p"
_CACHE = "sampling in process has one kind of cache"
_VLLM = "say it to vLLM's own server, or in vllm_server_args"
_DATA = "rows are read as they are needed"
_LOGGED = "every step is recorded, with every rollout"
_WHOLE = "has no counterpart"
_DROPOUT = "dropout is off in every pass, so that a sampled token has the same probability when it is scored"

RULES: dict[str, Rule] = {
    # names that are settings here, with other values
    "loss_type": Rule("dapo, bnpo: token-mean; grpo: seq-mean-token-mean; dr_grpo: seq-mean-token-sum-norm",
                      turn=_loss_type),
    "scale_rewards": Rule("true: group; false: none", turn=_scale_rewards),
    "max_steps": Rule("-1: as num_train_epochs says", turn=_max_steps),
    "num_train_epochs": Rule("num_train_epochs, unless max_steps is given", turn=_epochs),
    "warmup_ratio": Rule("warmup_steps below 1", turn=_warmup_ratio),
    "lr_scheduler_type": Rule("constant_with_warmup: constant, with warmup_steps", turn=_scheduler),
    "bf16": Rule("dtype: bfloat16", turn=_bf16),
    "model_init_kwargs": Rule("its dtype: dtype; others are refused", turn=_model_init),
    "report_to": Rule("report_to, several with commas", turn=_report_to),
    "eval_strategy": Rule("no: eval_steps 0", turn=_eval_strategy),
    "eval_steps": Rule("eval_steps", turn=_steps("eval_steps")),
    "save_strategy": Rule("no: save_steps 0", turn=_save_strategy),
    "save_steps": Rule("save_steps", turn=_steps("save_steps")),
    "save_total_limit": Rule("none: the default here", turn=_unless_none("save_total_limit")),
    "num_generations_eval": Rule("none: the default here", turn=_unless_none("num_generations_eval")),
    "output_dir": Rule("none: the default here", turn=_unless_none("output_dir")),
    "top_k": Rule("none, or -1: 0", turn=lambda value, settings: {} if value in (None, -1) else {"top_k": value}),
    "generation_kwargs": Rule("its temperature, top_p, top_k and min_p; others are refused", turn=_generation),
    "generation_batch_size": Rule("steps_per_generation", turn=_batch),
    "use_cpu": Rule("cpu", turn=lambda value, settings: {"cpu": bool(value)}),
    "resume_from_checkpoint": Rule("true: resume", turn=lambda value, settings: {"resume": True} if value else {}),
    "shuffle_dataset": Rule("dataset_args: shuffle_dataset", turn=_shuffle),
    "lora_target_modules": Rule("all-linear: none, which is every linear layer of the language model", turn=_targets),
    "use_vllm": Rule("sampler: vllm", turn=_use_vllm),
    **{name: Rule("vllm_server_url", turn=_server) for name in (
        "vllm_server_base_url", "vllm_server_host", "vllm_server_port")},
    "vllm_importance_sampling_cap": Rule("vllm_importance_sampling_clip_max", turn=_cap),
    "peft_config": Rule("use_peft, lora_r, lora_alpha, lora_target_modules, lora_args", turn=_peft_config),
    "use_dora": Rule("lora_args: use_dora", turn=_lora("use_dora")),
    "use_rslora": Rule("lora_args: use_rslora", turn=_lora("use_rslora")),
    "lora_modules_to_save": Rule("lora_args: modules_to_save", turn=_lora("modules_to_save")),
    # accepted with a word
    **{name: Rule(_LOGGED, any_value=True) for name in (
        "logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "logging_nan_inf_filter",
        "include_num_input_tokens_seen", "log_completions", "log_multimodal", "num_completions_to_print",
        "log_unique_prompts", "log_level", "log_level_replica", "disable_tqdm")},
    **{name: Rule(_DATA, any_value=True) for name in (
        "dataloader_drop_last", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
        "dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order",
        "remove_unused_columns", "train_sampling_strategy", "length_column_name", "label_names", "group_by_length")},
    "gradient_checkpointing_kwargs": Rule("layers are always recomputed without reentrance", any_value=True),
    "activation_checkpointing": Rule("see gradient_checkpointing", any_value=True),
    "activation_checkpointing_kwargs": Rule("see gradient_checkpointing", any_value=True),
    "disable_dropout": Rule(_DROPOUT, any_value=True),
    "average_tokens_across_devices": Rule("losses are means over the whole batch in any case", any_value=True),
    "eval_on_start": Rule("the start is always evaluated, where eval_steps is not 0", any_value=True),
    "per_device_eval_batch_size": Rule("evaluation takes the size that it needs", any_value=True),
    "hub_strategy": Rule("the last checkpoint is pushed, when the run ends", any_value=True),
    "hub_token": Rule("tokens are no settings: log in (hf auth login) or set HF_TOKEN", (None,)),
    "pad_to_multiple_of": Rule("padding changes no number here", any_value=True),
    "use_cache": Rule("sampling always keeps a cache, training never", any_value=True),
    "tf32": Rule("torch decides", any_value=True),
    "project": Rule("trackers know the run as segpo", any_value=True),
    "cast_lm_head_to_fp32": Rule("log-probabilities are float32 in any case", any_value=True),
    "ds3_gather_for_generation": Rule("only DeepSpeed asks", any_value=True),
    "torch_empty_cache_steps": Rule("memory only", any_value=True),
    **{name: Rule("the Trainer's own", any_value=True) for name in (
        "do_train", "do_eval", "do_predict", "local_rank", "skip_memory_metrics", "prediction_loss_only", "log_level",
        "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps", "include_for_metrics",
        "batch_eval_metrics", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers",
        "ddp_static_graph", "ddp_timeout", "ignore_data_skip", "restore_callback_states_from_checkpoint",
        "save_on_each_node", "hub_always_push",
        "hub_revision", "metric_for_best_model", "greater_is_better", "trackio_space_id", "trackio_bucket_id",
        "trackio_static_space_id", "liger_kernel_config", "torch_compile_backend", "torch_compile_mode", "ddp_backend",
        "optim_args", "lr_scheduler_kwargs", "ref_model_mixup_alpha", "ref_model_sync_steps", "sapo_temperature_neg",
        "sapo_temperature_pos", "vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg",
        "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target", "enable_jit_checkpoint")},
    **{name: Rule(_VLLM, any_value=True) for name in (
        "vllm_model_impl", "vllm_gpu_memory_utilization", "vllm_max_model_length", "vllm_tensor_parallel_size")},
    "vllm_mode": Rule("vLLM is always a server beside the training here", any_value=True),
    "vllm_group_port": Rule("weights reach the server by way of a folder", any_value=True),
    "vllm_enable_sleep_mode": Rule("the server has devices of its own", any_value=True),
    "vllm_structured_outputs_regex": Rule(_SAMPLING, (None,)),
    "transformers_continuous_batching_config": Rule("only continuous batching asks", any_value=True),
    # refused, but for the value that changes nothing
    "repetition_penalty": Rule(_SAMPLING, (1, 1.0, None)),
    "cache_implementation": Rule(_CACHE, (None,)),
    "chat_template_kwargs": Rule("the chat template is used as it is: change it in the model's folder", (None, {})),
    "use_transformers_continuous_batching": Rule("set sampler to vllm", (False,)),
    "use_transformers_paged": Rule("set sampler to vllm", (False,)),
    "fp16": Rule("set dtype to bfloat16 or float32", (False, None)),
    "bf16_full_eval": Rule("set dtype", (False, None)),
    "fp16_full_eval": Rule("set dtype", (False, None)),
    "optim": Rule("the optimizer is AdamW: learning_rate, weight_decay, adam_beta2", (
        "adamw_torch", "adamw_torch_fused", "OptimizerNames.ADAMW_TORCH", "OptimizerNames.ADAMW_TORCH_FUSED")),
    "adam_beta1": Rule("it is 0.9; adam_beta2 is a setting", (0.9,)),
    "adam_epsilon": Rule("it is 1e-8", (1e-8,)),
    "optim_target_modules": Rule("all parameters that are trained, or LoRA's: use_peft", (None,)),
    "label_smoothing_factor": Rule(_WHOLE, (0, 0.0)),
    "neftune_noise_alpha": Rule(_WHOLE, (None,)),
    "torch_compile": Rule(_WHOLE, (False,)),
    "use_liger_kernel": Rule(_WHOLE, (False,)),
    "auto_find_batch_size": Rule("set per_device_train_batch_size", (False,)),
    "eval_delay": Rule("set eval_steps", (0, None)),
    "save_only_model": Rule("a checkpoint holds all that --resume needs", (False,)),
    "log_completions_hub_repo": Rule("rollouts are recorded in output_dir", (None,)),
    "load_best_model_at_end": Rule("every checkpoint is kept up to save_total_limit", (False,)),
    "full_determinism": Rule("runs repeat bit for bit on a CPU", (False,)),
    "data_seed": Rule("seed names the order of the data too", (None,)),
    "accelerator_config": Rule("use accelerate launch --config_file", any_value=True),
    "parallelism_config": Rule("use accelerate launch --config_file", (None,)),
    "fsdp": Rule("use accelerate launch --config_file configs/accelerate/fsdp2.yaml", (None, "", [])),
    "fsdp_config": Rule("use accelerate launch --config_file configs/accelerate/fsdp2.yaml", (None, "", {})),
    "deepspeed": Rule("use accelerate launch --config_file configs/accelerate/fsdp2.yaml, or use_peft", (None, "")),
    "debug": Rule(_WHOLE, ("", [], None)),
    **{name: Rule("code of a model directory is never run here", (False, None)) for name in ("trust_remote_code",)},
    "router_aux_loss_coef": Rule(_WHOLE, (None, 0.0)),
    "sync_ref_model": Rule("the reference stays; set beta", (False,)),
    "multi_objective_aggregation": Rule("rewards are summed by reward_weights", ("sum_then_normalize",)),
    "top_entropy_quantile": Rule("that is a method of its own: --method entropy_tokens", (1, 1.0)),
    "entropy_coef": Rule("has no counterpart; temperature and epsilon_high keep entropy up", (0, 0.0)),
    "use_adaptive_entropy": Rule("has no counterpart; temperature and epsilon_high keep entropy up", (False,)),
    "max_tool_calling_iterations": Rule("there are no tools here", (None,)),
    "off_policy_mask_threshold": Rule("epsilon and delta bound the ratio", (None,)),
    "use_bias_correction_kl": Rule("kl_estimator says how the divergence is estimated", (True, False)),
    "lora_dropout": Rule(_DROPOUT, (0, 0.0, None)),
    "lora_task_type": Rule("it is CAUSAL_LM", ("CAUSAL_LM", None)),
}  # fmt: skip

_DICTS = ("lora_args", "dataset_args")  #: several names of TRL's may end in each
#: Names of settings here with the same meaning whose values of TRL's must be turned before they are checked.
TURNED = {name for name, rule in RULES.items() if rule.turn}


def translate(settings: Settings, known: Collection[str], source: str = "the settings") -> tuple[Settings, list[str]]:
    """Settings with TRL's names as settings here, and a word about each that is accepted without effect.

    Args:
        settings: name -> value, of either kind.
        known: names that are settings here; these stay, but for values that only TRL has.
        source: named in errors.

    Raises:
        ValueError: a name or value that has no counterpart; the message names the nearest setting.
    """
    ours: Settings = {}
    words: dict[str, list[str]] = {}
    if settings.get("generation_kwargs"):  # TRL's own arguments give way to these
        settings = settings | _turned(_generation, "generation_kwargs", settings, source) | {"generation_kwargs": None}
    for name, value in settings.items():
        value = value.value if isinstance(value, Enum) else value
        rule = RULES.get(name)
        if rule is None or (name in known and rule.turn is None):
            ours[name] = {**ours.get(name, {}), **value} if name in _DICTS and isinstance(value, dict) else value
        elif rule.turn is not None:
            given = settings | {name: value} | {name: ours[name] for name in _DICTS if name in ours}
            turned = _turned(rule.turn, name, given, source)
            ours |= {k: v for k, v in turned.items() if k == name or k not in settings or k in _DICTS}
        elif any(value is one or (type(value) is not bool and value == one) for one in rule.neutral) or (
            str(value) in rule.neutral
        ):
            continue
        elif rule.any_value:
            words.setdefault(rule.word, []).append(name)
        else:
            raise ValueError(f"{source}: {name} is {value!r}: {rule.word}")
    return ours, [f"{', '.join(names)}: {word}" for word, names in words.items()]
