"""What a request looks up and finds out, by counts."""

from itertools import pairwise

import pytest
import werkzeug
from flask.testing import FlaskClient

import chatapp
import ratelimit_ext
from chatapp.catalogue import Catalogue
from chatapp.estimates.estimate import Estimator
from ratelimit_ext.web.request import request_state
from tests.called import called
from tests.chatapp.upstream_server import OPENAI_PATH, Stream, UpstreamServer, openai_chunks

BODY = {"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": "ping"}]}
#: Of Flask's proxies, by a whole call through OpenAI's endpoint: Flask's own, the extension's, and
#: chatapp's.
MOST_LOOK_UPS = 24
#: Of a plain call with all default limits: 499 or 500 functions, as threads come in between, and
#: 203 returns, 22 of them to the verdict that all strategies share. They were 1,072 and 572.
#: Comprehensions are functions before Python 3.12, and do not count.
MOST_FUNCTIONS = 505
MOST_RETURNS = 205
#: Of a streamed event: 9, and one more if it arrives alone and is waited for.
MOST_PER_EVENT = 10


def ask(client: FlaskClient) -> None:
    answer = client.post(OPENAI_PATH, json=BODY)
    assert answer.status_code == 200, answer.text


def test_a_call_is_estimated_and_priced_once(online: FlaskClient, provider: UpstreamServer) -> None:
    """Although eight limits count tokens or dollars, and the call, its ledger row and its bound
    need the estimate, too. Priced: what is expected, the least, what is claimed of budgets with
    that answer and the longest, and the bill."""
    with called(chatapp) as codes:
        ask(online)
    assert codes.count(Estimator.estimate.__code__) == 1
    assert codes.count(Catalogue.price.__code__) == 5


def test_a_call_takes_few_functions(
    online: FlaskClient, provider: UpstreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of both packages, with the engine in memory; and how often one returns to a file that it has
    left. Higher numbers make every call slower, and harder to follow."""
    monkeypatch.setattr(request_state, "NOTICEABLE_S", 60)  # a slow view's headers take more

    def call() -> None:
        assert online.post("/chat", json={"message": "hi"}).status_code == 200

    for _ in range(3):  # compiles the route
        call()
    found = []
    for _ in range(3):  # an answer may come in two packets, which takes another read
        with called(chatapp, ratelimit_ext) as codes:
            call()
        found.append([code for code in codes if not code.co_name.endswith("comp>")])
    files = [code.co_filename for code in min(found, key=len)]
    left = [file for file, following in pairwise(files) if file != following]
    assert 0 < len(files) <= MOST_FUNCTIONS, len(files)
    assert len(left) - len({*left}) <= MOST_RETURNS, len(left)


def test_an_event_takes_few_functions(online: FlaskClient, provider: UpstreamServer) -> None:
    """Of both packages, from the provider's bytes to the client's; they were 22. A clock is read,
    and nothing is looked up."""
    ask(online)  # compiles the route

    def functions(events: int) -> int:
        provider.script(Stream(openai_chunks(*["word "] * events)))
        with called(chatapp, ratelimit_ext) as codes:
            answer = online.post(OPENAI_PATH, json={**BODY, "stream": True})
            assert answer.data.count(b'"word "') == events
        answer.close()
        return len(codes)

    # While the provider waits for a processor, more is done in between.
    few, many = (min(functions(events) for _ in range(3)) for events in (100, 300))
    assert 0 < many - few <= MOST_PER_EVENT * 200, (few, many)


def test_a_call_looks_up_few_proxies(online: FlaskClient, provider: UpstreamServer) -> None:
    """Each look-up takes a microsecond: a function that needs several attributes of the request
    takes its object once."""
    ask(online)  # compiles the route
    with called(werkzeug) as codes:
        ask(online)
    found = [code.co_name for code in codes].count("_get_current_object")
    assert 0 < found <= MOST_LOOK_UPS, found
