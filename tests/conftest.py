"""What every test shares: no network, no telemetry, one thread a process, and the browser."""

from __future__ import annotations

import os
import shutil
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Measuring coverage costs half as much time again; where it finds next to nothing, pytest-cov does not measure."""
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).parts[0] in UNMEASURED or item.get_closest_marker("slow"):
            item.add_marker("no_cover")


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
