"""The graders: what passes, what fails, and that they raise nothing but GradeError."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torafugu.agreement import canonical_answer
from torafugu.envs import HOME_FAMILIES, home_tasks
from torafugu.errors import GradeError
from torafugu.grade import ExactGrader, GymGrader, Task, TaskGrader, extract_answer, given_answer
from torafugu.types import Reply

GRADER = TaskGrader()


@pytest.fixture(scope="module")
def one_of_each() -> dict[str, Task]:
    """A task of every home family, as it comes back from a file."""
    tasks = home_tasks(n=len(HOME_FAMILIES), seed=5)
    stored = [msgspec.json.decode(msgspec.json.encode(task), type=Task) for task in tasks]
    return {task.family: task for task in stored}


def reply(text: str) -> Reply:
    return Reply(worker="w", text=text, finish_reason="stop")


def exact_task(gold: str | None, options: tuple[str, ...] | None = None) -> Task:
    return Task(id="t", family="f", category="c", dataset="d", prompt="What?", gold=gold, split="test", options=options)


@pytest.mark.parametrize("family", HOME_FAMILIES)
def test_gold_passes(one_of_each: dict[str, Task], family: str) -> None:
    """In every family the gold answer is correct with score 1, also after the task was stored and read back."""
    task = one_of_each[family]
    verdict = GRADER.grade(task, reply(f"Let me see.\n<answer>{task.gold}</answer>"))
    assert (verdict.correct, verdict.score) == (True, 1.0), verdict.reason


@pytest.mark.parametrize("family", HOME_FAMILIES)
@pytest.mark.parametrize(
    "text", ["<answer>banana 7</answer>", "I do not know how to do this.", "", "  \n ", "<answer> </answer>"]
)
def test_wrong_and_empty_fail(one_of_each: dict[str, Task], family: str, text: str) -> None:
    """In every family a wrong answer, an admitted not-knowing and an empty answer are judged wrong, with a reason."""
    verdict = GRADER.grade(one_of_each[family], reply(text))
    assert not verdict.correct
    assert verdict.score < 0.999
    assert verdict.reason


@pytest.mark.parametrize("family", HOME_FAMILIES)
def test_echoed_prompt_fails(one_of_each: dict[str, Task], family: str) -> None:
    """A worker that repeats the question, alone or inside the answer tags, is wrong in every family."""
    task = one_of_each[family]
    assert not GRADER.grade(task, reply(task.prompt)).correct
    assert not GRADER.grade(task, reply(f"<answer>{task.prompt}</answer>")).correct


ANSWERS = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="0123456789-+.,/×:'\"[]{}eE \n$%_", max_size=60),
    st.text(alphabet="LRUD,;: heroknav", max_size=60),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answer=ANSWERS)
def test_garbage_gets_a_verdict(one_of_each: dict[str, Task], answer: str) -> None:
    """Whatever stands between the tags, every family's grader reaches a verdict with a score in 0..1."""
    for task in one_of_each.values():
        verdict = GRADER.grade(task, reply(f"<answer>{answer}</answer>"))
        assert 0.0 <= verdict.score <= 1.0
        assert verdict.correct == (verdict.score == 1.0)


@settings(max_examples=60, deadline=None)
@given(gold=st.text(max_size=20), answer=ANSWERS, family=st.sampled_from([*HOME_FAMILIES, "string_insertion", "x"]))
def test_garbage_in_tasks_raises_only_grade_errors(gold: str, answer: str, family: str) -> None:
    """A task with a meaningless gold answer and no metadata raises GradeError or is judged; nothing else escapes."""
    for meta in ({"grader": "gym"}, {"grader": "gym", "gym": {}}, {"grader": "exact"}, {}):
        task = Task(id="t", family=family, category="c", dataset="d", prompt="p", gold=gold, split="test", meta=meta)
        try:
            verdict = GRADER.grade(task, reply(answer))
        except GradeError:
            continue
        assert 0.0 <= verdict.score <= 1.0


def test_families_that_run_answers_are_refused() -> None:
    """A reasoning-gym family whose grader would evaluate the answer as Python is refused, not run."""
    task = Task(
        id="t",
        family="string_insertion",
        category="c",
        dataset="d",
        prompt="p",
        gold="AB",
        split="test",
        meta={"gym": {}},
    )
    with pytest.raises(GradeError, match="no gym task"):
        GymGrader().grade(task, reply("<answer>['A', 'B']</answer>"))


