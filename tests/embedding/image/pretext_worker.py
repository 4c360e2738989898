"""Teaches a picture network two tags under torchrun, in fp32: `python pretext_worker.py FOLDER`.

Started by test_pretext.py on two ranks; every rank writes the network it ended with.
"""

import sys
from pathlib import Path

import torch

from embedding.image import pretext
from recsys.runtime.env import start, stop
from tests.embedding.image.test_pretext import coloured_pictures, train, whole_pictures


def main() -> None:
    """Train for two passes."""
    folder = Path(sys.argv[1])
    env = start("cpu")
    # Crops are drawn by rank, and bf16 rounds a half batch otherwise than a whole one.
    pretext.random_crops = whole_pictures
    pretext.computes_in_bf16 = lambda device: False
    encoder, _ = train(
        coloured_pictures(), folder / "training", epochs=2, learning_rate=1e-5, env=env
    )
    torch.save(encoder.body.state_dict(), folder / f"rank{env.rank}.pt")
    stop()


if __name__ == "__main__":
    main()
