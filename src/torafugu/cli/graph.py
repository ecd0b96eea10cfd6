"""A recorded run as a drawing: one line for each step, in the order in which they began, on the run's time axis. Pure.

    1 exact-math    ▇▇▇░░░░░     0-200 ms  120 tok  0.012 ¢
    ├─ 2 logic      ░░░▇▇░░░   200-340 ms   90 tok  0.009 ¢  sees 1
    ╰─ 3 facts      ░░░▇▇▇░░   200-420 ms   80 tok  0.008 ¢  sees 1
       ╰─ 4 fluent  ░░░░░░▇▇   420-550 ms  310 tok  0.031 ¢  sees 2, 3  answer

How far a line is indented says how many steps had to reply, one after another, before it could begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TypeAlias

from rich.cells import cell_len, set_cell_size

from ..events import Answered, Called, Event, Failed, Planned, Replied, Stopped
from ..store import StoredRun
from ..types import Step, Usage, sum_cost

__all__ = ["draw_graph", "printable"]

_WIDEST_BAR = 24
_NARROWEST_BAR = 5
_DEEPEST = 8
"""Levels that are indented; deeper ones stay under these."""
_FROM_SECONDS_MS = 10_000
"""Runs that last longer are drawn in seconds."""

Span: TypeAlias = tuple[float, float]


@dataclass(slots=True, kw_only=True)
class _Attempt:
    worker: str
    began_ms: float
    ended_ms: float | None = None
    code: str | None = None
    """Why it failed; None when it did not."""


@dataclass(slots=True, kw_only=True)
class _Drawn:
    """What is to be seen of a step."""

    step: Step
    round: int
    depth: int
    attempts: dict[int, _Attempt] = field(default_factory=dict)
    ends: list[Replied | Failed] = field(default_factory=list)
    reply: Replied | None = None
    unsent: list[str] = field(default_factory=list)
    """Why workers were not asked."""
    is_answer: bool = False


def draw_graph(stored: StoredRun, width: int) -> list[str]:
    """Lines of at most `width` cells; none for a run of one step, where the timeline says it all."""
    if not stored.events:
        return []
    drawn = _read(stored.events)
    if len(drawn) < 2:
        return []
    start = stored.events[0][0]
    end_ms = max((at - start) * 1e3 for at, _ in stored.events)
    is_over = any(isinstance(event, Stopped) for _, event in stored.events)
    order = sorted(drawn.values(), key=lambda d: (d.round, _span(d, end_ms)[0], d.step.id))
    return [
        set_cell_size(line, width).rstrip() if cell_len(line) > width else line
        for line in _draw(order, end_ms, width, is_over=is_over)
    ]


def printable(text: str) -> str:
    """On one line, without what steers a terminal: no worker does."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


# --- what happened ---


def _read(events: Sequence[tuple[float, Event]]) -> dict[int, _Drawn]:
    drawn: dict[int, _Drawn] = {}
    start, round, latest = events[0][0], 1, None
    for at, event in events:
        if isinstance(event, Planned):
            round += latest is not None and _begins_round(latest, event)
            latest = event
            for step in event.plan.steps:
                waited = [drawn[id].depth for id in step.sees if id in drawn and drawn[id].round == round]
                drawn[step.id] = _Drawn(step=step, round=round, depth=max(waited, default=-1) + 1)
        elif isinstance(event, Answered) and event.step in drawn:
            drawn[event.step].is_answer = True
        elif isinstance(event, (Called, Replied, Failed)) and event.step in drawn:
            _note(drawn[event.step], event, (at - start) * 1e3)
    return drawn


def _begins_round(before: Planned, planned: Planned) -> bool:
    """After a workflow: who planned it plans again, or there is another one. Turns of one step are one round."""
    if _is_conducting(before):
        return False
    return _is_conducting(planned) or len(planned.plan.steps) > 1


def _is_conducting(planned: Planned) -> bool:
    return all(step.role == "conductor" for step in planned.plan.steps)


def _note(drawn: _Drawn, event: Called | Replied | Failed, at_ms: float) -> None:
    if isinstance(event, Called):
        drawn.attempts[event.attempt] = _Attempt(worker=event.worker, began_ms=at_ms)
        return
    drawn.ends.append(event)
    if isinstance(event, Replied):
        drawn.reply = event
    elif event.attempt not in drawn.attempts:
        drawn.unsent.append(f"{printable(event.worker)} was not asked: {printable(event.code)}")
    attempt = drawn.attempts.get(event.attempt)
    if attempt is not None:
        attempt.ended_ms = at_ms
        attempt.code = event.code if isinstance(event, Failed) else None


def _span(drawn: _Drawn, end_ms: float) -> Span:
    """From its first call to its last end; a step that was not called lies at the end."""
    begins = [attempt.began_ms for attempt in drawn.attempts.values()]
    ends = [end_ms if attempt.ended_ms is None else attempt.ended_ms for attempt in drawn.attempts.values()]
    return (min(begins), max(ends)) if begins else (end_ms, end_ms)


# --- how it looks ---


