"""What tools a client declared, as functions that any worker can be offered, and the way back.

Workers are offered functions only, in the form of chat completions. Whatever else a client may declare and run itself
(free-form tools, tools in namespaces) is told as a function, whose calls are turned back into what the client declared.
Tools that a provider would have to run are left out by name, and an error only where the client insists on them.
Names that workers could not be offered are respelt, always to the same, so that a conversation keeps them.

Nothing here bounds how deep a declaration nests: whoever reads the request does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, TypeAlias

import msgspec

from ..errors import RequestError
from ..types import Json

__all__ = ["Declared", "Kind", "Toolbox", "arguments_to_input", "input_to_arguments", "to_function"]

Kind: TypeAlias = Literal["function", "custom"]

_MAX_TOOLS = 1_000  # nested ones counted
_MAX_NAME = 64  # OpenAI's limit for the names of functions; others allow more
_MAX_SHOWN = 100
_UNSPEAKABLE = re.compile(r"[^A-Za-z0-9_-]")
_INPUT = "input"
_FORMS = "'none', 'auto', 'required', a function or custom tool by name, or allowed_tools"


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What a client calls one of its tools."""

    kind: Kind
    name: str
    namespace: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolbox:
    """The tools of one request. Made by `from_chat`, `from_responses`, or from what another dialect read."""

    functions: tuple[Json, ...] = ()
    """For `Sampling.tools`."""
    left_out: tuple[str, ...] = ()
    """What no worker here can be offered, as `tools[3]:web_search`, for `Request.ignored`."""
    _inside: Mapping[Declared, str] = dataclasses.field(default_factory=dict)
    """How workers call it."""
    _declared: Mapping[str, Declared] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_declared(cls, tools: Iterable[tuple[Declared, Json]], *, left_out: Iterable[str] = ()) -> Toolbox:
        """`tools` are pairs of what the client calls it and a function as by `to_function`."""
        pairs = list(tools)
        names = _spell_all([declared for declared, _ in pairs])
        inside: dict[Declared, str] = {}
        for (declared, _), name in zip(pairs, names, strict=True):
            inside.setdefault(declared, name)  # the first of two that a client gave one name
        return cls(
            functions=tuple([_renamed(function, name) for (_, function), name in zip(pairs, names, strict=True)]),
            left_out=tuple(left_out),
            _inside=inside,
            _declared={name: declared for (declared, _), name in zip(pairs, names, strict=True)},
        )

    @classmethod
    def from_chat(cls, tools: Sequence[Mapping[str, Json]]) -> Toolbox:
        """Tools as chat completions declare them; functions are handed on as they came.

        Raises:
            RequestError: one is declared wrongly.
        """
        pairs: list[tuple[Declared, Json]] = []
        left_out: list[str] = []
        for where, tool in _numbered(tools, "tools"):
            kind = _read_kind(tool, where)
            if kind == "function":
                function = _read_object(tool, "function", where)
                name = _read_name(function, f"{where}.function")
                _check_parameters(function, f"{where}.function")
                pairs.append((Declared(kind="function", name=name), tool))
            elif kind == "custom":
                custom = _read_object(tool, "custom", where)
                form = custom.get("format")
                if isinstance(form, dict) and isinstance(form.get("grammar"), dict):  # one level more than in Responses
                    custom = {**custom, "format": {"type": "grammar", **form["grammar"]}}
                pairs.append(_read_custom(custom, f"{where}.custom", None))
            else:
                left_out.append(f"{where}:{kind[:_MAX_SHOWN]}")
        return cls.from_declared(pairs, left_out=left_out)

    @classmethod
    def from_responses(cls, tools: Sequence[Mapping[str, Json]]) -> Toolbox:
        """Tools as the Responses API declares them.

        Raises:
            RequestError: one is declared wrongly.
        """
        pairs: list[tuple[Declared, Json]] = []
        left_out: list[str] = []
        for where, tool in _numbered(tools, "tools"):
            if _read_kind(tool, where) != "namespace":
                _read_flat(tool, where, None, pairs, left_out)
                continue
            namespace = _read_name(tool, where)
            nested = tool.get("tools")
            if not isinstance(nested, list):
                _fail(f"{where}.tools", "expected a list of tools")
            start = len(pairs)
            for at, inner in _numbered(nested, f"{where}.tools"):
                _read_flat(inner, at, namespace, pairs, left_out)
            _tell_of_namespace(tool.get("description"), namespace, pairs, start)
            if len(pairs) + len(left_out) > _MAX_TOOLS:
                _fail(f"{where}.tools", f"more than {_MAX_TOOLS} tools in all")
        return cls.from_declared(pairs, left_out=left_out)

    def find(self, name: str) -> Declared:
        """What the client calls what a worker called; a name that nobody declared is taken for a function's."""
        return self._declared.get(name) or Declared(kind="function", name=name)

    def spell(self, declared: Declared) -> str:
        """How workers call it, also where it is declared no longer and only the conversation still speaks of it."""
        return self._inside.get(declared) or _spell(declared)

    def force(self, declared: Declared, *, where: str) -> Json:
        """A choice, in our form, that leaves a worker no other tool. `where` names the field of the client's choice.

        Raises:
            RequestError: there is no such tool.
        """
        if declared not in self._inside:
            _fail(where, f"{_show(declared)} is not among the tools: {self._shown_names()}")
        return {"type": "function", "function": {"name": self._inside[declared]}}

    def choose_mode(self, mode: str, *, where: str = "tool_choice") -> Json | None:
        """`none`, `auto` or `required`, where they mean something.

        Raises:
            RequestError: a tool is required and there is none.
        """
        if self.functions:
            return mode
        if mode == "required":
            _fail(where, f"asks for a tool, but {self._why_empty()}")
        return None

    def choose_chat(self, choice: Json) -> tuple[Toolbox, Json | None]:
        """The tools that may be used, and which one to choose, from a `tool_choice` of chat completions.

        Raises:
            RequestError: it makes no sense, or insists on what cannot be had.
        """
        allowed = choice.get("allowed_tools") if isinstance(choice, dict) else None
        return self._choose(choice, allowed, "tool_choice.allowed_tools", _read_reference_in_chat)

    def choose_responses(self, choice: Json) -> tuple[Toolbox, Json | None]:
        """As `choose_chat`, from a `tool_choice` of the Responses API.

        Raises:
            RequestError: as there.
        """
        return self._choose(choice, choice, "tool_choice", _read_reference)

    def _choose(
        self, choice: Json, allowed: Json, allowed_at: str, read: Callable[[Json, str], Declared]
    ) -> tuple[Toolbox, Json | None]:
        if choice is None:
            return self, None
        if isinstance(choice, str) and choice in ("none", "auto", "required"):
            return self, self.choose_mode(choice)
        kind = choice.get("type") if isinstance(choice, dict) else None
        if not isinstance(kind, str):
            _fail("tool_choice", f"expected {_FORMS}")
        if kind == "allowed_tools":
            return self._allow(allowed, allowed_at, read)
        if kind not in ("function", "custom"):
            problem = f"no worker here can be made to use {kind[:_MAX_SHOWN]!r}: expected {_FORMS}"
            _fail("tool_choice.type", problem, code="unsupported")
        declared = read(choice, "tool_choice")
        if not self.functions:
            _fail("tool_choice", f"asks for a tool, but {self._why_empty()}")
        at = "tool_choice.name" if read is _read_reference else f"tool_choice.{kind}.name"
        return self, self.force(declared, where=at)

    def _allow(self, allowed: Json, where: str, read: Callable[[Json, str], Declared]) -> tuple[Toolbox, Json | None]:
        """Only what is allowed is handed on; the rest stays known, for the conversation may speak of it."""
        if not isinstance(allowed, dict) or not isinstance(allowed.get("tools"), list):
            _fail(f"{where}.tools", "expected a list of tools")
        mode = allowed.get("mode")
        if mode not in ("auto", "required"):
            _fail(f"{where}.mode", "expected 'auto' or 'required'")
        names: set[str] = set()
        left_out = list(self.left_out)
        for at, reference in _numbered(allowed["tools"], f"{where}.tools"):
            kind = _read_kind(reference, at)
            if kind in ("function", "custom"):
                declared = read(reference, at)
                names.add(self.force(declared, where=at)["function"]["name"])
            elif kind == "namespace":
                namespace = _read_name(reference, at)
                names |= {name for known, name in self._inside.items() if known.namespace == namespace}
            else:
                left_out.append(f"{at}:{kind[:_MAX_SHOWN]}")
        functions = tuple([f for f in self.functions if f["function"]["name"] in names])
        fewer = dataclasses.replace(self, functions=functions, left_out=tuple(left_out))
        return fewer, fewer.choose_mode(mode, where=where)

    def _shown_names(self) -> str:
        names = ", ".join(_show(declared) for declared in self._inside)[:1000]
        return f"{names} (left out: {', '.join(self.left_out)[:1000]})" if self.left_out else names

    def _why_empty(self) -> str:
        if not self.left_out:
            return "no tools are given"
        return f"no worker here can be offered {', '.join(self.left_out)[:1000]}"


