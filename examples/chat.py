"""A chat service with three layers of limits. With Redis, in this directory:

REDIS=redis://127.0.0.1:6379 gunicorn --workers 2 chat:app
"""

import os
import sys
from pathlib import Path

from flask import Blueprint, Flask, request

from ratelimit_ext import Limiter, client_ip

if "REDIS" not in os.environ:
    sys.exit("REDIS is not set. Set it to the address of Redis, as redis://127.0.0.1:6379.")
PLANS = {"key-of-bob": "pro"}  # by API key; everyone else has the default plan
limiter = Limiter(client_ip, storage_uri=os.environ["REDIS"], headers_enabled=True)
chat = Blueprint("chat", __name__, url_prefix="/chat")
models = Blueprint("models", __name__, url_prefix="/models")


@limiter.identity("caller")
def caller():
    return request.headers.get("X-API-Key") or request.headers.get("X-User") or client_ip()


@limiter.plan_loader
def plan():
    return PLANS.get(request.headers.get("X-API-Key"), "starter")


@chat.post("/")
@limiter.group("calls")  # the caller's plan; how much is in chat.toml
def send():
    return {"reply": "Hello"}


@chat.post("/summary")
@limiter.group("calls")
@limiter.limit("3/minute", strategy="sliding-window", key_func=caller, name="summary")
def summarise():
    return {"reply": "A summary"}


@models.get("/")
def list_models():
    return {"models": ["small", "large"]}


app = Flask(__name__)
app.config["RATELIMIT_POLICY_FILE"] = Path(__file__).with_name("chat.toml")
app.register_blueprint(chat)
app.register_blueprint(models)
limiter.init_app(app)
limiter.check_policy(app)  # a misspelt name stops the start
