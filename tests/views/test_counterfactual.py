"""The counterfactual: counts, intervals and words from given continuations, and a real policy's sabotaged segment."""

from __future__ import annotations

import html
import io
import json
import math
import re
import shutil
from itertools import accumulate
from types import SimpleNamespace

import numpy as np
import pytest

import segviz as sv
from segpo_core.afterwards.probe import Policy, sample
from segpo_core.algos import GRPO
from segpo_core.config import TrainConfig
from segpo_core.tasks import load_task
from segpo_core.training.loop import train
from segviz.runs.annotate import encode
from segviz.show.statistics import wilson
from segviz.views.counterfactual import _fallback, counterfactual_data, newcombe
from tests.fakes import families
from tests.fakes.fake_run import HOSTILE
from tests.views import inert

IDS = list(range(10, 20))  # a completion of ten tokens in three segments
PIECES = [f" t{i}" for i in IDS]
SPANS = {"segment_start": [0, 3, 6], "segment_end": [3, 6, 10]}


def rollout(**columns) -> sv.Rollout:
    row = {"step": 5, "group": 1, "sample": 2, "method": "sapo", "token_ids": IDS, "pieces": PIECES,
           "text": "".join(PIECES), "reward": 1.0, "segment_advantage": [0.1, -0.5, 0.2]}  # fmt: skip
    return sv.Rollout(row | SPANS | columns)


def drawn(ids, reward, finished=True) -> SimpleNamespace:
    return SimpleNamespace(token_ids=ids, pieces=[f" t{i}" for i in ids], reward=reward, finished=finished)


def many(at: int, wins: int, of: int) -> list:
    return [drawn([99, *IDS[at + 1 :]], float(n < wins)) for n in range(of)]


def test_counts_intervals_and_the_verdict():
    data = counterfactual_data(many(3, 14, 16), many(6, 3, 16), rollout(), 1)
    before, after = data["sides"]
    assert (before["name"], before["at"], before["successes"], before["n"]) == ("before", 3, 14, 16)
    assert (after["name"], after["at"], after["successes"], after["n"]) == ("after", 6, 3, 16)
    for side in (before, after):
        # the score interval ends where the share lies 1.96 standard errors away
        for p in (side["low"], side["high"]):
            assert abs(side["rate"] - p) == pytest.approx(1.96 * math.sqrt(p * (1 - p) / 16), rel=1e-3)
    assert data["causal"] is True and data["difference"]["value"] == pytest.approx(-11 / 16)
    words = " ".join(data["verdict"])
    assert words.startswith("Causal beyond noise: it lowers the chance of success by 69 points.")
    assert "Before it 14 of 16 continuations succeed." in words and "After it 3 of 16 continuations succeed." in words
    assert data["segment"]["number"] == 2 and data["segment"]["text"] == " t13 t14 t15"
    assert data["segment"]["credit"] == -0.5


def test_the_interval_of_the_difference_is_newcombes():
    """Table II of Newcombe (1998), method 10: 56/70 against 48/80, and 10/10 against 0/20."""
    for k, n, m, o, low, high in ((56, 70, 48, 80, 0.0524, 0.3339), (10, 10, 0, 20, 0.6791, 1.0)):
        a, b = ((x / y, *map(float, wilson(x, y))) for x, y in ((m, o), (k, n)))
        assert newcombe(a, b) == pytest.approx((k / n - m / o, low, high), abs=1e-4)


def test_an_equal_share_is_not_causal():
    data = counterfactual_data(many(3, 9, 16), many(6, 8, 16), rollout(), 1)
    assert data["causal"] is False and data["verdict"][0] == "Not causal beyond noise."
    assert "More continuations narrow the interval" in data["verdict"][-1]


def test_false_alarms_are_rare():
    """Both sides drawn with one chance of success: 'causal' at most about one time in twenty."""
    rng, alarms = np.random.default_rng(0), []
    for p in (0.1, 0.3, 0.5, 0.8):
        for k, m in rng.binomial(16, p, size=(150, 2)):
            alarms.append(counterfactual_data(many(3, k, 16), many(6, m, 16), rollout(), 1)["causal"])
    assert np.mean(alarms) < 0.07


