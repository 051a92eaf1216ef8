"""The small Transformer, LoRA and distillation on tiny models; and that what is served answers as what was judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import inazuma
from inazuma.data.batches import IGNORE
from inazuma.rightsize import load
from inazuma.rightsize.cascade import best_threshold
from inazuma.rightsize.distill import taught
from inazuma.rightsize.generative import Generative, readable
from inazuma.rightsize.lora import fit_lora
from inazuma.rightsize.majority import Majority
from inazuma.rightsize.splits import Splits
from inazuma.rightsize.table import Example
from inazuma.rightsize.task import Task, Transformer
from inazuma.rightsize.training import Batches, fit, from_checkpoint, new_model
from inazuma.serve.template import ChatTemplate
from tests.rightsize.planted import keyword, write

SHAPE = Transformer(hidden_size=32, layers=1, vocab_size=300, context=64, tokens=6000, batch_tokens=512)
TRAIN = [Example(i, row["text"], row["label"]) for i, row in enumerate(keyword(120))]
TEXTS = [row["text"] for row in keyword(30, seed=4)]
TASK = Task(data=Path("a.csv"), transformer=SHAPE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    model = fit(new_model(TASK, TRAIN, folder / "tokenizer"), TASK, TRAIN, {"lr": 3e-3, "epochs": 1.0})
    (folder / "model").mkdir()
    model.save(folder / "model")
    return model, folder / "model"


def test_a_loaded_model_answers_the_same(trained):
    model, folder = trained
    assert [a.text for a in load(folder).answer(TEXTS)] == [a.text for a in model.answer(TEXTS)]
    assert {a.text for a in model.answer(TEXTS)} <= {"praise", "complaint"}


def test_a_loaded_model_folds_case_as_its_task_does(trained, tmp_path):
    task = replace(TASK, kind="multi-label", fold_case=True)
    Generative(trained[0].model, task, None, 64, 8).save(tmp_path)
    assert readable(load(tmp_path).task, '["B", "a"]') == '["a", "b"]'


def test_a_chat_message_is_the_text_it_was_trained_on(trained):
    """What `inazuma serve` puts before the model is the prompt of the training, token for token."""
    model, folder = trained
    prompt = ChatTemplate.load(folder).render([{"role": "user", "content": TEXTS[0]}])
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(prompt, add_special_tokens=False).ids
    assert ids == model.codec.prompt(TEXTS[0], model.room)


def test_the_confidence_is_the_models_probability_among_the_labels(trained):
    """Held to the labels token by token, each label's probability is a product; over all labels they sum to one."""
    model, _ = trained
    row = model.codec.prompt(TEXTS[0], model.room)
    total = {}
    for label in model.labels:
        spelt, nats = model.codec.answer(label), 0.0
        for depth, token in enumerate(spelt):
            with torch.no_grad():
                logits = model.model(torch.tensor([row + spelt[:depth]]))[0, -1].double()
            allowed = sorted({s[depth] for s in map(model.codec.answer, model.labels) if s[:depth] == spelt[:depth]})
            nats += float(logits[allowed].log_softmax(0)[allowed.index(token)])
        total[label] = np.exp(nats)
    assert sum(total.values()) == pytest.approx(1)
    [answer] = model.answer([TEXTS[0]])
    assert answer.confidence == pytest.approx(total[answer.text], rel=1e-4)


def test_every_epoch_has_every_example_once_and_learns_only_answers():
    pairs = [([10 + i, 5], [20 + i, 0]) for i in range(7)]
    batches = Batches(pairs, rows=1, context=6, end=0, seed=0)
    seen = []
    for _ in range(4):
        batch = batches.next()
        kept = batch.targets[0] != IGNORE
        starts = [at for at in np.flatnonzero(kept) if at == 1 or not kept[at - 1]]
        for start in (at - 1 for at in starts):
            here = slice(start, start + 3)
            place = int(batch.document[0][start])
            assert batch.document[0][here].tolist() == [place] * 3
            assert batch.targets[0][here].tolist() == [IGNORE, 20 + place, 0]
            assert batch.ids[0][here].tolist() == [10 + place, 5, 20 + place]
            assert batch.first[0][here].tolist() == [start] * 3
            seen.append(place)
    assert sorted(seen[:7]) == list(range(7))


def test_a_checkpoint_is_where_training_starts(trained):
    _, folder = trained
    model = from_checkpoint(folder)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    fit(model, TASK, TRAIN, {"lr": 1e-4, "epochs": 0.1})
    moved = max(float((x - before[name]).abs().max()) for name, x in model.state_dict().items())
    assert 0 < moved < 0.05


def test_lora_moves_the_model_by_low_rank_only(trained, tmp_path):
    _, folder = trained
    task = Task(data=Path("a.csv"), transformer=SHAPE, lora=folder, lora_tokens=1500)
    adapted = fit_lora(task, TRAIN, {"lr": 1e-3, "rank": 2})
    base = inazuma.load(folder).state_dict()
    changed = {name: x - base[name] for name, x in adapted.model.state_dict().items()}
    ranks = {
        n: int(torch.linalg.matrix_rank(d, tol=1e-6)) for n, d in changed.items() if d.dim() == 2 and d.abs().max() > 0
    }
    assert ranks and set(ranks.values()) <= {1, 2}
    assert all(name.split(".")[-2].endswith("_proj") for name in ranks)
    adapted.save(tmp_path)
    assert [a.text for a in load(tmp_path).answer(TEXTS[:5])] == [a.text for a in adapted.answer(TEXTS[:5])]


def test_the_teacher_labels_what_no_split_holds(tmp_path):
    teacher = Majority.fit(TASK, TRAIN)
    (tmp_path / "teacher").mkdir()
    teacher.save(tmp_path / "teacher")
    rows = [{"text": TRAIN[3].text.upper()}, {"text": "never seen"}, {"text": "never seen"}, {"text": "nor this"}]
    task = Task(data=Path("a.csv"), unlabelled=write(tmp_path / "more.csv", rows))
    splits = Splits({"train": TRAIN[:60], "validation": TRAIN[60:80], "calibration": TRAIN[80:90], "test": TRAIN[90:]})
    new = taught(task, splits, tmp_path / "teacher")[60:]
    assert [(e.text, e.target) for e in new] == [("never seen", teacher.text), ("nor this", teacher.text)]


def test_the_threshold_passes_on_as_few_as_it_may():
    confidence = np.array([0.9, 0.8, 0.7, 0.6, 0.55])
    small = np.array([1.0, 1.0, 1.0, 0.0, 0.0])
    large = np.ones(5)
    threshold, quality, share = best_threshold(confidence, small, large, margin=0.02)
    assert (threshold, quality, share) == (0.7, 1.0, 0.4)
    assert best_threshold(confidence, large, small, margin=0.02)[2] == 0.0


def test_extraction_fills_in_what_training_named():
    schema = {"type": "object", "properties": {"who": {"type": "array", "items": {"type": "string"}}}}
    task = Task(data=Path("a"), kind="extraction", schema=schema)
    train = [Example(1, "太郎", json.dumps({"who": ["太郎", "太郎丸"]}, ensure_ascii=False))]
    [answer] = Majority.fit(task, train).answer(["太郎丸と花子"])
    assert json.loads(answer.text) == {"who": ["太郎丸"]}
