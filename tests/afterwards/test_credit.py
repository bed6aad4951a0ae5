"""Credit of other methods for a recorded run: stored beside it, the same as recorded for the run's own method."""

import json
import shutil

import pytest

from segpo_core.afterwards.credit import Run, recompute
from segpo_core.afterwards.trained import Policy
from segpo_core.algos import GRPO, METHODS, SAPO, SRPO, VPPO, Forks, SPOChain, SPOTree, VinePPO
from segpo_core.cli import main
from segpo_core.config import TrainConfig
from segpo_core.record import store
from segpo_core.record.rows import rollouts_from_rows
from segpo_core.tasks import load_task
from segpo_core.training.loop import train
from tests.fakes import families

#: The run's own method with settings that are not its defaults.
OWN = [
    SAPO(lam=0.9, fraction=0.5),
    SRPO(tau=0.5),
    VPPO(fraction=0.7),
    VinePPO(num_continuations=2, steps="step markers"),
    SPOTree(branch=(2, 2), segment_tokens=3),
    Forks(num_continuations=3, least_open=0.2),
]


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return families.llava(tmp_path_factory.mktemp("llava"))


def recorded(model, out, algo, **changes):
    settings = dict(
        method=algo.name, algo=algo, model_name_or_path=str(model), output_dir=str(out), num_generations=4,
        per_device_train_batch_size=8, max_completion_length=8, max_steps=1, learning_rate=1e-3, eval_steps=0, cpu=True,
        reward_funcs=["tests.fakes.toy:lucky_text"], mask_truncated_completions=True,
    )  # fmt: skip
    return train(TrainConfig(**(settings | changes)))


@pytest.fixture(scope="module")
def with_critic(llava, tmp_path_factory):
    return recorded(
        llava, tmp_path_factory.mktemp("sapo") / "run", SAPO(), max_steps=2, mask_truncated_completions=False
    )


@pytest.fixture(scope="module")
def without_critic(llava, tmp_path_factory):
    return recorded(llava, tmp_path_factory.mktemp("grpo") / "run", GRPO())


def rows(table) -> list[dict]:
    return sorted(table.to_pylist(), key=lambda r: (r["method"], r["step"], r["group"], r["sample"]))


@pytest.mark.parametrize("algo", OWN, ids=lambda a: a.name)
def test_the_runs_own_method_gives_what_was_recorded(llava, tmp_path, algo):
    run = recorded(llava, tmp_path / "run", algo)
    (path,) = recompute(run, [algo.name])
    assert path == run / "credit" / algo.name / "step-000001.parquet"
    again = rows(store.read_credit(run))
    before = rows(store.read_rollouts(run, columns=store.CREDIT_SCHEMA.names))
    for mine, theirs in zip(again, before, strict=True):
        for name, value in theirs.items():
            assert mine[name] == pytest.approx(value, abs=1e-6) if name != "segment_rule" else mine[name] == value, name


def test_every_other_method(with_critic):
    names = [name for name, method in METHODS.items() if not issubclass(method, SPOTree)]
    assert main(["credit", str(with_critic), "--method", ",".join(names), "--steps", "1, 2", "--trust-code"]) == 0
    table = store.read_credit(with_critic)
    assert table.schema.names == store.CREDIT_SCHEMA.names and table.num_rows == 2 * 8 * len(names)
    assert set(table["method"].to_pylist()) == set(names)
    some = rows(store.read_credit(with_critic, ["ppo", "vineppo"], [2]))
    assert {(r["method"], r["step"]) for r in some} == {("ppo", 2), ("vineppo", 2)}
    lengths = {
        (r["step"], r["group"], r["sample"]): len(r["token_ids"]) for r in store.read_rollouts(with_critic).to_pylist()
    }
    for row in rows(table):
        n = lengths[row["step"], row["group"], row["sample"]]
        assert len(row["advantages"]) == len(row["segment_ids"]) == len(row["loss_mask"]) == n
        assert row["segment_start"][0] == 0 and row["segment_end"][-1] == n
        assert (row["weights"] is None) == (row["method"] not in ("srpo", "vppo", "pgpo"))
    assert not list(with_critic.rglob("credit/**/.*")), "no leftovers"
    store.forget_after(with_critic, 1)
    assert set(store.read_credit(with_critic)["step"].to_pylist()) == {1}


def test_a_checkpoints_critic_stands_in_where_values_were_not_recorded(with_critic):
    run = Run(with_critic)
    rollouts, examples = (make(run.rows(1)) for make in (rollouts_from_rows, run.examples))
    recorded_values, rollouts.values = rollouts.values, None
    run.measure(SAPO(), rollouts, examples, 1, 0)
    assert rollouts.values.shape == recorded_values.shape
    assert (rollouts.values != 0).any() and (recorded_values == 0).all(), "the critic began at 0, and has learnt"


