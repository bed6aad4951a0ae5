"""What the methods do with input that has nothing to teach, or makes no sense: an error that says what to do, or a
documented fallback that is counted; and never a loss that is not finite."""

import math
import warnings

import pytest
import torch

from segpo_core import losses
from segpo_core.algos import GRPO, METHODS, PPO, SAPO, SRPO, Forks, Method, SPOChain, SPOTree, VinePPO
from segpo_core.config import from_dict
from segpo_core.policy.contrasts import corrupted
from segpo_core.segments import count
from segpo_core.types import Credit, Rollouts, length_mask

EVERY = [pytest.param(method(), id=name) for name, method in METHODS.items()]
GOOD = ["<perception>", "red", "</perception>", "<think>", "so", "</think>", "<answer>", "3", "</answer>"]


def batch(lengths: list[int], rewards: list[float], pieces: list[list[str]] | None = None, logprob=-0.5) -> Rollouts:
    """One group with everything that any method reads, NaN at padding; in the tree every completion is one leaf."""
    mask = length_mask(torch.tensor(lengths), max(*lengths, 2) + 1)
    generator = torch.Generator().manual_seed(0)

    def numbers() -> torch.Tensor:
        return torch.where(mask, torch.rand(mask.shape, generator=generator), torch.nan)

    row = torch.arange(len(lengths))
    return Rollouts(
        completion_ids=mask.long(), mask=mask, group=0 * row, finished=row >= 0,
        sampled_logprobs=torch.where(mask, logprob, torch.nan), entropy=numbers(), rewards=torch.tensor(rewards),
        values=numbers(), mc_values=numbers(), mc_stderr=numbers(), node_ids=torch.where(mask, row[:, None], -1),
        perception_contrast=numbers(), reasoning_contrast=numbers(), pieces=pieces or [["x"] * n for n in lengths],
    )  # fmt: skip


def credit_of(method: Method, rollouts: Rollouts) -> Credit:
    """Its credit, after a look at both losses and their gradients: all are finite."""
    credit = method.credit(rollouts)
    logprobs, values = (x.clone().requires_grad_() for x in (rollouts.sampled_logprobs, rollouts.values))
    loss, _ = losses.policy_loss(
        logprobs, rollouts.logprobs, credit.advantages, credit.loss_mask, level=method.importance_sampling_level,
        segment_ids=credit.segment_ids, epsilon=method.epsilon, loss_type=method.loss_type,
    )  # fmt: skip
    if credit.returns is not None:
        loss = loss + losses.value_loss(values, rollouts.values, credit.returns, credit.value_mask)[0]
    (loss + 0 * torch.where(rollouts.mask, values, 0).sum()).backward()
    assert loss.isfinite() and logprobs.grad.isfinite().all() and values.grad.isfinite().all()
    assert all(math.isfinite(number) for number in credit.metrics.values())
    assert not credit.loss_mask[~rollouts.mask].any() and not credit.advantages[credit.loss_mask].isnan().any()
    return credit


# --- any method -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", EVERY)
def test_completions_of_one_token(method):
    rollouts = batch([1, 1, 1], [1.0, 0.0, 1.0])
    credit = credit_of(method, rollouts)
    assert count(credit.segment_ids).tolist() == [1, 1, 1]
    expected = rollouts.rewards - rollouts.mc_values[:, 0]
    if isinstance(method, VinePPO | SPOChain):  # one segment, from the prompt to the reward
        torch.testing.assert_close(credit.advantages[:, 0], expected)


@pytest.mark.parametrize("method", EVERY)
def test_a_batch_without_a_real_token(method):
    credit = credit_of(method, batch([0, 0], [1.0, 0.0]))
    assert not credit.loss_mask.any() and not credit.advantages.any()


@pytest.mark.parametrize("method", EVERY)
def test_an_empty_completion_beside_others(method):
    credit = credit_of(method, batch([3, 0, 2], [1.0, 0.0, 1.0]))
    assert count(credit.segment_ids).tolist()[1] == 0


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("rewards", [[math.nan, 0.0, 1.0], [math.nan] * 3], ids=["one", "all"])
def test_completions_without_verdict(method, rewards):
    """They teach nothing, and what is beside them is as if they were not there (but for the number of tokens)."""
    rollouts = batch([3, 2, 4], rewards)
    credit = credit_of(method, rollouts)
    taught = torch.where(credit.loss_mask, credit.advantages, 0)
    if isinstance(method, VinePPO | SPOChain):  # between its states of known value there still is credit
        taught = taught * (credit.segment_ids == credit.segment_ids.amax(1, keepdim=True))
    assert not taught[rollouts.rewards.isnan()].any()
    if rewards[1] == 0.0:
        alone = method.credit(rollouts.select(torch.tensor([1, 2])))
        torch.testing.assert_close(credit.advantages[1:], alone.advantages)


@pytest.mark.parametrize("method", EVERY)
def test_equal_rewards_are_no_news(method):
    credit = credit_of(method, batch([3, 2, 4], [1.0, 1.0, 1.0]))
    if not method.uses_critic and not isinstance(method, VinePPO | SPOChain | Forks):
        assert not credit.advantages.any()


