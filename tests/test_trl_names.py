"""A GRPOConfig of TRL's as settings here: every name works, is accepted with a word, or is refused with a way out."""

import dataclasses
import importlib.util
import logging
import math
import re
from pathlib import Path

import pytest
from datasets import Dataset
from peft import LoraConfig, PeftModel
from trl import GRPOConfig, ModelConfig, TrlParser
from trl.scripts.grpo import GRPOScriptArguments

from segpo_core.afterwards.trained import Policy
from segpo_core.algos import GRPO
from segpo_core.cli import parse_train
from segpo_core.config import TrainConfig, from_dict
from segpo_core.loading import absolute
from segpo_core.policy.inputs import Prompts
from segpo_core.policy.load import load_model, load_processor, set_in_template
from segpo_core.record.store import read_metrics
from segpo_core.training.loop import Trainer
from segpo_core.trl_names import RULES
from tests.fakes import families
from tests.fakes.toy import lucky_text

DOCS = Path(__file__).parents[1] / "docs"
spec = importlib.util.spec_from_file_location("make_trl", DOCS / "make_trl.py")
make_trl = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_trl)
FIELDS = {field.name: make_trl.default(field) for field in dataclasses.fields(GRPOConfig)}
#: Those of a script's other arguments, too.
ALL = {f.name: make_trl.default(f) for theirs in make_trl.THEIRS.values() for f in dataclasses.fields(theirs)}


def of(method="grpo", **settings) -> TrainConfig:
    return from_dict(settings, method=method)


@pytest.mark.parametrize("name", sorted(ALL.keys() - {"model_name_or_path"}))
def test_every_name_is_known(name):
    """At TRL's default, each is a setting here, or changes nothing, or says a word. (A model has no default there.)"""
    assert isinstance(of(**{name: ALL[name]}), TrainConfig)


def test_every_name_that_is_no_setting_has_a_rule_and_refusals_have_a_way_out():
    ours = {field.name for field in (*dataclasses.fields(TrainConfig), *dataclasses.fields(GRPO))}
    assert not set(ALL) - ours - set(RULES)
    for name, rule in RULES.items():
        if not rule.turn and not rule.any_value and name not in ours:
            with pytest.raises(ValueError, match=rf"^the settings: {name} is 'odd': \w+"):
                of(**{name: "odd"})


@pytest.mark.parametrize(
    "value", [math.inf, math.nan, 10**400, [1], {}, "x", b"\xff", object()], ids=lambda value: f"{value}"[:9]
)
@pytest.mark.parametrize("name", sorted(name for name, rule in RULES.items() if rule.turn))
def test_what_is_turned_is_taken_or_refused_by_name(name, value):
    """Whatever the value: no error but one that names the setting, or the one that it becomes."""
    try:
        of(**{name: value})
    except ValueError as error:
        assert name in str(error) or re.match(r"[a-z_]+ must be \w+", str(error))


