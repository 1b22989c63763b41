"""Traffic: calls in the order of their time, from a file or made up."""

from __future__ import annotations

import heapq
import json
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, TypeAlias

from ratelimit_ext.core.money import MOST_DOLLARS, micro_dollars

#: The keys of a line that are no identities.
COSTS: Final = ("tokens", "input_tokens", "output_tokens")
SHAPES: Final = ("poisson", "burst", "diurnal", "runaway")

#: Of how many broken lines the reasons are kept.
MOST_REASONS: Final = 5
#: By how much a line may be earlier than one before it. Servers log a call at its end.
LATEST_US: Final = 600_000_000
DAY_S: Final = 86_400


class TrafficCall(NamedTuple):
    """A call. ``who`` are identities by the names that a policy uses, ``costs`` what it really cost
    by unit (micro-dollars for ``usd``). ``exempt`` are the names of limits that do not apply to it.
    ``abusive`` is what the traffic says of it, if anything.
    """

    at_us: int
    endpoint: str
    who: Mapping[str, str]
    costs: Mapping[str, int] = {}
    plan: str = ""
    seconds: float = 0.0
    exempt: frozenset[str] = frozenset()
    abusive: bool | None = None

    @property
    def caller(self) -> str:
        """Who makes it: the user, else the API key, else the address."""
        who = self.who
        return who.get("user") or who.get("api_key") or who.get("ip") or ""


@dataclass
class Traffic:
    """Calls that can be read repeatedly. ``skipped`` counts the lines of the last reading that were
    broken, ``reasons`` has the first of them."""

    calls: Callable[[], Iterator[TrafficCall]]
    length: int | None = None
    skipped: int = 0
    reasons: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[TrafficCall]:
        self.skipped, self.reasons = 0, []
        return self.calls()

    def skip(self, reason: str) -> None:
        self.skipped += 1
        if len(self.reasons) < MOST_REASONS:
            self.reasons.append(reason)


#: The endpoint of a method and a path; ``None`` for no endpoint.
EndpointOf: TypeAlias = Callable[[str, str], str | None]


# -- files -----------------------------------------------------------------------------------

_COMMON: Final = re.compile(
    r'(?P<ip>\S+) \S+ (?P<user>\S+) \[(?P<time>[^]]+)\] "(?P<method>[A-Z]+) (?P<path>\S+)[^"]*" '
)


def read_lines(lines: Callable[[], Iterable[str]], endpoint_of: EndpointOf) -> Traffic:
    """Traffic of JSONL or of a common log, whichever a line is.

    A line of JSON is an object: ``time`` (seconds since 1970, or ISO 8601), ``endpoint`` (or
    ``method`` and ``path``), optional ``plan``, ``tokens``, ``input_tokens``, ``output_tokens``,
    ``usd``, ``seconds`` in flight, ``exempt`` (names of limits), ``abusive``; every other string is
    an identity. Broken lines are skipped and counted.
    """

    def calls() -> Iterator[TrafficCall]:
        for number, line in enumerate(lines(), 1):
            if not (text := line.strip()):
                continue
            try:
                yield (
                    _json_call(text, endpoint_of)
                    if text[0] == "{"
                    else _log_call(text, endpoint_of)
                )
            except ValueError as error:
                traffic.skip(f"line {number}: {error}")

    traffic = Traffic(lambda: _in_order(calls(), traffic))
    return traffic


def _json_call(text: str, endpoint_of: EndpointOf) -> TrafficCall:
    try:
        fields = json.loads(text)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error})") from None
    endpoint = fields.pop("endpoint", None)
    if endpoint is None and "path" in fields:
        endpoint = endpoint_of(str(fields.pop("method", "GET")), str(fields.pop("path")))
    if not isinstance(endpoint, str):
        raise ValueError("it has neither an endpoint nor the path of one")  # noqa: TRY004 - of the line
    costs = {unit: _whole(fields.pop(unit), unit) for unit in COSTS if unit in fields}
    if costs and "tokens" not in costs:
        costs["tokens"] = costs.get("input_tokens", 0) + costs.get("output_tokens", 0)
    if "usd" in fields:
        costs["usd"] = micro_dollars(fields.pop("usd"))
    exempt, abusive = fields.pop("exempt", ()), fields.pop("abusive", None)
    if not (isinstance(exempt, list | tuple) and all(isinstance(name, str) for name in exempt)):
        raise ValueError(f"found exempt = {exempt!r}; allowed: a list of names of limits")
    if not (abusive is None or isinstance(abusive, bool)):
        raise ValueError(f"found abusive = {abusive!r}; allowed: true or false")
    return TrafficCall(
        _instant(fields.pop("time", None)),
        endpoint,
        costs=costs,
        plan=str(fields.pop("plan", "") or ""),
        seconds=_seconds(fields.pop("seconds", 0)),
        exempt=frozenset(exempt),
        abusive=abusive,
        who={name: value for name, value in fields.items() if isinstance(value, str) and value},
    )


