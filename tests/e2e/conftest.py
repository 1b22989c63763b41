"""What the servers under test call: an upstream, and the receiver of alerts."""

from collections.abc import Iterator

import pytest

from tests.chatapp.conftest import receiver
from tests.chatapp.upstream_server import UpstreamServer

__all__ = ["receiver"]


@pytest.fixture
def provider() -> Iterator[UpstreamServer]:
    with UpstreamServer.running() as server:
        yield server
