"""The benchmark of credit: orderings that must hold on the truth that ships, and what the command says."""

import json

import pytest
import torch

from segpo_core.afterwards.bench_credit import arms, run, truth
from segpo_core.cli import main
from segpo_core.shipped import ROOT

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
    [("nothing", "unknown arm"), ("spo_chain interval", "setting=value"), ("spo_chain widgets=1", "widgets")],
)
def test_a_wrong_arm_is_named_before_any_work(arm, says, capsys):
    assert main(["bench-credit", arm]) == 1
    assert says in capsys.readouterr().err


def test_no_truth_says_how_to_make_it(tmp_path, capsys):
    assert main(["bench-credit", "--truth", str(tmp_path), "oracle"]) == 1
    assert "make_truth.py" in capsys.readouterr().err


def test_names_of_arms_parse():
    assert arms.parse("spo_chain interval=1 threshold=0.8") == ("spo_chain", {"interval": "1", "threshold": "0.8"})
