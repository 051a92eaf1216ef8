"""schemathesis: requests made from our own OpenAPI description, such as it allows and such as it forbids.

No answer is a 500, each has a status and a body that the description or, for what it leaves open, OpenAI's client
knows.
"""

from __future__ import annotations

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from tests.serve.clients.conftest import KEY

TYPES = {
    "/v1/completions": Completion,
    "/v1/chat/completions": ChatCompletion,
    "/v1/embeddings": CreateEmbeddingResponse,
    "/v1/responses": Response,
}
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="session")
def description(tiny_server):
    return schemathesis.openapi.from_url(f"{tiny_server}/openapi.json", headers={"Authorization": f"Bearer {KEY}"})


schema = schemathesis.pytest.from_fixture("description")


@schema.parametrize()
@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_described(case):
    if isinstance(case.body, dict):  # what is asked for may be long; that is not what is tried here
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            if isinstance(case.body.get(name), int) and case.body[name] > 4:
                case.body[name] = 4
    response = case.call_and_validate(checks=CHECKS, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
    kind = TYPES.get(case.operation.path) if case.method == "POST" else None
    if kind and response.status_code == 200 and "json" in response.headers["content-type"][0]:
        kind.model_validate(json.loads(response.content), strict=True)
