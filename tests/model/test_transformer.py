"""A fresh model: where its weights come from, and which ids it takes."""

from __future__ import annotations

import pytest
import torch

from inazuma.errors import UserError
from inazuma.model import Transformer
from tests.model.tiny import VOCABULARY, build, is_indexer, tiny, tokens


def fresh(seed: int = 0, **changes) -> dict[str, torch.Tensor]:
    return Transformer(tiny(**changes)).init_weights(seed).state_dict()


def test_weights_are_a_function_of_the_seed():
    torch.manual_seed(1)
    once = fresh(3)
    torch.manual_seed(2)
    again, other = fresh(3), fresh(4)
    for name, weight in once.items():
        assert torch.equal(weight, again[name]), name
        assert weight.dim() == 1 or not torch.equal(weight, other[name]), name
    values = [tuple(weight.flatten()[:4].tolist()) for weight in once.values() if weight.dim() > 1]
    assert len(set(values)) == len(values)  # no two tensors are drawn alike


@pytest.mark.parametrize("attention", ["mla", "gqa"])
def test_a_dense_twin_starts_with_the_weights_of_the_sparse_model(attention):
    sparse, dense = fresh(attention=attention), fresh(attention=attention, index_topk=None)
    assert set(dense) == {name for name in sparse if not is_indexer(name)} != set(sparse)
    assert all(torch.equal(dense[name], sparse[name]) for name in dense)


def test_weights_are_normal_and_smaller_where_the_residual_stream_is_written():
    shape = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 8}
    for name, weight in fresh(**shape, initializer_range=0.05).items():
        if weight.dim() == 1:
            assert (weight == (0.0 if name.endswith(".bias") else 1.0)).all(), name
            continue
        writes = name.endswith(("o_proj.weight", "down_proj.weight"))
        wanted = 0.05 / (16**0.5 if writes else 1)
        assert weight.std().item() == pytest.approx(wanted, rel=0.1), name
        assert abs(weight.mean().item()) < 0.1 * wanted, name


def test_tied_embeddings_are_one_parameter():
    tied, untied = (Transformer(tiny(tie_word_embeddings=tie)).init_weights(0) for tie in (True, False))
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    count = [sum(parameter.numel() for parameter in model.parameters()) for model in (tied, untied)]
    assert count[1] - count[0] == VOCABULARY * tied.config.hidden_size
    assert torch.equal(tied.model.embed_tokens.weight, untied.model.embed_tokens.weight)


@torch.no_grad()
def test_later_tokens_change_nothing_before_them():
    model = build(tiny())
    ids = tokens(2, 40)
    logits = model(ids)
    assert logits.shape == (2, 40, VOCABULARY)
    for length in (1, 11, 12, 13, 39):
        torch.testing.assert_close(model(ids[:, :length]), logits[:, :length], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "ids", [torch.zeros(3, dtype=torch.long), torch.zeros(1, 3, dtype=torch.int32), torch.zeros(1, 3)], ids=str
)
def test_ids_of_another_shape_or_type_are_refused(ids):
    with pytest.raises(UserError, match=r"ids: expected int64 \[B,T\]"):
        build(tiny())(ids)
