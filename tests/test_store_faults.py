"""The store under faults: full, locked, killed, damaged. It refuses work rather than losing its record."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from decimal import Decimal
from pathlib import Path

import pytest

from torafugu.errors import StoreError
from torafugu.events import Accepted, Called, Event, Planned, Replied, Stopped
from torafugu.orchestrate import Direct, create_run_id, orchestrate
from torafugu.store import RunStore, StoreOptions, open_reader, open_store
from torafugu.store.owner import Owner
from torafugu.store.schema import VERSION, connect
from torafugu.types import Message, Plan, Reply, Request, Sampling, Step, Usage

IMPATIENT = StoreOptions(busy_timeout_s=0.05, retry_s=0.02)


def accepted(text: str = "What is 2 + 2?") -> Accepted:
    return Accepted(request=Request(model="fugu", messages=(Message(role="user", content=text),)), policy="fugu@1")


def called(attempt: int = 1) -> Called:
    return Called(step=0, worker="a", attempt=attempt, reason="planned")


def replied(text: str = "4", *, attempt: int = 1, tokens: int = 10) -> Replied:
    usage = Usage(input_tokens=tokens, output_tokens=3)
    reply = Reply(worker="a", text=text, finish_reason="stop", usage=usage, cost_usd=Decimal("0.1"))
    return Replied(step=0, attempt=attempt, reply=reply)


STOPPED = Stopped(by="answer", latency_ms=1.0, calls=1, usage=Usage(), cost_usd=None)


async def stored_events(store: RunStore, run_id: str) -> list[Event]:
    run = await store.get_run(run_id)
    assert run is not None
    return [event for _, event in run.events]


async def wait_healthy(store: RunStore) -> None:
    async with asyncio.timeout(5):
        while not store.healthy:  # noqa: ASYNC110  # nothing else tells of it
            await asyncio.sleep(0.01)


def spools(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.spool-*"))


def block_spool(path: Path) -> None:
    """A directory where the open store would make its spool file."""
    (owner,) = path.parent.glob(f"{path.name}.owner-*")
    owner.with_name(owner.name.replace("owner", "spool")).mkdir()


def lock(path: Path) -> sqlite3.Connection:
    """As another process would: nobody else can write until this is rolled back."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    return connection


def unlock(connection: sqlite3.Connection) -> None:
    connection.execute("ROLLBACK")
    connection.close()


# ---- the database does not take it


def test_a_locked_database_refuses_the_run_and_keeps_its_events_until_it_is_free(tmp_path: Path) -> None:
    """Another process's lock makes `wait_durable` and new runs fail; when it goes, everything is written, by itself."""
    path = tmp_path / "runs.db"

    async def scenario() -> None:
        async with open_store(path, options=IMPATIENT) as store:
            running = store.recorder("run_1")
            running.write(accepted())
            await running.wait_durable()
            other = lock(path)
            running.write(called())
            late = store.recorder("run_2")
            late.write(accepted())
            with pytest.raises(StoreError, match=r"locked; another process holds it"):
                await late.wait_durable()
            assert not store.healthy
            with pytest.raises(StoreError, match="locked"):
                store.recorder("run_3")
            running.write(replied())
            running.write(STOPPED)
            assert await stored_events(store, "run_1") == [accepted()], "reading goes on"
            unlock(other)
            await wait_healthy(store)
            assert await stored_events(store, "run_1") == [accepted(), called(), replied(), STOPPED]
            assert await stored_events(store, "run_2") == [accepted()]
            await late.wait_durable()
            store.recorder("run_3")

    asyncio.run(scenario())


