"""What an answer says, without how it is written: two answers agree when that is the same.

`canonical_answer` reads an answer as a number, an expression, a list or words, whichever fits first, and writes down
what is left when notation is taken away: `482.0` is `482`, `\\frac{1}{2}` is `0.5`, `2x + 2` is `2(x+1)`, `[1, 2]` is
`(1,2)`, `Grandfather.` is `grandfather`. Expressions are compared by their values at fixed points: nothing is solved
or simplified, and all that is read is bounded. That two answers agree says nothing of right or wrong: that is a
grader's, and some accept one notation only.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping
from decimal import Decimal

import numpy as np
import numpy.typing as npt

__all__ = ["canonical_answer"]

Values = npt.NDArray[np.complex128]
_MAX_CHARS = 4_000
"""Of a longer answer the rest has to be the same to the letter."""
_MAX_REMEMBERED_CHARS = 256
_MAX_EXPRESSION_CHARS = 300
_MAX_DEPTH = 25
_POINTS = 3
_DIGITS = 12
"""Significant ones, of a number that is not whole."""
_COMPUTED_DIGITS = 9
_OPENING, _CLOSING = "([{", ")]}"

_ALIKE = str.maketrans(
    {
        **dict.fromkeys("×·⋅∗", "*"),
        **dict.fromkeys("÷⁄", "/"),
        **dict.fromkeys("−–—", "-"),
        **dict.fromkeys("“”", '"'),
        **dict.fromkeys("‘’", "'"),
        "∣": "|",
    }
)
_MATRIX = re.compile(r"\\begin\{[a-zA-Z]{0,9}matrix\}(.{0,1000}?)\\end\{[a-zA-Z]{0,9}matrix\}", re.DOTALL)
_COMMANDS = tuple(
    (re.compile(form), plain)
    for form, plain in (
        (r"\\(?:left|right|displaystyle|[bB]igg?[lr]?)(?![a-zA-Z])", ""),
        (r"\\(?:text|textbf|mathrm|mathbf|mathbb|mathit|mbox|operatorname|boxed)\s?\{([^{}]*)\}", r" \1 "),
        (r"\\[dtc]?frac\s?(\d)\s?(\d)", r"((\1)/(\2))"),
        (r"\\(?:cdot|times|ast)(?![a-zA-Z])", "*"),
        (r"\\div(?![a-zA-Z])", "/"),
        (r"\\leq?(?![a-zA-Z])", "≤"),
        (r"\\geq?(?![a-zA-Z])", "≥"),
        (r"\\cup(?![a-zA-Z])", "∪"),
        (r"\\pi(?![a-zA-Z])", "π"),
        (r"\\(?:[,;:!()\[\]]|quad|qquad)", " "),
        (r"\^\s?\\circ|\\degree|°", " "),
        (r"\\([{}%$#&_])", r"\1"),
    )
)
_BRACED = (
    (re.compile(r"\\[dtc]?frac\s?\{([^{}]*)\}\s?\{([^{}]*)\}"), r"((\1)/(\2))"),
    (re.compile(r"\\sqrt\s?\[([^\[\]{}]*)\]\s?\{([^{}]*)\}"), r"((\2)^(1/(\1)))"),
    (re.compile(r"\\sqrt\s?\{([^{}]*)\}"), r"sqrt(\1)"),
    (re.compile(r"\^\{([^{}]*)\}"), r"^(\1)"),
)
"""From the inside out, so that each holds no other."""
_BARE_ROOT = re.compile(r"(?:\\sqrt|√)\s?(\d+(?:\.\d+)?|[a-zA-Z])")

_FUNCTIONS: Mapping[str, Callable[[Values], Values]] = {
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "arcsin": np.arcsin,
    "arccos": np.arccos,
    "arctan": np.arctan,
    "exp": np.exp,
    "ln": np.log,
    "log": np.log,
    "sqrt": np.sqrt,
}
_CONSTANTS = {"pi": np.pi, "π": np.pi, "e": np.e}
_NAMES = "|".join(sorted([*_FUNCTIONS, "pi"], key=len, reverse=True))
_DIGIT_GROUPS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_TOKEN = re.compile(
    rf"\s*(?:(?P<number>(?=\.?\d){_DIGIT_GROUPS}?(?:\.\d*)?)|(?P<name>{_NAMES}|[a-zπθ])|(?P<sign>\*\*|[-+*/^()]))"
)
_NUMBER = re.compile(rf"[+-]?(?!0\d)(?=\.?\d){_DIGIT_GROUPS}?(?:\.\d*)?(?:e[+-]?\d{{1,4}})?", re.ASCII)
_ARITHMETIC = re.compile(r"[-+*/()\s\d.,]+")
_QUOTIENT = re.compile(r"\(*\s*-?\s*\(*\d+\)*\s*/\s*\(*\d+\)*", re.ASCII)
_WITH_UNIT = re.compile(rf"([+-]?(?!0\d){_DIGIT_GROUPS}(?:\.\d+)?)\s?(%|[a-z]{{2,12}})", re.ASCII)
_EMPHASIS = re.compile(r"(\*{1,3}|_{1,2}|`{1,3})([^*_`]+)\1")
_OR = re.compile(r"\bor\b|(?<=[\d)\]}])or(?=[-\d(\[{])|∪")
_NAMED = re.compile(r"\s*[a-z]\w{0,9}\s*=[^=]+")
_AN = re.compile(r"\ban ")
_AROUND_MARKS = re.compile(r"\s?([-,;:/=<>|()\[\]{}])\s?")
_CAPITAL_WITHIN = re.compile(r"[a-z][A-Z]|[A-Z]{2}[a-z]")


def canonical_answer(answer: str) -> str:
    """The same string for answers that say the same; "" for an empty one, which agrees with nothing.

    Blanks at an end or in rows, and capitals within words, are taken to be meant (the output of a program, a cipher).
    """
    return _read_short(answer) if len(answer) <= _MAX_REMEMBERED_CHARS else _read(answer)


def _read(answer: str) -> str:
    if not answer.strip():
        return ""
    if answer != answer.strip() or "  " in answer:
        return f"'{answer}"
    head, tail = answer[:_MAX_CHARS], answer[_MAX_CHARS:]
    text = _read_latex(unicodedata.normalize("NFC", head).translate(_ALIKE))
    if not _CAPITAL_WITHIN.search(text):
        text = text.casefold()
    return (_canonical(text, 0) or head) + (
        f"#{hashlib.sha256(tail.encode(errors='replace')).hexdigest()}" if tail else ""
    )


_read_short = functools.lru_cache(maxsize=65_536)(_read)
"""A training asks for the same answers again and again."""


def _canonical(text: str, depth: int) -> str:
    text = _unwrap(text)
    if depth < _MAX_DEPTH:
        for read in (_read_number, _read_alternatives, _read_list, _read_equation):
            found = read(text, depth + 1)
            if found is not None:
                return found
    plain = _AROUND_MARKS.sub(r"\1", " ".join(_AN.sub("a ", text).split()))
    return plain.strip("\"'`*.;:!? ") or plain or text


def _unwrap(text: str) -> str:
    """Without emphasis, quotes, dollars and a final full stop around it."""
    before = None
    while text != before:
        before = text
        text = text.strip()
        if marked := _EMPHASIS.fullmatch(text):
            text = marked[2]
        if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'$" and text.count(text[0]) == 2:
            text = text[1:-1]
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1]
    return text


def _read_latex(text: str) -> str:
    """Commands as plain signs; what is not known keeps its name."""
    if not any(sign in text for sign in ("\\", "√", "^{")):
        return text
    text = _MATRIX.sub(_read_matrix, text)
    for form, plain in _COMMANDS:
        text = form.sub(plain, text)
    text = _BARE_ROOT.sub(r"sqrt(\1)", text)
    for _ in range(_MAX_DEPTH):
        before = text
        for form, plain in _BRACED:
            text = form.sub(plain, text)
        if text == before:
            break
    return text.replace("\\", "")


def _read_matrix(found: re.Match[str]) -> str:
    rows = [row.strip(" \\\n") for row in found[1].split("\\\\")]
    return "[" + ",".join(f"[{row.replace('&', ',')}]" for row in rows if row) + "]"


def _read_number(text: str, depth: int) -> str | None:
    """A number, with its unit; an expression by its values. Sums and products of plain numbers stay as they are: who is
    asked for one is not asked for its value, and a date or a score only looks like one.
    """
    if not text or len(text) > _MAX_EXPRESSION_CHARS:
        return None
    if _NUMBER.fullmatch(text):
        return _write_decimal(text)
    if number := _WITH_UNIT.fullmatch(text):
        return f"{_write_decimal(number[1])} {number[2].removesuffix('s')}"
    if _ARITHMETIC.fullmatch(text) and not _QUOTIENT.fullmatch(text):
        return None
    if re.search(r"[a-z]{2}", re.sub(_NAMES, " ", text)) or re.fullmatch(r"\W*[a-zθ]\W*", text):
        return None  # a word; an option's letter
    try:
        with np.errstate(all="ignore"):
            values = _evaluate(text)
    except _Unreadable:
        return None
    return "=" + " ".join(map(_write_value, values)) if np.isfinite(values).all() else None


def _write_decimal(text: str) -> str:
    number = Decimal(text.replace(",", ""))
    if not -400 < number.adjusted() < 400:
        return f"={number.normalize()}"
    if number == number.to_integral_value():
        return f"={int(number)}"
    return f"={float(number):.{_DIGITS}g}"


def _write_value(value: complex) -> str:
    parts = [_write_float(part, abs(value)) for part in (value.real, value.imag)]
    return parts[0] if parts[1] == "0" else f"{parts[0]}+{parts[1]}i"


def _write_float(value: float, size: float) -> str:
    if abs(value) <= 1e-9 * max(size, 1e-3):
        return "0"
    if abs(value) < 1e15 and abs(value - round(value)) < 1e-9 * abs(value):
        return str(round(value))
    return f"{value:.{_COMPUTED_DIGITS}g}"


def _evaluate(text: str) -> Values:
    """(1,) without a letter that stands for a number, else (`_POINTS`,).

    An antiderivative is known by its `+ c`: what it adds does not count.
    """
    expression = _Expression(text)
    letters = expression.letters
    has_constant = "c" in letters and len(letters) > 1
    values = expression.at(_sample(letters, c=0.0))
    if has_constant and np.allclose(expression.at(_sample(letters, c=1.0)) - values, 1.0, rtol=1e-9, atol=0):
        values = values - values[0]
    elif has_constant:
        values = expression.at(_sample(letters, c=None))
    return values if letters else values[:1]


def _sample(letters: frozenset[str], *, c: float | None) -> dict[str, Values]:
    """Each letter's values: spread and not special, the same for the same letter wherever it stands."""
    steps = np.arange(_POINTS) * 0.7548776662466927
    found = {
        letter: (0.3 + (ord(letter) * 0.6180339887498949 + steps) % 1.0).astype(np.complex128) for letter in letters
    }
    if c is not None and "c" in found and len(letters) > 1:
        found["c"] = np.full(_POINTS, c, np.complex128)
    return found


