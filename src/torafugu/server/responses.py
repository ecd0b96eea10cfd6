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
from typing import Annotated, Literal, Protocol

import msgspec

from ..errors import RequestError
from ..orchestrate import Run
from ..pool.backend import Delta
from ..types import ImagePart, Json, Message, OtherPart, Part, Reply, Request, Role, Sampling, TextPart, ToolCall
from .chat import (
    _MAX_IGNORED,
    _MAX_MESSAGES,
    _MAX_NAME,
    _MAX_PARTS,
    _MAX_TOOLS,
    _PENALTY,
    _check_opaque,
    _decode,
    _encode,
    _fail,
    _invalid_json,
    _to_request_error,
    _usage_of_others,
    describe_run,
)
from .dialect import COMMENT
from .toolbox import Declared, Kind, Toolbox, arguments_to_input, input_to_arguments

__all__ = [
    "Draft",
    "Problem",
    "Responses",
    "ResponsesEvents",
    "parse_responses",
    "read_responses",
    "response_id_of",
    "run_id_of",
    "run_to_body",
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
_FINAL_CODES = frozenset({"budget_exhausted", "bad_plan", "worker_auth"})
"""Server's faults that come again, at the same price, however often the client tries."""
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
    effort: Annotated[str, msgspec.Meta(max_length=_MAX_NAME)] | None = None
    summary: str | None = None


_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=_MAX_NAME)]
_Items = Annotated[list[dict[str, Json]], msgspec.Meta(max_length=_MAX_MESSAGES)]
_Penalty = Annotated[float, _PENALTY]


class _WireResponses(msgspec.Struct):
    """The fields that are read."""

    model: _Id
    input: str | _Items | None = None
    instructions: str | None = None
    previous_response_id: _Id | None = None
    stream: bool | None = None
    stream_options: dict[str, Json] | None = None
    store: bool | None = None
    include: Annotated[list[str], msgspec.Meta(max_length=_MAX_IGNORED)] | None = None
    metadata: Annotated[dict[str, str], msgspec.Meta(max_length=_MAX_IGNORED)] | None = None
    text: _Text | None = None
    reasoning: _Reasoning | None = None
    max_output_tokens: Annotated[int, msgspec.Meta(ge=1, le=_MAX_TOKENS)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    tools: Annotated[list[dict[str, Json]], msgspec.Meta(max_length=_MAX_TOOLS)] | None = None
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
            _fail("previous_response_id", problem, code="previous_response_not_found")
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
    value = _read_json(body)
    try:
        wire = msgspec.convert(value, _WireResponses)
    except msgspec.ValidationError as error:
        raise _to_request_error(str(error)) from None
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


def _read_json(body: bytes) -> Json:
    try:
        return _decode(body)
    except UnicodeDecodeError as error:
        raise _invalid_json(f"not UTF-8: {error.reason}") from None
    except msgspec.DecodeError as error:  # its text says at which byte
        at = f" (byte {len(body)})" if "truncated" in str(error) else ""
        raise _invalid_json(f"{error}{at}") from None
    except RecursionError:
        raise _invalid_json("nested too deeply") from None
    except ValueError:  # an integer of thousands of digits
        raise _invalid_json("a number is out of range") from None


def _check_count(ignored: Set[str]) -> None:
    if len(ignored) > _MAX_IGNORED:
        raise RequestError(f"the body has {len(ignored)} unknown fields: expected at most {_MAX_IGNORED}")


def _refuse_unsupported(wire: _WireResponses) -> None:
    if wire.background not in (None, False):
        _fail("background", "not supported: leave it out and wait, or stream", code="unsupported")
    if wire.conversation is not None:
        problem = "not supported: use previous_response_id, or send the conversation as input"
        _fail("conversation", problem, code="unsupported")
    if wire.prompt is not None:
        _fail("prompt", "no prompts are stored here: send it as instructions and input", code="unsupported")
    if wire.top_logprobs not in (None, 0) or "message.output_text.logprobs" in (wire.include or ()):
        name = "include" if wire.top_logprobs in (None, 0) else "top_logprobs"
        _fail(name, "log probabilities are not supported: leave them out", code="unsupported")


def _parse(
    wire: _WireResponses, unread: frozenset[str], earlier: Sequence[Json], stored: Mapping[str, Json]
) -> Responses:
    for i, tool in enumerate(wire.tools or ()):
        _check_opaque(tool, f"tools[{i}]")
    _check_opaque(wire.tool_choice, "tool_choice")
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
        _fail("input", "missing: expected text or a list of items")
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
    _check_opaque(form, "text.format")
    kind = form.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "json_object"}
    if kind != "json_schema":
        _fail("text.format.type", "expected 'text', 'json_object' or 'json_schema'")
    if not isinstance(form.get("name"), str):
        _fail("text.format.name", "expected a string")
    if not isinstance(form.get("schema"), dict):
        _fail("text.format.schema", "expected an object (JSON Schema)")
    told = {key: form[key] for key in ("name", "description", "schema", "strict") if form.get(key) is not None}
    return {"type": "json_schema", "json_schema": told}


