"""The pool's one loop: who is asked next after which failure, what is recorded, and what it may cost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterable
from decimal import Decimal
from typing import Any

import pytest

from torafugu.errors import FuguError, PlanError, RequestError, WorkerCode, WorkerError
from torafugu.events import Called, Event, Failed, Replied
from torafugu.pool import (
    Backend,
    Completion,
    Delta,
    Failing,
    Limits,
    Member,
    Pool,
    Price,
    Prices,
    Query,
    Scripted,
    Timeouts,
    WorkerSpec,
    resolve_price,
)
from torafugu.pool.limits import Gate
from torafugu.pool.purse import DROPPED, IMPOSED_OUTPUT_TOKENS, BudgetEnded, Purse, Spend
from torafugu.types import ImagePart, Message, OtherPart, Reply, Sampling, TextPart, ToolCall, Usage

QUERY = Query(messages=(Message(role="user", content="hi"),))
USAGE = Usage(input_tokens=1000, output_tokens=100)
PRICES = Prices(input=Decimal(1), output=Decimal(10))  # USAGE costs 0.002
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


class Clock:
    """Time that passes only in `sleep`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


class Bench:
    """A pool of fakes with its clock, and the record of what it did."""

    def __init__(self, backends: dict[str, Backend], *, max_attempts: int = 4, **fields: dict[str, Any]) -> None:
        """`fields`: of a worker's spec, by worker id."""
        self.clock = Clock()
        self.events: list[Event] = []
        self.deltas: list[Delta] = []
        members = []
        for name, backend in backends.items():
            spec = WorkerSpec(**({"id": name, "dialect": "scripted", "model": "m"} | fields.get(name, {})))
            members.append(Member(spec=spec, backend=backend, price=resolve_price(spec)))
        self.pool = Pool(
            members, max_attempts=max_attempts, clock=self.clock, sleep=self.clock.sleep, random=lambda: 0.5
        )

    async def ask(
        self,
        *workers: str,
        query: Query = QUERY,
        stream: bool = False,
        timeout_s: float | None = None,
        purse: Purse | None = None,
    ) -> Reply:
        async def on_delta(delta: Delta) -> None:
            self.deltas.append(delta)

        return await self.pool.complete(
            query,
            step=7,
            workers=workers or tuple(self.pool.specs),
            record=self.events.append,
            on_delta=on_delta if stream else None,
            timeout_s=timeout_s,
            purse=purse,
        )

    async def fail(self, *workers: str, **how: Any) -> FuguError:
        with pytest.raises(FuguError) as caught:
            await self.ask(*workers, **how)
        return caught.value

    @property
    def trail(self) -> list[str]:
        """The record in short: `called a 1 planned`, `failed a 1 rate_limited`, `replied a 1`."""
        lines = []
        for event in self.events:
            assert isinstance(event, (Called, Failed, Replied))
            assert event.step == 7
            if isinstance(event, Called):
                lines.append(f"called {event.worker} {event.attempt} {event.reason}")
            elif isinstance(event, Failed):
                lines.append(f"failed {event.worker} {event.attempt} {event.code}")
            else:
                lines.append(f"replied {event.reply.worker} {event.attempt}")
        return lines

    @property
    def failed(self) -> list[Failed]:
        return [event for event in self.events if isinstance(event, Failed)]


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Bounded, so that a pool that hangs fails its test."""
    asyncio.run(asyncio.wait_for(work(), 10))


def well(*answers: str | Completion) -> Scripted:
    return Scripted(answers, usage=USAGE) if answers else Scripted(lambda _: "fine", usage=USAGE)


def broken(code: WorkerCode, *, times: int | None = None, retry_after_s: float | None = None) -> Failing:
    error = WorkerError(f"upstream says {code}", worker="w", code=code, retry_after_s=retry_after_s)
    return Failing(error, times=times, then=None if times is None else well())


def said(text: str = "", **fields: Any) -> Completion:
    return Completion(**({"text": text, "finish_reason": "stop", "usage": USAGE} | fields))


# --- a reply ---


def test_a_reply_is_recorded_with_its_price_and_time() -> None:
    """The first worker is asked once; its reply names worker, cost, price list and latency."""

    async def work() -> None:
        bench = Bench({"a": Scripted(lambda _: "fine", usage=USAGE), "b": well()}, a={"prices": PRICES})
        reply = await bench.ask()
        assert bench.trail == ["called a 1 planned", "replied a 1"]
        assert (reply.worker, reply.text, reply.usage) == ("a", "fine", USAGE)
        assert (reply.cost_usd, reply.price_source) == (Decimal("0.002"), "override")
        assert reply.latency_ms == 0.0
        assert reply.sent_bytes == 0
        unpriced = await bench.ask("b")
        assert (unpriced.cost_usd, unpriced.price_source) == (None, None)

    run(work)


def test_a_streamed_reply_is_passed_on_piece_by_piece() -> None:
    """The pieces are those of the worker, and make up the reply."""

    async def work() -> None:
        bench = Bench({"a": Scripted(["abcdef"], pieces=3)})
        reply = await bench.ask(stream=True)
        assert [delta.text for delta in bench.deltas] == ["ab", "cd", "ef"]
        assert reply.text == "abcdef"

    run(work)


def test_the_pool_says_what_it_has() -> None:
    """`ids` and `specs` name every worker; a worker it does not have is the plan's fault."""

    async def work() -> None:
        bench = Bench({"a": well(), "b": well()})
        assert bench.pool.ids == {"a", "b"}
        assert list(bench.pool.specs) == ["a", "b"]
        assert isinstance(await bench.fail("c"), PlanError)
        with pytest.raises(PlanError):
            await bench.pool.complete(QUERY, step=0, workers=[], record=bench.events.append, on_delta=None)
        assert bench.events == []

    run(work)


# --- failover and retry, by code ---

RETRIED: list[WorkerCode] = [
    "server_error",
    "overloaded",
    "connect_failed",
    "timeout_connect",
    "timeout_first_token",
    "timeout_idle",
    "truncated",
    "malformed",
    "empty",
]
HOPELESS: list[WorkerCode] = ["auth", "rejected", "too_large", "unavailable"]


@pytest.mark.parametrize("code", [*RETRIED, *HOPELESS, "rate_limited", "context_overflow"])
def test_another_worker_takes_over_at_once(code: WorkerCode) -> None:
    """Whatever is wrong with one worker, the next one is asked without a pause."""

    async def work() -> None:
        bench = Bench({"a": broken(code, retry_after_s=5.0), "b": well()})
        assert (await bench.ask()).worker == "b"
        assert bench.trail == ["called a 1 planned", f"failed a 1 {code}", "called b 2 failover", "replied b 2"]
        assert bench.clock.slept == []

    run(work)


