"""The Responses dialect: items become messages, and what a run gave becomes items and events again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from torafugu.errors import RequestError
from torafugu.events import Accepted, Called, Failed, Replied, Stopped, event_from_json, event_to_json
from torafugu.orchestrate import Run
from torafugu.pool.backend import Delta
from torafugu.server.responses import Responses, parse_responses, read_responses
from torafugu.server.responses_answer import ResponsesEvents, response_id_of, run_id_of, run_to_body
from torafugu.types import ImagePart, Message, OtherPart, Reply, Request, Sampling, TextPart, ToolCall, Usage

CLIENTS = Path(__file__).parents[2] / "shared" / "fixtures" / "clients"
HI = {"model": "fugu", "input": "hi"}
ADD = {"type": "function", "name": "add", "description": None, "parameters": {"type": "object"}, "strict": False}
PATCH = {"type": "custom", "name": "patch"}
AGENTS = {"type": "namespace", "name": "agents", "description": "", "tools": [{"type": "function", "name": "spawn"}]}
TOOLS = [ADD, PATCH, AGENTS]


def ask(**fields: Any) -> Responses:
    return parse_responses(json.dumps({**HI, **fields}).encode())


def messages_of(*items: Any, **fields: Any) -> tuple[Message, ...]:
    return ask(input=list(items), **fields).request.messages


def error_of(body: bytes | dict[str, Any]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_responses(body if isinstance(body, bytes) else json.dumps(body).encode())
    return caught.value


def call(call_id: str, name: str = "add", arguments: str = "{}", **more: Any) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments, **more}


def output(id: str, text: Any = "ok") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": id, "output": text}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


# --- what is asked ---


def test_minimal() -> None:
    """The least that a client can send is a model and a text; everything else is the worker's choice."""
    asked = ask()
    assert asked.request == Request(model="fugu", messages=(Message(role="user", content="hi"),))
    assert (asked.is_stream, asked.is_stored, asked.cache_key, asked.previous_response_id) == (False, True, None, None)
    assert asked.items == ({"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},)


def test_sampling_fields() -> None:
    """Every field that is understood arrives under our own name, and none of them is called ignored."""
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    asked = ask(
        stream=True,
        store=False,
        max_output_tokens=5,
        temperature=0,
        top_p=0.5,
        presence_penalty=-1.5,
        frequency_penalty=2,
        reasoning={"effort": "xhigh", "summary": "auto"},
        text={"format": schema},
        tools=TOOLS,
        tool_choice={"type": "function", "name": "spawn", "namespace": "agents"},
        parallel_tool_calls=False,
        prompt_cache_key="k",
        metadata={"a": "b"},
        user="u",
    )
    tools = asked.request.sampling.tools
    assert [tool["function"]["name"] for tool in tools] == ["add", "patch", "agents__spawn"]
    assert asked.request.sampling == Sampling(
        max_output_tokens=5,
        temperature=0.0,
        top_p=0.5,
        presence_penalty=-1.5,
        frequency_penalty=2.0,
        reasoning_effort="xhigh",
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
        },
        tools=tools,
        tool_choice={"type": "function", "function": {"name": "agents__spawn"}},
        parallel_tool_calls=False,
    )
    assert (asked.is_stream, asked.is_stored, asked.cache_key) == (True, False, "k")
    assert asked.request.ignored == ()


@pytest.mark.parametrize(
    ("form", "inside"),
    [({"type": "text"}, None), ({"type": "json_object"}, {"type": "json_object"}), ({}, None), (None, None)],
)
def test_text_formats(form: Any, inside: Any) -> None:
    """Plain text is no format at all; JSON without a schema is asked for as in chat completions."""
    assert ask(text={"format": form}).request.sampling.response_format == inside


def test_unused_fields_are_recorded() -> None:
    """What we do not use is named in the record: unknown fields, known ones that we have no use for, left-out tools."""
    asked = ask(
        input=[{**user("x"), "mood": 1}, {"type": "reasoning", "summary": [], "id": "rs"}],
        client_metadata={"a": 1},
        include=["reasoning.encrypted_content"],
        max_tool_calls=3,
        service_tier="flex",
        truncation="auto",
        text={"verbosity": "low", "tone": "x"},
        reasoning={"context": "auto"},
        stream_options={"include_obfuscation": False},
        tools=[{"type": "web_search"}],
        tool_choice="auto",
        parallel_tool_calls=True,
    )
    assert asked.request.ignored == (
        "client_metadata",
        "include[]:reasoning.encrypted_content",
        "input[].mood",
        "input[]:reasoning",
        "max_tool_calls",
        "parallel_tool_calls",
        "reasoning.context",
        "service_tier",
        "stream_options",
        "text.tone",
        "text.verbosity",
        "tool_choice",
        "truncation",
        "tools[0]:web_search",
    )
    assert asked.request.sampling.tool_choice is None
    assert (
        ask(include=[], service_tier="auto", truncation="disabled", text={"verbosity": "medium"}).request.ignored == ()
    )


def test_roles_and_instructions() -> None:
    """Instructions come first, as the system's; messages keep role and order, with or without a type."""
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "d"}]},
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "message", "id": "m", "status": "completed", "role": "assistant", "phase": "final_answer",
         "content": [{"type": "output_text", "text": "t", "annotations": [], "logprobs": []}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "user", "content": []},
    ]  # fmt: skip
    assert messages_of(*items, instructions="i") == (
        Message(role="system", content="i"),
        Message(role="developer", content="d"),
        Message(role="system", content="s"),
        Message(role="user", content=(TextPart(text="a"), TextPart(text="b"))),
        Message(role="assistant", content="t"),
        Message(role="assistant", content="no"),
        Message(role="user", content=""),
    )


