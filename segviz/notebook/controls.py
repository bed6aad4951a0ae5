"""The controls above a list of rollouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import ipywidgets

from segviz.notebook.listing import VERDICTS, Filter
from segviz.show.theme import method_label


class Controls:
    """The widgets that make a `Filter`. They tell `changed(**conditions)` what the reader changed."""

    def __init__(self, start: Filter, changed: Callable[..., None]):
        self._changed, self._quiet = changed, False
        wide, small = {"width": "300px"}, {"width": "215px"}
        spans = {"continuous_update": False, "layout": wide}
        self._made = {
            "steps": ipywidgets.IntRangeSlider(description="steps", **spans),
            "reward": ipywidgets.FloatRangeSlider(description="reward", step=0.05, readout_format=".2g", **spans),
            "tokens": ipywidgets.IntRangeSlider(description="tokens", **spans),
            "verdict": ipywidgets.Dropdown(
                description="answer", options=[("any", ""), *((v, v) for v in VERDICTS)], layout=small
            ),
            "error_kind": ipywidgets.Dropdown(description="first error", options=[("any", "")], layout=small),
            "method": ipywidgets.Dropdown(description="method", options=[("any", "")], layout=small),
            "text": ipywidgets.Text(
                description="text", placeholder="words in question or completion", continuous_update=False, layout=wide
            ),
            "perception_error": ipywidgets.Checkbox(description="perception wrong", indent=False),
            "truncated": ipywidgets.Checkbox(description="cut at the limit", indent=False),
        }
        for name in ("perception_error", "truncated"):
            self._made[name].layout.width = "auto"
        for name, widget in self._made.items():
            widget.observe(lambda change, name=name: self._tell(name, change["new"]), "value")
        clear = ipywidgets.Button(description="show all", tooltip="no conditions", layout={"width": "90px"})
        clear.on_click(lambda _: changed(**{field.name: field.default for field in fields(Filter)}))
        row = ipywidgets.Layout(flex_flow="row wrap", align_items="center", grid_gap="2px 14px", margin="0 0 8px")
        self.box = ipywidgets.HBox([*self._made.values(), clear], layout=row)

    def fit(self, rows: Sequence[Mapping[str, Any]], wanted: Filter) -> None:
        """Offer what the rows have; what can tell none of them apart is hidden."""
        self._quiet = True
        try:
            for name, column in (("steps", "step"), ("reward", "reward"), ("tokens", "tokens")):
                there = [row[column] for row in rows if row[column] is not None]
                low, high = (min(there), max(there)) if there else (0, 0)
                slider = self._made[name]
                slider.min, slider.max = min(slider.min, low), max(slider.max, high)  # never min > max on the way
                slider.min, slider.max = low, high
                self._hide(name, low == high)
            for name, label in (("error_kind", str), ("method", method_label)):
                there = sorted({row[name] for row in rows if row[name]} | ({getattr(wanted, name)} - {None}))
                self._made[name].options = [("any", ""), *((label(value), value) for value in there)]
                self._hide(name, len(there) < (2 if name == "method" else 1))
            self._hide("perception_error", all(row["perception_right"] is None for row in rows))
            self._hide("verdict", all(row["answer_right"] is None for row in rows))
        finally:
            self._quiet = False
        self.show(wanted)

    def show(self, wanted: Filter) -> None:
        """Set the widgets to a filter without telling anybody."""
        self._quiet = True
        try:
            for name, widget in self._made.items():
                value = getattr(wanted, name)
                if name in ("steps", "reward", "tokens"):
                    low, high = value or (widget.min, widget.max)
                    value = (max(low, widget.min), min(max(high, widget.min), widget.max))
                    value = (min(value), value[1])
                widget.value = "" if value is None else value
        finally:
            self._quiet = False

    def _hide(self, name: str, hidden: bool) -> None:
        self._made[name].layout.display = "none" if hidden else None

    def _tell(self, name: str, value: Any) -> None:
        if self._quiet:
            return
        widget = self._made[name]
        if name in ("steps", "reward", "tokens") and tuple(value) == (widget.min, widget.max):
            value = None  # the whole range asks for nothing: rollouts without the number stay
        self._changed(**{name: None if value == "" and name != "text" else value})
