"""The reader's notes, the table as a file, failures in groups."""

import csv
import io
import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from segviz.app.exports import export, failures
from segviz.app.notes import NONE, Changed, Notes, place
from segviz.app.rollouts import Question, ask
from segviz.app.shelf import Shelf
from tests.app.served import read_all, told
from tests.fakes.fake_run import row, write_run

KEY = (1, 0, 2)


@pytest.fixture
def notes(tmp_path):
    return Notes(tmp_path / "kept" / "notes.jsonl")


def test_a_note_is_kept_and_the_newest_one_holds(notes):
    first = notes.write("run@1", KEY, " why? ", ["odd", " odd", "two  words", ""], "")
    assert (first.text, first.labels) == ("why?", ("odd", "two words"))
    second = notes.write("run@1", KEY, "because", [], first.at)
    again = Notes(notes.path)
    assert again.of("run@1") == {KEY: second} and again.of("run@2") == {}
    assert notes.write("run@1", KEY, "", [], second.at) == NONE and notes.of("run@1") == {}
    assert notes.write("run@1", KEY, "anew", [], "").text == "anew"


def test_a_second_window_does_not_write_over_the_first(notes):
    other = Notes(notes.path)
    kept = notes.write("run@1", KEY, "mine", ["a"], "")
    with pytest.raises(Changed, match="another window meanwhile, to: a; mine"):
        other.write("run@1", KEY, "theirs", [], "")
    assert other.write("run@1", KEY, "theirs", [], kept.at).text == "theirs"


def test_several_apps_write_into_one_file(notes):
    """Each process writes notes of its own; none is lost and no line is torn."""
    code = (
        "import sys; from pathlib import Path; from segviz.app.notes import Notes\n"
        "notes = Notes(Path(sys.argv[1]))\n"
        "for i in range(20): notes.write('run@1', (int(sys.argv[2]), 0, i), 'n' * 300, [], '')"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(notes.path), str(n)]) for n in range(3)]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    assert len(notes.of("run@1")) == 60
    assert all(json.loads(line) for line in notes.path.read_text().splitlines())


def test_torn_and_strange_lines_leave_the_others(notes):
    kept = notes.write("run@1", KEY, "mine", [], "")
    with notes.path.open("ab") as sink:
        sink.write(b'{"run": "run@1", "step": 1}\n[1]\n\xff\xfe\n{"run": "ru')
    assert Notes(notes.path).of("run@1") == {KEY: kept}


@pytest.mark.parametrize(
    ("text", "labels"), [("x" * 4001, []), ("", ["x" * 41]), ("", ["a,b"]), ("", list("abcdefghijklm"))]
)
def test_what_is_too_long_is_refused(notes, text, labels):
    with pytest.raises(ValueError, match="at most|At most"):
        notes.write("run@1", KEY, text, labels, "")


def test_where_the_notes_are(monkeypatch, tmp_path):
    monkeypatch.delenv("SEGPO_NOTES", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert place() == tmp_path / "segpo" / "notes.jsonl"
    monkeypatch.setenv("SEGPO_NOTES", str(tmp_path / "mine"))
    assert place() == tmp_path / "mine"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noted")
    write_run(folder / "one", extra=[row(1, 90, 0, "=SUM(A1)", answer_right=True)])
    write_run(folder / "two", "grpo", seed=3)
    return Shelf([folder])


def test_the_table_is_filtered_by_labels(shelf, index, notes):
    every = read_all(shelf, index)["total"]
    identity = shelf.identity(shelf.place("one"))
    notes.write(identity, (1, 0, 1), "", ["odd"], "")
    notes.write(identity, (5, 1, 0), "look", [], "")
    assert ask(shelf, index, Question(), notes)["total"] == every
    answer = ask(shelf, index, Question(label="any"), notes)
    assert {(r["run"], r["step"], r["group"], r["sample"]) for r in answer["rows"]} == {
        ("one", 1, 0, 1), ("one", 5, 1, 0)
    }  # fmt: skip
    assert (answer["labels"], answer["noted"]) == (["odd"], 2)
    (found,) = ask(shelf, index, Question(label="odd"), notes)["rows"]
    assert found["labels"] == ["odd"] and found["note"] == ""
    assert ask(shelf, index, Question(label="nobody's"), notes)["total"] == 0
    assert ask(shelf, index, Question(label="odd", run="two"), notes)["total"] == 0


def test_the_filtered_table_is_a_file(shelf, index, notes):
    read_all(shelf, index)
    notes.write(shelf.identity(shelf.place("one")), (1, 90, 0), "a\n“note”", ["x", "y"], "")
    question = Question(run="one", step_to=1, sort="reward")
    wanted = ask(shelf, index, Question(run="one", step_to=1, sort="reward", limit=200), notes)["rows"]
    files = {form: export(shelf, index, question, form, notes) for form in ("csv", "parquet", "jsonl")}
    try:
        lines = [json.loads(line) for line in files["jsonl"].read_text(encoding="utf-8").splitlines()]
        table = pq.read_table(files["parquet"]).to_pylist()
        cells = list(csv.DictReader(io.StringIO(files["csv"].read_text(encoding="utf-8"), newline="")))
    finally:
        for path in files.values():
            path.unlink()
    assert table == lines and len(lines) == len(wanted) == len(cells)
    same = ("run", "step", "group", "sample", "reward", "error_kind", "labels", "note")
    assert [[line[name] for name in same] for line in lines] == [[one[name] for name in same] for one in wanted]
    odd = next(i for i, line in enumerate(lines) if line["group"] == 90)
    assert (lines[odd]["text"], lines[odd]["labels"]) == ("=SUM(A1)", ["x", "y"])
    assert cells[odd]["text"] == "'=SUM(A1)" and cells[odd]["labels"] == "x, y"  # no formula in a spreadsheet
    with pytest.raises(ValueError, match="one of csv, parquet, jsonl"):
        export(shelf, index, question, "exe")


def test_failures_come_in_groups_that_can_be_opened(shelf, index):
    read_all(shelf, index)
    found = failures(shelf, index, Question(run="one"))
    assert found["total"] == ask(shelf, index, Question(run="one", answer="wrong"))["total"] > 0
    assert {kind for kind, _ in found["groups"]["error"]} <= {"perception", "reasoning"}
    for name, groups in found["groups"].items():
        assert [many for _, many in groups] == sorted((many for _, many in groups), reverse=True)
        for value, many in groups:
            assert ask(shelf, index, Question(run="one", answer="wrong", **{name: value}))["total"] == many
    assert found["groups"]["wrong"] and found["groups"]["error"]
    none = failures(shelf, index, Question(run="one", text="no such words"))
    assert none == {"total": 0, "groups": {"error": [], "kind": [], "wrong": []}}


@pytest.mark.parametrize(
    "raw",
    [{}, [], {"run": "first", "step": -1}, {"run": "first", "step": 1, "group": 0, "sample": 0, "labels": "x"}],
)
def test_a_note_that_is_none_is_refused(address, raw):
    import http.client

    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request("POST", "/segpo/api/note", json.dumps(raw))
    answer = connection.getresponse()
    assert answer.status == 400 and json.loads(answer.read())["error"]
    connection.close()
    assert told(address, "table.exe", run="first")[0] == 400
