"""One turn, without HTTP."""

import logging
from dataclasses import dataclass, field

import pytest

from chatapp import catalogue
from chatapp.catalogue.usage import Usage
from chatapp.upstreams import Completion, ErrorKind, Quota, Turn, UpstreamError
from chatapp.upstreams.cancellation import ConnectionFailed
from chatapp.upstreams.offline import Offline
from chatapp.upstreams.router import ModelUnavailableError, Router, UnknownModelError

QUOTAS = (Quota("requests", 60, 59, 1.0),)


@dataclass
class Parrot:
    """A provider that repeats the message, or fails as scripted."""

    missing: str | None = None
    fails: ErrorKind | None = None
    name: str = "openai"
    quotas_by_direction: bool = False
    patterns: tuple[str, ...] = ("gpt-*",)
    asked: list[tuple[Turn, int]] = field(default_factory=list)

    def serves(self, model: str) -> bool:
        return model.startswith("gpt-")

    def complete(self, turn: Turn, max_tokens: int) -> Completion:
        self.asked.append((turn, max_tokens))
        if self.fails:
            raise UpstreamError(self.fails, message="key sk-1\nis bad", status=401)
        return Completion(turn.message, "gpt-x", Usage(1, 2), "stop", QUOTAS)


def router(parrot: Parrot, *, default_model: str | None = None) -> Router:
    return Router((parrot, Offline()), catalogue.load(), default_model=default_model, max_tokens=7)


def test_a_turn_asks_the_models_provider_once() -> None:
    """With the message, the requested name and the bound; the reply has the provider's model and
    quotas."""
    parrot = Parrot()
    talk = router(parrot)
    turn = Turn("hi", talk.model("gpt-4o-2024-08-06"))
    reply = talk.answer(turn)
    assert reply == Completion("hi", "gpt-x", Usage(1, 2), "stop", QUOTAS)
    assert parrot.asked == [(turn, 7)]
    assert turn.model.name == "gpt-4o-2024-08-06"


def test_the_default_is_the_first_provider_that_can_be_asked() -> None:
    """With a key its cheap model, without a key offline; a setting takes precedence."""
    assert router(Parrot()).model(None).name == "gpt-5.6-luna"
    assert router(Parrot(missing="KEY")).model(None).name == "offline"
    assert router(Parrot(), default_model="offline").model(None).name == "offline"


def test_an_unavailable_model_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """The error lists the available models; a missing key is named only in the log, once."""
    with pytest.raises(UnknownModelError, match=r"available models: gpt-\*, offline"):
        router(Parrot()).model("llama")
    talk = router(Parrot(missing="KEY"))
    for _ in range(2):
        with pytest.raises(ModelUnavailableError, match=r"available models: offline") as caught:
            talk.model("gpt-4o")
    assert "KEY" not in str(caught.value)
    assert caught.value.missing == "KEY"
    assert caplog.messages == ["Model 'gpt-4o' was requested but KEY is not set"]
    with pytest.raises(ModelUnavailableError):
        router(Parrot(missing="KEY"), default_model="gpt-4o")


def test_a_model_is_found_once_and_its_key_is_asked_for_each_time() -> None:
    """A name keeps its model; a provider may lose its key."""
    parrot = Parrot()
    talk = router(parrot)
    assert talk.model("gpt-4o") is talk.model("gpt-4o")
    parrot.missing = "KEY"
    with pytest.raises(ModelUnavailableError):
        talk.model("gpt-4o")


def test_only_models_with_a_configured_provider_are_available() -> None:
    """A page offers nothing that would be refused."""
    assert router(Parrot(missing="KEY")).available_models == {"offline": "offline"}
    available = router(Parrot()).available_models
    assert "gpt-4o" in available
    assert "claude-haiku-4-5" not in available


@pytest.mark.parametrize(("kind", "shown"), [("auth", False), ("quota", False), ("timeout", True)])
def test_a_failure_is_logged_without_secrets(
    caplog: pytest.LogCaptureFixture, kind: ErrorKind, shown: bool
) -> None:
    """The reason is logged on one line; the provider's message, which may quote the prompt, only at
    DEBUG, and never if it may quote a key."""
    talk = router(Parrot(fails=kind))
    with caplog.at_level(logging.DEBUG), pytest.raises(UpstreamError) as caught:
        talk.answer(Turn("hi", talk.model("gpt-4o")))
    line, *debugging = caplog.messages
    assert line.startswith(f"openai did not answer for gpt-4o: {kind}, status 401")
    assert "sk-1" not in line + str(caught.value) + repr(caught.value)
    assert ["sk-1" in each for each in debugging] == [True] * shown
    assert "\n" not in "".join(caplog.messages)


@pytest.mark.parametrize(
    ("error", "causes"),
    [
        (UpstreamError("overloaded"), "overloaded"),
        (
            UpstreamError("overloaded", status=529, request_id="req_1"),
            "overloaded, status 529, request req_1",
        ),
        (
            UpstreamError("rate_limited", status=429, retry_after_s=1.5),
            "rate_limited, status 429, retry after 1.5 s",
        ),
    ],
)
def test_the_log_has_only_what_the_provider_sent(
    caplog: pytest.LogCaptureFixture, error: UpstreamError, causes: str
) -> None:
    """No `retry after None s`."""
    talk = router(Parrot())
    with pytest.raises(UpstreamError), talk.call(talk.model("gpt-4o")):
        raise error
    assert caplog.messages == [f"openai did not answer for gpt-4o: {causes}"]


def test_the_log_has_why_a_provider_was_not_reached(caplog: pytest.LogCaptureFixture) -> None:
    """Without a status. The reason is the HTTP library's text, which quotes no prompt."""
    talk = router(Parrot())
    with pytest.raises(UpstreamError), talk.call(talk.model("gpt-4o")):
        raise ConnectionFailed("unavailable", message="https://x: DNS: not known")
    assert caplog.messages == [
        "openai did not answer for gpt-4o: unavailable, https://x: DNS: not known"
    ]
