"""The one thread that writes, and `RunRecorder`, which hands it the events of one run.

What waits in the queue goes into one transaction; while that is on its way to the disk, the next one gathers (group
commit). When a commit fails, its events stay in memory, in order, and are tried again until they are in; no new run is
accepted meanwhile. So what memory holds is bounded by what the runs already running still have to say; beyond
`memory_bytes`, and at the end, it goes to a spool file. Nothing that was accepted is dropped while this process lives.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ..errors import StoreError
from ..events import Accepted, Event
from .contents import Sharing
from .ledger import Entry, Forgotten, Ledger, prepare
from .schema import store_error
from .spool import append_to_spool, read_spool, spool_path

__all__ = ["RunRecorder", "StoreOptions", "Writer"]

log = logging.getLogger(__name__)

MAX_EVENTS_PER_COMMIT = 1000  # so that the first of a flood does not wait for all of it

# A busy event loop gives up the interpreter's lock for a moment at each poll: too short for another thread to take it,
# yet enough to restart that thread's 5 ms of patience, again and again. Measured on two cores: accepts stood still for
# up to 18 s beside a loop that never idled; with 0.1 ms for 0.15 s at most (docs/decisions/0004).
SWITCH_INTERVAL_S = 0.0001


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """How long the store waits and how much it holds. The defaults are chosen, not measured."""

    busy_timeout_s: float = 2.0
    """How long a write waits for another process's lock."""
    retry_s: float = 0.5
    """Between attempts to write again after a failure."""
    pending_events: int = 10_000
    """Events waiting to be written beyond which no new run is accepted. About two seconds of writing."""
    memory_bytes: int = 64 * 2**20
    """Of events that the database would not take; beyond it they go to the spool file."""


class RunRecorder:
    """Where the events of one run go. For one thread, that of the event loop."""

    __slots__ = ("_put", "_seq", "_wait", "durable_seq", "is_refused", "rejected", "run_id")

    def __init__(self, run_id: str, writer: Writer) -> None:
        self.run_id = run_id
        self.durable_seq = 0
        """The last event that is on disk; set by the writer's thread."""
        self.rejected: str | None = None
        """Why an event of this run can never be stored; set by the writer's thread."""
        self.is_refused = False
        """That event was the first: there is no such run. Set by the writer's thread."""
        self._put = writer.put_event
        self._wait = writer.wait
        self._seq = 0

    def write(self, event: Event) -> None:
        """Append; never blocks, never raises."""
        self._seq += 1
        self._put((self, self._seq, time.time(), event))

    async def wait_durable(self) -> None:
        """Return once everything written so far is on disk.

        Raises:
            StoreError: the database does not take it (full, locked, failing, closed), or an event has no stored form.
        """
        if self.durable_seq < self._seq:
            await self._wait()
        if self.rejected is not None:
            raise StoreError(f"run {self.run_id}: {self.rejected}", code="store_rejected")


_Written: TypeAlias = tuple[RunRecorder, int, float, Event]


class _Waiter:
    """Someone who waits for the commit of everything put before it, and perhaps for a run to be forgotten in it."""

    __slots__ = ("forgotten", "future", "loop", "run_id", "sharing")

    def __init__(self, run_id: str | None = None, sharing: Sharing | None = None) -> None:
        self.run_id = run_id
        self.sharing = sharing
        self.forgotten: Forgotten | None = None
        """What came of it; set by the writer's thread."""
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Forgotten | None] = self.loop.create_future()


