"""Composed tasks: several steps, each for another worker of the home pool, and the workflow that answers them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from collections import Counter
from random import Random
from string import Formatter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torafugu.envs.composed import COMPOSED_FAMILIES, GoldWorkflow, composed_tasks, find_workflow
from torafugu.errors import ConfigError
from torafugu.grade import Task, TaskGrader, extract_answer
from torafugu.pool.backend import Query
from torafugu.pool.home import home_pool_path, make_home
from torafugu.pool.skills.composed import COMPOSED, wording_patterns
from torafugu.pool.skills.plain import drop_format
from torafugu.pool.skills.references import find_references
from torafugu.pool.spec import read_pool
from torafugu.types import Message, Reply

WORKERS = {spec.id: make_home(spec) for spec in read_pool(home_pool_path()).worker}
SPECIALISTS = ("exact-math", "text-ops", "facts")
GRADER = TaskGrader()
PER_FAMILY = 200


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return composed_tasks(n=PER_FAMILY * len(COMPOSED_FAMILIES), seed=4)


def ask(worker: str, prompt: str) -> str:
    query = Query(messages=(Message(role="user", content=prompt),))
    return asyncio.run(WORKERS[worker].complete(query, None)).text


def ask_all(worker: str, tasks: list[Task]) -> list[str]:
    async def ask() -> list[str]:
        queries = [Query(messages=(Message(role="user", content=task.prompt),)) for task in tasks]
        return [(await WORKERS[worker].complete(query, None)).text for query in queries]

    return asyncio.run(ask())


async def execute(task: Task, workflow: GoldWorkflow, workers: tuple[str, ...]) -> list[Query]:
    """Each step in its turn, with the replies that it may see; the last query shows all that came of it."""
    replies: dict[int, str] = {}
    queries = []
    for position, (subtask, worker) in enumerate(zip(workflow.subtasks, workers, strict=True)):
        seen = {earlier: replies[earlier] for earlier in workflow.access[position]}
        quoted = (Message(role="user", content=f"quoted: {task.prompt}"),)
        queries.append(Query(messages=quoted, question=subtask, results=seen))
        replies[position] = (await WORKERS[worker].complete(queries[-1], None)).text
    return [*queries, Query(messages=(), results=replies)]


def is_right(task: Task, text: str) -> bool:
    return GRADER.grade(task, Reply(worker="any", text=text, finish_reason="stop")).correct


def last_reply(queries: list[Query]) -> str:
    return queries[-1].results[len(queries) - 2]


def accuracy(tasks: list[Task], texts: list[str]) -> float:
    return sum(is_right(task, text) for task, text in zip(tasks, texts, strict=True)) / len(tasks)


# --- tasks


def test_tasks_are_the_same_in_every_process() -> None:
    """A seed gives the same tasks, golds and workflows in another process with another string hashing."""
    code = (
        "import hashlib; from torafugu.envs.composed import composed_tasks\n"
        "print(hashlib.sha256(repr(composed_tasks(n=90, seed=3)).encode()).hexdigest())"
    )
    command, env = [sys.executable, "-c", code], os.environ | {"PYTHONHASHSEED": "12345"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == hashlib.sha256(repr(composed_tasks(n=90, seed=3)).encode()).hexdigest()


def test_families_and_shapes() -> None:
    """Four shapes of several steps have fifteen families, one step has three; each has three wordings at least."""
    by_shape = Counter(family.category for family in COMPOSED_FAMILIES.values())
    assert by_shape == {"one step": 3, "chain of 2": 6, "chain of 3": 4, "join": 3, "diamond": 2}
    assert all(len(set(COMPOSED[name].wordings)) >= 3 for name in COMPOSED_FAMILIES)
    for name, family in COMPOSED_FAMILIES.items():
        assert family.steps == len(COMPOSED[name].parts)
        areas = [part.area for part in COMPOSED[name].parts]
        assert len(set(areas)) >= min(2, family.steps), f"{name}: one specialist could do all of it"


@pytest.mark.parametrize("name", COMPOSED_FAMILIES)
def test_wordings_hold_what_their_parts_need(name: str) -> None:
    """Every wording of a family names each thing that its subtasks are made of."""
    needed = {slot for part in COMPOSED[name].parts for _, slot, _, _ in Formatter().parse(part.subtask) if slot}
    for wording in COMPOSED[name].wordings:
        assert {slot for _, slot, _, _ in Formatter().parse(wording) if slot} >= needed


def test_prompts_ids_and_meta(tasks: list[Task]) -> None:
    """Prompts and ids are unique, golds are not empty, and what the dataset says of itself holds."""
    assert len({task.prompt for task in tasks}) == len({task.id for task in tasks}) == len(tasks)
    for task in tasks:
        assert task.gold
        assert task.dataset == "home-multi"
        assert task.id.startswith(f"home-multi/{task.family}/")
        assert task.category == COMPOSED_FAMILIES[task.family].category
        assert task.meta["grader"] == "exact"
        assert task.meta["steps"] == COMPOSED_FAMILIES[task.family].steps == len(task.meta["workflow"]["subtasks"])
        assert task.prompt.endswith("\n\nPut your final answer between <answer> and </answer>.")


def test_there_are_thousands_of_questions() -> None:
    """Each family has thousands of different questions, and another seed asks nearly none of them again."""
    for name in COMPOSED_FAMILIES:
        first, second = (composed_tasks(n=2000, seed=seed, families=[name]) for seed in (1, 2))
        assert len({task.prompt for task in first} & {task.prompt for task in second}) < 0.05 * 2000, name


def test_more_tasks_begin_with_fewer(tasks: list[Task]) -> None:
    """Asking for fewer tasks gives the first of the same sequence, each family in its turn."""
    assert composed_tasks(n=45, seed=4) == tasks[:45]
    assert [task.family for task in tasks[: len(COMPOSED_FAMILIES)]] == list(COMPOSED_FAMILIES)
    assert composed_tasks(n=0, seed=4) == []


def test_splits(tasks: list[Task]) -> None:
    """Splits are near 60 : 20 : 20 and each reaches every family."""
    counts = Counter(task.split for task in tasks)
    assert 0.57 < counts["train"] / len(tasks) < 0.63
    assert 0.17 < counts["validation"] / len(tasks) < 0.23
    for split in counts:
        assert {task.family for task in tasks if task.split == split} == set(COMPOSED_FAMILIES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 1, "seed": 0, "families": ["legs"]}, "'legs' is not one of cycles_to_day"),
        ({"n": 1, "seed": 0, "families": []}, "at least one family"),
        ({"n": 1, "seed": 0, "families": ["day_alone", "day_alone"]}, "each once"),
        ({"n": -1, "seed": 0}, "n -1"),
    ],
)
def test_bad_requests_for_tasks(arguments: dict[str, object], message: str) -> None:
    """An unknown or repeated family or a negative number is a ConfigError."""
    with pytest.raises(ConfigError, match=message):
        composed_tasks(**arguments)  # type: ignore[arg-type]


# --- the gold workflow


def test_workflow_is_found_in_the_text(tasks: list[Task]) -> None:
    """The workflow read off a question's text alone is the one that the question was made of, with and without the
    sentence that asks for the form of the answer."""
    for task in tasks:
        found = find_workflow(task.prompt)
        assert found is not None
        assert found == find_workflow(task.prompt.split("\n")[0])
        assert {
            "subtasks": list(found.subtasks),
            "skills": list(found.workers),
            "access": [list(seen) for seen in found.access],
        } == task.meta["workflow"]


def test_one_wording_fits(tasks: list[Task]) -> None:
    """No question can be read in two ways."""
    for task in tasks:
        text = drop_format(task.prompt)
        fitting = [composed for composed, pattern in wording_patterns() if pattern.fullmatch(text)]
        assert fitting == [COMPOSED[task.family]], task.prompt


def test_gold_workflow_is_always_right(tasks: list[Task]) -> None:
    """Asking the gold worker for each part in order, shown what the access list says, answers every question."""

    async def run() -> list[str]:
        wrong = []
        for task in tasks:
            workflow = find_workflow(task.prompt)
            assert workflow is not None
            text = last_reply(await execute(task, workflow, workflow.workers))
            if not is_right(task, text):
                wrong.append(f"{task.prompt} -> {text}, gold {task.gold}")
        return wrong

    assert not asyncio.run(run())


def test_access_lists_name_what_is_needed(tasks: list[Task]) -> None:
    """A step sees earlier steps only, and without any one of them its worker says that it was not told."""

    async def run() -> None:
        for task in tasks[: 3 * len(COMPOSED_FAMILIES)]:
            workflow = find_workflow(task.prompt)
            assert workflow is not None
            queries = await execute(task, workflow, workflow.workers)
            for position, seen in enumerate(workflow.access):
                assert all(earlier < position for earlier in seen)
                for hidden in seen:
                    shown = {key: text for key, text in queries[position].results.items() if key != hidden}
                    query = Query(messages=(), question=workflow.subtasks[position], results=shown)
                    reply = (await WORKERS[workflow.workers[position]].complete(query, None)).text
                    assert reply == "I was not told the result that this refers to."

    asyncio.run(run())


def test_parts_are_for_their_specialist(tasks: list[Task]) -> None:
    """With the earlier results filled in, a part is understood by its gold worker and by no other specialist."""

    async def run() -> None:
        for task in tasks[: 20 * len(COMPOSED_FAMILIES)]:
            workflow = find_workflow(task.prompt)
            assert workflow is not None
            queries = await execute(task, workflow, workflow.workers)
            for query, gold in zip(queries[:-1], workflow.workers, strict=True):
                texts = {worker: (await WORKERS[worker].complete(query, None)).text for worker in SPECIALISTS}
                assert [worker for worker in SPECIALISTS if "<answer>" in texts[worker]] == [gold], query.question

    asyncio.run(run())


@pytest.mark.parametrize(
    ("question", "access", "answer"),
    [
        (
            'Count the letter "o" in "onion noodle". Multiply what you get by 20 and add 300. Which number is it?',
            ((), (0,)),
            "380",
        ),
        (
            "Take the number of legs of 2 cows and 10 crabs, once with its digits in reverse order and once 20 times "
            "as large. What is the sum of the two?",
            ((), (0,), (0,), (1, 2)),
            "2961",
        ),
        (
            'The month of a feast is "yluJ", read from right to left; its day is the largest number that divides both '
            "8 and 12; its year is 1976. On which day, Monday to Sunday, was the feast?",
            ((), (), (0, 1)),
            "Sunday",
        ),
    ],
)
def test_worked_by_hand(question: str, access: tuple[tuple[int, ...], ...], answer: str) -> None:
    """Questions that were answered by hand have the shape and the answer that they should have."""
    task = Task(id="t", family="f", category="c", dataset="d", prompt=question, gold=answer, split="test")
    workflow = find_workflow(question)
    assert workflow is not None
    assert workflow.access == access
    assert extract_answer(last_reply(asyncio.run(execute(task, workflow, workflow.workers)))) == answer


@pytest.mark.parametrize(
    "question", ["", "What is 2 + 2?", "Calculate 12 * 7 - 3. And then?", "Sing a song.", "a" * 9000]
)
def test_other_questions_have_no_gold_workflow(question: str) -> None:
    """What was not made of these templates is not taken apart."""
    assert find_workflow(question) is None


@settings(max_examples=150, deadline=None)
@given(data=st.data(), garbage=st.text(max_size=40))
def test_any_text_can_be_read(data: st.DataObject, garbage: str) -> None:
    """Questions and subtasks with garbage spliced into them are answered or declined, and never raise; a workflow that
    is found refers to its own earlier steps only."""
    name = data.draw(st.sampled_from(sorted(COMPOSED_FAMILIES)))
    (task,) = composed_tasks(n=1, seed=data.draw(st.integers(0, 9)), families=[name])
    text = data.draw(st.sampled_from((task.prompt, *task.meta["workflow"]["subtasks"])))
    start = data.draw(st.integers(0, len(text)))
    spliced = text[:start] + garbage + text[data.draw(st.integers(start, min(start + 30, len(text)))) :]
    if workflow := find_workflow(spliced):
        assert all(step < position for position, seen in enumerate(workflow.access) for step in seen)
    for worker in WORKERS:
        query = Query(messages=(), question=spliced, results={0: garbage, 1: "<answer>{a}\\1</answer>"})
        assert asyncio.run(WORKERS[worker].complete(query, None)).text
    assert find_references(garbage) == tuple(sorted(set(find_references(garbage))))


# --- what there is to learn


def test_specialists_do_not_know_the_whole(tasks: list[Task]) -> None:
    """Of several steps no specialist understands the whole question, and nor does the hasty worker; of one step exactly
    the specialist whose it is answers, and right."""
    for worker in (*SPECIALISTS, "hasty"):
        for task, text in zip(tasks, ask_all(worker, tasks), strict=True):
            if task.meta["workflow"]["skills"] == [worker]:
                assert is_right(task, text)
            elif worker != "hasty" or task.meta["steps"] > 1:
                assert text == "I do not know how to do this.", f"{worker}: {task.prompt}"
            else:
                assert not is_right(task, text)


def test_generalist_is_seldom_right(tasks: list[Task]) -> None:
    """The generalist is the best single worker, right on a third, and the more seldom the more steps there are."""
    texts = ask_all("generalist", tasks)
    graded = [(task.meta["steps"], is_right(task, text)) for task, text in zip(tasks, texts, strict=True)]
    by_steps = {
        steps: sum(right for n, right in graded if n == steps) / sum(n == steps for n, _ in graded)
        for steps in (1, 2, 3, 4)
    }
    assert 0.28 < accuracy(tasks, texts) < 0.45
    assert 0.55 < by_steps[1] < 0.65
    assert 0.3 < by_steps[2] < 0.42
    assert 0.16 < by_steps[3] < 0.28
    assert 0.08 < by_steps[4] < 0.2
    assert texts == ask_all("generalist", tasks)


def test_who_does_what_matters(tasks: list[Task]) -> None:
    """The right decomposition in the hands of random workers is worse than asking the generalist for everything."""
    random, some = Random(0), [task for task in tasks[:1800] if task.meta["steps"] > 1]

    async def run() -> list[str]:
        texts = []
        for task in some:
            workflow = find_workflow(task.prompt)
            assert workflow is not None
            workers = tuple(random.choice(sorted(WORKERS)) for _ in workflow.workers)
            texts.append(last_reply(await execute(task, workflow, workers)))
        return texts

    assert accuracy(some, asyncio.run(run())) < 0.12 < accuracy(some, ask_all("generalist", some))


# --- everyday wordings of parts


@pytest.mark.parametrize(
    ("worker", "question", "answer"),
    [
        ("text-ops", "Compute the alphabet value of the word 'walnut'", "91"),
        ("text-ops", 'Add up the letters of "walnut", with a = 1 up to z = 26.', "91"),
        ("text-ops", "What is the sum of the letter values of walnut (a=1, ..., z=26)?", "91"),
        ("text-ops", 'Count every "e" in the phrase "needle haystack".', "3"),
        ("text-ops", 'Count the occurrences of the letter "e" in "needle haystack"', "3"),
        ("text-ops", "First, reverse the digits of 391.", "193"),
        ("text-ops", 'Read "hcraM" from right to left', "March"),
        ("exact-math", "Multiply 5 by 12, then subtract 7.", "53"),
        ("exact-math", "Then multiply 5 by -12 and add 7 to the result.", "-53"),
        ("exact-math", "Add 5 to 12", "17"),
        ("exact-math", "Subtract 12 from 18.", "6"),
        ("exact-math", "Find the difference between 12 and 18.", "-6"),
        ("exact-math", "What is the product of 12 and 18?", "216"),
        ("exact-math", "Find the largest number that divides both 12 and 18.", "6"),
        ("exact-math", "Find the smallest number of days that both 12 and 18 divide.", "36"),
        ("exact-math", "Write 59 in hexadecimal notation", "3b"),
        ("exact-math", "Split 60 into its prime factors.", "2 × 2 × 3 × 5"),
        ("facts", "How many legs do 3 spiders and 5 tigers have in total?", "44"),
        ("facts", "Count the legs of 6 ants and 3 cows, 2 ducks and 4 chickens.", "60"),
        ("facts", "Express 3 hours and 20 minutes in minutes.", "200"),
        ("facts", "Subtract XVII from XLII.", "25"),
        ("facts", "On which day did July 4, 1976 fall?", "Sunday"),
        ("facts", "Which day comes 45 days after July 4, 1976?", "Wednesday"),
        ("facts", "Find the day 3 days before July 4, 1976. Put your final answer in <answer> tags.", "Thursday"),
    ],
)
def test_parts_in_other_words(worker: str, question: str, answer: str) -> None:
    """A specialist understands a part in other words than the gold workflow's, and no other specialist does."""
    assert extract_answer(ask(worker, question)) == answer
    for other in set(SPECIALISTS) - {worker}:
        assert ask(other, question) == "I do not know how to do this."


@pytest.mark.parametrize(
    "question",
    [
        "Write Saturday",
        "Count the legs of 3 spiders and 5 tables",
        "Multiply it by 12",
        "Multiply 5 by 12 and add 7, then halve it",
        'Add up the letters of "walnut" and multiply the sum by 3',
        "Add IIX to X",
        "Which day was February 30, 1999?",
        "Reverse the digits of 391 and add 5",
    ],
)
def test_more_or_less_than_a_part(question: str) -> None:
    """What is impossible, unclear, or goes on after a part is declined by every specialist, not answered in part."""
    for worker in SPECIALISTS:
        assert ask(worker, question) == "I do not know how to do this."
