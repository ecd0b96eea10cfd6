"""The sum rule: what the steps of a run cost is what the run costs, and what the provider's own books say, exactly.

The provider is a server on a real socket that bills in its own arithmetic. Whatever it does not tell makes the run's
cost unknown, never smaller.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from runs import REQUEST, Planned, plan
from torafugu.errors import FuguError
from torafugu.events import Event, Failed, Replied, Stopped
from torafugu.orchestrate import Budget, create_run_id, orchestrate
from torafugu.orchestrate.budget import RunBudget
from torafugu.pool import Delta, Limits, Member, Pool, Prices, WorkerSpec, resolve_price
from torafugu.pool.anthropic import make_anthropic
from torafugu.pool.openai import make_openai
from torafugu.pool.purse import Spend
from torafugu.store import open_store
from torafugu.types import Plan, Step, Usage, sum_cost
from upstream import Asked, Upstream, Writer, chunk, head, respond

# --- the provider ---

MICRO_CENTS = {  # per token, in the provider's own unit: 1e-8 USD
    "a": {"plain": 250, "cached": 25, "written": 312, "output": 1000},
    "b": {"plain": 7, "cached": 1, "written": 9, "output": 33},
    "c": {"plain": 300, "cached": 30, "written": 375, "output": 1500},
}
PRICES = {
    model: Prices(
        input=Decimal(each["plain"]) / 100,
        output=Decimal(each["output"]) / 100,
        cached_input=Decimal(each["cached"]) / 100,
        cache_write=Decimal(each["written"]) / 100,
    )
    for model, each in MICRO_CENTS.items()
}
DIALECTS = {"a": "openai", "b": "openai", "c": "anthropic"}


@dataclass(frozen=True, kw_only=True)
class Bill:
    """What one request uses, and what becomes of it."""

    plain: int = 100
    cached: int = 0
    written: int = 0
    output: int = 10
    """Reasoning included."""
    reasoning: int = 0
    hides_reasoning: bool = False
    """It is left out of the output tokens that are told, and shows in the total alone."""
    told: str = "all"
    """all | input | nothing"""
    then: str = "reply"
    """reply | empty | filtered | rate_limited | overloaded | server_error | cut | hang; two of them are not billed."""


@dataclass
class Books:
    """The provider: serves the bills of each model in turn, and keeps its own accounts."""

    bills: dict[str, list[Bill]]
    owed: int = 0
    """In its own unit."""
    is_told: bool = True
    """The client could know all of it."""
    entries: dict[str, list[Bill]] = field(default_factory=lambda: defaultdict(list))
    is_hanging: asyncio.Event | None = None
    """Where it is set, nothing is answered before a call hangs."""

    @property
    def owed_usd(self) -> Decimal:
        return Decimal(self.owed).scaleb(-8)

    async def play(self, asked: Asked, out: Writer) -> None:
        model = asked.body["model"]
        bill = self.bills[model].pop(0)
        self.entries[model].append(bill)
        if bill.then in ("rate_limited", "overloaded"):
            status = 429 if bill.then == "rate_limited" else 503
            respond(out, status, {"error": {"message": "later"}}, {"Retry-After": "0"})
            return
        each = MICRO_CENTS[model]
        self.owed += sum(getattr(bill, kind) * price for kind, price in each.items())
        self.is_told &= bill.told == "all" and bill.then in ("reply", "empty", "filtered")
        if bill.then == "hang":
            if self.is_hanging is not None:
                self.is_hanging.set()
            await asyncio.Event().wait()
        if self.is_hanging is not None:
            await self.is_hanging.wait()
        if bill.then == "server_error":
            respond(out, 500, {"error": {"message": "oops"}})
        elif asked.body.get("stream"):
            self.stream(model, bill, out)
        elif bill.then == "cut":
            out.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{")
            await out.drain()
            out.close()
        else:
            respond(out, 200, whole_answer(model, bill))

    def stream(self, model: str, bill: Bill, out: Writer) -> None:
        head(out)
        answer = whole_answer(model, bill)
        events = openai_events(answer) if DIALECTS[model] == "openai" else anthropic_events(answer)
        for event in events[:1] if bill.then == "cut" else events:
            chunk(out, b"data: " + json.dumps(event).encode() + b"\n\n")
        if bill.then == "cut":
            out.close()
        else:
            chunk(out, b"")


def whole_answer(model: str, bill: Bill) -> dict[str, Any]:
    text = f"{model} says so" if bill.then in ("reply", "cut") else ""
    if DIALECTS[model] == "anthropic":
        reason = "refusal" if bill.then == "filtered" else "end_turn"
        usage = {"input_tokens": bill.plain, "cache_read_input_tokens": bill.cached}
        usage |= {"cache_creation_input_tokens": bill.written, "output_tokens": bill.output}
        content = [{"type": "text", "text": text}] if text else []
        answer = {"id": "m1", "model": model, "content": content, "stop_reason": reason, "usage": usage}
    else:
        reason = "content_filter" if bill.then == "filtered" else "stop"
        given = bill.plain + bill.cached + bill.written
        details = {"cached_tokens": bill.cached, "cache_write_tokens": bill.written}
        usage = {
            "prompt_tokens": given,
            "completion_tokens": bill.output - bill.reasoning if bill.hides_reasoning else bill.output,
            "total_tokens": given + bill.output,
            "prompt_tokens_details": details,
            "completion_tokens_details": {"reasoning_tokens": bill.reasoning},
        }
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": reason}
        answer = {"id": "c1", "model": model, "choices": [choice], "usage": usage}
    if bill.told == "nothing":
        del answer["usage"]
    elif bill.told == "input":
        answer["usage"] = {name: count for name, count in usage.items() if name in ("prompt_tokens", "input_tokens")}
    return answer


def openai_events(answer: dict[str, Any]) -> list[dict[str, Any]]:
    (choice,) = answer["choices"]
    told = {"usage": answer["usage"]} if "usage" in answer else {}
    return [
        {"choices": [{"delta": choice["message"]}]},
        {"choices": [{"delta": {}, "finish_reason": choice["finish_reason"]}]},
        {"choices": [], **told},
    ]


def anthropic_events(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Input is told at the start, output at the end, as their API does."""
    usage = dict(answer.get("usage", {}))
    output = {"output_tokens": usage.pop("output_tokens")} if "output_tokens" in usage else {}
    start = {"id": "m1", "model": "c", "content": [], "usage": usage} if usage else {"id": "m1", "content": []}
    texts = [{"type": "text_delta", "text": block["text"]} for block in answer["content"]]
    return [
        {"type": "message_start", "message": start},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in texts),
        {"type": "message_delta", "delta": {"stop_reason": answer["stop_reason"]}, "usage": output or None},
        {"type": "message_stop"},
    ]


