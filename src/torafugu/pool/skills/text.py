"""Letters and words: counting, reversing, sorting, ciphers, anagrams, palindromes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from .reading import Skill, Worked

__all__ = ["TEXT"]

_LETTER_IN = re.compile(
    r"letter [\"']?([a-z])[\"']? (?:appear|occur)s? in (?:the )?(?:text|word|sentence|phrase)?\s*:?\s*"
    r"(?:\"([^\"\n]{1,2000})\"|([a-z' -]{1,200}))",
    re.IGNORECASE,
)
_BACKWARD = re.compile(
    r"spell (?:this word |the word )?"
    r"(?:backwards?\s*(?:\([^)\n]{0,80}\))?\s*:?\s*(\w{1,60})|[\"']?(\w{1,60})[\"']? backward)",
    re.IGNORECASE,
)
_SORT = re.compile(r"sort these words in (ascending|descending) order[^:\n]{0,200}:\s*([^\n]{1,4000})", re.IGNORECASE)
_REVERSE = re.compile(r"reverse this list of words:\s*([^\n]{1,4000})", re.IGNORECASE)
_CAESAR = re.compile(r"caesar cipher text:\s*([A-Za-z ]{1,2000})", re.IGNORECASE)
_PALINDROME = re.compile(r"palindrome using the following letters:\s*([a-z](?:\s*,\s*[a-z]){0,100})", re.IGNORECASE)
_ANAGRAMS = re.compile(r"words into anagrams:\s*\[([^\]\n]{1,2000})\]", re.IGNORECASE)
_VALUES = re.compile(r"a = 1[^?\n]{0,120}sum of the letters of the word [\"']?([a-z]{1,60})", re.IGNORECASE)


def count_letter(question: str) -> Worked | None:
    match = _LETTER_IN.search(question)
    if match is None:
        return None
    count = (match[2] or match[3]).lower().count(match[1].lower())
    return Worked(str(count), f"I went through the text and found {match[1]!r} {count} times.")


def spell_backward(question: str) -> Worked | None:
    match = _BACKWARD.search(question)
    if match is None:
        return None
    word = match[1] or match[2]
    return Worked(word[::-1], f"The letters of {word!r} from the last to the first.")


def sort_words(question: str) -> Worked | None:
    match = _SORT.search(question)
    if match is None:
        return None
    words = _split(match[2])
    words.sort(reverse=match[1].lower() == "descending")
    return Worked(", ".join(words), f"{len(words)} words in {match[1].lower()} order.")


def reverse_words(question: str) -> Worked | None:
    match = _REVERSE.search(question)
    if match is None:
        return None
    words = _split(match[1])
    return Worked(", ".join(reversed(words)), f"{len(words)} words, the last first.")


def _split(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


_FREQUENCY = dict(
    zip(
        "etaoinshrdlcumwfgypbvkjxqz",
        (
            *(12.7, 9.1, 8.2, 7.5, 7.0, 6.7, 6.3, 6.1, 6.0, 4.3, 4.0, 2.8, 2.8),
            *(2.4, 2.4, 2.2, 2.0, 2.0, 1.9, 1.5, 1.0, 0.8, 0.15, 0.15, 0.1, 0.07),
        ),
        strict=True,
    )
)
"""Letters of English text, in per cent."""
_COMMON_TEXT = (
    "a all an and are as at be but by can do for from had has have he her his i if in into is it its let man may me "
    "more mr my no not now of on one or our out said she so some such than that the their them then there these they "
    "this to two upon us very was we well were what when which who will with would year years yes you your"
)
_COMMON_WORDS = frozenset(_COMMON_TEXT.split())
_WORD_WEIGHT = 12.0
"""A common word weighs as much as one e: what decides on texts of three words, where frequencies mislead."""


def decrypt_caesar(question: str) -> Worked | None:
    """The shift under which the text looks most like English."""
    match = _CAESAR.search(question)
    text = match[1].strip().lower() if match else ""
    if not text:
        return None
    shift = max(range(26), key=lambda shift: _english(_shift(text, shift)))
    return Worked(_shift(text, shift).upper(), f"Shifted back by {(26 - shift) % 26} letters it reads as English.")


def _shift(text: str, by: int) -> str:
    return "".join(chr((ord(c) - 97 + by) % 26 + 97) if c.isalpha() else c for c in text)


def _english(text: str) -> float:
    words = text.split()
    return sum(_FREQUENCY.get(c, 0.0) for c in text) + _WORD_WEIGHT * sum(word in _COMMON_WORDS for word in words)


def make_palindrome(question: str) -> Worked | None:
    match = _PALINDROME.search(question)
    if match is None:
        return None
    counts = Counter(match[1].lower().replace(" ", "").split(","))
    odd = sorted(letter for letter, count in counts.items() if count % 2)
    if len(odd) > 1:
        return None
    half = "".join(letter * (counts[letter] // 2) for letter in sorted(counts))
    return Worked(half + "".join(odd) + half[::-1], "Pairs go to both ends, an odd letter in the middle.")


def group_anagrams(question: str) -> Worked | None:
    match = _ANAGRAMS.search(question)
    words = re.findall(r'"([^"\\]{1,60})"', match[1]) if match else []
    if not words:
        return None
    groups: dict[str, list[str]] = {}
    for word in words:
        groups.setdefault("".join(sorted(word)), []).append(word)
    answer = ", ".join("[" + ", ".join(f'"{word}"' for word in group) + "]" for group in groups.values())
    return Worked(f"[{answer}]", f"Sorted by their letters the words fall into {len(groups)} groups.")


def sum_letter_values(question: str) -> Worked | None:
    """a = 1, b = 2 ... z = 26."""
    match = _VALUES.search(question)
    if match is None:
        return None
    values = [ord(letter) - 96 for letter in match[1].lower()]
    return Worked(str(sum(values)), " + ".join(map(str, values)))


TEXT: Mapping[str, Skill] = {
    "count_letter": count_letter,
    "spell_backward": spell_backward,
    "sort_words": sort_words,
    "reverse_words": reverse_words,
    "decrypt_caesar": decrypt_caesar,
    "make_palindrome": make_palindrome,
    "group_anagrams": group_anagrams,
    "sum_letter_values": sum_letter_values,
}
