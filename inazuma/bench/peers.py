"""What others offer for the same task: which of it is installed here, and how it is called.

transformers has no operator to call, only a whole attention layer. It is held against inazuma's layer of the same
weights, which computes the same function (the indexer learns in neither); both include the projections around the
operators, and inazuma's takes the engine that "auto" picks.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from inazuma.bench.cases import DENSE, Call, Outcome, Pass, Shape, Tensors, with_gradients, without_gradients
from inazuma.model import ModelConfig
from inazuma.model.attention import Context, LatentAttention
from inazuma.model.layers import Rotation

OUR_LAYER, THEIR_LAYER = "layer of inazuma", "layer of transformers"


class Contestant(NamedTuple):
    name: str
    against: str
    """Whose time is divided by this one's; its own name where there is nothing to compare with."""
    make: Callable[[Pass, Tensors], Call]


class Unavailable(Exception):
    """Why a package that is installed cannot take part."""


def peers(device: str, dtype: torch.dtype) -> tuple[list[Contestant], list[str]]:
    """Those that can take part, and for each package that cannot one line that says why."""
    found: list[Contestant] = []
    missing: list[str] = []
    for package, (module, contestants) in PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            missing.append(f"{package} is not installed")
            continue
        try:
            found += contestants(device, dtype)
        except Unavailable as error:
            missing.append(f"{package} is installed but not compared: {error}")
        except ImportError as error:
            missing.append(f"{package} is installed but does not load: {error}".splitlines()[0])
    return found, missing


def _transformers(device: str, dtype: torch.dtype) -> list[Contestant]:
    import transformers

    if not hasattr(transformers, "DeepseekV32Config"):
        raise Unavailable(f"version {transformers.__version__} has no DeepSeek-V3.2")
    return [Contestant(OUR_LAYER, THEIR_LAYER, our_layer), Contestant(THEIR_LAYER, THEIR_LAYER, their_layer)]


def _flash_attn(device: str, dtype: torch.dtype) -> list[Contestant]:
    if device != "cuda" or dtype != torch.bfloat16:
        raise Unavailable("it needs a GPU and bfloat16")
    from flash_attn import flash_attn_func

    def make(kind: Pass, x: Tensors) -> Call:
        leaves = [one.detach().requires_grad_(kind == "training") for one in (x.q, x.k, x.v)]

        def forward() -> Outcome:
            out = flash_attn_func(*leaves, causal=True)
            return Outcome([out], [out], leaves)

        return with_gradients(forward, x.cotangent) if kind == "training" else without_gradients(forward)

    return [Contestant("dense flash-attn", DENSE, make)]


def _tilelang(device: str, dtype: torch.dtype) -> list[Contestant]:
    raise Unavailable("its kernels for DSA are examples outside the package")


def _fla(device: str, dtype: torch.dtype) -> list[Contestant]:
    from fla.ops.dsa import naive_dsa

    def make(kind: Pass, x: Tensors) -> Call:
        leaves = [one.detach().requires_grad_(kind == "training") for one in (x.q, x.k, x.v)]

        def forward() -> Outcome:
            out = naive_dsa(*leaves, *x.index, topk=x.shape.k)
            return Outcome([out], [out], leaves)

        return with_gradients(forward, x.cotangent) if kind == "training" else without_gradients(forward)

    return [Contestant("naive DSA of fla", DENSE, make)]


PACKAGES = {
    "transformers": ("transformers", _transformers),
    "flash-attn": ("flash_attn", _flash_attn),
    "tilelang": ("tilelang", _tilelang),
    "fla": ("fla", _fla),
}
"""Package to its module, and what of it takes part."""


def sizes(shape: Shape) -> dict[str, int]:
    """A layer of multi-head latent attention whose absorbed form reads keys of width D."""
    rope = shape.D // 4
    return {
        "hidden_size": shape.H * shape.D,
        "num_attention_heads": shape.H,
        "q_lora_rank": 2 * shape.D,
        "kv_lora_rank": shape.D - rope,
        "qk_nope_head_dim": shape.D - rope,
        "qk_rope_head_dim": rope,
        "v_head_dim": shape.D,
        "index_n_heads": shape.I,
        "index_head_dim": shape.C,
        "index_topk": shape.k,
    }


def _transformers_layer(x: Tensors) -> tuple[nn.Module, nn.Module]:
    """Their attention layer, with seeded weights, and its rotary embedding."""
    from transformers import DeepseekV32Config
    from transformers.models.deepseek_v32.modeling_deepseek_v32 import (
        DeepseekV32Attention,
        DeepseekV32RotaryEmbedding,
    )

    config = DeepseekV32Config(
        **sizes(x.shape),
        num_key_value_heads=x.shape.H,
        num_hidden_layers=1,
        max_position_embeddings=max(x.length, x.shape.k),
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = DeepseekV32Attention(config, 0)
    return layer.to(x.q.device, x.q.dtype), DeepseekV32RotaryEmbedding(config).to(x.q.device)


def their_layer(kind: Pass, x: Tensors) -> Call:
    layer, rotary = _transformers_layer(x)
    hidden = x.q.flatten(2)
    positions = torch.arange(x.length, device=hidden.device)[None].expand(len(hidden), -1)
    embeddings = rotary(hidden, positions)
    causal = torch.ones(x.length, x.length, dtype=torch.bool, device=hidden.device).tril()[None, None]
    return _layer_call(kind, layer, x, lambda h: layer(h, embeddings, causal)[0])


def our_layer(kind: Pass, x: Tensors) -> Call:
    config = ModelConfig(vocab_size=1, max_position_embeddings=max(x.length, x.shape.k), **sizes(x.shape))
    layer = LatentAttention(config, 0).to(x.q.device, x.q.dtype)
    layer.load_state_dict(_transformers_layer(x)[0].state_dict())
    last = torch.arange(x.length, dtype=torch.int32, device=x.q.device)[None].expand(len(x.q), -1)
    rotations = (Rotation(last, width, config) for width in (config.rope_head_dim, config.index_rope_head_dim))
    context = Context("frozen", torch.zeros_like(last), last, *rotations, None, None)
    return _layer_call(kind, layer, x, lambda h: layer(h, context, None)[0])


def _layer_call(kind: Pass, layer: nn.Module, x: Tensors, run: Callable[[torch.Tensor], torch.Tensor]) -> Call:
    training = kind == "training"
    hidden = x.q.flatten(2).detach().requires_grad_(training)
    leaves = [hidden, *(one for name, one in layer.named_parameters() if not name.startswith("indexer."))]

    def forward() -> Outcome:
        out = run(hidden)
        return Outcome([out], [out], leaves)

    return with_gradients(forward, x.cotangent.flatten(2)) if training else without_gradients(forward)
