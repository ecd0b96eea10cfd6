"""JSON Schemas as providers take them: what they refuse is mended where nothing is lost by it, or said in words.

OpenAI and Anthropic check schemas before they ask a model, each by other rules, so that a schema which one client's own
provider takes fails the whole request at another's. Schemas are not changed in place.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from ..types import Json

__all__ = ["close_objects", "is_strict", "mend_function"]

_NOT_AT_TOP = ("oneOf", "anyOf", "allOf", "not", "enum", "const")
_TABLES = frozenset({"properties", "$defs", "definitions", "patternProperties"})
"""Keys that hold schemas by name, so that one of them may be called `type`."""
_VALUES = frozenset({"enum", "const", "default", "examples"})
"""Keys that hold no schemas, whatever these look like."""


def mend_function(function: Json) -> dict[str, Json]:
    """A function whose parameters are an object, its strictness kept where its schema allows it.

    What both providers refuse at the top of a schema (`anyOf` and its like) is told in the description instead.
    """
    parameters = function.get("parameters")
    schema = dict(parameters) if isinstance(parameters, dict) else {}
    told = {key: schema.pop(key) for key in _NOT_AT_TOP if key in schema}
    if schema.get("type") != "object":
        schema["type"] = "object"
    schema.setdefault("properties", {})
    mended = {**function, "parameters": schema}
    if told:
        rule = f"The arguments also have to match this JSON Schema: {msgspec.json.encode(told).decode()}"
        mended["description"] = "\n\n".join(text for text in (function.get("description"), rule) if text)
    if told and function.get("strict"):
        del mended["strict"]
    return mended


def is_strict(schema: Json) -> bool:
    """Every object names all its properties as required and allows no others: what OpenAI demands of `strict`."""
    if isinstance(schema, list):
        return all(is_strict(item) for item in schema)
    if not isinstance(schema, dict):
        return True
    if _is_object(schema):
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if schema.get("additionalProperties") is not False or not isinstance(required, list):
            return False
        if not isinstance(properties, dict) or any(name not in required for name in properties):
            return False
    return all(is_strict(inner) for _, items in _inner(schema) for inner in items.values())


def close_objects(schema: Json) -> Json:
    """With no room for unnamed properties where the schema leaves that open: less is allowed, and nothing new."""
    if isinstance(schema, list):
        return [close_objects(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = dict(schema)
    for key, items in _inner(schema):
        changed = {name: close_objects(item) for name, item in items.items()}
        closed[key] = changed if key in _TABLES else changed[key]
    if _is_object(schema) and "additionalProperties" not in schema:
        closed["additionalProperties"] = False
    return closed


def _is_object(schema: dict[str, Json]) -> bool:
    kind = schema.get("type")
    return kind == "object" or (isinstance(kind, list) and "object" in kind)


def _inner(schema: dict[str, Json]) -> Iterator[tuple[str, dict[str, Json]]]:
    """Under each key that holds schemas, these by name."""
    for key, item in schema.items():
        if key in _TABLES:
            if isinstance(item, dict):
                yield key, item
        elif key not in _VALUES and isinstance(item, dict | list):
            yield key, {key: item}
