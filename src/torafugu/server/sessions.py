"""Which requests belong to one conversation, and which worker's prompt cache is warm for it.

A conversation is found by what the client calls it, else by what was said in it; never across API keys. What is
remembered lives in this process, for a few minutes: after a restart, or on another replica, a conversation starts cold,
which costs a prompt that is read anew and nothing else. Nothing is decided here; `orchestrate/selector.py` weighs.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..errors import ConfigError
from ..orchestrate.policy import SWITCH_MARGIN
from ..types import Json, Message, Reply, Request, Warm
from .connection import find_header

__all__ = ["Session", "Sessions", "SessionsConfig", "find_label", "find_session"]

_ID_HEADERS = (b"x-session-id", b"session-id", b"thread-id", b"x-session-affinity", b"x-claude-code-session-id")
_MAX_LABEL = 200
_CACHEABLE_TOKENS = 4096
"""Every provider caches prompts from this size on; most begin at 1024."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionsConfig:
    """The `[sessions]` table: how long a conversation keeps its worker, and what a switch must be worth."""

    warm_s: float = 300.0
    """How long a prompt cache is taken to live after a reply: five minutes at Anthropic, five to ten at OpenAI. 0 lets
    every request be routed afresh."""
    switch_margin: float = SWITCH_MARGIN
    """The gain in expected reward, 0 to 1, for which a large warm cache is given up; less for smaller ones."""
    limit: int = 10_000
    """Conversations remembered at one time; beyond it the one that was silent longest is forgotten."""

    def __post_init__(self) -> None:
        if not 0 <= self.warm_s < float("inf"):  # also refuses NaN
            raise ConfigError(f"warm_s {self.warm_s!r}: expected a number of seconds, 0 or more")
        if not 0 <= self.switch_margin <= 1:
            raise ConfigError(f"switch_margin {self.switch_margin!r}: expected 0 to 1")
        if self.limit < 1:
            raise ConfigError(f"limit {self.limit}: expected at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Which conversation a request belongs to."""

    label: str | None
    """The client's own name of it, as the record keeps it; None when it gave none. Several conversations may bear one
    name: an agent's helpers, its request for a title."""
    key: bytes | None
    """Under which its worker is looked up. None: it has no name and no answer yet, so that whoever asks the same would
    be taken for the same."""
    told: bytes | None
    """Hash of all that was said so far, which with the next answer is where it goes on; None where a name says that."""


def find_session(
    headers: Iterable[tuple[bytes, bytes]], *, hint: str | None, request: Request, tenant: str | None
) -> Session:
    """By a header that names the session, else by `hint`, a name from the body, else by what was said.

    `tenant` is the name of the API key; None where there are no keys.
    """
    name = _find_name(headers, hint)
    if name is None:
        return _find_unnamed(request.messages, tenant)
    # A name covers more than one prefix (helpers, titles, what follows a compaction), and each has its own cache.
    # System prompts stay out of it: agents put the time and the state of their tools there.
    opening = itertools.takewhile(lambda message: message.role != "assistant", request.messages)
    key = _digest(["named", tenant, name, *(message.text for message in opening if message.role == "user")])
    return Session(label=_to_label(name), key=key, told=None)


def find_label(headers: Iterable[tuple[bytes, bytes]], *, hint: str | None) -> str | None:
    """`Session.label` alone, without reading the conversation."""
    name = _find_name(headers, hint)
    return None if name is None else _to_label(name)


def _find_name(headers: Iterable[tuple[bytes, bytes]], hint: str | None) -> str | None:
    pairs = list(headers)
    named = (value.decode("latin-1") for name in _ID_HEADERS if (value := find_header(pairs, name)))
    return next(named, None) or hint or None


def _find_unnamed(messages: Sequence[Message], tenant: str | None) -> Session:
    """By all that was said up to the latest answer: that, and no more, is what a prompt cache can hold.

    Less would not do. aider begins every conversation with the same examples, answers included.
    """
    told, key = _digest(["unnamed", tenant]), None
    for is_answer, turns in itertools.groupby(messages, lambda message: message.role == "assistant"):
        told = _tell(told, list(turns))
        key = told if is_answer else key
    return Session(label=None, key=key, told=told)


class Sessions:
    """Which worker replied last in each conversation. For one thread, that of the event loop."""

    def __init__(self, *, config: SessionsConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._last: OrderedDict[bytes, _Last] = OrderedDict()  # by age, the oldest first

    def __len__(self) -> int:
        return len(self._last)

    def warm(self, session: Session) -> Warm | None:
        """Where its cache is warm; None where it is not, as far as this process knows."""
        last = None if session.key is None else self._find(session.key)
        return None if last is None else Warm(worker=last.worker, input_tokens=last.cached_tokens)

    def note(self, session: Session, reply: Reply) -> None:
        """`reply` is the conversation's latest, by whichever worker: the one that took over, after a failover.

        Not for housekeeping and not for workflows: their calls leave nothing behind that the next request could use.
        """
        key, usage = session.key, reply.usage
        before = None if key is None else self._find(key)
        if session.told is not None:
            said = Message(role="assistant", content=reply.text, tool_calls=reply.tool_calls)
            key = _tell(session.told, [said])
        assert key is not None
        cached_tokens = usage.input_tokens
        if before is not None and before.worker == reply.worker and _was_lost(before, usage.cached_input_tokens):
            cached_tokens = 0
        self._last[key] = _Last(
            worker=reply.worker, at=self._clock(), input_tokens=usage.input_tokens, cached_tokens=cached_tokens
        )
        self._last.move_to_end(key)
        self._drop_old()

    def _find(self, key: bytes) -> _Last | None:
        last = self._last.get(key)
        return last if last is not None and self._is_warm(last) else None

    def _is_warm(self, last: _Last) -> bool:
        return self._clock() - last.at < self._config.warm_s

    def _drop_old(self) -> None:
        while len(self._last) > self._config.limit or not self._is_warm(next(iter(self._last.values()))):
            self._last.popitem(last=False)
            if not self._last:
                return


@dataclass(frozen=True, slots=True, kw_only=True)
class _Last:
    worker: str
    at: float
    """On the monotonic clock."""
    input_tokens: int | None
    cached_tokens: int | None
    """Of them, what the worker's cache can be taken to hold."""


def _was_lost(before: _Last, cached_input_tokens: int | None) -> bool:
    """The same worker read a large prompt again and found nothing of it: it keeps no cache, so none is given up."""
    return cached_input_tokens == 0 and before.input_tokens is not None and before.input_tokens >= _CACHEABLE_TOKENS


def _tell(told: bytes, turns: Sequence[Message]) -> bytes:
    """`told` and these, which are all the assistant's or all others'.

    An answer comes back from clients with other blanks, and other ids and JSON in its tool calls.
    """
    if turns[0].role != "assistant":
        return _digest([told.hex(), [(turn.role, turn.text) for turn in turns]])
    text = " ".join(" ".join(turn.text for turn in turns).split())
    return _digest([told.hex(), text, [call.name for turn in turns for call in turn.tool_calls]])


def _digest(parts: Json) -> bytes:
    return hashlib.sha256(json.dumps(parts).encode()).digest()  # in ASCII: text may hold halves of surrogate pairs


def _to_label(name: str) -> str:
    if len(name) <= _MAX_LABEL:
        return name
    return f"sha256:{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()}"
