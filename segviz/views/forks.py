"""The deciding fork of a tree: where the branches of a state differ beyond noise, and which of them settled most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from segviz.views.staircase import Z

EQUAL = 1e-6  #: values closer than this are the same
BEYOND = 0.025  #: chance, on each side, that is still called noise; what `Z` leaves out of a normal distribution


class Fork(NamedTuple):
    """A fork whose branches differ in value beyond noise."""

    node: int
    low: int  #: its child of lowest value
    high: int
    spread: float  #: Σ n (V − mean V)² over its children, n leaves below each: how much of the outcomes it settled


def deciding(
    nodes: Sequence[Mapping[str, Any]], children: Sequence[Sequence[int]], chain: bool = False
) -> tuple[list[Fork], int]:
    """(the forks whose children differ beyond noise, the one that settled most first; how many could be weighed).

    Beyond noise: the highest and the lowest child differ by more than `Z` standard errors of their difference. A
    finished completion is worth its reward, which has no error; another child without a standard error cannot be
    weighed. Of forks that settled as much the one nearest to the prompt comes first.
    """
    found, weighed = [], 0
    leaves = [0 if below else 1 for below in children]
    for i in range(len(nodes) - 1, 0, -1):  # children stand behind their parents
        leaves[nodes[i]["up"]] += leaves[i]
    values = [node["value"] for node in nodes if node["value"] is not None]
    reach = max(values, default=0.0) - min(values, default=0.0)
    for i in range(len(nodes)):
        errors = {j: _error(nodes, children, j, reach, chain) for j in children[i] if nodes[j]["value"] is not None}
        comparable = [j for j, error in errors.items() if error is not None]
        if len(comparable) < 2:
            continue
        weighed += 1
        low, high = (pick(comparable, key=lambda j: nodes[j]["value"]) for pick in (min, max))
        if nodes[high]["value"] - nodes[low]["value"] > Z * math.hypot(errors[low], errors[high]) + EQUAL:
            mean = sum(leaves[j] * nodes[j]["value"] for j in comparable) / sum(leaves[j] for j in comparable)
            spread = sum(leaves[j] * (nodes[j]["value"] - mean) ** 2 for j in comparable)
            found.append(Fork(i, low, high, spread))
    return sorted(found, key=lambda fork: (-round(fork.spread / EQUAL), nodes[fork.node]["depth"], fork.node)), weighed


def _error(
    nodes: Sequence[Mapping[str, Any]], children: Sequence[Sequence[int]], i: int, reach: float, chain: bool
) -> float | None:
    """Standard error of a node's value; None where it is not known.

    Where all n samples agreed it is 0, which says that they were few rather than that nothing was left to chance. Of
    rewards that differ with probability p, n agree with probability (1 − p)^n: the largest p that leaves this at
    `BEYOND`, times the reach of the values, stands for `Z` standard errors.
    """
    error = nodes[i]["stderr"]
    if error is None:
        return None if children[i] else 0.0
    if error > 0:
        return error
    # in a tree a node's children are the independent samples; leaves below one child share its text
    samples = len(children[i]) if children[i] and not chain else nodes[i]["samples"] or 1
    return reach * (1 - BEYOND ** (1 / samples)) / Z
