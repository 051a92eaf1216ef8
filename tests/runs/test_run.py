"""The run folder and the ledger, killed processes included."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import numpy
import pytest

import inazuma
from inazuma.errors import UserError
from inazuma.runs import Run, check_ledger
from inazuma.runs.lines import whole_lines


def create(path: Path, **more) -> Run:
    return Run.create(path, command=["inazuma", "train", "x.yaml"], config={"a": {"b": 1}}, **more)


def events(folder: Path) -> list[tuple[str, str]]:
    return [(line["run"], line["event"]) for line in check_ledger(folder / "ledger.jsonl")]


def test_the_manifest_says_how_the_run_came_about(tmp_path):
    create(tmp_path / "r", seeds={"data": 3}, inputs={"shard": "ab"})
    manifest = json.loads((tmp_path / "r" / "manifest.json").read_text())
    assert manifest["command"] == ["inazuma", "train", "x.yaml"] and manifest["config"] == {"a": {"b": 1}}
    assert manifest["seeds"] == {"data": 3} and manifest["inputs"] == {"shard": "ab"}
    assert manifest["packages"]["numpy"] == numpy.__version__
    assert manifest["machine"]["python"] == platform.python_version()
    assert manifest["machine"]["memory"] > 1 << 28 and 1 <= manifest["machine"]["cores"] <= os.cpu_count()
    assert manifest["status"] == "running" and manifest["started"].endswith("+00:00")
    assert manifest["code"]["version"] == inazuma.__version__


def test_the_manifest_names_the_revision_of_a_checkout(tmp_path):
    """In a checkout of its own, so that the answer is known: first clean, then changed, then merely copied there."""
    package = tmp_path / "checkout" / "inazuma"
    package.mkdir(parents=True)
    here = Path(inazuma.__file__).parent
    for file in [*here.glob("*.py"), *(here / "runs").glob("*.py")]:
        (package / file.relative_to(here)).parent.mkdir(exist_ok=True)
        (package / file.relative_to(here)).write_bytes(file.read_bytes())

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(package.parent), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def code() -> dict:
        program = "import json; from inazuma.runs.surroundings import code; print(json.dumps(code()))"
        installed = {"PYTHONPATH": sysconfig.get_path("purelib")}
        environment = os.environ | installed | {"GIT_DIR": "/nowhere", "PYTHONDONTWRITEBYTECODE": "1"}
        # -S: the import hook of an editable install would find the installed package before the one in this folder.
        command = [sys.executable, "-S", "-c", program]
        done = subprocess.run(command, cwd=package.parent, env=environment, check=True, capture_output=True, text=True)
        return json.loads(done.stdout)

    git("init", "-q")
    assert code() == {"version": inazuma.__version__, "revision": None, "clean": None}
    git("add", ".")
    git("commit", "-q", "-m", "all")
    assert code() == {"version": inazuma.__version__, "revision": git("rev-parse", "HEAD"), "clean": True}
    (package / "errors.py").write_bytes((here / "errors.py").read_bytes() + b"\n")
    assert code()["clean"] is False


def test_metrics_keep_values_that_are_not_finite_as_json(tmp_path):
    run = create(tmp_path / "r")
    run.metric(step=1, loss=float("nan"), layers=[1.5, float("-inf")], nested={"x": float("inf")})
    run.metric(step=2, loss=0.1 + 0.2, name="稲妻")
    lines = (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(lines[0], parse_constant=refuse)["loss"] == "nan"
    assert list(run.metrics()) == [
        {"step": 1, "loss": "nan", "layers": [1.5, "-inf"], "nested": {"x": "inf"}},
        {"step": 2, "loss": 0.1 + 0.2, "name": "稲妻"},
    ]
    assert list(create(tmp_path / "empty").metrics()) == []


def test_a_torn_last_line_is_ignored_and_a_damaged_one_is_named(tmp_path):
    run = create(tmp_path / "r")
    for step in range(3):
        run.metric(step=step)
    file = tmp_path / "r" / "metrics.jsonl"
    whole = file.read_bytes()
    for cut in range(1, len(b'{"step": 2}\n') + 1):
        file.write_bytes(whole[:-cut])
        assert [line["step"] for line in run.metrics()] == [0, 1]
    file.write_bytes(whole.replace(b'{"step": 1}', b'{"step": 1'))
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: a damaged line"):
        list(run.metrics())


def test_a_resumed_run_writes_the_dropped_lines_again(tmp_path):
    run = create(tmp_path / "r")
    for step in range(5):
        run.metric(step=step, loss=step / 3)
    file = tmp_path / "r" / "metrics.jsonl"
    before = file.read_bytes()
    file.write_bytes(before + b'{"step": 5, "lo')
    again = Run.open(tmp_path / "r")
    again.truncate_metrics(lambda line: line["step"] <= 2)
    assert file.read_bytes() == b"".join(before.splitlines(keepends=True)[:3])
    again.resumed(step=3)
    for step in (3, 4):
        again.metric(step=step, loss=step / 3)
    assert file.read_bytes() == before
    assert Run.open(tmp_path / "r").manifest["resumed"][0]["step"] == 3


def test_resuming_closes_a_torn_line(tmp_path):
    run = create(tmp_path / "r")
    run.metric(step=0)
    with open(tmp_path / "r" / "metrics.jsonl", "ab") as handle:
        handle.write(b'{"st')
    run.resumed()
    run.metric(step=1)
    assert [line["step"] for line in run.metrics()] == [0, 1]


def test_finish_hashes_the_artefacts(tmp_path):
    run = create(tmp_path / "r")
    run.metric(step=0)
    files = ["model/a.bin", "records/x.jsonl", "sparse/manifest.json"]
    ignored = ["tensorboard/e", "checkpoints/1/a", "sparse/checkpoints/2/b", "sparse/ledger.jsonl", ".partial-1-x"]
    for name in [*files, *ignored]:
        (tmp_path / "r" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "r" / name).write_text(name)
    time.sleep(0.02)
    run.finish("finished")
    manifest = Run.open(tmp_path / "r").manifest
    assert manifest["artefacts"] == {
        name: hashlib.sha256((tmp_path / "r" / name).read_bytes()).hexdigest() for name in [*files, "metrics.jsonl"]
    }
    assert manifest["status"] == "finished" and 0.02 <= manifest["seconds"] < 10


def test_a_resumed_run_is_running_again_and_adds_its_time(tmp_path):
    run = create(tmp_path / "r")
    time.sleep(0.02)
    run.finish("failed", error="loss is not finite at step 3")
    assert Run.open(tmp_path / "r").manifest["error"] == "loss is not finite at step 3"
    first = run.manifest["seconds"]
    run = Run.open(tmp_path / "r")
    run.resumed(step=2)
    manifest = Run.open(tmp_path / "r").manifest
    assert manifest["status"] == "running" and not {"error", "ended", "artefacts"} & manifest.keys()
    time.sleep(0.02)
    run.finish("finished")
    assert run.manifest["seconds"] >= first + 0.02
    assert events(tmp_path) == [("r", "started"), ("r", "failed"), ("r", "resumed"), ("r", "finished")]


def test_a_folder_in_use_is_kept_without_force(tmp_path):
    create(tmp_path / "r").metric(step=0)
    with pytest.raises(UserError, match="--force"):
        create(tmp_path / "r")
    assert (tmp_path / "r" / "metrics.jsonl").exists() and len(events(tmp_path)) == 1
    create(tmp_path / "r", force=True)
    assert not (tmp_path / "r" / "metrics.jsonl").exists()
    assert events(tmp_path) == [("r", "started"), ("r", "started")]


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        Run.open(tmp_path)
    for text, message in [("{", "not valid JSON"), ("{}", "not a run's manifest"), ("[]", "not a run's manifest")]:
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=message):
            Run.open(tmp_path)


def test_runs_nest_each_with_a_ledger_of_its_own(tmp_path):
    outer = create(tmp_path / "demo")
    inner = create(tmp_path / "demo" / "sparse")
    inner.finish("finished")
    outer.finish("finished")
    assert events(tmp_path) == [("demo", "started"), ("demo", "finished")]
    assert events(tmp_path / "demo") == [("sparse", "started"), ("sparse", "finished")]


# ----------------------------------------------------------------------------------------------------- ledger


def test_the_chain_breaks_where_a_line_was_changed_or_removed(tmp_path):
    for name in "abc":
        create(tmp_path / name).finish("finished")
    ledger = tmp_path / "ledger.jsonl"
    lines = list(whole_lines(ledger))
    # Independently of the code: each line carries the hash of the one before.
    for line, following in itertools.pairwise(lines):
        assert json.loads(following)["previous"] == hashlib.sha256(line).hexdigest()
    ledger.write_bytes(b"".join(lines).replace(b'"finished"', b'"failed"', 1))
    with pytest.raises(UserError, match=r"ledger\.jsonl:3: the chain breaks"):
        check_ledger(ledger)
    ledger.write_bytes(b"".join(lines[1:]))
    with pytest.raises(UserError, match=r"ledger\.jsonl:1: the chain breaks"):
        check_ledger(ledger)
    ledger.write_bytes(lines[0] + b"{\n" + b"".join(lines[1:]))
    with pytest.raises(UserError, match=r"ledger\.jsonl:2: a damaged line"):
        check_ledger(ledger)


def test_a_torn_ledger_line_is_cut_off_by_the_next(tmp_path):
    create(tmp_path / "a")
    with open(tmp_path / "ledger.jsonl", "ab") as handle:
        handle.write(b'{"previous": "1')
    create(tmp_path / "b")
    assert events(tmp_path) == [("a", "started"), ("b", "started")]


def test_a_killed_run_stays_visible_and_processes_share_the_ledger(tmp_path):
    program = (
        "import sys; from pathlib import Path; from inazuma.runs import Run\n"
        "for i in range(8):\n"
        "    run = Run.create(Path(sys.argv[1]) / f'{sys.argv[2]}{i}', command=['x'], config={})\n"
        "    if i < 7: run.finish('finished')\n"
        "print('ready', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [subprocess.Popen([*command, name], **pipes) for name in "xyz"]
    for process in processes:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    found = events(tmp_path)
    assert len(found) == 3 * (8 + 7)
    last = dict(found)
    assert {name for name, event in last.items() if event == "started"} == {"x7", "y7", "z7"}
