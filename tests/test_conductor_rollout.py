"""Episodes to learn from: what texts are rewarded with, who waits for whom, and which seed each text has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from runs import USAGE, Waiting
from torafugu.envs.composed import composed_tasks, find_workflow
from torafugu.errors import ConfigError, GradeError, ModelError, WorkerError
from torafugu.grade.by_task import TaskGrader
from torafugu.grade.grader import Grader, Verdict
from torafugu.grade.task import Task
from torafugu.orchestrate.conductor import ConductorConfig
from torafugu.pool import Backend, Failing, Prices, Scripted, open_pool
from torafugu.pool.home import make_home
from torafugu.pool.spec import Limits, PoolSpec, WorkerSpec
from torafugu.train.conductor_rollout import (
    CONDUCTOR,
    Asked,
    Attempt,
    Desk,
    Question,
    RolloutConfig,
    Rollouts,
    Written,
    add_conductor,
)
from torafugu.train.demonstrations import write_plan
from torafugu.train.grpo import RewardConfig
from torafugu.types import Reply
from workflows import write

CONFIG = RolloutConfig(
    conductor=ConductorConfig(worker=CONDUCTOR, prompt="brief", attempts=1, on_error="fail", recursion=False)
)
TWO_ROUNDS = replace(CONFIG, conductor=replace(CONFIG.conductor, again=1), effort="xhigh")
RETURN = "subtasks: []\nmodel_id: []\naccess_list: []"
TO_A, TO_B, TO_C = (write((k, "answer", [])) for k in range(3))


class Told:
    """A `Writer` that writes what it is told, and keeps what it was asked."""

    def __init__(self, text_of: Callable[[Asked], str], *, cut: str = "CUT") -> None:
        self._text_of, self._cut = text_of, cut
        self.batches: list[list[Asked]] = []
        self.temperatures: list[float] = []

    def write(self, asked: Sequence[Asked], *, temperature: float) -> list[Written]:
        self.batches.append(list(asked))
        self.temperatures.append(temperature)
        texts = [self._text_of(one) for one in asked]
        tokens = np.arange(3, dtype=np.int32)
        return [
            Written(
                text=t, prompt=tokens, tokens=tokens, logprobs=np.zeros(3, np.float32), has_ended=self._cut not in t
            )
            for t in texts
        ]


def by_question(texts: Mapping[str, str | Sequence[str]]) -> Callable[[Asked], str]:
    """Texts by what the question holds; of several, one for each round."""

    def text_of(asked: Asked) -> str:
        (found,) = [text for key, text in texts.items() if key in asked.messages[0].text]
        return found if isinstance(found, str) else found[len(asked.messages) // 2]

    return text_of


def make_question(name: str = "q", **fields: Any) -> Question:
    """The answer is 42."""
    task = {"id": name, "family": "f", "category": "", "dataset": "", "prompt": f"Question {name}.", "gold": "42"}
    meta = {"grader": "exact"}
    return Question(task=Task(**({**task, "split": "train", "meta": meta} | fields)), workers=("a", "b", "c"))


def answer(text: str = "42", **options: Any) -> Scripted:
    return Scripted(lambda query: f"<answer>{text}</answer>", usage=USAGE, **options)


def right_and_wrong() -> dict[str, Backend]:
    return {"a": answer(), "b": answer("41"), "c": answer("40")}


@asynccontextmanager
async def open_rollouts(
    backends: Mapping[str, Backend],
    writer: Any,
    config: RolloutConfig = CONFIG,
    *,
    grader: Grader | None = None,
    **limits: Any,
) -> AsyncIterator[Rollouts]:
    desk = Desk(writer)
    prices = Prices(input=Decimal(1), output=Decimal(10))  # a call of `answer` costs 0.002
    spec = PoolSpec(
        worker=tuple(
            WorkerSpec(id=id, dialect="local", model=id, prices=prices, limits=Limits(**limits)) for id in backends
        ),
        max_attempts=1,
    )
    makers = {"local": lambda spec: desk if spec.id == CONDUCTOR else backends[spec.id]}
    async with open_pool(add_conductor(spec), makers=makers) as pool:
        yield Rollouts(pool, desk, grader or TaskGrader(), config)


def play(
    backends: Mapping[str, Backend],
    writer: Any,
    jobs: Sequence[tuple[Question, int]],
    config: RolloutConfig = CONFIG,
    *,
    rounds: int | None = None,
    **limits: Any,
) -> list[Attempt]:
    async def main() -> list[Attempt]:
        async with asyncio.timeout(30), open_rollouts(backends, writer, config, **limits) as rollouts:
            return await rollouts.play(jobs, rounds=rounds)

    return asyncio.run(main())


def rewards_of(attempts: Sequence[Attempt]) -> list[tuple[float | None, ...]]:
    return [attempt.rewards for attempt in attempts]


# --- rewards ---


@pytest.mark.parametrize(("correct", "rewards"), [(1.0, [1.0, 0.5, 0.0]), (1.5, [1.5, 0.5, 0.0])])
def test_home_pool(correct: float, rewards: list[float]) -> None:
    """Executed on the home pool, a gold workflow is worth 1, one with workers who cannot do it 0.5, garbage 0."""
    workers = ("exact-math", "text-ops", "facts")
    tasks = composed_tasks(n=3, seed=4, families=["value_to_day", "legs_paid", "value_belled"])
    questions = [Question(task=task, workers=workers) for task in tasks]
    config = replace(CONFIG, reward=RewardConfig(correct=correct))
    golds = [gold for task in tasks if (gold := find_workflow(task.prompt)) is not None]
    indices = [[workers.index(worker) for worker in gold.workers] for gold in golds]
    texts = [
        write_plan(golds[0], indices[0], questions[0], config.conductor),
        write_plan(golds[1], [(i + 1) % 3 for i in indices[1]], questions[1], config.conductor),
        "I would rather talk about the weather.",
    ]
    backends = {id: make_home(WorkerSpec(id=id, dialect="home", model=id)) for id in workers}
    writer = Told(by_question({task.prompt: text for task, text in zip(tasks, texts, strict=True)}))
    attempts = play(backends, writer, [(question, 0) for question in questions], config)
    assert rewards_of(attempts) == [(reward,) for reward in rewards]
    assert [attempt.is_valid for attempt in attempts] == [True, True, False]
    assert [attempt.episode.score for attempt in attempts] == [1, 0, 0]
    assert attempts[0].called == golds[0].workers
    assert attempts[2].episode.fault == "policy"


def test_text_that_was_cut_off() -> None:
    """A text that was cut off is no workflow, even if what is there of it could be read as one."""
    (attempt,) = play(right_and_wrong(), Told(lambda asked: TO_A + "CUT"), [(make_question(), 0)])
    assert (attempt.rewards, attempt.episode.code) == ((0.0,), "plan_cut_off")


def test_somebody_else_failed() -> None:
    """Where a worker or the grader fails, no text of the episode has a reward; other episodes keep theirs."""
    gone = WorkerError("gone", worker="b", code="unavailable")
    jobs = [
        (make_question("fine"), 0),
        (make_question("failing"), 0),
        (make_question("ungraded", meta={"grader": "nobody"}), 0),
    ]
    writer = Told(by_question({"fine": TO_A, "failing": TO_B, "ungraded": TO_A}))
    attempts = play({"a": answer(), "b": Failing(gone), "c": answer()}, writer, jobs)
    assert rewards_of(attempts) == [(1.0,), (None,), (None,)]
    assert [attempt.episode.fault for attempt in attempts] == [None, "worker", "grader"]
    assert [attempt.episode.score for attempt in attempts] == [1, None, None]


def test_second_round_fails() -> None:
    """A worker that fails in the second round takes the first round's reward along: the credit is not known."""
    gone = WorkerError("gone", worker="b", code="unavailable")
    writer = Told(by_question({"q": [TO_A, TO_B]}))
    (attempt,) = play({"a": answer(), "b": Failing(gone), "c": answer()}, writer, [(make_question(), 0)], TWO_ROUNDS)
    assert attempt.rewards == (None, None)


