"""What is seen of a run of several steps while it goes on, and told of it at its end."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import threading
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs import PRICES, Planned, plan
from serving import HI, Server, read_all, running
from torafugu.errors import WorkerError
from torafugu.events import Answered, Called, Event, Failed, Replied
from torafugu.events import Planned as PlannedEvent
from torafugu.orchestrate import Budget, Run
from torafugu.pool.backend import Backend, Completion, Delta, OnDelta, Query
from torafugu.pool.scripted import Failing, Scripted
from torafugu.server.chat import Chunks
from torafugu.server.connection import Admission, ClientLeft, run_while_connected
from torafugu.server.errors import create_error
from torafugu.server.narration import Narrator
from torafugu.server.stream import Stream
from torafugu.types import Answer, Message, Plan, Reply, Step, Usage

CONDUCT = Step(id=0, worker="maestro", role="conductor", messages=(Message(role="user", content="plan"),))
WORKFLOW = (
    Step(id=1, worker="exact", instruction="Compute 17 * 23."),
    Step(id=2, worker="facts", instruction="Name the capital of France.", alternates=("spare",)),
    Step(id=3, worker="fluent", instruction="Join the results of step 0 and step 1.", sees=(1, 2), is_final=True),
)
ONE = plan(Step(id=0, worker="exact", alternates=("spare",), is_final=True))


# --- the words ---


def planned(*steps: Step) -> PlannedEvent:
    return PlannedEvent(plan=plan(*steps), decision_ms=1.0)


def called(step: int, worker: str, attempt: int = 1, reason: str = "planned") -> Called:
    return Called(step=step, worker=worker, attempt=attempt, reason=reason)


def replied(step: int, worker: str, text: str = "SECRET", **fields: Any) -> Replied:
    usage = Usage(input_tokens=300, output_tokens=50)
    values = {"latency_ms": 1234.5, "cost_usd": Decimal("0.00123"), "usage": usage, **fields}
    return Replied(step=step, attempt=1, reply=Reply(worker=worker, text=text, finish_reason="stop", **values))


def failed(step: int, worker: str, code: str = "timeout_total", latency_ms: float | None = 80.0) -> Failed:
    return Failed(
        step=step, worker=worker, attempt=1, fault="worker", code=code, message="SECRET", latency_ms=latency_ms
    )


def tell(*events: Event) -> list[str]:
    narrator = Narrator()
    return [narrator.tell(event) for event in events]


def test_a_workflow_is_told_from_its_plan_to_its_last_call() -> None:
    """The conductor's outcome comes first, then the plan by position, every start, every outcome, whoever stands in."""
    told = tell(
        planned(CONDUCT),
        called(0, "maestro"),
        replied(0, "maestro"),
        planned(*WORKFLOW),
        called(1, "exact"),
        called(2, "facts"),
        failed(2, "facts"),
        called(2, "spare", 2, "failover"),
        replied(1, "exact", latency_ms=200.0, cost_usd=None, usage=Usage()),
        replied(2, "spare"),
        called(3, "fluent"),
        called(3, "fluent", 2, "retry"),
    )
    assert told[:3] == ["", "", ""]
    assert "".join(told).splitlines() == [
        "conductor: maestro ok in 1.2 s, 350 tokens, $0.0012",
        "plan: 3 steps",
        "  0 exact (worker): Compute 17 * 23.",
        "  1 facts (worker): Name the capital of France.",
        "  2 fluent (worker), sees 0, 1: Join the results of step 0 and step 1.",
        "step 0: exact starts",
        "step 1: facts starts",
        "step 1: facts failed: timeout_total after 80 ms",
        "step 1: failover to spare",
        "step 0: exact ok in 200 ms, tokens unknown, cost unknown",
        "step 1: spare ok in 1.2 s, 350 tokens, $0.0012",
        "step 2: fluent starts",
        "step 2: fluent is asked again",
    ]


