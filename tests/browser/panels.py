"""Where things are in the app's page."""

from __future__ import annotations

from playwright.sync_api import Page, expect


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def rows(page: Page):
    return page.locator("segpo-rollouts tbody tr")


def frame(page: Page, panel: str = "segpo-rollouts"):
    return page.frame_locator(f"{panel} iframe.view")


def chart(page: Page, title: str):
    """A chart of the board that is shown; the next one may already be drawn behind it."""
    shown = page.locator("segpo-live .live-board > :not(.fresh) figure.chart")
    return shown.filter(has=page.get_by_text(title, exact=True))


def counted(page: Page, words: str) -> None:
    expect(page.locator("segpo-rollouts [role=status]").first).to_have_text(words)
