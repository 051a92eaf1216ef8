"""From a folder to an engine: what is chosen, what is said, what is refused."""

from __future__ import annotations

import asyncio

import pytest
import torch

from inazuma.data.tokenizer import train_tokenizer
from inazuma.errors import UserError
from inazuma.serve import loading
from inazuma.serve.loading import load_engine
from inazuma.serve.request import Done, Request, Sampling
from tests.model.tiny import build, tiny, tokens
