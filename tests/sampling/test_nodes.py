"""Nodes of trees and chains: what the record says about a state is what was sampled from it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segpo_core.algos import GRPO, SPOChain, SPOTree, VinePPO
from segpo_core.record import store
from segpo_core.record.store import NODE_SCHEMA, Recorder
from segpo_core.sampling.nodes import node_rows
from segpo_core.types import Rollouts, length_mask, pad_rows
from segviz.runs.run import Run
from tests.fakes import families
from tests.sampling.test_packing import forests, rollouts_of_tree
from tests.training.test_loop import trained

LETTERS = "ab\n."  # the last one ends a text


def table(method, rollouts: Rollouts) -> tuple[dict[tuple[int, int], dict], list[list[int]]]:
    """((group, node) -> row, node of each token, padding left out)."""
    credit = method.credit(rollouts)
    rows, ids = node_rows(method.nodes(rollouts), rollouts, credit, step=3, method=method.name, first_group=5)
    assert {(row["step"], row["method"]) for row in rows} == {(3, method.name)}
    assert all(set(row) == set(NODE_SCHEMA.names) for row in rows)
    found = {(row["group"], row["node"]): row for row in rows}
    assert len(found) == len(rows)
    return found, [row[:n] for row, n in zip(ids.tolist(), rollouts.lengths.tolist(), strict=True)]


def samples_of(group: list[int]) -> list[int]:
    return [sum(g == h for h in group[:b]) for b, g in enumerate(group)]


def check(method, rollouts: Rollouts) -> None:
    """What holds for trees and chains alike."""
    found, ids = table(method, rollouts)
    credit = method.credit(rollouts)
    groups, tokens = [g + 5 for g in rollouts.group.tolist()], rollouts.completion_ids.tolist()
    rows_of = {name: b for b, name in enumerate(zip(groups, samples_of(groups), strict=True))}
    held: dict[tuple, set] = {}
    for b, (g, nodes) in enumerate(zip(groups, ids, strict=True)):
        path = list(dict.fromkeys(nodes))
        assert found[g, path[0]]["parent"] == 0 and found[g, 0]["parent"] == -1
        assert [found[g, n]["parent"] for n in path[1:]] == path[:-1]
        joined, covered = [], []
        for n in path:
            node = found[g, n]
            joined += tokens[rows_of[g, node["sample"]]][node["start"] : node["end"]]
            covered += [n] * (node["end"] - node["start"])
        assert joined == tokens[b][: len(nodes)] and covered == nodes, "each token is in one node, a path is the text"
        for t, n in enumerate(nodes):
            held.setdefault((g, n), set()).add(bool(credit.loss_mask[b, t]))
            mine, given = found[g, n]["advantage"], float(credit.advantages[b, t])
            if math.isnan(given):  # of a node that judged rows share, a row without verdict is assigned nothing; nor
                # is what stands before the first token in the loss, whose prompt's value another row may have
                first = n == path[0] and rollouts.mc_values is not None and rollouts.mc_values[b, 0].isnan()
                assert mine is None or rollouts.rewards[b].isnan() or first
            else:
                assert mine == pytest.approx(given, abs=1e-6)
    roots = {(g, 0) for g in groups}
    assert set(found) == set(held) | roots
    for name, node in found.items():
        assert node["trained"] == (True in held.get(name, set()))
        if name in roots:
            assert (node["sample"], node["start"], node["end"], node["advantage"]) == (0, 0, 0, None)
            continue
        before = found[name[0], node["parent"]]
        assert before["end"] == node["start"]
        holders = [b for b, nodes in enumerate(ids) if groups[b] == name[0] and name[1] in nodes]
        assert node["sample"] == samples_of(groups)[holders[0]]
        if None in (node["value"], before["value"]):
            assert node["advantage"] is None
        else:
            assert node["advantage"] == pytest.approx(node["value"] - before["value"], abs=1e-6)


@given(forests(), st.integers(0, 2**32), st.booleans())
def test_nodes_of_trees(forest, seed, verdicts):
    paths, group = forest
    generator = torch.Generator().manual_seed(seed)
    rollouts = rollouts_of_tree(paths, group)
    # A node's tokens are its own: the same in every row that holds it.
    rollouts.completion_ids = torch.where(rollouts.mask, rollouts.node_ids, 0)
    rollouts.rewards = torch.randint(0, 3, (len(paths),), generator=generator) / 2
    if not verdicts:
        rollouts.rewards[torch.rand(len(paths), generator=generator) < 0.3] = torch.nan
    rollouts.sampled_logprobs = (0.5 + torch.rand(rollouts.mask.shape, generator=generator) / 2).log()
    method = SPOTree()
    check(method, rollouts)
    found, ids = table(method, rollouts)
    children: dict[tuple[int, int], list[dict]] = {}
    for node in found.values():
        children.setdefault((node["group"], node["parent"]), []).append(node)
    leaf = {(g + 5, nodes[-1]): r for g, nodes, r in zip(group, ids, rollouts.rewards.tolist(), strict=True)}
    for name, node in found.items():
        below = children.get(name, [])
        values = [child["value"] for child in below if child["value"] is not None]
        if not below:
            known = not math.isnan(leaf[name])
            assert node["value"] == (leaf[name] if known else None) and node["stderr"] is None
            assert node["samples"] == known
            continue
        assert node["samples"] == sum(child["samples"] for child in below)
        assert (node["value"] is None) == (not values) == (node["samples"] == 0)
        if values:
            assert node["value"] == pytest.approx(sum(values) / len(values), abs=1e-6)
        if len(values) > 1:
            spread = torch.tensor(values, dtype=torch.float64).std() / len(values) ** 0.5
            assert node["stderr"] == pytest.approx(float(spread), abs=1e-6)
        else:
            assert node["stderr"] is None


texts = st.lists(st.text(LETTERS[:3], max_size=6).map(lambda text: text + "."), min_size=1, max_size=5)


def chain_rollouts(method, groups: list[list[str]], unknown: bool) -> Rollouts:
    """Completions made of letters, which say how probable they are; the value of a state is a function of its text."""
    rows = [(g, text) for g, some in enumerate(groups) for text in some]
    ids = pad_rows([torch.tensor([LETTERS.index(letter) for letter in text]) for _, text in rows])
    mask = length_mask(torch.tensor([len(text) for _, text in rows]), ids.shape[1])
    rewards = [float(len(text) % 2) for _, text in rows]
    if unknown:
        rewards = [math.nan if text.endswith("b.") else r for r, (_, text) in zip(rewards, rows, strict=True)]
    rollouts = Rollouts(
        completion_ids=ids, mask=mask, group=torch.tensor([g for g, _ in rows]), finished=mask[:, 0],
        sampled_logprobs=torch.tensor([0.5, 0.95, 0.99, 0.99])[ids].log(), entropy=torch.zeros(ids.shape),
        rewards=torch.tensor(rewards), texts=[text for _, text in rows], pieces=[list(text) for _, text in rows],
    )  # fmt: skip
    wanted = method.boundaries(rollouts)
    rollouts.mc_values, rollouts.mc_stderr = (torch.full(mask.shape, math.nan) for _ in range(2))
    for b, t in wanted.nonzero().tolist():
        if not (unknown and rows[b][1][:t].endswith("ba")):
            rollouts.mc_values[b, t] = value_of(*rows[b], t)
            rollouts.mc_stderr[b, t] = rollouts.mc_values[b, t] / 10
    return rollouts


def value_of(group: int, text: str, t: int) -> float:
    return (len(text[:t]) * 7 + text[:t].count("a") * 3 + group) % 11 / 11


@pytest.mark.parametrize("method", [VinePPO(), SPOChain(interval=1), SPOChain(interval=2)])
@given(st.lists(texts, min_size=1, max_size=2), st.booleans())
def test_nodes_of_chains(method, groups, unknown):
    rollouts = chain_rollouts(method, groups, unknown)
    check(method, rollouts)
    found, ids = table(method, rollouts)
    group = rollouts.group.tolist()
    states: dict[tuple[int, int], set[str]] = {}
    for b, (g, nodes) in enumerate(zip(group, ids, strict=True)):
        text, lengths = rollouts.texts[b], [found[g + 5, n]["end"] for n in dict.fromkeys(nodes)]
        asked = method.boundaries(rollouts)[b].nonzero()[:, 0].tolist()
        # the prompt's value is not sampled where the first token is in no loss
        assert lengths[:-1] == [t for t in asked if t > 0], "a node ends where the next value was sampled"
        for n, end in zip(dict.fromkeys(nodes), lengths, strict=True):
            node, final = found[g + 5, n], end == len(text)
            states.setdefault((g, n), set()).add(text[:end])
            value = float(rollouts.rewards[b]) if final else float(rollouts.mc_values[b, end])
            assert node["value"] is None if math.isnan(value) else node["value"] == value
            assert node["samples"] == (0 if math.isnan(value) else 1 if final else method.num_continuations)
            error = math.nan if final else float(rollouts.mc_stderr[b, end])
            assert node["stderr"] is None if math.isnan(error) else node["stderr"] == error
        root, value = found[g + 5, 0], float(rollouts.mc_values[b, 0])
        if not math.isnan(value):
            assert root["value"] == value and root["samples"] == method.num_continuations
    assert all(len(texts) == 1 for texts in states.values()), "a node is one state"
    everyone = [(g, *texts) for (g, _), texts in states.items()]
    assert len(everyone) == len(set(everyone)), "a state is one node"


def test_equal_texts_of_different_reward_are_two_nodes():
    rollouts = chain_rollouts(VinePPO(), [["a\nb", "a\nb", "a\nb"]], unknown=False)
    rollouts.rewards = torch.tensor([1.0, 0.0, 1.0])
    found, ids = table(VinePPO(), rollouts)
    assert ids == [[1, 1, 2], [1, 1, 3], [1, 1, 2]] and found[5, 3]["value"] == 0


def test_a_prompt_whose_value_was_not_sampled_has_none():
    """The release's first state: no value, and what follows has no advantage by difference."""
    method = SPOChain(first_state="release", interval=1)
    rollouts = chain_rollouts(method, [["ba"], ["bba", "aba"]], unknown=False)
    found, ids = table(method, rollouts)
    assert (found[5, 0]["value"], found[5, 0]["samples"], found[5, ids[0][0]]["advantage"]) == (None, 0, None)
    assert found[6, 0]["value"] == pytest.approx(value_of(1, "aba", 0)) and found[6, 0]["samples"] == 9
    assert method.credit(rollouts).advantages[0, 0] == 0


