"""The staircase: values, their noise, and what is said of them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import segviz as sv
from segviz.views.staircase import Z, staircase_data, states_of, steps_of
from tests.fakes.fake_run import row
from tests.views.made import Page, Table, sampled, unpack


def judged(item: dict) -> list[tuple]:
    rollout = sv.Rollout(item)
    return [(step.start, step.end, step.judgement) for step in steps_of(rollout, states_of(rollout)[1])]


def test_a_fall_is_beyond_noise_from_1_96_standard_errors_of_the_difference():
    values = [0.8, None, 0.8 - 0.195, None, 0.2, None]
    item = sampled(values, [0.06, None, 0.08, None, 0.1, None], reward=0.2)  # √(0.06² + 0.08²) = 0.1
    assert judged(item) == [(0, 2, "within"), (2, 4, "beyond"), (4, 6, "within")]
    item["mc_values"][2] = 0.8 - 0.197
    assert judged(item)[0] == (0, 2, "beyond")
    columns = unpack(staircase_data(sv.Rollout(item))["pack"])
    assert columns["st_start"].tolist() == [0, 2, 4] and columns["st_j"].tolist() == [2, 2, 1]
    assert columns["st_z"][0] == pytest.approx(-1.97, abs=1e-4)
    np.testing.assert_array_equal(columns["st_value"], np.float32([0.8, 0.603, 0.2]))


def test_the_verdict_names_the_fall_and_whether_the_first_error_lies_there():
    errors = [0.05, None, 0.05, None, 0.05, None]
    item = sampled([0.9, None, 0.85, None, 0.3, None], errors, truth={"answer_right": False})
    item |= {"segment_start": [0, 2, 4], "segment_end": [2, 4, 6]}
    assert staircase_data(sv.Rollout(item))["verdict"] == [
        "The largest fall beyond noise is in segment 2 (tokens 3 to 4): 0.85 → 0.3, z = −7.78.",
        "No true error is known in it.",
    ]
    there = item | {"error_start": 3, "error_end": 4, "error_kind": "reasoning"}
    assert staircase_data(sv.Rollout(there))["verdict"][1] == "The first true error lies there (reasoning)."
    early = item | {"error_start": 0, "error_end": 1, "error_kind": "perception"}
    assert staircase_data(sv.Rollout(early))["verdict"][1] == (
        "The first true error is not there: it is at token 1, 2 tokens before it (perception)."
    )
    late = item | {"error_start": 5, "error_end": 6, "error_kind": "reasoning"}
    assert "token 6, 2 tokens after it" in staircase_data(sv.Rollout(late))["verdict"][1]
    del item["truth"], item["answer_right"]
    assert len(staircase_data(sv.Rollout(item))["verdict"]) == 1  # nobody said whether there is an error


@pytest.mark.parametrize(
    ("values", "errors", "reward", "said"),
    [
        ([0.5, 0.45], [0.2, 0.2], 0.4, "No fall is beyond noise. The largest is in segment 1 (token 1): 0.5 → 0.45"),
        ([0.2, 0.5], [0.1, 0.1], 1.0, "The value never fell."),
        ([0.2, 0.5], [0.1, 0.1], None, "The value never fell; no reward is recorded."),
        ([0.9, 0.1], None, 0.0, "The largest fall is in segment 1 (token 1): 0.9 → 0.1. Whether it is beyond noise "
                                "is not known: no standard errors are recorded."),
        ([1.0, 0.0], [0.0, 0.0], 0.0, "The largest fall is in segment 1 (token 1): 1 → 0. Whether it is beyond noise "
                                      "is not known: all samples of each state agreed."),
        ([0.5, 0.4], [0.1, 0.1], 0.0, "The largest fall beyond noise is in segment 2 (token 2): 0.4 → 0 (the"),
    ],
)  # fmt: skip
def test_the_verdict_says_what_is_known_of_noise(values, errors, reward, said):
    item = sampled(values, errors, reward, segment_start=[0, 1], segment_end=[1, 2])
    assert staircase_data(sv.Rollout(item))["verdict"][0].startswith(said)


def test_a_standard_error_of_zero_is_not_certainty():
    # all nine samples of the first state were right: the largest error of the completion stands in for its 0
    item = sampled([1.0, 0.7, 0.7], [0.0, 0.15, 0.1], reward=0.7)
    assert judged(item)[0][2] == "within"
    step = steps_of(sv.Rollout(item), states_of(sv.Rollout(item))[1])[0]
    assert step.z == pytest.approx(-0.3 / math.hypot(0.15, 0.15))
    assert any("1 of 3 states agreed" in note and "0.15" in note for note in staircase_data(sv.Rollout(item))["notes"])


def test_monte_carlo_values_come_before_segment_values_before_the_critic():
    base = row(pieces=["a", "b", "c", "d"]) | {
        "values": [0.1, 0.2, 0.3, 0.4], "segment_start": [0, 2], "segment_end": [2, 4],
        "segment_value": [0.5, 0.6], "segment_stderr": [0.1, None], "mc_values": [None, 0.7, None, 0.8],
        "mc_stderr": [None, 0.2, None, None],
    }  # fmt: skip

    def told(**changed):
        source, states = states_of(sv.Rollout(base | changed))
        return source, [tuple(state) for state in states]

    assert told() == ("mc", [(1, 0.7, 0.2), (3, 0.8, None)])
    assert told(mc_values=None) == ("segment", [(0, 0.5, 0.1), (2, 0.6, None)])
    assert told(mc_values=None, segment_value=None) == ("critic_cuts", [(0, 0.1, None), (2, 0.3, None)])
    alone = {"mc_values": None, "segment_value": None, "segment_start": None, "segment_ids": None}
    assert told(**alone) == ("critic", [(t, v, None) for t, v in enumerate(base["values"])])
    assert told(**alone, values=None) == ("", [])
    data = staircase_data(sv.Rollout(base))
    columns = unpack(data["pack"])
    np.testing.assert_array_equal(columns["val"], np.float32(base["values"]))
    assert columns["own_start"].tolist() == [0, 2] and columns["own_value"].tolist() == pytest.approx([0.5, 0.6])
    assert "No value is recorded before token 2." in data["notes"]


def test_without_values_the_staircase_says_so():
    view = sv.staircase(row(text="<think> 1 </think>", method="grpo"))
    assert view.data["verdict"][0] == "No values are recorded: GRPO estimated none for this completion."
    assert view.data["largest"] == [] and not Table(view._repr_html_()).rows


@pytest.mark.parametrize(
    "changed",
    [
        {"pieces": [], "text": "", "segment_start": [], "segment_end": []},
        {"pieces": ["one"], "text": "one", "mc_values": [0.5], "mc_stderr": [0.1]},
        {"pieces": None, "text": "a text"},
        {"mc_values": [0.5]},
        {"mc_values": [float("nan")] * 5, "values": [float("inf")] * 5, "segment_value": None},
        {"mc_values": [None] * 5, "reward": None},
    ],
)
def test_odd_rollouts_make_a_staircase(changed):
    view = sv.staircase(row(text="<think> 1 2 </think>") | changed)
    assert json.loads(Page(view.html()).scripts[0])["kind"] == "staircase"
    assert view.data["verdict"] and "<div" in view._repr_html_()


def test_the_fallback_of_a_staircase_is_a_table_of_its_steps():
    item = sampled([0.9, None, 0.2], [0.05, None, 0.1])
    header, first, last = Table(sv.staircase(item)._repr_html_()).rows
    assert header[:3] == ["tokens", "text", "value before"]
    assert first == ["1–2", "ab", "0.9", f"± {Z * 0.05:.3g}", "0.2", "−0.70", "−6.26", "beyond noise"]
    assert last[0] == "3–3" and last[4] == "0" and last[-1] == "beyond noise"
