"""Boundaries: two cuts of one text."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

import segviz as sv
from segviz.views.boundaries import recorded_cut, rule_cut
from tests.fakes.fake_run import HOSTILE, row
from tests.views.made import unpack


def test_two_cuts_and_their_signals_are_in_the_page(run):
    rollout = run.rollout(1, 0, 1)
    data = sv.boundaries(rollout, {"rule": "entropy", "fraction": 0.3}).data
    columns = unpack(data["pack"])
    assert columns["text"] == rollout.text
    assert np.flatnonzero(columns["a_start"]).tolist() == rollout.row["segment_start"]
    chosen = sorted(
        np.argsort(-np.array(rollout.row["entropy"]), kind="stable")[: math.ceil(0.3 * len(rollout.pieces))]
    )
    starts = [0, *(t + 1 for t in chosen if t + 1 < len(rollout.pieces))]
    assert np.flatnonzero(columns["b_start"]).tolist() == starts
    recorded, other = data["cuts"]
    assert recorded["signal"] == other["signal"] == "entropy"
    assert other["threshold"] == pytest.approx(min(rollout.row["entropy"][t - 1] for t in starts[1:]))
    assert data["key"] == "1/0/1" and "first true error begins" in " ".join(data["verdict"])


def test_the_default_rival_of_an_entropy_cut_is_probability(run):
    data = sv.boundaries(run.rollout(1, 0, 1)).data
    assert [cut["signal"] for cut in data["cuts"]] == ["entropy", "probability"] and data["cuts"][1]["threshold"] == 0.9
    bare = sv.Rollout(row(text="a b", entropy=None, sampled_logprobs=None, old_logprobs=None))
    assert sv.boundaries(bare).data["cuts"][1]["label"] == "rule: newline"


def test_rules_cut_as_the_trainer_does():
    pieces = ["a", " b", "\n", "c", " d", " Step 2", "!"]
    probability = [0.99, 0.5, 0.99, 0.5, 0.5, 0.99, 0.99]
    rollout = sv.Rollout({"pieces": pieces, "sampled_logprobs": [math.log(p) for p in probability]})
    assert rule_cut(rollout, "newline").starts == (0, 3)
    assert rule_cut(rollout, "fixed", size=3).starts == (0, 3, 6)
    assert rule_cut(rollout, "steps").starts == (0, 5)
    assert rule_cut(rollout, "probability", interval=2).starts == (0, 1, 4)
    with pytest.raises(ValueError, match="needs the entropy"):
        rule_cut(rollout, "entropy")
    with pytest.raises(ValueError, match="no rule 'words'; choose one of entropy"):
        rule_cut(rollout, "words")
    with pytest.raises(ValueError, match="no setting size"):
        rule_cut(rollout, "newline", size=3)


def test_another_cut_may_be_ids_or_another_methods_credit():
    rollout = sv.Rollout({"pieces": list("abcd"), "segment_ids": [0, 0, 1, 1]})
    verdict = sv.boundaries(rollout, [0, 0, 1, 2]).data["verdict"]
    assert "1 cut in common, 0 only recorded, 1 only in the other" in verdict[0]
    credit = {"method": "spo_chain", "segment_ids": [0, 1, 1, 1], "segment_rule": ["before every 5th token", "x"]}
    assert sv.boundaries(rollout, credit).data["cuts"][1] | {"threshold": 0} == {
        "label": "SPO-chain", "rule": "before every 5th token", "count": 2, "signal": "", "threshold": 0,
    }  # fmt: skip
    assert sv.boundaries(rollout, {"segment_start": [0, 3]}).data["cuts"][1]["count"] == 2
    with pytest.raises(ValueError, match="2 segment ids for 4 tokens"):
        sv.boundaries(rollout, [0, 1])
    with pytest.raises(ValueError, match="contiguous"):
        sv.boundaries(rollout, [0, 1, 0, 1])
    with pytest.raises(ValueError, match="neither segment_ids"):
        sv.boundaries(rollout, {"advantages": [0.0] * 4})


def test_the_recorded_threshold_is_read_from_the_rule():
    columns = {"pieces": list("abcd"), "entropy": [0.1, 0.9, 0.2, 0.1], "segment_start": [0, 2], "segment_end": [2, 4]}
    sapo = recorded_cut(
        sv.Rollout(columns | {"segment_rule": ["ends at one of the 30% tokens of highest entropy"] * 2})
    )
    assert (sapo.signal, sapo.threshold) == ("entropy", 0.9)
    spo = recorded_cut(
        sv.Rollout(columns | {"segment_rule": ["before every 5th token with a probability below 0.85"] * 2})
    )
    assert (spo.signal, spo.threshold) == ("probability", 0.85)
    assert recorded_cut(sv.Rollout(columns)).signal == ""


@pytest.mark.parametrize("pieces", [[], ["a"], [""] * 3, ["\n", "\n"], [HOSTILE[0]] * 2])
def test_boundaries_of_odd_texts(pieces):
    view = sv.boundaries({"pieces": pieces, "segment_ids": [0] * len(pieces)}, "newline")
    assert (
        "<script" not in view.fallback and "<script" not in view.html().split("segviz-data")[-1].split("</script>")[0]
    )


def test_boundaries_need_no_torch_without_a_rule():
    code = (
        "import sys, segviz as sv; sv.boundaries({'pieces': ['a', 'b']}, [0, 1]); "
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
