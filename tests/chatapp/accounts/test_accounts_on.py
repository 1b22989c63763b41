"""The mark that accounts were on, on real storages."""

from pathlib import Path

import redis
from limits.storage import RedisStorage

from chatapp.accounts.accounts_on import KEEP_S, AccountsOn
from chatapp.database.connection import Database
from tests.servers import Server

# As in docs/operate/topology.md.
RIGHTS = ("~LIMITS:*", "resetchannels", "-@all", "+exists", "+set", "+del", "+ping", "+hello")


def test_a_file_and_a_key_say_that_accounts_were_on(
    tmp_path: Path, redis_server: Server, redis_client: redis.Redis
) -> None:
    """Either is enough, and both end together. The documented rights suffice; the key expires."""
    redis_client.execute_command("ACL", "SETUSER", "chatapp", "on", ">secret", *RIGHTS)
    here = Database(f"sqlite:///{tmp_path / 'here.db'}")
    elsewhere = Database(f"sqlite:///{tmp_path / 'elsewhere.db'}")
    uri = redis_server.uri.replace("//", "//chatapp:secret@")
    storage = RedisStorage(uri)

    def shared() -> RedisStorage:
        return storage

    assert AccountsOn(here, shared).is_set() is False
    AccountsOn(here, shared).set()
    assert AccountsOn(here).is_set()
    assert AccountsOn(elsewhere, shared).is_set()
    assert AccountsOn(elsewhere, shared, prefix="another").is_set() is False
    (key,) = redis_client.keys("*")
    assert redis_client.ttl(key) == KEEP_S
    AccountsOn(here, shared).clear()
    assert AccountsOn(here, shared).is_set() is False


def test_a_storage_that_does_not_answer_says_nothing(tmp_path: Path) -> None:
    """A request waits for none that is known to be down."""
    database = Database(f"sqlite:///{tmp_path / 'chatapp.db'}")
    storage = RedisStorage("redis://127.0.0.1:1")
    mark = AccountsOn(database, lambda: storage)
    assert mark.is_set() is None
    mark.set()
    assert mark.is_set()
    elsewhere = Database(f"sqlite:///{tmp_path / 'elsewhere.db'}")
    assert AccountsOn(elsewhere, lambda: storage, is_down=lambda: True).is_set() is None
