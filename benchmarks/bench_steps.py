"""What a step of each method costs, and of what.

    python benchmarks/bench_steps.py --width 2048 --layers 22 --dtype bfloat16 --batch 64 --length 512   # on a GPU

The model is LLaVA as data/tiny-vlm, wider and deeper, with random weights: good for speed and memory, for nothing else.
A completion's reward is a fair coin that its text decides, so that every method has something to learn from. Prints
seconds a step, in sampling, scoring, credit and update, and the GPU's peak memory; medians after the first step.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import zlib
from pathlib import Path
from statistics import median

import torch
from bench_contrasts import MODEL, hardware
from transformers import AutoConfig, AutoModelForImageTextToText

from segpo_core.algos import METHODS
from segpo_core.config import from_dict
from segpo_core.policy.load import load_processor
from segpo_core.record import store
from segpo_core.training.loop import train

PARTS = ("sample", "score", "credit", "update", "step")


def coin(prompts: list, completions: list, **columns: object) -> list[float]:
    """0 or 1 by the completion's text. TRL's reward signature."""
    return [float(zlib.crc32(str(completion).encode()) & 1) for completion in completions]


def make_model(path: Path, width: int, layers: int) -> int:
    """Write the model with random weights. Returns its number of parameters."""
    config = AutoConfig.from_pretrained(MODEL)
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = width, 4 * width, layers
    text.num_attention_heads = text.num_key_value_heads = max(1, width // 64)
    text.head_dim = 64
    if hasattr(text, "layer_types"):
        text.layer_types = ["full_attention"] * layers
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    model.generation_config = type(model.generation_config).from_pretrained(MODEL)
    model.save_pretrained(path)
    load_processor(MODEL).save_pretrained(path)
    return sum(p.numel() for p in model.parameters())


def main(args: argparse.Namespace) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        size = make_model(model, args.width, args.layers)
        print(f"{size / 1e9:.3f} billion parameters, random weights, {args.dtype}, {hardware(device)}")
        print(f"{args.batch} completions a step, {args.group} a prompt, at most {args.length} tokens")
        print("| method | " + " | ".join(PARTS) + " | GiB | tokens computed per token kept |")
        print("|---" * (len(PARTS) + 3) + "|")
        for method in args.methods or METHODS:
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            more = {"branch": (2, args.group // 2)} if method == "spo_tree" else {}
            run = Path(folder) / method
            train(
                from_dict(
                    {
                        "method": method, **more, "model_name_or_path": str(model), "dtype": args.dtype,
                        "output_dir": str(run), "num_generations": args.group, "max_completion_length": args.length,
                        "per_device_train_batch_size": args.micro,
                        "gradient_accumulation_steps": args.batch // args.micro,
                        "reward_funcs": ["bench_steps:coin"], "max_steps": args.steps, "eval_steps": 0,
                        "save_steps": 0, "record_steps": 0,
                    },
                    "bench_steps",
                )
            )  # fmt: skip
            numbers: dict[str, list[float]] = {}
            for row in store.read_metrics(run).to_pylist():
                if row["step"] > 1:
                    numbers.setdefault(row["name"], []).append(row["value"])
            times = " | ".join(f"{median(numbers[f'time/{part}']):.2f}" for part in PARTS)
            peak = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if device == "cuda" else "–"
            print(
                f"| {method} | {times} | {peak} | {median(numbers['tokens_computed_per_token_kept']):.1f} |", flush=True
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=32, help="completions a step")
    parser.add_argument("--micro", type=int, default=32, help="completions a pass")
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--methods", nargs="*")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main(parser.parse_args())
