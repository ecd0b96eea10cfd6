"""Recorded answers: what is read, what is refused and how it is named, and the workers that replay them."""

from __future__ import annotations

import asyncio
import gzip
import json
import lzma
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from recorded_set import OPENERS, outcome, question, write_rows, write_set
from torafugu.envs.recorded import recorded_tasks
from torafugu.episode import run_episode, task_to_request
from torafugu.errors import ConfigError, GradeError, WorkerError
from torafugu.events import Planned, Replied
from torafugu.grade.recorded import RecordedGrader
from torafugu.orchestrate import Direct, Run, orchestrate
from torafugu.orchestrate.prompts import parse_suggestion, parse_verdict
from torafugu.orchestrate.render import step_to_query
from torafugu.pool import Delta, Query
from torafugu.pool.recorded import RecordedSet, create_recorded_pool, read_recorded, replay
from torafugu.types import Message, Plan, Reply, Request, Step, Usage

SKILLS = {"ant": {"sum": 1.0, "spell": 0.0}, "bee": {"sum": 0.5, "spell": 0.5}}


def small(folder: Path, **fields: Any) -> Path:
    """Two questions and three answers: bee was never asked the second question."""
    write_rows(folder, "questions", [question("q/1", **fields), question("q/2")])
    rows = [
        outcome("q/1", "ant", 1, answer="4", in_tokens=1000, out_tokens=100),
        outcome("q/1", "bee", 0, answer="5", out_tokens=100),
        outcome("q/2", "ant", 0.25),
    ]
    write_rows(folder, "outcomes", rows)
    return folder


# --- reading ---


@pytest.mark.parametrize("ending", OPENERS)
def test_endings(tmp_path: Path, ending: str) -> None:
    """Plain, xz and gzip files hold the same set."""
    read = read_recorded(write_set(tmp_path / "a", SKILLS, ending=ending))
    plain = read_recorded(write_set(tmp_path / "b", SKILLS))
    assert (read.questions, read.samples, read.workers) == (plain.questions, plain.samples, plain.workers)
    assert len(read.questions) == 40
    assert read.workers == ("ant", "bee")
    assert len(read.samples) == 80


def test_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    """Workers come in alphabetical order and samples by k, however the rows are ordered; other columns are ignored."""
    write_rows(tmp_path, "questions", [question("q", colour="red")])
    rows = [outcome("q", "bee", 1), outcome("q", "ant", 0, k=2), outcome("q", "ant", 1, k=0, strict=1)]
    write_rows(tmp_path, "outcomes", [*rows, outcome("elsewhere", "cat", 1)])
    read = read_recorded(tmp_path)
    assert read.workers == ("ant", "bee")  # cat answered no question of this set
    assert [(s.k, s.correct) for s in read.samples["q", "ant"]] == [(0, 1), (2, 0)]
    assert read.models == {"ant": "ant", "bee": "bee"}
    assert read.prices == {}


def test_datasets(tmp_path: Path) -> None:
    """Only the questions of the named datasets are read, and only the workers who answered them."""
    write_rows(tmp_path, "questions", [question("1"), question("2", dataset="e"), question("3", dataset="f")])
    write_rows(tmp_path, "outcomes", [outcome("1", "ant", 1), outcome("2", "bee", 1), outcome("3", "cat", 1)])
    read = read_recorded(tmp_path, datasets=["f", "e"])
    assert [q.qid for q in read.questions] == ["2", "3"]
    assert read.workers == ("bee", "cat")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"prompt": "Why?"}, "Why?"),
        ({"prompt": "Why?", "context": ""}, "Why?"),
        ({"prompt": "Why?", "context": "It rains."}, "It rains.\n\nWhy?"),
        ({"prompt": "Why?", "options": ["no", "yes"]}, "Why?\n\nA. no\nB. yes"),
        ({"prompt": "Why?", "options": {"A": "no", "X": "yes"}}, "Why?\n\nA. no\nX. yes"),
        ({"prompt": "Why?", "options": [], "context": "It rains."}, "It rains.\n\nWhy?"),
        ({"prompt": "Why?", "options": {"A": "no"}, "context": "It rains."}, "It rains.\n\nWhy?\n\nA. no"),
    ],
)
def test_question_text(tmp_path: Path, fields: dict[str, Any], text: str) -> None:
    """A worker is asked context, question and options; options in a list are lettered from A."""
    read = read_recorded(small(tmp_path, **fields))
    assert read.questions[0].text == text
    assert recorded_tasks(read)[0].prompt == text


