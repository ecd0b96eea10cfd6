"""`fugu train demonstrations`: what a trained conductor shows others, which `warm_start.demonstrations` names."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..conductors import HOME_CONDUCTOR, find_folder
from ..errors import ConfigError, FuguError
from ..pool.spec import NETWORK_DIALECTS
from .arguments import at_least_one, seed_number
from .console import Stages, err, out, usd
from .installation import Installation
from .train_conductor import estimate_episodes

if TYPE_CHECKING:
    from ..train.teach import Ledger, Taught

__all__ = ["add_options"]

_TASKS = 30_000
"""Generated to draw from, as for the conductors that ship: few are drawn twice."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="file to write, for `warm_start.demonstrations`")
    parser.add_argument("--teacher", type=Path, help="folder of a trained conductor (default: the one that ships)")
    parser.add_argument("--pool", type=Path, help="pool file (default: the home pool, no keys needed)")
    parser.add_argument("--tasks", default="home-multi", help="as of `fugu profile` (default `home-multi`)")
    parser.add_argument("--n", type=at_least_one, default=1200, help="questions to the teacher (default 1200)")
    parser.add_argument(
        "--pool-sizes",
        type=at_least_one,
        nargs="+",
        metavar="K",
        help="each question is offered so many of the workers, one of these numbers (default: half of them or more)",
    )
    parser.add_argument("--seed", type=seed_number, default=0, help="of everything that is drawn (default 0)")
    parser.add_argument("--yes", action="store_true", help="do not ask before calling workers that may cost money")
    parser.add_argument("--force", action="store_true", help="overwrite what is there")
    parser.set_defaults(run=_command)


def _command(args: argparse.Namespace) -> int:
    import numpy as np

    from ..train.teach import Ledger, Teacher, draw_questions, teach
    from ..train.warm_start import write_pairs
    from .evaluate_live import GENERATED
    from .train import load_tasks, wants_to_go_on

    _check_file(args.out, force=args.force)
    installation = Installation(pool=args.pool)
    spec, _ = installation.read_answering()
    folder = find_folder(HOME_CONDUCTOR, Path()) if args.teacher is None else args.teacher
    teacher = Teacher(folder, spec, pool_folder=installation.pool_folder)
    tasks = load_tasks(args.tasks, n=_TASKS if args.tasks in GENERATED else None, seed=args.seed)
    rng = np.random.default_rng(args.seed)
    questions = draw_questions(tasks, spec, n=args.n, sizes=args.pool_sizes, rng=rng)
    teacher.check_room(questions)
    run = teacher.identify(questions, seed=args.seed)
    ledger = Ledger(args.out.with_name(f"{args.out.name}.asked"), run=run, questions=len(questions))
    if ledger.rows:
        err.print(_tell_done(ledger))
    is_paid = any(worker.dialect in NETWORK_DIALECTS for worker in spec.worker)
    waiting = [questions[number].task for number in ledger.waiting]
    if is_paid and waiting:
        estimate = estimate_episodes(len(waiting), waiting, spec, effort=teacher.config.effort)
        err.print(
            f"{len(waiting)} episodes: about {usd(estimate.typical)}, at most {usd(estimate.at_most)}; "
            "every call is real"
        )
        if not args.yes and not wants_to_go_on():
            err.print("nothing was asked")
            return 1
    try:
        with Stages() as stages:
            taught = teach(teacher, questions, rng, ledger, stages)
    except (FuguError, OSError, KeyboardInterrupt):
        if ledger.rows:
            err.print(f"{_tell_done(ledger)}: the same command goes on")
        raise
    finally:
        if is_paid and ledger.rows:
            err.print(f"cost {usd(ledger.cost_usd)}")
    _tell_lost(taught)
    if taught.pairs:
        write_pairs(args.out, taught.pairs)
    if taught.unscored:
        force = " with --force" if taught.pairs else ""
        err.print(f"{_tell_done(ledger)}: the same command{force} asks the rest again")
    else:
        ledger.remove()
    if not taught.pairs:
        err.print(f"{args.out}: not written: none of {args.n} workflows led to a right answer")
        return 1
    out.print(f"{args.out}: {len(taught.pairs)} demonstrations, of {args.n} questions")
    return 0


def _tell_done(ledger: Ledger) -> str:
    return f"{ledger.path}: {len(ledger.done)} of {ledger.questions} questions are done"


def _check_file(path: Path, *, force: bool) -> None:
    """Found out now, not after the work."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise ConfigError(f"{path}: a folder: expected the name of a file to write")
    if path.exists() and not force:
        raise ConfigError(f"{path} exists: --force overwrites it")


def _tell_lost(taught: Taught) -> None:
    err.print(f"not kept: {taught.wrong} whose answer was wrong, {taught.invalid} that were no workflow")
    for failure, count in sorted(taught.unscored.items()):
        err.print(f"not scored: {failure} ({count} times)")
