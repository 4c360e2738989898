"""torch.export of the dense half: one graph for any number of rows, equal to eager scores."""

import torch

from recsys.model.inputs import DenseInputs
from tests.model.whole_tables import batch_of, ranker_of

torch.export.register_dataclass(DenseInputs)


def test_exported_dense_half_scores_any_number_of_rows_as_eager():
    ranker = ranker_of("umair_fps", similarity_tiers=4, second_order=True).eval()
    with torch.no_grad():
        given = {n: ranker.inputs(batch_of(ranker, range(n)).features) for n in (24, 7)}
        shapes = torch.export.ShapesCollection()
        for tensor in torch.utils._pytree.tree_leaves(given[24]):
            shapes[tensor] = {0: torch.export.Dim("rows", min=2)}
        exported = torch.export.export(ranker.dense, (given[24],), dynamic_shapes=shapes).module()
        for inputs in given.values():
            for eager, scored in zip(ranker.dense(inputs), exported(inputs), strict=True):
                torch.testing.assert_close(scored, eager, rtol=1e-6, atol=1e-6)
