"""The wire dialect of OpenAI-compatible chat completions: OpenAI, OpenRouter, Gemini, Mistral, vLLM, Ollama and more.

Pure translation, to the wire and back; the network is in `http.py`. Strict in what is sent, tolerant of what providers
make of the format: every tolerance below names who needs it. OpenAI itself takes conversations as clients order them;
most others render them by the template of a model, and get what the strictest of these accept (`turns.py`).
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import urlsplit

import aiohttp
import msgspec

from ..errors import WorkerError
from ..types import FinishReason, ImagePart, Json, Message, Part, TextPart, ToolCall, Usage
from .backend import Completion, Delta, Query
from .documents import to_file
from .http import HttpBackend, Wire, read_key
from .schemas import is_strict, mend_function
from .spec import DEFAULT_BASE_URL, WorkerSpec, fit_sampling, output_limit
from .turns import Shape, arrange

__all__ = ["WIRE", "build_body", "make_openai", "read_answer"]

_log = logging.getLogger(__name__)


def make_openai(spec: WorkerSpec, session: aiohttp.ClientSession, environ: Mapping[str, str]) -> HttpBackend:
    """The backend of a worker that speaks chat completions.

    Raises:
        ConfigError: its key is not in the environment.
    """
    return HttpBackend(spec, WIRE, session, key=read_key(spec, environ))


# --- what we send ---


_OPENAI = "api.openai.com"
_OTHERS = Shape(
    call_id=re.compile(r".{1,40}", re.DOTALL),  # OpenAI's limit, which those that pass on to it inherit
    rich_roles=frozenset({"user"}),
    is_alternating=True,
)
_SHAPES: Mapping[str | None, Shape] = {
    _OPENAI: replace(_OTHERS, late_system="anywhere", is_alternating=False),
    "api.mistral.ai": replace(_OTHERS, call_id=re.compile(r"[A-Za-z0-9]{9}"), is_bridged=True),
}


def build_body(spec: WorkerSpec, query: Query, stream: bool) -> dict[str, Json]:
    """The request's body; `extra_body` has the last word.

    Raises:
        WorkerError: `rejected`: a part of the conversation has no form in this dialect.
    """
    host = urlsplit(spec.base_url or DEFAULT_BASE_URL["openai"]).hostname
    is_openai = host == _OPENAI
    sampling = fit_sampling(spec, query.sampling)
    wanted: dict[str, Json] = {
        # OpenAI's reasoning models refuse the older name, most other servers do not know the newer one.
        "max_completion_tokens" if is_openai else "max_tokens": output_limit(spec, sampling.max_output_tokens),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "stop": list(sampling.stop) or None,
        "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "reasoning_effort": sampling.reasoning_effort,
        **_output_form(sampling.response_format),
        "tools": [_tool(tool) if is_openai else tool for tool in sampling.tools] or None,
        "tool_choice": sampling.tool_choice if sampling.tools else None,
        "parallel_tool_calls": sampling.parallel_tool_calls if sampling.tools else None,
    }
    shape = _SHAPES.get(host, _OTHERS)
    if spec.late_system is not None:
        shape = replace(shape, late_system="anywhere" if spec.late_system else "never")
    body: dict[str, Json] = {
        "model": spec.model,
        "messages": [_message(message, spec.id, is_openai=is_openai) for message in arrange(query.messages, shape)],
        **{name: value for name, value in wanted.items() if value is not None},
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body | dict(spec.extra_body)


def _output_form(response_format: Json | None) -> dict[str, Json]:
    """As it came; a grammar of ours stands in a field of its own, as llama.cpp's server takes it."""
    if isinstance(response_format, dict) and response_format.get("type") == "gbnf":
        return {"grammar": response_format["grammar"]}
    return {"response_format": response_format}


def _tool(tool: Json) -> Json:
    """OpenAI checks schemas. `strict` demands more of them here than elsewhere: one that falls short is not strict."""
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict):
        return tool
    mended = mend_function(function)
    if mended.get("strict") and not is_strict(mended["parameters"]):
        del mended["strict"]
    return {**tool, "function": mended}