class Unsure:
    """A `Grader` that can make nothing of 41."""

    def grade(self, task: Task, reply: Reply) -> Verdict:
        if "41" in reply.text:
            raise GradeError("41?")
        return TaskGrader().grade(task, reply)


def test_a_round_that_nobody_can_grade() -> None:
    """Where an earlier round's result has no verdict its credit is not known: no text has a reward, though the run was
    scored."""

    async def main() -> list[Attempt]:
        writer = Told(by_question({"q": [TO_B, TO_A]}))
        async with open_rollouts(right_and_wrong(), writer, TWO_ROUNDS, grader=Unsure()) as rollouts:
            return await rollouts.play([(make_question(), 0)])

    (attempt,) = asyncio.run(main())
    assert (attempt.episode.score, attempt.rewards) == (1, (None, None))


def test_prices() -> None:
    """Calls of workers cost what the config says, those of the conductor nothing."""
    two_steps = write((1, "first", []), (0, "then", [0]))
    config = replace(CONFIG, reward=RewardConfig(per_call=0.01, per_usd=10.0))
    (attempt,) = play(right_and_wrong(), Told(lambda asked: two_steps), [(make_question(), 0)], config)
    assert attempt.cost_usd == pytest.approx(0.004)
    assert attempt.rewards == (pytest.approx(1 - 0.02 - 0.04),)


