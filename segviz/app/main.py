"""`segpo app runs/`: the command, and the page with its tabs."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr  # noqa: E402
import uvicorn  # noqa: E402

from segviz.app import compare, inspecting, live, look, playground, rollouts, start  # noqa: E402
from segviz.app.door import Impatient  # noqa: E402
from segviz.app.server import Desk, serve  # noqa: E402

PORT = 7860
PATIENCE = 2.0  #: seconds that threads have when the app ends
M_ARENA_MAX = -8  #: of malloc.h
AUTH = "SEGPO_AUTH"  #: the environment's USER:PASSWORD

#: The tabs, in order: title, and what fills them.
TABS = (
    ("Live", lambda desk: live.tab()),
    ("Rollouts", lambda desk: rollouts.tab(desk.shelf, desk.index, desk.notes)),
    ("Compare", lambda desk: compare.tab()),
    ("Inspect", lambda desk: inspecting.tab()),
    ("Playground", lambda desk: playground.tab()),
    ("Start a run", lambda desk: start.tab(desk.starter)),
)


def page(desk: Desk) -> gr.Blocks:
    """The page. Everything from a run is drawn by our own scripts from JSON, as text; nothing of it goes through
    Gradio's HTML or Markdown, which are templates."""
    with gr.Blocks(title="SegPO", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML("<segpo-top></segpo-top>", elem_classes="bare")
        with gr.Tabs(elem_id="tabs"):
            for title, fill in TABS:
                name = title.split()[0].lower()
                with gr.Tab(title, id=name, elem_id=f"tab-{name}"):
                    fill(desk)
    return blocks


def main(argv: Sequence[str]) -> int:
    """Run the command until Ctrl-C. Returns the exit code.

    Raises:
        ValueError: settings that do not go together; the message says what to change.
        OSError: the port is taken.
    """
    parser = argparse.ArgumentParser(
        prog="segpo app",
        description="Watch training runs in a browser: live curves, every rollout, and why it was credited as it was.",
    )
    parser.add_argument("runs", nargs="*", default=["runs"], help="directories of runs, or runs; default: runs")
    parser.add_argument("--port", type=int, help=f"default: {PORT}, or the next one that is free; 0: any")
    parser.add_argument("--share", action="store_true", help="let other machines of the network in; needs --auth")
    parser.add_argument(
        "--auth", metavar="USER:PASSWORD", help=f"who may come in; @FILE reads it from a file; default: ${AUTH}"
    )
    parser.add_argument("--open", action="store_true", help="open the browser")
    args = parser.parse_args(argv)
    auth = _auth(args.auth or os.environ.pop(AUTH, None), args.share)  # popped: no run that is started here needs it
    listener = _listener("0.0.0.0" if args.share else "127.0.0.1", args.port)
    host = socket.gethostname() if args.share else "127.0.0.1"
    url = f"http://{host}:{listener.getsockname()[1]}/"
    _few_heaps()
    # the server raises the signal that ended it once more: SIGTERM, too, must leave no temporary files behind
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Desk(args.runs) as desk:
        app = serve(desk, page(desk), auth=auth, shared=args.share, theme=look.theme(), css=look.css())
        how = {"log_level": "warning", "access_log": False, "timeout_graceful_shutdown": 1, "http": Impatient}
        server = uvicorn.Server(uvicorn.Config(app, **how))
        print(f"SegPO app at {url} (Ctrl-C ends it; it only reads {', '.join(args.runs)})", file=sys.stderr, flush=True)
        if args.open:
            webbrowser.open(url)
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    _end_although_waiting()
    return 0


def _few_heaps() -> None:
    """Two heaps for all threads, where glibc would give most of them one each: every request and every read is another
    thread's, and what one gave back to its heap no other can use."""
    if "MALLOC_ARENA_MAX" not in os.environ:
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


def _end_although_waiting() -> None:
    """A thread that waits for a file (a network file system that hangs) must not keep the process from ending."""
    others = [t for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]
    until = time.monotonic() + PATIENCE
    for thread in others:
        thread.join(max(0.0, until - time.monotonic()))
    if any(thread.is_alive() for thread in others):
        sys.stderr.flush()
        os._exit(0)


def _auth(said: str | None, share: bool) -> tuple[str, str] | None:
    """(user, password) from the command line."""
    if said is None:
        if share:
            raise ValueError(
                f"--share lets other machines in and needs a password: set {AUTH}=USER:PASSWORD, or add --auth @FILE, "
                "or --auth USER:PASSWORD (which everybody on this machine can see in the list of processes)"
            )
        return None
    if said.startswith("@"):
        said = _said_in(Path(said[1:]))
    user, colon, password = said.partition(":")
    if not (user and colon and password):
        raise ValueError("--auth must be USER:PASSWORD, for example --auth ada:correct-horse")
    if share and len(password) < 8:
        raise ValueError("the password of a shared app must have at least 8 characters")
    return user, password


def _said_in(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--auth @{path} cannot be read: {error}") from None


def _listener(host: str, port: int | None) -> socket.socket:
    """A listening socket: the port that was asked for, or the first free one from `PORT` on."""
    wanted = [port] if port is not None else range(PORT, PORT + 20)
    for number in wanted:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, number))
            listener.listen(128)  # who asks before the server is ready waits
            return listener
        except OverflowError:
            listener.close()
            raise ValueError(f"--port {number}: a port is a number from 0 to 65535") from None
        except OSError as error:
            listener.close()
            last = error
    said = f"port {port} is" if port is not None else f"ports {PORT} to {PORT + 19} are"
    raise OSError(f"{said} not free ({last.strerror}); choose another with --port, or --port 0 for any")
