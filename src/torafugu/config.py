"""How a TOML file becomes a frozen dataclass. What may stand in one is said by the dataclass beside what it configures.

Unknown keys, wrong types, missing keys and missing files are a `ConfigError` that names the key, the value and the
choices. Secrets are never in files: a key is named by the environment variable that holds it.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError

__all__ = ["read_table", "read_toml"]

T = TypeVar("T")


def read_toml(path: Path) -> dict[str, Any]:
    """The file's top table, decimals kept exact.

    Raises:
        ConfigError: the file is missing, unreadable or not TOML.
    """
    try:
        with path.open("rb") as file:
            return tomllib.load(file, parse_float=Decimal)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None


def read_table(cls: type[T], table: Mapping[str, Any], *, where: str) -> T:
    """A TOML table as an instance of the dataclass `cls`; `where` names it in errors (`pool.toml: worker[2]`).

    Raises:
        ConfigError: an unknown or missing key, or a value of the wrong type.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # T is a dataclass
    hints = typing.get_type_hints(cls)
    for key in table:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}: expected one of {', '.join(sorted(fields))}")
    values: dict[str, Any] = {}
    for name, f in fields.items():
        if name in table:
            values[name] = _convert(table[name], hints[name], f"{where}.{name}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}: key {name!r} is missing: expected {_describe(hints[name])}")
    try:
        return cls(**values)
    except ConfigError as error:  # a dataclass may check its own values in __post_init__
        raise ConfigError(f"{where}: {error}") from None


def _convert(value: Any, hint: Any, where: str) -> Any:
    if hint is Any:
        return _convert_json(value, where)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        (inner,) = (arg for arg in args if arg is not type(None))
        return _convert(value, inner, where)
    if origin is typing.Literal:
        if value not in args:
            raise ConfigError(f"{where}: {value!r} is not one of {', '.join(repr(a) for a in args)}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(value, hint, where)
        return tuple(_convert(item, args[0], f"{where}[{i}]") for i, item in enumerate(value))
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise _wrong(value, hint, where)
        return {key: _convert(item, args[1], f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise _wrong(value, hint, where)
        return read_table(hint, value, where=where)
    return _convert_scalar(value, hint, where)


def _convert_json(value: Any, where: str) -> Any:
    """Free form, for a table that is sent on as JSON, which knows no dates and no exact decimals."""
    if isinstance(value, dict):
        return {key: _convert_json(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_convert_json(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Decimal) and value.is_finite():
        return float(value)
    if isinstance(value, (str, bool, int)):
        return value
    raise ConfigError(f"{where}: {value!r} is not a value that JSON has")


def _convert_scalar(value: Any, hint: Any, where: str) -> Any:
    is_number = isinstance(value, (int, Decimal)) and not isinstance(value, bool)
    if hint is Decimal and (is_number or isinstance(value, str)):
        try:
            return Decimal(value)
        except InvalidOperation:
            raise _wrong(value, hint, where) from None
    if hint is float and (is_number or isinstance(value, float)):  # a float in a table that was free form before
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value).expanduser()
    if hint in (str, bool, int) and type(value) is hint:
        return value
    raise _wrong(value, hint, where)


_NAMES = {
    str: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    Decimal: "a number",
    Path: "a path",
}


def _describe(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in _NAMES:
        return _NAMES[hint]
    if origin in (types.UnionType, typing.Union):
        return _describe(next(arg for arg in args if arg is not type(None)))
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(a) for a in args)
    if origin is tuple:
        return f"a list of {_describe(args[0]).removeprefix('a ').removeprefix('an ')}s"
    return "a table"


def _wrong(value: Any, hint: Any, where: str) -> ConfigError:
    return ConfigError(f"{where}: {value!r} is not {_describe(hint)}")
