"""`RunStore`: what happened, kept. Opening it recovers what earlier processes left; closing it flushes everything.

One thread writes (`writer.py`), one reads (`reader.py`); this file only puts them together. The promises:

    acknowledged (`wait_durable` returned)   on disk, whatever happens to this process or to the power
    refused (`StoreError`)                   nothing has been paid for; the run may be tried elsewhere
    process killed                           its running runs are `interrupted` when the next store opens the file
    database failing                         no new runs; those that run are kept in memory, then in a spool file
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path

from ..errors import StoreError
from .ledger import Ledger
from .owner import Owner, forget_dead_owners, is_alive
from .reader import RunReader
from .rows import RunRow, Status, StoredRun, StoreTotals, WorkerHistory
from .schema import connect, store_error
from .spool import find_spools, read_spool
from .writer import RunRecorder, StoreOptions, Writer

__all__ = ["RunStore", "open_store"]

log = logging.getLogger(__name__)


def open_store(path: Path, *, options: StoreOptions = StoreOptions()) -> RunStore:  # noqa: B008  # frozen
    """The store in the file `path`, made if it is absent. Blocks while it recovers; use it with `async with`.

    Raises:
        StoreError: the file cannot be opened or written, or is none of ours, or a newer version's.
    """
    connection = connect(path, busy_timeout_s=options.busy_timeout_s)
    try:
        owner = Owner(path)
    except OSError as error:
        connection.close()
        raise store_error(path, "opened", error) from error
    try:
        _recover(path, connection, owner.id)
    except (sqlite3.Error, OSError) as error:
        connection.close()
        owner.release()
        raise store_error(path, "recovered", error) from error
    return RunStore(path, connection, owner, options=options)


class RunStore:
    """An open store. For the one event loop that it is used in."""

    def __init__(self, path: Path, connection: sqlite3.Connection, owner: Owner, *, options: StoreOptions) -> None:
        """Takes over `connection` and `owner`; see `open_store`."""
        self.path = path
        self._options = options
        self._owner = owner
        self._reader = RunReader(path, busy_timeout_s=options.busy_timeout_s)
        self._writer = Writer(path, connection, owner=owner.id, options=options)
        self._is_closed = False
        self._writer.start()

    async def __aenter__(self) -> RunStore:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    @property
    def healthy(self) -> bool:
        """Whether it takes new runs, as far as the last commit tells."""
        return self.refusal is None

    @property
    def refusal(self) -> str | None:
        """Why no new run is accepted; None when it is."""
        if self._is_closed:
            return f"store {str(self.path)!r} is closed"
        if self._writer.failure is not None:
            return self._writer.failure
        if self._writer.pending >= self._options.pending_events:
            return (
                f"store {str(self.path)!r} is behind: {self._writer.pending} events wait to be written; try again soon"
            )
        return None

    @property
    def commits(self) -> int:
        """Transactions committed since it was opened."""
        return self._writer.commits

    def recorder(self, run_id: str) -> RunRecorder:
        """Where the events of a new run go.

        Raises:
            StoreError: no new run is accepted now.
        """
        refusal = self.refusal
        if refusal is not None:
            raise StoreError(refusal)
        return RunRecorder(run_id, self._writer)

    async def list_runs(
        self, limit: int, *, before: str | None = None, status: Status | None = None, model: str | None = None
    ) -> list[RunRow]:
        """As `RunReader.list_runs`."""
        return await self._reader.list_runs(limit, before=before, status=status, model=model)

    async def get_run(self, id: str) -> StoredRun | None:
        """As `RunReader.get_run`."""
        return await self._reader.get_run(id)

    async def forget(self, run_id: str) -> bool:
        """Drops the run's events, and of what was said what no other run holds too; who asked when, and what it cost,
        stays. On disk when it returns. False: the run still goes on, or there is none of this (whole) id.

        Raises:
            StoreError: the database does not take it, or cannot be read; the run is as it was.
        """
        while True:
            forgotten = await self._writer.forget(run_id, await self._reader.find_sharing(run_id))
            if forgotten != "stale":  # another run was forgotten meanwhile, so this does not go on for ever
                return forgotten == "forgotten"

    async def histories(self, workers: Iterable[str]) -> dict[str, WorkerHistory]:
        """As `RunReader.histories`."""
        return await self._reader.histories(workers)

    async def stats(self) -> StoreTotals:
        """As `RunReader.stats`."""
        return await self._reader.stats()

    async def close(self) -> None:
        """Writes everything that was recorded, to the spool file if the database does not take it. Idempotent.

        Raises:
            StoreError: some of it could be written nowhere.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._writer.end()
        await asyncio.to_thread(self._finish)  # whoever is cancelled here does not stop it
        if self._writer.lost:
            raise StoreError(
                f"{self._writer.lost} events are lost: neither {str(self.path)!r} nor a spool file beside it "
                f"could be written: {self._writer.failure}",
                code="store_lost",
            )

    def _finish(self) -> None:
        self._reader.finish()  # first, so that the writer's connection is the last and leaves no log file behind
        self._writer.join()
        self._owner.release()


def _recover(path: Path, connection: sqlite3.Connection, owner: str) -> None:
    """Takes in the spools of dead owners, then ends their running runs. In one transaction, so that two may try."""
    ledger = Ledger(connection, owner)
    connection.execute("BEGIN IMMEDIATE")
    try:
        spools = [spool for spool, its_owner in find_spools(path) if not is_alive(path, its_owner)]
        recovered = sum(ledger.append(entry) for spool in spools for entry in read_spool(spool))
        dead = [other for other in ledger.running_owners() if other != owner and not is_alive(path, other)]
        dead += [owner] if recovered else []  # a spooled `Accepted` came in under our name
        interrupted = sum(ledger.interrupt_runs(other, at=time.time()) for other in dead)
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    for spool in spools:
        spool.unlink(missing_ok=True)
    forget_dead_owners(path)
    if recovered or interrupted:
        log.warning("store %s: %d events recovered, %d runs were interrupted", path, recovered, interrupted)
