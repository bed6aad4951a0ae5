"""The plots of the page, written by hand as SVG: no browser is needed, and a diff shows what changed."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from segpo_core.afterwards.bench_learn.claims import LEAST_SEEDS, Finding
from segpo_core.afterwards.bench_learn.curves import Interval, Runs

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
            label = f"{tick / 1000:g}k" if axis == "tokens" else f"{tick:g}"
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
    found = [f for f in found if f.judged.number >= LEAST_SEEDS]
    label, width, step = 370, 330, 20
    reach = max([0.05, *(abs(v) for f in found for v in f.judged[:3])])
    reach = min(float(np.ceil(reach * 20) / 20), 0.3)
    foot = len(found) * step + 24
    parts = []

    def x(value: float) -> float:
        return label + width / 2 + float(np.clip(value / reach, -1, 1)) * width / 2

    for tick in (-reach, -reach / 2, 0, reach / 2, reach):
        colour = INK if tick == 0 else LINE
        parts.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="8" y2="{foot - 10}" stroke="{colour}"/>')
        parts.append(_text(x(tick), foot + 4, f"{tick:+.3g}" if tick else "0", SOFT, "middle"))
    for i, f in enumerate(found):
        y = 18 + i * step
        colour = {"confirmed": BLUE, "contradicted": ORANGE}.get(f.verdict, SOFT)
        parts.append(_text(label - 10, y + 4, f.claim.says, INK, "end"))
        parts.append(
            f'<line x1="{x(f.judged.low):.1f}" x2="{x(f.judged.high):.1f}" y1="{y}" y2="{y}" stroke="{colour}" '
            'stroke-width="2"/>'
        )
        full = colour if f.verdict in ("confirmed", "contradicted") else "#fbfaf8"
        parts.append(f'<circle cx="{x(f.judged.mean):.1f}" cy="{y}" r="4" fill="{full}" stroke="{colour}"/>')
    text = (
        "difference of mean accuracy over the run, equal tokens, tuned where it was; 95 % interval; filled: without 0"
    )
    parts.append(_text(label + width / 2, foot + 20, text, SOFT, "middle"))
    return _svg(label + width + 130, foot + 28, parts, text)


def scatter(points: dict[str, tuple[float, Interval]], x_name: str, y_name: str) -> str:
    """Named points: title -> (x, y); y with its interval where it has one. Names stand in a column beside the field, in
    the order of their points, each with a line to its own: where points are close, names beside them would be on top
    of each other."""
    w, h, left, top, names = 400, 300, 46, 26, 200
    xs = np.asarray([x for x, _ in points.values()], float)
    spans = {name: (i.low, i.high) if np.isfinite(i.low) else (i.mean, i.mean) for name, (_, i) in points.items()}
    low, high = min(a for a, _ in spans.values()), max(b for _, b in spans.values())

    def at_x(v: float) -> float:
        margin = max(float(np.ptp(xs)) * 0.08, 0.01)
        return left + (v - float(xs.min()) + margin) / (float(np.ptp(xs)) + 2 * margin) * w

    def at_y(v: float) -> float:
        margin = max((high - low) * 0.05, 0.005)
        return top + h - (v - low + margin) / (high - low + 2 * margin) * h

    parts = [f'<rect x="{left}" y="{top}" width="{w}" height="{h}" fill="none" stroke="{LINE}"/>']
    for tick in np.arange(np.ceil(xs.min() * 5) / 5, xs.max() + 0.01, 0.2):
        parts.append(_text(at_x(tick), top + h + 16, f"{tick:.1f}", SOFT, "middle"))
    for tick in np.arange(np.ceil(low * 10) / 10, high, 0.1):
        parts.append(_text(left - 6, at_y(tick) + 4, f"{tick:.1f}", SOFT, "end"))
        parts.append(f'<line x1="{left}" x2="{left + w}" y1="{at_y(tick):.1f}" y2="{at_y(tick):.1f}" stroke="{LINE}"/>')
    ordered = sorted(points.items(), key=lambda item: -item[1][1].mean)
    places = _apart([at_y(i.mean) for _, (_, i) in ordered], 14, top + 6, top + h - 6)
    for (name, (x, i)), place in zip(ordered, places, strict=True):
        a, b = at_x(x), at_y(i.mean)
        ends = [at_y(v) for v in spans[name]]
        parts.append(
            f'<line x1="{a:.1f}" x2="{a:.1f}" y1="{ends[0]:.1f}" y2="{ends[1]:.1f}" stroke="{BLUE}" '
            'stroke-opacity="0.35" stroke-width="2"/>'
        )
        parts.append(_path([(a + 5, b), (left + w, place), (left + w + 8, place)], 'fill="none" stroke="#cfcac1"'))
        parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{BLUE}"/>')
        parts.append(_text(left + w + 12, place + 4, f"{name} ({x:.2f})"))
    parts.append(_text(left + w / 2, top + h + 34, x_name, SOFT, "middle"))
    parts.append(_text(left, top - 10, y_name, SOFT))
    return _svg(left + w + names, top + h + 44, parts, f"{y_name} against {x_name}")


def _apart(wanted: Sequence[float], least: float, first: float, last: float) -> list[float]:
    """Ascending places at least `least` apart, near the wanted ones (ascending too) and between `first` and `last`."""
    places: list[float] = []
    for at in wanted:
        places.append(max(at, places[-1] + least if places else first))
    for k in range(len(places) - 1, -1, -1):
        places[k] = min(places[k], last if k == len(places) - 1 else places[k + 1] - least)
    return places
