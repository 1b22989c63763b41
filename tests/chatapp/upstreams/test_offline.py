"""The offline provider."""

from chatapp.catalogue import Model
from chatapp.upstreams import Turn
from chatapp.upstreams.offline import Offline

MODEL = Model("offline", "offline", "offline")


def test_it_answers_only_for_itself() -> None:
    """It never replaces a model that was requested by name."""
    assert Offline().serves("offline")
    assert not Offline().serves("offline-2")
    assert not Offline().serves("gpt-4o")


def test_the_same_message_has_the_same_answer() -> None:
    """The answer is always the same, and says that it is offline."""
    turn = Turn("hello", MODEL)
    completion = Offline().complete(turn, 5)
    assert completion == Offline().complete(turn, 5)
    assert completion.text.startswith("I am offline")
    assert "“hello” (5 characters)" in completion.text
    assert completion.usage.input_tokens == 2
    assert completion.finish_reason == "stop"


def test_a_long_message_is_not_sent_back_whole() -> None:
    """A question of 32 kB is quoted in part."""
    turn = Turn("a" * 32_000, MODEL)
    assert len(Offline().complete(turn, 5).text) < 500


def test_one_character_is_one() -> None:
    """The count is in the singular."""
    turn = Turn("?", MODEL)
    assert "(1 character)" in Offline().complete(turn, 5).text


def test_a_lone_surrogate_is_answered() -> None:
    """JSON may contain it and UTF-8 cannot: it becomes a question mark."""
    turn = Turn("a\ud800b", MODEL)
    assert "“a?b” (3 characters)" in Offline().complete(turn, 5).text
    assert (
        "".join(part.text for part in Offline().stream(turn, 5)) == Offline().complete(turn, 5).text
    )
