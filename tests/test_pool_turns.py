"""Whatever dialect a client spoke, a worker of either is sent what its provider takes, and all that was said."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torafugu.errors import RequestError, WorkerError
from torafugu.pool.anthropic import build_body as build_anthropic
from torafugu.pool.backend import Query
from torafugu.pool.documents import read_inline, to_document, to_file, to_plain
from torafugu.pool.openai import build_body as build_openai
from torafugu.pool.schemas import close_objects, is_strict, mend_function
from torafugu.pool.spec import EFFORTS, WorkerSpec
from torafugu.server.chat import parse_chat
from torafugu.server.messages import parse_messages
from torafugu.server.responses import parse_responses
from torafugu.types import ImagePart, Message, OtherPart, Part, Request, Sampling, TextPart, ToolCall
from wire_rules import check_anthropic, check_openai

CLIENTS = Path(__file__).parents[2] / "shared" / "fixtures" / "clients"
HOSTS = {"openai": None, "mistral": "https://api.mistral.ai/v1", "other": "http://127.0.0.1:8000/v1"}
CLAUDE_EFFORTS = ("low", "medium", "high", "max")


def of_openai(host: str, **fields: Any) -> WorkerSpec:
    return WorkerSpec(**({"id": "w", "dialect": "openai", "model": "m", "base_url": HOSTS[host]} | fields))


def of_anthropic(**fields: Any) -> WorkerSpec:
    return WorkerSpec(**({"id": "w", "dialect": "anthropic", "model": "m", "efforts": CLAUDE_EFFORTS} | fields))


def check_all(query: Query) -> None:
    """Each kind of worker is sent what it takes."""
    for host in HOSTS:
        check_openai(build_openai(of_openai(host), query, True), host=host)
    check_anthropic(build_anthropic(of_anthropic(), query, True))
    check_anthropic(build_anthropic(of_anthropic(late_system=True), query, True), takes_late_system=True)


# --- conversations ---

IDS = ("call_0", "call_1", "functions.look:0", "toolu_01AB", "x" * 60, "Ab3dE6gH9")
BLANK = st.sampled_from(["", " ", "\n"])


class Speaker:
    """Draws what is said, each text and each image with a number of its own."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.count = 0

    def mark(self) -> str:
        self.count += 1
        return f"<{self.count}>"

    def text(self) -> str:
        return self.mark() if self.draw(st.integers(0, 5)) else self.draw(BLANK)

    def part(self) -> Part:
        kind = self.draw(st.sampled_from(["text", "text", "image", "url", "document", "file", "note", "content"]))
        mark = self.mark()
        if kind == "text":
            return TextPart(text=self.draw(st.sampled_from([mark, mark, "", " "])))
        if kind in ("image", "url"):
            address = f"https://x/{mark}.png" if kind == "url" else f"data:image/png;base64,{mark}"
            return ImagePart(url=address)
        pdf = {"type": "base64", "media_type": "application/pdf", "data": mark}
        raws = {
            "document": {"type": "document", "source": pdf, "title": "t", "context": "c"},
            "file": {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{mark}"}},
            "note": {"type": "document", "source": {"type": "text", "data": mark}},
            "content": {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": mark}]}},
        }
        return OtherPart(kind=raws[kind]["type"], raw=raws[kind])

    def content(self) -> str | tuple[Part, ...]:
        if self.draw(st.booleans()):
            return self.text()
        return tuple(self.part() for _ in range(self.draw(st.integers(1, 3))))

    def turn(self) -> Iterator[Message]:
        role = self.draw(st.sampled_from(["user", "user", "assistant", "system", "developer", "calls", "calls"]))
        if role != "calls":
            name = self.draw(st.sampled_from([None, None, "ann"])) if role == "user" else None
            yield Message(role=role, content=self.content(), name=name)
            return
        ids = self.draw(st.lists(st.sampled_from(IDS), min_size=1, max_size=3))
        calls = tuple(ToolCall(id=id, name="look", arguments=self.draw(st.sampled_from(["{}", "", " "]))) for id in ids)
        content = self.draw(st.sampled_from([None, self.content()]))
        yield Message(role="assistant", content=content, tool_calls=calls)
        for id in self.draw(st.permutations(ids)):
            if not self.draw(st.integers(0, 5)):
                yield Message(role=self.draw(st.sampled_from(["system", "user"])), content=self.content())
            yield Message(role="tool", tool_call_id=id, content=self.content())


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Message, ...]:
    """Every call has its result before the assistant speaks again; nothing else is certain."""
    speaker = Speaker(draw)
    return tuple([message for _ in range(draw(st.integers(1, 6))) for message in speaker.turn()])


def marks_in(value: Any) -> list[int]:
    return [int(number) for number in re.findall(r"<(\d+)>", json.dumps(value))]


@settings(max_examples=150, deadline=None)
@given(conversations(), st.sampled_from([None, *EFFORTS]), st.floats(0, 2), st.booleans())
def test_any_conversation_is_such_as_providers_take(
    messages: tuple[Message, ...], effort: str | None, temperature: float, has_tools: bool
) -> None:
    """Roles, calls, results, parts and blanks stand where each provider's rules allow them."""
    tools = ({"type": "function", "function": {"name": "look"}},) if has_tools else ()
    sampling = Sampling(reasoning_effort=effort, temperature=temperature, top_p=0.5, tools=tools)
    check_all(Query(messages=messages, sampling=sampling))


@settings(max_examples=100, deadline=None)
@given(conversations())
def test_nothing_that_was_said_is_lost_or_said_twice(messages: tuple[Message, ...]) -> None:
    """Every text, image and document of the conversation is in every body once."""
    said = Counter(mark for message in messages for mark in marks_in(content_of(message)))
    query = Query(messages=messages)
    for host in HOSTS:
        assert Counter(marks_in(build_openai(of_openai(host), query, False)["messages"])) == said
    for late_system in (None, True):
        wire = build_anthropic(of_anthropic(late_system=late_system), query, False)
        assert Counter(marks_in([wire.get("system"), wire["messages"]])) == said


@settings(max_examples=100, deadline=None)
@given(conversations())
def test_texts_keep_their_order(messages: tuple[Message, ...]) -> None:
    """What stands in text alone is said in the order in which the client said it, results of calls aside."""
    plain = tuple(m for m in messages if isinstance(m.content, str) and m.role != "tool" and not m.tool_calls)
    said = [mark for message in plain for mark in marks_in(message.content)]
    for host in HOSTS:
        wire = build_openai(of_openai(host), Query(messages=messages), False)["messages"]
        assert [mark for mark in marks_in(wire) if mark in said] == said
    sent = build_anthropic(of_anthropic(), Query(messages=messages), False)
    assert [mark for mark in marks_in([sent.get("system"), sent["messages"]]) if mark in said] == said


@settings(max_examples=100, deadline=None)
@given(conversations(), conversations())
def test_what_was_sent_stays_a_prefix(first: tuple[Message, ...], more: tuple[Message, ...]) -> None:
    """When an answer and more are added to a conversation, the turns before are sent as before: prompt caches hold."""
    first = (*first, Message(role="user", content="go on"))
    answer = Message(role="assistant", content="so be it")
    for host in HOSTS:
        before, after = (
            build_openai(of_openai(host), Query(messages=messages), False)["messages"]
            for messages in (first, (*first, answer, *more))
        )
        assert after[: len(before)] == before
    before, after = (
        build_anthropic(of_anthropic(late_system=True), Query(messages=messages), False)["messages"]
        for messages in (first, (*first, answer, *more))
    )
    assert after[: len(before)] == before


def test_a_system_message_among_the_assistant_s_is_marked() -> None:
    """A model that takes late ones takes them after the user only."""
    roles = ("user", "assistant", "system", "assistant", "user")
    query = Query(messages=tuple(Message(role=role, content=role) for role in roles))
    wire = build_anthropic(of_anthropic(late_system=True), query, False)
    check_anthropic(wire, takes_late_system=True)
    assert [turn["role"] for turn in wire["messages"]] == ["user", "assistant", "user", "assistant", "user"]


def test_results_of_one_id_belong_to_its_calls_in_their_order() -> None:
    """Some servers give two calls of a turn one id."""
    calls = tuple(ToolCall(id="c", name=name, arguments="{}") for name in ("first", "second"))
    results = [Message(role="tool", tool_call_id="c", content=text) for text in ("of first", "of second")]
    query = Query(messages=(Message(role="assistant", content=None, tool_calls=calls), *results))
    messages = build_openai(of_openai("openai"), query, False)["messages"]
    assert [call["id"] for call in messages[0]["tool_calls"]] == [message["tool_call_id"] for message in messages[1:]]
    assert [message["content"] for message in messages[1:]] == ["of first", "of second"]


def content_of(message: Message) -> Any:
    if not isinstance(message.content, tuple):
        return message.content
    pieces = {TextPart: lambda p: p.text, ImagePart: lambda p: p.url, OtherPart: lambda p: p.raw}
    return [pieces[type(part)](part) for part in message.content]


# --- what clients can ask for ---

PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}}
UNION = {"oneOf": [PARAMETERS, {"type": "object"}]}
CHAT = {"model": "fugu", "messages": [{"role": "user", "content": "hi"}]}
RESPONSES = {"model": "fugu", "input": "hi"}
MESSAGES = {"model": "fugu", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
CHAT_TOOLS = [
    {"type": "function", "function": {"name": "look", "parameters": PARAMETERS, "strict": True}},
    {"type": "function", "function": {"name": "see", "parameters": UNION}},
    {"type": "function", "function": {"name": "now"}},
    {"type": "custom", "custom": {"name": "patch", "format": {"type": "text"}}},
    {"type": "web_search"},
]
RESPONSES_TOOLS = [
    {"type": "function", "name": "look", "parameters": PARAMETERS, "strict": True},
    {"type": "function", "name": "see", "parameters": UNION, "strict": False},
    {"type": "function", "name": "now", "parameters": None},
    {"type": "custom", "name": "patch", "format": {"type": "grammar", "syntax": "lark", "definition": "start: X"}},
    {"type": "namespace", "name": "mcp.a", "tools": [{"type": "function", "name": "go", "parameters": PARAMETERS}]},
]
MESSAGES_TOOLS = [
    {"name": "look", "input_schema": PARAMETERS, "strict": True},
    {"name": "see", "input_schema": UNION, "description": "Sees."},
    {"name": "now", "input_schema": {"type": "object"}},
    {"type": "web_search_20250305", "name": "web_search"},
]
CHAT_CHOICES = [
    *("none", "auto", "required", None),
    {"type": "function", "function": {"name": "see"}},
    {"type": "custom", "custom": {"name": "patch"}},
    {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [CHAT_TOOLS[2]]}},
]
RESPONSES_CHOICES = [
    *("none", "auto", "required", None),
    {"type": "function", "name": "see"},
    {"type": "custom", "name": "patch"},
    {"type": "function", "name": "go", "namespace": "mcp.a"},
    {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "namespace", "name": "mcp.a"}]},
]
MESSAGES_CHOICES = [
    *({"type": "none"}, {"type": "any"}, {"type": "auto", "disable_parallel_tool_use": True}, None),
    {"type": "tool", "name": "see", "disable_parallel_tool_use": False},
]