def test_a_typical_config(caplog):
    args = GRPOConfig(
        output_dir="out", learning_rate=2e-5, num_train_epochs=2, per_device_train_batch_size=16, num_generations=8,
        generation_batch_size=32, gradient_accumulation_steps=2, max_completion_length=64, logging_steps=1,
        save_steps=25, save_total_limit=3, eval_strategy="steps", eval_steps=10, warmup_steps=0.1, report_to="wandb",
        lr_scheduler_type="cosine", loss_type="dr_grpo", scale_rewards=False, beta=0.04, use_cpu=True,
        model_init_kwargs={"dtype": "bfloat16", "attn_implementation": "sdpa"}, log_completions=True, run_name="x",
        top_p=1.0, gradient_checkpointing=True, remove_unused_columns=False, seed=7,
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        config = of(**{name: getattr(args, name) for name in FIELDS})
    assert (config.learning_rate, config.num_train_epochs, config.passes, config.seed) == (2e-5, 2.0, 2, 7)
    assert (config.eval_steps, config.save_steps, config.report_to, config.cpu) == (10, 25, "wandb", True)
    assert (config.lr_scheduler_type, config.warmup_steps, config.dtype) == ("cosine", 0.1, "bfloat16")
    algo = config.algo
    assert (algo.loss_type, algo.scale_rewards, algo.beta) == ("seq-mean-token-sum-norm", "none", 0.04)
    assert "accepted without effect: logging" in caplog.text


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (dict(loss_type="grpo"), ("algo.loss_type", "seq-mean-token-mean")),
        (dict(loss_type="luspo"), ("algo.loss_type", "seq-mean-token-sum")),
        (dict(torch_dtype="torch.bfloat16"), ("dtype", "bfloat16")),
        (dict(model_init_kwargs={"torch_dtype": "bfloat16", "device_map": "auto", "use_cache": False}),
         ("dtype", "bfloat16")),
        (dict(dataset_name="trl-lib/x", dataset_config="main", dataset_train_split="tr", dataset_test_split="test"),
         ("dataset_args", {"config_name": "main", "split": "tr"})),
        (dict(dataset_test_split="test", eval_strategy="steps"), ("dataset_args", {"eval_split": "test"})),
        (dict(reward_funcs="accuracy_reward"), ("reward_funcs", ["trl.rewards:accuracy_reward"])),
        (dict(reward_funcs=["os.path.basename", "json:loads"]), ("reward_funcs", ["os.path:basename", "json:loads"])),
        (dict(lora_target_modules="q_proj"), ("lora_target_modules", ["q_proj"])),
        (dict(lora_target_modules=r".*\.q_proj"), ("lora_target_modules", r".*\.q_proj")),
        (dict(peft_config=LoraConfig(lora_dropout=0.05, layers_to_transform=[0], bias="none")),
         ("lora_args", {"layers_to_transform": [0]})),
        (dict(peft_config=LoraConfig(lora_dropout=0.05)), ("lora_dropout", 0.05)),
        (dict(peft_config=LoraConfig(target_modules={"v_proj", "q_proj"})),
         ("lora_target_modules", ["q_proj", "v_proj"])),
        (dict(scale_rewards=True), ("algo.scale_rewards", "group")),
        (dict(bf16=True), ("dtype", "bfloat16")),
        (dict(bf16=True, dtype="float32"), ("dtype", "float32")),
        (dict(num_train_epochs=3, max_steps=-1), ("num_train_epochs", 3.0)),
        (dict(num_train_epochs=3, max_steps=7), ("num_train_epochs", None)),
        (dict(warmup_ratio=0.2), ("warmup_steps", 0.2)),
        (dict(eval_strategy="no"), ("eval_steps", 0)),
        (dict(save_strategy="no"), ("save_steps", 0)),
        (dict(save_steps=500, save_strategy="no"), ("save_steps", 0)),
        (dict(save_strategy="epoch", save_steps=500, num_train_epochs=4), ("save_steps", 0.25)),
        (dict(save_strategy="epoch", num_train_epochs=1), ("save_steps", 0)),
        (dict(eval_strategy="epoch", num_train_epochs=1), ("eval_steps", 0.9999)),
        (dict(save_steps=0.1), ("save_steps", 0.1)),
        (dict(save_steps=10.0), ("save_steps", 10)),
        (dict(optim="paged_adamw_8bit"), ("learning_rate", 1e-6)),
        (dict(top_p=None), ("top_p", 1.0)),
        (dict(system_prompt="Think."), ("dataset_args", {"system_prompt": "Think."})),
        (dict(lora_target_modules=["q_proj,", "v_proj"]), ("lora_target_modules", ["q_proj", "v_proj"])),
        (dict(report_to=["wandb", "tensorboard"]), ("report_to", "wandb,tensorboard")),
        (dict(shuffle_dataset=False), ("dataset_args", {"shuffle_dataset": False})),
        (dict(use_vllm=True), ("sampler", "vllm")),
        (dict(use_vllm=True, vllm_server_host="h", vllm_server_port=5), ("vllm_server_url", "http://h:5")),
        (dict(vllm_server_base_url="http://b:1", vllm_server_port=5), ("vllm_server_url", "http://b:1")),
        (dict(vllm_server_port=5), ("vllm_server_url", "http://127.0.0.1:8000")),
        (dict(vllm_importance_sampling_cap=2), ("vllm_importance_sampling_clip_max", 2.0)),
        (dict(lora_target_modules="all-linear"), ("lora_target_modules", None)),
        (dict(use_dora=True, lora_modules_to_save=["lm_head"]),
         ("lora_args", {"use_dora": True, "modules_to_save": ["lm_head"]})),
        (dict(resume_from_checkpoint=True), ("resume", True)),
        (dict(top_p=0.9), ("top_p", 0.9)),
        (dict(top_k=-1), ("top_k", 0)),
        (dict(min_p=0.1), ("min_p", 0.1)),
        (dict(generation_kwargs={"top_k": 20, "do_sample": True}, top_k=0), ("top_k", 20)),
        (dict(max_completion_length=9, generation_kwargs={"max_new_tokens": 5}), ("max_completion_length", 5)),
    ],
)  # fmt: skip
def test_what_is_turned_into_settings(settings, expected):
    found, (path, value) = of(**settings), expected
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(loss_type="sapo"), "Soft Adaptive .* another method than --method sapo"),
        (dict(loss_type="cispo"), "'cispo' is another objective; there are dapo"),
        (dict(top_p=1.5), "top_p is 1.5: it is a probability"),
        (dict(top_k=-2), "top_k is -2: it is a number of tokens"),
        (dict(min_p=-0.5), "min_p is -0.5: it is a share"),
        (dict(repetition_penalty=1.1), "repetition_penalty is 1.1: no pass would score .*set temperature, top_p"),
        (dict(generation_kwargs={"num_beams": 4}), "generation_kwargs: num_beams=4 has no counterpart; .*top_p"),
        (dict(generation_kwargs="top_p"), "generation_kwargs is 'top_p': it must be a mapping"),
        (dict(optim="sgd"), "the optimizer is AdamW"),
        (dict(top_entropy_quantile=0.2), "--method entropy_tokens"),
        (dict(eval_strategy="epoch", max_steps=5), "set eval_steps"),
        (dict(save_strategy="best"), "set save_steps"),
        (dict(eval_steps=2.5), "eval_steps is 2.5: it is a number of steps, or below 1"),
        (dict(optim="adafactor"), "optim is 'adafactor': the optimizer is AdamW"),
        (dict(generation_batch_size=12), "no multiple of the 8"),
        (dict(model_init_kwargs={"gguf_file": "x"}), "model_init_kwargs: gguf_file='x' has no counterpart; .*dtype"),
        (dict(model_init_kwargs={"quantization_config": {}}), "quantization_config is {}: 4- and 8-bit weights"),
        (dict(model_init_kwargs={"dtype": "float16"}), "dtype is float32 or bfloat16 here, not float16"),
        (dict(load_in_4bit=True), "dtype bfloat16 with use_peft"),
        (dict(model_revision="v2"), "give the folder of that revision"),
        (dict(reward_model_name_or_path="x"), "set reward_funcs"),
        (dict(report_to="mlflow"), "report_to names 'mlflow'"),
        (dict(peft_config={"lora_dropout": 1.0}), "lora_dropout is 1.0: it is a probability"),
        (dict(peft_config={"peft_type": "IA3"}), "peft_config is of IA3, None: adapters are LoRA's"),
        (dict(peft_config={"task_type": "SEQ_CLS"}), "peft_config is of LORA, SEQ_CLS"),
        (dict(num_generation=8), "did you mean 'num_generations'"),
    ],
)
def test_what_is_refused_names_the_nearest_setting(settings, message):
    with pytest.raises(ValueError, match=message):
        of(**settings)


