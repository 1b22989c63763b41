"""The form of a key, and what is kept of it."""

import hmac
from hashlib import sha256
from types import SimpleNamespace

import pytest

from chatapp.accounts import api_key
from chatapp.accounts.api_key import PresentedKey, new_key, parse


def test_a_new_key_reads_back() -> None:
    """`text` and `parse` are inverse."""
    made = new_key()
    assert parse(made.text) == made
    assert made.text.startswith("sk-chat-")


def test_keys_are_never_alike() -> None:
    """Each key has 256 random bits and a new id."""
    made = [new_key() for _ in range(200)]
    assert len({key.secret for key in made}) == len({key.public_id for key in made}) == 200
    assert all(len(key.secret) == 43 for key in made)  # 43 × 6 bits hold 256


GOOD = "sk-chat-0123456789abcdef-" + "A" * 43

BAD = {
    "empty": "",
    "blank": " ",
    "another provider's": "sk-proj-0123456789abcdef",
    "no secret": "sk-chat-0123456789abcdef-",
    "secret too short": GOOD[:-1],
    "secret too long": GOOD + "A",
    "a line after it": GOOD + "\n",
    "a space before it": " " + GOOD,
    "capitals in the id": GOOD.replace("abcdef", "ABCDEF"),
    "letters that only look like it": GOOD.replace("A", "А"),  # Cyrillic
    "digits of another script": GOOD.replace("0", "٠"),
    "NUL": GOOD[:-1] + "\x00",
    "a quote": GOOD[:-1] + "'",
    "SQL": "sk-chat-' OR '1'='1' -- -" + "A" * 43,
    "10 kB": "sk-chat-" + "a" * 10_000,
    "twice": GOOD + GOOD,
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_key_is_none(name: str) -> None:
    """Only the exact form is accepted."""
    assert parse(GOOD) is not None
    assert parse(BAD[name]) is None


def test_a_secret_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """`hmac.compare_digest` over the digests alone decides."""
    seen: list[tuple[str, str]] = []

    def compare(a: str, b: str) -> bool:
        seen.append((a, b))
        return hmac.compare_digest(a, b)

    monkeypatch.setattr(api_key, "hmac", SimpleNamespace(compare_digest=compare))
    key, other = new_key(), new_key()
    assert key.has_secret(key.secret_sha256)
    assert not key.has_secret(other.secret_sha256)
    assert seen == [
        (key.secret_sha256, key.secret_sha256),
        (key.secret_sha256, other.secret_sha256),
    ]


def test_a_digest_is_stored() -> None:
    """SHA-256 of the secret alone."""
    key = PresentedKey("0" * 16, "s" * 43)
    assert key.secret_sha256 == sha256(b"s" * 43).hexdigest()


def test_a_key_prints_without_its_secret() -> None:
    """Logs and tracebacks of the value do not show the secret."""
    key = new_key()
    assert key.secret not in repr(key)
    assert key.public_id in repr(key)
