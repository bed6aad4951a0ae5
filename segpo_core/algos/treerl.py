"""TreeRL (arXiv 2506.11902): a node of a tree earns what it is above the root and above its parent, together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from segpo_core.advantages import tree_rl_advantages
from segpo_core.algos.spo_tree import SPOTree


@dataclass(frozen=True)
class TreeRL(SPOTree):
    """TreeRL's advantage, on the trees of SPO."""

    name: ClassVar[str] = "treerl"
    title: ClassVar[str] = "TreeRL"

    threshold: float = 1.0
    """Only tokens of a lower probability enter the loss; at 1, all but those without an alternative."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalize:
            raise ValueError("normalize divides by the siblings' deviation; TreeRL divides by the root of its leaves")

    def of_nodes(self, parent: Tensor, values: Tensor, advantage: Tensor) -> Tensor:
        """Â(n) = [(V(n) − V(root)) + (V(n) − V(parent))] / √(leaves under n)."""
        return tree_rl_advantages(parent, values)
