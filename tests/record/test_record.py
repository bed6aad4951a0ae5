"""The run directory: whole files only, a checked schema, and recording that never stops a run."""

import io
import json
import logging

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import segviz as sv
from segpo_core.afterwards.trained import recorded_example
from segpo_core.algos import GRPO, SAPO
from segpo_core.record import store
from segpo_core.record.rows import rollout_rows, rollouts_from_rows, token_span
from segpo_core.record.store import Recorder, SchemaError
from segpo_core.tasks.files import _open
from segpo_core.types import Rollouts, pad_rows

PIECES = [["<per", "ception>", " a", "\N{GRINNING FACE}", "", " b"], ["x", "</script>${1+1}{{x}}", "\ud800", "\u202e!"]]


def rollouts() -> Rollouts:
    lengths = torch.tensor([6, 4])
    mask = torch.arange(6)[None, :] < lengths[:, None]
    numbers = torch.linspace(0.1, 1.2, 12).view(2, 6)
    return Rollouts(
        completion_ids=torch.arange(12).view(2, 6), mask=mask, group=torch.tensor([0, 0]),
        finished=torch.tensor([True, False]), sampled_logprobs=-numbers, entropy=numbers.clone(),
        old_logprobs=-numbers, values=numbers / 2, rewards=torch.tensor([1.0, 0.0]),
        texts=["".join(row) for row in PIECES], pieces=PIECES, reward_parts={"answer_reward": [1.0, None]},
        truth=[None, {"answer_right": False, "perception_right": True, "reasoning_right": False, "format_right": True,
                      "first_error": {"start": 1, "end": 5, "kind": "reasoning", "why": "a wrong sum"}}],
    )  # fmt: skip


EXAMPLES = [
    {
        "prompt": [{"role": "user", "content": "?"}],
        "images": [Image.new("RGB", (3, 3), "red")],
        "answer": "3",
        "id": "x/1",
        "scene": {"n": 2},
    }
]


def rows(algo=None, **kwargs) -> list[dict]:
    r = rollouts()
    digests = [[store.image_digest(image) for image in example["images"]] for example in EXAMPLES]
    algo = algo or SAPO()
    return rollout_rows(r, algo.credit(r), EXAMPLES, digests, step=3, method=algo.name, **kwargs)


def test_rows_go_through_the_file_and_back(tmp_path):
    recorder = Recorder(tmp_path / "run")
    recorder.start({"seed": 1}, method="sapo")
    written = rows()
    recorder.rollouts(3, written, {written[0]["images"][0]: EXAMPLES[0]["images"][0]})
    assert recorder.failures == 0
    read = store.read_rollouts(tmp_path / "run").to_pylist()
    assert [row["text"] for row in read] == ["<perception> a\N{GRINNING FACE} b", "x</script>${1+1}{{x}}?\u202e!"]
    assert read[0]["answer_right"] is None and read[1]["answer_right"] is False
    assert (read[1]["error_start"], read[1]["error_end"], read[1]["error_kind"]) == (1, 2, "reasoning")
    assert json.loads(read[0]["columns"]) == {"scene": {"n": 2}}
    assert read[0]["segment_start"][0] == 0 and read[0]["segment_end"][-1] == 6
    original, again = rollouts(), rollouts_from_rows(read)
    for name in ("completion_ids", "values", "entropy", "old_logprobs"):
        a, b = getattr(original, name), getattr(again, name)
        torch.testing.assert_close(torch.where(original.mask, a, 0), torch.where(again.mask, b, 0))
    credit, later = SAPO().credit(original), SAPO().credit(again)
    torch.testing.assert_close(credit.advantages, later.advantages)
    assert torch.equal(credit.segment_ids, later.segment_ids)
    assert GRPO().credit(again).advantages[0, 0] > 0, "another method's credit for the same record"
    image = tmp_path / "run" / "images" / f"{read[0]['images'][0]}.png"
    assert Image.open(image).size == (3, 3)


