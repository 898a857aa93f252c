"""Leftovers of a run while another process is at work in it."""

import os
from pathlib import Path

import pytest

from talstack.heads.prune import find_leftovers
from talstack.io.files import write_json


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run's folder with heads of three settings, of which the first is in use."""
    for setting in ("used", "old", "going"):
        folder = tmp_path / "heads" / "front-rgb" / setting
        folder.mkdir(parents=True)
        (folder / "action-linear.json").write_text("{}")
    write_json(tmp_path / "heads.json", {"models": [{"card": "heads/front-rgb/used/action-linear.json"}]})
    return tmp_path


def names(run: Path) -> list[str]:
    found, _ = find_leftovers(run, older_than_days=0.0, now_s=1e12)
    return [one.path.name for one in found]


def test_what_is_removed_while_it_is_looked_at_is_left_alone(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert names(run) == ["going", "old"]
    rglob = Path.rglob

    def removed_meanwhile(self: Path, pattern: str) -> object:
        found = list(rglob(self, pattern))
        if self.name == "going":
            os.unlink(self / "action-linear.json")
            monkeypatch.setattr(Path, "is_file", lambda path: True)  # as it was a moment before
        return found

    monkeypatch.setattr(Path, "rglob", removed_meanwhile)
    assert names(run) == ["old"]
