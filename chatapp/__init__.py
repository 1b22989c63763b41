"""A gateway in front of OpenAI and Anthropic, with limits by user, team, plan, model and cost."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from flask import Flask, Response, request
from flask.logging import create_logger, default_handler
from limits.storage import RedisStorage
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.middleware.proxy_fix import ProxyFix

from chatapp import catalogue, cli, guards_file, settings
from chatapp.accounts import managed_settings
from chatapp.accounts.accounts_on import AccountsOn
from chatapp.accounts.admin_keys import AdminKeys
from chatapp.accounts.authentication import (
    AccountsLostError,
    AccountsUnavailableError,
    Authenticator,
)
from chatapp.accounts.store import Accounts
from chatapp.alerts.watch import Alerts, Rules
from chatapp.alerts.webhook import Webhook
from chatapp.catalogue import Catalogue, CatalogueError, providers_file
from chatapp.catalogue.providers_file import ProvidersFile, UpstreamTable
from chatapp.database import migration
from chatapp.database.connection import Database, DatabaseUrlError
from chatapp.estimates.estimate import Estimator
from chatapp.estimates.tokens import load_tokenizer
from chatapp.ledger.call import Call
from chatapp.ledger.reports import Reports
from chatapp.ledger.stored_answers import StoredAnswers
from chatapp.ledger.writer import BackgroundLedger
from chatapp.operators import restoration
from chatapp.server.valid_files import MODEL_SETTINGS, POLICY, POLICY_FILE, PROVIDERS_FILE
from chatapp.services import EXTENSION_KEY, Services
from chatapp.traces import Traces
from chatapp.upstreams import Timeouts
from chatapp.upstreams.keys import Keys
from chatapp.upstreams.offline import Offline
from chatapp.upstreams.router import ModelUnavailableError, Router, UnknownModelError
from chatapp.upstreams.sdk import SDKUpstream, UpstreamProtocol, UpstreamSettings
from chatapp.web import (
    authentication,
    budgets,
    current_call,
    errors,
    identities,
    middleware,
    policy_keywords,
)
from chatapp.web.compression import compressed
from ratelimit_ext import (
    ConfigurationError,
    DecisionEvent,
    Event,
    Limiter,
    Policy,
    client_ip,
    embedded_uri,
    toml_line,
)

log = logging.getLogger(__name__)

BODY_MAX_BYTES: Final = 1024 * 1024
#: How long a command waits for the limits' storage.
COMMAND_DEADLINE_S: Final = 5.0
LEASE: Final = "RATELIMIT_LEASE_SECONDS"
#: The keys of other services, chatapp's among them, by the protocol of a provider.
OTHERS_KEYS: Final = {"openai": "sk-(ant|chat)-", "anthropic": "sk-(?!ant-)"}
# A quarter of a worker's threads, if these are as many as by default.
MOST_WAITING: Final = 20
# The default, in timeouts of a provider.
LEASE_TIMEOUTS: Final = 2
#: What `create_app` raises for a wrong configuration; the message is for the operator.
MISTAKES: Final = (settings.SettingsError, CatalogueError, ConfigurationError)


class Application(Flask):
    """Flask with compressed files, and without async functions: looking for one takes longer than
    most of the functions that are called in each request."""

    def send_static_file(self, filename: str) -> Response:
        return compressed(super().send_static_file(filename))

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        return func


def create_app(config: Mapping[str, object] | None = None) -> Flask:
    """The application: the one place that chooses implementations.

    ``config`` overrides the environment, which overrides the defaults. Raises one of MISTAKES.
    """
    app = Application(__name__)
    if cli.prints_help():  # which a wrong configuration does not stop
        cli.install(app, Limiter(client_ip, app=app, storage_uri="memory://"), None)
        return app
    app.url_map.merge_slashes = False  # a proxy may read //admin as another page than /admin
    app.config.update(
        MAX_CONTENT_LENGTH=BODY_MAX_BYTES,
        RATELIMIT_POLICY_FILE=str(POLICY_FILE),
        RATELIMIT_HEADERS_ENABLED=True,
        RATELIMIT_STRICT=True,
        RATELIMIT_WAITING_MAX=MOST_WAITING,
    )
    app.config.update(settings.from_environment(os.environ))
    app.config.update(config or {})
    chosen = settings.from_config(app.config)
    _add_log_handlers(app)
    _join_embedded_storage(app)
    if cli.from_command_line() and not cli.serves():
        # An operator waits longer than a request may.
        app.config.setdefault("RATELIMIT_DEADLINE_SECONDS", COMMAND_DEADLINE_S)
    # A reservation must not expire before a silent provider times out.
    app.config.setdefault(LEASE, LEASE_TIMEOUTS * chosen.provider_timeout_s)

    upstreams = providers_file.read(Path(chosen.providers_file or PROVIDERS_FILE), toml_line)
    models = catalogue.load(upstreams=upstreams)
    limiter = Limiter(client_ip)
    identities.install(limiter)
    policy_keywords.install(limiter, models)
    current_call.install(limiter)
    database = _database(app, chosen)
    accounts = Accounts(database)
    authenticator = Authenticator(accounts, _accounts_on(app, database, limiter))
    database.close()  # no open connection may cross a fork
    middleware.install(app, limiter, authenticator, chosen.trusted_hosts)
    # Before the limiter's own hook, so that undecorated views are decided after it, too.
    authentication.install(app, authenticator)
    if chosen.remember_denials:
        limiter.remember_denials(request_id=errors.current_request_id)
    if cli.needs_routes():
        _add_routes(app, limiter, chosen)
    measured = _measured(app, limiter, chosen.metrics_token)
    lease = timedelta(seconds=float(app.config[LEASE]))
    reports, estimator = Reports(database, lease=lease), Estimator(models)
    alerts = _alerts(chosen, database, reports)
    traces = _traces(app, limiter) if chosen.traces else None
    router = _router(chosen, models, upstreams, alerts, traces)
    cli.install(app, limiter, database)
    with guards_file.added(app.config, app.config.get(POLICY)):
        limiter.init_app(app)
    limiter.check_policy(app)
    if cli.serves():
        _warn_without_accounts(app, authenticator)
        _learn_outputs(estimator, reports)
        database.close()  # no open connection may cross a fork
    policy = _policy(app, limiter, chosen, models, alerts)
    app.extensions[EXTENSION_KEY] = Services(
        settings=chosen,
        lease=lease,
        policy=policy,
        limiter=limiter,
        catalogue=models,
        router=router,
        estimator=estimator,
        database=database,
        ledger=BackgroundLedger(
            database,
            keep=timedelta(days=days) if (days := chosen.ledger_keep_days) else None,
            listeners=measured,
            readers=[lambda calls: alerts.get().note_calls(calls)] if alerts else (),
        ),
        reports=reports,
        stored_answers=StoredAnswers(database),
        alerts=alerts,
        accounts=accounts,
        admin_keys=AdminKeys(database),
        authenticator=authenticator,
        traces=traces,
        managed_settings=_managed_settings(chosen.managed_settings_file, policy),
    )
    if cli.serves():
        limiter.listen(restoration.watch(app))
    if hops := chosen.trusted_hops:  # clients can forge other entries of X-Forwarded-For, -Proto
        app.wsgi_app = ProxyFix(  # type: ignore[method-assign]
            app.wsgi_app, x_for=hops, x_proto=hops, x_host=0, x_port=0, x_prefix=0
        )
    return app


def _add_routes(app: Flask, limiter: Limiter, chosen: settings.Settings) -> None:
    from chatapp.blueprints import (  # noqa: PLC0415 - not for reports
        anthropic_api,
        chat,
        health,
        me,
        models_api,
        openai_api,
        openai_stored,
        openapi,
        page,
        usage,
    )
    from chatapp.web.formats.errors import unknown_address  # noqa: PLC0415

    limiter.exempt(health.bp)
    providers = (openai_api, openai_stored, anthropic_api, models_api)
    for module in (chat, *providers, usage, me, openapi, page, health):
        app.register_blueprint(module.bp)
    if chosen.sign_in_issuer:
        from chatapp.blueprints import claude_code, sign_in  # noqa: PLC0415 - loads cryptography

        app.register_blueprint(claude_code.bp)
        app.after_request_funcs[anthropic_api.bp.name].append(claude_code.add_budget)
        app.register_blueprint(sign_in.blueprint(limiter, chosen))
    if not chosen.admin_token:
        errors.install(app, unrouted=unknown_address)
        return
    from chatapp.blueprints import admin  # noqa: PLC0415 - not without a token
    from chatapp.blueprints.management import routes as management  # noqa: PLC0415

    for bp in (admin.bp, management.bp):
        app.register_blueprint(bp)
    errors.install(
        app, unrouted=lambda e: management.unrouted(e) or admin.unrouted(e) or unknown_address(e)
    )


def _learn_outputs(estimator: Estimator, reports: Reports) -> None:
    """Have estimates begin with what the ledger knows. Without it, they learn from new calls."""
    try:
        estimator.learn(reports.recent_outputs())
    except SQLAlchemyError as error:
        log.warning("Estimates start without the ledger's calls: %s", error)


def _join_embedded_storage(app: Flask) -> None:
    """Let a `flask` command use the storage of the gunicorn that runs in this directory."""
    if not cli.from_command_line() or app.config.get("RATELIMIT_STORAGE_URI"):
        return
    directory = os.environ.get("RATELIMIT_EMBEDDED_DIR") or Path(app.instance_path) / "ratelimit"
    if uri := embedded_uri(directory):
        app.config["RATELIMIT_STORAGE_URI"] = uri
    elif not cli.serves():
        # Set explicitly, so that Flask-Limiter does not log a warning in each command.
        app.config["RATELIMIT_STORAGE_URI"] = "memory://"


def _policy(
    app: Flask,
    limiter: Limiter,
    chosen: settings.Settings,
    models: Catalogue,
    alerts: Alerts | None,
) -> Policy | None:
    """The policy, checked, with its budgets watched. Without limits the extension reads none."""
    file, policy = app.config[POLICY], limiter.policy(app)
    warns = policy_keywords.has_warnings(policy)
    if alerts is not None and (alerts.rules.at or warns):
        limiter.listen(budgets.listener(alerts, limiter))
    if warns:
        app.after_request(lambda response: budgets.warn(limiter, response))
    if not file:
        return policy
    if policy is None:
        with app.app_context():
            policy = limiter.operators.check_policy_file(file)
    identities.check_plans(chosen.plans, policy.plans, policy_file=file)
    granted = {group: text.partition("/")[0] for group, text in chosen.sign_in_groups.items()}
    identities.check_plans(granted, policy.plans, policy_file=file, of="SIGN_IN_GROUPS")
    if cli.serves():  # `ratelimit check` and the server's log have them
        for sentence in policy_keywords.without_effect(policy, models):
            log.warning("%s", sentence)
        if unlimited := identities.without_plan(policy, guards_file.calls(app.view_functions)):
            log.warning("%s: %s", file, unlimited)
    return policy


def _managed_settings(file: str | None, policy: Policy | None) -> managed_settings.Rows:
    """The settings on the machines of people who sign in, checked. No command needs them."""
    if not (file and cli.serves()):
        return {}
    of = "MANAGED_SETTINGS_FILE"
    try:
        rows = managed_settings.read(file)
    except ValueError as error:
        raise settings.SettingsError(f"CHATAPP_{of}: {error}") from error
    if policy is not None:
        plans = managed_settings.plans_of(rows)
        identities.check_plans(plans, policy.plans, policy_file="the policy", of=of)
    return rows


def _add_log_handlers(app: Flask) -> None:
    """Have everything logged by Flask's handler, which writes the time and the level."""
    if cli.serves():  # a command's warnings are for its reader
        create_logger(app)  # unless the process has configured its logging
    # Flask-Limiter's logger has a handler that drops everything.
    for name in ("flask-limiter", "ratelimit_ext"):
        logger = logging.getLogger(name)
        if default_handler not in logger.handlers:
            logger.addHandler(default_handler)
            logger.addFilter(errors.add_request_id)


