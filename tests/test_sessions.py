"""Sessions: what belongs together is found, what does not is kept apart, and what was long ago is cold."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heads import Texts, make_head, models
from runs import make_pool
from torafugu.errors import ConfigError, WorkerError
from torafugu.orchestrate import Run, orchestrate
from torafugu.orchestrate.selector import Selector
from torafugu.pool import Failing, Scripted
from torafugu.server.chat import parse_chat
from torafugu.server.messages import parse_messages
from torafugu.server.responses import read_responses
from torafugu.server.sessions import Session, Sessions, SessionsConfig, find_session
from torafugu.types import Message, Reply, Request, ToolCall, Usage, Warm

CLIENTS = Path(__file__).parents[2] / "shared" / "fixtures" / "clients"
WORKERS = ("ant", "bee", "cat", "dog")


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def talk(*turns: str, system: str = "Be brief.") -> Request:
    """The user's and the assistant's turns, in turn."""
    roles = ("user", "assistant")
    said = [Message(role=roles[i % 2], content=text) for i, text in enumerate(turns)]  # type: ignore[arg-type]
    return Request(model="fugu", messages=(Message(role="system", content=system), *said))


def find(request: Request, *, hint: str | None = None, tenant: str | None = "t", **headers: str) -> Session:
    pairs = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return find_session(pairs, hint=hint, request=request, tenant=tenant)


def reply(worker: str, text: str = "4", *, tokens: int | None = 10_000, cached: int | None = None) -> Reply:
    usage = Usage(input_tokens=tokens, cached_input_tokens=cached)
    return Reply(worker=worker, text=text, finish_reason="stop", usage=usage)


# ---- which conversation


def test_the_ladder() -> None:
    """A header names the session, in a fixed order; else the body does; what is empty names nothing."""
    request = talk("hi")
    assert find(request, session_id="a", thread_id="b").label == "a"
    assert find(request, thread_id="b", x_session_affinity="c").label == "b"
    assert find(request, x_session_affinity="c", hint="h").label == "c"
    assert find(request, x_claude_code_session_id="d", hint="h").label == "d"
    assert find(request, x_session_id="", session_id="a").label == "a"
    assert find(request, hint="h").label == "h"
    assert find(request, x_session_id="", hint="").label is None
    long = find(request, hint="h" * 201).label
    assert long is not None
    assert long.startswith("sha256:")


def test_a_named_session_goes_on_whatever_happens_to_its_system_prompt() -> None:
    """From its first request on, the key is the same for all requests of a conversation."""
    first = find(talk("hi"), session_id="a")
    assert first.key is not None
    later = find(talk("hi", "hello", "and now?", system="It is 12:01."), session_id="a")
    assert later.key == first.key


def test_one_name_covers_several_conversations() -> None:
    """A helper of an agent bears its session's name, and has a prompt of its own: it is another conversation."""
    assert find(talk("hi"), session_id="a").key != find(talk("find all TODOs"), session_id="a").key


def test_tenants_never_share() -> None:
    """The same name, and the same words, of two API keys are two conversations."""
    named, unnamed = talk("hi"), talk("hi", "hello", "go on")
    tenants = ("t", "u", None, "")
    assert len({find(named, session_id="a", tenant=tenant).key for tenant in tenants}) == 4
    assert len({find(unnamed, tenant=tenant).key for tenant in tenants}) == 4


def test_a_first_question_without_a_name_is_nobodys() -> None:
    """Two people who ask the same are not one conversation, until one of them has gone on from an answer."""
    sessions = Sessions(config=SessionsConfig())
    sessions.note(find(talk("2 + 2?")), reply("ant", "Four."))
    assert find(talk("2 + 2?")).key is None
    assert sessions.warm(find(talk("2 + 2?"))) is None
    assert sessions.warm(find(talk("2 + 2?", "Four.", "Why?"))) == Warm(worker="ant", input_tokens=10_000)
    assert sessions.warm(find(talk("2 + 2?", "It is 4.", "Why?"))) is None


