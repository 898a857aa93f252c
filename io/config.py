"""Configuration: frozen dataclasses filled from one TOML file.

Each stage declares its settings as a frozen dataclass whose fields carry their defaults and, in
`metadata["help"]`, one line of explanation. A TOML file has one table per dataclass. Unknown keys and values of
the wrong type are refused with the file and the key.
"""

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from talstack.io.errors import ConfigError, MissingInputError

T = TypeVar("T")


def setting(default: Any, help: str) -> Any:  # noqa: A002 - the field's own metadata key
    """Return a dataclass field with a default and a line of explanation."""
    return dataclasses.field(default=default, metadata={"help": help})


def read_toml(path: Path) -> dict[str, Any]:
    """Return the parsed TOML file.

    Raises:
        MissingInputError: there is no such file.
        ConfigError: it is not TOML.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such configuration file; `talstack init {path}` writes one")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def build(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """Return an instance of the dataclass with `values` over its defaults.

    Raises:
        ConfigError: an unknown key or a value of the wrong type; the message names `where` and the key.
    """
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; known keys: {', '.join(sorted(known))}")
    checked = {key: _convert(value, hints[key], f"{where}.{key}") for key, value in values.items()}
    return cls(**checked)


def _convert(value: Any, expected: Any, where: str) -> Any:
    origin = typing.get_origin(expected)
    if origin is tuple:
        item = typing.get_args(expected)[0]
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        return tuple(_convert(v, item, where) for v in value)
    if origin in (typing.Union, types.UnionType):
        options = [o for o in typing.get_args(expected) if o is not type(None)]
        return _convert(value, options[0], where)
    if origin is typing.Literal:
        if value not in typing.get_args(expected):
            raise ConfigError(
                f"{where}: expected one of {', '.join(map(repr, typing.get_args(expected)))}, got {value!r}"
            )
        return value
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not expected:
        raise ConfigError(f"{where}: expected {expected.__name__}, got {value!r}")
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """Return the settings as plain values, tuples as lists: ready for JSON and fingerprints."""
    return {
        f.name: list(v) if isinstance(v := getattr(config, f.name), tuple) else v for f in dataclasses.fields(config)
    }


def to_toml(sections: Mapping[str, Any], *, comments: bool = True) -> str:
    """Return the TOML text of {table name: dataclass instance}, each key under its explanation."""
    lines: list[str] = []
    for name, config in sections.items():
        doc = (type(config).__doc__ or "").strip().splitlines()[0]
        lines += ([f"# {doc}"] if comments else []) + [f"[{name}]"]
        for f in dataclasses.fields(config):
            value = getattr(config, f.name)
            if comments and "help" in f.metadata:
                lines.append(f"# {f.metadata['help']}")
            lines.append(f"{f.name} = {_toml_value(value)}" if value is not None else f"# {f.name} =")
        lines.append("")
    return "\n".join(lines)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)
