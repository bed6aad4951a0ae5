"""Settings by TRL's names: what a GRPOConfig says, as settings of a run here.

Each name either is a setting here, is turned into one, is accepted with a word, or is refused with the nearest setting,
before anything is sampled. docs/trl.md is made from this table.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from typing import Any

from segpo_core import trl_turns as turns
from segpo_core.trl_turns import Settings

Turn = Callable[[Any, Settings], Settings]


@dataclass(frozen=True)
class Rule:
    """What becomes of a name of TRL's that is no setting here, or whose values are others."""

    word: str  #: what is said about it, and about what to set instead
    neutral: tuple[Any, ...] = ()  #: values that change nothing: nothing is said about them
    any_value: bool = False  #: every value is accepted, with the word; else others than the neutral ones are refused
    turn: Turn | None = None  #: (value, all settings) -> settings here; may refuse
    first: bool = False  #: what it is turned into goes before what the settings say themselves

    @property
    def kind(self) -> str:
        """As docs/trl.md puts it."""
        return "turned into" if self.turn else "accepted" if self.any_value else "only its default"


_SAMPLING = "no pass would score what it changes about what is drawn; set temperature, top_p, top_k or min_p"
_CACHE = "sampling in process has one kind of cache"
_VLLM = "say it to vLLM's own server, or in vllm_server_args"
_DATA = "rows are read as they are needed"
_LOGGED = "every step is recorded, with every rollout"
_WHOLE = "has no counterpart"
_DROPOUT = "dropout is off, but for that of adapters, lora_dropout, in the passes that learn"
_QUANTIZED = "4- and 8-bit weights are not trained on here: dtype bfloat16 with use_peft is the smallest"

