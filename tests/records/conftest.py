"""The fixtures of the extension's tests."""

from __future__ import annotations

from tests.web.conftest import clock, make, uri

__all__ = ["clock", "make", "uri"]
