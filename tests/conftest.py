"""What holds for every test. PyTorch is not imported here: the tests of floors without it stay quick."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "2"
os.environ["HF_HUB_OFFLINE"] = "1"
