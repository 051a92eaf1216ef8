"""llama.cpp's own server, as the witness for GGUF files: token ids, likeliest tokens, greedy text."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xllamacpp


class LlamaCpp:
    """A server of one file, in this process, on one thread, with a cache in float32."""

    def __init__(self, path: Path, *, flash_attention: bool = False):
        """`flash_attention`: less exact, but llama.cpp has sparse attention in this form only."""
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx = 256
        parameters.n_parallel = 1
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        kinds = xllamacpp.llama_flash_attn_type
        parameters.flash_attn_type = (
            kinds.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash_attention else kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        parameters.warmup = False
        parameters.verbosity = 0
        parameters.port = 0
        self._server = xllamacpp.Server(parameters)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, without what the model begins texts with."""
        body = json.dumps({"content": text, "add_special": False, "parse_special": False}).encode()
        url = f"{self._server.listening_address}/tokenize"
        with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"})) as answer:
            return json.load(answer)["tokens"]

    def complete(self, ids: list[int], tokens: int, *, never: Iterable[int] = ()) -> list[dict[str, Any]]:
        """The greedy continuation: for each token `id`, and `top_logprobs`, likeliest first.

        `never`: tokens that are not chosen. The server holds back a byte that is no character yet, so a random model
        needs this; the probabilities are those before it.
        """
        options = {"temperature": 0.0, "n_probs": 5, "cache_prompt": True, "logit_bias": [[id, False] for id in never]}
        answer = self._server.handle_completions({"prompt": ids, "n_predict": tokens, **options})
        assert "choices" in answer, answer
        return answer["choices"][0]["logprobs"]["content"]
