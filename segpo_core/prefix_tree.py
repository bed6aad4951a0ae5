"""The prefix tree of a group's completions, and the value of its states from known branch probabilities.

A state is a prefix, the prompt included. Completions of a group that begin alike share their states. The policy's own
probabilities say how likely each branch of the tree is, so a state's value is computed, not counted:

    V(s) = Σ_c π(c|s) V(sc) + (1 − Σ_c π(c|s)) · V_off(s)

over the children c that the tree holds; a state in which a completion ended is worth its reward. V_off is the value of
everything else the policy might have said, known from continuations that begin with none of the children; where none
were sampled, it is taken to be as the children's.

TEMPO (arXiv 2509.18314) takes the mean over the completions below a prefix instead, without probabilities and without
sampling; TreeRL (arXiv 2506.11902) and SPO-tree (arXiv 2505.23564) the mean over sampled children. Summing over
actions with their probabilities is the idea of expected and all-action policy gradients (arXiv 1706.05374).

Shapes: B completions, T tokens, N states. No loop over rows or tokens; float64 inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PrefixTree:
    """N states of the prefix trees of P groups; state 0 … P − 1 are the prompts."""

    before: Tensor  #: long [B, T], state before each token, -1 at padding and in rows that are in no tree
    after: Tensor  #: long [B, T], state after each token, -1 likewise
    parent: Tensor  #: long [N], -1 at prompts
    prob: Tensor  #: float64 [N], π(last token | parent), 1 at prompts
    reward: Tensor  #: float64 [N], of the completions that ended here, their mean; NaN where none did
    row: Tensor  #: long [N], the first completion that holds the state
    length: Tensor  #: long [N], its tokens

    @property
    def open(self) -> Tensor:
        """float64 [N]: probability of what the tree does not hold after each state, 0 where a completion ended."""
        child = self.parent >= 0
        held = torch.zeros_like(self.prob).scatter_add(0, self.parent[child], self.prob[child])
        return torch.where(self.reward.isnan(), (1 - held).clamp(0, 1), 0)

    @property
    def children(self) -> Tensor:
        """long [N]: how many children the tree holds."""
        child = self.parent >= 0
        return torch.zeros_like(self.parent).scatter_add(0, self.parent[child], torch.ones_like(self.parent[child]))


def prefix_tree(ids: Tensor, mask: Tensor, group: Tensor, logprobs: Tensor, rewards: Tensor) -> PrefixTree:
    """The tree of completions, whatever made them: groups of any size, or leaves of a sampled tree.

    A completion without verdict (reward NaN) is left out: what it alone did belongs to the open probability.

    Args:
        ids: long [B, T]; mask: bool [B, T]; group: long [B].
        logprobs: [B, T], at the temperature of sampling.
        rewards: [B].
    """
    judged = ~rewards.isnan()
    mask = mask & judged[:, None]
    rows, inverse, new = _sorted(ids, mask, group)
    real = rows >= 0
    real[:, 0] = True
    new &= real
    owner = torch.where(new, torch.arange(len(rows), device=ids.device)[:, None], -1).cummax(dim=0).values
    # Prompts first, then depth first.
    prompts = int(new[:, 0].sum())
    number = torch.full_like(rows, -1)
    number[:, 0] = new[:, 0].cumsum(0) - 1
    rest = new[:, 1:]
    number[:, 1:] = prompts - 1 + rest.flatten().cumsum(0).view_as(rest)
    state = torch.where(real, number.gather(0, owner.clamp(min=0)), -1)

    count = prompts + int(rest.sum())
    of_row = state[inverse]
    before, after = of_row[:, :-1], of_row[:, 1:]
    before, after = (torch.where(mask, x, -1) for x in (before, after))
    held = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
    holder, column = held.nonzero().unbind(1)
    row = torch.full((count,), len(ids), device=ids.device).scatter_reduce(0, of_row[held], holder, "amin")
    length = torch.zeros_like(row).scatter_reduce(0, of_row[held], column, "amax")
    parent = torch.full_like(row, -1).scatter(0, after[mask], before[mask])
    child = parent >= 0
    prob = torch.ones(count, dtype=torch.float64, device=ids.device)
    prob[child] = logprobs[row[child], length[child] - 1].double().exp()
    end = of_row.gather(1, mask.sum(1, keepdim=True))[:, 0][judged & mask.any(1)]
    total, number_of = (prob.new_zeros(count) for _ in range(2))
    total.scatter_add_(0, end, rewards[judged & mask.any(1)].double())
    number_of.scatter_add_(0, end, torch.ones_like(end, dtype=torch.float64))
    reward = torch.where(number_of > 0, total / number_of.clamp(min=1), torch.nan)
    return PrefixTree(before, after, parent, prob, reward, row, length)


def prefix_values(ids: Tensor, mask: Tensor, rewards: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """TEMPO: V of every prefix, the mean reward of the group's completions that begin with it → ([B, T + 1], their
    number, long [B, T + 1]) (arXiv 2509.18314, prefix to tree).

    Column t is the prefix before token t, column T what the whole row is. Beyond a completion's end the last value
    stays. A NaN reward (no verdict) counts nowhere; NaN where only such begin so. In the rewards' own precision.

    Args:
        ids: long [B, T]; mask: bool [B, T]; rewards: [B]; group: long [B].
    """
    rows, inverse, new = _sorted(ids, mask, group)
    first = torch.where(new, torch.arange(len(rows), device=ids.device)[:, None], -1).cummax(dim=0).values
    place = torch.arange(mask.shape[1] + 1, device=ids.device)
    here = torch.minimum(place, mask.sum(1, keepdim=True))
    state = first[inverse].gather(1, here) * len(place) + here
    counts = ~rewards.isnan()[:, None] & (place == here)  # each row once in every state that it passes
    passed, row = state[counts], counts.nonzero()[:, 0]
    number = torch.zeros(first.numel(), dtype=torch.long, device=ids.device)
    number.index_add_(0, passed, torch.ones_like(passed))
    # Counted from one of the state's own rewards: where all agree, the value is that very reward and differences are 0.
    one = rewards.new_zeros(len(number)).scatter_reduce(0, passed, rewards[row], "amax", include_self=False)
    above = torch.zeros_like(one).index_add_(0, passed, rewards[row] - one[passed])
    value = torch.where(number > 0, one + above / number.clamp(min=1), torch.nan)
    return value[state], number[state]


def _sorted(ids: Tensor, mask: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(rows long [R, T + 1], which of them each completion is, bool [R, T + 1]): the different completions, their group
    before their tokens, -1 at padding, sorted. Those that begin alike are neighbours, so a prefix is one run of rows in
    its column, and the last tensor says where such a run begins."""
    table = torch.cat([group[:, None], torch.where(mask, ids, -1)], dim=1)
    rows, inverse = table.unique(dim=0, return_inverse=True)
    new = torch.ones_like(rows, dtype=torch.bool)
    new[1:] = ~(rows[1:] == rows[:-1]).cumprod(dim=1).bool()
    return rows, inverse, new


