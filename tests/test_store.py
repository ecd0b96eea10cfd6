"""The store: what is written comes back, once, exactly; what was acknowledged is on disk; the ledger adds up."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torafugu.cli.graph import draw_graph
from torafugu.cli.runs import print_run
from torafugu.errors import RequestError, StoreError
from torafugu.events import Accepted, Answered, Called, Event, Failed, Planned, Replied, Stopped
from torafugu.orchestrate import Recorder, create_run_id
from torafugu.store import RunStore, StoredRun, StoreOptions, open_reader, open_store
from torafugu.store.contents import find_sharing
from torafugu.store.ledger import Ledger, prepare
from torafugu.store.schema import connect
from torafugu.types import (
    ImagePart,
    Message,
    OtherPart,
    Plan,
    Reply,
    Request,
    Sampling,
    Step,
    TextPart,
    ToolCall,
    Usage,
    sum_cost,
)

TOOL = {"type": "function", "function": {"name": "read", "parameters": {"type": "object", "x": [1, 2.5, None, True]}}}


def accepted(text: str = "What is 2 + 2?", **changes: object) -> Accepted:
    messages = (Message(role="user", content=text),)
    return Accepted(request=Request(model="fugu", messages=messages), policy="fugu@1", **changes)  # type: ignore[arg-type]


def called(step: int = 0, worker: str = "a", attempt: int = 1) -> Called:
    return Called(step=step, worker=worker, attempt=attempt, reason="planned")


def replied(cost: Decimal | None = None, *, step: int = 0, worker: str = "a", attempt: int = 1) -> Replied:
    usage = Usage(input_tokens=10, output_tokens=3)
    reply = Reply(worker=worker, text="4", finish_reason="stop", usage=usage, cost_usd=cost)
    return Replied(step=step, attempt=attempt, reply=reply)


def failed(cost: Decimal | None, *, worker: str, attempt: int) -> Failed:
    return Failed(step=0, worker=worker, attempt=attempt, fault="worker", code="x", message="", cost_usd=cost)


def stopped(by: str = "answer", **changes: object) -> Stopped:
    return Stopped(by=by, latency_ms=12.5, calls=1, usage=Usage(), cost_usd=None, **changes)  # type: ignore[arg-type]


async def record(store: RunStore, *events: Event, run_id: str | None = None) -> str:
    """A run of these events, durable."""
    recorder = store.recorder(run_id or create_run_id())
    for event in events:
        recorder.write(event)
    await recorder.wait_durable()
    return recorder.run_id


async def stored_events(store: RunStore, run_id: str) -> list[Event]:
    run = await store.get_run(run_id)
    assert run is not None
    return [event for _, event in run.events]


EVERY_KIND: tuple[Event, ...] = (
    Accepted(
        request=Request(
            model="fugu",
            messages=(
                Message(role="system", content="Be brief. " * 300),
                Message(
                    role="user",
                    content=(
                        TextPart(text="Was ist das? 鯱 🐡"),
                        ImagePart(url="data:image/png;base64," + "iVBOR" * 500, detail="high"),
                        OtherPart(kind="input_audio", raw={"input_audio": {"data": "UklGR", "format": "wav"}}),
                    ),
                ),
                Message(
                    role="assistant",
                    content=None,
                    tool_calls=(ToolCall(id="call_1", name="read", arguments='{"path": "/x"}'),),
                ),
                Message(role="tool", content="", tool_call_id="call_1", name="read"),
            ),
            sampling=Sampling(
                max_output_tokens=100,
                temperature=0.1,
                stop=("\n\n",),
                tools=(TOOL, TOOL),
                tool_choice={"type": "function", "function": {"name": "read"}},
                response_format={"type": "json_object"},
            ),
            allowed=frozenset({"a", "b"}),
            ignored=("logit_bias",),
        ),
        policy="fugu@1f2e3d4c",
        key_id="key_7",
        session="s-1",
        body_sha256="ab" * 32,
    ),
    Planned(
        plan=Plan(
            steps=(Step(id=0, worker="a", alternates=("b",), is_final=True), Step(id=1, worker="b", sees=(0,))),
            scores={"a": 0.1 + 0.2, "b": 1e-17},
            masked=("c",),
            notes={"tokens": 12, "nested": {"list": [None, "x"]}},
        ),
        decision_ms=4.25,
    ),
    called(),
    Failed(step=0, worker="a", attempt=1, fault="worker", code="overloaded", message="529", cost_usd=Decimal("0")),
    called(worker="b", attempt=2),
    Replied(
        step=0,
        attempt=2,
        reply=Reply(
            worker="b",
            text="4",
            finish_reason="tool_calls",
            tool_calls=(ToolCall(id="t", name="read", arguments="{"),),
            reasoning="hm",
            usage=Usage(
                input_tokens=1, cached_input_tokens=2, cache_write_tokens=3, output_tokens=4, reasoning_tokens=5
            ),
            cost_usd=Decimal("0.000012345678901234567890"),
            price_source="genai-prices 0.2.3",
            provider_model="b-2026",
            provider_id="chatcmpl-1",
            latency_ms=812.5,
            first_token_ms=33.0,
            sent_bytes=120,
            sent_sha256="00" * 32,
            received_bytes=99,
        ),
    ),
    Answered(step=0, worker="b"),
    Stopped(
        by="error",
        latency_ms=900.0,
        calls=2,
        usage=Usage(),
        cost_usd=None,
        error={"fault": "worker", "code": "overloaded", "message": "no"},
    ),
)


def test_every_event_comes_back_as_it_was(tmp_path: Path) -> None:
    """A stored run is its events: tool calls, images, decimals and raw JSON included, in order, with their times."""

    async def scenario() -> None:
        async with open_store(tmp_path / "runs.db") as store:
            run_id = await record(store, *EVERY_KIND)
            run = await store.get_run(run_id)
        assert run is not None
        assert tuple(event for _, event in run.events) == EVERY_KIND
        times = [at for at, _ in run.events]
        assert times == sorted(times)
        assert run.run.accepted_at == times[0]
        async with open_store(tmp_path / "runs.db") as store:
            assert await store.get_run(run_id) == run

    asyncio.run(scenario())


def test_the_row_of_a_run_says_who_asked_who_was_called_and_what_it_took(tmp_path: Path) -> None:
    """`list_runs` gives the ledger's line, read from the events."""

    async def scenario() -> None:
        async with open_store(tmp_path / "runs.db") as store:
            run_id = await record(store, *EVERY_KIND[:6])
            (row,) = await store.list_runs(10)
            assert (row.id, row.status, row.calls, row.cost_usd, row.workers) == (run_id, "running", None, None, ())
        async with open_store(tmp_path / "other.db") as store:
            await record(store, *EVERY_KIND)
            (row,) = await store.list_runs(10)
        assert (row.model, row.policy, row.key_id, row.session) == ("fugu", "fugu@1f2e3d4c", "key_7", "s-1")
        assert (row.status, row.stopped_by, row.error_code) == ("failed", "error", "overloaded")
        assert (row.workers, row.calls, row.latency_ms) == (("a", "b"), 2, 900.0)
        assert row.cost_usd == Decimal("0.000012345678901234567890")
        assert row.input_tokens is None, "the failed attempt's tokens are unknown"
        assert row.body_sha256 == "ab" * 32

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("by", "status"),
    [
        ("answer", "answered"),
        ("error", "failed"),
        ("client_closed", "client_closed"),
        ("interrupted", "interrupted"),
        ("budget:calls", "budget"),
        ("budget:seconds", "budget"),
    ],
)
def test_what_stopped_a_run_decides_its_status(tmp_path: Path, by: str, status: str) -> None:
    """Every word that a run can stop with has a status, and stays readable beside it."""

    async def scenario() -> None:
        async with open_store(tmp_path / "runs.db") as store:
            await record(store, accepted(), stopped(by))
            (row,) = await store.list_runs(1)
        assert (row.status, row.stopped_by) == (status, by)

    asyncio.run(scenario())


