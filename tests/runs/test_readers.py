"""Other trainers' dumps as runs: TRL's own files, verl's format, and what `annotate` adds to them."""

from __future__ import annotations

import dataclasses
import io
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trl
from PIL import Image

import segviz as sv
from segpo_core.afterwards.probe import Policy, sample
from segpo_core.tasks import load_task
from segviz.runs.annotate import encode
from segviz.views.report import report_view
from tests.fakes import families
from tests.fakes.fake_run import HOSTILE


def even(prompts, completions, log_extra=None, **columns) -> list[float]:
    if log_extra is not None:
        log_extra("note", [f"row {i}" for i in range(len(completions))])
    return [float(len(str(completion)) % 2) for completion in completions]


def brief(prompts, completions, **columns) -> list[float | None]:
    """No verdict for the first of a batch."""
    return [None if i == 0 else -len(str(completion)) / 100 for i, completion in enumerate(completions)]


@pytest.fixture(scope="module", params=["text", "messages", "images"])
def trl_run(request, tmp_path_factory):
    """(form of the prompts, output directory): two steps of TRL's GRPO trainer."""
    from datasets import Dataset

    folder = tmp_path_factory.mktemp(request.param)
    model = (families.llava if request.param == "images" else families.llama)(folder / "model")
    prompts = [f"{i} + 1 =" for i in range(4)]
    columns: dict = {"prompt": prompts}
    if request.param != "text":
        columns["prompt"] = [[{"role": "user", "content": prompt}] for prompt in prompts]
    if request.param == "images":
        columns["image"] = [Image.new("RGB", (32, 32), (60 * i, 0, 0)) for i in range(4)]
    config = trl.GRPOConfig(
        output_dir=str(folder / "out"), per_device_train_batch_size=8, num_generations=2, max_completion_length=6,
        max_steps=2, logging_steps=1, log_completions=True, num_completions_to_print=0, report_to="none", use_cpu=True,
        bf16=False, save_strategy="no", disable_tqdm=True, seed=1,
    )  # fmt: skip
    policy = Policy.load(model)
    trainer = trl.GRPOTrainer(
        policy.model, [even, brief], config, train_dataset=Dataset.from_dict(columns), processing_class=policy.processor
    )
    trainer.train()
    return request.param, folder / "out"


# --- TRL ------------------------------------------------------------------------------------------


def test_trl_writes_a_run(trl_run):
    form, out = trl_run
    run = sv.read_trl(out)
    assert run.steps == [1, 2] and run.method_label == "TRL (method not recorded)"
    table = pq.read_table(out / "completions" / "completions_00002.parquet").to_pylist()
    assert len(run.rollouts_at(2)) == len(table) == 8
    told = {(row["group"], row["sample"]) for row in run.rollouts_at(2)}
    assert told == {(group, n) for group in range(4) for n in range(2)}
    for raw, light in zip(table, run.rollouts_at(2), strict=True):
        row = run.rollout(2, light["group"], light["sample"]).row
        parts = {name: raw[name] for name in ("even", "brief")}
        assert json.loads(row["reward_parts"]) == pytest.approx(parts)
        assert row["reward"] == light["reward"] == pytest.approx(sum(v for v in parts.values() if v is not None))
        assert row["advantages"] == row["segment_advantage"] == [light["highest"]] == [raw["advantage"]]
        assert json.loads(row["columns"]) == {"note": raw["note"]}
        assert row["text"] == (raw["completion"] if form == "text" else raw["completion"][0]["content"])
        prompt = json.loads(row["prompt"])
        assert (prompt if form == "text" else str(prompt)).count("+ 1 =") == 1
        assert row["token_ids"] is row["entropy"] is row["answer"] is row["finished"] is None
    problems = " ".join(run.problems)
    assert "sv.annotate" in problems and "plain sum of even, brief" in problems
    assert ("records no images" in problems) == (form == "images")


