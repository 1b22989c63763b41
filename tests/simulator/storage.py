"""Storages that run the Lua of the product, and the network between them and the workers.

A worker has the client of a storage, as redis-py has it: what it sends arrives, or does not, or
late, and so does the reply. A storage may have a replica, which has what it was sent some time ago.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar

import redis
from limits.storage import RedisStorage, Storage

from ratelimit_ext.engine.arguments import Script
from ratelimit_ext.engine.memory import Buckets
from tests.simulator.scheduler import Condition, Scheduler

#: How long a client waits for a reply, and a call is on its way, in seconds.
DEADLINE_S = 0.1
WAY_S = 0.0005
#: When a call arrives that is late: its client has given up by then.
LATE_S = (0.15, 1.0, 5.0)

#: What a script sees of the arguments and the clock of a server, before its own text.
HEAD = (
    "local TIME = { math.floor(ARGV[1] / 1000000), ARGV[1] % 1000000 }\n"
    "local ARGV = { '', unpack(ARGV, 2, 8) }\n"
)
#: A script whose first argument is not the instant begins behind it.
SHIFTED = HEAD.replace("{ '', unpack(ARGV, 2, 8) }", "{ unpack(ARGV, 2, 8) }")


def script_of(text: str) -> Script:
    """Return a script as a function of one call, which redefines all that it has, as EVAL does."""
    name = "sim_" + hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    body = text.replace("redis.call('TIME')", "TIME")
    if "present_instant" in text:
        body = HEAD + body
    else:  # it returns a number
        body = f"{SHIFTED}local function run()\n{body}\nend\nreturn {{ run() }}"
    library = f"#!lua name={name}\nredis.register_function('{name}', function(KEYS, ARGV)\n"
    return Script(text, name, f"{library}{body}\nend)", name)


_scripts: dict[str, Script] = {}


def known(text: str) -> Script:
    if text not in _scripts:
        _scripts[text] = script_of(text)
    return _scripts[text]


class Server:
    """One server: its data, the digests of its scripts, who listens."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.is_up = True
        self.skew_us = 0
        #: Raised when it is started again: its clients have lost their connections.
        self.starts = 0
        self.calls = 0
        self.listeners = list[Messages]()
        self.data = Buckets(ring=self._publish)
        self._texts = dict[str, str]()
        #: What its replica has not run yet, the oldest first.
        self.replica: Server | None = None
        self.behind = list[tuple[Script, list[str], int, list[Any]]]()

    @property
    def now_us(self) -> int:
        return round(self.scheduler.now_s * 1_000_000) + self.skew_us

    def run(self, words: Sequence[Any]) -> Any:
        """Run a command. Raises what redis-py makes of the server's error."""
        self.calls += 1
        command, *rest = words
        if command == "HGETALL":
            return {}
        if command == "PING":
            return True
        if command == "EVALSHA":
            text = self._texts.get(rest[0])
            if text is None:
                raise redis.exceptions.NoScriptError("No matching script")
        else:
            text = rest[0]
            self._texts[hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()] = text
        count = rest[1]
        keys, arguments = rest[2 : 2 + count], list(rest[2 + count :])
        if "present_instant" in text:  # whose first argument is the instant, or '' for now
            assert arguments[0] == "", "the server's clock decides"
            del arguments[0]
        call = known(text), list(keys), self.now_us, arguments
        if self.replica is not None:
            self.behind.append(call)
        return self._evaluated(*call)

    def _evaluated(self, script: Script, keys: list[str], now_us: int, arguments: list[Any]) -> Any:
        reply = self.data.evaluate(script, keys, now_us, *arguments)
        return [int(each) if isinstance(each, float) else each for each in reply]

    def replicate(self, *, all_but: int = 0) -> None:
        """Let the replica run what it has not run yet, but for the latest calls."""
        while self.replica is not None and len(self.behind) > all_but:
            self.replica._evaluated(*self.behind.pop(0))

    def stop(self) -> None:
        self.is_up = False
        self.starts += 1
        for listener in self.listeners:
            listener.lose()
        self.listeners.clear()

    def start(self, *, empty: bool = False) -> None:
        if empty:
            self.data = Buckets(ring=self._publish)
        self._texts.clear()
        self.is_up = True

    def _publish(self, number: int) -> None:
        for listener in self.listeners:
            listener.add(int(number))


