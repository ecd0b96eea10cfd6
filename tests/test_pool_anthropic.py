"""The messages dialect as pure translation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from torafugu.errors import WorkerError
from torafugu.pool.anthropic import WIRE, build_body
from torafugu.pool.backend import Completion, Delta, Query
from torafugu.pool.spec import WorkerSpec
from torafugu.types import ImagePart, Message, OtherPart, Sampling, TextPart, ToolCall, Usage

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
CLOSED = {**SCHEMA, "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": SCHEMA}}


def spec(**fields: Any) -> WorkerSpec:
    return WorkerSpec(**({"id": "w", "dialect": "anthropic", "model": "m"} | fields))


def body(*messages: Message, worker: WorkerSpec | None = None, stream: bool = False, **sampling: Any) -> dict[str, Any]:
    query = Query(messages=messages or (Message(role="user", content="hi"),), sampling=Sampling(**sampling))
    return build_body(worker or spec(), query, stream)


def text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def test_a_body_holds_what_was_asked_and_the_limit_they_demand() -> None:
    """Only the output limit is set when nobody set anything."""
    assert body() == {"model": "m", "max_tokens": 8192, "messages": [{"role": "user", "content": [text("hi")]}]}


@pytest.mark.parametrize(
    ("worker_limit", "asked", "sent"), [(None, None, 8192), (64000, None, 64000), (None, 50, 50), (100, 5000, 100)]
)
def test_the_output_limit_is_decided_in_one_place(worker_limit: int | None, asked: int | None, sent: int) -> None:
    """The client's limit, at most the model's own; the model's own, else 8192, when the client has none."""
    assert body(worker=spec(max_output_tokens=worker_limit), max_output_tokens=asked)["max_tokens"] == sent


def test_sampling_is_translated() -> None:
    """What has a word there is sent under it; extra_body has the last word."""
    sent = body(
        worker=spec(extra_body={"thinking": {"type": "adaptive"}, "top_k": 5}),
        stream=True,
        top_p=0.9,
        stop=("END", "STOP"),
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
    )
    assert sent["top_p"] == 0.9
    assert sent["top_k"] == 5
    assert sent["stop_sequences"] == ["END", "STOP"]
    assert sent["output_config"] == {"format": {"type": "json_schema", "schema": CLOSED}}
    assert sent["thinking"] == {"type": "adaptive"}
    assert sent["stream"] is True


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({"temperature": 0.5}, {"temperature": 0.5}),
        ({"temperature": 1.7}, {"temperature": 1.0}),
        ({"temperature": 0.0, "top_p": 0.9}, {"temperature": 0.0}),
        ({"top_p": 0.9}, {"top_p": 0.9}),
    ],
)
def test_temperature_is_said_as_they_take_it(asked: dict[str, float], sent: dict[str, float]) -> None:
    """Their scale ends at 1, and of temperature and top_p they take one."""
    wire = body(**asked)
    assert {name: wire[name] for name in ("temperature", "top_p") if name in wire} == sent


@pytest.mark.parametrize(
    ("efforts", "asked", "sent"),
    [
        (None, "high", None),
        ((), "high", None),
        (("low", "medium", "high", "max"), "high", "high"),
        (("low", "medium", "high", "max"), "xhigh", "high"),
        (("low", "medium", "high"), "max", "high"),
        (("low", "high"), "none", "low"),
        (("low", "high"), "minimal", "low"),
        (("low", "high"), None, None),
        (("low", "high"), "ultra", None),
    ],
)
def test_an_effort_is_sent_where_it_is_known(efforts: Any, asked: str | None, sent: str | None) -> None:
    """What a client asks for becomes the nearest that the model is declared to know; undeclared, nothing is sent."""
    wire = body(worker=spec(efforts=efforts), reasoning_effort=asked)
    assert wire.get("output_config") == (None if sent is None else {"effort": sent})


def test_an_effort_and_a_schema_share_their_place() -> None:
    """Both stand in one object."""
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    wire = body(worker=spec(efforts=("low",)), reasoning_effort="high", response_format=form)
    assert wire["output_config"] == {"effort": "low", "format": {"type": "json_schema", "schema": CLOSED}}


