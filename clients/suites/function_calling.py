"""BFCL v4 (PyPI `bfcl-eval`): its questions, its clients for both OpenAI dialects, its checker; an oracle for a model.

The oracle calls what BFCL takes for right. So everything should be right, whatever lies between: what is measured is
whether names, arguments and their number survive the way to the worker and back. Beside the checker, the calls that
arrive are compared with the oracle's, byte by byte in their JSON values.
"""

from __future__ import annotations

import json
import os
import sys
import types
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from endpoint import Case, tell

CATEGORIES: Mapping[str, str] = {
    "simple_python": "PYTHON",
    "simple_java": "JAVA",
    "simple_javascript": "JAVASCRIPT",
    "multiple": "PYTHON",
    "parallel": "PYTHON",
    "parallel_multiple": "PYTHON",
}
"""And the language in which the checker reads values."""
MODELS = ("oracle", "claude")
_REFUSED = "arrived unchanged, but the oracle does not write Java's notation of a collection"


def main() -> None:
    folder = Path(sys.argv[1])
    limit = int(sys.argv[2] or 10_000)
    os.environ["BFCL_PROJECT_ROOT"] = str(folder)
    os.environ["OPENAI_BASE_URL"] = f"{os.environ['FUGU_URL']}/v1"
    os.environ["OPENAI_API_KEY"] = os.environ["FUGU_API_KEY"]
    # The table of all models imports a client library for each vendor; the checker asks it one thing about ours.
    table = types.ModuleType("bfcl_eval.constants.model_config")
    table.MODEL_CONFIG_MAPPING = {name: SimpleNamespace(underscore_to_dot=True) for name in MODELS}  # type: ignore
    sys.modules[table.__name__] = table
    tell(list(run(limit)))


def run(limit: int) -> Iterator[Case]:
    from bfcl_eval.model_handler.api_inference.openai_completion import OpenAICompletionsHandler
    from bfcl_eval.model_handler.api_inference.openai_response import OpenAIResponsesHandler
    from bfcl_eval.utils import load_dataset_entry, load_ground_truth_entry

    for category, language in CATEGORIES.items():
        entries = load_dataset_entry(category)[:limit]
        # The checker wants the functions as they were before they were made presentable to models.
        functions = {e["id"]: e["function"] for e in load_dataset_entry(category, include_language_specific_hint=False)}
        truths = {truth["id"]: truth["ground_truth"] for truth in load_ground_truth_entry(category)}
        for handler_type, dialect in ((OpenAICompletionsHandler, "chat"), (OpenAIResponsesHandler, "responses")):
            for model in MODELS:
                handler = handler_type(model, 0.0, f"{model}-FC", True)
                for entry in entries:
                    name = f"{dialect}, {model}: {entry['id']}"
                    calls = to_calls(truths[entry["id"]], functions[entry["id"]], language)
                    arrived = ask(handler, entry, calls)
                    sent = [{call["name"]: json.loads(call["arguments"])} for call in calls]
                    if json.dumps(arrived) != json.dumps(sent):
                        problem = f"changed on the way: {json.dumps(sent)[:200]} is now {json.dumps(arrived)[:200]}"
                        yield Case(name=name, problem=problem)
                    else:
                        question = (functions[entry["id"]], truths[entry["id"]], category, language)
                        yield check(name, arrived, question, model)


def ask(handler: Any, entry: Any, calls: list[Any]) -> Any:
    """The calls that come back, by BFCL's own client; or what went wrong."""
    teach(entry, calls)
    try:
        result, _ = handler.inference(json.loads(json.dumps(entry)), False, False)
        return handler.decode_ast(result, "Python", False)
    except Exception as error:  # noqa: BLE001  # the boundary: one case, whatever went wrong in it
        return f"{type(error).__name__}: {error}"


def check(name: str, arrived: Any, question: tuple[Any, Any, str, str], model: str) -> Case:
    from bfcl_eval.constants.enums import Language
    from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker

    functions, truth, category, language = question
    verdict = ast_checker(functions, arrived, truth, Language[language], category, model)
    if verdict["valid"]:
        return Case(name=name, problem=None)
    why = f"{verdict.get('error_type')}: {verdict.get('error')}"[:300]
    return Case(name=name, problem=why, explained=_REFUSED)


def to_calls(truth: Any, functions: Any, language: str) -> list[Any]:
    """The first of the possible answers; what may be left out is left out."""
    described = {function["name"]: function["parameters"] for function in functions}
    calls = []
    for call in truth:
        ((name, values),) = call.items()
        schema = described[name]
        needed = {key for key in values if "" not in values[key] or key in schema["required"]}
        chosen = {key: first_of([v for v in values[key] if v != ""]) for key in values if key in needed}
        if language != "PYTHON":
            suffixes = {"long": "L", "float": "f"} if language == "JAVA" else {}
            chosen = {
                key: to_source(value) + suffixes.get(schema["properties"][key]["type"], "")
                for key, value in chosen.items()
            }
        calls.append({"name": name.replace(".", "_"), "arguments": json.dumps(chosen, ensure_ascii=False)})
    return calls


def to_source(value: Any) -> str:
    """Models are asked for Java and JavaScript values as text, in the language's own notation."""
    return value if isinstance(value, str) else json.dumps(value)


def first_of(values: Any) -> Any:
    """Possible values are lists at every level of an object."""
    value = values[0]
    if isinstance(value, dict):
        return {key: first_of(inner) for key, inner in value.items() if "" not in inner}
    if isinstance(value, list):
        return [
            {key: first_of(inner) for key, inner in item.items() if "" not in inner} if isinstance(item, dict) else item
            for item in value
        ]
    return value


def teach(entry: Any, calls: list[Any]) -> None:
    """Tell the oracle what to call, by the question and the tools' names as they should arrive."""
    question = [message["content"] for message in entry["question"][0] if message["role"] == "user"][-1]
    names = sorted(function["name"].replace(".", "_") for function in entry["function"])
    data = json.dumps({json.dumps([question, names]): calls}).encode()
    request = urllib.request.Request(f"{os.environ['ORACLE_URL']}/script", data, {"content-type": "application/json"})
    urllib.request.urlopen(request, timeout=10).close()


if __name__ == "__main__":
    main()
