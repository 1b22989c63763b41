"""gunicorn.conf.py: mistakes in the variables of the server."""

from __future__ import annotations

import runpy

import pytest

from tests.e2e.gunicorn_master import ROOT


@pytest.mark.parametrize(
    ("name", "text", "most"),
    [
        ("GUNICORN_THREADS", "many", 10_000),
        ("GUNICORN_THREADS", "0", 10_000),
        ("WEB_CONCURRENCY", "-1", 10_000),
        ("GUNICORN_REQUEST_TIMEOUT_S", "soon", 3600),
        ("PORT", "65536", 65_535),
    ],
)
def test_a_mistaken_number_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, most: int
) -> None:
    """With one sentence, not a traceback."""
    monkeypatch.setenv(name, text)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "gunicorn.conf.py"))
    sentence = f"{name}: found {text!r}; allowed: a whole number from 1 to {most}."
    assert ended.value.code == f"gunicorn.conf.py: {sentence}"


def test_an_invalid_provider_timeout_is_left_to_the_application(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which reads it as well, and says what is allowed."""
    monkeypatch.setenv("CHATAPP_PROVIDER_TIMEOUT_S", "soon")
    assert runpy.run_path(str(ROOT / "gunicorn.conf.py"))["graceful_timeout"] == 630
