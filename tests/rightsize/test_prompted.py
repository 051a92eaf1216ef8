"""A large model behind an address: rate limits, a server that dies midway, and outputs that were recorded elsewhere."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from inazuma.errors import RunError, UserError
from inazuma.files import read_json
from inazuma.rightsize import ladder
from inazuma.rightsize import prompted as asking
from inazuma.rightsize.climb import sample
from inazuma.rightsize.table import Example
from inazuma.rightsize.task import Costs, Prompted, Task
from inazuma.runs.lines import read_lines
from tests.rightsize.planted import noisy, write


class Server:
    """Answers chat completions by the keyword, the first time with 429, and stops after `most` answers."""

    def __init__(self, most: int):
        self.most, self.answered, self.limited, self.bodies = most, 0, 0, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if outer.limited == 0:
                    outer.limited += 1
                    return self.reply(429, {"error": "slow down"})
                if outer.answered >= outer.most:
                    return self.reply(503, {"error": "gone"})
                outer.answered += 1
                outer.bodies.append(body)
                label = "complaint" if "refund" in body["messages"][-1]["content"] else "praise"
                content = json.dumps({"label": label})
                usage = {"prompt_tokens": 40, "completion_tokens": 5}
                self.reply(200, {"choices": [{"message": {"content": content}}], "usage": usage})

            def reply(self, status, value):
                content = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("retry-after", "0")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


@pytest.fixture
def server():
    one = Server(most=30)
    yield one
    one.server.shutdown()


def climb(task, out, **options):
    return ladder.rightsize(task, out, command=["x"], say=lambda line: None, **options)


def test_an_address_that_dies_midway_loses_nothing(tmp_path, server):
    path = write(tmp_path / "a.csv", noisy(120, share=0.05))
    prompted = Prompted(address=server.address, model="large", retries=1)
    task = Task(data=path, rungs=("majority", "prompted"), prompted=prompted, trials=1, margin=0.1)
    with pytest.raises(RunError, match="--resume goes on"):
        climb(task, tmp_path / "run")
    assert server.limited == 1  # it waited and asked again
    paid = len(list(read_lines(tmp_path / "run" / asking.SAID)))
    assert paid == 30
    server.most = 10_000
    result = climb(task, tmp_path / "run", resume=True)
    sizes = read_json(tmp_path / "run" / "data.json")["overview"]["splits"]
    # 12 validation items in the tuning, 12 of calibration, 30 of the test: each was asked once.
    assert server.answered == sizes["validation"] + sizes["calibration"] + sizes["test"]
    [_, rung] = result["rungs"]
    assert rung["name"] == "prompted" and rung["quality"]["value"] > 0.85
    assert rung["cost_terms"]["machines"] == 0 and rung["latency_ms"]["p50"] > 0
    body = server.bodies[0]
    assert body["response_format"]["json_schema"]["schema"]["properties"]["label"]["enum"] == ["complaint", "praise"]
    assert [message["role"] for message in body["messages"]] == ["system", *["user", "assistant"] * 4, "user"]


def test_recorded_outputs_are_judged_like_any_rung(tmp_path):
    rows = noisy(160, share=0.05)
    path = write(tmp_path / "a.csv", rows)
    lines = [
        {"text": row["text"], "output": "complaint" if "refund" in row["text"] else "praise", "milliseconds": 800.0}
        for row in rows
    ]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = Task(data=path, rungs=("majority", "prompted"), prompted=Prompted(outputs=tmp_path / "said.jsonl"))
    [_, rung] = climb(task, tmp_path / "run")["rungs"]
    assert rung["quality"]["value"] > 0.85 and rung["latency_ms"]["p50"] >= 800
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:20]))
    with pytest.raises(UserError, match="has no output for the text"):
        climb(task, tmp_path / "again")


def test_what_is_told_is_said_how_to_add(tmp_path):
    task = Task(data=write(tmp_path / "a.csv", noisy(120)), rungs=("majority", "tfidf", "prompted", "lora"))
    climb(task, tmp_path / "run")
    skipped = read_json(tmp_path / "run" / "ladder.json")["skipped"]
    assert "prompted: {folder: ...}" in skipped["prompted"] and "lora: FOLDER" in skipped["lora"]


def test_an_answer_that_was_cut_off_is_no_wrong_one():
    task = Task(data="a.csv", kind="generation", prompted=Prompted(address="http://localhost", model="large"))
    choice = {"message": {"content": "the first ha"}, "finish_reason": "length"}
    cut = asking.Asked(task, None, [], {}, None)._read({"reply": {"choices": [choice]}, "milliseconds": 1.0})
    found = sample(task, "test", Example(1, "a text", "the first half"), cut)
    assert (found.outcome, found.score, found.stop_reason) == ("truncated", 0.0, "length")


def test_a_price_of_tokens_that_nobody_counted_is_no_cost_of_zero():
    prompted = Prompted(address="http://localhost", model="large")
    line = {"reply": {"choices": [{"message": {"content": "yes"}}]}, "milliseconds": 1.0}
    free, priced = (
        asking.Asked(Task(data="a.csv", kind="generation", prompted=prompted, costs=costs), None, [], {}, None)
        for costs in (Costs(), Costs(api_output_mtok=2.0))
    )
    assert free._read(line).output_tokens == 0
    with pytest.raises(UserError, match="says no completion_tokens"):
        priced._read(line)
    told = {**line, "reply": {**line["reply"], "usage": {"prompt_tokens": 3, "completion_tokens": 5}}}
    assert priced._read(told)[2:4] == (3, 5)
