"""`inazuma bench ops`: what is counted, what is measured, and that the figures follow from the records."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from inazuma import cli
from inazuma.bench import peers as peers_module
from inazuma.bench.bench import BenchSize, parse_lengths, run_bench
from inazuma.bench.cases import DENSE, OPERATORS, PASSES, Shape, Tensors, call_of, work
from inazuma.bench.peers import OUR_LAYER, THEIR_LAYER, our_layer, peers, their_layer
from inazuma.bench.report import rows, verdict
from inazuma.bench.timing import measure_first_call, take_turns
from inazuma.errors import UserError
from inazuma.runs import verify

TINY = Shape(B=2, H=4, D=16, G=2, I=2, C=8, k=16)
SIZE = BenchSize(lengths=(24, 48), repeats=2, shape=TINY, warm_up=24, copied=1 << 16, widths=(32, 64))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("bench") / "run"
    ticks: list[tuple[int, int]] = []
    result = run_bench(
        out,
        size=SIZE,
        command=["inazuma", "bench", "ops"],
        compare=True,
        progress=lambda phase, done, total: ticks.append((done, total)),
    )
    assert ticks[-1][0] == ticks[-1][1]  # every timing was announced, and all were made
    return out, result


def pairs_of(length: int) -> tuple[int, int]:
    """Visible and kept pairs of a query and a key, by counting them one by one."""
    visible = sum(1 for t in range(length) for s in range(length) if s <= t)
    return TINY.B * visible, TINY.B * sum(min(t + 1, TINY.k) for t in range(length))


@pytest.mark.parametrize("length", [5, 16, 40])
def test_arithmetic_is_what_pytorch_counts_of_the_products(length: int) -> None:
    """PyTorch's counter sees full rectangles of products; ours are the part of them that is visible, or kept."""
    B, H, D, _, I, C, _ = vars(TINY).values()  # noqa: E741
    visible, kept = pairs_of(length)
    rectangle = B * length * length

    def per_pair(call) -> int:
        with FlopCounterMode(display=False) as counter:
            call()
        assert counter.get_total_flops() % rectangle == 0
        return counter.get_total_flops() // rectangle

    q, k, v = (torch.randn(B * H, length, D, requires_grad=True) for _ in range(3))
    iq, ik = torch.randn(B * I, length, C, requires_grad=True), torch.randn(B * I, length, C, requires_grad=True)
    product = lambda a, b: torch.bmm(a, b.transpose(1, 2))  # noqa: E731

    def attend() -> torch.Tensor:
        return torch.bmm(product(q, k).softmax(-1), v)

    def attend_backward() -> None:
        attend().sum().backward()
        product(q, k)  # the scores again, which are not kept

    score, target = per_pair(lambda: product(iq, ik)), per_pair(lambda: product(q, k))
    learn = per_pair(lambda: (product(iq, ik).sum().backward(), product(iq, ik))) - score
    attention, training = per_pair(attend), per_pair(attend_backward)
    wanted = {
        ("select_tokens", "forward"): visible * score,
        ("sparse_attention", "forward"): kept * attention,
        ("sparse_attention", "training"): kept * training,
        ("dense_attention", "training"): visible * training,
        (DENSE, "forward"): visible * attention,
        ("index_loss", "forward"): kept * (target + score),
        ("index_loss", "training"): kept * (target + score + learn),
        ("index_loss (all keys)", "training"): visible * (target + score + learn),
        ("dsa", "forward"): visible * score + kept * attention,
        ("dsa", "training"): visible * score + kept * (training + target + score + learn),
    }
    assert {key: work(*key, length, TINY, 4).flops for key in wanted} == wanted


def test_arithmetic_of_deepseek_v32_is_the_published_count() -> None:
    """V3.2: 64 index heads of width 128, and a core that is 1.44 GFLOP a query backward at widths 576 and 512."""
    shape = Shape(H=128, D=544, I=64, C=128, k=2048)  # D stands for the mean of 576 and 512
    pairs = 4096 * 4097 // 2
    assert work("select_tokens", "forward", 4096, shape, 2).flops == 16_384 * pairs
    long = 1 << 20  # where almost every query keeps all 2,048
    assert work("sparse_attention", "forward", long, shape, 2).flops / long == pytest.approx(0.570e9, rel=2e-3)


