"""Cases of our own in the manner of gpt-oss's: all dialects, whole and streamed, tools and reasoning, by each worker.

What is checked is what clients were seen to rely on: reasoning under both names, calls whole and in pieces, ids that
can be sent back, no chunk without choices unless asked for, errors where they are looked for, no clean end of a stream
that broke.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from endpoint import PIXEL_PNG, Answer, Endpoint, run_case, say, tell

MODELS = ("oracle", "claude")
"""A worker of each wire dialect."""
WORKFLOW = "fugu-ultra"
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"

SCHEMA = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
STRICT = {**SCHEMA, "additionalProperties": False}
FUNCTION = {"name": "get_weather", "description": "Weather of a place", "parameters": SCHEMA}
CHAT_TOOL = {"type": "function", "function": FUNCTION}
TOOL = {"type": "function", **FUNCTION}
CLAUDE_TOOL = {"name": "get_weather", "description": "Weather of a place", "input_schema": SCHEMA}
ARGUMENTS = '{"place": "S\\u00e3o Paulo, \\"SP\\"\\n"}'
PLACE = 'São Paulo, "SP"\n'
CALL = {"name": "get_weather", "arguments": ARGUMENTS}
TEXT = 'Two lines,\nand "quotes" — é 🐡.'
THOUGHT = "First this, then that."

Check = Callable[[Endpoint, str], None]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


class Chat:
    """The requests of one dialect, and what is read off their answers."""

    @staticmethod
    def ask(endpoint: Endpoint, model: str, text: str, **fields: Any) -> Any:
        answer = endpoint.post(CHAT, {"model": model, "messages": [user(text)], **fields})
        assert answer.status == 200, answer.body
        return answer.json["choices"][0]

    @staticmethod
    def stream(endpoint: Endpoint, model: str, text: str, **fields: Any) -> list[Any]:
        body = {"model": model, "messages": [user(text)], "stream": True, **fields}
        return finished(endpoint.post(CHAT, body)).events

    @staticmethod
    def joined(events: list[Any], name: str) -> str:
        chunks = [event for event in events if event != "[DONE]"]
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        return "".join(delta.get(name) or "" for delta in deltas)


def finished(answer: Answer) -> Answer:
    assert answer.status == 200, answer.body
    assert not answer.is_cut
    return answer


def respond(endpoint: Endpoint, model: str, given: Any, **fields: Any) -> Any:
    answer = endpoint.post(RESPONSES, {"model": model, "input": given, **fields})
    assert answer.status == 200, answer.body
    return answer.json


def respond_stream(endpoint: Endpoint, model: str, given: Any, **fields: Any) -> list[Any]:
    return finished(endpoint.post(RESPONSES, {"model": model, "input": given, "stream": True, **fields})).events


def message(endpoint: Endpoint, model: str, messages: Any, **fields: Any) -> Any:
    answer = endpoint.post(MESSAGES, {"model": model, "max_tokens": 5000, "messages": messages, **fields})
    assert answer.status == 200, answer.body
    return answer.json


def message_stream(endpoint: Endpoint, model: str, text: str, **fields: Any) -> list[Any]:
    body = {"model": model, "max_tokens": 5000, "messages": [user(text)], "stream": True, **fields}
    return finished(endpoint.post(MESSAGES, body)).events


# --- chat completions ---


def chat_text(endpoint: Endpoint, model: str) -> None:
    choice = Chat.ask(endpoint, model, say(TEXT))
    assert (choice["message"]["content"], choice["finish_reason"]) == (TEXT, "stop")


def chat_reasoning(endpoint: Endpoint, model: str) -> None:
    told = Chat.ask(endpoint, model, say(TEXT, reasoning=THOUGHT))["message"]
    assert (told["reasoning"], told["reasoning_content"], told["content"]) == (THOUGHT, THOUGHT, TEXT)


def chat_call(endpoint: Endpoint, model: str) -> None:
    choice = Chat.ask(endpoint, model, say(calls=[CALL], reasoning=THOUGHT), tools=[CHAT_TOOL])
    (call,) = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], call["function"]["name"]) == ("tool_calls", "get_weather")
    assert json.loads(call["function"]["arguments"]) == {"place": PLACE}
    assert choice["message"]["reasoning"] == THOUGHT


def chat_parallel_calls(endpoint: Endpoint, model: str) -> None:
    calls = Chat.ask(endpoint, model, say(calls=[CALL, CALL]), tools=[CHAT_TOOL])["message"]["tool_calls"]
    assert len({call["id"] for call in calls}) == 2


def chat_tool_loop(endpoint: Endpoint, model: str) -> None:
    question = user(say(calls=[CALL, CALL]))
    first = Chat.ask(endpoint, model, question["content"], tools=[CHAT_TOOL])["message"]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": f"result {i}"}
        for i, call in enumerate(first["tool_calls"])
    ]
    body = {"model": model, "messages": [question, first, *results], "tools": [CHAT_TOOL]}
    told = endpoint.post(CHAT, body).json["choices"][0]["message"]["content"]
    assert told == "The tools said: result 0, result 1", told


def chat_tool_choice(endpoint: Endpoint, model: str) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        told = Chat.ask(endpoint, model, "Weather?", tools=[CHAT_TOOL], tool_choice=choice)
        assert told["message"]["tool_calls"][0]["function"]["name"] == "get_weather"
    told = Chat.ask(endpoint, model, "Weather?", tools=[CHAT_TOOL], tool_choice="none")
    assert told["message"]["content"] == "You said: Weather?", told


def chat_schema(endpoint: Endpoint, model: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": STRICT, "strict": True}}
    told = Chat.ask(endpoint, model, "Where?", response_format=form)["message"]["content"]
    assert json.loads(told) == {"place": "word"}


def chat_image(endpoint: Endpoint, model: str) -> None:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL_PNG}"}}
    content = [{"type": "text", "text": "What is it?"}, image]
    answer = endpoint.post(CHAT, {"model": model, "messages": [{"role": "user", "content": content}]})
    assert "(image" in answer.json["choices"][0]["message"]["content"], answer.body


def chat_developer(endpoint: Endpoint, model: str) -> None:
    messages = [{"role": "developer", "content": "Be brief."}, user(say(TEXT))]
    assert endpoint.post(CHAT, {"model": model, "messages": messages}).json["choices"][0]["message"]["content"] == TEXT


def chat_limit(endpoint: Endpoint, model: str) -> None:
    assert Chat.ask(endpoint, model, say("Tw", finish="length"), max_tokens=20)["finish_reason"] == "length"


def chat_unknown_fields(endpoint: Endpoint, model: str) -> None:
    told = Chat.ask(endpoint, model, say(TEXT), whatever={"a": 1}, client_metadata={"b": "c"})
    assert told["message"]["content"] == TEXT


def chat_stream_text(endpoint: Endpoint, model: str) -> None:
    events = Chat.stream(endpoint, model, say(TEXT))
    assert events[-1] == "[DONE]"
    assert Chat.joined(events, "content") == TEXT
    assert all(event["choices"] for event in events[:-1]), "a chunk without choices, though no usage was asked for"
    assert events[-2]["choices"][0]["finish_reason"] == "stop"


def chat_stream_usage(endpoint: Endpoint, model: str) -> None:
    events = Chat.stream(endpoint, model, say(TEXT), stream_options={"include_usage": True})
    assert (events[-2]["choices"], events[-2]["usage"]["total_tokens"]) == ([], 18)
    assert all(event["usage"] is None for event in events[:-2])


def chat_stream_reasoning(endpoint: Endpoint, model: str) -> None:
    events = Chat.stream(endpoint, model, say(TEXT, reasoning=THOUGHT))
    assert Chat.joined(events, "reasoning") == Chat.joined(events, "reasoning_content") == THOUGHT
    kinds = ["reasoning" if event["choices"][0]["delta"].get("reasoning") else "text" for event in events[1:-2]]
    assert kinds == sorted(kinds), "reasoning after the text began"


def chat_stream_call(endpoint: Endpoint, model: str) -> None:
    events = Chat.stream(endpoint, model, say(calls=[CALL, CALL]), tools=[CHAT_TOOL])
    arguments: dict[int, str] = {}
    for event in events[:-1]:
        for call in event["choices"][0]["delta"].get("tool_calls") or ():
            arguments[call["index"]] = arguments.get(call["index"], "") + call["function"]["arguments"]
    assert [json.loads(text) for text in arguments.values()] == [{"place": PLACE}] * 2
    assert events[-2]["choices"][0]["finish_reason"] == "tool_calls"


def chat_broken_stream(endpoint: Endpoint, model: str) -> None:
    body = {"model": model, "messages": [user(say("A text that is long enough.", cut=True))], "stream": True}
    answer = endpoint.post(CHAT, body)
    assert answer.is_cut
    assert b"[DONE]" not in answer.body
    assert answer.events[-1]["error"]["message"]


# --- responses ---


def responses_text(endpoint: Endpoint, model: str) -> None:
    told = respond(endpoint, model, say(TEXT))
    assert (told["status"], told["output"][0]["content"][0]["text"]) == ("completed", TEXT)


def responses_reasoning(endpoint: Endpoint, model: str) -> None:
    thought, told = respond(endpoint, model, say(TEXT, reasoning=THOUGHT), reasoning={"effort": "low"})["output"]
    assert (thought["type"], thought["summary"][0]["text"]) == ("reasoning", THOUGHT)
    assert told["content"][0]["text"] == TEXT


def responses_call(endpoint: Endpoint, model: str) -> None:
    (call,) = respond(endpoint, model, say(calls=[CALL]), tools=[TOOL])["output"]
    assert (call["type"], json.loads(call["arguments"])) == ("function_call", {"place": PLACE})


def responses_tool_loop(endpoint: Endpoint, model: str) -> None:
    question = user(say(calls=[CALL, CALL], reasoning=THOUGHT))
    items = respond(endpoint, model, [question], tools=[TOOL], store=False)["output"]
    results = [
        {"type": "function_call_output", "call_id": item["call_id"], "output": f"result {i}"}
        for i, item in enumerate(item for item in items if item["type"] == "function_call")
    ]
    told = respond(endpoint, model, [question, *items, *results], tools=[TOOL], store=False)
    assert told["output"][-1]["content"][0]["text"] == "The tools said: result 0, result 1", told["output"]


def responses_stored_tool_loop(endpoint: Endpoint, model: str) -> None:
    first = respond(endpoint, model, say(calls=[CALL]), tools=[TOOL])
    result = {"type": "function_call_output", "call_id": first["output"][0]["call_id"], "output": "17 degrees"}
    told = respond(endpoint, model, [result], tools=[TOOL], previous_response_id=first["id"])
    assert told["output"][0]["content"][0]["text"] == "The tools said: 17 degrees"


def responses_schema(endpoint: Endpoint, model: str) -> None:
    form = {"format": {"type": "json_schema", "name": "place", "schema": STRICT, "strict": True}}
    told = respond(endpoint, model, "Where?", text=form)["output"][0]["content"][0]["text"]
    assert json.loads(told) == {"place": "word"}


def responses_free_form(endpoint: Endpoint, model: str) -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": 'start: "+" /.+/'}
    tools = [{"type": "custom", "name": "patch", "description": "A patch", "format": grammar}]
    given = 'line "one"\n+é\n'
    question = user(say(calls=[{"name": "patch", "arguments": json.dumps({"input": given})}]))
    (call,) = respond(endpoint, model, [question], tools=tools, store=False)["output"]
    assert (call["type"], call["input"]) == ("custom_tool_call", given)
    output = {"type": "custom_tool_call_output", "call_id": call["call_id"], "output": "applied"}
    told = respond(endpoint, model, [question, call, output], tools=tools, store=False)
    assert told["output"][0]["content"][0]["text"] == "The tools said: applied"


def responses_namespace(endpoint: Endpoint, model: str) -> None:
    tools = [{"type": "namespace", "name": "agents", "description": "Agents", "tools": [TOOL]}, {"type": "web_search"}]
    question = say(calls=[{"name": "agents__get_weather", "arguments": ARGUMENTS}])
    (call,) = respond(endpoint, model, question, tools=tools)["output"]
    assert (call["namespace"], call["name"]) == ("agents", "get_weather")


def responses_stream_text(endpoint: Endpoint, model: str) -> None:
    events = respond_stream(endpoint, model, say(TEXT))
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == TEXT
    assert len(deltas) > 1
    assert (events[0]["type"], events[-1]["type"]) == ("response.created", "response.completed")


def responses_stream_reasoning(endpoint: Endpoint, model: str) -> None:
    events = respond_stream(endpoint, model, say(TEXT, reasoning=THOUGHT))
    deltas = [event["delta"] for event in events if event["type"] == "response.reasoning_summary_text.delta"]
    assert "".join(deltas) == THOUGHT
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["reasoning", "message"]


def responses_stream_call(endpoint: Endpoint, model: str) -> None:
    events = respond_stream(endpoint, model, say(calls=[CALL, CALL]), tools=[TOOL])
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [json.loads(item["arguments"]) for item in done] == [{"place": PLACE}] * 2
    deltas = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(deltas) == "".join(item["arguments"] for item in done)


def responses_broken_stream(endpoint: Endpoint, model: str) -> None:
    events = respond_stream(endpoint, model, say("A text that is long enough.", cut=True))
    assert (events[-2]["type"], events[-1]["type"]) == ("error", "response.failed")
    assert events[-1]["response"]["error"]["code"] == "server_error"


# --- messages ---


def messages_text(endpoint: Endpoint, model: str) -> None:
    told = message(endpoint, model, [user(say(TEXT, reasoning=THOUGHT))])
    assert ([block["type"] for block in told["content"]], told["stop_reason"]) == (["text"], "end_turn")
    assert told["content"][0]["text"] == TEXT


def messages_thinking(endpoint: Endpoint, model: str) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    told = message(endpoint, model, [user(say(TEXT, reasoning=THOUGHT))], thinking=thinking)
    assert [block["type"] for block in told["content"]] == ["thinking", "text"]
    assert told["content"][0]["thinking"] == THOUGHT


def messages_tool_loop(endpoint: Endpoint, model: str) -> None:
    question = user(say(calls=[CALL, CALL]))
    first = message(endpoint, model, [question], tools=[CLAUDE_TOOL])
    assert [block["input"] for block in first["content"]] == [{"place": PLACE}] * 2
    results = [
        {"type": "tool_result", "tool_use_id": block["id"], "content": [{"type": "text", "text": f"result {i}"}]}
        for i, block in enumerate(first["content"])
    ]
    turns = [question, {"role": "assistant", "content": first["content"]}, {"role": "user", "content": results}]
    told = message(endpoint, model, turns, tools=[CLAUDE_TOOL])
    assert told["content"][0]["text"] == "The tools said: result 0, result 1", told["content"]


def messages_stream(endpoint: Endpoint, model: str) -> None:
    events = message_stream(endpoint, model, say(TEXT, calls=[CALL]), tools=[CLAUDE_TOOL])
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(delta.get("text", "") for delta in deltas) == TEXT
    assert json.loads("".join(delta.get("partial_json", "") for delta in deltas)) == {"place": PLACE}
    assert events[-1]["type"] == "message_stop"


def messages_broken_stream(endpoint: Endpoint, model: str) -> None:
    text = say("A text that is long enough.", cut=True)
    body = {"model": model, "max_tokens": 50, "messages": [user(text)], "stream": True}
    answer = endpoint.post(MESSAGES, body)
    assert answer.is_cut
    assert answer.events[-1]["type"] == "error"


# --- faults before the first token ---


def overload(endpoint: Endpoint, model: str) -> None:
    question = say("slow down", status=429, retry_after=900)
    for path, body in _bodies(model, question):
        answer = endpoint.post(path, body)
        assert (answer.status, answer.headers.get("retry-after")) == (429, "900"), (path, answer.status, answer.headers)


def too_long(endpoint: Endpoint, model: str) -> None:
    told = "prompt is too long: 9 tokens > 8 maximum" if model == "claude" else "maximum context length is 8 tokens"
    question = say(told, status=400, finish="context_length_exceeded")
    for path, body in _bodies(model, question):
        answer = endpoint.post(path, body)
        assert (answer.status, answer.json["error"]["code"]) == (400, "context_length_exceeded"), (path, answer.body)


def unknown_model(endpoint: Endpoint, model: str) -> None:
    for path, body in _bodies("nobody", "hi"):
        answer = endpoint.post(path, body)
        assert (answer.status, "nobody" in answer.json["error"]["message"]) == (404, True), (path, answer.body)


def no_poison(endpoint: Endpoint, model: str) -> None:
    message(endpoint, model, [user(say(TEXT))])
    for _ in range(50):
        chat_text(endpoint, model)


def _bodies(model: str, text: str) -> list[tuple[str, Any]]:
    messages = [user(text)]
    return [
        (CHAT, {"model": model, "messages": messages, "stream": True}),
        (RESPONSES, {"model": model, "input": text, "stream": True}),
        (MESSAGES, {"model": model, "max_tokens": 50, "messages": messages, "stream": True}),
    ]


# --- a workflow of two workers ---


def workflow_reasoning(endpoint: Endpoint, model: str) -> None:
    events = Chat.stream(endpoint, model, say(TEXT))
    assert Chat.joined(events, "content") == TEXT
    assert "oracle" in Chat.joined(events, "reasoning"), "the workers are not told of"
    events = respond_stream(endpoint, model, say(TEXT))
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["reasoning", "message"]


def workflow_steps(endpoint: Endpoint, model: str) -> None:
    told = respond(endpoint, model, say(TEXT))
    assert told["output"][-1]["content"][0]["text"] == TEXT
    assert [step["worker"] for step in told["fugu"]["steps"]][-2:] == ["oracle", "claude"], told["fugu"]


WORKER_CASES: Mapping[str, Check] = {
    check.__name__.replace("_", " "): check
    for check in (
        chat_text,
        chat_reasoning,
        chat_call,
        chat_parallel_calls,
        chat_tool_loop,
        chat_tool_choice,
        chat_schema,
        chat_image,
        chat_developer,
        chat_limit,
        chat_unknown_fields,
        chat_stream_text,
        chat_stream_usage,
        chat_stream_reasoning,
        chat_stream_call,
        chat_broken_stream,
        responses_text,
        responses_reasoning,
        responses_call,
        responses_tool_loop,
        responses_stored_tool_loop,
        responses_schema,
        responses_free_form,
        responses_namespace,
        responses_stream_text,
        responses_stream_reasoning,
        responses_stream_call,
        responses_broken_stream,
        messages_text,
        messages_thinking,
        messages_tool_loop,
        messages_stream,
        messages_broken_stream,
        overload,
        too_long,
        unknown_model,
        no_poison,
    )
}
WORKFLOW_CASES: Mapping[str, Check] = {
    check.__name__.replace("_", " "): check
    for check in (
        workflow_reasoning,
        workflow_steps,
        chat_text,
        chat_tool_loop,
        chat_stream_call,
        responses_tool_loop,
        responses_stored_tool_loop,
        responses_free_form,
        responses_namespace,
        messages_tool_loop,
        messages_stream,
    )
}


def main() -> None:
    endpoint = Endpoint.from_environ()
    chosen = [(model, WORKER_CASES) for model in MODELS] + [(WORKFLOW, WORKFLOW_CASES)]
    tell(
        [
            run_case(f"{model}: {name}", lambda check=check, model=model: check(endpoint, model))  # type: ignore[misc]
            for model, cases in chosen
            for name, check in cases.items()
        ]
    )


if __name__ == "__main__":
    main()
