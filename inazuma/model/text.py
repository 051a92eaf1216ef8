"""Text in, text out: a model with the tokenizer that lies in its folder."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from inazuma.errors import UserError
from inazuma.model.transformer import Transformer


def tokenizer_of(model: Transformer) -> Tokenizer:
    """The model's tokenizer.

    Raises:
        UserError: the model came without one.
    """
    folder: Path | None = model.tokenizer_folder
    if folder is None:
        raise UserError("this model has no tokenizer.json beside its weights; put one there, or pass token ids")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # text that spells a special token is still text
    return tokenizer


def continue_text(
    model: Transformer,
    prompt: str,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
) -> str:
    """What `model` writes after `prompt`, which is taken as the beginning of a document; see `generate`."""
    tokenizer = tokenizer_of(model)
    begin = [] if model.config.bos_token_id is None else [model.config.bos_token_id]
    ids = begin + tokenizer.encode(prompt, add_special_tokens=False).ids
    [row] = model.generate([ids], max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    return tokenizer.decode(row[len(ids) :], skip_special_tokens=True)
