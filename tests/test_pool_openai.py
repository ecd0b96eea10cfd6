"""The chat-completions dialect as pure translation."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from torafugu.errors import WorkerError
from torafugu.pool.backend import Completion, Delta, Query
from torafugu.pool.openai import WIRE, build_body
from torafugu.pool.spec import WorkerSpec
from torafugu.types import ImagePart, Message, OtherPart, Sampling, TextPart, ToolCall, Usage

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def spec(**fields: Any) -> WorkerSpec:
    return WorkerSpec(**({"id": "w", "dialect": "openai", "model": "m", "base_url": "http://x/v1"} | fields))


def ask(*messages: Message, **sampling: Any) -> Query:
    return Query(messages=messages or (Message(role="user", content="hi"),), sampling=Sampling(**sampling))


def read(body: dict[str, Any]) -> Completion:
    return WIRE.read(WIRE.answers.decode(json.dumps(body)), "w")


def whole(finish_reason: str | None = "stop", usage: Any = None, **message: Any) -> dict[str, Any]:
    return {
        "id": "c1",
        "model": "m-1",
        "choices": [{"message": {"role": "assistant", **message}, "finish_reason": finish_reason}],
        "usage": usage,
    }


def piece(finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def stream(*chunks: dict[str, Any]) -> tuple[Completion, list[Delta]]:
    assembler = WIRE.assemble("w")
    deltas = [assembler.feed(WIRE.events.decode(json.dumps(chunk))) for chunk in chunks]
    assert assembler.is_complete
    return assembler.completion(), [delta for delta in deltas if delta is not None]


def test_a_body_holds_what_was_asked_and_nothing_else() -> None:
    """Fields that nobody set are left to the worker."""
    assert build_body(spec(), ask(), False) == {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_every_sampling_field_is_sent() -> None:
    """No option is dropped on the way."""
    sampling = Sampling(
        max_output_tokens=9,
        temperature=0.5,
        top_p=0.9,
        stop=("END",),
        seed=3,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        reasoning_effort="low",
        response_format={"type": "json_object"},
        tools=(TOOL,),
        tool_choice="required",
        parallel_tool_calls=False,
    )
    body = build_body(spec(), Query(messages=(), sampling=sampling), False)
    renamed = {"max_output_tokens": "max_tokens"}
    for name, value in msgspec.structs.asdict(sampling).items():
        wire = body[renamed.get(name, name)]
        assert wire == (list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize(
    ("base_url", "field"),
    [
        (None, "max_completion_tokens"),
        ("https://api.openai.com/v1", "max_completion_tokens"),
        ("https://openrouter.ai/api/v1", "max_tokens"),
        ("https://api.openai.com.evil.example/v1", "max_tokens"),
    ],
)
def test_the_output_limit_has_the_name_that_the_server_knows(base_url: str | None, field: str) -> None:
    """OpenAI itself takes the newer field, all others the older one."""
    assert build_body(spec(base_url=base_url), ask(max_output_tokens=7), False)[field] == 7


def test_a_limit_above_the_model_s_own_is_the_model_s_own() -> None:
    """Asking for more than a model can write is not refused by its provider; asking for nothing sends nothing."""
    worker = spec(max_output_tokens=100)
    assert build_body(worker, ask(max_output_tokens=5000), False)["max_tokens"] == 100
    assert build_body(worker, ask(max_output_tokens=50), False)["max_tokens"] == 50
    assert "max_tokens" not in build_body(worker, ask(), False)


def test_a_conversation_with_tools_and_images_is_sent_whole() -> None:
    """Every kind of turn and part has its wire form; parts that we only carry go verbatim."""
    audio = {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}
    messages = build_body(
        spec(),
        ask(
            Message(role="developer", content="be brief"),
            Message(
                role="user",
                name="ann",
                content=(
                    TextPart(text="what is it?"),
                    ImagePart(url="https://x/y.png", detail="low"),
                    ImagePart(url="data:image/png;base64,AA"),
                    OtherPart(kind="input_audio", raw=audio),
                ),
            ),
            Message(role="assistant", content=None, tool_calls=(ToolCall(id="t1", name="look", arguments='{"a":1}'),)),
            Message(role="tool", content="a cat", tool_call_id="t1"),
        ),
        False,
    )["messages"]
    assert messages == [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "name": "ann",
            "content": [
                {"type": "text", "text": "what is it?"},
                {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
                audio,
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}}],
        },
        {"role": "tool", "content": "a cat", "tool_call_id": "t1"},
    ]


def test_openai_itself_is_told_of_developers() -> None:
    """The developer role is kept where it is known."""
    query = ask(Message(role="developer", content="be brief"))
    assert build_body(spec(base_url=None), query, False)["messages"][0]["role"] == "developer"


CALLED = Message(role="assistant", content=None, tool_calls=(ToolCall(id="t1", name="look", arguments="{}"),))
PDF = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0x"}


def roles_and_contents(base_url: str | None, *messages: Message, **fields: Any) -> list[tuple[str, Any]]:
    body = build_body(spec(base_url=base_url, **fields), ask(*messages), False)
    return [(message["role"], message["content"]) for message in body["messages"]]


def test_an_image_of_a_tool_is_the_user_s() -> None:
    """It follows behind all results of the turn, named by its call, and joins what the user says next."""
    image = ImagePart(url="https://x/y.png")
    messages = build_body(
        spec(),
        ask(
            Message(role="user", content="look"),
            Message(
                role="assistant",
                content=None,
                tool_calls=tuple(ToolCall(id=id, name="look", arguments="{}") for id in ("t1", "t2")),
            ),
            Message(role="tool", tool_call_id="t1", content=(TextPart(text="see"), image)),
            Message(role="tool", tool_call_id="t2", content=(image,)),
            Message(role="user", content="well?"),
        ),
        False,
    )["messages"]
    wire = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
    assert messages[2:] == [
        {"role": "tool", "tool_call_id": "t1", "content": "see\n[image: see the user's next message]"},
        {"role": "tool", "tool_call_id": "t2", "content": "[image: see the user's next message]"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "[image of tool call t1]"},
                wire,
                {"type": "text", "text": "[image of tool call t2]"},
                wire,
                {"type": "text", "text": "well?"},
            ],
        },
    ]


SYSTEMS = (
    Message(role="system", content="one"),
    Message(role="developer", content=(TextPart(text="two"), TextPart(text="more"))),
    Message(role="user", content="a"),
    Message(role="system", content="late"),
    Message(role="assistant", content="b"),
    Message(role="user", content="c"),
    Message(role="user", content=(TextPart(text="d"),)),
)


def test_openai_takes_system_messages_where_they_stand() -> None:
    """Nothing is merged or marked there."""
    assert roles_and_contents(None, *SYSTEMS) == [
        ("system", "one"),
        ("developer", "two\nmore"),
        ("user", "a"),
        ("system", "late"),
        ("assistant", "b"),
        ("user", "c"),
        ("user", [{"type": "text", "text": "d"}]),
    ]


def test_others_get_one_system_message_and_alternating_turns() -> None:
    """Chat templates refuse a second or late system message, and two turns of one side in a row."""
    assert roles_and_contents("http://x/v1", *SYSTEMS) == [
        ("system", "one\n\ntwo\nmore"),
        ("user", "a\n\n<system_message>\nlate\n</system_message>"),
        ("assistant", "b"),
        ("user", [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]),
    ]


@pytest.mark.parametrize(
    ("base_url", "takes_late", "roles"),
    [
        ("http://x/v1", True, ["system", "system", "user", "system", "assistant", "user"]),
        (None, False, ["system", "user", "user", "assistant", "user", "user"]),
    ],
)
def test_a_worker_says_itself_where_system_messages_may_stand(
    base_url: str | None, takes_late: bool, roles: list[str]
) -> None:
    """Its declaration goes before what is known of its server."""
    sent = roles_and_contents(base_url, *SYSTEMS, late_system=takes_late)
    assert [role for role, _ in sent] == roles


def test_speakers_of_different_names_stay_apart() -> None:
    """What two people say is not merged into one's words."""
    ann, bob = (Message(role="user", name=name, content="hi") for name in ("ann", "bob"))
    assert len(roles_and_contents("http://x/v1", ann, ann, bob)) == 2


