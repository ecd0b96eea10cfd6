"""What providers demand of a request's body, as documented and as their errors say: a checker for each dialect.

Written from the outside: nothing here comes from the code under test.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["check_anthropic", "check_openai"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PARTS = {"text", "image_url", "file", "input_audio"}
_EFFORTS = {"none", "minimal", "low", "medium", "high", "xhigh", "max"}
_IMAGES = {"image/jpeg", "image/png", "image/gif", "image/webp"}


def check_openai(body: dict[str, Any], *, host: str) -> None:
    """`host`: openai, mistral, or any other, which is then taken for one with a strict chat template."""
    messages = body["messages"]
    assert messages
    waiting: list[str] = []
    for i, message in enumerate(messages):
        role, content = message["role"], message["content"]
        assert role in {"system", "user", "assistant", "tool"} | ({"developer"} if host == "openai" else set())
        if role == "tool":
            assert message["tool_call_id"] in waiting, "a result without a call right before it"
            waiting.remove(message["tool_call_id"])
        else:
            assert not waiting, "a call without a result right behind it"
            assert "tool_call_id" not in message
        if role == "user":
            _check_user_content(content)
        else:
            assert isinstance(content, str) or (content is None and message.get("tool_calls"))
        if role == "assistant" and "tool_calls" in message:
            waiting = [call["id"] for call in message["tool_calls"]]
            assert waiting
            assert len(set(waiting)) == len(waiting)
            for call in message["tool_calls"]:
                assert call["type"] == "function"
                assert isinstance(call["function"]["arguments"], str)
                pattern = r"[A-Za-z0-9]{9}" if host == "mistral" else r"[\s\S]{1,40}"
                assert re.fullmatch(pattern, call["id"])
        if host != "openai":
            last = messages[i - 1] if i else None
            assert role != "system" or i == 0, "a system message that is not the first"
            if last is not None and role in ("user", "assistant") and last.get("name") == message.get("name"):
                assert last["role"] != role, "two turns of one side in a row"
        if host == "mistral" and role == "user" and i:
            assert messages[i - 1]["role"] != "tool", "a user right after a tool"
    assert not waiting
    if host != "openai":
        assert any(message["role"] != "system" for message in messages)
    assert body.get("reasoning_effort") in {None, *_EFFORTS}
    _check_openai_tools(body, checks_schemas=host == "openai")
    _check_response_format(body.get("response_format"))


def _check_user_content(content: Any) -> None:
    if isinstance(content, str):
        return
    assert content
    for part in content:
        assert part["type"] in _PARTS
        if part["type"] == "image_url":
            assert re.match("(?i)https://|data:", part["image_url"]["url"])
            assert part["image_url"].keys() <= {"url", "detail"}
        elif part["type"] == "file":
            assert "file_id" in part["file"] or {"file_data", "filename"} <= part["file"].keys()
        elif part["type"] == "text":
            assert isinstance(part["text"], str)


def _check_openai_tools(body: dict[str, Any], *, checks_schemas: bool) -> None:
    names = [tool["function"]["name"] for tool in body.get("tools", [])]
    for tool in body.get("tools", []):
        assert tool["type"] == "function"
        assert _NAME.fullmatch(tool["function"]["name"])
        parameters = tool["function"].get("parameters")
        if checks_schemas and parameters is not None:
            _check_top(parameters)
            if tool["function"].get("strict"):
                _check_strict(parameters)
    assert len(set(names)) == len(names)
    assert body.get("tools") != []
    choice = body.get("tool_choice")
    if choice is None:
        return
    assert names, "a choice without tools"
    if isinstance(choice, str):
        assert choice in {"none", "auto", "required"}
    else:
        assert choice == {"type": "function", "function": {"name": choice["function"]["name"]}}
        assert choice["function"]["name"] in names


def _check_response_format(form: Any) -> None:
    if form is None:
        return
    assert form["type"] in {"text", "json_object", "json_schema"}
    if form["type"] == "json_schema":
        assert _NAME.fullmatch(form["json_schema"]["name"])
        if form["json_schema"].get("strict"):
            _check_strict(form["json_schema"]["schema"])


def _check_top(schema: dict[str, Any]) -> None:
    assert schema["type"] == "object"
    assert isinstance(schema["properties"], dict)
    assert not schema.keys() & {"oneOf", "anyOf", "allOf", "enum", "not", "const"}


def _check_strict(schema: Any) -> None:
    if isinstance(schema, list):
        for item in schema:
            _check_strict(item)
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "object":
        assert schema.get("additionalProperties") is False
        assert set(schema.get("properties", {})) <= set(schema.get("required", []))
    for key, item in schema.items():
        for inner in item.values() if key in ("properties", "$defs", "definitions") else (item,):
            _check_strict(inner)


def check_anthropic(body: dict[str, Any], *, takes_late_system: bool = False) -> None:
    """Of a finished conversation: whoever begins the answer's text checks for themselves whether a model takes that."""
    assert isinstance(body["max_tokens"], int)
    assert body["max_tokens"] >= 1
    assert "system" not in body or body["system"].strip()
    assert 0 <= body.get("temperature", 0) <= 1
    assert not {"temperature", "top_p"} <= body.keys()
    turns = body["messages"]
    assert turns
    assert turns[0]["role"] == "user"
    open_calls: list[str] = []
    seen: set[str] = set()
    for i, turn in enumerate(turns):
        role, blocks = turn["role"], turn["content"]
        assert blocks
        if role == "system":
            assert takes_late_system
            assert turns[i - 1]["role"] == "user"
            assert i + 1 == len(turns) or turns[i + 1]["role"] == "assistant"
            assert not open_calls
        else:
            previous = [t["role"] for t in turns[:i] if t["role"] != "system"]
            assert role == ("assistant" if len(previous) % 2 else "user"), "sides do not alternate"
        results = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        assert all(block["type"] == "tool_result" for block in blocks[: len(results)]), "results do not come first"
        assert sorted(results) == sorted(open_calls), "calls and results do not match"
        open_calls = [block["id"] for block in blocks if block["type"] == "tool_use"]
        assert not seen & set(open_calls)
        assert len(set(open_calls)) == len(open_calls)
        seen |= set(open_calls)
        for block in blocks:
            _check_block(block, role)
    assert not open_calls
    if turns[-1]["role"] == "assistant":
        last = turns[-1]["content"][-1]
        assert last["type"] != "text" or last["text"] == last["text"].rstrip()
    _check_anthropic_tools(body, has_calls=bool(seen))


