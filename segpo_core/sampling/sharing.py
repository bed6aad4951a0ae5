"""How the rows of a tree share their tokens; nothing here needs a model."""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor

from segpo_core.types import Tree

#: Rows that are sampled together.
MAX_ROWS = 1024


def tree_of(node_ids: Tensor, group: Tensor) -> tuple[Tree, Tensor]:
    """The trees that rows form, and the rows' node ids in these trees' numbering: (tree of N nodes, long [B, T]).

    Works on rows of a tree, on some of them and on recorded ones: a node is where its id stands, whatever it was
    numbered. Nodes are numbered depth first if the rows stand so. A row of -1 alone is in no tree.

    Args:
        node_ids: long [B, T], -1 at padding; a number means one node within its group.
        group: long [B].
    """
    number: dict[tuple[int, int], int] = {}
    nodes: list[tuple[int, int, int, int]] = []
    renumbered = torch.full_like(node_ids, -1)

    def place(group: int, name: int, parent: int, start: int, end: int) -> int:
        if (group, name) not in number:
            number[group, name] = len(nodes)
            nodes.append((parent, group, start, end))
        return number[group, name]

    for b, (row, g) in enumerate(zip(node_ids.tolist(), group.tolist(), strict=True)):
        end, node = 0, -1
        for name, run in groupby(name for name in row if name >= 0):
            if end == 0:
                node = place(g, -1, -1, 0, 0)  # the root, which has no tokens
            start, end = end, end + sum(1 for _ in run)
            node = place(g, name, node, start, end)
            renumbered[b, start:end] = node
    columns = torch.tensor(nodes, dtype=torch.long, device=group.device).reshape(-1, 4).unbind(1)
    return Tree(*columns), renumbered