def test_another_round_is_told_at_once() -> None:
    """Once something was told, the conductor's next call is told as it happens, and steps of other rounds are named."""
    again = Step(id=4, worker="maestro", role="conductor", messages=CONDUCT.messages)
    last = Step(id=5, worker="fluent", instruction="Mend it.", sees=(3,), is_final=True)
    told = tell(planned(CONDUCT), planned(*WORKFLOW), planned(again), called(4, "maestro"), planned(last))
    assert told[3] == "conductor: maestro starts\n"
    assert told[4].splitlines() == ["round 2: 1 step", "  0 fluent (worker), sees 2 of round 1: Mend it."]


def test_turns_are_told_by_the_numbers_of_the_record() -> None:
    """Steps without subtasks are numbered through the whole run, as in its record; roles and sight are told."""
    thinks, works = Step(id=0, worker="a", role="thinker"), Step(id=1, worker="b", sees=(0,))
    told = tell(planned(thinks), planned(works), called(1, "b"))
    assert told == [
        "plan: 1 step\n  0 a (thinker)\n",
        "round 2: 1 step\n  1 b (worker), sees 0\n",
        "step 1: b starts\n",
    ]


@pytest.mark.parametrize(
    "events",
    [
        (PlannedEvent(plan=ONE, decision_ms=1.0), called(0, "exact"), failed(0, "exact"), replied(0, "spare")),
        (planned(CONDUCT), called(0, "maestro"), failed(0, "maestro")),
        (Answered(step=0, worker="exact"),),
    ],
    ids=["one final step", "only a conductor", "no plan"],
)
def test_nothing_is_told_of_what_is_no_workflow(events: tuple[Event, ...]) -> None:
    """One final step is not narrated, failing over or not; nor is a conductor as long as nothing else is planned."""
    assert tell(*events) == [""] * len(events)


def test_a_dropped_step_is_not_called_a_failure() -> None:
    """Whom nobody waits for any more has not failed."""
    assert tell(planned(*WORKFLOW), failed(1, "exact", "dropped"))[1] == (
        "step 0: exact is not waited for any more after 80 ms\n"
    )


def test_a_failure_before_the_first_plan_is_told_with_it() -> None:
    """What was held back is told first once there is a plan, so that nothing that cost time or money is missing."""
    told = tell(planned(CONDUCT), failed(0, "maestro", "malformed"), called(0, "maestro", 2), planned(*WORKFLOW))
    assert told[3].splitlines()[0] == "conductor: maestro failed: malformed after 80 ms"


TEXTS = st.text(min_size=1, max_size=300)


@given(TEXTS, TEXTS, st.sampled_from([None, 0.0, 7.5, 1e7]))
def test_no_worker_speaks_and_nothing_steers_a_terminal(text: str, task: str, latency_ms: float | None) -> None:
    """Replies and errors are never quoted; a subtask is one printable line of at most 100 characters and a mark."""
    step = Step(id=0, worker="a", instruction=task)
    told = tell(
        planned(step, Step(id=1, worker="b")),
        replied(0, "a", f"SECRET{text}", reasoning=f"SECRET{text}", latency_ms=latency_ms),
        failed(1, "b", latency_ms=latency_ms),
    )
    assert "SECRET" not in "".join(told)
    lines = "".join(told).split("\n")
    assert all(line.isprintable() for line in lines)
    assert len(lines) == 6
    assert len(lines[1].removeprefix("  0 a (worker): ")) <= 101
    "".join(told).encode()


EVENTS = st.lists(
    st.sampled_from(
        [
            planned(CONDUCT),
            planned(*WORKFLOW),
            planned(Step(id=9, worker="a", sees=(0, 3, 77))),
            PlannedEvent(plan=ONE, decision_ms=0.0),
            *(called(step, "a", reason=reason) for step in (0, 3, 77) for reason in ("planned", "failover", "x")),
            *(replied(step, "a", cost_usd=Decimal(cost)) for step in (0, 77) for cost in ("0", "12.345", "1E-9")),
            failed(2, "b", latency_ms=None),
            Answered(step=3, worker="a"),
        ]
    ),
    max_size=12,
)


@given(EVENTS)
def test_any_run_can_be_told(events: list[Event]) -> None:
    """Whatever happens in whatever order is told in whole lines, and stops nothing."""
    assert all(not text or text.endswith("\n") for text in tell(*events))