def _check_block(block: dict[str, Any], role: str) -> None:
    kind = block["type"]
    kinds = {
        "user": {"text", "image", "document", "tool_result"},
        "assistant": {"text", "tool_use"},
        "system": {"text"},
        "tool": {"text", "image", "document"},
    }
    assert kind in kinds[role]
    if kind == "text":
        assert block["text"].strip(), "blank text"
    elif kind == "tool_use":
        assert re.fullmatch("[A-Za-z0-9_-]+", block["id"])
        assert re.fullmatch("[A-Za-z0-9_-]{1,128}", block["name"])
        assert isinstance(block["input"], dict)
    elif kind == "image":
        source = block["source"]
        assert source["type"] in {"base64", "url"}
        assert source["type"] == "url" or source["media_type"] in _IMAGES
    elif kind == "document":
        assert block["source"]["type"] in {"base64", "url", "text", "content"}
        assert block["source"].get("media_type") in {None, "application/pdf", "text/plain"}
    elif kind == "tool_result":
        assert block.get("content") != []
        for inner in block.get("content", []):
            _check_block(inner, "tool")


def _check_anthropic_tools(body: dict[str, Any], *, has_calls: bool) -> None:
    names = [tool["name"] for tool in body.get("tools", [])]
    assert len(set(names)) == len(names)
    assert names or not has_calls, "calls in the conversation, and no tools"
    for tool in body.get("tools", []):
        assert tool.keys() <= {"name", "description", "input_schema", "strict"}
        _check_top(tool["input_schema"])
        assert tool.get("strict", True) is True
    choice = body.get("tool_choice")
    if choice is not None:
        assert names
        assert choice["type"] in {"auto", "any", "none", "tool"}
        assert choice["type"] != "tool" or choice["name"] in names
    config = body.get("output_config", {})
    assert config.get("effort") in {None, "low", "medium", "high", "xhigh", "max"}
    if "format" in config:
        assert config["format"].keys() == {"type", "schema"}
        _check_closed(config["format"]["schema"])


def _check_closed(schema: Any) -> None:
    if isinstance(schema, list):
        for item in schema:
            _check_closed(item)
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "object":
        assert "additionalProperties" in schema
    for key, item in schema.items():
        for inner in item.values() if key in ("properties", "$defs", "definitions") else (item,):
            _check_closed(inner)
