"""The correctness list, as far as pure maths can hold it: one test a line, by its number."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segpo_core import advantages as A
from segpo_core import losses as L
from segpo_core import segments as S
from segpo_core.weights import probability_mask, role_weights

LEVELS = ("token", "segment", "sequence")
LOSS_TYPES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")
lengths = st.lists(st.integers(0, 9), min_size=1, max_size=5)
seeds = st.integers(0, 999)
few = settings(max_examples=25)  # each of these examples goes through all of the maths


def batch(rows: list[int], seed: int, junk: float = 0.0, extra: int = 0, dtype=torch.float64) -> SimpleNamespace:
    """Everything that token-level maths takes, for completions of these lengths, with `junk` at padding."""
    width = max(rows) + extra
    mask = torch.arange(width) < torch.tensor(rows)[:, None]
    generator = torch.Generator().manual_seed(seed)

    def numbers() -> torch.Tensor:
        drawn = torch.randn(len(rows), max(rows), generator=generator, dtype=dtype)  # the same for every `extra`
        full = torch.full((len(rows), width), junk, dtype=dtype)
        full[:, : max(rows)] = drawn
        return torch.where(mask, full, junk)

    b = SimpleNamespace(mask=mask, entropy=numbers(), values=numbers(), token_rewards=numbers(), advantages=numbers())
    b.old, b.drift, b.contrast = numbers(), numbers(), numbers()
    b.new = b.old + 0.3 * b.drift
    b.rewards = torch.randn(len(rows), generator=generator, dtype=dtype).round()
    b.group = torch.arange(len(rows)) // 2
    b.roles = torch.where(mask, (torch.arange(width) // 2) % 4, -1)
    return b


def everything(b: SimpleNamespace) -> dict[str, torch.Tensor]:
    """Every token-shaped or row-shaped result of the maths, by name."""
    ids = S.entropy_topk(b.entropy, b.mask, 0.3)
    out = {
        "entropy_topk": ids,
        "cutpoints": S.cutpoints(b.entropy, b.mask, 0.5, 2),
        "fixed_length": S.fixed_length(b.mask, 3),
        "roles": S.roles(b.roles, b.mask),
        "count": S.count(ids),
        "segment_mean": S.segment_mean(b.values, ids),
        "token_rewards": A.token_rewards(b.rewards, b.mask, b.contrast, 0.1),
        "group_relative": A.group_relative(b.rewards, b.group),
        "batch_relative": A.group_relative(b.rewards, b.group, "batch"),
        "leave_one_out": A.leave_one_out(b.rewards, b.group),
        "whiten": A.whiten(b.advantages, b.mask),
        "value_difference": A.value_difference(S.per_segment_pick(b.values, ids, S.starts(ids)), b.rewards, ids),
        "probability_mask": probability_mask(b.entropy, b.mask),
        "kl": L.kl(b.new, b.old, "k3", b.mask),
    }
    for name, (advantages, returns) in {
        "gae": A.gae(b.token_rewards, b.values, b.mask, 0.99, 0.95),
        "segment_gae_start": A.segment_gae(b.token_rewards, b.values, ids, 0.99, 0.95, "start"),
        "segment_gae_end": A.segment_gae(b.token_rewards, b.values, ids, 0.99, 0.95, "end"),
    }.items():
        out |= {name: advantages, f"{name}_returns": returns}
    for transform in ("exp", "sigmoid", "softmax"):
        out[f"role_weights_{transform}"] = role_weights(b.contrast, b.values, b.roles, b.mask, transform=transform)
    for level in LEVELS:
        out[f"log_ratio_{level}"] = L.log_ratio(b.new, b.old, b.mask, level, ids)
    return out


def scalars(b: SimpleNamespace) -> dict[str, torch.Tensor]:
    """Every result that is one number."""
    ids = S.entropy_topk(b.entropy, b.mask, 0.3)
    out = {"explained_variance": L.explained_variance(b.values, b.token_rewards, b.mask)}
    out["value_loss"], stats = L.value_loss(b.values, b.old, b.token_rewards, b.mask, 0.2)
    out |= {f"value_{name}": x for name, x in stats.items()}
    for level in LEVELS:
        for loss_type in LOSS_TYPES:
            loss, stats = policy_loss(b, level, loss_type, ids)
            out |= {f"{level}_{loss_type}": loss} | {f"{level}_{loss_type}_{name}": x for name, x in stats.items()}
    return out


def policy_loss(b: SimpleNamespace, level: str, loss_type: str, ids: torch.Tensor, **options):
    options = {"epsilon_high": 0.28, "delta": 3.0, "max_completion_length": 20} | options
    return L.policy_loss(
        b.new, b.old, b.advantages, b.mask, level=level, segment_ids=ids, loss_type=loss_type, **options
    )


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_01_the_ratio_is_exactly_one_before_the_first_update(level, dtype):
    b = batch([7, 3, 9], 0, junk=float("nan"), dtype=dtype)
    b.new = b.old.clone()
    _, stats = policy_loss(b, level, "token-mean", S.fixed_length(b.mask, 2))
    assert stats["ratio/min"] == stats["ratio/max"] == 1
    assert stats["clip_ratio/region"] == stats["clip_ratio/dual"] == stats["approx_kl"] == 0


@given(lengths, seeds)
def test_04_the_reward_sits_on_the_last_real_token(rows, seed):
    b = batch(rows, seed)
    placed = A.token_rewards(b.rewards, b.mask)
    for row, n, reward in zip(placed, rows, b.rewards, strict=True):
        assert row.tolist() == [0.0] * (n - 1) + [reward.item()] * (n > 0) + [0.0] * (len(row) - max(n, 0))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@few
@given(rows=lengths, seed=seeds, cut=st.integers(1, 4))
def test_08_loss_and_gradient_do_not_depend_on_the_cut(level, loss_type, rows, seed, cut):
    b = batch(rows, seed, junk=float("nan"))
    ids, fields = S.fixed_length(b.mask, 2), ("old", "advantages", "mask", "new")
    b.new.requires_grad_()
    loss, _ = policy_loss(b, level, loss_type, ids)
    (whole,) = torch.autograd.grad(loss, b.new)
    total, gradient = torch.zeros_like(loss), torch.zeros_like(whole)
    for start in range(0, len(rows), cut):
        piece = slice(start, start + cut)
        part = SimpleNamespace(**{name: getattr(b, name)[piece] for name in fields})
        share, _ = policy_loss(part, level, loss_type, ids[piece], normalizer=L.count_items(b.mask, loss_type))
        total += share.detach()
        gradient += torch.autograd.grad(share, b.new)[0]
    torch.testing.assert_close(total, loss.detach())
    torch.testing.assert_close(gradient, whole)


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), -float("inf"), 1e30])
@few
@given(rows=lengths, seed=seeds)
def test_10_what_stands_at_padding_never_leaks(junk, rows, seed):
    dirty, clean = batch(rows, seed, junk), batch(rows, seed)
    for results in (everything, scalars):
        for (name, ours), theirs in zip(results(dirty).items(), results(clean).values(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True, msg=name)
    for b in (dirty, clean):  # and in the gradients
        b.new, b.values = b.new.requires_grad_(), b.values.requires_grad_()
        ids = S.fixed_length(b.mask, 2)
        losses = [policy_loss(b, level, kind, ids)[0] for level in LEVELS for kind in LOSS_TYPES]
        losses.append(L.value_loss(b.values, b.old, b.token_rewards, b.mask, 0.2)[0])
        losses.append(L.aggregate(L.kl(b.new, b.old, "k3", b.mask), b.mask))
        b.grads = torch.autograd.grad(sum(losses), (b.new, b.values))
    for ours, theirs in zip(dirty.grads, clean.grads, strict=True):
        assert torch.equal(ours, theirs) and (ours[~dirty.mask] == 0).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("normalizer", [None, 5.0, torch.tensor(0)])
def test_11_a_fully_masked_batch_gives_a_finite_zero_loss(level, loss_type, normalizer):
    b = batch([4, 4], 0, junk=float("nan"))
    b.mask = torch.zeros_like(b.mask)
    b.new, b.values = b.new.requires_grad_(), b.values.requires_grad_()
    ids = torch.zeros_like(b.mask, dtype=torch.long)
    loss, stats = policy_loss(b, level, loss_type, ids, normalizer=normalizer)
    value_loss, value_stats = L.value_loss(b.values, b.old, b.token_rewards, b.mask, 0.2, normalizer)
    assert loss == 0 and value_loss == 0
    for grad in torch.autograd.grad(loss + value_loss, (b.new, b.values)):
        assert torch.equal(grad, torch.zeros_like(grad))
    assert all(x.isfinite() for x in (*stats.values(), *value_stats.values()))


@pytest.mark.parametrize("rows", [[0, 0], [1, 0]])
def test_16_whitening_fewer_than_two_values_is_a_no_op(rows):
    b = batch(rows, 0, extra=1)
    assert torch.equal(A.whiten(b.advantages, b.mask), b.advantages)


@few
@given(lengths, seeds, st.randoms())
def test_17_permuting_the_batch_permutes_the_result(rows, seed, random):
    b = batch(rows, seed)
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled = SimpleNamespace(**{name: x[order] for name, x in vars(b).items()})
    for (name, ours), theirs in zip(everything(shuffled).items(), everything(b).values(), strict=True):
        torch.testing.assert_close(ours, theirs[order], msg=name)
    for (name, ours), theirs in zip(scalars(shuffled).items(), scalars(b).values(), strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, msg=name)


@given(lengths, seeds, st.integers(0, 3))
def test_18_segment_ids_cover_every_real_token_once_in_order(rows, seed, extra):
    b = batch(rows, seed, extra=extra)
    pieces = [
        [("a", "\n", " ", "Step 1", "<think>")[hash((seed, i, t)) % 5] for t in range(n)] for i, n in enumerate(rows)
    ]
    for ids in (
        S.token_level(b.mask),
        S.sequence_level(b.mask),
        S.fixed_length(b.mask, 3),
        S.entropy_topk(b.entropy, b.mask, 0.3),
        S.cutpoints(b.entropy, b.mask, 0.5, 2),
        S.roles(b.roles, b.mask),
        S.newline(pieces, b.mask),
        S.step_markers(pieces, b.mask),
    ):
        assert ids.dtype == torch.long and (ids[~b.mask] == -1).all()
        for row, n in zip(ids.tolist(), rows, strict=True):
            assert row[:n] == sorted(row[:n]) and sorted(set(row[:n])) == list(range(max(row, default=-1) + 1))


@few
@given(lengths, seeds, st.integers(1, 30))
def test_19_adding_padding_columns_changes_nothing(rows, seed, extra):
    wide, narrow = batch(rows, seed, extra=extra), batch(rows, seed)
    for (name, ours), theirs in zip(everything(wide).items(), everything(narrow).values(), strict=True):
        if ours.dim() == 2:
            padding = ours[:, max(rows) :]
            assert (padding == (-1 if ours.dtype == torch.long else 0)).all(), name
            ours = ours[:, : max(rows)]
        torch.testing.assert_close(ours, theirs, msg=name)
    for (name, ours), theirs in zip(scalars(wide).items(), scalars(narrow).values(), strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, msg=name)


@few
@given(lengths, seeds, st.sampled_from(["start", "end"]))
def test_20_the_extreme_segmentations_are_token_and_sequence(rows, seed, value_at):
    b = batch(rows, seed)
    each, whole = S.token_level(b.mask), S.sequence_level(b.mask)
    segment_gae = A.segment_gae(b.token_rewards, b.values, each, 0.99, 0.95, value_at)
    for ours, theirs in zip(segment_gae, A.gae(b.token_rewards, b.values, b.mask, 0.99, 0.95), strict=True):
        assert torch.equal(ours, theirs)

    def ratio(level: str, ids: torch.Tensor | None = None) -> torch.Tensor:
        return L.log_ratio(b.new, b.old, b.mask, level, ids)

    assert torch.equal(ratio("segment", each), ratio("token"))
    torch.testing.assert_close(ratio("segment", whole), ratio("sequence"))
    b.new.requires_grad_()
    for ids, level in ((each, "token"), (whole, "sequence")):
        pair = [policy_loss(b, which, "token-mean", ids)[0] for which in ("segment", level)]
        torch.testing.assert_close(*pair)
        torch.testing.assert_close(*(torch.autograd.grad(loss, b.new)[0] for loss in pair))


def test_nothing_waits_for_the_device():
    """On the meta device there are no numbers to look at: whatever runs there never waits for an accelerator."""
    b = SimpleNamespace(**{name: x.to("meta") for name, x in vars(batch([4, 0, 7], 0)).items()})
    assert all(x.device.type == "meta" for x in (everything(b) | scalars(b)).values())
    parent = torch.zeros(5, dtype=torch.long, device="meta")
    assert all(x.device.type == "meta" for x in A.tree_advantages(parent, parent.float(), True, depth=2))
