"""Programs that are right when they pass every test of their task; run in the sandbox, judged out here.

A test is what goes in and what must come out: `{"stdin", "stdout"}`, or with `meta["function"]` `{"args", "expected"}`.
What has to come out never enters the sandbox, and nothing that the program could redefine (equality, exit status,
hooks) takes part in the verdict. One process for each test; the first failed test ends it.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from ..errors import GradeError
from ..types import Reply, Value
from .grader import Verdict
from .sandbox import Limits, Ran, Sandbox, find_sandbox
from .task import Task

__all__ = ["CallTest", "CodeGrader", "StdinTest", "extract_code"]

_FENCE = re.compile(r"^ {0,3}(`{3,})[ \t]*([^\s`]*)[^`\n]*$")
_PYTHON = frozenset({"python", "py", "python3"})
_CALL = Path(__file__).parent / "sandbox" / "call.py"
_TOLERANCE = 1e-6
_LEAST = 1e-9
_MAX_TIME_LIMIT_S = 60.0


class StdinTest(Value, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The program reads `stdin` and has to print `stdout`."""

    stdin: str
    stdout: str


class CallTest(Value, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The task's function is called with `args` and has to return `expected`."""

    args: list[Any]
    expected: Any


_Test: TypeAlias = StdinTest | CallTest


class CodeGrader:
    """Right when the program in the reply passes all tests of `meta["tests"]`, each within `meta["time_limit_s"]`."""

    def __init__(self, limits: Limits | None = None, *, find: Callable[[], Sandbox] = find_sandbox) -> None:
        self._limits = limits or Limits()
        self._find = find

    def grade(self, task: Task, reply: Reply) -> Verdict:
        """Raises:
        SandboxUnavailable: a GradeError; programs cannot be confined here.
        GradeError: the task has no tests that can be read, or the sandbox did not start.
        """
        tests, limits = _read_tests(task), self._limits_of(task)
        # Before the reply is looked at: where nothing can be run, not even a reply without code is scored.
        sandbox = self._find()
        source = extract_code(reply.text)
        if source is None:
            return Verdict(score=0.0, correct=False, reason="no code: expected a fenced block of Python")
        for number, test in enumerate(tests, 1):
            problem = _run_test(sandbox, source, task.meta.get("function"), test, limits)
            if problem is not None:
                return Verdict(score=0.0, correct=False, reason=f"test {number} of {len(tests)}: {problem}"[:300])
        return Verdict(score=1.0, correct=True)

    def _limits_of(self, task: Task) -> Limits:
        limit_s = task.meta.get("time_limit_s")
        if limit_s is None:
            return self._limits
        if type(limit_s) not in (int, float) or not 0 < limit_s <= _MAX_TIME_LIMIT_S:
            raise GradeError(
                f"task {task.id!r}: time_limit_s {limit_s!r}: expected 0 < seconds <= {_MAX_TIME_LIMIT_S:g}"
            )
        return replace(self._limits, wall_s=float(limit_s))


def extract_code(text: str) -> str | None:
    """The last closed fenced block marked as Python; without one, the last that is not marked. None without either."""
    marked = unmarked = None
    opening: re.Match[str] | None = None
    lines: list[str] = []
    for line in text.replace("\r\n", "\n").split("\n"):  # not splitlines: that breaks strings of the program
        fence = _FENCE.match(line)
        if opening is None:
            opening, lines = fence, []
        elif fence and not fence[2] and len(fence[1]) >= len(opening[1]):
            source = "\n".join([*lines, ""])
            if opening[2].lower() in _PYTHON:
                marked = source
            elif not opening[2]:
                unmarked = source
            opening = None
        else:
            lines.append(line)
    return marked if marked is not None else unmarked


def _read_tests(task: Task) -> Sequence[_Test]:
    function, raw = task.meta.get("function"), task.meta.get("tests")
    if function is not None and not (isinstance(function, str) and function.isidentifier()):
        raise GradeError(f"task {task.id!r}: function {function!r}: expected a name")
    if not isinstance(raw, list | tuple) or not raw:
        raise GradeError(f"task {task.id!r}: no tests: expected a list of at least one in meta['tests']")
    try:
        if function is None:
            return msgspec.convert(raw, list[StdinTest])
        return msgspec.convert(raw, list[CallTest])
    except msgspec.ValidationError as error:
        raise GradeError(f"task {task.id!r}: tests: {error}") from error


def _run_test(sandbox: Sandbox, source: str, function: Any, test: _Test, limits: Limits) -> str | None:
    """Why the test failed; None when it passed."""
    from .sandbox.child import find_python  # only Linux has what it imports; and a sandbox was found

    try:
        files = {"program.py": source.encode()}
    except UnicodeEncodeError:
        return "the program is not valid Unicode"
    python = [find_python(), "-I", "-B"]
    if isinstance(test, StdinTest):
        ran = sandbox.run(files, [*python, "program.py"], test.stdin.encode(), limits)
        return _find_fault(ran, limits) or _compare_output(ran.stdout, test.stdout)
    nonce = secrets.token_hex(16)
    order = json.dumps({"function": function, "args": test.args, "nonce": nonce}).encode()
    ran = sandbox.run({**files, "call.py": _CALL.read_bytes()}, [*python, "call.py"], order, limits)
    return _find_fault(ran, limits) or _compare_frame(ran.stdout, nonce, test.expected)


def _find_fault(ran: Ran, limits: Limits) -> str | None:
    if ran.timed_out:
        return f"not finished after {limits.wall_s:g} s"
    if ran.flooded:
        return f"wrote more than {limits.output_bytes} bytes"
    if ran.status != 0:
        last = ran.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["(nothing on stderr)"]
        return f"exit status {ran.status}: {last[0][-200:]}"
    return None


def _compare_frame(stdout: bytes, nonce: str, expected: Any) -> str | None:
    lines = [line for line in stdout.split(b"\n") if line.startswith(nonce.encode())]
    if len(lines) != 1:
        return f"{len(lines)} results: expected one (did it end before the function returned?)"
    try:
        returned = json.loads(lines[0].removeprefix(nonce.encode()))
        return None if _is_same(returned, expected) else f"expected {expected!r:.100}, got {returned!r:.100}"
    except (ValueError, RecursionError):  # huge integers, deep nests, bytes that are no text
        return "the result cannot be read"


def _is_same(given: Any, expected: Any) -> bool:
    """Same type and value, all the way down; a float may differ a little, and be given as an int."""
    if type(expected) is float:
        return type(given) in (int, float) and _is_close(given, expected)
    if type(given) is not type(expected):
        return False
    if type(expected) is list:
        return len(given) == len(expected) and all(map(_is_same, given, expected))
    if type(expected) is dict:
        return given.keys() == expected.keys() and all(_is_same(given[key], expected[key]) for key in expected)
    return bool(given == expected)


def _is_close(given: float, expected: float) -> bool:
    try:
        return math.isclose(given, expected, rel_tol=_TOLERANCE, abs_tol=_LEAST)
    except OverflowError:  # an int beyond all floats
        return False


def _compare_output(stdout: bytes, expected: str) -> str | None:
    """By lines; blanks at their ends and blank lines at the end do not count, floats may differ a little."""
    try:
        given = stdout.decode()
    except UnicodeDecodeError:
        return "printed bytes that are no UTF-8"
    lines, wanted = (_to_lines(text) for text in (given, expected))
    if lines == wanted:
        return None
    if len(lines) != len(wanted):
        return f"printed {len(lines)} lines: expected {len(wanted)}"
    for number, (line, want) in enumerate(zip(lines, wanted, strict=True), 1):
        if not _is_same_line(line, want):
            return f"line {number}: expected {want[:100]!r}, got {line[:100]!r}"
    return None


def _to_lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _is_same_line(given: str, expected: str) -> bool:
    words, wanted = given.split(), expected.split()
    return len(words) == len(wanted) and all(map(_is_same_word, words, wanted))


def _is_same_word(given: str, expected: str) -> bool:
    if given == expected:
        return True
    if not re.fullmatch(r"[+-]?\d*\.\d*(?:[eE][+-]?\d+)?|[+-]?\d+[eE][+-]?\d+", expected, re.ASCII):
        return False
    if not re.fullmatch(r"[+-]?[\d.]{1,400}(?:[eE][+-]?\d{1,6})?", given, re.ASCII):
        return False
    try:
        return _is_close(float(Decimal(given)), float(Decimal(expected)))
    except (InvalidOperation, OverflowError):
        return False
