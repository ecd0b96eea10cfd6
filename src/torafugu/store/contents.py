"""What was said, apart from what happened: the messages and tools of a request, each stored once under its SHA-256.

An agent sends its whole history with every request. `split` takes the messages out of an `Accepted` event, `join` puts
them back: join(split(e)) == e. The event that stays is a whole `Accepted` without messages, readable when retention has
dropped what it refers to.
"""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from collections.abc import Mapping, Sequence

import msgspec

from ..errors import StoreError
from ..events import Accepted
from ..types import Json, Message

__all__ = ["Content", "References", "Sharing", "drop", "find_sharing", "join", "put", "split", "take"]

COMPRESS_FROM_BYTES = 1024
# Measured on prose: level 1 makes 94 MB/s at half the size, level 6 30 MB/s at 45 %; others wait while we compress.
COMPRESS_LEVEL = 1
_SECONDS_PER_DAY = 86400

# Only a run's first event refers to contents. From the runs, since their events are many times as large.
_SELECT_USERS = """
SELECT used.atom, max(runs.id)
FROM runs
CROSS JOIN events ON events.run_id = runs.id AND events.seq = 1
CROSS JOIN json_tree(events.contents) AS used
WHERE runs.rowid > :after AND runs.id <> :run_id AND used.atom IN (SELECT value FROM json_each(:ids))
GROUP BY used.atom
"""

_message_decoder = msgspec.json.Decoder(Message)
_tools_decoder = msgspec.json.Decoder(tuple[Json, ...])


class Content(msgspec.Struct, frozen=True):
    """One piece of what was said, as JSON."""

    sha256: bytes
    json: bytes


class References(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which contents belong to an event: ids in the table `contents`."""

    messages: tuple[int, ...]
    tools: int | None = None


class Sharing(msgspec.Struct, frozen=True):
    """Which contents a run has, and who else uses them, as of a moment."""

    ids: tuple[int, ...]
    users: Mapping[int, str]
    """Of those that are shared, one other run each."""
    last_run: int
    """Row of the youngest run that was looked at. Runs are never deleted, so later ones have higher rows."""


def split(event: Accepted) -> tuple[Accepted, list[Content], Content | None]:
    """The event without what was said, its messages, its tools."""
    request = event.request
    messages = [_content(message) for message in request.messages]
    tools = _content(request.sampling.tools) if request.sampling.tools else None
    bare = msgspec.structs.replace(request, messages=(), sampling=msgspec.structs.replace(request.sampling, tools=()))
    return msgspec.structs.replace(event, request=bare), messages, tools


def join(event: Accepted, messages: Sequence[bytes], tools: bytes | None) -> Accepted:
    """The event as it was."""
    sampling = event.request.sampling
    if tools is not None:
        sampling = msgspec.structs.replace(sampling, tools=_tools_decoder.decode(tools))
    said = tuple(_message_decoder.decode(message) for message in messages)
    return msgspec.structs.replace(
        event, request=msgspec.structs.replace(event.request, messages=said, sampling=sampling)
    )


def put(connection: sqlite3.Connection, content: Content, *, at: float) -> int:
    """The content's id, stored if it is seen for the first time; marks the day of its last use, for retention."""
    day = int(at // _SECONDS_PER_DAY)
    row = connection.execute("SELECT id, used_on FROM contents WHERE sha256 = ?", (content.sha256,)).fetchone()
    if row is None:
        stored = content.json
        if len(stored) >= COMPRESS_FROM_BYTES:
            stored = zlib.compress(stored, COMPRESS_LEVEL)
        cursor = connection.execute(
            "INSERT INTO contents (sha256, used_on, json) VALUES (?, ?, ?)", (content.sha256, day, stored)
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid
    if row[1] < day:
        connection.execute("UPDATE contents SET used_on = ? WHERE id = ?", (day, row[0]))
    return int(row[0])


def take(connection: sqlite3.Connection, id: int) -> bytes:
    """The content's JSON.

    Raises:
        StoreError: it is not there, or not what was stored.
    """
    row = connection.execute("SELECT sha256, json FROM contents WHERE id = ?", (id,)).fetchone()
    if row is None:
        raise StoreError(f"content {id} is missing from the store")
    sha256, stored = row
    try:  # JSON never begins with the byte that zlib begins with
        content = zlib.decompress(stored) if stored[:1] == b"\x78" else bytes(stored)
    except zlib.error:
        content = b""
    if hashlib.sha256(content).digest() != sha256:
        raise StoreError(f"content {id} is damaged: its SHA-256 is not {sha256.hex()}")
    return content


def find_sharing(connection: sqlite3.Connection, run_id: str) -> Sharing:
    """Looks at every run's references: about 0.3 s for 100,000 runs, so this is for a connection that only reads."""
    (last_run,) = connection.execute("SELECT coalesce(max(rowid), 0) FROM runs").fetchone()
    row = connection.execute("SELECT contents FROM events WHERE run_id = ? AND seq = 1", (run_id,)).fetchone()
    ids: tuple[int, ...] = ()
    if row is not None and row[0] is not None:
        references = msgspec.json.decode(row[0], type=References)
        ids = tuple(dict.fromkeys([*references.messages, *([] if references.tools is None else [references.tools])]))
    return Sharing(ids=ids, users=_users(connection, run_id, ids, after=0), last_run=last_run)


def drop(connection: sqlite3.Connection, run_id: str, sharing: Sharing) -> bool:
    """Removes what the run alone uses. False, and nothing is removed: one of `sharing.users` has been forgotten since,
    so that what it shared may have nobody else now.
    """
    for user in set(sharing.users.values()):
        if connection.execute("SELECT 1 FROM events WHERE run_id = ? AND seq = 1", (user,)).fetchone() is None:
            return False
    later = _users(connection, run_id, sharing.ids, after=sharing.last_run)
    alone = [(id,) for id in sharing.ids if id not in sharing.users and id not in later]
    connection.executemany("DELETE FROM contents WHERE id = ?", alone)
    return True


def _users(connection: sqlite3.Connection, run_id: str, ids: tuple[int, ...], *, after: int) -> dict[int, str]:
    if not ids:
        return {}
    wanted = {"run_id": run_id, "ids": msgspec.json.encode(ids).decode(), "after": after}
    return dict(connection.execute(_SELECT_USERS, wanted).fetchall())


def _content(value: Message | tuple[Json, ...]) -> Content:
    encoded = msgspec.json.encode(value)
    return Content(hashlib.sha256(encoded).digest(), encoded)
