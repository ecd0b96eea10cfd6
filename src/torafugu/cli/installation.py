"""An installation: which pool, which policy, where the record is. `fugu.toml`, and what is opened from it.

    pool = "pool.toml"
    policy = "policy"
    record = "runs.sqlite"
    [server]
    port = 8377
    [conductor]
    worker = "sonnet"
    [budget]
    usd = 0.5

Paths are relative to the file. This is the composition root of every command that calls workers.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..conductors import (
    ConductorCard,
    complete_config,
    find_card,
    find_cards,
    find_folder,
    say_unknown,
)
from ..config import read_table, read_toml
from ..errors import ConfigError, FuguError
from ..orchestrate.artefact import Card
from ..orchestrate.budget import Budget
from ..orchestrate.conductor import Conductor, ConductorConfig
from ..orchestrate.encoder import Encoder
from ..orchestrate.panel import Panel, PanelConfig
from ..orchestrate.policy import Direct, Policy
from ..pool import Backend, Pool, open_pool, read_pool
from ..pool.home import home_pool_path
from ..pool.open import Maker
from ..pool.prices import resolve_price
from ..pool.spec import Dialect, PoolSpec, WorkerSpec
from ..server.config import ServerConfig
from ..server.sessions import SessionsConfig
from ..store import RunStore, open_store

__all__ = [
    "LACKS",
    "Installation",
    "Opened",
    "check_conductor",
    "choose_called",
    "local_makers",
    "open_installation",
    "read_installation",
]

DEFAULT_FILE = Path("fugu.toml")
LACKS = {
    "fugu": "no policy is configured (fugu train selector, then --policy DIR)",
    "fugu-trinity": "no policy is configured (fugu train trinity, then --trinity DIR)",
    "fugu-ultra": "no conductor is configured ([conductor] in fugu.toml, or --conductor WORKER)",
    "fugu-panel": "no panel is configured ([panel] in fugu.toml)",
}
"""Why a model of ours is not offered, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What `fugu.toml` says."""

    pool: Path | None = None
    """Pool file; None: the home pool, which needs no key and no network."""
    policy: Path | None = None
    """Folder of the head behind `fugu`; None: `fugu` is not offered, only the workers are."""
    trinity: Path | None = None
    """Folder of the head behind `fugu-trinity`; None: it is not offered."""
    conductor: ConductorConfig | None = None
    """Who writes the workflows of `fugu-ultra`, and for whom; None: it is not offered."""
    panel: PanelConfig | None = None
    """Whom `fugu-panel` asks, and who judges; None: it is not offered."""
    budget: Budget = field(default_factory=Budget)
    """What one run may spend."""
    sessions: SessionsConfig = field(default_factory=SessionsConfig)
    """How long a conversation keeps its worker behind `fugu`."""
    record: Path = Path("runs.sqlite")
    """Where runs are recorded."""
    server: ServerConfig = field(default_factory=ServerConfig)

    def read_pool(self) -> PoolSpec:
        return read_pool(self.pool or home_pool_path())

    def read_answering(self) -> tuple[PoolSpec, tuple[str, ...]]:
        """The pool without trained conductors, which have no answers, and who they are.

        Raises:
            ConfigError, ModelError: the pool or a conductor cannot be read, or nobody else is there.
        """
        spec = self.read_pool()
        cards = find_cards(spec, self.pool_folder)
        left = tuple(worker for worker in spec.worker if worker.id not in cards)
        return replace(spec, worker=left), tuple(cards)

    @property
    def pool_folder(self) -> Path:
        """Where relative paths in the pool file start."""
        return Path() if self.pool is None else self.pool.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An installation, ready to answer."""

    installation: Installation
    pool: Pool
    policies: dict[str, Policy]
    store: RunStore
    models: Mapping[str, str]
    """What stands behind each worker, by id; of a trained conductor with the hash of its bytes."""
    warnings: tuple[str, ...] = ()
    """What whoever serves this should know."""

    def policy_for(self, model: str) -> Policy:
        """Raises ConfigError: neither a policy nor a worker has this name."""
        if model in self.policies:
            return self.policies[model]
        if model in self.pool.ids:
            return Direct(model)
        why = f" (`{model}` is not offered: {LACKS[model]})" if model in LACKS else ""
        names = ", ".join([*self.policies, *sorted(self.pool.ids)])
        raise ConfigError(f"no model {model!r}: expected one of {names}{why}")


