"""Claims: a sound file holds; every way in which a statement or its record can be wrong is found and named."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

from inazuma import cli
from inazuma.errors import UserError
from inazuma.runs import Run, produce
from inazuma.runs.claims import ClaimResult, Report, check_claims
from inazuma.runs.rewrite import as_stated
from inazuma.runs.verdict import judge_bound, rounding

TIMES = {
    "results": [
        {"what": "forward", "length": 8, "seconds": {"ours": [2.0, 1.0, 4.0], "dense": [7.1, 6.8, 99.0]}},
        {"what": "forward", "length": 16, "seconds": {"ours": [3.0], "dense": [12.3]}},
    ],
    "bytes": 1_234_567_890,
    "difference": {"mean": 0.012, "interval": [0.004, 0.021]},
    "code": {"clean": True},
}
DOCUMENT = """# Fast

With Python 3.11 it is 3.5 times
faster on 8 tokens, takes 1,235 MB
and `k=4`. int8 is DeepSeek-V3.2's.
"""
CLAIM = {
    "id": "speed",
    "text": "It is faster.",
    "command": "python bench.py",
    "common": {"record": "times.json"},
    "figures": {
        "faster": {
            "value": "3.5",
            "formula": "ratio_at",
            "field": ["results", {"what": "forward", "length": 8}, "seconds"],
            "of": ["dense", "ours"],
        },
        "size": {"value": "1,235", "unit": 1e6, "formula": "value", "field": "bytes"},
    },
    "stands": {"README.md": ["it is {faster} times faster on 8 tokens, takes {size} MB"]},
}


def bound(value: str, **more: Any) -> dict[str, Any]:
    figure = {"value": value, "formula": "value", "field": "difference.mean", "direction": "at most"}
    interval = {"field": "difference.interval"}
    return {
        "id": "b",
        "text": "t",
        "common": {"record": "times.json"},
        "figures": {"f": figure | {"interval": interval} | more},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "times.json").write_text(json.dumps(TIMES))
    (tmp_path / "README.md").write_text(DOCUMENT)
    return tmp_path


def check(folder: Path, *claims: dict[str, Any], **more: Any) -> Report:
    records = {"times.json": sha256(json.dumps(TIMES).encode()).hexdigest()}
    file = {"documents": ["README.md"], "records": records, "not_measured": ["Python 3.11"], "claims": list(claims)}
    (folder / "claims.yaml").write_text(yaml.safe_dump(file | more, allow_unicode=True))
    return check_claims(folder / "claims.yaml")


def one(folder: Path, claim: dict[str, Any], **more: Any) -> ClaimResult:
    return check(folder, claim, **{"documents": [], "not_measured": []} | more).claims[0]


def changed(claim: dict[str, Any], figure: str, **fields: Any) -> dict[str, Any]:
    return claim | {"figures": claim["figures"] | {figure: claim["figures"][figure] | fields}}


def test_a_sound_claim_is_supported_and_its_document_covered(folder):
    report = check(folder, CLAIM)
    assert report.ok and report.uncovered == ()
    [claim] = report.claims
    assert (claim.measurement, claim.claim) == ("valid", "supported")
    # 7.1 / 2.0, from the raw times and not from any summary.
    assert claim.figures[0].found == pytest.approx(3.55) and claim.figures[1].found == pytest.approx(1234.56789)


def test_a_wrong_value_is_refuted(folder):
    claim = one(folder, changed(CLAIM, "faster", value="3.7"))
    assert (claim.measurement, claim.claim) == ("valid", "refuted")
    assert claim.figures[0].verdict.why == "the records give 3.55, 3.7 is stated"
    assert one(folder, changed(CLAIM, "faster", value="3.7", within=0.2)).claim == "supported"


@pytest.mark.parametrize(
    ("figure", "verdict", "why"),
    [
        (bound("0.03"), "supported", ""),
        (bound("0.02", margin=0.001), "supported", ""),
        (bound("0.01"), "underpowered", "holds the claim and its contrary"),
        (bound("-0.01", no_effect=0), "refuted", "the other way"),
        (bound("0.003"), "overstated", "overstated by 0.009"),
        (bound("0.01", interval={"field": "none"}), "not judged", ""),
    ],
)
def test_bounds_are_judged_by_their_interval(folder, figure, verdict, why):
    claim = one(folder, figure)
    assert claim.claim == verdict and why in claim.figures[0].verdict.why


@pytest.mark.parametrize(
    ("stated", "interval", "verdict"),
    [
        (1.5, (1.6, 2.2), "supported"),  # at least 1.5 times faster, where 1 is no effect
        (1.5, (1.2, 1.9), "direction only"),
        (1.5, (0.9, 2.4), "underpowered"),
        (1.5, (1.1, 1.3), "overstated"),
        (1.5, (0.7, 1.2), "refuted"),
        (1.5, (0.4, 0.9), "refuted"),
    ],
)
def test_the_five_verdicts(stated, interval, verdict):
    middle = sum(interval) / 2
    assert judge_bound(stated, middle, at_least=True, interval=interval, no_effect=1).claim == verdict
    # The same, said of the time it takes: at most so much, turned around.
    mirrored = [-end for end in interval]
    assert judge_bound(-stated, -middle, at_least=False, interval=mirrored, no_effect=-1).claim == verdict


def test_overstated_says_by_how_much():
    assert judge_bound(1.5, 1.2, at_least=True, interval=(1.1, 1.3), no_effect=1).why.endswith("overstated by 0.3")


@pytest.mark.parametrize(("text", "half"), [("3.5", 0.05), ("1,235", 0.5), ("0.085", 0.0005), ("2.2920", 0.00005)])
def test_a_figures_digits_are_its_tolerance(text, half):
    assert rounding(text) == pytest.approx(half)


def test_an_edited_record_is_named_with_both_hashes(folder):
    text = (folder / "times.json").read_text()
    (folder / "times.json").write_text(text.replace("7.1", "9.1"))
    claim = one(folder, CLAIM)
    assert (claim.measurement, claim.claim) == ("invalid", "not judged")
    now, then = (sha256(x.encode()).hexdigest() for x in (text.replace("7.1", "9.1"), text))
    assert claim.reasons == (f"times.json: edited: its SHA-256 is {now}, recorded is {then}",)


def test_what_cannot_be_computed_says_why(folder):
    gone = changed(CLAIM, "size", field="weight")
    assert one(folder, gone).reasons == ("size: times.json: no field 'weight'",)
    twice = changed(CLAIM, "faster", field=["results", {"what": "forward"}, "seconds"])
    assert one(folder, twice).reasons == ("faster: times.json: 2 items have {'what': 'forward'}, not one",)
    assert one(folder, CLAIM | {"missing": "the code was never published"}).measurement == "not computable"
    other = one(folder, CLAIM | {"common": {"record": "none.json"}})
    assert (other.measurement, other.reasons) == ("not computable", ("none.json: no such record",))
    assert "no hash vouches" in one(folder, CLAIM, records={}).reasons[0]


def test_unclean_code_needs_a_waiver_that_is_printed(folder, capsys):
    unclean = json.dumps(TIMES | {"code": {"clean": False}})
    (folder / "times.json").write_text(unclean)
    records = {"times.json": sha256(unclean.encode()).hexdigest()}
    assert "in no revision" in one(folder, CLAIM, records=records).reasons[0]
    assert one(folder, CLAIM, records=records, waivers={"times.json": "known"}).ok
    assert cli.main(["verify", str(folder / "claims.yaml")]) == 0
    assert "waived: times.json: known" in capsys.readouterr().out


def test_an_audit_makes_the_measurement_invalid_by_its_rules(folder):
    findings = [
        {"rule": "V01", "item": "task", "evidence": "37 % truncated", "fix": "…"},
        {"rule": "V10", "item": None, "evidence": "n = 30", "fix": "…", "waived": "said in the text"},
    ]
    (folder / "audit.json").write_text(json.dumps({"findings": findings, "read": []}))
    claim = one(folder, CLAIM | {"audit": "audit.json"})
    assert (claim.measurement, claim.rules, claim.claim) == ("invalid", ("V01",), "not judged")
    (folder / "audit.json").write_text(json.dumps({"found": findings}))
    claim = one(folder, CLAIM | {"audit": "audit.json"})
    assert claim.measurement == "not computable" and "it has no 'findings'" in claim.reasons[0]


def test_somebody_elses_words_are_held_against_the_document(folder):
    paper = "We are 3.5 times\nfaster.\n"
    (folder / "paper.txt").write_text(paper)
    source = {"url": "https://example.org", "document": "paper.txt", "sha256": sha256(paper.encode()).hexdigest()}
    assert one(folder, CLAIM | {"source": source | {"quote": "3.5 times faster"}}).ok
    assert "does not hold the words" in one(folder, CLAIM | {"source": source | {"quote": "4 times"}}).reasons[0]
    wrong = source | {"quote": "3.5 times faster", "sha256": "0" * 64}
    assert "another document" in one(folder, CLAIM | {"source": wrong}).reasons[0]


def test_a_document_that_says_something_else_is_found(folder):
    (folder / "README.md").write_text(DOCUMENT.replace("3.5 times", "3.9 times"))
    report = check(folder, CLAIM)
    assert not report.ok
    assert report.claims[0].misplaced == (
        "README.md: says 'it is 3.9 times faster on 8 tokens, takes 1,235 MB', the claim says "
        "'it is 3.5 times faster on 8 tokens, takes 1,235 MB'",
    )


@pytest.mark.parametrize("added", ["It saves 40 % too.", "On 2 cores.", "| 7.5 |", "幅は12倍です。", "from 0.1 to"])
def test_a_number_that_no_claim_covers_is_found(folder, added):
    (folder / "README.md").write_text(f"{DOCUMENT}\n{added}\n")
    [line, *_] = check(folder, CLAIM).uncovered
    assert line.startswith("README.md:7: no claim covers") and added in line


@pytest.mark.parametrize(
    "added", ["`--k 40`", "```\nx 40\n```", "[a](b/40.md)", "bfloat16, GLM-4.5, x86-64", "<!-- 40 -->"]
)
def test_code_links_and_names_hold_no_figures(folder, added):
    (folder / "README.md").write_text(f"{DOCUMENT}\n{added}\n")
    assert check(folder, CLAIM).ok


@pytest.mark.parametrize("words", ["Python 3.12", "takes 1,235 MB", "`k=4`", "Python"])
def test_words_that_excuse_no_number_are_found(folder, words):
    """They are in no document any more, or a claim has their number, or there is none."""
    report = check(folder, CLAIM, not_measured=["Python 3.11", words])
    assert report.uncovered == (f"not_measured: {words!r} stands round no number that needs it",) and not report.ok


def test_words_do_not_match_inside_a_longer_number(folder):
    (folder / "README.md").write_text("13.5 ms, ms 3.55, ms 3.5, Python 3.11")
    for words, found in (("{faster} ms", 1), ("ms {faster}", 0)):
        claim = CLAIM | {"stands": {"README.md": [words]}}
        assert len(check(folder, claim).claims[0].misplaced) == found


def test_rewriting_follows_the_records_and_leaves_bounds_alone(folder, capsys):
    records = "\n".join(["records:", f"  times.json: {sha256(json.dumps(TIMES).encode()).hexdigest()}"])
    text = f"""documents: [README.md]
{records}
not_measured: [Python 3.11]
claims:
  # a comment
  - id: speed
    text: It is faster.
    common: {{record: times.json}}
    figures:
      faster: {{value: "3.5", formula: ratio_at, field: [results, 0, seconds], of: [dense, ours]}}
      size:
        value: "1,235"
        unit: 1.0e+6
        formula: value
        field: bytes
    stands:
      README.md: ["it is {{faster}} times faster on 8 tokens, takes {{size}} MB"]
  - id: bound
    text: It is much faster.
    common: {{record: times.json}}
    figures:
      faster: {{value: "3.5", formula: ratio_at, field: [results, 0, seconds], of: [dense, ours], direction: at least}}