# --- a run against it ---


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a run left behind, in memory and on disk."""

    events: list[Event]
    stored: list[Event]
    row_usd: Decimal | None
    row_calls: int | None
    account: RunBudget


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Pool]:
    async def sleep(seconds: float) -> None:
        del seconds
        await asyncio.sleep(0)

    async with aiohttp.ClientSession() as session:
        members = []
        for id, dialect in DIALECTS.items():
            spec = WorkerSpec(
                id=id,
                dialect=dialect,  # type: ignore[arg-type]
                model=id,
                base_url=url,
                prices=PRICES[id],
                limits=Limits(concurrency=2),
            )
            make = make_openai if dialect == "openai" else make_anthropic
            members.append(Member(spec=spec, backend=make(spec, session, {}), price=resolve_price(spec)))
        yield Pool(members, sleep=sleep)


async def conduct(path: Path, books: Books, *plans: Plan, stream: bool = False) -> Ended:
    """Runs the plans to their end, whatever it is."""

    async def take(delta: Delta) -> None:
        del delta

    run_id = create_run_id()
    events: list[Event] = []
    account = RunBudget(Budget(calls=None, usd=Decimal(1000)))
    async with Upstream(books.play) as upstream, opened(upstream.url) as pool, open_store(path) as store:
        recorder = store.recorder(run_id)

        class Both:
            def write(self, event: Event) -> None:
                events.append(event)
                recorder.write(event)

            async def wait_durable(self) -> None:
                await recorder.wait_durable()

        try:
            run = await orchestrate(
                REQUEST,
                Planned(*plans, answer=plans[-1].steps[-1].id),
                pool,
                shared=account,
                recorder=Both(),
                on_delta=take if stream else None,
                run_id=run_id,
            )
            assert run.events == events
        except FuguError:
            pass
        await recorder.wait_durable()
        stored = await store.get_run(run_id)
        assert stored is not None
        return Ended(
            events=events,
            stored=[event for _, event in stored.events],
            row_usd=stored.run.cost_usd,
            row_calls=stored.run.calls,
            account=account,
        )


def cost_of(event: Replied | Failed) -> Decimal | None:
    return event.reply.cost_usd if isinstance(event, Replied) else event.cost_usd


def step_costs(events: Sequence[Event]) -> dict[int, Decimal | None]:
    by_step: dict[int, list[Decimal | None]] = defaultdict(list)
    for event in events:
        if isinstance(event, (Replied, Failed)):
            by_step[event.step].append(cost_of(event))
    return {step: sum_cost(costs) for step, costs in by_step.items()}


def reconcile(ended: Ended, books: Books) -> Decimal | None:
    """The run's cost, after the books have been compared."""
    stopped = ended.events[-1]
    assert isinstance(stopped, Stopped)
    total = sum_cost(step_costs(ended.events).values())
    assert total == stopped.cost_usd == ended.row_usd
    assert ended.stored == ended.events
    requests = sum(map(len, books.entries.values()))
    assert stopped.calls == ended.row_calls == requests == ended.account.calls
    assert ended.account.held == Spend(tokens=0, usd=Decimal(0))
    known = sum_cost(cost for cost in step_costs(ended.events).values() if cost is not None)
    assert known is not None
    assert known <= books.owed_usd <= ended.account.usd
    if books.is_told:
        assert total == books.owed_usd == ended.account.usd
    else:
        assert total is None
    return total