def tree_values(tree: PrefixTree, off: Tensor, off_variance: Tensor) -> tuple[Tensor, Tensor]:
    """(V, its variance) of every state, both float64 [N]; NaN where nothing is known below a state.

    The variance comes from V_off alone and goes up the tree with the squares of the probabilities; it is 0 where
    nothing was sampled, which is exact only as far as what was left out is as the children are.

    Args:
        off: float64 [N], V_off; NaN: not sampled.
        off_variance: float64 [N], of V_off.
    """
    ended, sampled = ~tree.reward.isnan(), ~off.isnan()
    child = tree.parent >= 0
    up = tree.parent.clamp(min=0)
    held = torch.zeros_like(tree.prob).scatter_add(0, up, torch.where(child, tree.prob, 0))
    # A sampled rest has the probability that is left; an unsampled one is spread over the children.
    scale = torch.where(sampled & (held < 1), 1, held).clamp(min=torch.finfo(held.dtype).tiny)
    weight = torch.where(child & ~ended[up], tree.prob / scale[up], 0)
    own = torch.where(ended, tree.reward, torch.where(sampled, (1 - held).clamp(0, 1) * off, 0))
    spread = torch.where(sampled & ~ended, (1 - held).clamp(0, 1).square() * off_variance, 0)
    unknown = ~ended & ~sampled & (tree.children == 0)
    own = own.masked_fill(unknown, torch.nan)
    return tree_sum(tree.parent, weight, own), tree_sum(tree.parent, weight.square(), spread)