def test_price_of_a_worker_is_not_known() -> None:
    """Where rewards hang on costs, a worker whose cost is not known ends the run with an error of its own."""
    config = replace(CONFIG, reward=RewardConfig(per_usd=1.0))
    backends = {**right_and_wrong(), "a": Scripted(lambda query: "<answer>42</answer>")}  # tells no usage
    with pytest.raises(ConfigError, match="give every worker a price"):
        play(backends, Told(lambda asked: TO_A), [(make_question(str(k)), k) for k in range(3)], config)


# --- rounds ---


@pytest.mark.parametrize(
    ("texts", "rewards", "scores"),
    [
        ([TO_B, TO_A], (0.625, 1.0), (0, 1)),  # 0.75 * 0.5 + 0.25 * 1
        ([TO_A, TO_B], (0.875, 0.5), (1, 0)),
        ([TO_A, RETURN], (1.0, 1.0), (1,)),
        ([TO_B, RETURN], (0.5, 0.5), (0,)),
        ([TO_A, "garbage"], (1.0, 0.0), (1,)),
        (["garbage", TO_A], (0.0,), ()),
    ],
)
def test_credit_of_rounds(texts: list[str], rewards: tuple[float, ...], scores: tuple[float, ...]) -> None:
    """A round is credited with a share of what the next made of it; returning a result is worth what it is worth, and a
    later text that is no workflow nothing, though the run answers with the result. What a text had before it is what
    the workflow before it came to, without a share of anything."""
    (attempt,) = play(right_and_wrong(), Told(by_question({"q": texts})), [(make_question(), 0)], TWO_ROUNDS)
    assert attempt.rewards == rewards
    assert attempt.scores == scores
    assert attempt.before == ((None, 0.5 + 0.5 * scores[0]) if scores else (None,))
    assert len(attempt.texts) == len(rewards)


@pytest.mark.parametrize(
    ("texts", "rewards"), [([TO_A, RETURN], (0.98, 1.0)), ([TO_B, TO_B], (0.48, 0.48)), ([TO_A, TO_A], (0.98, 0.98))]
)
def test_prices_of_rounds(texts: list[str], rewards: tuple[float, ...]) -> None:
    """Every workflow pays for itself: to let a result stand costs nothing, to plan the same again costs it again. What
    was shown, and what came of a text, are counted without prices."""
    config = replace(TWO_ROUNDS, reward=RewardConfig(per_call=0.02))
    (attempt,) = play(right_and_wrong(), Told(by_question({"q": texts})), [(make_question(), 0)], config)
    assert attempt.rewards == pytest.approx(rewards)
    worth = 1.0 if texts[0] == TO_A else 0.5
    assert (attempt.before, attempt.values) == ((None, worth), (worth, worth))


