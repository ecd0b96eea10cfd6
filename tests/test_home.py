"""The home pool: its tasks, its workers, and that there is something to learn about them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torafugu.envs import HOME_FAMILIES, home_tasks, prompt_to_split
from torafugu.errors import ConfigError
from torafugu.grade import Task, TaskGrader, extract_answer
from torafugu.orchestrate.prompts import parse_verdict
from torafugu.pool.backend import Completion, Delta, Query
from torafugu.pool.home import home_pool_path, make_home
from torafugu.pool.skills.reading import Unreadable, format_exact, read_number_words, read_polynomial
from torafugu.pool.skills.references import fill_in
from torafugu.pool.spec import WorkerSpec, read_pool
from torafugu.types import Message, Reply, Sampling, TextPart

Matrix: TypeAlias = dict[str, dict[str, list[bool]]]
"""family -> worker -> verdicts"""

WORKERS = {spec.id: make_home(spec) for spec in read_pool(home_pool_path()).worker}
IN_CATEGORY = {
    c: {f for f, family in HOME_FAMILIES.items() if family.category == c} for c in ("arithmetic", "text", "facts")
}
SKILLS = {
    "exact-math": IN_CATEGORY["arithmetic"] | {"number_format", "number_filtering"},
    "text-ops": IN_CATEGORY["text"] | {"letter_values", "needle_haystack"},
    "facts": IN_CATEGORY["facts"] | {"roman_sums", "syllogism", "needle_haystack"},
}
NOBODY = {"knights_knaves", "sokoban"}
GENERALIST_ONLY = {"letter_product"}


def ask(worker: str, *messages: Message, sampling: Sampling | None = None) -> Completion:
    query = Query(messages=messages, sampling=sampling or Sampling())
    return asyncio.run(WORKERS[worker].complete(query, None))


def ask_text(worker: str, question: str) -> str:
    return ask(worker, Message(role="user", content=question)).text


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return home_tasks(n=600, seed=1)


@pytest.fixture(scope="module")
def matrix(tasks: list[Task]) -> Matrix:
    return make_matrix(tasks)


def make_matrix(tasks: list[Task]) -> Matrix:
    grader = TaskGrader()
    verdicts: Matrix = {task.family: {worker: [] for worker in WORKERS} for task in tasks}

    async def fill() -> None:
        for worker, backend in WORKERS.items():
            for task in tasks:
                query = Query(messages=(Message(role="user", content=task.prompt),))
                text = (await backend.complete(query, None)).text
                verdict = grader.grade(task, Reply(worker=worker, text=text, finish_reason="stop"))
                verdicts[task.family][worker].append(verdict.correct)

    asyncio.run(fill())
    return verdicts


def accuracy(verdicts: list[bool]) -> float:
    return sum(verdicts) / len(verdicts)


def overall(matrix: Matrix) -> tuple[dict[str, float], float]:
    """Accuracy of each worker, and of whoever is right."""
    by_worker = {w: accuracy([v for rows in matrix.values() for v in rows[w]]) for w in WORKERS}
    oracle = accuracy([any(column) for rows in matrix.values() for column in zip(*rows.values(), strict=True)])
    return by_worker, oracle


def digest(tasks: list[Task]) -> str:
    return hashlib.sha256(repr(tasks).encode()).hexdigest()


def run_python(code: str, **env: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | env, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- tasks


def test_tasks_are_the_same_in_every_process() -> None:
    """A seed gives the same tasks, golds and metadata in another process with another string hashing."""
    code = (
        "import hashlib; from torafugu.envs import home_tasks\n"
        "print(hashlib.sha256(repr(home_tasks(n=60, seed=3)).encode()).hexdigest())"
    )
    assert run_python(code, PYTHONHASHSEED="12345") == digest(home_tasks(n=60, seed=3))


def test_seeds_differ(tasks: list[Task]) -> None:
    """Neighbouring seeds share hardly any prompt."""
    prompts, others = ({task.prompt for task in batch} for batch in (tasks, home_tasks(n=600, seed=2)))
    assert len(prompts & others) < 0.05 * len(prompts)


def test_more_tasks_begin_with_fewer(tasks: list[Task]) -> None:
    """Asking for fewer tasks gives the first of the same sequence, each family in its turn."""
    assert home_tasks(n=45, seed=1) == tasks[:45]
    assert [task.family for task in tasks[: len(HOME_FAMILIES)]] == list(HOME_FAMILIES)


def test_prompts_and_ids_are_unique(tasks: list[Task]) -> None:
    """No prompt and no id comes twice, and every task has a gold answer and one of five categories."""
    assert len({" ".join(task.prompt.split()) for task in tasks}) == len(tasks)
    assert len({task.id for task in tasks}) == len(tasks)
    assert all(task.gold and task.gold.strip() for task in tasks)
    assert {task.category for task in tasks} == {"arithmetic", "text", "facts", "logic", "mixed"}


def test_splits(tasks: list[Task]) -> None:
    """Splits are near 60 : 20 : 20, hang on the prompt's words alone, and reach every family."""
    counts = Counter(task.split for task in tasks)
    assert 0.53 < counts["train"] / len(tasks) < 0.67
    assert 0.14 < counts["validation"] / len(tasks) < 0.26
    assert {task.family for task in tasks if task.split == "test"} == set(HOME_FAMILIES)
    assert all(prompt_to_split(f"  {task.prompt}\n") == task.split for task in tasks)


