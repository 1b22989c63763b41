"""Traffic from files, and traffic that is made up."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest

from ratelimit_ext.simulate.traffic import Mixture, Traffic, made_up, read_lines

SHAPES = ["poisson", "burst", "diurnal", "runaway"]
HOUR_US = 3_600_000_000


def read(*lines: str) -> tuple[list, Traffic]:
    traffic = read_lines(lambda: lines, lambda _, path: {"/chat": "chat.chat"}.get(path))
    return list(traffic), traffic


def test_a_line_of_json():
    """Times are in microseconds, dollars in micro-dollars, tokens are added up."""
    [call], traffic = read(
        '{"time": 1.5, "endpoint": "chat.chat", "user": "alice", "plan": "pro", "seconds": 2,'
        ' "input_tokens": 30, "output_tokens": 12, "usd": 0.25, "exempt": ["key"], "abusive": true}'
    )
    assert (call.at_us, call.endpoint, call.plan, call.seconds) == (
        1_500_000,
        "chat.chat",
        "pro",
        2,
    )
    assert call.who == {"user": "alice"}
    assert call.costs == {"input_tokens": 30, "output_tokens": 12, "tokens": 42, "usd": 250_000}
    assert call.exempt == {"key"}
    assert call.abusive
    assert not traffic.skipped


def test_a_line_of_a_common_log():
    """The path becomes the endpoint; the address and the name are identities."""
    [call], _ = read(
        '192.0.2.1 - alice [26/Nov/2026:13:55:36 +0100] "POST /chat HTTP/1.1" 200 17 "-" "curl"'
    )
    assert (call.at_us, call.endpoint) == (1_795_697_736_000_000, "chat.chat")
    assert call.who == {"ip": "192.0.2.1", "user": "alice"}


def test_times_with_and_without_a_zone_are_read():
    """A time without a zone is UTC."""
    calls, _ = read(
        '{"time": "2026-11-26T13:00:00+01:00", "path": "/chat"}',
        '{"time": "2026-11-26T12:00:00", "path": "/chat"}',
    )
    assert len({call.at_us for call in calls}) == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"time": 1', "it is not JSON"),
        ("[" * 100_000, "neither JSON nor"),
        ('{"a":' * 100_000, "it"),
        ('{"time": 1}', "it has neither an endpoint"),
        ('{"time": 1, "path": "/nowhere"}', "it has neither an endpoint"),
        ('{"path": "/chat"}', "found time = None"),
        ('{"time": -1, "path": "/chat"}', "found time = -1"),
        ('{"time": "soon", "path": "/chat"}', "found time = 'soon'"),
        ('{"time": "9999-12-31T23:59:59Z", "path": "/chat"}', "found time = '9999-12-31T23"),
        ('{"time": "0001-01-01T00:00:00+14:00", "path": "/chat"}', "found time = '0001-01-01"),
        ('1.1.1.1 - - [31/Dec/9999:23:59:59 +0000] "GET /chat HTTP/1.1" 200 1', "time '31/Dec/9"),
        ('{"time": 1, "path": "/chat", "tokens": -1}', "found tokens = -1"),
        ('{"time": 1, "path": "/chat", "usd": "NaN"}', "'NaN' is not an amount"),
        ('{"time": 1, "path": "/chat", "seconds": "1"}', "found seconds = '1'"),
        ('{"time": 1, "path": "/chat", "exempt": "key"}', "found exempt = 'key'"),
        ('{"time": 1, "path": "/chat", "abusive": 1}', "found abusive = 1"),
        ("what is this", "neither JSON nor a line of a common log"),
        ('1.1.1.1 - - [yesterday] "GET /chat HTTP/1.1" 200 1', "found the time 'yesterday'"),
        ('1.1.1.1 - - [26/Nov/2026:13:55:36 +0000] "GET /x HTTP/1.1" 2 1', "GET /x is not an"),
    ],
)
def test_a_broken_line_is_skipped_with_its_number(line: str, reason: str):
    """Its reason is kept, and the lines around it are read."""
    calls, traffic = read('{"time": 1, "path": "/chat"}', "", line, '{"time": 2, "path": "/chat"}')
    assert [call.at_us for call in calls] == [1_000_000, 2_000_000]
    assert traffic.skipped == 1
    assert traffic.reasons[0].startswith("line 3: ")
    assert reason in traffic.reasons[0]


def test_calls_come_by_time_and_a_second_reading_is_the_same():
    """A log has calls in the order of their ends."""
    lines = [f'{{"time": {at}, "path": "/chat"}}' for at in (5, 3, 500, 4, 501)]
    calls, traffic = read(*lines)
    assert [call.at_us // 1_000_000 for call in calls] == [3, 4, 5, 500, 501]
    assert list(traffic) == calls


def test_a_call_that_is_too_late_is_counted():
    """More than ten minutes out of order: time cannot run back."""
    calls, traffic = read(*(f'{{"time": {at}, "path": "/chat"}}' for at in (1, 5000, 10_000, 2)))
    assert [call.at_us // 1_000_000 for call in calls] == [1, 5000, 10_000]
    assert traffic.skipped == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_made_up_calls_are_in_order_and_within_the_time(shape: str):
    """The same seed makes the same calls, another seed others."""
    mixture = Mixture(endpoint="chat.chat", calls=2000, users=20, days=0.2)
    traffic = made_up(shape, mixture)
    calls = list(traffic)
    assert len(calls) == traffic.length
    assert all(one.at_us <= next_.at_us for one, next_ in itertools.pairwise(calls))
    assert mixture.start_us <= calls[0].at_us
    assert list(traffic) == calls
    assert list(made_up(shape, replace(mixture, seed=2))) != calls


def test_what_the_shapes_differ_in():
    """Days have nights, bursts are close together, a loop is marked as abusive."""
    mixture = Mixture(endpoint="chat.chat", calls=4000, users=20)
    by_hour = {
        shape: Counter(
            (call.at_us - mixture.start_us) // HOUR_US for call in made_up(shape, mixture)
        )
        for shape in SHAPES
    }
    assert by_hour["diurnal"][13] > 8 * by_hour["diurnal"][1]
    assert by_hour["poisson"][13] < 2 * by_hour["poisson"][1]
    loop = [call for call in made_up("runaway", mixture) if call.abusive]
    assert {call.caller for call in loop} == {"runaway"}
    assert len(loop) == 86_400
    gaps = [call.at_us for call in made_up("burst", mixture) if call.caller == "user-3"]
    near = sum(later - earlier < 60_000_000 for earlier, later in itertools.pairwise(gaps))
    assert near > 0.8 * len(gaps)


def test_a_mixture_of_nothing_is_refused():
    """What was found, and what is allowed."""
    with pytest.raises(ValueError, match="users: found 0; allowed: more than 0"):
        Mixture(endpoint="chat.chat", users=0)
