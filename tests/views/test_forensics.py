"""Forensics: what a step learned from."""

from __future__ import annotations

import json

import pytest

import segviz as sv
from segviz.runs.columns import rollout_columns
from segviz.show.statistics import (
    wilson,
)
from segviz.views.forensics import COLUMNS as FORENSIC_COLUMNS
from segviz.views.forensics import forensics_data, histogram, trained_tokens
from tests.views import inert
from tests.views.made import simple


def of(rows: list[dict], config: dict | None = None) -> dict:
    return forensics_data(rollout_columns(rows, FORENSIC_COLUMNS), config or {})


def update(advantages=(1.0, -3.0), **columns) -> dict:
    base = {
        "ratio": [1.1, 1.0, 0.7, 1.0],
        "clipped": [False, False, True, False],
        "text": "abcd",
        "old_logprobs": [-1.0] * 4,
        "new_logprobs": [-0.9, -1.0, -1.2, -0.9],
    }
    return simple(advantages=advantages, **base | columns)


def test_shares_of_the_loss_are_the_sizes_of_trained_advantages():
    data = of([update()], {"loss_type": "token-mean"})
    assert [(e["segment"], e["share"]) for e in data["top"]] == [(1, pytest.approx(0.75)), (0, pytest.approx(0.25))]
    assert data["half"] == 1 and "1 of 2 segments" in data["verdict"][0]
    masked = of([update(loss_mask=[True, True, True, False])])
    assert masked["top"][0]["share"] == pytest.approx(3 / 5) and masked["tokens"] == 3
    heaviest = data["top"][0]
    assert heaviest["text"] == "cd" and heaviest["before"] == "ab" and heaviest["clipped"] == 0.5
    assert heaviest["ratio"] == pytest.approx(0.7) and heaviest["change"] == pytest.approx(-0.05)


def test_segments_come_by_what_the_update_moved_and_each_measure_has_its_first_ones():
    loud = update((0.1, -3.0), new_logprobs=[-0.2, -0.3, -1.0, -1.0], ratio=[1.0] * 4, clipped=[False] * 4)
    data = of([loud, update((0.2, 0.3), sample=1, text="efgh", pieces=list("efgh"))])
    assert data["sort"] == "moved" and set(data["sorts"]) == {"moved", "share", "advantage", "ratio", "clipped"}
    first = data["top"][0]
    assert (first["text"], first["moved"]) == ("ab", pytest.approx(1.5)) and "moved ‘ab’ most" in data["verdict"][-1]
    still = of([update(new_logprobs=None, ratio=None, clipped=None)])
    assert still["sort"] == "share" and set(still["sorts"]) == {"share", "advantage"}
    assert all(e["moved"] == 0.0 for e in still["top"])
    # hundreds of segments: the page carries the first ones of every measure, not all
    many = [update((0.01 * i, -0.02 * i), sample=i, text=f"{i:04d}", pieces=list(f"{i:04d}")) for i in range(1, 120)]
    assert 20 <= len(of(many)["top"]) <= 5 * 20


def test_siblings_that_say_the_same_are_one_entry():
    same = [update(sample=i) for i in range(3)]
    other = update(sample=3, text="abXd", pieces=["a", "b", "X", "d"])
    data = of([*same, other])
    texts = {(e["text"], tuple(e["samples"])): e for e in data["top"]}
    assert set(texts) == {("ab", (0, 1, 2, 3)), ("cd", (0, 1, 2)), ("Xd", (3,))}
    assert texts["cd", (0, 1, 2)]["share"] == pytest.approx(3 * texts["Xd", (3,)]["share"])
    assert sum(e["share"] for e in data["top"]) == pytest.approx(1)
    judged = of([update(), update((1.0, 2.0), sample=1)])  # the same words, another verdict
    assert sorted(e["samples"] for e in judged["top"] if e["text"] == "cd") == [[0], [1]]


