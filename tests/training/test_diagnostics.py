"""Numbers about values: known closed forms, honest for values that are made of the rewards they explain."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segpo_core import losses
from segpo_core.algos import GRPO, GSPO, METHODS, PPO, RLOO, SAPO, SRPO, Forks, SPOChain, SPOTree, TreeRL, VinePPO
from segpo_core.record import store
from segpo_core.training.diagnostics import (
    calibration_error,
    describe,
    error_beyond_noise,
    some_states,
    value_metrics,
    value_without_own_branch,
)
from segpo_core.types import Rollouts
from tests.algos.test_bad_method_input import batch
from tests.fakes import families
from tests.sampling.test_packing import forests, rollouts_of_tree
from tests.training.test_loop import trained, weights

nan = math.nan


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return families.llava(tmp_path_factory.mktemp("llava"))


def metrics(run) -> dict[tuple[int, str], float]:
    return {(m["step"], m["name"]): m["value"] for m in store.read_metrics(run).to_pylist()}


# --- calibration ------------------------------------------------------------------------------------------------


def test_calibration_error_of_two_forecasts():
    values = torch.tensor([0.1] * 10 + [0.9] * 10)
    outcomes = torch.tensor([1.0] * 3 + [0.0] * 7 + [1.0] * 7 + [0.0] * 3)
    assert float(calibration_error(values, outcomes)) == pytest.approx(0.2)
    honest = torch.tensor([0.3] * 10 + [0.7] * 10)
    assert float(calibration_error(honest, outcomes)) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("bins", [1, 5, 10])
def test_calibration_error_by_bins_of_equal_count(bins):
    """Values 0.005, 0.015 … 0.995 of outcomes 1 - value: a bin's gap is the distance of its middle from its mirror."""
    values = (torch.arange(100) + 0.5) / 100
    middles = [(b + 0.5) / bins for b in range(bins)]
    expected = sum(abs(2 * m - 1) for m in middles) / bins
    assert float(calibration_error(values, 1 - values, bins)) == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1)), min_size=1, max_size=60), st.randoms())
def test_calibration_error_is_of_states_not_of_their_order(pairs, random):
    """Many states have the same value: which of them come first says nothing."""
    shuffled = random.sample(pairs, len(pairs))
    a, b = (calibration_error(*torch.tensor(p, dtype=torch.float32).unbind(1)) for p in (pairs, shuffled))
    assert float(a) == pytest.approx(float(b), abs=1e-6)
    mean = sum(r - v for v, r in pairs) / len(pairs)
    assert abs(mean) - 1e-6 <= float(a) <= max(abs(r - v) for v, r in pairs) + 1e-6


def test_calibration_of_nothing_is_not_a_number():
    assert calibration_error(torch.zeros(0), torch.zeros(0)).isnan()


# --- error against sampled values -------------------------------------------------------------------------------


def test_error_beyond_noise_by_hand():
    v, sampled, error = torch.tensor([0.5, 0.8, 0.1]), torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.1, 0.2, nan])
    expected = ((0.25 - 0.01 + 0.09 - 0.04) / 2) ** 0.5
    assert float(error_beyond_noise(v, sampled, error)) == pytest.approx(expected)
    assert error_beyond_noise(sampled[:2], sampled[:2], error[:2]) == 0
    assert error_beyond_noise(v[2:], sampled[2:], error[2:]).isnan()


