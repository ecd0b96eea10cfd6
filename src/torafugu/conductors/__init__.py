"""Conductors that were trained: the card beside such a model, and where those are that ship, in this folder.

    home/            a llama of 1 M parameters for the home pool, as a worker of dialect `local` is served from
    smollm2-home/    an adapter for SmolLM2-135M-Instruct (`fugu models add smollm2 --adapter home`)

`conductor.json`, the card, says how the model has to be asked, for which workers it was trained, and which bytes it is
made of. A trained conductor writes workflows and nothing else: nobody asks it for an answer unless by its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import msgspec

from ..config import read_table
from ..errors import ConfigError, ModelError
from ..orchestrate.artefact import WorkerIdentity
from ..orchestrate.conductor import ConductorConfig
from ..pool.spec import PoolSpec, WorkerSpec
from ..types import Value

__all__ = [
    "ADAPTERS",
    "CARD",
    "HOME_CONDUCTOR",
    "ConductorCard",
    "complete_config",
    "copy_conductor_card",
    "find_adapter",
    "find_card",
    "find_cards",
    "find_folder",
    "read_conductor_card",
    "say_unknown",
    "write_conductor_card",
]

CARD = "conductor.json"
_SCHEMA = 1
_SHIPPED = "shipped:"
HOME_CONDUCTOR = f"{_SHIPPED}home"
"""The `model` of a worker that is the conductor which ships for the home pool."""
ADAPTERS: Mapping[str, str] = {"home": "smollm2-home"}
"""Adapters that ship, name -> folder; all of them for SmolLM2-135M-Instruct."""
_HERE = Path(__file__).parent
_BYTES = ("graph.onnx", "model.safetensors", "tokenizer.json", "adapter_model.safetensors")
"""Files whose hashes the card keeps, where they are."""
_OURS = frozenset({"worker", "workers"})
"""Keys of `[conductor]` that belong to a pool, not to a model."""


class ConductorCard(Value, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`conductor.json`."""

    schema: int
    conductor: dict[str, Any]
    """Defaults of `[conductor]`, for whoever names this model there; what differs from the usual ones."""
    workers: tuple[WorkerIdentity, ...]
    """Whom it was trained to call."""
    sha256: dict[str, str]
    """By name of the file."""

    @property
    def short_hash(self) -> str:
        """Of the bytes and of how it is asked: two models differ in it."""
        return hashlib.sha256(msgspec.json.encode([self.sha256, self.conductor], order="sorted")).hexdigest()[:8]


# --- writing ---


def write_conductor_card(folder: Path, config: ConductorConfig, workers: Mapping[str, str]) -> ConductorCard:
    """The last file of a served folder. `config`: as it was trained; `workers`: id -> model of those it may call.

    In training a lost step ends the episode, which is then not scored; whoever is served gets the next worker instead.
    """
    served = replace(config, on_error="substitute") if config.on_error == "fail" else config
    usual = ConductorConfig(worker=config.worker)
    differing = {f.name for f in fields(ConductorConfig) if getattr(served, f.name) != getattr(usual, f.name)} - _OURS
    card = ConductorCard(
        schema=_SCHEMA,
        conductor={name: value for name, value in asdict(served).items() if name in differing},
        workers=tuple(WorkerIdentity(id=id, model=model) for id, model in workers.items()),
        sha256=_hash_files(folder),
    )
    _write(folder, card)
    return card


def copy_conductor_card(source: Path | None, target: Path) -> None:
    """From an adapter's folder into one where the adapter lies beside its model; away with one that was there before.

    Raises:
        ModelError: the adapter's card is damaged.
    """
    (target / CARD).unlink(missing_ok=True)
    if source is not None and (source / CARD).is_file():
        card = msgspec.structs.replace(read_conductor_card(source), sha256=_hash_files(target))
        _write(target, card)


def _write(folder: Path, card: ConductorCard) -> None:
    (folder / CARD).write_bytes(msgspec.json.format(msgspec.json.encode(card), indent=1) + b"\n")


def _hash_files(folder: Path) -> dict[str, str]:
    paths = [folder / name for name in _BYTES]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}


# --- reading ---