def test_a_system_prompt_alone_is_what_is_asked() -> None:
    """Chat templates demand a user; OpenAI itself does not."""
    alone = Message(role="system", content="Write a poem.")
    assert roles_and_contents("http://x/v1", alone) == [("user", "Write a poem.")]
    assert roles_and_contents(None, alone) == [("system", "Write a poem.")]


def test_mistral_gets_what_it_takes() -> None:
    """Ids of nine letters and digits, which results share, and no user right after a tool."""
    said = (CALLED, Message(role="tool", tool_call_id="t1", content="cat"), Message(role="user", content="and?"))
    messages = build_body(spec(base_url="https://api.mistral.ai/v1"), ask(*said), False)["messages"]
    assert [message["role"] for message in messages] == ["assistant", "tool", "assistant", "user"]
    id = messages[0]["tool_calls"][0]["id"]
    assert len(id) == 9
    assert id.isalnum()
    assert messages[1]["tool_call_id"] == id


def test_an_id_that_is_too_long_is_another() -> None:
    """OpenAI takes 40 characters; the call and its result keep one id, the same in every request."""
    long = Message(role="assistant", content=None, tool_calls=(ToolCall(id="t" * 41, name="look", arguments="{}"),))
    query = ask(long, Message(role="tool", tool_call_id="t" * 41, content="cat"))
    first, again = (build_body(spec(base_url=None), query, False)["messages"] for _ in range(2))
    assert first == again
    assert first[0]["tool_calls"][0]["id"] == first[1]["tool_call_id"] != "t" * 41