@pytest.mark.parametrize("code", RETRIED)
def test_a_lone_worker_is_asked_once_more_after_a_pause(code: WorkerCode) -> None:
    """With nobody else to ask, one retry follows, 0.25 to 2 s later."""

    async def work() -> None:
        bench = Bench({"a": broken(code, times=1)})
        assert (await bench.ask()).worker == "a"
        assert bench.trail == ["called a 1 planned", f"failed a 1 {code}", "called a 2 retry", "replied a 2"]
        assert bench.clock.slept == [0.25 + 1.75 * 0.5]

    run(work)


@pytest.mark.parametrize("code", RETRIED)
def test_a_lone_worker_is_not_asked_a_third_time(code: WorkerCode) -> None:
    """One retry, then the error, which sums the attempts up."""

    async def work() -> None:
        bench = Bench({"a": broken(code)})
        error = await bench.fail()
        assert isinstance(error, WorkerError)
        assert error.code == code
        assert "after 2 attempts" in error.message
        assert len(bench.clock.slept) == 1

    run(work)


@pytest.mark.parametrize("code", HOPELESS)
def test_a_failure_that_would_repeat_is_not_retried(code: WorkerCode) -> None:
    """A refused request or key fails at once, as it was."""

    async def work() -> None:
        bench = Bench({"a": broken(code)})
        error = await bench.fail()
        assert (error.code, error.message) == (code, f"upstream says {code}")
        assert bench.trail == ["called a 1 planned", f"failed a 1 {code}"]

    run(work)


def test_attempts_at_a_step_are_bounded() -> None:
    """max_attempts holds over all workers and retries."""

    async def work() -> None:
        bench = Bench({name: broken("server_error") for name in "abcdef"}, max_attempts=3)
        assert "after 3 attempts" in (await bench.fail()).message
        assert [line for line in bench.trail if line.startswith("called")] == [
            "called a 1 planned",
            "called b 2 failover",
            "called c 3 failover",
        ]
        one = Bench({"a": broken("server_error")}, max_attempts=1)
        await one.fail()
        assert len(one.trail) == 2

    run(work)


def test_a_short_retry_after_of_a_lone_worker_is_waited_out_once() -> None:
    """A 429 is waited for, once; a second one reaches the client."""

    async def work() -> None:
        bench = Bench({"a": broken("rate_limited", times=1, retry_after_s=20.0)})
        await bench.ask()
        assert bench.clock.slept == [20.0]
        again = Bench({"a": broken("rate_limited", retry_after_s=20.0)})
        error = await again.fail()
        assert isinstance(error, WorkerError)
        assert (error.code, error.retry_after_s, again.clock.slept) == ("rate_limited", 20.0, [20.0])

    run(work)


@pytest.mark.parametrize(("retry_after_s", "total_s"), [(61.0, 600.0), (20.0, 15.0)])
def test_a_long_retry_after_reaches_the_client(retry_after_s: float, total_s: float) -> None:
    """A wait beyond 60 s, or beyond the time a call may take, is the client's to decide."""

    async def work() -> None:
        backend = broken("rate_limited", retry_after_s=retry_after_s)
        bench = Bench({"a": backend}, a={"timeouts": Timeouts(total_s=total_s)})
        error = await bench.fail()
        assert isinstance(error, WorkerError)
        assert (error.retry_after_s, bench.clock.slept) == (retry_after_s, [])

    run(work)


def test_of_several_rate_limits_the_shortest_counts() -> None:
    """The worker that is free first is waited for, or named to the client."""

    async def work() -> None:
        bench = Bench(
            {
                "a": broken("rate_limited", retry_after_s=9.0),
                "b": broken("rate_limited", times=1, retry_after_s=2.0),
                "c": broken("rate_limited", retry_after_s=5.0),
            }
        )
        assert (await bench.ask()).worker == "b"
        assert bench.clock.slept == [2.0]
        waits = {"a": 90.0, "b": 70.0, "c": 80.0}
        long = Bench({name: broken("rate_limited", retry_after_s=wait) for name, wait in waits.items()})
        error = await long.fail()
        assert isinstance(error, WorkerError)
        assert error.retry_after_s == 70

    run(work)


def test_a_rate_limit_without_a_time_is_retried_after_the_usual_pause() -> None:
    """No Retry-After: one short pause."""

    async def work() -> None:
        bench = Bench({"a": broken("rate_limited", times=1)})
        await bench.ask()
        assert bench.clock.slept == [1.125]

    run(work)


def test_a_busy_rate_limit_is_a_better_answer_than_a_refused_key() -> None:
    """The client is told of the failure that may pass."""

    async def work() -> None:
        bench = Bench({"a": broken("rate_limited", retry_after_s=99.0), "b": broken("auth")})
        error = await bench.fail()
        assert isinstance(error, WorkerError)
        assert (error.code, error.retry_after_s) == ("rate_limited", 99.0)

    run(work)


def test_context_overflow_asks_larger_windows_only() -> None:
    """A smaller or equal window is not tried, a larger or unknown one is."""

    async def work() -> None:
        windows = {"a": 8000, "small": 4000, "equal": 8000, "large": 32000}
        bench = Bench(
            {"a": broken("context_overflow"), **{name: well() for name in ("small", "equal", "large")}},
            **{name: {"context_tokens": tokens} for name, tokens in windows.items()},
        )
        assert (await bench.ask()).worker == "large"
        unknown = Bench({"a": broken("context_overflow"), "b": well()}, a={"context_tokens": 8000})
        assert (await unknown.ask()).worker == "b"

    run(work)


def test_what_fits_no_window_is_the_client_s_fault() -> None:
    """A 400 that clients know how to act on, and no retry."""

    async def work() -> None:
        bench = Bench({"a": broken("context_overflow"), "b": well()}, a={"context_tokens": 8}, b={"context_tokens": 8})
        error = await bench.fail()
        assert isinstance(error, RequestError)
        assert (error.code, error.status, error.param) == ("context_length_exceeded", 400, "messages")
        assert bench.trail == ["called a 1 planned", "failed a 1 context_overflow"]

    run(work)


def test_an_overflow_does_not_hide_that_a_larger_worker_is_ill() -> None:
    """If a worker that might have taken it failed for another reason, a retry may help: not the client's fault."""

    async def work() -> None:
        bench = Bench({"a": broken("overloaded"), "b": broken("context_overflow")})
        assert (await bench.fail()).code == "overloaded"

    run(work)


# --- what is not an answer ---


