"""What is blamed most, whether it holds the first true error, and what chance would give."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

import segviz as sv
from segpo_core.record.blame import blame
from segviz.parts.credit import blamed
from tests.fakes.fake_run import row

NAN = math.nan


def of(credit, cuts, error=None):
    """`blame` with segments that start at `cuts`."""
    spans = np.stack([cuts, [*cuts[1:], len(credit)]], axis=1) if len(credit) else np.zeros((0, 2), int)
    return blame(np.array(credit, float), spans, error)


def test_uniform_credit_names_no_place():
    for cuts in ([0], [0, 2]):
        found = of([-0.8] * 4, cuts, (1, 2))
        assert (found.start, found.end, found.credit, found.hit) == (None, None, None, None)
    assert of([-0.8] * 4, [0, 2], (1, 2)).chance == 0.5


def test_nothing_below_zero_and_nothing_at_all():
    assert of([0.1, 0.0, 0.3, 0.3], [0, 1, 2]).start is None
    assert of([NAN] * 3, [0, 1], (0, 1)).start is None and of([NAN] * 3, [0, 1], (0, 1)).chance is None
    assert of([], []).start is None


def test_segments_are_judged_as_wholes():
    found = of([0.2, 0.2, -0.6, -0.6, 0.1], [0, 2, 4], (3, 4))
    assert (found.start, found.end, found.credit, found.by_token, found.places) == (2, 4, -0.6, False, 3)
    assert found.hit == 1 and found.chance == pytest.approx(1 / 3)
    assert of([0.2, 0.2, -0.6, -0.6, 0.1], [0, 2, 4], (4, 5)).hit == 0
    wide = of([0.2, 0.2, -0.6, -0.6, 0.1], [0, 2, 4], (1, 3))  # an error over two segments
    assert wide.hit == 1 and wide.chance == pytest.approx(2 / 3)


def test_weights_inside_a_segment_are_judged_by_token():
    """The segment with the lowest mean holds the error, but its blame lies elsewhere in it: that is no hit."""
    credit, cuts = [-0.1, -0.1, -0.2, -1.8, -0.2], [0, 2]
    found = of(credit, cuts, (2, 3))
    assert (found.start, found.end, found.by_token, found.places) == (3, 4, True, 5)
    assert (found.hit, found.chance) == (0, 0.2)
    assert of(credit, cuts, (3, 4)).hit == 1
    assert of([c * (1 + 1e-8 * i) for i, c in enumerate([-0.5] * 4 + [0.1])], [0, 4]).by_token is False  # rounding


def test_masked_tokens_are_no_places_of_their_own():
    found = of([-0.4, NAN, -0.4, 0.1, NAN, NAN], [0, 3, 4], (1, 2))  # inside a segment its taught tokens stand for it
    assert (found.start, found.end, found.places, found.hit, found.chance) == (0, 3, 2, 1, 0.5)
    found = of([-0.4, NAN, -0.8, 0.1], [0, 3], (1, 2))  # by token, one that was not taught is never blamed
    assert (found.places, found.hit, found.chance) == (3, 0, 0)
    assert of([-math.inf, -0.2, 0.1], [0, 1, 2]).start == 1
    only = of([NAN, NAN, -0.5], [0, 2], (2, 3))  # a single taught segment is named, and chance names it too
    assert (only.start, only.hit, only.chance) == (2, 1, 1)


def test_equal_places_share_the_hit():
    found = of([-0.5, -0.5, 0.2, -0.5], [0, 1, 2, 3], (1, 2))
    assert (found.start, found.tied) == (0, 3) and found.hit == pytest.approx(1 / 3) and found.chance == 0.25


def test_it_is_what_an_obvious_loop_finds():
    draw = random.Random(1)
    for _ in range(300):
        total = draw.randint(1, 12)
        cuts = [0, *sorted(draw.sample(range(1, total), draw.randint(0, total - 1)))]
        inside = draw.random() < 0.5
        levels = [NAN, -1.0, -0.5, 0.0, 0.5]
        credit = []
        for a, b in zip(cuts, [*cuts[1:], total], strict=True):
            same = draw.choice(levels)
            credit += [draw.choice(levels) if inside else same for _ in range(b - a)]
        start = draw.randrange(total)
        error = (start, draw.randint(start + 1, total))
        units = []
        for a, b in zip(cuts, [*cuts[1:], total], strict=True):
            units.append((a, b, [c for c in credit[a:b] if c == c]))
        if any(len(set(known)) > 1 for *_, known in units):
            units = [(t, t + 1, [c] if c == c else []) for t, c in enumerate(credit)]
        taught = [(known[0], a, b) for a, b, known in units if known]
        holds = [a < error[1] and error[0] < b for _, a, b in taught]
        found = of(credit, cuts, error)
        assert found.chance == (pytest.approx(sum(holds) / len(holds)) if holds else None)
        low = min((value for value, *_ in taught), default=0)
        worst = [hit for hit, (value, *_) in zip(holds, taught, strict=True) if value == low]
        if low >= 0 or len(worst) == len(units):
            assert found.start is None and found.hit is None
        else:
            assert found.hit == pytest.approx(sum(worst) / len(worst)) and found.credit == low
            assert (found.start, found.end) == next((a, b) for value, a, b in taught if value == low)


def test_ribbon_and_diff_say_the_same():
    item = row(
        pieces=["a", "b", "c", "d"], method="srpo", error_start=3, error_end=4, error_kind="perception",
        segment_start=[0, 2], segment_end=[2, 4], segment_ids=[0, 0, 1, 1], segment_advantage=[-0.2, -0.6],
        advantages=[-0.2, -0.2, -1.1, -0.1], answer_right=False,
    )  # fmt: skip
    rollout = sv.Rollout(item)
    assert blamed(rollout).hit == 0 and blamed(rollout).start == 2
    assert sv.ribbon(rollout).data["verdict"] == [
        "Token 3, “c”, was blamed most: −1.10.",
        "The first true error is at token 4, 1 token later (perception).",
    ]
    method = sv.compare(rollout).data["methods"][0]
    assert (method["hit"], method["blamed"]["start"], method["blamed"]["end"]) == (0, 2, 3)
    there = sv.Rollout(item | {"error_start": 2, "error_end": 3})
    assert sv.compare(there).data["verdict"][0].endswith("blames the first true error itself.")
