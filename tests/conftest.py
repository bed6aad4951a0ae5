"""What every test shares: no network, no telemetry, one thread a process, and the browser."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from pathlib import Path

# Before the libraries are imported: they read these once. Subprocesses inherit them.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    GRADIO_ANALYTICS_ENABLED="False",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
)

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)

# A busy machine is not a failure.
hypothesis.settings.register_profile("segpo", deadline=None)
hypothesis.settings.load_profile("segpo")

#: Rooms that test segviz or whole processes, coverage being of segpo_core.
UNMEASURED = {"app", "browser", "notebook", "torture", "views", "vllm"}


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item):
    """Measuring coverage costs half as much time again; where it finds next to nothing, nothing is measured.

    Not pytest-cov's `no_cover`: in xdist's workers a second measurement goes on below the one that it stops.
    """
    room = item.path.relative_to(Path(__file__).parent).parts[0]
    if room not in UNMEASURED and not item.get_closest_marker("slow"):
        return (yield)
    here, threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(here)
        threading.settrace(threads)


IN_CI = os.environ.get("CI", "").lower() in ("1", "true")


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """Path of a Chromium. Without one the test is skipped; in continuous integration it fails."""
    for name in (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    message = "no Chromium: install one (Debian: apt-get install chromium), or set CHROMIUM=/path/to/it"
    if IN_CI:
        pytest.fail(message)
    pytest.skip(message)
