"""What the three dialects share at the wire: limits, JSON, errors that name their field, what runs are told as."""

from __future__ import annotations

import re
from typing import NoReturn

import msgspec

from ..errors import RequestError
from ..orchestrate import Run
from ..types import ImagePart, Json, Usage
from .steps import describe_steps, is_one_step

__all__ = [
    "INT64",
    "MAX_IGNORED",
    "MAX_MESSAGES",
    "MAX_NAME",
    "MAX_PARTS",
    "MAX_STOPS",
    "MAX_TOOLS",
    "PENALTY",
    "check_opaque",
    "decode",
    "describe_run",
    "encode",
    "fail",
    "to_image",
    "to_request_error",
    "usage_of_others",
]

# Far above what any client of ours sends (agents: hundreds of messages, about 100 tools), far below what hurts.
MAX_MESSAGES = 10_000
MAX_PARTS = 1_000
MAX_TOOLS = 1_000
MAX_STOPS = 16
MAX_IGNORED = 100
MAX_NAME = 256
_MAX_DEPTH = 64
INT64 = msgspec.Meta(ge=-(2**63), le=2**63 - 1)
PENALTY = msgspec.Meta(ge=-2, le=2)

_NO_TOKENS = Usage(input_tokens=0, cached_input_tokens=0, output_tokens=0)
_decode = msgspec.json.Decoder().decode
encode = msgspec.json.Encoder(decimal_format="number").encode  # USD exactly as counted


def decode(body: bytes) -> Json:
    """
    Raises:
        RequestError: not JSON, or not JSON that can be kept.
    """
    try:
        return _decode(body)
    except UnicodeDecodeError as error:
        raise _invalid_json(f"not UTF-8: {error.reason}") from None
    except msgspec.DecodeError as error:  # its text says at which byte
        at = f" (byte {len(body)})" if "truncated" in str(error) else ""
        raise _invalid_json(f"{error}{at}") from None
    except RecursionError:
        raise _invalid_json("nested too deeply") from None
    except ValueError:  # an integer of thousands of digits
        raise _invalid_json("a number is out of range") from None


def _invalid_json(reason: str) -> RequestError:
    return RequestError(f"the body is not valid JSON: {reason}", code="invalid_json")


def to_request_error(text: str) -> RequestError:
    """msgspec's words, with the field as clients write it: `$.messages[2].content` -> `messages[2].content`."""
    what, _, path = text.partition(" - at `$")
    param = path.rstrip("`").removeprefix(".")
    if missing := re.search(r"missing required field `(\w+)`", what):
        param = f"{param}.{missing[1]}" if param else missing[1]
        what = "missing"
    return RequestError(f"{param}: {what}" if param else f"the body: {what}", param=param or None)


def fail(param: str, problem: str, *, code: str | None = None) -> NoReturn:
    raise RequestError(f"{param}: {problem}", param=param, code=code)


def to_image(value: Json, where: str) -> ImagePart:
    url, detail = (value.get("url"), value.get("detail")) if isinstance(value, dict) else (value, None)
    # No other schemes: the worker fetches it, and it may sit where `http:` or `file:` reach more than the client may.
    if not isinstance(url, str) or not url[:8].lower().startswith(("https://", "data:")):
        fail(f"{where}.url", "expected an https: or data: URL")
    if detail is not None and not isinstance(detail, str):
        fail(f"{where}.detail", "expected a string")
    return ImagePart(url=url, detail=detail)


def check_opaque(value: Json, where: str) -> None:
    """What is carried unread must still fit into the record, whose encoder is bounded in depth."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            item
            for container in level
            if isinstance(container, dict | list)
            for item in (container.values() if isinstance(container, dict) else container)
        ]
        if not level:
            return
    fail(where, f"nested more than {_MAX_DEPTH} levels deep")


def describe_run(run: Run, policy: str) -> dict[str, Json]:
    """Our extension of the answer: who was called, for how much, and where to look it up. The run is over.

    Its steps are told where there was more to it than one call that gave the answer.
    """
    assert run.stopped is not None
    told: dict[str, Json] = {
        "run_id": run.id,
        "policy": policy,
        "workers": run.workers,
        "cost_usd": run.stopped.cost_usd,
        "stopped_by": run.stopped.by,
    }
    return told if is_one_step(run.plans) else {**told, "steps": describe_steps(run)}


def usage_of_others(run: Run, own: Usage) -> Usage:
    """Tokens of the calls other than the answer's; None where one of those did not tell."""
    assert run.stopped is not None
    if run.stopped.calls <= 1:
        return _NO_TOKENS
    total = run.stopped.usage

    def rest(of_all: int | None, of_answer: int | None) -> int | None:
        return None if of_all is None or of_answer is None else of_all - of_answer

    return Usage(
        input_tokens=rest(total.input_tokens, own.input_tokens),
        cached_input_tokens=rest(total.cached_input_tokens, own.cached_input_tokens),
        output_tokens=rest(total.output_tokens, own.output_tokens),
    )
