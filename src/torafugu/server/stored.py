"""Responses that clients refer to later: read back from the record, for whom they belong to.

A response is its run: what was asked stands in the run's first event (`Accepted.wire`), what came of it in the others.
Nothing is kept twice, and what another key asked for does not exist.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
from starlette.types import Receive, Scope, Send

from ..errors import RequestError
from ..events import Accepted
from ..orchestrate.replay import replay
from ..store.rows import StoredRun
from ..types import Json, Request
from .auth import Client
from .connection import send_json
from .responses import Responses
from .responses_answer import response_id_of, run_id_of, run_to_body
from .toolbox import Toolbox

__all__ = ["ResponseStore", "StoredResponses"]

_ITEM_ID = re.compile(r"[a-z]+_(run_[0-9a-f]{26})_\d+")
_RUN_ID = re.compile(r"run_[0-9a-f]{26}")
_LONGEST_CHAIN = 1_000
"""Of responses that refer to each other."""
_JSON = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]


class ResponseStore(Protocol):
    """What is needed of a store."""

    async def get_run(self, id: str) -> StoredRun | None:
        """The run with its events, or None."""
        ...

    async def forget(self, run_id: str) -> bool:
        """Drop what was said in the run; False when it still goes on or does not exist."""
        ...


class StoredResponses:
    """The responses of a store."""

    def __init__(self, store: ResponseStore) -> None:
        self._store = store

    def to_wire(self, asked: Responses) -> Mapping[str, Json]:
        """What `Accepted.wire` has to hold of it."""
        return {"items": asked.items, "echo": asked.echo, "previous_response_id": asked.previous_response_id}

    async def find_items(self, response_id: str | None, client: Client) -> Sequence[Json] | None:
        """All items up to this response, its own included; None: there is no such response, or none is meant."""
        chain: list[Sequence[Json]] = []
        while response_id is not None:
            found = await self._find(response_id, client)
            if found is None or len(chain) >= _LONGEST_CHAIN:
                return None
            wire, body = found
            chain.append([*wire["items"], *body["output"]])
            response_id = wire["previous_response_id"]
        return [item for items in reversed(chain) for item in items] if chain else None

    async def find_referred(self, item_ids: Sequence[str], client: Client) -> Mapping[str, Json]:
        """Items of stored responses, by id, as far as they exist."""
        runs = {match[1] for id in item_ids if (match := _ITEM_ID.fullmatch(id))}
        found: dict[str, Json] = {}
        for run_id in runs:
            response = await self._find(response_id_of(run_id), client)
            for item in response[1]["output"] if response else ():
                found[item["id"]] = item
        return found

    async def get(self, scope: Scope, receive: Receive, send: Send, client: Client) -> None:
        """GET /v1/responses/{id}"""
        _, body = await self._get(scope["path_params"]["id"], client)
        await send_json(send, msgspec.json.encode(body), headers=_JSON)

    async def list_input(self, scope: Scope, receive: Receive, send: Send, client: Client) -> None:
        """GET /v1/responses/{id}/input_items"""
        wire, _ = await self._get(scope["path_params"]["id"], client)
        items = list(wire["items"])
        ids = [item.get("id") for item in items if isinstance(item, dict)]
        listed = {
            "object": "list",
            "data": items,
            "first_id": ids[0] if ids else None,
            "last_id": ids[-1] if ids else None,
            "has_more": False,
        }
        await send_json(send, msgspec.json.encode(listed), headers=_JSON)

    async def delete(self, scope: Scope, receive: Receive, send: Send, client: Client) -> None:
        """DELETE /v1/responses/{id}: what was said goes; when, for whom and for how much stays on record."""
        response_id = scope["path_params"]["id"]
        await self._get(response_id, client)
        run_id = run_id_of(response_id)
        if run_id is None or not await self._store.forget(run_id):
            raise _not_found(response_id)
        deleted = {"id": response_id, "object": "response", "deleted": True}
        await send_json(send, msgspec.json.encode(deleted), headers=_JSON)

    async def _get(self, response_id: str, client: Client) -> tuple[Mapping[str, Json], Json]:
        found = await self._find(response_id, client)
        if found is None:
            raise _not_found(response_id)
        return found

    async def _find(self, response_id: str, client: Client) -> tuple[Mapping[str, Json], Json] | None:
        """(What was asked, the response object.)"""
        run_id = run_id_of(response_id)
        # Whole ids only: a store that completes the beginning of one would tell of the runs of others.
        stored = await self._store.get_run(run_id) if run_id is not None and _RUN_ID.fullmatch(run_id) else None
        if stored is None or (client.key_id is not None and stored.run.key_id != client.key_id):
            return None
        first = stored.events[0][1] if stored.events else None
        if not isinstance(first, Accepted) or first.wire is None:
            return None
        run = replay(stored.run.id, [event for _, event in stored.events])
        if run.answer is None or run.stopped is None:
            return None
        asked = _to_asked(first.wire, first.request)
        body = run_to_body(run, run.answer, asked=asked, created=int(stored.run.accepted_at), policy=first.policy)
        return first.wire, msgspec.json.decode(body)


def _to_asked(wire: Mapping[str, Json], request: Request) -> Responses:
    return Responses(
        request=request,
        is_stream=False,
        is_stored=True,
        cache_key=None,
        previous_response_id=wire["previous_response_id"],
        toolbox=Toolbox.from_responses(wire["echo"].get("tools") or []),
        items=tuple(wire["items"]),
        echo=wire["echo"],
    )


def _not_found(response_id: str) -> RequestError:
    return RequestError(f"response {response_id!r} does not exist", code="response_not_found", status=404, param="id")
