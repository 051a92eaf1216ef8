"""The house: a folder imports only from floors below its own; and what else the code must not say."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "inazuma"

FLOORS = {
    # The files directly under inazuma/ are floor 0, except this one, which only starts the command line.
    "__main__": 6,
    # Plugged into other people's programs and imported by nobody here.
    "integrations": 6,
    "cli": 5,
    "rightsize": 4,
    "demo": 4,
    "bench": 4,
    "train": 3,
    "evaluate": 3,
    "serve": 3,
    "model": 2,
    "data": 2,
    "report": 2,
    # `inazuma.load` is the model's, wherever it is called from.
    "load": 2,
    "ops": 1,
    "runs": 1,
}
NO_TORCH = ("runs", "data", "report")
LONGEST = 600
SOURCES = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".html", ".css", ".js", ".cpp", ".h", ".cu"}
HIDDEN = {"build", "dist", "runs"}

MODULES = sorted(path.relative_to(ROOT) for path in PACKAGE.rglob("*.py"))


def imports(source: str, path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, also inside functions; `from a import b` counts as a.b."""
    package = list(path.with_suffix("").parts)[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def place(name: str) -> tuple[str, int]:
    """The folder (or root module) of a dotted name or path in the package, and its floor."""
    folder = name.split(".")[1] if "." in name else ""
    if folder in FLOORS:
        return folder, FLOORS[folder]
    if folder and (PACKAGE / folder).is_dir():
        raise AssertionError(f"inazuma/{folder} has no floor in tests/test_house.py; see CONTRIBUTING.md")
    return "", 0


def wrong_arrows(source: str, path: Path) -> list[str]:
    """The imports in `source`, as the module at `path`, that do not point to a floor below or to its own folder."""
    own, floor = place(".".join(path.with_suffix("").parts))
    wrong = []
    for line, name in imports(source, path):
        if name == "inazuma" or name.startswith("inazuma."):
            folder, other = place(name)
            if folder != own and other >= floor:
                wrong.append(f"{path}:{line}: floor {floor} imports {name} on floor {other}")
    return wrong


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_arrows_point_down(path):
    if path == Path("inazuma/__init__.py"):
        return  # Its lazy `load` is the package's face; that importing it stays light is tested in cli/test_shell.py.
    assert not wrong_arrows((ROOT / path).read_text(encoding="utf-8"), path)


@pytest.mark.parametrize(
    ("path", "source", "wrong"),
    [
        ("inazuma/runs/a.py", "from inazuma.model import x", True),
        ("inazuma/runs/a.py", "import inazuma.ops", True),
        ("inazuma/runs/a.py", "from inazuma import ops", True),
        ("inazuma/runs/a.py", "from ..ops.dispatch import dsa", True),
        ("inazuma/runs/a.py", "from .. import errors, ops", True),
        ("inazuma/runs/a.py", "def f():\n    from inazuma.data import build", True),
        ("inazuma/runs/a.py", "from . import run\nfrom .run import Run\nimport inazuma.errors\nimport inazuma", False),
        ("inazuma/data/a.py", "from inazuma.runs import Run", False),
        ("inazuma/data/a.py", "from inazuma.model.config import ModelConfig", True),
        ("inazuma/model/families/a.py", "from ..config import ModelConfig\nfrom ...ops import dsa", False),
        ("inazuma/model/families/a.py", "from ...train import recipe", True),
        ("inazuma/train/a.py", "from inazuma.serve import x", True),
        ("inazuma/cli/a.py", "from inazuma.demo import x\nfrom inazuma.runs import Run", False),
        ("inazuma/cli/a.py", "from inazuma.integrations import x", True),
        ("inazuma/model/a.py", "from inazuma import load", True),
        ("inazuma/config.py", "from inazuma.runs import Run", True),
        ("inazuma/config.py", "from inazuma.errors import UserError", False),
        ("inazuma/__main__.py", "from inazuma.cli import main", False),
    ],
)
def test_the_rule_itself(path, source, wrong):
    assert bool(wrong_arrows(source, Path(path))) == wrong


@pytest.mark.parametrize("folder", NO_TORCH)
def test_floors_without_torch(folder):
    paths = [path for path in MODULES if path.parts[1] == folder]
    named = [
        f"{path}:{line}"
        for path in paths
        for line, name in imports((ROOT / path).read_text(encoding="utf-8"), path)
        if name.split(".")[0] == "torch"
    ]
    assert paths and not named
    # And none by a detour.
    modules = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]
    program = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_operators_know_no_modules_or_parameters():
    forbidden = {"Module", "Parameter", "Buffer", "ModelConfig"}
    found = []
    for path in (PACKAGE / "ops").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = (getattr(node, "attr", None), getattr(node, "id", None), getattr(node, "name", None))
            if forbidden & set(names):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found


def sources() -> Iterator[Path]:
    for top in ROOT.iterdir():
        if top.name not in HIDDEN and not top.name.startswith("."):
            for path in top.rglob("*") if top.is_dir() else [top]:
                if path.suffix in SOURCES or path.name == "Makefile":
                    yield path


def test_no_file_is_too_long():
    code = [path for path in sources() if path.suffix in {".py", ".cpp", ".h", ".cu", ".js"}]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in code}
    assert lengths and not {path: length for path, length in lengths.items() if length > LONGEST}


def test_no_file_names_somebodys_machine():
    # Written in pieces, or this file would name them.
    machine = re.compile("/(wo" + "rk|tm" + "p/probe|ro" + "ot)/")
    found = []
    for path in sources():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if machine.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found
