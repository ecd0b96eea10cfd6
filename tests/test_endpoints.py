"""The three dialects at the same server: real sockets, OpenAI's own SDK, and tools that survive a workflow."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest

from runs import USAGE
from serving import KEY, Server, running
from torafugu.errors import WorkerError
from torafugu.orchestrate import Run
from torafugu.orchestrate.conductor import Conductor, ConductorConfig
from torafugu.pool import Backend, Failing, Prices, Scripted
from torafugu.server import KeySpec
from torafugu.types import Answer, Plan, Step
from workflows import calls, script, write

OTHER = "sk-other-" + "o" * 32
ECHO = {"echo": Scripted(lambda query: f"You said: {query.messages[-1].text}", usage=USAGE, pieces=3)}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def key(name: str, value: str) -> KeySpec:
    return KeySpec(name=name, sha256=hashlib.sha256(value.encode()).hexdigest())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path, ECHO, keys=(key("one", KEY), key("two", OTHER))) as running_server:
        yield running_server


# --- responses ---


def test_response(server: Server) -> None:
    """The Responses API answers through OpenAI's SDK, whole and as a stream, with the same text and usage."""
    client = server.client()
    whole = client.responses.create(model="echo", input="hi", instructions="Be brief.")
    assert (whole.output_text, whole.status, whole.instructions) == ("You said: hi", "completed", "Be brief.")
    assert whole.usage is not None
    assert whole.usage.total_tokens == 1100
    with client.responses.stream(model="echo", input="hi") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert final.output_text == "You said: hi"


def test_stored_response(server: Server) -> None:
    """What is stored can be read back equal, listed, and deleted; then it does not exist, but its cost stays known."""
    client = server.client()
    made = client.responses.create(model="echo", input="hi", metadata={"a": "b"})
    read = client.responses.retrieve(made.id)
    assert read.model_dump() == made.model_dump()
    assert [item.type for item in client.responses.input_items.list(made.id)] == ["message"]
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    run = server.request("GET", f"/v1/runs/{made.id.removeprefix('resp_')}", headers=bearer(KEY))[2]
    assert run["run"]["cost_usd"] is not None


def test_response_that_goes_on(server: Server) -> None:
    """`previous_response_id` continues the conversation, over several turns."""
    client = server.client()
    first = client.responses.create(model="echo", input="one")
    second = client.responses.create(model="echo", input="two", previous_response_id=first.id)
    third = client.responses.create(model="echo", input="three", previous_response_id=second.id)
    run = server.request("GET", f"/v1/runs/{third.id.removeprefix('resp_')}", headers=bearer(KEY))[2]
    asked = [m["content"] for m in run["events"][0]["event"]["request"]["messages"]]
    assert [text if isinstance(text, str) else text[0]["text"] for text in asked] == [
        "one",
        "You said: one",
        "two",
        "You said: two",
        "three",
    ]


def test_responses_of_others(server: Server) -> None:
    """A response of another key, one that was not to be stored, and one that never was do not exist."""
    client, other = server.client(), openai.OpenAI(base_url=server.url + "/v1", api_key=OTHER, max_retries=0)
    made = client.responses.create(model="echo", input="hi")
    unstored = client.responses.create(model="echo", input="hi", store=False)
    for who, id in ((other, made.id), (client, unstored.id), (client, "resp_run_" + "0" * 26), (client, "x")):
        with pytest.raises(openai.NotFoundError):
            who.responses.retrieve(id)
        with pytest.raises(openai.NotFoundError):
            who.responses.delete(id)
        with pytest.raises(openai.BadRequestError) as raised:
            who.responses.create(model="echo", input="more", previous_response_id=id)
        assert raised.value.code == "previous_response_not_found"
    assert client.responses.retrieve(made.id).output_text == "You said: hi"


# --- messages ---

ASK = {"model": "echo", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}


def test_message(server: Server) -> None:
    """The Messages API answers with blocks, and takes Anthropic's header for the key."""
    status, headers, body = server.request("POST", "/v1/messages?beta=true", ASK, {"x-api-key": KEY})
    assert status == 200
    assert body["content"] == [{"type": "text", "text": "You said: hi", **body["content"][0]}]
    assert (body["type"], body["role"], body["stop_reason"]) == ("message", "assistant", "end_turn")
    assert body["usage"]["input_tokens"] == 1000
    assert headers["x-fugu-run-id"] == body["id"].removeprefix("msg_")


def test_streamed_message(server: Server) -> None:
    """A stream has the events that Anthropic's clients wait for, in their order."""
    _, headers, body = server.request("POST", "/v1/messages", {**ASK, "stream": True}, {"x-api-key": KEY})
    assert headers["content-type"].startswith("text/event-stream")
    kinds = [line[7:] for line in body.decode().splitlines() if line.startswith("event: ")]
    wanted = ["message_start", "content_block_start", *["content_block_delta"] * 3, "content_block_stop"]
    assert [kind for kind in kinds if kind != "ping"] == [*wanted, "message_delta", "message_stop"]


