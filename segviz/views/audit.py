"""The estimator audit: can the values and advantages of a method be trusted?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from segviz.runs.columns import Rollouts, Row, rollout_columns, whence
from segviz.runs.evidence import COLUMNS, Evidence, Truth, evidence
from segviz.runs.run import Run
from segviz.show.figures import COLOURS, INK, Figure, finish, plain
from segviz.show.statistics import Z95, auc, calibration, expected_flips, sign_flips
from segviz.show.theme import method_label

QUESTION = "Can I trust these advantages?"

WEAK = 0.7  #: an AUC below it is little more than a coin

DOTS = 1500  #: of more states a scatter shows an even selection


def audit(
    source: Rollouts,
    truth: Truth | None = None,
    steps: int | Sequence[int] | None = None,
    title: str = QUESTION,
    columns: int = 2,
) -> Figure:
    """Four panels: estimates against the truth, noise against the number of samples, wrong signs, calibration.

    The truth is Monte Carlo where it is known: `truth`, or the recorded `mc_values` of a method whose own estimates are
    others (a critic). Else estimates are held against the completions' rewards; panels that need more say so. A tree's
    value contains the rewards of all completions through it, so each is judged without the one it is held against.

    Args:
        source: a run or rollouts.
        truth: values from elsewhere, such as many more continuations of the same states.
        steps: of a run; default: all, of a long run the latest.
        columns: of panels, 2 or, for a narrow page, 1.

    Raises:
        TypeError, ValueError: as `rollout_columns`.
    """
    rows = rollout_columns(source, COLUMNS, steps)
    found = evidence(rows, truth)
    if isinstance(source, Run) and found.estimator == "tree":
        found.stderr, found.samples = _of_nodes(source, rows)
    panels = (_scatter, _noise, _flips, _reliability)
    drawn = [panel(found) for panel in panels]
    rows_of = -(-len(drawn) // columns)
    figure = make_subplots(
        rows_of, columns, subplot_titles=[plain(p.title) for p in drawn],
        horizontal_spacing=0.1, vertical_spacing=0.34 / rows_of,
    )  # fmt: skip
    for i, panel in enumerate(drawn):
        _put(figure, panel, 1 + i // columns, 1 + i % columns)
    methods = ", ".join(sorted({method_label(row["method"]) for row in rows}))
    name = f"{source.name} · " if isinstance(source, Run) else ""
    figure = finish(
        figure, title, f"{name}{methods}, {whence(rows, source, steps)}. {_verdict(found)}", height=400 * rows_of
    )
    figure.update_layout(legend={"y": -0.18 / rows_of, "yanchor": "top", "font": {"size": 12}}, margin={"b": 80})
    figure.update_annotations(font_size=13)
    return figure


def _of_nodes(run: Run, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Standard errors of a tree's values, and the completions behind each."""
    steps = sorted({row["step"] for row in rows})
    nodes = [node for step in steps for node in run.nodes(step)]
    known = [(node["stderr"], node["samples"]) for node in nodes if node["stderr"] is not None and node["samples"] > 1]
    errors, samples = np.array(known, float).reshape(-1, 2).T
    return errors, samples


# --- panels ---------------------------------------------------------------------------------------------------------


@dataclass
class Panel:
    """What one of the four panels shows; `words` stand in it where there is nothing to draw."""

    title: str
    x: str = ""
    y: str = ""
    traces: list = field(default_factory=list)
    words: str = ""
    layout: dict[str, dict] = field(default_factory=dict)  #: "x" or "y" -> further settings of the axis


def _scatter(found: Evidence) -> Panel:
    if not found.has_truth:
        return _by_outcome(found)
    panel = Panel(f"Estimate against {found.against}", f"{found.against.rstrip('s')} of the state", "estimate")
    x, y, error = found.truth, found.estimate, found.truth_error
    if not found.estimator:
        panel.title, panel.x, panel.y = f"Advantage against {found.against}", "V*(after) − V*(before)", "advantage"
        x, y, error = found.true_advantage, found.advantage, found.true_noise
    keep = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    if not len(keep):
        panel.words = "No state has both<br>an estimate and a true value."
        return panel
    shown = keep[np.linspace(0, len(keep) - 1, min(DOTS, len(keep))).astype(int)]
    low, high = float(min(x[keep].min(), y[keep].min())), float(max(x[keep].max(), y[keep].max()))
    bars = {"array": np.nan_to_num(Z95 * error[shown]), "thickness": 0.6, "width": 0, "color": "rgba(113,106,230,0.14)"}
    panel.traces = [
        _identity(low, high),
        go.Scatter(
            x=x[shown], y=y[shown], error_x=bars, mode="markers",
            name="a state, 95 % interval of its truth" if found.estimator else "a segment, 95 % interval of its truth",
            marker={"size": 5, "color": COLOURS[0], "opacity": 0.5},
            hovertemplate="true %{x:.3f}<br>estimate %{y:.3f}<extra></extra>",
        ),
    ]  # fmt: skip
    return panel