def to_function(
    name: str, *, description: str | None = None, parameters: Json | None = None, strict: bool | None = None
) -> Json:
    """A function in our form."""
    told = {"description": description, "parameters": parameters, "strict": strict}
    return {"type": "function", "function": {"name": name, **{k: v for k, v in told.items() if v is not None}}}


def input_to_arguments(text: str) -> str:
    """What was given to a free-form tool, as arguments of the function that stands for it."""
    return msgspec.json.encode({_INPUT: text}).decode()


def arguments_to_input(arguments: str) -> str:
    """And back. What is not of that form is passed on as the worker wrote it: most likely it is the bare input."""
    try:
        value = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError, ValueError):  # ValueError: an integer of thousands of digits
        return arguments
    text = value.get(_INPUT) if isinstance(value, dict) else None
    return text if isinstance(text, str) else arguments


# --- reading declarations ---


def _numbered(tools: Sequence[Json], where: str) -> Iterable[tuple[str, Mapping[str, Json]]]:
    if len(tools) > _MAX_TOOLS:
        _fail(where, f"{len(tools)} tools: expected at most {_MAX_TOOLS}")
    for i, tool in enumerate(tools):
        if not isinstance(tool, dict):
            _fail(f"{where}[{i}]", "expected an object")
        yield f"{where}[{i}]", tool