RULES: dict[str, Rule] = {
    # names that are settings here, with other values
    "loss_type": Rule("dapo, bnpo: token-mean; grpo: seq-mean-token-mean; dr_grpo: seq-mean-token-sum-norm; luspo: "
                      "seq-mean-token-sum", turn=turns.loss_type),
    "scale_rewards": Rule("true: group; false: none", turn=turns.scale_rewards),
    "max_steps": Rule("-1: as num_train_epochs says", turn=turns.max_steps),
    "num_train_epochs": Rule("num_train_epochs, unless max_steps is given", turn=turns.epochs),
    "warmup_ratio": Rule("warmup_steps below 1", turn=turns.warmup_ratio),
    "lr_scheduler_type": Rule("constant_with_warmup: constant, with warmup_steps", turn=turns.scheduler),
    "bf16": Rule("dtype: bfloat16", turn=turns.bf16),
    "dtype": Rule("float32 or bfloat16", turn=turns.dtype),
    "torch_dtype": Rule("dtype", turn=turns.dtype),
    "report_to": Rule("report_to, several with commas", turn=turns.report_to),
    "eval_strategy": Rule("no: eval_steps 0; epoch: eval_steps, a share",
                          turn=turns.strategy("eval_strategy", "eval_steps", 0.9999), first=True),
    "eval_steps": Rule("none: the default here", turn=turns.unless_none("eval_steps")),
    "save_strategy": Rule("no: save_steps 0; epoch: save_steps, a share",
                          turn=turns.strategy("save_strategy", "save_steps", 0), first=True),
    "save_steps": Rule("none: the default here", turn=turns.unless_none("save_steps")),
    "save_total_limit": Rule("none: the default here", turn=turns.unless_none("save_total_limit")),
    "num_generations_eval": Rule("none: the default here", turn=turns.unless_none("num_generations_eval")),
    "output_dir": Rule("none: the default here", turn=turns.unless_none("output_dir")),
    "chat_template_kwargs": Rule("none: the default here", turn=turns.unless_none("chat_template_kwargs")),
    "activation_checkpointing": Rule("gradient_checkpointing", turn=turns.unless_none("gradient_checkpointing"),
                                     first=True),
    "top_p": Rule("none: 1", turn=turns.unless_none("top_p")),
    "top_k": Rule("none, or -1: 0", turn=lambda value, settings: {} if value in (None, -1) else {"top_k": value}),
    **{name: Rule(f"{', '.join(inside)}, each as it stands outside; others are refused", turn=lambda *_: {})
       for name, inside in turns.INSIDE.items()},
    "generation_batch_size": Rule("steps_per_generation", turn=turns.batch),
    "use_cpu": Rule("cpu", turn=lambda value, settings: {"cpu": bool(value)}),
    "resume_from_checkpoint": Rule("true: resume", turn=lambda value, settings: {"resume": True} if value else {}),
    "shuffle_dataset": Rule("dataset_args: shuffle_dataset", turn=turns.shuffle),
    "lora_target_modules": Rule("all-linear: none, which is every linear layer of the language model",
                                turn=turns.targets),
    "use_vllm": Rule("sampler: vllm", turn=turns.use_vllm),
    **{name: Rule("vllm_server_url", turn=turns.server) for name in (
        "vllm_server_base_url", "vllm_server_host", "vllm_server_port")},
    "vllm_importance_sampling_cap": Rule("vllm_importance_sampling_clip_max", turn=turns.cap),
    "peft_config": Rule("use_peft, lora_r, lora_alpha, lora_dropout, lora_target_modules, lora_args",
                        turn=turns.peft_config),
    "use_dora": Rule("lora_args: use_dora", turn=turns.lora("use_dora")),
    "use_rslora": Rule("lora_args: use_rslora", turn=turns.lora("use_rslora")),
    "lora_modules_to_save": Rule("lora_args: modules_to_save", turn=turns.lora("modules_to_save")),
    "lora_target_parameters": Rule("lora_args: target_parameters", turn=turns.lora("target_parameters")),
    "reward_funcs": Rule("names of TRL's own: trl.rewards:NAME; package.module.function: package.module:function",
                         turn=turns.reward_funcs),
    "dataset_name": Rule("dataset", turn=lambda value, settings: {} if value is None else {"dataset": value}),
    "dataset_config": Rule("dataset_args: config_name", turn=turns.data_args("config_name", None)),
    "dataset_train_split": Rule("dataset_args: split", turn=turns.data_args("split", "train")),
    "dataset_test_split": Rule("dataset_args: eval_split, where eval_strategy is steps", turn=turns.test_split),
    "evaluation_strategy": Rule("eval_strategy", turn=turns.strategy("evaluation_strategy", "eval_steps", 0.9999),
                                first=True),
    "system_prompt": Rule("dataset_args: system_prompt", turn=turns.data_args("system_prompt", None)),
    "dataset_prompt_column": Rule("dataset_args: prompt_column", turn=turns.data_args("prompt_column", "prompt")),
    "no_cuda": Rule("cpu", turn=lambda value, settings: {"cpu": bool(value)}),
    # accepted with a word
    "attn_implementation": Rule("attention is torch's own (sdpa), with flash kernels where it has some",
                                (None, "sdpa"), any_value=True),
    "device_map": Rule("each process has the device that accelerate gives it", (None,), any_value=True),
    "low_cpu_mem_usage": Rule("weights are read once in any case", (None,), any_value=True),
    "do_sample": Rule("evaluation is greedy, training draws", (True, None)),
    "dataset_streaming": Rule(_DATA, any_value=True),
    "ignore_bias_buffers": Rule("the Trainer's own", any_value=True),
    "logging_dir": Rule("trackers write into the run directory", any_value=True),
    "overwrite_output_dir": Rule("a directory that holds a run is never overwritten: set resume, or another output_dir",
                                 any_value=True),
    **{name: Rule("only 4-bit weights ask", any_value=True) for name in (
        "bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage")},
    **{name: Rule(_LOGGED, any_value=True) for name in (
        "logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "logging_nan_inf_filter",
        "include_num_input_tokens_seen", "log_completions", "log_multimodal", "num_completions_to_print",
        "log_unique_prompts", "wandb_log_unique_prompts", "log_level", "log_level_replica", "disable_tqdm")},
    **{name: Rule(_DATA, any_value=True) for name in (
        "dataloader_drop_last", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
        "dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order",
        "remove_unused_columns", "train_sampling_strategy", "length_column_name", "label_names", "group_by_length")},
    "gradient_checkpointing_kwargs": Rule("layers are always recomputed without reentrance", any_value=True),
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
    "torch_compile": Rule("nothing is compiled", (False,), any_value=True),
    **{name: Rule("the head goes over a chunk of tokens at a time in any case", (False,), any_value=True) for name in (
        "use_liger_kernel", "use_liger_loss")},
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
        "vllm_device", "vllm_dtype", "vllm_max_model_len", "vllm_enable_prefix_caching",
        "vllm_model_impl", "vllm_gpu_memory_utilization", "vllm_max_model_length", "vllm_tensor_parallel_size")},
    "vllm_mode": Rule("vLLM is always a server beside the training here", any_value=True),
    "vllm_group_port": Rule("weights reach the server by way of a folder", any_value=True),
    "vllm_enable_sleep_mode": Rule("the server has devices of its own", any_value=True),
    "vllm_structured_outputs_regex": Rule(_SAMPLING, (None,)),
    "vllm_guided_decoding_regex": Rule(_SAMPLING, (None,)),
    "transformers_continuous_batching_config": Rule("only continuous batching asks", any_value=True),
    # refused, but for the value that changes nothing
    "repetition_penalty": Rule(_SAMPLING, (1, 1.0, None)),
    "cache_implementation": Rule(_CACHE, (None,)),
    "use_transformers_continuous_batching": Rule("set sampler to vllm", (False,)),
    "use_transformers_paged": Rule("set sampler to vllm", (False,)),
    "fp16": Rule("set dtype to bfloat16 or float32", (False, None)),
    "bf16_full_eval": Rule("set dtype", (False, None)),
    "fp16_full_eval": Rule("set dtype", (False, None)),
    "optim": Rule("AdamW, whose moments are float32; learning_rate, weight_decay, adam_beta2", turn=turns.optimizer),
    "adam_beta1": Rule("it is 0.9; adam_beta2 is a setting", (0.9,)),
    "adam_epsilon": Rule("it is 1e-8", (1e-8,)),
    "optim_target_modules": Rule("all parameters that are trained, or LoRA's: use_peft", (None,)),
    "label_smoothing_factor": Rule(_WHOLE, (0, 0.0)),
    "neftune_noise_alpha": Rule(_WHOLE, (None,)),
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
    "model_revision": Rule("give the folder of that revision as model_name_or_path", ("main", None)),
    **{name: Rule(_QUANTIZED, (False, None)) for name in ("load_in_4bit", "load_in_8bit", "quantization_config")},
    "reward_model_name_or_path": Rule("a function that you write asks a reward model: set reward_funcs", (None,)),
    "router_aux_loss_coef": Rule(_WHOLE, (None, 0.0)),
    "sync_ref_model": Rule("the reference stays; set beta", (False,)),
    "multi_objective_aggregation": Rule("rewards are summed by reward_weights", ("sum_then_normalize",)),
    "top_entropy_quantile": Rule("that is a method of its own: --method entropy_tokens", (1, 1.0)),
    "entropy_coef": Rule("has no counterpart; temperature and epsilon_high keep entropy up", (0, 0.0)),
    "use_adaptive_entropy": Rule("has no counterpart; temperature and epsilon_high keep entropy up", (False,)),
    "max_tool_calling_iterations": Rule("there are no tools here", (None,)),
    "off_policy_mask_threshold": Rule("epsilon and delta bound the ratio", (None,)),
    "use_bias_correction_kl": Rule("kl_estimator says how the divergence is estimated", (True, False)),
    "lora_task_type": Rule("it is CAUSAL_LM", ("CAUSAL_LM", None)),
}  # fmt: skip