def test_a_full_disk_refuses_the_run_and_recovers_when_there_is_room(tmp_path: Path) -> None:
    """`database or disk is full`: no accept is acknowledged, nothing of a running run is lost, in order."""
    path = tmp_path / "runs.db"

    async def scenario() -> None:
        connection = connect(path, busy_timeout_s=0.05)
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute("PRAGMA max_page_count = 20").fetchone()
        assert pages < 20
        async with RunStore(path, connection, Owner(path), options=IMPATIENT) as store:
            running = store.recorder("run_1")
            running.write(accepted())
            await running.wait_durable()
            texts = [random.Random(n).randbytes(20_000).hex() for n in range(3)]
            for n, text in enumerate(texts, 1):
                running.write(called(n))
                running.write(replied(text, attempt=n))
            with pytest.raises(StoreError, match="disk is full; free some space"):
                await running.wait_durable()
            with pytest.raises(StoreError, match="full"):
                store.recorder("run_2")
            running.write(STOPPED)
            connection.execute("PRAGMA max_page_count = 1000000").fetchone()
            await wait_healthy(store)
            events = await stored_events(store, "run_1")
            assert [event.reply.text for event in events if isinstance(event, Replied)] == texts
            assert events[-1] == STOPPED
            (row,) = await store.list_runs(1)
            assert (row.calls, row.cost_usd) == (3, Decimal("0.3"))

    asyncio.run(scenario())


def test_what_cannot_be_written_at_the_end_is_spooled_and_recovered(tmp_path: Path) -> None:
    """Closing while the database is locked leaves a spool file; the next opening takes it in, whole and once."""
    path = tmp_path / "runs.db"

    async def scenario() -> None:
        store = open_store(path, options=IMPATIENT)
        finished, unfinished = store.recorder("run_1"), store.recorder("run_2")
        finished.write(accepted())
        await finished.wait_durable()
        other = lock(path)
        for event in (called(), replied(), STOPPED):
            finished.write(event)
        unfinished.write(accepted("\u2028 a line\nof its own"))
        await store.close()
        (spool,) = spools(path)
        assert spool.stat().st_mode & 0o777 == 0o600
        unlock(other)
        again = spool.read_bytes()
        for _ in range(2):  # a process killed between taking it in and removing it finds it once more
            async with open_store(path) as store:
                assert await stored_events(store, "run_1") == [accepted(), called(), replied(), STOPPED]
                events = await stored_events(store, "run_2")
                assert events[0] == accepted("\u2028 a line\nof its own")
                assert isinstance(events[1], Stopped)
                assert (events[1].by, len(events)) == ("interrupted", 2)
            assert not spool.exists()
            spool.write_bytes(again)

    asyncio.run(scenario())


def test_memory_is_bounded_while_the_database_is_away(tmp_path: Path) -> None:
    """Past `memory_bytes` the events go to the spool file, and from there back, before younger ones, in order."""
    path = tmp_path / "runs.db"
    options = StoreOptions(busy_timeout_s=0.01, retry_s=0.01, memory_bytes=10_000)

    async def scenario() -> None:
        async with open_store(path, options=options) as store:
            recorder = store.recorder("run_1")
            recorder.write(accepted())
            await recorder.wait_durable()
            other = lock(path)
            for n in range(1, 6):
                recorder.write(called(n))
                recorder.write(replied("x" * 6000, attempt=n))
                with pytest.raises(StoreError):
                    await recorder.wait_durable()
            assert spools(path)
            recorder.write(STOPPED)
            unlock(other)
            await wait_healthy(store)
            await recorder.wait_durable()
            assert not spools(path)
            events = await stored_events(store, "run_1")
            assert [event.attempt for event in events[1:-1] if isinstance(event, Replied)] == [1, 2, 3, 4, 5]
            assert (await store.list_runs(1))[0].calls == 5

    asyncio.run(scenario())


