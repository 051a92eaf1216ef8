"""The report: one HTML file and the same as Markdown. Both only read the run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inazuma import config
from inazuma.evaluate.outcome import SAMPLES
from inazuma.files import atomic_file, read_json
from inazuma.report.charts import Axis, Series, line_chart
from inazuma.report.page import escape, page
from inazuma.report.provenance import provenance
from inazuma.rightsize.analysis import break_even, calibration_error, cost_curve, slices
from inazuma.rightsize.audited import AUDIT
from inazuma.rightsize.climb import FACTS, SERVICE
from inazuma.rightsize.pareto import pareto_chart
from inazuma.rightsize.sentences import verdict
from inazuma.rightsize.task import Task
from inazuma.runs.lines import read_lines

STYLES = [f"layer-{i}" for i in range(8)] + ["baseline"]
Table = tuple[str, str, list[str], list[list[str]]]
"""Title, what to know about it, header and rows, all plain text."""


def write_report(folder: Path) -> None:
    """Writes `report.html` and `report.md` from the files in a run folder of `inazuma rightsize`."""
    folder = Path(folder)
    manifest = read_json(folder / "manifest.json")
    task = config.from_dict(Task, manifest["config"], where=str(folder / "manifest.json"))
    result, data, ladder = (read_json(folder / f"{name}.json") for name in ("result", "data", "ladder"))
    names = [rung["name"] for rung in result["rungs"]]
    samples = {
        name: [line for line in read_lines(folder / "rungs" / name / SAMPLES) if line["task"] == "test"]
        for name in names
    }
    facts = {name: read_json(folder / "rungs" / name / FACTS) for name in names}
    sentence = verdict(task, result)
    parts: list[Table] = [
        _rungs(result, samples),
        _speed(task, result, folder),
        _costs(task, result),
        *_break_even(task, result, facts),
        *_slices(task, result, samples),
        *_curves(task, result),
        _sensitivity(task, result),
        _tuning(facts),
        _data(data),
        _audit(read_json(folder / AUDIT)),
        _left_out(ladder),
    ]
    pictures = {
        "Rungs": pareto_chart(result["rungs"], STYLES),
        "Traffic and cost": _cost_chart(task, result, facts),
        "Learning curves": _curve_chart(result),
    }
    body = (
        f'<h1><span lang="ja">稲妻</span> <b>Which size does it need?</b></h1><p class="verdict">{escape(sentence)}</p>'
    )
    for part in parts:
        body += _html(part, pictures.get(part[0], ""))
    body += f"<section><h2>How it was made</h2>{provenance(folder, manifest, {})}</section>"
    with atomic_file(folder / "report.html") as handle:
        handle.write(page("inazuma rightsize: which size does it need?", body))
    with atomic_file(folder / "report.md") as handle:
        handle.write("\n\n".join(["# Which size does it need?", sentence, *map(_markdown, parts)]) + "\n")


# ---------------------------------------------------------------------------------------------------------- tables


def _rungs(result: Mapping[str, Any], samples: Mapping[str, list[dict[str, Any]]]) -> Table:
    rows = []
    for rung in result["rungs"]:
        quality = rung["quality"]
        rows.append(
            [
                rung["name"],
                f"{quality['value']:.3f} [{quality['low']:.3f}, {quality['high']:.3f}]",
                f"{100 * rung['shortfall'][0]:.1f} to {100 * rung['shortfall'][1]:.1f}",
                _p(rung.get("p_sufficient")),
                _p(rung.get("p_insufficient")),
                f"{100 * rung['on_front']:.0f} %",
                f"{calibration_error(samples[rung['name']]):.3f}",
                str(rung["no_answer"]),
                str(rung["truncated"]),
            ]
        )
    note = (
        "Quality on the same test items, with its 95 % interval. Shortfall: points below the best, 90 % of the joint "
        "draws. p: Holm's, of calling the rung sufficient and of calling it insufficient. Front: the share of draws in "
        "which no rung is as good and as cheap; energy that is only estimated is no part of that. ECE: expected "
        "calibration error of the stated confidence."
    )
    header = ["rung", "quality", "shortfall", "p sufficient", "p insufficient", "on the front", "ECE"]
    header += ["no answer", "cut off"]
    return "Rungs", note, header, rows


def _p(value: float | None) -> str:
    return "over a limit" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _speed(task: Task, result: Mapping[str, Any], folder: Path) -> Table:
    rows = []
    for rung in result["rungs"]:
        latency = rung["latency_ms"]
        cells = [rung["name"]]
        for label in ("p50", "p95", "p99"):
            low, high = latency[f"{label}_interval"]
            cells.append(f"{latency[label]:.3g} [{low:.3g}, {high:.3g}]")
        service = np.array([x["service_ms"] for x in read_lines(folder / "rungs" / rung["name"] / SERVICE)])
        cells += [
            f"{np.median(service):.3g}",
            f"{rung['requests_per_second']:.3g} × {rung['workers'] or '∞'}",
            f"{rung['cold_start_s']:.1f}",
            _memory(rung),
            f"{rung['disk_mb']:.2f}",
            f"{rung['training_seconds']:.1f}",
            f"{rung['joules']:.3g} ({rung['energy']})",
            str(rung["measured_calls"]),
        ]
        rows.append(cells)
    peak = task.costs.requests_per_second * task.costs.peak_factor
    note = (
        f"Milliseconds from arrival to answer at the peak of {peak:g} requests a second, random arrivals (open loop), "
        "waiting in line before one worker included; intervals by ranks. Fewer than about 300 measured calls leave the "
        "99th percentile open upwards. Throughput: requests a second of one worker within the limit, workers needed. "
        "Cold start and memory are those of a fresh process. Estimated energy is processor time, or that of an asked "
        "model's answer, × assumed watts; of a GPU without a counter, the time of the answer × those assumed of it. It "
        "stands in the cost and ranks nothing."
    )
    if names := sorted({str(rung["gpu"]) for rung in result["rungs"] if rung["gpu"]}):
        note += f" GPU: {', '.join(names)}."
    header = ["rung", "p50 ms", "p95 ms", "p99 ms", "one answer ms", "per second × workers", "cold start s"]
    header += ["memory MB", "disk MB", "training s", "J per answer", "calls"]
    return "Speed and memory", note, header, rows


def _memory(rung: Mapping[str, Any]) -> str:
    if not rung["memory_mb"]:
        return "unknown"
    gpu = f" + {rung['gpu_memory_mb']:.0f} of the GPU" if rung["gpu_memory_mb"] else " + GPU" if rung["gpu"] else ""
    return f"{rung['memory_mb']:.0f}{gpu}"


def _costs(task: Task, result: Mapping[str, Any]) -> Table:
    terms = ("machines", "energy", "tokens", "labels", "training")
    rows = [
        [rung["name"], f"{rung['cost']:.3g}", *[f"{rung['cost_terms'][term]:.3g}" for term in terms]]
        for rung in result["rungs"]
    ]
    assumed = ", ".join(f"{name} {value:g}" for name, value in config.to_dict(task.costs).items())
    return (
        "Cost of 1000 requests",
        f"Assumed, and to be changed under `costs`: {assumed}.",
        ["rung", "all", *terms],
        rows,
    )


def _chosen_and_best(result: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rung that the verdict names, and the one it is held against: the best, or else the largest other."""
    rungs = {rung["name"]: rung for rung in result["rungs"]}
    chosen = rungs[result["verdict"]["rung"]]
    best = max(rungs.values(), key=lambda rung: rung["quality"]["value"])
    if best is chosen:
        others = [rung for name, rung in rungs.items() if rung is not chosen and name not in ("majority", "cascade")]
        best = others[-1] if others else chosen
    return chosen, best