def parse(path: str, wire: dict[str, Any]) -> Request:
    body = json.dumps(wire).encode()
    if path.endswith("/chat/completions"):
        return parse_chat(body).request
    return parse_responses(body).request if path.endswith("/responses") else parse_messages(body).request


@pytest.mark.parametrize(
    ("path", "wire"),
    [
        *[("/chat/completions", CHAT | {"tools": CHAT_TOOLS, "tool_choice": choice}) for choice in CHAT_CHOICES],
        *[("/responses", RESPONSES | {"tools": RESPONSES_TOOLS, "tool_choice": c}) for c in RESPONSES_CHOICES],
        *[("/messages", MESSAGES | {"tools": MESSAGES_TOOLS, "tool_choice": choice}) for choice in MESSAGES_CHOICES],
        ("/chat/completions", CHAT | {"tools": CHAT_TOOLS, "parallel_tool_calls": False}),
        ("/responses", RESPONSES | {"tools": RESPONSES_TOOLS, "parallel_tool_calls": True}),
    ],
)
def test_tools_and_choices_of_every_client_reach_every_worker(path: str, wire: dict[str, Any]) -> None:
    """Each form of a tool and of a choice, in each client's dialect, is one that each worker takes."""
    request = parse(path, wire)
    assert request.sampling.tools
    check_all(Query(messages=request.messages, sampling=request.sampling))


