"""`fugu eval --tasks`: a policy run live, beside single workers and whatever else it is compared with.

Here are the options, the tasks and what it may cost; who is run stands in `evaluate_live_lineup`, running is
`eval/live`, the numbers are `eval/live_report`. Every episode is kept as it ends, so running the same command again
goes on where it stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import msgspec

from .. import __version__
from ..errors import ConfigError
from ..eval.live import Job, LiveLimits, LiveLog, LiveTally, open_live_log, plan_live, run_live
from ..eval.live_costs import TYPICAL_OUTPUT_TOKENS, LiveEstimate, estimate_live
from ..eval.live_report import BestSingle, Measured, choose_by_data, choose_by_rows, report_live
from ..eval.live_settings import fingerprint, hash_json
from ..eval.matrix import build_matrix
from ..eval.provenance import find_commit
from ..eval.states import default_cache
from ..grade.by_task import TaskGrader
from ..grade.task import Task
from ..orchestrate.artefact import read_card
from ..orchestrate.conductor import EFFORTS, USUAL_EFFORT
from ..orchestrate.policies import KINDS
from ..pool.prices import resolve_price
from ..pool.recorded import read_recorded
from ..pool.spec import NETWORK_DIALECTS
from ..types import Json
from .arguments import at_least_one, usd_limit
from .console import Stages, err, usd
from .evaluate_live_lineup import Lineup, Wanted, line_up
from .evaluate_live_tables import print_live
from .installation import Installation, Opened, open_installation, read_installation
from .train import load_tasks, wants_to_go_on

__all__ = ["add_live_arguments", "live_command", "refuse_live_options"]

GENERATED = ("home", "home-multi")
USUAL_TASKS = 200
"""Of generated ones. A gain of ten points over 200 tasks has an interval of six or seven to each side."""
_LIVE = ("n", "config", "pool", "conductor", "start", "effort", "choose_n", "max_usd", "record", "concurrency")
_LIVE_SWITCHES = ("against", "random_workers", "yes")
_REPLAYED = ("plot", "report", "promote", "force")


def add_live_arguments(parser: argparse.ArgumentParser) -> None:
    live = parser.add_argument_group("live, with --tasks")
    live.add_argument(
        "--tasks",
        help="run live on these: `home` or `home-multi` (generated), or a file of your own, as `fugu profile`",
    )
    live.add_argument(
        "--n",
        type=at_least_one,
        help=f"tasks of the split at most (default {USUAL_TASKS} generated ones, all of a file)",
    )
    live.add_argument("--config", type=Path, help="installation file (default ./fugu.toml)")
    live.add_argument("--pool", type=Path, help="pool file, instead of the installation's")
    live.add_argument(
        "--conductor", metavar="WORKER", help="worker that writes the workflows of `fugu-ultra`, likewise"
    )
    live.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="NAME",
        help="compare with this worker or policy only (repeatable; default every single worker)",
    )
    live.add_argument(
        "--start",
        metavar="WORKER|FILE",
        help="another conductor, such as the one before training: a worker of the pool, or a TOML file with a "
        "[conductor]; the difference is split into form and orchestration",
    )
    live.add_argument(
        "--random-workers", action="store_true", help="also run the same conductor with workers drawn at random"
    )
    live.add_argument(
        "--effort",
        choices=tuple(EFFORTS),
        help=f"of `fugu-ultra`, as a request's reasoning effort: how many steps and rounds (default {USUAL_EFFORT})",
    )
    live.add_argument(
        "--choose-n",
        type=at_least_one,
        help="tasks of train and validation on which the best single worker is chosen, without --data (default 100)",
    )
    live.add_argument("--concurrency", type=at_least_one, help="episodes at one time (default 8)")
    live.add_argument("--max-usd", type=usd_limit, help="begin no further episode once this run has spent this")
    live.add_argument("--yes", action="store_true", help="do not ask before calling workers that may cost money")
    live.add_argument("--record", type=Path, help="record every run in this file (default: runs are not recorded)")


def refuse_live_options(args: argparse.Namespace) -> None:
    """Raises ConfigError: an option is given that only means something live."""
    given = [name for name in _LIVE if getattr(args, name) is not None]
    given += [name for name in _LIVE_SWITCHES if getattr(args, name)]
    if given:
        raise ConfigError(f"{_flags(given)}: only with --tasks, which runs a policy live")


def live_command(args: argparse.Namespace) -> int:
    if given := [name for name in _REPLAYED if getattr(args, name)]:
        raise ConfigError(f"{_flags(given)}: only without --tasks, for a head on recorded outcomes")
    if args.dataset and args.data is None:
        raise ConfigError("--dataset goes with --data")
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)  # found out now, not after the work
        if args.json.is_dir():
            raise ConfigError(f"{args.json}: a folder: expected the name of a file to write")
    name, installation = _find_installation(args)
    tasks, choice = _find_tasks(args)
    started = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        if args.record is None:
            installation = replace(installation, record=Path(scratch) / "runs.sqlite")
        report = asyncio.run(_evaluate(args, name, installation, tasks, choice))
    if report is None:
        return 1
    report |= {"commit": find_commit(), "command": sys.argv, "seconds": round(time.time() - started, 1)}
    print_live(report)
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    return 0 if report["is_complete"] else 1


def _flags(names: Sequence[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)


def _find_installation(args: argparse.Namespace) -> tuple[str, Installation]:
    """(Name of the policy, what it is opened from.) A folder is a head, served under the name that its card says."""
    folder = Path(args.policy)
    heads: dict[str, Path] = {}
    name = str(args.policy)
    if (folder / "card.json").exists():
        name = KINDS[read_card(folder, *KINDS).kind]
        heads["policy" if name == "fugu" else "trinity"] = folder
    installation = read_installation(
        args.config,
        pool=args.pool,
        policy=heads.get("policy"),
        trinity=heads.get("trinity"),
        conductor=args.conductor,
        record=args.record,
    )
    return name, installation


def _find_tasks(args: argparse.Namespace) -> tuple[list[Task], list[Task]]:
    """(Those that are measured, those that the best single worker may be chosen on.)

    Raises:
        ConfigError: the source has none of the split.
    """
    wanted, choose_n = args.n, args.choose_n or 100
    if args.tasks in GENERATED:
        wanted = wanted or USUAL_TASKS
        size = max(5 * wanted, 2 * choose_n)  # a fifth is of the split `test`
        found = load_tasks(args.tasks, n=size, seed=args.seed)
        if not any(task.split == args.split for task in found):
            raise ConfigError(f"--split {args.split}: generated tasks have train, validation and test")
        while sum(task.split == args.split for task in found) < wanted:  # the same tasks, and more
            size += size // 2
            found = load_tasks(args.tasks, n=size, seed=args.seed)
    else:
        found = load_tasks(args.tasks, n=None, seed=args.seed)
    tasks = [task for task in found if task.split == args.split][:wanted]
    if not tasks:
        splits = ", ".join(sorted({task.split for task in found}))
        raise ConfigError(f"{args.tasks}: no tasks of split {args.split!r}: it has {splits}")
    prompts = {task.prompt for task in tasks}
    others = [task for task in found if task.split in ("train", "validation") and task.split != args.split]
    return tasks, [task for task in others if task.prompt not in prompts][:choose_n]


# --- running ---


async def _evaluate(
    args: argparse.Namespace, name: str, installation: Installation, tasks: list[Task], choice: list[Task]
) -> dict[str, Json] | None:
    """None: nothing was run, or not enough to say anything; which has been said."""
    async with open_installation(installation) as opened:
        wanted = Wanted(
            against=args.against,
            start=args.start,
            random_workers=args.random_workers,
            effort=args.effort,
            seed=args.seed,
        )
        lineup = line_up(wanted, name, opened)
        best = _choose_without_running(args, lineup, tasks)
        asked_first = choice if best is None and lineup.singles else []
        if best is None and lineup.singles and not choice:
            raise ConfigError(
                f"{args.tasks}: no tasks of train and validation to choose the best single worker on: give --data, a "
                "folder of recorded outcomes, or name one worker with --against"
            )
        settings = _settings(args, lineup, opened, tasks, asked_first)
        log = open_live_log(_log_path(args.json, settings), settings)
        try:
            first = plan_live(lineup.singles, asked_first, log)
            jobs = plan_live([lineup.ours, *lineup.others], tasks, log)
            if not _may_begin(args, lineup, opened, [*first, *jobs]):
                return None
            tally = await _run(args, opened, log, first, jobs)
        finally:
            log.close()
    if tally.stopped_by and plan_live(lineup.singles, asked_first, log):
        err.print("stopped by --max-usd before the best single worker was chosen: run the same command again to go on")
        return None
    if best is None and lineup.singles:
        chosen_on = f"{len(asked_first)} tasks of train and validation, none of them measured"
        names = [single.name for single in lineup.singles]
        best = choose_by_rows(log.rows, names, asked_first, chosen_on=chosen_on)
    measured = Measured(
        ours=lineup.entry(lineup.ours),
        others=[lineup.entry(contestant) for contestant in lineup.others],
        tasks=tasks,
        rows=log.rows,
        best=best,
    )
    left = plan_live([lineup.ours, *lineup.others], tasks, log) + plan_live(lineup.singles, asked_first, log)
    if args.json is None and not left:
        log.path.unlink()  # it was kept to go on with, and all is done
    return {
        "kind": "live",
        "policy": {"name": name, "id": lineup.ours.policy.id, "effort": lineup.ours.effort},
        "split": args.split,
        "seed": args.seed,
        "concurrency": args.concurrency or 8,
        **report_live(measured, seed=args.seed),
        "tasks": [_task_row(task, measured) for task in tasks],
        "settings": settings,
        "not_run_alone": list(lineup.not_alone),
        "is_complete": not left,
        "not_run": sum((job.contestant.name, job.task.id) not in log.rows for job in left),
        "stopped_by": tally.stopped_by,
        "spent": {"cost_usd": float(tally.cost_usd), "episodes": tally.done, "unknown_cost": tally.unknown_cost},
        "episodes_file": str(log.path) if log.path.exists() else None,
    }


def _choose_without_running(args: argparse.Namespace, lineup: Lineup, tasks: Sequence[Task]) -> BestSingle | None:
    """None: it has to be found out, or there is no single worker."""
    names = [single.name for single in lineup.singles]
    if len(names) == 1:
        return BestSingle(worker=names[0], chosen_on="nothing: no other worker is compared", candidates={})
    if args.data is None or not names:
        return None
    return choose_by_data(build_matrix(read_recorded(args.data, datasets=args.dataset)), names, tasks)


async def _run(
    args: argparse.Namespace, opened: Opened, log: LiveLog, first: Sequence[Job], jobs: Sequence[Job]
) -> LiveTally:
    """The choice of the best single worker, then what is measured; one tally of both."""
    limits = LiveLimits(budget=opened.installation.budget, concurrency=args.concurrency or 8, max_usd=args.max_usd)
    record = None if args.record is None else opened.store.recorder
    total = LiveTally()
    with Stages() as stages:
        for title, part in (("choose the best single worker", first), ("run", jobs)):
            if not part or total.stopped_by:
                continue
            stages.stage(title, len(part))
            left = None if args.max_usd is None else max(Decimal(0), args.max_usd - total.cost_usd)

            def show(tally: LiveTally, title: str = title) -> None:
                stages.describe(f"{title} {usd(tally.cost_usd)}")
                stages.advance(1)

            tally = await run_live(
                part,
                opened.pool,
                TaskGrader(),
                log,
                limits=replace(limits, max_usd=left),
                record=record,
                progress=show,
            )
            total.done += tally.done
            total.cost_usd += tally.cost_usd
            total.unknown_cost += tally.unknown_cost
            total.faults += tally.faults
            total.stopped_by = tally.stopped_by
    return total


def _task_row(task: Task, measured: Measured) -> dict[str, Json]:
    names = [measured.ours.name, *(entry.name for entry in measured.others)]
    rows = {name: measured.rows.get((name, task.id)) for name in names}
    return {
        "id": task.id,
        "family": task.family,
        "steps": task.meta.get("steps"),
        "scores": {name: None if row is None else row.episode.score for name, row in rows.items()},
    }


# --- what it is allowed to cost ---


def _may_begin(args: argparse.Namespace, lineup: Lineup, opened: Opened, jobs: Sequence[Job]) -> bool:
    """Says what it would cost, and asks where somebody would be paid.

    Raises:
        ConfigError: a limit that cannot be kept, or nobody can be asked.
    """
    if lineup.not_alone:
        err.print(f"not run as single workers, for they only conduct: {', '.join(lineup.not_alone)}")
    if not jobs:
        err.print("every episode is there already")
        return True
    specs, price_of = opened.pool.specs, functools.cache(lambda worker: resolve_price(opened.pool.specs[worker]))
    workers = {worker for calls in lineup.calls.values() for kind in calls for worker in kind.workers}
    is_paid = any(specs[worker].dialect in NETWORK_DIALECTS for worker in workers)
    unpriced = sorted(w for w in workers if price_of(w) is None)
    if args.max_usd is not None and unpriced:
        raise ConfigError(
            f"--max-usd {args.max_usd} cannot be kept: the price of {', '.join(unpriced)} is unknown; declare `prices` "
            "in the pool file"
        )
    estimate = estimate_live(
        [(job.task, lineup.calls[job.contestant.name]) for job in jobs],
        specs=specs,
        price_of=price_of,
        usd_per_run=opened.installation.budget.usd,
    )
    err.print(f"{len(jobs)} episodes, estimated cost {_say_estimate(estimate, is_paid=is_paid)}")
    if not is_paid or estimate.at_most == 0 or args.yes or wants_to_go_on():
        return True
    err.print("nothing was run")
    return False


def _say_estimate(estimate: LiveEstimate, *, is_paid: bool) -> str:
    most = "nothing bounds it" if estimate.at_most is None else f"at most {usd(estimate.at_most)}"
    invented = "" if is_paid else ", at invented prices: nobody is paid"
    return f"{usd(estimate.typical)} ({most}; {TYPICAL_OUTPUT_TOKENS} tokens per reply{invented})"


# --- what makes two evaluations the same ---


def _settings(
    args: argparse.Namespace, lineup: Lineup, opened: Opened, tasks: Sequence[Task], choice: Sequence[Task]
) -> dict[str, Json]:
    """All that an episode hangs on: rows made under other settings are not mixed in."""
    base = None if opened.installation.pool is None else opened.installation.pool.parent
    return {
        "version": __version__,
        "commit": find_commit(),
        "tasks": {"source": args.tasks, "split": args.split, "n": len(tasks), "sha256": hash_json(tasks)},
        "choice": {"n": len(choice), "sha256": hash_json(choice)},
        "policies": {c.name: c.policy.id for c in (lineup.ours, *lineup.others)},
        "effort": args.effort or USUAL_EFFORT,
        "workers": {id: fingerprint(spec, base or Path()) for id, spec in opened.pool.specs.items()},
        "budget": msgspec.to_builtins(opened.installation.budget, builtin_types=()),
    }


def _log_path(json_file: Path | None, settings: Mapping[str, Json]) -> Path:
    """Beside the numbers; else, until all is done, in the cache."""
    if json_file is not None:
        return json_file.with_name(f"{json_file.stem}.episodes.jsonl")
    return default_cache().parent / "evals" / f"{hash_json(settings)}.jsonl"
