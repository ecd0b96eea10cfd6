"""Which process a running run belongs to, and whether that process lives.

Every open store holds a lock on a small file of its own beside the database, `<database>.owner-<id>`, and its runs bear
that id. The kernel drops the lock when the process dies, however it dies: no heartbeat, no clock, no reused process id.
Two stores in one process are two owners, because flock belongs to the open file. (A child forked without exec keeps the
file open: its parent's runs count as alive until it ends.)
"""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path

__all__ = ["Owner", "forget_dead_owners", "is_alive"]


class Owner:
    """The identity under which this open store writes; alive until `release`."""

    def __init__(self, database: Path) -> None:
        """Raises OSError when the file cannot be made."""
        while True:
            self.id = secrets.token_hex(8)
            self._path = _owner_path(database, self.id)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            if _is_same_file(self._file, self._path):
                break
            os.close(self._file)  # between open and lock, another process took it for a dead owner's and removed it
        os.write(self._file, b"pid %d\n" % os.getpid())  # for people; nothing reads it

    def release(self) -> None:
        """Idempotent."""
        if self._file >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = -1


def is_alive(database: Path, owner: str) -> bool:
    """Whether the store that wrote as `owner` is still open somewhere."""
    return not _is_dead(_owner_path(database, owner), remove=False)


def forget_dead_owners(database: Path) -> None:
    """Removes the files of owners that died."""
    prefix = _owner_path(database, "").name
    for path in database.parent.iterdir():
        if path.name.startswith(prefix):
            _is_dead(path, remove=True)


def _is_dead(path: Path, *, remove: bool) -> bool:
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if remove:  # under the lock, so that whoever is about to take the file notices
            path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True


def _is_same_file(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _owner_path(database: Path, owner: str) -> Path:
    return database.with_name(f"{database.name}.owner-{owner}")
