"""Make data/credit-truth: completions of several policies with the true value of every prefix.

    python benchmarks/credit/make_truth.py start=data/tiny-vlm step-000050=runs/grpo/checkpoints/step-000050 \
        step-000200=runs/grpo/checkpoints/step-000200

Later policies are stored beside the truth in float16, and sampled with those rounded weights. check.json says how the
values stand against plain sampling and against a second draw; `--only-check` makes that file alone again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from segpo_core.afterwards.bench_credit import check, truth
from segpo_core.policy.load import load_model, load_processor

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("policies", nargs="+", help="name=directory; the first is the start, which is not copied")
parser.add_argument("--out", default="data/credit-truth", type=Path)
parser.add_argument("--problems", type=int, default=12)
parser.add_argument("--size", type=int, default=8, help="completions a problem")
parser.add_argument("--number", type=int, default=400, help="N: continuations a unit of open probability")
parser.add_argument("--least-open", type=float, default=0.001)
parser.add_argument("--states", type=int, default=50, help="states of each policy to check by plain sampling")
parser.add_argument("--samples", type=int, default=256, help="plain continuations of each")
parser.add_argument("--only-check", action="store_true", help="the truth is there: check it again")
args = parser.parse_args()
models = {}
for place, item in enumerate(args.policies):
    name, _, source = item.partition("=")
    models[name] = str(args.out / name) if place else source
    if place and not args.only_check and source != models[name]:
        load_model(source).to(torch.float16).save_pretrained(models[name])
        load_processor(source).save_pretrained(models[name])
if not args.only_check:
    rows = []
    for place, (name, model) in enumerate(models.items()):
        first = 50_000 + place * args.problems
        rows += truth.make(model, name, range(first, first + args.problems), args.size, args.number, args.least_open)
        truth.write(args.out / "truth.parquet", rows)
        print(f"{name}: {len(rows)} rows so far", flush=True)

truths = truth.read(args.out, models)
errors = torch.cat([each.stderr[each.rollouts.mask] for each in truths]).double()
found = {
    "number": args.number,
    "least_open": args.least_open,
    "standard_error": dict(
        zip(
            ("median", "95%", "largest"),
            errors.quantile(torch.tensor([0.5, 0.95, 1.0], dtype=torch.float64)).tolist(),
            strict=True,
        )
    ),
    "second_draw": check.ceiling(truths, args.number, args.least_open),
}
print(json.dumps(found, indent=2), flush=True)
found["plain_samples"] = args.samples
found["against_plain_sampling"] = check.against_samples(truths, args.states, args.samples)
(args.out / "check.json").write_text(json.dumps(found, indent=2) + "\n")
print(json.dumps(found["against_plain_sampling"], indent=2))