# --- the stream ---


class Wire:
    """A connection whose client reads when it is let. Like the server's: waits first, then sends at once."""

    def __init__(self) -> None:
        self.may_send = asyncio.Event()
        self.is_waiting = asyncio.Event()
        self.has_sent = asyncio.Event()
        self.sent: list[MutableMapping[str, Any]] = []

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if not self.may_send.is_set():
            self.is_waiting.set()
            await self.may_send.wait()
        self.sent.append(message)
        if message["type"] == "http.response.body":
            self.has_sent.set()

    def told(self) -> str:
        """All text and reasoning that was sent, in order; heartbeats as dots."""
        kinds = [message["type"] for message in self.sent]
        assert kinds == ["http.response.start", *["http.response.body"] * (len(kinds) - 1)]
        frames = b"".join(message["body"] for message in self.sent[1:]).decode().split("\n\n")[:-1]
        return "".join(_said(frame) for frame in frames)


def _said(frame: str) -> str:
    if frame.startswith(":"):
        return "."
    data = json.loads(frame.removeprefix("data: "))
    if "error" in data:
        return str(data["error"]["message"])
    delta = data["choices"][0]["delta"]
    assert delta.get("reasoning") == delta.get("reasoning_content")
    return str(delta.get("reasoning", "") + delta.get("content", ""))


def open_stream(wire: Wire, *, heartbeat_s: float = 60.0) -> Stream:
    chunks = Chunks(run_id="run_1", created=5, model="m", include_usage=False)
    return Stream(wire.send, chunks, head=list, heartbeat_s=heartbeat_s)


