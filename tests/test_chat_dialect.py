"""The chat completions dialect: what clients send becomes a `Request`, what a run gave becomes what clients read."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torafugu.errors import RequestError
from torafugu.events import Accepted, Called, Failed, Replied, Stopped, event_from_json, event_to_json
from torafugu.orchestrate import Run
from torafugu.pool.backend import Delta
from torafugu.server.chat import Chunks, parse_chat, run_to_body
from torafugu.types import ImagePart, Message, OtherPart, Reply, Request, Sampling, TextPart, ToolCall, Usage

CLIENTS = Path(__file__).parents[2] / "shared" / "fixtures" / "clients"
HI = {"model": "fugu", "messages": [{"role": "user", "content": "hi"}]}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def parse(**fields: Any) -> Request:
    return parse_chat(json.dumps({**HI, **fields}).encode()).request


def parse_message(message: dict[str, Any]) -> Message:
    return parse(messages=[message]).messages[0]


def error_of(body: bytes | dict[str, Any]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_chat(body if isinstance(body, bytes) else json.dumps(body).encode())
    return caught.value


def test_minimal() -> None:
    """The least that a client can send is a model and a message; everything else is the worker's choice."""
    chat = parse_chat(json.dumps(HI).encode())
    assert chat.request == Request(model="fugu", messages=(Message(role="user", content="hi"),))
    assert (chat.is_stream, chat.include_usage, chat.cache_key) == (False, False, None)


def test_sampling_fields() -> None:
    """Every sampling field that is understood arrives under our own name."""
    sampling = parse(
        temperature=0,
        top_p=0.5,
        stop="x",
        seed=7,
        presence_penalty=-1.5,
        frequency_penalty=2,
        reasoning_effort="xhigh",
        response_format={"type": "json_object"},
        tools=[TOOL],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=5,
    ).sampling
    assert sampling == Sampling(
        temperature=0.0,
        top_p=0.5,
        stop=("x",),
        seed=7,
        presence_penalty=-1.5,
        frequency_penalty=2.0,
        reasoning_effort="xhigh",
        response_format={"type": "json_object"},
        tools=(TOOL,),
        tool_choice="required",
        parallel_tool_calls=False,
        max_output_tokens=5,
    )


def test_streaming_options() -> None:
    """`stream`, `stream_options.include_usage` and `prompt_cache_key` say how to answer, not what to ask."""
    fields = {"stream": True, "stream_options": {"include_usage": True}, "prompt_cache_key": "k"}
    chat = parse_chat(json.dumps({**HI, **fields}).encode())
    assert (chat.is_stream, chat.include_usage, chat.cache_key) == (True, True, "k")
    assert chat.request.ignored == ()


def test_both_max_tokens() -> None:
    """Of two different limits the current field counts, and the other is on record as ignored."""
    request = parse(max_tokens=5, max_completion_tokens=9)
    assert request.sampling.max_output_tokens == 9
    assert request.ignored == ("max_tokens",)
    assert parse(max_tokens=5, max_completion_tokens=5).ignored == ()


def test_unknown_fields_are_kept_by_name() -> None:
    """Fields that nobody here reads are no error; their names are kept, also those inside messages."""
    message = {"role": "assistant", "content": "a", "annotations": [], "audio": None}
    request = parse(client_metadata={"a": 1}, user="u", messages=[message, message])
    assert request.ignored == ("client_metadata", "messages[].annotations", "messages[].audio", "user")


def test_content_parts() -> None:
    """Text and images are read, with or without the object around the URL; other parts are carried verbatim."""
    audio = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}
    message = parse_message(
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
                {"type": "image_url", "image_url": "data:image/png;base64,AA=="},
                audio,
            ],
        }
    )
    assert message.content == (
        TextPart(text="look"),
        ImagePart(url="https://x/y.png", detail="low"),
        ImagePart(url="data:image/png;base64,AA=="),
        OtherPart(kind="input_audio", raw=audio),
    )


