"""`fugu init` and `fugu doctor`: from keys in the environment to an installation, and what is wrong with one."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from ..conductors import HOME_CONDUCTOR, find_card, find_cards, find_folder
from ..errors import ConfigError, FuguError
from ..pool.discover import discover, render_pool_toml
from ..pool.home import home_pool_path
from ..pool.prices import resolve_price
from ..pool.spec import PoolSpec
from .console import err, out
from .installation import LACKS, Installation, check_conductor, choose_called, open_installation
from .serve import add_installation_arguments, installation_from

__all__ = ["HOME_INSTALLATION", "add_parsers", "home_pool"]

_TEMPLATE = """\
# A Torafugu installation. Paths are relative to this file.
pool = "pool.toml"
# policy = "policy"      # the head behind `fugu`: fugu profile, then fugu train selector --out policy
# trinity = "trinity"    # the head behind `fugu-trinity`: fugu train trinity --out trinity
record = "runs.sqlite"   # every run: who was called, with what, for how much

{conductor}# [panel]                # behind `fugu-panel`: several answer, one merges
# workers = ["ID", "ID"]
# judge = "ID"
# [budget]               # of one run; seconds = 600 and calls = 32 unless said otherwise
# usd = 0.5

[server]
host = "127.0.0.1"
port = 8377
# Beyond loopback, keys are required. The value stands in the environment, never here:
# [[server.keys]]
# name = "me"
# env = "FUGU_API_KEY"
"""
_INSTALLATION = _TEMPLATE.format(
    conductor="""\
# [conductor]            # behind `fugu-ultra`: a worker that plans who does what
# worker = "ID"
"""
)
HOME_INSTALLATION = _TEMPLATE.format(
    conductor="""\
[conductor]              # behind `fugu-ultra`: a worker that plans who does what; this one was trained for it
worker = "home-conductor"
"""
)
_HOME_CONDUCTOR = f"""
# Writes the workflows of `fugu-ultra`: a language model of 1 M parameters, trained for the workers above and in this
# process too. It has no answers of its own, and knows only questions as `fugu profile --tasks home-multi` asks them.
[[worker]]
id = "home-conductor"
dialect = "local"
model = "{HOME_CONDUCTOR}"
prices = {{ input = 0, output = 0 }}
tools = false
tags = {{ provider = "home", zero_retention = true, licence = "Apache-2.0" }}
"""

_NEXT = """\
  fugu doctor                                          is everything in order?
  fugu profile --pool pool.toml --tasks {tasks} --out profile
                                                       what can each worker do? (says what it costs, and asks)
  fugu train selector --data profile --out policy      learn whom to ask
  fugu eval --policy policy --data profile --promote   is that any better than the best single worker?
  fugu train trinity --data profile --out trinity      learn whom to ask next, and when answers can be trusted
  fugu serve                                           after taking the # off `policy` in fugu.toml"""


_NEXT_ULTRA = """\
  fugu ask --model fugu-ultra "Take the number of legs of 12 beetles and 18 cows, once with its digits in reverse \
order and once 95 times as large. What is the sum of the two? Put your final answer between <answer> and </answer>."
                                                       a workflow, by the conductor that ships"""
"""A question of the kind that it was trained on: of other kinds it writes no workflow, or a poor one."""


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    init = commands.add_parser(
        "init",
        help="find API keys and local model servers, and write fugu.toml and pool.toml for them",
        description="Look for provider keys in the environment and for Ollama, vLLM, llama.cpp and LM Studio on this "
        "machine. Keys are named in the files, never written there.",
    )
    init.add_argument("--dir", type=Path, default=Path(), help="where to write (default: here)")
    init.add_argument("--home", action="store_true", help="take the home pool, which needs no key and no network")
    init.add_argument("--force", action="store_true", help="overwrite what is there")
    init.set_defaults(run=_init_command)
    doctor = commands.add_parser("doctor", help="check an installation: files, keys, prices, policy, record")
    add_installation_arguments(doctor)
    doctor.set_defaults(run=_doctor_command)


def _init_command(args: argparse.Namespace) -> int:
    taken = [args.dir / name for name in ("pool.toml", "fugu.toml") if (args.dir / name).exists()]
    if taken and not args.force:
        raise ConfigError(f"{taken[0]} exists: --force overwrites it")
    targets = {"pool.toml": home_pool() if args.home else _found_pool()}
    targets["fugu.toml"] = HOME_INSTALLATION if args.home else _INSTALLATION
    args.dir.mkdir(parents=True, exist_ok=True)
    for name, text in targets.items():
        (args.dir / name).write_text(text)
        out.print(f"wrote {args.dir / name}")
    out.print("next:" if args.dir == Path() else f"next, in {args.dir}:")
    if args.home:
        out.print(_NEXT_ULTRA)
    out.print(_NEXT.format(tasks="home" if args.home else "my-tasks.jsonl"))
    return 0


def home_pool() -> str:
    """The home pool and the conductor that ships for it, as a pool file.

    Raises:
        ModelError: it did not ship.
    """
    find_folder(HOME_CONDUCTOR, Path())
    return home_pool_path().read_text() + _HOME_CONDUCTOR


