"""Views as notebook widgets: what Python sends, hears and shows elsewhere; the explorer; following a run."""

from __future__ import annotations

import asyncio
import html
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import pytest
import traitlets
from nbconvert import HTMLExporter

import segviz as sv
from segpo_core.record.files import read_table
from segpo_core.record.store import Recorder, SchemaError, read_rollouts
from segviz.notebook.listing import COLUMNS, PAGE, VERDICTS, Filter, listing, narrow, ordered
from segviz.runs.columns import question
from tests.fakes.fake_run import HOSTILE, hostile_row, row, write_run

WIDGET = "application/vnd.jupyter.widget-view+json"
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "fake", steps=24, extra=[hostile_row()])


@pytest.fixture(scope="module")
def run(path):
    return sv.open(path)


def drawn(widget) -> dict:
    """What the page would draw."""
    return json.loads(widget.data)


def keys(rows) -> list[tuple[int, int, int]]:
    return [(r["step"], r["group"], r["sample"]) for r in rows]


# --- one view --------------------------------------------------------------------------------------------------------


def test_a_view_needs_no_kernel_and_its_widget_has_the_still_form_beside_it(run):
    view = sv.ribbon(run.rollout(1, 0, 1))
    bundle = view._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"}
    before, _, script = bundle["text/html"].partition("<script>")
    assert before == f"<div>{view._repr_html_()}</div>" and script.count("</script>") == 1
    widget = view.widget()
    assert drawn(widget)["kind"] == "ribbon" and drawn(widget)["key"] == "1/0/1"
    assert widget._repr_mimebundle_()[0]["text/html"] == view._repr_html_()
    other = sv.ribbon(run.rollout(1, 0, 2))
    widget.show(other)
    assert drawn(widget)["key"] == "1/0/2" and widget._repr_mimebundle_()[0]["text/html"] == other._repr_html_()


def test_nbconvert_shows_the_tokens_of_a_saved_notebook():
    output = nbformat.v4.new_output("display_data", sv.ribbon(hostile_row())._repr_mimebundle_())
    cell = nbformat.v4.new_code_cell("sv.ribbon(…)", outputs=[output])
    page, _ = HTMLExporter(embed_images=False).from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    assert html.escape(HOSTILE[0]) in page and "data:image/svg+xml;base64," in page
    assert HOSTILE[0] not in page and HOSTILE[1] not in page


def test_a_widget_hears_what_the_page_asks_for(run):
    widget, opened, asked = sv.ribbon(run.rollout(1, 0, 1)).widget(), [], []
    widget.on_open(lambda *ids: opened.append(ids))
    widget.on_ask(asked.append)
    for message in (
        {"open": {"step": 5, "group": 0, "sample": 2}}, {"open": {"step": "5", "group": 0, "sample": 2}}, {"open": 3},
        {"ask": {"page": 2}}, {"ask": "page"}, None, {},
    ):  # fmt: skip
        widget._handle_custom_msg(message, [])
    assert opened == [(5, 0, 2)] and asked == [{"page": 2}]


def test_a_selection_is_checked(run):
    widget = sv.ribbon(run.rollout(1, 0, 1)).widget()
    widget.selection = {"key": "1/0/1", "token": 3, "segment": None}
    for wrong in ({"token": "3"}, {"token": 1.5}, {"tokens": 3}, {"key": 1}, {"segment": True}):
        with pytest.raises(traitlets.TraitError, match="a selection has no"):
            widget.selection = wrong
    assert widget.selection["token"] == 3


# --- the list --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "holds"),
    [
        ({"steps": (5, 9)}, lambda r: 5 <= r["step"] <= 9),
        ({"verdict": "wrong"}, lambda r: r["answer_right"] is False),
        ({"verdict": "right, not grounded"}, lambda r: r["answer_right"] and not r["perception_right"]),
        ({"reward": (0.5, 1)}, lambda r: r["reward"] == 1),
        ({"tokens": (0, 41)}, lambda r: r["tokens"] <= 41),
        ({"error_kind": "reasoning"}, lambda r: r["error_kind"] == "reasoning"),
        ({"perception_error": True}, lambda r: r["perception_right"] is False),
        ({"method": "sapo", "steps": (1, 1), "verdict": "right"}, lambda r: r["step"] == 1 and r["answer_right"]),
    ],
)
def test_each_condition_lets_through_what_it_says(run, wanted, holds):
    every = list(run.rollouts)
    found = narrow(run, Filter(**wanted))
    assert 0 < len(found) < len(every)
    assert keys(found) == keys(r for r in every if holds(r))