def test_images_files_and_audio() -> None:
    """Images, files by their content and audio take the forms in which workers are sent them."""
    audio = {"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}
    (message,) = messages_of(
        {
            "role": "user",
            "content": [
                {"type": "input_image", "image_url": "https://x/y.png", "detail": "high"},
                {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="},
                audio,
            ],
        }
    )
    assert message.content == (
        ImagePart(url="https://x/y.png", detail="high"),
        OtherPart(
            kind="file",
            raw={"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="}},
        ),
        OtherPart(kind="input_audio", raw=audio),
    )


def test_parallel_calls_are_one_turn() -> None:
    """Calls that stand together are one turn, with the text before them; outputs follow, in the order they came."""
    messages = messages_of(
        user("x"),
        {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"role": "assistant", "content": "I call."},
        call("c1", arguments='{"a":1}'),
        {"type": "reasoning", "id": "rs2", "summary": []},
        call("c2"),
        output("c2", "two"),
        output("c1", "one"),
        call("c3"),
        output("c3"),
    )
    assert messages == (
        Message(role="user", content="x"),
        Message(
            role="assistant",
            content="I call.",
            tool_calls=(
                ToolCall(id="c1", name="add", arguments='{"a":1}'),
                ToolCall(id="c2", name="add", arguments="{}"),
            ),
        ),
        Message(role="tool", content="two", tool_call_id="c2"),
        Message(role="tool", content="one", tool_call_id="c1"),
        Message(role="assistant", content=None, tool_calls=(ToolCall(id="c3", name="add", arguments="{}"),)),
        Message(role="tool", content="ok", tool_call_id="c3"),
    )


def test_late_outputs_follow_their_call() -> None:
    """An output stands behind its call, whatever the client put between them: providers take no other order."""
    roles = [m.role for m in messages_of(call("c1"), user("wait"), call("c2"), output("c2"), output("c1"))]
    assert roles == ["assistant", "tool", "user", "assistant", "tool"]


def test_an_id_may_return() -> None:
    """The id of an answered call may be used again, as providers that count within a turn do."""
    roles = [m.role for m in messages_of(call("c"), output("c"), call("c"), output("c"))]
    assert roles == ["assistant", "tool", "assistant", "tool"]


def test_calls_take_the_names_of_tools() -> None:
    """In the conversation, tools are called as they are offered: free-form and in namespaces, declared still or not."""
    items = (
        {"type": "custom_tool_call", "call_id": "c1", "name": "patch", "input": 'a "b"'},
        call("c2", name="spawn", namespace="agents"),
        call("c3", name="gone", namespace="agents", id="fc", status="completed"),
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "done"},
        output(
            "c2", [{"type": "input_text", "text": "t"}, {"type": "input_image", "image_url": "data:image/png;base64,"}]
        ),
        output("c3", ""),
    )
    first, *outputs = messages_of(*items, tools=TOOLS)
    assert [(c.name, c.arguments) for c in first.tool_calls] == [
        ("patch", '{"input":"a \\"b\\""}'),
        ("agents__spawn", "{}"),
        ("agents__gone", "{}"),
    ]
    assert [m.content for m in outputs] == [
        "done",
        (TextPart(text="t"), ImagePart(url="data:image/png;base64,")),
        "",
    ]


def test_other_items_are_told_in_words() -> None:
    """Items of tools that a provider ran, and ones yet to be invented, reach workers as text and are on record."""
    asked = ask(
        input=[
            {"type": "web_search_call", "id": "ws", "status": "completed", "action": {"query": "q"}},
            {"type": "local_shell_call_output", "id": "l", "output": "42"},
            {"type": "image_generation_call", "id": "i", "result": "A" * 999},
            {"role": "user", "content": [{"type": "input_smell", "smell": "rose"}]},
        ]
    )
    assert [(m.role, m.content) for m in asked.request.messages] == [
        ("assistant", '[web_search_call] {"action":{"query":"q"}}'),
        ("user", '[local_shell_call_output] {"output":"42"}'),
        ("assistant", "[image_generation_call] {}"),
        ("user", '[input_smell] {"smell":"rose"}'),
    ]
    assert asked.request.ignored == (
        "input[].content[]:input_smell",
        "input[]:image_generation_call",
        "input[]:local_shell_call_output",
        "input[]:web_search_call",
    )


def test_previous_response() -> None:
    """What went before comes first, but not its instructions; only what is new is there to be stored."""
    body = json.dumps(
        {**HI, "input": [output("c")], "previous_response_id": "resp_run_1", "instructions": "i"}
    ).encode()
    draft = read_responses(body)
    assert (draft.previous_response_id, draft.item_ids) == ("resp_run_1", ())
    asked = draft.parse(earlier=[user("x"), call("c", id="fc_1")])
    assert [m.role for m in asked.request.messages] == ["system", "user", "assistant", "tool"]
    assert asked.items == (output("c"),)
    assert asked.previous_response_id == asked.echo["previous_response_id"] == "resp_run_1"
    with pytest.raises(RequestError, match="'resp_run_1' does not exist") as caught:
        draft.parse()
    assert (caught.value.param, caught.value.code) == ("previous_response_id", "previous_response_not_found")
    alone = {"model": "fugu", "previous_response_id": "resp_run_1"}
    assert len(read_responses(json.dumps(alone).encode()).parse(earlier=[user("x")]).request.messages) == 1


