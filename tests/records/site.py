"""An application whose records a test reads."""

from typing import Any, NamedTuple

from click.testing import Result
from flask import Flask

from ratelimit_ext import Limiter, StorageUnavailable
from ratelimit_ext.records.recorder import Recorder
from tests.web.calls import statuses
from tests.web.conftest import Maker


class Down:
    """A store that does not answer."""

    def change(self, *_: Any) -> int:
        raise StorageUnavailable("down")


class Site(NamedTuple):
    app: Flask
    limiter: Limiter

    @property
    def recorder(self) -> Recorder:
        return self.limiter._components.recorder

    def hit(self, calls: int, path: str = "/", key: str = "ann") -> list[int]:
        return statuses(self.app, path, calls, headers={"X-Key": key})

    def run(self, *words: str, status: int = 0) -> Result:
        """A `flask ratelimit` command."""
        result = self.app.test_cli_runner().invoke(args=["ratelimit", *words])
        assert result.exit_code == status, result.output
        return result


def remembering(make: Maker, uri: str, **how: object) -> Site:
    """An application, still without limits, that remembers denials."""
    site = Site(*make(storage_uri=uri))
    site.limiter.remember_denials(**how)
    return site
