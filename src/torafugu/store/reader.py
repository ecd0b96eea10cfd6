"""Reading the record, on one thread of its own with a connection that cannot write.

SQLite lets any number of these read while one process writes. A read sees one moment: the row and the events of a run
belong together. What callers wait for queues up on the thread, one entry per caller.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import msgspec

from ..errors import RequestError, StoreError
from ..events import Accepted, Event, event_from_json
from ..types import sum_cost
from . import contents
from .rows import RunRow, Status, StoredRun, StoreTotals, WorkerHistory
from .schema import connect_read_only, store_error

__all__ = ["RunReader", "open_reader"]

P = ParamSpec("P")
T = TypeVar("T")

NAMED_WHEN_AMBIGUOUS = 5
HISTORY_REPLIES = 200
"""Chosen, not measured: enough for a steady mean, few enough to follow a worker that changes."""

_SELECT_PAGE = """
SELECT id, accepted_at, model, policy, key_id, session, body_sha256, status, stopped_by, workers, calls, input_tokens,
    output_tokens, cost_usd, latency_ms, error_code
FROM runs
WHERE (:before IS NULL OR id < :before) AND (:status IS NULL OR status = :status)
    AND (:model IS NULL OR model = :model)
ORDER BY id DESC LIMIT :limit
"""
_SELECT_RUN = """
SELECT id, accepted_at, model, policy, key_id, session, body_sha256, status, stopped_by, workers, calls, input_tokens,
    output_tokens, cost_usd, latency_ms, error_code