@pytest.mark.parametrize("stream", [False, True])
def test_an_empty_answer_is_never_a_reply(stream: bool) -> None:
    """Nothing said, nothing called: another worker is asked, and what the first one cost is on record."""

    async def work() -> None:
        bench = Bench({"a": well(said()), "b": well()}, a={"prices": PRICES})
        assert (await bench.ask(stream=stream)).worker == "b"
        assert bench.failed[0].code == "empty"
        assert (bench.failed[0].usage, bench.failed[0].cost_usd) == (USAGE, Decimal("0.002"))
        lone = Bench({"a": Failing("empty")})
        assert (await lone.fail()).code == "empty"

    run(work)


def test_reasoning_alone_is_an_empty_answer() -> None:
    """An answer that only thought is none, and the error says what used up the limit."""

    async def work() -> None:
        thinking = said(finish_reason="length", reasoning="hm")
        error = await Bench({"a": well(thinking, thinking)}).fail()
        assert error.code == "empty"
        assert "output limit" in error.message

    run(work)


def calling(*calls: tuple[str, str, str]) -> Completion:
    return said(finish_reason="tool_calls", tool_calls=tuple(ToolCall(id=i, name=n, arguments=a) for i, n, a in calls))


WITH_TOOLS = Query(messages=QUERY.messages, sampling=Sampling(tools=(TOOL,)))


@pytest.mark.parametrize(
    "call", [("t", "look", "{"), ("t", "look", "[1]"), ("t", "look", "[" * 99999), ("t", "no_such_tool", "{}")]
)
def test_a_broken_tool_call_is_never_passed_on(call: tuple[str, str, str]) -> None:
    """Arguments that are no JSON object, or a tool that was not offered, are the worker's failure."""

    async def work() -> None:
        bench = Bench({"a": well(calling(("ok", "look", "{}"), call)), "b": well()})
        assert (await bench.ask(query=WITH_TOOLS)).worker == "b"
        assert bench.failed[0].code == "malformed"
        assert len(bench.failed[0].message) < 300

    run(work)


def test_a_tool_call_where_none_was_offered_is_malformed() -> None:
    """Garbage is garbage without tools too."""

    async def work() -> None:
        bench = Bench({"a": Failing("garbage"), "b": well()})
        assert (await bench.ask()).worker == "b"
        assert bench.failed[0].code == "malformed"

    run(work)


def test_sound_tool_calls_are_a_reply_and_mended_where_nothing_is_lost() -> None:
    """No arguments become an empty object, and an id given twice is numbered."""

    async def work() -> None:
        bench = Bench({"a": well(calling(("t", "look", '{"a":1}'), ("t", "look", ""), ("u", "look", "{}")))})
        reply = await bench.ask(query=WITH_TOOLS)
        assert [(call.id, call.arguments) for call in reply.tool_calls] == [
            ("t", '{"a":1}'),
            ("t_2", "{}"),
            ("u", "{}"),
        ]

    run(work)


def test_a_tool_that_takes_free_text_may_be_given_any() -> None:
    """A custom tool's input is not JSON."""

    async def work() -> None:
        query = Query(messages=(), sampling=Sampling(tools=({"type": "custom", "custom": {"name": "patch"}},)))
        reply = await Bench({"a": well(calling(("t", "patch", "*** Begin")))}).ask(query=query)
        assert reply.tool_calls[0].arguments == "*** Begin"

    run(work)


FILTERED = said(finish_reason="content_filter")


def test_a_filtered_answer_is_tried_with_one_other_worker() -> None:
    """The other worker's reply counts; the filtered one stays on record with its cost."""

    async def work() -> None:
        bench = Bench({"a": well(FILTERED), "b": well(), "c": well()}, a={"prices": PRICES})
        assert (await bench.ask()).worker == "b"
        assert bench.trail == [
            "called a 1 planned",
            "called b 2 failover",
            "replied b 2",
            "failed a 1 content_filter",
        ]
        assert bench.failed[0].cost_usd == Decimal("0.002")

    run(work)


@pytest.mark.parametrize("second", [well(FILTERED), broken("server_error"), broken("content_filter")])
def test_a_twice_filtered_question_gets_the_filtered_reply(second: Backend) -> None:
    """One other worker, not more: then the client is told that it was filtered."""

    async def work() -> None:
        bench = Bench({"a": well(FILTERED), "b": second, "c": well()})
        reply = await bench.ask()
        assert (reply.finish_reason, reply.text) == ("content_filter", "")
        assert not any("called c" in line for line in bench.trail)
        assert sum(line.startswith("replied") for line in bench.trail) == 1

    run(work)


def test_a_filter_that_refuses_the_prompt_is_tried_with_one_other_worker() -> None:
    """A filter's 400 is treated as its empty answer is, but it is an error in the end."""

    async def work() -> None:
        bench = Bench({"a": broken("content_filter"), "b": broken("content_filter"), "c": well()})
        assert (await bench.fail()).code == "content_filter"
        assert not any("called c" in line for line in bench.trail)

    run(work)


def test_a_lone_filtered_answer_is_the_reply() -> None:
    """With nobody else to ask the client gets the finish reason."""

    async def work() -> None:
        bench = Bench({"a": well(FILTERED)})
        assert (await bench.ask()).finish_reason == "content_filter"
        assert bench.trail == ["called a 1 planned", "replied a 1"]

    run(work)


# --- streams ---


@pytest.mark.parametrize("deltas", [0, 3])
def test_a_stream_fails_over_only_before_its_first_token(deltas: int) -> None:
    """Once a token went out nobody takes over unseen: the error says so."""

    async def work() -> None:
        bench = Bench({"a": Failing("die", deltas=deltas), "b": well()})
        if not deltas:
            assert (await bench.ask(stream=True)).worker == "b"
            return
        error = await bench.fail(stream=True)
        assert isinstance(error, WorkerError)
        assert (error.code, error.partial) == ("truncated", True)
        assert bench.trail == ["called a 1 planned", "failed a 1 truncated"]
        assert (bench.failed[0].usage, bench.failed[0].cost_usd) == (Usage(), None)

    run(work)


def test_a_stream_that_hangs_after_its_first_token_is_partial() -> None:
    """The pool's own time limit knows what had been passed on."""

    class Starts:
        async def complete(self, query: Query, on_delta: Any) -> Completion:
            await on_delta(Delta(text="well, "))
            await asyncio.Event().wait()
            raise AssertionError

        async def close(self) -> None: ...

    async def work() -> None:
        bench = Bench({"a": Starts(), "b": well()}, a={"timeouts": Timeouts(total_s=0.05)})
        error = await bench.fail(stream=True)
        assert isinstance(error, WorkerError)
        assert (error.code, error.partial) == ("timeout_total", True)

    run(work)


def test_a_broken_tool_call_after_streamed_text_is_partial() -> None:
    """Text had gone out before the tool call proved broken."""

    async def work() -> None:
        answer = Completion(
            text="I look", finish_reason="tool_calls", tool_calls=(ToolCall(id="t", name="x", arguments=""),)
        )
        error = await Bench({"a": well(answer), "b": well()}).fail(stream=True)
        assert isinstance(error, WorkerError)
        assert (error.code, error.partial) == ("malformed", True)

    run(work)


