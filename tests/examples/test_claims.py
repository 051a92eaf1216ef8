"""The gallery: every lesson's figures against closed forms, quadrature or another implementation, and its verdicts."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.integrate import quad
from scipy.stats import binom, binomtest, multivariate_normal, norm

GALLERY = Path(__file__).resolve().parents[2] / "examples/claims"
sys.path.insert(0, str(GALLERY))

import gallery  # noqa: E402
import lesson as lessons_module  # noqa: E402
import untuned_baseline  # noqa: E402
from lesson import Lesson, Statement  # noqa: E402

from inazuma.runs.claims import check_claims  # noqa: E402

VERDICTS = {
    "river_crossing": {
        "models-fail": ("V04", "not judged"),
        "boat-for-three": ("", "supported"),
        "explains-all": ("", "refuted"),
        "boat-for-four": ("", "supported"),
    },
    "tower_of_hanoi": {
        "large-sizes": ("V03", "not judged"),
        "limit-binds": ("", "supported"),
        "rebuttal": ("", "refuted"),
        "not-purely": ("", "supported"),
        "program": ("missing", "not judged"),
    },
    "best_of_k_seeds": {
        "better": ("V14", "not judged"),
        "one-seed": ("", "overstated"),
        "best-of-five": ("", "overstated"),
        "all-seeds": ("", "supported"),
    },
    "untuned_baseline": {
        "against-the-default": ("V15", "not judged"),
        "speed-up": ("", "refuted"),
        "faster": ("", "underpowered"),
    },
    "saturated_needle": {
        "needle": ("V18 V24", "not judged"),
        "no-loss": ("", "underpowered"),
        "worst-task": ("", "refuted"),
    },
    "unpaired_comparison": {
        "no-harm": ("V12", "not judged"),
        "careful": ("", "supported"),
        "finds-it": ("", "overstated"),
        "paired-finds-it": ("", "supported"),
    },
    "bootstrap_standard_error": {
        "error-bar": ("V22", "not judged"),
        "square-root-of-b": ("", "supported"),
        "covers": ("", "overstated"),
        "undivided-covers": ("", "supported"),
    },
    "galactica": {
        "three-days": ("", "supported"),
        "taken-back": ("", "refuted"),
        "retracted": ("missing", "not judged"),
        "equations": ("missing", "not judged"),
        "cited": ("missing", "not judged"),
    },
    "alphafold_3": {
        "code-with-paper": ("", "refuted"),
        "six-months": ("", "supported"),
        "open-weights": ("", "refuted"),
        "training": ("missing", "not judged"),
        "accuracy": ("missing", "not judged"),
    },
    "price_per_request": {
        "at-one": ("", "overstated"),
        "cheaper-at-one": ("", "overstated"),
        "million-a-day": ("", "supported"),
        "million-a-day-small": ("", "overstated"),
        "break-even": ("", "supported"),
        "latency": ("missing", "not judged"),
    },
}


@pytest.fixture(scope="module")
def lessons() -> dict[str, Lesson]:
    return gallery.run()


def found(lesson: Lesson, id: str) -> float:
    return next(one.found for one in lesson.statements if one.id == id)


def column(lesson: Lesson, at: int) -> list[str]:
    return [str(row[at]) for row in lesson.rows]


def test_verdicts(lessons):
    got = {
        name: {
            one.id: ("missing" if one.missing else " ".join(rule for rule, _ in one.rules), one.verdict.claim)
            for one in lesson.statements
        }
        for name, lesson in lessons.items()
    }
    assert got == VERDICTS


def test_a_lesson_runs_by_itself_and_all_can_be_shown(lessons, capsys):
    done = subprocess.run(
        [sys.executable, GALLERY / "tower_of_hanoi.py"], capture_output=True, text=True, cwd=GALLERY.parent
    )
    lessons_module.show(lessons["tower_of_hanoi"])
    assert (done.returncode, done.stdout) == (0, capsys.readouterr().out), done.stderr
    for one in lessons.values():
        lessons_module.show(one)
        printed = capsys.readouterr().out
        assert all(f"measurement: {x.measurement} | claim: {x.claim}" in printed for x in one.statements)


def test_every_file_is_a_lesson_of_the_gallery():
    assert {path.stem for path in GALLERY.glob("*.py")} - {"lesson", "gallery"} == set(gallery.LESSONS)
    for name in gallery.LESSONS:
        assert 30 <= len((GALLERY / f"{name}.py").read_text().splitlines()) <= 110


def test_the_readme_says_what_the_lessons_say(lessons):
    text = (GALLERY / "README.md").read_text(encoding="utf-8")
    assert gallery.readme(text, lessons) == text


def test_the_claims_file_is_that_of_the_lessons(lessons, tmp_path):
    gallery.write(tmp_path, lessons)
    ours, committed = (yaml.safe_load((folder / "claims.yaml").read_text()) for folder in (tmp_path, GALLERY))
    assert ours["claims"] == committed["claims"]
    assert set(ours["records"]) == set(committed["records"])
    names = {path.name for path in (GALLERY / "records").iterdir()}
    assert names == {path.name for path in (tmp_path / "records").iterdir()}
    for name in names:
        there, here = (json.loads((folder / "records" / name).read_text()) for folder in (GALLERY, tmp_path))
        if name.endswith(".audit.json"):
            assert there == here
        else:
            assert {k: pytest.approx(v["found"], rel=1e-6) for k, v in there.items()} == {
                k: v["found"] for k, v in here.items()
            }


def test_inazuma_verify_gives_the_same_verdicts(lessons):
    report = check_claims(GALLERY / "claims.yaml")
    judged = {one.id: (one.measurement, " ".join(one.rules), one.claim) for one in report.claims}
    assert judged == {
        f"{name}.{id}": (
            "valid" if not rules else "not computable" if rules == "missing" else "invalid",
            "" if rules == "missing" else rules,
            claim,
        )
        for name, statements in VERDICTS.items()
        for id, (rules, claim) in statements.items()
    }


def test_zero_is_a_value_in_the_claims_file():
    gain = Statement(
        id="gain", text="", stated="2", found=1.5, direction="at least", interval=(0.5, 2.5), no_effect=0, within=0
    )
    figure = gallery.claim("some_lesson", gain)["figures"]["figure"]
    assert gain.claim == "direction only" and (figure["no_effect"], figure["within"]) == (0, 0)


@pytest.mark.parametrize(
    ("figure", "claim"),
    [
        ({"stated": "13", "found": 13}, "supported"),
        ({"stated": "5", "found": 26.33, "direction": "at most"}, "overstated by 21"),
        ({"stated": "378", "found": 666, "direction": "at most"}, "overstated by 290"),
        (
            {"stated": "2", "found": 1.5, "direction": "at least", "interval": (1.2, 2.2), "no_effect": 1},
            "direction only",
        ),
        ({"stated": "1", "found": 1, "rules": (("V04", "why"),)}, "not judged"),
        ({"missing": "the weights"}, "not judged"),
    ],
)
def test_the_words_of_a_statement(figure, claim):
    assert Statement(id="x", text="", **figure).claim == claim


def crossings(pairs: int, boat: int) -> int | None:
    """The fewest crossings, searched level by level over numbers: bit i is actor i, bit pairs + i the agent."""
    everyone = (1 << 2 * pairs) - 1

    def safe(group: int) -> bool:
        agents, actors = group >> pairs, group & ((1 << pairs) - 1)
        return not agents or not actors & ~agents

    groups = [g for g in range(1, everyone + 1) if g.bit_count() <= boat and safe(g)]
    level, seen, count = {(everyone, 1)}, {(everyone, 1)}, 0
    while level:
        if (0, 0) in level:
            return count
        after = set()
        for left, here in level:
            bank = left if here else everyone & ~left
            for group in groups:
                if group & ~bank == 0 and safe(left ^ group) and safe(everyone & ~(left ^ group)):
                    after.add((left ^ group, 1 - here))
        level, count = after - seen, count + 1
        seen |= level
    return None


def test_river_crossing(lessons):
    lesson = lessons["river_crossing"]
    # Known since Pressman and Singmaster, The Mathematical Gazette 73 (1989), and before.
    assert column(lesson, 1) == ["5", "11", "none", "", "", "", ""]
    assert column(lesson, 2) == ["3", "5", "9", "11", "none", "none", "none"]
    assert column(lesson, 3)[1:] == [str(2 * n - 3) for n in range(3, 9)]  # two pairs over and one back
    assert crossings(5, 3) == 11 and crossings(6, 3) is None and crossings(6, 4) == 9
    assert found(lesson, "explains-all") == 3


def test_tower_of_hanoi(lessons):
    lesson = lessons["tower_of_hanoi"]
    assert column(lesson, 1) == [str(2**n - 1) for n in range(5, 16)]
    # 10 (2^N - 1) > 64000 from the least N on that is above log2(6401)
    assert found(lesson, "limit-binds") == math.floor(math.log2(6401)) + 1 == 13
    assert found(lesson, "not-purely") == pytest.approx(3.984375)


def test_best_of_k_seeds(lessons):
    lesson = lessons["best_of_k_seeds"]
    noise = 0.7 * 0.3 / 1000
    spread, threshold = math.sqrt(noise + 0.01**2), 1.645 * math.sqrt(2 * noise)
    for k, rate in list(zip(column(lesson, 0), column(lesson, 1), strict=True))[:5]:
        # The best of k beats the other by the threshold: 1 - P(none of k does), over the other's place.
        exact, _ = quad(lambda y, k=k: norm.pdf(y) * (1 - norm.cdf(y + threshold / spread) ** int(k)), -8, 8)
        assert float(rate) == pytest.approx(100 * exact, abs=1.5)  # normal for binomial, 20,000 studies
    assert found(lesson, "all-seeds") < 2.5  # half of 5 %, since only "better" is counted


def test_untuned_baseline(lessons):
    """With automatic derivatives, and momentum as a sum over all earlier gradients, it takes as many steps."""
    x, y, target = (torch.tensor(part) for part in untuned_baseline.data(0))
    for rate, momentum in ((3.0, 0.0), (3.0, 0.9), (0.1, 0.9)):
        w = torch.zeros(10, dtype=torch.float64, requires_grad=True)
        gradients: list[torch.Tensor] = []
        while True:
            loss = torch.nn.functional.softplus(-y * (x @ w)).mean() + 0.005 * w.square().sum()
            if loss.item() <= target.item():
                break
            gradients.append(torch.autograd.grad(loss, w)[0])
            past = torch.stack(gradients[::-1])
            with torch.no_grad():
                w -= rate * momentum ** torch.arange(len(past), dtype=torch.float64) @ past
        steps = len(gradients)
        assert steps == untuned_baseline.steps(x.numpy(), y.numpy(), rate, momentum, float(target))
    lesson = lessons["untuned_baseline"]
    best = [int(row[1]) for row in lesson.rows[:-1]]
    assert best.index(min(best)) not in (0, len(best) - 1)
    assert not lesson.statements[1].rules


def test_saturated_needle(lessons):
    lesson = lessons["saturated_needle"]
    needle, keys, chains, counting = (int(x) for x in column(lesson, 2))
    assert (needle, counting) == (100, 0)
    assert binomtest(keys // 2, 50, 1 / 8).pvalue > 0.01 and binomtest(chains // 2, 50, 1 / 4).pvalue > 0.01
    ends = binomtest(50, 50).proportion_ci(method="wilson")
    assert column(lesson, 3)[0] == f"{100 * ends.low:.0f}–{100 * ends.high:.0f}"
    # Tango's interval of no difference in n pairs ends at z^2 / (n + z^2).
    z = norm.ppf(0.975) ** 2
    assert lesson.statements[1].interval == pytest.approx((-100 * z / (50 + z), 100 * z / (50 + z)))


def test_unpaired_comparison(lessons):
    lesson = lessons["unpaired_comparison"]
    a, b, n = 0.70, 0.74, 500
    both = multivariate_normal.cdf([norm.ppf(a), norm.ppf(b)], cov=[[1, 0.8], [0.8, 1]])
    apart = a + b - 2 * both
    paired = math.sqrt((apart - (b - a) ** 2) / n)
    unpaired = math.sqrt((a * (1 - a) + b * (1 - b)) / n)
    for id, error, published in (("finds-it", unpaired, 20), ("paired-finds-it", paired, 58)):
        exact = 100 * sum(norm.sf((1.96 * error + side * (b - a)) / paired) for side in (-1, 1))
        assert found(lesson, id) == pytest.approx(exact, abs=3)  # 2,000 studies: 1.1 points
        assert found(lesson, id) == pytest.approx(published, abs=3)
    both = multivariate_normal.cdf([norm.ppf(a), norm.ppf(a)], cov=[[1, 0.8], [0.8, 1]])
    ratio = math.sqrt(2 * a * (1 - a) / (2 * a - 2 * both))
    assert found(lesson, "careful") == pytest.approx(200 * norm.sf(1.96 * ratio), abs=0.3)


def test_bootstrap_standard_error(lessons):
    lesson = lessons["bootstrap_standard_error"]
    assert found(lesson, "error-bar") == pytest.approx(100 * math.sqrt(0.6 * 0.4 / 499))
    assert found(lesson, "square-root-of-b") == pytest.approx(math.sqrt(1000), rel=0.07)
    # So narrow an interval holds the truth only where exactly 300 of 500 were right.
    assert found(lesson, "covers") == pytest.approx(100 * binom.pmf(300, 500, 0.6), abs=1)
    k = np.arange(501)
    wald = abs(k / 500 - 0.6) <= 1.96 * np.sqrt(k / 500 * (1 - k / 500) / 500)
    assert found(lesson, "undivided-covers") == pytest.approx(100 * binom.pmf(k, 500, 0.6)[wald].sum(), abs=1.1)


def test_what_was_available_when(lessons):
    """Days counted by hand: 23 + 30 + 31 + 31 + 30 + 31 + 11 from 8 May to 11 November 2024, and so on."""
    assert found(lessons["alphafold_3"], "code-with-paper") == 23 + 30 + 31 + 31 + 30 + 31 + 11
    assert found(lessons["alphafold_3"], "six-months") == pytest.approx(187 / 30.4375)
    assert found(lessons["alphafold_3"], "open-weights") == 49 + 365 + 31 + 28 + 31 + 30 + 31 + 30 + 23 + 1
    assert found(lessons["galactica"], "three-days") == 2
    assert found(lessons["galactica"], "taken-back") == 13 + 31 + 31 + 14
    for name in ("alphafold_3", "galactica"):
        days = column(lessons[name], 0)
        assert days == sorted(days) and set(column(lessons[name], 3)) == {"clone", "no"}


def test_price_per_request(lessons):
    lesson = lessons["price_per_request"]
    assert column(lesson, 1) == ["3", "58", "667", "6,667"]
    assert column(lesson, 2) == ["cheaper", "dearer", "dearer", "dearer"]
    assert column(lesson, 3) == ["cheaper", "cheaper", "dearer", "dearer"]
    # 57.60 dollars a day, for a million requests; 2.4 * 24 * 30.4375 dollars a month, at 378 for a million
    assert found(lesson, "million-a-day") == pytest.approx(2.4 * 24)
    assert found(lesson, "break-even") == pytest.approx(2.4 * 24 * 30.4375 / 378)
