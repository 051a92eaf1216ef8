"""The runner against the model that it was made from, and every text against itself in other company."""

from __future__ import annotations

import pytest
import torch

from inazuma.serve.graphs import Inputs, Written
from inazuma.serve.runner import Piece, Runner, page_bytes
from tests.model.tiny import build, observed, tiny, tokens

SHAPES = {
    "mla": {},
    "mla-dense": {"index_topk": None},
    "gqa": {"attention": "gqa"},
    "gqa-norm-bias": {"attention": "gqa", "use_qk_norm": True, "qkv_bias": True, "partial_rotary_factor": 0.5},
    "gqa-dense": {"attention": "gqa", "index_topk": None, "rope_interleave": False},
    "shared": {"indexer_types": ("full", "shared", "shared"), "indexer_rope_interleave": True},
    "moe": {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24},
    "prediction": {"num_nextn_predict_layers": 1},
    "tied": {"tie_word_embeddings": True},
}
T = 100


def read(runner: Runner, ids: list[int], cuts: list[int], pages: list[int], logits: bool = True) -> torch.Tensor:
    """All logits of a text that is read in pieces."""
    ends = [*cuts, len(ids)]
    rows = [
        runner.step([Piece(ids[start:end], start, pages, logits=end - start)]).logits
        for start, end in zip([0, *cuts], ends, strict=True)
    ]
    return torch.cat(rows)


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_the_models(shape):
    config = tiny(**SHAPES[shape])
    ids = tokens(1, T)
    expected = build(config)(ids)[0].detach().float()
    runner = Runner(build(config, dtype=torch.float32), pages=4, context=128, format="float32")
    got = read(runner, ids[0].tolist(), [5, 64, 65], [3, 1])
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)
    assert runner.page_bytes == page_bytes(config, "float32")


@pytest.mark.parametrize("weights", ["none", "int8", "int4"])
@pytest.mark.parametrize("format", ["float32", "bfloat16", "fp8"])
@pytest.mark.parametrize("shape", ["mla", "gqa", "moe"])
def test_company_and_pieces_change_no_bit(shape, format, weights):
    model = build(tiny(**SHAPES[shape]), dtype=torch.bfloat16)
    runner = Runner(model, pages=9, context=128, format=format, weights=weights)
    ids, other = tokens(T).tolist(), tokens(40, seed=1).tolist()
    alone = read(runner, ids, [], [0, 1])
    assert torch.equal(read(runner, ids, [1, 7, 64, 80], [4, 2]), alone)
    rows = []
    for start, end in ((0, 30), (30, 31), (31, 100)):
        pieces = [Piece(other, 0, [7], logits=1), Piece(ids[start:end], start, [5, 6], logits=end - start)]
        rows.append(runner.step(pieces).logits[1:])
    assert torch.equal(torch.cat(rows), alone)


def test_guesses_are_the_models():
    config = tiny(num_nextn_predict_layers=1)
    ids = tokens(1, T)
    _, [expected] = build(config)(ids, output_predictions=True)
    runner = Runner(build(config, dtype=torch.float32), pages=4, context=128, format="float32")
    rows, text = [], ids[0].tolist()
    for start, end in ((0, 40), (40, 99)):
        output = runner.step([Piece(text[start:end], start, [2, 0])])
        following = Piece(text[start + 1 : end + 1], start, [2, 0], logits=end - start)
        rows.append(runner.predict([following], output.hidden_NE))
    torch.testing.assert_close(torch.cat(rows), expected[0, :99].float(), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", ["mla", "gqa", "shared", "mla-dense"])
def test_selections_are_the_models(shape):
    config = tiny(**SHAPES[shape])
    ids = tokens(1, T)
    layers = observed(build(config), ids)
    runner = Runner(build(config, dtype=torch.float32), pages=4, context=128, format="float32")
    for end in (9, 13, T):  # fewer tokens than are kept, as many and one, many
        short = tokens(3, seed=2).tolist()
        output = runner.step([Piece(short, 0, [3]), Piece(ids[0, :end].tolist(), 0, [0, 1], observe=True)])
        [selections] = output.selections
        for layer, selection in zip(layers, selections, strict=True):
            if layer.result.indices is None:
                assert selection is None
            else:
                kept = layer.result.indices[0, end - 1]
                assert selection == tuple(kept[kept >= 0].tolist())


def test_few_bits_stay_near():
    config = tiny(hidden_size=128, intermediate_size=192, initializer_range=0.05, index_topk=None)
    ids = tokens(1, T)
    expected = build(config, dtype=torch.float32)(ids)[0].detach()
    loss = {}
    for weights in ("none", "int8", "int4"):
        runner = Runner(build(config, dtype=torch.float32), pages=4, context=128, format="float32", weights=weights)
        got = read(runner, ids[0].tolist(), [], [0, 1])
        loss[weights] = float((got - expected).norm() / expected.norm())
    assert loss["none"] < 1e-5 < loss["int8"] < 0.05 and loss["int8"] < loss["int4"] < 0.3


@pytest.mark.parametrize("shape", ["mla", "gqa", "gqa-dense", "moe"])
def test_a_step_at_fixed_addresses_is_the_same_step(shape):
    """What a GPU captures: a token of each text, the last text once more where the graph is for more of them."""
    runner = Runner(build(tiny(**SHAPES[shape]), dtype=torch.bfloat16), pages=9, context=192)
    texts = {(7, 2): tokens(70), (0, 3, 8): tokens(140, seed=1), (5,): tokens(3, seed=2)}
    pieces = []
    for pages, ids in texts.items():
        runner.step([Piece(ids[:-1].tolist(), 0, pages)])
        pieces.append(Piece(ids[-1:].tolist(), len(ids) - 1, pages))
    expected = runner.step(pieces)
    inputs = Inputs(4, 4, runner.config.index_topk is not None, torch.device("cpu"))
    for order in ((2, 1, 0), (0, 1, 2)):
        chosen = [pieces[i] for i in order]
        inputs.fill([Written(piece.tokens[0], piece.start, [*piece.pages, 1]) for piece in chosen])
        with torch.inference_mode():
            logits, hidden = runner._decode(inputs)
        assert torch.equal(logits[:3], expected.logits[list(order)]) and torch.equal(logits[3], logits[2])
        assert torch.equal(hidden[:3], expected.hidden_NE[list(order)])
