"""The Responses dialect: bytes <-> `Request` and `Run`. Nothing else knows this wire format.

As in `chat.py`: strict on what is used, naming it as `input[3].content[0]`; tolerant of the rest, whose names are kept;
what would change the answer and cannot be done is refused. A conversation arrives as items, in an order that workers
would not take: a call's output is put behind the call, and calls that stand together are one turn.

Ids of the answer and of its items are made from the run's. What was streamed and what is told whole are one object.
Where the format has a number and nothing is known it says 0 (cached tokens) or the API's default (temperature); the
record has it as unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec

from ..errors import RequestError
from ..types import ImagePart, Json, Message, OtherPart, Part, Request, Role, Sampling, TextPart, ToolCall
from .toolbox import Declared, Kind, Toolbox, input_to_arguments
from .wire import (
    MAX_IGNORED,
    MAX_MESSAGES,
    MAX_NAME,
    MAX_PARTS,
    MAX_TOOLS,
    PENALTY,
    check_opaque,
    decode,
    encode,
    fail,
    to_request_error,
)

__all__ = [
    "Draft",
    "Responses",
    "parse_responses",
    "read_responses",
]

_MAX_TOKENS = 2**31
_MAX_SHOWN = 100
_KNOWN_IN_ITEM = frozenset(
    {"type", "id", "status", "role", "content", "phase", "call_id", "name", "namespace", "arguments", "input", "output"}
)
_TEXT_FIELDS = {"refusal": "refusal"} | dict.fromkeys(("input_text", "output_text", "text"), "text")
"""Content parts that are text, and where it stands."""
_UNREADABLE = frozenset({"id", "status", "encrypted_content"})
"""Fields that say nothing to a model."""
_VERBOSITIES = frozenset({"low", "medium", "high"})
_SUMMARIES = frozenset({"auto", "concise", "detailed"})
"""Words that the answer may repeat; what a client sends beyond them is let pass, but would break the answer's type."""
_OTHER_FIELDS: Mapping[str, Json] = {
    "background": False,
    "conversation": None,
    "prompt": None,
    "service_tier": "default",
    "top_logprobs": 0,
    "truncation": "disabled",
}
"""Of every answer: what this server does, whatever was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Responses:
    """A request, and what its answer needs to know of it."""

    request: Request
    is_stream: bool
    is_stored: bool
    """The client wants to refer to the answer later; that is the API's default."""
    cache_key: str | None
    """`prompt_cache_key`: clients that send it keep it for a whole session."""
    previous_response_id: str | None
    toolbox: Toolbox
    items: tuple[Json, ...]
    """The input as items, references resolved, without what went before it: to be kept where the answer is stored."""
    echo: Mapping[str, Json]
    """The fields of the answer that repeat the request's."""


class _Text(msgspec.Struct):
    format: dict[str, Json] | None = None
    verbosity: str | None = None


class _Reasoning(msgspec.Struct):
    effort: Annotated[str, msgspec.Meta(max_length=MAX_NAME)] | None = None
    summary: str | None = None


_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]
_Items = Annotated[list[dict[str, Json]], msgspec.Meta(max_length=MAX_MESSAGES)]
_Penalty = Annotated[float, PENALTY]


