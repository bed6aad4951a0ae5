"""Hostile texts in every text of a run, shown in a real Chromium: nothing may run, ask elsewhere or break the page."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import Browser, Error

import segviz as sv
from segviz.views.report import report_view
from tests.app.served import serving
from tests.fakes.fake_run import HOSTILE, row, write_run

HIT = "window.hacked=1"
ELSEWHERE = "http://198.51.100.7/x"  # an address for documentation: nobody is there

#: What has got out of texts elsewhere. {} is the code, or the address.
CODE = (
    "<script>{}</script>", "</script><script>{}</script>", "<img src=x onerror={}>", "<svg onload={}>",
    "<svg><script>{}</script></svg>", "<iframe srcdoc='<script>parent.{}</script>'></iframe>", "<body onload={}>",
    "<details open ontoggle={}>", "<video><source onerror={}></video>", "<input autofocus onfocus={}>",
    "<a href='javascript:{}'>x</a>", "[x](javascript:{})", "![x](x){{onerror={}}}", "${{{}}}", "{{{{{}}}}}",
    "`${{{}}}`",
    "<%= {} %>", "#{{{}}}", "{{{{constructor.constructor('{}')()}}}}", "\" onmouseover=\"{}", "' autofocus onfocus='{}",
    "--><script>{}</script><!--", "]]><script>{}</script>", "<math><mtext><script>{}</script></mtext></math>",
    "<style>@import 'javascript:{}';</style>", "<template><script>{}</script></template>", "\\u003cscript\\u003e{}",
    "&lt;script&gt;{}&lt;/script&gt;", "<scr\x00ipt>{}</scr\x00ipt>", "$$\\href{{javascript:{}}}{{x}}$$",
)  # fmt: skip
ASKS = (
    "<img src='{}'>", "<link rel=stylesheet href='{}'>", "<style>@import url({});</style>",
    "<script src='{}'></script>",
    "![x]({})", "<iframe src='{}'></iframe>", "<object data='{}'></object>", "<audio src='{}' autoplay></audio>",
    "<meta http-equiv=refresh content='0;url={}'>", "<base href='{}'>", "<p style=\"background:url({})\">x</p>",
)  # fmt: skip
WRAPS = (
    "{}",
    "</textarea>{}",
    "</style>{}",
    "</title>{}",
    "\n\n{}\n",
    "\u202e{}\u2066",
    "{}" + "W" * 3000,
    "\x1b[2J{}",
)


def texts(number: int, seed: int) -> list[str]:
    """Hostile texts, by seed, the first ones each of the forms once."""
    rng = random.Random(seed)
    forms = [form.format(HIT) for form in CODE] + [form.format(ELSEWHERE) for form in ASKS] + list(HOSTILE)
    made = list(forms)
    while len(made) < number:
        made.append(rng.choice(WRAPS).format(rng.choice(forms) + rng.choice(("", " ", rng.choice(forms)))))
    return made[:number]


@dataclass
class Told:
    """What happened."""

    texts: int = 0
    pages: int = 0
    executed: int = 0
    asked: list[str] = field(default_factory=list)  #: addresses elsewhere
    broken: list[str] = field(default_factory=list)  #: pages wider than their window, or that could not be drawn

    @property
    def wrong(self) -> int:
        return self.executed + len(self.asked) + len(self.broken)


def hostile_run(path: Path, said: list[str]) -> Path:
    """A run in which each text is a completion, its question, answer, id, reward's name and error in turn."""
    rows = []
    for i, text in enumerate(said):
        other = said[i - 1]
        prompt = [{"role": "user", "content": [{"type": "text", "text": text}]}]
        error = {"start": 0, "end": 1, "kind": "perception", "why": other[:500]}
        truth = {"answer_right": False, "perception_right": False, "reasoning_right": True, "first_error": error}
        rows.append(
            row(
                1, 50 + i // 4, i % 4, pieces=[text, " ", other, " end"], truth=truth, prompt=json.dumps(prompt),
                answer=other, example_id=text[:200], reward_parts=json.dumps({other[:200]: 0.0}),
                error_kind=other[:60], method="sapo",
            )
        )  # fmt: skip
    return write_run(path, steps=2, groups=1, samples=2, extra=rows)


def shown(browser: Browser, place: Path, number: int, seed: int, at_once: int = 20) -> Told:
    """Views, reports and the app of runs that are made of `number` texts."""
    told, all_texts = Told(), texts(number, seed)
    for begin in range(0, number, at_once):
        said = all_texts[begin : begin + at_once]
        name = said[0][:40].translate({0: "0", ord("/"): "∕"}).strip()  # all but what no file system takes
        run = sv.open(hostile_run(place / "runs" / f"{begin:05d} {name}", said))
        rollouts = [run.rollout(1, 50 + i // 4, i % 4) for i in range(len(said))]
        views = {
            "ribbons": sv.together(*map(sv.ribbon, rollouts), title=said[0][:80]),
            "others": sv.together(sv.group(run, 1, 50), sv.compare({"sapo": rollouts[0], "grpo": rollouts[0]}),
                                  sv.forensics(run, 1), sv.versus(*rollouts[:2])),
            "report": report_view(run, [(1, 50 + i // 4, i % 4) for i in range(len(said))]),
        }  # fmt: skip
        for name, view in views.items():
            _look(browser, f"file://{view.save(place / 'page.html')}", told, f"{name} from text {begin}")
        told.texts += len(said)
    with serving(place / "runs") as (address, _):
        for run in sorted((place / "runs").iterdir()):
            for tab in ("live", "rollouts", "compare", "inspect"):
                _look(browser, f"http://{address}/?tab={tab}", told, f"{tab} of {run.name[:5]}", run.name)
    return told


def _look(browser: Browser, url: str, told: Told, what: str, run: str = "") -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(60_000)
    own = ("file:", "data:", "blob:", "about:", url.split("/?")[0])
    page.on("request", lambda request: None if request.url.startswith(own) else told.asked.append(request.url[:200]))
    page.on("dialog", lambda dialog: (told.broken.append(f"{what}: a dialog"), dialog.dismiss()))
    try:
        page.goto(url if not run else f"{url}&{urlencode({'run': run})}")
        page.wait_for_selector("segpo-top .bar b" if run else "#segviz > :not(noscript)")
        page.wait_for_timeout(1500 if run else 300)
        for frame in page.frames:
            told.executed += bool(frame.evaluate("() => window.hacked !== undefined"))
        wide = page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth")
        if wide > 2:
            told.broken.append(f"{what}: {wide} px wider than its window")
        if page.get_by_text("could not be drawn").count():
            told.broken.append(f"{what}: a view could not be drawn")
    except Error as error:
        told.broken.append(f"{what}: {str(error)[:200]}")
    told.pages += 1
    context.close()


def rows_of(told: Told) -> Iterator[tuple[str, int]]:
    """The table for RESULTS."""
    yield (
        "| hostile texts, by seed | pages in Chromium | executed | asked elsewhere | broken |\n|---|---|---|---|---|",
        0,
    )
    yield f"| {told.texts} | {told.pages} | {told.executed} | {len(told.asked)} | {len(told.broken)} |", told.wrong
