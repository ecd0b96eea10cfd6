"""The selector: argmax over allowed workers, whatever the order of the pool, and no head that does not fit."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heads import DIM, Texts, make_head, models
from runs import USAGE, make_pool
from torafugu.errors import ModelError, PlanError, WorkerError
from torafugu.events import Planned
from torafugu.orchestrate import Run, orchestrate
from torafugu.orchestrate.head import Card, FeatureMap, Head, WorkerIdentity
from torafugu.orchestrate.selector import SCALE_METRIC, Selector, advantage
from torafugu.pool import Failing, Prices, Scripted, WorkerSpec
from torafugu.pool.prices import Price, resolve_price
from torafugu.train.selector import measure_scale
from torafugu.types import Answer, Message, Plan, Request, Warm

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


# ---- a session that is warm somewhere


def certain_head(scores: Mapping[str, float], **metrics: Any) -> Head:
    """These probabilities, whatever the question."""
    features = FeatureMap(np.zeros(DIM, np.float32), np.zeros((DIM, 1), np.float32))
    weight = np.array([[0.0, math.log(score)] for score in scores.values()], np.float32)
    identities = tuple(WorkerIdentity(worker, f"{worker}-1") for worker in scores)
    return Head.create(
        features, weight, Card(encoder="texts", workers=identities, training={}, metrics=metrics, baselines={})
    )


def weigh(
    scores: Mapping[str, float], warm: Warm | None, *, allowed: frozenset[str] | None = None, **options: Any
) -> Plan:
    metrics = {SCALE_METRIC: options.pop("scale")} if "scale" in options else {}
    selector = Selector(certain_head(scores, **metrics), Texts(), models(list(scores)), **options)
    request = Request(model="fugu", messages=(Message(role="user", content="q"),), allowed=allowed, warm=warm)
    return decide(selector, request)


def worker_of(plan: Plan) -> str:
    return plan.steps[0].worker


def test_a_session_keeps_its_worker_within_noise() -> None:
    """A worker that is hardly better is not worth the cache; the plan says what was weighed, and who is next."""
    scores = {"ant": 0.51, "bee": 0.49}
    assert worker_of(weigh(scores, None)) == "ant"
    assert weigh(scores, None).notes["session"] == "cold"
    plan = weigh(scores, Warm(worker="bee", input_tokens=36_000), switch_margin=0.1)
    (step,) = plan.steps
    assert (step.worker, step.alternates) == ("bee", ("ant",))
    assert {key: value for key, value in plan.notes.items() if key.startswith("session")} == {
        "session": "kept",
        "session_worker": "bee",
        "session_gain": 0.02,
        "session_margin": pytest.approx(0.1 * 32_400 / 36_400, abs=1e-4),
        "session_tokens_lost": 32_400,
    }
    assert plan.scores == weigh(scores, None).scores


def test_a_clearly_better_worker_is_worth_a_switch() -> None:
    """So is any better one for a session that has hardly begun, and where no margin is asked for."""
    warm = Warm(worker="bee", input_tokens=1_000_000)
    plan = weigh({"ant": 0.8, "bee": 0.2}, warm, switch_margin=0.1)
    assert worker_of(plan) == "ant"
    assert (plan.notes["session"], plan.notes["session_gain"]) == ("switched", 0.6)
    noise = {"ant": 0.51, "bee": 0.49}
    assert worker_of(weigh(noise, Warm(worker="bee", input_tokens=10), switch_margin=0.1)) == "ant"
    assert worker_of(weigh(noise, Warm(worker="bee", input_tokens=0), switch_margin=0.1)) == "ant", "it keeps no cache"
    assert worker_of(weigh(noise, warm, switch_margin=0.0)) == "ant"


def test_the_warm_worker_that_is_best_is_kept() -> None:
    """Nothing is lost and nothing gained."""
    plan = weigh({"ant": 0.6, "bee": 0.4}, Warm(worker="ant", input_tokens=5_000))
    assert worker_of(plan) == "ant"
    assert plan.notes["session"] == "kept"
    assert (plan.notes["session_gain"], plan.notes["session_tokens_lost"]) == (0.0, 0)


def test_a_worker_that_may_not_be_called_is_not_kept() -> None:
    """However warm its cache: masked, or gone from the pool."""
    scores = {"ant": 0.4, "bee": 0.3, "cat": 0.3}
    plan = weigh(scores, Warm(worker="ant", input_tokens=90_000), allowed=frozenset({"bee", "cat"}))
    assert worker_of(plan) in ("bee", "cat")
    assert (plan.notes["session"], plan.notes["session_worker"], plan.masked) == ("switched", "ant", ("ant",))
    assert worker_of(weigh(scores, Warm(worker="eel", input_tokens=90_000))) == "ant"


def test_other_workers_have_no_part_in_it() -> None:
    """How much better one of two is does not depend on how many others there are."""
    two = weigh({"ant": 0.6, "bee": 0.4}, Warm(worker="bee", input_tokens=1)).notes["session_gain"]
    many = {"ant": 0.06, "bee": 0.04, **{f"w{n}": 0.015 for n in range(60)}}
    assert weigh(many, Warm(worker="bee", input_tokens=1)).notes["session_gain"] == two == 0.2


@pytest.mark.parametrize(("scale", "kept"), [(0.05, True), (2.0, False), (0.0, True)])
def test_a_heads_own_scale_says_what_its_preference_is_worth(scale: float, kept: bool) -> None:
    """Of an overconfident head, much preference is little reward; of a flat one, little is much."""
    plan = weigh({"ant": 0.6, "bee": 0.4}, Warm(worker="bee", input_tokens=100_000), scale=scale, switch_margin=0.1)
    assert plan.notes["session_gain"] == pytest.approx(0.2 * scale)
    assert (plan.notes["session"] == "kept") is kept


@pytest.mark.parametrize("scale", [-0.1, float("inf"), "much", True])
def test_a_damaged_scale(scale: object) -> None:
    """A card that says nonsense does not load."""
    with pytest.raises(ModelError, match="reward_per_advantage"):
        weigh({"ant": 0.6, "bee": 0.4}, None, scale=scale)


def test_prices_decide_what_a_cache_is_worth() -> None:
    """Reading a session anew at a dear worker costs more, at one ten times cheaper nothing; free ones cost time."""
    prices = {"ant": "1", "bee": "3", "cat": "0.3", "dog": "0", "elk": None}

    def price_of(worker: str) -> Price | None:
        price = prices[worker]
        declared = None if price is None else Prices(input=Decimal(price), output=Decimal(1))
        return resolve_price(WorkerSpec(id=worker, dialect="scripted", model=worker, prices=declared))

    def lost(best: str, warm: str) -> int:
        scores = {best: 0.51, warm: 0.49}
        tokens: int = weigh(scores, Warm(worker=warm, input_tokens=10_000), price_of=price_of).notes[
            "session_tokens_lost"
        ]
        return tokens

    assert lost("bee", "ant") == 29_000
    assert lost("ant", "bee") == round(10_000 * (1 / 3 - 0.1))
    assert lost("cat", "bee") == 0
    assert lost("dog", "bee") == 0
    assert lost("bee", "dog") == lost("elk", "bee") == lost("bee", "elk") == 9_000


def test_a_session_of_unknown_size_asks_for_more() -> None:
    """What the worker did not count is taken from the encoder's count; when it has none either, the margin is whole."""
    scores = {"ant": 0.51, "bee": 0.49}
    counted = weigh(scores, Warm(worker="bee"), switch_margin=0.1)
    assert counted.notes["session_tokens_lost"] == round(0.9 * counted.notes["tokens_total"])

    class Uncounted(Texts):
        async def encode(self, messages: Any) -> Any:
            encoding = await super().encode(messages)
            return type(encoding)(hidden=encoding.hidden, tokens_read=encoding.tokens_read, tokens_total=None)

    selector = Selector(certain_head(scores), Uncounted(), models(list(scores)), switch_margin=0.1)
    plan = decide(selector, Request(model="fugu", messages=ask("q").messages, warm=Warm(worker="bee")))
    assert (worker_of(plan), plan.notes["session_tokens_lost"], plan.notes["session_margin"]) == ("bee", None, 0.1)


def test_the_scale_is_the_reward_that_preference_came_to() -> None:
    """`measure_scale` finds it, of what is held out; None where nothing but one worker is ever chosen."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((2_000, 4))
    probabilities = np.exp(weight) / np.exp(weight).sum(1, keepdims=True)
    best = probabilities.max(1, keepdims=True)
    rewards = 0.7 * (1 - advantage(best, probabilities)) + rng.standard_normal((2_000, 4)) * 0.1
    assert measure_scale(probabilities, rewards) == pytest.approx(0.7, abs=0.03)
    assert measure_scale(probabilities, np.where(rng.random((2_000, 4)) < 0.3, np.nan, rewards)) == pytest.approx(
        0.7, abs=0.03
    )
    assert measure_scale(probabilities, -rewards) == 0.0, "a preference for the worse is worth nothing"
    assert measure_scale(np.tile([0.7, 0.3], (9, 1)), np.ones((9, 2))) is None