def test_words_are_searched_in_text_and_question_and_nothing_else(run, monkeypatch):
    read = []
    monkeypatch.setattr(
        "segviz.notebook.listing.read_rollouts",
        lambda path, steps, columns: (read.append(columns), read_rollouts(path, steps, columns))[1],
    )
    found = narrow(run, Filter(text="COUNT is 2", steps=(1, 9)))
    assert read and all(set(columns) == {"step", "group", "sample", "text", "prompt"} for columns in read)
    whole = {(s, r["group"], r["sample"]) for s in (1, 5, 9) for r in run.rollouts_at(s)
             if "count is 2" in run.rollout(s, r["group"], r["sample"]).text.lower()}  # fmt: skip
    assert set(keys(found)) == whole and whole
    assert keys(narrow(run, Filter(text="</script>"))) == [(1, 90, 0)]
    assert not narrow(run, Filter(text="(no such words"))
    asked = question(run.rollout(5, 0, 0).row["prompt"])
    there = {(s, r["group"], r["sample"]) for s in run.steps for r in run.rollouts_at(s)
             if asked in question(run.rollout(s, r["group"], r["sample"]).row["prompt"])}  # fmt: skip
    assert asked and set(keys(narrow(run, Filter(text=asked.upper())))) == there >= {(5, 0, i) for i in range(4)}
    assert not narrow(run, Filter(text='"role"'))  # the words of a prompt, not how it is stored


def test_what_is_not_recorded_is_in_no_range_and_last_in_every_order(tmp_path):
    recorder = Recorder(tmp_path / "r")
    recorder.start({})
    rewards = [0.5, None, 1.0]
    recorder.rollouts(1, [row(1, 0, i, text="a b", reward=r, finished=i != 2) for i, r in enumerate(rewards)], {})
    run = sv.open(tmp_path / "r")
    assert keys(narrow(run, Filter(reward=(0, 1)))) == [(1, 0, 0), (1, 0, 2)]
    assert len(narrow(run, Filter(verdict="not judged"))) == 3
    assert keys(narrow(run, Filter(truncated=True))) == [(1, 0, 2)]
    assert [r["reward"] for r in ordered(run.rollouts, "reward")] == [0.5, 1.0, None]
    assert [r["reward"] for r in ordered(run.rollouts, "reward", descending=True)] == [1.0, 0.5, None]


@pytest.mark.parametrize("wrong", [{"steps": 3}, {"reward": (2, 1)}, {"tokens": (1,)}, {"verdict": "good"}])
def test_a_wrong_condition_is_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Filter(**wrong)


