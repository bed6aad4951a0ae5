"""Disks that fail under a run: it goes on, or says why not and goes on later; what it learns is the same."""

import pytest

from tests.fakes import families
from tests.torture import disks


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return families.llama(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("name", disks.CASES)
def test_a_disk_that_fails(model, tmp_path, name):
    outcome = disks.tried(name, model, tmp_path)
    if "cannot" in outcome:
        pytest.skip(f"a mount of one's own is not allowed here: {outcome['cannot']}")
    assert not outcome["wrong"]
