"""Fork values on real models: they train, are recorded, resume, and add up."""

import pytest
import torch

from segpo_core.afterwards.credit import recompute
from segpo_core.afterwards.trained import Policy
from segpo_core.algos import Forks, SPOTree
from segpo_core.config import TrainConfig
from segpo_core.policy.inputs import Prompts
from segpo_core.record import store
from segpo_core.training.loop import train
from segpo_core.types import Rollouts
from tests.fakes import families
from tests.fakes.toy import ToyTask, lucky_text

ALGO = Forks(num_continuations=3, least_open=0.3)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return families.llava(tmp_path_factory.mktemp("llava"))


def settings(model, out, **changes):
    return dict(
        model_name_or_path=str(model), output_dir=str(out), num_generations=4, per_device_train_batch_size=8,
        max_completion_length=6, learning_rate=1e-3, eval_steps=0, cpu=True,
    ) | changes  # fmt: skip


def sampled(model, first=0, count=2):
    """Rollouts of the toy task with fork values, as the process that begins with problem `first` makes them."""
    policy = Policy.load(model, reward_funcs=[lucky_text])
    policy.sampler.max_completion_length = 6
    examples = [ToyTask().train(first + i) for i in range(count)]
    prompts = Prompts.build(examples, policy.processor, policy.model.config)
    rollouts = policy.sampler.groups(prompts, 4, (5,), first)

    def reward_of(groups, texts):
        return lucky_text(None, texts)

    rollouts.rewards = torch.tensor(reward_of(None, rollouts.texts))
    ALGO.estimate(policy.sampler, prompts, rollouts, reward_of, (5,), first)
    return rollouts


@pytest.mark.parametrize(
    "algo", [ALGO, Forks(num_continuations=2, reading="segment", mask=True, bound=0.2)], ids=[0, 1]
)
def test_it_trains_is_recorded_and_resumes_as_if_never_stopped(llava, tmp_path, algo):
    for out, steps in (("whole", [2]), ("parts", [1, 2])):
        for n, step in enumerate(steps):
            more = settings(llava, tmp_path / out)
            train(TrainConfig(method="forks", algo=algo, max_steps=step, resume=n > 0, **more), task=ToyTask())
    rows, same = (store.read_rollouts(tmp_path / out).to_pylist() for out in ("whole", "parts"))
    assert [r["advantages"] for r in rows] == [r["advantages"] for r in same]
    for row in rows:
        assert None not in row["mc_values"] and None not in row["mc_stderr"]
        assert row["segment_value"][0] == row["mc_values"][0]
        if algo is ALGO:
            assert sum(row["advantages"]) == pytest.approx(row["reward"] - row["mc_values"][0], abs=1e-5)
    assert any(e > 0 for row in rows for e in row["mc_stderr"])
    nodes = store.read_nodes(tmp_path / "whole").to_pylist()
    assert {n["method"] for n in nodes} == {"forks"} and any(n["stderr"] for n in nodes)


def test_nodes_say_how_many_continuations_were_drawn(llava):
    """⌈N · open⌉ in a state, 0 where its value was computed; not N everywhere."""
    rollouts = sampled(llava)
    nodes, tree = ALGO.nodes(rollouts), ALGO.tree(rollouts)
    node, drawn = nodes.of_token, ALGO.drawn(tree)
    seen = set()
    for b, t in rollouts.mask.nonzero().tolist():
        if t + 1 < rollouts.lengths[b] and node[b, t + 1] != node[b, t]:
            state = tree.before[b, t + 1]
            assert nodes.samples[node[b, t]] == drawn[state]
            seen.add((int(drawn[state]), bool(tree.open[state] > ALGO.least_open)))
    assert seen and all((number > 0) == wanted and number <= 3 for number, wanted in seen)
    sure = Forks(num_continuations=3, least_open=0.999)
    assert (sure.drawn(tree) == 0).any() and (sure.nodes(rollouts).samples == 0).any()


def test_a_tree_that_was_sampled_has_fork_values(llava, tmp_path):
    tree = SPOTree(branch=(2, 2), segment_tokens=2)
    train(TrainConfig(
        method="spo_tree", algo=tree, max_steps=1, reward_funcs=["tests.fakes.toy:lucky_text"],
        **settings(llava, tmp_path / "run"),
    ))  # fmt: skip
    recompute(tmp_path / "run", ["forks"], trust_code=True)  # the rewards are this test's own
    rows = store.read_credit(tmp_path / "run", ["forks"]).to_pylist()
    assert rows and all(a is not None for row in rows for a in row["advantages"])


def test_processes_that_share_the_prompts_find_the_same(llava):
    whole, second = sampled(llava), sampled(llava, first=1, count=1)
    n, width = len(second), second.mask.shape[1]
    own = whole.select(torch.arange(n, 2 * n))
    assert torch.equal(own.completion_ids[:, :width] * second.mask, second.completion_ids * second.mask)
    for name in ("mc_values", "mc_stderr"):
        there, here = (torch.where(second.mask, getattr(r, name)[:, :width], 0) for r in (own, second))
        torch.testing.assert_close(there, here, atol=1e-5, rtol=1e-4)


def test_advantages_add_up_to_the_reward_minus_the_prompts_value(llava):
    rollouts = sampled(llava)
    credit = ALGO.credit(rollouts)
    total = torch.where(rollouts.mask, credit.advantages, 0).sum(1)
    torch.testing.assert_close(total, rollouts.rewards - rollouts.mc_values[:, 0], atol=1e-5, rtol=1e-4)
    assert not credit.advantages.isnan().any()


def test_a_continuation_begins_with_none_of_the_excluded_tokens(llava):
    from segpo_core.sampling.chains import continuations

    policy = Policy.load(llava, reward_funcs=[lucky_text])
    policy.sampler.max_completion_length = 4
    prompts = Prompts.build([ToyTask().train(0)], policy.processor, policy.model.config)
    rollouts = policy.sampler.groups(prompts, 2, (5,))
    rows, lengths = torch.tensor([0, 1]), torch.tensor([0, 2])
    number = torch.tensor([40, 3])

    def begin(without):
        parts = continuations(
            policy.sampler, prompts, rollouts, rows, lengths, number, (9,), max_rows=7, without=without
        )
        return [(int(p), int(t)) for prefix, draw in parts for p, t in zip(prefix, draw.ids[:, 0], strict=True)]

    free = begin(None)
    assert [p for p, _ in free] == [0] * 40 + [1] * 3
    excluded = sorted({t for p, t in free if p == 0})[:-1]
    pairs = torch.zeros(len(excluded), dtype=torch.long), torch.tensor(excluded)
    after = begin(pairs)
    assert not {t for p, t in after if p == 0} & set(excluded)
    assert [t for p, t in after if p == 1] == [t for p, t in free if p == 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"least_open": 1.0}, "least_open"), ({"bound": -1.0}, "bound"), ({"reading": "line"}, "reading"),
     ({"num_continuations": 0}, "num_continuations")],
)  # fmt: skip
def test_bad_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Forks(**changes)


def test_rollouts_without_fork_values_are_refused():
    ids = torch.ones(1, 2, dtype=torch.long)
    rollouts = Rollouts(
        ids, ids > 0, torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.bool), torch.zeros(1, 2),
        torch.zeros(1, 2), rewards=torch.ones(1),
    )  # fmt: skip
    with pytest.raises(ValueError, match="no fork values"):
        Forks().credit(rollouts)
