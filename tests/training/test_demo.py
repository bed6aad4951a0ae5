"""The demonstration as its user runs it, on the policy that ships; and that policy is what its card says."""

import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from segpo_core.algos import METHODS
from segpo_core.cli import main
from segpo_core.config import from_dict
from segpo_core.record import store
from segpo_core.training import checkpoint
from segpo_core.training.beside import Companion
from tests.fakes.forks import ROOT, Segpo


def demo(folder: Path, *flags: str, fork: bool = True) -> Segpo:
    return Segpo("demo", "--no-app", "--eval-size", "32", *flags, cwd=folder, fork=fork, PYTHONPATH=str(ROOT))


@pytest.mark.parametrize("method", ["sapo", "grpo"])
def test_the_demo_trains_records_and_reports(tmp_path, method):
    process = demo(tmp_path, "--alone", "--max-steps", "2", "--method", method, fork=method != "sapo")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    run = tmp_path / "runs" / "demo"
    rows = store.read_rollouts(run).to_pylist()
    assert len(rows) == 64 and {row["method"] for row in rows} == {method}
    kinds = {row["error_kind"] for row in rows if not row["answer_right"]}
    assert {"perception", "reasoning"} <= kinds, "both kinds of error should be there to be seen"
    for row in rows:
        if row["error_start"] is not None:
            assert 0 <= row["error_start"] < row["error_end"] <= len(row["token_ids"])
    names = {m["name"] for m in store.read_metrics(run).to_pylist()}
    assert {"eval/answer", "eval/perception", "eval/grounded", "train/grounded", "entropy"} <= names
    page = (run / "report.html").read_text(encoding="utf-8")
    again = {folder.name for folder in (run / "credit").glob("*")}
    others = {"grpo", "vineppo", "spo_chain", "srpo", "forks"}
    assert again == (others if method == "sapo" else set()), "GRPO blames no place: there is nothing to compare"
    assert ("SAPO (segment-aligned)" in page) == (method == "sapo") and "answer" in output and "perception" in output


def test_grpo_trains_beside_it_on_the_same_problems(tmp_path):
    process = demo(tmp_path, "--max-steps", "1", "--method", "rloo", "--epsilon", "0.1", "--learning-rate", "1e-5")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    runs = [tmp_path / "runs" / name for name in ("demo", "demo-grpo")]
    ours, theirs = (store.read_rollouts(run).to_pylist() for run in runs)
    assert {row["method"] for row in ours} == {"rloo"} and {row["method"] for row in theirs} == {"grpo"}
    # before any update both are the same policy, on the same prompts, with the same random numbers
    assert [row["token_ids"] for row in ours] == [row["token_ids"] for row in theirs]
    settings = [store.read_manifest(run)["config"] for run in runs]
    assert [s["learning_rate"] for s in settings] == [1e-5, 1e-5], "a run's setting is both's"
    assert [s["epsilon"] for s in settings] == [0.1, 0.2], "a method's setting is its own"
    for words in ("perception right", "both right", "GRPO", "RLOO"):
        assert words in output
    assert (runs[0] / "report.html").exists() and "GRPO" in (runs[0] / "beside.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_starts_from_the_demos_file(tmp_path, method):
    command = ["train", "--config", "configs/demo.yaml", "--method", method, "--output-dir", str(tmp_path / "run")]
    assert main([*command, "--max-steps", "1", "--eval-steps", "0"]) == 0
    assert len(store.read_rollouts(tmp_path / "run").to_pylist()) == 32


def test_ctrl_c_ends_the_demo_with_a_report(tmp_path):
    process = demo(tmp_path, "--max-steps", "500")
    run = tmp_path / "runs" / "demo"
    deadline = time.monotonic() + 200
    while not (run / "metrics" / "step-000001.parquet").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.said
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "Traceback" not in output, output
    assert (run / "report.html").exists()
    for ended in (run, tmp_path / "runs" / "demo-grpo"):
        assert checkpoint.read_step(checkpoint.latest(ended / "checkpoints")) < 500


def test_a_run_beside_that_still_loads_ends_after_its_first_step(tmp_path):
    config = from_dict(
        {"eval_steps": 0, "max_steps": 500, "max_completion_length": 8, "per_device_train_batch_size": 8}
    )
    companion = Companion(config, "grpo", tmp_path / "grpo", {}, threads=1)
    companion.end()  # at once: Ctrl-C does not wait for a process to load
    assert companion.wait() is None
    assert checkpoint.read_step(checkpoint.latest(tmp_path / "grpo" / "checkpoints")) < 500
    broken = Companion(replace(config, dataset="none.jsonl"), "grpo", tmp_path / "broken", {}, threads=1)
    broken.end()
    assert "none.jsonl" in broken.wait(), "and one that cannot begin is not waited for"


def test_a_second_demo_leaves_the_first_alone(tmp_path, monkeypatch):
    from segpo_core.cli import _fresh

    monkeypatch.chdir(tmp_path)
    assert str(_fresh("runs/demo")) == "runs/demo"
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    assert str(_fresh("runs/demo")) != "runs/demo"


def test_the_shipped_policy_is_imperfect_on_purpose(capsys):
    assert main(["evaluate", "data/tiny-vlm", "--size", "64", "--samples", "4"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert 0.2 <= numbers["eval_sampled/answer"] <= 0.4
    assert 0.5 <= numbers["eval_sampled/perception"] <= 0.75 and numbers["eval/answer"] < 0.45
    assert numbers["eval_sampled/format"] > 0.95


def test_report_of_something_that_is_no_run(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert "run.json" in capsys.readouterr().err
