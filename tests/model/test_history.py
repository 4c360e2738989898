"""The item against the history's items: histograms by hand, attention in a loop."""

import pytest
import torch

from recsys.model.history import HistoryAttention, SimilarityTiers
from recsys.model.modality import History
from recsys.model.ranker import DenseInputs
from recsys.run.assembly import plan_and_shard, read_run_config
from tests.tiny_world import manifest, vectors


def inputs(item, past, rows, present=None, item_present=None):
    item, past = torch.tensor(item), torch.tensor(past).reshape(-1, 2)
    ones = torch.ones(len(past)) if present is None else torch.tensor(present)
    item_ones = torch.ones(len(item)) if item_present is None else torch.tensor(item_present)
    nothing = torch.zeros(len(item), 0)
    return DenseInputs(
        user_BX=nothing,
        item_BY=nothing,
        modalities={"style": (item, item_ones)},
        interests=[],
        first_order_B=torch.zeros(len(item)),
        history=History(
            tables={"style": torch.cat([past * ones[:, None], ones[:, None]], dim=1)},
            dims={"style": 2},
            item_T=torch.arange(len(past)),
            row_T=torch.tensor(rows, dtype=torch.int64),
        ),
    )


ITEM = [[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
PAST = [[1.0, 0.0], [3.0, 0.0], [-1.0, 0.0], [0.0, 5.0]]


def test_histogram_counts_past_items_by_cosine():
    """Row 0: cosines 1, 1, -1; row 1 has no history; row 2: cosine 0."""
    tiers = SimilarityTiers(modality_dims={"style": 2}, num_tiers=4)
    counts = torch.expm1(tiers(inputs(ITEM, PAST, [0, 0, 0, 2])))
    expected = torch.tensor([[1.0, 0, 0, 2], [0, 0, 0, 0], [0, 0, 1, 0]])
    torch.testing.assert_close(counts, expected)


def test_histogram_leaves_out_what_lacks_the_modality():
    tiers = SimilarityTiers(modality_dims={"style": 2}, num_tiers=4)
    some = inputs(ITEM, PAST, [0, 0, 0, 2], [1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0])
    counts = torch.expm1(tiers(some))
    torch.testing.assert_close(counts, torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]))


def test_attention_matches_a_loop_over_rows():
    torch.manual_seed(0)
    module = HistoryAttention(modality_dims={"style": 2}, dim=3, hidden_dim=4)
    rows, present = [0, 0, 0, 2], [1.0, 0.0, 1.0, 1.0]
    out = module(inputs(ITEM, PAST, rows, present))
    for row in range(3):
        query = module.linear["style"](torch.tensor(ITEM[row]))
        total, count = torch.zeros(3), 0
        for t, past in enumerate(PAST):
            if rows[t] == row and present[t]:
                key = module.linear["style"](torch.tensor(past))
                weight = module.score["style"](torch.cat([key, query, key * query])[None])[0, 0]
                total, count = total + weight * key, count + 1
        torch.testing.assert_close(out[row], total / max(count, 1))


def test_cosines_are_the_same_piece_by_piece():
    """More items than one piece holds; the last row of the table is a zero vector."""
    torch.manual_seed(0)
    table = torch.cat([torch.randn(50, 2), torch.ones(50, 1)], dim=1)
    table[49] = 0
    history = History(
        tables={"style": table},
        dims={"style": 2},
        item_T=torch.randint(0, 50, (9_000,)),
        row_T=torch.arange(9_000) // 3_000,
    )
    cosine, present = history.cosines("style", torch.tensor(ITEM))
    past, item = table[history.item_T][:, :2], torch.tensor(ITEM)[history.row_T]
    torch.testing.assert_close(cosine, torch.cosine_similarity(past, item, dim=1))
    assert torch.equal(present, (history.item_T != 49).float())


@pytest.mark.parametrize("module", [SimilarityTiers, HistoryAttention])
def test_batch_without_any_history_gives_zeros(module):
    sizes = {"num_tiers": 4} if module is SimilarityTiers else {"dim": 3, "hidden_dim": 4}
    out = module(modality_dims={"style": 2}, **sizes)(inputs(ITEM, [], []))
    assert out.shape[0] == 3 and not out.any()


def test_history_item_by_item_needs_whole_tables(one_process):
    config = read_run_config({
        "model": {"similarity_tiers": 4},
        "plan": {"replicate_modality_bytes": 100},
    })
    with pytest.raises(ValueError, match=r"they take [\d,]+ bytes, .*replicate_modality_bytes=100"):
        plan_and_shard(config=config, manifest=manifest(), vectors=vectors(), env=one_process)
