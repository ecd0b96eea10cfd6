"""What the store gives back: a run's line in the list, a run with its events, totals. `None` means unknown.

Without defaults, so that every field stands in the JSON that is made of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Literal, TypeAlias

from ..events import Event
from ..types import Value

__all__ = ["RunRow", "Status", "StoreTotals", "StoredRun", "WorkerHistory"]

Status: TypeAlias = Literal["running", "answered", "failed", "client_closed", "interrupted", "budget", "routed"]


class RunRow(Value, frozen=True, kw_only=True):
    """The ledger's line of one run."""

    id: str
    accepted_at: float
    """UTC epoch seconds."""
    model: str
    """What the client asked for."""
    policy: str
    key_id: str | None
    session: str | None
    body_sha256: str | None
    status: Status
    stopped_by: str | None
    """As in `Stopped.by`; None while it runs."""
    workers: tuple[str, ...]
    """Workers called, in order, each once; empty while it runs."""
    calls: int | None
    """Attempts that left for a worker; None while it runs."""
    input_tokens: int | None
    """Over all attempts; None while it runs, and when one of them is unknown. So the other two."""
    output_tokens: int | None
    cost_usd: Decimal | None
    latency_ms: float | None
    error_code: str | None


class StoredRun(Value, frozen=True, kw_only=True):
    """One run as it was recorded."""

    run: RunRow
    events: tuple[tuple[float, Event], ...]
    """(UTC epoch seconds, event), in the order in which they happened."""


class StoreTotals(Value, frozen=True, kw_only=True):
    """What the whole store holds."""

    runs: Mapping[str, int]
    """Number of runs by status."""
    attempts: int
    cost_usd: Decimal
    """Sum of the known costs of all attempts."""
    attempts_without_cost: int
    """Attempts whose cost is unknown: `cost_usd` is at least this incomplete."""


class WorkerHistory(Value, frozen=True, kw_only=True):
    """What the latest replies of a worker were like. The means are None when none of them tells."""

    replies: int
    """How many were looked at; 0: it never replied."""
    output_tokens: float | None
    """Mean, of one reply."""
    seconds: float | None
    """Mean, of one reply."""
