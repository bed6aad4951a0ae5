"""The benchmark of credit: orderings that must hold on the truth that ships, and what the command says."""

import importlib.util
import json

import pytest
import torch

from segpo_core.afterwards.bench_credit import arms, check, critics, figures, run, truth
from segpo_core.afterwards.bench_credit.judged import Judged, join
from segpo_core.algos import GRPO
from segpo_core.cli import main
from segpo_core.config import TrainConfig
from segpo_core.shipped import ROOT
from segpo_core.training.loop import train
from tests.fakes import families

DIRECTORY = ROOT / "data" / "credit-truth"
MODELS = {
    "start": str(ROOT / "data" / "tiny-vlm"),
    **{name: str(DIRECTORY / name) for name in ("step-000050", "step-000200")},
}


@pytest.fixture(scope="module")
def truths():
    """Four completions of one problem of each policy."""
    return [each.select(torch.arange(4)) for each in truth.read(DIRECTORY, MODELS, prompts=1)]


@pytest.mark.slow
def test_better_credit_ranks_above_worse(truths):
    truths = truths[:2]  # the last policy fails too seldom
    names = ("oracle", "sampled n=64", "sampled n=9", "shuffled", "forks", "spo_chain")
    of = {arm: run.measure(arm, truths) for arm in names}
    for figure in ("pearson", "within", "cosine"):
        best, many, few, chance = (of[arm][figure] for arm in names[:4])
        assert best == pytest.approx(1)
        assert best > many > few > chance
    assert of["oracle"]["hit"] == 1 and of["oracle"]["sign"] == 1
    assert of["forks"]["within"] > of["spo_chain"]["within"] > of["shuffled"]["within"]
    assert of["sampled n=64"]["tokens"] > of["sampled n=9"]["tokens"] > of["forks"]["tokens"] > of["oracle"]["tokens"]


def test_the_true_values_are_those_of_the_stored_policies(truths):
    """What the weights say of the stored tokens is what was stored; else every value would be another policy's."""
    for each in truths:
        r = each.rollouts
        batch = each.prompts.batch(r.group, "cpu")
        with torch.no_grad():
            logprobs = each.policy.network(batch, r.completion_ids, r.mask).logprobs
        torch.testing.assert_close(logprobs, r.sampled_logprobs, atol=2e-4, rtol=0)
        assert each.values[r.mask].min() >= 0 and each.values[r.mask].max() <= 1
        assert each.stderr[r.mask].max() < 0.02


def test_one_file_of_figures(tmp_path, capsys):
    file = tmp_path / "figures.json"
    assert main(["bench-credit", "--small", "--json", str(file), "oracle", "forks num_continuations=2"]) == 0
    found = json.loads(file.read_text())
    assert list(found) == ["oracle", "forks num_continuations=2"]
    for numbers in found.values():
        assert {"pearson", "within", "hit", "chance", "cosine", "tokens"} <= set(numbers)
    assert found["oracle"]["tokens"] == 0 < found["forks num_continuations=2"]["tokens"]
    assert "oracle" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        ("nothing", "unknown arm"),
        ("spo_chain interval", "setting=value"),
        ("spo_chain widgets=1", "widgets"),
        ("true_values segments=x", "entropy"),
        ("grpo updates=3", "critic"),
    ],
)
def test_a_wrong_arm_is_named_before_any_work(arm, says, capsys):
    assert main(["bench-credit", arm]) == 1
    assert says in capsys.readouterr().err


def test_no_truth_says_how_to_make_it(tmp_path, capsys):
    assert main(["bench-credit", "--truth", str(tmp_path), "oracle"]) == 1
    assert "make_truth.py" in capsys.readouterr().err


