"""Requests that are made of the management API's description, valid and not."""

import contextlib
import os
from collections import Counter
from typing import Any

import pytest
from flask import Flask
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from chatapp.blueprints.management.routes import bp
from tests.chatapp.blueprints.conftest import TOKEN

CASES = int(os.environ.get("OPENAPI_CASES", "10"))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_no_request_is_answered_otherwise_than_described(app: Flask, mode: str) -> None:
    """No answer is a 500, and each has the described type and body."""
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
    )

    headers = {"Authorization": f"Bearer {TOKEN}"}
    schema = schemathesis.openapi.from_wsgi(f"{bp.url_prefix}/openapi.json", app, headers=headers)
    answered: Counter[int] = Counter()
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=CASES,
            derandomize="OPENAPI_CASES" not in os.environ,
            database=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode[mode]))
        def answers_as_described(case: Any) -> None:
            checks = (not_a_server_error, content_type_conformance, response_schema_conformance)
            answer = case.call_and_validate(headers=headers, checks=list(checks))
            answered[answer.status_code] += 1

        with contextlib.suppress(Unsatisfiable):  # it takes nothing that could be invalid
            answers_as_described()
    assert answered.keys() >= ({200, 404, 422} if mode == "POSITIVE" else {422}), answered
