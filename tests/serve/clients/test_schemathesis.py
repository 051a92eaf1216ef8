"""schemathesis: requests made from our own OpenAPI description, such as it allows and such as it forbids.

No answer is a 500, each has a status and a body that the description or, for what it leaves open, OpenAI's client
knows.
"""

from __future__ import annotations

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from schemathesis import GenerationMode
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


def judge(case) -> None:
    if isinstance(case.body, dict):  # what is asked for may be long; that is not what is tried here
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            if isinstance(case.body.get(name), int) and case.body[name] > 4:
                case.body[name] = 4
    response = case.call_and_validate(checks=CHECKS, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
    kind = TYPES.get(case.operation.path) if case.method == "POST" else None
    if kind and response.status_code == 200 and "json" in response.headers["content-type"][0]:
        kind.model_validate(json.loads(response.content))


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_answer_is_described(description, mode):
    tried = 0
    for operation in (found.ok() for found in description.get_all_operations()):
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue
        limits = settings(
            max_examples=6,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        limits(given(case=operation.as_strategy(generation_mode=mode))(judge))()
        tried += 1
    assert tried > 6
