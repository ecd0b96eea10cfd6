"""The plan language: any form that a model may choose is read, nothing that cannot be run as written is let through."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from torafugu.errors import ConfigError, PlanError
from torafugu.orchestrate.plan import (
    LIMIT_CHARS,
    Access,
    PlanFormat,
    Workflow,
    WorkflowStep,
    parse_workflow,
    visible,
    write_workflow,
)
from torafugu.orchestrate.plan_grammar import workflow_grammar, workflow_schema
from torafugu.types import Json

SEVEN = PlanFormat(workers=7)
POSITIONS = PlanFormat(workers=7, access="position")
WORKERS = PlanFormat(workers=7, access="worker")
SYNTAX = {"plan_unparseable", "plan_too_long"}
MEANING = {
    "plan_unknown_worker",
    "plan_masked_worker",
    "plan_future_reference",
    "plan_bad_access",
    "plan_unequal_lengths",
    "plan_too_many_steps",
    "plan_empty",
    "plan_empty_subtask",
    "plan_bad_recursion",
    "plan_unread_step",
}


def write(models: str, subtasks: str, access: str) -> str:
    return f"model_id: {models}\nsubtasks: {subtasks}\naccess_list: {access}"


def make(*steps: tuple[int, str, Access]) -> Workflow:
    return Workflow(steps=tuple(WorkflowStep(worker=w, subtask=s, access=a) for w, s, a in steps))


def access_of(workflow: Workflow) -> list[Access]:
    return [step.access for step in workflow.steps]


def fault_of(text: str, format: PlanFormat = SEVEN) -> PlanError:
    with pytest.raises(PlanError) as caught:
        parse_workflow(text, format)
    return caught.value


def parse(text: str, format: PlanFormat) -> Workflow | PlanError:
    try:
        return parse_workflow(text, format)
    except PlanError as fault:
        return fault


PLAN = write("[2, 0]", '["Solve it.", "Check it."]', '[[], ["all"]]')
TWO = make((2, "Solve it.", ()), (0, "Check it.", "all"))

# --- form ---


@pytest.mark.parametrize(
    "text",
    [
        PLAN,
        'model_id: [2, "0"]\nsubtasks: ["Solve it.", "Check it."]\naccess_list: [[], ["all"]]',
        "model_id = ['2', '0']\nsubtasks = ['Solve it.', 'Check it.']\naccess_list = [[], 'all']",
        "Model ID: [2, 0]\nSubtask: ['Solve it.', 'Check it.']\nAccess: ['all', 'ALL']",
        "MODEL IDS: [2, 0,]\nSUB TASKS: ['Solve it.', 'Check it.',]\nACCESS LISTS: [[], ['all',],]",
        "Model-ID: [2, 0]\nsub_tasks: ['Solve it.', 'Check it.']\naccess-list: [(), ('all',)]",
        r"model\_id: [2, 0]" + "\nsubtasks: ['Solve it.', 'Check it.']\n" + r"access\_list: [[], [all]]",
        "- model_id: [2, 0]\n* subtasks: [“Solve it.”, ‘Check it.’]\n• access_list: [[], [“all”]]",
        "model_id: [2, 0]\nsubtasks: [“Solve it.\", ”Check it.”]\naccess_list: [[], [‘all']]",
        "`model_id`: `[2, 0]`\n`subtasks`: [`Solve it.`, `Check it.`]\n`access_list`: ```[[], [`all`]]```",
        "**model_id:** [2, 0]\n**subtasks**: ['Solve it.', 'Check it.']\n### **access_list** = [[], ['all']]",
        '```json\n{"model_id": [2, 0], "subtasks": ["Solve it.", "Check it."], "access_list": [[], ["all"]]}\n```',
        '{"subtasks":["Solve it.","Check it."],"access_list":[[],["all"]],"model_id":[2,0]}',
        'So: {\'plan\': {"model_id": ["2", "0"], \'subtasks\': ["Solve it.", \'Check it.\'], "access": [[], "all"]}}.',
        "model_id:\n```python\n[\n  2,  # solves\n  0,  // checks\n]\n```\n"
        "subtasks:\n```\n['Solve it.',\n\n'Check it.']```\naccess_list: [[],\n['all']]",
        'model_id: [model 2, "Model id 0"]\nsubtasks: ["""Solve it.""", \'\'\'Check it.\'\'\']\naccess: [[], [0, all]]',
        f"Let's think: model 2 is best.\n{PLAN}\nThe last one checks, see model_id: 0 and access.",
        "subtasks: ['Solve it.', 'Check it.']\nmodel_id: [worker 2, model_id_0]\naccess_list: [[], [ \"All\" ]]",
        r'model_id: [2, 0] subtasks: ["Solve\u0020it.", "\u0043heck\x20it\u002e"] access_list: [[], ["all"]]',
    ],
)
def test_forms(text: str) -> None:
    """Labels, quotes, markup and literals may take any form that the paper's code reads, and more."""
    assert parse_workflow(text, SEVEN) == TWO


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r'"a \"word\", a [ and a \\ "', 'a "word", a [ and a \\ '),
        (r"'don\'t \n\t stop \/'", "don't \n\t stop /"),
        ('"two\nlines"', "two\nlines"),
        (r'"\frac{1}{2} \beta \(x\) \underline \xi \d"', r"\frac{1}{2} \beta \(x\) \underline \xi \d"),
        (r'"\ud83d\ude00 \u00e9 \xe9"', "😀 é é"),
        ('"it’s “quoted” and `code`"', "it’s “quoted” and `code`"),
        ('"<think>model_id: [9]</think> # no // comment"', "<think>model_id: [9]</think> # no // comment"),
        ('"</think> subtasks: [1], access_list: []"', "</think> subtasks: [1], access_list: []"),
        ('"""a "b" c"""', 'a "b" c'),
        ('" kept as it is "', " kept as it is "),
    ],
)
def test_texts(written: str, read: str) -> None:
    """A subtask is what stands between its quotes: JSON's and Python's escapes, TeX left alone, nothing parsed."""
    assert parse_workflow(write("[0]", f"[{written}]", "[[]]"), SEVEN) == make((0, read, ()))


