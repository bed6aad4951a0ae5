"""What the browser tests share: one Chromium, pages that may not fetch, log or throw anything, and the app."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

import segviz as sv
from tests.app.served import serving
from tests.fakes.fake_run import hostile_row, write_run

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


@pytest.fixture(scope="package")
def runs(tmp_path_factory) -> Path:
    """Three runs: two that saw the same prompts, and one whose every text is hostile, its name as well as can be."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "alpha")
    write_run(folder / "beta", "grpo")
    write_run(
        folder / "evil ${window.hacked=1}{{7*7}}<img src=x onerror=window.hacked=1>", steps=4, extra=[hostile_row()]
    )
    return folder


@pytest.fixture(scope="package")
def app(runs):
    with serving(runs) as (address, _):
        yield f"http://{address}/"


@pytest.fixture
def visit(browser):
    """visit(url, width, scheme) -> page. Afterwards: nothing was fetched from elsewhere, logged, or thrown."""
    noise, contexts = [], []

    def visit(url: str, width: int = 1440, scheme: str = "light", quiet: bool = True) -> Page:
        base = re.match(r"http://[^/]+/", url)[0]
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        if quiet:
            page.on("console", lambda m: noise.append(m.text) if m.type in ("error", "warning") and ours(m) else None)
            page.on("pageerror", lambda error: noise.append(str(error)))
        page.on("dialog", lambda dialog: (noise.append("dialog"), dialog.dismiss()))
        local = (base, "data:", "blob:", "about:")
        page.on("request", lambda r: None if r.url.startswith(local) else noise.append(r.url))
        page.goto(url)
        page.wait_for_selector("segpo-top .bar b")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert noise == []


def ours(message) -> bool:
    """False for what Gradio's own script says of its event stream when a page is left while it opens."""
    theirs = "/assets/" in message.location.get("url", "")
    return not (theirs and ("AbortError" in message.text or "errored out" in message.text))
