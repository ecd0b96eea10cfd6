"""The selector: argmax over allowed workers, whatever the order of the pool, and no head that does not fit."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heads import DIM, Texts, make_head, models
from runs import USAGE, make_pool
from torafugu.errors import ModelError, PlanError, WorkerError
from torafugu.events import Planned
from torafugu.orchestrate import Run, orchestrate
from torafugu.orchestrate.selector import Selector
from torafugu.pool import Failing, Scripted
from torafugu.types import Answer, Message, Plan, Request

WORKERS = ("ant", "bee", "cat", "dog")
QUESTIONS = [f"{kind} {i}" for kind in ("sum", "spell", "who") for i in range(10)]
subsets = st.sets(st.sampled_from(WORKERS))


def ask(text: str, allowed: frozenset[str] | None = None) -> Request:
    return Request(model="fugu", messages=(Message(role="user", content=text),), allowed=allowed)


def decide(selector: Selector, request: Request) -> Plan:
    decision = asyncio.run(selector.decide(Run(request, run_id="r")))
    assert isinstance(decision, Plan)
    return decision


@given(st.sampled_from(QUESTIONS), subsets, subsets)
def test_masked_workers_are_never_chosen(question: str, in_pool: set[str], allowed: set[str]) -> None:
    """Only workers that are in the pool and allowed are planned or stand by; who was kept out is on record."""
    selector = Selector(make_head(WORKERS), Texts(), models(sorted(in_pool)))
    request = ask(question, frozenset(allowed | {"stranger"}))
    if not in_pool & allowed:
        with pytest.raises(PlanError, match="no worker of the pool is allowed"):
            decide(selector, request)
        return
    plan = decide(selector, request)
    (step,) = plan.steps
    assert {step.worker, *step.alternates} == in_pool & allowed
    assert len(step.alternates) == len(in_pool & allowed) - 1
    assert plan.masked == tuple(sorted(in_pool - allowed))
    assert plan.scores is not None
    assert list(plan.scores) == [step.worker, *step.alternates]
    assert sum(plan.scores.values()) == pytest.approx(1)


@given(st.permutations(WORKERS), st.permutations(WORKERS))
def test_order_does_not_matter(pool_order: list[str], other_order: list[str]) -> None:
    """The order of the workers in the pool file changes no choice."""
    head = make_head(WORKERS)
    one = Selector(head, Texts(), models(pool_order))
    other = Selector(head, Texts(), models(other_order))
    assert [decide(one, ask(q)).steps for q in QUESTIONS] == [decide(other, ask(q)).steps for q in QUESTIONS]


def test_it_is_a_choice() -> None:
    """The head really chooses: different questions go to different workers, the same question to the same one."""
    selector = Selector(make_head(WORKERS), Texts(), models(WORKERS))
    first = [decide(selector, ask(q)).steps[0].worker for q in QUESTIONS]
    assert len(set(first)) > 1
    assert first == [decide(selector, ask(q)).steps[0].worker for q in QUESTIONS]


def test_plan_is_one_final_step() -> None:
    """It plans one step, whose tokens may be streamed, and notes what it read; after the reply it answers with it."""

    async def main() -> Run:
        pool = make_pool({worker: Scripted([worker], usage=USAGE) for worker in WORKERS})
        return await orchestrate(ask("sum 1"), Selector(head, encoder, models(WORKERS)), pool)

    head, encoder = make_head(WORKERS), Texts()
    run = asyncio.run(main())
    planned = run.events[1]
    assert isinstance(planned, Planned)
    (step,) = planned.plan.steps
    assert (step.id, step.is_final, step.instruction, step.sees) == (0, True, None, ())
    assert planned.plan.notes["tokens_read"] == 5
    assert planned.plan.notes["tokens_total"] == 6
    assert planned.plan.notes["encode_ms"] >= 0
    assert encoder.read == ["sum 1"]  # once per request
    assert run.answer is not None
    assert run.answer.text == run.answer.worker == step.worker
    assert run.cost_usd == Decimal("0.002")
    assert asyncio.run(Selector(head, encoder, models(WORKERS)).decide(run)) == Answer(step=0)


def test_failover_goes_by_score() -> None:
    """When the chosen worker fails, the next best takes over."""
    scores = decide(Selector(make_head(WORKERS), Texts(), models(WORKERS)), ask("sum 1")).scores
    assert scores is not None
    best, second, *_ = scores
    down = WorkerError("down", worker=best, code="server_error")
    backends = {w: Failing(down) if w == best else Scripted([w], usage=USAGE) for w in WORKERS}
    selector = Selector(make_head(WORKERS), Texts(), models(WORKERS))
    run = asyncio.run(orchestrate(ask("sum 1"), selector, make_pool(backends)))
    assert run.workers == (best, second)
    assert run.answer is not None
    assert run.answer.worker == second


def test_identity() -> None:
    """The policy's id names the weights that decided."""
    head = make_head(WORKERS)
    assert Selector(head, Texts(), models(WORKERS)).id == f"fugu@{head.id}"
    assert head.id != make_head(WORKERS, seed=1).id


def test_worker_that_left_the_pool() -> None:
    """A worker that the head knows and the pool no longer has is masked, and the others are chosen among as before."""
    head = make_head(WORKERS)
    everyone = Selector(head, Texts(), models(WORKERS))
    fewer = Selector(head, Texts(), models(["bee", "dog"]))
    for question in QUESTIONS:
        whole = decide(everyone, ask(question)).scores
        assert whole is not None
        expected = [worker for worker in whole if worker in ("bee", "dog")]
        (step,) = decide(fewer, ask(question)).steps
        assert [step.worker, *step.alternates] == expected


def test_unknown_worker() -> None:
    """A worker that the head was not trained for is not guessed at: the error names it and says what to do."""
    with pytest.raises(ModelError, match="trained for ant, bee, cat, dog; the pool also has eel: train a head"):
        Selector(make_head(WORKERS), Texts(), models([*WORKERS, "eel"]))


def test_changed_model() -> None:
    """When another model stands behind a worker's id, what was learned of it is void."""
    with pytest.raises(ModelError, match="'bee' was 'bee-1' in training and is 'bee-2' in the pool: train"):
        Selector(make_head(WORKERS), Texts(), {**models(WORKERS), "bee": "bee-2"})


def test_other_encoder() -> None:
    """A head reads the states of the encoder it was trained on, and no other's."""
    with pytest.raises(ModelError, match="states of 'texts'; this is 'other': train a head"):
        Selector(make_head(WORKERS), Texts("other"), models(WORKERS))
    with pytest.raises(ModelError, match=f"states of {DIM} numbers; 'texts' gives {DIM + 1}"):
        Selector(make_head(WORKERS), Texts(dim=DIM + 1), models(WORKERS))
