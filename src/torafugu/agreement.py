"""What an answer says, without how it is written: two answers agree when that is the same.

`canonical_answer` reads an answer as a number, an expression, a list or words, whichever fits first, and writes down
what is left when notation is taken away: `482.0` is `482`, `\\frac{1}{2}` is `0.5`, `2x + 2` is `2(x + 1)`, `["a"]` is
`[ 'a' ]`, `Yes.` is `yes`. What may be meant stays: kinds of brackets, quoted text, capitals, layout. Expressions are
compared by their values at fixed points: nothing is solved or simplified, and all that is read is bounded.

That two answers agree says nothing of right or wrong: that is a grader's, and some accept one notation only.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction

import numpy as np
import numpy.typing as npt

__all__ = ["canonical_answer"]

Values = npt.NDArray[np.complex128]
_MAX_CHARS = 4_000
"""Of a longer answer the rest has to be the same to the letter."""
_SHORT_CHARS = 256
_MAX_EXPRESSION_CHARS = 300
_MAX_DEPTH = 25
_STEPS = np.array([0.37, 1000.11, 5000.73])
"""A letter's values, 0.4 to 2.9, come of roots of its code point and these: no sum of letters is another's."""
_POINTS = len(_STEPS)
_DIGITS = 10
"""Significant ones, of a value that was computed."""
_EXACT_DIGITS = 15
"""With more, what was written down is a float: 417302.6449999999."""
_LARGE = 1e9
"""Of a computed value that is larger, what is added last may be lost."""
_OPENING, _CLOSING = "([{", ")]}"

_ALIKE = str.maketrans(
    {
        **dict.fromkeys("×·⋅∗", "*"),
        **dict.fromkeys("÷⁄", "/"),
        **dict.fromkeys("−–—", "-"),
        **dict.fromkeys("“”", '"'),
        **dict.fromkeys("‘’", "'"),
        "²": "^2",
        "³": "^3",
        "∣": "|",
    }
)
_LATEX = ("\\", "√", "^{", "{,}", "<=", ">=", "!=")
"""Signs of what `_read_latex` reads."""
_MATRIX = re.compile(r"\\begin\{[a-zA-Z]{0,9}matrix\}(.{0,1000}?)\\end\{[a-zA-Z]{0,9}matrix\}")
_COMMANDS = tuple(
    (re.compile(form), plain)
    for form, plain in (
        (r"\\(?:left|right|displaystyle|[bB]igg?[lr]?)(?![a-zA-Z])", ""),
        (r"\\(?:text|textbf|mathrm|mathbf|mathit|mbox|operatorname|boxed)\s?\{([^{}]*)\}", r" \1 "),
        (r"\\[dtc]?frac\s?(\d)\s?(\d)", r"((\1)/(\2))"),
        (r"\\(?:cdot|times|ast)(?![a-zA-Z])", "*"),
        (r"\\div(?![a-zA-Z])", "/"),
        (r"\\leq?(?![a-zA-Z])|<=", "≤"),
        (r"\\geq?(?![a-zA-Z])|>=", "≥"),
        (r"\\neq?(?![a-zA-Z])|!=", "≠"),
        (r"\\cup(?![a-zA-Z])", "∪"),
        (r"\\infty(?![a-zA-Z])", "∞"),
        (r"\\pi(?![a-zA-Z])", "π"),
        (r"\^\s?\\circ(?![a-zA-Z])|\^\{\\circ\}|\\degree(?![a-zA-Z])", "°"),
        (r"\\!", ""),
        (r"\{,\}(?=\d{3})", ","),
        (r"\\(?:[,;: ]|quad(?![a-zA-Z])|qquad(?![a-zA-Z]))", " "),
        (r"\\[()\[\]]", ""),
        (r"\\(sinh?|cosh?|tanh?|arcsin|arccos|arctan|exp|ln|log)(?=[^a-zA-Z]|[a-zA-Z](?![a-zA-Z]))", r" \1 "),
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
_BARE_ROOT = re.compile(r"(?:\\sqrt|√)\s?(\d+(?:\.\d+)?|[a-zA-Z](?![a-zA-Z])|(?=\())")

_FUNCTIONS: Mapping[str, Callable[[Values], Values]] = {
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "arcsin": np.arcsin,
    "asin": np.arcsin,
    "arccos": np.arccos,
    "acos": np.arccos,
    "arctan": np.arctan,
    "atan": np.arctan,
    "exp": np.exp,
    "ln": np.log,
    "log": np.log10,
    "sqrt": np.sqrt,
}
_CONSTANTS = {"pi": np.pi, "π": np.pi, "e": np.e}
_NAMES = "|".join(sorted([*_FUNCTIONS, "pi"], key=len, reverse=True))
_WHOLE = r"(?!0\d)(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_TOKEN = re.compile(
    rf"\s*(?:(?P<number>(?=\.?\d)(?:{_WHOLE})?(?:\.\d+)?)|(?P<name>{_NAMES}|[a-zA-Zπθ])|(?P<sign>\*\*|[-+*/^()]))"
)
_NUMBER = re.compile(rf"[+-]?(?=\.?\d)(?:{_WHOLE})?(?:\.\d*)?(?:[eE][+-]?\d{{1,4}})?", re.ASCII)
_QUANTITY = re.compile(rf"([$€£]?)\s?([+-]?{_WHOLE}(?:\.\d+)?)\s?(%|°|(?!pi)[a-zA-Z]{{2,12}})?", re.ASCII)
_QUOTIENT = re.compile(r"\({0,2}([+-]?)\({0,2}(\d{1,50})\)?\s?/\s?\(?(\d{1,50})\){0,2}", re.ASCII)
_IS_COMPUTED = re.compile(rf"[\d^*+/π]|^pi$|(?:{_NAMES})(?:\(|\s?[a-zA-Z](?![a-zA-Z]))")
_ONLY_NUMBERS = re.compile(r"[-+*/()\s\d.,]+", re.ASCII)
_NOT_COMPUTED = re.compile(r"[a-zA-Zθ]{2}|[a-zA-Zθ]\s+[a-zA-Zθ]|[a-su-wA-Zθ]\(|\d[eE][+-]?\d|^\W*[a-zA-Zθ]\W*$")
"""Words, letters in a row, a function's name, an exponent that no number has here, a lone letter."""
_SCIENTIFIC = re.compile(r"([+-]?\d+(?:\.\d+)?)\s?\*\s?10\^\(?([+-]?\d{1,4})\)?", re.ASCII)
_CONSTANT_AT_END = re.compile(r"\s*\+\s*C$")
_OR = re.compile(r"\bor\b|∪")
_NAMED = re.compile(r"\s*([a-zA-Z]\w{0,9})\s*=([^=]+)")
_AN = re.compile(r"\ban ")
_AROUND_MARKS = re.compile(r"\s?([,;:/=()\[\]{}])\s?|(?<=[\w)\]}])\s([-+*<>≤≥≠→∧∨∪]|->)\s(?=[\w(\[{¬\\-])")
_IS_QUOTED = re.compile(r"(?<!\w)'|\"")
_LAYOUT = re.compile(r"^\s|\s$|\s\s|[^\S ]")
_EMPHASIS = re.compile(r"(\*\*|`)([^*`]+)\1")
_COMMON = frozenset(("yes", "no", "true", "false", "none", "unknown", "valid", "invalid"))
"""Of these capitals say nothing."""
_OPTION = re.compile(r"\(?([A-Z])[):]{0,2}")
_SENTENCE_START = re.compile(r"[A-Z][a-z]{2,}(?![\w'])")


