"""What a request looks up and finds out, by counts."""

from __future__ import annotations

from itertools import pairwise

import werkzeug
from flask.testing import FlaskClient

import chatapp
import ratelimit_ext
from chatapp.catalogue import Catalogue
from chatapp.estimates.estimate import Estimate, Estimator
from chatapp.services import services_of
from tests.called import called
from tests.chatapp.conftest import AppMaker, replace_services
from tests.chatapp.upstream_server import OPENAI_PATH, UpstreamServer

BODY = {"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": "ping"}]}
#: Of Flask's proxies, by a whole call through OpenAI's endpoint: Flask's own, the extension's, and
#: chatapp's.
MOST_LOOK_UPS = 52


class CountingEstimator(Estimator):
    """Counts what is asked of it."""

    def __init__(self, catalogue: Catalogue) -> None:
        super().__init__(catalogue)
        self.estimates = self.prices = 0

    def estimate(self, *args: object, **options: object) -> Estimate:
        self.estimates += 1
        return super().estimate(*args, **options)  # type: ignore[arg-type]

    def cost_usd(self, *args: object) -> object:  # type: ignore[override]
        self.prices += 1
        return super().cost_usd(*args)  # type: ignore[arg-type]


def ask(client: FlaskClient) -> None:
    answer = client.post(OPENAI_PATH, json=BODY)
    assert answer.status_code == 200, answer.text


def test_a_call_is_estimated_and_priced_once(make_app: AppMaker, provider: UpstreamServer) -> None:
    """Although eight limits count tokens or dollars, and the call, its ledger row and its bound
    need the estimate, too."""
    app = make_app()
    services = services_of(app)
    estimator = CountingEstimator(services.catalogue)
    replace_services(app, estimator=estimator)
    ask(app.test_client())
    assert (estimator.estimates, estimator.prices) == (1, 1)


def test_a_call_takes_few_functions(online: FlaskClient, provider: UpstreamServer) -> None:
    """Of both packages, with the engine in memory; and how often one returns to a file that it has
    left. Measured: 1,072 and 572. Higher numbers make every call slower, and harder to follow."""

    def call() -> None:
        assert online.post("/chat", json={"message": "hi"}).status_code == 200

    for _ in range(3):  # compiles the route
        call()
    with called(chatapp, ratelimit_ext) as codes:
        call()
    files = [code.co_filename for code in codes]
    left = [file for file, following in pairwise(files) if file != following]
    assert 0 < len(files) <= 1120, len(files)
    assert len(left) - len({*left}) <= 600, len(left)


def test_a_call_looks_up_few_proxies(online: FlaskClient, provider: UpstreamServer) -> None:
    """Each look-up takes a microsecond: a function that needs several attributes of the request
    takes its object once."""
    ask(online)  # compiles the route
    with called(werkzeug) as codes:
        ask(online)
    found = [code.co_name for code in codes].count("_get_current_object")
    assert 0 < found <= MOST_LOOK_UPS, found
