"""Who made which stored answer."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert

from chatapp.database.connection import Database
from chatapp.ledger import retention, stored_answers
from chatapp.ledger.stored_answers import STORED, StoredAnswers, StoredAnswersUnavailableError

IDS = ["resp_1", "msg_1", "fc_1"]


@pytest.fixture
def answers(database: Database) -> StoredAnswers:
    return StoredAnswers(database)


def test_an_answer_and_its_items_are_its_users(answers: StoredAnswers) -> None:
    """Before and after they are written; the answer has the tokens of the conversation."""
    answers.note(IDS, user="user:alice", provider="openai", tokens=17)
    for _ in range(2):
        found = answers.find(IDS, user="user:alice")
        tokens = {id_: answer.tokens for id_, answer in found.items()}
        assert tokens == {"resp_1": 17, "msg_1": None, "fc_1": None}
        assert answers.find(IDS, user="user:bob") == {}
        assert answers.flush()


def test_a_later_note_has_the_tokens(answers: StoredAnswers) -> None:
    """A stream tells its id with its first event and its tokens with the last one."""
    answers.note(["resp_1"], user="user:alice", provider="openai")
    assert answers.flush()
    answers.note(["resp_1"], user="user:alice", provider="openai", tokens=17)
    assert answers.flush()
    assert answers.find(["resp_1"], user="user:alice")["resp_1"].tokens == 17


def test_a_missing_answer_is_waited_for(
    answers: StoredAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker may be writing it. What comes before the wait may refuse the request."""
    monkeypatch.setattr(stored_answers, "PATIENCE_S", 5.0)

    def arrive() -> None:
        answers.note(["resp_1"], user="user:alice", provider="openai")

    assert answers.find(["resp_1"], user="user:alice", before_wait=arrive)


def test_an_unknown_answer_has_no_user(
    answers: StoredAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the wait."""
    monkeypatch.setattr(stored_answers, "PATIENCE_S", 0.0)
    assert answers.find(["resp_1"], user="user:alice") == {}


def test_old_answers_go(database: Database, answers: StoredAnswers) -> None:
    """After as long as OpenAI keeps them."""
    now = datetime.now(UTC)
    rows = [
        {
            "id": f"resp_{days}",
            "user": "user:alice",
            "provider": "openai",
            "key": "",
            "created_at": now - timedelta(days=days),
        }
        for days in (1, 29, 31, 99)
    ]
    with database.writing() as connection:
        connection.execute(insert(STORED), rows)
    before = now - stored_answers.KEEP
    assert retention.prune(database, before=before, began_at=STORED.c.created_at) == 2
    assert len(answers.find(["resp_1", "resp_29"], user="user:alice")) == 2


def test_an_unavailable_database_is_an_error(database: Database) -> None:
    """And never an empty answer, which would be a 404."""
    with database.writing() as connection:
        STORED.drop(connection)
    with pytest.raises(StoredAnswersUnavailableError):
        StoredAnswers(database).find(["resp_1"], user="user:alice")
