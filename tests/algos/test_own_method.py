"""The example of docs/your_method.md: methods of one's own train, are recorded, and give the credit they promise."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import segviz as sv
from segpo_core.afterwards.credit import recompute
from segpo_core.afterwards.trained import Policy
from segpo_core.config import TrainConfig
from segpo_core.record import store
from segpo_core.training.loop import train
from segpo_core.types import Rollouts, pad_rows
from tests.fakes import families
from tests.fakes.toy import ToyTask

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_method.py"
spec = importlib.util.spec_from_file_location("own_method", EXAMPLE)
own_method = sys.modules["own_method"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(own_method)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return families.llava(tmp_path_factory.mktemp("llava"))


@pytest.mark.parametrize("algo", [own_method.CutpointSAPO(interval=1), own_method.Siblings()], ids=lambda a: a.name)
def test_it_trains_is_recorded_and_resumes(llava, tmp_path, algo):
    settings = dict(
        model_name_or_path=str(llava), output_dir=str(tmp_path / "run"), num_generations=4,
        per_device_train_batch_size=8, max_completion_length=8, learning_rate=1e-3, eval_steps=0, cpu=True,
    )  # fmt: skip
    train(TrainConfig(method=algo.name, algo=algo, max_steps=1, **settings), task=ToyTask())
    train(TrainConfig(method=algo.name, algo=algo, max_steps=2, resume=True, **settings), task=ToyTask())
    rows = store.read_rollouts(tmp_path / "run").to_pylist()
    assert len(rows) == 16 and {row["method"] for row in rows} == {algo.name}
    metrics = {(m["step"], m["name"]): m["value"] for m in store.read_metrics(tmp_path / "run").to_pylist()}
    assert metrics[2, "grad_norm"] > 0 and metrics[2, "skipped_updates"] == 0

    # the toolkit does not know the method by name, and still asks its policy and judges its rollouts
    policy = Policy.load(tmp_path / "run")
    assert policy.step == 2 and policy.has_critic == algo.uses_critic
    assert recompute(tmp_path / "run", ["grpo", "sapo"] if algo.uses_critic else ["grpo"], steps=[2])
    run = sv.open(tmp_path / "run")
    assert run.method_label == algo.title
    with pytest.raises(ValueError, match=algo.name):
        recompute(tmp_path / "run", [algo.name])


def rollouts_of(rows: list[list[int]], rewards: list[float], group: list[int]) -> Rollouts:
    ids = pad_rows([torch.tensor(row) for row in rows], -1)
    return Rollouts(
        completion_ids=ids.clamp(min=0), mask=ids >= 0, group=torch.tensor(group),
        finished=torch.ones(len(rows), dtype=torch.bool), sampled_logprobs=-torch.ones(ids.shape),
        entropy=torch.ones(ids.shape), rewards=torch.tensor(rewards),
    )  # fmt: skip


def test_siblings_by_hand():
    """a b c, a b d, a e: they part after a, and two of them again after b. The last row is alone in its group."""
    rows = [[1, 2, 3], [1, 2, 4], [1, 5], [1, 2, 3]]
    credit = own_method.Siblings().credit(rollouts_of(rows, [1.0, 0.0, 0.5, 1.0], [0, 0, 0, 1]))
    assert credit.segment_ids.tolist() == [[0, 1, 2], [0, 1, 2], [0, 1, -1], [0, 0, 0]]
    expected = [
        [0.0, 0.0 - 0.25, 1.0 - 0.0],  # before b the others have 0 and 0.5; after it only 0 is left; then its own 1
        [0.0, 1.0 - 0.75, 0.0 - 1.0],
        [0.0, 0.5 - 0.5, 0.0],
        [0.0, 0.0, 0.0],
    ]
    torch.testing.assert_close(credit.advantages, torch.tensor(expected))
    assert credit.metrics["siblings/alone"] == 0.25


def test_siblings_add_up_to_the_reward_minus_the_others():
    """Whatever way a completion took, its segments together get RLOO's advantage; one without verdict gets none."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 2, (12, 6), generator=generator)
    rewards = torch.rand(12, generator=generator)
    group = [0] * 6 + [1] * 6
    rollouts = rollouts_of(ids.tolist(), rewards.tolist(), group)
    credit = own_method.Siblings().credit(rollouts)
    begins = torch.cat([torch.ones(12, 1, dtype=torch.bool), credit.segment_ids.diff(dim=1) > 0], 1)
    total = torch.where(begins, credit.advantages, 0).sum(1)
    mean = torch.stack([(rewards[torch.tensor(group) == g].sum() - r) / 5 for g, r in zip(group, rewards, strict=True)])
    torch.testing.assert_close(total, rewards - mean)
    rollouts.rewards[0] = torch.nan
    credit = own_method.Siblings().credit(rollouts)
    assert not credit.loss_mask[0].all() and not credit.advantages[1:].isnan().any()
