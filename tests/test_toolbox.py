"""The toolbox: whatever a client declares, workers are offered functions, and calls find their way back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torafugu.errors import RequestError
from torafugu.server.toolbox import Declared, Toolbox, arguments_to_input, input_to_arguments, to_function

CLIENTS = Path(__file__).parents[2] / "shared" / "fixtures" / "clients"
ADD = {"type": "function", "name": "add", "description": "Adds.", "parameters": {"type": "object"}, "strict": True}
PATCH = {
    "type": "custom",
    "name": "patch",
    "description": "Edits files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "a"'},
}
AGENTS = {
    "type": "namespace",
    "name": "agents",
    "description": "Other agents.",
    "tools": [{"type": "function", "name": "add"}, {"type": "custom", "name": "tell"}, {"type": "later"}],
}
SEARCH = {"type": "web_search", "external_web_access": True}
ALL = [ADD, SEARCH, PATCH, AGENTS]
CHAT_ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}, "x": 1}, "y": 2}


def names(toolbox: Toolbox) -> list[str]:
    return [tool["function"]["name"] for tool in toolbox.functions]


def error_of(call: Any, *args: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        call(*args)
    return caught.value


def test_kinds_become_functions() -> None:
    """Functions, free-form tools and tools in namespaces are offered as functions; what a provider runs is left out."""
    toolbox = Toolbox.from_responses(ALL)
    assert names(toolbox) == ["add", "patch", "agents__add", "agents__tell"]
    assert toolbox.left_out == ("tools[1]:web_search", "tools[3].tools[2]:later")
    assert [toolbox.find(name) for name in names(toolbox)] == [
        Declared(kind="function", name="add"),
        Declared(kind="custom", name="patch"),
        Declared(kind="function", name="add", namespace="agents"),
        Declared(kind="custom", name="tell", namespace="agents"),
    ]
    assert [toolbox.spell(toolbox.find(name)) for name in names(toolbox)] == names(toolbox)


def test_function_is_handed_on() -> None:
    """A function of the Responses API is the same function in the form of chat completions; what is unset stays so."""
    (function,) = Toolbox.from_responses([ADD]).functions
    assert function == {
        "type": "function",
        "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}, "strict": True},
    }
    (bare,) = Toolbox.from_responses([{"type": "function", "name": "add", "strict": None}]).functions
    assert bare == {"type": "function", "function": {"name": "add"}}


def test_chat_functions_stay_as_they_came() -> None:
    """A function of chat completions is handed on untouched, also what we know nothing of."""
    toolbox = Toolbox.from_chat([CHAT_ADD, SEARCH])
    assert toolbox.functions == (CHAT_ADD,)
    assert toolbox.left_out == ("tools[1]:web_search",)


def test_custom_tool() -> None:
    """A free-form tool is a function of one text; its grammar is told in words, from either dialect alike."""
    (wire,) = Toolbox.from_responses([PATCH]).functions
    function = wire["function"]
    assert function["parameters"] == {
        "type": "object",
        "properties": {"input": {"type": "string"}},
        "required": ["input"],
        "additionalProperties": False,
    }
    assert function["description"].startswith("Edits files.\n\n`input` is")
    assert function["description"].endswith('(lark):\nstart: "a"')
    grammar = {"type": "grammar", "grammar": {"syntax": "lark", "definition": 'start: "a"'}}
    in_chat = {"type": "custom", "custom": {"name": "patch", "description": "Edits files.", "format": grammar}}
    assert Toolbox.from_chat([in_chat]).functions == (wire,)


def test_namespace_is_told_once() -> None:
    """What a namespace is for stands with its first tool, and only there."""
    first, second = Toolbox.from_responses([AGENTS]).functions
    assert first["function"]["description"] == "All tools of agents: Other agents."
    assert "Other agents." not in second["function"]["description"]


@given(st.text())
def test_custom_input_survives(text: str) -> None:
    """Any input of a free-form tool survives as arguments."""
    arguments = input_to_arguments(text)
    assert json.loads(arguments) == {"input": text}
    assert arguments_to_input(arguments) == text


@pytest.mark.parametrize(
    "written", ["*** Begin Patch", '{"patch":"x"}', '{"input":5}', '"x"', "", "[" * 99_999, "9" * 5000]
)
def test_bare_input_is_passed_on(written: str) -> None:
    """Arguments that are not the asked-for object reach the client as the worker wrote them."""
    assert arguments_to_input(written) == written


def test_names_that_workers_cannot_take() -> None:
    """Names are respelt into what every provider takes, to the same whatever else is declared, and found again."""
    odd, long = "mcp.files/read", "x" * 80
    toolbox = Toolbox.from_responses([{"type": "function", "name": name} for name in (odd, long)])
    spelt = names(toolbox)
    assert spelt[0] == "mcp_files_read"
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in spelt)
    assert [toolbox.find(name).name for name in spelt] == [odd, long]
    declared = [Declared(kind="function", name=name) for name in (odd, long)]
    assert [Toolbox().spell(tool) for tool in declared] == spelt
    assert Toolbox().spell(Declared(kind="function", name=long + "y")) != spelt[1]


def test_names_that_collide() -> None:
    """A plain function keeps its name, even when it comes last; others that would be called the same are numbered."""
    tools = [AGENTS, {**PATCH, "name": "agents__add"}, {**ADD, "name": "agents__add"}, {**ADD, "name": "agents__add"}]
    toolbox = Toolbox.from_responses(tools)
    assert names(toolbox) == ["agents__add_2", "agents__tell", "agents__add_3", "agents__add", "agents__add_4"]
    assert toolbox.find("agents__add") == Declared(kind="function", name="agents__add")
    assert toolbox.find("agents__add_2").namespace == "agents"
    assert toolbox.find("agents__add_3").kind == "custom"
    assert toolbox.spell(Declared(kind="function", name="agents__add")) == "agents__add"


def test_unknown_names() -> None:
    """A call of what nobody declared goes to the client as a function's, for the client to refuse."""
    assert Toolbox().find("made_up") == Declared(kind="function", name="made_up")