def test_what_a_model_refuses_is_left_out() -> None:
    """Declared hints are not sent, whoever asks for them."""
    wire = body(worker=spec(refuses=("temperature", "top_p")), temperature=0.5, top_p=0.5, stop=("x",))
    assert set(wire) == {"model", "max_tokens", "messages", "stop_sequences"}


LATE = (
    Message(role="system", content="one"),
    Message(role="developer", content=(TextPart(text="two"),)),
    Message(role="user", content="a"),
    Message(role="system", content="three"),
    Message(role="assistant", content="b"),
    Message(role="system", content="four"),
    Message(role="user", content="c"),
    Message(role="system", content="five"),
    Message(role="system", content=" "),
)


def test_system_messages_keep_their_place() -> None:
    """The leading ones are the system prompt; later ones are marked, and stay behind what they followed."""
    sent = body(*LATE)
    assert sent["system"] == "one\n\ntwo"
    assert sent["messages"] == [
        {"role": "user", "content": [text("a"), text("<system_message>\nthree\n</system_message>")]},
        {"role": "assistant", "content": [text("b")]},
        {
            "role": "user",
            "content": [
                text("<system_message>\nfour\n</system_message>"),
                text("c"),
                text("<system_message>\nfive\n</system_message>"),
            ],
        },
    ]


def test_system_messages_are_sent_as_such_where_the_model_takes_them() -> None:
    """Between the user and the assistant, and at the end: elsewhere they are refused, and marked instead."""
    sent = body(*LATE, worker=spec(late_system=True))
    assert sent["messages"] == [
        {"role": "user", "content": [text("a")]},
        {"role": "system", "content": [text("three")]},
        {"role": "assistant", "content": [text("b")]},
        {"role": "user", "content": [text("<system_message>\nfour\n</system_message>"), text("c")]},
        {"role": "system", "content": [text("five")]},
    ]


def test_a_system_prompt_alone_is_what_is_asked() -> None:
    """They demand a turn of the user's."""
    sent = body(Message(role="system", content="Write a poem."))
    assert "system" not in sent
    assert sent["messages"] == [{"role": "user", "content": [text("Write a poem.")]}]


def test_tool_calls_and_their_results_are_translated() -> None:
    """Arguments become objects, several results one turn of the user's, and what the user says next joins it."""
    sent = body(
        Message(role="user", content="look twice"),
        Message(
            role="assistant",
            content="I look.",
            tool_calls=(
                ToolCall(id="t1", name="look", arguments='{"a":1}'),
                ToolCall(id="t2", name="look", arguments=""),
            ),
        ),
        Message(role="tool", tool_call_id="t1", content="a cat"),
        Message(role="tool", tool_call_id="t2", content=(TextPart(text="see"), ImagePart(url="https://x/y.png"))),
        Message(role="user", content="and?"),
    )
    assert sent["messages"] == [
        {"role": "user", "content": [text("look twice")]},
        {
            "role": "assistant",
            "content": [
                text("I look."),
                {"type": "tool_use", "id": "t1", "name": "look", "input": {"a": 1}},
                {"type": "tool_use", "id": "t2", "name": "look", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [text("a cat")]},
                {
                    "type": "tool_result",
                    "tool_use_id": "t2",
                    "content": [text("see"), {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}],
                },
                text("and?"),
            ],
        },
    ]


def test_images_and_other_parts() -> None:
    """An inline image is sent as base64, their own parts verbatim, and blank text, which they refuse, not at all."""
    document = {"type": "document", "source": {"type": "text", "data": "d"}}
    sent = body(
        Message(role="user", content=""),
        Message(
            role="user",
            content=(
                TextPart(text=" \n"),
                ImagePart(url="data:image/png;name=x;base64,AAEC"),
                ImagePart(url="DATA:image/jpg;base64,AAEC"),
                OtherPart(kind="document", raw=document),
            ),
        ),
    )
    assert sent["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAEC"}},
                {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": "AAEC"}},
                document,
            ],
        }
    ]


EMPTY = text("(empty)")


