"""Names of buckets in the storage: escaped, bounded, one name for one bucket.

``{prefix}:2:{strategy}:{period}:{scope}:{name}:{identity}``, with the identity in braces, so that
all limits of an identity are in one slot of a Redis Cluster. The 2 is the version of the stored
format. A named limit is identified by its name: its amount may change, and its usage is kept. A
limit without a name is identified by its amount, as in Flask-Limiter: ``5/minute`` and
``10/minute`` on one view are two limits. An anchor with its time zone and first day follows the
period: it makes other windows, and so does the mode ``shadow``: a shadow beside a live limit has
its own count.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from hashlib import blake2b
from typing import Final, NamedTuple, TypeAlias
from urllib.parse import quote, unquote

from ratelimit_ext.core.limit import Limit

#: Returns what a limit counts by: whose bucket it is.
Identity: TypeAlias = Callable[[], str]

FORMAT = 2
LONGEST_PART = 64
#: Longer identities are escaped each time: clients choose them, and a cache of them would be large.
LONGEST_CACHED = 256
#: What lies beside a bucket: its many holds (``reservations.lua``), and its line (``line.lua``).
BESIDE = (":holds", ":line")
SLOTS = 16_384


@lru_cache(maxsize=8192)
def escaped(part: str) -> str:
    """``part`` without any character that separates parts; hashed if it is long.

    Different parts stay different: the escape is reversible and the hash has 128 bits.

    >>> escaped("a/b"), escaped("a:b"), escaped("x" * 5000)
    ('a/b', 'a%3Ab', '~75d0878b8974254f2150d1f569930205')
    """
    safe = quote(part, safe="/@+=,;!*'()$&", errors="surrogatepass").replace("~", "%7E")
    if len(safe) <= LONGEST_PART:
        return safe
    return "~" + blake2b(safe.encode("ascii"), digest_size=16).hexdigest()


def bucket_prefix(prefix: str, code: str, limit: Limit, scope: str) -> str:
    """Return the name of a bucket up to the identity."""
    period = (
        f"{limit.period_us // 1_000_000}"
        if limit.period_us % 1_000_000 == 0
        else (f"{limit.period_us}us")
    )
    unit = "" if limit.unit == "requests" else limit.unit
    starts = "" if limit.week_starts == "monday" else f"-{limit.week_starts}"
    anchor = f"-{limit.anchor}{starts}-{escaped(limit.timezone)}" if limit.anchor else ""
    mode = "" if limit.mode == "enforce" else f"-{limit.mode}"
    name = escaped(limit.name) if limit.name else f"~{limit.amount}"  # no name has a tilde
    if limit.burst is not None and not limit.name:
        name = f"{name}b{limit.burst}"
    return f"{prefix}:{FORMAT}:{code}:{period}{unit}{anchor}{mode}:{escaped(scope)}:{name}:"


def bucket_key(shared: str, identity: str) -> str:
    """Return the whole name: what :func:`bucket_prefix` gave, and the identity as the hash tag.

    >>> bucket_key("LIMITS:2:tb:60:chat::", "user 1")
    'LIMITS:2:tb:60:chat::{user%201}'
    """
    if len(identity) > LONGEST_CACHED:
        return f"{shared}{{{escaped.__wrapped__(identity)}}}"
    # Empty braces would be no tag.
    return f"{shared}{{{escaped(identity) or '~'}}}"


#: Returns the end of a bucket's name for an identity of at most LONGEST_CACHED characters.
cached_tag: Final = lru_cache(maxsize=8192)(partial(bucket_key, ""))


def joined(parts: Iterable[str]) -> str:
    """Return several identities as one text, which no other parts make: commas are escaped.

    >>> joined(["user:ada", "claude-opus-4"]), joined(["a,b", "c"]), joined(["a", "b,c"])
    ('user:ada,claude-opus-4', 'a%2Cb,c', 'a,b%2Cc')
    """
    return ",".join([part.replace("%", "%25").replace(",", "%2C") for part in parts])


def separated(text: str) -> list[str]:
    """Return the identities that :func:`joined` has made one of.

    >>> separated("user:ada,claude-opus-4"), separated("a%2Cb,c")
    (['user:ada', 'claude-opus-4'], ['a,b', 'c'])
    """
    return [part.replace("%2C", ",").replace("%25", "%") for part in text.split(",")]


def member_key(prefix: str, member_tag: str, group_key: str) -> str:
    """Return the bucket of a group's member, in the slot of the group's.

    >>> member_key("LIMITS:2:fw:60:chat:share:", "{ada}", "LIMITS:2:fw:60:chat:team:{acme}")
    'LIMITS:2:fw:60:chat:share:ada{acme}'
    """
    return f"{prefix}{member_tag[1:-1]}{group_key[group_key.rfind('{') :]}"


class BucketName(NamedTuple):
    """The name of a bucket in its parts. A long identity is known only by its hash, ``~…``."""

    prefix: str
    identity: str


def parsed_key(key: str) -> BucketName | None:
    """Return the parts of a bucket's name; ``None`` for what lies beside buckets.

    >>> parsed_key("LIMITS:2:tb:60:chat::{user%201}")
    BucketName(prefix='LIMITS:2:tb:60:chat::', identity='user 1')
    >>> parsed_key("LIMITS:2:tb:60:chat::{user}:holds")
    """
    prefix, brace, tag = key.rpartition("{")
    if not brace or not tag.endswith("}"):
        return None
    return BucketName(prefix, unquote(tag[:-1], errors="replace"))


def beside(key: str) -> tuple[str, ...]:
    """Return the names of what lies beside a bucket.

    >>> beside("LIMITS:2:tb:60:chat::{user}")
    ('LIMITS:2:tb:60:chat::{user}:holds', 'LIMITS:2:tb:60:chat::{user}:line')
    """
    return tuple([f"{key}{ending}" for ending in BESIDE])


def is_beside(key: str) -> bool:
    return key.endswith(BESIDE)


def hash_tag(key: str) -> str:
    """Return what chooses the slot in a Redis Cluster; the whole name without braces.

    >>> hash_tag("LIMITS:2:tb:60:chat::{user}:holds"), hash_tag("a{}b")
    ('user', 'a{}b')
    """
    _, _, rest = key.partition("{")
    tag, brace, _ = rest.partition("}")
    return tag if tag and brace else key


def slot_of(tag: str) -> int:
    """Return the slot of the names with this hash tag, of :data:`SLOTS`.

    >>> slot_of("123456789")
    12739
    """
    return crc_hqx(tag.encode("utf-8", "surrogatepass"), 0) % SLOTS


def with_tag(key: str, tag: str) -> str:
    """Return the name with another hash tag.

    >>> with_tag("LIMITS:2:tb:60:chat::{user}:once:7", "team")
    'LIMITS:2:tb:60:chat::{team}:once:7'
    """
    own = hash_tag(key)
    return f"{{{tag}}}{key}" if own == key else key.replace(f"{{{own}}}", f"{{{tag}}}", 1)


class Naming(NamedTuple):
    """How an extension names its buckets: the storage's prefix, its own, its default strategy."""

    storage_prefix: str
    key_prefix: str
    strategy: str

    def prefix(self, limit: Limit, scope: str) -> str:
        label = f"{self.key_prefix}/{scope}" if self.key_prefix else scope
        return bucket_prefix(self.storage_prefix, limit.traits.code, limit, label)