def fixed(**bills: Sequence[Bill]) -> Books:
    return Books({model: list(each) for model, each in bills.items()})


def check(tmp_path: Path, books: Books, *plans: Plan, stream: bool = False) -> tuple[Ended, Decimal | None]:
    ended = asyncio.run(asyncio.wait_for(conduct(tmp_path / "runs.db", books, *plans, stream=stream), 30))
    return ended, reconcile(ended, books)


# --- one thing at a time ---

CACHED = Bill(plain=7, cached=600, written=333, output=21)
THOUGHTFUL = Bill(output=500, reasoning=480)
both_modes = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@both_modes
@pytest.mark.parametrize(
    "bill", [Bill(), CACHED, THOUGHTFUL, Bill(plain=0, output=1), Bill(output=500, reasoning=480, hides_reasoning=True)]
)
@pytest.mark.parametrize("model", ["a", "b", "c"])
def test_one_call_costs_what_is_billed(tmp_path: Path, model: str, bill: Bill, stream: bool) -> None:
    """Plain, cached, written and reasoning tokens, in both dialects, streamed or not, hidden or shown."""
    books = fixed(**{model: [bill]})
    _, total = check(tmp_path, books, plan(Step(id=0, worker=model, is_final=True)), stream=stream)
    assert total is not None
    assert total > 0


@both_modes
def test_all_steps_of_a_workflow_are_summed(tmp_path: Path, stream: bool) -> None:
    """A diamond over two plans: parallel steps, and one that is only looked at by the policy."""
    books = fixed(a=[Bill(), THOUGHTFUL], b=[CACHED, Bill(plain=3)], c=[CACHED])
    ended, total = check(
        tmp_path,
        books,
        plan(Step(id=0, worker="a")),
        plan(
            Step(id=1, worker="b", sees=(0,)),
            Step(id=2, worker="c", sees=(0,)),
            Step(id=3, worker="b"),
            Step(id=4, worker="a", sees=(1, 2), is_final=True),
        ),
        stream=stream,
    )
    assert total is not None
    assert set(step_costs(ended.events)) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("told", ["input", "nothing"])
@pytest.mark.parametrize("model", ["a", "c"])
@both_modes
def test_missing_usage_makes_the_run_s_cost_unknown(tmp_path: Path, model: str, told: str, stream: bool) -> None:
    """Never a smaller sum: not zero for the silent call, nor the others' alone."""
    books = fixed(b=[Bill()], **{model: [Bill(told=told)]})
    final = Step(id=1, worker=model, is_final=True)
    ended, total = check(tmp_path, books, plan(Step(id=0, worker="b"), final), stream=stream)
    assert total is None
    assert [event.cost_usd for event in ended.stored if isinstance(event, Stopped)] == [None]


@both_modes
def test_a_retry_and_a_failover_are_part_of_their_step(tmp_path: Path, stream: bool) -> None:
    """What was refused cost nothing; an empty answer was billed, and counts beside the one that replaced it."""
    books = fixed(a=[Bill(then="rate_limited"), Bill(), Bill(then="empty")], c=[Bill(then="overloaded")], b=[CACHED])
    ended, total = check(
        tmp_path,
        books,
        plan(Step(id=0, worker="a")),
        plan(Step(id=1, worker="c", alternates=("a", "b"), is_final=True)),
        stream=stream,
    )
    assert total is not None
    costs = [cost_of(event) for event in ended.events if isinstance(event, (Replied, Failed))]
    assert [cost == 0 for cost in costs] == [True, False, True, False, False]


def test_a_failure_whose_bill_nobody_knows_makes_the_cost_unknown(tmp_path: Path) -> None:
    """The provider broke, and may have charged: another worker's reply does not make that certain."""
    for then in ("server_error", "cut"):
        books = fixed(a=[Bill(then=then)], b=[Bill()])
        folder = tmp_path / then
        folder.mkdir()
        _, total = check(folder, books, plan(Step(id=0, worker="a", alternates=("b",))))
        assert total is None


