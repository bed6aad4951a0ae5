"""Rollouts and nodes of a long run, put together every so many steps: at any moment every step is there, once."""

import os
import shutil
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segpo_core.record import files, store, together
from tests.fakes.fake_run import row

FEW = 5


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # hundreds of files; no power will be cut
    monkeypatch.setattr(together, "TOGETHER", FEW)
    monkeypatch.setattr(together, "SETTLED", 0.0)


def node(step, group, number=0):
    found = dict.fromkeys(store.NODE_SCHEMA.names)
    return found | {"step": step, "group": group, "node": number, "parent": number - 1, "sample": 0, "value": step / 7}


def record(path, steps, ranks=1, every=1):
    """Rollouts and nodes of some steps, each process's as it would write them."""
    recorders = [store.Recorder(path, rank) for rank in range(ranks)]
    if not (path / "run.json").exists():
        recorders[0].start({"method": "spo_tree", "max_steps": 40})
    for step in steps:
        for rank, recorder in enumerate(recorders):
            if step % every == 0:
                recorder.nodes(step, [node(step, rank, n) for n in range(2)])
                texts = [f"<think> {step} and {sample} </think>" for sample in range(2)]
                recorder.rollouts(step, [row(step, rank, n, text) for n, text in enumerate(texts)], {})
            assert recorder.failures == 0
    for recorder in recorders:
        recorder.finish()
    return path


def nodes(path, steps):
    recorder = store.Recorder(path)
    for step in steps:
        recorder.nodes(step, [node(step, 0, n) for n in range(2)])


def told(path):
    """Everything that the readers say of a run, in their order."""
    rollouts, nodes = store.read_rollouts(path), store.read_nodes(path)
    assert store.rollout_steps(path) == sorted(set(rollouts["step"].to_pylist()))
    return rollouts.to_pylist(), nodes.to_pylist()


@pytest.fixture
def plain(tmp_path, monkeypatch):
    """The same run, never put together."""

    def write(steps, **kwargs):
        with monkeypatch.context() as never:
            never.setattr(together, "TOGETHER", 10**9)
            return told(record(tmp_path / "plain", steps, **kwargs))

    return write


@pytest.mark.parametrize(("ranks", "every"), [(2, 1), (1, 3)])
def test_nothing_that_is_read_changes_and_files_are_few(tmp_path, plain, ranks, every):
    steps = range(1, 13 if every == 1 else 33)
    path = record(tmp_path / "run", steps, ranks, every)
    assert told(path) == plain(steps, ranks=ranks, every=every)
    names = sorted(os.listdir(path / "rollouts"))
    assert names == sorted(os.listdir(path / "nodes"))
    if every == 1:
        ends = ["step-000001-000005", "step-000006-000010", "step-000011", "step-000012"]
        assert names == sorted(f"{end}.rank{rank}.parquet" for end in ends for rank in range(ranks))
    else:
        assert names[0] == "step-000003-000015.rank0.parquet" and len(names) == 2


def test_a_step_is_read_without_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(together, "GROUP", 1)
    path = record(tmp_path / "run", range(1, 12))
    read, groups = [], pq.ParquetFile.read_row_groups

    def noted(file, which, *args, **kwargs):
        read.append(which)
        return groups(file, which, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "read", lambda *args, **kwargs: pytest.fail("read whole"))
    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", noted)
    table = store.read_rollouts(path, [7], ["text"])
    assert table["text"].to_pylist() == ["<think> 7 and 0 </think>", "<think> 7 and 1 </think>"]
    assert table.column_names == ["text"] and read == [[1]]
    assert store.read_rollouts(path, [40]).num_rows == 0


@pytest.mark.parametrize(("step", "ranks"), [(3, 1), (5, 1), (8, 2)])
def test_a_resumed_run_is_as_if_it_had_not_stopped(tmp_path, plain, step, ranks):
    path = record(tmp_path / "run", range(1, 12), ranks)
    whole = told(path)
    store.forget_after(path, step)
    assert told(path) == tuple([r for r in part if r["step"] <= step] for part in whole)
    assert told(record(path, range(step + 1, 12), ranks)) == whole == plain(range(1, 12), ranks=ranks)


class Killed(BaseException):
    pass


def killed_after(monkeypatch, calls):
    """Ends what runs at its `calls`th change of a directory, just before (odd) or after (even) it happens."""
    count = [0]

    def counted(do):
        def call(*args, **kwargs):
            count[0] += 1
            if count[0] == calls:
                raise Killed
            done = do(*args, **kwargs)
            count[0] += 1
            if count[0] == calls:
                raise Killed
            return done

        return call

    for module, name in ((os, "replace"), (together, "_remove")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))


