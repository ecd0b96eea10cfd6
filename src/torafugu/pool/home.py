"""The home pool: workers in this process that need no key and no network, with really different skills.

Each reads the text of the last user message and nothing else; `skills/` holds what they can do. `exact-math`,
`text-ops` and `facts` are right wherever they understand the question. `generalist` and `hasty` are simulated: they
know the same skills, but are wrong on purpose on a fixed part of the questions, so that a pool has something to be
learned about (see `_answer_generally` and `_answer_hastily`). Nobody raises on any text.

A subtask of a workflow is asked as `Query.question`. Where it says "the result of step K" (`skills/references.py`), the
answer of reply K in `Query.results` is filled in before anything else; without that reply a worker can only say so.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from ..agreement import canonical_answer
from ..errors import ConfigError
from ..types import FinishReason, Sampling, Usage
from .backend import Backend, Completion, Delta, OnDelta, Query
from .skills import AREAS, Skill, Worked
from .skills.composed import Part, read_parts
from .skills.mixed import add_in_words
from .skills.references import fill_in, read_result, read_results
from .spec import WorkerSpec

__all__ = ["Home", "home_pool_path", "make_home"]

MAX_QUESTION_CHARS = 20_000
CHARS_PER_TOKEN = 4
"""Nobody counts tokens here: usage is characters divided by four, which is what English text costs elsewhere."""
_WORDS_PER_DELTA = 4
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_UNKNOWN = "I do not know how to do this."
_TOO_LONG = "This is too long for me."
_UNTOLD = "I was not told the result that this refers to."

Answerer: TypeAlias = Callable[[str], str]


def home_pool_path() -> Path:
    """The pool file that ships: all home workers with prices."""
    return Path(__file__).with_name("home.toml")


def make_home(spec: WorkerSpec) -> Backend:
    """The home worker that `spec.model` names.

    Raises:
        ConfigError: there is no such worker, or SymPy is not installed.
    """
    if spec.model not in _ANSWERERS:
        raise ConfigError(
            f"worker {spec.id!r}: model {spec.model!r} is not one of {', '.join(repr(m) for m in sorted(_ANSWERERS))}"
        )
    if importlib.util.find_spec("sympy") is None:
        raise ConfigError(f"worker {spec.id!r}: the home workers need SymPy: pip install 'torafugu[home]'")
    return Home(spec.model, _ANSWERERS[spec.model])


class Home:
    """A worker of the home pool: a `Backend` around a pure function from question to answer."""

    def __init__(self, model: str, answer: Answerer) -> None:
        self._model = model
        self._answer = answer

    async def complete(self, query: Query, on_delta: OnDelta | None) -> Completion:
        started = time.perf_counter()
        text = self._answer_query(query)
        if query.role == "verifier":
            text = _verify(text, query.verifies)
        text, finish_reason = _cut(text, query.sampling)
        first_token_ms = None
        if on_delta is not None:
            first_token_ms = (time.perf_counter() - started) * 1000
            for piece in re.findall(rf"(?:\S+\s*){{1,{_WORDS_PER_DELTA}}}", text):
                await on_delta(Delta(text=piece))
        return Completion(
            text=text,
            finish_reason=finish_reason,
            usage=Usage(
                input_tokens=sum(_count_tokens(message.text) for message in query.messages),
                output_tokens=_count_tokens(text),
            ),
            provider_model=self._model,
            first_token_ms=first_token_ms,
            sent_bytes=0,
        )

    async def close(self) -> None:
        """Nothing is held."""

    def _answer_query(self, query: Query) -> str:
        question = query.question
        if question is None:  # the client's own words, which refer to no steps
            question = next((m.text for m in reversed(query.messages) if m.role == "user"), "")
        elif query.role == "worker" and len(question) <= MAX_QUESTION_CHARS:
            results = read_results(question, query.results)
            if results is None:
                return _UNTOLD
            question = fill_in(question, results, limit_chars=MAX_QUESTION_CHARS)
        if question is None or len(question) > MAX_QUESTION_CHARS:
            return _TOO_LONG
        return self._answer(question)


def _verify(own: str, answer: str | None) -> str:
    """As Verifier it solves the question itself, and accepts what says the same."""
    found = _ANSWER.search(own)
    agrees = answer is not None and found is not None and canonical_answer(found[1]) == canonical_answer(answer) != ""
    return f"{own}\n<verdict>{'ACCEPT' if agrees else 'REJECT'}</verdict>"


def _count_tokens(text: str) -> int:
    return len(text) // CHARS_PER_TOKEN


def _cut(text: str, sampling: Sampling) -> tuple[str, FinishReason]:
    """The text up to the first stop sequence, and no longer than the caller allows."""
    ends = [at for stop in sampling.stop if stop and (at := text.find(stop)) >= 0]
    text = text[: min(ends)].rstrip() if ends else text
    limit = sampling.max_output_tokens
    if limit is not None and len(text) > limit * CHARS_PER_TOKEN:
        return text[: limit * CHARS_PER_TOKEN].rstrip(), "length"
    return text, "stop"


def _find_skill(question: str, skills: Mapping[str, Skill]) -> tuple[str, Worked] | None:
    """The first skill that understands the question, and its result."""
    for name, skill in skills.items():
        if worked := skill(question):
            return name, worked
    return None


def _write(worked: Worked) -> str:
    return f"{worked.how}\n<answer>{worked.answer}</answer>"


def _make_specialist(skills: Mapping[str, Skill]) -> Answerer:
    """Right where it understands the question; says so where it does not."""

    def answer(question: str) -> str:
        found = _find_skill(question, skills)
        return _write(found[1]) if found else _UNKNOWN

    return answer


_RELIABILITY = {"mixed": 0.9, "arithmetic": 0.58, "text": 0.6, "facts": 0.62, "reasoning": 0.7}
"""Share of the questions of each area that the simulated generalist answers right. Chosen by us, so that it is the best
single worker of the home pool and yet far from what choosing among all of them reaches."""
_GREETING = re.compile(
    r"\s*(?:hello|hi|hey|good (?:morning|day|evening)|thanks|thank you|who are you|what can you do|help)\b",
    re.IGNORECASE,
)
_ABOUT_ME = (
    "Hello! I am the generalist of Torafugu's home pool: a small program, not a language model. I can do some "
    "arithmetic, work with letters and words, and look up the calendar, legs of animals and family ties; "
    "I am often wrong."
)


def _answer_generally(question: str) -> str:
    """A simulated generalist: it has every skill, but errs on a fixed share of the questions of each area.

    Whether it errs is decided by a hash of the question, so that the same question always gets the same answer. It is
    the only one who sees that a question has several parts; then it may err in each of them, and goes on with that.
    """
    parts = read_parts(question)
    if parts is not None and len(parts) > 1:
        return _answer_in_parts(question, parts)
    if recalled := _recall(question, luck=question):
        return recalled
    return _ABOUT_ME if len(question) <= 200 and _GREETING.match(question) else _UNKNOWN


def _recall(question: str, *, luck: str) -> str | None:
    """What the generalist thinks; `luck` decides whether that is right."""
    for area, skills in AREAS.items():
        if found := _find_skill(question, skills):
            if _draw(luck, "generalist") < _RELIABILITY[area]:
                return _write(found[1])
            return f"If I remember this well, it is as follows.\n<answer>{_misremember(found[1].answer)}</answer>"
    return None


def _answer_in_parts(question: str, parts: Sequence[Part]) -> str:
    answers: dict[int, str] = {}
    recalled: str | None = None
    for position, part in enumerate(parts):
        subtask = fill_in(part.subtask, answers, limit_chars=MAX_QUESTION_CHARS)
        recalled = _recall(subtask, luck=f"{question}\n{position}") if subtask else None
        if recalled is None:  # it has misremembered something that now makes no sense
            return _UNKNOWN
        answers[position] = read_result(recalled)
    return recalled or _UNKNOWN


_HASTY_LIMITS = {
    "calculate": 3,
    "find_common": 1,
    "solve_equation": 1,
    "spell_backward": 6,
    "sort_words": 28,
    "reverse_words": 28,
    "count_legs": 2,
    "convert_units": 3,
    "sum_letter_values": 2,
}
"""Characters of the longest answer that the hasty worker still works out with care, by skill."""
_HASTY_SKILLS = {name: skill for skills in AREAS.values() for name, skill in skills.items() if name in _HASTY_LIMITS}


def _answer_hastily(question: str) -> str:
    """A simulated cheap worker: right on cases whose answer is short, careless beyond."""
    found = _find_skill(question, _HASTY_SKILLS)
    if found is None:
        return _UNKNOWN
    name, worked = found
    is_easy = len(worked.answer) <= _HASTY_LIMITS[name]
    return f"Quickly done.\n<answer>{worked.answer if is_easy else _misremember(worked.answer)}</answer>"


def _draw(question: str, salt: str) -> float:
    """A number in 0..1 that hangs on nothing but the question's words."""
    digest = hashlib.sha256(f"{salt}\n{' '.join(question.split())}".encode(errors="replace")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


_CONFUSED = (
    ("Yes", "No"),
    ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    ("mother", "grandmother", "sister", "daughter", "wife", "aunt"),
    ("father", "grandfather", "brother", "son", "husband", "uncle"),
)


def _misremember(answer: str) -> str:
    """Something near a right answer that is not it."""
    for words in _CONFUSED:
        if answer in words:
            return words[(words.index(answer) + 1) % len(words)]
    if digits := [at for at, c in enumerate(answer) if c in "0123456789"]:
        at = digits[len(digits) // 2]
        return f"{answer[:at]}{(int(answer[at]) + 1) % 10}{answer[at + 1 :]}"
    for at in range(len(answer) - 1):
        if answer[at] != answer[at + 1] and answer[at : at + 2].isalpha():
            return f"{answer[:at]}{answer[at + 1]}{answer[at]}{answer[at + 2 :]}"
    return answer + "a"


_ANSWERERS: Mapping[str, Answerer] = {
    "exact-math": _make_specialist(AREAS["arithmetic"]),
    "text-ops": _make_specialist({**AREAS["text"], "find_who": AREAS["reasoning"]["find_who"]}),
    "facts": _make_specialist(
        {
            **AREAS["facts"],
            **AREAS["reasoning"],
            "compare_numbers": AREAS["arithmetic"]["compare_numbers"],
            "add_in_words": add_in_words,
        }
    ),
    "generalist": _answer_generally,
    "hasty": _answer_hastily,
}
