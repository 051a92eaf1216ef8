"""The Transformer: embeddings, layers of attention and SwiGLU, logits. It knows of no devices, meshes or optimisers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from inazuma.errors import UserError
from inazuma.model import generate
from inazuma.model.attention import ATTENTION, Context, Observation, Selection
from inazuma.model.cache import Cache
from inazuma.model.config import ModelConfig
from inazuma.model.layers import RMSNorm, Rotation, SwiGLU
from inazuma.model.moe import MixtureOfExperts
from inazuma.ops import Stage


class DecoderLayer(nn.Module):
    """Pre-norm residual block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = ATTENTION[config.attention](config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = (
            MixtureOfExperts(config)
            if config.has_experts(layer)
            else SwiGLU(config.hidden_size, config.intermediate_size)
        )

    def forward(
        self, x: Tensor, context: Context, shared: Selection | None
    ) -> tuple[Tensor, Tensor | None, Selection | None]:
        """Returns the layer's output, its indexer's loss, and the selection that later layers may share."""
        attended, result, selection = self.self_attn(self.input_layernorm(x), context, shared)
        x, loss = x + attended, result.loss
        del attended, result  # the feed-forward layer needs their memory
        return x + self.mlp(self.post_attention_layernorm(x)), loss, selection


class Decoder(nn.Module):
    """Everything below the logits; its attribute names are those of the checkpoints."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    """A causal language model.

    `model(ids)` gives logits `[B,T,vocab_size]`. Training passes `stage` and `output_index_loss`, decoding a `cache`.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.tokenizer_folder: Path | None = None
        """Where the tokenizer lies that this model was trained with; `save` takes it along."""

    @torch.no_grad()
    def init_weights(self, seed: int) -> Transformer:
        """Draws all weights anew: normal with `initializer_range`, and for what writes to the residual stream smaller
        by sqrt(2 layers) (GPT-2), so that its variance does not grow with depth.

        Each tensor is drawn from (seed, its name): the same on every device, and a dense model starts with the very
        weights of its sparse twin.
        """
        depth = (2 * self.config.num_hidden_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:  # norms: weight one, bias zero
                parameter.fill_(0.0 if name.endswith(".bias") else 1.0)
                continue
            writes = name.removesuffix(".weight").endswith(("o_proj", "down_proj"))
            std = self.config.initializer_range * (depth if writes else 1)
            digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        return self

    def forward(
        self,
        ids: Tensor,
        *,
        first: Tensor | None = None,
        cache: Cache | None = None,
        stage: Stage | None = None,
        output_index_loss: bool = False,
        logits_at: Tensor | None = None,
        observe: Callable[[Observation], None] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits of the next token.

        Args:
            ids: int64 `[B,T]`.
            first: int32 `[B,T]`, for packed documents: where in its row each token's document begins. No token sees
                across, and positions count from there. Default: one document a row.
            cache: continues the rows that it holds, and is advanced by T.
            stage: see `inazuma.ops.dsa`. Default: "frozen" for a sparse model, "dense" for a dense one.
            output_index_loss: also return the indexers' losses, float32 `[layers]`, in nats.
            logits_at: int64 `[B]`, the one place of each row whose logits are wanted; they are `[B,1,vocab_size]`.
            observe: called with each layer's attention tensors.

        Returns:
            logits `[B,T,vocab_size]`, or (logits, index_loss) with `output_index_loss`.
        """
        config = self.config
        if ids.dim() != 2 or ids.dtype != torch.long:
            raise UserError(f"ids: expected int64 [B,T], got {ids.dtype} {list(ids.shape)}")
        if stage is None:
            stage = "dense" if config.index_topk is None else "frozen"
        if config.index_topk is None and (stage != "dense" or output_index_loss):
            raise UserError("this model is dense (index_topk is null): its only stage is 'dense', without index loss")
        if stage == "frozen" and output_index_loss:
            raise UserError("stage 'frozen' has no index loss")
        positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        if cache is not None:
            if first is not None:
                raise UserError("first: packed documents cannot be continued from a cache")
            positions = cache.positions(ids.shape[1])
        last = positions.to(torch.int32)
        if first is None:
            first = torch.zeros_like(last)
        elif first.shape != ids.shape or first.dtype != torch.int32:
            raise UserError(f"first: expected int32 {list(ids.shape)}, got {first.dtype} {list(first.shape)}")
        else:
            positions = positions - first
        # A dense stage runs the indexers only when they are to learn.
        indexes = config.index_topk is not None and (stage != "dense" or output_index_loss)
        context = Context(
            stage=stage,
            first=first,
            last=last,
            rotation=Rotation(positions, config.rope_head_dim, config),
            index_rotation=Rotation(positions, config.index_rope_head_dim, config) if indexes else None,
            cache=cache,
            observe=observe,
        )
        x = self.model.embed_tokens(ids)
        losses, shared = [], None
        for layer in self.model.layers:
            x, loss, shared = layer(x, context, shared)
            losses.append(loss)
        if cache is not None:
            cache.advance(ids.shape[1])
        if logits_at is not None:
            x = x[torch.arange(len(x), device=x.device), logits_at][:, None]
        logits = self.lm_head(self.model.norm(x))
        return (logits, torch.stack(losses)) if output_index_loss else logits

    generate = generate.generate

    def save(self, path: Path | str, *, force: bool = False) -> None:
        """Writes the model as a Hugging Face folder; see `inazuma.model.checkpoint.save`."""
        from inazuma.model.checkpoint import save  # it imports this module

        save(self, Path(path), force=force)


class _NoDraws(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def skeleton(config: ModelConfig) -> Transformer:
    """A model whose parameters have shapes and no memory (device "meta"), for weights that come from elsewhere.

    Drawing random numbers that nobody sees would make PyTorch import its compiler: seconds, and 160 MB.
    """
    with torch.device("meta"), _NoDraws():
        return Transformer(config)
