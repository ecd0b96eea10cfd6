"""What a call costs at worst, and the seam to who pays for it: reserve that, call, settle what it came to.

A worst case rests on what is declared (prices, limits, windows) and on no token being shorter than a byte. What a
provider reads or charges on top because `extra_body` switched it on (searches, plugins) is not in it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol, TypeGuard

import msgspec

from ..types import Json, Message, TextPart, Usage
from .backend import Query
from .prices import Price
from .spec import WorkerSpec, output_limit

__all__ = [
    "DROPPED",
    "IMPOSED_OUTPUT_TOKENS",
    "BudgetEnded",
    "Hold",
    "Payment",
    "Purse",
    "Spend",
    "limit_output",
    "reserve",
    "worst_case",
]

_log = logging.getLogger(__name__)

DROPPED = "nobody waits for this reply any more"
"""With this message a step's task is cancelled when the plan needs its reply no longer."""
IMPOSED_OUTPUT_TOKENS = 16_384
"""Of a call that nobody limits, while a budget has to be kept: it needs a bound. Long, for an answer."""
PER_MESSAGE_TOKENS = 16
"""What a chat template writes around a message: 3 to 8 tokens in those in use."""
PER_REQUEST_TOKENS = 1024
"""What a template adds of its own: a default system text (up to some 500 tokens), the words that introduce tools."""
_LIMIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "openai": ("max_tokens", "max_completion_tokens"),
    "anthropic": ("max_tokens",),
    "local": ("max_new_tokens",),
}
"""Where `extra_body` may set a limit. Providers count reasoning against it: what it limits is what they bill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """What one call costs, or may cost. None: unknown."""

    tokens: int | None
    """Input and output together."""
    usd: Decimal | None


_UNKNOWN = Spend(tokens=None, usd=None)


class BudgetEnded(Exception):  # not an error: the run keeps what it has
    """A call cannot be paid for any more. Nothing of it has been sent."""

    def __init__(self, limit: str) -> None:
        super().__init__(f"budget:{limit}")
        self.limit = limit
        """calls | tokens | usd"""


class Hold(Protocol):
    """A reservation."""

    def settle(self, spent: Spend) -> None:
        """What the call came to; what is unknown stays spent at its worst case. Once, and always."""
        ...


class Purse(Protocol):
    """Pays for calls."""

    @property
    def is_bounded(self) -> bool:
        """Tokens or USD are limited, so that a call's worst case has to be known."""
        ...

    @property
    def closed(self) -> str | None:
        """Why nobody waits any more for calls in flight, which are cancelled therefore. None: somebody does."""
        ...

    async def reserve(self, worst: Spend) -> Hold:
        """Take the worst case of one call out of what is left; waits while calls in flight may still give some back.

        Raises:
            BudgetEnded: it is too much even if they give back everything, or it is unknown and limited.
        """
        ...


class Payment:
    """For one attempt. The end of its `with` block settles it: at what it came to, else at its worst case."""

    __slots__ = ("_hold", "_spent", "_worker", "_worst", "query")

    def __init__(self, query: Query, *, worker: str, worst: Spend = _UNKNOWN, hold: Hold | None = None) -> None:
        self.query = query
        """What may be sent for it."""
        self._worker = worker
        self._worst = worst
        self._hold = hold
        self._spent = _UNKNOWN

    def came_to(self, usage: Usage, cost_usd: Decimal | None) -> None:
        """As it stands in the record, so that an account and the record agree."""
        counts = (usage.input_tokens, usage.output_tokens)
        self._spent = Spend(tokens=None if None in counts else sum(count or 0 for count in counts), usd=cost_usd)

    def __enter__(self) -> Payment:
        return self

    def __exit__(self, *_: object) -> None:
        if self._hold is None:
            return
        if _exceeds(self._spent.tokens, self._worst.tokens) or _exceeds(self._spent.usd, self._worst.usd):
            _log.warning(
                "worker %r used more than was reserved (%s tokens of %s, %s USD of %s): a budget may be exceeded; "
                "correct its max_output_tokens, context_tokens or prices",
                self._worker,
                self._spent.tokens,
                self._worst.tokens,
                self._spent.usd,
                self._worst.usd,
            )
        self._hold.settle(self._spent)


