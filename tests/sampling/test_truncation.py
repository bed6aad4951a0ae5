"""top_p, top_k and min_p: transformers' own rules, nothing drawn outside of them, and what is recorded of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from segpo_core.algos import Forks
from segpo_core.policy import load
from segpo_core.policy.critic import ActorCritic
from segpo_core.policy.inputs import Prompts
from segpo_core.sampling.branches import grow_tree
from segpo_core.sampling.chains import continuations, sampled_rewards
from segpo_core.sampling.generate import InProcess
from segpo_core.sampling.truncation import Truncation
from tests.fakes import families
from tests.fakes.toy import ToyTask

#: Ties are likely, and so are distances at which a probability is 0 or 1.
numbers = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e4, 1e4), st.just(float(torch.finfo(torch.float32).min)))
tables = hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=numbers)


def warped(logits: torch.Tensor, cut: Truncation) -> torch.Tensor:
    """What `generate` makes of them: its processors in its order."""
    rules = [TopKLogitsWarper(cut.top_k)] if cut.top_k else []
    rules += [TopPLogitsWarper(cut.top_p)] if cut.top_p < 1 else []
    rules += [MinPLogitsWarper(cut.min_p)] if cut.min_p else []
    for rule in rules:
        logits = rule(None, logits)
    return logits


@settings(max_examples=200, deadline=None)
@given(
    table=tables,
    top_p=st.one_of(st.just(1.0), st.floats(1e-6, 1)),
    top_k=st.integers(0, 14),
    min_p=st.one_of(st.none(), st.floats(0, 1)),
)
def test_each_and_all_are_those_of_transformers(table, top_p, top_k, min_p):
    logits = torch.from_numpy(table)
    for cut in (Truncation(top_p), Truncation(top_k=top_k), Truncation(min_p=min_p), Truncation(top_p, top_k, min_p)):
        left_out = cut.left_out(logits)
        assert torch.equal(left_out, warped(logits, cut) == -torch.inf)
        left = logits.masked_fill(left_out, -torch.inf)
        assert torch.equal(left.amax(dim=1), logits.amax(dim=1)), "something as likely as the most likely always stays"


def test_what_is_no_rule_is_refused_and_what_leaves_all_is_false():
    assert not Truncation() and not Truncation(1.0, 0, 0.0)
    assert Truncation(0.9) and Truncation(top_k=1) and Truncation(min_p=0.1)
    assert str(Truncation(0.9, 20)) == "top_p 0.9, top_k 20" and str(Truncation()) == ""
    for wrong in ({"top_p": 0}, {"top_p": 1.1}, {"top_k": -1}, {"min_p": -0.1}, {"min_p": 1.5}):
        with pytest.raises(ValueError, match=rf"^{next(iter(wrong))} is {next(iter(wrong.values()))}"):
            Truncation(**wrong)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = families.FAMILIES["llama"](tmp_path_factory.mktemp("llama"))
    model, processor = load.load_model(folder), load.load_processor(folder)
    prompts = Prompts.build([ToyTask(images=False).train(i) for i in range(3)], processor, model.config)
    common = model, load.get_tokenizer(processor), load.eos_token_ids(model, processor)
    suppressed = load.suppressed_token_ids(model, processor)
    return lambda cut, heat=0.8: InProcess(*common, suppressed, heat, 12, cut), prompts


@pytest.mark.parametrize("cut", [Truncation(0.3), Truncation(top_k=3), Truncation(min_p=0.5), Truncation(0.6, 20, 0.1)])
def test_nothing_is_drawn_outside_and_both_probabilities_are_recorded(llama, cut):
    """Every token of groups and trees, held against the scoring pass: it is in the nucleus of its own prefix, its
    log-probability is that of the whole distribution, and the engine's that of what is left."""
    of, prompts = llama
    sampler = of(cut)
    for rollouts in (sampler.groups(prompts, 6, (1, 1)), grow_tree(sampler, prompts, (2, 3), 4, (1, 1))):
        network = ActorCritic(sampler.model, sampler.head.suppressed.tolist(), 0.8)
        batch = prompts.batch(rollouts.group, "cpu")
        for b, n in enumerate(rollouts.lengths.tolist()):
            ids = torch.cat([batch["input_ids"][b][batch["attention_mask"][b] > 0], rollouts.completion_ids[b, :n]])
            with torch.no_grad():
                hidden = sampler.model.model(ids[None]).last_hidden_state[0, -n - 1 : -1]
                scaled = sampler.head(hidden).double() / 0.8
            left = warped(scaled, cut).log_softmax(1).gather(1, rollouts.completion_ids[b, :n, None])[:, 0]
            assert left.isfinite().all()
            torch.testing.assert_close(rollouts.engine_logprobs[b, :n].double(), left, atol=1e-4, rtol=0)
        with torch.no_grad():
            scores = network(batch, rollouts.completion_ids, rollouts.mask)
        torch.testing.assert_close(rollouts.sampled_logprobs, scores.logprobs, atol=1e-4, rtol=0)
        torch.testing.assert_close(rollouts.entropy, scores.entropy, atol=1e-4, rtol=0)


