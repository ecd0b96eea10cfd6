"""A recorded run as a drawing: what ran when, after what, for how much, and what went wrong."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from torafugu.cli import main
from torafugu.cli.graph import draw_graph, printable
from torafugu.events import Accepted, Answered, Called, Event, Failed, Planned, Replied, Stopped
from torafugu.store import RunRow, StoredRun, open_store
from torafugu.types import Plan, Reply, Request, Step, Usage, sum_cost


def stored(*timeline: tuple[float, Event]) -> StoredRun:
    """A run of these events, at these ms after its beginning."""
    row = RunRow(
        id="run_1",
        accepted_at=100.0,
        model="fugu-ultra",
        policy="p",
        key_id=None,
        session=None,
        body_sha256=None,
        status="answered",
        stopped_by=None,
        workers=(),
        calls=None,
        input_tokens=None,
        output_tokens=None,
        cost_usd=None,
        latency_ms=None,
        error_code=None,
    )
    first = Accepted(request=Request(model="fugu-ultra", messages=()), policy="p")
    events = ((0.0, first), *timeline)
    return StoredRun(run=row, events=tuple((100.0 + at_ms / 1e3, event) for at_ms, event in events))


def planned(*steps: Step) -> Planned:
    return Planned(plan=Plan(steps=steps), decision_ms=1.0)


def step(id: int, worker: str = "w", *sees: int, **fields: Any) -> Step:
    return Step(id=id, worker=worker, sees=sees, **fields)


def called(id: int, worker: str = "w", attempt: int = 1) -> Called:
    return Called(step=id, worker=worker, attempt=attempt, reason="planned")


def replied(id: int, worker: str = "w", attempt: int = 1, cost: str | None = "0.00012") -> Replied:
    usage = Usage(input_tokens=100, output_tokens=20)
    cost_usd = None if cost is None else Decimal(cost)
    reply = Reply(worker=worker, text="\x1b[31mSECRET", finish_reason="stop", usage=usage, cost_usd=cost_usd)
    return Replied(step=id, attempt=attempt, reply=reply)


def failed(id: int, worker: str = "w", attempt: int = 1, code: str = "timeout_total") -> Failed:
    usage, cost = (Usage.total(()), sum_cost(())) if attempt == 0 else (Usage(), None)
    return Failed(
        step=id, worker=worker, attempt=attempt, fault="worker", code=code, message="SECRET", usage=usage, cost_usd=cost
    )


def answered(id: int) -> Answered:
    return Answered(step=id, worker="w")


def stopped(by: str = "answer") -> Stopped:
    return Stopped(by=by, latency_ms=1.0, calls=1, usage=Usage(), cost_usd=None)


def draw(*timeline: tuple[float, Event], width: int = 100) -> list[str]:
    lines = draw_graph(stored(*timeline), width)
    assert all(cell_len(line) <= width for line in lines)
    return lines


DIAMOND = (
    (0.0, planned(step(0, "a"), step(1, "b", 0), step(2, "c", 0), step(3, "d", 1, 2, is_final=True))),
    (0.0, called(0, "a")),
    (200.0, replied(0, "a")),
    (200.0, called(2, "c")),
    (210.0, called(1, "b")),
    (400.0, replied(1, "b")),
    (400.0, replied(2, "c")),
    (400.0, called(3, "d")),
    (600.0, replied(3, "d", cost="0.0123")),
    (600.0, answered(3)),
    (600.0, stopped()),
)


def test_a_diamond() -> None:
    """Steps stand in the order in which they began, indented by what they wait for, on one time axis."""
    assert draw(*DIAMOND) == [
        "0 a        ▇▇▇▇▇▇▇▇░░░░░░░░░░░░░░░░    0-200 ms  120 tok  0.012 ¢",
        "├─ 2 c     ░░░░░░░░▇▇▇▇▇▇▇▇░░░░░░░░  200-400 ms  120 tok  0.012 ¢  sees 0",
        "╰─ 1 b     ░░░░░░░░▇▇▇▇▇▇▇▇░░░░░░░░  210-400 ms  120 tok  0.012 ¢  sees 0",
        "   ╰─ 3 d  ░░░░░░░░░░░░░░░░▇▇▇▇▇▇▇▇  400-600 ms  120 tok    1.2 ¢  sees 1, 2  answer",
    ]


def test_a_chain() -> None:
    """Each step of a chain stands one level below the one before."""
    steps = [step(0, "a"), step(1, "b", 0), step(2, "c", 1)]
    lines = draw(
        (0, planned(*steps)), *((i * 10, e) for i in range(3) for e in (called(i), replied(i))), (30, stopped())
    )
    assert [line.partition("  ░")[0].partition("  ▇")[0].rstrip() for line in lines] == [
        "0 a → w",
        "╰─ 1 b → w",
        "   ╰─ 2 c → w",
    ]


def test_rounds_are_apart() -> None:
    """A conductor that is called again begins another round; asked twice for one plan, it does not."""
    timeline: list[tuple[float, Event]] = []
    plans = [
        [step(0, "maestro", role="conductor")],
        [step(1, "maestro", role="conductor")],
        [step(2, "a"), step(3, "b", 2)],
        [step(4, "maestro", role="conductor")],
        [step(5, "c", 3, is_final=True)],
    ]
    for at, steps in enumerate(plans):
        timeline.append((at * 100, planned(*steps)))
        for s in steps:
            timeline += [(at * 100 + 1, called(s.id, s.worker)), (at * 100 + 99, replied(s.id, s.worker))]
    lines = draw(*timeline, (500, answered(5)), (500, stopped()))
    assert [line.partition("  ")[0] for line in lines] == [
        "── round 1",
        "0 maestro (conductor)",
        "1 maestro (conductor)",
        "2 a",
        "╰─ 3 b",
        "── round 2",
        "4 maestro (conductor)",
        "5 c",
    ]
    assert lines[-1].endswith("sees 3  answer")


def test_turns_of_one_step_are_one_round() -> None:
    """A policy that decides turn by turn is drawn as one piece."""
    lines = draw(
        *((at, event) for at in range(3) for event in (planned(step(at, "w", *range(at))), called(at), replied(at))),
        (9, answered(1)),
        (9, stopped()),
    )
    assert [line.partition("  ░")[0].partition("  ▇")[0].rstrip() for line in lines] == ["0 w", "╰─ 1 w", "   ╰─ 2 w"]
    assert lines[1].endswith("sees 0  answer")


def test_who_failed_and_who_stood_in() -> None:
    """A substitution names both workers, with each failure in a line of its own; unknown costs are not zero."""
    lines = draw(
        (0, planned(step(0, "a", alternates=("b",)), step(1, "c"), step(2, "d", 0, 1))),
        (0, failed(1, "c", 0, "skipped")),
        (0, called(0, "a")),
        (100, failed(0, "a")),
        (100, called(0, "b", 2)),
        (100, called(1, "c")),
        (150, failed(1, "c", 1, "rejected")),
        (200, replied(0, "b", 2)),
        (200, failed(2, "d", 0, "input_missing")),
        (200, stopped("error")),
    )
    assert [" ".join(line.split()) for line in lines] == [
        "0 a → b ▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇ 0-200 ms ? tok ? ¢",
        "✗ a failed: timeout_total, 0-100 ms",
        "1 c ░░░░░░░░░░░░▇▇▇▇▇▇░░░░░░ 100-150 ms ? tok ? ¢ failed",
        "✗ c failed: rejected, 100-150 ms",
        "✗ c was not asked: skipped",
        "╰─ 2 d ░░░░░░░░░░░░░░░░░░░░░░░░ sees 0, 1 not called",
        "✗ d was not asked: input_missing",
    ]


def test_a_dropped_step_is_no_fault() -> None:
    """A step that nobody waits for any more is drawn as far as it came, without blaming its worker."""
    steps = planned(step(0, "a"), step(1, "b"))
    lines = draw((0, steps), (0, called(0)), (0, called(1)), (50, replied(0)), (50, failed(1, code="dropped")))
    assert len(lines) == 2
    assert lines[1].endswith("dropped")


def test_a_run_that_still_runs() -> None:
    """A step without an end is drawn to the end of what is known; those that wait for it say so."""
    lines = draw(
        (0, planned(step(0, "a"), step(1, "b"), step(2, "c", 0, 1))),
        (0, called(0, "a")),
        (100, called(1, "b")),
        (400, replied(0, "a")),
    )
    assert lines[1].split() == ["1", "b", "░░░░░░▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇", "100-400", "ms", "running"]
    assert lines[2].endswith("sees 0, 1  waits")
    over = draw((0, planned(step(0, "a"), step(1, "b"))), (0, called(0, "a")), (9, stopped("interrupted")))
    assert over[0].endswith("no end on record")
    assert over[1].endswith("not called")


@pytest.mark.parametrize(
    "timeline",
    [
        (),
        ((0.0, planned(step(0, is_final=True))), (0.0, called(0)), (5.0, replied(0)), (5.0, stopped())),
        ((0.0, called(0)), (1.0, replied(1)), (1.0, answered(7))),
    ],
    ids=["nothing planned", "one step", "steps that nobody planned"],
)
def test_nothing_to_draw(timeline: tuple[tuple[float, Event], ...]) -> None:
    """A run of one step has no graph, nor has a record without a plan."""
    assert draw(*timeline) == []


def test_a_routed_run_shows_what_it_would_do() -> None:
    """Steps that were only planned are drawn as not called."""
    lines = draw((0, planned(step(0, "a"), step(1, "b", 0))), (0, stopped("routed")))
    assert [line.split()[-2:] for line in lines] == [["not", "called"]] * 2


def test_long_runs_are_in_seconds() -> None:
    """From ten seconds on, times are seconds."""
    steps = planned(step(0), step(1))
    lines = draw((0, steps), (0, called(0)), (1500, replied(0)), (1500, called(1)), (12_345, replied(1, cost=None)))
    assert "0.0-1.5 s" in lines[0]
    assert "1.5-12.3 s" in lines[1]


IDS = st.integers(0, 4)
NAMES = st.text(max_size=30)
ANY_EVENT = st.one_of(
    st.builds(
        lambda steps: planned(*steps),
        st.lists(
            st.builds(
                lambda id, w, role, sees: Step(id=id, worker=w, role=role, sees=sees),
                IDS,
                NAMES,
                NAMES,
                st.lists(IDS, max_size=3).map(tuple),
            ),
            max_size=4,
        ),
    ),
    st.builds(called, IDS, NAMES, st.integers(0, 3)),
    st.builds(replied, IDS, NAMES, st.integers(0, 3), st.sampled_from([None, "0", "1E-9", "123.4"])),
    st.builds(failed, IDS, NAMES, st.integers(0, 3), NAMES),
    st.builds(answered, IDS),
    st.just(stopped()),
)


@given(st.lists(st.tuples(st.floats(0, 1e8), ANY_EVENT), max_size=25), st.integers(20, 220))
def test_anything_on_record_can_be_drawn(timeline: list[tuple[float, Event]], width: int) -> None:
    """Any events, in any order and with any names, make lines that fit, steer no terminal and quote nobody."""
    lines = draw_graph(stored(*timeline), width)
    assert all(line.isprintable() for line in lines)
    assert all(cell_len(line) <= width for line in lines)
    assert "SECRET" not in "".join(lines)


def test_the_command_draws_it_before_the_timeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`fugu runs show` has the graph under its headline, and the whole timeline under that."""

    async def record() -> None:
        async with open_store(tmp_path / "r.db") as store:
            recorder = store.recorder("run_1")
            for _, event in stored(*DIAMOND).events:
                recorder.write(event)
            await recorder.wait_durable()

    asyncio.run(record())
    assert main(["runs", "show", "run_1", "--record", str(tmp_path / "r.db")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("run_1 ")
    assert [line.split()[:3] for line in lines[1:5]][2:] == [["╰─", "1", "b"], ["╰─", "3", "d"]]
    assert "accepted" in lines[5]
    assert "stopped" in lines[-1]
    assert not any("\x1b" in line for line in lines)


def test_words_are_printable() -> None:
    """Control characters, line breaks and changes of direction become blanks."""
    assert printable("a\x1b[31m\nb\u202ec\x00\u2028d") == "a [31m b c d"
