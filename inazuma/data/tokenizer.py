"""The tokenizer: a byte-level BPE trained on a bounded sample of the corpus, or a person's own `tokenizer.json`.

Text never turns into a special token: a document that spells out `<|endoftext|>` is encoded as these characters.
"""

from __future__ import annotations

import heapq
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from inazuma.errors import UserError
from inazuma.files import read_json, write_json

END_OF_TEXT = "<|endoftext|>"
SMALLEST_VOCABULARY = 257
"""The 256 bytes and the end-of-text token."""

SAMPLE_BYTES = 32 << 20
DISTINCT_BYTES = 6 << 20
"""The trainer holds each distinct word, at some 100 bytes of memory a byte: where words repeat little (a script
without spaces is one long word from comma to comma) this ends the sample long before `SAMPLE_BYTES`."""

_WORD = re.compile(r"\w+|[^\w\s]+")
_END_OF_TEXT_NAMES = (
    END_OF_TEXT, "<|end_of_text|>", "</s>", "<|eos|>", "<eos>", "[EOS]", "<｜end▁of▁sentence｜>", "<|im_end|>",
)  # fmt: skip


class Sample:
    """A bounded random sample of texts: those with the smallest keys, whatever order they are offered in."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, str, int]] = []
        self._keys: set[int] = set()
        self._bytes = 0

    def offer(self, key: int, text: str, size: int) -> None:
        """Offers a text of `size` UTF-8 bytes; `key` is its hash, so that equal texts are taken once."""
        if key in self._keys:
            return
        self._keys.add(key)
        heapq.heappush(self._heap, (-key, text, size))
        self._bytes += size
        while self._bytes > SAMPLE_BYTES:
            key, _, size = heapq.heappop(self._heap)
            self._keys.remove(-key)
            self._bytes -= size

    def texts(self) -> Iterator[str]:
        """Yields the sample in the order of its keys, as far as the trainer's memory allows."""
        words: set[str] = set()
        distinct = 0
        for _, text, _ in sorted(self._heap, reverse=True):
            new = set(_WORD.findall(text)) - words
            distinct += sum(len(word.encode()) for word in new)
            if distinct > DISTINCT_BYTES and words:
                return
            words |= new
            yield text


def train_tokenizer(sample: Sample, vocab_size: int, *, or_fewer: bool = False) -> Tokenizer:
    """Trains a byte-level BPE of exactly `vocab_size` entries, or of as many as the text fills; id 0 is `END_OF_TEXT`.

    There is no normaliser and no added space, and every byte is an entry: any text comes back byte for byte.
    Raises `UserError` if the sample cannot fill the vocabulary (an entry must occur twice), unless `or_fewer`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample.texts(), trainer)
    reached = tokenizer.get_vocab_size()
    if reached < vocab_size and not or_fewer:
        raise UserError(
            f"a vocabulary of {vocab_size} is larger than the text can fill: {reached} entries were reached; "
            f"add text or pass --vocab-size {reached} or less"
        )
    tokenizer.encode_special_tokens = True
    return tokenizer


def load_tokenizer(path: Path) -> tuple[Tokenizer, str]:
    """Reads a `tokenizer.json`; returns it with the name of its end-of-text token.

    That is the `eos_token` of a `tokenizer_config.json` beside it, or else the first special token with a usual name.
    Raises `UserError` if the file cannot be read or has no such special token.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{path}: not a tokenizer.json of the tokenizers library ({error})") from None
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    beside = _config_beside(path)
    configured = read_json(beside).get("eos_token") if beside else None
    configured = configured.get("content") if isinstance(configured, dict) else configured
    end_of_text = next((name for name in (configured, *_END_OF_TEXT_NAMES) if name in special), None)
    if end_of_text is None:
        known = ", ".join(sorted(special)[:10]) or "none"
        raise UserError(
            f"{path}: no end-of-text token among its special tokens ({known}); "
            f"name one as eos_token in a tokenizer_config.json beside it"
        )
    # What such a file may carry for inference would cut or pad the documents here.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer, end_of_text


def save_tokenizer(tokenizer: Tokenizer, end_of_text: str, folder: Path, *, given: Path | None) -> None:
    """Writes `tokenizer.json` and a `tokenizer_config.json`, that of the `given` file if it has one."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = folder / "tokenizer_config.json"
    if given and (beside := _config_beside(given)):
        shutil.copyfile(beside, config)
        return
    write_json(
        config,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": end_of_text,
            "eos_token": end_of_text,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
        },
    )


def _config_beside(path: Path) -> Path | None:
    config = Path(path).with_name("tokenizer_config.json")
    return config if config.is_file() else None