_DICTS = ("lora_args", "dataset_args")  #: several names of TRL's may end in each
#: Names of settings here with the same meaning whose values of TRL's must be turned before they are checked.
TURNED = {name for name, rule in RULES.items() if rule.turn}


def _turned(turn: Turn, name: str, value: Any, settings: Settings, source: str) -> Settings:
    """What becomes of one setting; an error names where it stands."""
    try:
        return turn(value, settings)
    except ValueError as error:
        said = str(error) if name in str(error) else f"{name}: {error}"
    except (TypeError, ArithmeticError, AttributeError, LookupError):  # of another kind, or a number beyond all others
        said = f"{name}: {value!r:.60} is no value of this setting"
    raise ValueError(f"{source}: {said}")


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
    before: Settings = {}
    words: dict[str, list[str]] = {}
    try:
        default, settings = turns.defaults(settings), turns.opened(settings)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    for name, value in settings.items():
        value = value.value if isinstance(value, Enum) else value
        rule = RULES.get(name)
        if rule is None or (name in known and rule.turn is None):
            ours[name] = {**ours.get(name, {}), **value} if name in _DICTS and isinstance(value, dict) else value
        elif rule.turn is not None:
            given = settings | {name: ours[name] for name in _DICTS if name in ours}
            turned = _turned(rule.turn, name, value, given, source)
            if word := turned.pop(turns.WORD, None):
                words.setdefault(word, []).append(name)
            if rule.first:
                before |= turned
            ours |= {k: v for k, v in turned.items() if k == name or k not in settings or k in _DICTS}
        elif any(value is one or (type(value) is not bool and value == one) for one in rule.neutral) or (
            str(value) in rule.neutral
        ):
            continue
        elif rule.any_value:
            if name not in default or default[name] != value:
                words.setdefault(rule.word, []).append(name)
        else:
            raise ValueError(f"{source}: {name} is {value!r}: {rule.word}")
    return ours | before, [f"{', '.join(names)}: {word}" for word, names in words.items()]
