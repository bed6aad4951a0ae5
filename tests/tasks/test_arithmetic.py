"""Sums: what is right, what is held out, and a run on a small text model from the command line to the report."""

from __future__ import annotations

import pytest

import segviz as sv
from segpo_core.cli import main
from segpo_core.record.store import read_metrics, read_rollouts
from segpo_core.tasks import load_task
from segpo_core.tasks.arithmetic import SOLVED, sum_reward
from segpo_core.training.evaluate import accuracies
from segviz.parts.heading import facts
from segviz.views.report import report
from tests.fakes import families


def test_no_held_out_sum_is_trained_on():
    task, other = load_task("arithmetic"), load_task("arithmetic", seed=3)

    def pairs(problems):
        return {frozenset(p["prompt"].removeprefix(SOLVED).removesuffix(" =").split(" + ")) for p in problems}

    held_out = pairs(task.eval(i) for i in range(400))
    assert len(held_out) > 30
    assert not held_out & pairs(t.train(i) for t in (task, other) for i in range(1000))
    for problem in (task.train(5), task.eval(5)):
        a, b = problem["prompt"].removeprefix(SOLVED).removesuffix(" =").split(" + ")
        assert problem["answer"] == str(int(a) + int(b))
    assert task.train(7) == task.train(7) != other.train(7)


@pytest.mark.parametrize(
    ("text", "right", "said"),
    [
        (" 12", True, "12"),
        (" 12.\n\nSo 13", True, "12"),
        (" 13, no: 12", False, "13"),
        (" 120", False, "120"),
        (" twelve", False, None),
        ("", False, None),
    ],
)
def test_the_first_number_counts(text, right, said):
    problem = {"prompt": "5 + 7 =", "answer": "12"}
    truth = load_task("arithmetic").inspect(problem, text)
    assert (truth["answer_right"], truth["said"]) == (right, said)
    assert sum_reward(["5 + 7 ="], [text], ["12"]) == [float(right)]
    error = truth["first_error"]
    assert (error is None) == right
    if error and said:
        assert text[error["start"] : error["end"]] == said and "12, not" in error["why"]


def test_accuracies_say_nothing_of_what_the_task_does_not_know():
    truth = [load_task("arithmetic").inspect({"prompt": "5 + 7 =", "answer": "12"}, text) for text in (" 12", " 1")]
    assert accuracies(truth, [1.0, 0.0]) == {"answer": 0.5, "format": 1.0}


def test_bad_settings():
    with pytest.raises(ValueError, match="smallest=5, largest=5"):
        load_task("arithmetic", smallest=5, largest=5)
    with pytest.raises(ValueError, match="too few sums of 3 to 4"):
        load_task("arithmetic", smallest=3, largest=4)


def test_a_text_run_and_its_views(tmp_path):
    model, run = families.llama(tmp_path / "model"), tmp_path / "run"
    flags = "--dataset arithmetic --method grpo --max-steps 2 --eval-steps 1 --eval-size 4 --num-generations 4"
    flags += " --per-device-train-batch-size 8 --max-completion-length 6 --use-peft --cpu"
    assert main(["train", "--model-name-or-path", str(model), "--output-dir", str(run), *flags.split()]) == 0
    names = {m["name"] for m in read_metrics(run).to_pylist()}
    assert {"eval/answer", "train/answer", "train/format"} <= names
    assert not [name for name in names if "perception" in name or "grounded" in name]
    rows = read_rollouts(run).to_pylist()
    assert all(row["perception_right"] is None and row["answer_right"] is not None for row in rows)
    opened = sv.open(run)
    assert sv.board(opened).data["title"] == "Does it learn?"
    assert not any(chart.get("hint") for chart in sv.board(opened).data["charts"])
    page = report(opened, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "still look" not in page


@pytest.mark.parametrize(
    ("text", "answer", "said"),
    [
        ("<think> 3 </think><answer> 4 </answer>", "4", "4"),
        ("so \\boxed{7}", "7", "7"),
        ("The answer is 9.", "9", "9"),
        (" 3 + 4 = 7, which", "7", "7"),
        (" 3 + 4 = 7, which", None, None),  # nothing was asked that a number answers
        ("<think> 3 + 4 = 7", "7", None),  # cut before its answer
    ],
)
def test_what_was_said_is_found_without_blocks(text, answer, said):
    from segviz.runs.rollout import Rollout

    assert facts(Rollout({"text": text, "answer": answer}))["said"] == said
