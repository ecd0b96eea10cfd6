"""Runs that wait for the client's tools, found by the ids of the calls whose results a request brings.

What such a run needs to go on stands in its record, so that a restart, or another process on the same store, makes no
difference. It waits for a limited time. What another key's run asked for is unknown.
"""

from __future__ import annotations

import time
from typing import Protocol

from ..errors import RequestError
from ..events import Suspended
from ..orchestrate import Policy
from ..orchestrate.pending import add_results, find_run
from ..store.rows import StoredRun
from ..types import Pending, Request
from .auth import Client

__all__ = ["WaitingRuns"]


class _Store(Protocol):
    async def get_run(self, id: str) -> StoredRun | None: ...


class WaitingRuns:
    """Those of a store."""

    def __init__(self, store: _Store, *, wait_s: float) -> None:
        self._store = store
        self._wait_s = wait_s

    async def find(self, request: Request, policy: Policy, client: Client) -> Pending | None:
        """What goes on with the results that `request` brings; None: it brings none of ours.

        A client that has meanwhile chosen another model gets a new run: the calls stand in its conversation.

        Raises:
            RequestError: results for calls that are unknown, expired or another's, or not for all calls.
            StoreError: the record cannot be read.
        """
        run_id = find_run(request.messages)
        if run_id is None:
            return None
        stored = await self._store.get_run(run_id)
        if stored is None or (client.key_id is not None and stored.run.key_id != client.key_id):
            raise _unknown("no request of yours has asked for them")
        found = [(at, event.pending) for at, event in stored.events if isinstance(event, Suspended)]
        if not found:
            raise _unknown("the request that asked for them is not waiting")
        at, pending = found[-1]
        if time.time() - at > self._wait_s:
            raise _unknown(f"they came more than {self._wait_s:.0f} s after the calls")
        if pending.policy.partition("@")[0] != policy.id.partition("@")[0]:
            return None
        return add_results(pending, request.messages)


def _unknown(why: str) -> RequestError:
    return RequestError(
        f"the latest tool results answer calls that are not open: {why}", code="unknown_tool_call", param="messages"
    )