STRICT = {**PARAMETERS, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize("schema", [PARAMETERS, STRICT, {"type": "array", "items": PARAMETERS}])
@pytest.mark.parametrize("strict", [None, False])
def test_schemas_of_every_client_reach_every_worker(schema: Any, strict: bool | None) -> None:
    """JSON by a schema, in each client's dialect."""
    named = {"name": "n", "schema": schema, "strict": strict}
    form = {"type": "json_schema", "schema": schema}
    for path, wire in (
        ("/chat/completions", CHAT | {"response_format": {"type": "json_schema", "json_schema": named}}),
        ("/responses", RESPONSES | {"text": {"format": {"type": "json_schema", **named}}}),
        ("/messages", MESSAGES | {"output_config": {"format": form, "effort": "max"}}),
    ):
        request = parse(path, wire)
        check_all(Query(messages=request.messages, sampling=request.sampling))
        body = build_anthropic(of_anthropic(), Query(messages=request.messages, sampling=request.sampling), False)
        assert "format" in body["output_config"]


@pytest.mark.parametrize("form", [{"type": "gbnf", "grammar": "root ::= x"}, {"type": "json_object"}])
def test_output_that_anthropic_has_no_word_for_is_refused(form: dict[str, str]) -> None:
    """A grammar, and JSON without a schema, are for other workers."""
    query = Query(messages=(Message(role="user", content="hi"),), sampling=Sampling(response_format=form))
    with pytest.raises(WorkerError, match="knows JSON output by a schema only") as caught:
        build_anthropic(of_anthropic(), query, False)
    assert caught.value.code == "rejected"


# --- what real clients sent ---


def recorded() -> list[tuple[str, dict[str, Any], str]]:
    found = []
    for path in sorted(CLIENTS.glob("**/*-post-*.json")):
        request = json.loads(path.read_text())["request"]
        address = request["path"].partition("?")[0]
        if address.endswith(("/chat/completions", "/responses", "/messages")):
            found.append((address, request["body"], "/".join(path.parts[-3:])))
    return found


@pytest.mark.shared
@pytest.mark.skipif(not CLIENTS.exists(), reason="the recorded requests are not here")
def test_recorded_clients_reach_every_worker() -> None:
    """Whatever real clients were recorded sending, workers of both dialects are sent what they take; all but JSON
    without a schema, which one of the dialects has no word for."""
    checked = 0
    unsaid = {}
    for address, wire, name in recorded():
        try:
            request = parse(address, wire)
        except RequestError:  # tested with the dialects
            continue
        query = Query(messages=request.messages, sampling=request.sampling)
        for host in HOSTS:
            check_openai(build_openai(of_openai(host), query, True), host=host)
        try:
            for late_system in (False, True):
                body = build_anthropic(of_anthropic(late_system=late_system), query, True)
                check_anthropic(body, takes_late_system=late_system)
        except WorkerError as error:
            unsaid[name.rpartition("/")[0]] = str(error)
        checked += 1
    assert checked >= 240
    assert all("response_format 'json_object'" in error for error in unsaid.values())
    assert set(unsaid) == {
        "ai-sdk-openai-compatible-2.0.87/object",
        "langchain-openai-1.7.3/chat-structured-json_mode",
        "langchain-openai-1.7.3/resp-structured-json_mode",
        "openai-python-3.52.0/chat-json-object",
    }


# --- documents ---

JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("type", "source", "file", "file_data", "filename", "data", "media_type", "content", "title", "text", "url")
VALUES = st.sampled_from(
    [
        "base64",
        "content",
        "text",
        "url",
        "image",
        "data:text/plain;base64,/w==",
        "data:;base64,x",
        "text/plain",
        "JVBERi0",
    ]
)
SHAPED = st.recursive(
    VALUES | JSONS,
    lambda inner: st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5) | st.lists(inner, max_size=3),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["document", "file", "input_file", "input_audio", "x"]), SHAPED)
