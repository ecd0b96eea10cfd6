"""How the skills read: numbers in digits and in words, items of a list, and arithmetic expressions.

Everything is bounded: a number has at most 40 digits, an expression at most 400 characters, 32 levels of brackets and
degree 8, a power at most 1,024 bits. What exceeds a bound is not understood, which is `Unreadable` in here and None
to the outside.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple, TypeAlias

__all__ = [
    "Polynomial",
    "Skill",
    "Unreadable",
    "Worked",
    "format_exact",
    "read_int",
    "read_number_words",
    "read_polynomial",
]

MAX_DIGITS = 40
_MAX_CHARS = 400
_MAX_DEPTH = 32
_MAX_DEGREE = 8
_MAX_BITS = 1024


class Worked(NamedTuple):
    """An answer and, in a few words, how it came about."""

    answer: str
    how: str


Skill: TypeAlias = Callable[[str], Worked | None]
Polynomial: TypeAlias = tuple[Fraction, ...]
"""Coefficients, the constant first, without zeros at the end; zero is empty."""


class Unreadable(Exception):
    """The text is no expression that we know, or exceeds a bound."""


def read_int(digits: str) -> int | None:
    """A whole number with an optional sign; None when it is none, or too long."""
    return int(digits) if re.fullmatch(rf"[+-]?\d{{1,{MAX_DIGITS}}}", digits, re.ASCII) else None


_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_WORD_VALUE = {word: value for value, word in enumerate(_ONES.split())} | {
    word: 10 * value for value, word in enumerate(_TENS.split(), start=2)
}


def read_number_words(words: str) -> int | None:
    """ "three hundred and forty-two" -> 342, below one million; None when a word is no number."""
    total = current = 0
    parts = [part for part in re.split(r"[\s-]+", words.strip().lower()) if part != "and"]
    for part in parts:
        if part in _WORD_VALUE:
            current += _WORD_VALUE[part]
        elif part == "hundred" and 0 < current < 10:
            current *= 100
        elif part == "thousand" and 0 < current < 1000:
            total, current = total + 1000 * current, 0
        else:
            return None
    return total + current if parts else None


def format_exact(value: Fraction) -> str:
    """As a decimal when that ends, else as a fraction."""
    if value.denominator == 1:
        return str(value.numerator)
    places, rest = 0, value.denominator
    for prime in (2, 5):
        power = 0
        while rest % prime == 0:
            rest, power = rest // prime, power + 1
        places = max(places, power)
    if rest != 1 or places > MAX_DIGITS:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


_TOKEN = re.compile(r"\s*(?:(\d{1,40}(?:\.\d{1,40})?)|(\*\*|[-+*/^()])|([a-z]))", re.ASCII)


def read_polynomial(text: str) -> tuple[Polynomial, str | None]:
    """An expression in at most one variable, and that variable's name.

    Raises:
        Unreadable: it is no such expression, exceeds a bound, or divides by zero or by the variable.
    """
    text = text.replace("×", "*").replace("÷", "/").replace("−", "-").strip()
    if not text or len(text) > _MAX_CHARS:
        raise Unreadable
    tokens, names, at = [], set(), 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise Unreadable
        at = match.end()
        tokens.append(match[1] or match[2] or match[3])
        if match[3]:
            names.add(match[3])
    if len(names) > 1:
        raise Unreadable
    reader = _Reader(tokens)
    value = reader.read_sum(0)
    if reader.peek() is not None:
        raise Unreadable
    return value, next(iter(names), None)


class _Reader:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._at = 0

    def peek(self) -> str | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _take(self) -> str:
        token = self.peek()
        if token is None:
            raise Unreadable
        self._at += 1
        return token

    def read_sum(self, depth: int) -> Polynomial:
        value = self._read_product(depth)
        while self.peek() in ("+", "-"):
            sign = 1 if self._take() == "+" else -1
            value = _add(value, _scale(self._read_product(depth), Fraction(sign)))
        return value

    def _read_product(self, depth: int) -> Polynomial:
        value = self._read_signed(depth)
        while (token := self.peek()) is not None:
            if token in ("*", "/"):
                self._take()
                right = self._read_signed(depth)
                value = _multiply(value, right) if token == "*" else _divide(value, right)
            elif token == "(" or token.isalpha():  # 3x, 2(x + 1)
                value = _multiply(value, self._read_power(depth))
            else:
                break
        return value

    def _read_signed(self, depth: int) -> Polynomial:
        if depth > _MAX_DEPTH:
            raise Unreadable
        if self.peek() in ("+", "-"):
            sign = 1 if self._take() == "+" else -1
            return _scale(self._read_signed(depth + 1), Fraction(sign))
        return self._read_power(depth)

    def _read_power(self, depth: int) -> Polynomial:
        base = self._read_atom(depth)
        if self.peek() not in ("^", "**"):
            return base
        self._take()
        exponent = self._read_signed(depth + 1)
        if len(exponent) > 1 or (exponent and (exponent[0].denominator != 1 or not 0 <= exponent[0] <= _MAX_BITS)):
            raise Unreadable
        return _power(base, int(exponent[0]) if exponent else 0)

    def _read_atom(self, depth: int) -> Polynomial:
        token = self._take()
        if token == "(":
            value = self.read_sum(depth + 1)
            if self._take() != ")":
                raise Unreadable
            return value
        if token.isalpha():
            return (Fraction(0), Fraction(1))
        if token[0].isdigit():
            return _check([Fraction(token)])
        raise Unreadable


def _add(a: Polynomial, b: Polynomial) -> Polynomial:
    size = max(len(a), len(b))
    zeros = (Fraction(0),) * size
    return _check([x + y for x, y in zip((a + zeros)[:size], (b + zeros)[:size], strict=True)])


def _scale(a: Polynomial, factor: Fraction) -> Polynomial:
    return _check([x * factor for x in a])


def _multiply(a: Polynomial, b: Polynomial) -> Polynomial:
    product = [Fraction(0)] * max(len(a) + len(b) - 1, 0)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            product[i + j] += x * y
    return _check(product)


def _power(base: Polynomial, exponent: int) -> Polynomial:
    """By squaring; each product is checked against the bounds before the next is made."""
    value: Polynomial = (Fraction(1),)
    while exponent:
        if exponent & 1:
            value = _multiply(value, base)
        exponent >>= 1
        if exponent:
            base = _multiply(base, base)
    return value


def _divide(a: Polynomial, b: Polynomial) -> Polynomial:
    if len(b) != 1:
        raise Unreadable
    return _scale(a, 1 / b[0])


def _check(coefficients: list[Fraction]) -> Polynomial:
    while coefficients and coefficients[-1] == 0:
        coefficients.pop()
    too_big = any(max(x.numerator.bit_length(), x.denominator.bit_length()) > _MAX_BITS for x in coefficients)
    if too_big or len(coefficients) > _MAX_DEGREE + 1:
        raise Unreadable
    return tuple(coefficients)