def _draw(order: Sequence[_Drawn], end_ms: float, width: int, *, is_over: bool) -> Iterator[str]:
    names = [_branch(order, i) + _name(drawn) for i, drawn in enumerate(order)]
    columns = [_columns(drawn, end_ms) for drawn in order]
    name_width = max(map(cell_len, names))
    widths = [max(len(column[i]) for column in columns) for i in range(3)]
    bar_width = max(_NARROWEST_BAR, min(_WIDEST_BAR, width - name_width - sum(widths) - 2 * 4 - 20))
    rounds = len({drawn.round for drawn in order})
    before = None
    for drawn, name, column in zip(order, names, columns, strict=True):
        if rounds > 1 and drawn.round != before:
            yield f"── round {drawn.round}"
        before = drawn.round
        bar = _bar(_span(drawn, end_ms), end_ms, bar_width) if drawn.attempts else "░" * bar_width
        cells = [set_cell_size(name, name_width), bar]
        cells += [text.rjust(n) for text, n in zip(column, widths, strict=True)]
        yield "  ".join([*cells, *_remarks(drawn, is_over=is_over)]).rstrip()
        yield from (f"{' ' * _indent(drawn)}   {line}" for line in _faults(drawn, end_ms))


def _indent(drawn: _Drawn) -> int:
    return 3 * min(drawn.depth, _DEEPEST)


def _branch(order: Sequence[_Drawn], i: int) -> str:
    """The last line of its level, before one of another, ends the branch."""
    here, after = order[i], order[i + 1] if i + 1 < len(order) else None
    if not here.depth:
        return ""
    goes_on = after is not None and after.depth == here.depth and after.round == here.round
    return " " * (_indent(here) - 3) + ("├─ " if goes_on else "╰─ ")


def _name(drawn: _Drawn) -> str:
    planned, role = printable(drawn.step.worker), printable(drawn.step.role)
    last = list(drawn.attempts.values())[-1].worker if drawn.attempts else drawn.step.worker
    who = planned if last == drawn.step.worker else f"{planned} → {printable(last)}"
    return f"{drawn.step.id} {who}" + ("" if role == "worker" else f" ({role})")


def _columns(drawn: _Drawn, end_ms: float) -> tuple[str, str, str]:
    """Time, tokens, cents: over all attempts. A step that was not called has none."""
    if not drawn.attempts:
        return ("", "", "")
    if any(attempt.ended_ms is None for attempt in drawn.attempts.values()):
        return (_times(_span(drawn, end_ms), end_ms), "", "")
    usage = Usage.total(end.reply.usage if isinstance(end, Replied) else end.usage for end in drawn.ends)
    cost = sum_cost(end.reply.cost_usd if isinstance(end, Replied) else end.cost_usd for end in drawn.ends)
    return (_times(_span(drawn, end_ms), end_ms), _tokens(usage), _cents(cost))


def _remarks(drawn: _Drawn, *, is_over: bool) -> Iterator[str]:
    if drawn.step.sees:
        yield f"sees {', '.join(map(str, drawn.step.sees))}"
    is_open = any(attempt.ended_ms is None for attempt in drawn.attempts.values())
    if is_open:
        yield "no end on record" if is_over else "running"
    elif not drawn.attempts:
        yield "not called" if is_over or drawn.unsent else "waits"
    elif drawn.reply is None:
        yield "dropped" if _is_dropped(drawn) else "failed"
    if drawn.is_answer:
        yield "answer"


def _is_dropped(drawn: _Drawn) -> bool:
    """Nobody waited for it any more: no fault of its worker's."""
    return any(isinstance(end, Failed) and end.code == "dropped" for end in drawn.ends)


def _faults(drawn: _Drawn, end_ms: float) -> Iterator[str]:
    """Of a step, what did not lead to its reply."""
    for attempt in drawn.attempts.values():
        if attempt.code not in (None, "dropped") and attempt.ended_ms is not None:
            times = _times((attempt.began_ms, attempt.ended_ms), end_ms)
            yield f"✗ {printable(attempt.worker)} failed: {printable(attempt.code or '')}, {times}"
    yield from (f"✗ {line}" for line in drawn.unsent)


def _bar(span: Span, end_ms: float, width: int) -> str:
    whole = end_ms or 1.0
    first = min(int(span[0] / whole * width + 0.001), width - 1)  # times are not exact to the last bit
    last = max(first + 1, min(round(span[1] / whole * width), width))
    return "░" * first + "▇" * (last - first) + "░" * (width - last)


def _times(span: Span, end_ms: float) -> str:
    if end_ms < _FROM_SECONDS_MS:
        return f"{span[0]:.0f}-{span[1]:.0f} ms"
    return f"{span[0] / 1e3:.1f}-{span[1] / 1e3:.1f} s"


def _tokens(usage: Usage) -> str:
    counts: Mapping[str, int | None] = {"in": usage.input_tokens, "out": usage.output_tokens}
    known = [count for count in counts.values() if count is not None]
    return f"{sum(known)} tok" if len(known) == len(counts) else "? tok"


def _cents(cost: Decimal | None) -> str:
    """Two digits; the exact costs stand in the timeline."""
    if cost is None:
        return "? ¢"
    cents = cost * 100
    if not cents or cents >= 10:
        return f"{cents:.0f} ¢"
    return f"{format(round(cents, 1 - cents.adjusted()), 'f')} ¢"
