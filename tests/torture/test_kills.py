"""A few kills at random moments: what is resumed is, bit for bit, the run nobody touched. `make torture` kills more."""

import pytest

from tests.fakes import families
from tests.torture import kills


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "number", "processes"), [("sapo", 3, 1), ("grpo, LoRA, accumulation", 3, 1), ("grpo", 1, 2)]
)
def test_sigkill_then_resume_is_bit_identical(tmp_path, kind, number, processes):
    model = (families.llava if kills.KINDS[kind][1] else families.llama)(tmp_path / "model")
    told = kills.killed(kind, model, tmp_path, number, processes)
    assert not told.wrong and told.kills == number and told.reads > 0