def test_a_document_of_anthropic_s_is_a_file() -> None:
    """A PDF with a name, which OpenAI demands, and what was said about it; a text is text, and an image an image."""
    content = [{"type": "text", "text": "t"}, {"type": "image", "source": PDF | {"media_type": "image/png"}}]
    parts = [
        {"type": "document", "title": "a report", "context": "of May", "source": PDF},
        {"type": "document", "source": PDF},
        {"type": "document", "title": "n", "source": {"type": "text", "media_type": "text/plain", "data": "hi"}},
        {"type": "document", "source": {"type": "content", "content": content}},
    ]
    asked = Message(role="user", content=tuple(OtherPart(kind="document", raw=raw) for raw in parts))
    data = "data:application/pdf;base64,JVBERi0x"
    assert roles_and_contents(None, asked)[0][1] == [
        {"type": "text", "text": "of May"},
        {"type": "file", "file": {"filename": "a report.pdf", "file_data": data}},
        {"type": "file", "file": {"filename": "document.pdf", "file_data": data}},
        {"type": "text", "text": "n\n\nhi"},
        {"type": "text", "text": "t"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,JVBERi0x"}},
    ]


@pytest.mark.parametrize(
    ("kind", "raw", "sent"),
    [
        ("file", {"type": "file", "file": {"file_id": "f1"}}, {"file_id": "f1"}),
        ("input_file", {"type": "input_file", "file_id": "f1"}, {"file_id": "f1"}),
        (
            "file",
            {"type": "file", "file": {"file_data": "JVBERi0x"}},
            {"filename": "document.pdf", "file_data": "data:application/pdf;base64,JVBERi0x"},
        ),
        (
            "file",
            {"type": "file", "file": {"filename": "a.docx", "file_data": "data:application/msword;base64,AA=="}},
            {"filename": "a.docx", "file_data": "data:application/msword;base64,AA=="},
        ),
    ],
)
def test_files_are_sent_in_the_form_of_chat_completions(kind: str, raw: Any, sent: Any) -> None:
    """A file by id or of any type as it came; of a PDF what clients leave out is added."""
    asked = Message(role="user", content=(OtherPart(kind=kind, raw=raw),))
    assert roles_and_contents("http://x/v1", asked) == [("user", [{"type": "file", "file": sent}])]


def test_a_document_without_a_form_here_is_refused() -> None:
    """One by address is never sent as it is, nor dropped."""
    raw = {"type": "document", "source": {"type": "url", "url": "https://x/y.pdf"}}
    with pytest.raises(WorkerError, match="part of type 'document' that has no form in this dialect") as caught:
        roles_and_contents(None, Message(role="user", content=(OtherPart(kind="document", raw=raw),)))
    assert caught.value.code == "rejected"


@pytest.mark.parametrize(
    ("efforts", "asked", "sent"),
    [
        (None, "max", "max"),
        (None, "ultra", "ultra"),
        ((), "high", None),
        (("none",), "high", "none"),
        (("none", "low", "high"), "minimal", "low"),
        (("none", "low", "high"), "none", "none"),
        (("minimal", "low", "medium", "high"), "xhigh", "high"),
        (("high", "low"), "medium", "low"),
        (("low", "high"), "ultra", None),
        (("low", "high"), None, None),
    ],
)
def test_an_effort_is_one_that_the_model_knows(efforts: Any, asked: str | None, sent: str | None) -> None:
    """The nearest declared one, the lesser of two; undeclared, what was asked for; no reasoning only on demand."""
    assert build_body(spec(efforts=efforts), ask(reasoning_effort=asked), False).get("reasoning_effort") == sent


def test_what_a_model_refuses_is_left_out() -> None:
    """Declared hints are not sent, whoever asks for them."""
    body = build_body(spec(refuses=("temperature", "seed")), ask(temperature=0.0, seed=1, top_p=0.5), False)
    assert set(body) == {"model", "messages", "top_p"}


OPEN = {"type": "object", "properties": {"a": {"type": "integer"}}}
STRICT = {**OPEN, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("function", "sent"),
    [
        ({"parameters": STRICT, "strict": True}, {"parameters": STRICT, "strict": True}),
        ({"parameters": OPEN, "strict": True}, {"parameters": OPEN}),
        ({"parameters": OPEN, "strict": False}, {"parameters": OPEN, "strict": False}),
        ({}, {"parameters": {"type": "object", "properties": {}}}),
        ({"parameters": {"type": "object"}}, {"parameters": {"type": "object", "properties": {}}}),
        (
            {"parameters": {**STRICT, "not": {}}, "strict": True},
            {"parameters": STRICT, "description": 'The arguments also have to match this JSON Schema: {"not":{}}'},
        ),
    ],
)
def test_schemas_are_such_as_openai_takes(function: dict[str, Any], sent: dict[str, Any]) -> None:
    """It checks them before it asks the model; other servers get them as they came."""
    tool = {"type": "function", "function": {"name": "add", **function}}
    assert build_body(spec(base_url=None), ask(tools=(tool,)), False)["tools"] == [
        {"type": "function", "function": {"name": "add", **sent}}
    ]
    assert build_body(spec(), ask(tools=(tool,)), False)["tools"] == [tool]


def test_a_grammar_has_a_field_of_its_own() -> None:
    """A grammar is sent as llama.cpp's server takes it, and not as a response format."""
    body = build_body(spec(), ask(response_format={"type": "gbnf", "grammar": 'root ::= "x"'}), False)
    assert body["grammar"] == 'root ::= "x"'
    assert "response_format" not in body


def test_extra_body_has_the_last_word_and_usage_is_asked_for() -> None:
    """A worker's own switches override ours; a stream asks for its usage."""
    body = build_body(spec(extra_body={"temperature": 0.1, "provider": {"sort": "price"}}), ask(temperature=1.0), True)
    assert body["temperature"] == 0.1
    assert body["provider"] == {"sort": "price"}
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}


