"""Installing on machines that lack what builds the C++ engine. pip fetches the build requirements from PyPI, so these
tests need a network and are slow.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ("cmake", "cmake3", "ctest", "cpack", "ninja", "ninja-build", "samu", "make", "gmake")
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++")

pytestmark = pytest.mark.slow


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """What an installation needs of the working tree, without anything that was built in it."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("native", "inazuma"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return tmp_path


def path_without(folder: Path, names: tuple[str, ...]) -> str:
    """A PATH of one folder: links to all programs of this PATH but those `names`, in any version of theirs."""
    folder.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        for program in Path(place).glob("*"):
            link = folder / program.name
            if program.name.split("-")[0].rstrip("0123456789.") in names or program.name in names or link.is_symlink():
                continue
            link.symlink_to(program)
    return str(folder)


def pip(*arguments: str, **environment: str) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_cmake_and_ninja_come_by_themselves(sources: Path) -> None:
    path = path_without(sources / "bin", TOOLS)
    assert all(shutil.which(name, path=path) is None for name in TOOLS)
    if shutil.which("c++", path=path) is None:
        pytest.skip("no C++ compiler")
    pip("wheel", "--no-deps", "--wheel-dir", str(sources / "wheels"), str(sources), PATH=path)
    (wheel,) = (sources / "wheels").iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.startswith("inazuma/ops/cpu/libinazuma_cpu.") for name in names)


SAY_AND_RUN = """
import sys
sys.path[:0] = sys.argv[1:]
import inazuma, torch
from inazuma.ops import dsa, engine_for
assert inazuma.__file__.startswith(sys.argv[1]), inazuma.__file__
q, k = torch.randn(1, 4, 2, 8), torch.randn(1, 4, 1, 8)
for _ in range(2):
    result = dsa(q, k, k, q, k[:, :, 0], q[..., 0], topk=2, stage="sparse")
print(engine_for(q, k), bool(result.out.isfinite().all()))
"""


def test_without_a_compiler_the_reference_answers_and_one_line_says_so(sources: Path) -> None:
    path, folder = path_without(sources / "bin", COMPILERS), sources / "installed"
    pip("install", "--no-deps", "--target", str(folder), str(sources), PATH=path, CC="/bin/false", CXX="/bin/false")
    assert not list(folder.rglob("libinazuma_cpu.*"))
    # -S: this environment's own editable installation must not answer in its place.
    command = [sys.executable, "-S", "-c", SAY_AND_RUN, str(folder), sysconfig.get_path("purelib")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.stdout.split() == ["reference", "True"], done.stderr
    told = [line for line in done.stderr.splitlines() if "C++ engine is missing" in line]
    assert len(told) == 1 and "reference" in told[0], done.stderr
