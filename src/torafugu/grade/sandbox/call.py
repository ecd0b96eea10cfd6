"""Runs inside the sandbox: calls the one function that a test asks for, and writes what it returned as one framed line.

The frame begins with a word that the grader made up, so that nothing the program prints looks like one by chance. A
hostile program can forge it; that gains nothing, for no expected value is here: it still has to say the right answer.
Only plain values are written (None, bool, int, float, str, list, tuple as list, dict with text keys), no subclasses.
"""

import json
import os
from typing import Any

PRELUDE = """
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from typing import *
import bisect, collections, copy, functools, heapq, itertools, math, operator, random, re, string, sys
pow = __builtins__["pow"] if isinstance(__builtins__, dict) else __builtins__.pow
"""
"""What signatures of such tasks take for granted (`List[int]`), as the judges that they come from do."""


def to_plain(value: Any) -> Any:
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind in (list, tuple):
        return [to_plain(item) for item in value]
    if kind is dict and all(type(key) is str for key in value):
        return {key: to_plain(item) for key, item in value.items()}
    raise TypeError(f"returned a {kind.__name__}: expected None, bool, int, float, str, list or dict with text keys")


def main() -> None:
    with open(0, encoding="utf-8") as given:
        order = json.load(given)
    with open("program.py", encoding="utf-8") as file:
        source = file.read()
    output = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    space: dict[str, Any] = {"__name__": "program"}
    exec(PRELUDE, space)
    exec(compile(source, "program.py", "exec"), space)
    name = order["function"]
    function = space[name] if name in space else getattr(space["Solution"](), name)
    returned = json.dumps(to_plain(function(*order["args"])))
    frame = f"\n{order['nonce']} {returned}\n".encode()
    while frame:
        frame = frame[os.write(output, frame) :]


if __name__ == "__main__":
    main()
