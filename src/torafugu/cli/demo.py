"""`fugu demo`: the main job from end to end, with no key and no network, in a few minutes.

profile the home pool -> train the selector -> measure it -> serve it -> ask it as any client does -> its record
-> on questions of several parts: the conductor that ships, beside every worker and a selector trained on such questions
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..conductors import HOME_CONDUCTOR, find_folder, read_conductor_card
from ..errors import ConfigError
from ..grade.by_task import TaskGrader
from ..grade.task import Task
from ..pool.home import home_pool_path
from ..pool.spec import read_pool
from ..store import StoredRun, open_reader
from ..types import Json, Reply
from .arguments import at_least_one, seed_number
from .console import err, out, percent, print_table
from .evaluate import measure, print_report, promote
from .runs import print_run
from .setup import home_pool
from .train import load_tasks, run_profile, train_selector_command

__all__ = ["add_parser"]

_QUESTIONS = 6
_MULTI_INSTALLATION = """\
pool = "pool.toml"
policy = "policy-multi"
record = "runs-multi.sqlite"
[conductor]
worker = "home-conductor"
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="see it all work, with no key and no network",
        description="Profile the home pool on generated tasks, train the selector, measure it, serve it, ask it "
        "questions through the openai client, and show the record of one run. Then questions of several parts: "
        "measure the conductor that ships beside every worker and such a selector, and show one of its workflows.",
    )
    parser.add_argument("--n", type=at_least_one, default=900, help="how many tasks (default 900)")
    parser.add_argument("--seed", type=seed_number, default=0)
    parser.add_argument("--out", type=Path, help="keep everything in this folder (default: a temporary one)")
    parser.set_defaults(run=_command)


def _command(args: argparse.Namespace) -> int:
    _check_client()
    read_conductor_card(find_folder(HOME_CONDUCTOR, Path()))  # found out now, not after the first half
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fugu-demo-") as temporary:
        folder = args.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        status = _demo(folder, n=args.n, seed=args.seed) or _demo_ultra(folder, n=args.n, seed=args.seed)
    err.print(f"done in {time.monotonic() - started:.0f} s{f', all of it in {folder}' if args.out else ''}")
    return status


def _demo(folder: Path, *, n: int, seed: int) -> int:
    data, policy, record = folder / "profile", folder / "policy", folder / "runs.sqlite"
    out.print("\n1. What can each worker of the home pool do?", style="bold")
    tasks = load_tasks("home", n=n, seed=seed)
    status = run_profile(read_pool(home_pool_path()), tasks, data, repeats=1, max_usd=None, is_confirmed=True)
    if status:
        return status
    out.print("\n2. Learn whom to ask", style="bold")
    train_selector_command(data, policy, datasets=[], seed=seed, has_evolution=True, cache=folder / "states")
    out.print("\n3. Is it any good, on questions it has never seen?", style="bold")
    report = measure(policy, data, datasets=[], split="test", seed=seed, cache=folder / "states")
    print_report(report)
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    promote(policy, report, force=False)
    out.print("\n4. Serve it, and ask it as any OpenAI client does", style="bold")
    serving = ["--pool", str(home_pool_path()), "--policy", str(policy), "--record", str(record)]
    with _server(serving) as url:
        run_id = _ask(url, _one_of_each([task for task in tasks if task.split == "test"]), model="fugu")
    out.print(f"\n5. The record of one run: fugu runs show {run_id}", style="bold")
    print_run(_read_run(record, run_id))
    return 0


