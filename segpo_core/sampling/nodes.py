"""The states to which trees and chains give a value, as nodes: their tokens, their worth, and who shares them.

A node is a run of tokens that continues its parent's; its value is that of the state after these tokens. The root of a
group is its prompt. Completions that begin with the same nodes share them. In a tree, nodes are what was sampled once;
in chains, completions whose states are the same, because their tokens are, meet in one node.

Shapes: B completions, T tokens, N nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segpo_core.advantages import tree_advantages
from segpo_core.record.store import nullable
from segpo_core.sampling.sharing import tree_of
from segpo_core.segments import ends
from segpo_core.types import Credit, Rollouts, Tree

#: Advantages of this size are rounding of equal values.
ZERO = 1e-6


@dataclass(frozen=True)
class Nodes:
    """N nodes of the groups of some rollouts, each group's parents before their children."""

    of_token: Tensor  #: long [B, T], the node that each token belongs to, -1 at padding
    tree: Tree  #: how the nodes hang together
    value: Tensor  #: float32 [N], V of the state after the node's tokens; NaN: not known
    stderr: Tensor  #: float32 [N], its standard error; NaN: of a single sample
    samples: Tensor  #: long [N], rewards that the value is made of


def tree_nodes(rollouts: Rollouts) -> Nodes:
    """The nodes of sampled trees. A leaf is worth its reward, any other node the mean of its children.

    A leaf without a reward (no verdict) has no value and counts in none. `rollouts` has `node_ids` and `rewards`.
    """
    r = rollouts.rewards
    tree, node = tree_of(rollouts.node_ids, rollouts.group)
    judged, of_judged = tree_of(torch.where(r.isnan()[:, None], -1, rollouts.node_ids), rollouts.group)
    rewards = leaf_rewards(of_judged, r, len(judged.parent))
    value, stderr = _unknown(tree), _unknown(tree)
    held, known = of_judged >= 0, of_judged[:, 0] >= 0
    for column, numbers in zip((value, stderr), node_credit(judged.parent, rewards), strict=False):
        column[node[held]] = numbers[of_judged[held]]
        column[tree.parent[node[known, 0]]] = numbers[judged.parent[of_judged[known, 0]]]
    samples = torch.zeros_like(tree.parent)
    leaf = node.gather(1, rollouts.lengths[:, None] - 1)[known, 0]
    while len(leaf):  # each leaf counts in itself and in all that it hangs on
        samples += torch.bincount(leaf, minlength=len(samples))
        leaf = tree.parent[leaf]
        leaf = leaf[leaf >= 0]
    return Nodes(node, tree, value, stderr, samples)


def chain_nodes(rollouts: Rollouts, segment_ids: Tensor, continuations: int | Tensor) -> Nodes:
    """The nodes of completions that were sampled on from: one a segment, its value that of the state it ends in.

    A completion's last node is worth its reward. Identical completions share it where their rewards are the same.

    Args:
        rollouts: with rewards, `mc_values` and `mc_stderr`.
        segment_ids: long [B, T], as in `segments`.
        continuations: number drawn from each state; or long [B, T], from the state before each token.
    """
    names: dict[tuple, int] = {}
    named = torch.full_like(segment_ids, -1)
    tokens, rewards, lengths = rollouts.completion_ids.tolist(), rollouts.rewards.tolist(), rollouts.lengths.tolist()
    row, last = ends(segment_ids).nonzero().unbind(1)
    name, start = -1, 0
    for b, end in zip(row.tolist(), (last + 1).tolist(), strict=True):
        final = end == lengths[b]
        key = name, tuple(tokens[b][start:end]), repr(rewards[b]) if final else ""
        name = names.setdefault(key, len(names))
        named[b, start:end] = name
        name, start = (-1, 0) if final else (name, end)

    tree, node = tree_of(named, rollouts.group)
    value, stderr, samples = _unknown(tree), _unknown(tree), torch.zeros_like(tree.parent)
    final, after = last + 1 == rollouts.lengths[row], (last + 1).clamp(max=segment_ids.shape[1] - 1)
    drawn = torch.as_tensor(continuations, device=segment_ids.device).expand(segment_ids.shape)
    at, sampled = node[row, last], rollouts.mc_values
    value[at] = torch.where(final, rollouts.rewards[row], sampled[row, after])
    stderr[at] = torch.where(final, torch.nan, rollouts.mc_stderr[row, after])
    samples[at] = torch.where(final, 1, drawn[row, after])
    known = ~sampled[:, 0].isnan()  # a method may need the prompt's value in some completions only
    root = tree.parent[node[known, 0]]
    value[root], stderr[root], samples[root] = sampled[known, 0], rollouts.mc_stderr[known, 0], drawn[known, 0]
    return Nodes(node, tree, value, stderr, samples.masked_fill(value.isnan(), 0))


