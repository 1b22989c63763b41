"""Time that tests pass: it stands still, or is set forward instead of sleeping."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from ratelimit_ext.core import clock as clocks
from ratelimit_ext.engine.redis import RedisEngine
from ratelimit_ext.web.request import waiting_room


class Clock:
    """Time that passes only by ``forward``."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def forward(self, seconds: float) -> None:
        self.now_s += seconds


#: What is done instead of sleeping; returns whether the client is still there.
Sleep = Callable[[float], bool]


class Night:
    """How long requests have slept: all clocks are set forward instead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lengths: list[float] = []
        self.passed_s = 0.0
        self.instead: Sleep = lambda _: True
        for name in ("time", "monotonic"):
            own = getattr(time, name)
            monkeypatch.setattr(time, name, lambda own=own: own() + self.passed_s)
        evaluate = RedisEngine._evaluate

        def at_present(engine: Any, script: Any, keys: Any, now: Any, *words: Any) -> Any:
            now = clocks.now_us() if now == "" else now
            return evaluate(engine, script, keys, now, *words)

        monkeypatch.setattr(RedisEngine, "_evaluate", at_present)
        monkeypatch.setattr(waiting_room, "_sleep", self.sleep)

    def sleep(self, seconds: float, _: threading.Event) -> bool:
        self.lengths.append(round(seconds, 1))
        wakes_s = self.passed_s + seconds + 0.001
        is_present = self.instead(seconds)
        self.passed_s = max(self.passed_s, wakes_s)
        return is_present

    def together(self, app: Flask, path: str, times: int, **more: Any) -> list[TestResponse]:
        """The answers of calls of which each comes while those before it wait."""
        answers: dict[int, TestResponse] = {}
        numbers = iter(range(times))

        def ask(_: float = 0) -> bool:
            for number in numbers:
                answers[number] = app.test_client().get(path, **more)
            return True

        self.instead = ask
        ask()
        return [answers[number] for number in range(times)]