def test_what_can_be_written_nowhere_is_an_error_not_a_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With neither database nor spool, `close` raises and counts what is lost."""
    path = tmp_path / "runs.db"

    async def scenario() -> None:
        store = open_store(path, options=IMPATIENT)
        recorder = store.recorder("run_1")
        recorder.write(accepted())
        await recorder.wait_durable()
        block_spool(path)
        other = lock(path)
        recorder.write(called())
        recorder.write(replied())
        with pytest.raises(StoreError, match="2 events are lost"):
            await store.close()
        unlock(other)

    asyncio.run(scenario())
    assert "2 events are in memory only" in caplog.text


def test_a_run_is_refused_before_anything_is_paid_when_the_store_fails(tmp_path: Path) -> None:
    """Through the loop: a locked database ends the run with `StoreError`, and no worker was called."""
    path = tmp_path / "runs.db"

    class NeverCalled:
        ids = frozenset({"a"})

        async def complete(self, *args: object, **kwargs: object) -> Reply:
            raise AssertionError("paid for a run that is not on record")

    async def scenario() -> None:
        async with open_store(path, options=IMPATIENT) as store:
            other = lock(path)
            request = Request(model="a", messages=())
            with pytest.raises(StoreError):
                await orchestrate(request, Direct("a"), NeverCalled(), recorder=store.recorder("run_1"), run_id="run_1")
            unlock(other)
            await wait_healthy(store)
            events = await stored_events(store, "run_1")
            assert [type(event) for event in events] == [Accepted, Stopped]
            (row,) = await store.list_runs(1)
            assert (row.status, row.error_code, row.calls) == ("failed", "store_unavailable", 0)

    asyncio.run(scenario())


# ---- processes that die, and processes that live

WRITES_UNTIL_KILLED = """
import asyncio, sys
from pathlib import Path
from torafugu.events import Accepted, Called
from torafugu.orchestrate import create_run_id
from torafugu.store import open_store
from torafugu.types import Message, Request

async def write(store):
    while True:
        recorder = store.recorder(create_run_id())
        messages = (Message(role="user", content=recorder.run_id * 50),)
        recorder.write(Accepted(request=Request(model="fugu", messages=messages), policy="p"))
        await recorder.wait_durable()
        sys.stdout.write(recorder.run_id + "\\n")
        sys.stdout.flush()
        recorder.write(Called(step=0, worker="a", attempt=1, reason="planned"))

async def main():
    async with open_store(Path(sys.argv[1])) as store, asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(write(store))

