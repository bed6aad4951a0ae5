"""Questions to a trained policy: they get the numbers that training recorded, and what a plain forward pass says."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import segviz as sv
from segpo_core.afterwards.probe import (
    PROBE_STREAM,
    Policy,
    _rollouts,
    corrupt_contrast,
    patch_contrasts,
    recorded_example,
    resample,
    sample,
    score_completions,
)
from segpo_core.algos import SAPO
from segpo_core.config import TrainConfig
from segpo_core.policy.contrasts import contrasts
from segpo_core.policy.inputs import Prompts
from segpo_core.segments import PERCEPTION, role_ids
from segpo_core.tasks import load_task
from segpo_core.tasks.shapes import CELLS
from segpo_core.training.loop import train
from tests.fakes import families
from tests.fakes.toy import ToyTask

EXAMPLE = ToyTask().train(4)  # two images of different size


def trained(folder, **changes) -> sv.Run:
    """Three steps with a checkpoint after each."""
    settings = dict(
        method="sapo", algo=SAPO(), model_name_or_path=str(families.llava(folder / "llava")), num_generations=4,
        output_dir=str(folder / "run"), per_device_train_batch_size=8, max_completion_length=8, max_steps=3,
        learning_rate=1e-2, eval_steps=0, save_steps=1, save_total_limit=9, cpu=True,
        reward_funcs=["tests.fakes.toy:lucky_text"],
    )  # fmt: skip
    return sv.open(train(TrainConfig(**(settings | changes))))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("probe"))


@pytest.fixture(scope="module")
def tiny():
    return Policy.load("data/tiny-vlm", reward_funcs=load_task("shapes").reward_funcs)


@pytest.fixture(scope="module", params=sorted(families.FAMILIES))
def policy(request, tmp_path_factory):
    """Each family, sampling at a temperature of its own."""
    path = families.FAMILIES[request.param](tmp_path_factory.mktemp(request.param))
    loaded = Policy.load(path)
    return Policy.wrap(loaded.model, loaded.processor, temperature=0.7, max_completion_length=40)


def example_for(policy):
    return EXAMPLE if hasattr(policy.processor, "image_processor") else {"prompt": "2 + 2 =", "images": []}


# --- which policy ---------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [2, 3])
def test_the_policy_before_a_step_says_what_that_step_recorded(run, step):
    policy = Policy.load(run, step - 1, trust_code=True)
    assert policy.step == step - 1 and policy.has_critic and not policy.no_rewards
    for row in run.rollouts_at(step):
        rollout = run.rollout(step, row["group"], row["sample"])
        example = recorded_example(rollout.row, rollout.images)
        (scored,) = score_completions(policy, [example], [rollout.row["token_ids"]])
        for name, column in (("logprobs", "old_logprobs"), ("entropy", "entropy"), ("values", "values")):
            np.testing.assert_allclose(getattr(scored, name), rollout.row[column], atol=2e-5, rtol=2e-5, err_msg=name)
        assert policy.rewards(example, [rollout.text]) == [rollout.row["reward"]]


def test_the_first_step_was_sampled_by_the_model_that_training_began_with(run):
    policy, rollout = Policy.load(run.path, 0), run.rollout(1, 0, 0)
    assert policy.step == 0 and "began with" in policy.name and not policy.has_critic
    (scored,) = score_completions(policy, [recorded_example(rollout.row, rollout.images)], [rollout.row["token_ids"]])
    np.testing.assert_allclose(scored.logprobs, rollout.row["old_logprobs"], atol=2e-5)
    assert scored.values is None


def test_a_run_with_an_adapter_is_its_base_model_and_the_adapter(tmp_path):
    run = trained(tmp_path, use_peft=True, lora_r=4)
    for step in (2, 3):
        rollout = run.rollout(step, 0, 0)
        example = recorded_example(rollout.row, rollout.images)
        scores = [
            score_completions(Policy.load(run, at), [example], [rollout.row["token_ids"]])[0].logprobs
            for at in (step - 1, 0)
        ]
        np.testing.assert_allclose(scores[0], rollout.row["old_logprobs"], atol=2e-5)
        assert np.abs(scores[1] - rollout.row["old_logprobs"]).max() > 1e-3, "training moved the adapter"


def test_the_nearest_checkpoint_at_or_before_a_step(run, tmp_path):
    assert [Policy.load(run, step).step for step in (None, 99, 2, 1)] == [3, 3, 2, 1]
    assert Policy.load(run.path / "checkpoints" / "step-000002").step == 2
    moved = tmp_path / "run"
    shutil.copytree(run.path, moved)
    for step in (1, 2):
        shutil.rmtree(moved / "checkpoints" / f"step-00000{step}")
    manifest = json.loads((moved / "run.json").read_text())
    manifest["config"]["model_name_or_path"] = "gone/away"
    (moved / "run.json").write_text(json.dumps(manifest))
    assert Policy.load(moved, 2).step == 3, "nothing earlier is left"
    shutil.rmtree(moved / "checkpoints")
    with pytest.raises(FileNotFoundError, match="no checkpoint.*save_steps"):
        Policy.load(moved)


def test_what_is_no_run_and_no_model_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Policy.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="not a model directory"):
        Policy.load(tmp_path)
    with pytest.raises(ValueError, match="no step 3; leave step out"):
        Policy.load("data/tiny-vlm", 3)


def test_a_run_whose_rewards_are_gone_can_be_asked_all_the_same(run, tmp_path):
    moved = tmp_path / "run"
    shutil.copytree(run.path, moved)
    manifest = json.loads((moved / "run.json").read_text())
    manifest["config"]["reward_funcs"] = ["no_such_module:reward"]
    (moved / "run.json").write_text(json.dumps(manifest))
    policy = Policy.load(moved, trust_code=True)
    assert "no_such_module" in policy.no_rewards
    assert [s.reward for s in sample(policy, EXAMPLE, 2)] == [None, None]


# --- sampling -------------------------------------------------------------------------------------


def test_continuations_have_the_logprobs_of_a_scoring_pass(policy):
    example = example_for(policy)
    whole = max(sample(policy, example, 8, seed=3), key=lambda s: len(s.token_ids)).token_ids
    for at in (0, 1, len(whole) // 2, len(whole) - 1):
        drawn = resample(policy, example, whole, at, 3, seed=5)
        assert len({tuple(s.token_ids) for s in drawn}) > 1
        scores = score_completions(policy, [example] * 3, [whole[:at] + s.token_ids for s in drawn])
        for s, scored in zip(drawn, scores, strict=True):
            np.testing.assert_allclose(s.logprobs, scored.logprobs[at:], atol=1e-4)
            np.testing.assert_allclose(s.entropy, scored.entropy[at:], atol=1e-4)
            assert s.finished == (s.token_ids[-1] in policy.sampler.eos.tolist())
            assert s.finished or at + len(s.token_ids) == 40
            assert s.text.endswith("".join(s.pieces)) and len(s.pieces) == len(s.token_ids)


def test_the_seed_names_the_continuations(tiny):
    example = load_task("shapes").eval(0)
    ids = sample(tiny, example)[0].token_ids
    a, b, c = (resample(tiny, example, ids, 10, 4, seed=seed) for seed in (0, 0, 1))
    assert a == b and [s.token_ids for s in a] != [s.token_ids for s in c]
    prefix = tiny.sampler.tokenizer.decode(ids[:10])
    assert all(s.text.startswith(prefix) and s.reward in (0.0, 1.0) for s in a)


def test_fresh_samples_are_those_of_the_sampler(tiny):
    """Drawn in stretches, so that one may stop: the same tokens as in one go."""
    example, calls = load_task("shapes").eval(1), []
    drawn = sample(tiny, example, 5, seed=7, progress=lambda *done: calls.append(done))
    prompts = Prompts.build([example], tiny.processor, tiny.model.config)
    whole = tiny.sampler.groups(prompts, 5, (7, PROBE_STREAM))
    assert [s.token_ids for s in drawn] == [
        row[:n].tolist() for row, n in zip(whole.completion_ids, whole.lengths.tolist(), strict=True)
    ]
    assert [s.text for s in drawn] == whole.texts and all(s.finished for s in drawn)
    np.testing.assert_allclose(drawn[2].logprobs, whole.sampled_logprobs[2, : len(drawn[2].token_ids)], atol=1e-5)
    assert [s.reward for s in drawn] == tiny.rewards(example, whole.texts)
    done = [n for n, _ in calls]
    assert len(done) > 1 and done == sorted(done) and calls[-1] == (256, 256)


def test_cancelling_gives_what_was_drawn_so_far(tiny):
    example, asked = load_task("shapes").eval(1), []

    def cancel():
        asked.append(1)
        return len(asked) > 2

    whole = sample(tiny, example, 3, seed=7)
    cut = sample(tiny, example, 3, seed=7, cancel=cancel)
    for part, full in zip(cut, whole, strict=True):
        assert 0 < len(part.token_ids) < len(full.token_ids) and not part.finished and part.reward is None
        assert full.token_ids[: len(part.token_ids)] == part.token_ids
    assert [s.token_ids for s in sample(tiny, example, 2, cancel=lambda: True)] == [[], []]


def test_a_prompt_without_an_answer_has_no_verdict(tiny):
    example = load_task("shapes").eval(2)
    plain = {"prompt": example["prompt"], "images": example["images"]}
    assert [s.reward for s in sample(tiny, plain, 2)] == [None, None]


# --- what a token owes to the image ---------------------------------------------------------------


def test_a_token_that_names_a_cell_owes_it_to_that_patch(tiny):
    """Right perceptions of 8 scenes: masking the patch of the object hits its own words most."""
    task, hits = load_task("shapes"), []
    for number in range(8):
        example = task.eval(number)
        drawn = sample(tiny, example, 4, seed=1)
        best = next((s for s in drawn if (task.inspect(example, s.text) or {}).get("perception_right")), None)
        if best is None:
            continue
        contrast = patch_contrasts(tiny, example, best.token_ids)
        assert contrast.shape == (len(best.token_ids), 3, 3) and contrast.dtype == np.float32
        seen = best.text.split("<perception>")[1].split("</perception>")[0]
        at = 0
        for words in seen.split(","):
            cell = CELLS.index(words.split()[0])
            start = best.text.index(words.strip(), at)
            at = start + len(words.strip())
            offsets = np.cumsum([0, *map(len, best.pieces)])
            inside = [t for t in range(len(best.pieces)) if offsets[t] >= start - 1 and offsets[t + 1] <= at]
            hits.append(int(np.abs(contrast[inside]).sum(0).argmax()) == cell)
    assert len(hits) > 15 and np.mean(hits) > 0.9


def test_patches_are_masked_in_the_mean_colour(policy):
    if not hasattr(policy.processor, "image_processor"):
        with pytest.raises(ValueError, match="reads text only"):
            patch_contrasts(policy, EXAMPLE, [60])
        return
    ids = sample(policy, EXAMPLE, seed=2)[0].token_ids
    contrast = patch_contrasts(policy, EXAMPLE, ids, grid=(3, 2), image=1, batch_size=3)
    pixels = np.asarray(EXAMPLE["images"][1]).copy()
    rows, columns = (
        np.linspace(0, pixels.shape[0], 4).round().astype(int),
        np.linspace(0, pixels.shape[1], 3).astype(int),
    )
    mean = pixels.reshape(-1, 3).mean(0).round().astype(np.uint8)
    pixels[rows[1] : rows[2], columns[1] : columns[2]] = mean
    masked = {**EXAMPLE, "images": [EXAMPLE["images"][0], Image.fromarray(pixels)]}
    plain, without = score_completions(policy, [EXAMPLE, masked], [ids, ids])
    np.testing.assert_allclose(contrast[:, 1, 1], plain.logprobs - without.logprobs, atol=1e-4)
    assert np.abs(contrast).max() > 1e-3


def test_a_corruption_moves_tokens_as_srpo_measures_it(tiny):
    example = load_task("shapes").eval(3)
    drawn = sample(tiny, example, seed=1)[0]
    image, contrast = corrupt_contrast(tiny, example, drawn.token_ids, "blank")
    assert image.size == example["images"][0].size and len(set(image.getdata())) == 1
    rollouts = _rollouts(tiny, [drawn.token_ids], [0])
    rollouts.pieces = [drawn.pieces]
    prompts = Prompts.build([example], tiny.processor, tiny.model.config)
    d, _ = contrasts(tiny.network, [example], prompts, rollouts, tiny.processor, "blank")
    at = role_ids(rollouts.pieces, rollouts.mask)[0][0] == PERCEPTION
    np.testing.assert_allclose(contrast[at], d[0][at], atol=1e-4)
    assert contrast[at.numpy()].mean() > 1


# --- bad input ------------------------------------------------------------------------------------


def test_questions_that_cannot_be_answered(tiny):
    example = load_task("shapes").eval(0)
    drawn = sample(tiny, example)[0]
    ids, text = drawn.token_ids, {"prompt": "1 + 1 =", "images": []}
    assert drawn.finished
    bad = [
        (lambda: resample(tiny, example, ids, len(ids), 2), "ended with token"),
        (lambda: resample(tiny, example, ids, -1, 2), "cannot go on from token -1"),
        (lambda: resample(tiny, example, ids, len(ids) + 1, 2), f"has {len(ids)} tokens"),
        (lambda: resample(tiny, example, ids, 3, 0), "at least one continuation"),
        (lambda: resample(tiny, example, [10**6, 5], 1, 2), "token id 1000000 is not in the vocabulary"),
        (lambda: resample(tiny, example, [50] * 300, 256, 2), "at most 256 tokens"),
        (lambda: sample(tiny, example, 0), "at least one completion"),
        (lambda: tiny.check(ids, "something else"), "another tokenizer wrote this"),
        (lambda: score_completions(tiny, [example], [[-1]]), "token id -1"),
        (lambda: score_completions(tiny, [example], [[tiny.model.config.image_token_id]]), "stands for an image"),
        (lambda: patch_contrasts(tiny, text, ids), "no image"),
        (lambda: patch_contrasts(tiny, example, ids, image=1), "has 1, counted from 0"),
        (lambda: patch_contrasts(tiny, example, ids, grid=(0, 3)), "grid"),
        (lambda: patch_contrasts(tiny, example, ids, grid=(49, 3)), "48 x 48 pixels"),
        (lambda: patch_contrasts(tiny, example, []), "no tokens"),
        (lambda: corrupt_contrast(tiny, example, ids, "sepia"), "sepia"),
        (lambda: corrupt_contrast(tiny, example, ids, "other"), "another prompt's image"),
        (lambda: corrupt_contrast(tiny, text, ids), "no image"),
    ]
    for ask, message in bad:
        with pytest.raises(ValueError, match=message):
            ask()


def test_an_empty_completion_is_scored_as_nothing(tiny):
    example = load_task("shapes").eval(0)
    empty, one = score_completions(tiny, [example, example], [[], [50]])
    assert empty.logprobs.shape == (0,) and one.logprobs.shape == (1,)
    assert score_completions(tiny, [], []) == []


def test_a_recorded_problem_needs_its_images(run):
    rollout = next(r for r in (run.rollout(1, g, 0) for g in range(2)) if r.row["images"])
    with pytest.raises(ValueError, match=r"image .*… of rollout step 1, group \d, sample 0 is missing"):
        recorded_example(rollout.row, {})
    with pytest.raises(ValueError, match="cannot be read"):
        recorded_example(rollout.row, dict.fromkeys(rollout.row["images"], b"no image"))
    with pytest.raises(ValueError, match="no recorded prompt"):
        recorded_example({**rollout.row, "prompt": None}, rollout.images)


def test_asking_leaves_no_gradients(tiny):
    example = load_task("shapes").eval(0)
    patch_contrasts(tiny, example, sample(tiny, example)[0].token_ids)
    assert all(parameter.grad is None for parameter in tiny.network.parameters()) and torch.is_grad_enabled()