async def reserve(purse: Purse | None, query: Query, spec: WorkerSpec, price: Price | None) -> Payment:
    """The payment for one attempt.

    Raises:
        BudgetEnded: it cannot be paid for.
    """
    if purse is None:
        return Payment(query, worker=spec.id)
    worst = _UNKNOWN
    if purse.is_bounded:
        query = limit_output(query, spec)
        worst = worst_case(query, spec, price)
    return Payment(query, worker=spec.id, worst=worst, hold=await purse.reserve(worst))


# --- the worst case ---


def limit_output(query: Query, spec: WorkerSpec) -> Query:
    """The query, with a limit imposed on its output if it has none."""
    if _output_tokens(query, spec) is not None:
        return query
    sampling = msgspec.structs.replace(query.sampling, max_output_tokens=IMPOSED_OUTPUT_TOKENS)
    return msgspec.structs.replace(query, sampling=sampling)


def worst_case(query: Query, spec: WorkerSpec, price: Price | None) -> Spend:
    """The most that a worker may charge for a query: every byte a token, every token at the dearest input price."""
    output_tokens = _output_tokens(query, spec)
    input_tokens = _input_tokens(query, spec)
    tokens = None if input_tokens is None or output_tokens is None else input_tokens + output_tokens
    return Spend(tokens=tokens, usd=None if price is None else _dearest_usd(price, input_tokens, output_tokens))


def _dearest_usd(price: Price, input_tokens: int | None, output_tokens: int | None) -> Decimal | None:
    plain = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
    costs = (
        price.cost_usd(plain),
        price.cost_usd(msgspec.structs.replace(plain, cache_write_tokens=input_tokens)),
        price.cost_usd(msgspec.structs.replace(plain, cached_input_tokens=input_tokens)),
    )
    return max((cost for cost in costs if cost is not None), default=None)


def _output_tokens(query: Query, spec: WorkerSpec) -> int | None:
    """None: as many as it likes."""
    named = [spec.extra_body.get(name) for name in _LIMIT_NAMES.get(spec.dialect, ())]
    sent = [limit for limit in (output_limit(spec, query.sampling.max_output_tokens), *named) if _is_count(limit)]
    limits = [max(sent)] if sent else []
    if not sent and spec.max_output_tokens is None:
        limits += _own_limit(spec)
    limits += [limit for limit in (spec.max_output_tokens, spec.context_tokens) if limit is not None]
    return min(limits, default=None)


def _own_limit(spec: WorkerSpec) -> list[int]:
    """Of a dialect that never asks without a limit."""
    if spec.dialect == "anthropic":
        from .anthropic import DEFAULT_MAX_TOKENS  # here, because it imports an HTTP library

        return [DEFAULT_MAX_TOKENS]
    return [IMPOSED_OUTPUT_TOKENS] if spec.dialect == "local" else []  # its own is shorter, and not to be lengthened


def _input_tokens(query: Query, spec: WorkerSpec) -> int | None:
    """None: nobody knows. What an image comes to, only the window bounds."""
    if any(_holds_more_than_text(message) for message in query.messages):
        return spec.context_tokens
    sampling = query.sampling
    bodies: list[Json] = [
        *sampling.tools,
        *([sampling.response_format] if sampling.response_format else []),
        *([dict(spec.extra_body)] if spec.extra_body else []),
    ]
    sent = (text for message in query.messages for text in _texts(message))
    tokens = (
        PER_REQUEST_TOKENS
        + PER_MESSAGE_TOKENS * len(query.messages)
        + sum(_size_bytes(text) for text in sent)
        + sum(_size_bytes(json.dumps(body, ensure_ascii=False, default=str)) for body in bodies)
    )
    return tokens if spec.context_tokens is None else min(tokens, spec.context_tokens)


def _texts(message: Message) -> Iterator[str]:
    if isinstance(message.content, str):
        yield message.content
    else:
        yield from (part.text for part in message.content or () if isinstance(part, TextPart))
    yield from (text for text in (message.name, message.tool_call_id) if text is not None)
    for call in message.tool_calls:
        yield from (call.id, call.name, call.arguments)


def _holds_more_than_text(message: Message) -> bool:
    return isinstance(message.content, tuple) and any(not isinstance(part, TextPart) for part in message.content)


def _size_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _is_count(value: Json) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0  # 0 is no limit to everyone


def _exceeds(spent: int | Decimal | None, worst: int | Decimal | None) -> bool:
    return spent is not None and worst is not None and spent > worst