def test_errors_have_the_dialects_shape(server: Server) -> None:
    """Each dialect's clients read an error where they look for it, also those that no dialect has parsed."""
    for headers, body, status, kind in (
        ({}, ASK, 401, "authentication_error"),
        ({"x-api-key": KEY}, {**ASK, "model": "nobody"}, 404, "not_found_error"),
        ({"x-api-key": KEY}, {"model": "echo"}, 400, "invalid_request_error"),
    ):
        got, _, told = server.request("POST", "/v1/messages", body, headers)
        assert (got, told["type"], told["error"]["type"]) == (status, "error", kind)
    got, _, told = server.request("POST", "/v1/responses", {"model": "nobody", "input": "x"}, bearer(KEY))
    assert (got, told["error"]["code"]) == (404, "model_not_found")


def test_token_count(server: Server) -> None:
    """Tokens can be counted beforehand, marked as an estimate."""
    status, headers, body = server.request("POST", "/v1/messages/count_tokens", ASK, {"x-api-key": KEY})
    assert (status, headers["x-fugu-token-count"]) == (200, "estimate")
    assert body["input_tokens"] > 0


def test_one_dialect_does_not_poison_the_others(server: Server) -> None:
    """Fifty chat completions after a message to the same worker succeed."""
    assert server.request("POST", "/v1/messages", ASK, {"x-api-key": KEY})[0] == 200
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
    for _ in range(50):
        status, _, answer = server.request("POST", "/v1/chat/completions", body, bearer(KEY))
        assert (status, answer["choices"][0]["message"]["content"]) == (200, "You said: hi")


# --- streams that fail ---

BODIES: Mapping[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "dies", "messages": [{"role": "user", "content": "hi"}], "stream": True},
    "/v1/responses": {"model": "dies", "input": "hi", "stream": True},
    "/v1/messages": {**ASK, "model": "dies", "stream": True},
}


@pytest.mark.parametrize("path", BODIES)
def test_failed_stream_never_ends_cleanly(path: str, tmp_path: Path) -> None:
    """After a token has left, a fault is an error frame in the dialect's form, and a connection that breaks off, but
    where the dialect has an event that says so beyond doubt (docs/decisions/0015)."""
    with (
        running(tmp_path, {"dies": Failing("die", deltas=2)}) as server,
        contextlib.closing(server.connect(BODIES[path], path)) as connection,
    ):
        received = b""
        while not received.endswith(b"0\r\n\r\n") and (piece := connection.recv(65536)):
            received += piece
    assert b"piece 0" in received
    assert received.endswith(b"0\r\n\r\n") == (path == "/v1/responses")
    for clean in (b"[DONE]", b"response.completed", b"message_stop", b'"finish_reason":"stop"'):
        assert clean not in received
    assert b"error" in received
    if path == "/v1/responses":
        assert b"event: response.failed" in received
    if path == "/v1/messages":
        assert b'event: error\ndata: {"type":"error"' in received


@pytest.mark.parametrize("path", BODIES)
def test_overload_says_when_to_come_back(path: str, tmp_path: Path) -> None:
    """A fault before the first token is a status with Retry-After, in every dialect."""
    busy = WorkerError("worker 'dies': busy", worker="dies", code="rate_limited", retry_after_s=7.0)
    with running(tmp_path, {"dies": Failing(busy)}) as server:
        status, headers, _ = server.request("POST", path, BODIES[path])
    assert (status, headers["retry-after"]) == (429, "7")


# --- tools through a workflow ---

PLAN = write((0, "FIND", []), (1, "MEND", [0]))
TOOL = {"type": "function", "function": {"name": "read", "parameters": {"type": "object", "properties": {}}}}
QUESTION = [{"role": "user", "content": "Mend the bug."}]


def ultra(**backends: Backend) -> dict[str, Any]:
    """A server's workers, and the conductor above them."""
    policy = Conductor(ConductorConfig(worker="boss"), {id: id for id in backends}, tool_users=frozenset(backends))
    return {"backends": backends, "policies": {"fugu-ultra": policy}}


def mending() -> dict[str, Any]:
    return ultra(boss=script(PLAN), a=script(calls({"path": "x"}), "FOUND", "FOUND"), b=script("MENDED", "MENDED"))


