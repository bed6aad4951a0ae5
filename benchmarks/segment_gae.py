"""How long segment GAE takes against token GAE on the same batch: `python benchmarks/segment_gae.py [--device cuda]`.

The two are timed in turn, so that whatever else the machine does hits both alike. The ratio should stay below 2.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch

from segpo_core.advantages import gae, segment_gae
from segpo_core.segments import entropy_topk


def seconds(work: Callable[[], object], device: str) -> float:
    """Wall-clock time of one call, the device's queue included."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(batch: int, tokens: int, fraction: float, repeats: int, device: str) -> tuple[float, float, float]:
    """Median seconds of token GAE and of segment GAE, and the median of their ratios."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(tokens // 2, tokens + 1, (batch, 1), generator=generator)
    mask = (torch.arange(tokens) < lengths).to(device)
    rewards, values, entropy = (torch.randn(batch, tokens, generator=generator).to(device) for _ in range(3))
    ids = entropy_topk(entropy, mask, fraction)
    token_times, segment_times = [], []
    for repeat in range(repeats + 3):
        token = seconds(lambda: gae(rewards, values, mask, 1.0, 0.99), device)
        segment = seconds(lambda: segment_gae(rewards, values, ids, 1.0, 0.99), device)
        if repeat >= 3:  # the first calls warm up
            token_times.append(token)
            segment_times.append(segment)
    ratios = [s / t for s, t in zip(segment_times, token_times, strict=True)]
    return median(token_times), median(segment_times), median(ratios)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--fraction", type=float, default=0.3)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    token, segment, ratio = measure(args.batch, args.tokens, args.fraction, args.repeats, args.device)
    print(
        f"{args.batch} x {args.tokens}, {args.fraction:.0%} boundaries, {args.device}, {args.threads} thread(s), "
        f"median of {args.repeats}: token GAE {token * 1e3:.2f} ms, segment GAE {segment * 1e3:.2f} ms, "
        f"ratio {ratio:.2f}"
    )