def test_flags_take_the_same_names():
    config = parse_train([
        "--method", "grpo", "--num-train-epochs", "2", "--bf16", "--logging-steps", "1", "--lora-target-modules",
        "all-linear", "--report-to", "tensorboard", "wandb", "--scale_rewards", "false", "--loss-type", "dapo",
        "--learning-rate", "1e-4", "--warmup-ratio", "0.1",
    ])  # fmt: skip
    assert (config.num_train_epochs, config.dtype, config.report_to) == (2.0, "bfloat16", "tensorboard,wandb")
    assert (config.algo.scale_rewards, config.algo.loss_type, config.warmup_steps) == ("none", "token-mean", 0.1)
    assert (config.learning_rate, config.lora_target_modules) == (1e-4, None)
    cut = parse_train(["--method", "forks", "--top-p", "0.9", "--top_k", "20", "--min-p", "0.05"])
    assert (cut.top_p, cut.top_k, cut.min_p) == (0.9, 20, 0.05)
    assert parse_train(["--generation-kwargs", '{"top_p": 0.5}']).top_p == 0.5
    with pytest.raises(ValueError, match="top_p 0.9 with sampler vllm: Fork values draws what its tree does not hold"):
        of("forks", top_p=0.9, sampler="vllm")


def test_epochs_become_steps_and_warm_up_a_share_of_them(tmp_path):
    model = families.llama(tmp_path / "llama")
    rows = [{"prompt": f"{i} =", "answer": str(i)} for i in range(12)]
    settings = dict(model_name_or_path=str(model), output_dir=str(tmp_path / "run"), num_generations=4, cpu=True,
                    per_device_train_batch_size=8, num_train_epochs=3, warmup_ratio=0.25, eval_steps=0)  # fmt: skip
    trainer = Trainer(of(**settings), dataset=rows, eval_dataset=rows[:2])
    assert trainer.config.max_steps == 18
    rates = [trainer.config.learning_rate_factor(step) for step in (1, 5, 6)]
    assert rates == [0.2, 1.0, 1.0]
    with pytest.raises(ValueError, match="shapes has problems without end: set max_steps"):
        Trainer(of(**settings | dict(output_dir=str(tmp_path / "other"))))


