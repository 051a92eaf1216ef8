"""LoRA (Hu et al., arXiv 2106.09685) on a local model, by peft: low-rank changes are learnt, then merged in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig
from peft.tuners.lora import LoraModel

from inazuma.data.batches import IGNORE
from inazuma.rightsize.generative import Codec, Generative
from inazuma.rightsize.table import Example
from inazuma.rightsize.task import Task
from inazuma.rightsize.training import Batches, from_checkpoint, labels_of, repeatable, room_for
from inazuma.train.step import to_device

CHOICES = [{"lr": 1e-3, "rank": 8}, {"lr": 3e-4, "rank": 8}, {"lr": 1e-3, "rank": 16}]
_ROWS = 2
_ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "q_a_proj", "q_b_proj", "gate_proj", "up_proj", "down_proj")
"""The matrices that learn, where the model has them."""


def fit_lora(task: Task, examples: Sequence[Example], choice: dict[str, Any]) -> Generative:
    """Adapts the model in `task.lora` within the task's budget of tokens; returns it with the changes merged in."""
    model = from_checkpoint(task.lora)
    context = min(task.transformer.context * 2, model.config.max_position_embeddings)
    codec = Codec.of(model, context)
    room = room_for(codec, [example.target for example in examples])
    pairs = [(codec.prompt(e.text, room), codec.answer(e.target)) for e in examples]
    here = {name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    torch.manual_seed(task.seed)  # peft draws the first factors from the global generator
    settings = LoraConfig(
        r=choice["rank"],
        lora_alpha=2 * choice["rank"],
        lora_dropout=0.0,
        target_modules=[name for name in _ADAPTED if name in here],
    )
    adapted = LoraModel(model, settings, "default")
    learners = [parameter for name, parameter in adapted.named_parameters() if "lora_" in name]
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_("lora_" in name)
    optimizer = torch.optim.AdamW(learners, lr=0.0, weight_decay=0.0)
    steps = max(4, math.ceil(task.lora_tokens / (_ROWS * context)))
    device = model.lm_head.weight.device
    batches = Batches(pairs, _ROWS, context, codec.end, task.seed)
    model.train()
    with repeatable(device):
        for step in range(steps):
            through = (step + 0.5) / steps
            for group in optimizer.param_groups:
                group["lr"] = choice["lr"] * min(1.0, through / 0.1) * min(1.0, (1 - through) / 0.5)
            ids, targets, first = to_device(batches.next(), device)
            hidden = model.read(ids, first=first)[0]
            learnt = targets != IGNORE
            # Only the answers' positions go through the output head, which is most of a small model's work.
            loss = F.cross_entropy(model.lm_head(hidden[learnt]).float(), targets[learnt])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learners, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    merged = adapted.merge_and_unload()
    return Generative(merged, task, labels_of(task, examples), context, room)
