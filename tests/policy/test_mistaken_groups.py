"""What a group cannot be is told."""

from __future__ import annotations

import pytest

from tests.policy.case import Case
from tests.policy.conftest import Load, told_by

LIMITS = '[[groups.calls.limits]]\nname = "user"\nlimit = "30/minute"'
PLAN = '[[plans.pro.limits]]\nname = "plan"\nlimit = "9/day"'

MISTAKES = [
    # -- the table
    Case(
        "list of groups",
        "groups = [1]",
        "policy.toml:2: groups: found a list; allowed: a table. In a file, its name stands in one "
        "pair of brackets.",
    ),
    Case(
        "group in two pairs of brackets",
        '[[groups.calls]]\nmembers = ["chat"]',
        "policy.toml:2: groups.calls: found a list; allowed: a table.",
    ),
    Case(
        "empty group",
        "[groups.calls]",
        "1 mistake in the limits by configuration:\n  policy.toml:2: groups.calls: the table is "
        "empty; allowed: members, plans, limits. Fill or remove it.",
    ),
    Case(
        "unknown key",
        '[groups.calls]\nmember = ["chat"]\n' + LIMITS,
        "policy.toml:3: groups.calls.member: unknown key; allowed: members, plans, limits. Did you "
        "mean 'members'?",
    ),
    Case(
        "name of a group",
        '[groups."/calls"]\nmembers = ["chat"]\nlimits = ["5/minute"]',
        "policy.toml:2: groups.\"/calls\": found '/calls' (a string); allowed: a name of 1 to 64 "
        "letters,",
    ),
    Case(
        "group without limits",
        '[groups."my calls"]\nmembers = ["chat"]\nplans = false',
        'policy.toml:2: groups."my calls": the group has neither limits nor plans, and would do '
        'nothing. Write [[groups."my calls".limits]] with a limit, or plans = true, or remove it.',
    ),
    Case(
        "string for plans",
        '[groups.calls]\nmembers = ["chat"]\nplans = "pro"',
        "policy.toml:4: groups.calls.plans: found 'pro' (a string); allowed: true or false, "
        "without quotes.",
    ),
    Case(
        "plans without any plan",
        '[groups.calls]\nmembers = ["chat", "api"]\nplans = true',
        "1 mistake in the limits by configuration:\n  policy.toml:4: groups.calls.plans: found "
        "true, but there is no plan. Add a table [plans.NAME] to the policy file, or remove the",
    ),
    # -- its members
    Case(
        "no members",
        LIMITS,
        'policy.toml:2: groups.calls: "members" is missing; write for example members = ["chat", '
        '"api.ask"].',
    ),
    Case(
        "empty members",
        "[groups.calls]\nmembers = []\n" + LIMITS,
        "policy.toml:3: groups.calls.members: found an empty list; allowed: a list of blueprints "
        'and endpoints, such as ["chat", "api.ask"].',
    ),
    Case(
        "string for members",
        '[groups.calls]\nmembers = "chat"\n' + LIMITS,
        "policy.toml:3: groups.calls.members: found 'chat' (a string); allowed: a list of "
        'blueprints and endpoints, such as ["chat", "api.ask"]. Put it in brackets.',
    ),
    Case(
        "member that is a number",
        '[groups.calls]\nmembers = [\n  "chat",\n  3,\n]\n' + LIMITS,
        "policy.toml:5: groups.calls.members[1]: found 3 (a whole number); allowed: the name of a "
        "blueprint or endpoint.",
    ),
    Case(
        "member without a name",
        '[groups.calls]\nmembers = [" "]\n' + LIMITS,
        "policy.toml:3: groups.calls.members[0]: found ' ' (a string); allowed: the name of a",
    ),
    Case(
        "member named twice",
        '[groups.calls]\nmembers = [\n  "chat",\n  "api",\n  "chat",\n]\n' + LIMITS,
        "policy.toml:6: groups.calls.members[2]: found 'chat' (a string), which is a member "
        "already. Remove one of them.",
    ),
    # -- its limits
    Case(
        "unknown keyword",
        '[groups.calls]\nmembers = ["chat"]\n' + LIMITS + "\nbrust = 3",
        "policy.toml:7: groups.calls.limits[0].brust: unknown key; allowed: limit, name, strategy,",
    ),
    Case(
        "scope that is not shared",
        '[groups.calls]\nmembers = ["chat"]\n' + LIMITS + '\nscope = "llm"\nshared = false',
        "policy.toml:8: groups.calls.limits[0].shared: found false beside scope = 'llm', which "
        "names a bucket that is shared. Remove one of the two.",
    ),
    # -- limits beside each other
    Case(
        "one name twice in a group",
        '[groups.calls]\nmembers = ["chat", "api"]\n' + LIMITS + "\n"
        '[[groups.calls.limits]]\nname = "user"\nlimit = "9/hour"',
        "1 mistake in the limits by configuration:\n  policy.toml:8: groups.calls.limits[1].name: "
        "found 'user', which is also the name of policy.toml: groups.calls.limits[0]. Limits that "
        "apply together need names of their own.",
    ),
    Case(
        "name of a limit of a member",
        '[groups.calls]\nmembers = ["chat"]\n' + LIMITS + "\n"
        '[[blueprints.chat.limits]]\nname = "user"\nlimit = "9/hour"',
        "policy.toml:5: groups.calls.limits[0].name: found 'user', which is also the name of "
        "policy.toml: blueprints.chat.limits[0].",
    ),
    Case(
        "name of a limit around a member",
        '[groups.calls]\nmembers = ["chat.post"]\n' + LIMITS + "\n"
        '[[blueprints.chat.limits]]\nname = "user"\nlimit = "9/hour"',
        "policy.toml:5: groups.calls.limits[0].name: found 'user', which is also the name of "
        "policy.toml: blueprints.chat.limits[0].",
    ),
    Case(
        "name of a limit inside a member",
        '[groups.calls]\nmembers = ["chat"]\n' + LIMITS + "\n"
        '[[blueprints.chat.routes.post.limits]]\nname = "user"\nlimit = "9/hour"',
        "policy.toml:8: blueprints.chat.routes.post.limits[0].name: found 'user', which is also "
        "the name of policy.toml: groups.calls.limits[0].",
    ),
    Case(
        "name of a limit of another group",
        '[groups.calls]\nmembers = ["chat", "api"]\n' + LIMITS + "\n"
        '[groups.more]\nmembers = ["page", "chat"]\nlimits = [{name = "user", limit = "9/hour"}]',
        "policy.toml:9: groups.more.limits[0].name: found 'user', which is also the name of "
        "policy.toml: groups.calls.limits[0].",
    ),
    Case(
        "name of a limit of a plan",
        '[groups.calls]\nmembers = ["chat"]\nplans = true\n'
        'limits = [{name = "plan", limit = "9/hour"}]\n' + PLAN,
        "policy.toml:5: groups.calls.limits[0].name: found 'plan', which is also the name of "
        "policy.toml: plans.pro.limits[0].",
    ),
    Case(
        "name of a limit of the application",
        '[groups.calls]\nmembers = ["chat"]\n' + LIMITS + "\n"
        '[[application]]\nname = "user"\nlimit = "9/hour"',
        "policy.toml:5: groups.calls.limits[0].name: found 'user', which is also the name of "
        "policy.toml: application[0].",
    ),
    Case(
        "one bucket twice",
        '[groups.calls]\nmembers = ["chat"]\nlimits = ["5/minute", "9/minute"]',
        "policy.toml:4: groups.calls.limits[1]: '9/minute' applies together with '5/minute' of "
        "policy.toml: groups.calls.limits[0]:",
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_a_mistake_is_told(load: Load, mistake: Case) -> None:
    """Each mistake has its line, with what was found, what is allowed and what to do."""
    assert mistake.told in told_by(lambda: load(f"version = 1\n{mistake.text}\n"))


def test_all_mistakes_of_a_group_are_told_at_once(load: Load) -> None:
    """Those of its name, its members, its limits and its keys."""
    text = (
        'version = 1\n[groups."a/b"]\nmembers = ["chat", 1]\nplan = true\n'
        'limits = ["5/fortnight"]\nplans = 1\n' + PLAN
    )
    lines = told_by(lambda: load(text)).split("\n")
    assert [line.split(": ")[0] for line in lines[1:]] == [
        f"  policy.toml:{line}" for line in (2, 3, 4, 5, 6)
    ]


def test_names_that_never_meet_may_be_the_same(load: Load) -> None:
    """Groups without a member in common, plans that do not apply, and what is overridden."""
    load(
        'version = 1\n[groups.calls]\nmembers = ["chat"]\n' + LIMITS + "\n"
        '[groups.more]\nmembers = ["api"]\nlimits = [{name = "user", limit = "9/hour"}]\n'
        "[blueprints.chat.routes.post]\n"
        'limits = [{name = "user", limit = "9/day", override_defaults = true}]\n'
        '[blueprints.page]\nplans = true\n[[plans.pro.limits]]\nname = "user"\nlimit = "9/day"\n'
    )
