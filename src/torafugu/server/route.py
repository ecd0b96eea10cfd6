"""POST /v1/route: what a model would do with a request, and about what that would cost, without doing it.

The body is that of chat completions; `stream` says nothing here. Nobody is called but a conductor, whose calls are paid
for and told. The run is recorded like any other, and ends as `routed`. `fugu route` shows the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import msgspec
from starlette.types import Receive, Send

from ..orchestrate import Run
from ..orchestrate.estimate import Estimate, estimate_plan
from ..pool.prices import Price
from ..pool.spec import WorkerSpec
from ..store.rows import WorkerHistory
from ..types import Json, Plan, Step
from .connection import send_json
from .errors import BudgetEndedError
from .intake import Asked, Follower, Runner

__all__ = ["Histories", "Router", "describe_route"]

_encode = msgspec.json.Encoder(decimal_format="number").encode  # USD exactly as counted


class Histories(Protocol):
    """What an estimate needs of a store."""

    async def histories(self, workers: Iterable[str]) -> Mapping[str, WorkerHistory]:
        """What the latest replies of each of these workers were like."""
        ...


class Router:
    """The endpoint."""

    def __init__(
        self,
        runner: Runner,
        *,
        specs: Mapping[str, WorkerSpec],
        price_of: Callable[[str], Price | None],
        store: Histories,
    ) -> None:
        self._runner = runner
        self._specs = specs
        self._price_of = price_of
        self._store = store

    async def answer(self, asked: Asked, receive: Receive, send: Send) -> None:
        parsed = asked.parsed
        if parsed.is_stream:
            ignored = tuple(sorted({*parsed.request.ignored, "stream"}))
            request = msgspec.structs.replace(parsed.request, ignored=ignored)
            asked = dataclasses.replace(asked, parsed=dataclasses.replace(parsed, request=request))
        seen = self._runner.follow(asked)
        await self._runner.respond(self._send_route(asked, seen, receive, send), seen, send, dialect=asked.dialect)

    async def _send_route(self, asked: Asked, seen: Follower, receive: Receive, send: Send) -> None:
        run = await self._runner.run(asked, seen, receive, only_plans=True)
        body = await describe_route(
            run, policy=asked.policy.id, specs=self._specs, price_of=self._price_of, store=self._store
        )
        await send_json(send, _encode(body), headers=[(b"content-type", b"application/json"), *seen.headers()])


async def describe_route(
    run: Run,
    *,
    policy: str,
    specs: Mapping[str, WorkerSpec],
    price_of: Callable[[str], Price | None],
    store: Histories,
) -> dict[str, Json]:
    """The answer's body, of a run that only planned. Without a decision where the policy would call nobody.

    Raises:
        BudgetEndedError: the budget ended with the conductor's calls.
        StoreError: the workers' past cannot be read.
    """
    stopped = run.stopped
    assert stopped is not None
    if stopped.by.startswith("budget:"):
        raise BudgetEndedError(f"the run ended by {stopped.by!r} before anything was decided")
    plan = run.plans[-1].plan if stopped.by == "routed" else None
    estimate = None
    if plan is not None:
        histories = await store.histories({step.worker for step in plan.steps})
        estimate = estimate_plan(plan, run, specs=specs, price_of=price_of, histories=histories)
    return {
        "object": "route",
        "run_id": run.id,
        "model": run.request.model,
        "policy": policy,
        "decision": None if plan is None else _describe_plan(plan),
        "estimate": None if estimate is None else _describe_estimate(estimate),
        "conductor": {
            "calls": stopped.calls,
            "cost_usd": stopped.cost_usd,
            "usage": {
                "input_tokens": stopped.usage.input_tokens,
                "cached_input_tokens": stopped.usage.cached_input_tokens,
                "output_tokens": stopped.usage.output_tokens,
                "reasoning_tokens": stopped.usage.reasoning_tokens,
            },
        },
    }


def _describe_plan(plan: Plan) -> dict[str, Json]:
    return {"steps": [_describe_step(step) for step in plan.steps], "scores": plan.scores}


def _describe_step(step: Step) -> dict[str, Json]:
    return {
        "step": step.id,
        "worker": step.worker,
        "role": step.role,
        "sees": step.sees,
        "subtask": step.instruction,
        "alternates": step.alternates,
    }


def _describe_estimate(estimate: Estimate) -> dict[str, Json]:
    return {
        "cost_usd": estimate.cost_usd,
        "cost_usd_at_most": estimate.cost_usd_at_most,
        "seconds": None if estimate.seconds is None else round(estimate.seconds, 4),
        "basis": dataclasses.asdict(estimate.basis),
    }