@pytest.mark.parametrize("off", [0.0, 0.15])
def test_error_beyond_noise_is_the_critics_own(off):
    """A critic that is off by a constant everywhere, against 8 continuations a state: their noise is taken out."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(20_000, generator=generator)
    rewards = (torch.rand(20_000, 8, generator=generator) < truth[:, None]).float()
    sampled, stderr = rewards.mean(1), rewards.std(1) / 8**0.5
    raw = (truth + off - sampled).square().mean().sqrt()
    assert raw > off + 0.05
    assert float(error_beyond_noise(truth + off, sampled, stderr)) == pytest.approx(off, abs=0.015)


def test_states_are_drawn_by_name():
    mask = torch.rand(6, 9, generator=torch.Generator().manual_seed(0)) < 0.6
    some = some_states(mask, 5, (0, 3))
    assert some.sum() == 5 and not (some & ~mask).any()
    assert some.equal(some_states(mask, 5, (0, 3))) and not some.equal(some_states(mask, 5, (0, 4)))
    assert some_states(mask, 999, (0, 3)).equal(mask)
    assert not some_states(torch.zeros_like(mask), 5, (0, 3)).any()


# --- by kind of method ------------------------------------------------------------------------------------------


def test_critic():
    """Value of both completions 0.5, rewards 1 and 0: calibrated, and nothing is explained."""
    rollouts = batch([2, 2], [1.0, 0.0])
    rollouts.values = torch.where(rollouts.mask, 0.5, nan)
    rollouts.mc_values = rollouts.mc_stderr = None
    found = value_metrics(rollouts, PPO(lam=1.0).credit(rollouts))
    assert found == {"value_mean": 0.5, "explained_variance": 0, "value/calibration_error": 0}
    rollouts.values = torch.where(rollouts.mask, torch.tensor([[0.75], [0.25]]), nan)
    found = value_metrics(rollouts, PPO(lam=1.0).credit(rollouts))
    assert found == {"value_mean": 0.5, "explained_variance": 0.75, "value/calibration_error": 0.25}
    rollouts.mc_values, rollouts.mc_stderr = (torch.full(rollouts.mask.shape, nan) for _ in range(2))
    rollouts.mc_values[0, 0], rollouts.mc_stderr[0, 0] = 0.25, 0.3
    found = value_metrics(rollouts, PPO(lam=1.0).credit(rollouts))
    assert found["value/mc_error"] == pytest.approx(0.4) and found["value/mc_stderr"] == pytest.approx(0.3)


def test_returns_that_do_not_vary_explain_nothing():
    rollouts = batch([2, 3], [1.0, 1.0])
    found = value_metrics(rollouts, PPO(lam=1.0).credit(rollouts))
    assert "explained_variance" not in found and found["value/calibration_error"] > 0
    mask = torch.ones(1, 4, dtype=torch.bool)
    returns = torch.tensor([[0.5, 0.5, 0.5, 0.5009]])
    assert losses.explained_variance(returns, returns, mask).isnan(), "a variance of 1.5e-7 is no question"
    assert losses.explained_variance(3 * returns, 3 * returns, mask) == 1, "one of 1.4e-6 is"


def test_chains():
    """Two lines; the first state's value is 0.5 in both, the second's is 0.9 where the reward is 1, and 0.1 else."""
    rollouts = batch([3, 3], [1.0, 0.0], [["a", "\n", "b"]] * 2)
    rollouts.completion_ids[1] += 1  # other tokens: two different states, of the same prompt
    rollouts.mc_values, rollouts.mc_stderr = (torch.full(rollouts.mask.shape, nan) for _ in range(2))
    rollouts.mc_values[:, 0], rollouts.mc_stderr[:, 0] = 0.5, 0.2
    rollouts.mc_values[:, 2], rollouts.mc_stderr[:, 2] = torch.tensor([0.9, 0.1]), 0.1
    rollouts.node_ids, method = None, VinePPO()
    found = value_metrics(rollouts, method.credit(rollouts), method.nodes(rollouts))
    assert found["value_mean"] == pytest.approx(0.5)
    assert found["explained_variance"] == pytest.approx(1 - (2 * 0.25 + 2 * 0.01) / 4 / 0.25)
    assert found["value/calibration_error"] == pytest.approx((0.1 + 0.1) / 4, abs=1e-6)
    assert found["value/mc_stderr"] == pytest.approx((0.2 + 0.1 + 0.1) / 3), "the prompt is one state"
    rollouts.rewards[1] = nan
    found = value_metrics(rollouts, method.credit(rollouts), method.nodes(rollouts))
    assert found["value_mean"] == pytest.approx(0.7) and "explained_variance" not in found


@given(forests(), st.integers(0, 2**32))
def test_a_trees_value_is_judged_without_the_branch_itself(forest, seed):
    paths, group = forest
    rollouts = rollouts_of_tree(paths, group)
    generator = torch.Generator().manual_seed(seed)
    rollouts.rewards = torch.randint(0, 2, (len(paths),), generator=generator).float()
    rollouts.rewards[torch.rand(len(paths), generator=generator) < 0.2] = nan
    nodes = SPOTree().nodes(rollouts)
    others, parent, value = (x.tolist() for x in (value_without_own_branch(nodes), nodes.tree.parent, nodes.value))
    for n, found in enumerate(others):
        siblings = [v for m, v in enumerate(value) if m != n and parent[m] == parent[n] >= 0 and v == v]
        if siblings:
            assert found == pytest.approx(sum(siblings) / len(siblings), abs=1e-6)
        else:
            assert math.isnan(found)


def test_a_tree_that_guesses_explains_nothing():
    """Rewards that no branch has anything to do with: a node's value holds them, but foretells none."""
    paths = [[7 * i, 7 * i + 1 + j] for i in range(6) for j in range(6)]
    explained, naive = [], []
    for seed in range(40):
        rollouts = rollouts_of_tree(paths)
        rollouts.rewards = (torch.rand(36, generator=torch.Generator().manual_seed(seed)) < 0.5).float()
        method = SPOTree()
        credit = method.credit(rollouts)
        explained.append(value_metrics(rollouts, credit, method.nodes(rollouts))["explained_variance"])
        outcomes = rollouts.rewards[:, None].expand(rollouts.mask.shape)
        naive.append(float(losses.explained_variance(credit.state_values, outcomes, rollouts.mask)))
    assert sum(naive) > 0.05 * len(naive), "the values as they are seem to know something"
    assert sum(explained) < 0.02 * len(explained)


