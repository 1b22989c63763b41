"""The engine over a Redis Cluster: one script call for each identity of a request.

A script can only use keys of one slot. So the charges of a request form groups by hash tag, which
is the identity (:mod:`ratelimit_ext.core.key`): the user's, the address's, the model's. A group is
decided and taken as by :class:`~ratelimit_ext.engine.redis.RedisEngine`. The caller's own groups
are decided first, at the same time, and then those that callers have in common: a caller whose own
limits deny takes nothing of what others share. If a group denies, what other groups took is given
back by the changes that settlements use.

It never admits too much. What differs from one server, each only with several identities:

- While another group decides, a denied request's charges count, for one or two round trips.
- A window without a calendar may begin with a request that another group denies.
- If a node fails in between, or the worker dies, held costs come back when the lease ends; other
  charges stay as if the request had been admitted.
- A change of several identities is applied for each of them, or not, by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from ratelimit_ext.core import clock
from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import NEVER, NO_HOLD, Charge, Hold
from ratelimit_ext.core.decision import Decision, Left, Verdict
from ratelimit_ext.core.errors import ShardUnavailable, StorageFull, StorageUnavailable
from ratelimit_ext.core.key import beside, hash_tag, is_beside, slot_of, with_tag
from ratelimit_ext.engine.arguments import TEXTS, Arguments, hold_words
from ratelimit_ext.engine.engine import Marker
from ratelimit_ext.engine.nodes import NodeCall, Nodes
from ratelimit_ext.engine.redis import NOTE_MS, SCAN_COUNT, stored_names
from ratelimit_ext.engine.verdicts import Reply, applied, merged

#: What a script does: only look, or take.
LOOK: Final = "0"
TAKE: Final = "1"
#: Take nothing, as another group has denied the request, and store what a denial stores.
TAKE_NOTHING: Final = "1 of nothing"
#: A limit on denials that is taken if it fits.
IF_IT_FITS: Final = "s"
#: The share of the deadline in which refunds are sent if it is over.
REFUND_SHARE: Final = 0.25


class _Group:
    """The charges of one hash tag, by their places in the request."""

    __slots__ = ("call", "charges", "places", "slot")

    def __init__(self, tag: str, charges: Sequence[Charge], places: Sequence[int]) -> None:
        self.slot = slot_of(tag)
        self.places = places
        self.charges = [charges[place] for place in places]
        self.call: NodeCall | None = None

    @property
    def is_common(self) -> bool:
        return any(charge.limit.common for charge in self.charges)

    @property
    def reply(self) -> list[int]:
        """The script's: now, whether it is admitted, four numbers for each charge."""
        assert self.call is not None
        reply: list[int] = self.call.reply
        return reply

    @property
    def took(self) -> bool:
        call = self.call
        return call is not None and call.reply is not None and call.reply[1] == 1