"""
    (folder / "claims.yaml").write_text(text)
    assert cli.main(["verify", str(folder / "claims.yaml")]) == 0
    faster = json.loads(json.dumps(TIMES)) | {"bytes": 999_600_000}
    faster["results"][0]["seconds"]["dense"] = [6.0, 6.5, 7.0]
    (folder / "times.json").write_text(json.dumps(faster))
    assert cli.main(["verify", str(folder / "claims.yaml")]) == 1
    capsys.readouterr()
    # 3.25 is below the bound of 3.5: that one is not rewritten, and the command fails.
    assert cli.main(["verify", str(folder / "claims.yaml"), "--rewrite"]) == 1
    output = capsys.readouterr()
    assert "speed.faster: 3.5 is now 3.2" in output.err and "README.md: rewritten for speed" in output.err
    assert "3.5 is stated: overstated by 0.25" in output.out
    assert (folder / "README.md").read_text() == DOCUMENT.replace("3.5", "3.2").replace("1,235", "1,000")
    after = (folder / "claims.yaml").read_text()
    new = sha256((folder / "times.json").read_bytes()).hexdigest()
    expected = text.replace('"3.5"', '"3.2"', 1).replace("1,235", "1,000")
    assert after == expected.replace(records.split()[-1], new)
    assert cli.main(["verify", str(folder / "claims.yaml"), "--rewrite"]) == 1
    assert (folder / "claims.yaml").read_text() == after


def test_a_hash_is_rewritten_in_its_own_line_only(folder):
    """Whatever stands there until it is known, such as a nought."""
    new = sha256((folder / "times.json").read_bytes()).hexdigest()
    rest = """not_measured: [100 and 200]