def test_a_growing_session_stores_each_message_once(tmp_path: Path) -> None:
    """The n-th request of a session costs its new messages, not its history; each still comes back whole."""
    history = [Message(role="user", content=f"turn {n}: " + "lorem ipsum " * 200) for n in range(40)]
    sampling = Sampling(tools=(TOOL,) * 50)

    async def scenario() -> None:
        async with open_store(tmp_path / "runs.db") as store:
            requests = [
                Request(model="fugu", messages=tuple(history[: n + 1]), sampling=sampling) for n in range(len(history))
            ]
            ids = [await record(store, Accepted(request=request, policy="p")) for request in requests]
            for run_id, request in zip(ids, requests, strict=True):
                (event,) = await stored_events(store, run_id)
                assert isinstance(event, Accepted)
                assert event.request == request
        with sqlite3.connect(tmp_path / "runs.db") as connection:
            (contents,) = connection.execute("SELECT count(*) FROM contents").fetchone()
            (largest,) = connection.execute("SELECT max(length(event) + length(contents)) FROM events").fetchone()
        connection.close()
        assert contents == len(history) + 1, "the messages, and the tools once"
        assert largest < 1000, "what is kept per request does not hold the history"

    asyncio.run(scenario())


def test_what_was_acknowledged_is_seen_by_another_process(tmp_path: Path) -> None:
    """When `wait_durable` returns, a process that knows only the file finds the run."""
    path = tmp_path / "runs.db"
    look = "import sqlite3, sys; print(*sqlite3.connect(sys.argv[1]).execute('SELECT id FROM runs').fetchone())"

    async def scenario() -> None:
        async with open_store(path) as store:
            recorder: Recorder = store.recorder("run_1")
            recorder.write(accepted())
            await recorder.wait_durable()
            seen = await asyncio.to_thread(
                subprocess.run, [sys.executable, "-c", look, str(path)], capture_output=True, text=True, check=True
            )
        assert seen.stdout == "run_1\n"

    asyncio.run(scenario())