def test_a_page_of_the_list_says_which_rows_it_shows(run):
    rows = ordered(run.rollouts, "lowest")
    data = listing(rows, 1, "lowest", current="1/0/1").data
    assert data["first"] == PAGE and len(data["rows"]) == PAGE and data["pages"] == -(-len(rows) // PAGE)
    names = [column["id"] for column in data["columns"]]
    assert "method" not in names and {"step", "reward", "lowest", "error_kind"} <= set(names) <= set(COLUMNS)
    first = dict(zip(names, data["rows"][0]["cells"], strict=True))
    assert first["lowest"] == rows[PAGE]["lowest"] and data["rows"][0]["levels"]["lowest"] < 0
    assert listing(rows, 999).data["page"] == data["pages"] - 1
    with pytest.raises(ValueError, match="reward"):
        ordered(rows, "rewards")


def test_texts_in_the_list_stay_texts():
    rows = [dict.fromkeys([*COLUMNS, "finished"]) | {"step": 1, "group": 0, "sample": 0, "error_kind": HOSTILE[0]}]
    assert "<script" not in listing(rows).fallback and html.escape(HOSTILE[0]) in listing(rows).fallback


# --- exploring -------------------------------------------------------------------------------------------------------


def test_exploring_narrows_the_list_and_opens_the_first_that_fits(run):
    explorer = sv.explore(run)
    assert len(explorer.rows) == len(run.rollouts) and explorer.current == "1/0/0"
    explorer.narrow(verdict="wrong", error_kind="reasoning")
    assert {r["error_kind"] for r in explorer.rows} == {"reasoning"}
    assert explorer.current == "/".join(map(str, keys(explorer.rows)[0]))
    shown = drawn(explorer._list)
    assert shown["matched"] == len(explorer.rows) and shown["recorded"] == len(run.rollouts)
    assert shown["current"] == explorer.current
    explorer.narrow(text="words that nobody wrote")
    assert not explorer.rows and drawn(explorer._list)["empty"] == "No rollout fits all of these."
    assert explorer.rollout is not None  # what one reads is not taken away
    explorer.narrow(text="", verdict=None, error_kind=None)
    assert len(explorer.rows) == len(run.rollouts)


def test_the_controls_and_the_filter_say_the_same(run):
    explorer = sv.explore(run, steps=(1, 9), verdict="right", sort="reward")
    made = explorer._controls._made
    assert made["steps"].value == (1, 9) and made["steps"].max == 21 and made["verdict"].value == "right"
    made["verdict"].value = "wrong"
    made["steps"].value = (1, 21)
    assert explorer.filter == Filter(verdict="wrong")
    assert {r["step"] for r in explorer.rows} == {1, 5, 9, 13, 17, 21}
    made["verdict"].value = ""
    assert explorer.filter == Filter() and made["method"].layout.display == "none"
    assert list(VERDICTS) == [value for _, value in made["verdict"].options][1:]


def test_the_list_is_walked_and_sorted_as_the_page_asks(run):
    explorer = sv.explore(run)
    explorer._list._handle_custom_msg({"open": {"step": 5, "group": 1, "sample": 2}}, [])
    assert explorer.current == "5/1/2" and explorer.rollout.row["step"] == 5
    assert "5/1/2" in {"/".join(map(str, r["key"].values())) for r in drawn(explorer._list)["rows"]}
    explorer._list._handle_custom_msg({"ask": {"sort": "lowest"}}, [])
    lowest = [r["lowest"] for r in explorer.rows]
    assert lowest == sorted(lowest) and drawn(explorer._list)["page"] == 0
    explorer._list._handle_custom_msg({"ask": {"sort": "lowest"}}, [])
    assert explorer.rows[0]["lowest"] == max(lowest)
    explorer._list._handle_custom_msg({"ask": {"page": 10**6}}, [])
    assert drawn(explorer._list)["page"] == drawn(explorer._list)["pages"] - 1
    explorer._list._handle_custom_msg({"ask": {"sort": "lowest"}}, [])
    last = "/".join(map(str, keys(explorer.rows)[PAGE - 1]))  # of the page; walked to, but not opened yet
    explorer._list._handle_custom_msg({"ask": {"step": 1, "from": last}}, [])
    assert explorer.current == "/".join(map(str, keys(explorer.rows)[PAGE])) and drawn(explorer._list)["page"] == 1
    explorer.read(*keys(explorer.rows)[-1])
    assert explorer._forth.disabled
    explorer.step(1)
    assert explorer.current == "/".join(map(str, keys(explorer.rows)[-1]))


def test_views_of_the_open_rollout_are_made_when_looked_at_and_share_the_selection(path, monkeypatch):
    from segviz.notebook import tabs as module

    made = []
    tabs = [
        module.Tab("Ribbon", lambda run, r: True, lambda run, r: (made.append("ribbon"), sv.ribbon(r))[1]),
        module.Tab("Again", lambda run, r: True, lambda run, r: (made.append("again"), sv.ribbon(r, "again"))[1]),
        module.Tab("Odd", lambda run, r: r.row["sample"] % 2 == 1, lambda run, r: {}["no such thing"]),
    ]
    monkeypatch.setattr(module, "TABS", tabs)
    explorer = sv.explore(sv.open(path))
    assert made == ["ribbon"] and explorer._tabs.titles == ("Ribbon", "Again")
    explorer._tabs.selected_index = 1
    assert made == ["ribbon", "again"]
    explorer.step(1)
    assert made == ["ribbon", "again", "again"] and explorer._tabs.titles == ("Ribbon", "Again", "Odd")
    explorer._tabs._widgets["Again"].selection = {"key": "1/0/1", "token": 4, "segment": 1, "node": None}
    assert explorer.selection["token"] == explorer._tabs._widgets["Ribbon"].selection["token"] == 4
    explorer._tabs.selected_index = 2
    assert drawn(explorer._tabs._widgets["Odd"])["kind"] == "status"
    assert "no such thing" in drawn(explorer._tabs._widgets["Odd"])["words"]
    explorer.step(1)
    assert explorer._tabs.titles == ("Ribbon", "Again") and made[-1] == "ribbon"


def test_only_views_that_say_something_of_the_rollout_are_offered(tmp_path):
    rich = row(1, 0, 0, text="<perception> a </perception><think> b </think>", reward=1.0)
    poor = row(1, 1, 0, pieces=["a", "b"], method="grpo") | {"values": None, "segment_value": None, "role_ids": None}
    recorder = Recorder(tmp_path / "r")
    recorder.start({"method": "sapo"})
    recorder.rollouts(1, [rich, row(1, 0, 1, text="<think> c </think>"), poor], {})
    explorer = sv.explore(sv.open(tmp_path / "r"))
    assert explorer._tabs.titles == ("Ribbon", "Value", "Group", "Roles")
    for i, kind in enumerate(("ribbon", "staircase", "group", "roles")):
        explorer._tabs.selected_index = i
        assert drawn(explorer._tabs._widgets[explorer._tabs.titles[i]])["kind"] == kind
    explorer.read(1, 1, 0)
    assert explorer._tabs.titles == ("Ribbon",) and drawn(explorer._tabs._widgets["Ribbon"])["key"] == "1/1/0"
    recorder.nodes(1, [dict.fromkeys(("step", "group", "node", "start", "end"), 1) | {"sample": 0, "parent": -1}])
    explorer.read(1, 0, 0)
    assert "Tree" in explorer._tabs.titles
    recorder.evaluation(0, [row(0, 0, 0, text="<think> b </think>")], {})
    explorer.read(1, 1, 0)
    assert explorer._tabs.titles[-1] == "Over training"


def test_several_runs_can_be_chosen_from(path, tmp_path):
    other = sv.open(write_run(tmp_path / "other", "grpo", steps=4))
    explorer = sv.explore([sv.open(path), other])
    assert [label for label, _ in explorer._chooser.options] == ["fake, SAPO (segment-aligned)", "other, GRPO"]
    explorer._chooser.value = 1
    assert explorer.run is other and {r["method"] for r in explorer.rows} == {"grpo"}
    assert explorer.rollout.row["method"] == "grpo"


def test_every_shown_view_of_an_explorer_is_in_its_static_html(run):
    bundle, _ = sv.explore(run, rollout=(1, 90, 0))._repr_mimebundle_()
    assert bundle[WIDGET]["model_id"] and "Rollouts" in bundle["text/html"]
    assert html.escape(HOSTILE[0]) in bundle["text/html"] and "<script" not in bundle["text/html"]


def test_odd_runs_are_shown_for_what_they_are(tmp_path, path):
    with pytest.raises(ValueError, match="at least one run"):
        sv.explore([])
    with pytest.raises(TypeError, match="knows no colour; there are: steps, .*rollout"):
        sv.explore(sv.open(path), colour="red")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SchemaError, match="has no run.json"):
        sv.explore(sv.open(tmp_path / "folder"))
    Recorder(tmp_path / "empty").start({"method": "grpo"})
    explorer = sv.explore(sv.open(tmp_path / "empty"))
    assert drawn(explorer._list)["empty"] == "empty has no recorded rollouts yet." and explorer.rollout is None
    explorer.step(1)
    torn = Path(shutil.copytree(path, tmp_path / "torn"))
    (torn / "rollouts" / "step-000005.rank0.parquet").write_bytes(b"PAR1 torn")
    explorer = sv.explore(sv.open(torn))
    assert {r["step"] for r in explorer.rows} == {1, 9, 13, 17, 21}
    assert any("step 5 could not be read" in note for note in drawn(explorer._list)["notices"])
    explorer.narrow(text="count")
    assert {r["step"] for r in explorer.rows} == {1, 9, 13, 17, 21}
    explorer.read(5, 0, 0)
    assert explorer.rollout is None and "cannot be shown" in drawn(explorer._tabs._widgets["Ribbon"])["words"]
    shutil.rmtree(torn)
    explorer.read(9, 0, 0)
    assert "no recorded rollouts" in drawn(explorer._tabs._widgets["Ribbon"])["words"]


