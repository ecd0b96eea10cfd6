"""Types of arguments that several commands take. What they refuse they say in words."""

from __future__ import annotations

import argparse
from decimal import Decimal, InvalidOperation

__all__ = ["at_least_one", "calls_limit", "reward_price", "seed_number", "usd_limit"]


def at_least_one(text: str) -> int:
    """An argument that counts something."""
    return _whole(text, least=1)


def seed_number(text: str) -> int:
    """An argument that random numbers begin with."""
    return _whole(text, least=0)


def _whole(text: str, *, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number of at least {least}")
    return number


def calls_limit(text: str) -> float:
    return _number(text, 1, float("inf"), "a number of at least 1")


def reward_price(text: str) -> float:
    return _number(text, 0, 1, "0 to 1, a share of a right answer")


def _number(text: str, least: float, most: float, expected: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not (least <= number <= most and number < float("inf")):  # also refuses NaN
        raise argparse.ArgumentTypeError(f"{text}: expected {expected}")
    return number


def usd_limit(text: str) -> Decimal:
    try:
        limit = Decimal(text)
    except InvalidOperation:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not (limit.is_finite() and limit > 0):
        raise argparse.ArgumentTypeError(f"{text}: expected more than 0")
    return limit