def tree_sum(parent: Tensor, weight: Tensor, own: Tensor) -> Tensor:
    """x(n) = own(n) + Σ over children c of weight(c) x(c), [N]: in log₂(depth) rounds.

    Each round adds what comes from twice as far below: with M the step from children to parents,
    Σ_{j<2k} Mʲ = (1 + Mᵏ) Σ_{j<k} Mʲ, and a power of M is again one ancestor and one weight a node.
    """
    total, ancestor, weight = own, parent, torch.where(parent >= 0, weight, 0)
    while bool((ancestor >= 0).any()):
        there = ancestor >= 0
        up = ancestor.clamp(min=0)
        total = total.scatter_add(0, up, torch.where(there, weight * total, 0))
        weight = torch.where(there, weight * weight[up], 0)
        ancestor = torch.where(there, ancestor[up], -1)
    return total


def off_estimate(rewards: Tensor, state: Tensor, group: Tensor, tree: PrefixTree) -> tuple[Tensor, Tensor]:
    """V_off of the sampled states and its variance, both float64 [N], NaN where no continuation has a verdict.

    A state has few continuations, often one, so its own spread says little: the spread of all rewards of its group,
    its completions' included, counts as one more observation of it. Var = (Σ (r − mean)² + σ²_group) / n².

    Args:
        rewards: [K], of continuations, NaN without verdict; state: long [K], where each began.
        group: long [N], the prompt (a state's number) of each state.
        tree: of N states.
    """
    known = ~rewards.isnan()
    r, s = rewards[known].double(), state[known]
    empty = torch.zeros_like(tree.prob)
    n = empty.scatter_add(0, s, torch.ones_like(r))
    mean = empty.scatter_add(0, s, r) / n
    squares = empty.scatter_add(0, s, (r - mean[s]).square())
    ended = ~tree.reward.isnan()
    everything, of_group = torch.cat([r, tree.reward[ended]]), torch.cat([group[s], group[ended]])
    number = empty.scatter_add(0, of_group, torch.ones_like(everything))
    centre = empty.scatter_add(0, of_group, everything) / number
    sigma2 = empty.scatter_add(0, of_group, (everything - centre[of_group]).square()) / number
    return mean, (squares + sigma2[group]) / n.square()


def roots(tree: PrefixTree) -> Tensor:
    """long [N]: the prompt of each state."""
    at = torch.arange(len(tree.parent), device=tree.parent.device)
    up = torch.where(tree.parent >= 0, tree.parent, at)
    while not torch.equal(further := up[up], up):
        up = further
    return up


def shared_beginnings(ids: Tensor, mask: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """How completions share what they begin with: (long [B], the rows in depth-first order; long [B, T] node ids).

    Each token is a node of its own, and the same one in all completions of its group that agree up to and with it; -1
    at padding. ids: long [B, T]; mask: bool [B, T]; group: long [B].
    """
    table = torch.cat([group[:, None], torch.where(mask, ids, -1)], dim=1)
    rows, place = table.unique(dim=0, return_inverse=True)  # sorted: those that begin alike are neighbours
    new = torch.ones_like(rows, dtype=torch.bool)
    new[1:] = (rows[1:] == rows[:-1]).cumprod(dim=1) == 0
    column = torch.arange(rows.shape[1], device=ids.device)
    owner = torch.where(new, torch.arange(len(rows), device=ids.device)[:, None], -1).cummax(dim=0).values
    node = (owner * rows.shape[1] + column)[place, 1:]
    return place.argsort(stable=True), torch.where(mask, node, -1)


def first_holders(node_ids: Tensor) -> Tensor:
    """True at the tokens of each node in the first row that holds it, bool [B, T]: every token of a tree once."""
    held = node_ids >= 0
    row = torch.arange(len(node_ids), device=node_ids.device)[:, None].expand_as(node_ids)
    nodes = max(int(node_ids.max()) + 1, 1)  # without a node, room for none
    owner = row.new_full((nodes,), len(node_ids)).scatter_reduce(0, node_ids[held], row[held], "amin")
    return held & (owner[node_ids.clamp(min=0)] == row)
