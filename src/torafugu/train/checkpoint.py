"""Where a training loop goes on after it was ended, however it was ended: numbered checkpoints in a folder.

A checkpoint is `N.npz`, the arrays, then `N.json`, all else and the arrays' SHA-256. Each is written beside its place,
forced to disk and moved there, so a checkpoint exists, whole, from the moment its JSON does; what an interrupted save
leaves is nobody's. A file that was damaged later is found by its digest: then the checkpoint before it is taken, and
what was passed over is on record. One that belongs to other settings, data or code is refused, not passed over.

One loop writes to a folder at a time; nothing here is pickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, ModelError, StoreError
from ..files import force_to_disk, write_whole
from ..types import Json, Value

__all__ = ["Checkpoints", "Resumed", "State"]

log = logging.getLogger(__name__)

State: TypeAlias = Mapping[str, npt.NDArray[Any] | int | float | str]
"""Flat. Values come back as they went: type, shape, dtype, bits."""

_NO_RNGS: Mapping[str, np.random.Generator] = {}
SCHEMA = 1
"""Of the files."""
_FILE = re.compile(r"(\d{6,})\.(?:json|npz)(?:\.part)?")
_LISTED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """Where to go on."""

    generation: int
    state: dict[str, npt.NDArray[Any] | int | float | str]
    rngs: dict[str, np.random.Generator]
    metrics_bytes: int | None
    """Length of the metrics when this was saved; None when none were given."""
    warnings: tuple[str, ...]
    """Why this run may differ from one that was never ended; empty when nothing speaks for it."""


class _Body(Value, frozen=True, kw_only=True):
    """The JSON file, less its digest."""

    schema: int
    generation: int
    bound_to: dict[str, Json]
    scalars: dict[str, int | float | str]
    arrays: tuple[str, ...]
    """Their names, in the order of the npz file: names of its own would have to be file names."""
    arrays_sha256: str
    rngs: dict[str, Json]
    numpy: str
    """Version: how a generator draws may change between two."""
    metrics_bytes: int | None = None
    saved_at: float
    """UTC epoch seconds."""


class _DamagedError(Exception):
    """A checkpoint is not what was saved; says how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """The checkpoints of one training run."""

    folder: Path
    bound_to: Mapping[str, Json]
    """What must be the same when the run goes on: config, hashes of the data, schema of the code. Any JSON."""
    keep: int = 3
    """Whole ones; older ones are removed."""
    metrics: Path | None = None
    """The run's metrics: `save` forces to disk what has been written to the file, and notes its length."""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ConfigError(f"keep: {self.keep!r}: expected at least 1 checkpoint")

    def save(self, state: State, *, generation: int, rngs: Mapping[str, np.random.Generator] = _NO_RNGS) -> Path:
        """-> its JSON file. Once this has returned, the checkpoint outlives the machine's sudden end.

        Raises:
            StoreError: it could not be written; those before it are as they were.
            TypeError: a value, or a generator, of a kind that would not come back as it is.
        """
        arrays = {key: value for key, value in state.items() if isinstance(value, np.ndarray)}
        packed = _pack(arrays)
        try:
            _make_folder(self.folder)
            body = _Body(
                schema=SCHEMA,
                generation=generation,
                bound_to=json.loads(json.dumps(dict(self.bound_to))),
                scalars={key: _checked_scalar(key, value) for key, value in state.items() if key not in arrays},
                arrays=tuple(arrays),
                arrays_sha256=hashlib.sha256(packed).hexdigest(),
                rngs={name: _describe_rng(name, rng) for name, rng in rngs.items()},
                numpy=np.__version__,
                metrics_bytes=None if self.metrics is None else force_to_disk(self.metrics),
                saved_at=time.time(),
            )
            # never a number that exists: its arrays would be replaced first, under the JSON of before
            path = self.folder / f"{max(self._numbers(), default=0) + 1:06}.json"
            write_whole(path.with_suffix(".npz"), packed)
            write_whole(path, _seal(body))
            self._remove_old()
        except OSError as error:
            raise StoreError(f"{self.folder}: generation {generation} was not saved: {error}") from error
        return path

    def load_latest(self) -> Resumed | None:
        """The newest whole checkpoint; None when nothing was ever saved here.

        Raises:
            ConfigError: it belongs to other settings, data or code; names what changed.
            ModelError: checkpoints are here, and all are damaged.
            StoreError: the folder cannot be read.
        """
        warnings: list[str] = []
        for path in self._paths():
            try:
                body, arrays = _read(path)
            except _DamagedError as damage:
                warnings.append(f"{path.name} was passed over: {damage}")
                log.warning("%s: %s", self.folder, warnings[-1])
                continue
            except OSError as error:
                raise StoreError(f"{path}: cannot be read: {error}") from error
            self._check(path, body)
            if body.numpy != np.__version__:
                warnings.append(f"saved with numpy {body.numpy}, this is {np.__version__}: random draws may differ")
                log.warning("%s: %s", path, warnings[-1])
            return Resumed(
                generation=body.generation,
                state={**body.scalars, **arrays},
                rngs={name: _make_rng(described) for name, described in body.rngs.items()},
                metrics_bytes=body.metrics_bytes,
                warnings=tuple(warnings),
            )
        if warnings:
            raise ModelError(f"{self.folder}: no checkpoint is whole ({'; '.join(warnings)}): to train anew, remove it")
        return None

    def cut_metrics(self, resumed: Resumed) -> None:
        """Removes the rows that were written after the checkpoint: the run will write them again.

        Raises:
            ModelError: the file is shorter than it was then.
            StoreError: it cannot be written.
        """
        if self.metrics is None or resumed.metrics_bytes is None:
            return
        try:
            size = self.metrics.stat().st_size if self.metrics.exists() else 0
            if size < resumed.metrics_bytes:
                raise ModelError(
                    f"{self.metrics}: {size} bytes, expected at least the {resumed.metrics_bytes} "
                    f"that the checkpoint of generation {resumed.generation} knows of"
                )
            if size > resumed.metrics_bytes:
                os.truncate(self.metrics, resumed.metrics_bytes)
        except OSError as error:
            raise StoreError(f"{self.metrics}: cannot be cut: {error}") from error

    def _check(self, path: Path, body: _Body) -> None:
        changes = list(_changes(body.bound_to, json.loads(json.dumps(dict(self.bound_to))), ""))
        if changes:
            more = f" and {len(changes) - _LISTED} more" if len(changes) > _LISTED else ""
            raise ConfigError(
                f"{path}: the run cannot go on from here: {'; '.join(changes[:_LISTED])}{more}: "
                "take the settings, data and code of before, or another folder"
            )

    def _paths(self) -> list[Path]:
        """The JSON files, newest first."""
        numbers = sorted(self._numbers(), reverse=True)
        return [path for number in numbers if (path := self.folder / f"{number:06}.json").exists()]

    def _numbers(self) -> set[int]:
        """Also those of which only a part is here."""
        try:
            return {int(match[1]) for name in os.listdir(self.folder) if (match := _FILE.fullmatch(name))}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise StoreError(f"{self.folder}: cannot be read: {error}") from error

    def _remove_old(self) -> None:
        """All files that are older than the last `keep` whole checkpoints, whole or not."""
        whole = [path for path in self._paths() if _is_whole(path)][: self.keep]
        if len(whole) < self.keep:
            return
        for number in sorted(number for number in self._numbers() if number < int(whole[-1].stem)):
            for suffix in (".json", ".npz", ".json.part", ".npz.part"):  # the JSON first: without it, it is none
                (self.folder / f"{number:06}{suffix}").unlink(missing_ok=True)


