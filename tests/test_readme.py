"""The documents: every number in them is a claim that its record supports, links lead somewhere, languages agree."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from inazuma.runs.claims import check_claims
from inazuma.runs.verify import verify

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "docs/demo"
READMES = ("README.md", "README.ja.md")


def test_the_committed_record_holds() -> None:
    checks = verify(RECORD)
    assert len(checks) > 20
    assert all(check.ok for check in checks), [check for check in checks if not check.ok]


def test_every_number_of_the_documents_is_a_claim_that_its_record_supports() -> None:
    """On failure: `inazuma verify claims.yaml` says which, and with `--rewrite` follows a record that changed."""
    report = check_claims(ROOT / "claims.yaml")
    assert report.uncovered == ()
    for claim in report.claims:
        figures = [(figure.name, figure.verdict.why) for figure in claim.figures if figure.verdict.why]
        assert claim.ok, (claim.id, claim.reasons, figures, claim.misplaced)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    for name in ("claims.yaml", *READMES):
        shutil.copy(ROOT / name, folder)
    for name in ("docs", "benchmarks/results"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


def test_a_changed_readme_and_a_changed_record_fail(copy: Path) -> None:
    readme, record = copy / "README.md", copy / "benchmarks/results/streaming.json"
    before = readme.read_text(encoding="utf-8")
    readme.write_text(before.replace("| 838 MB |", "| 738 MB |"), encoding="utf-8")
    wrong = {claim.id: claim for claim in check_claims(copy / "claims.yaml").claims if not claim.ok}
    assert wrong.keys() == {"memory.streaming"} and "738 MB" in wrong["memory.streaming"].misplaced[0]
    readme.write_text(before, encoding="utf-8")
    facts = json.loads(record.read_text())
    facts["whole"]["peak"] += 1
    record.write_text(json.dumps(facts))
    wrong = {claim.id: claim for claim in check_claims(copy / "claims.yaml").claims if not claim.ok}
    assert wrong.keys() == {"memory.streaming"} and "edited" in wrong["memory.streaming"].reasons[0]


@pytest.mark.parametrize("name", READMES)
def test_every_link_leads_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", text):
        assert (ROOT / target).exists(), target


def test_both_languages_show_the_same_commands() -> None:
    def commands(name: str) -> list[str]:
        blocks = re.findall(r"```\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
        return [line.split("#")[0].rstrip() for block in blocks for line in block.splitlines()]

    assert commands("README.md") == commands("README.ja.md")
