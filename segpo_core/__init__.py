"""Train (vision-)language models by reinforcement learning with segment-level credit assignment.

    import segpo_core as sp

    task = sp.load_task("shapes")
    sp.train(sp.TrainConfig(method="sapo", algo=sp.SAPO(lam=0.8), max_steps=100), task)

What is named here is imported when it is first used, so that `import segpo_core` costs nothing: torch and transformers
come with the first name that needs them.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from segpo_core import moved as _moved

if TYPE_CHECKING:
    from segpo_core.afterwards.credit import recompute
    from segpo_core.afterwards.trained import Policy
    from segpo_core.algos import (
        GRPO,
        GSPO,
        METHODS,
        PAPO,
        PGPO,
        PPO,
        RLOO,
        SAPO,
        SRPO,
        TEMPO,
        VCPPO,
        VPPO,
        CriticMethod,
        EntropyTokens,
        Forks,
        Method,
        SPOChain,
        SPOTree,
        TreeRL,
        VinePPO,
    )
    from segpo_core.config import TrainConfig
    from segpo_core.record.store import SchemaError
    from segpo_core.tasks import load_task
    from segpo_core.tasks.rewards import load_reward
    from segpo_core.training.loop import Trainer, train
    from segpo_core.types import Credit, Rollouts

try:
    __version__ = version("segpo")
except PackageNotFoundError:  # imported from a source tree that was not installed
    __version__ = "0+source"

#: Module -> the names that come from it.
_DOOR = {
    "afterwards.credit": ("recompute",),
    "afterwards.trained": ("Policy",),
    "algos": (
        "GRPO", "GSPO", "METHODS", "PPO", "RLOO", "SAPO", "SRPO", "CriticMethod", "Method", "SPOChain", "SPOTree",
        "VinePPO", "TEMPO", "VCPPO", "EntropyTokens", "TreeRL", "VPPO", "PGPO", "PAPO", "Forks",
    ),
    "config": ("TrainConfig",),
    "record.store": ("SchemaError",),
    "tasks": ("load_task",),
    "tasks.rewards": ("load_reward",),
    "training.loop": ("Trainer", "train"),
    "types": ("Credit", "Rollouts"),
}  # fmt: skip
_HOME = {name: module for module, names in _DOOR.items() for name in names}

__all__ = [
    "Credit", "CriticMethod", "EntropyTokens", "Forks", "GRPO", "GSPO", "METHODS", "Method", "PAPO", "PGPO", "PPO",
    "Policy", "RLOO", "Rollouts", "SAPO", "SPOChain", "SPOTree", "SRPO", "SchemaError", "TEMPO", "TrainConfig",
    "Trainer", "TreeRL", "VCPPO", "VPPO", "VinePPO", "load_reward", "load_task", "recompute", "train",
]  # fmt: skip

_moved.install()


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
