"""Rewards and values to advantages.

Token-shaped results are [B, T] and 0 at padding; whatever stands at padding in the inputs (NaN included) has
no influence. `mask` is bool [B, T], right padded; `segment_ids` as in `segments`. `values[:, t]` is V
*before* token t. Shapes: B completions, T tokens, M segments, N tree nodes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from segpo_core import segments

# --- group baselines: one number a completion -----------------------------------------------------


def group_relative(
    rewards: Tensor, group: Tensor, scale: Literal["group", "batch", "none"] = "group", eps: float = 1e-4
) -> Tensor:
    """GRPO: (r − mean of the group) / (std + eps) → [B] (DeepSeekMath, arXiv 2402.03300, section 4.1.2).

    `group` [B] holds any integer label a prompt. The standard deviation is the unbiased one, of the group or
    of the whole batch, as in TRL; `scale="none"` leaves it out (Dr. GRPO). Equal rewards give exactly 0. A
    NaN reward (no verdict) stays out of every statistic and gets advantage 0.
    """
    return _centre(rewards, *_peers(rewards, group)) / group_scale(rewards, group, scale, eps)


def group_scale(
    rewards: Tensor, group: Tensor, scale: Literal["group", "batch", "none"] = "group", eps: float = 1e-4
) -> Tensor:
    """What `group_relative` divides by → [B]."""
    if scale not in ("group", "batch", "none"):
        raise ValueError(f"scale must be 'group', 'batch' or 'none', got {scale!r}")
    scored, peers = _peers(rewards, group)
    if scale == "none":
        return torch.ones_like(rewards)
    if scale == "batch":
        return (_variance(rewards, scored).sqrt() + eps).expand(rewards.shape)
    centred = _centre(rewards, scored, peers)
    return (_sum_over(peers, centred.square()) / (peers.sum(1) - 1).clamp(min=1)).sqrt() + eps


def leave_one_out(rewards: Tensor, group: Tensor) -> Tensor:
    """RLOO: r − mean of the others in the group → [B], 0 in a group of one (arXiv 2402.14740). NaN as above."""
    scored, peers = _peers(rewards, group)
    size = peers.sum(1)
    return _centre(rewards, scored, peers) * size / (size - 1).clamp(min=1)


# --- rewards at tokens ----------------------------------------------------------------------------


def token_rewards(rewards: Tensor, mask: Tensor, kl: Tensor | None = None, kl_coef: float = 0.0) -> Tensor:
    """Put the outcome reward [B] on the last real token and −kl_coef · kl [B, T] on every real one → [B, T]."""
    position = mask.cumsum(1)
    last = mask & (position == position[:, -1:])
    placed = torch.where(last, rewards[:, None], 0)
    return placed if kl is None else placed - kl_coef * torch.where(mask, kl, 0)


@torch.no_grad()
def gae(token_rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over tokens → (advantages, returns), both [B, T] (arXiv 1506.02438, eq. 16).

    δ_t = r_t + γ V_{t+1} − V_t with V = 0 after the last real token; A_t = Σ_l (γλ)^l δ_{t+l}; R_t = A_t + V_t.
    Both are constants to the gradient.
    """
    return _gae(torch.where(mask, token_rewards, 0), torch.where(mask, values, 0), gamma, lam)


@torch.no_grad()
def segment_gae(
    token_rewards: Tensor,
    values: Tensor,
    segment_ids: Tensor,
    gamma: float,
    lam: float,
    value_at: Literal["start", "end"] = "start",
) -> tuple[Tensor, Tensor]:
    """SAPO's GAE over segments → (advantages, returns), both [B, T], one number a segment (arXiv 2605.01327, eq. 6–7).

    Each segment is one step: r_m is the sum of its token rewards, V(s_m) the value before its first token
    (`value_at="start"`, the paper) or before its last token (`"end"`, the released code). Constants to the gradient.
    """
    if value_at not in ("start", "end"):
        raise ValueError(f"value_at must be 'start' or 'end', got {value_at!r}")
    read_here = segments.starts(segment_ids) if value_at == "start" else segments.ends(segment_ids)
    # Slot m + 1 is segment m. Slot 0 takes what stands at padding; GAE runs backwards, so it reaches no other slot.
    slot = segment_ids + 1
    shape = (len(values), 1 + _most_segments(segment_ids))
    rewards_m = values.new_zeros(shape).scatter_add_(1, slot, token_rewards)
    slot.mul_(read_here)  # in place: fresh memory for an index of this size costs more than the arithmetic
    values_m = values.new_zeros(shape).scatter_(1, slot, values)
    advantages_m, returns_m = _gae(rewards_m, values_m, gamma, lam)
    advantages_m[:, 0] = returns_m[:, 0] = 0
    torch.add(segment_ids, 1, out=slot)
    return advantages_m.gather(1, slot), returns_m.gather(1, slot)