def _message(message: Message, worker: str, *, is_openai: bool) -> dict[str, Json]:
    # Only OpenAI itself knows the developer role; elsewhere the same instruction is the system's.
    role = "system" if message.role == "developer" and not is_openai else message.role
    wire: dict[str, Json] = {"role": role, "content": _content(message.content, worker)}
    if message.tool_calls:
        wire["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        wire["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        wire["name"] = message.name
    return wire


def _content(content: str | tuple[Part, ...] | None, worker: str) -> Json:
    if content is None or isinstance(content, str):
        return content
    return [wire for part in content for wire in _wire_parts(part, worker)]


def _wire_parts(part: Part, worker: str) -> list[Json]:
    if isinstance(part, TextPart):
        return [{"type": "text", "text": part.text}]
    if isinstance(part, ImagePart):
        detail = {} if part.detail is None else {"detail": part.detail}
        return [{"type": "image_url", "image_url": {"url": part.url, **detail}}]
    wire = to_file(part)
    if wire is None:
        what = f"the conversation holds a part of type {part.kind[:40]!r} that has no form in this dialect"
        raise WorkerError(f"worker {worker!r} cannot be asked: {what}", worker=worker, code="rejected")
    return wire


# --- what comes back ---


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, Json] | None = None
    """JSON text; Ollama's older versions send the object itself."""


class _ToolCall(msgspec.Struct):
    index: int | None = None
    """Of a streamed piece; Gemini leaves it out or repeats it."""
    id: str | None = None
    function: _Function | None = None


class _Message(msgspec.Struct):
    content: str | list[Json] | None = None
    """A list from Mistral's reasoning models."""
    refusal: str | None = None
    reasoning_content: str | None = None
    """DeepSeek, vLLM, llama.cpp."""
    reasoning: str | None = None
    """OpenRouter, Groq, Ollama."""
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: str | None = None


class _Answer(msgspec.Struct):
    """A whole answer, or one chunk of a stream."""

    choices: list[_Choice] | None = None
    usage: Json = None
    id: str | None = None
    model: str | None = None
    error: Json = None


def read_answer(answer: _Answer, worker: str) -> Completion:
    """A whole answer as a completion.

    Raises:
        WorkerError: it holds no answer, or says that it failed.
    """
    choice = answer.choices[0] if answer.choices else None
    message = None if choice is None else choice.message
    if choice is None or message is None:
        raise _malformed(worker, "an answer without a message")
    text, reasoning = _texts(message)
    calls = tuple(
        _Call(id=call.id, name=_name(call), arguments=_arguments(call)).whole() for call in message.tool_calls or ()
    )
    return Completion(
        text=text,
        reasoning=reasoning or None,
        tool_calls=calls,
        finish_reason=_finish_reason(choice.finish_reason, has_calls=bool(calls), worker=worker),
        usage=_usage(answer.usage),
        provider_model=answer.model,
        provider_id=answer.id,
    )


class _Assembler:
    """See `http.Assembler`."""

    def __init__(self, worker: str) -> None:
        self.has_begun = False
        self.is_complete = False
        self.is_over = False
        self._worker = worker
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[_Call] = []
        self._call_at: dict[int, _Call] = {}
        self._finish_reason: str | None = None
        self._last = _Answer()
        self._usage: Json = None

    def feed(self, data: _Answer) -> Delta | None:
        self._last.id = data.id or self._last.id
        self._last.model = data.model or self._last.model
        self._usage = data.usage or self._usage
        if not data.choices:  # the chunk that only carries usage
            return None
        choice = data.choices[0]
        delta = choice.delta or choice.message
        text = reasoning = ""
        if delta is not None:
            text, reasoning = _texts(delta)
            for piece in delta.tool_calls or ():
                self._add_piece(piece)
        if choice.finish_reason:
            self._finish_reason = choice.finish_reason
            self.is_complete = True
        if not text and not reasoning:
            return None
        self.has_begun = True
        self._texts.append(text)
        self._reasoning.append(reasoning)
        return Delta(text=text, reasoning=reasoning)

    def _add_piece(self, piece: _ToolCall) -> None:
        self.has_begun = True
        index = piece.index if piece.index is not None else len(self._calls) - (0 if piece.id or _name(piece) else 1)
        call = self._call_at.get(index)
        if call is None or (piece.id and call.id and piece.id != call.id):  # Gemini: all at index 0, by their ids
            call = self._call_at[index] = _Call(id=piece.id)
            self._calls.append(call)
        call.id = call.id or piece.id
        call.name = call.name or _name(piece)
        call.arguments += _arguments(piece)

    def completion(self) -> Completion:
        return Completion(
            text="".join(self._texts),
            reasoning="".join(self._reasoning) or None,
            tool_calls=tuple(call.whole() for call in self._calls),
            # [DONE] without a reason ends some servers' streams; it is never sent when one breaks
            finish_reason=_finish_reason(
                self._finish_reason or "stop", has_calls=bool(self._calls), worker=self._worker
            ),
            usage=_usage(self._usage),
            provider_model=self._last.model,
            provider_id=self._last.id,
        )