def read_installation(
    file: Path | None,
    *,
    pool: Path | None = None,
    policy: Path | None = None,
    trinity: Path | None = None,
    conductor: str | None = None,
    record: Path | None = None,
) -> Installation:
    """`file`, else ./fugu.toml, else nothing but defaults; then what the command line says.

    Raises:
        ConfigError: the file is missing or malformed, or there is neither a file nor a pool to go by.
    """
    chosen = file or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    if chosen is None and pool is None:
        raise ConfigError(
            "no fugu.toml here and no --pool given: run `fugu init` to write one, or `fugu demo` to see it work without"
        )
    table = {} if chosen is None else read_toml(chosen)
    if chosen is None:
        installation = Installation()
    else:
        read = read_table(Installation, _name_conductor(table, conductor), where=str(chosen))
        base = chosen.parent
        installation = replace(
            read,
            pool=None if read.pool is None else base / read.pool,
            policy=None if read.policy is None else base / read.policy,
            trinity=None if read.trinity is None else base / read.trinity,
            record=base / read.record,
        )
    installation = replace(
        installation,
        pool=pool or installation.pool,
        policy=policy or installation.policy,
        trinity=trinity or installation.trinity,
        record=record or installation.record,
    )
    written = _name_conductor(table, conductor).get("conductor")
    if written is None:
        return installation
    where = "--conductor" if chosen is None else f"{chosen}.conductor"
    config = complete_config(written, _find_card_of(written["worker"], installation), where=where)
    return replace(installation, conductor=config)


def _name_conductor(table: Mapping[str, Any], worker: str | None) -> dict[str, Any]:
    """The file's table, with the conductor that the command line names."""
    if worker is None:
        return dict(table)
    written = table.get("conductor", {})
    return {**table, "conductor": {**written, "worker": worker} if isinstance(written, dict) else written}


def _find_card_of(worker: str, installation: Installation) -> ConductorCard | None:
    """Whatever is wrong with the pool or the card is found when the pool is opened, which reads both again: commands
    that only want the record need neither."""
    try:
        specs = [spec for spec in installation.read_pool().worker if spec.id == worker]
        return find_card(specs[0], installation.pool_folder) if specs else None
    except FuguError:
        return None


def local_makers(pool: Path | None) -> Mapping[Dialect, Maker]:
    """Of workers that are models in this process, which the pool itself knows nothing of; their relative paths start at
    the pool file, `shipped:NAME` is a conductor of this package. Imports nothing heavy before a pool names one."""

    def make(spec: WorkerSpec) -> Backend:
        from ..local.generator import make_generator

        folder = Path() if pool is None else pool.parent
        find_card(spec, folder)  # a conductor that is not what its card says is not served
        path = find_folder(spec.model, folder)
        return make_generator(spec if path == folder / spec.model else replace(spec, model=str(path)), folder=folder)

    return {"local": make}