def test_parts_of_any_shape_are_read_without_an_error(kind: str, raw: Any) -> None:
    """What clients put into parts that are only carried is not checked before: it is read, or left as it is."""
    part = OtherPart(kind=kind, raw=raw)
    plain, inline = to_plain(part), read_inline(part)
    assert plain is None or all(isinstance(piece, (TextPart, ImagePart)) for piece in plain)
    assert to_file(part) is not None or kind == "document"
    assert to_document(part) is not None or kind != "document" or raw is None
    if inline is not None and inline.is_pdf:
        assert to_file(part) is not None
        assert to_document(part) is not None


@pytest.mark.parametrize(
    "file",
    [
        {"file_data": "data:text/plain;base64,/w=="},  # not UTF-8
        {"file_data": "data:text/plain;base64,a"},
        {"file_data": "data:text/plain,hi"},
        {"file_data": "data:text/plain;base64"},
        {"file_data": "https://x/y.txt"},
        {"file_data": 7},
    ],
)
def test_a_file_that_is_not_what_it_says_is_left_as_it_is(file: dict[str, Any]) -> None:
    """It is not taken for text, and nothing is guessed."""
    part = OtherPart(kind="file", raw={"type": "file", "file": file})
    assert to_plain(part) is None
    assert to_document(part) is None
    assert to_file(part) == [part.raw]