def test_fewer_rounds() -> None:
    """Episodes may be given fewer rounds than their effort allows: nobody is asked again then."""
    writer = Told(by_question({"q": [TO_B, TO_A]}))
    (attempt,) = play(right_and_wrong(), writer, [(make_question(), 0)], TWO_ROUNDS, rounds=1)
    assert (len(attempt.texts), attempt.rewards) == (1, (0.5,))


def test_discount() -> None:
    """The share is the config's, where it names one."""
    writer = Told(by_question({"q": [TO_B, TO_A]}))
    (attempt,) = play(right_and_wrong(), writer, [(make_question(), 0)], replace(TWO_ROUNDS, discount=0.5))
    assert attempt.rewards == (0.75, 1.0)


def test_second_attempt_at_a_workflow() -> None:
    """A text that was none is worth 0, the next one, which mended it, what it came to."""
    config = replace(CONFIG, conductor=replace(CONFIG.conductor, attempts=2))
    (attempt,) = play(right_and_wrong(), Told(by_question({"q": ["garbage", TO_A]})), [(make_question(), 0)], config)
    assert attempt.rewards == (0.0, 1.0)
    assert attempt.episode.score == 1


# --- who waits for whom ---


def test_texts_are_written_together() -> None:
    """All first texts are one batch; the second round's are one too, for which the slowest worker is waited for, and
    episodes that are over are not. The temperature is the config's."""
    backends = {"a": answer(), "b": answer(latency_s=0.05), "c": answer(latency_s=0.01)}
    texts = {"quick": TO_A, "slow": TO_B, "other": TO_C, "over": "garbage", "last": [TO_B, TO_A]}
    writer = Told(by_question(texts))
    attempts = play(
        backends, writer, [(make_question(name), 7) for name in texts], replace(TWO_ROUNDS, temperature=0.3)
    )
    assert [len(batch) for batch in writer.batches] == [5, 4]
    assert [len(attempt.texts) for attempt in attempts] == [2, 2, 2, 1, 2]
    assert writer.temperatures == [0.3, 0.3]


def test_waiting_is_no_fault() -> None:
    """An episode may wait for its text for hours, as long as other episodes take."""

    async def main() -> list[Attempt]:
        loop = asyncio.get_running_loop()
        clock = loop.time

        def write_slowly(asked: Asked) -> str:
            loop.time = lambda: clock() + 20_000  # type: ignore[method-assign]
            return TO_A

        async with open_rollouts(right_and_wrong(), Told(write_slowly)) as rollouts:
            return await rollouts.play([(make_question(), 0)])

    assert rewards_of(asyncio.run(main())) == [(1.0,)]


def test_rounds_until_the_limit() -> None:
    """With three rounds and workers of different speed the batches go on until every episode has ended."""
    config = replace(CONFIG, conductor=replace(CONFIG.conductor, again=5), effort="max")
    texts = {f"q{k}.": [TO_C, *[TO_B, TO_A][: k % 3], RETURN] for k in range(1, 8)}
    backends = {"a": answer(), "b": answer("41", latency_s=0.02), "c": answer("40", latency_s=0.01)}
    writer = Told(by_question(texts))
    attempts = play(backends, writer, [(make_question(f"q{k}"), k) for k in range(1, 8)], config)
    assert [len(attempt.plans) for attempt in attempts] == [2, 3, 1, 2, 3, 1, 2]
    assert [len(batch) for batch in writer.batches] == [7, 7, 5]


