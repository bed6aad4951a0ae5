"""The group: where siblings part."""

from __future__ import annotations

import json

import numpy as np
import pytest

import segviz as sv
from segviz.views.groups import AFTER, BEFORE, group_data, shared_tokens
from tests.fakes.fake_run import hostile_row, long_row, write_run
from tests.views.made import Table, sibling


@pytest.fixture
def run(tmp_path) -> sv.Run:
    return sv.open(write_run(tmp_path / "demo", steps=4, extra=[hostile_row()]))


def test_each_row_forks_from_its_closest_sibling_with_another_reward():
    data = group_data([sibling(0, "a b c d", 0.0), sibling(1, "a b x d", 1.0), sibling(2, "a q c", 0.0)])
    assert [r["samples"] for r in data["rows"]] == [[1], [2], [0]]
    won, far, near = data["rows"]
    assert (won["fork"]["at"], won["fork"]["piece"], won["fork"]["rival"], won["fork"]["rival_piece"]) == (
        2, " x", 0, " c",
    )  # fmt: skip
    assert (far["fork"]["at"], near["fork"]["at"]) == (1, 2)
    assert won["fork"]["probability"] == pytest.approx(0.5) and won["fork"]["entropy"] == 0.25
    assert data["shared"] == {"tokens": 1, "text": " a", "cut": 0} and data["signal"]
    assert data["verdict"] == [
        "1 of 3 completions earned the highest reward, 1.",
        "The closest pair: sample 1 (reward 1) and sample 0 (reward 0) share 2 tokens, then sample 1 says ‘ x’ "
        "(probability 0.5) where sample 0 says ‘ c’ (probability 0.5).",
    ]


@pytest.mark.parametrize(("start", "end", "place"), [(2, 3, "right there"), (3, 4, "1 token later"),
                                                    (0, 1, "2 tokens earlier, in what both say")])  # fmt: skip
def test_the_first_true_error_is_placed_by_the_fork(start, end, place):
    wrong = sibling(0, "a b c d", 0.0, error_start=start, error_end=end, error_kind="reasoning")
    data = group_data([wrong, sibling(1, "a b x d", 1.0)])
    assert data["verdict"][-1] == f"The first true error of sample 0 is {place}."
    assert data["rows"][1]["error"]["place"] == place and data["rows"][0]["error"] is None


def test_equal_rewards_give_no_signal_and_that_is_said():
    data = group_data([sibling(i, words, 0.0) for i, words in enumerate(("a b", "a c", "a b"))])
    assert not data["signal"] and data["verdict"][0] == "All 3 completions have reward 0."
    assert "gives no signal" in data["verdict"][1]
    assert {r["fork"]["rival"] for r in data["rows"]} == {0, 1} and all(r["fork"]["at"] == 1 for r in data["rows"])


def test_completions_that_are_alike_are_one_row():
    rollouts = [sibling(i, words, r) for i, (words, r) in enumerate([("a b", 1.0), ("a c", 0.0), ("a b", 1.0)])]
    credit = {"advantages": [0.7, 0.7]}
    rollouts = [sv.Rollout(r.row | (credit if r.row["reward"] else {"advantages": [-1.0, -1.0]})) for r in rollouts]
    data = group_data(rollouts)
    assert [r["samples"] for r in data["rows"]] == [[0, 2], [1]] and data["completions"] == 3
    assert (data["rows"][0]["low"], data["rows"][0]["high"]) == (0.7, 0.7)
    again = group_data([rollouts[0], rollouts[1], sv.Rollout(rollouts[2].row | {"advantages": [0.7, 0.9]})])
    assert [r["samples"] for r in again["rows"]] == [[0], [2], [1]]  # same words, other credit


def test_shared_beginnings_by_brute_force():
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 2, size=int(n)).tolist() for n in rng.integers(0, 9, size=12)]
    got = shared_tokens(rows)
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            want = next((t for t in range(min(len(a), len(b))) if a[t] != b[t]), min(len(a), len(b)))
            assert got[i, j] == want


