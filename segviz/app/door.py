"""Who may come in: a password, a cookie for browsers, and patience with wrong tries and slow lines that has an end."""

from __future__ import annotations

import asyncio
import base64
import binascii
import secrets
import time
from collections import OrderedDict
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

import h11
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.datastructures import Headers
from starlette.types import Receive
from uvicorn.protocols.http.h11_impl import H11Protocol

LOGIN = "/segpo/login"
COOKIE = "segpo"
SESSION = 12 * 3600.0  #: seconds that a login lasts
SLOW = 0.5  #: seconds that a wrong password costs, and in which its address may not try another
MANY, LONG = 10, 30.0  #: after so many wrong ones in a row, so many seconds
ADDRESSES = 10_000  #: that are remembered
HEAD, BODY = 20.0, 60.0  #: seconds in which a request's head, and then its body, must have come
LARGEST_LOGIN = 4096  #: bytes

_STYLE = (
    "body{font:15px/1.55 system-ui,sans-serif;margin:0;display:grid;place-items:center;min-height:90vh;color:#24262b;"
    "background:#fbfaf8}form{display:grid;gap:12px;width:min(22rem,86vw)}label{display:grid;gap:4px}input,button{"
    "font:inherit;padding:8px 10px;border:1px solid #8a8d94;border-radius:6px;background:#fff;color:inherit}button{"
    "background:#24262b;color:#fff}h1{font-size:20px;margin:0}p{margin:0;color:#a3401f}@media (prefers-color-scheme:"
    "dark){body{color:#e8e9ec;background:#14161a}input{background:#1d2026}button{background:#e8e9ec;color:#14161a}"
    "p{color:#f0a27f}}"
)
_PAGE = f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>SegPO</title><style>{_STYLE}</style><form method="post" action="{LOGIN}"><h1>SegPO</h1>WORDS
<label>Name<input name="user" autocomplete="username" required autofocus></label>
<label>Password<input name="password" type="password" autocomplete="current-password" required></label>
<button>Come in</button></form></html>"""


class Door:
    """The password, and who has shown it. One process, no lock: everything here runs in the server's loop."""

    def __init__(self, auth: tuple[str, str]):
        self.wanted = ":".join(auth).encode()
        self._sessions: dict[str, float] = {}  #: token -> when it ends
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()  #: address -> wrong tries, may try again at

    async def refusal(self, scope: Any, headers: Headers, receive: Receive) -> Response | None:
        """The answer to who is not let in, or who just logs in; None: come in."""
        if self.known(headers):
            # SameSite keeps the cookie out of other sites' requests, and Origin was looked at; a browser that says
            # neither is none that we know, and only reads.
            told = "origin" in headers or headers.get("sec-fetch-site") == "same-origin"
            return None if scope.get("method", "GET") in ("GET", "HEAD") or told else Response("Who asks?", 403)
        address = (scope.get("client") or ("",))[0]
        login = scope["path"] == LOGIN and scope.get("method") == "POST"
        if not login and "authorization" not in headers:
            return self.ask(headers)
        if self._wrong.get(address, (0, 0.0))[1] > time.monotonic():  # whatever it says: it is not even read
            return Response("Too many tries; wait a moment.", 429, {"Retry-After": "1"})
        said = await _form(receive) if login else _basic(headers["authorization"])
        if said is not None and secrets.compare_digest(said, self.wanted):
            self._wrong.pop(address, None)
            return self._welcome(scope) if login else None
        self._slow(address)
        await asyncio.sleep(SLOW)
        return self.ask(headers, "That was not right." if login else "")

    def known(self, headers: Headers) -> bool:
        """Whether the request brings the cookie of someone who logged in."""
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        now = time.monotonic()
        self._sessions = {token: end for token, end in self._sessions.items() if end > now}
        return morsel is not None and any(
            secrets.compare_digest(token.encode(), morsel.value.encode()) for token in self._sessions
        )

    def ask(self, headers: Headers, words: str = "") -> Response:
        """A form for people, a challenge for programs."""
        if "text/html" not in headers.get("accept", ""):
            return Response(
                "Name and password, please.", 401, {"WWW-Authenticate": 'Basic realm="SegPO", charset="UTF-8"'}
            )
        policy = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
        page = _PAGE.replace("WORDS", f'<p role="alert">{words}</p>' if words else "")
        return HTMLResponse(page, 401, {"Content-Security-Policy": policy, "Cache-Control": "no-store"})

    def _welcome(self, scope: Any) -> Response:
        token = secrets.token_urlsafe(32)
        self._sessions[token] = time.monotonic() + SESSION
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=scope.get("scheme") == "https")
        return answer

    def _slow(self, address: str) -> None:
        number = self._wrong.pop(address, (0, 0.0))[0] + 1
        self._wrong[address] = number, time.monotonic() + (LONG if number >= MANY else 0.9 * SLOW)
        while len(self._wrong) > ADDRESSES:
            self._wrong.popitem(last=False)


def _basic(said: str) -> bytes | None:
    kind, _, rest = said.partition(" ")
    try:
        return base64.b64decode(rest, validate=True) if kind.lower() == "basic" else None
    except (binascii.Error, ValueError):
        return None


async def _form(receive: Receive) -> bytes | None:
    """user:password of a form."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body") or b""
        if len(body) > LARGEST_LOGIN or message["type"] != "http.request":
            return None
        if not message.get("more_body"):
            break
    said = parse_qs(body.decode("utf-8", "replace"))
    return ":".join((said.get("user") or [""])[0:1] + (said.get("password") or [""])[0:1]).encode()


class Impatient(H11Protocol):
    """A connection is closed where the head of a request does not come in time: many slow ones would use up all."""

    late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.late is not None:
            self.late.cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        waits = self.conn.their_state is h11.IDLE
        if waits and self.late is None:
            self.late = self.loop.call_later(HEAD, self.transport.close)
        elif not waits and self.late is not None:
            self.late.cancel()
            self.late = None