def test_tasks_by_split(tmp_path: Path) -> None:
    """The tasks of a split are its questions, or all questions where no split is named."""
    read = read_recorded(write_set(tmp_path, SKILLS))
    assert {task.split for task in recorded_tasks(read, "test")} == {"test"}
    assert len(recorded_tasks(read, "test", "validation")) == 16
    assert len(recorded_tasks(read)) == 40
    task = recorded_tasks(read, "validation")[0]
    assert (task.id, task.family, task.category, task.dataset, task.gold) == (
        "spell/3",
        "spell",
        "about spell",
        "made-up",
        "gold 3",
    )


@pytest.mark.parametrize("place", ["folder", "parent"])
def test_prices_and_models(tmp_path: Path, place: str) -> None:
    """`models.json` in the folder or beside it says which model stands behind a worker and what it costs, exactly."""
    folder = small(tmp_path / "set")
    models = {
        "ant": {"model": "ant-1", "price_usd_per_million": {"input": 0.1, "output": 0.30, "source": "list"}},
        "bee": {"price_usd_per_million": None},
        "cat": {"model": "not in this set"},
    }
    (folder if place == "folder" else tmp_path).joinpath("models.json").write_text(json.dumps({"models": models}))
    read = read_recorded(folder)
    assert read.models == {"ant": "ant-1", "bee": "bee"}
    assert {w: (p.input, p.output) for w, p in read.prices.items()} == {"ant": (Decimal("0.1"), Decimal("0.3"))}


# --- what is refused ---