@pytest.mark.parametrize(
    ("said", "sent"),
    [
        ([], [("user", [EMPTY])]),
        ([("user", "")], [("user", [EMPTY])]),
        ([("user", " "), ("user", "go")], [("user", [text("go")])]),
        (
            [("user", "a"), ("assistant", ""), ("user", "b")],
            [("user", [text("a")]), ("assistant", [EMPTY]), ("user", [text("b")])],
        ),
        (
            [("assistant", "hello"), ("user", "a")],
            [("user", [EMPTY]), ("assistant", [text("hello")]), ("user", [text("a")])],
        ),
        ([("user", "a"), ("assistant", "It is \n")], [("user", [text("a")]), ("assistant", [text("It is")])]),
        ([("user", "a"), ("assistant", " ")], [("user", [text("a")])]),
        (
            [("user", "a"), ("assistant", "b"), ("assistant", "c"), ("user", "d")],
            [("user", [text("a")]), ("assistant", [text("b\n\nc")]), ("user", [text("d")])],
        ),
    ],
)
def test_turns_are_such_as_they_take(said: list[tuple[Any, str]], sent: list[tuple[str, Any]]) -> None:
    """The user begins, sides alternate, no turn is empty, and a begun answer does not end in a blank."""
    query = Query(messages=tuple(Message(role=role, content=content) for role, content in said))
    wire = build_body(spec(), query, False)
    assert wire["messages"] == [{"role": role, "content": content} for role, content in sent]


