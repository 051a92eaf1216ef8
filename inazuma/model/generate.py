"""Writing text: greedy or sampled, a batch of prompts of any lengths, with the latent and index-key cache."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inazuma.errors import UserError
from inazuma.model.cache import Cache

if TYPE_CHECKING:
    from inazuma.model.transformer import Transformer

PREFILL = 2048
"""Prompt tokens read at a time."""


def sample(logits_BV: Tensor, uniform_B: Tensor, temperature: float, top_k: int | None, top_p: float) -> Tensor:
    """One token a row, `[B]`: the best at temperature 0, else drawn by inverting the distribution at `uniform_B`.

    `top_k` keeps the k best tokens, `top_p` the fewest best tokens that hold this much probability
    (arXiv 1904.09751), in that order.
    """
    if temperature == 0:
        return logits_BV.argmax(-1)
    probabilities, tokens = (logits_BV.double() / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        probabilities[:, top_k:] = 0
    before = probabilities.cumsum(-1) - probabilities
    probabilities[before >= top_p * probabilities.sum(-1, keepdim=True)] = 0
    cumulative = probabilities.cumsum(-1)
    # The draw is below the total, so the first place that exceeds it holds a token of positive probability.
    place = (cumulative <= uniform_B[:, None] * cumulative[:, -1:]).sum(-1, keepdim=True)
    return tokens.gather(-1, place.clamp(max=tokens.shape[-1] - 1))[:, 0]


def prefill(model: Transformer, ids_BT: Tensor, lengths_B: Tensor, cache: Cache) -> Tensor:
    """Reads prompts into an empty cache, `PREFILL` tokens at a time, so that memory does not grow with their length.

    Args:
        ids_BT: int64 `[B,T]`, each row's prompt and, behind it, anything.
        lengths_B: int64 `[B]`, how many tokens of each row are its prompt.

    Returns:
        logits `[B,vocab_size]` of the token after each prompt.
    """
    rows, longest = ids_BT.shape
    logits_BV = torch.empty(rows, model.config.vocab_size, device=ids_BT.device)
    for start in range(0, longest, PREFILL):
        piece = ids_BT[:, start : start + PREFILL]
        ends = lengths_B - 1 - start  # where in this piece each prompt's last token lies, if it does
        here = (ends >= 0) & (ends < piece.shape[1])
        # A vocabulary is wide: logits of every token would be the largest tensor of all.
        logits = model(piece, cache=cache, logits_at=ends.clamp(0, piece.shape[1] - 1))[:, 0]
        logits_BV[here] = logits[here].to(logits_BV.dtype)
    cache.truncate(lengths_B)
    return logits_BV


@torch.inference_mode()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]] | Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Collection[int] | None = None,
) -> list[list[int]]:
    """Continues each prompt by up to `max_new_tokens` tokens.

    Args:
        prompts: token ids, one sequence a row; the lengths may differ. A tensor `[B,T]` is taken as B full rows.
        temperature: 0 takes the most probable token.
        top_k, top_p: see `sample`.
        seed: row r draws from a generator of its own, seeded with (seed, r): its text does not depend on the others'.
        stop: token ids that end a row; by default the model's end-of-text. The stopping token is kept.

    Returns:
        a row each: the prompt and what was written.

    Raises:
        UserError: an empty prompt, a bad sampling parameter, or more tokens than the model's positions.
    """
    if isinstance(prompts, Tensor):
        if prompts.dim() != 2:
            raise UserError(f"prompts: expected a tensor [B,T], got {list(prompts.shape)}")
        prompts = prompts.tolist()
    rows = [list(map(int, row)) for row in prompts]
    config = model.config
    if not rows or not all(rows):
        raise UserError("prompts: at least one, and none of them empty")
    if max(map(max, rows)) >= config.vocab_size or min(map(min, rows)) < 0:
        raise UserError(f"prompts: token ids must lie in 0..{config.vocab_size - 1}")
    if max_new_tokens < 0 or not temperature >= 0 or not 0 < top_p <= 1 or (top_k is not None and top_k < 1):
        raise UserError("generate: max_new_tokens >= 0, temperature >= 0, 0 < top_p <= 1 and top_k >= 1 are needed")
    longest = max(map(len, rows))
    if longest + max_new_tokens > config.max_position_embeddings:
        raise UserError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's "
            f"{config.max_position_embeddings} positions; ask for fewer tokens or a shorter prompt"
        )
    if stop is None:
        stop = config.stop_ids

    device = next(model.parameters()).device
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + row) for row in range(len(rows))]
    lengths = torch.tensor([len(row) for row in rows], device=device)
    ids = torch.zeros(len(rows), longest, dtype=torch.long, device=device)
    for row, prompt in enumerate(rows):
        ids[row, : len(prompt)] = torch.tensor(prompt, device=device)

    cache = Cache(len(rows), longest + max_new_tokens, device)
    logits_BV = prefill(model, ids, lengths, cache)

    running = set(range(len(rows)))
    for _ in range(max_new_tokens):
        uniform = torch.stack([torch.rand((), generator=generator, dtype=torch.double) for generator in generators])
        tokens = sample(logits_BV, uniform.to(device), temperature, top_k, top_p)
        for row, token in enumerate(tokens.tolist()):
            if row in running:
                rows[row].append(token)
                if token in stop:
                    running.discard(row)
        if not running:
            break
        logits_BV = model(tokens[:, None], cache=cache)[:, -1]
    return rows
