"""Probability mask and role weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segpo_core.weights import probability_mask, role_weights
from tests.fakes import reference as slow
from tests.fakes.reference import mask_of, padded

nan = float("nan")
contrasts = st.floats(-5, 5, width=32)
transforms = st.sampled_from(["exp", "sigmoid", "softmax"])


@st.composite
def completions(draw):
    """(perception contrasts, reasoning contrasts, roles) of some completions; NaN where a contrast may not be read."""
    roles = draw(st.lists(st.lists(st.integers(0, 3), max_size=10), min_size=1, max_size=4))
    signal = [[draw(contrasts) for _ in row] for row in roles]

    def only(role: int) -> list[list[float]]:
        return [
            [x if r == role else nan for x, r in zip(*rows, strict=True)] for rows in zip(signal, roles, strict=True)
        ]

    return draw(st.sampled_from([None, only(1)])), draw(st.sampled_from([None, only(2)])), roles


@given(completions(), st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from([0.2, 1.0, 5.0]), transforms)
def test_role_weights(case, tau, clip, transform):
    perception, reasoning, roles = case
    d, c = (None if x is None else padded(x, nan) for x in (perception, reasoning))
    mask = mask_of(roles)
    w = role_weights(d, c, padded(roles, -1, torch.long), mask, tau, clip, transform)
    expected = [
        slow.role_weights(perception and perception[b], reasoning and reasoning[b], row, tau, clip, transform)
        if row
        else []
        for b, row in enumerate(roles)
    ]
    torch.testing.assert_close(w, padded(expected, dtype=w.dtype), atol=1e-5, rtol=1e-5)
    assert (w[mask] > 0).all()  # so an advantage keeps its sign
    torch.testing.assert_close(w.sum(1), mask.sum(1).to(w.dtype), atol=1e-4, rtol=1e-5)  # and the total is preserved


@pytest.mark.parametrize("transform", ["exp", "sigmoid", "softmax"])
@pytest.mark.parametrize("absent", ["neither", "perception", "reasoning", "both"])
def test_no_contrast_is_exactly_grpo(transform, absent):
    roles = torch.tensor([[0, 1, 1, 1, 2, 2, 3], [0, 0, 2, 3, 1, -1, -1], [0] * 7, [-1] * 7])
    zero = torch.zeros(4, 7)
    d = None if absent in ("perception", "both") else zero
    c = None if absent in ("reasoning", "both") else zero
    w = role_weights(d, c, roles, roles >= 0, transform=transform)
    assert torch.equal(w, (roles >= 0).float())


def test_stronger_evidence_weighs_more_and_both_roles_share_one_baseline():
    roles = torch.tensor([[1, 1, 2, 2]])
    d, c = torch.tensor([[0.9, 0.1, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.5, 0.1]])
    w = role_weights(d, c, roles, roles > 0)[0]
    assert w[0] > w[2] > w[1] and w[1] == w[3]


@given(completions(), transforms)
def test_a_constant_added_to_all_signals_changes_nothing(case, transform):
    _, _, roles = case
    ids, mask = padded(roles, -1, torch.long), mask_of(roles)
    signal = torch.linspace(-1, 1, max(ids.numel(), 1), dtype=torch.float64)[: ids.numel()].reshape(ids.shape)
    w = role_weights(signal, signal, ids, mask, transform=transform)
    torch.testing.assert_close(role_weights(signal + 3, signal + 3, ids, mask, transform=transform), w)


def test_weights_of_a_malformed_completion_are_uniform():
    mask = torch.ones(1, 5, dtype=torch.bool)
    w = role_weights(torch.randn(1, 5), torch.randn(1, 5), torch.zeros(1, 5, dtype=torch.long), mask)
    assert (w == 1).all()


def test_probability_mask():
    probs = torch.tensor([[0.1, 0.9, 0.95, nan], [0.89, 0.0, 1.0, 0.1]])
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    assert probability_mask(probs, mask).tolist() == [[True, False, False, False], [True, True, False, True]]


def test_errors_say_what_is_wrong():
    x = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="transform must be"):
        role_weights(x, x, x.long(), x == 0, transform="tanh")
    with pytest.raises(ValueError, match="tau"):
        role_weights(x, x, x.long(), x == 0, tau=0)