def test_tool_options_without_tools_are_not_sent() -> None:
    """Providers refuse a tool_choice without tools."""
    assert set(build_body(spec(), ask(tool_choice="none", parallel_tool_calls=True), False)) == {"model", "messages"}


def test_a_whole_answer_is_read() -> None:
    """Text, reasoning, usage and the provider's names come back."""
    completion = read(
        whole(
            content="4",
            reasoning_content="2+2",
            usage={
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "total_tokens": 15,
                "prompt_tokens_details": {"cached_tokens": 8},
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
        )
    )
    assert completion == Completion(
        text="4",
        reasoning="2+2",
        finish_reason="stop",
        usage=Usage(input_tokens=10, cached_input_tokens=8, output_tokens=5, reasoning_tokens=3),
        provider_model="m-1",
        provider_id="c1",
    )


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, Usage()),
        ("soon", Usage()),
        ({}, Usage()),
        ({"prompt_tokens": 3, "completion_tokens": None}, Usage(input_tokens=3)),
        ({"prompt_tokens": -3, "completion_tokens": True}, Usage()),
        (
            {"prompt_tokens": 9, "completion_tokens": 1, "prompt_cache_hit_tokens": 6, "prompt_tokens_details": None},
            Usage(input_tokens=9, output_tokens=1, cached_input_tokens=6),
        ),
        (  # xAI: reasoning is outside completion_tokens, inside the total, and billed
            {
                "prompt_tokens": 10120,
                "completion_tokens": 1499,
                "total_tokens": 14428,
                "completion_tokens_details": {"reasoning_tokens": 2809},
            },
            Usage(input_tokens=10120, output_tokens=4308, reasoning_tokens=2809),
        ),
    ],
)
def test_usage_that_is_not_reported_is_unknown(usage: Any, expected: Usage) -> None:
    """Missing and senseless counts are None, never 0; output holds all that is billed as output."""
    assert read(whole(content="x", usage=usage)).usage == expected