# --- time and cancellation ---


def test_a_worker_that_hangs_is_given_up() -> None:
    """Every backend is bounded in time, not only those on a wire."""

    async def work() -> None:
        bench = Bench({"a": Failing("hang"), "b": well()}, a={"timeouts": Timeouts(total_s=0.05)})
        assert (await bench.ask()).worker == "b"
        assert bench.failed[0].code == "timeout_total"
        assert bench.failed[0].cost_usd is None

    run(work)


def test_a_cancelled_call_is_on_record_with_unknown_cost() -> None:
    """The client left while the worker worked: what that costs is not known, and not forgotten."""

    async def work() -> None:
        bench = Bench({"a": Failing("hang")}, a={"limits": Limits(concurrency=1)})
        call = asyncio.create_task(bench.ask())
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        (failed,) = bench.failed
        assert (failed.code, failed.fault, failed.usage, failed.cost_usd) == ("cancelled", "client", Usage(), None)
        again = asyncio.create_task(bench.ask())  # its place was given back
        await asyncio.sleep(0)
        assert sum(isinstance(event, Called) for event in bench.events) == 2
        again.cancel()

    run(work)


def test_a_cancelled_call_keeps_the_filtered_attempt_on_record() -> None:
    """An attempt that was paid for and held back is recorded however the step ends."""

    async def work() -> None:
        bench = Bench({"a": well(FILTERED), "b": Failing("hang")}, a={"prices": PRICES})
        call = asyncio.create_task(bench.ask())
        for _ in range(5):
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert [(failed.code, failed.cost_usd) for failed in bench.failed] == [
            ("cancelled", None),
            ("content_filter", Decimal("0.002")),
        ]

    run(work)


def test_a_fault_of_ours_is_passed_on_and_recorded_as_ours() -> None:
    """A bug in a backend is not the worker's failure: it is not retried, nor does it count against the worker."""

    def fault(query: Query) -> str:
        raise ZeroDivisionError

    async def work() -> None:
        bench = Bench({"a": Scripted(fault), "b": well()})
        with pytest.raises(ZeroDivisionError):
            await bench.ask()
        assert [(failed.fault, failed.code) for failed in bench.failed] == [("us", "internal_error")]

    run(work)


# --- what failures cost ---

UNBILLED = {
    "connect_failed",
    "timeout_connect",
    "rate_limited",
    "auth",
    "rejected",
    "context_overflow",
    "overloaded",
    "unavailable",
}


@pytest.mark.parametrize("code", [*RETRIED, *HOPELESS, "rate_limited", "context_overflow", "content_filter"])
def test_a_failure_costs_nothing_only_where_that_is_known(code: WorkerCode) -> None:
    """What never reached a model cost 0; what broke later is unknown, not 0."""

    async def work() -> None:
        bench = Bench({"a": broken(code)}, a={"prices": PRICES}, max_attempts=1)
        await bench.fail()
        (failed,) = bench.failed
        assert failed.cost_usd == (Decimal(0) if code in UNBILLED else None)
        assert failed.usage.output_tokens == (0 if code in UNBILLED else None)

    run(work)


# --- capabilities ---

WITH_IMAGE = Query(messages=(Message(role="user", content=(TextPart(text="what?"), ImagePart(url="https://x/y.png"))),))


@pytest.mark.parametrize(
    ("query", "lacks", "has", "why"),
    [
        (WITH_IMAGE, {}, {"modalities": ("text", "image")}, "no images"),
        (WITH_TOOLS, {"tools": False}, {}, "no tools"),
    ],
)
def test_a_worker_that_cannot_take_the_query_is_not_asked(
    query: Query, lacks: dict[str, Any], has: dict[str, Any], why: str
) -> None:
    """It is passed over, and the record says why; if nobody can, the client is told."""

    async def work() -> None:
        bench = Bench({"a": well(), "b": well()}, a=lacks, b=has)
        assert (await bench.ask(query=query)).worker == "b"
        assert bench.trail == ["failed a 0 skipped", "called b 1 planned", "replied b 1"]
        assert why in bench.failed[0].message
        assert bench.failed[0].cost_usd == Decimal(0)
        error = await bench.fail("a", query=query)
        assert isinstance(error, RequestError)
        assert (error.status, error.code) == (400, "unsupported")

    run(work)


def other(kind: str, **raw: Any) -> Query:
    return Query(messages=(Message(role="user", content=(OtherPart(kind=kind, raw={"type": kind, **raw}),)),))


PDF_SOURCE = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0x"}
PDF_FILE = {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0x"}
DOC_FILE = {"filename": "a.doc", "file_data": "data:application/msword;base64,AA=="}
URL_SOURCE = {"type": "url", "url": "https://x/y.pdf"}
IMAGE_BLOCK = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}


@pytest.mark.parametrize(
    ("query", "takers", "what"),
    [
        (other("document", source=PDF_SOURCE), {"openai-pdf", "anthropic-pdf", "scripted-pdf"}, "PDFs"),
        (other("file", file=PDF_FILE), {"openai-pdf", "anthropic-pdf", "scripted-pdf"}, "PDFs"),
        (other("document", source=URL_SOURCE), {"anthropic-pdf"}, "documents by reference"),
        (other("document"), {"anthropic-pdf"}, "documents by reference"),
        (
            other("document", source=PDF_SOURCE | {"media_type": "application/msword"}),
            {"anthropic-pdf"},
            "documents of type 'application/msword'",
        ),
        (other("file", file={"file_id": "f1"}), {"openai-pdf"}, "files by reference"),
        (other("file", file=DOC_FILE), {"openai-pdf"}, "files of type 'application/msword'"),
        (other("input_audio"), {"openai-audio"}, "audio"),
        (other("video_url"), {"openai", "openai-pdf", "openai-audio"}, "parts of type 'video_url'"),
        (
            other("document", source={"type": "content", "content": [IMAGE_BLOCK]}),
            set(),
            "images",
        ),
        (other("document", source={"type": "text", "data": "hi"}), None, ""),
        (other("file", file={"file_data": "data:text/plain;base64,aGk="}), None, ""),
    ],
)
def test_only_those_are_asked_who_can_take_every_part(query: Query, takers: set[str] | None, what: str) -> None:
    """By what they declare, and by the dialects that have a form for it; text in any wrapping everyone takes."""
    fields: dict[str, dict[str, Any]] = {
        f"{dialect}{'-' if modality else ''}{modality}": {
            "dialect": dialect,
            "modalities": ("text", modality) if modality else ("text",),
        }
        for dialect in ("openai", "anthropic", "scripted")
        for modality in ("", "pdf", "audio")
    }

    async def work() -> None:
        for name, spec in fields.items():
            bench = Bench({name: well()}, **{name: spec})
            if takers is None or name in takers:
                assert (await bench.ask(query=query)).worker == name
                continue
            error = await bench.fail(query=query)
            assert isinstance(error, RequestError)
            assert (error.code, error.param) == ("unsupported", "messages")
            assert str(error) == f"none of the workers {name} takes {what}"
            assert [f.message for f in bench.failed] == [f"worker {name!r} is not asked: it takes no {what}"]

    run(work)