def _database(app: Flask, chosen: settings.Settings) -> Database:
    try:
        database = Database(chosen.database_url or f"sqlite:///{app.instance_path}/chatapp.db")
        if not cli.command_line().startswith("chat db upgrade "):  # which says what it did
            migration.prepare(database)
    except (DatabaseUrlError, SQLAlchemyError, OSError) as error:
        raise settings.SettingsError(f"DATABASE_URL: {error}") from error
    return database


def _accounts_on(app: Flask, database: Database, limiter: Limiter) -> AccountsOn:
    def storage() -> RedisStorage | None:
        engine = limiter.storage if limiter.initialized else None
        return engine if isinstance(engine, RedisStorage) else None

    return AccountsOn(
        database,
        storage,
        is_down=lambda: limiter.operators.storage_is_down,
        prefix=app.config.get("RATELIMIT_KEY_PREFIX") or "",
    )


def _warn_without_accounts(app: Flask, authenticator: Authenticator) -> None:
    try:
        if not authenticator.required:
            app.logger.warning(identities.SPOOFING_WARNING)
    except AccountsLostError:
        pass  # it has said so
    except AccountsUnavailableError:
        app.logger.warning("The database is unavailable: all requests are refused until it is back")


def _alerts(chosen: settings.Settings, database: Database, reports: Reports) -> Alerts | None:
    rules = Rules(
        at=chosen.alert_at,
        times=chosen.alert_unusual_times,
        least_micro_usd=int(chosen.alert_unusual_usd * 1_000_000),
    )
    webhook = None
    if chosen.alert_webhook_url and chosen.alert_webhook_secret:
        key = settings.signing_key(chosen.alert_webhook_secret)
        webhook = Webhook(chosen.alert_webhook_url, key)
    if not (rules.at or rules.times):
        return None
    return Alerts(database, reports, rules, webhook=webhook)