class ClusterEngine:
    """An :class:`~ratelimit_ext.engine.engine.Engine` over the nodes of a cluster; ``prefix``
    begins every key.

    A request that needs a node that fails raises ``ShardUnavailable``, at the latest after the
    client's ``socket_timeout``; others are served. If all masters fail it is an outage of the
    storage, ``StorageUnavailable``.
    """

    def __init__(self, nodes: Nodes, *, prefix: str = "LIMITS") -> None:
        self._nodes = nodes
        self._note = f"{prefix}:recovery"
        self._arguments = Arguments()

    def admit(
        self,
        charges: Sequence[Charge],
        *,
        take: bool = True,
        hold: Hold = NO_HOLD,
        now_us: int | None = None,
    ) -> Decision:
        if not charges:
            return Decision(admitted=True, now_us=self._arguments.read_clock(now_us), verdicts=())
        charges = merged(charges)
        groups = _groups(charges)
        until = self._nodes.deadline()
        request = _Request(self._nodes, self._arguments, groups, hold, now_us, until)
        if take and len(groups) > 1:
            request.take(charges)
        else:
            request.decide(groups, TAKE if take else LOOK)
        if now_us is None:
            self._arguments.ahead_us = groups[0].reply[0] - clock.now_us()
        return request.decision(take=take)

    def settle(
        self, changes: Sequence[Change], *, once: Marker | None = None, now_us: int | None = None
    ) -> int:
        """See :meth:`Engine.settle`. One script call for each identity, all at the same time; each
        has a marker of its own for ``once``. If one fails the others are applied."""
        by_tag: dict[str, list[Change]] = {}
        for change in changes:
            by_tag.setdefault(hash_tag(change.charge.key), []).append(change)
        calls = [
            _settlement(self._arguments, tag, own, now_us, once) for tag, own in by_tag.items()
        ]
        return sum(map(applied, by_tag.values(), self._run(calls)))

    def clear(self, keys: Sequence[str]) -> int:
        slots = [slot_of(hash_tag(key)) for key in keys]
        buckets = [NodeCall(slot, ("DEL", key)) for slot, key in zip(slots, keys, strict=True)]
        others = [NodeCall(s, ("DEL", *beside(k))) for s, k in zip(slots, keys, strict=True)]
        return sum(self._run([*buckets, *others])[: len(buckets)])

    def reset(self, prefix: str) -> int:
        """See :meth:`Engine.reset`. By SCAN and UNLINK on each master. A slot that moves meanwhile
        may keep some buckets."""
        dropped = 0
        for client in self._nodes.masters():
            names = stored_names(client, prefix)
            try:
                while batch := list(islice(names, SCAN_COUNT)):
                    dropped += _unlinked(client, batch)
            except self._nodes.errors as error:
                raise ShardUnavailable(f"a cluster node failed: {error}") from error
        return dropped

    def probe(self) -> int:
        """See :meth:`StorageEngine.probe`. Asks one shard: an outage is of its identities only."""
        slot = slot_of(hash_tag(self._note))
        words = ("EVAL", TEXTS["recovery"], 1, self._note, NOTE_MS)
        try:
            self._run([NodeCall(slot, ("PING",))])  # see RedisEngine.probe
            return int(self._run([NodeCall(slot, words)])[0])
        except StorageUnavailable as error:
            if "maxmemory" in str(error):
                return NOTE_MS * 1000
            raise

    def _run(self, calls: Sequence[NodeCall]) -> list[Any]:
        """Return the replies. Raises the first error after all calls were made."""
        self._nodes.run(calls, self._nodes.deadline())
        for call in calls:
            if call.error is not None:
                raise call.error
        return [call.reply for call in calls]


@dataclass(slots=True)
class _Request:
    """One admission on its way through the groups."""

    _nodes: Nodes
    _arguments: Arguments
    _groups: Sequence[_Group]
    _hold: Hold
    _now_us: int | None
    _until: float
    _took: list[_Group] = field(default_factory=list)

    def decide(self, groups: Sequence[_Group], mode: str, refunds: Sequence[NodeCall] = ()) -> None:
        """Decide these groups at the same time, and send refunds with them. If one fails, refund
        what was taken, and raise ``ShardUnavailable`` or ``StorageFull``."""
        for group in groups:
            group.call = self._admission(group, mode)
        calls = [group.call for group in groups if group.call is not None]
        self._nodes.run([*calls, *refunds], self._until)
        if mode == TAKE:
            self._took += [group for group in groups if group.took]
        for group, call in zip(groups, calls, strict=True):
            error = call.error
            if error is None and call.reply[1] < 0:
                error = StorageFull(group.charges[-call.reply[1] - 1].key)
            if error is not None:  # give back what was taken, as far as the nodes answer
                self._nodes.run(self._refunds(), self._late())
                raise error

    def take(self, charges: Sequence[Charge]) -> None:
        """Take all groups, or none; and what a denied request takes."""
        common = [group for group in self._groups if group.is_common]
        own = [group for group in self._groups if not group.is_common]
        refunds: list[NodeCall] = []
        denied = False
        for wave in filter(None, (own, common)):
            self.decide(wave, TAKE_NOTHING if denied else TAKE, refunds)
            refunds = []
            if not denied and any(group.reply[1] == 0 for group in wave):
                denied = True
                refunds, self._took = self._refunds(), []
        if denied:
            if rest := [*refunds, *self._triggered(charges)]:
                self._nodes.run(rest, self._late())
            for group in self._groups:
                group.reply[1] = 0

    def decision(self, *, take: bool) -> Decision:
        parts = [
            (group.places, Reply(group.charges, group.reply, take=take)) for group in self._groups
        ]
        if len(parts) == 1:
            return parts[0][1]
        return _Joined(parts, admitted=all(reply.admitted for _, reply in parts))

    def _admission(self, group: _Group, mode: str, part: str | None = None) -> NodeCall:
        """Return the call for a group. Of several groups, limits on denials are only looked at, as
        another group's denial may trigger them."""
        charges = group.charges
        if len(self._groups) > 1:
            charges = [
                each._replace(meta=True, on_denial=NEVER)
                if each.meta or mode == TAKE_NOTHING
                else each
                for each in charges
            ]
        script, *lists = self._arguments.admission(charges, self._now_us, part=part)
        keys = [charge.key for charge in charges]
        now = "" if self._now_us is None else self._now_us
        sent = (now, mode[0], *lists, *hold_words(self._hold))
        return NodeCall(group.slot, (len(keys), *keys, *sent), script)

    def _refunds(self) -> list[NodeCall]:
        calls = []
        for group in self._took:
            verdicts = Reply(group.charges, group.reply, take=True).verdicts
            if changes := [c for v in verdicts if (c := _refund_of(v, self._hold))]:
                tag = hash_tag(group.charges[0].key)
                calls.append(_settlement(self._arguments, tag, changes, self._now_us))
        return calls

    def _triggered(self, charges: Sequence[Charge]) -> list[NodeCall]:
        """Return the calls that take the limits on denials that this denial triggers."""
        failed = {
            place
            for group in self._groups
            for at, place in enumerate(group.places)
            if group.reply[2 + 4 * at] == 0
        }
        if any(charges[i].meta and charges[i].limit.mode == "enforce" for i in failed):
            return []
        wanted = [
            place
            for place, charge in enumerate(charges)
            if charge.meta
            and charge.cost
            and place not in failed
            and not failed.isdisjoint(charge.on_denial or failed)
        ]
        groups = _groups(charges, wanted)
        return [self._admission(group, TAKE, IF_IT_FITS) for group in groups]

    def _late(self) -> float:
        """Return the deadline of what is sent after the decision."""
        return max(self._until, self._nodes.deadline(REFUND_SHARE))


