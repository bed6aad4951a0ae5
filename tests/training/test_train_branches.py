"""Training with chains and trees: one step on every family, and what must not change its result."""

import pytest
import torch

from segpo_core.algos import SPOChain, SPOTree, VinePPO
from segpo_core.record import store
from segpo_core.record.rows import rollouts_from_rows
from segpo_core.training import micro
from segpo_core.training.loop import Trainer
from tests.fakes import families
from tests.fakes.toy import ToyTask
from tests.training.test_loop import config_for, trained, weights

CHAIN = SPOChain(num_continuations=2)
TREE = SPOTree(branch=(3, 2), segment_tokens=3)


@pytest.fixture(scope="module", params=sorted(families.FAMILIES))
def family(request, tmp_path_factory):
    return request.param, families.FAMILIES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return families.llava(tmp_path_factory.mktemp("llava"))


def assert_same(trainer: Trainer, other: dict[str, torch.Tensor]) -> None:
    """The same weights up to rounding. A key's bias moves no softmax: its gradient is rounding alone, which Adam blows
    up to whole steps."""
    for name, value in weights(trainer).items():
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(value, other[name], atol=2e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def metrics_of(run) -> dict[str, float]:
    return {m["name"]: m["value"] for m in store.read_metrics(run).to_pylist()}


@pytest.mark.parametrize("algo", [CHAIN, VinePPO(num_continuations=2), TREE], ids=lambda a: a.name)
def test_one_step_on_every_family(family, algo, tmp_path):
    _, path = family
    trainer = trained(path, tmp_path / "run", algo, steps_per_generation=2)
    metrics = metrics_of(tmp_path / "run")
    assert metrics["record/failures"] == 0 and metrics["skipped_updates"] == 0 and metrics["grad_norm"] > 0
    assert metrics["tokens_computed_per_token_kept"] > 1
    rows = store.read_rollouts(tmp_path / "run").to_pylist()
    for row in rows:
        known = [v is not None for v in row["mc_values"]] if algo is not TREE else None
        assert known is None or [t for t, k in enumerate(known) if k] == row["segment_start"]
        assert len(row["node_ids"]) == len(row["token_ids"])
    again = rollouts_from_rows(rows)
    credit = trainer.method.credit(again)
    recorded = [[m for m in row["loss_mask"]] for row in rows]
    assert [row[:n] for row, n in zip(credit.loss_mask.tolist(), again.lengths.tolist(), strict=True)] == recorded


@pytest.mark.parametrize("algo", [CHAIN, TREE, SPOTree(branch=(3, 2), segment_tokens=3, beta=0.1)])
def test_the_update_does_not_depend_on_micro_batches(llava, tmp_path, algo):
    one = weights(trained(llava, tmp_path / "one", algo))
    for size in (4, 3):
        changes = dict(per_device_train_batch_size=size, gradient_accumulation_steps=12 // size)
        assert_same(trained(llava, tmp_path / f"by{size}", algo, **changes), one)


def test_packed_or_by_rows_is_the_same_update(llava, tmp_path, monkeypatch):
    packed = weights(trained(llava, tmp_path / "packed", TREE))
    monkeypatch.setattr(micro, "can_pack", lambda model, prompts: False)
    assert_same(trained(llava, tmp_path / "rows", TREE), packed)


def test_the_ratio_is_exactly_one_before_the_first_update(llava, tmp_path):
    config = config_for(llava, tmp_path / "run", TREE, learning_rate=0.0, num_iterations=2, score_after_update=True)
    trainer = Trainer(config, task=ToyTask())
    trainer.step = 1
    metrics = trainer.train_step()
    assert metrics["ratio/min"] == metrics["ratio/max"] == 1.0 and metrics["step_kl"] == 0.0
    assert metrics["sampling_logp_difference"] < 1e-4


@pytest.mark.parametrize("packing", [True, False])
def test_a_tree_that_teaches_nothing_changes_nothing(llava, tmp_path, monkeypatch, packing):
    monkeypatch.setattr(micro, "can_pack", lambda model, prompts: packing)
    task = ToyTask(reward_funcs=[lambda prompts, completions, **columns: [1.0] * len(completions)])
    trainer = Trainer(config_for(llava, tmp_path / "run", TREE), task=task)
    before = weights(trainer)
    trainer.run()
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())
    assert metrics_of(tmp_path / "run")["tree/zero_advantage_edges"] > 0


def test_a_cut_leaf_leaves_the_loss_but_not_what_it_shares(llava, tmp_path):
    seen = {}
    trainer = Trainer(
        config_for(llava, tmp_path / "run", TREE, mask_truncated_completions=True), task=ToyTask(),
        on_step=lambda step, metrics, rollouts, credit: seen.update(rollouts=rollouts, credit=credit),
    )  # fmt: skip
    trainer.run()
    rollouts, used = seen["rollouts"], seen["credit"]
    plain = TREE.credit(rollouts)
    last = rollouts.node_ids == rollouts.node_ids.gather(1, rollouts.lengths[:, None] - 1)
    cut = ~rollouts.finished[:, None] & last
    assert (plain.loss_mask & cut).any() and not (used.loss_mask & cut).any()
    assert used.loss_mask.equal(plain.loss_mask & ~cut)


def test_resuming_repeats_the_run(llava, tmp_path):
    for algo in (CHAIN, TREE):
        trained(llava, tmp_path / algo.name, algo)
        again = trained(llava, tmp_path / algo.name, algo, resume=True, max_steps=2)
        straight = trained(llava, tmp_path / f"straight-{algo.name}", algo, max_steps=2)
        for name, value in weights(straight).items():
            assert torch.equal(value, weights(again)[name]), name
