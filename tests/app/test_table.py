"""The runs on the shelf and the table over all their rollouts."""

import json
import os
import re
import shutil
import socket
import time
from pathlib import Path

import pytest

import segviz as sv
from segpo_core.record.store import Recorder, forget_after, step_name
from segpo_core.training.hold import Hold
from segviz.app.rollouts import Question, ask, named, snippet
from segviz.app.shelf import Missing, Shelf
from segviz.runs.columns import question
from tests.app.served import key, read_all
from tests.fakes.fake_run import row, write_run


def test_runs_are_told_with_their_state(tmp_path):
    write_run(tmp_path / "done", steps=4, rollouts=False)
    (tmp_path / "half" / "metrics").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "run.json").write_text('{"schema_version": 99}')
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_text('{"schema_ver')
    Recorder(tmp_path / "fresh").start({"method": "grpo", "max_steps": 9})
    found = {run["name"]: run for run in Shelf([tmp_path]).described()}
    assert set(found) == {"done", "half", "newer", "torn", "fresh"}
    assert (found["done"]["state"], found["done"]["step"]) == ("finished", 4)
    assert found["done"]["label"] == "SAPO (segment-aligned)"
    assert found["fresh"]["state"] == "running" and "no step yet" in found["fresh"]["words"]
    assert {found[name]["state"] for name in ("half", "newer", "torn")} == {"unreadable"}
    assert "copied" in found["half"]["words"] and "schema version 99" in found["newer"]["words"]


def test_a_directory_may_be_a_run_and_names_stay_apart(tmp_path):
    for folder in ("a", "b"):
        write_run(tmp_path / folder / "same", steps=2, rollouts=False)
    assert list(Shelf([tmp_path / "a", tmp_path / "b"]).places()) == ["same", "b~same"]
    assert list(Shelf([tmp_path / "a" / "same"]).places()) == ["same"]
    assert Shelf([tmp_path / "nowhere"]).described() == []


def test_nothing_outside_is_read_through_links(tmp_path, index):
    secret = write_run(tmp_path / "secret", steps=2)
    mine = write_run(tmp_path / "runs" / "mine", steps=6)
    (tmp_path / "runs" / "link").symlink_to(secret)
    (tmp_path / "runs" / "..hidden").mkdir()
    shelf = Shelf([tmp_path / "runs"])
    assert list(shelf.places()) == ["mine"]
    # a single file, then a whole folder, then the manifest
    stolen = mine / "rollouts" / "step-000099.rank0.parquet"
    stolen.symlink_to(next((secret / "rollouts").iterdir()))
    answer = read_all(shelf, index, run="mine")
    assert 99 not in {row["step"] for row in answer["rows"]} and "leads outside" in answer["problems"][0]
    with pytest.raises(Missing, match="leads out"):
        shelf.reading("mine", lambda run: run.rollout(99, 0, 0))
    image = next((secret / "images").iterdir())
    (mine / "images" / f"{'ab' * 32}.png").symlink_to(image)
    assert shelf.reading("mine", lambda run: run.image("ab" * 32)) is None
    assert shelf.reading("mine", lambda run: run.image(next((mine / "images").glob("[!a]*")).stem)) is not None
    shutil.rmtree(mine / "credit", ignore_errors=True)
    (mine / "credit").symlink_to(secret)
    with pytest.raises(Missing, match="credit is a link"):
        shelf.reading("mine", lambda run: run)
    (mine / "credit").unlink()
    os.rename(mine / "rollouts", mine / "own")
    (mine / "rollouts").symlink_to(secret / "rollouts")
    time.sleep(0.3)  # the index looks no more often
    answer = read_all(shelf, index, run="mine")
    assert not answer["rows"] and "leads outside" in answer["problems"][0]
    (mine / "run.json").unlink()
    (mine / "run.json").symlink_to(secret / "run.json")
    assert shelf.described()[0]["state"] == "unreadable"


