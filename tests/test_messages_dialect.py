"""The messages dialect: what clients send becomes a `Request`, what a run gave becomes what they read."""

from __future__ import annotations

import json
from dataclasses import dataclass
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
from torafugu.pool import WorkerSpec
from torafugu.pool.anthropic import build_body
from torafugu.pool.backend import Delta, Query
from torafugu.server.messages import MessagesRequest, count_tokens, parse_messages
from torafugu.server.messages_answer import PING, MessageEvents, error_body, run_to_body
from torafugu.types import ImagePart, Message, OtherPart, Reply, Request, Sampling, TextPart, ToolCall, Usage

CLIENTS = Path(__file__).parents[2] / "shared" / "fixtures" / "clients"
HI: dict[str, Any] = {"model": "fugu", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOL = {"name": "add", "description": "Adds.", "input_schema": SCHEMA}
FUNCTION = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": SCHEMA}}
USE = {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}}
PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}


def ask(**fields: Any) -> MessagesRequest:
    return parse_messages(json.dumps({**HI, **fields}).encode())


def parse(**fields: Any) -> Request:
    return ask(**fields).request


def parse_turns(*turns: tuple[str, Any]) -> tuple[Message, ...]:
    return parse(messages=[{"role": role, "content": content} for role, content in turns]).messages


def parse_user(*blocks: dict[str, Any]) -> Message:
    (message,) = parse_turns(("user", list(blocks)))
    return message


def result(**fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", **fields}]}


def error_of(body: bytes | dict[str, Any]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_messages(body if isinstance(body, bytes) else json.dumps(body).encode())
    return caught.value


# --- what clients send ---


def test_minimal() -> None:
    """The least that a client can send is a model, a limit and a message; everything else is the worker's choice."""
    asked = parse_messages(json.dumps(HI).encode())
    assert asked.request == Request(
        model="fugu", messages=(Message(role="user", content="hi"),), sampling=Sampling(max_output_tokens=9)
    )
    assert (asked.model, asked.is_stream, asked.thinking) == ("fugu", False, "none")
    assert (asked.session, asked.user) == (None, None)


def test_sampling_fields() -> None:
    """Every sampling field that is understood arrives under our own name."""
    sampling = parse(temperature=0, top_p=0.5, stop_sequences=["x", "y"], tools=[TOOL], tool_choice={"type": "any"})
    assert sampling.sampling == Sampling(
        max_output_tokens=9,
        temperature=0.0,
        top_p=0.5,
        stop=("x", "y"),
        tools=(FUNCTION,),
        tool_choice="required",
    )


def test_unused_fields_are_kept_by_name() -> None:
    """Fields that nobody here uses are no error; their names are kept, also those inside of other fields."""
    block = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}, "citations": []}
    request = parse(
        top_k=5,
        context_management={"edits": []},
        container="c",
        service_tier="auto",
        cache_control={"type": "ephemeral"},
        metadata={"user_id": "u", "team": 1},
        system=[block],
        messages=[{"role": "user", "content": [block], "id": 1}],
        output_config={"effort": "low", "verbosity": "low"},
        tools=[{**TOOL, "cache_control": {}, "defer_loading": True, "eager_input_streaming": True, "type": "custom"}],
        tool_choice={"type": "auto", "hint": 1},
        thread={"type": "create"},
    )
    assert request.ignored == (
        "cache_control",
        "container",
        "context_management",
        "messages[].content[].cache_control",
        "messages[].content[].citations",
        "messages[].id",
        "metadata.team",
        "output_config.verbosity",
        "service_tier",
        "system[].cache_control",
        "system[].citations",
        "thread",
        "tool_choice.hint",
        "tools[].cache_control",
        "tools[].defer_loading",
        "tools[].eager_input_streaming",
        "top_k",
    )
    assert request.sampling.tools == (FUNCTION,)


@pytest.mark.parametrize(
    ("asked", "inside"), [("fugu[1m]", "fugu"), ("fugu-ultra[1M]", "fugu-ultra"), ("a[1m]b", "a[1m]b")]
)
def test_long_context_tag(asked: str, inside: str) -> None:
    """`fugu[1m]`, as Claude Code asks for a large window, is the model `fugu`; the answer still says what was asked."""
    request = ask(model=asked)
    assert (request.request.model, request.model) == (inside, asked)
    assert body_of(TEXT, request)["model"] == asked


def test_system_forms() -> None:
    """The system prompt is a string or blocks of text, and comes first; an empty one is none."""
    hi = Message(role="user", content="hi")
    assert parse(system="Be brief.").messages == (Message(role="system", content="Be brief."), hi)
    blocks = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert parse(system=blocks).messages == (Message(role="system", content="a\n\nb"), hi)
    assert parse(system="").messages == parse(system=[]).messages == (hi,)


def test_attribution_is_no_prompt() -> None:
    """What Claude Code writes about itself for the provider's accounts is kept from workers, and on record."""
    blocks = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.329; cc_entrypoint=cli;"},
        {"type": "text", "text": "Be brief."},
    ]
    request = parse(system=blocks)
    assert request.messages[0].content == "Be brief."
    assert request.ignored == ("system[]:x-anthropic-billing-header",)


def test_system_amid_the_conversation() -> None:
    """A system message keeps its place among the others."""
    messages = parse_turns(("user", "a"), ("system", [{"type": "text", "text": "b"}]), ("user", "c"))
    assert [(m.role, m.content) for m in messages] == [("user", "a"), ("system", "b"), ("user", "c")]


def test_text_and_images() -> None:
    """Text and images are read, by address or inline; one block of text alone is a plain string."""
    url = {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}
    assert parse_user({"type": "text", "text": "look"}, PNG, url).content == (
        TextPart(text="look"),
        ImagePart(url="data:image/png;base64,AA=="),
        ImagePart(url="https://x/y.png"),
    )
    assert parse_user({"type": "text", "text": "hi"}).content == "hi"
    assert parse_user(*[{"type": "text", "text": t} for t in "ab"]).content == (TextPart(text="a"), TextPart(text="b"))


