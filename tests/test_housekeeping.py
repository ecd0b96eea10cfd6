"""Housekeeping: exactly the calls that an agent makes for itself are found, and go to the cheapest worker that can."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runs import make_pool
from torafugu.errors import RequestError
from torafugu.orchestrate import orchestrate
from torafugu.pool import Prices, Scripted, WorkerSpec
from torafugu.pool.prices import Price, resolve_price
from torafugu.server.chat import parse_chat
from torafugu.server.housekeeping import Housekeeper, choose_housekeeper, find_agent, is_housekeeping
from torafugu.server.messages import parse_messages
from torafugu.server.responses import read_responses
from torafugu.types import ImagePart, Message, OtherPart, Request, Sampling, TextPart

CLIENTS = Path(__file__).parents[2] / "shared" / "fixtures" / "clients"
TITLES = {
    "opencode-1.18.33-anthropic-tool/001-post-v1-chat-completions.json",
    "opencode-1.18.33-chat-text/001-post-v1-chat-completions.json",
    "opencode-1.18.33-chat-tool/001-post-v1-chat-completions.json",
    "opencode-1.18.33-responses-tool/001-post-v1-chat-completions.json",
}
OPENCODE = [(b"user-agent", b"opencode/1.18.33 ai-sdk/provider-utils/4.0.23 runtime/bun/1.3.14")]
CLAUDE = [(b"user-agent", b"claude-cli/2.1.329 (external, cli)")]
SDK = [(b"user-agent", b"OpenAI/Python 3.52.0")]
TOOL = {"type": "function", "function": {"name": "read", "parameters": {"type": "object"}}}


def ask(*messages: Message, **sampling: Any) -> Request:
    return Request(model="fugu", messages=messages, sampling=Sampling(**sampling))


def user(text: str) -> Message:
    return Message(role="user", content=text)


def system(text: str) -> Message:
    return Message(role="system", content=text)


TITLE = ask(system("Rules."), user("Generate a title for this conversation:\n"), user('"make a file"'))


@pytest.mark.shared
def test_exactly_the_recorded_housekeeping_is_found() -> None:
    """Of all recorded requests of all clients: opencode's titles, by file name, and nothing else."""
    found, read = {}, 0
    for file in CLIENTS.rglob("*.json"):
        asked = json.loads(file.read_text())["request"]
        path, body = asked["path"].partition("?")[0], json.dumps(asked["body"]).encode()
        try:
            if path == "/v1/chat/completions":
                request = parse_chat(body).request
            elif path == "/v1/messages":
                request = parse_messages(body).request
            elif path == "/v1/responses" and asked["method"] == "POST":
                request = read_responses(body).parse().request
            else:
                continue
        except RequestError:
            continue
        read += 1
        headers = [(name.lower().encode(), value.encode()) for name, value in asked["headers"].items()]
        why = is_housekeeping(request, headers)
        if why is not None:
            found[str(file.relative_to(CLIENTS))] = why
    assert found == dict.fromkeys(TITLES, "opencode: title")
    assert read > 240


def test_it_takes_all_the_marks() -> None:
    """The same words in a conversation, with tools, with an image, at length or from a plain SDK are nobody's title."""
    assert is_housekeeping(TITLE, OPENCODE) == "opencode: title"
    asked = TITLE.messages
    image = Message(role="user", content=(ImagePart(url="data:image/png;base64,AA=="),))
    audio = Message(role="user", content=(OtherPart(kind="input_audio", raw={}),))
    for request in (
        ask(*asked, tools=(TOOL,)),
        ask(*asked, Message(role="assistant", content="A file"), user("Shorter!")),
        ask(*asked, image),
        ask(*asked, audio),
        ask(*asked, user("x" * 20_000)),
        ask(user("Generate a title for this conversation: we met in Rome.")),
        ask(user("hi"), user("Generate a title for this conversation:")),
    ):
        assert is_housekeeping(request, OPENCODE) is None
    for headers in (SDK, [], [(b"user-agent", b"my opencode/1.0")], [(b"user-agent", b"codex_exec/0.169.0")], CLAUDE):
        assert is_housekeeping(TITLE, headers) is None


def test_how_a_system_prompt_begins_marks_it() -> None:
    """Agents say who they are in a line of their own; quoting it within one is no mark."""
    title = "You are a title generator. You output ONLY a thread title."
    assert is_housekeeping(ask(system(title), user("make a file")), OPENCODE) == "opencode: title"
    parts = Message(role="system", content=(TextPart(text="You are opencode."), TextPart(text=title)))
    assert is_housekeeping(ask(parts, user("make a file")), OPENCODE) == "opencode: title"
    assert is_housekeeping(ask(system(f"Never say: {title}"), user("make a file")), OPENCODE) is None
    assert is_housekeeping(ask(system("Be brief."), user(title)), OPENCODE) is None


