"""The plots of the page, written by hand as SVG: no browser is needed, and a diff shows what changed."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from segpo_core.afterwards.bench_learn.claims import LEAST_SEEDS, Finding
from segpo_core.afterwards.bench_learn.curves import Runs

WIDTH, HEIGHT, COLUMNS = 230, 170, 4  #: of a panel, and panels in a row
LEFT, RIGHT, TOP, BOTTOM = 34, 8, 24, 30  #: room around a panel's axes
INK, SOFT, LINE, BLUE, ORANGE = "#1c1d21", "#686b73", "#e3e0da", "#1d4ed8", "#b93c06"


def _svg(width: float, height: float, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="sans-serif" font-size="11" role="img"><title>{escape(title)}</title>\n'
        f'<rect width="100%" height="100%" fill="#fbfaf8"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _text(x: float, y: float, text: str, colour: str = INK, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def _path(points: Sequence[tuple[float, float]], more: str) -> str:
    return '<path d="M' + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + f'" {more}/>'


def panels(
    runs: Runs, titles: dict[str, str], curve: str, axis: str, budget: float, beside: str = "grpo"
) -> str:  # fmt: skip
    """One panel an arm: the mean over seeds, a band from the worst to the best seed, and `beside`'s mean, dashed."""
    names = [name for name in titles if runs.of.get(name)]
    place = np.linspace(0, budget, 61)
    rows = -(-len(names) // COLUMNS)
    high = {
        name: np.stack([np.interp(place, run[axis], run[curve]) for run in runs.of[name].values()]) for name in names
    }
    low = np.floor(min(y.min() for y in high.values()) * 5 + 1e-9) / 5
    parts = []
    for i, name in enumerate(names):
        x0, y0 = (i % COLUMNS) * WIDTH + LEFT, (i // COLUMNS) * HEIGHT + TOP
        w, h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

        def xy(y: np.ndarray, x0: float = x0, y0: float = y0, w: float = w, h: float = h) -> list[tuple[float, float]]:
            return [(x0 + a / budget * w, y0 + h - (b - low) / (1 - low) * h) for a, b in zip(place, y, strict=True)]

        parts.append(_text(x0, y0 - 8, titles[name], more=' font-weight="bold"'))
        for tick in np.arange(low, 1.01, 0.2):
            y = y0 + h - (tick - low) / (1 - low) * h
            parts.append(f'<line x1="{x0}" x2="{x0 + w}" y1="{y:.1f}" y2="{y:.1f}" stroke="{LINE}"/>')
            parts.append(_text(x0 - 4, y + 4, f"{tick:.1f}", SOFT, "end"))
        for tick in (0, budget / 2, budget):
            label = f"{tick / 1000:.0f}k" if axis == "tokens" else f"{tick:.0f}"
            parts.append(_text(x0 + tick / budget * w, y0 + h + 14, label, SOFT, "end" if tick == budget else "middle"))
        ys = high[name]
        band = xy(ys.max(0)) + xy(ys.min(0))[::-1]
        parts.append(_path(band, f'fill="{BLUE}" fill-opacity="0.18"'))
        if beside in high and name != beside:
            parts.append(_path(xy(high[beside].mean(0)), f'fill="none" stroke="{SOFT}" stroke-dasharray="4 3"'))
        parts.append(_path(xy(ys.mean(0)), f'fill="none" stroke="{BLUE}" stroke-width="2"'))
    unit = "tokens through the sampler" if axis == "tokens" else "processor seconds"
    foot = f"held-out {curve}, by {unit}; line: mean, band: worst to best seed; dashed: {titles.get(beside, beside)}"
    parts.append(_text(LEFT, rows * HEIGHT + 12, foot, SOFT))
    return _svg(WIDTH * min(COLUMNS, max(1, len(names))), rows * HEIGHT + 22, parts, foot)


def differences(found: Sequence[Finding]) -> str:
    """One line a claim: the difference of areas with its interval; right of 0 is what was claimed."""
    found = [f for f in found if f.tokens.number >= LEAST_SEEDS]
    label, width, step = 370, 330, 20
    reach = max([0.05, *(abs(v) for f in found for v in f.tokens[:3])])
    reach = min(float(np.ceil(reach * 20) / 20), 0.3)
    foot = len(found) * step + 24
    parts = []

    def x(value: float) -> float:
        return label + width / 2 + float(np.clip(value / reach, -1, 1)) * width / 2

    for tick in (-reach, 0, reach):
        colour = INK if tick == 0 else LINE
        parts.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="8" y2="{foot - 10}" stroke="{colour}"/>')
        parts.append(_text(x(tick), foot + 4, f"{tick:+.2f}", SOFT, "middle"))
    for i, f in enumerate(found):
        y = 18 + i * step
        colour = {"confirmed": BLUE, "contradicted": ORANGE}.get(f.verdict, SOFT)
        parts.append(_text(label - 10, y + 4, f.claim.says, INK, "end"))
        parts.append(
            f'<line x1="{x(f.tokens.low):.1f}" x2="{x(f.tokens.high):.1f}" y1="{y}" y2="{y}" stroke="{colour}" '
            'stroke-width="2"/>'
        )
        full = colour if f.verdict in ("confirmed", "contradicted") else "#fbfaf8"
        parts.append(f'<circle cx="{x(f.tokens.mean):.1f}" cy="{y}" r="4" fill="{full}" stroke="{colour}"/>')
    text = "difference of mean accuracy over the run at equal tokens, 95 % interval over seeds; filled: without 0"
    parts.append(_text(label + width / 2, foot + 20, text, SOFT, "middle"))
    return _svg(label + width + 130, foot + 28, parts, text)


def scatter(points: dict[str, tuple[float, float]], x_name: str, y_name: str) -> str:
    """Named points: `points` holds title -> (x, y)."""
    w, h, left, top = 460, 300, 56, 16
    xs, ys = (np.asarray([p[k] for p in points.values()], float) for k in (0, 1))

    def scaled(v: float, values: np.ndarray) -> float:
        margin = max(float(np.ptp(values)) * 0.1, 0.01)
        return float((v - values.min() + margin) / (np.ptp(values) + 2 * margin))

    parts = [f'<rect x="{left}" y="{top}" width="{w}" height="{h}" fill="none" stroke="{LINE}"/>']
    for values, across in ((xs, True), (ys, False)):
        for tick in (values.min(), values.max()):
            at = scaled(tick, values)
            spot = (left + at * w, top + h + 16, "middle") if across else (left - 6, top + h - at * h + 4, "end")
            parts.append(_text(spot[0], spot[1], f"{tick:.2f}", SOFT, spot[2]))
    taken: list[tuple[float, float]] = []
    for name, (a, b) in sorted(points.items(), key=lambda item: -item[1][1]):
        x, y = left + scaled(a, xs) * w, top + h - scaled(b, ys) * h
        right, at = x > left + w * 0.75, y + 4
        while any(abs(x - u) < 120 and abs(at - v) < 12 for u, v in taken):  # names do not lie on each other
            at += 1
        taken.append((x, at))
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{BLUE}"/>')
        parts.append(_text(x + (-8 if right else 8), at, name, INK, "end" if right else "start"))
    parts.append(_text(left + w / 2, top + h + 34, x_name, SOFT, "middle"))
    parts.append(_text(left, top - 4, y_name, SOFT))
    return _svg(left + w + 20, top + h + 44, parts, f"{y_name} against {x_name}")
