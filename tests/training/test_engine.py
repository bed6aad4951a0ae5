"""Training with a vLLM server beside it, over real HTTP (tests/fakes/engine.py answers as vLLM does)."""

import pytest
import torch

from segpo_core.algos import GRPO, SAPO
from segpo_core.policy.load import load_model
from segpo_core.record import store
from segpo_core.record.rows import rollouts_from_rows
from segpo_core.sampling.server import EngineError
from segpo_core.training import engine as engines
from segpo_core.training.loop import Trainer
from tests.fakes import families
from tests.fakes.engine import Engine
from tests.fakes.toy import ToyTask
from tests.training.test_loop import config_for
from tests.training.test_two_processes import run, same

GAP = "sampling/sampling_logp_difference/mean"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return families.llama(tmp_path_factory.mktemp("llama"))


def trainer_for(folder, out, url, algo, **changes) -> Trainer:
    settings = dict(sampler="vllm", vllm_server_url=url, num_generations=2, per_device_train_batch_size=4) | changes
    return Trainer(config_for(folder, out, algo, **settings), task=ToyTask(images=False))


def numbers(out) -> dict:
    return {(m["step"], m["name"]): m["value"] for m in store.read_metrics(out).to_pylist()}


@pytest.mark.parametrize(
    ("algo", "changes"),
    [(GRPO(), {"learning_rate": 1e-2}), (SAPO(), {"use_peft": True, "lora_r": 4, "learning_rate": 3e-2})],
    ids=["whole weights", "adapter"],
)
def test_the_engine_follows_the_weights(llama, tmp_path, algo, changes):
    """After each update both sample alike; without being told, the engine would not."""
    with Engine(llama) as engine:
        trainer = trainer_for(
            llama, tmp_path / "run", engine.url, algo, max_steps=3, eval_steps=3, eval_size=2, **changes
        )
        trainer.run()
        seen = numbers(tmp_path / "run")
        assert all(seen[step, GAP] < 1e-4 for step in (1, 2, 3))
        assert seen[3, "sampling/importance_sampling_ratio/max"] == pytest.approx(1, abs=1e-3)
        assert seen[1, "ratio/min"] == seen[1, "ratio/max"] == 1 and (3, "eval/reward") in seen
        told = "/v1/load_lora_adapter" if "use_peft" in changes else "/collective_rpc"
        assert engine.asked[told] == 4, "the start, and after each step"
        assert list(engine.models) == [engine.base], "the run's adapters are gone"
        assert not (tmp_path / "run" / "engine.tmp").exists()
        rows = store.read_rollouts(tmp_path / "run").to_pylist()
        assert all(e > 0 for row in rows for e in row["entropy"]), "entropies are the network's own"
        two = trainer_for(llama, tmp_path / "two", engine.url, algo, max_steps=3, **changes)
        for version in (0, 1, 2):  # a server that others use too loads an adapter again
            two.engine.sync(version)
            kept = [f"{two.engine.sampler.tag}-{version}"] if "use_peft" in changes else []
            assert [path.name for path in (tmp_path / "two" / "engine.tmp").iterdir()] == kept
        two.engine.close()
        two.hold.release()
        stale = trainer_for(llama, tmp_path / "stale", engine.url, algo, max_steps=3, **changes)
        stale.engine.sync = lambda version: None
        stale.run()
        assert numbers(tmp_path / "stale")[3, GAP] > 1e-2


@pytest.mark.parametrize("sampler", ["vllm", "process"])
def test_what_is_drawn_from_is_recorded_and_what_is_trained_is_all_of_it(llama, tmp_path, sampler):
    """With top_k, both engines draw k tokens; the recorded gap is what that leaves out, the weights of the server's
    completions answer for it as TRL's do, and ratios begin at 1."""
    with Engine(llama) as engine:
        cut = dict(sampler=sampler, top_k=4, num_iterations=2, learning_rate=1e-3, eval_steps=1, eval_size=2)
        trainer_for(llama, tmp_path / "run", engine.url, GRPO(), max_steps=1, num_generations_eval=2, **cut).run()
    seen, rows = numbers(tmp_path / "run"), store.read_rollouts(tmp_path / "run").to_pylist()
    drawn, whole, old = ([x for row in rows for x in row[name]] for name in
                         ("engine_logprobs", "sampled_logprobs", "old_logprobs"))  # fmt: skip
    gaps = [a - b for a, b in zip(drawn, whole, strict=True)]
    assert min(gaps) > 0 and seen[1, GAP] == pytest.approx(sum(gaps) / len(gaps), abs=1e-5)
    assert old == pytest.approx(whole, abs=1e-4) and seen[1, "sampling_logp_difference"] < 1e-4
    assert seen[1, "ratio/min"] == pytest.approx(1, abs=0.1) and seen[1, "ratio/max"] == pytest.approx(1, abs=0.1)
    assert rollouts_from_rows(rows).engine_logprobs[0, :1].tolist() == drawn[:1]
    weights = seen.get((1, "sampling/importance_sampling_ratio/max"))
    assert (weights is None) if sampler == "process" else weights < 1


