"""The keys of an upstream: which is next, and which rests."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from chatapp.catalogue import key as key_module
from chatapp.catalogue.key import Key
from chatapp.upstreams import ErrorKind, UpstreamError
from chatapp.upstreams import keys as keys_module
from chatapp.upstreams.keys import PAUSE_S, SET_ASIDE_S, Keys

NAMES = ("KEY_A", "KEY_B", "KEY_C")


class Clock:
    """Virtual time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (key_module, keys_module):
        monkeypatch.setattr(module, "time", made)
    return made


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Keys:
    for name in NAMES:
        monkeypatch.setenv(name, f"secret-{name}")
    return Keys("acme", [Key(f"env:{name}") for name in NAMES])


def refusal(
    kind: ErrorKind, status: int | None = None, wait_s: float | None = None
) -> UpstreamError:
    return UpstreamError(kind, status=status, retry_after_s=wait_s)


def test_keys_are_next_in_turn(keys: Keys) -> None:
    """Whatever the model."""
    assert [keys.next(model) for model in "xyxyxy"] == [*NAMES, *NAMES]
    assert keys.secret("KEY_B") == ("KEY_B", "secret-KEY_B")


@pytest.mark.parametrize(
    ("error", "rest_s", "others_too"),
    [
        (refusal("rate_limited", 429), PAUSE_S, False),
        (refusal("rate_limited", 429, 7.0), 7.0, False),
        (refusal("overloaded", 503, 3000.0), 60.0, False),
        (refusal("auth", 403), SET_ASIDE_S, False),
        (refusal("auth", 401), SET_ASIDE_S, True),
        (refusal("quota", 429), SET_ASIDE_S, True),
        (refusal("quota", 400, 259_200.0), 259_200.0, True),
        (refusal("unavailable", 500), 0.0, False),
        (refusal("bad_request", 400), 0.0, False),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_a_refused_key_rests(
    keys: Keys, clock: Clock, error: UpstreamError, rest_s: float, others_too: bool
) -> None:
    """For the model or, if it is rejected, for all; then it is used again."""
    keys.note("KEY_B", "x", error)
    for model, rests in (("x", rest_s > 0), ("y", others_too)):
        used = {keys.next(model) for _ in range(6)}
        assert ("KEY_B" not in used) == rests
    clock.now += rest_s
    assert {keys.next("x") for _ in range(3)} == set(NAMES)


def test_the_first_to_wake_is_used_while_all_rest(keys: Keys) -> None:
    """Its caller gets the upstream's answer; a call that has tried it gets no other."""
    for name, wait_s in zip(NAMES, (30.0, 10.0, 20.0), strict=True):
        keys.pause(name, "x", wait_s)
    assert [keys.next("x") for _ in range(2)] == ["KEY_B", "KEY_B"]
    assert keys.other("x", {"KEY_B"}) is None
    assert keys.other("y", {"KEY_A", "KEY_C"}) == "KEY_B"


def test_a_key_that_is_gone_does_not_rest(keys: Keys) -> None:
    """A stored response still names it."""
    keys.pause("KEY_OF_LAST_YEAR", "x", 5.0)
    assert [keys.next("x") for _ in NAMES] == list(NAMES)


def test_rests_are_bounded(keys: Keys, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers name the models; past rests are dropped first."""
    monkeypatch.setattr(keys_module, "PAUSES_MOST", 2)
    for model in "uvw":
        keys.pause("KEY_A", model, 5.0)
    assert len(keys._pauses) == 2
    clock.now += 5.0
    keys.pause("KEY_A", "x", 5.0)
    assert [model for _, _, model in keys._pauses] == ["x"]


def test_a_rejection_of_the_last_secret_is_not_the_new_ones(
    clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls in flight had the secret that a change has replaced."""
    file = tmp_path / "key"
    file.write_text("old")
    keys = Keys("acme", [Key(f"file:{file}"), Key("env:NOT_SET")])
    assert keys.secret("") == (str(file), "old")
    file.write_text("newer")
    assert keys.secret("") == (str(file), "newer")
    keys.note(str(file), "x", refusal("auth", 401))
    assert keys.other("x", ()) == str(file)
    assert caplog.messages == []
    clock.now += keys_module.CHANGE_S
    keys.note(str(file), "x", refusal("auth", 401))
    assert keys.other("x", ()) is None
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    "source", ["sk-1", "env:", "env:A B", "file:", "file:relative", "ENV:A", ""]
)
def test_a_key_itself_is_no_source(source: str) -> None:
    """The message does not quote what may be a key."""
    with pytest.raises(ValueError, match="does not say where the key is") as caught:
        Key(source)
    assert "sk-1" not in str(caught.value)


@pytest.mark.parametrize("text", ["two words", "tab\tbed", "ümlaut", "a\nb"])
def test_an_unsendable_secret_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    """A header cannot have it, and an HTTP library's error would quote it."""
    file = tmp_path / "key"
    file.write_text(text)
    assert Key(f"file:{file}").secret is None
    assert caplog.messages == [f"{file} is not one word of ASCII without quotes, and is not used"]


def test_only_a_regular_file_is_a_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A device may have no end. One that appears later, and a file that is too large for a key, are
    not read."""
    with pytest.raises(ValueError, match="is not a regular file"):
        Key("file:/dev/zero")
    file = tmp_path / "key"
    key = Key(f"file:{file}")
    file.symlink_to("/dev/zero")
    assert key.secret is None
    file.unlink()
    file.write_text("x" * 70_000)
    assert key.secret is None
    assert caplog.messages == [f"{file} is not one word of ASCII without quotes, and is not used"]


@pytest.mark.parametrize(
    ("error", "model"),
    [
        (refusal("rate_limited", 429, 60.0), None),  # of a minute: it is over in a moment
        (refusal("rate_limited", 429), None),
        (refusal("overloaded", 529, 3000.0), None),
        (refusal("rate_limited", 429, 3600.0), "x"),
        (refusal("quota", 400, 3600.0), keys_module.EVERY_MODEL),
    ],
)
def test_an_operator_hears_of_a_key_that_is_refused_for_long(
    keys: Keys, error: UpstreamError, model: str | None
) -> None:
    """With the model whose quota is used up, and the end."""
    refused = keys.note("KEY_B", "x", error)
    assert (refused and refused.model) == model
    if refused is not None:
        assert (refused.upstream, refused.key) == ("acme", "KEY_B")
        assert refused.ends_at is not None
        assert abs(refused.ends_at - datetime.now(UTC) - timedelta(hours=1)) < timedelta(minutes=1)
