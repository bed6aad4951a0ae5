"""One trainer a run directory: two of them would mix their steps in one record.

The lock is the system's own (`flock` on RUN/trainer.lock), so that of a trainer which died, however it died, is free at
once. The file says who holds it. On a network file system it holds across machines as far as that carries locks.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

LOCK = "trainer.lock"
log = logging.getLogger(__name__)


class Hold:
    """Holds a run directory from its making until `release`, or the end of the process.

    Raises:
        ValueError: another trainer holds it; it is named with host, process and start.
    """

    def __init__(self, directory: Path):
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / LOCK
        self.handle = open(path, "a+", encoding="utf-8")  # open for as long as the lock is held
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                owner = self._owner()
                self.handle.close()
                raise ValueError(
                    f"{directory} is being trained by {owner}: wait for its end, stop it, or name another --output-dir"
                ) from None
            log.warning("%s: the file system knows no locks, so nothing keeps a second trainer out: %s", path, error)
        self.handle.truncate(0)
        owner = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.handle.write(json.dumps(owner))
        self.handle.flush()

    def _owner(self) -> str:
        self.handle.seek(0)
        try:
            owner = json.loads(self.handle.read(1000))
            return f"process {owner['process']} on {owner['host']} since {owner['started']}"
        except (ValueError, KeyError, TypeError):  # it is just writing its name
            return "another process"

    def release(self) -> None:
        """Let the next one have it. The file stays: removing it would free a name that another may be opening."""
        self.handle.close()