asyncio.run(main())
"""


def start_writer(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITES_UNTIL_KILLED, str(path)], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("kill_after", [1, 37, 150])
def test_no_acknowledged_run_is_lost_when_the_process_is_killed(tmp_path: Path, kill_after: int) -> None:
    """After kill -9 in full flight, every id that was acknowledged is there, and interrupted at the next opening."""
    path = tmp_path / "runs.db"
    child = start_writer(path)
    assert child.stdout is not None
    acknowledged = [child.stdout.readline().strip() for _ in range(kill_after)]
    time.sleep(random.random() * 0.01)  # a moment of its own, within a commit or between two
    child.send_signal(signal.SIGKILL)
    acknowledged += [line.strip() for line in child.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    child.wait()
    child.stdout.close()

    async def scenario() -> None:
        async with open_store(path) as store:
            rows = {row.id: row for row in await store.list_runs(100_000)}
            assert set(acknowledged) <= set(rows)
            assert {row.status for row in rows.values()} == {"interrupted"}
            for row in rows.values():
                assert (row.calls, row.cost_usd) in ((0, None), (1, None)), "in flight: nobody knows the cost"
            run = await store.get_run(acknowledged[-1])
            assert run is not None
            last = run.events[-1][1]
            assert isinstance(last, Stopped)
            assert (last.by, last.latency_ms, last.cost_usd) == ("interrupted", None, run.run.cost_usd)
        with sqlite3.connect(path) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()

    asyncio.run(scenario())
    assert [file.name for file in tmp_path.iterdir()] == ["runs.db"], "the dead owner's file is removed"


def test_runs_of_a_living_process_are_left_alone(tmp_path: Path) -> None:
    """A second server on the same file sweeps nothing of the first while that lives, and all of it when it died."""
    path = tmp_path / "runs.db"
    child = start_writer(path)
    assert child.stdout is not None
    acknowledged = child.stdout.readline().strip()

    async def status() -> str:
        async with open_store(path) as store:
            recorder = store.recorder(create_run_id())
            recorder.write(accepted())
            await recorder.wait_durable()  # two processes write in turns
            run = await store.get_run(acknowledged)
            assert run is not None
            return run.run.status

    try:
        assert asyncio.run(status()) == "running"
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert asyncio.run(status()) == "interrupted"


def test_two_stores_of_one_process_are_two_owners(tmp_path: Path) -> None:
    """Opening a file again does not interrupt the runs of the store that has it open already."""
    path = tmp_path / "runs.db"

    async def scenario() -> None:
        async with open_store(path) as first:
            recorder = first.recorder("run_1")
            recorder.write(accepted())
            await recorder.wait_durable()
            async with open_store(path) as second:
                assert [row.status for row in await second.list_runs(5)] == ["running"]
            recorder.write(STOPPED)
            await recorder.wait_durable()
        async with open_store(path) as third:
            assert [row.status for row in await third.list_runs(5)] == ["answered"]

    asyncio.run(scenario())


def test_a_run_that_was_never_stopped_is_interrupted_with_what_it_is_known_to_have_used(tmp_path: Path) -> None:
    """A store closed under a running run: its replies count, exactly."""
    path = tmp_path / "runs.db"

    async def scenario() -> None:
        async with open_store(path) as store:
            recorder = store.recorder("run_1")
            for event in (accepted(), called(1), replied(attempt=1), called(2), replied(attempt=2)):
                recorder.write(event)
        async with open_store(path) as store:
            last = (await stored_events(store, "run_1"))[-1]
            assert isinstance(last, Stopped)
            assert (last.calls, last.cost_usd, last.usage.input_tokens) == (2, Decimal("0.2"), 20)
            (row,) = await store.list_runs(1)
            assert (row.status, row.calls, row.cost_usd, row.input_tokens) == ("interrupted", 2, Decimal("0.2"), 20)

    asyncio.run(scenario())


# ---- events that cannot be stored


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (Planned(plan=Plan(steps=(), scores={"a": float("nan")}), decision_ms=1.0), "got `null`"),
        (Planned(plan=Plan(steps=(), notes={"x": object()}), decision_ms=1.0), "object"),
        (Called(step=2**63, worker="a", attempt=1, reason="planned"), "64-bit"),
    ],
    ids=["not a number", "no JSON", "out of bounds"],
)
def test_an_event_that_could_not_be_read_back_fails_its_run_alone(tmp_path: Path, event: Event, why: str) -> None:
    """The run that said it is refused, with the reason; others in the same commit are not touched."""

    async def scenario() -> None:
        async with open_store(tmp_path / "runs.db") as store:
            bad, good = store.recorder("run_1"), store.recorder("run_2")
            bad.write(accepted())
            good.write(accepted())
            bad.write(event)
            with pytest.raises(StoreError, match=f"run_1: {type(event).__name__} cannot be stored: .*{why}"):
                await bad.wait_durable()
            bad.write(STOPPED)
            await good.wait_durable()
            assert store.healthy
        async with open_store(tmp_path / "runs.db") as store:
            assert await stored_events(store, "run_1") == [accepted(), STOPPED], "the rest of the run is kept"

    asyncio.run(scenario())


@pytest.mark.parametrize("sampling", [Sampling(tool_choice=object()), Sampling(seed="x")])  # type: ignore[arg-type]
def test_an_accept_that_could_not_be_read_back_leaves_no_run(tmp_path: Path, sampling: Sampling) -> None:
    """Without its first event there is no run, and nothing of it is stored."""
    request = Request(model="fugu", messages=(), sampling=sampling)

    async def scenario() -> None:
        async with open_store(tmp_path / "runs.db") as store:
            recorder = store.recorder("run_1")
            recorder.write(Accepted(request=request, policy="p"))
            recorder.write(STOPPED)
            with pytest.raises(StoreError, match="Accepted cannot be stored"):
                await recorder.wait_durable()
            assert await store.get_run("run_1") is None
        connection = sqlite3.connect(tmp_path / "runs.db")
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (0,)
        connection.close()

    asyncio.run(scenario())


def test_text_that_is_no_unicode_is_mended_and_its_cost_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a surrogate pair, and a token count beyond 64 bits, from a worker's JSON: recorded, and said in the log."""

    async def scenario() -> None:
        async with open_store(tmp_path / "runs.db") as store:
            recorder = store.recorder("run_1")
            for event in (accepted("\ud83d?"), called(), replied("4\ud800", tokens=10**30), STOPPED):
                recorder.write(event)
            await recorder.wait_durable()
            events = await stored_events(store, "run_1")
            assert isinstance(events[2], Replied)
            assert events[2].reply.text.startswith("4\ufffd")
            assert events[2].reply.usage.input_tokens == 10**30
            (row,) = await store.list_runs(1)
            assert (row.cost_usd, row.input_tokens, row.output_tokens) == (Decimal("0.1"), None, 3)

    asyncio.run(scenario())
    assert "run run_1, event 3: unpaired surrogates" in caplog.text


