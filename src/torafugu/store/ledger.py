"""How an event becomes rows. The event itself is kept as it is; the ledger's rows (runs, attempts) are read from it.

A run's totals are summed from its attempts when it stops, in exact decimals; there is no counter that could drift. An
attempt that left and did not come back has no cost, which makes the run's cost unknown.

`prepare` is pure and meets everything that can be wrong with an event; after it, `append` fails only when the database
does. So one bad event cannot hold up the others of its transaction.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable
from decimal import Decimal
from typing import Literal, TypeAlias

import msgspec

from ..events import Accepted, Called, Event, Failed, Replied, Stopped, event_from_json, event_to_json
from ..types import Json, Usage, sum_cost
from . import contents
from .contents import Content

__all__ = ["Entry", "Forgotten", "Ledger", "prepare"]

log = logging.getLogger(__name__)

Forgotten: TypeAlias = Literal["forgotten", "refused", "stale"]

_MAX_INTEGER = 2**63 - 1  # SQLite's

_INSERT_RUN = """
INSERT OR IGNORE INTO runs (id, accepted_at, model, policy, key_id, session, body_sha256, owner, status)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'running')
"""
_INSERT_EVENT = "INSERT OR IGNORE INTO events (run_id, seq, event, contents) VALUES (?, ?, ?, ?)"
_SELECT_EVENT = "SELECT event FROM events WHERE run_id = ? AND seq = ?"
_INSERT_ATTEMPT = """
INSERT OR IGNORE INTO attempts (run_id, step, attempt, worker, reason) VALUES (?, ?, ?, ?, ?)
"""
_END_ATTEMPT = """
INSERT INTO attempts (
    run_id, step, attempt, worker, outcome, code, input_tokens, cached_input_tokens, cache_write_tokens, output_tokens,
    reasoning_tokens, cost_usd, price_source, latency_ms
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (run_id, step, attempt) DO UPDATE SET
    worker = excluded.worker, outcome = excluded.outcome, code = excluded.code,
    input_tokens = excluded.input_tokens, cached_input_tokens = excluded.cached_input_tokens,
    cache_write_tokens = excluded.cache_write_tokens, output_tokens = excluded.output_tokens,
    reasoning_tokens = excluded.reasoning_tokens, cost_usd = excluded.cost_usd,
    price_source = excluded.price_source, latency_ms = excluded.latency_ms
"""
_SELECT_ATTEMPTS = """
SELECT worker, input_tokens, cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost_usd
FROM attempts WHERE run_id = ? ORDER BY rowid
"""
_STOP_RUN = """
UPDATE runs SET status = ?, stopped_by = ?, workers = ?, calls = ?, input_tokens = ?, output_tokens = ?, cost_usd = ?,
    latency_ms = ?, error_code = ?
WHERE id = ?
"""
_SELECT_RUNNING = "SELECT id FROM runs WHERE owner = ? AND status = 'running'"
_SELECT_OWNERS = "SELECT DISTINCT owner FROM runs WHERE status = 'running'"
_SELECT_LAST_SEQ = "SELECT coalesce(max(seq), 0) FROM events WHERE run_id = ?"

_STATUS = {
    "answer": "answered",
    "suspended": "answered",  # with tool calls, whose results another run goes on from
    "error": "failed",
    "client_closed": "client_closed",
    "interrupted": "interrupted",
    "budget": "budget",
    "routed": "routed",
}


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """An event, ready to be stored."""

    run_id: str
    seq: int
    """Counts from 1 within the run."""
    at: float
    event: Event
    json: bytes
    """The stored form; of an `Accepted`, without what was said."""
    messages: tuple[Content, ...] = ()
    tools: Content | None = None

    @property
    def size_bytes(self) -> int:
        """About what it holds in memory."""
        said = sum(len(message.json) for message in self.messages) + (len(self.tools.json) if self.tools else 0)
        return len(self.json) + said


def prepare(run_id: str, seq: int, at: float, event: Event) -> Entry:
    """Everything about an entry that can be done without the database.

    Raises:
        TypeError, ValueError, RecursionError: the event could not be read back: a value in it is of a wrong type, not
            a number (NaN), or out of all bounds.
    """
    if isinstance(event, (Called, Replied, Failed)) and max(event.step, event.attempt) > _MAX_INTEGER:
        raise ValueError(f"step {event.step!r}, attempt {event.attempt!r}: expected 64-bit integers")
    try:
        return _encode(run_id, seq, at, event)
    except UnicodeEncodeError:  # half of a surrogate pair, from a worker's or client's JSON: UTF-8 has no form for it
        log.warning("run %s, event %d: unpaired surrogates in its text are recorded as U+FFFD", run_id, seq)
        mended: Event = msgspec.convert(_without_surrogates(msgspec.to_builtins(event)), Event)
        return _encode(run_id, seq, at, mended)


def _encode(run_id: str, seq: int, at: float, event: Event) -> Entry:
    if not isinstance(event, Accepted):
        json = event_to_json(event, at=at)
        event_from_json(json)
        return Entry(run_id=run_id, seq=seq, at=at, event=event, json=json)
    bare, messages, tools = contents.split(event)
    json = event_to_json(bare, at=at)
    event_from_json(json)
    return Entry(run_id=run_id, seq=seq, at=at, event=event, json=json, messages=tuple(messages), tools=tools)


def _without_surrogates(value: Json) -> Json:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_surrogates(item) for item in value]
    return value


class Ledger:
    """The rows, through one connection. Transactions are the caller's."""

    def __init__(self, connection: sqlite3.Connection, owner: str) -> None:
        self._connection = connection
        self._owner = owner

    def append(self, entry: Entry) -> bool:
        """False when this run has another event of this number. The same one twice is stored once."""
        event = entry.event
        references = self._put_contents(entry) if isinstance(event, Accepted) else None
        cursor = self._connection.execute(_INSERT_EVENT, (entry.run_id, entry.seq, entry.json, references))
        if cursor.rowcount == 0:
            (there,) = self._connection.execute(_SELECT_EVENT, (entry.run_id, entry.seq)).fetchone()
            return bool(there == entry.json)
        if isinstance(event, Accepted):
            self._accept(entry, event)
        elif isinstance(event, Called):
            row = (entry.run_id, event.step, event.attempt, event.worker, event.reason)
            self._connection.execute(_INSERT_ATTEMPT, row)
        elif isinstance(event, (Replied, Failed)):
            self._end_attempt(entry.run_id, event)
        elif isinstance(event, Stopped):
            self._stop(entry.run_id, event)
        return True

    def sum_attempts(self, run_id: str) -> Stopped:
        """How an interrupted run ends: with what its attempts are known to have used."""
        _, calls, usage, cost_usd = self._totals(run_id)
        if calls == 0:  # a call may have left whose event died with the process
            usage, cost_usd = Usage(), None
        return Stopped(by="interrupted", latency_ms=None, calls=calls, usage=usage, cost_usd=cost_usd)

    def interrupt_runs(self, owner: str, *, at: float) -> int:
        """Ends every running run of a dead owner. Returns how many there were."""
        ids = [run_id for (run_id,) in self._connection.execute(_SELECT_RUNNING, (owner,)).fetchall()]
        for run_id in ids:
            (last,) = self._connection.execute(_SELECT_LAST_SEQ, (run_id,)).fetchone()
            self.append(prepare(run_id, last + 1, at, self.sum_attempts(run_id)))
        return len(ids)

    def forget(self, run_id: str, sharing: contents.Sharing) -> Forgotten:
        """Removes the run's events and what it alone has said. Its rows stay.

        `refused`: it still runs, or does not exist. `stale`: `sharing` is no longer true; nothing was removed.
        """
        row = self._connection.execute("SELECT status FROM runs WHERE id = ?", (run_id,)).fetchone()
        if row is None or row[0] == "running":
            return "refused"
        self._connection.execute("PRAGMA secure_delete = ON")  # overwritten, not only unlinked
        if not contents.drop(self._connection, run_id, sharing):
            return "stale"
        self._connection.execute("DELETE FROM events WHERE run_id = ?", (run_id,))
        return "forgotten"

    def running_owners(self) -> list[str]:
        """Who has running runs."""
        return [owner for (owner,) in self._connection.execute(_SELECT_OWNERS).fetchall()]

    def _put_contents(self, entry: Entry) -> str:
        ids = tuple(contents.put(self._connection, message, at=entry.at) for message in entry.messages)
        tools = None if entry.tools is None else contents.put(self._connection, entry.tools, at=entry.at)
        return msgspec.json.encode(contents.References(ids, tools)).decode()

    def _accept(self, entry: Entry, event: Accepted) -> None:
        self._connection.execute(
            _INSERT_RUN,
            (
                entry.run_id,
                entry.at,
                event.request.model,
                event.policy,
                event.key_id,
                event.session,
                event.body_sha256,
                self._owner,
            ),
        )

    def _end_attempt(self, run_id: str, event: Replied | Failed) -> None:
        if isinstance(event, Replied):
            reply = event.reply
            worker, usage, cost_usd = reply.worker, reply.usage, reply.cost_usd
            outcome, code, source, latency_ms = "replied", None, reply.price_source, reply.latency_ms
        else:
            worker, usage, cost_usd = event.worker, event.usage, event.cost_usd
            outcome, code, source, latency_ms = "failed", event.code, None, event.latency_ms
        self._connection.execute(
            _END_ATTEMPT,
            (
                run_id,
                event.step,
                event.attempt,
                worker,
                outcome,
                code,
                _integer(usage.input_tokens),
                _integer(usage.cached_input_tokens),
                _integer(usage.cache_write_tokens),
                _integer(usage.output_tokens),
                _integer(usage.reasoning_tokens),
                None if cost_usd is None else str(cost_usd),
                source,
                latency_ms,
            ),
        )

    def _stop(self, run_id: str, event: Stopped) -> None:
        workers, calls, usage, cost_usd = self._totals(run_id)
        if event.by == "interrupted" and calls == 0:  # see `sum_attempts`
            usage, cost_usd = event.usage, event.cost_usd
        self._connection.execute(
            _STOP_RUN,
            (
                _STATUS.get(event.by.partition(":")[0], "failed"),  # `stopped_by` keeps a word that is unknown here
                event.by,
                msgspec.json.encode(workers).decode(),
                calls,
                _integer(usage.input_tokens),
                _integer(usage.output_tokens),
                None if cost_usd is None else str(cost_usd),
                event.latency_ms,
                str(event.error["code"]) if event.error and "code" in event.error else None,
                run_id,
            ),
        )

    def _totals(self, run_id: str) -> tuple[list[str], int, Usage, Decimal | None]:
        """Workers in order, attempts, tokens, cost."""
        rows = self._connection.execute(_SELECT_ATTEMPTS, (run_id,)).fetchall()
        usage = Usage.total(_usage(row[1:6]) for row in rows)
        cost_usd = sum_cost(None if row[6] is None else Decimal(row[6]) for row in rows)
        return list(dict.fromkeys(row[0] for row in rows)), len(rows), usage, cost_usd


def _usage(tokens: Iterable[int | None]) -> Usage:
    input_tokens, cached, written, output_tokens, reasoning = tokens
    return Usage(
        input_tokens=input_tokens,
        cached_input_tokens=cached,
        cache_write_tokens=written,
        output_tokens=output_tokens,
        reasoning_tokens=reasoning,
    )


def _integer(value: int | None) -> int | None:
    """Unknown when SQLite cannot hold it: a provider's nonsense; the event keeps what it said."""
    return None if value is None or abs(value) > _MAX_INTEGER else value
