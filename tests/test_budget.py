"""What may be spent is never overspent, however many spend it at one time, and nobody waits for ever to spend it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runs import REQUEST, Endless
from torafugu.errors import ConfigError, WorkerError
from torafugu.orchestrate import Budget, orchestrate
from torafugu.orchestrate.budget import Hold, RunBudget
from torafugu.pool import Completion, Limits, Member, OnDelta, Pool, Prices, Query, WorkerSpec, resolve_price
from torafugu.pool.purse import BudgetEnded, Spend
from torafugu.types import Message, Request, Sampling, Usage, sum_cost


def limited(usd: str | None = None, *, shared: RunBudget | None = None, **limits: Any) -> RunBudget:
    fields = {"calls": None, "usd": None if usd is None else Decimal(usd)} | limits
    return RunBudget(Budget(**fields), shared=shared)


def costing(usd: str | None, tokens: int | None = None) -> Spend:
    return Spend(tokens=tokens, usd=None if usd is None else Decimal(usd))


NOTHING = Spend(tokens=0, usd=Decimal(0))


async def settle_loop() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Asking:
    """Reservations that are asked for, by name, and in which order they were granted."""

    def __init__(self) -> None:
        self.granted: list[str] = []
        self.holds: dict[str, Hold] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, name: str, budget: RunBudget, worst: Spend) -> None:
        async def reserve() -> None:
            self.holds[name] = await budget.reserve(worst)
            self.granted.append(name)

        self.tasks[name] = asyncio.create_task(reserve())
        await settle_loop()

    async def settle(self, name: str, spent: Spend) -> None:
        self.holds.pop(name).settle(spent)
        await settle_loop()

    async def cancel(self, name: str) -> None:
        self.tasks[name].cancel()
        await settle_loop()

    def ended(self, name: str) -> str | None:
        task = self.tasks[name]
        error = task.exception() if task.done() and not task.cancelled() else None
        return error.limit if isinstance(error, BudgetEnded) else None


def run(work: Callable[[Asking], Coroutine[Any, Any, None]]) -> None:
    """Bounded, so that a reservation that is forgotten fails its test."""

    async def main() -> None:
        asking = Asking()
        await asyncio.wait_for(work(asking), 10)
        for task in asking.tasks.values():
            task.cancel()
        await asyncio.gather(*asking.tasks.values(), return_exceptions=True)

    asyncio.run(main())


# --- one account ---


def test_what_a_call_did_not_cost_can_be_spent_again() -> None:
    """The worst case is gone while the call runs, what it came to when it has ended."""

    async def work(asking: Asking) -> None:
        budget = limited("1.00", tokens=1000)
        hold = await budget.reserve(costing("0.90", 900))
        assert (budget.left(elapsed_s=0).usd, budget.left(elapsed_s=0).tokens) == (Decimal("0.10"), 100)
        hold.settle(costing("0.07", 120))
        assert (budget.usd, budget.tokens, budget.calls, budget.held) == (Decimal("0.07"), 120, 1, NOTHING)
        (await budget.reserve(costing("0.93", 880))).settle(costing("0", 0))

    run(work)


def test_unknown_cost_is_the_worst_case() -> None:
    """A call that may have cost its worst case has, as long as nobody knows better."""

    async def work(asking: Asking) -> None:
        budget = limited("1.00", tokens=1000)
        (await budget.reserve(costing("0.60", 600))).settle(costing(None, None))
        assert (budget.usd, budget.tokens) == (Decimal("0.60"), 600)
        with pytest.raises(BudgetEnded, match="budget:tokens"):
            await budget.reserve(costing("0.10", 401))
        with pytest.raises(BudgetEnded, match="budget:usd"):
            await budget.reserve(costing("0.41", 400))

    run(work)


@pytest.mark.parametrize(
    ("limits", "worst", "limit"),
    [
        ({"usd": Decimal("0.5")}, costing("0.500001", 1), "usd"),
        ({"usd": Decimal("0.5")}, costing(None, 1), "usd"),
        ({"tokens": 99}, costing("0", 100), "tokens"),
        ({"tokens": 99}, costing("0", None), "tokens"),
        ({"calls": 0}, costing("0", 0), "calls"),
    ],
)
def test_what_can_never_be_paid_ends_the_budget_at_once(limits: dict[str, Any], worst: Spend, limit: str) -> None:
    """Too much, or nobody knows how much: nothing is waited for and nothing is held."""

    async def work(asking: Asking) -> None:
        budget = limited(**limits)
        await asking.ask("a", budget, worst)
        assert asking.ended("a") == limit
        assert (budget.held, budget.calls) == (NOTHING, 0)

    run(work)


def test_unknown_does_not_matter_where_it_is_not_limited() -> None:
    """An account that limits calls alone asks for no price, and one in USD for no tokens."""

    async def work(asking: Asking) -> None:
        calls = limited(calls=2)
        assert not calls.is_bounded
        (await calls.reserve(costing(None))).settle(costing(None))
        assert (calls.ended, calls.calls) == (None, 1)
        (await calls.reserve(costing(None))).settle(costing(None))
        assert calls.ended == "calls"
        usd = limited("1")
        assert usd.is_bounded
        (await usd.reserve(costing("1", None))).settle(costing("1", None))
        assert usd.ended == "usd"

    run(work)


def test_it_is_waited_for_what_may_come_back() -> None:
    """A call that does not fit beside those in flight starts as soon as they have cost little enough."""

    async def work(asking: Asking) -> None:
        budget = limited("1.00")
        await asking.ask("a", budget, costing("0.60"))
        await asking.ask("b", budget, costing("0.50"))
        assert asking.granted == ["a"]
        await asking.settle("a", costing("0.50"))
        assert asking.granted == ["a", "b"]
        await asking.settle("b", costing("0.50"))
        assert (budget.usd, budget.ended) == (Decimal("1.00"), "usd")

    run(work)


def test_who_waits_in_vain_is_told() -> None:
    """When the calls in flight gave too little back, those that waited for it end, and smaller ones go on."""

    async def work(asking: Asking) -> None:
        budget = limited("1.00")
        await asking.ask("a", budget, costing("0.90"))
        await asking.ask("large", budget, costing("0.60"))
        await asking.ask("small", budget, costing("0.20"))
        assert asking.granted == ["a"]
        await asking.settle("a", costing("0.80"))
        assert (asking.ended("large"), asking.granted) == ("usd", ["a", "small"])

    run(work)


def test_a_limit_of_calls_is_not_waited_for() -> None:
    """Calls in flight give none back; who waits for dollars meanwhile is told when the calls are used up."""

    async def work(asking: Asking) -> None:
        budget = limited("1.00", calls=2)
        await asking.ask("a", budget, costing("0.60"))
        await asking.ask("b", budget, costing("0.60"))
        await asking.ask("c", budget, costing("0.60"))
        assert asking.ended("c") is None
        await asking.settle("a", costing("0.10"))
        assert (asking.granted, asking.ended("c")) == (["a", "b"], "calls")

    run(work)


# --- who waits ---


def test_a_large_reservation_is_not_overtaken() -> None:
    """First come, first served: small ones that would fit wait behind a large one that does not fit yet."""

    async def work(asking: Asking) -> None:
        budget = limited("1.00")
        await asking.ask("first", budget, costing("0.30"))
        await asking.ask("large", budget, costing("0.90"))
        for name in ("small 1", "small 2"):
            await asking.ask(name, budget, costing("0.01"))
        assert asking.granted == ["first"]
        await asking.settle("first", costing("0.05"))
        assert asking.granted == ["first", "large", "small 1", "small 2"]

    run(work)


def test_a_reservation_that_is_given_up_lets_the_next_through() -> None:
    """Those behind a cancelled one are looked at again, though no call has ended."""

    async def work(asking: Asking) -> None:
        budget = limited("1.00")
        await asking.ask("first", budget, costing("0.30"))
        await asking.ask("large", budget, costing("0.90"))
        await asking.ask("small", budget, costing("0.10"))
        await asking.cancel("large")
        assert asking.granted == ["first", "small"]

    run(work)


def test_a_reservation_that_is_given_up_as_it_is_granted_is_given_back() -> None:
    """Money and call return to the account, and to whoever waits next."""

    async def work(asking: Asking) -> None:
        budget = limited("1.00", calls=3)
        await asking.ask("first", budget, costing("0.30"))
        await asking.ask("large", budget, costing("0.90"))
        await asking.ask("next", budget, costing("0.80"))
        asking.holds.pop("first").settle(costing("0"))
        assert budget.held.usd == Decimal("0.90")  # granted; its task has not run yet
        await asking.cancel("large")
        assert (asking.granted, budget.calls, budget.held.usd) == (["first", "next"], 2, Decimal("0.80"))

    run(work)


def test_a_refusal_that_meets_a_cancellation_gives_nothing_back() -> None:
    """Told that it ended in the moment of giving up: nothing was held for it."""

    async def work(asking: Asking) -> None:
        budget = limited("1.00")
        await asking.ask("first", budget, costing("0.30"))
        await asking.ask("large", budget, costing("0.90"))
        asking.holds.pop("first").settle(costing("0.30"))
        await asking.cancel("large")
        assert asking.tasks["large"].cancelled()
        assert (budget.held, budget.calls) == (NOTHING, 1)

    run(work)


def test_a_hold_is_settled_once() -> None:
    """Paying twice is a fault of this program."""

    async def work(asking: Asking) -> None:
        hold = await limited("1").reserve(costing("1"))
        hold.settle(costing("1"))
        with pytest.raises(AssertionError, match="twice"):
            hold.settle(costing("1"))

    run(work)


# --- several accounts ---


def test_all_accounts_pay_or_none() -> None:
    """A run that may, under a shared account that may not, pays nothing, and the other way round."""

    async def work(asking: Asking) -> None:
        shared = limited("1.00", calls=2)
        rich, poor = limited("9.00", shared=shared), limited("0.10", shared=shared)
        assert rich.is_bounded
        assert limited(shared=shared).is_bounded
        for budget, worst in ((rich, "1.01"), (poor, "0.11")):
            with pytest.raises(BudgetEnded, match="usd"):
                await budget.reserve(costing(worst))
        assert [account.calls for account in (shared, rich, poor)] == [0, 0, 0]
        (await rich.reserve(costing("0.95"))).settle(costing("0.93"))
        assert [account.usd for account in (shared, rich, poor)] == [Decimal("0.93"), Decimal("0.93"), 0]
        assert poor.left(elapsed_s=0).usd == Decimal("0.07")
        (await poor.reserve(costing("0.07"))).settle(costing("0.06"))
        assert (poor.ended, rich.ended, shared.usd) == ("calls", "calls", Decimal("0.99"))

    run(work)


def test_a_run_that_waits_for_its_own_money_holds_nobody_up() -> None:
    """Only an account that is short itself keeps later reservations waiting."""

    async def work(asking: Asking) -> None:
        shared = limited("9.00")
        mine, other = limited("1.00", shared=shared), limited("9.00", shared=shared)
        await asking.ask("mine 1", mine, costing("0.60"))
        await asking.ask("mine 2", mine, costing("0.60"))
        await asking.ask("other", other, costing("0.60"))
        await asking.ask("mine 3", mine, costing("0.10"))
        assert asking.granted == ["mine 1", "other"]
        await asking.settle("mine 1", costing("0.10"))
        assert asking.granted == ["mine 1", "other", "mine 2", "mine 3"]

    run(work)


def test_those_who_share_wait_in_one_queue() -> None:
    """A run's large reservation is not overtaken in the shared account by another run's small ones."""

    async def work(asking: Asking) -> None:
        shared = limited("1.00")
        runs = [limited("1.00", shared=shared) for _ in range(3)]
        await asking.ask("first", runs[0], costing("0.50"))
        await asking.ask("large", runs[1], costing("0.90"))
        await asking.ask("small", runs[2], costing("0.01"))
        assert asking.granted == ["first"]
        await asking.settle("first", costing("0"))
        assert asking.granted == ["first", "large", "small"]

    run(work)


def test_left_is_the_least_of_all_accounts() -> None:
    """What may still be spent, never below nothing; seconds and depth are the run's own."""

    async def work(asking: Asking) -> None:
        shared = limited("1.00", tokens=50, seconds=1.0, depth=1)
        budget = limited("0.70", calls=4, seconds=60.0, depth=3, shared=shared)
        await budget.reserve(costing("0.20", 20))
        left = budget.left(elapsed_s=15.0)
        assert (left.calls, left.tokens, left.usd, left.seconds, left.depth) == (3, 30, Decimal("0.50"), 45.0, 3)
        (await shared.reserve(costing("0.80", 30))).settle(costing("1.30", 99))  # a provider broke its word
        left = budget.left(elapsed_s=61.0)
        assert (left.tokens, left.usd, left.seconds, budget.ended) == (0, Decimal(0), 0.0, "tokens")
        free = limited(seconds=None).left(elapsed_s=1.0)
        assert (free.calls, free.tokens, free.usd, free.seconds) == (None, None, None, None)

    run(work)