class _Call(msgspec.Struct):
    """A tool call as it comes together."""

    id: str | None = None
    name: str = ""
    arguments: str = ""

    def whole(self) -> ToolCall:
        return ToolCall(id=self.id or f"call_{secrets.token_hex(12)}", name=self.name, arguments=self.arguments or "{}")


def _name(call: _ToolCall) -> str:
    return (call.function.name if call.function else None) or ""


def _arguments(call: _ToolCall) -> str:
    arguments = call.function.arguments if call.function else None
    return msgspec.json.encode(arguments).decode() if isinstance(arguments, dict) else arguments or ""


def _texts(message: _Message) -> tuple[str, str]:
    """(text, reasoning)."""
    reasoning = message.reasoning_content or message.reasoning or ""
    if isinstance(message.content, list):
        texts = [_text_of_part(part) for part in message.content]
        text = "".join(text for text, _ in texts)
        reasoning += "".join(thought for _, thought in texts)
    else:
        text = message.content or ""
    return text or message.refusal or "", reasoning


def _text_of_part(part: Json) -> tuple[str, str]:
    """Mistral: {"type": "text", "text": ...} and {"type": "thinking", "thinking": [text parts]}."""
    if not isinstance(part, dict):
        return "", ""
    thoughts = part.get("thinking")
    if isinstance(thoughts, list):
        return "", "".join(_text_of_part(thought)[0] for thought in thoughts)
    text = part.get("text")
    return text if isinstance(text, str) else "", ""


_FINISH: Mapping[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",  # Mistral
    "tool_calls": "tool_calls",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "safety": "content_filter",
    "recitation": "content_filter",
    "refusal": "content_filter",
}
_FAILED = frozenset({"error", "abort", "insufficient_system_resource"})  # OpenRouter and Mistral, vLLM, DeepSeek


def _finish_reason(written: str | None, *, has_calls: bool, worker: str) -> FinishReason:
    if written is None:
        raise WorkerError(f"worker {worker!r}: an answer without a finish_reason", worker=worker, code="truncated")
    if written.lower() in _FAILED:
        raise WorkerError(f"worker {worker!r}: its answer ended with {written!r}", worker=worker, code="server_error")
    reason = _FINISH.get(written.lower())
    if reason is None:
        _log.warning("worker %r: unknown finish_reason %.40r is taken for 'stop'", worker, written)
        reason = "stop"
    return "tool_calls" if has_calls and reason == "stop" else reason


def _usage(usage: Json) -> Usage:
    if not isinstance(usage, dict):
        return Usage()
    given, answered, total = (_count(usage, key) for key in ("prompt_tokens", "completion_tokens", "total_tokens"))
    if given is not None and answered is not None and total is not None and total > given + answered:
        answered = total - given  # xAI and Gemini leave reasoning out of completion_tokens, but bill it
    given_details, answered_details = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    cached = _count(given_details, "cached_tokens")
    return Usage(
        input_tokens=given,
        cached_input_tokens=cached if cached is not None else _count(usage, "prompt_cache_hit_tokens"),  # DeepSeek
        cache_write_tokens=_count(given_details, "cache_write_tokens"),  # OpenRouter
        output_tokens=answered,
        reasoning_tokens=_count(answered_details, "reasoning_tokens"),
    )


def _count(counts: Json, key: str) -> int | None:
    value = counts.get(key) if isinstance(counts, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _malformed(worker: str, what: str) -> WorkerError:
    return WorkerError(f"worker {worker!r}: {what}", worker=worker, code="malformed")


def _headers(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


WIRE = Wire(
    path="/chat/completions",
    headers=_headers,
    build=build_body,
    answers=msgspec.json.Decoder(_Answer),
    read=read_answer,
    events=msgspec.json.Decoder(_Answer),
    assemble=_Assembler,
)
