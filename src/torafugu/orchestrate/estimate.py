"""What a plan would cost and how long it would take, before any of it is called. Pure.

Each step's query is rendered as it would be sent, with stand-ins of the expected length for replies that do not exist
yet. What workers usually write and how long they take is read off their own past; who has none stays unknown, and so
does every sum that it is part of. Tokens are guessed as characters / 4.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, Protocol

from ..events import Planned, Replied
from ..pool.backend import Query
from ..pool.prices import Price
from ..pool.purse import Spend, limit_output, worst_case
from ..pool.spec import WorkerSpec
from ..types import Plan, Reply, Sampling, Step, Usage, sum_cost
from .render import step_to_query
from .run import Run

__all__ = ["CHARS_PER_TOKEN", "Basis", "Estimate", "History", "estimate_plan"]

CHARS_PER_TOKEN = 4
"""Of English text; other languages and code take fewer characters for a token, so they cost more than is said."""


class History(Protocol):
    """What a worker's latest replies were like."""

    @property
    def replies(self) -> int: ...

    @property
    def output_tokens(self) -> float | None:
        """Mean; None when unknown."""
        ...

    @property
    def seconds(self) -> float | None:
        """Mean; None when unknown."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What an estimate rests on."""

    covers: Literal["run", "first_plan"]
    """`first_plan`: the policy decides again when these steps have replied, and may call more."""
    tokens: str
    """How input tokens were counted."""
    replies: Mapping[str, int]
    """How many replies of each planned worker were looked at."""
    no_history: tuple[str, ...]
    """Planned workers of whose output or time nothing is known."""
    no_price: tuple[str, ...]
    """Planned workers whose price nobody knows."""
    no_limit: tuple[str, ...]
    """Workers that could be called and whose cost nothing bounds: they, or one whose reply they see, have no price or
    no limit of tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Of one plan, each step answered by its worker at the first attempt."""

    cost_usd: Decimal | None
    """None: unknown for a step."""
    cost_usd_at_most: Decimal | None
    """With every reply as long as its limits allow, from the dearest worker that may take the step; also not more than
    the run's budget. None: nothing bounds it."""
    seconds: float | None
    """Along the longest path of steps that wait for one another."""
    basis: Basis


def estimate_plan(
    plan: Plan,
    run: Run,
    *,
    specs: Mapping[str, WorkerSpec],
    price_of: Callable[[str], Price | None],
    histories: Mapping[str, History],
) -> Estimate:
    """Of a plan of this run. `histories`: of the workers that its steps name; one that is missing is unknown.

    Raises:
        PlanError: a step cannot be rendered; nor could it be called.
    """
    workers = tuple(dict.fromkeys(step.worker for step in plan.steps))
    past = {worker: histories[worker] for worker in workers if worker in histories}
    bounds = _Bounds(specs, price_of, is_bounded=run.budget.is_bounded)
    at_most, unbounded = _most(plan, run, bounds)
    limit = run.budget.limits.usd
    if limit is not None:
        at_most = limit if at_most is None else min(at_most, limit)
    return Estimate(
        cost_usd=_expected_usd(plan, run, price_of, past),
        cost_usd_at_most=at_most,
        seconds=_seconds(plan, past),
        basis=Basis(
            covers="run" if any(step.is_final for step in plan.steps) else "first_plan",
            tokens=f"characters / {CHARS_PER_TOKEN}",
            replies={worker: past[worker].replies if worker in past else 0 for worker in workers},
            no_history=tuple(worker for worker in workers if not _is_known(past.get(worker))),
            no_price=tuple(worker for worker in workers if price_of(worker) is None),
            no_limit=unbounded,
        ),
    )


def _is_known(history: History | None) -> bool:
    return history is not None and history.output_tokens is not None and history.seconds is not None


# --- what is sent ---


def _render(
    plan: Plan, run: Run, reply_chars: Callable[[Step, Query], int | None]
) -> Iterator[tuple[Step, Query, int | None]]:
    """Each step with its query, and the length of that in characters, in an order in which they could run.

    `reply_chars` is how long a step's reply will be; None when nobody knows, nor then the length of its readers' query.
    """
    rehearsal = Run(run.request, run_id=run.id)
    for event in run.events:
        if not (isinstance(event, Planned) and event.plan is plan):
            rehearsal.record(event)
    rehearsal.record(Planned(plan=plan, decision_ms=0.0))
    unknown: set[int] = set()
    for step in plan.steps:  # a step sees only those before it in its plan
        query = step_to_query(step, rehearsal)
        yield step, query, None if unknown & set(step.sees) else _count_chars(query)
        chars = reply_chars(step, query)
        if chars is None:
            unknown.add(step.id)
        reply = Reply(worker=step.worker, text="x" * (chars or 0), finish_reason="stop")
        rehearsal.record(Replied(step=step.id, attempt=1, reply=reply))


