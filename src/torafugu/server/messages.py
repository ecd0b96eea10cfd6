"""Anthropic's messages dialect for clients: bytes <-> `Request` and `Run`. How workers speak it: `pool/anthropic.py`.

As strict and as tolerant as `chat.py`. What of a conversation only its provider can use (reasoning with signatures,
cache marks) is left out and named in `Request.ignored`; what only its provider could do (its server-side tools' turns,
blocks yet to be invented) is kept, as text. Thinking is sent to those who asked for it: whoever did not takes the
first block of an answer for its text. Where the dialect's types demand a count that nobody knows, it is 0 and named in
`usage.unknown`; the counts of `message_start`, which come before any is known, are 0 as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import msgspec

from ..errors import RequestError
from ..pool.schemas import is_strict
from ..types import (
    ImagePart,
    Json,
    Message,
    OtherPart,
    Part,
    Request,
    Sampling,
    TextPart,
    ToolCall,
)
from .toolbox import Declared, Toolbox, to_function
from .wire import (
    MAX_IGNORED,
    MAX_MESSAGES,
    MAX_NAME,
    MAX_PARTS,
    MAX_STOPS,
    MAX_TOOLS,
    check_opaque,
    decode,
    encode,
    fail,
    to_image,
    to_request_error,
)

__all__ = [
    "TOKEN_COUNT_HEADERS",
    "MessagesRequest",
    "Thinking",
    "count_tokens",
    "parse_messages",
]

Thinking: TypeAlias = Literal["none", "omitted", "shown"]
"""Whether an answer has blocks of thinking; omitted: without their text."""

_CHARACTERS_PER_TOKEN = 4
_TOKENS_PER_IMAGE = 1_600  # what the provider counts at most for one, at 750 pixels a token
_TOKENS_PER_DOCUMENT = 3_000  # one page or two: nobody reads its pages here
TOKEN_COUNT_HEADERS = [(b"x-fugu-token-count", b"estimate")]
"""No tokenizer of the worker's is here: `count_tokens` divides characters, and whoever relies on it shall know."""

# Where a budget of thinking tokens (from 1024 to the model's limit of output) falls among the efforts.
_EFFORT_BELOW = ((4_096, "low"), (16_384, "medium"))
_TOOL_ERROR = "[the tool call failed]"
_LONG_CONTEXT = re.compile(r"\[1m\]$", re.IGNORECASE)
_MEDIA_TYPE = re.compile(r"[\w.+-]{1,64}/[\w.+-]{1,64}")
_SESSION_IN_USER = re.compile(r"_session_([0-9a-f-]{36})$")
# Claude Code accounts for itself in a block of the system prompt, which no model is meant to read, and which would
# change the beginning of every prompt with each of its versions.
_ATTRIBUTION = "x-anthropic-billing-header:"

# What is read of each block; other fields are named as ignored.
_FIELDS: Mapping[str, frozenset[str]] = {
    "text": frozenset({"type", "text"}),
    "image": frozenset({"type", "source"}),
    "document": frozenset({"type", "source", "title", "context"}),
    "search_result": frozenset({"type", "source", "title", "content"}),
    "tool_use": frozenset({"type", "id", "name", "input"}),
    "tool_result": frozenset({"type", "tool_use_id", "content", "is_error"}),
    "tool_addition": frozenset({"type", "tool"}),
    "tool_removal": frozenset({"type", "tool"}),
}
_TOOL_FIELDS = frozenset({"type", "name", "description", "input_schema", "strict"})
# Turns of tools that ran at the provider: told as text, since other workers know no such turns.
_TOLD = re.compile(r"(server|mcp)_tool_use|\w+_tool_result|tool_reference|search_result|compaction")
_FOR_PROVIDER = ("cache_control", "encrypted_")


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesRequest:
    """A request, and how its answer is to be sent."""

    request: Request
    model: str
    """The model's name as the client wrote it, which the answer echoes."""
    is_stream: bool
    thinking: Thinking
    toolbox: Toolbox
    session: str | None
    """What Claude Code writes of its session into `metadata.user_id`; None for other clients."""
    user: str | None
    """`metadata.user_id`."""


class _WireMessage(msgspec.Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Json]]


class _Metadata(msgspec.Struct):
    user_id: str | None = None