def test_a_run_id_is_used_once(tmp_path: Path) -> None:
    """A second run of the same id is refused and does not touch the record of the first."""

    async def scenario() -> None:
        async with open_store(tmp_path / "runs.db") as store:
            first, second = store.recorder("run_1"), store.recorder("run_1")
            first.write(accepted("first"))
            await first.wait_durable()
            second.write(accepted("second"))
            second.write(called())
            with pytest.raises(StoreError, match="another run of this id"):
                await second.wait_durable()
            assert await stored_events(store, "run_1") == [accepted("first")]

    asyncio.run(scenario())


def test_whoever_stops_waiting_disturbs_nobody(tmp_path: Path) -> None:
    """A cancelled wait and an event loop that is gone leave the writer working."""
    path = tmp_path / "runs.db"
    store = open_store(path, options=StoreOptions(busy_timeout_s=5))

    async def leave() -> None:
        recorder = store.recorder("run_1")
        recorder.write(accepted())
        waiting = asyncio.ensure_future(recorder.wait_durable())
        await asyncio.sleep(0)
        waiting.cancel()
        abandoned = store.recorder("run_2")
        abandoned.write(accepted())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(abandoned.wait_durable(), 0.01)

    async def scenario() -> None:
        recorder = store.recorder("run_3")
        recorder.write(accepted())
        await recorder.wait_durable()
        assert [row.id for row in await store.list_runs(5)] == ["run_3", "run_2", "run_1"]
        await store.close()

    other = lock(path)
    asyncio.run(leave())
    unlock(other)
    asyncio.run(scenario())


def test_a_busy_event_loop_does_not_starve_the_writer(tmp_path: Path) -> None:
    """An open store has lowered the interpreter's switch interval, and never raises it."""
    before = sys.getswitchinterval()
    try:
        for found, left in ((0.005, 0.0001), (0.00005, 0.00005)):
            sys.setswitchinterval(found)
            asyncio.run(open_store(tmp_path / "runs.db").close())
            assert sys.getswitchinterval() == pytest.approx(left, rel=0.05)
    finally:
        sys.setswitchinterval(before)


# ---- files that are not what they should be


def make_foreign(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (x)")
    connection.close()


def make_newer(path: Path) -> None:
    connect(path, busy_timeout_s=1).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 7")
    connection.close()


def make_torn(path: Path) -> None:
    connect(path, busy_timeout_s=1).close()
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xa5" * (len(whole) - 4096))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.write_text("not a database, " * 100), "not a database; move the file away"),
        (make_foreign, "a SQLite database of another program"),
        (make_newer, "has schema 7, this version knows up to 2: it was written by a newer Torafugu"),
        (make_torn, "malformed; move the file away"),
        (lambda path: path.mkdir(), "could not be opened"),
        (lambda path: path.parent.joinpath("x").write_text("") and None, None),
    ],
    ids=["text", "foreign", "newer", "torn", "directory", "good"],
)
def test_a_file_that_is_no_store_of_ours_is_refused_untouched(tmp_path: Path, make: object, why: str | None) -> None:
    """Opening says what is wrong and what to do, and changes nothing in a file that is not ours."""
    path = tmp_path / "runs.db"
    make(path)  # type: ignore[operator]
    if why is None:  # the control: the same steps on a good path do open
        asyncio.run(open_store(path).close())
        return
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(StoreError, match=why):
        open_store(path)
    with pytest.raises(StoreError):
        asyncio.run(_list(path))
    assert (path.read_bytes() if path.is_file() else None) == before
    assert not list(tmp_path.glob("*.owner-*")), "nothing is left behind"


async def _list(path: Path) -> None:
    async with open_reader(path) as reader:
        await reader.list_runs(1)


def test_an_older_store_is_brought_up_to_date_once(tmp_path: Path) -> None:
    """An empty file is schema 0: opening migrates it, opening again finds nothing to do."""
    path = tmp_path / "runs.db"
    path.touch()
    for _ in range(2):
        connection = connect(path, busy_timeout_s=1)
        assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,), "FULL"
        connection.close()