class _Unreadable(Exception):
    """Not an expression."""


class _Expression:
    """Sums, products, powers and functions, signs of multiplication left out where they may be; over vectors."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            if not found or found.end() == at or not found.lastgroup:
                raise _Unreadable
            self._tokens.append((found.lastgroup, found[found.lastgroup]))
            at = found.end()
        names = {token for kind, token in self._tokens if kind == "name"}
        self.letters = frozenset(names - set(_FUNCTIONS) - set(_CONSTANTS))

    def at(self, values: Mapping[str, Values]) -> Values:
        self._values, self._next, self._depth = values, 0, 0
        result = self._sum()
        if self._next < len(self._tokens):
            raise _Unreadable
        return result

    def _take(self, *signs: str) -> str | None:
        if self._next < len(self._tokens) and self._tokens[self._next] in {("sign", sign) for sign in signs}:
            self._next += 1
            return self._tokens[self._next - 1][1]
        return None

    def _sum(self) -> Values:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _Unreadable
        result = self._product()
        while sign := self._take("+", "-"):
            other = self._product()
            result = result + other if sign == "+" else result - other
        self._depth -= 1
        return result

    def _product(self) -> Values:
        result = self._factor()
        while True:
            if sign := self._take("*", "/"):
                other = self._factor()
                result = result * other if sign == "*" else result / other
            elif self._next < len(self._tokens) and (
                self._tokens[self._next][0] == "name" or self._tokens[self._next][1] == "("
            ):
                result = result * self._power()
            else:
                return result

    def _factor(self) -> Values:
        is_negative = False
        while sign := self._take("+", "-"):
            is_negative ^= sign == "-"
        value = self._power()
        return -value if is_negative else value

    def _power(self) -> Values:
        base = self._atom()
        if not self._take("^", "**"):
            return base
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _Unreadable
        exponent = self._factor()
        self._depth -= 1
        result: Values = np.power(base, exponent)
        return result

    def _atom(self) -> Values:
        if self._take("("):
            inside = self._sum()
            if not self._take(")"):
                raise _Unreadable
            return inside
        if self._next == len(self._tokens):
            raise _Unreadable
        kind, token = self._tokens[self._next]
        self._next += 1
        if kind == "number":
            return np.full(_POINTS, float(token.replace(",", "")), np.complex128)
        if token in _FUNCTIONS:
            return self._function(_FUNCTIONS[token])
        if token in _CONSTANTS:
            return np.full(_POINTS, _CONSTANTS[token], np.complex128)
        if kind != "name":
            raise _Unreadable
        return self._values[token]

    def _function(self, function: Callable[[Values], Values]) -> Values:
        """`sin x`, `sin(x)`, `sin^2(x)`."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _Unreadable
        exponent = self._atom() if self._take("^", "**") else None
        result = function(self._atom())
        self._depth -= 1
        return result if exponent is None else np.power(result, exponent)


