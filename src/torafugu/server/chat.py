"""The chat completions dialect: bytes <-> `Request` and `Run`. Nothing else knows this wire format.

Strict on every field that is used, naming it as `messages[2].content`; tolerant of all others, whose names are kept in
`Request.ignored`. What would change the answer and cannot be done (n > 1, logprobs, audio) is refused, never dropped.
Parsing raises `RequestError` and nothing else, and whatever it accepts can be recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from ..errors import RequestError
from ..orchestrate import Run
from ..pool.backend import Delta
from ..types import (
    Json,
    Message,
    OtherPart,
    Part,
    Reply,
    Request,
    Sampling,
    TextPart,
    ToolCall,
)
from .dialect import COMMENT
from .errors import HttpError
from .toolbox import Declared, Toolbox, arguments_to_input, input_to_arguments
from .wire import (
    INT64,
    MAX_IGNORED,
    MAX_MESSAGES,
    MAX_NAME,
    MAX_PARTS,
    MAX_STOPS,
    MAX_TOOLS,
    PENALTY,
    check_opaque,
    decode,
    describe_run,
    encode,
    fail,
    to_image,
    to_request_error,
    usage_of_others,
)

__all__ = ["DONE", "Chat", "Chunks", "parse_chat", "run_to_body"]


DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A request, and how its answer is to be sent."""

    request: Request
    is_stream: bool
    include_usage: bool
    """A streamed answer ends with a chunk of usage."""
    toolbox: Toolbox
    """What the client calls its tools."""
    cache_key: str | None
    """`prompt_cache_key`: clients that send it keep it for a whole session."""


class _Called(msgspec.Struct):
    name: str
    arguments: str


class _Customised(msgspec.Struct):
    name: str
    input: str


class _WireCall(msgspec.Struct):
    id: str
    function: _Called | None = None
    custom: _Customised | None = None
    type: str = "function"