def test_item_references() -> None:
    """A reference stands for the stored item, found by id or in what went before; an unknown one is an error."""
    items = [{"type": "item_reference", "id": "msg_1"}, {"id": "fc_1"}, output("c")]
    draft = read_responses(json.dumps({**HI, "input": items}).encode())
    assert draft.item_ids == ("msg_1", "fc_1")
    stored = {"msg_1": user("x"), "fc_1": call("c", id="fc_1")}
    asked = draft.parse(stored=stored)
    assert [m.role for m in asked.request.messages] == ["user", "assistant", "tool"]
    assert asked.items == (*stored.values(), output("c"))
    with pytest.raises(RequestError, match="'fc_1' is not stored") as caught:
        draft.parse(stored={"msg_1": user("x")})
    assert caught.value.param == "input[1].id"


# --- what is refused ---


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{}]}, "input[0].type"),
        ({"input": [{"type": 5}]}, "input[0].type"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [5]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "file:///etc"}]}]},
            "input[0].content[0].image_url",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "https://x"}]}]},
            "input[0].content[0].file_url",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
            "input[0].content[0].file_data",
        ),
        ({"input": [output("c")]}, "input[0].call_id"),
        ({"input": [call("c"), output("c"), output("c")]}, "input[2].call_id"),
        ({"input": [call("c"), call("c")]}, "input[1].call_id"),
        ({"input": [user("x"), call("c")]}, "input[1]"),
        ({"input": [call("")]}, "input[0].call_id"),
        ({"input": [call("c", name="")]}, "input[0].name"),
        ({"input": [call("c", arguments=None)]}, "input[0].arguments"),
        ({"input": [call("c", namespace=5)]}, "input[0].namespace"),
        ({"input": [{"type": "custom_tool_call", "call_id": "c", "name": "p"}]}, "input[0].input"),
        ({"input": [call("c"), output("c", {"a": 1})]}, "input[1].output"),
        ({"input": [{"type": "item_reference", "id": "i"}]}, "input[0].id"),
        ({"previous_response_id": "resp_x"}, "previous_response_id"),
        ({"instructions": ["x"]}, "instructions"),
        ({"temperature": 2.1}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"metadata": {"a": 1}}, "metadata[...]"),
        ({"truncation": "some"}, "truncation"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": TOOLS, "tool_choice": {"type": "web_search_preview"}}, "tool_choice.type"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], param: str) -> None:
    """A field that cannot be used is an error that names it as the client wrote it, in `param` and in the message."""
    error = error_of({**HI, **fields})
    assert (error.status, error.param) == (400, param)
    assert param in error.message


@pytest.mark.parametrize("items", [[output("call_7")], [call("call_7")]])
def test_broken_pairs_name_the_call(items: list[Any]) -> None:
    """An output without its call, and a call without its output, are errors that name the call."""
    assert "'call_7'" in error_of({**HI, "input": items}).message


@pytest.mark.parametrize(
    "field",
    [
        {"background": True},
        {"conversation": "conv_1"},
        {"prompt": {"id": "p"}},
        {"top_logprobs": 2},
        {"include": ["message.output_text.logprobs"]},
    ],
)
def test_unsupported_is_refused(field: dict[str, Any]) -> None:
    """What would change the answer and cannot be done is refused by name, never dropped."""
    error = error_of({**HI, **field})
    assert (error.status, error.code, [error.param]) == (400, "unsupported", list(field))


def test_unsupported_at_its_default_is_fine() -> None:
    """The same fields at the values that ask for nothing are accepted."""
    ask(background=False, conversation=None, prompt=None, top_logprobs=0, include=[], store=None, reasoning=None)


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"", "byte 0"),
        (b'{"model":', "byte 9"),
        (b'{"a":"\xff"}', "UTF-8"),
        (b"[" * 100_000, "deeply"),
        (b"[" + b"9" * 5000 + b"]", "out of range"),
    ],
)
def test_malformed_json(body: bytes, where: str) -> None:
    """What is not JSON is said to be so, and where."""
    error = error_of(body)
    assert (error.status, error.code) == (400, "invalid_json")
    assert where in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{**ADD, "parameters": {}}]}, "tools[0]"),
        ({"input": [{"type": "later", "x": {}}]}, "input[0]"),
        ({"input": [{**user("x"), "x": {}}]}, "input[0]"),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {}}}}, "text.format"),
        ({"tool_choice": {"type": "function", "x": {}}}, "tool_choice"),
    ],
)
def test_depth_is_bounded(fields: dict[str, Any], param: str) -> None:
    """What is carried unread may nest, but not so deep that the record could not hold it."""
    deep = "{}"
    for _ in range(400):
        deep = f'{{"a":{deep}}}'
    body = json.dumps({**HI, **fields}).replace("{}", deep, 1).encode()
    assert error_of(body).param == param