class Writer:
    """Owns the connection that writes, from `start` to the end of the thread."""

    def __init__(self, path: Path, connection: sqlite3.Connection, *, owner: str, options: StoreOptions) -> None:
        self.commits = 0
        """Transactions committed; for measurement."""
        self.failure: str | None = None
        """Why the last commit failed; None when it did not."""
        self.lost = 0
        """Events that could be put nowhere at the end."""
        self._path = path
        self._connection = connection
        self._ledger = Ledger(connection, owner)
        self._spool = spool_path(path, owner)
        self._options = options
        self._queue: queue.SimpleQueue[_Written | _Waiter | None] = queue.SimpleQueue()
        self._backlog: list[tuple[RunRecorder, Entry]] = []
        self._backlog_bytes = 0
        self._waiters: list[_Waiter] = []
        self._retry_at = 0.0
        self._is_closed = False  # written by the loop's thread
        self._is_ending = False  # written by the writer's thread
        self._thread = threading.Thread(target=self._main, name="fugu-store-write", daemon=True)

    def start(self) -> None:
        """Lowers the interpreter's switch interval, for the whole process, so that no busy loop starves the thread."""
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL_S))
        self._thread.start()

    @property
    def pending(self) -> int:
        """Events that are not on disk yet; those who wait are counted too."""
        return self._queue.qsize() + len(self._backlog)

    def put_event(self, written: _Written) -> None:
        if self._is_closed:
            log.error("run %s: %s after the store was closed", written[0].run_id, type(written[3]).__name__)
            written[0].rejected = "the store was closed before its end"
            return
        self._queue.put(written)

    async def wait(self) -> None:
        """Return when everything put before is on disk.

        Raises:
            StoreError: it is not.
        """
        await self._wait_for(_Waiter())

    async def forget(self, run_id: str, sharing: Sharing) -> Forgotten:
        """As `Ledger.forget`; returns when it is on disk. One that failed is not tried again.

        Raises:
            StoreError: it is not.
        """
        forgotten = await self._wait_for(_Waiter(run_id, sharing))
        assert forgotten is not None
        return forgotten

    async def _wait_for(self, waiter: _Waiter) -> Forgotten | None:
        if self._is_closed:
            raise StoreError(f"store {str(self._path)!r} is closed", code="store_closed")
        self._queue.put(waiter)
        return await waiter.future

    def end(self) -> None:
        """Nothing may be put from now on."""
        self._is_closed = True

    def join(self) -> None:
        """After `end`: blocks until all that was put is written, to the database or to the spool."""
        self._queue.put(None)
        self._thread.join()

    def _main(self) -> None:
        while not self._is_ending:
            self._take()
            if self._is_due():
                self._try_commit()
        if self._backlog:
            self._spill()
            self.lost = len(self._backlog)
        self._connection.close()

    def _take(self) -> None:
        """Blocks until there is something to do, then takes all there is."""
        pause_s = None if self.failure is None else max(0.0, self._retry_at - time.monotonic())
        try:
            item = self._queue.get(timeout=pause_s)
            while True:
                self._sort(item)
                if self._is_ending or len(self._backlog) >= MAX_EVENTS_PER_COMMIT:
                    return
                item = self._queue.get_nowait()
        except queue.Empty:
            return

    def _sort(self, item: _Written | _Waiter | None) -> None:
        if item is None:
            self._is_ending = True
        elif isinstance(item, _Waiter):
            self._waiters.append(item)
        else:
            recorder, seq, at, event = item
            try:
                entry = prepare(recorder.run_id, seq, at, event)
            except (TypeError, ValueError, RecursionError) as error:
                self._reject(recorder, event, f"{type(event).__name__} cannot be stored: {error}")
                return
            self._backlog.append((recorder, entry))
            self._backlog_bytes += entry.size_bytes

    def _is_due(self) -> bool:
        """After a failure, only those who wait for an answer and the clock make it try again."""
        return self.failure is None or bool(self._waiters) or self._is_ending or time.monotonic() >= self._retry_at

    def _try_commit(self) -> None:
        try:
            if self._backlog or self._spool.exists() or any(waiter.sharing for waiter in self._waiters):
                self._commit()
        except (sqlite3.Error, OSError) as error:
            self._fail(store_error(self._path, "written", error).message)
        except Exception as error:  # a boundary: without this thread every later request would hang
            log.exception("the store's writer met a fault of this program")
            self._fail(f"store {str(self._path)!r} could not be written: {type(error).__name__}: {error}")
        else:
            self._succeed()

    def _commit(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            has_spool = self._spool.exists()
            for entry in read_spool(self._spool) if has_spool else ():
                self._ledger.append(entry)
            for recorder, entry in self._backlog:
                if not recorder.is_refused and not self._ledger.append(entry):
                    self._reject(recorder, entry.event, f"another run of this id has an event {entry.seq}")
            for waiter in self._waiters:
                if waiter.run_id is not None and waiter.sharing is not None:
                    waiter.forgotten = self._ledger.forget(waiter.run_id, waiter.sharing)
            self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        self.commits += 1
        if has_spool:
            self._spool.unlink()

    def _succeed(self) -> None:
        if self.failure is not None:
            log.warning("store %s takes writes again", self._path)
        self.failure = None
        for recorder, entry in self._backlog:
            recorder.durable_seq = entry.seq
        self._backlog.clear()
        self._backlog_bytes = 0
        self._answer(None)

    def _fail(self, why: str) -> None:
        if self.failure is None:
            log.error("%s; no new run is accepted until it takes writes again", why)
        self.failure = why
        self._retry_at = time.monotonic() + self._options.retry_s
        if self._backlog_bytes > self._options.memory_bytes:
            self._spill()
        self._answer(why)

    def _spill(self) -> None:
        """Moves what memory holds to the spool file; it stays in memory when that fails too."""
        try:
            append_to_spool(self._spool, (entry for _, entry in self._backlog))
        except OSError as error:
            log.critical("%s: %d events are in memory only: %s", self._spool, len(self._backlog), error)
            return
        log.warning("%s holds %d events that the database would not take", self._spool, len(self._backlog))
        self._backlog.clear()
        self._backlog_bytes = 0

    def _reject(self, recorder: RunRecorder, event: Event, why: str) -> None:
        log.error("run %s: %s", recorder.run_id, why)
        recorder.rejected = why
        recorder.is_refused = recorder.is_refused or isinstance(event, Accepted)

    def _answer(self, failure: str | None) -> None:
        """Wakes those who wait, each event loop once."""
        by_loop: dict[asyncio.AbstractEventLoop, list[_Waiter]] = {}
        for waiter in self._waiters:
            by_loop.setdefault(waiter.loop, []).append(waiter)
        self._waiters.clear()
        for loop, waiters in by_loop.items():
            try:
                loop.call_soon_threadsafe(_resolve, waiters, failure)
            except RuntimeError:  # the loop is closed: nobody waits there any more
                log.debug("%d waiters are gone with their event loop", len(waiters))


def _resolve(waiters: list[_Waiter], failure: str | None) -> None:
    for waiter in waiters:
        if waiter.future.done():  # its task was cancelled
            continue
        if failure is None:
            waiter.future.set_result(waiter.forgotten)
        else:
            waiter.future.set_exception(StoreError(failure))