@pytest.mark.parametrize("what", ["put together", "taken back"])
def test_a_kill_at_any_moment_loses_nothing_and_shows_nothing_twice(tmp_path, monkeypatch, what):
    plain = tmp_path / "plain"
    with monkeypatch.context() as never:
        never.setattr(together, "TOGETHER", 10**9)
        nodes(plain, range(1, 14))
    whole = store.read_nodes(plain).to_pylist()
    earlier = [node for node in whole if node["step"] <= 7]

    def act(path):
        if what == "taken back":
            together.take_back(path / "nodes", 7)
        else:
            together.put_together(path / "nodes", 0)
            together.remove_covered(path / "nodes", 0)

    if what == "taken back":  # some single files, some that were put together, some of both
        together.put_together(plain / "nodes", 0)
        assert store.read_nodes(plain).to_pylist() == whole
    moments, killed = 0, True
    while killed:
        moments += 1
        path = tmp_path / f"killed-{moments}"
        shutil.copytree(plain, path)
        with monkeypatch.context() as at:
            killed_after(at, moments)
            try:
                act(path)
                killed = False
            except Killed:
                pass
        now = store.read_nodes(path).to_pylist()
        if what == "put together":
            assert now == whole
        elif killed:  # of the later steps some may be gone already; none is there twice, no earlier one is missing
            assert [node for node in now if node["step"] <= 7] == earlier and all(node in whole for node in now)
            assert len({(node["step"], node["node"]) for node in now}) == len(now)
        act(path)  # the next start goes on where it stopped
        assert store.read_nodes(path).to_pylist() == (whole if what == "put together" else earlier)
    assert moments > 15
    if what == "taken back":
        nodes(path, range(8, 14))
        assert store.read_nodes(path).to_pylist() == whole


def test_readers_find_every_step_at_any_time(tmp_path, monkeypatch):
    path = record(tmp_path / "run", range(1, 4))
    done, wrong = threading.Event(), []

    def look():
        while not done.is_set():
            steps = store.read_rollouts(path, columns=["step", "sample"])["step"].to_pylist()
            if steps != [step for step in range(1, len(steps) // 2 + 1) for _ in range(2)] or len(steps) < 6:
                wrong.append(steps)
            if len(store.read_rollouts(path, [2], ["step"])) != 2:
                wrong.append("step 2")

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    monkeypatch.setattr(together, "SETTLED", 0.1)
    record(path, range(4, 25))
    done.set()
    for reader in readers:
        reader.join()
    assert not wrong
    assert store.rollout_steps(path) == list(range(1, 25))


def test_a_damaged_file_stays_alone_and_the_rest_is_put_together(tmp_path):
    path = record(tmp_path / "run", range(1, 5))
    (path / "rollouts" / "step-000003.rank0.parquet").write_bytes(b"PAR1 torn")
    record(path, range(5, 21))
    assert "step-000003.rank0.parquet" in os.listdir(path / "rollouts")
    assert store.rollout_steps(path) == list(range(1, 21))
    with pytest.raises(store.SchemaError, match="step-000003"):
        store.read_rollouts(path)
    rest = [step for step in range(1, 21) if step != 3]
    assert store.read_rollouts(path, rest, ["step"])["step"].to_pylist() == [s for s in rest for _ in range(2)]


def test_columns_that_only_some_files_have_are_kept(tmp_path):
    path = record(tmp_path / "run", range(1, 3))
    for step in (1, 2):
        file = path / "rollouts" / f"step-{step:06d}.rank0.parquet"
        table = pq.read_table(file, partitioning=None)
        pq.write_table(table.append_column("of_another_version", pa.array([step] * len(table))), file)
    record(path, range(3, 13))
    (first,) = [name for name in os.listdir(path / "rollouts") if name.startswith("step-000001")]
    assert first == "step-000001-000002.rank0.parquet"
    assert pq.read_table(path / "rollouts" / first, partitioning=None)["of_another_version"].to_pylist() == [1, 1, 2, 2]
    assert store.rollout_steps(path) == list(range(1, 13))


def test_large_files_are_full_earlier(tmp_path, monkeypatch):
    monkeypatch.setattr(together, "LARGEST", 1)
    path = record(tmp_path / "run", range(1, 11))
    assert len(os.listdir(path / "rollouts")) == 10


def test_names():
    assert files.span_of("step-000001-000200.rank3.parquet") == (1, 200, "3")
    assert files.span_of("step-000007.parquet") == (7, 7, "")
    for name in ("step-000009-000002.rank0.parquet", "step-000001-000200.rank0", "step-1.parquet", "x.parquet"):
        assert files.span_of(name) is None
    names = ["step-000001-000005.rank0.parquet", "step-000002.rank0.parquet", "step-000002.rank1.parquet",
             "step-000001-000003.rank0.parquet", "step-000006.rank0.parquet"]  # fmt: skip
    assert list(files.shown(names)) == [names[0], names[2], names[4]]
