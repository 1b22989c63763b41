"""Names of buckets: one name for one bucket, whatever an identity is made of."""

import string
from itertools import product

import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.crc import key_slot

from ratelimit_ext.core.key import (
    LONGEST_CACHED,
    LONGEST_PART,
    beside,
    bucket_key,
    bucket_prefix,
    escaped,
)
from ratelimit_ext.core.limit import Limit

MINUTE = 60_000_000

any_text = st.text(st.characters(), max_size=80) | st.text("%~{}:/ab", max_size=80)


def named(scope: str = "chat", identity: str = "user", **words: object) -> str:
    limit = Limit(**{"amount": 5, "period_us": MINUTE, **words})  # type: ignore[arg-type]
    return bucket_key(bucket_prefix("LIMITS", "fw", limit, scope), identity)


@settings(max_examples=500, derandomize=True)
@given(any_text, any_text)
def test_different_parts_stay_different(one: str, other: str) -> None:
    """Lone surrogates, separators, escapes, hashes: no two identities share a bucket."""
    assert (escaped(one) == escaped(other)) == (one == other)


@settings(max_examples=300, derandomize=True)
@given(any_text)
def test_a_part_is_short_and_plain(part: str) -> None:
    """At most 64 characters of ASCII, none of which means anything to the key, Redis or a log."""
    assert len(escaped(part)) <= LONGEST_PART
    assert set(escaped(part)).isdisjoint(set(":{}?[]\\^") | set(string.whitespace))
    assert escaped(part).isascii()
    assert escaped(part).isprintable()


def test_separators_do_not_move_between_parts() -> None:
    """`a/b` of `c` and `a` of `b/c` are different buckets, and so with every separator."""
    for separator in ("/", ":", ":{", "}", "~", "%3A", "\0"):
        parts = f"a{separator}b", "c", "a", f"b{separator}c"
        assert named(parts[0], parts[1]) != named(parts[2], parts[3])


def test_an_identity_of_ten_kilobytes_is_hashed() -> None:
    """The name stays below 150 characters, and a last character still tells identities apart."""
    long = "x" * 10_000
    assert len(named(identity=long)) < 150
    assert named(identity=long) != named(identity=long + "y")


def test_an_identity_that_looks_like_a_hash_is_not_one() -> None:
    """An identity cannot equal the hash of another's long name."""
    victim = "v" * 100
    assert escaped(escaped(victim)) != escaped(victim)


def test_all_limits_of_an_identity_lie_in_one_slot() -> None:
    """The identity is the hash tag, whatever braces it brings along."""
    for identity in ("", "user 1", "}{", "{", "{}", "a}b{c", "\ud800", "x" * 10_000):
        slots = {
            key_slot(of(named(scope, identity, strategy=strategy, name=name)).encode())
            for scope, strategy, name, of in product(
                ("chat", "a{b}"),
                ("fixed-window", "token-bucket"),
                ("", "plan {pro}"),
                (str, lambda key: beside(key)[0], lambda key: beside(key)[1]),
            )
        }
        assert len(slots) == 1


def test_what_makes_another_limit_makes_another_bucket() -> None:
    """Period, anchor, mode, name, scope and strategy tell buckets apart; so does the amount of an
    unnamed one."""
    names = [
        named(),
        named(period_us=MINUTE * 60),
        named(period_us=1500),
        named(name="plan"),
        named("other"),
        named(amount=6),
        named(identity="other"),
        bucket_key(bucket_prefix("LIMITS", "tb", Limit(5, MINUTE), "chat"), "user"),
        bucket_key(bucket_prefix("APP", "fw", Limit(5, MINUTE), "chat"), "user"),
        named(strategy="token-bucket", burst=3),
        named(mode="shadow"),
        named(name="plan", mode="shadow"),
        named(anchor="day"),
        named(anchor="month"),
        named(anchor="day", timezone="Europe/Berlin"),
        named(anchor="day", timezone="Europe/Berlin", mode="shadow"),
        named(unit="tokens", anchor="day"),
    ]
    assert len(set(names)) == len(names)


def test_a_named_limit_keeps_its_bucket_when_it_changes() -> None:
    """The amount and the burst are no part of the name."""
    before = named(name="plan", strategy="token-bucket")
    after = named(name="plan", strategy="token-bucket", amount=99, burst=7)
    assert before == after


def test_a_name_survives_the_server(redis_client: redis.Redis) -> None:
    """A value is found under the name it was stored under, NUL and surrogates included."""
    for identity in ("a\0b", "\udfff", "ü", "a b\r\n", "*[a-z]?\\"):
        redis_client.set(named(identity=identity), identity.encode("utf-8", "surrogatepass"))
        assert redis_client.get(named(identity=identity)) is not None
    assert redis_client.dbsize() == 5


def test_a_long_identity_is_not_cached() -> None:
    """Clients choose identities: 8,192 headers of 16 kB would be 130 MB."""
    before = escaped.cache_info().currsize
    assert bucket_key("", "x" * (LONGEST_CACHED + 1)) == bucket_key("", "x" * (LONGEST_CACHED + 1))
    assert escaped.cache_info().currsize == before
