"""`fugu profile` and `fugu train`: outcomes of workers on tasks, and the head that is learnt from them."""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import read_table, read_toml
from ..errors import ConfigError
from ..grade.by_task import TaskGrader
from ..grade.task import Task
from ..pool import open_pool
from ..pool.recorded import create_recorded_pool, read_recorded
from ..pool.spec import NETWORK_DIALECTS, PoolSpec
from .arguments import at_least_one, calls_limit, reward_price, seed_number, usd_limit
from .console import Stages, err, out, percent, print_table, usd
from .installation import Installation, local_makers
from .train_conductor import add_options as add_conductor_options
from .train_demonstrations import add_options as add_demonstrations_options

if TYPE_CHECKING:
    from ..train.coordinator import CoordinatorConfig

__all__ = [
    "add_parsers",
    "load_tasks",
    "run_profile",
    "train_selector_command",
    "train_trinity_command",
    "wants_to_go_on",
]


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    profile = commands.add_parser(
        "profile",
        help="let every worker of a pool answer tasks, and keep the outcomes",
        description="Run every worker on tasks and write a folder of outcomes for `fugu train` and `fugu eval`. "
        "Interrupted, it goes on where it stopped when run again.",
    )
    profile.add_argument("--pool", type=Path, help="pool file (default: the home pool, no keys needed)")
    profile.add_argument(
        "--tasks",
        default="home",
        help="`home` or `home-multi` (generated, of one step or of several), a data set of the Hugging Face hub such "
        'as `gsm8k`, or a file of your own: a line {"prompt": ..., "gold": ...} for each',
    )
    profile.add_argument(
        "--n", type=at_least_one, help="how many tasks (default: 600 generated ones, all of a data set)"
    )
    profile.add_argument("--repeats", type=at_least_one, default=1, help="answers per worker and task (default 1)")
    profile.add_argument("--seed", type=seed_number, default=0, help="of the home tasks (default 0)")
    profile.add_argument("--out", type=Path, required=True, help="folder to write")
    profile.add_argument("--max-usd", type=usd_limit, help="begin no further call once this run has spent this")
    profile.add_argument("--yes", action="store_true", help="do not ask before calling workers that may cost money")
    profile.set_defaults(run=_profile_command)
    train = commands.add_parser("train", help="train a coordinator")
    kinds = train.add_subparsers(dest="kind", required=True, metavar="KIND")
    selector = kinds.add_parser(
        "selector",
        help="the policy behind `fugu`: one worker per request",
        description="Learn from recorded outcomes which worker to ask. Uses the splits `train` and `validation`; "
        "every other split stays unseen.",
    )
    _add_common(selector)
    selector.add_argument("--no-evolution", action="store_true", help="leave the second stage (sep-CMA-ES) out")
    selector.set_defaults(run=_train_command)
    trinity = kinds.add_parser(
        "trinity",
        help="the policy behind `fugu-trinity`: Workers and Verifiers, turn by turn",
        description="Learn from recorded outcomes whom to ask, when answers can be trusted, and when to stop. Uses the "
        "splits `train` and `validation`; every other split stays unseen.",
    )
    _add_common(trinity)
    trinity.add_argument(
        "--config",
        help="train as the paper does, with these settings: a TOML file, or `trinity-paper` or `trinity-paper-minilm`",
    )
    trinity.add_argument(
        "--call-price",
        type=reward_price,
        default=0.001,
        help="accuracy that a further call has to bring, 0.001 being 0.1 points (default 0.001; the paper's is 0)",
    )
    trinity.add_argument(
        "--mean-calls", type=calls_limit, default=3.1, help="calls per question, on average, at most (default 3.1)"
    )
    trinity.add_argument(
        "--cost-price",
        type=reward_price,
        default=0.0,
        help="accuracy that a call of the dearest worker's mean cost has to bring (default 0)",
    )
    trinity.add_argument(
        "--no-evolution", action="store_true", help="leave the trainers out: the supervised start only"
    )
    trinity.set_defaults(run=_train_trinity_command)
    conductor = kinds.add_parser(
        "conductor",
        help="the language model behind `fugu-ultra`, by reward",
        description="Show a language model valid workflows, then reward it for what its own come to (GRPO). Workers "
        "run, graders score; the splits `train` and `validation` are used. Run again, it goes on where it stopped.",
    )
    add_conductor_options(conductor)
    demonstrations = kinds.add_parser(
        "demonstrations",
        help="what a trained conductor can show another one: its workflows that came out right",
        description="Let a trained conductor write a workflow for each question, for a random part of the pool in "
        "random order; execute it, and keep it if the answer was right. Other conductors are warm-started with the "
        "file (`warm_start.demonstrations`). Uses the split `train`.",
    )
    add_demonstrations_options(demonstrations)
    add = kinds.add_parser(
        "add",
        help="add workers to a trained `fugu-trinity` from a short profile",
        description="Take every worker that the data has and the head lacks; what is known of the others, and the head "
        "itself, stay as they are. Uses the splits `train` and `validation`. Removing a worker needs no command.",
    )
    _add_common(add)
    add.add_argument("--policy", type=Path, required=True, help="folder of the trained head; it stays as it is")
    add.set_defaults(run=_train_add_command)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder of the recorded format")
    parser.add_argument("--dataset", action="append", default=[], help="use only this dataset of it (repeatable)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the head, its card and its metrics")
    parser.add_argument("--seed", type=seed_number, default=0)
    parser.add_argument("--cache", type=Path, help="folder for hidden states (default ~/.cache/torafugu/states)")