def test_what_training_writes_later_is_found_on_request(tmp_path):
    path = write_run(tmp_path / "growing", steps=4)
    explorer = sv.explore(sv.open(path))
    before = explorer.current
    Recorder(path).rollouts(9, [row(9, 0, 0, text="<think> late </think>")], {})
    explorer.refresh()
    assert {r["step"] for r in explorer.rows} == {1, 9} and explorer.current == before
    assert explorer._controls._made["steps"].max == 9


# --- following -------------------------------------------------------------------------------------------------------

WRITER = """
import sys
from segpo_core.record.store import Recorder
from tests.fakes.fake_run import row
recorder = Recorder(sys.argv[1])
for line in sys.stdin:
    step = int(line)
    if step == 0:
        recorder.start({"method": "sapo", "max_steps": 3})
    else:
        recorder.metrics(step, {"reward": step / 10, "train/answer": 0.5})
        rows = [row(step, 0, i, text=f"<think> step {step} </think>", reward=float(i)) for i in range(2)]
        recorder.rollouts(step, rows, {})
    print("written", flush=True)
"""


@pytest.fixture
def writer(tmp_path):
    """write(step) -> another process writes it through the recorder; step 0 begins the run in `tmp_path / 'run'`."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip

    def write(step: int) -> None:
        process.stdin.write(f"{step}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "written\n"

    yield write
    process.stdin.close()
    assert process.wait(30) == 0


async def until(holds, seconds: float = 30.0) -> None:
    """Let the loop run until it holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        await asyncio.sleep(0.01)