class _Wire(msgspec.Struct):
    """The fields that are read."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]
    messages: Annotated[list[_WireMessage], msgspec.Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=2**31)] | None = None
    system: str | list[dict[str, Json]] | None = None
    stream: bool | None = None
    stop_sequences: Annotated[list[str], msgspec.Meta(max_length=MAX_STOPS)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    tools: Annotated[list[dict[str, Json]], msgspec.Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: dict[str, Json] | None = None
    thinking: dict[str, Json] | None = None
    output_config: dict[str, Json] | None = None
    output_format: dict[str, Json] | None = None
    """Where `output_config.format` stood at first."""
    metadata: _Metadata | None = None
    # Read only to be refused:
    mcp_servers: Json = None
    thread: Json = None


_KNOWN = frozenset(_Wire.__struct_fields__)
_KNOWN_IN_MESSAGE = frozenset(_WireMessage.__struct_fields__)
_KNOWN_IN_METADATA = frozenset(_Metadata.__struct_fields__)


# --- what clients send ---


def parse_messages(body: bytes) -> MessagesRequest:
    """
    Raises:
        RequestError: not JSON, a field of the wrong type, or something asked for that cannot be done.
    """
    wire, ignored = _read_wire(body)
    if wire.max_tokens is None:
        fail("max_tokens", "missing: expected the most tokens that the answer may have")
    return _to_messages(wire, ignored)


def count_tokens(body: bytes) -> bytes:
    """The answer of `count_tokens`: an estimate from the number of characters, of images and of documents.

    Raises:
        RequestError: as `parse_messages`.
    """
    wire, ignored = _read_wire(body)
    request = _to_messages(wire, ignored).request
    characters, tokens = 0, 0
    for message in request.messages:
        content = message.content or ()
        for part in (TextPart(text=content),) if isinstance(content, str) else content:
            if isinstance(part, TextPart):
                characters += len(part.text)
            else:
                tokens += _TOKENS_PER_IMAGE if isinstance(part, ImagePart) else _TOKENS_PER_DOCUMENT
        characters += sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
    for declared in (*request.sampling.tools, request.sampling.response_format):
        characters += 0 if declared is None else len(_to_json(declared))
    return encode({"input_tokens": tokens + math.ceil(characters / _CHARACTERS_PER_TOKEN)})


def _to_messages(wire: _Wire, ignored: set[str]) -> MessagesRequest:
    if wire.mcp_servers not in (None, []):
        fail("mcp_servers", "servers of tools are not called from here: run them at the client", code="unsupported")
    if isinstance(wire.thread, dict) and wire.thread.get("type") != "create":
        fail("thread", "no conversation is kept here: send all of its messages", code="unsupported")
    if wire.thread is not None:
        ignored.add("thread")
    reader = _Reader(ignored)
    messages = reader.read_conversation(wire)
    toolbox = reader.read_tools(wire.tools or [])
    ignored |= set(toolbox.left_out)
    choice, is_parallel = _to_tool_choice(wire.tool_choice, toolbox, ignored)
    model = _LONG_CONTEXT.sub("", wire.model)
    if not model:
        fail("model", f"{wire.model!r} names none")
    effort = _to_effort(wire, ignored)
    response_format = _to_response_format(wire)
    if len(ignored) > MAX_IGNORED:
        raise RequestError(f"the body has {len(ignored)} unknown fields: expected at most {MAX_IGNORED}")
    user = wire.metadata.user_id if wire.metadata is not None else None
    return MessagesRequest(
        request=Request(
            model=model,
            messages=tuple([_respell(message, toolbox) for message in messages]),
            sampling=Sampling(
                max_output_tokens=wire.max_tokens,
                temperature=wire.temperature,
                top_p=wire.top_p,
                stop=tuple(wire.stop_sequences or ()),
                reasoning_effort=effort,
                response_format=response_format,
                tools=toolbox.functions,
                tool_choice=choice,
                parallel_tool_calls=is_parallel,
            ),
            ignored=tuple(sorted(ignored)),
        ),
        model=wire.model,
        is_stream=bool(wire.stream),
        thinking=_to_thinking(wire.thinking),
        toolbox=toolbox,
        session=_find_session(user),
        user=user,
    )


def _read_wire(body: bytes) -> tuple[_Wire, set[str]]:
    """The fields that are read, and the names of the others."""
    value = decode(body)
    try:
        wire = msgspec.convert(value, _Wire)
    except msgspec.ValidationError as error:
        raise to_request_error(str(error)) from None
    ignored = set(value.keys() - _KNOWN)
    for message in value["messages"]:
        ignored |= {f"messages[].{name}" for name in message.keys() - _KNOWN_IN_MESSAGE}
    ignored |= {f"metadata.{name}" for name in (value.get("metadata") or {}).keys() - _KNOWN_IN_METADATA}
    return wire, ignored


class _Reader:
    """Reads the turns in their order, since what a block may say depends on those before it."""

    def __init__(self, ignored: set[str]) -> None:
        self._ignored = ignored
        self._call_ids: set[str] = set()
        self._left_out: list[str] = []
        self._added: dict[str, Json] = {}
        """Tools that a turn brought along."""
        self._removed: set[str] = set()
        """Tools that a turn withdrew, and none has brought back."""

    def read_conversation(self, wire: _Wire) -> list[Message]:
        messages = [] if wire.system is None else self._read_system(wire.system)
        for i, message in enumerate(wire.messages):
            if isinstance(message.content, str):
                messages.append(Message(role=message.role, content=message.content))
            else:
                messages += self._read_turn(message.role, message.content, f"messages[{i}].content")
        if all(message.role == "system" for message in messages):
            fail("messages", "nothing to answer: expected text, images, documents or results of tools")
        return messages

    def _read_system(self, system: str | list[dict[str, Json]]) -> list[Message]:
        if isinstance(system, str):
            return [Message(role="system", content=system)] if system else []
        texts = []
        for i, block in enumerate(system):
            where = f"system[{i}]"
            if _kind_of(block, where) != "text":
                fail(f"{where}.type", f"{block['type'][:MAX_NAME]!r}: expected 'text'")
            text = _text_of(block, "text", where)
            if text.startswith(_ATTRIBUTION):
                self._ignored.add(f"system[]:{_ATTRIBUTION.rstrip(':')}")
            else:
                texts.append(text)
            self._note_unread(block, "text", "system[]")
        return [Message(role="system", content="\n\n".join(texts))] if texts else []

    def _read_turn(
        self, role: Literal["user", "assistant", "system"], blocks: list[dict[str, Json]], where: str
    ) -> list[Message]:
        """Results of tools come first, each in a message of its own; then what else the turn says, if anything."""
        if not blocks:
            fail(where, f"empty: expected text or blocks in a message of role {role!r}")
        if len(blocks) > MAX_PARTS:
            fail(where, f"{len(blocks)} blocks: expected at most {MAX_PARTS}")
        results: list[Message] = []
        calls: list[ToolCall] = []
        parts: list[Part] = []
        for i, block in enumerate(blocks):
            here = f"{where}[{i}]"
            kind = _kind_of(block, here)
            speaker = {"tool_use": "assistant", "tool_result": "user"}.get(kind, role)
            if speaker != role:
                fail(f"{here}.type", f"{kind!r} in a message of role {role!r}: expected in one of role {speaker!r}")
            if kind == "tool_use":
                calls.append(self._read_call(block, here))
            elif kind == "tool_result":
                results.append(self._read_result(block, here))
            elif kind in ("tool_addition", "tool_removal") and role == "system":
                self._change_tools(kind, block, here)
            elif (part := self._read_part(kind, block, here)) is not None:
                parts.append(part)
        if parts or calls:
            content = _join(parts, role)
            results.append(Message(role=role, content=content or None if calls else content, tool_calls=tuple(calls)))
        return results

    def _read_call(self, block: dict[str, Json], where: str) -> ToolCall:
        call_id, name = _name_of(block, "id", where), _name_of(block, "name", where)
        arguments = {} if block.get("input") is None else block["input"]
        if not isinstance(arguments, dict):
            fail(f"{where}.input", "expected an object")
        check_opaque(arguments, f"{where}.input")
        self._note_unread(block, "tool_use")
        self._call_ids.add(call_id)
        return ToolCall(id=call_id, name=name, arguments=_to_json(arguments))

    def _read_result(self, block: dict[str, Json], where: str) -> Message:
        call_id = _name_of(block, "tool_use_id", where)
        if call_id not in self._call_ids:
            fail(
                f"{where}.tool_use_id",
                f"{call_id[:MAX_NAME]!r} answers no tool_use of an earlier turn: send the turn that made the call",
                code="tool_call_not_found",
            )
        content, is_error = block.get("content"), block.get("is_error")
        if not isinstance(content, str | list | None):
            fail(f"{where}.content", "expected text or blocks")
        if not isinstance(is_error, bool | None):
            fail(f"{where}.is_error", "expected true or false")
        self._note_unread(block, "tool_result")
        parts: list[Part] = [TextPart(text=_TOOL_ERROR)] if is_error else []
        if isinstance(content, str):
            parts.append(TextPart(text=content))
        for i, inner in enumerate(content if isinstance(content, list) else ()):
            here = f"{where}.content[{i}]"
            if not isinstance(inner, dict):
                fail(here, "expected an object")
            if (part := self._read_part(_kind_of(inner, here), inner, here)) is not None:
                parts.append(part)
        return Message(role="tool", content=_join(parts, "tool"), tool_call_id=call_id)

    def _read_part(self, kind: str, block: dict[str, Json], where: str) -> Part | None:
        """None for what is left out."""
        if kind in ("thinking", "redacted_thinking"):
            self._ignored.add(f"messages[].content[]:{kind}")
            return None
        self._note_unread(block, kind)
        if kind == "text":
            return TextPart(text=_text_of(block, "text", where))
        if kind == "image":
            return _to_image_part(block, where)
        if kind == "document":
            return _to_document(block, where)
        if not _TOLD.fullmatch(kind):
            self._ignored.add(f"messages[].content[]:{kind[:MAX_NAME]}")
        check_opaque(block, where)
        told = {name: value for name, value in block.items() if name != "type"}
        return TextPart(text=f"[{kind}] {_to_json(_without_sealed(told))}\n")

    def _change_tools(self, kind: str, block: dict[str, Json], where: str) -> None:
        """Every declared tool is offered from the first turn on; what turns withdraw is not, what they bring is."""
        self._note_unread(block, kind)
        tool = block.get("tool")
        if not isinstance(tool, dict):
            fail(f"{where}.tool", "expected an object")
        definition = tool.get("definition") if kind == "tool_addition" else None
        if definition is not None and not isinstance(definition, dict):
            fail(f"{where}.tool.definition", "expected an object")
        if definition is not None and (function := self._read_tool(definition, f"{where}.tool.definition")) is not None:
            self._added[definition["name"]] = function
        name = tool.get("name") if definition is None else definition.get("name")
        if not isinstance(name, str):  # a whole set of a provider's tools, which is not offered anyway
            self._ignored.add(f"messages[].content[]:{kind}")
        elif kind == "tool_removal":
            self._removed.add(name)
        else:
            self._removed.discard(name)

    def read_tools(self, declared: list[dict[str, Json]]) -> Toolbox:
        """Call it after the conversation, which may have changed them."""
        offered: dict[str, Json] = {}
        for i, tool in enumerate(declared):
            function = self._read_tool(tool, f"tools[{i}]")
            if function is None:
                continue
            if tool["name"] in offered:
                fail(f"tools[{i}].name", f"{tool['name'][:MAX_NAME]!r} is declared twice")
            offered[tool["name"]] = function
        offered |= self._added
        pairs = [(_named(name), function) for name, function in offered.items() if name not in self._removed]
        return Toolbox.from_declared(pairs, left_out=self._left_out)

    def _read_tool(self, tool: dict[str, Json], where: str) -> Json | None:
        """None for a tool that only its provider can run, or that its own models know without a schema."""
        kind, schema, description = tool.get("type"), tool.get("input_schema"), tool.get("description")
        if not isinstance(kind, str | None):
            fail(f"{where}.type", "expected a string such as 'custom'")
        if schema is None and kind not in (None, "custom"):
            self._left_out.append(f"{where}:{kind[:MAX_NAME]}")
            return None
        name = _name_of(tool, "name", where)
        if not isinstance(schema, dict):
            fail(f"{where}.input_schema", "expected an object (JSON Schema)")
        if not isinstance(description, str | None):
            fail(f"{where}.description", "expected a string")
        if not isinstance(tool.get("strict"), bool | None):
            fail(f"{where}.strict", "expected true or false")
        check_opaque(schema, f"{where}.input_schema")
        self._ignored |= {f"tools[].{field}" for field in tool.keys() - _TOOL_FIELDS}
        return to_function(name, description=description, parameters=schema, strict=tool.get("strict"))

    def _note_unread(self, block: dict[str, Json], kind: str, where: str = "messages[].content[]") -> None:
        if kind in _FIELDS and (unread := block.keys() - _FIELDS[kind]):
            self._ignored |= {f"{where}.{name}" for name in unread}


def _kind_of(block: dict[str, Json], where: str) -> str:
    kind = block.get("type")
    if not isinstance(kind, str):
        fail(f"{where}.type", "expected a string such as 'text' or 'image'")
    return kind


def _text_of(block: Mapping[str, Json], field: str, where: str) -> str:
    text = block.get(field)
    if not isinstance(text, str):
        fail(f"{where}.{field}", "expected a string")
    return text


def _name_of(block: Mapping[str, Json], field: str, where: str) -> str:
    name = _text_of(block, field, where)
    if not name:
        fail(f"{where}.{field}", "expected a string that is not empty")
    return name


_SEPARATOR = {"assistant": "", "system": "\n\n", "tool": "\n"}
"""Blocks of an assistant's text are pieces of one text; those of the others stand for themselves."""