def begin(server: Server, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The assistant's turn that calls the tool."""
    body = {"model": "fugu-ultra", "messages": QUESTION, "tools": [TOOL]}
    status, _, answer = server.request("POST", "/v1/chat/completions", body, headers)
    assert status == 200, answer
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    return dict(choice["message"])


def go_on(
    server: Server, turn: dict[str, Any], headers: Mapping[str, str] | None = None, **fields: Any
) -> tuple[int, Any]:
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "RESULT"} for call in turn["tool_calls"]]
    body = {"model": "fugu-ultra", "messages": [*QUESTION, turn, *results], "tools": [TOOL], **fields}
    status, _, answer = server.request("POST", "/v1/chat/completions", body, headers)
    return status, answer


def test_tools_survive_a_workflow(tmp_path: Path) -> None:
    """A step's tool call reaches the client, its result reaches the step, and the workflow ends with the answer."""
    world = mending()
    with running(tmp_path, **world) as server:
        turn = begin(server)
        status, answer = go_on(server, turn)
        assert (status, answer["choices"][0]["message"]["content"]) == (200, "MENDED")
        assert [step["outcome"] for step in answer["fugu"]["steps"]] == ["earlier", "replied", "replied"]
        record = server.request("GET", f"/v1/runs/{answer['fugu']['run_id']}")[2]
    assert record["events"][0]["event"]["resumes"] == "run_" + turn["tool_calls"][0]["id"].split("_")[1]
    assert len(world["backends"]["boss"].queries) == 1


def test_restart_between(tmp_path: Path) -> None:
    """What waits for tools survives a restart of the server."""
    world = mending()
    with running(tmp_path, **world) as server:
        turn = begin(server)
    with running(tmp_path, **world) as server:
        assert go_on(server, turn)[1]["choices"][0]["message"]["content"] == "MENDED"


def test_second_replica(tmp_path: Path) -> None:
    """The results may come to another server on the same store."""
    world = mending()
    with running(tmp_path, **world) as one, running(tmp_path, **world) as other:
        assert go_on(other, begin(one))[1]["choices"][0]["message"]["content"] == "MENDED"


def test_retried_results(tmp_path: Path) -> None:
    """A client that did not get our answer sends the same results again, and gets one."""
    with running(tmp_path, **mending()) as server:
        turn = begin(server)
        for _ in range(2):
            assert go_on(server, turn)[1]["choices"][0]["message"]["content"] == "MENDED"


def test_results_of_others(tmp_path: Path) -> None:
    """Results for calls that another key's request made are refused, as are those nobody asked for."""
    with running(tmp_path, **mending(), keys=(key("one", KEY), key("two", OTHER))) as server:
        turn = begin(server, bearer(KEY))
        status, answer = go_on(server, turn, bearer(OTHER))
        assert (status, answer["error"]["code"]) == (400, "unknown_tool_call")
        unknown = {"role": "assistant", "tool_calls": [{**turn["tool_calls"][0], "id": f"call_{'0' * 26}_1_0"}]}
        status, answer = go_on(server, unknown, bearer(KEY))
        assert (status, answer["error"]["code"]) == (400, "unknown_tool_call")
        assert go_on(server, turn, bearer(KEY))[0] == 200


def test_results_that_come_too_late(tmp_path: Path) -> None:
    """A run waits for a limited time."""
    with running(tmp_path, **mending(), tool_results_s=0.05) as server:
        turn = begin(server)
        time.sleep(0.1)
        status, answer = go_on(server, turn)
    assert (status, answer["error"]["code"]) == (400, "unknown_tool_call")
    assert "came more than" in answer["error"]["message"]


def test_another_model_takes_over(tmp_path: Path) -> None:
    """A client that chooses another model for its results gets a run of that model's, with the calls as history."""
    world = mending()
    with running(tmp_path, **world) as server:
        status, answer = go_on(server, begin(server), model="b")
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "MENDED")
    assert [m.role for m in world["backends"]["b"].queries[0].messages] == ["user", "assistant", "tool"]


def test_tools_over_responses(tmp_path: Path) -> None:
    """The same over the Responses API, with a custom tool, streamed, the history in the client's hands."""
    world = ultra(boss=script(PLAN), a=script(calls({"input": "*** Begin"}), "FOUND"), b=script("MENDED"))
    tool: Any = {"type": "custom", "name": "read"}
    with running(tmp_path, **world) as server:
        client = server.client()
        first = client.responses.create(model="fugu-ultra", input="Mend it.", tools=[tool], store=False)
        (item,) = first.output
        assert item.type == "custom_tool_call"
        assert item.input == "*** Begin"
        history: Any = [
            {"role": "user", "content": "Mend it."},
            item.model_dump(exclude_none=True),
            {"type": "custom_tool_call_output", "call_id": item.call_id, "output": "RESULT"},
        ]
        with client.responses.stream(model="fugu-ultra", input=history, tools=[tool], store=False) as stream:
            for _ in stream:
                pass
            assert stream.get_final_response().output_text == "MENDED"


