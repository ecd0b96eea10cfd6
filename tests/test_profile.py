"""`profile`: what every worker answers to every task, kept so that nothing that was paid for is asked twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from outcomes import read_rows
from torafugu.errors import ConfigError, WorkerError
from torafugu.grade.by_task import TaskGrader
from torafugu.grade.task import Task
from torafugu.pool import Pool, open_pool
from torafugu.pool.backend import Backend, Completion, Query
from torafugu.pool.home import home_pool_path
from torafugu.pool.pool import Member
from torafugu.pool.prices import resolve_price
from torafugu.pool.recorded import RecordedPrices, read_recorded
from torafugu.pool.scripted import Failing, Scripted
from torafugu.pool.spec import Limits, PoolSpec, Prices, Tags, WorkerSpec, read_pool
from torafugu.train.profile import Rate, Tally, estimate_cost_usd, find_rates, open_profile, plan_jobs, profile
from torafugu.types import Reply, Usage

CHEAP = Prices(input=Decimal(1), output=Decimal(2))
USAGE = Usage(input_tokens=100, output_tokens=50)  # 0.0002 USD at the price of CHEAP


def make_tasks(count: int = 4) -> list[Task]:
    return [
        Task(
            id=f"sum/{i}",
            family="sums",
            category="arithmetic",
            dataset="own",
            prompt=f"What is {i} + {i}?",
            gold=str(2 * i),
            split="train" if i else "test",
            meta={"grader": "exact"},
        )
        for i in range(count)
    ]


def make_spec(*ids: str, prices: Prices | None = CHEAP, model: str = "m") -> PoolSpec:
    return PoolSpec(
        worker=tuple(
            WorkerSpec(id=id, dialect="scripted", model=f"{model}-{id}", prices=prices, limits=Limits(concurrency=2))
            for id in ids
        ),
        max_attempts=1,
    )


def add(query: Query) -> Completion:
    """Right, and chatty about it."""
    number = int(query.messages[-1].text.split()[2])
    return Completion(text=f"I add.\n<answer> {2 * number} </answer>", finish_reason="stop", usage=USAGE)


def guess(query: Query) -> Completion:
    """Right on 0 + 0 only."""
    return Completion(text="0", finish_reason="stop", usage=USAGE)


def run(
    folder: Path,
    spec: PoolSpec,
    backends: dict[str, Backend],
    *,
    tasks: list[Task] | None = None,
    repeats: int = 1,
    max_usd: Decimal | None = None,
    progress: Callable[[Tally], None] | None = None,
) -> Tally:
    """As the command does: open, plan, run."""
    chosen = make_tasks() if tasks is None else tasks
    done = open_profile(folder, chosen, spec, find_rates(spec.worker))
    jobs = plan_jobs(chosen, [worker.id for worker in spec.worker], repeats, done)
    pool = Pool(
        [Member(spec=w, backend=backends[w.id], price=resolve_price(w)) for w in spec.worker],
        max_attempts=spec.max_attempts,
    )
    return asyncio.run(profile(jobs, pool, TaskGrader(), folder, max_usd=max_usd, progress=progress))


def keys_of(folder: Path) -> list[tuple[object, object, object]]:
    return [(row["qid"], row["model"], row["k"]) for row in read_rows(folder / "outcomes.jsonl")]


def test_every_worker_answers_every_task_n_times(tmp_path: Path) -> None:
    """There is one row for each task, worker and repetition, with verdict, answer, tokens, cost and latency."""
    spec = make_spec("adder", "guesser")
    tally = run(tmp_path, spec, {"adder": Scripted(add), "guesser": Scripted(guess)}, repeats=2)
    assert sorted(keys_of(tmp_path)) == sorted(
        (task.id, worker, k) for task in make_tasks() for worker in ("adder", "guesser") for k in (0, 1)
    )
    row = next(r for r in read_rows(tmp_path / "outcomes.jsonl") if (r["qid"], r["model"]) == ("sum/3", "adder"))
    assert (row["correct"], row["answer"], row["in_tokens"], row["out_tokens"]) == (1.0, "6", 100, 50)
    assert row["cost_usd"] == 0.0002
    assert 0 <= float(str(row["latency_s"])) < 10
    assert tally.done == 16
    assert tally.cost_usd == Decimal("0.0032")
    assert {worker: sum(scores) for worker, scores in tally.correct.items()} == {"adder": 8, "guesser": 2}
    assert tally.stopped_by is None


def test_the_folder_is_a_recorded_set(tmp_path: Path) -> None:
    """What was profiled is read back by `fugu train` and `fugu eval`: questions, outcomes, texts, models and prices."""
    run(tmp_path, make_spec("adder", "guesser"), {"adder": Scripted(add), "guesser": Scripted(guess)}, repeats=2)
    recorded = read_recorded(tmp_path, with_texts=True)
    assert recorded.workers == ("adder", "guesser")
    assert recorded.models == {"adder": "m-adder", "guesser": "m-guesser"}
    assert recorded.prices["adder"] == RecordedPrices(Decimal(1), Decimal(2))
    assert [(q.qid, q.split, q.gold, q.family, q.prompt) for q in recorded.questions] == [
        (t.id, t.split, t.gold, t.family, t.prompt) for t in make_tasks()
    ]
    assert recorded.texts["sum/3"] == {"adder": "I add.\n<answer> 6 </answer>", "guesser": "0"}
    assert len(recorded.samples["sum/3", "adder"]) == 2


def test_correct_is_yes_or_no_where_a_grader_gives_part_marks(tmp_path: Path) -> None:
    """A grader's partial score does not leak into `correct`: accuracy is the share of right answers."""
    task = Task(
        id="gym/1",
        family="spell_backward",
        category="text",
        dataset="home",
        prompt="Spell this word backward: edcba",
        gold="abcde",
        split="train",
        meta={"grader": "gym", "gym": {}},
    )
    near = Reply(worker="near", text="abcdx", finish_reason="stop")
    assert 0 < TaskGrader().grade(task, near).score < 1
    run(tmp_path, make_spec("near"), {"near": Scripted(lambda query: "abcdx")}, tasks=[task])
    assert [row["correct"] for row in read_rows(tmp_path / "outcomes.jsonl")] == [0.0]


