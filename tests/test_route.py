"""What a request would do and about cost, without doing it: the estimate, /v1/route, `fugu route`, and the record."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import shlex
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from runs import PRICES, Planned, Waiting, plan
from serving import HI, Server, running
from torafugu.cli import main
from torafugu.errors import WorkerError
from torafugu.events import Accepted, Called, Failed, Replied, Stopped
from torafugu.orchestrate import Budget, Run
from torafugu.orchestrate.budget import RunBudget
from torafugu.orchestrate.estimate import Estimate, estimate_plan
from torafugu.pool.backend import Backend
from torafugu.pool.home import home_pool_path
from torafugu.pool.prices import Price, resolve_price
from torafugu.pool.scripted import Failing, Scripted
from torafugu.pool.spec import Prices, WorkerSpec
from torafugu.server import KeySpec
from torafugu.store import WorkerHistory, open_reader, open_store
from torafugu.store.schema import connect
from torafugu.types import Answer, Message, Plan, Reply, Request, Sampling, Step, Usage

QUESTION = "What is 17 * 23?"
CONDUCT = Step(id=0, worker="maestro", role="conductor", messages=(Message(role="user", content="plan"),))
WORKFLOW = (
    Step(id=1, worker="exact", instruction="Compute.", alternates=("spare",)),
    Step(id=2, worker="fluent", instruction="Say it.", sees=(1,), is_final=True),
)


# --- the estimate ---


def history(output_tokens: float | None, seconds: float | None, replies: int = 3) -> WorkerHistory:
    return WorkerHistory(replies=replies, output_tokens=output_tokens, seconds=seconds)


def spec(id: str, **fields: Any) -> WorkerSpec:
    return WorkerSpec(id=id, dialect="scripted", model="m", prices=PRICES, **fields)


def estimate(
    planned: Plan,
    histories: Mapping[str, WorkerHistory],
    *,
    specs: Mapping[str, WorkerSpec] | None = None,
    budget: Budget = Budget(),  # noqa: B008  # frozen
    text: str = QUESTION,
    sampling: Sampling = Sampling(),  # noqa: B008  # frozen
) -> Estimate:
    known = specs or {id: spec(id) for id in "abcd"}
    request = Request(model="m", messages=(Message(role="user", content=text),), sampling=sampling)
    run = Run(request, run_id="run_1", budget=RunBudget(budget))

    def price_of(worker: str) -> Price | None:
        return resolve_price(known[worker])

    return estimate_plan(planned, run, specs=known, price_of=price_of, histories=histories)


def test_one_step_costs_its_prompt_and_its_usual_reply() -> None:
    """A step costs its characters / 4 as input and the worker's mean as output; it takes the worker's mean time."""
    it = estimate(plan(Step(id=0, worker="a", is_final=True)), {"a": history(250.4, 1.5)}, text="x" * 4001)
    assert it.cost_usd == Decimal("0.001001") + Decimal("0.0025")  # 1001 tokens at $1, 250 at $10 per million
    assert it.seconds == 1.5
    assert (it.basis.covers, it.basis.tokens, it.basis.replies) == ("run", "characters / 4", {"a": 3})
    assert (it.basis.no_history, it.basis.no_price) == ((), ())


def test_what_a_step_sees_is_paid_for_again() -> None:
    """A step that sees another's reply has that reply's expected length in its prompt."""
    blind = plan(Step(id=0, worker="a"), Step(id=1, worker="b", instruction="go", is_final=True))
    sees = plan(Step(id=0, worker="a"), Step(id=1, worker="b", instruction="go", sees=(0,), is_final=True))
    past = {"a": history(10_000, 1), "b": history(10, 1)}
    less, more = estimate(blind, past).cost_usd, estimate(sees, past).cost_usd
    assert less is not None
    assert more is not None
    assert Decimal("0.01") <= more - less < Decimal("0.0102")  # 10000 tokens at $1 per million, and their frame


DIAMOND = (
    Step(id=0, worker="a"),
    Step(id=1, worker="b", sees=(0,)),
    Step(id=2, worker="c", sees=(0,)),
    Step(id=3, worker="d", sees=(1, 2), is_final=True),
)
TIMES = {"a": history(1, 1.0), "b": history(1, 5.0), "c": history(1, 2.0), "d": history(1, 0.5)}


@pytest.mark.parametrize(
    ("planned", "seconds"),
    [
        (plan(*DIAMOND), 6.5),
        (plan(*DIAMOND, parallel=1), 8.5),
        (plan(*(Step(id=i, worker=w) for i, w in enumerate("abcd")), quorum=3), 2.0),
        (plan(*(Step(id=i, worker="a") for i in range(5)), parallel=2), 3.0),
        (plan(Step(id=0, worker="b"), Step(id=1, worker="a"), Step(id=2, worker="c", sees=(1,)), parallel=2), 5.0),
    ],
    ids=["longest path", "one at a time", "the quorum leaves one behind", "two places", "a place is not kept"],
)
def test_time_is_that_of_the_longest_path(planned: Plan, seconds: float) -> None:
    """Steps that wait for one another add up, others run side by side, as many as may."""
    assert estimate(planned, TIMES).seconds == seconds


def test_unknown_stays_unknown() -> None:
    """A worker without replies or without a price makes the sums unknown, and is named."""
    specs = {"a": spec("a"), "b": WorkerSpec(id="b", dialect="scripted", model="m")}
    planned = plan(Step(id=0, worker="a"), Step(id=1, worker="b", is_final=True))
    it = estimate(planned, {"a": history(None, None, replies=0), "b": history(5, 1)}, specs=specs)
    assert (it.cost_usd, it.seconds, it.cost_usd_at_most) == (None, None, None)
    assert (it.basis.no_history, it.basis.no_price) == (("a",), ("b",))
    assert it.basis.no_limit == ("a", "b")
    missing = estimate(plan(Step(id=0, worker="a")), {}, specs=specs)
    assert (missing.basis.replies, missing.basis.no_history) == ({"a": 0}, ("a",))


def test_what_is_free_costs_nothing_and_hides_nothing() -> None:
    """A free worker costs 0 however long its reply; who pays to read a reply of unknown length has an unknown cost."""
    free = WorkerSpec(id="a", dialect="home", model="m", prices=Prices(input=Decimal(0), output=Decimal(0)))
    specs = {"a": free, "b": spec("b", max_output_tokens=10)}
    never = history(None, None, replies=0)
    alone = estimate(plan(Step(id=0, worker="a", is_final=True)), {"a": never}, specs=specs)
    assert (alone.cost_usd, alone.cost_usd_at_most, alone.basis.no_limit) == (0, 0, ())
    reads = plan(Step(id=0, worker="a"), Step(id=1, worker="b", instruction="go", sees=(0,), is_final=True))
    read = estimate(reads, {"a": never, "b": history(5, 1)}, specs=specs)
    assert (read.cost_usd, read.cost_usd_at_most, read.basis.no_limit) == (None, None, ("b",))


def test_a_plan_that_is_not_the_last_says_so() -> None:
    """Without a final step the policy decides again, so the estimate is of the first plan only."""
    assert estimate(plan(Step(id=0, worker="a", role="thinker")), {}).basis.covers == "first_plan"


def test_the_most_is_with_every_limit_reached() -> None:
    """The bound takes the longest replies and the dearest worker that may stand in; shorter replies lower it."""
    specs = {
        "a": spec("a", max_output_tokens=100),
        "b": WorkerSpec(
            id="b",
            dialect="scripted",
            model="m",
            max_output_tokens=1000,
            prices=Prices(input=Decimal(5), output=Decimal(50)),
        ),
    }
    alone = estimate(plan(Step(id=0, worker="a", is_final=True)), {"a": history(50, 1)}, specs=specs)
    backed = estimate(plan(Step(id=0, worker="a", alternates=("b",), is_final=True)), {}, specs=specs)
    assert alone.cost_usd is not None
    assert alone.cost_usd_at_most is not None
    assert alone.cost_usd < alone.cost_usd_at_most < Decimal("0.003")  # 100 tokens at $10, input far below 2000
    assert backed.cost_usd_at_most is not None
    assert backed.cost_usd_at_most > Decimal("0.05")  # 1000 tokens at $50
    short = estimate(
        plan(Step(id=0, worker="a", is_final=True)), {}, specs=specs, sampling=Sampling(max_output_tokens=10)
    )
    assert short.cost_usd_at_most is not None
    assert alone.cost_usd_at_most - short.cost_usd_at_most == Decimal("0.0009")


def test_a_budget_is_the_most() -> None:
    """A run's budget bounds what it may cost, also where nothing else does; free workers cost nothing at most."""
    planned = plan(Step(id=0, worker="a", is_final=True))
    assert estimate(planned, {}).cost_usd_at_most is None
    assert estimate(planned, {}, budget=Budget(usd=Decimal("0.01"))).cost_usd_at_most == Decimal("0.01")
    free = {"a": WorkerSpec(id="a", dialect="home", model="m", prices=Prices(input=Decimal(0), output=Decimal(0)))}
    assert estimate(planned, {"a": history(5, 1)}, specs=free).cost_usd_at_most == 0


