"""HTTP to a vLLM server: what is asked is asked again where that may help, and what is wrong is said in words."""

from __future__ import annotations

import http.client
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

log = logging.getLogger(__name__)

#: Seconds before each further attempt: a server that is restarted, or a network that is gone for a minute, comes back.
WAITS = (1.0, 5.0, 15.0, 45.0)


class EngineError(ConnectionError):
    """The sampling engine does not answer, or answers what cannot be used."""


class Server:
    """A vLLM server.

    Args:
        url: where it is, such as http://127.0.0.1:8000.
        timeout: seconds that one answer may take.
        waits: seconds before each further attempt; a request that the server refuses (4xx) is not made again.
    """

    def __init__(self, url: str, timeout: float = 240.0, waits: Sequence[float] = WAITS):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"vllm_server_url {url!r} is no address: it looks like http://127.0.0.1:8000")
        self.url, self.timeout, self.waits = url.rstrip("/"), timeout, tuple(waits)
        # An engine is a neighbour: what a proxy for the outer world says does not hold for it.
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str) -> Any:
        """The answer to GET, from JSON. Errors as `post`."""
        return self._asked(path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The answer to POST, from JSON; text where it is none.

        Raises:
            Refused: the server says no (4xx).
            EngineError: it does not answer, or fails (5xx), after all attempts.
        """
        return self._asked(path, body)

    def answers(self) -> bool:
        """Whether it is up."""
        try:
            with self.opener.open(f"{self.url}/health", timeout=min(self.timeout, 10.0)) as reply:
                return reply.status == 200
        except (OSError, http.client.HTTPException):
            return False

    def _asked(self, path: str, body: dict[str, Any] | None) -> Any:
        for wait in (*self.waits, None):
            try:
                return self._once(path, body)
            except Refused:
                raise
            except EngineError as error:
                if wait is None:
                    raise EngineError(f"{error}, {len(self.waits) + 1} times") from error
                log.warning("%s; it is tried again in %g s", error, wait)
                time.sleep(wait)

    def _once(self, path: str, body: dict[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with self.opener.open(request, timeout=self.timeout) as reply:
                text = reply.read()
        except urllib.error.HTTPError as error:
            said = f"the vLLM server at {self.url} answers {error.code} to {path}: {_message(error.read())}"
            raise (Refused if 400 <= error.code < 500 and error.code != 429 else EngineError)(said) from error
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "reason", None) or error or type(error).__name__
            raise EngineError(f"the vLLM server at {self.url} does not answer {path} ({why})") from error
        try:
            return json.loads(text)
        except ValueError:
            return text.decode("utf-8", errors="replace")


class Refused(EngineError):
    """The server will not do it, however often it is asked."""


def _message(text: bytes) -> str:
    """What an answer with an error says."""
    try:
        said = json.loads(text)
        error = said.get("error", said.get("detail", said))
        return str(error["message"] if isinstance(error, dict) and "message" in error else error)[:1000]
    except (ValueError, AttributeError):
        return text.decode("utf-8", errors="replace")[:1000]