def _by_outcome(found: Evidence) -> Panel:
    why = "no Monte Carlo values recorded" if found.estimator == "critic" else "the estimate is itself sampled"
    panel = Panel(f"Estimate by outcome ({why})", "reward of the completion", "estimated value")
    known = np.isfinite(found.estimate) & np.isfinite(found.truth)
    if not known.any():
        panel.title = "Estimate against the truth"
        panel.words = _no_values(found)
        return panel
    rewards = np.unique(found.truth[known])
    if len(rewards) > 6:
        rewards = rewards[:0]
        panel.traces = [
            go.Scatter(
                x=found.truth[known][:DOTS], y=found.estimate[known][:DOTS], mode="markers", name="a state",
                marker={"size": 5, "color": COLOURS[0], "opacity": 0.5},
            )
        ]  # fmt: skip
    for i, reward in enumerate(rewards):
        y = np.sort(found.estimate[known & (found.truth == reward)])
        y = y[np.linspace(0, len(y) - 1, min(DOTS, len(y))).astype(int)]  # in order: quartiles and ends stay
        panel.traces.append(
            go.Box(
                y=y, name=f"{reward:g}", x=[f"{reward:g}"] * len(y), boxpoints=False, showlegend=False,
                marker={"color": COLOURS[i % 5]}, line={"width": 1.6}, hoverinfo="y",
            )
        )  # fmt: skip
    panel.layout = {"x": {"type": "category"}} if len(rewards) else {}
    return panel


def _noise(found: Evidence) -> Panel:
    panel = Panel("Noise against number of samples", "samples behind a value", "standard error of a value")
    known = np.isfinite(found.stderr)
    if not known.any():
        panel.words = (
            "A critic samples nothing:<br>its error is bias, not noise.<br>See the calibration."
            if found.estimator == "critic"
            else "No standard errors are recorded."
        )
        return panel
    error, samples = found.stderr[known], found.samples[known]
    counts = np.unique(samples[np.isfinite(samples)])
    if not len(counts):
        counts, samples = np.ones(1), np.ones(len(error))
        panel.x = "samples behind a value, as a multiple of the recorded number"
    means = np.array([error[samples == n].mean() for n in counts])
    weights = np.array([(samples == n).sum() for n in counts])
    quartiles = np.array([np.quantile(error[samples == n], (0.25, 0.75)) for n in counts])
    law = np.geomspace(min(1 if counts.max() > 1 else 0.25, counts.min()), 16 * counts.max(), 60)
    # states deep in a tree have fewer samples and are closer to decided: one law would not fit all of them
    for n in sorted(np.argsort(-weights, kind="stable")[:3]):
        panel.traces.append(
            go.Scatter(
                x=law, y=means[n] * np.sqrt(counts[n] / law), mode="lines", name="1/√N law through a recorded mean",
                line={"color": COLOURS[1], "dash": "dash", "width": 1.6}, legendgroup="law",
                hovertemplate="N = %{x:.0f}: ±%{y:.3f}<extra></extra>",
            )
        )  # fmt: skip
    panel.traces.append(
        go.Scatter(
            x=counts, y=means, mode="markers", name="recorded: mean, middle half",
            marker={"size": 9, "symbol": "square", "color": COLOURS[1]},
            error_y=_whiskers(means, quartiles[:, 0], quartiles[:, 1]),
            customdata=weights, hovertemplate="N = %{x}: ±%{y:.3f}<br>%{customdata} values<extra></extra>",
        )
    )  # fmt: skip
    sizes = np.abs(found.advantage[np.isfinite(found.advantage) & (found.advantage != 0)])
    if len(sizes):
        typical = float(np.median(sizes))
        panel.traces.append(
            go.Scatter(
                x=law[[0, -1]], y=[typical, typical], mode="lines", name="median size of an advantage that is not 0",
                line={"color": INK, "dash": "dot", "width": 1.6}, hovertemplate="%{y:.3f}<extra></extra>",
            )
        )  # fmt: skip
    panel.layout = {"x": {"type": "log", "dtick": math.log10(2), "tickformat": ".3~g"}, "y": {"rangemode": "tozero"}}
    return panel


