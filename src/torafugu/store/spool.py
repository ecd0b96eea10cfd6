"""Events that the database would not take, in a file beside it: `<database>.spool-<owner>`.

One JSON object per line, in the order in which they happened; a line is an event's one stored form with its run and
number. It is read when the database takes writes again, or at the next opening by whoever finds its owner dead.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from ..events import event_from_json, event_to_json
from .ledger import Entry, prepare

__all__ = ["append_to_spool", "find_spools", "read_spool", "spool_path"]

log = logging.getLogger(__name__)


class _Line(msgspec.Struct, frozen=True):
    run: str
    seq: int
    stored: msgspec.Raw


_decoder = msgspec.json.Decoder(_Line)


def spool_path(database: Path, owner: str) -> Path:
    return database.with_name(f"{database.name}.spool-{owner}")


def find_spools(database: Path) -> list[tuple[Path, str]]:
    """(file, its owner), for every spool beside the database."""
    prefix = spool_path(database, "").name
    names = sorted(path.name for path in database.parent.iterdir() if path.name.startswith(prefix))
    found = [(database.with_name(name), name.removeprefix(prefix)) for name in names]
    return [(path, owner) for path, owner in found if not owner.endswith(".damaged")]


def append_to_spool(path: Path, entries: Iterable[Entry]) -> None:
    """All of them, on disk when this returns.

    Raises:
        OSError: they are not; the file is as it was, up to a torn last line.
    """
    lines = b"".join(_encode_line(entry) for entry in entries)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(file).st_size
        try:
            _write_all(file, lines)
            os.fsync(file)
        except OSError:
            os.ftruncate(file, size)
            raise
    finally:
        os.close(file)


def read_spool(path: Path) -> Iterator[Entry]:
    """The entries that can be read. A file with others is kept as `.damaged`, and said so in the log."""
    damaged = 0
    try:
        lines = path.read_bytes()
    except FileNotFoundError:  # another process, opening the store as well, has recovered it
        return
    for line in lines.splitlines():
        try:
            found = _decoder.decode(line)
            at, event = event_from_json(bytes(found.stored))
            entry = prepare(found.run, found.seq, at, event)
        except (ValueError, TypeError, RecursionError):
            damaged += 1
            continue
        yield entry
    if damaged:
        kept = path.with_name(path.name + ".damaged")
        kept.touch(mode=0o600)
        kept.write_bytes(lines)
        log.error(
            "%s: %d lines are unreadable; the rest is recovered, the file is kept as %s", path, damaged, kept.name
        )


def _encode_line(entry: Entry) -> bytes:
    stored = msgspec.Raw(event_to_json(entry.event, at=entry.at))
    return msgspec.json.encode(_Line(entry.run_id, entry.seq, stored)) + b"\n"


def _write_all(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]
