"""A model server that says what it is told to: chat completions and Anthropic's messages, whole and streamed.

What it is told stands in double brackets in the last of the user's messages, as JSON: `[[{"text": "hi"}]]`, with the
fields of `Said`. For questions that are not ours to write, `POST /script` gives it what to call for each, by the
question and the names of the tools: a name that changed on its way is not found. Results of tools it repeats. Told
nothing it does what the request demands (a forced tool, a schema), with the least that matches; else it repeats the
question.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Oracle", "Said", "fill", "to_key"]

Json = Any
PORT_ANY = 0
_TOLD = re.compile(r"\[\[(\{.*?\})\]\](?!\])", re.DOTALL)
_CONDUCTOR = "You coordinate a team of language models"
_STEPS = ("Write a draft.", "Write the reply, using the result of step 0.")
_PIECE = 7
"""Characters of a streamed piece, so that words and escapes are cut."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """One answer."""

    text: str = ""
    reasoning: str = ""
    calls: Sequence[Json] = ()
    """`{"name": ..., "arguments": TEXT}` each, the text to be passed on as it is."""
    finish: str = ""
    """As in chat completions; "": what follows from the rest."""
    status: int = 200
    """Any other is an error, with the text as its message."""
    retry_after: int = 0
    cut: bool = False
    """The stream breaks after its first pieces."""

    @property
    def reason(self) -> str:
        return self.finish or ("tool_calls" if self.calls else "stop")


def to_key(question: str, tools: Sequence[str]) -> str:
    """Of a scripted question."""
    return json.dumps([question, sorted(tools)])


@dataclass
class Oracle:
    """The server, on a port of its own."""

    script: dict[str, Sequence[Json]] = field(default_factory=dict)

    def __enter__(self) -> Oracle:
        script = self.script

        class Handler(_Handler):
            calls_for = script

        self._server = ThreadingHTTPServer(("127.0.0.1", PORT_ANY), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def think(body: Json, script: Mapping[str, Sequence[Json]]) -> Said:
    """The answer to a request in the form of chat completions."""
    messages, tools = body["messages"], body.get("tools") or []
    names = [tool["function"]["name"] for tool in tools]
    last = messages[-1]
    if _CONDUCTOR in _text_of(messages[0]):
        return Said(text=_plan())
    if last["role"] == "tool":
        turn = [message for message in messages[_last_of(messages, "assistant") :] if message["role"] == "tool"]
        return Said(text=f"The tools said: {', '.join(map(_text_of, turn))}")
    question = _text_of(messages[_last_of(messages, "user")])
    if _STEPS[0] in question and _STEPS[1] not in question:
        return Said(text="a draft")
    if (calls := script.get(to_key(question, names))) is not None:
        return Said(calls=calls)
    if told := _TOLD.findall(question):
        return Said(**json.loads(told[-1]))
    return _do_as_demanded(body, tools, question + _seen(last))


def _do_as_demanded(body: Json, tools: Sequence[Json], question: str) -> Said:
    choice, form = body.get("tool_choice"), body.get("response_format") or {}
    wanted = choice["function"]["name"] if isinstance(choice, dict) else tools[0]["function"]["name"] if tools else ""
    if choice == "required" or isinstance(choice, dict):
        schema = next(tool["function"].get("parameters") for tool in tools if tool["function"]["name"] == wanted)
        return Said(calls=[{"name": wanted, "arguments": json.dumps(fill(schema or {"type": "object"}))}])
    if form.get("type") == "json_schema":
        return Said(text=json.dumps(fill(form["json_schema"].get("schema") or {})))
    return Said(text='{"ok": true}' if form.get("type") == "json_object" else f"You said: {question}")


def fill(schema: Json, whole: Json = None) -> Json:
    """The least that matches a JSON Schema."""
    whole = schema if whole is None else whole
    if not isinstance(schema, dict):
        return None
    if "$ref" in schema:
        for key in schema["$ref"].split("/")[1:]:
            whole = whole[key]
        return fill(whole, whole)
    if "const" in schema or schema.get("enum"):
        return schema.get("const", (schema.get("enum") or [None])[0])
    for some in ("anyOf", "oneOf", "allOf"):
        if schema.get(some):
            return fill(schema[some][0], whole)
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        return {name: fill(schema["properties"][name], whole) for name in schema.get("required", ())}
    if kind == "array":
        return [fill(schema.get("items"), whole)] * schema.get("minItems", 0)
    return {"integer": 1, "number": 1.5, "boolean": True, "null": None}.get(kind, "word")


def _plan() -> str:
    """Two steps by two workers, whatever is asked; the last one does what the question tells."""
    return f"subtasks: {json.dumps(_STEPS)}\nmodel_id: [0, 1]\naccess_list: [[], [0]]"


def _last_of(messages: Sequence[Json], role: str) -> int:
    return max((i for i, message in enumerate(messages) if message["role"] == role), default=0)


def _text_of(message: Json) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "\n".join(part.get("text") or "" for part in content)


def _seen(message: Json) -> str:
    """What else than text has arrived."""
    content = message.get("content")
    kinds = [part["type"] for part in content if part["type"] != "text"] if isinstance(content, list) else []
    return f" ({', '.join(kinds)})" if kinds else ""


# --- HTTP ---


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    calls_for: dict[str, Sequence[Json]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/script":
            self.calls_for.update(body)
            self._send(200, {})
            return
        is_anthropic = self.path.endswith("/messages")
        try:
            said = think(_from_anthropic(body) if is_anthropic else body, self.calls_for)
        except (AttributeError, LookupError, TypeError) as error:  # as providers refuse what makes no sense to them
            said = Said(status=400, text=f"{type(error).__name__}: {error}")
        if said.status != 200:
            code = {"code": said.finish} if said.finish else {}
            error = {"type": "invalid_request_error", "message": said.text, **code}
            self._send(said.status, {"type": "error", "error": error}, said.retry_after)
        elif body.get("stream"):
            self._stream(_events(body, said) if is_anthropic else _chunks(body, said), said)
        else:
            self._send(200, _to_message(body, said) if is_anthropic else _to_completion(body, said))

    def _send(self, status: int, body: Json, retry_after: int = 0) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        if retry_after:
            self.send_header("retry-after", str(retry_after))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, frames: Iterator[tuple[str, Json]], said: Said) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        for i, (kind, data) in enumerate(frames):
            if said.cut and i == 4:
                return
            self.wfile.write((f"event: {kind}\n" if kind else "").encode() + b"data: " + _to_bytes(data) + b"\n\n")
            self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


def _to_bytes(data: Json) -> bytes:
    return data.encode() if isinstance(data, str) else json.dumps(data).encode()


def _pieces(text: str) -> list[str]:
    return [text[i : i + _PIECE] for i in range(0, len(text), _PIECE)]


def _to_completion(body: Json, said: Said) -> Json:
    message = {"role": "assistant", "content": said.text or None, "reasoning_content": said.reasoning or None}
    if said.calls:
        message["tool_calls"] = [_to_call(i, call) for i, call in enumerate(said.calls)]
    choice = {"index": 0, "message": message, "finish_reason": said.reason}
    return {**_head(body, "chat.completion"), "choices": [choice], "usage": _usage()}


def _chunks(body: Json, said: Said) -> Iterator[tuple[str, Json]]:
    head = _head(body, "chat.completion.chunk")

    def chunk(delta: Json, reason: str | None = None) -> tuple[str, Json]:
        return "", {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    yield chunk({"role": "assistant", "content": ""})
    for piece in _pieces(said.reasoning):
        yield chunk({"reasoning_content": piece})
    for piece in _pieces(said.text):
        yield chunk({"content": piece})
    for i, call in enumerate(said.calls):
        wire = _to_call(i, call)
        yield chunk({"tool_calls": [{"index": i, **wire, "function": {**wire["function"], "arguments": ""}}]})
        for piece in _pieces(call["arguments"]):
            yield chunk({"tool_calls": [{"index": i, "function": {"arguments": piece}}]})
    yield chunk({}, said.reason)
    if (body.get("stream_options") or {}).get("include_usage"):
        yield "", {**head, "choices": [], "usage": _usage()}
    yield "", "[DONE]"


def _head(body: Json, kind: str) -> Json:
    return {"id": "chatcmpl-oracle", "object": kind, "created": int(time.time()), "model": body["model"]}


def _to_call(index: int, call: Json) -> Json:
    function = {"name": call["name"], "arguments": call["arguments"]}
    return {"id": f"call_{index}", "type": "function", "function": function}


def _usage() -> Json:
    return {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


# --- Anthropic's messages ---

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


def _from_anthropic(body: Json) -> Json:
    """As chat completions, as far as `think` looks at it."""
    messages = [{"role": "system", "content": _text_of({"content": body.get("system")})}]
    for message in body["messages"]:
        blocks = message["content"] if isinstance(message["content"], list) else [_text(message["content"])]
        for block in blocks:
            if block["type"] == "tool_result":
                messages.append({"role": "tool", "content": block.get("content")})
        rest = [block for block in blocks if block["type"] != "tool_result"]
        messages += [{"role": message["role"], "content": rest}] if rest else []
    functions = [{"name": tool["name"], "parameters": tool["input_schema"]} for tool in body.get("tools") or ()]
    choice = body.get("tool_choice") or {}
    named = {"function": {"name": choice.get("name")}} if choice.get("type") == "tool" else None
    form = (body.get("output_config") or {}).get("format")
    return {
        "messages": messages,
        "tools": [{"type": "function", "function": function} for function in functions],
        "tool_choice": named or ("required" if choice.get("type") == "any" else None),
        "response_format": {"type": "json_schema", "json_schema": {"schema": form["schema"]}} if form else None,
    }


def _text(text: str) -> Json:
    return {"type": "text", "text": text}


def _to_message(body: Json, said: Said) -> Json:
    thinking = [{"type": "thinking", "thinking": said.reasoning, "signature": "x"}] if said.reasoning else []
    texts = [_text(said.text)] if said.text else []
    uses = [{**_use(i, call), "input": json.loads(call["arguments"])} for i, call in enumerate(said.calls)]
    head = {"id": "msg_oracle", "type": "message", "role": "assistant", "model": body["model"]}
    end = {"stop_reason": _STOP_REASONS[said.reason], "stop_sequence": None}
    return {**head, "content": [*thinking, *texts, *uses], **end, "usage": {"input_tokens": 11, "output_tokens": 7}}


def _use(index: int, call: Json) -> Json:
    return {"type": "tool_use", "id": f"toolu_{index}", "name": call["name"], "input": {}}


def _events(body: Json, said: Said) -> Iterator[tuple[str, Json]]:
    def event(kind: str, **fields: Json) -> tuple[str, Json]:
        return kind, {"type": kind, **fields}

    start = {**_to_message(body, Said()), "stop_reason": None}
    yield event("message_start", message=start)
    blocks: list[tuple[Json, str, str, str]] = []
    if said.reasoning:
        blocks.append(({"type": "thinking", "thinking": "", "signature": ""}, "thinking", "thinking", said.reasoning))
    if said.text:
        blocks.append((_text(""), "text", "text", said.text))
    for i, call in enumerate(said.calls):
        blocks.append((_use(i, call), "input_json", "partial_json", call["arguments"]))
    for i, (block, kind, name, whole) in enumerate(blocks):
        yield event("content_block_start", index=i, content_block=block)
        for piece in _pieces(whole):
            yield event("content_block_delta", index=i, delta={"type": f"{kind}_delta", name: piece})
        yield event("content_block_stop", index=i)
    delta = {"stop_reason": _STOP_REASONS[said.reason], "stop_sequence": None}
    yield event("message_delta", delta=delta, usage={"output_tokens": 7})
    yield event("message_stop")
