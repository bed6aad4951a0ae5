"""Make data/credit-truth: completions of several policies with the true value of every prefix.

    python benchmarks/credit/make_truth.py start=data/tiny-vlm step-50=runs/grpo/checkpoints/step-000050 \
        step-200=runs/grpo/checkpoints/step-000200

Later policies are stored beside the truth in float16, and sampled with those rounded weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from segpo_core.afterwards.bench_credit import truth
from segpo_core.policy.load import load_model, load_processor

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("policies", nargs="+", help="name=directory; the first is the start, which is not copied")
parser.add_argument("--out", default="data/credit-truth", type=Path)
parser.add_argument("--problems", type=int, default=12)
parser.add_argument("--size", type=int, default=8, help="completions a problem")
parser.add_argument("--number", type=int, default=256, help="N: continuations a unit of open probability")
parser.add_argument("--least-open", type=float, default=0.01)
args = parser.parse_args()
rows = []
for place, item in enumerate(args.policies):
    name, _, model = item.partition("=")
    if place:
        source, model = model, str(args.out / name)
        load_model(source).to(torch.float16).save_pretrained(model)
        load_processor(source).save_pretrained(model)
    first = 50_000 + place * args.problems
    rows += truth.make(model, name, range(first, first + args.problems), args.size, args.number, args.least_open)
    truth.write(args.out / "truth.parquet", rows)
    largest = sorted(e for row in rows for e in row["stderr"])
    median, high = largest[len(largest) // 2], largest[len(largest) * 95 // 100]
    print(f"{name}: {len(rows)} rows; error {median:.4f} (median), {high:.4f} (95 %), {largest[-1]:.4f} (largest)")