def said(follower) -> str:
    return drawn(follower._status)["words"]


def test_a_run_is_followed_from_before_it_is_there_to_its_end(tmp_path, writer):
    async def main():
        threads = threading.active_count()
        follower = sv.follow(tmp_path / "run", every=0.02)
        assert follower.state == "waiting" and "is not there yet" in said(follower)
        write = lambda step: asyncio.to_thread(writer, step)  # noqa: E731
        await write(0)
        await until(lambda: follower.state == "running")
        assert "no step yet" in said(follower)
        await write(1)
        await until(lambda: follower.rollout is not None)
        assert drawn(follower._board)["charts"] and drawn(follower._ribbon)["key"].startswith("1/0/")
        assert {r["key"]["step"] for r in drawn(follower._list)["rows"]} == {1}
        await write(2)
        await until(lambda: drawn(follower._ribbon)["key"].startswith("2/"))
        assert "step 2 of 3" in said(follower)

        follower._list._handle_custom_msg({"open": {"step": 2, "group": 0, "sample": 1}}, [])
        assert follower.pinned and follower.rollout.row["sample"] == 1
        for message in ({"sort": "sample"}, {"step": -1, "from": "2/0/1"}, {"step": 1, "from": "2/0/0"}):
            follower._list._handle_custom_msg({"ask": message}, [])
        assert drawn(follower._list)["sort"] == "sample" and drawn(follower._list)["current"] == "2/0/1"
        await write(3)
        await until(lambda: follower.state == "finished")
        assert drawn(follower._ribbon)["key"] == "2/0/1" and "rollout 2/0/1 stays" in said(follower)
        assert drawn(follower._board)["charts"][0]["lines"][0]["x"] == [1, 2, 3]
        follower.pinned = False
        assert drawn(follower._ribbon)["key"].startswith("3/0/")

        follower.close()
        assert follower.state == "stopped"
        await asyncio.sleep(0)
        assert not [task for task in asyncio.all_tasks() if "segviz" in task.get_name()]
        return threads

    assert asyncio.run(main()) >= threading.active_count()


def test_who_chooses_a_token_reads_and_is_left_in_peace(tmp_path, writer):
    async def main():
        writer(0), writer(1)
        follower = sv.follow(str(tmp_path / "run"), every=0.02)
        reading = drawn(follower._ribbon)["key"]
        follower._ribbon.selection = {"key": reading, "token": 2, "segment": 0, "node": None}
        assert follower.pinned and follower.selection["token"] == 2
        writer(2)
        await until(lambda: follower._newest == 2)
        assert drawn(follower._ribbon)["key"] == reading
        follower.stop()

    asyncio.run(main())


