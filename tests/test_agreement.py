"""When two answers say the same."""

from __future__ import annotations

import random
import string

import pytest

from torafugu.agreement import canonical_answer

SAME = [
    # numbers
    ("482", "482.0"),
    ("1,234,567", "1234567"),
    ("10,\\!000", "10{,}000"),
    ("1e3", "1000"),
    ("-0.0", "0"),
    ("0.1", "1/10"),
    ("$.5$", "\\frac{1}{2}"),
    ("\\dfrac12", "1/2"),
    ("-3/7", "-\\frac{3}{7}"),
    ("417302.6449999999", "417302.645"),
    ("2^{10}", "2^10"),
    ("\\pi", "pi"),
    ("5 km", "5.0km"),
    ("29 days", "29.0 day"),
    ("$1,000", "$1000.00"),
    ("10\\%", "10%"),
    ("30^\\circ", "30°"),
    ("123456789012345678901", "123,456,789,012,345,678,901"),
    # expressions
    ("2x + 2", "2(x + 1)"),
    ("\\sqrt{12}", "2\\sqrt3"),
    ("√(3)", "\\sqrt{3}"),
    ("3.0 + 2i", "2i+3"),
    ("e^x", "exp(x)"),
    ("x^18/9", "1/9*x**18"),
    ("\\sin 2x", "sin(2x)"),
    ("x(x + 1)", "x^2 + x"),
    ("x² + 1", "1 + x^2"),
    ("6.02 × 10^23", "6.02e23"),
    ("\\frac{x}{y}", "x/y"),
    ("2\\sin(x)\\cos(x)", "sin(2x)"),
    ("\\sin^2(x)", "(sin(x))**2"),
    ("-1/6*cos(10*x + 4) + C", "(1/3)*sin(5*x + 2)**2 + C"),
    ("\\frac{\\frac{1}{2}}{x^2}", "1/(2x^2)"),
    ("x = 5", "5"),
    ("2a + b = c^2", "b+2*a=c**2"),
    ("x <= 5", "x \\le 5"),
    # lists
    ("[1,2]", "[1.0, 2]"),
    ("[ 'a', 'b' ]", '["a","b"]'),
    ("{2, 1}", "{1, 2}"),
    ("x=1/2, y=2", "y = 2, x = 0.5"),
    ("0 or 1", "1 or 0"),
    ("[0,1)∪(2,3]", "(2, 3] \\cup [0, 1)"),
    ("[[**C**]]", "[[C]]"),
    ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "[[1,2],[3,4]]"),
    ("\\left(1, 2\\right)", "(1, 2)"),
    # words
    ("Grandfather.", "grandfather"),
    ("NASA.", "NASA"),
    ("(B)", "B."),
    ("4 * (3 + 3)", "4*(3+3)"),
    ("x < 5", "x<5"),
    ("p ∧ q", "p∧q"),
    ("Some bakers are runners.", "some bakers are runners"),
    ("**Yes**", '"yes"'),
    ("TRUE", "true"),
    ("\\text{north}", "North"),
    ("Ann is an angel, Bo is a devil", "Ann is a angel,Bo is a devil"),
]
DIFFERENT = [
    # numbers
    ("12", "21"),
    ("-5", "5"),
    ("1.5", "15"),
    ("1,5", "1.5"),
    ("5 km", "5 m"),
    ("$5", "5%"),
    ("10 am", "10 pm"),
    ("00731", "731"),
    ("3/4", "6/8"),
    ("1234567890123.45", "1234567890123.99"),
    ("2/6", "1/3"),  # where the simplest form is asked for
    ("123456789012345678901", "123456789012345678902"),
    ("123456789012.5", "123456789012"),
    ("2^{64}", "2^{64}-1"),
    ("10²", "102"),
    ("sqrt(2)", "1.4142"),
    ("2024-01-05", "2024-05-01"),  # which would be the same sum
    ("3-1", "4-2"),
    ("1:2", "2:1"),
    ("192.168.0.1", "192.168.0.2"),
    # expressions
    ("x^2", "x^3"),
    ("x^2 + C", "x^2"),
    ("b + c + 1", "b + c + 2"),
    ("\\sin^{-1}(x)", "1/\\sin(x)"),
    ("f(g(2))", "g(f(2))"),
    ("q + x", "p + y"),
    ("2d - f", "2i - p"),
    ("b + 1 + c", "b + 2 + c"),
    ("6.63×10^-34", "9.1×10^-31"),
    ("10^{-10}", "2^{-40}"),
    ("e^{-50x}", "e^{-60x}"),
    ("\\sin x^2", "\\sin^2 x"),
    ("asin(x)", "a*sin(x)"),
    ("log(100)", "ln(100)"),
    ("x = 3", "y = 3"),
    ("x = 2y", "2y"),
    ("x = 0 or y = 1", "y = 0 or x = 1"),
    ("p -> q or r", "r or p -> q"),
    ("x < 5", "x > 5"),
    ("x ≤ 5", "x < 5"),
    ("A = 5+x", "B = 5+x"),
    ("!p", "p"),
    ("A'B'", "AB"),
    ("5!", "5"),
    # letters and words
    ("C A T", "A C T"),
    ("A-B-C", "A-C-B"),
    ("R2 U'", "R2 U"),
    ("Bxc3", "bxc3"),
    ("CO", "Co"),
    ("spin", "nips"),
    ("A", "B"),
    ("yes", "no"),
    ("yes!", "yes?"),
    ("True", "False"),
    ("2xQ", "2Xq"),
    ("HELLO", "hello"),
    ("Aa", "aa"),
    (".- -", ".--"),
    ("__init__", "init"),
    # lists and what programs print
    ("(1,2)", "(2,1)"),
    ("(0,1]", "[0,1)"),
    ("[1,2]", "(1,2)"),
    ("[1,2;3,4]", "[1,2,3,4]"),
    ("4,7,7", "(4, 7, 7)"),
    ("[[1, 2]]", "[1, 2]"),
    ("[-5, 7]", "['-5', '7']"),
    ("['']", "[]"),
    ("[]", "[[]]"),
    ("[' a ']", "['a']"),
    ("'Hello'", "hello"),
    ("'1.0'", "1"),
    ("' x'", "x"),
    ("{'k': 'a - b'}", "{'k': 'a-b'}"),
    ("['cat or Dog sleeps']", "['cat or dog sleeps']"),
    ("[')', 'a - b']", "[')', 'a-b']"),
    ("['a\",\"b']", "['a', 'b']"),
    ("a\tb", "a b"),
    ("['a', '.', 'b']", "['a', '', 'b']"),
    ("[1]", "1"),
    ("] >", ") >"),
    ("a,b", "b,a"),
    ("wow!!!!", "wow!!!"),
    (".DFA", "DFA"),
    ("\\foo", "foo"),
    ("a  b", "a b"),
    ("a\nb", "a b"),
    (" x", "x"),
    ("A\0", "A"),
    ("_ Q _ _", "Q _ _ _"),
    ("+", "-"),
    ("*", "**"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same_in_other_notation(one: str, other: str) -> None:
    """Notation does not count."""
    assert canonical_answer(one) == canonical_answer(other) != ""


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_what_differs(one: str, other: str) -> None:
    """What looks alike, or has the same value by chance, and says something else."""
    assert canonical_answer(one) != canonical_answer(other)


@pytest.mark.parametrize("answer", ["", " ", "\n\t "])
def test_nothing_agrees_with_nothing(answer: str) -> None:
    """An empty answer says nothing."""
    assert canonical_answer(answer) == ""


def test_long_answers_differ_at_their_end() -> None:
    """What is not read of a long answer has to be the same."""
    text = "word " * 2_000
    assert canonical_answer(text + "one") == canonical_answer(text + "one")
    assert canonical_answer(text + "one") != canonical_answer(text + "two")


HOSTILE = [
    "(" * 4_000,
    "[" * 2_000 + "]" * 2_000,
    "{[(" * 1_000 + ")]}" * 1_000,
    "-" * 299 + "1",
    "2^" * 140 + "2",
    "9**9**9**9**9",
    "1e9999",
    "9" * 299,
    "1/0",
    "x/(x-x)",
    "0^-1",
    "\\frac{" * 600,
    "\\frac{1}{" * 400 + "}" * 400,
    "\\sqrt{" * 500 + "}" * 500,
    "\\begin{matrix}" * 250,
    "or " * 1_300 + "x",
    "a or b," * 500,
    "=1" * 2_000,
    "[1][2]" * 600,
    "sin^" * 70 + "x",
    "'\"" * 1_000,
    "\\",
    "'",
    "\ud800",
]


@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
def test_anything_is_read(answer: str) -> None:
    """A reply may hold anything: it is read without an error, and says something."""
    assert canonical_answer(answer) != ""


def test_random_text_is_read() -> None:
    """Of signs that mean something to the reader, in any order."""
    draw = random.Random(0)
    signs = [
        *string.digits,
        *string.punctuation,
        *"abcxC π√≤∪",
        "sin",
        "frac",
        "\\sqrt",
        "or",
        " ",
        "\n",
        "1,000",
        "\\begin",
    ]
    for _ in range(3_000):
        text = "".join(draw.choices(signs, k=draw.randrange(1, 40)))
        assert (canonical_answer(text) == "") == (not text.strip())
