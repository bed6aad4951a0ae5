"""TRL's trainer with segment-level credit, recorded so that the app follows it.

    python examples/trl_credit.py runs/trl

The small policy of data/tiny-vlm on the shapes, 40 steps, a few minutes on two CPU cores. TRL samples, trains and logs;
the method says who earned what; `segpo app runs/` and `segpo report runs/trl` show it.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForImageTextToText
from trl import GRPOConfig

import segpo_core as sp
from segpo_core.algos import METHODS
from segpo_core.bridges.trl import RunRecorder, SegmentGRPOTrainer
from segpo_core.policy.load import find_model, load_processor


def problems(task: Any, number: int) -> Dataset:
    """Training problems as TRL wants them: every row with the same columns, the picture in `images`."""
    rows = [task.train(i) for i in range(number)]
    return Dataset.from_list([{name: row[name] for name in ("prompt", "images", "answer", "id")} for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", help="where the run is recorded")
    parser.add_argument("--method", default="tempo", choices=sorted(METHODS))
    parser.add_argument("--max-steps", type=int, default=40)
    args = parser.parse_args()

    task, place = sp.load_task("shapes"), find_model("data/tiny-vlm")
    trainer = SegmentGRPOTrainer(
        model=AutoModelForImageTextToText.from_pretrained(place, dtype=torch.float32),
        processing_class=load_processor(place),
        reward_funcs=task.reward_funcs,
        train_dataset=problems(task, 4 * args.max_steps),
        method=METHODS[args.method](),
        args=GRPOConfig(
            output_dir=f"{args.directory}-trl", max_steps=args.max_steps, learning_rate=2e-4, num_generations=8,
            per_device_train_batch_size=32, max_completion_length=96, logging_steps=1, save_strategy="no",
            report_to="none", bf16=False, use_cpu=not torch.cuda.is_available(), gradient_checkpointing=False,
        ),
    )  # fmt: skip
    RunRecorder(args.directory).attach(trainer)
    trainer.train()
    print("recorded in", args.directory)


if __name__ == "__main__":
    main()