@pytest.mark.parametrize(
    "limits",
    [{"calls": -1}, {"tokens": -1}, {"depth": -1}, {"seconds": float("nan")}, {"seconds": float("inf")}]
    + [{"usd": Decimal(usd)} for usd in ("-0.01", "NaN", "Infinity")],
)
def test_a_limit_is_a_number(limits: dict[str, Any]) -> None:
    """What is below nothing, or no number, is refused by name."""
    with pytest.raises(ConfigError, match=f"{next(iter(limits))} .*expected 0 or more"):
        Budget(**limits)


# --- any interleaving ---

USD = st.integers(0, 400).map(lambda cents: Decimal(cents).scaleb(-4))
ASKED = st.builds(Spend, tokens=st.integers(0, 60) | st.none(), usd=USD | st.none())
STEPS = st.lists(
    st.tuples(st.just("reserve"), st.integers(0, 3), ASKED)
    | st.tuples(st.just("settle"), st.integers(0, 9), st.fractions(0, 1) | st.none())
    | st.tuples(st.just("cancel"), st.integers(0, 9), st.none())
    | st.tuples(st.just("turn"), st.integers(1, 3), st.none()),
    max_size=40,
)
LIMIT = st.builds(
    Budget,
    calls=st.integers(0, 12) | st.none(),
    tokens=st.integers(0, 150) | st.none(),
    usd=st.integers(0, 900).map(lambda cents: Decimal(cents).scaleb(-4)) | st.none(),
)


