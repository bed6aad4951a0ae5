"""Data sets in memory, TRL's reward functions as they are, rows that do not fit or that nobody judges."""

import functools
import json
import logging

import datasets
import pytest
import torch
from trl import rewards as trl_rewards

from segpo_core.afterwards.trained import Policy, run_config, run_rewards, run_task
from segpo_core.algos import METHODS
from segpo_core.config import TrainConfig, from_dict
from segpo_core.policy.load import load_model, load_processor
from segpo_core.record import store
from segpo_core.tasks import load_task
from segpo_core.tasks.rewards import Text, load_reward
from segpo_core.training.loop import Trainer, train
from tests.fakes import families
from tests.fakes.toy import ToyTask, lucky_text


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return families.llama(tmp_path_factory.mktemp("llama"))


def config(model, out, method="grpo", **changes) -> TrainConfig:
    settings = dict(
        model_name_or_path=str(model), output_dir=str(out), num_generations=4, per_device_train_batch_size=8,
        max_completion_length=6, max_steps=1, learning_rate=1e-3, eval_steps=0, cpu=True,
    )  # fmt: skip
    return from_dict(settings | changes, method=method)


def rows_of(run) -> list[dict]:
    return store.read_rollouts(run).to_pylist()


def metric(run, name) -> list[float]:
    return [row["value"] for row in store.read_metrics(run).to_pylist() if row["name"] == name]


SUMS = [{"prompt": f"What is {i} + 1?", "solution": str(i + 1), "level": i} for i in range(12)]
CHATS = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in SUMS]


def brief(completions, **columns):
    """TRL's first example: closer to 20 characters is better."""
    return [-abs(20 - len(completion)) / 20 for completion in completions]


@pytest.mark.parametrize(
    "given",
    [
        lambda folder: datasets.Dataset.from_list(SUMS),
        lambda folder: datasets.Dataset.from_list(SUMS).to_iterable_dataset(),
        lambda folder: datasets.DatasetDict(train=datasets.Dataset.from_list(SUMS)),
        lambda folder: SUMS,
        lambda folder: (datasets.Dataset.from_list(SUMS).to_csv(folder / "d.csv"), str(folder / "d.csv"))[1],
        lambda folder: ((folder / "d.json").write_text(json.dumps({"data": SUMS})), str(folder / "d.json"))[1],
    ],
    ids=["Dataset", "IterableDataset", "DatasetDict", "list", "CSV", "JSON"],
)
def test_a_data_set_in_any_form_and_no_answer_where_none_is_needed(llama, tmp_path, given):
    trainer = Trainer(config(llama, tmp_path / "run"), dataset=given(tmp_path), reward_funcs=[brief])
    trainer.run()
    assert (trainer.task.train_size, trainer.task.eval_size) == (11, 1)
    rows = rows_of(tmp_path / "run")
    assert len({row["reward"] for row in rows}) > 1, "string prompts give string completions"
    assert all(row["reward"] == pytest.approx(-abs(20 - len(row["text"])) / 20) for row in rows)
    assert json.loads(rows[0]["columns"])["level"] in range(12) and rows[0]["answer"] is None


def test_held_out_rows_of_their_own_and_a_stream_without_end(llama, tmp_path, caplog):
    def endless():
        yield from ({"prompt": f"{i} =", "answer": str(i)} for i in range(10**9))

    stream = datasets.IterableDataset.from_generator(endless)
    held = datasets.Dataset.from_list([{"prompt": "7 =", "answer": "7"}] * 3)
    settings = config(llama, tmp_path / "run", dataset_args={"stream_rows": 50})
    with caplog.at_level(logging.WARNING):
        trainer = Trainer(settings, dataset=stream, eval_dataset=held)
    assert (trainer.task.train_size, trainer.task.eval_size) == (50, 3)
    assert trainer.task.eval(0)["answer"] == "7" and "its first 50 rows are used" in caplog.text