DRAFT = write("[5]", '["draft"]', "[[]]")
MODELS, SUBTASKS, ACCESS = PLAN.splitlines()


@pytest.mark.parametrize(
    "text",
    [
        f"{DRAFT}\nNo, better:\n{PLAN}",
        f"{DRAFT}\n{DRAFT}\n{PLAN}",
        f"access_list: [] means that it sees nothing.\n{PLAN}",
        f"subtasks: ['first thoughts']\n{PLAN}",
        f"{PLAN}\nWith access_list: [[]] the second would be blind.",
        f"{DRAFT}\n{PLAN}\nWith access_list: [[]] the second would be blind.",
        f"{PLAN}\nOr, then again:\nmodel_id: [1]\nsubtasks: ['cut o",
        f"{PLAN}\nmodel_id: [1]\nsubtasks: ['whole']",
        f"{DRAFT}\n{SUBTASKS}\n{MODELS}\n{ACCESS}",
        f"model_id: [9]\naccess_list: [9]\nsubtasks: ['x']\n{MODELS}\n{ACCESS}\n{SUBTASKS}",
        f"subtasks: [\"don't know yet\n{PLAN}",
        f"model_id: [0, 1 {PLAN}",
        f"<think>{DRAFT}\n{DRAFT}</think>{PLAN}",
        f"<THINK>model_id: [1]</Think>{PLAN}",
        f"{PLAN}\n<think>Better {DRAFT}</think>",
        f"{MODELS}\n<think>subtasks: ['x']</think>\n{SUBTASKS}\n{ACCESS}",
        f"{PLAN}\n<think>never closed",
        f"I begin in the prompt's tag: model_id: [1]\n</think>\n{PLAN}",
    ],
)
def test_last_complete_plan_counts(text: str) -> None:
    """Drafts, mentions, thoughts and what was cut off do not count: the last complete plan does, never a mixture."""
    assert parse_workflow(text, SEVEN) == TWO


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no list after model_id and subtasks and access_list"),
        ("I cannot do that.", "no list after model_id"),
        ("model_id: 0, subtasks: 'x', access_list: 'all'", "no list after model_id"),
        (f"{MODELS}\n{SUBTASKS}", "no list after access_list"),
        (f"  <think>{PLAN}", "ends within <think>"),
        (f"<think>{PLAN}</think>", "no list after"),
        (f"{PLAN}</think>I cannot do that.", "no list after"),
        (f"{PLAN[:-1]}", "access_list: expected , or ] where the text ends"),
        (f"{PLAN}\n{MODELS}\nsubtasks: ['car's']\n{ACCESS}", "or ] (quotes inside a text need a backslash) at 's"),
        (f"{MODELS}\n{SUBTASKS}\nsubtasks: ['x']\n{ACCESS}", "do not stand together"),
        (write('["a" "b"]', '["x"]', "[[]]"), 'a backslash) at \'"b"]'),
        (write("[,]", '["x"]', "[[]]"), "model_id: expected a value at ',]"),
        (write("[0]", "[Solve, then check]", "[[]]"), "unequal"),
        (write("[0]", "[Solve]", "[[]]"), "subtasks[0] is 'Solve': expected a text in quotes"),
        (write("[0]", "[['Solve']]", "[[]]"), "subtasks[0] is \"['Solve']\": expected a text in quotes"),
        (write("[0]", '["x]', "[[]]"), "subtasks: quotes never closed"),
        (write("[0]", '["""x]', "[[]]"), "subtasks: quotes never closed"),
        (write("[0]", r'["\ud800"]', "[[]]"), "half a surrogate pair"),
        (write("[[[[[0]]]]]", '["x"]', "[[]]"), "brackets nested too deeply"),
        (write("[{}]", '["x"]', "[[]]"), "model_id: expected a value at '{}]"),
    ],
)
def test_unreadable(text: str, told: str) -> None:
    """What is no plan is said to be none: which list is missing or broken, and where."""
    fault = fault_of(text)
    assert fault.code == ("plan_unequal_lengths" if told == "unequal" else "plan_unparseable")
    assert told in fault.message
    assert fault.fault == "policy"