def test_counts_are_bounded() -> None:
    """Items, tools, parts and unknown fields have limits, far above real use."""
    assert error_of({**HI, "input": [user("x")] * 10_001}).param == "input"
    assert error_of({**HI, "tools": [ADD] * 1001}).param == "tools"
    parts = [{"type": "input_text", "text": "x"}] * 1001
    assert error_of({**HI, "input": [{"role": "user", "content": parts}]}).param == "input[0].content"
    assert "unknown fields" in error_of({**HI, **{f"x{i}": 1 for i in range(101)}}).message
    assert "unknown fields" in error_of({**HI, "input": [{"type": f"x{i}"} for i in range(101)]}).message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
WORDS = [
    *("message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output", "reasoning"),
    *("item_reference", "later", "input_text", "output_text", "input_image", "input_file", "input_audio", "refusal"),
    *("user", "assistant", "function", "custom", "namespace", "json_schema", "auto", "https://x", "c"),
]
NAMES = st.sampled_from(
    ["type", "role", "content", "call_id", "name", "arguments", "input", "output", "id", "text", "image_url", "refusal",
     "file_data", "filename", "namespace", "tools", "format", "schema", "effort", "mode", "encrypted_content"]
)  # fmt: skip
NEAR = st.recursive(  # values that look like the dialect, so that its inner branches are met
    JSON | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=14,
)
WRITTEN = st.text(max_size=3)
PARTS = st.lists(
    st.one_of(
        st.fixed_dictionaries({"type": st.sampled_from(["input_text", "output_text", "text"]), "text": WRITTEN}),
        st.just({"type": "input_image", "image_url": "https://x", "detail": "low"}),
        st.just({"type": "input_file", "file_data": "data:,"}),
        st.fixed_dictionaries({"type": st.just("later"), "x": NEAR}),
    ),
    max_size=2,
)
WELL_FORMED = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": WRITTEN | PARTS}),
    st.fixed_dictionaries({"type": st.sampled_from(["reasoning", "later", "local_shell_call"]), "summary": NEAR}),
)
MANGLED = st.fixed_dictionaries(
    {"type": st.sampled_from(WORDS[:8])},
    optional={
        "role": st.sampled_from(["user", "assistant", "x"]),
        "call_id": st.just("c"),
        "name": WRITTEN,
        **dict.fromkeys(("content", "arguments", "input", "output", "namespace"), NEAR | WRITTEN),
    },
)


def paired(name: str, arguments: str, content: Any) -> list[Any]:
    return [call("c", name=name or "f", arguments=arguments), output("c", content)]


PAIRS = st.builds(paired, WRITTEN, WRITTEN, WRITTEN | PARTS)
ITEMS = st.lists(st.lists(WELL_FORMED, max_size=2) | PAIRS | MANGLED.map(lambda item: [item]), min_size=1, max_size=4)
SOUND = st.lists(st.lists(WELL_FORMED, max_size=2) | PAIRS, min_size=1, max_size=4)
FIELDS = (
    "model input stream stream_options max_output_tokens temperature text reasoning tools tool_choice include metadata "
    "store previous_response_id instructions background prompt truncation extra"
)
BODIES = st.builds(
    lambda groups, fields: {"model": "fugu", "input": [item for group in groups for item in group], **fields},
    SOUND | ITEMS,
    st.just({}) | st.dictionaries(st.sampled_from(FIELDS.split()), NEAR, max_size=2),
)


def check_parse(body: bytes) -> None:
    try:
        asked = parse_responses(body, earlier=[])
    except RequestError:
        return
    at, event = event_from_json(event_to_json(Accepted(request=asked.request, policy="p"), at=1.0))
    assert isinstance(event, Accepted)
    assert (at, event.request) == (1.0, asked.request)
    (created, *_) = frames(ResponsesEvents(asked, run_id="run_1", created=1).first())
    assert created["response"]["model"] == asked.request.model


@settings(deadline=None, max_examples=100)
@given(JSON)
def test_any_json(value: Any) -> None:
    """Any JSON value at all raises `RequestError` or nothing."""
    check_parse(json.dumps(value).encode())


@settings(deadline=None, max_examples=150)
@given(BODIES)
def test_any_near_request(body: Any) -> None:
    """Any almost-request raises `RequestError` or nothing; what is accepted survives the record and can be echoed."""
    check_parse(json.dumps(body).encode())


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=60))
def test_any_bytes(body: bytes) -> None:
    """Any bytes at all raise `RequestError` or nothing."""
    check_parse(body)


# --- what real clients sent ---