def test_families_can_be_chosen() -> None:
    """Named families alone are generated, in the order given."""
    assert [t.family for t in home_tasks(n=3, seed=0, families=["gcd", "word_sums"])] == ["gcd", "word_sums", "gcd"]
    assert home_tasks(n=0, seed=0) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 1, "seed": 0, "families": ["gdc"]}, "'gdc' is not one of base_conversion"),
        ({"n": 1, "seed": 0, "families": []}, "at least one family"),
        ({"n": 1, "seed": 0, "families": ["gcd", "gcd"]}, "each once"),
        ({"n": -1, "seed": 0}, "n -1"),
        ({"n": 9000, "seed": 0, "families": ["caesar_cipher"]}, "'caesar_cipher' has only"),
    ],
)
def test_bad_requests_for_tasks(arguments: dict[str, object], message: str) -> None:
    """An unknown or repeated family, a negative number, or more tasks than a family has is a ConfigError."""
    with pytest.raises(ConfigError, match=message):
        home_tasks(**arguments)  # type: ignore[arg-type]


def test_light_imports_and_a_missing_extra() -> None:
    """Importing the home modules loads neither SymPy nor reasoning-gym; without them the error says what to install."""
    out = run_python(
        "import sys, torafugu.pool.home, torafugu.envs.home, torafugu.grade\n"
        "from torafugu.errors import ConfigError\n"
        "from torafugu.pool.spec import read_pool\n"
        "assert not {'sympy', 'reasoning_gym'} & set(sys.modules)\n"
        "sys.modules['sympy'] = sys.modules['reasoning_gym'] = None\n"
        "spec = read_pool(torafugu.pool.home.home_pool_path()).worker[0]\n"
        "for ask in (lambda: torafugu.pool.home.make_home(spec), lambda: torafugu.envs.home.home_tasks(n=1, seed=0)):\n"
        "    try: ask()\n"
        "    except ConfigError as error: print(error)\n"
    )
    assert out.count("pip install 'torafugu[home]'") == 2


# --- the skill matrix


@pytest.mark.parametrize("worker", SKILLS)
def test_specialists_know_their_families(matrix: Matrix, worker: str) -> None:
    """Each specialist is right on at least 90 % of each of its families and on next to none of the others."""
    for family, rows in matrix.items():
        if family in SKILLS[worker]:
            assert accuracy(rows[worker]) >= 0.9, family
        elif (worker, family) != ("facts", "word_sums"):
            assert accuracy(rows[worker]) <= 0.1, family


def test_who_knows_what(matrix: Matrix) -> None:
    """Some families nobody can do, some only the generalist, some two specialists, some a worker only in part."""
    for family in NOBODY:
        assert not any(any(verdicts) for verdicts in matrix[family].values()), family
    for family in GENERALIST_ONLY:
        assert [worker for worker, verdicts in matrix[family].items() if any(verdicts)] == ["generalist"]
    able = Counter(family for families in SKILLS.values() for family in families)
    assert {family for family, count in able.items() if count == 2} == {"number_format", "needle_haystack"}
    assert 0.2 < accuracy(matrix["word_sums"]["facts"]) < 0.8
    assert 0.2 < accuracy(matrix["chain_sum"]["hasty"]) < 0.95
    assert 0.05 < accuracy(matrix["word_sorting"]["hasty"]) < 0.8


