"""litellm, which speaks to servers as OpenAI's API is spoken, its own way."""

from __future__ import annotations

import asyncio

import pytest

from tests.serve.clients.conftest import KEY
from tests.serve.conftest import NAME

QUESTION = [{"role": "user", "content": "the capital of Japan?"}]


@pytest.fixture(scope="module")
def litellm():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the network for prices
        import litellm

        yield litellm


@pytest.fixture
def at(tiny_server) -> dict[str, str]:
    return {"api_base": f"{tiny_server}/v1", "api_key": KEY, "max_retries": 0}


def test_chats_whole_streamed_and_async(litellm, at):
    options = {"model": f"openai/{NAME}", "messages": QUESTION, "seed": 5, "max_tokens": 8, **at}
    whole = litellm.completion(**options)
    assert whole.usage.completion_tokens <= 8 and whole.choices[0].finish_reason in ("stop", "length")
    chunks = list(litellm.completion(**options, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.usage.completion_tokens for chunk in chunks if getattr(chunk, "usage", None)] == [
        whole.usage.completion_tokens
    ]
    assert asyncio.run(litellm.acompletion(**options)).choices[0].message.content == text


def test_texts_and_vectors(litellm, at):
    text = litellm.text_completion(model=f"text-completion-openai/{NAME}", prompt="the", max_tokens=4, **at)
    assert text.usage.completion_tokens <= 4
    vectors = litellm.embedding(model=f"openai/{NAME}", input=["the", "capital"], **at)
    assert [len(one["embedding"]) for one in vectors.data] == [40, 40]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"model": "openai/another"}, "NotFoundError"),
        ({"messages": [{"role": "user", "content": "the " * 5000}]}, "ContextWindowExceededError"),
        ({"temperature": 9}, "BadRequestError"),
        ({"api_key": "another"}, "AuthenticationError"),
    ],
)
def test_errors_are_understood(litellm, at, change, kind):
    """litellm tells errors apart by their codes and words; a fallback to a longer context depends on it."""
    with pytest.raises(getattr(litellm, kind)):
        litellm.completion(**{"model": f"openai/{NAME}", "messages": QUESTION, **at} | change)
