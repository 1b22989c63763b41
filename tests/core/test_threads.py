"""What a forked child does without the threads of its parent."""

from __future__ import annotations

from weakref import WeakSet

import pytest

from ratelimit_ext.core import threads


class Broken:
    def __init__(self, began: list[Broken]) -> None:
        self._began = began

    def forget(self) -> None:
        self._began.append(self)
        raise OSError("no file descriptor left")


def test_all_begin_anew_though_one_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The locks of the others would stay closed in the child."""
    monkeypatch.setattr(threads, "_forgetful", WeakSet())
    began: list[Broken] = []
    owners = [Broken(began), Broken(began)]
    for owner in owners:
        threads.forget_in_child(owner)
    threads.forget_all()
    assert len(began) == len(owners)
    assert caplog.text.count("could not start over") == 2