def test_documents() -> None:
    """A PDF is carried verbatim, so that an Anthropic worker gets it as it was; a text is told as text."""
    pdf = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AA=="}}
    web = {"type": "document", "source": {"type": "url", "url": "https://x/y.pdf"}, "title": "T"}
    plain = {"type": "document", "source": {"type": "content", "content": "words"}}
    text = {
        "type": "document",
        "source": {"type": "text", "media_type": "text/plain", "data": "body"},
        "title": "T",
        "context": "C",
    }
    cached = {**pdf, "cache_control": {"type": "ephemeral"}, "citations": {"enabled": True}}
    message = parse_user(cached, web, text, plain)
    assert message.content == (
        OtherPart(kind="document", raw=pdf),
        OtherPart(kind="document", raw=web),
        TextPart(text="T\n\nC\n\nbody"),
        TextPart(text="words"),
    )
    sent = build_body(WorkerSpec(id="w", dialect="anthropic", model="m"), Query(messages=(message,)), False)
    assert sent["messages"][0]["content"][:2] == [pdf, web]


def test_tool_turns() -> None:
    """Parallel calls stay one turn; their results come before what else the user says, each in its own message."""
    messages = parse_turns(
        ("user", "go"),
        ("assistant", [{"type": "text", "text": "so"}, USE, {**USE, "id": "t2", "input": {}}]),
        (
            "user",
            [
                {"type": "text", "text": "and now?"},
                {"type": "tool_result", "tool_use_id": "t2", "content": [{"type": "text", "text": "3"}, PNG]},
                {"type": "tool_result", "tool_use_id": "t1"},
            ],
        ),
    )
    calls = (ToolCall(id="t1", name="add", arguments='{"a":1}'), ToolCall(id="t2", name="add", arguments="{}"))
    assert messages[1:] == (
        Message(role="assistant", content="so", tool_calls=calls),
        Message(
            role="tool",
            content=(TextPart(text="3"), ImagePart(url="data:image/png;base64,AA==")),
            tool_call_id="t2",
        ),
        Message(role="tool", content="", tool_call_id="t1"),
        Message(role="user", content="and now?"),
    )


def test_turn_of_calls_alone() -> None:
    """A turn that holds nothing but calls has no content."""
    assert parse_turns(("user", "go"), ("assistant", [USE]))[1].content is None


def test_failed_tool() -> None:
    """That a tool failed is told in words, for workers whose dialect has no mark for it."""
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "no such file", "is_error": True}
    messages = parse_turns(("assistant", [USE]), ("user", [result]))
    assert messages[1].content == "[the tool call failed]\nno such file"


@pytest.mark.parametrize("turns", [[("user", "go")], [("user", "go"), ("assistant", [{**USE, "id": "other"}])]])
def test_result_without_its_call(turns: list[tuple[str, Any]]) -> None:
    """A result that answers no call of an earlier turn is an error that names its id."""
    turns = [*turns, ("user", [{"type": "tool_result", "tool_use_id": "t1", "content": "3"}])]
    error = error_of({**HI, "messages": [{"role": role, "content": content} for role, content in turns]})
    assert (error.status, error.code) == (400, "tool_call_not_found")
    assert error.param == f"messages[{len(turns) - 1}].content[0].tool_use_id"
    assert "'t1'" in error.message


def test_reasoning_is_dropped_once() -> None:
    """Earlier reasoning, which only who wrote it can use, is left out; each kind is on record once."""
    thinking = {"type": "thinking", "thinking": "hm", "signature": "s"}
    redacted = {"type": "redacted_thinking", "data": "x"}
    turn = ("assistant", [thinking, thinking, redacted, {"type": "text", "text": "a"}])
    request = parse(messages=[{"role": r, "content": c} for r, c in (("user", "go"), turn, ("assistant", [thinking]))])
    assert request.messages == (Message(role="user", content="go"), Message(role="assistant", content="a"))
    assert request.ignored == ("messages[].content[]:redacted_thinking", "messages[].content[]:thinking")


def test_turns_of_server_tools() -> None:
    """What a provider's own tools did is told as text, without what only that provider can read."""
    found = {"type": "web_search_result", "url": "https://x", "title": "T", "encrypted_content": "zzz"}
    request = parse(
        messages=[
            {
                "role": "assistant",
                "content": [
                    {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "q"}},
                    {"type": "web_search_tool_result", "tool_use_id": "s1", "content": [found]},
                    {"type": "text", "text": "There."},
                ],
            },
            {"role": "user", "content": "go on"},
        ]
    )
    assert request.messages[0].content == (
        '[server_tool_use] {"id":"s1","name":"web_search","input":{"query":"q"}}\n'
        '[web_search_tool_result] {"tool_use_id":"s1","content":'
        '[{"type":"web_search_result","url":"https://x","title":"T"}]}\n'
        "There."
    )
    assert request.ignored == ()


def test_unknown_blocks() -> None:
    """Blocks yet to be invented are told as text, and their kind is on record."""
    request = parse(messages=[{"role": "user", "content": [{"type": "hologram", "beam": 7}, PNG]}])
    (message,) = request.messages
    assert message.content == (
        TextPart(text='[hologram] {"beam":7}\n'),
        ImagePart(url="data:image/png;base64,AA=="),
    )
    assert request.ignored == ("messages[].content[]:hologram",)


@pytest.mark.parametrize(
    ("fields", "effort", "shows", "ignored"),
    [
        ({}, None, "none", ()),
        ({"thinking": {"type": "disabled"}}, None, "none", ("thinking",)),
        ({"thinking": {"type": "adaptive"}}, None, "shown", ()),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, None, "omitted", ()),
        ({"thinking": {"type": "adaptive", "display": "updates"}}, None, "shown", ()),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low", "shown", ()),
        ({"thinking": {"type": "enabled", "budget_tokens": 4096}}, "medium", "shown", ()),
        ({"thinking": {"type": "enabled", "budget_tokens": 16384}}, "high", "shown", ()),
        ({"output_config": {"effort": "max"}}, "max", "none", ()),
        (
            {"output_config": {"effort": "low"}, "thinking": {"type": "enabled", "budget_tokens": 9999}},
            "low",
            "shown",
            ("thinking.budget_tokens",),
        ),
        ({"output_config": {"effort": "high"}, "thinking": {"type": "disabled"}}, "high", "none", ("thinking",)),
    ],
)
def test_thinking(fields: dict[str, Any], effort: str | None, shows: str, ignored: tuple[str, ...]) -> None:
    """The effort stands as asked, else follows from the budget; thinking is sent to those who asked for it."""
    asked = ask(**fields)
    assert (asked.request.sampling.reasoning_effort, asked.thinking) == (effort, shows)
    assert asked.request.ignored == ignored


