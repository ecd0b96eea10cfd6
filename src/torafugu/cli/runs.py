"""`fugu runs`: who was called for what, why, for how much, how long."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ..errors import ConfigError
from ..events import Accepted, Answered, Called, Event, Failed, Planned, Replied, Stopped, Suspended
from ..store import RunRow, StoredRun, open_reader
from ..types import Usage
from .console import out, print_table, usd
from .graph import draw_graph, printable
from .installation import read_installation

__all__ = ["add_parser", "print_run"]

_LONGEST_TEXT = 600


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("runs", help="the record: list runs, show one")
    _add_list_arguments(parser)
    parser.set_defaults(run=_list_command, config=None, record=None, limit=20, status=None, json=False)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("list", help="the youngest runs (also without ACTION)")
    _add_list_arguments(listing)
    listing.set_defaults(run=_list_command)
    show = actions.add_parser("show", help="one run: decision, calls, tokens, cost, time")
    _add_arguments(show)
    show.add_argument("id", help="run id, or the beginning of one")
    show.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="row and events as JSON")
    show.set_defaults(run=_show_command)


def _add_list_arguments(parser: argparse.ArgumentParser) -> None:
    """As `_add_arguments`."""
    _add_arguments(parser)
    parser.add_argument("--limit", type=int, default=argparse.SUPPRESS, help="how many (default 20)")
    parser.add_argument(
        "--status",
        choices=["running", "answered", "failed", "client_closed", "interrupted", "budget", "routed"],
        default=argparse.SUPPRESS,
        help="only runs that ended so",
    )
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="one JSON object per line")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    """Before the action or after it: without defaults, the second does not undo the first."""
    for option, what in (
        ("--config", "installation file (default ./fugu.toml)"),
        ("--record", "record to read, instead of the installation's"),
    ):
        parser.add_argument(option, type=Path, default=argparse.SUPPRESS, help=what)


def _record_of(args: argparse.Namespace) -> Path:
    path: Path = args.record or (
        read_installation(args.config).record if args.config or Path("fugu.toml").exists() else Path("runs.sqlite")
    )
    if not path.exists():
        raise ConfigError(f"{path}: no record here (`fugu serve` and `fugu ask` write one): name one with --record")
    return path


def _list_command(args: argparse.Namespace) -> int:
    async def read() -> list[RunRow]:
        async with open_reader(_record_of(args)) as reader:
            return await reader.list_runs(args.limit, status=args.status)

    rows = asyncio.run(read())
    if args.json:
        for row in rows:
            print(msgspec.json.encode(row).decode())
        return 0
    columns = ["run", "when", "model", "status", "workers", "calls", "tokens", "cost", "ms"]
    print_table("", columns, [_cells(row) for row in rows])
    return 0


def _show_command(args: argparse.Namespace) -> int:
    async def read() -> StoredRun | None:
        async with open_reader(_record_of(args)) as reader:
            return await reader.get_run(args.id)

    stored = asyncio.run(read())
    if stored is None:
        raise ConfigError(f"no run {args.id!r} in {_record_of(args)}")
    if args.json:
        print(msgspec.json.encode(stored).decode())
    else:
        print_run(stored)
    return 0


def print_run(stored: StoredRun) -> None:
    """The run: what of its steps ran when, if there were several; then its timeline."""
    row = stored.run
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.accepted_at))
    out.print(f"{row.id}  {when}  {row.model} by {row.policy}  {row.status}", style="bold")
    for line in draw_graph(stored, out.width):
        out.print(line)
    started = stored.events[0][0] if stored.events else row.accepted_at
    for at, event in stored.events:
        head, *details = _lines(event)
        out.print(f"{(at - started) * 1e3:8.0f} ms  {head}")
        for line in details:
            out.print(f"             {line}", style="dim")


def _lines(event: Event) -> Sequence[str]:
    match event:
        case Accepted(request=request):
            asked = [f"{message.role}: {_short(message.text)}" for message in request.messages[-2:]]
            return [f"accepted  {len(request.messages)} messages", *asked]
        case Planned(plan=plan, decision_ms=decision_ms):
            steps = "; ".join(f"step {step.id}: {step.worker} as {step.role}" for step in plan.steps)
            scores = ", ".join(f"{worker} {score:.3f}" for worker, score in (plan.scores or {}).items())
            notes = ", ".join(f"{name} {value}" for name, value in plan.notes.items())
            details = [scores and f"scores: {scores}", plan.masked and f"not allowed: {', '.join(plan.masked)}", notes]
            return [f"planned   {steps}  ({decision_ms:.1f} ms)", *(line for line in details if line)]
        case Called():
            return [f"called    {event.worker}  step {event.step}, attempt {event.attempt}, {event.reason}"]
        case Replied(reply=reply):
            sent = "" if reply.sent_bytes is None else f", {reply.sent_bytes} bytes sent"
            spent = f"{_tokens(reply.usage)}, {usd(reply.cost_usd)} ({reply.price_source or 'no price'}){sent}"
            return [f"replied   {reply.worker}  {reply.finish_reason}, {spent}", _short(reply.text)]
        case Failed():
            return [f"failed    {event.worker}  {event.code}: {_short(event.message)}, {usd(event.cost_usd)}"]
        case Suspended(pending=pending):
            steps = ", ".join(str(step) for step in pending.waiting)
            return [f"suspended with step {steps}, until the results of its tools come"]
        case Answered():
            notes = ", ".join(f"{name} {value}" for name, value in event.notes.items())
            return [f"answered  with step {event.step} by {event.worker}", *([notes] if notes else [])]
        case Stopped():
            spent = f"{event.calls} calls, {_tokens(event.usage)}, {usd(event.cost_usd)}"
            return [f"stopped   by {event.by}: {spent}", *([str(event.error)] if event.error else [])]


def _cells(row: RunRow) -> list[str]:
    tokens = "-" if row.input_tokens is None else f"{row.input_tokens}+{row.output_tokens}"
    return [
        row.id,
        time.strftime("%m-%d %H:%M:%S", time.localtime(row.accepted_at)),
        row.model,
        row.status if row.error_code is None else f"{row.status} ({row.error_code})",
        " ".join(row.workers),
        "-" if row.calls is None else str(row.calls),
        tokens,
        "-" if row.status == "running" else usd(row.cost_usd),
        "-" if row.latency_ms is None else f"{row.latency_ms:.0f}",
    ]


def _tokens(usage: Usage) -> str:
    known = [("in", usage.input_tokens), ("out", usage.output_tokens)]
    return " + ".join(f"{'unknown' if n is None else n} {name}" for name, n in known) + " tokens"


def _short(text: str) -> str:
    flat = printable(text)
    return flat if len(flat) <= _LONGEST_TEXT else f"{flat[:_LONGEST_TEXT]} … ({len(text)} characters)"