def test_methods_without_values_say_nothing_about_them():
    rollouts = batch([2, 3], [1.0, 0.0])
    for method in (GRPO(), RLOO(), GSPO(), SRPO()):
        assert value_metrics(rollouts, method.credit(rollouts)) == {}


# --- in a run ---------------------------------------------------------------------------------------------------

SHORT = {"spo_tree": SPOTree(branch=(3, 2), segment_tokens=3),
         "treerl": TreeRL(branch=(3, 2), segment_tokens=3), "vineppo": VinePPO(num_continuations=2),
         "spo_chain": SPOChain(num_continuations=2), "forks": Forks(num_continuations=2)}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_every_method(name, llava, tmp_path):
    method = SHORT.get(name) or METHODS[name]()
    trained(llava, tmp_path / "run", method)
    found = {metric: value for (step, metric), value in metrics(tmp_path / "run").items() if step == 1}
    assert all(math.isfinite(value) for value in found.values())
    assert found["tokens_computed_per_token_kept"] >= 1
    valued = "explained_variance" in found
    assert valued == (method.uses_critic or name in SHORT)
    assert ("value/calibration_error" in found) == valued and ("value/mc_stderr" in found) == (name in SHORT)


@pytest.mark.parametrize("algo", [SAPO, PPO])
def test_a_critic_is_compared_with_fresh_continuations(algo, llava, tmp_path):
    changes = dict(max_steps=2, record_steps=2)
    measured = trained(llava, tmp_path / "measured", algo(value_mc_states=7), **changes)
    plain = trained(llava, tmp_path / "plain", algo(), **changes)
    for name, value in weights(plain).items():
        assert torch.equal(value, weights(measured)[name]), f"{name}: looking changes nothing"
    found, without = metrics(tmp_path / "measured"), metrics(tmp_path / "plain")
    extra = {key for key in found.keys() - without.keys() if not key[1].startswith("time/")}
    assert extra == {(2, "value/mc_error"), (2, "value/mc_stderr")}, "in recorded steps"
    rows = store.read_rollouts(tmp_path / "measured").to_pylist()
    states = [(row, t) for row in rows for t, v in enumerate(row["mc_values"]) if v is not None]
    assert len(states) == 7
    for row, t in states:
        assert row["mc_values"][t] * 8 == pytest.approx(round(row["mc_values"][t] * 8), abs=1e-5)
        assert 0 <= row["mc_stderr"][t] < 0.5 and (algo is PPO or t in row["segment_start"])
    assert store.read_nodes(tmp_path / "measured").num_rows == 0


def test_a_negative_number_of_states_is_refused():
    with pytest.raises(ValueError, match="value_mc_states is -1"):
        SAPO(value_mc_states=-1)


# --- completions without verdict --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [RLOO(), GRPO(), GRPO(scale_rewards="batch"), GSPO(), SRPO()], ids=lambda m: m.name)
@pytest.mark.parametrize("loss_type", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"])
def test_completions_without_verdict_do_not_count_in_the_loss(method, loss_type):
    """The loss is that of the batch without them, denominator included."""

    def loss(rollouts: Rollouts) -> torch.Tensor:
        credit = method.credit(rollouts)
        moved = 0.01 * torch.arange(rollouts.mask.shape[1]) ** 2
        return losses.policy_loss(
            rollouts.sampled_logprobs + moved, rollouts.sampled_logprobs, credit.advantages, credit.loss_mask,
            level=method.importance_sampling_level, segment_ids=credit.segment_ids, loss_type=loss_type,
            max_completion_length=9,
        )[0]  # fmt: skip

    rollouts = batch([3, 2, 4, 5], [1.0, nan, 0.0, 0.75])
    rest = rollouts.select(torch.tensor([0, 2, 3]))
    credit = method.credit(rollouts)
    assert not credit.loss_mask[1].any() and credit.loss_mask[[0, 2, 3]].equal(rest.mask)
    assert credit.advantages[1, :2].isnan().all(), "assigned nothing, which is not 0"
    assert loss(rest) != 0
    torch.testing.assert_close(loss(rollouts), loss(rest))


def test_completions_without_verdict_stay_out_of_the_numbers():
    rollouts = batch([3, 2, 4, 5, 1, 1], [1.0, nan, 1.0, nan, 0.0, 1.0])
    rollouts.group = torch.tensor([0, 0, 0, 1, 2, 2])
    rollouts.truth = [None] * 6
    found = describe(rollouts, GRPO().credit(rollouts))
    assert found["reward"] == 0.75 and found["reward_std"] == pytest.approx((3 / 16) ** 0.5)
    assert found["groups_without_signal"] == pytest.approx(2 / 3)
    rollouts.rewards[:] = nan
    found = describe(rollouts, GRPO().credit(rollouts))
    assert "reward" not in found and found["groups_without_signal"] == 1
    assert all(math.isfinite(value) for value in found.values())