def test_results_stand_right_behind_their_calls() -> None:
    """What came between, and images of who may not send them, follow; ids that they refuse or had before are others."""
    image = ImagePart(url="https://x/y.png")
    sent = body(
        Message(role="user", content="look"),
        Message(
            role="assistant",
            content=(TextPart(text="I look."), image),
            tool_calls=(
                ToolCall(id="functions.look:0", name="look", arguments="{}"),
                ToolCall(id="t1", name="look", arguments=" "),
            ),
        ),
        Message(role="system", content="be quick"),
        Message(role="tool", tool_call_id="t1", content=" "),
        Message(role="tool", tool_call_id="functions.look:0", content="a cat"),
        Message(role="assistant", content=None, tool_calls=(ToolCall(id="t1", name="look", arguments="{}"),)),
        Message(role="tool", tool_call_id="t1", content="a dog"),
    )["messages"]
    first, second = (block["id"] for block in sent[1]["content"][1:])
    third = sent[3]["content"][0]["id"]
    assert second == "t1"
    assert len({first, second, third}) == 3
    assert all(id.isalnum() for id in (first, third))
    assert sent == [
        {"role": "user", "content": [text("look")]},
        {
            "role": "assistant",
            "content": [
                text("I look.\n[image: see the user's next message]"),
                {"type": "tool_use", "id": first, "name": "look", "input": {}},
                {"type": "tool_use", "id": second, "name": "look", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": second},
                {"type": "tool_result", "tool_use_id": first, "content": [text("a cat")]},
                text("<system_message>\nbe quick\n</system_message>"),
                text("[image of the assistant's message]"),
                {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
            ],
        },
        {"role": "assistant", "content": [{"type": "tool_use", "id": third, "name": "look", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": third, "content": [text("a dog")]}]},
    ]


def test_a_conversation_with_calls_names_its_tools() -> None:
    """They refuse it otherwise; none of them may be called."""
    called = Message(role="assistant", content=None, tool_calls=(ToolCall(id="t1", name="look", arguments="{}"),))
    wire = body(Message(role="user", content="a"), called, Message(role="tool", tool_call_id="t1", content="b"))
    assert wire["tools"] == [{"name": "look", "input_schema": {"type": "object", "properties": {}}}]
    assert wire["tool_choice"] == {"type": "none"}


def test_a_file_of_openai_s_is_a_document() -> None:
    """A PDF with its name; a text file is text."""
    pdf = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0x"}}
    note = {"type": "file", "file": {"filename": "n.txt", "file_data": "data:text/plain;charset=utf-8;base64,aGk="}}
    parts = (OtherPart(kind="file", raw=pdf), OtherPart(kind="file", raw=note))
    sent = body(Message(role="user", content=parts))
    source = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0x"}
    assert sent["messages"][0]["content"] == [
        {"type": "document", "source": source, "title": "a.pdf"},
        text("n.txt\n\nhi"),
    ]


@pytest.mark.parametrize(
    ("choice", "parallel", "sent"),
    [
        (None, None, None),
        ("auto", None, {"type": "auto"}),
        ("none", False, {"type": "none"}),
        ("required", None, {"type": "any"}),
        ("required", False, {"type": "any", "disable_parallel_tool_use": True}),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        ({"type": "function", "function": {"name": "look"}}, None, {"type": "tool", "name": "look"}),
    ],
)
def test_tools_and_their_choice_are_translated(choice: Any, parallel: bool | None, sent: Any) -> None:
    """Every form of tool_choice has its counterpart."""
    wire = body(tools=(TOOL,), tool_choice=choice, parallel_tool_calls=parallel)
    assert wire["tools"] == [{"name": "look", "description": "Looks.", "input_schema": SCHEMA}]
    assert wire.get("tool_choice") == sent


def test_a_tool_without_parameters_gets_an_empty_schema() -> None:
    """They demand a schema, and refuse a choice without tools."""
    wire = body(tools=({"type": "function", "function": {"name": "now"}},))
    assert wire["tools"] == [{"name": "now", "input_schema": {"type": "object", "properties": {}}}]
    assert "tool_choice" not in body(tool_choice="auto")


@pytest.mark.parametrize(
    "query",
    [
        Query(messages=(), sampling=Sampling(response_format={"type": "json_object"})),
        Query(messages=(), sampling=Sampling(response_format={"type": "json_schema"})),
        Query(messages=(), sampling=Sampling(tools=({"type": "custom", "custom": {"name": "x"}},))),
        Query(messages=(), sampling=Sampling(tools=(TOOL,), tool_choice="sometimes")),
        Query(messages=(Message(role="user", content=(ImagePart(url="data:text/plain,hello"),)),)),
        Query(
            messages=(
                Message(role="assistant", content=None, tool_calls=(ToolCall(id="t", name="n", arguments="[1"),)),
            )
        ),
    ],
)
def test_what_cannot_be_said_in_this_dialect_is_refused(query: Query) -> None:
    """Nothing that the client asked for is dropped in silence: the pool may ask a worker that can."""
    with pytest.raises(WorkerError, match="cannot be asked") as caught:
        build_body(spec(), query, False)
    assert caught.value.code == "rejected"


@pytest.mark.parametrize(
    "part",
    [
        OtherPart(kind="input_audio", raw={"type": "input_audio"}),
        OtherPart(kind="file", raw={"type": "file", "file": {"file_id": "f1"}}),
        OtherPart(kind="file", raw=None),
    ],
)
def test_a_part_without_a_form_here_is_refused(part: OtherPart) -> None:
    """It is never sent as it is, nor dropped."""
    with pytest.raises(WorkerError, match="has no form in this dialect") as caught:
        body(Message(role="user", content=(part,)))
    assert caught.value.code == "rejected"


@pytest.mark.parametrize(
    ("function", "sent"),
    [
        ({"strict": False, "parameters": SCHEMA}, {"input_schema": SCHEMA}),
        ({"strict": True, "parameters": SCHEMA}, {"input_schema": CLOSED, "strict": True}),
        ({"parameters": {}}, {"input_schema": {"type": "object", "properties": {}}}),
        (
            {"description": "Adds.", "strict": True, "parameters": {**SCHEMA, "anyOf": [{"required": ["a"]}]}},
            {
                "input_schema": SCHEMA,
                "description": "Adds.\n\nThe arguments also have to match this JSON Schema: "
                '{"anyOf":[{"required":["a"]}]}',
            },
        ),
    ],
)
def test_schemas_are_such_as_they_take(function: dict[str, Any], sent: dict[str, Any]) -> None:
    """Strict is said where it is meant, and closes objects; what may not stand at the top is said in words."""
    wire = body(tools=({"type": "function", "function": {"name": "add", **function}},))
    assert wire["tools"] == [{"name": "add", **sent}]


def answer(**fields: Any) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "model": "m-1",
        "type": "message",
        "content": [text("hello")],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 10, "output_tokens": 5},
    } | fields


def read(wire: dict[str, Any]) -> Completion:
    return WIRE.read(WIRE.answers.decode(json.dumps(wire)), "w")


def test_a_whole_answer_is_read() -> None:
    """Text, thinking, tool calls and usage come back; blocks of their own tools are passed over."""
    completion = read(
        answer(
            content=[
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "redacted_thinking", "data": "x"},
                text("I look"),
                {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}},
                {"type": "tool_use", "id": "t1", "name": "look", "input": {"a": [1, "é"]}},
                {"type": "tool_use", "id": "t2", "name": "look", "input": {}},
            ],
            stop_reason="tool_use",
            usage={
                "input_tokens": 10,
                "cache_read_input_tokens": 100,
                "cache_creation_input_tokens": 1000,
                "output_tokens": 5,
            },
        )
    )
    assert completion == Completion(
        text="I look",
        reasoning="hm",
        tool_calls=(
            ToolCall(id="t1", name="look", arguments='{"a":[1,"é"]}'),
            ToolCall(id="t2", name="look", arguments="{}"),
        ),
        finish_reason="tool_calls",
        usage=Usage(input_tokens=1110, cached_input_tokens=100, cache_write_tokens=1000, output_tokens=5),
        provider_model="m-1",
        provider_id="msg_1",
    )


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("yet_unknown", "stop"),
    ],
)
def test_stop_reasons_are_translated(reason: str, expected: str) -> None:
    """Their word for why it stopped becomes ours."""
    assert read(answer(stop_reason=reason)).finish_reason == expected


