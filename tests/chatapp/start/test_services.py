"""The services of an application: one frozen object, made at the start."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from chatapp import POLICY_FILE
from chatapp.services import EXTENSION_KEY, services_of
from tests.chatapp.conftest import AppMaker


def test_each_application_has_one_frozen_object(make_app: AppMaker) -> None:
    """Under a single key; two applications share nothing but the class."""
    one, other = make_app(CHATAPP_PROVIDER_ATTEMPTS=1), make_app(CHATAPP_PROVIDER_ATTEMPTS=3)
    assert [key for key in one.extensions if key.startswith("chatapp")] == [EXTENSION_KEY]
    attempts = [services_of(app).settings.provider_attempts for app in (one, other)]
    assert attempts == [1, 3]
    assert services_of(one).limiter is not services_of(other).limiter
    with pytest.raises(dataclasses.FrozenInstanceError):
        services_of(one).plans = ()  # type: ignore[misc]


def test_commands_do_not_read_the_policy_again(make_app: AppMaker, tmp_path: Path) -> None:
    """The plans are those of the start, even if the file has changed since."""
    policy = shutil.copy(POLICY_FILE, tmp_path / "policy.toml")
    app = make_app(RATELIMIT_POLICY_FILE=str(policy))
    policy.unlink()
    listed = app.test_cli_runner().invoke(args=["chat", "plans", "list"])
    assert listed.exit_code == 0, listed.output
    names = [line.split()[0] for line in listed.output.splitlines()[1:]]
    assert sorted(names) == sorted(services_of(app).plans)