def test_a_verifier_of_the_same_plan_can_be_estimated() -> None:
    """What judges a reply that does not exist yet is rendered with one of the expected length."""
    planned = plan(Step(id=0, worker="a"), Step(id=1, worker="b", role="verifier", sees=(0,)))
    it = estimate(planned, {"a": history(1000, 1), "b": history(1, 1)})
    assert it.cost_usd is not None
    assert it.cost_usd > Decimal("0.011")


def test_long_replies_are_estimated_quickly() -> None:
    """Stand-ins of a million characters are rendered without trouble."""
    planned = plan(*(Step(id=i, worker="a", instruction="go", sees=tuple(range(i))) for i in range(4)))
    assert estimate(planned, {"a": history(250_000, 1)}).cost_usd is not None


# --- the record ---

_IDS = itertools.count()


async def _record(path: Path, *runs: list[Any]) -> None:
    async with open_store(path) as store:
        for events in runs:
            recorder = store.recorder(f"run_{next(_IDS):026x}")  # sorted by age, also within a millisecond
            for event in events:
                recorder.write(event)
            await recorder.wait_durable()


def _replies(worker: str, tokens: list[int | None], latency_ms: float = 500.0) -> list[Any]:
    events: list[Any] = [Accepted(request=Request(model="m", messages=()), policy="p")]
    for id, output_tokens in enumerate(tokens):
        usage = Usage(input_tokens=1, output_tokens=output_tokens)
        reply = Reply(worker=worker, text="", finish_reason="stop", usage=usage, latency_ms=latency_ms)
        events += [
            Called(step=id, worker=worker, attempt=1, reason="planned"),
            Replied(step=id, attempt=1, reply=reply),
        ]
    return events