def test_a_run_whose_engine_dies_is_saved_and_goes_on(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "Server", lambda url, timeout: _quick(url, timeout))
    with Engine(llama) as engine:
        trainer = trainer_for(llama, tmp_path / "run", engine.url, GRPO(), max_steps=3, save_steps=0)

        def dies(step, *rest):
            if step == 1:
                engine.fail[:] = [500] * 1000

        trainer.on_step = dies
        with pytest.raises(EngineError, match=r"500 .*out of luck.*saved after step 1: --resume goes on"):
            trainer.run()
        engine.fail.clear()
        again = trainer_for(llama, tmp_path / "run", engine.url, GRPO(), max_steps=3, save_steps=0, resume=True)
        assert again.step == 1
        again.run()
        straight = trainer_for(llama, tmp_path / "straight", engine.url, GRPO(), max_steps=3, save_steps=0)
        straight.run()
        for name, value in straight.network.state_dict().items():
            assert torch.equal(value, again.network.state_dict()[name]), name


def _quick(url, timeout):
    from segpo_core.sampling.server import Server

    return Server(url, timeout, waits=(0, 0))


def test_what_is_wrong_with_a_server_is_said_before_work_starts(llama, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(EngineError, match=r"no vLLM server answers at http://127.0.0.1:9: start one with `VLLM_SERVER"):
        trainer_for(llama, out, "http://127.0.0.1:9", GRPO())
    assert not out.exists()
    with Engine(llama, logprobs_mode="raw_logprobs") as engine:
        with pytest.raises(EngineError, match="without the temperature .raw_logprobs.: start it with --logprobs-mode"):
            trainer_for(llama, out, engine.url, GRPO())
    other = families.llama(tmp_path / "other", seed=5)
    with Engine(other) as engine:
        with pytest.raises(EngineError, match="it serves another model"):
            trainer_for(llama, out, engine.url, GRPO(), use_peft=True)
        with pytest.raises(EngineError, match="has room for 512 tokens, and max_completion_length alone is 600"):
            trainer_for(llama, out, engine.url, GRPO(), max_completion_length=600)
    assert not (out / "run.json").exists()


def test_tied_weights_are_refused_or_given_a_head(tmp_path):
    """vLLM reads whole weights again by name, and a head that is the embeddings has none."""
    folder = families.llama(tmp_path / "llama")
    model = load_model(folder)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(folder)
    with Engine(folder) as engine:
        with pytest.raises(ValueError, match="ties its head to its embeddings.*--use-peft.*--vllm-python"):
            trainer_for(folder, tmp_path / "run", engine.url, GRPO())
    tied = load_model(folder)
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    engines.untie(folder, tied)
    alone = load_model(folder)
    assert alone.get_output_embeddings().weight is not alone.get_input_embeddings().weight
    assert torch.equal(alone.get_output_embeddings().weight, tied.get_input_embeddings().weight)


def test_a_server_that_cannot_be_started_is_told_with_its_last_words(llama, tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\necho "ValueError: no room for the model" >&2\nexit 3\n')
    python.chmod(0o755)
    with pytest.raises(EngineError, match=r"vllm_python '.*nowhere' cannot be run \(No such file or directory\): name"):
        trainer_for(llama, tmp_path / "never", "", GRPO(), vllm_python=str(tmp_path / "nowhere"))
    words = dict(vllm_python=str(python), vllm_server_args="--enforce-eager")
    with pytest.raises(EngineError, match="ended: ValueError: no room for the model"):
        trainer_for(llama, tmp_path / "run", "http://127.0.0.1:9", GRPO(), **words)
    said = (tmp_path / "run" / "engine.log").read_text()
    assert "--logprobs-mode processed_logprobs --enable-scale-out" in said and "--enforce-eager" in said
    assert f"--model {llama}" in said and not (tmp_path / "run" / "engine.tmp").exists()


@pytest.mark.slow
def test_two_processes_share_an_engine(llama, tmp_path):
    """Each asks for its own prompts, one of them tells it of new weights: what one process alone does."""
    with Engine(llama) as engine:
        for processes in (1, 2):
            more = ["--method", "grpo", "--dataset", "arithmetic", "--sampler", "vllm", "--vllm-server-url", engine.url]
            size = ["--per-device-train-batch-size", str(8 // processes), "--max-steps", "2"]
            run(llama, tmp_path / str(processes), processes, *more, *size)
        assert engine.asked["/collective_rpc"] == 4
    same(tmp_path / "1", tmp_path / "2")
    assert numbers(tmp_path / "2")[2, GAP] < 1e-4
