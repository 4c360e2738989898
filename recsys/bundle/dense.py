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
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.export.pt2_archive  # by torch.export.load; here, so that forked workers share it

from recsys.bundle.graph import as_function, rewrite
from recsys.bundle.spec import EXPORT_AGAIN
from recsys.files import DamagedFileError, reading

LEAST_ROWS = 2
"""Least rows of an export: torch.export takes a dimension of 1 for a constant. Operators are recorded for
any number of rows, so that graphs run on one row too."""
_MANY_ROWS = ("score", "whole")
"""Graphs that are run on all candidates of a request."""


def padded_rows(num_rows: int) -> int:
    """Return the number of rows, at most an eighth more, on which `score` and `whole` are to be run.

    oneDNN prepares a kernel for every number of rows that it meets; so it meets few.
    """
    step = max(16, 1 << max(num_rows.bit_length() - 4, 0))
    return -(-num_rows // step) * step


class DenseHalf:
    """The graphs of a bundle, each loaded when it is first run."""

    def __init__(self, folder: Path):
        """Args: folder: `dense/` of the bundle."""
        self._folder = folder

    def load(self, names: tuple[str, ...]) -> None:
        """Load graphs now: a first request does not wait for them.

        Raises:
            DamagedFileError: a file is missing or broken, or a weight is NaN or infinite.
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
            found = path.stat()
            version = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
            return _function(_GraphFile(version, name in _MANY_ROWS, path))


@dataclass(frozen=True)
class _GraphFile:
    """A graph's file as it is now; a folder that is renamed leaves it the same."""

    version: tuple[int, ...]
    many_rows: bool
    path: Path = field(compare=False)


@lru_cache(maxsize=8)
def _function(file: _GraphFile) -> Callable:
    """Load a graph, once for all that open its bundle: an export opens it several times.

    Raises:
        DamagedFileError: a weight is NaN or infinite.
    """
    program = torch.export.load(file.path)
    broken = [name for name, given in program.state_dict.items() if not given.isfinite().all()]
    if broken:
        # A rewritten graph would score all the same: oneDNN's relu makes 0 of NaN.
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise DamagedFileError(
            f"{file.path}: NaN or infinity in {broken[0]}{more}, expected finite weights; export a run "
            f"whose training did not diverge"
        )
    return as_function(rewrite(program, many_rows=file.many_rows))


def _run(graph: Callable, inputs: tuple[Any, ...]) -> tuple[torch.Tensor, ...]:
    return graph(*(x for given in inputs for x in (given if isinstance(given, list) else [given])))