def test_without_a_name_it_is_what_was_said() -> None:
    """Turn for turn the worker is found again; blanks, ids and the JSON of tool calls may change on the way."""
    sessions = Sessions(config=SessionsConfig())
    call = ToolCall(id="call_1", name="read", arguments='{"path": "/x"}')
    sessions.note(
        find(talk("2 + 2?")), Reply(worker="bee", text=" Let me\nsee.", finish_reason="stop", tool_calls=(call,))
    )
    back = ToolCall(id="toolu_9", name="read", arguments='{"path":"/x"}')
    history = (
        *talk("2 + 2?").messages,
        Message(role="assistant", content="Let me see. "),
        Message(role="assistant", content=None, tool_calls=(back,)),
        Message(role="tool", content="4", tool_call_id="toolu_9"),
    )
    second = find(Request(model="fugu", messages=history))
    assert sessions.warm(second) == Warm(worker="bee")
    other = Message(role="assistant", content=None, tool_calls=(msgspec.structs.replace(back, name="write"),))
    assert sessions.warm(find(Request(model="fugu", messages=(*history[:3], other, history[4])))) is None
    sessions.note(second, reply("bee", "Four."))
    third = (*history, Message(role="assistant", content="Four."), Message(role="user", content="Thanks!"))
    assert sessions.warm(find(Request(model="fugu", messages=third))) == Warm(worker="bee", input_tokens=10_000)


def test_examples_in_a_prompt_are_no_conversation() -> None:
    """Clients that begin with the same examples, answers included (aider does), are not taken for each other."""
    sessions = Sessions(config=SessionsConfig())
    examples = ("Example?", "Like so.")
    sessions.note(find(talk(*examples, "mine")), reply("ant", "A."))
    assert sessions.warm(find(talk(*examples, "yours"))) is None
    assert sessions.warm(find(talk(*examples, "mine", "A.", "more"))) is not None


text = st.text(max_size=5) | st.sampled_from(["\ud800", "\x00", "a", "b", '["', "t"])
turns = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), text), max_size=4)


@given(turns, turns, st.none() | text, st.none() | text, st.none() | text, st.none() | text)
def test_no_text_makes_tenants_or_names_look_alike(
    one: list[tuple[Any, str]],
    other: list[tuple[Any, str]],
    tenant: str | None,
    tenant_2: str | None,
    hint: Any,
    hint_2: Any,
) -> None:
    """Whatever was said, halves of surrogate pairs included: a key is one tenant's and one name's, and stays so."""

    def key(turns: Sequence[tuple[Any, str]], tenant: str | None, hint: str | None) -> bytes | None:
        messages = tuple(Message(role=role, content=said) for role, said in turns)
        return find_session([], hint=hint, request=Request(model="m", messages=messages), tenant=tenant).key

    a, b = key(one, tenant, hint), key(other, tenant_2, hint_2)
    if a is not None and a == b:
        assert (tenant, hint or None) == (tenant_2, hint_2 or None)
    assert a == key(one, tenant, hint)


# ---- what is warm


def test_a_session_is_warm_for_a_while_after_each_reply() -> None:
    """`warm_s` after its latest reply it is cold, and what it took is given back."""
    clock = Clock()
    sessions = Sessions(config=SessionsConfig(warm_s=300), clock=clock)
    a, b = find(talk("hi"), session_id="a"), find(talk("hi"), session_id="b")
    assert sessions.warm(a) is None
    sessions.note(a, reply("ant"))
    clock.now_s += 299
    sessions.note(a, reply("ant"))
    clock.now_s += 299
    assert sessions.warm(a) == Warm(worker="ant", input_tokens=10_000)
    clock.now_s += 1
    assert sessions.warm(a) is None
    sessions.note(b, reply("bee"))
    assert len(sessions) == 1