def read_conductor_card(folder: Path) -> ConductorCard:
    """The card, after the folder's files were compared with it.

    Raises:
        ModelError: there is none, it is damaged, or a file is missing or not the card's.
    """
    path = folder / CARD
    try:
        card = msgspec.json.decode(path.read_bytes(), type=ConductorCard)
    except FileNotFoundError:
        raise ModelError(f"{folder}: no trained conductor here: {CARD} is missing") from None
    except (OSError, ValueError) as error:  # ValueError: no JSON, no UTF-8, or of a wrong type
        raise ModelError(f"{path}: damaged: {error}") from None
    if card.schema != _SCHEMA or not card.workers or _OURS & set(card.conductor):
        what = f"schema {card.schema}, {len(card.workers)} workers, keys {sorted(card.conductor)}"
        raise ModelError(f"{path}: {what}: expected schema {_SCHEMA}, workers, and none of {', '.join(sorted(_OURS))}")
    complete_config({"worker": "-"}, card, where=str(path))
    _check_bytes(folder, card)
    return card


def _check_bytes(folder: Path, card: ConductorCard) -> None:
    found = _hash_files(folder)
    for name, digest in card.sha256.items():
        if name not in found:
            raise ModelError(f"{folder}: {name} is missing: the conductor was written with it")
        if found[name] != digest:
            raise ModelError(
                f"{folder / name}: damaged, or not the card's: SHA-256 {found[name][:12]}, expected {digest[:12]}"
            )


def find_folder(model: str, base: Path) -> Path:
    """Where the model of a local worker is; relative paths start at `base`.

    Raises:
        ModelError: it should have shipped, and is not here.
    """
    if not model.startswith(_SHIPPED):
        return base / Path(model).expanduser()
    name = model.removeprefix(_SHIPPED)
    shipped = sorted({path.parent.name for path in _HERE.glob(f"*/{CARD}")} - set(ADAPTERS.values()))
    if name not in shipped:
        raise ModelError(
            f"model {model!r}: {_HERE / name}: no trained conductor here: this installation has "
            f"{', '.join(shipped) or 'none'}: install torafugu again, or train one (fugu train conductor)"
        )
    return _HERE / name


def find_adapter(given: str) -> Path:
    """The folder of an adapter: of one that ships, by its name, or the folder that was given.

    Raises:
        ModelError: it should have shipped, and is not here.
    """
    if given not in ADAPTERS:
        return Path(given).expanduser()
    folder = _HERE / ADAPTERS[given]
    if not (folder / CARD).is_file():
        raise ModelError(f"adapter {given!r}: {folder}: not in this installation: install torafugu again")
    return folder


def find_card(spec: WorkerSpec, base: Path) -> ConductorCard | None:
    """None: the worker is no trained conductor.

    Raises:
        ModelError: it should be one, and is missing or damaged.
    """
    if spec.dialect != "local":
        return None
    adapter = spec.extra_body.get("adapter")
    folders = [base / adapter] if isinstance(adapter, str) else []
    folders.append(find_folder(spec.model, base))
    return next((read_conductor_card(folder) for folder in folders if (folder / CARD).is_file()), None)


def find_cards(pool: PoolSpec, base: Path) -> dict[str, ConductorCard]:
    """Of the trained conductors of a pool, by worker id.

    Raises:
        ModelError: one is missing or damaged.
    """
    found = {spec.id: find_card(spec, base) for spec in pool.worker}
    return {id: card for id, card in found.items() if card is not None}


# --- using ---


def complete_config(written: Mapping[str, Any], card: ConductorCard | None, *, where: str) -> ConductorConfig:
    """What stands in `[conductor]`, the rest as the model was trained.

    Raises:
        ConfigError: a key or a value is wrong.
        ModelError: one of the card's.
    """
    if card is None:
        return read_table(ConductorConfig, written, where=where)
    try:
        read_table(ConductorConfig, {"worker": "-", **card.conductor}, where=CARD)
    except ConfigError as error:
        raise ModelError(f"{where}: {error.message}") from None
    return read_table(ConductorConfig, {**card.conductor, **written}, where=where)


def say_unknown(worker: str, card: ConductorCard, called: Mapping[str, str]) -> str | None:
    """What is to be said where it was not trained for those it may call (id -> model); None: it was for all of them."""
    known = {each.id: each.model for each in card.workers}
    unknown = [id for id in called if id not in known]
    changed = [id for id, model in called.items() if id in known and known[id] != model]
    if not unknown and not changed:
        return None
    what = [f"it never learnt to call {', '.join(unknown)}"] if unknown else []
    what += [f"{id!r} was {known[id]!r} in training and is {called[id]!r} here" for id in changed]
    return (
        f"conductor {worker!r} was trained for {', '.join(known)}: {'; '.join(what)}: train one for this pool "
        "(fugu train conductor --pool FILE)"
    )