def test_the_first_token_that_differs():
    cases = [
        (IDS[3:], None, "", ""),  # the recorded text again
        ([13, 14, 77, 78], 5, " t77", " t78"),
        ([99], 3, " t99", ""),
        ([13, 14], 5, "", ""),  # cut before it could differ
        ([*IDS[3:], 50, 51], 10, " t50", " t51"),  # the recorded completion was cut here, this one goes on
    ]
    data = counterfactual_data([drawn(ids, 1.0) for ids, *_ in cases], None, rollout(), 1)
    (side,) = data["sides"]
    for told, (_, token, first, rest) in zip(side["samples"], cases, strict=True):
        assert (told["token"], told["first"], told["rest"]) == (token, first, rest)


def test_a_segment_that_is_always_written_again_cannot_be_causal():
    again = [drawn([*IDS[3:6], 50 + n], 0.0) for n in range(16)]
    data = counterfactual_data(again, many(6, 6, 16), rollout(), 1)
    assert data["difference"]["low"] > 0 and data["causal"] is False
    assert "wrote this very segment again" in data["verdict"][-1]
    some = counterfactual_data([*again[:4], *many(3, 12, 12)], many(6, 6, 16), rollout(), 1)
    assert any(note.startswith("4 of 16 continuations from before wrote this") for note in some["notices"])


def test_the_outcome_after_the_last_segment_is_the_recorded_one():
    for reward, wins, causal in ((1.0, 2, True), (0.0, 2, True), (0.0, 0, False), (1.0, 16, False)):
        data = counterfactual_data(many(6, wins, 16), None, rollout(reward=reward), 2)
        after = data["sides"][1]
        assert after["recorded"] and after["low"] == after["rate"] == after["high"] == reward
        assert data["causal"] is causal and data["difference"]["value"] == reward - wins / 16
    data = counterfactual_data(many(6, 2, 16), None, rollout(reward=0.0), 2)
    assert "After it the completion ends, without success." in data["verdict"]
    unknown = counterfactual_data(many(6, 2, 16), None, rollout(reward=None), 2)
    assert unknown["difference"] is None and unknown["causal"] is None and "no verdict" in unknown["verdict"][1]


def test_one_side_alone_is_measured_and_not_compared():
    data = counterfactual_data(None, many(6, 8, 16), rollout(), 1)
    assert [side["name"] for side in data["sides"]] == ["after"] and data["difference"] is None
    assert data["verdict"] == ["Measured, not compared.", "After it 8 of 16 continuations succeed."]
    alone = counterfactual_data(many(6, 8, 16), None, rollout(), 2, with_after=False)
    assert [side["name"] for side in alone["sides"]] == ["before"] and alone["difference"] is None


def test_missing_verdicts_are_left_out_and_said():
    before = [*many(3, 4, 4), drawn([98], None), drawn([97], math.nan)]
    data = counterfactual_data(before, many(6, 1, 4), rollout(), 1)
    assert (data["sides"][0]["n"], data["sides"][0]["unknown"]) == (4, 2)
    assert [s["success"] for s in data["sides"][0]["samples"]] == [True] * 4 + [None] * 2
    assert any("2 of 6 outcomes before the segment have no verdict" in note for note in data["notices"])
    none = counterfactual_data([drawn([98], None)], many(6, 1, 4), rollout(), 1)
    assert none["causal"] is None and none["sides"][0]["rate"] is None


def test_graded_rewards_succeed_from_a_threshold():
    before, after = ([drawn([99], r) for r in rewards] for rewards in ([0.2, 0.4, 0.9], [0.1, 0.1, 0.4]))
    data = counterfactual_data(before, after, rollout(reward=0.4), 1)
    assert any("No reward reaches 1; they lie between 0.1 and 0.9" in note for note in data["notices"])
    data = counterfactual_data(before, after, rollout(reward=0.4), 1, success=0.4)
    assert [side["successes"] for side in data["sides"]] == [2, 1] and data["own"]["success"] is True
    assert data["sides"][0]["mean"] == pytest.approx(0.5)