@pytest.mark.parametrize("length", [12, 40])
def test_bytes_are_those_of_the_tensors_and_of_the_rows_that_the_selection_names(length: int) -> None:
    x = Tensors(length, TINY, torch.float32, "cpu", "auto")

    def size(*tensors: torch.Tensor) -> int:
        return sum(one.numel() * one.element_size() for one in tensors)

    index_q, index_k, index_w = x.index
    named = int((x.indices >= 0).sum())
    keys, index_keys = (named * size(*of) // (TINY.B * length) for of in ((x.k, x.v), (index_k, x.k)))
    scores = size(*x.index, x.indices)
    out, lse = x.q, x.lse
    sparse = size(x.q, x.indices, out, lse) + keys
    sparse_back = size(x.q, x.indices, out, x.cotangent, lse) + keys + size(x.q, x.k, x.v)
    learn = size(index_q, index_w, x.q, x.indices, lse) + index_keys
    learn_all = size(*x.index, x.q, x.k, lse)
    expected = {
        ("select_tokens", "forward"): scores,
        ("sparse_attention", "forward"): sparse,
        ("sparse_attention", "training"): sparse + sparse_back,
        ("index_loss", "forward"): learn,
        ("index_loss", "training"): 2 * learn + size(*x.index),
        ("index_loss (all keys)", "forward"): learn_all,
        ("index_loss (all keys)", "training"): 2 * learn_all + size(*x.index),
        ("dense_attention", "forward"): size(x.q, x.k, x.v, out, lse),
        ("dense_attention", "training"): 3 * size(x.q, x.k, x.v) + size(out, out, x.cotangent, lse, lse),
        (DENSE, "forward"): size(x.q, x.q, x.q, out, lse),
        ("dsa", "forward"): scores + sparse,
        ("dsa", "training"): scores + sparse + sparse_back + 2 * learn + size(*x.index),
    }
    assert {key: work(*key, length, TINY, 4).bytes for key in expected} == expected


def test_dense_attention_is_the_same_function_whoever_computes_it() -> None:
    x = Tensors(40, TINY, torch.float32, "cpu", "auto")
    theirs, *their_gradients = call_of(DENSE, "training", x)()
    ours, _, *our_gradients = call_of("dense_attention", "training", x)()
    torch.testing.assert_close(theirs.transpose(1, 2), ours)
    groups = TINY.H // TINY.G
    torch.testing.assert_close(their_gradients[0].transpose(1, 2), our_gradients[0])
    for theirs, ours in zip(their_gradients[1:], our_gradients[1:], strict=True):
        torch.testing.assert_close(theirs.unflatten(1, (-1, groups)).sum(2).transpose(1, 2), ours)


@pytest.mark.parametrize("kind", PASSES)
def test_our_layer_and_that_of_transformers_compute_the_same(kind: str) -> None:
    shape = dataclasses.replace(TINY, G=1, I=16)  # with few index heads zeros tie, which transformers breaks otherwise
    x = Tensors(48, shape, torch.float32, "cpu", "auto")
    for theirs, ours in zip(their_layer(kind, x)(), our_layer(kind, x)(), strict=False):
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4)