RATES = np.geomspace(0.001, 1000, 61).tolist()


def _break_even(task: Task, result: Mapping[str, Any], facts: Mapping[str, Any]) -> list[Table]:
    chosen, other = _chosen_and_best(result)
    if chosen is other:
        return []
    rows = []
    for text, factor in (
        ("as assumed", 1.0),
        ("machines cheaper", 1 / task.costs.price_band),
        ("machines dearer", task.costs.price_band),
    ):
        prices = config.to_dict(task.costs)
        prices["machine_hour"] *= factor
        prices["gpu_hour"] *= factor
        curves = [
            cost_curve(facts[r["name"]], prices, r["requests_per_second"], RATES, task.costs.peak_factor)
            for r in (chosen, other)
        ]
        found = break_even(RATES, *curves)
        rows.append(
            [
                text,
                f"{prices['machine_hour']:g}",
                "never" if found is None else "any traffic" if found == RATES[0] else f"{found:.3g} requests a second",
            ]
        )
    note = f"The traffic from which on {chosen['name']} is cheaper than {other['name']}, whose quality is another."
    return [("Traffic and cost", note, ["prices", "machine hour", f"{chosen['name']} is cheaper from"], rows)]


def _slices(task: Task, result: Mapping[str, Any], samples: Mapping[str, list[dict[str, Any]]]) -> list[Table]:
    chosen, other = _chosen_and_best(result)
    if chosen is other:
        return []
    found = slices(samples[chosen["name"]], samples[other["name"]], task.kind == "classification")
    rows = [
        [
            one["slice"],
            str(one["items"]),
            f"{one['small']:.3f}",
            f"{one['large']:.3f}",
            f"{100 * one['difference']:+.1f} [{100 * one['low']:+.1f}, {100 * one['high']:+.1f}]",
        ]
        for one in found[:12]
    ]
    lost = [one for one in found if one["high"] < 0]
    where = ", ".join(one["slice"] for one in lost) or "nowhere that these items show"
    note = f"{other['name']} is better than {chosen['name']}: {where}. Not adjusted for the number of slices."
    return [("Where the small one fails", note, ["slice", "items", chosen["name"], other["name"], "points"], rows)]