# --- meaning ---


@pytest.mark.parametrize(
    ("format", "access", "read"),
    [
        (SEVEN, '[] | ["all"]', [(), "all"]),
        (SEVEN, '[] | [] | ["all"]', [(), (), "all"]),
        (SEVEN, '"all" | []', [(), ()]),
        (SEVEN, '[] | [0, "All"]', [(), "all"]),
        (SEVEN, "[] | [0]", "plan_bad_access"),
        (SEVEN, '[] | [["all"]]', "plan_bad_access"),
        (SEVEN, '[] | "some"', "plan_bad_access"),
        (SEVEN, "[] | None", "plan_bad_access"),
        (POSITIONS, "[] | [0] | [0,1]", [(), (0,), (0, 1)]),
        (POSITIONS, '[] | ["0"] | [step 1, "Step 0"]', [(), (0,), (1, 0)]),
        (POSITIONS, '[] | [] | "all"', [(), (), "all"]),
        (POSITIONS, "[] | [0] | [0]", "plan_unread_step"),
        (POSITIONS, "[] | [] | []", "plan_unread_step"),
        (POSITIONS, "[1] | [0]", "plan_future_reference"),
        (POSITIONS, "[0]", "plan_future_reference"),
        (POSITIONS, "[] | [1]", "plan_future_reference"),
        (POSITIONS, "[] | [99]", "plan_future_reference"),
        (POSITIONS, "[] | [-1]", "plan_bad_access"),
        (POSITIONS, "[] | [0.0]", "plan_bad_access"),
        (POSITIONS, "[] | [[0]]", "plan_bad_access"),
        (POSITIONS, "[] | 0", "plan_bad_access"),
        (POSITIONS, "[] | [0,0,0,0,0,0]", "plan_bad_access"),
        (WORKERS, "[] | [0] | [1, 0]", [(), (0,), (1, 0)]),
        (WORKERS, "[0] | [1] | [model 0]", [(0,), (1,), (0,)]),
        (WORKERS, "[] | [2] | [0]", "plan_future_reference"),
        (WORKERS, "[1] | [0]", "plan_future_reference"),
        (WORKERS, "[] | [7]", "plan_unknown_worker"),
        (WORKERS, "[] | [gpt]", "plan_unknown_worker"),
    ],
)
def test_access(format: PlanFormat, access: str, read: list[Access] | str) -> None:
    """An access list holds what its mode allows, and points back; positions moreover leave out no step."""
    entries = access.split(" | ")
    count = len(entries)
    text = write(str(list(range(count))), json.dumps(["x"] * count), f"[{', '.join(entries)}]")
    if isinstance(read, str):
        assert fault_of(text, format).code == read
    else:
        assert access_of(parse_workflow(text, format)) == read


@pytest.mark.parametrize(
    ("format", "models", "code", "told"),
    [
        (SEVEN, "[0, 7]", "plan_unknown_worker", "model_id[1] holds '7': expected one of 0 to 6"),
        (SEVEN, "[0, -1]", "plan_unknown_worker", "model_id[1] holds '-1'"),
        (SEVEN, "[0, model -1]", "plan_unknown_worker", "'model -1'"),
        (SEVEN, "[0, 1.0]", "plan_unknown_worker", "'1.0'"),
        (SEVEN, "[0, gpt-5]", "plan_unknown_worker", "'gpt-5'"),
        (SEVEN, "[0, '']", "plan_unknown_worker", "holds ''"),
        (SEVEN, "[0, ...]", "plan_unknown_worker", "'...'"),
        (SEVEN, "[0, True]", "plan_unknown_worker", "'True'"),
        (SEVEN, "[0, [1]]", "plan_unknown_worker", "'[1]'"),
        (SEVEN, "[0, ²]", "plan_unknown_worker", "'²'"),
        (SEVEN, f"[0, {'1' * 5000}]", "plan_unknown_worker", f"'{'1' * 78}…"),
        (PlanFormat(workers=4, masked=frozenset({1})), "[0, 1]", "plan_masked_worker", "expected one of 0, 2, 3"),
        (PlanFormat(workers=4, itself=4), "[4, 0]", "plan_bad_recursion", "4 stands for yourself"),
        (PlanFormat(workers=4, itself=2), "[2, 2]", "plan_bad_recursion", "only as the last"),
        (PlanFormat(workers=4, itself=4), "[0, 5]", "plan_unknown_worker", "expected one of 0 to 4"),
        (PlanFormat(workers=4), "[0, 4]", "plan_unknown_worker", "expected one of 0 to 3"),
        (PlanFormat(workers=4, max_steps=1), "[0, 1]", "plan_too_many_steps", "2 steps: expected at most 1"),
        (SEVEN, "[0]", "plan_unequal_lengths", "1 in model_id, 2 in subtasks, 2 in access_list"),
        (SEVEN, "[]", "plan_unequal_lengths", "0 in model_id"),
    ],
)
def test_workers(format: PlanFormat, models: str, code: str, told: str) -> None:
    """Who is named has to be offered, once for each subtask; the message says what was expected."""
    fault = fault_of(write(models, '["x", "y"]', '[[], "all"]'), format)
    assert (fault.code, told in fault.message) == (code, True), fault.message