def test_everything_is_measured_in_turns_and_recomputed_from_the_records(finished: tuple[Path, dict]) -> None:
    out, result = finished
    lines = [json.loads(line) for line in (out / "records/measurements.jsonl").read_text().splitlines()]
    turns = [line for line in lines if "turn" in line]
    names = [*OPERATORS, DENSE, OUR_LAYER, THEIR_LAYER]
    order = [line["operator"] for line in turns if (line["pass"], line["length"]) == ("forward", 48)]
    assert order == names * SIZE.repeats
    for kind in PASSES:
        expected = [name for name in names if kind == "forward" or name != "select_tokens"]
        assert list(result["seconds"][kind]) == expected
        assert all(list(by) == ["24", "48"] for by in result["seconds"][kind].values())
    place = ("training", "dsa", 24)
    times = [line["seconds"] for line in turns if (line["pass"], line["operator"], line["length"]) == place]
    assert result["seconds"]["training"]["dsa"]["24"] == pytest.approx(sum(times) / 2)
    copies = [line["bytes"] / line["seconds"] for line in lines if line.get("ceiling") == "copy"]
    assert result["copy_bytes_per_second"] == max(copies)
    ratio = result["seconds"]["forward"][DENSE]["48"] / result["seconds"]["forward"]["dsa"]["48"]
    assert result["times_as_fast"]["forward"]["dsa"]["48"] == pytest.approx(ratio)
    assert DENSE not in result["times_as_fast"]["forward"] and THEIR_LAYER not in result["times_as_fast"]["forward"]
    checks = verify(out)
    assert len(checks) > 200 and all(check.ok for check in checks)


def test_a_changed_time_changes_the_figures(finished: tuple[Path, dict]) -> None:
    out, _ = finished
    record = out / "records/measurements.jsonl"
    before = record.read_bytes()
    lines = [json.loads(line) for line in before.splitlines()]
    for line in lines:
        if (line.get("pass"), line.get("operator"), line.get("length")) == ("forward", "dsa", 24) and "turn" in line:
            line["seconds"] /= 10
    try:
        record.write_text("".join(json.dumps(line) + "\n" for line in lines))
        failed = {check.name for check in verify(out) if not check.ok}
    finally:
        record.write_bytes(before)
    place = "forward.dsa.24"
    derived = ("seconds", "flops_per_second", "times_as_fast", "roofline_share")
    assert {f"{name}.{place}" for name in derived} | {"records/measurements.jsonl"} <= failed
    assert "seconds.forward.dsa.48" not in failed and "seconds.training.dsa.24" not in failed


def test_the_report_says_what_the_result_says(finished: tuple[Path, dict]) -> None:
    out, result = finished
    text = (out / "report.html").read_text()
    assert verdict(result) in text and str(out) not in text
    table = list(rows(result))
    assert len(table) == 2 * (9 + 8) and all(cell in text for row in table for cell in row.cells)
    for name in (*OPERATORS, DENSE, OUR_LAYER):
        assert text.count(f"{name}: ") >= 4  # dots with hints in the charts
    assert all(line in text for line in result["missing"])
    assert text.count("<svg role") == 6 and "curve ceiling" in text and "nan" not in text


def verdict_of(ratios: dict[str, float], ahead: list[int]) -> str:
    figures = {"times_as_fast": {"forward": {"dsa": ratios}}, "dsa_ahead": {"forward": ahead}}
    return verdict(figures).partition(" Forward and backward")[0]


def test_the_crossover_in_words() -> None:
    assert "overtakes dense SDPA between 2,048 and 4,096 tokens, and is 3.0 times as fast at 8,192" in verdict_of(
        {"1024": 1.2, "2048": 0.9, "4096": 1.5, "8192": 3.0}, [4096, 8192]
    )
    assert "not faster than dense SDPA at 2,048" in verdict_of({"1024": 1.2, "2048": 0.9}, [])
    assert "at every measured length, from 1,024" in verdict_of({"1024": 1.2}, [1024])


def test_what_takes_too_long_is_skipped_and_named(tmp_path: Path) -> None:
    size = dataclasses.replace(SIZE, lengths=(24, 1 << 20), limit=5.0)
    result = run_bench(tmp_path / "run", size=size, command=["x"])
    assert list(result["seconds"]["forward"]["dsa"]) == ["24"]
    skipped = [line for line in result["skipped"] if "1,048,576 tokens" in line]
    assert len(skipped) == len(result["skipped"]) == 2 * len((*OPERATORS, DENSE)) - 1
    assert all("limit of 5 s" in line or "GB are free" in line for line in skipped)
    assert all(line in (tmp_path / "run/report.html").read_text() for line in skipped)


