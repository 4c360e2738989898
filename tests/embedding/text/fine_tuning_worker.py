"""Fine-tunes a tiny encoder without dropout on hand-made pairs: `fine_tuning_worker.py FOLDER [RANK]`.

Started by test_fine_tuning.py as one process and under torchrun as two; writes the weights. With RANK,
that rank cannot write its part of a checkpoint, and every rank writes what it raised instead.
"""

import errno
import os
import sys
import time
from pathlib import Path

import torch

from embedding.text.config import TextConfig
from embedding.text.encoder import build_scratch_encoder, load_text_encoder
from embedding.text.fine_tuning import PairTrainer, fine_tune
from embedding.text.pairs import BatchPlan, Pairs
from recsys.runtime.collectives import sharing_errors
from recsys.runtime.env import Env, start, stop


def pairs_of_words(count: int) -> Pairs:
    """Words and their Chinese names, which share nothing with one another."""
    words = [f"word{i}" for i in range(count)]
    names = [f"{chr(0x4E00 + 7 * i)}{chr(0x4E00 + 7 * i + 3)}" for i in range(count)]
    return Pairs(words, names, ["multilingual"] * count, words, [""] * count)


def scratch(pairs: Pairs, folder: Path):
    """A transformer of one layer whose tokenizer knows the pairs."""
    return build_scratch_encoder(
        pairs.anchor + pairs.positive,
        folder,
        vocabulary_size=300,
        hidden_dim=32,
        num_layers=1,
        max_tokens=8,
        seed=0,
        device=torch.device("cpu"),
    )


def train(model, pairs: Pairs, folder: Path, env: Env, *, save_every_steps: int) -> None:
    """Train for 12 steps of 8 pairs."""
    plan = BatchPlan(
        pairs,
        epochs=4,
        batch_size=8,
        weights={"multilingual": 1.0},
        max_pairs=1000,
        num_ranks=env.world_size,
        seed=0,
    )
    fine_tune(
        model,
        pairs,
        [],
        batches=plan,
        config=TextConfig(
            pair_max_tokens=8,
            learning_rate=5e-3,
            evaluations=0,
            save_every_steps=save_every_steps,
            batch_size=8,
        ),
        folder=folder / "checkpoints",
        seed=0,
        env=env,
    )


def refused(model, pairs: Pairs, folder: Path, env: Env) -> str:
    """Train while one rank has no space for its part of the first checkpoint; return what came of it."""
    if env.rank == int(sys.argv[2]):

        def full(*_) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        PairTrainer._save_rng_state = full
    started = time.monotonic()
    try:
        train(model, pairs, folder, env, save_every_steps=2)
    except Exception as error:
        return f"{type(error).__name__}: {error} after {time.monotonic() - started:.0f} s"
    return "nothing"


def main() -> None:
    """Train, and save what every rank ended with."""
    folder = Path(sys.argv[1])
    env = start("cpu")
    pairs = pairs_of_words(24)
    with sharing_errors():
        if env.is_first:
            scratch(pairs, folder).save(str(folder / "untrained"))
    model = load_text_encoder(str(folder / "untrained"), 8, env.device)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if len(sys.argv) > 2:
        (folder / f"raised{env.rank}").write_text(refused(model, pairs, folder, env))
        os._exit(0)
    train(model, pairs, folder, env, save_every_steps=1000)
    torch.save(model.state_dict(), folder / f"weights{env.rank}.pt")
    stop()


if __name__ == "__main__":
    main()
