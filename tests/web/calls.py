"""Calls to an application, many at a time."""

from typing import Any

from flask import Flask
from flask.testing import FlaskClient


def statuses(
    app: Flask | FlaskClient, path: str = "/", times: int = 1, **options: Any
) -> list[int]:
    """The status of each of so many calls, one after the other; by GET unless `method` says."""
    client = app.test_client() if isinstance(app, Flask) else app
    return [client.open(path, **options).status_code for _ in range(times)]
