"""`inazuma bench serve`: what a server is asked, and that the figures follow from the records."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

from inazuma import cli
from inazuma.bench import comparison, serve
from inazuma.bench.comparison import FIGURES, TRANSFORMERS, Server, run_comparison
from inazuma.errors import UserError
from inazuma.files import read_json
from inazuma.model.convert import convert
from inazuma.runs import verify
from inazuma.runs.lines import encode_line, read_lines
from tests.model.convert.models import model_of
from tests.serve.conftest import serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    model_of("llama", folder, max_position_embeddings=1024).save(folder / "tiny")
    return folder / "tiny"


@pytest.fixture(scope="module")
def gguf(folder: Path) -> Path:
    file = folder.parent / "tiny.F32.gguf"
    convert(folder, file, to="gguf")
    return file


@pytest.fixture(scope="module")
def small() -> Iterator[pytest.MonkeyPatch]:
    """Short answers, few clients."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"NEW": 12, "PROMPT": 30, "CLIENTS": 2}.items():
            patch.setattr(serve, name, value)
        yield patch


def theirs(folder: Path, turns: int) -> list[dict]:
    return [
        {"server": TRANSFORMERS, "turn": turn, "figure": figure, "tokens": 10 + turn, "seconds": 2.0}
        for turn in range(turns)
        for figure in FIGURES
    ]


@pytest.fixture(scope="module")
def finished(folder, gguf, small) -> tuple[Path, dict, list]:
    """A run whose servers are two of this process."""
    out = folder.parent / "run"
    with serving(folder) as one, serving(folder) as other, pytest.MonkeyPatch.context() as patch:

        @contextmanager
        def start(live):
            yield live.url

        lives = {"a": one, "b.c, 2 threads": other}
        two = [Server(name, partial(start, live), {"logit_bias": {"0": -100}}) for name, live in lives.items()]
        patch.setattr(comparison, "servers", lambda *_: two)
        patch.setattr(comparison, "transformers_records", theirs)
        result = run_comparison(out, folder=folder, gguf=gguf, turns=3, command=["inazuma", "bench", "serve"])
        asked = one.engine.requests[:]
    return out, result, asked


def test_figures_follow_from_the_records_of_every_turn(finished, folder, gguf) -> None:
    run, result, asked = finished
    assert result == read_json(run / "result.json")
    assert [server["name"] for server in result["servers"]] == ["a", "b.c, 2 threads", TRANSFORMERS]
    lines = list(read_lines(run / "records/turns.jsonl"))
    assert len(lines) == 3 * 3 * 3
    for server in result["servers"]:
        for figure in FIGURES:
            rates = [
                line["tokens"] / line["seconds"]
                for line in lines
                if (line["server"], line["figure"]) == (server["name"], figure)
            ]
            assert len(rates) == 3 and server[figure]["median"] == pytest.approx(statistics.median(rates), 1e-12)
            assert server[figure]["range"] == pytest.approx([min(rates), max(rates)], 1e-12)
    tokens = {(line["server"], line["turn"], line["figure"]): line["tokens"] for line in lines}
    # A turn of one server is a short answer, one of NEW tokens, a prompt of PROMPT words, and NEW tokens for CLIENTS.
    first = asked[:5]
    assert [request.max_tokens for request in first] == [8, 12, 1, 12, 12]
    assert tokens["a", 0, "decode"] == 11 and tokens["a", 0, "clients"] == 24
    assert tokens["a", 0, "prefill"] == len(first[2].prompt) > 30
    # No prompt comes twice: a cache would answer for the server.
    assert len({tuple(request.prompt) for request in asked}) == len(asked) == 15
    assert result["instructions"] == torch.backends.cpu.get_cpu_capability()
    manifest = read_json(run / "manifest.json")
    assert manifest["status"] == "finished" and manifest["config"]["turns"] == 3
    assert {str(gguf), str(folder / "model.safetensors")} < set(manifest["inputs"])


def test_a_record_that_was_changed_is_found(finished, tmp_path) -> None:
    run = shutil.copytree(finished[0], tmp_path / "run")
    assert all(check.ok for check in verify(run)) and cli.main(["verify", str(run)]) == 0
    path = run / "records/turns.jsonl"
    lines = list(read_lines(path))
    for line in lines:
        if line["server"] == "a" and line["figure"] == "prefill":
            line["seconds"] /= 2
    path.write_bytes(b"".join(map(encode_line, lines)))
    wrong = {check.name for check in verify(run) if not check.ok}
    assert wrong == {"servers.0.prefill.median", "servers.0.prefill.range", "records/turns.jsonl"}
    assert cli.main(["verify", str(run)]) == 1


def test_mistakes_are_told_before_anything_is_measured(folder, gguf, tmp_path) -> None:
    def compare(**changes):
        given = {"folder": folder, "gguf": gguf, "turns": 1, "command": []} | changes
        run_comparison(tmp_path / "run", **given)

    for changes, said in (
        ({"turns": 0}, "turns"),
        ({"gguf": folder / "none.gguf"}, "none.gguf: no such file"),
        ({"folder": folder / "none"}, "no such model folder"),
    ):
        with pytest.raises(UserError, match=said):
            compare(**changes)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/kept").touch()
    with pytest.raises(UserError, match="run"):
        compare()
    assert (tmp_path / "run/kept").exists()


@pytest.mark.slow
def test_every_server_takes_part(folder, gguf, small, tmp_path, capsys) -> None:
    out = str(tmp_path / "run")
    assert cli.main(["bench", "serve", str(folder), "--gguf", str(gguf), "--turns", "1", "--out", out, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [server["name"] for server in result["servers"]] == [
        "inazuma none",
        "inazuma bfloat16",
        "inazuma int8",
        "inazuma int4",
        "llama.cpp F32, 1 threads",
        "llama.cpp F32, 2 threads",
        TRANSFORMERS,
    ]
    assert all(server[figure]["median"] > 0 for server in result["servers"] for figure in FIGURES)
    assert cli.main(["verify", out]) == 0
