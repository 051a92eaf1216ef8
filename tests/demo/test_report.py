"""The report says what the records say, in words that follow from the figures, and needs nothing from outside."""

from __future__ import annotations

import inspect
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from inazuma.demo.report import stages, verdict, write_report
from inazuma.demo.selection import Query, runs
from inazuma.errors import UserError
from inazuma.report.charts import Band, Scale, Series, line_chart
from inazuma.report.page import STYLE

LAYERS, TOPK, CONTEXT = 4, 256, 1024


def demo_folder(folder: Path) -> Path:
    """A run folder as the demo leaves it, of invented figures and real Python text."""
    dice = random.Random(7)
    write(folder / "result.json", result())
    for name in ("sparse", "dense"):
        lines = []
        for step in range(5, 515, 5):
            tokens = 4_200_000 * step // 510
            stage = "sparse" if tokens > 2_000_000 else "warmup" if tokens > 1_700_000 else "dense"
            stage = "dense" if name == "dense" else stage
            done = step / 510
            loss = 2.1 + 5.5 * math.exp(-7 * done) + dice.gauss(0, 0.05)
            line = {"kind": "train", "step": step, "tokens": tokens, "stage": stage, "loss": loss, "lr": 1e-3}
            if name == "sparse":
                line["index_loss"] = [0.08 + 0.02 * i + 1.5 * math.exp(-9 * done) for i in range(LAYERS)]
            lines.append(line)
            if step % 50 == 0 or step == 510:
                bits = 1.85 + 2.9 * math.exp(-6 * done) + (0.01 if name == "sparse" else 0)
                line = {"kind": "validation", "step": step, "tokens": tokens, "stage": stage, "bits_per_byte": bits}
                if name == "sparse":
                    line["recall_at_k"] = [0.88 - 0.05 * i - 0.5 * math.exp(-6 * done) for i in range(LAYERS)]
                    line["attention_mass"] = [0.97 - 0.03 * i - 0.4 * math.exp(-6 * done) for i in range(LAYERS)]
                lines.append(line)
        (folder / name).mkdir(parents=True)
        (folder / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write(folder / "records/selection.json", selection(dice))
    samples = [
        (
            "def read_lines(path):\n",
            "    with open(path) as handle:\n        return [line.strip() for line in handle]\n",
        ),
        ("import os\n", "import sys\n\n\nclass A:\n    pass"),
        ('"""Return the', " value.</pre><script>alert(1)</script>"),
    ]
    write(folder / "records/samples.json", [{"prompt": prompt, "text": text} for prompt, text in samples])
    write(
        folder / "manifest.json",
        {
            "command": ["inazuma", "demo", "--out", "runs/demo"],
            "config": {
                "corpus": {"packages": ["sympy==1.14.0", "networkx==3.6.1"], "why": "Python code under BSD licences"}
            },
            "code": {"version": "0.1.0", "revision": "21de62a3f0b54e", "clean": True},
            "packages": {"torch": "2.13.0", "numpy": "2.3.1", "tokenizers": "0.22.1", "rich": "14.0"},
            "machine": {
                "processor": "A processor",
                "cores": 2,
                "memory": 8 * 2**30,
                "python": "3.12.4",
                "accelerator": None,
            },
            "seeds": {"training": 1},
            "started": "2026-01-02T03:04:05+00:00",
        },
    )
    write(
        folder / "data/manifest.json",
        {
            "documents": {"read": 2184, "empty": 0, "duplicates": 31, "invalid_utf8_documents": 2},
            "splits": {"train": {"documents": 2100, "bytes": 31_415_926, "tokens": 9_000_001, "shards": []}},
        },
    )
    return folder


def result(**changes: Any) -> dict[str, Any]:
    return {
        "bits_per_byte": {"sparse": 1.863, "dense": 1.855, "ngram": 3.104, "gzip": 2.611},
        "difference": {
            "dense": {"relative": 0.0043, "interval": [-0.0021, 0.0112]},
            "ngram": {"relative": -0.400, "interval": [-0.41, -0.39]},
            "gzip": {"relative": -0.287, "interval": [-0.30, -0.27]},
        },
        "interval": {"sparse": [1.81, 1.92], "dense": [1.80, 1.91], "ngram": [3.02, 3.19], "gzip": [2.5, 2.73]},
        "recall_at_k": [0.883, 0.841, 0.792, 0.747],
        "recall_recent": [0.612, 0.571, 0.523, 0.751],
        "attention_mass": [0.972, 0.951, 0.923, 0.894],
        "attention_mass_recent": [0.842, 0.811, 0.773, 0.704],
        "tokens_per_second": 15_321.7,
        "context": CONTEXT,
        "topk": TOPK,
        "engine": "cpu",
        "parameters": 3_412_480,
        "training_tokens": 4_200_000,
        "validation_documents": 312,
        "seconds": 341.6,
    } | changes


def selection(dice: random.Random) -> dict[str, Any]:
    source = inspect.getsource(json.decoder) + inspect.getsource(inspect)
    tokens = re.findall(r" ?\w{1,5}|\n *|[^\w\s]| +", source)[:CONTEXT]
    queries = []
    for position in (210, 480, 777, 1015):
        raw = [dice.paretovariate(1.1) * (1 + 40 / (position - key + 1)) for key in range(position + 1)]
        raw[0] += 0.3 * sum(raw)
        mass = [value / sum(raw) for value in raw]
        noisy = sorted(range(position + 1), key=lambda key: -mass[key] * dice.lognormvariate(0, 0.5))
        queries.append({"position": position, "selected": sorted(noisy[:TOPK]), "attention": mass})
    return {"layer": 2, "topk": TOPK, "tokens": tokens, "queries": queries}


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


class Parsed(HTMLParser):
    """A page as a strict reader sees it: every element closed in order; its tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = demo_folder(tmp_path_factory.mktemp("runs") / "demo")
    assert write_report(path) == path / "report.html"
    return path


@pytest.fixture(scope="module")
def report(folder: Path) -> Parsed:
    return Parsed((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_asks_nothing_of_the_network_and_runs_no_code(folder: Path, report: Parsed) -> None:
    assert "script" not in {tag for tag, _ in report.tags}
    for tag, attributes in report.tags:
        assert not {name for name in attributes if name.startswith("on") or name == "src"}, tag
        assert attributes.get("href", "data:").startswith("data:")
    assert "url(" not in STYLE and "@import" not in STYLE
    policy = next(attributes["content"] for _, attributes in report.tags if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'")
    assert (folder / "report.html").stat().st_size < 400_000


def test_every_picture_says_what_it_shows(report: Parsed) -> None:
    pictures = [attributes for tag, attributes in report.tags if tag == "svg" and "viewbox" not in attributes]
    assert len(pictures) == 4 + 1 + 4 + 4 + 2 * LAYERS
    assert all(attributes.get("aria-label") or attributes.get("aria-hidden") for attributes in pictures)


def test_figures_commands_and_origins_are_on_the_page(report: Parsed) -> None:
    text = report.text.replace("\u202f", " ")
    for said in (
        *("稲妻", "1.863", "2.50 to 2.73", "+0.4 % (−0.2 to +1.1 %)", "3.41M", "4.2M", "5 min 42 s", "312 validation"),
        *("88.3 %", "61.2 %", "indexer finds 81.6 % of", "(the last 256 tokens: 61.4 %)", "keeps 93.5 %"),
        *("inazuma demo --out runs/demo", "inazuma verify demo", "8.0 GiB", "torch 2.13.0", "21de62a3f0b54e"),
        *("sympy==1.14.0, networkx==3.6.1", "read 2,184, duplicates 31, invalid utf8 documents 2", "One seed"),
        *("documents 2,100, bytes 31,415,926, tokens 9,000,001",),
    ):
        assert said in text, said
    assert "rich 14.0" not in text


def test_the_page_does_not_tell_where_the_folder_lies(folder: Path) -> None:
    assert str(folder.parent) not in (folder / "report.html").read_text(encoding="utf-8")


def test_a_layer_whose_indexer_is_no_better_than_the_last_tokens_is_named(report: Parsed) -> None:
    assert "(the last 256 tokens: 61.4\u202f%), but is no better than them in layer 3;" in report.text


def test_text_from_the_records_stays_text(tmp_path: Path) -> None:
    hostile = "稲妻\t🌩 é<script>alert('x')</script>&amp;\"\x00\ud83d\u202e"
    shown = "稲妻\t🌩 é<script>alert('x')</script>&amp;\"\u2400\ufffd\ufffd"
    folder = demo_folder(tmp_path / "demo")
    write(folder / "records/samples.json", [{"prompt": "A" + hostile, "text": "B" + hostile}])
    record = json.loads((folder / "records/selection.json").read_text())
    record["tokens"] = ["C" + hostile] * CONTEXT
    write(folder / "records/selection.json", record)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config"]["corpus"] = {"D" + hostile: "E" + hostile}
    write(folder / "manifest.json", manifest)
    parsed = Parsed(write_report(folder).read_text(encoding="utf-8"))
    assert "script" not in {tag for tag, _ in parsed.tags}
    for letter in "ABCDE":
        assert letter + shown in parsed.text, letter


def test_what_a_manifest_may_lack_is_left_out(tmp_path: Path) -> None:
    folder = demo_folder(tmp_path / "demo")
    write(folder / "manifest.json", {})
    (folder / "data/manifest.json").unlink()
    text = Parsed(write_report(folder).read_text(encoding="utf-8")).text
    assert "inazuma verify demo" in text
    assert "Processor" not in text and "None" not in text


@pytest.mark.parametrize("name", ["result.json", "manifest.json", "dense/metrics.jsonl", "records/selection.json"])
def test_a_missing_record_is_named_and_an_earlier_report_stays(tmp_path: Path, name: str) -> None:
    folder = demo_folder(tmp_path / "demo")
    (folder / "report.html").write_text("earlier")
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name}: no such file"):
        write_report(folder)
    assert (folder / "report.html").read_text() == "earlier"


def test_a_report_that_cannot_be_written_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = demo_folder(tmp_path / "demo")
    (folder / "report.html").write_text("earlier")

    def full(*_: str) -> str:
        raise OSError("No space left on device")

    monkeypatch.setattr("inazuma.demo.report.page", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(folder)
    assert (folder / "report.html").read_text() == "earlier"


def test_a_missing_figure_is_named(tmp_path: Path) -> None:
    folder = demo_folder(tmp_path / "demo")
    write(folder / "result.json", result(bits_per_byte={"sparse": 1.8, "dense": 1.8, "gzip": 2.6}))
    with pytest.raises(UserError, match=r"result\.json: no field 'bits_per_byte.ngram'"):
        write_report(folder)


@pytest.mark.parametrize(
    ("relative", "interval", "said"),
    [
        (0.0043, [-0.0021, 0.0112], "ends 0.4 % above its dense twin in bits per byte (95 % interval −0.2 to +1.1 %)."),
        (0.0043, [-0.0021, 0.0112], "That is within the 2 % that the demo aims at."),
        (-0.013, [-0.02, -0.004], "ends 1.3 % below its dense twin in bits per byte (95 % interval −2.0 to −0.4 %)."),
        (-0.0002, [-0.001, 0.001], "ends level with its dense twin"),
        (0.0150, [0.004, 0.031], "within the 2 % that the demo aims at, though the interval does not rule out more."),
        (0.0310, [0.019, 0.042], "That is worse than the 2 % that the demo aims at."),
    ],
)
def test_the_verdict_follows_from_the_difference(relative: float, interval: list[float], said: str) -> None:
    difference = result()["difference"] | {"dense": {"relative": relative, "interval": interval}}
    text = verdict(result(difference=difference)).replace("\u202f", " ")
    assert text.startswith("Reading 256 of up to 1,024 tokens, the sparse model ends ")
    assert said in text
    assert ("worse" in text) == (relative > 0.02)


def test_the_verdict_claims_no_lead_over_a_baseline_that_the_figures_do_not_show() -> None:
    text = verdict(result()).replace("\u202f", " ")
    assert text.endswith(
        "It needs 40 % fewer bits than an n-gram model (95 % interval −41.0 to −39.0 %) "
        "and 29 % fewer bits than gzip (95 % interval −30.0 to −27.0 %)."
    )
    bits = {"sparse": 1.9, "dense": 1.9, "ngram": 1.8, "gzip": 2.0}
    difference = result()["difference"] | {
        "ngram": {"relative": 0.0556, "interval": [0.04, 0.07]},
        "gzip": {"relative": -0.05, "interval": [-0.11, 0.01]},
    }
    text = verdict(result(bits_per_byte=bits, difference=difference)).replace("\u202f", " ")
    assert "It needs 5 % fewer bits than gzip (95 % interval −11.0 to +1.0 %, not clearly)." in text
    assert text.endswith("It does not beat an n-gram model (1.90 against 1.80 bits per byte).")


def test_shares_of_a_query() -> None:
    record = {"position": 4, "attention": [0.35, 0.05, 0.2, 0.1, 0.3], "selected": [0, 1]}
    query = Query.of(record, 2, "record")
    assert query.best == {0, 4} and query.recent == {3, 4}
    assert query.share(query.picked) == pytest.approx(0.4)
    assert query.share(query.best) == pytest.approx(0.65)
    assert query.share(query.recent) == pytest.approx(0.4)


def test_of_equally_heavy_keys_the_earlier_is_the_best() -> None:
    assert Query.of({"position": 3, "attention": [0.25] * 4, "selected": [2]}, 2, "record").best == {0, 1}


@pytest.mark.parametrize("change", [{"attention": [0.5, 0.5]}, {"selected": [0, 3]}])
def test_a_selection_record_that_contradicts_itself_is_refused(change: dict[str, Any]) -> None:
    record = {"position": 2, "attention": [0.2, 0.3, 0.5], "selected": [0, 2]}
    with pytest.raises(UserError, match="here: the query at 2"):
        Query.of(record | change, 2, "here")


def test_the_picture_draws_exactly_the_keys_of_the_record(folder: Path, report: Parsed) -> None:
    """Read back from the shapes: which keys are picked and missed, and that a heavier key is never drawn lower."""
    record = json.loads((folder / "records/selection.json").read_text())
    paths = [(found["class"], found["d"]) for tag, found in report.tags if tag == "path"]
    assert len(paths) == 5 * len(record["queries"])
    for number, query in enumerate(record["queries"]):
        *columns, (_, picked), (_, missed) = paths[5 * number : 5 * number + 5]
        mass = query["attention"]
        heaviest = set(sorted(range(len(mass)), key=lambda key: -mass[key])[:TOPK])
        assert _keys(picked) == set(query["selected"])
        assert _keys(missed) == heaviest - set(query["selected"])
        heights = {}
        for style, path in columns:
            for x, height in re.findall(r"M([\d.]+) \d+v-([\d.]+)", path):
                key = round(float(x) * CONTEXT / 1000)
                heights[key] = float(height)
                assert ("picked" in style) == (key in query["selected"]) or "missed" in style
        drawn = [heights.get(key, 0.0) for key in sorted(range(len(mass)), key=lambda key: mass[key])]
        assert drawn == sorted(drawn) and drawn[0] < 0.3 * drawn[-1]


def _keys(path: str) -> set[int]:
    keys: set[int] = set()
    for x, width in re.findall(r"M([\d.]+) \d+h([\d.]+)", path):
        start = round(float(x) * CONTEXT / 1000)
        keys.update(range(start, start + round(float(width) * CONTEXT / 1000)))
    return keys


def test_runs_are_the_stretches_of_consecutive_keys() -> None:
    assert runs([7, 1, 2, 3, 5]) == [(1, 4), (5, 6), (7, 8)]


def test_stages_join_where_they_change() -> None:
    seen = [(10, "dense"), (20, "dense"), (30, "warmup"), (40, "sparse"), (50, "sparse")]
    bands = stages([{"tokens": tokens, "stage": stage} for tokens, stage in seen])
    assert bands == [Band("dense", 0, 20), Band("warmup", 20, 30), Band("sparse", 30, 50)]


@pytest.mark.parametrize(
    ("scale", "count", "ticks"),
    [
        (Scale(0, 4_200_000), 4, [0, 2_000_000, 4_000_000]),
        (Scale(0, 1), 4, [0, 0.5, 1]),
        (Scale(1.86, 3.4, logarithmic=True), 4, [2, 2.5, 3]),
        (Scale(0.08, 1.6, logarithmic=True), 4, [0.1, 0.3, 1]),
        (Scale(0.001, 20, logarithmic=True), 4, [0.001, 0.01, 0.1, 1, 10]),
        (Scale(3, 3), 4, [3]),
    ],
)
def test_ticks_are_round_values_inside_the_scale(scale: Scale, count: int, ticks: list[float]) -> None:
    assert scale.ticks(count) == pytest.approx(ticks)


def test_a_scale_maps_its_ends_to_0_and_1() -> None:
    assert [Scale(2, 6)(value) for value in (2, 3, 6)] == [0, 0.25, 1]
    assert [Scale(1, 100, logarithmic=True)(value) for value in (1, 10, 100)] == pytest.approx([0, 0.5, 1])


def test_a_curve_goes_through_its_points_and_leaves_out_what_is_not_finite() -> None:
    points = [(0, 0.25), (5, "nan"), (6, math.inf), (10, 1.0)]
    chart = line_chart([Series("a < b", points, "sparse")], label="x", y_range=(0, 1), height=200)
    assert 'points="0.0,150.0 1000.0,0.0"' in chart
    assert "a &lt; b" in chart and "nan" not in chart
    single = line_chart([Series("once", [(10, 2.0)], "sparse")], label="x")
    assert "once: 2 after 10 tokens" in single
    assert "nothing to draw" in line_chart([Series("never", [(5, "nan")], "sparse")], label="x")


def test_the_colours_can_be_told_from_the_paper_in_light_and_dark() -> None:
    """WCAG 2.2: 4.5 for text (1.4.3), 3 for what must be seen in a picture (1.4.11)."""
    light, dark = STYLE.split("prefers-color-scheme: dark")
    for theme in (light, dark):
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})[;\s]", theme))
        for background in ("paper", "raised"):
            for text in ("ink", "muted", "sparse", "missed"):
                assert _contrast(colours[text], colours[background]) >= 4.5, (text, background)
        for shape in ("dense", "other", *(f"layer-{i}" for i in range(8))):
            assert _contrast(colours[shape], colours["paper"]) >= 3, shape


def _contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
