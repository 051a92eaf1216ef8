"""What holds for every test. PyTorch is not imported here: the tests of floors without it stay quick."""

from __future__ import annotations

import os

# Tensors this small gain nothing from a second thread, and threads that wait for a busy core cost seconds.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
# Kernels run on CPU tensors, in Triton's interpreter; what they compile to, a process of its own finds out.
os.environ["TRITON_INTERPRET"] = "1"
