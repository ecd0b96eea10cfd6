"""Final answers of replies: where they are found, when there is none, and what is never taken for one."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from torafugu.episode import task_to_request
from torafugu.grade.task import Task
from torafugu.orchestrate.answers import asks_for_answer, read_answer, read_verified
from torafugu.types import ImagePart, Message, Reply, Request, TextPart

TAGGED = "How much is 6 times 7? Put the number between <answer> and </answer>."
BOXED = "How much is 6 times 7? Put the number in \\boxed{}."
OPEN = "Tell me about tigers."


def ask(*texts: str, task: str | None = None) -> Request:
    return Request(model="m", messages=tuple(Message(role="user", content=text) for text in texts), task=task)


def reply(text: str, answer: str | None = None) -> Reply:
    return Reply(worker="a", text=text, finish_reason="stop", answer=answer)


@pytest.mark.parametrize(
    ("prompt", "text", "answer"),
    [
        # tags, whatever was asked for
        (TAGGED, "6 x 7.\n<answer>42</answer>", "42"),
        (TAGGED, "<answer> 42. </answer>", "42."),
        (TAGGED, "<ANSWER>1,000.0</ANSWER>", "1,000.0"),
        (TAGGED, "First <answer>41</answer>, no: <answer>42</answer>.", "42"),
        (OPEN, "Long.\nLonger.\n<answer>Tigers  are LARGE</answer>", "Tigers  are LARGE"),
        # boxed
        (BOXED, "So $\\boxed{42}$.", "42"),
        (BOXED, "\\boxed{41}? No, \\boxed {42}", "42"),
        (TAGGED, "\\boxed{42}", "42"),
        (OPEN, "\\boxed{\\frac{1}{2}} it is,\nas said", "\\frac{1}{2}"),
        # announced on the last line, or all on one short line
        (OPEN, "Let me see.\nAnswer: 42", "42"),
        (OPEN, "Let me see.\n**Final answer:** 42.", "42."),
        (OPEN, "Let me see.\nanswer = `6/2`", "6/2"),
        (OPEN, "Let me see.\nThe answer is 42.", "42."),
        (OPEN, "The answer is 42.", "42."),
        (OPEN, "Let me see.\nSo, the final answer is: **42**", "42"),
        (BOXED, "Let me see.\nAnswer: 42", "42"),
        (BOXED, "I do not know.", ""),
        (OPEN, "Paris", "Paris"),
        (OPEN, "**Paris.**", "Paris."),
        (OPEN, "  yes  \n", "yes"),
        (OPEN, "1.50", "1.50"),
        (OPEN, "New York City", "New York City"),
        (OPEN, "29 days, 3 hours.", "29 days, 3 hours."),
        (OPEN, "x = 3 or x = 5.", "x = 3 or x = 5."),
        # after reasoning that was left in the reply
        (OPEN, "<think>Is it 41? <answer>41</answer></think>42", "42"),
        (TAGGED, "<think>\n\\boxed{41}\n</think>\n\n<answer>42</answer>", "42"),
    ],
)
def test_forms(prompt: str, text: str, answer: str) -> None:
    """An answer is found in tags, in a box, behind "Answer:", or as a short line by itself, as it is written."""
    assert read_answer(ask(prompt), reply(text)) == answer


@pytest.mark.parametrize(
    "text",
    [
        "Tigers are large cats.\nThey live in Asia.",
        "Tigers are large cats that live in Asia, from Siberia to Sumatra, alone.",
        "Answer: 42\nOr so I think; but tigers cannot be counted.",
        "I don't know.",
        "I do not know how to do this.",
        "What do you mean?",
        "\\boxed{}",
        "",
        " \n ",
    ],
)
def test_essays_have_none(text: str) -> None:
    """Where nothing asks for a form of ours and the reply has none, the answer is None: it cannot be compared."""
    assert read_answer(ask(OPEN), reply(text)) is None


@pytest.mark.parametrize("prompt", [TAGGED, TAGGED.upper(), "x " * 5000 + TAGGED])
@pytest.mark.parametrize(
    "text", ["42", "Answer: 42", "I do not know.", "<answer>", "</answer>42<answer>", "<answer></answer>"]
)
def test_answer_that_was_asked_for_and_is_missing(prompt: str, text: str) -> None:
    """A reply without the tags that the prompt asks for holds no answer, whatever its last line says."""
    assert read_answer(ask(prompt), reply(text)) == ""


def test_recorded_answers_pass_through() -> None:
    """What the worker itself says its answer is stands, in its own form, also when it says that there is none."""
    for answer in ("41", "", "A, B ", "<answer>"):
        assert read_answer(ask(TAGGED, task="t"), reply("<answer>42</answer>", answer)) == answer
        assert read_answer(ask(OPEN), reply("An essay.\nIndeed.", answer)) == answer
        assert read_verified(reply("<answer>42</answer>", answer)) == answer


def test_who_asks_for_an_answer() -> None:
    """A task has an answer, and so has a prompt that names the form; the last user's message alone counts."""
    assert asks_for_answer(ask(TAGGED))
    assert asks_for_answer(ask(BOXED))
    assert asks_for_answer(ask(OPEN, task="t"))
    assert not asks_for_answer(ask(OPEN))
    assert not asks_for_answer(ask(TAGGED, OPEN))
    assert not asks_for_answer(Request(model="m", messages=()))
    system = (Message(role="system", content=TAGGED), Message(role="user", content=OPEN))
    assert not asks_for_answer(Request(model="m", messages=system))
    parts = (TextPart(text=TAGGED), ImagePart(url="https://x/y.png"))
    assert asks_for_answer(Request(model="m", messages=(Message(role="user", content=parts),)))
    task = Task(id="t", family="", category="", dataset="", prompt=OPEN, gold="42", split="test")
    assert asks_for_answer(task_to_request(task))