def by_hand(**changes) -> Judged:
    """Two completions of three tokens: the first fails at its middle token, the second is right."""
    true = torch.tensor([[0.0, -0.6, 0.0], [0.0, 0.2, 0.2]])
    values = torch.tensor([[0.6, 0.6, 0.0], [0.6, 0.6, 0.8]])
    own = dict(
        credit=true, segment_ids=torch.tensor([[0, 1, 2], [0, 1, 2]]), true=true, values=values, states=values + 0.1,
        mask=torch.ones(2, 3, dtype=torch.bool), probs=torch.full((2, 3), 0.5), reward=torch.tensor([0.0, 1.0]),
        prompt=torch.tensor([0, 1]), first_error=torch.tensor([0, -1]), error=["seeing", None], tokens=4.0, seconds=0.5,
    )  # fmt: skip
    return Judged(**(own | changes))


def test_figures_of_the_truth_itself_and_of_the_first_error():
    found = figures.figures(by_hand())
    for name in ("pearson", "spearman", "within", "within_spearman", "sign", "cosine", "hit"):
        assert found[name] == pytest.approx(1), name
    assert found["first_error_hit"] == found["seeing_first_error_hit"] == 0  # the truth blames another token
    assert found["chance"] == found["first_error_chance"] == pytest.approx(1 / 3)
    assert found["value_rmse"] == pytest.approx(0.1) and found["calibration"] == pytest.approx(0.1)
    assert found["value_explained"] == pytest.approx(1)
    assert found["luck_hit"] != found["luck_hit"]  # NaN: no such completion


def test_chance_is_that_of_the_segmentation():
    cut = torch.tensor([[0, 1, 1], [0, 0, 0]])
    found = figures.figures(by_hand(segment_ids=cut, credit=torch.tensor([[0.0, -1, -1], [1, 1, 1]])))
    assert found["chance"] == pytest.approx(1 / 2 / 2)  # one of two segments, then one of its two tokens
    assert found["hit"] == pytest.approx(1 / 2)


def test_intervals_hold_the_figure_and_shrink_with_prompts():
    torch.manual_seed(0)

    def noisy(prompts: int) -> dict:
        one = by_hand()
        return figures.figures(join([by_hand(credit=one.true + 0.3 * torch.randn(2, 3)) for _ in range(prompts)]))

    few, many = noisy(3), noisy(60)
    for found in (few, many):
        assert found["pearson_low"] <= found["pearson"] <= found["pearson_high"]
    assert many["pearson_high"] - many["pearson_low"] < few["pearson_high"] - few["pearson_low"]


def test_joining_keeps_prompts_apart_and_weighs_costs():
    both = join([by_hand(), by_hand(tokens=8.0)])
    assert both.prompt.unique().numel() == 4
    assert both.tokens == 6 and both.credit.shape == (4, 3)


@pytest.mark.parametrize(
    ("arm", "better"),
    [("true_values lam=0", "true_values lam=0.99"), ("true_values lam=0", "true_values segments=entropy lam=0")],
)
def test_true_values_lose_by_lambda_and_by_segments(truths, arm, better):
    assert run.measure(arm, truths)["within"] > run.measure(better, truths)["within"]


def test_true_values_of_every_token_under_lambda_zero_are_the_oracle(truths):
    for each in truths:
        torch.testing.assert_close(arms.judged("true_values lam=0", each).credit, each.advantages, atol=1e-6, rtol=0)


def test_the_gradient_of_the_truth_and_of_its_opposite(truths):
    each = truths[0]
    assert arms.judged("oracle", each, with_gradient=True).gradient_cosine == pytest.approx(1, abs=1e-5)
    assert arms.judged("uniform", each, with_gradient=True).gradient_cosine < 0.99


@pytest.mark.parametrize("arm", ["srpo", "pgpo", "tempo", "entropy_tokens", "spo_tree branch=(2,2)"])
def test_every_kind_of_method_is_judged(truths, arm, monkeypatch):
    monkeypatch.setattr(arms, "TREE_PROBLEMS", 1)
    found = run.measure(arm, truths[:1])
    assert -1 <= found["pearson"] <= 1 and found["completions"] >= 4
    assert (found["tokens"] > 0) == (arm in ("srpo", "pgpo"))