def test_the_fallback_is_a_table_of_escaped_text():
    hostile = [SimpleNamespace(token_ids=[99], pieces=[text], reward=0.0, finished=True) for text in HOSTILE]
    pieces = [HOSTILE[i % len(HOSTILE)] for i in range(10)]
    row = rollout(pieces=pieces, text="".join(pieces), example_id=HOSTILE[0], method=HOSTILE[1])
    data = counterfactual_data(hostile, hostile, row, 1, policy=HOSTILE[0])
    text = _fallback(data)
    assert "before" in inert.check(text)
    assert html.escape(HOSTILE[1]) in text and "0 of 10" in text
    json.dumps(data, allow_nan=False)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "segment", "error", "message"),
    [
        ({"token_ids": None}, 0, ValueError, "no token ids.*annotate it first"),
        ({"token_ids": [], "pieces": [], "text": ""}, 0, ValueError, "no token ids"),
        ({"token_ids": IDS[:4]}, 0, ValueError, "4 token ids but 10 token pieces"),
        ({}, 3, IndexError, "has 3, counted from 0"),
        ({}, -1, IndexError, "has 3, counted from 0"),
    ],
)
def test_rollouts_and_segments_that_cannot_be_asked_about(columns, segment, error, message):
    with pytest.raises(error, match=message):
        counterfactual_data(None, None, rollout(**columns), segment)
    with pytest.raises(error, match=message):
        sv.counterfactual("runs/unread", rollout(**columns), segment)


# --- a real policy --------------------------------------------------------------------------------

WRONG = {"red": "green", "green": "blue", "blue": "yellow", "yellow": "red"}


@pytest.fixture(scope="module")
def policy():
    return Policy.load("data/tiny-vlm", reward_funcs=load_task("shapes").reward_funcs)


@pytest.fixture(scope="module")
def seen(policy):
    """(example, a completion that sees its picture right). The question: How many green shapes are there?"""
    task, number = load_task("shapes"), 5
    example = task.eval(number)
    texts = [s.text for s in sample(policy, example, 16, seed=1)]
    return example, next(text for text in texts if task.inspect(example, text)["perception_right"])


def made(policy, example, text, end: int) -> sv.Rollout:
    """A rollout of the text, in two segments: the first holds the characters up to `end`."""
    ids, pieces = encode(policy.sampler.tokenizer, text)
    cut = next(n for n, size in enumerate(accumulate(map(len, pieces)), 1) if size >= end)
    sink = io.BytesIO()
    example["images"][0].save(sink, format="PNG")
    row = {
        "step": 1, "group": 0, "sample": 0, "prompt": json.dumps(example["prompt"]), "images": ["ab"], "reward": 0.0,
        "answer": str(example["answer"]), "text": text, "token_ids": ids, "pieces": pieces,
        "segment_start": [0, cut], "segment_end": [cut, len(ids)],
    }  # fmt: skip
    return sv.Rollout(row, {"ab": sink.getvalue()})


def test_a_sabotaged_perception_is_found_causal(policy, seen):
    example, text = seen
    end = text.index("</perception>") + len("</perception>")
    spoiled = re.sub("|".join(WRONG), lambda match: WRONG[match[0]], text[:end]) + text[end:]
    view = sv.counterfactual(policy, made(policy, example, spoiled, end), 0, number=48)
    before, after = view.data["sides"]
    assert after["rate"] < before["rate"] and view.data["causal"] is True
    assert "lowers the chance of success" in view.data["verdict"][0] and "data/tiny-vlm" in view.data["policy"]
    assert len(before["samples"]) == len(after["samples"]) == 48 and before["at"] == 0
    honest = sv.counterfactual(policy, made(policy, example, text, end), 0, number=48)
    assert honest.data["difference"]["high"] > 0, "what is seen right does no harm"
    again = sv.counterfactual(policy, made(policy, example, text, end), 0, number=48)
    assert again.data == honest.data, "the same seed, the same continuations"


