"""`fugu train conductor`: the language model behind `fugu-ultra`, from a config that ships or one of one's own."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import read_table, read_toml
from ..errors import ConfigError
from ..eval.live_costs import Calls, LiveEstimate, estimate_live
from ..grade.task import Task
from ..pool.prices import resolve_price
from ..pool.spec import NETWORK_DIALECTS, PoolSpec
from ..types import Json
from .arguments import seed_number
from .console import Stages, err, out, percent, print_table, usd
from .installation import Installation

if TYPE_CHECKING:
    from ..train.conductor import MakeFleet, TrainedConductor
    from ..train.conductor_config import ConductorTraining

__all__ = ["add_options", "estimate_episodes", "read_training"]

USUAL_CONFIG = "conductor-tiny"
_MEASURES = ("reward/mean", "accuracy", "valid", "accuracy_if_valid", "steps/mean", "cost_usd/mean")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder for the model, its metrics and checkpoints")
    parser.add_argument(
        "--config",
        default=USUAL_CONFIG,
        help="a TOML file, or `conductor-tiny` (default), `conductor-unshown`, `conductor-smollm2`, `conductor-small`, "
        "`conductor-7b`",
    )
    parser.add_argument("--pool", type=Path, help="pool file (default: the home pool, no keys needed)")
    parser.add_argument("--tasks", help="instead of the config's `tasks`; as of `fugu profile`")
    parser.add_argument("--model", help="instead of the config's `model`: folder or GGUF file to begin with")
    parser.add_argument("--start", type=Path, help="`start` of a run with the same config: go straight on to reward")
    parser.add_argument("--seed", type=seed_number, help="instead of the config's `seed`")
    parser.add_argument("--steps", type=int, help="instead of the config's `grpo.steps`; 0: the warm start only")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    parser.add_argument("--ray", type=int, metavar="MEMBERS", help="run episodes on so many members of a Ray fleet")
    parser.add_argument("--ray-address", help="host:port of a Ray cluster, or `auto` (default: one of its own)")
    parser.add_argument("--yes", action="store_true", help="do not ask before calling workers that may cost money")
    parser.set_defaults(run=_command)


def read_training(name: str) -> ConductorTraining:
    """A config that ships, or a file; relative paths in it start where the command runs.

    Raises:
        ConfigError: there is none, or it is malformed.
    """
    from ..train.conductor_config import ConductorTraining

    shipped = Path(__file__).parent.parent / "train" / "configs" / f"{name}.toml"
    path = shipped if shipped.exists() else Path(name)
    return read_table(ConductorTraining, read_toml(path), where=str(path))


def _command(args: argparse.Namespace) -> int:
    from ..train.conductor_model import check_installed
    from .train import load_tasks, wants_to_go_on

    config = _apply(read_training(args.config), args)
    check_installed(lora=config.lora is not None)
    spec, _ = Installation(pool=args.pool).read_answering()
    tasks = [
        task
        for task in load_tasks(config.tasks, n=config.n, seed=config.seed)
        if config.families is None or task.family in config.families
    ]
    if any(worker.dialect in NETWORK_DIALECTS for worker in spec.worker):
        estimate = estimate_training(config, tasks, spec)
        episodes = config.grpo.steps * config.grpo.questions * config.grpo.attempts
        err.print(
            f"{episodes} episodes and held-out ones besides: about {usd(estimate.typical)}, at most "
            f"{usd(estimate.at_most)}; every call is real"
        )
        if not args.yes and not wants_to_go_on():
            err.print("nothing was asked")
            return 1
    if config.trainer == "trl":
        from ..train.conductor_trl import train_with_trl

        with Stages() as stages:
            trained = train_with_trl(
                tasks, spec, args.out, config=config, report=stages, pool_folder=_folder(args.pool)
            )
    else:
        trained = _train(args, config, tasks, spec)
    return _tell(args.out, trained)


def _train(args: argparse.Namespace, config: ConductorTraining, tasks: list[Task], spec: PoolSpec) -> TrainedConductor:
    from ..train.conductor import train_conductor
    from ..train.conductor_model import use_threads

    use_threads(args.threads)
    with Stages() as stages:
        return train_conductor(
            tasks,
            spec,
            args.out,
            config=config,
            report=stages,
            pool_folder=_folder(args.pool),
            make_fleet=_choose_fleet(args),
        )


def _folder(pool: Path | None) -> Path:
    return Path() if pool is None else pool.parent


def _apply(config: ConductorTraining, args: argparse.Namespace) -> ConductorTraining:
    if args.start is not None and args.model is not None and config.lora is None:
        raise ConfigError("--start and --model: expected one of them, unless the start is an adapter")
    if args.seed is not None:
        config = replace(config, seed=args.seed)
    if args.tasks is not None:
        config = replace(config, tasks=args.tasks)
    if args.steps is not None:
        config = replace(config, grpo=replace(config.grpo, steps=args.steps))
    if args.start is not None:
        start, warm = str(args.start), replace(config.warm_start, steps=0)
        if config.lora is None:
            config = replace(config, warm_start=warm, model=start)
        else:
            config = replace(config, warm_start=warm, adapter=start)
    return replace(config, model=args.model) if args.model else config


def _choose_fleet(args: argparse.Namespace) -> MakeFleet:
    from ..cluster.fleet import in_process

    if args.ray is None:
        if args.ray_address is not None:
            raise ConfigError("--ray-address goes with --ray")
        return in_process
    from ..cluster.ray_fleet import RayOptions, on_ray

    return functools.partial(on_ray, options=RayOptions(size=args.ray, address=args.ray_address))


def estimate_training(config: ConductorTraining, tasks: list[Task], spec: PoolSpec) -> LiveEstimate:
    """Of all episodes, held-out ones and those of demonstrated second rounds included."""
    grpo, warm = config.grpo, config.warm_start
    episodes = grpo.steps * grpo.questions * grpo.attempts + (grpo.steps // grpo.eval_every + 2) * config.validate
    episodes += round(warm.rounds * (warm.steps * warm.batch + grpo.steps * grpo.form_batch))
    return estimate_episodes(episodes, tasks, spec, effort=config.effort)


def estimate_episodes(episodes: int, tasks: Sequence[Task], spec: PoolSpec, *, effort: str) -> LiveEstimate:
    """Of a conductor: three calls of a worker in the typical case, as many as a workflow may have at most."""
    from ..orchestrate.conductor import EFFORTS

    limits = EFFORTS[effort]
    workers = tuple(worker.id for worker in spec.worker)
    calls = Calls(
        workers=workers, typical=min(3, limits.steps), most=limits.steps * limits.rounds, extra_input_tokens=300
    )
    one = estimate_live(
        [(task, [calls]) for task in tasks[:100]],
        specs={worker.id: worker for worker in spec.worker},
        price_of=lambda worker: resolve_price(next(w for w in spec.worker if w.id == worker)),
        usd_per_run=None,
    )

    def scale(value: Decimal | None) -> Decimal | None:
        return None if value is None else value * episodes / min(100, len(tasks))

    return LiveEstimate(typical=scale(one.typical), at_most=scale(one.at_most))


def _tell(folder: Path, trained: TrainedConductor) -> int:
    rows = [[name, _show(name, trained.before.get(name)), _show(name, trained.after.get(name))] for name in _MEASURES]
    print_table(f"held out, after {trained.step} steps", ["", "before", "after"], rows)
    if trained.stopped_by is not None:
        err.print(f"stopped by an alarm: {trained.stopped_by}")
    from ..train.conductor_report import write_conductor_report

    out.print(f"{write_conductor_report(folder)}: what happened, in pictures")
    out.print(f"{trained.folder}: the model. Serve it as a worker of dialect `local`, and name it in [conductor]")
    return 1 if trained.stopped_by is not None else 0


def _show(name: str, value: Json) -> str:
    if not isinstance(value, (int, float)):
        return "-"
    return percent(value) if name in ("accuracy", "valid", "accuracy_if_valid") else f"{value:.3g}"