def test_without_a_rule_every_number_is_as_it_was(llama):
    of, prompts = llama
    for cut in (None, Truncation(1.0, 0, 0.0)):
        plain, same = of(None).groups(prompts, 4, (2, 1)), of(cut).groups(prompts, 4, (2, 1))
        assert torch.equal(plain.completion_ids, same.completion_ids) and same.engine_logprobs is None
        assert torch.equal(plain.sampled_logprobs, same.sampled_logprobs) and torch.equal(plain.entropy, same.entropy)
    # A rule that happens to leave everything takes another way to the same tokens.
    every = of(Truncation(top_k=10**6)).groups(prompts, 4, (2, 1))
    assert torch.equal(plain.completion_ids, every.completion_ids)
    torch.testing.assert_close(every.engine_logprobs, plain.sampled_logprobs, atol=1e-5, rtol=0)
    greedy = [of(cut).groups(prompts, 1, (0, 0), temperature=0) for cut in (None, Truncation(0.1))]
    assert torch.equal(greedy[0].completion_ids, greedy[1].completion_ids) and greedy[1].engine_logprobs is None


def test_a_row_is_drawn_the_same_alone_and_beside_others(llama):
    of, prompts = llama
    sampler = of(Truncation(0.5, 8))
    together = sampler.groups(prompts, 5, (3, 1))
    for i in range(len(prompts)):
        alone = sampler.groups(prompts.select([i]), 5, (3, 1), first=i)
        for g in range(5):
            row = together.completion_ids[5 * i + g][together.mask[5 * i + g]]
            assert row.tolist() == alone.completion_ids[g][alone.mask[g]].tolist()


def test_what_is_forbidden_leaves_the_rest_of_the_nucleus(llama):
    """A forbidden token is taken out of what is left, not out of what is cut: the others keep their proportions."""
    of, prompts = llama
    sampler = of(Truncation(top_k=3))
    logits = sampler.prefill(prompts).logits.double() / 0.8
    nucleus = logits.topk(3).indices
    rollouts = sampler.groups(prompts, 1, (0, 0), temperature=0)
    rows, lengths = torch.arange(3), torch.zeros(3, dtype=torch.long)
    given = continuations(sampler, prompts, rollouts, rows, lengths, 400, (4, 1), without=(rows, nucleus[:, 0]))
    prefix, ids = (torch.cat(column) for column in zip(*((p, d.ids[:, 0]) for p, d in given), strict=True))
    for row in range(3):
        drawn = ids[prefix == row]
        assert set(drawn.tolist()) == set(nucleus[row, 1:].tolist())
        share = logits[row, nucleus[row, 1:]].softmax(0)[0]
        assert abs((drawn == nucleus[row, 1]).float().mean() - share) < 4 * (share * (1 - share) / 400).sqrt()


def test_fork_values_are_those_of_what_is_left(llama):
    """Where the group holds all of a state's nucleus, nothing is open there; with the whole distribution's
    probabilities, much would be."""
    of, prompts = llama
    sampler, method = of(Truncation(top_k=2)), Forks(num_continuations=2)
    rollouts = sampler.groups(prompts, 8, (5, 1))
    rollouts.rewards = rollouts.lengths.float()
    tree = method.tree(rollouts)
    child = tree.parent >= 0
    held = torch.zeros_like(tree.prob).scatter_add(0, tree.parent[child], tree.prob[child])
    torch.testing.assert_close(held[tree.children == 2], torch.ones_like(held[tree.children == 2]))
    whole = method.tree(replace(rollouts, engine_logprobs=None))
    assert (whole.open[tree.children == 2] > 0.5).all(), "random weights: two tokens are a small part of all"
    method.estimate(sampler, prompts, rollouts, lambda groups, texts: [1.0] * len(texts), (5, 1), 0)
    assert rollouts.mc_values[:, 0].isfinite().all()
    _, rewards = sampled_rewards(
        sampler, prompts, rollouts, torch.tensor([0]), torch.tensor([0]), 3, lambda g, t: [1.0] * len(t), (6, 1)
    )
    assert rewards.tolist() == [1.0] * 3
