"""SRPO's credit: what the paper fixes, as properties over random texts, token boundaries and contrasts."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import pad

from segpo_core.algos import GRPO, METHODS, SRPO
from segpo_core.config import from_dict
from segpo_core.policy.corruptions import KINDS
from segpo_core.segments import OTHER, PERCEPTION, REASONING, TAGS, role_ids
from segpo_core.types import Rollouts, pad_rows

GOOD = "<perception>{}</perception><think>{}</think><answer>{}</answer>"
MALFORMED = (
    "<perception>{}<think>{}</think></perception><answer>{}</answer>",  # nested
    "<perception>{}</perception><perception>{}</perception><think>{}</think><answer>1</answer>",  # repeated
    "<perception>{}</perception>{}<answer>{}</answer>",  # missing
    "<perception>{}</perception><think>{}</think><answer>{}",  # cut off
    "<think>{}</think><perception>{}</perception><answer>{}</answer>",  # out of order
    "{}</perception>{}<perception><think>{}</think><answer>1</answer>",  # closed before it is opened
)
METHODS_OF_ALL_KINDS = st.builds(
    SRPO, tau=st.floats(0.05, 5), clip=st.floats(0, 20), transform=st.sampled_from(("exp", "sigmoid", "softmax"))
)


@st.composite
def batches(draw, forms: tuple[str, ...] = (GOOD, *MALFORMED), images: bool | None = None) -> Rollouts:
    """Two groups of texts, cut into tokens anywhere, with an EOS that has no text; contrasts at every token."""
    words = st.text(alphabet="ab 1", max_size=5)
    used = draw(st.lists(st.sampled_from(forms), min_size=2, max_size=6))
    pieces = []
    for form in used:
        text = form.format(draw(words), draw(words), draw(words))
        cuts = sorted(draw(st.sets(st.integers(1, len(text) - 1), min_size=8, max_size=30)))
        pieces.append([text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)] + [""])
    mask = pad_rows([torch.ones(len(row), dtype=torch.bool) for row in pieces], False)
    numbers = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=20)
    cells = torch.arange(mask.numel()).view(mask.shape)  # a few numbers, over and over
    d, c = (torch.tensor(drawn)[cells % len(drawn)] * mask for drawn in (draw(numbers), draw(numbers)))
    rewards = draw(st.lists(st.integers(-4, 4), min_size=len(used), max_size=len(used)))
    zeros = torch.zeros(mask.shape)
    return Rollouts(
        completion_ids=zeros.long(), mask=mask, group=torch.arange(len(used)) % 2, finished=mask.any(1),
        sampled_logprobs=zeros, entropy=zeros, rewards=torch.tensor(rewards) / 2,
        well_formed=torch.tensor([form == GOOD for form in used]),
        perception_contrast=d if (draw(st.booleans()) if images is None else images) else None, reasoning_contrast=c,
        texts=["".join(row) for row in pieces], pieces=pieces,
    )  # fmt: skip


def same(a, b) -> None:
    """Two credits, but for rounding."""
    torch.testing.assert_close(a.advantages, b.advantages, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a.weights, b.weights, atol=1e-5, rtol=1e-5)
    assert torch.equal(a.segment_ids, b.segment_ids)


@given(batches(), METHODS_OF_ALL_KINDS)
def test_weights_are_positive_and_keep_sign_and_total(batch, method):
    credit, uniform = method.credit(batch), GRPO().credit(batch).advantages
    assert torch.equal(credit.weights > 0, batch.mask)
    assert torch.equal(credit.advantages.sign(), uniform.sign())
    torch.testing.assert_close(credit.weights.sum(1), batch.lengths.float(), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(credit.advantages.sum(1), uniform.sum(1), atol=1e-4, rtol=1e-5)


@given(batches(), METHODS_OF_ALL_KINDS)
def test_without_contrast_it_is_exactly_grpo(batch, method):
    uniform, nothing = GRPO().credit(batch).advantages, torch.zeros(batch.mask.shape)
    for d in (nothing, None):
        empty = replace(batch, perception_contrast=d, reasoning_contrast=nothing)
        assert torch.equal(method.credit(empty).advantages, uniform)
    assert torch.equal(replace(method, clip=0).credit(batch).advantages, uniform)


@given(batches(), METHODS_OF_ALL_KINDS)
def test_malformed_completions_are_uniform_and_counted(batch, method):
    credit, malformed = method.credit(batch), ~batch.well_formed
    assert credit.metrics["srpo/malformed"] == malformed.sum()
    assert torch.equal(credit.advantages[malformed], GRPO().credit(batch).advantages[malformed])
    assert (credit.segment_ids[malformed] <= 0).all(), "one segment"


@given(batches())
def test_a_segment_is_a_run_of_one_role(batch):
    role, _ = role_ids(batch.pieces, batch.mask)
    z, real = SRPO().credit(batch).segment_ids, batch.mask[:, 1:]
    assert torch.equal((z.diff() == 1)[real], (role.diff() != 0)[real]) and (z[:, 0] == 0).all()


@given(batches((GOOD,), images=True), METHODS_OF_ALL_KINDS)
def test_a_larger_contrast_never_weighs_less(batch, method):
    """Across both roles, as they share one baseline."""
    role, _ = role_ids(batch.pieces, batch.mask)
    signal = torch.where(role == PERCEPTION, batch.perception_contrast, batch.reasoning_contrast)
    speakers = (role == PERCEPTION) | (role == REASONING)
    for row, weight, speaks in zip(signal, method.credit(batch).weights, speakers, strict=True):
        ordered = weight[speaks][row[speaks].argsort()]
        assert (ordered.diff() >= -1e-5 * ordered[1:]).all()


@given(batches((GOOD,)), METHODS_OF_ALL_KINDS)
def test_without_images_the_reasoning_contrast_works_alone(batch, method):
    role, _ = role_ids(batch.pieces, batch.mask)
    perception = role == PERCEPTION
    text_only = method.credit(replace(batch, perception_contrast=None))
    assert text_only.metrics["srpo/no_image"] == perception.any(1).sum()
    for weight, seeing, other in zip(text_only.weights, perception, role == OTHER, strict=True):
        assert (weight[seeing] == weight[other][0]).all(), "the weight of tokens without a say"
    silent = torch.zeros(batch.mask.shape).masked_fill(perception, torch.nan)
    among_images = method.credit(replace(batch, perception_contrast=silent))
    same(text_only, among_images)
    assert text_only.metrics == among_images.metrics


def test_the_reasoning_contrast_moves_weights_where_there_is_no_image():
    pieces = [["<perception>", "a", "</perception>", "<think>", "b", "c", "</think>", "<answer>", "1", "</answer>"]]
    row, c = torch.zeros(1, 10), torch.zeros(1, 10)
    c[0, 4], c[0, 5] = 1.0, -1.0
    batch = Rollouts(row.long(), row == 0, torch.tensor([0]), torch.tensor([True]), row, row, rewards=torch.ones(1),
                     pieces=pieces, reasoning_contrast=c)  # fmt: skip
    weights = SRPO().credit(batch).weights[0]
    assert weights[4] > weights[1] == weights[8] > weights[5]


@given(batches(), METHODS_OF_ALL_KINDS, st.randoms(use_true_random=False))
def test_permuting_the_batch_permutes_the_credit(batch, method, random):
    order = torch.tensor(random.sample(range(len(batch)), len(batch)))
    before, after = method.credit(batch), method.credit(batch.select(order))
    same(replace(before, advantages=before.advantages[order], weights=before.weights[order],
                 segment_ids=before.segment_ids[order]), after)  # fmt: skip
    assert before.metrics == after.metrics


@given(batches(), METHODS_OF_ALL_KINDS, st.integers(1, 4))
def test_padding_changes_nothing(batch, method, columns):
    width, grown = batch.mask.shape[1], {}
    for name in ("completion_ids", "mask", "sampled_logprobs", "entropy"):
        grown[name] = pad(getattr(batch, name), (0, columns))
    for name in ("perception_contrast", "reasoning_contrast"):  # whatever stands at padding must not leak
        value = getattr(batch, name)
        grown[name] = None if value is None else pad(value, (0, columns), value=torch.nan)
    before, after = method.credit(batch), method.credit(replace(batch, **grown))
    same(before, replace(after, advantages=after.advantages[:, :width], weights=after.weights[:, :width],
                         segment_ids=after.segment_ids[:, :width]))  # fmt: skip
    assert (after.advantages[:, width:] == 0).all() and (after.weights[:, width:] == 0).all()


@given(batches((GOOD,), images=True))
def test_tags_have_the_names_one_likes(batch):
    tags, named = ("see", "reckon", "say"), batch.texts
    for old, new in zip(TAGS, tags, strict=True):
        named = [text.replace(f"{old}>", f"{new}>") for text in named]
    mask = pad_rows([torch.ones(len(text), dtype=torch.bool) for text in named], False)
    noise = torch.randn(mask.shape)
    other = replace(batch, completion_ids=mask.long(), mask=mask, pieces=[list(text) for text in named],
                    perception_contrast=noise, reasoning_contrast=noise)  # fmt: skip
    assert SRPO(tags=tags).credit(other).metrics["srpo/malformed"] == 0
    assert SRPO().credit(other).metrics["srpo/malformed"] == len(batch)


def test_settings():
    assert get_args(get_type_hints(SRPO)["corruption"]) == KINDS
    assert METHODS["srpo"] is SRPO and SRPO().uses_contrasts and not GRPO().uses_contrasts
    read = from_dict({"method": "srpo", "tags": ["a", "b", "c"], "tau": "5e-1"}).algo
    assert read == SRPO(tags=("a", "b", "c"), tau=0.5)
    for wrong in ({"tau": 0}, {"clip": -1}, {"clip": 100}, {"tags": ("a", "b")}, {"tags": ("a", "b", "b")}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SRPO(**wrong)


@given(batches())
def test_rollouts_without_contrasts_are_refused(batch):
    with pytest.raises(ValueError, match="contrasts"):
        SRPO().credit(replace(batch, reasoning_contrast=None))
