"""How hard a worker is driven, and when it is left alone: its `Gate` and its `Breaker`.

Plain state without clocks or tasks of its own: the pool passes the time in. Both belong to one event loop at a time.
"""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["Breaker", "Gate"]

OPEN_AFTER = 5
"""Countable failures in a row."""
OPEN_S = 30.0


class Gate:
    """`places` calls at once, at most `queue` waiting for one, first come first served."""

    __slots__ = ("_free", "_queue", "_waiting")

    def __init__(self, *, places: int, queue: int) -> None:
        self._free = places
        self._queue = queue
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def is_full(self) -> bool:
        """One more would neither find a place nor room to wait."""
        return self._free == 0 and len(self._waiting) >= self._queue

    def enter_at_once(self) -> bool:
        """True if there was a free place; it is now taken."""
        if self._free == 0:
            return False
        self._free -= 1
        return True

    async def enter(self) -> None:
        """Wait for a place. Whoever has one must `leave`."""
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # handed over in the very moment of giving up
                self.leave()
            elif place in self._waiting:
                self._waiting.remove(place)
            raise

    def leave(self) -> None:
        """Hand the place to who has waited longest, or free it."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._free += 1


class Breaker:
    """Whether a worker may be asked. Five failures in a row that count close it off for 30 s; then one call tries."""

    __slots__ = ("_failures", "_is_probing", "_rests_until", "is_disabled")

    def __init__(self) -> None:
        self._failures = 0
        self._rests_until = 0.0
        self._is_probing = False
        self.is_disabled = False
        """Its key was refused: only an answer, got because there was nobody else to ask, enables it again."""

    def refusal(self, now: float) -> str | None:
        """Why the worker may not be asked at `now`; None when it may."""
        if not self._rests_until and not self.is_disabled:
            return None  # the common case
        if self.is_disabled:
            return "its key was refused"
        if now < self._rests_until:
            return f"it rests for another {self._rests_until - now:.1f} s"
        return "another call is trying it" if self._is_probing else None

    def start(self) -> None:
        """A call leaves for the worker."""
        self._is_probing = self._failures >= OPEN_AFTER

    def succeed(self) -> None:
        """The worker replied."""
        self._failures = 0
        self._rests_until = 0.0
        self._is_probing = self.is_disabled = False

    def fail(self, now: float) -> None:
        """The worker failed in a way that counts."""
        self._failures += 1
        self._is_probing = False
        if self._failures >= OPEN_AFTER:
            self._rests_until = now + OPEN_S

    def let_go(self) -> None:
        """The call ended without saying anything about the worker's health."""
        self._is_probing = False

    def rest(self, now: float, seconds: float) -> None:
        """The provider asked for a pause."""
        self._is_probing = False
        self._rests_until = max(self._rests_until, now + seconds)
