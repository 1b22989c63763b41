"""models.toml and the names that mean one model."""

import logging
from pathlib import Path

import pytest

from chatapp import catalogue
from chatapp.catalogue import CatalogueError
from chatapp.catalogue.usage import Usage
from chatapp.upstreams.offline import Offline
from tests.chatapp.conftest import upstream

HEAD = "version = 1\nas_of = 2026-01-01\nsources = []\n[defaults]\n"
MODEL = 'provider = "x"\ncontext = 1\n'
UPSTREAMS = (upstream("openai"), upstream("anthropic"), Offline())


def priced(**kinds: str) -> str:
    """The line of a price: one dollar for every other kind."""
    all_kinds = {"input": "1", "cached_input": "1", "cache_write": "1", "output": "1", **kinds}
    return f"price = {{ {', '.join(f'{kind} = {text}' for kind, text in all_kinds.items())} }}"


@pytest.mark.parametrize(
    ("name", "provider", "slug"),
    [
        ("offline", "offline", "offline"),
        ("gpt-4o", "openai", "gpt-4o"),
        ("gpt-4o-2024-08-06", "openai", "gpt-4o"),
        ("chatgpt-4o-latest", "openai", "chatgpt-4o"),
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
    """Aliases and dated variants share a slug, and invented names share one."""
    model = catalogue.load().model(name, provider)
    assert (model.name, model.slug, model.upstream) == (name, slug, provider)


def test_every_listed_model_is_served_by_its_provider() -> None:
    """The catalogue and the providers agree on the provider of each name."""
    loaded = catalogue.load()
    for name, slug in loaded.slugs.items():
        serving = [each.name for each in UPSTREAMS if each.serves(name)]
        assert serving == [loaded.upstreams[slug]], name
    assert set(loaded.defaults) == {each.name for each in UPSTREAMS}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("version = ", "Invalid value"),
        ("version = 1\n[defaults]\n", "models"),
        (f"{HEAD}[models.a]\n{MODEL}brice = 1", "models.a.brice is unknown; remove it"),
        (f"{HEAD}[models.a]\n{MODEL}price = 1", "models.a.price is a number; write an object"),
        (f"{HEAD}[models.a]\n{MODEL}price = {{ input = 1 }}", "output"),
        (f"{HEAD}[models.a]\n{MODEL}{priced(output='-1')}", "whole micro-dollars"),
        (f"{HEAD}[models.a]\n{MODEL}{priced(output='0.0000001')}", "whole micro-dollars"),
        (f"{HEAD}[models.a]\n{MODEL}{priced(output='nan')}", "finite"),
        (f"{HEAD}[models.a]\n{MODEL}speed = 0\n", "models.a.speed is 0; write more than 0"),
        (f"{HEAD}[models.a]\n{MODEL}speed = -5\n", "models.a.speed is -5; write more than 0"),
        (f"{HEAD}[models.a]\n{MODEL}speed = 1.5\n", "models.a.speed is a number; write a whole"),
        (f'{HEAD}[models.a]\n{MODEL}speed = "fast"\n', "models.a.speed is a string; write a"),
        (f"{HEAD}[models.a]\n{MODEL}speed = 10000000000\n", "write at most 1000000000"),
        (f"{HEAD}[models.a]\n{MODEL}sped = 5\n", "models.a.sped is unknown; remove it"),
        (f"{HEAD}[models.a]\n{MODEL}", "no model has a price"),
        (f'{HEAD}x = "b"\n[models.a]\n{MODEL}', "defaults.x"),
        (
            f'{HEAD}[models.a]\n{MODEL}[models.b]\n{MODEL}aliases = ["a"]',
            "models.b: the name 'a' already belongs to 'a'",
        ),
    ],
)
def test_a_mistake_names_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    """An invalid catalogue stops the start with the place of the mistake."""
    path = tmp_path / "models.toml"
    path.write_text(text)
    with pytest.raises(CatalogueError) as caught:
        catalogue.load(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


PRICED = [
    # Million tokens to micro-dollars, one kind at a time.
    ("claude-haiku-4-5", Usage(1_000_000, 0), 1_000_000),
    ("claude-haiku-4-5", Usage(0, 1_000_000), 5_000_000),
    ("claude-haiku-4-5", Usage(1_000_000, 0, cached_input_tokens=1_000_000), 100_000),
    ("claude-haiku-4-5", Usage(1_000_000, 0, cache_write_tokens=1_000_000), 1_250_000),
    # Parts of the input are priced once, the rest as input; reasoning is output already.
    ("claude-haiku-4-5", Usage(1000, 100, 600, 300), 100 + 60 + 375 + 500),
    ("gpt-5-mini", Usage(1000, 100, reasoning_tokens=90), 250 + 200),
    # Rounded up, once for the whole call.
    ("gpt-4o-mini", Usage(1, 0), 1),
    ("gpt-4o-mini", Usage(1, 1), 1),
    ("gpt-4o-mini", Usage(3, 1), 2),
    ("gpt-4o-mini", Usage(0, 0), 0),
    # A long input makes the whole call dearer, from the next token on.
    ("gpt-5.4", Usage(272_000, 1000), 680_000 + 15_000),
    ("gpt-5.4", Usage(272_001, 1000), 1_360_005 + 22_500),
    # More than a float holds exactly.
    ("o1-pro", Usage(10**14 + 1, 0), 150 * (10**14 + 1)),
    ("offline", Usage(10**6, 10**6), 0),
]


@pytest.mark.parametrize(("slug", "usage", "micro_usd"), PRICED)
def test_a_call_costs_what_the_catalogue_says(slug: str, usage: Usage, micro_usd: int) -> None:
    """To the micro-dollar, each kind of token at its own price."""
    cost = catalogue.load().price(slug, usage)
    assert type(cost) is int
    assert cost == micro_usd


def test_an_unknown_model_costs_what_the_dearest_does(caplog: pytest.LogCaptureFixture) -> None:
    """A model without a price cannot escape a budget; it is logged once."""
    loaded = catalogue.load()
    usage = Usage(1000, 1000)
    dearest = max(loaded.price(slug, usage) for slug in loaded.tariffs)
    with caplog.at_level(logging.WARNING):
        assert [loaded.price("openai-other", usage) for _ in range(3)] == [dearest] * 3
        loaded.price("anthropic-other", usage)
    assert [line.split()[0] for line in caplog.messages] == ["openai-other", "anthropic-other"]


def test_an_odd_usage_is_never_a_credit() -> None:
    """Parts above the input, or negative counts, never make a cost negative."""
    loaded = catalogue.load()
    assert loaded.price("claude-haiku-4-5", Usage(10, 0, cached_input_tokens=1000)) == 100
    assert loaded.price("claude-haiku-4-5", Usage(-5, -5, -5, -5)) == 0


def test_default_models_have_a_price_and_prices_a_date() -> None:
    """As they were on that day."""
    loaded = catalogue.load()
    assert set(loaded.defaults.values()) <= set(loaded.tariffs)
    assert loaded.as_of.year >= 2026
