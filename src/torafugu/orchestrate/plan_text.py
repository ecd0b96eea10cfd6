"""The form of a conductor's plan: three labelled lists found in any text, as values that know how they were written.

Tolerant of what models do to form: labels, quotes, fences, comments, Python or JSON, thoughts before and after. What
the lists mean is `plan.py`'s. Linear time and bounded depth, whatever the text; nothing is evaluated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NoReturn, TypeAlias

from ..errors import PlanError

__all__ = ["LABELS", "ORDERS", "Atom", "Node", "Order", "PlanList", "find_lists", "shorten", "show"]

LABELS = ("model_id", "subtasks", "access_list")
Order: TypeAlias = Literal["models_first", "subtasks_first"]
ORDERS: dict[Order, tuple[str, ...]] = {
    "models_first": LABELS,
    "subtasks_first": ("subtasks", "model_id", "access_list"),
}
"""In which the lists are written."""
_LIMIT_DEPTH = 4
"""Of brackets: a plan needs two. Bounds the reader's recursion."""
_LIMIT_BROKEN = 100
"""Labelled lists that cannot be read, in one text. What follows the break is searched again, so their number bounds the
time."""
_SHOWN_CHARS = 80
_SHAPE = 'expected three lists: model_id: [0, 1], subtasks: ["...", "..."], access_list: [[], ["all"]]'


@dataclass(frozen=True, slots=True)
class Atom:
    """A quoted text, or a bare word or number."""

    shown: str
    text: str
    is_quoted: bool


@dataclass(frozen=True, slots=True)
class PlanList:
    """A list or tuple."""

    shown: str
    items: tuple[Node, ...]


Node: TypeAlias = Atom | PlanList
_Found: TypeAlias = tuple[str, PlanList | PlanError]
"""A label that is followed by a list, and what could be read of it."""

# Labels as models write them: "Model IDs:", `model\_id` =, "**subtasks:**", "access_list": - then perhaps a code fence.
_MARK = re.compile(
    r"(?P<opening><think>)|(?P<closing></think>)"
    r"|(?<!\w)(?:(?P<model_id>model(?:\\?[ _-])?ids?)|(?P<subtasks>sub(?:\\?[ _-])?tasks?)"
    r"|(?P<access_list>access(?:(?:\\?[ _-])?lists?)?))(?!\w)"
    r"[\s\"'`*“”‘’]*+[:=][\s`*]*+(?:(?:python|json)\b\s*+)?",
    re.IGNORECASE,
)
_CLOSING = re.compile("</think>", re.IGNORECASE)
_BETWEEN = re.compile(r"(?:\s|#[^\n]*+|//[^\n]*+)*+")
_BARE = re.compile(r"""[^\s,:=\[\](){}"“”„‟'‘’‚‛`#]++(?:[ \t]++[^\s,:=\[\](){}"“”„‟'‘’‚‛`#]++)*+""")


def _compile_string(opening: str, closing: str) -> re.Pattern[str]:
    return re.compile(rf"[{opening}]((?:[^{closing}\\]++|\\.)*+)[{closing}]", re.DOTALL)


_STRINGS = {
    '"""': re.compile(r'"""((?:[^"\\]++|\\.|"(?!""))*+)"""', re.DOTALL),
    "'''": re.compile(r"'''((?:[^'\\]++|\\.|'(?!''))*+)'''", re.DOTALL),
    '"': _compile_string('"', '"'),
    "'": _compile_string("'", "'"),
    "`": _compile_string("`", "`"),
    **dict.fromkeys("“”„‟", _compile_string("“”„‟", '“”„‟"')),
    **dict.fromkeys("‘’‚‛", _compile_string("‘’‚‛", "‘’‚‛'")),
}
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|([nrt\"'`/\\\n]))")
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "\n": ""}


def find_lists(text: str) -> dict[str, PlanList]:
    """The last complete plan: three lists of different labels that follow each other.

    If all labels of the text come in threes, the last three. Else some are drafts, mentions or cut off; then the last
    three that stand in one of the orders we ask for, so that lists of two plans never make one.
    """
    found = _scan(text)
    labels = [label for label, _ in found]
    threes = [labels[i : i + 3] for i in range(0, len(labels), 3)]
    starts = [i for i in range(len(labels) - 2) if tuple(labels[i : i + 3]) in ORDERS.values()]
    if labels and all(len(set(three)) == 3 for three in threes):
        start = len(labels) - 3
    elif starts:
        start = starts[-1]
    else:
        missing = [label for label in LABELS if label not in labels]
        problem = f"no list after {' and '.join(missing)}" if missing else "the lists of a plan do not stand together"
        broken = [str(read) for _, read in found if isinstance(read, PlanError)][-1:]
        raise PlanError("; ".join([f"no plan: {problem}", *broken, _SHAPE]), code="plan_unparseable")
    lists = {}
    for label, read in found[start : start + 3]:
        if isinstance(read, PlanError):
            raise PlanError(f"{read}; {_SHAPE}", code="plan_unparseable")
        lists[label] = read
    return lists


