"""The server: Gradio's page, our data as JSON, and pages of rollouts, to this machine alone unless shared.

Rules that hold for every request stand in `Guard`, around everything, Gradio's own routes included.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import gradio as gr
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp

from segviz.app import inspecting, look, pages, playground, recorded
from segviz.app.compare import occurrences, prompts
from segviz.app.exports import export, failures
from segviz.app.guard import Guard
from segviz.app.index import Index
from segviz.app.live import Live
from segviz.app.notes import Changed, Notes
from segviz.app.rollouts import Question, ask
from segviz.app.shelf import Missing, Shelf
from segviz.app.start import Starter
from segviz.app.studio import Studio
from segviz.app.thumbs import small_png
from segviz.app.uploads import body
from segviz.show import figures
from segviz.show.encode import escape, plain_json, tidy
from segviz.show.theme import css, script
from segviz.show.view import View

#: What our own scripts use of the renderer.
EXPORTS = "export { render, h, s, num, signed, visible, known, strip, tile, finding };"
SCRIPTS = (
    "core.js", "live.js", "frame.js", "notes.js", "askbox.js", "table.js", "compare.js", "inspect.js", "scene.js",
    "playground.js", "trainer.js", "panels.js",
)  # fmt: skip
LARGEST_NOTE = 32 * 2**10  #: bytes
RUNS = 12  #: runs that one question may name
#: A page of a rollout may not even touch this server's other pages, should a text get out of its place.
SANDBOX = "sandbox allow-scripts; frame-ancestors 'self'"


class Desk:
    """What the tabs and the routes work with; a context manager that cleans up."""

    def __init__(self, roots: Sequence[str]):
        self.shelf, self.index = Shelf(roots), Index()
        self.live = Live(self.shelf, self.index)
        self.starter = Starter(self.shelf.roots[0])
        self.notes = Notes()
        self.studio = Studio(self.shelf)
        self.inspector = inspecting.Inspector(self.shelf)

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.studio.close()
        self.index.close()
        self.starter.close()


def serve(
    desk: Desk, blocks: gr.Blocks, auth: tuple[str, str] | None = None, shared: bool = False, **style: Any
) -> ASGIApp:
    """The whole app.

    Args:
        desk: what is shown.
        blocks: Gradio's page.
        auth: (user, password) that everybody needs.
        shared: other machines may ask; else only names of this machine are answered to.
        style: theme and css of Gradio's page.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _assets(app)
    _data(app, desk)
    _pages(app, desk)
    play = playground.Playground(desk.shelf, desk.studio)
    playground.routes(app, play, _told, _framed)
    recorded.routes(app, recorded.Recorded(desk.shelf, desk.studio), play.told, _told, _framed)
    module = f'<script type="module" src="/segpo/app.js?v={_digest(_module())}"></script>'
    app = gr.mount_gradio_app(
        app, blocks, path="/", allowed_paths=[], footer_links=[], ssr_mode=False, run_history=False, head=module,
        enable_monitoring=False, mcp_server=False, show_error=True, max_file_size="20mb", **style,
    )  # fmt: skip
    return Guard(app, auth, shared)


def _assets(app: FastAPI) -> None:
    @app.get("/segpo/{name}.js")
    def code(name: str, request: Request) -> Response:
        made = {"app": _module, "renderer": lambda: f"{script()}\n{EXPORTS}"}.get(name)
        return _same(request, made(), "text/javascript") if made else _nothing()

    @app.get("/segpo/app.css")
    def style(request: Request) -> Response:
        return _same(request, css() + look.colours() + look.asset("app.css") + look.asset("playground.css"), "text/css")


