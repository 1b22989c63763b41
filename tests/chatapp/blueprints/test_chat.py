"""POST /chat while no key is set: the shape of its answer."""

from __future__ import annotations

from flask.testing import FlaskClient


def test_the_reply_has_text_model_and_usage(client: FlaskClient) -> None:
    """Three fields, and the usage in tokens."""
    response = client.post("/chat", json={"message": "hello", "user_id": "test-user-1"})
    assert response.status_code == 200
    assert response.json is not None
    assert set(response.json) == {"reply", "model", "usage"}
    assert response.json["model"] == "offline"
    assert "hello" in response.json["reply"]
    usage = response.json["usage"]
    assert usage["input_tokens"] > 0
    assert usage["output_tokens"] > 0


def test_without_a_key_it_says_that_it_is_offline(client: FlaskClient) -> None:
    """Nobody takes the offline answer for a model's, and it is the same every time."""
    first = client.post("/chat", json={"message": "hello"})
    second = client.post("/chat", json={"message": "hello"})
    assert first.json is not None
    assert "offline" in first.json["reply"]
    assert first.json == second.json


def test_asking_for_the_options_needs_no_body(client: FlaskClient) -> None:
    """OPTIONS is answered, not judged as if it were a message."""
    response = client.options("/chat")
    assert response.status_code == 200
    assert "POST" in response.headers["Allow"]


def test_no_origin_is_invited(client: FlaskClient) -> None:
    """Without a setting of its own there is no CORS: other sites' scripts read nothing here."""
    response = client.post(
        "/chat", json={"message": "hello"}, headers={"Origin": "https://elsewhere.example"}
    )
    assert "Access-Control-Allow-Origin" not in response.headers