def _scan(text: str) -> list[_Found]:
    """All labelled lists outside of `<think>` blocks. What stands in a text of a list is no label, nor such a block."""
    found: list[_Found] = []
    position = broken = 0
    can_close = True
    while match := _MARK.search(text, position):
        position = match.end()
        if match.lastgroup == "opening":
            close = _CLOSING.search(text, position) if can_close else None
            can_close = close is not None
            if close is not None:
                position = close.end()
            elif not text[: match.start()].strip():
                raise PlanError(f"no plan: the reply ends within <think>; {_SHAPE}", code="plan_unparseable")
        elif match.lastgroup == "closing":  # its opening was part of the prompt, so all before it was thought
            found.clear()
        elif match.lastgroup is not None and text.startswith("[", position):
            reader = _Reader(text, position)
            try:
                found.append((match.lastgroup, reader.read_list()))
                position = reader.position
            except PlanError as fault:
                found.append((match.lastgroup, PlanError(f"{match.lastgroup}: {fault}", code=fault.code)))
                position, broken = reader.mark, broken + 1
            if broken > _LIMIT_BROKEN:
                raise PlanError(f"no plan: too many broken lists; {_SHAPE}", code="plan_unparseable")
    return found


class _Reader:
    """Reads one JSON or Python list: no evaluation, bounded depth."""

    def __init__(self, text: str, position: int) -> None:
        self._text = text
        self.position = position
        self.mark = position
        """After the last bracket or comma: where to look for further labels when the list is broken."""

    def read_list(self, depth: int = 1) -> PlanList:
        """Raises PlanError: what is wrong with it, and where."""
        start = self.position
        closing = "]" if self._text[start] == "[" else ")"
        if depth > _LIMIT_DEPTH:
            self._fail("brackets nested too deeply")
        self._advance(1)
        items: list[Node] = []
        while not self._text.startswith(closing, self._skip()):
            items.append(self._read_item(depth))
            if self._text.startswith(",", self._skip()):
                self._advance(1)
            elif not self._text.startswith(closing, self.position):
                hint = " (quotes inside a text need a backslash)" if _is_quoted(items[-1]) else ""
                self._fail(f"expected , or {closing}{hint}")
        self._advance(1)
        return PlanList(show(self._text[start : min(self.position, start + _SHOWN_CHARS + 1)]), tuple(items))

    def _read_item(self, depth: int) -> Node:
        text, start = self._text, self.position
        if text.startswith(("[", "("), start):
            return self.read_list(depth + 1)
        opening = text[start : start + 3]
        string = _STRINGS.get(opening) or _STRINGS.get(opening[:1])
        match = (string or _BARE).match(text, start)
        if match is None:
            self._fail("quotes never closed" if string else "expected a value")
        self.position = match.end()
        if string is None:
            return Atom(show(match[0]), match[0], is_quoted=False)
        content = self._decode(match[1], start)
        return Atom(show(content), content, is_quoted=True)

    def _decode(self, raw: str, start: int) -> str:
        r"""Python's and JSON's escapes, but \b and \f: no subtask means those, many write \beta and \frac unescaped."""

        def unescape(match: re.Match[str]) -> str:
            if digits := match[1] or match[2]:
                return chr(int(digits, 16))
            return _ESCAPED.get(match[3], match[3])

        try:
            return _ESCAPE.sub(unescape, raw).encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError:
            self._fail("half a surrogate pair, which is no character", start)

    def _skip(self) -> int:
        match = _BETWEEN.match(self._text, self.position)
        assert match is not None  # it matches nothing too
        self.position = match.end()
        return self.position

    def _advance(self, count: int) -> None:
        self.position += count
        self.mark = self.position

    def _fail(self, problem: str, at: int | None = None) -> NoReturn:
        at = self.position if at is None else at
        place = f"at {show(self._text[at : at + _SHOWN_CHARS + 1])}" if at < len(self._text) else "where the text ends"
        raise PlanError(f"{problem} {place}", code="plan_unparseable")


def _is_quoted(node: Node) -> bool:
    return isinstance(node, Atom) and node.is_quoted


def show(text: str) -> str:
    """Of a text, or of its beginning, one character longer than what is shown."""
    return shorten(repr(text[: _SHOWN_CHARS + 1]))


def shorten(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"
