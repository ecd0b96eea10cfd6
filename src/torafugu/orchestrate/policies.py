"""Which kinds of trained policies there are, under which model name each is served, and how any is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ..pool.prices import Price
from .artefact import read_card
from .coordinator import Coordinator, CoordinatorHead
from .encoder import Encoder
from .head import Head
from .policy import SWITCH_MARGIN, Policy
from .selector import Selector, know_no_price
from .transcript import TranscriptCoordinator, TranscriptHead

__all__ = ["KINDS", "load_policy"]

KINDS: Mapping[str, str] = {"selector": "fugu", "coordinator": "fugu-trinity", "transcript": "fugu-trinity"}
"""Kind of a card -> model name."""


def load_policy(
    folder: Path,
    encoder: Encoder,
    pool: Mapping[str, str],
    *,
    switch_margin: float = SWITCH_MARGIN,
    price_of: Callable[[str], Price | None] = know_no_price,
) -> Policy:
    """Whatever policy is in the folder. `pool`: id -> model of the workers that can be called; the rest is a
    `Selector`'s.

    Raises:
        ModelError: it is damaged, of an unknown kind, or made for another encoder or other workers.
    """
    kind = read_card(folder, *KINDS).kind
    if kind == "selector":
        return Selector(Head.load(folder), encoder, pool, switch_margin=switch_margin, price_of=price_of)
    if kind == "transcript":
        return TranscriptCoordinator(TranscriptHead.load(folder), encoder, pool)
    return Coordinator(CoordinatorHead.load(folder), encoder, pool)