@given(
    st.lists(st.tuples(st.sampled_from(["function", "custom"]), st.text(min_size=1), st.none() | st.text()), max_size=9)
)
def test_names_are_unique(tools: list[tuple[Any, str, str | None]]) -> None:
    """Whatever tools are called, workers see unique names, each of which leads back to its tool."""
    declared = [Declared(kind=kind, name=name, namespace=namespace) for kind, name, namespace in tools]
    toolbox = Toolbox.from_declared([(tool, to_function(tool.name)) for tool in declared])
    spelt = names(toolbox)
    assert len(set(spelt)) == len(declared)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in spelt)
    assert [toolbox.find(name) for name in spelt] == declared
    assert all(toolbox.find(toolbox.spell(tool)) == tool for tool in declared)


def test_many_of_one_name() -> None:
    """A thousand tools of one name are told apart without trying every number for every one."""
    toolbox = Toolbox.from_responses([ADD] * 1000)
    assert (names(toolbox)[0], names(toolbox)[-1]) == ("add", "add_1000")


@pytest.mark.parametrize(
    ("choice", "inside"),
    [
        (None, None),
        ("none", "none"),
        ("auto", "auto"),
        ("required", "required"),
        ({"type": "function", "name": "add"}, "add"),
        ({"type": "custom", "name": "patch"}, "patch"),
        ({"type": "function", "name": "add", "namespace": "agents"}, "agents__add"),
    ],
)
def test_choices(choice: Any, inside: str | None) -> None:
    """All forms of choosing a tool reach workers in one form, under the name that they know."""
    toolbox, chosen = Toolbox.from_responses(ALL).choose_responses(choice)
    assert chosen == (inside if choice is None or isinstance(choice, str) else to_function(inside or ""))
    assert len(toolbox.functions) == 4


def test_choices_in_chat() -> None:
    """Chat completions name what they choose one level deeper."""
    toolbox = Toolbox.from_chat([CHAT_ADD, {"type": "custom", "custom": {"name": "patch"}}])
    assert toolbox.choose_chat({"type": "custom", "custom": {"name": "patch"}})[1] == to_function("patch")
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "add"}}]}
    fewer, chosen = toolbox.choose_chat({"type": "allowed_tools", "allowed_tools": allowed})
    assert (names(fewer), chosen) == (["add"], "required")
    assert error_of(toolbox.choose_chat, {"type": "function"}).param == "tool_choice.function.name"
    unknown = {"type": "function", "function": {"name": "sub"}}
    assert error_of(toolbox.choose_chat, unknown).param == "tool_choice.function.name"


def test_allowed_tools() -> None:
    """Only allowed tools are handed on; the others stay known; those that a provider would run are left out by name."""
    references = [{"type": "custom", "name": "patch"}, {"type": "namespace", "name": "agents"}, {"type": "web_search"}]
    choice = {"type": "allowed_tools", "mode": "auto", "tools": references}
    toolbox, chosen = Toolbox.from_responses(ALL).choose_responses(choice)
    assert (names(toolbox), chosen) == (["patch", "agents__add", "agents__tell"], "auto")
    assert toolbox.left_out[-1] == "tool_choice.tools[2]:web_search"
    assert toolbox.find("add") == Declared(kind="function", name="add")
    none_left, chosen = Toolbox.from_responses(ALL).choose_responses({**choice, "tools": []})
    assert (none_left.functions, chosen) == ((), None)


