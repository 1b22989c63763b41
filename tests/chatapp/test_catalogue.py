"""models.toml and the names that mean one model."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatapp import catalogue
from chatapp.catalogue import CatalogueError
from chatapp.providers import Timeouts
from chatapp.providers.anthropic import Anthropic
from chatapp.providers.offline import Offline
from chatapp.providers.openai import OpenAI

PROVIDERS = (OpenAI(Timeouts()), Anthropic(Timeouts()), Offline())


@pytest.mark.parametrize(
    ("name", "provider", "slug"),
    [
        ("offline", "offline", "offline"),
        ("gpt-4o", "openai", "gpt-4o"),
        ("gpt-4o-2024-08-06", "openai", "gpt-4o"),
        ("chatgpt-4o-latest", "openai", "gpt-4o"),
        ("gpt-4o-mini-2024-07-18", "openai", "gpt-4o-mini"),
        ("gpt-4-0613", "openai", "gpt-4"),
        ("gpt-4-1106-preview", "openai", "gpt-4-turbo"),
        ("gpt-5.2-chat-latest", "openai", "gpt-5.2"),
        ("o1-preview-2024-09-12", "openai", "o1"),
        ("claude-haiku-4-5-20251001", "anthropic", "claude-haiku-4-5"),
        ("claude-3-5-haiku-latest", "anthropic", "claude-3-5-haiku"),
        ("claude-opus-4-20250514", "anthropic", "claude-opus-4"),
        ("claude-opus-4-8", "anthropic", "claude-opus-4-8"),
        # Not a variant of claude-opus-4, whose price it need not have.
        ("claude-opus-4-9", "anthropic", "anthropic-other"),
        ("gpt-4o-audio-preview", "openai", "openai-other"),
        ("gpt-99", "openai", "openai-other"),
        ("gpt-100", "openai", "openai-other"),
        ("gpt-4o-2024-08-06x", "openai", "openai-other"),
        ("gpt-4o-", "openai", "openai-other"),
        # A slug is counted for its own provider only.
        ("gpt-4o", "anthropic", "anthropic-other"),
    ],
)
def test_all_names_of_a_model_are_one_slug(name: str, provider: str, slug: str) -> None:
    """Aliases and dated variants share an allowance, and invented names share one together."""
    model = catalogue.load().model(name, provider)
    assert (model.name, model.slug, model.provider) == (name, slug, provider)


def test_every_listed_model_is_served_by_its_provider() -> None:
    """The catalogue and the providers agree on whose a name is, and on nobody else's."""
    loaded = catalogue.load()
    for name, slug in loaded.slugs.items():
        serving = [provider.name for provider in PROVIDERS if provider.serves(name)]
        assert serving == [loaded.providers[slug]], name
    assert set(loaded.defaults) == {provider.name for provider in PROVIDERS}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("version = ", "Invalid value"),
        ("version = 1\n[defaults]\n", "models"),
        ('version = 1\n[defaults]\n[models]\na = { provider = "x", price = 1 }', "price"),
        ('version = 1\n[defaults]\nx = "b"\n[models]\na = { provider = "x" }', "defaults.x"),
        (
            'version=1\n[defaults]\n[models]\na={provider="x"}\nb={provider="x",aliases=["a"]}',
            "models.b: the name 'a' already belongs to 'a'",
        ),
    ],
)
def test_a_mistake_names_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    """A catalogue that is wrong stops the start, and says where."""
    path = tmp_path / "models.toml"
    path.write_text(text)
    with pytest.raises(CatalogueError) as caught:
        catalogue.load(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)
