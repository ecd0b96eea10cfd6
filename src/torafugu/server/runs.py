"""GET /v1/runs and /v1/runs/{id}: the record, for whom it belongs to.

A key sees the runs it asked for; another's run does not exist for it. Without configured keys all runs are shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Protocol, get_args
from urllib.parse import parse_qsl

import msgspec
from starlette.types import Receive, Scope, Send

from ..errors import RequestError
from ..orchestrate import Recorder
from ..store.rows import RunRow, Status, StoredRun, WorkerHistory
from .auth import Client
from .connection import send_json

__all__ = ["RunStore", "Runs"]

_MAX_LIMIT = 1000
_RUN_ID = re.compile(r"run_[0-9a-f]{26}")
_JSON = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
_encode = msgspec.json.Encoder(decimal_format="number").encode


class RunStore(Protocol):
    """What the server needs of a store."""

    @property
    def healthy(self) -> bool:
        """Whether work may be taken on: what happens now can be recorded."""
        ...

    def recorder(self, run_id: str) -> Recorder:
        """Where one run's events go."""
        ...

    async def list_runs(self, limit: int, *, before: str | None = None, status: Status | None = None) -> list[RunRow]:
        """The youngest runs first, older than the run `before`."""
        ...

    async def get_run(self, id: str) -> StoredRun | None:
        """The run with its events, or None."""
        ...

    async def forget(self, run_id: str) -> bool:
        """Drop what was said in the run; False when it still goes on or does not exist."""
        ...

    async def histories(self, workers: Iterable[str]) -> Mapping[str, WorkerHistory]:
        """What the latest replies of each of these workers were like."""
        ...


class Runs:
    """The two endpoints."""

    def __init__(self, store: RunStore) -> None:
        self._store = store

    async def list_runs(self, scope: Scope, receive: Receive, send: Send, client: Client) -> None:
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        if unknown := query.keys() - {"limit", "before", "status"}:
            raise RequestError(f"unknown parameters {sorted(unknown)}: expected limit, before, status")
        limit = _to_limit(query.get("limit", "20"))
        rows = await self._list_own(
            client, limit + 1, before=query.get("before"), status=_to_status(query.get("status"))
        )
        await send_json(
            send, _encode({"object": "list", "data": rows[:limit], "has_more": len(rows) > limit}), headers=_JSON
        )

    async def get_run(self, scope: Scope, receive: Receive, send: Send, client: Client) -> None:
        run_id = scope["path_params"]["id"]
        # Whole ids only: a store that completes the beginning of one would tell of the runs of others.
        stored = await self._store.get_run(run_id) if _RUN_ID.fullmatch(run_id) else None
        if stored is None or (client.key_id is not None and stored.run.key_id != client.key_id):
            raise RequestError(f"run {run_id!r} does not exist", code="run_not_found", status=404, param="id")
        events = [{"at": at, "event": event} for at, event in stored.events]
        await send_json(send, _encode({"object": "run", "run": stored.run, "events": events}), headers=_JSON)

    async def _list_own(self, client: Client, limit: int, *, before: str | None, status: Status | None) -> list[RunRow]:
        if client.key_id is None:
            return await self._store.list_runs(limit, before=before, status=status)
        own: list[RunRow] = []
        while len(own) < limit:
            page = await self._store.list_runs(_MAX_LIMIT, before=before, status=status)
            own += [row for row in page if row.key_id == client.key_id]
            if len(page) < _MAX_LIMIT:
                break
            before = page[-1].id
        return own[:limit]


def _to_status(text: str | None) -> Status | None:
    try:
        status: Status | None = msgspec.convert(text, Status | None)
        return status
    except msgspec.ValidationError:
        raise RequestError(f"status {text!r}: expected one of {', '.join(get_args(Status))}", param="status") from None


def _to_limit(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= _MAX_LIMIT:
        raise RequestError(f"limit {text[:20]!r}: expected 1 to {_MAX_LIMIT}", param="limit")
    return int(text)