@asynccontextmanager
async def open_installation(installation: Installation) -> AsyncIterator[Opened]:
    """Everything a request needs, for as long as the context lasts. A configured policy loads, or this raises.

    Raises:
        ConfigError, ModelError, StoreError: what is configured cannot be had.
    """
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(
            open_pool(installation.read_pool(), makers=local_makers(installation.pool))
        )
        cards = find_cards(installation.read_pool(), installation.pool_folder)
        models = {id: spec.model for id, spec in pool.specs.items()}
        models |= {id: f"{models[id]}@{card.short_hash}" for id, card in cards.items()}
        if installation.conductor is not None:
            installation = replace(installation, conductor=choose_called(installation.conductor, models, cards))
        policies: dict[str, Policy] = {}
        warnings = []
        if installation.policy is not None or installation.trinity is not None:
            warnings += _load_policies(installation, pool, policies, stack, trained=frozenset(cards))
        if installation.conductor is not None:
            tool_users = frozenset(id for id, spec in pool.specs.items() if spec.tools)
            policies["fugu-ultra"] = Conductor(installation.conductor, models, tool_users=tool_users)
            warnings += check_conductor(installation.conductor, models, cards)
        if installation.panel is not None:
            policies["fugu-panel"] = Panel(installation.panel, models)
        if not policies:
            warnings.append(f"`fugu` is not offered: {LACKS['fugu']}")
        store = await stack.enter_async_context(open_store(installation.record))
        yield Opened(
            installation=installation,
            pool=pool,
            policies=policies,
            store=store,
            models=models,
            warnings=tuple(warnings),
        )


def choose_called(config: ConductorConfig, workers: Iterable[str], trained: Collection[str]) -> ConductorConfig:
    """Where it is not said whom a conductor may call, not another `trained` one, which has no answers."""
    if config.workers is not None or not set(trained) - {config.worker}:
        return config
    called = tuple(id for id in workers if id not in trained and id != config.worker)
    return replace(config, workers=called or None)


def check_conductor(
    config: ConductorConfig, models: Mapping[str, str], cards: Mapping[str, ConductorCard]
) -> list[str]:
    """What is to be said where it was not trained for those it may call. `models`: of the pool, by worker id."""
    card = cards.get(config.worker)
    if card is None:
        return []
    called = {id: models[id] for id in config.workers or models if id in models and id != config.worker}
    said = say_unknown(config.worker, card, called)
    return [] if said is None else [said]


def _load_policies(
    installation: Installation,
    pool: Pool,
    policies: dict[str, Policy],
    stack: AsyncExitStack,
    *,
    trained: frozenset[str],
) -> list[str]:
    """Fills `policies`, by model name. Returns what is to be said of them. `trained`: the trained conductors."""
    from ..local.open import EncoderConfig, open_encoder, read_encoder_config
    from ..orchestrate.artefact import read_card
    from ..orchestrate.policies import KINDS, load_policy

    opened: dict[EncoderConfig, Encoder] = {}  # one of a kind: two policies may read with the same
    warnings = []
    for name, folder in (("fugu", installation.policy), ("fugu-trinity", installation.trinity)):
        if folder is None:
            continue
        card = read_card(folder, *KINDS)
        if KINDS[card.kind] != name:
            key = "policy" if name == "fugu-trinity" else "trinity"
            raise ConfigError(
                f"{folder}: a {card.kind} is behind `{KINDS[card.kind]}`, not `{name}`: name it as `{key}`"
            )
        config = read_encoder_config(card.rules, where=str(folder))
        if config not in opened:
            encoder = open_encoder(config)
            stack.callback(encoder.close)
            opened[config] = encoder
        apart = _find_only_conducting(installation.conductor, card, trained=trained)
        policies[name] = load_policy(
            folder,
            opened[config],
            {id: spec.model for id, spec in pool.specs.items() if id not in apart},
            switch_margin=installation.sessions.switch_margin,
            price_of=functools.cache(lambda id: resolve_price(pool.specs[id])),
        )
        if not card.gate.get("promoted"):
            warnings.append(
                f"{policies[name].id} was not promoted: nothing shows that it beats the best single worker "
                f"(fugu eval --policy {folder} --data DIR --promote)"
            )
        elif card.gate.get("forced"):
            warnings.append(f"{policies[name].id} was promoted by force: {card.gate.get('objection')}")
    return warnings


def _find_only_conducting(config: ConductorConfig | None, card: Card, *, trained: frozenset[str]) -> frozenset[str]:
    """Workers that no head chooses, for they have no answers: trained conductors, and a conductor that the head was
    never shown and that no workflow calls. One that the head knows answers as well as it plans."""
    known = {worker.id for worker in card.workers}
    if config is None or config.worker in known or config.worker in (config.workers or ()):
        return trained
    return trained | {config.worker}
