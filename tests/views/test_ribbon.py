"""The ribbon: what it says and what travels with it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import segviz as sv
from segviz.parts.credit import segment_credit
from segviz.show.encode import floats, script_json
from segviz.show.theme import LEVELS, level, symmetric_limit
from segviz.views.ribbon import ribbon_data
from tests.fakes.fake_run import long_row, row
from tests.views.made import Page, unpack


def test_the_page_carries_every_number_exactly(run):
    rollout = run.rollout(1, 0, 1)
    data = ribbon_data(rollout)
    columns = unpack(data["pack"])
    assert columns["text"] == rollout.text
    ends = np.cumsum(columns["units"])
    assert [rollout.text[b - n : b] for b, n in zip(ends, columns["units"], strict=True)] == rollout.pieces
    assert [
        (int(b - n), int(b)) for b, n in zip(np.cumsum(columns["seg"]), columns["seg"], strict=True)
    ] == rollout.segments
    for name, source in (("adv", "advantages"), ("ent", "entropy"), ("val", "values"), ("ratio", "ratio")):
        assert columns[name].dtype == np.float32
        np.testing.assert_array_equal(columns[name], np.float32(rollout.row[source]))
    np.testing.assert_array_equal(columns["seg_adv"], np.float32(rollout.row["segment_advantage"]))
    assert data["limit"] == max(abs(v) for v in rollout.row["advantages"])


def test_untrained_tokens_do_not_stretch_the_scale_and_are_not_zero():
    base = row(text="<think> a b c </think>")
    n = len(base["pieces"])
    view = sv.ribbon(
        base | {"advantages": [0.1, None, -9.0] + [0.2] * (n - 3), "loss_mask": [True, True, False] + [True] * (n - 3)}
    )
    columns = unpack(view.data["pack"])
    assert view.data["limit"] == 0.2
    assert np.isnan(columns["adv"][1]) and columns["loss"].tolist()[:3] == [1, 1, 0]


def test_scale_and_levels():
    assert symmetric_limit([None, float("nan"), float("inf"), -0.5, 3.0], [True] * 4 + [False]) == 0.5
    assert symmetric_limit([]) == 0
    assert [level(v, 1.0) for v in (0, 1, -1, 2, 0.001, -0.001, float("nan"))] == [0, LEVELS, -LEVELS, LEVELS, 1, -1, 0]
    assert level(0.3, 0.0) == 0


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"segment_advantage": [0.1, -0.5], "advantages": [0.1, -0.5]}, "Segment 2 was blamed most: −0.50."),
        (
            {"segment_advantage": [0.1, 0.3], "advantages": [0.1, 0.3]},
            "No segment was blamed. Segment 2 earned most: +0.30.",
        ),
        ({"segment_advantage": [0.0, 0.0], "advantages": [0.0, 0.0]}, "Every advantage is zero"),
        ({"segment_advantage": None, "advantages": None}, "No credit is recorded"),
        ({"segment_advantage": [None, -0.2], "advantages": [None, -0.2]}, "Segment 2 was blamed most"),
        ({"segment_advantage": [float("nan")] * 2, "advantages": [float("nan"), -0.2]}, "Segment 2 was blamed most"),
        ({"segment_advantage": [float("nan")] * 2, "advantages": [float("nan")] * 2}, "No credit is recorded"),
        (
            {"segment_advantage": [0.1, -0.9], "advantages": [0.1, -0.9], "loss_mask": [False] * 2},
            "None of its tokens entered the loss",
        ),
        ({"segment_advantage": [-0.9, -0.2], "advantages": [-0.9, -0.2], "loss_mask": [False, True]}, "Segment 2 was"),
    ],
)
def test_the_verdict_answers_the_question(columns, sentence):
    base = row(pieces=["a", "b"]) | {"segment_start": [0, 1], "segment_end": [1, 2], "segment_ids": [0, 1]}
    view = sv.ribbon(base | columns)
    assert view.data["verdict"][0].startswith(sentence) and sentence in view.fallback


def test_a_right_solution_is_not_asked_what_broke_it():
    told = {right: sv.ribbon(row(pieces=["a"]) | {"answer_right": right}).title for right in (True, False, None)}
    assert told[True] == "Which segment carried this solution?"
    assert told[False] == "Which segment broke this solution?"
    assert told[None] == "Which segment was blamed, and which praised?"  # nobody says whether it is right
    assert sv.ribbon(row(pieces=["a"]) | {"answer_right": True}, "Mine").data["title"] == "Mine"


def test_the_verdict_tells_how_far_the_blame_is_from_the_error():
    base = row(
        pieces=["a", "b", "c"], truth={"first_error": {"start": 0, "end": 1, "kind": "perception", "why": "it is red"}}
    )
    base |= {
        "segment_start": [0, 1, 2],
        "segment_end": [1, 2, 3],
        "segment_advantage": [0, 0, -1],
        "advantages": [0, 0, -1],
    }
    said = sv.ribbon(base).data["verdict"][1]
    assert said == "The first true error is in segment 1, 2 segments earlier (perception: it is red)."
    base |= {"segment_advantage": [-1, 0, 0], "advantages": [-1, 0, 0]}
    assert sv.ribbon(base).data["verdict"][1] == "The first true error is there too (perception: it is red)."
    whole = base | {
        "segment_start": [0],
        "segment_end": [3],
        "segment_advantage": [-1],
        "advantages": [-1] * 3,
        "segment_value": None,
    }
    assert sv.ribbon(whole).data["verdict"][0].endswith("this method names no segment.")


@pytest.mark.parametrize(
    "changed",
    [
        {"pieces": [], "text": ""},
        {"pieces": ["one"], "text": "one"},
        {"pieces": [""], "text": "", "finished": False},
        {"values": None, "segment_value": None, "segment_stderr": None},
        {"advantages": None, "segment_advantage": None, "loss_mask": None},
        {"segment_start": None, "segment_end": None, "segment_ids": None},
        {"pieces": None},
        {"advantages": [1.0]},
        {"prompt": "no json {", "truth": "{", "reward_parts": "[1]", "reward": None, "finished": None},
        {"prompt": json.dumps([{"role": "user", "content": None}, "loose", {"content": ["x", {"type": "image"}]}])},
    ],
)
def test_odd_rollouts_make_a_page(changed):
    view = sv.ribbon(row(text="<think> 1 2 </think>") | changed)
    assert json.loads(Page(view.html()).scripts[0])["kind"] == "ribbon"
    assert "<div" in view._repr_html_()


def test_a_bare_mapping_is_enough():
    view = sv.ribbon({"text": "hello"})
    assert view.data["tokens"] == 1 and len(view.data["notices"]) == 3


def test_a_column_of_the_wrong_length_is_left_out_and_said(run):
    data = ribbon_data(dataclasses.replace(run.rollout(1, 0, 1), row=run.rollout(1, 0, 1).row | {"entropy": [0.1]}))
    assert "ent" not in {name for name, *_ in data["pack"]["columns"]}
    assert any(note.startswith("entropy has 1 entries") for note in data["notices"])


def test_segment_credit_without_recorded_segments_is_the_mean_of_trained_tokens():
    base = row(pieces=["a", "b", "c"]) | {
        "segment_advantage": None, "segment_start": None, "segment_end": None, "segment_ids": [0, 0, 1],
        "advantages": [1.0, 3.0, None], "loss_mask": [True, True, True],
    }  # fmt: skip
    assert segment_credit(sv.Rollout(base)) == [2.0, None]


def test_a_rollout_of_32768_tokens_stays_small():
    view = sv.ribbon(long_row(32_768))
    assert len(script_json(view.data)) <= 400_000
    columns = unpack(view.data["pack"])
    assert columns["adv"].dtype == np.float16 and len(columns["adv"]) == 32_768
    want = np.array(long_row(32_768)["entropy"], np.float32)
    some = want > 1e-3
    assert np.max(np.abs(columns["ent"][some] - want[some]) / want[some]) < 0.005
    assert len(view._repr_html_()) < 600_000 and "more tokens" in view._repr_html_()


def test_coarse_floats_keep_what_is_special():
    got = floats([None, float("inf"), float("-inf"), 1e9, 0.0, -1.0, 65504.0], True).astype(float)
    assert (
        np.isnan(got[0])
        and got[1] == np.inf
        and got[2] == -np.inf
        and got[3] == np.inf
        and got[4] == 0
        and got[5] == -1
    )
