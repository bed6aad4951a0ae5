"""Trees: completions that branch as they are sampled. Every prefix, images included, is computed once.

Each node draws from a random stream of its own, named by its path, so the result does not depend on how trees are
batched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segpo_core.policy.inputs import Prompts
from segpo_core.sampling.sampler import Draw, Prefix, Sampler
from segpo_core.sampling.sharing import MAX_ROWS
from segpo_core.types import Rollouts, Tree, pad_rows


@dataclass
class Node:
    """A run of tokens that continues its parent's."""

    path: tuple[int, ...]  #: prompt, then the number of the branch at each level
    start: int  #: first token within the completion
    ids: Tensor  #: long [n]
    logprobs: Tensor  #: float32 [n]
    entropy: Tensor  #: float32 [n]
    finished: bool
    truncated: Tensor | None  #: float32 [n], as `Draw.truncated`


def grow_tree(
    sampler: Sampler,
    prompts: Prompts,
    branch: Sequence[int],
    segment_tokens: int,
    stream: tuple[int, ...],
    first: int = 0,
    max_rows: int = MAX_ROWS,
) -> Rollouts:
    """A tree for each prompt; one row a leaf, leaves in depth-first order, nodes numbered in that order too.

    From the prompt `branch[0]` segments of at most `segment_tokens` tokens are sampled, from each that did not end
    `branch[1]`, and so on; segments of the last level run to their end (SPO-tree, arXiv 2505.23564). A segment that
    ends with an EOS, or at `max_completion_length`, is a leaf at any level.

    Args:
        sampler, prompts: what samples, from what.
        branch: children of a node at each level.
        segment_tokens: longest segment above the last level.
        stream, first: as `Sampler.groups`. A node's stream is named (stream, prompt, branch at each level).
        max_rows: leaves sampled at once; the trees of one prompt stay together.
    """
    size = max(1, max_rows // math.prod(branch))
    nodes: list[Node] = []
    for begin in range(0, len(prompts), size):
        rows = list(range(begin, min(begin + size, len(prompts))))
        nodes += _grow(sampler, prompts, rows, branch, segment_tokens, stream, first)
    nodes.sort(key=lambda node: node.path)  # a prefix sorts before what continues it: depth first
    number = {node.path: i for i, node in enumerate(nodes)}
    parents = {node.path[:-1] for node in nodes}
    leaves = [node for node in nodes if node.path not in parents]
    lines = [[nodes[number[leaf.path[:depth]]] for depth in range(2, len(leaf.path) + 1)] for leaf in leaves]

    def joined(field: str) -> Tensor:
        return pad_rows([torch.cat([getattr(node, field) for node in line]) for line in lines])

    ids, device = joined("ids"), sampler.device
    lengths = torch.tensor([line[-1].start + len(line[-1].ids) for line in lines], device=device)
    finished = torch.tensor([leaf.finished for leaf in leaves], device=device)
    draw = Draw(ids, lengths, finished, joined("logprobs"), joined("entropy"), 0)
    if leaves[0].truncated is not None:
        draw.truncated = joined("truncated")
    rollouts = sampler.rollouts(draw, torch.tensor([leaf.path[0] for leaf in leaves], device=device))
    rollouts.node_ids = pad_rows(
        [torch.cat([node.ids.new_full(node.ids.shape, number[node.path]) for node in line]) for line in lines], -1
    )
    columns = zip(
        *((number.get(n.path[:-1], -1), n.path[0], n.start, n.start + len(n.ids)) for n in nodes), strict=True
    )
    rollouts.tree = Tree(*(torch.tensor(column, device=device) for column in columns))
    return rollouts


def _grow(
    sampler: Sampler,
    prompts: Prompts,
    rows: list[int],
    branch: Sequence[int],
    segment_tokens: int,
    stream: tuple[int, ...],
    first: int,
) -> list[Node]:
    """The nodes of the trees of some prompts, level by level."""
    state: Prefix | None = sampler.prefill(prompts, rows)
    empty, device = torch.zeros(0), sampler.device
    level = [Node((row,), 0, empty.long().to(device), empty.to(device), empty.to(device), False, None) for row in rows]
    nodes, start = list(level), 0
    for depth, children in enumerate(branch):
        left = sampler.max_completion_length - start
        limit = left if depth + 1 == len(branch) else min(segment_tokens, left)
        paths = [(*node.path, i) for node in level for i in range(children)]
        names = [(*stream, first + path[0], *path[1:]) for path in paths]
        copies = torch.arange(len(level), device=device).repeat_interleave(children)
        draw = sampler.continue_from(state.pick(copies), names, [limit] * len(names), keep=limit < left)
        ends = zip(paths, draw.lengths.tolist(), draw.finished.tolist(), strict=True)
        ids, logprobs, entropy, cut = draw.ids, draw.logprobs, draw.entropy, draw.truncated
        level = [
            Node(
                path, start, ids[i, :n], logprobs[i, :n], entropy[i, :n], finished, None if cut is None else cut[i, :n]
            )
            for i, (path, n, finished) in enumerate(ends)
        ]
        nodes += level
        level, state, start = [node for node in level if not node.finished], draw.state, start + limit
        if state is None:
            break
    return nodes
