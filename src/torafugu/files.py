"""Files that outlive a crash: written whole or not at all, and lines of which the last may be torn."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["drop_torn_line", "force_to_disk", "read_first_line", "write_whole"]


def write_whole(path: Path, content: bytes) -> None:
    """Whole or not at all, and on the disk. One writer at a time.

    Raises:
        OSError: it could not be written, and what was there is there still; or nobody knows if it is on the disk yet.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    force_to_disk(path.parent)


def force_to_disk(path: Path) -> int:
    """A file or a folder. -> its length in bytes, 0 when there is none."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return 0
    try:
        os.fsync(file)
        return os.fstat(file).st_size
    finally:
        os.close(file)


def read_first_line(path: Path) -> bytes | None:
    """What says whose file it is, before anything in it is changed. None: there is no file, or nothing in it."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        return file.readline() or None


def drop_torn_line(path: Path) -> list[bytes]:
    """Of a file that is only appended to: its whole lines; none when there is no file. Half a line at the end, of
    somebody who was killed while writing it, is taken off the file too.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        torn = lines.pop()
        with path.open("rb+") as file:
            file.truncate(path.stat().st_size - len(torn))
    return lines
