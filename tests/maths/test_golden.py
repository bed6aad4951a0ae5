"""The papers' released functions, recorded on random inputs: our maths gives the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from segpo_core.advantages import gae, segment_gae, tree_advantages, value_difference, whiten
from segpo_core.losses import log_ratio, policy_loss, value_loss
from segpo_core.segments import cutpoints, ends, entropy_topk, starts
from segpo_core.weights import probability_mask

GOLDEN = Path(__file__).parents[1] / "golden"
CHAINS = json.loads((GOLDEN / "spo_chain.json").read_text())
TREES = json.loads((GOLDEN / "spo_tree.json").read_text())


def same(ours: torch.Tensor, recorded, where: torch.Tensor | None = None) -> None:
    recorded = torch.as_tensor(recorded, dtype=ours.dtype)
    if where is not None:
        ours, recorded = ours[where], recorded[where]
    torch.testing.assert_close(ours, recorded, atol=1e-5, rtol=0)


@pytest.fixture(params=sorted(GOLDEN.glob("sapo_*.npz")), ids=lambda path: path.stem)
def sapo(request) -> SimpleNamespace:
    """Inputs and outputs of SAPO's release, and our cut of the same entropies."""
    case = {name: torch.from_numpy(x) if x.ndim else float(x) for name, x in np.load(request.param).items()}
    case["mask"] = case["mask"].bool()
    case["ids"] = entropy_topk(case["entropy"], case["mask"], case["topk_percent"] / 100)
    return SimpleNamespace(**case)


def test_there_is_something_to_compare():
    assert len(list(GOLDEN.glob("sapo_*.npz"))) == 5 and len(CHAINS) == 24 and len(TREES) == 5


def test_sapo_advantages_and_returns(sapo):
    advantages, returns = segment_gae(sapo.token_rewards, sapo.values, sapo.ids, sapo.gamma, sapo.lam, value_at="end")
    same(advantages, sapo.segment_advantages_raw)
    same(returns, sapo.returns)
    # The release leaves the whitened mean at padding; only real tokens are compared.
    same(whiten(advantages, sapo.mask).clamp(-5, 5), sapo.advantages_whitened_clamped, where=sapo.mask)


def test_sapo_cut_explains_the_recorded_advantages(sapo):
    """Where the recorded advantage changes, our segmentation has a boundary; so the cut itself is the release's."""
    recorded = sapo.segment_advantages_raw
    changes = torch.zeros_like(sapo.mask)
    changes[:, 1:] = (recorded[:, 1:] != recorded[:, :-1]) & sapo.mask[:, 1:]
    changes[:, 0] = sapo.mask[:, 0]
    assert torch.equal(changes, starts(sapo.ids))


def test_sapo_segment_log_ratio(sapo):
    same(log_ratio(sapo.logprobs, sapo.old_logprobs, sapo.mask, "segment", sapo.ids), sapo.segment_mean_log_ratio)


@pytest.mark.parametrize("level", ["segment", "token"])
def test_sapo_policy_loss(sapo, level):
    loss, stats = policy_loss(
        sapo.logprobs,
        sapo.old_logprobs,
        sapo.advantages_whitened_clamped,
        sapo.mask,
        level=level,
        segment_ids=sapo.ids,
        epsilon=sapo.cliprange_low,
        epsilon_high=sapo.cliprange_high,
        delta=sapo.clip_ratio_c,
    )
    same(loss, getattr(sapo, f"policy_loss_{level}_ratio"))
    if level == "segment":  # the clip fractions were recorded with the segment ratio
        same(stats["clip_ratio/region"], sapo.clipfrac)
        same(stats["clip_ratio/dual"], sapo.clipfrac_lower)


def test_sapo_value_loss_at_segment_ends(sapo):
    loss, stats = value_loss(sapo.new_values, sapo.values, sapo.returns, ends(sapo.ids), sapo.cliprange_value)
    same(loss, sapo.value_loss_segment_ends)
    same(stats["clip_ratio"], sapo.value_clipfrac)


def test_token_gae(sapo):
    advantages, returns = gae(sapo.token_rewards, sapo.values, sapo.mask, sapo.gamma, sapo.lam)
    same(whiten(advantages, sapo.mask), sapo.gae_advantages_whitened, where=sapo.mask)
    same(returns, sapo.gae_returns)


@pytest.mark.parametrize("case", CHAINS, ids=lambda c: f"{len(c['probs'])}-every-{c['interval']}")
def test_spo_chain(case):
    probs = torch.tensor([case["probs"]], dtype=torch.float64)
    mask = torch.ones_like(probs, dtype=torch.bool)
    ids = cutpoints(probs, mask, 0.9, case["interval"])
    first_is_boundary = probs[:, 0] < 0.9

    # The recorded boundary states are the prefixes before our segments, without the prompt unless it is one of them.
    begins = (starts(ids)[0].nonzero().flatten() - 1).tolist()
    assert case["state_after_token"] == (begins if first_is_boundary.item() else begins[1:])

    values = case["mc_values"] if first_is_boundary.item() else [float("nan"), *case["mc_values"]]
    values, reward = torch.tensor([values], dtype=torch.float64), torch.tensor([case["score"]], dtype=torch.float64)
    advantages = value_difference(values, reward, ids, first_state="release", first_is_boundary=first_is_boundary)
    same(torch.where(probability_mask(probs, mask, 0.9), advantages, 0)[0], case["token_advantages"])


@pytest.mark.parametrize("case", TREES, ids=lambda c: "-".join(map(str, c["branch"])))
@pytest.mark.parametrize("form", ["difference", "group_std"])
def test_spo_tree(case, form):
    names, parent, rewards, leaf = [], [], [], []

    def visit(node: dict, above: int) -> None:
        here = len(names)
        names.append(node["id"])
        parent.append(above)
        leaf.append(node["leaf"])
        rewards.append(node["reward"] if node["leaf"] else float("nan"))
        for child in node["children"]:
            visit(child, here)

    visit(case["tree"], -1)
    values, advantages = tree_advantages(
        torch.tensor(parent), torch.tensor(rewards, dtype=torch.float64), normalize=form == "group_std"
    )
    recorded = {name: (advantage, value, is_leaf) for name, advantage, value, is_leaf in case[f"edges_{form}"]}
    assert sorted(recorded) == sorted(names[1:])  # every node but the root is an edge
    for n, name in enumerate(names[1:], 1):
        advantage, value, is_leaf = recorded[name]
        assert advantages[n].item() == pytest.approx(advantage, abs=1e-5)
        assert values[n].item() == pytest.approx(value, abs=1e-5)
        assert leaf[n] == is_leaf
    assert advantages[0] == 0
