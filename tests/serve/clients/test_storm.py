"""A short storm; `benchmarks/stress.py` has the long one."""

from __future__ import annotations

import pytest

from inazuma.bench import storm
from inazuma.bench.serve import inazuma_server


def test_fifty_clients_some_of_whom_leave_or_send_nonsense(folder, tmp_path):
    log = tmp_path / "log"
    with log.open("w") as file, inazuma_server(folder, "--cache-memory", "20MB", log=file) as url:
        found = storm.weather(url, clients=50, seconds=7, warm=3)
    assert not found["wrong"]
    assert found["requests"] > 100
    got = found["codes"]
    assert set(got) == {"whole", "stream", "leaves", "leaves within its body", "malformed", "oversize"}
    assert got["whole"]["200"] and got["stream"]["200"] and got["leaves"]["left"]
    assert set(got["malformed"]) <= {"400", "415"} and set(got["oversize"]) <= {"400", "413"}
    assert found["cache_tokens_used"]["peak"] > found["cache_tokens_used"]["after"] == 0
    assert found["open_files"]["after"] <= found["open_files"]["before"] + 2
    assert found["leak_bytes"] < 30e6
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [(500, b"", "500"), (400, b"oops", "without an error's body"), (429, b'{"error": {}}', "without")],
)
def test_what_is_not_proper_is_wrong(status, body, said):
    seen = storm.Storm("", "", 1)
    seen.got("whole", status, (200, 400, 429), 0.0, body)
    assert len(seen.wrong) == 1 and said in seen.wrong[0]
