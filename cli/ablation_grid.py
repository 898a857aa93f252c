"""GRID.toml of `talstack ablate`: a base, and the settings to be changed, as a list of variants.

data = "data"  store = "store"       where they are not those of the run; relative to GRID.toml
mode = "one-at-a-time"               each value against the base; "product" crosses all of them
[base]                               config = "talstack.toml", and settings over it
[grid]                               "heads.context" = [[1], [1, 4]]: a list of values per setting
[[variant]]                          name = "...", and what it changes in the base
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from talstack.cli.config import Config, load_config
from talstack.ensemble.config import EnsembleConfig
from talstack.heads.config import HeadsConfig
from talstack.io.config import build, read_toml, setting, to_dict
from talstack.io.errors import ConfigError
from talstack.io.files import canonical_json

MODES = ("one-at-a-time", "product")
BASE = "base"
_TABLES = ("data", "store", "mode", "base", "grid", "variant")
_SECTIONS: dict[str, type] = {"heads": HeadsConfig, "ensemble": EnsembleConfig}


@dataclass(frozen=True, slots=True)
class Selection:
    """What an ablation may vary beside the settings of heads and ensemble.

    Attributes:
        extraction: whose features are taken; "" for the one named like the data set.
        views, modalities: which groups of the store; empty for all. A view stands for the views cut from it too.
        system: whose detections are scored.
    """

    extraction: str = setting("", "name of an extraction in the store")
    views: tuple[str, ...] = setting((), "views to use; empty = all in the store")
    modalities: tuple[str, ...] = setting((), "modalities to use; empty = all in the store")
    system: str = setting("stack", "stack, weighted, mean, single (the best, chosen on training recordings), or a head")


_SELECTED = {"extraction": "extraction", "extract.views": "views", "extract.modalities": "modalities",
             "ensemble.system": "system"}  # fmt: skip
KEYS = tuple(
    [*_SELECTED, *(f"{name}.{known.name}" for name, section in _SECTIONS.items() for known in fields(section))]
)


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the table.

    Attributes:
        name: unique.
        changes: {key: value} against the base.
        heads, ensemble: settings in force.
        selection: features and system.
    """

    name: str
    changes: Mapping[str, Any]
    heads: HeadsConfig
    ensemble: EnsembleConfig
    selection: Selection


@dataclass(frozen=True, slots=True)
class Grid:
    """What is to be compared.

    Attributes:
        name: the file's name without its ending.
        data, store: as the file names them.
        variants: at least two, all different; the first is what the others are compared with.
        num_repeated: how many were left out because an earlier one has the same settings.
    """

    name: str
    data: Path | None
    store: Path | None
    variants: tuple[Variant, ...]
    num_repeated: int = field(default=0)


