"""The real app in a process of its own, and questions to it."""

import http.client
import json
import re
import time
from contextlib import contextmanager
from urllib.parse import urlencode

from segviz.app.rollouts import Question, ask
from tests.fakes.forks import Segpo


@contextmanager
def serving(*arguments, fork=True, **environment):
    """The real app in a process of its own: (its address as host:port, the process)."""
    process = Segpo("app", *arguments, "--port", "0", fork=fork, **environment)
    try:
        while not (found := re.search(r"app at http://([^/]+)/", process.said)):
            assert process.poll() is None, f"the app ended: {process.said}"
            time.sleep(0.01)
        yield found[1], process
    finally:
        process.terminate()
        process.wait(60)


def get(address, path, **headers):
    """(status, headers, body) of a request whose path is sent as it is, nothing made tidy."""
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.putrequest("GET", path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def told(address, path, **parameters):
    status, _, body = get(address, f"/segpo/api/{path}?{urlencode(parameters, doseq=True)}")
    return status, json.loads(body)


def read_all(shelf, index, **question):
    """The answer once everything is in the index."""
    deadline = time.monotonic() + 60
    while True:
        answer = ask(shelf, index, Question(**question))
        if answer["read"] == answer["files"]:
            return answer
        assert time.monotonic() < deadline
        time.sleep(0.05)


def key(row):
    return row["step"], row["group"], row["sample"]