@pytest.mark.parametrize("kind", ["head", "model"])
def test_a_critic_learns_and_leaves_the_policy_alone(truths, kind, monkeypatch):
    monkeypatch.setattr(critics, "PROBLEMS", 2)
    monkeypatch.setattr(critics, "UPDATES", (1,))
    each = truths[1].select(torch.arange(4))
    before = {name: p.clone() for name, p in each.policy.model.named_parameters()}
    values = critics.critic_values(each, kind, 3, 1e-3)
    assert values.shape == each.values.shape and (values[each.rollouts.mask] != 0).any()
    assert set(each.critics) == {(kind, 1e-3, 1), (kind, 1e-3, 3)}
    assert all(p.equal(before[name]) for name, p in each.policy.model.named_parameters())


def test_the_check_sees_a_wrong_value(truths):
    each = truths[1].select(torch.arange(4))
    wanted, deciding = check.some_states(each, 6, 0)
    assert wanted.sum() == 6 and deciding.any() and (each.rollouts.mask | ~wanted).all()
    right = check.against_samples([each], 6, 64)["all"]
    each.values = (each.values + 0.4).clamp(max=1)
    wrong = check.against_samples([each], 6, 64)["all"]
    assert right["rms"] < 3 * right["rms_expected"] + 0.01 < wrong["rms"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run of another model, with rewards of its own module."""
    model = families.llava(tmp_path_factory.mktemp("llava"))
    return train(TrainConfig(
        method="grpo", algo=GRPO(), model_name_or_path=str(model), output_dir=str(tmp_path_factory.mktemp("r") / "run"),
        num_generations=4, per_device_train_batch_size=8, max_completion_length=8, max_steps=1, eval_steps=0, cpu=True,
        reward_funcs=["tests.fakes.toy:lucky_text"],
    ))  # fmt: skip


def test_a_runs_own_policy_and_task(recorded, tmp_path, capsys):
    file = tmp_path / "figures.json"
    flags = ["--run", str(recorded), "--problems", "1", "--size", "3", "--number", "4", "--trust-code"]
    assert main(["bench-credit", *flags, "--json", str(file), "oracle", "grpo", "sampled n=2"]) == 0
    found = json.loads(file.read_text())
    assert found["oracle"]["pearson"] == 1 and found["oracle"]["completions"] == 3
    assert found["sampled n=2"]["pearson"] < 1 and found["sampled n=2"]["tokens"] > 0
    assert "Taken for true: fork values with N = 4" in capsys.readouterr().err.replace("\n", " ")


def test_a_runs_foreign_rewards_are_not_loaded_unasked(recorded, capsys):
    assert main(["bench-credit", "--run", str(recorded), "oracle"]) == 1
    assert "--trust-code" in capsys.readouterr().err


def test_what_shipped_was_checked():
    found = json.loads((DIRECTORY / "check.json").read_text())
    everything = found["against_plain_sampling"]["all"]
    assert everything["states"] >= 100
    assert abs(everything["bias"]) < 3 * everything["bias_stderr"]
    assert everything["rms"] < 1.2 * everything["rms_expected"]
    assert found["second_draw"]["pearson"] > 0.99


def test_the_training_of_a_critic_is_no_cost_of_a_completion(truths, monkeypatch):
    monkeypatch.setattr(critics, "PROBLEMS", 2)
    each = truths[0].select(torch.arange(4))
    assert arms.judged("ppo updates=2", each).tokens == 0
    assert each.pool is not None


def test_the_page_is_made_of_what_was_recorded():
    spec = importlib.util.spec_from_file_location("page", ROOT / "benchmarks" / "credit" / "page.py")
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    text, picture = page.page()
    assert text == (ROOT / "benchmarks" / "CREDIT.md").read_text() and "[[" not in text
    assert picture == (ROOT / "docs" / "credit.svg").read_text()


def test_names_of_arms_parse():
    assert arms.parse("spo_chain interval=1 threshold=0.8") == ("spo_chain", {"interval": "1", "threshold": "0.8"})