def test_json_schema() -> None:
    """A schema for the answer arrives in our form, under the field's old name as well; strict where it may be."""
    schema = {**SCHEMA, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "schema": schema}
    wanted = {"type": "json_schema", "json_schema": {"name": "output", "schema": schema, "strict": True}}
    assert parse(output_config={"format": form}).sampling.response_format == wanted
    assert parse(output_format=form).sampling.response_format == wanted


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "object", "properties": {"a": {}}, "required": [], "additionalProperties": False},
        {"type": "array", "items": {"anyOf": [{"type": "string"}, SCHEMA]}},
    ],
)
def test_schema_that_is_not_strict(schema: dict[str, Any]) -> None:
    """A schema with optional or unnamed properties is not called strict, for which OpenAI would refuse it."""
    form = parse(output_config={"format": {"type": "json_schema", "schema": schema}}).sampling.response_format
    assert form == {"type": "json_schema", "json_schema": {"name": "output", "schema": schema}}


def test_tools() -> None:
    """Declared tools become functions, `strict` included; those that only a provider can run are left out by name."""
    request = parse(
        tools=[
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 5},
            {**TOOL, "strict": True},
            {"type": "bash_20250124", "name": "bash"},
            {"type": "bash_20250124", "name": "bash", "input_schema": {"type": "object"}},
            {"type": "mcp_toolset", "mcp_server_name": "x"},
        ]
    )
    assert request.sampling.tools == (
        {**FUNCTION, "function": {**FUNCTION["function"], "strict": True}},  # type: ignore[dict-item]
        {"type": "function", "function": {"name": "bash", "parameters": {"type": "object"}}},
    )
    assert request.ignored == ("tools[0]:web_search_20250305", "tools[2]:bash_20250124", "tools[4]:mcp_toolset")


@pytest.mark.parametrize(
    ("choice", "inside", "is_parallel"),
    [
        ({"type": "auto"}, "auto", None),
        ({"type": "none"}, "none", None),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", False),
        ({"type": "auto", "disable_parallel_tool_use": False}, "auto", True),
        ({"type": "tool", "name": "add"}, {"type": "function", "function": {"name": "add"}}, None),
    ],
)
def test_tool_choice(choice: dict[str, Any], inside: Any, is_parallel: bool | None) -> None:
    """All four forms of `tool_choice` arrive, and whether calls may be parallel."""
    sampling = parse(tools=[TOOL], tool_choice=choice).sampling
    assert (sampling.tool_choice, sampling.parallel_tool_calls) == (inside, is_parallel)