async def never() -> MutableMapping[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


async def stay(stream: Stream, work: Awaitable[None], receive: Callable[[], Awaitable[Any]] = never) -> None:
    """The work, with a client that stays, or as `receive` says."""
    await run_while_connected(work, receive, Admission(1), beat=stream.beat, lend=stream.lend)


def test_what_is_narrated_is_sent_while_the_run_is_silent() -> None:
    """A line goes out when it is told, not with the next token."""

    async def main() -> None:
        wire = Wire()
        wire.may_send.set()
        stream = open_stream(wire)

        async def work() -> None:
            stream.narrate("a\n")
            await wire.has_sent.wait()

        await stay(stream, work())
        assert wire.told() == "a\n"

    asyncio.run(main())


def test_a_slow_client_holds_up_no_narration_and_loses_none() -> None:
    """While a client does not read, the run goes on telling; later it gets everything, in order, each frame once."""

    async def main() -> None:
        wire = Wire()
        stream = open_stream(wire, heartbeat_s=0.001)

        async def work() -> None:
            for i in range(50):
                stream.narrate(f"{i}\n")
                await asyncio.sleep(0)
            await wire.is_waiting.wait()
            await asyncio.sleep(0.01)  # some heartbeats fall due
            asyncio.get_running_loop().call_soon(wire.may_send.set)
            await stream.on_delta(Delta(reasoning="hm"))
            stream.narrate("50\n")
            await stream.on_delta(Delta(text="answer"))
            stream.narrate("too late\n")

        await stay(stream, work())
        await stream.break_off(create_error(500, "c", "!"))
        told = wire.told()
        assert told.replace(".", "") == "".join(f"{i}\n" for i in range(50)) + "hm\n50\nanswer!"

    asyncio.run(main())


@pytest.mark.parametrize("is_open", [False, True])
def test_what_a_cancelled_task_could_not_send_is_sent_by_the_next(is_open: bool) -> None:
    """A run that ends while its narration waits for the client still tells it, once, before the answer."""

    async def main() -> None:
        wire = Wire()
        stream = open_stream(wire)

        async def work() -> None:
            if is_open:
                wire.may_send.set()
                await stream.on_delta(Delta(reasoning="first\n"))
                wire.may_send.clear()
            stream.narrate("told\n")
            await wire.is_waiting.wait()

        await stay(stream, work())
        assert stream.is_open == is_open
        wire.may_send.set()
        await stream.break_off(create_error(500, "c", "answer"))
        assert wire.told() == "first\n" * is_open + "told\nanswer"

    asyncio.run(main())


def test_a_client_that_leaves_unread_narration_leaves_no_task() -> None:
    """A client that leaves without reading is noticed, past the next heartbeat too; then nothing goes on."""

    async def main() -> None:
        wire = Wire()
        stream = open_stream(wire, heartbeat_s=0.001)
        ended = asyncio.Event()
        asked = 0

        async def leave() -> MutableMapping[str, Any]:
            nonlocal asked
            asked += wire.is_waiting.is_set()
            return {"type": "http.disconnect"} if asked > 5 else await never()

        async def work() -> None:
            stream.narrate("told\n")
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async with asyncio.timeout(5):
            with pytest.raises(ClientLeft):
                await stay(stream, work(), leave)
        assert ended.is_set()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


@given(st.lists(st.sampled_from(["tell", "piece", "yield", "block", "free"]), max_size=30))
def test_order_is_kept_whatever_the_client_does(actions: list[str]) -> None:
    """However telling, streaming and waiting for the client are mixed, it reads all of it in the order of events."""

    async def main() -> None:
        wire = Wire()
        wire.may_send.set()
        stream = open_stream(wire)
        made: list[str] = []

        async def work() -> None:
            async with asyncio.TaskGroup() as group:
                for i, action in enumerate(actions):
                    if action == "tell":
                        made.append(f"t{i}\n")
                        stream.narrate(made[-1])
                    elif action == "piece":
                        made.append(f"p{i}\n")
                        group.create_task(stream.on_delta(Delta(reasoning=made[-1])))
                        await asyncio.sleep(0)
                    elif action == "yield":
                        await asyncio.sleep(0)
                    elif action == "block":
                        wire.may_send.clear()
                    else:
                        wire.may_send.set()
                wire.may_send.set()

        await stay(stream, work())
        await stream.break_off(create_error(500, "c", "end"))
        assert wire.told() == "".join(made) + "end"

    asyncio.run(main())


# --- over the wire ---


class Told(Scripted):
    """A worker that answers as scripted once it may; until then it is silent."""

    def __init__(self, text: str, usage: Usage, **options: Any) -> None:
        super().__init__(lambda query: text, usage=usage, **options)
        self.may_answer, self.called, self.cancelled = threading.Event(), threading.Event(), threading.Event()
        self.may_answer.set()

    async def complete(self, query: Query, on_delta: OnDelta | None) -> Completion:
        self.called.set()
        try:
            while not self.may_answer.is_set():  # noqa: ASYNC110  # another thread sets it
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return await super().complete(query, on_delta)


def usage(n: int) -> Usage:
    return Usage(
        input_tokens=1000 * n,
        cached_input_tokens=100 * n,
        cache_write_tokens=0,
        output_tokens=10 * n,
        reasoning_tokens=n,
    )


def workers() -> dict[str, Backend]:
    return {
        "maestro": Told("SECRET plan", usage(1)),
        "exact": Told("SECRET 391", usage(2)),
        "facts": Failing(WorkerError("SECRET", worker="facts", code="rejected")),
        "spare": Told("SECRET Paris", usage(4)),
        "fluent": Told("391 and Paris.", usage(8), pieces=3),
        "mute": Failing(WorkerError("upstream down", worker="mute", code="server_error")),
    }


POLICIES = {
    "fugu-ultra": Planned(plan(CONDUCT), plan(*WORKFLOW), answer=3),
    "fugu": Planned(ONE, answer=0),
    "mute-ultra": Planned(plan(Step(id=0, worker="mute", role="conductor", messages=CONDUCT.messages))),
}
ALL_PRICED = dict.fromkeys(("maestro", "exact", "facts", "spare", "fluent"), PRICES)


def stream_of(server: Server, model: str, **fields: Any) -> tuple[str, str, list[Any]]:
    """(reasoning, content, chunks) as OpenAI's client reads them."""
    with server.client() as client:
        chunks = list(client.chat.completions.create(model=model, messages=HI, stream=True, **fields))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    reasoning = [(delta.model_extra or {}).get("reasoning_content") or "" for delta in deltas]
    return "".join(reasoning), "".join(delta.content or "" for delta in deltas), chunks


def test_a_client_sees_the_workflow_then_the_answer(tmp_path: Path) -> None:
    """OpenAI's client reads plan, starts and outcomes as reasoning, the answer as content, the steps at the end."""
    with running(tmp_path, workers(), policies=POLICIES, prices=ALL_PRICED) as server:
        reasoning, content, chunks = stream_of(server, "fugu-ultra")
    assert content == "391 and Paris."
    assert "SECRET" not in reasoning
    lines = [re.sub(r"(in|after) \d+ ms", r"\1 N ms", line) for line in reasoning.splitlines()]
    assert lines[:5] == [
        "conductor: maestro ok in N ms, 1010 tokens, $0.0011",
        "plan: 3 steps",
        "  0 exact (worker): Compute 17 * 23.",
        "  1 facts (worker): Name the capital of France.",
        "  2 fluent (worker), sees 0, 1: Join the results of step 0 and step 1.",
    ]
    assert sorted(lines[5:-1]) == [
        "step 0: exact ok in N ms, 2020 tokens, $0.0022",
        "step 0: exact starts",
        "step 1: facts failed: rejected after N ms",
        "step 1: facts starts",
        "step 1: failover to spare",
        "step 1: spare ok in N ms, 4040 tokens, $0.0044",
    ]
    assert lines[-1] == "step 2: fluent starts"
    first_text = next(i for i, chunk in enumerate(chunks) if chunk.choices[0].delta.content)
    assert not any((chunk.choices[0].delta.model_extra or {}).get("reasoning") for chunk in chunks[first_text:])
    steps = chunks[-1].model_extra["fugu"]["steps"]
    assert [step["outcome"] for step in steps] == ["replied"] * 4


def test_a_plan_is_seen_before_its_steps_end(tmp_path: Path) -> None:
    """What is planned and started is read while the workers still work; only then they answer."""
    backends = workers()
    slow = backends["exact"]
    assert isinstance(slow, Told)
    slow.may_answer.clear()
    with (
        running(tmp_path, backends, policies=POLICIES) as server,
        server.connect({"model": "fugu-ultra", "messages": HI, "stream": True}) as connection,
    ):
        received = b""
        while b"step 0: exact starts" not in received:
            received += connection.recv(65536)
        assert b"plan: 3 steps" in received
        assert b"step 0: exact ok" not in received
        slow.may_answer.set()
        while b"[DONE]" not in received:
            received += connection.recv(65536)
    assert received.index(b"step 0: exact ok") < received.index(b'"content":"391')


def test_a_client_that_leaves_a_workflow_ends_all_of_it(tmp_path: Path) -> None:
    """Whoever leaves while several workers work cancels them all, and no task of the request is left."""
    backends = workers()
    backends["facts"] = Told("x", usage(1))
    silent = [backends["exact"], backends["facts"]]
    for worker in silent:
        assert isinstance(worker, Told)
        worker.may_answer.clear()
    with running(tmp_path, backends, policies=POLICIES) as server:
        with server.connect({"model": "fugu-ultra", "messages": HI, "stream": True}) as connection:
            while b"step 1: facts starts" not in connection.recv(65536):
                pass
        for worker in silent:
            assert isinstance(worker, Told)
            assert worker.cancelled.wait(5)
        server.wait_status(server.newest_run(), "client_closed")
        names = asyncio.run_coroutine_threadsafe(_task_names(), server.loop).result(5)
    assert not {"beside a run", "watch client"} & names
    assert not [name for name in names if name.startswith("step ")]


async def _task_names() -> set[str]:
    return {task.get_name() for task in asyncio.all_tasks()}


def _bytes_of(server: Server, model: str) -> bytes:
    with server.connect({"model": model, "messages": HI, "stream": True}) as connection:
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += connection.recv(65536)
    received = re.sub(rb"run_[0-9a-f]{26}", b"RUN", received)
    return re.sub(rb'"created":\d+|date: [^\r]+', b"", received)


def test_one_final_step_streams_as_if_nothing_could_be_told(tmp_path: Path) -> None:
    """`fugu` sends the same bytes, chunk for chunk, whether runs are narrated or not."""
    seen = {}
    for narrate in (True, False):
        with running(tmp_path / str(narrate), workers(), policies=POLICIES, narrate=narrate) as server:
            seen[narrate] = _bytes_of(server, "fugu")
    assert seen[True] == seen[False]
    assert b"reasoning" not in seen[True]
    assert b"steps" not in seen[True]


def test_narration_can_be_turned_off(tmp_path: Path) -> None:
    """With `narrate = false` a workflow streams its answer only; its steps are still told at the end."""
    with running(tmp_path, workers(), policies=POLICIES, narrate=False) as server:
        reasoning, content, chunks = stream_of(server, "fugu-ultra")
    assert (reasoning, content) == ("", "391 and Paris.")
    assert len(chunks[-1].model_extra["fugu"]["steps"]) == 4


def test_a_conductor_that_fails_first_still_has_a_status(tmp_path: Path) -> None:
    """Nothing is sent before there is a plan, so a stream whose conductor fails is a 502 with its code."""
    with running(tmp_path, workers(), policies=POLICIES) as server:
        status, headers, body = server.ask("mute-ultra", stream=True)
    assert (status, body["error"]["code"], headers["x-fugu-workers"]) == (502, "server_error", "mute")


def test_a_workflow_that_fails_after_its_plan_breaks_off(tmp_path: Path) -> None:
    """Once the plan was told, a failure is an error frame and a body that never ends."""
    steps = (Step(id=0, worker="mute", instruction="x"), Step(id=1, worker="fluent", sees=(0,), is_final=True))
    with (
        running(tmp_path, workers(), policies={"m": Planned(plan(*steps))}) as server,
        server.connect({"model": "m", "messages": HI, "stream": True}) as connection,
    ):
        received = read_all(connection)
    assert b"step 0: mute failed: server_error" in received
    last = json.loads(received.rpartition(b"data: ")[2].partition(b"\n\n")[0])
    assert last["error"]["code"] == "server_error"
    assert b"[DONE]" not in received
    assert not received.endswith(b"0\r\n\r\n")


def test_heartbeats_fill_the_silence_between_what_is_told(tmp_path: Path) -> None:
    """Comments are sent between narration and answer, and stand between whole frames."""
    backends = workers()
    slow = backends["exact"]
    assert isinstance(slow, Told)
    slow.may_answer.clear()
    with (
        running(tmp_path, backends, policies=POLICIES, heartbeat_s=0.02) as server,
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)) as connection,
    ):
        body = json.dumps({"model": "fugu-ultra", "messages": HI, "stream": True})
        connection.request("POST", "/v1/chat/completions", body)
        response = connection.getresponse()
        lines: list[bytes] = []
        while lines.count(b": still working\n") < 3:
            lines.append(response.readline())
        slow.may_answer.set()
        lines += response.read().splitlines(keepends=True)
    assert lines[1::2] == [b"\n"] * (len(lines) // 2)
    told = [line for line in lines[::2] if line != b": still working\n"]
    assert told.pop() == b"data: [DONE]\n"
    assert all(json.loads(line.removeprefix(b"data: "))["id"] for line in told)
    assert lines.index(b": still working\n") > 2, "after the plan"


# --- the end ---


def by_step(body: Mapping[str, Any]) -> dict[int, Any]:
    return {step["step"]: step for step in body["fugu"]["steps"]}


def test_a_whole_answer_tells_of_its_steps(tmp_path: Path) -> None:
    """Each step has its worker, whom it was planned for, sight, time, tokens, cost and outcome; the costs add up."""
    with running(tmp_path, workers(), policies=POLICIES, prices=ALL_PRICED) as server:
        _, headers, body = server.ask("fugu-ultra")
    steps = by_step(body)
    assert {id: step["worker"] for id, step in steps.items()} == {0: "maestro", 1: "exact", 2: "spare", 3: "fluent"}
    assert [id for id, step in steps.items() if "planned" in step] == [2]
    assert steps[2]["planned"] == "facts"
    assert [step["role"] for step in steps.values()] == ["conductor", "worker", "worker", "worker"]
    assert [step["sees"] for step in steps.values()] == [[], [], [], [1, 2]]
    assert [step["outcome"] for step in steps.values()] == ["replied"] * 4
    assert all(step["seconds"] >= 0 for step in steps.values())
    assert (steps[3]["input_tokens"], steps[3]["output_tokens"]) == (8000, 80)
    assert sum(step["cost_usd"] for step in steps.values()) == body["fugu"]["cost_usd"]
    assert body["fugu"]["cost_usd"] == Decimal(headers["x-fugu-cost-usd"]) > 0
    assert headers["x-fugu-workers"] == "maestro,exact,facts,spare,fluent"
    assert "x-fugu-stopped-by" not in headers
    assert "reasoning" not in body["choices"][0]["message"]
    assert set(steps[0]) == {
        *("step", "worker", "role", "sees", "seconds", "input_tokens", "output_tokens", "cost_usd", "outcome")
    }


def test_usage_parts_the_answer_from_the_rest(tmp_path: Path) -> None:
    """The answer's own tokens, cached and reasoning ones too, stand apart from those of the other calls."""
    steps = (
        Step(id=0, worker="maestro", instruction="a"),
        Step(id=1, worker="exact", instruction="b", sees=(0,)),
        Step(id=2, worker="fluent", instruction="c", sees=(0, 1), is_final=True),
    )
    with running(tmp_path, workers(), policies={"m": Planned(plan(*steps), answer=2)}) as server:
        _, headers, body = server.ask("m")
    assert body["usage"] == {
        "prompt_tokens": 8000,
        "completion_tokens": 80,
        "total_tokens": 8080,
        "prompt_tokens_details": {"cached_tokens": 800},
        "completion_tokens_details": {"reasoning_tokens": 8},
        "orchestration_input_tokens": 3000,
        "orchestration_input_cached_tokens": 300,
        "orchestration_output_tokens": 30,
    }
    assert headers["x-fugu-workers"] == "maestro,exact,fluent"


def test_what_was_not_called_or_failed_is_told(tmp_path: Path) -> None:
    """A step that the budget forbade is `not_called` and cost nothing; one that failed says by which code."""
    steps = (
        Step(id=0, worker="mute", is_optional=True),
        Step(id=1, worker="exact", sees=(), is_optional=True),
    )
    more = (Step(id=2, worker="fluent", sees=(1,)), Step(id=3, worker="exact", sees=(2,), is_final=True))
    policies = {"m": Planned(plan(*steps), plan(*more), answer=3)}
    with running(tmp_path, workers(), policies=policies, budget=Budget(calls=4)) as server:
        status, headers, body = server.ask("m")
        record = server.wait_status(headers["x-fugu-run-id"], "budget")
    told = by_step(body)
    assert (status, headers["x-fugu-stopped-by"], body["fugu"]["stopped_by"]) == (200, "budget:calls", "budget:calls")
    assert [told[id]["outcome"] for id in range(4)] == ["failed:server_error", "replied", "replied", "not_called"]
    assert (told[3]["seconds"], told[3]["cost_usd"], told[3]["input_tokens"]) == (None, 0, 0)
    assert told[0]["cost_usd"] is None
    assert record["run"]["calls"] == 4


class Undecided:
    """A policy that plans two steps at once, of which the second replaces the first's answer."""

    id = "undecided"

    async def decide(self, run: Run) -> Plan | Answer:
        if run.replies:
            return Answer(step=0)
        return plan(Step(id=0, worker="exact"), Step(id=1, worker="spare"))


def test_answers_without_a_final_step_come_after_all_outcomes(tmp_path: Path) -> None:
    """Where the policy picks the answer afterwards, every outcome has been told by then, and nothing comes twice."""
    with running(tmp_path, workers(), policies={"m": Undecided()}, prices=ALL_PRICED) as server:
        reasoning, content, _ = stream_of(server, "m", stream_options={"include_usage": True})
    assert content == "SECRET 391"
    assert sorted(line.partition(" in ")[0] for line in reasoning.splitlines()[3:]) == [
        "step 0: exact ok",
        "step 0: exact starts",
        "step 1: spare ok",
        "step 1: spare starts",
    ]
