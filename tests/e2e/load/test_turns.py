"""Members of a team share calls in flight by what the provider bills them: chatapp's workers and a
provider with its own bill."""

import threading
import tomllib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.money.billed_gateway import MICRO, Gateway, deployed, roomy_policy
from tests.e2e.money.billing_provider import BillingProvider, marker
from tests.servers import eventually

pytestmark = pytest.mark.slow

#: The tokens that the calls of each member are answered with: a hundredfold.
TOKENS = (100, 250, 630, 1600, 4000, 10_000)
CALLS, TAKES_MS = 1000, 200
#: The calls that each member has at once. Four run: of those whose calls are cheap, others are in
#: line when a turn is given, also on a slow machine.
AT_ONCE = (16, 12, 8, 6, 4, 4)
#: After so many calls of a member, estimates follow their outputs.
LEARNED = 20
SLOTS = '"name" = "team-at-once", "limit" = "1000 in flight"'


def policy(folder: Path, fair: str) -> str:
    """Four slots of a team, in which calls wait for their turn."""
    file = roomy_policy(folder / "turns.toml")
    text = file.read_text("utf-8")
    assert text.count(SLOTS) == 1
    words = f'{SLOTS.replace("1000", "4")}, "wait" = "60 seconds"{fair}'
    file.write_text(text.replace(SLOTS, words), "utf-8")
    assert tomllib.loads(file.read_text("utf-8"))
    return str(file)


def members_of(gateway: Gateway) -> list[str]:
    """A key of each member of one team."""
    run = gateway.app.test_cli_runner()
    assert (
        run.invoke(
            args=["chat", "teams", "create", "office", "--limit=team-usd-day=1000 usd/day"]
        ).exit_code
        == 0
    )
    for tokens in TOKENS:
        words = ["chat", "keys", "create", "--user", f"m{tokens}", "--plan", "team"]
        made = run.invoke(args=[*words, "--team", "office"])
        assert made.exit_code == 0, made.output
        gateway._keys[f"m{tokens}"] = made.stdout.strip()
    return [f"m{tokens}" for tokens in TOKENS]


def billed_usd(provider: BillingProvider, member: str) -> float:
    return float(provider.billed_micro_usd(caller=member) / MICRO)


@pytest.mark.parametrize("fair", [', "fair" = "user"', ""], ids=["fair", "by arrival"])
def test_members_share_dollars(tmp_path: Path, fair: str) -> None:
    """Jain's index over the dollars that the provider bills each member, all of whom always have
    calls in line."""
    settings = {
        "RATELIMIT_POLICY_FILE": policy(tmp_path, fair),
        "RATELIMIT_WAITING_MAX": "64",
        "GUNICORN_THREADS": "64",
    }
    with (
        BillingProvider.running() as provider,
        deployed(provider, tmp_path, workers=1, **settings) as gateway,
        ThreadPoolExecutor(sum(AT_ONCE)) as pool,
    ):
        members = members_of(gateway)
        answered, is_over = list[int](), threading.Event()

        def call(place: int, wait_ms: int = TAKES_MS) -> None:
            member, tokens = members[place], TOKENS[place]
            said = marker("normal", tokens=tokens, caller=member, wait_ms=wait_ms)
            body = {"model": "claude-haiku-4-5", "max_tokens": tokens}
            body |= {"messages": [{"role": "user", "content": said}]}
            status, _, answer = gateway.post(member, "/v1/messages", body)
            assert status == 200 or is_over.is_set(), answer
            answered.append(place)

        def loop(place: int) -> None:
            while not is_over.is_set():
                call(place)

        list(pool.map(call, [*range(len(TOKENS))] * LEARNED, [0] * LEARNED * len(TOKENS)))
        before = [billed_usd(provider, each) for each in members]
        ends = len(answered) + CALLS
        looping = [
            pool.submit(loop, place) for place, many in enumerate(AT_ONCE) for _ in range(many)
        ]
        eventually(lambda: len(answered) >= ends or any(map(Future.done, looping)), within_s=600)
        billed = [
            billed_usd(provider, each) - earlier
            for each, earlier in zip(members, before, strict=True)
        ]
        is_over.set()
        for each in looping:
            each.result()
    index = sum(billed) ** 2 / (len(billed) * sum(each**2 for each in billed))
    dollars = ", ".join(f"{each:.2f}" for each in billed)
    print(f"{fair or 'by arrival'}: Jain's index {index:.3f}, {dollars} USD")  # noqa: T201
    assert (index >= 0.95) is bool(fair)