def _profile_command(args: argparse.Namespace) -> int:
    spec, conductors = Installation(pool=args.pool).read_answering()
    if conductors:
        err.print(f"not asked, for they only conduct: {', '.join(conductors)}")
    tasks = load_tasks(args.tasks, n=args.n, seed=args.seed)
    return run_profile(
        spec,
        tasks,
        args.out,
        repeats=args.repeats,
        max_usd=args.max_usd,
        is_confirmed=args.yes,
        pool_file=args.pool,
    )


GENERATED_TASKS = 600
"""Unless another number is asked for."""


def load_tasks(source: str, *, n: int | None, seed: int) -> list[Task]:
    """`n`: of tasks that are generated, or drawn from a data set of the hub; None: 600, or all.

    Raises:
        ConfigError: no such source, or its tasks are malformed.
        ModelError: a data set cannot be had.
    """
    if source == "home":
        from ..envs.home import home_tasks

        return home_tasks(n=GENERATED_TASKS if n is None else n, seed=seed)
    if source == "home-multi":
        from ..envs.composed import composed_tasks

        return composed_tasks(n=GENERATED_TASKS if n is None else n, seed=seed)
    from ..envs.hub import hub_tasks, is_hub_source

    if is_hub_source(source):
        return hub_tasks(source, n=n, seed=seed)
    from ..envs.jsonl import read_tasks

    return read_tasks(Path(source))