def test_tool_choice_without_tools() -> None:
    """Without tools, a choice that needs none is put on record as ignored; one that asks for a tool is an error."""
    request = parse(tools=[], tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert request.sampling == Sampling(max_output_tokens=9)
    assert request.ignored == ("tool_choice",)
    search = {"type": "web_search_20250305", "name": "web_search"}
    for tools in ([], [search]):
        assert error_of({**HI, "tools": tools, "tool_choice": {"type": "any"}}).param == "tool_choice"
    forced = {**HI, "tools": [search, TOOL], "tool_choice": {"type": "tool", "name": "web_search"}}
    assert error_of(forced).param == "tool_choice.name"


def test_tools_that_turns_change() -> None:
    """Tools that a system message brings are offered, those that it withdraws are not, until another restores them."""
    late = {**TOOL, "name": "late"}

    def change(kind: str, **tool: Any) -> dict[str, Any]:
        return {"role": "system", "content": [{"type": f"tool_{kind}", "tool": tool}]}

    sampling = parse(
        tools=[TOOL, {**TOOL, "name": "sub"}, {**TOOL, "name": "mul"}],
        messages=[
            *HI["messages"],
            change("removal", type="tool_reference", name="add"),
            change("removal", type="tool_reference", name="sub"),
            change("addition", type="tool_definition", definition=late),
            change("addition", type="tool_reference", name="sub"),
            change("removal", type="mcp_toolset_reference", mcp_server_name="x"),
        ],
    ).sampling
    assert [tool["function"]["name"] for tool in sampling.tools] == ["sub", "mul", "late"]


def test_names_that_workers_cannot_be_given() -> None:
    """A tool with a name that is too long elsewhere is offered under another, and called by its own in the answer."""
    name = "mcp__" + "x" * 100
    asked = ask(
        tools=[{**TOOL, "name": name}],
        tool_choice={"type": "tool", "name": name},
        messages=[{"role": "assistant", "content": [{**USE, "name": name}]}],
    )
    inside = asked.request.sampling.tools[0]["function"]["name"]
    assert len(inside) <= 64
    assert asked.request.sampling.tool_choice == {"type": "function", "function": {"name": inside}}
    assert asked.request.messages[0].tool_calls[0].name == inside
    call = ToolCall(id="c", name=inside, arguments="{}")
    reply = Reply(worker="a", text="", finish_reason="tool_calls", tool_calls=(call,))
    assert body_of(reply, asked)["content"][0]["name"] == name
    assert stream_of(asked, calls=(call,))[0]["content_block"]["name"] == name


@pytest.mark.parametrize(
    ("user", "session"),
    [
        ('{"device_id":"d","account_uuid":"","session_id":"00000000-0000-7000-8000-000000000172"}', "172"),
        ("user_ab_account__session_00000000-0000-7000-8000-000000000172", "172"),
        ("u", None),
        ("[1", None),
        ('{"session_id":5}', None),
    ],
)
def test_session(user: str, session: str | None) -> None:
    """What Claude Code writes of its session into the user's id is found; others' ids are a user's."""
    asked = ask(metadata={"user_id": user})
    assert (asked.session or "")[-3:] == (session or "")
    assert asked.user == user


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": "[1m]"}, "model"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "developer", "content": "x"}]}, "messages[0].role"),
        ({"messages": [HI["messages"][0], {"role": "user", "content": None}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [USE]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "assistant", "content": [{**USE, "id": ""}]}]}, "messages[0].content[0].id"),
        ({"messages": [{"role": "assistant", "content": [{**USE, "input": "x"}]}]}, "messages[0].content[0].input"),
        ({"messages": [{"role": "assistant", "content": [USE]}, result(content=5)]}, "messages[1].content[0].content"),
        (
            {"messages": [{"role": "assistant", "content": [USE]}, result(is_error=1)]},
            "messages[1].content[0].is_error",
        ),
        (
            {"messages": [{"role": "assistant", "content": [USE]}, result(content=["x"])]},
            "messages[1].content[0].content[0]",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].source"),
        ({"messages": [{"role": "system", "content": [{"type": "tool_removal"}]}]}, "messages[0].content[0].tool"),
        (
            {"messages": [{"role": "system", "content": [{"type": "tool_addition", "tool": {"definition": 5}}]}]},
            "messages[0].content[0].tool.definition",
        ),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"system": [PNG]}, "system[0].type"),
        ({"system": 5}, "system"),
        ({"temperature": 1.5}, "temperature"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"stop_sequences": [1]}, "stop_sequences[0]"),
        ({"stream": "yes"}, "stream"),
        ({"metadata": {"user_id": 5}}, "metadata.user_id"),
        ({"thinking": {"type": "enabled", "budget_tokens": True}}, "thinking.budget_tokens"),
        ({"thinking": {"budget_tokens": 5}}, "thinking.type"),
        ({"output_config": {"effort": 5}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"output_format": {"type": "json_schema"}}, "output_format.schema"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "f", "type": 5}]}, "tools[0].type"),
        ({"tools": [{"type": "custom", "name": "", "input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{**TOOL, "description": 5}]}, "tools[0].description"),
        ({"tools": [{**TOOL, "strict": "yes"}]}, "tools[0].strict"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tools": [TOOL], "tool_choice": "auto"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "required"}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "sub"}}, "tool_choice.name"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "any", "disable_parallel_tool_use": 1}},
            "tool_choice.disable_parallel_tool_use",
        ),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], param: str) -> None:
    """A field that cannot be used is an error that names it as the client wrote it, in `param` and in the message."""
    error = error_of({**HI, **fields})
    assert (error.status, error.param) == (400, param)
    assert param in error.message


@pytest.mark.parametrize(
    ("source", "field"),
    [
        ({"type": "url", "url": "file:///etc/passwd"}, "url"),
        ({"type": "url", "url": "http://10.0.0.1/x"}, "url"),
        ({"type": "base64", "media_type": "image/png"}, "data"),
        ({"type": "base64", "media_type": "image/png;x", "data": ""}, "media_type"),
        ({"type": "file", "file_id": "f"}, "type"),
        ({}, "type"),
    ],
)
@pytest.mark.parametrize("kind", ["image", "document"])
def test_bad_sources_are_named(kind: str, source: dict[str, Any], field: str) -> None:
    """Neither addresses that reach further than the client, nor files that lie at a provider, are handed on."""
    error = error_of({**HI, "messages": [{"role": "user", "content": [{"type": kind, "source": source}]}]})
    assert error.param == f"messages[0].content[0].source.{field}"


@pytest.mark.parametrize(
    "field", [{"mcp_servers": [{"url": "https://x"}]}, {"thread": {"type": "continue", "previous_message_id": "m"}}]
)
def test_unsupported_is_refused(field: dict[str, Any]) -> None:
    """What would change the answer and cannot be done is refused by name, never dropped."""
    error = error_of({**HI, **field})
    assert (error.status, error.code, [error.param]) == (400, "unsupported", list(field))


def test_unsupported_at_its_default_is_fine() -> None:
    """The same fields at the values that ask for nothing are accepted."""
    parse(mcp_servers=[], thread=None)


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


def test_depth_is_bounded() -> None:
    """What is carried unread may nest, but not so deep that the record could not hold it."""
    deep: Any = {}
    for _ in range(400):
        deep = {"a": deep}
    schema = {"type": "json_schema", "schema": deep}
    for fields, param in [
        ({"tools": [{**TOOL, "input_schema": deep}]}, "tools[0].input_schema"),
        ({"output_config": {"format": schema}}, "output_config.format.schema"),
        ({"messages": [{"role": "assistant", "content": [{**USE, "input": deep}]}]}, "messages[0].content[0].input"),
        ({"messages": [{"role": "user", "content": [{"type": "x", "y": deep}]}]}, "messages[0].content[0]"),
    ]:
        assert error_of({**HI, **fields}).param == param


def test_counts_are_bounded() -> None:
    """Messages, tools, blocks and unknown fields have limits, far above real use."""
    assert error_of({**HI, "messages": HI["messages"] * 10_001}).param == "messages"
    assert error_of({**HI, "tools": [TOOL] * 1001}).param == "tools"
    blocks = [{"type": "text", "text": "x"}] * 1001
    assert error_of({**HI, "messages": [{"role": "user", "content": blocks}]}).param == "messages[0].content"
    assert "unknown fields" in error_of({**HI, **{f"x{i}": 1 for i in range(101)}}).message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
WORDS = "text image document tool_use tool_result thinking server_tool_use search_result tool_addition x"
KINDS = st.sampled_from(WORDS.split())
NEAR = st.recursive(  # values that look like the dialect, so that its inner branches are met
    JSON | st.sampled_from(["base64", "url", "https://x", "image/png", "t1", "add", "auto", "tool", "enabled"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "name", "url"]), inner, max_size=3)
    ),
    max_leaves=8,
)
SOURCES = st.fixed_dictionaries(
    {"type": st.sampled_from(["base64", "url", "text", "content", "file"])},
    optional={
        "url": st.just("https://x"),
        "data": st.text(max_size=3),
        "media_type": st.just("image/png"),
        "content": st.text(max_size=3) | NEAR,
    },
)
BLOCKS = st.fixed_dictionaries(
    {
        "type": KINDS,
        "text": st.text(max_size=4),
        "id": st.just("t1"),
        "tool_use_id": st.just("t1"),
        "name": st.just("f"),
    },
    optional={
        "input": st.dictionaries(st.text(max_size=3), JSON, max_size=2) | NEAR,
        "content": st.text(max_size=4) | st.deferred(lambda: st.lists(BLOCKS, max_size=2)) | NEAR,
        "source": SOURCES | NEAR,
        "is_error": st.booleans() | NEAR,
        "tool": st.fixed_dictionaries({}, optional={"name": st.just("add"), "definition": st.just(TOOL) | NEAR}) | NEAR,
    },
)
CONTENTS = st.text(max_size=3) | st.lists(BLOCKS, min_size=1, max_size=3)
ROLES = st.sampled_from(["user", "assistant", "system"])
MESSAGES = st.lists(st.fixed_dictionaries({"role": ROLES, "content": CONTENTS}), min_size=1, max_size=3)
TOOLS = st.lists(
    st.fixed_dictionaries(
        {"name": st.text(min_size=1, max_size=80)},
        optional={"type": st.text(max_size=3) | NEAR, "input_schema": st.just({}) | NEAR, "strict": NEAR},
    ),
    max_size=2,
)
THOUGHTS = st.fixed_dictionaries(
    {"type": st.text(max_size=3)}, optional={"budget_tokens": st.integers(), "display": NEAR}
)
BODIES = st.fixed_dictionaries(
    {"model": st.just("fugu"), "max_tokens": st.just(5), "messages": MESSAGES},
    optional={
        "tools": TOOLS,
        "tool_choice": st.fixed_dictionaries({"type": st.sampled_from(["auto", "any", "tool", "none"]) | NEAR}),
        "thinking": THOUGHTS,
        "output_config": st.dictionaries(st.sampled_from(["effort", "format"]), NEAR, max_size=2),
        "metadata": st.fixed_dictionaries({"user_id": st.text(max_size=9)}),
        "system": CONTENTS,
        "x": NEAR,
    },
)


