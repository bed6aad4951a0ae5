"""How far credit can be trusted where nobody knows the errors: what a run recorded of the values behind it."""

from __future__ import annotations

import math

import numpy as np

from segviz.runs.columns import rollout_columns
from segviz.runs.evidence import COLUMNS, evidence
from segviz.runs.run import Run
from segviz.show.statistics import auc

LATEST = 8  #: recorded steps whose values are held against their outcomes
MEAN_OF = 10  #: steps' numbers in a mean


def trust(run: Run) -> list[str]:
    """Lines in words: explained variance, how well the values tell good completions from bad, agreement with Monte
    Carlo values, their noise. Of a method without values one that says that nothing is known.

    Raises:
        ValueError, OSError: the rollouts cannot be read.
    """
    said = []
    critic = "value/mc_error" in run.metrics or "value_loss" in run.metrics
    name = "The critic" if critic else "Its sampled values"
    if (share := _latest(run, "explained_variance")) is not None:
        said.append(
            f"{name} explain{'s' if critic else ''} {share:.2f} of the variance of what {'it' if critic else 'they'} "
            "should say (1: always right; 0: no better than a constant)."
        )
    said += _tells_apart(run)
    if (off := _latest(run, "value/mc_error")) is not None:
        said.append(f"Against Monte Carlo values it is off by {off:.2f} (root mean square, their own noise taken out).")
    if (noise := _latest(run, "value/mc_stderr")) is not None:
        said.append(f"{'Those' if critic else 'They'} have a standard error of {noise:.2f} themselves.")
    return said or [
        "This method works with no values, and the task does not say where an error is: nothing that is recorded tells "
        "how right this credit is."
    ]


def _tells_apart(run: Run) -> list[str]:
    """The AUC of the values, over the latest steps; nothing without values, or where rewards are more than two."""
    steps = run.steps[-LATEST:]
    if not steps or not {"explained_variance", "value_mean"} & set(run.metrics):
        return []
    rows = [row | {"mc_values": None, "mc_stderr": None} for row in rollout_columns(run, COLUMNS, steps)]
    found = evidence(rows)
    if found.against != "outcomes" or len(set(found.truth)) != 2:
        return []
    area, low, high = auc(found.estimate, found.truth == found.truth.max(), found.owner)
    if math.isnan(area):
        return []
    many = len(np.unique(found.owner))
    return [
        f"Told by {'its' if 'value_loss' in run.metrics else 'their'} values, a good completion is ranked above a bad "
        f"one in {area:.0%} of pairs (AUC, 95 %: {low:.0%} to {high:.0%}; chance 50 %; {many:,} completions)."
    ]


def _latest(run: Run, name: str) -> float | None:
    """Mean of the last numbers of a metric."""
    series = run.metrics.get(name)
    known = [value for value in (series.values if series else []) if math.isfinite(value)][-MEAN_OF:]
    return sum(known) / len(known) if known else None