class Network:
    """Where workers find the storage. ``fate`` says what happens to a call: 0: it arrives and is
    answered; 1: its reply is lost; 2: it arrives late; 3: it is refused."""

    def __init__(self, scheduler: Scheduler, fate: Callable[[], int]) -> None:
        self.scheduler = scheduler
        self.server = Server(scheduler)
        self.fate = fate
        #: The workers that cannot reach the storage.
        self.parted = set[Any]()
        self.faults = 0
        #: How often calls in flight were handed back, by this server and those before it.
        self.resumed = 0

    def part(self, workers: Iterable[Any]) -> None:
        """Part these workers from the storage; their connections are lost."""
        self.parted.update(workers)
        for listener in list(self.server.listeners):
            if listener.owner in self.parted:
                self.server.listeners.remove(listener)
                listener.lose()

    def promote(self, lost: int) -> int:
        """Put the replica in the place of the server, without its latest calls; returns how many
        of them."""
        old = self.server
        assert old.replica is not None
        old.replicate(all_but=lost)
        missed = len(old.behind)
        old.stop()
        self.server = old.replica
        return missed

    def call(self, words: Sequence[Any]) -> Any:
        scheduler = self.scheduler
        if scheduler.is_over:
            raise redis.ConnectionError("the run is over")
        began, fate = scheduler.now_s, self.fate()
        if scheduler.owner in self.parted:
            return self._time_out(began)
        if not self.server.is_up or fate == 3:
            self.faults += 1
            scheduler.sleep(WAY_S)
            raise redis.ConnectionError("refused") from ConnectionRefusedError("refused")
        server, starts = self.server, self.server.starts
        if fate == 2:
            late_s = LATE_S[scheduler.choices.among(len(LATE_S))]
            arrive = partial(self._arrive_late, server, late_s, words)
            scheduler.start(arrive, owner=None, name="a late call")
            return self._time_out(began)
        scheduler.sleep(WAY_S)
        if server.starts != starts or not server.is_up:
            self.faults += 1
            raise redis.ConnectionError("Connection reset by peer")
        error: Exception | None = None
        reply: Any = None
        try:
            reply = server.run(words)
            self.resumed += '"resume"' in str(words[3:])
        except redis.RedisError as raised:
            error = raised
        if fate == 1:
            return self._time_out(began)
        scheduler.sleep(WAY_S)
        if server.starts != starts or scheduler.owner in self.parted:
            return self._time_out(began)
        if error is not None:
            raise error
        return reply

    def _arrive_late(self, server: Server, late_s: float, words: Sequence[Any]) -> None:
        starts = server.starts
        self.scheduler.sleep(late_s)
        if server.is_up and server.starts == starts:
            with suppress(redis.RedisError):
                server.run(words)

    def _time_out(self, began: float) -> Any:
        self.faults += 1
        self.scheduler.sleep(began + DEADLINE_S - self.scheduler.now_s)
        raise redis.TimeoutError("Timeout reading from socket")


class Connection:
    """What `init_app` connects once to find mistakes in the settings, and asks for INFO."""

    def __init__(self, **_: object) -> None:
        self.retry = None

    def connect(self) -> None:
        pass

    def send_command(self, *_: str) -> None:
        pass

    def read_response(self) -> dict[str, object]:
        return {}

    def disconnect(self) -> None:
        pass


class Pool:
    connection_class = Connection
    max_connections = 1_000

    def __init__(self) -> None:
        self.connection_kwargs = dict[str, Any]()


class Client:
    """What the extension uses of redis-py's client."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.connection_pool = Pool()

    def evalsha(self, sha: str, count: int, *words: Any) -> Any:
        return self.network.call(("EVALSHA", sha, count, *words))

    def eval(self, text: str, count: int, *words: Any) -> Any:
        reply = self.network.call(("EVAL", text, count, *words))
        return reply if "present_instant" in text else reply[0]

    def ping(self) -> Any:
        return self.network.call(("PING",))

    def hgetall(self, key: str) -> Any:
        return self.network.call(("HGETALL", key))

    def pubsub(self, **_: object) -> Messages:
        return Messages(self.network)


class Messages:
    """What a worker hears of a server's channel, as long as its connection lasts."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._server = network.server
        self.owner = network.scheduler.owner
        self._changed = Condition(network.scheduler)
        self._heard = list[int]()
        self._is_lost = False

    def subscribe(self, _: str) -> None:
        if not self._network.server.is_up or self.owner in self._network.parted:
            raise redis.ConnectionError("refused")
        self._server = self._network.server
        self._server.listeners.append(self)

    def get_message(self, timeout: float = 0.0) -> Any:
        if not self._changed.wait_for(lambda: bool(self._heard or self._is_lost), timeout):
            return None
        if self._heard:
            return {"data": self._heard.pop(0)}
        raise redis.ConnectionError("Connection closed by server.")

    def add(self, number: int) -> None:
        self._heard.append(number)
        self._changed.notify_all()

    def lose(self) -> None:
        self._is_lost = True
        self._changed.notify_all()

    def close(self) -> None:
        if self in self._server.listeners:
            self._server.listeners.remove(self)


class SimulatedStorage(RedisStorage):
    """A storage of `limits` whose server is the simulator's."""

    STORAGE_SCHEME: ClassVar[list[str]] = ["simulated"]
    #: Of the worker that is made now.
    network: ClassVar[Network]

    def __init__(self, uri: str, **_: object) -> None:
        Storage.__init__(self, uri, wrap_exceptions=False)
        self.key_prefix = "LIMITS"
        self.client = Client(self.network)

    def get_connection(self, readonly: bool = False) -> Any:
        return self.client

    @property
    def base_exceptions(self) -> type[Exception]:
        return redis.RedisError