def check_parse(body: bytes) -> None:
    try:
        asked = parse_messages(body)
    except RequestError:
        return
    at, event = event_from_json(event_to_json(Accepted(request=asked.request, policy="p"), at=1.0))
    assert isinstance(event, Accepted)
    assert (at, event.request) == (1.0, asked.request)
    assert json.loads(count_tokens(body))["input_tokens"] >= 0


@settings(deadline=None, max_examples=100)
@given(JSON)
def test_any_json(value: Any) -> None:
    """Any JSON value at all raises `RequestError` or nothing."""
    check_parse(json.dumps(value).encode())


@settings(deadline=None, max_examples=300)
@given(BODIES)
def test_any_near_request(body: Any) -> None:
    """Any almost-request raises `RequestError` or nothing, and what is accepted survives the record unchanged."""
    check_parse(json.dumps(body).encode())


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=60))
def test_any_bytes(body: bytes) -> None:
    """Any bytes at all raise `RequestError` or nothing."""
    check_parse(body)


def recorded_requests() -> list[tuple[str, dict[str, Any], Any]]:
    """(path on the wire, request, answer's body), as recorded with real clients."""
    found = []
    for path in sorted(CLIENTS.glob("**/*-messages*.json")):
        exchange = json.loads(path.read_text())
        found.append((exchange["request"]["path"].partition("?")[0], exchange["request"]["body"], path.parts[-3:]))
    return found


def count_blocks(messages: list[dict[str, Any]], kind: str) -> int:
    blocks = [b for m in messages if isinstance(m["content"], list) for b in m["content"]]
    inner = [c for b in blocks if isinstance(b.get("content"), list) for c in b["content"]]
    return sum(block["type"] == kind for block in blocks + inner)


@pytest.mark.shared
@pytest.mark.skipif(not CLIENTS.exists(), reason="the recorded requests are not here")
def test_recorded_clients() -> None:
    """What real clients were recorded sending is accepted whole: every text, image, call, result and tool arrives."""
    recorded = [(body, name) for path, body, name in recorded_requests() if path == "/v1/messages"]
    for wire, name in recorded:
        asked = parse_messages(json.dumps(wire).encode())
        request = asked.request
        said = json.dumps([msgspec.to_builtins(m) for m in request.messages], ensure_ascii=False)
        texts = [m["content"] for m in wire["messages"] if isinstance(m["content"], str)]
        texts += [
            b["text"] for m in wire["messages"] if isinstance(m["content"], list) for b in m["content"] if "text" in b
        ]
        texts += [b["text"] for b in wire.get("system", [])]
        assert [text for text in texts if json.dumps(text, ensure_ascii=False)[1:-1] not in said] == [], name
        assert asked.is_stream == bool(wire.get("stream"))
        assert [tool["function"]["name"] for tool in request.sampling.tools] == [
            t["name"] for t in wire.get("tools", [])
        ]
        assert sum(len(m.tool_calls) for m in request.messages) == count_blocks(wire["messages"], "tool_use")
        assert sum(m.role == "tool" for m in request.messages) == count_blocks(wire["messages"], "tool_result")
        images = [
            p for m in request.messages if isinstance(m.content, tuple) for p in m.content if isinstance(p, ImagePart)
        ]
        assert len(images) == count_blocks(wire["messages"], "image")
    assert len(recorded) >= 39


@pytest.mark.shared
@pytest.mark.skipif(not CLIENTS.exists(), reason="the recorded requests are not here")
def test_recorded_token_counts() -> None:
    """A recorded question for a count of tokens, which has no limit of output, gets one."""
    bodies = [body for path, body, _ in recorded_requests() if path == "/v1/messages/count_tokens"]
    assert [json.loads(count_tokens(json.dumps(body).encode())) for body in bodies] == [{"input_tokens": 1}]