def test_names() -> None:
    """Names are understood where they are offered, in any case; a name goes before the number it may look like."""
    named = PlanFormat(workers=("Claude Sonnet", "model-0", "gpt/5.1"), access="worker")
    text = write(
        '["claude sonnet", model-0, gpt/5.1, 0]', '["a", "b", "c", "d"]', "[[], [Claude Sonnet], [model-0], []]"
    )
    assert [step.worker for step in parse_workflow(text, named).steps] == [0, 1, 2, 0]
    assert access_of(parse_workflow(text, named)) == [(), (0,), (1,), ()]


@pytest.mark.parametrize("blank", ['""', '"  "', '"\\n"', '"\\u001b\\u0085"', "'\u3000'"])
def test_empty_subtask(blank: str) -> None:
    """A step has to be told something."""
    assert fault_of(write("[0]", f"[{blank}]", "[[]]")).code == "plan_empty_subtask"


def test_nothing_to_do() -> None:
    """Three empty lists return the last round's answer where there is one, and are a fault where there is none."""
    text = write("[]", "[]", "[]")
    assert parse_workflow(text, PlanFormat(workers=2, may_return=True)) == Workflow(steps=())
    assert fault_of(text).code == "plan_empty"


@pytest.mark.parametrize("itself", [0, 4])
def test_recursion(itself: int) -> None:
    """The conductor may name itself as the last step after others, but not be all of the plan."""
    format = PlanFormat(workers=4, itself=itself)
    assert parse_workflow(write(f"[1, {itself}]", '["a", "b"]', '[[], "all"]'), format).steps[1].worker == itself
    assert fault_of(write(f"[{itself}]", '["a"]', "[[]]"), format).code == "plan_bad_recursion"


def test_history() -> None:
    """Where there is something before the first step, its "all" is kept, in text, grammar and record."""
    text = write("[1]", '["a"]', '[["all"]]')
    later = PlanFormat(workers=2, has_history=True)
    assert access_of(parse_workflow(text, PlanFormat(workers=2))) == [()]
    assert access_of(parse_workflow(text, later)) == ["all"]
    assert write_workflow(parse_workflow(text, later), later) == text


def test_half_a_character() -> None:
    """Half a surrogate pair, which no text can hold, is written so that it can be sent, and is refused when read."""
    text = write_workflow(make((0, "\ud800!", ())), SEVEN)
    assert text.encode()
    assert fault_of(text).code == "plan_unparseable"


def test_several_faults_are_told_at_once() -> None:
    """A model that has one more try learns all that is wrong, the first under its code, of many the first ones."""
    fault = fault_of(write("[0, 9]", '["", "b"]', "[[], [0]]"))
    assert fault.code == "plan_unknown_worker"
    assert all(told in fault.message for told in ("model_id[1]", "subtasks[0]", "access_list[1]"))
    many = fault_of(write("[9, 9, 9, 9, 9]", '["", "", "", "", ""]', '["x", "x", "x", "x", "x"]'))
    assert many.message.endswith("; and 11 more")
    assert "access_list" not in fault_of(write("[0, 9]", '["a", "b"]', "[[], [9]]"), WORKERS).message


def test_messages_are_short() -> None:
    """However long a value is, a message shows the beginning of it."""
    long = "x" * 100_000
    faults = [
        fault_of(write(f"[{long}]", '["a"]', "[[]]")),
        fault_of(write("[0]", f"[{long}]", "[[]]")),
        fault_of(write("[0]", '["a"]', f"['{long}']")),
        fault_of(write("[0]", f'["{long}', "[[]]")),
    ]
    assert all(len(fault.message) < 400 and "x…" in fault.message for fault in faults)