def test_unreadable_answer_is_wrong_but_unreadable_gold_is_a_fault(one_of_each: dict[str, Task]) -> None:
    """Where reasoning-gym raises on an answer, that is wrong; where it raises on the gold too, nobody can tell."""
    task = one_of_each["prime_factorization"]
    verdict = GRADER.grade(task, reply("<answer>two and three</answer>"))
    assert not verdict.correct
    assert "not readable" in verdict.reason
    with pytest.raises(GradeError, match="ValueError"):
        GRADER.grade(msgspec.structs.replace(task, gold="many"), reply("<answer>two and three</answer>"))


def test_unknown_grader_is_named() -> None:
    """A task that names no known grader raises GradeError with the choices."""
    with pytest.raises(GradeError, match="expected one of choice, code, exact, gym"):
        GRADER.grade(exact_task("1"), reply("1"))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>4</answer>", "4"),
        ("first <answer>3</answer>, no: <answer> 4 \n</answer> done", "4"),
        ("<answer>3</answer> and then <answer>4", "3"),
        ("<answer><answer>4</answer>", "4"),
        ("<ANSWER>4</Answer>", "4"),
        ("It is\n\n  4  \n\n", "4"),
        ("</answer>4<answer>", "</answer>4<answer>"),
        ("<answer>1 2\n3 4</answer>", "1 2\n3 4"),
        ("<answer></answer>", None),
        ("", None),
        (" \n\t", None),
    ],
)
def test_extract_answer(text: str, answer: str | None) -> None:
    """The answer is what the last closed pair of tags holds, else the last line that is not blank."""
    assert extract_answer(text) == answer


@given(st.text(alphabet="<>/answer \n4", max_size=80))
def test_extract_answer_reads_anything(text: str) -> None:
    """Whatever the reply, what is extracted is a stripped, non-empty piece of it, or None."""
    answer = extract_answer(text)
    assert answer is None or (answer and answer == answer.strip() and answer in text)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("42", "42.0"),
        ("1234", "1,234"),
        ("0.5", "1/2"),
        ("2/4", "1/2"),
        ("3", "6/2"),
        ("-7", "-7."),
        ("1e3", "1000"),
        ("New York", '"new   york"'),
        ("x", "X."),
        ("7", "$7$"),
    ],
)
def test_exact_same(gold: str, answer: str) -> None:
    """Case, blanks, quotes, a final full stop and the way a number is written do not count."""
    assert ExactGrader().grade(exact_task(gold), reply(f"<answer>{answer}</answer>")).correct


@pytest.mark.parametrize(
    ("gold", "answer"),
    [("42", "43"), ("12", "1,2"), ("0.3333", "1/3"), ("nan", "1"), ("1", "1e999999"), ("5", "5 apples"), ("1", "1/0")],
)
def test_exact_different(gold: str, answer: str) -> None:
    """What is not the same number or text is wrong."""
    assert not ExactGrader().grade(exact_task(gold), reply(f"<answer>{answer}</answer>")).correct


@pytest.mark.parametrize(
    ("gold", "answer", "is_correct"),
    [
        ("B", "B", True),
        ("B", "(b) 12 cm", True),
        ("B", "12 cm", True),
        ("12 cm", "B.", True),
        ("B", "A", False),
        ("B", "bananas", False),
        ("B", "D", False),
    ],
)
def test_exact_options(gold: str, answer: str, is_correct: bool) -> None:
    """For a multiple-choice question the letter and the text of an option are the same answer."""
    task = exact_task(gold, options=("3 cm", "12 cm", "9 cm"))
    assert ExactGrader().grade(task, reply(f"<answer>{answer}</answer>")).correct is is_correct


def test_exact_without_gold() -> None:
    """A task without a gold answer cannot be graded exactly: GradeError, not wrong."""
    for gold in (None, "", " "):
        with pytest.raises(GradeError, match="no gold answer"):
            ExactGrader().grade(exact_task(gold), reply("4"))


def _task(prompt: str) -> Task:
    return Task(id="t", family="f", category="c", dataset="d", prompt=prompt, gold="4", split="train")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("<answer>4</answer>", "so: <ANSWER> 4.0 </answer>"),
        ("<answer>Yes.</answer>", "<answer>yes</answer>"),
        ("4", "4.00"),
    ],
)
def test_replies_that_say_the_same_agree(one: str, other: str) -> None:
    """Two replies agree when their answers differ only in form."""
    task = _task("2 + 2?")
    forms = [canonical_answer(given_answer(task.prompt, text)) for text in (one, other)]
    assert forms[0] == forms[1] != ""


@pytest.mark.parametrize("text", ["I do not know.", "", "<answer></answer>", "4"])
def test_no_answer_agrees_with_nothing(text: str) -> None:
    """Where the question asks for tags, a reply without an answer in them has none to vote with."""
    assert given_answer("2 + 2? Put it between <answer> and </answer>.", text) == ""
