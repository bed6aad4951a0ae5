"""Modules that moved into rooms in 0.2 and are still found under their old names, with a word about the new one."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

#: Old name -> new name, both below `segpo_core`. `policy` and `record` are rooms of these names now; they pass the
#: names of `policy.load` and `record.store` on themselves.
MOVED = {
    "branches": "sampling.branches", "chains": "sampling.chains", "generate": "sampling.generate",
    "nodes": "sampling.nodes", "packing": "policy.packing",
    "contrasts": "policy.contrasts", "corruptions": "policy.corruptions", "critic": "policy.critic",
    "inputs": "policy.inputs", "logprobs": "policy.logprobs", "sharding": "policy.sharding",
    "checkpoint": "training.checkpoint", "diagnostics": "training.diagnostics", "evaluate": "training.evaluate",
    "together": "training.together", "update": "training.update", "warmup": "training.warmup",
    "rewards": "tasks.rewards", "rows": "record.rows",
    "offline": "afterwards.credit", "probe": "afterwards.probe", "trained": "afterwards.trained",
}  # fmt: skip


class _Forwarding(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == "segpo_core" and name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        name = f"segpo_core.{MOVED[spec.name.partition('.')[2]]}"
        warnings.warn(f"{spec.name} is {name} since 0.2", DeprecationWarning, stacklevel=2)
        module = ModuleType(spec.name, f"The old name of `{name}`.")
        module.__dict__.update({k: v for k, v in vars(import_module(name)).items() if not k.startswith("__")})
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: the module ran under its new name."""


def install() -> None:
    """Let `import` find the old names. Once is enough; twice does no harm."""
    if not any(isinstance(finder, _Forwarding) for finder in sys.meta_path):
        sys.meta_path.append(_Forwarding())