def node_rows(
    nodes: Nodes, rollouts: Rollouts, credit: Credit, *, step: int, method: str, first_group: int = 0
) -> tuple[list[dict[str, Any]], Tensor]:
    """(one row a node, columns as in `record.NODE_SCHEMA`; long [B, T], each token's node as the rows number it).

    Nodes are numbered within their group, from 0, its root.

    Args:
        nodes: of the rollouts.
        rollouts, credit: what was seen and decided.
        step, method, first_group: ids; `first_group` is the number of the first prompt over all processes.
    """
    tree, of_token = nodes.tree, nodes.of_token
    number, sample = _count(tree.group), _count(rollouts.group)
    row, column = (of_token >= 0).nonzero().unbind(1)
    node = of_token[row, column]
    holder = torch.full_like(tree.parent, len(of_token)).scatter_reduce(0, node, row, "amin")
    trained = torch.zeros_like(tree.parent, dtype=torch.bool)
    trained[of_token[credit.loss_mask & (of_token >= 0)]] = True
    up = tree.parent.clamp(min=0)
    advantage = (nodes.value.double() - nodes.value[up].double()).masked_fill(tree.parent < 0, torch.nan)
    columns = {
        "group": (tree.group + first_group).tolist(),
        "node": number.tolist(),
        "parent": torch.where(tree.parent < 0, -1, number[up]).tolist(),
        "sample": torch.where(tree.parent < 0, 0, sample[holder.clamp(max=len(sample) - 1)]).tolist(),
        "start": tree.start.tolist(),
        "end": tree.end.tolist(),
        "value": nullable(nodes.value.tolist()),
        "stderr": nullable(nodes.stderr.tolist()),
        "samples": nodes.samples.tolist(),
        "advantage": nullable(torch.where(advantage.abs() > ZERO, advantage, 0 * advantage).tolist()),
        "trained": trained.tolist(),
    }
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    ids = torch.where(of_token >= 0, number[of_token.clamp(min=0)], -1)
    return [{"step": step, "method": method} | row for row in rows], ids


def leaf_rewards(node: Tensor, rewards: Tensor, number: int) -> Tensor:
    """float64 [N]: the reward of each row at its last node, 0 elsewhere. `node` long [B, T], -1 at padding."""
    length = (node >= 0).sum(dim=1)
    row = length.nonzero()[:, 0]
    at_leaves = torch.zeros(number, dtype=torch.float64, device=node.device)
    at_leaves[node[row, length[row] - 1]] = rewards[row].double()
    return at_leaves


def node_credit(parent: Tensor, rewards: Tensor, normalize: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """V, its standard error and Â of every node, each float32 [N] (in float64, so that equal values differ by 0).

    The children of a node are independent samples from its state, so their spread gives the error of their mean;
    NaN with fewer than two.
    """
    values, advantage = tree_advantages(parent, rewards, normalize)
    up, child = parent.clamp(min=0), parent >= 0
    square = torch.where(child, (values - values[up]).square(), 0)
    total, count = (torch.zeros_like(values).scatter_add(0, up, x) for x in (square, child.to(values)))
    error = torch.where(count > 1, (total / (count - 1).clamp(min=1) / count.clamp(min=1)).sqrt(), torch.nan)
    return values.float(), error.float(), torch.where(advantage.abs() > ZERO, advantage, 0).float()


def _unknown(tree: Tree) -> Tensor:
    return torch.full(tree.parent.shape, torch.nan, device=tree.parent.device)


def _count(group: Tensor) -> Tensor:
    """long [n]: how many entries of the same group stand before each."""
    return (group[:, None] == group).tril(-1).sum(dim=1)
