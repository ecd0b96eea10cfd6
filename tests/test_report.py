"""The whole report, from a folder with a head and a folder of answers, and where its numbers say they come from."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from heads import Texts, make_head
from recorded_set import write_set
from torafugu.errors import ConfigError, ModelError
from torafugu.eval.provenance import describe_data, find_commit
from torafugu.eval.report import evaluate
from torafugu.orchestrate.head import Head
from torafugu.pool.recorded import read_recorded

SKILLS = {
    "ant": {"sum": 0.9, "spell": 0.1, "who": 0.5},
    "bee": {"sum": 0.2, "spell": 0.9, "who": 0.5},
    "cat": {"sum": 0.5, "spell": 0.5, "who": 0.6},
}


class Silent:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.units = 0

    def stage(self, name: str, total: int) -> None:
        self.stages.append((name, total))

    def advance(self, units: int) -> None:
        self.units += units

    def say(self, line: str) -> None:
        del line


def save_head(folder: Path, workers: tuple[str, ...] = tuple(SKILLS)) -> Head:
    head = make_head(workers)
    card = msgspec.structs.replace(head.card, baselines={"best_single": {"worker": "cat", "accuracy": 0.5}})
    head = Head.create(head.features, head.weight, card)
    head.save(folder)
    return head


def report_on(policy: Path, data: Path, *, split: str = "test", report: Silent | None = None) -> dict[str, Any]:
    return evaluate(
        policy,
        read_recorded(data),
        split=split,
        encoder=Texts(),
        seed=0,
        cache=None,
        report=report or Silent(),
    )


def test_report(tmp_path: Path) -> None:
    """A report has every promised number, all baselines, and says what it is of: policy, data, split, seed, commit."""
    head = save_head(tmp_path / "policy")
    data, told = write_set(tmp_path / "data", SKILLS, per_family=25), Silent()
    report = report_on(tmp_path / "policy", data, report=told)
    assert report["n"] == 15
    assert {"accuracy", "calls_mean", "cost_usd", "oracle"} <= set(report)
    assert set(report["best_single"]) >= {"worker", "accuracy"}
    assert set(report["gain"]) >= {"mean", "low", "high"}
    assert report["gain"]["mean"] == pytest.approx(report["accuracy"] - report["best_single"]["accuracy"])
    assert all(0 <= accuracy <= report["oracle"] for accuracy in (report["accuracy"], *report["workers"].values()))
    measured = {name for name, accuracy in report["baselines"].items() if accuracy is not None}
    assert measured == {"random", "best_per_category", "vote_3", "knn", "svm_linear", "svm_rbf"}
    assert report["policy"]["id"] == f"fugu@{head.id}"
    assert (report["split"], report["seed"], report["data"]["name"]) == ("test", 0, "data")
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert told.units == sum(total for _, total in told.stages) == 75 + 15


@pytest.mark.parametrize("split", ["test", "hidden"])
def test_one_split_only(tmp_path: Path, split: str) -> None:
    """A folder that holds nothing but the split to be measured, whatever its name, is measured.

    The best single worker is then the head's own; baselines that must choose are not measured, and say why.
    """
    save_head(tmp_path / "policy")
    data = write_set(tmp_path / "data", SKILLS, per_family=6, splits=(split,))
    report = report_on(tmp_path / "policy", data, split=split)
    assert (report["n"], report["best_single"]["worker"]) == (18, "cat")
    assert report["best_single_chosen_on"] == "the head's card"
    assert {name for name, accuracy in report["baselines"].items() if accuracy is not None} == {"random"}
    assert report["baselines_not_measured"]["knn"] == "no training questions to choose on"


def test_holes(tmp_path: Path) -> None:
    """Where a third of the answers was never recorded, the report is still whole, and no number of it is NaN."""
    save_head(tmp_path / "policy")
    data = write_set(tmp_path / "data", SKILLS, per_family=40, missing=0.33)
    report = report_on(tmp_path / "policy", data)
    assert report["n"] + report["unscored"]["count"] == 24
    assert report["best_single"]["asked_share"] < 1
    json.dumps(report, allow_nan=False)


def test_worker_that_the_head_does_not_know(tmp_path: Path) -> None:
    """A worker of the data that the head was not trained for is never asked, and is named; it is still measured."""
    save_head(tmp_path / "policy", ("ant", "bee"))
    report = report_on(tmp_path / "policy", write_set(tmp_path / "data", SKILLS))
    assert report["workers_unknown_to_head"] == ["cat"]
    assert "cat" not in report["shares"]
    assert "cat" in report["workers"]


def test_what_cannot_be_measured(tmp_path: Path) -> None:
    """Another split, other workers and another model behind a worker are errors that say so."""
    save_head(tmp_path / "policy")
    data = write_set(tmp_path / "data", SKILLS)
    with pytest.raises(ConfigError, match="no questions of split 'x': the folder has test, train, validation"):
        report_on(tmp_path / "policy", data, split="x")
    others = write_set(tmp_path / "others", {"dog": {"sum": 1.0}})
    with pytest.raises(ConfigError, match=r"knows none of the workers of .*others: dog"):
        report_on(tmp_path / "policy", others)
    models = json.loads((data / "models.json").read_text())
    models["models"]["ant"]["model"] = "ant-2"
    (data / "models.json").write_text(json.dumps(models))
    with pytest.raises(ModelError, match="'ant' was 'ant-1' in training and is 'ant-2'"):
        report_on(tmp_path / "policy", data)


def test_same_answers_whatever_the_order(tmp_path: Path) -> None:
    """The order of questions and answers in the files changes no number."""
    save_head(tmp_path / "policy")
    data = write_set(tmp_path / "data", SKILLS)
    reports = []
    for _ in range(2):
        reports.append(report_on(tmp_path / "policy", data))
        for path in data.glob("*.jsonl"):
            path.write_bytes(b"".join(reversed(path.read_bytes().splitlines(keepends=True))))
    changing = {"seconds", "data", "command"}
    one, other = ({k: v for k, v in report.items() if k not in changing} for report in reports)
    assert one == {**other, "accuracy": pytest.approx(other["accuracy"])}


def test_data_is_described(tmp_path: Path) -> None:
    """The data is named by what is in its files, so that another collection of the same name is told apart."""
    data = write_set(tmp_path / "data", SKILLS, ending=".jsonl.xz")
    told = describe_data(read_recorded(data))
    names = ("outcomes.jsonl.xz", "questions.jsonl.xz")
    assert told["sha256"] == {name: hashlib.sha256((data / name).read_bytes()).hexdigest() for name in names}
    assert (told["name"], told["datasets"], told["questions"]) == ("data", ["made-up"], 60)
    assert told["workers"] == ["ant", "bee", "cat"]


def test_commit() -> None:
    """A number names the commit it was made by, and says when the tree was not that commit; a package has none."""
    commit = find_commit()
    in_tree = (Path(__file__).resolve().parents[1] / ".git").exists()
    assert (commit is not None) == in_tree
    assert commit is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)
