"""One training step, from prompt to recorded rollout, on every model family; and what must not change its result."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from segpo_core.afterwards.trained import Policy
from segpo_core.algos import GRPO, SAPO
from segpo_core.config import TrainConfig
from segpo_core.policy import load
from segpo_core.policy.critic import ActorCritic
from segpo_core.policy.inputs import Prompts
from segpo_core.record import store
from segpo_core.training import checkpoint
from segpo_core.training.loop import Trainer
from tests.fakes import families
from tests.fakes.toy import ToyTask


@pytest.fixture(scope="module", params=sorted(families.FAMILIES))
def family(request, tmp_path_factory):
    return request.param, families.FAMILIES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return families.llava(tmp_path_factory.mktemp("llava"))


def config_for(path, out, algo, **changes) -> TrainConfig:
    settings = dict(
        model_name_or_path=str(path), output_dir=str(out), num_generations=4, per_device_train_batch_size=12,
        max_completion_length=8, max_steps=1, learning_rate=1e-3, eval_steps=0, cpu=True,
    )  # fmt: skip
    return TrainConfig(method=algo.name, algo=algo, **(settings | changes))


def trained(path, out, algo, **changes) -> Trainer:
    trainer = Trainer(config_for(path, out, algo, **changes), task=ToyTask(images="llama" not in str(path)))
    trainer.run()
    return trainer


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.network.state_dict().items()}


@pytest.mark.parametrize("algo", [GRPO(), SAPO()], ids=lambda a: a.name)
def test_one_step_on_every_family(family, algo, tmp_path):
    name, path = family
    trainer = trained(
        path, tmp_path / "run", algo, eval_steps=1, eval_size=3, num_generations_eval=2, score_after_update=True
    )
    rows = store.read_rollouts(tmp_path / "run").to_pylist()
    assert len(rows) == 12 and {row["method"] for row in rows} == {algo.name}
    for row in rows:
        n = len(row["token_ids"])
        assert "".join(row["pieces"]) == row["text"] and len(row["pieces"]) == n
        for column in (
            "sampled_logprobs",
            "entropy",
            "advantages",
            "segment_ids",
            "loss_mask",
            "new_logprobs",
            "ratio",
        ):
            assert len(row[column]) == n, column
        assert row["segment_end"][-1] == n and row["segment_start"][0] == 0
        assert (row["values"] is None) == (algo.name == "grpo")
        assert len(row["images"]) == sum(p["type"] == "image" for p in json.loads(row["prompt"])[0]["content"])
        for digest in row["images"]:
            assert (tmp_path / "run" / "images" / f"{digest}.png").exists()
    metrics = {(m["step"], m["name"]): m["value"] for m in store.read_metrics(tmp_path / "run").to_pylist()}
    assert metrics[1, "record/failures"] == 0 and metrics[1, "grad_norm"] > 0 and metrics[1, "skipped_updates"] == 0
    assert {(0, "eval/answer"), (1, "eval/answer"), (1, "eval/mean@2"), (1, "eval/pass@2")} <= set(metrics)
    assert metrics[1, "step_kl"] > 0, "the update should move the policy"
    assert trainer.step == 1


def test_the_first_held_out_completions_are_recorded(llava, tmp_path):
    config = config_for(llava, tmp_path / "run", GRPO(), eval_steps=1, eval_size=5, log_eval_completions=3, max_steps=2)
    Trainer(config, task=ToyTask()).run()
    rows = store.read_eval(tmp_path / "run").to_pylist()
    assert [(row["step"], row["group"], row["sample"]) for row in rows] == [
        (s, g, 0) for s in (0, 1, 2) for g in range(3)
    ]
    assert [row["example_id"] for row in rows[:3]] == [str(ToyTask().eval(i).get("id", "")) for i in range(3)]
    for row in rows:
        assert "".join(row["pieces"]) == row["text"] and row["reward"] is not None and row["advantages"] is None
        assert row["segment_start"] is None and row["loss_mask"] is None
        for digest in row["images"]:
            assert (tmp_path / "run" / "images" / f"{digest}.png").exists()
    numbers = {
        m["step"]: m["value"] for m in store.read_metrics(tmp_path / "run").to_pylist() if m["name"] == "eval/problems"
    }
    assert numbers == {0: 5, 1: 5, 2: 5}
    store.forget_after(tmp_path / "run", 1)
    assert set(store.read_eval(tmp_path / "run")["step"].to_pylist()) == {0, 1}
    config = config_for(llava, tmp_path / "none", GRPO(), eval_steps=1, eval_size=5, log_eval_completions=0)
    Trainer(config, task=ToyTask()).run()
    assert not (tmp_path / "none" / "eval").exists() and not len(store.read_eval(tmp_path / "none"))


def test_the_ratio_is_exactly_one_before_the_first_update(llava, tmp_path):
    """METHODS, line 1: in float32, with an old-policy pass of its own."""
    trainer = Trainer(
        config_for(llava, tmp_path / "run", SAPO(), learning_rate=0.0, num_iterations=2, score_after_update=True),
        task=ToyTask(),
    )
    trainer.step = 1
    metrics = trainer.train_step()
    assert metrics["ratio/min"] == metrics["ratio/max"] == 1.0
    assert metrics["step_kl"] == 0.0


@pytest.mark.parametrize(
    "algo",
    [GRPO(), GRPO(loss_type="seq-mean-token-mean", beta=0.05), SAPO(), SAPO(critic="model")],
    ids=["grpo", "grpo-seq-kl", "sapo", "sapo-own-critic"],
)
def test_the_update_does_not_depend_on_micro_batches(llava, tmp_path, algo):
    """METHODS, line 8: one pass of 12, or passes of 4 and 3 accumulated, give the same weights."""
    one = weights(trained(llava, tmp_path / "one", algo))
    for size in (4, 3):
        many = trained(
            llava,
            tmp_path / f"by{size}",
            algo,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=12 // size,
        )
        for name, value in weights(many).items():
            if name.endswith("k_proj.bias"):  # it moves all scores of a softmax alike: its gradient is rounding alone
                continue
            torch.testing.assert_close(value, one[name], atol=2e-5, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def test_what_is_recorded_of_the_update(llava, tmp_path, monkeypatch):
    """Without a pass of its own: the ratios that the step's last update saw, and none where they are 1 by definition.
    The log-probabilities after the updates are those of a pass after them."""
    kinds = {"one": {}, "two": {"num_iterations": 2}, "after": {"num_iterations": 2, "score_after_update": True}}
    rows, passes = {}, {}
    forward = ActorCritic.forward
    for name, changes in kinds.items():
        calls = []
        monkeypatch.setattr(ActorCritic, "forward", lambda *a, calls=calls, **k: (calls.append(1), forward(*a, **k))[1])
        run = trained(llava, tmp_path / name, GRPO(), **changes)
        rows[name], passes[name] = store.read_rollouts(tmp_path / name).to_pylist(), len(calls)
    assert passes == {"one": 1, "two": 3, "after": 4}
    assert all(row["ratio"] is row["clipped"] is row["new_logprobs"] is None for row in rows["one"])
    assert all(row["new_logprobs"] is None for row in rows["two"])
    for seen, after in zip(rows["two"], rows["after"], strict=True):
        assert seen["ratio"] != after["ratio"] and len(seen["ratio"]) == len(seen["token_ids"]) == len(seen["clipped"])
    whole, first = run.last[0], run.last[0].logprobs  # the second update saw what the first had made
    seen = torch.tensor([r for row in rows["two"] for r in row["ratio"]])
    changed = torch.tensor([r for row in rows["after"] for r in row["ratio"]])
    assert (seen != 1).any() and float((changed.log()).abs().mean()) > float(seen.log().abs().mean()) > 0
    new = torch.tensor([x for row in rows["after"] for x in row["new_logprobs"]])
    torch.testing.assert_close(changed, (new - first[whole.mask]).exp())


def test_several_updates_a_step(llava, tmp_path):
    trainer = trained(
        llava, tmp_path / "run", SAPO(), per_device_train_batch_size=4, steps_per_generation=3, num_iterations=2
    )
    metrics = {m["name"]: m["value"] for m in store.read_metrics(tmp_path / "run").to_pylist()}
    assert trainer.learner.updates_per_step == 6
    assert metrics["ratio/max"] > 1 > metrics["ratio/min"]
    assert metrics["sampling_logp_difference"] < 1e-4


def test_kl_to_the_reference_in_loss_and_in_reward(llava, tmp_path):
    for where in ("loss", "reward"):
        algo = GRPO(beta=0.1, kl_in=where, kl_estimator="k1" if where == "reward" else "k3")
        trained(llava, tmp_path / where, algo, max_steps=3)
        kl = [m["value"] for m in store.read_metrics(tmp_path / where).to_pylist() if m["name"] == "kl"]
        assert kl[0] == pytest.approx(0, abs=1e-9) and kl[-1] > 0, "the policy starts as its reference and leaves it"


def test_lora_trains_the_adapter_alone_and_resumes(llava, tmp_path):
    algo = SAPO(beta=0.01, kl_in="reward", kl_estimator="k1")
    trainer = Trainer(config_for(llava, tmp_path / "run", algo, use_peft=True, lora_r=4), task=ToyTask())
    before = weights(trainer)
    trainer.run()
    changed = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert changed and all("lora" in name or name.startswith("value_") for name in changed)
    again = trained(llava, tmp_path / "run", algo, use_peft=True, lora_r=4, resume=True, max_steps=2)
    straight = trained(llava, tmp_path / "straight", algo, use_peft=True, lora_r=4, max_steps=2)
    for name, value in weights(straight).items():
        assert torch.equal(value, weights(again)[name]), name


def test_with_lora_the_critics_model_is_an_adapter(llava, tmp_path):
    """Of its own, on the policy's frozen weights: it learns and leaves the policy's alone, and comes back whole."""
    settings = dict(use_peft=True, lora_r=4)
    algo = SAPO(critic="model", critic_learning_rate=1e-2, critic_warmup_steps=2)
    trainer = Trainer(config_for(llava, tmp_path / "run", algo, max_steps=2, **settings), task=ToyTask())
    network, before = trainer.network, weights(trainer)
    base = sum(p.numel() for p in network.model.get_base_model().parameters())
    own = [p for name, p in network.named_parameters() if name.startswith("value_backbone")]
    policy = [p for name, p in network.named_parameters() if "lora" in name and not name.startswith("value_")]
    assert 0 < sum(p.numel() for p in own) <= sum(p.numel() for p in policy) < 0.2 * base
    assert all(p.requires_grad for p in own)
    trainer.run()  # the head begins at 0: its backbone hears of the first step in the second
    changed = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert changed == {n for n in changed if n.startswith("value_")} and any("lora_B" in name for name in changed)
    critic = load_file(checkpoint.latest(tmp_path / "run" / "checkpoints") / "critic.safetensors")
    assert set(critic) == network.critic_names() and sum(v.numel() for v in critic.values()) < 0.2 * base
    again = trained(llava, tmp_path / "run", algo, resume=True, max_steps=3, **settings)
    straight = trained(llava, tmp_path / "straight", algo, max_steps=3, **settings)
    assert weights(straight).keys() == weights(again).keys()
    for name, value in weights(straight).items():
        assert torch.equal(value, weights(again)[name]), name
    states, asked = again.last[0], Policy.load(tmp_path / "run").network
    assert asked.value_backbone is not None and states.values.isfinite().all()
    for name in asked.critic_names():
        assert torch.equal(asked.state_dict()[name], weights(again)[name]), name
    for name, value in asked.model.state_dict().items():
        assert torch.equal(value, again.network.model.state_dict()[name]), "loading the critic left the policy alone"


def test_critic_warmup_leaves_the_policy_alone(llava, tmp_path):
    trainer = Trainer(config_for(llava, tmp_path / "run", SAPO(critic="model", critic_warmup_steps=1)), task=ToyTask())
    before = weights(trainer)
    trainer.run()
    changed = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("value_") for name in changed)


def test_truncated_completions_leave_the_loss_but_not_the_group(llava, tmp_path):
    """METHODS, line 9."""
    seen = {}

    class Watched(GRPO):
        def credit(self, rollouts):
            seen["rollouts"], seen["credit"] = rollouts, super().credit(rollouts)
            return seen["credit"]

    trainer = Trainer(
        config_for(llava, tmp_path / "run", Watched(), mask_truncated_completions=True), task=ToyTask(),
        on_step=lambda step, metrics, rollouts, credit: seen.update(used=credit),
    )  # fmt: skip
    trainer.run()
    cut = ~seen["rollouts"].finished
    assert cut.any() and not seen["used"].loss_mask[cut].any()
    torch.testing.assert_close(seen["used"].advantages, seen["credit"].advantages)


def test_a_step_in_which_everything_is_masked_changes_nothing(llava, tmp_path):
    """METHODS, line 11: finite zero loss, and no weight moves."""

    class Nothing(GRPO):
        def credit(self, rollouts):
            credit = super().credit(rollouts)
            return dataclasses.replace(credit, loss_mask=torch.zeros_like(credit.loss_mask))

    trainer = Trainer(config_for(llava, tmp_path / "run", Nothing()), task=ToyTask())
    before = weights(trainer)
    trainer.run()
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())
    metrics = {m["name"]: m["value"] for m in store.read_metrics(tmp_path / "run").to_pylist()}
    assert metrics["policy_loss"] == 0 and metrics["grad_norm"] == 0


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "paligemma"}, "'paligemma' are not supported: it reads its prompt in both directions"),
        ({"model_type": "florence2"}, "'florence2' are not supported: it is an encoder-decoder model"),
    ],
    ids=lambda value: value.get("model_type") if isinstance(value, dict) else "",
)
def test_models_that_would_be_scored_wrongly_are_refused(config, why, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{why}.*choose a decoder-only language model"):
        load.load_model(tmp_path / "model")


def test_trackers_write_through_accelerate(llava, tmp_path):
    trained(llava, tmp_path / "run", GRPO(), report_to="tensorboard")
    assert list((tmp_path / "run" / "trackers").rglob("events.out.tfevents*"))


def test_a_tokenizer_with_several_chat_templates_is_saved_whole(tmp_path):
    tok = families.tokenizer()
    tok.chat_template = {"default": tok.chat_template, "tool_use": tok.chat_template}
    trained(families.llama(tmp_path / "llama", tok=tok), tmp_path / "run", GRPO(), max_steps=2, save_steps=1)
    for step in ("step-000001", "step-000002"):
        saved = tmp_path / "run" / "checkpoints" / step
        assert (saved / "additional_chat_templates" / "tool_use.jinja").is_file()
        assert set(load.load_processor(saved).chat_template) == {"default", "tool_use"}


def test_bytes_that_make_no_character_end_no_run(tmp_path):
    path = families.llama(tmp_path / "llama", tok=families.byte_fallback_tokenizer())
    trained(path, tmp_path / "run", GRPO(), max_steps=2, max_completion_length=24)
    rows = store.read_rollouts(tmp_path / "run").to_pylist()
    assert any("\ufffd" in row["text"] for row in rows), "a random policy writes such bytes"
    assert all("".join(row["pieces"]) == row["text"] and len(row["pieces"]) == len(row["token_ids"]) for row in rows)


def test_a_base_model_reads_the_prompt_as_it_stands(tmp_path):
    tok = families.tokenizer()
    tok.chat_template = None
    path = families.llama(tmp_path / "llama", tok=tok)
    lines = [{"prompt": f"How many is {i} + 1?", "answer": str(i + 1)} for i in range(8)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = config_for(path, tmp_path / "run", GRPO(), dataset=str(tmp_path / "sums.jsonl"), max_completion_length=4)
    trainer = Trainer(config)
    trainer.run()
    example = trainer.task.train(0)
    seen = Prompts.build([example], trainer.processor, trainer.network.model.config).rows[0]["input_ids"][0]
    assert tok.decode(seen) in [line["prompt"] for line in lines]
    system = [{"role": "system", "content": "Count."}, *example["prompt"]]
    both = Prompts.build([example | {"prompt": system}], trainer.processor, trainer.network.model.config)
    assert tok.decode(both.rows[0]["input_ids"][0]).startswith("Count.\n\nHow many")
    turns = [*example["prompt"], {"role": "assistant", "content": "1"}, {"role": "user", "content": "Sure?"}]
    with pytest.raises(ValueError, match="conversation and the model has no chat template"):
        Prompts.build([example | {"prompt": turns}], trainer.processor, trainer.network.model.config)
