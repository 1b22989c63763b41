"""The offline provider."""

from __future__ import annotations

from chatapp.upstreams import Message, Prompt
from chatapp.upstreams.offline import Offline


def test_it_answers_only_for_itself() -> None:
    """It never replaces a model that was requested by name."""
    assert Offline().serves("offline")
    assert not Offline().serves("offline-2")
    assert not Offline().serves("gpt-4o")


def test_the_same_prompt_has_the_same_answer() -> None:
    """The answer is always the same, and says that it is offline."""
    prompt = Prompt(model="offline", messages=(Message("user", "hello"),), max_tokens=5)
    completion = Offline().complete(prompt)
    assert completion == Offline().complete(prompt)
    assert completion.text.startswith("I am offline")
    assert "“hello” (5 characters)" in completion.text
    assert completion.usage.input_tokens == 2
    assert completion.finish_reason == "stop"


def test_a_long_message_is_not_sent_back_whole() -> None:
    """A question of 32 kB is quoted in part."""
    prompt = Prompt(model="offline", messages=(Message("user", "a" * 32_000),), max_tokens=5)
    assert len(Offline().complete(prompt).text) < 500


def test_one_character_is_one() -> None:
    """One character is in the singular."""
    prompt = Prompt(model="offline", messages=(Message("user", "?"),), max_tokens=5)
    assert "(1 character)" in Offline().complete(prompt).text


def test_a_lone_surrogate_is_answered() -> None:
    """JSON may contain it and UTF-8 cannot: it becomes a question mark."""
    prompt = Prompt(model="offline", messages=(Message("user", "a\ud800b"),), max_tokens=5)
    assert "“a?b” (3 characters)" in Offline().complete(prompt).text
    assert (
        "".join(part.text for part in Offline().stream(prompt)) == Offline().complete(prompt).text
    )