def test_memory_is_bounded() -> None:
    """Beyond the limit, the conversation that was silent longest is forgotten."""
    sessions = Sessions(config=SessionsConfig(limit=2))
    a, b, c = (find(talk("hi"), session_id=name) for name in "abc")
    for session in (a, b, a, c):
        sessions.note(session, reply("ant"))
    assert len(sessions) == 2
    assert sessions.warm(b) is None
    assert sessions.warm(a) is not None
    assert sessions.warm(c) is not None


def test_no_time_at_all_routes_every_request_afresh() -> None:
    """`warm_s = 0` remembers nothing."""
    sessions = Sessions(config=SessionsConfig(warm_s=0))
    session = find(talk("hi"), session_id="a")
    sessions.note(session, reply("ant"))
    assert sessions.warm(session) is None
    assert len(sessions) == 0


def test_a_worker_that_keeps_no_cache_has_none_to_lose() -> None:
    """It has read a large prompt again and found nothing of it cached: nothing is lost with it. Unknown is not none."""
    sessions = Sessions(config=SessionsConfig())
    session = find(talk("hi"), session_id="a")

    def after(answer: Reply) -> int | None:
        sessions.note(session, answer)
        warm = sessions.warm(session)
        assert warm is not None
        return warm.input_tokens

    assert after(reply("ant", tokens=9_000, cached=0)) == 9_000, "a first request finds nothing, anywhere"
    assert after(reply("ant", tokens=9_500, cached=0)) == 0
    assert after(reply("ant", tokens=9_900, cached=0)) == 0
    assert after(reply("ant", tokens=9_950, cached=9_000)) == 9_950
    assert after(reply("ant", tokens=9_990, cached=None)) == 9_990
    assert after(reply("bee", tokens=9_990, cached=0)) == 9_990, "another worker"
    assert after(reply("bee", tokens=None)) is None
    assert after(reply("bee", tokens=2_000, cached=0)) == 2_000
    assert after(reply("bee", tokens=2_100, cached=0)) == 2_100, "too short for any cache"


def test_settings_are_checked() -> None:
    """What is no time, no margin and no bound is refused by name."""
    for name, value in (("warm_s", float("nan")), ("warm_s", -1.0), ("switch_margin", 1.1), ("limit", 0)):
        with pytest.raises(ConfigError, match=name):
            SessionsConfig(**{name: value})  # type: ignore[arg-type]


# ---- with the selector


def test_a_failover_takes_the_session_along() -> None:
    """The worker that took over has the warm cache: the next request stays with it, over the first choice."""
    head = make_head(WORKERS, scale=0.01)  # all are about as good
    selector = Selector(head, Texts(), models(WORKERS))
    sessions = Sessions(config=SessionsConfig())
    usage = Usage(input_tokens=20_000)

    async def ask(request: Request, down: str | None) -> Run:
        session = find(request, session_id="a")
        warm = Request(model=request.model, messages=request.messages, warm=sessions.warm(session))
        backends = {
            w: Failing(WorkerError("down", worker=w)) if w == down else Scripted([w], usage=usage) for w in WORKERS
        }
        run = await orchestrate(warm, selector, make_pool(backends))
        assert run.answer is not None
        sessions.note(session, run.answer)
        return run

    async def main() -> None:
        first = (await ask(talk("sum 1"), None)).workers[0]
        again = await ask(talk("sum 1", first, "sum 1"), first)
        assert again.workers[0] == first
        second = again.workers[-1]
        assert second != first
        third = await ask(talk("sum 1", first, "sum 1", second, "sum 1"), None)
        assert third.workers == (second,)
        assert third.plans[0].plan.notes["session"] == "kept"
        assert next(iter(third.plans[0].plan.scores or {})) == first, "which the head would still rather ask"

    asyncio.run(main())


# ---- recorded clients


