"""The stored form of events: whatever can be said can be read back, and nothing else can be read."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torafugu.events import (
    SCHEMA,
    Accepted,
    Answered,
    Called,
    Event,
    Failed,
    Planned,
    Replied,
    Stopped,
    Suspended,
    event_from_json,
    event_to_json,
)
from torafugu.types import (
    FinishReason,
    ImagePart,
    Loss,
    Message,
    OtherPart,
    Pending,
    Plan,
    Reply,
    Request,
    Role,
    Sampling,
    Step,
    TextPart,
    ToolCall,
    Trajectory,
    Usage,
)

texts = st.text(max_size=20)
ids = st.integers(min_value=0, max_value=2**31)
tokens = st.none() | st.integers(min_value=0, max_value=2**40)
floats = st.floats(allow_nan=False, allow_infinity=False)
dollars = st.none() | st.decimals(min_value=0, max_value=10**6, places=12)
jsons = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def some(element: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(element, max_size=3).map(tuple)


usages = st.builds(Usage, **dict.fromkeys(Usage.__struct_fields__, tokens))
calls = st.builds(ToolCall, id=texts, name=texts, arguments=texts)
parts = st.one_of(
    st.builds(TextPart, text=texts),
    st.builds(ImagePart, url=texts, detail=st.none() | texts),
    st.builds(OtherPart, kind=texts, raw=jsons),
)
messages = st.builds(
    Message,
    role=st.sampled_from(get_args(Role)),
    content=st.none() | texts | some(parts),
    tool_calls=some(calls),
    tool_call_id=st.none() | texts,
    name=st.none() | texts,
)
samplings = st.builds(
    Sampling,
    max_output_tokens=tokens,
    temperature=st.none() | floats,
    stop=some(texts),
    seed=st.none() | ids,
    reasoning_effort=st.none() | texts,
    response_format=jsons,
    tools=some(jsons),
    tool_choice=jsons,
    parallel_tool_calls=st.none() | st.booleans(),
)
requests = st.builds(
    Request,
    model=texts,
    messages=some(messages),
    sampling=samplings,
    allowed=st.none() | st.frozensets(texts, max_size=3),
    ignored=some(texts),
    task=st.none() | texts,
)
steps = st.builds(
    Step,
    id=ids,
    worker=texts,
    role=texts,
    instruction=st.none() | texts,
    sees=some(ids),
    alternates=some(texts),
    may_suspend=st.booleans(),
    messages=st.none() | some(messages),
    sampling=st.none() | samplings,
    timeout_s=st.none() | floats,
    is_final=st.booleans(),
)
plans = st.builds(
    Plan,
    steps=some(steps),
    scores=st.none() | st.dictionaries(texts, floats, max_size=3),
    masked=some(texts),
    notes=st.dictionaries(texts, jsons, max_size=3),
)
replies = st.builds(
    Reply,
    worker=texts,
    text=texts,
    finish_reason=st.sampled_from(get_args(FinishReason)),
    tool_calls=some(calls),
    reasoning=st.none() | texts,
    usage=usages,
    cost_usd=dollars,
    price_source=st.none() | texts,
    provider_model=st.none() | texts,
    provider_id=st.none() | texts,
    latency_ms=st.none() | floats,
    first_token_ms=st.none() | floats,
    sent_bytes=tokens,
    sent_sha256=st.none() | texts,
    received_bytes=tokens,
)
trajectories = st.builds(Trajectory, worker=texts, turns=some(messages))
pendings = st.builds(
    Pending,
    run_id=texts,
    policy=texts,
    request=requests,
    plans=some(plans),
    replies=st.dictionaries(ids, replies, max_size=2),
    failed=st.dictionaries(ids, st.builds(Loss, fault=texts, code=texts, message=texts), max_size=2),
    trajectories=st.dictionaries(ids, trajectories, max_size=2),
    waiting=some(ids),
    calls=ids,
    tokens=ids,
    usd=st.decimals(min_value=0, max_value=10**6, places=12),
)
optional_text = st.none() | texts
BY_KIND: dict[type, st.SearchStrategy[Any]] = {
    Accepted: st.builds(
        Accepted,
        request=requests,
        policy=texts,
        key_id=optional_text,
        session=optional_text,
        body_sha256=optional_text,
    ),
    Planned: st.builds(Planned, plan=plans, decision_ms=floats),
    Called: st.builds(Called, step=ids, worker=texts, attempt=ids, reason=texts),
    Replied: st.builds(Replied, step=ids, attempt=ids, reply=replies),
    Failed: st.builds(
        Failed,
        step=ids,
        worker=texts,
        attempt=ids,
        fault=texts,
        code=texts,
        message=texts,
        latency_ms=st.none() | floats,
        usage=usages,
        cost_usd=dollars,
    ),
    Suspended: st.builds(Suspended, pending=pendings),
    Answered: st.builds(Answered, step=ids, worker=texts),
    Stopped: st.builds(
        Stopped,
        by=texts,
        latency_ms=st.none() | floats,
        calls=ids,
        usage=usages,
        cost_usd=dollars,
        error=st.none() | st.dictionaries(texts, jsons, max_size=3),
    ),
}
EXAMPLE = Called(step=0, worker="a", attempt=1, reason="planned")


def test_every_kind_is_tried() -> None:
    """The properties below speak of every kind of event, and of every field of a message."""
    assert set(BY_KIND) == set(get_args(Event))


@given(event=st.one_of(*BY_KIND.values()), at=st.floats(min_value=0, max_value=1e11))
def test_roundtrip(event: Event, at: float) -> None:
    """Every event, with every shape of message, is read back as it was written, to the last digit of its costs."""
    stored = event_to_json(event, at=at)
    assert event_from_json(stored) == (at, event)
    assert b"\n" not in stored  # an event is one line


@given(message=messages)
def test_message_text(message: Message) -> None:
    """A message's text is that of its text parts, whatever else it holds."""
    content = message.content
    if content is None or isinstance(content, str):
        assert message.text == (content or "")
    else:
        assert message.text == "\n".join(part.text for part in content if isinstance(part, TextPart))


