"""POST /chat without a provider's key: the format of the answer."""

import json
from pathlib import Path

from flask.testing import FlaskClient

from tests.chatapp.conftest import AppMaker, json_of

README = Path(__file__).resolve().parents[3] / "README.md"


def test_the_reply_has_text_model_and_usage(client: FlaskClient) -> None:
    """With the usage in tokens and the cost in dollars; the offline model is free."""
    response = client.post("/chat", json={"message": "hello", "user_id": "test-user-1"})
    assert response.status_code == 200
    assert set(json_of(response)) == {"reply", "model", "usage", "cost_usd"}
    assert response.json["cost_usd"] == 0
    assert response.json["model"] == "offline"
    assert "hello" in response.json["reply"]
    usage = response.json["usage"]
    assert usage["input_tokens"] > 0
    assert usage["output_tokens"] > 0


def test_the_offline_answer_is_recognizable(client: FlaskClient) -> None:
    """It cannot be taken for a model's answer, and is the same every time."""
    first = client.post("/chat", json={"message": "hello"})
    second = client.post("/chat", json={"message": "hello"})
    assert "offline" in json_of(first)["reply"]
    assert first.json == second.json


def test_options_need_no_body(client: FlaskClient) -> None:
    """OPTIONS is answered without validation of a message."""
    response = client.options("/chat")
    assert response.status_code == 200
    assert "POST" in response.headers["Allow"]


def test_cors_is_off(client: FlaskClient) -> None:
    """Scripts of other sites cannot read answers."""
    response = client.post(
        "/chat", json={"message": "hello"}, headers={"Origin": "https://elsewhere.example"}
    )
    assert "Access-Control-Allow-Origin" not in response.headers


def test_readme_shows_what_a_refused_client_gets(make_app: AppMaker, stopped_clock: None) -> None:
    """The statuses of its 15 requests, and the answer to the last."""
    client, readme = make_app().test_client(), README.read_text()
    body = {"message": "hello", "user_id": "test-user-1"}
    answers = [client.post("/chat", json=body) for _ in range(15)]
    assert f"\n{' '.join(str(answer.status_code) for answer in answers)}\n" in readme
    shown = json.loads(readme.partition("```json\n")[2].partition("```")[0])
    wait_s = shown.pop("retry_after")
    assert f"here in {wait_s} seconds" in readme
    assert 1 < wait_s <= 2
    answer = json_of(answers[-1])
    assert 1 < answer.pop("retry_after") <= 2
    assert answer == shown
