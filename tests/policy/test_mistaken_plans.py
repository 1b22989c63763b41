"""What a plan cannot be is told."""

from __future__ import annotations

import pytest

from tests.policy.case import Case
from tests.policy.conftest import Load, told_by

MISTAKES = [
    Case(
        "plan without limits",
        '[blueprints.chat]\nplans = true\n[plans.pro]\ntitle = "Pro"',
        "policy.toml:4: plans.pro: the plan has no limits. Write [[plans.pro.limits]] with a name "
        'and a limit; to allow anything, a limit such as "1000000000/day".',
    ),
    Case(
        "limit of a plan without a name",
        '[blueprints.chat]\nplans = true\n[[plans.pro.limits]]\nlimit = "9/day"',
        'policy.toml:4: plans.pro.limits[0]: "name" is missing; the limit of a plan needs one, so '
        "that usage is kept when a caller changes to a plan with the same name in it. Write "
        'name = "plan".',
    ),
    Case(
        "string for the limit of a plan",
        '[blueprints.chat]\nplans = true\n[plans.pro]\nlimits = ["9/day"]',
        'policy.toml:5: plans.pro.limits[0]: "name" is missing;',
    ),
    Case(
        "one name twice in a plan",
        "[blueprints.chat]\nplans = true\n[plans.pro]\n"
        'limits = [{limit = "9/day", name = "a"}, {limit = "9/hour", name = "a"}]',
        "policy.toml:5: plans.pro.limits[1].name: found 'a', which is also the name of "
        "policy.toml: plans.pro.limits[0].",
    ),
    Case(
        "name of a limit where the plan applies",
        '[[blueprints.chat.limits]]\nname = "a"\nlimit = "5/minute"\n'
        "[blueprints.chat.routes.post]\nplans = true\n"
        '[plans.pro]\nlimits = [{limit = "9/day", name = "a"}]',
        "policy.toml:3: blueprints.chat.limits[0].name: found 'a', which is also the name of "
        "policy.toml: plans.pro.limits[0].",
    ),
    Case(
        "next plan that is not there",
        '[blueprints.chat]\nplans = true\n[plans.free]\nnext = "por"\n'
        'limits = [{limit = "9/day", name = "a"}]\n'
        '[plans.pro]\nlimits = [{limit = "99/day", name = "a"}]',
        "policy.toml:5: plans.free.next: found 'por' (a string); there are the plans 'free', "
        "'pro'. Did you mean 'pro'?",
    ),
    Case(
        "next plan that is a number",
        "[blueprints.chat]\nplans = true\n[plans.free]\nnext = 2\n"
        'limits = [{limit = "9/day", name = "a"}]',
        "policy.toml:5: plans.free.next: found 2 (a whole number); allowed: the name of a plan.",
    ),
    Case(
        "plans in a circle",
        '[blueprints.chat]\nplans = true\n[plans.a]\nnext = "b"\n[plans.b]\nnext = "a"',
        "policy.toml:5: plans.a.next: the plans go in a circle: 'a' to 'b' to 'a'. Remove the last "
        "plan's next.",
    ),
    Case(
        "plan that is its own next",
        '[blueprints.chat]\nplans = true\n[plans.a]\nnext = "a"',
        "policy.toml:5: plans.a.next: the plans go in a circle: 'a' to 'a'.",
    ),
    Case(
        "title that is a number",
        "[blueprints.chat]\nplans = true\n[plans.pro]\ntitle = 1",
        "policy.toml:5: plans.pro.title: found 1 (a whole number); allowed: a text in quotes.",
    ),
    Case(
        "name of a plan",
        '[blueprints.chat]\nplans = true\n[plans."Größer"]\ntitle = "Größer"',
        "policy.toml:4: plans.\"Gr\\u00f6\\u00dfer\": found 'Größer' (a string); allowed: a name",
    ),
    Case(
        "plans without any plan",
        "[blueprints.chat]\nplans = true",
        "policy.toml:3: blueprints.chat.plans: found true, but there is no plan. Add a table "
        "[plans.NAME] to the policy file, or remove the key.",
    ),
    Case(
        "name of a plan for true, without any plan",
        '[blueprints.chat]\nplans = "pro"',
        "policy.toml:3: blueprints.chat.plans: found 'pro' (a string); allowed: true or false, "
        "without quotes.\n  policy.toml:3: blueprints.chat.plans: found 'pro' (a string), but "
        "there is no plan. Add a table [plans.NAME] to the policy file, or remove the key.",
    ),
    Case(
        "plans that apply nowhere",
        '[plans.pro]\nlimits = [{limit = "9/day", name = "a"}]',
        "policy.toml:2: plans.pro: the plans would apply nowhere. Write plans = true in the table "
        "of a blueprint, such as [blueprints.chat].",
    ),
    Case(
        "plans by name",
        '[blueprints.chat]\nplans = ["pro"]',
        "policy.toml:3: blueprints.chat.plans: found a list; allowed: true or false, without",
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_a_mistake_is_told(load: Load, mistake: Case) -> None:
    """Each mistake has its line, with what was found, what is allowed and what to do."""
    assert mistake.told in told_by(lambda: load(f"version = 1\n{mistake.text}\n"))
