"""`chat prices check`: what differs from a maintained list, as a file that corrects it."""

import json
import sys
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from flask import Flask

from chatapp.services import services_of
from tests.chatapp.cli.test_commands import run
from tests.chatapp.conftest import AppMaker


@dataclass(eq=False)
class ListedModel:
    """As in genai-prices 0.2.3."""

    id: str
    context_window: int | None
    prices: dict[str, Any]

    def get_prices(self, _: object) -> SimpleNamespace:
        return SimpleNamespace(**self.prices)


@dataclass
class ListedProvider:
    id: str
    models: list[ListedModel]

    def find_model(self, name: str) -> ListedModel | None:
        return next((model for model in self.models if model.id == name), None)


def tiered(base: str, long: str, start: int) -> SimpleNamespace:
    tier = SimpleNamespace(start=start, price=Decimal(long))
    return SimpleNamespace(base=Decimal(base), tiers=[tier])


def prices(usd_in: str, usd_out: str, cached: str | None = None) -> dict[str, Any]:
    listed = {"input_mtok": usd_in, "output_mtok": usd_out, "cache_read_mtok": cached}
    return {name: usd and Decimal(usd) for name, usd in listed.items()}


@pytest.fixture
def app(make_app: AppMaker, monkeypatch: pytest.MonkeyPatch) -> Flask:
    """With a list that has equal, different and new models."""
    app = make_app()
    ours = services_of(app).catalogue.tariffs["gpt-5.4-mini"].usual
    equal = prices(str(Decimal(ours.input) / 10**6), str(Decimal(ours.output) / 10**6))
    long = {"input_mtok": tiered("1", "2", 9000), "output_mtok": tiered("3", "4", 9000)}
    openai = [
        ListedModel("gpt-5.4-mini", 400_000, equal),
        ListedModel("gpt-5.4-nano", 400_000, prices("123", "456", "12.3")),
        ListedModel("gpt-99", 2_000_000, long),
        ListedModel("ada", None, prices("1", "1", "1")),
        ListedModel("whisper", 9, {"audio_hours": Decimal(1)}),
    ]
    module: Any = ModuleType("genai_prices.data")
    module.providers = [ListedProvider("openai", openai), ListedProvider("anthropic", [])]
    monkeypatch.setitem(sys.modules, "genai_prices", ModuleType("genai_prices"))
    monkeypatch.setitem(sys.modules, "genai_prices.data", module)
    return app


def test_it_prints_a_file_that_corrects_the_prices(
    app: Flask, make_app: AppMaker, tmp_path: Path
) -> None:
    """With it, all prices are equal; without, the command fails."""
    done = run(app, "prices", "check", status=1)
    assert done.stderr.splitlines() == ["1 equal, 1 different, 1 not listed here."]
    assert '[models."gpt-5.4-nano"]\nprice = { input = 123, cached_input = 12.3,' in done.stdout
    file = tmp_path / "prices.toml"
    file.write_text(done.stdout)
    corrected = make_app(CHATAPP_PROVIDERS_FILE=str(file))
    assert run(corrected, "prices", "check").stderr == "3 equal, 0 different, 0 not listed here.\n"
    new = services_of(corrected).catalogue.entry("gpt-99")
    assert (new.context, new.long_context and new.long_context.over) == (2_000_000, 9000)


def test_single_models_and_json(app: Flask) -> None:
    """A name that the list lacks is an error."""
    assert run(app, "prices", "check", "gpt-5.4-mini").stdout == ""
    shown = json.loads(run(app, "prices", "check", "gpt-99", "--json").stdout)
    assert shown == {"equal": 0, "differ": [], "absent": ["gpt-99"]}
    refused = run(app, "prices", "check", "gpt-9", status=1)
    assert "genai-prices has no gpt-9." in refused.stderr


def test_without_the_package(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to install."""
    monkeypatch.setitem(sys.modules, "genai_prices.data", None)
    refused = run(app, "prices", "check", status=1)
    assert "Run: pip install genai-prices" in refused.stderr