class _WireMessage(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Json]] | None = None
    name: str | None = None
    tool_calls: list[_WireCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    function_call: Json = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _WireChat(msgspec.Struct):
    """The fields that are read."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]
    messages: Annotated[list[_WireMessage], msgspec.Meta(min_length=1, max_length=MAX_MESSAGES)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=2**31)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1, le=2**31)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, INT64] | None = None
    presence_penalty: Annotated[float, PENALTY] | None = None
    frequency_penalty: Annotated[float, PENALTY] | None = None
    reasoning_effort: Annotated[str, msgspec.Meta(max_length=MAX_NAME)] | None = None
    response_format: dict[str, Json] | None = None
    tools: Annotated[list[dict[str, Json]], msgspec.Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Json = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    # Read only to be refused:
    n: Json = None
    logprobs: Json = None
    top_logprobs: Json = None
    modalities: Json = None
    audio: Json = None
    functions: Json = None
    function_call: Json = None


_KNOWN = frozenset(_WireChat.__struct_fields__)
_KNOWN_IN_MESSAGE = frozenset(_WireMessage.__struct_fields__)


def parse_chat(body: bytes) -> Chat:
    """
    Raises:
        RequestError: not JSON, a field of the wrong type, or something asked for that cannot be done.
    """
    wire, ignored = _read_wire(body)
    _refuse_unsupported(wire)
    _check_tools(tuple(wire.tools or ()))
    declared = Toolbox.from_chat(wire.tools or ())
    toolbox, tool_choice = declared.choose_chat(wire.tool_choice)
    ignored |= set(toolbox.left_out)
    tools = toolbox.functions
    check_opaque(wire.response_format, "response_format")
    if wire.response_format is not None and not isinstance(wire.response_format.get("type"), str):
        fail("response_format.type", "expected a string")
    if not tools:  # they say nothing then; providers refuse them, some clients send them always
        ignored |= {f for f in ("tool_choice", "parallel_tool_calls") if getattr(wire, f) is not None}
    if wire.max_tokens is not None and wire.max_completion_tokens not in (None, wire.max_tokens):
        ignored.add("max_tokens")
    request = Request(
        model=wire.model,
        messages=tuple([_to_message(m, i, toolbox) for i, m in enumerate(wire.messages)]),
        sampling=Sampling(
            max_output_tokens=wire.max_tokens if wire.max_completion_tokens is None else wire.max_completion_tokens,
            temperature=wire.temperature,
            top_p=wire.top_p,
            stop=_to_stops(wire.stop),
            seed=wire.seed,
            presence_penalty=wire.presence_penalty,
            frequency_penalty=wire.frequency_penalty,
            reasoning_effort=wire.reasoning_effort,
            response_format=wire.response_format,
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=wire.parallel_tool_calls if tools else None,
        ),
        ignored=tuple(sorted(ignored)),
    )
    options = wire.stream_options
    return Chat(
        request=request,
        is_stream=bool(wire.stream),
        include_usage=options is not None and bool(options.include_usage),
        toolbox=toolbox,
        cache_key=wire.prompt_cache_key,
    )


def _read_wire(body: bytes) -> tuple[_WireChat, set[str]]:
    """The fields that are read, and the names of the others."""
    value = decode(body)
    try:
        wire = msgspec.convert(value, _WireChat)
    except msgspec.ValidationError as error:
        raise to_request_error(str(error)) from None
    ignored = value.keys() - _KNOWN
    for message in value["messages"]:
        if unread := message.keys() - _KNOWN_IN_MESSAGE:
            ignored |= {f"messages[].{name}" for name in unread}
    if len(ignored) > MAX_IGNORED:
        raise RequestError(f"the body has {len(ignored)} unknown fields: expected at most {MAX_IGNORED}")
    return wire, ignored


def _refuse_unsupported(wire: _WireChat) -> None:
    if wire.n not in (None, 1):
        fail("n", "only 1 is supported: send the request once for each choice", code="unsupported")
    if wire.logprobs not in (None, False):
        fail("logprobs", "not supported: leave it out", code="unsupported")
    if wire.top_logprobs not in (None, 0):
        fail("top_logprobs", "not supported: leave it out", code="unsupported")
    if wire.modalities not in (None, [], ["text"]):
        fail("modalities", "only ['text'] is supported", code="unsupported")
    if wire.audio is not None:
        fail("audio", "audio output is not supported: leave it out", code="unsupported")
    if wire.functions is not None or wire.function_call is not None:
        field = "functions" if wire.functions is not None else "function_call"
        fail(field, "the legacy form of tools is not supported: use `tools` and `tool_choice`", code="unsupported")


def _to_message(wire: _WireMessage, index: int, toolbox: Toolbox) -> Message:
    role, content = wire.role, wire.content
    if role == "function" or wire.function_call is not None:
        problem = "the legacy form of tool calls is not supported: use role 'tool' and `tool_calls`"
        fail(f"messages[{index}].{'role' if role == 'function' else 'function_call'}", problem, code="unsupported")
    calls: tuple[ToolCall, ...] = ()
    if role == "assistant":
        calls = _to_tool_calls(wire.tool_calls, index, toolbox) if wire.tool_calls else ()
        content = wire.refusal if content is None else content
    elif role == "tool" and not wire.tool_call_id:
        fail(f"messages[{index}].tool_call_id", "missing: a tool's message names the call that it answers")
    if content is None and not calls:
        fail(f"messages[{index}].content", f"missing: expected text or parts in a message of role {role!r}")
    return Message(
        role=role,
        content=_to_parts(content, index) if isinstance(content, list) else content,
        tool_calls=calls,
        tool_call_id=wire.tool_call_id if role == "tool" else None,
        name=wire.name,
    )


def _to_tool_calls(calls: list[_WireCall], index: int, toolbox: Toolbox) -> tuple[ToolCall, ...]:
    return tuple([_to_tool_call(call, f"messages[{index}].tool_calls[{i}]", toolbox) for i, call in enumerate(calls)])


def _to_tool_call(call: _WireCall, where: str, toolbox: Toolbox) -> ToolCall:
    if call.function is not None:
        name = toolbox.spell(Declared(kind="function", name=call.function.name))
        return ToolCall(id=call.id, name=name, arguments=call.function.arguments)
    if call.custom is not None:
        name = toolbox.spell(Declared(kind="custom", name=call.custom.name))
        return ToolCall(id=call.id, name=name, arguments=input_to_arguments(call.custom.input))
    if call.type in ("function", "custom"):
        fail(f"{where}.{call.type}", "missing")
    fail(f"{where}.type", f"{call.type!r} is not supported: expected 'function' or 'custom'", code="unsupported")


def _to_parts(parts: list[dict[str, Json]], index: int) -> tuple[Part, ...]:
    if len(parts) > MAX_PARTS:
        fail(f"messages[{index}].content", f"{len(parts)} parts: expected at most {MAX_PARTS}")
    return tuple([_to_part(part, f"messages[{index}].content[{i}]") for i, part in enumerate(parts)])


def _to_part(part: dict[str, Json], where: str) -> Part:
    kind = part.get("type")
    if kind == "text" or kind == "refusal":
        text = part.get(kind)
        if not isinstance(text, str):
            fail(f"{where}.{kind}", "expected a string")
        return TextPart(text=text)
    if kind == "image_url":
        return to_image(part.get("image_url"), f"{where}.image_url")
    if not isinstance(kind, str):
        fail(f"{where}.type", "expected a string such as 'text' or 'image_url'")
    check_opaque(part, where)
    return OtherPart(kind=kind, raw=part)


def _to_stops(stop: str | list[str] | None) -> tuple[str, ...]:
    if isinstance(stop, list) and len(stop) > MAX_STOPS:
        fail("stop", f"{len(stop)} sequences: expected at most {MAX_STOPS}")
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def _check_tools(tools: tuple[dict[str, Json], ...]) -> None:
    """Their form; what becomes of tools of other types than `function`, the toolbox says."""
    for i, tool in enumerate(tools):
        kind = tool.get("type")
        if not isinstance(kind, str):
            fail(f"tools[{i}].type", "expected a string such as 'function'")
        if kind == "function":
            function = tool.get("function")
            if not isinstance(function, dict):
                fail(f"tools[{i}].function", "expected an object")
            if not isinstance(function.get("name"), str) or not function["name"]:
                fail(f"tools[{i}].function.name", "expected a string that is not empty")
            if not isinstance(function.get("parameters"), dict | None):
                fail(f"tools[{i}].function.parameters", "expected an object (JSON Schema)")
        check_opaque(tool, f"tools[{i}]")


def run_to_body(run: Run, reply: Reply, *, created: int, policy: str, toolbox: Toolbox = Toolbox()) -> bytes:  # noqa: B008  # frozen
    """The whole answer as a `chat.completion` object."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": reply.text if reply.text or not reply.tool_calls else None,
        "refusal": None,
        "annotations": [],
    }
    if reply.tool_calls:
        message["tool_calls"] = [_from_tool_call(call, toolbox) for call in reply.tool_calls]
    if reply.reasoning is not None:  # two names in use: most clients read the first, gpt-oss tooling the second
        message["reasoning_content"] = message["reasoning"] = reply.reasoning
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish_reason}
    return encode(
        {
            "id": _completion_id(run.id),
            "object": "chat.completion",
            "created": created,
            "model": run.request.model,
            "choices": [choice],
            "usage": _from_usage(run, reply),
            "service_tier": None,
            "system_fingerprint": None,
            "fugu": describe_run(run, policy),
        }
    )