def test_all_that_is_missing_is_named() -> None:
    """The client learns everything that the request needs, each once."""

    async def work() -> None:
        messages = (*WITH_IMAGE.messages, *WITH_IMAGE.messages, *other("file", file=PDF_FILE).messages)
        query = Query(messages=messages, sampling=WITH_TOOLS.sampling)
        error = await Bench({"a": well()}).fail(query=query)
        assert str(error) == "none of the workers a takes images and PDFs and tools"
        assert isinstance(error, RequestError)
        lonely = await Bench({"a": well()}, a={"tools": False}).fail(query=WITH_TOOLS)
        assert isinstance(lonely, RequestError)
        assert (error.param, lonely.param) == ("messages", "tools")

    run(work)


# --- limits ---


def test_a_worker_is_not_driven_harder_than_declared() -> None:
    """Never more calls at once than its concurrency; the waiting ones are served in turn."""

    class Counting:
        now = most = 0

        async def complete(self, query: Query, on_delta: Any) -> Completion:
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.001)
            self.now -= 1
            return said("x")

        async def close(self) -> None: ...

    async def work() -> None:
        backend = Counting()
        bench = Bench({"a": backend}, a={"limits": Limits(concurrency=3, queue=20)})
        await asyncio.gather(*(bench.ask() for _ in range(20)))
        assert backend.most == 3

    run(work)


def test_a_full_queue_refuses_at_once_and_another_worker_may_help() -> None:
    """Beyond concurrency and queue a call fails over; alone, it is told to come back, and nobody was asked."""

    async def work() -> None:
        bench = Bench({"a": Failing("hang"), "b": well()}, a={"limits": Limits(concurrency=1, queue=1)})
        running = [asyncio.create_task(bench.ask("a")) for _ in range(2)]
        await asyncio.sleep(0)
        bench.events.clear()
        assert (await bench.ask("a", "b")).worker == "b"
        assert bench.trail == ["failed a 0 overloaded", "called b 1 failover", "replied b 1"]
        error = await bench.fail("a")
        assert isinstance(error, WorkerError)
        assert (error.code, error.retry_after_s) == ("overloaded", 1.0)
        assert bench.clock.slept == []
        for call in running:
            call.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    run(work)


def test_a_call_that_gives_up_waiting_leaves_its_place_to_the_next() -> None:
    """Cancelled while waiting: nothing recorded, nothing leaked."""

    async def work() -> None:
        go = asyncio.Event()

        class Waits:
            async def complete(self, query: Query, on_delta: Any) -> Completion:
                await go.wait()
                return said("x")

            async def close(self) -> None: ...

        bench = Bench({"a": Waits()}, a={"limits": Limits(concurrency=1)})
        first, second, third = (asyncio.create_task(bench.ask()) for _ in range(3))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(first, third)
        assert sum(isinstance(event, Called) for event in bench.events) == 2
        await bench.ask()  # the place is free again

    run(work)


def test_a_wait_in_the_queue_ends_with_the_time_a_call_may_take() -> None:
    """Queueing is not unbounded."""

    async def work() -> None:
        worker = {"limits": Limits(concurrency=1), "timeouts": Timeouts(total_s=0.05)}

        class Stuck:
            async def complete(self, query: Query, on_delta: Any) -> Completion:
                with pytest.raises(asyncio.CancelledError):
                    await asyncio.sleep(0.1)  # a backend that is slow to give up
                await asyncio.sleep(0.1)
                return said("late")

            async def close(self) -> None: ...

        bench = Bench({"a": Stuck()}, a=worker)
        first = asyncio.create_task(bench.ask())
        await asyncio.sleep(0)
        assert (await bench.fail()).code == "overloaded"
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)

    run(work)


def test_a_place_handed_over_in_the_moment_of_giving_up_is_not_lost() -> None:
    """A waiting call that is cancelled just as its turn comes hands the place on."""

    async def work() -> None:
        gate = Gate(places=1, queue=5)
        assert gate.enter_at_once()
        waiting = asyncio.create_task(gate.enter())
        await asyncio.sleep(0)
        gate.leave()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert gate.enter_at_once()

    run(work)


# --- the breaker ---


async def break_it(bench: Bench, worker: str, calls: int) -> None:
    for _ in range(calls):
        await bench.fail(worker)
    bench.events.clear()


def test_a_worker_that_keeps_failing_is_left_alone_and_then_tried() -> None:
    """Five failures in a row close it off for 30 s; then one call tries it, and its reply lets all in again."""

    async def work() -> None:
        bench = Bench({"a": broken("server_error", times=5), "b": well()}, max_attempts=1)
        await break_it(bench, "a", 5)
        assert (await bench.ask("a", "b")).worker == "b"
        assert bench.trail[0] == "failed a 0 skipped"
        assert "30.0 s" in bench.failed[0].message
        bench.clock.now += 30
        assert (await bench.ask("a", "b")).worker == "a"
        assert (await bench.ask("a", "b")).worker == "a"

    run(work)


def test_four_failures_and_a_success_do_not_open_the_breaker() -> None:
    """Only failures in a row count."""

    async def work() -> None:
        failures = Failing(WorkerError("no", worker="a", code="server_error"), times=4, then=well("ok"))
        bench = Bench({"a": failures, "b": well()}, max_attempts=1)
        await break_it(bench, "a", 4)
        await bench.ask("a")
        await bench.fail("a")  # the script has ended: the fifth failure, not the fifth in a row
        assert (await bench.fail("a", "b")).code == "unavailable"
        assert not any("skipped" in line for line in bench.trail)

    run(work)


def test_a_failed_trial_closes_the_worker_off_again() -> None:
    """One failure after the pause is enough for another pause."""

    async def work() -> None:
        bench = Bench({"a": broken("server_error"), "b": well()}, max_attempts=1)
        await break_it(bench, "a", 5)
        bench.clock.now += 30
        assert (await bench.fail("a", "b")).code == "server_error"
        bench.clock.now += 29
        assert (await bench.ask("a", "b")).worker == "b"

    run(work)


