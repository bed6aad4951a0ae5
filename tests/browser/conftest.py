"""What the browser tests share: one Chromium, and a page that may not fetch, log or throw anything."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, sync_playwright

import segviz as sv

ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


# Not of the session: while it is open, its thread has an event loop, and no notebook could be executed there.
@pytest.fixture(scope="package")
def browser(chromium_path):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def show(browser, tmp_path):
    """show(view or path, width, scheme) -> the page. Afterwards: nothing was fetched, logged, thrown or executed."""
    noise, contexts, pages = [], [], []

    def show(view, width: int = 1280, scheme: str = "light") -> Page:
        path = view.save(tmp_path / "page.html") if isinstance(view, sv.View) else view
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, reduced_motion="reduce"
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda message: noise.append(message.text))
        page.on("pageerror", lambda error: noise.append(str(error)))
        page.on("dialog", lambda dialog: (noise.append("dialog"), dialog.dismiss()))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else noise.append(r.url))
        page.goto(f"file://{path}")
        page.wait_for_selector("#segviz > :not(noscript)")
        pages.append(page)
        return page

    yield show
    assert [page.evaluate("window.hacked ?? null") for page in pages] == [None] * len(pages)
    for context in contexts:
        context.close()
    assert noise == []