def _flips(found: Evidence) -> Panel:
    panel = Panel("Wrong signs", "size of the advantage (mean of the bin)", "share of segments")
    if found.has_truth:
        every = sign_flips(found.advantage, found.true_advantage)
        clear = np.abs(found.true_advantage) > 2 * found.true_noise
        sure = sign_flips(found.advantage[clear], found.true_advantage[clear])
        if not len(every.count):
            panel.words = "No segment has a true advantage<br>that is known and not 0."
            return panel
        panel.title = f"Wrong signs: {every.total:.0%} of segments differ from the truth"
        panel.traces = [_shares(every, "every segment against V*(after) − V*(before), 95 % Wilson", 0)]
        if len(sure.count):
            panel.traces.append(_shares(sure, "where that is more than 2 standard errors from 0", 2))
    else:
        risk = expected_flips(found.advantage, found.noise)
        if not len(risk.count):
            panel.words = (
                "Signs need Monte Carlo values of the states<br>before and after a segment; none are recorded."
            )
            panel.words += "<br>Train with value_mc_states to record some." if found.estimator == "critic" else ""
            return panel
        panel.title = f"Wrong signs to expect from sampling noise: {_at_least(found)}{risk.total:.0%}"
        panel.traces = [_shares(risk, "expected, Φ(−|A|/σ) from the standard errors", 3)]
    panel.traces.append(_level(0.5, "a coin"))
    panel.layout = {"y": {"range": [0, 1.02], "tickformat": ".0%"}, "x": {"rangemode": "tozero"}}
    return panel


def _reliability(found: Evidence) -> Panel:
    what = f"mean {found.against.rstrip('s')}" if found.has_truth else "mean reward of the completions"
    panel = Panel("Calibration", "estimated value (mean of the bin)", what)
    curve = calibration(found.estimate, found.truth, owner=found.owner)
    if not len(curve.count):
        panel.words = _no_values(found)
        return panel
    area = tells_apart(found)
    panel.title = f"Calibration: off by {curve.error:.3f}" + (f", AUC {area[0]:.2f}" if area else " on average")
    ends = np.concatenate([curve.estimate, curve.outcome])
    panel.traces = [
        _identity(min(0.0, float(ends.min())), max(1.0, float(ends.max()))),
        go.Scatter(
            x=curve.estimate, y=curve.outcome, mode="lines+markers", name="bins of equal count, 95 % over completions",
            line={"color": COLOURS[0], "width": 2}, marker={"size": 8, "symbol": "diamond"}, customdata=curve.count,
            error_y=_whiskers(curve.outcome, curve.low, curve.high),
            hovertemplate="estimate %{x:.3f}, it was %{y:.3f}<br>%{customdata} states<extra></extra>",
        ),
    ]  # fmt: skip
    return panel


def _identity(low: float, high: float) -> go.Scatter:
    return go.Scatter(
        x=[low, high], y=[low, high], mode="lines", name="estimate = truth", legendgroup="identity",
        line={"color": INK, "dash": "dot", "width": 1.4}, hoverinfo="skip",
    )  # fmt: skip


def _level(y: float, name: str) -> go.Scatter:
    return go.Scatter(
        x=[0, None],
        y=[y, None],
        mode="lines",
        name=name,
        line={"color": INK, "dash": "dot"},
        showlegend=False,
        hoverinfo="skip",
    )


def _shares(flips: Any, name: str, style: int) -> go.Scatter:
    return go.Scatter(
        x=flips.size, y=flips.share, mode="lines+markers", name=name, customdata=flips.count,
        line={"color": COLOURS[style], "dash": ("solid", "dash", "dot", "dashdot")[style], "width": 2},
        marker={"size": 8, "symbol": ("circle", "square", "triangle-up", "diamond")[style]},
        error_y=_whiskers(flips.share, flips.low, flips.high),
        hovertemplate="|A| about %{x:.3f}: %{y:.0%}<br>%{customdata} segments<extra></extra>",
    )  # fmt: skip