def test_the_normaliser_of_the_loss_is_used_and_named():
    short = update((1.0, 1.0), text="efgh", pieces=list("efgh")) | {
        "loss_mask": [True, False, False, False],
        "sample": 1,
    }
    tokens, completions = (
        of([update((1.0, 1.0)), short], {"loss_type": t}) for t in ("token-mean", "seq-mean-token-mean")
    )
    share = {
        name: sum(e["share"] for e in d["top"] if e["sample"] == 1) for name, d in (("t", tokens), ("c", completions))
    }
    assert share == {"t": pytest.approx(1 / 5), "c": pytest.approx(1 / 2)}
    assert "token-mean" in tokens["normaliser"] and "seq-mean-token-mean" in completions["normaliser"]


def test_clipped_and_moved_shares_by_sign():
    data = of([update()])
    positive, negative = data["clipped"]
    assert (positive["hits"], positive["tokens"], negative["hits"], negative["tokens"]) == (0, 2, 1, 2)
    assert negative["low"] == pytest.approx(float(wilson(1, 2)[0]))
    # one ratio for the segment: its tokens tell one thing
    shared = of([update()], {"importance_sampling_level": "segment"})["clipped"][1]
    assert (shared["hits"], shared["tokens"]) == (1, 2) and shared["high"] == pytest.approx(float(wilson(0.5, 1)[1]))
    up, down = data["moved"]
    assert (up["up"], up["still"], up["down"], up["share"]) == (1, 1, 0, 1.0)
    assert (down["up"], down["still"], down["down"], down["share"]) == (1, 0, 1, 0.5)


def test_the_histogram_counts_every_token_once_by_sign():
    rows = rollout_columns([update(), update((0.0, 2.0), sample=1)], FORENSIC_COLUMNS)
    made = histogram(trained_tokens(rows), [0.8, 1.2])
    assert sum(made["up"] + made["up_clipped"]) == 4 and sum(made["down"] + made["down_clipped"]) == 2
    assert sum(made["down_clipped"]) == 1 and made["edges"][0] < 0.8 and made["edges"][-1] > 1.2
    assert len(made["edges"]) == len(made["up"]) + 1
    middle = len(made["up"]) // 2
    assert made["edges"][middle] < 1 < made["edges"][middle + 1]


def test_forensics_of_a_run_names_step_and_clip_range(run):
    view = sv.forensics(run, 5)
    assert view.data["step"] == 5 and view.data["clip"] is None and len(view.data["top"]) >= 20
    key = view.data["sort"]
    assert [e[key] for e in view.data["top"]] == sorted((e[key] for e in view.data["top"]), reverse=True)
    assert "SAPO (segment-aligned)" in view.fallback and view.fallback.count("<tr>") == 21
    assert of([update()], {"epsilon": 0.2, "epsilon_high": 0.28})["clip"] == [0.8, 1.28]
    assert of([update()], {"epsilon": 0.2, "epsilon_high": None})["clip"] == [0.8, 1.2]
    with pytest.raises(ValueError, match="no recorded rollouts of step 4; recorded steps: 1, 5"):
        sv.forensics(run, 4)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"loss_mask": [False] * 4}, "no token of this step entered the loss"),
        ({"advantages": [0.0] * 4}, "every advantage of this step is zero"),
        ({"advantages": [None] * 4}, "no token of this step entered the loss"),
        ({"advantages": None}, "no token of this step entered the loss"),
        ({"new_logprobs": None}, "Log-probabilities after the update are not recorded"),
        ({"ratio": None, "clipped": None}, "No importance ratios are recorded"),
        ({"pieces": None}, "Half of the step's |advantage|"),
        ({"ratio": [1.0] * 3}, "No importance ratios are recorded"),
    ],
)
def test_forensics_of_odd_rollouts(changed, words):
    data = of([update() | changed])
    assert words in " ".join(data["verdict"] + data["notices"])
    json.dumps(data, allow_nan=True)


def test_hostile_segments_stay_text(run):
    view = sv.forensics(run, 1)
    inert.check(view.fallback)
    assert "<script" not in view.html().split('id="segviz-data">')[1].split("</script>")[0]