def test_runs_that_start_together_share_a_commit(tmp_path: Path) -> None:
    """Group commit: 200 concurrent accepts take far fewer than 200 transactions, and all of them are durable."""

    async def scenario() -> None:
        async with open_store(tmp_path / "runs.db") as store:
            async with asyncio.TaskGroup() as group:
                for n in range(200):
                    group.create_task(record(store, accepted(f"question {n}")))
            assert store.commits <= 20
            assert (await store.stats()).runs == {"running": 200}

    asyncio.run(scenario())


def test_waiting_for_what_is_already_on_disk_commits_nothing(tmp_path: Path) -> None:
    """The accepted row may be committed while the encoder works; asking for it later costs nothing."""

    async def scenario() -> None:
        async with open_store(tmp_path / "runs.db") as store:
            recorder = store.recorder(create_run_id())
            recorder.write(accepted())
            await recorder.wait_durable()
            before = store.commits
            await recorder.wait_durable()
            assert store.commits == before == 1

    asyncio.run(scenario())


def test_closing_writes_what_nobody_waited_for(tmp_path: Path) -> None:
    """`close` flushes: events written just before it are there at the next opening."""

    async def scenario() -> None:
        async with open_store(tmp_path / "runs.db") as store:
            recorder = store.recorder("run_1")
            for event in EVERY_KIND:
                recorder.write(event)
        async with open_store(tmp_path / "runs.db") as store:
            assert tuple(await stored_events(store, "run_1")) == EVERY_KIND

    asyncio.run(scenario())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs.db"], "no side file outlives the store"


def test_a_closed_store_refuses(tmp_path: Path) -> None:
    """After `close`, new runs, waits and reads are `StoreError`; closing twice is fine."""

    async def scenario() -> None:
        store = open_store(tmp_path / "runs.db")
        recorder = store.recorder("run_1")
        recorder.write(accepted())
        await store.close()
        await store.close()
        assert not store.healthy
        with pytest.raises(StoreError, match="closed"):
            store.recorder("run_2")
        recorder.write(stopped())
        with pytest.raises(StoreError, match="closed"):
            await recorder.wait_durable()
        with pytest.raises(StoreError, match="closed"):
            await store.list_runs(1)

    asyncio.run(scenario())


