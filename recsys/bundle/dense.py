"""Dense half of a bundle: the graphs that torch.export wrote, run without the code that made them.

    dense/user.pt2    user_BX, interest vectors, their presence -> u [B, H], q [B, D], retrieval [B, R]
    dense/item.pt2    item_BY, modality vectors, their presence
                      -> vectors [B, M, H], presence [B, M], products [B, M, D], retrieval [B, R]
    dense/score.pt2   u, q, vectors, presence, products, histograms [B, S] -> logits [B], weights [B, M]
    dense/whole.pt2   user_BX, item_BY, modality vectors, their presence, interest vectors, their
                      presence, histograms -> logits [B], weights [B, M]

A two-sided bundle has the first three, a whole one the last. recsys/export/dense.py writes them.
Shapes: B rows, as in recsys/bundle/items.py.
"""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from recsys.bundle.spec import EXPORT_AGAIN
from recsys.files import reading

LEAST_ROWS = 2
"""Least rows of a call: torch.export takes a dimension of 1 for a constant."""


class DenseHalf:
    """The graphs of a bundle, each loaded when it is first run."""

    def __init__(self, folder: Path):
        """Args: folder: `dense/` of the bundle."""
        self._folder = folder

    def load(self, names: tuple[str, ...]) -> None:
        """Load graphs now: a first request does not wait for them.

        Raises:
            DamagedFileError: a file is missing or broken.
        """
        for name in names:
            getattr(self, f"_{name}")

    def user(self, *inputs: Any) -> tuple[torch.Tensor, ...]:
        """Run user.pt2."""
        return _run(self._user, inputs)

    def item(self, *inputs: Any) -> tuple[torch.Tensor, ...]:
        """Run item.pt2."""
        return _run(self._item, inputs)

    def score(self, *inputs: Any) -> tuple[torch.Tensor, ...]:
        """Run score.pt2."""
        return _run(self._score, inputs)

    def whole(self, *inputs: Any) -> tuple[torch.Tensor, ...]:
        """Run whole.pt2."""
        return _run(self._whole, inputs)

    @cached_property
    def _user(self) -> Callable:
        return self._load("user")

    @cached_property
    def _item(self) -> Callable:
        return self._load("item")

    @cached_property
    def _score(self) -> Callable:
        return self._load("score")

    @cached_property
    def _whole(self) -> Callable:
        return self._load("whole")

    def _load(self, name: str) -> Callable:
        path = self._folder / f"{name}.pt2"
        with reading(path, EXPORT_AGAIN):
            return torch.export.load(path).module()


def _run(graph: Callable, inputs: tuple[Any, ...]) -> tuple[torch.Tensor, ...]:
    num_rows = inputs[0].shape[0]
    if num_rows >= LEAST_ROWS:
        return graph(*inputs)
    return tuple(output[:num_rows] for output in graph(*map(_repeated, inputs)))


def _repeated(inputs: Any) -> Any:
    """Return tensors [1, ...], or lists of them, as tensors of the least rows."""
    if isinstance(inputs, list):
        return [_repeated(tensor) for tensor in inputs]
    return inputs.expand(LEAST_ROWS, *inputs.shape[1:]).contiguous()