def append(name: str, line: bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.write(line)

    return spoil


def row(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def compress(opener: Callable[..., Any], ending: str, damage: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        plain = folder / "outcomes.jsonl"
        path = folder / f"outcomes.jsonl{ending}"
        with opener(path, "wb") as file:
            file.write(plain.read_bytes() * 50)
        plain.unlink()
        path.write_bytes(damage(path.read_bytes()))

    return spoil


def cut(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def overwrite(raw: bytes) -> bytes:
    middle = len(raw) // 2
    return raw[:middle] + b"\xff" * 8 + raw[middle + 8 :]


MALFORMED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no questions file": (lambda f: (f / "questions.jsonl").unlink(), r"no questions.jsonl, questions.jsonl.xz or"),
    "no outcomes file": (lambda f: (f / "outcomes.jsonl").unlink(), r"no outcomes.jsonl, outcomes.jsonl.xz or"),
    "two endings": (
        lambda f: (f / "outcomes.jsonl.gz").write_bytes(b""),
        "both outcomes.jsonl and outcomes.jsonl.gz: keep one",
    ),
    "no questions": (lambda f: (f / "questions.jsonl").write_bytes(b"\n"), "no questions"),
    "no outcomes": (lambda f: (f / "outcomes.jsonl").write_bytes(b""), "no outcome belongs to any of the 2 questions"),
    "outcomes of other questions": (
        lambda f: write_rows(f, "outcomes", [outcome("x", "ant", 1)]),
        "no outcome belongs to any of the 2 questions",
    ),
    "bad JSON": (append("outcomes.jsonl", b"{'qid': 'q/2'}\n"), "outcomes.jsonl: line 4: JSON is malformed"),
    "half a line": (append("questions.jsonl", b'{"qid": "q/3", "pro'), "questions.jsonl: line 3: Input data was trunc"),
    "not text": (append("questions.jsonl", b'{"qid": "\xff"}\n'), "questions.jsonl: line 3: "),
    "not an object": (append("questions.jsonl", b'["q"]\n'), "questions.jsonl: line 3: Expected `object`"),
    "no qid": (append("questions.jsonl", row(prompt="p", split="test")), "line 3: .*missing required field `qid`"),
    "no split": (append("questions.jsonl", row(qid="q/3", prompt="p")), "line 3: .*missing required field `split`"),
    "prompt of a wrong type": (
        append("questions.jsonl", row(qid="q/3", prompt=["p"], split="test")),
        r"line 3: Expected `str`, got `array` - at `\$.prompt`",
    ),
    "options of a wrong type": (
        append("questions.jsonl", row(qid="q/3", prompt="p", split="test", options="A")),
        r"line 3: Expected .* - at `\$.options`",
    ),
    "no score": (append("outcomes.jsonl", row(qid="q/2", model="bee")), "line 4: .*missing required field `correct`"),
    "score of a wrong type": (append("outcomes.jsonl", row(qid="q/2", model="b", correct="yes")), r"line 4: .*correct"),
    "score above 1": (append("outcomes.jsonl", row(qid="q/2", model="b", correct=7)), r"line 4: Expected .* <= 1.0"),
    "score below 0": (append("outcomes.jsonl", row(qid="q/2", model="b", correct=-1)), r"line 4: Expected .* >= 0.0"),
    "score of NaN": (append("outcomes.jsonl", row(qid="q/2", model="b", correct="nan")), r"line 4: .*correct"),
    "question twice": (append("questions.jsonl", row(**question("q/2"))), "question id 'q/2' stands twice"),
    "outcome twice": (append("outcomes.jsonl", row(**outcome("q/1", "ant", 0))), r"'q/1#ant#0' .* stands twice"),
    "cut xz": (compress(lzma.open, ".xz", cut), "outcomes.jsonl.xz: after line 0: Compressed file ended before"),
    "cut gzip": (compress(gzip.open, ".gz", cut), "outcomes.jsonl.gz: after line 0: Compressed file ended before"),
    "damaged xz": (compress(lzma.open, ".xz", overwrite), "outcomes.jsonl.xz: after line 0: Corrupt input data"),
    "damaged gzip": (compress(gzip.open, ".gz", overwrite), "outcomes.jsonl.gz: after line 0: "),
    "not xz at all": (lambda f: (f / "questions.jsonl").rename(f / "questions.jsonl.xz"), "after line 0: Input format"),
    "not gzip at all": (lambda f: (f / "questions.jsonl").rename(f / "questions.jsonl.gz"), "Not a gzipped file"),
    "a folder for a file": (
        lambda f: [(f / "outcomes.jsonl").unlink(), (f / "outcomes.jsonl").mkdir()],
        "outcomes.jsonl: after line 0: .*directory",
    ),
    "models of a wrong shape": (lambda f: (f / "models.json").write_text('{"ant": {}}'), "models.json: .*`models`"),
    "half a price": (
        lambda f: (f / "models.json").write_text('{"models": {"ant": {"price_usd_per_million": {"input": 1}}}}'),
        "models.json: .*missing required field `output`",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    """Whatever is wrong with a folder is one ConfigError that names the file, the line where there is one, and why."""
    folder = small(tmp_path / "set")
    spoil(folder)
    with pytest.raises(ConfigError, match=message) as caught:
        read_recorded(folder)
    assert str(folder) in caught.value.message


def test_not_a_folder(tmp_path: Path) -> None:
    """A path that is no folder is said to be none, and what is expected there."""
    with pytest.raises(ConfigError, match=r"nothing: not a folder: expected one that holds questions.jsonl"):
        read_recorded(tmp_path / "nothing")


def test_unknown_dataset(tmp_path: Path) -> None:
    """A dataset that the folder does not have is refused, with those that it has."""
    with pytest.raises(ConfigError, match="no dataset 'x': the folder has d"):
        read_recorded(small(tmp_path), datasets=["d", "x"])


def test_texts_that_are_not_there(tmp_path: Path) -> None:
    """Asking for texts that were never recorded is an error, not an empty answer."""
    with pytest.raises(ConfigError, match=r"no texts\.jsonl"):
        read_recorded(small(tmp_path), with_texts=True)


# --- replay ---


def ask(recorded: RecordedSet, worker: str, query: Query) -> Any:
    return asyncio.run(replay(recorded)[worker].complete(query, None))


def asking(text: str, task: str | None = None) -> Query:
    return Query(messages=(Message(role="user", content=text),), task=task)


def test_replay_by_task_and_by_text(tmp_path: Path) -> None:
    """A question is found by its task id or, when a client asks, by its text; both give the recorded answer."""
    recorded = read_recorded(small(tmp_path))
    for query in (asking("whatever", task="q/1"), asking("question q/1")):
        completion = ask(recorded, "ant", query)
        assert (completion.text, completion.provider_id) == ("4", "q/1#ant#0")
        assert completion.usage == Usage(input_tokens=1000, output_tokens=100)
        assert (completion.finish_reason, completion.sent_bytes) == ("stop", 0)


@pytest.mark.parametrize("query", [asking("question q/2"), asking("question q/2", task="q/2"), asking("unheard of"),
                                   asking("question q/1", task="unheard of")])  # fmt: skip
def test_answer_that_is_missing(tmp_path: Path, query: Query) -> None:
    """A question that a worker was never asked is unavailable from it: not wrong, and not another question's answer."""
    with pytest.raises(WorkerError, match="no recorded answer to this question") as caught:
        ask(read_recorded(small(tmp_path)), "bee", query)
    assert (caught.value.code, caught.value.worker) == ("unavailable", "bee")


def test_texts_are_replayed(tmp_path: Path) -> None:
    """With texts the worker says what it said, in pieces when streamed; without, its extracted answer."""
    folder = small(tmp_path)
    write_rows(folder, "texts", [{"qid": "q/1", "texts": {"ant": "Two and two is four: 4. " * 5}}])
    heard: list[str] = []

    async def on_delta(delta: Delta) -> None:
        heard.append(delta.text)

    backend = replay(read_recorded(folder, with_texts=True))["ant"]
    completion = asyncio.run(backend.complete(asking("question q/1"), on_delta))
    assert completion.text == "".join(heard) == "Two and two is four: 4. " * 5
    assert len(heard) == 5
    assert ask(read_recorded(folder), "ant", asking("question q/1")).text == "4"


def test_same_text_twice(tmp_path: Path) -> None:
    """Of questions with the same text a client gets the first; by task each is itself."""
    write_rows(tmp_path, "questions", [question("1", prompt="same"), question("2", prompt="same")])
    write_rows(tmp_path, "outcomes", [outcome("1", "ant", 1, answer="a"), outcome("2", "ant", 0, answer="b")])
    recorded = read_recorded(tmp_path)
    assert ask(recorded, "ant", asking("same")).text == "a"
    assert ask(recorded, "ant", asking("same", task="2")).text == "b"


def test_a_worker_whose_id_cannot_be_one_is_named_with_the_folder(tmp_path: Path) -> None:
    """Such outcomes are refused with the folder, the file and what an id may hold."""
    write_rows(tmp_path, "questions", [question("q1")])
    write_rows(tmp_path, "outcomes", [outcome("q1", "ä/ö", 1)])
    with pytest.raises(ConfigError, match=r"outcomes: id 'ä/ö': expected 1-100 letters"):
        create_recorded_pool(read_recorded(tmp_path))


def test_cost_of_a_replay(tmp_path: Path) -> None:
    """A replayed call costs what the tokens cost at the folder's prices; unknown tokens are an unknown cost."""
    folder = small(tmp_path)
    prices = {"price_usd_per_million": {"input": 1.5, "output": 10}}
    (folder / "models.json").write_text(json.dumps({"models": {"ant": prices, "bee": prices}}))
    recorded = read_recorded(folder)
    pool = create_recorded_pool(recorded)
    task = recorded_tasks(recorded)[0]
    ant = asyncio.run(orchestrate(task_to_request(task), Direct("ant"), pool))
    assert ant.cost_usd == Decimal("0.0025")
    bee = asyncio.run(orchestrate(task_to_request(task), Direct("bee"), pool))
    assert bee.cost_usd is None  # its input tokens were not recorded


@pytest.mark.parametrize(
    ("verifies", "verdict"), [("4", "ACCEPT"), ("5", "REJECT"), ("4.0", "ACCEPT"), ("", "REJECT"), (None, "REJECT")]
)
def test_replayed_verifier(tmp_path: Path, verifies: str | None, verdict: str) -> None:
    """As Verifier a worker has solved the question itself: it accepts what says the same as it, and says its own."""
    query = Query(messages=asking("quoted").messages, task="q/1", role="verifier", verifies=verifies)
    completion = ask(read_recorded(small(tmp_path)), "ant", query)
    assert completion.text == f"{verdict}\nMy own answer is <answer>4</answer>"
    assert parse_verdict(completion.text) == verdict.lower()
    assert completion.answer == "4"
    assert completion.usage == Usage(input_tokens=1000, output_tokens=100)


@pytest.mark.parametrize("verifies", ["", None, "4"])
def test_replayed_verifier_without_an_answer(tmp_path: Path, verifies: str | None) -> None:
    """A worker whose own answer is missing accepts nothing, a missing answer least of all."""
    query = Query(messages=asking("quoted").messages, task="q/2", role="verifier", verifies=verifies)
    completion = ask(read_recorded(small(tmp_path)), "ant", query)
    assert parse_verdict(completion.text) == "reject"
    assert completion.answer == ""


def test_replayed_thinker(tmp_path: Path) -> None:
    """As Thinker it says what it once answered: nothing that was recorded is advice, so nothing is suggested."""
    query = Query(messages=asking("quoted").messages, task="q/1", role="thinker")
    completion = ask(read_recorded(small(tmp_path)), "ant", query)
    assert (completion.text, parse_suggestion(completion.text)) == ("4", None)


def test_replayed_verifier_of_a_client(tmp_path: Path) -> None:
    """A recorded worker that is served knows the client's question in every role."""
    recorded = read_recorded(small(tmp_path))
    run = Run(Request(model="m", messages=asking("question q/1").messages), run_id="r")
    run.record(Planned(plan=Plan(steps=(Step(id=0, worker="bee"),)), decision_ms=0.0))
    run.record(Replied(step=0, attempt=1, reply=Reply(worker="bee", text="5", finish_reason="stop", answer="5")))
    query = step_to_query(Step(id=1, worker="ant", role="verifier", sees=(0,)), run)
    assert parse_verdict(ask(recorded, "ant", query).text) == "reject"


# --- verdicts ---


def test_verdicts_are_looked_up(tmp_path: Path) -> None:
    """Each answer gets the very score that was recorded with it, partial ones too."""
    recorded = read_recorded(small(tmp_path))
    pool, grader = create_recorded_pool(recorded), RecordedGrader(recorded)
    first, second = recorded_tasks(recorded)
    results = [
        asyncio.run(run_episode(task, Direct(worker), pool, grader))
        for task, worker in ((first, "ant"), (first, "bee"), (second, "ant"), (second, "bee"))
    ]
    assert [(e.score, e.correct) for e in results] == [(1, True), (0, False), (0.25, False), (None, None)]
    assert (results[3].fault, results[3].code) == ("worker", "unavailable")
    assert (results[3].calls, results[3].workers) == (1, ("bee",))  # it was called, though nothing came back


@pytest.mark.parametrize("provider_id", [None, "", "q/1#ant#1", "q/2#ant#0", "q/1"])
def test_verdict_of_another_answer(tmp_path: Path, provider_id: str | None) -> None:
    """An answer that was not recorded for this task has no verdict: it is dropped, not called wrong."""
    recorded = read_recorded(small(tmp_path))
    reply = Reply(worker="ant", text="4", finish_reason="stop", provider_id=provider_id)
    with pytest.raises(GradeError, match="task 'q/1': no recorded verdict"):
        RecordedGrader(recorded).grade(recorded_tasks(recorded)[0], reply)


def test_ids_that_begin_alike(tmp_path: Path) -> None:
    """A verdict belongs to one question, though its id begin like another's."""
    write_rows(tmp_path, "questions", [question("q"), question("q#2")])
    write_rows(tmp_path, "outcomes", [outcome("q#2", "ant", 1)])
    recorded = read_recorded(tmp_path)
    reply = Reply(worker="ant", text="4", finish_reason="stop", provider_id="q#2#ant#0")
    first, second = recorded_tasks(recorded)
    with pytest.raises(GradeError):
        RecordedGrader(recorded).grade(first, reply)
    assert RecordedGrader(recorded).grade(second, reply).correct


def test_request_of_a_task(tmp_path: Path) -> None:
    """A task becomes one user message with its text alone; its id travels beside it, its gold answer not at all."""
    task = recorded_tasks(read_recorded(small(tmp_path, gold="secret")))[0]
    expected = Request(model="", messages=(Message(role="user", content="question q/1"),), task="q/1")
    assert task_to_request(task) == expected