def recorded(name: str) -> tuple[Session, Any]:
    """(The session of a recorded request, the recorded response's body)."""
    exchange = json.loads((CLIENTS / name).read_text())
    asked = exchange["request"]
    body = json.dumps(asked["body"]).encode()
    if asked["path"].startswith("/v1/chat"):
        chat = parse_chat(body)
        request, hint = chat.request, chat.cache_key
    elif asked["path"].startswith("/v1/messages"):
        message = parse_messages(body)
        request, hint = message.request, message.session
    else:
        response = read_responses(body).parse()
        request, hint = response.request, response.cache_key
    headers = [(key.lower().encode(), value.encode()) for key, value in asked["headers"].items()]
    return find_session(headers, hint=hint, request=request, tenant=None), exchange["response"]["body"]


CHAT, MESSAGES, RESPONSES = "post-v1-chat-completions.json", "post-v1-messages.json", "post-v1-responses.json"


@pytest.mark.shared
@pytest.mark.parametrize(
    ("folder", "turns", "others"),
    [
        ("codex-0.142.5-exec", [f"001-{RESPONSES}", f"002-{RESPONSES}"], []),
        ("codex-0.169.0-reasoning", [f"001-{RESPONSES}", f"002-{RESPONSES}"], []),
        (
            "codex-0.169.0-namespace-tool",
            [f"00{n}-{RESPONSES}" for n in (1, 3, 4)],
            [f"002-{RESPONSES}"],
        ),
        ("claude-code-2.1.329-tool", [f"001-{MESSAGES}", f"002-{MESSAGES}"], []),
        ("opencode-1.18.33-chat-tool", [f"002-{CHAT}", f"003-{CHAT}"], [f"001-{CHAT}"]),
        ("opencode-1.18.33-anthropic-tool", [f"002-{MESSAGES}", f"003-{MESSAGES}"], [f"001-{CHAT}"]),
        ("opencode-1.18.33-responses-tool", [f"002-{RESPONSES}", f"003-{RESPONSES}"], [f"001-{CHAT}"]),
    ],
)
def test_agents_requests_belong_together(folder: str, turns: list[str], others: list[str]) -> None:
    """All requests of an agent's conversation have one key; what it asks beside (a helper, a title) has another."""
    sessions = [recorded(f"{folder}/{name}")[0] for name in turns]
    assert len({session.key for session in sessions}) == 1
    assert sessions[0].label is not None
    for name in others:
        beside, _ = recorded(f"{folder}/{name}")
        assert beside.label == sessions[0].label
        assert beside.key != sessions[0].key


@pytest.mark.shared
@pytest.mark.parametrize(
    "folder",
    [
        "openai-python-3.52.0/chat-tool-loop",
        "pydantic-ai-2.68.0/chat-tool",
        "pydantic-ai-2.68.0/anthropic-tool",
        "inspect-ai-0.3.285/openai-api-provider",
        "openai-agents-0.24.0/chat-tool",
        "anthropic-python-2.11.0/tool-loop",
    ],
)
def test_tool_loops_of_plain_sdks_are_found_by_what_was_said(folder: str) -> None:
    """Noting the recorded answer to the first request makes the second one, which bears no name, warm."""
    first, second = sorted((CLIENTS / folder).glob("*.json"))[:2]
    session, body = recorded(str(first.relative_to(CLIENTS)))
    assert session.key is None
    if "choices" in body:
        calls = body["choices"][0]["message"]["tool_calls"]
        names = [call["function"]["name"] for call in calls]
    else:
        names = [block["name"] for block in body["content"] if block["type"] == "tool_use"]
    tool_calls = tuple(ToolCall(id="x", name=name, arguments="{}") for name in names)
    sessions = Sessions(config=SessionsConfig())
    sessions.note(session, Reply(worker="ant", text="", finish_reason="tool_calls", tool_calls=tool_calls))
    later, _ = recorded(str(second.relative_to(CLIENTS)))
    assert later.label is None
    assert sessions.warm(later) == Warm(worker="ant")
