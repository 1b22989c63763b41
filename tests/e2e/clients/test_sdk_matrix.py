"""Several years of the providers' SDKs against this server: each retries when it should, waits as
long as it should, and stops when it should. Opt-in, because it creates an environment per version
and needs a package index: RATELIMIT_SDK_MATRIX=1."""

import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from flask import Flask, request

from chatapp import create_app
from tests.chatapp import conftest as chatapp
from tests.chatapp.upstream_server import (
    Answer,
    Cut,
    Stream,
    UpstreamServer,
    anthropic_error,
    anthropic_events,
    named,
    openai_chunks,
    openai_error,
)
from tests.served import serving

pytestmark = [
    pytest.mark.sdk_matrix,
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("RATELIMIT_SDK_MATRIX") != "1",
        reason="RATELIMIT_SDK_MATRIX=1 makes an environment for each version of the SDKs",
    ),
]

provider = chatapp.provider

SDKS = ["openai==1.109.*", "openai==2.40.*", "openai==3.*"]
SDKS += ["anthropic==0.60.*", "anthropic==1.*", "anthropic==2.*"]
DRIVERS = Path(__file__).parent / "drivers"
MODELS = {"openai": "gpt-5.4-mini", "anthropic": "claude-haiku-4-5"}
# What an SDK needs by itself, for imports and connections on a slow machine.
OWN_TIME_S = 3.0


@dataclass(frozen=True)
class Outcome:
    """The outcome of a call: its text or the name of the error, its time, and the number of
    requests to this server."""

    text: str | None
    error: str | None
    took_s: float
    attempts: int


@dataclass
class Sdk:
    """One version of an SDK in front of this server; `attempts` are its requests."""

    protocol: str
    python: Path
    url: str
    attempts: list[str]

    def call(self, way: str = "plain", model: str | None = None) -> Outcome:
        before = len(self.attempts)
        driver = DRIVERS / f"{self.protocol}_sdk.py"
        asked = (self.url, "mine", model or MODELS[self.protocol], way, "ping")
        command = [self.python, driver, *asked]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        error = said["error"] and said["error"].partition(":")[0]
        return Outcome(said["text"], error, said["took_s"], len(self.attempts) - before)


@pytest.fixture(scope="module", params=SDKS)
def environment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """The provider, and the interpreter of an environment with that version of its SDK."""
    directory = tmp_path_factory.mktemp("sdk")
    venv.create(directory, with_pip=True, symlinks=True)
    python = directory / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", request.param], check=True)
    return request.param.partition("=")[0], python


@pytest.fixture
def sdk(
    environment: tuple[str, Path],
    provider: UpstreamServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Sdk]:
    """The SDK in front of an application with the packaged policy, or with one limit as a
    parameter."""
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'chatapp.db'}")
    limit = getattr(request, "param", None)
    config: dict[str, object] = {"RATELIMIT_STORAGE_URI": "memory://"}
    if limit:
        blueprints = {"openai_api": [limit], "anthropic_api": [limit]}
        config |= {**chatapp.NO_LIMITS, "RATELIMIT_BLUEPRINTS": blueprints}
    protocol, python = environment
    app = create_app(config)
    with serving(app) as url:
        yield Sdk(protocol, python, url, counted(app))


def counted(app: Flask) -> list[str]:
    """The paths of all requests from now on."""
    paths: list[str] = []
    app.before_request_funcs.setdefault(None, []).insert(0, lambda: paths.append(request.path))
    return paths


def trouble(sdk: Sdk, status: int, code: str, **headers: str) -> Answer:
    """The provider's error."""
    written = {name.replace("_", "-"): value for name, value in headers.items()}
    if sdk.protocol == "openai":
        return openai_error(status, code=code, headers=written)
    return anthropic_error(status, kind=code, headers=written)


def test_it_answers_and_streams(sdk: Sdk) -> None:
    """Unchanged except for its address."""
    for way in ("plain", "stream"):
        outcome = sdk.call(way)
        assert (outcome.text, outcome.error, outcome.attempts) == ("pong", None, 1)