def _join(parts: list[Part], role: Literal["user", "assistant", "system", "tool"]) -> str | tuple[Part, ...]:
    """Text alone becomes one string, which is all that many workers take from anyone but the user."""
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    if len(texts) < len(parts) or (role == "user" and len(parts) != 1):
        return tuple(parts)
    return _SEPARATOR.get(role, "").join(texts)


def _to_image_part(block: dict[str, Json], where: str) -> ImagePart:
    source = _source_of(block, where)
    if source.get("type") == "base64":
        return ImagePart(
            url=f"data:{_media_type_of(source, where)};base64,{_text_of(source, 'data', f'{where}.source')}"
        )
    if source.get("type") == "url":
        return to_image(source, f"{where}.source")
    raise _unknown_source(source, where, "'base64' or 'url'")


def _to_document(block: dict[str, Json], where: str) -> Part:
    """Text as text, which every worker reads; a PDF verbatim, for workers that take it."""
    source = _source_of(block, where)
    kind = source.get("type")
    if kind == "text":
        return TextPart(text=_entitled(block, _text_of(source, "data", f"{where}.source")))
    if kind == "content" and isinstance(content := source.get("content"), str):
        return TextPart(text=_entitled(block, content))
    if kind == "base64":
        _media_type_of(source, where)
        _text_of(source, "data", f"{where}.source")
    elif kind == "url":
        to_image(source, f"{where}.source")  # the same addresses are safe
    elif kind != "content":
        raise _unknown_source(source, where, "'base64', 'url', 'text' or 'content'")
    raw = {name: block[name] for name in ("type", "source", "title", "context") if block.get(name) is not None}
    check_opaque(raw, where)
    return OtherPart(kind="document", raw=raw)