def test_the_home_pool_can_be_profiled(tmp_path: Path) -> None:
    """The shipped workers answer, are graded and priced, without a key or a network."""

    async def go() -> Tally:
        spec = read_pool(home_pool_path())
        jobs = plan_jobs(
            make_tasks(2),
            [worker.id for worker in spec.worker],
            1,
            open_profile(tmp_path, make_tasks(2), spec, find_rates(spec.worker)),
        )
        async with open_pool(spec) as pool:
            return await profile(jobs, pool, TaskGrader(), tmp_path)

    tally = asyncio.run(go())
    assert tally.done == 10
    assert not tally.failures
    assert tally.correct["exact-math"] == [1.0, 1.0]
    assert tally.cost_usd > 0


def test_an_interrupted_profile_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Broken off after three answers, the second run asks for the others only, and each row is there once."""

    class Interrupted(Exception):
        pass

    def break_off(tally: Tally) -> None:
        if tally.done == 3:
            raise Interrupted

    spec, first, second, tasks = make_spec("adder", "guesser"), Scripted(add), Scripted(add), make_tasks(40)
    with pytest.raises(Interrupted):
        run(tmp_path, spec, {"adder": first, "guesser": Scripted(guess)}, tasks=tasks, progress=break_off)
    kept = keys_of(tmp_path)
    assert 3 <= len(kept) < 80
    assert (tmp_path / "texts.jsonl").exists()
    tally = run(tmp_path, spec, {"adder": second, "guesser": Scripted(guess)}, tasks=tasks)
    assert tally.done == 80 - len(kept)
    assert len(second.queries) == 40 - sum(worker == "adder" for _, worker, _ in kept)
    assert len(keys_of(tmp_path)) == len(set(keys_of(tmp_path))) == 80
    assert len(read_rows(tmp_path / "texts.jsonl")) == 40


@pytest.mark.parametrize("name", ["outcomes.jsonl", "answers.jsonl"])
@pytest.mark.parametrize("left", [0.5, 0.0])
def test_a_torn_last_line_is_asked_again(left: float, name: str, tmp_path: Path) -> None:
    """A process killed while it wrote leaves half a row; the next run drops it and has every row whole at its end."""
    spec, backends = make_spec("adder"), {"adder": Scripted(add)}
    run(tmp_path, spec, backends)
    path = tmp_path / name
    *whole, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole) + last[: int(len(last) * left)])
    run(tmp_path, spec, backends)
    assert sorted(keys_of(tmp_path)) == sorted((task.id, "adder", 0) for task in make_tasks())
    if name == "outcomes.jsonl":
        assert len(read_rows(tmp_path / "texts.jsonl")) == 4


def test_a_file_of_half_a_line_is_emptied(tmp_path: Path) -> None:
    """Killed within the very first row, a profile begins anew."""
    run(tmp_path, make_spec("adder"), {"adder": Scripted(add)})
    (tmp_path / "outcomes.jsonl").write_bytes(b'{"qid":"sum/0","mo')
    run(tmp_path, make_spec("adder"), {"adder": Scripted(add)})
    assert len(keys_of(tmp_path)) == 4


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    """A row in the middle that is no outcome is an error with file and line, not a traceback."""
    run(tmp_path, make_spec("adder"), {"adder": Scripted(add)})
    path = tmp_path / "outcomes.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"garbage\n" + b"".join(lines[1:]))
    with pytest.raises(ConfigError, match=r"outcomes\.jsonl: line 2"):
        run(tmp_path, make_spec("adder"), {"adder": Scripted(add)})


def test_a_failed_call_is_counted_and_asked_again(tmp_path: Path) -> None:
    """A worker's fault leaves no row, neither right nor wrong; the next run asks for just these."""
    down = WorkerError("down", worker="shaky", code="server_error")
    spec = make_spec("shaky")
    tally = run(tmp_path, spec, {"shaky": Failing(down, times=3, then=Scripted(add))})
    assert tally.failures == {"shaky server_error": 3}
    assert tally.done == 4
    assert len(keys_of(tmp_path)) == 1
    again = run(tmp_path, spec, {"shaky": Scripted(add)})
    assert again.done == 3
    assert not again.failures
    assert len(keys_of(tmp_path)) == 4


