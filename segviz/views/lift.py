"""The Lift-q curve: do decisions fall on the tokens where the policy is unsure?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from segviz.runs.columns import Rollouts, Row, rollout_columns, whence
from segviz.runs.run import Run
from segviz.show import statistics
from segviz.show.figures import COLOURS, DASHES, INK, MARKERS, Figure, finish
from segviz.show.theme import method_label

QUANTILES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def lift(
    source: Rollouts,
    q: Sequence[float] = QUANTILES,
    share: float = 0.1,
    draws: int = 1000,
    seed: int = 0,
    steps: int | Sequence[int] | None = None,
    title: str = "Do decisions fall on high-entropy tokens?",
) -> Figure:
    """Lift(A, D) = P(D | A) / P(D) over q, SAPO's eq. 12 (arXiv 2605.01327).

    A: in each completion the ⌈q · T⌉ tokens of highest entropy. D, one line for each that is recorded:
    tokens t with a large |V_t − V_{t+1}|, V the critic's (or densely sampled) values before each token: the `share`
    largest of all; the completion's last token, which has no V_{t+1}, is in neither set. And the tokens of the first
    true error, where the task knows it. What counts as large is our reading: the equation leaves it open.
    The interval is 95 % of `draws` resamples of whole rollouts.

    Raises:
        ValueError: no entropy, or nothing to lift; `q` or `share` outside (0, 1].
    """
    shares = np.array(sorted(q), float)
    if not len(shares) or not ((shares > 0) & (shares <= 1)).all() or not 0 < share <= 1:
        raise ValueError(f"q and share are parts of the tokens, above 0 and at most 1; got q={list(q)}, share={share}")
    rows = rollout_columns(source, ("entropy", "values", "mc_values", "error_start", "error_end"), steps)
    if all(row["entropy"] is None for row in rows):
        raise ValueError("no entropy is recorded for these rollouts, and the lift is that of high-entropy tokens")
    curves: list[tuple[str, statistics.Lift]] = []
    missing = []
    for name, find in (
        (f"large value change: the {share:.0%} largest |V_t − V_t+1|", lambda: _value_changes(rows, share)),
        ("first true error", lambda: _errors(rows)),
    ):
        scores, decisions = find()
        if any(wanted.any() for wanted in decisions):
            curves.append(
                (name, statistics.lift(statistics.top_counts(scores, decisions, shares), shares, draws, seed))
            )
        else:
            missing.append(name.split(":")[0])
    if not curves:
        raise ValueError("neither values of every token nor true errors are recorded: there is nothing to lift")
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            x=[0, 1], y=[1, 1], mode="lines", name="no relation", line={"color": INK, "dash": "dot"}, hoverinfo="skip"
        )
    )
    for i, (name, curve) in enumerate(curves):
        _band(figure, curve, name, i)
    what = f"{source.name} · " if isinstance(source, Run) else ""
    methods = ", ".join(sorted({method_label(row["method"]) for row in rows}))
    lack = f" Not recorded: {', '.join(missing)}." if missing else ""
    at = int(np.abs(shares - 0.3).argmin())
    said = "; ".join(f"{name.split(':')[0]} {curve.lift[at]:.2f}" for name, curve in curves)
    words = f"{what}{methods}, {whence(rows, source, steps)}. Lift of the top {shares[at]:.0%}: {said}.{lack} "
    words += "Bands: 95 %, resampling rollouts."
    figure = finish(figure, title, words, height=480)
    figure.update_layout(legend={"y": -0.16, "yanchor": "top"}, margin={"b": 96})
    figure.update_xaxes(title_text="q, share of tokens of highest entropy", tickformat=".0%", range=[0, 1.02])
    figure.update_yaxes(title_text="lift", rangemode="tozero")
    return figure


def _band(figure: go.Figure, curve: statistics.Lift, name: str, style: int) -> None:
    colour = COLOURS[style]
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    around = {"x": np.concatenate([curve.q, curve.q[::-1]]), "y": np.concatenate([curve.high, curve.low[::-1]])}
    figure.add_trace(
        go.Scatter(
            **around, fill="toself", fillcolor=f"rgba({red},{green},{blue},0.16)", line={"width": 0}, mode="lines",
            hoverinfo="skip", showlegend=False,
        )
    )  # fmt: skip
    figure.add_trace(
        go.Scatter(
            x=curve.q, y=curve.lift, mode="lines+markers", name=name,
            line={"color": colour, "dash": DASHES[style], "width": 2}, marker={"symbol": MARKERS[style], "size": 7},
            customdata=np.stack([curve.low, curve.high], axis=1),
            hovertemplate="top %{x:.0%}: lift %{y:.2f}<br>%{customdata[0]:.2f} to %{customdata[1]:.2f}<extra></extra>",
        )
    )  # fmt: skip


def _value_changes(rows: Sequence[Row], share: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(entropy, whether in D) of the tokens with a known change of value, a pair of arrays a rollout."""
    scores, changes = [], []
    for row in rows:
        values = row["values"] if row["values"] is not None else row["mc_values"]
        if values is None or row["entropy"] is None or len(values) != len(row["entropy"]) or len(values) < 2:
            continue
        change = np.abs(np.diff(values))
        known = np.isfinite(change) & np.isfinite(row["entropy"][:-1])
        scores.append(row["entropy"][:-1][known])
        changes.append(change[known])
    pooled = np.sort(np.concatenate(changes)) if changes else np.zeros(0)
    if not len(pooled) or pooled[-1] == 0:
        return [], []
    large = max(pooled[len(pooled) - max(1, round(share * len(pooled)))], np.nextafter(0, 1))
    return scores, [change >= large for change in changes]


def _errors(rows: Sequence[Row]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(entropy, whether in D) of the completions that hold a true error; D is its tokens."""
    scores, decisions = [], []
    for row in rows:
        if row["error_start"] is None or row["entropy"] is None:
            continue
        wanted = np.zeros(len(row["entropy"]), bool)
        wanted[row["error_start"] : max(row["error_start"] + 1, row["error_end"] or 0)] = True
        scores.append(np.nan_to_num(row["entropy"], nan=-np.inf))
        decisions.append(wanted)
    return scores, decisions