def _whiskers(middle: np.ndarray, low: np.ndarray, high: np.ndarray) -> dict[str, Any]:
    up, down = (np.maximum(np.nan_to_num(x), 0) for x in (high - middle, middle - low))
    return {"array": up, "arrayminus": down, "thickness": 1.4, "width": 4}


def _no_values(found: Evidence) -> str:
    if found.estimator:
        return "No reward is recorded:<br>there is nothing to hold the estimates against."
    return "No values are recorded:<br>this method compares whole completions<br>and estimates none."


def _put(figure: go.Figure, panel: Panel, row: int, column: int) -> None:
    """Draw one panel into its place; lines of one kind are named once in the legend."""
    for trace in panel.traces:
        if trace.legendgroup and any(t.legendgroup == trace.legendgroup for t in figure.data):
            trace.showlegend = False
        figure.add_trace(trace, row, column)
    if panel.words:
        figure.update_xaxes(visible=False, range=[0, 1], row=row, col=column)
        figure.update_yaxes(visible=False, range=[0, 1], row=row, col=column)
        figure.add_annotation(x=0.5, y=0.5, text=panel.words, showarrow=False, row=row, col=column)
        return
    figure.update_xaxes(title_text=panel.x, **panel.layout.get("x", {}), row=row, col=column)
    figure.update_yaxes(title_text=panel.y, **panel.layout.get("y", {}), row=row, col=column)


def _at_least(found: Evidence) -> str:
    """For a share of expected wrong signs: samples that all agreed have a standard error of 0, too little."""
    agreed = found.agreed & np.isfinite(found.noise) & np.isfinite(found.advantage) & (found.advantage != 0)
    return "at least " if agreed.any() else ""


def tells_apart(found: Evidence) -> tuple[float, float, float] | None:
    """How often a state of a completion that succeeded has the higher estimate: (AUC, its 95 % interval); None where
    outcomes are not of two kinds. Between the two lies half: that is a coin."""
    known = np.isfinite(found.estimate) & np.isfinite(found.outcome)
    kinds = np.unique(found.outcome[known])
    if len(kinds) != 2:
        return None
    area = auc(found.estimate[known], found.outcome[known] == kinds[1], found.owner[known])
    return None if math.isnan(area[0]) else area


def _values_words(who: str, found: Evidence, off: float) -> str:
    """Whether values know anything, first: one that says the mean reward of every state is off by nothing."""
    away, area = f"off by {off:.3f} on average against {found.against}", tells_apart(found)
    if area is None:
        return f"{who} are {away}."
    measured = f"AUC {area[0]:.2f}, 95 % interval {area[1]:.2f} to {area[2]:.2f}; 0.5 is a coin"
    if area[1] <= 0.5:
        return f"{who} do not tell completions that succeed from those that fail ({measured}), though {away}."
    if area[0] < WEAK:
        return f"{who} hardly tell completions that succeed from those that fail ({measured}), though {away}."
    return f"{who} tell completions that succeed from those that fail ({measured}) and are {away}."


def _verdict(found: Evidence) -> str:
    """The question answered in a sentence or two."""
    curve = calibration(found.estimate, found.truth, owner=found.owner)
    names = {
        "critic": "The critic's values",
        "chain": "Sampled values",
        "tree": "A tree's values, each without the completion it is held against,",
    }
    said = []
    if len(curve.count):
        said.append(_values_words(names.get(found.estimator, "Values"), found, curve.error))
    elif not found.estimator:
        said.append("No values are recorded.")
    if found.has_truth:
        flips = sign_flips(found.advantage, found.true_advantage)
        if len(flips.count):
            said.append(f"{flips.total:.0%} of segments have the wrong sign.")
    else:
        risk = expected_flips(found.advantage, found.noise)
        if len(risk.count):
            said.append(
                f"Sampling noise alone leads one to expect the wrong sign in {_at_least(found)}{risk.total:.0%} of "
                "segments"
                + (" (where all samples of a state agreed, no noise of it is counted)." if _at_least(found) else ".")
            )
    return " ".join(said)