def test_the_last_segment_and_one_side_need_fewer_continuations(policy, seen):
    example, text = seen
    asked = made(policy, example, text, text.index("<answer>"))
    last = sv.counterfactual(policy, asked, 1, number=4)
    assert [(side["name"], len(side["samples"])) for side in last.data["sides"]] == [("before", 4), ("after", 0)]
    for where in ("before", "after"):
        (side,) = sv.counterfactual(policy, asked, 0, number=3, where=where).data["sides"]
        assert side["name"] == where and len(side["samples"]) == 3
    with pytest.raises(ValueError, match="choose both, before or after"):
        sv.counterfactual(policy, asked, 0, where="around")


def test_a_rollout_of_one_token(policy, seen):
    example, _ = seen
    one = made(policy, example, "<perception>", 1)
    one = sv.Rollout({**one.row, "token_ids": one.row["token_ids"][:1], "pieces": ["<perception>"],
                      "segment_start": [0], "segment_end": [1]}, one.images)  # fmt: skip
    data = sv.counterfactual(policy, one, 0, number=4).data
    assert [side["at"] for side in data["sides"]] == [0, 1] and data["sides"][1]["recorded"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A text-only run with a checkpoint after each of two steps."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "problems.jsonl").write_text(
        "\n".join(json.dumps({"prompt": f"{i} + 1 =", "answer": str(i + 1)}) for i in range(12))
    )
    config = TrainConfig(
        method="grpo", algo=GRPO(), model_name_or_path=str(families.llama(folder / "model")), num_generations=4,
        output_dir=str(folder / "run"), dataset=str(folder / "problems.jsonl"), per_device_train_batch_size=8,
        max_completion_length=6, max_steps=2, eval_steps=0, save_steps=1, cpu=True,
        reward_funcs=["tests.fakes.toy:lucky_text"],
    )  # fmt: skip
    return sv.open(train(config))


def test_a_runs_own_checkpoint_is_asked(run):
    for step, words in (
        (1, "checkpoint of step 1: 1 training step after"),
        (2, "checkpoint of step 2: 1 training step"),
    ):
        with pytest.raises(ValueError, match="tests.fakes.toy:lucky_text.*trust_code=True"):
            sv.counterfactual(run, run.rollout(step, 0, 0), 0, number=4)
        view = sv.counterfactual(run, run.rollout(step, 0, 0), 0, number=4, trust_code=True)
        assert words in view.data["policy"] and view.data["key"] == f"{step}/0/0"
        assert len(view.data["sides"][0]["samples"]) == 4


def test_a_run_without_checkpoint_says_what_to_do(run, tmp_path):
    moved = tmp_path / "run"
    shutil.copytree(run.path, moved)
    shutil.rmtree(moved / "checkpoints")
    with pytest.raises(FileNotFoundError, match="no checkpoint to ask"):
        sv.counterfactual(moved, run.rollout(1, 0, 0), 0)


def test_another_policy_than_the_writer_is_refused(run, policy):
    rollout = run.rollout(1, 0, 0)
    with pytest.raises(ValueError, match="another (tokenizer|model) wrote this"):
        sv.counterfactual(policy, rollout, 0)
    with pytest.raises(ValueError, match="nothing says which continuation succeeds"):
        sv.counterfactual(Policy.load("data/tiny-vlm"), rollout, 0)


def test_a_dump_has_no_policy(tmp_path):
    (tmp_path / "1.jsonl").write_text(json.dumps({"input": "p", "output": "o", "score": 1}))
    with pytest.raises(ValueError, match="keeps no checkpoints: give the policy that wrote it"):
        sv.counterfactual(sv.read_verl(tmp_path), rollout(), 0)


def test_a_missing_image_is_named(policy, seen):
    example, text = seen
    asked = made(policy, example, text, 5)
    with pytest.raises(ValueError, match="image ab… .* is missing"):
        sv.counterfactual(policy, sv.Rollout(asked.row), 0)