def test_a_loaded_model_and_its_processor(llama, tmp_path):
    model, processor = load_model(llama), load_processor(llama)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = config("nowhere", tmp_path / "run")
    train(settings, dataset=SUMS, reward_funcs=brief, model=model, processor=processor)
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert store.read_manifest(tmp_path / "run")["config"]["model_name_or_path"] == str(llama)
    settings = config("nowhere", tmp_path / "run", max_steps=2, resume=True)
    train(settings, dataset=SUMS, reward_funcs=brief, model=load_model(llama), processor=processor)
    policy = Policy.load(tmp_path / "run", reward_funcs=[brief])
    assert policy.step == 2 and policy.rewards({"prompt": "?", "answer": None}, ["x" * 20]) == [0.0]
    adapted = config("nowhere", tmp_path / "lora", use_peft=True)
    train(adapted, dataset=SUMS, reward_funcs=[brief], model=load_model(llama), processor=processor)
    with pytest.raises(ValueError, match="has an adapter already: set use_peft=True"):
        train(config("nowhere", tmp_path / "no"), dataset=SUMS, reward_funcs=[brief], processor=processor,
              model=load_model(llama, use_peft=True))  # fmt: skip


def test_objects_are_recorded_so_that_the_run_opens_again(llama, tmp_path):
    def local(completions, **columns):
        return [float(len(c)) for c in completions]

    data = datasets.Dataset.from_list(CHATS)
    train(config(llama, tmp_path / "run"), dataset=data, reward_funcs=[lucky_text, local])
    recorded = run_config(tmp_path / "run")
    assert recorded.dataset == "<Dataset>" and recorded.reward_funcs == ["tests.fakes.toy:lucky_text", "<local>"]
    with pytest.raises(ValueError, match="local.* was a Python object that no file holds"):
        run_rewards(recorded, tmp_path / "run", trust_code=True)
    with pytest.raises(ValueError, match="was a Python object, <Dataset>: name another"):
        run_task(recorded, tmp_path / "run")
    assert "hand it over again" in Policy.load(tmp_path / "run", trust_code=True).no_rewards


class Counted:
    """A class with state, as TRL takes it."""

    def __init__(self, factor=1.0):
        self.factor, self.__name__ = factor, "counted"

    async def __call__(self, completions, level, **columns):
        return [self.factor * one for one in level]


def all_that_trl_hands_over(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, **columns):
    log_extra("tokens", [len(ids) for ids in completion_ids])
    log_metric("mean_tokens", sum(map(len, completion_ids)) / len(completion_ids))
    log_metric("reward", -1.0)
    assert trainer_state.max_steps == 2 and trainer_state.global_step in (0, 1)
    return [float(trainer_state.global_step)] * len(prompts)


def test_trls_reward_functions_run_unchanged(llama, tmp_path):
    def scaled(completions, scale, **columns):
        return [scale * len(c[0]["content"]) for c in completions]

    functions = [
        Counted(0.5), functools.partial(scaled, scale=0.1), all_that_trl_hands_over, trl_rewards.accuracy_reward,
        trl_rewards.think_format_reward, trl_rewards.get_repetition_penalty_reward(3, -1.0),
        trl_rewards.get_soft_overlong_punishment(6, 2), trl_rewards.get_cosine_scaled_reward(max_len=6),
        trl_rewards.reasoning_accuracy_reward,
    ]  # fmt: skip
    settings = config(llama, tmp_path / "run", max_steps=2, max_completion_length=6)
    train(settings, dataset=datasets.Dataset.from_list(CHATS), reward_funcs=functions)
    rows = rows_of(tmp_path / "run")
    for row in rows:
        columns, parts = json.loads(row["columns"]), json.loads(row["reward_parts"])
        assert columns["tokens"] == len(row["token_ids"])
        assert parts["counted"] == 0.5 * columns["level"] and parts["scaled"] == pytest.approx(0.1 * len(row["text"]))
        assert parts["all_that_trl_hands_over"] == row["step"] - 1 and parts["accuracy_reward"] in (0.0, 1.0)
        punished = {0: 0.0, 1: 0.0, 2: 0.0, 3: 0.0, 4: 0.0, 5: -0.5, 6: -1.0}
        assert parts["soft_overlong_punishment_reward"] == punished[len(row["token_ids"])]
    assert metric(tmp_path / "run", "mean_tokens") == [
        pytest.approx(sum(len(r["token_ids"]) for r in rows if r["step"] == step) / 8) for step in (1, 2)
    ]
    assert -1.0 not in metric(tmp_path / "run", "reward"), "what a function logs takes no name that is ours"


