"""What real clients sent, recorded, at a running server: every request is answered, and the answers are of the types
that the official SDKs declare. A recording's own answer is what the worker says; its later turns bring our call ids."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import httpx2
import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStream
from openai.lib.streaming.responses._responses import ResponseStream
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent

from runs import USAGE
from serving import KEY, Server, running
from torafugu.orchestrate import Direct
from torafugu.pool.backend import Completion, Delta, OnDelta, Query
from torafugu.server import KeySpec
from torafugu.types import ToolCall, Usage

RECORDED = Path(__file__).parents[2] / "shared" / "fixtures" / "clients"
pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not RECORDED.is_dir(), reason="the recorded requests are not here"),
]

REFUSED: Mapping[str, tuple[int, str, str]] = {
    "openai-python-3.52.0/chat-kitchen-sink": (400, "n", "two choices and log probabilities: one run has one answer"),
    "openai-python-3.52.0/responses-background": (400, "background", "no response is made in the background"),
    "openai-python-3.52.0/embeddings": (404, "", "no embeddings are made here"),
    "openai-python-3.52.0/legacy-completions": (404, "", "the API before chat completions is not spoken"),
}
"""Scenarios that are not answered: status, the field that is named, and why."""

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
FORMS = (CHAT, RESPONSES, MESSAGES)
_DROPPED = {"host", "content-length", "connection", "accept-encoding", "authorization", "x-api-key"}
"""Headers that belong to the recorded connection, or that were hidden."""


@dataclass(frozen=True)
class Call:
    """A call of a tool, in whichever dialect."""

    kind: str
    name: str
    given: Any
    """Arguments as JSON, or the text given to a free-form tool."""
    namespace: str | None = None
    id: str = field(default="", compare=False)


@dataclass(frozen=True)
class Said:
    """An answer, in whichever dialect."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    id: str = field(default="", compare=False)


class Player:
    """A worker that says `line`, and remembers what it was asked."""

    def __init__(self) -> None:
        self.line = Said(text="hello")
        self.usage = USAGE
        self.query: Query | None = None

    async def complete(self, query: Query, on_delta: OnDelta | None) -> Completion:
        self.query = query
        if on_delta is not None:
            for delta in (Delta(reasoning=self.line.reasoning), *(Delta(text=t) for t in _halves(self.line.text))):
                await on_delta(delta)
        calls = tuple([_to_inside(call, f"call_{i}") for i, call in enumerate(self.line.calls)])
        return Completion(
            text=self.line.text,
            reasoning=self.line.reasoning or None,
            tool_calls=calls,
            finish_reason="tool_calls" if calls else "stop",
            usage=self.usage,
        )

    async def close(self) -> None:
        return


