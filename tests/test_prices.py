"""What a call costs, exactly, or that nobody knows."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import genai_prices
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torafugu.pool.prices import resolve_price
from torafugu.pool.spec import Prices, Tags, WorkerSpec
from torafugu.types import Usage


def spec(**fields: Any) -> WorkerSpec:
    return WorkerSpec(**({"id": "w", "dialect": "openai", "model": "gpt-5"} | fields))


def cost(worker: WorkerSpec, usage: Usage) -> Decimal | None:
    price = resolve_price(worker)
    assert price is not None
    return price.cost_usd(usage)


OVERRIDE = Prices(input=Decimal("3"), output=Decimal("15"), cached_input=Decimal("0.3"), cache_write=Decimal("3.75"))


def test_declared_prices_are_exact() -> None:
    """Cached and written tokens have prices of their own; reasoning is part of the output."""
    usage = Usage(
        input_tokens=1110, cached_input_tokens=100, cache_write_tokens=1000, output_tokens=7, reasoning_tokens=5
    )
    expected = (Decimal(10) * 3 + 100 * Decimal("0.3") + 1000 * Decimal("3.75") + 7 * 15) / 1_000_000
    assert cost(spec(prices=OVERRIDE), usage) == expected == Decimal("0.003915")


def test_cached_tokens_without_a_price_cost_what_input_costs() -> None:
    """No discount is made up."""
    prices = Prices(input=Decimal(2), output=Decimal(4))
    usage = Usage(input_tokens=1000, cached_input_tokens=900, output_tokens=0)
    assert cost(spec(prices=prices), usage) == Decimal("0.002")


@given(*[st.integers(0, 10**7)] * 4, st.decimals(0, 1000, places=4), st.decimals(0, 1000, places=4))
def test_a_declared_cost_is_the_sum_of_its_parts(
    plain: int, cached: int, written: int, output: int, price_in: Decimal, price_out: Decimal
) -> None:
    """One price for all input is one product: nothing is rounded on the way."""
    usage = Usage(
        input_tokens=plain + cached + written,
        cached_input_tokens=cached,
        cache_write_tokens=written,
        output_tokens=output,
    )
    expected = ((plain + cached + written) * price_in + output * price_out) / 1_000_000
    assert cost(spec(prices=Prices(input=price_in, output=price_out)), usage) == expected


@pytest.mark.parametrize(
    "usage",
    [
        Usage(),
        Usage(input_tokens=5),
        Usage(output_tokens=5),
        Usage(input_tokens=5, cached_input_tokens=6, output_tokens=1),
    ],
)
@pytest.mark.parametrize("prices", [OVERRIDE, None])
def test_unknown_or_contradictory_usage_has_no_cost(usage: Usage, prices: Prices | None) -> None:
    """Tokens that nobody counted are not free."""
    assert cost(spec(prices=prices), usage) is None


def test_what_is_declared_free_is_free_however_many_tokens() -> None:
    """A local server that does not count costs 0, not an unknown sum."""
    assert cost(spec(prices=Prices(input=Decimal(0), output=Decimal(0))), Usage()) == 0


def test_a_declared_price_overrides_the_list() -> None:
    """The source says which of the two it was."""
    listed, declared = resolve_price(spec()), resolve_price(spec(prices=OVERRIDE))
    assert listed is not None
    assert declared is not None
    assert listed.source == f"genai-prices {genai_prices.__version__}"
    assert declared.source == "override"


def test_a_listed_price_agrees_with_the_list() -> None:
    """Cached tokens get the list's discount, exactly."""
    usage = Usage(input_tokens=1000, cached_input_tokens=100, output_tokens=10)
    # gpt-5: 1.25 per million in, 0.125 cached, 10 out
    assert cost(spec(), usage) == Decimal(900 * 125 + 100 * Decimal("12.5") + 10 * 1000) / 100 / 1_000_000


def test_a_listed_model_of_anthropic_prices_cache_writes() -> None:
    """Tokens written to the cache cost more than plain input."""
    worker = spec(dialect="anthropic", model="claude-sonnet-4-5")
    plain = cost(worker, Usage(input_tokens=1000, output_tokens=0))
    written = cost(worker, Usage(input_tokens=1000, cache_write_tokens=1000, output_tokens=0))
    assert plain is not None
    assert written is not None
    assert written == plain * Decimal("1.25")


@pytest.mark.parametrize(
    ("fields", "is_known"),
    [
        ({"base_url": "https://api.openai.com/v1"}, True),
        ({"model": "no-such-model"}, False),
        ({"base_url": "http://127.0.0.1:8000/v1"}, False),  # a local server may call its model anything
        ({"base_url": "http://127.0.0.1:8000/v1", "tags": Tags(provider="openai")}, True),
        ({"tags": Tags(provider="no-such-provider")}, False),
        ({"base_url": "https://openrouter.ai/api/v1", "model": "openai/gpt-5"}, True),
        ({"dialect": "anthropic"}, False),
        ({"dialect": "home"}, False),
        ({"dialect": "scripted"}, False),
        ({"dialect": "recorded", "tags": Tags(provider="openai")}, False),
    ],
)
def test_a_model_is_found_by_its_provider(fields: dict[str, Any], is_known: bool) -> None:
    """By the provider that is named, else by the address; never by the model's name alone."""
    assert (resolve_price(spec(**fields)) is not None) == is_known


def test_an_entry_without_prices_is_unknown() -> None:
    """A model that the list names without a price is not free."""
    worker = spec(base_url="https://openrouter.ai/api/v1", model="meta-llama/llama-3.3-70b-instruct:free")
    assert cost(worker, Usage(input_tokens=5, output_tokens=5)) is None


def test_a_worker_of_this_process_may_be_given_a_price() -> None:
    """Declared prices hold for every dialect."""
    assert cost(spec(dialect="home", prices=OVERRIDE), Usage(input_tokens=0, output_tokens=1)) == Decimal("0.000015")