def texts_of(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [part["text"] for part in value or [] if "text" in part]


@pytest.mark.shared
@pytest.mark.skipif(not CLIENTS.exists(), reason="the recorded requests are not here")
def test_recorded_clients() -> None:
    """What real clients were recorded sending is accepted with every item, call and image; only a request to run in the
    background, and one that refers to a response which is not here, are refused by name."""
    parsed, refused, items = 0, [], 0
    for path in sorted(CLIENTS.glob("*/**/*post*responses*.json")):
        wire = json.loads(path.read_text())["request"]["body"]
        try:
            asked = parse_responses(json.dumps(wire).encode())
        except RequestError as error:
            refused.append((path.parent.name, error.param))
            continue
        parsed += 1
        items += check_survival(wire, asked)
        assert asked.is_stream == bool(wire.get("stream"))
    assert refused == [("responses-background", "background"), ("responses-previous-id", "previous_response_id")]
    assert (parsed, items) == (95, 186)


def check_survival(wire: dict[str, Any], asked: Responses) -> int:
    """All that a request holds is in what workers are asked, and in its order; the number of its items."""
    given_items = asked.items if isinstance(wire["input"], str) else wire["input"]
    assert list(asked.items) == list(given_items)
    messages = asked.request.messages[1 if wire.get("instructions") else 0 :]
    spoken = [m for m in messages if m.role != "tool" and m.content is not None]
    said = [item for item in given_items if item.get("type", "message") == "message"]
    assert [(m.role, m.text) for m in spoken] == [(i["role"], "\n".join(texts_of(i["content"]))) for i in said]
    calls = [item for item in given_items if item.get("type", "").endswith("_call")]
    assert [c.id for m in messages for c in m.tool_calls] == [item["call_id"] for item in calls]
    outputs = [item for item in given_items if item.get("type", "").endswith("_output")]
    assert [(m.tool_call_id, m.text) for m in messages if m.role == "tool"] == [
        (item["call_id"], "\n".join(texts_of(item["output"]))) for item in outputs
    ]
    images = [
        part for m in messages if isinstance(m.content, tuple) for part in m.content if isinstance(part, ImagePart)
    ]
    assert len(images) == json.dumps(given_items).count('"input_image"')
    thoughts = [item for item in given_items if item.get("type") == "reasoning"]
    assert len(said) + len(calls) + len(outputs) + len(thoughts) == len(given_items)
    return len(given_items)


# --- what goes back ---

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TEXT = 'Hello\n\u2028 "you" \U0001f421'
USAGE = Usage(input_tokens=11, cached_input_tokens=3, cache_write_tokens=1, output_tokens=7, reasoning_tokens=2)
REPLY = Reply(worker="a", text=TEXT, finish_reason="stop", usage=USAGE, cost_usd=Decimal("0.0000000123"))
CALLS = (
    ToolCall(id="c1", name="add", arguments='{"a":"\\n"}'),
    ToolCall(id="c2", name="patch", arguments='{"input":"*** Begin"}'),
    ToolCall(id="c3", name="agents__spawn", arguments="{}"),
)
CALLING = Reply(worker="a", text="I call.", finish_reason="tool_calls", tool_calls=CALLS, reasoning="hm", usage=USAGE)
ONLY_CALLS = Reply(worker="a", text="", finish_reason="tool_calls", tool_calls=CALLS[:1])
CUT = Reply(worker="a", text="Hel", finish_reason="length", usage=USAGE)
FILTERED = Reply(worker="a", text="", finish_reason="content_filter")
THOUGHT_TOO_LONG = Reply(worker="a", text="", finish_reason="length", reasoning="hm")
REPLIES = [REPLY, CALLING, ONLY_CALLS, CUT, FILTERED, THOUGHT_TOO_LONG]


def run_with(reply: Reply, *, failed_first: bool = False) -> Run:
    run = Run(Request(model="fugu", messages=()), run_id="run_1")
    if failed_first:
        run.record(Called(step=0, worker="b", attempt=1, reason="planned"))
        run.record(Failed(step=0, worker="b", attempt=1, fault="worker", code="truncated", message="", usage=Usage()))
    run.record(Called(step=0, worker="a", attempt=1 + failed_first, reason="planned"))
    run.record(Replied(step=0, attempt=1 + failed_first, reply=reply))
    run.answer = reply
    run.record(Stopped(by="answer", latency_ms=2400.0, calls=run.calls, usage=run.usage, cost_usd=run.cost_usd))
    return run


def bytes_of(reply: Reply, asked: Responses | None = None, *, failed_first: bool = False) -> bytes:
    asked = asked or ask(tools=TOOLS)
    return run_to_body(run_with(reply, failed_first=failed_first), reply, asked=asked, created=5, policy="fugu@1")


def body_of(reply: Reply, asked: Responses | None = None, *, failed_first: bool = False) -> dict[str, Any]:
    return json.loads(bytes_of(reply, asked, failed_first=failed_first), parse_float=Decimal)


def test_body() -> None:
    """A whole answer has every field of the API, null where there is nothing, and what the run was beside them."""
    assert body_of(REPLY, ask(user="u", metadata={"a": "b"}, temperature=0.5, tools=[ADD])) == {
        "id": "resp_run_1",
        "object": "response",
        "created_at": 5,
        "completed_at": 7,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "background": False,
        "conversation": None,
        "frequency_penalty": 0,
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {"a": "b"},
        "model": "fugu",
        "output": [
            {
                "type": "message",
                "id": "msg_run_1_0",
                "status": "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": TEXT, "annotations": [], "logprobs": []}],
            }
        ],
        "parallel_tool_calls": True,
        "presence_penalty": 0,
        "previous_response_id": None,
        "prompt": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": True,
        "temperature": Decimal("0.5"),
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [ADD],
        "top_logprobs": 0,
        "top_p": 1,
        "truncation": "disabled",
        "usage": {
            "input_tokens": 11,
            "input_tokens_details": {
                "cached_tokens": 3,
                "cache_write_tokens": 1,
                "orchestration_input_tokens": 0,
                "orchestration_input_cached_tokens": 0,
            },
            "output_tokens": 7,
            "output_tokens_details": {"reasoning_tokens": 2, "orchestration_output_tokens": 0},
            "total_tokens": 18,
        },
        "user": "u",
        "fugu": {
            "run_id": "run_1",
            "policy": "fugu@1",
            "workers": ["a"],
            "cost_usd": Decimal("1.23E-8"),
            "stopped_by": "answer",
        },
    }


