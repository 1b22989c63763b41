"""Two workers before a provider."""

from functools import partial

import pytest

from tests.chatapp.application.upstreams.workers import MakeWorkers, Workers
from tests.chatapp.conftest import AppMaker
from tests.chatapp.upstream_server import UpstreamServer


@pytest.fixture
def make_workers(make_app: AppMaker, uri: str, provider: UpstreamServer) -> MakeWorkers:
    """Makes two workers on a new storage, with these settings besides."""
    return partial(Workers, make_app, uri, provider)


@pytest.fixture
def workers(make_workers: MakeWorkers) -> Workers:
    return make_workers()
