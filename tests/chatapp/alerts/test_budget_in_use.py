"""A budget that calls in flight hold is not used up, whatever else refuses the request."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from chatapp import POLICY_FILE
from chatapp.alerts.watch import Standing, Watch
from tests.chatapp.conftest import AppMaker
from tests.chatapp.upstream_server import UpstreamServer
from tests.servers import eventually

DEAR = {"message": "hi", "model": "o1-pro"}


def test_a_budget_in_use_is_not_used_up(
    make_app: AppMaker, provider: UpstreamServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three calls hold two dollars, and are the day's last: the fourth is refused by both."""
    policy = tmp_path / "policy.toml"
    text = POLICY_FILE.read_text("utf-8").replace('"5 usd/day"', '"2 usd/day"')
    policy.write_text(text.replace('"100/day"', '"3/day"'), "utf-8")
    noted: list[tuple[bool, list[Standing]]] = []

    def note(
        _: Watch, buckets: object, read: Callable[[], Iterable[Standing]], *, refused: bool
    ) -> None:
        noted.append((refused, list(read())))

    monkeypatch.setattr(Watch, "note_decision", note)
    app = make_app(RATELIMIT_POLICY_FILE=str(policy))
    provider.think()
    with ThreadPoolExecutor(3) as pool:
        for number in range(3):
            pool.submit(app.test_client().post, "/chat", json=DEAR)
            eventually(lambda number=number: len(provider.calls) > number)
        answer = app.test_client().post("/chat", json=DEAR)
        provider.go_on()
    assert (answer.status_code, answer.json["policy"]) == (429, "plan")
    refused, standings = noted[-1]
    assert not refused
    assert "usd-day" in {each.name for each in standings}
    assert not any(each.refuses for each in standings)