def _read_alternatives(text: str, depth: int) -> str | None:
    """`0 or 1` is `1 or 0`."""
    parts = _OR.split(text)
    if len(parts) < 2 or not all(part.strip() for part in parts):
        return None
    return "or(" + "|".join(sorted(_canonical(_balance(part), depth) for part in parts)) + ")"


def _read_list(text: str, depth: int) -> str | None:
    """Kinds of brackets do not count, nor do brackets that have no partner; of sets and of named values the order."""
    items = _split(text)
    if items is None:
        return _canonical(_balance(text), depth)
    if len(items) > 1:
        return _write_list(items, depth, is_set=all(map(_NAMED.fullmatch, items)))
    if not text or text[0] not in _OPENING:
        return None
    if text.startswith("[[") and _closes_at(text, 1) == len(text) - 2:  # how some data sets mark an answer
        return _canonical(text[2:-2], depth)
    end = _closes_at(text, 0)
    if end < len(text) - 1:  # [1, 2][3, 4]
        parts = re.findall(r"[(\[{][^()\[\]{}]*[)\]}]", text)
        return _write_list(parts, depth) if "".join(parts) == "".join(text.split()) else None
    inside = _split(text[1:-1])
    if inside is None:
        return None
    if len(inside) > 1:
        return _write_list(inside, depth, is_set=text[0] == "{")
    form = _canonical(inside[0], depth)
    return form if text[0] == "(" or form.startswith(("(", "or(")) else f"({form})"


