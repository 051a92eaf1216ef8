"""Writing text: greedy or sampled, a batch of prompts of any lengths, with the latent and index-key cache, and several
tokens a pass where the model can guess them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inazuma.errors import UserError
from inazuma.model.cache import Cache
from inazuma.model.prediction import Acceptance, Drafter

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


def prefill(
    model: Transformer, ids_BT: Tensor, lengths_B: Tensor, cache: Cache, drafter: Drafter | None = None
) -> Tensor:
    """Reads prompts into an empty cache, `PREFILL` tokens at a time, so that memory does not grow with their length.

    Args:
        ids_BT: int64 `[B,T]`, each row's prompt and, behind it, anything.
        lengths_B: int64 `[B]`, how many tokens of each row are its prompt.
        drafter: reads along.

    Returns:
        logits `[B,vocab_size]` of the token after each prompt.
    """
    rows, longest = ids_BT.shape
    logits_BV = torch.empty(rows, model.config.vocab_size, device=ids_BT.device)
    for start in range(0, longest, PREFILL):
        hidden_BTE, _, _ = model.read(ids_BT[:, start : start + PREFILL], cache=cache)
        if drafter is not None:
            drafter.read_prompt(start, hidden_BTE)
        ends = lengths_B - 1 - start  # where in this piece each prompt's last token lies, if it does
        here = (ends >= 0) & (ends < hidden_BTE.shape[1])
        logits_BV[here] = model.lm_head(hidden_BTE[here, ends[here]]).to(logits_BV.dtype)
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
    speculative: bool = True,
    acceptance: Acceptance | None = None,
) -> list[list[int]]:
    """Continues each prompt by up to `max_new_tokens` tokens.

    A model with layers for multi-token prediction guesses tokens with them, and reads its guesses together with the
    token before them. At each position it then draws the token that it would have drawn anyway, with that position's
    own random number, and goes on behind the first guess that differs: the text is the same as without. (Reading
    several tokens at once may round differently in the last bit than reading one, as other batch mates may; only where
    two tokens are that close can it show.) Every row accepts as many guesses as are right for it.

    Args:
        prompts: token ids, one sequence a row; the lengths may differ. A tensor `[B,T]` is taken as B full rows.
        temperature: 0 takes the most probable token.
        top_k, top_p: see `sample`.
        seed: row r draws from a generator of its own, seeded with (seed, r): its text does not depend on the others'.
        stop: token ids that end a row; by default the model's end-of-text. The stopping token is kept.
        speculative: False: no guesses. There are none either for a model without such layers, or when a prompt has
            fewer tokens than the model has such layers.
        acceptance: counts the guesses and how many of them were right.

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
    lengths = torch.tensor([len(row) for row in rows], device=device)
    guesses = config.num_nextn_predict_layers if speculative else 0
    if min(map(len, rows)) < guesses:
        guesses = 0
    # A row's last pass may begin at its last token but one, write all guesses behind the end, and be guessed further.
    capacity = longest + max_new_tokens + 3 * guesses
    text_BS = torch.zeros(len(rows), capacity, dtype=torch.long, device=device)
    for row, prompt in enumerate(rows):
        text_BS[row, : len(prompt)] = torch.tensor(prompt, device=device)
    uniform_BS = torch.empty(len(rows), max_new_tokens + 3 * guesses, dtype=torch.double)
    for row, draws in enumerate(uniform_BS):
        torch.rand(len(draws), generator=torch.Generator().manual_seed(seed * 1_000_003 + row), out=draws)
    uniform_BS = uniform_BS.to(device)

    def draw(logits_BTV: Tensor, known_B: Tensor) -> Tensor:
        """The tokens behind the `known_B` first ones of each row, `[B,T]`, each by the number of its place."""
        at_BT = known_B[:, None] + torch.arange(logits_BTV.shape[1], device=device)
        uniform = uniform_BS.gather(1, at_BT - lengths[:, None]).flatten()
        return sample(logits_BTV.flatten(0, 1), uniform, temperature, top_k, top_p).view_as(at_BT)

    cache = Cache(len(rows), capacity, device)
    drafter = Drafter(model, text_BS, lengths) if guesses else None
    acceptance = Acceptance() if acceptance is None else acceptance
    running = set(range(len(rows))) if max_new_tokens else set()
    ends = [len(row) + max_new_tokens for row in rows]
    known_B, drafts_BD, hidden_BTE = lengths, text_BS[:, :0], None
    logits_BTV = prefill(model, text_BS[:, :longest], lengths, cache, drafter)[:, None]
    while running:
        tokens_BT = draw(logits_BTV, known_B)
        right_B = (tokens_BT[:, :-1] == drafts_BD).cumprod(1).sum(1)
        alive_B = torch.tensor([row in running for row in range(len(rows))], device=device)
        for row, (tokens, right) in enumerate(zip(tokens_BT.tolist(), right_B.tolist(), strict=True)):
            if row not in running:
                continue
            before = len(rows[row])
            for token in tokens[: right + 1]:
                rows[row].append(token)
                if token in stop or len(rows[row]) == ends[row]:
                    running.discard(row)
                    break
            acceptance.drafted += drafts_BD.shape[1]
            acceptance.accepted += min(right, len(rows[row]) - before)
        if not running:
            break
        text_BS.scatter_(1, known_B[:, None] + torch.arange(tokens_BT.shape[1], device=device), tokens_BT)
        # A row that has ended waits where it is, lest it outgrow the cache while others catch up.
        known_B = known_B + torch.where(alive_B, right_B + 1, 0)
        next_BT = text_BS.gather(1, known_B[:, None] - 1)
        if drafter is not None:
            cache.truncate(known_B - 1)
            drafts_BD = drafter.draft(hidden_BTE, known_B, draw)
            next_BT = torch.cat([next_BT, drafts_BD], dim=1)
        hidden_BTE, _, _ = model.read(next_BT, cache=cache)
        logits_BTV = model.lm_head(hidden_BTE)
        acceptance.passes += 1
    return rows
