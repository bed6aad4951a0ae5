"""One prompt over training: the same held-out problems at each evaluation."""

from __future__ import annotations

import json

import pytest

import segviz as sv
from segpo_core.record.store import Recorder
from segviz.views.report import report_view
from tests.fakes.fake_run import HOSTILE, row, write_run


def record(path, answers, **columns):
    """A run that said `answers[step][group]`."""
    recorder = Recorder(path)
    recorder.start({"method": "grpo"})
    prompt = json.dumps([{"role": "user", "content": "How many?"}])
    for step, texts in answers.items():
        rows = [row(step, g, 0, text, reward=None, prompt=prompt, **columns) for g, text in enumerate(texts)]
        recorder.evaluation(step, rows, {})
    assert not recorder.failures
    return sv.open(path)


def test_before_and_after_are_told(run):
    data = sv.over_training(run).data
    assert [problem["example"] for problem in data["problems"]] == [f"shapes/eval/{i}" for i in range(4)]
    for problem in data["problems"]:
        assert [mark["step"] for mark in problem["marks"]] == run.eval_steps
        assert problem["question"].startswith("How many ") and problem["images"][0] in data["pictures"]
        assert problem["marks"][-1]["right"] and not problem["says"][-1]["parts"][-1][2]
    assert data["verdict"].startswith(
        "Of these 4 held-out problems 0 were right at step 0 and 4 are at step 24: 4 were won"
    )
    first = data["problems"][1]["says"][0]
    assert first["why"].startswith("reasoning: ") and sum(wrong for _, _, wrong in first["parts"]) == 1


def test_what_stays_the_same_is_said_once_and_what_changed_is_marked(tmp_path):
    run = record(tmp_path / "run", {0: ["one two three"], 5: ["one two three"], 10: ["one four three five"]})
    (problem,) = sv.over_training(run).data["problems"]
    assert [(one["from"], one["to"]) for one in problem["says"]] == [(0, 5), (10, 10)]
    assert [part[:2] for part in problem["says"][1]["parts"]] == [["one", False], [" four", True], [" three", False],
                                                                  [" five", True]]  # fmt: skip
    assert problem["marks"][0]["right"] is None and "from step 0 to 10" in sv.over_training(run).data["verdict"]


def test_texts_of_a_model_stay_texts(tmp_path):
    view = sv.over_training(record(tmp_path / "run", {0: list(HOSTILE), 1: list(reversed(HOSTILE))}, answer=HOSTILE[0]))
    for text in (view.html(), view.fallback):
        assert "<img src=x" not in text and "</script><script>window" not in text


def test_a_long_run_shows_evaluations_evenly(tmp_path):
    run = record(tmp_path / "run", {step: [f"at {step}"] for step in range(0, 1000, 10)})
    (problem,) = sv.over_training(run).data["problems"]
    steps = [mark["step"] for mark in problem["marks"]]
    assert len(steps) <= 40 and steps[0] == 0 and steps[-1] == 990


def test_a_run_without_recorded_evaluations_says_what_to_set(tmp_path):
    run = sv.open(write_run(tmp_path / "old", rollouts=False))
    with pytest.raises(ValueError, match="log_eval_completions"):
        sv.over_training(run)
    assert report_view(run).data["over"] is None


def test_the_report_has_it(run):
    assert report_view(run).data["over"] == sv.over_training(run).data
