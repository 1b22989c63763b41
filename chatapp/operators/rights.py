"""Who an operator is, by what they present, and what they may do: by scopes, and for a team's
administrator within the team."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from chatapp.accounts.admin_keys import AdminKey
from chatapp.accounts.api_key import ADMIN_PREFIX, parse, public_id_of
from chatapp.accounts.store import ApiKey, Owner, User
from chatapp.operators import amounts, arguments, callers
from chatapp.services import current_services
from chatapp.settings import Scope
from ratelimit_ext import OperatorError

ALL: Final[Scope] = "all"
#: Who makes a change by the token alone, in the log of operators.
NAMELESS: Final = "admin token"
#: The scope that changes limits and blocks, by what they count. What is not here needs ``all``.
SCOPE_OF: Final[Mapping[str, Scope]] = {
    **dict.fromkeys(("user", "key", "api_key", "ip", "session"), "limits"),
    "team": "teams",
    **dict.fromkeys(("model", "upstream"), "providers"),
}


@dataclass(frozen=True, slots=True)
class Operator:
    """Who acts, as the log of changes names them; with ``all``, in every scope. An operator with a
    ``team`` sees and changes what is that team's alone."""

    by: str
    scopes: frozenset[str] = frozenset({ALL})
    team: str | None = None
    key_id: str = ""

    def may(self, scope: Scope, *, of_team: bool) -> bool:
        """Return whether they may act there; ``of_team``: a team's administrator may, too."""
        return not self.scopes.isdisjoint({scope, ALL}) and (of_team or self.team is None)

    def check(self, scope: Scope, *, of_team: bool = False) -> None:
        """OperatorError unless they may."""
        if self.may(scope, of_team=of_team):
            return
        if self.scopes.isdisjoint({scope, ALL}):
            has = ", ".join(sorted(self.scopes))
            raise forbidden(f"This needs the scope {scope}; your key has: {has}.")
        raise forbidden(f"Keys of the team {self.team} cannot do this; ask an operator.")

    def check_team(self, name: str | None) -> None:
        """OperatorError for another team than their own."""
        if self.team not in {None, name}:
            raise forbidden(
                f"Keys of the team {self.team} cannot see other teams; ask an operator."
            )

    def check_user(self, name: str, *, may_be_new: bool = False) -> None:
        """OperatorError for a user who is not in their team, whether there is one or not."""
        if self.team is None:
            return
        user = current_services().accounts.user(name)
        if user.team_name != self.team if user else not may_be_new:
            raise forbidden(f"{name} is not in the team {self.team} of your key.")

    def check_powers(self, *, people: object = None, files: object = False) -> None:
        """OperatorError unless they may give a key these powers. So they neither change a key that
        acts for users nor get its secret, nor that of a key that may name files."""
        if people is not None:
            self.check("users")
        if files and self.team is not None:
            raise forbidden(
                f"Keys of the team {self.team} give no right to files, which all teams share; ask "
                "an operator."
            )

    def check_key(
        self, public_id: str, *, changes: bool = False, shows_secret: bool = False
    ) -> None:
        """OperatorError unless they may see a key, change it, or get a secret with its powers."""
        row = current_services().accounts.find(public_id_of(public_id))
        if self.team is not None and (row is None or not self.sees_key(*row)):
            raise forbidden(f"Key {public_id} does not belong to the team {self.team}.")
        if row is not None and (changes or shows_secret):
            self.check_powers(people=row[0].people, files=shows_secret and row[0].files)

    def sees_key(self, key: ApiKey, user: User) -> bool:
        """Return whether they see a key of that user: no team has one that acts for users."""
        return self.team is None or (user.team_name == self.team and key.people is None)

    def check_kind(self, kind: str) -> None:
        """OperatorError unless they may change limits and blocks of identities of that kind."""
        self.check(SCOPE_OF.get(kind, ALL))

    def check_limits(self, identity: str, name: str | None) -> None:
        """OperatorError unless they may change what limits count of an identity, or its amount: of
        all limits that operators reset together, or those of that name."""
        if self.may(ALL, of_team=False):
            return
        for row in callers.shared_operators().rows():
            if row.limit.visible if name is None else row.name == name:
                means = callers.ChatCallers().identity
                if counted := [k for k in row.kinds if means(k, identity)]:
                    self.check_kind(min(counted, key=lambda k: SCOPE_OF.get(k) != "limits"))

    def team_of_key(self, user: str, *, plan: str | None, team: str | None) -> str | None:
        """Return the team of a new key's user: of a team's administrator, theirs. OperatorError for
        a new user without the scope of users, and for a user or a plan that they cannot give."""
        services = current_services()
        row = services.accounts.user(user)
        if row is None:
            self.check("users", of_team=True)
        if self.team is None:
            return team
        self.check_user(user, may_be_new=True)
        self.check_team(team or self.team)
        if plan not in {None, row.plan if row else services.default_plan}:
            raise forbidden(f"Keys of the team {self.team} cannot set plans; ask an operator.")
        return self.team

    def visible_users(self, *names: str) -> Sequence[User]:
        return current_services().accounts.users(*names, team=self.team)

    def check_owner(self, owner: Owner, name: str) -> None:
        """OperatorError unless they may change amounts of that user or key. A team's administrator
        changes none of the team."""
        if owner == "user":
            self.check_user(name)
        elif owner == "key":
            self.check_key(name)
        else:
            self.check_kind(owner)

    def check_amounts(
        self, owner: Owner, texts: Iterable[tuple[str, str]], *, plan: str | None
    ) -> None:
        """OperatorError for an amount that is more than the policy's and, in dollars, more than
        their team's budget of that time, where it has one."""
        if self.team is None:
            return
        limits = amounts.known_limits(owner, plan=plan)
        budgets = _budgets(self.team)
        for name, text in texts:
            usual = limits[name].parsed[0]
            new = usual.with_amount(text)
            budget = budgets.get((new.unit, new.period_us), 0)
            most = max(0 if limits[name].optional and budget else usual.amount, budget)
            if new.amount > most:
                raise forbidden(
                    f"{name}={text} is more than your team {self.team} can give. Write a smaller "
                    "amount, or ask an operator to raise the team's."
                )