def test_body_with_calls() -> None:
    """Reasoning, text and calls are items in this order; every call is of the kind and name that the client knows."""
    head = {"status": "completed"}
    assert body_of(CALLING)["output"] == [
        {
            "type": "reasoning",
            "id": "rs_run_1_0",
            "summary": [{"type": "summary_text", "text": "hm"}],
            "encrypted_content": None,
        },
        {
            "type": "message",
            "id": "msg_run_1_1",
            **head,
            "role": "assistant",
            "content": [{"type": "output_text", "text": "I call.", "annotations": [], "logprobs": []}],
        },
        {
            "type": "function_call",
            "id": "fc_run_1_2",
            **head,
            "call_id": "c1",
            "name": "add",
            "arguments": '{"a":"\\n"}',
        },
        {
            "type": "custom_tool_call",
            "id": "fc_run_1_3",
            **head,
            "call_id": "c2",
            "name": "patch",
            "input": "*** Begin",
        },
        {
            "type": "function_call",
            "id": "fc_run_1_4",
            **head,
            "call_id": "c3",
            "name": "spawn",
            "namespace": "agents",
            "arguments": "{}",
        },
    ]


@pytest.mark.parametrize(
    ("reply", "reason", "items"),
    [
        (CUT, "max_output_tokens", [("message", "incomplete")]),
        (FILTERED, "content_filter", [("message", "incomplete")]),
        (THOUGHT_TOO_LONG, "max_output_tokens", [("reasoning", None)]),
    ],
)
def test_incomplete(reply: Reply, reason: str, items: list[Any]) -> None:
    """An answer that was cut says so, why, and which of its items is not whole."""
    body = body_of(reply)
    assert (body["status"], body["incomplete_details"], body["completed_at"]) == (
        "incomplete",
        {"reason": reason},
        None,
    )
    assert [(item["type"], item.get("status")) for item in body["output"]] == items


def test_unknown_usage() -> None:
    """Tokens that nobody counted are null as a whole; details that the provider did not tell are 0 on this wire."""
    assert body_of(ONLY_CALLS)["usage"] is None
    usage = body_of(Reply(worker="a", text="x", finish_reason="stop", usage=Usage(input_tokens=1, output_tokens=2)))[
        "usage"
    ]
    assert usage["input_tokens_details"]["cached_tokens"] == usage["output_tokens_details"]["reasoning_tokens"] == 0


def test_hidden_calls_show_in_usage() -> None:
    """A run of more calls than the answer's tells their tokens beside the answer's; unknown ones as null."""
    usage = body_of(REPLY, failed_first=True)["usage"]
    assert (usage["input_tokens"], usage["total_tokens"]) == (11, 18)
    assert usage["input_tokens_details"]["orchestration_input_tokens"] is None
    assert usage["output_tokens_details"]["orchestration_output_tokens"] is None


def test_echo() -> None:
    """The answer repeats what was asked, tools and formats completed with null where the client said nothing."""
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}}
    bare = {"type": "function", "name": "f"}
    choice = {"type": "function", "name": "f"}
    body = body_of(
        REPLY,
        ask(tools=[bare, {"type": "web_search"}], tool_choice=choice, text={"format": schema, "verbosity": "low"},
            reasoning={"effort": "high"}, store=False, instructions="i", truncation="auto", service_tier="flex"),
    )  # fmt: skip
    assert body["tools"] == [{**bare, "description": None, "parameters": None, "strict": None}, {"type": "web_search"}]
    assert body["tool_choice"] == choice
    assert body["text"] == {"format": {**schema, "description": None, "strict": False}, "verbosity": "low"}
    assert (body["reasoning"], body["store"]) == ({"effort": "high", "summary": None}, False)
    assert (body["instructions"], body["truncation"], body["service_tier"]) == ("i", "disabled", "default")


def test_response_ids() -> None:
    """An answer's id leads back to its run; what was never one of ours leads nowhere."""
    assert run_id_of(response_id_of("run_1")) == "run_1"
    assert [run_id_of(id) for id in ("run_1", "resp_1", "resp_", "")] == [None] * 4


def frames(data: bytes) -> list[Any]:
    """The events, each checked to stand under its own name and on one line."""
    assert data.endswith(b"\n\n")
    told = []
    for frame in data.split(b"\n\n")[:-1]:
        name, line = frame.split(b"\n")
        event = json.loads(line.removeprefix(b"data: "))
        assert name == b"event: " + event["type"].encode()
        told.append(event)
    return told


def stream(reply: Reply, deltas: Iterable[Delta], asked: Responses | None = None) -> tuple[bytes, ResponsesEvents]:
    """As the server sends it."""
    events = ResponsesEvents(asked or ask(tools=TOOLS), run_id="run_1", created=5)
    data = events.first() + b"".join([events.delta(delta) for delta in deltas])
    data += events.tool_calls(reply.tool_calls) + events.last(run_with(reply), reply, policy="fugu@1")
    return data, events