@pytest.mark.parametrize(
    ("rollouts", "said"),
    [
        ([sibling(0, "a b", 1.0)], "The group has one completion, with reward 1: there is no sibling"),
        ([sibling(0, "a", None), sibling(1, "b", None)], "No reward is recorded for any of the 2 completions."),
        ([sibling(0, "a", None), sibling(1, "b", 1.0), sibling(2, "c", 1.0)], "All 2 completions with a reward have"),
        ([sibling(0, "", 0.0), sibling(1, "b", 1.0)], "1 of 2 completions earned the highest reward, 1."),
        ([sibling(0, "a b", 0.0), sibling(1, "a b", 1.0)], "1 of 2 completions earned the highest reward, 1."),
        ([sibling(0, "a b", 0.0, pieces=None, text="a b"), sibling(1, "a c", 1.0)], "1 of 2 completions earned"),
    ],
)
def test_odd_groups_are_shown_for_what_they_are(rollouts, said):
    data = group_data(rollouts)
    assert data["verdict"][0].startswith(said)
    json.dumps(data)


def test_ends_empty_texts_and_missing_pieces_at_the_fork():
    data = group_data([sibling(0, "", 0.0), sibling(1, "b", 1.0)])
    assert [r["fork"]["piece"] for r in data["rows"]] == [" b", "(the end)"] and data["rows"][1]["tokens"] == 0
    same = group_data([sibling(0, "a b", 0.0), sibling(1, "a b", 1.0)])
    assert same["rows"][0]["fork"]["same"] and "same text with different rewards" in same["verdict"][1]
    lost = group_data([sibling(0, "a b", 0.0, pieces=None, text=" a b"), sibling(1, "a c", 1.0)])
    assert any("pieces were not recorded" in note and "(1 of 2" in note for note in lost["notices"])
    with pytest.raises(ValueError, match="at least one completion"):
        group_data([])


def test_64_completions_of_2000_tokens_are_cut_around_their_forks():
    base = long_row(2000)
    rollouts = []
    for i in range(64):
        pieces = [*base["pieces"][: 900 + i], f" own{i}", *base["pieces"][901 + i :]]
        rollouts.append(sv.Rollout(base | {"sample": i, "pieces": pieces, "token_ids": None, "reward": float(i % 2)}))
    data = group_data(rollouts)
    assert len(data["rows"]) == 64 and data["shared"]["tokens"] == 900 and data["shared"]["cut"] > 0
    for r in data["rows"]:
        assert r["first"] == r["fork"]["at"] - BEFORE and len(r["pieces"]) == BEFORE + 1 + AFTER
        assert r["after"] == 2000 - r["fork"]["at"] - 1 - AFTER
    assert "64 of 64 rows are cut" in data["window"]
    assert len(json.dumps(data)) < 600_000


def test_a_group_of_a_run_and_groups_that_are_not_there(run):
    view = sv.group(run, 1, 0)
    assert view.kind == "group" and view.data["key"] == "1/0" and view.data["completions"] == 4
    assert {s for r in view.data["rows"] for s in r["samples"]} == {0, 1, 2, 3} and view.data["pictures"]
    header, *rows = Table(view._repr_html_()).rows
    assert header[0] == "samples" and len(rows) == len(view.data["rows"])
    assert [float(r[1]) for r in rows] == sorted((float(r[1]) for r in rows), reverse=True)
    with pytest.raises(KeyError, match=r"no group 7; its groups: \[0, 1, 2, 90\]"):
        sv.group(run, 1, 7)
    with pytest.raises(KeyError, match="recorded steps: 1"):
        sv.group(run, 2, 0)


def test_a_group_in_which_nobody_won_is_not_asked_who_won():
    asked = [group_data([sibling(i, words, r) for i, (words, r) in enumerate(rows)])["title"] for rows in (
        [("a b", 0.0), ("a c", 0.0)], [("a b", 1.0)], [("a b", 1.0), ("a c", 0.0)],
    )]  # fmt: skip
    assert asked == ["Where do these completions part?", "What earned this reward?", "Why did its sibling win?"]
