"""Input tokens of prompts and bodies, against counts that the providers published."""

import json
import time
from collections.abc import Callable, Mapping
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatapp import catalogue
from chatapp.catalogue import Model
from chatapp.estimates import tokens
from chatapp.estimates.tokens import (
    CL100K,
    EXACT_CHARACTERS,
    MOST_PARTS,
    O200K,
    SLICE_CHARACTERS,
    SLICES,
    text_tokens,
    tokenizer,
)
from chatapp.upstreams import Turn
from chatapp.upstreams.offline import Offline
from chatapp.web.requests.json_body import DEPTH_MOST


def input_tokens(model: Model, fields: Mapping[str, object]) -> int:
    return tokens.input_tokens(model, fields).expected


GPT = Model("gpt-4o", "gpt-4o", "openai")
MINI = Model("gpt-4o-mini", "gpt-4o-mini", "openai")
CLAUDE = Model("claude-haiku-4-5", "claude-haiku-4-5", "anthropic")
NEWER_CLAUDE = Model("claude-opus-5", "claude-opus-5", "anthropic")
OFFLINE = Model("offline", "offline", "offline")
FRAME = 3 + 1 + 3  # a message, its role, the reply's beginning

# The example of OpenAI's cookbook, whose tokens its API has counted.
SYSTEM = {"role": "system"}
USER, ASSISTANT = ({**SYSTEM, "name": f"example_{name}"} for name in ("user", "assistant"))
BRIEF = "You are a helpful, pattern-following assistant that translates corporate jargon into plain"
BANDWIDTH = "Let's circle back when we have more bandwidth to touch base on opportunities for"
PIVOT = "This late pivot means we don't have time to boil the ocean for the client deliverable."
JARGON = [
    {**SYSTEM, "content": f"{BRIEF} English."},
    {**USER, "content": "New synergies will help drive top-line growth."},
    {**ASSISTANT, "content": "Things working well together will increase revenue."},
    {**USER, "content": f"{BANDWIDTH} increased leverage."},
    {**ASSISTANT, "content": "Let's talk later when we're less busy about how to do better."},
    {"role": "user", "content": PIVOT},
]
# The examples of Anthropic's page on token counting.
SCIENTIST = {
    "system": "You are a scientist",
    "messages": [{"role": "user", "content": "Hello, Claude"}],
}
LOCATION = {"type": "string", "description": "The city and state, e.g. San Francisco, CA"}
PARAMETERS = {"type": "object", "properties": {"location": LOCATION}, "required": ["location"]}
GET_WEATHER = {
    "name": "get_weather",
    "description": "Get the current weather in a given location",
    "input_schema": PARAMETERS,
}
WEATHER = {
    "tools": [GET_WEATHER],
    "messages": [{"role": "user", "content": "What's the weather like in San Francisco?"}],
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
odd_parts = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image", "image_url", "tool_result", "file"]) | json_values},
    optional={"text": json_values, "content": json_values, "source": json_values},
)
odd_messages = st.fixed_dictionaries(
    {"role": json_values}, optional={"content": st.lists(odd_parts) | json_values}
)
odd_bodies = st.fixed_dictionaries(
    {"messages": st.lists(odd_messages) | json_values},
    optional={"system": json_values, "tools": json_values, "functions": json_values},
)


