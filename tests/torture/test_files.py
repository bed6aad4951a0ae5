"""A few hundred wrong files: every reader works, or says what is wrong; none hangs, none ends in a traceback."""

import json

import pytest

from segpo_core.algos import GRPO
from segpo_core.training.loop import Trainer
from tests.fakes import families
from tests.fakes.fake_run import write_run
from tests.fakes.toy import ToyTask
from tests.torture import attempts
from tests.training.test_loop import config_for


def tried(attempt, number, place, first=0):
    """What went wrong, by seed."""
    found = {}
    for seed in range(first, first + number):
        done, why = attempt(place, seed)
        if why:
            found[seed] = f"{done} → {why}"
        attempts.removed(place)
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A real run, of two steps."""
    folder = tmp_path_factory.mktemp("real")
    config = config_for(families.llama(folder / "model"), folder / "run", GRPO(), max_steps=2)
    return Trainer(config, task=ToyTask(images=False)).run()


def test_run_directories(tmp_path):
    source = write_run(tmp_path / "source", steps=6, groups=2, samples=2)
    assert not tried(lambda place, seed: attempts.run_views(source, place, seed), 40, tmp_path / "run")


def test_credit(trained, tmp_path):
    assert not tried(lambda place, seed: attempts.run_credit(trained, place, seed), 30, tmp_path / "run")


def test_settings(tmp_path):
    source = tmp_path / "source.yaml"
    source.write_text(json.dumps({"method": "sapo", "max_steps": 10, "learning_rate": 1e-4}))
    assert not tried(lambda place, seed: attempts.settings(source, place, seed), 60, tmp_path / "it.yaml")


@pytest.mark.parametrize("kind", ["verl", "trl"])
def test_dumps(tmp_path, kind):
    assert not tried(lambda place, seed: attempts.dump(kind, place, seed), 40, tmp_path / "dump")


def test_data_sets(tmp_path):
    assert not tried(attempts.data_set, 60, tmp_path / "data")