def _halves(text: str) -> tuple[str, str]:
    return text[: len(text) // 2], text[len(text) // 2 :]


def _to_inside(call: Call, id: str) -> ToolCall:
    name = call.name if call.namespace is None else f"{call.namespace}__{call.name}"
    given = {"input": call.given} if call.kind == "custom" else call.given
    return ToolCall(id=id, name=name, arguments=json.dumps(given))


# --- reading answers, recorded ones and ours ---


def events_of(stream: str) -> list[Any]:
    lines = [line[6:] for line in stream.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def read_chat(body: Any) -> Said:
    if isinstance(body, list):
        body = _join_chunks(body)
    message = body["choices"][0]["message"]
    calls = []
    for call in message.get("tool_calls") or ():
        if call["type"] == "custom":
            calls.append(Call("custom", call["custom"]["name"], call["custom"]["input"], id=call["id"]))
        else:
            function = call["function"]
            calls.append(Call("function", function["name"], json.loads(function["arguments"]), id=call["id"]))
    return Said(message.get("content") or "", message.get("reasoning_content") or "", tuple(calls), body["id"])


def _join_chunks(chunks: Sequence[Any]) -> Any:
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    reason = None
    for choice in [choice for chunk in chunks for choice in chunk["choices"]]:
        reason = choice.get("finish_reason") or reason
        delta = choice["delta"]
        for name in ("content", "reasoning_content"):
            message[name] += delta.get(name) or ""
        for call in delta.get("tool_calls") or ():
            if call["index"] == len(message["tool_calls"]):
                message["tool_calls"].append(call)
            else:
                message["tool_calls"][call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    assert reason is not None, "the stream has no finish reason"
    return {"id": chunks[0]["id"], "choices": [{"message": message}]}


def read_responses(body: Any) -> Said:
    if isinstance(body, list):
        assert body[-1]["type"] == "response.completed"
        body = body[-1]["response"]
    text, reasoning, calls = "", "", []
    for item in body["output"]:
        if item["type"] == "message":
            text += "".join(part["text"] for part in item["content"])
        elif item["type"] == "reasoning":
            reasoning += "".join(part["text"] for part in item["summary"])
        elif item["type"] == "custom_tool_call":
            calls.append(Call("custom", item["name"], item["input"], item.get("namespace"), item["call_id"]))
        elif item["type"] == "function_call":
            given = json.loads(item["arguments"])
            calls.append(Call("function", item["name"], given, item.get("namespace"), item["call_id"]))
    return Said(text, reasoning, tuple(calls), body["id"])


def read_messages(body: Any) -> Said:
    if isinstance(body, list):
        body = _join_message(body)
    by_kind = {kind: [b for b in body["content"] if b["type"] == kind] for kind in ("text", "thinking", "tool_use")}
    return Said(
        "".join(block["text"] for block in by_kind["text"]),
        "".join(block["thinking"] for block in by_kind["thinking"]),
        tuple([Call("function", block["name"], block["input"], id=block["id"]) for block in by_kind["tool_use"]]),
        body["id"],
    )


def _join_message(events: Sequence[Any]) -> Any:
    assert events[-1]["type"] == "message_stop"
    blocks: list[Any] = []
    for event in events:
        if event["type"] == "content_block_start":
            blocks.append({**event["content_block"], "json": ""})
        elif event["type"] == "content_block_delta":
            delta, block = event["delta"], blocks[event["index"]]
            for name, into in (("text", "text"), ("thinking", "thinking"), ("partial_json", "json")):
                block[into] = block.get(into, "") + delta.get(name, "")
    for block in blocks:
        if block["type"] == "tool_use":
            block["input"] = json.loads(block["json"] or "{}")
    return {"id": events[0]["message"]["id"], "content": blocks}


READ = {CHAT: read_chat, RESPONSES: read_responses, MESSAGES: read_messages}


# --- replaying ---


@dataclass(frozen=True)
class Exchange:
    """One request that was sent again, and what came back."""

    path: str
    asked: Any
    expected: Said
    status: int
    answer: Any
    """Parsed JSON, or the bytes of a stream."""
    query: Query | None

    @property
    def said(self) -> Said:
        return READ[self.path](events_of(self.answer.decode()) if isinstance(self.answer, bytes) else self.answer)


@dataclass
class Replay:
    server: Server
    player: Player
    _done: dict[str, list[Exchange]] = field(default_factory=dict)

    def session(self, name: str) -> list[Exchange]:
        """All turns in their order, each as it was sent, and then with `stream` turned over and tokens not counted."""
        if name not in self._done:
            self._done[name] = list(self._replay(name))
        return self._done[name]

    def _replay(self, name: str) -> Iterator[Exchange]:
        ours: dict[str, str] = {}
        for recorded in SESSIONS[name]:
            text = json.dumps([recorded["request"]["path"], recorded["request"]["body"]])
            for id, our_id in ours.items():
                text = text.replace(id, our_id)
            path, body = json.loads(text)
            expected = find_line(recorded)
            exchange = self.send(recorded, path, body, expected)
            yield exchange
            if exchange.path in FORMS and exchange.status == 200:
                said = exchange.said
                ours |= {call.id: said.calls[i].id for i, call in enumerate(expected.calls)}
                ours |= {expected.id: said.id} if expected.id else {}
                flipped = {**body, "stream": not body.get("stream")}
                yield self.send(recorded, path, flipped, expected, usage=Usage())

    def send(self, recorded: Any, path: str, body: Any, line: Said, usage: Usage = USAGE) -> Exchange:
        headers = {k: v for k, v in recorded["request"]["headers"].items() if k.lower() not in _DROPPED}
        key = "x-api-key" if "x-api-key" in map(str.lower, recorded["request"]["headers"]) else "authorization"
        headers[key] = KEY if key == "x-api-key" else f"Bearer {KEY}"
        self.player.line, self.player.usage, self.player.query = line, usage, None
        status, _, answer = self.server.request(recorded["request"]["method"], path, body, headers)
        return Exchange(path.partition("?")[0], body, line, status, answer, self.player.query)


def load_sessions() -> dict[str, list[Any]]:
    """Recorded exchanges by folder, in the order in which they were sent."""
    sessions: dict[str, list[Any]] = {}
    for path in sorted(RECORDED.rglob("*.json")):
        sessions.setdefault(str(path.parent.relative_to(RECORDED)), []).append(json.loads(path.read_text()))
    return sessions


def find_line(recorded: Any) -> Said:
    """What was answered then; where that was a fault, or nothing much, a greeting."""
    path, answer = recorded["request"]["path"].partition("?")[0], recorded["response"]["body"]
    try:
        read = READ[path]
        said = read(events_of("".join(answer)) if isinstance(answer, list) else answer)
    except (KeyError, IndexError, TypeError, AssertionError, json.JSONDecodeError):
        return Said(text="hello")
    if path == MESSAGES and not recorded["request"]["body"].get("thinking"):  # told only to those who ask for it
        said = Said(said.text, "", said.calls, said.id)
    return said if said.text or said.calls else Said(text="hello", reasoning=said.reasoning, id=said.id)


SESSIONS = load_sessions()
every_session = pytest.mark.parametrize("name", SESSIONS)


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replay]:
    keys = (KeySpec(name="one", sha256=hashlib.sha256(KEY.encode()).hexdigest()),)
    player = Player()
    with running(
        tmp_path_factory.mktemp("replay"),
        {"player": player},
        policies={"fugu": Direct("player")},
        modalities=("text", "image", "pdf"),
        keys=keys,
    ) as server:
        yield Replay(server, player)


# --- that they are answered ---


@every_session
def test_recorded_requests(replay: Replay, name: str) -> None:
    """Every request is answered with what the worker said, as recorded and in the other form; or refused as listed."""
    exchanges = replay.session(name)
    if name in REFUSED:
        status, param, _ = REFUSED[name]
        assert [exchange.status for exchange in exchanges] == [status]
        assert (exchanges[0].answer["error"]["param"] or "") == param
        return
    for exchange in exchanges:
        assert exchange.status == 200, exchange.answer
        if exchange.path in FORMS:
            assert exchange.said == exchange.expected
            assert isinstance(exchange.answer, bytes) == bool(exchange.asked.get("stream"))


@every_session
def test_tool_results_reach_the_worker(replay: Replay, name: str) -> None:
    """What a client sends back for a call, under the id that we gave it, reaches the worker behind that call."""
    for exchange in replay.session(name):
        if exchange.path not in FORMS or exchange.query is None:
            continue
        messages = exchange.query.messages
        called = [call.id for message in messages for call in message.tool_calls]
        answered = [message.tool_call_id for message in messages if message.role == "tool"]
        assert answered == called
        text = json.dumps(exchange.asked)
        assert all(f'"{id}"' in text for id in called)
        assert len(called) == text.count('"tool_use_id"') + text.count('"tool_call_id"') + text.count('_call_output"')


def test_refusals_are_of_recorded_requests() -> None:
    """No exception is listed that is none, and what has no form of its own is known by its path."""
    assert REFUSED.keys() <= SESSIONS.keys()
    paths = {recorded["request"]["path"].partition("?")[0] for turns in SESSIONS.values() for recorded in turns}
    others = {path for path in paths if path not in FORMS and not path.startswith("/v1/responses/resp_")}
    assert others == {"/v1/models", "/v1/messages/count_tokens", "/v1/embeddings", "/v1/completions"}


# --- tools ---

WITH_TOOLS = {
    f"{name}[{i}]": recorded
    for name, turns in SESSIONS.items()
    for i, recorded in enumerate(turns)
    if isinstance(recorded["request"]["body"], dict) and recorded["request"]["body"].get("tools")
}


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_offered_tools(replay: Replay, name: str) -> None:
    """The first tool of each kind can be called, several calls at once; they come back as the client declared them."""
    recorded = WITH_TOOLS[name]
    body = recorded["request"]["body"]
    if body.get("tool_choice") == "none":
        pytest.skip("the client wants none called")
    calls = pick_calls(body)
    assert calls
    path = recorded["request"]["path"]
    for asked in (body, {**body, "stream": not body.get("stream")}):
        if "previous_response_id" not in body:
            asked = forget_calls(asked)
        exchange = replay.send(recorded, path, asked, Said(calls=calls))
        assert exchange.status == 200, exchange.answer
        assert exchange.said.calls == calls
        assert len({call.id for call in exchange.said.calls}) == len(calls)
        check_types(exchange)


def forget_calls(body: Any) -> Any:
    """As it was before any call, so that ids of then do not matter."""
    turns = "input" if "input" in body else "messages"
    if not isinstance(body[turns], list):
        return body
    first = next((i for i, turn in enumerate(body[turns]) if _is_call(turn)), None)
    return {**body, turns: body[turns][:first]}


def _is_call(turn: Any) -> bool:
    if turn.get("tool_calls") or str(turn.get("type")).endswith("_call"):
        return True
    return isinstance(turn.get("content"), list) and any(part.get("type") == "tool_use" for part in turn["content"])


def pick_calls(body: Any) -> tuple[Call, ...]:
    """The first tool of each kind, the very first one twice; once only, where no more are wanted."""
    by_kind: dict[str, Call] = {}
    for tool in body["tools"]:
        for inner in tool["tools"] if tool.get("type") == "namespace" else [tool]:
            call = _pick(inner, tool["name"] if tool.get("type") == "namespace" else None)
            if call is not None:
                by_kind.setdefault("namespace" if call.namespace else call.kind, call)
    calls = tuple(by_kind.values())
    return calls[:1] if body.get("parallel_tool_calls") is False else (*calls, *calls[:1])


def _pick(tool: Any, namespace: str | None) -> Call | None:
    flat = tool.get("function") or tool.get("custom") or tool
    if tool.get("type") == "custom" and "input_schema" not in tool:
        return Call("custom", flat["name"], "some text\n", namespace)
    schema = flat.get("parameters") or flat.get("input_schema")
    if tool.get("type") not in ("function", "custom", None) or schema is None:
        return None
    return Call("function", flat["name"], fill(schema), namespace)


def fill(schema: Any, whole: Any = None) -> Any:
    """The least that matches a JSON Schema."""
    whole = schema if whole is None else whole
    if "$ref" in schema:
        return fill(functools.reduce(lambda at, key: at[key], schema["$ref"].split("/")[1:], whole), whole)
    if "const" in schema or schema.get("enum"):
        return schema.get("const", (schema.get("enum") or [None])[0])
    for some in ("anyOf", "oneOf", "allOf"):
        if schema.get(some):
            return fill(schema[some][0], whole)
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        return {name: fill(schema["properties"][name], whole) for name in schema.get("required", ())}
    if kind == "array":
        return [fill(schema["items"], whole)] * schema.get("minItems", 0)
    return {"integer": 1, "number": 1.5, "boolean": True, "null": None}.get(kind, 'é"\n')


# --- that they are what the SDKs say ---


@every_session
def test_types_of_answers(replay: Replay, name: str) -> None:
    """Bodies, events and what the SDK makes of a stream are of the SDK's own types, checked and not only taken."""
    for exchange in replay.session(name):
        if exchange.path in FORMS and exchange.status == 200:
            check_types(exchange)


def check_types(exchange: Exchange) -> None:
    if exchange.path == MESSAGES:
        pytest.importorskip("anthropic")
        _check_message(exchange)
    elif isinstance(exchange.answer, bytes):
        _check_openai_stream(exchange)
    else:
        (ChatCompletion if exchange.path == CHAT else Response).model_validate(exchange.answer)


def _check_openai_stream(exchange: Exchange) -> None:
    with openai.OpenAI(api_key=KEY, base_url="http://recorded/v1") as client:
        request = httpx2.Request("POST", "http://recorded" + exchange.path)
        response = httpx2.Response(200, content=exchange.answer, request=request)
        if exchange.path == CHAT:
            for event in events_of(exchange.answer.decode()):
                ChatCompletionChunk.model_validate(event)
            chunks = openai.Stream(cast_to=ChatCompletionChunk, response=response, client=client)
            stream = ChatCompletionStream(raw_stream=chunks, response_format=openai.omit, input_tools=openai.omit)
            final = stream.get_final_completion().to_dict(mode="json")
        else:
            events = events_of(exchange.answer.decode())
            assert [event["sequence_number"] for event in events] == list(range(len(events)))
            for event in events:
                _response_events()[event["type"]].model_validate(event)
            raw: Any = openai.Stream(cast_to=ResponseStreamEvent, response=response, client=client)  # type: ignore
            helper: Any = ResponseStream(
                raw_stream=raw, text_format=openai.omit, input_tools=openai.omit, starting_after=None
            )
            final = helper.get_final_response().to_dict(mode="json")
    assert READ[exchange.path](final) == exchange.expected


@functools.cache
def _response_events() -> Mapping[str, Any]:
    models = get_args(get_args(ResponseStreamEvent)[0])
    return {get_args(model.model_fields["type"].annotation)[0]: model for model in models}


def _check_message(exchange: Exchange) -> None:
    anthropic: Any = importlib.import_module("anthropic")
    if not isinstance(exchange.answer, bytes):
        anthropic.types.Message.model_validate(exchange.answer)
        return
    models = get_args(get_args(anthropic.types.RawMessageStreamEvent)[0])
    by_type = {get_args(model.model_fields["type"].annotation)[0]: model for model in models}
    for event in events_of(exchange.answer.decode()):
        if event["type"] != "ping":
            by_type[event["type"]].model_validate(event)

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=exchange.answer, headers={"content-type": "text/event-stream"})

    with httpx2.Client(transport=httpx2.MockTransport(answer)) as http:
        client = anthropic.Anthropic(api_key=KEY, base_url="http://recorded", http_client=http)
        with client.messages.stream(model="fugu", max_tokens=9, messages=[{"role": "user", "content": "hi"}]) as stream:
            final = stream.get_final_message()
    assert read_messages(json.loads(final.model_dump_json())) == exchange.expected


def test_models(replay: Replay) -> None:
    """The list of models is of both SDKs' types."""
    (exchange,) = replay.session("openai-python-3.52.0/models-list")
    models = [openai.types.Model.model_validate(entry) for entry in exchange.answer["data"]]
    assert [model.id for model in models] == ["fugu", "player"]
    anthropic: Any = pytest.importorskip("anthropic")
    (exchange,) = replay.session("anthropic-python-2.11.0/models-list")
    listed = [anthropic.types.ModelInfo.model_validate(entry) for entry in exchange.answer["data"]]
    assert [model.display_name for model in listed] == ["fugu", "player"]


def test_count_tokens(replay: Replay) -> None:
    """So is the count of tokens."""
    (exchange,) = replay.session("anthropic-python-2.11.0/count-tokens")
    anthropic: Any = pytest.importorskip("anthropic")
    assert anthropic.types.MessageTokensCount.model_validate(exchange.answer).input_tokens > 0


def test_words_that_are_no_words_of_the_answer(replay: Replay) -> None:
    """What a client sends beyond the words of a field is let pass, and not repeated where it would break the type."""
    replay.player.line = Said(text="hello")
    body = {"model": "fugu", "input": "hi", "text": {"verbosity": "epic"}, "reasoning": {"summary": "long"}}
    answer = replay.server.request("POST", RESPONSES, body, {"authorization": f"Bearer {KEY}"})[2]
    Response.model_validate(answer)
    assert (answer["text"], answer["reasoning"]["summary"]) == ({"format": {"type": "text"}}, None)
    for wrong in ({"description": 7}, {"strict": "yes"}):
        form = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, **wrong}
        body = {"model": "fugu", "input": "hi", "text": {"format": form}}
        status, _, answer = replay.server.request("POST", RESPONSES, body, {"authorization": f"Bearer {KEY}"})
        assert (status, answer["error"]["param"]) == (400, f"text.format.{next(iter(wrong))}")