def test_what_no_grader_can_judge_is_not_scored(tmp_path: Path) -> None:
    """A grader's fault is counted under its code and leaves no row; what the call cost still counts."""
    task = Task(
        id="odd",
        family="f",
        category="c",
        dataset="d",
        prompt="1 + 1",
        gold=None,
        split="train",
        meta={"grader": "exact"},
    )
    tally = run(tmp_path, make_spec("adder"), {"adder": Scripted(guess)}, tasks=[task])
    assert tally.failures == {"adder grade_error": 1}
    assert tally.cost_usd == Decimal("0.0002")
    assert keys_of(tmp_path) == []


def test_spending_stops_at_the_limit(tmp_path: Path) -> None:
    """Once the limit is spent no further call begins; what is in flight is kept, and the next run goes on."""
    tasks, backend = make_tasks(100), Scripted(add)
    tally = run(tmp_path, make_spec("adder"), {"adder": backend}, tasks=tasks, max_usd=Decimal("0.002"))
    assert tally.stopped_by == "max_usd"
    assert Decimal("0.002") <= tally.cost_usd <= Decimal("0.002") + 32 * Decimal("0.0002")
    assert len(backend.queries) == len(keys_of(tmp_path)) == tally.done < 100
    rest = run(tmp_path, make_spec("adder"), {"adder": Scripted(add)}, tasks=tasks)
    assert rest.done == 100 - tally.done
    assert rest.stopped_by is None


def test_calls_of_unknown_cost_are_counted_apart(tmp_path: Path) -> None:
    """Without a price nothing is invented: cost is absent from the row and the calls are counted."""
    tally = run(tmp_path, make_spec("adder", prices=None), {"adder": Scripted(add)})
    assert tally.cost_usd == 0
    assert tally.unknown_cost == 4
    assert all(row["cost_usd"] is None for row in read_rows(tmp_path / "outcomes.jsonl"))
    models = json.loads((tmp_path / "models.json").read_text())["models"]
    assert models["adder"]["price_usd_per_million"] is None


def test_other_tasks_are_refused(tmp_path: Path) -> None:
    """A folder holds one set of tasks; another is an error that says what to do, and changes nothing."""
    run(tmp_path, make_spec("adder"), {"adder": Scripted(add)})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match="another set of tasks was profiled here: choose another --out"):
        run(tmp_path, make_spec("adder"), {"adder": Scripted(add)}, tasks=make_tasks(5))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_profile_that_was_declined_binds_nobody(tmp_path: Path) -> None:
    """A folder without answers takes other tasks: whoever said no to the cost may correct them."""
    spec = make_spec("adder")
    open_profile(tmp_path, make_tasks(4), spec, find_rates(spec.worker))
    run(tmp_path, spec, {"adder": Scripted(add)}, tasks=make_tasks(5))
    assert len(read_rows(tmp_path / "outcomes.jsonl")) == 5


def test_another_model_behind_a_worker_is_refused(tmp_path: Path) -> None:
    """Answers of two models never mix under one worker id, as a head would be bound to the wrong one."""
    run(tmp_path, make_spec("adder", model="old"), {"adder": Scripted(add)})
    with pytest.raises(ConfigError, match="'adder' was profiled here as 'old-adder' and is 'new-adder'"):
        run(tmp_path, make_spec("adder", model="new"), {"adder": Scripted(add)})


def test_a_worker_that_joins_is_asked_and_one_that_left_is_remembered(tmp_path: Path) -> None:
    """With another pool over the same tasks only the joining worker is asked; models.json knows all with answers."""
    run(tmp_path, make_spec("adder"), {"adder": Scripted(add)})
    tally = run(tmp_path, make_spec("guesser"), {"guesser": Scripted(guess)})
    assert tally.done == 4
    assert read_recorded(tmp_path).models == {"adder": "m-adder", "guesser": "m-guesser"}


