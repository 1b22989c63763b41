"""What all drivers share. A driver uses one client as its documents say::

    python openai_sdk.py BASE_URL KEY MODEL WAY PROMPT

BASE_URL has no path, WAY is one of the driver's functions. It prints one line of JSON: the client's
version, the text it returned, the error it raised or showed, and the seconds that it took.

If WAY is `many`, a call begins at once, in the first way, for each model and prompt in a line of
the standard input, and prints its model and its text."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from threading import Thread

CITY, DEGREES = "Oslo", 7
#: In the form of chat completions.
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
#: Of a structured answer.
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "degrees": {"type": "integer"}},
    "required": ["city", "degrees"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Request:
    """What a driver is asked to do. `upstream_url` is what OpenAI's clients call the base URL."""

    url: str
    key: str
    model: str
    prompt: str

    @property
    def upstream_url(self) -> str:
        return self.url if self.is_anthropic else f"{self.url}/v1"

    @property
    def variables(self) -> dict[str, str]:
        """What most clients read."""
        return {
            "OPENAI_BASE_URL": f"{self.url}/v1",
            "OPENAI_API_KEY": self.key,
            "ANTHROPIC_BASE_URL": self.url,
            "ANTHROPIC_API_KEY": self.key,
        }

    @property
    def is_anthropic(self) -> bool:
        return self.model.startswith("claude")


def weather(city: str) -> str:
    """The weather in a city."""
    assert city == CITY
    return f"{DEGREES} degrees"


class CommandError(Exception):
    """A command failed; the message is everything that it showed."""


def command(*words: str, **environment: str) -> str:
    """What a command printed. Ctrl-C is for the command alone."""
    signal.signal(signal.SIGINT, lambda *_: None)
    done = subprocess.run(
        words,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise CommandError(f"exit {done.returncode}: {done.stdout}{done.stderr}".strip())
    return done.stdout.strip()


def run(version: str, *ways: Callable[[Request], str]) -> None:
    """Call the function that the command line names. `version` is the client's, or the name of its
    Python package."""
    url, key, model, way, prompt = sys.argv[1:]
    request = Request(url, key, model, prompt)
    os.environ |= request.variables
    if way == "many":
        many(request, ways[0])
        return
    by_name = {each.__name__: each for each in ways}
    text, error, began = None, None, time.monotonic()
    try:
        text = by_name[way](request)
    except Exception as raised:  # noqa: BLE001 - whatever it is, it is the result
        error = f"{type(raised).__name__}: {raised}"
    took_s = time.monotonic() - began
    if not version[0].isdigit():
        version = metadata.version(version)
    result = {"version": version, "text": text, "error": error, "took_s": took_s}
    print(json.dumps(result))  # noqa: T201


def many(request: Request, way: Callable[[Request], str]) -> None:
    """A call for each line of the standard input. What a client prints is not a result."""
    results, sys.stdout = sys.stdout, sys.stderr

    def call(model: str, prompt: str) -> None:
        try:
            text = way(replace(request, model=model, prompt=prompt))
        except Exception:  # noqa: BLE001 - whatever it is, there is no answer
            text = None
        results.write(json.dumps({"model": model, "text": text}) + "\n")
        results.flush()

    threads = []
    for line in sys.stdin:
        threads.append(Thread(target=call, args=line.split()))
        threads[-1].start()
    for thread in threads:
        thread.join()
