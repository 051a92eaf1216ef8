"""The command line's shell: verbs, help, exit codes, and one line for every error that is not a bug."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import inazuma
from inazuma import cli
from inazuma.errors import RunError, UserError
from inazuma.runs import Run, produce

ROOT = Path(inazuma.__file__).parent.parent


def test_help_names_every_verb_and_loads_nothing_heavy():
    program = (
        "import sys; from inazuma.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print(*{'torch', 'transformers', 'pyarrow', 'tensorboard'} & sys.modules.keys(), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.strip() == ""
    for verb in ("data", "presets", "train", "generate", "convert", "inspect", "demo", "bench", "verify"):
        assert f"\n    {verb} " in done.stdout


@pytest.mark.parametrize("verb", cli.VERBS)
def test_each_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([verb, "--help"])
    assert caught.value.code == 0
    assert f"usage: inazuma {verb}" in capsys.readouterr().out


def test_the_version(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out == f"inazuma {inazuma.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["no-such-verb"], ["verify"], ["verify", "x", "--no-such-option"]])
def test_a_wrong_command_line_exits_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2 and "error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("a.yaml: stage: unknown key"), 2, "inazuma: error: a.yaml: stage: unknown key\n"),
        (UserError("two\nlines"), 2, "inazuma: error: two lines\n"),
        (RunError("loss is not finite at step 3"), 1, "inazuma: error: loss is not finite at step 3\n"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.bin"),
            1,
            "inazuma: error: [Errno 28] No space left on device: 'x.bin'\n",
        ),
        (KeyboardInterrupt(), 130, "inazuma: interrupted\n"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(error, code, message, monkeypatch, capsys):
    monkeypatch.setattr("inazuma.cli.verify.run", lambda arguments: (_ for _ in ()).throw(error))
    assert cli.main(["verify", "x"]) == code
    assert capsys.readouterr().err == message


def test_a_bug_shows_its_traceback(monkeypatch):
    monkeypatch.setattr("inazuma.cli.verify.run", lambda arguments: {}["bug"])
    with pytest.raises(KeyError):
        cli.main(["verify", "x"])


def test_a_verb_is_a_module(monkeypatch, capsys):
    """What CONTRIBUTING promises of a new verb: three names in a module, one name in VERBS."""
    verb = types.ModuleType("inazuma.cli.hello")
    verb.SUMMARY = "greet"
    verb.add_arguments = lambda parser: parser.add_argument("name")
    verb.run = lambda arguments: print("hello", arguments.name) or 7
    monkeypatch.setitem(sys.modules, "inazuma.cli.hello", verb)
    monkeypatch.setattr(cli, "VERBS", ("hello",))
    assert cli.main(["hello", "world"]) == 7
    assert capsys.readouterr().out == "hello world\n"


@pytest.fixture
def run(tmp_path) -> Run:
    run = Run.create(tmp_path / "r", command=["x"], config={})
    (run.path / "facts.json").write_text('{"context": 1024, "ratios": [0.5, 0.25]}')
    evidence = {name: {"formula": "value", "record": "facts.json", "field": name} for name in ("context", "ratios")}
    produce(run.path, evidence)
    run.finish("finished")
    return run


def test_verify_prints_a_table_and_exits_by_what_it_found(run, capsys):
    assert cli.main(["verify", str(run.path)]) == 0
    printed = capsys.readouterr().out
    assert "1024" in printed and "[0.5, 0.25]" in printed and "all 6 checks hold" in printed
    (run.path / "facts.json").write_text('{"context": 2048, "ratios": [0.5, 0.25]}')
    assert cli.main(["verify", str(run.path)]) == 1
    printed = capsys.readouterr().out
    assert "2 of 6 checks failed: context, facts.json" in printed and "2048" in printed


def test_verify_as_json(run, capsys):
    assert cli.main(["verify", str(run.path), "--json"]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert checks["context"] == {
        "name": "context",
        "reported": 1024,
        "recomputed": 1024,
        "ok": True,
        "problem": None,
    }
    assert all(check["ok"] for check in checks.values())


def test_verify_of_something_else_is_the_persons_mistake(tmp_path, capsys):
    assert cli.main(["verify", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_who_leaves_early_sees_no_traceback(run, options):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "inazuma", "verify", str(run.path), *options]
    done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
