"""One trainer a run directory: two of them would mix their steps in one record.

RUN/trainer.lock says who trains there, and two things keep others out. On one machine the system's own lock (`flock`)
does: that of a process which died, however it died, is free at once. Across machines, and on file systems that carry no
locks, the owner gives a sign of life every `BEAT` seconds. Who comes next takes the lock over when there was none for
`STALE` seconds: by the clock of the file system, which alone dates both files, or by waiting so long. It is taken by a
rename, and who held it before finds that out before the next thing that is written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import stat
import threading
import time
import weakref
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from segpo_core.record.files import read_plain
from segpo_core.training.together import everyone

LOCK = "trainer.lock"
BEAT = 10.0  #: seconds between two signs of life
STALE = 60.0  #: seconds without one after which an owner elsewhere counts as dead
WIDTH = 512  #: bytes of a record, always the same, so that no reader meets half of a longer one
LONGEST = 4096  #: bytes of a lock that are read
log = logging.getLogger(__name__)


class TakenOver(OSError):
    """Another trainer has the run directory now."""


class Hold:
    """Holds a run directory from its making until `release`, or the end of the process.

    Raises:
        ValueError: another trainer holds it; it is named with host, process and start.
    """

    def __init__(self, directory: Path):
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / LOCK
        self.owner = {
            "host": socket.gethostname(), "process": os.getpid(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(), "processes": _processes(), "born": _born(os.getpid()),
            "token": secrets.token_hex(8), "beat": 0,
        }  # fmt: skip
        self._handles = [self._take()]  # open for as long as the lock is held
        stop = threading.Event()
        thread = threading.Thread(target=_beats, args=(weakref.ref(self), stop), name="hold", daemon=True)
        #: Also where the trainer is dropped, and at the end of the process.
        self.release = weakref.finalize(self, _let_go, self.path, self.owner["token"], self._handles, stop, thread)
        thread.start()

    def lost(self) -> str:
        """Who has taken the directory over meanwhile, in a sentence; nothing: it is still ours, or was let go."""
        if not self.release.alive:
            return ""
        try:
            text = read_plain(self.path)
        except OSError:  # removed, or the file system is away: nobody else is to be seen
            return ""
        owner = _parsed(text)
        if owner.get("token") == self.owner["token"] or (text.strip() and not owner):  # the latter: torn
            return ""
        who = f"by {_named(owner)}" if owner else "by another trainer, which has ended since,"
        return (
            f"{self.path.parent} was taken over {who} after this process had given no sign of life for {STALE:.0f} s: "
            "it ends here and writes no more; what it saved before stands, and the other one went on from there"
        )

    def check(self) -> None:
        """Raise TakenOver where that is so."""
        if lost := self.lost():
            raise TakenOver(lost)

    # --- taking ------------------------------------------------------------------------------------------------------

    def _take(self) -> int:
        """Take the lock as soon as nobody who lives has it. Returns the open file."""
        seen, since = b"", 0.0
        while True:
            old = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
            try:
                if not stat.S_ISREG(os.fstat(old).st_mode):
                    raise ValueError(f"{self.path} is no plain file: remove it")
                locks = self._locked(old)
                if not _is_at(old, self.path):  # somebody has just taken it over, or removed it
                    continue
                text = _read(old)
                owner = _parsed(text)
                if not owner or (_here(owner) and (locks or not _lives(owner))):
                    if (own := self._own(text)) is not None:
                        return own
                    continue
                if _here(owner) or (seen and text != seen):
                    raise ValueError(self._refusal(owner))
                age = self._now() - os.fstat(old).st_mtime
                if not seen:
                    seen, since = text, time.monotonic()
                    if age < STALE:
                        log.warning(
                            "%s was last trained by %s, %.0f s ago: waiting at most %.0f s for a sign of its life",
                            self.path.parent, _named(owner), age, STALE,
                        )  # fmt: skip
                if age >= STALE or time.monotonic() - since >= STALE:
                    log.warning("%s: %s gives no sign of life and is taken for dead", self.path.parent, _named(owner))
                    if (own := self._own(text)) is not None:
                        return own
                    continue
            except FileNotFoundError:  # what was just to become the lock was swept away
                continue
            finally:
                os.close(old)
            time.sleep(BEAT / 5)

    def _locked(self, handle: int) -> bool:
        """Whether the system's own lock was got; False: the file system knows none.

        Raises:
            ValueError: another process has it.
        """
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise ValueError(self._refusal(_parsed(_read(handle)))) from None
            return False

    def _own(self, text: bytes) -> int | None:
        """Put our record in the place of `text`, at once; None: something else stands there by now. Two on different
        machines may do so at the same moment: the later one has it, and the other sees that by `lost` before it writes
        anything."""
        temporary = self._temporary()
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with contextlib.suppress(OSError):  # no locks here
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.pwrite(handle, self._record(), 0)
            if read_plain(self.path)[:LONGEST] == text:
                os.replace(temporary, self.path)
                return handle
        except BaseException:
            os.close(handle)
            raise
        finally:
            temporary.unlink(missing_ok=True)
        os.close(handle)
        return None

    def _now(self) -> float:
        """The time by the clock of the file system: that of a file which is just being written."""
        temporary = self._temporary()
        try:
            temporary.write_bytes(b"now")
            return temporary.stat().st_mtime
        finally:
            temporary.unlink(missing_ok=True)

    def _temporary(self) -> Path:
        return self.path.with_name(f".{LOCK}.{self.owner['token']}.{os.getpid()}.tmp")

    def _refusal(self, owner: Mapping[str, Any]) -> str:
        who = _named(owner) if owner else "another process"  # it is just writing its name
        return f"{self.path.parent} is being trained by {who}: wait for its end, stop it, or name another --output-dir"

    # --- holding -----------------------------------------------------------------------------------------------------

    def _record(self) -> bytes:
        return json.dumps(self.owner).encode().ljust(WIDTH)

    def beat(self) -> bool:
        """Give a sign of life; False: the lock is another's now, and is left alone."""
        self.owner["beat"] += 1
        try:
            # by its name: who took it over put another file there, and what is written here meanwhile is nobody's
            with open(self.path, "r+b", buffering=0) as file:
                if (owner := _parsed(file.read())).get("token") != self.owner["token"]:
                    return not owner
                file.seek(0)
                file.write(self._record())
        except FileNotFoundError:  # the run was removed, and is made again
            with contextlib.suppress(OSError):
                self._handles.append(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
                os.pwrite(self._handles[-1], self._record(), 0)
                fcntl.flock(self._handles[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # the next one may get through
            log.debug("%s: no sign of life: %s", self.path, error)
        return True


def still_held(hold: Hold | None) -> None:
    """See, before something is written, that the run directory is still ours. Every process must call it; the main one
    has the hold.

    Raises:
        TakenOver: another trainer has it; every process says so.
    """
    told = [text for text in everyone([hold.lost() if hold is not None else ""]) if text]
    if told:
        raise TakenOver(told[0])


def _beats(held: weakref.ref[Hold], stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        hold = held()
        if hold is None or not hold.beat():
            return
        del hold


def _let_go(path: Path, token: str, handles: list[int], stop: threading.Event, thread: threading.Thread) -> None:
    """Let the next one have it. The file stays: removing it would free a name that another may be opening."""
    stop.set()
    if thread is not threading.current_thread() and thread.is_alive():
        thread.join(2.0)  # it may be writing just now; a file system that hangs is not waited for
    with contextlib.suppress(OSError), open(path, "r+b", buffering=0) as file:
        owner = _parsed(file.read())
        if owner.get("token") == token and owner.get("process") == os.getpid():  # not in a fork of the trainer
            file.truncate(0)
    for handle in handles:
        os.close(handle)


def machine() -> str:
    """What tells this machine, since it was started, from every other: a host's name may be used twice."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _processes() -> int:
    """What tells the processes of this container from those of another one on the machine."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _born(process: int) -> str:
    """When a process was started, so that another one of its number is not taken for it; "" of one that has ended."""
    try:
        state, *facts = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else facts[18]


def _here(owner: Mapping[str, Any]) -> bool:
    """Whether an owner was on this machine; those of earlier versions say only the host."""
    return owner["machine"] == machine() if "machine" in owner else owner["host"] == socket.gethostname()


def _lives(owner: Mapping[str, Any]) -> bool:
    """Whether an owner on this machine lives; only asked where the file system has no locks."""
    if owner.get("processes") == _processes() and os.path.exists("/proc/self/stat"):
        return _born(owner["process"]) == owner.get("born")
    try:
        os.kill(owner["process"], 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _read(handle: int) -> bytes:
    return os.pread(handle, LONGEST, 0)


def _parsed(text: bytes) -> dict[str, Any]:
    """The owner that a record names; empty: none, or it cannot be read."""
    try:
        owner = json.loads(text)
        host, process, started = str(owner["host"])[:64], int(owner["process"]), str(owner["started"])[:32]
        return {**owner, "host": host, "process": process, "started": started}
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return {}


def _named(owner: Mapping[str, Any]) -> str:
    return f"process {owner['process']} on {owner['host']} since {owner['started']}"