def _pack(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    for key, array in arrays.items():
        if type(array) is not np.ndarray or array.dtype.hasobject:  # a masked array would lose its mask
            raise TypeError(
                f"{key!r}: {type(array).__name__} of {array.dtype}: expected a plain array, without objects"
            )
    file = io.BytesIO()
    np.savez(file, *arrays.values(), allow_pickle=False)
    return file.getvalue()


def _checked_scalar(key: str, value: Any) -> int | float | str:
    if type(value) not in (int, float, str):
        raise TypeError(f"{key!r}: {value!r} is of {type(value).__name__}: expected an array, int, float or str")
    scalar: int | float | str = value
    return scalar


def _describe_rng(name: str, rng: np.random.Generator) -> Json:
    seeds = rng.bit_generator.seed_seq
    if type(rng.bit_generator) is not np.random.PCG64 or type(seeds) is not np.random.SeedSequence:
        raise TypeError(
            f"generator {name!r} of {type(rng.bit_generator).__name__}: expected one of np.random.default_rng"
        )
    assert seeds.entropy is not None, "numpy draws it where none is given"
    return {
        "state": rng.bit_generator.state,
        # what `spawn` goes on from
        "seeds": {
            "entropy": seeds.entropy if isinstance(seeds.entropy, int) else [int(word) for word in seeds.entropy],
            "spawn_key": [int(key) for key in seeds.spawn_key],
            "pool_size": seeds.pool_size,
            "n_children_spawned": seeds.n_children_spawned,
        },
    }


def _make_rng(described: Json) -> np.random.Generator:
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(**described["seeds"])))
    rng.bit_generator.state = described["state"]
    return rng


