"""The tables, and how a connection to them is made: identity check, migrations, pragmas, errors in plain words.

Two kinds of table, so that retention can drop what was said without touching what was spent:

    ledger    runs, attempts       ids, times, tokens, money; no text of anybody
    content   events, contents     everything else; a conversation's messages once each, under their SHA-256

A database of another program, or of a newer version of this one, is refused before anything in it is changed.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from ..errors import StoreError

__all__ = ["VERSION", "connect", "connect_read_only", "store_error"]

APPLICATION_ID = 0x46554755  # "FUGU"

_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE runs (
            id TEXT PRIMARY KEY,
            accepted_at REAL NOT NULL,
            model TEXT NOT NULL,
            policy TEXT NOT NULL,
            key_id TEXT,
            session TEXT,
            body_sha256 TEXT,
            owner TEXT NOT NULL,
            status TEXT NOT NULL CHECK (
                status IN ('running', 'answered', 'failed', 'client_closed', 'interrupted', 'budget')
            ),
            stopped_by TEXT,
            workers TEXT NOT NULL DEFAULT '[]',
            calls INTEGER,
            input_tokens INTEGER,
            output_tokens INTEGER,
            cost_usd TEXT,
            latency_ms REAL,
            error_code TEXT
        )
        """,
        "CREATE INDEX runs_running ON runs (owner) WHERE status = 'running'",
        """
        CREATE TABLE attempts (
            run_id TEXT NOT NULL,
            step INTEGER NOT NULL,
            attempt INTEGER NOT NULL,
            worker TEXT NOT NULL,
            reason TEXT,
            outcome TEXT CHECK (outcome IN ('replied', 'failed')),
            code TEXT,
            input_tokens INTEGER,
            cached_input_tokens INTEGER,
            cache_write_tokens INTEGER,
            output_tokens INTEGER,
            reasoning_tokens INTEGER,
            cost_usd TEXT,
            price_source TEXT,
            latency_ms REAL,
            PRIMARY KEY (run_id, step, attempt)
        )
        """,
        """
        CREATE TABLE events (
            run_id TEXT NOT NULL,
            seq INTEGER NOT NULL,
            event BLOB NOT NULL,
            contents TEXT,
            PRIMARY KEY (run_id, seq)
        )
        """,
        """
        CREATE TABLE contents (
            id INTEGER PRIMARY KEY,
            sha256 BLOB NOT NULL UNIQUE,
            used_on INTEGER NOT NULL,
            json BLOB NOT NULL
        )
        """,
        "PRAGMA application_id = 1179993941",
        "PRAGMA user_version = 1",
    ),
    (  # runs that only show what would be called; SQLite changes a constraint only by making the table anew
        """
        CREATE TABLE runs_2 (
            id TEXT PRIMARY KEY,
            accepted_at REAL NOT NULL,
            model TEXT NOT NULL,
            policy TEXT NOT NULL,
            key_id TEXT,
            session TEXT,
            body_sha256 TEXT,
            owner TEXT NOT NULL,
            status TEXT NOT NULL CHECK (
                status IN ('running', 'answered', 'failed', 'client_closed', 'interrupted', 'budget', 'routed')
            ),
            stopped_by TEXT,
            workers TEXT NOT NULL DEFAULT '[]',
            calls INTEGER,
            input_tokens INTEGER,
            output_tokens INTEGER,
            cost_usd TEXT,
            latency_ms REAL,
            error_code TEXT
        )
        """,
        """
        INSERT INTO runs_2 SELECT id, accepted_at, model, policy, key_id, session, body_sha256, owner, status,
            stopped_by, workers, calls, input_tokens, output_tokens, cost_usd, latency_ms, error_code
        FROM runs ORDER BY rowid
        """,
        "DROP TABLE runs",
        "ALTER TABLE runs_2 RENAME TO runs",
        "CREATE INDEX runs_running ON runs (owner) WHERE status = 'running'",
        "CREATE INDEX attempts_replied ON attempts (worker) WHERE outcome = 'replied'",
        "PRAGMA user_version = 2",
    ),
)
"""One tuple of statements per version; the last of each sets `user_version`."""

VERSION = len(_MIGRATIONS)
_OLDEST_READABLE = 1
"""What reads needs no table of later versions, so that looking at a record asks nobody to change it."""