def test_many_at_once() -> None:
    """More episodes than a worker takes at once, or lets wait when it serves, are played; none is refused."""
    jobs = [(make_question(str(k % 10)), k) for k in range(150)]
    backends = {**right_and_wrong(), "a": answer(latency_s=0.001)}
    attempts = play(backends, Told(lambda asked: TO_A), jobs, concurrency=4, queue=1)
    assert rewards_of(attempts) == [(1.0,)] * 150
    assert [attempt.question.task.id for attempt in attempts] == [str(k % 10) for k in range(150)]


def test_nothing_to_play() -> None:
    """No questions are no attempts, and the next ones are played."""

    async def main() -> None:
        async with asyncio.timeout(30), open_rollouts(right_and_wrong(), Told(lambda asked: TO_A)) as rollouts:
            assert await rollouts.play([]) == []
            assert rewards_of(await rollouts.play([(make_question(), 0)])) == [(1.0,)]

    asyncio.run(main())


# --- seeds ---


def test_seeds() -> None:
    """A text's seed comes from its episode's alone, not from who else plays; each text of an episode has its own."""
    writer = Told(lambda asked: write((0, f"answer {asked.seed}", [])))
    jobs = [(make_question("x"), 1), (make_question("x"), 2), (make_question("y"), 3)]
    texts = [[t.text for t in attempt.texts] for attempt in play(right_and_wrong(), writer, jobs, TWO_ROUNDS)]
    assert len({text for both in texts for text in both}) == 6
    again = play(right_and_wrong(), writer, list(reversed(jobs)), TWO_ROUNDS)
    assert [[t.text for t in attempt.texts] for attempt in reversed(again)] == texts
    (alone,) = play(right_and_wrong(), writer, jobs[1:2], TWO_ROUNDS)
    assert [t.text for t in alone.texts] == texts[1]


# --- ends ---


def test_cancelled() -> None:
    """Cancelled, it ends the workers' calls and the conductors that wait; nothing of it runs on."""

    async def main() -> None:
        waiting = Waiting()
        writer = Told(by_question({"first": TO_B, "other": [TO_A, TO_A]}))
        async with open_rollouts({"a": answer(), "b": waiting, "c": answer()}, writer, TWO_ROUNDS) as rollouts:
            before = asyncio.all_tasks()
            jobs = [(make_question("first"), 0), (make_question("other"), 0)]
            playing = asyncio.create_task(rollouts.play(jobs))
            await waiting.called.wait()
            playing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await playing
            assert waiting.cancelled.is_set()
            assert asyncio.all_tasks() == before
            batches = len(writer.batches)
            (attempt,) = await rollouts.play([(make_question("other"), 0)])  # nothing is left of it
            assert attempt.rewards == (1.0, 1.0)
            assert [len(batch) for batch in writer.batches[batches:]] == [1, 1]

    asyncio.run(main())


def test_writer_fails() -> None:
    """When nothing can be written any more, that error ends all episodes and is told as it is."""

    class Broken:
        def write(self, asked: Sequence[Asked], *, temperature: float) -> list[Written]:
            raise ModelError("the model's scores are not numbers")

    with pytest.raises(ModelError, match="not numbers"):
        play(right_and_wrong(), Broken(), [(make_question(str(k)), k) for k in range(3)])


def test_name_of_the_conductor_is_taken() -> None:
    """A pool with a worker of the conductor's name is refused."""
    spec = PoolSpec(worker=(WorkerSpec(id=CONDUCTOR, dialect="scripted", model="x"),))
    with pytest.raises(ConfigError, match="take another one"):
        add_conductor(spec)


def test_desk_is_a_worker_like_others() -> None:
    """The conductor is asked as the policy asks it: with the workers of the question, in their order."""
    writer = Told(lambda asked: TO_A)
    question = replace(make_question("x"), workers=("c", "a"))
    config = replace(CONFIG, conductor=replace(CONFIG.conductor, names=True))
    (attempt,) = play(right_and_wrong(), writer, [(question, 0)], config)
    assert writer.batches[0][0].messages[0].text == "models: c, a\nsteps: 5\nQuestion x."
    assert attempt.called == ("c",)
