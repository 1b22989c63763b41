"""Random histories of calls in flight, each of one to four budgets, against a provider that bills
by its own count: no budget is exceeded by more than one call, and no call is refused while what is
left pays for it. The product decides: strategies, claims, reservations and `UpstreamCall`, in
virtual time.

See with `-s` why calls were refused."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chatapp import catalogue
from chatapp.calls.demand import UNKNOWN_CONTEXT, Demand
from chatapp.calls.upstream_call import UpstreamCall
from chatapp.catalogue.usage import Usage
from chatapp.estimates.estimate import Estimate
from chatapp.upstreams import Bounds, Progress, UpstreamError
from chatapp.web.call_limits import RequestLimits
from ratelimit_ext import Claim, Guess
from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge, new_hold
from ratelimit_ext.core.decision import Verdict
from ratelimit_ext.core.events import Events
from ratelimit_ext.core.key import bucket_key
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.web.bound_limit import BoundCharge, BoundCharges, BoundLimit, Records
from ratelimit_ext.web.limited_request import LimitedRequest
from ratelimit_ext.web.request.reservation import KnownNames, Reservation
from ratelimit_ext.web.request.resolver import Resolver
from tests.chatapp.calls.test_upstream_call import begin
from tests.chatapp.ledger.recording_ledger import RecordingLedger
from tests.seeds import seeds

CATALOGUE = catalogue.load()
MICRO = 1_000_000
MINUTE_US, DAY_US = 60 * MICRO, 86_400 * MICRO
START_US = 1_764_028_800 * MICRO  # a midnight
LEASE_US = 120 * MICRO
#: No call is longer, so that a lease ends with a killed worker alone.
LONGEST_CALL_US = 100 * MICRO
MODELS = [
    CATALOGUE.model(name, upstream)
    for name, upstream in [
        ("gpt-5.4", "openai"),
        ("gpt-5.4-nano", "openai"),
        ("claude-haiku-4-5", "anthropic"),
        ("claude-opus-5", "anthropic"),
        ("o1-pro", "openai"),
    ]
]
CHEAPEST = MODELS[1]
IDENTITIES = ("user", "key", "team", "model", "session", "everyone", "user+model")
STRATEGIES = ("fixed-window",) * 3 + (
    "sliding-window",
    "sliding-window-counter",
    "token-bucket",
    "session",
)
ENDS = ("answered",) * 6 + ("silent", "silent", "left", "failed", "killed")


def dollars(micro_usd: int) -> Decimal:
    return Decimal(micro_usd).scaleb(-6)


class Clocked:
    """An engine in the time of a history; settlements reach it at once."""

    def __init__(self) -> None:
        self.now_us = START_US
        self._engine = MemoryEngine()

    def admit(self, charges: Any, **options: Any) -> Any:
        return self._engine.admit(charges, now_us=self.now_us, **options)

    def settle(self, changes: Any) -> int:
        return self._engine.settle(changes, now_us=self.now_us)

    def send(self, engine: Any, changes: Any, **_: Any) -> str:
        engine.settle(changes)
        return "sent"

    def end(self, engine: Any, hold: Any) -> None:
        """Nothing is kept."""


@dataclass
class Budget:
    """One budget: its limit, and what it counts."""

    number: int
    identity: str
    bound: BoundLimit
    guess: Guess | None = None

    @classmethod
    def drawn(cls, chance: random.Random, number: int, identity: str) -> Budget:
        amount = int(MICRO * 10 ** chance.uniform(-1.5, 1.3))
        strategy = chance.choice(STRATEGIES)
        more: dict[str, Any] = {}
        if strategy == "fixed-window":
            more["anchor"] = chance.choice((None, "day", "month"))
            if identity in ("team", "everyone") and chance.random() < 0.5:
                more |= {"fair": "user", "pace": chance.choice((1_000, 1_500, 3_000))}
        if not more.get("fair") and chance.random() < 0.2:
            more["keep"] = (("interactive", int(amount * chance.uniform(0.1, 0.5))),)
        limit = Limit(amount, DAY_US, cast(Any, strategy), unit="usd", **more)
        own = cls(number, identity, cast(Any, None))
        runtime: Any = SimpleNamespace(cost=1)
        names: Any = ("", f"b{number}:", '"b"', "b", (0, 0))
        own.bound = BoundLimit(runtime, limit, *names, estimate=lambda: own.guess)
        return own

    def charges(self, caller: dict[str, str], guess: Guess) -> list[BoundCharge]:
        """What the extension makes of a request: an amount of its class, and a member's share."""
        self.guess = guess
        name = ",".join(caller[part] for part in self.identity.split("+"))
        limit, costs = self.bound.limit, dict[Any, Any]()
        if limit.keep:
            limit = limit.of_class(caller["class"])
        bound = replace(self.bound, limit=limit)
        key, cost = f"{bound.bucket_prefix}{bucket_key('', name)}", bound.priced(costs)[0]
        made = bound, name, Charge(limit, key, cost, claim=guess.claim)
        if not limit.has_shares:
            return [made]
        share = replace(bound, limit=limit.share(), bucket_prefix=f"s{self.number}:")
        resolver: Any = SimpleNamespace(_share_of=lambda _: share)
        who = caller["user"], bucket_key("", caller["user"])
        return Resolver.shared(resolver, bound, made, who, costs[id(bound.estimate), True])