def run_profile(
    spec: PoolSpec,
    tasks: list[Task],
    folder: Path,
    *,
    repeats: int,
    max_usd: Decimal | None,
    is_confirmed: bool,
    pool_file: Path | None = None,
) -> int:
    from ..train.profile import (
        ASSUMED_OUTPUT_TOKENS,
        Tally,
        estimate_cost_usd,
        find_rates,
        open_profile,
        plan_jobs,
        profile,
    )

    rates = find_rates(spec.worker)
    if max_usd is not None and (unpriced := [worker for worker, rate in rates.items() if rate is None]):
        raise ConfigError(
            f"--max-usd {max_usd} cannot be kept: the price of {', '.join(unpriced)} is unknown; "
            "declare `prices` in the pool file"
        )
    done = open_profile(folder, tasks, spec, rates)
    jobs = plan_jobs(tasks, [worker.id for worker in spec.worker], repeats, done)
    if done:
        err.print(f"{len(done)} answers are there already")
    if not jobs:
        err.print(f"{folder}: nothing left to ask")
        return 0
    estimate = estimate_cost_usd(jobs, rates)
    is_paid = estimate != 0 and any(worker.dialect in NETWORK_DIALECTS for worker in spec.worker)
    invented = "" if is_paid or not estimate else ", at invented prices: nobody is paid"
    err.print(
        f"{len(jobs)} calls, estimated cost {usd(estimate)} ({ASSUMED_OUTPUT_TOKENS} tokens per answer{invented})"
    )
    if is_paid and not is_confirmed and not wants_to_go_on():
        err.print("nothing was asked")
        return 1

    async def go() -> Tally:
        with Stages() as stages:
            stages.stage("profile", len(jobs))

            def show(tally: Tally) -> None:
                stages.describe(f"profile {usd(tally.cost_usd)}")
                stages.advance(1)

            async with open_pool(spec, makers=local_makers(pool_file)) as pool:
                return await profile(jobs, pool, TaskGrader(), folder, max_usd=max_usd, progress=show)

    tally = asyncio.run(go())
    rows = [
        [worker, percent(sum(scores) / len(scores)), str(len(scores))]
        for worker, scores in sorted(tally.correct.items())
    ]
    print_table("", ["worker", "accuracy", "answers"], rows)
    unknown = f", and {tally.unknown_cost} calls of unknown cost" if tally.unknown_cost else ""
    err.print(f"cost {usd(tally.cost_usd)}{unknown}")
    for failure, count in tally.failures.most_common():
        err.print(f"not scored: {failure} ({count} times); run the same command again to ask again")
    if tally.stopped_by:
        err.print(f"stopped by --max-usd {max_usd}: run the same command again to go on, and spend up to that again")
    return 1 if tally.failures or tally.stopped_by else 0


