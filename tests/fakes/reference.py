"""The maths once more: slow loops over plain numbers, straight from the definitions. Only tests use them.

Rows are lists of the real tokens alone; there is no padding here.
"""

from __future__ import annotations

import math
import statistics

import torch
from torch import Tensor


def padded(rows: list[list], fill=0, dtype: torch.dtype = torch.float64, extra: int = 0) -> Tensor:
    """Rows of different length → [B, T + extra], right padded."""
    width = max(map(len, rows), default=0) + extra
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=dtype).reshape(len(rows), width)


def mask_of(rows: list[list], extra: int = 0) -> Tensor:
    return padded([[True] * len(row) for row in rows], False, torch.bool, extra)


def real(x: Tensor, rows: list[list]) -> list[list]:
    """The real tokens of a padded tensor as lists, shaped like `rows`."""
    return [x[b, : len(row)].tolist() for b, row in enumerate(rows)]


def top_entropy_ids(entropy: list[float], fraction: float) -> list[int]:
    """SAPO's cut: the ⌈fraction · T⌉ highest-entropy tokens end a segment, and so does the last token."""
    budget = math.ceil(round(fraction * len(entropy), 6))
    ranked = sorted(range(len(entropy)), key=lambda t: (-entropy[t], t))
    ends = set(ranked[:budget]) | {len(entropy) - 1}
    return ids_from_starts([t for t in range(len(entropy)) if t == 0 or t - 1 in ends], len(entropy))


def cutpoint_ids(probs: list[float], threshold: float, interval: int) -> list[int]:
    """SPO's cut: before cutpoints 1, 1 + interval, …"""
    cuts = [t for t, p in enumerate(probs) if p < threshold]
    return ids_from_starts(cuts[::interval], len(probs))


def ids_from_starts(starts: list[int], length: int) -> list[int]:
    ids, current = [], 0
    for t in range(length):
        current += t in starts and t > 0
        ids.append(current)
    return ids


def spans(ids: list[int]) -> list[range]:
    """The tokens of each segment."""
    return [range(ids.index(m), len(ids) - ids[::-1].index(m)) for m in range(max(ids, default=-1) + 1)]


def gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> tuple[list[float], list[float]]:
    advantages = [0.0] * len(rewards)
    following_advantage = following_value = 0.0
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + gamma * following_value - values[t]
        following_advantage = advantages[t] = delta + gamma * lam * following_advantage
        following_value = values[t]
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


def segment_gae(rewards, values, ids, gamma: float, lam: float, value_at: str) -> tuple[list[float], list[float]]:
    segments = spans(ids)
    r = [sum(rewards[t] for t in z) for z in segments]
    v = [values[z[0] if value_at == "start" else z[-1]] for z in segments]
    advantages, returns = gae(r, v, gamma, lam)
    return [advantages[m] for m in ids], [returns[m] for m in ids]


def group_relative(rewards: list[float], group: list[int], scale: str) -> list[float]:
    out = []
    for r, g in zip(rewards, group, strict=True):
        peers = [x for x, h in zip(rewards, group, strict=True) if h == g]
        std_of = peers if scale == "group" else rewards
        std = statistics.stdev(std_of) if len(std_of) > 1 else 0.0
        out.append((r - statistics.fmean(peers)) / (1.0 if scale == "none" else std + 1e-4))
    return out


def leave_one_out(rewards: list[float], group: list[int]) -> list[float]:
    out = []
    for i, r in enumerate(rewards):
        others = [x for j, x in enumerate(rewards) if j != i and group[j] == group[i]]
        out.append(r - statistics.fmean(others) if others else 0.0)
    return out


def value_difference(values: list[float], reward: float, ids: list[int]) -> list[float]:
    states = [*values[: max(ids) + 1], reward]
    return [states[m + 1] - states[m] for m in ids]


def tree_values(parent: list[int], rewards: list[float]) -> list[float]:
    def value(n: int) -> float:
        children = [c for c, p in enumerate(parent) if p == n]
        return statistics.fmean(map(value, children)) if children else rewards[n]

    return [value(n) for n in range(len(parent))]


def log_ratio(new: list[float], old: list[float], ids: list[int]) -> list[float]:
    """The mean log ratio of each token's segment. `ids` says the level."""
    mean = [statistics.fmean(new[t] - old[t] for t in z) for z in spans(ids)]
    return [mean[m] for m in ids]


def surrogate(log_rho: float, advantage: float, low: float, high: float, delta: float | None) -> float:
    """The clipped surrogate of one token, to be maximised."""
    rho = math.exp(log_rho)
    kept = min(rho * advantage, min(max(rho, 1 - low), 1 + high) * advantage)
    return max(kept, delta * advantage) if delta is not None and advantage < 0 else kept


def aggregate(rows: list[list[float]], loss_type: str, length: int) -> float:
    rows = [row for row in rows if row]
    if not rows:
        return 0.0
    if loss_type == "token-mean":
        return statistics.fmean(x for row in rows for x in row)
    if loss_type == "seq-mean-token-mean":
        return statistics.fmean(map(statistics.fmean, rows))
    mean_of_sums = statistics.fmean(map(sum, rows))
    return mean_of_sums / length if loss_type == "seq-mean-token-sum-norm" else mean_of_sums


def role_weights(perception, reasoning, role_ids: list[int], tau: float, clip: float, transform: str) -> list[float]:
    """SRPO's weights of one completion. A contrast is a list, or None."""
    signal = {}
    for t, role in enumerate(role_ids):
        contrast = {1: perception, 2: reasoning}.get(role)
        if contrast is not None:
            signal[t] = contrast[t]
    weights = [1.0] * len(role_ids)
    if signal:
        baseline = statistics.fmean(signal.values())
        u = {t: min(max((s - baseline) / tau, -clip), clip) for t, s in signal.items()}
        total = sum(map(math.exp, u.values()))
        for t in signal:
            weights[t] = {
                "exp": math.exp(u[t]),
                "sigmoid": 2 / (1 + math.exp(-u[t])),
                "softmax": len(u) * math.exp(u[t]) / total,
            }[transform]
    mean = statistics.fmean(weights)
    return [w / mean for w in weights]