def test_there_is_something_to_learn(matrix: Matrix) -> None:
    """The generalist is the best single worker, near 60 %; choosing well reaches far beyond it."""
    by_worker, oracle = overall(matrix)
    assert max(by_worker, key=lambda worker: by_worker[worker]) == "generalist"
    assert 0.5 < by_worker["generalist"] < 0.66
    assert all(value <= 0.7 for value in by_worker.values())
    assert min(by_worker["generalist"] - value for worker, value in by_worker.items() if worker != "generalist") > 0.1
    assert oracle >= 0.85
    assert oracle - by_worker["generalist"] > 0.2


def test_the_picture_holds_for_another_seed() -> None:
    """With other questions the same worker is best and the same room is left."""
    by_worker, oracle = overall(make_matrix(home_tasks(n=300, seed=99)))
    assert max(by_worker, key=lambda worker: by_worker[worker]) == "generalist"
    assert by_worker["generalist"] < 0.7
    assert oracle >= 0.85


# --- workers


@pytest.mark.parametrize(
    ("worker", "question", "answer"),
    [
        ("exact-math", "What is 17 * 23?", "391"),
        ("exact-math", "How much is (3 - 5)^3 / 4?", "-2"),
        ("exact-math", "What is 1/3 + 1/7?", "10/21"),
        ("exact-math", "Solve 3x + 5 = 20", "5"),
        ("exact-math", "Solve for x: x^2 - 5x + 6 = 0", "2, 3"),
        ("exact-math", "Find the GCD of 12 and 18", "6"),
        ("exact-math", "Factorize 360", "2 × 2 × 2 × 3 × 3 × 5"),
        ("text-ops", "How many times does the letter r appear in strawberry?", "3"),
        ("text-ops", "Spell strawberry backwards", "yrrebwarts"),
        ("facts", "What day of the week was July 4, 1976?", "Sunday"),
        ("facts", "Is 1900 a leap year?", "No"),
        ("facts", "How many hours are there in 3 days?", "72"),
        ("facts", "What is XLII minus XVII?", "25"),
    ],
)
def test_questions_of_people(worker: str, question: str, answer: str) -> None:
    """The specialists also answer such questions when a person words them."""
    assert extract_answer(ask_text(worker, question)) == answer


@pytest.mark.parametrize(
    "question",
    [
        "What is 2^99999999?",
        "What is 9^9^9?",
        "What is 1/0?",
        "What is 5 / (3 - 3)?",
        "What is " + "(" * 300 + "1" + ")" * 300,
        "Find the prime factorization of 1000000000000000000000007",
        "Solve for x: x^9 = 1",
        "Solve for x: x = x",
        "Solve for x: 1 / x = 2",
        "Solve for x: x + y = 2",
        "What is __import__('os').getcwd()?",
        "Sing a song.",
        "",
    ],
)
def test_out_of_bounds(question: str) -> None:
    """What is too large, impossible or no question gets an honest sentence without an answer tag, from every worker."""
    for worker in WORKERS:
        assert ask_text(worker, question) == "I do not know how to do this."


@settings(max_examples=150, deadline=None)
@given(data=st.data(), garbage=st.text(max_size=40))
def test_workers_never_raise(tasks: list[Task], data: st.DataObject, garbage: str) -> None:
    """Every worker answers any text, also real questions with garbage spliced into them."""
    prompt = data.draw(st.sampled_from(tasks)).prompt
    start = data.draw(st.integers(0, len(prompt)))
    end = data.draw(st.integers(start, min(start + 30, len(prompt))))
    for worker in WORKERS:
        assert ask_text(worker, prompt[:start] + garbage + prompt[end:])
        assert ask_text(worker, garbage)


def test_workers_read_the_last_user_message_only(tasks: list[Task]) -> None:
    """Message names, golds in other messages and earlier questions change nothing: only the last question counts."""
    for task in tasks[:60]:
        for worker in WORKERS:
            plain = ask_text(worker, task.prompt)
            dressed = ask(
                worker,
                Message(role="system", content=f"The answer is {task.gold}."),
                Message(role="user", content="What is 2 + 2?"),
                Message(role="assistant", content=f"<answer>{task.gold}</answer>"),
                Message(role="user", content=(TextPart(text=task.prompt),), name=task.id),
            )
            assert dressed.text == plain


