"""How Gradio's own parts look: the palette of the views."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from segviz.show.theme import PALETTE

#: Gradio's variable -> a colour of the palette. Its dark twin follows.
_COLOURS = {
    "body_background_fill": "paper",
    "body_text_color": "ink",
    "body_text_color_subdued": "soft",
    "background_fill_primary": "card",
    "background_fill_secondary": "sunk",
    "border_color_primary": "line",
    "border_color_accent": "edge",
    "color_accent_soft": "sunk",
    "link_text_color": "pos",
    "link_text_color_hover": "ink",
    "block_background_fill": "card",
    "block_border_color": "line",
    "block_info_text_color": "soft",
    "block_label_background_fill": "card",
    "block_label_border_color": "line",
    "block_label_text_color": "soft",
    "block_title_text_color": "ink",
    "panel_background_fill": "paper",
    "input_background_fill": "paper",
    "input_background_fill_focus": "card",
    "input_border_color": "line",
    "input_border_color_focus": "ink",
    "input_placeholder_color": "faint",
    "checkbox_background_color": "paper",
    "checkbox_background_color_selected": "ink",
    "checkbox_border_color": "edge",
    "checkbox_label_background_fill": "paper",
    "slider_color": "ink",
    "button_primary_background_fill": "ink",
    "button_primary_background_fill_hover": "soft",
    "button_primary_border_color": "ink",
    "button_primary_text_color": "paper",
    "button_primary_text_color_hover": "paper",
    "button_secondary_background_fill": "card",
    "button_secondary_background_fill_hover": "sunk",
    "button_secondary_text_color": "ink",
    "button_cancel_background_fill": "card",
    "button_cancel_background_fill_hover": "sunk",
    "button_cancel_text_color": "error",
    "code_background_fill": "sunk",
    "error_background_fill": "card",
    "error_border_color": "error",
    "error_text_color": "error",
    "loader_color": "soft",
}


def theme() -> gr.themes.Base:
    """The palette as a Gradio theme; fonts are the system's, so that nothing is fetched."""
    found = gr.themes.Base(
        font=["system-ui", "-apple-system", "Segoe UI", "Liberation Sans", "Arial", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"],
        radius_size=gr.themes.sizes.radius_md,
        text_size=gr.themes.sizes.text_md,
    )
    settings = {}
    for variable, colour in _COLOURS.items():
        settings[variable], settings[f"{variable}_dark"] = PALETTE[colour]
    edge = dict(
        zip(("button_secondary_border_color", "button_secondary_border_color_dark"), PALETTE["edge"], strict=True)
    )
    flat = {
        name: "none" for name in ("block_shadow", "button_primary_shadow", "button_secondary_shadow", "input_shadow")
    }
    return found.set(
        **settings,
        color_accent="var(--body-text-color)",
        **edge,
        **flat,
        button_border_width="1px",
        block_border_width="1px",
        input_border_width="1px",
    )


def colours() -> str:
    """The palette as variables of the app's own parts, light and dark."""
    rules = [
        f"{where}{{color-scheme:{name};" + "".join(f"--{key}:{pair[i]};" for key, pair in PALETTE.items()) + "}"
        for i, (name, where) in enumerate((("light", ".app"), ("dark", '[data-segviz-theme="dark"] .app')))
    ]
    return "\n".join(rules) + "\n"


def css() -> str:
    """Rules for Gradio's page: one calm frame around the tabs."""
    return asset("gradio.css")


def asset(name: str) -> str:
    """Text of a file in static/."""
    return (Path(__file__).parent / "static" / name).read_text(encoding="utf-8")