def _measured(app: Flask, limiter: Limiter, token: str | None) -> list[Callable[[Call], None]]:
    """Publish metrics, if there is a token. Returns what has to learn of each call."""
    if not token:
        return []
    from chatapp.blueprints import metrics  # noqa: PLC0415 - not without a token
    from chatapp.web.metrics import Metrics  # noqa: PLC0415

    figures = Metrics(limiter)
    app.register_blueprint(metrics.blueprint(figures, token))
    return [figures.count_call]


def _traces(app: Flask, limiter: Limiter) -> Traces:
    try:
        traces = Traces()
    except ImportError as error:
        raise settings.SettingsError(
            f"CHATAPP_TRACES needs a package that is not installed ({error}). Run: pip install "
            "opentelemetry-sdk"
        ) from error
    app.wsgi_app = traces.wrap(app.wsgi_app)  # type: ignore[method-assign]
    app.before_request(lambda: traces.name_request(str(request.url_rule or "")))

    @limiter.listen
    def note_decision(event: Event) -> None:
        if isinstance(event, DecisionEvent):
            denied = [verdict.charge.limit.label for verdict in event.decision.denials]
            traces.note_decision(admitted=event.reason is None, denied_by=denied, again=event.again)

    return traces


def _router(
    chosen: settings.Settings,
    models: Catalogue,
    upstreams: ProvidersFile,
    alerts: Alerts | None,
    traces: Traces | None,
) -> Router:
    names = upstreams.upstreams if cli.needs_upstreams() else ()
    routed = [_upstream(name, chosen, models, upstreams, traces) for name in names]
    try:
        router = Router(
            (*routed, Offline()),
            models,
            default_model=chosen.default_model,
            max_tokens=chosen.max_tokens,
            fallbacks=chosen.fallback_models,
            on_refused_key=lambda key: alerts.get().note_refused_key(key) if alerts else None,
        )
    except (ModelUnavailableError, UnknownModelError) as error:
        missing = getattr(error, "missing", None)
        remedy = f" Or set {missing}." if missing else ""
        raise settings.SettingsError(f"{' or '.join(MODEL_SETTINGS)}: {error}{remedy}") from error
    if cli.serves():
        for upstream in routed:
            try:
                upstream.prepare()
            except (ValueError, OSError) as error:
                raise settings.SettingsError(
                    f"The client of the upstream {upstream.name} cannot be made: {error}. Check "
                    "HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR."
                ) from error
        load_tokenizer(router.default_model)
    return router


