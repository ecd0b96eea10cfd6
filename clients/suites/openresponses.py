"""Answers of `/v1/responses` against the types of the OpenResponses specification (PyPI `openresponses-types`).

Every body, every event and the object in it is validated; sequence numbers count, and the last event is the whole.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import openresponses_types.types as types
from endpoint import PIXEL_PNG, Answer, Case, Endpoint, run_case, say, tell
from pydantic import BaseModel

Undo: TypeAlias = Callable[[Any], Any]
Check: TypeAlias = Callable[[Endpoint, dict[str, Any], str, Undo], None]

MODEL = "oracle"
PIXEL = f"data:image/png;base64,{PIXEL_PNG}"
TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a place",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    "strict": False,
}
CALLS = [{"name": "get_weather", "arguments": '{"place": "Paris"}'}]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
CUSTOM = {"type": "custom", "name": "patch", "description": "A patch"}
HISTORY = [
    {"type": "message", "role": "user", "content": "Weather?"},
    {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"place": "Paris"}'},
    {"type": "function_call_output", "call_id": "c1", "output": "17 degrees"},
]
TURNS = [
    {"type": "message", "role": "user", "content": "My name is Ada."},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello Ada."}]},
    {"type": "message", "role": "user", "content": "Who am I?"},
]
IMAGE = [
    {
        "role": "user",
        "content": [{"type": "input_text", "text": "What is it?"}, {"type": "input_image", "image_url": PIXEL}],
    }
]

REQUESTS: Mapping[str, tuple[dict[str, Any], str]] = {
    "text": ({"input": say("A word.")}, "message"),
    "instructions and sampling": (
        {
            "input": say("A word."),
            "instructions": "Be brief.",
            "temperature": 0.5,
            "top_p": 0.5,
            "metadata": {"a": "b"},
        },
        "message",
    ),
    "tool call": ({"input": say(calls=CALLS), "tools": [TOOL]}, "function_call"),
    "parallel tool calls": ({"input": say(calls=CALLS * 2), "tools": [TOOL]}, "function_call function_call"),
    "forced tool": (
        {"input": "Weather?", "tools": [TOOL], "tool_choice": {"type": "function", "name": "get_weather"}},
        "function_call",
    ),
    "allowed tools": (
        {
            "input": "Weather?",
            "tools": [TOOL],
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "get_weather"}],
            },
        },
        "function_call",
    ),
    "tool results": ({"input": HISTORY, "tools": [TOOL]}, "message"),
    "several turns": ({"input": TURNS}, "message"),
    "JSON schema": (
        {
            "input": "A number.",
            "text": {"format": {"type": "json_schema", "name": "number", "schema": SCHEMA, "strict": True}},
        },
        "message",
    ),
    "image": ({"input": IMAGE}, "message"),
    "reasoning": (
        {"input": say("A word.", reasoning="Let me think."), "reasoning": {"effort": "low", "summary": "auto"}},
        "reasoning message",
    ),
    "cut off by the limit": ({"input": say("A wor", finish="length"), "max_output_tokens": 16}, "message"),
    "free-form tool": (
        {"input": say(calls=[{"name": "patch", "arguments": '{"input": "+1"}'}]), "tools": [CUSTOM]},
        "custom_tool_call",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """Where OpenAI's API, which clients go by, is not what the types say."""

    why: str
    undo: Callable[[Any], Any]
    """Turns an answer, or one event, into what the types say; None for an event that they do not know."""


def main() -> None:
    endpoint = Endpoint.from_environ()
    cases = []
    for name, (body, kinds) in REQUESTS.items():
        for mode, check in (("whole", check_whole), ("stream", check_stream)):
            cases.append(run_request(endpoint, f"{name}, {mode}", {"model": MODEL, **body}, kinds, check))
    cases.append(run_case("stored, read back and gone on with", lambda: check_stored(endpoint)))
    cases.append(run_case("bad request", lambda: check_refused(endpoint, {"model": MODEL, "input": 7}, 400)))
    cases.append(run_case("unknown model", lambda: check_refused(endpoint, {"model": "nobody", "input": "x"}, 404)))
    cases.append(run_case("stream that fails", lambda: check_failed(endpoint)))
    tell(cases)


def run_request(endpoint: Endpoint, name: str, body: dict[str, Any], kinds: str, check: Check) -> Case:
    """A failure is explained if nothing is wrong but what is known to be."""
    case = run_case(name, lambda: check(endpoint, body, kinds, lambda told: told))
    deviation = DEVIATIONS.get(name.partition(",")[0])
    if case.problem is None or deviation is None:
        return case
    undo = deviation.undo
    is_all = run_case(name, lambda: check(endpoint, body, kinds, undo)).problem is None
    return Case(name=name, problem=case.problem, explained=deviation.why if is_all else None)