def test_another_runs_critic_stands_in(with_critic, without_critic, tmp_path):
    run = shutil.copytree(without_critic, tmp_path / "run")
    recompute(run, ["sapo"], critic=with_critic)
    values = [value for row in rows(store.read_credit(run)) for value in row["segment_value"]]
    assert len(set(values)) > 1, "a critic that has learnt"
    with pytest.raises(ValueError, match="has no critic"):
        recompute(run, ["ppo"], critic=without_critic)


def test_chains_are_sampled_with_the_newest_checkpoint(llava, tmp_path):
    """With a learning rate of 0 the checkpoint is the policy that sampled: the same continuations, the same values."""
    chain = SPOChain(num_continuations=9, interval=5)
    run = recorded(llava, tmp_path / "chain", chain, learning_rate=0.0)
    other = recorded(llava, tmp_path / "grpo", GRPO(), learning_rate=0.0)
    recompute(other, ["spo_chain"], trust_code=True)
    a = rows(store.read_credit(other))
    b = rows(store.read_rollouts(run, columns=store.CREDIT_SCHEMA.names))
    assert [r["segment_value"] for r in a] == [r["segment_value"] for r in b]
    assert [r["advantages"] for r in a] == [r["advantages"] for r in b]


def test_problems_come_back_as_they_were(without_critic):
    run = Run(without_critic)
    task, examples = load_task("shapes"), run.examples(run.rows(1))
    for i, mine in enumerate(examples):
        theirs = task.train(i)
        assert (
            mine["prompt"] == theirs["prompt"]
            and mine["answer"] == str(theirs["answer"])
            and mine["id"] == theirs["id"]
        )
        assert [image.tobytes() for image in mine["images"]] == [
            image.convert("RGB").tobytes() for image in theirs["images"]
        ]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--method", "sappo"], "unknown method 'sappo'; known: entropy_tokens"),
        (["--method", "spo_tree"], "SPO-tree cannot be computed"),
        (["--method", "grpo,sapo"], "has no critic; these can: rloo, grpo, gspo, vineppo, spo_chain, srpo"),
        (["--method", "grpo", "--steps", "7"], "no rollouts of step 7; recorded: [1]"),
        (["--method", "grpo", "--steps", "one"], "numbers with commas"),
    ],
)
def test_what_cannot_be_computed_is_said_before_anything_is_written(without_critic, capsys, flags, words):
    assert main(["credit", str(without_critic), *flags]) == 1
    message = " ".join(capsys.readouterr().err.split())
    assert words in message and "Traceback" not in message
    assert not (without_critic / "credit").exists()


def test_a_run_of_somebody_elses_runs_no_code(without_critic, tmp_path, capsys):
    """What run.json names is loaded by the user's word alone; the error names the file."""
    run, mark, evil = tmp_path / "run", tmp_path / "mark", tmp_path / "evil.py"
    shutil.copytree(without_critic, run)
    evil.write_text(
        f"open({str(mark)!r}, 'w').close()\ndef f(prompts, completions, **columns): return [1.0] * len(completions)\n"
    )
    manifest = json.loads((run / "run.json").read_text())
    clean = manifest["config"]
    for changes in (
        {"reward_funcs": [f"{evil}:f"]},
        {"reward_funcs": [], "dataset": str(tmp_path / "d.jsonl"), "dataset_args": {"reward": f"{evil}:f"}},
    ):
        (run / "run.json").write_text(json.dumps(manifest | {"config": clean | changes}))
        assert main(["credit", str(run), "--method", "vineppo"]) == 1
        assert f"{evil}:f" in capsys.readouterr().err and not (run / "credit").exists()
        assert f"{evil}:f" in Policy.load(run).no_rewards
        assert main(["credit", str(run), "--method", "rloo"]) == 0, "what asks for no rewards needs no trust"
        assert not mark.exists()
        shutil.rmtree(run / "credit")
    (run / "run.json").write_text(json.dumps(manifest | {"config": clean | {"reward_funcs": [f"{evil}:f"]}}))
    assert main(["credit", str(run), "--method", "vineppo", "--trust-code"]) == 0
    assert mark.exists()


def test_a_model_with_code_of_its_own_is_not_run(llava, tmp_path):
    model, mark = tmp_path / "model", tmp_path / "mark"
    shutil.copytree(llava, model)
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.M"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        Policy.load(model)
    assert not mark.exists()


def test_what_lies_beside_an_adapter_is_found(llava, tmp_path):
    """A checkpoint of a LoRA run holds no whole model."""
    run = recorded(llava, tmp_path / "run", GRPO(), use_peft=True)
    (path,) = recompute(run, ["vineppo"], trust_code=True)
    values = [v for row in store.read_credit(run, ["vineppo"]).to_pylist() for v in row["segment_value"]]
    assert path.exists() and len(values) and all(0 <= value <= 1 for value in values)
