"""Values of settings, held against the annotations of the dataclass that they are for."""

from __future__ import annotations

import dataclasses
import math
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def typed(owner: type, name: str, value: Any) -> Any:
    """The value, of the type that the field's annotation says. YAML reads 1e-4 as text: number fields get their number.

    Raises:
        ValueError: it is of another type.
    """
    annotation = str(next(f.type for f in dataclasses.fields(owner) if f.name == name))
    if isinstance(value, str | int) and not isinstance(value, bool) and annotation.startswith("float"):
        try:
            value = float(value)
        except (ValueError, OverflowError):
            raise ValueError(f"{name} must be a number, not {value!r}") from None
    if not fits(value, get_type_hints(owner)[name]):
        raise ValueError(f"{name} must be {annotation.replace('Literal', 'one of ')}, not {value!r}")
    return value


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type, as far as settings have them."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in args)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in args)
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(fits(item, args[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if hint in (int, float):
        if isinstance(value, int):
            return not isinstance(value, bool) and abs(value) < 2**63  # more is no step, no size and no float
        return hint is float and isinstance(value, float) and math.isfinite(value)
    return isinstance(value, hint) if isinstance(hint, type) else True