def test_runs_are_listed_youngest_first_in_pages_and_by_status_and_model(tmp_path: Path) -> None:
    """`before` continues a list; filters combine; a limit below 1 is the client's mistake."""

    async def scenario() -> None:
        async with open_store(tmp_path / "runs.db") as store:
            ids = [await record(store, accepted(), run_id=f"run_{n}") for n in range(5)]
            other = Accepted(request=Request(model="gpt", messages=()), policy="direct:gpt")
            await record(store, other, stopped(), run_id="run_9")
            page = await store.list_runs(2)
            assert [row.id for row in page] == ["run_9", "run_4"]
            assert [row.id for row in await store.list_runs(10, before="run_4")] == ids[3::-1]
            assert [row.id for row in await store.list_runs(10, status="answered")] == ["run_9"]
            assert [row.id for row in await store.list_runs(10, model="gpt", status="running")] == []
            with pytest.raises(RequestError, match="limit 0"):
                await store.list_runs(0)

    asyncio.run(scenario())


def test_a_run_is_found_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    """A unique prefix is enough; an ambiguous one is an error that lists the candidates; no match is None."""

    async def scenario() -> None:
        async with open_store(tmp_path / "runs.db") as store:
            for run_id in ("run_12", "run_123", "run_2_", "run_2x"):
                await record(store, accepted(), run_id=run_id)

            async def found(id: str) -> str | None:
                run = await store.get_run(id)
                return None if run is None else run.run.id

            assert await found("run_12") == "run_12", "a whole id is never ambiguous"
            assert await found("run_123") == "run_123"
            assert await found("run_2_") == "run_2_", "no character is a wildcard"
            assert await found("run_2x") == "run_2x"
            assert await found("run_3") is None
            assert await found("") is None
            with pytest.raises(RequestError, match="'run_1' is ambiguous: run_12, run_123;"):
                await found("run_1")

    asyncio.run(scenario())


def test_a_store_can_be_read_while_it_is_written_and_by_who_may_not_write(tmp_path: Path) -> None:
    """Many concurrent reads through the store and a second reader see whole runs while runs are being written."""
    path = tmp_path / "runs.db"

    async def scenario() -> None:
        async with open_store(path) as store, open_reader(path) as reader:

            async def write(n: int) -> None:
                await record(store, accepted(f"{n}"), called(), replied(Decimal(1)), stopped())

            async def read() -> None:
                for row in [*await store.list_runs(20), *await reader.list_runs(20)]:
                    assert len(await stored_events(store, row.id)) == 4, "a run is committed whole here"
                    assert row.cost_usd == 1

            async with asyncio.TaskGroup() as group:
                for n in range(40):
                    group.create_task(write(n))
                    if n % 8 == 0:
                        group.create_task(read())
            assert len(await reader.list_runs(100)) == 40

    asyncio.run(scenario())


def test_a_record_can_be_read_without_a_running_server(tmp_path: Path) -> None:
    """`open_reader` reads a closed store, changes nothing in it, and says so when there is none."""

    async def scenario() -> None:
        async with open_store(tmp_path / "runs.db") as store:
            await record(store, accepted(), run_id="run_1")
        async with open_reader(tmp_path / "runs.db") as reader:
            assert [row.status for row in await reader.list_runs(5)] == ["running"]
        await reader.close()
        with pytest.raises(StoreError, match="does not exist"):
            open_reader(tmp_path / "typo.db")
        assert not (tmp_path / "typo.db").exists()

    asyncio.run(scenario())


def test_the_files_are_for_their_owner_only(tmp_path: Path) -> None:
    """Prompts are private: the database and what stands beside it have mode 0600."""

    async def scenario() -> None:
        async with open_store(tmp_path / "deep" / "runs.db") as store:
            await record(store, accepted())
            files = list((tmp_path / "deep").iterdir())
            assert len(files) == 4, "database, log, its index, owner"
            assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}

    asyncio.run(scenario())