def deltas_of(reply: Reply) -> list[Delta]:
    """Letter by letter."""
    return [Delta(reasoning=c) for c in reply.reasoning or ""] + [Delta(text=c) for c in reply.text]


def kinds(data: bytes) -> list[str]:
    return [event["type"].removeprefix("response.") for event in frames(data)]


REASONED = [
    "output_item.added",
    "reasoning_summary_part.added",
    "reasoning_summary_text.delta",
    "reasoning_summary_text.done",
    "reasoning_summary_part.done",
    "output_item.done",
]
SAID = [
    "output_item.added",
    "content_part.added",
    "output_text.delta",
    "output_text.done",
    "content_part.done",
    "output_item.done",
]


def called(name: str) -> list[str]:
    return ["output_item.added", f"{name}.delta", f"{name}.done", "output_item.done"]


FUNCTION_CALLED, CUSTOM_CALLED = called("function_call_arguments"), called("custom_tool_call_input")


def test_event_sequence() -> None:
    """The exact sequence of an answer that has everything, numbered without a gap."""
    data, _ = stream(CALLING, [Delta(reasoning="hm"), Delta(text="I call.")])
    assert kinds(data) == [
        *("created", "in_progress"),
        *REASONED,
        *SAID,
        *FUNCTION_CALLED,
        *CUSTOM_CALLED,
        *FUNCTION_CALLED,
        "completed",
    ]
    events = frames(data)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    indexes = [event["output_index"] for event in events[2:-1]]
    assert indexes == [0] * 6 + [1] * 6 + [2] * 4 + [3] * 4 + [4] * 4
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]
    ids = [done[index]["id"] for index in indexes]
    assert [event.get("item_id", event.get("item", {}).get("id")) for event in events[2:-1]] == ids


@pytest.mark.parametrize(
    ("reply", "end"), [(CUT, [*SAID, "incomplete"]), (ONLY_CALLS, [*FUNCTION_CALLED, "completed"])]
)
def test_event_sequence_of_other_ends(reply: Reply, end: list[str]) -> None:
    """An answer that was cut ends as incomplete; one of calls alone has no message."""
    data, _ = stream(reply, [Delta(text=reply.text)] if reply.text else [])
    assert kinds(data) == ["created", "in_progress", *end]


def test_empty_answer_has_a_message() -> None:
    """Where nothing came at all there is an empty message, as in the whole answer."""
    data, _ = stream(FILTERED, [])
    assert kinds(data)[2:] == [k for k in SAID if k != "output_text.delta"] + ["incomplete"]


@pytest.mark.parametrize("reply", REPLIES)
def test_stream_and_body_are_one(reply: Reply) -> None:
    """The answer at the end of a stream is, byte for byte, the one that is sent whole."""
    data, events = stream(reply, deltas_of(reply))
    assert events.body == bytes_of(reply)
    assert frames(data)[-1]["response"] == json.loads(bytes_of(reply))


@given(st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3)), max_size=8))
def test_nothing_is_lost(pieces: list[tuple[str, str]]) -> None:
    """However text and reasoning alternate, the final answer holds all of both, one message, and what was streamed."""
    text, reasoning = ("".join(piece[i] for piece in pieces) for i in (0, 1))
    reply = Reply(worker="a", text=text, finish_reason="stop")
    data, _ = stream(reply, [Delta(text=t, reasoning=r) for t, r in pieces])
    events = frames(data)
    items = events[-1]["response"]["output"]
    thoughts = [part["text"] for item in items if item["type"] == "reasoning" for part in item["summary"]]
    said = [part["text"] for item in items if item["type"] == "message" for part in item["content"]]
    assert ("".join(said), "".join(thoughts), len(said)) == (text, reasoning, 1 if text or not reasoning else 0)
    assert items == [event["item"] for event in events if event["type"] == "response.output_item.done"]
    streamed = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(streamed) == text
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_narration_before_the_text() -> None:
    """What a run tells of itself is reasoning that stays open until the text begins, and is in the final answer."""
    data, _ = stream(REPLY, [Delta(reasoning="step 1\n"), Delta(reasoning="step 2\n"), Delta(text=TEXT)])
    assert kinds(data)[2:6] == [*REASONED[:3], "reasoning_summary_text.delta"]
    (thought, said) = frames(data)[-1]["response"]["output"]
    assert (thought["summary"][0]["text"], said["content"][0]["text"]) == ("step 1\nstep 2\n", TEXT)


def test_late_reasoning_waits() -> None:
    """Reasoning amid the text is told after it, so that the answer stays one message."""
    events = ResponsesEvents(ask(), run_id="run_1", created=5)
    events.first()
    events.delta(Delta(text="a"))
    assert events.delta(Delta(reasoning="hm")) == b""
    events.delta(Delta(text="b"))
    items = frames(events.last(run_with(REPLY), REPLY, policy="p"))[-1]["response"]["output"]
    assert [item["id"] for item in items] == ["msg_run_1_0", "rs_run_1_1"]


@dataclass(frozen=True)
class Trouble:
    status: int
    code: str
    message: str = "it failed"


