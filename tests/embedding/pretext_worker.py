"""Teaches a picture network two tags under torchrun: `python pretext_worker.py FOLDER`.

Started by test_pretext.py on two ranks; every rank writes the network it ended with.
"""

import sys
from pathlib import Path

import torch

from recsys.distributed.env import start, stop
from tests.embedding.test_pretext import coloured_pictures, train


def main() -> None:
    """Train for two passes."""
    folder = Path(sys.argv[1])
    env = start("cpu")
    encoder, _ = train(coloured_pictures(), folder / "training", epochs=2)
    torch.save(encoder.body.state_dict(), folder / f"rank{env.rank}.pt")
    stop()


if __name__ == "__main__":
    main()