def _echo(wire: _WireResponses) -> dict[str, Json]:
    form = (wire.text.format if wire.text else None) or {"type": "text"}
    if form["type"] == "json_schema":
        form = {**form, "description": form.get("description"), "strict": bool(form.get("strict"))}
    verbosity = {"verbosity": wire.text.verbosity} if wire.text and wire.text.verbosity else {}
    reasoning = wire.reasoning or _Reasoning()
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
        "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary},
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
                _fail(f"input[{i}].id", f"item {id[:_MAX_NAME]!r} is not stored: send the item itself")
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
        _check_opaque(item, where)  # also what is not read is kept where items are stored
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
            _fail(f"{where}.type", "expected a string such as 'message' or 'function_call'")
        self.ignored |= {f"input[].{name}" for name in item.keys() - _KNOWN_IN_ITEM}

    def to_messages(self) -> tuple[Message, ...]:
        for call_id, (_, where) in self._waiting.items():
            _fail(where, f"call {call_id[:_MAX_NAME]!r} has no output: send its function_call_output after it")
        messages: list[Message] = []
        for turn in self._turns:
            messages += [Message(role=turn.role, content=turn.content, tool_calls=tuple(turn.calls)), *turn.outputs]
        return tuple(messages)

    def _add_message(self, item: Mapping[str, Json], where: str) -> None:
        role = item.get("role")
        if role not in ("user", "assistant", "system", "developer"):
            _fail(f"{where}.role", "expected 'user', 'assistant', 'system' or 'developer'")
        self.say(role, self._to_content(item.get("content"), f"{where}.content"))

    def _add_call(self, item: Mapping[str, Json], where: str, kind: Kind, arguments: str) -> None:
        call_id, name = _read_name(item, "call_id", where), _read_name(item, "name", where)
        namespace = item.get("namespace")
        if not isinstance(namespace, str | None):
            _fail(f"{where}.namespace", "expected a string")
        if call_id in self._waiting:
            _fail(f"{where}.call_id", f"{call_id[:_MAX_NAME]!r} is already the id of a call that has no output yet")
        if not self._turns or self._turns[-1].role != "assistant" or self._turns[-1].outputs:
            self._turns.append(_Turn("assistant", None))
        inside = self._toolbox.spell(Declared(kind=kind, name=name, namespace=namespace or None))
        self._turns[-1].calls.append(ToolCall(id=call_id, name=inside, arguments=arguments))
        self._waiting[call_id] = (self._turns[-1], where)

    def _add_output(self, item: Mapping[str, Json], where: str) -> None:
        call_id = _read_name(item, "call_id", where)
        if call_id not in self._waiting:
            _fail(f"{where}.call_id", f"no call {call_id[:_MAX_NAME]!r} that waits for an output stands before it")
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
            _fail(where, "expected text or a list of parts")
        if len(value) > _MAX_PARTS:
            _fail(where, f"{len(value)} parts: expected at most {_MAX_PARTS}")
        parts = tuple([self._to_part(part, f"{where}[{i}]") for i, part in enumerate(value)])
        if len(parts) == 1 and isinstance(parts[0], TextPart):
            return parts[0].text
        return parts or ""

    def _to_part(self, part: Json, where: str) -> Part:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            _fail(f"{where}.type" if isinstance(part, dict) else where, "expected a part such as 'input_text'")
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
    return f"[{kind}] {_encode(told).decode()}"