def canonical_answer(answer: str) -> str:
    """The same string for answers that say the same; "" for an empty one, which agrees with nothing.

    Blanks at an end or in rows and line breaks are taken to be meant, as in the output of a program.
    """
    return _read_short(answer) if len(answer) <= _SHORT_CHARS else _read_long(answer)


def _read(answer: str) -> str:
    if not answer.strip():
        return ""
    head, tail = answer[:_MAX_CHARS], answer[_MAX_CHARS:]
    if _LAYOUT.search(answer):
        form = f"'{head}"
    else:
        text = _unwrap(_read_latex(unicodedata.normalize("NFC", head).translate(_ALIKE)))
        form = _read_quoted(text) or _canonical(text, 0) or head
    return f"{form}#{hashlib.sha256(tail.encode(errors='replace')).hexdigest()}" if tail else form


_read_short = functools.lru_cache(maxsize=65_536)(_read)
"""A training asks for the same answers again and again."""
_read_long = functools.lru_cache(maxsize=1_024)(_read)


def _canonical(text: str, depth: int) -> str:
    text = _unwrap(text)
    if option := _OPTION.fullmatch(text):
        return option[1]
    if depth < _MAX_DEPTH:
        for read in (_read_number, _read_alternatives, _read_list, _read_equation):
            found = read(text, depth + 1)
            if found is not None:
                return found
    if text.casefold() in _COMMON:
        return text.casefold()
    if _IS_QUOTED.search(text):
        return text
    if start := _SENTENCE_START.match(text):
        text = text[0].lower() + text[1:] if " " in text or start.end() == len(text) else text
    return _AROUND_MARKS.sub(r"\1\2", " ".join(_AN.sub("a ", text).split()))


