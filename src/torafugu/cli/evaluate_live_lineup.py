"""Who is run by `fugu eval --tasks`: the policy that is measured, its rivals, and how often each of them calls whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..conductors import find_cards
from ..errors import ConfigError
from ..eval.live import Contestant
from ..eval.live_costs import Calls
from ..eval.live_policies import RandomWorkers
from ..eval.live_report import Entry
from ..orchestrate.conductor import EFFORTS, USUAL_EFFORT, Conductor, ConductorConfig
from .installation import Opened, read_installation

__all__ = ["Lineup", "Wanted", "line_up"]

RANDOM = "random workers"
_IN_PROCESS = ("local", "scripted")
"""Dialects of models that may be there for conducting alone."""
_CONDUCTOR_TOKENS, _STEP_TOKENS, _TURN_TOKENS, _JUDGE_TOKENS = 1000, 700, 600, 1500
"""Around the question, typically: rules and examples; results that a step sees; a transcript; candidates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the command line says of it."""

    against: Sequence[str]
    """Empty: every single worker."""
    start: str | None
    """Another conductor: a worker of the pool, or a TOML file."""
    random_workers: bool
    effort: str | None
    """Of the conductors; None: the usual one."""
    seed: int
    """Of the drawing of workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineup:
    ours: Contestant
    others: tuple[Contestant, ...]
    kinds: Mapping[str, str]
    """As `Entry.kind`, by name."""
    calls: Mapping[str, tuple[Calls, ...]]
    """What each makes for a task, by name."""
    not_alone: tuple[str, ...]
    """Workers that only conduct, and are not run as single workers."""

    @property
    def singles(self) -> list[Contestant]:
        return [contestant for contestant in self.others if self.kinds[contestant.name] == "worker"]

    def entry(self, contestant: Contestant) -> Entry:
        return Entry(name=contestant.name, id=contestant.policy.id, kind=self.kinds[contestant.name])


def line_up(wanted: Wanted, name: str, opened: Opened) -> Lineup:
    """Raises ConfigError: there is no such policy, or an option does not go with it."""
    ours = Contestant(name=name, policy=opened.policy_for(name))
    extras: list[Contestant] = []
    conducts: dict[str, ConductorConfig] = {}
    if name == "fugu-ultra":
        (ours, *extras), conducts = _line_up_conductors(wanted, name, opened)
    elif wanted.start is not None or wanted.random_workers or wanted.effort is not None:
        raise ConfigError(f"--start, --random-workers and --effort go with --policy fugu-ultra, not with {name!r}")
    rivals, not_alone = _find_rivals(wanted.against, name, opened, list(conducts.values()))
    others = [*(Contestant(name=each, policy=opened.policy_for(each)) for each in rivals), *extras]
    kinds = {c.name: "worker" if c.name in opened.pool.ids else "policy" for c in (ours, *others)}
    kinds |= {c.name: RANDOM if c.name == RANDOM else "start" for c in extras}
    calls = {c.name: _calls_of(c.name, opened, conducts, wanted.effort) for c in (ours, *others)}
    return Lineup(ours=ours, others=tuple(others), kinds=kinds, calls=calls, not_alone=tuple(not_alone))


def _line_up_conductors(
    wanted: Wanted, name: str, opened: Opened
) -> tuple[list[Contestant], dict[str, ConductorConfig]]:
    """(Ours, then what is made of it or replaces it; each one's conductor, by name.)"""
    config = opened.installation.conductor
    assert config is not None, "it is offered only then"
    start = _read_start(wanted.start, opened)
    workers = _callable(config, opened, start)
    if config.workers is None and start is not None:  # both are offered the same workers, under the same numbers
        config = replace(config, workers=workers)
    ours = Contestant(name=name, policy=_conductor(config, opened), effort=wanted.effort)
    found, conducts = [ours], {name: config}
    if start is not None:
        start = replace(start, workers=workers)
        before = Contestant(name=f"start: {start.worker}", policy=_conductor(start, opened), effort=wanted.effort)
        if before.policy.id == ours.policy.id:
            raise ConfigError(f"--start {wanted.start}: that is the conductor that is measured: expected another one")
        found.append(before)
        conducts[before.name] = start
    if wanted.random_workers:
        policy = RandomWorkers(ours.policy, workers, seed=wanted.seed)
        found.append(Contestant(name=RANDOM, policy=policy, effort=wanted.effort))
        conducts[RANDOM] = config
    return found, conducts


