"""`chat policy`: what operators do with policy.toml before they reload."""

from __future__ import annotations

from pathlib import Path

import click
from flask import current_app
from flask.cli import AppGroup

from chatapp.services import current_services
from chatapp.settings import SettingsError
from chatapp.valid_policy import POLICY_FILE, configured_file
from chatapp.web.identities import check_plans
from ratelimit_ext import ConfigurationError

policy = AppGroup("policy", help="Check the policy file.")


@policy.command("check")
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
def check(file: Path | None) -> None:
    """Check FILE, or the configured policy, as a start does; exit with 1 if it has mistakes.

    Every mistake is printed with its line. Nothing is changed, and the storage is not needed.
    """
    default = current_app.config.get(POLICY_FILE) or Path(current_app.root_path) / "policy.toml"
    file = file or configured_file(default)
    services = current_services()
    try:
        checked = services.limiter.check_policy_file(current_app, file)
        check_plans(services.settings.plans, tuple(checked.plans), policy_file=str(file))
    except (ConfigurationError, SettingsError) as mistakes:
        raise click.ClickException(str(mistakes)) from mistakes
    limits, plans = len(checked.all_limits()), ", ".join(checked.plans) or "none"
    click.echo(f"{file} is valid: {limits} limits; plans: {plans}.")