def _unwrap(text: str) -> str:
    """Without emphasis, dollars and a full stop that ends a word or a number."""
    before = None
    while text != before:
        before = text
        text = text.strip()
        if marked := _EMPHASIS.fullmatch(text):
            text = marked[2]
        if len(text) > 2 and text[0] == text[-1] == "$" and text.count("$") == 2:
            text = text[1:-1]
        if re.search(r"[^\W_]\.$|[)\]}$]\.$", text):
            text = text[:-1]
    return text


def _read_quoted(text: str) -> str | None:
    """Quotes around a word do not count; what else is quoted is meant as it is."""
    inside = _quoted(text)
    if not inside:
        return None
    form = _canonical(inside, 0)
    return form if inside == form or inside.casefold() == form in _COMMON else repr(inside)


def _quoted(text: str) -> str | None:
    """What stands between quotes that begin and end it; None without such."""
    is_quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'" and text.count(text[0]) == 2
    return text[1:-1] if is_quoted else None


def _read_latex(text: str) -> str:
    """Commands as plain signs; what is not known stays as it is."""
    if not any(sign in text for sign in _LATEX):
        return text
    text = _MATRIX.sub(_read_matrix, text)
    for form, plain in _COMMANDS:
        text = form.sub(plain, text)
    text = _BARE_ROOT.sub(lambda found: f"sqrt({found[1]})" if found[1] else "sqrt", text)
    for _ in range(_MAX_DEPTH):
        before = text
        for form, plain in _BRACED:
            text = form.sub(plain, text)
        if text == before:
            break
    return " ".join(text.split())


def _read_matrix(found: re.Match[str]) -> str:
    rows = [row.strip(" \\") for row in found[1].split("\\\\")]
    return "[" + ",".join(f"[{row.replace('&', ',')}]" for row in rows if row) + "]"


# --- numbers and expressions ---


