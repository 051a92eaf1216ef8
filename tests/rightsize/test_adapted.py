"""Rungs that build on another model do what they are named for, on models that train in seconds: a checkpoint is a head
start, LoRA learns by its adapters alone, a student learns from its teacher, a cascade's threshold from calibration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import inazuma
from inazuma.evaluate.outcome import SAMPLES
from inazuma.files import read_json, write_json
from inazuma.rightsize.cascade import write_cascade
from inazuma.rightsize.climb import FACTS, quality, write_service
from inazuma.rightsize.linear import fit_linear, vectorizer_choices
from inazuma.rightsize.lora import fit_lora
from inazuma.rightsize.majority import Majority
from inazuma.rightsize.predictor import load
from inazuma.rightsize.rungs import prepare
from inazuma.rightsize.splits import Splits
from inazuma.rightsize.table import Example
from inazuma.rightsize.task import Task, Transformer
from inazuma.rightsize.training import fit, new_model
from inazuma.runs.lines import encode_line, read_lines
from tests.rightsize.planted import keyword, write

SHAPE = Transformer(hidden_size=32, layers=1, vocab_size=300, context=64, tokens=40_000, epochs=30, batch_tokens=512)
TASK = Task(data=Path("a.csv"), transformer=SHAPE)
BRIEF = replace(TASK, transformer=replace(SHAPE, tokens=4000))
"""With a tenth of the training."""
TRAIN, TEST = (
    [Example(i, row["text"], row["label"]) for i, row in enumerate(keyword(count, seed=seed))]
    for count, seed in ((400, 0), (120, 4))
)
FEW = TRAIN[:24]


def splits(train: list[Example]) -> Splits:
    return Splits({"train": train, "validation": TEST[:20], "calibration": TEST[20:40], "test": TEST[40:]})


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A model that knows the task."""
    folder = tmp_path_factory.mktemp("base")
    model = fit(new_model(TASK, TRAIN, folder / "tokenizer"), TASK, TRAIN, {"lr": 3e-3, "epochs": 1.0})
    assert quality(TASK, model, TEST) > 0.95
    (folder / "model").mkdir()
    model.save(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> float:
    """The quality of the small Transformer with few labels and nothing else."""
    plan = prepare("scratch", BRIEF, splits(FEW), tmp_path_factory.mktemp("alone"))
    reached = quality(BRIEF, plan.fit(plan.choices[0], tmp_path_factory.mktemp("work")), TEST)
    assert reached < 0.8
    return reached


def test_a_checkpoint_is_a_head_start(base, alone, tmp_path):
    plan = prepare("pretrained", replace(BRIEF, checkpoint=base), splits(FEW), tmp_path)
    assert quality(BRIEF, plan.fit(plan.choices[0], tmp_path), TEST) > alone + 0.15


def test_a_student_learns_from_its_teacher(alone, tmp_path):
    (tmp_path / "teacher").mkdir()
    teacher = fit_linear([e.text for e in TRAIN], [e.target for e in TRAIN], vectorizer_choices()[0], seed=0)
    teacher.save(tmp_path / "teacher")
    texts = write(tmp_path / "more.csv", [{"text": row["text"]} for row in keyword(300, seed=8)])
    task = replace(TASK, unlabelled=texts)
    plan = prepare("distilled", task, splits(FEW), tmp_path, tmp_path / "teacher")
    assert quality(task, plan.fit(plan.choices[0], tmp_path / "work"), TEST) > alone + 0.15


def test_lora_unlearns_by_its_adapters_alone(base):
    """Labels turned round: the model is always wrong, the most frequent label in half the cases, and LoRA right."""
    turn = {"praise": "complaint", "complaint": "praise"}
    train, test = ([replace(e, target=turn[e.target]) for e in part] for part in (TRAIN, TEST))
    task = replace(TASK, lora=base, lora_tokens=4000)
    adapted = fit_lora(task, train, {"lr": 1e-2, "rank": 4})
    assert quality(task, load(base), test) < 0.05
    assert quality(task, adapted, test) > quality(task, Majority.fit(task, train), test) + 0.4
    before, after = inazuma.load(base).state_dict(), adapted.model.state_dict()
    assert before.keys() == after.keys(), "merged: a model like any other"
    changed = {name for name, x in after.items() if not bool((x == before[name]).all())}
    attention = {f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkvo"}
    assert changed == attention | {f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}


# ------------------------------------------------------------------------------------------------------- cascade


def rung(folder: Path, name: str, scores: dict[str, np.ndarray], confidence: np.ndarray, milliseconds: float) -> None:
    """A climbed rung as `write_cascade` reads it."""
    (folder / "rungs" / name / "model").mkdir(parents=True)
    here = folder / "rungs" / name
    Majority(name, 0.1).save(here / "model")
    with open(here / SAMPLES, "wb") as handle:
        for split in ("calibration", "test"):
            for i, (score, sure) in enumerate(zip(scores[split], confidence, strict=True)):
                line = {"task": split, "id": str(i), "score": float(score), "confidence": float(sure), "answer": name}
                handle.write(encode_line(line))
    write_service(here, [milliseconds] * 40)
    counted = ["training_seconds", "cold_start_s", "memory_mb", "gpu_memory_mb", "disk_mb", "joules"]
    counted += ["input_tokens", "output_tokens"]
    write_json(
        here / FACTS,
        dict.fromkeys(counted, 1.0) | {"hosted": True, "gpu": "", "labels": 9, "energy": "counted", "calls": 40},
    )


def cascade(out: Path, small: dict[str, np.ndarray], large: dict[str, np.ndarray]) -> tuple[dict, list[dict]]:
    """What the cascade of the two is, and its samples; the small one is sure of the later items."""
    sure = np.linspace(0.3, 0.9, 40)
    rung(out, "tfidf", small, sure, 1.0)
    rung(out, "prompted", large, np.ones(40), 100.0)
    write_cascade(TASK, out, ["tfidf", "prompted"])
    here = out / "rungs" / "cascade"
    return read_json(here / "model" / "rung.json"), list(read_lines(here / SAMPLES))


def test_a_cascades_threshold_follows_from_calibration_alone(tmp_path):
    knows = np.array([0.0] * 12 + [1.0] * 28)
    right, wrong = np.ones(40), np.zeros(40)
    first, samples = cascade(
        tmp_path / "a", {"calibration": knows, "test": knows}, {"calibration": right, "test": right}
    )
    # By hand: all but the twelve least sure are right.
    assert first["threshold"] == pytest.approx(np.linspace(0.3, 0.9, 40)[12])
    assert [x["answer"] for x in samples if x["task"] == "test"] == ["prompted"] * 12 + ["tfidf"] * 28
    # Whatever the test says, it is the same cascade.
    for name, small, large in (("b", wrong, right), ("c", right, wrong), ("d", 1 - knows, wrong)):
        other, _ = cascade(
            tmp_path / name, {"calibration": knows, "test": small}, {"calibration": right, "test": large}
        )
        assert other == first
    # What calibration says is heard.
    other, _ = cascade(tmp_path / "e", {"calibration": right, "test": knows}, {"calibration": right, "test": right})
    assert other["threshold"] != first["threshold"]


def test_a_cascade_passes_on_what_the_small_one_is_unsure_of(tmp_path):
    knows = np.array([0.0] * 12 + [1.0] * 28)
    _, samples = cascade(
        tmp_path, {"calibration": knows, "test": knows}, {"calibration": np.ones(40), "test": np.ones(40)}
    )
    assert all(x["score"] == 1.0 for x in samples)
    facts = read_json(tmp_path / "rungs" / "cascade" / FACTS)
    # Twelve of forty cost both rungs' work, the others the small one's.
    assert facts["passed_on"] == 0.3 and facts["joules"] == pytest.approx(1.3)
    service = [x["service_ms"] for x in read_lines(tmp_path / "rungs" / "cascade" / "service.jsonl")]
    assert service == [101.0] * 12 + [1.0] * 28
    model = load(tmp_path / "rungs" / "cascade" / "model")
    assert model.small.share < model.threshold and model.answer(["x"])[0].text == "prompted"