def test_a_paused_follower_changes_only_its_first_line(tmp_path, writer):
    async def main():
        writer(0), writer(1)
        follower = sv.follow(sv.open(tmp_path / "run"), every=0.02)
        follower.paused = True
        before = [widget.data for widget in (follower._board, follower._list, follower._ribbon)]
        writer(2)
        await until(lambda: "step 2 of 3" in said(follower))
        assert "Paused" in said(follower)
        assert before == [widget.data for widget in (follower._board, follower._list, follower._ribbon)]
        follower.paused = False
        assert drawn(follower._ribbon)["key"].startswith("2/")
        follower._stop.click()
        assert follower.state == "stopped" and follower._pause.disabled

    asyncio.run(main())


def test_a_run_that_stalls_vanishes_or_comes_again_is_said_to(tmp_path):
    path = write_run(tmp_path / "run", steps=5)
    old = time.time() - 3600
    for step, file in enumerate(sorted((path / "metrics").iterdir())):
        os.utime(file, (old + 2 * step, old + 2 * step))
    os.utime(path / "run.json", (old, old))
    (path / "metrics" / "step-000005.parquet").unlink()

    async def main():
        follower = sv.follow(path, every=60)
        assert follower.state == "stalled" and "No new file for 60 min; a step took 2 s" in said(follower)
        Recorder(path).metrics(4, {"reward": 1.0})
        follower.look()
        assert follower.state == "running"
        board = follower._board.data
        shutil.rmtree(path)
        follower.look()
        assert follower.state == "vanished" and "was removed. run: step 4 of 5" in said(follower)
        assert follower._board.data == board
        path.mkdir()
        (path / "notes.txt").touch()
        follower.look()
        assert follower.state == "vanished"
        write_run(path, "grpo", steps=2)
        follower.look()
        assert follower.state == "finished" and follower.rollout.row["method"] == "grpo"
        (path / "run.json").write_text('{"schema_version": 99}')
        follower.look()
        assert follower.state == "unreadable" and "schema version 99" in said(follower)
        follower.close()

    asyncio.run(main())


def test_what_cannot_be_followed_is_said_at_once(tmp_path):
    async def follow(*arguments):
        return sv.follow(*arguments)

    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        asyncio.run(follow(tmp_path / "file"))
    with pytest.raises(ValueError, match="every=0"):
        asyncio.run(follow(tmp_path, 0))
    with pytest.raises(RuntimeError, match="none is running here"):
        sv.follow(tmp_path)

    async def folder():
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "a.txt").touch()
        follower = sv.follow(tmp_path / "folder")
        assert follower.state == "waiting" and "no run.json yet" in said(follower) and "a.txt" in said(follower)
        follower.close()

    asyncio.run(folder())


def test_only_changed_metrics_files_are_read_again(tmp_path, monkeypatch):
    path = write_run(tmp_path / "run", steps=6, rollouts=False)
    run, read = sv.open(path), []
    real = read_table
    monkeypatch.setattr(
        "segviz.runs.series.read_table", lambda file, schema: (read.append(Path(file).name), real(file, schema))[1]
    )
    assert run.metrics == sv.open(path).metrics and len(read) == 14
    read.clear()
    assert run.metrics is run.metrics and not read
    Recorder(path).metrics(7, {"reward": 0.25})
    assert run.metrics["reward"].steps[-1] == 7 and read == ["step-000007.parquet"]
    (path / "metrics" / "step-000007.parquet").unlink()
    (path / "metrics" / "step-000002.parquet").write_bytes(b"torn")
    assert 7 not in run.metrics["reward"].steps and 2 not in run.metrics["reward"].steps
    assert any("step-000002.parquet could not be read" in note for note in run.problems)


def test_a_torn_rollouts_file_is_named_while_following(tmp_path):
    path = write_run(tmp_path / "run", steps=5)
    (path / "rollouts" / "step-000005.rank0.parquet").write_bytes(b"torn")

    async def main():
        follower = sv.follow(path)
        assert follower.state == "finished"
        assert any("step 5 could not be read" in note for note in drawn(follower._status)["notes"])
        follower.close()

    asyncio.run(main())
