"""How much each role's tokens owe to the image, for every way to corrupt it: `python benchmarks/bench_contrasts.py`.

Samples completions of held-out `shapes` problems from the embedded policy and scores them again with corrupted images.
A good corruption moves the perception tokens' log-probabilities and nearly leaves the reasoning tokens' alone, as these
read the written perception. The last line is the other contrast: the reasoning tokens without their perception block.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import torch
from torch import Tensor

from segpo_core.policy import load
from segpo_core.policy.contrasts import contrasts, corrupted, logprobs
from segpo_core.policy.corruptions import KINDS
from segpo_core.policy.critic import ActorCritic
from segpo_core.policy.inputs import Prompts
from segpo_core.sampling.generate import InProcess
from segpo_core.segments import PERCEPTION, REASONING, role_ids
from segpo_core.tasks.shapes import ShapesTask

MODEL = Path(__file__).resolve().parents[1] / "data" / "tiny-vlm"


def hardware(device: str) -> str:
    """What the numbers were measured on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.open() if "model name" in line] if info.exists() else []
    return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} thread(s)"


def main(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    model, processor = load.load_model(args.model, device=args.device), load.load_processor(args.model)
    suppressed = load.suppressed_token_ids(model, processor)
    network = ActorCritic(model, suppressed).to(args.device)
    eos = load.eos_token_ids(model, processor)
    sampler = InProcess(model, load.get_tokenizer(processor), eos, suppressed, max_completion_length=args.tokens)
    examples = [ShapesTask().eval(i) for i in range(args.prompts)]
    prompts = Prompts.build(examples, processor, model.config)
    rollouts = sampler.groups(prompts, args.generations, (args.seed, 0))
    rollouts.old_logprobs = logprobs(network, prompts, rollouts, rollouts.mask)
    role, well_formed = role_ids(rollouts.pieces, rollouts.mask)
    perception, reasoning = role == PERCEPTION, role == REASONING
    print(
        f"{Path(args.model).name} on {hardware(args.device)}: {len(rollouts)} completions of {len(prompts)} prompts, "
        f"{int(well_formed.sum())} well formed, {int(perception.sum())} perception, {int(reasoning.sum())} reasoning "
        "tokens"
    )

    def size(contrast: Tensor, at: Tensor) -> float:
        return contrast[at].abs().mean().item()

    print("\nimage     mean |d| perception   mean |d| reasoning   ratio   seconds\n" + "-" * 68)
    for kind in KINDS:
        begin = time.perf_counter()
        blind = Prompts.build(corrupted(examples, kind, (args.seed,)), processor, model.config)
        d = rollouts.old_logprobs - logprobs(network, blind, rollouts, rollouts.mask)
        seen, thought = size(d, perception), size(d, reasoning)
        seconds = time.perf_counter() - begin
        print(f"{kind:<8} {seen:>20.3f} {thought:>20.3f} {seen / thought:>7.1f} {seconds:>9.2f}")
    _, c = contrasts(network, examples, prompts, rollouts, processor, stream=(args.seed,))
    print(f"\nperception block taken out: mean |c| at reasoning tokens {size(c, reasoning):.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--generations", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256, help="limit of a completion")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    main(parser.parse_args())