class _Joined(Decision):
    """The decision of several groups, each at its node's clock."""

    __slots__ = ("_parts",)

    def __init__(self, parts: Sequence[tuple[Sequence[int], Decision]], *, admitted: bool) -> None:
        super().__init__(admitted=admitted, now_us=parts[0][1].now_us)
        self._parts = parts

    def _read(self) -> tuple[Verdict, ...]:
        return tuple(self._in_order([reply.verdicts for _, reply in self._parts]))

    def part(self, place: int) -> tuple[Decision, int]:
        places, reply = next(part for part in self._parts if place in part[0])
        return reply, places.index(place)

    def keys(self) -> list[str]:
        return self._in_order([reply.keys() for _, reply in self._parts])

    def left(self) -> list[Left]:
        if not self.admitted:
            return super().left()
        return self._in_order([reply.left() for _, reply in self._parts])

    def _in_order(self, of_parts: Sequence[Sequence[Any]]) -> list[Any]:
        """Return what belongs to each charge, in the order of the request."""
        found = {
            place: each
            for (places, _), own in zip(self._parts, of_parts, strict=True)
            for place, each in zip(places, own, strict=True)
        }
        return [found[place] for place in range(len(found))]


def _groups(charges: Sequence[Charge], places: Sequence[int] | None = None) -> list[_Group]:
    by_tag: dict[str, list[int]] = {}
    for place in range(len(charges)) if places is None else places:
        by_tag.setdefault(hash_tag(charges[place].key), []).append(place)
    return [_Group(tag, charges, own) for tag, own in by_tag.items()]


def _settlement(
    arguments: Arguments,
    tag: str,
    changes: Sequence[Change],
    now_us: int | None,
    once: Marker | None = None,
) -> NodeCall:
    """Return the call that applies changes of one hash tag. ``once`` becomes a marker in their
    slot, whose name depends on the tag alone: a part of the changes may be sent again."""
    script, *lists = arguments.settlement(changes, now_us)
    keys = [change.charge.key for change in changes]
    sent = ["" if now_us is None else now_us, *lists]
    if once is not None:
        keys.append(with_tag(once.key, tag))
        sent.append(once.for_us)
    return NodeCall(slot_of(tag), (len(keys), *keys, *sent), script)


def _refund_of(verdict: Verdict, hold: Hold) -> Change | None:
    """Return the change that undoes a charge that was taken; ``None`` if none was."""
    limit, cost = verdict.charge.limit, verdict.charge.taken
    if verdict.charge.meta or not verdict.allowed:
        return None
    if limit.held and hold.lease_us:
        return Change.settle(verdict, hold, 0)
    return Change.adjust(verdict, -cost) if cost and verdict.receipt is not None else None


def _unlinked(client: Any, keys: Sequence[str]) -> int:
    """Drop keys of several slots on one node; returns how many buckets there were. Keys that have
    moved away stay."""
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        pipeline.unlink(key)
    replies = zip(keys, pipeline.execute(raise_on_error=False), strict=True)
    return sum([each for key, each in replies if isinstance(each, int) and not is_beside(key)])