FROM runs WHERE id = ?
"""
_SELECT_IDS = "SELECT id FROM runs WHERE id >= ? AND id < ? ORDER BY id LIMIT ?"
_SELECT_EVENTS = "SELECT seq, event, contents FROM events WHERE run_id = ? ORDER BY seq"
_COUNT_RUNS = "SELECT status, count(*) FROM runs GROUP BY status ORDER BY status"
_SELECT_COSTS = "SELECT cost_usd FROM attempts"
_SELECT_HISTORY = """
SELECT count(*), avg(output_tokens), avg(latency_ms) / 1000
FROM (
    SELECT output_tokens, latency_ms FROM attempts WHERE worker = ? AND outcome = 'replied' ORDER BY rowid DESC LIMIT ?
)
"""

_references_decoder = msgspec.json.Decoder(contents.References)
_workers_decoder = msgspec.json.Decoder(tuple[str, ...])


class RunReader:
    """The record, as it stands whenever it is asked."""

    def __init__(self, path: Path, *, busy_timeout_s: float) -> None:
        self.path = path
        self._busy_timeout_s = busy_timeout_s
        self._connection: sqlite3.Connection | None = None  # of the thread below, made on its first use
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fugu-store-read")

    async def __aenter__(self) -> RunReader:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def list_runs(
        self, limit: int, *, before: str | None = None, status: Status | None = None, model: str | None = None
    ) -> list[RunRow]:
        """The youngest runs first, older than the run `before`.

        Raises:
            StoreError: the store cannot be read.
            RequestError: `limit` is below 1.
        """
        if limit < 1:
            raise RequestError(f"limit {limit!r}: expected at least 1", param="limit")
        return await self._read(_list_runs, before, status, model, limit)

    async def get_run(self, id: str) -> StoredRun | None:
        """The run of this id, or the only one whose id begins so; None when there is none. Without events: forgotten.

        Raises:
            StoreError: the store cannot be read, or the record is damaged.
            RequestError: several ids begin so.
        """
        return await self._read(_get_run, id)

    async def find_sharing(self, run_id: str) -> contents.Sharing:
        """What of this run's contents others use. Other reads wait for it.

        Raises:
            StoreError: the store cannot be read.
        """
        return await self._read(contents.find_sharing, run_id)

    async def histories(self, workers: Iterable[str]) -> dict[str, WorkerHistory]:
        """What the latest replies of each of these workers were like, whoever asked.

        Raises:
            StoreError: the store cannot be read.
        """
        return await self._read(_histories, tuple(workers))

    async def stats(self) -> StoreTotals:
        """What the whole store holds. Reads every attempt.

        Raises:
            StoreError: the store cannot be read.
        """
        return await self._read(_stats)

    async def close(self) -> None:
        """Idempotent; reads that were asked for are finished first."""
        await asyncio.to_thread(self.finish)

    def finish(self) -> None:
        """As `close`, blocking."""
        self._thread.shutdown()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _read(
        self, read: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        def work() -> T:
            try:
                connection = self._connect()
                connection.execute("BEGIN")
                try:
                    return read(connection, *args, **kwargs)
                finally:
                    connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                raise store_error(self.path, "read", error) from error

        try:
            pending = self._thread.submit(work)
        except RuntimeError:
            raise StoreError(f"store {str(self.path)!r} is closed", code="store_closed") from None
        return await asyncio.wrap_future(pending)

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = connect_read_only(self.path, busy_timeout_s=self._busy_timeout_s)
        return self._connection


def open_reader(path: Path, *, busy_timeout_s: float = 2.0) -> RunReader:
    """To look at a record, also one that a server is writing. Changes nothing, so runs of a dead process look running.

    Raises:
        StoreError: there is no such store, or this version cannot read it.
    """
    connect_read_only(path, busy_timeout_s=busy_timeout_s).close()
    return RunReader(path, busy_timeout_s=busy_timeout_s)


def _list_runs(
    connection: sqlite3.Connection, before: str | None, status: str | None, model: str | None, limit: int
) -> list[RunRow]:
    wanted = {"before": before, "status": status, "model": model, "limit": limit}
    return [_row(values) for values in connection.execute(_SELECT_PAGE, wanted)]


def _get_run(connection: sqlite3.Connection, id: str) -> StoredRun | None:
    row = connection.execute(_SELECT_RUN, (id,)).fetchone()
    if row is None:
        whole = _complete(connection, id)
        if whole is None:
            return None
        row = connection.execute(_SELECT_RUN, (whole,)).fetchone()
    run = _row(row)
    rows = connection.execute(_SELECT_EVENTS, (run.id,)).fetchall()
    return StoredRun(run=run, events=tuple(_event(connection, run.id, *values) for values in rows))


def _complete(connection: sqlite3.Connection, prefix: str) -> str | None:
    """The one id that begins so."""
    if not prefix:
        return None
    last = prefix + "\U0010ffff"
    ids = [id for (id,) in connection.execute(_SELECT_IDS, (prefix, last, NAMED_WHEN_AMBIGUOUS + 1))]
    if len(ids) > 1:
        more = ", ..." if len(ids) > NAMED_WHEN_AMBIGUOUS else ""
        raise RequestError(
            f"run id {prefix!r} is ambiguous: {', '.join(ids[:NAMED_WHEN_AMBIGUOUS])}{more}; give more of it",
            code="ambiguous_run_id",
            param="id",
        )
    return ids[0] if ids else None


def _event(
    connection: sqlite3.Connection, run_id: str, seq: int, stored: bytes, references: str | None
) -> tuple[float, Event]:
    try:
        at, event = event_from_json(stored)
        if isinstance(event, Accepted) and references is not None:
            event = _with_contents(connection, event, references)
    except (ValueError, StoreError) as error:
        raise StoreError(f"run {run_id}, event {seq} cannot be read: {error}", code="store_damaged") from error
    return at, event


def _with_contents(connection: sqlite3.Connection, event: Accepted, references: str) -> Accepted:
    ids = _references_decoder.decode(references)
    messages = [contents.take(connection, id) for id in ids.messages]
    return contents.join(event, messages, None if ids.tools is None else contents.take(connection, ids.tools))


def _histories(connection: sqlite3.Connection, workers: tuple[str, ...]) -> dict[str, WorkerHistory]:
    found = {}
    for worker in workers:
        replies, output_tokens, seconds = connection.execute(_SELECT_HISTORY, (worker, HISTORY_REPLIES)).fetchone()
        found[worker] = WorkerHistory(replies=replies, output_tokens=output_tokens, seconds=seconds)
    return found


def _stats(connection: sqlite3.Connection) -> StoreTotals:
    costs = [None if text is None else Decimal(text) for (text,) in connection.execute(_SELECT_COSTS)]
    known = sum_cost(cost for cost in costs if cost is not None)
    assert known is not None
    return StoreTotals(
        runs=dict(connection.execute(_COUNT_RUNS).fetchall()),
        attempts=len(costs),
        cost_usd=known,
        attempts_without_cost=costs.count(None),
    )


def _row(values: tuple[object, ...]) -> RunRow:
    """In the order of the two selects; checked on the way, since anybody can write to a file."""
    names = RunRow.__struct_fields__
    fields = dict(zip(names, values, strict=True))
    try:
        fields["workers"] = _workers_decoder.decode(str(fields["workers"]))
        return msgspec.convert(fields, RunRow)
    except ValueError as error:
        raise StoreError(f"run {fields['id']!r}: its row cannot be read: {error}", code="store_damaged") from error
