"""A resumed run is the run that it goes on from."""

import dataclasses

import pytest

from segpo_core.algos import GRPO, SAPO, SPOTree
from segpo_core.training.agreed import differences
from segpo_core.training.loop import Trainer
from tests.fakes import families
from tests.fakes.toy import ToyTask
from tests.training.test_loop import config_for


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return families.llama(tmp_path_factory.mktemp("llama"))


def test_what_differs_is_named_and_nothing_is_touched(llama, tmp_path):
    config = config_for(llama, tmp_path / "run", GRPO())
    Trainer(config, task=ToyTask(images=False)).run()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    other = dict(algo=SAPO(), method="sapo", seed=3, temperature=0.5, top_k=5)
    changed = dataclasses.replace(config, **other, resume=True, max_steps=9)
    with pytest.raises(ValueError, match="begun with other settings") as error:
        Trainer(changed, task=ToyTask(images=False))
    for told in (
        "method was 'grpo', is 'sapo'", "seed was 0, is 3", "temperature was 1.0, is 0.5", "top_k was 0, is 5",
    ):  # fmt: skip
        assert told in str(error.value)
    assert "max_steps" not in str(error.value)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}


def test_how_long_and_how_watched_may_differ(llama, tmp_path):
    config = config_for(llama, tmp_path / "run", SPOTree(branch=(2, 2), segment_tokens=3), num_generations=4)
    Trainer(config, task=ToyTask(images=False)).run()
    more = dataclasses.replace(config, resume=True, max_steps=2, save_steps=1, record_steps=0, save_total_limit=5)
    trainer = Trainer(more, task=ToyTask(images=False))
    trainer.run()
    assert trainer.step == 2


def test_settings_that_only_one_version_knows_are_no_difference():
    now = {"seed": 0, "branch": (2, 2), "new": 1, "dataset_args": {"at": [1]}}
    assert differences({"seed": 0, "branch": [2, 2], "old": 2, "dataset_args": {"at": [1]}}, now) == []
    assert differences({"seed": 1, "branch": [2, 3]}, now) == ["seed was 1, is 0", "branch was [2, 3], is (2, 2)"]
