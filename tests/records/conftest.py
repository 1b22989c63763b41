"""The fixtures of the extension's tests."""

from tests.web.conftest import clock, make, uri

__all__ = ["clock", "make", "uri"]
