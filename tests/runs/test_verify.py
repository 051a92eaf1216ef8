"""Figures recomputed from records: each formula against numbers worked out apart, each kind of tampering found."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from inazuma.errors import UserError
from inazuma.runs import Run, produce, verify
from inazuma.runs.formulas import Figures
from inazuma.runs.lines import encode_line

SPARSE = [{"document": d, "nll": n, "bytes": b} for d, n, b in [(4, 70.0, 50), (9, 31.5, 30), (2, 12.25, 7), (7, 5, 3)]]
DENSE = [line | {"nll": line["nll"] * factor} for line, factor in zip(SPARSE, (0.9, 1.02, 0.95, 1.0), strict=True)]
LAYERS = [
    {"kind": "sel", "layer": 0, "recall": 0.5, "step": 1},
    {"kind": "sel", "layer": 1, "recall": 0.25, "step": 1},
    {"kind": "sel", "layer": 0, "recall": 0.75, "step": 2},
    {"kind": "other", "step": 3},
]
EVIDENCE = {
    "bits_per_byte.sparse": {"formula": "bits_per_byte", "record": "records/sparse.jsonl"},
    "bits_per_byte.dense": {"formula": "bits_per_byte", "record": "records/dense.jsonl"},
    "gap.relative": {"formula": "relative_difference", "of": ["bits_per_byte.sparse", "bits_per_byte.dense"]},
    "gap.absolute": {"formula": "difference", "of": ["bits_per_byte.sparse", "bits_per_byte.dense"]},
    "gap.ratio": {"formula": "ratio", "of": ["bits_per_byte.sparse", "bits_per_byte.dense"]},
    "gap.interval": {
        "formula": "bootstrap_interval",
        "record": "records/sparse.jsonl",
        "against": "records/dense.jsonl",
        "seed": 5,
    },
    "interval": {"formula": "bootstrap_interval", "record": "records/sparse.jsonl", "seed": 5},
    "recall.0": {"formula": "mean", "record": "records/layers.jsonl", "column": "recall", "where": {"layer": 0}},
    "recall.1": {"formula": "mean", "record": "records/layers.jsonl", "column": "recall", "where": {"layer": 1}},
    "final_recall": {"formula": "last", "record": "records/layers.jsonl", "column": "recall", "where": {"kind": "sel"}},
    "bytes": {"formula": "sum", "record": "records/sparse.jsonl", "column": "bytes"},
    "context": {"formula": "value", "record": "records/facts.json", "field": "model.context"},
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.create(tmp_path / "r", command=["x"], config={})
    records = run.path / "records"
    records.mkdir()
    for name, lines in [("sparse", SPARSE), ("dense", DENSE), ("layers", LAYERS)]:
        (records / f"{name}.jsonl").write_bytes(b"".join(map(encode_line, lines)))
    (records / "facts.json").write_text('{"model": {"context": 1024}}')
    return run


@pytest.fixture
def finished(run: Run) -> Run:
    produce(run.path, EVIDENCE)
    run.finish("finished")
    return run


def failed(run: Run) -> list[str]:
    return [check.name for check in verify(run.path) if not check.ok]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_formulas_give_the_numbers_worked_out_by_hand(run):
    figures = produce(run.path, EVIDENCE)
    assert json.loads((run.path / "result.json").read_text()) == figures
    sparse, dense = 118.75 / math.log(2) / 90, (63 + 32.13 + 11.6375 + 5) / math.log(2) / 90
    assert figures["bits_per_byte"] == {"sparse": pytest.approx(sparse, 1e-12), "dense": pytest.approx(dense, 1e-12)}
    assert figures["gap"]["relative"] == pytest.approx(sparse / dense - 1, 1e-12)
    assert figures["gap"]["absolute"] == pytest.approx(sparse - dense, 1e-12)
    assert figures["gap"]["ratio"] == pytest.approx(sparse / dense, 1e-12)
    assert figures["recall"] == [0.625, 0.25] and figures["final_recall"] == 0.75
    assert figures["bytes"] == 90 and figures["context"] == 1024


def test_formulas_of_timings(tmp_path):
    """Roofline: the flat part bounds an intensity of 8 FLOP/byte at 10 bytes/s and 60 FLOP/s, the slope one of 2."""
    lines = [{"kind": "copy", "bytes": 20, "seconds": x} for x in (5.0, 2.0, 4.0)]
    lines += [{"kind": "product", "flops": 60, "seconds": 1}, {"kind": "product", "flops": 500, "seconds": 10}]
    (tmp_path / "x").write_bytes(b"".join(map(encode_line, lines)))
    (tmp_path / "y").write_text(json.dumps({"low": 2, "high": 8, "speed": 15.0, "a": 1.5, "b": 1.0, "c": 2.0, "d": 3}))
    copy = {"record": "x", "where": {"kind": "copy"}}
    evidence = {
        "median": {"formula": "median", "column": "seconds", **copy},
        "copy": {"formula": "greatest_rate", "columns": ["bytes", "seconds"], **copy},
        "product": {"formula": "greatest_rate", "columns": ["flops", "seconds"], **copy, "where": {"kind": "product"}},
        "usual": {"formula": "median_rate", "columns": ["bytes", "seconds"], **copy},
        "range": {"formula": "rate_range", "columns": ["bytes", "seconds"], **copy},
        **{name: {"formula": "value", "record": "y", "field": name} for name in ("low", "high", "speed", *"abcd")},
        "slope": {"formula": "roofline_share", "of": ["speed", "product", "copy", "low"]},
        "flat": {"formula": "roofline_share", "of": ["speed", "product", "copy", "high"]},
        "ahead": {"formula": "lengths_ahead", "of": {"16": "c", "2": "a", "4": "b", "128": "d"}},
        "never": {"formula": "lengths_ahead", "of": {"2": "a", "4": "b"}},
    }
    figures = Figures(tmp_path, evidence)
    expected = {"median": 4.0, "copy": 10.0, "product": 60.0, "slope": 0.75, "flat": 0.25, "ahead": [16, 128]}
    expected |= {"usual": 5.0, "range": [4.0, 10.0]}
    assert {name: figures.figure(name) for name in expected} == expected and figures.figure("never") == []
    wrong = {"w": {"formula": "greatest_rate", "record": "x", "columns": ["bytes"]}}
    wrong |= {"v": {"formula": "roofline_share", "of": ["speed"]}}
    for name in wrong:
        with pytest.raises(UserError, match="must name"):
            Figures(tmp_path, wrong).figure(name)


def test_the_bootstrap_covers_the_mean_as_often_as_it_says(tmp_path):
    """With one byte a document the figure is a mean of independent draws, whose standard error is textbook."""
    draws = np.random.default_rng(0).normal(3.0, 1.0, size=400)
    (tmp_path / "x").write_bytes(
        b"".join(encode_line({"document": i, "nll": float(x) * math.log(2), "bytes": 1}) for i, x in enumerate(draws))
    )
    for level, z in [(0.95, 1.959964), (0.8, 1.281552)]:
        evidence = {"i": {"formula": "bootstrap_interval", "record": "x", "seed": 1, "level": level}}
        low, high = Figures(tmp_path, evidence).figure("i")
        error = draws.std() / math.sqrt(len(draws))
        assert low == pytest.approx(draws.mean() - z * error, abs=0.15 * error)
        assert high == pytest.approx(draws.mean() + z * error, abs=0.15 * error)


def test_the_paired_bootstrap_takes_the_same_documents_of_both(run):
    # Documents differ wildly, yet each is 3 % worse: paired, there is no uncertainty left, in whatever order they lie.
    worse = [line | {"nll": line["nll"] * 1.03} for line in reversed(SPARSE)]
    (run.path / "records/worse.jsonl").write_bytes(b"".join(map(encode_line, worse)))
    evidence = {"i": EVIDENCE["gap.interval"] | {"record": "records/worse.jsonl", "against": "records/sparse.jsonl"}}
    assert Figures(run.path, evidence).figure("i") == pytest.approx([0.03, 0.03], abs=1e-12)


def test_the_interval_is_a_function_of_the_seed(tmp_path):
    lines = [{"document": i, "nll": float(i % 17), "bytes": 1 + i % 5} for i in range(60)]
    (tmp_path / "x").write_bytes(b"".join(map(encode_line, lines)))
    evidence = {str(i): {"formula": "bootstrap_interval", "record": "x", "seed": i // 2} for i in range(4)}
    a, again, b, _ = (Figures(tmp_path, evidence).figure(name) for name in evidence)
    assert a == again != b


def test_lines_of_one_document_are_resampled_together(run):
    split = [line | {"nll": line["nll"] / 2, "bytes": line["bytes"] / 2} for line in SPARSE for _ in range(2)]
    (run.path / "records/split.jsonl").write_bytes(b"".join(map(encode_line, split)))
    evidence = {"i": EVIDENCE["interval"] | {"record": "records/split.jsonl"}} | EVIDENCE
    figures = Figures(run.path, evidence)
    assert figures.figure("i") == pytest.approx(figures.figure("interval"), rel=1e-12)


def test_a_run_as_it_was_left_verifies(finished):
    checks = verify(finished.path)
    assert [check.name for check in checks if check.ok] == [check.name for check in checks]
    names = {check.name for check in checks}
    records = {f"records/{name}" for name in ("sparse.jsonl", "dense.jsonl", "layers.jsonl", "facts.json")}
    assert names == {*EVIDENCE, *records, "result.json", "evidence.json", "manifest.json"}


def test_a_moved_run_verifies_without_its_ledger(finished, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    moved = finished.path.rename(tmp_path / "elsewhere" / "r")
    assert all(check.ok for check in verify(moved))


def test_a_tampered_record_is_named_with_every_figure_that_stands_on_it(finished):
    edit(finished.path / "records/dense.jsonl", "63.0", "60.0")
    assert failed(finished) == [
        *("bits_per_byte.dense", "gap.relative", "gap.absolute", "gap.ratio", "gap.interval"),
        "records/dense.jsonl",
    ]


def test_a_tampered_figure_is_named(finished):
    result = json.loads((finished.path / "result.json").read_text())
    result["bits_per_byte"]["sparse"] *= 1 - 1e-8
    (finished.path / "result.json").write_text(json.dumps(result))
    assert failed(finished) == ["bits_per_byte.sparse", "result.json"]
    result["bits_per_byte"]["sparse"] /= (1 - 1e-8) * (1 + 1e-11)
    result["recall"][1] = 0.99
    result["gap"]["interval"][0] -= 0.01
    (finished.path / "result.json").write_text(json.dumps(result))
    assert failed(finished) == ["gap.interval", "recall.1", "result.json"]


def test_a_figure_without_evidence_and_evidence_without_a_figure_fail(run):
    produce(run.path, EVIDENCE)
    result = json.loads((run.path / "result.json").read_text())
    del result["context"]
    result |= {"speed": {"tokens_per_second": 1e9}, "empty": []}
    (run.path / "result.json").write_text(json.dumps(result))
    run.finish("finished")
    assert failed(run) == ["speed.tokens_per_second", "empty", "context"]


def test_changed_evidence_changed_manifest_and_changed_ledger_are_found(finished):
    edit(finished.path / "records/facts.json", "1024", "4096")
    edit(finished.path / "result.json", "1024", "4096")
    assert failed(finished) == ["result.json", "records/facts.json"]
    # Hiding that in the manifest is what the ledger is for.
    manifest = json.loads((finished.path / "manifest.json").read_text())
    manifest["artefacts"] |= {check.name: check.recomputed for check in verify(finished.path) if "/" in check.name}
    manifest["artefacts"]["result.json"] = next(c.recomputed for c in verify(finished.path) if c.name == "result.json")
    (finished.path / "manifest.json").write_text(json.dumps(manifest))
    assert failed(finished) == ["manifest.json"]
    edit(finished.path.parent / "ledger.jsonl", '"started"', '"finished"')
    assert "the chain breaks" in next(c.problem for c in verify(finished.path) if c.name == "manifest.json")


def test_evidence_pointed_at_another_record_is_found(finished):
    evidence = json.loads((finished.path / "evidence.json").read_text())
    evidence["bits_per_byte.sparse"]["record"] = "records/dense.jsonl"
    (finished.path / "evidence.json").write_text(json.dumps(evidence))
    assert "bits_per_byte.sparse" in failed(finished) and "evidence.json" in failed(finished)


def test_a_missing_record_and_an_unended_run_fail(run):
    produce(run.path, EVIDENCE)
    problems = {check.name: check.problem for check in verify(run.path) if not check.ok}
    assert problems["records/facts.json"] == "the run has not ended (running)" and "context" not in problems
    run.finish("finished")
    (run.path / "records/facts.json").unlink()
    assert failed(run) == ["context", "records/facts.json"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"formula": "magic"}, "f: unknown formula 'magic'; known are bits_per_byte, mean, sum, "),
        ({}, "f: unknown formula None"),
        ({"formula": "mean", "record": "records/layers.jsonl"}, "f: formula mean: .*'column'"),
        ({"formula": "mean", "record": "records/layers.jsonl", "column": "kind"}, "'kind' is 'sel', not a number"),
        ({"formula": "sum", "record": "records/layers.jsonl", "column": "x"}, "no line has 'x'"),
        ({"formula": "last", "record": "records/layers.jsonl", "column": "step", "where": {"layer": 7}}, "where {"),
        ({"formula": "bits_per_byte", "record": "records/none.jsonl"}, "none.jsonl: no such file"),
        ({"formula": "bits_per_byte", "record": "../outside.jsonl"}, "must lie inside the run folder"),
        ({"formula": "bits_per_byte", "record": "records/layers.jsonl"}, "no line has 'nll' and 'bytes'"),
        ({"formula": "value", "record": "records/facts.json", "field": "model.x"}, "no field 'model.x'"),
        ({"formula": "value", "record": "records/facts.json", "field": "model"}, "a figure is a finite number"),
        ({"formula": "ratio", "of": ["f", "f"]}, r"computed from itself \(f -> f\)"),
        ({"formula": "ratio", "of": ["g", "g"]}, "g: no evidence"),
        ({"formula": "ratio", "of": ["zero", "zero"]}, "division by zero"),
        ({"formula": "ratio", "of": ["zero"]}, "expected two figures, found 1"),
        (EVIDENCE["interval"] | {"seed": "x"}, "f: formula bootstrap_interval"),
        (EVIDENCE["gap.interval"] | {"against": "records/other.jsonl"}, "document 2 is not the same in both"),
    ],
)
def test_evidence_that_cannot_be_computed_says_why(run, how, message):
    other = [line for line in SPARSE if line["document"] != 2]
    (run.path / "records/other.jsonl").write_bytes(b"".join(map(encode_line, other)))
    zero = {"formula": "difference", "of": ["context", "context"]}
    with pytest.raises(UserError, match=message):
        produce(run.path, {"f": how, "zero": zero, "context": EVIDENCE["context"]})
    assert not (run.path / "result.json").exists()


def test_names_that_contradict_each_other_are_refused(run):
    for names in (("a", "a.b"), ("a.b", "a")):
        with pytest.raises(UserError, match="a"):
            produce(run.path, {name: EVIDENCE["context"] for name in names})


def test_nothing_to_verify(run):
    with pytest.raises(UserError, match=r"result\.json: no such file"):
        verify(run.path)
    with pytest.raises(UserError, match="not a run folder"):
        verify(run.path / "records")