def _curves(task: Task, result: Mapping[str, Any]) -> list[Table]:
    learnt = [rung for rung in result["rungs"] if "learning_curve" in rung]
    if not learnt:
        return []
    best = max(rung["quality"]["value"] for rung in result["rungs"])
    counts = sorted({count for rung in learnt for count, _ in rung["learning_curve"]})
    rows = []
    for rung in learnt:
        known = dict(rung["learning_curve"])
        parity = rung["labels_to_parity"]
        needed = {"measured": f"{parity['labels']:,}", "extrapolated": f"perhaps {parity['labels']:,}"}
        cells = [f"{known[count]:.3f}" if count in known else "" for count in counts]
        rows.append([rung["name"], *cells, needed.get(parity["how"], parity["how"])])
    again, tuned = (sum(rung[field] for rung in learnt) for field in ("curve_seconds", "training_seconds"))
    note = (
        f"Quality by number of training labels; parity is {best - task.margin:.3f}, the best less the margin, "
        '"perhaps" where it is not reached and the number comes from a power law. '
        f"The curves took {again:.1f} s, the tuning of these rungs {tuned:.1f} s."
    )
    return [("Learning curves", note, ["rung", *map(str, counts), "labels to parity"], rows)]


def _sensitivity(task: Task, result: Mapping[str, Any]) -> Table:
    rows = []
    for rung in result["rungs"]:
        margin = rung["shortfall"][1]
        rows.append(
            [
                rung["name"],
                f"{100 * margin:.1f} points",
                f"{rung['latency_ms']['p99']:.3g} ms",
                f"{rung['memory_mb']:.0f} MB" if rung["memory_mb"] else "unknown",
            ]
        )
    note = (
        f"What would flip the verdict. With a margin from here on (now {100 * task.margin:g}) a rung passes a "
        "one-sided test at 95 %, before Holm; a latency or memory limit below the figures would rule it out."
    )
    return (
        "What would change the answer",
        note,
        ["rung", "sufficient from a margin of", "ruled out below", "and below"],
        rows,
    )