def test_totals_add_known_costs_and_count_unknown_ones(tmp_path: Path) -> None:
    """`stats` sums the attempts exactly and says how many have no price."""

    async def scenario() -> None:
        async with open_store(tmp_path / "runs.db") as store:
            await record(store, accepted(), called(), replied(Decimal("0.1")), stopped())
            await record(store, accepted(), called(), replied(Decimal("0.2")), called(attempt=2))
            totals = await store.stats()
        assert (totals.runs, totals.attempts) == ({"answered": 1, "running": 1}, 3)
        assert (totals.cost_usd, totals.attempts_without_cost) == (Decimal("0.3"), 1)

    asyncio.run(scenario())


def test_a_full_queue_refuses_new_runs_and_takes_what_running_ones_say(tmp_path: Path) -> None:
    """The bound is on admission: `recorder` raises, `write` of an accepted run is kept."""

    async def scenario() -> None:
        async with open_store(tmp_path / "runs.db", options=StoreOptions(pending_events=5)) as store:
            recorder = store.recorder("run_1")
            recorder.write(accepted())
            for n in range(1, 3000):  # faster than any disk
                recorder.write(called(attempt=n))
            assert not store.healthy
            with pytest.raises(StoreError, match="is behind"):
                store.recorder("run_2")
            await recorder.wait_durable()
            store.recorder("run_2")
            assert len(await stored_events(store, "run_1")) == 3000

    asyncio.run(scenario())


def said(*texts: str, tools: bool = False) -> Accepted:
    messages = tuple(Message(role="user", content=text) for text in texts)
    sampling = Sampling(tools=(TOOL,) if tools else ())
    return Accepted(request=Request(model="fugu", messages=messages, sampling=sampling), policy="p", key_id="key_7")


def count_contents(path: Path) -> int:
    connection = sqlite3.connect(path)
    (number,) = connection.execute("SELECT count(*) FROM contents").fetchone()
    connection.close()
    return int(number)


def test_a_forgotten_run_leaves_its_row_and_nothing_of_what_was_said(tmp_path: Path) -> None:
    """`forget` removes events and contents, from the file itself; who asked, when, tokens and money stay."""
    path = tmp_path / "runs.db"

    async def scenario() -> None:
        async with open_store(path) as store:
            answer = msgspec.structs.replace(replied(Decimal("0.1")).reply, text="the secret answer")
            said_back = Replied(step=0, attempt=1, reply=answer)
            run_id = await record(store, said("the secret question", tools=True), called(), said_back, stopped())
            other = await record(store, said("another question"), called(), replied(), stopped())
            before, totals = await store.get_run(run_id), await store.stats()
            assert before is not None
            assert await store.forget(run_id)
            after = await store.get_run(run_id)
            assert after == StoredRun(run=before.run, events=())
            assert after.run.cost_usd == Decimal("0.1")
            assert await store.stats() == totals
            assert len(await stored_events(store, other)) == 4
            assert count_contents(path) == 1
            assert await store.forget(run_id), "it is forgotten"

    asyncio.run(scenario())
    assert not [file for file in tmp_path.iterdir() if b"the secret" in file.read_bytes()]


