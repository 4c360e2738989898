"""Export of the dense half: graphs by torch.export, equal to eager scores, for any number of rows.

In: a ranker's dense half with trained weights. Out: the files of recsys/bundle/dense.py, which says what
goes into each graph and what comes out. A half that has the three methods of TwoSided is cut in three.
Shapes: B rows, as in recsys/bundle/dense.py; E modality width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from recsys.bundle.dense import LEAST_ROWS
from recsys.model.inputs import DenseInputs, InputSizes
from recsys.model.umair_fps import ItemSide, UmairFps, UserSide

_EXAMPLE_ROWS = 5
Tensors = list[torch.Tensor]


class _User(nn.Module):
    def __init__(self, dense: UmairFps):
        super().__init__()
        self.dense = dense

    def forward(self, user_BX: torch.Tensor, vectors: Tensors, presents: Tensors) -> Any:
        user = self.dense.user_side(user_BX, list(zip(vectors, presents, strict=True)))
        return user.user_BH, user.query_BD, self.dense.user_vector(user)


class _Item(nn.Module):
    def __init__(self, dense: UmairFps, names: Sequence[str]):
        super().__init__()
        self.dense = dense
        self.names = list(names)

    def forward(self, item_BY: torch.Tensor, vectors: Tensors, presents: Tensors) -> Any:
        item = self.dense.item_side(item_BY, _by_name(self.names, vectors, presents))
        vector_BR = self.dense.item_vector(item)
        return item.vectors_BMH, item.present_BM, item.products_BMD, vector_BR


class _Score(nn.Module):
    def __init__(self, dense: UmairFps):
        super().__init__()
        self.dense = dense

    def forward(
        self,
        user_BH: torch.Tensor,
        query_BD: torch.Tensor,
        vectors_BMH: torch.Tensor,
        present_BM: torch.Tensor,
        products_BMD: torch.Tensor,
        similarity_BS: torch.Tensor,
    ) -> Any:
        item = ItemSide(vectors_BMH=vectors_BMH, present_BM=present_BM, products_BMD=products_BMD)
        return self.dense.combine(UserSide(user_BH=user_BH, query_BD=query_BD), item, similarity_BS)


class _Whole(nn.Module):
    def __init__(self, dense: nn.Module, names: Sequence[str]):
        super().__init__()
        self.dense = dense
        self.names = list(names)

    def forward(
        self,
        user_BX: torch.Tensor,
        item_BY: torch.Tensor,
        vectors: Tensors,
        presents: Tensors,
        interests: Tensors,
        interest_presents: Tensors,
        similarity_BS: torch.Tensor,
    ) -> Any:
        return self.dense(
            DenseInputs(
                user_BX=user_BX,
                item_BY=item_BY,
                modalities=_by_name(self.names, vectors, presents),
                interests=list(zip(interests, interest_presents, strict=True)),
                first_order_B=similarity_BS.new_zeros(similarity_BS.shape[0]),
                similarity_BS=similarity_BS,
            )
        )


def _by_name(names: Sequence[str], vectors: Tensors, presents: Tensors) -> dict[str, Any]:
    return dict(zip(names, zip(vectors, presents, strict=True), strict=True))


def is_two_sided(dense: nn.Module) -> bool:
    """Return whether a dense half has a user side, an item side and their combination."""
    return isinstance(dense, UmairFps)


def match_weights(dense: nn.Module) -> tuple[float, ...]:
    """Return the weights v [M] of the match term; () where a dense half has none."""
    if not isinstance(dense, UmairFps) or dense.match is None:
        return ()
    return tuple(dense.match.weight[0].tolist())


def export_dense(folder: Path, dense: nn.Module, sizes: InputSizes) -> tuple[int, int, int]:
    """Write the graphs of a dense half, and return its widths H, D and R; 0 where it is whole.

    Args:
        folder: `dense/` of a bundle in the making.
        dense: in evaluation mode.
        sizes: widths of its inputs.
    """
    folder.mkdir(parents=True)
    names = list(sizes.modality_dims)
    user_BX, item_BY = _example(sizes.user_dim), _example(sizes.item_dim)
    items = _examples(sizes.modality_dims.values())
    interests = _examples(sizes.modality_dims[name] for name in sizes.interests)
    similarity_BS = _example(sizes.similarity_dim)
    if not isinstance(dense, UmairFps):
        inputs = (user_BX, item_BY, *items, *interests, similarity_BS)
        _write(folder / "whole.pt2", _Whole(dense, names), inputs)
        return 0, 0, 0
    user = _write(folder / "user.pt2", _User(dense), (user_BX, *interests))
    item = _write(folder / "item.pt2", _Item(dense, names), (item_BY, *items))
    _write(folder / "score.pt2", _Score(dense), (*user[:2], *item[:3], similarity_BS))
    return user[0].shape[1], user[1].shape[1], user[2].shape[1]


def _examples(dims: Any) -> tuple[Tensors, Tensors]:
    vectors = [_example(dim) for dim in dims]
    return vectors, [torch.ones(_EXAMPLE_ROWS) for _ in vectors]


def _example(dim: int) -> torch.Tensor:
    """Return rows [B, dim], the same every time: a graph's file keeps its example."""
    return torch.linspace(0.1, 1.0, _EXAMPLE_ROWS * dim).reshape(_EXAMPLE_ROWS, dim)


@torch.no_grad()
def _write(path: Path, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[torch.Tensor, ...]:
    """Write a graph; return what the module makes of the example."""
    outputs = module(*inputs)
    rows = torch.export.Dim("rows", min=LEAST_ROWS)
    shapes = tuple([{0: rows}] * len(x) if isinstance(x, list) else {0: rows} for x in inputs)
    torch.export.save(torch.export.export(module.eval(), inputs, dynamic_shapes=shapes), path)
    return outputs