def _budgets(team: str) -> dict[tuple[str | None, int], int]:
    """Return the amounts of a team's own, by unit and period."""
    row = current_services().accounts.team(team)
    lasting = row.limits if row else None
    texts = amounts.OwnersAmounts().of("team", team, lasting, with_ends=False)
    limits = amounts.known_limits("team", plan=None)
    parsed = [
        limits[name].parsed[0].with_amount(text) for name, text in texts.items() if name in limits
    ]
    return {(limit.unit, limit.period_us): limit.amount for limit in parsed}


def forbidden(sentence: str) -> OperatorError:
    return OperatorError("forbidden", sentence)


def operator_with(text: str) -> Operator | None:
    """Return the operator with that key; None for any other text. The shared token, the first key,
    and the secrets of others are compared in constant time."""
    token = current_services().settings.admin_token
    if token is not None and hmac.compare_digest(text.encode("utf-8", "replace"), token.encode()):
        return Operator(NAMELESS)
    presented = parse(text, ADMIN_PREFIX)
    if presented is None:
        return None
    key = current_services().admin_keys.find(presented.public_id)
    if key is None or not presented.has_secret(key.secret_sha256):
        return None
    return operator_of(key)


def operator_named(identity: str) -> Operator | None:
    """Return the operator whom a trusted proxy has identified; None for one without rights."""
    rights, name = current_services().settings.admin_sign_on, identity.lower()
    domain = f"*@{name.rpartition('@')[2]}" if "@" in name else "*"
    text = next((rights[pattern] for pattern in (name, domain, "*") if pattern in rights), None)
    if text is None or not name:
        return None
    words = text.split()
    team = next((word.removeprefix("team:") for word in words if word.startswith("team:")), None)
    scopes = frozenset(word for word in words if not word.startswith("team:"))
    name = arguments.name(identity, most=arguments.USER)
    return Operator(f"{name} (single sign-on{amounts.of_team(team)})", scopes, team)


def operator_of(key: AdminKey | None) -> Operator | None:
    """Return the operator of a key as it is now; None if it is revoked or has expired."""
    if key is None or not key.is_usable:
        return None
    by = f"{key.name} (admin key {key.public_id}{amounts.of_team(key.team)})"
    return Operator(by, frozenset(key.scopes), team=key.team, key_id=key.public_id)
