"""Disks that fill up, run out of inodes, become read-only or lose a directory, under a run that is at work.

The disks are real: a tmpfs of a few megabytes, mounted where no other process sees it (a namespace of its own; a user's
rights do where the system allows it). A training goes on as if nothing had been, or says what is wrong and goes on
later from where it was; in both cases it has learnt, in the end, what an undisturbed one learns.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import shutil
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segpo_core.algos import GRPO
from segpo_core.record import store
from segpo_core.training import checkpoint
from segpo_core.training.loop import Trainer
from tests.fakes.forks import forked
from tests.fakes.toy import ToyTask
from tests.training.test_loop import config_for

STEPS, HARM, MEND = 8, 3, 6  #: steps of a run; after this one the disk is harmed, after that one mended
_NEWUSER, _NEWNS, _PRIVATE, _RDONLY, _REMOUNT, _BIND = 0x10000000, 0x20000, 0x44000, 1, 32, 4096


def called(name: str, *arguments: Any) -> None:
    """A function of the system.

    Raises:
        OSError: the system does not allow it.
    """
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def apart() -> None:
    """Give this process mounts that no other sees.

    Raises:
        OSError: the system does not allow it.
    """
    user, group = os.getuid(), os.getgid()
    try:
        called("unshare", _NEWNS)
    except OSError:
        called("unshare", _NEWUSER | _NEWNS)
        for name, said in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path(f"/proc/self/{name}").write_text(said)
    called("mount", b"none", b"/", None, _PRIVATE, None)


def fill(disk: Path) -> None:
    with open(disk / "filler", "wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC


def no_inodes(disk: Path) -> None:
    (disk / "fillers").mkdir()
    try:
        for i in range(10**6):
            (disk / "fillers" / str(i)).touch()
    except OSError as error:
        assert error.errno == errno.ENOSPC


def emptied(disk: Path) -> None:
    (disk / "filler").unlink(missing_ok=True)
    shutil.rmtree(disk / "fillers", ignore_errors=True)


def read_only(disk: Path) -> None:
    """For everything that is opened from now on; what is open, such as the trainer's lock, stays as it is."""
    place = os.fsencode(disk)
    called("mount", place, place, None, _BIND, None)
    called("mount", b"none", place, None, _BIND | _REMOUNT | _RDONLY, None)


def writable(disk: Path) -> None:
    called("umount2", os.fsencode(disk), 2)  # 2: although a reader may have something of it open


def short_files(disk: Path) -> None:
    """A quota of another kind: no file may be larger than 100 kB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # Python does so as well: the write fails with EFBIG
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))


def long_files(disk: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def gone(name: str) -> Callable[[Path], None]:
    return lambda disk: shutil.rmtree(disk / "run" / name)


def nothing(disk: Path) -> None:
    pass


OPTIONS = b"size=12m,nr_inodes=600"
#: What happens: (harm after step `HARM`, what makes it good again, whether that is in time).
CASES: dict[str, tuple[Callable[[Path], None], Callable[[Path], None], bool]] = {
    "full, freed later": (fill, emptied, True),
    "full to the end": (fill, emptied, False),
    "no inodes, freed later": (no_inodes, emptied, True),
    "no inodes to the end": (no_inodes, emptied, False),
    "read-only, then writable": (read_only, writable, True),
    "read-only to the end": (read_only, writable, False),
    "files may not grow, then may": (short_files, long_files, True),
    "files may not grow to the end": (short_files, long_files, False),
    "metrics/ removed": (gone("metrics"), nothing, True),
    "rollouts/ removed": (gone("rollouts"), nothing, True),
    "checkpoints/ removed": (gone("checkpoints"), nothing, True),
    "the run removed": (gone(""), nothing, True),
}


def trained(model: Path, out: Path, on_step: Callable[[int], None] = lambda step: None, **changes: Any) -> Trainer:
    config = config_for(model, out, GRPO(), max_steps=STEPS, save_steps=2, save_total_limit=99, **changes)
    trainer = Trainer(config, task=ToyTask(images=False), on_step=lambda step, *rest: on_step(step))
    trainer.run()
    return trainer


def weights(run: Path) -> bytes:
    return (checkpoint.latest(run / "checkpoints") / "model.safetensors").read_bytes()


def undisturbed(model: Path, place: Path) -> Path:
    """A run that nothing happens to."""
    return trained(model, place / "undisturbed").directory


def case(name: str, whole: str, place: str, real: bool) -> None:
    """One case, in a process of its own. What came of it goes into outcome.json: `cannot`, `wrong`, or neither."""
    folder, outcome = Path(place), dict[str, str]()
    try:
        if real:
            apart()
            called("mount", b"none", os.fsencode(folder / "disk"), b"tmpfs", 0, OPTIONS)
    except OSError as error:
        outcome["cannot"] = str(error)
    try:
        if not outcome:
            outcome["wrong"] = _case(name, Path(whole), folder)
    except BaseException:
        outcome["wrong"] = traceback.format_exc()
    long_files(folder)
    (folder / "outcome.json").write_text(json.dumps(outcome))
    os._exit(0)


def _case(name: str, whole: Path, folder: Path) -> str:
    """What is wrong; nothing: an empty text."""
    harm, mend, in_time = CASES[name]
    model = Path(store.read_manifest(whole)["config"]["model_name_or_path"])
    disk, checkpoint.WAITS = folder / "disk", (0.01, 0.01)
    at = {HARM: harm} | ({MEND: mend} if in_time else {})
    said = ""
    try:
        trained(model, disk / "run", lambda step: at.get(step, nothing)(disk))
    except OSError as error:
        said = str(error)
    if in_time == bool(said):
        return f"the run {'ended with: ' + said if said else 'said nothing'}"
    if not in_time:
        mend(disk)
        trained(model, disk / "run", resume=True)
    if weights(disk / "run") != weights(whole):
        return "something else was learnt"
    steps = list(range(HARM + 1 if name in ("metrics/ removed", "the run removed") else 1, STEPS + 1))
    if store.metric_steps(disk / "run") != steps:
        return f"metrics of steps {store.metric_steps(disk / 'run')}"
    if not (disk / "run" / "run.json").exists() or STEPS not in store.rollout_steps(disk / "run"):
        return "run.json or the last rollouts are missing"
    if left := list((disk / "run").rglob(".*")):
        return f"left behind: {left[0]}"
    return ""


def tried(name: str, whole: Path, place: Path) -> dict[str, str]:
    """What came of a case, held against the run `whole`. Where the system allows no mounts, those that need
    none are tried on the disk at hand."""
    (place / "disk").mkdir(parents=True)
    for real in (True, False):
        process = forked.Process(target=case, args=(name, str(whole), str(place), real))
        process.start()
        process.join()
        outcome = json.loads((place / "outcome.json").read_text())
        if "cannot" not in outcome or CASES[name][0] in (fill, no_inodes, read_only):
            break
    return outcome