def test_unassigned_credit_is_null_not_zero():
    r = rollouts()
    credit = GRPO().credit(r)
    advantages = credit.advantages.clone()
    advantages[0, 1] = float("nan")
    from dataclasses import replace

    row = rollout_rows(r, replace(credit, advantages=advantages), EXAMPLES, [[]], step=1, method="grpo")[0]
    assert row["advantages"][1] is None and row["advantages"][0] is not None and row["weights"] is None


def test_no_verdict_is_null_and_comes_back_as_none_of_the_numbers():
    r = rollouts()
    r.rewards[1] = torch.nan
    written = rollout_rows(r, GRPO().credit(r), EXAMPLES, [[]], step=1, method="grpo")
    assert [row["reward"] for row in written] == [1.0, None]
    assert written[1]["advantages"] == [None] * 4 and written[1]["loss_mask"] == [False] * 4
    again = rollouts_from_rows(written)
    assert again.rewards[0] == 1 and again.rewards[1].isnan()
    assert rollouts_from_rows([written[1]]).rewards is None, "without any, rewards were not measured"


def test_nodes_come_back_where_they_are_those_of_a_tree():
    """Those of chains follow from their method's settings: other methods must not take them for sampled trees."""
    r = rollouts()
    nodes = torch.where(r.mask, 1, -1)
    tree = rollout_rows(r, GRPO().credit(r), EXAMPLES, [[]], step=1, method="spo_tree", node_ids=nodes)
    assert rollouts_from_rows(tree).node_ids.equal(nodes)
    r.mc_values = torch.where(r.mask, 0.5, torch.nan)
    chain = rollout_rows(r, GRPO().credit(r), EXAMPLES, [[]], step=1, method="vineppo", node_ids=nodes)
    assert chain[0]["node_ids"] == [1] * 6 and rollouts_from_rows(chain).node_ids is None


@pytest.mark.parametrize(
    ("start", "end", "span"),
    [(0, 1, (0, 1)), (4, 6, (1, 2)), (12, 14, (2, 3)), (14, 15, (3, 4)), (99, 120, (5, 6)), (4, 4, (1, 2))],
)
def test_token_span(start, end, span):
    assert token_span(PIECES[0], start, end) == span


def test_a_failed_record_is_counted_and_told_once(tmp_path, monkeypatch, caplog):
    recorder = Recorder(tmp_path / "run")

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_atomic", full)
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            recorder.rollouts(step, rows(), {})
    assert recorder.failures == 3 and caplog.text.count("not recorded") == 1
    assert not list((tmp_path / "run" / "rollouts").iterdir())


