"""A trainer's memory and files do not grow with its steps."""

import gc
import os

from segpo_core.algos import GRPO
from segpo_core.config import TrainConfig
from segpo_core.record import metrics, together
from segpo_core.training.loop import Trainer
from tests.fakes import families
from tests.fakes.toy import ToyTask


def test_objects_and_open_files_are_as_many_after_many_steps_as_after_few(tmp_path, monkeypatch):
    for module in (metrics, together):
        monkeypatch.setattr(module, "TOGETHER", 4)
    monkeypatch.setattr("segpo_core.record.store.TOGETHER", 4)
    monkeypatch.setattr(together, "SETTLED", 0)
    seen = {}

    def count(step, *_):
        if step % 4 == 1:
            gc.collect()
            seen[step] = len(gc.get_objects()), len(os.listdir("/dev/fd"))

    config = TrainConfig(
        method="grpo", algo=GRPO(), model_name_or_path=str(families.llama(tmp_path / "model")), cpu=True,
        output_dir=str(tmp_path / "run"), num_generations=4, per_device_train_batch_size=4, max_completion_length=4,
        max_steps=29, eval_steps=0, save_steps=0, record_steps=1,
    )  # fmt: skip
    Trainer(config, task=ToyTask(images=False), on_step=count).run()
    objects, files = zip(*(seen[step] for step in (13, 17, 21, 25, 29)), strict=True)
    assert max(objects) - min(objects) < 16, seen  # a step has some hundred
    assert len(set(files)) == 1, seen