def test_trl_groups_have_one_prompt_and_advantages_around_zero(trl_run):
    run = sv.read_trl(trl_run[1])
    for group in range(4):
        members = run.group(1, group)
        assert len(members) == 2 and len({rollout.row["prompt"] for rollout in members}) == 1
        assert sum(rollout.row["advantages"][0] for rollout in members) == pytest.approx(0, abs=1e-3)
    assert len({run.group(1, group)[0].row["prompt"] for group in range(4)}) == 4


def test_the_views_work_on_a_dump(trl_run):
    form, out = trl_run
    run = sv.read_trl(out)
    charts = {chart["title"]: chart["lines"] for chart in sv.board(run).data["charts"]}
    rewards = [row["reward"] for row in run.rollouts_at(2)]
    assert charts["Reward"][0]["y"][-1] == pytest.approx(np.mean(rewards), abs=1e-4)
    assert "rewards/even/mean" in run.metrics and "rewards/brief/mean" in run.metrics
    data = sv.ribbon(run.rollout(2, 1, 0)).data
    assert data["limit"] == pytest.approx(abs(run.rollout(2, 1, 0).row["advantages"][0])) and data["tokens"] == 1
    assert any("shown as a single token" in note for note in data["notices"])
    assert any(part.get("text") == "(image not recorded)" for m in data["prompt"] for part in m["parts"]) == (
        form == "images"
    )
    assert report_view(run).data["problems"] == run.problems
    assert run.nodes(1) == [] and list(run.credits(1, 0, 0)) == ["TRL (method not recorded)"]


def test_weights_of_rewards_can_be_given(trl_run):
    run = sv.read_trl(trl_run[1] / "completions", reward_weights={"even": 2.0})
    row = run.rollout(1, 0, 1).row
    assert row["reward"] == 2 * json.loads(row["reward_parts"])["even"] and "brief" in json.loads(row["columns"])
    with pytest.raises(ValueError, match="no reward column accuracy; it has: even, brief, note"):
        sv.read_trl(trl_run[1], reward_weights={"accuracy": 1.0})


def completions(folder, number: int, **columns):
    rows = {
        "step": [number] * 2,
        "prompt": ["p", "p"],
        "completion": ["a", "b"],
        "r": [0.0, 1.0],
        "advantage": [-1.0, 1.0],
    }
    rows |= columns
    path = folder / f"completions_{number:05d}.parquet"
    pq.write_table(pa.table({name: value for name, value in rows.items() if value is not None}), path)
    return path


def test_a_single_file_may_hold_several_steps(tmp_path):
    run = sv.read_trl(completions(tmp_path, 7, step=[3, 5]))
    assert run.steps == [3, 5] and run.rollout(5, 0, 0).text == "b"
    with pytest.raises(KeyError, match="recorded steps: 3, 5"):
        run.rollout(7, 0, 0)
    with pytest.raises(KeyError, match="no group 4; its groups: "):
        run.rollout(5, 4, 0)


def test_several_messages_of_a_completion_are_all_shown(tmp_path):
    turns = [
        {"role": "assistant", "content": "let me look", "tool_calls": [{"name": "zoom"}]},
        {"role": "tool", "content": "a cat", "tool_calls": None},
        {"role": "assistant", "content": "cat", "tool_calls": None},
    ]
    run = sv.read_trl(completions(tmp_path, 1, completion=[turns, turns[2:]]))
    assert run.rollout(1, 0, 0).text.splitlines() == [
        "[assistant]", "let me look", '{"name": "zoom"}', "[tool]", "a cat", "[assistant]", "cat",
    ]  # fmt: skip
    assert run.rollout(1, 0, 1).text == "cat" and any("several messages" in problem for problem in run.problems)