def _entitled(block: Mapping[str, Json], text: str) -> str:
    heads = [block[name] for name in ("title", "context") if isinstance(block.get(name), str)]
    return "\n\n".join([*heads, text])


def _source_of(block: Mapping[str, Json], where: str) -> dict[str, Json]:
    source = block.get("source")
    if not isinstance(source, dict):
        fail(f"{where}.source", "expected an object")
    return source


def _media_type_of(source: Mapping[str, Json], where: str) -> str:
    media_type = _text_of(source, "media_type", f"{where}.source")
    if not _MEDIA_TYPE.fullmatch(media_type):
        fail(f"{where}.source.media_type", f"{media_type[:MAX_NAME]!r}: expected one such as 'image/png'")
    return media_type


def _unknown_source(source: Mapping[str, Json], where: str, expected: str) -> RequestError:
    kind = source.get("type")
    why = "files are kept at their provider, where workers of others cannot read them" if kind == "file" else "unknown"
    param = f"{where}.source.type"
    return RequestError(
        f"{param}: {str(kind)[:MAX_NAME]!r}: {why}: expected {expected}", code="unsupported", param=param
    )


def _to_json(value: Json) -> str:
    return msgspec.json.encode(value).decode()


def _without_sealed(value: Json) -> Json:
    """Without what only the provider can read."""
    if isinstance(value, dict):
        return {k: _without_sealed(v) for k, v in value.items() if not k.startswith(_FOR_PROVIDER)}
    return [_without_sealed(item) for item in value] if isinstance(value, list) else value