def test_tool_turns() -> None:
    """A turn of tool calls may have null content, and the tool's answer names the call."""
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
    request = parse(
        messages=[
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "2"}]},
        ],
    )
    assert request.messages == (
        Message(role="assistant", content=None, tool_calls=(ToolCall(id="c1", name="add", arguments='{"a":1}'),)),
        Message(role="tool", content=(TextPart(text="2"),), tool_call_id="c1"),
    )


def test_refusal_turn() -> None:
    """An earlier refusal is read as what the assistant said."""
    assert parse_message({"role": "assistant", "content": None, "refusal": "No."}).content == "No."
    parts = [{"type": "refusal", "refusal": "No."}]
    assert parse_message({"role": "assistant", "content": parts}).content == (TextPart(text="No."),)


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant"])
def test_roles(role: str) -> None:
    """All current roles are taken, at any place of the conversation."""
    assert parse_message({"role": role, "content": "x"}).role == role


def test_other_tools_become_functions() -> None:
    """Workers are offered functions only: custom tools become such, and what no worker can do is put on record."""
    custom = {"type": "custom", "custom": {"name": "patch", "format": {"type": "grammar", "syntax": "lark"}}}
    request = parse(tools=[{"type": "web_search"}, custom, TOOL])
    assert [tool["function"]["name"] for tool in request.sampling.tools] == ["patch", "add"]
    assert request.sampling.tools[0]["function"]["parameters"]["required"] == ["input"]
    assert request.sampling.tools[1] == TOOL
    assert request.ignored == ("tools[0]:web_search",)


def test_forced_call_of_a_tool_that_nobody_can_make() -> None:
    """Where only tools of the server's side are offered, none can be required."""
    with pytest.raises(RequestError, match="tool_choice"):
        parse(tools=[{"type": "web_search"}], tool_choice="required")


def test_custom_tool_calls() -> None:
    """A custom tool's call is told to workers as a function's and to the client as its own, and back."""
    custom = {"type": "custom", "custom": {"name": "patch"}}
    earlier = {"id": "c", "type": "custom", "custom": {"name": "patch", "input": "*** Begin"}}
    turn = {"role": "assistant", "content": None, "tool_calls": [earlier]}
    chat = parse_chat(
        json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}, turn], "tools": [custom]}).encode()
    )
    (call,) = chat.request.messages[1].tool_calls
    assert (call.name, json.loads(call.arguments)) == ("patch", {"input": "*** Begin"})
    frames = Chunks(run_id="r", created=0, model="m", include_usage=False, toolbox=chat.toolbox).tool_calls((call,))
    told = json.loads(frames.removeprefix(b"data: "))["choices"][0]["delta"]["tool_calls"]
    assert told == [{"index": 0, **earlier}]


@pytest.mark.parametrize("choice", ["none", "auto", "required", {"type": "function", "function": {"name": "add"}}])
def test_tool_choice(choice: Any) -> None:
    """All four forms of `tool_choice` arrive."""
    assert parse(tools=[TOOL], tool_choice=choice).sampling.tool_choice == choice


def test_tool_choice_without_tools() -> None:
    """Without tools, a choice that needs none is put on record as ignored; one that asks for a tool is an error."""
    request = parse(tools=[], tool_choice="auto", parallel_tool_calls=True)
    assert request.sampling == Sampling()
    assert request.ignored == ("parallel_tool_calls", "tool_choice")
    assert error_of({**HI, "tool_choice": "required"}).param == "tool_choice"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 1}, "model"),
        ({"model": ""}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [HI["messages"][0], {"role": "user", "content": 5}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": []}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "assistant", "content": None, "function_call": {"name": "f"}}]},
            "messages[0].function_call",
        ),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc"}}]}]},
            "messages[0].content[0].image_url.url",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "type": "function"}]}]},
            "messages[0].tool_calls[0].function",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f"}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": True}, "max_completion_tokens"),
        ({"seed": 2**70}, "seed"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"stream": "yes"}, "stream"),
        ({"response_format": {}}, "response_format.type"),
        ({"tools": [{"function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.function.name"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "sub"}}},
            "tool_choice.function.name",
        ),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], param: str) -> None:
    """A field that cannot be used is an error that names it as the client wrote it, in `param` and in the message."""
    error = error_of({**HI, **fields})
    assert (error.status, error.param) == (400, param)
    assert param in error.message