def test_groups_have_no_nodes():
    rollouts = chain_rollouts(VinePPO(), [["ab", "a"]], unknown=False)
    assert GRPO().nodes(rollouts) is None


@pytest.mark.parametrize("method", [VinePPO(num_continuations=2), SPOChain(num_continuations=2),
                                    SPOTree(branch=(2, 2), segment_tokens=3)], ids=lambda m: m.name)  # fmt: skip
def test_a_run_records_its_nodes(method, tmp_path_factory, tmp_path):
    path = families.llama(tmp_path_factory.mktemp("llama"))
    trained(path, tmp_path / "run", method, max_steps=2)
    run = Run(tmp_path / "run")
    nodes, rows = run.nodes(2), store.read_rollouts(tmp_path / "run", [2]).to_pylist()
    assert not run.problems and store.read_nodes(tmp_path / "run")["step"].unique().to_pylist() == [1, 2]
    assert {node["method"] for node in nodes} == {method.name}
    assert [(n["group"], n["node"]) for n in nodes] == sorted((n["group"], n["node"]) for n in nodes)
    by_name = {(n["group"], n["node"]): n for n in nodes}
    assert {node["group"] for node in nodes} == {row["group"] for row in rows} and run.nodes(2, 99) == []
    for row in rows:
        assert len(row["node_ids"]) == len(row["token_ids"])
        for t, n in enumerate(row["node_ids"]):
            node = by_name[row["group"], n]
            assert node["start"] <= t < node["end"]
            assert node["advantage"] == pytest.approx(row["advantages"][t], abs=1e-6)
            assert node["trained"] or not row["loss_mask"][t]
    store.forget_after(tmp_path / "run", 1)
    assert run.nodes(2) == [] and run.nodes(1)
    next((tmp_path / "run" / "nodes").iterdir()).write_bytes(b"PAR1 not a table")
    assert run.nodes(1) == [] and "Nodes of step 1" in " ".join(run.problems)


def test_nodes_that_cannot_be_written_are_counted(tmp_path, monkeypatch, caplog):
    recorder = Recorder(tmp_path / "run")

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_atomic", full)
    recorder.nodes(1, [])
    recorder.rollouts(1, [], {})
    assert recorder.failures == 2 and caplog.text.count("not recorded") == 1
    assert store.read_nodes(tmp_path / "run").num_rows == 0