def test_the_table_answers_as_the_run_itself(runs, index):
    shelf = Shelf([runs])
    run = sv.open(runs / "first")
    everything = [dict(row) for row in run.rollouts]

    def says(row, words):
        asked = run.rollout(row["step"], row["group"], row["sample"])
        return words in (question(asked.row["prompt"]) + asked.text).lower()

    tests = {
        (("text", "how many"),): lambda r: says(r, "how many"),  # a word of the question
        (("answer", "right"),): lambda r: r["answer_right"] is True,
        (("perception", "wrong"), ("answer", "right")): lambda r: r["perception_right"] is False and r["answer_right"],
        (("error", "reasoning"),): lambda r: r["error_kind"] == "reasoning",
        (("error", "none"),): lambda r: r["error_kind"] is None,
        (("step_from", 5), ("step_to", 9)): lambda r: 5 <= r["step"] <= 9,
        (("reward_from", 0.5),): lambda r: r["reward"] >= 0.5,
        (("tokens_to", 45),): lambda r: r["tokens"] <= 45,
        (("spread_from", 1.0),): lambda r: r["lowest"] is not None and r["highest"] - r["lowest"] >= 1,
        (("method", "sapo"), ("finished", "no")): lambda r: False,
    }
    for filters, test in tests.items():
        answer = read_all(shelf, index, run="first", limit=200, **dict(filters))
        wanted = sorted(key(r) for r in everything if test(r))
        assert sorted(map(key, answer["rows"])) == wanted and answer["total"] == len(wanted), filters
        assert answer["every"] == len(everything)
    for name, column in (("tokens", "tokens"), ("reward", "reward"), ("lowest", "lowest")):
        values = [r[column] for r in read_all(shelf, index, run="first", sort=f"-{name}", limit=200)["rows"]]
        known = [v for v in values if v is not None]
        assert known == sorted(known, reverse=True) and values[: len(known)] == known, "what is not known comes last"


def test_pages_cover_every_rollout_once(runs, index):
    shelf = Shelf([runs])
    total = read_all(shelf, index, limit=0)["total"]
    seen = []
    for offset in range(0, total, 7):
        seen += [(r["run"], *key(r)) for r in read_all(shelf, index, offset=offset, limit=7, sort="reward")["rows"]]
    assert len(seen) == total == len(set(seen)) and {name for name, *_ in seen} == {"first", "second"}


def test_texts_are_found_in_any_case_and_shown_where_they_stand(runs, index):
    shelf = Shelf([runs])
    word = "IS HACKED"
    assert read_all(shelf, index, text=word)["total"] == 0
    answer = read_all(shelf, index, text="ONERROR=WINDOW")
    (found,) = answer["rows"]
    assert found["group"] == 90 and found["match"] == "onerror=window"
    assert found["before"].endswith("<img src=x ") and found["text"].startswith(".hacked=1>")
    assert snippet("short", "") == ("", "", "short") and snippet("abc", "zz")[2] == "abc"
    assert snippet("x" * 500 + "needle" + "y" * 500, "needle")[0].startswith("…x")


def test_the_index_follows_what_training_does(tmp_path, index):
    path = write_run(tmp_path / "run", steps=24)
    shelf = Shelf([tmp_path])
    steps = sv.open(path).steps
    assert read_all(shelf, index, limit=0)["total"] == 12 * len(steps)
    recorder = Recorder(path)
    recorder.rollouts(25, [row(25, 0, 0, "<think> 1 </think>")], {})
    time.sleep(0.25)
    assert read_all(shelf, index, limit=1)["rows"][0]["step"] == 25
    forget_after(path, 9)
    recorder.rollouts(9, [row(9, 0, 0, "<think> anew </think>")], {})
    time.sleep(0.25)
    answer = read_all(shelf, index, limit=200)
    assert sorted({r["step"] for r in answer["rows"]}) == [1, 5, 9] and answer["total"] == 25
    (path / "rollouts" / f"{step_name(13)}.rank0.parquet").write_bytes(b"PAR1 and then nothing")
    time.sleep(0.25)
    answer = read_all(shelf, index, limit=0)
    assert answer["total"] == 25 and "step-000013" in answer["problems"][0]
    shutil.rmtree(path)
    with pytest.raises(Missing, match="no run 'run' here"):
        ask(shelf, index, Question(run="run"))
    assert ask(shelf, index, Question())["every"] == 0