def _tuning(facts: Mapping[str, Any]) -> Table:
    rows = []
    for name, one in facts.items():
        for trial in one["trials"]:
            choice = ", ".join(f"{key} {value}" for key, value in trial["choice"].items()) or "nothing to choose"
            reached = trial.get("validation", trial.get("calibration"))
            shown = trial.get("error") or f"{reached:.3f}"
            rows.append([name, choice, shown, f"{trial.get('seconds', 0.0):.1f}"])
    note = (
        "Every configuration that was tried, with its quality on validation: the same number for every rung, at most."
    )
    return "Tuning", note, ["rung", "configuration", "quality", "seconds"], rows


def _data(data: Mapping[str, Any]) -> Table:
    overview = data["overview"]
    rows = [[one["kind"], one["message"], ", ".join(map(str, one["rows"]))] for one in data["findings"]]
    shares = ", ".join(f"{name} {count}" for name, count in overview["splits"].items())
    labels = ""
    if counts := overview["class_counts"]:
        more = f" and {overview['classes'] - len(counts)} more" if overview["classes"] > len(counts) else ""
        labels = f", in the file: {', '.join(f'{label} {count}' for label, count in counts)}{more}"
    note = (
        f"{overview['rows']} rows, {overview['kept']} used: {shares}. {overview['classes'] or 'No'} labels{labels}. "
        f"So many test items show a difference of {100 * overview['minimum_detectable']:.1f} points with 80 % "
        "probability where two rungs differ on every tenth item."
    )
    return "The data", note, ["found", "what", "rows"], rows


def _audit(record: Mapping[str, Any]) -> Table:
    by_status: dict[str, list[str]] = {}
    for rule, status in record["rules"].items():
        by_status.setdefault(status, []).append(rule)
    note = "What `inazuma audit` says of the rungs' answers and figures. " + "; ".join(
        f"{status}: {', '.join(rules)}" for status, rules in by_status.items()
    )
    rows = [[f"{x['rule']} {x['title']}", x["item"], x["evidence"], x["fix"]] for x in record["findings"]]
    return ("Audit", note + ".", ["rule", "where", "what was found", "what to do"] if rows else [], rows)


def _left_out(ladder: Mapping[str, Any]) -> Table:
    rows = [[name, why] for name, why in (ladder["skipped"] | ladder["beyond_limits"]).items()]
    return "Rungs left out", "", ["rung", "why"], rows


# -------------------------------------------------------------------------------------------------------- pictures


def _cost_chart(task: Task, result: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    series = []
    for rung, style in zip(result["rungs"], STYLES, strict=False):
        costs = cost_curve(
            facts[rung["name"]], config.to_dict(task.costs), rung["requests_per_second"], RATES, task.costs.peak_factor
        )
        series.append(Series(rung["name"], list(zip(RATES, costs, strict=True)), style))
    axis = Axis("requests a second", "at {} requests a second", logarithmic=True)
    return line_chart(series, label="Cost of 1000 requests by traffic", x_axis=axis, logarithmic=True)


def _curve_chart(result: Mapping[str, Any]) -> str:
    learnt = [rung for rung in result["rungs"] if "learning_curve" in rung]
    drawn = [
        Series(rung["name"], [(count, reached) for count, reached in rung["learning_curve"]], style, dots=True)
        for rung, style in zip(learnt, STYLES[1:], strict=False)
    ]
    axis = Axis("training labels", "with {} labels", logarithmic=True)
    return line_chart(drawn, label="Quality by number of labels", x_axis=axis) if drawn else ""


def _html(table: Table, picture: str) -> str:
    title, note, header, rows = table
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = ""
    for row in rows:
        lines += "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
    grid = (
        f'<div class="wide"><table class="measures"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
    )
    return (
        f'<section><h2>{escape(title)}</h2><p class="note">{escape(note)}</p>{picture}{grid if rows else ""}</section>'
    )


def _markdown(table: Table) -> str:
    title, note, header, rows = table

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    grid = "\n".join([line(header), line(["---"] * len(header)), *map(line, rows)]) if rows else ""
    return "\n\n".join(part for part in (f"## {title}", note, grid) if part)
