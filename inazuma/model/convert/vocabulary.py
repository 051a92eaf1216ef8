"""Tokenizers in GGUF: a list of tokens, the merges, and a name for how text is split before merging.

llama.cpp knows the split by name only. A name here has the expressions that the tokenizers library needs for the same
split; a tokenizer whose expressions have no name is refused, since another split would silently give other tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from inazuma.errors import UserError
from inazuma.files import read_json, write_json


class Kind(IntEnum):
    """`tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Split(NamedTuple):
    """How text is split: each expression in turn cuts out its matches, the rest stays whole."""

    expressions: tuple[str, ...]
    ignore_merges: bool = False
    """A piece that is a token as a whole is that token, whatever the merges say."""
    add_bos: bool = False
    """What a missing `tokenizer.ggml.add_bos_token` means."""


_DIGIT = r"\p{N}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+".replace('\\"', '"'),
)

SPLITS = {
    "gpt-2": Split((_GPT2,)),
    "smollm": Split((_DIGIT, _GPT2)),
    "qwen2": Split((f"{_WORD}{_DIGIT}{_REST}",)),
    "llama-bpe": Split((f"{_WORD}{_DIGIT}{{1,3}}{_REST}",), ignore_merges=True, add_bos=True),
    "glm4": Split((f"{_WORD}{_DIGIT}{{1,3}}{_REST}",)),
    "deepseek-v3": Split(_DEEPSEEK_V3),
}
"""`tokenizer.ggml.pre` -> the split."""

SPECIAL = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
"""GGUF's names of special tokens, and Hugging Face's."""


def split_named(name: str, where: Path) -> Split:
    """The split of this `tokenizer.ggml.pre`; a `UserError` names one that is not known."""
    if name not in SPLITS:
        raise UserError(f"{where}: tokenizer.ggml.pre: {name!r} is not known; known are {', '.join(SPLITS)}")
    return SPLITS[name]


# ----------------------------------------------------------------------------------------------------------- from GGUF


def write_tokenizer(fields: Mapping[str, Any], folder: Path, where: Path) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json` and, if there is one, `chat_template.jinja`.

    Args:
        fields: the GGUF file's, by name.
        where: the file, for errors.

    Raises:
        UserError: not a byte-level BPE, or a split that is not known.
    """
    model = fields.get("tokenizer.ggml.model")
    if model != "gpt2":
        raise UserError(f"{where}: tokenizer.ggml.model: {model!r} is not supported, only 'gpt2' (byte-level BPE)")
    split = split_named(fields.get("tokenizer.ggml.pre", "gpt-2"), where)
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    kinds: list[int] = fields.get("tokenizer.ggml.token_type", [Kind.NORMAL] * len(tokens))
    vocabulary = {token: id for id, token in enumerate(tokens) if kinds[id] != Kind.UNUSED}
    # A merge is two tokens with a space between, and no token of a byte-level BPE has a space in it.
    merges = [tuple(merge.split(" ")) for merge in fields.get("tokenizer.ggml.merges", ())]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=split.ignore_merges))
    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in split.expressions]
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_of])
    tokenizer.decoder = decoders.ByteLevel()
    added = {
        id: AddedToken(token, special=kinds[id] != Kind.USER_DEFINED, normalized=False)
        for id, token in enumerate(tokens)
        if kinds[id] in (Kind.UNKNOWN, Kind.CONTROL, Kind.USER_DEFINED)
    }
    tokenizer.add_tokens(list(added.values()))
    special = {
        f"{theirs}_token": tokens[fields[f"tokenizer.ggml.{name}_token_id"]]
        for name, theirs in SPECIAL.items()
        if f"tokenizer.ggml.{name}_token_id" in fields
    }
    if adds_bos(fields, split):
        begin = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, vocabulary[begin])]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", **special, "clean_up_tokenization_spaces": False},
    )
    if (template := fields.get("tokenizer.chat_template")) is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def adds_bos(fields: Mapping[str, Any], split: Split) -> bool:
    """Whether a text begins with the beginning-of-text token."""
    return "tokenizer.ggml.bos_token_id" in fields and fields.get("tokenizer.ggml.add_bos_token", split.add_bos)


# ------------------------------------------------------------------------------------------------------------- to GGUF


def vocabulary_fields(folder: Path, vocab_size: int) -> dict[str, Any]:
    """The `tokenizer.*` fields for the tokenizer in `folder`; ids that it leaves free become unused tokens.

    Raises:
        UserError: not a byte-level BPE, a split or a normaliser that llama.cpp has no name for, or too many tokens.
    """
    path = folder / "tokenizer.json"
    whole = read_json(path)
    model = whole["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise UserError(f"{path}: only a byte-level BPE can be written as GGUF, got {model['type']}")
    if whole.get("normalizer") not in (None, {"type": "Sequence", "normalizers": []}):
        raise UserError(f"{path}: llama.cpp has no normalizer {whole['normalizer']['type']}; the tokens would differ")
    tokens, kinds = [f"[PAD{id}]" for id in range(vocab_size)], [int(Kind.UNUSED)] * vocab_size
    for token, id in [*model["vocab"].items(), *((token["content"], token["id"]) for token in whole["added_tokens"])]:
        if id >= vocab_size:
            raise UserError(f"{path}: token {token!r} has id {id}, the model has vocab_size = {vocab_size}")
        tokens[id], kinds[id] = token, int(Kind.NORMAL)
    for token in whole["added_tokens"]:
        kinds[token["id"]] = int(Kind.CONTROL if token["special"] else Kind.USER_DEFINED)
    fields: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _name_of(whole, path),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        # Older files have a merge as one string.
        "tokenizer.ggml.merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
    }
    beside = folder / "tokenizer_config.json"
    config = read_json(beside) if beside.exists() else {}
    ids = {token: id for id, token in enumerate(tokens)}
    for name, theirs in SPECIAL.items():
        token = config.get(f"{theirs}_token")
        token = token["content"] if isinstance(token, dict) else token
        if token in ids:
            fields[f"tokenizer.ggml.{name}_token_id"] = ids[token]
    template = folder / "chat_template.jinja"
    if template.exists():
        fields["tokenizer.chat_template"] = template.read_text(encoding="utf-8")
    elif isinstance(config.get("chat_template"), str):
        fields["tokenizer.chat_template"] = config["chat_template"]
    return fields


def _name_of(whole: dict[str, Any], path: Path) -> str:
    """The name of a tokenizer.json's split."""
    steps = whole.get("pre_tokenizer") or {}
    expressions: list[str] = []
    byte_level = False
    for step in steps.get("pretokenizers", [steps]):
        match step:
            case {"type": "ByteLevel", "add_prefix_space": False}:
                byte_level = True
                expressions += [_GPT2] if step.get("use_regex", True) else []
            case {"type": "Digits", "individual_digits": True}:
                expressions.append(_DIGIT)
            case {"type": "Split", "pattern": {"Regex": str(expression)}, "behavior": "Isolated", "invert": False}:
                # DeepSeek's file has the characters themselves.
                expressions.append(expression.replace("\r", r"\r").replace("\n", r"\n"))
            case _:
                raise UserError(f"{path}: pre_tokenizer: {json.dumps(step)[:120]} has no counterpart in llama.cpp")
    split = (tuple(expressions), bool(whole["model"].get("ignore_merges")))
    names = [name for name, known in SPLITS.items() if (known.expressions, known.ignore_merges) == split]
    if not names or not byte_level:
        raise UserError(f"{path}: pre_tokenizer: llama.cpp has no name for this split: {expressions}")
    return names[0]
