"""Three operations of OpenAI's API by schemathesis: generated requests, right and wrong ones, and what comes back.

The description is a file that is given; else it is made from the types of the `openai` package, which OpenAI generates
from its own description. Either way `model` is one that exists, and what this server refuses on purpose is left out of
requests, since a refusal would be all that is checked then. Status codes are not checked.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from endpoint import Case, Endpoint, tell

OPERATIONS = ("createChatCompletion", "createResponse", "listModels")
CHECKS = "not_a_server_error,content_type_conformance,response_headers_conformance,response_schema_conformance"
MODEL = "oracle"
REFUSED = frozenset(
    [
        *("n", "logprobs", "top_logprobs", "modalities", "audio", "functions", "function_call", "web_search_options"),
        *("background", "conversation", "prompt", "previous_response_id", "include"),
    ]
)
"""Fields that are refused on purpose, or that name what is not there."""
_REPEATED = {
    "schemas/Response/properties/tools/": "a wrong request: what nobody here reads of a tool is repeated as it came",
    "schemas/Response/properties/reasoning:": "a wrong request: efforts are passed on, and repeated, whatever the word",
}
"""What of an answer may be wrong because the request was, by where in the description that stands."""
BOUNDS = {
    "model": {"const": MODEL},
    "messages": {"minItems": 1},
    "max_tokens": {"minimum": 1, "maximum": 2**31},
    "max_completion_tokens": {"minimum": 1, "maximum": 2**31},
    "max_output_tokens": {"minimum": 16, "maximum": 2**31},
    "max_tool_calls": {"minimum": 1, "maximum": 2**31},
    "temperature": {"minimum": 0, "maximum": 2},
    "top_p": {"minimum": 0, "maximum": 1},
    "presence_penalty": {"minimum": -2, "maximum": 2},
    "frequency_penalty": {"minimum": -2, "maximum": 2},
    "seed": {"minimum": -(2**63), "maximum": 2**63 - 1},
    "stream": {"const": False},
}
"""What the types of the package do not say, but OpenAI does; one model, and whole answers, which have a schema."""
_STRING = {"type": "string"}
_NULLABLE = {"type": ["string", "null"]}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["type", "message", "param", "code"],
            "properties": {
                "type": {"type": "string"},
                "message": {"type": "string"},
                "param": _NULLABLE,
                "code": _NULLABLE,
            },
        }
    },
}
"""As OpenAI describes it."""


def main() -> None:
    folder, given, examples = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    description = adapt(derive() if given == "-" else read(Path(given)))
    path = folder / "description.json"
    path.write_text(json.dumps(description))
    endpoint = Endpoint.from_environ()
    tell([case for operation in OPERATIONS for case in run(operation, path, endpoint, examples)])


def run(operation: str, path: Path, endpoint: Endpoint, examples: str) -> Iterator[Case]:
    report = path.parent / f"{operation}.ndjson"
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", str(path), "--url", f"{endpoint.url}/v1"),
        *("--checks", CHECKS, "--include-operation-id", operation, "--max-examples", examples, "--seed", "5"),
        *("--phases", "examples,coverage,fuzzing", "--continue-on-failure", "--no-shrink", "--workers", "1"),
        *("--suppress-health-check", "all", "--header", f"Authorization: Bearer {endpoint.key}"),
        *("--report", "ndjson", "--report-ndjson-path", str(report)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=path.parent)
    (path.parent / f"{operation}.log").write_text(done.stdout + done.stderr)
    yield from read_report(operation, report)


def read_report(operation: str, report: Path) -> Iterator[Case]:
    """A case for each request. Its name says whether it was a right one, and what became of it."""
    for line in report.read_text().splitlines():
        recorder = json.loads(line).get("ScenarioFinished", {}).get("recorder") or {}
        for id, case in recorder.get("cases", {}).items():
            mode = (case["value"].get("meta") or {}).get("generation", {}).get("mode")
            response = recorder["interactions"].get(id, {}).get("response") or {}
            failed = [check for check in recorder["checks"].get(id, ()) if check["status"] != "success"]
            name = f"{operation}, {'right' if mode == 'positive' else 'wrong'}, {response.get('status_code')}"
            problem = "; ".join(map(_describe, failed)) or None
            why = [told for place, told in _REPEATED.items() if mode != "positive" and place in (problem or "")]
            yield Case(name=name, problem=problem, explained=why[0] if why and len(failed) == 1 else None)


def _describe(check: Any) -> str:
    return f"{check['name']}: {' '.join(json.dumps(check.get('failure_info') or check).split())[:1500]}"


# --- descriptions ---


def read(path: Path) -> Any:
    """One that is given, in YAML or JSON."""
    import yaml

    return yaml.safe_load(path.read_text())


def adapt(description: Any) -> Any:
    """With requests that can be answered: of a model that exists, without what is refused."""
    for operations in description["paths"].values():
        for operation in operations.values():
            if operation.get("operationId") in OPERATIONS and "requestBody" in operation:
                _bound(operation["requestBody"]["content"]["application/json"]["schema"], description)
    return description


def _bound(schema: Any, description: Any) -> None:
    if "$ref" in schema:
        whole = description
        for key in schema["$ref"].split("/")[1:]:
            whole = whole[key]
        _bound(whole, description)
    for inner in schema.get("allOf", ()):
        _bound(inner, description)
    properties = schema.get("properties", {})
    for name in REFUSED & properties.keys():
        del properties[name]
    for name, bounds in BOUNDS.items():
        if name in properties:
            properties[name] = {"allOf": [properties[name], bounds]} if "const" not in bounds else bounds


def derive() -> Any:
    """From the types of the SDK: parameters of its methods, and what they return."""
    from openai.types import Model
    from openai.types.chat import ChatCompletion
    from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
    from openai.types.responses import Response
    from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming
    from pydantic import BaseModel

    class Models(BaseModel):
        object: str
        data: list[Model]

    schemas: dict[str, Any] = {}
    paths = {
        "/chat/completions": {
            "post": _operation(schemas, OPERATIONS[0], CompletionCreateParamsNonStreaming, ChatCompletion)
        },
        "/responses": {"post": _operation(schemas, OPERATIONS[1], ResponseCreateParamsNonStreaming, Response)},
        "/models": {"get": _operation(schemas, OPERATIONS[2], None, Models)},
    }
    schemas["CompletionCreateParamsNonStreaming"]["required"] = ["messages", "model"]
    schemas["ResponseCreateParamsNonStreaming"]["required"] = ["input", "model"]
    info = {"title": "OpenAI, as its Python package has it", "version": "0"}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": schemas}}


def _operation(schemas: dict[str, Any], id: str, asked: Any, answered: Any) -> Any:
    operation: dict[str, Any] = {"operationId": id}
    if asked is not None:
        body = {"application/json": {"schema": _add(schemas, asked, "validation")}}
        operation["requestBody"] = {"required": True, "content": body}
    answer = {"application/json": {"schema": _add(schemas, answered, "serialization")}, "text/event-stream": {}}
    error = {"description": "refused", "content": {"application/json": {"schema": _ERROR}}}
    operation["responses"] = {"200": {"description": "answered", "content": answer}, "default": error}
    return operation


def _add(schemas: dict[str, Any], type_: Any, mode: Any) -> Any:
    """A reference to the type's schema, which is put beside the others, under a name of its own."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(type_).json_schema(mode=mode, ref_template=f"#/components/schemas/{mode}.{{model}}")
    for name, inner in schema.pop("$defs", {}).items():
        schemas[f"{mode}.{name}"] = inner
    schemas[type_.__name__] = schema
    return {"$ref": f"#/components/schemas/{type_.__name__}"}


if __name__ == "__main__":
    main()