def test_only_one_call_tries_a_worker_that_was_closed_off() -> None:
    """While it is being tried, the others go elsewhere."""

    async def work() -> None:
        trial = Failing(WorkerError("no", worker="a", code="server_error"), times=5, then=Failing("hang"))
        bench = Bench({"a": trial, "b": well()}, max_attempts=1)
        await break_it(bench, "a", 5)
        bench.clock.now += 30
        call = asyncio.create_task(bench.ask("a", "b"))
        await asyncio.sleep(0)
        assert (await bench.ask("a", "b")).worker == "b"
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        retry = asyncio.create_task(bench.ask("a", "b"))  # a trial that was cancelled does not block the next
        await asyncio.sleep(0)
        assert trial.calls == 7
        retry.cancel()

    run(work)


@pytest.mark.parametrize("code", ["rejected", "context_overflow", "content_filter"])
def test_failures_that_say_nothing_of_health_do_not_count(code: WorkerCode) -> None:
    """A worker that refuses bad requests is well."""

    async def work() -> None:
        bench = Bench({"a": broken(code, times=9), "b": well()}, max_attempts=1)
        await break_it(bench, "a", 9)
        assert (await bench.ask("a", "b")).worker == "a"

    run(work)


def test_a_retry_after_rests_the_worker() -> None:
    """After a 429 others are asked first until the time is over."""

    async def work() -> None:
        bench = Bench({"a": broken("rate_limited", times=1, retry_after_s=40.0), "b": well()})
        await bench.ask()
        bench.events.clear()
        bench.clock.now += 39
        await bench.ask()
        assert bench.trail == ["failed a 0 skipped", "called b 1 planned", "replied b 1"]
        bench.clock.now += 1
        assert (await bench.ask()).worker == "a"

    run(work)


def test_the_only_candidate_is_tried_however_ill_it_is() -> None:
    """A breaker never makes the pool refuse what might work."""

    async def work() -> None:
        bench = Bench({"a": broken("server_error", times=5)}, max_attempts=1)
        await break_it(bench, "a", 5)
        assert (await bench.ask()).worker == "a"

    run(work)


def test_a_refused_key_disables_its_worker_and_tells_the_operator_once(caplog: pytest.LogCaptureFixture) -> None:
    """Others are asked from then on; the provider's words are in the log, not in the error or the record."""

    async def work() -> None:
        error = WorkerError("worker 'a': status 401: the provider refuses the key", worker="a", code="auth")
        error.add_note("provider: org acme has no such key")
        bench = Bench({"a": Failing(error, times=2, then=well()), "b": well()})
        with caplog.at_level(logging.ERROR):
            await bench.ask()
            bench.clock.now += 1e6
            await bench.ask()
            assert bench.trail[-3:] == ["failed a 0 skipped", "called b 1 planned", "replied b 1"]
            shown = str(await bench.fail("a"))
        (line,) = caplog.messages
        assert "worker 'a' is disabled" in line
        assert "org acme" in line
        assert "acme" not in shown + repr(bench.events)
        assert (await bench.ask("a")).worker == "a"  # asked for want of another: the key works again
        assert (await bench.ask("a", "b")).worker == "a"

    run(work)


# --- a step's own limit in time ---


async def turns(n: int = 8) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


def test_a_step_ends_when_its_time_is_up() -> None:
    """The attempt in flight is recorded as out of time, at unknown cost, and nobody else is asked."""

    async def work() -> None:
        bench = Bench({"a": broken("server_error"), "b": Failing("hang"), "c": well()})
        error = await bench.fail(timeout_s=0.02)
        assert isinstance(error, WorkerError)
        assert (error.code, error.worker, error.partial) == ("timeout_total", "b", False)
        assert "the step's limit of 0.02 s" in error.message
        assert bench.trail == [
            "called a 1 planned",
            "failed a 1 server_error",
            "called b 2 failover",
            "failed b 2 timeout_total",
        ]
        last = bench.failed[-1]
        assert (last.fault, last.message, last.usage, last.cost_usd) == ("worker", error.message, Usage(), None)

    run(work)


def test_a_step_s_limit_says_nothing_of_a_worker_s_health() -> None:
    """Short limits are the policy's: however many calls they end, the worker is asked again, and has its places."""

    async def work() -> None:
        slow = Failing("hang")
        bench = Bench({"a": slow, "b": well()}, a={"limits": Limits(concurrency=1)})
        for _ in range(6):
            await bench.fail("a", timeout_s=0.001)
        await bench.fail("a", "b", timeout_s=0.001)
        assert slow.calls == 7

    run(work)


def test_a_worker_s_shorter_limit_still_leads_to_another_worker() -> None:
    """The step's time goes on: there is some left for the next."""

    async def work() -> None:
        bench = Bench({"a": Failing("hang"), "b": well()}, a={"timeouts": Timeouts(total_s=0.01)})
        assert (await bench.ask(timeout_s=5.0)).worker == "b"
        assert bench.failed[0].code == "timeout_total"
        assert "step" not in bench.failed[0].message

    run(work)


def test_time_in_the_queue_is_the_step_s_time() -> None:
    """Out of time before anything was sent: on record as an attempt that was none, and free."""

    async def work() -> None:
        bench = Bench({"a": Failing("hang")}, a={"limits": Limits(concurrency=1)})
        running = asyncio.create_task(bench.ask())
        await turns()
        bench.events.clear()
        assert (await bench.fail(timeout_s=0.01)).code == "timeout_total"
        assert bench.trail == ["failed a 0 timeout_total"]
        assert bench.failed[0].cost_usd == 0
        running.cancel()
        await turns()
        again = asyncio.create_task(bench.ask())  # nothing waits for the place any more
        await turns()
        assert bench.trail[-1] == "called a 1 planned"
        again.cancel()

    run(work)


@pytest.mark.parametrize(
    ("backend", "timeout_s", "slept"),
    [
        (broken("rate_limited", times=1, retry_after_s=20.0), 20.0, []),
        (broken("rate_limited", times=1, retry_after_s=20.0), 20.1, [20.0]),
        (broken("server_error", times=1), 1.125, []),
        (broken("server_error", times=1), 1.126, [1.125]),
    ],
)
def test_no_pause_outlasts_the_step(backend: Backend, timeout_s: float, slept: list[float]) -> None:
    """What could not be tried again in time is not waited for: the step fails at once, as the worker did."""

    async def work() -> None:
        bench = Bench({"a": backend})
        if slept:
            await bench.ask(timeout_s=timeout_s)
        else:
            assert (await bench.fail(timeout_s=timeout_s)).message.startswith("upstream says")
        assert bench.clock.slept == slept

    run(work)


class Drips:
    """Streams one piece, and then never ends."""

    async def complete(self, query: Query, on_delta: Any) -> Completion:
        if on_delta is not None:
            await on_delta(Delta(text="It is"))
        await asyncio.Event().wait()
        raise AssertionError

    async def close(self) -> None: ...


