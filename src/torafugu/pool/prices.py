"""What a call costs: local prices first, else what `genai-prices` knows of the provider's model. Exact decimals.

Prices are resolved once, when a pool opens, because importing `genai-prices` takes a quarter of a second. Unknown stays
None: a model that nobody prices, or tokens that nobody counted, never cost 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from ..types import Usage
from .spec import DEFAULT_BASE_URL, NETWORK_DIALECTS, Prices, WorkerSpec

__all__ = ["Price", "resolve_price"]

_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class Price:
    """A worker's price."""

    source: str
    """`override`, or the price list and its version."""
    cost_usd: Callable[[Usage], Decimal | None]
    """Of one call's tokens; None when they are not known well enough."""


def resolve_price(spec: WorkerSpec) -> Price | None:
    """The price of a worker; None when nobody knows it.

    Workers in this process have a price only where one is declared. A worker behind an endpoint of its own is found in
    the price list by `tags.provider`, else by its address: a local server has no provider, so it needs declared prices.
    """
    if spec.prices is not None:
        prices = spec.prices
        return Price("override", lambda usage: _cost(prices, usage))
    return _listed(spec) if spec.dialect in NETWORK_DIALECTS else None


def _cost(prices: Prices, usage: Usage) -> Decimal | None:
    if not (prices.input or prices.output or prices.cached_input or prices.cache_write):
        return _ZERO  # free is free, however many tokens
    if usage.input_tokens is None or usage.output_tokens is None:
        return None
    cached, written = usage.cached_input_tokens or 0, usage.cache_write_tokens or 0  # not reported: none were
    plain = usage.input_tokens - cached - written
    if plain < 0:
        return None  # counts that contradict each other
    cached_price = prices.input if prices.cached_input is None else prices.cached_input
    write_price = prices.input if prices.cache_write is None else prices.cache_write
    micro = plain * prices.input + cached * cached_price + written * write_price + usage.output_tokens * prices.output
    return micro.scaleb(-6)


def _listed(spec: WorkerSpec) -> Price | None:
    import genai_prices
    from genai_prices.data_snapshot import get_snapshot

    provider_id = spec.tags.provider
    address = None if provider_id else spec.base_url or DEFAULT_BASE_URL[spec.dialect]
    try:
        provider, model = get_snapshot().find_provider_model(spec.model, None, provider_id, address)
    except LookupError:
        return None

    def cost_usd(usage: Usage) -> Decimal | None:
        if usage.input_tokens is None or usage.output_tokens is None:
            return None
        counts = genai_prices.Usage(
            input_tokens=usage.input_tokens,
            cache_read_tokens=usage.cached_input_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            output_tokens=usage.output_tokens,
        )
        try:
            found = model.calc_price(counts, provider)  # at the time of the call: some prices depend on it
        except ValueError:
            return None  # counts that contradict each other
        # A list entry without token prices is one that nobody filled in, not a gift.
        has_prices = found.model_price.input_mtok is not None or found.model_price.output_mtok is not None
        return Decimal(found.total_price) if has_prices else None

    return Price(f"genai-prices {genai_prices.__version__}", cost_usd)