def _completion_id(run_id: str) -> str:
    return f"chatcmpl-{run_id}"


def _from_tool_call(call: ToolCall, toolbox: Toolbox) -> dict[str, Json]:
    declared = toolbox.find(call.name)
    if declared.kind == "custom":
        custom = {"name": declared.name, "input": arguments_to_input(call.arguments)}
        return {"id": call.id, "type": "custom", "custom": custom}
    return {"id": call.id, "type": "function", "function": {"name": declared.name, "arguments": call.arguments}}


def _from_usage(run: Run, reply: Reply) -> dict[str, Json] | None:
    """The answer's own tokens, and beside them all others that the run spent; null when the provider did not count."""
    own = reply.usage
    if own.input_tokens is None or own.output_tokens is None:
        return None
    others = usage_of_others(run, own)
    return {
        "prompt_tokens": own.input_tokens,
        "completion_tokens": own.output_tokens,
        "total_tokens": own.input_tokens + own.output_tokens,
        "prompt_tokens_details": {"cached_tokens": own.cached_input_tokens},
        "completion_tokens_details": {"reasoning_tokens": own.reasoning_tokens},
        "orchestration_input_tokens": others.input_tokens,
        "orchestration_input_cached_tokens": others.cached_input_tokens,
        "orchestration_output_tokens": others.output_tokens,
    }


class Chunks:
    """One streamed answer as `data:` frames. Each method returns the bytes of the next ones."""

    heartbeat = COMMENT
    breaks_off = True

    def __init__(
        self,
        *,
        run_id: str,
        created: int,
        model: str,
        include_usage: bool,
        toolbox: Toolbox = Toolbox(),  # noqa: B008  # frozen
    ) -> None:
        head = {"id": _completion_id(run_id), "object": "chat.completion.chunk", "created": created, "model": model}
        self._toolbox = toolbox
        self._head = b"data: " + encode(head)[:-1]
        self._include_usage = include_usage
        # When usage was asked for, every chunk but the last has it as null.
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        self._delta_head = self._head + b',"choices":[{"index":0,"delta":{'
        self._delta_tail = b'},"logprobs":null,"finish_reason":null}]' + self._tail

    def first(self) -> bytes:
        """Whose turn it is, before any text."""
        return self._delta_head + b'"role":"assistant","content":""' + self._delta_tail

    def delta(self, delta: Delta) -> bytes:
        """A piece of text, of reasoning, or of both."""
        fields = []
        if delta.reasoning:
            text = encode(delta.reasoning)
            fields.append(b'"reasoning_content":' + text + b',"reasoning":' + text)
        if delta.text:
            fields.append(b'"content":' + encode(delta.text))
        return self._delta_head + b",".join(fields) + self._delta_tail

    def tool_calls(self, calls: tuple[ToolCall, ...]) -> bytes:
        """Each call whole, in a chunk of its own."""
        frames = [
            self._delta_head
            + b'"tool_calls":'
            + encode([{"index": i, **_from_tool_call(call, self._toolbox)}])
            + self._delta_tail
            for i, call in enumerate(calls)
        ]
        return b"".join(frames)

    def error(self, problem: HttpError) -> bytes:
        """That it failed; the connection has to break after it."""
        return b"data: " + problem.body + b"\n\n"

    def last(self, run: Run, reply: Reply, *, policy: str) -> bytes:
        """The reason of the end; then usage in a chunk without choices, if that was asked for; then the end itself."""
        extension = b',"fugu":' + encode(describe_run(run, policy))
        finish = b',"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":' + encode(reply.finish_reason)
        if not self._include_usage:  # naive clients fail on a chunk without choices
            return self._head + finish + b"}]" + extension + b"}\n\n" + DONE
        usage = b',"choices":[],"usage":' + encode(_from_usage(run, reply))
        return self._head + finish + b"}]" + self._tail + self._head + usage + extension + b"}\n\n" + DONE
