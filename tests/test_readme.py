"""The READMEs' figures are those of the committed record, and the record holds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from inazuma.runs.verify import verify

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "docs/demo"
READMES = ("README.md", "README.ja.md")


def test_the_committed_record_holds() -> None:
    checks = verify(RECORD)
    assert len(checks) > 20
    assert all(check.ok for check in checks), [check for check in checks if not check.ok]


@pytest.mark.parametrize("name", READMES)
def test_every_figure_is_the_records(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    result = json.loads((RECORD / "result.json").read_text())
    rows = [line for line in text.splitlines() if re.match(r"\| .*\| \d\.\d{3} \|", line)]
    assert len(rows) == 4
    for row, model in zip(rows, ("sparse", "dense", "ngram", "gzip"), strict=True):
        low, high = result["interval"][model]
        assert f"| {result['bits_per_byte'][model]:.3f} | {low:.2f}–{high:.2f} |" in row
    relative, (low, high) = result["difference"]["dense"]["relative"], result["difference"]["dense"]["interval"]
    assert [f"{100 * x:.1f} %" for x in (relative, low, high)] == re.findall(r"\d\.\d %", text)[:3]
    for figure in (*result["attention_mass"], *result["attention_mass_recent"]):
        assert f"{100 * figure:.0f} %" in text
    assert f"{result['parameters'] / 1e6:.1f} M" in text
    assert f"{result['training_tokens']:,}" in text
    assert f"{result['seconds']:.0f} " in text


@pytest.mark.parametrize("name", READMES)
def test_every_ratio_is_the_records(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    results = ROOT / "benchmarks/results"
    ratios = {}
    for file in ("ops_cpu.json", "ops_cpu_bfloat16.json"):
        record = json.loads((results / file).read_text())
        for one in record["results"]:
            one = one.get("one sequence", {}) | one
            if "ratio" in one:
                ratios[one["what"], one["length"], one["dtype"]] = one["ratio"]
    rows = [line for line in text.splitlines() if re.match(r"\| .*\d,\d{3}.* \| \d+\.\d \| \d+\.\d \|", line)]
    plan = [("forward", 8192), ("forward", 32768), ("forward", 65536), ("training", 16384), ("decoding", 65536)]
    assert len(rows) == len(plan)
    for row, (what, length) in zip(rows, plan, strict=True):
        assert f"{length:,}" in row
        both = (f"{ratios[what, length, dtype]:.1f}" for dtype in ("float32", "bfloat16"))
        assert row.endswith(f"| {' | '.join(both)} |"), row
    prefill = json.loads((results / "prefill.json").read_text())
    assert f"{prefill['length']:,}" in text
    assert f"{prefill['times_faster']:.0f} " in text and f"{prefill['share_of_peak']:.3f}" in text
    integration = json.loads((results / "integration.json").read_text())
    assert f"{integration['times_faster']:.0f} " in text and f"{integration['share_of_added']:.3f}" in text


@pytest.mark.parametrize("name", READMES)
def test_small_memory_is_the_records(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    streaming, quantized = (
        json.loads((ROOT / f"benchmarks/results/{file}.json").read_text()) for file in ("streaming", "quantized")
    )
    assert streaming["code"]["clean"] and streaming["checkpoint_bytes"] / 1e9 == pytest.approx(3.3, abs=0.05)
    for one in streaming["streamed"]:
        assert one["same_tokens_as_whole"] and one["within_limit"]
        figures = f"{one['limit'] / 1e6:,.0f} MB | {one['peak'] / 1e6:,.0f} MB | {100 * one['hit_rate']:.0f} % "
        assert not one["guess"] or f"| {figures}| {one['tokens_per_second']:.1f} |" in text
    whole = streaming["whole"]
    assert f"| {whole['peak'] / 1e6:,.0f} MB | | {whole['tokens_per_second']:.1f} |" in text
    for kind in ("none", "int8", "int4"):
        speed, loss = quantized["random"][kind], quantized["trained"][kind]["bits_per_byte"]
        assert f"| {speed['prefill']:,.0f} | {speed['decode']:.0f} | {loss:.4f} |" in text


@pytest.mark.parametrize("name", READMES)
def test_served_figures_are_the_records(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    record = json.loads((ROOT / "benchmarks/results/serve.json").read_text())
    assert record["code"]["clean"]
    for figures in record["smollm2"].values():
        shown = (f"{figures[figure]['median']:,.0f}" for figure in ("decode", "prefill", "clients"))
        assert f"| {' | '.join(shown)} |" in text
    sparse, dense = record["sparse, cache bfloat16"], record["dense in llama.cpp"]
    shown = [sparse[length] for length in ("4096", "16384", "65536")]
    shown += [dense[length]["median_ms"] for length in ("4096", "16384")]
    assert [f"{ms:.0f}" for ms in shown] == re.findall(r"(\d+) ms", text)


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