def _warn_of_misspelt(missing: Iterable[str], file: ProvidersFile) -> None:
    """Log variables such as OPENAI_KEY, which are like the one of a key that is missing."""
    read = {key.name for table in file.upstreams.values() for key in table.keys}
    unread = [w for w in os.environ if re.search("(?<!_ADMIN_)KEY", w) and w not in read]
    for name in missing:
        similar = [word for word in unread if word.startswith(name.partition("_")[0])]
        for word in get_close_matches(name, similar, n=1, cutoff=0.75):
            log.warning("%s is not set, but %s is, which nothing reads. Rename it.", name, word)


def _warn_of_others_keys(table: UpstreamTable) -> None:
    """Log keys of another service, unless its address is configured with them."""
    if table.base_url is None and not os.environ.get(f"{table.protocol.upper()}_BASE_URL"):
        for key in table.keys:
            if re.match(OTHERS_KEYS[table.protocol], key.secret or ""):
                log.warning("%s holds a key of another service than %s.", key.name, table.protocol)


def _upstream(
    name: str,
    chosen: settings.Settings,
    models: Catalogue,
    file: ProvidersFile,
    traces: Traces | None,
) -> SDKUpstream:
    table = file.upstreams[name]
    keys = Keys(name, table.keys)
    if cli.serves():
        if keys.missing and chosen.providers_file:
            log.warning("Upstream %s: there is no key in %s", name, ", ".join(keys.missing))
        _warn_of_misspelt(keys.missing, file)
        _warn_of_others_keys(table)
    return SDKUpstream(
        protocol(table.protocol),
        UpstreamSettings(
            name=name,
            table=table,
            patterns=file.patterns(name, models.names_of(name)),
            keys=keys,
            timeouts=_timeouts(name, chosen, file),
            trace_headers=traces.headers if traces else None,
        ),
    )


def protocol(name: str) -> UpstreamProtocol:
    """Return the protocol that a providers file calls by this name."""
    from chatapp.upstreams import anthropic, openai  # noqa: PLC0415 - not for reports

    return {"openai": openai.PROTOCOL, "anthropic": anthropic.PROTOCOL}[name]


def _timeouts(name: str, chosen: settings.Settings, file: ProvidersFile) -> Timeouts:
    """The timeouts of an upstream. CatalogueError if one is longer than a provider may take: the
    lease of a reservation and the end of a worker rely on that."""
    given, most_s = file.upstreams[name].timeouts, chosen.provider_timeout_s
    for key, value in given:
        if value is not None and value > most_s:
            place = ("upstreams", name, "timeouts", key)
            remedy = f"write at most {most_s:g}, or raise CHATAPP_PROVIDER_TIMEOUT_S"
            raise CatalogueError(file.located(place, f"is {value:g}; {remedy}"))
    return Timeouts(
        connect_s=given.connect_s or chosen.provider_connect_timeout_s,
        first_byte_s=min(given.first_byte_s or chosen.provider_first_byte_timeout_s, most_s),
        read_s=given.read_s or most_s,
    )