@pytest.mark.parametrize("second", [Bill(), Bill(then="filtered"), Bill(then="empty"), Bill(then="overloaded")])
@both_modes
def test_a_discarded_reply_is_billed_once(tmp_path: Path, second: Bill, stream: bool) -> None:
    """A filtered reply, held back until it is known whether another worker does better, counts whichever is taken."""
    books = fixed(a=[CACHED], b=[Bill(then="filtered", plain=55)], c=[second])
    _, total = check(
        tmp_path,
        books,
        plan(Step(id=0, worker="a"), Step(id=1, worker="b", alternates=("c",), is_final=True)),
        stream=stream,
    )
    assert total is not None


def test_a_dropped_branch_is_not_forgotten(tmp_path: Path) -> None:
    """Nobody waits for its reply any more: it is on record as dropped, and what it cost is unknown."""
    books = fixed(a=[Bill(), Bill()], b=[Bill(then="hang")])
    books.is_hanging = asyncio.Event()
    quorum = plan(Step(id=0, worker="a"), Step(id=1, worker="b"), quorum=1)
    ended, total = check(tmp_path, books, quorum, plan(Step(id=2, worker="a", sees=(0,), is_final=True)))
    assert total is None
    dropped = [event for event in ended.stored if isinstance(event, Failed)]
    assert [(event.step, event.code, event.fault, event.usage) for event in dropped] == [
        (1, "dropped", "policy", Usage())
    ]
    assert ended.account.usd > books.owed_usd


def test_a_step_out_of_time_is_not_forgotten(tmp_path: Path) -> None:
    """Its time is up while the provider works: the cost is unknown, whoever takes its place."""
    books = fixed(a=[Bill(then="hang")], b=[Bill()])
    ended, total = check(
        tmp_path,
        books,
        plan(Step(id=0, worker="a", timeout_s=0.05, is_optional=True), Step(id=1, worker="b", is_final=True)),
    )
    assert total is None
    assert [event.code for event in ended.stored if isinstance(event, Failed)] == ["timeout_total"]


def test_a_run_that_fails_is_billed_all_the_same(tmp_path: Path) -> None:
    """An error is no refund: the first step's cost and the empty answers' stay."""
    books = fixed(a=[Bill()], b=[Bill(then="empty"), Bill(then="empty")])
    ended, total = check(tmp_path, books, plan(Step(id=0, worker="a")), plan(Step(id=1, worker="b", is_final=True)))
    stopped = ended.events[-1]
    assert isinstance(stopped, Stopped)
    assert (stopped.by, total is None) == ("error", False)


# --- all of it at random ---

OUTCOMES = ["reply"] * 9 + ["empty", "filtered", "rate_limited", "overloaded"]
TROUBLE = ["server_error", "cut"]


def at_random(rng: random.Random, *, is_honest: bool) -> Callable[[], Bill]:
    def bill() -> Bill:
        output = rng.randint(1, 3000)
        has_trouble = not is_honest and rng.random() < 0.05
        return Bill(
            plain=rng.randint(0, 60),
            cached=rng.choice([0, rng.randint(1, 400)]),
            written=rng.choice([0, rng.randint(1, 400)]),
            output=output,
            reasoning=rng.randint(0, output),
            hides_reasoning=rng.random() < 0.3,
            told="all" if is_honest or rng.random() < 0.9 else rng.choice(["input", "nothing"]),
            then=rng.choice(TROUBLE if has_trouble else OUTCOMES),
        )

    return bill


def plan_at_random(rng: random.Random, start: int) -> Plan:
    steps = []
    for id in range(start, start + rng.randint(1, 4)):
        worker, *others = rng.sample("abc", 3)
        sees = tuple(sorted(rng.sample(range(start, id), rng.randint(0, id - start))))
        steps.append(Step(id=id, worker=worker, alternates=tuple(others[: rng.randint(0, 2)]), sees=sees))
    return Plan(steps=tuple(steps), parallel=rng.choice([None, 1, 2]), on_error="replan")


@pytest.mark.parametrize("is_honest", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_the_sum_rule_holds_for_any_run(tmp_path: Path, seed: int, is_honest: bool) -> None:
    """Random workflows, faults and bills: the books agree to the last digit, or the cost is unknown."""
    rng = random.Random(seed)
    bill = at_random(rng, is_honest=is_honest)
    books = Books({model: [bill() for _ in range(40)] for model in "abc"})
    plans, start = [], 0
    for _ in range(rng.randint(1, 3)):
        plans.append(plan_at_random(rng, start))
        start += len(plans[-1].steps)
    _, total = check(tmp_path, books, *plans, stream=rng.random() < 0.5)
    assert books.owed > 0
    assert not is_honest or total is not None