@pytest.mark.parametrize(
    "field",
    [
        {"n": 2},
        {"logprobs": True},
        {"top_logprobs": 2},
        {"modalities": ["text", "audio"]},
        {"audio": {"voice": "x"}},
        {"functions": []},
        {"function_call": "auto"},
    ],
)
def test_unsupported_is_refused(field: dict[str, Any]) -> None:
    """What would change the answer and cannot be done is refused by name, never dropped."""
    error = error_of({**HI, **field})
    assert (error.status, error.code, [error.param]) == (400, "unsupported", list(field))


def test_unsupported_at_its_default_is_fine() -> None:
    """The same fields at the values that ask for nothing are accepted."""
    parse(n=1, logprobs=False, top_logprobs=0, modalities=["text"], audio=None)


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"", "byte 0"),
        (b'{"model":', "byte 9"),
        (b'{"model":"x",}', "byte 13"),
        (b"[NaN]", "byte 1"),
        (b'{"a":"\xff"}', "UTF-8"),
        (b'{"a":"\\ud800"}', "byte"),
        (b"[" * 100_000, "deeply"),
        (b"[1e999]", "out of range"),
        (b"[" + b"9" * 5000 + b"]", "out of range"),
    ],
)
def test_malformed_json(body: bytes, where: str) -> None:
    """What is not JSON is said to be so, and where."""
    error = error_of(body)
    assert (error.status, error.code) == (400, "invalid_json")
    assert where in error.message


@pytest.mark.parametrize("depth", [63, 65, 400])
def test_depth_is_bounded(depth: int) -> None:
    """What is carried unread may nest, but not so deep that the record could not hold it."""
    schema: Any = {}
    for _ in range(depth - 3):
        schema = {"a": schema}
    body = {**HI, "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}
    if depth < 64:
        parse_chat(json.dumps(body).encode())
    else:
        assert error_of(body).param == "tools[0]"


def test_counts_are_bounded() -> None:
    """Messages, tools, parts and unknown fields have limits, far above real use."""
    assert error_of({**HI, "messages": HI["messages"] * 10_001}).param == "messages"
    assert error_of({**HI, "tools": [TOOL] * 1001}).param == "tools"
    parts = [{"type": "text", "text": "x"}] * 1001
    assert error_of({**HI, "messages": [{"role": "user", "content": parts}]}).param == "messages[0].content"
    assert "unknown fields" in error_of({**HI, **{f"x{i}": 1 for i in range(101)}}).message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(
    ["type", "text", "image_url", "url", "function", "name", "arguments", "id", "refusal", "detail"]
)
NEAR = st.recursive(  # values that look like the dialect, so that its inner branches are met
    JSON | st.sampled_from(["text", "image_url", "function", "auto", "required", "user", "https://x", "add"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
ROLES = st.sampled_from(["system", "developer", "user", "assistant", "tool", "function", "x"])
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": ROLES, "content": NEAR}, optional={"tool_calls": NEAR, "tool_call_id": NEAR, "name": NEAR}
    ),
    max_size=3,
)
FIELDS = "stream stream_options max_tokens temperature stop seed response_format tools tool_choice n logprobs extra"
BODIES = st.fixed_dictionaries(
    {"model": st.text(max_size=4) | NEAR, "messages": MESSAGES | NEAR},
    optional=dict.fromkeys(FIELDS.split(), NEAR),
)


def check_parse(body: bytes) -> None:
    try:
        request = parse_chat(body).request
    except RequestError:
        return
    at, event = event_from_json(event_to_json(Accepted(request=request, policy="p"), at=1.0))
    assert isinstance(event, Accepted)
    assert (at, event.request) == (1.0, request)


@settings(deadline=None, max_examples=100)
@given(JSON)
def test_any_json(value: Any) -> None:
    """Any JSON value at all raises `RequestError` or nothing."""
    check_parse(json.dumps(value).encode())


@settings(deadline=None, max_examples=200)
@given(BODIES)
def test_any_near_request(body: Any) -> None:
    """Any almost-request raises `RequestError` or nothing, and what is accepted survives the record unchanged."""
    check_parse(json.dumps(body).encode())


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=60))
def test_any_bytes(body: bytes) -> None:
    """Any bytes at all raise `RequestError` or nothing."""
    check_parse(body)


