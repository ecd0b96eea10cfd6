"""What tests of workflows share: a conductor's texts, workers that answer or call tools, what they were told."""

from __future__ import annotations

import json
from typing import Any

from runs import USAGE
from torafugu.pool import Completion, Query, Scripted
from torafugu.types import Json, ToolCall

CONDUCTOR = "boss"


def write(*steps: tuple[int, str, Json]) -> str:
    """A workflow as a conductor writes it: (model, subtask, access) of each step."""
    models, subtasks, access = ([step[k] for step in steps] for k in range(3))
    lists = {"subtasks": subtasks, "model_id": models, "access_list": access}
    return "Let me think.\n" + "\n".join(f"{label}: {json.dumps(entries)}" for label, entries in lists.items())


def script(*texts: str | Completion) -> Scripted:
    return Scripted(list(texts), usage=USAGE)


def calls(*arguments: Any, text: str = "") -> Completion:
    """A reply that calls `read`, once for each."""
    made = tuple(ToolCall(id=f"toolu_{i}", name="read", arguments=json.dumps(each)) for i, each in enumerate(arguments))
    return Completion(text=text, finish_reason="tool_calls", tool_calls=made, usage=USAGE)


def prompt_of(query: Query) -> str:
    return "\n".join(message.text for message in query.messages)
