"""Decoding is the same function as the whole forward pass, however the tokens arrive; and what `generate` promises."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from inazuma.errors import UserError
from inazuma.model import Cache, Transformer, generate
from tests.model.tiny import VOCABULARY, YARN, build, observed, tiny, tokens

LENGTH, TOPK = 40, 8
# Two index heads: a score is exactly zero, hence tied with others, about once in four.
TIED = {"index_n_heads": 2, "index_topk": TOPK}
MODELS = {
    "mla-sparse": {**TIED},
    "mla-sparse-yarn": {**TIED, "rope_scaling": YARN},
    "mla-sparse-shared": {**TIED, "indexer_types": ("full", "shared", "full")},
    "mla-below-topk": {**TIED, "index_topk": LENGTH + 1},
    "mla-dense": {"index_topk": None},
    "gqa-sparse": {**TIED, "attention": "gqa"},
    "gqa-sparse-interleaved-index": {**TIED, "attention": "gqa", "indexer_rope_interleave": True},
    "gqa-below-topk": {**TIED, "attention": "gqa", "index_topk": LENGTH + 1},
    "gqa-dense": {"attention": "gqa", "index_topk": None},
}
EVERY = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS, indirect=True)
SPARSE = pytest.mark.parametrize(
    "model", [each for name, each in MODELS.items() if "sparse" in name], ids=[n for n in MODELS if "sparse" in n],
    indirect=True,
)  # fmt: skip
ONE = pytest.mark.parametrize("model", [MODELS["mla-sparse"]], ids=["mla-sparse"], indirect=True)


@pytest.fixture
def model(request) -> Transformer:
    return build(tiny(**request.param))


def in_pieces(model: Transformer, ids: Tensor, *sizes: int) -> Tensor:
    """Logits of `ids [B,T]` read through a cache in pieces of `sizes`, the last size repeating."""
    cache, done, logits = Cache(*ids.shape), 0, []
    while done < ids.shape[1]:
        size = sizes[min(len(logits), len(sizes) - 1)]
        logits.append(model(ids[:, done : done + size], cache=cache))
        done += size
    assert cache.lengths.tolist() == [ids.shape[1]] * len(ids)
    return torch.cat(logits, dim=1)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


# --------------------------------------------------------------------------------------------- one function, many ways


@SPARSE
@torch.no_grad()
def test_ties_are_included(model):
    # In the models below the k-th best score often is an exact zero of which only some are kept.
    undecided = 0
    for layer in observed(model, tokens(2, LENGTH)):
        products = torch.einsum("btic,bsc->btsi", layer.index.q, layer.index.k).relu()
        scores = torch.einsum("bti,btsi->bts", layer.index.w, products)
        visible = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
        above, equal = ((scores > 0) & visible).sum(-1), ((scores == 0) & visible).sum(-1)
        undecided += ((above < TOPK) & (above + equal > TOPK)).sum()
    assert undecided > 10


@EVERY
@torch.no_grad()
def test_token_by_token_is_uncached(model):
    ids = tokens(2, LENGTH)
    close(in_pieces(model, ids, 1), model(ids))


@EVERY
@pytest.mark.parametrize("sizes", [(7,), (1, 23)], ids=str)
@torch.no_grad()
def test_chunked_prefill_is_uncached(model, sizes):
    ids = tokens(2, LENGTH)
    close(in_pieces(model, ids, *sizes), model(ids))


@pytest.mark.parametrize("attention", ["mla", "gqa"])
@torch.no_grad()
def test_in_float32_too(attention):
    model = build(tiny(**TIED, attention=attention), dtype=torch.float32)
    ids = tokens(2, LENGTH)
    for sizes in ((1,), (7,)):
        close(in_pieces(model, ids, *sizes), model(ids), 1e-5)


@EVERY
@torch.no_grad()
def test_prompts_of_different_lengths_in_one_batch_are_each_alone(model):
    lengths = torch.tensor([5, 21, LENGTH - 4, 1])
    texts = tokens(4, LENGTH)
    alone = model(texts)  # causal: a prefix's logits are its own
    longest = int(lengths.max())
    behind = torch.arange(longest) >= lengths[:, None]
    cache = Cache(len(lengths), LENGTH)
    # Padding of two kinds, read in two pieces: what is behind a prompt must not matter.
    padded = texts[:, :longest].masked_fill(behind, 0)
    padded[1:, :][behind[1:]] = VOCABULARY - 1
    logits = torch.cat([model(piece, cache=cache) for piece in padded.split(20, dim=1)], dim=1)
    close(logits[~behind], alone[:, :longest][~behind])
    cache.truncate(lengths)
    rows = torch.arange(len(lengths))
    for step in range(4):
        logits = model(texts[rows, lengths + step][:, None], cache=cache)
        close(logits[:, 0], alone[rows, lengths + step])
    assert torch.equal(cache.lengths, lengths + 4)


@pytest.mark.parametrize("model", [v for k, v in MODELS.items() if "mla" in k], indirect=True)
@pytest.mark.parametrize("first", [None, [[0] * 17 + [17] * 23]], ids=["whole", "packed"])
@torch.no_grad()
def test_absorbed_is_expanded(model, first, monkeypatch):
    ids = tokens(1, LENGTH)
    first = None if first is None else torch.tensor(first, dtype=torch.int32)
    logits, seen = {}, {}
    for absorbed in (False, True):
        with monkeypatch.context() as patch:
            for layer in model.model.layers:
                ours = layer.self_attn
                patch.setattr(ours, "forward", functools.partial(ours.forward, absorbed=absorbed))
            logits[absorbed], seen[absorbed] = model(ids, first=first), observed(model, ids, first=first)
    R, P, N = model.config.kv_lora_rank, model.config.qk_rope_head_dim, model.config.qk_nope_head_dim
    assert {x.k.shape[2:] for x in seen[True]} == {(1, R + P)}
    assert {x.k.shape[2:] for x in seen[False]} == {(model.config.num_attention_heads, N + P)}
    close(logits[True], logits[False])


@ONE
@torch.no_grad()
def test_the_cache_keeps_the_latent_and_the_index_key_alone(model):
    ids, config = tokens(2, 10), model.config
    cache = Cache(2, 16)
    model(ids, cache=cache)
    numbers = sum(buffer[0, 0].numel() for buffer in cache._buffers.values())
    a_layer = config.kv_lora_rank + config.qk_rope_head_dim + config.index_head_dim
    assert numbers == config.num_hidden_layers * a_layer


@ONE
@torch.no_grad()
def test_a_full_cache_says_so_and_stays_as_it_was(model):
    ids = tokens(1, 12)
    cache = Cache(1, 11)
    model(ids[:, :9], cache=cache)
    with pytest.raises(UserError, match=r"holds 11 tokens, 9 are there and 3 were to come"):
        model(ids[:, 9:], cache=cache)
    close(model(ids[:, 9:11], cache=cache), model(ids)[:, 9:11])


@ONE
@torch.no_grad()
def test_what_is_forgotten_leaves_room(model):
    ids = tokens(2, 12)
    cache = Cache(2, 12)
    model(ids, cache=cache)
    cache.truncate(torch.tensor([3, 5]))
    assert cache.lengths.tolist() == [3, 5]
    again = model(torch.stack([ids[0, 3:10], ids[1, 5:12]]), cache=cache)
    whole = model(ids)
    close(again, torch.stack([whole[0, 3:10], whole[1, 5:12]]))


@ONE
def test_packed_documents_cannot_be_continued(model):
    with pytest.raises(UserError, match="first"):
        model(tokens(1, 4), first=torch.zeros(1, 4, dtype=torch.int32), cache=Cache(1, 4))


# ------------------------------------------------------------------------------------------------------------ generate

PROMPTS = [tokens(length, seed=length).tolist() for length in (3, 19, 1, 10)]


@torch.no_grad()
def by_argmax(model: Transformer, prompt: list[int], new: int) -> list[int]:
    row = list(prompt)
    for _ in range(new):
        row.append(int(model(torch.tensor([row]))[0, -1].argmax()))
    return row


@EVERY
def test_greedy_text_is_an_argmax_without_a_cache(model, monkeypatch):
    rows = model.generate(PROMPTS, 8)
    assert rows == [by_argmax(model, prompt, 8) for prompt in PROMPTS]
    assert len({token for row in rows for token in row[-8:]}) > 8
    monkeypatch.setattr(generate, "PREFILL", 6)  # prompts end in different pieces
    assert model.generate(PROMPTS, 8) == rows


@ONE
def test_a_tensor_of_prompts_is_full_rows(model):
    prompts = tokens(2, 6)
    assert model.generate(prompts, 5) == model.generate(prompts.tolist(), 5)
    assert model.generate(prompts, 0) == prompts.tolist()


@ONE
def test_sampled_text_of_a_row_does_not_depend_on_its_batch_mates(model):
    options = {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "seed": 3}
    together = model.generate(PROMPTS, 15, **options)
    assert model.generate(PROMPTS[:1], 15, **options) == together[:1]
    others = [tokens(30).tolist(), [5], PROMPTS[2]]
    assert model.generate(others, 15, **options)[2] == together[2]
    # A mate that stops at once does not matter either.
    first = together[1][len(PROMPTS[1])]
    stopped = model.generate(PROMPTS, 15, **options, stop=[first])
    assert stopped[1] == [*PROMPTS[1], first]
    for row, whole, prompt in zip(stopped, together, PROMPTS, strict=True):
        end = whole.index(first, len(prompt)) + 1 if first in whole[len(prompt) :] else len(whole)
        assert row == whole[:end]


@ONE
def test_sampling_follows_its_seed(model):
    options = {"temperature": 1.0}
    once = model.generate(PROMPTS[:1] * 3, 20, **options, seed=1)
    assert once == model.generate(PROMPTS[:1] * 3, 20, **options, seed=1)
    assert once != model.generate(PROMPTS[:1] * 3, 20, **options, seed=2)
    assert len(set(map(tuple, once))) == 3  # equal prompts, each its own draws
    assert model.generate(PROMPTS, 8, temperature=1e-6) == model.generate(PROMPTS, 8)
    assert model.generate(PROMPTS, 8, temperature=2.0, top_k=1) == model.generate(PROMPTS, 8)
    assert model.generate(PROMPTS, 8, temperature=2.0, top_p=1e-9) == model.generate(PROMPTS, 8)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((1.0, None, 1.0), [0.1, 0.4, 0.05, 0.3, 0.15]),
        ((0.5, None, 1.0), [0.01, 0.16, 0.0025, 0.09, 0.0225]),
        ((1.0, 2, 1.0), [0, 0.4, 0, 0.3, 0]),
        ((1.0, 9, 1.0), [0.1, 0.4, 0.05, 0.3, 0.15]),
        ((1.0, None, 0.65), [0, 0.4, 0, 0.3, 0]),
        ((1.0, None, 0.72), [0, 0.4, 0, 0.3, 0.15]),
        ((1.0, 2, 0.55), [0, 0.4, 0, 0, 0]),  # top_p counts what top_k left: 0.4 of 0.7
        ((1.0, None, 0.01), [0, 0.4, 0, 0, 0]),
    ],
)
def test_draws_have_the_distribution_they_are_asked_for(options, expected):
    n = 10_000
    logits = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15]).log().expand(n, -1)
    even = (torch.arange(n, dtype=torch.double) + 0.5) / n
    frequencies = torch.bincount(generate.sample(logits, even, *options), minlength=5) / n
    wanted = torch.tensor(expected) / sum(expected)
    torch.testing.assert_close(frequencies, wanted, rtol=0, atol=3 / n)
    assert not frequencies[wanted == 0].any()
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.double)
    assert (wanted[generate.sample(logits[:2], ends, *options)] > 0).all()


def test_rows_end_with_the_end_of_text_or_what_is_named():
    model = build(tiny(**TIED))
    free = model.generate(PROMPTS, 12)
    ends = {row[len(prompt) + 4] for row, prompt in zip(free, PROMPTS, strict=True)}

    def cut(stop: set[int]) -> list[list[int]]:
        rows = []
        for row, prompt in zip(free, PROMPTS, strict=True):
            places = [i for i in range(len(prompt), len(row)) if row[i] in stop]
            rows.append(row[: places[0] + 1] if places else row)
        return rows

    assert model.generate(PROMPTS, 12, stop=ends) == cut(ends)
    end = min(ends)
    ending = build(tiny(**TIED, eos_token_id=end))
    assert ending.generate(PROMPTS, 12) == cut({end}) != free
    assert ending.generate(PROMPTS, 12, stop=()) == free


@ONE
@pytest.mark.parametrize(
    ("prompts", "new", "options", "message"),
    [
        ([], 3, {}, "prompts"),
        ([[1], []], 3, {}, "prompts"),
        ([[1, VOCABULARY]], 3, {}, r"0\.\.96"),
        ([[-1]], 3, {}, r"0\.\.96"),
        ([[1] * 120], 9, {}, "120 tokens and 9 new ones exceed the model's 128 positions"),
        ([[1]], -1, {}, "max_new_tokens"),
        ([[1]], 3, {"temperature": -0.1}, "temperature"),
        ([[1]], 3, {"temperature": float("nan")}, "temperature"),
        ([[1]], 3, {"temperature": 1.0, "top_p": 0.0}, "top_p"),
        ([[1]], 3, {"temperature": 1.0, "top_p": 1.1}, "top_p"),
        ([[1]], 3, {"temperature": 1.0, "top_k": 0}, "top_k"),
        (torch.tensor([1, 2]), 3, {}, "prompts"),
    ],
)
def test_what_cannot_be_written_is_one_clear_line(model, prompts, new, options, message):
    with pytest.raises(UserError, match=message) as error:
        model.generate(prompts, new, **options)
    assert "\n" not in str(error.value)
