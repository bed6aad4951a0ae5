"""Runs of TRL's own trainers, recorded: the run directory opens with every reader, and says what TRL did."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
import trl

import segviz as sv
from segpo_core.afterwards.credit import recompute
from segpo_core.algos import TEMPO
from segpo_core.bridges.trl import RunRecorder
from segpo_core.record.store import read_manifest, read_metrics, read_rollouts
from segviz.views.report import report
from tests.bridges.test_trl import lucky_text, make, now_and_then


def run_of(directory):
    """(manifest, rows, metrics as {(step, name): value})."""
    metrics = {(m["step"], m["name"]): m["value"] for m in read_metrics(directory).to_pylist()}
    return read_manifest(directory), read_rollouts(directory).to_pylist(), metrics


def test_a_grpo_run_with_images(tmp_path):
    trainer = make(
        tmp_path,
        None,
        images=True,
        cls=trl.GRPOTrainer,
        num_iterations=1,
        beta=0.05,
        reward_funcs=[lucky_text, now_and_then],
    )
    seen = {}
    inner = trainer._generate_and_score_completions

    def spy(inputs):
        output = inner(inputs)
        seen[trainer.state.global_step + 1] = {k: v.clone() for k, v in output.items() if isinstance(v, torch.Tensor)}
        return output

    trainer._generate_and_score_completions = spy
    RunRecorder(tmp_path / "run").attach(trainer)
    trainer.train()

    manifest, rows, metrics = run_of(tmp_path / "run")
    assert (
        manifest["method"] == "grpo"
        and "TRL" in manifest["trainer"]
        and manifest["config"]["loss_type"] == "token-mean"
    )
    assert [row["step"] for row in rows] == [1] * 8 + [2] * 8
    assert [(row["group"], row["sample"]) for row in rows[:8]] == [(g, s) for g in (0, 1) for s in range(4)]
    for number, row in enumerate(rows):
        output, b = seen[row["step"]], number % 8
        n = len(row["token_ids"])
        assert row["token_ids"] == output["completion_ids"][b, :n].tolist()
        assert "".join(row["pieces"]) == row["text"]
        np.testing.assert_allclose(row["advantages"], [float(output["advantages"][b])] * n)
        np.testing.assert_allclose(row["ref_logprobs"], output["ref_per_token_logps"][b, :n], rtol=1e-6)
        assert len(row["images"]) == 1 and (tmp_path / "run" / "images" / f"{row['images'][0]}.png").exists()
        assert all(h >= 0 for h in row["entropy"]) and row["sampled_logprobs"] is None
        assert row["answer"] is not None
    # the reference is the model that training started from: in the first step both agree, and only in the first
    gap = [max(abs(a - b) for a, b in zip(r["old_logprobs"], r["ref_logprobs"], strict=True)) for r in rows]
    assert max(gap[:8]) < 1e-5 < max(gap[8:])
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    for step, entry in enumerate(logged, 1):
        assert metrics[step, "reward"] == pytest.approx(entry["reward"])
        assert metrics[step, "policy_loss"] == pytest.approx(entry["loss"])
        assert metrics[step, "completion_length"] == pytest.approx(entry["completions/mean_length"])
        assert metrics[step, "record/failures"] == 0

    run = sv.open(tmp_path / "run")
    row = run.rollouts[0]
    assert sv.ribbon(run.rollout(row["step"], row["group"], row["sample"])).html()
    assert run.name in report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    recompute(tmp_path / "run", ["rloo"])
    assert len(run.credits(1, 0, 0)) == 2


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (dict(gradient_accumulation_steps=4, steps_per_generation=2), {1: 32, 2: 32, 3: 32, 4: 32}),
        (dict(gradient_accumulation_steps=1, steps_per_generation=2), {1: 16, 3: 16}),
        (dict(num_iterations=2, steps_per_generation=1), {1: 8, 3: 8}),
    ],
    ids=["generations a step", "steps a generation", "iterations"],
)
def test_every_completion_once(tmp_path, settings, wanted):
    trainer = make(tmp_path, None, cls=trl.GRPOTrainer, **{"num_iterations": 1, "max_steps": 4} | settings)
    RunRecorder(tmp_path / "run").attach(trainer)
    trainer.train()
    _, rows, _ = run_of(tmp_path / "run")
    places = [(row["step"], row["group"], row["sample"]) for row in rows]
    assert len(set(places)) == len(places)
    assert all(row["old_logprobs"] is not None and None not in row["old_logprobs"] for row in rows)
    assert all(row["entropy"] is not None for row in rows)
    by_step = {step: sum(p[0] == step for p in places) for step in {p[0] for p in places}}
    assert by_step == wanted


def test_rloo(tmp_path):
    from trl import RLOOConfig, RLOOTrainer

    donor = make(tmp_path, None, cls=trl.GRPOTrainer)
    trainer = RLOOTrainer(
        model=donor.model,
        reward_funcs=[lucky_text],
        args=RLOOConfig(
            output_dir=str(tmp_path / "rloo"), report_to="none", use_cpu=True, bf16=False, num_generations=4, seed=2,
            beta=0.0, per_device_train_batch_size=8, max_completion_length=8, max_steps=2, logging_steps=1,
            save_strategy="no",
        ),
        train_dataset=donor.train_dataset,
        processing_class=donor.processing_class,
    )  # fmt: skip
    RunRecorder(tmp_path / "run").attach(trainer)
    trainer.train()
    manifest, rows, _ = run_of(tmp_path / "run")
    assert manifest["method"] == "rloo" and len(rows) == 16
    for step in (1, 2):
        for group in (0, 1):
            mine = [row for row in rows if (row["step"], row["group"]) == (step, group)]
            for row in mine:
                others = [r["reward"] for r in mine if r is not row]
                assert row["advantages"][0] == pytest.approx(row["reward"] - sum(others) / 3, abs=1e-5)


def test_a_trainer_with_our_credit(tmp_path):
    trainer = make(tmp_path, TEMPO(importance_sampling_level="segment"))
    RunRecorder(tmp_path / "run").attach(trainer)
    trainer.train()
    manifest, rows, metrics = run_of(tmp_path / "run")
    batch, credit = trainer.last
    assert manifest["method"] == "tempo" and manifest["config"]["importance_sampling_level"] == "segment"
    assert manifest["method_title"] == "TEMPO (TRL)"
    assert {row["segment_rule"][0] for row in rows} == {credit.rule}
    assert max(len(row["segment_start"]) for row in rows) > 1
    first = [row for row in rows if row["step"] == max(r["step"] for r in rows)]
    for b, row in enumerate(first):
        n = len(row["token_ids"])
        np.testing.assert_allclose(row["old_logprobs"], batch.rollouts.old_logprobs[b, :n], rtol=1e-6)
        np.testing.assert_allclose(row["advantages"], credit.advantages[b, :n], rtol=1e-6)
    assert metrics[1, "segments"] > 1


def calculator(a: int, b: int) -> str:
    """Adds two numbers.

    Args:
        a: The first number.
        b: The second number.

    Returns:
        Their sum.
    """
    return str(a + b)


def test_tool_turns(tmp_path):
    """TRL's own tool loop, the model's words put into its mouth: a random model calls no tools."""
    from trl.chat_template_utils import qwen3_chat_template

    donor = make(tmp_path, None, cls=trl.GRPOTrainer)
    tokenizer = donor.processing_class
    tokenizer.chat_template = qwen3_chat_template
    trainer = trl.GRPOTrainer(
        model=donor.model, reward_funcs=[lucky_text], args=donor.args, train_dataset=donor.train_dataset,
        processing_class=tokenizer, tools=[calculator],
    )  # fmt: skip
    trainer.max_completion_length, trainer.model.config.max_position_embeddings = 400, 4096
    call = '<tool_call>\n{"name": "calculator", "arguments": {"a": 1, "b": 41}}\n</tool_call><|im_end|>'

    def speak(prompt_ids, *args, **kwargs):
        asked = ["tool_response" in tokenizer.decode(ids) for ids in prompt_ids]
        said = [f"It is {i}.<|im_end|>" if done or i % 2 else call for i, done in enumerate(asked)]
        return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in said], None

    trainer._generate_single_turn = speak
    RunRecorder(tmp_path / "run").attach(trainer)
    trainer.train()
    rows = run_of(tmp_path / "run")[1]
    called = [row for row in rows if "tool_call" in row["text"]]
    assert 0 < len(called) < len(rows)
    for row in called:
        said = "".join(piece for piece, chosen in zip(row["pieces"], row["loss_mask"], strict=True) if chosen)
        heard = "".join(piece for piece, chosen in zip(row["pieces"], row["loss_mask"], strict=True) if not chosen)
        assert "calculator" in said and "It is" in said and "42" not in said
        assert "42" in heard and "tool_response" in heard
    assert all(all(row["loss_mask"]) for row in rows if row not in called)


def test_what_recording_meets_stops_no_training(tmp_path, caplog):
    trainer = make(tmp_path, None, cls=trl.GRPOTrainer)
    recorder = RunRecorder(tmp_path / "run").attach(trainer)
    recorder._table = lambda batch: 1 / 0
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 2 and recorder.recorder.failures >= 1
    assert sum("was not recorded, training goes on" in message for message in caplog.messages) == 1
    assert run_of(tmp_path / "run")[2][2, "record/failures"] >= 1


def test_a_directory_that_holds_a_run_is_left_alone(tmp_path):
    RunRecorder(tmp_path / "run").attach(first := make(tmp_path, None, cls=trl.GRPOTrainer, max_steps=1))
    first.train()
    RunRecorder(tmp_path / "run").attach(second := make(tmp_path, None, cls=trl.GRPOTrainer, max_steps=1))
    with pytest.raises(ValueError, match="already holds a run"):
        second.train()
    with pytest.raises(ValueError, match="made for GRPOTrainer"):
        RunRecorder(tmp_path / "other").attach(object())


def test_a_resumed_run_goes_on(tmp_path):
    settings = dict(num_iterations=1, save_strategy="steps", save_steps=1)
    RunRecorder(tmp_path / "run").attach(first := make(tmp_path, None, cls=trl.GRPOTrainer, **settings))
    first.train()
    RunRecorder(tmp_path / "run").attach(second := make(tmp_path, None, cls=trl.GRPOTrainer, **settings, max_steps=3))
    second.train(resume_from_checkpoint=str(tmp_path / "trl" / "checkpoint-1"))
    rows = run_of(tmp_path / "run")[1]
    assert [row["step"] for row in rows] == [1] * 8 + [2] * 8 + [3] * 8
