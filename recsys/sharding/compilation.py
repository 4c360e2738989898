"""Compilation of a scorer for training: torch.compile, with CUDA graphs where they are asked for.

Called by recsys/run/training.py where train.compile asks for it.
"""

import os
import shutil

import torch

from recsys.errors import UserError
from recsys.model.ranker import Scorer


def compile_scorer(scorer: Scorer, form: str) -> None:
    """Compile all of a scorer but its lookups, for training alone.

    Args:
        form: a train.compile other than `none`.

    Raises:
        UserError: CUDA graphs without a CUDA device; a CPU without a C++ compiler.
    """
    on_gpu = next(scorer.dense.parameters()).device.type == "cuda"
    if form == "graphs" and not on_gpu:
        raise UserError("train.compile=graphs: CUDA graphs need an NVIDIA GPU; use fused or none")
    compilers = [os.environ.get("CXX", "g++"), "clang++"]
    if not on_gpu and not any(shutil.which(name) for name in compilers):
        raise UserError(
            f"train.compile={form}: torch.compile needs a C++ compiler on a CPU, and none of "
            f"{', '.join(compilers)} is on the PATH; install one, or use train.compile=none"
        )
    # Batches have the same shape at every step: nothing is compiled for shapes in general.
    mode = "reduce-overhead" if form == "graphs" else None
    scorer.compiled = torch.compile(scorer.score, dynamic=False, mode=mode)