@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        ([], "required", "tool_choice"),
        ([], {"type": "function", "name": "add"}, "tool_choice"),
        ([SEARCH], "required", "tool_choice"),
        (ALL, "any", "tool_choice"),
        (ALL, ["auto"], "tool_choice"),
        (ALL, {"type": "function"}, "tool_choice.name"),
        (ALL, {"type": "function", "name": "patch"}, "tool_choice.name"),
        (ALL, {"type": "function", "name": "add", "namespace": 1}, "tool_choice.namespace"),
        (ALL, {"type": "web_search"}, "tool_choice.type"),
        (ALL, {"type": "allowed_tools", "mode": "auto"}, "tool_choice.tools"),
        (ALL, {"type": "allowed_tools", "mode": "none", "tools": []}, "tool_choice.mode"),
        (ALL, {"type": "allowed_tools", "mode": "required", "tools": []}, "tool_choice"),
        (ALL, {"type": "allowed_tools", "mode": "auto", "tools": [ADD, {**ADD, "name": "z"}]}, "tool_choice.tools[1]"),
    ],
)
def test_choices_that_cannot_be_had(tools: list[Any], choice: Any, param: str) -> None:
    """Insisting on a tool that is not there, or that no worker can use, is an error that names the field."""
    error = error_of(Toolbox.from_responses(tools).choose_responses, choice)
    assert (error.status, error.param) == (400, param)


def test_errors_say_what_there_is() -> None:
    """Who asks for an unknown tool is told which are there, and which are not to be had."""
    told = error_of(Toolbox.from_responses(ALL).choose_responses, {"type": "function", "name": "sub"}).message
    assert "'sub'" in told
    assert "'add', custom tool 'patch', 'agents.add'" in told
    assert "tools[1]:web_search" in told


@pytest.mark.parametrize("choice", ["none", "auto"])
def test_choice_without_tools(choice: str) -> None:
    """Without any tool, leaving the choice open says nothing."""
    assert Toolbox.from_responses([SEARCH]).choose_responses(choice)[1] is None


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        (5, "tools[0]"),
        ({}, "tools[0].type"),
        ({"type": "function"}, "tools[0].name"),
        ({"type": "function", "name": ""}, "tools[0].name"),
        ({**ADD, "parameters": []}, "tools[0].parameters"),
        ({**ADD, "description": 1}, "tools[0].description"),
        ({**ADD, "strict": "yes"}, "tools[0].strict"),
        ({"type": "custom"}, "tools[0].name"),
        ({"type": "namespace", "name": "n"}, "tools[0].tools"),
        ({"type": "namespace", "tools": []}, "tools[0].name"),
        ({"type": "namespace", "name": "n", "tools": [ADD, {"type": "function"}]}, "tools[0].tools[1].name"),
    ],
)
def test_wrong_declarations(tool: Any, param: str) -> None:
    """A tool that is declared wrongly is an error that names the field."""
    error = error_of(Toolbox.from_responses, [tool])
    assert (error.status, error.param) == (400, param)
    assert param in error.message


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ({"type": "function"}, "tools[0].function"),
        ({"type": "function", "function": {}}, "tools[0].function.name"),
        ({"type": "function", "function": {"name": "f", "parameters": 1}}, "tools[0].function.parameters"),
        ({"type": "custom", "custom": {"name": 5}}, "tools[0].custom.name"),
    ],
)
def test_wrong_declarations_in_chat(tool: Any, param: str) -> None:
    """The same in the form of chat completions."""
    assert error_of(Toolbox.from_chat, [tool]).param == param


def test_counts_are_bounded() -> None:
    """There are at most a thousand tools, those in namespaces counted."""
    assert error_of(Toolbox.from_responses, [ADD] * 1001).param == "tools"
    namespace = {"type": "namespace", "name": "n", "tools": [ADD] * 600}
    assert error_of(Toolbox.from_responses, [namespace, namespace]).param == "tools[1].tools"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "name", "function", "custom", "tools", "mode", "format", "namespace"]),
            inner,
            max_size=4,
        )
        | st.sampled_from(["function", "custom", "namespace", "allowed_tools", "auto", "add"])
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=200)
@given(st.lists(JSON, max_size=3), JSON)
def test_any_json(tools: list[Any], choice: Any) -> None:
    """Any JSON for tools and choice raises `RequestError` or nothing."""
    for read, choose in (("from_responses", "choose_responses"), ("from_chat", "choose_chat")):
        try:
            getattr(getattr(Toolbox, read)(tools), choose)(choice)
        except RequestError:
            continue


@pytest.mark.shared
@pytest.mark.skipif(not CLIENTS.exists(), reason="the recorded requests are not here")
def test_recorded_clients() -> None:
    """Every tool that real clients were recorded declaring is offered or left out by name, and none is lost."""
    functions = left_out = 0
    for path in sorted(CLIENTS.glob("*/**/*post*responses*.json")):
        tools = json.loads(path.read_text())["request"]["body"].get("tools") or []
        toolbox = Toolbox.from_responses(tools)
        declared = [nested for tool in tools for nested in tool.get("tools", [tool])]
        assert len(toolbox.functions) + len(toolbox.left_out) == len(declared)
        assert [toolbox.find(name).name for name in names(toolbox)] == [t["name"] for t in declared if "name" in t]
        functions, left_out = functions + len(toolbox.functions), left_out + len(toolbox.left_out)
    assert functions > 300
    assert left_out == 20