def _demo_ultra(folder: Path, *, n: int, seed: int) -> int:
    """Questions of several parts, of which most workers understand one: a workflow answers what no worker can."""
    (folder / "pool.toml").write_text(home_pool())
    (folder / "fugu.toml").write_text(_MULTI_INSTALLATION)
    data, policy = folder / "profile-multi", folder / "policy-multi"
    out.print("\n6. Questions of several parts: learn whom to ask, if it can be only one", style="bold")
    tasks = load_tasks("home-multi", n=n // 2, seed=seed)
    status = run_profile(read_pool(home_pool_path()), tasks, data, repeats=1, max_usd=None, is_confirmed=True)
    if status:
        return status
    train_selector_command(data, policy, datasets=[], seed=seed, has_evolution=False, cache=folder / "states")
    measured = measure(policy, data, datasets=[], split="test", seed=seed, cache=folder / "states")
    promote(policy, measured, force=False)  # or it says why not
    out.print("\n7. fugu-ultra: a language model that was trained to divide the work", style="bold")
    status, report = _measure_ultra(folder, data, n=n // 4, seed=seed)
    if status:
        return status
    _print_effort(report)
    right = {row["id"] for row in report["tasks"] if row["scores"]["fugu-ultra"] == 1}
    if not right:
        raise ConfigError("fugu-ultra answered nothing: there is no workflow to show")
    out.print("\n8. The workflow of one of the hardest that came out right", style="bold")
    hardest = max((task for task in tasks if task.id in right), key=lambda task: task.meta["steps"])
    with _server(["--config", str(folder / "fugu.toml")]) as url:
        run_id = _ask(url, [hardest], model="fugu-ultra")
    print_run(_read_run(folder / "runs-multi.sqlite", run_id))
    return 0


def _measure_ultra(folder: Path, data: Path, *, n: int, seed: int) -> tuple[int, dict[str, Json]]:
    """What anybody would type; the tables are its own. (Exit status, its JSON.)"""
    from . import create_parser

    result = folder / "ultra.json"
    result.with_name("ultra.episodes.jsonl").unlink(missing_ok=True)  # of another time in the same folder
    command = ["eval", "--policy", "fugu-ultra", "--config", str(folder / "fugu.toml"), "--tasks", "home-multi"]
    command += ["--n", str(n), "--seed", str(seed), "--data", str(data), "--json", str(result)]
    for rival in (*(worker.id for worker in read_pool(home_pool_path()).worker), "fugu"):
        command += ["--against", rival]
    out.print(f"$ fugu {' '.join(command)}", style="dim")
    args = create_parser().parse_args(command)
    status: int = args.run(args)
    return status, json.loads(result.read_text())


def _print_effort(report: dict[str, Json]) -> None:
    """Does it take more steps where the task has more?"""
    flows = report["workflows"]["fugu-ultra"]
    single = report["best_single"]["worker"]
    rows = []
    for level in flows["steps_by_difficulty"]:
        ids = [task for task in report["tasks"] if task["steps"] == level["difficulty"]]
        scores = ([task["scores"][name] for task in ids] for name in ("fugu-ultra", "fugu", single))
        known = ([score for score in each if score is not None] for each in scores)
        shares = [percent(sum(each) / len(each)) if each else "-" for each in known]
        rows.append([f"{level['difficulty']:.0f}", str(len(ids)), f"{level['steps_mean']:.2f}", *shares])
    heads = ["parts of the task", "n", "steps of its workflow", "fugu-ultra", "fugu", single]
    print_table("effort and accuracy by difficulty", heads, rows)


@contextmanager
def _server(arguments: list[str]) -> Iterator[str]:
    """A real server in a process of its own. Yields its base URL."""
    command = [sys.executable, "-m", "torafugu.cli", "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if " at http" not in line:
                raise ConfigError(f"the server did not start: exit status {process.wait()}")
            out.print(line.strip())
            yield line.split(" at ")[1].split(",")[0]
        finally:
            process.terminate()


def _one_of_each(tasks: list[Task]) -> list[Task]:
    """A few, of different families."""
    by_family = {task.family: task for task in tasks}
    return list(by_family.values())[:: max(len(by_family) // _QUESTIONS, 1)][:_QUESTIONS]


def _ask(url: str, tasks: list[Task], *, model: str) -> str:
    """Returns the id of the last run."""
    import openai

    os.environ.setdefault("NO_PROXY", "127.0.0.1")
    grader, run_id = TaskGrader(), ""
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        for task in tasks:
            raw = client.chat.completions.with_raw_response.create(
                model=model, messages=[{"role": "user", "content": task.prompt}]
            )
            text = raw.parse().choices[0].message.content or ""
            run_id = raw.headers["x-fugu-run-id"]
            worker, cost = raw.headers["x-fugu-workers"], raw.headers.get("x-fugu-cost-usd", "unknown")
            verdict = grader.grade(task, Reply(worker=worker, text=text, finish_reason="stop"))
            mark = "right" if verdict.correct else "wrong"
            question = " ".join(task.prompt.split())
            out.print(f"\nQ: {question[:160]}{'…' if len(question) > 160 else ''}")
            out.print(f"A: {' '.join(text.split())[:160]}")
            out.print(f"   {mark}, by {worker}, ${cost}, run {run_id}", style="dim")
    return run_id


def _read_run(record: Path, run_id: str) -> StoredRun:
    async def read() -> StoredRun | None:
        async with open_reader(record) as reader:
            return await reader.get_run(run_id)

    stored = asyncio.run(read())
    if stored is None:
        raise ConfigError(f"{record}: run {run_id} is not in it")
    return stored


def _check_client() -> None:
    for package in ("openai", "reasoning_gym"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"{package} is not installed: pip install 'torafugu[home,eval]'")
