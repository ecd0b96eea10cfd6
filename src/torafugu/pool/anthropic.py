"""The wire dialect of Anthropic's messages: what is said in our words, said in theirs, and back.

Pure translation; the network is in `http.py`. What their API has no words for: `seed` and the penalties are hints that
are left out, and so is `reasoning_effort` where the worker's `efforts` do not say what its model knows (thinking itself
is switched in `extra_body`); JSON output without a schema, and tools that are not functions, are refused, so that the
pool asks a worker that can.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

import aiohttp
import msgspec

from ..errors import WorkerError
from ..types import FinishReason, ImagePart, Json, Message, Part, Sampling, TextPart, ToolCall, Usage
from .backend import Completion, Delta, Query
from .documents import to_document
from .http import HttpBackend, Wire, read_key
from .schemas import close_objects, mend_function
from .spec import WorkerSpec, fit_sampling, output_limit
from .turns import Shape, arrange

__all__ = ["WIRE", "build_body", "make_anthropic", "read_answer"]

_log = logging.getLogger(__name__)

API_VERSION = "2023-06-01"
DEFAULT_MAX_TOKENS = 8192
"""Their API demands a limit. Every model since 2024 can write this much; `max_output_tokens` of a worker raises it."""


def make_anthropic(spec: WorkerSpec, session: aiohttp.ClientSession, environ: Mapping[str, str]) -> HttpBackend:
    """The backend of a worker that speaks messages.

    Raises:
        ConfigError: its key is not in the environment.
    """
    return HttpBackend(spec, WIRE, session, key=read_key(spec, environ))


# --- what we send ---


_SHAPE = Shape(
    call_id=re.compile(r"[A-Za-z0-9_-]+"),
    rich_roles=frozenset({"user", "tool"}),
    own_kinds=frozenset({"document"}),
)
_EMPTY: Mapping[str, Json] = {"type": "text", "text": "(empty)"}
"""Stands for a turn that says nothing: their API refuses it, and dropped it would change whose turn it is."""
_IMAGE_TYPES = {"image/jpg": "image/jpeg"}  # a name in use that they do not know


def build_body(spec: WorkerSpec, query: Query, stream: bool) -> dict[str, Json]:
    """The request's body; `extra_body` has the last word.

    Raises:
        WorkerError: `rejected`: the query cannot be said in this dialect.
    """
    sampling = fit_sampling(spec, query.sampling)
    shape = replace(_SHAPE, late_system="before_answers") if spec.late_system else _SHAPE
    messages = arrange(query.messages, shape)
    system = messages.pop(0).text if messages and messages[0].role == "system" else None
    limit = output_limit(spec, sampling.max_output_tokens) or spec.max_output_tokens or DEFAULT_MAX_TOKENS
    wanted: dict[str, Json] = {
        "system": system,
        # Theirs ends at 1, and newer models refuse two ways at once to say the same.
        "temperature": None if sampling.temperature is None else min(sampling.temperature, 1.0),
        "top_p": sampling.top_p if sampling.temperature is None else None,
        "stop_sequences": list(sampling.stop) or None,
        **_tools(sampling, messages, spec.id),
        "output_config": _output_config(sampling, spec.id),
        "stream": stream or None,
    }
    return {
        "model": spec.model,
        "max_tokens": limit,
        "messages": _turns(messages, spec.id),
        **{name: value for name, value in wanted.items() if value is not None},
        **spec.extra_body,
    }


def _turns(messages: Iterable[Message], worker: str) -> list[dict[str, Json]]:
    """Roles alternate there, the user first: what one side says in a row is one turn; tool results are the user's."""
    turns: list[dict[str, Json]] = []
    for message in messages:
        role = "user" if message.role == "tool" else message.role
        blocks = _blocks_of_message(message, worker)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    if turns and turns[-1]["role"] == "assistant":
        _open_end(turns)
    if not turns or turns[0]["role"] != "user":
        turns.insert(0, {"role": "user", "content": []})
    for turn in turns:
        turn["content"] = turn["content"] or [dict(_EMPTY)]
    return turns


def _open_end(turns: list[dict[str, Json]]) -> None:
    """An assistant's turn at the end is the beginning of its answer, which may neither be empty nor end in a blank."""
    content = turns[-1]["content"]
    if content and content[-1]["type"] == "text":
        content[-1] = {"type": "text", "text": content[-1]["text"].rstrip()}
    if not content:
        del turns[-1]


def _blocks_of_message(message: Message, worker: str) -> list[Json]:
    blocks = _blocks(message.content, worker)
    if message.role == "tool":
        content = {"content": blocks} if blocks else {}
        return [{"type": "tool_result", "tool_use_id": message.tool_call_id, **content}]
    for call in message.tool_calls:
        arguments = _decoded(call.arguments.strip() or "{}")
        if not isinstance(arguments, dict):
            raise _rejected(worker, f"the arguments of tool call {call.id!r} in the conversation are not a JSON object")
        blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": arguments})
    return blocks


