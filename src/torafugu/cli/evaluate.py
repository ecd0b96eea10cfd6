"""`fugu eval`: how good is a policy, honestly? The table, the JSON artefact, the picture, and the headroom gate.

With `--tasks` the policy is run live (`evaluate_live`); without, outcomes that were recorded are replayed for a head.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import msgspec

from ..errors import ConfigError
from ..eval.report import evaluate
from ..eval.states import default_cache
from ..orchestrate.artefact import read_card, write_card
from ..orchestrate.policies import KINDS
from ..pool.recorded import read_recorded
from .arguments import seed_number
from .console import Stages, err, out, percent, print_table, usd
from .evaluate_live import add_live_arguments, live_command, refuse_live_options

__all__ = ["add_parser", "measure", "print_report", "promote"]

EXIT_REFUSED = 3
MIN_QUESTIONS = 30
"""Below it an interval can be narrow by accident: three lucky answers of three have none at all."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "eval",
        help="measure a policy against everything it has to beat",
        description="Without --tasks: run a trained head on a split of recorded outcomes, through the loop that "
        "serves, beside every worker, the best single worker (chosen on train and validation), votes, neighbours, "
        "support vectors and the oracle. With --tasks: run any policy live, workers called and answers graded, "
        "beside single workers.",
    )
    parser.add_argument(
        "--policy",
        required=True,
        help="folder of a trained head; with --tasks also fugu, fugu-trinity, fugu-ultra, fugu-panel or a worker",
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="folder of the recorded format; with --tasks only the best single worker is chosen on it",
    )
    parser.add_argument("--dataset", action="append", default=[], help="use only this dataset of it (repeatable)")
    parser.add_argument("--split", default="test", help="any value of the questions' `split` field (default test)")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--plot", type=Path, help="draw the table as a picture (.png or .svg)")
    parser.add_argument(
        "--report", action="store_true", help="keep the numbers in the policy's folder, and write its report.html anew"
    )
    parser.add_argument(
        "--seed", type=seed_number, default=0, help="of the bootstrap, and of generated tasks (default 0)"
    )
    parser.add_argument("--cache", type=Path, help="folder for hidden states (default ~/.cache/torafugu/states)")
    parser.add_argument(
        "--promote",
        action="store_true",
        help="mark the head as fit to serve, if its interval clears the best single worker",
    )
    parser.add_argument("--force", action="store_true", help="promote even if not; the card will say so")
    add_live_arguments(parser)
    parser.set_defaults(run=_command)