def _read_number(text: str, depth: int) -> str | None:
    """A number, with its unit; an expression by its values. Sums and products of plain numbers stay as they are: who is
    asked for one is not asked for its value, and a date or a score only looks like one.
    """
    if not text or len(text) > _MAX_EXPRESSION_CHARS:
        return None
    if _NUMBER.fullmatch(text):
        return "=" + _write_decimal(text)
    if quantity := _QUANTITY.fullmatch(text):
        unit = quantity[3] or ""
        return f"={_write_decimal(quantity[2])} {quantity[1]}{unit.removesuffix('s') if len(unit) > 3 else unit}"
    if power := _SCIENTIFIC.fullmatch(text):
        return "=" + _write_decimal(f"{power[1]}e{power[2]}")
    if (quotient := _QUOTIENT.fullmatch(text)) and text.count("(") == text.count(")"):
        return "=" + quotient[1].strip("+") + _write_quotient(quotient[2], quotient[3])
    if not _IS_COMPUTED.search(text) or _ONLY_NUMBERS.fullmatch(text):
        return None
    if _NOT_COMPUTED.search(re.sub(_NAMES, " 1 ", text)):
        return None
    try:
        with np.errstate(all="ignore"):
            return _write_expression(text)
    except _Unreadable:
        return None


def _write_decimal(text: str) -> str:
    number = Decimal(text.replace(",", ""))
    if not -400 < number.adjusted() < 400:
        return str(number)
    if number == number.to_integral_value():
        return str(int(number))
    digits = len(number.normalize().as_tuple().digits)
    return f"{float(number):.{_EXACT_DIGITS - 3}g}" if digits > _EXACT_DIGITS else f"{number.normalize():f}"


def _write_quotient(above: str, below: str) -> str:
    """As a decimal number where that ends, so that 1/2 is 0.5. 2/4 is not: the simplest form may be asked for."""
    as_written = f"{above}/{below}"
    if int(below) == 0 or as_written != f"{int(above)}/{int(below)}":
        return as_written
    value = Fraction(int(above), int(below))
    if value.denominator != int(below):
        return as_written
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest > 1 or value.denominator > 10**12:
        return as_written
    return _write_decimal(f"{Decimal(value.numerator) / Decimal(value.denominator):f}")


def _write_value(value: complex) -> str:
    parts = [_write_float(part, abs(value)) for part in (value.real, value.imag)]
    return parts[0] if parts[1] == "0" else f"{parts[0]}+{parts[1]}i"


def _write_float(value: float, size: float) -> str:
    if abs(value) <= 1e-9 * size:
        return "0"
    whole = round(value)
    if whole and abs(value - whole) < 1e-9:
        return str(whole)
    return f"{value:.{_DIGITS}g}"


def _write_expression(text: str) -> str:
    """What a last `+ C` adds does not count.

    Raises:
        _Unreadable: it is no expression, or its value cannot be told from others.
    """
    rest = _CONSTANT_AT_END.sub("", text)
    expression = _Expression(rest)
    is_up_to_constant = rest != text and len(expression.letters) == 1
    if not is_up_to_constant:
        expression = _Expression(text)
    values = expression.values()
    if not np.isfinite(values).all() or (np.abs(values) >= _LARGE).any():
        raise _Unreadable
    if expression.letters:
        values = values - values[0] if is_up_to_constant else values
        return "=" + " ".join(map(_write_value, values)) + (" + C" if is_up_to_constant else "")
    return "=" + _write_value(values[0])


class _Unreadable(Exception):
    """Not an expression."""