def test_a_history_is_of_the_latest_replies(tmp_path: Path) -> None:
    """Means are over a worker's last 200 replies; failures, calls in flight and other workers do not count."""
    lost = Failed(
        step=9000,
        worker="a",
        attempt=1,
        fault="worker",
        code="x",
        message="",
        latency_ms=9e9,
        usage=Usage(output_tokens=9),
    )
    asked = [Called(step=9000 + i, worker="a", attempt=1, reason="planned") for i in range(2)]
    old = _replies("a", [10**6] * 7, latency_ms=9e6)
    young = _replies("a", [100] * 150 + [300] * 50)
    asyncio.run(_record(tmp_path / "r.db", old, [*young, *asked, lost], _replies("b", [None, 7])))

    async def read() -> dict[str, WorkerHistory]:
        async with open_reader(tmp_path / "r.db") as reader:
            return await reader.histories(["a", "b", "never"])

    assert asyncio.run(read()) == {
        "a": WorkerHistory(replies=200, output_tokens=150.0, seconds=0.5),
        "b": WorkerHistory(replies=2, output_tokens=7.0, seconds=0.5),
        "never": WorkerHistory(replies=0, output_tokens=None, seconds=None),
    }


def test_histories_are_found_by_an_index(tmp_path: Path) -> None:
    """A worker's replies are looked up, not searched for among all attempts."""
    connection = connect(tmp_path / "r.db", busy_timeout_s=1)
    wanted = "SELECT output_tokens FROM attempts WHERE worker = ? AND outcome = 'replied' ORDER BY rowid DESC LIMIT 200"
    (steps,) = connection.execute(f"EXPLAIN QUERY PLAN {wanted}", ("a",)).fetchall()  # ours
    connection.close()
    assert "USING INDEX attempts_replied" in steps[-1]


OLD_RUNS = """
CREATE TABLE runs (
    id TEXT PRIMARY KEY, accepted_at REAL NOT NULL, model TEXT NOT NULL, policy TEXT NOT NULL, key_id TEXT,
    session TEXT, body_sha256 TEXT, owner TEXT NOT NULL,
    status TEXT NOT NULL CHECK (
        status IN ('running', 'answered', 'failed', 'client_closed', 'interrupted', 'budget')
    ),
    stopped_by TEXT, workers TEXT NOT NULL DEFAULT '[]', calls INTEGER, input_tokens INTEGER, output_tokens INTEGER,
    cost_usd TEXT, latency_ms REAL, error_code TEXT
);
CREATE INDEX runs_running ON runs (owner) WHERE status = 'running';
PRAGMA user_version = 1;
"""