def test_token_estimate() -> None:
    """Tokens are estimated by the characters of text, calls, tools and schemas, and a number for each image and PDF."""

    def count(**fields: Any) -> int:
        value = json.loads(count_tokens(json.dumps({**HI, **fields}).encode()))
        assert list(value) == ["input_tokens"]
        return int(value["input_tokens"])

    assert count() == 1
    assert count(system="x" * 400) == 101
    assert count(tools=[TOOL]) > 30
    assert count(output_config={"format": {"type": "json_schema", "schema": SCHEMA}}) > 15
    pdf = {"type": "document", "source": {"type": "url", "url": "https://x"}}
    assert count(messages=[{"role": "user", "content": [PNG, pdf]}]) == 4600
    assert count(messages=[{"role": "assistant", "content": [{**USE, "input": {"a": "x" * 400}}]}]) > 100


# --- what goes back ---

TEXT = Reply(
    worker="a",
    text='Hello\n\u2028 "you" \U0001f421',
    finish_reason="stop",
    usage=Usage(input_tokens=11, cached_input_tokens=3, cache_write_tokens=2, output_tokens=7, reasoning_tokens=4),
    cost_usd=Decimal("0.0000000123"),
)
CALLS = (
    ToolCall(id="c0", name="add", arguments='{"a": 1.0,\n "b": 100000000000000000000000000000}'),
    ToolCall(id="c1", name="sub", arguments=""),
)
THINKING = {"type": "adaptive"}


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


def body_of(reply: Reply, asked: MessagesRequest | None = None, *, failed_first: bool = False) -> dict[str, Any]:
    run = run_with(reply, failed_first=failed_first)
    return json.loads(run_to_body(run, reply, asked=asked or ask(), policy="fugu@1"), parse_float=Decimal)  # type: ignore[no-any-return]


def frames(data: bytes) -> list[dict[str, Any]]:
    """The events' data, whose type is the event's name."""
    assert data == b"" or data.endswith(b"\n\n")
    told = []
    for frame in data.decode().split("\n\n")[:-1]:
        name, _, payload = frame.partition("\ndata: ")
        told.append(json.loads(payload))
        assert name == f"event: {told[-1]['type']}"
        assert "\n" not in payload
    return told


def stream_of(
    asked: MessagesRequest, *deltas: Delta, calls: tuple[ToolCall, ...] = (), events: MessageEvents | None = None
) -> list[dict[str, Any]]:
    events = events or MessageEvents(run_id="run_1", asked=asked)
    return frames(b"".join(events.delta(delta) for delta in deltas) + events.tool_calls(calls))


def whole_stream(reply: Reply, asked: MessagesRequest) -> bytes:
    """As a server sends an answer that arrives in single characters."""
    events = MessageEvents(run_id="run_1", asked=asked)
    data = events.first()
    for piece in reply.reasoning or "":
        data += events.delta(Delta(reasoning=piece))
    for piece in reply.text:
        data += events.delta(Delta(text=piece))
    return data + events.tool_calls(reply.tool_calls) + events.last(run_with(reply), reply, policy="fugu@1")


