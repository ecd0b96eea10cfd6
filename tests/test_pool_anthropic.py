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
        worker=spec(extra_body={"thinking": {"type": "adaptive"}, "top_p": 0.2}),
        stream=True,
        temperature=0.5,
        top_p=0.9,
        stop=("END", "STOP"),
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
    )
    assert sent["temperature"] == 0.5
    assert sent["top_p"] == 0.2
    assert sent["stop_sequences"] == ["END", "STOP"]
    assert sent["output_config"] == {"format": {"type": "json_schema", "schema": SCHEMA}}
    assert sent["thinking"] == {"type": "adaptive"}
    assert sent["stream"] is True


def test_system_turns_are_lifted_out_wherever_they_stand() -> None:
    """System and developer turns become the system prompt, in order, and leave no gap in the conversation."""
    sent = body(
        Message(role="system", content="one"),
        Message(role="user", content="a"),
        Message(role="developer", content=(TextPart(text="two"),)),
        Message(role="user", content="b"),
    )
    assert sent["system"] == "one\n\ntwo"
    assert sent["messages"] == [{"role": "user", "content": [text("a"), text("b")]}]


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
    """An inline image is sent as base64, other parts verbatim, and empty text, which they refuse, not at all."""
    document = {"type": "document", "source": {"type": "text", "data": "d"}}
    sent = body(
        Message(role="user", content=""),
        Message(
            role="user",
            content=(
                TextPart(text=""),
                ImagePart(url="data:image/png;name=x;base64,AAEC"),
                OtherPart(kind="document", raw=document),
            ),
        ),
        Message(role="assistant", content=""),
        Message(role="user", content="go on"),
    )
    assert sent["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAEC"}},
                document,
                text("go on"),
            ],
        }
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
