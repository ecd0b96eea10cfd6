"""What a call may cost at worst: never less than what any provider could bill for what it is sent."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torafugu.pool import Prices, Query, Tags, WorkerSpec, resolve_price
from torafugu.pool.anthropic import DEFAULT_MAX_TOKENS
from torafugu.pool.anthropic import build_body as build_anthropic
from torafugu.pool.openai import build_body as build_openai
from torafugu.pool.purse import (
    IMPOSED_OUTPUT_TOKENS,
    PER_MESSAGE_TOKENS,
    PER_REQUEST_TOKENS,
    Spend,
    limit_output,
    worst_case,
)
from torafugu.types import ImagePart, Message, OtherPart, Sampling, TextPart, ToolCall, Usage

FIXED = PER_REQUEST_TOKENS + PER_MESSAGE_TOKENS
PRICES = Prices(input=Decimal("2.5"), output=Decimal("10"), cached_input=Decimal("0.25"), cache_write=Decimal("3.125"))
MESSAGE = Message(role="user", content="hi")


def worker(**fields: Any) -> WorkerSpec:
    return WorkerSpec(**({"id": "w", "dialect": "openai", "model": "m", "base_url": "https://x/v1"} | fields))


def asking(*messages: Message, **sampling: Any) -> Query:
    return Query(messages=messages or (MESSAGE,), sampling=Sampling(**sampling))


def output_tokens(query: Query, spec: WorkerSpec) -> int:
    """What is reserved for output alone."""
    limited = limit_output(query, spec)
    tokens = worst_case(limited, spec, None).tokens
    assert tokens is not None
    return tokens - FIXED - 2 if spec.context_tokens is None else tokens - min(FIXED + 2, spec.context_tokens)


# --- output ---


@pytest.mark.parametrize(
    ("fields", "asked", "tokens", "imposed"),
    [
        ({}, None, IMPOSED_OUTPUT_TOKENS, True),
        ({}, 500, 500, False),
        ({}, 99_999, 99_999, False),
        ({"max_output_tokens": 300}, None, 300, False),
        ({"max_output_tokens": 300}, 500, 300, False),
        ({"max_output_tokens": 900}, 500, 500, False),
        ({"context_tokens": 700}, None, 700, False),
        ({"context_tokens": 700}, 500, 500, False),
        ({"context_tokens": 700}, 900, 700, False),
        ({"dialect": "anthropic"}, None, DEFAULT_MAX_TOKENS, False),
        ({"dialect": "anthropic", "max_output_tokens": 20_000}, None, 20_000, False),
        ({"dialect": "anthropic", "context_tokens": 200_000}, None, DEFAULT_MAX_TOKENS, False),
        ({"dialect": "anthropic"}, 500, 500, False),
        ({"dialect": "anthropic"}, 0, DEFAULT_MAX_TOKENS, False),
        ({"dialect": "local"}, None, IMPOSED_OUTPUT_TOKENS, False),
        ({"dialect": "local"}, 500, 500, False),
        ({"dialect": "local", "context_tokens": 4000}, None, 4000, False),
        ({"dialect": "scripted"}, None, IMPOSED_OUTPUT_TOKENS, True),
    ],
)
def test_output_is_bounded_by_the_smallest_limit(
    fields: dict[str, Any], asked: int | None, tokens: int, imposed: bool
) -> None:
    """The client's, the model's, the window's, the dialect's own; one is imposed only where there is none."""
    spec = worker(**fields)
    query = asking(max_output_tokens=asked)
    assert output_tokens(query, spec) == tokens
    assert (limit_output(query, spec) != query) == imposed
    assert limit_output(query, spec).sampling.max_output_tokens == (IMPOSED_OUTPUT_TOKENS if imposed else asked)


@pytest.mark.parametrize(
    ("dialect", "base_url", "name"),
    [
        ("openai", "https://x/v1", "max_tokens"),
        ("openai", None, "max_completion_tokens"),
        ("anthropic", None, "max_tokens"),
    ],
)
@pytest.mark.parametrize("asked", [None, 100, 3000])
@pytest.mark.parametrize("most", [None, 2000])
@pytest.mark.parametrize("extra", [{}, {"max_tokens": 7000}, {"max_completion_tokens": 50, "temperature": 0.5}])
def test_what_is_reserved_covers_the_limit_that_is_sent(
    dialect: Any, base_url: str | None, name: str, asked: int | None, most: int | None, extra: dict[str, Any]
) -> None:
    """Each dialect sends a limit that reasoning counts against, and never one above what is reserved for, except
    where a model is declared to write less."""
    spec = worker(dialect=dialect, base_url=base_url, max_output_tokens=most, extra_body=extra)
    query = limit_output(asking(max_output_tokens=asked), spec)
    build = build_openai if dialect == "openai" else build_anthropic
    body = build(spec, query, stream=False)
    limits = [body[field] for field in ("max_tokens", "max_completion_tokens") if field in body]
    reserved = worst_case(query, spec, None).tokens
    assert reserved is not None
    assert name in body or most is not None or extra
    for limit in limits:
        assert min(limit, most or limit) + FIXED + 2 <= reserved


# --- input ---


@pytest.mark.parametrize(
    ("query", "size_bytes"),
    [
        (asking(max_output_tokens=1), 2),
        (asking(Message(role="user", content="é鯱"), max_output_tokens=1), 5),
        (asking(Message(role="user", content="\ud800"), max_output_tokens=1), 3),
        (asking(Message(role="user", content=(TextPart(text="ab"), TextPart(text="c"))), max_output_tokens=1), 3),
        (asking(Message(role="user", content="hi", name="Zoë"), max_output_tokens=1), 6),
        (
            asking(
                Message(
                    role="assistant", content=None, tool_calls=(ToolCall(id="t1", name="look", arguments='{"a":1}'),)
                ),
                max_output_tokens=1,
            ),
            13,
        ),
        (asking(Message(role="tool", content="x", tool_call_id="t1"), max_output_tokens=1), 3),
        (asking(max_output_tokens=1, tools=({"name": "ü"},)), 2 + len('{"name": "ü"}'.encode())),
        (asking(max_output_tokens=1, response_format={"type": "text"}), 2 + len('{"type": "text"}')),
    ],
)
def test_input_is_bounded_by_its_bytes(query: Query, size_bytes: int) -> None:
    """Every byte of what is said, called and offered may be a token."""
    assert worst_case(query, worker(), None).tokens == FIXED + size_bytes + 1


def test_what_a_pool_file_adds_counts() -> None:
    """`extra_body` is sent with every call, or begins every reply."""
    extra = {"system": "Be brief."}
    worst = worst_case(asking(max_output_tokens=1), worker(extra_body=extra), None)
    assert worst.tokens == FIXED + 3 + len('{"system": "Be brief."}')


@pytest.mark.parametrize(
    ("dialect", "name"), [("openai", "max_tokens"), ("openai", "max_completion_tokens"), ("local", "max_new_tokens")]
)
def test_a_limit_in_a_pool_file_is_a_limit(dialect: str, name: str) -> None:
    """Under the name that the dialect's servers know; another name limits nothing."""
    own, other = worker(dialect=dialect, extra_body={name: 5}), worker(dialect=dialect, extra_body={"max_toks": 5})
    assert limit_output(asking(), own) == asking()
    fixed = FIXED + 2 + len(f'{{"{name}": 5}}')
    assert worst_case(asking(), own, None).tokens == fixed + 5
    reserved = worst_case(limit_output(asking(), other), other, None).tokens
    assert reserved == FIXED + 2 + len('{"max_toks": 5}') + IMPOSED_OUTPUT_TOKENS


