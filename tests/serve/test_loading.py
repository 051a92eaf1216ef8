"""From a folder to an engine: what is chosen, what is said, what is refused."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import inazuma
from inazuma.errors import UserError
from inazuma.serve import loading
from inazuma.serve.loading import Loaded, load_engine
from inazuma.serve.request import Done, Request, Sampling
from tests.model.tiny import build, tiny, tokens


def byte_tokenizer() -> Tokenizer:
    """A token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "model")


def save(path: Path, dtype: torch.dtype = torch.bfloat16, **changes) -> Path:
    model = build(tiny(vocab_size=256, bos_token_id=None, max_position_embeddings=640, **changes), dtype=dtype)
    model.save(path)
    byte_tokenizer().save(str(path / "tokenizer.json"))
    return path


def greedy(loaded: Loaded, prompt: list[int], new: int) -> list[int]:
    async def answer() -> list[int]:
        written = []
        async for event in loaded.engine.submit(Request(prompt, new, Sampling(temperature=0))):
            if not isinstance(event, Done):
                written += [token.id for token in event]
        return written

    return asyncio.run(answer())


def test_a_folder_is_served(tmp_path):
    folder = save(tmp_path / "model", torch.float32)
    prompt = tokens(20).tolist()
    [expected] = inazuma.load(folder).generate([prompt], 10)
    steps: list[tuple[int, int]] = []
    loaded = load_engine(folder, progress=lambda done, total: steps.append((done, total)))
    assert prompt + greedy(loaded, prompt, 10) == expected
    assert loaded.weights == "none" and loaded.engine.context == 640 and steps == [(1, 3), (2, 3), (3, 3)]
    loaded.engine.close(1)


def test_bits_are_chosen_by_the_memory_that_there_is(folder, monkeypatch):
    needs = loading.plan(inazuma.load(folder).config)
    for weights, kind in (("none", "bfloat16"), ("int8", "int8"), ("int4", "int4")):
        room = int(needs.weight_bytes(kind) / loading.SHARE) + 1
        monkeypatch.setattr(loading, "available_memory", lambda device, room=room: room)
        loaded = load_engine(folder, cache_memory=10**6)
        assert loaded.weights == weights
        if weights != "none":
            assert f"weights {weights}" in loaded.notes[0] and "bits per byte" in loaded.notes[0]
        loaded.engine.close(1)
    monkeypatch.setattr(loading, "available_memory", lambda device: needs.weight_bytes("int4") // 2)
    with pytest.raises(UserError, match="even in int4"):
        load_engine(folder)


def test_the_loss_that_is_shown_is_what_it_says(folder):
    """An independent sum over the sample, with the model's own forward pass."""
    model = inazuma.load(folder)
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(loading.SAMPLE).ids[:512]
    with torch.inference_mode():
        logprobs = model(torch.tensor([ids]))[0].float().log_softmax(-1)
    nats = -sum(float(logprobs[i, ids[i + 1]]) for i in range(511))
    expected = nats / 0.6931471805599453 / 513  # the 512th byte is in a letter of three, which counts whole
    loaded = load_engine(folder, quantize="int8")
    assert f"{expected:.4f} before" in loaded.notes[0]
    loaded.engine.close(1)


def test_experts_stay_on_disk(tmp_path):
    folder = save(
        tmp_path / "model", n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=16, first_k_dense_replace=1
    )
    prompt = tokens(20).tolist()
    whole, streamed = load_engine(folder), load_engine(folder, memory=3 * 10**9)
    assert greedy(streamed, prompt, 8) == greedy(whole, prompt, 8)
    for loaded in (whole, streamed):
        loaded.engine.close(1)
    with pytest.raises(UserError, match="are too few"):
        load_engine(folder, memory=10**7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 641}, "640 positions"),
        ({"cache_memory": 10}, "no page"),
        ({"context": 600, "cache_memory": 60_000}, "give it more"),
        ({"memory": 10**9}, "no routed experts"),
        ({"memory": 10**9, "quantize": "int8"}, "read as they are"),
    ],
)
def test_what_does_not_fit_is_refused(folder, options, message):
    with pytest.raises(UserError, match=message):
        load_engine(folder, **options)


def test_a_gguf_file_is_told_what_to_do():
    with pytest.raises(UserError, match="inazuma convert"):
        load_engine("model.gguf")
