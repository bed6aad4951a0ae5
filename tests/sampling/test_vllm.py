"""Sampling with a vLLM server: the client over real HTTP, against a server that answers as vLLM does, real weights."""

import json

import pytest
import torch

from segpo_core.policy import load
from segpo_core.policy.inputs import Prompts
from segpo_core.sampling.branches import grow_tree
from segpo_core.sampling.chains import continuations, unique_states
from segpo_core.sampling.generate import InProcess
from segpo_core.sampling.server import EngineError, Refused, Server
from segpo_core.sampling.truncation import Truncation
from segpo_core.sampling.vllm import VLLM, folded
from tests.fakes import families
from tests.fakes.engine import Engine
from tests.fakes.toy import ToyTask


@pytest.fixture(scope="module", params=["llama", "llava"])
def both(request, tmp_path_factory):
    """(engine, sampler in process, the same by way of the engine, prompts)."""
    folder = families.FAMILIES[request.param](tmp_path_factory.mktemp(request.param))
    model, processor = load.load_model(folder), load.load_processor(folder)
    tokenizer = load.get_tokenizer(processor)
    common = (load.eos_token_ids(model, processor), load.suppressed_token_ids(model, processor), 0.8, 12)
    task = ToyTask(images=request.param == "llava")
    prompts = Prompts.build([task.train(i) for i in range(5)], processor, model.config)
    with Engine(folder, image_tokens=4) as engine:
        ours = InProcess(model, tokenizer, *common)
        server = Server(engine.url, waits=(0, 0))
        theirs = VLLM([server], 0, tokenizer, model.config, *common, torch.device("cpu"), None, "run", False)
        yield engine, ours, theirs, prompts


def scored(sampler: InProcess, prompts: Prompts, rollouts) -> torch.Tensor:
    """Slow and obvious: log-probabilities of the completions, each alone through the model."""
    out = torch.zeros_like(rollouts.sampled_logprobs)
    for b, n in enumerate(rollouts.lengths.tolist()):
        batch = prompts.batch([int(rollouts.group[b])])
        batch.pop("attention_mask")
        ids = rollouts.completion_ids[b : b + 1, :n]
        length = batch["input_ids"].shape[1]
        batch["input_ids"] = torch.cat([batch["input_ids"], ids], dim=1)
        with torch.no_grad():
            logits = sampler.model(**batch).logits[0, length - 1 : -1].float()
        logits[:, sampler.head.suppressed] = torch.finfo(torch.float32).min / 4
        logprobs = (logits / sampler.temperature).log_softmax(-1)
        out[b, :n] = logprobs.gather(1, ids[0][:, None])[:, 0]
    return out


def test_greedy_tokens_are_the_same(both):
    _, ours, theirs, prompts = both
    mine, other = (s.groups(prompts, 1, (0, 0), temperature=0) for s in (ours, theirs))
    assert torch.equal(mine.completion_ids, other.completion_ids) and mine.texts == other.texts
    assert torch.equal(mine.finished, other.finished)


def test_groups_are_drawn_from_the_policy_and_by_name(both):
    _, ours, theirs, prompts = both
    first, again = (theirs.groups(prompts, 3, (7, 1)) for _ in range(2))
    assert torch.equal(first.completion_ids, again.completion_ids)
    assert not torch.equal(first.completion_ids[0], first.completion_ids[1]), "each has a stream of its own"
    rows = theirs.groups(prompts.select([2]), 3, (7, 1), first=2)
    for i in range(3):
        assert rows.completion_ids[i][rows.mask[i]].tolist() == first.completion_ids[6 + i][first.mask[6 + i]].tolist()
    torch.testing.assert_close(first.sampled_logprobs, scored(ours, prompts, first), atol=1e-4, rtol=0)
    assert first.entropy[first.mask].isnan().all(), "the engine says nothing of it"
    assert not set(ours.head.suppressed.tolist()) & set(first.completion_ids[first.mask].tolist())
    last = first.completion_ids.gather(1, first.lengths[:, None] - 1)[:, 0]
    assert torch.equal(torch.isin(last, torch.tensor(theirs.eos)), first.finished)


def test_trees_and_chains_grow_over_http(both):
    _, ours, theirs, prompts = both
    tree = grow_tree(theirs, prompts, (2, 2), 4, (3, 1))
    torch.testing.assert_close(tree.sampled_logprobs, scored(ours, prompts, tree), atol=1e-4, rtol=0)
    mine = grow_tree(ours, prompts, (2, 2), 4, (3, 1))
    assert tree.tree.start.max() == mine.tree.start.max() == 4
    for b in range(len(tree)):  # rows that share a node share its tokens
        for c in range(b):
            alike = (tree.node_ids[b] == tree.node_ids[c]) & (tree.node_ids[b] >= 0)
            assert torch.equal(tree.completion_ids[b][alike], tree.completion_ids[c][alike])
    wanted = torch.zeros_like(tree.mask)
    wanted[:, 0] = True
    wanted[0, 2] = tree.mask[0, 2]
    rows, lengths, _ = unique_states(tree, wanted)
    got = [draw for _, draw in continuations(theirs, prompts, tree, rows, lengths, 2, (3, 1))]
    assert sum(len(draw.ids) for draw in got) == 2 * len(rows)
    assert all((draw.lengths <= 12).all() for draw in got)


