"""What one run may spend, and what it has spent. Running out is not an error: the run says `stopped_by` and keeps its
best reply so far.

`Budget` is the limits, `RunBudget` the account of one run, or of many that share it. Every call's worst case is
reserved before it is made, so calls at the same time cannot overspend together: spent and held together never pass a
limit, unless a provider charges more than the worst case of what it was sent (`pool/purse.py` says what that rests on).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

from ..errors import ConfigError
from ..pool.purse import BudgetEnded, Spend

__all__ = ["Budget", "Hold", "RunBudget"]

_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits; None is no limit. Seconds are held by the loop, depth by the policy that plans in rounds."""

    calls: int | None = 32
    """Attempts that leave for a worker."""
    tokens: int | None = None
    """Input and output of all attempts together."""
    usd: Decimal | None = None
    seconds: float | None = 600.0
    depth: int | None = None
    """Rounds of planning: 1 forbids a conductor to call itself. None: as many as the policy's effort allows."""

    def __post_init__(self) -> None:
        for name in ("calls", "tokens", "seconds", "depth"):
            limit = getattr(self, name)
            if limit is not None and not 0 <= limit < float("inf"):  # also refuses NaN
                raise ConfigError(f"{name} {limit!r}: expected 0 or more")
        if self.usd is not None and not (self.usd.is_finite() and self.usd >= 0):
            raise ConfigError(f"usd {self.usd}: expected 0 or more US dollars; leave it out for no limit")