def test_what_needs_too_much_memory_is_skipped_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inazuma.bench.bench.free_memory", lambda device: 0)
    result = run_bench(tmp_path / "run", size=SIZE, command=["x"])
    assert list(result["seconds"]["forward"]["dsa"]) == ["24"]
    assert len(result["skipped"]) == 2 * len((*OPERATORS, DENSE)) - 1
    assert all("48 tokens" in line and "GB are free" in line for line in result["skipped"])


def test_a_shorter_length_does_not_worsen_the_forecast(tmp_path: Path) -> None:
    """At 4 tokens a call is all fixed costs: foreseen from there, 1,024 tokens would seem to take many seconds."""
    size = dataclasses.replace(SIZE, lengths=(4, 1024), repeats=1, limit=4.0, warm_up=1024)
    result = run_bench(tmp_path / "run", size=size, command=["x"])
    assert not result["skipped"]


def test_peers_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found, missing = peers("cpu", torch.float32)
    assert [one.name for one in found] == [OUR_LAYER, THEIR_LAYER]
    assert missing == [f"{name} is not installed" for name in ("flash-attn", "tilelang", "fla")]
    # json stands in for packages that are installed.
    monkeypatch.setattr(
        peers_module,
        "PACKAGES",
        {name: ("json", make) for name, (_, make) in peers_module.PACKAGES.items() if name != "transformers"},
    )
    found, missing = peers("cpu", torch.float32)
    assert not found
    for line, why in zip(missing, ("needs a GPU", "examples outside the package", "does not load"), strict=True):
        assert why in line


def test_memory_is_what_a_call_had_in_use_besides_what_it_made() -> None:
    def call() -> list[torch.Tensor]:
        buffer = torch.ones(5_000_000)
        return [buffer[:1_000_000].clone()]

    _, memory = measure_first_call(call, "cpu")
    if "extra_bytes" not in memory:
        pytest.skip("this system does not tell")
    assert memory["made_bytes"] == 4_000_000
    assert memory["extra_bytes"] == pytest.approx(20_000_000, rel=0.1)


def test_short_calls_are_taken_several_at_a_turn() -> None:
    count = {"a": 0, "b": 0}

    def call(name: str):
        def one() -> list[torch.Tensor]:
            count[name] += 1
            return []

        return one

    records = list(take_turns({name: call(name) for name in count}, {"a": 0.02, "b": 1.0}, 2, "cpu"))
    assert [(record["operator"], record["turn"], record["calls"]) for record in records] == [
        ("a", 0, 3),
        ("b", 0, 1),
        ("a", 1, 3),
        ("b", 1, 1),
    ]
    assert count == {"a": 6, "b": 2}


def test_lengths() -> None:
    assert parse_lengths("4096, 1K,1024,128k") == (1024, 4096, 131072)
    for wrong in ("", "x", "1,,2", "-5", "1.5K", "K"):
        with pytest.raises(UserError, match="lengths: expected numbers"):
            parse_lengths(wrong)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lengths", "many"], "lengths: expected numbers such as 1024,2048"),
        (["--lengths", "0"], "lengths: expected 1 to"),
        (["--dtype", "int8"], "dtype: expected one of float32, bfloat16"),
        (["--repeats", "0"], "repeats: at least 1"),
        (["--limit", "nan"], "limit: expected a finite number"),
        (["--limit", "inf"], "limit: expected a finite number"),
        (["--engine", "warp"], "engine: expected auto or one of"),
        (["--out", "{full}"], "is not empty"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep")
    before = sorted(tmp_path.rglob("*"))
    command = ["bench", "ops", "--out", str(tmp_path / "run"), *(word.format(full=full) for word in options)]
    assert cli.main(command) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("inazuma: error: ") and said in captured.err and captured.err.count("\n") == 1
    assert not captured.out and sorted(tmp_path.rglob("*")) == before