class _WireResponses(msgspec.Struct):
    """The fields that are read."""

    model: _Id
    input: str | _Items | None = None
    instructions: str | None = None
    previous_response_id: _Id | None = None
    stream: bool | None = None
    stream_options: dict[str, Json] | None = None
    store: bool | None = None
    include: Annotated[list[str], msgspec.Meta(max_length=MAX_IGNORED)] | None = None
    metadata: Annotated[dict[str, str], msgspec.Meta(max_length=MAX_IGNORED)] | None = None
    text: _Text | None = None
    reasoning: _Reasoning | None = None
    max_output_tokens: Annotated[int, msgspec.Meta(ge=1, le=_MAX_TOKENS)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    tools: Annotated[list[dict[str, Json]], msgspec.Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Json = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, msgspec.Meta(ge=1, le=_MAX_TOKENS)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    service_tier: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # Read only to be refused:
    background: Json = None
    conversation: Json = None
    prompt: Json = None
    top_logprobs: Json = None


_KNOWN = frozenset(_WireResponses.__struct_fields__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A request whose references to what is stored have yet to be looked up, if it has any."""

    previous_response_id: str | None
    item_ids: tuple[str, ...]
    """Of the items that the input refers to."""
    _wire: _WireResponses
    _ignored: frozenset[str]

    def parse(self, *, earlier: Sequence[Json] | None = None, stored: Mapping[str, Json] | None = None) -> Responses:
        """
        Args:
            earlier: all items up to the previous response, its own included; None where there is no such response.
            stored: items by id, as far as they were found.

        Raises:
            RequestError: a field of the wrong kind, something asked for that cannot be done, or an unknown reference.
        """
        if self.previous_response_id is not None and earlier is None:
            problem = f"response {self.previous_response_id!r} does not exist"
            fail("previous_response_id", problem, code="previous_response_not_found")
        return _parse(self._wire, self._ignored, earlier or (), stored or {})


def parse_responses(
    body: bytes, *, earlier: Sequence[Json] | None = None, stored: Mapping[str, Json] | None = None
) -> Responses:
    """`read_responses` and `Draft.parse` in one, for who knows what the request refers to.

    Raises:
        RequestError: as those.
    """
    return read_responses(body).parse(earlier=earlier, stored=stored)


def read_responses(body: bytes) -> Draft:
    """
    Raises:
        RequestError: not JSON, a field of the wrong type, or something asked for that this server does not do.
    """
    value = decode(body)
    try:
        wire = msgspec.convert(value, _WireResponses)
    except msgspec.ValidationError as error:
        raise to_request_error(str(error)) from None
    _refuse_unsupported(wire)
    ignored = value.keys() - _KNOWN
    for name, struct in (("text", _Text), ("reasoning", _Reasoning)):
        ignored |= {f"{name}.{key}" for key in (value.get(name) or {}).keys() - set(struct.__struct_fields__)}
    _check_count(ignored)
    references = [item.get("id") for item in wire.input or () if isinstance(item, dict) and _is_reference(item)]
    return Draft(
        previous_response_id=wire.previous_response_id,
        item_ids=tuple([id for id in references if isinstance(id, str)]),
        _wire=wire,
        _ignored=frozenset(ignored),
    )


def _check_count(ignored: Set[str]) -> None:
    if len(ignored) > MAX_IGNORED:
        raise RequestError(f"the body has {len(ignored)} unknown fields: expected at most {MAX_IGNORED}")


def _refuse_unsupported(wire: _WireResponses) -> None:
    if wire.background not in (None, False):
        fail("background", "not supported: leave it out and wait, or stream", code="unsupported")
    if wire.conversation is not None:
        problem = "not supported: use previous_response_id, or send the conversation as input"
        fail("conversation", problem, code="unsupported")
    if wire.prompt is not None:
        fail("prompt", "no prompts are stored here: send it as instructions and input", code="unsupported")
    if wire.top_logprobs not in (None, 0) or "message.output_text.logprobs" in (wire.include or ()):
        name = "include" if wire.top_logprobs in (None, 0) else "top_logprobs"
        fail(name, "log probabilities are not supported: leave them out", code="unsupported")


def _parse(
    wire: _WireResponses, unread: frozenset[str], earlier: Sequence[Json], stored: Mapping[str, Json]
) -> Responses:
    for i, tool in enumerate(wire.tools or ()):
        check_opaque(tool, f"tools[{i}]")
    check_opaque(wire.tool_choice, "tool_choice")
    declared = Toolbox.from_responses(wire.tools or ())
    toolbox, tool_choice = declared.choose_responses(wire.tool_choice)
    items = _resolve(_to_items(wire.input), {**_by_id(earlier), **stored})
    history = _History(toolbox)
    if wire.instructions:
        history.say("system", wire.instructions)
    for i, item in enumerate(earlier):
        history.add(item, f"previous_response_id.input[{i}]")
    for i, item in enumerate(items):
        history.add(item, f"input[{i}]")
    if not items and not earlier:
        fail("input", "missing: expected text or a list of items")
    ignored = unread | history.ignored | _name_unused(wire, toolbox)
    _check_count(ignored)
    request = Request(
        model=wire.model,
        messages=history.to_messages(),
        sampling=_to_sampling(wire, toolbox, tool_choice),
        ignored=(*sorted(ignored), *toolbox.left_out),
    )
    return Responses(
        request=request,
        is_stream=bool(wire.stream),
        is_stored=wire.store is not False,
        cache_key=wire.prompt_cache_key,
        previous_response_id=wire.previous_response_id,
        toolbox=toolbox,
        items=tuple(items),
        echo=_echo(wire),
    )


def _name_unused(wire: _WireResponses, toolbox: Toolbox) -> set[str]:
    """Fields that we know and have no use for, where they ask for anything."""
    asked = {
        "max_tool_calls": wire.max_tool_calls is not None,  # only counts tools that the server runs
        "service_tier": wire.service_tier not in (None, "auto", "default"),
        "reasoning.summary": wire.reasoning is not None and wire.reasoning.summary not in (None, *_SUMMARIES),
        "stream_options": bool(wire.stream_options),
        "text.verbosity": wire.text is not None and wire.text.verbosity not in (None, "medium"),
        "truncation": wire.truncation == "auto",
        # Nothing to choose from: providers refuse them then, and some clients send them always.
        "tool_choice": wire.tool_choice is not None and not toolbox.functions,
        "parallel_tool_calls": wire.parallel_tool_calls is not None and not toolbox.functions,
    }
    return {name for name, is_asked in asked.items() if is_asked} | {
        f"include[]:{name[:_MAX_SHOWN]}" for name in wire.include or ()
    }


def _to_sampling(wire: _WireResponses, toolbox: Toolbox, tool_choice: Json | None) -> Sampling:
    return Sampling(
        max_output_tokens=wire.max_output_tokens,
        temperature=wire.temperature,
        top_p=wire.top_p,
        presence_penalty=wire.presence_penalty,
        frequency_penalty=wire.frequency_penalty,
        reasoning_effort=wire.reasoning.effort if wire.reasoning else None,
        response_format=_to_response_format(wire.text.format) if wire.text and wire.text.format else None,
        tools=toolbox.functions,
        tool_choice=tool_choice,
        parallel_tool_calls=wire.parallel_tool_calls if toolbox.functions else None,
    )


def _to_response_format(form: Mapping[str, Json]) -> Json | None:
    check_opaque(form, "text.format")
    kind = form.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "json_object"}
    if kind != "json_schema":
        fail("text.format.type", "expected 'text', 'json_object' or 'json_schema'")
    if not isinstance(form.get("name"), str):
        fail("text.format.name", "expected a string")
    if not isinstance(form.get("schema"), dict):
        fail("text.format.schema", "expected an object (JSON Schema)")
    if not isinstance(form.get("description"), str | None):
        fail("text.format.description", "expected a string")
    if not isinstance(form.get("strict"), bool | None):
        fail("text.format.strict", "expected true or false")
    told = {key: form[key] for key in ("name", "description", "schema", "strict") if form.get(key) is not None}
    return {"type": "json_schema", "json_schema": told}


def _echo(wire: _WireResponses) -> dict[str, Json]:
    form = (wire.text.format if wire.text else None) or {"type": "text"}
    if form["type"] == "json_schema":
        form = {**form, "description": form.get("description"), "strict": bool(form.get("strict"))}
    verbosity = {"verbosity": wire.text.verbosity} if wire.text and wire.text.verbosity in _VERBOSITIES else {}
    reasoning = wire.reasoning or _Reasoning()
    summary = reasoning.summary if reasoning.summary in _SUMMARIES else None
    return {
        **_OTHER_FIELDS,
        "frequency_penalty": wire.frequency_penalty or 0.0,
        "instructions": wire.instructions,
        "max_output_tokens": wire.max_output_tokens,
        "max_tool_calls": wire.max_tool_calls,
        "metadata": wire.metadata or {},
        "model": wire.model,
        "parallel_tool_calls": wire.parallel_tool_calls is not False,
        "presence_penalty": wire.presence_penalty or 0.0,
        "previous_response_id": wire.previous_response_id,
        "prompt_cache_key": wire.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort, "summary": summary},
        "safety_identifier": wire.safety_identifier,
        "store": wire.store is not False,
        "temperature": 1.0 if wire.temperature is None else wire.temperature,
        "text": {"format": form, **verbosity},
        "tool_choice": "auto" if wire.tool_choice is None else wire.tool_choice,
        "tools": [_echo_tool(tool) for tool in wire.tools or ()],
        "top_p": 1.0 if wire.top_p is None else wire.top_p,
        "user": wire.user,
    }


def _echo_tool(tool: dict[str, Json]) -> Json:
    return {"description": None, "parameters": None, "strict": None, **tool} if tool["type"] == "function" else tool


# --- items become messages ---


def _to_items(given: str | list[dict[str, Json]] | None) -> list[dict[str, Json]]:
    if not isinstance(given, str):
        return given or []
    return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": given}]}]


def _is_reference(item: Mapping[str, Json]) -> bool:
    kind = item.get("type")
    return kind == "item_reference" or (kind is None and "id" in item and item.keys() <= {"id", "type"})


def _by_id(items: Sequence[Json]) -> dict[str, Json]:
    return {item["id"]: item for item in items if isinstance(item.get("id"), str)}


def _resolve(items: Sequence[Json], known: Mapping[str, Json]) -> list[Json]:
    resolved = []
    for i, item in enumerate(items):
        if _is_reference(item):
            id = _read_name(item, "id", f"input[{i}]")
            if id not in known:
                fail(f"input[{i}].id", f"item {id[:MAX_NAME]!r} is not stored: send the item itself")
            item = known[id]
        resolved.append(item)
    return resolved


@dataclass(slots=True)
class _Turn:
    role: Role
    content: str | tuple[Part, ...] | None
    calls: list[ToolCall] = field(default_factory=list)
    outputs: list[Message] = field(default_factory=list)


class _History:
    """Puts messages together from items."""

    def __init__(self, toolbox: Toolbox) -> None:
        self.ignored: set[str] = set()
        self._toolbox = toolbox
        self._turns: list[_Turn] = []
        self._waiting: dict[str, tuple[_Turn, str]] = {}
        """Calls that have no output yet: the turn, and where the call stands."""

    def say(self, role: Role, content: str | tuple[Part, ...]) -> None:
        self._turns.append(_Turn(role, content))

    def add(self, item: Mapping[str, Json], where: str) -> None:
        check_opaque(item, where)  # also what is not read is kept where items are stored
        kind = item.get("type") or ("message" if "role" in item else None)
        if kind == "message":
            self._add_message(item, where)
        elif kind == "function_call":
            self._add_call(item, where, "function", _read_text(item, "arguments", where))
        elif kind == "custom_tool_call":
            self._add_call(item, where, "custom", input_to_arguments(_read_text(item, "input", where)))
        elif kind in ("function_call_output", "custom_tool_call_output"):
            self._add_output(item, where)
        elif kind == "reasoning":  # of a model that may not be the one that is asked now
            self.ignored.add("input[]:reasoning")
            return
        elif isinstance(kind, str):
            self._add_other(item, where, kind)
            return
        else:
            fail(f"{where}.type", "expected a string such as 'message' or 'function_call'")
        self.ignored |= {f"input[].{name}" for name in item.keys() - _KNOWN_IN_ITEM}

    def to_messages(self) -> tuple[Message, ...]:
        for call_id, (_, where) in self._waiting.items():
            fail(where, f"call {call_id[:MAX_NAME]!r} has no output: send its function_call_output after it")
        messages: list[Message] = []
        for turn in self._turns:
            messages += [Message(role=turn.role, content=turn.content, tool_calls=tuple(turn.calls)), *turn.outputs]
        return tuple(messages)

    def _add_message(self, item: Mapping[str, Json], where: str) -> None:
        role = item.get("role")
        if role not in ("user", "assistant", "system", "developer"):
            fail(f"{where}.role", "expected 'user', 'assistant', 'system' or 'developer'")
        self.say(role, self._to_content(item.get("content"), f"{where}.content"))

    def _add_call(self, item: Mapping[str, Json], where: str, kind: Kind, arguments: str) -> None:
        call_id, name = _read_name(item, "call_id", where), _read_name(item, "name", where)
        namespace = item.get("namespace")
        if not isinstance(namespace, str | None):
            fail(f"{where}.namespace", "expected a string")
        if call_id in self._waiting:
            fail(f"{where}.call_id", f"{call_id[:MAX_NAME]!r} is already the id of a call that has no output yet")
        if not self._turns or self._turns[-1].role != "assistant" or self._turns[-1].outputs:
            self._turns.append(_Turn("assistant", None))
        inside = self._toolbox.spell(Declared(kind=kind, name=name, namespace=namespace or None))
        self._turns[-1].calls.append(ToolCall(id=call_id, name=inside, arguments=arguments))
        self._waiting[call_id] = (self._turns[-1], where)

    def _add_output(self, item: Mapping[str, Json], where: str) -> None:
        call_id = _read_name(item, "call_id", where)
        if call_id not in self._waiting:
            fail(f"{where}.call_id", f"no call {call_id[:MAX_NAME]!r} that waits for an output stands before it")
        turn, _ = self._waiting.pop(call_id)
        content = self._to_content(item.get("output"), f"{where}.output")
        turn.outputs.append(Message(role="tool", content=content, tool_call_id=call_id))

    def _add_other(self, item: Mapping[str, Json], where: str, kind: str) -> None:
        """Items of tools that a provider ran, and such as are yet to be invented: told in words, so that nothing is
        lost. What a call says is the assistant's."""
        self.ignored.add(f"input[]:{kind[:_MAX_SHOWN]}")
        left_out = _UNREADABLE | ({"result"} if kind == "image_generation_call" else set())  # megabytes of base64
        self.say("assistant" if kind.endswith("_call") else "user", _render(item, kind, left_out))

    def _to_content(self, value: Json, where: str) -> str | tuple[Part, ...]:
        """A single text stands for itself: some servers take parts from users only."""
        if isinstance(value, str):
            return value
        if not isinstance(value, list):
            fail(where, "expected text or a list of parts")
        if len(value) > MAX_PARTS:
            fail(where, f"{len(value)} parts: expected at most {MAX_PARTS}")
        parts = tuple([self._to_part(part, f"{where}[{i}]") for i, part in enumerate(value)])
        if len(parts) == 1 and isinstance(parts[0], TextPart):
            return parts[0].text
        return parts or ""

    def _to_part(self, part: Json, where: str) -> Part:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            fail(f"{where}.type" if isinstance(part, dict) else where, "expected a part such as 'input_text'")
        if kind in _TEXT_FIELDS:
            return TextPart(text=_read_text(part, _TEXT_FIELDS[kind], where))
        if kind == "input_image":
            return _to_image(part, where)
        if kind == "input_file":
            return _to_file(part, where)
        if kind == "input_audio":  # the same in chat completions
            return OtherPart(kind=kind, raw=part)
        self.ignored.add(f"input[].content[]:{kind[:_MAX_SHOWN]}")
        return TextPart(text=_render(part, kind, _UNREADABLE))


def _render(item: Mapping[str, Json], kind: str, left_out: frozenset[str] | set[str]) -> str:
    told = {name: value for name, value in item.items() if name != "type" and name not in left_out}
    return f"[{kind}] {encode(told).decode()}"


def _read_text(item: Mapping[str, Json], key: str, where: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        fail(f"{where}.{key}", "expected a string")
    return value


def _read_name(item: Mapping[str, Json], key: str, where: str) -> str:
    name = _read_text(item, key, where)
    if not name:
        fail(f"{where}.{key}", "expected a string that is not empty")
    return name


def _to_image(part: Mapping[str, Json], where: str) -> ImagePart:
    url, detail = part.get("image_url"), part.get("detail")
    if url is None and part.get("file_id") is not None:
        fail(
            f"{where}.file_id",
            "no files are stored here: send image_url, as an https: or data: URL",
            code="unsupported",
        )
    # No other schemes: the worker fetches it, and it may sit where `http:` or `file:` reach more than the client may.
    if not isinstance(url, str) or not url[:8].lower().startswith(("https://", "data:")):
        fail(f"{where}.image_url", "expected an https: or data: URL")
    if not isinstance(detail, str | None):
        fail(f"{where}.detail", "expected a string")
    return ImagePart(url=url, detail=detail)


def _to_file(part: Mapping[str, Json], where: str) -> OtherPart:
    """In the form of chat completions, which knows files by their content only."""
    for name in ("file_id", "file_url"):
        if part.get(name) is not None:
            fail(f"{where}.{name}", "files are neither stored nor fetched here: send file_data", code="unsupported")
    wire = {"file_data": _read_name(part, "file_data", where)}
    if part.get("filename") is not None:
        wire["filename"] = _read_name(part, "filename", where)
    return OtherPart(kind="file", raw={"type": "file", "file": wire})