def test_body() -> None:
    """A whole answer is a complete message, with what the run was beside it; cached tokens are counted apart."""
    assert body_of(TEXT) == {
        "id": "msg_run_1",
        "type": "message",
        "role": "assistant",
        "model": "fugu",
        "content": [{"type": "text", "text": TEXT.text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "stop_details": None,
        "container": None,
        "usage": {
            "input_tokens": 6,
            "cache_creation_input_tokens": 2,
            "cache_read_input_tokens": 3,
            "output_tokens": 7,
            "output_tokens_details": {"thinking_tokens": 4},
            "server_tool_use": None,
            "orchestration_input_tokens": 0,
            "orchestration_input_cached_tokens": 0,
            "orchestration_output_tokens": 0,
            "cache_creation": None,
            "inference_geo": None,
            "service_tier": None,
        },
        "fugu": {
            "run_id": "run_1",
            "policy": "fugu@1",
            "workers": ["a"],
            "cost_usd": Decimal("1.23E-8"),
            "stopped_by": "answer",
        },
    }


def test_body_with_calls_and_reasoning() -> None:
    """Thinking, text and calls stand in this order; a call's input is an object, its numbers as they were written."""
    reply = Reply(worker="a", text="so", finish_reason="tool_calls", tool_calls=CALLS, reasoning="hm")
    body = body_of(reply, ask(thinking=THINKING))
    assert body["stop_reason"] == "tool_use"
    assert body["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "so"},
        {"type": "tool_use", "id": "c0", "name": "add", "input": {"a": Decimal("1.0"), "b": 10**29}},
        {"type": "tool_use", "id": "c1", "name": "sub", "input": {}},
    ]
    only_calls = msgspec.structs.replace(reply, text="", reasoning=None)
    assert [block["type"] for block in body_of(only_calls)["content"]] == ["tool_use", "tool_use"]


def test_thinking_is_sent_to_those_who_asked() -> None:
    """Whoever asked for no thinking gets none, so that the first block is the text; or none of its words."""
    reply = msgspec.structs.replace(TEXT, reasoning="secret")
    assert [block["type"] for block in body_of(reply)["content"]] == ["text"]
    assert stream_of(ask(), Delta(reasoning="secret")) == []
    omitted = ask(thinking={"type": "adaptive", "display": "omitted"})
    assert body_of(reply, omitted)["content"][0] == {"type": "thinking", "thinking": "", "signature": ""}
    assert [e["type"] for e in stream_of(omitted, Delta(reasoning="secret"), Delta(reasoning="more"))] == [
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
    ]
    assert b"secret" not in whole_stream(reply, omitted) + whole_stream(reply, ask())


@pytest.mark.parametrize(
    ("reason", "told"),
    [("stop", "end_turn"), ("length", "max_tokens"), ("tool_calls", "tool_use"), ("content_filter", "refusal")],
)
def test_stop_reasons(reason: Any, told: str) -> None:
    """Each reason to stop has this dialect's name, in the body and in the stream; a refusal has details."""
    reply = Reply(worker="a", text="x", finish_reason=reason)
    details = {"type": "refusal", "category": None, "explanation": None} if told == "refusal" else None
    body, end = body_of(reply), frames(whole_stream(reply, ask()))[-2]["delta"]
    assert (body["stop_reason"], body["stop_details"]) == (told, details)
    assert (end["stop_reason"], end["stop_details"]) == (told, details)


@pytest.mark.parametrize(
    ("usage", "counts", "unknown"),
    [
        (Usage(), (0, None, None, 0), ["input_tokens", "output_tokens"]),
        (Usage(input_tokens=5), (5, None, None, 0), ["output_tokens"]),
        (Usage(input_tokens=5, cached_input_tokens=5, output_tokens=0), (0, 5, None, 0), None),
        (Usage(input_tokens=5, cached_input_tokens=9, output_tokens=2), (5, 9, None, 2), None),
    ],
)
def test_usage(usage: Usage, counts: tuple[int | None, ...], unknown: list[str] | None) -> None:
    """Input is what no cache gave; a count that nobody knows, where the dialect demands one, is 0 and named so."""
    told = body_of(Reply(worker="a", text="x", finish_reason="stop", usage=usage))["usage"]
    names = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
    assert tuple(told[name] for name in names) == counts
    assert told.get("unknown") == unknown


def test_hidden_calls_show_in_usage() -> None:
    """A run of more calls than the answer's tells their tokens beside the answer's; unknown ones as null."""
    usage = body_of(TEXT, failed_first=True)["usage"]
    assert (usage["input_tokens"], usage["orchestration_input_tokens"]) == (6, None)


def test_events_of_text() -> None:
    """A streamed answer is the dialect's exact sequence of events, the counts at its end."""
    told = frames(whole_stream(msgspec.structs.replace(TEXT, text="ab"), ask()))
    assert told == [
        {
            "type": "message_start",
            "message": {
                "id": "msg_run_1",
                "type": "message",
                "role": "assistant",
                "model": "fugu",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "stop_details": None,
                "container": None,
                "usage": {
                    "input_tokens": 0,
                    "cache_creation_input_tokens": None,
                    "cache_read_input_tokens": None,
                    "output_tokens": 0,
                    "output_tokens_details": None,
                    "server_tool_use": None,
                    "cache_creation": None,
                    "inference_geo": None,
                    "service_tier": None,
                },
            },
        },
        {"type": "ping"},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "b"}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None, "stop_details": None, "container": None},
            "usage": {
                "input_tokens": 6,
                "cache_creation_input_tokens": 2,
                "cache_read_input_tokens": 3,
                "output_tokens": 7,
                "output_tokens_details": {"thinking_tokens": 4},
                "server_tool_use": None,
                "orchestration_input_tokens": 0,
                "orchestration_input_cached_tokens": 0,
                "orchestration_output_tokens": 0,
            },
            "fugu": {
                "run_id": "run_1",
                "policy": "fugu@1",
                "workers": ["a"],
                "cost_usd": 1.23e-08,
                "stopped_by": "answer",
            },
        },
        {"type": "message_stop"},
    ]


def shape(events: list[dict[str, Any]]) -> list[str]:
    """`KIND index` of blocks, and what their deltas hold."""
    names = []
    for event in events:
        inner = event.get("content_block") or event.get("delta") or {}
        names.append(" ".join(str(x) for x in (event["type"], event.get("index"), inner.get("type")) if x is not None))
    return names


def test_events_of_thinking_and_calls() -> None:
    """Thinking ends with a signature, each call has a block of its own, whose input comes as a piece of JSON text."""
    reply = Reply(worker="a", text="", finish_reason="tool_calls", tool_calls=CALLS, reasoning="h")
    told = frames(whole_stream(reply, ask(thinking=THINKING)))
    assert shape(told) == [
        "message_start",
        "ping",
        "content_block_start 0 thinking",
        "content_block_delta 0 thinking_delta",
        "content_block_delta 0 signature_delta",
        "content_block_stop 0",
        "content_block_start 1 tool_use",
        "content_block_delta 1 input_json_delta",
        "content_block_stop 1",
        "content_block_start 2 tool_use",
        "content_block_delta 2 input_json_delta",
        "content_block_stop 2",
        "message_delta",
        "message_stop",
    ]
    assert told[6]["content_block"] == {"type": "tool_use", "id": "c0", "name": "add", "input": {}}
    assert [told[i]["delta"]["partial_json"] for i in (7, 10)] == [CALLS[0].arguments, "{}"]


def test_reasoning_around_text() -> None:
    """Reasoning and text may take turns: each change closes one block and opens the next."""
    deltas = [Delta(reasoning="a", text="b"), Delta(text="c"), Delta(reasoning="d"), Delta(text="e")]
    told = [name for name in shape(stream_of(ask(thinking=THINKING), *deltas)) if "signature" not in name]
    assert told == [
        "content_block_start 0 thinking",
        "content_block_delta 0 thinking_delta",
        "content_block_stop 0",
        "content_block_start 1 text",
        "content_block_delta 1 text_delta",
        "content_block_delta 1 text_delta",
        "content_block_stop 1",
        "content_block_start 2 thinking",
        "content_block_delta 2 thinking_delta",
        "content_block_stop 2",
        "content_block_start 3 text",
        "content_block_delta 3 text_delta",
    ]


def test_answer_without_words() -> None:
    """An answer without text and calls still has a block of text, streamed or not, since clients look for one."""
    reply = Reply(worker="a", text="", finish_reason="content_filter")
    assert body_of(reply)["content"] == [{"type": "text", "text": ""}]
    assert shape(frames(whole_stream(reply, ask())))[2:4] == ["content_block_start 0 text", "content_block_stop 0"]


@given(st.text(min_size=1), st.text(min_size=1))
def test_any_text_survives(text: str, reasoning: str) -> None:
    """Any text and any reasoning survive their frames, which stay on one line each."""
    told = stream_of(ask(thinking=THINKING), Delta(text=text, reasoning=reasoning))
    deltas = [event["delta"] for event in told if event["type"] == "content_block_delta"]
    assert (deltas[0]["thinking"], deltas[-1]["text"]) == (reasoning, text)


