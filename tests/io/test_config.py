import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from talstack.io.config import build, read_toml, setting, to_dict, to_toml
from talstack.io.errors import ConfigError, MissingInputError


@dataclass(frozen=True, slots=True)
class Toy:
    """A toy section."""

    rate: float = setting(0.5, "how fast")
    views: tuple[str, ...] = setting(("a", 'b"c'), "which")
    kind: Literal["x", "y"] = setting("x", "x or y")
    on: bool = setting(True, "whether")
    count: int = setting(3, "how many")


def test_toml_text_reads_back_as_the_same_settings() -> None:
    text = to_toml({"toy": Toy()})
    assert "# how fast\nrate = 0.5" in text
    assert build(Toy, tomllib.loads(text)["toy"], where="t") == Toy()
    assert to_dict(Toy())["views"] == ["a", 'b"c']


def test_a_whole_number_is_a_float_but_not_the_other_way() -> None:
    assert build(Toy, {"rate": 2}, where="t").rate == 2.0
    with pytest.raises(ConfigError, match=r"t.count: expected int, got 2.5"):
        build(Toy, {"count": 2.5}, where="t")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"speed": 1}, "unknown key 'speed'; known keys: count, kind, on, rate, views"),
        ({"kind": "z"}, "t.kind: expected one of 'x', 'y', got 'z'"),
        ({"views": "a"}, "t.views: expected a list, got 'a'"),
        ({"views": [1]}, "t.views: expected str, got 1"),
        ({"on": 1}, "t.on: expected bool, got 1"),
        ({"count": True}, "t.count: expected int, got True"),
    ],
)
def test_wrong_values_name_the_key(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Toy, values, where="t")


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="talstack init"):
        read_toml(tmp_path / "no.toml")
    (tmp_path / "bad.toml").write_text("a = \n")
    with pytest.raises(ConfigError, match="bad.toml: not valid TOML"):
        read_toml(tmp_path / "bad.toml")
