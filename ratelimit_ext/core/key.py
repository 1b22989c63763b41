"""Names of buckets in the storage: escaped, bounded, one name for one bucket.

``{prefix}:1:{strategy}:{period}:{scope}:{name}:{identity}``, with the identity in braces, so that
all limits of a subject lie in one slot of a Redis Cluster. The 1 is the version of what is stored.
The amount is not part of the name: a limit that is changed keeps its usage.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from urllib.parse import quote

from ratelimit_ext.core.limit import Limit

FORMAT = 1
LONGEST_PART = 64


@lru_cache(maxsize=8192)
def escaped(part: str) -> str:
    """``part`` without any character that separates parts; hashed where it is long.

    Different parts stay different: the escape is reversible and the hash has 128 bits.

    >>> escaped("a/b"), escaped("a:b"), escaped("x" * 5000)
    ('a/b', 'a%3Ab', '~75d0878b8974254f2150d1f569930205')
    """
    safe = quote(part, safe="/@+=,;!*'()$&", errors="surrogatepass").replace("~", "%7E")
    if len(safe) <= LONGEST_PART:
        return safe
    return "~" + blake2b(safe.encode("ascii"), digest_size=16).hexdigest()


def bucket_prefix(prefix: str, code: str, limit: Limit, scope: str) -> str:
    """The part of a bucket's name that every identity shares; it ends where the identity begins."""
    period = f"{limit.period_us // 1_000_000}" if limit.period_us % 1_000_000 == 0 else (
        f"{limit.period_us}us"
    )
    unit = "" if limit.unit == "requests" else limit.unit
    return f"{prefix}:{FORMAT}:{code}:{period}{unit}:{escaped(scope)}:{escaped(limit.name)}:"


def bucket_key(shared: str, identity: str) -> str:
    """The whole name: what :func:`bucket_prefix` gave, and the identity as the hash tag.

    >>> bucket_key("LIMITS:1:tb:60:chat::", "user 1")
    'LIMITS:1:tb:60:chat::{user%201}'
    """
    return f"{shared}{{{escaped(identity)}}}"