@pytest.mark.parametrize(
    "raw, words",
    [
        ({"answr": "right"}, "there is no filter 'answr'"),
        ({"answer": "yes"}, "must be one of right, wrong, unknown"),
        ({"sort": "text; DROP TABLE rollouts"}, "sort is"),
        ({"step_from": "a"}, "step_from must be a number"),
        ({"reward_to": "nan"}, "must be a finite number"),
        ({"limit": "100000"}, "between 0 and 200"),
        ({"offset": "-1"}, "0 or more"),
    ],
)
def test_questions_the_table_does_not_know_are_told(raw, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        Question.parse(raw)


def test_names_with_separators_are_found(tmp_path, index):
    names = ["a,b", "a", "50% more, & so", "x y", "b"]
    for i, name in enumerate(names):
        write_run(tmp_path / name, steps=1, seed=i)
    shelf = Shelf([tmp_path])
    for name in names:
        assert {row["run"] for row in read_all(shelf, index, run=name)["rows"]} == {name}
    assert named("a,b,a,50% more, & so,,gone", names) == ["a,b", "a", "50% more, & so", "gone"]
    with pytest.raises(Missing, match="no run 'gone'"):
        ask(shelf, index, Question(run="gone,a"))


def test_the_page_of_a_rollout_is_found_whatever_the_order(tmp_path, index):
    for name in ("one", "two"):
        write_run(tmp_path / name, steps=21)
    shelf = Shelf([tmp_path])
    whole = read_all(shelf, index, sort="tokens", limit=200)["rows"]
    for wanted in whole[::17]:
        near = "/".join(str(wanted[name]) for name in ("run", "step", "group", "sample"))
        page = ask(shelf, index, Question(sort="tokens", limit=7, near=near))
        assert whole[page["at"]] == wanted == page["rows"][page["at"] - page["offset"]]
        assert ask(shelf, index, Question(text="no such words", near=near))["at"] is None
    for bad in ("one", "one/1/2", "one/1/2/x", "/1/2/3"):
        with pytest.raises(ValueError, match="near"):
            Question(near=bad)


def test_what_is_left_out_is_told_with_the_reason(tmp_path):
    secret = write_run(tmp_path / "secret", steps=1, rollouts=False)
    write_run(tmp_path / "runs" / "mine", steps=1, rollouts=False)
    (tmp_path / "runs" / "link").symlink_to(secret)
    shelf = Shelf([tmp_path / "runs"])
    assert list(shelf.places()) == ["mine"]
    (said,) = shelf.left_out
    assert said.startswith("link is a link that leads out of") and "not followed" in said
    (tmp_path / "runs" / "link").unlink()
    shelf.places()
    assert shelf.left_out == []


def test_a_run_that_lives_is_not_called_stopped(tmp_path):
    """However long a step takes; and one whose trainer died is."""
    path = write_run(tmp_path / "runs" / "slow", steps=4, rollouts=False)
    manifest = json.loads((path / "run.json").read_text())
    manifest["config"]["max_steps"] = 100
    (path / "run.json").write_text(json.dumps(manifest))
    os.utime(path / "metrics", (1_000_000, 1_000_000))
    shelf = Shelf([tmp_path / "runs"])
    for owner, state, words in (
        (None, "quiet", "step 4 of 100, no news"),
        ({"host": socket.gethostname(), "process": os.getpid()}, "quiet", "step 4 of 100, no news"),  # it has let go
        ({"host": "elsewhere", "process": os.getpid()}, "quiet", "step 4 of 100, no news"),
        ({"host": socket.gethostname(), "process": 2**22 + 1}, "quiet", "step 4 of 100, stopped"),  # beyond pid_max
        ([], "quiet", "step 4 of 100, no news"),
    ):
        if owner is not None:
            (path / "trainer.lock").write_text(json.dumps(owner))
            os.utime(path / "trainer.lock", (1_000_000, 1_000_000))
        (told,) = shelf.described()
        assert (told["state"], told["words"]) == (state, words)
    (path / "trainer.lock").write_text(json.dumps({"host": "elsewhere", "process": 7}))  # it was just touched
    (told,) = shelf.described()
    assert (told["state"], told["words"]) == ("running", "step 4 of 100, the next takes long")
    (path / "trainer.lock").unlink()
    hold = Hold(path)
    (told,) = shelf.described()
    hold.release()
    if Path("/proc/locks").exists():
        assert (told["state"], told["words"]) == ("running", "step 4 of 100, the next takes long")