@pytest.mark.parametrize(("wire", "code"), [({}, "malformed"), (answer(stop_reason=None), "truncated")])
def test_an_answer_that_is_none_is_a_failure(wire: dict[str, Any], code: str) -> None:
    """A 200 without content or without a reason for its end is not an answer."""
    with pytest.raises(WorkerError) as caught:
        read(wire)
    assert caught.value.code == code


def test_usage_that_is_not_reported_is_unknown() -> None:
    """Without usage nothing is known; without cache counts the input is what they say."""
    assert read(answer(usage=None)).usage == Usage()
    assert read(answer()).usage == Usage(input_tokens=10, output_tokens=5)


def test_a_stream_is_put_together() -> None:
    """Thinking and text are passed on, tool input is gathered, usage is the latest of its pieces, pings are nothing."""

    def block(index: int, **block: Any) -> dict[str, Any]:
        return {"type": "content_block_start", "index": index, "content_block": block}

    def delta(index: int, kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}

    usage = {"input_tokens": 10, "cache_read_input_tokens": 5, "output_tokens": 1}
    events = [
        {"type": "message_start", "message": answer(content=[], stop_reason=None, usage=usage)},
        block(0, type="thinking", thinking=""),
        {"type": "ping"},
        delta(0, "thinking_delta", thinking="hm"),
        delta(0, "signature_delta", signature="s"),
        {"type": "content_block_stop", "index": 0},
        block(1, type="text", text=""),
        delta(1, "text_delta", text="I "),
        delta(1, "text_delta", text="look"),
        block(2, type="tool_use", id="t1", name="look", input={}),
        delta(2, "input_json_delta", partial_json=""),
        delta(2, "input_json_delta", partial_json='{"a":'),
        delta(2, "input_json_delta", partial_json="1}"),
        block(3, type="tool_use", id="t2", name="look", input={}),
        block(4, type="server_tool_use", id="s1", name="web_search", input={}),
        delta(4, "input_json_delta", partial_json='{"query":'),
        {"type": "yet_unknown", "news": 1},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 42}},
        {"type": "message_stop"},
    ]
    assembler = WIRE.assemble("w")
    deltas = [assembler.feed(WIRE.events.decode(json.dumps(event))) for event in events]
    assert [delta for delta in deltas if delta] == [Delta(reasoning="hm"), Delta(text="I "), Delta(text="look")]
    assert assembler.is_complete
    assert assembler.is_over
    assert assembler.completion() == Completion(
        text="I look",
        reasoning="hm",
        tool_calls=(
            ToolCall(id="t1", name="look", arguments='{"a":1}'),
            ToolCall(id="t2", name="look", arguments="{}"),
        ),
        finish_reason="tool_calls",
        usage=Usage(input_tokens=15, cached_input_tokens=5, output_tokens=42),
        provider_model="m-1",
        provider_id="msg_1",
    )
