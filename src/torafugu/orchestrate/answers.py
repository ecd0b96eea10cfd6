"""The final answer of a reply, where it can be compared: what agreement between workers is read off.

Whether answers can be read at all hangs on the request: a number, an option or a tagged answer can be compared, an
essay cannot. Nothing is guessed: where no form of ours is found, the answer is None, and only a Verifier can judge it.
"""

from __future__ import annotations

import re

from ..grade.exact import extract_answer, given_answer
from ..types import Message, Reply, Request
from .prompts import drop_reasoning

__all__ = ["asks_for_answer", "last_user_text", "read_answer", "read_verified"]

_TAG = re.compile(r"<answer>", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
_ANNOUNCED = re.compile(r"(?:.{0,120}\b)?answer(?: is ?:?| ?[:=]) ?(.{1,120})", re.IGNORECASE)
_MARKUP = re.compile(r"(?<![\w*_`])(\*\*|__|[*_`])(?=\S)([^*_`]+)(?<=\S)\1(?![\w*_`])")
_SHORT_CHARS = 48
"""A reply of one line that is no longer, and no sentence, is an answer by itself."""
_SENTENCE_WORDS = 3
"""Words before a full stop that make a sentence: "I don't know." says something, but answers nothing."""


def asks_for_answer(request: Request) -> bool:
    """Whether every good reply holds an answer that can be compared: a task with a gold answer, or a prompt that asks
    for the form.
    """
    text = last_user_text(request.messages)
    return request.task is not None or bool(_TAG.search(text)) or "\\boxed" in text


def read_answer(request: Request, reply: Reply) -> str | None:
    """As it is written; "" when the reply lacks the answer that it was asked for; None when none can be read.

    In this order: what the worker itself says it is, `<answer>` tags, `\\boxed{}`, a last line "The answer is ...",
    a reply that is one short line, but no sentence.
    """
    if reply.answer is not None:
        return reply.answer
    prompt, text = last_user_text(request.messages), drop_reasoning(reply.text)
    if _TAG.search(text):
        return given_answer("<answer>", text)
    if boxed := _BOXED.findall(text):
        return given_answer("", boxed[-1]) or None
    if _TAG.search(prompt):
        return ""
    last = " ".join(_MARKUP.sub(r"\2", extract_answer(text) or "").split())  # long runs of blanks would take minutes
    if announced := _ANNOUNCED.fullmatch(last):
        return given_answer("", announced[1]) or None
    if request.task is not None:  # its grader reads the last line, too
        return given_answer(prompt, text)
    if "\\boxed" in prompt:
        return ""
    if last and len(last) <= _SHORT_CHARS and "\n" not in text.strip() and not _is_sentence(last):
        return given_answer("", last) or None
    return None


def _is_sentence(line: str) -> bool:
    """Letters of a formula are no words."""
    words = [word for word in line.split() if word == "I" or (len(word) > 1 and word[:2].isalpha())]
    return line[-1] in ".!?" and len(words) >= _SENTENCE_WORDS


def read_verified(reply: Reply) -> str:
    """A Verifier's own answer: the one between its tags. Its last line is a verdict, and two of those would "agree"."""
    return given_answer("<answer>", reply.text) if reply.answer is None else reply.answer


def last_user_text(messages: tuple[Message, ...]) -> str:
    return next((message.text for message in reversed(messages) if message.role == "user"), "")
