"""The seam between the pool and one kind of worker: a `Backend` makes one attempt at one call.

A backend does not retry, fail over, limit or price, nor bound its total time; the pool does. It raises `WorkerError`
and nothing else of its own; whatever else escapes from an HTTP library is turned into one by `faults.mapped()`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeAlias

from ..types import FinishReason, Message, Sampling, ToolCall, Usage, Value

__all__ = ["Backend", "Completion", "Delta", "OnDelta", "Query"]


class Query(Value, frozen=True, kw_only=True):
    """What one worker is asked, free of its dialect."""

    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    task: str | None = None
    """As in `Request`."""
    question: str | None = None
    """The client's last message, where `messages` quote it, for workers in this process; never sent."""
    role: str = "worker"
    """As in `Step`, for workers that replay answers; never sent."""
    verifies: str | None = None
    """The answer to be verified, for workers that replay answers; never sent."""
    results: Mapping[int, str] = {}
    """Replies of the steps that this one sees, by position in the workflow, for workers in this process; never sent."""


class Delta(Value, frozen=True, kw_only=True):
    """A piece of a streamed answer. Tool calls come whole, at the end, in the `Completion`."""

    text: str = ""
    reasoning: str = ""


OnDelta: TypeAlias = Callable[[Delta], Awaitable[None]]


class Completion(Value, frozen=True, kw_only=True):
    """One attempt's result as the provider gave it, before pricing."""

    text: str
    finish_reason: FinishReason
    answer: str | None = None
    """As in `Reply`."""
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str | None = None
    usage: Usage = Usage()
    provider_model: str | None = None
    provider_id: str | None = None
    first_token_ms: float | None = None
    sent_bytes: int | None = None
    sent_sha256: str | None = None
    received_bytes: int | None = None


class Backend(Protocol):
    """How one worker is called."""

    async def complete(self, query: Query, on_delta: OnDelta | None) -> Completion:
        """One attempt; streamed through `on_delta` when that is given.

        Raises:
            WorkerError: the attempt failed; `code` says how, `partial` whether a delta had been passed on.
        """
        ...

    async def close(self) -> None:
        """Give back what the backend holds. Idempotent."""
        ...
