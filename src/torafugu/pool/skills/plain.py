"""Everyday wordings of what other skills know: "Multiply 12 by 7 and add 3", "Count the legs of 3 spiders".

Each is put into the words of a skill and handed to it. Unlike those skills, these want the whole question to be one
such sentence: a clause of a longer question is understood when it is asked by itself, the longer question is not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from .arithmetic import calculate, convert_base, find_common
from .arithmetic import factorise as factorise_number
from .dates import read_calendar
from .facts import add_roman, convert_units
from .facts import count_legs as count_listed_legs
from .reading import Skill, Worked
from .text import count_letter, spell_backward, sum_letter_values

__all__ = ["PLAIN_ARITHMETIC", "PLAIN_FACTS", "PLAIN_TEXT", "drop_format"]

_MAX_CHARS = 1000
_LEAD = re.compile(r"(?:(?:and|first|then|next|now|finally|please)\b,? )*", re.IGNORECASE)

_Wording: TypeAlias = tuple[re.Pattern[str], str, Skill]
"""What a sentence looks like, the same in the skill's words, the skill."""


def drop_format(question: str) -> str:
    """The question in one line, up to the sentence that asks for the form of the answer."""
    before, tag, _ = question.partition("<answer>")
    if tag:
        before = before[: max(before.rfind(mark) for mark in ".?!\n") + 1]
    return " ".join(before.split())


def _make_reader(wordings: Sequence[_Wording]) -> Skill:
    def read(question: str) -> Worked | None:
        sentence = drop_format(question)
        if len(sentence) > _MAX_CHARS:
            return None
        lead = _LEAD.match(sentence)
        sentence = sentence[lead.end() if lead else 0 :].rstrip(".?! ")
        for pattern, words, skill in wordings:
            if match := pattern.fullmatch(sentence):
                return skill(words.format(**match.groupdict("")))
        return None

    return read


def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.ASCII)


_FIND = r"(?i:find|give|get|compute|calculate|determine|work out|what is|what's|how much is)"
_WORD = r"[\"“']?(?P<word>[A-Za-z]{1,60})[\"”']?"
_ANY_WORD = r"[\"“']?(?P<word>\w{1,60})[\"”']?"

_SCALE = (
    r"(?i:,? \(?(?:(?:with|where|if|using) )?a ?(?:=|is|counts) ?1\b[a-z0-9 =,.…]{0,40}\bz ?(?:=|is|counts) ?26\)?)?"
)

_TEXT: Sequence[_Wording] = (
    (
        _compile(
            rf"(?:{_FIND} (?i:the (?:(?:alphabet|letter) (?:value|sum)|sum of the letter(?: value)?s) of)"
            rf"|(?i:(?:add up|sum) (?:the values of )?(?:all )?the letters (?:of|in)))"
            rf" (?i:the (?:word|name|day) )?{_WORD}{_SCALE}"
        ),
        "With a = 1 to z = 26, what is the sum of the letters of the word {word}?",
        sum_letter_values,
    ),
    (
        _compile(
            r"(?i:count|find the number of|how many times is|how often is) "
            r"(?i:(?:(?:all )?(?:the )?(?:occurrences of )?the |every |each |all )?(?:letters? )?)"
            r"[\"“']?(?P<letter>[A-Za-z])[\"”']?(?i:'?s)? (?i:in) (?i:the (?:word|phrase|text|sentence) )?"
            r"(?:[\"“](?P<text>[A-Za-z' -]{1,800})[\"”]|(?P<bare>[A-Za-z]{1,60}))"
        ),
        'How many times does the letter {letter} appear in "{text}{bare}"?',
        count_letter,
    ),
    (
        _compile(
            r"(?i:reverse (?:the (?:order of the )?(?:digits|letters) of )?(?:the (?:number|word|name) )?)"
            rf"{_ANY_WORD}"
        ),
        "Spell {word} backwards",
        spell_backward,
    ),
    (
        _compile(
            rf"(?i:(?:read|write|spell) (?:the (?:digits|letters) of )?(?:the (?:number|word|name) )?){_ANY_WORD}"
            r"(?i: (?:backwards?|from right to left|in reverse(?: order)?))"
        ),
        "Spell {word} backwards",
        spell_backward,
    ),
)

_A, _B, _C = (rf"\(?(?P<{name}>-?\d{{1,40}})\)?" for name in "abc")
_TO_IT = r"(?i: (?:to|from) (?:it|that|the product|the result))?"

