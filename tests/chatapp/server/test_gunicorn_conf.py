"""gunicorn.conf.py: mistakes in the variables of the server."""

import runpy

import pytest

from tests.gunicorn_master import ROOT


@pytest.mark.parametrize(
    ("name", "texts", "allowed"),
    [
        ("GUNICORN_THREADS", ("many", "0"), "a whole number from 1 to 10000"),
        ("WEB_CONCURRENCY", ("-1",), "a whole number from 1 to 10000"),
        ("PORT", ("65536",), "a whole number from 1 to 65535"),
        (
            "GUNICORN_REQUEST_TIMEOUT_S",
            ("soon", "0", "-1", "nan", "3601"),
            "a number above 0, up to 3600",
        ),
    ],
)
def test_a_mistaken_number_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, texts: tuple[str, ...], allowed: str
) -> None:
    """With one sentence, not a traceback."""
    for text in texts:
        monkeypatch.setenv(name, text)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "gunicorn.conf.py"))
        sentence = f"{name}: found {text!r}; allowed: {allowed}."
        assert ended.value.code == f"gunicorn.conf.py: {sentence}"


@pytest.mark.parametrize(("text", "timeout_s"), [("2.5", 2.5), ("4", 4), ("", 10)])
def test_a_timeout_may_have_a_fraction(
    monkeypatch: pytest.MonkeyPatch, text: str, timeout_s: float
) -> None:
    """In seconds; empty is the default."""
    monkeypatch.setenv("GUNICORN_REQUEST_TIMEOUT_S", text)
    worker_class = runpy.run_path(str(ROOT / "gunicorn.conf.py"))["worker_class"]
    assert worker_class.patience_s == timeout_s


def test_an_invalid_provider_timeout_is_left_to_the_application(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which reads it as well, and says what is allowed."""
    monkeypatch.setenv("CHATAPP_PROVIDER_TIMEOUT_S", "soon")
    assert runpy.run_path(str(ROOT / "gunicorn.conf.py"))["graceful_timeout"] == 630
