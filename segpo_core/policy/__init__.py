"""Models, what goes into them, and what they say about their own tokens."""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    # `segpo_core.policy` was one module until 0.2: its names are still found here
    if not name.startswith("__"):
        module = import_module("segpo_core.policy.load")
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