def test_a_forgotten_run_can_be_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever draws, prints or encodes runs meets one without events."""

    async def scenario() -> StoredRun:
        async with open_store(tmp_path / "runs.db") as store:
            run_id = await record(store, accepted(), called(), replied(), stopped(), run_id="run_1")
            assert await store.forget(run_id)
            stored = await store.get_run(run_id)
            assert stored is not None
            return stored

    stored = asyncio.run(scenario())
    assert draw_graph(stored, 80) == []
    print_run(stored)
    assert "run_1" in capsys.readouterr().out
    assert msgspec.json.decode(msgspec.json.encode(stored))["run"]["status"] == "answered"


def test_what_others_said_too_is_kept_until_the_last_of_them_is_forgotten(tmp_path: Path) -> None:
    """Forgetting one request of a session takes nothing from the others; forgetting all of them takes everything."""
    path = tmp_path / "runs.db"

    async def scenario() -> None:
        async with open_store(path) as store:
            history = [f"turn {n}" for n in range(6)]
            asked = [said(*history[: n + 1], tools=True) for n in range(6)]
            ids = [await record(store, event, stopped()) for event in asked]
            for n in (5, 2, 0):
                assert await store.forget(ids[n])
            for n in (1, 3, 4):
                assert (await stored_events(store, ids[n]))[0] == asked[n]
            assert count_contents(path) == 5 + 1, "turns 0 to 4, and the tools"
            for n in (4, 1, 3):
                assert await store.forget(ids[n])
            assert count_contents(path) == 0

    asyncio.run(scenario())


def test_only_a_whole_run_that_has_ended_is_forgotten(tmp_path: Path) -> None:
    """A running run, an unknown one and the beginning of an id are refused; the end of a run counts once written."""

    async def scenario() -> None:
        async with open_store(tmp_path / "runs.db") as store:
            recorder = store.recorder("run_12")
            recorder.write(accepted())
            await recorder.wait_durable()
            assert not await store.forget("run_12")
            assert not await store.forget("run_1")
            assert not await store.forget("run_13")
            assert await stored_events(store, "run_12") == [accepted()]
            recorder.write(stopped())  # nobody waited for it: the store keeps the order
            assert not await store.forget("run_1")
            assert await store.forget("run_12")

    asyncio.run(scenario())


def test_what_is_said_again_while_a_run_is_forgotten_stays(tmp_path: Path) -> None:
    """Between the search for other users and the removal, a new run may use a content, and the only other may go."""
    path = tmp_path / "runs.db"
    connection = connect(path, busy_timeout_s=1)
    ledger = Ledger(connection, "owner")

    def add(run_id: str, event: Accepted) -> None:
        ledger.append(prepare(run_id, 1, 1.0, event))
        ledger.append(prepare(run_id, 2, 2.0, stopped()))

    add("run_1", said("both", "mine"))
    add("run_2", said("both"))
    sharing = find_sharing(connection, "run_1")
    assert (len(sharing.ids), list(sharing.users.values())) == (2, ["run_2"])
    add("run_3", said("mine"))
    assert ledger.forget("run_1", sharing) == "forgotten"
    assert count_contents(path) == 2, "run_3 says what was run_1's alone"
    sharing = find_sharing(connection, "run_2")
    assert sharing.users == {}
    add("run_4", said("both"))
    sharing = find_sharing(connection, "run_4")
    assert ledger.forget("run_2", find_sharing(connection, "run_2")) == "forgotten"
    assert ledger.forget("run_4", sharing) == "stale", "it counted on run_2"
    assert connection.execute("SELECT count(*) FROM events WHERE run_id = 'run_4'").fetchone() == (2,)
    assert ledger.forget("run_4", find_sharing(connection, "run_4")) == "forgotten"
    assert count_contents(path) == 1
    connection.close()


def test_two_stores_forget_beside_each_other_and_beside_new_runs(tmp_path: Path) -> None:
    """Whatever order: what is left of the contents is exactly what the runs that are left refer to."""
    path = tmp_path / "runs.db"

    async def scenario() -> None:
        async with open_store(path) as one, open_store(path) as other:
            stores = (one, other)
            old = [await record(stores[n % 2], said(f"a{n % 5}", f"b{n % 7}"), stopped()) for n in range(60)]
            asked = {run_id: said(f"a{n % 5}", f"b{n % 7}") for n, run_id in enumerate(old)}

            async def add(n: int) -> None:
                run_id = await record(stores[n % 2], said(f"a{n % 5}", f"new {n}"), stopped())
                asked[run_id] = said(f"a{n % 5}", f"new {n}")

            async with asyncio.TaskGroup() as group:
                gone = [group.create_task(stores[(n // 2) % 2].forget(old[n])) for n in range(56)]
                for n in range(30):
                    group.create_task(add(n))
            assert all(task.result() for task in gone)
            for run_id in old[:56]:
                assert await stored_events(other, run_id) == []
                del asked[run_id]
            for run_id, event in asked.items():
                assert await stored_events(one, run_id) == [event, stopped()]
            texts = {message.text for event in asked.values() for message in event.request.messages}
            assert count_contents(path) == len(texts)

    asyncio.run(scenario())


def test_what_the_database_does_not_take_is_not_forgotten(tmp_path: Path) -> None:
    """A locked database, a closed store: `forget` fails, now and for good, and the run is as it was."""
    path = tmp_path / "runs.db"

    async def scenario() -> None:
        async with open_store(path, options=StoreOptions(busy_timeout_s=0.05, retry_s=0.02)) as store:
            run_id = await record(store, accepted(), stopped())
            holder = sqlite3.connect(path, isolation_level=None)
            holder.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match="locked"):
                await store.forget(run_id)
            holder.execute("ROLLBACK")
            holder.close()
            async with asyncio.timeout(5):
                while not store.healthy:  # noqa: ASYNC110  # nothing else tells of it
                    await asyncio.sleep(0.01)
            recorder = store.recorder("run_2")
            recorder.write(accepted())
            await recorder.wait_durable()
            assert await stored_events(store, run_id) == [accepted(), stopped()]
            assert await store.forget(run_id)
        with pytest.raises(StoreError, match="closed"):
            await store.forget(run_id)

    asyncio.run(scenario())


COSTS = st.none() | st.decimals(min_value=0, max_value=100, places=15)
ATTEMPTS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["replied", "failed", "lost"]), COSTS), max_size=4
)
ENDS = st.sampled_from(["answer", "error", "client_closed", "budget:usd", None])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(runs=st.lists(st.tuples(ATTEMPTS, ENDS), max_size=6), restart=st.booleans())
def test_the_ledger_always_adds_up(
    tmp_path_factory: pytest.TempPathFactory,
    runs: list[tuple[list[tuple[str, str, Decimal | None]], str | None]],
    restart: bool,
) -> None:
    """Every run has one status; a stopped run's cost is the exact sum of its attempts', unknown if one is."""
    path = tmp_path_factory.mktemp("ledger") / "runs.db"

    async def scenario() -> None:
        async with open_store(path) as store:
            for index, (attempts, end) in enumerate(runs):
                events: list[Event] = [accepted()]
                for number, (worker, outcome, cost) in enumerate(attempts, 1):
                    events.append(called(worker=worker, attempt=number))
                    if outcome == "replied":
                        events.append(replied(cost, worker=worker, attempt=number))
                    elif outcome == "failed":
                        events.append(failed(cost, worker=worker, attempt=number))
                await record(store, *events, *([stopped(end)] if end else []), run_id=f"run_{index}")
            if not restart:
                await check(store)
        if restart:
            async with open_store(path) as store:
                await check(store)
                assert "running" not in (await store.stats()).runs

    async def check(store: RunStore) -> None:
        rows = await store.list_runs(100)
        assert sum((await store.stats()).runs.values()) == len(rows) == len(runs)
        connection = sqlite3.connect(path)
        for row, (attempts, end) in zip(reversed(rows), runs, strict=True):
            texts = connection.execute("SELECT cost_usd FROM attempts WHERE run_id = ?", (row.id,)).fetchall()
            costs = [None if text is None else Decimal(text) for (text,) in texts]
            assert len(costs) == len(attempts)
            if row.status == "running":
                assert end is None
                continue
            if end is None and not attempts:
                assert row.cost_usd is None, "a call may have left whose event died with the process"
            else:
                assert row.cost_usd == sum_cost(costs)
                assert row.cost_usd == sum_cost(None if how == "lost" else cost for _, how, cost in attempts)
            assert (row.calls, row.status == "interrupted") == (len(attempts), end is None)
            assert row.workers == tuple(dict.fromkeys(worker for worker, _, _ in attempts))
        connection.close()

    asyncio.run(scenario())
