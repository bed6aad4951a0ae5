"""Objects of one's own that a setting names: "file.py:name" or "package.module:name"."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

_SPEC = re.compile(r"(?:.+\.py|[^\W\d]\w*(?:\.[^\W\d]\w*)*):[^\W\d]\w*")


def names_code(setting: object) -> bool:
    """Whether a setting is the name of a Python object: what loads it runs what is in its file or module."""
    return isinstance(setting, str) and _SPEC.fullmatch(setting) is not None


def absolute(spec: str) -> str:
    """The same name from every folder: a file's place is written out; anything else stays as it is."""
    place, _, name = spec.rpartition(":")
    return f"{Path(place).resolve()}:{name}" if names_code(spec) and place.endswith(".py") else spec


def load_object(spec: str, what: str) -> Any:
    """The object that `spec` names. A file is read anew each time, as it is now.

    Args:
        spec: "file.py:name" or "package.module:name".
        what: kind of object, for messages: "reward function".

    Raises:
        ValueError: the file or module does not load, or has no such name; the message says what it has.
    """
    place, _, name = spec.rpartition(":")
    try:
        if place.endswith(".py"):
            module = _load_file(Path(place).resolve())
        else:
            _add_to_path(Path.cwd())
            module = importlib.import_module(place)
    except Exception as error:
        raise ValueError(f"{what} {spec!r}: cannot load {place}: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        own = [k for k, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__]
        known = ", ".join(k for k in own if not k.startswith("_")) or "none"
        raise ValueError(f"{what} {spec!r}: {place} has no {name}; it has: {known}")
    return getattr(module, name)


def spec_of(thing: Any) -> str | None:
    """The name by which `load_object` finds a class or function again; None for one that no file or module holds (made
    in a notebook, within a function, or an instance)."""
    name, module = getattr(thing, "__qualname__", ""), sys.modules.get(getattr(thing, "__module__", None) or "")
    if module is None or not name.isidentifier() or getattr(getattr(module, name, None), "__qualname__", "") != name:
        return None
    if module.__spec__ is not None and module.__name__ != "__main__" and "." in module.__name__:
        return f"{module.__name__}:{name}"
    try:
        file = inspect.getsourcefile(thing)  # a script, or a file that is found by its folder alone
    except (TypeError, OSError):  # OSError: of a notebook's cell there is no file
        return None
    return f"{Path(file).resolve()}:{name}" if file and Path(file).is_file() and file.endswith(".py") else None


def _load_file(file: Path) -> ModuleType:
    """The file as a module that can import its neighbours and be pickled."""
    _add_to_path(file.parent)
    name = file.stem
    there = importlib.util.find_spec(name) if name.isidentifier() else None
    if there is None or there.origin is None or Path(there.origin).resolve() != file:
        name = f"own_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"  # another module's name
    found = importlib.util.spec_from_file_location(name, file)
    if found is None or found.loader is None:
        raise ImportError("it is no Python file")
    module = importlib.util.module_from_spec(found)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pickle look there
    try:
        found.loader.exec_module(module)
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    return module


def _add_to_path(folder: Path) -> None:
    """At the end: a file of the folder must not hide a library."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
