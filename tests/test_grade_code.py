"""The code grader: what passes, what fails, and that no trick of the program makes a wrong answer right."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torafugu.errors import GradeError
from torafugu.grade import Task, TaskGrader
from torafugu.grade.code import CodeGrader, extract_code
from torafugu.grade.sandbox import Limits, Probe, Sandbox, SandboxUnavailable, find_sandbox, probe_sandboxes
from torafugu.grade.sandbox.run import TIERS, make_sandbox
from torafugu.types import Reply

if sys.platform != "linux":
    pytest.skip("sandboxes exist on Linux only", allow_module_level=True)

QUICK = Limits(wall_s=5.0, memory_bytes=256 << 20)
DOUBLE = [{"args": [[1, 2]], "expected": [2, 4]}, {"args": [[]], "expected": []}]
SUM = [{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "2 2\n", "stdout": "4"}]


@pytest.fixture(params=TIERS)
def grader(request: pytest.FixtureRequest) -> CodeGrader:
    """The grader on each tier that works here; the others are skipped with their reason."""
    problem = {probe.tier: probe.problem for probe in probe_sandboxes()}[request.param]
    if problem is not None:
        pytest.skip(f"{request.param}: {problem}")
    return CodeGrader(QUICK, find=lambda: make_sandbox(request.param))


def task(tests: Any, **meta: Any) -> Task:
    prompt = "Write `double(numbers)`:\n```python\ndef double(numbers):\n    ...\n```"
    meta = {"grader": "code", "tests": tests, **meta}
    return Task(id="t", family="f", category="c", dataset="d", prompt=prompt, gold=None, split="test", meta=meta)


def fenced(source: str) -> Reply:
    return reply(f"Here it is:\n```python\n{source}\n```\nDone.")


def reply(text: str) -> Reply:
    return Reply(worker="w", text=text, finish_reason="stop")


RIGHT = {
    "a function": "def double(numbers): return [2 * n for n in numbers]",
    "a method": "class Solution:\n    def double(self, n: List[int]) -> List[int]: return [2 * x for x in n]",
    "a tuple": "def double(numbers): return tuple(2 * n for n in numbers)",
    "with prints": "print('loading')\ndef double(numbers):\n    print(numbers); return [2 * n for n in numbers]",
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_functions_pass(grader: CodeGrader, name: str) -> None:
    """A right function passes, alone or as a method of `Solution`, whatever it prints, with the usual imports there."""
    verdict = grader.grade(task(DOUBLE, function="double"), fenced(RIGHT[name]))
    assert (verdict.score, verdict.correct) == (1.0, True), verdict.reason


def test_right_programs_pass(grader: CodeGrader) -> None:
    """A program that prints what it should passes, `exit()` at its end and blanks at the ends of lines included."""
    source = "a, b = map(int, input().split())\nprint(a + b, ' ')\nprint()\nexit()"
    verdict = grader.grade(task(SUM), fenced(source))
    assert (verdict.score, verdict.correct) == (1.0, True), verdict.reason


HACKS = {
    "sys.exit(0)": "import sys\nsys.exit(0)",
    "os._exit(0)": "import os\nos._exit(0)",
    "exit in the call": "import os\ndef double(numbers): os._exit(0)",
    "always equal": "class Yes(list):\n    def __eq__(self, other): return True\ndef double(numbers): return Yes()",
    "subclass of a type": "class N(int):\n    __eq__ = lambda self, other: True\ndef double(n): return [N(2), N(4)]",
    "excepthook": "import os, sys\nsys.excepthook = lambda *given: os._exit(0)\ndef double(numbers): raise ValueError",
    "the caller's frame": (
        "import sys\ndef double(numbers):\n    frame = sys._getframe()\n    while frame:\n"
        "        for name, value in frame.f_locals.items():\n"
        "            if 'expected' in name: return value\n"
        "            if isinstance(value, dict) and 'expected' in value: return value['expected']\n"
        "        frame = frame.f_back"
    ),
    "a redefined writer": "import json\njson.dumps = lambda value: 'true'\ndef double(numbers): return None",
    "two frames": (
        "import os, sys\ndef double(numbers):\n    above = sys._getframe(1).f_locals\n"
        "    nonce = above['order']['nonce']\n"
        "    for answer in ('[2, 4]', '[]'): os.write(above['output'], f'\\n{nonce} {answer}\\n'.encode())\n"
        "    os._exit(0)"
    ),
    "a huge number": "def double(numbers):\n    import sys; sys.set_int_max_str_digits(0); return 10 ** 100000",
    "a deep nest": (
        "import sys, os\ndef double(numbers):\n    above = sys._getframe(1).f_locals\n"
        "    nonce = above['order']['nonce']\n"
        "    os.write(above['output'], f'\\n{nonce} '.encode() + b'[' * 300000 + b'\\n'); os._exit(0)"
    ),
}


@pytest.mark.parametrize("name", HACKS)
def test_hacks_fail(grader: CodeGrader, name: str) -> None:
    """No trick with exits, equality, types, hooks, frames or the answer's form passes a test."""
    verdict = grader.grade(task(DOUBLE, function="double"), fenced(HACKS[name]))
    assert (verdict.score, verdict.correct) == (0.0, False)
    assert verdict.reason.startswith("test 1 of 2: ")


