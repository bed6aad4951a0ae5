"""Starting a run from the app."""

import re

import pytest

from segviz.app.start import Settings, Starter


@pytest.mark.parametrize(
    "change, words",
    [
        ({"name": "../up"}, "The name must begin"),
        ({"name": ""}, "The name must begin"),
        ({"name": "a/b"}, "The name must begin"),
        ({"name": "-rf"}, "The name must begin"),
        ({"name": "x" * 65}, "The name must begin"),
        ({"name": "a\n"}, "The name must begin"),
        ({"method": "sap; rm"}, "The method must be one of"),
        ({"max_steps": 0}, "max steps must be a whole number from 1"),
        ({"completions": 63}, "must be a multiple"),
        ({"learning_rate": 0.0}, "between 0 and 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        Settings(**{"name": "fine"} | change)


def test_a_run_is_started_only_where_nothing_is(tmp_path):
    starter = Starter(tmp_path)
    try:
        (tmp_path / "sapo-1").mkdir()
        (tmp_path / "grpo-1").symlink_to(tmp_path / "nowhere")
        assert starter.free_name() == "sapo-2" and starter.free_name("grpo") == "grpo-2"
        for name in ("sapo-1", "grpo-1"):
            with pytest.raises(ValueError, match="a folder"):
                starter.start(Settings(name))
        with pytest.raises(ValueError, match="Nothing is training"):
            starter.stop()
        assert starter.status()["state"] == "idle"
    finally:
        starter.close()
