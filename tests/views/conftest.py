"""The runs that the tests of most views look at, made once a file."""

from __future__ import annotations

import pytest

import segviz as sv
from segpo_core.record.store import Recorder
from tests.fakes.fake_run import hostile_row, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> sv.Run:
    """24 steps, and one rollout whose every text is hostile."""
    return sv.open(write_run(tmp_path_factory.mktemp("runs") / "demo", extra=[hostile_row()]))


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> sv.Run:
    """A run that has begun and recorded nothing."""
    path = tmp_path_factory.mktemp("runs") / "empty"
    Recorder(path).start({"max_steps": 10})
    return sv.open(path)