def _data(app: FastAPI, desk: Desk) -> None:
    shelf, index = desk.shelf, desk.index

    def names(request: Request) -> list[str]:
        return list(dict.fromkeys(request.query_params.getlist("run")))[:RUNS]

    @app.get("/segpo/api/runs")
    def runs(request: Request) -> Response:
        return _same(request, desk.live.runs())

    @app.get("/segpo/api/live")
    def live(request: Request) -> Response:
        return _told(lambda: _same(request, desk.live.page(names(request))))

    @app.get("/segpo/api/found")
    def found(request: Request) -> Response:
        return _told(lambda: _same(request, desk.live.methods(names(request))))

    @app.get("/segpo/picture/{run}/{sha}")
    def picture(run: str, sha: str) -> Response:
        """A picture of a run, small: only its pixels travel, whatever else the file holds."""
        try:
            made = small_png(shelf.reading(run, lambda found: found.image(sha)))
        except (Missing, ValueError, OSError):
            made = None
        kept = {"Cache-Control": "private, max-age=86400, immutable"}  # named by what it shows
        return Response(made, media_type="image/png", headers=kept) if made else _nothing()

    @app.get("/segpo/api/trainer")
    def trainer(request: Request) -> Response:
        return _same(request, plain_json(desk.starter.status()))

    @app.post("/segpo/api/trainer/stop")
    def stop() -> Response:
        return _told(lambda: desk.starter.stop() or JSONResponse({}))

    @app.get("/segpo/api/rollouts")
    def table(request: Request) -> Response:
        asked = Question.parse
        return _told(lambda: _same(request, plain_json(ask(shelf, index, asked(request.query_params), desk.notes))))

    @app.get("/segpo/api/failures")
    def failed(request: Request) -> Response:
        asked = Question.parse
        return _told(
            lambda: _same(request, plain_json(failures(shelf, index, asked(request.query_params), desk.notes)))
        )

    @app.get("/segpo/api/table.{form}")
    def table_file(form: str, request: Request) -> Response:
        def made() -> Response:
            path = export(shelf, index, Question.parse(request.query_params), form, desk.notes)
            return FileResponse(path, filename=f"rollouts.{form}", background=BackgroundTask(path.unlink, True))

        return _told(made)

    @app.post("/segpo/api/note")
    async def note(request: Request) -> Response:
        try:
            raw = json.loads(await body(request, LARGEST_NOTE, "note"))
        except (ValueError, RecursionError) as error:
            return JSONResponse({"error": str(error)}, 400)
        return await run_in_threadpool(lambda: _told(lambda: JSONResponse(_noted(desk, raw))))

    @app.get("/segpo/api/steps")
    def steps(run: str = "") -> Response:
        return _told(lambda: JSONResponse(inspecting.steps_of(shelf, run)))

    @app.get("/segpo/api/prompts")
    def shared_prompts(request: Request) -> Response:
        search = request.query_params.get("search", "")
        return _told(lambda: _same(request, plain_json(prompts(shelf, index, names(request), search))))

    @app.get("/segpo/api/prompt")
    def one_prompt(request: Request) -> Response:
        example = request.query_params.get("example", "")
        return _told(lambda: _same(request, plain_json({"rows": occurrences(shelf, index, names(request), example)})))


def _noted(desk: Desk, raw: Any) -> dict[str, Any]:
    """Keep the note that is asked for: run, step, group, sample, note, labels, seen (the version it replaces)."""
    if not isinstance(raw, dict):
        raise ValueError("The note must be a JSON object.")
    labels, texts = raw.get("labels"), [raw.get(name, "") for name in ("run", "note", "seen")]
    ids = [raw.get(name) for name in ("step", "group", "sample")]
    if not all(type(one) is int and 0 <= one < 2**31 for one in ids) or not all(isinstance(t, str) for t in texts):
        raise ValueError("A note names run, step, group and sample, and is a text.")
    if not isinstance(labels, list) or not all(isinstance(one, str) for one in labels):
        raise ValueError("labels must be a list of texts.")
    run, text, seen = texts
    place = desk.shelf.place(run)
    kept = desk.notes.write(desk.shelf.identity(place), (ids[0], ids[1], ids[2]), text, labels, seen)
    return kept.told() | {"file": str(desk.notes.path)}


