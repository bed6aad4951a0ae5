"""Still pictures of what is not one text: trees, groups, staircases, curves and shares, from the data of the views."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from segviz.parts.credit import error_of, signed
from segviz.runs.rollout import Rollout
from segviz.show.encode import tidy
from segviz.show.still import CARD, ERROR, INK, LINE, NEG, POS, SOFT, WIDTH, Piece, flow, path_of, picture, shade, words
from segviz.show.theme import PALETTE, level, rgba

ROWS = 24  #: completions of a group's picture
CHARTS = 4  #: charts of a board's picture
COLOURS = tuple(PALETTE[f"s{i}"][0] for i in range(5))
DASHES = ("", "6 4", "2 3", "8 3 2 3", "12 4")


def tree_picture(data: Mapping[str, Any], children: Sequence[Sequence[int]]) -> str:
    """The nodes from left to right: as high as their leaves, coloured by advantage, the deciding fork marked."""
    nodes = data["nodes"]
    deepest = max(node["depth"] for node in nodes)
    leaves = [i for i, below in enumerate(children) if not below]
    gap = min(26.0, max(3.0, 620 / len(leaves)))
    y = {i: 20 + gap * place for place, i in enumerate(leaves)}
    for i in range(len(nodes) - 1, -1, -1):  # children stand behind their parents
        if children[i]:
            y[i] = sum(y[j] for j in children[i]) / len(children[i])
    x = [30 + (WIDTH - 110) * node["depth"] / max(1, deepest) for node in nodes]
    forked = data["fork"]["node"] if data["fork"] else None
    links, dots = [], []
    for i, node in enumerate(nodes):
        if node["up"] is not None and i:
            up, middle = node["up"], (x[i] + x[node["up"]]) / 2
            links.append(
                f'<path d="M{x[up]:.1f} {y[up]:.1f}C{middle:.1f} {y[up]:.1f} {middle:.1f} {y[i]:.1f} {x[i]:.1f} '
                f'{y[i]:.1f}" fill="none" stroke="{LINE}" stroke-width="1.5"/>'
            )
        size = level(node["adv"], data["limit"]) if node["adv"] is not None and data["limit"] else 0
        radius = min(6.0, gap / 2.2 + 1) if not children[i] else 6.0
        stroke = POS if size > 0 else NEG if size < 0 else SOFT
        dots.append(
            f'<circle cx="{x[i]:.1f}" cy="{y[i]:.1f}" r="{radius:.1f}" fill="{CARD}"/><circle cx="{x[i]:.1f}" '
            f'cy="{y[i]:.1f}" r="{radius:.1f}" fill="{rgba(size) if size else CARD}" stroke="{stroke}"/>'
        )
        if (children[i] or gap >= 11) and node["value"] is not None:
            sign = "" if node["adv"] is None or not i else f" ({signed(node['adv'])})"
            if not children[i]:
                dots.append(words(f"{node['value']:.2g}{sign}", x[i] + 10, y[i] + 4, size=10, fill=SOFT))
            elif node["depth"] < 3:
                dots.append(words(f"V {node['value']:.2f}{sign}", x[i], y[i] - 10, size=10, fill=SOFT, anchor="middle"))
        if i == forked:
            dots.append(words("◆ deciding fork", x[i], y[i] + 20, size=12, fill=ERROR, anchor="middle", bold=True))
    return picture("".join(links + dots), max(y.values()) + 24, " ".join(data["verdict"]))


def group_picture(data: Mapping[str, Any], told: Callable[[Mapping[str, Any]], str]) -> str:
    """A row a completion: what it earned (`told`), and its text around the fork, shaded by its advantage."""
    limit = max((abs(x) for row in data["rows"] for x in (row["low"], row["high"]) if x is not None), default=0.0)
    parts, y, said = [], 6.0, []
    for row in data["rows"][:ROWS]:
        fork, error = row["fork"], row["error"]
        mean = None if row["low"] is None else (row["low"] + row["high"]) / 2
        size = 0 if mean is None or not limit else level(mean, limit)
        right = {True: "✓ ", False: "✗ ", None: ""}[row["right"]]
        reward = "no reward" if row["reward"] is None else f"reward {number(row['reward'])}"
        who = f"sample{'s' * (len(row['samples']) > 1)} {', '.join(map(str, row['samples'][:9]))}"
        label = f"{right}{who} · {reward} · advantage {told(row)}"
        pieces = [
            Piece(
                tidy(text),
                size if not fork or row["first"] + i >= fork["at"] else 0,
                "◆ parts here" if fork and row["first"] + i == fork["at"] else "",
                bool(error) and error["start"] <= row["first"] + i < error["end"],
            )
            for i, text in enumerate(row["pieces"])
        ]
        parts.append(words(label, 10, y + 14, bold=True))
        body, y = flow(pieces, top=y + 14)
        parts.append(body)
        y += 12
        said.append(label)
    return picture("".join(parts), y, f"{' '.join(data['verdict'])} {'; '.join(said)}.")


def staircase_picture(rollout: Rollout, steps: Sequence[Any], said: Sequence[str], z: float) -> str:
    """Treads over the tokens and their band, what is beyond noise in colour, the first true error."""
    total, reward = len(rollout.pieces), rollout.row.get("reward")
    values = [step.before.value for step in steps] + [reward for reward in [reward] if reward is not None]
    spread = [z * (step.before.stderr or 0) for step in steps]
    low = min(0.0, *(step.before.value - s for step, s in zip(steps, spread, strict=True)), *values)
    high = max(1.0, *(step.before.value + s for step, s in zip(steps, spread, strict=True)), *values)

    def x(token: float) -> float:
        return 60 + (WIDTH - 140) * token / max(1, total)

    def y(value: float) -> float:
        return 230 - 200 * (value - low) / (high - low)

    parts = []
    for tick in (low, (low + high) / 2, high):
        parts.append(f'<path d="M60 {y(tick):.1f}H{WIDTH - 80}" stroke="{LINE}"/>')
        parts.append(words(number(tick), 52, y(tick) + 4, size=11, fill=SOFT, anchor="end"))
    for step, s in zip(steps, spread, strict=True):
        a, b, v = x(step.start), x(step.end), step.before.value
        if s:
            parts.append(
                f'<rect x="{a:.1f}" y="{y(v + s):.1f}" width="{b - a:.1f}" height="{y(v - s) - y(v + s):.1f}" '
                f'fill="{shade(0.3)}"/>'
            )
        parts.append(f'<path d="M{a:.1f} {y(v):.1f}H{b:.1f}" stroke="{INK}" stroke-width="2"/>')
        if step.change:
            colour, thick = (POS if step.change > 0 else NEG, 3) if step.judgement == "beyond" else (SOFT, 1)
            parts.append(
                f'<path d="M{b:.1f} {y(v):.1f}V{y(v + step.change):.1f}" stroke="{colour}" stroke-width="{thick}"/>'
            )
            if step.judgement == "beyond":
                parts.append(words(signed(step.change), b + 4, y(v + step.change / 2), size=11, fill=colour, bold=True))
    if reward is not None:
        parts.append(f'<circle cx="{x(total):.1f}" cy="{y(reward):.1f}" r="5" fill="{INK}"/>')
        parts.append(words(f"reward {number(reward)}", x(total) + 9, y(reward) + 4, size=11))
    if error := error_of(rollout):
        at = x(error["start"])
        parts.append(f'<path d="M{at:.1f} 22V236" stroke="{ERROR}" stroke-dasharray="4 3"/>')
        near = "end" if at > WIDTH / 2 else "start"
        text = tidy(rollout.pieces[error["start"]]).strip()[:20]
        parts.append(
            words(f"✗ first error: {text}", at + (-4 if near == "end" else 4), 18, size=11, fill=ERROR, anchor=near)
        )
    parts.append(words("token", x(total / 2), 258, size=11, fill=SOFT, anchor="middle"))
    parts += [words(str(t), x(t - 0.5), 248, size=10, fill=SOFT, anchor="middle") for t in (1, total)]
    return picture("".join(parts), 266, " ".join(said))


def curves_picture(charts: Sequence[Mapping[str, Any]], said: str) -> str:
    """Small charts in two columns: a line a metric and run, named at its end, bands of several seeds."""
    parts, wide, high = [], WIDTH / 2, 210
    for place, chart in enumerate(charts[:CHARTS]):
        left, top = wide * (place % 2), high * (place // 2)
        parts.append(words(chart["title"], left + 14, top + 22, bold=True))
        lines = [line for line in chart["lines"] if line["x"]]
        ys = [y for line in lines for name in ("y", "low", "high") for y in line.get(name, ())]
        xs = [x for line in lines for x in line["x"]]
        low, top_y = (0.0, 1.0) if chart.get("share") else (min(ys), max(ys))
        low = max(low, chart["floor"]["at"]) if chart.get("floor") else low
        reach = (top_y - low) or 1.0

        def x(step: float, left: float = left, xs: Sequence[float] = xs) -> float:
            return left + 60 + (wide - 190) * (step - min(xs)) / ((max(xs) - min(xs)) or 1)

        def y(value: float, top: float = top, low: float = low, reach: float = reach) -> float:
            return top + 180 - 140 * (max(low, value) - low) / reach

        for tick in (low, low + reach / 2, low + reach):
            parts.append(f'<path d="M{left + 60} {y(tick):.1f}h{wide - 190}" stroke="{LINE}"/>')
            parts.append(
                words(f"{tick:.3g}".replace("-", "−"), left + 54, y(tick) + 4, size=10, fill=SOFT, anchor="end")
            )
        parts += [
            words(str(step), x(step), top + 196, size=10, fill=SOFT, anchor="middle") for step in {min(xs), max(xs)}
        ]
        ends: list[float] = []
        for n, line in enumerate(lines):
            style = n if chart.get("panels") else line.get("style", n)
            colour, dash = COLOURS[style % 5], DASHES[style % 5]
            if line.get("low"):
                band = [
                    *zip(line["x"], line["high"], strict=True),
                    *reversed([*zip(line["x"], line["low"], strict=True)]),
                ]
                parts.append(f'<path d="{path_of((x(a), y(b)) for a, b in band)}Z" fill="{colour}" opacity="0.15"/>')
            points = [(x(a), y(b)) for a, b in zip(line["x"], line["y"], strict=True)]
            parts.append(
                f'<path d="{path_of(points)}" fill="none" stroke="{colour}" stroke-width="2" '
                f'stroke-dasharray="{dash}"/>'
            )
            name = (
                " ".join(filter(None, [line["panel"] if chart.get("panels") else "", line["label"]]))
                or f"{line['y'][-1]:.3g}"
            )
            at = points[-1][1] + 4
            while any(abs(at - other) < 11 for other in ends):
                at += 11
            ends.append(at)
            parts.append(words(name[:22], points[-1][0] + 6, at, size=10, fill=colour))
    return picture("".join(parts), high * math.ceil(len(charts[:CHARTS]) / 2), said)


def shares_picture(rows: Sequence[tuple[str, float | None, float | None, float | None]], said: str) -> str:
    """A bar a row: (label, share, low, high), each of 1 or None; the interval as a line over the bar."""
    parts = []
    for i, (label, share, low, high) in enumerate(rows):
        y = 16 + 34 * i
        parts.append(words(label[:44], 10, y + 14))
        if share is None:
            parts.append(words("no verdict", 300, y + 14, fill=SOFT))
            continue
        parts.append(f'<rect x="300" y="{y}" width="{440 * share:.1f}" height="18" fill="{rgba(7)}" stroke="{POS}"/>')
        parts.append(words(f"{share:.0%}", 800, y + 14, bold=True, anchor="end"))
        if low is not None and high is not None:
            a, b = 300 + 440 * low, 300 + 440 * high
            parts.append(
                f'<path d="M{a:.1f} {y + 4}v10m0 -5H{b:.1f}m0 -5v10" fill="none" stroke="{INK}" stroke-width="1.5"/>'
            )
    return picture("".join(parts), 20 + 34 * len(rows), said)


def segments_picture(rows: Sequence[Mapping[str, Any]], limit: float, said: str) -> str:
    """The segments that a step learned most from: share of the weight as a bar, the text shaded by its advantage."""
    parts, y = [], 4.0
    largest = max((row["share"] for row in rows), default=1.0) or 1.0
    for row in rows:
        size = level(row["advantage"], limit) if limit and row["advantage"] is not None else 0
        parts.append(
            f'<rect x="10" y="{y + 8:.1f}" width="{60 * row["share"] / largest:.1f}" height="12" fill="{shade(0.8)}"/>'
        )
        parts.append(words(f"{row['share']:.1%}", 76, y + 18, size=11, bold=True))
        parts.append(
            words("" if row["advantage"] is None else signed(row["advantage"]), 122, y + 18, size=11, fill=SOFT)
        )
        body, y = flow(
            [Piece(tidy(row["text"]) + ("…" if row["more"] else ""), size)], top=y, left=180, width=WIDTH - 200
        )
        parts.append(body)
        y += 6
    return picture("".join(parts), y + 8, said)


def number(value: float | None) -> str:
    """Three digits and a real minus; a dash where there is none."""
    return "–" if value is None else f"{value:.3g}".replace("-", "−")
