"""Around the whole app, Gradio's own routes included: who may ask, for what, and with how much."""

from __future__ import annotations

import asyncio
import re

from fastapi import HTTPException
from fastapi.responses import PlainTextResponse, Response
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from segviz.app.door import BODY, Door
from segviz.app.uploads import LARGEST_FILE

HERE = ("127.0.0.1", "localhost", "[::1]")

#: Gradio's page runs its own inline scripts; it may still fetch nothing from elsewhere, nor be framed elsewhere.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self'; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)

#: Routes of Gradio that no tab uses: files kept and fetched, other servers, streams, what its authors watch and edit.
CLOSED = re.compile(
    r"/*(gradio_api/)?(upload|proxy=|file[=/]|stream/|component_server|process_recording|custom_component/|vibe-|"
    r"undo-vibe|profiling|monitoring|run-history|dev/|deep_link|login(/|$)|logout|token)"
)
LARGEST_BODY = 2**18  #: bytes; settings and questions are far smaller. A picture may be larger, see uploads.py.
PICTURE = "/segpo/api/play/picture"


class Guard:
    """ASGI around everything: the password, who is asked as whom, how much is read, and what answers may do."""

    def __init__(self, app: ASGIApp, auth: tuple[str, str] | None, shared: bool):
        self.app, self.door, self.shared = app, Door(auth) if auth else None, shared

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), scope.get("path", "")
        refusal = self.refusal(headers, path, scope.get("scheme", "http"))
        most, read, more = LARGEST_FILE if path == PICTURE else LARGEST_BODY, 0, True
        until: float | None = None

        async def bounded() -> Message:
            nonlocal read, more, until
            until = until or asyncio.get_running_loop().time() + BODY
            try:
                async with asyncio.timeout_at(until if more else None):  # after the body comes the end, much later
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "What was sent took too long to come.") from None
            more = bool(message.get("more_body"))
            read += len(message.get("body") or b"")
            if read > most + 1:  # the routes that take a file say it in their own words
                raise HTTPException(413, "That is more than this app takes.")
            return message

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message["headers"]}
                for name, value in (
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"same-origin"),
                    (b"cross-origin-resource-policy", b"same-origin"),
                    (b"content-security-policy", POLICY.encode()),
                ):
                    if name not in there:
                        message["headers"].append((name, value))
            await send(message)

        if refusal is None and self.door is not None:
            try:
                refusal = await self.door.refusal(scope, headers, bounded)
            except HTTPException as error:
                refusal = PlainTextResponse(str(error.detail), error.status_code)
        if refusal is not None:
            await refusal(scope, receive, answer)
            return
        await self.app(scope, bounded, answer)

    def refusal(self, headers: Headers, path: str, scheme: str) -> Response | None:
        """The answer to a request that is not let in."""
        host = headers.get("host", "")
        if not self.shared and re.sub(r":\d+$", "", host) not in HERE:
            # a web site whose name was made to point here must not read runs in the reader's name
            return PlainTextResponse("This app answers to localhost only.", 403)
        origin = headers.get("origin")
        if origin is not None and origin != f"{scheme.replace('ws', 'http')}://{host}":
            return PlainTextResponse("Another web site asked for this in your name; refused.", 403)
        if "\0" in path or CLOSED.match(path):
            return PlainTextResponse("There is no such page.", 404)
        told = headers.get("content-length", "0")
        if path != PICTURE and (not told.isdecimal() or int(told[:20]) > LARGEST_BODY):
            return PlainTextResponse("That is more than this app takes.", 413)
        return None