def _log_call(text: str, endpoint_of: EndpointOf) -> TrafficCall:
    match = _COMMON.match(text)
    if match is None:
        raise ValueError("it is neither JSON nor a line of a common log")
    try:
        at_us = _micro(datetime.strptime(match["time"], "%d/%b/%Y:%H:%M:%S %z").timestamp())
    except ValueError:
        raise ValueError(
            f'found the time {match["time"]!r}; allowed: as in "26/Nov/2026:13:55:36 +0000"'
        ) from None
    endpoint = endpoint_of(match["method"], match["path"])
    if endpoint is None:
        raise ValueError(
            f"{match['method']} {match['path'][:80]} is not an endpoint of this application"
        )
    who = {"ip": match["ip"]}
    if match["user"] != "-":
        who["user"] = match["user"]
    return TrafficCall(at_us, endpoint, who)


def _instant(value: Any) -> int:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return _micro(value)
        at = datetime.fromisoformat(value)
        return _micro((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())
    except (TypeError, ValueError):
        raise ValueError(
            f'found time = {value!r}; allowed: seconds since 1970, or as in "2026-11-26T13:55:36Z"'
        ) from None


def _micro(seconds: float) -> int:
    """Return the instant in microseconds. ValueError before 1970 and after 2242."""
    if not 0 <= seconds < 2**33:
        raise ValueError(seconds)
    return int(seconds * 1_000_000)


def _whole(value: Any, unit: str) -> int:
    if type(value) is int and 0 <= value <= MOST_DOLLARS:
        return value
    raise ValueError(f"found {unit} = {value!r}; allowed: a whole number from 0 to {MOST_DOLLARS}")


def _seconds(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= DAY_S:
        return float(value)
    raise ValueError(f"found seconds = {value!r}; allowed: 0 to {DAY_S}")


def _in_order(calls: Iterable[TrafficCall], traffic: Traffic) -> Iterator[TrafficCall]:
    """Yield the calls by time; one that is more than :data:`LATEST_US` late is skipped."""
    waiting: list[tuple[int, int, TrafficCall]] = []
    newest = released = 0
    for number, call in enumerate(calls):
        if call.at_us < released:
            traffic.skip("a call is earlier than one 10 minutes before it: sort them")
            continue
        heapq.heappush(waiting, (call.at_us, number, call))
        newest = max(newest, call.at_us)
        while waiting and waiting[0][0] < newest - LATEST_US:
            released, _, earliest = heapq.heappop(waiting)
            yield earliest
    while waiting:
        yield heapq.heappop(waiting)[2]


# -- made up ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What made-up calls are like: ``users`` make ``calls`` within ``days``, from ``start_us`` on.

    A tenth of the users make half of the calls. Tokens and dollars of a call vary as a lognormal
    distribution around their means.
    """

    endpoint: str
    users: int = 50
    calls: int = 10_000
    days: float = 1.0
    plan: str = ""
    model: str = "any"
    tokens: int = 2_000
    usd: float = 0.01
    seconds: float = 8.0
    exempt: tuple[str, ...] = ()
    start_us: int = 1_767_225_600_000_000  # 1 January 2026, a day that begins in every calendar
    seed: int = 1

    def __post_init__(self) -> None:
        for word in ("users", "calls", "days", "tokens"):
            if getattr(self, word) <= 0:
                raise ValueError(f"{word}: found {getattr(self, word)}; allowed: more than 0")


def made_up(shape: str, mixture: Mixture) -> Traffic:
    """Traffic of a shape. The same seed makes the same calls.

    ``poisson``: independent calls. ``burst``: users work in bursts of some minutes. ``diurnal``:
    many calls by day, few at night. ``runaway``: poisson, and a user whose loop makes ten calls a
    second for a tenth of the time, which are marked as abusive.
    """
    times = {"poisson": _poisson, "burst": _bursts, "diurnal": _diurnal, "runaway": _poisson}[shape]

    def calls() -> Iterator[TrafficCall]:
        chance = random.Random(mixture.seed)  # noqa: S311 - chance, not cryptography
        ordinary = _calls(times(mixture, chance), mixture, chance)
        if shape != "runaway":
            return ordinary
        return heapq.merge(ordinary, _loop(mixture), key=lambda call: call.at_us)

    extra = int(mixture.days * DAY_S / 10 * LOOP_PER_S) if shape == "runaway" else 0
    return Traffic(calls, length=mixture.calls + extra)


LOOP_PER_S: Final = 10


def _calls(
    times: Iterable[tuple[float, int | None]], mixture: Mixture, chance: random.Random
) -> Iterator[TrafficCall]:
    heavy = max(1, mixture.users // 10)
    people = [_person(number, mixture) for number in range(mixture.users)]
    exempt = frozenset(mixture.exempt)
    for at_s, given in times:
        number = given
        if number is None:
            number = chance.randrange(heavy if chance.random() < 0.5 else mixture.users)
        size = math.exp(chance.gauss(-0.32, 0.8))  # its mean is 1
        costs = _costs(mixture, size)
        at_us = mixture.start_us + int(at_s * 1_000_000)
        who, seconds = people[number], mixture.seconds * size
        yield TrafficCall(at_us, mixture.endpoint, who, costs, mixture.plan, seconds, exempt)


def _costs(mixture: Mixture, size: float) -> dict[str, int]:
    """Return what a call costs that is so many times the usual one."""
    tokens = max(1, int(mixture.tokens * size))
    sent = tokens * 3 // 4
    usd = int(mixture.usd * size * 1_000_000)
    return {"tokens": tokens, "input_tokens": sent, "output_tokens": tokens - sent, "usd": usd}


def _person(number: int, mixture: Mixture) -> dict[str, str]:
    address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    return {"user": f"user-{number}", "ip": address, "model": mixture.model}


def _poisson(mixture: Mixture, chance: random.Random) -> Iterator[tuple[float, None]]:
    """Independent arrivals: the instants of a Poisson process, given how many they are."""
    at, span = 0.0, mixture.days * DAY_S
    for left in range(mixture.calls, 0, -1):
        # The smallest of `left` uniform instants in what remains.
        at += (span - at) * (1 - (1 - chance.random()) ** (1 / left))
        yield at, None


def _diurnal(mixture: Mixture, chance: random.Random) -> Iterator[tuple[float, None]]:
    """The rate follows a cosine: at 14:00 it is twenty times that at 2:00."""
    span = mixture.days * DAY_S
    instants: list[float] = []
    while len(instants) < mixture.calls:
        at = chance.random() * span
        if chance.random() * 1.9 < 1 - 0.9 * math.cos(2 * math.pi * (at / DAY_S - 2 / 24)):
            instants.append(at)
    instants.sort()
    return ((at, None) for at in instants)


def _bursts(mixture: Mixture, chance: random.Random) -> Iterator[tuple[float, int]]:
    """Each burst is 2 to 40 calls of one user, some seconds apart."""
    span = mixture.days * DAY_S
    instants: list[tuple[float, int]] = []
    while len(instants) < mixture.calls:
        number, at = chance.randrange(mixture.users), chance.random() * span
        for _ in range(min(chance.randint(2, 40), mixture.calls - len(instants))):
            instants.append((at, number))
            at += chance.expovariate(1 / 10)
    instants.sort()
    return iter(instants)


def _loop(mixture: Mixture) -> Iterator[TrafficCall]:
    """A client that repeats one call, from the middle of the time on."""
    span = mixture.days * DAY_S
    who = {"user": "runaway", "ip": "10.255.255.1", "model": mixture.model}
    costs, exempt = _costs(mixture, 1.0), frozenset(mixture.exempt)
    begin = mixture.start_us + int(span / 2 * 1_000_000)
    for number in range(int(span / 10 * LOOP_PER_S)):
        at_us = begin + number * 1_000_000 // LOOP_PER_S
        yield TrafficCall(
            at_us, mixture.endpoint, who, costs, mixture.plan, mixture.seconds, exempt, abusive=True
        )