def test_the_same_exits_are_no_way_past_printed_output(grader: CodeGrader) -> None:
    """A program that ends well without printing the answer fails; so does one that prints it and then fails."""
    for source in (
        "import os\nos._exit(0)",
        "print(3)\nraise ValueError",
        "print(3)",
        "print(3, 4)",
        "print(3)\nprint(4)",
    ):
        assert not grader.grade(task(SUM), fenced(source)).correct, source


WRONG = {
    "wrong": (fenced("def double(numbers): return numbers"), "expected [2, 4], got [1, 2]"),
    "empty": (reply(""), "no code"),
    "no code": (reply("I would double each of them."), "no code"),
    "cut off": (reply("```python\ndef double(numbers):\n    return [2 * n for n"), "no code"),
    "no such function": (fenced("def other(numbers): return []"), "KeyError"),
    "syntax": (fenced("def double(numbers) return 1"), "SyntaxError"),
    "text for a list": (fenced("def double(numbers): return '[2, 4]'"), "got '[2, 4]'"),
    "floats": (fenced("def double(numbers): return [2.0, 4.0]"), "got [2.0, 4.0]"),
    "a set": (fenced("def double(numbers): return {2, 4}"), "returned a set"),
    "lone surrogate": (fenced("x = '\ud800'"), "not valid Unicode"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_replies_fail_with_a_reason(grader: CodeGrader, name: str) -> None:
    """What is wrong, empty or no program scores 0 and says why."""
    given_reply, reason = WRONG[name]
    verdict = grader.grade(task(DOUBLE, function="double"), given_reply)
    assert (verdict.score, verdict.correct) == (0.0, False)
    assert reason in verdict.reason


def test_the_echoed_prompt_fails(grader: CodeGrader) -> None:
    """The question itself, with its unfinished code, is no answer."""
    asked = task(DOUBLE, function="double")
    assert not grader.grade(asked, reply(asked.prompt)).correct


def test_each_test_has_its_time(grader: CodeGrader) -> None:
    """A program that does not end fails at the task's own time limit."""
    asked = task(DOUBLE, function="double", time_limit_s=0.8)
    verdict = grader.grade(asked, fenced("def double(numbers):\n    while True: pass"))
    assert verdict.reason == "test 1 of 2: not finished after 0.8 s"


@pytest.mark.parametrize(
    ("expected", "returned", "is_right"),
    [
        (True, "True", True),
        (1, "True", False),
        (True, "1", False),
        (0.3, "0.1 + 0.2", True),
        (2.0, "2", True),
        (2, "2.0", False),
        (0.5, "0.5001", False),
        (1.5, "10 ** 400", False),
        (1.5, "float('nan')", False),
        (None, "None", True),
        ({"a": [1, {"b": None}]}, "{'a': [1, {'b': None}]}", True),
        ({"1": 2}, "{1: 2}", False),
        ([1, 2], "[1, 2, 3]", False),
        ("é", "'é'", True),
    ],
)
def test_values_are_compared_by_type_and_value(expected: Any, returned: str, is_right: bool) -> None:
    """Types count all the way down; only floats may differ a little, and be given as ints."""
    grader = CodeGrader(QUICK, find=find_or_skip)
    asked = task([{"args": [], "expected": expected}], function="f")
    assert grader.grade(asked, fenced(f"def f(): return {returned}")).correct is is_right


@pytest.mark.parametrize(
    ("expected", "printed", "is_right"),
    [
        ("0.5", "0.50000001", True),
        ("0.5", "0.51", False),
        ("5", "5.0", False),
        ("1e3", "1000", True),
        ("0.5", "nan", False),
    ],
)
def test_printed_floats_may_differ_a_little(expected: str, printed: str, is_right: bool) -> None:
    """Where the expected word is a float, and only there, a close number passes."""
    grader = CodeGrader(QUICK, find=find_or_skip)
    asked = task([{"stdin": "", "stdout": f"x {expected}\n"}])
    assert grader.grade(asked, fenced(f"print('x', {printed!r})")).correct is is_right


def find_or_skip() -> Sandbox:
    try:
        return find_sandbox()
    except SandboxUnavailable as error:
        pytest.skip(error.message)


BAD_META = {
    "no tests": {},
    "empty": {"tests": []},
    "text": {"tests": "print(1)"},
    "wrong kind": {"tests": DOUBLE},
    "unknown field": {"tests": [{"stdin": "", "stdout": "", "stdin_file": "x"}]},
    "function": {"tests": DOUBLE, "function": "a b"},
    "time": {"tests": SUM, "time_limit_s": 0},
    "time as text": {"tests": SUM, "time_limit_s": "1"},
}


@pytest.mark.parametrize("name", BAD_META)
def test_tasks_without_sensible_tests_are_not_graded(name: str) -> None:
    """A task that cannot be tested is an error: with nothing to fail, everything would pass."""
    meta = {"tests": None, **BAD_META[name]}
    with pytest.raises(GradeError, match="task 't'"):
        CodeGrader(QUICK, find=find_or_skip).grade(task(**meta), fenced("print(3)"))


def test_without_a_sandbox_nothing_is_scored() -> None:
    """Where no sandbox works no reply gets a verdict, not even one without code, and the error says why."""
    nothing = [Probe(tier=tier, problem="not here") for tier in TIERS]
    grader = CodeGrader(find=lambda: find_sandbox(nothing))
    for given_reply in (reply("no code"), fenced("print(3)")):
        with pytest.raises(SandboxUnavailable, match="code is not graded here: bubblewrap: not here"):
            grader.grade(task(SUM), given_reply)


def test_tasks_choose_this_grader_by_name() -> None:
    """`meta["grader"] = "code"` leads here."""
    find_or_skip()
    right = fenced("print(sum(map(int, input().split())))")
    assert TaskGrader().grade(task(SUM), right).correct


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\na\n```\ntext\n```py\nb\n```", "b\n"),
        ("```python\na\n```\nIt prints:\n```\nb\n```", "a\n"),
        ("```\na\n```\n```bash\nb\n```", "a\n"),
        ("````python\na = '''\n```\n'''\n````", "a = '''\n```\n'''\n"),
        ("```python\na\n```\n```python\nb", "a\n"),
        ("  ```Python\na\n  ```", "a\n"),
        ("```json\n{}\n```", None),
        ("a = `1`", None),
        ("```python\r\na = '\u2028'\r\n```", "a = '\u2028'\n"),
    ],
)
def test_the_last_block_of_python_is_the_program(text: str, code: str | None) -> None:
    """Marked blocks before unmarked ones, the last of them; other languages and open blocks are no program."""
    assert extract_code(text) == code


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(alphabet="`~ \n\tpython{}ab\r\x0b\u2028", max_size=80))
def test_any_text_has_code_or_none(text: str) -> None:
    """Whatever a reply looks like, looking for its program raises nothing."""
    code = extract_code(text)
    assert code is None or isinstance(code, str)