def test_a_text_answers_to_both_forms():
    text = Text("abc")
    assert text == "abc" and text[0] == "a" and text[-1] == "c" and text[1:] == "bc" and len(set(text)) == 3
    assert text[-1]["content"] == text[0]["content"] == "abc" and text[0]["role"] == "assistant"
    assert Text("")[-1]["content"] == "" and "".join(reversed(Text("ab"))) == "ba"


def test_what_a_function_asks_for_is_checked_before_anything_is_sampled(llama, tmp_path):
    with pytest.raises(ValueError, match="accuracy_reward asks for solution, which .* columns are answer, id, images"):
        Trainer(config(llama, tmp_path / "run"), dataset=[{"prompt": "1 =", "answer": "1"}] * 4,
                reward_funcs=[trl_rewards.accuracy_reward])  # fmt: skip
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="no column 'answer'"):
        load_task([{"prompt": "1 ="}] * 4)
    with pytest.raises(ValueError, match="is a model: write a function that asks it"):
        load_reward(load_model(llama))
    with pytest.raises(ValueError, match="a reward model is asked by a function"):
        load_reward("owner/reward-model")


def test_a_long_prompt_is_left_out_counted_and_said(llama, tmp_path, caplog):
    lines = [{"prompt": "how many " * (300 if i == 3 else 2), "answer": "3", "id": f"row {i}"} for i in range(8)]
    settings = dict(max_steps=4, eval_steps=4, eval_size=8)
    with caplog.at_level(logging.WARNING):
        trainer = Trainer(config(llama, tmp_path / "run", **settings), dataset=lines, eval_dataset=lines,
                          reward_funcs=[brief])  # fmt: skip
        trainer.run()
    assert "left out of training" in caplog.text and "'row 3'" in caplog.text and caplog.text.count("left out") == 1
    rows = rows_of(tmp_path / "run")
    assert len(rows) == 4 * 8 and "row 3" not in {row["example_id"] for row in rows}
    assert metric(tmp_path / "run", "left_out/long_prompts")[-1] == 1
    long = sum(trainer.task.eval(i)["id"] == "row 3" for i in range(8))
    assert long == 1 and metric(tmp_path / "run", "eval/left_out") == [1, 1]
    with pytest.raises(ValueError, match="'row 3': the prompt has .* fills the model's context"):
        train(config(llama, tmp_path / "strict", filter_overlong_prompts=False, **settings), dataset=lines,
              reward_funcs=[brief])  # fmt: skip
    with pytest.raises(ValueError, match="100 problems in a row do not fit.*max_prompt_length=2"):
        train(config(llama, tmp_path / "none", max_prompt_length=2), dataset=lines, reward_funcs=[brief])
    with pytest.raises(ValueError, match="leaves no room for 255 more; .*lower max_completion_length"):
        train(config(llama, tmp_path / "none2", max_completion_length=255), dataset=lines, reward_funcs=[brief])


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_completion_without_verdict_is_left_out_of_every_methods_update(llama, tmp_path, method, caplog):
    def some(prompts, completions, **columns):
        values = lucky_text(prompts, completions)
        return [None if i % 4 == 1 else value for i, value in enumerate(values)]

    size = dict(branch=[2, 2]) if method in ("spo_tree", "treerl") else {}
    settings = config(llama, tmp_path / "run", method, max_completion_length=6, **size)
    with caplog.at_level(logging.WARNING):
        Trainer(settings, task=ToyTask(images=False, reward_funcs=[some])).run()
    rows = rows_of(tmp_path / "run")
    without = [row for row in rows if row["reward"] is None]
    assert without and len(without) < len(rows) and "no reward function judges completion" in caplog.text
    assert metric(tmp_path / "run", "left_out/no_reward") == [len(without)]
    # A tree's leaf shares its beginning with leaves that are judged, a chain's states have continuations that are.
    if method not in ("spo_tree", "treerl", "spo_chain", "vineppo"):
        assert not any(any(row["loss_mask"]) for row in without)
    (loss,) = metric(tmp_path / "run", "policy_loss")
    assert loss == loss and metric(tmp_path / "run", "skipped_updates") == [0]