def test_the_classes_of_a_script_together(caplog):
    """As TRL's own command line makes them, with an adapter whose dropout is TRL's default."""
    parser = TrlParser((GRPOScriptArguments, GRPOConfig, ModelConfig))
    words = "--model_name_or_path m --output_dir out --dataset_name rows.jsonl --reward_funcs think_format_reward "
    words += "--use_peft --learning_rate 1e-5 --dtype bfloat16 --lora_r 8 --top_p 0.9 --use_cpu --bf16 False"
    script, training, model = parser.parse_args_and_config(words.split())
    config = of(**{**vars(script), **vars(model), **vars(training)})
    assert (config.model_name_or_path, config.output_dir, config.dataset) == ("m", "out", absolute("rows.jsonl"))
    assert (config.use_peft, config.lora_r, config.dropout, config.dtype) == (True, 8, 0.05, "bfloat16")
    assert (config.top_p, config.learning_rate, config.reward_funcs) == (0.9, 1e-5, ["trl.rewards:think_format_reward"])
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "vllm_" not in said and "logging" not in said, "TRL's own defaults are nobody's wish"


def test_a_peft_config_of_peft_is_understood(tmp_path):
    lora = LoraConfig(r=4, lora_alpha=8, use_rslora=True, use_dora=True, target_modules=["q_proj", "v_proj"])
    config = of(peft_config=lora)
    assert (config.use_peft, config.lora_r, config.lora_alpha) == (True, 4, 8)
    assert config.lora_target_modules == ["q_proj", "v_proj"]
    model = load_model(families.llama(tmp_path / "llama"), use_peft=True, lora_r=4, lora_args=config.lora_args,
                       lora_target_modules=config.lora_target_modules)  # fmt: skip
    assert isinstance(model, PeftModel) and model.peft_config["default"].use_dora
    with pytest.raises(ValueError, match="lora_args: .*nonsense"):
        load_model(tmp_path / "llama", use_peft=True, lora_args={"nonsense": 1})