def test_an_image_in_a_document_has_to_be_one_that_may_be_fetched() -> None:
    """An address of another scheme is not made into an image's, as it is not where images are read."""
    block = {"type": "image", "source": {"type": "url", "url": "http://169.254.169.254/"}}
    part = OtherPart(kind="document", raw={"source": {"type": "content", "content": [block]}})
    assert to_plain(part) is None


def test_a_document_of_which_a_part_is_unknown_stays_whole() -> None:
    """What can be read of it is not all."""
    content = [{"type": "text", "text": "t"}, {"type": "search_result"}]
    part = OtherPart(kind="document", raw={"source": {"type": "content", "content": content}})
    assert to_plain(part) is None


# --- schemas ---


def test_closing_and_mending_leave_the_original() -> None:
    """Schemas come from requests that other workers are sent as well."""
    schema = {
        "type": "object",
        "properties": {"type": {"type": "object"}, "enum": {"type": ["object", "null"]}},
        "$defs": {"d": {"type": "object", "additionalProperties": True}},
        "anyOf": [{"type": "object"}],
        "default": {"type": "object"},
    }
    before = json.dumps(schema)
    assert close_objects(schema) == {
        "type": "object",
        "properties": {
            "type": {"type": "object", "additionalProperties": False},
            "enum": {"type": ["object", "null"], "additionalProperties": False},
        },
        "$defs": {"d": {"type": "object", "additionalProperties": True}},
        "anyOf": [{"type": "object", "additionalProperties": False}],
        "default": {"type": "object"},
        "additionalProperties": False,
    }
    mend_function({"name": "f", "parameters": schema, "strict": True})
    assert json.dumps(schema) == before


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (STRICT, True),
        (PARAMETERS, False),
        ({"type": "object", "additionalProperties": False}, True),
        ({"type": "object", "properties": {"b": STRICT}, "required": ["b"], "additionalProperties": False}, True),
        ({"type": "object", "properties": {"b": PARAMETERS}, "required": ["b"], "additionalProperties": False}, False),
        ({"type": "array", "items": [PARAMETERS]}, False),
        ({"type": "object", "properties": 1, "additionalProperties": False}, False),
        ({"type": "object", "required": 1, "additionalProperties": False}, False),
        ({"type": "string", "enum": [{"type": "object"}]}, True),
    ],
)
def test_a_strict_schema_names_all_and_allows_nothing_else(schema: Any, expected: bool) -> None:
    """In every object that it holds."""
    assert is_strict(schema) is expected


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        JSONS,
        lambda inner: st.dictionaries(
            st.sampled_from(["type", "properties", "$defs", "items", "required", "anyOf", "enum"]), inner, max_size=4
        ),
        max_leaves=15,
    )
)
def test_schemas_of_any_shape_are_read_without_an_error(schema: Any) -> None:
    """Nothing of a schema but its depth is checked before."""
    is_strict(schema)
    close_objects(schema)
    mended = mend_function({"name": "f", "parameters": schema})
    assert mended["parameters"]["type"] == "object"