@pytest.mark.parametrize("method", EVERY)
def test_what_was_not_measured_is_asked_for(method):
    missing = dict(values=None, mc_values=None, node_ids=None, perception_contrast=None, reasoning_contrast=None)
    rollouts = batch([3, 2], [1.0, 0.0])
    for name, value in missing.items():
        setattr(rollouts, name, value)
    if method.name in ("rloo", "grpo", "gspo", "tempo", "entropy_tokens"):
        method.credit(rollouts)
    else:
        with pytest.raises(ValueError, match="these rollouts .*; .*choose"):
            method.credit(rollouts)
    rollouts = batch([3, 2], [1.0, 0.0])
    rollouts.rewards = None
    with pytest.raises(ValueError, match="no rewards yet: run the reward functions"):
        method.credit(rollouts)


def test_an_unknown_method_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown method 'dpo'; known: " + ", ".join(sorted(METHODS))):
        from_dict({"method": "dpo"})


# --- trees ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("branch", [(1,), (1, 1), (), (2, 0), (-1, 4)])
def test_a_tree_that_never_branches_is_refused(branch):
    with pytest.raises(ValueError, match="every level needs at least 1 child, and some level 2 or more"):
        SPOTree(branch=branch)


@pytest.mark.parametrize("normalize", [False, True])
def test_an_only_child_has_no_advantage_and_is_counted(normalize):
    """Rows of a tree in which every node has one child, as when single leaves of a recording are looked at."""
    rollouts = batch([4], [1.0])
    rollouts.node_ids = torch.where(rollouts.mask, torch.tensor([[0, 0, 1, 1, 0]]), -1)
    credit = credit_of(SPOTree(normalize=normalize), rollouts)
    assert not credit.advantages.any() and not credit.loss_mask.any()
    assert credit.metrics["tree/zero_advantage_edges"] == credit.metrics["tree/edges"] == 2


# --- chains -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [VinePPO(), VinePPO(steps="step markers"), SPOChain(interval=99)])
def test_a_chain_without_a_boundary_is_one_segment(method):
    rollouts = batch([3, 2], [1.0, 0.0])
    credit = credit_of(method, rollouts)
    assert credit.segment_ids.tolist() == [[0, 0, 0, -1], [0, 0, -1, -1]]
    owed = (rollouts.rewards - rollouts.mc_values[:, 0])[:, None]
    torch.testing.assert_close(credit.advantages, torch.where(rollouts.mask, owed, 0))


def test_a_chain_of_sure_tokens_has_an_empty_loss_and_says_so(caplog):
    credit = credit_of(SPOChain(), batch([3, 2], [1.0, 0.0], logprob=-0.01))
    assert not credit.loss_mask.any() and credit.metrics["tokens_in_loss"] == 0
    assert "no token has a probability below 0.9" in caplog.text


@pytest.mark.parametrize("method", [VinePPO(), SPOChain()])
def test_states_that_were_not_sampled_are_counted(method):
    rollouts = batch([3, 2], [1.0, 0.0])
    rollouts.mc_values[0] = torch.nan
    credit = credit_of(method, rollouts)
    assert credit.metrics["states_without_value"] == 1
    assert not credit.loss_mask[0].any() and credit.loss_mask[1].any()


# --- critics ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [PPO(), SAPO(whiten=True)])
def test_one_token_alone_is_not_whitened(method):
    rollouts = batch([1], [1.0])
    credit = credit_of(method, rollouts)
    torch.testing.assert_close(credit.advantages[0, 0], 1 - rollouts.values[0, 0])


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_the_extremes_of_entropy_cuts(fraction):
    rollouts = batch([5, 1], [1.0, 0.0])
    assert count(credit_of(SAPO(fraction=fraction), rollouts).segment_ids).tolist() == [5 if fraction else 1, 1]


# --- roles ------------------------------------------------------------------------------------------------------

MALFORMED = {
    "nothing": ["two"],
    "repeated": [*GOOD[:3], *GOOD],
    "nested": ["<perception>", "<think>", "red", "</think>", "</perception>", *GOOD[6:]],
    "swapped": [*GOOD[3:6], *GOOD[:3], *GOOD[6:]],
    "never closed": [*GOOD[:2], *GOOD[3:]],
    "overlapping": ["<perception>", "<think>", "</perception>", "</think>", *GOOD[6:]],
}


@pytest.mark.parametrize("pieces", MALFORMED.values(), ids=list(MALFORMED))
def test_malformed_completions_fall_back_to_grpo_and_are_counted(pieces):
    rollouts = batch([len(pieces), len(GOOD)], [1.0, 0.0], [pieces, GOOD])
    credit, grpo = credit_of(SRPO(), rollouts), GRPO().credit(rollouts)
    torch.testing.assert_close(credit.advantages[0], grpo.advantages[0])
    assert credit.metrics["srpo/malformed"] == 1
    assert not torch.allclose(credit.advantages[1], grpo.advantages[1])


@pytest.mark.parametrize("everywhere", [True, False])
def test_without_images_perception_has_weight_one_and_is_counted(everywhere):
    rollouts = batch([len(GOOD)] * 2, [1.0, 0.0], [GOOD] * 2)
    if everywhere:
        rollouts.perception_contrast = None
    else:
        rollouts.perception_contrast[0] = torch.nan
    credit = credit_of(SRPO(), rollouts)
    assert credit.metrics["srpo/no_image"] == (2 if everywhere else 1)
    assert credit.weights[0, 1] == credit.weights[0, 0], "its perception weighs what a tag weighs"


def test_without_images_there_is_a_notice():
    with pytest.warns(UserWarning, match="no prompt of this batch has an image"):
        assert corrupted([{"prompt": "1 + 1 =", "images": []}], "blank", (0,)) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        credit_of(SRPO(), batch([len(GOOD)] * 2, [1.0, 0.0], [GOOD] * 2))