def test_out_of_time_within_a_stream_is_partial() -> None:
    """Tokens have left: the caller is told."""

    async def work() -> None:
        error = await Bench({"a": Drips(), "b": well()}).fail(stream=True, timeout_s=0.01)
        assert isinstance(error, WorkerError)
        assert (error.code, error.partial) == ("timeout_total", True)

    run(work)


def test_a_filtered_reply_is_taken_when_the_time_for_a_better_one_is_up() -> None:
    """It was paid for, and it is all there is."""

    async def work() -> None:
        bench = Bench({"a": well(FILTERED), "b": Failing("hang")})
        assert (await bench.ask(timeout_s=0.01)).finish_reason == "content_filter"
        assert bench.trail[-2:] == ["failed b 2 timeout_total", "replied a 1"]

    run(work)


def test_a_time_out_that_is_not_the_step_s_is_a_fault_of_ours() -> None:
    """A backend that leaks one is not taken for a step out of time."""

    def leak(query: Query) -> str:
        raise TimeoutError

    async def work() -> None:
        bench = Bench({"a": Scripted(leak)})
        with pytest.raises(TimeoutError):
            await bench.ask(timeout_s=60.0)
        assert bench.failed[0].fault == "us"

    run(work)


def test_a_fault_of_ours_stays_ours_when_the_time_is_up() -> None:
    """A backend that breaks while it is cancelled is not excused by the clock."""

    class Breaks:
        async def complete(self, query: Query, on_delta: Any) -> Completion:
            try:
                await asyncio.Event().wait()
            finally:
                raise ZeroDivisionError

        async def close(self) -> None: ...

    async def work() -> None:
        bench = Bench({"a": Breaks()})
        with pytest.raises(ZeroDivisionError):
            await bench.ask(timeout_s=0.01)
        assert [(failed.code, failed.fault) for failed in bench.failed] == [("internal_error", "us")]

    run(work)


# --- dropped, or the client left ---


@pytest.mark.parametrize("timeout_s", [None, 60.0])
@pytest.mark.parametrize("message", [DROPPED, "in other words", None])
def test_a_dropped_call_is_told_from_one_whose_client_left(message: str | None, timeout_s: float | None) -> None:
    """Cancelled with that message, in a group whose other tasks go on, it is the policy's doing; else the client's."""

    async def work() -> None:
        bench = Bench({"a": Failing("hang")})
        other = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            sibling = group.create_task(other.wait())
            call = group.create_task(bench.ask(timeout_s=timeout_s))
            await turns()
            call.cancel(message)
            await turns()
            assert call.cancelled()
            assert not sibling.done()
            other.set()
        (failed,) = bench.failed
        code, fault = ("dropped", "policy") if message == DROPPED else ("cancelled", "client")
        assert (failed.code, failed.fault, failed.cost_usd, failed.usage) == (code, fault, None, Usage())
        assert (DROPPED in failed.message) == (message == DROPPED)

    run(work)


def test_a_group_that_is_aborted_drops_nothing() -> None:
    """Siblings of a step that failed are cancelled, and neither they nor a cancelled parent are said to be dropped."""

    async def work() -> None:
        bench = Bench({"a": Failing("hang")})

        async def fault() -> None:
            await turns()
            raise ZeroDivisionError

        async def ask_beside_a_fault() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(bench.ask(timeout_s=60.0))
                group.create_task(fault())

        with pytest.raises(ExceptionGroup):
            await ask_beside_a_fault()
        assert [failed.code for failed in bench.failed] == ["cancelled"]

        async def parent() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(bench.ask(timeout_s=60.0))

        running = asyncio.create_task(parent())
        await turns()
        running.cancel()
        await turns()
        assert [failed.code for failed in bench.failed] == ["cancelled", "cancelled"]

    run(work)


def test_a_call_that_is_dropped_in_the_queue_leaves_no_trace() -> None:
    """Nothing was sent."""

    async def work() -> None:
        bench = Bench({"a": Failing("hang")}, a={"limits": Limits(concurrency=1)})
        running = asyncio.create_task(bench.ask())
        await turns()
        waiting = asyncio.create_task(bench.ask(timeout_s=60.0))
        await turns()
        waiting.cancel(DROPPED)
        await turns()
        assert bench.trail == ["called a 1 planned"]
        running.cancel()

    run(work)


# --- money ---


class Till:
    """A purse that pays for `calls` calls and writes down what it is asked, between the events of a bench."""

    def __init__(self, *, calls: int = 99, is_bounded: bool = True) -> None:
        self.calls = calls
        self.is_bounded = is_bounded
        self.closed: str | None = None
        self.bench: Bench | None = None
        self.asked: list[Spend] = []
        self.paid: list[Spend] = []
        self.trail_at_reserve: list[list[str]] = []

    async def reserve(self, worst: Spend) -> Till:
        if self.bench is not None:
            self.trail_at_reserve.append(self.bench.trail)
        if len(self.asked) == self.calls:
            raise BudgetEnded("usd")
        self.asked.append(worst)
        return self

    def settle(self, spent: Spend) -> None:
        self.paid.append(spent)


UNKNOWN = Spend(tokens=None, usd=None)
NOTHING = Spend(tokens=0, usd=Decimal(0))
CHARGED = Spend(tokens=1100, usd=Decimal("0.002"))


def faulty(query: Query) -> str:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("backends", "paid"),
    [
        ([well()], [CHARGED]),
        ([broken("server_error"), well()], [UNKNOWN, CHARGED]),
        ([broken("rate_limited"), well()], [NOTHING, CHARGED]),
        ([broken("server_error", times=1)], [UNKNOWN, CHARGED]),
        ([well(said()), well()], [CHARGED, CHARGED]),
        ([well(said(usage=Usage())), well()], [UNKNOWN, CHARGED]),
        ([well(said("x", usage=Usage(input_tokens=5)))], [UNKNOWN]),
        ([well(FILTERED), well()], [CHARGED, CHARGED]),
        ([well(FILTERED), broken("content_filter")], [CHARGED, UNKNOWN]),
        ([Scripted(faulty)], [UNKNOWN]),
    ],
)
def test_every_attempt_is_paid_for_once(backends: list[Backend], paid: list[Spend]) -> None:
    """Reserved before it is on record, and settled at what the record says that it came to, however it ended."""

    async def work() -> None:
        bench = Bench(
            dict(zip("ab", backends, strict=False)), **{name: {"prices": PRICES} for name in "ab"[: len(backends)]}
        )
        till = Till()
        till.bench = bench
        with contextlib.suppress(FuguError, ZeroDivisionError):
            await bench.ask(purse=till)
        assert till.paid == paid
        assert len(till.asked) == len(paid)
        assert [sum(line.startswith("called") for line in trail) for trail in till.trail_at_reserve] == list(
            range(len(paid))
        )

    run(work)