class World:
    """Three runs on one shared account, and one that pays from that account itself."""

    def __init__(self, limits: list[Budget]) -> None:
        self.shared = RunBudget(limits[0])
        self.accounts = [self.shared, *(RunBudget(limit, shared=self.shared) for limit in limits[1:])]
        self.tasks: list[tuple[asyncio.Task[Hold], Spend, RunBudget]] = []
        """In the order of asking."""

    async def do(self, kind: str, number: int, what: Any) -> None:
        if kind == "reserve":
            account = self.accounts[number]
            self.tasks.append((asyncio.create_task(account.reserve(what)), what, account))
        elif kind == "turn":
            for _ in range(number):
                await asyncio.sleep(0)
        elif kind == "settle":
            granted = [entry for entry in self.tasks if entry[0].done() and self.is_granted(entry[0])]
            if granted:
                task, worst, _ = entry = granted[number % len(granted)]
                self.tasks.remove(entry)
                task.result().settle(part_of(worst, what))
        elif waiting := [task for task, _, _ in self.tasks if not task.done()]:
            waiting[number % len(waiting)].cancel()
        self.check()

    def is_granted(self, task: asyncio.Task[Hold]) -> bool:
        return not task.cancelled() and task.exception() is None

    def check(self) -> None:
        for account in self.accounts:
            tokens, usd = account.held.tokens, account.held.usd
            limits = account.limits
            assert tokens is not None
            assert usd is not None
            assert tokens >= 0
            assert usd >= 0
            assert limits.calls is None or account.calls <= limits.calls
            assert limits.tokens is None or account.tokens + tokens <= limits.tokens
            assert limits.usd is None or account.usd + usd <= limits.usd

    def check_waiting(self) -> None:
        """Whoever waits first cannot be paid for now, but might when the calls in flight give back what they hold."""
        first = next(((account, worst) for task, worst, account in self.tasks if not task.done()), None)
        if first is None:
            return
        own, worst = first
        accounts = [own] if own is self.shared else [own, self.shared]
        assert any(exceeds(account, worst, held=account.held) for account in accounts)
        assert not any(exceeds(account, worst, held=NOTHING) for account in accounts)

    async def end(self) -> None:
        while self.tasks:
            await settle_loop()
            self.check_waiting()
            done = [entry for entry in self.tasks if entry[0].done()]
            assert done, "everyone waits"
            for entry in done:
                self.tasks.remove(entry)
                if self.is_granted(entry[0]):
                    entry[0].result().settle(entry[1])
                self.check()