@pytest.mark.parametrize(
    ("trouble", "code", "kind"),
    [
        (Trouble(502, "truncated"), "server_error", "server_error"),
        (Trouble(503, "overloaded"), "server_error", "server_error"),
        (Trouble(500, "internal_error"), "server_error", "server_error"),
        (Trouble(429, "rate_limit_exceeded"), "rate_limit_exceeded", "rate_limit_error"),
        (Trouble(400, "context_length_exceeded"), "context_length_exceeded", "invalid_request_error"),
        (Trouble(400, "rejected"), "invalid_prompt", "invalid_request_error"),
        (Trouble(504, "budget_exhausted"), "invalid_prompt", "server_error"),
    ],
)
def test_failure_codes(trouble: Trouble, code: str, kind: str) -> None:
    """A stream that fails says so in both forms in use, with the code that makes clients try again or not."""
    events = ResponsesEvents(ask(), run_id="run_1", created=5)
    begun = frames(events.first() + events.delta(Delta(text="Hel")))
    error, failed = frames(events.error(trouble))
    told = {"code": code, "message": "it failed", "param": None}
    assert error == {"type": "error", "sequence_number": len(begun), **told, "error": {"type": kind, **told}}
    assert (failed["type"], failed["sequence_number"]) == ("response.failed", len(begun) + 1)
    response = failed["response"]
    assert (response["status"], response["error"]) == ("failed", {"code": code, "message": "it failed"})
    assert [(item["status"], item["content"][0]["text"]) for item in response["output"]] == [("incomplete", "Hel")]


def test_failure_before_anything() -> None:
    """A stream that fails when only heartbeats were sent still begins as clients expect it to."""
    events = ResponsesEvents(ask(), run_id="run_1", created=5)
    assert kinds(events.error(Trouble(502, "truncated"))) == ["created", "in_progress", "error", "failed"]


# --- the official SDK ---


@pytest.mark.parametrize("reply", REPLIES)
def test_sdk_types(reply: Reply) -> None:
    """Bodies and events are, strictly, what the official SDK declares them to be, and lose nothing in its types."""
    told = json.loads(bytes_of(reply))
    response = Response.model_validate(told)
    assert response.model_dump(exclude_unset=True, by_alias=True) == told
    data, _ = stream(reply, deltas_of(reply))
    for event in frames(data):
        checked = EVENT.validate_python(event)
        assert checked.type == event["type"]
        assert checked.model_dump(exclude_unset=True, by_alias=True) == event


def test_sdk_types_of_failures() -> None:
    """So are the events of a failure, in the codes that the SDK knows."""
    for trouble in (Trouble(502, "truncated"), Trouble(429, "x"), Trouble(400, "rejected")):
        events = ResponsesEvents(ask(), run_id="run_1", created=5)
        for event in frames(events.delta(Delta(reasoning="hm")) + events.error(trouble)):
            assert EVENT.validate_python(event).model_dump(exclude_unset=True, by_alias=True) == event


def client_of(data: bytes) -> openai.OpenAI:
    """The real SDK, which is answered with these bytes."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        del request
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=data)

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    return openai.OpenAI(api_key="k", base_url="http://fugu/v1", max_retries=0, http_client=http)


@pytest.mark.parametrize("reply", [REPLY, CALLING, ONLY_CALLS])
def test_sdk_accumulates_the_answer(reply: Reply) -> None:
    """The SDK's stream helper ends with the object that is sent whole, and its text and calls grew to the same."""
    data, _ = stream(reply, deltas_of(reply))
    whole = json.loads(bytes_of(reply))
    with client_of(data) as client, client.responses.stream(model="fugu", input="hi") as events:
        told = list(events)
        final = events.get_final_response()
    assert final.output_text == reply.text
    snapshots = [event.snapshot for event in told if event.type == "response.output_text.delta"]
    assert snapshots == [reply.text[: i + 1] for i in range(len(reply.text))]
    arguments = [event.snapshot for event in told if event.type == "response.function_call_arguments.delta"]
    assert arguments == [c.arguments for c in reply.tool_calls if c.name != "patch"]
    assert without_parsed(final.model_dump(exclude_unset=True, by_alias=True)) == whole


def without_parsed(value: Any) -> Any:
    """Less the fields that the SDK's parser adds."""
    if isinstance(value, dict):
        return {key: without_parsed(inner) for key, inner in value.items() if not key.startswith("parsed")}
    return [without_parsed(inner) for inner in value] if isinstance(value, list) else value


def test_sdk_raises_on_failure() -> None:
    """The SDK takes the error frame for the error that it is, with its code."""
    events = ResponsesEvents(ask(), run_id="run_1", created=5)
    data = events.first() + events.delta(Delta(text="Hel")) + events.error(Trouble(502, "truncated"))
    with client_of(data) as client, pytest.raises(openai.APIError, match="it failed") as caught:
        list(client.responses.create(model="fugu", input="hi", stream=True))
    assert (caught.value.code, caught.value.type) == ("server_error", "server_error")


def test_answers_can_be_sent_back() -> None:
    """What an answer consists of, sent back with the outputs of its calls, is the turn that the worker gave."""
    items: Sequence[Any] = json.loads(bytes_of(CALLING))["output"]
    kinds_of_output = ["function_call_output", "custom_tool_call_output", "function_call_output"]
    outputs = [{**output(c.id), "type": kind} for c, kind in zip(CALLS, kinds_of_output, strict=True)]
    asked = ask(input=[user("x"), *items, *outputs], tools=TOOLS)
    assert asked.request.messages[1] == Message(role="assistant", content="I call.", tool_calls=CALLS)
    assert asked.request.ignored == ("input[]:reasoning",)