def recorded_requests() -> list[Path]:
    return sorted(CLIENTS.glob("**/*.json"))


@pytest.mark.shared
@pytest.mark.skipif(not CLIENTS.exists(), reason="the recorded requests are not here")
def test_recorded_clients() -> None:
    """What real clients were recorded sending is accepted whole; only `n: 2` with logprobs is refused, by name."""
    parsed, refused = 0, []
    for path in recorded_requests():
        request = json.loads(path.read_text())["request"]
        if not request["path"].endswith("/chat/completions"):
            continue
        try:
            chat = parse_chat(json.dumps(request["body"]).encode())
        except RequestError as error:
            refused.append((path.parent.name, error.param))
            continue
        parsed += 1
        wire = request["body"]
        assert chat.is_stream == bool(wire.get("stream"))
        assert len(chat.request.messages) == len(wire["messages"])
        assert len(chat.request.sampling.tools) == len(wire.get("tools") or [])
        assert [m.text for m in chat.request.messages if isinstance(m.content, str)] == [
            m["content"] for m in wire["messages"] if isinstance(m["content"], str)
        ]
    assert parsed > 100
    assert refused == [("chat-kitchen-sink", "n")]


# --- what goes back ---

REPLY = Reply(
    worker="a",
    text='Hello\n\u2028 "you" \U0001f421',
    finish_reason="stop",
    usage=Usage(input_tokens=11, cached_input_tokens=3, output_tokens=7, reasoning_tokens=2),
    cost_usd=Decimal("0.0000000123"),
)


def run_with(reply: Reply, *, failed_first: bool = False) -> Run:
    run = Run(Request(model="fugu", messages=()), run_id="run_1")
    if failed_first:
        run.record(Called(step=0, worker="b", attempt=1, reason="planned"))
        run.record(Failed(step=0, worker="b", attempt=1, fault="worker", code="truncated", message="", usage=Usage()))
    run.record(Called(step=0, worker="a", attempt=1 + failed_first, reason="planned"))
    run.record(Replied(step=0, attempt=1 + failed_first, reply=reply))
    run.answer = reply
    cost = run.cost_usd
    run.record(Stopped(by="answer", latency_ms=1.0, calls=run.calls, usage=run.usage, cost_usd=cost))
    return run


def body_of(reply: Reply, *, failed_first: bool = False) -> dict[str, Any]:
    run = run_with(reply, failed_first=failed_first)
    return json.loads(run_to_body(run, reply, created=5, policy="fugu@1"), parse_float=Decimal)


def test_body() -> None:
    """A whole answer is a complete chat.completion, with what the run was beside it."""
    body = body_of(REPLY)
    assert (body["id"], body["object"], body["created"], body["model"]) == (
        "chatcmpl-run_1",
        "chat.completion",
        5,
        "fugu",
    )
    (choice,) = body["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": REPLY.text, "refusal": None, "annotations": []},
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert body["usage"] == {
        "prompt_tokens": 11,
        "completion_tokens": 7,
        "total_tokens": 18,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 2},
        "orchestration_input_tokens": 0,
        "orchestration_input_cached_tokens": 0,
        "orchestration_output_tokens": 0,
    }
    assert body["fugu"] == {
        "run_id": "run_1",
        "policy": "fugu@1",
        "workers": ["a"],
        "cost_usd": Decimal("1.23E-8"),
        "stopped_by": "answer",
    }


