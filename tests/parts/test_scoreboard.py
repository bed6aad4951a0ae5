"""Whether credit finds the first true error, over many completions."""

from __future__ import annotations

import pytest

import segviz as sv
from segviz.parts.scoreboard import scoreboard, sentence
from segviz.show.statistics import wilson
from segviz.views.report import report_view
from tests.fakes.fake_run import row, write_run


def wrong(credit, error, kind="perception", cuts=(0, 1, 2, 3), right=False, **columns):
    ends = [*cuts[1:], len(credit)]
    return row(
        pieces=list("abcd"), method="srpo", error_start=error, error_end=error + 1, error_kind=kind, answer_right=right,
        advantages=credit, segment_start=list(cuts), segment_end=ends, segment_advantage=[None] * len(ends),
        segment_ids=[m for m, (a, b) in enumerate(zip(cuts, ends, strict=True)) for _ in range(a, b)],
        loss_mask=columns.pop("loss_mask", [True] * 4), **columns,
    )  # fmt: skip


def test_found_named_and_chance_are_counted():
    board = scoreboard(
        [
            wrong([-1.0, -0.1, -0.1, -0.1], 0),
            wrong([-1.0, -0.1, -0.1, -0.1], 1, "reasoning"),
            wrong([-0.5, -0.5, -0.1, 0.1], 1, "reasoning", (0, 2, 3)),
            wrong([-0.5] * 4, 1, "reasoning", (0,)),  # names no place
            wrong([-1.0, -0.1, -0.1, -0.1], 0, right=True),  # not wrong
            wrong([-1.0, -0.1, -0.1, -0.1], 0, loss_mask=[False] * 4),  # no credit
            wrong([-0.1, -0.1, -0.1, -0.9], 0) | {"error_start": None},  # no error known
        ]
    )
    every, seeing, reckoning = board["lines"]
    assert (every["label"], every["wrong"], every["named"]) == ("all errors", 4, 3)
    assert every["share"] == pytest.approx(2 / 3) and every["chance"] == pytest.approx((1 / 4 + 1 / 4 + 1 / 3) / 3)
    assert (every["low"], every["high"]) == pytest.approx([float(x) for x in wilson(2, 3)])
    assert (seeing["label"], seeing["share"]) == ("seeing errors", 1)
    assert (reckoning["label"], reckoning["wrong"], reckoning["share"]) == ("reckoning errors", 3, 0.5)
    assert sentence(board).startswith("In 67% of 3 wrong completions the most blamed segment holds the first true")
    assert sentence(board).endswith("In 1 more nothing is blamed above the rest.")


def test_blame_inside_a_segment_is_held_against_the_token():
    board = scoreboard([wrong([-0.2, -0.2, -1.8, -0.1], 3, cuts=(0, 2))])
    assert board["by_token"] and board["lines"][0]["share"] == 0 and board["lines"][0]["chance"] == 0.25


def test_uniform_credit_finds_nothing_and_no_truth_says_nothing():
    board = scoreboard([wrong([-0.5] * 4, 1, cuts=(0,))])
    assert board["lines"][0]["share"] is None and sentence(board).startswith("It names no place in any of 1 wrong")
    assert scoreboard([wrong([-0.5] * 4, 1, right=None)]) is None


def test_the_report_answers_it(tmp_path):
    run = sv.open(write_run(tmp_path / "sapo"))
    view = report_view(run)
    found = view.data["found"]
    assert found["lines"][0]["named"] > 0 and found["said"] in view.fallback
    assert [line["label"] for line in found["lines"]] == ["all errors", "seeing errors", "reckoning errors"]
    assert sum(line["wrong"] for line in found["lines"][1:]) == found["lines"][0]["wrong"]
    assert report_view(sv.open(write_run(tmp_path / "empty", rollouts=False))).data["found"] is None
