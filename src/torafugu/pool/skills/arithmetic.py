"""Exact arithmetic and algebra, on Fractions and on SymPy (imported when first needed)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction

from .reading import Polynomial, Skill, Unreadable, Worked, format_exact, read_int, read_polynomial

__all__ = ["ARITHMETIC"]

_MAX_FACTORISED = 10**12
"""Factorising stays in the low milliseconds up to here."""
_MAX_ROOT_DEGREE = 4
_MAX_ROOT_BITS = 40

_EXPRESSION = re.compile(
    r"(?:arithmetic problem|multiplication|calculate|compute|evaluate|what is|what's|how much is)\s*:?\s*"
    r"([-+(]*\s*\d[-+*/^().\d\s×÷−]*)",
    re.IGNORECASE | re.ASCII,
)
_MULTIPLE = re.compile(r"\b(greatest common divisor|gcd|least common multiple|lcm)\b(.*)", re.IGNORECASE | re.DOTALL)
_FACTORISE = re.compile(r"(?:prime factori[sz]ation of|factori[sz]e)\s+(\d{1,40})\b", re.IGNORECASE | re.ASCII)
_FRACTION = re.compile(
    r"simplify the fraction[^\d-]{0,40}?"
    r"(?:frac\s*\{\s*(\d{1,40})\s*\}\s*\{\s*(\d{1,40})\s*\}|(\d{1,40})\s*/\s*(\d{1,40}))",
    re.IGNORECASE | re.ASCII,
)
_EQUATION = re.compile(
    r"(?:\b(?:solve|find|determine)\b[^:=\n]{0,80}:\s{0,4}|\bsolve\s+)([^:=\n]{1,300})=([^=\n?]{1,300})", re.IGNORECASE
)
_BASES = {"binary": 2, "octal": 8, "decimal": 10, "hexadecimal": 16}
_BASE_NAME = r"(binary|octal|decimal|hexadecimal|base-\d{1,2})"
_CONVERT = re.compile(rf"convert the {_BASE_NAME} number ([0-9a-z]{{1,40}}) to {_BASE_NAME}", re.IGNORECASE | re.ASCII)
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_NUMBERS_TO_FILTER = re.compile(
    r"(keep|remove) all numbers (larger|smaller) than (-?\d[\d.]{0,40}) in this list:\s*\[([^\]\n]{0,1000})\]",
    re.IGNORECASE | re.ASCII,
)
_CANDIDATES = re.compile(
    r"pick the (largest|smallest) number of the following candidates:([^\n]{1,2000})", re.IGNORECASE
)


def calculate(question: str) -> Worked | None:
    """ "What is 3 * (4 - 10)?" """
    match = _EXPRESSION.search(question)
    if match is None:
        return None
    text = match[1].strip().rstrip(".").strip()
    try:
        value, _ = read_polynomial(text)
    except Unreadable:
        return None
    answer = format_exact(value[0] if value else Fraction(0))
    return Worked(answer, f"{text} = {answer}")


def find_common(question: str) -> Worked | None:
    """Greatest common divisor or least common multiple."""
    match = _MULTIPLE.search(question)
    if match is None:
        return None
    numbers = [n for digits in re.findall(r"(?<!\d)\d{1,40}(?!\d)", match[2], re.ASCII)[:20] if (n := read_int(digits))]
    if len(numbers) < 2:
        return None
    is_divisor = match[1][0].lower() == "g"
    answer = str(math.gcd(*numbers) if is_divisor else math.lcm(*numbers))
    return Worked(
        answer, f"The {'divisor' if is_divisor else 'multiple'} of {', '.join(map(str, numbers))} is {answer}."
    )


def factorise(question: str) -> Worked | None:
    match = _FACTORISE.search(question)
    number = read_int(match[1]) if match else None
    if number is None or not 2 <= number <= _MAX_FACTORISED:
        return None
    from sympy import factorint

    factors = [str(prime) for prime, power in sorted(factorint(number).items()) for _ in range(power)]
    return Worked(" × ".join(factors), f"Prime factors of {number}, counted with repetition: {len(factors)}.")


def simplify_fraction(question: str) -> Worked | None:
    match = _FRACTION.search(question)
    if match is None:
        return None
    above, below = int(match[1] or match[3]), int(match[2] or match[4])
    if below == 0:
        return None
    divisor = math.gcd(above, below)
    return Worked(f"{above // divisor}/{below // divisor}", f"Both sides are divisible by {divisor}.")


def solve_equation(question: str) -> Worked | None:
    """Real solutions of a polynomial equation in one unknown; as decimals when the question wants decimals."""
    match = _EQUATION.search(question)
    if match is None:
        return None
    try:
        left, name = read_polynomial(match[1].lower())
        right, other = read_polynomial(match[2].lower().rstrip(". "))
    except Unreadable:
        return None
    if name is None or other not in (None, name):
        return None
    size = max(len(left), len(right))
    padded = [tuple(side) + (Fraction(0),) * (size - len(side)) for side in (left, right)]
    difference = [a - b for a, b in zip(*padded, strict=True)]
    while difference and difference[-1] == 0:
        difference.pop()
    roots = _real_roots(tuple(difference))
    if roots is None:
        return None
    wants_decimals = "decimal" in question.lower()
    answer = ", ".join(
        _as_decimal(root) if wants_decimals or isinstance(root, float) else format_exact(root) for root in roots
    )
    return Worked(answer, f"Real solutions for {name}: {len(roots)}.")


def _real_roots(coefficients: Polynomial) -> list[Fraction | float] | None:
    """Distinct, ascending; None when there is none, everything solves it, or it is beyond the bounds."""
    if len(coefficients) == 2:
        return [-coefficients[0] / coefficients[1]]
    bits = max((c.numerator.bit_length() + c.denominator.bit_length() for c in coefficients), default=0)
    if not 3 <= len(coefficients) <= _MAX_ROOT_DEGREE + 1 or bits > _MAX_ROOT_BITS:
        return None
    from sympy import Poly, Rational, Symbol, real_roots

    exact = [Rational(c.numerator, c.denominator) for c in reversed(coefficients)]
    roots = real_roots(Poly(exact, Symbol("x")), multiple=False)
    return [Fraction(int(r.p), int(r.q)) if r.is_Rational else float(r.evalf(15)) for r, _ in roots] or None


def _as_decimal(root: Fraction | float) -> str:
    return str(round(float(root), 4) + 0.0)  # + 0.0 turns -0.0 into 0.0


def convert_base(question: str) -> Worked | None:
    match = _CONVERT.search(question)
    if match is None:
        return None
    source, target = (_BASES.get(name.lower()) or int(name[5:]) for name in (match[1], match[3]))
    digits = [_DIGITS.index(d) for d in match[2].lower()]
    if not (2 <= source <= 36 and 2 <= target <= 36) or max(digits) >= source:
        return None
    value = 0
    for digit in digits:
        value = value * source + digit
    out, rest = "", value
    while rest:
        rest, digit = divmod(rest, target)
        out = _DIGITS[digit] + out
    return Worked(out or "0", f"In base 10 it is {value}.")


def filter_numbers(question: str) -> Worked | None:
    match = _NUMBERS_TO_FILTER.search(question)
    if match is None:
        return None
    bound, numbers = _as_float(match[3]), re.findall(r"'([^']*)'", match[4])
    values = [_as_float(number) for number in numbers]
    if bound is None or None in values:
        return None
    is_matching = {
        n: (v > bound if match[2].lower() == "larger" else v < bound)
        for n, v in zip(numbers, values, strict=True)
        if v is not None
    }
    is_kept = match[1].lower() == "keep"
    kept = [number for number in numbers if is_matching[number] == is_kept]
    return Worked(str(kept), f"{len(kept)} of {len(numbers)} numbers stay.")


def compare_numbers(question: str) -> Worked | None:
    """The largest or smallest of numbers that are written in different formats."""
    match = _CANDIDATES.search(question)
    if match is None:
        return None
    values = [value for word in match[2].split() if (value := _as_float(word.replace(",", ""))) is not None]
    if len(values) < 2:
        return None
    best = max(values) if match[1].lower() == "largest" else min(values)
    return Worked(f"{best:.3f}", f"The {match[1].lower()} of {len(values)} numbers.")


def _as_float(text: str) -> float | None:
    if not re.fullmatch(r"[+-]?\d{1,40}(?:\.\d{0,40})?(?:e[+-]?\d{1,2})?", text, re.IGNORECASE | re.ASCII):
        return None
    return float(text)


ARITHMETIC: Mapping[str, Skill] = {
    "calculate": calculate,
    "find_common": find_common,
    "factorise": factorise,
    "simplify_fraction": simplify_fraction,
    "solve_equation": solve_equation,
    "convert_base": convert_base,
    "filter_numbers": filter_numbers,
    "compare_numbers": compare_numbers,
}
