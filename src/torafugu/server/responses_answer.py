"""The answer in the Responses dialect: `Run` -> the response object, whole or as events. What is asked: `responses.py`.

Ids of the answer and of its items are made from the run's. What was streamed and what is told whole are one object.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from ..orchestrate import Run
from ..pool.backend import Delta
from ..types import Json, Reply, ToolCall
from .dialect import COMMENT
from .errors import HttpError
from .responses import Responses
from .toolbox import Declared, arguments_to_input
from .wire import (
    describe_run,
    encode,
    usage_of_others,
)

__all__ = ["ResponsesEvents", "response_id_of", "run_id_of", "run_to_body"]

_FINAL_CODES = frozenset({"budget_exhausted", "bad_plan", "worker_auth"})
"""Server's faults that come again, at the same price, however often the client tries."""


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
    return encode(_ended(run, reply, asked, output, created=created, policy=policy))


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
    others = usage_of_others(run, own)
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
    breaks_off = False  # `response.failed` says all; after a break Codex repeats even what cannot succeed

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
        self.body = encode(told)
        return frames + self._frame(f"response.{told['status']}", response=msgspec.Raw(self.body))

    def error(self, problem: HttpError) -> bytes:
        """That it failed, in both forms in which clients look for it.

        The body has to end properly after it, unlike a stream of chat completions: what was told is an end already,
        which nobody takes for success, and Codex goes by the code only where the connection did not break.
        """
        frames = b"" if self._has_begun else self.first()
        code = _to_failure_code(problem)
        told = {"code": code, "message": problem.message, "param": None}
        frames += self._frame("error", **told, error={"type": _to_failure_type(problem), **told})
        output = [*self._output, *self._unfinished()]
        response = self._resource("failed", output=output, error={"code": code, "message": problem.message})
        return frames + self._frame("response.failed", response=response)

    def _frame(self, kind: str, **fields: Json) -> bytes:
        data = encode({"type": kind, "sequence_number": self._count, **fields})
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


def _to_failure_code(problem: HttpError) -> str:
    """The codes by which Codex decides: it tries again on all but `context_length_exceeded` and `invalid_prompt`, of
    which it shows the message."""
    if problem.code == "context_length_exceeded":
        return problem.code
    if problem.status == 429:
        return "rate_limit_exceeded"
    return "invalid_prompt" if problem.status < 500 or problem.code in _FINAL_CODES else "server_error"


def _to_failure_type(problem: HttpError) -> str:
    if problem.status == 429:
        return "rate_limit_error"
    return "server_error" if problem.status >= 500 else "invalid_request_error"