def wants_to_go_on() -> bool:
    """Raises ConfigError: there is nobody to ask."""
    if not sys.stdin.isatty():
        raise ConfigError("these workers may cost money, and nobody can be asked here: --yes goes on without asking")
    try:
        return input("Go on? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _train_command(args: argparse.Namespace) -> int:
    return train_selector_command(
        args.data,
        args.out,
        datasets=args.dataset,
        seed=args.seed,
        has_evolution=not args.no_evolution,
        cache=args.cache,
    )


def train_selector_command(
    data: Path, folder: Path, *, datasets: list[str], seed: int, has_evolution: bool, cache: Path | None
) -> int:
    from ..eval.states import default_cache
    from ..local import MiniLM
    from ..train.selector import SelectorConfig, train_selector
    from ..train.trainers import SepCMATrainer

    recorded = read_recorded(data, datasets=datasets)
    encoder = MiniLM()
    try:
        with Stages() as stages:
            trained = train_selector(
                recorded,
                encoder,
                create_recorded_pool(recorded),
                folder,
                config=SelectorConfig(seed=seed, evolution=SepCMATrainer() if has_evolution else None),
                cache=cache or default_cache(),
                report=stages,
            )
    finally:
        encoder.close()
    card = trained.head.card
    out.print(f"{folder}: head fugu@{trained.head.id}, {card.training['candidate']}, {card.training['seconds']} s")
    if trained.winner.candidate.trainer is None:
        out.print(
            "No candidate beat the best single worker by more than its standard error: the head always asks "
            f"{card.baselines['best_single']['worker']!r}."
        )
    return 0


_OF_OURS = {"seed": 0, "call_price": 0.001, "cost_price": 0.0, "mean_calls": 3.1, "no_evolution": False}
"""Options of our own training, with their defaults."""


def _train_trinity_command(args: argparse.Namespace) -> int:
    from ..train.coordinator import CoordinatorConfig

    if args.config:
        if ignored := [name for name, usual in _OF_OURS.items() if getattr(args, name) != usual]:
            flags = ", ".join("--" + name.replace("_", "-") for name in ignored)
            raise ConfigError(f"{flags}: not with --config, whose file says all that the paper's training has")
        return _train_paper(args.config, args.data, args.out, datasets=args.dataset, cache=args.cache)
    config = CoordinatorConfig(
        seed=args.seed, call_price=args.call_price, cost_price=args.cost_price, mean_calls=args.mean_calls
    )
    if args.no_evolution:
        config = replace(config, trainers=())
    return train_trinity_command(args.data, args.out, datasets=args.dataset, config=config, cache=args.cache)


def _train_add_command(args: argparse.Namespace) -> int:
    from ..eval.matrix import build_matrix
    from ..eval.states import default_cache, encode_questions
    from ..local import MiniLM
    from ..orchestrate.artefact import read_card
    from ..orchestrate.coordinator import CoordinatorHead
    from ..orchestrate.policies import KINDS
    from ..train.add import add_workers
    from ..train.outcomes import answered, write_run

    if args.out.resolve() == args.policy.resolve():
        raise ConfigError(f"{args.out}: --policy stays as it is: give the grown head a folder of its own")
    if read_card(args.policy, *KINDS).kind == "transcript":
        raise ConfigError(f"{args.policy}: a head of paper mode has a row of weights for each worker: train it anew")
    head = CoordinatorHead.load(args.policy)
    recorded = read_recorded(args.data, datasets=args.dataset)
    matrix = answered(build_matrix(recorded).split("train", "validation"))
    if len(matrix) == 0:
        raise ConfigError(f"{args.data}: no questions of the splits 'train' and 'validation' that anybody answered")
    encoder = MiniLM()
    try:
        if head.card.encoder != encoder.name:
            raise ConfigError(f"{args.policy}: reads with {head.card.encoder!r}: expected {encoder.name!r}")
        hidden = encode_questions(encoder, matrix.questions, cache=args.cache or default_cache())
    finally:
        encoder.close()
    grown = add_workers(head, matrix, hidden)
    args.out.mkdir(parents=True, exist_ok=True)
    write_run(args.out, recorded, {"policy": str(args.policy), "to": head.id})
    grown.save(args.out)
    added = ", ".join(worker.id for worker in grown.card.workers[len(head.card.workers) :])
    out.print(f"{args.out}: head fugu-trinity@{grown.id}, {added} added to {head.id} from {len(matrix)} questions")
    return 0


def _train_paper(name: str, data: Path, folder: Path, *, datasets: list[str], cache: Path | None) -> int:
    from ..eval.states import default_cache
    from ..eval.training_report import write_training_report
    from ..local.open import open_encoder
    from ..train.evolve import EvolveConfig, train_paper

    shipped = Path(__file__).parent.parent / "train" / "configs" / f"{name}.toml"
    path = shipped if shipped.exists() else Path(name)
    config = read_table(EvolveConfig, read_toml(path), where=str(path))
    has_texts = any(data.glob("texts.jsonl*"))
    if not has_texts:
        err.print(f"{data}: no texts: thoughts in the transcript are the recorded answers alone")
    recorded = read_recorded(data, datasets=datasets, with_texts=has_texts)
    encoder = open_encoder(config.encoder)
    try:
        with Stages() as stages:
            trained = train_paper(
                recorded, lambda: encoder, folder, config=config, cache=cache or default_cache(), report=stages
            )
    finally:
        encoder.close()
    write_training_report(folder)
    out.print(
        f"{folder}: head fugu-trinity@{trained.head.id}, generation {trained.generation}, validation "
        f"{percent(trained.validation_score)} (best single worker {percent(trained.best_single_score)})"
    )
    return 0


def train_trinity_command(
    data: Path, folder: Path, *, datasets: list[str], config: CoordinatorConfig, cache: Path | None
) -> int:
    from ..eval.states import default_cache
    from ..local import MiniLM
    from ..train.coordinator import train_coordinator

    recorded = read_recorded(data, datasets=datasets)
    encoder = MiniLM()
    try:
        with Stages() as stages:
            trained = train_coordinator(
                recorded,
                encoder,
                create_recorded_pool(recorded),
                folder,
                config=config,
                cache=cache or default_cache(),
                report=stages,
            )
    finally:
        encoder.close()
    card = trained.head.card
    made = ", ".join(filter(None, (str(card.training["candidate"]), trained.trainer, f"{card.training['seconds']} s")))
    out.print(f"{folder}: head fugu-trinity@{trained.head.id}, {made}")
    out.print(f"{folder / 'report.html'}: what happened, in pictures")
    if card.training["candidate"] == "single":
        out.print(
            "No candidate beat the best single worker beyond doubt, within the limit of calls: the head always asks "
            f"{card.baselines['best_single']['worker']!r}."
        )
    return 0
