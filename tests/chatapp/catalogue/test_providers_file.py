"""providers.toml: each mistake has its file, line and key, and says what to write."""

import re
from datetime import timedelta
from pathlib import Path

import pytest

from chatapp import PROVIDERS_FILE, catalogue
from chatapp.catalogue import CatalogueError, providers_file
from chatapp.catalogue.usage import Usage
from chatapp.settings import SettingsError
from ratelimit_ext import toml_line
from tests.chatapp.conftest import AppMaker

HEAD = 'version = 1\n[upstreams.acme]\nprotocol = "openai"\n'
PRICE = 'price = "free"\n'
CLASSES = HEAD + PRICE + '[upstreams.acme.classes]\nfield = "priority"\nvalues = '


def loaded(path: Path) -> catalogue.Catalogue:
    return catalogue.load(upstreams=providers_file.read(path, toml_line))


MISTAKES = [
    ("version = \n", 1, "this is not TOML: Invalid value (at line 1, column 11). Write"),
    ("version = 1\n", 0, "upstreams is missing; write it"),
    ("version = 2\n[upstreams.a]\n", 1, "version is '2'; write 1"),
    ("version = 1\nupstreams = {}", 2, "upstreams has too few entries: 0; write at least 1"),
    (HEAD + 'base_ur = ""', 4, "models_of, price, models. Did you mean 'base_url'?"),
    ('version = 1\n[upstreams.a]\nprotocol = "opnai"', 3, "is 'opnai'; write 'openai' or"),
    ('version = 1\n[upstreams.A]\nprotocol = "openai"', 2, "upstreams.A is not allowed; write"),
    ('version = 1\n[upstreams.offline]\nprotocol = "openai"', 2, "other than offline"),
    (HEAD + 'base_url = "ftp://x"', 4, "base_url is not an address; write https://HOST/PATH"),
    (HEAD + 'base_url = "https://u:hunter2@x"', 4, "base_url is not an address"),
    (HEAD + 'base_url = "https://x?key=hunter2"', 4, "base_url is not an address"),
    (HEAD + 'base_url = "https://x/\\nHost: hunter2"', 4, "base_url is not an address"),
    (HEAD + 'base_url = "https://x\\r/hunter2"', 4, "base_url is not an address"),
    (HEAD + 'base_url = "https://x/a b"', 4, "base_url is not an address"),
    (HEAD + 'base_url = "https://x/v1/responses/"', 4, "ends in /responses, which is added"),
    (
        HEAD.replace("openai", "anthropic") + 'base_url = "https://x/v1"',
        4,
        "base_url ends in /v1, which is added; write it without that",
    ),
    (
        HEAD + 'keys = ["file:/dev/zero"]',
        4,
        "keys.0 is not a regular file; write the path of a file",
    ),
    (HEAD + f"price = {{ input = 1{'0' * 30}, output = 1 }}", 4, "write at most 1000000"),
    (
        HEAD + PRICE + f"[upstreams.acme.models.x]\ncontext = 1{'0' * 30}",
        6,
        "write at most 1000000000",
    ),
    (HEAD + 'keys = [\n  "env:A",\n  "hunter2",\n]', 6, 'write "env:NAME" (a variable) or'),
    (HEAD + 'keys = ["file:hunter2"]', 4, "never the key itself"),
    (HEAD + "keys = [7]", 4, "upstreams.acme.keys.0 does not say where the key is"),
    (HEAD + 'key_header = "api key"', 4, "key_header is not the name of a header"),
    (HEAD + 'headers = { Authorization = "hunter2" }', 4, "under `keys`"),
    (HEAD + 'headers = { X = "a\\nb" }', 4, "not printable ASCII"),
    (HEAD + 'headers = { Content-Length = "9" }', 4, "which each request states itself"),
    (HEAD + 'keys = ["env:A", "env:B", "env:A"]', 4, "keys have an entry twice; remove one"),
    (HEAD + 'patterns = ["a*", "a*"]', 4, "patterns have an entry twice; remove one"),
    (CLASSES + "{ a = 1, b = 1 }", 5, "have one value for all, or numbers beside texts"),
    (CLASSES + '{ a = 1, b = "x" }', 5, "have one value for all, or numbers beside texts"),
    (
        HEAD + PRICE + "[upstreams.acme.models.x]\ncontext = 9\nmax_output = 10",
        5,
        "models.x has a max_output above its context; correct one of them",
    ),
    (HEAD + "query = { a = 1 }", 4, "query.a is a number; write a string"),
    (HEAD + "timeouts = { read_s = 0 }", 4, "timeouts.read_s is 0; write more than 0"),
    (HEAD + 'timeouts = { read_s = "1" }', 4, "timeouts.read_s is a string; write a number"),
    (HEAD + "timeouts = { rea_s = 1 }", 4, "Did you mean 'read_s'?"),
    (HEAD + PRICE + 'refuse = [""]', 5, "refuse.0 is too short; write 1 or more characters"),
    (HEAD + PRICE + 'unlisted = "refused"', 5, "unlisted leaves no model; write some under models"),
    (HEAD + 'price = "cheap"', 4, 'price is a string; write "free" or a table of prices'),
    (HEAD + "price = { input = 1 }", 4, "price.output is missing"),
    (HEAD, 2, 'upstreams.acme has no price; write price = "free" or a table of prices'),
    (HEAD + 'patterns = ["*"]\n[upstreams.acme.models.x]\ncontext = 1', 2, "has no price"),
    (HEAD + 'models_of = "opnai"', 4, "models_of is 'opnai'; write 'anthropic' or 'openai'"),
    (HEAD + 'models_of = "offline"', 4, "models_of is 'offline'"),
    (HEAD + PRICE + 'default_model = "x"', 5, "default_model is 'x'; write one of its models"),
    (HEAD + PRICE + "[upstreams.acme.models.x]\n", 5, "models.x.context is missing"),
    (HEAD + PRICE + '[upstreams.acme.models.x]\nlike = "gpt-4p"', 6, "Did you mean 'gpt-4'?"),
    (HEAD + PRICE + "[upstreams.acme.models.x]\ncontxt = 1", 6, "Did you mean 'context'?"),
    (HEAD + PRICE + f"[upstreams.acme.models.{'x' * 96}]\ncontext = 1", 5, "1 to 95 characters"),
    (
        HEAD
        + PRICE
        + "".join(
            f'[upstreams.acme.models.{name}]\ncontext = 1\naliases = ["z"]\n' for name in "xy"
        ),
        0,
        "the name 'acme/z' already belongs to 'acme/x'",
    ),
]


