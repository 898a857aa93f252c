"""What tests of commits share: the `os` of `talstack.io.files`, watched."""

import os
from collections.abc import Callable

import pytest

CALLS = frozenset({"mkdir", "open", "write", "fsync", "close", "replace", "unlink"})
Act = Callable[..., object]


class WatchedOs:
    """The `os` module, with `act(number, name, real, args)` in place of every call of a commit."""

    def __init__(self, act: Act) -> None:
        self.calls: list[str] = []
        self.act = act

    def __getattr__(self, name: str) -> object:
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*args: object) -> object:
            self.calls.append(name)
            return self.act(len(self.calls), name, real, args)

        return call


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Act], WatchedOs]:
    def install(act: Act) -> WatchedOs:
        watched = WatchedOs(act)
        monkeypatch.setattr("talstack.io.files.os", watched)
        return watched

    return install