def exceeds(account: RunBudget, worst: Spend, *, held: Spend) -> bool:
    """Whether the account cannot pay for it beside what is held."""
    limits = account.limits
    if limits.calls is not None and account.calls >= limits.calls:
        return True
    tokens, usd = ((held.tokens or 0) + account.tokens, (held.usd or 0) + account.usd)
    if limits.tokens is not None and (worst.tokens is None or worst.tokens + tokens > limits.tokens):
        return True
    return limits.usd is not None and (worst.usd is None or worst.usd + usd > limits.usd)


def part_of(worst: Spend, part: Any) -> Spend:
    if part is None:
        return Spend(tokens=None, usd=None)
    tokens = None if worst.tokens is None else int(worst.tokens * part)
    usd = (
        None if worst.usd is None else Decimal(int(worst.usd.scaleb(4) * part.numerator / part.denominator)).scaleb(-4)
    )
    return Spend(tokens=tokens, usd=usd)


@given(st.lists(LIMIT, min_size=4, max_size=4), STEPS)
@settings(max_examples=300, deadline=None)
def test_no_order_of_events_overspends_or_forgets_anyone(
    limits: list[Budget], steps: list[tuple[str, int, Any]]
) -> None:
    """However reservations, settlements and cancellations mix, no account passes a limit, everyone who waits is served
    or told in the end, and then nothing is held."""

    async def work() -> None:
        world = World(limits)
        for step in steps:
            await world.do(*step)
        await settle_loop()
        world.check_waiting()
        await world.end()
        assert [account.held for account in world.accounts] == [NOTHING] * 4

    asyncio.run(asyncio.wait_for(work(), 20))


