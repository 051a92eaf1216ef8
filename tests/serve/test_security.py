"""The gate: who may ask, how much, and from where."""

from __future__ import annotations

import http.client
import json
import logging
import re

import openai
import pytest

from inazuma.errors import UserError
from inazuma.serve.security import Security, is_loopback, read_keys
from tests.serve.conftest import NAME, serving, until
from tests.serve.test_errors import COMPLETION, told


@pytest.fixture(scope="module")
def guarded(folder):
    security = Security(
        keys=("first", "second"), loopback=False, body_limit=1000, per_minute=60, allow_origins=("http://page.example",)
    )
    with serving(folder, security) as live:
        yield live


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_is_needed(guarded):
    for headers in ({}, bearer("third"), bearer("firs"), {"Authorization": "first"}, {"Authorization": "Basic first"}):
        response = guarded.post("/v1/completions", COMPLETION, headers=headers)
        told(response, 401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
        told(guarded.get("/metrics", headers=headers), 401)
        told(guarded.get("/v1/models", headers=headers), 401)
    assert not guarded.engine.requests
    for key in ("first", "second"):
        assert guarded.post("/v1/completions", COMPLETION, headers=bearer(key)).status_code == 200
    assert guarded.client(api_key="first").models.list().data[0].id == NAME
    with pytest.raises(openai.AuthenticationError):
        guarded.client(api_key="third").models.list()


def test_health_needs_none(guarded):
    assert guarded.get("/health").status_code == 200


def test_bodies_have_a_limit(guarded):
    long = json.dumps(COMPLETION | {"prompt": "x" * 2000}).encode()
    told(guarded.post_text("/v1/completions", long, headers=bearer("first")), 413)

    def pieces():
        yield from (long[i : i + 100] for i in range(0, len(long), 100))

    with guarded.http() as http:  # chunked: nobody says beforehand how long it is
        headers = bearer("first") | {"content-type": "application/json"}
        told(http.post("/v1/completions", content=pieces(), headers=headers), 413)


def test_responses_of_others_are_not_seen(guarded):
    response = guarded.client(api_key="first").responses.create(model=NAME, input="?", max_output_tokens=1)
    with pytest.raises(openai.NotFoundError):
        guarded.client(api_key="second").responses.retrieve(response.id)
    assert guarded.client(api_key="first").responses.retrieve(response.id).id == response.id


def test_other_origins(guarded):
    ask = {"Origin": "http://page.example", "Access-Control-Request-Method": "POST"}
    with guarded.http() as http:
        allowed = http.request("OPTIONS", "/v1/completions", headers=ask)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "http://page.example"
        refused = http.request("OPTIONS", "/v1/completions", headers=ask | {"Origin": "http://evil.example"})
        assert "access-control-allow-origin" not in refused.headers
        answered = http.post("/v1/completions", json=COMPLETION, headers=bearer("first") | {"Origin": ask["Origin"]})
        assert answered.headers["access-control-allow-origin"] == "http://page.example"
        unknown = http.post("/v1/completions", json=COMPLETION, headers={"Origin": ask["Origin"]})
        assert unknown.status_code == 401, "a page may read why it is refused"
        assert unknown.headers["access-control-allow-origin"] == "http://page.example"


def test_no_cors_by_default(live):
    response = live.post("/v1/completions", COMPLETION, headers={"Origin": "http://page.example"})
    assert "access-control-allow-origin" not in response.headers


def test_each_key_has_its_rate(folder):
    with serving(folder, Security(keys=("a", "b"), per_minute=3)) as live:
        codes = [live.post("/v1/completions", COMPLETION, headers=bearer("a")).status_code for _ in range(4)]
        assert codes == [200, 200, 200, 429]
        response = live.post("/v1/completions", COMPLETION, headers=bearer("a"))
        told(response, 429, "rate_limit_exceeded")
        assert 1 <= int(response.headers["retry-after"]) <= 20
        assert live.post("/v1/completions", COMPLETION, headers=bearer("b")).status_code == 200
        assert live.get("/v1/models", headers=bearer("a")).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("127.1.2.3:1", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("192.168.1.1", 403),
        ("0.0.0.0:8000", 403),
        ("", 403),
    ],
)
def test_only_loopback_names(live, host, status):
    connection = http.client.HTTPConnection(live.url.removeprefix("http://"))
    connection.putrequest("GET", "/v1/models", skip_host=True)
    connection.putheader("Host", host)
    connection.endheaders()
    assert connection.getresponse().status == status
    connection.close()


def test_keys_guard_instead_of_names(guarded):
    assert guarded.get("/v1/models", headers=bearer("first") | {"Host": "server.example"}).status_code == 200


def test_log_has_one_line_and_no_prompt(live, caplog):
    with caplog.at_level(logging.INFO, "inazuma.serve"):
        live.post("/v1/completions", COMPLETION | {"prompt": "a secret thing"})
        live.get("/v1/models/%0Aforged")
        until(lambda: len(caplog.records) == 2)  # a line is written behind its answer
    lines = [record.getMessage() for record in caplog.records]
    prompt = len(live.ids("a secret thing"))
    assert re.fullmatch(rf"POST /v1/completions 200 {prompt}\+2 tokens \d+\.\d{{3}} s", lines[0])
    assert "\n" not in lines[1] and lines[1].startswith("GET /v1/models/%0Aforged 404")
    assert not any("secret" in line for line in lines)


def test_prompts_are_logged_where_wanted(folder, caplog):
    with serving(folder, log_prompts=True) as live, caplog.at_level(logging.INFO, "inazuma.serve"):
        live.post("/v1/completions", COMPLETION | {"prompt": "a secret\nthing"})
    assert '"a secret\\nthing"' in caplog.text


def test_keys_come_from_everywhere(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\nc\n\n d \n")
    assert read_keys(["a", "b", "a"], file, "e, f") == ("a", "b", "c", "d", "e", "f")
    assert read_keys([], None, None) == read_keys([], None, "") == ()
    empty = tmp_path / "empty"
    empty.write_text("\n")
    for keys, path in ((["a b"], None), (["é"], None), ([""], None), ([], empty), ([], tmp_path / "none")):
        with pytest.raises(UserError):
            read_keys(keys, path, None)


def test_what_loopback_is():
    assert all(map(is_loopback, ("localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "example.org", "10.0.0.1", "", "127.0.0.1.nip.io")))