def test_body_with_tool_calls_and_reasoning() -> None:
    """Tool calls leave null content where there is no text; reasoning goes out under both names in use."""
    call = ToolCall(id="c", name="add", arguments="{}")
    reply = Reply(worker="a", text="", finish_reason="tool_calls", tool_calls=(call,), reasoning="hm")
    message = body_of(reply)["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [{"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}]
    assert message["reasoning"] == message["reasoning_content"] == "hm"


def test_unknown_usage_is_null() -> None:
    """Tokens that the provider did not count are unknown, not zero, and so is an unknown cost."""
    body = body_of(Reply(worker="a", text="x", finish_reason="stop"))
    assert body["usage"] is None
    assert body["fugu"]["cost_usd"] is None


def test_hidden_calls_show_in_usage() -> None:
    """A run of more calls than the answer's tells their tokens beside the answer's; unknown ones as null."""
    usage = body_of(REPLY, failed_first=True)["usage"]
    assert (usage["prompt_tokens"], usage["orchestration_input_tokens"]) == (11, None)


def frames(data: bytes) -> list[Any]:
    assert data.endswith(b"\n\n")
    return [json.loads(frame.removeprefix("data: ")) for frame in data.decode().split("\n\n")[:-1]]


def chunks(*, include_usage: bool) -> Chunks:
    return Chunks(run_id="run_1", created=5, model='fu"gu', include_usage=include_usage)


@given(st.text(), st.text(min_size=1))
def test_delta_frames(text: str, reasoning: str) -> None:
    """Any text survives a frame, on one line, beside any reasoning."""
    data = chunks(include_usage=False).delta(Delta(text=text, reasoning=reasoning))
    (chunk,) = frames(data)
    assert data.count(b"\n") == 2
    assert chunk["choices"][0]["delta"].get("content", "") == text
    assert chunk["choices"][0]["delta"]["reasoning"] == reasoning
    assert (chunk["id"], chunk["model"], chunk["object"]) == ("chatcmpl-run_1", 'fu"gu', "chat.completion.chunk")


@pytest.mark.parametrize("include_usage", [False, True])
def test_last_frames(include_usage: bool) -> None:
    """Usage has a chunk without choices only when it was asked for; the last chunk before the end tells of the run."""
    last = chunks(include_usage=include_usage).last(run_with(REPLY), REPLY, policy="p")
    assert last.endswith(b"data: [DONE]\n\n")
    told = frames(last.removesuffix(b"data: [DONE]\n\n"))
    assert [bool(chunk["choices"]) for chunk in told] == [True, False][: len(told)]
    assert told[0]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert told[-1]["fugu"]["run_id"] == "run_1"
    if include_usage:
        assert told[0]["usage"] is None
        assert told[1]["usage"]["total_tokens"] == 18
    else:
        assert len(told) == 1
        assert "usage" not in told[0]


def test_streamed_tool_calls() -> None:
    """Each tool call goes out whole, in a chunk of its own, with its index."""
    calls = tuple(ToolCall(id=f"c{i}", name="add", arguments='{"a":"\\n"}') for i in range(2))
    told = [
        chunk["choices"][0]["delta"]["tool_calls"] for chunk in frames(chunks(include_usage=True).tool_calls(calls))
    ]
    assert [(len(call), call[0]["index"], call[0]["id"]) for call in told] == [(1, 0, "c0"), (1, 1, "c1")]
    assert told[0][0]["function"] == {"name": "add", "arguments": '{"a":"\\n"}'}


def test_accepted_requests_are_values() -> None:
    """A parsed request is stored by the record's own encoder, parts and all."""
    message = {"role": "user", "content": [{"type": "file", "file": {"file_id": "f", "n": 10**30}}]}
    request = parse(messages=[message])
    assert msgspec.json.decode(msgspec.json.encode(request), type=Request) == request