def body(content: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize(
    ("name", "tokens"), [("gpt-3.5-turbo", 129), ("gpt-4", 129), ("gpt-4o", 124)]
)
def test_openais_example_is_counted_as_its_api_did(name: str, tokens: int) -> None:
    """Roles, names and the tokens around messages are counted as OpenAI bills them."""
    assert input_tokens(Model(name, name, "openai"), {"messages": JARGON}) == tokens


NUMBERS = "0 1 2 3 5 8 13 21 34 55 89 144 233 377 610 987 1597 2584 4181 6765"
GREETINGS = "你好 こんにちは 안녕하세요 再见 さようなら 잘가요 谢谢 ありがとう 감사합니다"


@pytest.mark.parametrize(
    ("model", "fields", "published"),
    [
        (CLAUDE, SCIENTIST, 14),
        (NEWER_CLAUDE, SCIENTIST, 14),
        (CLAUDE, WEATHER, 403),
        (NEWER_CLAUDE, WEATHER, 403),
        # Claude Haiku 4.5's own counts, of the corpus that families.py names; 7 around each.
        (CLAUDE, body("The quick brown fox jumps over the lazy dog."), 11 + 7),
        (CLAUDE, body(NUMBERS), 44 + 7),
        (CLAUDE, body("https://www.example.com"), 7 + 7),
        (CLAUDE, body("\U0001f602" * 10), 21 + 7),
        (CLAUDE, body(GREETINGS), 46 + 7),
    ],
)
def test_claudes_examples_are_not_underestimated(
    model: Model, fields: dict[str, object], published: int
) -> None:
    """Anthropic's published counts are at most the estimate, and at least half of it."""
    assert published <= input_tokens(model, fields) <= published * 2


def test_the_offline_model_is_counted_as_it_counts() -> None:
    """An estimate for the offline model is its bill, and two tokens for each message's role."""
    usage = Offline().complete(Turn("Grüße!", OFFLINE), 100).usage
    assert usage is not None
    assert 0 <= input_tokens(OFFLINE, body("Grüße!")) - usage.input_tokens <= 2


def test_the_least_is_below_what_is_expected() -> None:
    """The certain tokens of a text; a guess, as of an image, adds none."""
    text = body("hello world, how are you today? " * 50)
    for model, share in ((GPT, 0.9), (CLAUDE, 0.75 / 1.4)):
        counted = tokens.input_tokens(model, text)
        assert 0.8 * share < counted.least / counted.expected <= 1.02 * share
    image = {"type": "image", "source": {}}
    assert tokens.input_tokens(CLAUDE, body([image])).least < 5


def test_text_parts_are_text() -> None:
    """A text costs the same as a string and as a part, with its cache mark or without."""
    part = {"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}}
    assert input_tokens(GPT, body([part])) == input_tokens(GPT, body("hello"))


@pytest.mark.parametrize(
    ("model", "part", "tokens"),
    [
        (GPT, {"type": "image_url", "image_url": {"url": "data:" + "A" * 500_000}}, 2_500),
        (MINI, {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}, 36_835),
        (CLAUDE, {"type": "image", "source": {"type": "base64", "data": "A" * 500_000}}, 1_600),
        (NEWER_CLAUDE, {"type": "image", "source": {"type": "url", "url": "x"}}, 4_784),
    ],
)
def test_an_image_is_a_constant(model: Model, part: object, tokens: int) -> None:
    """An image costs what its model counts for one, whatever its size in bytes."""
    assert input_tokens(model, body([part])) - input_tokens(model, body("")) == tokens


def test_an_image_in_a_tools_result_is_an_image() -> None:
    """The result of a tool is counted part by part."""
    image = {"type": "image", "source": {"type": "base64", "data": "A" * 500_000}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [image]}
    assert 1_600 < input_tokens(CLAUDE, body([result])) < 1_700


def test_what_nobody_can_count_is_a_third_of_its_length() -> None:
    """A file costs a token for every three bytes of its JSON."""
    part = {"type": "document", "source": {"data": "A" * 30_000}}
    assert input_tokens(GPT, body([part])) == FRAME - (-len(json.dumps(part).replace(" ", "")) // 3)


@pytest.mark.parametrize("name", ["tools", "functions"])
def test_tools_are_counted(name: str) -> None:
    """The definitions of tools are part of the prompt."""
    tools = [{"type": "function", "function": {"name": "f", "description": "does " * 100}}]
    assert input_tokens(GPT, body("hello") | {name: tools}) > 100 + FRAME


def item(kind: str, **fields: object) -> list[dict[str, object]]:
    return [{"type": kind, **fields}]


SCREEN = {"type": "computer_screenshot"}
PICTURE = item("input_image", image_url="x")
ITEMS: dict[str, tuple[object, int, int]] = {
    "a text": ("word " * 100, 100, 110),
    "a message": ([{"role": "user", "content": "word " * 100}], 100, 112),
    "a call": (item("function_call", name="f", arguments="word " * 100), 100, 120),
    "its output": (item("function_call_output", output="word " * 100), 100, 120),
    "an image": ([{"role": "user", "content": item("input_image")}], 2_500, 2_515),
    "an image as output": (item("function_call_output", output=PICTURE), 2_500, 2_520),
    "a screenshot": (item("computer_call_output", output=SCREEN), 2_500, 2_520),
    "an image that was made": (item("image_generation_call", result="A" * 90_000), 2_500, 2_515),
    "a file": ([{"role": "user", "content": item("input_file")}], 50_000, 50_020),
    "reasoning": (item("reasoning", encrypted_content="A" * 4_000), 1_000, 1_020),
    "a reference": (item("item_reference", id="msg_1") * 2, 2_000, 2_010),
}


@pytest.mark.parametrize("name", ITEMS)
def test_the_items_of_a_response_are_counted(name: str) -> None:
    """Each by what the model reads of it; instructions and a schema besides."""
    items, least, most = ITEMS[name]
    assert least <= input_tokens(GPT, {"input": items}) <= most
    more = {"instructions": "word " * 50, "text": {"format": {"schema": "word " * 50}}}
    assert input_tokens(GPT, {"input": items, **more}) >= least + 100


def test_calls_of_tools_are_counted() -> None:
    """The calls of tools are read again in the next turn."""
    calls = [{"id": "c", "function": {"name": "f", "arguments": '{"city": "Rome"}' * 50}}]
    fields = {"messages": [{"role": "assistant", "content": None, "tool_calls": calls}]}
    assert input_tokens(GPT, fields) > 250


def test_every_model_of_the_catalogue_has_a_family() -> None:
    """Every model has an estimate, and older and newer Claudes have different ones."""
    models = catalogue.load()
    counts = {
        slug: input_tokens(models.model(slug, provider), body("hello " * 1_000))
        for slug, provider in models.upstreams.items()
        if slug != "offline"
    }
    assert min(counts.values()) >= 1_000
    by_claude: dict[int, set[str]] = {}
    for slug, count in counts.items():
        if slug.startswith("claude"):
            by_claude.setdefault(count, set()).add(slug)
    older, newer = (by_claude[count] for count in sorted(by_claude))
    assert {"claude-3-opus", "claude-opus-4", "claude-opus-4-6", "claude-haiku-4-5"} <= older
    assert {"claude-opus-4-7", "claude-opus-4-8", "claude-sonnet-5", "claude-haiku-5-5"} <= newer


def test_an_unknown_model_is_counted_like_the_dearest() -> None:
    """A provider's unlisted models, and unlisted providers, are not underestimated."""
    fields = body("hello " * 100)
    dearest = input_tokens(NEWER_CLAUDE, fields)
    assert input_tokens(Model("x", "anthropic-other", "anthropic"), fields) == dearest
    assert input_tokens(Model("x", "acme-other", "acme"), fields) == dearest


@settings(max_examples=100)
@given(fields=odd_bodies | st.dictionaries(st.text(), json_values))
@pytest.mark.parametrize("model", [GPT, CLAUDE, OFFLINE], ids=lambda model: model.slug)
def test_nothing_that_json_holds_raises(model: Model, fields: dict[str, object]) -> None:
    """Odd bodies, also with lone surrogates, have an estimate."""
    assert input_tokens(model, fields) >= 0


def test_deep_nesting_does_not_raise() -> None:
    """Content is counted at any depth that a body may have."""
    nested: object = "word"
    for _ in range(DEPTH_MOST // 2):
        nested = {"content": [nested]}
    fields = body([{"type": "tool_use", "input": nested}, nested]) | {"tools": [nested]}
    assert input_tokens(GPT, fields) > 3 * DEPTH_MOST


@settings(max_examples=100)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=2_000))
def test_short_texts_are_counted_exactly(text: str) -> None:
    """Short texts are not extrapolated: the estimate is the tokenizer's count."""
    assert text_tokens([text], O200K) == tokenizer("o200k_base").count(text)


@settings(max_examples=40)
@given(
    pieces=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200),
        min_size=1,
        max_size=5,
    ),
    times=st.integers(min_value=1, max_value=5),
)
def test_long_even_texts_are_not_underestimated(pieces: list[str], times: int) -> None:
    """For a uniform long text, the extrapolation is at most 2 % below the count, never above the
    number of bytes, which no count can exceed."""
    piece = "".join(pieces)
    text = piece * (times * EXACT_CHARACTERS // len(piece) + 2)
    estimate = text_tokens([text], O200K)
    assert tokenizer("o200k_base").count(text) * 0.98 <= estimate <= len(text.encode())


@pytest.mark.parametrize("period", [512, 1_000, 32_768, 47_619, 100_000])
def test_uneven_texts_are_not_underestimated(period: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """If dense and plain text alternate, at any period, two standard errors compensate for what the
    slices missed. One draw in some dozens misses more, so the draw is always the same here."""
    monkeypatch.setattr(tokens, "_random", Random(0).random)
    plain, dense = "hello world " * period, "x9Qz/4Kp+" * period
    whole = "".join(part[: period // 2] for part in [plain, dense]) * (3_000_000 // period)
    real = tokenizer("cl100k_base").count(whole)
    assert real <= text_tokens([whole], CL100K) <= real * 1.35


def test_a_period_that_slices_could_keep_step_with_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that is plain exactly where evenly spaced slices would be is not underestimated. The
    draw is always the same here."""
    monkeypatch.setattr(tokens, "_random", Random(0).random)
    period = 47_000
    plain, dense = "hello world " * 250, "x9Qz/4Kp+" * period
    whole = (plain[:2_000] + dense)[:period] * SLICES + plain[:SLICE_CHARACTERS]
    real = tokenizer("cl100k_base").count(whole)
    assert real <= text_tokens([whole], CL100K) <= real * 1.1


def test_many_small_texts_are_not_underestimated() -> None:
    """Each of a hundred thousand messages of one letter is counted."""
    fields = {"messages": [{"role": "user", "content": "a"}] * 100_000}
    assert input_tokens(GPT, fields) >= 100_000 * (3 + 1 + 1)


@pytest.mark.parametrize(
    "fields",
    [
        lambda: body("The quick brown fox. " * 150_000),
        lambda: body("\U0001f300\u4e00x" * 400_000),
        lambda: body([1] * 1_500_000),
        lambda: body([[1] * (MOST_PARTS - 1)] * 150),
        lambda: {"messages": [{"role": "user", "content": "a"}] * 80_000},
        lambda: {"messages": [], "tools": [{"name": "f"}] * 150_000},
    ],
    ids=["prose", "unicode", "parts", "nested parts", "messages", "tools"],
)
def test_three_megabytes_are_estimated_in_bounded_time(
    fields: Callable[[], dict[str, object]],
) -> None:
    """No body of 3 MB holds a worker: prose takes 5 ms and the oddest one 0.1 s; the bound is wide,
    for slow machines."""
    input_tokens(GPT, body("\U0001f300\u4e00x" * 10_000))  # loads the tokenizer
    made = fields()
    began = time.thread_time()
    input_tokens(GPT, made)
    assert time.thread_time() - began < 0.5


def test_an_ordinary_prompt_takes_a_millisecond() -> None:
    """1,400 tokens are counted in about 0.1 ms; the bound is wide, for busy machines."""
    fields = body("Rate limits keep a runaway client from becoming a bill. " * 127)
    assert 1_350 < input_tokens(GPT, fields) < 1_450

    def once() -> float:
        began = time.thread_time()
        input_tokens(GPT, fields)
        return time.thread_time() - began

    assert min(once() for _ in range(50)) < 0.001
