"""What a call leaves to the garbage collector, for which all threads of a worker wait."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from flask.testing import FlaskClient

from chatapp.calls.upstream_call import UpstreamCall
from chatapp.web.current_request import CurrentRequest
from chatapp.web.responses import StreamBody
from ratelimit_ext.web.request.reservation import Reservation

OF_A_CALL = (UpstreamCall, CurrentRequest, StreamBody, Reservation)
BODY = {"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": "ping"}]}


@contextmanager
def collected() -> Iterator[list[object]]:
    """The objects that refer to each other when the block ends, and that nothing else refers to."""
    gc.collect()
    gc.disable()
    found: list[object] = []
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("path", ["/chat", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_call_leaves_no_garbage(online: FlaskClient, path: str, stream: bool) -> None:
    """A search of the whole worker every few calls would cost more than a call's limits."""
    body = {"message": "ping"} if path == "/chat" else BODY

    def ask() -> int:
        with online.post(path, json={**body, "stream": stream}) as response:
            response.get_data()
            return response.status_code

    assert ask() == 200  # connects
    with collected() as garbage:
        assert ask() == 200
    assert not [each for each in garbage if isinstance(each, OF_A_CALL)]