def test_what_is_no_trl_dump_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        sv.read_trl(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="log_completions=True. In it: nothing"):
        sv.read_trl(tmp_path)
    with pytest.raises(ValueError, match="no column advantage; .*It has: step, prompt, completion, r"):
        sv.read_trl(completions(tmp_path, 1, advantage=None))
    with pytest.raises(ValueError, match="has no rows"):
        sv.read_trl(
            completions(tmp_path, 1, **{name: [] for name in ("step", "prompt", "completion", "r", "advantage")})
        )
    with pytest.raises(ValueError, match="row 1: step, prompt or completion is null"):
        sv.read_trl(completions(tmp_path, 1, completion=["a", None]))
    (tmp_path / "completions_00001.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(ValueError, match="not a whole Parquet file"):
        sv.read_trl(tmp_path)


def test_a_torn_file_of_a_live_run_is_a_problem_not_the_end(tmp_path):
    completions(tmp_path, 1)
    run = sv.read_trl(tmp_path)
    (tmp_path / "completions_00002.parquet").write_bytes(b"PAR1 torn")
    assert run.steps == [1, 2] and len(run.rollouts) == 2
    assert any("completions_00002.parquet is not a whole Parquet file" in problem for problem in run.problems)
    with pytest.raises(ValueError, match="not a whole Parquet file"):
        run.rollout(2, 0, 0)
    completions(tmp_path, 2)
    assert len(run.rollouts) == 4 and run.rollout(2, 0, 1).text == "b"
    assert not any("Left out" in problem for problem in run.problems)
    completions(tmp_path, 2, completion=["written", "anew, and longer"])
    assert run.rollout(2, 0, 1).text == "anew, and longer"


# --- verl -----------------------------------------------------------------------------------------


def verl_line(**changes) -> str:
    row = {
        "input": "user\n1 + 1\nassistant\n",
        "output": "2",
        "gts": "2",
        "score": 1.0,
        "step": 4,
        "acc": True,
        "uid": "x",
    }
    return json.dumps(row | changes, ensure_ascii=False)


def test_verl_writes_a_run(tmp_path):
    lines = [verl_line(), verl_line(input="other", score=0, acc=False), verl_line(output="3", score=float("nan"))]
    (tmp_path / "4.jsonl").write_text("\n".join(lines) + "\n\n")
    (tmp_path / "12.jsonl").write_text(verl_line(step=12, gts={"value": 2}, output=HOSTILE[0]) + "\n")
    run = sv.read_verl(tmp_path)
    assert run.steps == [4, 12] and run.method_label == "verl (method not recorded)"
    assert [(r["group"], r["sample"], r["reward"], r["answer_right"]) for r in run.rollouts_at(4)] == [
        (0, 0, 1.0, True), (1, 0, 0.0, False), (0, 1, None, True),
    ]  # fmt: skip
    row = run.rollout(4, 0, 0).row
    assert (row["text"], row["answer"], json.loads(row["prompt"])) == ("2", "2", "user\n1 + 1\nassistant\n")
    assert json.loads(row["columns"]) == {"acc": True, "uid": "x"} and json.loads(row["reward_parts"]) == {"acc": 1.0}
    assert row["advantages"] is row["entropy"] is row["finished"] is None
    assert json.loads(run.rollout(12, 0, 0).row["answer"]) == {"value": 2}
    view = sv.ribbon(run.rollout(12, 0, 0))
    assert HOSTILE[0] not in view.html().split("segviz-data")[1] and HOSTILE[0] not in view.fallback
    assert any("No advantages are recorded" in note for note in view.data["notices"])
    assert run.metrics["reward"].values == [0.5, 1.0] and run.metrics["rewards/acc/mean"].steps == [4, 12]


def test_scores_beyond_all_squares_are_shown(tmp_path):
    (tmp_path / "4.jsonl").write_text("\n".join(verl_line(score=score) for score in (1e308, -1e308, 0.0)))
    metrics = sv.read_verl(tmp_path).metrics
    assert metrics["reward"].values == [0.0] and metrics["reward_std"].values[0] == pytest.approx(1e308)


def test_verl_writes_numpys_booleans_and_numbers_as_text(tmp_path):
    lines = [
        verl_line(acc="True", score="1.0"),
        verl_line(acc="False", score="False"),
        verl_line(acc="maybe", score="x"),
    ]
    (tmp_path / "4.jsonl").write_text("\n".join(lines))
    run = sv.read_verl(tmp_path)
    rows = run.rollouts_at(4)
    assert [(r["reward"], r["answer_right"]) for r in rows] == [(1.0, True), (0.0, False), (None, None)]
    assert json.loads(run.rollout(4, 0, 1).row["reward_parts"]) == {"acc": 0.0}
    assert any("'x'" in problem for problem in run.problems)


def test_the_step_of_an_older_dump_is_its_name(tmp_path):
    (tmp_path / "8.jsonl").write_text(json.dumps({"input": "p", "output": "o", "score": 1}))
    assert sv.read_verl(tmp_path).rollout(8, 0, 0).row["answer"] is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "1.jsonl has no rows"),
        (b'\n{"input": "p"}\n', r"line 2 has no output, score; .* It has: input"),
        (verl_line().encode() + b"\n\n" + verl_line().encode()[:-9], "line 3 is not JSON"),
        (b'["input"]', "line 1 is not a JSON object but list"),
        (b"\xff\xfe{}", "line 1 is not JSON"),
        (verl_line(output=["2"]).encode(), "line 1: output is not a text but list"),
        (verl_line(step="four").encode(), "line 1 has no step"),
    ],
)
def test_what_is_no_verl_dump_is_said(tmp_path, content, message):
    (tmp_path / "1.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        sv.read_verl(tmp_path)
    (tmp_path / "2.jsonl").write_text(verl_line(step=2))
    run = sv.read_verl(tmp_path)
    assert len(run.rollouts) == 1 and any("Left out" in problem for problem in run.problems)


def test_a_folder_without_dumps_says_what_is_in_it(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(FileNotFoundError, match="trainer.rollout_data_dir. In it: train.jsonl"):
        sv.read_verl(tmp_path)


def test_a_file_of_another_step_than_its_name_is_not_lost_in_silence(tmp_path):
    (tmp_path / "1.jsonl").write_text(verl_line(step=3))
    run = sv.read_verl(tmp_path)
    assert len(run.rollouts) == 0 and any("its rows are of 3" in problem for problem in run.problems)
    assert len(sv.read_verl(tmp_path / "1.jsonl").rollouts) == 1


# --- annotate -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    return Policy.load("data/tiny-vlm")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return Policy.load(families.llama(tmp_path_factory.mktemp("llama")))


def test_a_trl_dump_gets_tokens_and_segments(trl_run):
    form, out = trl_run
    policy, run = Policy.load(out.parent / "model"), sv.read_trl(out)
    before = [run.rollout(1, group, n) for group in range(4) for n in range(2)]
    if form == "images":  # TRL keeps none
        with pytest.raises(ValueError, match=r"step 1, group 0, sample 0.*1 image part\(s\) but 0 image"):
            sv.annotate(before, policy.model, policy.processor)
        return
    after = sv.annotate(before, policy.model, policy.processor, fraction=0.5, batch_size=3)
    for old, new in zip(before, after, strict=True):
        total = len(new.row["token_ids"])
        assert "".join(new.pieces) == old.text and not new.problems and total == len(new.pieces) > 1
        assert new.row["advantages"] == old.row["advantages"] * total
        assert new.row["segment_advantage"] == pytest.approx([old.row["advantages"][0]] * len(new.segments))
        assert all(p <= 0 for p in new.row["old_logprobs"]) and all(0 <= h for h in new.row["entropy"])
        # SAPO's cut: the half of the tokens with the highest entropy end segments, and so does the last
        top = np.argsort(-np.float32(new.row["entropy"]), kind="stable")[: math.ceil(total / 2)]
        assert [end for _, end in new.segments] == sorted({int(t) + 1 for t in top} | {total})
        assert old.row["token_ids"] is None, "the rollout that was given is as it was"
        assert not any("shown as a single" in note for note in sv.ribbon(new).data["notices"])


def test_numbers_are_those_of_the_policy(tiny):
    """Text, image and all: annotating a sample's text finds the numbers that were noted while it was drawn."""
    example = load_task("shapes").eval(0)
    drawn = next(s for s in sample(tiny, example, 4) if s.finished)
    sink = io.BytesIO()
    example["images"][0].save(sink, format="PNG")
    row = {
        "step": 1,
        "group": 0,
        "sample": 0,
        "prompt": json.dumps(example["prompt"]),
        "images": ["ab"],
        "text": drawn.text,
    }
    bare = sv.Rollout(row, {"ab": sink.getvalue()})
    (found,) = sv.annotate([bare], tiny.model, tiny.processor)
    n = len(found.row["token_ids"])
    assert found.row["token_ids"] == drawn.token_ids[:n] and n == len(drawn.token_ids) - 1, "the EOS is not in the text"
    assert found.pieces == drawn.pieces[:n]
    np.testing.assert_allclose(found.row["old_logprobs"], drawn.logprobs[:n], atol=1e-4)
    np.testing.assert_allclose(found.row["entropy"], drawn.entropy[:n], atol=1e-4)
    with pytest.raises(ValueError, match="ab… of rollout step 1, group 0, sample 0 is missing"):
        sv.annotate([dataclasses.replace(bare, images={})], tiny.model, tiny.processor)
    stripped = dataclasses.replace(bare, row=row | {"images": []})
    with pytest.raises(ValueError, match=r"step 1, group 0, sample 0.*1 image part\(s\) but 0 image"):
        sv.annotate([stripped], tiny.model, tiny.processor)


def test_what_is_recorded_stays(llama):
    row = {"prompt": json.dumps("a"), "token_ids": [60, 61, 62], "pieces": ["x", "y", "z"], "text": "xyz",
           "entropy": [3.0, 1.0, 2.0], "segment_ids": [0, 0, 1]}  # fmt: skip
    (found,) = sv.annotate([sv.Rollout(row)], llama.model, llama.processor)
    assert {name: found.row[name] for name in row} == row and len(found.row["old_logprobs"]) == 3
    again = sv.annotate([found], llama.model, llama.processor)[0]
    assert again.row == found.row


def test_other_cuts(llama):
    bare = sv.Rollout({"prompt": json.dumps("a"), "text": "Step 1 one\nStep 2 two\nand three"})

    def ends(segments, **settings):
        (found,) = sv.annotate([bare], llama.model, llama.processor, segments, **settings)
        assert "cut afterwards" in found.row["segment_rule"][0]
        return ["".join(found.pieces[a:b]) for a, b in found.segments]

    assert ends("newline") == ["Step 1 one\n", "Step 2 two\n", "and three"]
    assert ends("step_markers", pattern=r"Step \d") == ["Step 1 one\n", "Step 2 two\nand three"]
    assert ends("sequence_level") == [bare.text]
    assert {len(part) > 0 for part in ends("token_level")} == {True}
    assert len(ends("cutpoints", threshold=1.0, interval=1)) == len(ends("token_level"))
    assert len(ends("fixed_length", size=4)) == math.ceil(len(ends("token_level")) / 4)
    with pytest.raises(ValueError, match="no segmentation 'sentences'; choose one of entropy, cutpoints"):
        ends("sentences")
    with pytest.raises(TypeError, match="size"):
        ends("fixed_length")
    with pytest.raises(TypeError, match="fractoin"):
        ends("entropy", fractoin=0.1)


@pytest.mark.parametrize("text", [*HOSTILE, "", "🦊" * 3 + "é\u0301", "\ud800 lone", " leading", "<|im_end|> x"])
def test_pieces_join_to_any_text(tiny, llama, text):
    for policy in (tiny, llama):
        ids, pieces = encode(policy.sampler.tokenizer, text)
        assert "".join(pieces) == text and len(ids) == len(pieces)


def test_a_character_of_several_tokens_belongs_to_the_last(llama):
    ids, pieces = encode(llama.sampler.tokenizer, "a🦊b")
    assert pieces == ["a", *[""] * (len(ids) - 3), "🦊", "b"] and len(ids) > 4


def test_an_empty_completion_stays_empty(llama):
    bare = sv.Rollout({"prompt": json.dumps("a"), "text": ""})
    (found,) = sv.annotate([bare], llama.model, llama.processor)
    assert found.row["token_ids"] == found.row["old_logprobs"] == [] and found.segments == []
    assert sv.annotate([], llama.model, llama.processor) == []