def test_claude_code_asks_for_an_object_with_a_title() -> None:
    """The form of the answer marks its titles, the system prompt its labels; other forms mark nothing."""

    def form(*fields: str) -> dict[str, Any]:
        schema = {"type": "object", "properties": {field: {"type": "string"} for field in fields}}
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}

    session = (system("You are Claude Code."), user("<session>make a file</session>"))
    assert is_housekeeping(ask(*session, response_format=form("title")), CLAUDE) == "claude-code: title"
    assert is_housekeeping(ask(*session, response_format=form("title"), tools=(TOOL,)), CLAUDE) is None
    label = system("You are Claude Code.\n\nWrite a short summary label describing what these tool calls did.")
    assert is_housekeeping(ask(label, user("ls")), CLAUDE) == "claude-code: label"
    for other in (form("title", "body"), form("answer"), form(), {"type": "json_object"}, {"json_schema": [1]}, None):
        assert is_housekeeping(ask(*session, response_format=other), CLAUDE) is None
    assert is_housekeeping(ask(*session, response_format=form("title")), SDK) is None


def test_agents_are_known_by_their_user_agent() -> None:
    """Only by how it begins, and whatever bytes it has."""
    assert find_agent(OPENCODE) == "opencode"
    assert find_agent(CLAUDE) == "claude-code"
    assert find_agent(SDK) is None
    assert find_agent([(b"user-agent", b"\xff\xfe")]) is None
    assert find_agent([]) is None


# ---- who gets it


def worker(id: str, price: str | None, **fields: Any) -> WorkerSpec:
    prices = None if price is None else Prices(input=Decimal(price), output=Decimal(price) * 4)
    return WorkerSpec(**{"id": id, "dialect": "scripted", "model": id, "prices": prices, **fields})


def choose(*specs: WorkerSpec, request: Request = TITLE) -> str | None:
    by_id = {spec.id: spec for spec in specs}

    def price_of(id: str) -> Price | None:
        return resolve_price(by_id[id])

    return choose_housekeeper(by_id, price_of, request)


def test_the_cheapest_worker_gets_it() -> None:
    """By price, declared or listed; of equal ones the first; unknown prices are not cheap ones."""
    assert choose(worker("a", "3"), worker("b", "0.1"), worker("c", "0.2")) == "b"
    assert choose(worker("a", "3"), worker("b", "3")) == "a"
    assert choose(worker("a", None), worker("b", "9")) == "b"
    assert choose(worker("a", "0"), worker("b", "0.1")) == "a"
    listed = WorkerSpec(id="haiku", dialect="anthropic", model="claude-haiku-4-5")
    assert choose(worker("a", "100"), listed) == "haiku"


def test_only_a_worker_that_can_gets_it() -> None:
    """Allowed, large enough, and one that writes text of any kind."""
    cheap, dear = worker("cheap", "0.1"), worker("dear", "3")
    assert choose(cheap, dear, request=msgspec.structs.replace(TITLE, allowed=frozenset({"dear"}))) == "dear"
    assert choose(worker("cheap", "0.1", context_tokens=200), dear) == "dear"
    assert choose(worker("cheap", "0.1", context_tokens=2_000), dear) == "cheap"
    assert choose(worker("cheap", "0", dialect="home"), worker("other", "0", dialect="recorded"), dear) == "dear"
    with_tools = msgspec.structs.replace(TITLE, sampling=Sampling(tools=(TOOL,)))
    assert choose(worker("cheap", "0.1", tools=False), dear, request=with_tools) == "dear"
    image = ask(Message(role="user", content=(ImagePart(url="https://x/y.png"),)))
    assert choose(cheap, dear, request=image) is None


def test_nobody_gets_it_where_no_price_is_known() -> None:
    """Then the request goes the way of all others."""
    assert choose(worker("a", None), worker("b", None)) is None
    assert choose() is None


def test_it_is_one_call_and_on_record() -> None:
    """The policy calls its worker once, and the plan says what for."""
    scripted = Scripted(["A file"])
    policy = Housekeeper("cheap", why="opencode: title")
    run = asyncio.run(orchestrate(TITLE, policy, make_pool({"cheap": scripted, "dear": Scripted([])})))
    assert run.answer is not None
    assert (run.answer.text, run.workers, policy.id) == ("A file", ("cheap",), "housekeeping:cheap")
    assert run.plans[0].plan.notes == {"housekeeping": "opencode: title"}
