"""The command line: settings from YAML and flags, help, and one clear message for everything a user can get wrong."""

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from segpo_core.algos import GRPO, METHODS, SAPO
from segpo_core.cli import main, parse_train
from segpo_core.config import TrainConfig, from_dict, load_yaml
from segpo_core.record import store
from segpo_core.shipped import ROOT
from tests.fakes import families


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return families.llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return families.llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def data(tmp_path):
    """A data set of four problems with an image each, in a JSONL file."""
    Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    rows = [{"prompt": f"{i} + {i} =", "images": ["a.png"], "answer": str(2 * i)} for i in range(4)]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def flags(model, out, *more) -> list[str]:
    return [
        "train", "--model-name-or-path", str(model), "--output-dir", str(out), "--max-steps", "1",
        "--num-generations", "2", "--per-device-train-batch-size", "4", "--max-completion-length", "6",
        "--eval-steps", "0", "--cpu", *map(str, more),
    ]  # fmt: skip


def fails(capsys, *argv) -> str:
    assert main(list(argv)) == 1
    message = capsys.readouterr().err
    assert "error:" in message and "Traceback" not in message
    return " ".join(message.split())


def test_flags_go_before_the_file_and_the_file_before_the_defaults(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"method": "sapo", "fraction": 0.5, "learning_rate": "1e-4", "num_generations": 4}))
    config = parse_train(["--config", str(path), "--num-generations", "2", "--epsilon-high", "0.4"])
    assert config.algo == SAPO(fraction=0.5, epsilon_high=0.4)
    assert (config.learning_rate, config.num_generations) == (1e-4, 2)
    assert isinstance(parse_train(["--config", str(path), "--method", "grpo"]).algo, GRPO)
    assert from_dict(config.to_dict()) == config, "what run.json holds makes the same run"


def test_sapos_published_settings_are_settings_here():
    path = ROOT / "configs" / "sapo-geo3k.yaml"
    config = from_dict(load_yaml(path), str(path))
    assert (config.method, config.max_steps, config.algo.fraction, config.algo.lam) == ("sapo", 200, 0.3, 0.99)
    assert (config.max_prompt_length, config.max_completion_length) == (1024, 2048)
    processes = 8
    assert config.prompts_per_step(processes) * processes * config.num_generations == 512
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps * processes == 128