_ARITHMETIC: Sequence[_Wording] = (
    (
        _compile(rf"(?i:multiply) {_A} (?i:by|and|with) {_B}"),
        "Calculate ({a}) * ({b})",
        calculate,
    ),
    (
        _compile(rf"(?i:multiply) {_A} (?i:by|and|with) {_B},?(?i: and| then| and then) (?i:add) {_C}{_TO_IT}"),
        "Calculate ({a}) * ({b}) + ({c})",
        calculate,
    ),
    (
        _compile(rf"(?i:multiply) {_A} (?i:by|and|with) {_B},?(?i: and| then| and then) (?i:subtract) {_C}{_TO_IT}"),
        "Calculate ({a}) * ({b}) - ({c})",
        calculate,
    ),
    (_compile(rf"(?i:add) {_A} (?i:and|to) {_B}"), "Calculate ({a}) + ({b})", calculate),
    (_compile(rf"(?i:subtract) {_B} (?i:from) {_A}"), "Calculate ({a}) - ({b})", calculate),
    (_compile(rf"{_FIND} (?i:the sum of) {_A} (?i:and) {_B}"), "Calculate ({a}) + ({b})", calculate),
    (_compile(rf"{_FIND} (?i:the difference (?:of|between)) {_A} (?i:and) {_B}"), "Calculate ({a}) - ({b})", calculate),
    (_compile(rf"{_FIND} (?i:the product of) {_A} (?i:and) {_B}"), "Calculate ({a}) * ({b})", calculate),
    (
        _compile(
            rf"{_FIND} (?i:the (?:largest|greatest|biggest) number (?:that divides|dividing)(?: both)?) "
            rf"{_A} (?i:and) {_B}"
        ),
        "gcd of {a} and {b}",
        find_common,
    ),
    (
        _compile(rf"{_FIND} (?i:the (?:largest|greatest|biggest|highest) common factor of) {_A} (?i:and) {_B}"),
        "gcd of {a} and {b}",
        find_common,
    ),
    (
        _compile(
            rf"{_FIND} (?i:the smallest number(?: of [a-z]{{1,20}})? that(?: both)?) {_A} (?i:and) {_B} (?i:divide)"
        ),
        "lcm of {a} and {b}",
        find_common,
    ),
    (
        _compile(
            r"(?i:write|express|convert|turn|put) (?i:the (?:decimal )?number )?(?P<a>\d{1,40}) (?i:in|into|to|as) "
            r"(?i:base )?(?P<base>(?i:binary|octal|hexadecimal))(?i: notation| number)?"
        ),
        "Convert the decimal number {a} to {base}",
        convert_base,
    ),
    (
        _compile(
            rf"(?:(?i:split|break|factor) (?i:the number )?{_A} (?i:into (?:its )?prime factors)"
            rf"|{_FIND} (?i:the prime factors of) (?P<other>\d{{1,40}}))"
        ),
        "Factorize {a}{other}",
        factorise_number,
    ),
)

_ROMAN = r"[MDCLXVI]{1,15}"
_ANIMALS = r"\d{1,9} [a-z]+(?: [a-z]+)?(?:(?:, and |, | and )\d{1,9} [a-z]+(?: [a-z]+)?){0,9}"
_DATE = r"[A-Z][a-z]{2,8} \d{1,2}, \d{4}"

_FACTS: Sequence[_Wording] = (
    (
        _compile(
            rf"(?:(?i:count|add up)|(?:(?i:count)|{_FIND}) (?i:the (?:total )?number of)) (?i:(?:all )?(?:the )?legs "
            rf"(?:of|on|for)) (?P<animals>{_ANIMALS})(?i: in total| together| altogether)?"
        ),
        "how many legs are there in total if you have {animals}?",
        count_listed_legs,
    ),
    (
        _compile(rf"(?i:how many legs do) (?P<animals>{_ANIMALS}) (?i:have(?: in total| together| altogether)?)"),
        "how many legs are there in total if you have {animals}?",
        count_listed_legs,
    ),
    (
        _compile(
            r"(?i:convert|express|turn|write) (?P<amount>\d{1,9} [a-z]+(?: and \d{1,9} [a-z]+)?) (?i:to|in|into|as) "
            r"(?P<unit>[a-z]{1,20})s"
        ),
        "How many {unit}s are there in {amount}?",
        convert_units,
    ),
    (
        _compile(
            rf"(?:(?i:add)|{_FIND} (?i:the sum of)) (?i:the Roman numerals? )?"
            rf"(?P<a>{_ROMAN}) (?i:to|and) (?P<b>{_ROMAN})"
        ),
        "What is {a} plus {b}?",
        add_roman,
    ),
    (
        _compile(rf"(?i:subtract) (?i:the Roman numeral )?(?P<b>{_ROMAN}) (?i:from) (?P<a>{_ROMAN})"),
        "What is {a} minus {b}?",
        add_roman,
    ),
    (
        _compile(
            rf"(?i:on )?(?i:which|what) (?i:day|weekday) (?i:did|does|is|was) (?P<date>{_DATE})(?i: fall| fall on| on)?"
        ),
        "What day of the week is {date}?",
        read_calendar,
    ),
    (
        _compile(
            r"(?i:(?:which|what) day (?:is|was|comes|falls|is it)|(?:find|determine) the day) "
            rf"(?P<days>\d{{1,6}}) days? (?P<side>after|before) (?P<date>{_DATE})"
        ),
        "What day of the week is {days} days {side} {date}?",
        read_calendar,
    ),
)

PLAIN_TEXT: Mapping[str, Skill] = {"read_plain_text": _make_reader(_TEXT)}
PLAIN_ARITHMETIC: Mapping[str, Skill] = {"read_plain_arithmetic": _make_reader(_ARITHMETIC)}
PLAIN_FACTS: Mapping[str, Skill] = {"read_plain_facts": _make_reader(_FACTS)}