def _count_chars(query: Query) -> int:
    """Text only: what an image comes to is not guessed."""
    sampling = query.sampling
    bodies = [*sampling.tools, *([sampling.response_format] if sampling.response_format else [])]
    return (
        sum(len(message.text) for message in query.messages)
        + sum(len(call.name) + len(call.arguments) for message in query.messages for call in message.tool_calls)
        + sum(len(json.dumps(body, ensure_ascii=False, default=str)) for body in bodies)
    )


# --- what it costs ---


def _expected_usd(
    plan: Plan, run: Run, price_of: Callable[[str], Price | None], past: Mapping[str, History]
) -> Decimal | None:
    def written(worker: str) -> int | None:
        mean = past[worker].output_tokens if worker in past else None
        return None if mean is None else round(mean)

    def reply_chars(step: Step, query: Query) -> int | None:
        del query
        tokens = written(step.worker)
        return None if tokens is None else tokens * CHARS_PER_TOKEN

    costs: list[Decimal | None] = []
    for step, _, chars in _render(plan, run, reply_chars):
        input_tokens = None if chars is None else math.ceil(chars / CHARS_PER_TOKEN)
        usage = Usage(input_tokens=input_tokens, output_tokens=written(step.worker))
        price = price_of(step.worker)
        costs.append(None if price is None else price.cost_usd(usage))  # unknown tokens: unknown, or free
    return sum_cost(costs)


class _Bounds:
    """The most that one call of a worker may cost, and write."""

    def __init__(
        self, specs: Mapping[str, WorkerSpec], price_of: Callable[[str], Price | None], *, is_bounded: bool
    ) -> None:
        self._specs = specs
        self._price_of = price_of
        self._is_bounded = is_bounded  # then the pool imposes a limit on calls that have none

    def usd(self, query: Query, worker: str, *, is_whole: bool) -> Decimal | None:
        """`is_whole`: the query is as long as it can be."""
        if is_whole:
            return self._worst_case(query, worker).usd
        price = self._price_of(worker)
        return None if price is None else price.cost_usd(Usage())  # of unknown tokens: unknown, or free

    def reply_tokens(self, query: Query, worker: str) -> int | None:
        """And those around an empty request, which are few: a bound may be loose."""
        bare = Query(messages=(), sampling=Sampling(max_output_tokens=query.sampling.max_output_tokens))
        return self._worst_case(bare, worker).tokens

    def _worst_case(self, query: Query, worker: str) -> Spend:
        spec = self._specs[worker]
        return worst_case(limit_output(query, spec) if self._is_bounded else query, spec, self._price_of(worker))


def _most(plan: Plan, run: Run, bounds: _Bounds) -> tuple[Decimal | None, tuple[str, ...]]:
    """The sum over all steps, and the workers for which there is none."""

    def reply_chars(step: Step, query: Query) -> int | None:  # in a worst case, a character is a token
        tokens = [bounds.reply_tokens(query, worker) for worker in (step.worker, *step.alternates)]
        known = [n for n in tokens if n is not None]
        return max(known) if len(known) == len(tokens) else None

    total: list[Decimal | None] = []
    unbounded: dict[str, None] = {}
    for step, query, chars in _render(plan, run, reply_chars):
        workers = (step.worker, *step.alternates)
        costs = {worker: bounds.usd(query, worker, is_whole=chars is not None) for worker in workers}
        unbounded |= dict.fromkeys(worker for worker, cost in costs.items() if cost is None)
        known = [cost for cost in costs.values() if cost is not None]
        total.append(max(known) if len(known) == len(costs) else None)
    return sum_cost(total), tuple(unbounded)


# --- how long it takes ---


def _seconds(plan: Plan, past: Mapping[str, History]) -> float | None:
    """As the executor would run it: a step begins when what it sees has replied, and a place is free."""
    took = {step.id: past[step.worker].seconds if step.worker in past else None for step in plan.steps}
    places = [0.0] * (len(plan.steps) if plan.parallel is None else plan.parallel)  # when each is free; a heap
    ends: dict[int, float] = {}
    waiting = list(plan.steps)
    while waiting:
        known = [step for step in waiting if not any(other.id in step.sees for other in waiting)]
        step = min(known, key=lambda step: _ready_at(step, ends))
        waiting.remove(step)
        seconds = took[step.id]
        if seconds is None:
            return None
        ends[step.id] = max(_ready_at(step, ends), heapq.heappop(places)) + seconds
        heapq.heappush(places, ends[step.id])
    last = len(ends) if plan.quorum is None else min(plan.quorum, len(ends))
    return sorted(ends.values())[last - 1]


def _ready_at(step: Step, ends: Mapping[int, float]) -> float:
    return max((ends[id] for id in step.sees if id in ends), default=0.0)