def _pages(app: FastAPI, desk: Desk) -> None:
    makers = {
        "rollout": pages.rollout_page, "methods": pages.methods_page, "boundaries": inspecting.boundaries_page
    }  # fmt: skip

    @app.get("/view/rightness")
    def rightness(run: str = "", theme: str = "") -> Response:
        return _framed(lambda: pages.rightness_page(desk.shelf, run), theme)

    @app.get("/view/{run}/report")
    def report(run: str, theme: str = "") -> Response:
        return _framed(lambda: pages.report_page(desk.shelf, run), theme)

    @app.get("/view/{run}/over_training")
    def over_training(run: str, theme: str = "") -> Response:
        return _framed(lambda: pages.over_training_page(desk.shelf, run), theme)

    @app.get("/versus")
    def versus(a: str = "", b: str = "", theme: str = "") -> Response:
        return _framed(lambda: pages.versus_page(desk.shelf, a, b), theme)

    @app.get("/view/{run}/{kind}/{step}/{group}/{sample}")
    def view(
        run: str, kind: str, step: str, group: str, sample: str, theme: str = "", download: str = "", cut: str = ""
    ) -> Response:
        if kind not in makers or not all(re.fullmatch(r"\d{1,9}", n) for n in (step, group, sample)):
            return _sorry("There is no such page.", 404)
        more: dict[str, Any] = {"heading": True} if download and kind == "rollout" else {}
        more |= {"cut": cut} if kind == "boundaries" else {}
        try:
            made = makers[kind](desk.shelf, run, int(step), int(group), int(sample), **more)
        except (Missing, KeyError, ValueError) as error:
            return _sorry(str(error.args[0] if error.args else error), 404)
        except OSError as error:  # deleted while it was read
            return _sorry(f"The run cannot be read just now: {error}", 503)
        headers = {"Cache-Control": "no-store"}
        if download:
            file = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{run}-{kind}-{step}-{group}-{sample}.html")
            headers["Content-Disposition"] = f'attachment; filename="{file}"'
        return HTMLResponse(_page(made, theme), 200, headers | {"Content-Security-Policy": SANDBOX})

    @app.get("/inspect/{run}/forensics/{step}")
    def forensics(run: str, step: str, theme: str = "") -> Response:
        if not re.fullmatch(r"\d{1,9}", step):
            return _sorry("There is no such page.", 404)
        return _framed(lambda: desk.inspector.forensics(run, int(step)), theme)

    @app.get("/inspect/{run}/{kind}")
    def figure(run: str, kind: str, theme: str = "", narrow: str = "") -> Response:
        try:
            page = desk.inspector.figure(run, kind, bool(narrow), theme)
        except (Missing, ValueError) as error:
            return _sorry(str(error), 404)
        except OSError as error:
            return _sorry(f"The run cannot be read just now: {error}", 503)
        headers = {"Cache-Control": "no-store", "Content-Security-Policy": f"{figures.policy()}; {SANDBOX}"}
        return HTMLResponse(page, 200, headers)


def _framed(make: Callable[[], View], theme: str) -> Response:
    """The page of a view that is made now, or why there is none."""
    try:
        made = make()
    except (Missing, KeyError, ValueError) as error:
        return _sorry(str(error.args[0] if error.args else error), 404)
    except OSError as error:
        return _sorry(f"The run cannot be read just now: {error}", 503)
    headers = {"Cache-Control": "no-store", "Content-Security-Policy": SANDBOX}
    return HTMLResponse(_page(made, theme), 200, headers)


def _page(view: View, theme: str) -> str:
    """The page of a view; in the colours of the app's page around it, where that says which."""
    page = view.html()
    if theme in ("light", "dark"):
        page = page.replace(
            '<html lang="en">', f'<html lang="en" data-segviz-theme="{theme}" data-segviz-framed="">', 1
        )
    return page


def _sorry(words: str, status: int) -> Response:
    """A page that says why there is nothing to see."""
    style = (
        "body{font:15px/1.55 system-ui,sans-serif;margin:0;display:grid;place-items:center;min-height:90vh;"
        "color:#5b5e66;background:#fbfaf8}p{max-width:56ch;padding:24px;overflow-wrap:anywhere}"
        "@media (prefers-color-scheme:dark){body{color:#a6abb5;background:#14161a}}"
    )
    words = words if len(words) <= 600 else f"{words[:600]}…"  # such as a list of thousands of steps
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>SegPO</title><style>{style}</style>'
    policy = f"default-src 'none'; style-src 'unsafe-inline'; {SANDBOX}"
    return HTMLResponse(f'{page}<p role="alert">{escape(words)}</p>', status, {"Content-Security-Policy": policy})


def _told(answer: Callable[[], Response]) -> Response:
    """The answer, or what is wrong with the question, in words."""
    try:
        return answer()
    except Missing as error:
        return JSONResponse({"error": str(error)}, 404)
    except ValueError as error:
        return JSONResponse({"error": str(error)}, 400)
    except Changed as error:
        return JSONResponse({"error": str(error)}, 409)
    except OSError as error:
        return JSONResponse({"error": tidy(f"The file cannot be written or read: {error}")}, 503)


def _same(request: Request, text: str, kind: str = "application/json") -> Response:
    """The text, or 304 where the asker has it already."""
    tag = f'"{_digest(text)}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(text, media_type=f"{kind}; charset=utf-8", headers=headers)


def _module() -> str:
    return "\n".join(look.asset(name) for name in SCRIPTS)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _nothing() -> Response:
    return PlainTextResponse("There is no such page.", 404)
