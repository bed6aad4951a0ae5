"""Who comes in, by what, and what wrong passwords and slow connections cost the others: nothing."""

import asyncio
import http.client
import socket
import threading
from base64 import b64encode
from urllib.parse import urlencode

import pytest
import uvicorn
from fastapi.responses import PlainTextResponse
from starlette.datastructures import Headers

from segviz.app import door
from tests.app.served import get, serving

GOOD = ("ada", "correct horse")


@pytest.fixture(scope="module")
def guarded(runs):
    with serving(runs, SEGPO_AUTH=":".join(GOOD)) as (address, _):
        yield address


def post(address, path, body="", **headers):
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST", path, body, {"Content-Type": "application/x-www-form-urlencoded"} | headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


def test_a_browser_logs_in_and_programs_say_who_they_are(guarded):
    page = {"Accept": "text/html", "Origin": f"http://{guarded}"}
    status, headers, body = get(guarded, "/", **page)
    assert status == 401 and b'name="password"' in body and "WWW-Authenticate" not in headers
    assert "default-src 'none'" in headers["Content-Security-Policy"] and headers["X-Content-Type-Options"] == "nosniff"
    wrong = urlencode({"user": "ada", "password": "correct hors"})
    status, headers, body = post(guarded, door.LOGIN, wrong, **page)
    assert status == 401 and "That was not right." in body and "Set-Cookie" not in headers
    right = urlencode(dict(zip(("user", "password"), GOOD, strict=True)))
    assert post(guarded, door.LOGIN, right, Origin="http://evil.example")[0] == 403
    status, headers, _ = post(guarded, door.LOGIN, right, **page)
    cookie = headers["Set-Cookie"]
    assert status == 303 and headers["Location"] == "/"
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Secure" not in cookie
    mine = cookie.partition(";")[0]
    for path in ("/", "/segpo/api/runs", "/gradio_api/info"):
        assert get(guarded, path, Cookie=mine)[0] == 200, path
        for other in ("segpo=", f"{mine}x", mine[:-1], "segpo=%00", 'segpo="', mine.replace("segpo", "other")):
            assert get(guarded, path, Cookie=other)[0] == 401, (path, other)
    assert post(guarded, "/segpo/api/trainer/stop", Cookie=mine)[0] == 403, "who asks is not said"
    assert post(guarded, "/segpo/api/trainer/stop", Cookie=mine, Origin="http://evil.example")[0] == 403
    assert post(guarded, "/segpo/api/trainer/stop", Cookie=mine, Origin=f"http://{guarded}")[0] not in (401, 403)


def test_behind_a_proxy_that_speaks_tls(guarded):
    """It passes the Host on and says the scheme; the cookie then goes over TLS only."""
    tls = {"Origin": f"https://{guarded}", "X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.7"}
    status, headers, _ = post(guarded, door.LOGIN, urlencode(dict(zip(("user", "password"), GOOD, strict=True))), **tls)
    assert status == 303 and "Secure" in headers["Set-Cookie"]
    assert post(guarded, door.LOGIN, "", **(tls | {"Origin": f"http://{guarded}"}))[0] == 403


def test_two_hundred_slow_connections_hold_nobody(guarded):
    host, port = guarded.split(":")
    slow = [socket.create_connection((host, int(port)), timeout=60) for _ in range(200)]
    try:
        for number, one in enumerate(slow):  # half a head; a head, and then no body
            body = f"POST {door.LOGIN} HTTP/1.1\r\nHost: {guarded}\r\nContent-Length: 9\r\n\r\nuser"
            one.sendall(b"GET / HTTP/1.1\r\nHost: " if number % 2 else body.encode())
        basic = "Basic " + b64encode(":".join(GOOD).encode()).decode()
        for _ in range(5):
            assert get(guarded, "/segpo/api/runs", Authorization=basic)[0] == 200
    finally:
        for one in slow:
            one.close()


def asked(door_, address="1.2.3.4", **headers):
    scope = {"type": "http", "method": "GET", "path": "/", "client": (address, 1), "scheme": "http"}
    return door_.refusal(scope, Headers(headers), None)


def basic(password):
    return {"authorization": "Basic " + b64encode(f"ada:{password}".encode()).decode()}


def test_wrong_passwords_are_not_tried_side_by_side():
    async def many():
        own = door.Door(GOOD)
        answers = await asyncio.gather(*(asked(own, **basic(f"wrong {i}")) for i in range(5)))
        return [answer.status_code for answer in answers]

    assert asyncio.run(many()) == [401, 429, 429, 429, 429]


def test_after_many_wrong_ones_an_address_waits(monkeypatch):
    monkeypatch.setattr(door, "SLOW", 0.0)

    async def many():
        own = door.Door(GOOD)
        for i in range(door.MANY):
            assert (await asked(own, **basic(f"wrong {i}"))).status_code == 401
        assert (await asked(own, **basic(GOOD[1]))).status_code == 429, "the right one too: it is not looked at"
        assert await asked(own, "5.6.7.8", **basic(GOOD[1])) is None, "others come in"

    asyncio.run(many())


def test_who_never_says_a_whole_head_is_hung_up_on(monkeypatch):
    """Before the first request, and after one on the same connection."""
    monkeypatch.setattr(door, "HEAD", 0.5)
    config = uvicorn.Config(PlainTextResponse("hello"), log_level="error", http=door.Impatient)
    server, listener = uvicorn.Server(config), socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        for before in (b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"):
            with socket.create_connection(listener.getsockname(), timeout=60) as one:
                one.sendall(before)
                said = b""
                while before and not said.endswith(b"hello"):
                    said += one.recv(4096)
                one.sendall(b"GET / HTTP/1.1\r\nX-A: b")
                assert one.recv(4096) == b"", "closed"
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()
