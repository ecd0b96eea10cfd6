"""The words everything is said in: messages, workers' replies, steps, plans.

Frozen values without behaviour beyond reading themselves. Wire formats (chat completions, messages) are translated to
these at the edge and back; nothing between the edges knows a wire format. `None` means unknown, never zero. They are
msgspec Structs, not dataclasses, because the record stores them and reads them back, checked (docs/decisions/0002).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Literal, TypeAlias

import msgspec

__all__ = [
    "Answer",
    "FinishReason",
    "ImagePart",
    "Json",
    "Loss",
    "Message",
    "OtherPart",
    "Part",
    "Pending",
    "Plan",
    "Reply",
    "Request",
    "Role",
    "Sampling",
    "Step",
    "TextPart",
    "ToolCall",
    "Trajectory",
    "Usage",
    "Value",
    "Warm",
    "sum_cost",
]

Json: TypeAlias = Any  # a JSON value at a wire edge; narrow it within a few lines
Role: TypeAlias = Literal["system", "developer", "user", "assistant", "tool"]
FinishReason: TypeAlias = Literal["stop", "length", "tool_calls", "content_filter"]


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all values here and of the events: frozen, keyword-only, stored without defaults."""


class TextPart(Value, frozen=True, kw_only=True, tag_field="part", tag="text"):
    """A piece of text of a message."""

    text: str


class ImagePart(Value, frozen=True, kw_only=True, tag_field="part", tag="image"):
    """An image of a message, by address: `https:` or `data:`."""

    url: str
    detail: str | None = None


class OtherPart(Value, frozen=True, kw_only=True, tag_field="part", tag="other"):
    """A content part that we only carry (audio, file): kept verbatim for workers that take it."""

    kind: str
    raw: Json


Part: TypeAlias = TextPart | ImagePart | OtherPart


class ToolCall(Value, frozen=True, kw_only=True):
    """A call of one of the client's tools, asked for by a worker."""

    id: str
    name: str
    arguments: str
    """JSON text, as the worker wrote it."""


class Message(Value, frozen=True, kw_only=True):
    """One turn of a conversation."""

    role: Role
    content: str | tuple[Part, ...] | None
    """None only for an assistant's turn that holds nothing but tool calls."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        """The message's text, parts joined by a newline; images and other parts leave no trace."""
        if self.content is None:
            return ""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))


class Sampling(Value, frozen=True, kw_only=True):
    """How a worker shall answer. None leaves the choice to the worker."""

    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    reasoning_effort: str | None = None
    response_format: Json | None = None
    """As in chat completions; or `{"type": "gbnf", "grammar": TEXT}`, for endpoints that take one."""
    tools: tuple[Json, ...] = ()
    """As in chat completions."""
    tool_choice: Json | None = None
    parallel_tool_calls: bool | None = None


class Warm(Value, frozen=True, kw_only=True):
    """The worker whose prompt cache still holds most of a session."""

    worker: str
    input_tokens: int | None = None
    """Of its last prompt, which the cache holds; 0: it keeps no cache. None: it did not say."""


class Request(Value, frozen=True, kw_only=True):
    """What a client asked for, free of its wire dialect."""

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    allowed: frozenset[str] | None = None
    """Worker ids that may be called; None allows the whole pool."""
    ignored: tuple[str, ...] = ()
    """Names of fields that the client sent and we do not use."""
    task: str | None = None
    """Id of the task that this was made from, for workers that replay answers; never sent. None: a client's request."""
    warm: Warm | None = None
    """Where this session's prompt cache is warm, for policies that weigh a switch. Never sent."""


class Usage(Value, frozen=True, kw_only=True):
    """Tokens of one call, as the provider counted them."""

    input_tokens: int | None = None
    """All input tokens, cached ones included."""
    cached_input_tokens: int | None = None
    cache_write_tokens: int | None = None
    output_tokens: int | None = None
    """All output tokens, reasoning included."""
    reasoning_tokens: int | None = None

    @staticmethod
    def total(usages: Iterable[Usage]) -> Usage:
        """The sum field by field; one unknown addend makes the field unknown. No addends: zeros."""
        many = list(usages)

        def add(name: str) -> int | None:
            values = [getattr(usage, name) for usage in many]
            return None if any(value is None for value in values) else sum(values)

        return Usage(
            input_tokens=add("input_tokens"),
            cached_input_tokens=add("cached_input_tokens"),
            cache_write_tokens=add("cache_write_tokens"),
            output_tokens=add("output_tokens"),
            reasoning_tokens=add("reasoning_tokens"),
        )


