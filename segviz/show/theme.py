"""Colours, scales and names that every view shares.

Credit is blue above zero and orange below, on a scale symmetric around zero. Colour is never alone: a token with
positive credit carries a bar on its upper edge, one with negative credit on its lower edge, as thick as the credit is
large.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

LEVELS = 10  #: shades on each side of zero

POSITIVE, NEGATIVE = (37, 99, 235), (234, 88, 12)  #: rgb; see-through, so that they sit on light and dark paper alike
SEQUENTIAL = (13, 148, 136)

#: css variable -> (light, dark)
PALETTE = {
    "paper": ("#fbfaf8", "#14161a"),
    "card": ("#ffffff", "#1b1e24"),
    "sunk": ("#f3f1ed", "#22262d"),
    "ink": ("#1c1d21", "#e9e9e6"),
    "soft": ("#5b5e66", "#a6abb5"),
    "faint": ("#686b73", "#8d939f"),
    "line": ("#e3e0da", "#30353e"),
    "edge": ("#b9b5ad", "#525966"),
    "focus": ("#1c1d21", "#f4f4f0"),
    "pos": ("#1d4ed8", "#7ba4ff"),
    "neg": ("#b93c06", "#ff9d5c"),
    "seq": ("#0f766e", "#4fd1c5"),
    "error": ("#b00d4c", "#ff7aa8"),
    "good": ("#146c43", "#6fd6a0"),
    "hatch": ("#00000017", "#ffffff1c"),
    "s0": ("#4f46c8", "#a5a0ff"),
    "s1": ("#0b7a75", "#4fd1c5"),
    "s2": ("#b3266b", "#ff86b8"),
    "s3": ("#8a6100", "#e5b94b"),
    "s4": ("#4b5563", "#b7bfcc"),
}

#: Method -> how it is called where a person reads it.
METHODS = {
    "ppo": "PPO",
    "grpo": "GRPO",
    "gspo": "GSPO",
    "rloo": "RLOO",
    "vineppo": "VinePPO",
    "forks": "Fork values",
    "sapo": "SAPO (segment-aligned)",  # TRL's loss_type="sapo" is another method
    "srpo": "SRPO",
    "spo_chain": "SPO-chain",
    "spo_tree": "SPO-tree",
    "vcppo": "VC-PPO",
    "entropy_tokens": "80/20 (high-entropy tokens)",
    "tempo": "TEMPO",
    "treerl": "TreeRL",
    "vppo": "VPPO",
    "pgpo": "PGPO",
    "papo": "PAPO",
}


def method_label(method: str | None) -> str:
    """How a method is called where a person reads it."""
    if not method:
        return "method not recorded"
    return METHODS.get(method.lower().replace("-", "_"), method)


def symmetric_limit(values: Sequence[float | None], trained: Sequence[bool] | None = None) -> float:
    """Half width of a scale around 0: the largest size among trained tokens. 0 where there is none.

    A token that is kept out of the loss must not stretch the scale, nor one whose credit is missing or not finite.
    """
    sizes = [
        abs(value)
        for i, value in enumerate(values)
        if value is not None and math.isfinite(value) and (trained is None or trained[i])
    ]
    return max(sizes, default=0.0)


def level(value: float, limit: float) -> int:
    """-LEVELS … LEVELS, 0 only for (almost) no credit: a small credit still shows."""
    if limit <= 0 or not math.isfinite(value) or abs(value) < 1e-9:
        return 0
    size = min(LEVELS, max(1, round(LEVELS * abs(value) / limit)))
    return size if value > 0 else -size


def alpha(size: int) -> float:
    """Opacity of a shade, size 1 … LEVELS. At most 0.5, so that text on it keeps its contrast."""
    return round(0.05 + 0.45 * size / LEVELS, 3)


def bar(size: int) -> float:
    """Thickness in px of the bar that carries the same number as the shade."""
    return round(1 + 3 * size / LEVELS, 1)


def rgba(size: int) -> str:
    """A shade as CSS colour, size -LEVELS … LEVELS."""
    red, green, blue = POSITIVE if size > 0 else NEGATIVE
    return f"rgba({red},{green},{blue},{alpha(abs(size))})" if size else "transparent"


#: What is joined to the one ES module and the one style sheet that all views share, in this order.
PARTS = ("show/base", "parts/*", "views/*", "notebook/*", "show/main")

#: Where a host says which of the two it is; elsewhere the system decides.
_LIGHT_HOSTS = '[data-jp-theme-light="true"] .segviz,[data-segviz-theme="light"] .segviz,.vscode-light .segviz'
_DARK_HOSTS = '[data-jp-theme-light="false"] .segviz,[data-segviz-theme="dark"] .segviz,.vscode-dark .segviz'


def script() -> str:
    """The whole ES module, which exports `render`."""
    return "\n".join(file.read_text(encoding="utf-8") for file in files(".js"))


def css() -> str:
    """The whole style sheet: variables for light and dark, the shades, then the files of `PARTS`."""
    return "\n".join([*shades(), *(file.read_text(encoding="utf-8") for file in files(".css"))])


def shades() -> list[str]:
    """Rules that define the variables for light and dark, and the shades of credit."""
    light = "".join(f"--{name}:{pair[0]};" for name, pair in PALETTE.items())
    dark = "".join(f"--{name}:{pair[1]};" for name, pair in PALETTE.items())
    rules = [
        f".segviz{{color-scheme:light;{light}}}",
        f"@media (prefers-color-scheme:dark){{.segviz{{color-scheme:dark;{dark}}}}}",
        f"{_LIGHT_HOSTS}{{color-scheme:light;{light}}}",
        f"{_DARK_HOSTS}{{color-scheme:dark;{dark}}}",
    ]
    for size in _sizes():
        thick = bar(size)
        for sign, edge, name in ((1, thick, "pos"), (-1, -thick, "neg")):
            letter = "p" if sign > 0 else "n"
            rules.append(
                f".segviz [data-l={letter}{size}]{{background-color:{rgba(sign * size)};"
                f"box-shadow:inset 0 {edge}px var(--{name})}}"
            )
        red, green, blue = SEQUENTIAL
        rules.append(
            f".segviz [data-l=s{size}]{{background-color:rgba({red},{green},{blue},{alpha(size)});"
            f"box-shadow:inset 0 {-thick}px var(--seq)}}"
        )
    return rules


def files(suffix: str) -> list[Path]:
    """The files of `PARTS` with that suffix; within a room by name."""
    package = Path(__file__).parent.parent
    return [file for part in PARTS for file in sorted(package.glob(part + suffix))]


def _sizes() -> Iterable[int]:
    return range(1, LEVELS + 1)