def _blocks(content: str | tuple[Part, ...] | None, worker: str) -> list[Json]:
    """Blank text is left out: their API refuses blocks of it."""
    parts = (TextPart(text=content),) if isinstance(content, str) else content or ()
    return [_block(part, worker) for part in parts if not (isinstance(part, TextPart) and not part.text.strip())]


def _block(part: Part, worker: str) -> Json:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if isinstance(part, ImagePart):
        return {"type": "image", "source": _image_source(part, worker)}
    document = to_document(part)
    if document is None:
        raise _rejected(worker, f"a part of type {part.kind[:40]!r} that has no form in this dialect")
    return document


def _image_source(part: ImagePart, worker: str) -> Json:
    scheme, _, rest = part.url.partition(":")
    if scheme.lower() != "data":
        return {"type": "url", "url": part.url}
    head, comma, payload = rest.partition(",")
    media_type, _, encoding = head.rpartition(";")
    if not comma or encoding.lower() != "base64":
        raise _rejected(worker, f"an image's data: address starts with {part.url[:40]!r}, expected base64")
    media_type = media_type.partition(";")[0].lower()
    return {"type": "base64", "media_type": _IMAGE_TYPES.get(media_type, media_type), "data": payload}


def _tools(sampling: Sampling, messages: Iterable[Message], worker: str) -> dict[str, Json]:
    """`tools` and `tool_choice`. A conversation with calls is refused without tools: they are named then, but shut."""
    if sampling.tools:
        tools = [_tool(tool, worker) for tool in sampling.tools]
        return {"tools": tools, "tool_choice": _tool_choice(sampling, worker)}
    called = dict.fromkeys(call.name for message in messages for call in message.tool_calls)
    if not called:
        return {}
    stubs = [{"name": name, "input_schema": {"type": "object", "properties": {}}} for name in called]
    return {"tools": stubs, "tool_choice": {"type": "none"}}


def _tool(tool: Json, worker: str) -> Json:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _rejected(worker, "a tool that is not a function with a name")
    mended = mend_function(function)
    wire = {"name": function["name"], "input_schema": mended["parameters"]}
    if mended.get("strict"):  # models that cannot be strict refuse the field, whatever it says
        wire |= {"strict": True, "input_schema": close_objects(mended["parameters"])}
    return wire | ({} if mended.get("description") is None else {"description": mended["description"]})


def _tool_choice(sampling: Sampling, worker: str) -> Json:
    choice = sampling.tool_choice
    forms: Mapping[str, Json] = {"auto": {"type": "auto"}, "none": {"type": "none"}, "required": {"type": "any"}}
    if choice is None:
        wire: dict[str, Json] | None = {"type": "auto"} if sampling.parallel_tool_calls is False else None
    elif isinstance(choice, str) and choice in forms:
        wire = dict(forms[choice])
    elif isinstance(choice, dict) and isinstance(choice.get("function"), dict):
        wire = {"type": "tool", "name": choice["function"].get("name")}
    else:
        raise _rejected(
            worker, f"tool_choice {str(choice)[:100]!r}: expected auto, none, required or a function's name"
        )
    if wire is not None and sampling.parallel_tool_calls is False and wire["type"] != "none":
        wire["disable_parallel_tool_use"] = True
    return wire


def _output_config(sampling: Sampling, worker: str) -> Json:
    effort = {} if sampling.reasoning_effort is None else {"effort": sampling.reasoning_effort}
    return {**effort, **_output_format(sampling.response_format, worker)} or None


def _output_format(response_format: Json, worker: str) -> dict[str, Json]:
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if response_format is None or kind == "text":
        return {}
    schema = response_format.get("json_schema") if kind == "json_schema" else None
    if not isinstance(schema, dict) or not isinstance(schema.get("schema"), dict):
        raise _rejected(worker, f"response_format {kind!r}: this dialect knows JSON output by a schema only")
    return {"format": {"type": "json_schema", "schema": close_objects(schema["schema"])}}


def _rejected(worker: str, what: str) -> WorkerError:
    return WorkerError(f"worker {worker!r} cannot be asked: {what}", worker=worker, code="rejected")


def _decoded(text: str) -> Json:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None


# --- what comes back ---


class _Block(msgspec.Struct):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: Json = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    """Without what was read from or written to the cache."""
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    output_tokens: int | None = None
    """Thinking included."""


class _Answer(msgspec.Struct):
    content: list[_Block] | None = None
    stop_reason: str | None = None
    usage: _Usage | None = None
    id: str | None = None
    model: str | None = None
    error: Json = None


class _Delta(msgspec.Struct):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None


class _Event(msgspec.Struct):
    type: str = ""
    message: _Answer | None = None
    index: int = 0
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: _Usage | None = None
    error: Json = None