claims:
  - id: speed
    text: It takes 1,000 MB and 0 seconds.
    figures:
      size: {value: "1,235", unit: 1.0e+6, record: times.json, formula: value, field: bytes}
"""
    for old in ('"0"', "pending", "'0'  # to come"):
        text = f"documents: [README.md]\nrecords:\n  times.json: {old}\n{rest}"
        (folder / "claims.yaml").write_text(text)
        cli.main(["verify", str(folder / "claims.yaml"), "--rewrite"])
        after = (folder / "claims.yaml").read_text()
        assert after == text.replace(f"times.json: {old.split()[0]}", f"times.json: {new}", 1)
    inline = f"documents: [README.md]\nrecords: {{times.json: {'0' * 64}}}\n{rest}"
    (folder / "claims.yaml").write_text(inline)
    assert cli.main(["verify", str(folder / "claims.yaml"), "--rewrite"]) == 2
    assert (folder / "claims.yaml").read_text() == inline


def test_a_table_that_a_program_wrote_is_read_from_where_it_stands(folder):
    (folder / "README.md").write_text(f"{DOCUMENT}\n| V01 limit | 3.55 | 2 |\n| V02 other | 4.1 | 1 |\n")
    count = {"formula": "median_at", "field": ["results", "{row}", "length"], "unit": 4}
    ratio = {"formula": "ratio_at", "field": ["results", "{row}", "seconds"], "of": ["dense", "ours"]}
    table = {
        "id": "table",
        "text": "t",
        "common": {"record": "times.json"},
        "rows": {"V01": "V01 limit", "V02": "V02 other"},
        "figures": {"ratio": ratio, "length": count},
        "stands": {"README.md": ["| {label} | {ratio} | {length} |"]},
    }
    records = {"V01": TIMES["results"][0], "V02": TIMES["results"][1]}
    (folder / "times.json").write_text(json.dumps({"results": records}))
    known = {"times.json": sha256((folder / "times.json").read_bytes()).hexdigest()}
    report = check(folder, table, records=known)
    figures = {one.name: (one.stated, one.verdict.claim) for one in report.claims[0].figures}
    assert figures == {
        "V01.ratio": ("3.55", "supported"),
        "V01.length": ("2", "supported"),
        "V02.ratio": ("4.1", "supported"),
        "V02.length": ("1", "refuted"),
    }
    assert not [line for line in report.uncovered if "| V0" in line]
    before = (folder / "claims.yaml").read_text()
    assert cli.main(["verify", str(folder / "claims.yaml"), "--rewrite"]) == 1  # DOCUMENT's own figures have no claim
    assert "| V02 other | 4.1 | 4 |" in (folder / "README.md").read_text()
    assert (folder / "claims.yaml").read_text() == before
    (folder / "README.md").write_text(DOCUMENT)
    with pytest.raises(UserError, match="0 times, not once"):
        check_claims(folder / "claims.yaml")


@pytest.mark.parametrize(
    ("old", "value", "new"),
    [("3.5", 12.26, "12.3"), ("900", 1040, "1,040"), ("1405", 1500.2, "1500"), ("0.085", 0.1, "0.100")],
)
def test_new_figures_look_like_the_old(old, value, new):
    assert as_stated(old, value) == new


def test_a_run_is_evidence_and_must_verify_itself(folder, capsys):
    run = Run.create(folder / "runs/a", command=["inazuma", "x"], config={"k": 1}, seeds={"seed": 0})
    (run.path / "records.jsonl").write_text('{"x": 1.0}\n{"x": 2.0}\n')
    produce(run.path, {"mean": {"formula": "mean", "record": "records.jsonl", "column": "x"}})
    run.finish("finished")
    claim = {
        "id": "r",
        "text": "t",
        "figures": {"m": {"value": "1.5", "formula": "of_run", "run": "runs/a", "name": "mean"}},
    }
    # The code under test may have changes that are not committed.
    known = {"records": {}, "waivers": {"runs/a": "a test"}}
    assert one(folder, claim, **known).ok
    # Another seed of the same work, deleted since: the figure is the best of two, and only the ledger knows.
    other = Run.create(folder / "runs/b", command=["inazuma", "x"], config={"k": 1}, seeds={"seed": 1})
    other.finish("finished")
    shutil.rmtree(other.path)
    found = one(folder, claim, **known)
    assert (found.measurement, found.rules) == ("invalid", ("V14",)) and "one of 2 runs" in found.reasons[0]
    assert one(folder, claim | {"runs": 2}, **known).ok
    edited = '{"x": 1.00}\n{"x": 2.0}\n'
    (run.path / "records.jsonl").write_text(edited)
    found = one(folder, claim | {"runs": 2}, **known)
    then = run.manifest["artefacts"]["records.jsonl"]
    assert (found.measurement, found.reasons) == (
        "invalid",
        (
            "runs/a/records.jsonl: the file changed after the run ended "
            f"(recorded {then}, found {sha256(edited.encode()).hexdigest()})",
        ),
    )
    assert cli.main(["verify", str(folder / "claims.yaml"), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["ok"] is False and printed["claims"][0]["measurement"] == "invalid"


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (changed(CLAIM, "faster", value=3.5), 'write the value as text, as it stands: value: "1.50"'),
        (changed(CLAIM, "faster", value="many"), "'many' is not a number"),
        (changed(CLAIM, "faster", direction="up"), "expected 'at least' or 'at most'"),
        (changed(CLAIM, "faster", margin=0.1), "`margin` would be ignored, as the figure is not a bound"),
        (changed(CLAIM, "faster", interval={"field": "x"}), "`interval` would be ignored"),
        (
            changed(CLAIM, "faster", direction="at least", within=0.1),
            "`within` would be ignored, as the figure is a bound",
        ),
        (CLAIM | {"figures": {}}, "has no figures"),
        (CLAIM | {"txt": "x"}, "txt"),
        (CLAIM | {"stands": {"README.md": ["{slower}"]}}, "no figure 'slower'"),
        (CLAIM | {"stands": {"other.md": ["{faster}"]}}, "no such document"),
    ],
)
def test_mistakes_in_a_claims_file_are_named(folder, claim, message):
    with pytest.raises(UserError, match=message):
        check(folder, claim)


def test_two_claims_of_one_name_are_named(folder):
    with pytest.raises(UserError, match="two claims are called 'speed'"):
        check(folder, CLAIM, CLAIM)
