"""The provider that keeps a bill."""

import os
from collections.abc import Iterator

import pytest

from tests.e2e.money.billing_provider import BillingProvider
from tests.gunicorn_master import OURS


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[BillingProvider]:
    """A running provider, to which the SDKs' variables point."""
    for name in os.environ:
        if name.startswith(OURS):
            monkeypatch.delenv(name)
    with BillingProvider.running() as provider:
        for name, value in provider.variables.items():
            monkeypatch.setenv(name, value)
        yield provider
