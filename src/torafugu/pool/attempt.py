"""What one attempt leaves on record: a `Reply`, or a `Failed` with whose fault it was and what it cost. Pure.

Unknown stays None: only a failure that certainly never reached a model is free.
"""

from __future__ import annotations

import asyncio
from decimal import Decimal

from ..errors import WorkerError
from ..events import Failed
from ..types import Reply, Usage
from .backend import Completion
from .prices import Price
from .purse import DROPPED
from .soundness import mend_tool_calls
from .spec import NETWORK_DIALECTS, WorkerSpec

__all__ = ["failed", "filtered", "interrupted", "replied", "unsent"]

_UNBILLED = frozenset(
    {
        "connect_failed",
        "timeout_connect",
        "rate_limited",
        "auth",
        "rejected",
        "context_overflow",
        "overloaded",
        "unavailable",
    }
)
_ZERO_USAGE = Usage(input_tokens=0, cached_input_tokens=0, cache_write_tokens=0, output_tokens=0, reasoning_tokens=0)
_ZERO = Decimal(0)


def replied(spec: WorkerSpec, price: Price | None, completion: Completion, *, latency_ms: float) -> Reply:
    """A completion as a reply, priced."""
    cost_usd = None if price is None else price.cost_usd(completion.usage)
    sent_bytes = completion.sent_bytes
    return Reply(
        worker=spec.id,
        text=completion.text,
        finish_reason=completion.finish_reason,
        answer=completion.answer,
        tool_calls=mend_tool_calls(completion.tool_calls) if completion.tool_calls else (),
        reasoning=completion.reasoning,
        usage=completion.usage,
        cost_usd=cost_usd,
        price_source=price.source if price is not None and cost_usd is not None else None,
        provider_model=completion.provider_model,
        provider_id=completion.provider_id,
        latency_ms=latency_ms,
        first_token_ms=completion.first_token_ms,
        sent_bytes=0 if sent_bytes is None and spec.dialect not in NETWORK_DIALECTS else sent_bytes,
        sent_sha256=completion.sent_sha256,
        received_bytes=completion.received_bytes,
    )


def failed(
    step: int, attempt: int, worker: str, error: WorkerError, reply: Reply | None, *, latency_ms: float
) -> Failed:
    """A worker's failure; `reply` is the answer that was none, which is billed all the same."""
    usage, cost_usd = Usage(), None
    if reply is not None:
        usage, cost_usd = reply.usage, reply.cost_usd
    elif error.code in _UNBILLED and not error.partial:
        usage, cost_usd = _ZERO_USAGE, _ZERO
    return Failed(
        step=step,
        worker=worker,
        attempt=attempt,
        fault="worker",
        code=error.code,
        message=error.message,
        latency_ms=latency_ms,
        usage=usage,
        cost_usd=cost_usd,
    )


def filtered(step: int, attempt: int, reply: Reply) -> Failed:
    """A reply that the provider's filter emptied, and that another worker's replaced."""
    return Failed(
        step=step,
        worker=reply.worker,
        attempt=attempt,
        fault="worker",
        code="content_filter",
        message=f"worker {reply.worker!r}: its provider filtered the answer",
        latency_ms=reply.latency_ms,
        usage=reply.usage,
        cost_usd=reply.cost_usd,
    )


def unsent(step: int, worker: str, *, code: str, message: str) -> Failed:
    """A worker that was not asked, and why."""
    return Failed(
        step=step,
        worker=worker,
        attempt=0,  # none was made
        fault="worker",
        code=code,
        message=message,
        usage=_ZERO_USAGE,
        cost_usd=_ZERO,
    )


def interrupted(
    step: int,
    attempt: int,
    worker: str,
    by: BaseException,
    over_time: WorkerError | None,
    *,
    closed: str | None,
    latency_ms: float,
) -> Failed:
    """Who ended an attempt that did not end by itself. What it cost is unknown.

    `over_time`: the worker took longer than it may. `closed`: why nobody waited for it any more, as the purse says.
    """
    is_cancelled = isinstance(by, asyncio.CancelledError)
    code: str
    if is_cancelled and over_time is not None:
        fault, code, message = "worker", over_time.code, over_time.message
    elif is_cancelled and (why := DROPPED if by.args == (DROPPED,) else closed) is not None:
        fault, code, message = "policy", "dropped", f"the call of worker {worker!r} was dropped: {why}"
    elif is_cancelled:
        fault, code, message = "client", "cancelled", f"the call of worker {worker!r} was cancelled"
    else:
        fault, code = "us", "internal_error"
        message = f"worker {worker!r}: {type(by).__name__}: a fault of this program; its log has the trace"
    return Failed(
        step=step, worker=worker, attempt=attempt, fault=fault, code=code, message=message, latency_ms=latency_ms
    )
