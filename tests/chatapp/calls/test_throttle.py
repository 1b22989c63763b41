"""How many calls reach an upstream that refuses them, by the calls of the last second."""

import random

import pytest

from chatapp.calls.throttle import LEAST_ANSWERED, MOST_UPSTREAMS, RECENT_S, Throttle


class World:
    """A throttle with a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.throttle = Throttle(clock=lambda: self.now)

    def sent(self, calls: int, refused: float = 1.0, upstream: str = "model") -> int:
        """How many of the calls were sent; this share of those is refused."""
        chance, count = random.Random(1), 0
        for _ in range(calls):
            if self.throttle.admits(upstream):
                count += 1
                if chance.random() < refused:
                    self.throttle.note_refusal(upstream)
        return count


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize("refused", [0, 1 / 50, 1 / 10, 1 / 2, 2 / 3])
def test_an_upstream_that_answers_gets_all_calls(world: World, refused: float) -> None:
    """Also if it refuses most: a caller would be answered in three tries without us."""
    assert world.sent(1000, refused) == 1000


def test_an_upstream_that_answers_one_of_ten_gets_nearly_all_calls(world: World) -> None:
    """Chance alone may look like an outage."""
    assert world.sent(1000, 9 / 10) > 900


def test_a_few_refusals_hold_nothing_back(world: World) -> None:
    """Whatever their share."""
    assert world.sent(LEAST_ANSWERED) == LEAST_ANSWERED


def test_an_upstream_that_refuses_all_is_spared_and_never_closed(world: World) -> None:
    """The more calls there are, the smaller the part that is sent."""
    sent = [world.sent(100) for _ in range(4)]
    assert 40 <= sent[0] <= 50
    assert sent == sorted(sent, reverse=True)
    assert sent[-1] > 5


def test_a_second_after_the_last_refusal_all_calls_pass(world: World) -> None:
    """No answer is waited for: one may take half a minute."""
    world.sent(1000)
    world.now += RECENT_S
    assert world.sent(1000, refused=0) == 1000


def test_upstreams_are_apart(world: World) -> None:
    """A model and a key each."""
    world.sent(1000)
    assert world.sent(1000, refused=0, upstream="other") == 1000


def test_invented_names_are_forgotten(world: World) -> None:
    """Callers choose the names of models."""
    world.sent(1000)
    for number in range(MOST_UPSTREAMS):
        world.throttle.admits(f"invented-{number}")
    assert world.sent(100, refused=0) == 100
    world.throttle.note_refusal("never heard of")