class RunBudget:
    """The account. Lives on one event loop.

    Who has to wait is served in the order of coming: an account that is short for one reservation gives nothing to any
    that came later, so a large one is not overtaken for ever by small ones. The price is that the small ones wait, for
    at most as long as the calls take that are in flight. One that an account of its own keeps waiting holds nobody up
    who shares another with it. As many wait as there are steps at one time, which the runs bound.
    """

    def __init__(self, limits: Budget, *, shared: RunBudget | None = None) -> None:
        """`shared` pays too: a call is made only if both can pay for it."""
        self.limits = limits
        self.shared = shared
        self.calls = 0
        """Reserved or made."""
        self.tokens = 0
        """Spent; what is unknown counts as its worst case, or as nothing where no limit asked for that."""
        self.usd = _ZERO
        self.deadline: asyncio.Timeout | None = None
        """Of the run, while it runs: the loop's."""
        self._closed: str | None = None
        self._held_tokens = 0
        self._held_usd = _ZERO
        self._queue: deque[_Waiting] = deque() if shared is None else shared._queue  # one for all that share

    @property
    def is_bounded(self) -> bool:
        return any(account.limits.tokens is not None or account.limits.usd is not None for account in self._accounts())

    @property
    def closed(self) -> str | None:
        """As `pool.purse.Purse.closed`."""
        if self.deadline is not None and self.deadline.expired():
            return "the run's time is up"
        return self._closed

    def close(self, why: str) -> None:
        """The run ends, for this reason unless there was one before."""
        self._closed = self.closed or why

    @property
    def held(self) -> Spend:
        """The worst case of all calls in flight."""
        return Spend(tokens=self._held_tokens, usd=self._held_usd)

    @property
    def ended(self) -> str | None:
        """The limit that is reached: not one more call can be paid for. None: perhaps one can."""
        for account in self._accounts():
            limits = account.limits
            if limits.calls is not None and account.calls >= limits.calls:
                return "calls"
            if limits.tokens is not None and account.tokens >= limits.tokens:
                return "tokens"
            if limits.usd is not None and account.usd >= limits.usd:
                return "usd"
        return None

    def left(self, *, elapsed_s: float) -> Budget:
        """What nobody has spent or reserved; of `seconds` and `depth`, which are not shared, the run's own."""
        calls, tokens, usd = [], [], []
        for account in self._accounts():
            limits = account.limits
            if limits.calls is not None:
                calls.append(max(0, limits.calls - account.calls))
            if limits.tokens is not None:
                tokens.append(max(0, limits.tokens - account.tokens - account._held_tokens))
            if limits.usd is not None:
                usd.append(max(_ZERO, limits.usd - account.usd - account._held_usd))
        return Budget(
            calls=min(calls, default=None),
            tokens=min(tokens, default=None),
            usd=min(usd, default=None),
            seconds=None if self.limits.seconds is None else max(0.0, self.limits.seconds - elapsed_s),
            depth=self.limits.depth,
        )

    async def reserve(self, worst: Spend) -> Hold:
        """As `pool.purse.Purse.reserve`: all accounts pay, or none does.

        Raises:
            BudgetEnded: one of them cannot, whatever the calls in flight give back.
        """
        waiting = _Waiting(self, worst)
        self._queue.append(waiting)
        self._serve()
        try:
            await waiting.turn  # at once, where nobody has to wait
        except asyncio.CancelledError:
            self._forget(waiting)
            raise
        return Hold(self, worst)

    def _serve(self) -> None:
        """Settles the turn of everyone in the queue who can be paid for, or never can."""
        short: set[RunBudget] = set()
        for waiting in list(self._queue):
            if waiting.turn.done():  # cancelled; its task, which will come to `_forget`, has only not run yet
                continue
            accounts = list(waiting.account._accounts())
            ended = next((limit for account in accounts if (limit := account._can_never_pay(waiting.worst))), None)
            if ended is not None:
                self._queue.remove(waiting)
                waiting.turn.set_exception(BudgetEnded(ended))
            elif lacking := {account for account in accounts if not account._can_pay(waiting.worst)}:
                short |= lacking
            elif short.isdisjoint(accounts):
                self._queue.remove(waiting)
                waiting.account._hold(waiting.worst)
                waiting.turn.set_result(None)

    def _forget(self, waiting: _Waiting) -> None:
        if waiting in self._queue:
            self._queue.remove(waiting)
        elif not waiting.turn.cancelled() and waiting.turn.exception() is None:  # paid for in the very moment
            for account in self._accounts():
                account.calls -= 1
                account._release(waiting.worst)
        self._serve()

    def _settle(self, worst: Spend, spent: Spend) -> None:
        for account in self._accounts():
            account._release(worst)
            account.tokens += (worst.tokens or 0) if spent.tokens is None else spent.tokens
            account.usd += (worst.usd or _ZERO) if spent.usd is None else spent.usd
        self._serve()

    # --- one account's own ---

    def _can_never_pay(self, worst: Spend) -> str | None:
        """The limit, where not even all that is held would be enough. Calls are never given back."""
        limits = self.limits
        if limits.calls is not None and self.calls >= limits.calls:
            return "calls"
        if limits.tokens is not None and (worst.tokens is None or self.tokens + worst.tokens > limits.tokens):
            return "tokens"
        if limits.usd is not None and (worst.usd is None or self.usd + worst.usd > limits.usd):
            return "usd"
        return None

    def _can_pay(self, worst: Spend) -> bool:
        limits = self.limits
        tokens = self.tokens + self._held_tokens + (worst.tokens or 0)
        usd = self.usd + self._held_usd + (worst.usd or _ZERO)
        return (limits.tokens is None or tokens <= limits.tokens) and (limits.usd is None or usd <= limits.usd)

    def _hold(self, worst: Spend) -> None:
        for account in self._accounts():
            account.calls += 1
            account._held_tokens += worst.tokens or 0
            account._held_usd += worst.usd or _ZERO

    def _release(self, worst: Spend) -> None:
        self._held_tokens -= worst.tokens or 0
        self._held_usd -= worst.usd or _ZERO

    def _accounts(self) -> Iterator[RunBudget]:
        account: RunBudget | None = self
        while account is not None:
            yield account
            account = account.shared


class _Waiting:
    """A reservation that is asked for."""

    __slots__ = ("account", "turn", "worst")

    def __init__(self, account: RunBudget, worst: Spend) -> None:
        self.account = account
        self.worst = worst
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Hold:
    """A reservation, until it is settled."""

    __slots__ = ("_account", "_worst")

    def __init__(self, account: RunBudget, worst: Spend) -> None:
        self._account: RunBudget | None = account
        self._worst = worst

    def settle(self, spent: Spend) -> None:
        """As `pool.purse.Hold.settle`."""
        assert self._account is not None, "settled twice"
        account, self._account = self._account, None
        account._settle(self._worst, spent)