def test_tags_that_only_the_prompt_has() -> None:
    """A client's prompt that quotes an answer does not put it into workers' mouths."""
    request = ask("Is this right? <answer>42</answer>")
    assert read_answer(request, reply("It is not.")) == ""
    assert read_answer(request, reply("<answer>no</answer>")) == "no"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>42</answer>\nReason: so.\n<verdict>ACCEPT</verdict>", "42"),
        ("ACCEPT", ""),
        ("\\boxed{42}\nREJECT", ""),
        ("Answer: 42", ""),
        ("<answer>42", ""),
        ("", ""),
    ],
)
def test_a_verifiers_own_answer(text: str, answer: str) -> None:
    """A Verifier is asked for tags and a verdict: what is not between tags is no answer, least of all the verdict."""
    assert read_verified(reply(text)) == answer


@pytest.mark.parametrize(
    "text",
    [
        "answer" + " " * 200_000 + "x",
        "answer is" + "\t" * 200_000 + ":",
        "\\boxed" + " " * 200_000,
        "\\boxed{" * 40_000,
        "\\boxed{" + "{a" * 100_000,
        "\\boxed{" + "{}" * 100_000 + "}",
        "<answer>" * 40_000,
        "*" * 300_000,
    ],
    ids=lambda text: text[:9],
)
def test_hostile_replies_are_read_in_no_time(text: str) -> None:
    """However a reply is made, reading it takes time in proportion to its length: quadratic would hang the suite."""
    for prompt in (OPEN, TAGGED, BOXED):
        read_answer(ask(prompt), reply(text))
        read_verified(reply(text))


@given(prompt=st.sampled_from([OPEN, TAGGED, BOXED]), text=st.text("<answer>/\\boxed{} .:=*`$1aA\n", max_size=60))
@example(prompt=OPEN, text="Answer: ")
def test_any_reply_is_read(prompt: str, text: str) -> None:
    """Whatever is replied: None only where no form was asked for, or a box was left empty; never what is not there."""
    answer = read_answer(ask(prompt), reply(text))
    assert answer is None or isinstance(answer, str)
    if answer is None:
        assert prompt == OPEN or "\\boxed" in text
    if answer == "" and prompt == OPEN:
        assert "<answer>" in text.lower()