@pytest.mark.parametrize(
    ("access_mode", "access", "seen"),
    [
        ("binary", ((), "all", (), "all"), ((), (0,), (), (0, 1, 2))),
        ("position", ((), (0,), (), (2, 0, 0)), ((), (0,), (), (0, 2))),
        ("position", ((), "all", (1,), "all"), ((), (0,), (1,), (0, 1, 2))),
        ("worker", ((3,), (3,), (5,), (3,)), ((), (0,), (1,), (0, 2))),
    ],
)
def test_visible(access_mode: str, access: tuple[Access, ...], seen: tuple[tuple[int, ...], ...]) -> None:
    """A step sees all, or the positions it names, or what the workers it names did, but never itself or later ones."""
    workflow = make(*((worker, "x", a) for worker, a in zip((3, 5, 3, 3), access, strict=True)))
    assert visible(workflow, access_mode) == seen


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"workers": 0}, "no worker is offered"),
        ({"workers": 2, "masked": frozenset({0, 1})}, "no worker is offered"),
        ({"workers": 1, "itself": 0}, "no worker is offered"),
        ({"workers": 2, "itself": 3}, "itself is 3"),
        ({"workers": 2, "max_steps": 0}, "max_steps is 0"),
        ({"workers": 2, "access": "any"}, "access is 'any'"),
        ({"workers": 2, "order": "any"}, "order is 'any'"),
        ({"workers": ("a", "A")}, "differ"),
        ({"workers": ("a", "1")}, "'1' cannot be a worker's name"),
        ({"workers": ("a", " ")}, "' ' cannot be"),
    ],
)
def test_bad_formats(arguments: dict[str, Json], told: str) -> None:
    """A format in which nothing could be planned, or a name could be a number, is refused when it is made."""
    with pytest.raises(ConfigError, match=re.escape(told)):
        PlanFormat(**arguments)


# --- properties ---

VISIBLE = re.compile(r"[^\s\x00-\x1f\x7f-\x9f]")

subtasks_ = st.text(min_size=1, max_size=30).filter(VISIBLE.search) | st.lists(
    st.sampled_from(
        ['"', "'", "\\", "\n", "\x00", "\x7f", "\b", "\f", "[", "]", "“", "`", "model_id: [1]", "<think>", "a"]
    ),
    min_size=1,
).map(lambda pieces: "".join([*pieces, "!"]))


@st.composite
def formats(draw: st.DrawFn) -> PlanFormat:
    count = draw(st.integers(1, 12))
    masked = frozenset(draw(st.sets(st.integers(0, count - 1), max_size=count - 1)))
    free = [i for i in range(count) if i not in masked]
    itselves = [None, count, *(free if len(free) > 1 else [])]
    return PlanFormat(
        workers=draw(st.sampled_from([count, tuple(f"worker {chr(97 + i)}" for i in range(count))])),
        max_steps=draw(st.integers(1, 6)),
        access=draw(st.sampled_from(["binary", "position", "worker"])),
        order=draw(st.sampled_from(["models_first", "subtasks_first"])),
        may_return=draw(st.booleans()),
        has_history=draw(st.booleans()),
        itself=draw(st.sampled_from(itselves)),
        masked=masked,
    )


@st.composite
def planned(draw: st.DrawFn) -> tuple[PlanFormat, Workflow]:
    """A format and a workflow that is valid in it."""
    format = draw(formats())
    others = [i for i in format.offered if i != format.itself]
    steps: list[WorkflowStep] = []
    for i in range(draw(st.integers(0 if format.may_return else 1, format.max_steps))):
        pool = list(range(i)) if format.access == "position" else [step.worker for step in steps]
        lists = st.lists(st.sampled_from(pool), max_size=format.max_steps).map(tuple) if pool else st.just(())
        lists = st.just(()) if format.access == "binary" else lists
        access = draw(lists | st.just("all")) if i or format.has_history else ()
        steps.append(WorkflowStep(worker=draw(st.sampled_from(others)), subtask=draw(subtasks_), access=access))
    if len(steps) > 1:
        last = msgspec.structs.replace(steps[-1], worker=draw(st.sampled_from(format.offered)))
        if format.access == "position":
            read = {j for sees in visible(Workflow(steps=tuple(steps)), "position") for j in sees}
            if not read.issuperset(range(len(steps) - 1)):
                last = msgspec.structs.replace(last, access="all")
        steps[-1] = last
    return format, Workflow(steps=tuple(steps))


@settings(deadline=None)
@given(planned())
def test_written_is_read_as_it_was(both: tuple[PlanFormat, Workflow]) -> None:
    """In any mode and order, with any subtasks: what is written is read as the same workflow, prose around or not."""
    format, workflow = both
    text = write_workflow(workflow, format)
    assert parse_workflow(text, format) == workflow
    assert parse_workflow(f"<think>{text}</think>So:\n\n{text}\nThat is the plan.", format) == workflow
    text.encode()


