"""`fugu serve` and `fugu ask`: the installation answers, over HTTP or right here."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..errors import ConfigError, FuguError
from ..orchestrate import Run, create_run_id, orchestrate
from ..pool.backend import Delta, OnDelta
from ..types import Message, Request, Sampling
from .arguments import at_least_one
from .console import err, usd
from .installation import Installation, Opened, open_installation, read_installation

__all__ = ["add_installation_arguments", "add_parsers", "installation_from", "read_question", "run_here"]


def add_installation_arguments(parser: argparse.ArgumentParser) -> None:
    """What says which installation is meant."""
    parser.add_argument("--config", type=Path, help="installation file (default ./fugu.toml)")
    parser.add_argument("--pool", type=Path, help="pool file, instead of the installation's")
    parser.add_argument("--policy", type=Path, help="folder of the head behind `fugu`, instead of the installation's")
    parser.add_argument("--trinity", type=Path, help="folder of the head behind `fugu-trinity`, likewise")
    parser.add_argument(
        "--conductor", metavar="WORKER", help="worker that writes the workflows of `fugu-ultra`, likewise"
    )
    parser.add_argument("--record", type=Path, help="where runs are recorded (default runs.sqlite)")


def installation_from(args: argparse.Namespace) -> Installation:
    return read_installation(
        args.config,
        pool=args.pool,
        policy=args.policy,
        trinity=args.trinity,
        conductor=args.conductor,
        record=args.record,
    )


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = commands.add_parser(
        "serve",
        help="the OpenAI-compatible endpoint",
        description="Serve chat completions, responses and messages, /v1/models, /v1/route and /v1/runs. Without API "
        "keys only on loopback.",
    )
    add_installation_arguments(serve)
    serve.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port; 0 takes a free one (default 8377)")
    serve.set_defaults(run=_serve_command)
    ask = commands.add_parser("ask", help="one question, answered and recorded, without a server")
    add_installation_arguments(ask)
    ask.add_argument(
        "--model",
        default="fugu",
        help="`fugu`, `fugu-trinity`, `fugu-ultra`, `fugu-panel` or a worker's id (default fugu)",
    )
    ask.add_argument("--max-tokens", type=at_least_one, help="longest answer")
    ask.add_argument("question", nargs="?", help="the question (default: read from stdin)")
    ask.set_defaults(run=_ask_command)


def _serve_command(args: argparse.Namespace) -> int:
    from ..server import create_app, serve
    from ..server.serve import run_in_uvloop

    installation = installation_from(args)
    config = installation.server
    if args.host is not None:
        config = replace(config, host=args.host)
    if args.port is not None:
        config = replace(config, port=args.port)
    logging.getLogger("torafugu").setLevel(logging.INFO)

    async def go() -> None:
        async with open_installation(installation) as opened:
            app = create_app(
                policies=opened.policies,
                pool=opened.pool,
                store=opened.store,
                config=config,
                budget=installation.budget,
                sessions=installation.sessions,
            )
            names = ", ".join([*(policy.id for policy in opened.policies.values()), *sorted(opened.pool.ids)])

            def on_ready(url: str, stop: Callable[[], None]) -> None:
                del stop
                print(f"serving {names} at {url}/v1, record in {installation.record}", flush=True)
                for warning in opened.warnings:
                    err.print(warning)

            try:
                await serve(app, config, on_ready=on_ready)
            except OSError as error:
                raise ConfigError(str(error.strerror or error)) from None

    run_in_uvloop(go())
    return 0


def read_question(given: str | None) -> str:
    """The question of the command line, else what stands on stdin.

    Raises:
        ConfigError: there is none.
    """
    if given is None and sys.stdin.isatty():
        err.print("type the question, and end it with ctrl-D", style="dim")
    question = given if given is not None else sys.stdin.read()
    if not question.strip():
        raise ConfigError("nothing was asked: give a question, or write one to stdin")
    return question


async def run_here(
    opened: Opened, request: Request, *, on_delta: OnDelta | None = None, only_plans: bool = False
) -> Run | None:
    """One recorded run without a server. None when it failed, which has been said."""
    policy = opened.policy_for(request.model)
    run_id = create_run_id()
    try:
        return await orchestrate(
            request,
            policy,
            opened.pool,
            budget=opened.installation.budget,
            recorder=opened.store.recorder(run_id),
            on_delta=on_delta,
            run_id=run_id,
            only_plans=only_plans,
        )
    except FuguError as error:
        err.print(f"fugu: {error.message}\nrun {run_id}")
        return None


def _ask_command(args: argparse.Namespace) -> int:
    import asyncio

    question = read_question(args.question)
    installation = installation_from(args)
    request = Request(
        model=args.model,
        messages=(Message(role="user", content=question),),
        sampling=Sampling(max_output_tokens=args.max_tokens),
    )

    is_shown = False

    async def show(delta: Delta) -> None:
        nonlocal is_shown
        is_shown |= bool(delta.text)
        sys.stdout.write(delta.text)
        sys.stdout.flush()

    async def go() -> int:
        async with open_installation(installation) as opened:
            run = await run_here(opened, request, on_delta=show)
        if run is None:
            return 1
        if run.answer is None:
            err.print(f"fugu: no answer: stopped by {run.stopped.by if run.stopped else 'nothing'}\nrun {run.id}")
            return 1
        sys.stdout.write("\n" if is_shown else f"{run.answer.text}\n")  # only a final step's reply is streamed
        who = " -> ".join(run.workers)
        err.print(
            f"{run.id}: {who}, {usd(run.cost_usd)}, {run.elapsed_ms:.0f} ms (fugu runs show {run.id})", style="dim"
        )
        return 0

    return asyncio.run(go())
