"""Server-sent events are parsed completely, however the network cuts them."""

import gzip
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

import chatapp
from chatapp.upstreams import RawRequest, event_stream
from chatapp.upstreams.event_stream import Event, read, write
from tests.called import called
from tests.chatapp.conftest import upstream
from tests.chatapp.upstream_server import Stream, UpstreamServer, openai_chunks

WIRE = b'event: a\ndata: {"x": 1}\n\n: ping\n\ndata: b\r\ndata: c\r\n\r\ndata:d\n\n'


@given(st.lists(st.integers(0, len(WIRE)), max_size=8))
def test_events_are_the_same_however_they_are_cut(cuts: list[int]) -> None:
    """Names, data of several lines, and comments; their bytes together are the input."""
    edges = [0, *sorted(cuts), len(WIRE)]
    events = list(read(WIRE[a:b] for a, b in itertools.pairwise(edges)))
    assert [(e.name, e.data) for e in events] == [
        ("a", '{"x": 1}'),
        ("", ""),
        ("", "b\nc"),
        ("", "d"),
    ]
    assert b"".join(e.raw for e in events) == WIRE


def test_an_event_is_yielded_before_the_next_byte_is_read() -> None:
    """It does not wait for the next event."""

    def pieces():
        yield b"data: a\n\n"
        raise AssertionError("asked for more")

    assert next(read(pieces())) == Event("", "a", b"data: a\n\n")


def test_an_incomplete_event_is_dropped() -> None:
    """It is complete if only its empty line is missing."""
    assert list(read([b"data: a\n\ndata: b"])) == [Event("", "a", b"data: a\n\n")]
    assert [e.data for e in read([b"data: a\n\ndata: b\n"])] == ["a", "b"]


def test_an_endless_event_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is far above any provider's events."""
    monkeypatch.setattr(event_stream, "EVENT_MAX_BYTES", 100)
    with pytest.raises(ValueError, match="larger than 100 bytes"):
        list(read(b"data: x" for _ in range(1000)))


@given(st.dictionaries(st.text(), st.text()), st.sampled_from([None, "delta"]))
def test_written_events_can_be_read(data: dict[str, str], name: str | None) -> None:
    """Data may contain line ends and separators."""
    [event] = read([write(data, name=name)])
    assert event.name == (name or "")
    assert event_stream.json.loads(event.data) == data


def test_a_compressed_stream_is_read(provider: UpstreamServer) -> None:
    """Also if its upstream was not asked for that."""
    body = gzip.compress(b"".join(openai_chunks("hello")))
    provider.script(Stream([body], headers={"Content-Encoding": "gzip"}))
    request = RawRequest.of({"model": "gpt-5.4-mini", "stream": True})
    parts = upstream("openai").forward_stream(request)
    assert "".join(part.text for part in parts) == "hello"


def test_an_event_takes_few_functions(provider: UpstreamServer) -> None:
    """Of chatapp, by one more event of a stream of OpenAI. Measured: 3, and one more if it arrives
    alone and is waited for."""
    openai = upstream("openai")
    request = RawRequest.of({"model": "gpt-5.4-mini", "stream": True})
    counts = []
    for events in (100, 300):
        provider.script(Stream(openai_chunks(*["word "] * events)))
        stream = openai.forward_stream(request)
        with called(chatapp) as codes:
            assert sum(part.text == "word " for part in stream) == events
        counts.append(len(codes))
    assert 0 < counts[1] - counts[0] <= 4 * 200, counts
