"""An installation: which pool, which policy, where the record is. `fugu.toml`, and what is opened from it.

    pool = "pool.toml"
    policy = "policy"
    record = "runs.sqlite"
    [server]
    port = 8377

Paths are relative to the file. This is the composition root of every command that calls workers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..config import read_table, read_toml
from ..errors import ConfigError
from ..orchestrate.encoder import Encoder
from ..orchestrate.policy import Direct, Policy
from ..pool import Pool, open_pool, read_pool
from ..pool.home import home_pool_path
from ..pool.spec import PoolSpec
from ..server.config import ServerConfig
from ..store import RunStore, open_store

__all__ = ["Installation", "Opened", "open_installation", "read_installation"]

DEFAULT_FILE = Path("fugu.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What `fugu.toml` says."""

    pool: Path | None = None
    """Pool file; None: the home pool, which needs no key and no network."""
    policy: Path | None = None
    """Folder of the head behind `fugu`; None: `fugu` is not offered, only the workers are."""
    trinity: Path | None = None
    """Folder of the head behind `fugu-trinity`; None: it is not offered."""
    record: Path = Path("runs.sqlite")
    """Where runs are recorded."""
    server: ServerConfig = field(default_factory=ServerConfig)

    def read_pool(self) -> PoolSpec:
        return read_pool(self.pool or home_pool_path())


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An installation, ready to answer."""

    installation: Installation
    pool: Pool
    policies: dict[str, Policy]
    store: RunStore
    warnings: tuple[str, ...] = ()
    """What whoever serves this should know."""

    def policy_for(self, model: str) -> Policy:
        """Raises ConfigError: neither a policy nor a worker has this name."""
        if model in self.policies:
            return self.policies[model]
        if model in self.pool.ids:
            return Direct(model)
        is_ours = model in ("fugu", "fugu-trinity")
        why = f" (`{model}` is not offered: no policy is configured)" if is_ours else ""
        names = ", ".join([*self.policies, *sorted(self.pool.ids)])
        raise ConfigError(f"no model {model!r}: expected one of {names}{why}")


def read_installation(
    file: Path | None,
    *,
    pool: Path | None = None,
    policy: Path | None = None,
    trinity: Path | None = None,
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
    if chosen is None:
        installation = Installation()
    else:
        read = read_table(Installation, read_toml(chosen), where=str(chosen))
        base = chosen.parent
        installation = replace(
            read,
            pool=None if read.pool is None else base / read.pool,
            policy=None if read.policy is None else base / read.policy,
            trinity=None if read.trinity is None else base / read.trinity,
            record=base / read.record,
        )
    return replace(
        installation,
        pool=pool or installation.pool,
        policy=policy or installation.policy,
        trinity=trinity or installation.trinity,
        record=record or installation.record,
    )


@asynccontextmanager
async def open_installation(installation: Installation) -> AsyncIterator[Opened]:
    """Everything a request needs, for as long as the context lasts. A configured policy loads, or this raises.

    Raises:
        ConfigError, ModelError, StoreError: what is configured cannot be had.
    """
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(open_pool(installation.read_pool()))
        policies: dict[str, Policy] = {}
        warnings = []
        if installation.policy is None and installation.trinity is None:
            warnings.append("`fugu` is not offered: no policy is configured (fugu train selector, then --policy DIR)")
        else:
            warnings += _load_policies(installation, pool, policies, stack)
        store = await stack.enter_async_context(open_store(installation.record))
        yield Opened(installation=installation, pool=pool, policies=policies, store=store, warnings=tuple(warnings))


def _load_policies(
    installation: Installation, pool: Pool, policies: dict[str, Policy], stack: AsyncExitStack
) -> list[str]:
    """Fills `policies`, by model name. Returns what is to be said of them."""
    from ..local.open import EncoderConfig, open_encoder, read_encoder_config
    from ..orchestrate.artefact import read_card
    from ..orchestrate.policies import KINDS, load_policy

    opened: dict[EncoderConfig, Encoder] = {}  # one of a kind: two policies may read with the same
    models = {id: spec.model for id, spec in pool.specs.items()}
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
        policies[name] = load_policy(folder, opened[config], models)
        if not card.gate.get("promoted"):
            warnings.append(
                f"{policies[name].id} was not promoted: nothing shows that it beats the best single worker "
                f"(fugu eval --policy {folder} --data DIR --promote)"
            )
        elif card.gate.get("forced"):
            warnings.append(f"{policies[name].id} was promoted by force: {card.gate.get('objection')}")
    return warnings