@pytest.mark.parametrize("part", [ImagePart(url="data:image/png;base64,AAAA"), OtherPart(kind="file", raw={})])
def test_an_image_is_bounded_by_the_window_alone(part: Any) -> None:
    """Its bytes say nothing of its tokens: where no window is declared, nobody knows."""
    query = asking(Message(role="user", content=(TextPart(text="what?"), part)), max_output_tokens=10)
    price = resolve_price(worker(prices=PRICES))
    assert worst_case(query, worker(), price) == Spend(tokens=None, usd=None)
    assert worst_case(query, worker(context_tokens=8000), price).tokens == 8010


def test_input_is_never_more_than_the_window() -> None:
    """What does not fit is refused, not billed."""
    query = asking(Message(role="user", content="x" * 50_000), max_output_tokens=10)
    assert worst_case(query, worker(context_tokens=8000), None).tokens == 8010


# --- dollars ---


def test_dollars_are_those_of_the_dearest_input() -> None:
    """Tokens that are written to a cache may cost more than plain ones."""
    spec = worker(prices=PRICES)
    worst = worst_case(asking(max_output_tokens=100), spec, resolve_price(spec))
    assert worst.usd == ((FIXED + 2) * Decimal("3.125") + 100 * 10) / 1_000_000
    plain = worker(prices=Prices(input=Decimal("2.5"), output=Decimal("10")))
    worst = worst_case(asking(max_output_tokens=100), plain, resolve_price(plain))
    assert worst.usd == ((FIXED + 2) * Decimal("2.5") + 100 * 10) / 1_000_000