@pytest.mark.parametrize(("text", "line", "says"), MISTAKES)
def test_a_mistake_has_its_line_and_what_to_write(
    tmp_path: Path, text: str, line: int, says: str
) -> None:
    """A value that may be a key is not shown."""
    path = tmp_path / "providers.toml"
    path.write_text(text)
    with pytest.raises(CatalogueError) as caught:
        loaded(path)
    said = str(caught.value)
    assert said.startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert says in said
    assert "hunter2" not in said


def test_all_mistakes_are_found_at_once(tmp_path: Path) -> None:
    """In the order of their lines."""
    path = tmp_path / "providers.toml"
    path.write_text(HEAD + 'price = 1\nkeys = "x"\nnew = 1')
    with pytest.raises(CatalogueError) as caught:
        loaded(path)
    places = [line.split()[0].rpartition(":")[0] for line in str(caught.value).splitlines()]
    assert places == [f"{path}:{line}" for line in (4, 5, 6)]


def test_a_file_that_cannot_be_read_is_a_mistake(make_app: AppMaker, tmp_path: Path) -> None:
    """The setting is named."""
    with pytest.raises(CatalogueError, match=r"CHATAPP_PROVIDERS_FILE: .*No such file"):
        make_app(CHATAPP_PROVIDERS_FILE=str(tmp_path / "none.toml"))


def test_a_timeout_is_at_most_the_settings(make_app: AppMaker, tmp_path: Path) -> None:
    """Leases and the end of workers rely on the setting."""
    path = tmp_path / "providers.toml"
    path.write_text(HEAD + PRICE + "timeouts = { connect_s = 1, read_s = 30.5 }")
    says = (
        r"providers.toml:5: .*read_s is 30.5; write at most 20, or raise CHATAPP_PROVIDER_TIMEOUT"
    )
    with pytest.raises(CatalogueError, match=says):
        make_app(CHATAPP_PROVIDERS_FILE=str(path), CHATAPP_PROVIDER_TIMEOUT_S=20)
    make_app(CHATAPP_PROVIDERS_FILE=str(path), CHATAPP_PROVIDER_TIMEOUT_S=31)