def test_a_first_token_can_be_forbidden(both):
    _, ours, theirs, prompts = both
    rollouts = theirs.groups(prompts, 1, (0, 0), temperature=0)
    rows, lengths = torch.arange(len(prompts)), torch.zeros(len(prompts), dtype=torch.long)
    likely = rollouts.completion_ids[:, 0]
    for sampler in (ours, theirs):
        draws = continuations(sampler, prompts, rollouts, rows, lengths, 6, (1, 2), without=(rows, likely))
        for prefix, draw in draws:
            assert not (draw.ids[:, 0] == likely[prefix]).any()
            assert (draw.lengths <= 12).all() and (draw.finished | (draw.lengths == 12)).all()


def test_a_cut_goes_to_the_server_and_forbids_no_first_token(both):
    """What is drawn lies within the cut, and greedy is as it was; of what is left, a server leaves nothing more out."""
    _, ours, theirs, prompts = both
    greedy = theirs.groups(prompts, 1, (0, 0), temperature=0).completion_ids
    theirs.truncation = Truncation(top_p=0.5, top_k=4, min_p=0.01)
    try:
        rollouts = theirs.groups(prompts, 3, (7, 1))
        whole = scored(ours, prompts, rollouts)
        assert (rollouts.sampled_logprobs[rollouts.mask] > whole[rollouts.mask]).all()
        assert rollouts.sampled_logprobs[rollouts.mask].exp().min() > 0.1, "of at most four, none is rare"
        assert torch.equal(theirs.groups(prompts, 1, (0, 0), temperature=0).completion_ids, greedy)
        rows, lengths = torch.arange(len(prompts)), torch.zeros(len(prompts), dtype=torch.long)
        with pytest.raises(ValueError, match="cannot leave out tokens of what top_p 0.5, top_k 4, min_p 0.01 leaves"):
            list(continuations(theirs, prompts, rollouts, rows, lengths, 1, (1, 2), without=(rows, greedy[:, 0])))
    finally:
        theirs.truncation = Truncation()


def test_failures_are_tried_again_and_then_told(both):
    engine, _, theirs, prompts = both
    one = prompts.select([2])
    wanted = theirs.groups(one, 1, (5, 5)).completion_ids
    engine.fail[:] = [500, "drop"]
    assert torch.equal(theirs.groups(one, 1, (5, 5)).completion_ids, wanted), "the seed is the same when asked again"
    engine.fail[:] = [503] * 3
    with pytest.raises(EngineError, match=rf"{engine.url} answers 503 to .*: out of luck, 3 times"):
        theirs.groups(one, 1, (5, 5))
    assert not engine.fail
    engine.fail[:] = [400]
    before = engine.asked["/inference/v1/generate"]
    with pytest.raises(Refused, match="out of luck"):
        theirs.groups(one, 1, (5, 5))
    assert engine.asked["/inference/v1/generate"] == before + 1, "what is refused is not asked again"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda r: r["choices"][0]["token_ids"].pop(), "broke off a completion"),
        (lambda r: r["choices"][0].update(token_ids=[], logprobs={"content": []}), "broke off a completion"),
        (lambda r: r["choices"].clear(), "answers no tokens"),
        (lambda r: r["choices"][0].update(logprobs=None), "answers no tokens"),
        (lambda r: r.pop("usage"), "answers no tokens"),
    ],
)
def test_a_torn_answer_is_no_completion(both, change, why):
    engine, _, theirs, prompts = both
    how = {"max_tokens": 5, "temperature": 1.0, "seed": 1, "stop_token_ids": theirs.eos, "logit_bias": {}}
    _, whole = engine.generate({"model": engine.base, "token_ids": [3, 4], "sampling_params": how})
    assert theirs._read(json.loads(json.dumps(whole)), 5).ids == whole["choices"][0]["token_ids"]
    change(whole)
    with pytest.raises(EngineError, match=why):
        theirs._read(whole, 5)


def test_nobody_there():
    with pytest.raises(EngineError, match="does not answer /v1/models"):
        Server("http://127.0.0.1:9", waits=()).get("/v1/models")
    assert not Server("http://127.0.0.1:9").answers()
    with pytest.raises(ValueError, match="vllm_server_url 'localhost:8000' is no address"):
        Server("localhost:8000")


def test_image_tokens_are_folded_to_one_an_image():
    assert folded([1, 9, 9, 9, 2, 9, 9, 3], 9, 2) == [1, 9, 2, 9, 3]
    assert folded([1, 2, 2], 9, 0) == [1, 2, 2]
    assert folded([9, 9, 9, 9, 1], 9, 2) == [9, 9, 1], "side by side"
    with pytest.raises(ValueError, match="1 runs of image tokens for 2 images"):
        folded([9, 9, 9], 9, 2)


@pytest.mark.parametrize("both", ["llava"], indirect=True)
def test_images_that_the_server_reads_otherwise_are_refused(both):
    engine, _, theirs, prompts = both
    engine.misread = 1
    try:
        with pytest.raises(EngineError, match="reads a prompt with images as other tokens"):
            theirs.groups(prompts.select([0]), 1, (0, 0))
    finally:
        engine.misread = 0
