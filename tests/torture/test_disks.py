"""Disks that fail under a run: it goes on, or says why not and goes on later; what it learns is the same."""

import pytest

from tests.fakes import families
from tests.torture import disks


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return disks.undisturbed(families.llama(folder / "model"), folder)


@pytest.mark.parametrize("name", disks.CASES)
def test_a_disk_that_fails(whole, tmp_path, name):
    outcome = disks.tried(name, whole, tmp_path)
    if "cannot" in outcome:
        pytest.skip(f"a mount of one's own is not allowed here: {outcome['cannot']}")
    assert not outcome["wrong"]