def test_a_default_model_must_be_served(make_app: AppMaker, tmp_path: Path) -> None:
    """The providers are served only if the file has them."""
    path = tmp_path / "providers.toml"
    path.write_text(HEAD + PRICE + 'patterns = ["llama*"]')
    with pytest.raises(SettingsError, match=r"available models: llama\*, offline"):
        make_app(CHATAPP_PROVIDERS_FILE=str(path), CHATAPP_DEFAULT_MODEL="gpt-4o")
    make_app(CHATAPP_PROVIDERS_FILE=str(path), CHATAPP_DEFAULT_MODEL="acme/llama-3")


def documented() -> list[str]:
    """The examples of docs/gateway/providers.md."""
    document = (PROVIDERS_FILE.parents[1] / "docs" / "gateway" / "providers.md").read_text()
    return re.findall(r"```toml\n(.*?)```", document, re.DOTALL)


def test_the_example_of_classes_is_valid(tmp_path: Path) -> None:
    """With the upstreams that it names."""
    [example] = [example for example in documented() if ".classes]" in example]
    names = re.findall(r"upstreams\.(\w+)\.classes", example)
    heads = [f'[upstreams.{name}]\nprotocol = "openai"\n{PRICE}' for name in names]
    path = tmp_path / "providers.toml"
    path.write_text("\n".join(["version = 1", *heads, example]))
    assert all(table.classes for table in providers_file.read(path, toml_line).upstreams.values())


@pytest.mark.parametrize("number", range(8))
def test_the_examples_are_valid(tmp_path: Path, number: int) -> None:
    """Each in docs/gateway/providers.md."""
    examples = [example for example in documented() if ".classes]" not in example]
    assert len(examples) == 8
    path = tmp_path / "providers.toml"
    path.write_text(("" if number < 2 else "version = 1\n") + examples[number])
    [*names] = providers_file.read(path, toml_line).upstreams
    assert names[-1] in loaded(path).protocols


def test_the_prices_are_as_of_the_later_date(tmp_path: Path) -> None:
    """`ledger check` compares only newer calls with them."""
    path = tmp_path / "providers.toml"
    listed = catalogue.load().as_of
    for day in (listed + timedelta(1), listed - timedelta(1)):
        path.write_text(f"as_of = {day}\n{HEAD}{PRICE}")
        assert loaded(path).as_of == max(listed, day)


def test_the_default_file_has_the_providers() -> None:
    """With their keys in the environment, and the catalogue of models.toml alone."""
    file = providers_file.read(PROVIDERS_FILE, toml_line)
    assert {name: [key.name for key in table.keys] for name, table in file.upstreams.items()} == {
        "openai": ["OPENAI_API_KEY"],
        "anthropic": ["ANTHROPIC_API_KEY"],
    }
    assert vars(catalogue.load(upstreams=file)) == vars(catalogue.load())


def test_a_tier_of_ones_own_has_its_price_whatever_was_read_before(tmp_path: Path) -> None:
    """An unknown tier costs as much as the dearest of that name. models.toml is read once for all
    catalogues of a process, and the first of them knows no such tier."""
    catalogue.load().price("gpt-5.4", Usage(1_000_000, 0))
    file = tmp_path / "providers.toml"
    own = 'like = "gpt-5.4"\ntiers = { rush = 9.5 }\n'
    file.write_text(f"{HEAD}{PRICE}[upstreams.acme.models.x]\n{own}")
    found = loaded(file)
    once, rushed = (
        found.price("gpt-5.4", Usage(1_000, 0, tiers=tiers)) for tiers in (None, ("rush",))
    )
    assert rushed == 9.5 * once > 0


def test_the_models_of_a_provider_are_those_with_a_pattern(tmp_path: Path) -> None:
    """With their prices, tiers and tools; without patterns, all of them."""
    path = tmp_path / "providers.toml"
    text = 'version = 1\n[upstreams.acme]\nprotocol = "anthropic"\nmodels_of = "anthropic"\n'
    path.write_text(text + 'patterns = ["claude-haiku-4-*"]')
    some, listed = loaded(path), catalogue.load()
    assert [s for s in some.tariffs if s.startswith("acme/")] == ["acme/claude-haiku-4-5"]
    assert some.tariffs["acme/claude-haiku-4-5"] == listed.tariffs["claude-haiku-4-5"]
    assert list(some.tools["acme"]) == ["web_search"]
    assert some.prices_tier(some.model("claude-haiku-4-5-20251001", "acme"), "us")
    path.write_text(text)
    count = sum(provider == "anthropic" for provider in listed.upstreams.values())
    assert sum(provider == "acme" for provider in loaded(path).upstreams.values()) == count