def _make_old(path: Path) -> list[tuple[Any, ...]]:
    """A store as version 1 left it, with a few runs. Returns its rows."""
    asyncio.run(_record(path, *([*_replies("a", [n]), _end()] for n in (1, 2)), _replies("a", [3])))
    connection = sqlite3.connect(path, isolation_level=None)
    rows = connection.execute("SELECT * FROM runs ORDER BY rowid").fetchall()
    connection.executescript(f"DROP INDEX attempts_replied; DROP TABLE runs; {OLD_RUNS}")
    marks = ", ".join("?" * len(rows[0]))
    connection.executemany(f"INSERT INTO runs VALUES ({marks})", rows)  # noqa: S608  # marks only
    connection.close()
    return rows


def _end(by: str = "answer") -> Stopped:
    return Stopped(by=by, latency_ms=1.0, calls=1, usage=Usage(), cost_usd=None)


def test_a_store_of_version_1_is_read_and_brought_up_to_date(tmp_path: Path) -> None:
    """An older record can be looked at as it is; opening it to write keeps every row, and takes routed runs."""
    path = tmp_path / "r.db"
    rows = _make_old(path)
    before = path.read_bytes()

    async def read() -> tuple[list[str], int]:
        async with open_reader(path) as reader:
            runs = await reader.list_runs(10)
            return [run.id for run in runs], (await reader.histories(["a"]))["a"].replies

    assert asyncio.run(read()) == ([row[0] for row in reversed(rows)], 3)
    assert path.read_bytes() == before, "looking changes nothing"
    asyncio.run(_record(path, [Accepted(request=Request(model="m", messages=()), policy="p"), _end("routed")]))
    connection = sqlite3.connect(path)
    after = connection.execute("SELECT * FROM runs ORDER BY rowid").fetchall()
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    indexes = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
    connection.close()
    assert {"runs_running", "attempts_replied"} <= indexes
    running_before = [row[:8] for row in rows]
    assert [row[:8] for row in after[:-1]] == running_before
    assert [row[8] for row in after] == ["answered", "answered", "interrupted", "routed"]


# --- the endpoint ---


def workers() -> dict[str, Backend]:
    return {
        "maestro": Scripted(lambda query: "a plan", usage=Usage(input_tokens=100, output_tokens=10)),
        "exact": Scripted(lambda query: "391", usage=Usage(input_tokens=40, output_tokens=200)),
        "fluent": Scripted(lambda query: "It is 391.", usage=Usage(input_tokens=60, output_tokens=8)),
        "spare": Scripted(lambda query: "391"),
        "mute": Failing(WorkerError("down", worker="mute", code="server_error")),
    }


KEYS = (
    KeySpec(name="all", sha256=hashlib.sha256(b"k" * 32).hexdigest()),
    KeySpec(name="some", sha256=hashlib.sha256(b"s" * 32).hexdigest(), workers=("maestro", "spare")),
)
ALL, SOME = {"x-api-key": "k" * 32}, {"x-api-key": "s" * 32}


class First:
    """A policy that asks the first worker that is allowed."""

    id = "first@1"

    async def decide(self, run: Run) -> Plan | Answer:
        allowed = [id for id in workers() if run.request.allowed is None or id in run.request.allowed]
        if run.replies:
            return Answer(step=0)
        return plan(Step(id=0, worker=allowed[0], is_final=True), scores=dict.fromkeys(allowed, 0.5))


POLICIES = {
    "fugu": First(),
    "fugu-ultra": Planned(plan(CONDUCT), plan(*WORKFLOW), answer=2),
    "mute-ultra": Planned(plan(Step(id=0, worker="mute", role="conductor", messages=CONDUCT.messages))),
    "returns": Planned(plan(CONDUCT), answer=0),
}