def test_tools_over_stored_responses(tmp_path: Path) -> None:
    """And with the history in ours: only the result is sent, with `previous_response_id`."""
    with running(tmp_path, **mending()) as server:
        client = server.client()
        tool: Any = {"type": "function", "name": "read", "parameters": {"type": "object"}, "strict": False}
        first = client.responses.create(model="fugu-ultra", input="Mend it.", tools=[tool])
        (item,) = first.output
        assert item.type == "function_call"
        result: Any = {"type": "function_call_output", "call_id": item.call_id, "output": "RESULT"}
        second = client.responses.create(
            model="fugu-ultra", input=[result], previous_response_id=first.id, tools=[tool]
        )
    assert second.output_text == "MENDED"


def test_tools_over_messages(tmp_path: Path) -> None:
    """The same over the Messages API."""
    tool = {"name": "read", "input_schema": {"type": "object", "properties": {}}}
    body: dict[str, Any] = {"model": "fugu-ultra", "max_tokens": 100, "messages": QUESTION, "tools": [tool]}
    with running(tmp_path, **mending()) as server:
        _, _, first = server.request("POST", "/v1/messages", body)
        (use,) = [block for block in first["content"] if block["type"] == "tool_use"]
        assert (first["stop_reason"], use["input"]) == ("tool_use", {"path": "x"})
        result = {"type": "tool_result", "tool_use_id": use["id"], "content": "RESULT"}
        body["messages"] = [
            *QUESTION,
            {"role": "assistant", "content": first["content"]},
            {"role": "user", "content": [result]},
        ]
        _, _, second = server.request("POST", "/v1/messages", json.loads(json.dumps(body, default=float)))
    assert [block["text"] for block in second["content"] if block["type"] == "text"] == ["MENDED"]


# --- sessions and housekeeping ---

CHEAP = {"a": Prices(input=Decimal(1), output=Decimal(1)), "b": Prices(input=Decimal(9), output=Decimal(9))}


class Notes:
    """A policy like the selector: one worker, and what it was told of the session."""

    id = "fugu@test"

    async def decide(self, run: Run) -> Plan | Answer:
        if run.replies:
            return Answer(step=0)
        warm = run.request.warm
        return Plan(steps=(Step(id=0, worker="b", is_final=True),), notes={"warm": warm.worker if warm else None})


def notes_of(server: Server, answer: Any, headers: Mapping[str, str]) -> Any:
    """What the policy put on record, which is written behind the answer."""
    while True:
        record = server.request("GET", f"/v1/runs/{answer['fugu']['run_id']}", headers=headers)[2]
        planned = [e["event"]["plan"] for e in record.get("events", ()) if e["event"]["kind"] == "planned"]
        if planned:
            return planned[0].get("notes")
        time.sleep(0.01)


def test_session_is_warm(tmp_path: Path) -> None:
    """A policy is told which worker has the conversation's cache: of the same session and key, after a reply."""
    keys = (key("one", KEY), key("two", OTHER))
    backends = {"a": script(), "b": Scripted(lambda query: "ok", usage=USAGE)}
    with running(tmp_path, backends, policies={"fugu": Notes()}, keys=keys) as server:
        for who, session, warm in ((KEY, "s", None), (KEY, "s", "b"), (KEY, "t", None), (OTHER, "s", None)):
            headers = {**bearer(who), "x-session-id": session}
            body = {"model": "fugu", "messages": [{"role": "user", "content": "hi"}]}
            _, _, answer = server.request("POST", "/v1/chat/completions", body, headers)
            assert notes_of(server, answer, headers) == {"warm": warm}


def test_housekeeping_goes_to_the_cheapest(tmp_path: Path) -> None:
    """A title that opencode asks for beside the conversation never reaches the policy."""
    backends = {"a": script("A title"), "b": Scripted(lambda query: "ok", usage=USAGE)}
    title = [
        {"role": "system", "content": "You are a title generator. You output ONLY a thread title."},
        {"role": "user", "content": "Generate a title for this conversation:"},
        {"role": "user", "content": "How do I sort a list?"},
    ]
    with running(tmp_path, backends, policies={"fugu": Notes()}, prices=CHEAP) as server:
        body = {"model": "fugu", "messages": title}
        agent = {"user-agent": "opencode/1.18.33 ai-sdk"}
        _, headers, answer = server.request("POST", "/v1/chat/completions", body, agent)
        assert (headers["x-fugu-workers"], headers["x-fugu-policy"]) == ("a", "housekeeping:a")
        assert notes_of(server, answer, {}) == {"housekeeping": "opencode: title"}
        _, headers, _ = server.request("POST", "/v1/chat/completions", body)
        assert headers["x-fugu-workers"] == "b"