@dataclass(frozen=True)
class Trouble:
    status: int
    code: str = "x"
    message: str = "words"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
def test_error_types(status: int, kind: str) -> None:
    """Each status has the error type that this dialect's clients know it by."""
    body = json.loads(error_body(Trouble(status), request_id="run_1"))
    assert body == {
        "type": "error",
        "error": {"type": kind, "message": "words", "code": "x"},
        "request_id": "run_1",
    }


@pytest.mark.parametrize("message", ["shorten it", "Prompt is too long: 9 tokens > 8 maximum"])
def test_too_long(message: str) -> None:
    """A prompt that fits no window is called so in the words on which Claude Code compacts the conversation."""
    body = json.loads(error_body(Trouble(400, "context_length_exceeded", message), request_id=None))
    assert body["error"]["message"].lower().count("prompt is too long") == 1
    assert body["error"]["message"].endswith(message)
    assert body["error"]["type"] == "invalid_request_error"


def test_error_in_a_stream() -> None:
    """A stream that fails says so in an error event, in the middle of whatever it was at, and with nothing after it."""
    events = MessageEvents(run_id="run_1", asked=ask())
    data = events.first() + events.delta(Delta(text="a")) + events.error(Trouble(503))
    told = frames(data)
    assert [event["type"] for event in told[-2:]] == ["content_block_delta", "error"]
    assert (told[-1]["error"]["type"], told[-1]["request_id"]) == ("overloaded_error", "run_1")


def test_ping() -> None:
    """The sign of life is an event of its own, which needs no message to have begun."""
    assert PING == b'event: ping\ndata: {"type":"ping"}\n\n'


# --- with the official SDK, where it is installed ---

REPLIES = {
    "text": TEXT,
    "thinking": msgspec.structs.replace(TEXT, reasoning="hm\nso"),
    "calls": Reply(worker="a", text="so", finish_reason="tool_calls", tool_calls=CALLS, reasoning="hm"),
    "only calls": Reply(worker="a", text="", finish_reason="tool_calls", tool_calls=CALLS, usage=TEXT.usage),
    "cut off": Reply(worker="a", text="x", finish_reason="length"),
    "refused": Reply(worker="a", text="", finish_reason="content_filter", usage=Usage(input_tokens=3, output_tokens=0)),
}


@pytest.mark.parametrize("name", REPLIES)
def test_official_types(name: str) -> None:
    """Bodies and events are valid by the types of Anthropic's own SDK, and stay so with our extensions."""
    types = pytest.importorskip("anthropic.types")
    pydantic = pytest.importorskip("pydantic")
    reply, asked = REPLIES[name], ask(thinking=THINKING)
    body = run_to_body(run_with(reply), reply, asked=asked, policy="p")
    assert types.Message.model_validate_json(body).model_extra["fugu"]["run_id"] == "run_1"
    event_type = pydantic.TypeAdapter(types.RawMessageStreamEvent)
    told = [event for event in frames(whole_stream(reply, asked)) if event["type"] != "ping"]
    assert [event_type.validate_python(event).type for event in told] == [event["type"] for event in told]


@pytest.mark.parametrize("name", REPLIES)
@pytest.mark.parametrize("thinking", [None, THINKING, {"type": "adaptive", "display": "omitted"}])
def test_official_accumulation(name: str, thinking: Any) -> None:
    """What Anthropic's own client collects from the stream is the whole answer, but for what its types do not know."""
    anthropic = pytest.importorskip("anthropic")
    httpx = pytest.importorskip("httpx2")
    reply, asked = REPLIES[name], ask(thinking=thinking)
    stream = PING + whole_stream(reply, asked)  # a heartbeat may come first
    body = run_to_body(run_with(reply), reply, asked=asked, policy="fugu@1")

    def answer(request: Any) -> Any:
        is_stream = json.loads(request.content).get("stream")
        kind = "text/event-stream" if is_stream else "application/json"
        return httpx.Response(200, headers={"content-type": kind}, content=stream if is_stream else body)

    with httpx.Client(transport=httpx.MockTransport(answer)) as http:
        client = anthropic.Anthropic(api_key="k", base_url="http://fugu", http_client=http)
        whole = client.messages.create(**HI).model_dump()
        with client.messages.stream(**HI) as events:
            collected = events.get_final_message().model_dump()
    assert whole.pop("fugu")["run_id"] == "run_1"
    for extra in ("orchestration_input_tokens", "orchestration_input_cached_tokens", "orchestration_output_tokens"):
        del whole["usage"][extra]
    whole["usage"].pop("unknown", None)
    for block in collected["content"]:
        block.pop("parsed_output", None)
    assert {k: v for k, v in collected.items() if v is not None} == {k: v for k, v in whole.items() if v is not None}


@pytest.mark.parametrize(
    ("status", "kind"), [(429, "RateLimitError"), (503, "APIStatusError"), (400, "BadRequestError")]
)
def test_official_errors(status: int, kind: str) -> None:
    """Anthropic's own client raises our errors as its own, from a body and from within a stream."""
    anthropic = pytest.importorskip("anthropic")
    httpx = pytest.importorskip("httpx2")
    events = MessageEvents(run_id="run_1", asked=ask())
    trouble = Trouble(status, "x", "it failed")
    stream = events.first() + events.delta(Delta(text="a")) + events.error(trouble)

    def answer(request: Any) -> Any:
        if json.loads(request.content).get("stream"):
            return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=stream)
        return httpx.Response(status, content=error_body(trouble, request_id="run_1"))

    with httpx.Client(transport=httpx.MockTransport(answer)) as http:
        client = anthropic.Anthropic(api_key="k", base_url="http://fugu", http_client=http, max_retries=0)
        with pytest.raises(getattr(anthropic, kind), match="it failed"):
            client.messages.create(**HI)
        with pytest.raises(anthropic.APIError, match="it failed"), client.messages.stream(**HI) as told:
            told.get_final_message()