def read_answer(answer: _Answer, worker: str) -> Completion:
    """A whole answer as a completion.

    Raises:
        WorkerError: it holds no answer, or does not say why it stopped.
    """
    if answer.content is None:
        raise WorkerError(f"worker {worker!r}: an answer without content", worker=worker, code="malformed")
    calls = [
        (block, msgspec.json.encode({} if block.input is None else block.input).decode())
        for block in answer.content
        if block.type == "tool_use"
    ]
    return _completion(
        answer,
        text="".join(block.text or "" for block in answer.content if block.type == "text"),
        reasoning="".join(block.thinking or "" for block in answer.content if block.type == "thinking"),
        calls=calls,
        worker=worker,
    )


class _Assembler:
    """See `http.Assembler`."""

    def __init__(self, worker: str) -> None:
        self.has_begun = False
        self.is_complete = False
        self.is_over = False
        self._worker = worker
        self._answer = _Answer()
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, tuple[_Block, list[str]]] = {}

    def feed(self, data: _Event) -> Delta | None:
        if data.type == "message_start" and data.message is not None:
            self._answer.id, self._answer.model = data.message.id, data.message.model
            self._add_usage(data.message.usage)
        elif data.type == "content_block_start" and data.content_block is not None:
            return self._start_block(data.index, data.content_block)
        elif data.type == "content_block_delta" and data.delta is not None:
            return self._add_delta(data.index, data.delta)
        elif data.type == "message_delta":
            self._add_usage(data.usage)
            if data.delta is not None and data.delta.stop_reason:
                self._answer.stop_reason = data.delta.stop_reason
                self.is_complete = True
        elif data.type == "message_stop":
            self.is_over = True
        return None  # ping, content_block_stop, and events that are yet to be invented

    def _start_block(self, index: int, block: _Block) -> Delta | None:
        if block.type == "tool_use":
            self.has_begun = True
            self._calls[index] = (block, [])
            return None
        return self._pass_on(block.text or "", block.thinking or "")

    def _add_delta(self, index: int, delta: _Delta) -> Delta | None:
        if delta.type == "input_json_delta":
            if index in self._calls:  # a server's own tool, whose block we do not keep, also streams its input
                self._calls[index][1].append(delta.partial_json or "")
            return None
        return self._pass_on(delta.text or "", delta.thinking or "")

    def _pass_on(self, text: str, thinking: str) -> Delta | None:
        if not text and not thinking:
            return None
        self.has_begun = True
        self._texts.append(text)
        self._reasoning.append(thinking)
        return Delta(text=text, reasoning=thinking)

    def _add_usage(self, usage: _Usage | None) -> None:
        """The counts are cumulative, and come in pieces: the latest known of each holds."""
        if usage is None:
            return
        known = {name: value for name, value in msgspec.structs.asdict(usage).items() if value is not None}
        self._answer.usage = msgspec.structs.replace(self._answer.usage or _Usage(), **known)

    def completion(self) -> Completion:
        calls = []
        for _, (block, pieces) in sorted(self._calls.items()):
            whole = msgspec.json.encode(block.input).decode() if block.input else "{}"
            calls.append((block, "".join(pieces) or whole))
        return _completion(
            self._answer,
            text="".join(self._texts),
            reasoning="".join(self._reasoning),
            calls=calls,
            worker=self._worker,
        )


_STOP: Mapping[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


def _completion(
    answer: _Answer, *, text: str, reasoning: str, calls: list[tuple[_Block, str]], worker: str
) -> Completion:
    if answer.stop_reason is None:
        raise WorkerError(f"worker {worker!r}: an answer without a stop_reason", worker=worker, code="truncated")
    if answer.stop_reason not in _STOP:
        _log.warning("worker %r: unknown stop_reason %.40r is taken for 'end_turn'", worker, answer.stop_reason)
    return Completion(
        text=text,
        reasoning=reasoning or None,
        tool_calls=tuple(
            ToolCall(id=block.id or f"toolu_{index}", name=block.name or "", arguments=arguments)
            for index, (block, arguments) in enumerate(calls)
        ),
        finish_reason=_STOP.get(answer.stop_reason, "stop"),
        usage=_usage(answer.usage),
        provider_model=answer.model,
        provider_id=answer.id,
    )


def _usage(usage: _Usage | None) -> Usage:
    if usage is None:
        return Usage()
    cached, written = usage.cache_read_input_tokens, usage.cache_creation_input_tokens
    return Usage(
        input_tokens=None if usage.input_tokens is None else usage.input_tokens + (cached or 0) + (written or 0),
        cached_input_tokens=cached,
        cache_write_tokens=written,
        output_tokens=usage.output_tokens,
    )


def _headers(key: str | None) -> dict[str, str]:
    return {"anthropic-version": API_VERSION, **({} if key is None else {"x-api-key": key})}


WIRE = Wire(
    path="/messages",
    headers=_headers,
    build=build_body,
    answers=msgspec.json.Decoder(_Answer),
    read=read_answer,
    events=msgspec.json.Decoder(_Event),
    assemble=_Assembler,
)
