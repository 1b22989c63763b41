"""Changes of models.toml in the providers file: prices, new models, and prices from a day on."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from chatapp import catalogue
from chatapp.catalogue import Catalogue, CatalogueError, providers_file
from chatapp.catalogue.usage import Usage
from chatapp.settings import SettingsError
from ratelimit_ext import toml_line
from tests.chatapp.conftest import AppMaker, json_of

MILLION_IN, MILLION_OUT = Usage(1_000_000, 0), Usage(0, 1_000_000)
PRICE = "input = {0}, cached_input = 1, cache_write = 1, output = {1}"
SONNET = '[models."claude-sonnet-5"]\n'
NEW = '[models."claude-haiku-9"]\nprovider = "anthropic"\ncontext = 1_000_000\n'


def loaded(folder: Path, text: str) -> Catalogue:
    file = folder / "changes.toml"
    file.write_text(f"version = 1\n{text}")
    return catalogue.load(upstreams=providers_file.read(file, toml_line))


def price(dollars_in: float, dollars_out: float) -> str:
    return PRICE.format(dollars_in, dollars_out)


def test_a_correction_replaces_what_it_says(tmp_path: Path) -> None:
    """The rest of the model stays, as do all others and the packaged upstreams."""
    listed = catalogue.load()
    changed = loaded(tmp_path, f"{SONNET}price = {{ {price(7, 9)} }}")
    assert changed.price("claude-sonnet-5", MILLION_IN) == 7_000_000
    before, after = listed.entry("claude-sonnet-5"), changed.entry("claude-sonnet-5")
    assert after == before.model_copy(update={"price": after.price})
    assert changed.price("gpt-5.4", MILLION_IN) == listed.price("gpt-5.4", MILLION_IN)
    assert {"openai", "anthropic"} <= changed.protocols.keys()


def test_a_new_model(tmp_path: Path) -> None:
    """With its own price, with that of another model, or the dearest of its provider without."""
    own = loaded(tmp_path, f'{NEW}aliases = ["haiku"]\nprice = {{ {price(2, 3)} }}')
    assert own.slug_of("haiku") == own.slug_of("claude-haiku-9-20270101") == "claude-haiku-9"
    assert own.price("claude-haiku-9", MILLION_OUT) == 3_000_000
    same = loaded(tmp_path, '[models."claude-haiku-9"]\nlike = "claude-haiku-4-5"')
    assert same.entry("claude-haiku-9").context == same.entry("claude-haiku-4-5").context
    assert same.tariffs["claude-haiku-9"] == same.tariffs["claude-haiku-4-5"]
    assert same.slug_of("claude-haiku-4-5-20251001") == "claude-haiku-4-5"
    dearest = loaded(tmp_path, NEW)
    anthropics = [s for s in dearest.tariffs if dearest.upstreams[s] == "anthropic"]
    most = max(dearest.price(slug, MILLION_IN) for slug in anthropics)
    assert dearest.price("claude-haiku-9", MILLION_IN) == most


def test_a_price_from_a_day_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By UTC, in a process that runs; so are the price of long calls, and the costs that `ledger
    check` compares."""
    later = f"""{SONNET}price = {{ {price(5, 5)} }}
later = [
  {{ from = 2127-02-01, {price(9, 9)} }},
  {{ from = 2127-01-01, {price(7, 7)}, long_context = {{ over = 10, {price(8, 8)} }} }},
]
"""
    changed = loaded(tmp_path, later)
    tariff = changed.tariffs["claude-sonnet-5"]
    for day, short, long in [
        (datetime(2126, 12, 31, 23, 59, 59, tzinfo=UTC), 5, 5),
        (datetime(2127, 1, 1, tzinfo=UTC), 7, 8),
        (datetime(2127, 1, 31, 23, 59, 59, tzinfo=UTC), 7, 8),
        (datetime(2127, 2, 1, tzinfo=UTC), 9, 9),
    ]:
        monkeypatch.setattr("chatapp.catalogue.price.time.time", day.timestamp)
        assert changed.price("claude-sonnet-5", MILLION_OUT) == short * 1_000_000
        assert changed.price("claude-sonnet-5", MILLION_IN) == long * 1_000_000
        assert tariff.output_tokens_for(short * 1_000_000, Usage(0, 0)) == 1_000_000
        assert changed.is_long(changed.model("claude-sonnet-5", "anthropic"), 11) is (long == 8)
        month = datetime(day.year, day.month, 1, tzinfo=UTC)
        began = month if day.year == 2127 else datetime.combine(changed.as_of, day.min.time(), UTC)
        assert changed.priced_since == began


MISTAKES = [
    ("[models.x]\n", 2, "models.x is new and has no provider; write it, or `like`"),
    ('[models.x]\nprovider = "openai"', 2, "models.x is new and has no context; write it"),
    ('[models.x]\nprovider = "opnai"\ncontext = 5', 3, "models.x.provider is 'opnai'; write one"),
    ('[models.x]\nlike = "gpt-5.5-mini"', 3, "models.x.like is 'gpt-5.5-mini'; write a name of a"),
    (f"{SONNET}pric = 5", 3, "is unknown; allowed: aliases, context,"),
    (f"{SONNET}later = [{{ from = 1, {price(1, 1)} }}]", 3, "from is a number; write a date"),
    (f"{SONNET}later = [{{ {price(1, 1)} }}]", 3, "from is missing; write it"),
    (f"{SONNET}later = [{{ since = 2127-01-01, {price(1, 1)} }}]", 3, "allowed: from, input,"),
    (f'{SONNET}aliases = ["gpt-5.4"]', 0, "the name 'gpt-5.4' already belongs to"),
]


@pytest.mark.parametrize(("text", "line", "sentence"), MISTAKES)
def test_a_mistake(tmp_path: Path, text: str, line: int, sentence: str) -> None:
    """With its file, its line and what to write."""
    with pytest.raises(CatalogueError) as caught:
        loaded(tmp_path, text)
    place = f"changes.toml:{line}: " if line else "changes.toml: "
    assert place in str(caught.value)
    assert sentence in str(caught.value)


def test_unlisted_models_may_be_refused(make_app: AppMaker, tmp_path: Path) -> None:
    """Instead of costing as much as the dearest one: by a 404 that names the command."""
    file = tmp_path / "strict.toml"
    text = 'version = 1\n[upstreams.acme]\nprotocol = "openai"\nmodels_of = "openai"\n'
    file.write_text(text + 'patterns = ["gpt-*"]\nunlisted = "refused"\n')
    client = make_app(CHATAPP_PROVIDERS_FILE=str(file)).test_client()
    body = {"messages": [{"role": "user", "content": "hi"}]}
    refused = client.post("/v1/chat/completions", json={"model": "gpt-99-mini", **body})
    assert refused.status_code == 404
    message = json_of(refused)["error"]["message"]
    assert message.startswith('The model "gpt-99-mini" has no price on this server.')
    assert "`chat prices check`" in message
    with pytest.raises(SettingsError, match="gpt-99-mini"):
        make_app(CHATAPP_PROVIDERS_FILE=str(file), CHATAPP_DEFAULT_MODEL="gpt-99-mini")