def test_a_price_that_nobody_knows_is_unknown() -> None:
    """And one of nothing is nothing, however many tokens there may be."""
    assert worst_case(asking(), worker(), None).usd is None
    free = worker(prices=Prices(input=Decimal(0), output=Decimal(0)))
    image = asking(Message(role="user", content=(ImagePart(url="https://x/y.png"),)))
    assert worst_case(image, free, resolve_price(free)) == Spend(tokens=None, usd=Decimal(0))


TEXT = st.text(max_size=40)
CALL = st.builds(ToolCall, id=TEXT, name=TEXT, arguments=st.just('{"a": "é"}'))
CONTENT = TEXT | st.lists(st.builds(TextPart, text=TEXT), max_size=3).map(tuple)
MESSAGES = st.one_of(
    st.builds(Message, role=st.sampled_from(["system", "developer", "user"]), content=CONTENT, name=st.none() | TEXT),
    st.builds(Message, role=st.just("assistant"), content=CONTENT, tool_calls=st.lists(CALL, max_size=2).map(tuple)),
    st.builds(Message, role=st.just("tool"), content=CONTENT, tool_call_id=TEXT),
)
TOOL = st.builds(lambda name, text: {"type": "function", "function": {"name": name, "description": text}}, TEXT, TEXT)


def said_bytes(body: Any) -> int:
    """Of all strings that a request holds, field names aside."""
    if isinstance(body, dict):
        return sum(said_bytes(value) for value in body.values())
    if isinstance(body, list):
        return sum(said_bytes(value) for value in body)
    return len(body.encode()) if isinstance(body, str) else 0


LISTED = [
    worker(dialect="anthropic", model="claude-sonnet-4-5", base_url=None),
    worker(model="gpt-5", base_url=None),
    worker(model="gemini-2.5-pro", base_url=None, tags=Tags(provider="google")),
    worker(prices=PRICES),
]


@given(
    st.lists(MESSAGES, min_size=1, max_size=4).map(tuple),
    st.lists(TOOL, max_size=2).map(tuple),
    st.sampled_from(LISTED),
    st.data(),
)
@settings(max_examples=150, deadline=None)
def test_no_bill_is_above_the_worst_case(
    messages: tuple[Message, ...], tools: tuple[Any, ...], spec: WorkerSpec, data: st.DataObject
) -> None:
    """A token for each byte that a dialect really sends, in any mix of plain, cached and written ones, and as much
    output as the limit that it sends allows, cost no more than what was reserved."""
    query = limit_output(Query(messages=messages, sampling=Sampling(tools=tools)), spec)
    price = resolve_price(spec)
    assert price is not None
    worst = worst_case(query, spec, price)
    build = build_openai if spec.dialect == "openai" else build_anthropic
    body = build(spec, query, stream=True)
    said = said_bytes({name: value for name, value in body.items() if name != "model"})
    sent = said + 8 * len(messages) + 500
    input_tokens = data.draw(st.integers(0, sent))
    cached = data.draw(st.integers(0, input_tokens))
    usage = Usage(
        input_tokens=input_tokens,
        cached_input_tokens=cached,
        cache_write_tokens=data.draw(st.integers(0, input_tokens - cached)),
        output_tokens=data.draw(st.integers(0, body.get("max_tokens") or body["max_completion_tokens"])),
    )
    bill = price.cost_usd(usage)
    assert bill is not None
    assert worst.usd is not None
    assert worst.tokens is not None
    assert bill <= worst.usd
    assert (usage.input_tokens or 0) + (usage.output_tokens or 0) <= worst.tokens
