"""Mistakes in a policy's keywords of chatapp: at the check and at the start, with file and line."""

from pathlib import Path

import pytest

from chatapp import MISTAKES, POLICY_FILE
from tests.chatapp.application.limits.test_cheaper_model import BUDGET
from tests.chatapp.application.limits.test_models_of_limits import CALLS, PLANS
from tests.chatapp.application.limits.test_request_class import AT_ONCE
from tests.chatapp.conftest import AppMaker, policy_file

STARTER = 'title = "Starter"\n'
SOLO = '[plans.solo]\ntitle = "Solo"\nmodels = ["claude-opus*"]\n[[plans.solo.limits]]\n'
ODD = 'name = "odd"\nkey = "user"\n'
SOME = '["claude-haiku*", "gpt-5.4-mini"]'
OF_CALLS = "groups.calls.limits[7].models: | allowed: a list of names"
FOR_CALLS = "models: is only for limits of calls: of a plan, or of anthropic_api"
FOR_BUDGETS = 'is only for budgets, such as "20 usd/week".'
#: What is in the plan Starter, and the words of the error.
OF_A_PLAN = {
    'models = "gpt-5*"': "plans.starter.models: found 'gpt-5*'; allowed: a list of names such as",
    "models = []": "plans.starter.models: found []; allowed: a list of names",
    "models = [5]": "plans.starter.model | found 5 in the list",
    'models = ["gpt-5 claude"]': "plans.starter.model | found 'gpt-5 claude' in the list",
    'model = ["gpt-5*"]': "plans.starter.model | Did you mean 'models'?",
    "class = 5": "plans.starter.class: found 5; allowed: a name",
}
#: What a budget has instead of its models, of its cheaper models and of its warning.
OF_A_BUDGET = {
    "at_limit = 5": "at_limit: found 5; allowed: a list of names",
    'at_limit = "gpt-5.4-nano"\nmodels = ["claude-opus*"]': (
        "at_limit: found 'gpt-5.4-nano', a model of openai, but the limit is for models of anth"
    ),
    'at_limit = "claude-haiku-4-5"\nmodels = ["claude-haiku-4-5"]': (
        "at_limit: found 'claude-haiku-4-5', which is not cheaper than a model of the limit"
    ),
    'at_limit = "claude-opus-4-8"\nmodels = ["claude-haiku*"]': (
        "at_limit: found 'claude-opus-4-8', which is not cheaper than a model of the limit"
    ),
    "warn_at = 0": "warn_at: found 0; allowed: percent of the budget",
    "warn_at = 101": "warn_at: found 101; allowed: percent",
    'warn_at = "80"': "warn_at: found '80'; allowed: percent",
}
#: Limits besides those of the packaged policy.
OF_LIMITS = {
    CALLS.replace(SOME, '"gpt-4o"'): OF_CALLS,
    CALLS.replace(SOME, "[]"): OF_CALLS,
    f'[[application]]\nlimit = "9/day"\nmodels = ["gpt-4o"]\n{ODD}': FOR_CALLS,
    f'[[groups.counts.limits]]\nlimit = "9/day"\nmodels = ["gpt-4o"]\n{ODD}': FOR_CALLS,
    f'{SOLO}limit = "5 usd/week"\nat_limit = "claude-haiku-4-5"\n{ODD}': (
        "at_limit: found 'claude-haiku-4-5', a model that the plan does not allow."
    ),
    **{
        f'[[groups.calls.limits]]\nlimit = "{limit}"\n{line}\n{ODD}': FOR_BUDGETS
        for limit in ("5/day", "2 in flight", "5 usd/hour or 20 x usual")
        for line in ('at_limit = "claude-haiku*"', "warn_at = 80")
    },
}
#: By a header, a caller would have one amount more.
OF_A_KEY = dict.fromkeys(
    ('"request_class"', '["user", "request_class"]'), "key: callers choose 'request_class'"
)
#: What is replaced in the packaged policy.
CASES = [
    *((STARTER, f"{STARTER}{line}\n", words) for line, words in OF_A_PLAN.items()),
    *(
        (PLANS, f"{BUDGET.partition('models =')[0]}{line}\n{PLANS}", words)
        for line, words in OF_A_BUDGET.items()
    ),
    *((PLANS, f"{limits}\n{PLANS}", words) for limits, words in OF_LIMITS.items()),
    *((AT_ONCE, AT_ONCE.replace('"user"', key), words) for key, words in OF_A_KEY.items()),
]


@pytest.mark.parametrize(("old", "new", "words"), CASES, ids=[words for *_, words in CASES])
def test_a_mistake_has_its_line(
    make_app: AppMaker, tmp_path: Path, old: str, new: str, words: str
) -> None:
    """And says what is allowed."""
    policy = POLICY_FILE.read_text()
    assert old in policy
    with pytest.raises(MISTAKES) as caught:
        make_app(RATELIMIT_POLICY_FILE=policy_file(tmp_path, policy.replace(old, new, 1)))
    said = str(caught.value)
    assert "policy.toml:" in said
    assert [word for word in words.split(" | ") if word not in said] == [], said
