"""The audit: can these advantages be trusted?"""

from __future__ import annotations

import json
import math
import re

import numpy as np
import plotly.graph_objects as go
import pytest

import segviz as sv
from segviz.runs.columns import rollout_columns
from segviz.runs.evidence import COLUMNS, evidence, samples_behind
from segviz.show.figures import Figure
from segviz.views.audit import tells_apart
from tests.fakes.fake_run import write_run
from tests.views.made import simple

#: Traces that plotly.js 3 and 4 both know.
SHARED_TRACES = {"scatter", "bar", "heatmap", "histogram", "box", "violin"}


def words_of(figure: go.Figure) -> str:
    """Title and annotations of a figure as plain text."""
    texts = [figure.layout.title.text, *(note.text for note in figure.layout.annotations)]
    return " ".join(re.sub(r"<[^>]+>", " ", " ".join(texts)).split())


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


@pytest.mark.parametrize(("knows", "words"), [(0.0, "do not tell"), (0.25, "hardly tell"), (2.0, "values tell")])
def test_a_critic_that_says_the_mean_everywhere_is_no_comfort(knows, words):
    """Values around the mean reward are off by little whatever they know: the AUC comes first."""
    draw = np.random.default_rng(0)
    rewards = np.repeat([0.0, 1.0], 400)
    values = 0.5 + 0.05 * (knows * (rewards - 0.5) * 2 + draw.standard_normal(800))
    rows = [simple([v] * 4, reward=float(r), sample=i) for i, (v, r) in enumerate(zip(values, rewards, strict=True))]
    said = words_of(sv.audit(rows))
    assert words in said and "AUC" in said and "0.5 is a coin" in said
    area = tells_apart(evidence(rollout_columns(rows, COLUMNS)))
    assert area[1] <= area[0] <= area[2] and (area[1] <= 0.5) == (knows == 0)


def test_an_axis_of_samples_has_a_tick_at_each_doubling():
    chain = simple(None, segment_value=[0.5, 0.75], segment_stderr=[0.3, 0.2], method="vineppo")
    axes = [axis for axis in sv.audit([chain]).select_xaxes() if axis.type == "log"]
    assert [axis.dtick for axis in axes] == [pytest.approx(math.log10(2))]