# --- fifty at a time, on a provider that keeps its own books ---

PRICES = Prices(
    input=Decimal("2.50"), output=Decimal("10"), cached_input=Decimal("0.25"), cache_write=Decimal("3.125")
)  # USD per million tokens
MAX_OUTPUT = 4000


class Provider:
    """Bills every call the moment it comes, up to the most that it may, whatever becomes of it afterwards."""

    def __init__(self, rng: random.Random, *, is_honest: bool) -> None:
        self.rng = rng
        self.is_honest = is_honest
        """It always tells what it billed."""
        self.billed_usd = Decimal(0)
        self.billed_tokens = 0
        self.calls = 0

    async def complete(self, query: Query, on_delta: OnDelta | None) -> Completion:
        del on_delta
        rng = self.rng
        self.calls += 1
        size_bytes = sum(len(message.text.encode()) for message in query.messages)
        most_input = size_bytes + 8 * len(query.messages) + 300
        assert query.sampling.max_output_tokens is not None
        most_output = min(query.sampling.max_output_tokens, MAX_OUTPUT)
        is_most = rng.random() < 0.3
        input_tokens = most_input if is_most else rng.randint(1, most_input)
        output_tokens = most_output if is_most else rng.randint(1, most_output)
        cached = rng.randint(0, input_tokens)
        written = input_tokens - cached if is_most else rng.randint(0, input_tokens - cached)
        if not self.is_honest and rng.random() < 0.15:
            await self._pass_time()
            raise WorkerError("worker 'a': busy", worker="a", code="rate_limited", retry_after_s=0.0)  # bills nothing
        self.billed_tokens += input_tokens + output_tokens
        self.billed_usd += (
            (input_tokens - cached - written) * PRICES.input
            + cached * Decimal("0.25")
            + written * Decimal("3.125")
            + output_tokens * PRICES.output
        ) / 1_000_000
        await self._pass_time()
        if not self.is_honest and rng.random() < 0.1:
            raise WorkerError("worker 'a': broke", worker="a", code="truncated")
        tells = self.is_honest or rng.random() < 0.8
        usage = Usage(
            input_tokens=input_tokens,
            cached_input_tokens=cached,
            cache_write_tokens=written,
            output_tokens=output_tokens,
            reasoning_tokens=rng.randint(0, output_tokens),
        )
        is_filtered = not self.is_honest and rng.random() < 0.1
        return Completion(
            text="" if is_filtered else "fine",
            finish_reason="content_filter" if is_filtered else "stop",
            usage=usage if tells else Usage(),
        )

    async def _pass_time(self) -> None:
        for _ in range(self.rng.randint(0, 6)):
            await asyncio.sleep(0)

    async def close(self) -> None:
        return