def read_grid(path: Path, default_config: Path | None = None) -> Grid:
    """Return the grid of a file.

    Args:
        path: GRID.toml.
        default_config: settings of the base where the file names none.

    Raises:
        MissingInputError: the file, or the configuration that it names, is not there.
        ConfigError: not TOML, an unknown key, an empty list, a value of the wrong type, or fewer than two variants.
    """
    content = read_toml(path)
    _refuse_unknown(content, _TABLES, where=path)
    base_config, base_changes = _read_base(content, path, default_config)
    mode = content.get("mode", MODES[0])
    if mode not in MODES:
        raise ConfigError(f"{path}: mode: expected {' or '.join(map(repr, MODES))}, got {mode!r}")
    base = _variant(BASE, {}, base_config, base_changes, where=path)
    named = list(_changes(content, mode, path))
    crossed = mode == "product" and bool(content.get("grid"))
    variants: dict[str, Variant] = {} if crossed else {_settings(base): base}
    for name, changes in named:
        changed = _variant(name, changes, base_config, base_changes, where=path)
        variants.setdefault(_settings(changed), changed)
    num_repeated = len(named) + (not crossed) - len(variants)
    if len(variants) < 2:
        raise ConfigError(f"{path}: nothing to compare: give [grid] lists of values, or add a [[variant]]")
    names = [variant.name for variant in variants.values()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{path}: two variants are called {twice[0]!r}; give each a name of its own")
    return Grid(
        path.stem, _folder(content, "data", path), _folder(content, "store", path), tuple(variants.values()),
        num_repeated,
    )  # fmt: skip


def shown(value: Any) -> str:
    """Return a setting's value as TOML writes it, in short."""
    return canonical_json(value).replace(",", ", ")


def _read_base(content: Mapping[str, Any], path: Path, default: Path | None) -> tuple[Config, dict[str, Any]]:
    table = content.get("base", {})
    if isinstance(table, str):
        table = {"config": table}
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: base: expected a table or the path of a configuration file, got {table!r}")
    name = table.get("config")
    if name is not None and not isinstance(name, str):
        raise ConfigError(f"{path} [base]: config: expected the path of a configuration file, got {name!r}")
    config = load_config(default if name is None else path.parent / name)
    changes = dict(_flat({key: value for key, value in table.items() if key != "config"}))
    _refuse_unknown(changes, ("config", *KEYS), where=f"{path} [base]")
    return config, changes


def _changes(content: Mapping[str, Any], mode: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (name, changes against the base) of every variant that the file asks for."""
    lists = _lists(content, path)
    if lists and mode == "product":
        for chosen in itertools.product(*lists.values()):
            changes = dict(zip(lists, chosen, strict=True))
            yield _called(changes), changes
    singly = lists if mode != "product" else {}
    for key, value in ((key, value) for key, values in singly.items() for value in values):
        yield _called({key: value}), {key: value}
    tables = content.get("variant", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{path}: variant: expected [[variant]] tables, each with a name and what it changes")
    for number, table in enumerate(tables, start=1):
        changes = dict(_flat({key: value for key, value in table.items() if key != "name"}))
        where = f"{path} [[variant]] {number}"
        _refuse_unknown(changes, ("name", *KEYS), where=where)
        name = table.get("name", _called(changes))
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{where}: name: expected a text, got {name!r}")
        if not changes:
            raise ConfigError(f'{where}: changes nothing; name a setting, such as "heads.context" = [1, 4]')
        yield name, changes


def _lists(content: Mapping[str, Any], path: Path) -> dict[str, list[Any]]:
    table = content.get("grid", {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: grid: expected a table of settings, got {table!r}")
    lists = dict(_flat(table))
    _refuse_unknown(lists, KEYS, where=f"{path} [grid]")
    for key, values in lists.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{path} [grid]: {key}: expected a list of one or more values to try, got {values!r}")
    return lists


def _called(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {shown(value)}" for key, value in changes.items())


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value); TOML reads an unquoted heads.context as a table in a table."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _variant(name: str, changes: Mapping[str, Any], config: Config, base: Mapping[str, Any], *, where: Path) -> Variant:
    """Return a variant: the configuration, the base's own settings over it, and the variant's changes over both."""
    values = {**base, **changes}
    parts = {}
    for section, cls in _SECTIONS.items():
        given = {key.removeprefix(f"{section}."): v for key, v in values.items() if key.startswith(f"{section}.")}
        before = {key: value for key, value in to_dict(getattr(config, section)).items() if value is not None}
        parts[section] = _built(cls, {k: v for k, v in given.items() if k != "system"}, before, name, where, section)
    chosen = {_SELECTED[key]: value for key, value in values.items() if key in _SELECTED}
    selection = _built(Selection, chosen, {}, name, where, "extract")
    return Variant(name, dict(changes), parts["heads"], parts["ensemble"], selection)


def _built(
    cls: type, given: Mapping[str, Any], before: Mapping[str, Any], name: str, where: Path, section: str
) -> Any:  # fmt: skip
    called = f"{where}: {name!r}"
    try:
        return build(cls, {**before, **given}, where=section)
    except ConfigError as error:
        hint = ""
        if "expected a list" in str(error):
            hint = "; a setting that is a list itself needs a list of lists in [grid]"
        raise ConfigError(f"{called}: {error}{hint}") from error


def _settings(variant: Variant) -> str:
    parts = (variant.heads, variant.ensemble, variant.selection)
    return canonical_json([to_dict(part) for part in parts])


def _folder(content: Mapping[str, Any], key: str, path: Path) -> Path | None:
    value = content.get(key)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{path}: {key}: expected the path of a folder, got {value!r}")
    return None if value is None else path.parent / value


def _refuse_unknown(table: Mapping[str, Any], known: Sequence[str], *, where: object) -> None:
    for key in table:
        if key in known:
            continue
        close = get_close_matches(key, known, n=1)
        if close:
            raise ConfigError(f"{where}: unknown key {key!r}; did you mean {close[0]!r}?")
        if key.split(".")[0] in ("sampling", "finetune", "extract"):
            raise ConfigError(
                f"{where}: {key!r} changes the features themselves, and ablate extracts none: extract them under "
                'another --name and list the names under "extraction"'
            )
        raise ConfigError(f"{where}: unknown key {key!r}; known: {', '.join(known)}")


def refuse_unknown_names(asked: Sequence[str], there: Sequence[str], *, what: str) -> None:
    """Raise ConfigError for the first name that is not there, with the nearest one that is."""
    for name in asked:
        if name not in there:
            close = get_close_matches(name, there, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"{what} {name!r}; there: {', '.join(there)}{hint}")
