"""The two contrasts of SRPO on real models, against a reference that goes row by row through the model's own logits."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

from segpo_core.policy import load
from segpo_core.policy.contrasts import contrasts, corrupted, image_contrast, logprobs
from segpo_core.policy.corruptions import KINDS
from segpo_core.policy.critic import ActorCritic
from segpo_core.policy.inputs import Prompts, extend, position_ids
from segpo_core.policy.logprobs import backbone
from segpo_core.sampling.generate import InProcess
from segpo_core.sampling.sampler import token_pieces
from segpo_core.segments import PERCEPTION, REASONING, role_ids
from segpo_core.tasks.shapes import ShapesTask
from segpo_core.types import Rollouts, length_mask, pad_rows
from tests.fakes import families
from tests.sampling.test_generate import problems

TINY = Path(__file__).resolve().parents[2] / "data" / "tiny-vlm"
TEMPERATURE = 0.8
STREAM = (5, 1)
TEXTS = (  # by prompt: the third has no image
    (0, "<perception> small red circle </perception><think> 2 + 3 = 5 </think><answer> 5 </answer>"),
    (0, "<perception> blue</perception><think>so 2</think><answer>2</answer>"),
    (1, "<perception> large blue square at top left </perception> <think> there are 2 </think><answer> 2 </answer>"),
    (1, "<perception> red <think> 2 </think></perception><answer> 2 </answer>"),  # malformed
    (1, "<perception></perception><think> 3 red circles </think><answer> 3 </answer>"),  # saw nothing
    (2, "<perception> small </perception><think> 2 + 3 = 5 </think><answer> 5 </answer>"),
    (2, "2 + 3 = 5"),  # malformed
)


class Setup:
    """A model of one family with prompts and completions of all kinds."""

    def __init__(self, family: str, path):
        self.family, self.examples = family, problems(family)
        model, self.processor = load.load_model(path), load.load_processor(path)
        self.network = ActorCritic(model, load.suppressed_token_ids(model, self.processor), TEMPERATURE)
        self.prompts = Prompts.build(self.examples, self.processor, model.config)
        tokenizer = load.get_tokenizer(self.processor)
        rows = [tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for _, text in TEXTS]
        mask = length_mask(torch.tensor([len(row) for row in rows]), max(map(len, rows)))
        zeros = torch.zeros(mask.shape)
        self.rollouts = Rollouts(
            pad_rows([torch.tensor(row) for row in rows], 7), mask,
            torch.tensor([min(group, len(self.examples) - 1) for group, _ in TEXTS]), mask.any(1), zeros, zeros,
            pieces=[token_pieces(tokenizer, row) for row in rows],
        )  # fmt: skip
        self.role, self.well_formed = role_ids(self.rollouts.pieces, mask)
        self.old = logprobs(self.network, self.prompts, self.rollouts, mask)

    @property
    def scored(self) -> Rollouts:
        return replace(self.rollouts, old_logprobs=self.old)

    def measure(self, rollouts: Rollouts | None = None, **changes):
        settings = {"stream": STREAM, "batch_size": 4} | changes
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rollouts = rollouts or self.scored
            return contrasts(self.network, self.examples, self.prompts, rollouts, self.processor, **settings)


@pytest.fixture(scope="module", params=sorted(families.FAMILIES))
def setup(request, tmp_path_factory) -> Setup:
    return Setup(request.param, families.FAMILIES[request.param](tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> Setup:
    return Setup("llava", families.llava(tmp_path_factory.mktemp("llava")))


@torch.no_grad()
def alone(setup: Setup, example: dict, ids: list[int]) -> list[float]:
    """Log-probabilities of one completion, from the model's own logits, without batch or padding."""
    model = setup.network.model
    prompt = Prompts.build([example], setup.processor, model.config).batch()
    inputs = extend(prompt, torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))
    logits = model(**inputs, position_ids=position_ids(model, inputs)).logits[0].float() / TEMPERATURE
    logits[:, load.suppressed_token_ids(model, setup.processor)] = -torch.inf
    table = logits.log_softmax(-1)[-len(ids) - 1 : -1]
    return [table[t, token].item() for t, token in enumerate(ids)]