def test_a_cancelled_call_stays_paid_for_at_its_worst() -> None:
    """Once, whoever cancels it: the client, the policy, or the step's limit."""

    async def work() -> None:
        till = Till()
        bench = Bench({"a": Failing("hang")})
        for message in (None, DROPPED):
            call = asyncio.create_task(bench.ask(purse=till))
            await turns()
            call.cancel(message)
            await turns()
        await bench.fail(purse=till, timeout_s=0.01)
        assert till.paid == [UNKNOWN] * 3

    run(work)


def test_a_fault_of_ours_after_the_reply_is_on_record_and_paid_for() -> None:
    """A price list that breaks, or a recorder: the attempt was made, so its cost may not be lost."""

    def break_down(_: object) -> None:
        raise ZeroDivisionError

    async def work() -> None:
        till = Till(is_bounded=False)
        spec = WorkerSpec(id="a", dialect="scripted", model="m")
        bench = Bench({})
        pool = Pool([Member(spec=spec, backend=well(), price=Price("broken", break_down))])  # type: ignore[arg-type]
        with pytest.raises(ZeroDivisionError):
            await pool.complete(QUERY, step=7, workers="a", record=bench.events.append, on_delta=None, purse=till)
        assert bench.trail == ["called a 1 planned", "failed a 1 internal_error"]
        with pytest.raises(ZeroDivisionError):
            await pool.complete(QUERY, step=7, workers="a", record=break_down, on_delta=None, purse=till)
        assert till.paid == [UNKNOWN, UNKNOWN]

    run(work)


def test_what_cannot_be_paid_for_is_not_asked() -> None:
    """Nothing of that attempt is on record, the worker keeps its health, and its place is free again."""

    async def work() -> None:
        backend = well()
        bench = Bench({"a": backend, "b": well()}, a={"limits": Limits(concurrency=1, queue=0)})
        for _ in range(6):
            with pytest.raises(BudgetEnded, match="budget:usd"):
                await bench.ask(purse=Till(calls=0))
        assert (bench.trail, backend.queries) == ([], [])
        assert (await bench.ask()).worker == "a"

    run(work)


def test_a_failover_that_cannot_be_paid_for_ends_the_budget() -> None:
    """The failure stays on record; what is raised is that the budget ended."""

    async def work() -> None:
        bench = Bench({"a": broken("server_error"), "b": well()})
        with pytest.raises(BudgetEnded):
            await bench.ask(purse=Till(calls=1))
        assert bench.trail == ["called a 1 planned", "failed a 1 server_error"]

    run(work)


def test_a_trial_that_cannot_be_paid_for_leaves_the_trial_to_the_next() -> None:
    """A closed-off worker is tried by the first call that has the money."""

    async def work() -> None:
        bench = Bench({"a": broken("server_error", times=5), "b": well()}, max_attempts=1)
        await break_it(bench, "a", 5)
        bench.clock.now += 30
        with pytest.raises(BudgetEnded):
            await bench.ask("a", "b", purse=Till(calls=0))
        assert (await bench.ask("a", "b")).worker == "a"

    run(work)


def test_a_filtered_reply_is_taken_when_another_one_cannot_be_paid_for() -> None:
    """It was paid for, and it is all there is."""

    async def work() -> None:
        bench = Bench({"a": well(FILTERED), "b": well()})
        assert (await bench.ask(purse=Till(calls=1))).finish_reason == "content_filter"
        assert bench.trail == ["called a 1 planned", "replied a 1"]

    run(work)


def test_who_waits_for_money_has_a_place_and_gives_it_back() -> None:
    """Cancelled or out of time while the purse makes it wait: nothing was sent, and the place is free."""

    class Slow(Till):
        async def reserve(self, worst: Spend) -> Till:
            await asyncio.Event().wait()
            raise AssertionError

    async def work() -> None:
        bench = Bench({"a": well()}, a={"limits": Limits(concurrency=1, queue=0)})
        assert (await bench.fail(purse=Slow(), timeout_s=0.01)).code == "timeout_total"
        assert bench.trail == ["failed a 0 timeout_total"]
        waiting = asyncio.create_task(bench.ask(purse=Slow()))
        await turns()
        waiting.cancel()
        await turns()
        assert bench.trail == ["failed a 0 timeout_total"]
        assert (await bench.ask()).worker == "a"

    run(work)


def test_only_a_bounded_purse_asks_for_the_worst_case() -> None:
    """Where calls alone are limited, nothing is imposed on a query; else one without a limit is given one."""

    async def work() -> None:
        backend = well()
        bench = Bench({"a": backend}, a={"prices": PRICES})
        free, bounded = Till(is_bounded=False), Till()
        await bench.ask(purse=free)
        await bench.ask(purse=bounded)
        assert [query.sampling.max_output_tokens for query in backend.queries] == [None, IMPOSED_OUTPUT_TOKENS]
        assert free.asked == [UNKNOWN]
        (worst,) = bounded.asked
        assert worst.tokens is not None
        assert worst.usd == ((worst.tokens - 16_384) * 1 + 16_384 * 10) / Decimal(1_000_000)

    run(work)


def test_a_worker_that_breaks_its_word_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """More tokens than declared limits allow are paid for, and the operator is told what to correct."""

    async def work() -> None:
        more = said("x", usage=Usage(input_tokens=9000, output_tokens=100))
        fields = {"prices": PRICES, "max_output_tokens": 100}
        bench = Bench({"a": well(more), "b": well()}, a=fields, b=fields)
        till = Till()
        with caplog.at_level(logging.WARNING):
            await bench.ask("b", purse=till)
            assert caplog.messages == []
            await bench.ask("a", purse=till)
        assert till.paid[1].tokens == 9100
        (line,) = caplog.messages
        assert "worker 'a' used more than was reserved (9100 tokens of" in line
        assert "max_output_tokens" in line

    run(work)


# --- the package ---


def test_the_pool_imports_nothing_heavy() -> None:
    """Training runs of in-process workers pay for no HTTP library and no price list."""
    code = (
        "import sys, torafugu.pool;"
        "print([name for name in ('aiohttp', 'genai_prices', 'pydantic', 'sympy', 'torch') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_calls_of_two_event_loops_in_turn_are_served() -> None:
    """A pool may outlive its loop: training asks from one `asyncio.run` after another."""
    bench = Bench({"a": Scripted(lambda _: "fine", latency_s=0.001)}, a={"limits": Limits(concurrency=1)})

    async def many() -> Iterable[Reply]:
        return await asyncio.gather(*(bench.ask() for _ in range(3)))

    for _ in range(2):
        assert len(list(asyncio.run(many()))) == 3
