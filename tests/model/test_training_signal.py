"""Who learns from what: the language-model loss and the indexers' losses move disjoint parameters, each correctly."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from inazuma.errors import UserError
from inazuma.model import Transformer
from inazuma.model.attention import Observation
from tests.model.tiny import build, is_indexer, observed, tiny, tokens

BOTH = pytest.mark.parametrize("attention", ["mla", "gqa"])
LEARNING = pytest.mark.parametrize("stage", ["dense", "warmup", "sparse"])
IDS = tokens(2, 31)


def language_loss(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


def moved(loss: Tensor, model: Transformer) -> set[str]:
    """The parameters that a loss has a gradient for."""
    gradients = torch.autograd.grad(loss, model.parameters(), retain_graph=True, allow_unused=True)
    named = zip((name for name, _ in model.named_parameters()), gradients, strict=True)
    return {name for name, g in named if g is not None and g.abs().max() > 0}


# ----------------------------------------------------------------------------------------------------- who is taught


@BOTH
@LEARNING
def test_the_index_loss_teaches_the_indexers_alone_and_the_language_loss_all_else(attention, stage):
    model = build(tiny(attention=attention))
    logits, losses = model(IDS, stage=stage, output_index_loss=True)
    indexers = {name for name, _ in model.named_parameters() if is_indexer(name)}
    assert moved(losses.sum(), model) == indexers
    for layer, loss in enumerate(losses):
        assert moved(loss, model) == {name for name in indexers if name.startswith(f"model.layers.{layer}.")}
    others = {name for name, _ in model.named_parameters()} - indexers
    if stage == "warmup":  # attention itself has no gradient there: only the indexers are to learn
        assert not moved(language_loss(logits), model) & indexers
    else:
        assert moved(language_loss(logits), model) == others


@BOTH
@pytest.mark.parametrize("stage", ["dense", "frozen"])
def test_without_an_index_loss_the_indexers_are_left_alone(attention, stage):
    model = build(tiny(attention=attention))
    expected = {name for name, _ in model.named_parameters() if not is_indexer(name)}
    assert moved(language_loss(model(IDS, stage=stage)), model) == expected


@torch.no_grad()
def test_a_dense_stage_runs_the_indexers_only_to_teach_them():
    model = build(tiny())
    assert all(layer.index is None for layer in observed(model, IDS, stage="dense"))
    assert all(layer.index is not None for layer in observed(model, IDS, stage="dense", output_index_loss=True))
    assert torch.equal(model(IDS, stage="dense"), model(IDS, stage="dense", output_index_loss=True)[0])


def test_the_indexers_input_is_detached():
    model = build(tiny())
    indexer, config = model.model.layers[0].self_attn.indexer, model.config
    seen = observed(model, IDS)[0]
    x = torch.randn(2, 31, config.hidden_size, dtype=torch.float64, requires_grad=True)
    query = torch.randn(2, 31, config.q_lora_rank, dtype=torch.float64, requires_grad=True)
    index = indexer(x, query, seen.context.index_rotation)
    total = sum(each.sum() for each in index)
    assert torch.autograd.grad(total, (x, query), allow_unused=True) == (None, None)


@BOTH
def test_warmup_is_the_dense_stages_indexer_training_without_the_rest(attention):
    model = build(tiny(attention=attention))
    indexers = [p for name, p in model.named_parameters() if is_indexer(name)]
    results = []
    for stage in ("dense", "warmup"):
        logits, losses = model(IDS, stage=stage, output_index_loss=True)
        results.append([logits, losses, *torch.autograd.grad(losses.sum(), indexers)])
    for dense, warmup in zip(*results, strict=True):
        assert torch.equal(dense, warmup)
    assert (model(IDS) - results[0][0]).abs().max() > 0.01  # the selection does change something here


# ------------------------------------------------------------------------------------------------- what it is taught


def divergence(layer: Observation) -> Tensor:
    """mean over queries of KL(mean over heads of the attention || softmax of the index scores), in whole matrices."""
    T, H, G = layer.q.shape[1], layer.q.shape[2], layer.k.shape[2]
    visible = torch.ones(T, T, dtype=torch.bool).tril().expand(2, T, T)
    if layer.result.indices is not None:
        chosen = layer.result.indices.long()
        visible = torch.zeros(2, T, T + 1, dtype=torch.bool).scatter(2, chosen % (T + 1), True)[..., :T]
    k = layer.k.repeat_interleave(H // G, dim=2)
    logits = torch.einsum("bthd,bshd->bhts", layer.q, k) * layer.scale
    target = logits.masked_fill(~visible[:, None], -math.inf).softmax(-1).mean(1)
    products = torch.einsum("btic,bsc->btis", layer.index.q, layer.index.k).relu()
    scores = torch.einsum("bti,btis->bts", layer.index.w, products).masked_fill(~visible, -math.inf)
    terms = target * (target.log() - scores.log_softmax(-1))
    return terms.masked_fill(~visible, 0).sum(-1).mean()


@BOTH
@LEARNING
@torch.no_grad()
def test_the_index_loss_is_the_divergence_of_each_layer(attention, stage):
    model = build(tiny(attention=attention))
    layers: list[Observation] = []
    _, losses = model(IDS, stage=stage, output_index_loss=True, observe=layers.append)
    torch.testing.assert_close(losses, torch.stack([divergence(layer) for layer in layers]), rtol=1e-9, atol=1e-12)
    assert losses.min() > 0.01


def slope(loss: Callable[[], Tensor], parameters: list[Tensor], direction: list[Tensor], step: float) -> float:
    """The central difference of `loss` along `direction`."""
    ends = []
    with torch.no_grad():
        for sign in (1, -2):
            for p, d in zip(parameters, direction, strict=True):
                p += sign * step * d
            ends.append(loss().item())
        for p, d in zip(parameters, direction, strict=True):
            p += step * d
    return (ends[0] - ends[1]) / (2 * step)


# In a warm-up attention has no gradient, on purpose.
@BOTH
@pytest.mark.parametrize(
    ("of", "stage"),
    [("language", "dense"), ("language", "sparse"), ("index", "dense"), ("index", "warmup"), ("index", "sparse")],
)
def test_gradients_are_the_slopes_of_the_losses(attention, of, stage):
    model = build(tiny(attention=attention))

    def loss() -> Tensor:
        logits, losses = model(IDS, stage=stage, output_index_loss=True)
        return language_loss(logits) if of == "language" else losses.sum()

    parameters = [p for name, p in model.named_parameters() if is_indexer(name) == (of == "index")]
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    gradients = torch.autograd.grad(loss(), parameters)
    expected = sum((g * d).sum().item() for g, d in zip(gradients, direction, strict=True))
    # Small steps: the selection must not change in between.
    assert slope(loss, parameters, direction, 1e-7) == pytest.approx(expected, rel=1e-4)


# -------------------------------------------------------------------------------------------------------------- dtypes


@BOTH
@LEARNING
def test_bfloat16_autocast_is_finite_and_close_to_float32(attention, stage):
    model = build(tiny(attention=attention), dtype=torch.float32)
    logits, losses = model(IDS, stage=stage, output_index_loss=True)
    with torch.autocast("cpu", torch.bfloat16):
        logits16, losses16 = model(IDS, stage=stage, output_index_loss=True)
    assert logits16.dtype == torch.bfloat16 and losses16.dtype == torch.float32
    torch.testing.assert_close(losses16, losses, rtol=0.1, atol=0.01)
    torch.testing.assert_close(language_loss(logits16.float()), language_loss(logits), rtol=0.02, atol=0.02)
    (language_loss(logits16.float()) + losses16.sum()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients.values())
    assert {name for name in gradients if is_indexer(name)} == {n for n, _ in model.named_parameters() if is_indexer(n)}


@BOTH
def test_a_float64_model_is_float64_throughout(attention):
    model = build(tiny(attention=attention))
    logits, losses = model(IDS, stage="sparse", output_index_loss=True)
    assert logits.dtype == losses.dtype == torch.float64
    in_float32 = build(tiny(attention=attention), dtype=torch.float32)
    torch.testing.assert_close(in_float32(IDS).double(), logits, rtol=0, atol=1e-4)


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"stage": "sprase"}, "stage: expected one of dense, warmup, sparse, frozen, got 'sprase'"),
        ({}, {"stage": "frozen", "output_index_loss": True}, "'frozen' has no index loss"),
        ({}, {"output_index_loss": True}, "'frozen' has no index loss"),
        ({"index_topk": None}, {"stage": "sparse"}, "this model is dense"),
        ({"index_topk": None}, {"stage": "dense", "output_index_loss": True}, "this model is dense"),
        ({}, {"first": torch.zeros(2, 30, dtype=torch.int32)}, "first"),
        ({}, {"first": torch.zeros(2, 31, dtype=torch.long)}, "first"),
    ],
)
def test_a_stage_that_cannot_be_is_one_clear_line(changes, options, message):
    with pytest.raises(UserError, match=message) as error:
        build(tiny(**changes))(IDS, **options)
    assert "\n" not in str(error.value)