@pytest.mark.parametrize("way", ["plain", "stream"])
@pytest.mark.parametrize(("wait_s", "attempts"), [(1, 1), (4, 2)])
def test_an_overloaded_provider_is_tried_again_after_its_wait(
    sdk: Sdk, provider: UpstreamServer, way: str, wait_s: int, attempts: int
) -> None:
    """The server waits for a short time, and the client sees one call. For a longer wait the client
    waits, and its retry is admitted."""
    status = 429 if sdk.protocol == "openai" else 529
    provider.script(trouble(sdk, status, "overloaded_error", Retry_After=str(wait_s)))
    outcome = sdk.call(way)
    assert (outcome.text, outcome.attempts, len(provider.calls)) == ("pong", attempts, 2)
    assert wait_s <= outcome.took_s < wait_s + OWN_TIME_S


def test_an_overload_without_a_wait_is_tried_again_in_five_seconds(
    sdk: Sdk, provider: UpstreamServer
) -> None:
    """The server retries after 1 s, and the client 5 s later."""
    provider.script(*[trouble(sdk, 429, "rate_limit_error")] * 2)
    outcome = sdk.call()
    assert (outcome.text, outcome.attempts, len(provider.calls)) == ("pong", 2, 3)
    assert 1 + 5 <= outcome.took_s < 1 + 5 + OWN_TIME_S


@pytest.mark.parametrize("wait_s", ["61", "3600", "277403"])
def test_the_sdk_does_not_retry_after_a_long_wait(
    sdk: Sdk, provider: UpstreamServer, wait_s: str
) -> None:
    """Without the header, some SDKs sleep for days and others retry at once."""
    provider.script(trouble(sdk, 429, "rate_limit_error", Retry_After=wait_s))
    outcome = sdk.call()
    assert outcome.error is not None
    assert outcome.attempts == 1
    assert outcome.took_s < OWN_TIME_S


def test_the_sdk_does_not_retry_without_credit(sdk: Sdk, provider: UpstreamServer) -> None:
    """Without the header it would, twice."""
    code = "insufficient_quota" if sdk.protocol == "openai" else "billing_error"
    provider.script(trouble(sdk, 429, code))
    outcome = sdk.call()
    assert (outcome.error, outcome.attempts) == ("InternalServerError", 1)


@pytest.mark.parametrize("sdk", ["1/day"], indirect=True)
def test_a_used_up_day_raises_at_once(sdk: Sdk) -> None:
    """A RateLimitError after one request, without a sleep."""
    assert sdk.call(model="offline").error is None
    denied = sdk.call(model="offline")
    assert (denied.error, denied.attempts) == ("RateLimitError", 1)
    assert denied.took_s < OWN_TIME_S


@pytest.mark.parametrize("sdk", ["1/5 second"], indirect=True)
def test_the_sdk_waits_for_a_short_denial(sdk: Sdk) -> None:
    """For the wait of the denial, once."""
    assert sdk.call(model="offline").attempts == 1
    second = sdk.call(model="offline")
    assert second.error is None
    assert second.attempts <= 2
    assert second.took_s < 5 + OWN_TIME_S


def test_a_stream_that_breaks_off_raises(sdk: Sdk, provider: UpstreamServer) -> None:
    """Cut off or with an error inside a 200: a partial answer is never taken for a whole one."""
    if sdk.protocol == "openai":
        broken = [[*openai_chunks()[:3], Cut()], openai_chunks()[:3]]
    else:
        error = named("error", error={"type": "overloaded_error", "message": "no"})
        broken = [[*anthropic_events()[:5], Cut()], [*anthropic_events()[:5], error]]
    for pieces in broken:
        provider.script(Stream(pieces))
        outcome = sdk.call("stream")
        assert outcome.error is not None
        assert outcome.attempts == 1


def test_the_matrix_has_the_installed_versions() -> None:
    """The versions of requirements.txt are among them."""
    installed = subprocess.run(
        [sys.executable, "-m", "pip", "list", "--format=freeze"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for spec in ("openai==3.*", "anthropic==2.*"):
        assert spec in SDKS
        assert spec.removesuffix("*") in installed
