"""A model server without a model: chat completions over HTTP, answered from a script that looks at the request only.

The prompts of `drive.py` carry a word in brackets that says what is to be played; the last one in the conversation
counts, and how far the play has come is read off the tool results after it. So the same script serves every client,
whatever its tools are called, directly and as a step of a workflow. What only a tool could have told (the nonce in a
file) stands in the final text, which proves that results came back; so does a ticket that is nowhere else, which proves
in the next turn that the conversation did.

    [plain]   a text                        [edit]    look (two calls at once), read, edit, tell
    [again]   what was seen before          [look] [change]   the two halves of [edit], as steps of a workflow
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["AFTER", "BEFORE", "FILE", "Brain", "Call", "Said", "think"]

FILE, BEFORE, AFTER = "notes.txt", "colour: red", "colour: blue"
_MARK = re.compile(r"\[(plain|edit|again|look|change)\]")
_NONCE = re.compile(r"nonce: (\w+)")
_TICKET = re.compile(r"ticket: (\w+)")
_ABSOLUTE = re.compile(r"^(/\S+)$", re.MULTILINE)
_CONDUCTOR = "You coordinate a team of language models"
_PATCH = f"*** Begin Patch\n*** Update File: {FILE}\n@@\n-{BEFORE}\n+{AFTER}\n*** End Patch\n"
_BLOCK = f"{FILE}\n```\n<<<<<<< SEARCH\n{BEFORE}\n=======\n{AFTER}\n>>>>>>> REPLACE\n```\n"
_PACE_S = 0.005
"""Between the pieces of a stream, so that they arrive as several."""

Json = Any


@dataclass(frozen=True)
class Call:
    name: str
    arguments: Mapping[str, Json]


@dataclass(frozen=True)
class Said:
    """What is answered: a text, or calls of tools."""

    text: str = ""
    calls: tuple[Call, ...] = ()


@dataclass
class Brain:
    """The server; `asked` are the bodies of all requests."""

    asked: list[Json] = field(default_factory=list)

    def __enter__(self) -> Brain:
        brain = self

        class Handler(_Handler):
            asked = brain.asked

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def think(messages: Sequence[Json], tools: Sequence[Json]) -> Said:
    """The script."""
    texts = [_text_of(message) for message in messages]
    whole = "\n".join(texts)
    if _CONDUCTOR in texts[0]:
        return Said(_plan(whole))
    at, mark = _last_mark(messages, texts)
    results = [text for message, text in zip(messages[at:], texts[at:], strict=True) if message["role"] == "tool"]
    if mark == "again":
        return Said(f"I remember {' and '.join(dict.fromkeys(_TICKET.findall(whole))) or 'nothing'}.")
    if mark == "edit" and "SEARCH/REPLACE" in whole:  # aider, whose edits are texts
        return Said(f"{_report(whole)}\n\n{_BLOCK}")
    if mark == "plain" or not tools or mark is None:
        return Said("A plain answer: kumquat." if mark == "plain" else "A short title")
    return _work(mark, results, {tool["function"]["name"]: tool["function"] for tool in tools})


def _work(mark: str, results: Sequence[str], tools: Mapping[str, Json]) -> Said:
    """Look, then change: each tool call once, in the order of the script."""
    look = (_shell(tools, "pwd"), _shell(tools, f"cat {FILE}"))
    script: list[tuple[Call, ...]] = [] if mark == "change" else [look]
    if mark != "look":
        if mark == "change":
            script.append((_shell(tools, f"pwd; cat {FILE}"),))
        script += _edit(tools, folder=next(iter(_ABSOLUTE.findall("\n".join(results))), "."))
    done = len(results)
    for calls in script:
        if done < len(calls):
            return Said(calls=calls)
        done -= len(calls)
    return Said(_report("\n".join(results)))


def _report(text: str) -> str:
    return f"Done. nonce: {next(iter(_NONCE.findall(text)), 'unseen')} ticket: {uuid.uuid4().hex[:8]}"


def _shell(tools: Mapping[str, Json], command: str) -> Call:
    for name, tool in tools.items():
        properties = tool["parameters"].get("properties", {})
        if name.lower() in ("bash", "exec_command", "shell"):
            key = "cmd" if "cmd" in properties else "command"
            described = {"description": "Look around"} if "description" in properties else {}
            return Call(name, {key: command, **described})
    raise LookupError(f"no shell among {', '.join(tools)}")


def _edit(tools: Mapping[str, Json], folder: str) -> list[tuple[Call, ...]]:
    path = f"{folder}/{FILE}"
    names = {name.lower(): name for name in tools}
    if "apply_patch" in names:
        return [(Call(names["apply_patch"], {"input": _PATCH}),)]
    if "edit" not in names:
        return [(_shell(tools, f"sed -i 's/{BEFORE}/{AFTER}/' {FILE}"),)]
    properties = tools[names["edit"]]["parameters"]["properties"]
    if "file_path" in properties:
        edit = {"file_path": path, "old_string": BEFORE, "new_string": AFTER}
        return [(Call(names["read"], {"file_path": path}),), (Call(names["edit"], edit),)]
    edit = {"filePath": path, "oldString": BEFORE, "newString": AFTER}
    return [(Call(names["read"], {"filePath": path}),), (Call(names["edit"], edit),)]


def _plan(whole: str) -> str:
    """A workflow of two steps, whatever is asked; the halves of [edit] go to two workers."""
    marks = [mark for mark in _MARK.findall(whole) if mark not in ("look", "change")]
    mark = marks[-1] if marks else "plain"
    steps = ("[look] Look at the file.", "[change] Change it, using the result of step 0.")
    if mark != "edit" or "SEARCH/REPLACE" in whole:
        steps = ("[plain] Draft a reply.", f"[{mark}] Write the reply, using the result of step 0.")
    return f"subtasks: {json.dumps(steps)}\nmodel_id: [0, 1]\naccess_list: [[], [0]]"


def _last_mark(messages: Sequence[Json], texts: Sequence[str]) -> tuple[int, str | None]:
    for at in reversed(range(len(messages))):
        if messages[at]["role"] not in ("tool", "assistant") and (found := _MARK.findall(texts[at])):
            return at, found[-1]
    return 0, None


def _text_of(message: Json) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content)


# --- HTTP ---


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked: list[Json]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body)
        try:
            said = think(body["messages"], body.get("tools") or ())
        except (LookupError, KeyError) as error:
            self._send(400, {"error": {"message": f"not in the script: {error}", "type": "invalid_request_error"}})
            return
        if body.get("stream"):
            self._stream(body, said)
        else:
            self._send(200, _completion(body, said))

    def _send(self, status: int, body: Json) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, body: Json, said: Said) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for chunk in _chunks(body, said):
            self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            self.wfile.flush()
            time.sleep(_PACE_S)
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """`asked` is the log."""


def _completion(body: Json, said: Said) -> Json:
    message: Json = {"role": "assistant", "content": said.text or None}
    if said.calls:
        message["tool_calls"] = [_wire_call(call) for call in said.calls]
    choice = {"index": 0, "message": message, "finish_reason": _reason(said)}
    return {**_head(body, "chat.completion"), "choices": [choice], "usage": _usage(body, said)}


def _chunks(body: Json, said: Said) -> Iterator[Json]:
    head = _head(body, "chat.completion.chunk")

    def chunk(delta: Json, reason: str | None = None) -> Json:
        return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    yield chunk({"role": "assistant", "content": ""})
    for piece in re.findall(r"\S*\s*", said.text):
        if piece:
            yield chunk({"content": piece})
    for index, call in enumerate(said.calls):
        wire = _wire_call(call)
        arguments = wire["function"]["arguments"]
        half = len(arguments) // 2
        first = {**wire, "function": {**wire["function"], "arguments": arguments[:half]}}
        yield chunk({"tool_calls": [{"index": index, **first}]})
        yield chunk({"tool_calls": [{"index": index, "function": {"arguments": arguments[half:]}}]})
    yield chunk({}, _reason(said))
    if (body.get("stream_options") or {}).get("include_usage"):
        yield {**head, "choices": [], "usage": _usage(body, said)}


def _head(body: Json, kind: str) -> Json:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": body["model"]}


def _wire_call(call: Call) -> Json:
    function = {"name": call.name, "arguments": json.dumps(call.arguments)}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _reason(said: Said) -> str:
    return "tool_calls" if said.calls else "stop"


def _usage(body: Json, said: Said) -> Json:
    sent, written = len(json.dumps(body["messages"])) // 4, len(said.text) // 4 + 20 * len(said.calls) + 1
    return {"prompt_tokens": sent, "completion_tokens": written, "total_tokens": sent + written}