def reference(setup: Setup, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """d and c, one completion, one token after the other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spoiled = corrupted(setup.examples, kind, STREAM) or setup.examples
    d, c = torch.zeros(setup.role.shape), torch.zeros(setup.role.shape)
    for b, n in enumerate(setup.rollouts.lengths.tolist()):
        group, ids = int(setup.rollouts.group[b]), setup.rollouts.completion_ids[b, :n].tolist()
        kept = [t for t in range(n) if setup.role[b, t] != PERCEPTION]
        full, blind = alone(setup, setup.examples[group], ids), alone(setup, spoiled[group], ids)
        without = dict(zip(kept, alone(setup, setup.examples[group], [ids[t] for t in kept]), strict=True))
        for t in range(n):
            if setup.role[b, t] == PERCEPTION:
                d[b, t] = full[t] - blind[t] if spoiled[group]["images"] else torch.nan
            elif setup.role[b, t] == REASONING:
                c[b, t] = full[t] - without[t]
    return d, c


def test_contrasts_are_those_of_a_row_by_row_reference(setup):
    d, c = setup.measure()
    want_d, want_c = reference(setup, "blank")
    torch.testing.assert_close(c, want_c, atol=1e-4, rtol=1e-4)
    if setup.family == "llama":
        assert d is None
    else:
        torch.testing.assert_close(d, want_d, atol=1e-4, rtol=1e-4, equal_nan=True)
    by_rows = setup.measure(pack_prompts=False)
    torch.testing.assert_close(by_rows[1], c, atol=1e-4, rtol=1e-4)
    assert d is None or torch.allclose(by_rows[0], d, atol=1e-4, equal_nan=True)
    unscored_d, unscored_c = setup.measure(setup.rollouts)
    torch.testing.assert_close(unscored_c, c, atol=1e-4, rtol=1e-4)
    assert d is None or torch.allclose(unscored_d, d, atol=1e-4, equal_nan=True)


def test_the_image_contrast_stands_at_every_token(setup):
    """The same number as SRPO's where that is defined, and the row by row reference elsewhere."""
    settings = dict(corruption="blank", stream=STREAM, batch_size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spoiled = corrupted(setup.examples, "blank", STREAM) or [{**e, "images": []} for e in setup.examples]
        found = image_contrast(setup.network, setup.examples, setup.prompts, setup.scored, setup.processor, **settings)
    for b, n in enumerate(setup.rollouts.lengths.tolist()):
        group, ids = int(setup.rollouts.group[b]), setup.rollouts.completion_ids[b, :n].tolist()
        if spoiled[group]["images"]:
            full, blind = alone(setup, setup.examples[group], ids), alone(setup, spoiled[group], ids)
            want = torch.tensor(full) - torch.tensor(blind)
        else:
            want = torch.full((n,), torch.nan)
        torch.testing.assert_close(found[b, :n], want, atol=1e-4, rtol=1e-4, equal_nan=True)
        assert (found[b, n:] == 0).all()
    d, _ = setup.measure()
    if d is not None:
        seeing = setup.role == PERCEPTION
        torch.testing.assert_close(found[seeing], d[seeing], atol=1e-5, rtol=1e-5, equal_nan=True)


def test_where_contrasts_stand(setup):
    d, c = setup.measure()
    blocks = (setup.role == PERCEPTION).any(1, keepdim=True)
    assert torch.equal(c.abs() > 1e-3, (setup.role == REASONING) & blocks), "nothing is taken from an empty block"
    assert (c[~setup.well_formed] == 0).all()
    if d is not None:
        seeing, illustrated = setup.role == PERCEPTION, (setup.rollouts.group < 2)[:, None]
        assert torch.equal(d.isnan(), seeing & ~illustrated), "not measured is not zero"
        assert torch.equal(d.abs() > 1e-3, seeing & illustrated), "a blank image changes what is said about it"
        assert (d[~setup.well_formed] == 0).all()


@pytest.mark.parametrize("scored", [True, False])
def test_two_passes_and_no_more(setup, scored, monkeypatch):
    """Beyond scoring, which is skipped where the rollouts are scored; text needs but one."""
    calls, network = [], backbone(setup.network.model)
    forward = network.forward
    monkeypatch.setattr(network, "forward", lambda **kw: (calls.append(kw["input_ids"].shape), forward(**kw))[1])
    setup.measure(setup.scored if scored else setup.rollouts, batch_size=len(TEXTS))
    assert len(calls) == (1 if setup.family == "llama" else 2) + (not scored)
    calls.clear()
    setup.measure(batch_size=2, pack_prompts=False)
    assert max(shape[0] for shape in calls) == 2


def test_a_pass_ends_with_the_last_token_it_is_asked_for(llava, monkeypatch):
    """And leaves out completions without such tokens."""
    calls, forward = [], llava.network.forward
    monkeypatch.setattr(llava.network, "forward", lambda p, ids, mask: (calls.append(mask), forward(p, ids, mask))[1])
    llava.measure(batch_size=len(TEXTS), pack_prompts=False)
    blind, without = calls
    last = {role: (llava.role == role).int() * torch.arange(llava.role.shape[1]) for role in (PERCEPTION, REASONING)}
    rows = (llava.role == PERCEPTION).any(1)
    assert blind.sum(1).tolist() == (last[PERCEPTION].amax(1) + 1)[rows & (llava.rollouts.group < 2)].tolist()
    cut = (llava.role == PERCEPTION).sum(1)
    assert without.sum(1).tolist() == (last[REASONING].amax(1) + 1 - cut)[rows].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_every_corruption_is_seen_and_repeats(llava, kind):
    d, c = llava.measure(corruption=kind)
    want, _ = reference(llava, kind)
    torch.testing.assert_close(d, want, atol=1e-4, rtol=1e-4, equal_nan=True)
    at = (llava.role == PERCEPTION) & ~d.isnan()
    assert (d[at].abs() > 1e-4).all()
    again = llava.measure(corruption=kind)
    assert torch.equal(d.nan_to_num(), again[0].nan_to_num()) and torch.equal(c, again[1])


def test_corruption_depends_on_stream_and_prompt_alone():
    examples = problems("llava")
    for kind in KINDS:
        pictures = [e["images"] for e in corrupted(examples, kind, (3, 4), first=8)]
        for own, new in zip(examples, pictures, strict=True):
            assert [image.size for image in new] == [image.size for image in own["images"]]
            assert all(np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(own["images"], new, strict=True))
        if kind != "other":  # which needs its neighbours
            (lone,) = corrupted(examples[1:2], kind, (3, 4), first=9)
            assert [image.tobytes() for image in lone["images"]] == [image.tobytes() for image in pictures[1]]
        if kind in ("noise", "mask", "shuffle"):
            changed = corrupted(examples, kind, (3, 5), first=8)
            assert changed[0]["images"][0].tobytes() != pictures[0][0].tobytes()


def test_another_prompts_image_is_another_prompts():
    examples = problems("llava")
    (a,), (b, c) = (e["images"] for e in examples[:2])
    spoiled = corrupted(examples, "other", (0,))
    assert spoiled[0]["images"][0].tobytes() in [image.resize(a.size, 3).tobytes() for image in (b, c)]
    for new, old in zip(spoiled[1]["images"], (b, c), strict=True):
        assert new.tobytes() == a.resize(old.size, 3).tobytes()
    with pytest.warns(UserWarning, match="no prompt of this batch has an image to corrupt"):
        assert corrupted([examples[0], examples[2]], "other", (0,)) is None
    with pytest.raises(ValueError, match="another prompt"):
        corrupted(examples[:1], "other", (0,))
    with pytest.raises(ValueError, match="unknown image corruption"):
        corrupted(examples, "sepia", (0,))


def test_text_only_batches_are_noticed():
    with pytest.warns(UserWarning, match="reasoning contrast alone"):
        assert corrupted(problems("llama"), "blank", (0,)) is None


def test_order_batch_size_and_padding_change_nothing(setup):
    d, c = (x if x is None else x.nan_to_num(9) for x in setup.measure())
    scored, order = setup.scored, torch.tensor([3, 6, 0, 5, 2, 1, 4])
    columns = ("completion_ids", "mask", "sampled_logprobs", "old_logprobs")
    grown = replace(scored, **{name: pad(getattr(scored, name), (0, 3)) for name in columns})
    for rollouts, rows, size in ((scored.select(order), order, 4), (scored, slice(None), 1), (grown, slice(None), 7)):
        other_d, other_c = setup.measure(rollouts, batch_size=size)
        width = c.shape[1]
        torch.testing.assert_close(other_c[:, :width], c[rows], atol=1e-4, rtol=1e-4)
        assert (other_c[:, width:] == 0).all()
        if d is not None:
            torch.testing.assert_close(other_d.nan_to_num(9)[:, :width], d[rows], atol=1e-4, rtol=1e-4)


def test_no_gradient_and_nothing_changes(llava):
    before = llava.scored
    ids, old = before.completion_ids.clone(), before.old_logprobs.clone()
    d, c = llava.measure(before)
    assert not d.requires_grad and not c.requires_grad and before.perception_contrast is None
    assert torch.equal(before.completion_ids, ids) and torch.equal(before.old_logprobs, old)


def test_tokens_that_hold_a_tag_and_text_go_with_the_text(llava):
    """Ids are cut whole: what is left of the row are the tokens that are not of the perception's role."""
    pieces = ["<perception> a", "b", "</perc", "eption><think>c", "d</think>", "<answer>1</answer>", ""]
    ids = torch.arange(100, 100 + len(pieces))[None]
    zeros = torch.zeros(ids.shape)
    rollouts = Rollouts(ids, ids > 0, torch.tensor([0]), torch.tensor([True]), zeros, zeros, pieces=[pieces])
    _, c = llava.measure(rollouts)
    own, without = (alone(llava, llava.examples[0], row) for row in (ids[0].tolist(), ids[0, 2:].tolist()))
    want = [0, 0, 0, own[3] - without[1], own[4] - without[2], 0, 0]
    torch.testing.assert_close(c, torch.tensor([want]), atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def tiny():
    """(network, processor, examples, prompts, scored rollouts) of the embedded policy on held-out problems."""
    if not (TINY / "config.json").exists():
        pytest.skip("data/tiny-vlm is not here")
    model, processor = load.load_model(TINY), load.load_processor(TINY)
    suppressed, eos = load.suppressed_token_ids(model, processor), load.eos_token_ids(model, processor)
    network, task = ActorCritic(model, suppressed), ShapesTask()
    examples = [task.eval(i) for i in range(16)]
    prompts = Prompts.build(examples, processor, model.config)
    rollouts = InProcess(model, load.get_tokenizer(processor), eos, suppressed).groups(prompts, 2, (0, 0))
    rollouts.old_logprobs = logprobs(network, prompts, rollouts, rollouts.mask)
    return network, processor, examples, prompts, rollouts


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_embedded_policy_sees_hangs_on_the_image_and_what_it_reckons_does_not(tiny, kind):
    network, processor, examples, _, rollouts = tiny
    role, well_formed = role_ids(rollouts.pieces, rollouts.mask)
    assert well_formed.float().mean() > 0.8
    blind = Prompts.build(corrupted(examples, kind, STREAM), processor, network.model.config)
    d = (rollouts.old_logprobs - logprobs(network, blind, rollouts, rollouts.mask)).abs()
    assert d[role == PERCEPTION].mean() > d[role == REASONING].mean()