def _read_flat(
    tool: Mapping[str, Json],
    where: str,
    namespace: str | None,
    pairs: list[tuple[Declared, Json]],
    left_out: list[str],
) -> None:
    """A tool whose name stands beside its type."""
    kind = _read_kind(tool, where)
    if kind == "custom":
        pairs.append(_read_custom(tool, where, namespace))
    elif kind == "function":
        name = _read_name(tool, where)
        _check_parameters(tool, where)
        strict = tool.get("strict")
        if not isinstance(strict, bool | None):
            _fail(f"{where}.strict", "expected true or false")
        function = to_function(
            name, description=_read_description(tool, where), parameters=tool.get("parameters"), strict=strict
        )
        pairs.append((Declared(kind="function", name=name, namespace=namespace), function))
    else:
        left_out.append(f"{where}:{kind[:_MAX_SHOWN]}")


def _read_custom(custom: Mapping[str, Json], where: str, namespace: str | None) -> tuple[Declared, Json]:
    """Workers know no grammars here: it is told in words, and a worker may still break it, as the client may notice."""
    name = _read_name(custom, where)
    form = custom.get("format")
    parts = [_read_description(custom, where) or "", f"`{_INPUT}` is the tool's input as plain text, not JSON."]
    if isinstance(form, dict) and isinstance(form.get("definition"), str):
        syntax = str(form.get("syntax"))[:_MAX_SHOWN]
        parts[-1] += f" It has to follow this grammar ({syntax}):\n{form['definition']}"
    parameters = {
        "type": "object",
        "properties": {_INPUT: {"type": "string"}},
        "required": [_INPUT],
        "additionalProperties": False,
    }
    description = "\n\n".join(part for part in parts if part)
    function = to_function(name, description=description, parameters=parameters)
    return Declared(kind="custom", name=name, namespace=namespace), function