def _read_text(item: Mapping[str, Json], key: str, where: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        _fail(f"{where}.{key}", "expected a string")
    return value


def _read_name(item: Mapping[str, Json], key: str, where: str) -> str:
    name = _read_text(item, key, where)
    if not name:
        _fail(f"{where}.{key}", "expected a string that is not empty")
    return name


def _to_image(part: Mapping[str, Json], where: str) -> ImagePart:
    url, detail = part.get("image_url"), part.get("detail")
    if url is None and part.get("file_id") is not None:
        _fail(
            f"{where}.file_id",
            "no files are stored here: send image_url, as an https: or data: URL",
            code="unsupported",
        )
    # No other schemes: the worker fetches it, and it may sit where `http:` or `file:` reach more than the client may.
    if not isinstance(url, str) or not url[:8].lower().startswith(("https://", "data:")):
        _fail(f"{where}.image_url", "expected an https: or data: URL")
    if not isinstance(detail, str | None):
        _fail(f"{where}.detail", "expected a string")
    return ImagePart(url=url, detail=detail)


def _to_file(part: Mapping[str, Json], where: str) -> OtherPart:
    """In the form of chat completions, which knows files by their content only."""
    for name in ("file_id", "file_url"):
        if part.get(name) is not None:
            _fail(f"{where}.{name}", "files are neither stored nor fetched here: send file_data", code="unsupported")
    wire = {"file_data": _read_name(part, "file_data", where)}
    if part.get("filename") is not None:
        wire["filename"] = _read_name(part, "filename", where)
    return OtherPart(kind="file", raw={"type": "file", "file": wire})


# --- what goes back ---


class Problem(Protocol):
    """What went wrong, as it would be told in an HTTP response."""

    @property
    def status(self) -> int: ...

    @property
    def code(self) -> str: ...

    @property
    def message(self) -> str: ...


def response_id_of(run_id: str) -> str:
    """The id under which clients know the run's answer."""
    return f"resp_{run_id}"


def run_id_of(response_id: str) -> str | None:
    """And back; None when it is no id of ours."""
    run_id = response_id.removeprefix("resp_")
    return run_id if run_id != response_id and run_id.startswith("run_") else None


def run_to_body(run: Run, reply: Reply, *, asked: Responses, created: int, policy: str) -> bytes:
    """The whole answer as a `response` object."""
    output: list[Json] = []

    def id_of(prefix: str) -> str:
        return _item_id(prefix, run.id, len(output))

    if reply.reasoning:
        output.append(_reasoning_item(id_of("rs"), reply.reasoning))
    if reply.text or not (reply.tool_calls or output):
        status = _status(reply) if not reply.tool_calls else "completed"
        output.append(_message_item(id_of("msg"), reply.text, status))
    for call in reply.tool_calls:
        output.append(_call_item(id_of("fc"), call, asked.toolbox.find(call.name)))
    return _encode(_ended(run, reply, asked, output, created=created, policy=policy))


def _item_id(prefix: str, run_id: str, index: int) -> str:
    return f"{prefix}_{run_id}_{index}"


def _status(reply: Reply) -> str:
    return "incomplete" if reply.finish_reason in ("length", "content_filter") else "completed"


def _reasoning_item(id: str, text: str) -> dict[str, Json]:
    return {"type": "reasoning", "id": id, "summary": [_summary(text)], "encrypted_content": None}


def _summary(text: str) -> dict[str, Json]:
    return {"type": "summary_text", "text": text}


def _message_item(id: str, text: str, status: str) -> dict[str, Json]:
    return {"type": "message", "id": id, "status": status, "role": "assistant", "content": [_output_text(text)]}


def _output_text(text: str) -> dict[str, Json]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _call_item(id: str, call: ToolCall, declared: Declared) -> dict[str, Json]:
    head = {"id": id, "status": "completed", "call_id": call.id, "name": declared.name}
    if declared.namespace is not None:
        head["namespace"] = declared.namespace
    if declared.kind == "custom":
        return {"type": "custom_tool_call", **head, "input": arguments_to_input(call.arguments)}
    return {"type": "function_call", **head, "arguments": call.arguments}


def _resource(
    asked: Responses, *, run_id: str, created: int, status: str, output: Sequence[Json] = (), error: Json = None
) -> dict[str, Json]:
    """All fields that the API has, at whatever stage; the rest is null until the end."""
    return {
        "id": response_id_of(run_id),
        "object": "response",
        "created_at": created,
        "completed_at": None,
        "status": status,
        "error": error,
        "incomplete_details": None,
        "output": output,
        "usage": None,
        **asked.echo,
    }


def _ended(
    run: Run, reply: Reply, asked: Responses, output: Sequence[Json], *, created: int, policy: str
) -> dict[str, Json]:
    assert run.stopped is not None
    status, latency_ms = _status(reply), run.stopped.latency_ms
    told = _resource(asked, run_id=run.id, created=created, status=status, output=output)
    if status == "incomplete":
        told["incomplete_details"] = {
            "reason": "max_output_tokens" if reply.finish_reason == "length" else "content_filter"
        }
    elif latency_ms is not None:
        told["completed_at"] = created + round(latency_ms / 1e3)
    return {**told, "usage": _from_usage(run, reply), "fugu": describe_run(run, policy)}


def _from_usage(run: Run, reply: Reply) -> dict[str, Json] | None:
    """The answer's own tokens, and beside them all others that the run spent; null when the provider did not count.

    The details must be numbers: clients that are strict (Codex) fail on null, and repeat the whole turn.
    """
    own = reply.usage
    if own.input_tokens is None or own.output_tokens is None:
        return None
    others = _usage_of_others(run, own)
    return {
        "input_tokens": own.input_tokens,
        "input_tokens_details": {
            "cached_tokens": own.cached_input_tokens or 0,
            "cache_write_tokens": own.cache_write_tokens or 0,
            "orchestration_input_tokens": others.input_tokens,
            "orchestration_input_cached_tokens": others.cached_input_tokens,
        },
        "output_tokens": own.output_tokens,
        "output_tokens_details": {
            "reasoning_tokens": own.reasoning_tokens or 0,
            "orchestration_output_tokens": others.output_tokens,
        },
        "total_tokens": own.input_tokens + own.output_tokens,
    }


class ResponsesEvents:
    """One streamed answer as frames of events. Each method returns the bytes of the next ones.

    One item is open at a time. Reasoning that comes when the text has begun waits until the text is over.
    """

    heartbeat = COMMENT

    def __init__(self, asked: Responses, *, run_id: str, created: int) -> None:
        self._asked = asked
        self._run_id = run_id
        self._created = created
        self._count = 0
        self._has_begun = False
        self._open: Literal["reasoning", "message"] | None = None
        self._pieces: list[str] = []
        """Of the open item."""
        self._late: list[str] = []
        self._output: list[Json] = []
        self.body: bytes | None = None
        """The whole answer, as it was told in pieces; None until `last`."""

    def first(self) -> bytes:
        """That there will be an answer, before any of it."""
        self._has_begun = True
        response = self._resource("in_progress")
        return self._frame("response.created", response=response) + self._frame(
            "response.in_progress", response=response
        )

    def delta(self, delta: Delta) -> bytes:
        """A piece of text, of reasoning, or of both; nothing, when the piece has to wait."""
        frames = b""
        if delta.reasoning:
            frames += self._add_reasoning(delta.reasoning)
        if delta.text:
            frames += self._add_text(delta.text)
        return frames

    def tool_calls(self, calls: tuple[ToolCall, ...]) -> bytes:
        """Each call as an item of its own, its arguments in one piece."""
        return (self._close() if calls else b"") + b"".join([self._call(call) for call in calls])

    def last(self, run: Run, reply: Reply, *, policy: str) -> bytes:
        """The end of what is open, and then the whole answer."""
        frames = self._close(_status(reply))
        if not self._output:
            frames += self._open_message() + self._close(_status(reply))
        told = _ended(run, reply, self._asked, self._output, created=self._created, policy=policy)
        self.body = _encode(told)
        return frames + self._frame(f"response.{told['status']}", response=msgspec.Raw(self.body))

    def error(self, problem: Problem) -> bytes:
        """That it failed; the connection has to break after it. Both forms in which clients look for an error."""
        frames = b"" if self._has_begun else self.first()
        code = _to_failure_code(problem)
        told = {"code": code, "message": problem.message, "param": None}
        frames += self._frame("error", **told, error={"type": _to_failure_type(problem), **told})
        output = [*self._output, *self._unfinished()]
        response = self._resource("failed", output=output, error={"code": code, "message": problem.message})
        return frames + self._frame("response.failed", response=response)

    def _frame(self, kind: str, **fields: Json) -> bytes:
        data = _encode({"type": kind, "sequence_number": self._count, **fields})
        self._count += 1
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"

    def _resource(self, status: str, *, output: Sequence[Json] = (), error: Json = None) -> Json:
        return _resource(
            self._asked, run_id=self._run_id, created=self._created, status=status, output=output, error=error
        )

    def _id(self, prefix: str) -> str:
        return _item_id(prefix, self._run_id, len(self._output))

    def _at(self, prefix: str, part: str) -> dict[str, Json]:
        return {"item_id": self._id(prefix), "output_index": len(self._output), part: 0}

    def _item(self, stage: Literal["added", "done"], item: Json) -> bytes:
        return self._frame(f"response.output_item.{stage}", output_index=len(self._output), item=item)

    def _add_reasoning(self, text: str) -> bytes:
        if self._open == "message":
            self._late.append(text)
            return b""
        frames = b""
        at = self._at("rs", "summary_index")
        if self._open is None:
            self._open = "reasoning"
            frames += self._item("added", {**_reasoning_item(at["item_id"], ""), "summary": []})
            frames += self._frame("response.reasoning_summary_part.added", **at, part=_summary(""))
        self._pieces.append(text)
        return frames + self._frame("response.reasoning_summary_text.delta", **at, delta=text)

    def _add_text(self, text: str) -> bytes:
        frames = self._open_message()
        self._pieces.append(text)
        return frames + self._frame(
            "response.output_text.delta", **self._at("msg", "content_index"), delta=text, logprobs=[]
        )

    def _open_message(self) -> bytes:
        if self._open == "message":
            return b""
        frames = self._close()
        self._open = "message"
        at = self._at("msg", "content_index")
        frames += self._item("added", {**_message_item(at["item_id"], "", "in_progress"), "content": []})
        return frames + self._frame("response.content_part.added", **at, part=_output_text(""))

    def _close(self, status: str = "completed") -> bytes:
        """End the item that is open, if one is, and what had to wait for its end."""
        text, kind = "".join(self._pieces), self._open
        self._open = None
        self._pieces = []
        if kind is None:
            return b""
        if kind == "reasoning":
            return self._close_reasoning(text)
        frames = self._close_message(text, status)
        if self._late:
            late, self._late = "".join(self._late), []
            frames += self._add_reasoning(late) + self._close()
        return frames

    def _close_reasoning(self, text: str) -> bytes:
        at = self._at("rs", "summary_index")
        item = _reasoning_item(at["item_id"], text)
        frames = self._frame("response.reasoning_summary_text.done", **at, text=text)
        frames += self._frame("response.reasoning_summary_part.done", **at, part=_summary(text))
        return frames + self._finish_item(item)

    def _close_message(self, text: str, status: str) -> bytes:
        at = self._at("msg", "content_index")
        item = _message_item(at["item_id"], text, status)
        frames = self._frame("response.output_text.done", **at, text=text, logprobs=[])
        frames += self._frame("response.content_part.done", **at, part=_output_text(text))
        return frames + self._finish_item(item)

    def _call(self, call: ToolCall) -> bytes:
        item = _call_item(self._id("fc"), call, self._asked.toolbox.find(call.name))
        is_custom = item["type"] == "custom_tool_call"
        name, event = ("input", "custom_tool_call_input") if is_custom else ("arguments", "function_call_arguments")
        at = {"item_id": item["id"], "output_index": len(self._output)}
        frames = self._item("added", {**item, "status": "in_progress", name: ""})
        frames += self._frame(f"response.{event}.delta", **at, delta=item[name])
        frames += self._frame(f"response.{event}.done", **at, **{name: item[name]})
        return frames + self._finish_item(item)

    def _finish_item(self, item: Json) -> bytes:
        frame = self._item("done", item)
        self._output.append(item)
        return frame

    def _unfinished(self) -> list[Json]:
        text = "".join(self._pieces)
        if self._open == "reasoning":
            return [_reasoning_item(self._id("rs"), text)]
        return [_message_item(self._id("msg"), text, "incomplete")] if self._open == "message" else []


def _to_failure_code(problem: Problem) -> str:
    """The codes by which Codex decides: it tries again on all but `context_length_exceeded` and `invalid_prompt`, of
    which it shows the message."""
    if problem.code == "context_length_exceeded":
        return problem.code
    if problem.status == 429:
        return "rate_limit_exceeded"
    return "invalid_prompt" if problem.status < 500 or problem.code in _FINAL_CODES else "server_error"


def _to_failure_type(problem: Problem) -> str:
    if problem.status == 429:
        return "rate_limit_error"
    return "server_error" if problem.status >= 500 else "invalid_request_error"
