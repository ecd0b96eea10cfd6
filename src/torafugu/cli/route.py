"""`fugu route`: whom a model would call for a question, and about what that would cost, without calling them."""

from __future__ import annotations

import argparse
import asyncio
import functools

import msgspec

from ..errors import FuguError
from ..pool.prices import resolve_price
from ..types import Json, Message, Request, Sampling
from .arguments import at_least_one
from .console import err, out, usd
from .graph import printable
from .installation import Installation, open_installation
from .serve import add_installation_arguments, installation_from, read_question, run_here

__all__ = ["add_parser"]

_LONGEST_SUBTASK = 160
_UNKNOWN = {
    "no_history": "no tokens or times on record",
    "no_price": "no known price",
    "no_limit": "nothing bounds the cost",
}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "route",
        help="whom a model would call for a question, and about what that would cost; calls nobody but a conductor",
        description="Decide and plan as `fugu ask` does, then stop: the decision, and an estimate of cost and time, "
        "from prices and what the record knows of the workers. A conductor is called, and paid; nobody else is.",
    )
    add_installation_arguments(parser)
    parser.add_argument(
        "--model",
        default="fugu",
        help="`fugu`, `fugu-trinity`, `fugu-ultra`, `fugu-panel` or a worker's id (default fugu)",
    )
    parser.add_argument("--max-tokens", type=at_least_one, help="longest answer")
    parser.add_argument("--json", action="store_true", help="what POST /v1/route answers")
    parser.add_argument("question", nargs="?", help="the question (default: read from stdin)")
    parser.set_defaults(run=_command)


def _command(args: argparse.Namespace) -> int:
    request = Request(
        model=args.model,
        messages=(Message(role="user", content=read_question(args.question)),),
        sampling=Sampling(max_output_tokens=args.max_tokens),
    )
    route = asyncio.run(_route(installation_from(args), request))
    if route is None:
        return 1
    if args.json:
        print(msgspec.json.Encoder(decimal_format="number").encode(route).decode())
    else:
        _print_route(route)
    return 0


async def _route(installation: Installation, request: Request) -> dict[str, Json] | None:
    """None when it failed, which has been said."""
    from ..server.route import describe_route

    async with open_installation(installation) as opened:
        run = await run_here(opened, request, only_plans=True)
        if run is None:
            return None
        try:
            return await describe_route(
                run,
                policy=opened.policy_for(request.model).id,
                specs=opened.pool.specs,
                price_of=functools.cache(lambda worker: resolve_price(opened.pool.specs[worker])),
                store=opened.store,
            )
        except FuguError as error:
            err.print(f"fugu: {error.message}\nrun {run.id}")
            return None


def _print_route(route: dict[str, Json]) -> None:
    decision, estimate, conductor = route["decision"], route["estimate"], route["conductor"]
    out.print(f"{route['model']} by {route['policy']}", style="bold")
    if decision is None:
        out.print("nobody more would be called")
    else:
        for step in decision["steps"]:
            _print_step(step)
        if decision["scores"]:
            out.print("scores: " + ", ".join(f"{worker} {score:.3f}" for worker, score in decision["scores"].items()))
    if estimate is not None:
        _print_estimate(estimate)
    if conductor["calls"]:
        calls = f"{conductor['calls']} call{'s' * (conductor['calls'] > 1)}"
        out.print(f"spent on the conductor: {calls}, {usd(conductor['cost_usd'])}")
    err.print(f"{route['run_id']} (fugu runs show {route['run_id']})", style="dim")


def _print_step(step: dict[str, Json]) -> None:
    sees = f", sees {', '.join(map(str, step['sees']))}" if step["sees"] else ""
    others = f", else {', '.join(step['alternates'])}" if step["alternates"] else ""
    out.print(f"  {step['step']} {step['worker']} as {step['role']}{sees}{others}")
    if step["subtask"] is not None:
        task = printable(step["subtask"])
        out.print(f"      {task[:_LONGEST_SUBTASK]}{'…' if len(task) > _LONGEST_SUBTASK else ''}", style="dim")


def _print_estimate(estimate: dict[str, Json]) -> None:
    basis, seconds = estimate["basis"], estimate["seconds"]
    most = estimate["cost_usd_at_most"]
    time = "time unknown" if seconds is None else f"{seconds:.1f} s"
    what = "" if basis["covers"] == "run" else " (of what is called first; the policy decides again after it)"
    out.print(f"estimate: {usd(estimate['cost_usd'])}, {time}{what}")
    out.print(
        f"  at most {usd(most)}, if nobody has to be asked twice" if most is not None else "  without an upper bound"
    )
    for key, why in _UNKNOWN.items():
        if basis[key]:
            out.print(f"  {why}: {', '.join(basis[key])}", style="dim")
    out.print(f"  input tokens: {basis['tokens']}", style="dim")
