"""Two recorded runs, and the app that serves them."""

import pytest

from segviz.app.index import Index
from tests.app.served import serving
from tests.fakes.fake_run import hostile_row, write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "first", extra=[hostile_row()])
    write_run(folder / "second", "grpo", seed=3)
    return folder


@pytest.fixture(scope="module")
def address(runs):
    with serving(runs) as (address, _):
        yield address


@pytest.fixture
def index():
    index = Index()
    yield index
    index.close()
