"""`make torture`: the long form. Prints what went wrong, and puts the figures into benchmarks/RESULTS.md."""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from segpo_core.algos import GRPO
from segpo_core.training.loop import Trainer
from tests.fakes import families
from tests.fakes.fake_run import write_run
from tests.fakes.toy import ToyTask
from tests.torture import attempts
from tests.torture.test_files import tried
from tests.training.test_loop import config_for

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "RESULTS.md"
BEGIN, END = "<!-- torture -->", "<!-- /torture -->"

#: What is made wrong -> how often.
NUMBERS = {
    "run directories, in every view": 750, "run directories, `segpo credit`": 250, "YAML settings": 700,
    "verl dumps": 500, "TRL dumps": 400, "data sets": 788,
}  # fmt: skip


def kinds(place: Path) -> dict[str, Callable]:
    shown = write_run(place / "shown", steps=6, groups=2, samples=2)
    config = config_for(families.llama(place / "model"), place / "trained", GRPO(), max_steps=2)
    trained = Trainer(config, task=ToyTask(images=False)).run()
    settings = place / "settings.yaml"
    settings.write_text(json.dumps({"method": "sapo", "max_steps": 10, "learning_rate": 1e-4}))
    every = (
        lambda path, seed: attempts.run_views(shown, path, seed),
        lambda path, seed: attempts.run_credit(trained, path, seed),
        lambda path, seed: attempts.settings(settings, path, seed),
        lambda path, seed: attempts.dump("verl", path, seed),
        lambda path, seed: attempts.dump("trl", path, seed),
        attempts.data_set,
    )
    return dict(zip(NUMBERS, every, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the first file")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual numbers")
    args = parser.parse_args()
    lines, wrong = ["| made wrong, by seed | tried | neither worked nor said in words |", "|---|---|---|"], 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name, attempt in kinds(place).items():
            number = max(1, round(NUMBERS[name] * args.share))
            found = tried(attempt, number, place / "it", args.seed)
            for seed, why in found.items():
                print(f"{name}, seed {seed}: {why}", flush=True)
            lines.append(f"| {name} | {number} | {len(found)} |")
            print(lines[-1], flush=True)
            wrong += len(found)
    figures = "\n".join([BEGIN, f"From seed {args.seed}.", "", *lines, END])
    text = RESULTS.read_text(encoding="utf-8")
    RESULTS.write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: figures, text, flags=re.DOTALL), encoding="utf-8")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