def test_a_locked_file_does_not_open(tmp_path: Path) -> None:
    """Starting on a database that cannot be recovered now is an error, not a store without a record."""
    path = tmp_path / "runs.db"
    connect(path, busy_timeout_s=1).close()
    other = lock(path)
    with pytest.raises(StoreError, match="could not be recovered: database is locked"):
        open_store(path, options=IMPATIENT)
    unlock(other)
    assert not list(tmp_path.glob("*.owner-*"))


OPENS_AS_NOBODY = """
import asyncio, os, sys
from pathlib import Path
from torafugu.errors import StoreError
from torafugu.store import open_store
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    asyncio.run(open_store(Path(sys.argv[1])).close())
except StoreError as error:
    print(error)
"""


@pytest.mark.parametrize("is_there", [False, True])
def test_a_directory_that_cannot_be_written_is_refused(is_there: bool) -> None:
    """A read-only directory, with or without a database in it, is a `StoreError` that names the path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.db"
        if is_there:
            connect(path, busy_timeout_s=1).close()
            path.chmod(0o444)
        os.chmod(folder, 0o555)
        try:
            opened = subprocess.run(
                [sys.executable, "-c", OPENS_AS_NOBODY, str(path)], capture_output=True, text=True, check=True
            )
        finally:
            os.chmod(folder, 0o755)
        assert f"store {str(path)!r} could not be opened: " in opened.stdout
        assert ("readonly" if is_there else "Permission denied") in opened.stdout


def test_damaged_contents_are_an_error_not_an_answer(tmp_path: Path) -> None:
    """A message that is not what was stored, or is gone, fails the read of its run and of no other."""
    path = tmp_path / "runs.db"

    async def scenario() -> None:
        async with open_store(path) as store:
            for n in range(3):
                recorder = store.recorder(f"run_{n}")
                recorder.write(accepted(f"question {n} " * 200))
                await recorder.wait_durable()
            other = sqlite3.connect(path, isolation_level=None)
            other.execute("UPDATE contents SET json = x'789c00' WHERE id = 1")
            other.execute("DELETE FROM contents WHERE id = 2")
            other.close()
            with pytest.raises(StoreError, match="run run_0, event 1 cannot be read: content 1 is damaged"):
                await store.get_run("run_0")
            with pytest.raises(StoreError, match="content 2 is missing"):
                await store.get_run("run_1")
            assert await stored_events(store, "run_2") == [accepted("question 2 " * 200)]
            assert len(await store.list_runs(5)) == 3, "the ledger does not need them"

    asyncio.run(scenario())


def test_a_damaged_spool_gives_what_it_can_and_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A torn last line does not hold up the start; the file is set aside under a name that says so."""
    path = tmp_path / "runs.db"

    async def scenario() -> None:
        store = open_store(path, options=IMPATIENT)
        recorder = store.recorder("run_1")
        other = lock(path)
        recorder.write(accepted())
        recorder.write(called())
        await store.close()
        unlock(other)
        (spool,) = spools(path)
        spool.write_bytes(spool.read_bytes()[:-20])
        for _ in range(2):
            async with open_store(path) as store:
                events = await stored_events(store, "run_1")
                assert [type(event) for event in events] == [Accepted, Stopped]
        assert [file.name for file in spools(path)] == [spool.name + ".damaged"]

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert caplog.text.count("1 lines are unreadable") == 1


def test_a_plan_is_durable_with_the_accept_before_it(tmp_path: Path) -> None:
    """`wait_durable` covers everything written so far, not only the first event."""
    planned = Planned(plan=Plan(steps=(Step(id=0, worker="a"),), scores={"a": 1.0}), decision_ms=2.0)

    async def scenario() -> None:
        async with open_store(tmp_path / "runs.db") as store:
            recorder = store.recorder("run_1")
            recorder.write(accepted())
            recorder.write(planned)
            await recorder.wait_durable()
            async with open_reader(tmp_path / "runs.db") as reader:
                run = await reader.get_run("run_1")
        assert run is not None
        assert [event for _, event in run.events] == [accepted(), planned]

    asyncio.run(scenario())