@pytest.mark.parametrize(
    ("message", "text", "reasoning"),
    [
        ({"content": "a", "reasoning": "r"}, "a", "r"),
        ({"content": None, "refusal": "I will not"}, "I will not", None),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "r"}]},
                    {"type": "text", "text": "a"},
                ]
            },
            "a",
            "r",
        ),
    ],
)
def test_text_and_reasoning_are_found_where_providers_put_them(message: Any, text: str, reasoning: str | None) -> None:
    """OpenRouter's, OpenAI's and Mistral's places are read."""
    completion = read(whole(**message))
    assert (completion.text, completion.reasoning) == (text, reasoning)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("stop", "stop"),
        ("eos", "stop"),
        ("length", "length"),
        ("model_length", "length"),
        ("MAX_TOKENS", "length"),
        ("function_call", "tool_calls"),
        ("content_filter", "content_filter"),
        ("SAFETY", "content_filter"),
        ("yet_unknown", "stop"),
    ],
)
def test_finish_reasons_are_translated(written: str, expected: str) -> None:
    """Each provider's word for why it stopped becomes ours."""
    assert read(whole(content="x", finish_reason=written)).finish_reason == expected


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"choices": []}, "malformed"),
        ({}, "malformed"),
        ({"choices": [{"finish_reason": "stop"}]}, "malformed"),
        (whole(content="half", finish_reason=None), "truncated"),
        (whole(content="half", finish_reason="error"), "server_error"),
        (whole(content="half", finish_reason="abort"), "server_error"),
    ],
)
def test_an_answer_that_is_none_is_a_failure(body: dict[str, Any], code: str) -> None:
    """A 200 without a finished message is never taken for an answer."""
    with pytest.raises(WorkerError) as caught:
        read(body)
    assert caught.value.code == code


def test_tool_calls_are_read_with_what_providers_leave_out() -> None:
    """A missing id is made up, an object as arguments becomes JSON text, and `stop` with calls means calls."""
    calls = [
        {"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}},
        {"function": {"name": "look", "arguments": {"a": 2}}},
        {"id": "t3", "function": {"name": "look"}},
    ]
    completion = read(whole(content=None, tool_calls=calls))
    assert completion.finish_reason == "tool_calls"
    assert [call.arguments for call in completion.tool_calls] == ['{"a": 1}', '{"a":2}', "{}"]
    assert completion.tool_calls[0].id == "t1"
    assert completion.tool_calls[1].id.startswith("call_")


def test_a_stream_is_put_together() -> None:
    """Text and reasoning are passed on as they come, the usage chunk without choices is read, missing ids are fine."""
    completion, deltas = stream(
        {"id": "c1", "model": "m-1", **piece(role="assistant", content="")},
        piece(reasoning_content="hm"),
        piece(reasoning="m"),
        piece(content="Hel"),
        piece(content="lo"),
        piece("length"),
        {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}},
    )
    assert deltas == [Delta(reasoning="hm"), Delta(reasoning="m"), Delta(text="Hel"), Delta(text="lo")]
    assert completion == Completion(
        text="Hello",
        reasoning="hmm",
        finish_reason="length",
        usage=Usage(input_tokens=1, output_tokens=2),
        provider_model="m-1",
        provider_id="c1",
    )


def call_piece(
    index: int | None, id: str | None = None, name: str | None = None, arguments: str = ""
) -> dict[str, Any]:
    call = {"index": index, "id": id, "function": {"name": name, "arguments": arguments}}
    return piece(tool_calls=[{key: value for key, value in call.items() if value is not None}])


@pytest.mark.parametrize(
    "pieces",
    [
        [  # OpenAI: by index, interleaved
            call_piece(0, "a", "look", ""),
            call_piece(1, "b", "look", ""),
            call_piece(0, None, None, '{"n":'),
            call_piece(1, None, None, '{"n":2}'),
            call_piece(0, None, None, "1}"),
        ],
        [call_piece(0, "a", "look", '{"n":1}'), call_piece(0, "b", "look", '{"n":2}')],  # Gemini: one index for all
        [  # no index at all
            call_piece(None, "a", "look", '{"n":'),
            call_piece(None, None, None, "1}"),
            call_piece(None, "b", "look", '{"n":2}'),
        ],
        [  # the id and the name again in every piece
            call_piece(0, "a", "look", '{"n":'),
            call_piece(0, "a", "look", "1}"),
            call_piece(1, "b", "look", '{"n":2}'),
        ],
    ],
)
def test_streamed_tool_calls_are_put_together(pieces: list[dict[str, Any]]) -> None:
    """The pieces of parallel calls find each other in every provider's way of numbering them; none is passed on."""
    completion, deltas = stream(*pieces, piece("tool_calls"))
    assert deltas == []
    assert completion.tool_calls == (
        ToolCall(id="a", name="look", arguments='{"n":1}'),
        ToolCall(id="b", name="look", arguments='{"n":2}'),
    )