@settings(deadline=None)
@given(planned())
def test_written_lists_are_json(both: tuple[PlanFormat, Workflow]) -> None:
    """The three lists are JSON; as a JSON object, whatever wrote it, they are the same workflow."""
    format, workflow = both
    lists = lists_of(write_workflow(workflow, format))
    assert lists["subtasks"] == [step.subtask for step in workflow.steps]
    if not re.search(r"[\b\f]", "".join(lists["subtasks"])):  # json writes these as \b and \f, which are left alone
        for ensure_ascii in (True, False):
            assert parse_workflow(json.dumps(lists, ensure_ascii=ensure_ascii), format) == workflow


def lists_of(canonical: str) -> dict[str, Json]:
    lines = [line.partition(": ") for line in canonical.split("\n")]
    return {label: json.loads(written) for label, _, written in lines}


@settings(deadline=None)
@given(planned())
def test_record(both: tuple[PlanFormat, Workflow]) -> None:
    """A workflow is stored and read back as it was."""
    assert msgspec.json.decode(msgspec.json.encode(both[1]), type=Workflow) == both[1]


PIECES = """\"\"\" \'\'\' model_id: subtasks = access_list: <think> </think> all ["all"] [[]] \\u \\ud800 ```json [0]"""
pieces = st.sampled_from([*"[]()\"'`“”‘’\\,:=#/*-<>{} \n01279", "model ", *PIECES.split()])
pieces_ = st.lists(pieces, max_size=40).map("".join)


@settings(deadline=None)
@given(pieces_ | st.text(), formats())
@example("\ud800", SEVEN)
def test_any_text(text: str, format: PlanFormat) -> None:
    """Any text is a workflow or a named fault; what was read is written and read again as the same."""
    check_text(text, format)


@settings(deadline=None)
@given(st.data(), planned())
def test_mutated_plans(data: st.DataObject, both: tuple[PlanFormat, Workflow]) -> None:
    """A plan with anything cut out of it or put into it is a workflow or a named fault, stable in the same way."""
    format, workflow = both
    text = write_workflow(workflow, format)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 5)))
        text = text[:start] + data.draw(pieces | st.just("")) + text[end:]
    check_text(text, format)


def check_text(text: str, format: PlanFormat) -> None:
    workflow = parse(text, format)
    if isinstance(workflow, PlanError):
        assert workflow.code in SYNTAX | MEANING
        assert len(workflow.message) < 1000
        return
    assert len(workflow.steps) <= format.max_steps
    assert workflow.steps or format.may_return
    assert all(step.worker in format.offered and VISIBLE.search(step.subtask) for step in workflow.steps)
    assert all(max(seen, default=-1) < i for i, seen in enumerate(visible(workflow, format.access)))
    again = write_workflow(workflow, format)
    assert parse_workflow(again, format) == workflow
    assert write_workflow(parse_workflow(again, format), format) == again


HOSTILE = """[ ] [[ ( " ' \\ \\" [" [[] [], # <think> </think> access access: “ 0, model_id model_id:[0]
access:[ access:[" access:[# access:[// access:['access:[“ access:["\\ access:[\"\"\" subtasks:['access:[0,"""


@pytest.mark.parametrize("piece", [*HOSTILE.split(), " ", "\n", "a ", "access: [a "])
def test_size_is_no_danger(piece: str) -> None:
    """200,000 characters of any one thing are read at once, alone or where a list or a text should be."""
    text = (piece * LIMIT_CHARS)[: LIMIT_CHARS - 100]
    for before in (
        "",
        "model_id: [0]\nsubtasks: ['x']\naccess_list: [",
        'model_id: [0]\naccess_list: [[]]\nsubtasks: ["',
    ):
        assert fault_of(before + text).code in SYNTAX | MEANING


def test_too_long() -> None:
    """A reply that is longer than any plan is not read."""
    assert parse_workflow(PLAN + " " * (LIMIT_CHARS - len(PLAN)), SEVEN) == TWO
    assert fault_of(PLAN + " " * LIMIT_CHARS).code == "plan_too_long"


# --- the schema ---

INEXPRESSIBLE = {
    "plan_unequal_lengths",
    "plan_future_reference",
    "plan_unread_step",
    "plan_empty_subtask",
    "plan_bad_recursion",
}


