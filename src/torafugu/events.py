"""What happened in a run, as append-only events. The record of a run is the list of these.

`event_to_json` and `event_from_json` are the one stored form, versioned by `SCHEMA`. A stored run can be shown and
replayed from its events alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TypeAlias

import msgspec

from .types import Json, Pending, Plan, Reply, Request, Usage, Value

__all__ = [
    "SCHEMA",
    "Accepted",
    "Answered",
    "Called",
    "Event",
    "Failed",
    "Planned",
    "Replied",
    "Stopped",
    "Suspended",
    "event_from_json",
    "event_to_json",
]

SCHEMA = 1


class Accepted(Value, frozen=True, kw_only=True, tag_field="kind", tag="accepted"):
    """The run exists; nothing has been paid for yet."""

    request: Request
    policy: str
    """Identity of the policy: its name and what it was loaded from."""
    key_id: str | None = None
    """Which API key asked; never the key."""
    session: str | None = None
    body_sha256: str | None = None
    resumes: str | None = None
    """The run that had to wait for the tool results of this request."""
    wire: Mapping[str, Json] | None = None
    """What of the client's own form is needed to tell it the answer again. None: it does not want to be."""


class Planned(Value, frozen=True, kw_only=True, tag_field="kind", tag="planned"):
    """The policy decided what to call."""

    plan: Plan
    decision_ms: float


class Called(Value, frozen=True, kw_only=True, tag_field="kind", tag="called"):
    """One attempt at one step left for a worker."""

    step: int
    worker: str
    attempt: int
    """Counts from 1 within the step."""
    reason: str
    """planned | retry | failover"""


class Replied(Value, frozen=True, kw_only=True, tag_field="kind", tag="replied"):
    """An attempt succeeded."""

    step: int
    attempt: int
    reply: Reply


class Failed(Value, frozen=True, kw_only=True, tag_field="kind", tag="failed"):
    """An attempt failed; what it used, if that is known, still counts."""

    step: int
    worker: str
    attempt: int
    fault: str
    code: str
    message: str
    latency_ms: float | None = None
    usage: Usage = Usage()
    cost_usd: Decimal | None = None


class Suspended(Value, frozen=True, kw_only=True, tag_field="kind", tag="suspended"):
    """Steps have called the client's tools. With their results, another run goes on from here."""

    pending: Pending


class Answered(Value, frozen=True, kw_only=True, tag_field="kind", tag="answered"):
    """The reply of `step` is the run's answer."""

    step: int
    worker: str
    is_cut: bool = False
    """It is but what a workflow had come to when it had to end."""
    is_for_client: bool = True
    """False: the text beside the tool calls of suspended steps is not."""
    notes: Mapping[str, Json] = {}


class Stopped(Value, frozen=True, kw_only=True, tag_field="kind", tag="stopped"):
    """The run is over. The last event of every run."""

    by: str
    """answer | budget:(calls | tokens | usd | seconds | depth) | routed | suspended | error | client_closed |
    interrupted"""
    latency_ms: float | None
    calls: int
    """Attempts that left for a worker."""
    usage: Usage
    cost_usd: Decimal | None
    """Sum over all attempts; None when one of them is unknown."""
    error: Mapping[str, Json] | None = None


Event: TypeAlias = Accepted | Planned | Called | Replied | Failed | Suspended | Answered | Stopped


class _Stored(msgspec.Struct, frozen=True):
    v: int
    at: float
    event: Event


_decoder = msgspec.json.Decoder(_Stored)


def event_to_json(event: Event, *, at: float) -> bytes:
    """One event as JSON; `at` is UTC epoch seconds. Fields at their default are left out."""
    return msgspec.json.encode(_Stored(SCHEMA, at, event))


def event_from_json(line: bytes) -> tuple[float, Event]:
    """(at, event).

    Raises:
        ValueError: another schema, an unknown kind, or a field of the wrong type.
    """
    stored = _decoder.decode(line)
    if stored.v != SCHEMA:
        raise ValueError(f"event schema {stored.v!r}: this version reads schema {SCHEMA}")
    return stored.at, stored.event