@pytest.mark.parametrize("method", sorted(METHODS))
def test_help_reads_like_documentation(method, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_train(["--method", method, "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert stop.value.code == 0
    assert METHODS[method].title in text and "Completions in one forward and backward pass on one device" in text
    assert ("Rank of the adapters" in text) and ("Lower clip range" in text)


def test_a_run_from_a_file_of_problems(llava, data, tmp_path):
    assert main(flags(llava, tmp_path / "run", "--dataset", data, "--method", "grpo")) == 0
    assert store.read_manifest(tmp_path / "run")["method"] == "grpo"
    assert store.read_rollouts(tmp_path / "run").num_rows == 4


def test_commands_are_listed(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("train", "demo", "report", "evaluate", "warmup"))


def test_wrong_settings(tmp_path, capsys):
    assert "known: train" in fails(capsys, "fly")
    message = fails(capsys, "train", "--method", "sappo")
    assert "unknown method 'sappo'" in message and "sapo" in message and "grpo" in message
    path = tmp_path / "run.yaml"
    path.write_text("learning_rat: 1e-4")
    assert "did you mean 'learning_rate'" in fails(capsys, "train", "--config", str(path))
    path.write_text("learning_rate: fast")
    assert "must be a number" in fails(capsys, "train", "--config", str(path))
    path.write_text("[1, 2]")
    assert "must be a mapping" in fails(capsys, "train", "--config", str(path))
    path.write_text("a: [")
    assert "not YAML" in fails(capsys, "train", "--config", str(path))
    assert "cannot be read" in fails(capsys, "train", "--config", str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(num_generations=1), "needs at least 2"),
        (dict(per_device_train_batch_size=6, num_generations=4), "no multiple of num_generations"),
        (dict(temperature=0.0), "above 0"),
        (dict(max_steps=0), "max_steps is 0"),
        (dict(steps_per_generation=3, gradient_accumulation_steps=2), "multiple of gradient_accumulation_steps"),
        (dict(method="sapo"), "holds the settings of 'grpo'"),
    ],
)
def test_settings_that_cannot_work_together(changes, words):
    with pytest.raises(ValueError, match=words):
        TrainConfig(**(dict(method="grpo", algo=GRPO()) | changes)).prompts_per_step(1)
    if "temperature" in changes:
        with pytest.raises(ValueError, match="must not be negative"):
            GRPO(beta=-1)
        with pytest.raises(ValueError, match="must not be negative"):
            GRPO(epsilon=-1)


def test_group_of_one_is_fine_with_a_critic():
    assert TrainConfig(num_generations=1).prompts_per_step(1) == 8


def test_a_run_directory_is_never_written_over(llava, data, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(flags(llava, out, "--dataset", data)) == 0
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert "already holds a run" in fails(capsys, *flags(llava, out, "--dataset", data))
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    manifest = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    assert "schema version 99" in fails(capsys, *flags(llava, out, "--dataset", data, "--resume"))
    assert "has no run.json" in fails(capsys, *flags(llava, tmp_path / "none", "--dataset", data, "--resume"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    assert "not empty" in fails(capsys, *flags(llava, tmp_path / "full", "--dataset", data))


def test_resume_without_a_checkpoint_says_so(llava, data, tmp_path, capsys):
    recorder = store.Recorder(tmp_path / "run")
    recorder.start({})
    recorder.metrics(60, {"loss": 0.0})  # past a step that saves: the checkpoints were lost
    assert "no checkpoint" in fails(capsys, *flags(llava, tmp_path / "run", "--dataset", data, "--resume"))


def test_missing_model_and_broken_data(llava, data, tmp_path, capsys):
    assert "no model at" in fails(capsys, *flags(tmp_path / "nowhere", tmp_path / "r1"))
    assert "not a model directory" in fails(capsys, *flags(tmp_path, tmp_path / "r2"))
    assert "none.jsonl" in fails(capsys, *flags(llava, tmp_path / "r3", "--dataset", tmp_path / "none.jsonl"))
    data.write_text('{"prompt": "a", "answer": "b"}\n{"prompt": ')
    assert "2" in fails(capsys, *flags(llava, tmp_path / "r4", "--dataset", data))
    data.write_text('{"question": "a", "answer": "b"}')
    message = fails(capsys, *flags(llava, tmp_path / "r5", "--dataset", data))
    assert "prompt" in message and "question" in message
    (tmp_path / "a.png").write_bytes(b"no image")
    data.write_text('{"prompt": "a", "answer": "b", "images": ["a.png"]}')
    assert "a.png" in fails(capsys, *flags(llava, tmp_path / "r6", "--dataset", data))
    assert not any((tmp_path / f"r{i}" / "run.json").exists() for i in (1, 2, 3, 4, 5))


def test_images_for_a_text_model_and_prompts_too_long(llava, llama, data, tmp_path, capsys):
    assert "image" in fails(capsys, *flags(llama, tmp_path / "r1", "--dataset", data))
    message = fails(capsys, *flags(llava, tmp_path / "r2", "--dataset", data, "--max-prompt-length", 3))
    assert "max_prompt_length" in message


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise RuntimeError('boom')", "boom"),
        ("return [1.0]", "4"),
        ("return [float('nan')] * len(completions)", "nan"),
    ],
)
def test_reward_functions_that_fail(llava, data, tmp_path, capsys, body, words):
    (tmp_path / "mine.py").write_text(f"def mine(prompts, completions, **columns):\n    {body}\n")
    spec = f"{tmp_path / 'mine.py'}:mine"
    message = fails(capsys, *flags(llava, tmp_path / "run", "--dataset", data, "--reward-funcs", spec))
    assert "mine" in message and words in message


def test_weights_for_other_rewards(llava, data, tmp_path, capsys):
    message = fails(capsys, *flags(llava, tmp_path / "run", "--dataset", data, "--reward-weights", "1", "2"))
    assert "2 numbers for 1 reward" in message


def test_settings_of_the_data_set_from_the_command_line(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"dataset_args": {"eval_rows": 3, "split": "train"}}))
    words = ["--dataset-args", "prompt_column", "question", "system_prompt=a: b", "--method", "grpo"]
    config = parse_train(["--config", str(path), *words])
    assert config.algo == GRPO()
    wanted = {"eval_rows": 3, "split": "train", "prompt_column": "question", "system_prompt": "a: b"}
    assert config.dataset_args == wanted
    assert parse_train(["--dataset_args", "seed", "3"]).dataset_args == {"seed": "3"}
    with pytest.raises(ValueError, match="'question' has no value"):
        parse_train(["--dataset-args", "question"])