def test_a_file_that_could_not_be_finished_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    store.write_atomic(path, b"old")
    monkeypatch.setattr(store.os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        store.write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.parquet"]


def test_schema_errors_say_what_is_wrong(tmp_path):
    with pytest.raises(SchemaError, match="has no run.json"):
        store.read_manifest(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(SchemaError, match="cannot be read"):
        store.read_manifest(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(SchemaError, match="schema version 99"):
        store.read_manifest(tmp_path)


def test_readers_take_an_empty_run_and_choose_steps(tmp_path):
    recorder = Recorder(tmp_path / "run")
    assert store.read_rollouts(tmp_path / "run").num_rows == store.read_metrics(tmp_path / "run").num_rows == 0
    for step in (1, 2, 3):
        recorder.rollouts(step, [row | {"step": step} for row in rows()], {})
        recorder.metrics(step, {"reward": step / 2})
    assert store.rollout_steps(tmp_path / "run") == [1, 2, 3]
    table = store.read_rollouts(tmp_path / "run", steps=[2], columns=["step", "text"])
    assert table.column_names == ["step", "text"] and set(table["step"].to_pylist()) == {2}
    store.forget_after(tmp_path / "run", 1)
    assert store.rollout_steps(tmp_path / "run") == [1]
    assert store.read_metrics(tmp_path / "run").num_rows == 1


def test_an_older_file_of_the_same_version_reads_with_nulls(tmp_path):
    recorder = Recorder(tmp_path / "run")
    recorder.rollouts(1, rows(), {})
    path = next((tmp_path / "run" / "rollouts").iterdir())
    pq.write_table(pq.read_table(path).drop_columns(["ratio"]), path)
    assert store.read_rollouts(tmp_path / "run")["ratio"].to_pylist() == [None, None]


def test_reading_nothing_back_is_an_error():
    with pytest.raises(ValueError, match="no recorded rollouts"):
        rollouts_from_rows([])
    assert pad_rows([torch.tensor([1, 2]), torch.tensor([3])], -1).tolist() == [[1, 2], [3, -1]]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("token_ids", None, "has no token_ids"), ("finished", None, "has no finished"),
        ("pieces", None, "has no pieces"),
        ("token_ids", [0, 1, None, 3, 4, 5], "column token_ids has 5 entries for 6 tokens"),
        ("entropy", [0.1], "column entropy has 1 entries for 6 tokens"),
        ("truth", "no JSON", "column truth holds no JSON"), ("truth", "[" * 100_000, "column truth holds no JSON"),
        ("truth", "[]", "column truth holds list"),
        ("truth", '{"first_error": {"start": "0"}}', "first_error must have start, end, kind"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_a_rollout_is_named(name, value, message):
    with pytest.raises(ValueError, match=f"^rollout step 3, group 0, sample 0.*{message}"):
        rollouts_from_rows([rows()[0] | {name: value}, rows()[1]])


@pytest.mark.parametrize(
    ("name", "value"), [("columns", "${7*7}"), ("columns", "[1]"), ("prompt", "{"), ("prompt", "7")]
)
def test_an_example_that_cannot_be_one_is_named(name, value):
    row = rows()[0] | {"images": [], name: value}
    with pytest.raises(ValueError, match=f"^rollout step 3, group 0, sample 0: column {name} holds"):
        recorded_example(row, {})


def photograph(rng: np.random.Generator, **more) -> bytes:
    pixels = rng.integers(0, 200, (60, 80, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", quality=90, **more)
    return sink.getvalue()


def test_a_photograph_is_kept_as_it_came_without_what_the_camera_said(tmp_path, monkeypatch):
    """Encoding a photograph anew costs more than reading it: what the model saw is what its file decodes to."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a maker's name", 1
    data = photograph(np.random.default_rng(0), exif=exif, comment=b"a secret place")
    (tmp_path / "photo.jpg").write_bytes(data)
    image = _open("photo.jpg", tmp_path, "row 1")
    digest = store.image_digest(image)
    monkeypatch.setattr(store, "png_bytes", lambda _: pytest.fail("it was encoded again"))
    recorder = store.Recorder(tmp_path / "run")
    recorder.start({})
    recorder.rollouts(1, [], {digest: image})
    kept = store.image_file(tmp_path / "run", digest)
    assert kept.suffix == ".jpg" and recorder.failures == 0
    assert b"secret" not in kept.read_bytes() and b"maker" not in kept.read_bytes()
    assert store.image_digest(Image.open(kept)) == digest == store.image_digest(Image.open(io.BytesIO(data)))
    assert sv.open(tmp_path / "run").image(digest) == kept.read_bytes()


def test_a_picture_that_was_changed_on_the_way_is_encoded(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    turned = _open(photograph(np.random.default_rng(1), exif=exif), tmp_path, "row 1")
    half = _open(photograph(np.random.default_rng(2)), tmp_path, "row 2").resize((40, 30))
    recorder = store.Recorder(tmp_path / "run")
    recorder.rollouts(1, [], {store.image_digest(one): one for one in (turned, half)})
    for one in (turned, half):
        kept = store.image_file(tmp_path / "run", store.image_digest(one))
        assert kept.suffix == ".png" and Image.open(kept).tobytes() == one.tobytes()