# --- Monte Carlo chains and trees -----------------------------------------------------------------


def value_difference(
    values: Tensor,
    rewards: Tensor,
    segment_ids: Tensor,
    first_state: Literal["prompt", "release"] = "prompt",
    first_is_boundary: Tensor | None = None,
) -> Tensor:
    """SPO-chain and VinePPO: A_m = V̂(end of segment m) − V̂(its start) → [B, T] (arXiv 2505.23564).

    `values` [B, M] is V̂ of the prefix before each segment, column 0 the prompt's; columns beyond a row's
    segments are not read. The state after the last segment is worth the completion's own reward, `rewards`
    [B]. With `first_state="release"` the released code is followed: the first segment gets 0, and column 0 is
    not read, unless `first_is_boundary` [B] says that its first token is itself a cutpoint.
    """
    if first_state not in ("prompt", "release"):
        raise ValueError(f"first_state must be 'prompt' or 'release', got {first_state!r}")
    if first_state == "release" and first_is_boundary is None:
        raise ValueError("first_state='release' needs first_is_boundary: whether each first token is a cutpoint")
    rewards = rewards[:, None].to(values.dtype)
    last = torch.arange(values.shape[1], device=values.device) == (segments.count(segment_ids) - 1)[:, None]
    after = torch.where(last, rewards, torch.cat([values[:, 1:], rewards], dim=1))
    difference = after - values
    if first_is_boundary is not None and first_state == "release":
        first = torch.where(first_is_boundary[:, None], difference[:, :1], 0)
        difference = torch.cat([first, difference[:, 1:]], dim=1)
    return segments.spread(difference, segment_ids)


def tree_advantages(
    parent: Tensor, rewards: Tensor, normalize: bool = False, depth: int | None = None, eps: float = 1e-8
) -> tuple[Tensor, Tensor]:
    """SPO-tree: (V, Â) of every node, both [N] (arXiv 2505.23564).

    `parent` long [N], −1 at a root; several trees may share the tensors. V of a leaf is its reward (`rewards`
    [N] is not read elsewhere), of an inner node the mean of its children. Â(n) = V(n) − V(parent), with
    `normalize` divided by the population standard deviation of the parent's children + eps; 0 at a root.
    `depth` is the longest path from a root to a leaf, in edges; leaving it out costs a look at the data.
    """
    depth = _depth(parent) if depth is None else depth
    root, up = parent < 0, parent.clamp(min=0)

    def children_sum(x: Tensor) -> Tensor:
        return torch.zeros_like(x).scatter_add(0, up, torch.where(root, 0, x))

    def children_mean(x: Tensor) -> Tensor:  # counted from the lowest child: exact where all children are equal
        lowest = torch.full_like(x, torch.inf).scatter_reduce(0, up, torch.where(root, torch.inf, x), "amin")
        lowest = torch.where(leaf, 0, lowest)
        return lowest + children_sum(x - lowest[up]) / children

    children = children_sum(torch.ones_like(rewards))
    leaf, children = children == 0, children.clamp(min=1)
    values = torch.where(leaf, rewards, 0)
    for _ in range(depth):  # each pass brings the means one level closer to the root
        values = torch.where(leaf, rewards, children_mean(values))
    difference = torch.where(root, 0, values - values[up])
    if normalize:
        difference = difference / ((children_sum(difference.square()) / children).sqrt()[up] + eps)
    return values, difference