def check_whole(endpoint: Endpoint, body: dict[str, Any], kinds: str, undo: Undo) -> None:
    answer = endpoint.post("/v1/responses", body)
    assert answer.status == 200, answer.body
    found = " ".join(item["type"] for item in answer.json["output"])
    assert found == kinds, f"output is {found!r}, expected {kinds!r}"
    check_resource(undo(answer.json))


def check_resource(resource: Any) -> None:
    types.ResponseResource.model_validate(resource)
    missing = types.ResponseResource.model_fields.keys() - resource.keys()
    assert not missing, f"fields are missing: {sorted(missing)}"


def check_stream(endpoint: Endpoint, body: dict[str, Any], kinds: str, undo: Undo) -> None:
    answer = endpoint.post("/v1/responses", {**body, "stream": True})
    assert answer.status == 200, answer.body
    events = check_events(answer, undo)
    assert events[0]["type"] == "response.created"
    assert events[-1]["type"] in ("response.completed", "response.incomplete"), events[-1]["type"]
    final = events[-1]["response"]
    check_resource(undo(final))
    found = " ".join(item["type"] for item in final["output"])
    assert found == kinds, f"output is {found!r}, expected {kinds!r}"
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == final["output"], "the items that were streamed are not those of the whole"


def check_events(answer: Answer, undo: Undo) -> list[Any]:
    events = [event for event in answer.events if event != "[DONE]"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in filter(None, map(undo, events)):
        try:
            EVENTS[event["type"]].model_validate(event)
        except KeyError:
            raise AssertionError(f"no event of the specification: {event['type']}") from None
    return events


def check_stored(endpoint: Endpoint) -> None:
    first = endpoint.post("/v1/responses", {"model": MODEL, "input": say("One.")}).json
    read = endpoint.get(f"/v1/responses/{first['id']}")
    assert read.json == first
    more = {"model": MODEL, "input": say("Two."), "previous_response_id": first["id"]}
    second = endpoint.post("/v1/responses", more).json
    check_resource(second)
    assert second["previous_response_id"] == first["id"]


def check_refused(endpoint: Endpoint, body: dict[str, Any], status: int) -> None:
    answer = endpoint.post("/v1/responses", body)
    assert answer.status == status, answer.status
    error = answer.json["error"]
    types.ErrorPayload.model_validate(error)


def check_failed(endpoint: Endpoint) -> None:
    body = {"model": MODEL, "input": say("A text that is long enough.", cut=True), "stream": True}
    events = check_events(endpoint.post("/v1/responses", body), lambda told: told)
    assert events[-1]["type"] == "response.failed", events[-1]["type"]
    types.ResponseResource.model_validate(events[-1]["response"])


def _events_by_type() -> dict[str, type[BaseModel]]:
    found = {}
    for name, model in inspect.getmembers(types, inspect.isclass):
        if name.endswith("StreamingEvent"):
            found[_literal(model)] = model
    return found


def _literal(model: type[BaseModel]) -> str:
    """The one word that its `type` may be."""
    annotation: Any = model.model_fields["type"].annotation
    return str(next(iter(annotation)).value) if inspect.isclass(annotation) else str(annotation.__args__[0])


def without_schema(told: Any) -> Any:
    """With null where a schema is repeated."""
    whole = json.loads(json.dumps(told))
    resource = whole.get("response", whole)
    if resource.get("object") == "response":
        resource["text"]["format"]["schema"] = None
    return whole


def without_free_form(told: Any) -> Any:
    """With functions in place of free-form tools."""
    if ".custom_tool_call_input." in told.get("type", ""):
        return None
    text = json.dumps(told).replace('"custom_tool_call"', '"function_call"').replace('"input":', '"arguments":')
    whole = json.loads(text)
    for tool in whole.get("response", whole).get("tools", ()):
        tool.update(type="function", parameters=None, strict=None)
    return whole


EVENTS = _events_by_type()
DEVIATIONS = {
    "JSON schema": Deviation(
        why="its types have room for nothing but null where the answer repeats a schema; OpenAI repeats it",
        undo=without_schema,
    ),
    "free-form tool": Deviation(
        why="it knows functions only; OpenAI's API has `custom` tools as well, on which Codex relies",
        undo=without_free_form,
    ),
}

if __name__ == "__main__":
    main()