def make_pool(provider: Provider, rng: random.Random) -> Pool:
    async def sleep(seconds: float) -> None:
        del seconds
        await asyncio.sleep(0)

    members = []
    for id in "ab":
        spec = WorkerSpec(
            id=id, dialect="scripted", model="m", prices=PRICES, limits=Limits(concurrency=rng.randint(2, 30))
        )
        members.append(Member(spec=spec, backend=provider, price=resolve_price(spec)))
    return Pool(members, sleep=sleep, random=rng.random)


def question(rng: random.Random) -> Query:
    text = rng.choice(["what is it? ", "¿qué es? ", "これは何？"]) * rng.randint(1, 300)
    sampling = Sampling(max_output_tokens=rng.randint(1, MAX_OUTPUT))
    return Query(messages=(Message(role="user", content=text),) * rng.randint(1, 3), sampling=sampling)


@pytest.mark.parametrize("seed", range(25))
def test_fifty_calls_at_once_never_overspend_a_shared_budget(seed: int) -> None:
    """Whatever a provider bills, tells, breaks or filters, and whoever gives up: its books stay within the budget, to
    the last digit, and nothing is held in the end."""
    rng = random.Random(seed)
    limit, limit_tokens = Decimal(rng.randint(20, 90)).scaleb(-2), rng.randint(50_000, 200_000)

    async def work() -> None:
        provider = Provider(rng, is_honest=False)
        pool = make_pool(provider, rng)
        shared = limited(str(limit), tokens=limit_tokens)
        refused = 0

        async def ask(step: int) -> None:
            nonlocal refused
            budget = limited(str(limit / rng.randint(1, 5)), shared=shared)
            try:
                await pool.complete(
                    question(rng), step=step, workers="ab", record=lambda _: None, on_delta=None, purse=budget
                )
            except BudgetEnded:
                refused += 1
            except WorkerError:
                pass
            assert provider.billed_usd <= limit
            assert provider.billed_tokens <= limit_tokens
            assert budget.held == NOTHING

        tasks = [asyncio.create_task(ask(step)) for step in range(50)]
        for task in rng.sample(tasks, 5):
            for _ in range(rng.randint(0, 5)):
                await asyncio.sleep(0)
            task.cancel()
        for error in await asyncio.gather(*tasks, return_exceptions=True):
            if error is not None and not isinstance(error, asyncio.CancelledError):
                raise error
        assert provider.billed_usd <= shared.usd <= limit
        assert provider.billed_tokens <= shared.tokens <= limit_tokens
        assert shared.held == NOTHING
        assert provider.calls >= 5

    asyncio.run(asyncio.wait_for(work(), 20))


@pytest.mark.parametrize("seed", range(10))
def test_fifty_runs_at_once_use_a_shared_budget_up(seed: int) -> None:
    """Where every bill is known, runs that would never end stop when not even one call more is sure to fit, and the
    provider's books, the account and the runs' own costs agree to the last digit."""
    rng = random.Random(seed)
    limit = Decimal("1.00")

    async def work() -> None:
        provider = Provider(rng, is_honest=True)
        pool = make_pool(provider, rng)
        shared = limited(str(limit))
        request = Request(
            model="m", messages=REQUEST.messages, sampling=Sampling(max_output_tokens=rng.randint(100, MAX_OUTPUT))
        )
        runs = await asyncio.gather(
            *(orchestrate(request, Endless(rng.choice("ab")), pool, budget=Budget(), shared=shared) for _ in range(50))
        )
        assert provider.billed_usd == shared.usd == sum_cost(run.cost_usd for run in runs)
        worst_usd = Decimal("0.05")  # 4000 tokens of output cost 0.04, 1100 of input 0.0035
        assert limit - worst_usd < provider.billed_usd <= limit
        assert {run.stopped.by for run in runs if run.stopped} <= {"budget:usd", "budget:calls"}
        assert sum(run.calls for run in runs) == provider.calls == shared.calls

    asyncio.run(asyncio.wait_for(work(), 20))
