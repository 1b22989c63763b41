"""Refuses a call if this process has too many in flight, before anything is spent on it."""

from __future__ import annotations

from typing import Final

from flask import Flask, request

from chatapp.web.errors import ApiError
from ratelimit_ext import Limiter

#: Set by the worker; see chatapp/gunicorn_worker.py.
MARK: Final = "chatapp.overloaded"
RETRY_AFTER_S: Final = 2


class OverloadedError(ApiError):
    """503: too many calls are in flight."""

    def __init__(self) -> None:
        super().__init__(
            503,
            "server_is_overloaded",
            f"The server has too many calls in flight; try again in {RETRY_AFTER_S} s.",
        )

    def get_headers(self, *args: object) -> list[tuple[str, str]]:
        """With a Retry-After."""
        return [*super().get_headers(), ("Retry-After", str(RETRY_AFTER_S))]


def install(app: Flask, limiter: Limiter) -> None:
    """Refuse the requests that the worker has marked. No limit counts them."""

    @app.before_request
    def refuse() -> None:
        if MARK in request.environ:
            raise OverloadedError

    limiter.request_filter(lambda: MARK in request.environ)