def _write_list(items: list[str], depth: int, *, is_set: bool = False) -> str:
    is_named = is_set and all(map(_NAMED.fullmatch, items))
    forms = ["".join(item.split()) if is_named else _canonical(item, depth) for item in items if item.strip()]
    return "(" + ",".join(sorted(forms) if is_set else forms) + ")"


def _split(text: str) -> list[str] | None:
    """At commas and semicolons outside of brackets and quotes; None where these do not close."""
    parts, start, level, quote = [], 0, 0, ""
    for i, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char == '"' or (char == "'" and (i == 0 or not text[i - 1].isalnum())):
            quote = char
        elif char in _OPENING:
            level += 1
        elif char in _CLOSING:
            level -= 1
        elif char in ",;" and not level:
            parts.append(text[start:i])
            start = i + 1
        if level < 0:
            return None
    return None if level or quote else [*parts, text[start:]]


def _closes_at(text: str, start: int) -> int:
    """Where the bracket at `start` closes."""
    level = 0
    for i in range(start, len(text)):
        level += (text[i] in _OPENING) - (text[i] in _CLOSING)
        if level == 0:
            return i
    return len(text)


def _balance(text: str) -> str:
    """Without quotes, and brackets that have no partner."""
    kept, open_at = [True] * len(text), []
    for i, char in enumerate(text):
        if char in _OPENING:
            open_at.append(i)
        elif char in _CLOSING:
            if open_at:
                open_at.pop()
            else:
                kept[i] = False
    for i in open_at:
        kept[i] = False
    return "".join(char for char, keep in zip(text, kept, strict=True) if keep and char not in "\"'")


def _read_equation(text: str, depth: int) -> str | None:
    """`x = 5` is `5`; of others both sides are read."""
    sides = [side.strip() for side in text.split("=")]
    if len(sides) != 2 or not all(sides) or sides[0][-1] in "<>!":
        return None
    if re.fullmatch(r"[a-z]\w{0,9}(?:\([a-z]\))?", sides[0]):
        return _canonical(sides[1], depth)
    return "==".join(_canonical(side, depth) for side in sides)