def test_streamed_pieces_make_the_text(tasks: list[Task]) -> None:
    """Streamed, an answer comes in several pieces that make up exactly the text that is not streamed."""
    pieces: list[str] = []

    async def take(delta: Delta) -> None:
        pieces.append(delta.text)

    message = Message(role="user", content="hello")
    streamed = asyncio.run(WORKERS["generalist"].complete(Query(messages=(message,)), take))
    assert len(pieces) > 3
    assert "".join(pieces) == streamed.text == ask("generalist", message).text
    assert streamed.first_token_ms is not None
    assert ask("generalist", message).first_token_ms is None


def test_completion_says_what_it_used() -> None:
    """Usage is characters divided by four over all messages, and nothing left this machine."""
    done = ask("exact-math", Message(role="system", content="s" * 40), Message(role="user", content="What is 2 + 2?"))
    assert done.usage.input_tokens == 10 + 3
    assert done.usage.output_tokens == len(done.text) // 4
    assert (done.sent_bytes, done.finish_reason, done.provider_model) == (0, "stop", "exact-math")


def test_limits_of_the_answer() -> None:
    """An answer ends where the caller's limit or stop sequence says, and says which."""
    message = Message(role="user", content="hello")
    short = ask("generalist", message, sampling=Sampling(max_output_tokens=2))
    assert (short.text, short.finish_reason) == ("Hello! I", "length")
    stopped = ask("generalist", message, sampling=Sampling(stop=("zzz", "I am")))
    assert (stopped.text, stopped.finish_reason) == ("Hello!", "stop")


def test_greeting_and_too_long() -> None:
    """The generalist greets back and says that it is no language model; a question beyond the limit is declined."""
    for greeting in ("Hello", "hi there!", "What can you do?"):
        assert "not a language model" in ask_text("generalist", greeting)
    assert "hello" not in ask_text("facts", "hello").lower()
    assert ask_text("exact-math", "What is 1 + 1? " + " " * 20_000) == "This is too long for me."


def test_pool_file() -> None:
    """The shipped pool file reads, prices every worker, and each makes a backend that closes twice without harm."""
    specs = read_pool(home_pool_path()).worker
    assert {spec.id for spec in specs} == {"exact-math", "text-ops", "facts", "generalist", "hasty"}
    assert all(spec.dialect == "home" and spec.prices and not spec.tools for spec in specs)

    async def close(backend_of: WorkerSpec) -> None:
        backend = make_home(backend_of)
        await backend.close()
        await backend.close()

    for spec in specs:
        asyncio.run(close(spec))


def test_unknown_model_is_named() -> None:
    """A home worker that does not exist is a ConfigError with the choices."""
    with pytest.raises(ConfigError, match="'oracle' is not one of 'exact-math'"):
        make_home(WorkerSpec(id="w", dialect="home", model="oracle"))


# --- reading


EXPRESSIONS = st.recursive(
    st.integers(0, 99).map(lambda n: (str(n), Fraction(n))),
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(
        lambda t: (
            f"({t[0][0]} {t[1]} {t[2][0]})",
            {"+": t[0][1] + t[2][1], "-": t[0][1] - t[2][1], "*": t[0][1] * t[2][1]}[t[1]],
        )
    ),
    max_leaves=8,
)


@given(EXPRESSIONS)
def test_expressions_have_their_value(expression: tuple[str, Fraction]) -> None:
    """A bracketed expression reads as its value."""
    text, value = expression
    assert read_polynomial(text) == ((value,) if value else (), None)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 + 3 * 4", 14),
        ("2 - 3 - 4", -5),
        ("-2^2", -4),
        ("2^3^2", 512),
        ("8 / 4 / 2", 1),
        ("2 - -3", 5),
        ("0.1 + 0.2", 0.3),
    ],
)
def test_precedence(text: str, value: float) -> None:
    """Products bind before sums, powers before signs; sums and quotients go left to right, powers right to left."""
    (constant,), _ = read_polynomial(text)
    assert constant == Fraction(str(value))


@given(st.text(alphabet="0123456789+-*/^(). xy", max_size=60))
def test_unreadable_is_the_only_error(text: str) -> None:
    """Whatever the text, it is read within the bounds or is Unreadable."""
    try:
        value, _ = read_polynomial(text)
    except Unreadable:
        return
    assert len(value) <= 9
    assert all(c.numerator.bit_length() <= 1024 for c in value)


