"""The arms: methods, and methods with one part exchanged, on the settings of configs/demo.yaml; the plan of runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from segpo_core.afterwards.bench_learn.variants import OneContrast, OtherCuts, WholeChain
from segpo_core.algos import Method
from segpo_core.config import TrainConfig, from_dict, load_yaml

#: One learning rate for all, that of the demo; and another, on one seed, which says what hangs on it.
RATE, OTHER_RATE = 2e-4, 4e-4
CHECKED = ("grpo", "sapo", "ppo", "spo_chain", "forks")  #: the first to be run with the other one
FASTER = ("forks", "spo_chain")  #: those that it suits better, on more seeds
SEEDS = (0, 1, 2, 3, 4)
#: Ablations have fewer.
ABLATION_SEEDS = (0, 1, 2)
EVAL_SIZE = 128


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    title: str
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    variant: type[Method] | None = None
    part: dict[str, Any] = field(default_factory=dict)  #: the variant's own settings
    steps: int = 30
    eval_steps: int = 10  #: chosen so that all arms are measured about every 20,000 tokens


# fmt: off
#: Steps are such that every method gets to the same budgets of tokens and of processor time.
METHODS: dict[str, Arm] = {
    "grpo": Arm("GRPO", "grpo"),
    "sapo": Arm("SAPO (segment-aligned)", "sapo"),
    "spo_chain": Arm("SPO-chain", "spo_chain", steps=20, eval_steps=5),
    "spo_tree": Arm("SPO-tree", "spo_tree", steps=56, eval_steps=14),
    "srpo": Arm("SRPO", "srpo"),
    "forks": Arm("Fork values", "forks", steps=25, eval_steps=5),
    "ppo": Arm("PPO", "ppo"),
    "rloo": Arm("RLOO", "rloo"),
    "gspo": Arm("GSPO", "gspo"),
    "vineppo": Arm("VinePPO", "vineppo", steps=20, eval_steps=5),
    "vcppo": Arm("VC-PPO", "vcppo", {"critic_warmup_steps": 5}),  # its 50 would be the whole run
}
ABLATIONS: dict[str, Arm] = {
    "sapo 4 updates": Arm("SAPO, 4 updates a step", "sapo", {"num_iterations": 4}, steps=15, eval_steps=5),
    "sapo 4 updates token": Arm("the same, token ratio", "sapo",
                                {"num_iterations": 4, "importance_sampling_level": "token"}, steps=15,
                                eval_steps=5),
    "srpo perception": Arm("SRPO, perception only", "srpo", variant=OneContrast, part={"role": "perception"}, steps=20),
    "srpo reasoning": Arm("SRPO, reasoning only", "srpo", variant=OneContrast, part={"role": "reasoning"}, steps=20),
    "spo_tree no mask": Arm("SPO-tree, no mask", "spo_tree", {"threshold": 1.1}, steps=42, eval_steps=14),
    "spo_chain no mask": Arm("SPO-chain, no mask", "spo_chain", variant=WholeChain, steps=15, eval_steps=5),
    "sapo cut probability": Arm("SAPO, cut at low probability", "sapo", variant=OtherCuts,
                                part={"cut": "probability"}, steps=20),
    "sapo cut steps": Arm("SAPO, cut at steps", "sapo", variant=OtherCuts, part={"cut": "steps"}, steps=20),
    "sapo cut fixed": Arm("SAPO, cut every 3 tokens", "sapo", variant=OtherCuts, part={"cut": "fixed"}, steps=20),
    "sapo k 0.1": Arm("SAPO, k = 10 %", "sapo", {"fraction": 0.1}, steps=20),
    "sapo k 0.6": Arm("SAPO, k = 60 %", "sapo", {"fraction": 0.6}, steps=20),
}
#: What was tried on top.
FURTHER: dict[str, Arm] = {
    "sapo lam 0.8": Arm("SAPO, λ = 0.8", "sapo", {"lam": 0.8}, steps=20),
    "sapo model": Arm("SAPO, critic of its own", "sapo", {"critic": "model", "critic_learning_rate": 5e-4}, steps=20),
    "sapo pretrained": Arm("SAPO, value pretraining", "sapo", {"critic_warmup_steps": 5}, steps=20),
    "spo_chain interval 1": Arm("SPO-chain, 1 cutpoint a segment", "spo_chain", {"interval": 1}, steps=15,
                                eval_steps=5),
}
# fmt: on
#: Arms of `segpo bench-credit` that stand for methods of which it measures another setting only.
RIGHTNESS = {"ppo": "ppo updates=300", "spo_tree": "spo_tree branch=(4,4)"}
ARMS = METHODS | ABLATIONS | FURTHER


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
    demo = load_yaml(root / "configs" / "demo.yaml")
    section = (demo.pop("methods", None) or {}).get(arm.method, {})  # what the arm says goes before it
    settings = demo | section | arm.settings | {
        "output_dir": str(directory), "model_name_or_path": str(root / demo["model_name_or_path"]), "seed": job.seed,
        "learning_rate": job.learning_rate, "max_steps": job.steps, "eval_steps": job.eval_steps,
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

    yield from jobs(METHODS, SEEDS[:3])
    yield from jobs(CHECKED, SEEDS[:1], OTHER_RATE)
    yield from jobs(FASTER, SEEDS[1:3], OTHER_RATE)
    for name in ABLATIONS:  # one after the other: an answer each
        yield from jobs((name,), ABLATION_SEEDS)
    yield from jobs(METHODS, SEEDS[3:4])
    for name in FURTHER:
        yield from jobs((name,), ABLATION_SEEDS)
    yield from jobs(METHODS, SEEDS[4:])
    yield from jobs([name for name in METHODS if name not in CHECKED], SEEDS[:1], OTHER_RATE)