SPOKEN = {
    "a notebook with a GRPOConfig and a LoraConfig": lambda: {
        **vars(GRPOConfig(
            output_dir="x", use_cpu=True, bf16=True, learning_rate=1e-3, num_train_epochs=1, run_name="mine",
            per_device_train_batch_size=8, num_generations=8, max_completion_length=6, logging_steps=10, beta=0.04,
            report_to=["tensorboard"], warmup_steps=0.1, lr_scheduler_type="cosine", loss_type="dr_grpo", top_p=0.95,
            scale_rewards=False, temperature=0.9, top_k=50, save_strategy="epoch", eval_strategy="epoch",
            gradient_checkpointing=True,
            num_iterations=2, chat_template_kwargs={"marked": True},
        )),
        "peft_config": LoraConfig(
            r=4, lora_alpha=8, lora_dropout=0.05, use_dora=True, use_rslora=True, target_modules="all-linear",
            modules_to_save=["lm_head"], task_type="CAUSAL_LM",
        ),
    },
    "a recipe in YAML": lambda: {
        "model_revision": "main", "torch_dtype": "bfloat16", "attn_implementation": "flash_attention_2", "bf16": True,
        "do_eval": True, "eval_strategy": "no", "generation_batch_size": 16, "per_device_train_batch_size": 8,
        "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}, "seed": 42,
        "optim": "paged_adamw_8bit", "adam_beta1": 0.9, "adam_beta2": 0.99, "weight_decay": 0.1, "warmup_ratio": 0.1,
        "lr_scheduler_type": "constant_with_warmup", "log_completions": True, "log_level": "info", "logging_steps": 1,
        "max_prompt_length": 64, "max_completion_length": 6, "max_steps": -1, "num_train_epochs": 1, "beta": 0.0,
        "num_generations": 8, "overwrite_output_dir": True, "per_device_eval_batch_size": 32, "save_strategy": "epoch",
        "save_total_limit": 1, "vllm_device": "auto", "mask_truncated_completions": True, "sync_ref_model": False,
        "use_liger_kernel": True, "max_grad_norm": 0.2, "reward_weights": [1.0], "push_to_hub": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("spoken", SPOKEN)
def test_what_is_typical_runs(tmp_path, spoken):
    """As it stands, but for the model and where the run goes; and what it left can be asked and gone on with."""
    folder = families.llama(tmp_path / "llama")
    tokenizer = load_processor(folder)
    tokenizer.chat_template = "{%- if marked is defined -%}marked {% endif -%}" + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": f"{i} + 2 ="}]} for i in range(4)])
    ours = {"model_name_or_path": str(folder), "output_dir": str(tmp_path / "run"), "cpu": True, "eval_size": 2}
    given = {"dataset": rows, "eval_dataset": rows, "reward_funcs": [lucky_text]}
    config = of(**SPOKEN[spoken]() | ours)
    whole = Trainer(config, **given)
    steps = 4 if "notebook" in spoken else 2
    assert whole.config.max_steps == steps and whole.config.save_steps == 0
    whole.run()
    read = {(m["step"], m["name"]): m["value"] for m in read_metrics(tmp_path / "run").to_pylist()}
    assert read[steps, "grad_norm"] >= 0 and (steps, "policy_loss") in read
    assert ((steps, "eval/reward") in read) == ((0, "eval/reward") in read) == ("notebook" in spoken)
    policy = Policy.load(tmp_path / "run")
    said = Prompts.build([{"prompt": [{"role": "user", "content": "2"}]}], policy.processor, policy.model.config)
    assert ("marked" in policy.sampler.tokenizer.decode(said.rows[0]["input_ids"][0])) == ("notebook" in spoken)
    assert policy.sampler.truncation == config.truncation
    again = Trainer(of(**SPOKEN[spoken]() | ours | {"resume": True, "num_train_epochs": 2}), **given)
    assert again.step == steps
    again.run()


def test_adapters_that_change_the_model_itself_are_refused(tmp_path):
    folder = families.llama(tmp_path / "llama")
    for given, said in (({"bias": "all"}, "bias is 'all'"), ({"init_lora_weights": "pissa"}, "is 'pissa'")):
        with pytest.raises(ValueError, match=said):
            load_model(folder, use_peft=True, lora_args=given)


def test_values_of_a_template_that_cannot_be(tmp_path):
    tokenizer = load_processor(families.llama(tmp_path / "llama"))
    with pytest.raises(ValueError, match="'no name' is no name of a variable"):
        set_in_template(tokenizer, {"no name": 1})
    tokenizer.chat_template = None
    assert set_in_template(tokenizer, {}) is tokenizer
    with pytest.raises(ValueError, match="the model has no chat template"):
        set_in_template(tokenizer, {"thinking": True})


def test_the_page_is_todays():
    text = make_trl.PAGE.read_text(encoding="utf-8")
    assert make_trl.page(text) == text, "run: python docs/make_trl.py"