# After a burst (a long reader holds checkpoints back) the log file shrinks to this again: 64 MiB.
_LIMIT_LOG_FILE = "PRAGMA journal_size_limit = 67108864"

_ADVICE = {
    "SQLITE_BUSY": "another process holds it: end that process or wait for it",
    "SQLITE_LOCKED": "another process holds it: end that process or wait for it",
    "SQLITE_FULL": "free some space",
    "SQLITE_IOERR": "look after the disk: is it full, or failing?",
    "SQLITE_NOTADB": "move the file away, or name another",
    "SQLITE_CORRUPT": "move the file away and take a backup; `sqlite3 FILE .recover` saves what can be saved",
    "SQLITE_READONLY": "make the file and its directory writable for this user",
    "SQLITE_CANTOPEN": "make sure that the directory exists and is writable for this user",
}


def store_error(path: Path, failed: str, error: sqlite3.Error | OSError) -> StoreError:
    """`error` in our words; `failed` completes "the store ... could not be <failed>"."""
    if isinstance(error, OSError):
        return StoreError(f"store {str(path)!r} could not be {failed}: {error.strerror or error}")
    name = getattr(error, "sqlite_errorname", "")  # absent on errors that the Python module raises itself
    advice = next((text for prefix, text in _ADVICE.items() if name.startswith(prefix)), None)
    return StoreError(f"store {str(path)!r} could not be {failed}: {error}" + (f"; {advice}" if advice else ""))


def connect(path: Path, *, busy_timeout_s: float) -> sqlite3.Connection:
    """The connection that writes, tables made or migrated. Transactions are explicit; any one thread may use it.

    Raises:
        StoreError: it cannot be opened or written, or is not ours to write.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _create_private(path)
        connection = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)
    except (sqlite3.Error, OSError) as error:
        raise store_error(path, "opened", error) from error
    try:
        _check_identity(connection, path)
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StoreError(f"store {str(path)!r}: this file system cannot hold a write-ahead log: use a local disk")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(_LIMIT_LOG_FILE)
        _migrate(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise store_error(path, "opened", error) from error
    except StoreError:
        connection.close()
        raise
    return connection


def connect_read_only(path: Path, *, busy_timeout_s: float) -> sqlite3.Connection:
    """A connection that cannot write.

    Raises:
        StoreError: there is no such file, or it is not one that this version reads.
    """
    if not path.exists():
        raise StoreError(f"store {str(path)!r} does not exist: nothing was recorded there yet")
    try:
        connection = sqlite3.connect(
            path.absolute().as_uri() + "?mode=ro",
            uri=True,
            timeout=busy_timeout_s,
            isolation_level=None,
            check_same_thread=False,
        )
    except sqlite3.Error as error:
        raise store_error(path, "opened", error) from error
    try:
        version = _check_identity(connection, path)
        if version < _OLDEST_READABLE:
            raise StoreError(
                f"store {str(path)!r} has schema {version}, this version reads {_OLDEST_READABLE} to {VERSION}: "
                "open it to write once"
            )
    except sqlite3.Error as error:
        connection.close()
        raise store_error(path, "opened", error) from error
    except StoreError:
        connection.close()
        raise
    return connection


def _create_private(path: Path) -> None:
    """An absent file is made by us, for its owner's eyes; SQLite gives its side files the same mode.

    An existing one is not opened here: closing it again would drop the locks that SQLite holds in this process.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return


def _check_identity(connection: sqlite3.Connection, path: Path) -> int:
    """The schema version that is there; 0 for an empty file."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application_id != APPLICATION_ID and (tables or application_id or version):
        raise StoreError(f"store {str(path)!r} is a SQLite database of another program: name another file")
    if version > VERSION:
        raise StoreError(
            f"store {str(path)!r} has schema {version}, this version knows up to {VERSION}: "
            "it was written by a newer Torafugu; upgrade this one, or name another file"
        )
    return int(version)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    if _check_identity(connection, path) == VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:  # the version is read again: another process may have migrated while we waited for the lock
        for statements in _MIGRATIONS[_check_identity(connection, path) :]:
            for statement in statements:
                connection.execute(statement)
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