def test_no_tasks_are_refused(tmp_path: Path) -> None:
    """A profile of nothing would block its folder for any other; it is refused and writes nothing."""
    with pytest.raises(ConfigError, match="no tasks"):
        open_profile(tmp_path / "new", [], make_spec("adder"), {})
    assert not (tmp_path / "new").exists()


def test_listed_prices_stand_in_models_json(tmp_path: Path) -> None:
    """A price that comes from the price list, not from the pool file, is written down as resolved on that day."""
    known = WorkerSpec(id="gpt", dialect="openai", model="gpt-4o", tags=Tags(provider="openai"))
    nobody = WorkerSpec(id="own", dialect="openai", model="my-model", base_url="http://127.0.0.1:9/v1")
    spec = PoolSpec(worker=(known, nobody))
    open_profile(tmp_path, make_tasks(), spec, find_rates(spec.worker))
    models = json.loads((tmp_path / "models.json").read_text())["models"]
    listed = models["gpt"]["price_usd_per_million"]
    assert Decimal(listed["input"]) > 0
    assert Decimal(listed["output"]) > Decimal(listed["input"])
    assert models["own"] == {"model": "my-model", "price_usd_per_million": None}


def test_a_rate_is_that_of_a_short_prompt() -> None:
    """Declared rates are given back exactly; a listed one is not the higher rate that long prompts cost."""
    assert find_rates(make_spec("a").worker) == {"a": Rate(Decimal(1), Decimal(2))}
    tiered = WorkerSpec(id="g", dialect="openai", model="gemini-2.5-pro", tags=Tags(provider="google"))
    rate, price = find_rates([tiered])["g"], resolve_price(tiered)
    assert rate is not None
    assert price is not None
    long = price.cost_usd(Usage(input_tokens=1_000_000, output_tokens=0))
    assert long is not None
    assert rate.input < long


def test_the_estimate_counts_prompts_and_assumed_answers() -> None:
    """A call costs characters / 4 at the input rate and 600 tokens at the output rate; unknown if one price is."""
    jobs = plan_jobs(make_tasks(2), ["a"], 3, set())
    tokens_in = -(-len("What is 0 + 0?") // 4)
    expected = 6 * (tokens_in * Decimal(1) + 600 * Decimal(2)) / 1_000_000
    assert estimate_cost_usd(jobs, {"a": Rate(Decimal(1), Decimal(2))}) == expected
    assert estimate_cost_usd(jobs, {"a": None}) is None
    assert estimate_cost_usd([], {}) == 0


def test_jobs_go_task_by_task() -> None:
    """A profile cut short is even over workers, and whole repetitions come before the next."""
    jobs = plan_jobs(make_tasks(2), ["a", "b"], 2, {("sum/0", "b", 0)})
    assert [(job.task.id, job.worker, job.k) for job in jobs] == [
        ("sum/0", "a", 0),
        ("sum/1", "a", 0),
        ("sum/1", "b", 0),
        ("sum/0", "a", 1),
        ("sum/0", "b", 1),
        ("sum/1", "a", 1),
        ("sum/1", "b", 1),
    ]


def test_waiting_for_a_free_place_is_not_latency(tmp_path: Path) -> None:
    """With one place and many calls in flight, the recorded latency is each call's own, not the queue's."""
    spec = PoolSpec(
        worker=(WorkerSpec(id="slow", dialect="scripted", model="m", limits=Limits(concurrency=1)),), max_attempts=1
    )
    now = 0.0

    def answer(query: Query) -> str:
        nonlocal now
        now += 2.0  # each call takes two seconds of this clock
        return "0"

    tasks = make_tasks(8)
    jobs = plan_jobs(tasks, ["slow"], 1, open_profile(tmp_path, tasks, spec, find_rates(spec.worker)))
    member = Member(spec=spec.worker[0], backend=Scripted(answer), price=None)
    asyncio.run(profile(jobs, Pool([member], clock=lambda: now), TaskGrader(), tmp_path))
    assert [row["latency_s"] for row in read_rows(tmp_path / "outcomes.jsonl")] == [2.0] * 8


def test_a_disk_that_fails_ends_the_profile_with_its_own_error(tmp_path: Path) -> None:
    """What breaks while profiling comes out as itself, so that the command can name it in a line."""

    def fail(tally: Tally) -> None:
        raise OSError(28, "No space left on device", "outcomes.jsonl")

    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, make_spec("adder"), {"adder": Scripted(add)}, progress=fail)