class Limits:
    """`CallLimits` as the application has them, without a request."""

    budget = RequestLimits.budget
    renewal_is_due = False

    def __init__(self, records: Records, clocked: Clocked) -> None:
        taken = list(records)
        request = LimitedRequest.__new__(LimitedRequest)
        request._state = cast(Any, SimpleNamespace(taken=taken))
        self._limits = request
        names = KnownNames(list)
        settlements: Any = clocked
        self.reservation = Reservation(
            list(taken), names, settlements=settlements, events=Events(), lease_s=LEASE_US / MICRO
        )
        self.settle, self.cancel = self.reservation.settle, self.reservation.cancel

    def cool_down(self, for_s: float) -> None:
        """No provider is overloaded."""

    report = renew = admit_attempt = cool_down


@dataclass
class Flight:
    demand: Demand
    call: UpstreamCall
    limits: Limits
    held: dict[str, int]
    #: What it asked for: what it costs if its worker is killed.
    estimates: dict[str, int]
    ends_us: int
    #: What the provider may bill at most.
    most: int


@dataclass
class History:
    chance: random.Random
    counts: Counter[str]
    clocked: Clocked = field(default_factory=Clocked)
    budgets: list[Budget] = field(default_factory=list)
    flights: list[Flight] = field(default_factory=list)
    killed: list[Flight] = field(default_factory=list)
    ledger: RecordingLedger = field(default_factory=RecordingLedger)
    #: By bucket, in micro-dollars: what was billed; charged; credited; the dearest call.
    billed: Counter[str] = field(default_factory=Counter)
    charged: Counter[str] = field(default_factory=Counter)
    credited: Counter[str] = field(default_factory=Counter)
    dearest: dict[str, int] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    unseen: set[str] = field(default_factory=set)

    def play(self) -> None:
        chance = self.chance
        kinds = chance.sample(IDENTITIES, chance.randint(1, 4))
        self.budgets = [Budget.drawn(chance, n, kind) for n, kind in enumerate(kinds)]
        at_once = chance.randint(2, 40)
        for _ in range(chance.randint(1, 3)):
            for _ in range(at_once):
                if chance.random() < 0.3:
                    self.clocked.now_us += chance.randint(0, 5 * MICRO)
                    self.end_those_until(self.clocked.now_us)
                self.begin()
            while self.flights and chance.random() < 0.95:
                self.end_one()
            if not self.flights:
                self.clocked.now_us += chance.choice((0, 1, 30, 120)) * MINUTE_US
        while self.flights:
            self.end_one()
        self.check()

    def caller(self) -> dict[str, str]:
        user = self.chance.choice("abcdefgh")
        return {
            "user": user,
            "key": "k" if user < "d" else user,
            "team": "red" if user < "f" else "blue",
            "session": self.chance.choice("xy"),
            "everyone": "*",
            "class": self.chance.choice(("interactive", "batch")),
        }

    def begin(self) -> None:
        caller, demand = self.caller(), self.demand()
        if self.admitted(caller, demand):
            return
        if self.chance.random() < 0.3:  # as `at_limit`
            self.admitted(caller, demand._replace(model=CHEAPEST))

    def demand(self) -> Demand:
        chance, model = self.chance, self.chance.choice(MODELS)
        kind = chance.choice(("plain", "plain", "plain", "file", "compaction", "search"))
        input_tokens = int(10 ** chance.uniform(1, 5))
        bound = chance.choice((None, None, 300, 20_000))
        choices = chance.choice((1, 1, 1, 3))
        output = min(int(10 ** chance.uniform(2, 3.6)), bound or 10**6) * choices
        estimate = Estimate(
            input_tokens,
            output,
            choices,
            cached_input_tokens=int(input_tokens * chance.choice((0, 0, 0.5, 0.95))),
            least_input_tokens=input_tokens // 2,
            tools=("web_search",) if kind == "search" else (),
            input_is_known=kind != "file",
        )
        return Demand(
            model,
            estimate,
            CATALOGUE.price(model.slug, estimate.usage),
            bound,
            may_hide_output=chance.random() < 0.5,
            quota_use={},
            is_unbounded=kind == "compaction",
            least_micro_usd=CATALOGUE.price(
                model.slug, Usage(input_tokens // 2, 0, input_tokens // 2)
            ),
        )

    def admitted(self, caller: dict[str, str], demand: Demand) -> bool:
        cost = CATALOGUE.price(demand.model.slug, demand.estimate.usage)
        demand = demand._replace(cost_micro_usd=cost)
        guess = Guess(
            dollars(demand.cost_micro_usd),
            dollars(demand.least_micro_usd),
            Claim(*demand.claim(CATALOGUE)),
        )
        caller = {**caller, "model": demand.model.slug}
        charges = BoundCharges(
            each for budget in self.budgets for each in budget.charges(caller, guess)
        )
        hold = new_hold(LEASE_US, keeps=True)
        decision = self.clocked.admit(charges.prepared, hold=hold)
        if not decision.admitted:
            self.refused(decision.denials)
            return False
        records = Records(charges, decision, cast(Any, self.clocked), hold)
        for record in records:
            verdict = record.verdict
            if not verdict.charge.limit.is_share:
                self.verdicts[verdict.charge.key] = verdict
        limits = Limits(records, self.clocked)
        held = {r.verdict.charge.key: r.cost for r in records if not r.bound.limit.is_share}
        call = begin(limits, self.ledger, wanted=demand)
        flight = Flight(
            demand,
            call,
            limits,
            held,
            {charge.key: charge.cost for _, _, charge in charges},
            self.clocked.now_us + self.chance.randint(0, LONGEST_CALL_US),
            most_billed(demand, call._bounds),
        )
        for key in held:
            self.dearest[key] = max(self.dearest.get(key, 0), flight.most)
        self.flights.append(flight)
        self.counts["calls"] += 1
        return True

    def refused(self, denials: tuple[Verdict, ...]) -> None:
        """What is truly left pays for no refused call, except for calls in flight, or for what an
        unseen call may have been billed."""
        for denial in denials:
            key, limit = denial.charge.key, denial.charge.limit
            if limit.is_share:
                self.counts["refused: a member's share"] += 1
                continue
            in_flight = [each for each in (*self.flights, *self.killed) if key in each.held]
            left = limit.capacity - self.charged[key] + self.credited[key]
            if denial.reason == "budget-in-use":
                assert in_flight, denial
                assert 0 < (denial.retry_after_us or 0) <= 2 * MICRO, denial
                self.counts["refused: in use, a retry helps"] += 1
            elif left < denial.charge.cost:
                self.counts["refused: spent"] += 1
            elif key in self.unseen:
                self.counts["refused: an unseen call may have spent it"] += 1
            else:
                left -= sum(each.held[key] for each in in_flight)
                raise AssertionError(f"{denial} with {left} left, {len(in_flight)} in flight")

    def end_those_until(self, now_us: int) -> None:
        for flight in [each for each in self.flights if each.ends_us <= now_us]:
            self.end(flight)

    def end_one(self) -> None:
        flight = self.chance.choice(self.flights)
        self.clocked.now_us = max(self.clocked.now_us, min(each.ends_us for each in self.flights))
        self.end(flight)
        self.end_those_until(self.clocked.now_us)

    def end(self, flight: Flight) -> None:
        chance, call, demand = self.chance, flight.call, flight.demand
        self.flights.remove(flight)
        how = chance.choice(ENDS)
        if how == "left" and demand.is_open:
            how = "answered"  # it is read to its end
        self.counts[how] += 1
        if how == "killed":
            self.kill(flight)
            return
        billed = 0
        if how == "answered":
            usage = answered(chance, demand, call._bounds)
            billed = CATALOGUE.price(demand.model.slug, usage)
            call.finish_answer(usage, generated=[])
        elif how == "silent":
            billed = int(flight.most * chance.choice((1, 1, chance.random())))
            call.fail(UpstreamError("timeout"))
        elif how == "left":
            words = chance.choice((0, 5, 200))
            progress = Progress(demand.model.name, generated=["word "] * words)
            call.finish_stream(progress, client_left=True)
            billed = min(flight.most, call.record.cost_micro_usd)
        else:
            call.fail(UpstreamError("overloaded"))
        self.note(flight, billed, call.record.cost_micro_usd)
        if how == "silent" or (how == "left" and not words):
            self.unseen.update(flight.held)
        flight.limits.reservation.close()
        self.credit(flight, call.record.cost_micro_usd)

    def kill(self, flight: Flight) -> None:
        """The worker is gone, and its connection with it: the provider bills what it had written by
        then, and the call costs its estimate, or its hold if that is less."""
        self.killed.append(flight)
        prompt = flight.demand.estimate.usage
        written = prompt._replace(output_tokens=min(prompt.output_tokens, 1_250))
        billed = min(flight.most, CATALOGUE.price(flight.demand.model.slug, written))
        for key, held in flight.held.items():
            self.billed[key] += billed
            self.charged[key] += min(held, flight.estimates[key])

    def note(self, flight: Flight, billed: int, charged: int) -> None:
        for key in flight.held:
            self.billed[key] += billed
            self.charged[key] += charged

    def credit(self, flight: Flight, charged: int) -> None:
        """An operator gives back a part of what was charged: that may be spent once more."""
        for key in flight.held:
            verdict = self.verdicts[key]
            # A sliding window gives back what one entry has.
            is_whole = verdict.charge.limit.strategy != "sliding-window"
            if charged and is_whole and self.chance.random() < 0.05:
                units = self.chance.randint(1, charged)
                look = verdict._replace(receipt=verdict.receipt or 0)
                if self.clocked.settle([Change.adjust(look, -units)]):
                    self.credited[key] += units

    def check(self) -> None:
        for key, billed in self.billed.items():
            prefixes = {each.bound.bucket_prefix: each.bound.limit for each in self.budgets}
            limit = next(prefixes[prefix] for prefix in prefixes if key.startswith(prefix))
            amount = limit.amount
            if limit.strategy == "token-bucket":
                amount += amount * (self.clocked.now_us - START_US) // DAY_US + 1
            most = amount + self.credited[key] + self.dearest[key]
            assert billed <= most, (
                f"{billed} billed of {amount} in {key}, one call {self.dearest[key]}, "
                f"charged {self.charged[key]}, credited {self.credited[key]}"
            )


def most_billed(demand: Demand, bounds: Bounds) -> int:
    """What the provider may bill at most for a call with these bounds."""
    usage, cost = longest(demand, bounds), 0
    if demand.estimate.tools:
        slug = demand.model.slug
        for use in range(1, (bounds.tool_uses or 0) + 1):
            read = usage.input_tokens + use * (bounds.result_tokens or 0)
            cost += CATALOGUE.price(slug, Usage(read, 0, tool_calls={"web_search": 1}))
        usage = usage._replace(tool_calls={})
    return cost + CATALOGUE.price(demand.model.slug, usage)


def longest(demand: Demand, bounds: Bounds) -> Usage:
    estimate, entry = demand.estimate, CATALOGUE.entry(demand.model.slug)
    context = entry.context or UNKNOWN_CONTEXT
    return estimate.usage._replace(
        input_tokens=estimate.input_tokens if estimate.input_is_known else context,
        cached_input_tokens=0,
        output_tokens=demand.longest(CATALOGUE, bounds.output_tokens),
    )


def answered(chance: random.Random, demand: Demand, bounds: Bounds) -> Usage:
    """The usage of an answer: often as long as it can be."""
    most = longest(demand, bounds)
    part = chance.choice((1, 1, chance.random(), 0.01))
    return most._replace(
        input_tokens=int(most.input_tokens * chance.choice((1, chance.random())))
        if not demand.estimate.input_is_known
        else most.input_tokens,
        cached_input_tokens=chance.choice((0, demand.estimate.cached_input_tokens)),
        output_tokens=int(most.output_tokens * part),
        tool_calls={"web_search": 1} if demand.estimate.tools else {},
    )


@pytest.fixture(scope="module")
def counts() -> Iterator[Counter[str]]:
    """How many calls began and how they ended, and why calls were refused."""
    counted: Counter[str] = Counter()
    yield counted
    print(f"\n{dict(counted)}")  # noqa: T201


@seeds(250)
def test_no_bill_is_above_a_budget_by_more_than_one_call(
    counts: Counter[str], seeds: range
) -> None:
    """In histories of 2 to 40 calls at once, of every identity and kind."""
    for seed in seeds:
        try:
            History(random.Random(seed), counts).play()
        except AssertionError as error:
            raise AssertionError(f"history {seed}: {error}") from error
    assert min(counts[how] for how in ENDS) > 0
    assert counts["refused: spent"] > 0
    assert counts["refused: in use, a retry helps"] > 0