def generate(schema: Json, rng: random.Random) -> Json:
    """A random value that the schema allows. Fails on keywords that strict structured outputs may not take."""
    if "anyOf" in schema:
        return generate(rng.choice(schema["anyOf"]), rng)
    if "enum" in schema:
        assert set(schema) == {"type", "enum"}
        return rng.choice(schema["enum"])
    if schema["type"] == "string":
        return rng.choice(["", "x", 'say "hi" [\n]', "\\frac é"])
    if schema["type"] == "array":
        assert set(schema) <= {"type", "items", "minItems", "maxItems"}
        count = rng.randint(schema.get("minItems", 0), schema["maxItems"])
        return [generate(schema["items"], rng) for _ in range(count)]
    assert set(schema) == {"type", "properties", "required", "additionalProperties"}
    assert schema["type"] == "object"
    assert schema["required"] == list(schema["properties"])
    assert schema["additionalProperties"] is False
    return {name: generate(value, rng) for name, value in schema["properties"].items()}


def test_what_is_offered() -> None:
    """Schema and grammar offer neither masked workers nor, to be looked at, the conductor, which comes last."""
    format = PlanFormat(workers=4, access="worker", itself=4, masked=frozenset({1}))
    assert format.offered == (0, 2, 3, 4)
    lists = workflow_schema(format)["properties"]
    assert lists["model_id"]["items"]["enum"] == [0, 2, 3, 4]
    assert lists["access_list"]["items"]["items"]["anyOf"][1]["enum"] == [0, 2, 3]
    rules = dict(line.split(" ::= ") for line in workflow_grammar(format).splitlines())
    assert rules["worker"] == '"0" | "2" | "3"'
    assert rules["last"] == '"0" | "2" | "3" | "4"'
    assert '"4"' not in rules["access-1"]


@settings(deadline=None)
@given(formats(), st.randoms(use_true_random=False))
def test_schema_allows_only_plans(format: PlanFormat, rng: random.Random) -> None:
    """Whatever the schema lets a model write is read, but for the faults that no schema can say."""
    schema = json.loads(json.dumps(workflow_schema(format)))
    for ensure_ascii in (True, False):
        text = json.dumps(generate(schema, rng), ensure_ascii=ensure_ascii)
        read = parse(text, format)
        assert isinstance(read, Workflow) or read.code in INEXPRESSIBLE, (text, read)


@settings(deadline=None)
@given(planned())
def test_schema_allows_every_plan(both: tuple[PlanFormat, Workflow]) -> None:
    """A valid workflow's lists satisfy the schema, and come in its order."""
    format, workflow = both
    schema = workflow_schema(format)
    lists = lists_of(write_workflow(workflow, format))
    assert list(lists) == list(schema["properties"])
    assert is_allowed(lists, schema)
    assert not is_allowed(lists | {"model_id": [99]}, schema)
    assert not is_allowed(lists | {"subtasks": ["x"] * 7}, schema)
    assert not is_allowed(lists | {"access_list": [["most"]]}, schema)