def _named(name: str) -> Declared:
    return Declared(kind="function", name=name)


def _respell(message: Message, toolbox: Toolbox) -> Message:
    """With its calls named as workers know the tools."""
    if all(toolbox.spell(_named(call.name)) == call.name for call in message.tool_calls):
        return message
    calls = [msgspec.structs.replace(call, name=toolbox.spell(_named(call.name))) for call in message.tool_calls]
    return msgspec.structs.replace(message, tool_calls=tuple(calls))


def _to_tool_choice(
    choice: dict[str, Json] | None, toolbox: Toolbox, ignored: set[str]
) -> tuple[Json | None, bool | None]:
    """(`tool_choice`, `parallel_tool_calls`) as in chat completions."""
    if choice is None:
        return None, None
    kind, is_single = choice.get("type"), choice.get("disable_parallel_tool_use")
    if not isinstance(is_single, bool | None):
        fail("tool_choice.disable_parallel_tool_use", "expected true or false")
    ignored |= {f"tool_choice.{name}" for name in choice.keys() - {"type", "name", "disable_parallel_tool_use"}}
    if kind == "tool":
        wanted: Json = toolbox.force(_named(_name_of(choice, "name", "tool_choice")), where="tool_choice.name")
    elif isinstance(kind, str) and kind in _CHOICES:
        wanted = toolbox.choose_mode(_CHOICES[kind])
    else:
        fail("tool_choice.type", f"{str(kind)[:MAX_NAME]!r}: expected 'auto', 'any', 'tool' or 'none'")
    if wanted is None:  # it says nothing without tools
        ignored.add("tool_choice")
        return None, None
    return wanted, None if is_single is None else not is_single