class _Expression:
    """Sums, products, powers and functions, signs of multiplication left out where they may be; over vectors."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            if not found or not found.lastgroup or not found[found.lastgroup]:
                raise _Unreadable
            self._tokens.append((found.lastgroup, found[found.lastgroup]))
            at = found.end()
        names = {token for kind, token in self._tokens if kind == "name"}
        self.letters = frozenset(names - set(_FUNCTIONS) - set(_CONSTANTS))

    def values(self) -> Values:
        """(`_POINTS`,): each letter has values that are spread and not special, the same wherever it stands."""
        self._next = self._depth = 0
        result = self._sum()
        if self._next < len(self._tokens):
            raise _Unreadable
        return result

    def _take(self, *signs: str) -> str | None:
        if self._next < len(self._tokens) and self._tokens[self._next] in {("sign", sign) for sign in signs}:
            self._next += 1
            return self._tokens[self._next - 1][1]
        return None

    def _is_letter(self) -> bool:
        kind, token = self._tokens[self._next]
        return kind == "name" and token not in _FUNCTIONS

    def _descend(self) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _Unreadable

    def _sum(self) -> Values:
        self._descend()
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
        self._descend()
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
        values: Values = (0.04 * np.sqrt(ord(token) + _STEPS)).astype(np.complex128)
        return values

    def _function(self, function: Callable[[Values], Values]) -> Values:
        """`sin x`, `sin(x)`, `sin^2(x)`; not `sin^(-1) x`, which is another function."""
        self._descend()
        exponent = self._atom() if self._take("^", "**") else None
        if exponent is not None and (exponent.real < 0).any():
            raise _Unreadable
        if self._next < len(self._tokens) and self._tokens[self._next][1] == "(":
            argument = self._atom()
        else:  # sin 2x
            argument = self._power()
            while self._next < len(self._tokens) and self._is_letter():
                argument = argument * self._power()
        result = function(argument)
        self._depth -= 1
        return result if exponent is None else np.power(result, exponent)


# --- lists and equations ---


def _read_alternatives(text: str, depth: int) -> str | None:
    """`0 or 1` is `1 or 0`."""
    parts = _OR.split(text)
    if len(parts) < 2 or _IS_QUOTED.search(text) or "->" in text or "→" in text:
        return None
    if not all(part.strip() and _split(part, ",") for part in parts):
        return None
    names = {named[1] for part in parts if (named := _NAMED.fullmatch(part))}
    write = _canonical if len(names) < 2 else _write_item
    return "or(" + "|".join(sorted(write(part.strip(), depth) for part in parts)) + ")"


def _read_list(text: str, depth: int) -> str | None:
    """Blanks and kinds of quotes do not count, nor does the order of a set and of named values."""
    items, separator = _split_list(text)
    if len(items) > 1:
        return separator.join(_write_items(items, depth, is_set=all(map(_NAMED.fullmatch, items))))
    if len(text) < 2 or text[0] not in _OPENING or text[-1] not in _CLOSING:
        return None
    items, separator = _split_list(text[1:-1])
    if not items:
        return None
    forms = _write_items(items, depth, is_set=text[0] == "{") if text[1:-1].strip() else []
    return text[0] + separator.join(forms) + text[-1]


def _split_list(text: str) -> tuple[list[str], str]:
    """At semicolons, else at commas; no items where brackets or quotes do not close."""
    rows = _split(text, ";")
    if rows is None or len(rows) > 1:
        return rows or [], ";"
    return _split(text, ",") or [], ","


def _write_items(items: list[str], depth: int, *, is_set: bool) -> list[str]:
    forms = [_write_item(item.strip(), depth) for item in items]
    return sorted(forms) if is_set else forms


def _write_item(item: str, depth: int) -> str:
    inside = _quoted(item)
    if inside is not None:
        return repr(inside)
    if named := _NAMED.fullmatch(item):
        return f"{named[1]}={_canonical(named[2], depth)}"
    return _canonical(item, depth)


def _split(text: str, separator: str) -> list[str] | None:
    """At a separator outside of brackets and quotes; None where these do not close."""
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
        elif char == separator and not level:
            parts.append(text[start:i])
            start = i + 1
        if level < 0:
            return None
    return None if level or quote else [*parts, text[start:]]


def _read_equation(text: str, depth: int) -> str | None:
    """`x = 5` is `5`, `f(x) = 2x` is `2x`; of others both sides are read."""
    sides = [side.strip() for side in text.split("=")]
    if len(sides) != 2 or not all(sides) or sides[0][-1] in "<>!":
        return None
    forms = [_canonical(side, depth) for side in sides]
    is_value = forms[1].startswith("=") and " " not in forms[1]
    is_named = (sides[0] == "x" and is_value) or (sides[0] == "f(x)" and forms[1].startswith("="))
    return forms[1] if is_named else "==".join(forms)