def _read_start(start: str | None, opened: Opened) -> ConductorConfig | None:
    """Raises ConfigError: it is neither a worker nor a file with a conductor."""
    if start is None:
        return None
    if start in opened.pool.ids:
        config = opened.installation.conductor
        return ConductorConfig(worker=start) if config is None else replace(config, worker=start)
    if not start.endswith(".toml"):
        names = ", ".join(sorted(opened.pool.ids))
        raise ConfigError(f"--start {start!r}: expected one of {names}, or a TOML file with a [conductor]")
    read = read_installation(Path(start), pool=opened.installation.pool).conductor
    if read is None:
        raise ConfigError(f"--start {start}: the file has no [conductor]")
    return read


def _callable(config: ConductorConfig, opened: Opened, start: ConductorConfig | None = None) -> tuple[str, ...]:
    """Whom it may call: as it says, or the pool without those that conduct."""
    apart = {config.worker, config.worker if start is None else start.worker}
    return config.workers or tuple(worker for worker in opened.pool.specs if worker not in apart)


def _conductor(config: ConductorConfig, opened: Opened) -> Conductor:
    tool_users = frozenset(id for id, spec in opened.pool.specs.items() if spec.tools)
    return Conductor(config, opened.models, tool_users=tool_users)


def _find_rivals(
    against: Sequence[str], name: str, opened: Opened, conductors: Sequence[ConductorConfig]
) -> tuple[list[str], list[str]]:
    """(Whom to compare with, by name; workers that are left out because they are models that only conduct.)"""
    if against:
        return [each for each in dict.fromkeys(against) if each != name], []
    called = {worker for config in conductors for worker in _callable(config, opened)}
    conducting = {config.worker for config in conductors if opened.pool.specs[config.worker].dialect in _IN_PROCESS}
    trained = set(find_cards(opened.installation.read_pool(), opened.installation.pool_folder))
    only_conduct = [worker for worker in opened.pool.specs if worker in (conducting | trained) - called]
    rivals = [worker for worker in opened.pool.specs if worker != name and worker not in only_conduct]
    return rivals, only_conduct


def _calls_of(
    name: str, opened: Opened, conducts: Mapping[str, ConductorConfig], effort: str | None
) -> tuple[Calls, ...]:
    everyone, panel = tuple(opened.pool.specs), opened.installation.panel
    if name in conducts:
        config = conducts[name]
        limits = EFFORTS[effort or USUAL_EFFORT]
        rounds = limits.rounds + config.replans
        return (
            Calls(
                workers=(config.worker,),
                typical=min(1 + config.again, limits.rounds),
                most=config.attempts * rounds,
                extra_input_tokens=_CONDUCTOR_TOKENS,
            ),
            Calls(
                workers=_callable(config, opened),
                typical=min(3, limits.steps),
                most=limits.steps * rounds,
                extra_input_tokens=_STEP_TOKENS,
            ),
        )
    if name == "fugu-panel" and panel is not None:
        asked = tuple(Calls(workers=(each,), typical=panel.samples, most=panel.samples) for each in panel.workers)
        judge = () if panel.judge is None else (panel.judge,)
        return (*asked, *(Calls(workers=(j,), typical=1, most=1, extra_input_tokens=_JUDGE_TOKENS) for j in judge))
    if name == "fugu-trinity":
        return (Calls(workers=everyone, typical=3, most=5, extra_input_tokens=_TURN_TOKENS),)
    return (Calls(workers=(name,) if name in opened.pool.ids else everyone, typical=1, most=1),)
