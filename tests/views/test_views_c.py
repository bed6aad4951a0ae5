"""Audit, lift, boundaries, forensics, board and figures: numbers against closed forms, and what odd recordings give."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys

import numpy as np
import plotly.graph_objects as go
import pytest
from plotly.subplots import make_subplots

import segviz as sv
from segpo_core.record.blame import spans
from segpo_core.record.store import Recorder
from segviz.runs.columns import rollout_columns
from segviz.runs.evidence import COLUMNS, evidence, samples_behind
from segviz.show.figures import DIVERGING, Figure, diverging, finish
from segviz.show.statistics import (
    calibration,
    equal_count_bins,
    expected_flips,
    lift,
    sign_flips,
    spikes,
    top_counts,
    wilson,
)
from segviz.views.board import board_data, status, telling
from segviz.views.boundaries import boundaries_data, recorded_cut, rule_cut
from segviz.views.forensics import COLUMNS as FORENSIC_COLUMNS
from segviz.views.forensics import forensics_data, histogram, trained_tokens
from tests.fakes.fake_run import HOSTILE, hostile_row, row, write_run
from tests.views import inert
from tests.views.test_segviz import unpack

#: Traces that plotly.js 3 and 4 both know.
SHARED_TRACES = {"scatter", "bar", "heatmap", "histogram", "box", "violin"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> sv.Run:
    return sv.open(write_run(tmp_path_factory.mktemp("runs") / "demo", extra=[hostile_row()]))


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> sv.Run:
    path = tmp_path_factory.mktemp("runs") / "empty"
    Recorder(path).start({"max_steps": 10})
    return sv.open(path)


def words_of(figure: go.Figure) -> str:
    """Title and annotations of a figure as plain text."""
    texts = [figure.layout.title.text, *(note.text for note in figure.layout.annotations)]
    return " ".join(re.sub(r"<[^>]+>", " ", " ".join(texts)).split())


def simple(values=None, mc=None, advantages=(0.2, -0.4), reward=1.0, **columns) -> dict:
    """A completion of four tokens in two segments."""
    return {
        "step": 1, "group": 0, "sample": 0, "method": "sapo", "reward": reward, "pieces": list("abcd"),
        "values": values, "mc_values": mc, "segment_start": [0, 2], "segment_end": [2, 4],
        "segment_advantage": list(advantages),
        "advantages": [advantages[0]] * 2 + [advantages[1]] * 2, "loss_mask": [True] * 4, **columns,
    }  # fmt: skip


# --- statistics -----------------------------------------------------------------------------------------------------


def test_wilson_interval_is_the_score_interval():
    low, high = wilson(np.array([0, 5, 10]), np.array([10, 10, 10]))
    z2 = 1.959964**2
    assert high[0] == pytest.approx(z2 / (10 + z2)) and low[0] == 0  # closed form at 0 of n
    assert low[2] == pytest.approx(10 / (10 + z2)) and high[2] == 1
    assert (low[1] + high[1]) / 2 == pytest.approx(0.5)
    # an end of the interval is the p whose own z-test just accepts the share
    assert abs(0.5 - low[1]) / math.sqrt(low[1] * (1 - low[1]) / 10) == pytest.approx(1.959964)
    assert np.isnan(wilson(0, 0)[0])


def test_bins_have_equal_counts_and_never_split_equal_values():
    assert np.bincount(equal_count_bins(np.arange(100.0), 10)).tolist() == [10] * 10
    tied = np.array([0.0] * 70 + [1.0] * 30)
    index = equal_count_bins(tied, 10)
    assert len(set(index[:70])) == len(set(index[70:])) == 1 and index[0] != index[-1]
    assert len(equal_count_bins(np.zeros(0), 5)) == 0


def test_calibration_of_known_estimates():
    estimate = np.repeat([0.2, 0.7], 50)
    outcome = np.concatenate([np.ones(10), np.zeros(40), np.ones(25), np.zeros(25)])  # 0.2 is right, 0.7 is 0.5
    curve = calibration(estimate, outcome)
    assert curve.estimate.tolist() == pytest.approx([0.2, 0.7]) and curve.outcome.tolist() == pytest.approx([0.2, 0.5])
    assert curve.count.tolist() == [50, 50] and curve.error == pytest.approx(0.1)
    assert (curve.low[1], curve.high[1]) == tuple(float(x) for x in wilson(25, 50))
    # ten states of each completion are no ten observations
    wide = calibration(estimate, outcome, owner=np.arange(100) // 10)
    assert wide.high[1] - wide.low[1] > 2 * (curve.high[1] - curve.low[1])
    assert (wide.low[1], wide.high[1]) == tuple(float(x) for x in wilson(2.5, 5))
    assert math.isnan(calibration(np.zeros(0), np.zeros(0)).error)
    lost = calibration(np.array([0.5, np.nan, 0.5]), np.array([1.0, 1.0, np.nan]))
    assert lost.count.tolist() == [1]


def test_calibration_against_values_uses_the_interval_of_a_mean():
    outcome = np.array([0.1, 0.3, 0.5, 0.7])
    curve = calibration(np.full(4, 0.4), outcome)
    half = 1.959964 * outcome.std(ddof=1) / 2
    assert (curve.low[0], curve.high[0]) == (pytest.approx(0.4 - half), pytest.approx(0.4 + half))


def test_sign_flips_count_what_differs():
    size = np.repeat([0.1, 1.0], 100)
    truth = size.copy()
    truth[:50] *= -1
    flips = sign_flips(size, truth, bins=2)
    assert flips.size.tolist() == pytest.approx([0.1, 1.0]) and flips.share.tolist() == [0.5, 0.0]
    assert flips.total == 0.25 and flips.low[0] == pytest.approx(float(wilson(50, 100)[0]))
    none = sign_flips(np.array([0.0, 1.0, 1.0]), np.array([1.0, 0.0, np.nan]))
    assert len(none.count) == 0 and math.isnan(none.total)


def test_expected_flips_follow_the_normal_law():
    flips = expected_flips(np.array([1.0, -1.0, 0.5, 2.0]), np.array([1.0, 1.0, 0.0, np.nan]), bins=2)
    assert sorted(flips.share.tolist()) == pytest.approx([0.0, 0.158655], abs=1e-5)  # Φ(−1), and 0 where σ is 0


def test_lift_of_known_sets():
    scores = [np.arange(10.0)[::-1]] * 6
    best = [np.arange(10) < 2] * 6  # D is the top fifth
    q = np.array([0.1, 0.2, 0.5, 1.0])
    curve = lift(top_counts(scores, best, q), q, draws=200)
    assert curve.lift.tolist() == pytest.approx([5, 5, 2, 1])
    assert curve.low.tolist() == pytest.approx(curve.lift.tolist())  # all rollouts alike: nothing to resample
    worst = lift(top_counts(scores, [np.arange(10) >= 8] * 6, q), q, draws=10)
    assert worst.lift.tolist() == pytest.approx([0, 0, 0, 1])


def test_lift_of_unrelated_sets_is_one_and_the_seed_decides_the_interval():
    rng = np.random.default_rng(0)
    scores = [rng.random(60) for _ in range(200)]
    decisions = [rng.random(60) < 0.1 for _ in range(200)]
    q = np.array([0.1, 0.3, 1.0])
    counts = top_counts(scores, decisions, q)
    one, again, other = (lift(counts, q, draws=300, seed=seed) for seed in (0, 0, 1))
    assert ((one.low <= 1) & (1 <= one.high))[:2].all() and (one.high - one.low)[0] > (one.high - one.low)[1] > 0.02
    assert one.lift[2] == one.low[2] == one.high[2] == 1
    assert (one.low == again.low).all() and (one.low != other.low).any() and (one.lift == other.lift).all()


def test_the_interval_of_lift_resamples_whole_rollouts():
    # the same counts in one long rollout and in twenty short ones
    q = np.array([0.5])
    short = np.array([[[2, 5, 2, 10]], [[0, 5, 2, 10]]] * 10, float)
    whole = short.sum(axis=0, keepdims=True)
    assert lift(whole, q).low[0] == lift(whole, q).high[0] == pytest.approx(1.0)
    assert lift(short, q).high[0] - lift(short, q).low[0] > 0.3


def test_spikes_are_found_and_noise_is_not_one():
    rng = np.random.default_rng(3)
    y = np.linspace(0, 5, 200) + rng.normal(0, 0.1, 200)
    assert spikes(y) == []
    y[70] += 3
    y[120] -= 2
    assert [(s.index, s.z > 0) for s in spikes(y)] == [(70, True), (120, False)]
    assert spikes(y)[0].usual == pytest.approx(5 * 70 / 199, abs=0.1)


def test_spikes_where_most_values_are_equal():
    flat = [0.0] * 60
    assert spikes(flat) == [] and spikes([7.0] * 5 + [9.0]) == []
    flat[30] = 1.0
    assert [s.index for s in spikes(flat)] == [30]


# --- columns of rollouts --------------------------------------------------------------------------------------------


def test_columns_of_a_run_are_its_recorded_numbers(run):
    rows = rollout_columns(run, ["values", "segment_start", "mc_values", "reward", "loss_mask"], [1, 5])
    whole = run.rollout(5, 2, 3).row
    found = next(r for r in rows if (r["step"], r["group"], r["sample"]) == (5, 2, 3))
    assert found["values"].tolist() == whole["values"] and found["segment_start"].tolist() == whole["segment_start"]
    assert found["mc_values"] is None and found["reward"] == whole["reward"] and set(found["loss_mask"]) == {1.0}
    assert {r["step"] for r in rows} == {1, 5}
    (own,) = rollout_columns(run.rollout(5, 2, 3), ["values", "mc_values"])
    assert own["values"].tolist() == whole["values"] and own["mc_values"] is None


def test_what_cannot_be_read_as_rollouts_is_said(run, empty):
    with pytest.raises(ValueError, match="no recorded rollouts yet"):
        rollout_columns(empty, ["values"])
    with pytest.raises(ValueError, match="of step 3; recorded steps: 1, 5"):
        rollout_columns(run, ["values"], 3)
    with pytest.raises(ValueError, match="at least one rollout"):
        rollout_columns([], ["values"])
    with pytest.raises(TypeError, match="got str"):
        rollout_columns(["runs/demo"], ["values"])


def test_spans_without_recorded_segments():
    assert spans({"segment_ids": np.array([0, 0, 1, 2])}, 4).tolist() == [[0, 2], [2, 3], [3, 4]]
    assert spans({}, 3).tolist() == [[0, 3]] and spans({}, 0).tolist() == []


# --- the audit ------------------------------------------------------------------------------------------------------


def test_a_critic_is_held_against_monte_carlo_values():
    rows = rollout_columns(
        [simple([0.5, 0.6, 0.7, 0.8], [0.25, None, 0.75, None], mc_stderr=[0.1, None, 0.2, None])], COLUMNS
    )
    found = evidence(rows)
    assert (found.estimator, found.against) == ("critic", "Monte Carlo values")
    assert found.estimate.tolist() == [0.5, 0.7] and found.truth.tolist() == [0.25, 0.75]
    # V*(after) − V*(before): 0.75 − 0.25, then the reward 1 − 0.75
    assert found.true_advantage.tolist() == [0.5, 0.25] and found.advantage.tolist() == pytest.approx([0.2, -0.4])
    assert found.true_noise.tolist() == pytest.approx([math.hypot(0.1, 0.2), 0.2])


def test_a_step_that_cannot_be_read_is_left_out_and_named(tmp_path):
    path = write_run(tmp_path / "torn", steps=9)
    torn = path / "rollouts" / "step-000005.rank0.parquet"
    torn.write_bytes(torn.read_bytes()[:300])
    run = sv.open(path)
    for figure in (sv.audit(run), sv.lift(run, draws=20)):
        assert "steps 1 to 9, 24 rollouts (could not be read: step 5)" in words_of(figure)
    for look in (lambda: sv.audit(run, steps=5), lambda: sv.forensics(run, 5), lambda: run.rollout(5, 0, 0)):
        with pytest.raises(ValueError, match="could not be read.*If it is being written"):
            look()


def test_a_sampled_standard_error_of_zero_makes_the_risk_a_lower_bound():
    chain = {"method": "vineppo", "values": None, "segment_value": [0.5, 1.0]}
    exact, noisy = ({**simple(None), **chain, "segment_stderr": [e, e]} for e in (0.0, 0.3))
    assert "at least 0% of segments" in words_of(sv.audit([exact]))
    assert "at least" not in words_of(sv.audit([noisy]))


def test_without_monte_carlo_a_critic_is_held_against_rewards_at_segment_starts():
    found = evidence(rollout_columns([simple([0.5, 0.6, 0.7, 0.8], reward=0.0)], COLUMNS))
    assert found.against == "outcomes" and found.estimate.tolist() == [0.5, 0.7] and found.truth.tolist() == [0, 0]
    assert np.isnan(found.true_advantage).all()


def test_a_chain_is_not_held_against_itself():
    chain = simple(None, [0.5, None, 0.8, None], segment_value=[0.5, 0.8], segment_stderr=[0.3, 0.4], method="vineppo")
    found = evidence(rollout_columns([chain], COLUMNS))
    assert (found.estimator, found.against) == ("chain", "outcomes")
    assert found.noise.tolist() == pytest.approx([0.5, 0.4])  # both ends are sampled; the last end is the reward
    better = evidence(rollout_columns([chain], COLUMNS), {(1, 0, 0): [0.6, None, 0.1, None]})
    assert better.against == "given values" and better.truth.tolist() == [0.6, 0.1]
    assert better.true_advantage.tolist() == pytest.approx([-0.5, 0.9])
    with pytest.raises(ValueError, match="1/0/0 has 4 tokens but 2 true values"):
        evidence(rollout_columns([chain], COLUMNS), {(1, 0, 0): [0.6, 0.1]})


def test_a_tree_is_judged_without_the_completion_it_is_held_against():
    nodes = [[1, 1, 2, 2], [1, 1, 3, 3], [1, 1, 4, 4], [5, 5, 6, 6]]
    rewards = [1.0, 0.0, 0.0, 1.0]
    rows = [
        simple(reward=r, node_ids=ids, sample=i, segment_value=[0.5, 0.3], segment_stderr=[0.1, 0.1], method="spo_tree")
        for i, (ids, r) in enumerate(zip(nodes, rewards, strict=True))
    ]
    found = evidence(rollout_columns(rows, COLUMNS))
    assert found.estimator == "tree"
    # at the prompt the mean of the three others; after node 1 that of its two others; node 5 has no other
    assert found.estimate.tolist() == pytest.approx([1 / 3, 0, 2 / 3, 0.5, 2 / 3, 0.5, 1 / 3])


def test_the_number_of_samples_is_read_from_the_standard_error():
    p = np.array([1, 3, 4, 8]) / 9
    errors = np.sqrt(p * (1 - p) / 8)
    assert samples_behind(np.append(p, 1.0), np.append(errors, 0.0)).tolist() == [9] * 5
    assert np.isnan(samples_behind(p, errors * np.array([1, 1.3, 0.7, 2]))).all()
    assert len(samples_behind(np.zeros(0), np.zeros(0))) == 0


def test_the_audit_of_a_critic_with_truth_draws_four_panels():
    rng = np.random.default_rng(0)
    rows = []
    for i in range(60):
        truth = rng.random(4)
        rows.append(
            simple((truth + 0.1).tolist(), truth.tolist(), (rng.normal(), rng.normal()), sample=i, mc_stderr=[0.05] * 4)
        )
    figure = sv.audit(rows)
    assert isinstance(figure, Figure) and {trace.type for trace in figure.data} <= SHARED_TRACES
    said = words_of(figure)
    assert "off by 0.100 on average against Monte Carlo values" in said and "Wrong signs:" in said
    assert len({trace.xaxis for trace in figure.data}) == 4  # something is drawn in every panel
    dots = next(t for t in figure.data if t.name and t.name.startswith("a state"))
    assert len(dots.x) == 240 and dots.error_x.array[0] == pytest.approx(1.959964 * 0.05)


def test_the_audit_says_what_is_missing(run):
    said = words_of(sv.audit(run))
    assert "Signs need Monte Carlo values" in said and "off by" in said and "SAPO (segment-aligned)" in said
    grpo = [run.rollout(1, 0, 0).row | {"values": None, "segment_value": None, "segment_stderr": None}]
    assert words_of(sv.audit(grpo)).count("No values are recorded") >= 2


@pytest.mark.parametrize(
    "changed",
    [
        {"reward": None},
        {"values": None, "segment_value": None, "mc_values": None, "segment_stderr": None},
        {"segment_advantage": None, "advantages": None},
        {"values": [None] * 4},
        {"mc_values": [None] * 4, "mc_stderr": [None] * 4},
        {"segment_start": [], "segment_end": [], "segment_advantage": [], "pieces": [], "values": []},
        {"loss_mask": [False] * 4},
    ],
)
def test_the_audit_of_one_odd_rollout(changed):
    figure = sv.audit([simple([0.5, 0.6, 0.7, 0.8], [0.1, None, 0.2, None]) | changed])
    assert "1 rollout." in words_of(figure)
    json.loads(figure.to_json())


def test_the_audit_of_an_empty_run_says_so(empty):
    with pytest.raises(ValueError, match="no recorded rollouts yet"):
        sv.audit(empty)


# --- lift -----------------------------------------------------------------------------------------------------------


def test_the_lift_curve_of_a_run(run):
    figure = sv.lift(run, q=(0.1, 0.5, 1.0), draws=50)
    lines = {trace.name: trace for trace in figure.data if trace.mode == "lines+markers"}
    assert [name.split(":")[0] for name in lines] == ["large value change", "first true error"]
    assert all(line.y[-1] == pytest.approx(1) for line in lines.values())
    assert {trace.type for trace in figure.data} == {"scatter"}


def test_large_value_changes_are_the_largest_of_all_rollouts():
    flat = {"entropy": [0.0, 1.0, 0.0, 0.0, 0.0], "values": [0.5] * 5}
    jump = {"entropy": [0.0, 1.0, 0.0, 0.0, 0.0], "values": [0.5, 0.5, 0.9, 0.9, 0.9]}
    figure = sv.lift([flat, jump], q=(0.25, 1.0), share=0.125, draws=10)  # 1 of 2 · 4 changes, at token 1 of `jump`
    line = next(trace for trace in figure.data if trace.mode == "lines+markers")
    assert line.y[0] == pytest.approx(4)  # the top quarter is one token of four, and holds it


def test_lift_without_what_it_needs():
    with pytest.raises(ValueError, match="no entropy is recorded"):
        sv.lift([{"values": [0.5, 0.6], "error_start": 0}])
    with pytest.raises(ValueError, match="nothing to lift"):
        sv.lift([{"entropy": [0.5, 0.6]}])
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        sv.lift([{"entropy": [0.5, 0.6]}], q=(0.0, 0.5))


# --- boundaries -----------------------------------------------------------------------------------------------------


def test_two_cuts_and_their_signals_are_in_the_page(run):
    rollout = run.rollout(1, 0, 1)
    data = boundaries_data(rollout, {"rule": "entropy", "fraction": 0.3})
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
    data = boundaries_data(run.rollout(1, 0, 1))
    assert [cut["signal"] for cut in data["cuts"]] == ["entropy", "probability"] and data["cuts"][1]["threshold"] == 0.9
    bare = sv.Rollout(row(text="a b", entropy=None, sampled_logprobs=None, old_logprobs=None))
    assert boundaries_data(bare)["cuts"][1]["label"] == "rule: newline"


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
    assert (
        "1 cut in common, 0 only recorded, 1 only in the other" in boundaries_data(rollout, [0, 0, 1, 2])["verdict"][0]
    )
    credit = {"method": "spo_chain", "segment_ids": [0, 1, 1, 1], "segment_rule": ["before every 5th token", "x"]}
    assert boundaries_data(rollout, credit)["cuts"][1] | {"threshold": 0} == {
        "label": "SPO-chain", "rule": "before every 5th token", "count": 2, "signal": "", "threshold": 0,
    }  # fmt: skip
    assert boundaries_data(rollout, {"segment_start": [0, 3]})["cuts"][1]["count"] == 2
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


# --- forensics ------------------------------------------------------------------------------------------------------


def of(rows: list[dict], config: dict | None = None) -> dict:
    return forensics_data(rollout_columns(rows, FORENSIC_COLUMNS), config or {})


def update(advantages=(1.0, -3.0), **columns) -> dict:
    base = {"text": "abcd", "old_logprobs": [-1.0] * 4, "new_logprobs": [-0.9, -1.0, -1.2, -0.9]}
    return simple(
        advantages=advantages, ratio=[1.1, 1.0, 0.7, 1.0], clipped=[False, False, True, False], **base | columns
    )


def test_shares_of_the_loss_are_the_sizes_of_trained_advantages():
    data = of([update()], {"loss_type": "token-mean"})
    assert [(e["segment"], e["share"]) for e in data["top"]] == [(1, pytest.approx(0.75)), (0, pytest.approx(0.25))]
    assert data["half"] == 1 and "1 of 2 segments" in data["verdict"][0]
    masked = of([update(loss_mask=[True, True, True, False])])
    assert masked["top"][0]["share"] == pytest.approx(3 / 5) and masked["tokens"] == 3
    heaviest = data["top"][0]
    assert heaviest["text"] == "cd" and heaviest["before"] == "ab" and heaviest["clipped"] == 0.5
    assert heaviest["ratio"] == pytest.approx(0.85) and heaviest["change"] == pytest.approx(-0.05)


def test_the_normaliser_of_the_loss_is_used_and_named():
    short = update((1.0, 1.0)) | {"loss_mask": [True, False, False, False], "sample": 1}
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
    assert view.data["step"] == 5 and view.data["clip"] is None and len(view.data["top"]) == 20
    assert [e["share"] for e in view.data["top"]] == sorted((e["share"] for e in view.data["top"]), reverse=True)
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


# --- the board ------------------------------------------------------------------------------------------------------


def metrics_run(path, values: dict[str, list[float]], config: dict | None = None) -> sv.Run:
    recorder = Recorder(path)
    recorder.start(config or {})
    for step in range(len(next(iter(values.values())))):
        recorder.metrics(step, {name: column[step] for name, column in values.items()})
    return sv.open(path)


def test_a_spike_is_marked_on_its_line(tmp_path):
    kl = [0.01 + 0.001 * math.sin(7 * i) for i in range(40)]
    kl[25] = 0.5
    data = board_data([metrics_run(tmp_path / "r", {"kl": kl, "reward": [0.5] * 40})])
    charts = {chart["title"]: chart for chart in data["charts"]}
    (odd,) = charts["KL to the reference"]["lines"][0]["odd"]
    assert odd["step"] == 25 and odd["y"] == 0.5 and odd["usual"] == pytest.approx(0.01, abs=0.001)
    assert charts["Reward"]["lines"][0]["odd"] == []


def test_one_bad_explained_variance_does_not_flatten_the_chart(tmp_path):
    values = [-37.0, -1.5, *[0.1] * 10]
    (chart,) = board_data([metrics_run(tmp_path / "r", {"explained_variance": values})])["charts"]
    assert chart["floor"] == {"at": -1.0, "below": 2, "lowest": -37.0, "step": 0}
    assert chart["lines"][0]["y"][0] == -37  # the number itself stays
    (plain,) = board_data([metrics_run(tmp_path / "s", {"explained_variance": [0.1, -0.9]})])["charts"]
    assert "floor" not in plain


def test_a_step_lists_its_telling_rollouts(run):
    found = [item for item in telling([run]) if item["step"] == 5]
    table = run.rollouts_at(5)
    assert len(found) == len({(i["group"], i["sample"]) for i in found}) == 4
    worst = min(table, key=lambda r: r["lowest"])
    assert (found[0]["group"], found[0]["sample"]) == (worst["group"], worst["sample"])
    assert "first error" in " ".join(i["words"] for i in found) and "strongest credit −" in found[0]["words"]
    assert {item["step"] for item in sv.board(run).data["rollouts"]} == set(run.steps)
    assert {item["run"] for item in telling([run, run])} == {"demo"} and {item["run"] for item in found} == {""}


def test_a_run_is_shown_for_what_it_is(tmp_path, empty):
    assert status(empty).startswith("empty: started 2") and "no step is finished yet" in status(empty)
    assert sv.board(empty).data["status"] == [status(empty)] and "no step is finished" in sv.board(empty).fallback
    running = metrics_run(tmp_path / "r", {"reward": [0.1, 0.2, 0.3]}, {"max_steps": 60})
    assert status(running).startswith(
        "r: step 2 of 60, last written 2"
    ) and "still being written, or was stopped" in status(running)
    assert status(metrics_run(tmp_path / "s", {"reward": [0.1, 0.2]}, {"max_steps": 1})) == ""


# --- figures --------------------------------------------------------------------------------------------------------


def test_the_finisher_keeps_text_as_text_and_sends_nothing_away():
    figure = finish(go.Figure(go.Scatter(x=[0], y=[0])), "<b>a & b</b>", "does it? " * 30)
    text = figure.layout.title.text
    assert "&lt;b&gt;a &amp; b&lt;/b&gt;" in text and text.count("<br>") > 2
    assert figure.layout.height > finish(go.Figure(), "a", "b").layout.height
    assert {"sendChartToCloud", "sendDataToCloud"} <= set(figure.layout.modebar.remove)
    assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)"
    panels = finish(make_subplots(2, 2), "a")
    assert all(panels.layout[f"xaxis{i}"].gridcolor for i in ("", 2, 3, 4))


def test_lines_can_be_seen_on_light_and_on_dark_paper():
    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    from segviz.show.figures import COLOURS, INK

    for colour in (*COLOURS, INK):
        for paper in ("#ffffff", "#111111"):
            high, low = sorted((light(colour), light(paper)), reverse=True)
            assert (high + 0.05) / (low + 0.05) > 4


def test_the_diverging_scale_is_symmetric_and_made_of_trained_tokens():
    scale = diverging([0.2, -0.5, 9.0, None, math.nan], [True, True, False, True, True])
    assert (scale["zmin"], scale["zmid"], scale["zmax"]) == (-0.5, 0, 0.5)
    assert scale["colorscale"] == [list(stop) for stop in DIVERGING]
    assert diverging([], axis="c") == {"colorscale": scale["colorscale"], "cmin": -1, "cmid": 0, "cmax": 1}
    go.Heatmap(z=[[0.2, -0.5]], **scale)
    go.Scatter(x=[0], y=[0], marker={"color": [0.1], **diverging([0.1], axis="c")})


def test_a_figure_is_saved_as_a_page_without_a_browser(tmp_path, monkeypatch, run):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "nothing"))
    figure = sv.lift(run, draws=5)
    page = figure.save(tmp_path / "lift.html").read_text(encoding="utf-8")
    assert "plotly" in page and not re.search(r'src="http|cdn\.plot\.ly/plotly', page)
    assert '"displaylogo": false' in page and '"paper_bgcolor":"#ffffff"' in page
    with pytest.raises(RuntimeError, match=r"working Chromium \(BROWSER_PATH is .*nothing\).*lift\.html") as caught:
        figure.save(tmp_path / "lift.png")
    assert caught.value.__cause__ is not None and not (tmp_path / "lift.png").exists()
    with pytest.raises(ValueError, match=r"choose one of \.html"):
        figure.save(tmp_path / "lift.gif")