def _seal(body: _Body) -> bytes:
    # not msgspec's JSON: it has no NaN and no integers beyond 64 bits
    values = msgspec.to_builtins(body)
    return json.dumps({"sha256": _digest(values), "body": values}, indent=1).encode()


def _digest(values: Json) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> tuple[_Body, dict[str, npt.NDArray[Any]]]:
    """Raises _DamagedError, OSError, and ConfigError for a schema that this version does not know."""
    body = _open_seal(path)
    try:
        packed = path.with_suffix(".npz").read_bytes()
    except FileNotFoundError:
        raise _DamagedError("its arrays are missing") from None
    if hashlib.sha256(packed).hexdigest() != body.arrays_sha256:
        raise _DamagedError(f"its arrays are damaged ({len(packed)} bytes)")
    with np.load(io.BytesIO(packed), allow_pickle=False) as file:
        return body, {name: file[f"arr_{i}"] for i, name in enumerate(body.arrays)}


def _open_seal(path: Path) -> _Body:
    try:
        sealed = json.loads(path.read_bytes())
        is_whole = _digest(sealed["body"]) == sealed["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise _DamagedError(f"not a checkpoint's JSON: {error}") from None
    if not is_whole:
        raise _DamagedError("its JSON was changed")
    schema = sealed["body"].get("schema")
    if schema != SCHEMA:
        raise ConfigError(
            f"{path}: schema: {schema!r} in the checkpoint, {SCHEMA} now: read it with the code that saved it"
        )
    return msgspec.convert(sealed["body"], _Body)


def _is_whole(path: Path) -> bool:
    try:
        _read(path)
    except _DamagedError:
        return False
    except ConfigError:  # of another version of this code: not ours to judge
        return True
    return True


def _changes(before: Json, now: Json, where: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            name = f"{where}.{key}" if where else key
            if key not in now:
                yield f"{name}: {before[key]!r} in the checkpoint, absent now"
            elif key not in before:
                yield f"{name}: absent in the checkpoint, {now[key]!r} now"
            else:
                yield from _changes(before[key], now[key], name)
    elif json.dumps(before) != json.dumps(now):  # as text, NaN is itself, and true is not 1
        yield f"{where}: {before!r} in the checkpoint, {now!r} now"


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(parents=True)
        force_to_disk(folder.parent)