def is_allowed(value: Json, schema: Json) -> bool:
    if "anyOf" in schema:
        return any(is_allowed(value, one) for one in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    if schema["type"] == "array":
        is_long_enough = schema.get("minItems", 0) <= len(value) <= schema["maxItems"]
        return is_long_enough and all(is_allowed(item, schema["items"]) for item in value)
    if schema["type"] == "object":
        return set(value) == set(schema["required"]) and all(
            is_allowed(item, schema["properties"][name]) for name, item in value.items()
        )
    return isinstance(value, str)


# --- the grammar, by a small interpreter of GBNF ---

_GBNF = re.compile(r'"((?:[^"\\]|\\.)*)"|\[((?:[^\]\\]|\\.)*)\]|([a-z0-9-]+)|([()|*])|\{(\d+),(\d+)\}|[ ]+')
_GBNF_CHAR = re.compile(r"\\u([0-9A-Fa-f]{4})|\\x([0-9A-Fa-f]{2})|\\([nrt\\\"\[\]])|([^\\])", re.DOTALL)


def read_chars(text: str) -> list[str]:
    """The characters of a literal or class, escapes undone; the whole text has to be understood."""
    assert _GBNF_CHAR.sub("", text) == ""
    short = {"n": "\n", "r": "\r", "t": "\t"}
    return [
        chr(int(u or x, 16)) if u or x else short.get(escaped, escaped) if escaped else char
        for u, x, escaped, char in _GBNF_CHAR.findall(text)
    ]


def read_class(text: str) -> tuple[bool, list[tuple[str, str]]]:
    """Whether it is negated, and its ranges."""
    is_negated = text.startswith("^")
    chars, ranges = read_chars(text[is_negated:]), []
    while chars:
        is_range = len(chars) > 2 and chars[1] == "-"
        ranges.append((chars[0], chars[2] if is_range else chars[0]))
        del chars[: 3 if is_range else 1]
    return is_negated, ranges


def read_grammar(text: str) -> dict[str, Json]:
    """Rules as nested tuples: ("text", s), ("class", ...), ("rule", name), ("any", [[...]]), ("repeat", x, m, n)."""
    rules: dict[str, Json] = {}
    for line in filter(None, text.splitlines()):
        name, _, body = line.partition(" ::= ")
        assert re.fullmatch("[a-z0-9-]+", name)
        assert name not in rules
        position, stack = 0, [[[]]]
        while position < len(body):
            match = _GBNF.match(body, position)
            assert match, body[position:]
            position = match.end()
            literal, chars, rule, mark, low, high = match.groups()
            items = stack[-1][-1]
            if literal is not None:
                items.append(("text", "".join(read_chars(literal))))
            elif chars is not None:
                items.append(("class", *read_class(chars)))
            elif rule is not None:
                items.append(("rule", rule))
            elif mark == "(":
                stack.append([[]])
            elif mark == ")":
                group = stack.pop()
                stack[-1][-1].append(("any", group))
            elif mark == "|":
                stack[-1].append([])
            elif mark == "*" or low is not None:
                bounds = (0, None) if mark else (int(low), int(high))
                items.append(("repeat", items.pop(), *bounds))
        (alternatives,) = stack
        assert all(alternatives), f"an empty alternative in {name}"
        rules[name] = ("any", alternatives)
    used = set(re.findall(r"'rule', '([^']+)'", repr(rules)))
    assert used | {"root"} == set(rules), "a rule is undefined or unused"
    return rules


def is_in_class(char: str, is_negated: bool, ranges: list[tuple[str, str]]) -> bool:
    return is_negated != any(low <= char <= high for low, high in ranges)


WALKED = [chr(i) for i in range(0x21)] + list("anrtZ079\"\\/[]'`“é😀<\x7f\x85\xa0\u2003\u3000\ufeff")


def walk(item: Json, rules: dict[str, Json], rng: random.Random) -> str:
    """A random text that the grammar allows."""
    match item:
        case ("text", text):
            return text
        case ("class", is_negated, ranges):
            return rng.choice([char for char in WALKED if is_in_class(char, is_negated, ranges)])
        case ("rule", name):
            return walk(rules[name], rules, rng)
        case ("repeat", one, low, high):
            count = rng.randint(low, 6 if high is None else high)
            return "".join(walk(one, rules, rng) for _ in range(count))
        case ("any", alternatives):
            return "".join(walk(one, rules, rng) for one in rng.choice(alternatives))
    raise AssertionError(item)


def ends(item: Json, rules: dict[str, Json], text: str, start: int) -> Iterator[int]:
    """Where it may end that begins at `start`, the longest first."""
    match item:
        case ("text", wanted):
            if text.startswith(wanted, start):
                yield start + len(wanted)
        case ("class", is_negated, ranges):
            if start < len(text) and is_in_class(text[start], is_negated, ranges):
                yield start + 1
        case ("rule", name):
            yield from ends(rules[name], rules, text, start)
        case ("repeat", one, low, high):
            levels = [{start}]
            while levels[-1] and (high is None or len(levels) <= high):
                levels.append({end for at in levels[-1] for end in ends(one, rules, text, at)})
            yield from sorted(set().union(*levels[low:]), reverse=True)
        case ("any", alternatives):
            reached: set[int] = set()
            for items in alternatives:
                heads = {start}
                for one in items:
                    heads = {end for at in heads for end in ends(one, rules, text, at)}
                reached |= heads
            yield from sorted(reached, reverse=True)


@settings(deadline=None)
@given(formats(), st.randoms(use_true_random=False))
def test_grammar_allows_only_plans(format: PlanFormat, rng: random.Random) -> None:
    """Whatever the grammar lets a model write is read, but for unread steps, and workers that have had no step."""
    rules = read_grammar(workflow_grammar(format))
    text = walk(("rule", "root"), rules, rng)
    inexpressible = {"binary": set(), "position": {"plan_unread_step"}, "worker": {"plan_future_reference"}}
    read = parse(text, format)
    assert isinstance(read, Workflow) or read.code in inexpressible[format.access], (text, read)


@settings(deadline=None, max_examples=50)
@given(planned())
@example((SEVEN, make((0, "\n\t solve ", ()))))
@example((SEVEN, make((0, '"', ()), (1, "\x00\x1f\x7f\u3000\\", "all"))))
def test_grammar_allows_every_plan(both: tuple[PlanFormat, Workflow]) -> None:
    """The canonical text of every valid workflow is in the grammar, and is all that it says."""
    format, workflow = both
    rules = read_grammar(workflow_grammar(format))
    text = write_workflow(workflow, format)
    assert len(text) in set(ends(("rule", "root"), rules, text, 0)), text
    unknown = msgspec.structs.replace(workflow, steps=(*workflow.steps[1:], *make((99, "x", ())).steps))
    for wrong in (text + "\n", text[:-1], write_workflow(unknown, format)):
        assert len(wrong) not in set(ends(("rule", "root"), rules, wrong, 0))
