"""The answer in the Messages dialect: `Run` -> the message object, whole or as events; errors.

What is asked: `messages.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from ..orchestrate import Run
from ..pool.backend import Delta
from ..types import (
    FinishReason,
    Json,
    Reply,
    ToolCall,
)
from .errors import HttpError
from .messages import MessagesRequest
from .wire import (
    describe_run,
    encode,
    usage_of_others,
)

__all__ = ["PING", "MessageEvents", "error_body", "run_to_body"]


_STOP_REASON: Mapping[FinishReason, str] = {
    "stop": "end_turn",  # also when a stop sequence ended it: no worker tells us which
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


def run_to_body(run: Run, reply: Reply, *, asked: MessagesRequest, policy: str) -> bytes:
    """The whole answer as a `message` object."""
    return encode(
        {
            **_describe_message(run.id, asked),
            "content": _to_blocks(reply, asked),
            **_describe_end(reply),
            "usage": {**_from_usage(run, reply), **_NO_OTHER_USAGE},
            "fugu": describe_run(run, policy),
        }
    )


def _describe_message(run_id: str, asked: MessagesRequest) -> dict[str, Json]:
    return {"id": f"msg_{run_id}", "type": "message", "role": "assistant", "model": asked.model}


def _to_blocks(reply: Reply, asked: MessagesRequest) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if reply.reasoning and asked.thinking != "none":
        blocks.append(_THINKING | {"thinking": reply.reasoning if asked.thinking == "shown" else ""})
    if reply.text or not reply.tool_calls:
        blocks.append(_TEXT | {"text": reply.text})
    calls = [_describe_call(call, asked) | {"input": msgspec.Raw(_object_of(call))} for call in reply.tool_calls]
    return blocks + calls


_THINKING = {"type": "thinking", "thinking": "", "signature": ""}
_TEXT = {"type": "text", "text": ""}
# Fields of a whole message's usage that the end of a stream does not have.
_NO_OTHER_USAGE = {"cache_creation": None, "inference_geo": None, "service_tier": None}


def _describe_call(call: ToolCall, asked: MessagesRequest) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": asked.toolbox.find(call.name).name, "input": {}}


def _object_of(call: ToolCall) -> bytes:
    arguments = call.arguments.strip() or "{}"
    assert arguments.startswith("{"), "the pool passes on no call whose arguments are not an object"
    return arguments.encode()


def _describe_end(reply: Reply) -> dict[str, Json]:
    is_refusal = reply.finish_reason == "content_filter"
    return {
        "stop_reason": _STOP_REASON[reply.finish_reason],
        "stop_sequence": None,
        "stop_details": {"type": "refusal", "category": None, "explanation": None} if is_refusal else None,
        "container": None,
    }


def _from_usage(run: Run, reply: Reply) -> dict[str, Json]:
    """The answer's own tokens, and beside them all others that the run spent.

    `input_tokens` are here those that were neither read from a cache nor written into one.
    """
    own = reply.usage
    others = usage_of_others(run, own)
    cached = (own.cached_input_tokens or 0) + (own.cache_write_tokens or 0)
    # A provider whose cached tokens exceed the whole has not counted them into it.
    fresh = own.input_tokens if own.input_tokens is None or cached > own.input_tokens else own.input_tokens - cached
    thought = own.reasoning_tokens
    unknown = [n for n, count in (("input_tokens", fresh), ("output_tokens", own.output_tokens)) if count is None]
    return {
        "input_tokens": fresh or 0,
        "cache_creation_input_tokens": own.cache_write_tokens,
        "cache_read_input_tokens": own.cached_input_tokens,
        "output_tokens": own.output_tokens or 0,
        "output_tokens_details": None if thought is None else {"thinking_tokens": thought},
        "server_tool_use": None,
        "orchestration_input_tokens": others.input_tokens,
        "orchestration_input_cached_tokens": others.cached_input_tokens,
        "orchestration_output_tokens": others.output_tokens,
        **({"unknown": unknown} if unknown else {}),
    }


def _event(kind: str, **fields: Json) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + encode({"type": kind, **fields}) + b"\n\n"


PING = _event("ping")
"""What this dialect sends to show that it is alive; every client skips it, also before the message has begun."""


class MessageEvents:
    """One streamed answer as events. Each method returns the bytes of the next ones.

    Blocks come one after the other: reasoning that follows text opens a new block, as text after it does.
    """

    heartbeat = PING
    breaks_off = True

    def __init__(self, *, run_id: str, asked: MessagesRequest) -> None:
        self._run_id = run_id
        self._asked = asked
        self._index = -1
        self._open: Literal["thinking", "text"] | None = None
        self._has_answer = False
        """It has text or tool calls."""

    def first(self) -> bytes:
        """Whose turn it is, before anything is known of its tokens."""
        message = {
            **_describe_message(self._run_id, self._asked),
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
                **_NO_OTHER_USAGE,
            },
        }
        return _event("message_start", message=message) + PING

    def delta(self, delta: Delta) -> bytes:
        """A piece of reasoning, of text, or of both; nothing (`b""`) for reasoning that nobody asked for."""
        frames = b""
        if delta.reasoning and self._asked.thinking != "none":
            thought = delta.reasoning if self._asked.thinking == "shown" else ""  # even so it is a sign of life
            frames += self._enter("thinking", _THINKING) + self._piece({"type": "thinking_delta", "thinking": thought})
        if delta.text:
            frames += self._enter("text", _TEXT) + self._piece({"type": "text_delta", "text": delta.text})
            self._has_answer = True
        return frames

    def tool_calls(self, calls: Iterable[ToolCall]) -> bytes:
        """Each call whole, in a block of its own."""
        frames = b""
        for call in calls:
            piece = {"type": "input_json_delta", "partial_json": _object_of(call).decode()}
            frames += self._leave() + self._start(_describe_call(call, self._asked)) + self._piece(piece) + self._stop()
            self._has_answer = True
        return frames

    def last(self, run: Run, reply: Reply, *, policy: str) -> bytes:
        """The reason of the end, the tokens, what the run was; and the end itself."""
        frames = b"" if self._has_answer else self._enter("text", _TEXT)  # clients look for a block of text
        frames += self._leave()
        told = {"usage": _from_usage(run, reply), "fugu": describe_run(run, policy)}
        return frames + _event("message_delta", delta=_describe_end(reply), **told) + _event("message_stop")

    def error(self, problem: HttpError) -> bytes:
        """The stream failed. Nothing may follow it, and the connection must not end cleanly."""
        return b"event: error\ndata: " + error_body(problem, request_id=self._run_id) + b"\n\n"

    def _enter(self, kind: Literal["thinking", "text"], block: dict[str, Any]) -> bytes:
        if self._open == kind:
            return b""
        frames = self._leave() + self._start(block)
        self._open = kind
        return frames

    def _leave(self) -> bytes:
        kind, self._open = self._open, None
        if kind is None:
            return b""
        signature = self._piece({"type": "signature_delta", "signature": ""}) if kind == "thinking" else b""
        return signature + self._stop()

    def _start(self, block: dict[str, Any]) -> bytes:
        self._index += 1
        return _event("content_block_start", index=self._index, content_block=block)

    def _piece(self, delta: dict[str, Json]) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)

    def _stop(self) -> bytes:
        return _event("content_block_stop", index=self._index)


_ERROR_TYPE: Mapping[int, str] = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_TOO_LONG = "prompt is too long"


def error_body(problem: HttpError, *, request_id: str | None) -> bytes:
    """The error object of this dialect, also the data of a stream's error event."""
    kind = _ERROR_TYPE.get(problem.status, "api_error" if problem.status >= 500 else "invalid_request_error")
    message = problem.message
    # Claude Code compacts the conversation when it reads these words, whatever the error's type and code.
    if problem.code == "context_length_exceeded" and _TOO_LONG not in message.lower():
        message = f"{_TOO_LONG}: {message}"
    error = {"type": kind, "message": message, "code": problem.code}
    return encode({"type": "error", "error": error, "request_id": request_id})