def test_the_stored_form_stays() -> None:
    """The stored form of schema 1, byte for byte: records written today must be readable by every later version."""
    reply = Reply(worker="a", text="4", finish_reason="stop", cost_usd=Decimal("0.10"), usage=Usage(input_tokens=3))
    stored = (
        b'{"v":1,"at":1.5,"event":{"kind":"replied","step":0,"attempt":1,"reply":'
        b'{"worker":"a","text":"4","finish_reason":"stop","usage":{"input_tokens":3},"cost_usd":"0.10"}}}'
    )
    assert event_to_json(Replied(step=0, attempt=1, reply=reply), at=1.5) == stored
    parts = (TextPart(text="x"), ImagePart(url="u"), OtherPart(kind="audio", raw={"a": 1}))
    request = Request(model="m", messages=(Message(role="user", content=parts),), allowed=frozenset({"a"}))
    stored = (
        b'{"v":1,"at":1.5,"event":{"kind":"accepted","request":{"model":"m","messages":[{"role":"user","content":'
        b'[{"part":"text","text":"x"},{"part":"image","url":"u"},{"part":"other","kind":"audio","raw":{"a":1}}]}],'
        b'"allowed":["a"]},"policy":"p"}}'
    )
    assert event_to_json(Accepted(request=request, policy="p"), at=1.5) == stored


def changed(**fields: Any) -> bytes:
    """The example event with other fields of its envelope or, after `event_`, of itself."""
    stored = json.loads(event_to_json(EXAMPLE, at=1.0))
    for name, value in fields.items():
        place = stored["event"] if name.startswith("event_") else stored
        place[name.removeprefix("event_")] = value
    return json.dumps(stored).encode()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (changed(v=SCHEMA + 1), f"event schema {SCHEMA + 1}: this version reads schema {SCHEMA}"),
        (changed(v=0), "event schema 0"),
        (changed(event_kind="split"), "split"),
        (changed(event_step="0"), "Expected `int`, got `str`"),
        (changed(event_worker=None), "Expected `str`, got `null`"),
        (changed(at=None), "at"),
        (changed(event={}), "kind"),
        (b"", "truncated"),
        (b'{"v":1', "truncated"),
        (b"[]", "Expected `object`"),
        (b"\xff", "malformed"),
    ],
)
def test_refused(line: bytes, message: str) -> None:
    """Another schema, an unknown kind, a wrong type and half a line are each a ValueError that says what is wrong."""
    with pytest.raises(ValueError, match=message):
        event_from_json(line)


def test_values_are_frozen() -> None:
    """What is on record cannot be changed after the fact."""
    with pytest.raises(AttributeError):
        EXAMPLE.step = 3  # type: ignore[misc]
    assert msgspec.structs.replace(EXAMPLE, step=3).step == 3
    assert EXAMPLE.step == 0
