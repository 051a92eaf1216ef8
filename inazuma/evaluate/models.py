"""Opening what a person named: a folder with a checkpoint, or an address."""

from __future__ import annotations

from pathlib import Path

from inazuma.errors import UserError
from inazuma.evaluate.answering import Answering


def open_model(model: str, *, name: str | None = None, chat: bool = False, tokenizer: Path | None = None) -> Answering:
    """`model` is a folder or begins with http; the options are an address's (`inazuma.evaluate.address`)."""
    if model.startswith(("http://", "https://")):
        from inazuma.evaluate.address import AddressModel

        return AddressModel(model, name=name, chat=chat, tokenizer=tokenizer)
    if name is not None or chat or tokenizer is not None:
        raise UserError(
            f"{model}: --name, --chat and --tokenizer belong to an address; "
            "to chat with a checkpoint, serve it (inazuma serve) and evaluate its address"
        )
    from inazuma.evaluate.local import LocalModel

    return LocalModel(Path(model))