def sum_cost(costs: Iterable[Decimal | None]) -> Decimal | None:
    """The exact sum in USD; one unknown addend makes it unknown. No addends: zero."""
    total = Decimal(0)
    for cost in costs:
        if cost is None:
            return None
        total += cost
    return total


class Reply(Value, frozen=True, kw_only=True):
    """What came back from one successful call."""

    worker: str
    text: str
    finish_reason: FinishReason
    answer: str | None = None
    """The final answer in a form that can be compared, where the worker knows it (a replayed one does); "" when it gave
    none. None: nobody says so, read it off the text."""
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str | None = None
    """The worker's visible reasoning; None when it showed none."""
    usage: Usage = Usage()
    cost_usd: Decimal | None = None
    price_source: str | None = None
    """Which price list made `cost_usd`; None when no price is known."""
    provider_model: str | None = None
    """The model name that the provider reported."""
    provider_id: str | None = None
    """The provider's id of this completion."""
    latency_ms: float | None = None
    first_token_ms: float | None = None
    """None when the call was not streamed."""
    sent_bytes: int | None = None
    """Size of the request body that left this machine; 0 for a worker in this process."""
    sent_sha256: str | None = None
    received_bytes: int | None = None


class Step(Value, frozen=True, kw_only=True):
    """One planned call. It starts the moment the steps that it sees have replied."""

    id: int
    worker: str
    role: str = "worker"
    """worker | thinker | verifier | conductor | judge"""
    instruction: str | None = None
    """The subtask of a worker in a workflow. None: it answers the request itself."""
    sees: tuple[int, ...] = ()
    """Ids of the steps whose replies it is shown, earlier ones or those of its own plan; how, its role decides
    (`render.py`). No other reply reaches it."""
    messages: tuple[Message, ...] | None = None
    """Sent as they stand, instead of what role, instruction and sight would make."""
    sampling: Sampling | None = None
    """Instead of what the client asked for."""
    alternates: tuple[str, ...] = ()
    """Workers to fail over to, best first."""
    timeout_s: float | None = None
    """Of the whole step, failover included; from its start."""
    may_suspend: bool = False
    """It is given the client's tools. When it calls them it waits for their results, and the run with it."""
    is_final: bool = False
    """Its reply is the run's answer, so its tokens may be streamed."""
    is_optional: bool = False
    """When no worker replies to it, the run goes on without."""


class Plan(Value, frozen=True, kw_only=True):
    """Steps to call next, and why."""

    steps: tuple[Step, ...]
    scores: Mapping[str, float] | None = None
    """The policy's probability for each worker; None when it does not score."""
    masked: tuple[str, ...] = ()
    """Workers that were not allowed to be chosen."""
    stand_in: int | None = None
    """The earlier step whose reply is the answer if the run has to end before a Worker replies to this plan."""
    quorum: int | None = None
    """So many of its steps have to reply; then it is over, and what is still running is dropped. None: all of them."""
    parallel: int | None = None
    """How many of its steps may be called at one time. None: all that can start."""
    on_error: Literal["fail", "replan"] = "fail"
    """When a step that is not optional gets no reply: the run fails with it, or the others end and the policy decides
    anew, knowing of it (`Run.failed`)."""
    notes: Mapping[str, Json] = {}
    """What the policy wants on record: tokens read, milliseconds spent."""


class Answer(Value, frozen=True, kw_only=True):
    """The policy's decision that the run is over: the reply of `step` is the answer."""

    step: int
    stopped_by: str = "answer"
    """`budget:...` when a limit ended what the policy would have gone on with."""
    notes: Mapping[str, Json] = {}
    """What the policy wants on record: how it came to stop."""


class Trajectory(Value, frozen=True, kw_only=True):
    """What followed the prompt of one step: its tool calls, their results, and so on."""

    worker: str
    """Who it is with, and stays with."""
    turns: tuple[Message, ...]


class Loss(Value, frozen=True, kw_only=True):
    """Why a step has no reply."""

    fault: str
    code: str
    message: str
    worker: str | None = None


class Pending(Value, frozen=True, kw_only=True):
    """All that is needed to go on."""

    run_id: str
    policy: str
    """Id of the policy that planned."""
    request: Request
    """The first one: what the workflow is about."""
    plans: tuple[Plan, ...]
    replies: Mapping[int, Reply]
    failed: Mapping[int, Loss]
    trajectories: Mapping[int, Trajectory]
    waiting: tuple[int, ...]
    """Steps whose latest turn calls tools."""
    calls: int
    """Spent so far, as in `RunBudget`."""
    tokens: int
    usd: Decimal