@given(st.fractions(max_denominator=10**6))
def test_exact_format_reads_back(value: Fraction) -> None:
    """A number written exactly is that number."""
    assert Fraction(format_exact(value)) == value


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("zero", 0),
        ("forty-two", 42),
        ("three hundred and five", 305),
        ("Twelve Thousand four hundred", 12_400),
        ("forty cats", None),
        ("", None),
    ],
)
def test_numbers_in_words(words: str, value: int | None) -> None:
    """Numbers in words read as numbers; other words do not."""
    assert read_number_words(words) == value


def test_as_verifier_a_worker_solves_it_again() -> None:
    """A home worker that is asked to verify accepts what it finds itself, and nothing else."""
    worker = make_home(WorkerSpec(id="exact-math", dialect="home", model="exact-math"))
    question = "Calculate 12 + 30. Put your final answer between <answer> and </answer>."

    def verify(answer: str | None) -> str:
        quoted = (Message(role="user", content="a conversation, quoted"),)
        query = Query(messages=quoted, question=question, role="verifier", verifies=answer)
        return parse_verdict(asyncio.run(worker.complete(query, None)).text)

    assert [verify(answer) for answer in ("42", "42.0", "41", "", None)] == ["accept", "accept", *["reject"] * 3]


# --- subtasks of a workflow


def ask_subtask(worker: str, subtask: str, results: dict[int, str], *, role: str = "worker") -> str:
    quoted = (Message(role="user", content="a conversation, quoted"),)
    query = Query(messages=quoted, question=subtask, results=results, role=role)
    return asyncio.run(WORKERS[worker].complete(query, None)).text


@pytest.mark.parametrize(
    "reference",
    [
        "the result of step 1",
        "The Result of Step 1",
        "[the result of step 1]",
        "[result of step 1]",
        "result of step 1",
        "step 1's result",
        "[Step 1’s result]",
        "the result of  step\n1",
    ],
)
def test_references_are_filled_in(reference: str) -> None:
    """Each way to name an earlier result stands for that reply's answer, wherever and however often it is named."""
    results = {0: "<answer>7</answer>", 1: "Some words.\n<answer> 12 </answer>\nMore words."}
    text = ask_subtask("exact-math", f"Calculate {reference} * 10 + {reference} - the result of step 0.", results)
    assert extract_answer(text) == "125"


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("<answer>5</answer> is wrong, so\n<ANSWER>6</ANSWER>", "6"),
        ("It goes between <answer> tags: <answer>7</answer>", "7"),
        ("I counted them.\n\n8\n\n", "8"),
        ("It never ends: <answer>\n9", "9"),
    ],
)
def test_what_counts_as_a_result(reply: str, answer: str) -> None:
    """A result is what stands between the last pair of tags, else the last line that is not blank."""
    assert extract_answer(ask_subtask("exact-math", "Calculate 100 + the result of step 0.", {0: reply})) == str(
        100 + int(answer)
    )


@pytest.mark.parametrize("results", [{}, {1: "<answer>5</answer>"}, {0: ""}, {0: " \n"}, {0: "<answer> </answer>"}])
def test_a_result_that_is_not_visible(results: dict[int, str]) -> None:
    """Without the reply that a subtask refers to, no worker guesses: each says that it was not told, without a tag."""
    for worker in WORKERS:
        text = ask_subtask(worker, "Multiply the result of step 0 by 12.", results)
        assert text == "I was not told the result that this refers to."


def test_results_are_not_searched_for_references() -> None:
    """A reply that names another step does not reach that step's result through the one who is shown it."""
    results = {0: "<answer>the result of step 1</answer>", 1: "<answer>secret</answer>"}
    assert "secret" not in ask_subtask("text-ops", 'Spell "the result of step 0" backwards.', results)
    assert ask_subtask("exact-math", "Calculate the result of step 0 + 1.", results) == "I do not know how to do this."


def test_results_cannot_make_a_question_endless() -> None:
    """What grows beyond the limit once filled in is declined, before it is filled in."""
    subtask, reply = "the result of step 0 " * 500, "9" * 1_000_000
    assert ask_subtask("exact-math", subtask, {0: reply}) == "This is too long for me."
    assert fill_in(subtask, {0: reply}, limit_chars=20_000) is None


def test_only_subtasks_refer_to_steps() -> None:
    """A client's own words and a Verifier's question are left as they are, whatever they say of steps."""
    question = "Calculate 2 + 3. Do not use the result of step 4."
    assert extract_answer(ask_text("exact-math", question)) == "5"
    assert extract_answer(ask_subtask("exact-math", question, {}, role="verifier")) == "5"