def _tell_of_namespace(about: Json, namespace: str, pairs: list[tuple[Declared, Json]], first: int) -> None:
    """What a namespace is for is told once, with its first tool: such texts can be long."""
    if len(pairs) == first or not isinstance(about, str) or not about:
        return
    declared, wire = pairs[first]
    own = wire["function"].get("description")
    told = f"All tools of {namespace}: {about}"
    function = {**wire["function"], "description": f"{own}\n\n{told}" if own else told}
    pairs[first] = (declared, {**wire, "function": function})


def _read_kind(tool: Mapping[str, Json], where: str) -> str:
    kind = tool.get("type")
    if not isinstance(kind, str):
        _fail(f"{where}.type", "expected a string such as 'function'")
    return kind


def _read_object(tool: Mapping[str, Json], key: str, where: str) -> Mapping[str, Json]:
    value = tool.get(key)
    if not isinstance(value, dict):
        _fail(f"{where}.{key}", "expected an object")
    return value


def _read_name(tool: Mapping[str, Json], where: str) -> str:
    name = tool.get("name")
    if not isinstance(name, str) or not name:
        _fail(f"{where}.name", "expected a string that is not empty")
    return name


def _read_description(tool: Mapping[str, Json], where: str) -> str | None:
    description = tool.get("description")
    if not isinstance(description, str | None):
        _fail(f"{where}.description", "expected a string")
    return description


def _check_parameters(function: Mapping[str, Json], where: str) -> None:
    if not isinstance(function.get("parameters"), dict | None):
        _fail(f"{where}.parameters", "expected an object (JSON Schema)")


def _read_reference(reference: Mapping[str, Json], where: str) -> Declared:
    name = reference.get("name")
    namespace = reference.get("namespace")
    if not isinstance(name, str):
        _fail(f"{where}.name", "expected a string")
    if not isinstance(namespace, str | None):
        _fail(f"{where}.namespace", "expected a string")
    return Declared(kind=reference["type"], name=name, namespace=namespace)


def _read_reference_in_chat(reference: Mapping[str, Json], where: str) -> Declared:
    kind = reference["type"]
    inner = reference.get(kind)
    name = inner.get("name") if isinstance(inner, dict) else None
    if not isinstance(name, str):
        _fail(f"{where}.{kind}.name", "expected a string")
    return Declared(kind=kind, name=name)


# --- names ---


def _spell(declared: Declared) -> str:
    """A name that every provider takes. It depends on the tool alone, so that a conversation keeps it."""
    full = declared.name if declared.namespace is None else f"{declared.namespace}__{declared.name}"
    name = _UNSPEAKABLE.sub("_", full)
    if len(name) <= _MAX_NAME:
        return name
    return f"{name[: _MAX_NAME - 9]}_{hashlib.sha256(full.encode()).hexdigest()[:8]}"


def _spell_all(tools: Sequence[Declared]) -> list[str]:
    """Unique names. A function whose name can stand keeps it, whatever else is declared around it."""
    kept: dict[str, int] = {}
    for i, declared in enumerate(tools):
        if declared.kind == "function" and declared.namespace is None and _spell(declared) == declared.name:
            kept.setdefault(declared.name, i)
    taken = set(kept)
    count_of: dict[str, int] = {}
    names: list[str] = []
    for i, declared in enumerate(tools):
        name = base = _spell(declared)
        if kept.get(name) != i:
            while name in taken:
                count = count_of[base] = count_of.get(base, 1) + 1
                name = f"{base[: _MAX_NAME - 1 - len(str(count))]}_{count}"
            taken.add(name)
        names.append(name)
    return names


def _renamed(function: Json, name: str) -> Json:
    if function["function"]["name"] == name:
        return function
    return {**function, "function": {**function["function"], "name": name}}


def _show(declared: Declared) -> str:
    name = declared.name if declared.namespace is None else f"{declared.namespace}.{declared.name}"
    return repr(name[:_MAX_SHOWN]) if declared.kind == "function" else f"custom tool {name[:_MAX_SHOWN]!r}"


def _fail(param: str, problem: str, *, code: str | None = None) -> NoReturn:
    raise RequestError(f"{param}: {problem}", param=param, code=code)