def tree_rl_advantages(parent: Tensor, values: Tensor, depth: int | None = None) -> Tensor:
    """TreeRL: [(V(n) − V(root)) + (V(n) − V(parent))] / √(leaves under n) of every node → [N], 0 at a root.

    `parent` and `depth` as in `tree_advantages`, which gives `values` [N] (arXiv 2506.11902, section 3.3).
    """
    depth = _depth(parent) if depth is None else depth
    root, up = parent < 0, parent.clamp(min=0)
    origin = torch.where(root, torch.arange(len(parent), device=parent.device), up)
    leaf = torch.zeros_like(values).scatter_add(0, up, torch.where(root, 0.0, 1.0).to(values)) == 0
    leaves = leaf.to(values.dtype)
    for _ in range(depth):  # each pass brings the root one level closer, and the counts one level up
        origin = origin[origin]
        below = torch.zeros_like(leaves).scatter_add(0, up, torch.where(root, 0, leaves))
        leaves = torch.where(leaf, 1, below)
    difference = 2 * values - values[origin] - values[up]
    return torch.where(root, 0, difference / leaves.clamp(min=1).sqrt())


# --- statistics -----------------------------------------------------------------------------------


def whiten(x: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """Shift and scale the masked values of `x` to mean 0 and unbiased variance 1; 0 elsewhere.

    Fewer than two values come back as they are.
    """
    enough = mask.sum() >= 2
    whitened = _centre_all(x, mask) * (_variance(x, mask) + eps).rsqrt()
    return torch.where(mask, torch.where(enough, whitened, x), 0)


# --- inside ---------------------------------------------------------------------------------------


def _most_segments(segment_ids: Tensor) -> int:
    """Room for the segments of any row. Counting them would wait for an accelerator: there, one a token."""
    on_cpu = segment_ids.device.type == "cpu" and segment_ids.numel() > 0
    return int(segment_ids.amax()) + 1 if on_cpu else segment_ids.shape[1]


def _gae(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """GAE over the columns of two [B, S] tensors that are 0 after the last step of a row."""
    delta = rewards - values
    delta[:, :-1].add_(values[:, 1:], alpha=gamma)
    advantages = _discounted_sum(delta, gamma * lam)
    return advantages, advantages + values


def _discounted_sum(x: Tensor, decay: float) -> Tensor:
    """Σ_l decay^l x_{t+l} along the last axis, in log₄ T rounds: the k-th joins four sums of 4^(k−1) terms each."""
    reach = 1
    while reach < x.shape[1]:
        sums = x.clone()
        for ahead in range(reach, min(4 * reach, x.shape[1]), reach):
            sums[:, :-ahead].add_(x[:, ahead:], alpha=decay**ahead)
        x, reach = sums, 4 * reach
    return x


def _peers(rewards: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """(bool [B] has a reward, bool [B, B] the column is scored and in the row's group)."""
    scored = ~rewards.isnan()
    return scored, (group[:, None] == group[None, :]) & scored[None, :]


def _sum_over(peers: Tensor, x: Tensor) -> Tensor:
    """Sum of `x` [B] over each row's peers → [B]. No matrix product: that would be rounded under autocast or TF32."""
    return torch.where(peers, x[None, :], 0).sum(1)


def _centre(rewards: Tensor, scored: Tensor, peers: Tensor) -> Tensor:
    """Reward minus the mean of the group. Counting from the group's lowest reward makes equal rewards exactly 0."""
    lowest = torch.where(peers, rewards[None, :], torch.inf).amin(1)
    above = torch.where(scored, rewards - lowest, 0)
    return torch.where(scored, above - _sum_over(peers, above) / peers.sum(1).clamp(min=1), 0)


def _centre_all(x: Tensor, mask: Tensor) -> Tensor:
    """`x` minus its masked mean, 0 elsewhere. The second round removes the rounding error of the first mean."""
    size = mask.sum().clamp(min=1)
    x = torch.where(mask, x, 0)
    x = torch.where(mask, x - x.sum() / size, 0)
    return torch.where(mask, x - x.sum() / size, 0)


def _variance(x: Tensor, mask: Tensor) -> Tensor:
    """Unbiased variance of the masked values, 0-dim; 0 for fewer than two."""
    return _centre_all(x, mask).square().sum() / (mask.sum() - 1).clamp(min=1)


def _depth(parent: Tensor) -> int:
    """The longest path in a forest of parent pointers, in edges."""
    depth, ancestor = -1, torch.arange(len(parent), device=parent.device)
    while bool((ancestor >= 0).any()):
        ancestor = torch.where(ancestor >= 0, parent[ancestor.clamp(min=0)], -1)
        depth += 1
        if depth > len(parent):
            raise ValueError("parent is not a forest: some node is its own ancestor")
    return max(depth, 0)