def test_evaluate_takes_settings_of_the_data_set(data, llava, capsys):
    said = fails(capsys, "evaluate", str(llava), "--dataset", str(data), "--dataset-args", "prompt_column", "q")
    assert "has no column 'q'" in said and "set prompt_column" in said


def test_settings_of_one_method_in_a_file_for_several() -> None:
    settings = {
        "learning_rate": 1e-4,
        "methods": {"grpo": {"epsilon": 0.3, "learning_rate": 2e-4}, "sapo": {"lam": 0.8}},
    }
    grpo, sapo, rloo = (from_dict(settings, method=name) for name in ("grpo", "sapo", "rloo"))
    assert (grpo.algo.epsilon, grpo.learning_rate) == (0.3, 2e-4)
    assert (sapo.algo.epsilon, sapo.algo.lam, sapo.learning_rate) == (0.2, 0.8, 1e-4)
    assert rloo.learning_rate == 1e-4
    with pytest.raises(ValueError, match="unknown method 'gropo'"):
        from_dict({"methods": {"gropo": {}}})
    with pytest.raises(ValueError, match="methods must be a mapping"):
        from_dict({"methods": {"grpo": 3}})
    with pytest.raises(ValueError, match="no setting 'lam'"):
        from_dict({"methods": {"grpo": {"lam": 0.5}}}, method="grpo")


@pytest.mark.parametrize("more", [[], ["--use-peft"]], ids=["full", "lora"])
def test_evaluate_measures_a_run_and_its_checkpoints(llama, tmp_path, capsys, more):
    """With the run's own data and rewards; an adapter on the model that it was trained on."""
    (tmp_path / "sums.jsonl").write_text(
        "\n".join(json.dumps({"prompt": f"{i} + {i} =", "answer": str(2 * i)}) for i in range(8))
    )
    run = tmp_path / "run"
    assert main(flags(llama, run, "--method", "grpo", "--dataset", tmp_path / "sums.jsonl", *more)) == 0
    capsys.readouterr()
    results = []
    for place in (run, run / "checkpoints" / "step-000001"):
        assert main(["evaluate", str(place), "--size", "4", "--samples", "0"]) == 0
        out, err = capsys.readouterr()
        assert "the checkpoint of step 1" in err
        results.append(json.loads(out))
    assert results[0] == results[1] and results[0]["eval/completion_length"] <= 6


def test_messages_do_not_steer_the_terminal(tmp_path, capsys):
    """What an error quotes from a run is written out, not obeyed."""
    (tmp_path / "run.json").write_text('{"schema_version": "\\u001b]0;mine\\u0007\\u001b[2J\\u202e"}')
    assert main(["report", str(tmp_path)]) == 1
    assert main(["report", str(tmp_path / "\x1b[31m")]) == 1
    said = capsys.readouterr().err
    assert "\\x1b" in said and not set("\x1b\x07\u202e") & set(said)


def test_a_reader_that_has_enough_is_no_error():
    """`segpo train --help | head -1` with a reader that closes at once."""
    command = [sys.executable, "-m", "segpo_core.cli", "train", "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    said = process.stderr.read()
    assert (process.wait(timeout=120), said) == (0, "")