@dataclass
class Served:
    server: Server
    workers: Mapping[str, Backend]

    def route(self, model: str, headers: Mapping[str, str] = ALL, **fields: Any) -> tuple[int, Mapping[str, str], Any]:
        return self.server.request("POST", "/v1/route", {"model": model, "messages": HI, **fields}, headers)

    def called(self, *ids: str) -> list[int]:
        backends = [self.workers[id] for id in ids]
        return [len(backend.queries) for backend in backends if isinstance(backend, Scripted)]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    backends = workers()
    prices = dict.fromkeys(backends, PRICES)
    with running(tmp_path, backends, policies=POLICIES, prices=prices, keys=KEYS) as server:
        yield Served(server, backends)


def test_a_route_calls_nobody_but_the_conductor(served: Served) -> None:
    """The decision, an estimate from the record and the conductor's cost are told; no step of the plan is called."""
    headers = {**ALL, "content-type": "application/json"}
    asked = {"model": "fugu-ultra", "messages": HI}
    served.server.request("POST", "/v1/chat/completions", asked, headers)
    before = served.called("maestro", "exact", "fluent", "spare")
    status, answered, body = served.route("fugu-ultra")
    assert status == 200
    assert served.called("maestro", "exact", "fluent", "spare") == [before[0] + 1, *before[1:]]
    assert body["object"] == "route"
    assert (body["model"], body["policy"], body["run_id"]) == ("fugu-ultra", "planned", answered["x-fugu-run-id"])
    assert body["decision"] == {
        "steps": [
            {
                "step": 1,
                "worker": "exact",
                "role": "worker",
                "sees": [],
                "subtask": "Compute.",
                "alternates": ["spare"],
            },
            {"step": 2, "worker": "fluent", "role": "worker", "sees": [1], "subtask": "Say it.", "alternates": []},
        ],
        "scores": None,
    }
    usage = {"input_tokens": 100, "cached_input_tokens": None, "output_tokens": 10, "reasoning_tokens": None}
    assert body["conductor"] == {"calls": 1, "cost_usd": Decimal("0.0002"), "usage": usage}
    assert Decimal(answered["x-fugu-cost-usd"]) == Decimal("0.0002")
    assert answered["x-fugu-workers"] == "maestro"
    estimate = body["estimate"]
    assert Decimal("0.002") < estimate["cost_usd"] < estimate["cost_usd_at_most"]  # 208 tokens at $10 are all but 0.002
    assert estimate["seconds"] >= 0
    assert estimate["basis"] == {
        "covers": "run",
        "tokens": "characters / 4",
        "replies": {"exact": 1, "fluent": 1},
        "no_history": [],
        "no_price": [],
        "no_limit": [],
    }


def test_a_route_is_on_record(served: Served) -> None:
    """It is a run like any other, listed and shown by the status `routed`, with its plan and its cost."""
    run_id = served.route("fugu-ultra", stream=True, user="u")[2]["run_id"]
    for _ in range(200):
        record = served.server.request("GET", f"/v1/runs/{run_id}", headers=ALL)[2]
        if record["run"]["status"] != "running":
            break
    assert (record["run"]["status"], record["run"]["stopped_by"]) == ("routed", "routed")
    assert (record["run"]["calls"], record["run"]["workers"], record["run"]["key_id"]) == (1, ["maestro"], "all")
    assert record["events"][0]["event"]["request"]["ignored"] == ["stream", "user"]
    kinds = [entry["event"]["kind"] for entry in record["events"]]
    assert kinds == ["accepted", "planned", "called", "replied", "planned", "stopped"]
    listed = served.server.request("GET", "/v1/runs?status=routed", headers=ALL)[2]["data"]
    assert [row["id"] for row in listed] == [run_id]


def test_one_step_is_routed_without_any_call(served: Served) -> None:
    """A selector's decision costs nothing; its scores are told; a worker that never replied leaves the sums unknown."""
    status, headers, body = served.route("fugu")
    assert (status, body["decision"]["steps"][0]["worker"]) == (200, "maestro")
    assert body["decision"]["scores"]["exact"] == Decimal("0.5")
    assert body["conductor"]["calls"] == 0
    assert (body["conductor"]["cost_usd"], headers["x-fugu-cost-usd"]) == (0, "0")
    assert (body["estimate"]["cost_usd"], body["estimate"]["seconds"]) == (None, None)
    assert body["estimate"]["basis"]["no_history"] == ["maestro"]
    assert "x-fugu-workers" not in headers
    direct = served.route("spare")[2]
    assert (direct["policy"], direct["decision"]["steps"][0]["worker"]) == ("direct:spare", "spare")


