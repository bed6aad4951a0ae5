"""What is told of a run before anything else, and that it claims no more than is known."""

from __future__ import annotations

import os

import pytest

import segviz as sv
from segpo_core.record.store import Recorder
from segviz.parts.scoreboard import by_method, scored
from segviz.parts.story import story
from segviz.parts.trust import trust
from segviz.show.statistics import difference
from tests.fakes.fake_run import write_run


@pytest.fixture
def told(tmp_path):
    """told(step -> metrics, settings) -> the story of such a run."""

    def told(metrics, **config):
        recorder = Recorder(tmp_path / "run")
        recorder.start({"method": "grpo", **config})
        for step, numbers in metrics.items():
            recorder.metrics(step, numbers)
        return story(sv.open(tmp_path / "run"))

    return told


def evals(answer, perception=None, both=None):
    numbers = {"eval/answer": answer, "eval/perception": perception, "eval/grounded": both}
    return {name: value for name, value in numbers.items() if value is not None}


def test_both_grow(told):
    found = told({0: evals(0.28, 0.67, 0.225), 100: evals(0.935, 1.0, 0.935)}, eval_size=200, max_steps=100)
    assert found["sentence"] == "Answers +65.5 points; sees better (+33.0 points)."
    assert found["headline"][0]["change"] == difference(56, 200, 187, 200)
    assert found["progress"] == {"step": 100, "planned": 100, "done": 1.0, "left": None}


def test_answers_that_no_longer_rest_on_the_picture(told):
    steps = {0: evals(0.28, 0.67, 0.225), 25: evals(0.735, 0.995, 0.73), 100: evals(0.955, 0.635, 0.635)}
    assert told(steps, eval_size=200)["sentence"] == (
        "Answers +67.5 points; looks less than at step 25 (perception 99.5 → 63.5 %); "
        "right answers over a wrong perception went from 5.5 to 32.0 %."
    )


@pytest.mark.parametrize(
    ("first", "last", "size", "words"),
    [
        ((0.5, 0.9), (0.6, 0.9), 2000, "Answers +10.0 points; still looks at the picture."),
        ((0.5, 0.9), (0.52, 0.9), 200, "Answers +2.0 points, which 200 problems cannot tell from no change; whether "
         "it still looks is open (perception 0.0 points, 95 %: −6.0 to +6.0)."),
        ((0.5, 0.9), (0.9, 0.6), 200, "Answers +40.0 points; looks less (perception −30.0 points)."),
        ((0.9, None), (0.5, None), 200, "Answers −40.0 points."),
        ((0.5, 0.9), (0.6, 0.9), None, "Answers +10.0 points (how sure, unknown); perception 0.0 points (how sure, "
         "unknown)."),
    ],
)  # fmt: skip
def test_no_more_than_the_intervals_allow(told, first, last, size, words):
    config = {"eval_size": size} if size else {}
    assert told({0: evals(*first), 10: evals(*last)}, **config)["sentence"] == words


def test_the_problems_that_were_counted_go_before_those_that_were_asked_for(told):
    steps = {0: evals(0.5) | {"eval/problems": 20}, 10: evals(0.7) | {"eval/problems": 20}}
    found = told(steps, eval_size=2000)
    assert found["headline"][0]["problems"] == 20 and "20 problems cannot tell" in found["sentence"]


def test_before_the_second_evaluation_there_is_nothing_to_compare(told):
    assert told({}, max_steps=10)["sentence"] == "Nothing is measured yet."


def test_the_first_evaluation_is_told(told):
    assert told({0: evals(0.28, 0.67, 0.225)}, eval_size=200, eval_steps=25)["sentence"] == (
        "Before training: answers right 28.0 %, seen right 67.0 %, both 22.5 %. The next evaluation comes with step 25."
    )


def test_a_run_of_another_trainer_is_told_by_its_reward(told):
    steps = {step: {"reward": 0.2 + 0.03 * step + 0.01 * (step % 3)} for step in range(1, 21)}
    found = told(steps)
    assert [tile["label"] for tile in found["headline"]] == ["reward"] and found["headline"][0]["change"][0] > 0
    assert found["sentence"] == "Reward +0.45." and not found["headline"][0]["share"]


def test_few_steps_of_a_reward_claim_nothing(told):
    assert told({1: {"reward": 0.1}, 2: {"reward": 0.9}})["sentence"] == "Reward +0.8 (too few steps)."


def test_noise_of_a_reward_is_no_change(told):
    steps = {step: {"reward": 0.5 + 0.2 * (-1) ** step} for step in range(1, 21)}
    assert told(steps)["sentence"].endswith("which the steps so far cannot tell from no change.")


@pytest.mark.parametrize("before", [0, 1_000_000])
def test_the_time_left_is_that_of_the_latest_steps_without_a_break(told, tmp_path, before):
    told({before + step: {"reward": 0.5} for step in range(1, 11)}, max_steps=before + 30)
    for step in range(1, 11):  # two seconds a step, an evaluation of ten, and a night in between
        at = 1_000_000 + 2 * step + 10 * (step >= 8) + 40_000 * (step >= 4)
        os.utime(tmp_path / "run" / "metrics" / f"step-{before + step:06d}.parquet", (at, at))
    progress = story(sv.open(tmp_path / "run"))["progress"]
    assert (progress["step"], progress["planned"]) == (before + 10, before + 30)
    assert progress["done"] == pytest.approx((before + 10) / (before + 30))
    assert progress["left"] == pytest.approx(20 * 26 / 8)


def test_methods_are_judged_on_the_same_completions(tmp_path):
    path, other = write_run(tmp_path / "one", steps=8), sv.open(write_run(tmp_path / "two", "grpo", steps=8))
    run = sv.open(path)
    assert by_method(run) == []
    (path / "credit" / "grpo").mkdir(parents=True)
    for step in (1,):
        source = other.path / "rollouts" / f"step-{step:06d}.rank0.parquet"
        (path / "credit" / "grpo" / f"step-{step:06d}.parquet").write_bytes(source.read_bytes())
    own, grpo = by_method(run)
    assert (own["label"], own["own"], grpo["label"], grpo["own"]) == ("SAPO (segment-aligned)", True, "GRPO", False)
    assert own["lines"][0]["wrong"] == grpo["lines"][0]["wrong"] > 0 and own["whence"] == "step 1"
    assert grpo["lines"][0]["named"] == 0, "GRPO's credit is the same everywhere"
    assert scored(run)["methods"] == [own, grpo]


def test_where_no_error_is_known_the_values_are_asked(tmp_path):
    run = sv.open(write_run(tmp_path / "sapo", steps=8))
    variance, area = trust(run)
    assert "explains" in variance and "AUC, 95 %" in area
    (alone,) = trust(sv.open(write_run(tmp_path / "grpo", "grpo", steps=8)))
    assert alone.startswith("This method works with no values")