_CHOICES: Mapping[str, str] = {"auto": "auto", "any": "required", "none": "none"}


def _to_effort(wire: _Wire, ignored: set[str]) -> str | None:
    """`output_config.effort` as it stands, else what a budget of thinking tokens comes to, else the worker's choice.

    `disabled` is not passed on: no word for it is known to all workers, and some refuse those that they do not know.
    """
    config, thinking = wire.output_config or {}, wire.thinking or {}
    ignored |= {f"output_config.{name}" for name in config.keys() - {"effort", "format"}}
    ignored |= {f"thinking.{name}" for name in thinking.keys() - {"type", "budget_tokens", "display"}}
    effort, budget = config.get("effort"), thinking.get("budget_tokens")
    if not isinstance(effort, str | None) or len(effort or "") > MAX_NAME:
        fail("output_config.effort", "expected a string such as 'high'")
    if thinking and not isinstance(thinking.get("type"), str):
        fail("thinking.type", "expected a string such as 'enabled'")
    if budget is not None and (not isinstance(budget, int) or isinstance(budget, bool) or budget < 1):
        fail("thinking.budget_tokens", "expected an integer >= 1")
    if thinking.get("type") == "disabled":
        ignored.add("thinking")
    elif effort is None and budget is not None:
        return next((name for limit, name in _EFFORT_BELOW if budget < limit), "high")
    if budget is not None:
        ignored.add("thinking.budget_tokens")
    return effort


def _to_thinking(thinking: dict[str, Json] | None) -> Thinking:
    if not thinking or thinking.get("type") == "disabled":
        return "none"
    return "omitted" if thinking.get("display") == "omitted" else "shown"


def _to_response_format(wire: _Wire) -> Json | None:
    field = "output_format" if wire.output_format is not None else "output_config.format"
    form = wire.output_format if wire.output_format is not None else (wire.output_config or {}).get("format")
    if form is None:
        return None
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        fail(f"{field}.type", "expected 'json_schema'")
    schema = form.get("schema")
    if not isinstance(schema, dict):
        fail(f"{field}.schema", "expected an object (JSON Schema)")
    check_opaque(schema, f"{field}.schema")
    # `strict` demands more of a schema than this dialect does; one that falls short would be refused outright.
    strict = {"strict": True} if is_strict(schema) else {}
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": schema, **strict}}


def _find_session(user: str | None) -> str | None:
    """Claude Code writes JSON there; its older versions `user_…_account_…_session_…`."""
    if user is None:
        return None
    if (written := _SESSION_IN_USER.search(user)) is not None:
        return written[1]
    try:
        fields = decode(user.encode())
    except RequestError:
        return None
    session = fields.get("session_id") if isinstance(fields, dict) else None
    return session if isinstance(session, str) and session else None