def test_a_route_obeys_its_key(served: Served) -> None:
    """A key routes among its own workers, other workers do not exist for it, and no key is no answer."""
    assert served.route("fugu", SOME)[2]["decision"]["scores"].keys() == {"maestro", "spare"}
    status, _, body = served.route("fugu-ultra", SOME)
    assert (status, body["error"]["code"]) == (502, "bad_plan")
    assert served.route("exact", SOME)[0] == 404
    assert served.route("fugu", {})[0] == 401


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"messages": []}, (400, "invalid_request", "messages")),
        ({"n": 2}, (400, "unsupported", "n")),
        ({"model": "gpt-99"}, (404, "model_not_found", "model")),
        ({"model": "mute-ultra"}, (502, "server_error", None)),
    ],
)
def test_a_bad_route_is_told_as_of_completions(
    served: Served, fields: dict[str, Any], expected: tuple[int, str, str | None]
) -> None:
    """What is wrong with a request, or with the conductor, has the same status, code and field as there."""
    question = {"model": "fugu-ultra", "messages": HI, **fields}
    told = [served.server.request("POST", f"/v1/{path}", question, ALL) for path in ("route", "chat/completions")]
    assert [(status, body["error"]["code"], body["error"]["param"]) for status, _, body in told] == [expected] * 2


def test_a_policy_that_calls_nobody_more_has_no_decision(served: Served) -> None:
    """Where the conductor's reply is the answer, there is nothing to route and nothing to estimate."""
    status, _, body = served.route("returns")
    assert (status, body["decision"], body["estimate"], body["conductor"]["calls"]) == (200, None, None, 1)


def test_a_budget_that_ends_with_the_conductor_is_told(tmp_path: Path) -> None:
    """A run that may call no more after its conductor is a 504, and its header says which budget."""
    with running(tmp_path, workers(), policies=POLICIES, budget=Budget(calls=1)) as server:
        status, headers, body = server.request("POST", "/v1/route", {"model": "fugu-ultra", "messages": HI})
    assert (status, body["error"]["code"]) == (504, "budget_exhausted")
    assert headers["x-fugu-stopped-by"] == "budget:calls"


class Hanging(Waiting):
    """A conductor that never replies; tells other threads."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.cancelled = threading.Event(), threading.Event()  # type: ignore[assignment]  # set, is_set


def test_whoever_leaves_a_route_ends_it(tmp_path: Path) -> None:
    """A client that leaves cancels the conductor's call, and gives its place back."""
    conductor = Hanging()
    backends = {**workers(), "maestro": conductor}
    with running(tmp_path, backends, policies=POLICIES, max_in_flight=1) as server:
        with server.connect({"model": "fugu-ultra", "messages": HI}, "/v1/route"):
            assert conductor.called.wait(5)
            assert server.request("POST", "/v1/route", {"model": "spare", "messages": HI})[0] == 503
        assert conductor.cancelled.wait(5)
        server.wait_status(server.newest_run(), "client_closed")
        assert server.request("POST", "/v1/route", {"model": "spare", "messages": HI})[0] == 200


# --- the command ---


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str


def test_the_command_says_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`fugu route` shows step, estimate and what is not known; with --json, the endpoint's body; both are on record."""
    monkeypatch.chdir(tmp_path)
    pool = f"--pool {home_pool_path()}"

    def fugu(line: str) -> Said:
        capsys.readouterr()
        status = main(shlex.split(line))
        return Said(status, *capsys.readouterr())

    said = fugu(f"route {pool} --model exact-math '{QUESTION}'")
    assert said.status == 0
    assert said.out.splitlines()[:3] == [
        "exact-math by direct:exact-math",
        "  0 exact-math as worker",
        "estimate: unknown, time unknown",
    ]
    assert "no tokens or times on record: exact-math" in said.out
    assert fugu(f"ask {pool} --model exact-math '{QUESTION}'").status == 0
    body = json.loads(fugu(f"route {pool} --model exact-math '{QUESTION}' --json").out)
    assert (body["object"], body["estimate"]["basis"]["replies"]) == ("route", {"exact-math": 1})
    assert body["estimate"]["seconds"] is not None
    listed = fugu("runs list --status routed").out
    assert body["run_id"] in listed
    assert listed.count("routed") == 2
    assert "stopped   by routed" in fugu(f"runs show {body['run_id']}").out
    missing = fugu(f"route {pool} --model nobody x")
    assert (missing.status, missing.out) == (2, "")
    assert fugu(f"route {pool} ''").status == 2