def _found_pool() -> str:
    import aiohttp

    async def look() -> str:
        async with aiohttp.ClientSession(trust_env=False) as session:
            found = await discover(os.environ, session=session)
        for note in found.notes:
            err.print(note)
        if not found.workers:
            raise ConfigError(
                "no provider key in the environment and no local model server found: set for example OPENAI_API_KEY, "
                "start Ollama, or take the home pool with `fugu init --home`"
            )
        return render_pool_toml(found)

    return asyncio.run(look())


def _doctor_command(args: argparse.Namespace) -> int:
    failed = False
    for is_good, line in _diagnose(installation_from(args)):
        out.print(f"{'ok  ' if is_good else 'FAIL'}  {line}")
        failed |= not is_good
    return 1 if failed else 0


def _diagnose(installation: Installation) -> Iterator[tuple[bool, str]]:
    yield sys.version_info >= (3, 11), f"Python {sys.version.split()[0]}"
    where = installation.pool or "the home pool"
    try:
        spec = installation.read_pool()
    except FuguError as error:
        yield False, error.message
        return
    yield True, f"pool {where}: {', '.join(worker.id for worker in spec.worker)}"
    for worker in spec.worker:
        if worker.key_env and not os.environ.get(worker.key_env, "").strip():
            yield False, f"worker {worker.id!r}: {worker.key_env} is not set"
        price = resolve_price(worker)
        yield True, f"worker {worker.id!r}: price {'unknown: its costs will be too' if price is None else price.source}"
    for name, folder in (("fugu", installation.policy), ("fugu-trinity", installation.trinity)):
        if folder is None:
            yield True, f"`{name}` is not offered: {LACKS[name]}"
        else:
            yield from _diagnose_policy(folder)
    for name, config in (("fugu-ultra", installation.conductor), ("fugu-panel", installation.panel)):
        if config is None:
            yield True, f"`{name}` is not offered: {LACKS[name]}"
    yield from _diagnose_conductor(installation, spec)
    yield from _diagnose_budget(installation, spec)
    for key in installation.server.keys:
        if key.env and not os.environ.get(key.env, "").strip():
            yield False, f"key {key.name!r}: {key.env} is not set"
    try:
        offered = asyncio.run(_open(installation))
    except FuguError as error:
        yield False, error.message
        return
    from ..grade.sandbox import probe_sandboxes

    tiers = {probe.tier: probe.problem for probe in probe_sandboxes()}
    told = ", ".join(
        f"{tier} {'works' if problem is None else 'does not: ' + problem}" for tier, problem in tiers.items()
    )
    yield True, f"sandbox for programs: {told}{'' if None in tiers.values() else '; code is not graded'}"
    yield True, f"offered: {', '.join(offered) or 'the workers only'}"
    yield True, f"everything opens; record {installation.record}"


def _diagnose_conductor(installation: Installation, spec: PoolSpec) -> Iterator[tuple[bool, str]]:
    config = installation.conductor
    conducting = next((worker for worker in spec.worker if config is not None and worker.id == config.worker), None)
    if config is None or conducting is None:  # a worker that is not there is found when everything is opened
        return
    try:
        card = find_card(conducting, installation.pool_folder)
    except FuguError as error:
        yield False, error.message
        return
    if card is None:
        yield True, f"conductor {config.worker!r}: not trained for it, but asked to"
        return
    trained = ", ".join(worker.id for worker in card.workers)
    yield True, f"conductor {config.worker!r}: {card.short_hash}, trained for {trained}; it only conducts"
    models = {worker.id: worker.model for worker in spec.worker}
    try:
        cards = find_cards(spec, installation.pool_folder)
    except FuguError as error:  # of another conductor in the pool
        yield False, error.message
        return
    for said in check_conductor(choose_called(config, models, cards), models, cards):
        yield False, said


def _diagnose_budget(installation: Installation, spec: PoolSpec) -> Iterator[tuple[bool, str]]:
    budget, panel = installation.budget, installation.panel
    if budget.usd is not None:
        for worker in spec.worker:
            if resolve_price(worker) is None:
                yield False, f"worker {worker.id!r}: budget.usd is set, so it is never called: declare its prices"
    if panel is not None and budget.calls is not None:
        calls = len(panel.workers) * panel.samples + (panel.judge is not None)
        if calls > budget.calls:
            yield False, f"panel: makes {calls} calls, budget.calls is {budget.calls}"


def _diagnose_policy(folder: Path) -> Iterator[tuple[bool, str]]:
    from ..orchestrate.artefact import read_card
    from ..orchestrate.policies import KINDS

    try:
        card = read_card(folder, *KINDS)
    except FuguError as error:
        yield False, error.message
        return
    name, gate = f"{KINDS[card.kind]}@{card.short_hash}", card.gate
    if not gate.get("promoted"):
        yield True, f"policy {name}: not promoted; measure it: fugu eval --policy {folder} --data DIR --promote"
    else:
        low = f"{gate['gain']['low'] * 100:+.1f} %"
        yield True, f"policy {name}: promoted{' BY FORCE' if gate['forced'] else ''}, lower bound {low}"


async def _open(installation: Installation) -> list[str]:
    """The ids of the policies."""
    async with open_installation(installation) as opened:
        return [policy.id for policy in opened.policies.values()]