def _command(args: argparse.Namespace) -> int:
    if args.force and not args.promote:
        raise ConfigError("--force goes with --promote")
    if args.tasks is not None:
        return live_command(args)
    refuse_live_options(args)
    policy = Path(args.policy)
    if args.data is None:
        raise ConfigError(
            "--data DIR says on which recorded outcomes a head is measured; --tasks SOURCE runs a policy live"
        )
    for path in filter(None, (args.json, args.plot)):  # found out now, not after the work
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise ConfigError(f"{path}: a folder: expected the name of a file to write")
    report = measure(policy, args.data, datasets=args.dataset, split=args.split, seed=args.seed, cache=args.cache)
    print_report(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    status = promote(policy, report, force=args.force) if args.promote else 0  # first: the page says if it was
    if args.report:
        from ..eval.training_report import write_training_report

        (policy / "eval.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
        out.print(str(write_training_report(policy)))
    if args.plot:
        from ..eval.plots import plot_report

        plot_report(report, args.plot)
    return status


def measure(
    policy: Path, data: Path, *, datasets: list[str], split: str, seed: int, cache: Path | None
) -> dict[str, Any]:
    """The JSON artefact, with progress shown."""
    from ..local import MiniLM

    has_texts = any(data.glob("texts.jsonl*"))  # of data that is not there, what is missing is said below
    reads_replies = has_texts and read_card(policy, *KINDS).kind == "transcript"
    recorded = read_recorded(data, datasets=datasets, with_texts=reads_replies)
    encoder = MiniLM()
    try:
        with Stages() as stages:
            return evaluate(
                policy,
                recorded,
                split=split,
                encoder=encoder,
                seed=seed,
                cache=cache or default_cache(),
                report=stages,
            )
    finally:
        encoder.close()


def print_report(report: dict[str, Any]) -> None:
    """Best single worker, baselines, ours with its interval, and the ceiling."""
    single, gain = report["best_single"], report["gain"]
    rows = [[f"best single worker: {single['worker']}", percent(single["accuracy"]), "1.0"]]
    for name, accuracy in sorted(report["baselines"].items(), key=lambda item: item[1] or 0):
        calls = report["baseline_calls"][name]
        rows.append([name.replace("_", " "), percent(accuracy), "-" if calls is None else f"{calls:.1f}"])
    rows.append([f"fugu ({report['policy']['id']})", percent(report["accuracy"]), f"{report['calls_mean']:.1f}"])
    rows.append(["oracle (one worker per question)", percent(report["oracle"]), "1.0"])
    data = report["data"]
    name = " ".join(filter(None, (data["name"], "+".join(data["datasets"]))))
    title = f"{name}, split {report['split']}, n = {report['n']}"
    print_table(title, ["", "accuracy", "calls"], rows)
    interval = f"[{percent(gain['low'], sign=True)}, {percent(gain['high'], sign=True)}]"
    out.print(f"gain over the best single worker {percent(gain['mean'], sign=True)} {interval}, 95 % paired bootstrap")
    closed = report["gap_closed"]
    out.print(
        f"ceiling: {percent(report['oracle'])}; of the headroom of "
        f"{percent(report['oracle'] - single['accuracy'], sign=True)}, {percent(closed)} is closed"
    )
    out.print(
        f"cost {usd(report['cost_usd'])} (best single {usd(report['best_single_cost_usd'])}; {report['cost_basis']})"
    )
    for alarm in report["alarms"]:
        err.print(f"alarm: {alarm['message']}")
    for name, why in report["baselines_not_measured"].items():
        err.print(f"{name}: not measured: {why}")
    if report["unscored"]["count"]:
        err.print(f"{report['unscored']['count']} questions were not scored: {report['unscored']['why']}")
    if report["workers_unknown_to_head"]:
        err.print(f"workers that the head does not know, never asked: {', '.join(report['workers_unknown_to_head'])}")


def promote(policy: Path, report: dict[str, Any], *, force: bool) -> int:
    """The headroom gate: a head is fit to serve when, on questions it was not trained on, the lower end of its interval
    is above the best single worker.
    """
    card = read_card(policy, *KINDS)
    why_not = _find_objection(report)
    if why_not and not force:
        err.print(
            f"not promoted: {why_not}. Serve {report['best_single']['worker']!r} itself, train on more outcomes, or "
            "insist with --force."
        )
        return EXIT_REFUSED
    gate = {
        "promoted": True,
        "forced": why_not is not None,
        "objection": why_not,
        "data": report["data"],
        "split": report["split"],
        "n": report["n"],
        "gain": report["gain"],
        "best_single": report["best_single"],
        "oracle": report["oracle"],
        "commit": report["commit"],
    }
    write_card(policy, msgspec.structs.replace(card, gate=gate))
    out.print(f"promoted {report['policy']['id']}{f' by force: {why_not}' if why_not else ''}")
    return 0


def _find_objection(report: dict[str, Any]) -> str | None:
    """Why this report does not show that the head is fit to serve; None when it does."""
    if report["split"] in ("train", "validation"):  # of any data: a copy or a grown profile is not to be told apart
        return f"heads are trained on splits named {report['split']!r}: promote on another, such as test"
    if report["n"] < MIN_QUESTIONS:
        return f"{report['n']} questions are too few to tell: at least {MIN_QUESTIONS}"
    if report["gain"]["low"] > 0:
        return None
    low = percent(report["gain"]["low"], sign=True)
    return f"the interval's lower end, {low}, does not clear the best single worker {report['best_single']['worker']!r}"
