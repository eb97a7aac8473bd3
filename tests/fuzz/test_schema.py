"""What the service's own OpenAPI says may be sent, and what it says may not: the answers are as it says."""

import re
from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from ..running import Running
from .mutations import MODEL

pytestmark = pytest.mark.slow

CHECKS = [
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]
"""A code is one that the schema names, and the answer is what it says of that code."""
EXAMPLES = 20
"""Of each operation, of those that fit the schema and of those that do not."""


def ask(operation: Any, mode: GenerationMode, seed: int) -> set[int]:
    """Send EXAMPLES of `operation`; the codes of the answers, each of which is as the schema says."""
    seen = set()

    @seeded(seed)
    @settings(max_examples=EXAMPLES, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode), st.booleans())
    def send(case: Any, known: bool) -> None:
        if known and "model" in operation.path:
            case.path_parameters["model"] = MODEL
        response = case.call()
        seen.add(response.status_code)
        assert response.status_code < 500 or response.status_code in (503, 504), response.text
        case.validate_response(response, checks=CHECKS)

    with suppress(Unsatisfiable):  # nothing that is asked so could be asked wrongly
        send()
    return seen


def test_each_operation_answers_as_the_schema_says(service: Running, seed: int) -> None:
    schema = schemathesis.openapi.from_url(f"{service.address}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 20
    for operation in operations:
        seen = ask(operation, GenerationMode.POSITIVE, seed) | ask(operation, GenerationMode.NEGATIVE, seed)
        print(operation.label, sorted(seen))
    assert service.client.get("/healthz").status_code == 200
    assert not re.search(r"Traceback|^\S+ (error|critical)", service.log.read_text(), re.MULTILINE)
